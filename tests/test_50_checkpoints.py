from pathlm.checkpoints import *
import re
import tempfile
from pathlib import Path
import torch
from torch import nn
import pathlm
from pathlm.base import CheckpointError
from pathlm.base import SettingError
from pathlm.base import Tensors
from pathlm.base import read_json
from pathlm.base import write_json
from pathlm.models import EMBEDDED
import os
import subprocess
import sys
from unittest.mock import patch
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from pathlm.adapters.core import attach
from pathlm.adapters.core import bake
from pathlm.adapters.lora import LoRA
from pathlm.base import NonFiniteError
from pathlm.base import OutputError
from pathlm.base import read_tensors
from pathlm.base import write_tensors
from pathlm.evaluate import stored_bytes
from pathlm.grid import quantize
from pathlm.grid import rounding
from pathlm.linear import densify
from pathlm.linear import merge
from pathlm.models import new_model
from pathlm.shiftadd.layer import shift_add
from pathlm.sparsity import sparsify
from pathlm.spectral import decompose
from pathlm.spectral import prune
from pathlm.widths import attach_widths
from pathlm.widths import extract_widths
from pathlm.widths import set_widths
from pathlm.widths import width_choices
from pathlm.widths import width_space
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM
from transformers import BertConfig
from transformers import BertForSequenceClassification
from transformers import GPT2Config
from transformers import GPT2LMHeadModel
from transformers import PreTrainedTokenizerFast
from transformers import ViTConfig
from transformers import ViTForImageClassification
from transformers import logging
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING as known


def test_forms():
    # %% ../nbs/50_checkpoints.ipynb #870428fa
    logging.disable_progress_bar()
    SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    TINY = {
        "Llama": lambda: new_model(vocab_size=64, head_dim=8, **SMALL),
        "GPT-2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
        "BERT": lambda: BertForSequenceClassification(BertConfig(vocab_size=64, **SMALL)),
        "ViT": lambda: ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **SMALL)),
    }

    def tiny(kind="Llama", dtype=torch.float32, seed=0):
        torch.manual_seed(seed)
        model = TINY[kind]().eval()
        for p in model.parameters(): p.data = p.data.to(dtype)
        return model

    def after(change, model, *args, **settings):
        change(model, *args, **settings)
        return model

    def half(model): return after(sparsify, model, method="magnitude", sparsity=.5)
    def factored(model): return after(prune, model, decompose(model), rate=.75)
    def packed(model): return after(quantize, model, method="rtn", group=16)

    def logits(model):
        ids, pixels = torch.arange(12)[None], torch.linspace(-1, 1, 192).view(1, 3, 8, 8)
        x = pixels.to(model.dtype) if model.main_input_name == "pixel_values" else ids
        with torch.no_grad(): return model(x).logits

    # %% ../nbs/50_checkpoints.ipynb #51c3f6be
    def same(model, other):
        A, B = model.state_dict(), other.state_dict()
        assert A.keys() == B.keys() and forms_of(model) == forms_of(other)
        for name, t in A.items(): assert t.dtype == B[name].dtype and torch.equal(t, B[name]), name
        assert torch.equal(logits(model), logits(other)) and type(model) is type(other)

    # %% ../nbs/50_checkpoints.ipynb #5713f9ee
    model = after(sparsify, tiny(), method="magnitude", sparsity=.5, target="q_proj")
    assert set(forms_of(model).values()) == {"SparseLinear"} and len(forms_of(model)) == 2 and not forms_of(tiny("GPT-2"))


def test_the_weights():
    # %% ../nbs/50_checkpoints.ipynb #870428fa
    logging.disable_progress_bar()
    SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    TINY = {
        "Llama": lambda: new_model(vocab_size=64, head_dim=8, **SMALL),
        "GPT-2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
        "BERT": lambda: BertForSequenceClassification(BertConfig(vocab_size=64, **SMALL)),
        "ViT": lambda: ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **SMALL)),
    }

    def tiny(kind="Llama", dtype=torch.float32, seed=0):
        torch.manual_seed(seed)
        model = TINY[kind]().eval()
        for p in model.parameters(): p.data = p.data.to(dtype)
        return model

    def after(change, model, *args, **settings):
        change(model, *args, **settings)
        return model

    def half(model): return after(sparsify, model, method="magnitude", sparsity=.5)
    def factored(model): return after(prune, model, decompose(model), rate=.75)
    def packed(model): return after(quantize, model, method="rtn", group=16)

    def logits(model):
        ids, pixels = torch.arange(12)[None], torch.linspace(-1, 1, 192).view(1, 3, 8, 8)
        x = pixels.to(model.dtype) if model.main_input_name == "pixel_values" else ids
        with torch.no_grad(): return model(x).logits

    # %% ../nbs/50_checkpoints.ipynb #51c3f6be
    def same(model, other):
        A, B = model.state_dict(), other.state_dict()
        assert A.keys() == B.keys() and forms_of(model) == forms_of(other)
        for name, t in A.items(): assert t.dtype == B[name].dtype and torch.equal(t, B[name]), name
        assert torch.equal(logits(model), logits(other)) and type(model) is type(other)

    # %% ../nbs/50_checkpoints.ipynb #1867843e
    for kind in TINY:
        model = tiny(kind)
        parts = {part_of(model)(name) for name in own_tensors(model)}
        assert parts == {0, 1, 2} and len(own_tensors(model)) == len({t.data_ptr() for t in model.parameters()})


def test_the_recipe():
    # %% ../nbs/50_checkpoints.ipynb #870428fa
    logging.disable_progress_bar()
    SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    TINY = {
        "Llama": lambda: new_model(vocab_size=64, head_dim=8, **SMALL),
        "GPT-2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
        "BERT": lambda: BertForSequenceClassification(BertConfig(vocab_size=64, **SMALL)),
        "ViT": lambda: ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **SMALL)),
    }

    def tiny(kind="Llama", dtype=torch.float32, seed=0):
        torch.manual_seed(seed)
        model = TINY[kind]().eval()
        for p in model.parameters(): p.data = p.data.to(dtype)
        return model

    def after(change, model, *args, **settings):
        change(model, *args, **settings)
        return model

    def half(model): return after(sparsify, model, method="magnitude", sparsity=.5)
    def factored(model): return after(prune, model, decompose(model), rate=.75)
    def packed(model): return after(quantize, model, method="rtn", group=16)

    def logits(model):
        ids, pixels = torch.arange(12)[None], torch.linspace(-1, 1, 192).view(1, 3, 8, 8)
        x = pixels.to(model.dtype) if model.main_input_name == "pixel_values" else ids
        with torch.no_grad(): return model(x).logits

    # %% ../nbs/50_checkpoints.ipynb #51c3f6be
    def same(model, other):
        A, B = model.state_dict(), other.state_dict()
        assert A.keys() == B.keys() and forms_of(model) == forms_of(other)
        for name, t in A.items(): assert t.dtype == B[name].dtype and torch.equal(t, B[name]), name
        assert torch.equal(logits(model), logits(other)) and type(model) is type(other)

    # %% ../nbs/50_checkpoints.ipynb #17c632f9
    ids = torch.arange(24).view(2, 12)
    print(step("quantize", [ids, {"input_ids": ids, "attention_mask": ids > 3}], 0, method="gptq", bits=4))
    assert described([ids]) == described([{"input_ids": ids}]) != described([ids + 1])


def test_the_recipe_2():
    # %% ../nbs/50_checkpoints.ipynb #870428fa
    logging.disable_progress_bar()
    SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    TINY = {
        "Llama": lambda: new_model(vocab_size=64, head_dim=8, **SMALL),
        "GPT-2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
        "BERT": lambda: BertForSequenceClassification(BertConfig(vocab_size=64, **SMALL)),
        "ViT": lambda: ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **SMALL)),
    }

    def tiny(kind="Llama", dtype=torch.float32, seed=0):
        torch.manual_seed(seed)
        model = TINY[kind]().eval()
        for p in model.parameters(): p.data = p.data.to(dtype)
        return model

    def after(change, model, *args, **settings):
        change(model, *args, **settings)
        return model

    def half(model): return after(sparsify, model, method="magnitude", sparsity=.5)
    def factored(model): return after(prune, model, decompose(model), rate=.75)
    def packed(model): return after(quantize, model, method="rtn", group=16)

    def logits(model):
        ids, pixels = torch.arange(12)[None], torch.linspace(-1, 1, 192).view(1, 3, 8, 8)
        x = pixels.to(model.dtype) if model.main_input_name == "pixel_values" else ids
        with torch.no_grad(): return model(x).logits

    # %% ../nbs/50_checkpoints.ipynb #51c3f6be
    def same(model, other):
        A, B = model.state_dict(), other.state_dict()
        assert A.keys() == B.keys() and forms_of(model) == forms_of(other)
        for name, t in A.items(): assert t.dtype == B[name].dtype and torch.equal(t, B[name]), name
        assert torch.equal(logits(model), logits(other)) and type(model) is type(other)

    # %% ../nbs/50_checkpoints.ipynb #079754cc
    with tempfile.TemporaryDirectory() as d:
        save(half(tiny()), None, d, step("sparsify", method="magnitude", sparsity=.5))
        model, tokenizer = pathlm.load(d)
        save(packed(model), None, d, step("quantize", method="rtn", group=16))
        files, about = sorted(p.name for p in Path(d).iterdir()), read_json(f"{d}/pathlm.json")
    print("   ".join(files))
    for line in about["steps"]: print(line)
    print("\n".join(f"{key}: {', '.join(about[key])}" for key in ("layers", "versions", "files")))
    assert [line["what"] for line in about["steps"]] == ["sparsify", "quantize"] and tokenizer is None


def test_the_recipe_3():
    # %% ../nbs/50_checkpoints.ipynb #870428fa
    logging.disable_progress_bar()
    SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    TINY = {
        "Llama": lambda: new_model(vocab_size=64, head_dim=8, **SMALL),
        "GPT-2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
        "BERT": lambda: BertForSequenceClassification(BertConfig(vocab_size=64, **SMALL)),
        "ViT": lambda: ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **SMALL)),
    }

    def tiny(kind="Llama", dtype=torch.float32, seed=0):
        torch.manual_seed(seed)
        model = TINY[kind]().eval()
        for p in model.parameters(): p.data = p.data.to(dtype)
        return model

    def after(change, model, *args, **settings):
        change(model, *args, **settings)
        return model

    def half(model): return after(sparsify, model, method="magnitude", sparsity=.5)
    def factored(model): return after(prune, model, decompose(model), rate=.75)
    def packed(model): return after(quantize, model, method="rtn", group=16)

    def logits(model):
        ids, pixels = torch.arange(12)[None], torch.linspace(-1, 1, 192).view(1, 3, 8, 8)
        x = pixels.to(model.dtype) if model.main_input_name == "pixel_values" else ids
        with torch.no_grad(): return model(x).logits

    # %% ../nbs/50_checkpoints.ipynb #51c3f6be
    def same(model, other):
        A, B = model.state_dict(), other.state_dict()
        assert A.keys() == B.keys() and forms_of(model) == forms_of(other)
        for name, t in A.items(): assert t.dtype == B[name].dtype and torch.equal(t, B[name]), name
        assert torch.equal(logits(model), logits(other)) and type(model) is type(other)

    # %% ../nbs/50_checkpoints.ipynb #5f10a941
    model = tiny()
    with tempfile.TemporaryDirectory() as d:
        save(half(model), None, d, step("sparsify"))
        save(packed(model), None, d, step("quantize"))
        assert read_json(f"{d}/pathlm.json")["steps"] == model.pathlm_steps == [step("sparsify"), step("quantize")]


def test_loading():
    # %% ../nbs/50_checkpoints.ipynb #870428fa
    logging.disable_progress_bar()
    SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    TINY = {
        "Llama": lambda: new_model(vocab_size=64, head_dim=8, **SMALL),
        "GPT-2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
        "BERT": lambda: BertForSequenceClassification(BertConfig(vocab_size=64, **SMALL)),
        "ViT": lambda: ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **SMALL)),
    }

    def tiny(kind="Llama", dtype=torch.float32, seed=0):
        torch.manual_seed(seed)
        model = TINY[kind]().eval()
        for p in model.parameters(): p.data = p.data.to(dtype)
        return model

    def after(change, model, *args, **settings):
        change(model, *args, **settings)
        return model

    def half(model): return after(sparsify, model, method="magnitude", sparsity=.5)
    def factored(model): return after(prune, model, decompose(model), rate=.75)
    def packed(model): return after(quantize, model, method="rtn", group=16)

    def logits(model):
        ids, pixels = torch.arange(12)[None], torch.linspace(-1, 1, 192).view(1, 3, 8, 8)
        x = pixels.to(model.dtype) if model.main_input_name == "pixel_values" else ids
        with torch.no_grad(): return model(x).logits

    # %% ../nbs/50_checkpoints.ipynb #51c3f6be
    def same(model, other):
        A, B = model.state_dict(), other.state_dict()
        assert A.keys() == B.keys() and forms_of(model) == forms_of(other)
        for name, t in A.items(): assert t.dtype == B[name].dtype and torch.equal(t, B[name]), name
        assert torch.equal(logits(model), logits(other)) and type(model) is type(other)

    # %% ../nbs/50_checkpoints.ipynb #8777dafe
    assert stored_dtype() == torch.bfloat16 and load()[0].dtype == torch.float32


def test_what_comes_back():
    # %% ../nbs/50_checkpoints.ipynb #870428fa
    logging.disable_progress_bar()
    SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    TINY = {
        "Llama": lambda: new_model(vocab_size=64, head_dim=8, **SMALL),
        "GPT-2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
        "BERT": lambda: BertForSequenceClassification(BertConfig(vocab_size=64, **SMALL)),
        "ViT": lambda: ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **SMALL)),
    }

    def tiny(kind="Llama", dtype=torch.float32, seed=0):
        torch.manual_seed(seed)
        model = TINY[kind]().eval()
        for p in model.parameters(): p.data = p.data.to(dtype)
        return model

    def after(change, model, *args, **settings):
        change(model, *args, **settings)
        return model

    def half(model): return after(sparsify, model, method="magnitude", sparsity=.5)
    def factored(model): return after(prune, model, decompose(model), rate=.75)
    def packed(model): return after(quantize, model, method="rtn", group=16)

    def logits(model):
        ids, pixels = torch.arange(12)[None], torch.linspace(-1, 1, 192).view(1, 3, 8, 8)
        x = pixels.to(model.dtype) if model.main_input_name == "pixel_values" else ids
        with torch.no_grad(): return model(x).logits

    # %% ../nbs/50_checkpoints.ipynb #51c3f6be
    def same(model, other):
        A, B = model.state_dict(), other.state_dict()
        assert A.keys() == B.keys() and forms_of(model) == forms_of(other)
        for name, t in A.items(): assert t.dtype == B[name].dtype and torch.equal(t, B[name]), name
        assert torch.equal(logits(model), logits(other)) and type(model) is type(other)

    # %% ../nbs/50_checkpoints.ipynb #3c7ee462
    CHANGES = {
        "dense": lambda model: model,
        "FactoredLinear": factored,
        "SparseLinear": half,
        "GridLinear": lambda model: packed(half(model)),
        "GridLinear, asymmetric": lambda model: quantize(model, method="rtn", group=8, bits=3, symmetric=False),
        "RoundingLinear": lambda model: rounding(half(model), group=16),
        "ShiftAddLinear": lambda model: shift_add(model, block=(1, 16)),
        "ShiftAddLinear, sums by column": lambda model: shift_add(model, None, 2, "sum", (None, 1)),
        "RotatedLinear:ShiftAddLinear": lambda model: shift_add(model, None, 4, "power", (3, 16), True, rotate=5),
        "RotatedLinear:GridLinear": lambda model: quantize(model, method="rtn", group=16, rotate=5),
    }

    def check_round_trip(kind, form, dtype):
        model = after(CHANGES[form], tiny(kind, dtype))
        with tempfile.TemporaryDirectory() as d:
            same(load(save(model, None, f"{d}/one", step(form)), dtype)[0], model)
            again = type(model).from_pretrained(f"{d}/one")
            same(again, model)
            whole, about = skeleton(f"{d}/one")
            same(fill(whole, Tensors(f"{d}/one", about["files"]), about["layers"], d), model)
            save(again, None, f"{d}/two")
            for file in "model.safetensors", "config.json":
                assert Path(f"{d}/one/{file}").read_bytes() == Path(f"{d}/two/{file}").read_bytes()
            assert form == "dense" or read_about(f"{d}/two")["steps"] == read_about(f"{d}/one")["steps"] == [step(form)]
            assert {p.name for p in Path(d).iterdir()} == {"one", "two"}
        assert form == "dense" or form.split(",")[0] in forms_of(model).values()

    # %% ../nbs/50_checkpoints.ipynb #5abb6fba
    for form in CHANGES: check_round_trip("Llama", form, torch.float32)
    for form in list(CHANGES)[:6]: check_round_trip("GPT-2", form, torch.bfloat16)
    for form in "dense", "SparseLinear": check_round_trip("Llama", form, torch.bfloat16)


def test_what_comes_back_2():
    # %% ../nbs/50_checkpoints.ipynb #870428fa
    logging.disable_progress_bar()
    SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    TINY = {
        "Llama": lambda: new_model(vocab_size=64, head_dim=8, **SMALL),
        "GPT-2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
        "BERT": lambda: BertForSequenceClassification(BertConfig(vocab_size=64, **SMALL)),
        "ViT": lambda: ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **SMALL)),
    }

    def tiny(kind="Llama", dtype=torch.float32, seed=0):
        torch.manual_seed(seed)
        model = TINY[kind]().eval()
        for p in model.parameters(): p.data = p.data.to(dtype)
        return model

    def after(change, model, *args, **settings):
        change(model, *args, **settings)
        return model

    def half(model): return after(sparsify, model, method="magnitude", sparsity=.5)
    def factored(model): return after(prune, model, decompose(model), rate=.75)
    def packed(model): return after(quantize, model, method="rtn", group=16)

    def logits(model):
        ids, pixels = torch.arange(12)[None], torch.linspace(-1, 1, 192).view(1, 3, 8, 8)
        x = pixels.to(model.dtype) if model.main_input_name == "pixel_values" else ids
        with torch.no_grad(): return model(x).logits

    # %% ../nbs/50_checkpoints.ipynb #51c3f6be
    def same(model, other):
        A, B = model.state_dict(), other.state_dict()
        assert A.keys() == B.keys() and forms_of(model) == forms_of(other)
        for name, t in A.items(): assert t.dtype == B[name].dtype and torch.equal(t, B[name]), name
        assert torch.equal(logits(model), logits(other)) and type(model) is type(other)

    # %% ../nbs/50_checkpoints.ipynb #3c7ee462
    CHANGES = {
        "dense": lambda model: model,
        "FactoredLinear": factored,
        "SparseLinear": half,
        "GridLinear": lambda model: packed(half(model)),
        "GridLinear, asymmetric": lambda model: quantize(model, method="rtn", group=8, bits=3, symmetric=False),
        "RoundingLinear": lambda model: rounding(half(model), group=16),
        "ShiftAddLinear": lambda model: shift_add(model, block=(1, 16)),
        "ShiftAddLinear, sums by column": lambda model: shift_add(model, None, 2, "sum", (None, 1)),
        "RotatedLinear:ShiftAddLinear": lambda model: shift_add(model, None, 4, "power", (3, 16), True, rotate=5),
        "RotatedLinear:GridLinear": lambda model: quantize(model, method="rtn", group=16, rotate=5),
    }

    def check_round_trip(kind, form, dtype):
        model = after(CHANGES[form], tiny(kind, dtype))
        with tempfile.TemporaryDirectory() as d:
            same(load(save(model, None, f"{d}/one", step(form)), dtype)[0], model)
            again = type(model).from_pretrained(f"{d}/one")
            same(again, model)
            whole, about = skeleton(f"{d}/one")
            same(fill(whole, Tensors(f"{d}/one", about["files"]), about["layers"], d), model)
            save(again, None, f"{d}/two")
            for file in "model.safetensors", "config.json":
                assert Path(f"{d}/one/{file}").read_bytes() == Path(f"{d}/two/{file}").read_bytes()
            assert form == "dense" or read_about(f"{d}/two")["steps"] == read_about(f"{d}/one")["steps"] == [step(form)]
            assert {p.name for p in Path(d).iterdir()} == {"one", "two"}
        assert form == "dense" or form.split(",")[0] in forms_of(model).values()

    # %% ../nbs/50_checkpoints.ipynb #c562f1b3
    for kind in "BERT", "ViT":
        for form in "FactoredLinear", "RotatedLinear:GridLinear": check_round_trip(kind, form, torch.bfloat16)


def test_what_comes_back_3():
    # %% ../nbs/50_checkpoints.ipynb #870428fa
    logging.disable_progress_bar()
    SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    TINY = {
        "Llama": lambda: new_model(vocab_size=64, head_dim=8, **SMALL),
        "GPT-2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
        "BERT": lambda: BertForSequenceClassification(BertConfig(vocab_size=64, **SMALL)),
        "ViT": lambda: ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **SMALL)),
    }

    def tiny(kind="Llama", dtype=torch.float32, seed=0):
        torch.manual_seed(seed)
        model = TINY[kind]().eval()
        for p in model.parameters(): p.data = p.data.to(dtype)
        return model

    def after(change, model, *args, **settings):
        change(model, *args, **settings)
        return model

    def half(model): return after(sparsify, model, method="magnitude", sparsity=.5)
    def factored(model): return after(prune, model, decompose(model), rate=.75)
    def packed(model): return after(quantize, model, method="rtn", group=16)

    def logits(model):
        ids, pixels = torch.arange(12)[None], torch.linspace(-1, 1, 192).view(1, 3, 8, 8)
        x = pixels.to(model.dtype) if model.main_input_name == "pixel_values" else ids
        with torch.no_grad(): return model(x).logits

    # %% ../nbs/50_checkpoints.ipynb #51c3f6be
    def same(model, other):
        A, B = model.state_dict(), other.state_dict()
        assert A.keys() == B.keys() and forms_of(model) == forms_of(other)
        for name, t in A.items(): assert t.dtype == B[name].dtype and torch.equal(t, B[name]), name
        assert torch.equal(logits(model), logits(other)) and type(model) is type(other)

    # %% ../nbs/50_checkpoints.ipynb #3c7ee462
    CHANGES = {
        "dense": lambda model: model,
        "FactoredLinear": factored,
        "SparseLinear": half,
        "GridLinear": lambda model: packed(half(model)),
        "GridLinear, asymmetric": lambda model: quantize(model, method="rtn", group=8, bits=3, symmetric=False),
        "RoundingLinear": lambda model: rounding(half(model), group=16),
        "ShiftAddLinear": lambda model: shift_add(model, block=(1, 16)),
        "ShiftAddLinear, sums by column": lambda model: shift_add(model, None, 2, "sum", (None, 1)),
        "RotatedLinear:ShiftAddLinear": lambda model: shift_add(model, None, 4, "power", (3, 16), True, rotate=5),
        "RotatedLinear:GridLinear": lambda model: quantize(model, method="rtn", group=16, rotate=5),
    }

    def check_round_trip(kind, form, dtype):
        model = after(CHANGES[form], tiny(kind, dtype))
        with tempfile.TemporaryDirectory() as d:
            same(load(save(model, None, f"{d}/one", step(form)), dtype)[0], model)
            again = type(model).from_pretrained(f"{d}/one")
            same(again, model)
            whole, about = skeleton(f"{d}/one")
            same(fill(whole, Tensors(f"{d}/one", about["files"]), about["layers"], d), model)
            save(again, None, f"{d}/two")
            for file in "model.safetensors", "config.json":
                assert Path(f"{d}/one/{file}").read_bytes() == Path(f"{d}/two/{file}").read_bytes()
            assert form == "dense" or read_about(f"{d}/two")["steps"] == read_about(f"{d}/one")["steps"] == [step(form)]
            assert {p.name for p in Path(d).iterdir()} == {"one", "two"}
        assert form == "dense" or form.split(",")[0] in forms_of(model).values()

    # %% ../nbs/50_checkpoints.ipynb #f84eabec
    TYPES = torch.float32, torch.bfloat16, torch.float16

    def casted(model, dtype): return {name: cast(t, dtype) for name, t in model.state_dict().items()}

    @settings(deadline=None, max_examples=8, derandomize=True)
    @given(st.sampled_from(list(CHANGES)), st.sampled_from(TYPES), st.sampled_from(TYPES), st.integers(0, 99))
    def check_types(form, a, b, seed):
        model = after(CHANGES[form], tiny(seed=seed))
        with tempfile.TemporaryDirectory() as d:
            save(model, None, d, dtype=a)
            stored = Tensors(d, read_about(d)["files"])
            for other in load(d, b)[0], AutoModelForCausalLM.from_pretrained(d, dtype=b):
                assert other.dtype == b and stored_dtype(d) == a
                for name, t in other.state_dict().items():
                    assert torch.equal(t, cast(cast(model.state_dict()[name], a), b)), name
            for name in stored: assert torch.equal(stored[name], cast(model.state_dict()[name], a))

    # %% ../nbs/50_checkpoints.ipynb #b76e10ca
    check_types()


def test_what_comes_back_4():
    # %% ../nbs/50_checkpoints.ipynb #870428fa
    logging.disable_progress_bar()
    SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    TINY = {
        "Llama": lambda: new_model(vocab_size=64, head_dim=8, **SMALL),
        "GPT-2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
        "BERT": lambda: BertForSequenceClassification(BertConfig(vocab_size=64, **SMALL)),
        "ViT": lambda: ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **SMALL)),
    }

    def tiny(kind="Llama", dtype=torch.float32, seed=0):
        torch.manual_seed(seed)
        model = TINY[kind]().eval()
        for p in model.parameters(): p.data = p.data.to(dtype)
        return model

    def after(change, model, *args, **settings):
        change(model, *args, **settings)
        return model

    def half(model): return after(sparsify, model, method="magnitude", sparsity=.5)
    def factored(model): return after(prune, model, decompose(model), rate=.75)
    def packed(model): return after(quantize, model, method="rtn", group=16)

    def logits(model):
        ids, pixels = torch.arange(12)[None], torch.linspace(-1, 1, 192).view(1, 3, 8, 8)
        x = pixels.to(model.dtype) if model.main_input_name == "pixel_values" else ids
        with torch.no_grad(): return model(x).logits

    # %% ../nbs/50_checkpoints.ipynb #51c3f6be
    def same(model, other):
        A, B = model.state_dict(), other.state_dict()
        assert A.keys() == B.keys() and forms_of(model) == forms_of(other)
        for name, t in A.items(): assert t.dtype == B[name].dtype and torch.equal(t, B[name]), name
        assert torch.equal(logits(model), logits(other)) and type(model) is type(other)

    # %% ../nbs/50_checkpoints.ipynb #3c7ee462
    CHANGES = {
        "dense": lambda model: model,
        "FactoredLinear": factored,
        "SparseLinear": half,
        "GridLinear": lambda model: packed(half(model)),
        "GridLinear, asymmetric": lambda model: quantize(model, method="rtn", group=8, bits=3, symmetric=False),
        "RoundingLinear": lambda model: rounding(half(model), group=16),
        "ShiftAddLinear": lambda model: shift_add(model, block=(1, 16)),
        "ShiftAddLinear, sums by column": lambda model: shift_add(model, None, 2, "sum", (None, 1)),
        "RotatedLinear:ShiftAddLinear": lambda model: shift_add(model, None, 4, "power", (3, 16), True, rotate=5),
        "RotatedLinear:GridLinear": lambda model: quantize(model, method="rtn", group=16, rotate=5),
    }

    def check_round_trip(kind, form, dtype):
        model = after(CHANGES[form], tiny(kind, dtype))
        with tempfile.TemporaryDirectory() as d:
            same(load(save(model, None, f"{d}/one", step(form)), dtype)[0], model)
            again = type(model).from_pretrained(f"{d}/one")
            same(again, model)
            whole, about = skeleton(f"{d}/one")
            same(fill(whole, Tensors(f"{d}/one", about["files"]), about["layers"], d), model)
            save(again, None, f"{d}/two")
            for file in "model.safetensors", "config.json":
                assert Path(f"{d}/one/{file}").read_bytes() == Path(f"{d}/two/{file}").read_bytes()
            assert form == "dense" or read_about(f"{d}/two")["steps"] == read_about(f"{d}/one")["steps"] == [step(form)]
            assert {p.name for p in Path(d).iterdir()} == {"one", "two"}
        assert form == "dense" or form.split(",")[0] in forms_of(model).values()

    # %% ../nbs/50_checkpoints.ipynb #f84eabec
    TYPES = torch.float32, torch.bfloat16, torch.float16

    def casted(model, dtype): return {name: cast(t, dtype) for name, t in model.state_dict().items()}

    @settings(deadline=None, max_examples=8, derandomize=True)
    @given(st.sampled_from(list(CHANGES)), st.sampled_from(TYPES), st.sampled_from(TYPES), st.integers(0, 99))
    def check_types(form, a, b, seed):
        model = after(CHANGES[form], tiny(seed=seed))
        with tempfile.TemporaryDirectory() as d:
            save(model, None, d, dtype=a)
            stored = Tensors(d, read_about(d)["files"])
            for other in load(d, b)[0], AutoModelForCausalLM.from_pretrained(d, dtype=b):
                assert other.dtype == b and stored_dtype(d) == a
                for name, t in other.state_dict().items():
                    assert torch.equal(t, cast(cast(model.state_dict()[name], a), b)), name
            for name in stored: assert torch.equal(stored[name], cast(model.state_dict()[name], a))

    # %% ../nbs/50_checkpoints.ipynb #3d553fc5
    for kind in "Llama", "GPT-2":
        model = tiny(kind)
        attach_widths(model, {g: [w, 24, 17] for g, (w, *_) in width_choices(model).items()})
        set_widths(model, dict(zip(width_space(model), (24, 17), strict=True)))
        with tempfile.TemporaryDirectory() as d:
            try: save(model, None, d)
            except SettingError as e: assert "extract_widths" in str(e)
            else: raise AssertionError("saved with elastic widths")
            extract_widths(model)
            same(load(save(model, None, d))[0], model)
            same(AutoModelForCausalLM.from_pretrained(d), model)
        assert len(forms_of(model)) > 3


def test_what_comes_back_5():
    # %% ../nbs/50_checkpoints.ipynb #870428fa
    logging.disable_progress_bar()
    SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    TINY = {
        "Llama": lambda: new_model(vocab_size=64, head_dim=8, **SMALL),
        "GPT-2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
        "BERT": lambda: BertForSequenceClassification(BertConfig(vocab_size=64, **SMALL)),
        "ViT": lambda: ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **SMALL)),
    }

    def tiny(kind="Llama", dtype=torch.float32, seed=0):
        torch.manual_seed(seed)
        model = TINY[kind]().eval()
        for p in model.parameters(): p.data = p.data.to(dtype)
        return model

    def after(change, model, *args, **settings):
        change(model, *args, **settings)
        return model

    def half(model): return after(sparsify, model, method="magnitude", sparsity=.5)
    def factored(model): return after(prune, model, decompose(model), rate=.75)
    def packed(model): return after(quantize, model, method="rtn", group=16)

    def logits(model):
        ids, pixels = torch.arange(12)[None], torch.linspace(-1, 1, 192).view(1, 3, 8, 8)
        x = pixels.to(model.dtype) if model.main_input_name == "pixel_values" else ids
        with torch.no_grad(): return model(x).logits

    # %% ../nbs/50_checkpoints.ipynb #51c3f6be
    def same(model, other):
        A, B = model.state_dict(), other.state_dict()
        assert A.keys() == B.keys() and forms_of(model) == forms_of(other)
        for name, t in A.items(): assert t.dtype == B[name].dtype and torch.equal(t, B[name]), name
        assert torch.equal(logits(model), logits(other)) and type(model) is type(other)

    # %% ../nbs/50_checkpoints.ipynb #3c7ee462
    CHANGES = {
        "dense": lambda model: model,
        "FactoredLinear": factored,
        "SparseLinear": half,
        "GridLinear": lambda model: packed(half(model)),
        "GridLinear, asymmetric": lambda model: quantize(model, method="rtn", group=8, bits=3, symmetric=False),
        "RoundingLinear": lambda model: rounding(half(model), group=16),
        "ShiftAddLinear": lambda model: shift_add(model, block=(1, 16)),
        "ShiftAddLinear, sums by column": lambda model: shift_add(model, None, 2, "sum", (None, 1)),
        "RotatedLinear:ShiftAddLinear": lambda model: shift_add(model, None, 4, "power", (3, 16), True, rotate=5),
        "RotatedLinear:GridLinear": lambda model: quantize(model, method="rtn", group=16, rotate=5),
    }

    def check_round_trip(kind, form, dtype):
        model = after(CHANGES[form], tiny(kind, dtype))
        with tempfile.TemporaryDirectory() as d:
            same(load(save(model, None, f"{d}/one", step(form)), dtype)[0], model)
            again = type(model).from_pretrained(f"{d}/one")
            same(again, model)
            whole, about = skeleton(f"{d}/one")
            same(fill(whole, Tensors(f"{d}/one", about["files"]), about["layers"], d), model)
            save(again, None, f"{d}/two")
            for file in "model.safetensors", "config.json":
                assert Path(f"{d}/one/{file}").read_bytes() == Path(f"{d}/two/{file}").read_bytes()
            assert form == "dense" or read_about(f"{d}/two")["steps"] == read_about(f"{d}/one")["steps"] == [step(form)]
            assert {p.name for p in Path(d).iterdir()} == {"one", "two"}
        assert form == "dense" or form.split(",")[0] in forms_of(model).values()

    # %% ../nbs/50_checkpoints.ipynb #f84eabec
    TYPES = torch.float32, torch.bfloat16, torch.float16

    def casted(model, dtype): return {name: cast(t, dtype) for name, t in model.state_dict().items()}

    @settings(deadline=None, max_examples=8, derandomize=True)
    @given(st.sampled_from(list(CHANGES)), st.sampled_from(TYPES), st.sampled_from(TYPES), st.integers(0, 99))
    def check_types(form, a, b, seed):
        model = after(CHANGES[form], tiny(seed=seed))
        with tempfile.TemporaryDirectory() as d:
            save(model, None, d, dtype=a)
            stored = Tensors(d, read_about(d)["files"])
            for other in load(d, b)[0], AutoModelForCausalLM.from_pretrained(d, dtype=b):
                assert other.dtype == b and stored_dtype(d) == a
                for name, t in other.state_dict().items():
                    assert torch.equal(t, cast(cast(model.state_dict()[name], a), b)), name
            for name in stored: assert torch.equal(stored[name], cast(model.state_dict()[name], a))

    # %% ../nbs/50_checkpoints.ipynb #00cfb4ec
    def refuses(model, folder, word):
        for write in save, lambda model, _, folder: model.save_pretrained(folder):
            try: write(model, None, folder)
            except SettingError as e: assert word in str(e)
            else: raise AssertionError("saved")
            if not hasattr(model, "hf_quantizer"): return

    with tempfile.TemporaryDirectory() as d:
        model = tiny()
        save(model, None, d)
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach() + .1)
        refuses(model, d, "tie_word_embeddings")
        same(load(d)[0], tiny())
        model.config.tie_word_embeddings = False
        model.all_tied_weights_keys.pop("lm_head.weight")
        for change in (lambda model: model), half, lambda model: quantize(model, method="rtn", group=16, target="lm_head"):
            change(model)
            same(load(save(model, None, d))[0], model)
            same(AutoModelForCausalLM.from_pretrained(d), model)
        assert forms_of(model)["lm_head"] == "GridLinear"
        before, up = model, model.model.layers[0].mlp
        up.up_proj = nn.Sequential(up.up_proj)
        refuses(model, d, "such as model.layers.0.mlp.up_proj")
        assert load(d)[0].pathlm_steps == []
        refuses(nn.ModuleDict({"inner": tiny()}), d, "made of a config")


def test_what_comes_back_6():
    # %% ../nbs/50_checkpoints.ipynb #870428fa
    logging.disable_progress_bar()
    SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    TINY = {
        "Llama": lambda: new_model(vocab_size=64, head_dim=8, **SMALL),
        "GPT-2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
        "BERT": lambda: BertForSequenceClassification(BertConfig(vocab_size=64, **SMALL)),
        "ViT": lambda: ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **SMALL)),
    }

    def tiny(kind="Llama", dtype=torch.float32, seed=0):
        torch.manual_seed(seed)
        model = TINY[kind]().eval()
        for p in model.parameters(): p.data = p.data.to(dtype)
        return model

    def after(change, model, *args, **settings):
        change(model, *args, **settings)
        return model

    def half(model): return after(sparsify, model, method="magnitude", sparsity=.5)
    def factored(model): return after(prune, model, decompose(model), rate=.75)
    def packed(model): return after(quantize, model, method="rtn", group=16)

    def logits(model):
        ids, pixels = torch.arange(12)[None], torch.linspace(-1, 1, 192).view(1, 3, 8, 8)
        x = pixels.to(model.dtype) if model.main_input_name == "pixel_values" else ids
        with torch.no_grad(): return model(x).logits

    # %% ../nbs/50_checkpoints.ipynb #51c3f6be
    def same(model, other):
        A, B = model.state_dict(), other.state_dict()
        assert A.keys() == B.keys() and forms_of(model) == forms_of(other)
        for name, t in A.items(): assert t.dtype == B[name].dtype and torch.equal(t, B[name]), name
        assert torch.equal(logits(model), logits(other)) and type(model) is type(other)

    # %% ../nbs/50_checkpoints.ipynb #3c7ee462
    CHANGES = {
        "dense": lambda model: model,
        "FactoredLinear": factored,
        "SparseLinear": half,
        "GridLinear": lambda model: packed(half(model)),
        "GridLinear, asymmetric": lambda model: quantize(model, method="rtn", group=8, bits=3, symmetric=False),
        "RoundingLinear": lambda model: rounding(half(model), group=16),
        "ShiftAddLinear": lambda model: shift_add(model, block=(1, 16)),
        "ShiftAddLinear, sums by column": lambda model: shift_add(model, None, 2, "sum", (None, 1)),
        "RotatedLinear:ShiftAddLinear": lambda model: shift_add(model, None, 4, "power", (3, 16), True, rotate=5),
        "RotatedLinear:GridLinear": lambda model: quantize(model, method="rtn", group=16, rotate=5),
    }

    def check_round_trip(kind, form, dtype):
        model = after(CHANGES[form], tiny(kind, dtype))
        with tempfile.TemporaryDirectory() as d:
            same(load(save(model, None, f"{d}/one", step(form)), dtype)[0], model)
            again = type(model).from_pretrained(f"{d}/one")
            same(again, model)
            whole, about = skeleton(f"{d}/one")
            same(fill(whole, Tensors(f"{d}/one", about["files"]), about["layers"], d), model)
            save(again, None, f"{d}/two")
            for file in "model.safetensors", "config.json":
                assert Path(f"{d}/one/{file}").read_bytes() == Path(f"{d}/two/{file}").read_bytes()
            assert form == "dense" or read_about(f"{d}/two")["steps"] == read_about(f"{d}/one")["steps"] == [step(form)]
            assert {p.name for p in Path(d).iterdir()} == {"one", "two"}
        assert form == "dense" or form.split(",")[0] in forms_of(model).values()

    # %% ../nbs/50_checkpoints.ipynb #f84eabec
    TYPES = torch.float32, torch.bfloat16, torch.float16

    def casted(model, dtype): return {name: cast(t, dtype) for name, t in model.state_dict().items()}

    @settings(deadline=None, max_examples=8, derandomize=True)
    @given(st.sampled_from(list(CHANGES)), st.sampled_from(TYPES), st.sampled_from(TYPES), st.integers(0, 99))
    def check_types(form, a, b, seed):
        model = after(CHANGES[form], tiny(seed=seed))
        with tempfile.TemporaryDirectory() as d:
            save(model, None, d, dtype=a)
            stored = Tensors(d, read_about(d)["files"])
            for other in load(d, b)[0], AutoModelForCausalLM.from_pretrained(d, dtype=b):
                assert other.dtype == b and stored_dtype(d) == a
                for name, t in other.state_dict().items():
                    assert torch.equal(t, cast(cast(model.state_dict()[name], a), b)), name
            for name in stored: assert torch.equal(stored[name], cast(model.state_dict()[name], a))

    # %% ../nbs/50_checkpoints.ipynb #bcd39af0
    model = packed(half(tiny()))
    with tempfile.TemporaryDirectory() as d:
        save(model, None, d, limit=0)
        print(*sorted(p.name for p in Path(d).glob("model*")), sep="\n")
        same(load(d)[0], model)
        same(AutoModelForCausalLM.from_pretrained(d), model)
        empty, about = skeleton(d)
        assert all(p.is_meta for p in empty.parameters()) and not any(b.is_meta for b in empty.buffers())
        for i in 0, 1:
            block = fill(empty.model.layers[i], Tensors(d), about["layers"], d, f"model.layers.{i}.")
            assert all(torch.equal(t, model.model.layers[i].state_dict()[n]) for n, t in block.state_dict().items())
        assert empty.model.norm.weight.is_meta


def test_what_comes_back_7():
    # %% ../nbs/50_checkpoints.ipynb #870428fa
    logging.disable_progress_bar()
    SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    TINY = {
        "Llama": lambda: new_model(vocab_size=64, head_dim=8, **SMALL),
        "GPT-2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
        "BERT": lambda: BertForSequenceClassification(BertConfig(vocab_size=64, **SMALL)),
        "ViT": lambda: ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **SMALL)),
    }

    def tiny(kind="Llama", dtype=torch.float32, seed=0):
        torch.manual_seed(seed)
        model = TINY[kind]().eval()
        for p in model.parameters(): p.data = p.data.to(dtype)
        return model

    def after(change, model, *args, **settings):
        change(model, *args, **settings)
        return model

    def half(model): return after(sparsify, model, method="magnitude", sparsity=.5)
    def factored(model): return after(prune, model, decompose(model), rate=.75)
    def packed(model): return after(quantize, model, method="rtn", group=16)

    def logits(model):
        ids, pixels = torch.arange(12)[None], torch.linspace(-1, 1, 192).view(1, 3, 8, 8)
        x = pixels.to(model.dtype) if model.main_input_name == "pixel_values" else ids
        with torch.no_grad(): return model(x).logits

    # %% ../nbs/50_checkpoints.ipynb #51c3f6be
    def same(model, other):
        A, B = model.state_dict(), other.state_dict()
        assert A.keys() == B.keys() and forms_of(model) == forms_of(other)
        for name, t in A.items(): assert t.dtype == B[name].dtype and torch.equal(t, B[name]), name
        assert torch.equal(logits(model), logits(other)) and type(model) is type(other)

    # %% ../nbs/50_checkpoints.ipynb #3c7ee462
    CHANGES = {
        "dense": lambda model: model,
        "FactoredLinear": factored,
        "SparseLinear": half,
        "GridLinear": lambda model: packed(half(model)),
        "GridLinear, asymmetric": lambda model: quantize(model, method="rtn", group=8, bits=3, symmetric=False),
        "RoundingLinear": lambda model: rounding(half(model), group=16),
        "ShiftAddLinear": lambda model: shift_add(model, block=(1, 16)),
        "ShiftAddLinear, sums by column": lambda model: shift_add(model, None, 2, "sum", (None, 1)),
        "RotatedLinear:ShiftAddLinear": lambda model: shift_add(model, None, 4, "power", (3, 16), True, rotate=5),
        "RotatedLinear:GridLinear": lambda model: quantize(model, method="rtn", group=16, rotate=5),
    }

    def check_round_trip(kind, form, dtype):
        model = after(CHANGES[form], tiny(kind, dtype))
        with tempfile.TemporaryDirectory() as d:
            same(load(save(model, None, f"{d}/one", step(form)), dtype)[0], model)
            again = type(model).from_pretrained(f"{d}/one")
            same(again, model)
            whole, about = skeleton(f"{d}/one")
            same(fill(whole, Tensors(f"{d}/one", about["files"]), about["layers"], d), model)
            save(again, None, f"{d}/two")
            for file in "model.safetensors", "config.json":
                assert Path(f"{d}/one/{file}").read_bytes() == Path(f"{d}/two/{file}").read_bytes()
            assert form == "dense" or read_about(f"{d}/two")["steps"] == read_about(f"{d}/one")["steps"] == [step(form)]
            assert {p.name for p in Path(d).iterdir()} == {"one", "two"}
        assert form == "dense" or form.split(",")[0] in forms_of(model).values()

    # %% ../nbs/50_checkpoints.ipynb #f84eabec
    TYPES = torch.float32, torch.bfloat16, torch.float16

    def casted(model, dtype): return {name: cast(t, dtype) for name, t in model.state_dict().items()}

    @settings(deadline=None, max_examples=8, derandomize=True)
    @given(st.sampled_from(list(CHANGES)), st.sampled_from(TYPES), st.sampled_from(TYPES), st.integers(0, 99))
    def check_types(form, a, b, seed):
        model = after(CHANGES[form], tiny(seed=seed))
        with tempfile.TemporaryDirectory() as d:
            save(model, None, d, dtype=a)
            stored = Tensors(d, read_about(d)["files"])
            for other in load(d, b)[0], AutoModelForCausalLM.from_pretrained(d, dtype=b):
                assert other.dtype == b and stored_dtype(d) == a
                for name, t in other.state_dict().items():
                    assert torch.equal(t, cast(cast(model.state_dict()[name], a), b)), name
            for name in stored: assert torch.equal(stored[name], cast(model.state_dict()[name], a))

    # %% ../nbs/50_checkpoints.ipynb #a93304a3
    model, tokenizer = load()
    factored(model)
    with tempfile.TemporaryDirectory() as d:
        save(model, tokenizer, d, dtype=torch.bfloat16)
        numbers = sum(t.numel() for t in own_tensors(model).values())
        assert 0 <= stored_bytes(d) - 2*numbers < 20_000 and load(d)[1].get_vocab() == tokenizer.get_vocab()
        print(f"{stored_bytes(d)/1e6:.2f} MB for {numbers:,} numbers; dense {stored_bytes(EMBEDDED)/1e6:.2f} MB")


def test_what_transformers_does_with_it():
    # %% ../nbs/50_checkpoints.ipynb #870428fa
    logging.disable_progress_bar()
    SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    TINY = {
        "Llama": lambda: new_model(vocab_size=64, head_dim=8, **SMALL),
        "GPT-2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
        "BERT": lambda: BertForSequenceClassification(BertConfig(vocab_size=64, **SMALL)),
        "ViT": lambda: ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **SMALL)),
    }

    def tiny(kind="Llama", dtype=torch.float32, seed=0):
        torch.manual_seed(seed)
        model = TINY[kind]().eval()
        for p in model.parameters(): p.data = p.data.to(dtype)
        return model

    def after(change, model, *args, **settings):
        change(model, *args, **settings)
        return model

    def half(model): return after(sparsify, model, method="magnitude", sparsity=.5)
    def factored(model): return after(prune, model, decompose(model), rate=.75)
    def packed(model): return after(quantize, model, method="rtn", group=16)

    def logits(model):
        ids, pixels = torch.arange(12)[None], torch.linspace(-1, 1, 192).view(1, 3, 8, 8)
        x = pixels.to(model.dtype) if model.main_input_name == "pixel_values" else ids
        with torch.no_grad(): return model(x).logits

    # %% ../nbs/50_checkpoints.ipynb #51c3f6be
    def same(model, other):
        A, B = model.state_dict(), other.state_dict()
        assert A.keys() == B.keys() and forms_of(model) == forms_of(other)
        for name, t in A.items(): assert t.dtype == B[name].dtype and torch.equal(t, B[name]), name
        assert torch.equal(logits(model), logits(other)) and type(model) is type(other)

    # %% ../nbs/50_checkpoints.ipynb #e75ff687
    model = packed(half(tiny()))
    with tempfile.TemporaryDirectory() as d:
        plain = AutoModelForCausalLM.from_pretrained(save(model, None, f"{d}/one", step("sparsify")))
        assert AutoModelForCausalLM.from_pretrained(f"{d}/one").half().dtype == torch.float16
        shift_add(bake(densify(plain)), block=(1, 16), target="q_proj")
        plain.save_pretrained(f"{d}/two")
        assert set(forms_of(plain).values()) == {"ShiftAddLinear"}
        same(AutoModelForCausalLM.from_pretrained(f"{d}/two"), plain)
        again, _ = load(f"{d}/two")
        same(again, plain)
        assert again.pathlm_steps == [] and load(f"{d}/one")[0].pathlm_steps == [step("sparsify")]
        dense = AutoModelForCausalLM.from_pretrained(f"{d}/one").dequantize()
        assert not forms_of(dense) and torch.equal(logits(dense), logits(densify(model)))


def test_what_transformers_does_with_it_2():
    # %% ../nbs/50_checkpoints.ipynb #870428fa
    logging.disable_progress_bar()
    SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    TINY = {
        "Llama": lambda: new_model(vocab_size=64, head_dim=8, **SMALL),
        "GPT-2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
        "BERT": lambda: BertForSequenceClassification(BertConfig(vocab_size=64, **SMALL)),
        "ViT": lambda: ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **SMALL)),
    }

    def tiny(kind="Llama", dtype=torch.float32, seed=0):
        torch.manual_seed(seed)
        model = TINY[kind]().eval()
        for p in model.parameters(): p.data = p.data.to(dtype)
        return model

    def after(change, model, *args, **settings):
        change(model, *args, **settings)
        return model

    def half(model): return after(sparsify, model, method="magnitude", sparsity=.5)
    def factored(model): return after(prune, model, decompose(model), rate=.75)
    def packed(model): return after(quantize, model, method="rtn", group=16)

    def logits(model):
        ids, pixels = torch.arange(12)[None], torch.linspace(-1, 1, 192).view(1, 3, 8, 8)
        x = pixels.to(model.dtype) if model.main_input_name == "pixel_values" else ids
        with torch.no_grad(): return model(x).logits

    # %% ../nbs/50_checkpoints.ipynb #51c3f6be
    def same(model, other):
        A, B = model.state_dict(), other.state_dict()
        assert A.keys() == B.keys() and forms_of(model) == forms_of(other)
        for name, t in A.items(): assert t.dtype == B[name].dtype and torch.equal(t, B[name]), name
        assert torch.equal(logits(model), logits(other)) and type(model) is type(other)

    # %% ../nbs/50_checkpoints.ipynb #efa17bef
    with tempfile.TemporaryDirectory() as d:
        plain = AutoModelForCausalLM.from_pretrained(save(packed(tiny()), None, f"{d}/one"))
        attach(plain, LoRA(r=2))
        plain.save_pretrained(f"{d}/state")
        for refused in lambda: save(plain, None, f"{d}/two"), lambda: load(f"{d}/state"):
            try: refused()
            except (SettingError, CheckpointError) as e: assert "save_adapter" in str(e) or "state" in str(e)
            else: raise AssertionError("a model with adapters was saved or loaded")
        assert not list(Path(d).glob("two/*"))


def test_what_transformers_does_with_it_3():
    # %% ../nbs/50_checkpoints.ipynb #870428fa
    logging.disable_progress_bar()
    SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    TINY = {
        "Llama": lambda: new_model(vocab_size=64, head_dim=8, **SMALL),
        "GPT-2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
        "BERT": lambda: BertForSequenceClassification(BertConfig(vocab_size=64, **SMALL)),
        "ViT": lambda: ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **SMALL)),
    }

    def tiny(kind="Llama", dtype=torch.float32, seed=0):
        torch.manual_seed(seed)
        model = TINY[kind]().eval()
        for p in model.parameters(): p.data = p.data.to(dtype)
        return model

    def after(change, model, *args, **settings):
        change(model, *args, **settings)
        return model

    def half(model): return after(sparsify, model, method="magnitude", sparsity=.5)
    def factored(model): return after(prune, model, decompose(model), rate=.75)
    def packed(model): return after(quantize, model, method="rtn", group=16)

    def logits(model):
        ids, pixels = torch.arange(12)[None], torch.linspace(-1, 1, 192).view(1, 3, 8, 8)
        x = pixels.to(model.dtype) if model.main_input_name == "pixel_values" else ids
        with torch.no_grad(): return model(x).logits

    # %% ../nbs/50_checkpoints.ipynb #51c3f6be
    def same(model, other):
        A, B = model.state_dict(), other.state_dict()
        assert A.keys() == B.keys() and forms_of(model) == forms_of(other)
        for name, t in A.items(): assert t.dtype == B[name].dtype and torch.equal(t, B[name]), name
        assert torch.equal(logits(model), logits(other)) and type(model) is type(other)

    # %% ../nbs/50_checkpoints.ipynb #eece174e
    model = tiny()
    attach(model, LoRA(r=2))
    for part in model.pathlm_adapters["default"].parts: torch.nn.init.normal_(part.B, std=.1)
    adapted = logits(model)
    with tempfile.TemporaryDirectory() as d:
        dense = AutoModelForCausalLM.from_pretrained(save(merge(model), None, d))
        torch.testing.assert_close(logits(dense), adapted, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(adapted, logits(tiny()), atol=1e-3)


def test_damage_is_found():
    # %% ../nbs/50_checkpoints.ipynb #870428fa
    logging.disable_progress_bar()
    SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    TINY = {
        "Llama": lambda: new_model(vocab_size=64, head_dim=8, **SMALL),
        "GPT-2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
        "BERT": lambda: BertForSequenceClassification(BertConfig(vocab_size=64, **SMALL)),
        "ViT": lambda: ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **SMALL)),
    }

    def tiny(kind="Llama", dtype=torch.float32, seed=0):
        torch.manual_seed(seed)
        model = TINY[kind]().eval()
        for p in model.parameters(): p.data = p.data.to(dtype)
        return model

    def after(change, model, *args, **settings):
        change(model, *args, **settings)
        return model

    def half(model): return after(sparsify, model, method="magnitude", sparsity=.5)
    def factored(model): return after(prune, model, decompose(model), rate=.75)
    def packed(model): return after(quantize, model, method="rtn", group=16)

    def logits(model):
        ids, pixels = torch.arange(12)[None], torch.linspace(-1, 1, 192).view(1, 3, 8, 8)
        x = pixels.to(model.dtype) if model.main_input_name == "pixel_values" else ids
        with torch.no_grad(): return model(x).logits

    # %% ../nbs/50_checkpoints.ipynb #51c3f6be
    def same(model, other):
        A, B = model.state_dict(), other.state_dict()
        assert A.keys() == B.keys() and forms_of(model) == forms_of(other)
        for name, t in A.items(): assert t.dtype == B[name].dtype and torch.equal(t, B[name]), name
        assert torch.equal(logits(model), logits(other)) and type(model) is type(other)

    # %% ../nbs/50_checkpoints.ipynb #310ee367
    def spoil(folder, how):
        shard, config = sorted(folder.glob("*.safetensors"))[-1], read_json(folder/"config.json")
        about, data = read_json(folder/"pathlm.json"), shard.read_bytes()
        if how == "cut": shard.write_bytes(data[:-9])
        if how == "flipped": shard.write_bytes(data[:-9] + bytes([data[-9] ^ 4]) + data[-8:])
        if how == "missing": shard.unlink()
        if how == "other": shard.rename(folder/"model.safetensors")
        if how == "newer": write_json(folder/"config.json", config | {"quantization_config": {
            **config["quantization_config"], "format": 2}})
        if how == "unknown form": write_json(folder/"config.json", config | {"quantization_config": {
            **config["quantization_config"], "layers": {"lm_head": "Unheard"}}})
        if how == "disagree": write_json(folder/"pathlm.json", about | {"layers": {}})
        if how == "newer recipe": write_json(folder/"pathlm.json", about | {"format": 2})
        if how == "no steps": write_json(folder/"pathlm.json", {k: v for k, v in about.items() if k != "steps"})
        if how == "no json": (folder/"pathlm.json").write_text("{")
        if how == "no index": (folder/"model.safetensors.index.json").unlink()

    def refused(how, folder, plain):
        for read in [AutoModelForCausalLM.from_pretrained]*plain + [load]:
            try: read(folder)
            except (CheckpointError, NonFiniteError) as e: line = str(e)
            else: raise AssertionError("loaded")
            assert str(folder) in line and "\n" not in line
        print(f"{how}: {re.sub('[0-9a-f]{12}…', '…', line.replace(str(folder), 'FOLDER'))[:150]}")

    # %% ../nbs/50_checkpoints.ipynb #b45b80a4
    for how in ("cut", "flipped", "missing", "other", "newer", "unknown form", "disagree", "newer recipe", "no steps",
                "no json"):
        with tempfile.TemporaryDirectory() as d:
            folder = save(factored(tiny()), None, Path(d)/"model", limit=0)
            spoil(folder, how)
            refused(how, folder, how != "missing")


def test_damage_is_found_2():
    # %% ../nbs/50_checkpoints.ipynb #870428fa
    logging.disable_progress_bar()
    SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    TINY = {
        "Llama": lambda: new_model(vocab_size=64, head_dim=8, **SMALL),
        "GPT-2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
        "BERT": lambda: BertForSequenceClassification(BertConfig(vocab_size=64, **SMALL)),
        "ViT": lambda: ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **SMALL)),
    }

    def tiny(kind="Llama", dtype=torch.float32, seed=0):
        torch.manual_seed(seed)
        model = TINY[kind]().eval()
        for p in model.parameters(): p.data = p.data.to(dtype)
        return model

    def after(change, model, *args, **settings):
        change(model, *args, **settings)
        return model

    def half(model): return after(sparsify, model, method="magnitude", sparsity=.5)
    def factored(model): return after(prune, model, decompose(model), rate=.75)
    def packed(model): return after(quantize, model, method="rtn", group=16)

    def logits(model):
        ids, pixels = torch.arange(12)[None], torch.linspace(-1, 1, 192).view(1, 3, 8, 8)
        x = pixels.to(model.dtype) if model.main_input_name == "pixel_values" else ids
        with torch.no_grad(): return model(x).logits

    # %% ../nbs/50_checkpoints.ipynb #51c3f6be
    def same(model, other):
        A, B = model.state_dict(), other.state_dict()
        assert A.keys() == B.keys() and forms_of(model) == forms_of(other)
        for name, t in A.items(): assert t.dtype == B[name].dtype and torch.equal(t, B[name]), name
        assert torch.equal(logits(model), logits(other)) and type(model) is type(other)

    # %% ../nbs/50_checkpoints.ipynb #310ee367
    def spoil(folder, how):
        shard, config = sorted(folder.glob("*.safetensors"))[-1], read_json(folder/"config.json")
        about, data = read_json(folder/"pathlm.json"), shard.read_bytes()
        if how == "cut": shard.write_bytes(data[:-9])
        if how == "flipped": shard.write_bytes(data[:-9] + bytes([data[-9] ^ 4]) + data[-8:])
        if how == "missing": shard.unlink()
        if how == "other": shard.rename(folder/"model.safetensors")
        if how == "newer": write_json(folder/"config.json", config | {"quantization_config": {
            **config["quantization_config"], "format": 2}})
        if how == "unknown form": write_json(folder/"config.json", config | {"quantization_config": {
            **config["quantization_config"], "layers": {"lm_head": "Unheard"}}})
        if how == "disagree": write_json(folder/"pathlm.json", about | {"layers": {}})
        if how == "newer recipe": write_json(folder/"pathlm.json", about | {"format": 2})
        if how == "no steps": write_json(folder/"pathlm.json", {k: v for k, v in about.items() if k != "steps"})
        if how == "no json": (folder/"pathlm.json").write_text("{")
        if how == "no index": (folder/"model.safetensors.index.json").unlink()

    def refused(how, folder, plain):
        for read in [AutoModelForCausalLM.from_pretrained]*plain + [load]:
            try: read(folder)
            except (CheckpointError, NonFiniteError) as e: line = str(e)
            else: raise AssertionError("loaded")
            assert str(folder) in line and "\n" not in line
        print(f"{how}: {re.sub('[0-9a-f]{12}…', '…', line.replace(str(folder), 'FOLDER'))[:150]}")

    # %% ../nbs/50_checkpoints.ipynb #cfb967f6
    def changed(folder, how):
        weights, (name, *_) = folder/"model.safetensors", read_about(folder)["layers"]
        tensors = read_tensors(weights)
        A, B, norm = f"{name}.A", f"{name}.B", "model.norm.weight"
        new = {"missing": {A: None}, "extra": {f"{name}.C": torch.ones(2)}, "rows": {A: tensors[A][1:]},
               "rank": {B: tensors[B][1:]}, "norm": {norm: None}, "shape": {norm: torch.ones(3)},
               "nan": {A: tensors[A]/0}, "stray": {"x": torch.ones(1)}}[how]
        write_tensors(weights, {k: t for k, t in (tensors | new).items() if t is not None}, {"format": "pt"})
        (folder/"pathlm.json").unlink()

    # %% ../nbs/50_checkpoints.ipynb #024cc561
    for how in "missing", "extra", "rows", "rank", "norm", "stray", "shape", "nan":
        with tempfile.TemporaryDirectory() as d:
            changed(folder := save(factored(tiny()), None, Path(d)/"model"), how)
            refused(how, folder, how not in ("shape", "nan"))


def test_damage_is_found_3():
    # %% ../nbs/50_checkpoints.ipynb #870428fa
    logging.disable_progress_bar()
    SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    TINY = {
        "Llama": lambda: new_model(vocab_size=64, head_dim=8, **SMALL),
        "GPT-2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
        "BERT": lambda: BertForSequenceClassification(BertConfig(vocab_size=64, **SMALL)),
        "ViT": lambda: ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **SMALL)),
    }

    def tiny(kind="Llama", dtype=torch.float32, seed=0):
        torch.manual_seed(seed)
        model = TINY[kind]().eval()
        for p in model.parameters(): p.data = p.data.to(dtype)
        return model

    def after(change, model, *args, **settings):
        change(model, *args, **settings)
        return model

    def half(model): return after(sparsify, model, method="magnitude", sparsity=.5)
    def factored(model): return after(prune, model, decompose(model), rate=.75)
    def packed(model): return after(quantize, model, method="rtn", group=16)

    def logits(model):
        ids, pixels = torch.arange(12)[None], torch.linspace(-1, 1, 192).view(1, 3, 8, 8)
        x = pixels.to(model.dtype) if model.main_input_name == "pixel_values" else ids
        with torch.no_grad(): return model(x).logits

    # %% ../nbs/50_checkpoints.ipynb #51c3f6be
    def same(model, other):
        A, B = model.state_dict(), other.state_dict()
        assert A.keys() == B.keys() and forms_of(model) == forms_of(other)
        for name, t in A.items(): assert t.dtype == B[name].dtype and torch.equal(t, B[name]), name
        assert torch.equal(logits(model), logits(other)) and type(model) is type(other)

    # %% ../nbs/50_checkpoints.ipynb #310ee367
    def spoil(folder, how):
        shard, config = sorted(folder.glob("*.safetensors"))[-1], read_json(folder/"config.json")
        about, data = read_json(folder/"pathlm.json"), shard.read_bytes()
        if how == "cut": shard.write_bytes(data[:-9])
        if how == "flipped": shard.write_bytes(data[:-9] + bytes([data[-9] ^ 4]) + data[-8:])
        if how == "missing": shard.unlink()
        if how == "other": shard.rename(folder/"model.safetensors")
        if how == "newer": write_json(folder/"config.json", config | {"quantization_config": {
            **config["quantization_config"], "format": 2}})
        if how == "unknown form": write_json(folder/"config.json", config | {"quantization_config": {
            **config["quantization_config"], "layers": {"lm_head": "Unheard"}}})
        if how == "disagree": write_json(folder/"pathlm.json", about | {"layers": {}})
        if how == "newer recipe": write_json(folder/"pathlm.json", about | {"format": 2})
        if how == "no steps": write_json(folder/"pathlm.json", {k: v for k, v in about.items() if k != "steps"})
        if how == "no json": (folder/"pathlm.json").write_text("{")
        if how == "no index": (folder/"model.safetensors.index.json").unlink()

    def refused(how, folder, plain):
        for read in [AutoModelForCausalLM.from_pretrained]*plain + [load]:
            try: read(folder)
            except (CheckpointError, NonFiniteError) as e: line = str(e)
            else: raise AssertionError("loaded")
            assert str(folder) in line and "\n" not in line
        print(f"{how}: {re.sub('[0-9a-f]{12}…', '…', line.replace(str(folder), 'FOLDER'))[:150]}")

    # %% ../nbs/50_checkpoints.ipynb #cfb967f6
    def changed(folder, how):
        weights, (name, *_) = folder/"model.safetensors", read_about(folder)["layers"]
        tensors = read_tensors(weights)
        A, B, norm = f"{name}.A", f"{name}.B", "model.norm.weight"
        new = {"missing": {A: None}, "extra": {f"{name}.C": torch.ones(2)}, "rows": {A: tensors[A][1:]},
               "rank": {B: tensors[B][1:]}, "norm": {norm: None}, "shape": {norm: torch.ones(3)},
               "nan": {A: tensors[A]/0}, "stray": {"x": torch.ones(1)}}[how]
        write_tensors(weights, {k: t for k, t in (tensors | new).items() if t is not None}, {"format": "pt"})
        (folder/"pathlm.json").unlink()

    # %% ../nbs/50_checkpoints.ipynb #3bf31828
    with tempfile.TemporaryDirectory() as d:
        model = after(shift_add, tiny(), block=(1, 16))
        weights = save(model, None, d)/"model.safetensors"
        (Path(d)/"pathlm.json").unlink()
        tensors, name = read_tensors(weights), next(iter(forms_of(model)))
        for key, spoilt in (("planes", lambda t: t[..., 1:]), ("numbers", lambda t: t[:, 1:]), ("size", lambda t: t*2),
                            ("planes", None)):
            new = tensors | {f"{name}.{key}": spoilt and spoilt(tensors[f"{name}.{key}"])}
            write_tensors(weights, {k: t.contiguous() for k, t in new.items() if t is not None}, {"format": "pt"})
            try: load(d)
            except CheckpointError as e: assert d in str(e) and name in str(e), e
            else: raise AssertionError(key)


def test_damage_is_found_4():
    # %% ../nbs/50_checkpoints.ipynb #870428fa
    logging.disable_progress_bar()
    SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    TINY = {
        "Llama": lambda: new_model(vocab_size=64, head_dim=8, **SMALL),
        "GPT-2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
        "BERT": lambda: BertForSequenceClassification(BertConfig(vocab_size=64, **SMALL)),
        "ViT": lambda: ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **SMALL)),
    }

    def tiny(kind="Llama", dtype=torch.float32, seed=0):
        torch.manual_seed(seed)
        model = TINY[kind]().eval()
        for p in model.parameters(): p.data = p.data.to(dtype)
        return model

    def after(change, model, *args, **settings):
        change(model, *args, **settings)
        return model

    def half(model): return after(sparsify, model, method="magnitude", sparsity=.5)
    def factored(model): return after(prune, model, decompose(model), rate=.75)
    def packed(model): return after(quantize, model, method="rtn", group=16)

    def logits(model):
        ids, pixels = torch.arange(12)[None], torch.linspace(-1, 1, 192).view(1, 3, 8, 8)
        x = pixels.to(model.dtype) if model.main_input_name == "pixel_values" else ids
        with torch.no_grad(): return model(x).logits

    # %% ../nbs/50_checkpoints.ipynb #51c3f6be
    def same(model, other):
        A, B = model.state_dict(), other.state_dict()
        assert A.keys() == B.keys() and forms_of(model) == forms_of(other)
        for name, t in A.items(): assert t.dtype == B[name].dtype and torch.equal(t, B[name]), name
        assert torch.equal(logits(model), logits(other)) and type(model) is type(other)

    # %% ../nbs/50_checkpoints.ipynb #310ee367
    def spoil(folder, how):
        shard, config = sorted(folder.glob("*.safetensors"))[-1], read_json(folder/"config.json")
        about, data = read_json(folder/"pathlm.json"), shard.read_bytes()
        if how == "cut": shard.write_bytes(data[:-9])
        if how == "flipped": shard.write_bytes(data[:-9] + bytes([data[-9] ^ 4]) + data[-8:])
        if how == "missing": shard.unlink()
        if how == "other": shard.rename(folder/"model.safetensors")
        if how == "newer": write_json(folder/"config.json", config | {"quantization_config": {
            **config["quantization_config"], "format": 2}})
        if how == "unknown form": write_json(folder/"config.json", config | {"quantization_config": {
            **config["quantization_config"], "layers": {"lm_head": "Unheard"}}})
        if how == "disagree": write_json(folder/"pathlm.json", about | {"layers": {}})
        if how == "newer recipe": write_json(folder/"pathlm.json", about | {"format": 2})
        if how == "no steps": write_json(folder/"pathlm.json", {k: v for k, v in about.items() if k != "steps"})
        if how == "no json": (folder/"pathlm.json").write_text("{")
        if how == "no index": (folder/"model.safetensors.index.json").unlink()

    def refused(how, folder, plain):
        for read in [AutoModelForCausalLM.from_pretrained]*plain + [load]:
            try: read(folder)
            except (CheckpointError, NonFiniteError) as e: line = str(e)
            else: raise AssertionError("loaded")
            assert str(folder) in line and "\n" not in line
        print(f"{how}: {re.sub('[0-9a-f]{12}…', '…', line.replace(str(folder), 'FOLDER'))[:150]}")

    # %% ../nbs/50_checkpoints.ipynb #cfb967f6
    def changed(folder, how):
        weights, (name, *_) = folder/"model.safetensors", read_about(folder)["layers"]
        tensors = read_tensors(weights)
        A, B, norm = f"{name}.A", f"{name}.B", "model.norm.weight"
        new = {"missing": {A: None}, "extra": {f"{name}.C": torch.ones(2)}, "rows": {A: tensors[A][1:]},
               "rank": {B: tensors[B][1:]}, "norm": {norm: None}, "shape": {norm: torch.ones(3)},
               "nan": {A: tensors[A]/0}, "stray": {"x": torch.ones(1)}}[how]
        write_tensors(weights, {k: t for k, t in (tensors | new).items() if t is not None}, {"format": "pt"})
        (folder/"pathlm.json").unlink()

    # %% ../nbs/50_checkpoints.ipynb #5230f751
    with tempfile.TemporaryDirectory() as d:
        (Path(d)/"file").touch()
        try: save(tiny(), None, f"{d}/file/model")
        except OutputError as e: assert f"{d}/file/model" in str(e)
        else: raise AssertionError("written into a file")


def test_killed_at_any_moment():
    # %% ../nbs/50_checkpoints.ipynb #870428fa
    logging.disable_progress_bar()
    SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    TINY = {
        "Llama": lambda: new_model(vocab_size=64, head_dim=8, **SMALL),
        "GPT-2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
        "BERT": lambda: BertForSequenceClassification(BertConfig(vocab_size=64, **SMALL)),
        "ViT": lambda: ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **SMALL)),
    }

    def tiny(kind="Llama", dtype=torch.float32, seed=0):
        torch.manual_seed(seed)
        model = TINY[kind]().eval()
        for p in model.parameters(): p.data = p.data.to(dtype)
        return model

    def after(change, model, *args, **settings):
        change(model, *args, **settings)
        return model

    def half(model): return after(sparsify, model, method="magnitude", sparsity=.5)
    def factored(model): return after(prune, model, decompose(model), rate=.75)
    def packed(model): return after(quantize, model, method="rtn", group=16)

    def logits(model):
        ids, pixels = torch.arange(12)[None], torch.linspace(-1, 1, 192).view(1, 3, 8, 8)
        x = pixels.to(model.dtype) if model.main_input_name == "pixel_values" else ids
        with torch.no_grad(): return model(x).logits

    # %% ../nbs/50_checkpoints.ipynb #51c3f6be
    def same(model, other):
        A, B = model.state_dict(), other.state_dict()
        assert A.keys() == B.keys() and forms_of(model) == forms_of(other)
        for name, t in A.items(): assert t.dtype == B[name].dtype and torch.equal(t, B[name]), name
        assert torch.equal(logits(model), logits(other)) and type(model) is type(other)

    # %% ../nbs/50_checkpoints.ipynb #b3bedca6
    CHILD = """
import os, signal, sys
from pathlib import Path
from pathlm.base import move_in
left = int(sys.argv[1])
def watch(event, args):
    global left
    if event in ("os.rename", "os.remove"):
        if left == 0: os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
sys.addaudithook(watch)
move_in(Path("draft"), Path("folder"))
"""

    def killed(d, k):
        return subprocess.run([sys.executable, "-c", CHILD, str(k)], cwd=d, env=os.environ | {"PYTHONPATH": str(
            Path(pathlm.__file__).parents[1])}).returncode == -9

    # %% ../nbs/50_checkpoints.ipynb #bc502d7b
    old, new, k, alive = factored(tiny(seed=1)), packed(tiny(seed=2)), 0, True
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"old": 0})))
    while alive:
        with tempfile.TemporaryDirectory() as d:
            save(old, words, f"{d}/folder", limit=0)
            save(new, None, f"{d}/draft")
            alive = killed(d, k)
            if 0 < k and alive:
                try: load(f"{d}/folder")
                except CheckpointError as e: assert "no config.json" in str(e)
                else: raise AssertionError(f"loaded after {k} steps")
            else:
                loaded, tokenizer = load(f"{d}/folder")
                same(loaded, new if k else old)
                assert tokenizer is None if k else tokenizer.get_vocab() == {"old": 0}
            k += 1
    assert k > 8


def test_limits():
    # %% ../nbs/50_checkpoints.ipynb #870428fa
    logging.disable_progress_bar()
    SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    TINY = {
        "Llama": lambda: new_model(vocab_size=64, head_dim=8, **SMALL),
        "GPT-2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
        "BERT": lambda: BertForSequenceClassification(BertConfig(vocab_size=64, **SMALL)),
        "ViT": lambda: ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **SMALL)),
    }

    def tiny(kind="Llama", dtype=torch.float32, seed=0):
        torch.manual_seed(seed)
        model = TINY[kind]().eval()
        for p in model.parameters(): p.data = p.data.to(dtype)
        return model

    def after(change, model, *args, **settings):
        change(model, *args, **settings)
        return model

    def half(model): return after(sparsify, model, method="magnitude", sparsity=.5)
    def factored(model): return after(prune, model, decompose(model), rate=.75)
    def packed(model): return after(quantize, model, method="rtn", group=16)

    def logits(model):
        ids, pixels = torch.arange(12)[None], torch.linspace(-1, 1, 192).view(1, 3, 8, 8)
        x = pixels.to(model.dtype) if model.main_input_name == "pixel_values" else ids
        with torch.no_grad(): return model(x).logits

    # %% ../nbs/50_checkpoints.ipynb #51c3f6be
    def same(model, other):
        A, B = model.state_dict(), other.state_dict()
        assert A.keys() == B.keys() and forms_of(model) == forms_of(other)
        for name, t in A.items(): assert t.dtype == B[name].dtype and torch.equal(t, B[name]), name
        assert torch.equal(logits(model), logits(other)) and type(model) is type(other)

    # %% ../nbs/50_checkpoints.ipynb #5ce3b37f
    with tempfile.TemporaryDirectory() as d, patch.dict(known):
        save(factored(tiny()), None, d)
        del known["pathlm"]
        logging.set_verbosity(50)
        stranger, info = AutoModelForCausalLM.from_pretrained(d, output_loading_info=True)
        logging.set_verbosity_warning()
        print(f"{len(info['missing_keys'])} weights drawn at random, {len(info['unexpected_keys'])} tensors not used")
        dense = AutoModelForCausalLM.from_pretrained(save(densify(factored(tiny())), None, d))
        torch.testing.assert_close(logits(dense), logits(factored(tiny())))


def test_limits_2():
    # %% ../nbs/50_checkpoints.ipynb #870428fa
    logging.disable_progress_bar()
    SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    TINY = {
        "Llama": lambda: new_model(vocab_size=64, head_dim=8, **SMALL),
        "GPT-2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
        "BERT": lambda: BertForSequenceClassification(BertConfig(vocab_size=64, **SMALL)),
        "ViT": lambda: ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **SMALL)),
    }

    def tiny(kind="Llama", dtype=torch.float32, seed=0):
        torch.manual_seed(seed)
        model = TINY[kind]().eval()
        for p in model.parameters(): p.data = p.data.to(dtype)
        return model

    def after(change, model, *args, **settings):
        change(model, *args, **settings)
        return model

    def half(model): return after(sparsify, model, method="magnitude", sparsity=.5)
    def factored(model): return after(prune, model, decompose(model), rate=.75)
    def packed(model): return after(quantize, model, method="rtn", group=16)

    def logits(model):
        ids, pixels = torch.arange(12)[None], torch.linspace(-1, 1, 192).view(1, 3, 8, 8)
        x = pixels.to(model.dtype) if model.main_input_name == "pixel_values" else ids
        with torch.no_grad(): return model(x).logits

    # %% ../nbs/50_checkpoints.ipynb #51c3f6be
    def same(model, other):
        A, B = model.state_dict(), other.state_dict()
        assert A.keys() == B.keys() and forms_of(model) == forms_of(other)
        for name, t in A.items(): assert t.dtype == B[name].dtype and torch.equal(t, B[name]), name
        assert torch.equal(logits(model), logits(other)) and type(model) is type(other)

    # %% ../nbs/50_checkpoints.ipynb #2c8e4871
    with tempfile.TemporaryDirectory() as d:
        factored(tiny()).save_pretrained(d)
        try: load(d)
        except CheckpointError as e: print(str(e).replace(d, "FOLDER"))
        else: raise AssertionError("loaded without a table of forms")
