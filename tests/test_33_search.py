from pathlm.search import *
import itertools
import math
import warnings
from functools import partial
from importlib.util import find_spec
from pathlib import Path
import numpy as np
import torch
from torch import nn
from pathlm.adapters.core import adapted
from pathlm.adapters.lora import get_ranks
from pathlm.adapters.lora import rank_space
from pathlm.adapters.lora import set_ranks
from pathlm.base import CheckpointError
from pathlm.base import NonFiniteError
from pathlm.base import SettingError
from pathlm.base import TextError
from pathlm.evaluate import document_nll
from pathlm.evaluate import paired
from pathlm.evaluate import ratio
import tempfile
from unittest.mock import patch
import transformers as tf
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from pathlm.adapters.core import activate
from pathlm.adapters.core import attach
from pathlm.adapters.lora import LoRA
from pathlm.adapters.lora import random_rule
from pathlm.evaluate import pack
from pathlm.linear import merge


def test_the_space():
    # %% ../nbs/33_search.ipynb #493c9476
    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def toy(groups, seed, ranks=(32, 24, 16), bend=0.):
        "A space, and a function with random sensitivities that add up, or with some interaction if `bend` is not 0."
        rng = np.random.default_rng(seed)
        s = rng.random((groups, 1))*rng.uniform(.5, 1.5, (groups, len(ranks) - 1))
        rise = np.cumsum(np.column_stack([np.zeros(groups), s]), 1)
        J = bend*rng.normal(0, 1, (groups, groups))/groups
        space = {f"{g}": list(ranks) for g in range(groups)}
        def f(config):
            i = np.array([ranks.index(config[g]) for g in space])
            x = rise[np.arange(groups), i]
            return float(sum(config.values())), float(x.sum() + i @ J @ i)
        return space, f

    # %% ../nbs/33_search.ipynb #b22ad9a1
    def tiny(name="Llama", layers=3):
        "A random model of a few blocks with a random elastic adapter."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4)
        opt = {k: v for k, v in common.items() if k != "intermediate_size"} | dict(ffn_dim=48, word_embed_proj_dim=32)
        torch.manual_seed(0)
        model = {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                 "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=layers, n_head=4)),
                 "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**opt)),
                 "Qwen": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**common, num_key_value_heads=2, head_dim=8)),
                 }[name]().eval()
        attention, mlp = {"GPT-2": ("c_attn", "c_fc"), "OPT": ("q_proj,v_proj", "fc1"),
                          }.get(name, ("q_proj,v_proj", "up_proj"))
        elastic = {attention: [8, 6, 4], mlp: [8, 4, 2]}
        attach(model, LoRA(target_modules=[*attention.split(","), mlp], elastic=elastic, lora_alpha=16))
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=.2)
        return model

    def texts(seed, docs=4, length=24, vocab=96):
        "Batches of random documents of different lengths."
        g = torch.Generator().manual_seed(seed)
        def row(n): return torch.randint(1, vocab, (n,), generator=g).tolist()
        rows = [row(length - 3*d) for d in range(docs)]
        return pack([(r[:-1], r[1:], d) for d, r in enumerate(rows)], 2)

    # %% ../nbs/33_search.ipynb #1a20285d
    falling = [32, 28, 24, 20, 16]
    assert [middle({"g": falling[:n]})["g"] for n in range(1, 6)] == [32, 32, 28, 28, 24]
    assert [n for n in range(1, 6) if (n - 1)//2 != n//2] == [2, 4]
    space = {"a": [8, 6, 4], "b": ["fp16", "int8"]}
    assert anchors(space) == [{"a": 8, "b": "fp16"}, {"a": 6, "b": "fp16"}, {"a": 4, "b": "int8"}]
    for place in itertools.product(range(3), range(2)): assert places(space, at(space, place)) == place


def test_what_an_evaluation_costs_and_what_is_kept_of_it():
    # %% ../nbs/33_search.ipynb #493c9476
    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def toy(groups, seed, ranks=(32, 24, 16), bend=0.):
        "A space, and a function with random sensitivities that add up, or with some interaction if `bend` is not 0."
        rng = np.random.default_rng(seed)
        s = rng.random((groups, 1))*rng.uniform(.5, 1.5, (groups, len(ranks) - 1))
        rise = np.cumsum(np.column_stack([np.zeros(groups), s]), 1)
        J = bend*rng.normal(0, 1, (groups, groups))/groups
        space = {f"{g}": list(ranks) for g in range(groups)}
        def f(config):
            i = np.array([ranks.index(config[g]) for g in space])
            x = rise[np.arange(groups), i]
            return float(sum(config.values())), float(x.sum() + i @ J @ i)
        return space, f

    # %% ../nbs/33_search.ipynb #b22ad9a1
    def tiny(name="Llama", layers=3):
        "A random model of a few blocks with a random elastic adapter."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4)
        opt = {k: v for k, v in common.items() if k != "intermediate_size"} | dict(ffn_dim=48, word_embed_proj_dim=32)
        torch.manual_seed(0)
        model = {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                 "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=layers, n_head=4)),
                 "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**opt)),
                 "Qwen": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**common, num_key_value_heads=2, head_dim=8)),
                 }[name]().eval()
        attention, mlp = {"GPT-2": ("c_attn", "c_fc"), "OPT": ("q_proj,v_proj", "fc1"),
                          }.get(name, ("q_proj,v_proj", "up_proj"))
        elastic = {attention: [8, 6, 4], mlp: [8, 4, 2]}
        attach(model, LoRA(target_modules=[*attention.split(","), mlp], elastic=elastic, lora_alpha=16))
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=.2)
        return model

    def texts(seed, docs=4, length=24, vocab=96):
        "Batches of random documents of different lengths."
        g = torch.Generator().manual_seed(seed)
        def row(n): return torch.randint(1, vocab, (n,), generator=g).tolist()
        rows = [row(length - 3*d) for d in range(docs)]
        return pack([(r[:-1], r[1:], d) for d, r in enumerate(rows)], 2)

    # %% ../nbs/33_search.ipynb #5903cd2e
    space, f = toy(3, seed=0)
    asked = []
    found = Evaluations(lambda config: asked.append(config) or f(config), space, budget=4)
    top, mid, low = anchors(space)
    assert found(top)["score"] == f(top)[1] and found(top) is found(top) and asked == [top] and found.left == 3
    assert [r["config"] for r in found.many([low, top, mid, low])] == [low, top, mid, low] and len(asked) == 3
    assert len(found.many([at(space, p) for p in ((0, 0, 2), (0, 0, 1))])) == 1 and found.left == 0
    assert refusal(Spent, found, at(space, (0, 0, 1))) == "the budget of 4 evaluations is spent" and found(low)
    for budget in 0, -1, 1.5, True: print(refusal(SettingError, Evaluations, f, space, budget))
    refusal(NonFiniteError, Evaluations(lambda _: (1., math.nan), space), top)
    assert Evaluations(lambda _: (1., math.inf), space)(top)["score"] == math.inf


def test_the_front_and_its_area():
    # %% ../nbs/33_search.ipynb #493c9476
    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def toy(groups, seed, ranks=(32, 24, 16), bend=0.):
        "A space, and a function with random sensitivities that add up, or with some interaction if `bend` is not 0."
        rng = np.random.default_rng(seed)
        s = rng.random((groups, 1))*rng.uniform(.5, 1.5, (groups, len(ranks) - 1))
        rise = np.cumsum(np.column_stack([np.zeros(groups), s]), 1)
        J = bend*rng.normal(0, 1, (groups, groups))/groups
        space = {f"{g}": list(ranks) for g in range(groups)}
        def f(config):
            i = np.array([ranks.index(config[g]) for g in space])
            x = rise[np.arange(groups), i]
            return float(sum(config.values())), float(x.sum() + i @ J @ i)
        return space, f

    # %% ../nbs/33_search.ipynb #b22ad9a1
    def tiny(name="Llama", layers=3):
        "A random model of a few blocks with a random elastic adapter."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4)
        opt = {k: v for k, v in common.items() if k != "intermediate_size"} | dict(ffn_dim=48, word_embed_proj_dim=32)
        torch.manual_seed(0)
        model = {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                 "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=layers, n_head=4)),
                 "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**opt)),
                 "Qwen": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**common, num_key_value_heads=2, head_dim=8)),
                 }[name]().eval()
        attention, mlp = {"GPT-2": ("c_attn", "c_fc"), "OPT": ("q_proj,v_proj", "fc1"),
                          }.get(name, ("q_proj,v_proj", "up_proj"))
        elastic = {attention: [8, 6, 4], mlp: [8, 4, 2]}
        attach(model, LoRA(target_modules=[*attention.split(","), mlp], elastic=elastic, lora_alpha=16))
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=.2)
        return model

    def texts(seed, docs=4, length=24, vocab=96):
        "Batches of random documents of different lengths."
        g = torch.Generator().manual_seed(seed)
        def row(n): return torch.randint(1, vocab, (n,), generator=g).tolist()
        rows = [row(length - 3*d) for d in range(docs)]
        return pack([(r[:-1], r[1:], d) for d, r in enumerate(rows)], 2)

    # %% ../nbs/33_search.ipynb #1fda7cdf
    @settings(deadline=None, max_examples=25, derandomize=True)
    @given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12), st.integers(1, 9), st.integers(1, 9))
    def by_counting(points, C, S):
        rows = [{"cost": c, "score": s} for c, s in points]
        def dominated(c, s): return any(a <= c and b <= s and (a, b) != (c, s) for a, b in points)
        front = pareto(rows)
        assert [(r["cost"], r["score"]) for r in front] == sorted({p for p in points if not dominated(*p)})
        cells = itertools.product(range(C), range(S))
        assert hypervolume(rows, (C, S)) == sum(any(a <= c and b <= s for a, b in points) for c, s in cells)

    by_counting()


def test_which_one_to_take():
    # %% ../nbs/33_search.ipynb #493c9476
    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def toy(groups, seed, ranks=(32, 24, 16), bend=0.):
        "A space, and a function with random sensitivities that add up, or with some interaction if `bend` is not 0."
        rng = np.random.default_rng(seed)
        s = rng.random((groups, 1))*rng.uniform(.5, 1.5, (groups, len(ranks) - 1))
        rise = np.cumsum(np.column_stack([np.zeros(groups), s]), 1)
        J = bend*rng.normal(0, 1, (groups, groups))/groups
        space = {f"{g}": list(ranks) for g in range(groups)}
        def f(config):
            i = np.array([ranks.index(config[g]) for g in space])
            x = rise[np.arange(groups), i]
            return float(sum(config.values())), float(x.sum() + i @ J @ i)
        return space, f

    # %% ../nbs/33_search.ipynb #b22ad9a1
    def tiny(name="Llama", layers=3):
        "A random model of a few blocks with a random elastic adapter."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4)
        opt = {k: v for k, v in common.items() if k != "intermediate_size"} | dict(ffn_dim=48, word_embed_proj_dim=32)
        torch.manual_seed(0)
        model = {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                 "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=layers, n_head=4)),
                 "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**opt)),
                 "Qwen": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**common, num_key_value_heads=2, head_dim=8)),
                 }[name]().eval()
        attention, mlp = {"GPT-2": ("c_attn", "c_fc"), "OPT": ("q_proj,v_proj", "fc1"),
                          }.get(name, ("q_proj,v_proj", "up_proj"))
        elastic = {attention: [8, 6, 4], mlp: [8, 4, 2]}
        attach(model, LoRA(target_modules=[*attention.split(","), mlp], elastic=elastic, lora_alpha=16))
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=.2)
        return model

    def texts(seed, docs=4, length=24, vocab=96):
        "Batches of random documents of different lengths."
        g = torch.Generator().manual_seed(seed)
        def row(n): return torch.randint(1, vocab, (n,), generator=g).tolist()
        rows = [row(length - 3*d) for d in range(docs)]
        return pack([(r[:-1], r[1:], d) for d, r in enumerate(rows)], 2)

    # %% ../nbs/33_search.ipynb #7b1728d2
    rows = [{"cost": c, "score": s} for c, s in ((3, .1), (2, .2), (2, .3), (1, .4))]
    assert cheapest(rows, .3) == rows[1] and cheapest(rows, .4) == rows[3] and cheapest(rows, .1) == rows[0]
    for bad in .09, -math.inf, math.nan: print(refusal(SettingError, cheapest, rows, bad))
    print(refusal(SettingError, cheapest, [], 1))


def test_which_one_to_take_2():
    # %% ../nbs/33_search.ipynb #493c9476
    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def toy(groups, seed, ranks=(32, 24, 16), bend=0.):
        "A space, and a function with random sensitivities that add up, or with some interaction if `bend` is not 0."
        rng = np.random.default_rng(seed)
        s = rng.random((groups, 1))*rng.uniform(.5, 1.5, (groups, len(ranks) - 1))
        rise = np.cumsum(np.column_stack([np.zeros(groups), s]), 1)
        J = bend*rng.normal(0, 1, (groups, groups))/groups
        space = {f"{g}": list(ranks) for g in range(groups)}
        def f(config):
            i = np.array([ranks.index(config[g]) for g in space])
            x = rise[np.arange(groups), i]
            return float(sum(config.values())), float(x.sum() + i @ J @ i)
        return space, f

    # %% ../nbs/33_search.ipynb #b22ad9a1
    def tiny(name="Llama", layers=3):
        "A random model of a few blocks with a random elastic adapter."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4)
        opt = {k: v for k, v in common.items() if k != "intermediate_size"} | dict(ffn_dim=48, word_embed_proj_dim=32)
        torch.manual_seed(0)
        model = {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                 "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=layers, n_head=4)),
                 "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**opt)),
                 "Qwen": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**common, num_key_value_heads=2, head_dim=8)),
                 }[name]().eval()
        attention, mlp = {"GPT-2": ("c_attn", "c_fc"), "OPT": ("q_proj,v_proj", "fc1"),
                          }.get(name, ("q_proj,v_proj", "up_proj"))
        elastic = {attention: [8, 6, 4], mlp: [8, 4, 2]}
        attach(model, LoRA(target_modules=[*attention.split(","), mlp], elastic=elastic, lora_alpha=16))
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=.2)
        return model

    def texts(seed, docs=4, length=24, vocab=96):
        "Batches of random documents of different lengths."
        g = torch.Generator().manual_seed(seed)
        def row(n): return torch.randint(1, vocab, (n,), generator=g).tolist()
        rows = [row(length - 3*d) for d in range(docs)]
        return pack([(r[:-1], r[1:], d) for d, r in enumerate(rows)], 2)

    # %% ../nbs/33_search.ipynb #1f1cb08d
    def official(a, a0, delta=1.):
        "Whether the published test lets an accuracy pass, in percent; `a0` is that of the full model."
        reference = -a0                        # where -1 was asked for: what the evaluator gave for the full model
        return -a < (reference - delta)*-1.


    assert all(official(a, a0) for a in np.linspace(0, 100, 21) for a0 in np.linspace(0, 100, 21))
    assert refusal(SettingError, cheapest, [{"cost": 1, "score": -30.}], at_most=-(70. - 1.))


def test_climbing():
    # %% ../nbs/33_search.ipynb #493c9476
    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def toy(groups, seed, ranks=(32, 24, 16), bend=0.):
        "A space, and a function with random sensitivities that add up, or with some interaction if `bend` is not 0."
        rng = np.random.default_rng(seed)
        s = rng.random((groups, 1))*rng.uniform(.5, 1.5, (groups, len(ranks) - 1))
        rise = np.cumsum(np.column_stack([np.zeros(groups), s]), 1)
        J = bend*rng.normal(0, 1, (groups, groups))/groups
        space = {f"{g}": list(ranks) for g in range(groups)}
        def f(config):
            i = np.array([ranks.index(config[g]) for g in space])
            x = rise[np.arange(groups), i]
            return float(sum(config.values())), float(x.sum() + i @ J @ i)
        return space, f

    # %% ../nbs/33_search.ipynb #b22ad9a1
    def tiny(name="Llama", layers=3):
        "A random model of a few blocks with a random elastic adapter."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4)
        opt = {k: v for k, v in common.items() if k != "intermediate_size"} | dict(ffn_dim=48, word_embed_proj_dim=32)
        torch.manual_seed(0)
        model = {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                 "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=layers, n_head=4)),
                 "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**opt)),
                 "Qwen": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**common, num_key_value_heads=2, head_dim=8)),
                 }[name]().eval()
        attention, mlp = {"GPT-2": ("c_attn", "c_fc"), "OPT": ("q_proj,v_proj", "fc1"),
                          }.get(name, ("q_proj,v_proj", "up_proj"))
        elastic = {attention: [8, 6, 4], mlp: [8, 4, 2]}
        attach(model, LoRA(target_modules=[*attention.split(","), mlp], elastic=elastic, lora_alpha=16))
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=.2)
        return model

    def texts(seed, docs=4, length=24, vocab=96):
        "Batches of random documents of different lengths."
        g = torch.Generator().manual_seed(seed)
        def row(n): return torch.randint(1, vocab, (n,), generator=g).tolist()
        rows = [row(length - 3*d) for d in range(docs)]
        return pack([(r[:-1], r[1:], d) for d, r in enumerate(rows)], 2)

    # %% ../nbs/33_search.ipynb #122fdd4e
    def official_climb(f, space, turns=10):
        "The published rule."
        anchor, visited = middle(space), {places(space, middle(space))}
        for _ in range(turns):
            around = [c for c in neighbours(space, anchor) if places(space, c) not in visited]
            if not around: break
            visited |= {places(space, c) for c in around}
            anchor = min(around, key=lambda c: f(c)[1])
        return anchor

    # %% ../nbs/33_search.ipynb #aefb5da1
    line = {"a": list(range(40, 0, -1))}
    def valley(config): return float(config["a"]), abs(config["a"] - 18.)
    assert climb(Evaluations(valley, line))[-1]["config"] == {"a": 18}
    assert valley(official_climb(valley, line))[1] == 7 > valley(middle(line))[1] == 3


def test_climbing_2():
    # %% ../nbs/33_search.ipynb #493c9476
    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def toy(groups, seed, ranks=(32, 24, 16), bend=0.):
        "A space, and a function with random sensitivities that add up, or with some interaction if `bend` is not 0."
        rng = np.random.default_rng(seed)
        s = rng.random((groups, 1))*rng.uniform(.5, 1.5, (groups, len(ranks) - 1))
        rise = np.cumsum(np.column_stack([np.zeros(groups), s]), 1)
        J = bend*rng.normal(0, 1, (groups, groups))/groups
        space = {f"{g}": list(ranks) for g in range(groups)}
        def f(config):
            i = np.array([ranks.index(config[g]) for g in space])
            x = rise[np.arange(groups), i]
            return float(sum(config.values())), float(x.sum() + i @ J @ i)
        return space, f

    # %% ../nbs/33_search.ipynb #b22ad9a1
    def tiny(name="Llama", layers=3):
        "A random model of a few blocks with a random elastic adapter."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4)
        opt = {k: v for k, v in common.items() if k != "intermediate_size"} | dict(ffn_dim=48, word_embed_proj_dim=32)
        torch.manual_seed(0)
        model = {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                 "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=layers, n_head=4)),
                 "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**opt)),
                 "Qwen": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**common, num_key_value_heads=2, head_dim=8)),
                 }[name]().eval()
        attention, mlp = {"GPT-2": ("c_attn", "c_fc"), "OPT": ("q_proj,v_proj", "fc1"),
                          }.get(name, ("q_proj,v_proj", "up_proj"))
        elastic = {attention: [8, 6, 4], mlp: [8, 4, 2]}
        attach(model, LoRA(target_modules=[*attention.split(","), mlp], elastic=elastic, lora_alpha=16))
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=.2)
        return model

    def texts(seed, docs=4, length=24, vocab=96):
        "Batches of random documents of different lengths."
        g = torch.Generator().manual_seed(seed)
        def row(n): return torch.randint(1, vocab, (n,), generator=g).tolist()
        rows = [row(length - 3*d) for d in range(docs)]
        return pack([(r[:-1], r[1:], d) for d, r in enumerate(rows)], 2)

    # %% ../nbs/33_search.ipynb #122fdd4e
    def official_climb(f, space, turns=10):
        "The published rule."
        anchor, visited = middle(space), {places(space, middle(space))}
        for _ in range(turns):
            around = [c for c in neighbours(space, anchor) if places(space, c) not in visited]
            if not around: break
            visited |= {places(space, c) for c in around}
            anchor = min(around, key=lambda c: f(c)[1])
        return anchor

    # %% ../nbs/33_search.ipynb #ea8dbda6
    @settings(deadline=None, max_examples=25, derandomize=True)
    @given(st.integers(0, 999), st.integers(1, 6), st.integers(1, 40), st.sampled_from([0., .05, 1.]), st.booleans())
    def never_worse(seed, groups, budget, price, random_start):
        space, f = toy(groups, seed, bend=30.)
        start = random_rule(space, seed)[0] if random_start else None
        found = Evaluations(f, space, budget)
        way = climb(found, start, price)
        values = [r["score"] + price*r["cost"] for r in way]
        assert way[0]["config"] == (start or middle(space)) and len(found.rows) <= budget
        assert all(b < a for a, b in itertools.pairwise(values))
        around = [f(c) for c in neighbours(space, way[-1]["config"])]
        assert found.left == 0 or all(s + price*c >= values[-1] for c, s in around)

    never_worse()


def test_the_greedy_path():
    # %% ../nbs/33_search.ipynb #493c9476
    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def toy(groups, seed, ranks=(32, 24, 16), bend=0.):
        "A space, and a function with random sensitivities that add up, or with some interaction if `bend` is not 0."
        rng = np.random.default_rng(seed)
        s = rng.random((groups, 1))*rng.uniform(.5, 1.5, (groups, len(ranks) - 1))
        rise = np.cumsum(np.column_stack([np.zeros(groups), s]), 1)
        J = bend*rng.normal(0, 1, (groups, groups))/groups
        space = {f"{g}": list(ranks) for g in range(groups)}
        def f(config):
            i = np.array([ranks.index(config[g]) for g in space])
            x = rise[np.arange(groups), i]
            return float(sum(config.values())), float(x.sum() + i @ J @ i)
        return space, f

    # %% ../nbs/33_search.ipynb #b22ad9a1
    def tiny(name="Llama", layers=3):
        "A random model of a few blocks with a random elastic adapter."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4)
        opt = {k: v for k, v in common.items() if k != "intermediate_size"} | dict(ffn_dim=48, word_embed_proj_dim=32)
        torch.manual_seed(0)
        model = {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                 "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=layers, n_head=4)),
                 "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**opt)),
                 "Qwen": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**common, num_key_value_heads=2, head_dim=8)),
                 }[name]().eval()
        attention, mlp = {"GPT-2": ("c_attn", "c_fc"), "OPT": ("q_proj,v_proj", "fc1"),
                          }.get(name, ("q_proj,v_proj", "up_proj"))
        elastic = {attention: [8, 6, 4], mlp: [8, 4, 2]}
        attach(model, LoRA(target_modules=[*attention.split(","), mlp], elastic=elastic, lora_alpha=16))
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=.2)
        return model

    def texts(seed, docs=4, length=24, vocab=96):
        "Batches of random documents of different lengths."
        g = torch.Generator().manual_seed(seed)
        def row(n): return torch.randint(1, vocab, (n,), generator=g).tolist()
        rows = [row(length - 3*d) for d in range(docs)]
        return pack([(r[:-1], r[1:], d) for d, r in enumerate(rows)], 2)

    # %% ../nbs/33_search.ipynb #7688a4ca
    space, f = toy(4, seed=3)
    found = Evaluations(f, space, 100)
    path = greedy(found)
    everything = [dict(zip(("cost", "score"), f(at(space, p)))) for p in itertools.product(range(3), repeat=4)]
    ratios = [(b["score"] - a["score"])/(a["cost"] - b["cost"]) for a, b in itertools.pairwise(path)]
    for row, low, high in zip(path, [0, *ratios], [*ratios, 1e9], strict=True):
        price = (low + high)/2
        best = min(r["score"] + price*r["cost"] for r in everything)
        assert math.isclose(row["score"] + price*row["cost"], best, rel_tol=1e-9)
    assert ratios == sorted(ratios) and path[-1]["config"] == anchors(space)[2] and len(found.rows) <= 2*4 + 1 + 2*4 - 1


def test_the_greedy_path_2():
    # %% ../nbs/33_search.ipynb #493c9476
    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def toy(groups, seed, ranks=(32, 24, 16), bend=0.):
        "A space, and a function with random sensitivities that add up, or with some interaction if `bend` is not 0."
        rng = np.random.default_rng(seed)
        s = rng.random((groups, 1))*rng.uniform(.5, 1.5, (groups, len(ranks) - 1))
        rise = np.cumsum(np.column_stack([np.zeros(groups), s]), 1)
        J = bend*rng.normal(0, 1, (groups, groups))/groups
        space = {f"{g}": list(ranks) for g in range(groups)}
        def f(config):
            i = np.array([ranks.index(config[g]) for g in space])
            x = rise[np.arange(groups), i]
            return float(sum(config.values())), float(x.sum() + i @ J @ i)
        return space, f

    # %% ../nbs/33_search.ipynb #b22ad9a1
    def tiny(name="Llama", layers=3):
        "A random model of a few blocks with a random elastic adapter."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4)
        opt = {k: v for k, v in common.items() if k != "intermediate_size"} | dict(ffn_dim=48, word_embed_proj_dim=32)
        torch.manual_seed(0)
        model = {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                 "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=layers, n_head=4)),
                 "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**opt)),
                 "Qwen": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**common, num_key_value_heads=2, head_dim=8)),
                 }[name]().eval()
        attention, mlp = {"GPT-2": ("c_attn", "c_fc"), "OPT": ("q_proj,v_proj", "fc1"),
                          }.get(name, ("q_proj,v_proj", "up_proj"))
        elastic = {attention: [8, 6, 4], mlp: [8, 4, 2]}
        attach(model, LoRA(target_modules=[*attention.split(","), mlp], elastic=elastic, lora_alpha=16))
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=.2)
        return model

    def texts(seed, docs=4, length=24, vocab=96):
        "Batches of random documents of different lengths."
        g = torch.Generator().manual_seed(seed)
        def row(n): return torch.randint(1, vocab, (n,), generator=g).tolist()
        rows = [row(length - 3*d) for d in range(docs)]
        return pack([(r[:-1], r[1:], d) for d, r in enumerate(rows)], 2)

    # %% ../nbs/33_search.ipynb #a42b7801
    space = {"a": [8, 4, 2], "b": [8, 4]}
    def odd(config):
        lost = {8: 0., 4: 5., 2: 1.}[config["a"]] + {8: 0., 4: math.inf}[config["b"]]
        return float(config["a"] + config["b"]), lost
    assert [r["config"] for r in greedy(Evaluations(odd, space))] == [{"a": a, "b": b} for a, b in ((8, 8), (2, 8), (2, 4))]
    assert len(greedy(Evaluations(odd, space, 1))) == 1 and len(greedy(Evaluations(lambda _: (1., 0.), space))) == 1


def test_evolution():
    # %% ../nbs/33_search.ipynb #493c9476
    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def toy(groups, seed, ranks=(32, 24, 16), bend=0.):
        "A space, and a function with random sensitivities that add up, or with some interaction if `bend` is not 0."
        rng = np.random.default_rng(seed)
        s = rng.random((groups, 1))*rng.uniform(.5, 1.5, (groups, len(ranks) - 1))
        rise = np.cumsum(np.column_stack([np.zeros(groups), s]), 1)
        J = bend*rng.normal(0, 1, (groups, groups))/groups
        space = {f"{g}": list(ranks) for g in range(groups)}
        def f(config):
            i = np.array([ranks.index(config[g]) for g in space])
            x = rise[np.arange(groups), i]
            return float(sum(config.values())), float(x.sum() + i @ J @ i)
        return space, f

    # %% ../nbs/33_search.ipynb #b22ad9a1
    def tiny(name="Llama", layers=3):
        "A random model of a few blocks with a random elastic adapter."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4)
        opt = {k: v for k, v in common.items() if k != "intermediate_size"} | dict(ffn_dim=48, word_embed_proj_dim=32)
        torch.manual_seed(0)
        model = {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                 "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=layers, n_head=4)),
                 "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**opt)),
                 "Qwen": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**common, num_key_value_heads=2, head_dim=8)),
                 }[name]().eval()
        attention, mlp = {"GPT-2": ("c_attn", "c_fc"), "OPT": ("q_proj,v_proj", "fc1"),
                          }.get(name, ("q_proj,v_proj", "up_proj"))
        elastic = {attention: [8, 6, 4], mlp: [8, 4, 2]}
        attach(model, LoRA(target_modules=[*attention.split(","), mlp], elastic=elastic, lora_alpha=16))
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=.2)
        return model

    def texts(seed, docs=4, length=24, vocab=96):
        "Batches of random documents of different lengths."
        g = torch.Generator().manual_seed(seed)
        def row(n): return torch.randint(1, vocab, (n,), generator=g).tolist()
        rows = [row(length - 3*d) for d in range(docs)]
        return pack([(r[:-1], r[1:], d) for d, r in enumerate(rows)], 2)

    # %% ../nbs/33_search.ipynb #a070a3bf
    def volume(found, f):
        "The hypervolume of what was found."
        top, _, low = (f(c) for c in anchors(found.space))
        return hypervolume(found.rows, (top[0], low[1]))

    # %% ../nbs/33_search.ipynb #c57da6f1
    if find_spec("pymoo"):
        shares = []
        for seed in range(10):
            space, f = toy(5, seed, bend=.3)
            every = Evaluations(f, space, 3**5)
            every.many([at(space, p) for p in itertools.product(range(3), repeat=5)])
            found = Evaluations(f, space, 81)
            front = evolve(found, seed=seed)
            assert len(found.rows) <= 81 and front == pareto(found.rows)
            assert all(any(r["cost"] <= c and r["score"] <= s for r in front) for c, s in map(f, anchors(space)))
            shares.append(volume(found, f)/volume(every, f))
            again = Evaluations(f, space, 81)
            np.random.seed(seed)
            assert evolve(again, seed=seed) == front and again.rows == found.rows
        assert min(shares) >= .95
        print(f"share of the hypervolume in 81 of 243 evaluations, ten spaces: {min(shares):.3f} to {max(shares):.3f}")


def test_evolution_2():
    # %% ../nbs/33_search.ipynb #493c9476
    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def toy(groups, seed, ranks=(32, 24, 16), bend=0.):
        "A space, and a function with random sensitivities that add up, or with some interaction if `bend` is not 0."
        rng = np.random.default_rng(seed)
        s = rng.random((groups, 1))*rng.uniform(.5, 1.5, (groups, len(ranks) - 1))
        rise = np.cumsum(np.column_stack([np.zeros(groups), s]), 1)
        J = bend*rng.normal(0, 1, (groups, groups))/groups
        space = {f"{g}": list(ranks) for g in range(groups)}
        def f(config):
            i = np.array([ranks.index(config[g]) for g in space])
            x = rise[np.arange(groups), i]
            return float(sum(config.values())), float(x.sum() + i @ J @ i)
        return space, f

    # %% ../nbs/33_search.ipynb #b22ad9a1
    def tiny(name="Llama", layers=3):
        "A random model of a few blocks with a random elastic adapter."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4)
        opt = {k: v for k, v in common.items() if k != "intermediate_size"} | dict(ffn_dim=48, word_embed_proj_dim=32)
        torch.manual_seed(0)
        model = {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                 "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=layers, n_head=4)),
                 "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**opt)),
                 "Qwen": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**common, num_key_value_heads=2, head_dim=8)),
                 }[name]().eval()
        attention, mlp = {"GPT-2": ("c_attn", "c_fc"), "OPT": ("q_proj,v_proj", "fc1"),
                          }.get(name, ("q_proj,v_proj", "up_proj"))
        elastic = {attention: [8, 6, 4], mlp: [8, 4, 2]}
        attach(model, LoRA(target_modules=[*attention.split(","), mlp], elastic=elastic, lora_alpha=16))
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=.2)
        return model

    def texts(seed, docs=4, length=24, vocab=96):
        "Batches of random documents of different lengths."
        g = torch.Generator().manual_seed(seed)
        def row(n): return torch.randint(1, vocab, (n,), generator=g).tolist()
        rows = [row(length - 3*d) for d in range(docs)]
        return pack([(r[:-1], r[1:], d) for d, r in enumerate(rows)], 2)

    # %% ../nbs/33_search.ipynb #a070a3bf
    def volume(found, f):
        "The hypervolume of what was found."
        top, _, low = (f(c) for c in anchors(found.space))
        return hypervolume(found.rows, (top[0], low[1]))

    # %% ../nbs/33_search.ipynb #6c17b019
    if find_spec("pymoo"):
        space, f = toy(3, seed=1)
        found = Evaluations(f, space, 1000)
        assert nsga2(found, size=4) == pareto(found.rows) and len(found.rows) <= 27
        space = {"a": [8, 4, 2], "b": [8], "c": [4, 2]}
        found = Evaluations(lambda c: (c["a"] + c["c"], math.inf if c["a"] == 2 else -c["a"]), space, 6)
        assert {r["config"]["a"] for r in nsga2(found, size=2)} == {8, 4}
        few = Evaluations(lambda c: (c["a"], -c["a"]), {"a": [2, 1], "b": [1]})
        assert len(nsga2(few)) == 2 and len(nsga2(Evaluations(lambda _: (1., 1.), {"a": [1]}))) == 1


def test_evolution_3():
    # %% ../nbs/33_search.ipynb #493c9476
    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def toy(groups, seed, ranks=(32, 24, 16), bend=0.):
        "A space, and a function with random sensitivities that add up, or with some interaction if `bend` is not 0."
        rng = np.random.default_rng(seed)
        s = rng.random((groups, 1))*rng.uniform(.5, 1.5, (groups, len(ranks) - 1))
        rise = np.cumsum(np.column_stack([np.zeros(groups), s]), 1)
        J = bend*rng.normal(0, 1, (groups, groups))/groups
        space = {f"{g}": list(ranks) for g in range(groups)}
        def f(config):
            i = np.array([ranks.index(config[g]) for g in space])
            x = rise[np.arange(groups), i]
            return float(sum(config.values())), float(x.sum() + i @ J @ i)
        return space, f

    # %% ../nbs/33_search.ipynb #b22ad9a1
    def tiny(name="Llama", layers=3):
        "A random model of a few blocks with a random elastic adapter."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4)
        opt = {k: v for k, v in common.items() if k != "intermediate_size"} | dict(ffn_dim=48, word_embed_proj_dim=32)
        torch.manual_seed(0)
        model = {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                 "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=layers, n_head=4)),
                 "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**opt)),
                 "Qwen": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**common, num_key_value_heads=2, head_dim=8)),
                 }[name]().eval()
        attention, mlp = {"GPT-2": ("c_attn", "c_fc"), "OPT": ("q_proj,v_proj", "fc1"),
                          }.get(name, ("q_proj,v_proj", "up_proj"))
        elastic = {attention: [8, 6, 4], mlp: [8, 4, 2]}
        attach(model, LoRA(target_modules=[*attention.split(","), mlp], elastic=elastic, lora_alpha=16))
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=.2)
        return model

    def texts(seed, docs=4, length=24, vocab=96):
        "Batches of random documents of different lengths."
        g = torch.Generator().manual_seed(seed)
        def row(n): return torch.randint(1, vocab, (n,), generator=g).tolist()
        rows = [row(length - 3*d) for d in range(docs)]
        return pack([(r[:-1], r[1:], d) for d, r in enumerate(rows)], 2)

    # %% ../nbs/33_search.ipynb #a070a3bf
    def volume(found, f):
        "The hypervolume of what was found."
        top, _, low = (f(c) for c in anchors(found.space))
        return hypervolume(found.rows, (top[0], low[1]))

    # %% ../nbs/33_search.ipynb #48d7c77a
    space, f = toy(3, seed=1)
    found = Evaluations(f, space)
    for setting in {"size": 1}, {"size": 2.5}, {"seed": -1}: print(refusal(SettingError, evolve, found, **setting))
    with patch.dict("sys.modules", {"pymoo": None}): print(refusal(SettingError, evolve, found))
    assert not found.rows


def test_evolution_4():
    # %% ../nbs/33_search.ipynb #493c9476
    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def toy(groups, seed, ranks=(32, 24, 16), bend=0.):
        "A space, and a function with random sensitivities that add up, or with some interaction if `bend` is not 0."
        rng = np.random.default_rng(seed)
        s = rng.random((groups, 1))*rng.uniform(.5, 1.5, (groups, len(ranks) - 1))
        rise = np.cumsum(np.column_stack([np.zeros(groups), s]), 1)
        J = bend*rng.normal(0, 1, (groups, groups))/groups
        space = {f"{g}": list(ranks) for g in range(groups)}
        def f(config):
            i = np.array([ranks.index(config[g]) for g in space])
            x = rise[np.arange(groups), i]
            return float(sum(config.values())), float(x.sum() + i @ J @ i)
        return space, f

    # %% ../nbs/33_search.ipynb #b22ad9a1
    def tiny(name="Llama", layers=3):
        "A random model of a few blocks with a random elastic adapter."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4)
        opt = {k: v for k, v in common.items() if k != "intermediate_size"} | dict(ffn_dim=48, word_embed_proj_dim=32)
        torch.manual_seed(0)
        model = {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                 "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=layers, n_head=4)),
                 "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**opt)),
                 "Qwen": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**common, num_key_value_heads=2, head_dim=8)),
                 }[name]().eval()
        attention, mlp = {"GPT-2": ("c_attn", "c_fc"), "OPT": ("q_proj,v_proj", "fc1"),
                          }.get(name, ("q_proj,v_proj", "up_proj"))
        elastic = {attention: [8, 6, 4], mlp: [8, 4, 2]}
        attach(model, LoRA(target_modules=[*attention.split(","), mlp], elastic=elastic, lora_alpha=16))
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=.2)
        return model

    def texts(seed, docs=4, length=24, vocab=96):
        "Batches of random documents of different lengths."
        g = torch.Generator().manual_seed(seed)
        def row(n): return torch.randint(1, vocab, (n,), generator=g).tolist()
        rows = [row(length - 3*d) for d in range(docs)]
        return pack([(r[:-1], r[1:], d) for d, r in enumerate(rows)], 2)

    # %% ../nbs/33_search.ipynb #a070a3bf
    def volume(found, f):
        "The hypervolume of what was found."
        top, _, low = (f(c) for c in anchors(found.space))
        return hypervolume(found.rows, (top[0], low[1]))

    # %% ../nbs/33_search.ipynb #66b71827
    def true_volume(space, f):
        "The hypervolume of the whole space, for a function whose scores add up."
        top, _, low = anchors(space)
        best = {f(top)[0]: f(top)[1]}
        for g, choices in space.items():
            moves = [(f(top | {g: c})[0] - f(top)[0], f(top | {g: c})[1] - f(top)[1]) for c in choices]
            new = {}
            for cost, score in best.items():
                for dc, ds in moves: new[cost + dc] = min(new.get(cost + dc, math.inf), score + ds)
            best = new
        return hypervolume([{"cost": c, "score": s} for c, s in best.items()], (f(top)[0], f(low)[1]))

    def compared_searches(seeds=10, groups=32, budget=200):
        "Hypervolumes as shares of the true one, by search, a row for each seed."
        ways = {"NSGA-II, random, 40": lambda found, seed: nsga2(found, [at(found.space, p) for p in np.random.default_rng(
                    seed).integers(0, 3, (40, groups))], 40, seed),
                "NSGA-II, anchors, 40": lambda found, seed: nsga2(found, None, 40, seed),
                "NSGA-II, anchors, 10": lambda found, seed: nsga2(found, seed=seed),
                "greedy path": lambda found, seed: greedy(found),
                "evolve": lambda found, seed: evolve(found, seed=seed)}
        shares, tried = {}, {}
        for name, seed in itertools.product(ways, range(seeds)):
            space, f = toy(groups, seed)
            ways[name](found := Evaluations(f, space, budget), seed)
            shares.setdefault(name, []).append(volume(found, f)/true_volume(space, f))
            tried.setdefault(name, []).append(len(found.rows))
        return {name: np.array(v) for name, v in shares.items()}, tried

    # %% ../nbs/33_search.ipynb #76302ccc
    if find_spec("pymoo"):
        shares, tried = compared_searches()
        for name, v in shares.items():
            print(f"{name:21} {v.mean():.3f} of the true hypervolume, {max(tried[name])} evaluations")
        assert max(map(max, tried.values())) <= 200 and max(tried["greedy path"]) <= 129
        assert shares["evolve"].sum() >= 1.15*shares["NSGA-II, anchors, 40"].sum()
        assert shares["evolve"].sum() >= 1.15*shares["NSGA-II, anchors, 10"].sum()
        assert shares["evolve"].min() >= .99 and (shares["evolve"] >= shares["greedy path"]).all()


def test_evolution_5():
    # %% ../nbs/33_search.ipynb #493c9476
    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def toy(groups, seed, ranks=(32, 24, 16), bend=0.):
        "A space, and a function with random sensitivities that add up, or with some interaction if `bend` is not 0."
        rng = np.random.default_rng(seed)
        s = rng.random((groups, 1))*rng.uniform(.5, 1.5, (groups, len(ranks) - 1))
        rise = np.cumsum(np.column_stack([np.zeros(groups), s]), 1)
        J = bend*rng.normal(0, 1, (groups, groups))/groups
        space = {f"{g}": list(ranks) for g in range(groups)}
        def f(config):
            i = np.array([ranks.index(config[g]) for g in space])
            x = rise[np.arange(groups), i]
            return float(sum(config.values())), float(x.sum() + i @ J @ i)
        return space, f

    # %% ../nbs/33_search.ipynb #b22ad9a1
    def tiny(name="Llama", layers=3):
        "A random model of a few blocks with a random elastic adapter."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4)
        opt = {k: v for k, v in common.items() if k != "intermediate_size"} | dict(ffn_dim=48, word_embed_proj_dim=32)
        torch.manual_seed(0)
        model = {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                 "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=layers, n_head=4)),
                 "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**opt)),
                 "Qwen": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**common, num_key_value_heads=2, head_dim=8)),
                 }[name]().eval()
        attention, mlp = {"GPT-2": ("c_attn", "c_fc"), "OPT": ("q_proj,v_proj", "fc1"),
                          }.get(name, ("q_proj,v_proj", "up_proj"))
        elastic = {attention: [8, 6, 4], mlp: [8, 4, 2]}
        attach(model, LoRA(target_modules=[*attention.split(","), mlp], elastic=elastic, lora_alpha=16))
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=.2)
        return model

    def texts(seed, docs=4, length=24, vocab=96):
        "Batches of random documents of different lengths."
        g = torch.Generator().manual_seed(seed)
        def row(n): return torch.randint(1, vocab, (n,), generator=g).tolist()
        rows = [row(length - 3*d) for d in range(docs)]
        return pack([(r[:-1], r[1:], d) for d, r in enumerate(rows)], 2)

    # %% ../nbs/33_search.ipynb #a070a3bf
    def volume(found, f):
        "The hypervolume of what was found."
        top, _, low = (f(c) for c in anchors(found.space))
        return hypervolume(found.rows, (top[0], low[1]))

    # %% ../nbs/33_search.ipynb #66b71827
    def true_volume(space, f):
        "The hypervolume of the whole space, for a function whose scores add up."
        top, _, low = anchors(space)
        best = {f(top)[0]: f(top)[1]}
        for g, choices in space.items():
            moves = [(f(top | {g: c})[0] - f(top)[0], f(top | {g: c})[1] - f(top)[1]) for c in choices]
            new = {}
            for cost, score in best.items():
                for dc, ds in moves: new[cost + dc] = min(new.get(cost + dc, math.inf), score + ds)
            best = new
        return hypervolume([{"cost": c, "score": s} for c, s in best.items()], (f(top)[0], f(low)[1]))

    def compared_searches(seeds=10, groups=32, budget=200):
        "Hypervolumes as shares of the true one, by search, a row for each seed."
        ways = {"NSGA-II, random, 40": lambda found, seed: nsga2(found, [at(found.space, p) for p in np.random.default_rng(
                    seed).integers(0, 3, (40, groups))], 40, seed),
                "NSGA-II, anchors, 40": lambda found, seed: nsga2(found, None, 40, seed),
                "NSGA-II, anchors, 10": lambda found, seed: nsga2(found, seed=seed),
                "greedy path": lambda found, seed: greedy(found),
                "evolve": lambda found, seed: evolve(found, seed=seed)}
        shares, tried = {}, {}
        for name, seed in itertools.product(ways, range(seeds)):
            space, f = toy(groups, seed)
            ways[name](found := Evaluations(f, space, budget), seed)
            shares.setdefault(name, []).append(volume(found, f)/true_volume(space, f))
            tried.setdefault(name, []).append(len(found.rows))
        return {name: np.array(v) for name, v in shares.items()}, tried

    # %% ../nbs/33_search.ipynb #d268c910
    def killed_after(f, n):
        "A function that is killed at its call `n`."
        count = itertools.count()
        def mortal(config):
            if next(count) == n: raise KeyboardInterrupt
            return f(config)
        return mortal

    def survives(search, space, f, stops=(3, 11)):
        "Check that a search comes to the same rows after it was killed, some evaluations after each start."
        whole = Evaluations(f, space, 30)
        end, calls = search(whole), []
        with tempfile.TemporaryDirectory() as d:
            path = Path(d)/"rows.jsonl"
            for n in stops:
                refusal(KeyboardInterrupt, lambda: search(Evaluations(killed_after(f, n), space, 30, path)))  # noqa: B023
            text = path.read_text()
            path.write_text(text[:-20])
            found = Evaluations(lambda config: calls.append(config) or f(config), space, 30, path)
            assert search(found) == end and found.rows == whole.rows
            assert len(calls) == len(whole.rows) - sum(stops) + 1
            for other in space | {"0": [32, 16]}, dict(reversed(space.items())):
                message = refusal(CheckpointError, Evaluations, f, other, 30, path)
                assert "another space" in message and len(message) < 300 and path.read_text().startswith(text[:-20])
            path.write_text("no rows")
            refusal(CheckpointError, Evaluations, f, space, 30, path)

    # %% ../nbs/33_search.ipynb #de77e9d0
    for search in greedy, climb: survives(search, *toy(6, seed=2))
    if find_spec("pymoo"):
        for search in evolve, nsga2: survives(search, *toy(6, seed=2))


def test_costs():
    # %% ../nbs/33_search.ipynb #493c9476
    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def toy(groups, seed, ranks=(32, 24, 16), bend=0.):
        "A space, and a function with random sensitivities that add up, or with some interaction if `bend` is not 0."
        rng = np.random.default_rng(seed)
        s = rng.random((groups, 1))*rng.uniform(.5, 1.5, (groups, len(ranks) - 1))
        rise = np.cumsum(np.column_stack([np.zeros(groups), s]), 1)
        J = bend*rng.normal(0, 1, (groups, groups))/groups
        space = {f"{g}": list(ranks) for g in range(groups)}
        def f(config):
            i = np.array([ranks.index(config[g]) for g in space])
            x = rise[np.arange(groups), i]
            return float(sum(config.values())), float(x.sum() + i @ J @ i)
        return space, f

    # %% ../nbs/33_search.ipynb #b22ad9a1
    def tiny(name="Llama", layers=3):
        "A random model of a few blocks with a random elastic adapter."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4)
        opt = {k: v for k, v in common.items() if k != "intermediate_size"} | dict(ffn_dim=48, word_embed_proj_dim=32)
        torch.manual_seed(0)
        model = {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                 "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=layers, n_head=4)),
                 "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**opt)),
                 "Qwen": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**common, num_key_value_heads=2, head_dim=8)),
                 }[name]().eval()
        attention, mlp = {"GPT-2": ("c_attn", "c_fc"), "OPT": ("q_proj,v_proj", "fc1"),
                          }.get(name, ("q_proj,v_proj", "up_proj"))
        elastic = {attention: [8, 6, 4], mlp: [8, 4, 2]}
        attach(model, LoRA(target_modules=[*attention.split(","), mlp], elastic=elastic, lora_alpha=16))
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=.2)
        return model

    def texts(seed, docs=4, length=24, vocab=96):
        "Batches of random documents of different lengths."
        g = torch.Generator().manual_seed(seed)
        def row(n): return torch.randint(1, vocab, (n,), generator=g).tolist()
        rows = [row(length - 3*d) for d in range(docs)]
        return pack([(r[:-1], r[1:], d) for d, r in enumerate(rows)], 2)

    # %% ../nbs/33_search.ipynb #a487f0c4
    batch = texts(0, docs=2)[0]
    for model in tiny(), tiny("GPT-2"):
        for ranks in anchors(rank_space(model)):
            set_ranks(model, ranks)
            n = sum(p.A[:p.rank].numel() + p.B[:, :p.rank].numel() for p in model.pathlm_adapters["default"].parts)
            assert adapter_parameters(model) == n and adapter_bytes(model) == 4*n
            with FlopCounterMode(display=False) as counter: model(**batch.inputs)
            measured = counter.get_flop_counts()["Global"]
            linear = sum(v for k, v in measured.items() if "attention" not in str(k) and "bmm" not in str(k))
            assert linear == batch.ids.numel()*flops(model)
        assert .01 < latency(model, batch, repeat=1) < 100 and get_ranks(model) == ranks


def test_scoring_a_super_adapter():
    # %% ../nbs/33_search.ipynb #493c9476
    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def toy(groups, seed, ranks=(32, 24, 16), bend=0.):
        "A space, and a function with random sensitivities that add up, or with some interaction if `bend` is not 0."
        rng = np.random.default_rng(seed)
        s = rng.random((groups, 1))*rng.uniform(.5, 1.5, (groups, len(ranks) - 1))
        rise = np.cumsum(np.column_stack([np.zeros(groups), s]), 1)
        J = bend*rng.normal(0, 1, (groups, groups))/groups
        space = {f"{g}": list(ranks) for g in range(groups)}
        def f(config):
            i = np.array([ranks.index(config[g]) for g in space])
            x = rise[np.arange(groups), i]
            return float(sum(config.values())), float(x.sum() + i @ J @ i)
        return space, f

    # %% ../nbs/33_search.ipynb #b22ad9a1
    def tiny(name="Llama", layers=3):
        "A random model of a few blocks with a random elastic adapter."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4)
        opt = {k: v for k, v in common.items() if k != "intermediate_size"} | dict(ffn_dim=48, word_embed_proj_dim=32)
        torch.manual_seed(0)
        model = {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                 "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=layers, n_head=4)),
                 "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**opt)),
                 "Qwen": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**common, num_key_value_heads=2, head_dim=8)),
                 }[name]().eval()
        attention, mlp = {"GPT-2": ("c_attn", "c_fc"), "OPT": ("q_proj,v_proj", "fc1"),
                          }.get(name, ("q_proj,v_proj", "up_proj"))
        elastic = {attention: [8, 6, 4], mlp: [8, 4, 2]}
        attach(model, LoRA(target_modules=[*attention.split(","), mlp], elastic=elastic, lora_alpha=16))
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=.2)
        return model

    def texts(seed, docs=4, length=24, vocab=96):
        "Batches of random documents of different lengths."
        g = torch.Generator().manual_seed(seed)
        def row(n): return torch.randint(1, vocab, (n,), generator=g).tolist()
        rows = [row(length - 3*d) for d in range(docs)]
        return pack([(r[:-1], r[1:], d) for d, r in enumerate(rows)], 2)

    # %% ../nbs/33_search.ipynb #c750f763
    assert recipe(lambda m: 1.) != recipe(lambda m: 2.) and recipe(lambda m: 1.) == recipe(lambda m: 1.)
    assert recipe(partial(round, ndigits=1)) != recipe(partial(round, ndigits=2)) and recipe(nn.ReLU())[0] == "ReLU"


def test_scoring_a_super_adapter_2():
    # %% ../nbs/33_search.ipynb #493c9476
    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def toy(groups, seed, ranks=(32, 24, 16), bend=0.):
        "A space, and a function with random sensitivities that add up, or with some interaction if `bend` is not 0."
        rng = np.random.default_rng(seed)
        s = rng.random((groups, 1))*rng.uniform(.5, 1.5, (groups, len(ranks) - 1))
        rise = np.cumsum(np.column_stack([np.zeros(groups), s]), 1)
        J = bend*rng.normal(0, 1, (groups, groups))/groups
        space = {f"{g}": list(ranks) for g in range(groups)}
        def f(config):
            i = np.array([ranks.index(config[g]) for g in space])
            x = rise[np.arange(groups), i]
            return float(sum(config.values())), float(x.sum() + i @ J @ i)
        return space, f

    # %% ../nbs/33_search.ipynb #b22ad9a1
    def tiny(name="Llama", layers=3):
        "A random model of a few blocks with a random elastic adapter."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4)
        opt = {k: v for k, v in common.items() if k != "intermediate_size"} | dict(ffn_dim=48, word_embed_proj_dim=32)
        torch.manual_seed(0)
        model = {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                 "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=layers, n_head=4)),
                 "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**opt)),
                 "Qwen": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**common, num_key_value_heads=2, head_dim=8)),
                 }[name]().eval()
        attention, mlp = {"GPT-2": ("c_attn", "c_fc"), "OPT": ("q_proj,v_proj", "fc1"),
                          }.get(name, ("q_proj,v_proj", "up_proj"))
        elastic = {attention: [8, 6, 4], mlp: [8, 4, 2]}
        attach(model, LoRA(target_modules=[*attention.split(","), mlp], elastic=elastic, lora_alpha=16))
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=.2)
        return model

    def texts(seed, docs=4, length=24, vocab=96):
        "Batches of random documents of different lengths."
        g = torch.Generator().manual_seed(seed)
        def row(n): return torch.randint(1, vocab, (n,), generator=g).tolist()
        rows = [row(length - 3*d) for d in range(docs)]
        return pack([(r[:-1], r[1:], d) for d, r in enumerate(rows)], 2)

    # %% ../nbs/33_search.ipynb #4c924845
    model = tiny()
    assert [block_of(model, g) for g in by_block(model, rank_space(model))] == [0, 0, 1, 1, 2, 2]
    assert block_of(model, "model.layers.12:q") == 12 and block_of(model, "lm_head") is block_of(model, "q") is None
    assert list(by_block(model, {"model.layers.1:q": [1], "lm_head": [1], "model.layers.0:q": [1]}))[0] == "lm_head"
    f = Losses(model, texts(0))
    (top, mid, low), n = anchors(f.space), document_nll(model, texts(0))[1]
    for config in mid, top:
        cost, score, x = f(config)
        assert get_ranks(model) == config and cost == adapter_parameters(model)
        assert np.array_equal(x, document_nll(model, texts(0))[0]) and score == ratio(np.array(x), n)[0]
    print(refusal(TextError, Losses, model, []))
    activate(model)
    print(refusal(SettingError, Losses, model, texts(0)))


def test_sharing_the_forward_pass():
    # %% ../nbs/33_search.ipynb #493c9476
    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def toy(groups, seed, ranks=(32, 24, 16), bend=0.):
        "A space, and a function with random sensitivities that add up, or with some interaction if `bend` is not 0."
        rng = np.random.default_rng(seed)
        s = rng.random((groups, 1))*rng.uniform(.5, 1.5, (groups, len(ranks) - 1))
        rise = np.cumsum(np.column_stack([np.zeros(groups), s]), 1)
        J = bend*rng.normal(0, 1, (groups, groups))/groups
        space = {f"{g}": list(ranks) for g in range(groups)}
        def f(config):
            i = np.array([ranks.index(config[g]) for g in space])
            x = rise[np.arange(groups), i]
            return float(sum(config.values())), float(x.sum() + i @ J @ i)
        return space, f

    # %% ../nbs/33_search.ipynb #b22ad9a1
    def tiny(name="Llama", layers=3):
        "A random model of a few blocks with a random elastic adapter."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4)
        opt = {k: v for k, v in common.items() if k != "intermediate_size"} | dict(ffn_dim=48, word_embed_proj_dim=32)
        torch.manual_seed(0)
        model = {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                 "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=layers, n_head=4)),
                 "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**opt)),
                 "Qwen": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**common, num_key_value_heads=2, head_dim=8)),
                 }[name]().eval()
        attention, mlp = {"GPT-2": ("c_attn", "c_fc"), "OPT": ("q_proj,v_proj", "fc1"),
                          }.get(name, ("q_proj,v_proj", "up_proj"))
        elastic = {attention: [8, 6, 4], mlp: [8, 4, 2]}
        attach(model, LoRA(target_modules=[*attention.split(","), mlp], elastic=elastic, lora_alpha=16))
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=.2)
        return model

    def texts(seed, docs=4, length=24, vocab=96):
        "Batches of random documents of different lengths."
        g = torch.Generator().manual_seed(seed)
        def row(n): return torch.randint(1, vocab, (n,), generator=g).tolist()
        rows = [row(length - 3*d) for d in range(docs)]
        return pack([(r[:-1], r[1:], d) for d, r in enumerate(rows)], 2)

    # %% ../nbs/33_search.ipynb #06594b7c
    def same(model):
        "Check shared against plain scores on a walk through the space, and what runs for a change in the last block."
        todo, ran = texts(1), []
        plain, shared = Losses(model, todo), SharedLosses(model, todo)
        mid, group = middle(plain.space), list(plain.space)[-1]
        for config in [*singles(plain.space), *(random_rule(plain.space, step)[0] for step in range(6)), mid]:
            assert shared(config) == plain(config)
        hooks = [layer.register_forward_hook(lambda *_, n=n: ran.append(block_of(model, n)))
                 for n, layer in adapted(model).items()]
        shared(mid | {group: plain.space[group][-1]})
        assert shared.shares and set(ran) == {len(shared.stack) - 1}
        for hook in hooks: hook.remove()
        with torch.no_grad(): model.pathlm_adapters["default"].parts[0].B.mul_(1.5)
        assert shared(mid) == plain(mid) and not any("forward" in vars(b) for b in shared.stack)


    for family in "Llama", "GPT-2", "OPT", "Qwen": same(tiny(family))
    same(tiny().bfloat16())


def test_sharing_the_forward_pass_2():
    # %% ../nbs/33_search.ipynb #493c9476
    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def toy(groups, seed, ranks=(32, 24, 16), bend=0.):
        "A space, and a function with random sensitivities that add up, or with some interaction if `bend` is not 0."
        rng = np.random.default_rng(seed)
        s = rng.random((groups, 1))*rng.uniform(.5, 1.5, (groups, len(ranks) - 1))
        rise = np.cumsum(np.column_stack([np.zeros(groups), s]), 1)
        J = bend*rng.normal(0, 1, (groups, groups))/groups
        space = {f"{g}": list(ranks) for g in range(groups)}
        def f(config):
            i = np.array([ranks.index(config[g]) for g in space])
            x = rise[np.arange(groups), i]
            return float(sum(config.values())), float(x.sum() + i @ J @ i)
        return space, f

    # %% ../nbs/33_search.ipynb #b22ad9a1
    def tiny(name="Llama", layers=3):
        "A random model of a few blocks with a random elastic adapter."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4)
        opt = {k: v for k, v in common.items() if k != "intermediate_size"} | dict(ffn_dim=48, word_embed_proj_dim=32)
        torch.manual_seed(0)
        model = {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                 "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=layers, n_head=4)),
                 "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**opt)),
                 "Qwen": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**common, num_key_value_heads=2, head_dim=8)),
                 }[name]().eval()
        attention, mlp = {"GPT-2": ("c_attn", "c_fc"), "OPT": ("q_proj,v_proj", "fc1"),
                          }.get(name, ("q_proj,v_proj", "up_proj"))
        elastic = {attention: [8, 6, 4], mlp: [8, 4, 2]}
        attach(model, LoRA(target_modules=[*attention.split(","), mlp], elastic=elastic, lora_alpha=16))
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=.2)
        return model

    def texts(seed, docs=4, length=24, vocab=96):
        "Batches of random documents of different lengths."
        g = torch.Generator().manual_seed(seed)
        def row(n): return torch.randint(1, vocab, (n,), generator=g).tolist()
        rows = [row(length - 3*d) for d in range(docs)]
        return pack([(r[:-1], r[1:], d) for d, r in enumerate(rows)], 2)

    # %% ../nbs/33_search.ipynb #948774b4
    model = tiny()
    shared, plain = SharedLosses(model, texts(1)), Losses(model, texts(1))
    top, mid, low = anchors(plain.space)
    shared(top)
    def kill(*_): raise KeyboardInterrupt
    hook = model.model.layers[1].register_forward_pre_hook(kill)
    refusal(KeyboardInterrupt, shared, low)
    hook.remove()
    assert shared(top) == plain(top) and shared(low) == plain(low)
    model.model.layers = nn.ModuleList([*model.model.layers[:2], model.model.layers[0]])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        shared = SharedLosses(model, texts(1))
    assert not shared.shares and "nothing is shared" in str(caught[0].message)
    assert shared(mid) == Losses(model, texts(1))(mid)
    merge(model)
    assert "merged" in refusal(SettingError, shared, mid)


def test_two_texts():
    # %% ../nbs/33_search.ipynb #493c9476
    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def toy(groups, seed, ranks=(32, 24, 16), bend=0.):
        "A space, and a function with random sensitivities that add up, or with some interaction if `bend` is not 0."
        rng = np.random.default_rng(seed)
        s = rng.random((groups, 1))*rng.uniform(.5, 1.5, (groups, len(ranks) - 1))
        rise = np.cumsum(np.column_stack([np.zeros(groups), s]), 1)
        J = bend*rng.normal(0, 1, (groups, groups))/groups
        space = {f"{g}": list(ranks) for g in range(groups)}
        def f(config):
            i = np.array([ranks.index(config[g]) for g in space])
            x = rise[np.arange(groups), i]
            return float(sum(config.values())), float(x.sum() + i @ J @ i)
        return space, f

    # %% ../nbs/33_search.ipynb #b22ad9a1
    def tiny(name="Llama", layers=3):
        "A random model of a few blocks with a random elastic adapter."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4)
        opt = {k: v for k, v in common.items() if k != "intermediate_size"} | dict(ffn_dim=48, word_embed_proj_dim=32)
        torch.manual_seed(0)
        model = {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                 "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=layers, n_head=4)),
                 "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**opt)),
                 "Qwen": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**common, num_key_value_heads=2, head_dim=8)),
                 }[name]().eval()
        attention, mlp = {"GPT-2": ("c_attn", "c_fc"), "OPT": ("q_proj,v_proj", "fc1"),
                          }.get(name, ("q_proj,v_proj", "up_proj"))
        elastic = {attention: [8, 6, 4], mlp: [8, 4, 2]}
        attach(model, LoRA(target_modules=[*attention.split(","), mlp], elastic=elastic, lora_alpha=16))
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=.2)
        return model

    def texts(seed, docs=4, length=24, vocab=96):
        "Batches of random documents of different lengths."
        g = torch.Generator().manual_seed(seed)
        def row(n): return torch.randint(1, vocab, (n,), generator=g).tolist()
        rows = [row(length - 3*d) for d in range(docs)]
        return pack([(r[:-1], r[1:], d) for d, r in enumerate(rows)], 2)

    # %% ../nbs/33_search.ipynb #f265213a
    words = [f"word{i % 613} and word{i*i % 977}" for i in range(900)]
    def text_of(a, b): return " ".join(words[a:b])
    check_disjoint([text_of(0, 200), text_of(200, 400)], [text_of(400, 600), text_of(600, 900)])
    check_disjoint([text_of(0, 200)], [text_of(150, 400)])
    for a, b in ([(0, 200)], [(0, 200)]), ([(0, 200), (300, 500)], [(310, 490)]), ([(320, 480)], [(0, 50), (300, 500)]):
        a, b = [text_of(*span) for span in a], [text_of(*span).replace(" ", "\n  ") for span in b]
        message = refusal(TextError, check_disjoint, a, b)
        assert refusal(TextError, check_disjoint, b, a) and "text is in the" in message
    print(message)
    check_disjoint(texts(0), texts(1))
    refusal(TextError, check_disjoint, texts(0), texts(0)[::-1])
    print(refusal(TextError, check_disjoint, texts(0), []))
    print(refusal(SettingError, check_disjoint, texts(0), ["a text"]))


def test_choosing():
    # %% ../nbs/33_search.ipynb #493c9476
    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def toy(groups, seed, ranks=(32, 24, 16), bend=0.):
        "A space, and a function with random sensitivities that add up, or with some interaction if `bend` is not 0."
        rng = np.random.default_rng(seed)
        s = rng.random((groups, 1))*rng.uniform(.5, 1.5, (groups, len(ranks) - 1))
        rise = np.cumsum(np.column_stack([np.zeros(groups), s]), 1)
        J = bend*rng.normal(0, 1, (groups, groups))/groups
        space = {f"{g}": list(ranks) for g in range(groups)}
        def f(config):
            i = np.array([ranks.index(config[g]) for g in space])
            x = rise[np.arange(groups), i]
            return float(sum(config.values())), float(x.sum() + i @ J @ i)
        return space, f

    # %% ../nbs/33_search.ipynb #b22ad9a1
    def tiny(name="Llama", layers=3):
        "A random model of a few blocks with a random elastic adapter."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4)
        opt = {k: v for k, v in common.items() if k != "intermediate_size"} | dict(ffn_dim=48, word_embed_proj_dim=32)
        torch.manual_seed(0)
        model = {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                 "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=layers, n_head=4)),
                 "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**opt)),
                 "Qwen": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**common, num_key_value_heads=2, head_dim=8)),
                 }[name]().eval()
        attention, mlp = {"GPT-2": ("c_attn", "c_fc"), "OPT": ("q_proj,v_proj", "fc1"),
                          }.get(name, ("q_proj,v_proj", "up_proj"))
        elastic = {attention: [8, 6, 4], mlp: [8, 4, 2]}
        attach(model, LoRA(target_modules=[*attention.split(","), mlp], elastic=elastic, lora_alpha=16))
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=.2)
        return model

    def texts(seed, docs=4, length=24, vocab=96):
        "Batches of random documents of different lengths."
        g = torch.Generator().manual_seed(seed)
        def row(n): return torch.randint(1, vocab, (n,), generator=g).tolist()
        rows = [row(length - 3*d) for d in range(docs)]
        return pack([(r[:-1], r[1:], d) for d, r in enumerate(rows)], 2)

    # %% ../nbs/33_search.ipynb #a3a3d3e3
    model = tiny()
    scores, test = SharedLosses(model, texts(1)), texts(2)
    with tempfile.TemporaryDirectory() as d:
        path = Path(d)/"rows.jsonl"
        chosen = choose(scores, test, greedy, 30, path=path)
        assert get_ranks(model) == chosen.row["config"] and len(chosen.rows) <= 30
        best = min(chosen.rows, key=lambda r: r["score"])
        assert best["rise"] == 0 and chosen.row["rise"] <= chosen.row["se"] and chosen.row["cost"] <= best["cost"]
        x, n = document_nll(model, test)
        assert chosen.test["loss"] == ratio(x, n)[0]
        set_ranks(model, anchors(scores.space)[0])
        assert (chosen.test["rise"], chosen.test["rise_se"]) == paired(x, document_nll(model, test)[0], n)
        with patch.object(SharedLosses, "nats", lambda *_: 1/0):
            assert choose(scores, test, greedy, 30, path=path) == chosen
        assert choose(scores, test, greedy, 30, at_most=best["score"], path=path).row == best
        refusal(SettingError, choose, scores, test, greedy, 30, at_most=best["score"] - 1e-6)
        assert get_ranks(model) == anchors(scores.space)[0]
        for other in SharedLosses(model, texts(3)), SharedLosses(model, texts(1), cost=flops): print(
            refusal(CheckpointError, choose, other, test, greedy, 30, path=path).partition("another ")[2].partition(":")[0])
        with torch.no_grad(): model.pathlm_adapters["default"].parts[0].A.add_(.1)
        assert "another model" in refusal(CheckpointError, choose, scores, test, greedy, 30, path=path)
    refusal(SettingError, choose, scores, test, at_most=math.nan)
    refusal(TextError, choose, scores, texts(1))
    refusal(TextError, choose, scores, [])
    print(refusal(TextError, choose, SharedLosses(model, texts(1, docs=1)), test))
