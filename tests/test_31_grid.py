from pathlm.grid import *
from pathlib import Path
import torch
import torch.nn.functional as F
from torch import nn
from pathlm.base import MergeError
from pathlm.base import SettingError
from pathlm.linear import select
from pathlm.objectives import inverse_root
import copy
import math
import tempfile
from importlib.util import find_spec
import transformers as tf
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from pathlm.adapters.core import AdaptedLinear
from pathlm.base import PathlmError
from pathlm.evaluate import batches
from pathlm.linear import densify
from pathlm.linear import linears
from pathlm.linear import merge
from pathlm.linear import unmerge
from pathlm.models import corpus
from pathlm.models import pretrained
from pathlm.objectives import gram
from pathlm.objectives import output_error
from pathlm.objectives import ridge
from pathlm.objectives import weight_error
from pathlm.sparsity import sparsify


def test_a_grid_and_its_codes():
    # %% ../nbs/31_grid.ipynb #a4364914
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/31_grid.ipynb #023c4030
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens, decades=2, seed=0):
        "The Gram matrix of inputs whose principal variances fall by `decades` powers of ten."
        Q = torch.linalg.qr(gaussian(in_, in_, seed + 1)).Q
        X = (Q * torch.logspace(0, -decades/2, in_) @ gaussian(in_, tokens, seed + 2)).double()
        return X @ X.T / tokens

    def kept(codes, grid, mask):
        "The share of masked weights whose code is the zero point."
        return (codes == grid.zero.repeat_interleave(codes.shape[1]//grid.zero.shape[1], 1))[~mask].float().mean().item()

    def tiny(kind="Llama", **options):
        torch.manual_seed(0)
        sizes = dict(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        if kind == "GPT-2": return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4)).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**sizes | options, num_key_value_heads=2)).eval()

    def some_ids(): return [torch.randint(0, 96, (4, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]

    def logits(model):
        with torch.no_grad(): return model(some_ids()[0]).logits

    def embedded(documents=12, size=1500):
        "The embedded model, part of the validation text to calibrate on, and part of the test text to measure on."
        model, tokenizer = pretrained()
        valid, test = ([text[:size] for text in corpus(split).values()][:documents] for split in ("valid", "test"))
        return model, [b.inputs for b in batches(valid, tokenizer, 256, 256)], batches(test, tokenizer, 256, 256)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/31_grid.ipynb #ffec5088
    for widths, group in ((256, 384), 128), ((256, 96), 32), ((64, 50), None):
        assert largest_group([nn.Linear(n, 4) for n in widths]) == group


def test_a_grid_and_its_codes_2():
    # %% ../nbs/31_grid.ipynb #a4364914
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/31_grid.ipynb #023c4030
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens, decades=2, seed=0):
        "The Gram matrix of inputs whose principal variances fall by `decades` powers of ten."
        Q = torch.linalg.qr(gaussian(in_, in_, seed + 1)).Q
        X = (Q * torch.logspace(0, -decades/2, in_) @ gaussian(in_, tokens, seed + 2)).double()
        return X @ X.T / tokens

    def kept(codes, grid, mask):
        "The share of masked weights whose code is the zero point."
        return (codes == grid.zero.repeat_interleave(codes.shape[1]//grid.zero.shape[1], 1))[~mask].float().mean().item()

    def tiny(kind="Llama", **options):
        torch.manual_seed(0)
        sizes = dict(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        if kind == "GPT-2": return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4)).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**sizes | options, num_key_value_heads=2)).eval()

    def some_ids(): return [torch.randint(0, 96, (4, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]

    def logits(model):
        with torch.no_grad(): return model(some_ids()[0]).logits

    def embedded(documents=12, size=1500):
        "The embedded model, part of the validation text to calibrate on, and part of the test text to measure on."
        model, tokenizer = pretrained()
        valid, test = ([text[:size] for text in corpus(split).values()][:documents] for split in ("valid", "test"))
        return model, [b.inputs for b in batches(valid, tokenizer, 256, 256)], batches(test, tokenizer, 256, 256)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/31_grid.ipynb #b3e6a6b5
    w = torch.tensor([[-.4, -.1, 0., .2, .9]])
    for symmetric in True, False:
        grid = fit_grid(w, 3, None, symmetric)
        codes = encode(w, grid)
        print(f"s = {grid.scale.item():.4f}, z = {grid.zero.item()}, codes {codes[0].tolist()},",
              "weights", [round(x, 3) + 0. for x in decode(codes, grid)[0].tolist()])

    # %% ../nbs/31_grid.ipynb #489c1561
    weights = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64])

    @given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 9), st.integers(2, 8), st.booleans(), weights,
           st.integers(0, 99))
    @settings(deadline=None, max_examples=25, derandomize=True)
    def laws(out, groups, width, bits, symmetric, dtype, seed):
        W = (gaussian(out, groups*width, seed) * 10**gaussian(out, 1, seed + 1)).to(dtype)
        W[gaussian(out, groups*width, seed + 2) > .8] = 0
        grid = fit_grid(W, bits, width, symmetric)
        codes = encode(W, grid)
        What, s, z = decode(codes, grid), *(t.float().repeat_interleave(width, 1) for t in grid[:2])
        inside = (W.float() >= s*(-z - .5)) & (W.float() <= s*(2**bits - .5 - z))
        assert ((W.float() - What).abs() <= s*(.5 + 1e-4))[inside].all() and inside.float().mean() > .4
        assert torch.equal(codes[W == 0], z[W == 0].to(codes)) and not What[W == 0].any()
        assert torch.equal(decode(encode(What, grid), grid), What)
        for kind in [torch.float32, torch.float16] + [torch.bfloat16]*(symmetric or bits < 8):
            assert torch.equal(encode(What.to(kind), grid), codes)

    laws()


def test_a_grid_and_its_codes_3():
    # %% ../nbs/31_grid.ipynb #a4364914
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/31_grid.ipynb #023c4030
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens, decades=2, seed=0):
        "The Gram matrix of inputs whose principal variances fall by `decades` powers of ten."
        Q = torch.linalg.qr(gaussian(in_, in_, seed + 1)).Q
        X = (Q * torch.logspace(0, -decades/2, in_) @ gaussian(in_, tokens, seed + 2)).double()
        return X @ X.T / tokens

    def kept(codes, grid, mask):
        "The share of masked weights whose code is the zero point."
        return (codes == grid.zero.repeat_interleave(codes.shape[1]//grid.zero.shape[1], 1))[~mask].float().mean().item()

    def tiny(kind="Llama", **options):
        torch.manual_seed(0)
        sizes = dict(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        if kind == "GPT-2": return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4)).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**sizes | options, num_key_value_heads=2)).eval()

    def some_ids(): return [torch.randint(0, 96, (4, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]

    def logits(model):
        with torch.no_grad(): return model(some_ids()[0]).logits

    def embedded(documents=12, size=1500):
        "The embedded model, part of the validation text to calibrate on, and part of the test text to measure on."
        model, tokenizer = pretrained()
        valid, test = ([text[:size] for text in corpus(split).values()][:documents] for split in ("valid", "test"))
        return model, [b.inputs for b in batches(valid, tokenizer, 256, 256)], batches(test, tokenizer, 256, 256)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/31_grid.ipynb #b3e6a6b5
    w = torch.tensor([[-.4, -.1, 0., .2, .9]])
    for symmetric in True, False:
        grid = fit_grid(w, 3, None, symmetric)
        codes = encode(w, grid)
        print(f"s = {grid.scale.item():.4f}, z = {grid.zero.item()}, codes {codes[0].tolist()},",
              "weights", [round(x, 3) + 0. for x in decode(codes, grid)[0].tolist()])

    # %% ../nbs/31_grid.ipynb #d9631504
    for W in torch.zeros(2, 6), torch.full((1, 7), 3.), torch.full((3, 1), -2.), torch.full((1, 4), 1e-12), \
             torch.full((1, 4), 4.9e5), torch.ones(2, 2).bfloat16(), torch.ones(2, 2).half():
        for symmetric in True, False:
            grid = fit_grid(W, 4, None, symmetric)
            What = decode(encode(W, grid), grid)
            assert grid.scale.isfinite().all() and (grid.scale > 0).all() and What.isfinite().all()
            if 1 <= W.abs().max() < 9: assert ((What - W).abs() <= grid.scale.float()*.51).all()
    assert torch.equal(decode(encode(torch.zeros(2, 6), fit_grid(torch.zeros(2, 6), 2, 3)), grid._replace(
        scale=torch.ones(2, 1).half(), zero=torch.full((2, 1), 2, dtype=torch.uint8))), torch.zeros(2, 6))


def test_a_grid_and_its_codes_4():
    # %% ../nbs/31_grid.ipynb #a4364914
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/31_grid.ipynb #023c4030
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens, decades=2, seed=0):
        "The Gram matrix of inputs whose principal variances fall by `decades` powers of ten."
        Q = torch.linalg.qr(gaussian(in_, in_, seed + 1)).Q
        X = (Q * torch.logspace(0, -decades/2, in_) @ gaussian(in_, tokens, seed + 2)).double()
        return X @ X.T / tokens

    def kept(codes, grid, mask):
        "The share of masked weights whose code is the zero point."
        return (codes == grid.zero.repeat_interleave(codes.shape[1]//grid.zero.shape[1], 1))[~mask].float().mean().item()

    def tiny(kind="Llama", **options):
        torch.manual_seed(0)
        sizes = dict(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        if kind == "GPT-2": return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4)).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**sizes | options, num_key_value_heads=2)).eval()

    def some_ids(): return [torch.randint(0, 96, (4, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]

    def logits(model):
        with torch.no_grad(): return model(some_ids()[0]).logits

    def embedded(documents=12, size=1500):
        "The embedded model, part of the validation text to calibrate on, and part of the test text to measure on."
        model, tokenizer = pretrained()
        valid, test = ([text[:size] for text in corpus(split).values()][:documents] for split in ("valid", "test"))
        return model, [b.inputs for b in batches(valid, tokenizer, 256, 256)], batches(test, tokenizer, 256, 256)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/31_grid.ipynb #b3e6a6b5
    w = torch.tensor([[-.4, -.1, 0., .2, .9]])
    for symmetric in True, False:
        grid = fit_grid(w, 3, None, symmetric)
        codes = encode(w, grid)
        print(f"s = {grid.scale.item():.4f}, z = {grid.zero.item()}, codes {codes[0].tolist()},",
              "weights", [round(x, 3) + 0. for x in decode(codes, grid)[0].tolist()])

    # %% ../nbs/31_grid.ipynb #8e129d2e
    W = torch.ones(4, 96)
    print(refusal(SettingError, fit_grid, W, 4, 128, name="model.layers.0.mlp.up_proj"))
    print(refusal(SettingError, fit_grid, 1e7*W, 4, None, name="model.layers.0.mlp.up_proj"))
    for bits in 1, 9, 4., True: assert refusal(SettingError, fit_grid, W, bits, None).startswith(f"bits={bits}, expected")
    for one in None, 1: assert refusal(SettingError, fit_grid, W, 4, None, one).startswith(f"symmetric={one}, expected")
    assert "W holds 1 NaN" in refusal(PathlmError, fit_grid, torch.tensor([[1., math.nan]]), 4, None)
    assert "expected (out, in)" in refusal(SettingError, fit_grid, torch.ones(4), 4, None)


def test_what_rounding_costs():
    # %% ../nbs/31_grid.ipynb #a4364914
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/31_grid.ipynb #023c4030
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens, decades=2, seed=0):
        "The Gram matrix of inputs whose principal variances fall by `decades` powers of ten."
        Q = torch.linalg.qr(gaussian(in_, in_, seed + 1)).Q
        X = (Q * torch.logspace(0, -decades/2, in_) @ gaussian(in_, tokens, seed + 2)).double()
        return X @ X.T / tokens

    def kept(codes, grid, mask):
        "The share of masked weights whose code is the zero point."
        return (codes == grid.zero.repeat_interleave(codes.shape[1]//grid.zero.shape[1], 1))[~mask].float().mean().item()

    def tiny(kind="Llama", **options):
        torch.manual_seed(0)
        sizes = dict(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        if kind == "GPT-2": return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4)).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**sizes | options, num_key_value_heads=2)).eval()

    def some_ids(): return [torch.randint(0, 96, (4, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]

    def logits(model):
        with torch.no_grad(): return model(some_ids()[0]).logits

    def embedded(documents=12, size=1500):
        "The embedded model, part of the validation text to calibrate on, and part of the test text to measure on."
        model, tokenizer = pretrained()
        valid, test = ([text[:size] for text in corpus(split).values()][:documents] for split in ("valid", "test"))
        return model, [b.inputs for b in batches(valid, tokenizer, 256, 256)], batches(test, tokenizer, 256, 256)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/31_grid.ipynb #b3e6a6b5
    w = torch.tensor([[-.4, -.1, 0., .2, .9]])
    for symmetric in True, False:
        grid = fit_grid(w, 3, None, symmetric)
        codes = encode(w, grid)
        print(f"s = {grid.scale.item():.4f}, z = {grid.zero.item()}, codes {codes[0].tolist()},",
              "weights", [round(x, 3) + 0. for x in decode(codes, grid)[0].tolist()])

    # %% ../nbs/31_grid.ipynb #a968923c
    def normal_error(s):
        "(3) over (2), for a standard normal weight."
        return 1 + 12/math.pi**2 * sum((-1)**k/k**2 * math.exp(-2*math.pi**2*k**2/s**2) for k in range(1, 40))

    x = torch.randn(2_000_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for s in .5, 1, 2, 3, 4:
        measured = ((x - s*(x/s).round()).square().mean()/(s**2/12)).item()
        print(f"s = {s:<3} error over s²/12: by (3) {normal_error(s):.3f}, drawn {measured:.2f}")
        assert abs(measured/normal_error(s) - 1) < .005


def test_what_rounding_costs_2():
    # %% ../nbs/31_grid.ipynb #a4364914
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/31_grid.ipynb #023c4030
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens, decades=2, seed=0):
        "The Gram matrix of inputs whose principal variances fall by `decades` powers of ten."
        Q = torch.linalg.qr(gaussian(in_, in_, seed + 1)).Q
        X = (Q * torch.logspace(0, -decades/2, in_) @ gaussian(in_, tokens, seed + 2)).double()
        return X @ X.T / tokens

    def kept(codes, grid, mask):
        "The share of masked weights whose code is the zero point."
        return (codes == grid.zero.repeat_interleave(codes.shape[1]//grid.zero.shape[1], 1))[~mask].float().mean().item()

    def tiny(kind="Llama", **options):
        torch.manual_seed(0)
        sizes = dict(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        if kind == "GPT-2": return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4)).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**sizes | options, num_key_value_heads=2)).eval()

    def some_ids(): return [torch.randint(0, 96, (4, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]

    def logits(model):
        with torch.no_grad(): return model(some_ids()[0]).logits

    def embedded(documents=12, size=1500):
        "The embedded model, part of the validation text to calibrate on, and part of the test text to measure on."
        model, tokenizer = pretrained()
        valid, test = ([text[:size] for text in corpus(split).values()][:documents] for split in ("valid", "test"))
        return model, [b.inputs for b in batches(valid, tokenizer, 256, 256)], batches(test, tokenizer, 256, 256)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/31_grid.ipynb #b3e6a6b5
    w = torch.tensor([[-.4, -.1, 0., .2, .9]])
    for symmetric in True, False:
        grid = fit_grid(w, 3, None, symmetric)
        codes = encode(w, grid)
        print(f"s = {grid.scale.item():.4f}, z = {grid.zero.item()}, codes {codes[0].tolist()},",
              "weights", [round(x, 3) + 0. for x in decode(codes, grid)[0].tolist()])

    # %% ../nbs/31_grid.ipynb #227ed879
    W = gaussian(256, 1024)
    sparse = W * (gaussian(256, 1024, 1) > 0)
    for bits in 2, 3, 4, 8:
        row = []
        for case in W, sparse:
            grid = fit_grid(case, bits, 128)
            row.append((weight_error(case, decode(encode(case, grid), grid))/(grid.scale.double()**2/12*128).sum()).item())
        print(f"{bits} bits: error over s²/12 {row[0]:.2f}, of a half-empty weight {row[1]:.2f}")
        assert .95 < row[0] < 1.05 and .45 < row[1] < .55


def test_codes_are_computed_in_float32():
    # %% ../nbs/31_grid.ipynb #a4364914
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/31_grid.ipynb #023c4030
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens, decades=2, seed=0):
        "The Gram matrix of inputs whose principal variances fall by `decades` powers of ten."
        Q = torch.linalg.qr(gaussian(in_, in_, seed + 1)).Q
        X = (Q * torch.logspace(0, -decades/2, in_) @ gaussian(in_, tokens, seed + 2)).double()
        return X @ X.T / tokens

    def kept(codes, grid, mask):
        "The share of masked weights whose code is the zero point."
        return (codes == grid.zero.repeat_interleave(codes.shape[1]//grid.zero.shape[1], 1))[~mask].float().mean().item()

    def tiny(kind="Llama", **options):
        torch.manual_seed(0)
        sizes = dict(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        if kind == "GPT-2": return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4)).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**sizes | options, num_key_value_heads=2)).eval()

    def some_ids(): return [torch.randint(0, 96, (4, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]

    def logits(model):
        with torch.no_grad(): return model(some_ids()[0]).logits

    def embedded(documents=12, size=1500):
        "The embedded model, part of the validation text to calibrate on, and part of the test text to measure on."
        model, tokenizer = pretrained()
        valid, test = ([text[:size] for text in corpus(split).values()][:documents] for split in ("valid", "test"))
        return model, [b.inputs for b in batches(valid, tokenizer, 256, 256)], batches(test, tokenizer, 256, 256)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/31_grid.ipynb #b3e6a6b5
    w = torch.tensor([[-.4, -.1, 0., .2, .9]])
    for symmetric in True, False:
        grid = fit_grid(w, 3, None, symmetric)
        codes = encode(w, grid)
        print(f"s = {grid.scale.item():.4f}, z = {grid.zero.item()}, codes {codes[0].tolist()},",
              "weights", [round(x, 3) + 0. for x in decode(codes, grid)[0].tolist()])

    # %% ../nbs/31_grid.ipynb #8bc1d9f1
    W = (gaussian(512, 1024)*.02).half()
    W[gaussian(512, 1024, 1) > 0] = 0
    grid = fit_grid(W, 4, 128)
    s, z = (t.half().repeat_interleave(128, 1) for t in grid[:2])
    half = ((W + s*z)/s).round().clamp(0, 15).to(torch.uint8)
    flipped = half != encode(W, grid)
    share, zeros = 100*flipped[W != 0].float().mean(), int(flipped[W == 0].sum())
    print(f"codes that differ: {share:.1f} % of the weights, {zeros} zeros")
    assert 0 < flipped[W != 0].float().mean() < .01 and not flipped[W == 0].any()


def test_to_the_nearest():
    # %% ../nbs/31_grid.ipynb #a4364914
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/31_grid.ipynb #023c4030
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens, decades=2, seed=0):
        "The Gram matrix of inputs whose principal variances fall by `decades` powers of ten."
        Q = torch.linalg.qr(gaussian(in_, in_, seed + 1)).Q
        X = (Q * torch.logspace(0, -decades/2, in_) @ gaussian(in_, tokens, seed + 2)).double()
        return X @ X.T / tokens

    def kept(codes, grid, mask):
        "The share of masked weights whose code is the zero point."
        return (codes == grid.zero.repeat_interleave(codes.shape[1]//grid.zero.shape[1], 1))[~mask].float().mean().item()

    def tiny(kind="Llama", **options):
        torch.manual_seed(0)
        sizes = dict(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        if kind == "GPT-2": return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4)).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**sizes | options, num_key_value_heads=2)).eval()

    def some_ids(): return [torch.randint(0, 96, (4, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]

    def logits(model):
        with torch.no_grad(): return model(some_ids()[0]).logits

    def embedded(documents=12, size=1500):
        "The embedded model, part of the validation text to calibrate on, and part of the test text to measure on."
        model, tokenizer = pretrained()
        valid, test = ([text[:size] for text in corpus(split).values()][:documents] for split in ("valid", "test"))
        return model, [b.inputs for b in batches(valid, tokenizer, 256, 256)], batches(test, tokenizer, 256, 256)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/31_grid.ipynb #cba49800
    for decades in 0, 2, 4:
        W, G = gaussian(256, 512), correlated(512, 2048, decades)
        codes, grid = rtn(W)
        share = output_error(W, decode(codes, grid), G)/expected_error(grid, G.diagonal())
        print(f"inputs over {decades} decades: RTN's output error over (4) {share:.2f}")
        assert .9 < share < 1.1


def test_one_column_fixed_the_others_compensate():
    # %% ../nbs/31_grid.ipynb #a4364914
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/31_grid.ipynb #023c4030
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens, decades=2, seed=0):
        "The Gram matrix of inputs whose principal variances fall by `decades` powers of ten."
        Q = torch.linalg.qr(gaussian(in_, in_, seed + 1)).Q
        X = (Q * torch.logspace(0, -decades/2, in_) @ gaussian(in_, tokens, seed + 2)).double()
        return X @ X.T / tokens

    def kept(codes, grid, mask):
        "The share of masked weights whose code is the zero point."
        return (codes == grid.zero.repeat_interleave(codes.shape[1]//grid.zero.shape[1], 1))[~mask].float().mean().item()

    def tiny(kind="Llama", **options):
        torch.manual_seed(0)
        sizes = dict(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        if kind == "GPT-2": return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4)).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**sizes | options, num_key_value_heads=2)).eval()

    def some_ids(): return [torch.randint(0, 96, (4, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]

    def logits(model):
        with torch.no_grad(): return model(some_ids()[0]).logits

    def embedded(documents=12, size=1500):
        "The embedded model, part of the validation text to calibrate on, and part of the test text to measure on."
        model, tokenizer = pretrained()
        valid, test = ([text[:size] for text in corpus(split).values()][:documents] for split in ("valid", "test"))
        return model, [b.inputs for b in batches(valid, tokenizer, 256, 256)], batches(test, tokenizer, 256, 256)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/31_grid.ipynb #3987823e
    @given(st.integers(2, 7), st.integers(0, 99), st.sampled_from([0., .01, 1.]))
    @settings(deadline=None, max_examples=25, derandomize=True)
    def each_step_is_the_constrained_optimum(n, seed, damp):
        w, q = gaussian(2, n, seed).double()
        G, e = correlated(n, 4*n, 1, seed), torch.zeros(n, dtype=torch.float64)
        H, U, v = ridge(G, damp), inverse_root(G, damp), w.clone()
        for j in range(n):
            e[j] = (v[j] - q[j])/U[j, j]
            v[j:] -= e[j]*U[j, j:]
            d, rest = (w - q)[:j + 1], slice(j + 1, n)
            best = w[rest] + torch.linalg.solve(H[rest, rest], H[rest, :j + 1] @ d)
            torch.testing.assert_close(v, torch.cat([q[:j + 1], best]), rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(w - q, e @ U)
        torch.testing.assert_close((w - q) @ H @ (w - q), e @ e)
        assert (U.diagonal()**-2 <= H.diagonal()*(1 + 1e-9)).all()

    each_step_is_the_constrained_optimum()


def test_by_blocks():
    # %% ../nbs/31_grid.ipynb #a4364914
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/31_grid.ipynb #023c4030
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens, decades=2, seed=0):
        "The Gram matrix of inputs whose principal variances fall by `decades` powers of ten."
        Q = torch.linalg.qr(gaussian(in_, in_, seed + 1)).Q
        X = (Q * torch.logspace(0, -decades/2, in_) @ gaussian(in_, tokens, seed + 2)).double()
        return X @ X.T / tokens

    def kept(codes, grid, mask):
        "The share of masked weights whose code is the zero point."
        return (codes == grid.zero.repeat_interleave(codes.shape[1]//grid.zero.shape[1], 1))[~mask].float().mean().item()

    def tiny(kind="Llama", **options):
        torch.manual_seed(0)
        sizes = dict(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        if kind == "GPT-2": return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4)).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**sizes | options, num_key_value_heads=2)).eval()

    def some_ids(): return [torch.randint(0, 96, (4, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]

    def logits(model):
        with torch.no_grad(): return model(some_ids()[0]).logits

    def embedded(documents=12, size=1500):
        "The embedded model, part of the validation text to calibrate on, and part of the test text to measure on."
        model, tokenizer = pretrained()
        valid, test = ([text[:size] for text in corpus(split).values()][:documents] for split in ("valid", "test"))
        return model, [b.inputs for b in batches(valid, tokenizer, 256, 256)], batches(test, tokenizer, 256, 256)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/31_grid.ipynb #d64c8370
    def plain_gptq(W, G, bits, group, symmetric, mask=None, full=True):
        "GPTQ, column by column; `full` says whether a masked weight's own drift counts as an error."
        M = torch.ones_like(W) if mask is None else mask.to(W)
        W, Q = W*M, torch.empty_like(W)
        U = torch.linalg.cholesky(torch.linalg.inv(ridge(G, .01)), upper=True).to(W)
        for j in range(W.shape[1]):
            if j % group == 0: grid = fit_grid((W*M)[:, j:j + group], bits, None, symmetric)
            w, m = W[:, j], M[:, j]
            Q[:, j] = decode(encode((w*m)[:, None], grid), grid)[:, 0]
            W[:, j:] -= torch.outer((w if full else w*m) - Q[:, j], U[j, j:]/U[j, j])
        return Q

    # %% ../nbs/31_grid.ipynb #f1cc5935
    for bits, group, symmetric in (4, 32, True), (3, 64, False), (8, 192, True):
        W, G, mask = gaussian(48, 192), correlated(192, 800), gaussian(48, 192, 5) > 0
        for m in None, mask:
            plain = plain_gptq(W, G, bits, group, symmetric, m)
            for block in 128, 48, 7, 1:
                ours = decode(*gptq(W, G, bits, group, symmetric, m, block=block))
                assert (((ours - plain)/plain.std()).abs() > 1e-4).float().mean() < .01
                start = W if m is None else W*m
                assert abs(output_error(start, ours, G)/output_error(start, plain, G) - 1) < .01


def test_by_blocks_2():
    # %% ../nbs/31_grid.ipynb #a4364914
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/31_grid.ipynb #023c4030
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens, decades=2, seed=0):
        "The Gram matrix of inputs whose principal variances fall by `decades` powers of ten."
        Q = torch.linalg.qr(gaussian(in_, in_, seed + 1)).Q
        X = (Q * torch.logspace(0, -decades/2, in_) @ gaussian(in_, tokens, seed + 2)).double()
        return X @ X.T / tokens

    def kept(codes, grid, mask):
        "The share of masked weights whose code is the zero point."
        return (codes == grid.zero.repeat_interleave(codes.shape[1]//grid.zero.shape[1], 1))[~mask].float().mean().item()

    def tiny(kind="Llama", **options):
        torch.manual_seed(0)
        sizes = dict(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        if kind == "GPT-2": return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4)).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**sizes | options, num_key_value_heads=2)).eval()

    def some_ids(): return [torch.randint(0, 96, (4, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]

    def logits(model):
        with torch.no_grad(): return model(some_ids()[0]).logits

    def embedded(documents=12, size=1500):
        "The embedded model, part of the validation text to calibrate on, and part of the test text to measure on."
        model, tokenizer = pretrained()
        valid, test = ([text[:size] for text in corpus(split).values()][:documents] for split in ("valid", "test"))
        return model, [b.inputs for b in batches(valid, tokenizer, 256, 256)], batches(test, tokenizer, 256, 256)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/31_grid.ipynb #d64c8370
    def plain_gptq(W, G, bits, group, symmetric, mask=None, full=True):
        "GPTQ, column by column; `full` says whether a masked weight's own drift counts as an error."
        M = torch.ones_like(W) if mask is None else mask.to(W)
        W, Q = W*M, torch.empty_like(W)
        U = torch.linalg.cholesky(torch.linalg.inv(ridge(G, .01)), upper=True).to(W)
        for j in range(W.shape[1]):
            if j % group == 0: grid = fit_grid((W*M)[:, j:j + group], bits, None, symmetric)
            w, m = W[:, j], M[:, j]
            Q[:, j] = decode(encode((w*m)[:, None], grid), grid)[:, 0]
            W[:, j:] -= torch.outer((w if full else w*m) - Q[:, j], U[j, j:]/U[j, j])
        return Q

    # %% ../nbs/31_grid.ipynb #fc659f02
    W, G = gaussian(8, 64), correlated(64, 300)
    W[:, 32:], G[5], G[:, 5] = 0, 0, 0
    for w in W, W[:1], W.bfloat16(), W.half(), torch.zeros(3, 64), torch.ones(2, 64):
        for g in G, torch.zeros(64, 64), G.float():
            for damp in .01, 0.:
                codes, grid = gptq(w, g, 4, 32, False, damp=damp)
                assert grid.scale.isfinite().all() and decode(codes, grid).isfinite().all() and codes.max() < 16
    (codes, grid), (plain, same) = gptq(W, torch.eye(64), 4, 32), rtn(W, 4, 32)
    assert torch.equal(codes, plain) and torch.equal(grid.scale, same.scale) and torch.equal(grid.zero, same.zero)
    print(refusal(SettingError, gptq, W, torch.eye(60), 4, 32))
    print(refusal(SettingError, gptq, W, torch.eye(64), 4, 32, mask=torch.ones(64, 8, dtype=torch.bool)))
    print(refusal(SettingError, gptq, W, torch.eye(64), 4, 32, mask=torch.ones(8, 64)))
    print(refusal(SettingError, gptq, W, -torch.eye(64), 4, 32, name="k_proj"))
    for damp in -1, math.nan, math.inf, None:
        assert refusal(SettingError, gptq, W, G, 4, 32, damp=damp) == f"damp={damp}, expected a finite number from 0 on"
    G[0, 0] = math.nan
    assert "G of 'W' holds 1 NaN" in refusal(PathlmError, gptq, W, G, 4, 32)


def test_what_it_gains():
    # %% ../nbs/31_grid.ipynb #a4364914
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/31_grid.ipynb #023c4030
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens, decades=2, seed=0):
        "The Gram matrix of inputs whose principal variances fall by `decades` powers of ten."
        Q = torch.linalg.qr(gaussian(in_, in_, seed + 1)).Q
        X = (Q * torch.logspace(0, -decades/2, in_) @ gaussian(in_, tokens, seed + 2)).double()
        return X @ X.T / tokens

    def kept(codes, grid, mask):
        "The share of masked weights whose code is the zero point."
        return (codes == grid.zero.repeat_interleave(codes.shape[1]//grid.zero.shape[1], 1))[~mask].float().mean().item()

    def tiny(kind="Llama", **options):
        torch.manual_seed(0)
        sizes = dict(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        if kind == "GPT-2": return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4)).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**sizes | options, num_key_value_heads=2)).eval()

    def some_ids(): return [torch.randint(0, 96, (4, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]

    def logits(model):
        with torch.no_grad(): return model(some_ids()[0]).logits

    def embedded(documents=12, size=1500):
        "The embedded model, part of the validation text to calibrate on, and part of the test text to measure on."
        model, tokenizer = pretrained()
        valid, test = ([text[:size] for text in corpus(split).values()][:documents] for split in ("valid", "test"))
        return model, [b.inputs for b in batches(valid, tokenizer, 256, 256)], batches(test, tokenizer, 256, 256)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/31_grid.ipynb #d64c8370
    def plain_gptq(W, G, bits, group, symmetric, mask=None, full=True):
        "GPTQ, column by column; `full` says whether a masked weight's own drift counts as an error."
        M = torch.ones_like(W) if mask is None else mask.to(W)
        W, Q = W*M, torch.empty_like(W)
        U = torch.linalg.cholesky(torch.linalg.inv(ridge(G, .01)), upper=True).to(W)
        for j in range(W.shape[1]):
            if j % group == 0: grid = fit_grid((W*M)[:, j:j + group], bits, None, symmetric)
            w, m = W[:, j], M[:, j]
            Q[:, j] = decode(encode((w*m)[:, None], grid), grid)[:, 0]
            W[:, j:] -= torch.outer((w if full else w*m) - Q[:, j], U[j, j:]/U[j, j])
        return Q

    # %% ../nbs/31_grid.ipynb #4f201920
    model, calibration, _ = embedded()
    G = gram(model, calibration)


    def compared(W, G, bits, group, symmetric):
        "GPTQ's output error over RTN's, as measured and as predicted."
        ours, base = (decode(*q) for q in (gptq(W, G, bits, group, symmetric), rtn(W, bits, group, symmetric)))
        share = output_error(W, ours, G)/output_error(W, base, G)
        return share.item(), ((inverse_root(G).diagonal()**-2).sum()/G.diagonal().sum()).item()

    # %% ../nbs/31_grid.ipynb #b684e098
    points = {}
    for bits, group, symmetric in (4, 128, True), (2, 64, False):
        points[bits, group] = [compared(layer.weight.detach(), G[name], bits, group, symmetric)
                               for name, layer in linears(model).items()]
        measured, predicted = torch.tensor(points[bits, group]).T
        print(f"{bits} bits, groups of {group}, {'' if symmetric else 'a'}symmetric: error over RTN's",
              f"{measured.min():.2f} to {measured.max():.2f}, mean {measured.mean():.2f}; predicted {predicted.mean():.2f}")
        assert measured.max() < .85 and torch.corrcoef(torch.stack([measured, predicted]))[0, 1] > .97


def test_keeping_zeros():
    # %% ../nbs/31_grid.ipynb #a4364914
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/31_grid.ipynb #023c4030
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens, decades=2, seed=0):
        "The Gram matrix of inputs whose principal variances fall by `decades` powers of ten."
        Q = torch.linalg.qr(gaussian(in_, in_, seed + 1)).Q
        X = (Q * torch.logspace(0, -decades/2, in_) @ gaussian(in_, tokens, seed + 2)).double()
        return X @ X.T / tokens

    def kept(codes, grid, mask):
        "The share of masked weights whose code is the zero point."
        return (codes == grid.zero.repeat_interleave(codes.shape[1]//grid.zero.shape[1], 1))[~mask].float().mean().item()

    def tiny(kind="Llama", **options):
        torch.manual_seed(0)
        sizes = dict(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        if kind == "GPT-2": return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4)).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**sizes | options, num_key_value_heads=2)).eval()

    def some_ids(): return [torch.randint(0, 96, (4, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]

    def logits(model):
        with torch.no_grad(): return model(some_ids()[0]).logits

    def embedded(documents=12, size=1500):
        "The embedded model, part of the validation text to calibrate on, and part of the test text to measure on."
        model, tokenizer = pretrained()
        valid, test = ([text[:size] for text in corpus(split).values()][:documents] for split in ("valid", "test"))
        return model, [b.inputs for b in batches(valid, tokenizer, 256, 256)], batches(test, tokenizer, 256, 256)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/31_grid.ipynb #d64c8370
    def plain_gptq(W, G, bits, group, symmetric, mask=None, full=True):
        "GPTQ, column by column; `full` says whether a masked weight's own drift counts as an error."
        M = torch.ones_like(W) if mask is None else mask.to(W)
        W, Q = W*M, torch.empty_like(W)
        U = torch.linalg.cholesky(torch.linalg.inv(ridge(G, .01)), upper=True).to(W)
        for j in range(W.shape[1]):
            if j % group == 0: grid = fit_grid((W*M)[:, j:j + group], bits, None, symmetric)
            w, m = W[:, j], M[:, j]
            Q[:, j] = decode(encode((w*m)[:, None], grid), grid)[:, 0]
            W[:, j:] -= torch.outer((w if full else w*m) - Q[:, j], U[j, j:]/U[j, j])
        return Q

    # %% ../nbs/31_grid.ipynb #c9c82f2b
    def upper_half(W, G):
        "A mask that keeps half of each row."
        S = W.abs()*G.diagonal().to(W).sqrt()
        return torch.ones_like(W, dtype=torch.bool).scatter(1, S.argsort(dim=1)[:, :W.shape[1]//2], False)

    def five(W, G, mask, bits=4, group=128, symmetric=True):
        "Relative output errors of the five ways, and the share of zeros that plain GPTQ and (8) keep."
        W = W*mask
        plain, ours = gptq(W, G, bits, group, symmetric), gptq(W, G, bits, group, symmetric, mask)
        ways = (decode(*rtn(W, bits, group, symmetric)), decode(*plain), decode(*plain)*mask,
                plain_gptq(W, G.double(), bits, group, symmetric, mask, full=False), decode(*ours))
        errors = [(output_error(W, What, G)/output_error(W, 0*W, G)).item() for What in ways]
        return *errors, kept(*plain, mask), kept(*ours, mask)

    # %% ../nbs/31_grid.ipynb #88131223
    print("decades   error, % of the output's energy                zeros kept by")
    print("            RTN    GPTQ  post hoc  no drift     (8)    GPTQ     (8)")
    for decades in 0, 2, 4, 6:
        W, H = gaussian(256, 512), correlated(512, 2048, decades)
        *errors, plain, ours = five(W, H, upper_half(W, H))
        print(f"{decades:7} " + "".join(f"{100*e:8.3f}" for e in errors) + f"{100*plain:8.1f}{100*ours:8.1f} %")
        assert ours == 1 and (decades == 0 or errors[4] < min(errors[0], errors[2], errors[3]))


def test_keeping_zeros_2():
    # %% ../nbs/31_grid.ipynb #a4364914
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/31_grid.ipynb #023c4030
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens, decades=2, seed=0):
        "The Gram matrix of inputs whose principal variances fall by `decades` powers of ten."
        Q = torch.linalg.qr(gaussian(in_, in_, seed + 1)).Q
        X = (Q * torch.logspace(0, -decades/2, in_) @ gaussian(in_, tokens, seed + 2)).double()
        return X @ X.T / tokens

    def kept(codes, grid, mask):
        "The share of masked weights whose code is the zero point."
        return (codes == grid.zero.repeat_interleave(codes.shape[1]//grid.zero.shape[1], 1))[~mask].float().mean().item()

    def tiny(kind="Llama", **options):
        torch.manual_seed(0)
        sizes = dict(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        if kind == "GPT-2": return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4)).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**sizes | options, num_key_value_heads=2)).eval()

    def some_ids(): return [torch.randint(0, 96, (4, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]

    def logits(model):
        with torch.no_grad(): return model(some_ids()[0]).logits

    def embedded(documents=12, size=1500):
        "The embedded model, part of the validation text to calibrate on, and part of the test text to measure on."
        model, tokenizer = pretrained()
        valid, test = ([text[:size] for text in corpus(split).values()][:documents] for split in ("valid", "test"))
        return model, [b.inputs for b in batches(valid, tokenizer, 256, 256)], batches(test, tokenizer, 256, 256)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/31_grid.ipynb #d64c8370
    def plain_gptq(W, G, bits, group, symmetric, mask=None, full=True):
        "GPTQ, column by column; `full` says whether a masked weight's own drift counts as an error."
        M = torch.ones_like(W) if mask is None else mask.to(W)
        W, Q = W*M, torch.empty_like(W)
        U = torch.linalg.cholesky(torch.linalg.inv(ridge(G, .01)), upper=True).to(W)
        for j in range(W.shape[1]):
            if j % group == 0: grid = fit_grid((W*M)[:, j:j + group], bits, None, symmetric)
            w, m = W[:, j], M[:, j]
            Q[:, j] = decode(encode((w*m)[:, None], grid), grid)[:, 0]
            W[:, j:] -= torch.outer((w if full else w*m) - Q[:, j], U[j, j:]/U[j, j])
        return Q

    # %% ../nbs/31_grid.ipynb #c9c82f2b
    def upper_half(W, G):
        "A mask that keeps half of each row."
        S = W.abs()*G.diagonal().to(W).sqrt()
        return torch.ones_like(W, dtype=torch.bool).scatter(1, S.argsort(dim=1)[:, :W.shape[1]//2], False)

    def five(W, G, mask, bits=4, group=128, symmetric=True):
        "Relative output errors of the five ways, and the share of zeros that plain GPTQ and (8) keep."
        W = W*mask
        plain, ours = gptq(W, G, bits, group, symmetric), gptq(W, G, bits, group, symmetric, mask)
        ways = (decode(*rtn(W, bits, group, symmetric)), decode(*plain), decode(*plain)*mask,
                plain_gptq(W, G.double(), bits, group, symmetric, mask, full=False), decode(*ours))
        errors = [(output_error(W, What, G)/output_error(W, 0*W, G)).item() for What in ways]
        return *errors, kept(*plain, mask), kept(*ours, mask)

    # %% ../nbs/31_grid.ipynb #3d5db6ff
    model, calibration, _ = embedded()
    G, rows = gram(model, calibration), []
    for name, layer in select(model, layers=[0, 2, 4]).items():
        W = layer.weight.detach()
        rows.append(five(W, G[name], upper_half(W, G[name])))
    rows = torch.tensor(rows)
    mean = rows.mean(0)
    print("error, % of the output's energy:",
          ", ".join(f"{k} {100*e:.3f}" for k, e in zip(("RTN", "GPTQ", "post hoc", "no drift", "(8)"), mean, strict=False)))
    print(f"zeros that GPTQ keeps: {100*rows[:, 5].min():.0f} to {100*rows[:, 5].max():.0f} %, mean {100*mean[5]:.0f} %")
    print(f"(8) over RTN: at most {(rows[:, 4]/rows[:, 0]).max():.2f}, over post hoc: {(rows[:, 4]/rows[:, 2]).max():.2f}")
    assert (rows[:, 6] == 1).all() and (rows[:, 4] < rows[:, 0]).all() and mean[4] < min(mean[2], mean[3])


def test_codes_in_memory():
    # %% ../nbs/31_grid.ipynb #a4364914
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/31_grid.ipynb #023c4030
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens, decades=2, seed=0):
        "The Gram matrix of inputs whose principal variances fall by `decades` powers of ten."
        Q = torch.linalg.qr(gaussian(in_, in_, seed + 1)).Q
        X = (Q * torch.logspace(0, -decades/2, in_) @ gaussian(in_, tokens, seed + 2)).double()
        return X @ X.T / tokens

    def kept(codes, grid, mask):
        "The share of masked weights whose code is the zero point."
        return (codes == grid.zero.repeat_interleave(codes.shape[1]//grid.zero.shape[1], 1))[~mask].float().mean().item()

    def tiny(kind="Llama", **options):
        torch.manual_seed(0)
        sizes = dict(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        if kind == "GPT-2": return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4)).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**sizes | options, num_key_value_heads=2)).eval()

    def some_ids(): return [torch.randint(0, 96, (4, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]

    def logits(model):
        with torch.no_grad(): return model(some_ids()[0]).logits

    def embedded(documents=12, size=1500):
        "The embedded model, part of the validation text to calibrate on, and part of the test text to measure on."
        model, tokenizer = pretrained()
        valid, test = ([text[:size] for text in corpus(split).values()][:documents] for split in ("valid", "test"))
        return model, [b.inputs for b in batches(valid, tokenizer, 256, 256)], batches(test, tokenizer, 256, 256)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/31_grid.ipynb #b4e633de
    @given(st.integers(1, 4), st.integers(1, 140), st.integers(1, 8), st.integers(0, 99))
    @settings(deadline=None, max_examples=25, derandomize=True)
    def packing_loses_nothing(out, in_, bits, seed):
        codes = torch.randint(0, 2**bits, (out, in_), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
        packed = pack(codes, bits)
        assert packed.shape == (out, math.ceil(in_*bits/32)) and packed.dtype == torch.int32
        assert torch.equal(unpack(packed, bits, in_), codes)
        whole = sum(int(c) << bits*j for j, c in enumerate(codes[0]))
        assert int.from_bytes(packed[0].numpy().astype("<i4").tobytes(), "little") == whole

    packing_loses_nothing()


def test_codes_in_memory_2():
    # %% ../nbs/31_grid.ipynb #a4364914
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/31_grid.ipynb #023c4030
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens, decades=2, seed=0):
        "The Gram matrix of inputs whose principal variances fall by `decades` powers of ten."
        Q = torch.linalg.qr(gaussian(in_, in_, seed + 1)).Q
        X = (Q * torch.logspace(0, -decades/2, in_) @ gaussian(in_, tokens, seed + 2)).double()
        return X @ X.T / tokens

    def kept(codes, grid, mask):
        "The share of masked weights whose code is the zero point."
        return (codes == grid.zero.repeat_interleave(codes.shape[1]//grid.zero.shape[1], 1))[~mask].float().mean().item()

    def tiny(kind="Llama", **options):
        torch.manual_seed(0)
        sizes = dict(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        if kind == "GPT-2": return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4)).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**sizes | options, num_key_value_heads=2)).eval()

    def some_ids(): return [torch.randint(0, 96, (4, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]

    def logits(model):
        with torch.no_grad(): return model(some_ids()[0]).logits

    def embedded(documents=12, size=1500):
        "The embedded model, part of the validation text to calibrate on, and part of the test text to measure on."
        model, tokenizer = pretrained()
        valid, test = ([text[:size] for text in corpus(split).values()][:documents] for split in ("valid", "test"))
        return model, [b.inputs for b in batches(valid, tokenizer, 256, 256)], batches(test, tokenizer, 256, 256)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/31_grid.ipynb #a14af45d
    if find_spec("compressed_tensors"):
        from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
        for bits in range(2, 9):
            codes = torch.randint(0, 2**bits, (5, 77), generator=torch.Generator().manual_seed(bits)).to(torch.uint8)
            theirs = (codes.int() - 2**(bits - 1)).to(torch.int8)
            assert torch.equal(pack(codes, bits), pack_to_int32(theirs, bits))
            assert torch.equal(unpack_from_int32(pack(codes, bits), bits, codes.shape), theirs)


def test_a_layer_of_codes():
    # %% ../nbs/31_grid.ipynb #a4364914
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/31_grid.ipynb #023c4030
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens, decades=2, seed=0):
        "The Gram matrix of inputs whose principal variances fall by `decades` powers of ten."
        Q = torch.linalg.qr(gaussian(in_, in_, seed + 1)).Q
        X = (Q * torch.logspace(0, -decades/2, in_) @ gaussian(in_, tokens, seed + 2)).double()
        return X @ X.T / tokens

    def kept(codes, grid, mask):
        "The share of masked weights whose code is the zero point."
        return (codes == grid.zero.repeat_interleave(codes.shape[1]//grid.zero.shape[1], 1))[~mask].float().mean().item()

    def tiny(kind="Llama", **options):
        torch.manual_seed(0)
        sizes = dict(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        if kind == "GPT-2": return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4)).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**sizes | options, num_key_value_heads=2)).eval()

    def some_ids(): return [torch.randint(0, 96, (4, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]

    def logits(model):
        with torch.no_grad(): return model(some_ids()[0]).logits

    def embedded(documents=12, size=1500):
        "The embedded model, part of the validation text to calibrate on, and part of the test text to measure on."
        model, tokenizer = pretrained()
        valid, test = ([text[:size] for text in corpus(split).values()][:documents] for split in ("valid", "test"))
        return model, [b.inputs for b in batches(valid, tokenizer, 256, 256)], batches(test, tokenizer, 256, 256)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/31_grid.ipynb #b2888797
    @given(st.integers(1, 5), st.integers(1, 9), st.integers(2, 8), st.booleans(), st.booleans(),
           st.sampled_from([torch.float32, torch.bfloat16, torch.float16]), st.integers(0, 99))
    @settings(deadline=None, max_examples=25, derandomize=True)
    def as_its_dense_layer(out, in_, bits, symmetric, biased, dtype, seed):
        W, b = gaussian(out, in_, seed), gaussian(1, out, seed)[0].to(dtype) if biased else None
        codes, grid = rtn(W, bits, None, symmetric)
        layer = GridLinear(codes, grid, b, dtype)
        assert torch.equal(layer.effective_weight(), decode(codes, grid).to(dtype))
        xs = [gaussian(3, in_, seed + 1).to(dtype).requires_grad_() for _ in range(2)]
        bs = [layer.bias, None if b is None else b.clone().requires_grad_()]
        ys = [layer(xs[0]), F.linear(xs[1], layer.effective_weight(), bs[1])]
        for y in ys: y.square().sum().backward()
        torch.testing.assert_close(*ys)
        torch.testing.assert_close(xs[0].grad, xs[1].grad)
        if biased: torch.testing.assert_close(bs[0].grad, bs[1].grad)
        again = grid_linear_from({k: v.clone() for k, v in layer.state_dict().items()}).to(dtype)
        moved = layer.half().bfloat16().float()
        for other in again, moved: assert torch.equal(other.codes(), codes) and torch.equal(other.grid.scale, grid.scale)
        assert torch.equal(again.effective_weight(), decode(codes, grid).to(dtype)) and again.zero is None or not symmetric
        assert torch.equal(moved.effective_weight(), decode(codes, grid))

    as_its_dense_layer()


def test_a_layer_of_codes_2():
    # %% ../nbs/31_grid.ipynb #a4364914
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/31_grid.ipynb #023c4030
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens, decades=2, seed=0):
        "The Gram matrix of inputs whose principal variances fall by `decades` powers of ten."
        Q = torch.linalg.qr(gaussian(in_, in_, seed + 1)).Q
        X = (Q * torch.logspace(0, -decades/2, in_) @ gaussian(in_, tokens, seed + 2)).double()
        return X @ X.T / tokens

    def kept(codes, grid, mask):
        "The share of masked weights whose code is the zero point."
        return (codes == grid.zero.repeat_interleave(codes.shape[1]//grid.zero.shape[1], 1))[~mask].float().mean().item()

    def tiny(kind="Llama", **options):
        torch.manual_seed(0)
        sizes = dict(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        if kind == "GPT-2": return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4)).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**sizes | options, num_key_value_heads=2)).eval()

    def some_ids(): return [torch.randint(0, 96, (4, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]

    def logits(model):
        with torch.no_grad(): return model(some_ids()[0]).logits

    def embedded(documents=12, size=1500):
        "The embedded model, part of the validation text to calibrate on, and part of the test text to measure on."
        model, tokenizer = pretrained()
        valid, test = ([text[:size] for text in corpus(split).values()][:documents] for split in ("valid", "test"))
        return model, [b.inputs for b in batches(valid, tokenizer, 256, 256)], batches(test, tokenizer, 256, 256)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/31_grid.ipynb #985def9c
    layer, saved = GridLinear(*rtn(gaussian(64, 64), group=32)), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer(gaussian(1, 64).requires_grad_())
        assert not saved
        F.linear(gaussian(1, 64).requires_grad_(), layer.effective_weight())
        assert [t.numel() for t in saved] == [64*64]
    assert layer.to("meta").effective_weight().shape == (64, 64)


def test_a_layer_of_codes_3():
    # %% ../nbs/31_grid.ipynb #a4364914
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/31_grid.ipynb #023c4030
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens, decades=2, seed=0):
        "The Gram matrix of inputs whose principal variances fall by `decades` powers of ten."
        Q = torch.linalg.qr(gaussian(in_, in_, seed + 1)).Q
        X = (Q * torch.logspace(0, -decades/2, in_) @ gaussian(in_, tokens, seed + 2)).double()
        return X @ X.T / tokens

    def kept(codes, grid, mask):
        "The share of masked weights whose code is the zero point."
        return (codes == grid.zero.repeat_interleave(codes.shape[1]//grid.zero.shape[1], 1))[~mask].float().mean().item()

    def tiny(kind="Llama", **options):
        torch.manual_seed(0)
        sizes = dict(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        if kind == "GPT-2": return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4)).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**sizes | options, num_key_value_heads=2)).eval()

    def some_ids(): return [torch.randint(0, 96, (4, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]

    def logits(model):
        with torch.no_grad(): return model(some_ids()[0]).logits

    def embedded(documents=12, size=1500):
        "The embedded model, part of the validation text to calibrate on, and part of the test text to measure on."
        model, tokenizer = pretrained()
        valid, test = ([text[:size] for text in corpus(split).values()][:documents] for split in ("valid", "test"))
        return model, [b.inputs for b in batches(valid, tokenizer, 256, 256)], batches(test, tokenizer, 256, 256)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/31_grid.ipynb #43ae3074
    for bits, group, symmetric in (4, 128, True), (4, 32, False), (3, 64, True), (8, 256, False), (5, 32, True):
        W = gaussian(64, 256)
        layer = GridLinear(*rtn(W, bits, group, symmetric))
        stored = 8*(sum(t.nbytes for t in layer.state_dict().values()) - 8)/W.numel()
        print(f"{bits} bits, groups of {group}, {'' if symmetric else 'a'}symmetric: {stored:.4f} bits a weight")
        assert stored == grid_bits(bits, group, symmetric)


def test_a_layer_of_codes_4():
    # %% ../nbs/31_grid.ipynb #a4364914
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/31_grid.ipynb #023c4030
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens, decades=2, seed=0):
        "The Gram matrix of inputs whose principal variances fall by `decades` powers of ten."
        Q = torch.linalg.qr(gaussian(in_, in_, seed + 1)).Q
        X = (Q * torch.logspace(0, -decades/2, in_) @ gaussian(in_, tokens, seed + 2)).double()
        return X @ X.T / tokens

    def kept(codes, grid, mask):
        "The share of masked weights whose code is the zero point."
        return (codes == grid.zero.repeat_interleave(codes.shape[1]//grid.zero.shape[1], 1))[~mask].float().mean().item()

    def tiny(kind="Llama", **options):
        torch.manual_seed(0)
        sizes = dict(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        if kind == "GPT-2": return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4)).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**sizes | options, num_key_value_heads=2)).eval()

    def some_ids(): return [torch.randint(0, 96, (4, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]

    def logits(model):
        with torch.no_grad(): return model(some_ids()[0]).logits

    def embedded(documents=12, size=1500):
        "The embedded model, part of the validation text to calibrate on, and part of the test text to measure on."
        model, tokenizer = pretrained()
        valid, test = ([text[:size] for text in corpus(split).values()][:documents] for split in ("valid", "test"))
        return model, [b.inputs for b in batches(valid, tokenizer, 256, 256)], batches(test, tokenizer, 256, 256)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/31_grid.ipynb #29b79aa5
    layer = GridLinear(*rtn(gaussian(6, 32), 4, 16), dtype=torch.bfloat16)
    W = layer.effective_weight()
    assert torch.equal(layer.rebuilt(W).packed, layer.packed) and layer.merged() is layer
    W[2, 3:6] += .01
    print(refusal(PathlmError, layer.rebuilt, W))
    assert torch.equal(layer.rebuilt(0*W).effective_weight(), 0*W)


def test_rounding_in_the_forward_pass():
    # %% ../nbs/31_grid.ipynb #a4364914
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/31_grid.ipynb #023c4030
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens, decades=2, seed=0):
        "The Gram matrix of inputs whose principal variances fall by `decades` powers of ten."
        Q = torch.linalg.qr(gaussian(in_, in_, seed + 1)).Q
        X = (Q * torch.logspace(0, -decades/2, in_) @ gaussian(in_, tokens, seed + 2)).double()
        return X @ X.T / tokens

    def kept(codes, grid, mask):
        "The share of masked weights whose code is the zero point."
        return (codes == grid.zero.repeat_interleave(codes.shape[1]//grid.zero.shape[1], 1))[~mask].float().mean().item()

    def tiny(kind="Llama", **options):
        torch.manual_seed(0)
        sizes = dict(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        if kind == "GPT-2": return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4)).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**sizes | options, num_key_value_heads=2)).eval()

    def some_ids(): return [torch.randint(0, 96, (4, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]

    def logits(model):
        with torch.no_grad(): return model(some_ids()[0]).logits

    def embedded(documents=12, size=1500):
        "The embedded model, part of the validation text to calibrate on, and part of the test text to measure on."
        model, tokenizer = pretrained()
        valid, test = ([text[:size] for text in corpus(split).values()][:documents] for split in ("valid", "test"))
        return model, [b.inputs for b in batches(valid, tokenizer, 256, 256)], batches(test, tokenizer, 256, 256)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/31_grid.ipynb #577ba25f
    for dtype in torch.float32, torch.bfloat16, torch.float16:
        W, mask, x = gaussian(6, 32).to(dtype), gaussian(6, 32, 1) > 0, gaussian(9, 32, 2).to(dtype)
        grid = fit_grid(masked(W, mask), 4, 16, False)
        layer = RoundingLinear(W, grid, mask, torch.ones(6, dtype=dtype))
        assert torch.equal(layer.effective_weight(), decode(encode(W*mask, grid), grid).to(dtype))
        plain = layer.effective_weight().detach().requires_grad_()
        for y in layer(x), F.linear(x, plain, layer.bias): y.square().mean().backward()
        assert torch.equal(layer.weight.grad, plain.grad*mask)
        step = torch.optim.SGD(layer.parameters(), lr=.05, momentum=.9, weight_decay=.01)
        for _ in range(3):
            step.zero_grad()
            layer(x).square().mean().backward()
            step.step()
        new, What = layer.merged(), layer.effective_weight()
        assert torch.equal(new.effective_weight(), What) and torch.equal(new(x), layer(x))
        assert torch.equal(new.grid.scale, grid.scale) and torch.equal(new.grid.zero, grid.zero)
        assert kept(new.codes(), grid, mask) == 1 and not torch.equal(new.codes(), encode(W*mask, grid))
        assert torch.equal(layer.rebuilt(What).packed, new.packed)


def test_rounding_in_the_forward_pass_2():
    # %% ../nbs/31_grid.ipynb #a4364914
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/31_grid.ipynb #023c4030
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens, decades=2, seed=0):
        "The Gram matrix of inputs whose principal variances fall by `decades` powers of ten."
        Q = torch.linalg.qr(gaussian(in_, in_, seed + 1)).Q
        X = (Q * torch.logspace(0, -decades/2, in_) @ gaussian(in_, tokens, seed + 2)).double()
        return X @ X.T / tokens

    def kept(codes, grid, mask):
        "The share of masked weights whose code is the zero point."
        return (codes == grid.zero.repeat_interleave(codes.shape[1]//grid.zero.shape[1], 1))[~mask].float().mean().item()

    def tiny(kind="Llama", **options):
        torch.manual_seed(0)
        sizes = dict(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        if kind == "GPT-2": return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4)).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**sizes | options, num_key_value_heads=2)).eval()

    def some_ids(): return [torch.randint(0, 96, (4, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]

    def logits(model):
        with torch.no_grad(): return model(some_ids()[0]).logits

    def embedded(documents=12, size=1500):
        "The embedded model, part of the validation text to calibrate on, and part of the test text to measure on."
        model, tokenizer = pretrained()
        valid, test = ([text[:size] for text in corpus(split).values()][:documents] for split in ("valid", "test"))
        return model, [b.inputs for b in batches(valid, tokenizer, 256, 256)], batches(test, tokenizer, 256, 256)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/31_grid.ipynb #0c88b4d4
    W, mask = gaussian(4, 16), gaussian(4, 16, 1) > 0
    layer = RoundingLinear(W, fit_grid(W*mask, 3, 8), mask)
    print(refusal(MergeError, layer.rebuilt, W))
    print(refusal(MergeError, layer.rebuilt, W*mask))
    other = RoundingLinear(torch.ones(4, 16), fit_grid(torch.ones(4, 16), 3, 8), torch.ones(4, 16).bool())
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.effective_weight(), layer.effective_weight()) and torch.equal(other.mask, mask)
    assert layer.state_dict().keys() == {"weight", "scale_bits", "size", "bits"}
    bare = RoundingLinear(W, fit_grid(W, 4, None))
    assert bare.weight.data_ptr() == W.data_ptr() and bare.mask is None
    bare.weight.data[0, 0] = math.nan
    assert bare(torch.ones(1, 16)).isnan().any() and "1 NaN" in refusal(PathlmError, bare.merged)


def test_rounding_in_the_forward_pass_3():
    # %% ../nbs/31_grid.ipynb #a4364914
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/31_grid.ipynb #023c4030
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens, decades=2, seed=0):
        "The Gram matrix of inputs whose principal variances fall by `decades` powers of ten."
        Q = torch.linalg.qr(gaussian(in_, in_, seed + 1)).Q
        X = (Q * torch.logspace(0, -decades/2, in_) @ gaussian(in_, tokens, seed + 2)).double()
        return X @ X.T / tokens

    def kept(codes, grid, mask):
        "The share of masked weights whose code is the zero point."
        return (codes == grid.zero.repeat_interleave(codes.shape[1]//grid.zero.shape[1], 1))[~mask].float().mean().item()

    def tiny(kind="Llama", **options):
        torch.manual_seed(0)
        sizes = dict(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        if kind == "GPT-2": return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4)).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**sizes | options, num_key_value_heads=2)).eval()

    def some_ids(): return [torch.randint(0, 96, (4, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]

    def logits(model):
        with torch.no_grad(): return model(some_ids()[0]).logits

    def embedded(documents=12, size=1500):
        "The embedded model, part of the validation text to calibrate on, and part of the test text to measure on."
        model, tokenizer = pretrained()
        valid, test = ([text[:size] for text in corpus(split).values()][:documents] for split in ("valid", "test"))
        return model, [b.inputs for b in batches(valid, tokenizer, 256, 256)], batches(test, tokenizer, 256, 256)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/31_grid.ipynb #58321485
    W = gaussian(4, 32)
    grids = fit_grid(W, 4, 16, False), fit_grid(W, 4, 16)
    assert (grids[0].zero != 8).any() and (grids[1].zero == 8).all()
    for make in lambda grid: GridLinear(encode(W, grid), grid), lambda grid: RoundingLinear(W, grid):
        for a in grids:
            for b in grids:
                layer, other = make(a), make(b)
                layer.load_state_dict(other.state_dict())
                layer.load_state_dict({}, strict=False)
                assert torch.equal(layer.effective_weight(), other.effective_weight())
                assert torch.equal(layer.grid.zero, b.zero) and layer.state_dict().keys() == other.state_dict().keys()


def test_a_whole_model():
    # %% ../nbs/31_grid.ipynb #a4364914
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/31_grid.ipynb #023c4030
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens, decades=2, seed=0):
        "The Gram matrix of inputs whose principal variances fall by `decades` powers of ten."
        Q = torch.linalg.qr(gaussian(in_, in_, seed + 1)).Q
        X = (Q * torch.logspace(0, -decades/2, in_) @ gaussian(in_, tokens, seed + 2)).double()
        return X @ X.T / tokens

    def kept(codes, grid, mask):
        "The share of masked weights whose code is the zero point."
        return (codes == grid.zero.repeat_interleave(codes.shape[1]//grid.zero.shape[1], 1))[~mask].float().mean().item()

    def tiny(kind="Llama", **options):
        torch.manual_seed(0)
        sizes = dict(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        if kind == "GPT-2": return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4)).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**sizes | options, num_key_value_heads=2)).eval()

    def some_ids(): return [torch.randint(0, 96, (4, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]

    def logits(model):
        with torch.no_grad(): return model(some_ids()[0]).logits

    def embedded(documents=12, size=1500):
        "The embedded model, part of the validation text to calibrate on, and part of the test text to measure on."
        model, tokenizer = pretrained()
        valid, test = ([text[:size] for text in corpus(split).values()][:documents] for split in ("valid", "test"))
        return model, [b.inputs for b in batches(valid, tokenizer, 256, 256)], batches(test, tokenizer, 256, 256)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/31_grid.ipynb #8043ae45
    for kind in "Llama", "GPT-2":
        for method, symmetric in ("rtn", False), ("gptq", True), ("gptq", False):
            model = sparsify(tiny(kind), method="magnitude")
            masks = {name: layer.mask for name, layer in linears(model).items()}
            first = next(iter(masks))
            W, H = model.get_submodule(first).weight.detach(), gram(model, some_ids())[first]
            want = rtn(W, 3, 16, symmetric) if method == "rtn" else gptq(W, H, 3, 16, symmetric, masks[first])
            quantize(model, some_ids(), 3, 16, symmetric, method)
            assert torch.equal(model.get_submodule(first).codes(), want[0])
            for name, layer in linears(model).items():
                assert type(layer) is GridLinear and kept(layer.codes(), layer.grid, masks[name]) == 1
            before = logits(model)
            assert torch.equal(logits(merge(model)), before)
            torch.testing.assert_close(logits(densify(model)), before)


def test_a_whole_model_2():
    # %% ../nbs/31_grid.ipynb #a4364914
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/31_grid.ipynb #023c4030
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens, decades=2, seed=0):
        "The Gram matrix of inputs whose principal variances fall by `decades` powers of ten."
        Q = torch.linalg.qr(gaussian(in_, in_, seed + 1)).Q
        X = (Q * torch.logspace(0, -decades/2, in_) @ gaussian(in_, tokens, seed + 2)).double()
        return X @ X.T / tokens

    def kept(codes, grid, mask):
        "The share of masked weights whose code is the zero point."
        return (codes == grid.zero.repeat_interleave(codes.shape[1]//grid.zero.shape[1], 1))[~mask].float().mean().item()

    def tiny(kind="Llama", **options):
        torch.manual_seed(0)
        sizes = dict(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        if kind == "GPT-2": return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4)).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**sizes | options, num_key_value_heads=2)).eval()

    def some_ids(): return [torch.randint(0, 96, (4, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]

    def logits(model):
        with torch.no_grad(): return model(some_ids()[0]).logits

    def embedded(documents=12, size=1500):
        "The embedded model, part of the validation text to calibrate on, and part of the test text to measure on."
        model, tokenizer = pretrained()
        valid, test = ([text[:size] for text in corpus(split).values()][:documents] for split in ("valid", "test"))
        return model, [b.inputs for b in batches(valid, tokenizer, 256, 256)], batches(test, tokenizer, 256, 256)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/31_grid.ipynb #0a4c095f
    class Killed(Exception): pass

    def at_call(n):
        "A hook that breaks off at the n-th call."
        calls = []
        def hook(*_):
            calls.append(1)
            if len(calls) == n: raise Killed
        return hook

    # %% ../nbs/31_grid.ipynb #34781667
    whole, other = quantize(tiny(), some_ids(), 4, 32), tiny()
    hook = other.model.layers[1].register_forward_hook(at_call(5))
    with tempfile.TemporaryDirectory() as d:
        refusal(Killed, quantize, other, some_ids(), 4, 32, folder=d)
        hook.remove()
        assert len(list(Path(d).glob("*.safetensors"))) == 7 and type(other.model.layers[0].mlp.up_proj) is nn.Linear
        quantize(other, some_ids(), 4, 32, folder=d)
        assert "bits=4, not 3" in refusal(SettingError, quantize, tiny(), some_ids(), 3, 32, folder=d)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), other.state_dict().values(), strict=True))


def test_a_whole_model_3():
    # %% ../nbs/31_grid.ipynb #a4364914
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/31_grid.ipynb #023c4030
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens, decades=2, seed=0):
        "The Gram matrix of inputs whose principal variances fall by `decades` powers of ten."
        Q = torch.linalg.qr(gaussian(in_, in_, seed + 1)).Q
        X = (Q * torch.logspace(0, -decades/2, in_) @ gaussian(in_, tokens, seed + 2)).double()
        return X @ X.T / tokens

    def kept(codes, grid, mask):
        "The share of masked weights whose code is the zero point."
        return (codes == grid.zero.repeat_interleave(codes.shape[1]//grid.zero.shape[1], 1))[~mask].float().mean().item()

    def tiny(kind="Llama", **options):
        torch.manual_seed(0)
        sizes = dict(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        if kind == "GPT-2": return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4)).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**sizes | options, num_key_value_heads=2)).eval()

    def some_ids(): return [torch.randint(0, 96, (4, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]

    def logits(model):
        with torch.no_grad(): return model(some_ids()[0]).logits

    def embedded(documents=12, size=1500):
        "The embedded model, part of the validation text to calibrate on, and part of the test text to measure on."
        model, tokenizer = pretrained()
        valid, test = ([text[:size] for text in corpus(split).values()][:documents] for split in ("valid", "test"))
        return model, [b.inputs for b in batches(valid, tokenizer, 256, 256)], batches(test, tokenizer, 256, 256)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/31_grid.ipynb #0a4c095f
    class Killed(Exception): pass

    def at_call(n):
        "A hook that breaks off at the n-th call."
        calls = []
        def hook(*_):
            calls.append(1)
            if len(calls) == n: raise Killed
        return hook

    # %% ../nbs/31_grid.ipynb #d29f038e
    model = tiny()
    print(refusal(SettingError, quantize, model, some_ids(), 4, 48))
    print(refusal(SettingError, quantize, model))
    print(refusal(SettingError, quantize, model, method="awq"))
    done = quantize(tiny(), bits=4, group=32, method="rtn", layers=[1])
    print(refusal(SettingError, quantize, done, group=32, method="rtn"))
    model.model.layers[1].mlp.up_proj.weight.data[3, 4] = math.inf
    print(refusal(PathlmError, quantize, model, some_ids(), 4, 32))
    assert all(type(layer) is nn.Linear for layer in linears(model).values())


def test_a_whole_model_4():
    # %% ../nbs/31_grid.ipynb #a4364914
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/31_grid.ipynb #023c4030
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens, decades=2, seed=0):
        "The Gram matrix of inputs whose principal variances fall by `decades` powers of ten."
        Q = torch.linalg.qr(gaussian(in_, in_, seed + 1)).Q
        X = (Q * torch.logspace(0, -decades/2, in_) @ gaussian(in_, tokens, seed + 2)).double()
        return X @ X.T / tokens

    def kept(codes, grid, mask):
        "The share of masked weights whose code is the zero point."
        return (codes == grid.zero.repeat_interleave(codes.shape[1]//grid.zero.shape[1], 1))[~mask].float().mean().item()

    def tiny(kind="Llama", **options):
        torch.manual_seed(0)
        sizes = dict(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        if kind == "GPT-2": return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4)).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**sizes | options, num_key_value_heads=2)).eval()

    def some_ids(): return [torch.randint(0, 96, (4, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]

    def logits(model):
        with torch.no_grad(): return model(some_ids()[0]).logits

    def embedded(documents=12, size=1500):
        "The embedded model, part of the validation text to calibrate on, and part of the test text to measure on."
        model, tokenizer = pretrained()
        valid, test = ([text[:size] for text in corpus(split).values()][:documents] for split in ("valid", "test"))
        return model, [b.inputs for b in batches(valid, tokenizer, 256, 256)], batches(test, tokenizer, 256, 256)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/31_grid.ipynb #0a4c095f
    class Killed(Exception): pass

    def at_call(n):
        "A hook that breaks off at the n-th call."
        calls = []
        def hook(*_):
            calls.append(1)
            if len(calls) == n: raise Killed
        return hook

    # %% ../nbs/31_grid.ipynb #405360b7
    model = sparsify(tiny(), method="magnitude")
    twin = quantize(sparsify(tiny(), method="magnitude"), some_ids(), 4, 32)
    grids = grids_of(twin)
    assert len(grids) == 14 and all(torch.equal(a, b) for n, g in grids_of(rounding(model, grids)).items()
                                    for a, b in zip(g[:2], grids[n][:2], strict=True))
    before, masks = logits(model), {n: layer.mask for n, layer in linears(model).items()}
    merge(model)
    assert torch.equal(logits(model), before)
    for name, layer in linears(model).items():
        assert type(layer) is GridLinear and kept(layer.codes(), grids[name], masks[name]) == 1
    assert torch.equal(logits(unmerge(model)), before) and type(linears(model)[name]) is RoundingLinear
    print(refusal(SettingError, rounding, tiny(), {n: g._replace(scale=g.scale[1:]) for n, g in grids.items()}))
    print(refusal(SettingError, rounding, tiny(), {}))


def test_a_whole_model_5():
    # %% ../nbs/31_grid.ipynb #a4364914
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/31_grid.ipynb #023c4030
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens, decades=2, seed=0):
        "The Gram matrix of inputs whose principal variances fall by `decades` powers of ten."
        Q = torch.linalg.qr(gaussian(in_, in_, seed + 1)).Q
        X = (Q * torch.logspace(0, -decades/2, in_) @ gaussian(in_, tokens, seed + 2)).double()
        return X @ X.T / tokens

    def kept(codes, grid, mask):
        "The share of masked weights whose code is the zero point."
        return (codes == grid.zero.repeat_interleave(codes.shape[1]//grid.zero.shape[1], 1))[~mask].float().mean().item()

    def tiny(kind="Llama", **options):
        torch.manual_seed(0)
        sizes = dict(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        if kind == "GPT-2": return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4)).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**sizes | options, num_key_value_heads=2)).eval()

    def some_ids(): return [torch.randint(0, 96, (4, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]

    def logits(model):
        with torch.no_grad(): return model(some_ids()[0]).logits

    def embedded(documents=12, size=1500):
        "The embedded model, part of the validation text to calibrate on, and part of the test text to measure on."
        model, tokenizer = pretrained()
        valid, test = ([text[:size] for text in corpus(split).values()][:documents] for split in ("valid", "test"))
        return model, [b.inputs for b in batches(valid, tokenizer, 256, 256)], batches(test, tokenizer, 256, 256)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/31_grid.ipynb #0a4c095f
    class Killed(Exception): pass

    def at_call(n):
        "A hook that breaks off at the n-th call."
        calls = []
        def hook(*_):
            calls.append(1)
            if len(calls) == n: raise Killed
        return hook

    # %% ../nbs/31_grid.ipynb #f1696c6b
    model = densify(rounding(tiny(), group=32))
    before = list(linears(model).values())
    assert "call unmerge or bake" in refusal(SettingError, rounding, model, group=32)
    assert list(linears(model).values()) == before


def test_a_layer_s_weight():
    # %% ../nbs/31_grid.ipynb #a4364914
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/31_grid.ipynb #023c4030
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens, decades=2, seed=0):
        "The Gram matrix of inputs whose principal variances fall by `decades` powers of ten."
        Q = torch.linalg.qr(gaussian(in_, in_, seed + 1)).Q
        X = (Q * torch.logspace(0, -decades/2, in_) @ gaussian(in_, tokens, seed + 2)).double()
        return X @ X.T / tokens

    def kept(codes, grid, mask):
        "The share of masked weights whose code is the zero point."
        return (codes == grid.zero.repeat_interleave(codes.shape[1]//grid.zero.shape[1], 1))[~mask].float().mean().item()

    def tiny(kind="Llama", **options):
        torch.manual_seed(0)
        sizes = dict(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        if kind == "GPT-2": return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4)).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**sizes | options, num_key_value_heads=2)).eval()

    def some_ids(): return [torch.randint(0, 96, (4, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]

    def logits(model):
        with torch.no_grad(): return model(some_ids()[0]).logits

    def embedded(documents=12, size=1500):
        "The embedded model, part of the validation text to calibrate on, and part of the test text to measure on."
        model, tokenizer = pretrained()
        valid, test = ([text[:size] for text in corpus(split).values()][:documents] for split in ("valid", "test"))
        return model, [b.inputs for b in batches(valid, tokenizer, 256, 256)], batches(test, tokenizer, 256, 256)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/31_grid.ipynb #0a4c095f
    class Killed(Exception): pass

    def at_call(n):
        "A hook that breaks off at the n-th call."
        calls = []
        def hook(*_):
            calls.append(1)
            if len(calls) == n: raise Killed
        return hook

    # %% ../nbs/31_grid.ipynb #d806f45b
    torch.manual_seed(0)
    sizes = dict(vocab_size=96, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    for dtype in torch.float32, torch.bfloat16:
        model = quantize(tf.T5ForConditionalGeneration(tf.T5Config(**sizes)).eval(), None, 4, 32, method="rtn", target="wo")
        layer = model.to(dtype).encoder.block[0].layer[1].DenseReluDense.wo
        y = model(input_ids=some_ids()[0], decoder_input_ids=some_ids()[1]).logits
        dense = densify(copy.deepcopy(model))(input_ids=some_ids()[0], decoder_input_ids=some_ids()[1]).logits
        assert type(layer) is GridLinear and y.dtype == dtype and torch.equal(y, dense)
        assert torch.equal(layer.weight, layer.effective_weight()) and layer.weight.dtype == dtype
        assert torch.equal(AdaptedLinear(layer).weight, layer.weight)
        assert not {"weight"} & {*layer.state_dict(), *dict(layer.named_parameters()), *dict(layer.named_buffers())}
        refusal(AttributeError, setattr, layer, "weight", y)


def test_a_file_that_others_read():
    # %% ../nbs/31_grid.ipynb #a4364914
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/31_grid.ipynb #023c4030
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens, decades=2, seed=0):
        "The Gram matrix of inputs whose principal variances fall by `decades` powers of ten."
        Q = torch.linalg.qr(gaussian(in_, in_, seed + 1)).Q
        X = (Q * torch.logspace(0, -decades/2, in_) @ gaussian(in_, tokens, seed + 2)).double()
        return X @ X.T / tokens

    def kept(codes, grid, mask):
        "The share of masked weights whose code is the zero point."
        return (codes == grid.zero.repeat_interleave(codes.shape[1]//grid.zero.shape[1], 1))[~mask].float().mean().item()

    def tiny(kind="Llama", **options):
        torch.manual_seed(0)
        sizes = dict(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        if kind == "GPT-2": return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4)).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**sizes | options, num_key_value_heads=2)).eval()

    def some_ids(): return [torch.randint(0, 96, (4, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]

    def logits(model):
        with torch.no_grad(): return model(some_ids()[0]).logits

    def embedded(documents=12, size=1500):
        "The embedded model, part of the validation text to calibrate on, and part of the test text to measure on."
        model, tokenizer = pretrained()
        valid, test = ([text[:size] for text in corpus(split).values()][:documents] for split in ("valid", "test"))
        return model, [b.inputs for b in batches(valid, tokenizer, 256, 256)], batches(test, tokenizer, 256, 256)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/31_grid.ipynb #8bef1c44
    def reloaded(model):
        "Save, load with stock transformers, compare logits and weights."
        with tempfile.TemporaryDirectory() as d:
            save_compressed(model, None, d)
            other = tf.AutoModelForCausalLM.from_pretrained(d)
            names = sorted(p.name for p in Path(d).iterdir())
        assert names == ["config.json", "generation_config.json", "model.safetensors"] and other.dtype == model.dtype
        close = 1e-5 if model.dtype == torch.float32 else 2e-2
        torch.testing.assert_close(logits(other), logits(model), rtol=close, atol=close)
        for name, layer in gridded(model).items():
            assert torch.equal(other.get_submodule(name).weight, layer.effective_weight())

    # %% ../nbs/31_grid.ipynb #4bb17876
    if find_spec("compressed_tensors"):
        biased = {"attention_bias": True, "mlp_bias": True}
        for bits, group, symmetric, options in (4, 32, True, {}), (3, 16, False, biased), (2, 8, True, biased), \
                                               (8, None, True, {"tie_word_embeddings": True}), (4, None, False, {}):
            model = tiny(**options)
            for name, p in model.named_parameters():
                if name.endswith("bias"): torch.nn.init.normal_(p)
            reloaded(quantize(model, some_ids(), bits, group, symmetric))
        model = quantize(tiny(), some_ids(), 4, 32, layers=[0])
        reloaded(quantize(model, some_ids(), 3, 16, target=["up_proj"], layers=[1]))
        for symmetric in True, False: reloaded(quantize(tiny().half(), None, 4, 32, symmetric, "rtn"))


def test_a_file_that_others_read_2():
    # %% ../nbs/31_grid.ipynb #a4364914
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/31_grid.ipynb #023c4030
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens, decades=2, seed=0):
        "The Gram matrix of inputs whose principal variances fall by `decades` powers of ten."
        Q = torch.linalg.qr(gaussian(in_, in_, seed + 1)).Q
        X = (Q * torch.logspace(0, -decades/2, in_) @ gaussian(in_, tokens, seed + 2)).double()
        return X @ X.T / tokens

    def kept(codes, grid, mask):
        "The share of masked weights whose code is the zero point."
        return (codes == grid.zero.repeat_interleave(codes.shape[1]//grid.zero.shape[1], 1))[~mask].float().mean().item()

    def tiny(kind="Llama", **options):
        torch.manual_seed(0)
        sizes = dict(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        if kind == "GPT-2": return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4)).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**sizes | options, num_key_value_heads=2)).eval()

    def some_ids(): return [torch.randint(0, 96, (4, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]

    def logits(model):
        with torch.no_grad(): return model(some_ids()[0]).logits

    def embedded(documents=12, size=1500):
        "The embedded model, part of the validation text to calibrate on, and part of the test text to measure on."
        model, tokenizer = pretrained()
        valid, test = ([text[:size] for text in corpus(split).values()][:documents] for split in ("valid", "test"))
        return model, [b.inputs for b in batches(valid, tokenizer, 256, 256)], batches(test, tokenizer, 256, 256)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/31_grid.ipynb #8bef1c44
    def reloaded(model):
        "Save, load with stock transformers, compare logits and weights."
        with tempfile.TemporaryDirectory() as d:
            save_compressed(model, None, d)
            other = tf.AutoModelForCausalLM.from_pretrained(d)
            names = sorted(p.name for p in Path(d).iterdir())
        assert names == ["config.json", "generation_config.json", "model.safetensors"] and other.dtype == model.dtype
        close = 1e-5 if model.dtype == torch.float32 else 2e-2
        torch.testing.assert_close(logits(other), logits(model), rtol=close, atol=close)
        for name, layer in gridded(model).items():
            assert torch.equal(other.get_submodule(name).weight, layer.effective_weight())

    # %% ../nbs/31_grid.ipynb #763ca5e1
    model = quantize(sparsify(tiny(), method="magnitude"), some_ids(), 4, 32)
    stored = compressed_state(model)
    own = "weight_packed", "weight_scale", "weight_shape"
    bytes_of = {k: stored[f"model.layers.0.mlp.up_proj.{k}"].nbytes for k in own}
    print(bytes_of)
    assert 8*(sum(bytes_of.values()) - 16) == 64*32*grid_bits(4, 32, True)
    assert not any(k.endswith("zero_point") for k in stored) and "model.embed_tokens.weight" in stored
    mixed = quantize(quantize(tiny(), bits=4, group=32, symmetric=False, method="rtn", layers=[0]), bits=3, group=32,
                     method="rtn", layers=[1])
    for bad in tiny(), mixed, quantize(tiny("GPT-2"), bits=4, group=32, method="rtn"), sparsify(tiny(), method="magnitude"):
        with tempfile.TemporaryDirectory() as d:
            print(refusal(SettingError, save_compressed, bad, None, f"{d}/new"))
            assert not Path(f"{d}/new").exists()
