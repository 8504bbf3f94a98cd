from pathlm.streaming import *
import os
from pathlib import Path
import torch
from torch import nn
from pathlm.base import CheckpointError
from pathlm.base import SettingError
from pathlm.base import write_part
from pathlm.checkpoints import own_tensors
from pathlm.checkpoints import part_of
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from functools import partial
from unittest.mock import patch
import transformers as tf
from pathlm.checkpoints import load
from pathlm.checkpoints import save
from pathlm.checkpoints import step
from pathlm.checkpoints import stored_dtype
from pathlm.grid import quantize
from pathlm.shiftadd.layer import shift_add
from pathlm.sparsity import sparsify
from pathlm.spectral import factorize


def test_a_block_and_what_enters_it():
    # %% ../nbs/55_streaming.ipynb #21b6e48a
    def tiny(kind="Llama", tie=False):
        "A model of two blocks with random weights and biases, and a vocabulary of 96."
        torch.manual_seed(0)
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0, tie_word_embeddings=tie)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                            max_position_embeddings=64)
        if kind == "GPT-2":
            model = tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4, n_positions=64))
        elif kind == "GPT-J":
            model = tf.GPTJForCausalLM(tf.GPTJConfig(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4, rotary_dim=8))
        elif kind == "OPT": model = tf.OPTForCausalLM(tf.OPTConfig(**common | dict(ffn_dim=48, word_embed_proj_dim=16)))
        elif kind == "T5":
            shape = dict(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
            model = tf.T5ForConditionalGeneration(tf.T5Config(**ids, **shape))
        elif kind == "BERT": model = tf.BertForMaskedLM(tf.BertConfig(**common))
        else: model = tf.LlamaForCausalLM(tf.LlamaConfig(**common | dict(num_key_value_heads=2)))
        for name, p in model.named_parameters():
            if name.endswith("bias"): nn.init.normal_(p, std=.1)
        return model.bfloat16().eval()

    batches = [torch.randint(1, 96, (2, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]
    def weights(folder): return {f.name: f.read_bytes() for f in sorted(Path(folder).glob("*.safetensors"))}

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    # %% ../nbs/55_streaming.ipynb #48f0a9b2
    WAYS = {
        "rtn": partial(quantize, method="rtn", group=16),
        "gptq": partial(quantize, batches=batches, group=16),
        "gptq, rotated": partial(quantize, batches=batches, group=16, rotate=1),
        "shift-add": partial(shift_add, block=(1, 16)),
        "shift-add, output": partial(shift_add, batches=batches, bits=2, block=(1, 16)),
        "svd": partial(factorize, rate=.75, layers=[-1]),
        "svd, output": partial(factorize, batches=batches, energy=.9),
        "magnitude": partial(sparsify, method="magnitude", pattern="2:4"),
        "wanda": partial(sparsify, batches=batches),
        "sparsegpt": partial(sparsify, batches=batches, method="sparsegpt"),
    }

    def in_memory(path, out, change, recipe=None):
        "What `stream` is to equal."
        model, tokenizer = load(path, stored_dtype(path))
        change(model)
        save(model, tokenizer, out, recipe)

    def quietly(f, *args, **kwargs):
        "Run something that warns of little calibration text, and give what it returns."
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return f(*args, **kwargs)

    def told(folder):
        "Read the recipe and the config of a folder."
        return json.loads((Path(folder)/"pathlm.json").read_text()), (Path(folder)/"config.json").read_text()

    def same(a, b):
        "Compare the bytes of two folders."
        names = [sorted(f.name for f in Path(d).iterdir()) for d in (a, b)]
        return len(weights(a)) > 0 and weights(a) == weights(b) and told(a) == told(b) and names[0] == names[1]

    # %% ../nbs/55_streaming.ipynb #189f8d4b
    CHILD = """
import sys, time, torch
from functools import partial
from unittest.mock import patch
import pathlm.streaming
from pathlm.grid import quantize
from pathlm.sparsity import sparsify
write = pathlm.streaming.write_part
def slowly(*args):
    write(*args)
    if sys.argv[3] == "slow": time.sleep(60)
pathlm.streaming.write_part = slowly
batches = [torch.randint(1, 96, (2, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]
ways = {"gptq": partial(quantize, batches=batches, group=16), "rtn": partial(quantize, method="rtn", group=16),
        "wanda": partial(sparsify, batches=batches)}
with patch("torch.cuda.is_available", lambda: True): pathlm.streaming.ranks()
for name in sys.argv[4:]: pathlm.streaming.stream(sys.argv[1], f"{sys.argv[2]} {name}", ways[name])
def full(): raise OSError("no space left")
try: pathlm.streaming.agreed(full)
except OSError as e: assert str(e) == "no space left"
else: raise AssertionError("only one process failed")
"""

    def child(*args, **environment):
        "Start a process that streams."
        return subprocess.Popen([sys.executable, "-W", "ignore", "-c", CHILD, *args],
                                env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())} | environment)

    # %% ../nbs/55_streaming.ipynb #c35a4037
    model = tiny()
    before = {name: t.shape for name, t in model.state_dict().items()}
    assert not any(p.is_meta for p in model.parameters())
    empty(model)
    assert all(p.is_meta for p in model.parameters()) and not any(b.is_meta for b in model.buffers())
    assert {name: t.shape for name, t in model.state_dict().items()} == before


def test_a_block_and_what_enters_it_2():
    # %% ../nbs/55_streaming.ipynb #21b6e48a
    def tiny(kind="Llama", tie=False):
        "A model of two blocks with random weights and biases, and a vocabulary of 96."
        torch.manual_seed(0)
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0, tie_word_embeddings=tie)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                            max_position_embeddings=64)
        if kind == "GPT-2":
            model = tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4, n_positions=64))
        elif kind == "GPT-J":
            model = tf.GPTJForCausalLM(tf.GPTJConfig(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4, rotary_dim=8))
        elif kind == "OPT": model = tf.OPTForCausalLM(tf.OPTConfig(**common | dict(ffn_dim=48, word_embed_proj_dim=16)))
        elif kind == "T5":
            shape = dict(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
            model = tf.T5ForConditionalGeneration(tf.T5Config(**ids, **shape))
        elif kind == "BERT": model = tf.BertForMaskedLM(tf.BertConfig(**common))
        else: model = tf.LlamaForCausalLM(tf.LlamaConfig(**common | dict(num_key_value_heads=2)))
        for name, p in model.named_parameters():
            if name.endswith("bias"): nn.init.normal_(p, std=.1)
        return model.bfloat16().eval()

    batches = [torch.randint(1, 96, (2, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]
    def weights(folder): return {f.name: f.read_bytes() for f in sorted(Path(folder).glob("*.safetensors"))}

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    # %% ../nbs/55_streaming.ipynb #48f0a9b2
    WAYS = {
        "rtn": partial(quantize, method="rtn", group=16),
        "gptq": partial(quantize, batches=batches, group=16),
        "gptq, rotated": partial(quantize, batches=batches, group=16, rotate=1),
        "shift-add": partial(shift_add, block=(1, 16)),
        "shift-add, output": partial(shift_add, batches=batches, bits=2, block=(1, 16)),
        "svd": partial(factorize, rate=.75, layers=[-1]),
        "svd, output": partial(factorize, batches=batches, energy=.9),
        "magnitude": partial(sparsify, method="magnitude", pattern="2:4"),
        "wanda": partial(sparsify, batches=batches),
        "sparsegpt": partial(sparsify, batches=batches, method="sparsegpt"),
    }

    def in_memory(path, out, change, recipe=None):
        "What `stream` is to equal."
        model, tokenizer = load(path, stored_dtype(path))
        change(model)
        save(model, tokenizer, out, recipe)

    def quietly(f, *args, **kwargs):
        "Run something that warns of little calibration text, and give what it returns."
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return f(*args, **kwargs)

    def told(folder):
        "Read the recipe and the config of a folder."
        return json.loads((Path(folder)/"pathlm.json").read_text()), (Path(folder)/"config.json").read_text()

    def same(a, b):
        "Compare the bytes of two folders."
        names = [sorted(f.name for f in Path(d).iterdir()) for d in (a, b)]
        return len(weights(a)) > 0 and weights(a) == weights(b) and told(a) == told(b) and names[0] == names[1]

    # %% ../nbs/55_streaming.ipynb #189f8d4b
    CHILD = """
import sys, time, torch
from functools import partial
from unittest.mock import patch
import pathlm.streaming
from pathlm.grid import quantize
from pathlm.sparsity import sparsify
write = pathlm.streaming.write_part
def slowly(*args):
    write(*args)
    if sys.argv[3] == "slow": time.sleep(60)
pathlm.streaming.write_part = slowly
batches = [torch.randint(1, 96, (2, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]
ways = {"gptq": partial(quantize, batches=batches, group=16), "rtn": partial(quantize, method="rtn", group=16),
        "wanda": partial(sparsify, batches=batches)}
with patch("torch.cuda.is_available", lambda: True): pathlm.streaming.ranks()
for name in sys.argv[4:]: pathlm.streaming.stream(sys.argv[1], f"{sys.argv[2]} {name}", ways[name])
def full(): raise OSError("no space left")
try: pathlm.streaming.agreed(full)
except OSError as e: assert str(e) == "no space left"
else: raise AssertionError("only one process failed")
"""

    def child(*args, **environment):
        "Start a process that streams."
        return subprocess.Popen([sys.executable, "-W", "ignore", "-c", CHILD, *args],
                                env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())} | environment)

    # %% ../nbs/55_streaming.ipynb #eb4685cd
    with tempfile.TemporaryDirectory() as d:
        states, xs = States(Path(d)/"states", 100), [torch.full((5,), float(i)) for i in range(9)]
        for x in xs: states.append(x)
        assert len(states) == 9 and len(states.held) == 5 and len(list((Path(d)/"states").iterdir())) == 4
        assert all(torch.equal(x, y) for x, y in zip(states, xs, strict=True))
        states[8], states[0] = xs[0], xs[8]
        assert torch.equal(states[8], xs[0]) and torch.equal(states[0], xs[8]) and len(states) == 9
        assert refusal(IndexError, lambda: states[9]) == "9"


def test_several_processes():
    # %% ../nbs/55_streaming.ipynb #21b6e48a
    def tiny(kind="Llama", tie=False):
        "A model of two blocks with random weights and biases, and a vocabulary of 96."
        torch.manual_seed(0)
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0, tie_word_embeddings=tie)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                            max_position_embeddings=64)
        if kind == "GPT-2":
            model = tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4, n_positions=64))
        elif kind == "GPT-J":
            model = tf.GPTJForCausalLM(tf.GPTJConfig(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4, rotary_dim=8))
        elif kind == "OPT": model = tf.OPTForCausalLM(tf.OPTConfig(**common | dict(ffn_dim=48, word_embed_proj_dim=16)))
        elif kind == "T5":
            shape = dict(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
            model = tf.T5ForConditionalGeneration(tf.T5Config(**ids, **shape))
        elif kind == "BERT": model = tf.BertForMaskedLM(tf.BertConfig(**common))
        else: model = tf.LlamaForCausalLM(tf.LlamaConfig(**common | dict(num_key_value_heads=2)))
        for name, p in model.named_parameters():
            if name.endswith("bias"): nn.init.normal_(p, std=.1)
        return model.bfloat16().eval()

    batches = [torch.randint(1, 96, (2, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]
    def weights(folder): return {f.name: f.read_bytes() for f in sorted(Path(folder).glob("*.safetensors"))}

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    # %% ../nbs/55_streaming.ipynb #48f0a9b2
    WAYS = {
        "rtn": partial(quantize, method="rtn", group=16),
        "gptq": partial(quantize, batches=batches, group=16),
        "gptq, rotated": partial(quantize, batches=batches, group=16, rotate=1),
        "shift-add": partial(shift_add, block=(1, 16)),
        "shift-add, output": partial(shift_add, batches=batches, bits=2, block=(1, 16)),
        "svd": partial(factorize, rate=.75, layers=[-1]),
        "svd, output": partial(factorize, batches=batches, energy=.9),
        "magnitude": partial(sparsify, method="magnitude", pattern="2:4"),
        "wanda": partial(sparsify, batches=batches),
        "sparsegpt": partial(sparsify, batches=batches, method="sparsegpt"),
    }

    def in_memory(path, out, change, recipe=None):
        "What `stream` is to equal."
        model, tokenizer = load(path, stored_dtype(path))
        change(model)
        save(model, tokenizer, out, recipe)

    def quietly(f, *args, **kwargs):
        "Run something that warns of little calibration text, and give what it returns."
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return f(*args, **kwargs)

    def told(folder):
        "Read the recipe and the config of a folder."
        return json.loads((Path(folder)/"pathlm.json").read_text()), (Path(folder)/"config.json").read_text()

    def same(a, b):
        "Compare the bytes of two folders."
        names = [sorted(f.name for f in Path(d).iterdir()) for d in (a, b)]
        return len(weights(a)) > 0 and weights(a) == weights(b) and told(a) == told(b) and names[0] == names[1]

    # %% ../nbs/55_streaming.ipynb #189f8d4b
    CHILD = """
import sys, time, torch
from functools import partial
from unittest.mock import patch
import pathlm.streaming
from pathlm.grid import quantize
from pathlm.sparsity import sparsify
write = pathlm.streaming.write_part
def slowly(*args):
    write(*args)
    if sys.argv[3] == "slow": time.sleep(60)
pathlm.streaming.write_part = slowly
batches = [torch.randint(1, 96, (2, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]
ways = {"gptq": partial(quantize, batches=batches, group=16), "rtn": partial(quantize, method="rtn", group=16),
        "wanda": partial(sparsify, batches=batches)}
with patch("torch.cuda.is_available", lambda: True): pathlm.streaming.ranks()
for name in sys.argv[4:]: pathlm.streaming.stream(sys.argv[1], f"{sys.argv[2]} {name}", ways[name])
def full(): raise OSError("no space left")
try: pathlm.streaming.agreed(full)
except OSError as e: assert str(e) == "no space left"
else: raise AssertionError("only one process failed")
"""

    def child(*args, **environment):
        "Start a process that streams."
        return subprocess.Popen([sys.executable, "-W", "ignore", "-c", CHILD, *args],
                                env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())} | environment)

    # %% ../nbs/55_streaming.ipynb #b6e82a94
    assert ranks() == (0, 1) and agreed(lambda: 7) == 7


def test_the_same_bytes():
    # %% ../nbs/55_streaming.ipynb #21b6e48a
    def tiny(kind="Llama", tie=False):
        "A model of two blocks with random weights and biases, and a vocabulary of 96."
        torch.manual_seed(0)
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0, tie_word_embeddings=tie)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                            max_position_embeddings=64)
        if kind == "GPT-2":
            model = tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4, n_positions=64))
        elif kind == "GPT-J":
            model = tf.GPTJForCausalLM(tf.GPTJConfig(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4, rotary_dim=8))
        elif kind == "OPT": model = tf.OPTForCausalLM(tf.OPTConfig(**common | dict(ffn_dim=48, word_embed_proj_dim=16)))
        elif kind == "T5":
            shape = dict(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
            model = tf.T5ForConditionalGeneration(tf.T5Config(**ids, **shape))
        elif kind == "BERT": model = tf.BertForMaskedLM(tf.BertConfig(**common))
        else: model = tf.LlamaForCausalLM(tf.LlamaConfig(**common | dict(num_key_value_heads=2)))
        for name, p in model.named_parameters():
            if name.endswith("bias"): nn.init.normal_(p, std=.1)
        return model.bfloat16().eval()

    batches = [torch.randint(1, 96, (2, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]
    def weights(folder): return {f.name: f.read_bytes() for f in sorted(Path(folder).glob("*.safetensors"))}

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    # %% ../nbs/55_streaming.ipynb #48f0a9b2
    WAYS = {
        "rtn": partial(quantize, method="rtn", group=16),
        "gptq": partial(quantize, batches=batches, group=16),
        "gptq, rotated": partial(quantize, batches=batches, group=16, rotate=1),
        "shift-add": partial(shift_add, block=(1, 16)),
        "shift-add, output": partial(shift_add, batches=batches, bits=2, block=(1, 16)),
        "svd": partial(factorize, rate=.75, layers=[-1]),
        "svd, output": partial(factorize, batches=batches, energy=.9),
        "magnitude": partial(sparsify, method="magnitude", pattern="2:4"),
        "wanda": partial(sparsify, batches=batches),
        "sparsegpt": partial(sparsify, batches=batches, method="sparsegpt"),
    }

    def in_memory(path, out, change, recipe=None):
        "What `stream` is to equal."
        model, tokenizer = load(path, stored_dtype(path))
        change(model)
        save(model, tokenizer, out, recipe)

    def quietly(f, *args, **kwargs):
        "Run something that warns of little calibration text, and give what it returns."
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return f(*args, **kwargs)

    def told(folder):
        "Read the recipe and the config of a folder."
        return json.loads((Path(folder)/"pathlm.json").read_text()), (Path(folder)/"config.json").read_text()

    def same(a, b):
        "Compare the bytes of two folders."
        names = [sorted(f.name for f in Path(d).iterdir()) for d in (a, b)]
        return len(weights(a)) > 0 and weights(a) == weights(b) and told(a) == told(b) and names[0] == names[1]

    # %% ../nbs/55_streaming.ipynb #189f8d4b
    CHILD = """
import sys, time, torch
from functools import partial
from unittest.mock import patch
import pathlm.streaming
from pathlm.grid import quantize
from pathlm.sparsity import sparsify
write = pathlm.streaming.write_part
def slowly(*args):
    write(*args)
    if sys.argv[3] == "slow": time.sleep(60)
pathlm.streaming.write_part = slowly
batches = [torch.randint(1, 96, (2, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]
ways = {"gptq": partial(quantize, batches=batches, group=16), "rtn": partial(quantize, method="rtn", group=16),
        "wanda": partial(sparsify, batches=batches)}
with patch("torch.cuda.is_available", lambda: True): pathlm.streaming.ranks()
for name in sys.argv[4:]: pathlm.streaming.stream(sys.argv[1], f"{sys.argv[2]} {name}", ways[name])
def full(): raise OSError("no space left")
try: pathlm.streaming.agreed(full)
except OSError as e: assert str(e) == "no space left"
else: raise AssertionError("only one process failed")
"""

    def child(*args, **environment):
        "Start a process that streams."
        return subprocess.Popen([sys.executable, "-W", "ignore", "-c", CHILD, *args],
                                env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())} | environment)

    # %% ../nbs/55_streaming.ipynb #7de975cd
    def check(model, names=tuple(WAYS), **more):
        with tempfile.TemporaryDirectory() as d:
            save(model, None, f"{d}/in")
            for name in names:
                recipe = step(name)
                quietly(stream, f"{d}/in", f"{d}/out", partial(WAYS[name], **more), recipe)
                quietly(in_memory, f"{d}/in", f"{d}/memory", partial(WAYS[name], **more), recipe)
                assert same(f"{d}/out", f"{d}/memory")
                assert weights(f"{d}/out") != weights(f"{d}/in")

    check(tiny())
    check(tiny("GPT-2"), ["gptq", "svd, output"])
    check(tiny("OPT"), ["shift-add, output"])
    check(tiny("BERT"), ["wanda"])
    check(tiny("T5"), ["gptq"], batches=[{"input_ids": b, "decoder_input_ids": b.flip(1)} for b in batches])
    check(tiny(tie=True), ["gptq"])


def test_the_same_bytes_2():
    # %% ../nbs/55_streaming.ipynb #21b6e48a
    def tiny(kind="Llama", tie=False):
        "A model of two blocks with random weights and biases, and a vocabulary of 96."
        torch.manual_seed(0)
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0, tie_word_embeddings=tie)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                            max_position_embeddings=64)
        if kind == "GPT-2":
            model = tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4, n_positions=64))
        elif kind == "GPT-J":
            model = tf.GPTJForCausalLM(tf.GPTJConfig(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4, rotary_dim=8))
        elif kind == "OPT": model = tf.OPTForCausalLM(tf.OPTConfig(**common | dict(ffn_dim=48, word_embed_proj_dim=16)))
        elif kind == "T5":
            shape = dict(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
            model = tf.T5ForConditionalGeneration(tf.T5Config(**ids, **shape))
        elif kind == "BERT": model = tf.BertForMaskedLM(tf.BertConfig(**common))
        else: model = tf.LlamaForCausalLM(tf.LlamaConfig(**common | dict(num_key_value_heads=2)))
        for name, p in model.named_parameters():
            if name.endswith("bias"): nn.init.normal_(p, std=.1)
        return model.bfloat16().eval()

    batches = [torch.randint(1, 96, (2, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]
    def weights(folder): return {f.name: f.read_bytes() for f in sorted(Path(folder).glob("*.safetensors"))}

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    # %% ../nbs/55_streaming.ipynb #48f0a9b2
    WAYS = {
        "rtn": partial(quantize, method="rtn", group=16),
        "gptq": partial(quantize, batches=batches, group=16),
        "gptq, rotated": partial(quantize, batches=batches, group=16, rotate=1),
        "shift-add": partial(shift_add, block=(1, 16)),
        "shift-add, output": partial(shift_add, batches=batches, bits=2, block=(1, 16)),
        "svd": partial(factorize, rate=.75, layers=[-1]),
        "svd, output": partial(factorize, batches=batches, energy=.9),
        "magnitude": partial(sparsify, method="magnitude", pattern="2:4"),
        "wanda": partial(sparsify, batches=batches),
        "sparsegpt": partial(sparsify, batches=batches, method="sparsegpt"),
    }

    def in_memory(path, out, change, recipe=None):
        "What `stream` is to equal."
        model, tokenizer = load(path, stored_dtype(path))
        change(model)
        save(model, tokenizer, out, recipe)

    def quietly(f, *args, **kwargs):
        "Run something that warns of little calibration text, and give what it returns."
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return f(*args, **kwargs)

    def told(folder):
        "Read the recipe and the config of a folder."
        return json.loads((Path(folder)/"pathlm.json").read_text()), (Path(folder)/"config.json").read_text()

    def same(a, b):
        "Compare the bytes of two folders."
        names = [sorted(f.name for f in Path(d).iterdir()) for d in (a, b)]
        return len(weights(a)) > 0 and weights(a) == weights(b) and told(a) == told(b) and names[0] == names[1]

    # %% ../nbs/55_streaming.ipynb #189f8d4b
    CHILD = """
import sys, time, torch
from functools import partial
from unittest.mock import patch
import pathlm.streaming
from pathlm.grid import quantize
from pathlm.sparsity import sparsify
write = pathlm.streaming.write_part
def slowly(*args):
    write(*args)
    if sys.argv[3] == "slow": time.sleep(60)
pathlm.streaming.write_part = slowly
batches = [torch.randint(1, 96, (2, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]
ways = {"gptq": partial(quantize, batches=batches, group=16), "rtn": partial(quantize, method="rtn", group=16),
        "wanda": partial(sparsify, batches=batches)}
with patch("torch.cuda.is_available", lambda: True): pathlm.streaming.ranks()
for name in sys.argv[4:]: pathlm.streaming.stream(sys.argv[1], f"{sys.argv[2]} {name}", ways[name])
def full(): raise OSError("no space left")
try: pathlm.streaming.agreed(full)
except OSError as e: assert str(e) == "no space left"
else: raise AssertionError("only one process failed")
"""

    def child(*args, **environment):
        "Start a process that streams."
        return subprocess.Popen([sys.executable, "-W", "ignore", "-c", CHILD, *args],
                                env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())} | environment)

    # %% ../nbs/55_streaming.ipynb #c159fbee
    with tempfile.TemporaryDirectory() as d:
        save(tiny("GPT-J"), None, f"{d}/in")
        block = quietly(load, f"{d}/in")[0].transformer.h[0]
        assert type(block(torch.zeros(1, 1, 32), position_ids=torch.zeros(1, 1).long())) is tuple
        for k, target in enumerate(["all-linear", "lm_head", ["lm_head", "q_proj"]]):
            change = partial(quantize, batches=batches, group=16, target=target)
            quietly(stream, f"{d}/in", f"{d}/out {k}", change)
            quietly(in_memory, f"{d}/in", f"{d}/memory {k}", change)
            assert same(f"{d}/out {k}", f"{d}/memory {k}")


def test_the_same_bytes_3():
    # %% ../nbs/55_streaming.ipynb #21b6e48a
    def tiny(kind="Llama", tie=False):
        "A model of two blocks with random weights and biases, and a vocabulary of 96."
        torch.manual_seed(0)
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0, tie_word_embeddings=tie)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                            max_position_embeddings=64)
        if kind == "GPT-2":
            model = tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4, n_positions=64))
        elif kind == "GPT-J":
            model = tf.GPTJForCausalLM(tf.GPTJConfig(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4, rotary_dim=8))
        elif kind == "OPT": model = tf.OPTForCausalLM(tf.OPTConfig(**common | dict(ffn_dim=48, word_embed_proj_dim=16)))
        elif kind == "T5":
            shape = dict(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
            model = tf.T5ForConditionalGeneration(tf.T5Config(**ids, **shape))
        elif kind == "BERT": model = tf.BertForMaskedLM(tf.BertConfig(**common))
        else: model = tf.LlamaForCausalLM(tf.LlamaConfig(**common | dict(num_key_value_heads=2)))
        for name, p in model.named_parameters():
            if name.endswith("bias"): nn.init.normal_(p, std=.1)
        return model.bfloat16().eval()

    batches = [torch.randint(1, 96, (2, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]
    def weights(folder): return {f.name: f.read_bytes() for f in sorted(Path(folder).glob("*.safetensors"))}

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    # %% ../nbs/55_streaming.ipynb #48f0a9b2
    WAYS = {
        "rtn": partial(quantize, method="rtn", group=16),
        "gptq": partial(quantize, batches=batches, group=16),
        "gptq, rotated": partial(quantize, batches=batches, group=16, rotate=1),
        "shift-add": partial(shift_add, block=(1, 16)),
        "shift-add, output": partial(shift_add, batches=batches, bits=2, block=(1, 16)),
        "svd": partial(factorize, rate=.75, layers=[-1]),
        "svd, output": partial(factorize, batches=batches, energy=.9),
        "magnitude": partial(sparsify, method="magnitude", pattern="2:4"),
        "wanda": partial(sparsify, batches=batches),
        "sparsegpt": partial(sparsify, batches=batches, method="sparsegpt"),
    }

    def in_memory(path, out, change, recipe=None):
        "What `stream` is to equal."
        model, tokenizer = load(path, stored_dtype(path))
        change(model)
        save(model, tokenizer, out, recipe)

    def quietly(f, *args, **kwargs):
        "Run something that warns of little calibration text, and give what it returns."
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return f(*args, **kwargs)

    def told(folder):
        "Read the recipe and the config of a folder."
        return json.loads((Path(folder)/"pathlm.json").read_text()), (Path(folder)/"config.json").read_text()

    def same(a, b):
        "Compare the bytes of two folders."
        names = [sorted(f.name for f in Path(d).iterdir()) for d in (a, b)]
        return len(weights(a)) > 0 and weights(a) == weights(b) and told(a) == told(b) and names[0] == names[1]

    # %% ../nbs/55_streaming.ipynb #189f8d4b
    CHILD = """
import sys, time, torch
from functools import partial
from unittest.mock import patch
import pathlm.streaming
from pathlm.grid import quantize
from pathlm.sparsity import sparsify
write = pathlm.streaming.write_part
def slowly(*args):
    write(*args)
    if sys.argv[3] == "slow": time.sleep(60)
pathlm.streaming.write_part = slowly
batches = [torch.randint(1, 96, (2, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]
ways = {"gptq": partial(quantize, batches=batches, group=16), "rtn": partial(quantize, method="rtn", group=16),
        "wanda": partial(sparsify, batches=batches)}
with patch("torch.cuda.is_available", lambda: True): pathlm.streaming.ranks()
for name in sys.argv[4:]: pathlm.streaming.stream(sys.argv[1], f"{sys.argv[2]} {name}", ways[name])
def full(): raise OSError("no space left")
try: pathlm.streaming.agreed(full)
except OSError as e: assert str(e) == "no space left"
else: raise AssertionError("only one process failed")
"""

    def child(*args, **environment):
        "Start a process that streams."
        return subprocess.Popen([sys.executable, "-W", "ignore", "-c", CHILD, *args],
                                env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())} | environment)

    # %% ../nbs/55_streaming.ipynb #c01c1ec5
    with tempfile.TemporaryDirectory() as d:
        save(tiny(), None, f"{d}/in")
        for run, name in (stream, "streamed"), (in_memory, "memory"):
            quietly(run, f"{d}/in", f"{d}/{name} sparse", WAYS["wanda"], step("sparsify", batches))
            quietly(run, f"{d}/{name} sparse", f"{d}/{name}", WAYS["gptq"], step("quantize", batches))
        assert same(f"{d}/streamed", f"{d}/memory")
        about = told(f"{d}/streamed")[0]
        assert [s["what"] for s in about["steps"]] == ["sparsify", "quantize"]
        assert set(about["layers"].values()) == {"GridLinear"}
        zeros = (load(f"{d}/streamed")[0].model.layers[0].mlp.up_proj.effective_weight() == 0).float().mean()
        assert zeros >= .5
        print(refusal(SettingError, stream, f"{d}/streamed", f"{d}/out", WAYS["rtn"]))
        print(refusal(SettingError, stream, f"{d}/in", f"{d}/in", WAYS["rtn"]).replace(d, "…"))
        print(refusal(SettingError, stream, f"{d}/in", f"{d}/out", lambda model: None))
        def twice(model): WAYS["magnitude"](WAYS["magnitude"](model))
        print(refusal(SettingError, stream, f"{d}/in", f"{d}/out", twice))
        assert "second change" in refusal(SettingError, stream, f"{d}/in", f"{d}/again", twice)


def test_the_same_bytes_4():
    # %% ../nbs/55_streaming.ipynb #21b6e48a
    def tiny(kind="Llama", tie=False):
        "A model of two blocks with random weights and biases, and a vocabulary of 96."
        torch.manual_seed(0)
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0, tie_word_embeddings=tie)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                            max_position_embeddings=64)
        if kind == "GPT-2":
            model = tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4, n_positions=64))
        elif kind == "GPT-J":
            model = tf.GPTJForCausalLM(tf.GPTJConfig(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4, rotary_dim=8))
        elif kind == "OPT": model = tf.OPTForCausalLM(tf.OPTConfig(**common | dict(ffn_dim=48, word_embed_proj_dim=16)))
        elif kind == "T5":
            shape = dict(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
            model = tf.T5ForConditionalGeneration(tf.T5Config(**ids, **shape))
        elif kind == "BERT": model = tf.BertForMaskedLM(tf.BertConfig(**common))
        else: model = tf.LlamaForCausalLM(tf.LlamaConfig(**common | dict(num_key_value_heads=2)))
        for name, p in model.named_parameters():
            if name.endswith("bias"): nn.init.normal_(p, std=.1)
        return model.bfloat16().eval()

    batches = [torch.randint(1, 96, (2, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]
    def weights(folder): return {f.name: f.read_bytes() for f in sorted(Path(folder).glob("*.safetensors"))}

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    # %% ../nbs/55_streaming.ipynb #48f0a9b2
    WAYS = {
        "rtn": partial(quantize, method="rtn", group=16),
        "gptq": partial(quantize, batches=batches, group=16),
        "gptq, rotated": partial(quantize, batches=batches, group=16, rotate=1),
        "shift-add": partial(shift_add, block=(1, 16)),
        "shift-add, output": partial(shift_add, batches=batches, bits=2, block=(1, 16)),
        "svd": partial(factorize, rate=.75, layers=[-1]),
        "svd, output": partial(factorize, batches=batches, energy=.9),
        "magnitude": partial(sparsify, method="magnitude", pattern="2:4"),
        "wanda": partial(sparsify, batches=batches),
        "sparsegpt": partial(sparsify, batches=batches, method="sparsegpt"),
    }

    def in_memory(path, out, change, recipe=None):
        "What `stream` is to equal."
        model, tokenizer = load(path, stored_dtype(path))
        change(model)
        save(model, tokenizer, out, recipe)

    def quietly(f, *args, **kwargs):
        "Run something that warns of little calibration text, and give what it returns."
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return f(*args, **kwargs)

    def told(folder):
        "Read the recipe and the config of a folder."
        return json.loads((Path(folder)/"pathlm.json").read_text()), (Path(folder)/"config.json").read_text()

    def same(a, b):
        "Compare the bytes of two folders."
        names = [sorted(f.name for f in Path(d).iterdir()) for d in (a, b)]
        return len(weights(a)) > 0 and weights(a) == weights(b) and told(a) == told(b) and names[0] == names[1]

    # %% ../nbs/55_streaming.ipynb #189f8d4b
    CHILD = """
import sys, time, torch
from functools import partial
from unittest.mock import patch
import pathlm.streaming
from pathlm.grid import quantize
from pathlm.sparsity import sparsify
write = pathlm.streaming.write_part
def slowly(*args):
    write(*args)
    if sys.argv[3] == "slow": time.sleep(60)
pathlm.streaming.write_part = slowly
batches = [torch.randint(1, 96, (2, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]
ways = {"gptq": partial(quantize, batches=batches, group=16), "rtn": partial(quantize, method="rtn", group=16),
        "wanda": partial(sparsify, batches=batches)}
with patch("torch.cuda.is_available", lambda: True): pathlm.streaming.ranks()
for name in sys.argv[4:]: pathlm.streaming.stream(sys.argv[1], f"{sys.argv[2]} {name}", ways[name])
def full(): raise OSError("no space left")
try: pathlm.streaming.agreed(full)
except OSError as e: assert str(e) == "no space left"
else: raise AssertionError("only one process failed")
"""

    def child(*args, **environment):
        "Start a process that streams."
        return subprocess.Popen([sys.executable, "-W", "ignore", "-c", CHILD, *args],
                                env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())} | environment)

    # %% ../nbs/55_streaming.ipynb #408dbcc5
    with tempfile.TemporaryDirectory() as d:
        save(tiny(), None, f"{d}/in")
        for bound in 0, 2**30: quietly(stream, f"{d}/in", f"{d}/{bound}", WAYS["gptq"], bound=bound)
        assert same(f"{d}/0", f"{d}/{2**30}")


def test_the_same_bytes_5():
    # %% ../nbs/55_streaming.ipynb #21b6e48a
    def tiny(kind="Llama", tie=False):
        "A model of two blocks with random weights and biases, and a vocabulary of 96."
        torch.manual_seed(0)
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0, tie_word_embeddings=tie)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                            max_position_embeddings=64)
        if kind == "GPT-2":
            model = tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4, n_positions=64))
        elif kind == "GPT-J":
            model = tf.GPTJForCausalLM(tf.GPTJConfig(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4, rotary_dim=8))
        elif kind == "OPT": model = tf.OPTForCausalLM(tf.OPTConfig(**common | dict(ffn_dim=48, word_embed_proj_dim=16)))
        elif kind == "T5":
            shape = dict(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
            model = tf.T5ForConditionalGeneration(tf.T5Config(**ids, **shape))
        elif kind == "BERT": model = tf.BertForMaskedLM(tf.BertConfig(**common))
        else: model = tf.LlamaForCausalLM(tf.LlamaConfig(**common | dict(num_key_value_heads=2)))
        for name, p in model.named_parameters():
            if name.endswith("bias"): nn.init.normal_(p, std=.1)
        return model.bfloat16().eval()

    batches = [torch.randint(1, 96, (2, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]
    def weights(folder): return {f.name: f.read_bytes() for f in sorted(Path(folder).glob("*.safetensors"))}

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    # %% ../nbs/55_streaming.ipynb #48f0a9b2
    WAYS = {
        "rtn": partial(quantize, method="rtn", group=16),
        "gptq": partial(quantize, batches=batches, group=16),
        "gptq, rotated": partial(quantize, batches=batches, group=16, rotate=1),
        "shift-add": partial(shift_add, block=(1, 16)),
        "shift-add, output": partial(shift_add, batches=batches, bits=2, block=(1, 16)),
        "svd": partial(factorize, rate=.75, layers=[-1]),
        "svd, output": partial(factorize, batches=batches, energy=.9),
        "magnitude": partial(sparsify, method="magnitude", pattern="2:4"),
        "wanda": partial(sparsify, batches=batches),
        "sparsegpt": partial(sparsify, batches=batches, method="sparsegpt"),
    }

    def in_memory(path, out, change, recipe=None):
        "What `stream` is to equal."
        model, tokenizer = load(path, stored_dtype(path))
        change(model)
        save(model, tokenizer, out, recipe)

    def quietly(f, *args, **kwargs):
        "Run something that warns of little calibration text, and give what it returns."
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return f(*args, **kwargs)

    def told(folder):
        "Read the recipe and the config of a folder."
        return json.loads((Path(folder)/"pathlm.json").read_text()), (Path(folder)/"config.json").read_text()

    def same(a, b):
        "Compare the bytes of two folders."
        names = [sorted(f.name for f in Path(d).iterdir()) for d in (a, b)]
        return len(weights(a)) > 0 and weights(a) == weights(b) and told(a) == told(b) and names[0] == names[1]

    # %% ../nbs/55_streaming.ipynb #189f8d4b
    CHILD = """
import sys, time, torch
from functools import partial
from unittest.mock import patch
import pathlm.streaming
from pathlm.grid import quantize
from pathlm.sparsity import sparsify
write = pathlm.streaming.write_part
def slowly(*args):
    write(*args)
    if sys.argv[3] == "slow": time.sleep(60)
pathlm.streaming.write_part = slowly
batches = [torch.randint(1, 96, (2, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]
ways = {"gptq": partial(quantize, batches=batches, group=16), "rtn": partial(quantize, method="rtn", group=16),
        "wanda": partial(sparsify, batches=batches)}
with patch("torch.cuda.is_available", lambda: True): pathlm.streaming.ranks()
for name in sys.argv[4:]: pathlm.streaming.stream(sys.argv[1], f"{sys.argv[2]} {name}", ways[name])
def full(): raise OSError("no space left")
try: pathlm.streaming.agreed(full)
except OSError as e: assert str(e) == "no space left"
else: raise AssertionError("only one process failed")
"""

    def child(*args, **environment):
        "Start a process that streams."
        return subprocess.Popen([sys.executable, "-W", "ignore", "-c", CHILD, *args],
                                env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())} | environment)

    # %% ../nbs/55_streaming.ipynb #2d0b88b2
    with tempfile.TemporaryDirectory() as d:
        save(model := tiny(), None, f"{d}/in")
        number, sizes = part_of(model), [0]*3
        for name, t in own_tensors(model).items(): sizes[number(name)] += t.nbytes
        for name in "rtn", "gptq":
            holds, held = [], []
            def change(model, name=name, holds=holds):
                holds.append(model.hold)
                WAYS[name](model)
            def write(*args, holds=holds, held=held, really=write_part):
                dense = {p for m in (holds[0].model, *holds[0].dense.values()) for p in m.parameters() if not p.is_meta}
                held.append(sum(p.nbytes for p in dense))
                really(*args)
            with patch(f"{stream.__module__}.write_part", write), patch(f"{stream.__module__}.read_part", None):
                quietly(stream, f"{d}/in", f"{d}/{name}", change)
            assert len(held) == 3 and 0 < min(held) and max(held) <= max(sizes) < sum(sizes[1:])
            assert all(p.is_meta for m in holds[0].dense.values() for p in m.parameters())
            assert all(t.is_meta for t in own_tensors(holds[0].model).values())


def test_killed_and_taken_up_again():
    # %% ../nbs/55_streaming.ipynb #21b6e48a
    def tiny(kind="Llama", tie=False):
        "A model of two blocks with random weights and biases, and a vocabulary of 96."
        torch.manual_seed(0)
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0, tie_word_embeddings=tie)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                            max_position_embeddings=64)
        if kind == "GPT-2":
            model = tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4, n_positions=64))
        elif kind == "GPT-J":
            model = tf.GPTJForCausalLM(tf.GPTJConfig(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4, rotary_dim=8))
        elif kind == "OPT": model = tf.OPTForCausalLM(tf.OPTConfig(**common | dict(ffn_dim=48, word_embed_proj_dim=16)))
        elif kind == "T5":
            shape = dict(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
            model = tf.T5ForConditionalGeneration(tf.T5Config(**ids, **shape))
        elif kind == "BERT": model = tf.BertForMaskedLM(tf.BertConfig(**common))
        else: model = tf.LlamaForCausalLM(tf.LlamaConfig(**common | dict(num_key_value_heads=2)))
        for name, p in model.named_parameters():
            if name.endswith("bias"): nn.init.normal_(p, std=.1)
        return model.bfloat16().eval()

    batches = [torch.randint(1, 96, (2, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]
    def weights(folder): return {f.name: f.read_bytes() for f in sorted(Path(folder).glob("*.safetensors"))}

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    # %% ../nbs/55_streaming.ipynb #48f0a9b2
    WAYS = {
        "rtn": partial(quantize, method="rtn", group=16),
        "gptq": partial(quantize, batches=batches, group=16),
        "gptq, rotated": partial(quantize, batches=batches, group=16, rotate=1),
        "shift-add": partial(shift_add, block=(1, 16)),
        "shift-add, output": partial(shift_add, batches=batches, bits=2, block=(1, 16)),
        "svd": partial(factorize, rate=.75, layers=[-1]),
        "svd, output": partial(factorize, batches=batches, energy=.9),
        "magnitude": partial(sparsify, method="magnitude", pattern="2:4"),
        "wanda": partial(sparsify, batches=batches),
        "sparsegpt": partial(sparsify, batches=batches, method="sparsegpt"),
    }

    def in_memory(path, out, change, recipe=None):
        "What `stream` is to equal."
        model, tokenizer = load(path, stored_dtype(path))
        change(model)
        save(model, tokenizer, out, recipe)

    def quietly(f, *args, **kwargs):
        "Run something that warns of little calibration text, and give what it returns."
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return f(*args, **kwargs)

    def told(folder):
        "Read the recipe and the config of a folder."
        return json.loads((Path(folder)/"pathlm.json").read_text()), (Path(folder)/"config.json").read_text()

    def same(a, b):
        "Compare the bytes of two folders."
        names = [sorted(f.name for f in Path(d).iterdir()) for d in (a, b)]
        return len(weights(a)) > 0 and weights(a) == weights(b) and told(a) == told(b) and names[0] == names[1]

    # %% ../nbs/55_streaming.ipynb #189f8d4b
    CHILD = """
import sys, time, torch
from functools import partial
from unittest.mock import patch
import pathlm.streaming
from pathlm.grid import quantize
from pathlm.sparsity import sparsify
write = pathlm.streaming.write_part
def slowly(*args):
    write(*args)
    if sys.argv[3] == "slow": time.sleep(60)
pathlm.streaming.write_part = slowly
batches = [torch.randint(1, 96, (2, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]
ways = {"gptq": partial(quantize, batches=batches, group=16), "rtn": partial(quantize, method="rtn", group=16),
        "wanda": partial(sparsify, batches=batches)}
with patch("torch.cuda.is_available", lambda: True): pathlm.streaming.ranks()
for name in sys.argv[4:]: pathlm.streaming.stream(sys.argv[1], f"{sys.argv[2]} {name}", ways[name])
def full(): raise OSError("no space left")
try: pathlm.streaming.agreed(full)
except OSError as e: assert str(e) == "no space left"
else: raise AssertionError("only one process failed")
"""

    def child(*args, **environment):
        "Start a process that streams."
        return subprocess.Popen([sys.executable, "-W", "ignore", "-c", CHILD, *args],
                                env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())} | environment)

    # %% ../nbs/55_streaming.ipynb #a1c2fc0f
    class Killed(BaseException): pass

    def stopping(after, really=write_part):
        "A `write_part` that stops a run after some parts, in the middle of the next one."
        left = iter(range(after))
        def write(folder, k, tensors):
            if next(left, None) is not None: return really(folder, k, tensors)
            (Path(folder)/f"part-{k:05}.safetensors").write_bytes(b"half of a part")
            raise Killed
        return write

    # %% ../nbs/55_streaming.ipynb #3b400b51
    with tempfile.TemporaryDirectory() as d:
        save(tiny(), None, f"{d}/in")
        for name, cuts in ("rtn", [1, 2]), ("gptq", [0, 2]):
            quietly(stream, f"{d}/in", f"{d}/whole {name}", WAYS[name])
            for after in cuts:
                try:
                    with patch(f"{stream.__module__}.write_part", stopping(after)):
                        quietly(stream, f"{d}/in", f"{d}/cut {name} {after}", WAYS[name])
                except Killed: assert not (Path(d)/f"cut {name} {after}"/"config.json").exists()
                else: raise AssertionError("it was not stopped")
                if after == 2:
                    again = partial(refusal, SettingError, quietly, stream, f"{d}/in", f"{d}/cut {name} {after}")
                    assert "bits=4, not 3" in again(partial(WAYS[name], bits=3))
                    config = Path(d)/"in"/"config.json"
                    before = config.read_text()
                    config.write_text(before.replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 0.01'))
                    assert config.read_text() != before and "source['config.json']=" in again(WAYS[name])
                    config.write_text(before)
                    with patch("torch.get_num_threads", lambda: 99): assert "threads=" in again(WAYS[name])
                    with patch("pathlm.__version__", "another"): assert "versions['pathlm']=" in again(WAYS[name])
                quietly(stream, f"{d}/in", f"{d}/cut {name} {after}", WAYS[name])
                assert same(f"{d}/cut {name} {after}", f"{d}/whole {name}")


def test_killed_and_taken_up_again_2():
    # %% ../nbs/55_streaming.ipynb #21b6e48a
    def tiny(kind="Llama", tie=False):
        "A model of two blocks with random weights and biases, and a vocabulary of 96."
        torch.manual_seed(0)
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0, tie_word_embeddings=tie)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                            max_position_embeddings=64)
        if kind == "GPT-2":
            model = tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4, n_positions=64))
        elif kind == "GPT-J":
            model = tf.GPTJForCausalLM(tf.GPTJConfig(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4, rotary_dim=8))
        elif kind == "OPT": model = tf.OPTForCausalLM(tf.OPTConfig(**common | dict(ffn_dim=48, word_embed_proj_dim=16)))
        elif kind == "T5":
            shape = dict(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
            model = tf.T5ForConditionalGeneration(tf.T5Config(**ids, **shape))
        elif kind == "BERT": model = tf.BertForMaskedLM(tf.BertConfig(**common))
        else: model = tf.LlamaForCausalLM(tf.LlamaConfig(**common | dict(num_key_value_heads=2)))
        for name, p in model.named_parameters():
            if name.endswith("bias"): nn.init.normal_(p, std=.1)
        return model.bfloat16().eval()

    batches = [torch.randint(1, 96, (2, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]
    def weights(folder): return {f.name: f.read_bytes() for f in sorted(Path(folder).glob("*.safetensors"))}

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    # %% ../nbs/55_streaming.ipynb #48f0a9b2
    WAYS = {
        "rtn": partial(quantize, method="rtn", group=16),
        "gptq": partial(quantize, batches=batches, group=16),
        "gptq, rotated": partial(quantize, batches=batches, group=16, rotate=1),
        "shift-add": partial(shift_add, block=(1, 16)),
        "shift-add, output": partial(shift_add, batches=batches, bits=2, block=(1, 16)),
        "svd": partial(factorize, rate=.75, layers=[-1]),
        "svd, output": partial(factorize, batches=batches, energy=.9),
        "magnitude": partial(sparsify, method="magnitude", pattern="2:4"),
        "wanda": partial(sparsify, batches=batches),
        "sparsegpt": partial(sparsify, batches=batches, method="sparsegpt"),
    }

    def in_memory(path, out, change, recipe=None):
        "What `stream` is to equal."
        model, tokenizer = load(path, stored_dtype(path))
        change(model)
        save(model, tokenizer, out, recipe)

    def quietly(f, *args, **kwargs):
        "Run something that warns of little calibration text, and give what it returns."
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return f(*args, **kwargs)

    def told(folder):
        "Read the recipe and the config of a folder."
        return json.loads((Path(folder)/"pathlm.json").read_text()), (Path(folder)/"config.json").read_text()

    def same(a, b):
        "Compare the bytes of two folders."
        names = [sorted(f.name for f in Path(d).iterdir()) for d in (a, b)]
        return len(weights(a)) > 0 and weights(a) == weights(b) and told(a) == told(b) and names[0] == names[1]

    # %% ../nbs/55_streaming.ipynb #189f8d4b
    CHILD = """
import sys, time, torch
from functools import partial
from unittest.mock import patch
import pathlm.streaming
from pathlm.grid import quantize
from pathlm.sparsity import sparsify
write = pathlm.streaming.write_part
def slowly(*args):
    write(*args)
    if sys.argv[3] == "slow": time.sleep(60)
pathlm.streaming.write_part = slowly
batches = [torch.randint(1, 96, (2, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]
ways = {"gptq": partial(quantize, batches=batches, group=16), "rtn": partial(quantize, method="rtn", group=16),
        "wanda": partial(sparsify, batches=batches)}
with patch("torch.cuda.is_available", lambda: True): pathlm.streaming.ranks()
for name in sys.argv[4:]: pathlm.streaming.stream(sys.argv[1], f"{sys.argv[2]} {name}", ways[name])
def full(): raise OSError("no space left")
try: pathlm.streaming.agreed(full)
except OSError as e: assert str(e) == "no space left"
else: raise AssertionError("only one process failed")
"""

    def child(*args, **environment):
        "Start a process that streams."
        return subprocess.Popen([sys.executable, "-W", "ignore", "-c", CHILD, *args],
                                env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())} | environment)

    # %% ../nbs/55_streaming.ipynb #a1c2fc0f
    class Killed(BaseException): pass

    def stopping(after, really=write_part):
        "A `write_part` that stops a run after some parts, in the middle of the next one."
        left = iter(range(after))
        def write(folder, k, tensors):
            if next(left, None) is not None: return really(folder, k, tensors)
            (Path(folder)/f"part-{k:05}.safetensors").write_bytes(b"half of a part")
            raise Killed
        return write

    # %% ../nbs/55_streaming.ipynb #3d707b4c
    with tempfile.TemporaryDirectory() as d:
        save(tiny(), None, f"{d}/in")
        def losing(model):
            WAYS["rtn"](model)
            (Path(d)/"out"/PARTS/"part-00002.json").unlink()
        assert "lacks the parts [2]" in refusal(CheckpointError, stream, f"{d}/in", f"{d}/out", losing)
        assert not (Path(d)/"out"/"config.json").exists()
        for out in "out", "whole": stream(f"{d}/in", f"{d}/{out}", WAYS["rtn"])
        assert same(f"{d}/out", f"{d}/whole")


def test_killed_and_taken_up_again_3():
    # %% ../nbs/55_streaming.ipynb #21b6e48a
    def tiny(kind="Llama", tie=False):
        "A model of two blocks with random weights and biases, and a vocabulary of 96."
        torch.manual_seed(0)
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0, tie_word_embeddings=tie)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                            max_position_embeddings=64)
        if kind == "GPT-2":
            model = tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4, n_positions=64))
        elif kind == "GPT-J":
            model = tf.GPTJForCausalLM(tf.GPTJConfig(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4, rotary_dim=8))
        elif kind == "OPT": model = tf.OPTForCausalLM(tf.OPTConfig(**common | dict(ffn_dim=48, word_embed_proj_dim=16)))
        elif kind == "T5":
            shape = dict(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
            model = tf.T5ForConditionalGeneration(tf.T5Config(**ids, **shape))
        elif kind == "BERT": model = tf.BertForMaskedLM(tf.BertConfig(**common))
        else: model = tf.LlamaForCausalLM(tf.LlamaConfig(**common | dict(num_key_value_heads=2)))
        for name, p in model.named_parameters():
            if name.endswith("bias"): nn.init.normal_(p, std=.1)
        return model.bfloat16().eval()

    batches = [torch.randint(1, 96, (2, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]
    def weights(folder): return {f.name: f.read_bytes() for f in sorted(Path(folder).glob("*.safetensors"))}

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    # %% ../nbs/55_streaming.ipynb #48f0a9b2
    WAYS = {
        "rtn": partial(quantize, method="rtn", group=16),
        "gptq": partial(quantize, batches=batches, group=16),
        "gptq, rotated": partial(quantize, batches=batches, group=16, rotate=1),
        "shift-add": partial(shift_add, block=(1, 16)),
        "shift-add, output": partial(shift_add, batches=batches, bits=2, block=(1, 16)),
        "svd": partial(factorize, rate=.75, layers=[-1]),
        "svd, output": partial(factorize, batches=batches, energy=.9),
        "magnitude": partial(sparsify, method="magnitude", pattern="2:4"),
        "wanda": partial(sparsify, batches=batches),
        "sparsegpt": partial(sparsify, batches=batches, method="sparsegpt"),
    }

    def in_memory(path, out, change, recipe=None):
        "What `stream` is to equal."
        model, tokenizer = load(path, stored_dtype(path))
        change(model)
        save(model, tokenizer, out, recipe)

    def quietly(f, *args, **kwargs):
        "Run something that warns of little calibration text, and give what it returns."
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return f(*args, **kwargs)

    def told(folder):
        "Read the recipe and the config of a folder."
        return json.loads((Path(folder)/"pathlm.json").read_text()), (Path(folder)/"config.json").read_text()

    def same(a, b):
        "Compare the bytes of two folders."
        names = [sorted(f.name for f in Path(d).iterdir()) for d in (a, b)]
        return len(weights(a)) > 0 and weights(a) == weights(b) and told(a) == told(b) and names[0] == names[1]

    # %% ../nbs/55_streaming.ipynb #189f8d4b
    CHILD = """
import sys, time, torch
from functools import partial
from unittest.mock import patch
import pathlm.streaming
from pathlm.grid import quantize
from pathlm.sparsity import sparsify
write = pathlm.streaming.write_part
def slowly(*args):
    write(*args)
    if sys.argv[3] == "slow": time.sleep(60)
pathlm.streaming.write_part = slowly
batches = [torch.randint(1, 96, (2, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]
ways = {"gptq": partial(quantize, batches=batches, group=16), "rtn": partial(quantize, method="rtn", group=16),
        "wanda": partial(sparsify, batches=batches)}
with patch("torch.cuda.is_available", lambda: True): pathlm.streaming.ranks()
for name in sys.argv[4:]: pathlm.streaming.stream(sys.argv[1], f"{sys.argv[2]} {name}", ways[name])
def full(): raise OSError("no space left")
try: pathlm.streaming.agreed(full)
except OSError as e: assert str(e) == "no space left"
else: raise AssertionError("only one process failed")
"""

    def child(*args, **environment):
        "Start a process that streams."
        return subprocess.Popen([sys.executable, "-W", "ignore", "-c", CHILD, *args],
                                env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())} | environment)

    # %% ../nbs/55_streaming.ipynb #a1c2fc0f
    class Killed(BaseException): pass

    def stopping(after, really=write_part):
        "A `write_part` that stops a run after some parts, in the middle of the next one."
        left = iter(range(after))
        def write(folder, k, tensors):
            if next(left, None) is not None: return really(folder, k, tensors)
            (Path(folder)/f"part-{k:05}.safetensors").write_bytes(b"half of a part")
            raise Killed
        return write

    # %% ../nbs/55_streaming.ipynb #5f66ab2a
    with tempfile.TemporaryDirectory() as d:
        save(tiny(), None, f"{d}/in")
        stream(f"{d}/in", f"{d}/whole", WAYS["rtn"])
        def stopped(folder, **_):
            if (Path(d)/"late"/"config.json").exists(): raise Killed
        try:
            with patch("shutil.rmtree", stopped): stream(f"{d}/in", f"{d}/late", WAYS["rtn"])
        except Killed: pass
        left = sorted(f.name for f in (Path(d)/"late").rglob("*") if PARTS in str(f) and f.is_file())
        assert left == ["settings.json"] and weights(f"{d}/late") == weights(f"{d}/whole")
        stream(f"{d}/in", f"{d}/late", WAYS["rtn"])
        assert same(f"{d}/late", f"{d}/whole")


def test_killed_and_taken_up_again_4():
    # %% ../nbs/55_streaming.ipynb #21b6e48a
    def tiny(kind="Llama", tie=False):
        "A model of two blocks with random weights and biases, and a vocabulary of 96."
        torch.manual_seed(0)
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0, tie_word_embeddings=tie)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                            max_position_embeddings=64)
        if kind == "GPT-2":
            model = tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4, n_positions=64))
        elif kind == "GPT-J":
            model = tf.GPTJForCausalLM(tf.GPTJConfig(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4, rotary_dim=8))
        elif kind == "OPT": model = tf.OPTForCausalLM(tf.OPTConfig(**common | dict(ffn_dim=48, word_embed_proj_dim=16)))
        elif kind == "T5":
            shape = dict(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
            model = tf.T5ForConditionalGeneration(tf.T5Config(**ids, **shape))
        elif kind == "BERT": model = tf.BertForMaskedLM(tf.BertConfig(**common))
        else: model = tf.LlamaForCausalLM(tf.LlamaConfig(**common | dict(num_key_value_heads=2)))
        for name, p in model.named_parameters():
            if name.endswith("bias"): nn.init.normal_(p, std=.1)
        return model.bfloat16().eval()

    batches = [torch.randint(1, 96, (2, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]
    def weights(folder): return {f.name: f.read_bytes() for f in sorted(Path(folder).glob("*.safetensors"))}

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    # %% ../nbs/55_streaming.ipynb #48f0a9b2
    WAYS = {
        "rtn": partial(quantize, method="rtn", group=16),
        "gptq": partial(quantize, batches=batches, group=16),
        "gptq, rotated": partial(quantize, batches=batches, group=16, rotate=1),
        "shift-add": partial(shift_add, block=(1, 16)),
        "shift-add, output": partial(shift_add, batches=batches, bits=2, block=(1, 16)),
        "svd": partial(factorize, rate=.75, layers=[-1]),
        "svd, output": partial(factorize, batches=batches, energy=.9),
        "magnitude": partial(sparsify, method="magnitude", pattern="2:4"),
        "wanda": partial(sparsify, batches=batches),
        "sparsegpt": partial(sparsify, batches=batches, method="sparsegpt"),
    }

    def in_memory(path, out, change, recipe=None):
        "What `stream` is to equal."
        model, tokenizer = load(path, stored_dtype(path))
        change(model)
        save(model, tokenizer, out, recipe)

    def quietly(f, *args, **kwargs):
        "Run something that warns of little calibration text, and give what it returns."
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return f(*args, **kwargs)

    def told(folder):
        "Read the recipe and the config of a folder."
        return json.loads((Path(folder)/"pathlm.json").read_text()), (Path(folder)/"config.json").read_text()

    def same(a, b):
        "Compare the bytes of two folders."
        names = [sorted(f.name for f in Path(d).iterdir()) for d in (a, b)]
        return len(weights(a)) > 0 and weights(a) == weights(b) and told(a) == told(b) and names[0] == names[1]

    # %% ../nbs/55_streaming.ipynb #189f8d4b
    CHILD = """
import sys, time, torch
from functools import partial
from unittest.mock import patch
import pathlm.streaming
from pathlm.grid import quantize
from pathlm.sparsity import sparsify
write = pathlm.streaming.write_part
def slowly(*args):
    write(*args)
    if sys.argv[3] == "slow": time.sleep(60)
pathlm.streaming.write_part = slowly
batches = [torch.randint(1, 96, (2, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]
ways = {"gptq": partial(quantize, batches=batches, group=16), "rtn": partial(quantize, method="rtn", group=16),
        "wanda": partial(sparsify, batches=batches)}
with patch("torch.cuda.is_available", lambda: True): pathlm.streaming.ranks()
for name in sys.argv[4:]: pathlm.streaming.stream(sys.argv[1], f"{sys.argv[2]} {name}", ways[name])
def full(): raise OSError("no space left")
try: pathlm.streaming.agreed(full)
except OSError as e: assert str(e) == "no space left"
else: raise AssertionError("only one process failed")
"""

    def child(*args, **environment):
        "Start a process that streams."
        return subprocess.Popen([sys.executable, "-W", "ignore", "-c", CHILD, *args],
                                env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())} | environment)

    # %% ../nbs/55_streaming.ipynb #a1c2fc0f
    class Killed(BaseException): pass

    def stopping(after, really=write_part):
        "A `write_part` that stops a run after some parts, in the middle of the next one."
        left = iter(range(after))
        def write(folder, k, tensors):
            if next(left, None) is not None: return really(folder, k, tensors)
            (Path(folder)/f"part-{k:05}.safetensors").write_bytes(b"half of a part")
            raise Killed
        return write

    # %% ../nbs/55_streaming.ipynb #725261e4
    with tempfile.TemporaryDirectory() as d:
        save(tiny(), None, f"{d}/in")
        quietly(stream, f"{d}/in", f"{d}/whole", WAYS["gptq"])
        running, note = child(f"{d}/in", f"{d}/killed", "slow", "gptq"), Path(d)/"killed gptq"/PARTS/"part-00001.json"
        while not note.exists() and running.poll() is None: time.sleep(.05)
        running.send_signal(signal.SIGKILL)
        assert running.wait() == -signal.SIGKILL and not (Path(d)/"killed gptq"/"config.json").exists()
        quietly(stream, f"{d}/in", f"{d}/killed gptq", WAYS["gptq"])
        assert same(f"{d}/killed gptq", f"{d}/whole")


def test_two_processes():
    # %% ../nbs/55_streaming.ipynb #21b6e48a
    def tiny(kind="Llama", tie=False):
        "A model of two blocks with random weights and biases, and a vocabulary of 96."
        torch.manual_seed(0)
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0, tie_word_embeddings=tie)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                            max_position_embeddings=64)
        if kind == "GPT-2":
            model = tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4, n_positions=64))
        elif kind == "GPT-J":
            model = tf.GPTJForCausalLM(tf.GPTJConfig(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4, rotary_dim=8))
        elif kind == "OPT": model = tf.OPTForCausalLM(tf.OPTConfig(**common | dict(ffn_dim=48, word_embed_proj_dim=16)))
        elif kind == "T5":
            shape = dict(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
            model = tf.T5ForConditionalGeneration(tf.T5Config(**ids, **shape))
        elif kind == "BERT": model = tf.BertForMaskedLM(tf.BertConfig(**common))
        else: model = tf.LlamaForCausalLM(tf.LlamaConfig(**common | dict(num_key_value_heads=2)))
        for name, p in model.named_parameters():
            if name.endswith("bias"): nn.init.normal_(p, std=.1)
        return model.bfloat16().eval()

    batches = [torch.randint(1, 96, (2, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]
    def weights(folder): return {f.name: f.read_bytes() for f in sorted(Path(folder).glob("*.safetensors"))}

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    # %% ../nbs/55_streaming.ipynb #48f0a9b2
    WAYS = {
        "rtn": partial(quantize, method="rtn", group=16),
        "gptq": partial(quantize, batches=batches, group=16),
        "gptq, rotated": partial(quantize, batches=batches, group=16, rotate=1),
        "shift-add": partial(shift_add, block=(1, 16)),
        "shift-add, output": partial(shift_add, batches=batches, bits=2, block=(1, 16)),
        "svd": partial(factorize, rate=.75, layers=[-1]),
        "svd, output": partial(factorize, batches=batches, energy=.9),
        "magnitude": partial(sparsify, method="magnitude", pattern="2:4"),
        "wanda": partial(sparsify, batches=batches),
        "sparsegpt": partial(sparsify, batches=batches, method="sparsegpt"),
    }

    def in_memory(path, out, change, recipe=None):
        "What `stream` is to equal."
        model, tokenizer = load(path, stored_dtype(path))
        change(model)
        save(model, tokenizer, out, recipe)

    def quietly(f, *args, **kwargs):
        "Run something that warns of little calibration text, and give what it returns."
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return f(*args, **kwargs)

    def told(folder):
        "Read the recipe and the config of a folder."
        return json.loads((Path(folder)/"pathlm.json").read_text()), (Path(folder)/"config.json").read_text()

    def same(a, b):
        "Compare the bytes of two folders."
        names = [sorted(f.name for f in Path(d).iterdir()) for d in (a, b)]
        return len(weights(a)) > 0 and weights(a) == weights(b) and told(a) == told(b) and names[0] == names[1]

    # %% ../nbs/55_streaming.ipynb #189f8d4b
    CHILD = """
import sys, time, torch
from functools import partial
from unittest.mock import patch
import pathlm.streaming
from pathlm.grid import quantize
from pathlm.sparsity import sparsify
write = pathlm.streaming.write_part
def slowly(*args):
    write(*args)
    if sys.argv[3] == "slow": time.sleep(60)
pathlm.streaming.write_part = slowly
batches = [torch.randint(1, 96, (2, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]
ways = {"gptq": partial(quantize, batches=batches, group=16), "rtn": partial(quantize, method="rtn", group=16),
        "wanda": partial(sparsify, batches=batches)}
with patch("torch.cuda.is_available", lambda: True): pathlm.streaming.ranks()
for name in sys.argv[4:]: pathlm.streaming.stream(sys.argv[1], f"{sys.argv[2]} {name}", ways[name])
def full(): raise OSError("no space left")
try: pathlm.streaming.agreed(full)
except OSError as e: assert str(e) == "no space left"
else: raise AssertionError("only one process failed")
"""

    def child(*args, **environment):
        "Start a process that streams."
        return subprocess.Popen([sys.executable, "-W", "ignore", "-c", CHILD, *args],
                                env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())} | environment)

    # %% ../nbs/55_streaming.ipynb #f92ce209
    with tempfile.TemporaryDirectory() as d:
        save(tiny(), None, f"{d}/in")
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(s.getsockname()[1])}
        names = ["rtn", "gptq", "wanda"]
        two = [child(f"{d}/in", f"{d}/two", "fast", *names, RANK=str(rank), **group) for rank in (0, 1)]
        for name in names: quietly(stream, f"{d}/in", f"{d}/one {name}", WAYS[name])
        ended = [process.wait(120) for process in two]
        assert ended == [0, 0], ended
        for name in names: assert same(f"{d}/one {name}", f"{d}/two {name}"), name


def test_how_much_memory_and_how_long():
    # %% ../nbs/55_streaming.ipynb #21b6e48a
    def tiny(kind="Llama", tie=False):
        "A model of two blocks with random weights and biases, and a vocabulary of 96."
        torch.manual_seed(0)
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0, tie_word_embeddings=tie)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                            max_position_embeddings=64)
        if kind == "GPT-2":
            model = tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4, n_positions=64))
        elif kind == "GPT-J":
            model = tf.GPTJForCausalLM(tf.GPTJConfig(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4, rotary_dim=8))
        elif kind == "OPT": model = tf.OPTForCausalLM(tf.OPTConfig(**common | dict(ffn_dim=48, word_embed_proj_dim=16)))
        elif kind == "T5":
            shape = dict(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
            model = tf.T5ForConditionalGeneration(tf.T5Config(**ids, **shape))
        elif kind == "BERT": model = tf.BertForMaskedLM(tf.BertConfig(**common))
        else: model = tf.LlamaForCausalLM(tf.LlamaConfig(**common | dict(num_key_value_heads=2)))
        for name, p in model.named_parameters():
            if name.endswith("bias"): nn.init.normal_(p, std=.1)
        return model.bfloat16().eval()

    batches = [torch.randint(1, 96, (2, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]
    def weights(folder): return {f.name: f.read_bytes() for f in sorted(Path(folder).glob("*.safetensors"))}

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    # %% ../nbs/55_streaming.ipynb #48f0a9b2
    WAYS = {
        "rtn": partial(quantize, method="rtn", group=16),
        "gptq": partial(quantize, batches=batches, group=16),
        "gptq, rotated": partial(quantize, batches=batches, group=16, rotate=1),
        "shift-add": partial(shift_add, block=(1, 16)),
        "shift-add, output": partial(shift_add, batches=batches, bits=2, block=(1, 16)),
        "svd": partial(factorize, rate=.75, layers=[-1]),
        "svd, output": partial(factorize, batches=batches, energy=.9),
        "magnitude": partial(sparsify, method="magnitude", pattern="2:4"),
        "wanda": partial(sparsify, batches=batches),
        "sparsegpt": partial(sparsify, batches=batches, method="sparsegpt"),
    }

    def in_memory(path, out, change, recipe=None):
        "What `stream` is to equal."
        model, tokenizer = load(path, stored_dtype(path))
        change(model)
        save(model, tokenizer, out, recipe)

    def quietly(f, *args, **kwargs):
        "Run something that warns of little calibration text, and give what it returns."
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return f(*args, **kwargs)

    def told(folder):
        "Read the recipe and the config of a folder."
        return json.loads((Path(folder)/"pathlm.json").read_text()), (Path(folder)/"config.json").read_text()

    def same(a, b):
        "Compare the bytes of two folders."
        names = [sorted(f.name for f in Path(d).iterdir()) for d in (a, b)]
        return len(weights(a)) > 0 and weights(a) == weights(b) and told(a) == told(b) and names[0] == names[1]

    # %% ../nbs/55_streaming.ipynb #189f8d4b
    CHILD = """
import sys, time, torch
from functools import partial
from unittest.mock import patch
import pathlm.streaming
from pathlm.grid import quantize
from pathlm.sparsity import sparsify
write = pathlm.streaming.write_part
def slowly(*args):
    write(*args)
    if sys.argv[3] == "slow": time.sleep(60)
pathlm.streaming.write_part = slowly
batches = [torch.randint(1, 96, (2, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]
ways = {"gptq": partial(quantize, batches=batches, group=16), "rtn": partial(quantize, method="rtn", group=16),
        "wanda": partial(sparsify, batches=batches)}
with patch("torch.cuda.is_available", lambda: True): pathlm.streaming.ranks()
for name in sys.argv[4:]: pathlm.streaming.stream(sys.argv[1], f"{sys.argv[2]} {name}", ways[name])
def full(): raise OSError("no space left")
try: pathlm.streaming.agreed(full)
except OSError as e: assert str(e) == "no space left"
else: raise AssertionError("only one process failed")
"""

    def child(*args, **environment):
        "Start a process that streams."
        return subprocess.Popen([sys.executable, "-W", "ignore", "-c", CHILD, *args],
                                env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())} | environment)

    # %% ../nbs/55_streaming.ipynb #273abfbd
    with tempfile.TemporaryDirectory() as d:
        draw_model(tiny().config, f"{d}/a", seed=1)
        draw_model(tiny().config, f"{d}/b", seed=1)
        draw_model(tiny().config, f"{d}/c", seed=2)
        assert weights(f"{d}/a") == weights(f"{d}/b") != weights(f"{d}/c")
        model = load(f"{d}/a", torch.bfloat16)[0]
        assert model.model.norm.weight.eq(1).all() and abs(model.lm_head.weight.float().std() - .02) < .001
        assert model(batches[0]).logits.isfinite().all()
