from pathlm.clipping import *
import math
from pathlib import Path
import numpy as np
import torch
from torch import nn
from pathlm.base import SettingError
from pathlm.base import UnknownModuleError
from pathlm.base import digest
from pathlm.evaluate import Batch
from pathlm.linear import effective_weight
from pathlm.linear import is_linear
from pathlm.spectral import RATES
from pathlm.spectral import rank_of_rate
from pathlm.spectral import spectrum
import tempfile
import matplotlib.pyplot as plt
from transformers import GPT2Config
from transformers import GPT2LMHeadModel
from transformers import GPTJConfig
from transformers import GPTJForCausalLM
from transformers import GPTNeoXConfig
from transformers import GPTNeoXForCausalLM
from transformers import LlamaConfig
from transformers import LlamaForCausalLM
from transformers import OPTConfig
from transformers import OPTForCausalLM
from transformers import Phi3Config
from transformers import Phi3ForCausalLM
from pathlm.base import write_json
from pathlm.models import new_model
from pathlm.spectral import tried_plainly
import itertools
from unittest.mock import patch
from pathlm.checkpoints import read_about
from pathlm.checkpoints import save
import json
from torch.utils.flop_counter import FlopCounterMode


def test_queries_keys_and_values():
    # %% ../nbs/12_icl_pruning.ipynb #5bf4d7b1
    def zoo():
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4)
        yield LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, head_dim=8, num_key_value_heads=2))
        yield GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64))
        yield OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64))
        yield GPTJForCausalLM(GPTJConfig(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64, rotary_dim=4))
        yield Phi3ForCausalLM(Phi3Config(**sizes, intermediate_size=48, num_key_value_heads=2, pad_token_id=0))
        yield GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48, max_position_embeddings=64))

    # %% ../nbs/12_icl_pruning.ipynb #1a282730
    def batch_of(seed=0, left=False, rows=4, length=12):
        g = torch.Generator().manual_seed(seed)
        ids, mask = torch.randint(1, 64, (rows, length), generator=g), torch.ones(rows, length, dtype=torch.long)
        mask[1, :4 if left else None] = 0 if left else 1
        mask[1, length if left else 8:] = 0
        targets = torch.full_like(ids, -100)
        last = mask*torch.arange(length)
        targets[torch.arange(rows), last.argmax(1)] = torch.randint(1, 64, (rows,), generator=g)
        return Batch(ids*mask, mask, targets, torch.arange(rows))

    # %% ../nbs/12_icl_pruning.ipynb #4f5580a5
    class Answers:
        "Prompts with one right token each, after the last of them."
        def __init__(self, todo, labels):
            self.batches = [(b, torch.arange(len(b.doc)) + i*len(b.doc), y)
                            for i, (b, y) in enumerate(zip(todo, labels, strict=True))]
            self.keys = [digest(row) for b in todo for row in b.ids]
            self.scored = 0

        def items(self, batch): return batch[1]

        @torch.no_grad()
        def score(self, model, batch):
            self.scored += 1
            logits = last_logits(model, batch[0])
            loss = nn.functional.cross_entropy(logits, batch[2], reduction="none").double()
            return torch.stack([loss, (logits.argmax(-1) == batch[2]).double()], 1)


    def last_logits(model, b):
        return model(**b.inputs, use_cache=False).logits[b.targets >= 0]

    # %% ../nbs/12_icl_pruning.ipynb #b2a318bc
    @torch.no_grad()
    def planted(blocks_of_noise=(1,), noise=.25, rank=3):
        torch.manual_seed(0)
        model = new_model(vocab_size=64, hidden_size=32, num_hidden_layers=4, intermediate_size=48, head_dim=8,
                          num_attention_heads=4, num_key_value_heads=4).eval()
        for p in model.parameters():
            if p.ndim == 2: p.normal_(0, .25)
        noisy = [m.weight for i in blocks_of_noise for m in model.model.layers[i].mlp.children() if is_linear(m)]
        for W in noisy: W.copy_(3*spectrum(W).at(rank))
        sets = []
        for first in 0, 100:
            todo = [batch_of(first + i, rows=32) for i in range(4)]
            sets.append(Answers(todo, [last_logits(model, b).argmax(-1) for b in todo]))
        for W in noisy: W.add_(noise*torch.randn_like(W))
        return model, *sets

    # %% ../nbs/12_icl_pruning.ipynb #76690876
    def names(place):
        return ", ".join(n.rpartition(".")[2] + (f"[{len(r)}]" if r is not None else "") for n, r in place.items())

    for model in zoo():
        found = places(model, MODULES, layers=[1])
        print(f"{type(model).__name__:19}", " | ".join(f"{m}: {names(p)}" for (_, m), p in found.items()))

    # %% ../nbs/12_icl_pruning.ipynb #dde7cde8
    models = dict(zip(("llama", "gpt2", "opt", "gptj", "phi3", "neox"), zoo(), strict=True))
    layout = {"gpt2": (range(32), range(32, 64), range(64, 96)), "phi3": (range(32), range(32, 48), range(48, 64)),
              "neox": tuple([24*h + 8*i + j for h in range(4) for j in range(8)] for i in range(3))}
    for (name, want), left in itertools.product(layout.items(), (False, True)):
        model = models[name]
        found = places(model, list("qkv"), lambda: model(**batch_of(left=left).inputs), layers=[-1])  # noqa: B023
        for role, rows in zip("qkv", want, strict=True):
            (_, got), = found[2, role].items()
            assert got.tolist() == list(rows)
    for name in "llama", "opt", "gptj":
        got = {m: list(p) for (_, m), p in places(models[name], MODULES, layers=[0]).items()}
        assert [n.rpartition(".")[2][0] for n in (*got["q"], *got["k"], *got["v"], *got["o"])] == ["q", "k", "v", "o"]
        assert set(got["attn"]) == {*got["q"], *got["k"], *got["v"], *got["o"]}
        assert set(got["attn"]).isdisjoint(got["mlp"])
        assert len(got["mlp"]) == (3 if name == "llama" else 2)


def test_queries_keys_and_values_2():
    # %% ../nbs/12_icl_pruning.ipynb #5bf4d7b1
    def zoo():
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4)
        yield LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, head_dim=8, num_key_value_heads=2))
        yield GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64))
        yield OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64))
        yield GPTJForCausalLM(GPTJConfig(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64, rotary_dim=4))
        yield Phi3ForCausalLM(Phi3Config(**sizes, intermediate_size=48, num_key_value_heads=2, pad_token_id=0))
        yield GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48, max_position_embeddings=64))

    # %% ../nbs/12_icl_pruning.ipynb #1a282730
    def batch_of(seed=0, left=False, rows=4, length=12):
        g = torch.Generator().manual_seed(seed)
        ids, mask = torch.randint(1, 64, (rows, length), generator=g), torch.ones(rows, length, dtype=torch.long)
        mask[1, :4 if left else None] = 0 if left else 1
        mask[1, length if left else 8:] = 0
        targets = torch.full_like(ids, -100)
        last = mask*torch.arange(length)
        targets[torch.arange(rows), last.argmax(1)] = torch.randint(1, 64, (rows,), generator=g)
        return Batch(ids*mask, mask, targets, torch.arange(rows))

    # %% ../nbs/12_icl_pruning.ipynb #4f5580a5
    class Answers:
        "Prompts with one right token each, after the last of them."
        def __init__(self, todo, labels):
            self.batches = [(b, torch.arange(len(b.doc)) + i*len(b.doc), y)
                            for i, (b, y) in enumerate(zip(todo, labels, strict=True))]
            self.keys = [digest(row) for b in todo for row in b.ids]
            self.scored = 0

        def items(self, batch): return batch[1]

        @torch.no_grad()
        def score(self, model, batch):
            self.scored += 1
            logits = last_logits(model, batch[0])
            loss = nn.functional.cross_entropy(logits, batch[2], reduction="none").double()
            return torch.stack([loss, (logits.argmax(-1) == batch[2]).double()], 1)


    def last_logits(model, b):
        return model(**b.inputs, use_cache=False).logits[b.targets >= 0]

    # %% ../nbs/12_icl_pruning.ipynb #b2a318bc
    @torch.no_grad()
    def planted(blocks_of_noise=(1,), noise=.25, rank=3):
        torch.manual_seed(0)
        model = new_model(vocab_size=64, hidden_size=32, num_hidden_layers=4, intermediate_size=48, head_dim=8,
                          num_attention_heads=4, num_key_value_heads=4).eval()
        for p in model.parameters():
            if p.ndim == 2: p.normal_(0, .25)
        noisy = [m.weight for i in blocks_of_noise for m in model.model.layers[i].mlp.children() if is_linear(m)]
        for W in noisy: W.copy_(3*spectrum(W).at(rank))
        sets = []
        for first in 0, 100:
            todo = [batch_of(first + i, rows=32) for i in range(4)]
            sets.append(Answers(todo, [last_logits(model, b).argmax(-1) for b in todo]))
        for W in noisy: W.add_(noise*torch.randn_like(W))
        return model, *sets

    # %% ../nbs/12_icl_pruning.ipynb #76690876
    def names(place):
        return ", ".join(n.rpartition(".")[2] + (f"[{len(r)}]" if r is not None else "") for n, r in place.items())

    for model in zoo():
        found = places(model, MODULES, layers=[1])
        print(f"{type(model).__name__:19}", " | ".join(f"{m}: {names(p)}" for (_, m), p in found.items()))

    # %% ../nbs/12_icl_pruning.ipynb #897f6cee
    class Block(nn.Module):
        "Attention by torch's own layer between two linear maps, and an MLP of three layers."
        def __init__(self, d):
            super().__init__()
            self.mixer = nn.ModuleDict({"qkv": nn.Linear(d, 3*d), "out": nn.Linear(d, d)})
            self.attention = Mixer(d)
            self.wide = nn.Sequential(nn.Linear(d, 2*d), nn.ReLU(), nn.Linear(2*d, d))

        def forward(self, x):
            x = x + self.attention(x)
            return x + self.wide(x) + self.mixer["out"](x)


    class Mixer(nn.Module):
        def __init__(self, d):
            super().__init__()
            self.all, self.back = nn.Linear(d, 3*d), nn.Linear(d, d)

        def forward(self, x):
            q, k, v = self.all(x)[:, None].chunk(3, -1)
            return self.back(nn.functional.scaled_dot_product_attention(q, k, v)[:, 0])


    class Plain(nn.Module):
        def __init__(self, d, n):
            super().__init__()
            self.blocks, self.read = nn.ModuleList(Block(d) for _ in range(n)), nn.Linear(d, 1)

        def forward(self, x):
            for block in self.blocks: x = block(x)
            return self.read(x)[..., 0]

    # %% ../nbs/12_icl_pruning.ipynb #4a52afe3
    torch.manual_seed(0)
    model = Plain(6, 2)
    def run(): return model(torch.randn(3, 5, 6))
    found = {m: list(p) for (i, m), p in places(model, MODULES, run).items() if i == 1}
    assert found["attn"] == ["blocks.1.attention.all", "blocks.1.attention.back"] and found["o"] == found["attn"][1:]
    assert found["mlp"] == ["blocks.1.wide.0", "blocks.1.wide.2", "blocks.1.mixer.out"]
    assert found["q"] == found["attn"][:1]
    assert list(places(model, {"first": "wide.0", "mlp": None}, run, layers=[-1])) == [(1, "first"), (1, "mlp")]
    for call, error in [(lambda: places(model, ["atn"], run), "no module 'atn'; there are attn, mlp, q, k, v, o, or"),
                        (lambda: places(model, {"x": "wide.1"}, run), "matches 'wide.1'"),
                        (lambda: places(model, "read", run), "no module 'read'"),
                        (lambda: places(model, {"x": "read"}, run),
                         "Plain has no 'x' in its blocks; their linear layers are qkv, out, all, back, 0, 2"),
                        (lambda: places(model, ["mlp"], run, layers=[2]), "[2] outside the 2 blocks of 'blocks'"),
                        (lambda: places(model, ["mlp"], lambda: model(torch.randn(3, 1, 6))), "two or more positions")]:
        try: call()
        except (UnknownModuleError, SettingError) as e: assert error in str(e), e
        else: raise AssertionError(error)


def test_queries_keys_and_values_3():
    # %% ../nbs/12_icl_pruning.ipynb #5bf4d7b1
    def zoo():
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4)
        yield LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, head_dim=8, num_key_value_heads=2))
        yield GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64))
        yield OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64))
        yield GPTJForCausalLM(GPTJConfig(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64, rotary_dim=4))
        yield Phi3ForCausalLM(Phi3Config(**sizes, intermediate_size=48, num_key_value_heads=2, pad_token_id=0))
        yield GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48, max_position_embeddings=64))

    # %% ../nbs/12_icl_pruning.ipynb #1a282730
    def batch_of(seed=0, left=False, rows=4, length=12):
        g = torch.Generator().manual_seed(seed)
        ids, mask = torch.randint(1, 64, (rows, length), generator=g), torch.ones(rows, length, dtype=torch.long)
        mask[1, :4 if left else None] = 0 if left else 1
        mask[1, length if left else 8:] = 0
        targets = torch.full_like(ids, -100)
        last = mask*torch.arange(length)
        targets[torch.arange(rows), last.argmax(1)] = torch.randint(1, 64, (rows,), generator=g)
        return Batch(ids*mask, mask, targets, torch.arange(rows))

    # %% ../nbs/12_icl_pruning.ipynb #4f5580a5
    class Answers:
        "Prompts with one right token each, after the last of them."
        def __init__(self, todo, labels):
            self.batches = [(b, torch.arange(len(b.doc)) + i*len(b.doc), y)
                            for i, (b, y) in enumerate(zip(todo, labels, strict=True))]
            self.keys = [digest(row) for b in todo for row in b.ids]
            self.scored = 0

        def items(self, batch): return batch[1]

        @torch.no_grad()
        def score(self, model, batch):
            self.scored += 1
            logits = last_logits(model, batch[0])
            loss = nn.functional.cross_entropy(logits, batch[2], reduction="none").double()
            return torch.stack([loss, (logits.argmax(-1) == batch[2]).double()], 1)


    def last_logits(model, b):
        return model(**b.inputs, use_cache=False).logits[b.targets >= 0]

    # %% ../nbs/12_icl_pruning.ipynb #b2a318bc
    @torch.no_grad()
    def planted(blocks_of_noise=(1,), noise=.25, rank=3):
        torch.manual_seed(0)
        model = new_model(vocab_size=64, hidden_size=32, num_hidden_layers=4, intermediate_size=48, head_dim=8,
                          num_attention_heads=4, num_key_value_heads=4).eval()
        for p in model.parameters():
            if p.ndim == 2: p.normal_(0, .25)
        noisy = [m.weight for i in blocks_of_noise for m in model.model.layers[i].mlp.children() if is_linear(m)]
        for W in noisy: W.copy_(3*spectrum(W).at(rank))
        sets = []
        for first in 0, 100:
            todo = [batch_of(first + i, rows=32) for i in range(4)]
            sets.append(Answers(todo, [last_logits(model, b).argmax(-1) for b in todo]))
        for W in noisy: W.add_(noise*torch.randn_like(W))
        return model, *sets

    # %% ../nbs/12_icl_pruning.ipynb #76690876
    def names(place):
        return ", ".join(n.rpartition(".")[2] + (f"[{len(r)}]" if r is not None else "") for n, r in place.items())

    for model in zoo():
        found = places(model, MODULES, layers=[1])
        print(f"{type(model).__name__:19}", " | ".join(f"{m}: {names(p)}" for (_, m), p in found.items()))

    # %% ../nbs/12_icl_pruning.ipynb #897f6cee
    class Block(nn.Module):
        "Attention by torch's own layer between two linear maps, and an MLP of three layers."
        def __init__(self, d):
            super().__init__()
            self.mixer = nn.ModuleDict({"qkv": nn.Linear(d, 3*d), "out": nn.Linear(d, d)})
            self.attention = Mixer(d)
            self.wide = nn.Sequential(nn.Linear(d, 2*d), nn.ReLU(), nn.Linear(2*d, d))

        def forward(self, x):
            x = x + self.attention(x)
            return x + self.wide(x) + self.mixer["out"](x)


    class Mixer(nn.Module):
        def __init__(self, d):
            super().__init__()
            self.all, self.back = nn.Linear(d, 3*d), nn.Linear(d, d)

        def forward(self, x):
            q, k, v = self.all(x)[:, None].chunk(3, -1)
            return self.back(nn.functional.scaled_dot_product_attention(q, k, v)[:, 0])


    class Plain(nn.Module):
        def __init__(self, d, n):
            super().__init__()
            self.blocks, self.read = nn.ModuleList(Block(d) for _ in range(n)), nn.Linear(d, 1)

        def forward(self, x):
            for block in self.blocks: x = block(x)
            return self.read(x)[..., 0]

    # %% ../nbs/12_icl_pruning.ipynb #b0bf81ab
    model = next(zoo())
    model.model.layers[1].self_attn.o_proj.weight.data.zero_()
    try: places(model, "mlp")
    except SettingError as e: assert "'model.layers.1.self_attn' gives the same whatever enters it" in str(e), e
    else: raise AssertionError("dead attention taken for an MLP")
    named = places(model, {"mlp": ["up_proj", "down_proj"]}, layers=[1])
    assert named == {(1, "mlp"): dict.fromkeys(f"model.layers.1.mlp.{n}_proj" for n in ("up", "down"))}
    assert list(places(model, {"mlp": "up_proj", "attn": None}, layers=[0])[0, "mlp"]) == ["model.layers.0.mlp.up_proj"]
    _, _, opt, gptj, *_ = zoo()
    for model, o in (opt, "model.decoder.layers.1.self_attn"), (gptj, "transformer.h.1.attn"):
        model.get_submodule(f"{o}.out_proj").weight.data[:, 8:16] = 0
        assert [names(place) for place in places(model, list("qkv"), layers=[1]).values()] == ["q_proj", "k_proj", "v_proj"]


def test_queries_keys_and_values_4():
    # %% ../nbs/12_icl_pruning.ipynb #5bf4d7b1
    def zoo():
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4)
        yield LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, head_dim=8, num_key_value_heads=2))
        yield GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64))
        yield OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64))
        yield GPTJForCausalLM(GPTJConfig(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64, rotary_dim=4))
        yield Phi3ForCausalLM(Phi3Config(**sizes, intermediate_size=48, num_key_value_heads=2, pad_token_id=0))
        yield GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48, max_position_embeddings=64))

    # %% ../nbs/12_icl_pruning.ipynb #1a282730
    def batch_of(seed=0, left=False, rows=4, length=12):
        g = torch.Generator().manual_seed(seed)
        ids, mask = torch.randint(1, 64, (rows, length), generator=g), torch.ones(rows, length, dtype=torch.long)
        mask[1, :4 if left else None] = 0 if left else 1
        mask[1, length if left else 8:] = 0
        targets = torch.full_like(ids, -100)
        last = mask*torch.arange(length)
        targets[torch.arange(rows), last.argmax(1)] = torch.randint(1, 64, (rows,), generator=g)
        return Batch(ids*mask, mask, targets, torch.arange(rows))

    # %% ../nbs/12_icl_pruning.ipynb #4f5580a5
    class Answers:
        "Prompts with one right token each, after the last of them."
        def __init__(self, todo, labels):
            self.batches = [(b, torch.arange(len(b.doc)) + i*len(b.doc), y)
                            for i, (b, y) in enumerate(zip(todo, labels, strict=True))]
            self.keys = [digest(row) for b in todo for row in b.ids]
            self.scored = 0

        def items(self, batch): return batch[1]

        @torch.no_grad()
        def score(self, model, batch):
            self.scored += 1
            logits = last_logits(model, batch[0])
            loss = nn.functional.cross_entropy(logits, batch[2], reduction="none").double()
            return torch.stack([loss, (logits.argmax(-1) == batch[2]).double()], 1)


    def last_logits(model, b):
        return model(**b.inputs, use_cache=False).logits[b.targets >= 0]

    # %% ../nbs/12_icl_pruning.ipynb #b2a318bc
    @torch.no_grad()
    def planted(blocks_of_noise=(1,), noise=.25, rank=3):
        torch.manual_seed(0)
        model = new_model(vocab_size=64, hidden_size=32, num_hidden_layers=4, intermediate_size=48, head_dim=8,
                          num_attention_heads=4, num_key_value_heads=4).eval()
        for p in model.parameters():
            if p.ndim == 2: p.normal_(0, .25)
        noisy = [m.weight for i in blocks_of_noise for m in model.model.layers[i].mlp.children() if is_linear(m)]
        for W in noisy: W.copy_(3*spectrum(W).at(rank))
        sets = []
        for first in 0, 100:
            todo = [batch_of(first + i, rows=32) for i in range(4)]
            sets.append(Answers(todo, [last_logits(model, b).argmax(-1) for b in todo]))
        for W in noisy: W.add_(noise*torch.randn_like(W))
        return model, *sets

    # %% ../nbs/12_icl_pruning.ipynb #76690876
    def names(place):
        return ", ".join(n.rpartition(".")[2] + (f"[{len(r)}]" if r is not None else "") for n, r in place.items())

    for model in zoo():
        found = places(model, MODULES, layers=[1])
        print(f"{type(model).__name__:19}", " | ".join(f"{m}: {names(p)}" for (_, m), p in found.items()))

    # %% ../nbs/12_icl_pruning.ipynb #897f6cee
    class Block(nn.Module):
        "Attention by torch's own layer between two linear maps, and an MLP of three layers."
        def __init__(self, d):
            super().__init__()
            self.mixer = nn.ModuleDict({"qkv": nn.Linear(d, 3*d), "out": nn.Linear(d, d)})
            self.attention = Mixer(d)
            self.wide = nn.Sequential(nn.Linear(d, 2*d), nn.ReLU(), nn.Linear(2*d, d))

        def forward(self, x):
            x = x + self.attention(x)
            return x + self.wide(x) + self.mixer["out"](x)


    class Mixer(nn.Module):
        def __init__(self, d):
            super().__init__()
            self.all, self.back = nn.Linear(d, 3*d), nn.Linear(d, d)

        def forward(self, x):
            q, k, v = self.all(x)[:, None].chunk(3, -1)
            return self.back(nn.functional.scaled_dot_product_attention(q, k, v)[:, 0])


    class Plain(nn.Module):
        def __init__(self, d, n):
            super().__init__()
            self.blocks, self.read = nn.ModuleList(Block(d) for _ in range(n)), nn.Linear(d, 1)

        def forward(self, x):
            for block in self.blocks: x = block(x)
            return self.read(x)[..., 0]

    # %% ../nbs/12_icl_pruning.ipynb #baa1d5ba
    class LinearMixer(Mixer):
        def forward(self, x):
            q, k, v = self.all(x).chunk(3, -1)
            return self.back((q @ k.mT).tril() @ v)

    model = Plain(6, 1)
    model.blocks[0].attention = LinearMixer(6)
    assert list(places(model, ["attn"], lambda: model(torch.randn(3, 5, 6)))) == [(0, "attn")]
    try: places(model, "q", lambda: model(torch.randn(3, 5, 6)))
    except SettingError as e: assert "'blocks.0.attention' is no attention whose" in str(e) and "acts as k" in str(e)
    else: raise AssertionError("guessed")


def test_clips():
    # %% ../nbs/12_icl_pruning.ipynb #5bf4d7b1
    def zoo():
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4)
        yield LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, head_dim=8, num_key_value_heads=2))
        yield GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64))
        yield OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64))
        yield GPTJForCausalLM(GPTJConfig(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64, rotary_dim=4))
        yield Phi3ForCausalLM(Phi3Config(**sizes, intermediate_size=48, num_key_value_heads=2, pad_token_id=0))
        yield GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48, max_position_embeddings=64))

    # %% ../nbs/12_icl_pruning.ipynb #1a282730
    def batch_of(seed=0, left=False, rows=4, length=12):
        g = torch.Generator().manual_seed(seed)
        ids, mask = torch.randint(1, 64, (rows, length), generator=g), torch.ones(rows, length, dtype=torch.long)
        mask[1, :4 if left else None] = 0 if left else 1
        mask[1, length if left else 8:] = 0
        targets = torch.full_like(ids, -100)
        last = mask*torch.arange(length)
        targets[torch.arange(rows), last.argmax(1)] = torch.randint(1, 64, (rows,), generator=g)
        return Batch(ids*mask, mask, targets, torch.arange(rows))

    # %% ../nbs/12_icl_pruning.ipynb #4f5580a5
    class Answers:
        "Prompts with one right token each, after the last of them."
        def __init__(self, todo, labels):
            self.batches = [(b, torch.arange(len(b.doc)) + i*len(b.doc), y)
                            for i, (b, y) in enumerate(zip(todo, labels, strict=True))]
            self.keys = [digest(row) for b in todo for row in b.ids]
            self.scored = 0

        def items(self, batch): return batch[1]

        @torch.no_grad()
        def score(self, model, batch):
            self.scored += 1
            logits = last_logits(model, batch[0])
            loss = nn.functional.cross_entropy(logits, batch[2], reduction="none").double()
            return torch.stack([loss, (logits.argmax(-1) == batch[2]).double()], 1)


    def last_logits(model, b):
        return model(**b.inputs, use_cache=False).logits[b.targets >= 0]

    # %% ../nbs/12_icl_pruning.ipynb #b2a318bc
    @torch.no_grad()
    def planted(blocks_of_noise=(1,), noise=.25, rank=3):
        torch.manual_seed(0)
        model = new_model(vocab_size=64, hidden_size=32, num_hidden_layers=4, intermediate_size=48, head_dim=8,
                          num_attention_heads=4, num_key_value_heads=4).eval()
        for p in model.parameters():
            if p.ndim == 2: p.normal_(0, .25)
        noisy = [m.weight for i in blocks_of_noise for m in model.model.layers[i].mlp.children() if is_linear(m)]
        for W in noisy: W.copy_(3*spectrum(W).at(rank))
        sets = []
        for first in 0, 100:
            todo = [batch_of(first + i, rows=32) for i in range(4)]
            sets.append(Answers(todo, [last_logits(model, b).argmax(-1) for b in todo]))
        for W in noisy: W.add_(noise*torch.randn_like(W))
        return model, *sets

    # %% ../nbs/12_icl_pruning.ipynb #de8bfc51
    torch.manual_seed(0)
    model = next(itertools.islice(zoo(), 1, None))
    parts = matrices(model, MODULES, layers=[1])
    W = {m.layer: effective_weight(model.get_submodule(m.layer)) for own in parts.values() for m in own}
    def weights_after(clip): return {n: make() for n, make in change_of(model, parts, clip).items()}
    for how, other in ("top", "bottom"), ("random", "random"):
        for n, new in weights_after(Clip(1, "mlp", how, .75)).items():
            rest = weights_after(Clip(1, "mlp", other, .25))[n]
            if how == "top": torch.testing.assert_close(effective_weight(new) + effective_weight(rest), W[n])
            assert torch.linalg.matrix_rank(effective_weight(new)) == 8
            assert torch.equal(new.bias, model.get_submodule(n).bias)
    name, = weights_after(Clip(1, "k", "top", .75))
    new, keys = weights_after(Clip(1, "k", "top", .75))[name], slice(32, 64)
    assert torch.linalg.matrix_rank(effective_weight(new)[keys]) == 8 and type(new).__name__ == "Conv1D"
    assert all(torch.equal(effective_weight(new)[i], W[name][i]) for i in (slice(32), slice(64, None)))
    (last, half), = weights_after(Clip(1, "attn", "scale", .5)).items()
    x = torch.randn(3, 32)
    assert last.endswith("attn.c_proj") and torch.allclose(half(x), .5*model.get_submodule(last)(x))
    assert torch.equal(weights_after(Clip(1, "v", "scale", 0.))[name](x)[:, 64:], torch.zeros(3, 32))
    assert all(make() is model.get_submodule(n) for n, make in change_of(model, parts, Clip(1, "attn", "top", 0.)).items())
    assert len(clips_of(parts, "top", RATES)) == 6*7 and len(clips_of(parts, "scale", [0, 1])) == 6
    for clip, error in [(Clip(0, "mlp", "top", .5), "no module 'mlp' in block 0"),
                        (Clip(1, "mlp", "top", 1.), "rate=1.0 is outside [0, 1)"),
                        (Clip(1, "mlp", "half", .5), "how='half'"), (Clip(1, "mlp", "scale", math.nan), "scaled by nan"),
                        ((Clip(1, "q", "top", .5), Clip(1, "v", "top", .9)), "change one layer: 1.q top 0.5, 1.v top 0.9")]:
        try: change_of(model, parts, clip)
        except (SettingError, UnknownModuleError) as e: assert error in str(e)
        else: raise AssertionError(error)


def test_what_scores_a_model():
    # %% ../nbs/12_icl_pruning.ipynb #5bf4d7b1
    def zoo():
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4)
        yield LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, head_dim=8, num_key_value_heads=2))
        yield GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64))
        yield OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64))
        yield GPTJForCausalLM(GPTJConfig(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64, rotary_dim=4))
        yield Phi3ForCausalLM(Phi3Config(**sizes, intermediate_size=48, num_key_value_heads=2, pad_token_id=0))
        yield GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48, max_position_embeddings=64))

    # %% ../nbs/12_icl_pruning.ipynb #1a282730
    def batch_of(seed=0, left=False, rows=4, length=12):
        g = torch.Generator().manual_seed(seed)
        ids, mask = torch.randint(1, 64, (rows, length), generator=g), torch.ones(rows, length, dtype=torch.long)
        mask[1, :4 if left else None] = 0 if left else 1
        mask[1, length if left else 8:] = 0
        targets = torch.full_like(ids, -100)
        last = mask*torch.arange(length)
        targets[torch.arange(rows), last.argmax(1)] = torch.randint(1, 64, (rows,), generator=g)
        return Batch(ids*mask, mask, targets, torch.arange(rows))

    # %% ../nbs/12_icl_pruning.ipynb #4f5580a5
    class Answers:
        "Prompts with one right token each, after the last of them."
        def __init__(self, todo, labels):
            self.batches = [(b, torch.arange(len(b.doc)) + i*len(b.doc), y)
                            for i, (b, y) in enumerate(zip(todo, labels, strict=True))]
            self.keys = [digest(row) for b in todo for row in b.ids]
            self.scored = 0

        def items(self, batch): return batch[1]

        @torch.no_grad()
        def score(self, model, batch):
            self.scored += 1
            logits = last_logits(model, batch[0])
            loss = nn.functional.cross_entropy(logits, batch[2], reduction="none").double()
            return torch.stack([loss, (logits.argmax(-1) == batch[2]).double()], 1)


    def last_logits(model, b):
        return model(**b.inputs, use_cache=False).logits[b.targets >= 0]

    # %% ../nbs/12_icl_pruning.ipynb #b2a318bc
    @torch.no_grad()
    def planted(blocks_of_noise=(1,), noise=.25, rank=3):
        torch.manual_seed(0)
        model = new_model(vocab_size=64, hidden_size=32, num_hidden_layers=4, intermediate_size=48, head_dim=8,
                          num_attention_heads=4, num_key_value_heads=4).eval()
        for p in model.parameters():
            if p.ndim == 2: p.normal_(0, .25)
        noisy = [m.weight for i in blocks_of_noise for m in model.model.layers[i].mlp.children() if is_linear(m)]
        for W in noisy: W.copy_(3*spectrum(W).at(rank))
        sets = []
        for first in 0, 100:
            todo = [batch_of(first + i, rows=32) for i in range(4)]
            sets.append(Answers(todo, [last_logits(model, b).argmax(-1) for b in todo]))
        for W in noisy: W.add_(noise*torch.randn_like(W))
        return model, *sets

    # %% ../nbs/12_icl_pruning.ipynb #acadcfb1
    text = TextScorer([batch_of(0), batch_of(1)])
    assert count(text) == 8 and torch.cat([text.items(b) for b in text.batches]).tolist() == list(range(8))
    check_apart(text, TextScorer([batch_of(2)]))
    for call, error in [(lambda: check_apart(text, TextScorer([batch_of(1)])), "validation and test share 4 items"),
                        (lambda: count(TextScorer([])), "a scorer without items"),
                        (lambda: costs(torch.tensor([[1., math.nan], [1., 1.]]), "accuracy"), "but of 1 of 2 items"),
                        (lambda: costs(torch.ones(1, 2), "f1"), "by='f1', expected loss or accuracy")]:
        try: call()
        except SettingError as e: assert error in str(e)
        else: raise AssertionError(error)


def test_trying_all_of_them():
    # %% ../nbs/12_icl_pruning.ipynb #5bf4d7b1
    def zoo():
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4)
        yield LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, head_dim=8, num_key_value_heads=2))
        yield GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64))
        yield OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64))
        yield GPTJForCausalLM(GPTJConfig(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64, rotary_dim=4))
        yield Phi3ForCausalLM(Phi3Config(**sizes, intermediate_size=48, num_key_value_heads=2, pad_token_id=0))
        yield GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48, max_position_embeddings=64))

    # %% ../nbs/12_icl_pruning.ipynb #1a282730
    def batch_of(seed=0, left=False, rows=4, length=12):
        g = torch.Generator().manual_seed(seed)
        ids, mask = torch.randint(1, 64, (rows, length), generator=g), torch.ones(rows, length, dtype=torch.long)
        mask[1, :4 if left else None] = 0 if left else 1
        mask[1, length if left else 8:] = 0
        targets = torch.full_like(ids, -100)
        last = mask*torch.arange(length)
        targets[torch.arange(rows), last.argmax(1)] = torch.randint(1, 64, (rows,), generator=g)
        return Batch(ids*mask, mask, targets, torch.arange(rows))

    # %% ../nbs/12_icl_pruning.ipynb #4f5580a5
    class Answers:
        "Prompts with one right token each, after the last of them."
        def __init__(self, todo, labels):
            self.batches = [(b, torch.arange(len(b.doc)) + i*len(b.doc), y)
                            for i, (b, y) in enumerate(zip(todo, labels, strict=True))]
            self.keys = [digest(row) for b in todo for row in b.ids]
            self.scored = 0

        def items(self, batch): return batch[1]

        @torch.no_grad()
        def score(self, model, batch):
            self.scored += 1
            logits = last_logits(model, batch[0])
            loss = nn.functional.cross_entropy(logits, batch[2], reduction="none").double()
            return torch.stack([loss, (logits.argmax(-1) == batch[2]).double()], 1)


    def last_logits(model, b):
        return model(**b.inputs, use_cache=False).logits[b.targets >= 0]

    # %% ../nbs/12_icl_pruning.ipynb #b2a318bc
    @torch.no_grad()
    def planted(blocks_of_noise=(1,), noise=.25, rank=3):
        torch.manual_seed(0)
        model = new_model(vocab_size=64, hidden_size=32, num_hidden_layers=4, intermediate_size=48, head_dim=8,
                          num_attention_heads=4, num_key_value_heads=4).eval()
        for p in model.parameters():
            if p.ndim == 2: p.normal_(0, .25)
        noisy = [m.weight for i in blocks_of_noise for m in model.model.layers[i].mlp.children() if is_linear(m)]
        for W in noisy: W.copy_(3*spectrum(W).at(rank))
        sets = []
        for first in 0, 100:
            todo = [batch_of(first + i, rows=32) for i in range(4)]
            sets.append(Answers(todo, [last_logits(model, b).argmax(-1) for b in todo]))
        for W in noisy: W.add_(noise*torch.randn_like(W))
        return model, *sets

    # %% ../nbs/12_icl_pruning.ipynb #c8accc8b
    class Counted:
        "Count what really runs, not what a record returns."
        def __init__(self, cls): self.cls, self.n, self.forward = cls, 0, cls.forward

        def __enter__(self):
            def forward(module, *args, **kwargs):
                self.n += 1
                return self.forward(module, *args, **kwargs)
            self.cls.forward = forward
            return self

        def __exit__(self, *_): self.cls.forward = self.forward

    # %% ../nbs/12_icl_pruning.ipynb #6f140d91
    model, scorer, _ = planted()
    weights = digest(*model.parameters())
    with patch.object(torch.linalg, "svd", wraps=torch.linalg.svd) as svds: parts = matrices(model)
    assert svds.call_count == sum(map(len, parts.values())) == 4*7
    scorer.batches, L = scorer.batches[:1], 4
    for part, R in (parts, 12), ({k: v for k, v in parts.items() if k[0] >= 2}, 12):
        clips, first = clips_of(part, "top", RATES[:7]), min(i for i, _ in part)
        with Counted(type(model.model.layers[0])) as blocks_run: table = sweep_clips(model, scorer, clips, parts)
        assert blocks_run.n == L + (L - first) + R*sum(L - l for l in range(first, L))
        with Counted(type(model.model.layers[0])) as all_run:
            changes = {c: change_of(model, parts, c) for c in clips}
            plain = tried_plainly(model, lambda: scorer.score(model, scorer.batches[0]), changes)
        assert all_run.n == R*L*(L - first)
        for clip in clips: torch.testing.assert_close(table[clip][:32], plain[clip], rtol=1e-5, atol=1e-5)
    assert digest(*model.parameters()) == weights


def test_trying_all_of_them_2():
    # %% ../nbs/12_icl_pruning.ipynb #5bf4d7b1
    def zoo():
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4)
        yield LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, head_dim=8, num_key_value_heads=2))
        yield GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64))
        yield OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64))
        yield GPTJForCausalLM(GPTJConfig(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64, rotary_dim=4))
        yield Phi3ForCausalLM(Phi3Config(**sizes, intermediate_size=48, num_key_value_heads=2, pad_token_id=0))
        yield GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48, max_position_embeddings=64))

    # %% ../nbs/12_icl_pruning.ipynb #1a282730
    def batch_of(seed=0, left=False, rows=4, length=12):
        g = torch.Generator().manual_seed(seed)
        ids, mask = torch.randint(1, 64, (rows, length), generator=g), torch.ones(rows, length, dtype=torch.long)
        mask[1, :4 if left else None] = 0 if left else 1
        mask[1, length if left else 8:] = 0
        targets = torch.full_like(ids, -100)
        last = mask*torch.arange(length)
        targets[torch.arange(rows), last.argmax(1)] = torch.randint(1, 64, (rows,), generator=g)
        return Batch(ids*mask, mask, targets, torch.arange(rows))

    # %% ../nbs/12_icl_pruning.ipynb #4f5580a5
    class Answers:
        "Prompts with one right token each, after the last of them."
        def __init__(self, todo, labels):
            self.batches = [(b, torch.arange(len(b.doc)) + i*len(b.doc), y)
                            for i, (b, y) in enumerate(zip(todo, labels, strict=True))]
            self.keys = [digest(row) for b in todo for row in b.ids]
            self.scored = 0

        def items(self, batch): return batch[1]

        @torch.no_grad()
        def score(self, model, batch):
            self.scored += 1
            logits = last_logits(model, batch[0])
            loss = nn.functional.cross_entropy(logits, batch[2], reduction="none").double()
            return torch.stack([loss, (logits.argmax(-1) == batch[2]).double()], 1)


    def last_logits(model, b):
        return model(**b.inputs, use_cache=False).logits[b.targets >= 0]

    # %% ../nbs/12_icl_pruning.ipynb #b2a318bc
    @torch.no_grad()
    def planted(blocks_of_noise=(1,), noise=.25, rank=3):
        torch.manual_seed(0)
        model = new_model(vocab_size=64, hidden_size=32, num_hidden_layers=4, intermediate_size=48, head_dim=8,
                          num_attention_heads=4, num_key_value_heads=4).eval()
        for p in model.parameters():
            if p.ndim == 2: p.normal_(0, .25)
        noisy = [m.weight for i in blocks_of_noise for m in model.model.layers[i].mlp.children() if is_linear(m)]
        for W in noisy: W.copy_(3*spectrum(W).at(rank))
        sets = []
        for first in 0, 100:
            todo = [batch_of(first + i, rows=32) for i in range(4)]
            sets.append(Answers(todo, [last_logits(model, b).argmax(-1) for b in todo]))
        for W in noisy: W.add_(noise*torch.randn_like(W))
        return model, *sets

    # %% ../nbs/12_icl_pruning.ipynb #c8accc8b
    class Counted:
        "Count what really runs, not what a record returns."
        def __init__(self, cls): self.cls, self.n, self.forward = cls, 0, cls.forward

        def __enter__(self):
            def forward(module, *args, **kwargs):
                self.n += 1
                return self.forward(module, *args, **kwargs)
            self.cls.forward = forward
            return self

        def __exit__(self, *_): self.cls.forward = self.forward

    # %% ../nbs/12_icl_pruning.ipynb #2b1b2b72
    for model, left in itertools.product(zoo(), (False, True)):
        batch = batch_of(left=left)
        model.eval()
        scorer = Answers([batch], [torch.arange(4)])
        parts = matrices(model, ("attn", "mlp", "k"), lambda: scorer.score(model, scorer.batches[0]), layers=[1])  # noqa: B023
        clips = [Clip(*where, how, .5) for where in parts for how in ("top", "scale")]
        table, changes = sweep_clips(model, scorer, clips, parts), {c: change_of(model, parts, c) for c in clips}
        plain = tried_plainly(model, lambda: scorer.score(model, scorer.batches[0]), changes)  # noqa: B023
        for clip in clips:
            torch.testing.assert_close(table[clip], plain[clip], rtol=1e-5, atol=1e-5)
            assert not torch.equal(table[clip], table[None])


def test_trying_all_of_them_3():
    # %% ../nbs/12_icl_pruning.ipynb #5bf4d7b1
    def zoo():
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4)
        yield LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, head_dim=8, num_key_value_heads=2))
        yield GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64))
        yield OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64))
        yield GPTJForCausalLM(GPTJConfig(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64, rotary_dim=4))
        yield Phi3ForCausalLM(Phi3Config(**sizes, intermediate_size=48, num_key_value_heads=2, pad_token_id=0))
        yield GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48, max_position_embeddings=64))

    # %% ../nbs/12_icl_pruning.ipynb #1a282730
    def batch_of(seed=0, left=False, rows=4, length=12):
        g = torch.Generator().manual_seed(seed)
        ids, mask = torch.randint(1, 64, (rows, length), generator=g), torch.ones(rows, length, dtype=torch.long)
        mask[1, :4 if left else None] = 0 if left else 1
        mask[1, length if left else 8:] = 0
        targets = torch.full_like(ids, -100)
        last = mask*torch.arange(length)
        targets[torch.arange(rows), last.argmax(1)] = torch.randint(1, 64, (rows,), generator=g)
        return Batch(ids*mask, mask, targets, torch.arange(rows))

    # %% ../nbs/12_icl_pruning.ipynb #4f5580a5
    class Answers:
        "Prompts with one right token each, after the last of them."
        def __init__(self, todo, labels):
            self.batches = [(b, torch.arange(len(b.doc)) + i*len(b.doc), y)
                            for i, (b, y) in enumerate(zip(todo, labels, strict=True))]
            self.keys = [digest(row) for b in todo for row in b.ids]
            self.scored = 0

        def items(self, batch): return batch[1]

        @torch.no_grad()
        def score(self, model, batch):
            self.scored += 1
            logits = last_logits(model, batch[0])
            loss = nn.functional.cross_entropy(logits, batch[2], reduction="none").double()
            return torch.stack([loss, (logits.argmax(-1) == batch[2]).double()], 1)


    def last_logits(model, b):
        return model(**b.inputs, use_cache=False).logits[b.targets >= 0]

    # %% ../nbs/12_icl_pruning.ipynb #b2a318bc
    @torch.no_grad()
    def planted(blocks_of_noise=(1,), noise=.25, rank=3):
        torch.manual_seed(0)
        model = new_model(vocab_size=64, hidden_size=32, num_hidden_layers=4, intermediate_size=48, head_dim=8,
                          num_attention_heads=4, num_key_value_heads=4).eval()
        for p in model.parameters():
            if p.ndim == 2: p.normal_(0, .25)
        noisy = [m.weight for i in blocks_of_noise for m in model.model.layers[i].mlp.children() if is_linear(m)]
        for W in noisy: W.copy_(3*spectrum(W).at(rank))
        sets = []
        for first in 0, 100:
            todo = [batch_of(first + i, rows=32) for i in range(4)]
            sets.append(Answers(todo, [last_logits(model, b).argmax(-1) for b in todo]))
        for W in noisy: W.add_(noise*torch.randn_like(W))
        return model, *sets

    # %% ../nbs/12_icl_pruning.ipynb #c8accc8b
    class Counted:
        "Count what really runs, not what a record returns."
        def __init__(self, cls): self.cls, self.n, self.forward = cls, 0, cls.forward

        def __enter__(self):
            def forward(module, *args, **kwargs):
                self.n += 1
                return self.forward(module, *args, **kwargs)
            self.cls.forward = forward
            return self

        def __exit__(self, *_): self.cls.forward = self.forward

    # %% ../nbs/12_icl_pruning.ipynb #9be160ec
    model, scorer, _ = planted()
    scorer.batches = scorer.batches[:1]
    with tempfile.TemporaryDirectory() as d:
        for target in "up_proj", "down_proj":
            parts = matrices(model, {"x": target}, layers=[1])
            clips = [*clips_of(parts, "top", (.5, .99, .995)), Clip(1, "x", "bottom", .99)]
            fresh, begun = sweep_clips(model, scorer, clips, parts), scorer.scored
            kept = sweep_clips(model, scorer, clips, parts, f"{d}/rows.jsonl")
            assert all(torch.equal(kept[c], fresh[c]) for c in (None, *clips)) and list(kept) == [None, *clips]
            of_four, begun = scorer.scored - begun, scorer.scored
            sweep_clips(model, scorer, clips[:2], parts)
            assert torch.equal(fresh[clips[1]], fresh[clips[2]]) and scorer.scored - begun == of_four
    other = Answers([scorer.batches[0][0]], [scorer.batches[0][2]])
    names_ = [identity(model, scorer, parts, clips), identity(model, scorer, parts, clips, state="other")]
    other.weights = torch.arange(32)
    names_.append(identity(model, other, parts, clips))
    model.config.rms_norm_eps *= 2
    names_.append(identity(model, scorer, parts, clips))
    assert len(set(names_)) == 4


def test_trying_all_of_them_4():
    # %% ../nbs/12_icl_pruning.ipynb #5bf4d7b1
    def zoo():
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4)
        yield LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, head_dim=8, num_key_value_heads=2))
        yield GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64))
        yield OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64))
        yield GPTJForCausalLM(GPTJConfig(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64, rotary_dim=4))
        yield Phi3ForCausalLM(Phi3Config(**sizes, intermediate_size=48, num_key_value_heads=2, pad_token_id=0))
        yield GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48, max_position_embeddings=64))

    # %% ../nbs/12_icl_pruning.ipynb #1a282730
    def batch_of(seed=0, left=False, rows=4, length=12):
        g = torch.Generator().manual_seed(seed)
        ids, mask = torch.randint(1, 64, (rows, length), generator=g), torch.ones(rows, length, dtype=torch.long)
        mask[1, :4 if left else None] = 0 if left else 1
        mask[1, length if left else 8:] = 0
        targets = torch.full_like(ids, -100)
        last = mask*torch.arange(length)
        targets[torch.arange(rows), last.argmax(1)] = torch.randint(1, 64, (rows,), generator=g)
        return Batch(ids*mask, mask, targets, torch.arange(rows))

    # %% ../nbs/12_icl_pruning.ipynb #4f5580a5
    class Answers:
        "Prompts with one right token each, after the last of them."
        def __init__(self, todo, labels):
            self.batches = [(b, torch.arange(len(b.doc)) + i*len(b.doc), y)
                            for i, (b, y) in enumerate(zip(todo, labels, strict=True))]
            self.keys = [digest(row) for b in todo for row in b.ids]
            self.scored = 0

        def items(self, batch): return batch[1]

        @torch.no_grad()
        def score(self, model, batch):
            self.scored += 1
            logits = last_logits(model, batch[0])
            loss = nn.functional.cross_entropy(logits, batch[2], reduction="none").double()
            return torch.stack([loss, (logits.argmax(-1) == batch[2]).double()], 1)


    def last_logits(model, b):
        return model(**b.inputs, use_cache=False).logits[b.targets >= 0]

    # %% ../nbs/12_icl_pruning.ipynb #b2a318bc
    @torch.no_grad()
    def planted(blocks_of_noise=(1,), noise=.25, rank=3):
        torch.manual_seed(0)
        model = new_model(vocab_size=64, hidden_size=32, num_hidden_layers=4, intermediate_size=48, head_dim=8,
                          num_attention_heads=4, num_key_value_heads=4).eval()
        for p in model.parameters():
            if p.ndim == 2: p.normal_(0, .25)
        noisy = [m.weight for i in blocks_of_noise for m in model.model.layers[i].mlp.children() if is_linear(m)]
        for W in noisy: W.copy_(3*spectrum(W).at(rank))
        sets = []
        for first in 0, 100:
            todo = [batch_of(first + i, rows=32) for i in range(4)]
            sets.append(Answers(todo, [last_logits(model, b).argmax(-1) for b in todo]))
        for W in noisy: W.add_(noise*torch.randn_like(W))
        return model, *sets

    # %% ../nbs/12_icl_pruning.ipynb #c8accc8b
    class Counted:
        "Count what really runs, not what a record returns."
        def __init__(self, cls): self.cls, self.n, self.forward = cls, 0, cls.forward

        def __enter__(self):
            def forward(module, *args, **kwargs):
                self.n += 1
                return self.forward(module, *args, **kwargs)
            self.cls.forward = forward
            return self

        def __exit__(self, *_): self.cls.forward = self.forward

    # %% ../nbs/12_icl_pruning.ipynb #fcacc938
    model, scorer, _ = planted()
    parts, left = matrices(model, ["mlp"], layers=[1, 3]), [29]
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    clips, score = clips_of(parts, "top", RATES), scorer.score
    def failing(*args):
        left[0] -= 1
        if not left[0]: raise KeyboardInterrupt
        return score(*args)

    with tempfile.TemporaryDirectory() as d:
        scorer.score = failing
        try: sweep_clips(model, scorer, clips, parts, f"{d}/rows.jsonl")
        except KeyboardInterrupt: pass
        assert weights.keys() == model.state_dict().keys()
        assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
        scorer.score, scorer.scored = score, 0
        again = sweep_clips(model, scorer, clips, parts, f"{d}/rows.jsonl")
        resumed, scorer.scored = scorer.scored, 0
        whole = sweep_clips(model, scorer, clips, parts)
        assert resumed < scorer.scored and all(torch.equal(again[c], whole[c]) for c in whole)


def test_algorithm_1():
    # %% ../nbs/12_icl_pruning.ipynb #5bf4d7b1
    def zoo():
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4)
        yield LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, head_dim=8, num_key_value_heads=2))
        yield GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64))
        yield OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64))
        yield GPTJForCausalLM(GPTJConfig(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64, rotary_dim=4))
        yield Phi3ForCausalLM(Phi3Config(**sizes, intermediate_size=48, num_key_value_heads=2, pad_token_id=0))
        yield GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48, max_position_embeddings=64))

    # %% ../nbs/12_icl_pruning.ipynb #1a282730
    def batch_of(seed=0, left=False, rows=4, length=12):
        g = torch.Generator().manual_seed(seed)
        ids, mask = torch.randint(1, 64, (rows, length), generator=g), torch.ones(rows, length, dtype=torch.long)
        mask[1, :4 if left else None] = 0 if left else 1
        mask[1, length if left else 8:] = 0
        targets = torch.full_like(ids, -100)
        last = mask*torch.arange(length)
        targets[torch.arange(rows), last.argmax(1)] = torch.randint(1, 64, (rows,), generator=g)
        return Batch(ids*mask, mask, targets, torch.arange(rows))

    # %% ../nbs/12_icl_pruning.ipynb #4f5580a5
    class Answers:
        "Prompts with one right token each, after the last of them."
        def __init__(self, todo, labels):
            self.batches = [(b, torch.arange(len(b.doc)) + i*len(b.doc), y)
                            for i, (b, y) in enumerate(zip(todo, labels, strict=True))]
            self.keys = [digest(row) for b in todo for row in b.ids]
            self.scored = 0

        def items(self, batch): return batch[1]

        @torch.no_grad()
        def score(self, model, batch):
            self.scored += 1
            logits = last_logits(model, batch[0])
            loss = nn.functional.cross_entropy(logits, batch[2], reduction="none").double()
            return torch.stack([loss, (logits.argmax(-1) == batch[2]).double()], 1)


    def last_logits(model, b):
        return model(**b.inputs, use_cache=False).logits[b.targets >= 0]

    # %% ../nbs/12_icl_pruning.ipynb #b2a318bc
    @torch.no_grad()
    def planted(blocks_of_noise=(1,), noise=.25, rank=3):
        torch.manual_seed(0)
        model = new_model(vocab_size=64, hidden_size=32, num_hidden_layers=4, intermediate_size=48, head_dim=8,
                          num_attention_heads=4, num_key_value_heads=4).eval()
        for p in model.parameters():
            if p.ndim == 2: p.normal_(0, .25)
        noisy = [m.weight for i in blocks_of_noise for m in model.model.layers[i].mlp.children() if is_linear(m)]
        for W in noisy: W.copy_(3*spectrum(W).at(rank))
        sets = []
        for first in 0, 100:
            todo = [batch_of(first + i, rows=32) for i in range(4)]
            sets.append(Answers(todo, [last_logits(model, b).argmax(-1) for b in todo]))
        for W in noisy: W.add_(noise*torch.randn_like(W))
        return model, *sets

    # %% ../nbs/12_icl_pruning.ipynb #61987e6a
    model, scorer, _ = planted()
    parts = matrices(model)
    cond = conditions(parts, "mlp")
    for i, value in cond.items():
        mlp = [m.weight.detach().double().numpy() for m in model.model.layers[i].mlp.children() if is_linear(m)]
        exact = max(map(np.linalg.cond, mlp))
        assert math.isclose(value, exact, rel_tol=1e-3)
    worst, second, *_ = sorted(cond, key=cond.get, reverse=True)
    for k, layer in (1, worst), (2, max(worst, second)), (4, 3):
        clip = algorithm_1(model, scorer, parts, "mlp", k)
        clips = clips_of({(layer, "mlp"): parts[layer, "mlp"]}, "top", RATES)
        assert clip == best(sweep_clips(model, scorer, clips, parts), weights_of(scorer, "accuracy"), "accuracy")
        assert clip is None or clip.block == layer
    def table(*right): return dict(zip((None, *clips), (torch.tensor([[1., r]]) for r in right), strict=False))
    assert best(table(.5, .5, .5), torch.ones(1), "accuracy") is None
    assert best(table(.5, .6, .6), torch.ones(1), "accuracy") == clips[0]
    for k in 0, 5:
        try: algorithm_1(model, scorer, parts, "mlp", k)
        except SettingError as e: assert f"k={k} is not between 1 and the 4 blocks with 'mlp'" == str(e)
        else: raise AssertionError(k)


def test_the_best_of_many():
    # %% ../nbs/12_icl_pruning.ipynb #5bf4d7b1
    def zoo():
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4)
        yield LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, head_dim=8, num_key_value_heads=2))
        yield GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64))
        yield OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64))
        yield GPTJForCausalLM(GPTJConfig(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64, rotary_dim=4))
        yield Phi3ForCausalLM(Phi3Config(**sizes, intermediate_size=48, num_key_value_heads=2, pad_token_id=0))
        yield GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48, max_position_embeddings=64))

    # %% ../nbs/12_icl_pruning.ipynb #1a282730
    def batch_of(seed=0, left=False, rows=4, length=12):
        g = torch.Generator().manual_seed(seed)
        ids, mask = torch.randint(1, 64, (rows, length), generator=g), torch.ones(rows, length, dtype=torch.long)
        mask[1, :4 if left else None] = 0 if left else 1
        mask[1, length if left else 8:] = 0
        targets = torch.full_like(ids, -100)
        last = mask*torch.arange(length)
        targets[torch.arange(rows), last.argmax(1)] = torch.randint(1, 64, (rows,), generator=g)
        return Batch(ids*mask, mask, targets, torch.arange(rows))

    # %% ../nbs/12_icl_pruning.ipynb #4f5580a5
    class Answers:
        "Prompts with one right token each, after the last of them."
        def __init__(self, todo, labels):
            self.batches = [(b, torch.arange(len(b.doc)) + i*len(b.doc), y)
                            for i, (b, y) in enumerate(zip(todo, labels, strict=True))]
            self.keys = [digest(row) for b in todo for row in b.ids]
            self.scored = 0

        def items(self, batch): return batch[1]

        @torch.no_grad()
        def score(self, model, batch):
            self.scored += 1
            logits = last_logits(model, batch[0])
            loss = nn.functional.cross_entropy(logits, batch[2], reduction="none").double()
            return torch.stack([loss, (logits.argmax(-1) == batch[2]).double()], 1)


    def last_logits(model, b):
        return model(**b.inputs, use_cache=False).logits[b.targets >= 0]

    # %% ../nbs/12_icl_pruning.ipynb #b2a318bc
    @torch.no_grad()
    def planted(blocks_of_noise=(1,), noise=.25, rank=3):
        torch.manual_seed(0)
        model = new_model(vocab_size=64, hidden_size=32, num_hidden_layers=4, intermediate_size=48, head_dim=8,
                          num_attention_heads=4, num_key_value_heads=4).eval()
        for p in model.parameters():
            if p.ndim == 2: p.normal_(0, .25)
        noisy = [m.weight for i in blocks_of_noise for m in model.model.layers[i].mlp.children() if is_linear(m)]
        for W in noisy: W.copy_(3*spectrum(W).at(rank))
        sets = []
        for first in 0, 100:
            todo = [batch_of(first + i, rows=32) for i in range(4)]
            sets.append(Answers(todo, [last_logits(model, b).argmax(-1) for b in todo]))
        for W in noisy: W.add_(noise*torch.randn_like(W))
        return model, *sets

    # %% ../nbs/12_icl_pruning.ipynb #899e5f61
    rng = np.random.default_rng(0)
    print("      K   mean of the best  one common half  sqrt(2 ln K)")
    for K in 7, 28, 168, 896:
        z = rng.standard_normal((4000, K))
        alike = math.sqrt(.5)*(z + rng.standard_normal((4000, 1)))
        print(f"{K:7} {z.max(1).mean():18.2f} {alike.max(1).mean():16.2f} {optimism(K):13.2f}")
        assert alike.max(1).mean() < z.max(1).mean() < optimism(K) < 1.5*z.max(1).mean()


def test_several_clips():
    # %% ../nbs/12_icl_pruning.ipynb #5bf4d7b1
    def zoo():
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4)
        yield LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, head_dim=8, num_key_value_heads=2))
        yield GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64))
        yield OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64))
        yield GPTJForCausalLM(GPTJConfig(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64, rotary_dim=4))
        yield Phi3ForCausalLM(Phi3Config(**sizes, intermediate_size=48, num_key_value_heads=2, pad_token_id=0))
        yield GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48, max_position_embeddings=64))

    # %% ../nbs/12_icl_pruning.ipynb #1a282730
    def batch_of(seed=0, left=False, rows=4, length=12):
        g = torch.Generator().manual_seed(seed)
        ids, mask = torch.randint(1, 64, (rows, length), generator=g), torch.ones(rows, length, dtype=torch.long)
        mask[1, :4 if left else None] = 0 if left else 1
        mask[1, length if left else 8:] = 0
        targets = torch.full_like(ids, -100)
        last = mask*torch.arange(length)
        targets[torch.arange(rows), last.argmax(1)] = torch.randint(1, 64, (rows,), generator=g)
        return Batch(ids*mask, mask, targets, torch.arange(rows))

    # %% ../nbs/12_icl_pruning.ipynb #4f5580a5
    class Answers:
        "Prompts with one right token each, after the last of them."
        def __init__(self, todo, labels):
            self.batches = [(b, torch.arange(len(b.doc)) + i*len(b.doc), y)
                            for i, (b, y) in enumerate(zip(todo, labels, strict=True))]
            self.keys = [digest(row) for b in todo for row in b.ids]
            self.scored = 0

        def items(self, batch): return batch[1]

        @torch.no_grad()
        def score(self, model, batch):
            self.scored += 1
            logits = last_logits(model, batch[0])
            loss = nn.functional.cross_entropy(logits, batch[2], reduction="none").double()
            return torch.stack([loss, (logits.argmax(-1) == batch[2]).double()], 1)


    def last_logits(model, b):
        return model(**b.inputs, use_cache=False).logits[b.targets >= 0]

    # %% ../nbs/12_icl_pruning.ipynb #b2a318bc
    @torch.no_grad()
    def planted(blocks_of_noise=(1,), noise=.25, rank=3):
        torch.manual_seed(0)
        model = new_model(vocab_size=64, hidden_size=32, num_hidden_layers=4, intermediate_size=48, head_dim=8,
                          num_attention_heads=4, num_key_value_heads=4).eval()
        for p in model.parameters():
            if p.ndim == 2: p.normal_(0, .25)
        noisy = [m.weight for i in blocks_of_noise for m in model.model.layers[i].mlp.children() if is_linear(m)]
        for W in noisy: W.copy_(3*spectrum(W).at(rank))
        sets = []
        for first in 0, 100:
            todo = [batch_of(first + i, rows=32) for i in range(4)]
            sets.append(Answers(todo, [last_logits(model, b).argmax(-1) for b in todo]))
        for W in noisy: W.add_(noise*torch.randn_like(W))
        return model, *sets

    # %% ../nbs/12_icl_pruning.ipynb #37f2e477
    model, scorer, other = planted((1, 2))
    parts = matrices(model)
    clips = clips_of(parts, "top", RATES)
    steps = compose(model, scorer, clips, parts, 5)
    assert [step["clip"][:2] for step in steps[:2]] in ([[1, "mlp"], [2, "mlp"]], [[2, "mlp"], [1, "mlp"]])
    assert all(step["gain"] > step["needed"] > step["se"] for step in steps)
    together = sweep_clips(model, other, [tuple(Clip(*s["clip"]) for s in steps[:n]) for n in (1, 2)], parts)
    accuracy = [scores[:, 1].mean().item() for scores in together.values()]
    assert accuracy[0] + .05 < accuracy[1] < accuracy[2] - .02
    print("accuracy on other items with 0, 1, 2 clips:", " ".join(f"{a:.2f}" for a in accuracy), f"({len(steps)} steps)")


def test_several_clips_2():
    # %% ../nbs/12_icl_pruning.ipynb #5bf4d7b1
    def zoo():
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4)
        yield LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, head_dim=8, num_key_value_heads=2))
        yield GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64))
        yield OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64))
        yield GPTJForCausalLM(GPTJConfig(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64, rotary_dim=4))
        yield Phi3ForCausalLM(Phi3Config(**sizes, intermediate_size=48, num_key_value_heads=2, pad_token_id=0))
        yield GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48, max_position_embeddings=64))

    # %% ../nbs/12_icl_pruning.ipynb #1a282730
    def batch_of(seed=0, left=False, rows=4, length=12):
        g = torch.Generator().manual_seed(seed)
        ids, mask = torch.randint(1, 64, (rows, length), generator=g), torch.ones(rows, length, dtype=torch.long)
        mask[1, :4 if left else None] = 0 if left else 1
        mask[1, length if left else 8:] = 0
        targets = torch.full_like(ids, -100)
        last = mask*torch.arange(length)
        targets[torch.arange(rows), last.argmax(1)] = torch.randint(1, 64, (rows,), generator=g)
        return Batch(ids*mask, mask, targets, torch.arange(rows))

    # %% ../nbs/12_icl_pruning.ipynb #4f5580a5
    class Answers:
        "Prompts with one right token each, after the last of them."
        def __init__(self, todo, labels):
            self.batches = [(b, torch.arange(len(b.doc)) + i*len(b.doc), y)
                            for i, (b, y) in enumerate(zip(todo, labels, strict=True))]
            self.keys = [digest(row) for b in todo for row in b.ids]
            self.scored = 0

        def items(self, batch): return batch[1]

        @torch.no_grad()
        def score(self, model, batch):
            self.scored += 1
            logits = last_logits(model, batch[0])
            loss = nn.functional.cross_entropy(logits, batch[2], reduction="none").double()
            return torch.stack([loss, (logits.argmax(-1) == batch[2]).double()], 1)


    def last_logits(model, b):
        return model(**b.inputs, use_cache=False).logits[b.targets >= 0]

    # %% ../nbs/12_icl_pruning.ipynb #b2a318bc
    @torch.no_grad()
    def planted(blocks_of_noise=(1,), noise=.25, rank=3):
        torch.manual_seed(0)
        model = new_model(vocab_size=64, hidden_size=32, num_hidden_layers=4, intermediate_size=48, head_dim=8,
                          num_attention_heads=4, num_key_value_heads=4).eval()
        for p in model.parameters():
            if p.ndim == 2: p.normal_(0, .25)
        noisy = [m.weight for i in blocks_of_noise for m in model.model.layers[i].mlp.children() if is_linear(m)]
        for W in noisy: W.copy_(3*spectrum(W).at(rank))
        sets = []
        for first in 0, 100:
            todo = [batch_of(first + i, rows=32) for i in range(4)]
            sets.append(Answers(todo, [last_logits(model, b).argmax(-1) for b in todo]))
        for W in noisy: W.add_(noise*torch.randn_like(W))
        return model, *sets

    # %% ../nbs/12_icl_pruning.ipynb #8167cdca
    def idle(seed, n=120, K=60):
        d = np.random.default_rng(seed).choice([-1, 0, 1], (K, n), p=(.05, .9, .05))
        gains, se = d.mean(1), d.std(1, ddof=1)/math.sqrt(n)
        won = gains.argmax()
        return gains[won] > se[won], gains[won] > optimism(K, se[won])

    taken = np.mean([idle(seed) for seed in range(300)], 0)
    assert taken[0] > .99 and taken[1] < .3
    print(f"the best of 60 idle clips is added by one standard error in {taken[0]:.0%} of the trials, "
      f"by (6) in {taken[1]:.0%}")


def test_the_choice_and_its_controls():
    # %% ../nbs/12_icl_pruning.ipynb #5bf4d7b1
    def zoo():
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4)
        yield LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, head_dim=8, num_key_value_heads=2))
        yield GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64))
        yield OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64))
        yield GPTJForCausalLM(GPTJConfig(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64, rotary_dim=4))
        yield Phi3ForCausalLM(Phi3Config(**sizes, intermediate_size=48, num_key_value_heads=2, pad_token_id=0))
        yield GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48, max_position_embeddings=64))

    # %% ../nbs/12_icl_pruning.ipynb #1a282730
    def batch_of(seed=0, left=False, rows=4, length=12):
        g = torch.Generator().manual_seed(seed)
        ids, mask = torch.randint(1, 64, (rows, length), generator=g), torch.ones(rows, length, dtype=torch.long)
        mask[1, :4 if left else None] = 0 if left else 1
        mask[1, length if left else 8:] = 0
        targets = torch.full_like(ids, -100)
        last = mask*torch.arange(length)
        targets[torch.arange(rows), last.argmax(1)] = torch.randint(1, 64, (rows,), generator=g)
        return Batch(ids*mask, mask, targets, torch.arange(rows))

    # %% ../nbs/12_icl_pruning.ipynb #4f5580a5
    class Answers:
        "Prompts with one right token each, after the last of them."
        def __init__(self, todo, labels):
            self.batches = [(b, torch.arange(len(b.doc)) + i*len(b.doc), y)
                            for i, (b, y) in enumerate(zip(todo, labels, strict=True))]
            self.keys = [digest(row) for b in todo for row in b.ids]
            self.scored = 0

        def items(self, batch): return batch[1]

        @torch.no_grad()
        def score(self, model, batch):
            self.scored += 1
            logits = last_logits(model, batch[0])
            loss = nn.functional.cross_entropy(logits, batch[2], reduction="none").double()
            return torch.stack([loss, (logits.argmax(-1) == batch[2]).double()], 1)


    def last_logits(model, b):
        return model(**b.inputs, use_cache=False).logits[b.targets >= 0]

    # %% ../nbs/12_icl_pruning.ipynb #b2a318bc
    @torch.no_grad()
    def planted(blocks_of_noise=(1,), noise=.25, rank=3):
        torch.manual_seed(0)
        model = new_model(vocab_size=64, hidden_size=32, num_hidden_layers=4, intermediate_size=48, head_dim=8,
                          num_attention_heads=4, num_key_value_heads=4).eval()
        for p in model.parameters():
            if p.ndim == 2: p.normal_(0, .25)
        noisy = [m.weight for i in blocks_of_noise for m in model.model.layers[i].mlp.children() if is_linear(m)]
        for W in noisy: W.copy_(3*spectrum(W).at(rank))
        sets = []
        for first in 0, 100:
            todo = [batch_of(first + i, rows=32) for i in range(4)]
            sets.append(Answers(todo, [last_logits(model, b).argmax(-1) for b in todo]))
        for W in noisy: W.add_(noise*torch.randn_like(W))
        return model, *sets

    # %% ../nbs/12_icl_pruning.ipynb #9f6b82de
    rng = np.random.default_rng(0)
    covered = []
    for i in range(200):
        d, w = rng.exponential(size=80), rng.integers(1, 5, 80)
        _, low, high = interval(d*w, w, i, 300)
        covered.append(low < 1 < high)
    assert .88 <= np.mean(covered) <= .98
    d = rng.standard_normal(400)
    mean, low, high = interval(d, np.ones(400))
    assert mean == d.mean() and abs((high - low)/(2*1.96*d.std(ddof=1)/20) - 1) < .1
    assert interval(d, np.ones(400)) == [mean, low, high]
    assert interval(np.array([0., math.inf]), np.ones(2))[0] == math.inf


def test_the_choice_and_its_controls_2():
    # %% ../nbs/12_icl_pruning.ipynb #5bf4d7b1
    def zoo():
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4)
        yield LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, head_dim=8, num_key_value_heads=2))
        yield GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64))
        yield OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64))
        yield GPTJForCausalLM(GPTJConfig(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64, rotary_dim=4))
        yield Phi3ForCausalLM(Phi3Config(**sizes, intermediate_size=48, num_key_value_heads=2, pad_token_id=0))
        yield GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48, max_position_embeddings=64))

    # %% ../nbs/12_icl_pruning.ipynb #1a282730
    def batch_of(seed=0, left=False, rows=4, length=12):
        g = torch.Generator().manual_seed(seed)
        ids, mask = torch.randint(1, 64, (rows, length), generator=g), torch.ones(rows, length, dtype=torch.long)
        mask[1, :4 if left else None] = 0 if left else 1
        mask[1, length if left else 8:] = 0
        targets = torch.full_like(ids, -100)
        last = mask*torch.arange(length)
        targets[torch.arange(rows), last.argmax(1)] = torch.randint(1, 64, (rows,), generator=g)
        return Batch(ids*mask, mask, targets, torch.arange(rows))

    # %% ../nbs/12_icl_pruning.ipynb #4f5580a5
    class Answers:
        "Prompts with one right token each, after the last of them."
        def __init__(self, todo, labels):
            self.batches = [(b, torch.arange(len(b.doc)) + i*len(b.doc), y)
                            for i, (b, y) in enumerate(zip(todo, labels, strict=True))]
            self.keys = [digest(row) for b in todo for row in b.ids]
            self.scored = 0

        def items(self, batch): return batch[1]

        @torch.no_grad()
        def score(self, model, batch):
            self.scored += 1
            logits = last_logits(model, batch[0])
            loss = nn.functional.cross_entropy(logits, batch[2], reduction="none").double()
            return torch.stack([loss, (logits.argmax(-1) == batch[2]).double()], 1)


    def last_logits(model, b):
        return model(**b.inputs, use_cache=False).logits[b.targets >= 0]

    # %% ../nbs/12_icl_pruning.ipynb #b2a318bc
    @torch.no_grad()
    def planted(blocks_of_noise=(1,), noise=.25, rank=3):
        torch.manual_seed(0)
        model = new_model(vocab_size=64, hidden_size=32, num_hidden_layers=4, intermediate_size=48, head_dim=8,
                          num_attention_heads=4, num_key_value_heads=4).eval()
        for p in model.parameters():
            if p.ndim == 2: p.normal_(0, .25)
        noisy = [m.weight for i in blocks_of_noise for m in model.model.layers[i].mlp.children() if is_linear(m)]
        for W in noisy: W.copy_(3*spectrum(W).at(rank))
        sets = []
        for first in 0, 100:
            todo = [batch_of(first + i, rows=32) for i in range(4)]
            sets.append(Answers(todo, [last_logits(model, b).argmax(-1) for b in todo]))
        for W in noisy: W.add_(noise*torch.randn_like(W))
        return model, *sets

    # %% ../nbs/12_icl_pruning.ipynb #d46d8490
    model, valid, test = planted()
    weights, order = digest(*model.parameters()), []
    for name, scorer in ("valid", valid), ("test", test):
        def score(model, batch, own=scorer.score, name=name):
            order.append(name)
            return own(model, batch)
        scorer.score = score
    settings = dict(layers=[1, 3], most=2, rates=(.5, .75, .9))
    result = choose_clip(model, valid, test, **settings)
    rows = {row["way"]: row for row in result["table"]}
    assert result["winner"][:3] == [1, "mlp", "top"] and result["n"] == {"valid": 128, "test": 128}
    assert order.index("test") > max(i for i, name in enumerate(order) if name == "valid")
    assert order.count("test") <= 4*(1 + 4 + 6) and digest(*model.parameters()) == weights == result["model"]
    assert rows["pruned"]["change"]["accuracy"][1] > .1 and rows["scale"]["pruned_less_this"]["accuracy"][1] > 0
    assert [rows[way]["tried"] for way in ("pruned", "scale", "drop", "bottom", "random")] == [12, 28, 4, 12, 12]
    assert rows["several"]["clips"] == [step["clip"] for step in result["steps"]] and len(result["sweep"]) == 12
    assert rows["several"]["tried"] == (12 + 9 if result["steps"] else 12)
    assert result == choose_clip(model, valid, test, **settings)


def test_the_choice_and_its_controls_3():
    # %% ../nbs/12_icl_pruning.ipynb #5bf4d7b1
    def zoo():
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4)
        yield LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, head_dim=8, num_key_value_heads=2))
        yield GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64))
        yield OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64))
        yield GPTJForCausalLM(GPTJConfig(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64, rotary_dim=4))
        yield Phi3ForCausalLM(Phi3Config(**sizes, intermediate_size=48, num_key_value_heads=2, pad_token_id=0))
        yield GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48, max_position_embeddings=64))

    # %% ../nbs/12_icl_pruning.ipynb #1a282730
    def batch_of(seed=0, left=False, rows=4, length=12):
        g = torch.Generator().manual_seed(seed)
        ids, mask = torch.randint(1, 64, (rows, length), generator=g), torch.ones(rows, length, dtype=torch.long)
        mask[1, :4 if left else None] = 0 if left else 1
        mask[1, length if left else 8:] = 0
        targets = torch.full_like(ids, -100)
        last = mask*torch.arange(length)
        targets[torch.arange(rows), last.argmax(1)] = torch.randint(1, 64, (rows,), generator=g)
        return Batch(ids*mask, mask, targets, torch.arange(rows))

    # %% ../nbs/12_icl_pruning.ipynb #4f5580a5
    class Answers:
        "Prompts with one right token each, after the last of them."
        def __init__(self, todo, labels):
            self.batches = [(b, torch.arange(len(b.doc)) + i*len(b.doc), y)
                            for i, (b, y) in enumerate(zip(todo, labels, strict=True))]
            self.keys = [digest(row) for b in todo for row in b.ids]
            self.scored = 0

        def items(self, batch): return batch[1]

        @torch.no_grad()
        def score(self, model, batch):
            self.scored += 1
            logits = last_logits(model, batch[0])
            loss = nn.functional.cross_entropy(logits, batch[2], reduction="none").double()
            return torch.stack([loss, (logits.argmax(-1) == batch[2]).double()], 1)


    def last_logits(model, b):
        return model(**b.inputs, use_cache=False).logits[b.targets >= 0]

    # %% ../nbs/12_icl_pruning.ipynb #b2a318bc
    @torch.no_grad()
    def planted(blocks_of_noise=(1,), noise=.25, rank=3):
        torch.manual_seed(0)
        model = new_model(vocab_size=64, hidden_size=32, num_hidden_layers=4, intermediate_size=48, head_dim=8,
                          num_attention_heads=4, num_key_value_heads=4).eval()
        for p in model.parameters():
            if p.ndim == 2: p.normal_(0, .25)
        noisy = [m.weight for i in blocks_of_noise for m in model.model.layers[i].mlp.children() if is_linear(m)]
        for W in noisy: W.copy_(3*spectrum(W).at(rank))
        sets = []
        for first in 0, 100:
            todo = [batch_of(first + i, rows=32) for i in range(4)]
            sets.append(Answers(todo, [last_logits(model, b).argmax(-1) for b in todo]))
        for W in noisy: W.add_(noise*torch.randn_like(W))
        return model, *sets

    # %% ../nbs/12_icl_pruning.ipynb #575e2815
    model, valid, test = planted()
    with tempfile.TemporaryDirectory() as d:
        args = dict(modules=["mlp"], layers=[0, 1], rates=(.5, .75, .9), path=f"{d}/rows.jsonl", most=2)
        first = choose_clip(model, valid, test, **args)
        lines, valid.scored, test.scored = Path(f"{d}/rows.jsonl").read_text().splitlines(keepends=True), 0, 0
        Path(f"{d}/rows.jsonl").write_text("".join(lines[:-2]) + lines[-2][:50])
        assert choose_clip(model, valid, test, **args) == first and test.scored <= 2*(1 + 4 + 6) and valid.scored <= 3
        write_json(f"{d}/result.json", first)
        won = choose_clip(model, valid, test, modules=["mlp"], layers=[0, 1], rates=(.5, .75, .9), z=3.)
    assert won["winner"] == first["winner"] == [1, "mlp", *first["winner"][2:]] and won["sweep"] == []
    for settings, error in [(dict(rates=(0, 1.)), "rate=1.0 is outside [0, 1)"), (dict(modules=["ffn"]), "no module 'ffn'"),
                            (dict(by="f1"), "by='f1'"), (dict(layers=[4]), "outside the 4 blocks")]:
        test.scored = 0
        try: choose_clip(model, valid, test, **settings)
        except (SettingError, UnknownModuleError) as e: assert error in str(e) and not test.scored
        else: raise AssertionError(error)
    with patch.object(torch.linalg, "svd", wraps=torch.linalg.svd) as svds:
        try: choose_clip(model, TextScorer([batch_of(0)]), TextScorer([batch_of(1)]))
        except SettingError as e: assert "by='accuracy', but of 4 of 4 items" in str(e) and not svds.call_count
        else: raise AssertionError("no item is right or wrong")
    try: choose_clip(model, valid, valid)
    except SettingError as e: assert "validation and test share 128 items" in str(e)
    else: raise AssertionError("chosen and measured on the same items")


def test_the_choice_and_its_controls_4():
    # %% ../nbs/12_icl_pruning.ipynb #5bf4d7b1
    def zoo():
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4)
        yield LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, head_dim=8, num_key_value_heads=2))
        yield GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64))
        yield OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64))
        yield GPTJForCausalLM(GPTJConfig(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64, rotary_dim=4))
        yield Phi3ForCausalLM(Phi3Config(**sizes, intermediate_size=48, num_key_value_heads=2, pad_token_id=0))
        yield GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48, max_position_embeddings=64))

    # %% ../nbs/12_icl_pruning.ipynb #1a282730
    def batch_of(seed=0, left=False, rows=4, length=12):
        g = torch.Generator().manual_seed(seed)
        ids, mask = torch.randint(1, 64, (rows, length), generator=g), torch.ones(rows, length, dtype=torch.long)
        mask[1, :4 if left else None] = 0 if left else 1
        mask[1, length if left else 8:] = 0
        targets = torch.full_like(ids, -100)
        last = mask*torch.arange(length)
        targets[torch.arange(rows), last.argmax(1)] = torch.randint(1, 64, (rows,), generator=g)
        return Batch(ids*mask, mask, targets, torch.arange(rows))

    # %% ../nbs/12_icl_pruning.ipynb #4f5580a5
    class Answers:
        "Prompts with one right token each, after the last of them."
        def __init__(self, todo, labels):
            self.batches = [(b, torch.arange(len(b.doc)) + i*len(b.doc), y)
                            for i, (b, y) in enumerate(zip(todo, labels, strict=True))]
            self.keys = [digest(row) for b in todo for row in b.ids]
            self.scored = 0

        def items(self, batch): return batch[1]

        @torch.no_grad()
        def score(self, model, batch):
            self.scored += 1
            logits = last_logits(model, batch[0])
            loss = nn.functional.cross_entropy(logits, batch[2], reduction="none").double()
            return torch.stack([loss, (logits.argmax(-1) == batch[2]).double()], 1)


    def last_logits(model, b):
        return model(**b.inputs, use_cache=False).logits[b.targets >= 0]

    # %% ../nbs/12_icl_pruning.ipynb #b2a318bc
    @torch.no_grad()
    def planted(blocks_of_noise=(1,), noise=.25, rank=3):
        torch.manual_seed(0)
        model = new_model(vocab_size=64, hidden_size=32, num_hidden_layers=4, intermediate_size=48, head_dim=8,
                          num_attention_heads=4, num_key_value_heads=4).eval()
        for p in model.parameters():
            if p.ndim == 2: p.normal_(0, .25)
        noisy = [m.weight for i in blocks_of_noise for m in model.model.layers[i].mlp.children() if is_linear(m)]
        for W in noisy: W.copy_(3*spectrum(W).at(rank))
        sets = []
        for first in 0, 100:
            todo = [batch_of(first + i, rows=32) for i in range(4)]
            sets.append(Answers(todo, [last_logits(model, b).argmax(-1) for b in todo]))
        for W in noisy: W.add_(noise*torch.randn_like(W))
        return model, *sets

    # %% ../nbs/12_icl_pruning.ipynb #6a1b5941
    model, valid, test = planted()
    result = choose_clip(model, valid, test, modules={"mlp": None, "up": "up_proj"}, layers=[1], rates=(.75, .9))
    new = keep(model, result).eval()
    want = next(row for row in result["table"] if row["way"] == "pruned")["test"]["accuracy"]
    def right(model): return torch.cat([test.score(model, b) for b in test.batches])[:, 1].mean().item()
    assert math.isclose(right(new), want, abs_tol=1e-9) and result["winner"][0] == 1
    with tempfile.TemporaryDirectory() as d:
        save(model, None, d, recipe={"clip": result["winner"]})
        assert read_about(d)["steps"] == [{"clip": result["winner"]}]
    try: keep(model, result)
    except SettingError as e: assert "other weights" in str(e)
    else: raise AssertionError("kept twice")


def test_the_embedded_model_on_plain_text():
    # %% ../nbs/12_icl_pruning.ipynb #5bf4d7b1
    def zoo():
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4)
        yield LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, head_dim=8, num_key_value_heads=2))
        yield GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64))
        yield OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64))
        yield GPTJForCausalLM(GPTJConfig(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64, rotary_dim=4))
        yield Phi3ForCausalLM(Phi3Config(**sizes, intermediate_size=48, num_key_value_heads=2, pad_token_id=0))
        yield GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48, max_position_embeddings=64))

    # %% ../nbs/12_icl_pruning.ipynb #1a282730
    def batch_of(seed=0, left=False, rows=4, length=12):
        g = torch.Generator().manual_seed(seed)
        ids, mask = torch.randint(1, 64, (rows, length), generator=g), torch.ones(rows, length, dtype=torch.long)
        mask[1, :4 if left else None] = 0 if left else 1
        mask[1, length if left else 8:] = 0
        targets = torch.full_like(ids, -100)
        last = mask*torch.arange(length)
        targets[torch.arange(rows), last.argmax(1)] = torch.randint(1, 64, (rows,), generator=g)
        return Batch(ids*mask, mask, targets, torch.arange(rows))

    # %% ../nbs/12_icl_pruning.ipynb #4f5580a5
    class Answers:
        "Prompts with one right token each, after the last of them."
        def __init__(self, todo, labels):
            self.batches = [(b, torch.arange(len(b.doc)) + i*len(b.doc), y)
                            for i, (b, y) in enumerate(zip(todo, labels, strict=True))]
            self.keys = [digest(row) for b in todo for row in b.ids]
            self.scored = 0

        def items(self, batch): return batch[1]

        @torch.no_grad()
        def score(self, model, batch):
            self.scored += 1
            logits = last_logits(model, batch[0])
            loss = nn.functional.cross_entropy(logits, batch[2], reduction="none").double()
            return torch.stack([loss, (logits.argmax(-1) == batch[2]).double()], 1)


    def last_logits(model, b):
        return model(**b.inputs, use_cache=False).logits[b.targets >= 0]

    # %% ../nbs/12_icl_pruning.ipynb #b2a318bc
    @torch.no_grad()
    def planted(blocks_of_noise=(1,), noise=.25, rank=3):
        torch.manual_seed(0)
        model = new_model(vocab_size=64, hidden_size=32, num_hidden_layers=4, intermediate_size=48, head_dim=8,
                          num_attention_heads=4, num_key_value_heads=4).eval()
        for p in model.parameters():
            if p.ndim == 2: p.normal_(0, .25)
        noisy = [m.weight for i in blocks_of_noise for m in model.model.layers[i].mlp.children() if is_linear(m)]
        for W in noisy: W.copy_(3*spectrum(W).at(rank))
        sets = []
        for first in 0, 100:
            todo = [batch_of(first + i, rows=32) for i in range(4)]
            sets.append(Answers(todo, [last_logits(model, b).argmax(-1) for b in todo]))
        for W in noisy: W.add_(noise*torch.randn_like(W))
        return model, *sets

    # %% ../nbs/12_icl_pruning.ipynb #607b3073
    model, valid, test = planted()
    result = choose_clip(model, valid, test, ["mlp"], layers=[1], rates=(.5, .9), by="loss")
    result["sweep"][0][4] = result["table"][1]["test"]["loss"] = math.inf
    for way in "change", "pruned_less_this":
        for by in "loss", "accuracy": result["table"][1][way][by] = [math.inf, math.nan, math.nan]
    with tempfile.TemporaryDirectory() as d:
        write_json(f"{d}/result.json", result)
        back = json.loads(Path(f"{d}/result.json").read_text())
    assert back["sweep"][0][4] is None and clip_table(back) == clip_table(result) and "not finite" in clip_table(back)
    grids = [clip_figure(r).axes[0].images[0].get_array() for r in (back, result)]
    assert np.array_equal(*grids) and not np.isfinite(grids[0][0, 0]) and np.isfinite(grids[0][0, 1])
    plt.close("all")


def test_the_embedded_model_on_plain_text_2():
    # %% ../nbs/12_icl_pruning.ipynb #5bf4d7b1
    def zoo():
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4)
        yield LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, head_dim=8, num_key_value_heads=2))
        yield GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64))
        yield OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64))
        yield GPTJForCausalLM(GPTJConfig(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64, rotary_dim=4))
        yield Phi3ForCausalLM(Phi3Config(**sizes, intermediate_size=48, num_key_value_heads=2, pad_token_id=0))
        yield GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48, max_position_embeddings=64))

    # %% ../nbs/12_icl_pruning.ipynb #1a282730
    def batch_of(seed=0, left=False, rows=4, length=12):
        g = torch.Generator().manual_seed(seed)
        ids, mask = torch.randint(1, 64, (rows, length), generator=g), torch.ones(rows, length, dtype=torch.long)
        mask[1, :4 if left else None] = 0 if left else 1
        mask[1, length if left else 8:] = 0
        targets = torch.full_like(ids, -100)
        last = mask*torch.arange(length)
        targets[torch.arange(rows), last.argmax(1)] = torch.randint(1, 64, (rows,), generator=g)
        return Batch(ids*mask, mask, targets, torch.arange(rows))

    # %% ../nbs/12_icl_pruning.ipynb #4f5580a5
    class Answers:
        "Prompts with one right token each, after the last of them."
        def __init__(self, todo, labels):
            self.batches = [(b, torch.arange(len(b.doc)) + i*len(b.doc), y)
                            for i, (b, y) in enumerate(zip(todo, labels, strict=True))]
            self.keys = [digest(row) for b in todo for row in b.ids]
            self.scored = 0

        def items(self, batch): return batch[1]

        @torch.no_grad()
        def score(self, model, batch):
            self.scored += 1
            logits = last_logits(model, batch[0])
            loss = nn.functional.cross_entropy(logits, batch[2], reduction="none").double()
            return torch.stack([loss, (logits.argmax(-1) == batch[2]).double()], 1)


    def last_logits(model, b):
        return model(**b.inputs, use_cache=False).logits[b.targets >= 0]

    # %% ../nbs/12_icl_pruning.ipynb #b2a318bc
    @torch.no_grad()
    def planted(blocks_of_noise=(1,), noise=.25, rank=3):
        torch.manual_seed(0)
        model = new_model(vocab_size=64, hidden_size=32, num_hidden_layers=4, intermediate_size=48, head_dim=8,
                          num_attention_heads=4, num_key_value_heads=4).eval()
        for p in model.parameters():
            if p.ndim == 2: p.normal_(0, .25)
        noisy = [m.weight for i in blocks_of_noise for m in model.model.layers[i].mlp.children() if is_linear(m)]
        for W in noisy: W.copy_(3*spectrum(W).at(rank))
        sets = []
        for first in 0, 100:
            todo = [batch_of(first + i, rows=32) for i in range(4)]
            sets.append(Answers(todo, [last_logits(model, b).argmax(-1) for b in todo]))
        for W in noisy: W.add_(noise*torch.randn_like(W))
        return model, *sets

    # %% ../nbs/12_icl_pruning.ipynb #8e12c1a8
    _, _, model, *_ = zoo()
    sets = [Answers([batch_of(i, left=True)], [torch.arange(4) + i]) for i in (0, 1)]
    result = choose_clip(model.eval(), *sets, ["attn", "v"], (.5, .9), "loss", [1])
    rows = {row["way"]: row for row in result["table"]}
    assert rows["random"]["tried"] == 4 and result["modules"]["1.v"] == ["model.decoder.layers.1.self_attn.v_proj"]
    with torch.no_grad(): want = sets[1].score(keep(model, result, lambda: model(**batch_of().inputs)), sets[1].batches[0])
    assert math.isclose(want[:, 0].mean(), rows["pruned"]["test"]["loss"], rel_tol=1e-5)


def test_what_a_search_of_a_published_model_takes():
    # %% ../nbs/12_icl_pruning.ipynb #5bf4d7b1
    def zoo():
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4)
        yield LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, head_dim=8, num_key_value_heads=2))
        yield GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64))
        yield OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64))
        yield GPTJForCausalLM(GPTJConfig(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64, rotary_dim=4))
        yield Phi3ForCausalLM(Phi3Config(**sizes, intermediate_size=48, num_key_value_heads=2, pad_token_id=0))
        yield GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48, max_position_embeddings=64))

    # %% ../nbs/12_icl_pruning.ipynb #1a282730
    def batch_of(seed=0, left=False, rows=4, length=12):
        g = torch.Generator().manual_seed(seed)
        ids, mask = torch.randint(1, 64, (rows, length), generator=g), torch.ones(rows, length, dtype=torch.long)
        mask[1, :4 if left else None] = 0 if left else 1
        mask[1, length if left else 8:] = 0
        targets = torch.full_like(ids, -100)
        last = mask*torch.arange(length)
        targets[torch.arange(rows), last.argmax(1)] = torch.randint(1, 64, (rows,), generator=g)
        return Batch(ids*mask, mask, targets, torch.arange(rows))

    # %% ../nbs/12_icl_pruning.ipynb #4f5580a5
    class Answers:
        "Prompts with one right token each, after the last of them."
        def __init__(self, todo, labels):
            self.batches = [(b, torch.arange(len(b.doc)) + i*len(b.doc), y)
                            for i, (b, y) in enumerate(zip(todo, labels, strict=True))]
            self.keys = [digest(row) for b in todo for row in b.ids]
            self.scored = 0

        def items(self, batch): return batch[1]

        @torch.no_grad()
        def score(self, model, batch):
            self.scored += 1
            logits = last_logits(model, batch[0])
            loss = nn.functional.cross_entropy(logits, batch[2], reduction="none").double()
            return torch.stack([loss, (logits.argmax(-1) == batch[2]).double()], 1)


    def last_logits(model, b):
        return model(**b.inputs, use_cache=False).logits[b.targets >= 0]

    # %% ../nbs/12_icl_pruning.ipynb #b2a318bc
    @torch.no_grad()
    def planted(blocks_of_noise=(1,), noise=.25, rank=3):
        torch.manual_seed(0)
        model = new_model(vocab_size=64, hidden_size=32, num_hidden_layers=4, intermediate_size=48, head_dim=8,
                          num_attention_heads=4, num_key_value_heads=4).eval()
        for p in model.parameters():
            if p.ndim == 2: p.normal_(0, .25)
        noisy = [m.weight for i in blocks_of_noise for m in model.model.layers[i].mlp.children() if is_linear(m)]
        for W in noisy: W.copy_(3*spectrum(W).at(rank))
        sets = []
        for first in 0, 100:
            todo = [batch_of(first + i, rows=32) for i in range(4)]
            sets.append(Answers(todo, [last_logits(model, b).argmax(-1) for b in todo]))
        for W in noisy: W.add_(noise*torch.randn_like(W))
        return model, *sets

    # %% ../nbs/12_icl_pruning.ipynb #f2e77da4
    model = new_model()
    cost = search_cost(model, 10, 64)
    assert (cost.svds, cost.clips, cost.weights) == (42, 84, 2*sum(p.numel() for p in model.parameters()))
    assert cost.factors == sum(t.numel()*4 for own in matrices(model).values() for m in own for t in m.spec[:3])

    with FlopCounterMode(display=False) as counter, torch.no_grad(): model(torch.zeros(1, 64, dtype=torch.long))
    one = search_cost(model, 1, 64)
    assert .9 < one.plain_flops/one.clips/counter.get_total_flops() < 1.1
    assert 1.5 < one.plain_flops/one.shared_flops < 2*1.35


def test_the_released_code():
    # %% ../nbs/12_icl_pruning.ipynb #5bf4d7b1
    def zoo():
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4)
        yield LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, head_dim=8, num_key_value_heads=2))
        yield GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64))
        yield OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64))
        yield GPTJForCausalLM(GPTJConfig(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64, rotary_dim=4))
        yield Phi3ForCausalLM(Phi3Config(**sizes, intermediate_size=48, num_key_value_heads=2, pad_token_id=0))
        yield GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48, max_position_embeddings=64))

    # %% ../nbs/12_icl_pruning.ipynb #1a282730
    def batch_of(seed=0, left=False, rows=4, length=12):
        g = torch.Generator().manual_seed(seed)
        ids, mask = torch.randint(1, 64, (rows, length), generator=g), torch.ones(rows, length, dtype=torch.long)
        mask[1, :4 if left else None] = 0 if left else 1
        mask[1, length if left else 8:] = 0
        targets = torch.full_like(ids, -100)
        last = mask*torch.arange(length)
        targets[torch.arange(rows), last.argmax(1)] = torch.randint(1, 64, (rows,), generator=g)
        return Batch(ids*mask, mask, targets, torch.arange(rows))

    # %% ../nbs/12_icl_pruning.ipynb #4f5580a5
    class Answers:
        "Prompts with one right token each, after the last of them."
        def __init__(self, todo, labels):
            self.batches = [(b, torch.arange(len(b.doc)) + i*len(b.doc), y)
                            for i, (b, y) in enumerate(zip(todo, labels, strict=True))]
            self.keys = [digest(row) for b in todo for row in b.ids]
            self.scored = 0

        def items(self, batch): return batch[1]

        @torch.no_grad()
        def score(self, model, batch):
            self.scored += 1
            logits = last_logits(model, batch[0])
            loss = nn.functional.cross_entropy(logits, batch[2], reduction="none").double()
            return torch.stack([loss, (logits.argmax(-1) == batch[2]).double()], 1)


    def last_logits(model, b):
        return model(**b.inputs, use_cache=False).logits[b.targets >= 0]

    # %% ../nbs/12_icl_pruning.ipynb #b2a318bc
    @torch.no_grad()
    def planted(blocks_of_noise=(1,), noise=.25, rank=3):
        torch.manual_seed(0)
        model = new_model(vocab_size=64, hidden_size=32, num_hidden_layers=4, intermediate_size=48, head_dim=8,
                          num_attention_heads=4, num_key_value_heads=4).eval()
        for p in model.parameters():
            if p.ndim == 2: p.normal_(0, .25)
        noisy = [m.weight for i in blocks_of_noise for m in model.model.layers[i].mlp.children() if is_linear(m)]
        for W in noisy: W.copy_(3*spectrum(W).at(rank))
        sets = []
        for first in 0, 100:
            todo = [batch_of(first + i, rows=32) for i in range(4)]
            sets.append(Answers(todo, [last_logits(model, b).argmax(-1) for b in todo]))
        for W in noisy: W.add_(noise*torch.randn_like(W))
        return model, *sets

    # %% ../nbs/12_icl_pruning.ipynb #d7f7b98f
    with torch.device("meta"):
        large = {"GPT-J-6B": GPTJForCausalLM(GPTJConfig()), "Llama-2-7B": LlamaForCausalLM(LlamaConfig())}
    print("            SVDs   clips   weights   factors   record   decomposing   sweep, plain   shared   and controls")
    for name, model in large.items():
        c, all_ways = search_cost(model, 2000, 300), search_cost(model, 2000, 300, rates=28)
        sizes = f"{c.weights/2**30:6.0f} GiB {c.factors/2**30:5.0f} GiB {c.record/2**30:4.1f} GiB"
        print(f"{name:11} {c.svds:4} {c.clips:7} {sizes} "
          f"{c.svd_flops/1e11/3600:7.1f} h {c.plain_flops/5e13/3600:12.1f} h {c.shared_flops/5e13/3600:6.1f} h "
          f"{all_ways.shared_flops/5e13/3600:10.1f} h")

    # %% ../nbs/12_icl_pruning.ipynb #88d352d6
    print("spectrum    rate   error / least   from the exact one   between two draws")
    for power, rate in itertools.product((0, .5, 1), (.9, .995)):
        g, n = torch.Generator().manual_seed(0), 400
        U, V = (torch.linalg.qr(torch.randn(n, n, generator=g))[0] for _ in range(2))
        W = (U*torch.arange(1., n + 1)**-power) @ V.T
        r, spec = rank_of_rate(rate, n), spectrum(W)
        def drawn(seed):
            torch.manual_seed(seed)
            U, s, V = torch.svd_lowrank(W, q=r, niter=2)  # noqa: B023
            return (U*s) @ V.T
        first, second, exact = drawn(0), drawn(1), spec.at(r)
        error, off, apart = (x.norm().item() for x in (W - first, first - exact, first - second))
        size = exact.norm().item()
        assert error >= spec.error(r)*(1 - 1e-5) and apart > 0
        print(f"i^-{power:<7} {rate:5}  {error/spec.error(r):14.3f} {off/size:20.2f} {apart/size:19.2f}")
