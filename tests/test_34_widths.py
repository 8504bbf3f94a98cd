from pathlm.widths import *
import torch
from torch import nn
from pathlm.adapters.core import adapters
from pathlm.adapters.lora import rank_space
from pathlm.base import SettingError
from pathlm.base import UnknownModuleError
from pathlm.linear import effective_weight
from pathlm.objectives import gram
import copy
import json
import tempfile
import transformers as tf
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from pathlm.adapters.core import attach
from pathlm.adapters.core import detach
from pathlm.adapters.lora import LoRA
from pathlm.adapters.lora import get_ranks
from pathlm.adapters.lora import largest
from pathlm.adapters.lora import random_rule
from pathlm.adapters.lora import sandwich_rule
from pathlm.adapters.train import adapt
from pathlm.evaluate import batches
from pathlm.linear import merge
from pathlm.linear import select
from pathlm.linear import unmerge
from pathlm.models import corpus
from pathlm.models import pretrained
from pathlm.objectives import output_error


def test_finding_the_mlps():
    # %% ../nbs/34_widths.ipynb #69a18dc9
    tf.utils.logging.disable_progress_bar()

    # %% ../nbs/34_widths.ipynb #306b4ec1
    def tiny(name="Llama", act=None, **more):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
        torch.manual_seed(0)
        model = {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, intermediate_size=48, num_key_value_heads=2,
                                                                     mlp_bias=True, hidden_act=act or "silu", **more)),
                 "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4,
                                                                   activation_function=act or "gelu_new", **more)),
                 "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32,
                                                               activation_function=act or "relu", **more)),
                }[name]().eval()
        for n, p in model.named_parameters():
            if p.ndim == 2 or n.endswith("bias"): nn.init.normal_(p, std=.2)
        return model

    def logits(model):
        with torch.no_grad(): return model(torch.arange(1, 25).view(2, 12)).logits

    def shaken(model, std=.1):
        "Give the parameters of all adapters random values."
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=std)
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def elastic(model, r=8, choices=(8, 6, 4)):
        "Make a Llama elastic as LoNAS does: ranks of queries, keys and values, of gate and up, and widths."
        targets = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
        ranks = {"q_proj,k_proj,v_proj": list(choices), "gate_proj,up_proj": list(choices)}
        attach_widths(model)
        attach(model, LoRA(r=r, lora_alpha=2*r, target_modules=targets, elastic=ranks, learning_rate=1e-3))
        return model

    # %% ../nbs/34_widths.ipynb #b07474fa
    for family in "Llama", "GPT-2", "OPT": print(*list(mlps(tiny(family)).items())[0])

    # %% ../nbs/34_widths.ipynb #74079c10
    with torch.device("meta"):
        phi = tf.Phi3ForCausalLM(tf.Phi3Config(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                                               num_attention_heads=4, num_key_value_heads=2, pad_token_id=0,
                                               bos_token_id=0, eos_token_id=0))
        mamba = tf.MambaForCausalLM(tf.MambaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=1))
    for model in phi, mamba: print(refusal(UnknownModuleError, mlps, model))
    assert "no ModuleList" in refusal(UnknownModuleError, mlps, nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)))


def test_a_width_that_can_be_set():
    # %% ../nbs/34_widths.ipynb #69a18dc9
    tf.utils.logging.disable_progress_bar()

    # %% ../nbs/34_widths.ipynb #306b4ec1
    def tiny(name="Llama", act=None, **more):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
        torch.manual_seed(0)
        model = {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, intermediate_size=48, num_key_value_heads=2,
                                                                     mlp_bias=True, hidden_act=act or "silu", **more)),
                 "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4,
                                                                   activation_function=act or "gelu_new", **more)),
                 "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32,
                                                               activation_function=act or "relu", **more)),
                }[name]().eval()
        for n, p in model.named_parameters():
            if p.ndim == 2 or n.endswith("bias"): nn.init.normal_(p, std=.2)
        return model

    def logits(model):
        with torch.no_grad(): return model(torch.arange(1, 25).view(2, 12)).logits

    def shaken(model, std=.1):
        "Give the parameters of all adapters random values."
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=std)
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def elastic(model, r=8, choices=(8, 6, 4)):
        "Make a Llama elastic as LoNAS does: ranks of queries, keys and values, of gate and up, and widths."
        targets = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
        ranks = {"q_proj,k_proj,v_proj": list(choices), "gate_proj,up_proj": list(choices)}
        attach_widths(model)
        attach(model, LoRA(r=r, lora_alpha=2*r, target_modules=targets, elastic=ranks, learning_rate=1e-3))
        return model

    # %% ../nbs/34_widths.ipynb #7718d1dc
    for family in "Llama", "GPT-2", "OPT":
        model = tiny(family)
        before = logits(model)
        space = attach_widths(model, width_choices(model, (.5, 1/3, .01)))
        assert all(c == [48, 24, 16, 1] for c in space.values()) and get_widths(model) == largest(space)
        assert torch.equal(logits(model), before)
        set_widths(model, {g: 1 for g in space})
        cut = logits(model)
        assert (cut - before).abs().max() > .01 and torch.equal(logits(copy.deepcopy(model)), cut)
        set_widths(model, largest(space))
        assert torch.equal(logits(model), before)
        set_widths(model, {g: 1 for g in space})
        assert torch.equal(logits(detach_widths(model)), before)
        assert not any(m._forward_pre_hooks for m in model.modules())


def test_a_width_that_can_be_set_2():
    # %% ../nbs/34_widths.ipynb #69a18dc9
    tf.utils.logging.disable_progress_bar()

    # %% ../nbs/34_widths.ipynb #306b4ec1
    def tiny(name="Llama", act=None, **more):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
        torch.manual_seed(0)
        model = {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, intermediate_size=48, num_key_value_heads=2,
                                                                     mlp_bias=True, hidden_act=act or "silu", **more)),
                 "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4,
                                                                   activation_function=act or "gelu_new", **more)),
                 "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32,
                                                               activation_function=act or "relu", **more)),
                }[name]().eval()
        for n, p in model.named_parameters():
            if p.ndim == 2 or n.endswith("bias"): nn.init.normal_(p, std=.2)
        return model

    def logits(model):
        with torch.no_grad(): return model(torch.arange(1, 25).view(2, 12)).logits

    def shaken(model, std=.1):
        "Give the parameters of all adapters random values."
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=std)
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def elastic(model, r=8, choices=(8, 6, 4)):
        "Make a Llama elastic as LoNAS does: ranks of queries, keys and values, of gate and up, and widths."
        targets = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
        ranks = {"q_proj,k_proj,v_proj": list(choices), "gate_proj,up_proj": list(choices)}
        attach_widths(model)
        attach(model, LoRA(r=r, lora_alpha=2*r, target_modules=targets, elastic=ranks, learning_rate=1e-3))
        return model

    # %% ../nbs/34_widths.ipynb #8a3ed804
    def zeroed(model, widths):
        "Put zeros into the columns of the output layers, and a hundred into the rows before, which must not matter."
        for g, w in widths.items():
            mlp = mlps(model)[g]
            with torch.no_grad():
                effective_weight(model.get_submodule(mlp.out))[:, w:] = 0
                for n in mlp.ins: effective_weight(model.get_submodule(n))[w:] = 100
        return model

    for family in "Llama", "GPT-2", "OPT":
        model = tiny(family, act="sigmoid")
        attach_widths(model, {g: [48, 17] for g in mlps(model)})
        set_widths(model, dict.fromkeys(mlps(model), 17))
        torch.testing.assert_close(logits(model), logits(zeroed(tiny(family, act="sigmoid"), get_widths(model))),
                                   rtol=1e-5, atol=1e-5)


def test_a_width_that_can_be_set_3():
    # %% ../nbs/34_widths.ipynb #69a18dc9
    tf.utils.logging.disable_progress_bar()

    # %% ../nbs/34_widths.ipynb #306b4ec1
    def tiny(name="Llama", act=None, **more):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
        torch.manual_seed(0)
        model = {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, intermediate_size=48, num_key_value_heads=2,
                                                                     mlp_bias=True, hidden_act=act or "silu", **more)),
                 "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4,
                                                                   activation_function=act or "gelu_new", **more)),
                 "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32,
                                                               activation_function=act or "relu", **more)),
                }[name]().eval()
        for n, p in model.named_parameters():
            if p.ndim == 2 or n.endswith("bias"): nn.init.normal_(p, std=.2)
        return model

    def logits(model):
        with torch.no_grad(): return model(torch.arange(1, 25).view(2, 12)).logits

    def shaken(model, std=.1):
        "Give the parameters of all adapters random values."
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=std)
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def elastic(model, r=8, choices=(8, 6, 4)):
        "Make a Llama elastic as LoNAS does: ranks of queries, keys and values, of gate and up, and widths."
        targets = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
        ranks = {"q_proj,k_proj,v_proj": list(choices), "gate_proj,up_proj": list(choices)}
        attach_widths(model)
        attach(model, LoRA(r=r, lora_alpha=2*r, target_modules=targets, elastic=ranks, learning_rate=1e-3))
        return model

    # %% ../nbs/34_widths.ipynb #7c5ca507
    for family in "Llama", "GPT-2", "OPT":
        model = tiny(family)
        first, second = attach_widths(model)
        set_widths(model, {first: 24, second: 30})
        base = logits(model)
        attach(model, LoRA(r=4))
        shaken(model)
        adapted = logits(model)
        set_widths(model, {})
        assert torch.equal(logits(model), adapted) and (adapted - base).abs().max() > .01
        torch.testing.assert_close(logits(merge(model)), adapted, rtol=1e-4, atol=1e-5)
        assert torch.equal(logits(unmerge(model)), adapted)
        assert torch.equal(logits(detach(model)), base)
        model.zero_grad()
        attach(model, LoRA(r=4))
        shaken(model)
        model(torch.arange(1, 25).view(2, 12)).logits.sum().backward()
        mlp, parts = mlps(model)[first], dict(zip((a := adapters(model)["default"]).names, a.parts))
        for n in mlp.ins: assert parts[n].B.grad[:24].any() and not parts[n].B.grad[24:].any()
        assert parts[mlp.out].A.grad[:, :24].any() and not parts[mlp.out].A.grad[:, 24:].any()


def test_a_width_that_can_be_set_4():
    # %% ../nbs/34_widths.ipynb #69a18dc9
    tf.utils.logging.disable_progress_bar()

    # %% ../nbs/34_widths.ipynb #306b4ec1
    def tiny(name="Llama", act=None, **more):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
        torch.manual_seed(0)
        model = {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, intermediate_size=48, num_key_value_heads=2,
                                                                     mlp_bias=True, hidden_act=act or "silu", **more)),
                 "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4,
                                                                   activation_function=act or "gelu_new", **more)),
                 "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32,
                                                               activation_function=act or "relu", **more)),
                }[name]().eval()
        for n, p in model.named_parameters():
            if p.ndim == 2 or n.endswith("bias"): nn.init.normal_(p, std=.2)
        return model

    def logits(model):
        with torch.no_grad(): return model(torch.arange(1, 25).view(2, 12)).logits

    def shaken(model, std=.1):
        "Give the parameters of all adapters random values."
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=std)
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def elastic(model, r=8, choices=(8, 6, 4)):
        "Make a Llama elastic as LoNAS does: ranks of queries, keys and values, of gate and up, and widths."
        targets = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
        ranks = {"q_proj,k_proj,v_proj": list(choices), "gate_proj,up_proj": list(choices)}
        attach_widths(model)
        attach(model, LoRA(r=r, lora_alpha=2*r, target_modules=targets, elastic=ranks, learning_rate=1e-3))
        return model

    # %% ../nbs/34_widths.ipynb #e1685ff8
    model = tiny()
    print(refusal(SettingError, width_space, model))
    print(refusal(SettingError, width_choices, model, (1, 1.5)))
    print(refusal(SettingError, attach_widths, model, {"model.layers.0:width": [24, 12]}))
    print(refusal(SettingError, attach_widths, model, {"model.layers.2:width": [48, 24]}))
    space = attach_widths(model)
    print(refusal(SettingError, set_widths, model, {"model.layers.0:width": 24, "model.layers.1:width": 25}))
    print(refusal(SettingError, set_widths, model, {"model.layers.0:width": 24, "model.layer.1:width": 24}))
    print(refusal(SettingError, attach_widths, model))
    attach(model, LoRA(r=2))
    print(refusal(SettingError, set_widths, merge(model), {"model.layers.0:width": 24}))
    assert get_widths(model) == largest(space)


def test_a_smaller_model():
    # %% ../nbs/34_widths.ipynb #69a18dc9
    tf.utils.logging.disable_progress_bar()

    # %% ../nbs/34_widths.ipynb #306b4ec1
    def tiny(name="Llama", act=None, **more):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
        torch.manual_seed(0)
        model = {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, intermediate_size=48, num_key_value_heads=2,
                                                                     mlp_bias=True, hidden_act=act or "silu", **more)),
                 "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4,
                                                                   activation_function=act or "gelu_new", **more)),
                 "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32,
                                                               activation_function=act or "relu", **more)),
                }[name]().eval()
        for n, p in model.named_parameters():
            if p.ndim == 2 or n.endswith("bias"): nn.init.normal_(p, std=.2)
        return model

    def logits(model):
        with torch.no_grad(): return model(torch.arange(1, 25).view(2, 12)).logits

    def shaken(model, std=.1):
        "Give the parameters of all adapters random values."
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=std)
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def elastic(model, r=8, choices=(8, 6, 4)):
        "Make a Llama elastic as LoNAS does: ranks of queries, keys and values, of gate and up, and widths."
        targets = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
        ranks = {"q_proj,k_proj,v_proj": list(choices), "gate_proj,up_proj": list(choices)}
        attach_widths(model)
        attach(model, LoRA(r=r, lora_alpha=2*r, target_modules=targets, elastic=ranks, learning_rate=1e-3))
        return model

    # %% ../nbs/34_widths.ipynb #ad2e3a98
    @settings(deadline=None, max_examples=15, derandomize=True)
    @given(family=st.sampled_from(["Llama", "GPT-2", "OPT"]), act=st.sampled_from([None, "sigmoid"]),
           widths=st.tuples(*[st.sampled_from([48, 47, 24, 3, 1])]*2), lora=st.booleans())
    def extraction_keeps_the_function(family, act, widths, lora):
        model = tiny(family, act)
        space = attach_widths(model, {g: [48, 47, 24, 3, 1] for g in mlps(model)})
        if lora:
            attach(model, LoRA(r=4))
            shaken(model)
        set_widths(model, dict(zip(space, widths)))
        cut = logits(model)
        small = extract_widths(model)
        torch.testing.assert_close(logits(small), cut, rtol=1e-5, atol=1e-5)
        assert [mlp.width for mlp in mlps(small).values()] == list(widths)
        assert all(p.requires_grad for p in small.parameters()) and not any(m._forward_pre_hooks for m in small.modules())

    extraction_keeps_the_function()


def test_a_smaller_model_2():
    # %% ../nbs/34_widths.ipynb #69a18dc9
    tf.utils.logging.disable_progress_bar()

    # %% ../nbs/34_widths.ipynb #306b4ec1
    def tiny(name="Llama", act=None, **more):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
        torch.manual_seed(0)
        model = {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, intermediate_size=48, num_key_value_heads=2,
                                                                     mlp_bias=True, hidden_act=act or "silu", **more)),
                 "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4,
                                                                   activation_function=act or "gelu_new", **more)),
                 "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32,
                                                               activation_function=act or "relu", **more)),
                }[name]().eval()
        for n, p in model.named_parameters():
            if p.ndim == 2 or n.endswith("bias"): nn.init.normal_(p, std=.2)
        return model

    def logits(model):
        with torch.no_grad(): return model(torch.arange(1, 25).view(2, 12)).logits

    def shaken(model, std=.1):
        "Give the parameters of all adapters random values."
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=std)
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def elastic(model, r=8, choices=(8, 6, 4)):
        "Make a Llama elastic as LoNAS does: ranks of queries, keys and values, of gate and up, and widths."
        targets = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
        ranks = {"q_proj,k_proj,v_proj": list(choices), "gate_proj,up_proj": list(choices)}
        attach_widths(model)
        attach(model, LoRA(r=r, lora_alpha=2*r, target_modules=targets, elastic=ranks, learning_rate=1e-3))
        return model

    # %% ../nbs/34_widths.ipynb #4a88480a
    model = tiny().bfloat16()
    attach_widths(model)
    set_widths(model, {g: 30 for g in mlps(model)})
    cut = logits(model)
    small = extract_widths(model)
    assert logits(small).dtype == torch.bfloat16 and (logits(small) - cut).norm() < .01*cut.norm()


def test_a_smaller_model_3():
    # %% ../nbs/34_widths.ipynb #69a18dc9
    tf.utils.logging.disable_progress_bar()

    # %% ../nbs/34_widths.ipynb #306b4ec1
    def tiny(name="Llama", act=None, **more):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
        torch.manual_seed(0)
        model = {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, intermediate_size=48, num_key_value_heads=2,
                                                                     mlp_bias=True, hidden_act=act or "silu", **more)),
                 "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4,
                                                                   activation_function=act or "gelu_new", **more)),
                 "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32,
                                                               activation_function=act or "relu", **more)),
                }[name]().eval()
        for n, p in model.named_parameters():
            if p.ndim == 2 or n.endswith("bias"): nn.init.normal_(p, std=.2)
        return model

    def logits(model):
        with torch.no_grad(): return model(torch.arange(1, 25).view(2, 12)).logits

    def shaken(model, std=.1):
        "Give the parameters of all adapters random values."
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=std)
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def elastic(model, r=8, choices=(8, 6, 4)):
        "Make a Llama elastic as LoNAS does: ranks of queries, keys and values, of gate and up, and widths."
        targets = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
        ranks = {"q_proj,k_proj,v_proj": list(choices), "gate_proj,up_proj": list(choices)}
        attach_widths(model)
        attach(model, LoRA(r=r, lora_alpha=2*r, target_modules=targets, elastic=ranks, learning_rate=1e-3))
        return model

    # %% ../nbs/34_widths.ipynb #7d6a3890
    for family in "Llama", "GPT-2", "OPT":
        small = narrow(tiny(family), dict.fromkeys(mlps(tiny(family)), 20))
        with tempfile.TemporaryDirectory() as d:
            small.save_pretrained(d)
            assert torch.equal(logits(tf.AutoModelForCausalLM.from_pretrained(d)), logits(small))
        widths = json.loads(json.dumps(dict(zip(mlps(small), (20, 7)))))
        mixed = narrow(tiny(family), widths)
        again = narrow(type(mixed)(mixed.config).eval(), widths)
        again.load_state_dict(mixed.state_dict())
        assert torch.equal(logits(again), logits(mixed))


def test_a_smaller_model_4():
    # %% ../nbs/34_widths.ipynb #69a18dc9
    tf.utils.logging.disable_progress_bar()

    # %% ../nbs/34_widths.ipynb #306b4ec1
    def tiny(name="Llama", act=None, **more):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
        torch.manual_seed(0)
        model = {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, intermediate_size=48, num_key_value_heads=2,
                                                                     mlp_bias=True, hidden_act=act or "silu", **more)),
                 "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4,
                                                                   activation_function=act or "gelu_new", **more)),
                 "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32,
                                                               activation_function=act or "relu", **more)),
                }[name]().eval()
        for n, p in model.named_parameters():
            if p.ndim == 2 or n.endswith("bias"): nn.init.normal_(p, std=.2)
        return model

    def logits(model):
        with torch.no_grad(): return model(torch.arange(1, 25).view(2, 12)).logits

    def shaken(model, std=.1):
        "Give the parameters of all adapters random values."
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=std)
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def elastic(model, r=8, choices=(8, 6, 4)):
        "Make a Llama elastic as LoNAS does: ranks of queries, keys and values, of gate and up, and widths."
        targets = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
        ranks = {"q_proj,k_proj,v_proj": list(choices), "gate_proj,up_proj": list(choices)}
        attach_widths(model)
        attach(model, LoRA(r=r, lora_alpha=2*r, target_modules=targets, elastic=ranks, learning_rate=1e-3))
        return model

    # %% ../nbs/34_widths.ipynb #f536208c
    model = tiny()
    first = next(iter(mlps(model)))
    print(refusal(SettingError, narrow, model, {first: 49}))
    print(refusal(SettingError, narrow, model, {"model.layers.7:width": 24}))
    print(refusal(SettingError, keep_channels, model, {first: torch.tensor([1, 1])}))
    attach(model, LoRA(r=2))
    print(refusal(SettingError, narrow, model, {first: 24}))
    assert mlps(model)[first].width == 48


def test_what_a_width_costs():
    # %% ../nbs/34_widths.ipynb #69a18dc9
    tf.utils.logging.disable_progress_bar()

    # %% ../nbs/34_widths.ipynb #306b4ec1
    def tiny(name="Llama", act=None, **more):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
        torch.manual_seed(0)
        model = {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, intermediate_size=48, num_key_value_heads=2,
                                                                     mlp_bias=True, hidden_act=act or "silu", **more)),
                 "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4,
                                                                   activation_function=act or "gelu_new", **more)),
                 "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32,
                                                               activation_function=act or "relu", **more)),
                }[name]().eval()
        for n, p in model.named_parameters():
            if p.ndim == 2 or n.endswith("bias"): nn.init.normal_(p, std=.2)
        return model

    def logits(model):
        with torch.no_grad(): return model(torch.arange(1, 25).view(2, 12)).logits

    def shaken(model, std=.1):
        "Give the parameters of all adapters random values."
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=std)
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def elastic(model, r=8, choices=(8, 6, 4)):
        "Make a Llama elastic as LoNAS does: ranks of queries, keys and values, of gate and up, and widths."
        targets = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
        ranks = {"q_proj,k_proj,v_proj": list(choices), "gate_proj,up_proj": list(choices)}
        attach_widths(model)
        attach(model, LoRA(r=r, lora_alpha=2*r, target_modules=targets, elastic=ranks, learning_rate=1e-3))
        return model

    # %% ../nbs/34_widths.ipynb #705d313a
    llama = skeleton(tf.LlamaConfig())  # The 7B model's settings are the default
    attach_widths(llama)
    for w, billions, tera in (11008, 6.738, 1.691), (9632, 6.197, 1.553), (8256, 5.656, 1.414), (6880, 5.115, 1.276):
        set_widths(llama, dict.fromkeys(width_space(llama), w))
        N, C = parameters(llama), flops(llama)
        print(f"width {w:5}: {N/1e9:.3f} billion parameters, {C/1e12:.3f} TFLOPs")
        assert round(N/1e9, 3) == billions and round(C/1e12, 3) == tera
    small = narrow(skeleton(tf.LlamaConfig()), dict.fromkeys(width_space(llama), 6880))
    assert sum(p.numel() for p in small.parameters()) == parameters(small) == N and flops(small) == C
    assert small.config.intermediate_size == 6880


def test_what_a_width_costs_2():
    # %% ../nbs/34_widths.ipynb #69a18dc9
    tf.utils.logging.disable_progress_bar()

    # %% ../nbs/34_widths.ipynb #306b4ec1
    def tiny(name="Llama", act=None, **more):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
        torch.manual_seed(0)
        model = {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, intermediate_size=48, num_key_value_heads=2,
                                                                     mlp_bias=True, hidden_act=act or "silu", **more)),
                 "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4,
                                                                   activation_function=act or "gelu_new", **more)),
                 "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32,
                                                               activation_function=act or "relu", **more)),
                }[name]().eval()
        for n, p in model.named_parameters():
            if p.ndim == 2 or n.endswith("bias"): nn.init.normal_(p, std=.2)
        return model

    def logits(model):
        with torch.no_grad(): return model(torch.arange(1, 25).view(2, 12)).logits

    def shaken(model, std=.1):
        "Give the parameters of all adapters random values."
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=std)
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def elastic(model, r=8, choices=(8, 6, 4)):
        "Make a Llama elastic as LoNAS does: ranks of queries, keys and values, of gate and up, and widths."
        targets = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
        ranks = {"q_proj,k_proj,v_proj": list(choices), "gate_proj,up_proj": list(choices)}
        attach_widths(model)
        attach(model, LoRA(r=r, lora_alpha=2*r, target_modules=targets, elastic=ranks, learning_rate=1e-3))
        return model

    # %% ../nbs/34_widths.ipynb #8df0714e
    with torch.device("meta"): bert = tf.BertModel(tf.BertConfig())
    weights = sum(effective_weight(layer).numel() for layer in select(bert, r"encoder\..*").values())
    within = 12 * 2 * 128**2 * 768  # blocks, two products, of 128 × 128 × 768
    assert round((128*weights + within)/1e9, 1) == 11.2 and round(flops(bert)/1e9, 1) == 21.9
    attach_widths(bert)
    set_widths(bert, dict.fromkeys(width_space(bert), 1536))
    small = narrow(detach_widths(copy.deepcopy(bert)), get_widths(bert))
    assert parameters(bert) == sum(p.numel() for p in small.parameters()) == parameters(small)


def test_which_channels_come_first():
    # %% ../nbs/34_widths.ipynb #69a18dc9
    tf.utils.logging.disable_progress_bar()

    # %% ../nbs/34_widths.ipynb #306b4ec1
    def tiny(name="Llama", act=None, **more):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
        torch.manual_seed(0)
        model = {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, intermediate_size=48, num_key_value_heads=2,
                                                                     mlp_bias=True, hidden_act=act or "silu", **more)),
                 "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4,
                                                                   activation_function=act or "gelu_new", **more)),
                 "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32,
                                                               activation_function=act or "relu", **more)),
                }[name]().eval()
        for n, p in model.named_parameters():
            if p.ndim == 2 or n.endswith("bias"): nn.init.normal_(p, std=.2)
        return model

    def logits(model):
        with torch.no_grad(): return model(torch.arange(1, 25).view(2, 12)).logits

    def shaken(model, std=.1):
        "Give the parameters of all adapters random values."
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=std)
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def elastic(model, r=8, choices=(8, 6, 4)):
        "Make a Llama elastic as LoNAS does: ranks of queries, keys and values, of gate and up, and widths."
        targets = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
        ranks = {"q_proj,k_proj,v_proj": list(choices), "gate_proj,up_proj": list(choices)}
        attach_widths(model)
        attach(model, LoRA(r=r, lora_alpha=2*r, target_modules=targets, elastic=ranks, learning_rate=1e-3))
        return model

    # %% ../nbs/34_widths.ipynb #dc873b3d
    for family in "Llama", "GPT-2", "OPT":
        model, text = tiny(family), [torch.arange(1, 25).view(2, 12)]
        before, weights = logits(model), copy.deepcopy(model.state_dict())
        scores = importance(model, text)
        g, mlp = next(iter(mlps(model).items()))
        W, G = effective_weight(model.get_submodule(mlp.out)).detach(), gram(model, text, [mlp.out])[mlp.out]
        for j in 0, 17, 47: torch.testing.assert_close(scores[g][j], output_error(W, W*(torch.arange(48) != j), G))
        order = sort_channels(model, text)
        torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-5)
        assert (importance(model, text)[g].diff() <= 1e-6*scores[g].max()).all()
        keep_channels(model, {g: o.argsort() for g, o in order.items()})
        assert all(torch.equal(t, weights[k]) for k, t in model.state_dict().items())


def test_which_channels_come_first_2():
    # %% ../nbs/34_widths.ipynb #69a18dc9
    tf.utils.logging.disable_progress_bar()

    # %% ../nbs/34_widths.ipynb #306b4ec1
    def tiny(name="Llama", act=None, **more):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
        torch.manual_seed(0)
        model = {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, intermediate_size=48, num_key_value_heads=2,
                                                                     mlp_bias=True, hidden_act=act or "silu", **more)),
                 "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4,
                                                                   activation_function=act or "gelu_new", **more)),
                 "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32,
                                                               activation_function=act or "relu", **more)),
                }[name]().eval()
        for n, p in model.named_parameters():
            if p.ndim == 2 or n.endswith("bias"): nn.init.normal_(p, std=.2)
        return model

    def logits(model):
        with torch.no_grad(): return model(torch.arange(1, 25).view(2, 12)).logits

    def shaken(model, std=.1):
        "Give the parameters of all adapters random values."
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=std)
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def elastic(model, r=8, choices=(8, 6, 4)):
        "Make a Llama elastic as LoNAS does: ranks of queries, keys and values, of gate and up, and widths."
        targets = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
        ranks = {"q_proj,k_proj,v_proj": list(choices), "gate_proj,up_proj": list(choices)}
        attach_widths(model)
        attach(model, LoRA(r=r, lora_alpha=2*r, target_modules=targets, elastic=ranks, learning_rate=1e-3))
        return model

    # %% ../nbs/34_widths.ipynb #02c2fb65
    model, tokenizer = pretrained()
    valid = [b.inputs for b in batches([text[:2000] for text in corpus("valid").values()][:16], tokenizer, 256, 256)]
    found = mlps(model)
    G = gram(model, valid, [mlp.out for mlp in found.values()])

    def lost(mlp, first):
        "The output error of keeping only the first half of the channels, relative to keeping none."
        W = effective_weight(model.get_submodule(mlp.out)).detach()
        kept = torch.isin(torch.arange(mlp.width), first[:mlp.width//2])
        return (output_error(W, W*kept, G[mlp.out])/output_error(W, 0*W, G[mlp.out])).item()

    def by_error(mlp):
        W = effective_weight(model.get_submodule(mlp.out)).detach()
        return (W.square().sum(0)*G[mlp.out].diagonal()).argsort(descending=True)

    as_it_is = [lost(mlp, torch.arange(mlp.width)) for mlp in found.values()]
    in_order = [lost(mlp, by_error(mlp)) for mlp in found.values()]
    for label, errors in ("as it is", as_it_is), ("sorted", in_order): print(f"{label:8}", *(f"{e:.2f}" for e in errors))
    assert all(b < .6*a for a, b in zip(as_it_is, in_order))


def test_training_all_sub_networks_at_once():
    # %% ../nbs/34_widths.ipynb #69a18dc9
    tf.utils.logging.disable_progress_bar()

    # %% ../nbs/34_widths.ipynb #306b4ec1
    def tiny(name="Llama", act=None, **more):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
        torch.manual_seed(0)
        model = {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, intermediate_size=48, num_key_value_heads=2,
                                                                     mlp_bias=True, hidden_act=act or "silu", **more)),
                 "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4,
                                                                   activation_function=act or "gelu_new", **more)),
                 "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32,
                                                               activation_function=act or "relu", **more)),
                }[name]().eval()
        for n, p in model.named_parameters():
            if p.ndim == 2 or n.endswith("bias"): nn.init.normal_(p, std=.2)
        return model

    def logits(model):
        with torch.no_grad(): return model(torch.arange(1, 25).view(2, 12)).logits

    def shaken(model, std=.1):
        "Give the parameters of all adapters random values."
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=std)
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def elastic(model, r=8, choices=(8, 6, 4)):
        "Make a Llama elastic as LoNAS does: ranks of queries, keys and values, of gate and up, and widths."
        targets = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
        ranks = {"q_proj,k_proj,v_proj": list(choices), "gate_proj,up_proj": list(choices)}
        attach_widths(model)
        attach(model, LoRA(r=r, lora_alpha=2*r, target_modules=targets, elastic=ranks, learning_rate=1e-3))
        return model

    # %% ../nbs/34_widths.ipynb #29e8a6a0
    def ids_loss(model, ids): return model(ids, labels=ids).loss

    def draws(n=8): return list(torch.randint(1, 96, (n, 2, 12), generator=torch.Generator().manual_seed(0)))

    model = elastic(tiny())
    print(*list(subnet_space(model).items())[::3], sep="\n")

    # %% ../nbs/34_widths.ipynb #23f40849
    model, seen = elastic(tiny()), []
    space = subnet_space(model)
    hook = model.register_forward_pre_hook(lambda *_: seen.append(get_ranks(model) | get_widths(model)))
    adapt(model, draws(), 5, loss=ids_loss, backward=subnet_backward, seed=1)
    assert seen == [random_rule(space, step, 1)[0] for step in range(5)] and len({str(s) for s in seen}) == 5
    assert get_widths(model) == largest(width_space(model)) and get_ranks(model) == largest(rank_space(model))
    subnet_backward(model, lambda: ids_loss(model, draws()[0]), 3, rule=sandwich_rule)
    assert seen[5:] == sandwich_rule(space, 3)


def test_training_all_sub_networks_at_once_2():
    # %% ../nbs/34_widths.ipynb #69a18dc9
    tf.utils.logging.disable_progress_bar()

    # %% ../nbs/34_widths.ipynb #306b4ec1
    def tiny(name="Llama", act=None, **more):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
        torch.manual_seed(0)
        model = {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, intermediate_size=48, num_key_value_heads=2,
                                                                     mlp_bias=True, hidden_act=act or "silu", **more)),
                 "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4,
                                                                   activation_function=act or "gelu_new", **more)),
                 "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32,
                                                               activation_function=act or "relu", **more)),
                }[name]().eval()
        for n, p in model.named_parameters():
            if p.ndim == 2 or n.endswith("bias"): nn.init.normal_(p, std=.2)
        return model

    def logits(model):
        with torch.no_grad(): return model(torch.arange(1, 25).view(2, 12)).logits

    def shaken(model, std=.1):
        "Give the parameters of all adapters random values."
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=std)
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def elastic(model, r=8, choices=(8, 6, 4)):
        "Make a Llama elastic as LoNAS does: ranks of queries, keys and values, of gate and up, and widths."
        targets = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
        ranks = {"q_proj,k_proj,v_proj": list(choices), "gate_proj,up_proj": list(choices)}
        attach_widths(model)
        attach(model, LoRA(r=r, lora_alpha=2*r, target_modules=targets, elastic=ranks, learning_rate=1e-3))
        return model

    # %% ../nbs/34_widths.ipynb #29e8a6a0
    def ids_loss(model, ids): return model(ids, labels=ids).loss

    def draws(n=8): return list(torch.randint(1, 96, (n, 2, 12), generator=torch.Generator().manual_seed(0)))

    model = elastic(tiny())
    print(*list(subnet_space(model).items())[::3], sep="\n")

    # %% ../nbs/34_widths.ipynb #e951882b
    def trained_values(interrupted, folder):
        def stops(model, loss, step, seed):
            if interrupted and step == 3: raise KeyboardInterrupt
            return subnet_backward(model, loss, step, seed)
        for backward in (stops, subnet_backward) if interrupted else (subnet_backward,):
            model = elastic(tiny())
            try: adapt(model, draws(), 5, loss=ids_loss, backward=backward, folder=folder, every=2)
            except KeyboardInterrupt: pass
        return [p.detach() for p in adapters(model)["default"].parameters()]

    with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b:
        for one, other in zip(trained_values(False, a), trained_values(True, b)): assert torch.equal(one, other)


def test_training_all_sub_networks_at_once_3():
    # %% ../nbs/34_widths.ipynb #69a18dc9
    tf.utils.logging.disable_progress_bar()

    # %% ../nbs/34_widths.ipynb #306b4ec1
    def tiny(name="Llama", act=None, **more):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
        torch.manual_seed(0)
        model = {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, intermediate_size=48, num_key_value_heads=2,
                                                                     mlp_bias=True, hidden_act=act or "silu", **more)),
                 "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4,
                                                                   activation_function=act or "gelu_new", **more)),
                 "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32,
                                                               activation_function=act or "relu", **more)),
                }[name]().eval()
        for n, p in model.named_parameters():
            if p.ndim == 2 or n.endswith("bias"): nn.init.normal_(p, std=.2)
        return model

    def logits(model):
        with torch.no_grad(): return model(torch.arange(1, 25).view(2, 12)).logits

    def shaken(model, std=.1):
        "Give the parameters of all adapters random values."
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=std)
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def elastic(model, r=8, choices=(8, 6, 4)):
        "Make a Llama elastic as LoNAS does: ranks of queries, keys and values, of gate and up, and widths."
        targets = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
        ranks = {"q_proj,k_proj,v_proj": list(choices), "gate_proj,up_proj": list(choices)}
        attach_widths(model)
        attach(model, LoRA(r=r, lora_alpha=2*r, target_modules=targets, elastic=ranks, learning_rate=1e-3))
        return model

    # %% ../nbs/34_widths.ipynb #29e8a6a0
    def ids_loss(model, ids): return model(ids, labels=ids).loss

    def draws(n=8): return list(torch.randint(1, 96, (n, 2, 12), generator=torch.Generator().manual_seed(0)))

    model = elastic(tiny())
    print(*list(subnet_space(model).items())[::3], sep="\n")

    # %% ../nbs/34_widths.ipynb #00d665d4
    def gradients(reentrant=None):
        model = shaken(elastic(tiny())).train()
        model.enable_input_require_grads()
        if reentrant is not None: model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        space = subnet_space(model)
        subnet = random_rule(space, 3)[0]
        subnet_backward(model, lambda: ids_loss(model, draws()[0]), 3)
        adapter = adapters(model)["default"]
        return subnet, {n: (p.A.grad, p.B.grad) for n, p in zip(adapter.names, adapter.parts)}

    subnet, plain = gradients()
    for i in range(2):
        w, r = subnet[f"model.layers.{i}:width"], subnet[f"model.layers.{i}:gate_proj,up_proj"]
        down, up = plain[f"model.layers.{i}.mlp.down_proj"], plain[f"model.layers.{i}.mlp.up_proj"]
        assert down[0][:, :w].any() and not down[0][:, w:].any()
        assert up[1][:w, :r].any() and not up[1][w:].any() and not up[1][:, r:].any() and not up[0][r:].any()
    for reentrant in True, False:
        for n, grads in gradients(reentrant)[1].items(): torch.testing.assert_close(grads, plain[n])


def test_training_all_sub_networks_at_once_4():
    # %% ../nbs/34_widths.ipynb #69a18dc9
    tf.utils.logging.disable_progress_bar()

    # %% ../nbs/34_widths.ipynb #306b4ec1
    def tiny(name="Llama", act=None, **more):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
        torch.manual_seed(0)
        model = {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, intermediate_size=48, num_key_value_heads=2,
                                                                     mlp_bias=True, hidden_act=act or "silu", **more)),
                 "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4,
                                                                   activation_function=act or "gelu_new", **more)),
                 "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32,
                                                               activation_function=act or "relu", **more)),
                }[name]().eval()
        for n, p in model.named_parameters():
            if p.ndim == 2 or n.endswith("bias"): nn.init.normal_(p, std=.2)
        return model

    def logits(model):
        with torch.no_grad(): return model(torch.arange(1, 25).view(2, 12)).logits

    def shaken(model, std=.1):
        "Give the parameters of all adapters random values."
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=std)
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def elastic(model, r=8, choices=(8, 6, 4)):
        "Make a Llama elastic as LoNAS does: ranks of queries, keys and values, of gate and up, and widths."
        targets = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
        ranks = {"q_proj,k_proj,v_proj": list(choices), "gate_proj,up_proj": list(choices)}
        attach_widths(model)
        attach(model, LoRA(r=r, lora_alpha=2*r, target_modules=targets, elastic=ranks, learning_rate=1e-3))
        return model

    # %% ../nbs/34_widths.ipynb #29e8a6a0
    def ids_loss(model, ids): return model(ids, labels=ids).loss

    def draws(n=8): return list(torch.randint(1, 96, (n, 2, 12), generator=torch.Generator().manual_seed(0)))

    model = elastic(tiny())
    print(*list(subnet_space(model).items())[::3], sep="\n")

    # %% ../nbs/34_widths.ipynb #91346d54
    model = elastic(tiny())
    before = get_ranks(model) | get_widths(model)
    print(refusal(SettingError, set_subnet, model, {"model.layers.0:width": 24, "model.layers.0:q_proj,k_proj,v_proj": 5}))
    print(refusal(SettingError, set_subnet, model, {"model.layers.0:width": 24, "model.layers.0:q_proj": 4}))
    assert get_ranks(model) | get_widths(model) == before


def test_what_the_smaller_model_saves():
    # %% ../nbs/34_widths.ipynb #69a18dc9
    tf.utils.logging.disable_progress_bar()

    # %% ../nbs/34_widths.ipynb #306b4ec1
    def tiny(name="Llama", act=None, **more):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
        torch.manual_seed(0)
        model = {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, intermediate_size=48, num_key_value_heads=2,
                                                                     mlp_bias=True, hidden_act=act or "silu", **more)),
                 "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4,
                                                                   activation_function=act or "gelu_new", **more)),
                 "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32,
                                                               activation_function=act or "relu", **more)),
                }[name]().eval()
        for n, p in model.named_parameters():
            if p.ndim == 2 or n.endswith("bias"): nn.init.normal_(p, std=.2)
        return model

    def logits(model):
        with torch.no_grad(): return model(torch.arange(1, 25).view(2, 12)).logits

    def shaken(model, std=.1):
        "Give the parameters of all adapters random values."
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=std)
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def elastic(model, r=8, choices=(8, 6, 4)):
        "Make a Llama elastic as LoNAS does: ranks of queries, keys and values, of gate and up, and widths."
        targets = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
        ranks = {"q_proj,k_proj,v_proj": list(choices), "gate_proj,up_proj": list(choices)}
        attach_widths(model)
        attach(model, LoRA(r=r, lora_alpha=2*r, target_modules=targets, elastic=ranks, learning_rate=1e-3))
        return model

    # %% ../nbs/34_widths.ipynb #53fc35c0
    def middle(space): return {g: choices[(len(choices) - 1)//2] for g, choices in space.items()}

    model = shaken(elastic(pretrained()[0]), std=.02)
    set_subnet(model, middle(subnet_space(model)))
    print({g: v for g, v in (get_ranks(model) | get_widths(model)).items() if ".0:" in g})
    ids = torch.arange(100, 196).view(2, 48)
    with torch.no_grad(): cut = model(ids).logits
    counted, cost = parameters(model), flops(model)
    small = extract_widths(model)
    with torch.no_grad(): torch.testing.assert_close(small(ids).logits, cut, rtol=1e-5, atol=1e-5)
    assert sum(p.numel() for p in small.parameters()) == counted and flops(small) == cost
    assert small.config.intermediate_size == 384
