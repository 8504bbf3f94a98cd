import os
import re
import tempfile
import warnings
from functools import partial
from pathlib import Path
from unittest.mock import patch
import torch
import torch.nn.functional as F
import transformers as tf
from huggingface_hub import constants as hub
from tokenizers import Tokenizer
from tokenizers import models
from tokenizers import pre_tokenizers
from transformers.pytorch_utils import Conv1D
import pathlm
from pathlm.adapters.core import attach
from pathlm.adapters.core import bake
from pathlm.adapters.core import detach
from pathlm.adapters.core import load_adapter
from pathlm.adapters.core import mixed
from pathlm.adapters.core import save_adapter
from pathlm.adapters.lora import LoRA
from pathlm.adapters.lora import elastic_backward
from pathlm.adapters.lora import rank_space
from pathlm.adapters.lora import set_ranks
from pathlm.adapters.lora import smallest
from pathlm.adapters.svft import SVFT
from pathlm.adapters.train import adapt
from pathlm.adapters.train import plain_backward
from pathlm.adapters.vblora import VBLoRA
from pathlm.base import CheckpointError
from pathlm.base import PathlmError
from pathlm.clipping import MODULES
from pathlm.clipping import change_of
from pathlm.clipping import clips_of
from pathlm.clipping import matrices
from pathlm.clipping import places
from pathlm.evaluate import evaluate
from pathlm.grid import quantize
from pathlm.grid import rounding
from pathlm.linear import blocks
from pathlm.linear import densify
from pathlm.linear import effective_weight
from pathlm.linear import linears
from pathlm.linear import merge
from pathlm.linear import stored_weight
from pathlm.linear import unmerge
from pathlm.linear import walk
from pathlm.objectives import entered
from pathlm.objectives import feed
from pathlm.objectives import gram
from pathlm.objectives import uncached
from pathlm.rotation import fold_signs
from pathlm.shiftadd.layer import shift_add
from pathlm.sparsity import sparsify
from pathlm.spectral import FactoredLinear
from pathlm.spectral import decompose
from pathlm.spectral import factorize
from pathlm.spectral import lent
from pathlm.spectral import prune
from pathlm.spectral import tried
from pathlm.spectral import truncations
from pathlm.sqft import SparsePEFT
from pathlm.sqft import shared_ranks
from pathlm.streaming import stream
from pathlm.widths import attach_widths
from pathlm.widths import extract_widths
from pathlm.widths import set_widths
from pathlm.widths import width_space


def test_the_blocks_one_by_one():
    # %% ../nbs/57_architectures.ipynb #47ac7866
    wide = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    ids = dict(vocab_size=264, bos_token_id=256, eos_token_id=256, pad_token_id=0)
    text = wide | ids | dict(max_position_embeddings=64)
    few = text | dict(num_key_value_heads=2)

    CONFIGS = {
        "Llama": ("LlamaForCausalLM", partial(tf.LlamaConfig, **few)),
        "Qwen2": ("Qwen2ForCausalLM", partial(tf.Qwen2Config, **few)),
        "Mistral": ("MistralForCausalLM", partial(tf.MistralConfig, **few, sliding_window=8)),
        "Phi-3": ("Phi3ForCausalLM", partial(tf.Phi3Config, **few)),
        "OPT": ("OPTForCausalLM", partial(tf.OPTConfig, **text, ffn_dim=64, word_embed_proj_dim=32)),
        "GPT-2": ("GPT2LMHeadModel", partial(tf.GPT2Config, **ids, n_embd=32, n_inner=64, n_layer=2, n_head=4,
                                             n_positions=64)),
        "BERT": ("BertForSequenceClassification", partial(tf.BertConfig, **text, num_labels=4)),
        "ViT": ("ViTForImageClassification", partial(tf.ViTConfig, **wide, image_size=16, patch_size=4, num_labels=4)),
    }

    def tiny(name, seed=0):
        "A random model of two blocks, with biases that are not zero."
        kind, config = CONFIGS[name]
        torch.manual_seed(seed)
        model = getattr(tf, kind)(config()).eval()
        for key, p in model.named_parameters():
            if key.endswith("bias"): torch.nn.init.normal_(p, std=.1)
        return model

    def inputs(model, n=4):
        "A batch of texts of sixteen tokens, or of images."
        draw = torch.Generator().manual_seed(0)
        if model.main_input_name == "pixel_values": return {"pixel_values": torch.randn(n, 3, 16, 16, generator=draw)}
        return {"input_ids": torch.randint(1, 256, (n, 16), generator=draw)}

    @torch.no_grad()
    def out(model, batch):
        "Logits, for each token or for each text or image."
        return model(**batch).logits

    def byte_tokenizer():
        letters = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        found = Tokenizer(models.BPE(letters, []))
        found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return tf.PreTrainedTokenizerFast(tokenizer_object=found, bos_token="<s>")

    # %% ../nbs/57_architectures.ipynb #25048fd5
    def near(a, b, share=1e-4):
        "Equal but for a share of the largest logit."
        assert (a - b).abs().max() <= share*b.abs().max()

    def stored(model, batch):
        "Saved and loaded it has the same layers and gives the same logits, bit for bit."
        with tempfile.TemporaryDirectory() as folder:
            pathlm.save(model, None, folder)
            again, _ = pathlm.load(folder)
        assert type(again) is type(model) and torch.equal(out(again, batch), out(model, batch))
        assert {n: type(m) for n, m in walk(again)} == {n: type(m) for n, m in walk(model)}

    # %% ../nbs/57_architectures.ipynb #c01fdfa8
    def attempt(check, name, method):
        try: check(name, method)
        except PathlmError as e: return f"{type(e).__name__}: {e}"
        return "✓"

    def tried_all(check, methods):
        "Try methods on all architectures, print the table, and return what was refused."
        found = {(m, name): attempt(check, name, m) for m in methods for name in CONFIGS}
        refused = {key: message for key, message in found.items() if message != "✓"}
        numbers = {key: f"({i})" for i, key in enumerate(refused, 1)}
        print(" "*24 + "".join(f"{name:>9}" for name in CONFIGS))
        for m in methods: print(f"{m:24}" + "".join(f"{numbers.get((m, name), '✓'):>9}" for name in CONFIGS))
        for key, message in refused.items(): print(f"{numbers[key]} {message}")
        return refused

    # %% ../nbs/57_architectures.ipynb #7271696f
    for name in CONFIGS:
        model = tiny(name)
        where, stack = blocks(model)
        found = [(n.rpartition(".")[2], *effective_weight(m).shape) for n, m in walk(stack[0])]
        kind = "Conv1D" if any(isinstance(m, Conv1D) for m in stack.modules()) else "Linear"
        print(f"{name:8} {where:19} {kind}: " + ", ".join(f"{n} {o}×{i}" for n, o, i in found))

    # %% ../nbs/57_architectures.ipynb #a4fffb3c
    def assert_replays(name):
        model, last = tiny(name), []
        stack, batch = blocks(model)[1], inputs(model)
        hook = stack[-1].register_forward_hook(lambda m, args, y: last.append(y if isinstance(y, torch.Tensor) else y[0]))
        with torch.no_grad(), uncached(model):
            feed(model, batch)
            hook.remove()
            x, calls = entered(model, batch)
            for block, call in zip(stack, calls, strict=True): x = call.run(block, x)
        assert torch.equal(x, last[0])

    for name in CONFIGS: assert_replays(name)


def test_the_blocks_one_by_one_2():
    # %% ../nbs/57_architectures.ipynb #47ac7866
    wide = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    ids = dict(vocab_size=264, bos_token_id=256, eos_token_id=256, pad_token_id=0)
    text = wide | ids | dict(max_position_embeddings=64)
    few = text | dict(num_key_value_heads=2)

    CONFIGS = {
        "Llama": ("LlamaForCausalLM", partial(tf.LlamaConfig, **few)),
        "Qwen2": ("Qwen2ForCausalLM", partial(tf.Qwen2Config, **few)),
        "Mistral": ("MistralForCausalLM", partial(tf.MistralConfig, **few, sliding_window=8)),
        "Phi-3": ("Phi3ForCausalLM", partial(tf.Phi3Config, **few)),
        "OPT": ("OPTForCausalLM", partial(tf.OPTConfig, **text, ffn_dim=64, word_embed_proj_dim=32)),
        "GPT-2": ("GPT2LMHeadModel", partial(tf.GPT2Config, **ids, n_embd=32, n_inner=64, n_layer=2, n_head=4,
                                             n_positions=64)),
        "BERT": ("BertForSequenceClassification", partial(tf.BertConfig, **text, num_labels=4)),
        "ViT": ("ViTForImageClassification", partial(tf.ViTConfig, **wide, image_size=16, patch_size=4, num_labels=4)),
    }

    def tiny(name, seed=0):
        "A random model of two blocks, with biases that are not zero."
        kind, config = CONFIGS[name]
        torch.manual_seed(seed)
        model = getattr(tf, kind)(config()).eval()
        for key, p in model.named_parameters():
            if key.endswith("bias"): torch.nn.init.normal_(p, std=.1)
        return model

    def inputs(model, n=4):
        "A batch of texts of sixteen tokens, or of images."
        draw = torch.Generator().manual_seed(0)
        if model.main_input_name == "pixel_values": return {"pixel_values": torch.randn(n, 3, 16, 16, generator=draw)}
        return {"input_ids": torch.randint(1, 256, (n, 16), generator=draw)}

    @torch.no_grad()
    def out(model, batch):
        "Logits, for each token or for each text or image."
        return model(**batch).logits

    def byte_tokenizer():
        letters = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        found = Tokenizer(models.BPE(letters, []))
        found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return tf.PreTrainedTokenizerFast(tokenizer_object=found, bos_token="<s>")

    # %% ../nbs/57_architectures.ipynb #25048fd5
    def near(a, b, share=1e-4):
        "Equal but for a share of the largest logit."
        assert (a - b).abs().max() <= share*b.abs().max()

    def stored(model, batch):
        "Saved and loaded it has the same layers and gives the same logits, bit for bit."
        with tempfile.TemporaryDirectory() as folder:
            pathlm.save(model, None, folder)
            again, _ = pathlm.load(folder)
        assert type(again) is type(model) and torch.equal(out(again, batch), out(model, batch))
        assert {n: type(m) for n, m in walk(again)} == {n: type(m) for n, m in walk(model)}

    # %% ../nbs/57_architectures.ipynb #c01fdfa8
    def attempt(check, name, method):
        try: check(name, method)
        except PathlmError as e: return f"{type(e).__name__}: {e}"
        return "✓"

    def tried_all(check, methods):
        "Try methods on all architectures, print the table, and return what was refused."
        found = {(m, name): attempt(check, name, m) for m in methods for name in CONFIGS}
        refused = {key: message for key, message in found.items() if message != "✓"}
        numbers = {key: f"({i})" for i, key in enumerate(refused, 1)}
        print(" "*24 + "".join(f"{name:>9}" for name in CONFIGS))
        for m in methods: print(f"{m:24}" + "".join(f"{numbers.get((m, name), '✓'):>9}" for name in CONFIGS))
        for key, message in refused.items(): print(f"{numbers[key]} {message}")
        return refused

    # %% ../nbs/57_architectures.ipynb #7271696f
    for name in CONFIGS:
        model = tiny(name)
        where, stack = blocks(model)
        found = [(n.rpartition(".")[2], *effective_weight(m).shape) for n, m in walk(stack[0])]
        kind = "Conv1D" if any(isinstance(m, Conv1D) for m in stack.modules()) else "Linear"
        print(f"{name:8} {where:19} {kind}: " + ", ".join(f"{n} {o}×{i}" for n, o, i in found))

    # %% ../nbs/57_architectures.ipynb #c95e0835
    def assert_sweeps(name):
        model = tiny(name)
        batch, spectra = inputs(model), decompose(model)
        changes = truncations(model, spectra, {n: [4] for n in spectra})
        short = tried(model, lambda: out(model, batch), changes)
        assert len(short) == 1 + len(linears(model)) and torch.equal(short[None], out(model, batch))
        for key in list(changes)[::3]:
            with lent(model, {n: make() for n, make in changes[key].items()}): near(out(model, batch), short[key])

    for name in CONFIGS: assert_sweeps(name)


def test_layers_in_other_forms():
    # %% ../nbs/57_architectures.ipynb #47ac7866
    wide = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    ids = dict(vocab_size=264, bos_token_id=256, eos_token_id=256, pad_token_id=0)
    text = wide | ids | dict(max_position_embeddings=64)
    few = text | dict(num_key_value_heads=2)

    CONFIGS = {
        "Llama": ("LlamaForCausalLM", partial(tf.LlamaConfig, **few)),
        "Qwen2": ("Qwen2ForCausalLM", partial(tf.Qwen2Config, **few)),
        "Mistral": ("MistralForCausalLM", partial(tf.MistralConfig, **few, sliding_window=8)),
        "Phi-3": ("Phi3ForCausalLM", partial(tf.Phi3Config, **few)),
        "OPT": ("OPTForCausalLM", partial(tf.OPTConfig, **text, ffn_dim=64, word_embed_proj_dim=32)),
        "GPT-2": ("GPT2LMHeadModel", partial(tf.GPT2Config, **ids, n_embd=32, n_inner=64, n_layer=2, n_head=4,
                                             n_positions=64)),
        "BERT": ("BertForSequenceClassification", partial(tf.BertConfig, **text, num_labels=4)),
        "ViT": ("ViTForImageClassification", partial(tf.ViTConfig, **wide, image_size=16, patch_size=4, num_labels=4)),
    }

    def tiny(name, seed=0):
        "A random model of two blocks, with biases that are not zero."
        kind, config = CONFIGS[name]
        torch.manual_seed(seed)
        model = getattr(tf, kind)(config()).eval()
        for key, p in model.named_parameters():
            if key.endswith("bias"): torch.nn.init.normal_(p, std=.1)
        return model

    def inputs(model, n=4):
        "A batch of texts of sixteen tokens, or of images."
        draw = torch.Generator().manual_seed(0)
        if model.main_input_name == "pixel_values": return {"pixel_values": torch.randn(n, 3, 16, 16, generator=draw)}
        return {"input_ids": torch.randint(1, 256, (n, 16), generator=draw)}

    @torch.no_grad()
    def out(model, batch):
        "Logits, for each token or for each text or image."
        return model(**batch).logits

    def byte_tokenizer():
        letters = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        found = Tokenizer(models.BPE(letters, []))
        found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return tf.PreTrainedTokenizerFast(tokenizer_object=found, bos_token="<s>")

    # %% ../nbs/57_architectures.ipynb #25048fd5
    def near(a, b, share=1e-4):
        "Equal but for a share of the largest logit."
        assert (a - b).abs().max() <= share*b.abs().max()

    def stored(model, batch):
        "Saved and loaded it has the same layers and gives the same logits, bit for bit."
        with tempfile.TemporaryDirectory() as folder:
            pathlm.save(model, None, folder)
            again, _ = pathlm.load(folder)
        assert type(again) is type(model) and torch.equal(out(again, batch), out(model, batch))
        assert {n: type(m) for n, m in walk(again)} == {n: type(m) for n, m in walk(model)}

    # %% ../nbs/57_architectures.ipynb #c01fdfa8
    def attempt(check, name, method):
        try: check(name, method)
        except PathlmError as e: return f"{type(e).__name__}: {e}"
        return "✓"

    def tried_all(check, methods):
        "Try methods on all architectures, print the table, and return what was refused."
        found = {(m, name): attempt(check, name, m) for m in methods for name in CONFIGS}
        refused = {key: message for key, message in found.items() if message != "✓"}
        numbers = {key: f"({i})" for i, key in enumerate(refused, 1)}
        print(" "*24 + "".join(f"{name:>9}" for name in CONFIGS))
        for m in methods: print(f"{m:24}" + "".join(f"{numbers.get((m, name), '✓'):>9}" for name in CONFIGS))
        for key, message in refused.items(): print(f"{numbers[key]} {message}")
        return refused

    # %% ../nbs/57_architectures.ipynb #289aae82
    def svd(model, batches, output=False):
        prune(model, decompose(model, grams=gram(model, batches) if output else None), rate=.75)

    shifts = partial(shift_add, block=(1, 16))

    def turned(model, batches):
        shifts(model, batches, rotate=0)
        fold_signs(model, batches[0])

    FORMS = {
        "SVD, weight error": ("FactoredLinear", svd),
        "SVD, output error": ("FactoredLinear", partial(svd, output=True)),
        "SVD, block by block": ("FactoredLinear", partial(factorize, rate=.75)),
        "magnitude": ("SparseLinear", partial(sparsify, method="magnitude")),
        "Wanda": ("SparseLinear", partial(sparsify, method="wanda")),
        "SparseGPT": ("SparseLinear", partial(sparsify, method="sparsegpt")),
        "SparseGPT, 2:4": ("SparseLinear", partial(sparsify, method="sparsegpt", pattern="2:4")),
        "RTN": ("GridLinear", partial(quantize, method="rtn", group=16)),
        "GPTQ": ("GridLinear", partial(quantize, method="gptq", group=16)),
        "GPTQ, rotated": ("RotatedLinear", partial(quantize, group=16, rotate=0)),
        "shift-add, weight error": ("ShiftAddLinear", lambda model, batches: shifts(model)),
        "shift-add, output error": ("ShiftAddLinear", shifts),
        "shift-add, rotated": ("RotatedLinear", turned),
    }  # By method: the form, and what brings layers into it
    BETTER = {"SVD, output error": "SVD, weight error", "SVD, block by block": "SVD, weight error",
              "SparseGPT": "magnitude", "GPTQ": "RTN", "shift-add, output error": "shift-add, weight error"}
    lost = {}  # By method and name: by how much the logits change

    def formed(name, method):
        "Bring a model into a form, check what came of it, save and load it, and make it dense again."
        model, (form, change) = tiny(name), FORMS[method]
        batch = inputs(model, 8)
        dense, chosen = out(model, batch), linears(model)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="the inputs of .* do not fill their space")
            change(model, [batch])
        now = out(model, batch)
        assert {type(m).__name__ for m in linears(model).values()} == {form} and linears(model).keys() == chosen.keys()
        lost[method, name] = (now - dense).norm()
        assert 0 < lost[method, name] < dense.norm()
        if "2:4" in method:
            for m in linears(model).values(): assert effective_weight(m).unflatten(1, (-1, 4)).count_nonzero(2).max() <= 2
        stored(model, batch)
        near(out(densify(model), batch), now, 3e-2 if "shift-add" in method else 1e-4)

    # %% ../nbs/57_architectures.ipynb #8bb1d517
    refused = tried_all(formed, FORMS)
    assert not refused
    for better, worse in BETTER.items():
        for name in CONFIGS: assert lost[better, name] < lost[worse, name]


def test_adapters():
    # %% ../nbs/57_architectures.ipynb #47ac7866
    wide = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    ids = dict(vocab_size=264, bos_token_id=256, eos_token_id=256, pad_token_id=0)
    text = wide | ids | dict(max_position_embeddings=64)
    few = text | dict(num_key_value_heads=2)

    CONFIGS = {
        "Llama": ("LlamaForCausalLM", partial(tf.LlamaConfig, **few)),
        "Qwen2": ("Qwen2ForCausalLM", partial(tf.Qwen2Config, **few)),
        "Mistral": ("MistralForCausalLM", partial(tf.MistralConfig, **few, sliding_window=8)),
        "Phi-3": ("Phi3ForCausalLM", partial(tf.Phi3Config, **few)),
        "OPT": ("OPTForCausalLM", partial(tf.OPTConfig, **text, ffn_dim=64, word_embed_proj_dim=32)),
        "GPT-2": ("GPT2LMHeadModel", partial(tf.GPT2Config, **ids, n_embd=32, n_inner=64, n_layer=2, n_head=4,
                                             n_positions=64)),
        "BERT": ("BertForSequenceClassification", partial(tf.BertConfig, **text, num_labels=4)),
        "ViT": ("ViTForImageClassification", partial(tf.ViTConfig, **wide, image_size=16, patch_size=4, num_labels=4)),
    }

    def tiny(name, seed=0):
        "A random model of two blocks, with biases that are not zero."
        kind, config = CONFIGS[name]
        torch.manual_seed(seed)
        model = getattr(tf, kind)(config()).eval()
        for key, p in model.named_parameters():
            if key.endswith("bias"): torch.nn.init.normal_(p, std=.1)
        return model

    def inputs(model, n=4):
        "A batch of texts of sixteen tokens, or of images."
        draw = torch.Generator().manual_seed(0)
        if model.main_input_name == "pixel_values": return {"pixel_values": torch.randn(n, 3, 16, 16, generator=draw)}
        return {"input_ids": torch.randint(1, 256, (n, 16), generator=draw)}

    @torch.no_grad()
    def out(model, batch):
        "Logits, for each token or for each text or image."
        return model(**batch).logits

    def byte_tokenizer():
        letters = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        found = Tokenizer(models.BPE(letters, []))
        found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return tf.PreTrainedTokenizerFast(tokenizer_object=found, bos_token="<s>")

    # %% ../nbs/57_architectures.ipynb #25048fd5
    def near(a, b, share=1e-4):
        "Equal but for a share of the largest logit."
        assert (a - b).abs().max() <= share*b.abs().max()

    def stored(model, batch):
        "Saved and loaded it has the same layers and gives the same logits, bit for bit."
        with tempfile.TemporaryDirectory() as folder:
            pathlm.save(model, None, folder)
            again, _ = pathlm.load(folder)
        assert type(again) is type(model) and torch.equal(out(again, batch), out(model, batch))
        assert {n: type(m) for n, m in walk(again)} == {n: type(m) for n, m in walk(model)}

    # %% ../nbs/57_architectures.ipynb #c01fdfa8
    def attempt(check, name, method):
        try: check(name, method)
        except PathlmError as e: return f"{type(e).__name__}: {e}"
        return "✓"

    def tried_all(check, methods):
        "Try methods on all architectures, print the table, and return what was refused."
        found = {(m, name): attempt(check, name, m) for m in methods for name in CONFIGS}
        refused = {key: message for key, message in found.items() if message != "✓"}
        numbers = {key: f"({i})" for i, key in enumerate(refused, 1)}
        print(" "*24 + "".join(f"{name:>9}" for name in CONFIGS))
        for m in methods: print(f"{m:24}" + "".join(f"{numbers.get((m, name), '✓'):>9}" for name in CONFIGS))
        for key, message in refused.items(): print(f"{numbers[key]} {message}")
        return refused

    # %% ../nbs/57_architectures.ipynb #cf09aee2
    def loss(model, batch):
        "Next tokens, or the classes 0, 1, 2, 3."
        logits = model(**batch).logits
        if logits.ndim == 2: return F.cross_entropy(logits, torch.arange(4))
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten())

    def sparse(model, batch): sparsify(model, [batch])

    def rounded(model, batch):
        sparse(model, batch)
        rounding(model, group=16)

    ADAPTERS = {
        "LoRA": (None, lambda model: LoRA(r=4, learning_rate=1e-2), None),
        "elastic LoRA": (None, lambda model: LoRA(**shared_ranks(model, (4, 2)), learning_rate=1e-2), None),
        "VB-LoRA": (None, lambda model: VBLoRA(r=2, num_vectors=16, vector_length=16, learning_rate_vector_bank=.1,
                                               save_only_topk_weights=False), None),
        "SVFT": (None, lambda model: SVFT(pattern="banded"), None),
        "SparsePEFT": (sparse, lambda model: SparsePEFT(r=4, learning_rate=1e-2), "SparseLinear"),
        "QA-SparsePEFT": (rounded, lambda model: SparsePEFT(r=4, learning_rate=1e-2), "GridLinear"),
    }  # By method: what is done before, the adapter, and the form that merging gives; None is nothing, and dense

    def trained(name, method):
        "Attach, train, save, detach, load, merge, unmerge and bake an adapter."
        model, (before, config, form) = tiny(name), ADAPTERS[method]
        batch = inputs(model)
        if before: before(model, batch)
        base = out(model, batch)
        torch.manual_seed(0)
        adapter = attach(model, config(model))
        backward = elastic_backward if getattr(adapter, "by_group", None) else plain_backward
        log = adapt(model, [batch], 6, loss=loss, backward=backward)
        assert min(log["train"][-2:]) < log["train"][0]
        if backward is elastic_backward: set_ranks(model, smallest(rank_space(model)))
        now = out(model, batch)
        with tempfile.TemporaryDirectory() as folder:
            save_adapter(model, folder)
            assert torch.equal(out(detach(model), batch), base)
            load_adapter(model, folder)
        assert torch.equal(out(model, batch), now) and not torch.equal(now, base)
        near(out(merge(model), batch), now)
        assert torch.equal(out(unmerge(model), batch), now)
        bake(model)
        assert {type(m).__name__ for m in linears(model).values()} <= ({form} if form else {"Linear", "Conv1D"})
        if form: stored(model, batch)

    # %% ../nbs/57_architectures.ipynb #b56e710b
    refused = tried_all(trained, ADAPTERS)
    assert not refused


def test_what_a_model_does_with_a_layer():
    # %% ../nbs/57_architectures.ipynb #47ac7866
    wide = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    ids = dict(vocab_size=264, bos_token_id=256, eos_token_id=256, pad_token_id=0)
    text = wide | ids | dict(max_position_embeddings=64)
    few = text | dict(num_key_value_heads=2)

    CONFIGS = {
        "Llama": ("LlamaForCausalLM", partial(tf.LlamaConfig, **few)),
        "Qwen2": ("Qwen2ForCausalLM", partial(tf.Qwen2Config, **few)),
        "Mistral": ("MistralForCausalLM", partial(tf.MistralConfig, **few, sliding_window=8)),
        "Phi-3": ("Phi3ForCausalLM", partial(tf.Phi3Config, **few)),
        "OPT": ("OPTForCausalLM", partial(tf.OPTConfig, **text, ffn_dim=64, word_embed_proj_dim=32)),
        "GPT-2": ("GPT2LMHeadModel", partial(tf.GPT2Config, **ids, n_embd=32, n_inner=64, n_layer=2, n_head=4,
                                             n_positions=64)),
        "BERT": ("BertForSequenceClassification", partial(tf.BertConfig, **text, num_labels=4)),
        "ViT": ("ViTForImageClassification", partial(tf.ViTConfig, **wide, image_size=16, patch_size=4, num_labels=4)),
    }

    def tiny(name, seed=0):
        "A random model of two blocks, with biases that are not zero."
        kind, config = CONFIGS[name]
        torch.manual_seed(seed)
        model = getattr(tf, kind)(config()).eval()
        for key, p in model.named_parameters():
            if key.endswith("bias"): torch.nn.init.normal_(p, std=.1)
        return model

    def inputs(model, n=4):
        "A batch of texts of sixteen tokens, or of images."
        draw = torch.Generator().manual_seed(0)
        if model.main_input_name == "pixel_values": return {"pixel_values": torch.randn(n, 3, 16, 16, generator=draw)}
        return {"input_ids": torch.randint(1, 256, (n, 16), generator=draw)}

    @torch.no_grad()
    def out(model, batch):
        "Logits, for each token or for each text or image."
        return model(**batch).logits

    def byte_tokenizer():
        letters = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        found = Tokenizer(models.BPE(letters, []))
        found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return tf.PreTrainedTokenizerFast(tokenizer_object=found, bos_token="<s>")

    # %% ../nbs/57_architectures.ipynb #25048fd5
    def near(a, b, share=1e-4):
        "Equal but for a share of the largest logit."
        assert (a - b).abs().max() <= share*b.abs().max()

    def stored(model, batch):
        "Saved and loaded it has the same layers and gives the same logits, bit for bit."
        with tempfile.TemporaryDirectory() as folder:
            pathlm.save(model, None, folder)
            again, _ = pathlm.load(folder)
        assert type(again) is type(model) and torch.equal(out(again, batch), out(model, batch))
        assert {n: type(m) for n, m in walk(again)} == {n: type(m) for n, m in walk(model)}

    # %% ../nbs/57_architectures.ipynb #c01fdfa8
    def attempt(check, name, method):
        try: check(name, method)
        except PathlmError as e: return f"{type(e).__name__}: {e}"
        return "✓"

    def tried_all(check, methods):
        "Try methods on all architectures, print the table, and return what was refused."
        found = {(m, name): attempt(check, name, m) for m in methods for name in CONFIGS}
        refused = {key: message for key, message in found.items() if message != "✓"}
        numbers = {key: f"({i})" for i, key in enumerate(refused, 1)}
        print(" "*24 + "".join(f"{name:>9}" for name in CONFIGS))
        for m in methods: print(f"{m:24}" + "".join(f"{numbers.get((m, name), '✓'):>9}" for name in CONFIGS))
        for key, message in refused.items(): print(f"{numbers[key]} {message}")
        return refused

    # %% ../nbs/57_architectures.ipynb #271b8331
    def assert_goes_around(model, method, batch):
        "Train an adapter on a model that is not among the eight, and make it dense."
        base, adapter = out(model, batch), attach(model, method)
        adapt(model, [batch], 4, loss=lambda model, batch: model(**batch).logits.square().mean())
        now = out(model, batch)
        assert all(part.delta().any() for part in adapter.parts) and not torch.equal(now, base)
        near(out(densify(model), batch), now)

    torch.manual_seed(0)
    batch = {"input_ids": torch.arange(1, 17)[None]}
    config = tf.MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=8, pad_token_id=0)
    assert_goes_around(model := tf.MambaForCausalLM(config).eval(), LoRA(r=2, target_modules="dt_proj"), batch)
    attach(unmerge(model), LoRA(r=2, target_modules="dt_proj"), "b")
    with mixed(model, ["b"]): message = attempt(lambda *_: out(model, batch), "Mamba", "mixed")
    assert "the model reads the weight of Linear(in_features=2, out_features=64" in message

    def halved(model, batch): return sparsify(model, method="magnitude")

    def packed(model, batch): return quantize(model, method="rtn", group=16)

    for before, method in (None, SVFT()), (packed, SVFT()), (packed, LoRA(r=2)), (halved, SparsePEFT(r=2)):
        for bias in False, True:
            config = tf.FalconConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, bias=bias)
            model = tf.FalconForCausalLM(config).eval()
            if before: before(model, batch)
            assert_goes_around(model, method, batch)

    config = tf.T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0)
    model, batch = tf.T5ForConditionalGeneration(config).eval(), batch | {"decoder_input_ids": torch.arange(1, 9)[None]}
    dense = out(model, batch)
    prune(model, decompose(model), rate=.75)
    factored = out(model, batch)
    assert not torch.equal(factored, dense)
    reads, wo = [], [m for n, m in walk(model) if n.endswith("wo")]
    with patch.object(FactoredLinear, "weight", property(lambda self: reads.append(self) or stored_weight(self))):
        assert torch.equal(out(model, batch), factored) and len(wo) == 4 and len(reads) == 2*len(wo)
    near(out(densify(model), batch), factored)


def test_modules_and_measures():
    # %% ../nbs/57_architectures.ipynb #47ac7866
    wide = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    ids = dict(vocab_size=264, bos_token_id=256, eos_token_id=256, pad_token_id=0)
    text = wide | ids | dict(max_position_embeddings=64)
    few = text | dict(num_key_value_heads=2)

    CONFIGS = {
        "Llama": ("LlamaForCausalLM", partial(tf.LlamaConfig, **few)),
        "Qwen2": ("Qwen2ForCausalLM", partial(tf.Qwen2Config, **few)),
        "Mistral": ("MistralForCausalLM", partial(tf.MistralConfig, **few, sliding_window=8)),
        "Phi-3": ("Phi3ForCausalLM", partial(tf.Phi3Config, **few)),
        "OPT": ("OPTForCausalLM", partial(tf.OPTConfig, **text, ffn_dim=64, word_embed_proj_dim=32)),
        "GPT-2": ("GPT2LMHeadModel", partial(tf.GPT2Config, **ids, n_embd=32, n_inner=64, n_layer=2, n_head=4,
                                             n_positions=64)),
        "BERT": ("BertForSequenceClassification", partial(tf.BertConfig, **text, num_labels=4)),
        "ViT": ("ViTForImageClassification", partial(tf.ViTConfig, **wide, image_size=16, patch_size=4, num_labels=4)),
    }

    def tiny(name, seed=0):
        "A random model of two blocks, with biases that are not zero."
        kind, config = CONFIGS[name]
        torch.manual_seed(seed)
        model = getattr(tf, kind)(config()).eval()
        for key, p in model.named_parameters():
            if key.endswith("bias"): torch.nn.init.normal_(p, std=.1)
        return model

    def inputs(model, n=4):
        "A batch of texts of sixteen tokens, or of images."
        draw = torch.Generator().manual_seed(0)
        if model.main_input_name == "pixel_values": return {"pixel_values": torch.randn(n, 3, 16, 16, generator=draw)}
        return {"input_ids": torch.randint(1, 256, (n, 16), generator=draw)}

    @torch.no_grad()
    def out(model, batch):
        "Logits, for each token or for each text or image."
        return model(**batch).logits

    def byte_tokenizer():
        letters = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        found = Tokenizer(models.BPE(letters, []))
        found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return tf.PreTrainedTokenizerFast(tokenizer_object=found, bos_token="<s>")

    # %% ../nbs/57_architectures.ipynb #25048fd5
    def near(a, b, share=1e-4):
        "Equal but for a share of the largest logit."
        assert (a - b).abs().max() <= share*b.abs().max()

    def stored(model, batch):
        "Saved and loaded it has the same layers and gives the same logits, bit for bit."
        with tempfile.TemporaryDirectory() as folder:
            pathlm.save(model, None, folder)
            again, _ = pathlm.load(folder)
        assert type(again) is type(model) and torch.equal(out(again, batch), out(model, batch))
        assert {n: type(m) for n, m in walk(again)} == {n: type(m) for n, m in walk(model)}

    # %% ../nbs/57_architectures.ipynb #c01fdfa8
    def attempt(check, name, method):
        try: check(name, method)
        except PathlmError as e: return f"{type(e).__name__}: {e}"
        return "✓"

    def tried_all(check, methods):
        "Try methods on all architectures, print the table, and return what was refused."
        found = {(m, name): attempt(check, name, m) for m in methods for name in CONFIGS}
        refused = {key: message for key, message in found.items() if message != "✓"}
        numbers = {key: f"({i})" for i, key in enumerate(refused, 1)}
        print(" "*24 + "".join(f"{name:>9}" for name in CONFIGS))
        for m in methods: print(f"{m:24}" + "".join(f"{numbers.get((m, name), '✓'):>9}" for name in CONFIGS))
        for key, message in refused.items(): print(f"{numbers[key]} {message}")
        return refused

    # %% ../nbs/57_architectures.ipynb #f9f3159f
    ATTENTION = {"Phi-3": ["qkv_proj", "o_proj"], "OPT": ["q_proj", "k_proj", "v_proj", "out_proj"],
                 "GPT-2": ["c_attn", "c_proj"], "BERT": ["query", "key", "value", "dense"]}

    def clipped(name):
        "Clip attention and MLP of a block, and both find all layers of the block between them."
        model = tiny(name)
        batch, last = inputs(model), lambda layers: [n.rpartition(".")[2] for n in layers]
        parts = matrices(model, ("attn", "mlp"), partial(feed, model, batch))
        found = {where: [m.layer for m in own] for where, own in parts.items()}
        assert last(found[0, "attn"]) == ATTENTION.get(name, ["q_proj", "k_proj", "v_proj", "o_proj"])
        for i, block in enumerate(blocks(model)[1]):
            own = {f"{blocks(model)[0]}.{i}.{n}" for n, _ in walk(block)}
            assert own == {*found[i, "attn"], *found[i, "mlp"]} and len(own) == len(found[i, "attn"] + found[i, "mlp"])
        for clip in clips_of(parts, "top", [.75]):
            with lent(model, {n: make() for n, make in change_of(model, parts, clip).items()}): now = out(model, batch)
            assert now.isfinite().all() and not torch.equal(now, out(model, batch))

    def told_apart(name):
        "Queries, keys, values and output of the first block, by rows where they share a matrix."
        model = tiny(name)
        found = places(model, MODULES, partial(feed, model, inputs(model)), layers=[0])
        rows = {role: {n.rpartition(".")[2]: r if r is None else (int(r[0]), int(r[-1])) for n, r in found[0, role].items()}
                for role in "qkvo"}
        if name == "Phi-3": assert [rows[r]["qkv_proj"] for r in "qkv"] == [(0, 31), (32, 47), (48, 63)]
        elif name == "GPT-2": assert [rows[r]["c_attn"] for r in "qkv"] == [(0, 31), (32, 63), (64, 95)]
        else: assert [*rows["q"], *rows["k"], *rows["v"], *rows["o"]] == ATTENTION.get(name, ["q_proj", "k_proj", "v_proj",
                                                                                            "o_proj"])

    def narrowed(name):
        "Halve the MLPs, for a while and for good."
        model = tiny(name)
        batch = inputs(model)
        attach_widths(model)
        set_widths(model, {g: choices[-1] for g, choices in width_space(model).items()})
        now = out(model, batch)
        near(out(extract_widths(model), batch), now)
        assert {m.weight.numel() for n, m in walk(model) if n.endswith(("down_proj", "fc2", "mlp.c_proj"))} <= {32*32}
        stored(model, batch)

    def measured(name):
        "The loss on a text, which `evaluate` must find as transformers does."
        model, words = tiny(name), "a text of 32 letters for nobody."
        tokenizer = byte_tokenizer()
        row = evaluate(model, tokenizer, [words], window=32, stride=32)
        tokens = torch.tensor([[256, *tokenizer(words)["input_ids"]]])
        with torch.no_grad(): expected = model(input_ids=tokens, labels=tokens).loss.item()
        assert abs(row["loss"] - expected) < 1e-4 and row["tokens"] == 32

    OTHERS = {"clipping attn and mlp": clipped, "q, k, v and o": told_apart, "elastic widths": narrowed,
              "perplexity": measured}

    # %% ../nbs/57_architectures.ipynb #1aeb28ff
    refused = tried_all(lambda name, method: OTHERS[method](name), OTHERS)
    assert refused.keys() == {("elastic widths", "Phi-3"), ("perplexity", "BERT"), ("perplexity", "ViT")}
    assert "has no MLP of layers (n, d)" in refused["elastic widths", "Phi-3"]
    assert all(message.startswith("SettingError") for (method, _), message in refused.items() if method == "perplexity")


def test_modules_and_measures_2():
    # %% ../nbs/57_architectures.ipynb #47ac7866
    wide = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    ids = dict(vocab_size=264, bos_token_id=256, eos_token_id=256, pad_token_id=0)
    text = wide | ids | dict(max_position_embeddings=64)
    few = text | dict(num_key_value_heads=2)

    CONFIGS = {
        "Llama": ("LlamaForCausalLM", partial(tf.LlamaConfig, **few)),
        "Qwen2": ("Qwen2ForCausalLM", partial(tf.Qwen2Config, **few)),
        "Mistral": ("MistralForCausalLM", partial(tf.MistralConfig, **few, sliding_window=8)),
        "Phi-3": ("Phi3ForCausalLM", partial(tf.Phi3Config, **few)),
        "OPT": ("OPTForCausalLM", partial(tf.OPTConfig, **text, ffn_dim=64, word_embed_proj_dim=32)),
        "GPT-2": ("GPT2LMHeadModel", partial(tf.GPT2Config, **ids, n_embd=32, n_inner=64, n_layer=2, n_head=4,
                                             n_positions=64)),
        "BERT": ("BertForSequenceClassification", partial(tf.BertConfig, **text, num_labels=4)),
        "ViT": ("ViTForImageClassification", partial(tf.ViTConfig, **wide, image_size=16, patch_size=4, num_labels=4)),
    }

    def tiny(name, seed=0):
        "A random model of two blocks, with biases that are not zero."
        kind, config = CONFIGS[name]
        torch.manual_seed(seed)
        model = getattr(tf, kind)(config()).eval()
        for key, p in model.named_parameters():
            if key.endswith("bias"): torch.nn.init.normal_(p, std=.1)
        return model

    def inputs(model, n=4):
        "A batch of texts of sixteen tokens, or of images."
        draw = torch.Generator().manual_seed(0)
        if model.main_input_name == "pixel_values": return {"pixel_values": torch.randn(n, 3, 16, 16, generator=draw)}
        return {"input_ids": torch.randint(1, 256, (n, 16), generator=draw)}

    @torch.no_grad()
    def out(model, batch):
        "Logits, for each token or for each text or image."
        return model(**batch).logits

    def byte_tokenizer():
        letters = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        found = Tokenizer(models.BPE(letters, []))
        found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return tf.PreTrainedTokenizerFast(tokenizer_object=found, bos_token="<s>")

    # %% ../nbs/57_architectures.ipynb #25048fd5
    def near(a, b, share=1e-4):
        "Equal but for a share of the largest logit."
        assert (a - b).abs().max() <= share*b.abs().max()

    def stored(model, batch):
        "Saved and loaded it has the same layers and gives the same logits, bit for bit."
        with tempfile.TemporaryDirectory() as folder:
            pathlm.save(model, None, folder)
            again, _ = pathlm.load(folder)
        assert type(again) is type(model) and torch.equal(out(again, batch), out(model, batch))
        assert {n: type(m) for n, m in walk(again)} == {n: type(m) for n, m in walk(model)}

    # %% ../nbs/57_architectures.ipynb #c01fdfa8
    def attempt(check, name, method):
        try: check(name, method)
        except PathlmError as e: return f"{type(e).__name__}: {e}"
        return "✓"

    def tried_all(check, methods):
        "Try methods on all architectures, print the table, and return what was refused."
        found = {(m, name): attempt(check, name, m) for m in methods for name in CONFIGS}
        refused = {key: message for key, message in found.items() if message != "✓"}
        numbers = {key: f"({i})" for i, key in enumerate(refused, 1)}
        print(" "*24 + "".join(f"{name:>9}" for name in CONFIGS))
        for m in methods: print(f"{m:24}" + "".join(f"{numbers.get((m, name), '✓'):>9}" for name in CONFIGS))
        for key, message in refused.items(): print(f"{numbers[key]} {message}")
        return refused

    # %% ../nbs/57_architectures.ipynb #f9f3159f
    ATTENTION = {"Phi-3": ["qkv_proj", "o_proj"], "OPT": ["q_proj", "k_proj", "v_proj", "out_proj"],
                 "GPT-2": ["c_attn", "c_proj"], "BERT": ["query", "key", "value", "dense"]}

    def clipped(name):
        "Clip attention and MLP of a block, and both find all layers of the block between them."
        model = tiny(name)
        batch, last = inputs(model), lambda layers: [n.rpartition(".")[2] for n in layers]
        parts = matrices(model, ("attn", "mlp"), partial(feed, model, batch))
        found = {where: [m.layer for m in own] for where, own in parts.items()}
        assert last(found[0, "attn"]) == ATTENTION.get(name, ["q_proj", "k_proj", "v_proj", "o_proj"])
        for i, block in enumerate(blocks(model)[1]):
            own = {f"{blocks(model)[0]}.{i}.{n}" for n, _ in walk(block)}
            assert own == {*found[i, "attn"], *found[i, "mlp"]} and len(own) == len(found[i, "attn"] + found[i, "mlp"])
        for clip in clips_of(parts, "top", [.75]):
            with lent(model, {n: make() for n, make in change_of(model, parts, clip).items()}): now = out(model, batch)
            assert now.isfinite().all() and not torch.equal(now, out(model, batch))

    def told_apart(name):
        "Queries, keys, values and output of the first block, by rows where they share a matrix."
        model = tiny(name)
        found = places(model, MODULES, partial(feed, model, inputs(model)), layers=[0])
        rows = {role: {n.rpartition(".")[2]: r if r is None else (int(r[0]), int(r[-1])) for n, r in found[0, role].items()}
                for role in "qkvo"}
        if name == "Phi-3": assert [rows[r]["qkv_proj"] for r in "qkv"] == [(0, 31), (32, 47), (48, 63)]
        elif name == "GPT-2": assert [rows[r]["c_attn"] for r in "qkv"] == [(0, 31), (32, 63), (64, 95)]
        else: assert [*rows["q"], *rows["k"], *rows["v"], *rows["o"]] == ATTENTION.get(name, ["q_proj", "k_proj", "v_proj",
                                                                                            "o_proj"])

    def narrowed(name):
        "Halve the MLPs, for a while and for good."
        model = tiny(name)
        batch = inputs(model)
        attach_widths(model)
        set_widths(model, {g: choices[-1] for g, choices in width_space(model).items()})
        now = out(model, batch)
        near(out(extract_widths(model), batch), now)
        assert {m.weight.numel() for n, m in walk(model) if n.endswith(("down_proj", "fc2", "mlp.c_proj"))} <= {32*32}
        stored(model, batch)

    def measured(name):
        "The loss on a text, which `evaluate` must find as transformers does."
        model, words = tiny(name), "a text of 32 letters for nobody."
        tokenizer = byte_tokenizer()
        row = evaluate(model, tokenizer, [words], window=32, stride=32)
        tokens = torch.tensor([[256, *tokenizer(words)["input_ids"]]])
        with torch.no_grad(): expected = model(input_ids=tokens, labels=tokens).loss.item()
        assert abs(row["loss"] - expected) < 1e-4 and row["tokens"] == 32

    OTHERS = {"clipping attn and mlp": clipped, "q, k, v and o": told_apart, "elastic widths": narrowed,
              "perplexity": measured}

    # %% ../nbs/57_architectures.ipynb #37190750
    torch.manual_seed(0)
    config = tf.SwinConfig(image_size=32, patch_size=4, embed_dim=16, depths=[2, 2], num_heads=[2, 2], window_size=4)
    model, pixels = tf.SwinForImageClassification(config).eval(), torch.randn(2, 3, 32, 32)
    layers = places(model, ("attn", "mlp"), lambda: model(pixel_values=pixels))
    for (_, module), place in layers.items(): assert all((".attention." in n) == (module == "attn") for n in place)
    assert len(layers) == 4 and sum(map(len, layers.values())) == 25


def test_names_and_folders():
    # %% ../nbs/57_architectures.ipynb #47ac7866
    wide = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    ids = dict(vocab_size=264, bos_token_id=256, eos_token_id=256, pad_token_id=0)
    text = wide | ids | dict(max_position_embeddings=64)
    few = text | dict(num_key_value_heads=2)

    CONFIGS = {
        "Llama": ("LlamaForCausalLM", partial(tf.LlamaConfig, **few)),
        "Qwen2": ("Qwen2ForCausalLM", partial(tf.Qwen2Config, **few)),
        "Mistral": ("MistralForCausalLM", partial(tf.MistralConfig, **few, sliding_window=8)),
        "Phi-3": ("Phi3ForCausalLM", partial(tf.Phi3Config, **few)),
        "OPT": ("OPTForCausalLM", partial(tf.OPTConfig, **text, ffn_dim=64, word_embed_proj_dim=32)),
        "GPT-2": ("GPT2LMHeadModel", partial(tf.GPT2Config, **ids, n_embd=32, n_inner=64, n_layer=2, n_head=4,
                                             n_positions=64)),
        "BERT": ("BertForSequenceClassification", partial(tf.BertConfig, **text, num_labels=4)),
        "ViT": ("ViTForImageClassification", partial(tf.ViTConfig, **wide, image_size=16, patch_size=4, num_labels=4)),
    }

    def tiny(name, seed=0):
        "A random model of two blocks, with biases that are not zero."
        kind, config = CONFIGS[name]
        torch.manual_seed(seed)
        model = getattr(tf, kind)(config()).eval()
        for key, p in model.named_parameters():
            if key.endswith("bias"): torch.nn.init.normal_(p, std=.1)
        return model

    def inputs(model, n=4):
        "A batch of texts of sixteen tokens, or of images."
        draw = torch.Generator().manual_seed(0)
        if model.main_input_name == "pixel_values": return {"pixel_values": torch.randn(n, 3, 16, 16, generator=draw)}
        return {"input_ids": torch.randint(1, 256, (n, 16), generator=draw)}

    @torch.no_grad()
    def out(model, batch):
        "Logits, for each token or for each text or image."
        return model(**batch).logits

    def byte_tokenizer():
        letters = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        found = Tokenizer(models.BPE(letters, []))
        found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return tf.PreTrainedTokenizerFast(tokenizer_object=found, bos_token="<s>")

    # %% ../nbs/57_architectures.ipynb #25048fd5
    def near(a, b, share=1e-4):
        "Equal but for a share of the largest logit."
        assert (a - b).abs().max() <= share*b.abs().max()

    def stored(model, batch):
        "Saved and loaded it has the same layers and gives the same logits, bit for bit."
        with tempfile.TemporaryDirectory() as folder:
            pathlm.save(model, None, folder)
            again, _ = pathlm.load(folder)
        assert type(again) is type(model) and torch.equal(out(again, batch), out(model, batch))
        assert {n: type(m) for n, m in walk(again)} == {n: type(m) for n, m in walk(model)}

    # %% ../nbs/57_architectures.ipynb #c01fdfa8
    def attempt(check, name, method):
        try: check(name, method)
        except PathlmError as e: return f"{type(e).__name__}: {e}"
        return "✓"

    def tried_all(check, methods):
        "Try methods on all architectures, print the table, and return what was refused."
        found = {(m, name): attempt(check, name, m) for m in methods for name in CONFIGS}
        refused = {key: message for key, message in found.items() if message != "✓"}
        numbers = {key: f"({i})" for i, key in enumerate(refused, 1)}
        print(" "*24 + "".join(f"{name:>9}" for name in CONFIGS))
        for m in methods: print(f"{m:24}" + "".join(f"{numbers.get((m, name), '✓'):>9}" for name in CONFIGS))
        for key, message in refused.items(): print(f"{numbers[key]} {message}")
        return refused

    # %% ../nbs/57_architectures.ipynb #93230640
    def written(model, folder):
        "Write a model and a tokenizer as transformers does."
        model.save_pretrained(folder, max_shard_size="20KB")
        if model.main_input_name == "input_ids": byte_tokenizer().save_pretrained(folder)
        assert len([f for f in os.listdir(folder) if re.fullmatch(r"model-\d+-of-\d+\.safetensors", f)]) > 2

    # %% ../nbs/57_architectures.ipynb #1e27b0be
    def assert_comes_from_folder(name):
        "Load what transformers wrote, and change it in memory and block by block."
        model = tiny(name)
        batch = inputs(model, 8)
        for change in partial(quantize, method="rtn", group=16), partial(factorize, rate=.75, batches=[batch]):
            with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="the inputs of .* do not fill their space")
                if name == "ViT": pathlm.save(model, None, folder)
                else: written(model, folder)
                own, _ = pathlm.load(folder)
                assert type(own) is type(model) and torch.equal(out(own, batch), out(model, batch))
                change(own)
                again, tokenizer = pathlm.load(stream(folder, f"{folder}/changed", change))
                plain = getattr(tf, CONFIGS[name][0]).from_pretrained(f"{folder}/changed").eval()
            for other in again, plain: assert torch.equal(out(other, batch), out(own, batch))
            assert {n: type(m) for n, m in walk(again)} == {n: type(m) for n, m in walk(own)}
            assert tokenizer is None if name == "ViT" else tokenizer("abc")["input_ids"] == [64, 65, 66]

    for name in CONFIGS: assert_comes_from_folder(name)


def test_names_and_folders_2():
    # %% ../nbs/57_architectures.ipynb #47ac7866
    wide = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    ids = dict(vocab_size=264, bos_token_id=256, eos_token_id=256, pad_token_id=0)
    text = wide | ids | dict(max_position_embeddings=64)
    few = text | dict(num_key_value_heads=2)

    CONFIGS = {
        "Llama": ("LlamaForCausalLM", partial(tf.LlamaConfig, **few)),
        "Qwen2": ("Qwen2ForCausalLM", partial(tf.Qwen2Config, **few)),
        "Mistral": ("MistralForCausalLM", partial(tf.MistralConfig, **few, sliding_window=8)),
        "Phi-3": ("Phi3ForCausalLM", partial(tf.Phi3Config, **few)),
        "OPT": ("OPTForCausalLM", partial(tf.OPTConfig, **text, ffn_dim=64, word_embed_proj_dim=32)),
        "GPT-2": ("GPT2LMHeadModel", partial(tf.GPT2Config, **ids, n_embd=32, n_inner=64, n_layer=2, n_head=4,
                                             n_positions=64)),
        "BERT": ("BertForSequenceClassification", partial(tf.BertConfig, **text, num_labels=4)),
        "ViT": ("ViTForImageClassification", partial(tf.ViTConfig, **wide, image_size=16, patch_size=4, num_labels=4)),
    }

    def tiny(name, seed=0):
        "A random model of two blocks, with biases that are not zero."
        kind, config = CONFIGS[name]
        torch.manual_seed(seed)
        model = getattr(tf, kind)(config()).eval()
        for key, p in model.named_parameters():
            if key.endswith("bias"): torch.nn.init.normal_(p, std=.1)
        return model

    def inputs(model, n=4):
        "A batch of texts of sixteen tokens, or of images."
        draw = torch.Generator().manual_seed(0)
        if model.main_input_name == "pixel_values": return {"pixel_values": torch.randn(n, 3, 16, 16, generator=draw)}
        return {"input_ids": torch.randint(1, 256, (n, 16), generator=draw)}

    @torch.no_grad()
    def out(model, batch):
        "Logits, for each token or for each text or image."
        return model(**batch).logits

    def byte_tokenizer():
        letters = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        found = Tokenizer(models.BPE(letters, []))
        found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return tf.PreTrainedTokenizerFast(tokenizer_object=found, bos_token="<s>")

    # %% ../nbs/57_architectures.ipynb #25048fd5
    def near(a, b, share=1e-4):
        "Equal but for a share of the largest logit."
        assert (a - b).abs().max() <= share*b.abs().max()

    def stored(model, batch):
        "Saved and loaded it has the same layers and gives the same logits, bit for bit."
        with tempfile.TemporaryDirectory() as folder:
            pathlm.save(model, None, folder)
            again, _ = pathlm.load(folder)
        assert type(again) is type(model) and torch.equal(out(again, batch), out(model, batch))
        assert {n: type(m) for n, m in walk(again)} == {n: type(m) for n, m in walk(model)}

    # %% ../nbs/57_architectures.ipynb #c01fdfa8
    def attempt(check, name, method):
        try: check(name, method)
        except PathlmError as e: return f"{type(e).__name__}: {e}"
        return "✓"

    def tried_all(check, methods):
        "Try methods on all architectures, print the table, and return what was refused."
        found = {(m, name): attempt(check, name, m) for m in methods for name in CONFIGS}
        refused = {key: message for key, message in found.items() if message != "✓"}
        numbers = {key: f"({i})" for i, key in enumerate(refused, 1)}
        print(" "*24 + "".join(f"{name:>9}" for name in CONFIGS))
        for m in methods: print(f"{m:24}" + "".join(f"{numbers.get((m, name), '✓'):>9}" for name in CONFIGS))
        for key, message in refused.items(): print(f"{numbers[key]} {message}")
        return refused

    # %% ../nbs/57_architectures.ipynb #93230640
    def written(model, folder):
        "Write a model and a tokenizer as transformers does."
        model.save_pretrained(folder, max_shard_size="20KB")
        if model.main_input_name == "input_ids": byte_tokenizer().save_pretrained(folder)
        assert len([f for f in os.listdir(folder) if re.fullmatch(r"model-\d+-of-\d+\.safetensors", f)]) > 2

    # %% ../nbs/57_architectures.ipynb #59221691
    model = tiny("ViT")
    with tempfile.TemporaryDirectory() as folder:
        written(model, folder)
        assert torch.equal(out(pathlm.load(folder)[0], inputs(model)), out(model, inputs(model)))
        try: stream(folder, f"{folder}/changed", partial(quantize, method="rtn", group=16))
        except CheckpointError as e: assert "does not fit its architecture" in str(e)
        else: raise AssertionError("names that are not those of the model went through")


def test_names_and_folders_3():
    # %% ../nbs/57_architectures.ipynb #47ac7866
    wide = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    ids = dict(vocab_size=264, bos_token_id=256, eos_token_id=256, pad_token_id=0)
    text = wide | ids | dict(max_position_embeddings=64)
    few = text | dict(num_key_value_heads=2)

    CONFIGS = {
        "Llama": ("LlamaForCausalLM", partial(tf.LlamaConfig, **few)),
        "Qwen2": ("Qwen2ForCausalLM", partial(tf.Qwen2Config, **few)),
        "Mistral": ("MistralForCausalLM", partial(tf.MistralConfig, **few, sliding_window=8)),
        "Phi-3": ("Phi3ForCausalLM", partial(tf.Phi3Config, **few)),
        "OPT": ("OPTForCausalLM", partial(tf.OPTConfig, **text, ffn_dim=64, word_embed_proj_dim=32)),
        "GPT-2": ("GPT2LMHeadModel", partial(tf.GPT2Config, **ids, n_embd=32, n_inner=64, n_layer=2, n_head=4,
                                             n_positions=64)),
        "BERT": ("BertForSequenceClassification", partial(tf.BertConfig, **text, num_labels=4)),
        "ViT": ("ViTForImageClassification", partial(tf.ViTConfig, **wide, image_size=16, patch_size=4, num_labels=4)),
    }

    def tiny(name, seed=0):
        "A random model of two blocks, with biases that are not zero."
        kind, config = CONFIGS[name]
        torch.manual_seed(seed)
        model = getattr(tf, kind)(config()).eval()
        for key, p in model.named_parameters():
            if key.endswith("bias"): torch.nn.init.normal_(p, std=.1)
        return model

    def inputs(model, n=4):
        "A batch of texts of sixteen tokens, or of images."
        draw = torch.Generator().manual_seed(0)
        if model.main_input_name == "pixel_values": return {"pixel_values": torch.randn(n, 3, 16, 16, generator=draw)}
        return {"input_ids": torch.randint(1, 256, (n, 16), generator=draw)}

    @torch.no_grad()
    def out(model, batch):
        "Logits, for each token or for each text or image."
        return model(**batch).logits

    def byte_tokenizer():
        letters = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        found = Tokenizer(models.BPE(letters, []))
        found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return tf.PreTrainedTokenizerFast(tokenizer_object=found, bos_token="<s>")

    # %% ../nbs/57_architectures.ipynb #25048fd5
    def near(a, b, share=1e-4):
        "Equal but for a share of the largest logit."
        assert (a - b).abs().max() <= share*b.abs().max()

    def stored(model, batch):
        "Saved and loaded it has the same layers and gives the same logits, bit for bit."
        with tempfile.TemporaryDirectory() as folder:
            pathlm.save(model, None, folder)
            again, _ = pathlm.load(folder)
        assert type(again) is type(model) and torch.equal(out(again, batch), out(model, batch))
        assert {n: type(m) for n, m in walk(again)} == {n: type(m) for n, m in walk(model)}

    # %% ../nbs/57_architectures.ipynb #c01fdfa8
    def attempt(check, name, method):
        try: check(name, method)
        except PathlmError as e: return f"{type(e).__name__}: {e}"
        return "✓"

    def tried_all(check, methods):
        "Try methods on all architectures, print the table, and return what was refused."
        found = {(m, name): attempt(check, name, m) for m in methods for name in CONFIGS}
        refused = {key: message for key, message in found.items() if message != "✓"}
        numbers = {key: f"({i})" for i, key in enumerate(refused, 1)}
        print(" "*24 + "".join(f"{name:>9}" for name in CONFIGS))
        for m in methods: print(f"{m:24}" + "".join(f"{numbers.get((m, name), '✓'):>9}" for name in CONFIGS))
        for key, message in refused.items(): print(f"{numbers[key]} {message}")
        return refused

    # %% ../nbs/57_architectures.ipynb #93230640
    def written(model, folder):
        "Write a model and a tokenizer as transformers does."
        model.save_pretrained(folder, max_shard_size="20KB")
        if model.main_input_name == "input_ids": byte_tokenizer().save_pretrained(folder)
        assert len([f for f in os.listdir(folder) if re.fullmatch(r"model-\d+-of-\d+\.safetensors", f)]) > 2

    # %% ../nbs/57_architectures.ipynb #1917d01b
    model = tiny("OPT")
    with tempfile.TemporaryDirectory() as cache, patch.object(hub, "HF_HUB_CACHE", cache), \
            patch.object(hub, "HF_HUB_OFFLINE", True):
        entry = Path(cache)/"models--facebook--opt-125m"
        (entry/"refs").mkdir(parents=True)
        (entry/"refs"/"main").write_text("0"*40)
        written(model, entry/"snapshots"/("0"*40))
        own, tokenizer = pathlm.load("facebook/opt-125m")
        try: pathlm.load("gpt2")
        except CheckpointError as e: assert "cannot load a model from gpt2" in str(e)
        else: raise AssertionError("a model came from nowhere")
    assert torch.equal(out(own, inputs(model)), out(model, inputs(model))) and len(tokenizer) == 257
