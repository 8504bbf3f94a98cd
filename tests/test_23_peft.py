from pathlm.adapters.peft import *
import json
from pathlib import Path
import torch
from torch import nn
from pathlm.adapters.core import adapted
from pathlm.adapters.core import adapters
from pathlm.adapters.lora import LoRA
from pathlm.adapters.svft import SVFT
from pathlm.adapters.vblora import VBLoRA
from pathlm.base import CheckpointError
from pathlm.base import PathlmError
from pathlm.base import SettingError
from pathlm.linear import effective_weight
from pathlm.linear import linears
import copy as copies
import pickle
import subprocess
import sys
import tempfile
import warnings
from importlib.util import find_spec
import pytest
import transformers as tf
from pathlm.adapters.core import activate
from pathlm.adapters.core import attach
from pathlm.adapters.core import detach
from pathlm.adapters.core import load_adapter
from pathlm.adapters.core import parameter_groups
from pathlm.adapters.core import save_adapter
from pathlm.adapters.core import trained
from pathlm.adapters.lora import elastic_callback
from pathlm.adapters.lora import get_ranks
from pathlm.adapters.lora import largest
from pathlm.adapters.lora import random_rule
from pathlm.adapters.lora import rank_space
from pathlm.adapters.lora import sandwich_rule
from pathlm.adapters.lora import set_ranks
from pathlm.base import NonFiniteError
from pathlm.base import UnknownAdapterError
from pathlm.models import pretrained
from pathlm.adapters import peft as methods


def test_what_a_peft_folder_holds():
    # %% ../nbs/23_peft.ipynb #39ca2704
    def tiny(name="Llama", **settings):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4) | settings
        torch.manual_seed(0)
        return {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
                "BERT": lambda: tf.BertForSequenceClassification(tf.BertConfig(**common, num_labels=3)),
                }[name]().eval()

    FAMILIES = {"Llama": ["q_proj", "v_proj", "down_proj"], "GPT-2": ["c_attn", "c_proj"]}
    ELASTIC = {"Llama": {"q_proj,v_proj": [6, 3], "down_proj": [6, 4, 1]}, "GPT-2": {"c_attn": [6, 2]}}
    IDS = torch.arange(24).view(2, 12)

    def logits(model, **kwargs):
        with torch.no_grad(): return model(IDS, **kwargs).logits

    def shaken(parameters, std=.1):
        "Give parameters random values."
        torch.manual_seed(1)
        with torch.no_grad():
            for p in parameters: p.normal_(std=std)

    def banked(**changes):
        "A VB-LoRA for the tiny models."
        return VBLoRA(**dict(num_vectors=20, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def apart(a, b):
        "The largest difference of two tensors."
        return (a - b).abs().max().item()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{getattr(f, '__name__', f)} accepted {args} {kwargs}")

    def untouched(error, f, model, *args, **kwargs):
        "The message of a refusal that left the model as it was."
        def state(): return [type(m) for m in model.modules()], [p.requires_grad for p in model.parameters()]
        tensors, before = copies.deepcopy(model.state_dict()), state()
        message = refusal(error, f, model, *args, **kwargs)
        assert before == state() and all(torch.equal(tensors[k], t) for k, t in model.state_dict().items())
        return message

    def changed_file(d, change):
        "Rewrite the tensors of a folder."
        from safetensors.torch import load_file, save_file
        save_file({k: t.clone() for k, t in change(load_file(Path(d)/TENSORS)).items()}, Path(d)/TENSORS)
        return d

    # %% ../nbs/23_peft.ipynb #91122342
    layers, others = by_layer({f"{PREFIX}h.0.c_attn.lora_A.weight": torch.zeros(2, 3), "base_model.bank": torch.ones(1),
                               f"{PREFIX}head.weight": torch.ones(2)}, PATTERNS["LORA"])
    assert list(layers) == ["h.0.c_attn"] and layers["h.0.c_attn"]["A"].shape == (2, 3)
    assert list(others) == ["base_model.bank", "head.weight"]


def test_from_peft_s_names_to_ours():
    # %% ../nbs/23_peft.ipynb #39ca2704
    def tiny(name="Llama", **settings):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4) | settings
        torch.manual_seed(0)
        return {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
                "BERT": lambda: tf.BertForSequenceClassification(tf.BertConfig(**common, num_labels=3)),
                }[name]().eval()

    FAMILIES = {"Llama": ["q_proj", "v_proj", "down_proj"], "GPT-2": ["c_attn", "c_proj"]}
    ELASTIC = {"Llama": {"q_proj,v_proj": [6, 3], "down_proj": [6, 4, 1]}, "GPT-2": {"c_attn": [6, 2]}}
    IDS = torch.arange(24).view(2, 12)

    def logits(model, **kwargs):
        with torch.no_grad(): return model(IDS, **kwargs).logits

    def shaken(parameters, std=.1):
        "Give parameters random values."
        torch.manual_seed(1)
        with torch.no_grad():
            for p in parameters: p.normal_(std=std)

    def banked(**changes):
        "A VB-LoRA for the tiny models."
        return VBLoRA(**dict(num_vectors=20, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def apart(a, b):
        "The largest difference of two tensors."
        return (a - b).abs().max().item()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{getattr(f, '__name__', f)} accepted {args} {kwargs}")

    def untouched(error, f, model, *args, **kwargs):
        "The message of a refusal that left the model as it was."
        def state(): return [type(m) for m in model.modules()], [p.requires_grad for p in model.parameters()]
        tensors, before = copies.deepcopy(model.state_dict()), state()
        message = refusal(error, f, model, *args, **kwargs)
        assert before == state() and all(torch.equal(tensors[k], t) for k, t in model.state_dict().items())
        return message

    def changed_file(d, change):
        "Rewrite the tensors of a folder."
        from safetensors.torch import load_file, save_file
        save_file({k: t.clone() for k, t in change(load_file(Path(d)/TENSORS)).items()}, Path(d)/TENSORS)
        return d

    # %% ../nbs/23_peft.ipynb #1e0b0334
    assert short(tiny(), ["model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"]) == ["up_proj"]
    assert short(tiny(), ["model.layers.0.mlp.up_proj"]) == ["model.layers.0.mlp.up_proj"]
    assert shared_fields(LoRA, {"r": 3, "lora_alpha": None, "use_dora": False, "target_modules": "x"}) == {"r": 3}


def test_reading():
    # %% ../nbs/23_peft.ipynb #39ca2704
    def tiny(name="Llama", **settings):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4) | settings
        torch.manual_seed(0)
        return {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
                "BERT": lambda: tf.BertForSequenceClassification(tf.BertConfig(**common, num_labels=3)),
                }[name]().eval()

    FAMILIES = {"Llama": ["q_proj", "v_proj", "down_proj"], "GPT-2": ["c_attn", "c_proj"]}
    ELASTIC = {"Llama": {"q_proj,v_proj": [6, 3], "down_proj": [6, 4, 1]}, "GPT-2": {"c_attn": [6, 2]}}
    IDS = torch.arange(24).view(2, 12)

    def logits(model, **kwargs):
        with torch.no_grad(): return model(IDS, **kwargs).logits

    def shaken(parameters, std=.1):
        "Give parameters random values."
        torch.manual_seed(1)
        with torch.no_grad():
            for p in parameters: p.normal_(std=std)

    def banked(**changes):
        "A VB-LoRA for the tiny models."
        return VBLoRA(**dict(num_vectors=20, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def apart(a, b):
        "The largest difference of two tensors."
        return (a - b).abs().max().item()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{getattr(f, '__name__', f)} accepted {args} {kwargs}")

    def untouched(error, f, model, *args, **kwargs):
        "The message of a refusal that left the model as it was."
        def state(): return [type(m) for m in model.modules()], [p.requires_grad for p in model.parameters()]
        tensors, before = copies.deepcopy(model.state_dict()), state()
        message = refusal(error, f, model, *args, **kwargs)
        assert before == state() and all(torch.equal(tensors[k], t) for k, t in model.state_dict().items())
        return message

    def changed_file(d, change):
        "Rewrite the tensors of a folder."
        from safetensors.torch import load_file, save_file
        save_file({k: t.clone() for k, t in change(load_file(Path(d)/TENSORS)).items()}, Path(d)/TENSORS)
        return d

    # %% ../nbs/23_peft.ipynb #175d4ae2
    peft = pytest.importorskip("peft")
    warnings.filterwarnings("ignore", "fan_in_fan_out is set to")

    def made(family, config, folder, dtype=torch.float32, **kwargs):
        "Let PEFT save an adapter with random numbers, and give the outputs of its model."
        torch.manual_seed(2)
        model = peft.get_peft_model(tiny(family).to(dtype), config, **kwargs)
        shaken(p for n, p in model.named_parameters() if p.requires_grad and "vblora" not in n)
        for n, p in model.named_parameters():
            if "vblora_logits" in n: torch.nn.init.normal_(p)
            if "vblora_vector_bank" in n: torch.nn.init.uniform_(p, -.5, .5)
        model.eval().save_pretrained(folder)
        return logits(peft.PeftModel.from_pretrained(tiny(family).to(dtype), folder, **kwargs)).float()

    def counterpart(t, tensors):
        "Where the values of one of PEFT's tensors stand in our file."
        for key, own in tensors.items():
            if torch.equal(own, t): return key
            for turned in (t.flatten(0, 1), t.transpose(0, 1).flatten(0, 1)) if t.ndim == 3 else ():
                for i in range(len(own) - len(turned) + 1):
                    if torch.equal(own[i:i + len(turned)], turned): return f"{key}[{i}:{i + len(turned)}]"
        return "(all weights but another)"

    def table(folder):
        "What stands where in a PEFT folder, for the first block."
        from_peft(model := tiny(), folder)
        ours = model.pathlm_adapters["default"].tensors()
        for key, t in sorted(read_folder(folder)[1].items()):
            if ".1." in key: continue
            theirs, mine = (k.replace("layers.0.self_attn", "…") for k in (key, counterpart(t, ours)))
            print(f"{theirs:60} {str(t.dtype)[6:]:8}{str(tuple(t.shape)):12} {mine}")

    # %% ../nbs/23_peft.ipynb #881d96b2
    for config in (peft.LoraConfig(r=4, target_modules=["v_proj"]),
                   *(peft.VBLoRAConfig(r=2, num_vectors=10, vector_length=16, topk=3, target_modules=["v_proj"],
                                       save_only_topk_weights=compact) for compact in (False, True))):
        with tempfile.TemporaryDirectory() as d:
            made("Llama", config, d)
            table(d)

    # %% ../nbs/23_peft.ipynb #afec5d01
    CASES = (dict(r=4, lora_alpha=7), dict(r=8, use_rslora=True, lora_alpha=3), dict(r=2, lora_dropout=.3),
             dict(r=4, rank_pattern={"v_proj": 2, "c_attn": 3}, alpha_pattern={r".*\.1\..*": 16, "q_proj": 1}),
             dict(r=2, layers_to_transform=[1]), dict(r=2, layers_to_transform=0, layers_pattern=["layers", "h"]))

    for family, targets in FAMILIES.items():
        for case in CASES:
            with tempfile.TemporaryDirectory() as d:
                want = made(family, peft.LoraConfig(target_modules=targets, **case), d)
                model = tiny(family)
                base = logits(model)
                adapter = from_peft(model, d)
                assert apart(logits(model), want) < 2e-6 and apart(want, base) > .02
                assert torch.equal(logits(detach(model)), base)


def test_reading_2():
    # %% ../nbs/23_peft.ipynb #39ca2704
    def tiny(name="Llama", **settings):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4) | settings
        torch.manual_seed(0)
        return {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
                "BERT": lambda: tf.BertForSequenceClassification(tf.BertConfig(**common, num_labels=3)),
                }[name]().eval()

    FAMILIES = {"Llama": ["q_proj", "v_proj", "down_proj"], "GPT-2": ["c_attn", "c_proj"]}
    ELASTIC = {"Llama": {"q_proj,v_proj": [6, 3], "down_proj": [6, 4, 1]}, "GPT-2": {"c_attn": [6, 2]}}
    IDS = torch.arange(24).view(2, 12)

    def logits(model, **kwargs):
        with torch.no_grad(): return model(IDS, **kwargs).logits

    def shaken(parameters, std=.1):
        "Give parameters random values."
        torch.manual_seed(1)
        with torch.no_grad():
            for p in parameters: p.normal_(std=std)

    def banked(**changes):
        "A VB-LoRA for the tiny models."
        return VBLoRA(**dict(num_vectors=20, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def apart(a, b):
        "The largest difference of two tensors."
        return (a - b).abs().max().item()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{getattr(f, '__name__', f)} accepted {args} {kwargs}")

    def untouched(error, f, model, *args, **kwargs):
        "The message of a refusal that left the model as it was."
        def state(): return [type(m) for m in model.modules()], [p.requires_grad for p in model.parameters()]
        tensors, before = copies.deepcopy(model.state_dict()), state()
        message = refusal(error, f, model, *args, **kwargs)
        assert before == state() and all(torch.equal(tensors[k], t) for k, t in model.state_dict().items())
        return message

    def changed_file(d, change):
        "Rewrite the tensors of a folder."
        from safetensors.torch import load_file, save_file
        save_file({k: t.clone() for k, t in change(load_file(Path(d)/TENSORS)).items()}, Path(d)/TENSORS)
        return d

    # %% ../nbs/23_peft.ipynb #175d4ae2
    peft = pytest.importorskip("peft")
    warnings.filterwarnings("ignore", "fan_in_fan_out is set to")

    def made(family, config, folder, dtype=torch.float32, **kwargs):
        "Let PEFT save an adapter with random numbers, and give the outputs of its model."
        torch.manual_seed(2)
        model = peft.get_peft_model(tiny(family).to(dtype), config, **kwargs)
        shaken(p for n, p in model.named_parameters() if p.requires_grad and "vblora" not in n)
        for n, p in model.named_parameters():
            if "vblora_logits" in n: torch.nn.init.normal_(p)
            if "vblora_vector_bank" in n: torch.nn.init.uniform_(p, -.5, .5)
        model.eval().save_pretrained(folder)
        return logits(peft.PeftModel.from_pretrained(tiny(family).to(dtype), folder, **kwargs)).float()

    def counterpart(t, tensors):
        "Where the values of one of PEFT's tensors stand in our file."
        for key, own in tensors.items():
            if torch.equal(own, t): return key
            for turned in (t.flatten(0, 1), t.transpose(0, 1).flatten(0, 1)) if t.ndim == 3 else ():
                for i in range(len(own) - len(turned) + 1):
                    if torch.equal(own[i:i + len(turned)], turned): return f"{key}[{i}:{i + len(turned)}]"
        return "(all weights but another)"

    def table(folder):
        "What stands where in a PEFT folder, for the first block."
        from_peft(model := tiny(), folder)
        ours = model.pathlm_adapters["default"].tensors()
        for key, t in sorted(read_folder(folder)[1].items()):
            if ".1." in key: continue
            theirs, mine = (k.replace("layers.0.self_attn", "…") for k in (key, counterpart(t, ours)))
            print(f"{theirs:60} {str(t.dtype)[6:]:8}{str(tuple(t.shape)):12} {mine}")

    # %% ../nbs/23_peft.ipynb #881d96b2
    for config in (peft.LoraConfig(r=4, target_modules=["v_proj"]),
                   *(peft.VBLoRAConfig(r=2, num_vectors=10, vector_length=16, topk=3, target_modules=["v_proj"],
                                       save_only_topk_weights=compact) for compact in (False, True))):
        with tempfile.TemporaryDirectory() as d:
            made("Llama", config, d)
            table(d)

    # %% ../nbs/23_peft.ipynb #becfa26c
    for family, config in (("Llama", peft.LoraConfig(target_modules=r".*layers\.1.*(q|up)_proj")),
                           ("Llama", peft.LoraConfig(target_modules="all-linear", exclude_modules=["down_proj"])),
                           ("BERT", peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query", "dense"],
                                                    exclude_modules=r".*pooler.*"))):
        with tempfile.TemporaryDirectory() as d:
            want, model = made(family, config, d), tiny(family)
            adapter = from_peft(model, d, "from-peft")
            assert apart(logits(model), want) < 2e-6
            assert list(adapter.saved) == (["classifier"] if family == "BERT" else [])
    for dtype, tolerance in (torch.bfloat16, .05), (torch.float16, .006):
        with tempfile.TemporaryDirectory() as d:
            want, model = made("Llama", peft.LoraConfig(target_modules="q_proj|.*v_proj"), d, dtype), tiny().to(dtype)
            from_peft(model, d)
            assert apart(logits(model).float(), want) < tolerance < apart(want, logits(tiny()))


def test_reading_3():
    # %% ../nbs/23_peft.ipynb #39ca2704
    def tiny(name="Llama", **settings):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4) | settings
        torch.manual_seed(0)
        return {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
                "BERT": lambda: tf.BertForSequenceClassification(tf.BertConfig(**common, num_labels=3)),
                }[name]().eval()

    FAMILIES = {"Llama": ["q_proj", "v_proj", "down_proj"], "GPT-2": ["c_attn", "c_proj"]}
    ELASTIC = {"Llama": {"q_proj,v_proj": [6, 3], "down_proj": [6, 4, 1]}, "GPT-2": {"c_attn": [6, 2]}}
    IDS = torch.arange(24).view(2, 12)

    def logits(model, **kwargs):
        with torch.no_grad(): return model(IDS, **kwargs).logits

    def shaken(parameters, std=.1):
        "Give parameters random values."
        torch.manual_seed(1)
        with torch.no_grad():
            for p in parameters: p.normal_(std=std)

    def banked(**changes):
        "A VB-LoRA for the tiny models."
        return VBLoRA(**dict(num_vectors=20, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def apart(a, b):
        "The largest difference of two tensors."
        return (a - b).abs().max().item()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{getattr(f, '__name__', f)} accepted {args} {kwargs}")

    def untouched(error, f, model, *args, **kwargs):
        "The message of a refusal that left the model as it was."
        def state(): return [type(m) for m in model.modules()], [p.requires_grad for p in model.parameters()]
        tensors, before = copies.deepcopy(model.state_dict()), state()
        message = refusal(error, f, model, *args, **kwargs)
        assert before == state() and all(torch.equal(tensors[k], t) for k, t in model.state_dict().items())
        return message

    def changed_file(d, change):
        "Rewrite the tensors of a folder."
        from safetensors.torch import load_file, save_file
        save_file({k: t.clone() for k, t in change(load_file(Path(d)/TENSORS)).items()}, Path(d)/TENSORS)
        return d

    # %% ../nbs/23_peft.ipynb #175d4ae2
    peft = pytest.importorskip("peft")
    warnings.filterwarnings("ignore", "fan_in_fan_out is set to")

    def made(family, config, folder, dtype=torch.float32, **kwargs):
        "Let PEFT save an adapter with random numbers, and give the outputs of its model."
        torch.manual_seed(2)
        model = peft.get_peft_model(tiny(family).to(dtype), config, **kwargs)
        shaken(p for n, p in model.named_parameters() if p.requires_grad and "vblora" not in n)
        for n, p in model.named_parameters():
            if "vblora_logits" in n: torch.nn.init.normal_(p)
            if "vblora_vector_bank" in n: torch.nn.init.uniform_(p, -.5, .5)
        model.eval().save_pretrained(folder)
        return logits(peft.PeftModel.from_pretrained(tiny(family).to(dtype), folder, **kwargs)).float()

    def counterpart(t, tensors):
        "Where the values of one of PEFT's tensors stand in our file."
        for key, own in tensors.items():
            if torch.equal(own, t): return key
            for turned in (t.flatten(0, 1), t.transpose(0, 1).flatten(0, 1)) if t.ndim == 3 else ():
                for i in range(len(own) - len(turned) + 1):
                    if torch.equal(own[i:i + len(turned)], turned): return f"{key}[{i}:{i + len(turned)}]"
        return "(all weights but another)"

    def table(folder):
        "What stands where in a PEFT folder, for the first block."
        from_peft(model := tiny(), folder)
        ours = model.pathlm_adapters["default"].tensors()
        for key, t in sorted(read_folder(folder)[1].items()):
            if ".1." in key: continue
            theirs, mine = (k.replace("layers.0.self_attn", "…") for k in (key, counterpart(t, ours)))
            print(f"{theirs:60} {str(t.dtype)[6:]:8}{str(tuple(t.shape)):12} {mine}")

    # %% ../nbs/23_peft.ipynb #881d96b2
    for config in (peft.LoraConfig(r=4, target_modules=["v_proj"]),
                   *(peft.VBLoRAConfig(r=2, num_vectors=10, vector_length=16, topk=3, target_modules=["v_proj"],
                                       save_only_topk_weights=compact) for compact in (False, True))):
        with tempfile.TemporaryDirectory() as d:
            made("Llama", config, d)
            table(d)

    # %% ../nbs/23_peft.ipynb #f59cad16
    for family, targets in FAMILIES.items():
        for compact in False, True:
            for k in 1, 2, 3:
                with tempfile.TemporaryDirectory() as d:
                    config = peft.VBLoRAConfig(r=4, num_vectors=20, vector_length=16, topk=k, target_modules=targets,
                                               save_only_topk_weights=compact)
                    want, model = made(family, config, d), tiny(family)
                    adapter = from_peft(model, d)
                    assert apart(logits(model), want) < 5e-6 and apart(want, logits(tiny(family))) > .01
                    assert adapter.config.save_only_topk_weights == compact and adapter.config.topk == k


def test_reading_4():
    # %% ../nbs/23_peft.ipynb #39ca2704
    def tiny(name="Llama", **settings):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4) | settings
        torch.manual_seed(0)
        return {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
                "BERT": lambda: tf.BertForSequenceClassification(tf.BertConfig(**common, num_labels=3)),
                }[name]().eval()

    FAMILIES = {"Llama": ["q_proj", "v_proj", "down_proj"], "GPT-2": ["c_attn", "c_proj"]}
    ELASTIC = {"Llama": {"q_proj,v_proj": [6, 3], "down_proj": [6, 4, 1]}, "GPT-2": {"c_attn": [6, 2]}}
    IDS = torch.arange(24).view(2, 12)

    def logits(model, **kwargs):
        with torch.no_grad(): return model(IDS, **kwargs).logits

    def shaken(parameters, std=.1):
        "Give parameters random values."
        torch.manual_seed(1)
        with torch.no_grad():
            for p in parameters: p.normal_(std=std)

    def banked(**changes):
        "A VB-LoRA for the tiny models."
        return VBLoRA(**dict(num_vectors=20, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def apart(a, b):
        "The largest difference of two tensors."
        return (a - b).abs().max().item()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{getattr(f, '__name__', f)} accepted {args} {kwargs}")

    def untouched(error, f, model, *args, **kwargs):
        "The message of a refusal that left the model as it was."
        def state(): return [type(m) for m in model.modules()], [p.requires_grad for p in model.parameters()]
        tensors, before = copies.deepcopy(model.state_dict()), state()
        message = refusal(error, f, model, *args, **kwargs)
        assert before == state() and all(torch.equal(tensors[k], t) for k, t in model.state_dict().items())
        return message

    def changed_file(d, change):
        "Rewrite the tensors of a folder."
        from safetensors.torch import load_file, save_file
        save_file({k: t.clone() for k, t in change(load_file(Path(d)/TENSORS)).items()}, Path(d)/TENSORS)
        return d

    # %% ../nbs/23_peft.ipynb #175d4ae2
    peft = pytest.importorskip("peft")
    warnings.filterwarnings("ignore", "fan_in_fan_out is set to")

    def made(family, config, folder, dtype=torch.float32, **kwargs):
        "Let PEFT save an adapter with random numbers, and give the outputs of its model."
        torch.manual_seed(2)
        model = peft.get_peft_model(tiny(family).to(dtype), config, **kwargs)
        shaken(p for n, p in model.named_parameters() if p.requires_grad and "vblora" not in n)
        for n, p in model.named_parameters():
            if "vblora_logits" in n: torch.nn.init.normal_(p)
            if "vblora_vector_bank" in n: torch.nn.init.uniform_(p, -.5, .5)
        model.eval().save_pretrained(folder)
        return logits(peft.PeftModel.from_pretrained(tiny(family).to(dtype), folder, **kwargs)).float()

    def counterpart(t, tensors):
        "Where the values of one of PEFT's tensors stand in our file."
        for key, own in tensors.items():
            if torch.equal(own, t): return key
            for turned in (t.flatten(0, 1), t.transpose(0, 1).flatten(0, 1)) if t.ndim == 3 else ():
                for i in range(len(own) - len(turned) + 1):
                    if torch.equal(own[i:i + len(turned)], turned): return f"{key}[{i}:{i + len(turned)}]"
        return "(all weights but another)"

    def table(folder):
        "What stands where in a PEFT folder, for the first block."
        from_peft(model := tiny(), folder)
        ours = model.pathlm_adapters["default"].tensors()
        for key, t in sorted(read_folder(folder)[1].items()):
            if ".1." in key: continue
            theirs, mine = (k.replace("layers.0.self_attn", "…") for k in (key, counterpart(t, ours)))
            print(f"{theirs:60} {str(t.dtype)[6:]:8}{str(tuple(t.shape)):12} {mine}")

    # %% ../nbs/23_peft.ipynb #881d96b2
    for config in (peft.LoraConfig(r=4, target_modules=["v_proj"]),
                   *(peft.VBLoRAConfig(r=2, num_vectors=10, vector_length=16, topk=3, target_modules=["v_proj"],
                                       save_only_topk_weights=compact) for compact in (False, True))):
        with tempfile.TemporaryDirectory() as d:
            made("Llama", config, d)
            table(d)

    # %% ../nbs/23_peft.ipynb #abb154ce
    def broken(scale, k=6):
        "A compact VB-LoRA of PEFT's: its outputs before saving, read back by PEFT, and read here."
        torch.manual_seed(0)
        model = peft.get_peft_model(tiny(), peft.VBLoRAConfig(r=4, num_vectors=90, vector_length=16, topk=k,
            target_modules="all-linear", save_only_topk_weights=True, init_logits_std=scale)).eval()
        with tempfile.TemporaryDirectory() as d:
            model.save_pretrained(d)
            from_peft(ours := tiny(), d)
            return logits(model), logits(peft.PeftModel.from_pretrained(tiny(), d)), logits(ours)

    before, theirs, ours = broken(20.)
    for who, y in ("before saving", before), ("read by PEFT", theirs), ("read here", ours):
        print(f"{who:14} {y.isnan().float().mean():.0%} of the outputs are NaN")
    assert theirs.isnan().any() and apart(ours, before) < 5e-6


def test_reading_5():
    # %% ../nbs/23_peft.ipynb #39ca2704
    def tiny(name="Llama", **settings):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4) | settings
        torch.manual_seed(0)
        return {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
                "BERT": lambda: tf.BertForSequenceClassification(tf.BertConfig(**common, num_labels=3)),
                }[name]().eval()

    FAMILIES = {"Llama": ["q_proj", "v_proj", "down_proj"], "GPT-2": ["c_attn", "c_proj"]}
    ELASTIC = {"Llama": {"q_proj,v_proj": [6, 3], "down_proj": [6, 4, 1]}, "GPT-2": {"c_attn": [6, 2]}}
    IDS = torch.arange(24).view(2, 12)

    def logits(model, **kwargs):
        with torch.no_grad(): return model(IDS, **kwargs).logits

    def shaken(parameters, std=.1):
        "Give parameters random values."
        torch.manual_seed(1)
        with torch.no_grad():
            for p in parameters: p.normal_(std=std)

    def banked(**changes):
        "A VB-LoRA for the tiny models."
        return VBLoRA(**dict(num_vectors=20, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def apart(a, b):
        "The largest difference of two tensors."
        return (a - b).abs().max().item()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{getattr(f, '__name__', f)} accepted {args} {kwargs}")

    def untouched(error, f, model, *args, **kwargs):
        "The message of a refusal that left the model as it was."
        def state(): return [type(m) for m in model.modules()], [p.requires_grad for p in model.parameters()]
        tensors, before = copies.deepcopy(model.state_dict()), state()
        message = refusal(error, f, model, *args, **kwargs)
        assert before == state() and all(torch.equal(tensors[k], t) for k, t in model.state_dict().items())
        return message

    def changed_file(d, change):
        "Rewrite the tensors of a folder."
        from safetensors.torch import load_file, save_file
        save_file({k: t.clone() for k, t in change(load_file(Path(d)/TENSORS)).items()}, Path(d)/TENSORS)
        return d

    # %% ../nbs/23_peft.ipynb #175d4ae2
    peft = pytest.importorskip("peft")
    warnings.filterwarnings("ignore", "fan_in_fan_out is set to")

    def made(family, config, folder, dtype=torch.float32, **kwargs):
        "Let PEFT save an adapter with random numbers, and give the outputs of its model."
        torch.manual_seed(2)
        model = peft.get_peft_model(tiny(family).to(dtype), config, **kwargs)
        shaken(p for n, p in model.named_parameters() if p.requires_grad and "vblora" not in n)
        for n, p in model.named_parameters():
            if "vblora_logits" in n: torch.nn.init.normal_(p)
            if "vblora_vector_bank" in n: torch.nn.init.uniform_(p, -.5, .5)
        model.eval().save_pretrained(folder)
        return logits(peft.PeftModel.from_pretrained(tiny(family).to(dtype), folder, **kwargs)).float()

    def counterpart(t, tensors):
        "Where the values of one of PEFT's tensors stand in our file."
        for key, own in tensors.items():
            if torch.equal(own, t): return key
            for turned in (t.flatten(0, 1), t.transpose(0, 1).flatten(0, 1)) if t.ndim == 3 else ():
                for i in range(len(own) - len(turned) + 1):
                    if torch.equal(own[i:i + len(turned)], turned): return f"{key}[{i}:{i + len(turned)}]"
        return "(all weights but another)"

    def table(folder):
        "What stands where in a PEFT folder, for the first block."
        from_peft(model := tiny(), folder)
        ours = model.pathlm_adapters["default"].tensors()
        for key, t in sorted(read_folder(folder)[1].items()):
            if ".1." in key: continue
            theirs, mine = (k.replace("layers.0.self_attn", "…") for k in (key, counterpart(t, ours)))
            print(f"{theirs:60} {str(t.dtype)[6:]:8}{str(tuple(t.shape)):12} {mine}")

    # %% ../nbs/23_peft.ipynb #881d96b2
    for config in (peft.LoraConfig(r=4, target_modules=["v_proj"]),
                   *(peft.VBLoRAConfig(r=2, num_vectors=10, vector_length=16, topk=3, target_modules=["v_proj"],
                                       save_only_topk_weights=compact) for compact in (False, True))):
        with tempfile.TemporaryDirectory() as d:
            made("Llama", config, d)
            table(d)

    # %% ../nbs/23_peft.ipynb #42be6a93
    for dtype, tolerance in (torch.bfloat16, .05), (torch.float16, .006):
        torch.manual_seed(0)
        config = peft.VBLoRAConfig(r=4, num_vectors=20, vector_length=16, init_logits_std=1., init_vector_bank_bound=.5,
                                   target_modules=FAMILIES["Llama"], save_only_topk_weights=True)
        half = peft.get_peft_model(tiny().to(dtype), config, autocast_adapter_dtype=False).eval()
        with tempfile.TemporaryDirectory() as d:
            half.save_pretrained(d)
            assert "scatter" in refusal(RuntimeError, peft.PeftModel.from_pretrained, tiny().to(dtype), d)
            from_peft(model := tiny().to(dtype), d)
            assert apart(logits(model), logits(half)) < tolerance < apart(logits(model), logits(tiny().to(dtype)))


def test_reading_6():
    # %% ../nbs/23_peft.ipynb #39ca2704
    def tiny(name="Llama", **settings):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4) | settings
        torch.manual_seed(0)
        return {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
                "BERT": lambda: tf.BertForSequenceClassification(tf.BertConfig(**common, num_labels=3)),
                }[name]().eval()

    FAMILIES = {"Llama": ["q_proj", "v_proj", "down_proj"], "GPT-2": ["c_attn", "c_proj"]}
    ELASTIC = {"Llama": {"q_proj,v_proj": [6, 3], "down_proj": [6, 4, 1]}, "GPT-2": {"c_attn": [6, 2]}}
    IDS = torch.arange(24).view(2, 12)

    def logits(model, **kwargs):
        with torch.no_grad(): return model(IDS, **kwargs).logits

    def shaken(parameters, std=.1):
        "Give parameters random values."
        torch.manual_seed(1)
        with torch.no_grad():
            for p in parameters: p.normal_(std=std)

    def banked(**changes):
        "A VB-LoRA for the tiny models."
        return VBLoRA(**dict(num_vectors=20, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def apart(a, b):
        "The largest difference of two tensors."
        return (a - b).abs().max().item()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{getattr(f, '__name__', f)} accepted {args} {kwargs}")

    def untouched(error, f, model, *args, **kwargs):
        "The message of a refusal that left the model as it was."
        def state(): return [type(m) for m in model.modules()], [p.requires_grad for p in model.parameters()]
        tensors, before = copies.deepcopy(model.state_dict()), state()
        message = refusal(error, f, model, *args, **kwargs)
        assert before == state() and all(torch.equal(tensors[k], t) for k, t in model.state_dict().items())
        return message

    def changed_file(d, change):
        "Rewrite the tensors of a folder."
        from safetensors.torch import load_file, save_file
        save_file({k: t.clone() for k, t in change(load_file(Path(d)/TENSORS)).items()}, Path(d)/TENSORS)
        return d

    # %% ../nbs/23_peft.ipynb #175d4ae2
    peft = pytest.importorskip("peft")
    warnings.filterwarnings("ignore", "fan_in_fan_out is set to")

    def made(family, config, folder, dtype=torch.float32, **kwargs):
        "Let PEFT save an adapter with random numbers, and give the outputs of its model."
        torch.manual_seed(2)
        model = peft.get_peft_model(tiny(family).to(dtype), config, **kwargs)
        shaken(p for n, p in model.named_parameters() if p.requires_grad and "vblora" not in n)
        for n, p in model.named_parameters():
            if "vblora_logits" in n: torch.nn.init.normal_(p)
            if "vblora_vector_bank" in n: torch.nn.init.uniform_(p, -.5, .5)
        model.eval().save_pretrained(folder)
        return logits(peft.PeftModel.from_pretrained(tiny(family).to(dtype), folder, **kwargs)).float()

    def counterpart(t, tensors):
        "Where the values of one of PEFT's tensors stand in our file."
        for key, own in tensors.items():
            if torch.equal(own, t): return key
            for turned in (t.flatten(0, 1), t.transpose(0, 1).flatten(0, 1)) if t.ndim == 3 else ():
                for i in range(len(own) - len(turned) + 1):
                    if torch.equal(own[i:i + len(turned)], turned): return f"{key}[{i}:{i + len(turned)}]"
        return "(all weights but another)"

    def table(folder):
        "What stands where in a PEFT folder, for the first block."
        from_peft(model := tiny(), folder)
        ours = model.pathlm_adapters["default"].tensors()
        for key, t in sorted(read_folder(folder)[1].items()):
            if ".1." in key: continue
            theirs, mine = (k.replace("layers.0.self_attn", "…") for k in (key, counterpart(t, ours)))
            print(f"{theirs:60} {str(t.dtype)[6:]:8}{str(tuple(t.shape)):12} {mine}")

    # %% ../nbs/23_peft.ipynb #881d96b2
    for config in (peft.LoraConfig(r=4, target_modules=["v_proj"]),
                   *(peft.VBLoRAConfig(r=2, num_vectors=10, vector_length=16, topk=3, target_modules=["v_proj"],
                                       save_only_topk_weights=compact) for compact in (False, True))):
        with tempfile.TemporaryDirectory() as d:
            made("Llama", config, d)
            table(d)

    # %% ../nbs/23_peft.ipynb #b5c0cdec
    with tempfile.TemporaryDirectory() as d, tempfile.TemporaryDirectory() as d2:
        theirs = {"lora": peft.LoraConfig(r=3, target_modules=["q_proj"]),
                  "bank": peft.VBLoRAConfig(num_vectors=20, vector_length=16, target_modules=["q_proj", "up_proj"])}
        want = {name: made("Llama", config, f"{d}/{name}") for name, config in theirs.items()}
        model = tiny()
        for name in want: from_peft(model, f"{d}/{name}", name)
        for name in want:
            activate(model, name)
            assert apart(logits(model), want[name]) < 5e-6
            save_adapter(model, d2, name)
            load_adapter(again := tiny(), d2)
            assert torch.equal(logits(again), logits(model))
        optimizer = torch.optim.AdamW(parameter_groups(model))
        model(IDS, labels=IDS).loss.backward()
        optimizer.step()
        assert apart(logits(model), want["bank"]) > 1e-4


def test_writing():
    # %% ../nbs/23_peft.ipynb #39ca2704
    def tiny(name="Llama", **settings):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4) | settings
        torch.manual_seed(0)
        return {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
                "BERT": lambda: tf.BertForSequenceClassification(tf.BertConfig(**common, num_labels=3)),
                }[name]().eval()

    FAMILIES = {"Llama": ["q_proj", "v_proj", "down_proj"], "GPT-2": ["c_attn", "c_proj"]}
    ELASTIC = {"Llama": {"q_proj,v_proj": [6, 3], "down_proj": [6, 4, 1]}, "GPT-2": {"c_attn": [6, 2]}}
    IDS = torch.arange(24).view(2, 12)

    def logits(model, **kwargs):
        with torch.no_grad(): return model(IDS, **kwargs).logits

    def shaken(parameters, std=.1):
        "Give parameters random values."
        torch.manual_seed(1)
        with torch.no_grad():
            for p in parameters: p.normal_(std=std)

    def banked(**changes):
        "A VB-LoRA for the tiny models."
        return VBLoRA(**dict(num_vectors=20, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def apart(a, b):
        "The largest difference of two tensors."
        return (a - b).abs().max().item()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{getattr(f, '__name__', f)} accepted {args} {kwargs}")

    def untouched(error, f, model, *args, **kwargs):
        "The message of a refusal that left the model as it was."
        def state(): return [type(m) for m in model.modules()], [p.requires_grad for p in model.parameters()]
        tensors, before = copies.deepcopy(model.state_dict()), state()
        message = refusal(error, f, model, *args, **kwargs)
        assert before == state() and all(torch.equal(tensors[k], t) for k, t in model.state_dict().items())
        return message

    def changed_file(d, change):
        "Rewrite the tensors of a folder."
        from safetensors.torch import load_file, save_file
        save_file({k: t.clone() for k, t in change(load_file(Path(d)/TENSORS)).items()}, Path(d)/TENSORS)
        return d

    # %% ../nbs/23_peft.ipynb #46b855af
    peft = pytest.importorskip("peft")

    def read_by_peft(family, model, write, name=None, dtype=torch.float32):
        "What PEFT says to a folder that was written here."
        with tempfile.TemporaryDirectory() as d, warnings.catch_warnings(action="error", category=UserWarning):
            write(model, d, name)
            return logits(peft.PeftModel.from_pretrained(tiny(family).to(dtype), d)).float()

    # %% ../nbs/23_peft.ipynb #abcf86b7
    for family, targets in FAMILIES.items():
        for given in (dict(), dict(use_rslora=True, lora_alpha=5), dict(rank_pattern={"q_proj": 2, "c_attn": 1}),
                      dict(layers_to_transform=[-1]), dict(elastic=ELASTIC[family])):
            model = tiny(family)
            adapter = attach(model, LoRA(r=6, target_modules=targets, **given))
            shaken(adapter.parameters())
            if given.get("elastic"): set_ranks(model, random_rule(rank_space(model), 2)[0])
            assert apart(read_by_peft(family, model, to_peft), logits(model)) < 2e-6
            assert apart(logits(model), logits(tiny(family))) > .01


def test_writing_2():
    # %% ../nbs/23_peft.ipynb #39ca2704
    def tiny(name="Llama", **settings):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4) | settings
        torch.manual_seed(0)
        return {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
                "BERT": lambda: tf.BertForSequenceClassification(tf.BertConfig(**common, num_labels=3)),
                }[name]().eval()

    FAMILIES = {"Llama": ["q_proj", "v_proj", "down_proj"], "GPT-2": ["c_attn", "c_proj"]}
    ELASTIC = {"Llama": {"q_proj,v_proj": [6, 3], "down_proj": [6, 4, 1]}, "GPT-2": {"c_attn": [6, 2]}}
    IDS = torch.arange(24).view(2, 12)

    def logits(model, **kwargs):
        with torch.no_grad(): return model(IDS, **kwargs).logits

    def shaken(parameters, std=.1):
        "Give parameters random values."
        torch.manual_seed(1)
        with torch.no_grad():
            for p in parameters: p.normal_(std=std)

    def banked(**changes):
        "A VB-LoRA for the tiny models."
        return VBLoRA(**dict(num_vectors=20, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def apart(a, b):
        "The largest difference of two tensors."
        return (a - b).abs().max().item()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{getattr(f, '__name__', f)} accepted {args} {kwargs}")

    def untouched(error, f, model, *args, **kwargs):
        "The message of a refusal that left the model as it was."
        def state(): return [type(m) for m in model.modules()], [p.requires_grad for p in model.parameters()]
        tensors, before = copies.deepcopy(model.state_dict()), state()
        message = refusal(error, f, model, *args, **kwargs)
        assert before == state() and all(torch.equal(tensors[k], t) for k, t in model.state_dict().items())
        return message

    def changed_file(d, change):
        "Rewrite the tensors of a folder."
        from safetensors.torch import load_file, save_file
        save_file({k: t.clone() for k, t in change(load_file(Path(d)/TENSORS)).items()}, Path(d)/TENSORS)
        return d

    # %% ../nbs/23_peft.ipynb #46b855af
    peft = pytest.importorskip("peft")

    def read_by_peft(family, model, write, name=None, dtype=torch.float32):
        "What PEFT says to a folder that was written here."
        with tempfile.TemporaryDirectory() as d, warnings.catch_warnings(action="error", category=UserWarning):
            write(model, d, name)
            return logits(peft.PeftModel.from_pretrained(tiny(family).to(dtype), d)).float()

    # %% ../nbs/23_peft.ipynb #079fbc03
    for family, targets in FAMILIES.items():
        for given in (dict(topk=1), dict(topk=2, save_only_topk_weights=False), dict(topk=3),
                      dict(topk=6, init_logits_std=20., num_vectors=256, target_modules="all-linear")):
            for dtype, tolerance in (torch.float32, 5e-6), (torch.bfloat16, .05), (torch.float16, .006):
                torch.manual_seed(0)
                attach(model := tiny(family).to(dtype), banked(**{"target_modules": targets} | given))
                said = logits(model).float()
                assert apart(said, logits(tiny(family))) > .01
                for write in to_peft, to_peft_lora:
                    assert apart(read_by_peft(family, model, write, dtype=dtype), said) < tolerance


def test_writing_3():
    # %% ../nbs/23_peft.ipynb #39ca2704
    def tiny(name="Llama", **settings):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4) | settings
        torch.manual_seed(0)
        return {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
                "BERT": lambda: tf.BertForSequenceClassification(tf.BertConfig(**common, num_labels=3)),
                }[name]().eval()

    FAMILIES = {"Llama": ["q_proj", "v_proj", "down_proj"], "GPT-2": ["c_attn", "c_proj"]}
    ELASTIC = {"Llama": {"q_proj,v_proj": [6, 3], "down_proj": [6, 4, 1]}, "GPT-2": {"c_attn": [6, 2]}}
    IDS = torch.arange(24).view(2, 12)

    def logits(model, **kwargs):
        with torch.no_grad(): return model(IDS, **kwargs).logits

    def shaken(parameters, std=.1):
        "Give parameters random values."
        torch.manual_seed(1)
        with torch.no_grad():
            for p in parameters: p.normal_(std=std)

    def banked(**changes):
        "A VB-LoRA for the tiny models."
        return VBLoRA(**dict(num_vectors=20, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def apart(a, b):
        "The largest difference of two tensors."
        return (a - b).abs().max().item()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{getattr(f, '__name__', f)} accepted {args} {kwargs}")

    def untouched(error, f, model, *args, **kwargs):
        "The message of a refusal that left the model as it was."
        def state(): return [type(m) for m in model.modules()], [p.requires_grad for p in model.parameters()]
        tensors, before = copies.deepcopy(model.state_dict()), state()
        message = refusal(error, f, model, *args, **kwargs)
        assert before == state() and all(torch.equal(tensors[k], t) for k, t in model.state_dict().items())
        return message

    def changed_file(d, change):
        "Rewrite the tensors of a folder."
        from safetensors.torch import load_file, save_file
        save_file({k: t.clone() for k, t in change(load_file(Path(d)/TENSORS)).items()}, Path(d)/TENSORS)
        return d

    # %% ../nbs/23_peft.ipynb #46b855af
    peft = pytest.importorskip("peft")

    def read_by_peft(family, model, write, name=None, dtype=torch.float32):
        "What PEFT says to a folder that was written here."
        with tempfile.TemporaryDirectory() as d, warnings.catch_warnings(action="error", category=UserWarning):
            write(model, d, name)
            return logits(peft.PeftModel.from_pretrained(tiny(family).to(dtype), d)).float()

    # %% ../nbs/23_peft.ipynb #0a611944
    torch.manual_seed(0)
    attach(model := tiny(), banked(zero_init=True))
    shaken([model.pathlm_adapters["default"].gates], std=1)
    with tempfile.TemporaryDirectory() as d:
        assert "to_peft_lora" in refusal(SettingError, to_peft, model, d) and not list(Path(d).iterdir())
        to_peft_lora(model, d)
        from_peft(model, d, "lora")
    for layer in adapted(model).values():
        D, L = (layer.parts[name].delta() for name in ("default", "lora"))
        assert (D - L).norm() <= 1e-6 * D.norm()


def test_writing_4():
    # %% ../nbs/23_peft.ipynb #39ca2704
    def tiny(name="Llama", **settings):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4) | settings
        torch.manual_seed(0)
        return {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
                "BERT": lambda: tf.BertForSequenceClassification(tf.BertConfig(**common, num_labels=3)),
                }[name]().eval()

    FAMILIES = {"Llama": ["q_proj", "v_proj", "down_proj"], "GPT-2": ["c_attn", "c_proj"]}
    ELASTIC = {"Llama": {"q_proj,v_proj": [6, 3], "down_proj": [6, 4, 1]}, "GPT-2": {"c_attn": [6, 2]}}
    IDS = torch.arange(24).view(2, 12)

    def logits(model, **kwargs):
        with torch.no_grad(): return model(IDS, **kwargs).logits

    def shaken(parameters, std=.1):
        "Give parameters random values."
        torch.manual_seed(1)
        with torch.no_grad():
            for p in parameters: p.normal_(std=std)

    def banked(**changes):
        "A VB-LoRA for the tiny models."
        return VBLoRA(**dict(num_vectors=20, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def apart(a, b):
        "The largest difference of two tensors."
        return (a - b).abs().max().item()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{getattr(f, '__name__', f)} accepted {args} {kwargs}")

    def untouched(error, f, model, *args, **kwargs):
        "The message of a refusal that left the model as it was."
        def state(): return [type(m) for m in model.modules()], [p.requires_grad for p in model.parameters()]
        tensors, before = copies.deepcopy(model.state_dict()), state()
        message = refusal(error, f, model, *args, **kwargs)
        assert before == state() and all(torch.equal(tensors[k], t) for k, t in model.state_dict().items())
        return message

    def changed_file(d, change):
        "Rewrite the tensors of a folder."
        from safetensors.torch import load_file, save_file
        save_file({k: t.clone() for k, t in change(load_file(Path(d)/TENSORS)).items()}, Path(d)/TENSORS)
        return d

    # %% ../nbs/23_peft.ipynb #46b855af
    peft = pytest.importorskip("peft")

    def read_by_peft(family, model, write, name=None, dtype=torch.float32):
        "What PEFT says to a folder that was written here."
        with tempfile.TemporaryDirectory() as d, warnings.catch_warnings(action="error", category=UserWarning):
            write(model, d, name)
            return logits(peft.PeftModel.from_pretrained(tiny(family).to(dtype), d)).float()

    # %% ../nbs/23_peft.ipynb #5465b019
    for dtype, tolerance in (torch.float32, 2e-6), (torch.bfloat16, .05), (torch.float16, .006):
        torch.manual_seed(0)
        model = tiny("BERT").to(dtype)
        attach(model, LoRA(r=3, target_modules=["query"], modules_to_save=["classifier"]), "a")
        attach(model, banked(target_modules=["key", "value"], save_only_topk_weights=False), "b")
        shaken([*model.pathlm_adapters["a"].parameters(), *model.classifier.parameters()])
        for name in "a", "b":
            activate(model, name)
            with tempfile.TemporaryDirectory() as d:
                to_peft(model, d, name)
                from_peft(again := tiny("BERT").to(dtype), d)
                theirs = logits(peft.PeftModel.from_pretrained(tiny("BERT").to(dtype), d)).float()
            if name == "b": again.classifier.load_state_dict(model.classifier.state_dict())
            else: assert apart(theirs, logits(model).float()) < tolerance
            assert torch.equal(logits(again), logits(model))
            mine, back = model.pathlm_adapters[name].tensors(), again.pathlm_adapters["default"].tensors()
            assert mine.keys() == back.keys() and all(torch.equal(t, back[k]) for k, t in mine.items())


def test_what_a_name_for_every_tensor_weighs():
    # %% ../nbs/23_peft.ipynb #39ca2704
    def tiny(name="Llama", **settings):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4) | settings
        torch.manual_seed(0)
        return {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
                "BERT": lambda: tf.BertForSequenceClassification(tf.BertConfig(**common, num_labels=3)),
                }[name]().eval()

    FAMILIES = {"Llama": ["q_proj", "v_proj", "down_proj"], "GPT-2": ["c_attn", "c_proj"]}
    ELASTIC = {"Llama": {"q_proj,v_proj": [6, 3], "down_proj": [6, 4, 1]}, "GPT-2": {"c_attn": [6, 2]}}
    IDS = torch.arange(24).view(2, 12)

    def logits(model, **kwargs):
        with torch.no_grad(): return model(IDS, **kwargs).logits

    def shaken(parameters, std=.1):
        "Give parameters random values."
        torch.manual_seed(1)
        with torch.no_grad():
            for p in parameters: p.normal_(std=std)

    def banked(**changes):
        "A VB-LoRA for the tiny models."
        return VBLoRA(**dict(num_vectors=20, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def apart(a, b):
        "The largest difference of two tensors."
        return (a - b).abs().max().item()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{getattr(f, '__name__', f)} accepted {args} {kwargs}")

    def untouched(error, f, model, *args, **kwargs):
        "The message of a refusal that left the model as it was."
        def state(): return [type(m) for m in model.modules()], [p.requires_grad for p in model.parameters()]
        tensors, before = copies.deepcopy(model.state_dict()), state()
        message = refusal(error, f, model, *args, **kwargs)
        assert before == state() and all(torch.equal(tensors[k], t) for k, t in model.state_dict().items())
        return message

    def changed_file(d, change):
        "Rewrite the tensors of a folder."
        from safetensors.torch import load_file, save_file
        save_file({k: t.clone() for k, t in change(load_file(Path(d)/TENSORS)).items()}, Path(d)/TENSORS)
        return d

    # %% ../nbs/23_peft.ipynb #46b855af
    peft = pytest.importorskip("peft")

    def read_by_peft(family, model, write, name=None, dtype=torch.float32):
        "What PEFT says to a folder that was written here."
        with tempfile.TemporaryDirectory() as d, warnings.catch_warnings(action="error", category=UserWarning):
            write(model, d, name)
            return logits(peft.PeftModel.from_pretrained(tiny(family).to(dtype), d)).float()

    # %% ../nbs/23_peft.ipynb #d4b455b4
    def weights_of(config, folder):
        "Bytes of an adapter's file in our format, in PEFT's, and of the tensors alone."
        attach(model := pretrained()[0], config)
        save_adapter(model, f"{folder}/ours"), to_peft(model, f"{folder}/theirs")
        held = read_folder(f"{folder}/theirs")[1].values()
        files = Path(folder)/"ours/adapter.safetensors", Path(folder)/"theirs"/TENSORS
        return *(f.stat().st_size for f in files), sum(t.nbytes for t in held)

    for label, config in {"LoRA, r = 4": LoRA(r=4), "VB-LoRA, compact": VBLoRA(num_vectors=90), "SVFT, diagonal": SVFT(),
                          "VB-LoRA, all logits": VBLoRA(num_vectors=90, save_only_topk_weights=False)}.items():
        with tempfile.TemporaryDirectory() as d: ours, theirs, tensors = weights_of(config, d)
        print(f"{label:20} tensors {tensors/1e3:6.1f} kB, our file {ours/1e3:6.1f} kB, PEFT's {theirs/1e3:6.1f} kB")

    # %% ../nbs/23_peft.ipynb #01233b00
    with tempfile.TemporaryDirectory() as d:
        ours, theirs, tensors = weights_of(VBLoRA(num_vectors=90), d)
        count = 4 * sum(sum(layer.weight.shape) for layer in linears(pretrained()[0]).values()) // 256
        assert tensors == 4*90*256 + count*(4 + 2) and tensors < ours < tensors + 2048 < theirs


def test_what_is_refused():
    # %% ../nbs/23_peft.ipynb #39ca2704
    def tiny(name="Llama", **settings):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4) | settings
        torch.manual_seed(0)
        return {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
                "BERT": lambda: tf.BertForSequenceClassification(tf.BertConfig(**common, num_labels=3)),
                }[name]().eval()

    FAMILIES = {"Llama": ["q_proj", "v_proj", "down_proj"], "GPT-2": ["c_attn", "c_proj"]}
    ELASTIC = {"Llama": {"q_proj,v_proj": [6, 3], "down_proj": [6, 4, 1]}, "GPT-2": {"c_attn": [6, 2]}}
    IDS = torch.arange(24).view(2, 12)

    def logits(model, **kwargs):
        with torch.no_grad(): return model(IDS, **kwargs).logits

    def shaken(parameters, std=.1):
        "Give parameters random values."
        torch.manual_seed(1)
        with torch.no_grad():
            for p in parameters: p.normal_(std=std)

    def banked(**changes):
        "A VB-LoRA for the tiny models."
        return VBLoRA(**dict(num_vectors=20, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def apart(a, b):
        "The largest difference of two tensors."
        return (a - b).abs().max().item()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{getattr(f, '__name__', f)} accepted {args} {kwargs}")

    def untouched(error, f, model, *args, **kwargs):
        "The message of a refusal that left the model as it was."
        def state(): return [type(m) for m in model.modules()], [p.requires_grad for p in model.parameters()]
        tensors, before = copies.deepcopy(model.state_dict()), state()
        message = refusal(error, f, model, *args, **kwargs)
        assert before == state() and all(torch.equal(tensors[k], t) for k, t in model.state_dict().items())
        return message

    def changed_file(d, change):
        "Rewrite the tensors of a folder."
        from safetensors.torch import load_file, save_file
        save_file({k: t.clone() for k, t in change(load_file(Path(d)/TENSORS)).items()}, Path(d)/TENSORS)
        return d

    # %% ../nbs/23_peft.ipynb #1df6b32c
    def folder_of(d, config=None, **changes):
        "A PEFT folder for the tiny Llama with some settings changed."
        to_peft(attached(config), d)
        if changes: (Path(d)/SETTINGS).write_text(json.dumps(json.loads((Path(d)/SETTINGS).read_text()) | changes))
        return d

    def attached(config=None):
        "A tiny Llama with an adapter."
        model = tiny()
        attach(model, config or LoRA(r=2, target_modules="q_proj"))
        return model

    # %% ../nbs/23_peft.ipynb #8509243f
    with tempfile.TemporaryDirectory() as d:
        for settings in (dict(use_dora=True), dict(lora_bias=True), dict(bias="all"), dict(target_parameters=["w"]),
                dict(init_lora_weights="pissa_niter_4"), dict(layer_replication=[[0, 2]]), dict(peft_type="LOHA"),
                dict(peft_type=None), dict(invented_next_year=3), dict(r=3), dict(r="two"), dict(lora_alpha="two"),
                dict(rank_pattern={"q_proj": 1}), dict(alpha_pattern=[3]), dict(alpha_pattern={"(": 1}),
                dict(target_modules="(")):
            print(untouched(CheckpointError, from_peft, tiny(), folder_of(d, **settings)).replace(d, "DIR"))

    # %% ../nbs/23_peft.ipynb #28091b54
    with tempfile.TemporaryDirectory() as d:
        for other in tiny("GPT-2"), tiny(num_hidden_layers=1), tiny(num_hidden_layers=3), tiny(hidden_size=64):
            print(untouched(CheckpointError, from_peft, other, folder_of(d)).replace(d, "DIR"))
        key = f"{PREFIX}model.layers.0.self_attn.q_proj.lora_A.weight"
        for change in (lambda t: t | {key: t[key]*torch.nan}, lambda t: {k: v for k, v in t.items() if k != key},
                       lambda t: t | {key.replace("A.weight", "embedding_A"): t[key]}, lambda t: {}):
            print(untouched(CheckpointError, from_peft, tiny(), changed_file(folder_of(d), change)).replace(d, "DIR"))
        bank = "base_model.vblora_vector_bank"
        key = f"{PREFIX}model.layers.0.self_attn.q_proj.vblora_logits_A_topk_indices"
        for change in (lambda t: {k: v for k, v in t.items() if k != bank}, lambda t: t | {bank: t[bank][1:]},
                       lambda t: t | {key: t[key] + 20}, lambda t: t | {key: t[key].int() + 256},
                       lambda t: t | {key: t[key][:, :1]}, lambda t: {k: v for k, v in t.items() if k != key}):
            changed_file(folder_of(d, banked(target_modules="q_proj")), change)
            print(untouched(CheckpointError, from_peft, tiny(), d).replace(d, "DIR"))

    # %% ../nbs/23_peft.ipynb #7b3494e6
    with tempfile.TemporaryDirectory() as d:
        whole = (Path(folder_of(d))/TENSORS).read_bytes()
        for damaged in whole[:100], whole[:-10], b"", b"not a file of tensors":
            (Path(d)/TENSORS).write_bytes(damaged)
            assert TENSORS in untouched(CheckpointError, from_peft, tiny(), d)
        (Path(d)/TENSORS).rename(Path(d)/"adapter_model.bin")
        assert "pickle" in untouched(CheckpointError, from_peft, tiny(), d)
        (Path(d)/"adapter_model.bin").unlink()
        assert "no file" in untouched(CheckpointError, from_peft, tiny(), d)
        for text in "{", "[]", "{}":
            (Path(d)/SETTINGS).write_text(text)
            assert SETTINGS in untouched(CheckpointError, from_peft, tiny(), d)
        (Path(d)/SETTINGS).unlink()
        assert SETTINGS in untouched(CheckpointError, from_peft, tiny(), d)
        model = attached()
        assert "already" in untouched(SettingError, from_peft, model, folder_of(d))
        assert "no adapter" in untouched(UnknownAdapterError, to_peft, model, d, "french")


def test_elastic_lora_and_svft_as_methods_of_peft():
    # %% ../nbs/23_peft.ipynb #39ca2704
    def tiny(name="Llama", **settings):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4) | settings
        torch.manual_seed(0)
        return {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
                "BERT": lambda: tf.BertForSequenceClassification(tf.BertConfig(**common, num_labels=3)),
                }[name]().eval()

    FAMILIES = {"Llama": ["q_proj", "v_proj", "down_proj"], "GPT-2": ["c_attn", "c_proj"]}
    ELASTIC = {"Llama": {"q_proj,v_proj": [6, 3], "down_proj": [6, 4, 1]}, "GPT-2": {"c_attn": [6, 2]}}
    IDS = torch.arange(24).view(2, 12)

    def logits(model, **kwargs):
        with torch.no_grad(): return model(IDS, **kwargs).logits

    def shaken(parameters, std=.1):
        "Give parameters random values."
        torch.manual_seed(1)
        with torch.no_grad():
            for p in parameters: p.normal_(std=std)

    def banked(**changes):
        "A VB-LoRA for the tiny models."
        return VBLoRA(**dict(num_vectors=20, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def apart(a, b):
        "The largest difference of two tensors."
        return (a - b).abs().max().item()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{getattr(f, '__name__', f)} accepted {args} {kwargs}")

    def untouched(error, f, model, *args, **kwargs):
        "The message of a refusal that left the model as it was."
        def state(): return [type(m) for m in model.modules()], [p.requires_grad for p in model.parameters()]
        tensors, before = copies.deepcopy(model.state_dict()), state()
        message = refusal(error, f, model, *args, **kwargs)
        assert before == state() and all(torch.equal(tensors[k], t) for k, t in model.state_dict().items())
        return message

    def changed_file(d, change):
        "Rewrite the tensors of a folder."
        from safetensors.torch import load_file, save_file
        save_file({k: t.clone() for k, t in change(load_file(Path(d)/TENSORS)).items()}, Path(d)/TENSORS)
        return d

    # %% ../nbs/23_peft.ipynb #6cb658cf
    def python(code):
        "Run a program of its own."
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert python("import sys, pathlm.adapters.peft; sys.exit('peft' in sys.modules)").returncode == 0
    without = "import sys; sys.modules['peft'] = None; from pathlm.adapters.peft import from_peft, to_peft, SvftConfig"
    assert "SettingError" in python(without).stderr and python(without).stderr.strip().endswith("pip install pathlm[peft]")


def test_the_life_of_an_adapter_in_peft():
    # %% ../nbs/23_peft.ipynb #39ca2704
    def tiny(name="Llama", **settings):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4) | settings
        torch.manual_seed(0)
        return {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
                "BERT": lambda: tf.BertForSequenceClassification(tf.BertConfig(**common, num_labels=3)),
                }[name]().eval()

    FAMILIES = {"Llama": ["q_proj", "v_proj", "down_proj"], "GPT-2": ["c_attn", "c_proj"]}
    ELASTIC = {"Llama": {"q_proj,v_proj": [6, 3], "down_proj": [6, 4, 1]}, "GPT-2": {"c_attn": [6, 2]}}
    IDS = torch.arange(24).view(2, 12)

    def logits(model, **kwargs):
        with torch.no_grad(): return model(IDS, **kwargs).logits

    def shaken(parameters, std=.1):
        "Give parameters random values."
        torch.manual_seed(1)
        with torch.no_grad():
            for p in parameters: p.normal_(std=std)

    def banked(**changes):
        "A VB-LoRA for the tiny models."
        return VBLoRA(**dict(num_vectors=20, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def apart(a, b):
        "The largest difference of two tensors."
        return (a - b).abs().max().item()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{getattr(f, '__name__', f)} accepted {args} {kwargs}")

    def untouched(error, f, model, *args, **kwargs):
        "The message of a refusal that left the model as it was."
        def state(): return [type(m) for m in model.modules()], [p.requires_grad for p in model.parameters()]
        tensors, before = copies.deepcopy(model.state_dict()), state()
        message = refusal(error, f, model, *args, **kwargs)
        assert before == state() and all(torch.equal(tensors[k], t) for k, t in model.state_dict().items())
        return message

    def changed_file(d, change):
        "Rewrite the tensors of a folder."
        from safetensors.torch import load_file, save_file
        save_file({k: t.clone() for k, t in change(load_file(Path(d)/TENSORS)).items()}, Path(d)/TENSORS)
        return d

    # %% ../nbs/23_peft.ipynb #22c1c3eb
    peft = pytest.importorskip("peft")
    warnings.filterwarnings("ignore", "fan_in_fan_out is set to")

    def configs(family, **given):
        "A configuration of either method that fits a tiny model."
        targets = FAMILIES[family]
        elastic = dict(r=6, lora_alpha=9, elastic=ELASTIC[family])
        return {"elastic": methods.ElasticLoraConfig(target_modules=targets, **elastic, **given),
                "svft": methods.SvftConfig(pattern="banded", off_diagonal=1, target_modules=targets, **given),
                "top-k": methods.SvftConfig(pattern="top_k", gate=True, target_modules=targets, **given)}

    def adapted_by(config, family="Llama", dtype=torch.float32, std=.1):
        "A PEFT model of one of the methods, with random numbers."
        model = peft.get_peft_model(tiny(family).to(dtype), config).eval()
        shaken((p for p in model.parameters() if p.requires_grad), std)
        return model

    # %% ../nbs/23_peft.ipynb #ad93b283
    for family, targets in FAMILIES.items():
        model = adapted_by(configs(family)["elastic"], family)
        twin = peft.get_peft_model(tiny(family), peft.LoraConfig(r=6, lora_alpha=9, target_modules=targets)).eval()
        with torch.no_grad():
            for name, layer in twin.base_model.model.named_modules():
                if not hasattr(layer, "lora_A"): continue
                part = model.base_model.model.get_submodule(name).parts["default"]
                layer.lora_A["default"].weight.copy_(part.A), layer.lora_B["default"].weight.copy_(part.B)
        assert apart(logits(model), logits(twin)) < 1e-6 < apart(logits(model), logits(tiny(family)))
        assert trained(model) == trained(twin)
        for ids in IDS, IDS.flip(1):
            for m in model, twin:
                m.zero_grad()
                m(ids, labels=ids).loss.backward()
            part, layer = adapters(model)["default"].parts[0], next(m for m in twin.modules() if hasattr(m, "lora_A"))
            torch.testing.assert_close(part.A.grad, layer.lora_A["default"].weight.grad, rtol=1e-5, atol=1e-8)
        set_ranks(model, {group: min(choices) for group, choices in rank_space(model).items()})
        assert apart(logits(model), logits(twin)) > 1e-3
        with tempfile.TemporaryDirectory() as d:
            to_peft(model, d)
            assert json.loads((Path(d)/SETTINGS).read_text())["peft_type"] == "LORA"
            assert apart(logits(peft.PeftModel.from_pretrained(tiny(family), d)), logits(model)) < 2e-6


def test_the_life_of_an_adapter_in_peft_2():
    # %% ../nbs/23_peft.ipynb #39ca2704
    def tiny(name="Llama", **settings):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4) | settings
        torch.manual_seed(0)
        return {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
                "BERT": lambda: tf.BertForSequenceClassification(tf.BertConfig(**common, num_labels=3)),
                }[name]().eval()

    FAMILIES = {"Llama": ["q_proj", "v_proj", "down_proj"], "GPT-2": ["c_attn", "c_proj"]}
    ELASTIC = {"Llama": {"q_proj,v_proj": [6, 3], "down_proj": [6, 4, 1]}, "GPT-2": {"c_attn": [6, 2]}}
    IDS = torch.arange(24).view(2, 12)

    def logits(model, **kwargs):
        with torch.no_grad(): return model(IDS, **kwargs).logits

    def shaken(parameters, std=.1):
        "Give parameters random values."
        torch.manual_seed(1)
        with torch.no_grad():
            for p in parameters: p.normal_(std=std)

    def banked(**changes):
        "A VB-LoRA for the tiny models."
        return VBLoRA(**dict(num_vectors=20, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def apart(a, b):
        "The largest difference of two tensors."
        return (a - b).abs().max().item()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{getattr(f, '__name__', f)} accepted {args} {kwargs}")

    def untouched(error, f, model, *args, **kwargs):
        "The message of a refusal that left the model as it was."
        def state(): return [type(m) for m in model.modules()], [p.requires_grad for p in model.parameters()]
        tensors, before = copies.deepcopy(model.state_dict()), state()
        message = refusal(error, f, model, *args, **kwargs)
        assert before == state() and all(torch.equal(tensors[k], t) for k, t in model.state_dict().items())
        return message

    def changed_file(d, change):
        "Rewrite the tensors of a folder."
        from safetensors.torch import load_file, save_file
        save_file({k: t.clone() for k, t in change(load_file(Path(d)/TENSORS)).items()}, Path(d)/TENSORS)
        return d

    # %% ../nbs/23_peft.ipynb #22c1c3eb
    peft = pytest.importorskip("peft")
    warnings.filterwarnings("ignore", "fan_in_fan_out is set to")

    def configs(family, **given):
        "A configuration of either method that fits a tiny model."
        targets = FAMILIES[family]
        elastic = dict(r=6, lora_alpha=9, elastic=ELASTIC[family])
        return {"elastic": methods.ElasticLoraConfig(target_modules=targets, **elastic, **given),
                "svft": methods.SvftConfig(pattern="banded", off_diagonal=1, target_modules=targets, **given),
                "top-k": methods.SvftConfig(pattern="top_k", gate=True, target_modules=targets, **given)}

    def adapted_by(config, family="Llama", dtype=torch.float32, std=.1):
        "A PEFT model of one of the methods, with random numbers."
        model = peft.get_peft_model(tiny(family).to(dtype), config).eval()
        shaken((p for p in model.parameters() if p.requires_grad), std)
        return model

    # %% ../nbs/23_peft.ipynb #554d1dea
    for family, targets in FAMILIES.items():
        for dtype in torch.float32, torch.bfloat16:
            model = peft.get_peft_model(tiny(family).to(dtype), configs(family)["svft"]).eval()
            assert torch.equal(logits(model), logits(tiny(family).to(dtype)))
            assert {n.rpartition(".")[2] for n, p in model.named_parameters() if p.requires_grad} == {"M"}
            plain = tiny(family).to(dtype)
            adapter = attach(plain, SVFT(pattern="banded", off_diagonal=1, target_modules=targets))
            shaken(adapter.parameters())
            shaken(p for p in model.parameters() if p.requires_grad)
            assert trained(model) == sum(p.numel() for p in adapter.parameters())
            assert torch.equal(logits(model), logits(plain)) and apart(logits(plain).float(), logits(tiny(family))) > .01


def test_the_life_of_an_adapter_in_peft_3():
    # %% ../nbs/23_peft.ipynb #39ca2704
    def tiny(name="Llama", **settings):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4) | settings
        torch.manual_seed(0)
        return {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
                "BERT": lambda: tf.BertForSequenceClassification(tf.BertConfig(**common, num_labels=3)),
                }[name]().eval()

    FAMILIES = {"Llama": ["q_proj", "v_proj", "down_proj"], "GPT-2": ["c_attn", "c_proj"]}
    ELASTIC = {"Llama": {"q_proj,v_proj": [6, 3], "down_proj": [6, 4, 1]}, "GPT-2": {"c_attn": [6, 2]}}
    IDS = torch.arange(24).view(2, 12)

    def logits(model, **kwargs):
        with torch.no_grad(): return model(IDS, **kwargs).logits

    def shaken(parameters, std=.1):
        "Give parameters random values."
        torch.manual_seed(1)
        with torch.no_grad():
            for p in parameters: p.normal_(std=std)

    def banked(**changes):
        "A VB-LoRA for the tiny models."
        return VBLoRA(**dict(num_vectors=20, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def apart(a, b):
        "The largest difference of two tensors."
        return (a - b).abs().max().item()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{getattr(f, '__name__', f)} accepted {args} {kwargs}")

    def untouched(error, f, model, *args, **kwargs):
        "The message of a refusal that left the model as it was."
        def state(): return [type(m) for m in model.modules()], [p.requires_grad for p in model.parameters()]
        tensors, before = copies.deepcopy(model.state_dict()), state()
        message = refusal(error, f, model, *args, **kwargs)
        assert before == state() and all(torch.equal(tensors[k], t) for k, t in model.state_dict().items())
        return message

    def changed_file(d, change):
        "Rewrite the tensors of a folder."
        from safetensors.torch import load_file, save_file
        save_file({k: t.clone() for k, t in change(load_file(Path(d)/TENSORS)).items()}, Path(d)/TENSORS)
        return d

    # %% ../nbs/23_peft.ipynb #22c1c3eb
    peft = pytest.importorskip("peft")
    warnings.filterwarnings("ignore", "fan_in_fan_out is set to")

    def configs(family, **given):
        "A configuration of either method that fits a tiny model."
        targets = FAMILIES[family]
        elastic = dict(r=6, lora_alpha=9, elastic=ELASTIC[family])
        return {"elastic": methods.ElasticLoraConfig(target_modules=targets, **elastic, **given),
                "svft": methods.SvftConfig(pattern="banded", off_diagonal=1, target_modules=targets, **given),
                "top-k": methods.SvftConfig(pattern="top_k", gate=True, target_modules=targets, **given)}

    def adapted_by(config, family="Llama", dtype=torch.float32, std=.1):
        "A PEFT model of one of the methods, with random numbers."
        model = peft.get_peft_model(tiny(family).to(dtype), config).eval()
        shaken((p for p in model.parameters() if p.requires_grad), std)
        return model

    # %% ../nbs/23_peft.ipynb #e583340d
    for family in FAMILIES:
        for kind, config in configs(family).items():
            model = adapted_by(config, family)
            if kind == "elastic": set_ranks(model, random_rule(rank_space(model), 2)[0])
            with tempfile.TemporaryDirectory() as d, warnings.catch_warnings(action="error", category=UserWarning):
                model.save_pretrained(d)
                settings, tensors = read_folder(d)
                own = adapters(model)["default"].tensors()
                assert sum(t.numel() for k, t in tensors.items() if "note" not in k) == sum(t.numel() for t in own.values())
                for kwargs in dict(), dict(adapter_name="again", is_trainable=True), dict(low_cpu_mem_usage=True):
                    again = peft.PeftModel.from_pretrained(tiny(family), d, **kwargs)
                    assert torch.equal(logits(again), logits(model))
                    assert trained(again) == (trained(model) if kwargs.get("is_trainable") else 0)
                from_peft(plain := tiny(family), d)
                assert torch.equal(logits(plain), logits(model))
                if kind == "elastic":
                    assert get_ranks(again) == get_ranks(plain) == get_ranks(model) != largest(rank_space(model))
                for m in (plain, model) if kind != "elastic" else ():
                    to_peft(m, d)
                    assert torch.equal(logits(peft.PeftModel.from_pretrained(tiny(family), d)), logits(model))
                    assert "not of low rank" in refusal(SettingError, to_peft_lora, m, d)
            assert settings["peft_type"] == {"elastic": "ELASTIC_LORA"}.get(kind, "SVFT")


def test_the_life_of_an_adapter_in_peft_4():
    # %% ../nbs/23_peft.ipynb #39ca2704
    def tiny(name="Llama", **settings):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4) | settings
        torch.manual_seed(0)
        return {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
                "BERT": lambda: tf.BertForSequenceClassification(tf.BertConfig(**common, num_labels=3)),
                }[name]().eval()

    FAMILIES = {"Llama": ["q_proj", "v_proj", "down_proj"], "GPT-2": ["c_attn", "c_proj"]}
    ELASTIC = {"Llama": {"q_proj,v_proj": [6, 3], "down_proj": [6, 4, 1]}, "GPT-2": {"c_attn": [6, 2]}}
    IDS = torch.arange(24).view(2, 12)

    def logits(model, **kwargs):
        with torch.no_grad(): return model(IDS, **kwargs).logits

    def shaken(parameters, std=.1):
        "Give parameters random values."
        torch.manual_seed(1)
        with torch.no_grad():
            for p in parameters: p.normal_(std=std)

    def banked(**changes):
        "A VB-LoRA for the tiny models."
        return VBLoRA(**dict(num_vectors=20, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def apart(a, b):
        "The largest difference of two tensors."
        return (a - b).abs().max().item()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{getattr(f, '__name__', f)} accepted {args} {kwargs}")

    def untouched(error, f, model, *args, **kwargs):
        "The message of a refusal that left the model as it was."
        def state(): return [type(m) for m in model.modules()], [p.requires_grad for p in model.parameters()]
        tensors, before = copies.deepcopy(model.state_dict()), state()
        message = refusal(error, f, model, *args, **kwargs)
        assert before == state() and all(torch.equal(tensors[k], t) for k, t in model.state_dict().items())
        return message

    def changed_file(d, change):
        "Rewrite the tensors of a folder."
        from safetensors.torch import load_file, save_file
        save_file({k: t.clone() for k, t in change(load_file(Path(d)/TENSORS)).items()}, Path(d)/TENSORS)
        return d

    # %% ../nbs/23_peft.ipynb #22c1c3eb
    peft = pytest.importorskip("peft")
    warnings.filterwarnings("ignore", "fan_in_fan_out is set to")

    def configs(family, **given):
        "A configuration of either method that fits a tiny model."
        targets = FAMILIES[family]
        elastic = dict(r=6, lora_alpha=9, elastic=ELASTIC[family])
        return {"elastic": methods.ElasticLoraConfig(target_modules=targets, **elastic, **given),
                "svft": methods.SvftConfig(pattern="banded", off_diagonal=1, target_modules=targets, **given),
                "top-k": methods.SvftConfig(pattern="top_k", gate=True, target_modules=targets, **given)}

    def adapted_by(config, family="Llama", dtype=torch.float32, std=.1):
        "A PEFT model of one of the methods, with random numbers."
        model = peft.get_peft_model(tiny(family).to(dtype), config).eval()
        shaken((p for p in model.parameters() if p.requires_grad), std)
        return model

    # %% ../nbs/23_peft.ipynb #4ad4c515
    for config in configs("Llama").values():
        with tempfile.TemporaryDirectory() as d:
            adapted_by(config).save_pretrained(d)
            for key, t in sorted(read_folder(d)[1].items()):
                if ".1." in key: continue
                what = f"{tuple(t.shape)} {str(t.dtype)[6:]}"
                if "notes" in key: what = f"on {', '.join(json.loads(bytes(t.tolist())))}"[:60]
                print(f"{key:58} {what}")

    # %% ../nbs/23_peft.ipynb #ea8e9f01
    for family in FAMILIES:
        for dtype in torch.float32, torch.bfloat16, torch.float16:
            for config in configs(family).values():
                model = adapted_by(config, family, dtype)
                before, changed = copies.deepcopy(model.state_dict()), logits(model).float()
                with model.disable_adapter(): assert torch.equal(logits(model), logits(tiny(family).to(dtype)))
                name, layer = next((n, m) for n, m in model.named_modules() if isinstance(m, methods.Carrier))
                W, D = effective_weight(layer.base).clone(), layer.parts["default"].delta()
                for _ in range(10):
                    model.merge_adapter()
                    assert torch.equal(effective_weight(layer.base), (W.float() + D).to(dtype))
                    model.unmerge_adapter()
                assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())
                model.merge_adapter()
                merged = logits(model).float()
                layer.parts["bad"] = copies.deepcopy(layer.parts["default"])
                nn.init.constant_(next(layer.parts["bad"].parameters()), torch.nan)
                assert "NaN" in refusal(NonFiniteError, layer.merge, adapter_names=["bad"])
                assert torch.equal(logits(model).float(), merged)
                del layer.parts["bad"]
                assert "while they are merged" in refusal(ValueError, model.delete_adapter, "default")
                with model.disable_adapter(): assert torch.equal(logits(model), logits(tiny(family).to(dtype)))
                unloaded = model.merge_and_unload()
                assert unloaded.state_dict().keys() == tiny(family).state_dict().keys()
                assert torch.equal(logits(unloaded).float(), merged)
                if dtype == torch.float32: assert apart(merged, changed) < 1e-5


def test_the_life_of_an_adapter_in_peft_5():
    # %% ../nbs/23_peft.ipynb #39ca2704
    def tiny(name="Llama", **settings):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4) | settings
        torch.manual_seed(0)
        return {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
                "BERT": lambda: tf.BertForSequenceClassification(tf.BertConfig(**common, num_labels=3)),
                }[name]().eval()

    FAMILIES = {"Llama": ["q_proj", "v_proj", "down_proj"], "GPT-2": ["c_attn", "c_proj"]}
    ELASTIC = {"Llama": {"q_proj,v_proj": [6, 3], "down_proj": [6, 4, 1]}, "GPT-2": {"c_attn": [6, 2]}}
    IDS = torch.arange(24).view(2, 12)

    def logits(model, **kwargs):
        with torch.no_grad(): return model(IDS, **kwargs).logits

    def shaken(parameters, std=.1):
        "Give parameters random values."
        torch.manual_seed(1)
        with torch.no_grad():
            for p in parameters: p.normal_(std=std)

    def banked(**changes):
        "A VB-LoRA for the tiny models."
        return VBLoRA(**dict(num_vectors=20, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def apart(a, b):
        "The largest difference of two tensors."
        return (a - b).abs().max().item()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{getattr(f, '__name__', f)} accepted {args} {kwargs}")

    def untouched(error, f, model, *args, **kwargs):
        "The message of a refusal that left the model as it was."
        def state(): return [type(m) for m in model.modules()], [p.requires_grad for p in model.parameters()]
        tensors, before = copies.deepcopy(model.state_dict()), state()
        message = refusal(error, f, model, *args, **kwargs)
        assert before == state() and all(torch.equal(tensors[k], t) for k, t in model.state_dict().items())
        return message

    def changed_file(d, change):
        "Rewrite the tensors of a folder."
        from safetensors.torch import load_file, save_file
        save_file({k: t.clone() for k, t in change(load_file(Path(d)/TENSORS)).items()}, Path(d)/TENSORS)
        return d

    # %% ../nbs/23_peft.ipynb #22c1c3eb
    peft = pytest.importorskip("peft")
    warnings.filterwarnings("ignore", "fan_in_fan_out is set to")

    def configs(family, **given):
        "A configuration of either method that fits a tiny model."
        targets = FAMILIES[family]
        elastic = dict(r=6, lora_alpha=9, elastic=ELASTIC[family])
        return {"elastic": methods.ElasticLoraConfig(target_modules=targets, **elastic, **given),
                "svft": methods.SvftConfig(pattern="banded", off_diagonal=1, target_modules=targets, **given),
                "top-k": methods.SvftConfig(pattern="top_k", gate=True, target_modules=targets, **given)}

    def adapted_by(config, family="Llama", dtype=torch.float32, std=.1):
        "A PEFT model of one of the methods, with random numbers."
        model = peft.get_peft_model(tiny(family).to(dtype), config).eval()
        shaken((p for p in model.parameters() if p.requires_grad), std)
        return model

    # %% ../nbs/23_peft.ipynb #4ad4c515
    for config in configs("Llama").values():
        with tempfile.TemporaryDirectory() as d:
            adapted_by(config).save_pretrained(d)
            for key, t in sorted(read_folder(d)[1].items()):
                if ".1." in key: continue
                what = f"{tuple(t.shape)} {str(t.dtype)[6:]}"
                if "notes" in key: what = f"on {', '.join(json.loads(bytes(t.tolist())))}"[:60]
                print(f"{key:58} {what}")

    # %% ../nbs/23_peft.ipynb #744c7698
    model = peft.get_peft_model(tiny().bfloat16(), peft.LoraConfig(r=6, target_modules=FAMILIES["Llama"]))
    shaken(p for p in model.parameters() if p.requires_grad)
    W = model.base_model.model.model.layers[0].mlp.down_proj.base_layer.weight
    before = W.clone()
    model.merge_adapter()
    model.unmerge_adapter()
    print(f"{(W != before).float().mean():.0%} of the weights are others")
    assert (W != before).float().mean() > .2


def test_the_life_of_an_adapter_in_peft_6():
    # %% ../nbs/23_peft.ipynb #39ca2704
    def tiny(name="Llama", **settings):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4) | settings
        torch.manual_seed(0)
        return {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
                "BERT": lambda: tf.BertForSequenceClassification(tf.BertConfig(**common, num_labels=3)),
                }[name]().eval()

    FAMILIES = {"Llama": ["q_proj", "v_proj", "down_proj"], "GPT-2": ["c_attn", "c_proj"]}
    ELASTIC = {"Llama": {"q_proj,v_proj": [6, 3], "down_proj": [6, 4, 1]}, "GPT-2": {"c_attn": [6, 2]}}
    IDS = torch.arange(24).view(2, 12)

    def logits(model, **kwargs):
        with torch.no_grad(): return model(IDS, **kwargs).logits

    def shaken(parameters, std=.1):
        "Give parameters random values."
        torch.manual_seed(1)
        with torch.no_grad():
            for p in parameters: p.normal_(std=std)

    def banked(**changes):
        "A VB-LoRA for the tiny models."
        return VBLoRA(**dict(num_vectors=20, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def apart(a, b):
        "The largest difference of two tensors."
        return (a - b).abs().max().item()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{getattr(f, '__name__', f)} accepted {args} {kwargs}")

    def untouched(error, f, model, *args, **kwargs):
        "The message of a refusal that left the model as it was."
        def state(): return [type(m) for m in model.modules()], [p.requires_grad for p in model.parameters()]
        tensors, before = copies.deepcopy(model.state_dict()), state()
        message = refusal(error, f, model, *args, **kwargs)
        assert before == state() and all(torch.equal(tensors[k], t) for k, t in model.state_dict().items())
        return message

    def changed_file(d, change):
        "Rewrite the tensors of a folder."
        from safetensors.torch import load_file, save_file
        save_file({k: t.clone() for k, t in change(load_file(Path(d)/TENSORS)).items()}, Path(d)/TENSORS)
        return d

    # %% ../nbs/23_peft.ipynb #22c1c3eb
    peft = pytest.importorskip("peft")
    warnings.filterwarnings("ignore", "fan_in_fan_out is set to")

    def configs(family, **given):
        "A configuration of either method that fits a tiny model."
        targets = FAMILIES[family]
        elastic = dict(r=6, lora_alpha=9, elastic=ELASTIC[family])
        return {"elastic": methods.ElasticLoraConfig(target_modules=targets, **elastic, **given),
                "svft": methods.SvftConfig(pattern="banded", off_diagonal=1, target_modules=targets, **given),
                "top-k": methods.SvftConfig(pattern="top_k", gate=True, target_modules=targets, **given)}

    def adapted_by(config, family="Llama", dtype=torch.float32, std=.1):
        "A PEFT model of one of the methods, with random numbers."
        model = peft.get_peft_model(tiny(family).to(dtype), config).eval()
        shaken((p for p in model.parameters() if p.requires_grad), std)
        return model

    # %% ../nbs/23_peft.ipynb #4ad4c515
    for config in configs("Llama").values():
        with tempfile.TemporaryDirectory() as d:
            adapted_by(config).save_pretrained(d)
            for key, t in sorted(read_folder(d)[1].items()):
                if ".1." in key: continue
                what = f"{tuple(t.shape)} {str(t.dtype)[6:]}"
                if "notes" in key: what = f"on {', '.join(json.loads(bytes(t.tolist())))}"[:60]
                print(f"{key:58} {what}")

    # %% ../nbs/23_peft.ipynb #7c24c50b
    for family in FAMILIES:
        base = logits(tiny(family))
        for kind, config in configs(family).items():
            model = adapted_by(config, family)
            model.add_adapter("b", configs(family, layers_to_transform=[1])[kind])
            shaken(adapters(model)["b"].parameters(), .15)
            alone = {"__base__": base}
            for name in "default", "b":
                model.set_adapter(name)
                alone[name] = logits(model)
                trainable = {id(p) for p in model.parameters() if p.requires_grad}
                assert trainable == {id(p) for p in adapters(model)[name].parameters()}
            for names in ["b", "default"], ["__base__", "b"]:
                together = logits(model, adapter_names=names)
                for i, name in enumerate(names): assert apart(together[i], alone[name][i]) < 2e-6
            assert "french" in refusal(UnknownAdapterError, logits, model, adapter_names=["b", "french"])
            model.base_model.set_adapter(["default", "b"])
            layer = [m for m in model.modules() if isinstance(m, methods.Carrier)][-1]
            summed = effective_weight(layer.base) + sum(part.delta() for part in layer.parts.values())
            torch.testing.assert_close(layer.effective_weight(), summed)
            model.set_adapter("default")
            model.delete_adapter("b")
            assert torch.equal(logits(model), alone["default"])
            assert list(adapters(model)) == list(model.peft_config) == ["default"]


def test_the_life_of_an_adapter_in_peft_7():
    # %% ../nbs/23_peft.ipynb #39ca2704
    def tiny(name="Llama", **settings):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4) | settings
        torch.manual_seed(0)
        return {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
                "BERT": lambda: tf.BertForSequenceClassification(tf.BertConfig(**common, num_labels=3)),
                }[name]().eval()

    FAMILIES = {"Llama": ["q_proj", "v_proj", "down_proj"], "GPT-2": ["c_attn", "c_proj"]}
    ELASTIC = {"Llama": {"q_proj,v_proj": [6, 3], "down_proj": [6, 4, 1]}, "GPT-2": {"c_attn": [6, 2]}}
    IDS = torch.arange(24).view(2, 12)

    def logits(model, **kwargs):
        with torch.no_grad(): return model(IDS, **kwargs).logits

    def shaken(parameters, std=.1):
        "Give parameters random values."
        torch.manual_seed(1)
        with torch.no_grad():
            for p in parameters: p.normal_(std=std)

    def banked(**changes):
        "A VB-LoRA for the tiny models."
        return VBLoRA(**dict(num_vectors=20, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def apart(a, b):
        "The largest difference of two tensors."
        return (a - b).abs().max().item()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{getattr(f, '__name__', f)} accepted {args} {kwargs}")

    def untouched(error, f, model, *args, **kwargs):
        "The message of a refusal that left the model as it was."
        def state(): return [type(m) for m in model.modules()], [p.requires_grad for p in model.parameters()]
        tensors, before = copies.deepcopy(model.state_dict()), state()
        message = refusal(error, f, model, *args, **kwargs)
        assert before == state() and all(torch.equal(tensors[k], t) for k, t in model.state_dict().items())
        return message

    def changed_file(d, change):
        "Rewrite the tensors of a folder."
        from safetensors.torch import load_file, save_file
        save_file({k: t.clone() for k, t in change(load_file(Path(d)/TENSORS)).items()}, Path(d)/TENSORS)
        return d

    # %% ../nbs/23_peft.ipynb #22c1c3eb
    peft = pytest.importorskip("peft")
    warnings.filterwarnings("ignore", "fan_in_fan_out is set to")

    def configs(family, **given):
        "A configuration of either method that fits a tiny model."
        targets = FAMILIES[family]
        elastic = dict(r=6, lora_alpha=9, elastic=ELASTIC[family])
        return {"elastic": methods.ElasticLoraConfig(target_modules=targets, **elastic, **given),
                "svft": methods.SvftConfig(pattern="banded", off_diagonal=1, target_modules=targets, **given),
                "top-k": methods.SvftConfig(pattern="top_k", gate=True, target_modules=targets, **given)}

    def adapted_by(config, family="Llama", dtype=torch.float32, std=.1):
        "A PEFT model of one of the methods, with random numbers."
        model = peft.get_peft_model(tiny(family).to(dtype), config).eval()
        shaken((p for p in model.parameters() if p.requires_grad), std)
        return model

    # %% ../nbs/23_peft.ipynb #4ad4c515
    for config in configs("Llama").values():
        with tempfile.TemporaryDirectory() as d:
            adapted_by(config).save_pretrained(d)
            for key, t in sorted(read_folder(d)[1].items()):
                if ".1." in key: continue
                what = f"{tuple(t.shape)} {str(t.dtype)[6:]}"
                if "notes" in key: what = f"on {', '.join(json.loads(bytes(t.tolist())))}"[:60]
                print(f"{key:58} {what}")

    # %% ../nbs/23_peft.ipynb #1bc97cce
    model = peft.get_peft_model(tiny(), peft.VBLoRAConfig(vector_length=16, target_modules=["q_proj"])).eval()
    assert torch.equal(logits(model, adapter_names=["__base__", "french"]), logits(model))


def test_the_life_of_an_adapter_in_peft_8():
    # %% ../nbs/23_peft.ipynb #39ca2704
    def tiny(name="Llama", **settings):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4) | settings
        torch.manual_seed(0)
        return {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
                "BERT": lambda: tf.BertForSequenceClassification(tf.BertConfig(**common, num_labels=3)),
                }[name]().eval()

    FAMILIES = {"Llama": ["q_proj", "v_proj", "down_proj"], "GPT-2": ["c_attn", "c_proj"]}
    ELASTIC = {"Llama": {"q_proj,v_proj": [6, 3], "down_proj": [6, 4, 1]}, "GPT-2": {"c_attn": [6, 2]}}
    IDS = torch.arange(24).view(2, 12)

    def logits(model, **kwargs):
        with torch.no_grad(): return model(IDS, **kwargs).logits

    def shaken(parameters, std=.1):
        "Give parameters random values."
        torch.manual_seed(1)
        with torch.no_grad():
            for p in parameters: p.normal_(std=std)

    def banked(**changes):
        "A VB-LoRA for the tiny models."
        return VBLoRA(**dict(num_vectors=20, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def apart(a, b):
        "The largest difference of two tensors."
        return (a - b).abs().max().item()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{getattr(f, '__name__', f)} accepted {args} {kwargs}")

    def untouched(error, f, model, *args, **kwargs):
        "The message of a refusal that left the model as it was."
        def state(): return [type(m) for m in model.modules()], [p.requires_grad for p in model.parameters()]
        tensors, before = copies.deepcopy(model.state_dict()), state()
        message = refusal(error, f, model, *args, **kwargs)
        assert before == state() and all(torch.equal(tensors[k], t) for k, t in model.state_dict().items())
        return message

    def changed_file(d, change):
        "Rewrite the tensors of a folder."
        from safetensors.torch import load_file, save_file
        save_file({k: t.clone() for k, t in change(load_file(Path(d)/TENSORS)).items()}, Path(d)/TENSORS)
        return d

    # %% ../nbs/23_peft.ipynb #22c1c3eb
    peft = pytest.importorskip("peft")
    warnings.filterwarnings("ignore", "fan_in_fan_out is set to")

    def configs(family, **given):
        "A configuration of either method that fits a tiny model."
        targets = FAMILIES[family]
        elastic = dict(r=6, lora_alpha=9, elastic=ELASTIC[family])
        return {"elastic": methods.ElasticLoraConfig(target_modules=targets, **elastic, **given),
                "svft": methods.SvftConfig(pattern="banded", off_diagonal=1, target_modules=targets, **given),
                "top-k": methods.SvftConfig(pattern="top_k", gate=True, target_modules=targets, **given)}

    def adapted_by(config, family="Llama", dtype=torch.float32, std=.1):
        "A PEFT model of one of the methods, with random numbers."
        model = peft.get_peft_model(tiny(family).to(dtype), config).eval()
        shaken((p for p in model.parameters() if p.requires_grad), std)
        return model

    # %% ../nbs/23_peft.ipynb #4ad4c515
    for config in configs("Llama").values():
        with tempfile.TemporaryDirectory() as d:
            adapted_by(config).save_pretrained(d)
            for key, t in sorted(read_folder(d)[1].items()):
                if ".1." in key: continue
                what = f"{tuple(t.shape)} {str(t.dtype)[6:]}"
                if "notes" in key: what = f"on {', '.join(json.loads(bytes(t.tolist())))}"[:60]
                print(f"{key:58} {what}")

    # %% ../nbs/23_peft.ipynb #02ccdbdf
    if find_spec("accelerate"):
        data = [{"input_ids": i, "labels": i} for i in torch.randint(0, 96, (24, 12))]
        for kind, config in configs("Llama").items():
            model = peft.get_peft_model(tiny(), config)
            optimizer, start = torch.optim.AdamW(parameter_groups(model)), model(IDS, labels=IDS).loss.item()
            assert sum(p.numel() for g in optimizer.param_groups for p in g["params"]) == trained(model)
            with tempfile.TemporaryDirectory() as d:
                args = tf.TrainingArguments(d, max_steps=6, per_device_train_batch_size=4, gradient_accumulation_steps=2,
                    save_steps=6, gradient_checkpointing=kind == "elastic", report_to=[], logging_strategy="no",
                    disable_tqdm=True, use_cpu=True)
                calls = [elastic_callback(model, rule=sandwich_rule)] if kind == "elastic" else []
                trainer = tf.Trainer(model, args, train_dataset=data, optimizers=(optimizer, None), callbacks=calls)
                trainer.remove_callback(tf.trainer_callback.PrinterCallback)
                trainer.train()
                assert trainer.train(resume_from_checkpoint=True).global_step == 6
                again = peft.PeftModel.from_pretrained(tiny(), f"{d}/checkpoint-6")
                assert torch.equal(logits(again), logits(model.eval())) and apart(logits(again), logits(tiny())) > 1e-3


def test_the_life_of_an_adapter_in_peft_9():
    # %% ../nbs/23_peft.ipynb #39ca2704
    def tiny(name="Llama", **settings):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4) | settings
        torch.manual_seed(0)
        return {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
                "BERT": lambda: tf.BertForSequenceClassification(tf.BertConfig(**common, num_labels=3)),
                }[name]().eval()

    FAMILIES = {"Llama": ["q_proj", "v_proj", "down_proj"], "GPT-2": ["c_attn", "c_proj"]}
    ELASTIC = {"Llama": {"q_proj,v_proj": [6, 3], "down_proj": [6, 4, 1]}, "GPT-2": {"c_attn": [6, 2]}}
    IDS = torch.arange(24).view(2, 12)

    def logits(model, **kwargs):
        with torch.no_grad(): return model(IDS, **kwargs).logits

    def shaken(parameters, std=.1):
        "Give parameters random values."
        torch.manual_seed(1)
        with torch.no_grad():
            for p in parameters: p.normal_(std=std)

    def banked(**changes):
        "A VB-LoRA for the tiny models."
        return VBLoRA(**dict(num_vectors=20, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def apart(a, b):
        "The largest difference of two tensors."
        return (a - b).abs().max().item()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{getattr(f, '__name__', f)} accepted {args} {kwargs}")

    def untouched(error, f, model, *args, **kwargs):
        "The message of a refusal that left the model as it was."
        def state(): return [type(m) for m in model.modules()], [p.requires_grad for p in model.parameters()]
        tensors, before = copies.deepcopy(model.state_dict()), state()
        message = refusal(error, f, model, *args, **kwargs)
        assert before == state() and all(torch.equal(tensors[k], t) for k, t in model.state_dict().items())
        return message

    def changed_file(d, change):
        "Rewrite the tensors of a folder."
        from safetensors.torch import load_file, save_file
        save_file({k: t.clone() for k, t in change(load_file(Path(d)/TENSORS)).items()}, Path(d)/TENSORS)
        return d

    # %% ../nbs/23_peft.ipynb #22c1c3eb
    peft = pytest.importorskip("peft")
    warnings.filterwarnings("ignore", "fan_in_fan_out is set to")

    def configs(family, **given):
        "A configuration of either method that fits a tiny model."
        targets = FAMILIES[family]
        elastic = dict(r=6, lora_alpha=9, elastic=ELASTIC[family])
        return {"elastic": methods.ElasticLoraConfig(target_modules=targets, **elastic, **given),
                "svft": methods.SvftConfig(pattern="banded", off_diagonal=1, target_modules=targets, **given),
                "top-k": methods.SvftConfig(pattern="top_k", gate=True, target_modules=targets, **given)}

    def adapted_by(config, family="Llama", dtype=torch.float32, std=.1):
        "A PEFT model of one of the methods, with random numbers."
        model = peft.get_peft_model(tiny(family).to(dtype), config).eval()
        shaken((p for p in model.parameters() if p.requires_grad), std)
        return model

    # %% ../nbs/23_peft.ipynb #4ad4c515
    for config in configs("Llama").values():
        with tempfile.TemporaryDirectory() as d:
            adapted_by(config).save_pretrained(d)
            for key, t in sorted(read_folder(d)[1].items()):
                if ".1." in key: continue
                what = f"{tuple(t.shape)} {str(t.dtype)[6:]}"
                if "notes" in key: what = f"on {', '.join(json.loads(bytes(t.tolist())))}"[:60]
                print(f"{key:58} {what}")

    # %% ../nbs/23_peft.ipynb #7db4baa9
    for family in FAMILIES:
        for config in configs(family).values():
            model = adapted_by(config, family, std=.02)
            with tempfile.TemporaryDirectory() as d, warnings.catch_warnings(action="ignore"):
                peft.save_as_lora(d, model, rank=1.)
                assert apart(logits(peft.PeftModel.from_pretrained(tiny(family), d)), logits(model)) < 1e-4


def test_the_life_of_an_adapter_in_peft_10():
    # %% ../nbs/23_peft.ipynb #39ca2704
    def tiny(name="Llama", **settings):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4) | settings
        torch.manual_seed(0)
        return {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
                "BERT": lambda: tf.BertForSequenceClassification(tf.BertConfig(**common, num_labels=3)),
                }[name]().eval()

    FAMILIES = {"Llama": ["q_proj", "v_proj", "down_proj"], "GPT-2": ["c_attn", "c_proj"]}
    ELASTIC = {"Llama": {"q_proj,v_proj": [6, 3], "down_proj": [6, 4, 1]}, "GPT-2": {"c_attn": [6, 2]}}
    IDS = torch.arange(24).view(2, 12)

    def logits(model, **kwargs):
        with torch.no_grad(): return model(IDS, **kwargs).logits

    def shaken(parameters, std=.1):
        "Give parameters random values."
        torch.manual_seed(1)
        with torch.no_grad():
            for p in parameters: p.normal_(std=std)

    def banked(**changes):
        "A VB-LoRA for the tiny models."
        return VBLoRA(**dict(num_vectors=20, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def apart(a, b):
        "The largest difference of two tensors."
        return (a - b).abs().max().item()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{getattr(f, '__name__', f)} accepted {args} {kwargs}")

    def untouched(error, f, model, *args, **kwargs):
        "The message of a refusal that left the model as it was."
        def state(): return [type(m) for m in model.modules()], [p.requires_grad for p in model.parameters()]
        tensors, before = copies.deepcopy(model.state_dict()), state()
        message = refusal(error, f, model, *args, **kwargs)
        assert before == state() and all(torch.equal(tensors[k], t) for k, t in model.state_dict().items())
        return message

    def changed_file(d, change):
        "Rewrite the tensors of a folder."
        from safetensors.torch import load_file, save_file
        save_file({k: t.clone() for k, t in change(load_file(Path(d)/TENSORS)).items()}, Path(d)/TENSORS)
        return d

    # %% ../nbs/23_peft.ipynb #22c1c3eb
    peft = pytest.importorskip("peft")
    warnings.filterwarnings("ignore", "fan_in_fan_out is set to")

    def configs(family, **given):
        "A configuration of either method that fits a tiny model."
        targets = FAMILIES[family]
        elastic = dict(r=6, lora_alpha=9, elastic=ELASTIC[family])
        return {"elastic": methods.ElasticLoraConfig(target_modules=targets, **elastic, **given),
                "svft": methods.SvftConfig(pattern="banded", off_diagonal=1, target_modules=targets, **given),
                "top-k": methods.SvftConfig(pattern="top_k", gate=True, target_modules=targets, **given)}

    def adapted_by(config, family="Llama", dtype=torch.float32, std=.1):
        "A PEFT model of one of the methods, with random numbers."
        model = peft.get_peft_model(tiny(family).to(dtype), config).eval()
        shaken((p for p in model.parameters() if p.requires_grad), std)
        return model

    # %% ../nbs/23_peft.ipynb #4ad4c515
    for config in configs("Llama").values():
        with tempfile.TemporaryDirectory() as d:
            adapted_by(config).save_pretrained(d)
            for key, t in sorted(read_folder(d)[1].items()):
                if ".1." in key: continue
                what = f"{tuple(t.shape)} {str(t.dtype)[6:]}"
                if "notes" in key: what = f"on {', '.join(json.loads(bytes(t.tolist())))}"[:60]
                print(f"{key:58} {what}")

    # %% ../nbs/23_peft.ipynb #9449379e
    for config in configs("Llama").values():
        model = adapted_by(config)
        with tempfile.TemporaryFile() as f:
            torch.save(model, f)
            f.seek(0)
            loaded = torch.load(f, weights_only=False)
        for other in copies.deepcopy(model), loaded:
            assert torch.equal(logits(other), logits(model))
            shaken(adapters(other)["default"].parameters(), .3)
            assert apart(logits(other), logits(model)) > 1e-3
        assert pickle.loads(pickle.dumps(config)) == config


def test_the_life_of_an_adapter_in_peft_11():
    # %% ../nbs/23_peft.ipynb #39ca2704
    def tiny(name="Llama", **settings):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4) | settings
        torch.manual_seed(0)
        return {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
                "BERT": lambda: tf.BertForSequenceClassification(tf.BertConfig(**common, num_labels=3)),
                }[name]().eval()

    FAMILIES = {"Llama": ["q_proj", "v_proj", "down_proj"], "GPT-2": ["c_attn", "c_proj"]}
    ELASTIC = {"Llama": {"q_proj,v_proj": [6, 3], "down_proj": [6, 4, 1]}, "GPT-2": {"c_attn": [6, 2]}}
    IDS = torch.arange(24).view(2, 12)

    def logits(model, **kwargs):
        with torch.no_grad(): return model(IDS, **kwargs).logits

    def shaken(parameters, std=.1):
        "Give parameters random values."
        torch.manual_seed(1)
        with torch.no_grad():
            for p in parameters: p.normal_(std=std)

    def banked(**changes):
        "A VB-LoRA for the tiny models."
        return VBLoRA(**dict(num_vectors=20, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def apart(a, b):
        "The largest difference of two tensors."
        return (a - b).abs().max().item()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{getattr(f, '__name__', f)} accepted {args} {kwargs}")

    def untouched(error, f, model, *args, **kwargs):
        "The message of a refusal that left the model as it was."
        def state(): return [type(m) for m in model.modules()], [p.requires_grad for p in model.parameters()]
        tensors, before = copies.deepcopy(model.state_dict()), state()
        message = refusal(error, f, model, *args, **kwargs)
        assert before == state() and all(torch.equal(tensors[k], t) for k, t in model.state_dict().items())
        return message

    def changed_file(d, change):
        "Rewrite the tensors of a folder."
        from safetensors.torch import load_file, save_file
        save_file({k: t.clone() for k, t in change(load_file(Path(d)/TENSORS)).items()}, Path(d)/TENSORS)
        return d

    # %% ../nbs/23_peft.ipynb #22c1c3eb
    peft = pytest.importorskip("peft")
    warnings.filterwarnings("ignore", "fan_in_fan_out is set to")

    def configs(family, **given):
        "A configuration of either method that fits a tiny model."
        targets = FAMILIES[family]
        elastic = dict(r=6, lora_alpha=9, elastic=ELASTIC[family])
        return {"elastic": methods.ElasticLoraConfig(target_modules=targets, **elastic, **given),
                "svft": methods.SvftConfig(pattern="banded", off_diagonal=1, target_modules=targets, **given),
                "top-k": methods.SvftConfig(pattern="top_k", gate=True, target_modules=targets, **given)}

    def adapted_by(config, family="Llama", dtype=torch.float32, std=.1):
        "A PEFT model of one of the methods, with random numbers."
        model = peft.get_peft_model(tiny(family).to(dtype), config).eval()
        shaken((p for p in model.parameters() if p.requires_grad), std)
        return model

    # %% ../nbs/23_peft.ipynb #4ad4c515
    for config in configs("Llama").values():
        with tempfile.TemporaryDirectory() as d:
            adapted_by(config).save_pretrained(d)
            for key, t in sorted(read_folder(d)[1].items()):
                if ".1." in key: continue
                what = f"{tuple(t.shape)} {str(t.dtype)[6:]}"
                if "notes" in key: what = f"on {', '.join(json.loads(bytes(t.tolist())))}"[:60]
                print(f"{key:58} {what}")

    # %% ../nbs/23_peft.ipynb #6623955f
    for make, given in (methods.SvftConfig, {}), (methods.ElasticLoraConfig, dict(r=4, elastic={"query": [4, 2]})):
        config = make(target_modules=["query"], task_type="SEQ_CLS", **given)
        model = adapted_by(config, "BERT")
        with tempfile.TemporaryDirectory() as d:
            model.save_pretrained(d)
            again = peft.PeftModel.from_pretrained(tiny("BERT"), d)
            assert torch.equal(logits(again), logits(model)) and apart(logits(model), logits(tiny("BERT"))) > .01
        if isinstance(config, methods.ElasticLoraConfig):
            with tempfile.TemporaryDirectory() as d:
                to_peft(model, d)
                assert apart(logits(peft.PeftModel.from_pretrained(tiny("BERT"), d)), logits(model)) < 2e-6


def test_the_life_of_an_adapter_in_peft_12():
    # %% ../nbs/23_peft.ipynb #39ca2704
    def tiny(name="Llama", **settings):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4) | settings
        torch.manual_seed(0)
        return {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
                "BERT": lambda: tf.BertForSequenceClassification(tf.BertConfig(**common, num_labels=3)),
                }[name]().eval()

    FAMILIES = {"Llama": ["q_proj", "v_proj", "down_proj"], "GPT-2": ["c_attn", "c_proj"]}
    ELASTIC = {"Llama": {"q_proj,v_proj": [6, 3], "down_proj": [6, 4, 1]}, "GPT-2": {"c_attn": [6, 2]}}
    IDS = torch.arange(24).view(2, 12)

    def logits(model, **kwargs):
        with torch.no_grad(): return model(IDS, **kwargs).logits

    def shaken(parameters, std=.1):
        "Give parameters random values."
        torch.manual_seed(1)
        with torch.no_grad():
            for p in parameters: p.normal_(std=std)

    def banked(**changes):
        "A VB-LoRA for the tiny models."
        return VBLoRA(**dict(num_vectors=20, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def apart(a, b):
        "The largest difference of two tensors."
        return (a - b).abs().max().item()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{getattr(f, '__name__', f)} accepted {args} {kwargs}")

    def untouched(error, f, model, *args, **kwargs):
        "The message of a refusal that left the model as it was."
        def state(): return [type(m) for m in model.modules()], [p.requires_grad for p in model.parameters()]
        tensors, before = copies.deepcopy(model.state_dict()), state()
        message = refusal(error, f, model, *args, **kwargs)
        assert before == state() and all(torch.equal(tensors[k], t) for k, t in model.state_dict().items())
        return message

    def changed_file(d, change):
        "Rewrite the tensors of a folder."
        from safetensors.torch import load_file, save_file
        save_file({k: t.clone() for k, t in change(load_file(Path(d)/TENSORS)).items()}, Path(d)/TENSORS)
        return d

    # %% ../nbs/23_peft.ipynb #22c1c3eb
    peft = pytest.importorskip("peft")
    warnings.filterwarnings("ignore", "fan_in_fan_out is set to")

    def configs(family, **given):
        "A configuration of either method that fits a tiny model."
        targets = FAMILIES[family]
        elastic = dict(r=6, lora_alpha=9, elastic=ELASTIC[family])
        return {"elastic": methods.ElasticLoraConfig(target_modules=targets, **elastic, **given),
                "svft": methods.SvftConfig(pattern="banded", off_diagonal=1, target_modules=targets, **given),
                "top-k": methods.SvftConfig(pattern="top_k", gate=True, target_modules=targets, **given)}

    def adapted_by(config, family="Llama", dtype=torch.float32, std=.1):
        "A PEFT model of one of the methods, with random numbers."
        model = peft.get_peft_model(tiny(family).to(dtype), config).eval()
        shaken((p for p in model.parameters() if p.requires_grad), std)
        return model

    # %% ../nbs/23_peft.ipynb #4ad4c515
    for config in configs("Llama").values():
        with tempfile.TemporaryDirectory() as d:
            adapted_by(config).save_pretrained(d)
            for key, t in sorted(read_folder(d)[1].items()):
                if ".1." in key: continue
                what = f"{tuple(t.shape)} {str(t.dtype)[6:]}"
                if "notes" in key: what = f"on {', '.join(json.loads(bytes(t.tolist())))}"[:60]
                print(f"{key:58} {what}")

    # %% ../nbs/23_peft.ipynb #b53827f4
    for make, given in ((methods.SvftConfig, dict(pattern="diagonal")), (methods.ElasticLoraConfig, dict(r=0)),
                        (methods.ElasticLoraConfig, dict(elastic={"q_proj": [9]}))):
        print(refusal(SettingError, make, **given))
    for make, targets, given in ((methods.SvftConfig, "q_prj", {}), (methods.SvftConfig, "norm", {}),
            (methods.SvftConfig, "q_proj", dict(rank=33)), (methods.ElasticLoraConfig, "q_proj", dict(r=40)),
            (methods.ElasticLoraConfig, "q_proj", dict(elastic={"v_proj": [8, 2]}))):
        print(untouched(PathlmError, peft.get_peft_model, tiny(), make(target_modules=[targets], **given)))
    print(untouched(SettingError, peft.get_peft_model, tiny(), methods.SvftConfig(target_modules=["q_proj"]), "a.b"))

    # %% ../nbs/23_peft.ipynb #5f630978
    def damage(d):
        "Change a folder's tensors in four ways, one after the other."
        whole, tensors = (Path(d)/TENSORS).read_bytes(), read_folder(d)[1]
        key = min(k for k in tensors if "notes" not in k)
        bad = -1 if tensors[key].dtype == torch.int16 else torch.nan
        notes = next(k for k in tensors if "notes" in k)
        for t in {key: tensors[key][1:]}, {key: torch.full_like(tensors[key], bad)}, {key: None}, {notes: tensors[key]}:
            changed_file(d, lambda held, t=t: {k: v for k, v in (held | t).items() if v is not None})
            yield
            (Path(d)/TENSORS).write_bytes(whole)

    load = peft.PeftModel.from_pretrained

    # %% ../nbs/23_peft.ipynb #30b0e473
    for kind, config in configs("Llama").items():
        with tempfile.TemporaryDirectory() as d:
            adapted_by(config).save_pretrained(d)
            rounded = tiny().bfloat16().float()
            if kind == "elastic": assert apart(logits(load(rounded, d)), logits(load(tiny(), d))) < .1
            else:
                for read in load, from_peft: assert "other weights" in untouched(CheckpointError, read, rounded, d)
            for _ in damage(d):
                for read in load, from_peft: message = untouched(CheckpointError, read, tiny(), d)
                print(message.replace(d, "DIR")[:120])
            two = load(tiny(), d)
            for _ in damage(d):
                for name in "second", "default": refusal(CheckpointError, two.load_adapter, d, name)
                assert list(two.peft_config) == list(adapters(two)) == ["default"]
