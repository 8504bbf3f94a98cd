from pathlm.shiftadd.layer import *
import math
import warnings
from functools import partial
from pathlib import Path
import torch
from pathlm.base import CheckpointError
from pathlm.base import MergeError
from pathlm.base import SettingError
from pathlm.base import UnknownModuleError
from pathlm.linear import linears
from pathlm.objectives import inverse_root
from pathlm.shiftadd.bcq import assign
from pathlm.shiftadd.bcq import inside
from pathlm.shiftadd.bcq import levels
from pathlm.shiftadd.bcq import tiles
import copy
import tempfile
import transformers as tf
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from safetensors.torch import save_file
from pathlm.adapters.core import attach
from pathlm.adapters.lora import LoRA
from pathlm.adapters.svft import SVFT
from pathlm.adapters.vblora import VBLoRA
from pathlm.base import NonFiniteError
from pathlm.linear import densify
from pathlm.linear import merge
from pathlm.objectives import output_error
from pathlm.objectives import ridge
from pathlm.objectives import weight_error
from pathlm.rotation import RotatedLinear
from pathlm.rotation import rotation
from pathlm.rotation import turn_back
from pathlm.rotation import turn_gram
from pathlm.rotation import turn_weight
from pathlm.shiftadd.bcq import alternate
from pathlm.shiftadd.bcq import values


def test_a_shift_is_an_addition_to_the_exponent():
    # %% ../nbs/41_shiftadd.ipynb #bb2d4f18
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/41_shiftadd.ipynb #3e260ede
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens=2048, outliers=0, seed=0):
        "Inputs (in, tokens) that are mixtures of each other, a few of them fifteen times as large."
        X = gaussian(in_, in_, seed + 1)/in_**.5 @ gaussian(in_, tokens, seed + 2) + .5*gaussian(in_, tokens, seed + 3)
        X[torch.arange(outliers)*in_//max(outliers, 1)] *= 15
        return X

    def relative(W, What, X):
        "The output error on inputs, as a share of the outputs, both as norms."
        return (torch.linalg.norm((W - What) @ X)/torch.linalg.norm(W @ X)).item()

    def packed(shape, bits=3, kind="ladder", block=(1, 128), terms=3, bias=False, seed=0):
        "A layer of random weights."
        codes, scales = fit_weight(gaussian(*shape, seed), bits, kind, block, True, terms)
        return ShiftAddLinear(codes, scales, gaussian(1, shape[0])[0] if bias else None)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError("it went through")

    # %% ../nbs/41_shiftadd.ipynb #ab3a7dfe
    def field_add(x, p):
        return (torch.tensor(x, dtype=torch.float16).view(torch.int16) + (p << 10)).view(torch.float16).item()

    for x, p in (1.5, -3), (0., -5), (1e-3, -7), (30000., 3):
        print(f"{x:g} · 2^{p}: {field_add(x, p):g}, expected {x*2**p:g}")

    # %% ../nbs/41_shiftadd.ipynb #273af891
    def same_bits(a, b, integer): return ((a.view(integer) == b.view(integer)) | b.isnan() & a.isnan()).all()

    # %% ../nbs/41_shiftadd.ipynb #8e55bd77
    for dtype in torch.float16, torch.bfloat16:
        x = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
        for p in [*range(-50, 51), -300, -260, -140, -127, 127, 140, 260, 300]:
            assert same_bits(shift(x, p), (x.double()*2.**p).to(dtype), torch.int16), p
        assert torch.equal(shift(x, 3).view(torch.int16)[x.isnan()], x.view(torch.int16)[x.isnan()])  # Payloads too


def test_a_shift_is_an_addition_to_the_exponent_2():
    # %% ../nbs/41_shiftadd.ipynb #bb2d4f18
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/41_shiftadd.ipynb #3e260ede
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens=2048, outliers=0, seed=0):
        "Inputs (in, tokens) that are mixtures of each other, a few of them fifteen times as large."
        X = gaussian(in_, in_, seed + 1)/in_**.5 @ gaussian(in_, tokens, seed + 2) + .5*gaussian(in_, tokens, seed + 3)
        X[torch.arange(outliers)*in_//max(outliers, 1)] *= 15
        return X

    def relative(W, What, X):
        "The output error on inputs, as a share of the outputs, both as norms."
        return (torch.linalg.norm((W - What) @ X)/torch.linalg.norm(W @ X)).item()

    def packed(shape, bits=3, kind="ladder", block=(1, 128), terms=3, bias=False, seed=0):
        "A layer of random weights."
        codes, scales = fit_weight(gaussian(*shape, seed), bits, kind, block, True, terms)
        return ShiftAddLinear(codes, scales, gaussian(1, shape[0])[0] if bias else None)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError("it went through")

    # %% ../nbs/41_shiftadd.ipynb #ab3a7dfe
    def field_add(x, p):
        return (torch.tensor(x, dtype=torch.float16).view(torch.int16) + (p << 10)).view(torch.float16).item()

    for x, p in (1.5, -3), (0., -5), (1e-3, -7), (30000., 3):
        print(f"{x:g} · 2^{p}: {field_add(x, p):g}, expected {x*2**p:g}")

    # %% ../nbs/41_shiftadd.ipynb #273af891
    def same_bits(a, b, integer): return ((a.view(integer) == b.view(integer)) | b.isnan() & a.isnan()).all()

    # %% ../nbs/41_shiftadd.ipynb #8aa490aa
    @given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=20), st.integers(-300, 300))
    @settings(deadline=None, max_examples=100, derandomize=True)
    def a_shift_is_a_product(xs, p):
        x = torch.tensor(xs, dtype=torch.float32)
        assert same_bits(shift(x, p), (x.double()*2.**p).float(), torch.int32)

    a_shift_is_a_product()
    x = torch.randint(-2**31, 2**31 - 1, (10**5,), generator=torch.Generator().manual_seed(0)).int().view(torch.float32)
    p = torch.randint(-280, 280, (10**5,), generator=torch.Generator().manual_seed(1)).int()
    assert same_bits(shift(x, p), torch.ldexp(x.double(), p).float(), torch.int32)
    assert [str(v) for v in shift(torch.tensor([0., -0., math.inf, -math.inf, math.nan]), -5).tolist()] == \
        ["0.0", "-0.0", "inf", "-inf", "nan"]
    assert shift(torch.ones(2), torch.tensor([2**31 - 1, -2**31])).tolist() == [math.inf, 0]
    print(refusal(SettingError, shift, torch.ones(2).double(), 1))
    print(refusal(SettingError, shift, torch.ones(2), .5))


def test_sums_of_powers():
    # %% ../nbs/41_shiftadd.ipynb #bb2d4f18
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/41_shiftadd.ipynb #3e260ede
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens=2048, outliers=0, seed=0):
        "Inputs (in, tokens) that are mixtures of each other, a few of them fifteen times as large."
        X = gaussian(in_, in_, seed + 1)/in_**.5 @ gaussian(in_, tokens, seed + 2) + .5*gaussian(in_, tokens, seed + 3)
        X[torch.arange(outliers)*in_//max(outliers, 1)] *= 15
        return X

    def relative(W, What, X):
        "The output error on inputs, as a share of the outputs, both as norms."
        return (torch.linalg.norm((W - What) @ X)/torch.linalg.norm(W @ X)).item()

    def packed(shape, bits=3, kind="ladder", block=(1, 128), terms=3, bias=False, seed=0):
        "A layer of random weights."
        codes, scales = fit_weight(gaussian(*shape, seed), bits, kind, block, True, terms)
        return ShiftAddLinear(codes, scales, gaussian(1, shape[0])[0] if bias else None)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError("it went through")

    # %% ../nbs/41_shiftadd.ipynb #93e78277
    def by_logarithm(alpha, terms):
        "Round to signed powers of two as published."
        total = torch.zeros_like(alpha)
        for _ in range(terms):
            left = alpha - total
            total = total + torch.where(left == 0, 0, left.sign()*2**left.abs().log2().round())
        return total

    # %% ../nbs/41_shiftadd.ipynb #4479b9a2
    alpha = torch.exp2(torch.linspace(-3, 3, 100_001))
    for K in 1, 2, 3, 4:
        ours, theirs = (((a - alpha)/alpha).abs() for a in (term_values(terms_of(alpha, K)).sum(0), by_logarithm(alpha, K)))
        print(f"K = {K}: relative error mean {ours.mean():6.2%}, most {ours.max():6.2%}; "
          f"by the logarithm {theirs.mean():6.2%}, {theirs.max():6.2%}")
        assert .99 < ours.max()*(2**(2*K + 1) + 1)/3 < 1 + 1e-5 and theirs.max() > 1.15*ours.max()


def test_sums_of_powers_2():
    # %% ../nbs/41_shiftadd.ipynb #bb2d4f18
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/41_shiftadd.ipynb #3e260ede
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens=2048, outliers=0, seed=0):
        "Inputs (in, tokens) that are mixtures of each other, a few of them fifteen times as large."
        X = gaussian(in_, in_, seed + 1)/in_**.5 @ gaussian(in_, tokens, seed + 2) + .5*gaussian(in_, tokens, seed + 3)
        X[torch.arange(outliers)*in_//max(outliers, 1)] *= 15
        return X

    def relative(W, What, X):
        "The output error on inputs, as a share of the outputs, both as norms."
        return (torch.linalg.norm((W - What) @ X)/torch.linalg.norm(W @ X)).item()

    def packed(shape, bits=3, kind="ladder", block=(1, 128), terms=3, bias=False, seed=0):
        "A layer of random weights."
        codes, scales = fit_weight(gaussian(*shape, seed), bits, kind, block, True, terms)
        return ShiftAddLinear(codes, scales, gaussian(1, shape[0])[0] if bias else None)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError("it went through")

    # %% ../nbs/41_shiftadd.ipynb #93e78277
    def by_logarithm(alpha, terms):
        "Round to signed powers of two as published."
        total = torch.zeros_like(alpha)
        for _ in range(terms):
            left = alpha - total
            total = total + torch.where(left == 0, 0, left.sign()*2**left.abs().log2().round())
        return total

    # %% ../nbs/41_shiftadd.ipynb #07370773
    @given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=9), st.integers(1, 4))
    @settings(deadline=None, max_examples=100, derandomize=True)
    def rounding_to_terms_is_a_projection(xs, K):
        once = term_values(terms_of(torch.tensor(xs), K)).sum(0)
        assert torch.equal(term_values(terms_of(once, K)).sum(0), once)

    rounding_to_terms_is_a_projection()
    assert term_values(torch.arange(256).to(torch.uint8)).unique().numel() == 2*127 + 1
    assert term_values(terms_of(torch.tensor([0., 1e-30, 2.**-63, -3.]), 2)).sum(0).tolist() == [0, 0, 2.**-63, -3]


def test_one_power_each_by_trying_all():
    # %% ../nbs/41_shiftadd.ipynb #bb2d4f18
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/41_shiftadd.ipynb #3e260ede
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens=2048, outliers=0, seed=0):
        "Inputs (in, tokens) that are mixtures of each other, a few of them fifteen times as large."
        X = gaussian(in_, in_, seed + 1)/in_**.5 @ gaussian(in_, tokens, seed + 2) + .5*gaussian(in_, tokens, seed + 3)
        X[torch.arange(outliers)*in_//max(outliers, 1)] *= 15
        return X

    def relative(W, What, X):
        "The output error on inputs, as a share of the outputs, both as norms."
        return (torch.linalg.norm((W - What) @ X)/torch.linalg.norm(W @ X)).item()

    def packed(shape, bits=3, kind="ladder", block=(1, 128), terms=3, bias=False, seed=0):
        "A layer of random weights."
        codes, scales = fit_weight(gaussian(*shape, seed), bits, kind, block, True, terms)
        return ShiftAddLinear(codes, scales, gaussian(1, shape[0])[0] if bias else None)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError("it went through")

    # %% ../nbs/41_shiftadd.ipynb #93e78277
    def by_logarithm(alpha, terms):
        "Round to signed powers of two as published."
        total = torch.zeros_like(alpha)
        for _ in range(terms):
            left = alpha - total
            total = total + torch.where(left == 0, 0, left.sign()*2**left.abs().log2().round())
        return total

    # %% ../nbs/41_shiftadd.ipynb #cefb4826
    def brute(w, alpha): return (w[..., None] - (alpha*torch.cartesian_prod(*[torch.tensor([-1., 1.])]*alpha.shape[-1]
        ).view(-1, alpha.shape[-1])).sum(-1)).abs().amin(-1)

    @given(st.lists(st.integers(-6, 3), min_size=1, max_size=4), st.integers(0, 99))
    @settings(deadline=None, max_examples=50, derandomize=True)
    def folding_finds_the_nearest_level(ps, seed):
        alpha, x = 2.**torch.tensor(sorted(ps, reverse=True)), 12*gaussian(1, 50, seed)[0]
        left = x
        for a in alpha: left = left.abs() - a
        torch.testing.assert_close(left.abs(), brute(x, alpha))

    @given(st.integers(1, 16), st.integers(1, 3), st.integers(0, 999), st.booleans(), st.booleans())
    @settings(deadline=None, max_examples=40, derandomize=True)
    def no_power_is_better(g, bits, seed, uneven, priced):
        w = gaussian(1, g, seed) * (torch.logspace(0, -3, g) if uneven else 1)
        d = torch.logspace(-2, 0, g)[None] if priced else torch.ones(1, g)
        e = math.frexp(w.abs().max())[1]
        every = torch.combinations(2.**torch.arange(e + 2, e - 13, -1), bits, with_replacement=True)
        least = min((d*brute(w[0], a).square()).sum() for a in every)
        ours = (d*brute(w[0], fit_power(w, bits, d if priced else None)[0]).square()).sum()
        assert ours <= least*(1 + 1e-5) + 2**-10*(d*w.square()).max()

    folding_finds_the_nearest_level()
    no_power_is_better()
    for bits in 1, 2, 3, 4:
        for w in torch.zeros(2, 5), torch.full((2, 4), 1e-30), torch.ones(3, 1), torch.full((2, 4), -.75):
            alpha = fit_power(w, bits)
            assert ((alpha == 0) | (torch.frexp(alpha)[0] == .5)).all() and (alpha.diff(dim=1) <= 0).all()
            error = (w - values(alpha, assign(w, alpha))).abs().max()
            assert error <= (w.abs().max() if bits == 1 or w.abs().max() < 1e-20 else 2.**-7)*(w.abs().max() > 0)


def test_a_ladder():
    # %% ../nbs/41_shiftadd.ipynb #bb2d4f18
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/41_shiftadd.ipynb #3e260ede
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens=2048, outliers=0, seed=0):
        "Inputs (in, tokens) that are mixtures of each other, a few of them fifteen times as large."
        X = gaussian(in_, in_, seed + 1)/in_**.5 @ gaussian(in_, tokens, seed + 2) + .5*gaussian(in_, tokens, seed + 3)
        X[torch.arange(outliers)*in_//max(outliers, 1)] *= 15
        return X

    def relative(W, What, X):
        "The output error on inputs, as a share of the outputs, both as norms."
        return (torch.linalg.norm((W - What) @ X)/torch.linalg.norm(W @ X)).item()

    def packed(shape, bits=3, kind="ladder", block=(1, 128), terms=3, bias=False, seed=0):
        "A layer of random weights."
        codes, scales = fit_weight(gaussian(*shape, seed), bits, kind, block, True, terms)
        return ShiftAddLinear(codes, scales, gaussian(1, shape[0])[0] if bias else None)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError("it went through")

    # %% ../nbs/41_shiftadd.ipynb #93e78277
    def by_logarithm(alpha, terms):
        "Round to signed powers of two as published."
        total = torch.zeros_like(alpha)
        for _ in range(terms):
            left = alpha - total
            total = total + torch.where(left == 0, 0, left.sign()*2**left.abs().log2().round())
        return total

    # %% ../nbs/41_shiftadd.ipynb #8115e923
    for bits in 1, 2, 3, 4:
        upper = odd(torch.linspace(0, 3, 4001)[None], torch.ones(1, 1), bits).unique().tolist()
        assert upper == [k/2**(bits - 1) for k in range(1, 2**bits, 2)]
        w = gaussian(50, 128) * torch.exp(gaussian(50, 1, 1))
        alpha = fit_ladder(w, bits)
        fine = torch.full((50,), math.inf)
        for s in torch.linspace(.02, 1, 1000):
            s = s*w.abs().amax(1, keepdim=True)
            fine = torch.minimum(fine, (w.abs() - s*odd(w.abs(), s, bits)).square().sum(1))
        ours = (w - values(alpha, assign(w, alpha))).square().sum(1)
        assert ours.sum() < 1.004*fine.sum() and torch.equal(alpha[:, :1].bfloat16().float(), alpha[:, :1])
    for w in torch.zeros(2, 5), torch.ones(3, 1), torch.full((2, 4), 1e-30):
        alpha = fit_ladder(w, 3)
        assert alpha.isfinite().all() and (w - values(alpha, assign(w, alpha))).abs().max() <= .01*w.abs().max() + 2.**-99


def test_what_each_kind_costs():
    # %% ../nbs/41_shiftadd.ipynb #bb2d4f18
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/41_shiftadd.ipynb #3e260ede
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens=2048, outliers=0, seed=0):
        "Inputs (in, tokens) that are mixtures of each other, a few of them fifteen times as large."
        X = gaussian(in_, in_, seed + 1)/in_**.5 @ gaussian(in_, tokens, seed + 2) + .5*gaussian(in_, tokens, seed + 3)
        X[torch.arange(outliers)*in_//max(outliers, 1)] *= 15
        return X

    def relative(W, What, X):
        "The output error on inputs, as a share of the outputs, both as norms."
        return (torch.linalg.norm((W - What) @ X)/torch.linalg.norm(W @ X)).item()

    def packed(shape, bits=3, kind="ladder", block=(1, 128), terms=3, bias=False, seed=0):
        "A layer of random weights."
        codes, scales = fit_weight(gaussian(*shape, seed), bits, kind, block, True, terms)
        return ShiftAddLinear(codes, scales, gaussian(1, shape[0])[0] if bias else None)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError("it went through")

    # %% ../nbs/41_shiftadd.ipynb #93e78277
    def by_logarithm(alpha, terms):
        "Round to signed powers of two as published."
        total = torch.zeros_like(alpha)
        for _ in range(terms):
            left = alpha - total
            total = total + torch.where(left == 0, 0, left.sign()*2**left.abs().log2().round())
        return total

    # %% ../nbs/41_shiftadd.ipynb #ad4d503c
    w = gaussian(1024, 128) * torch.exp(gaussian(1024, 1, 1))
    def in_loop(K): return lambda w, bits: alternate(w, bits, rounding=lambda a: by_logarithm(a, K))[0]

    def afterwards(K): return lambda w, bits: term_values(terms_of(alternate(w, bits)[0], K)).sum(0)

    rows = {"float": ("float", 3, fit_float), "sum, K = 3": ("sum", 3, fit_sum),
            "sum, K = 2": ("sum", 2, partial(fit_sum, terms=2)),
            "power, all tried": ("power", 1, fit_power), "power, rounded after": ("power", 1, partial(fit_sum, terms=1)),
            "ladder": ("ladder", 1, fit_ladder)}
    rows |= {f"published, K = {K}": ("sum", K, in_loop(K)) for K in (3, 2, 1)}
    rows |= {f"same start, after, {K}": ("sum", K, afterwards(K)) for K in (3, 2, 1)}
    found = {}
    for name, (kind, K, fit) in rows.items():
        for bits in 2, 3, 4:
            alpha = fit(w, bits)
            found[name, bits] = (weight_error(w, values(alpha, assign(w, alpha)))/w.square().sum()).sqrt().item()
        cells = "".join(f"{found[name, b]:8.3f} at {true_bits(b, kind, (1, 128), K):.2f}" for b in (2, 3, 4))
        print(f"{name:21}{cells}")
    for b in 2, 3, 4:
        ours = {1: "power, all tried", 2: "sum, K = 2", 3: "sum, K = 3"}
        assert all(found[f"published, K = {K}", b] > found[ours[K], b] for K in (1, 2, 3))
        assert all(found[f"same start, after, {K}", b] < found[f"published, K = {K}", b] for K in (2, 3))
        assert found["sum, K = 3", b] < 1.02*found["float", b] and found["ladder", b] < 1.04*found["float", b]
        assert found["power, all tried", b] < found["power, rounded after", b]


def test_blocks():
    # %% ../nbs/41_shiftadd.ipynb #bb2d4f18
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/41_shiftadd.ipynb #3e260ede
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens=2048, outliers=0, seed=0):
        "Inputs (in, tokens) that are mixtures of each other, a few of them fifteen times as large."
        X = gaussian(in_, in_, seed + 1)/in_**.5 @ gaussian(in_, tokens, seed + 2) + .5*gaussian(in_, tokens, seed + 3)
        X[torch.arange(outliers)*in_//max(outliers, 1)] *= 15
        return X

    def relative(W, What, X):
        "The output error on inputs, as a share of the outputs, both as norms."
        return (torch.linalg.norm((W - What) @ X)/torch.linalg.norm(W @ X)).item()

    def packed(shape, bits=3, kind="ladder", block=(1, 128), terms=3, bias=False, seed=0):
        "A layer of random weights."
        codes, scales = fit_weight(gaussian(*shape, seed), bits, kind, block, True, terms)
        return ShiftAddLinear(codes, scales, gaussian(1, shape[0])[0] if bias else None)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError("it went through")

    # %% ../nbs/41_shiftadd.ipynb #a35be51c
    for shape, block, pad in ((6, 256), (1, 128), False), ((5, 300), (2, 128), True), ((1, 1), (1, 1), False), \
                             ((24, 7), (None, 1), False), ((24, 20), (3, 8), True), ((8, 16), (None, None), False):
        W = gaussian(*shape)
        for kind in KINDS:
            for bits in 1, 2, 3, 4:
                codes, scales = fit_weight(W, bits, kind, block, pad)
                R, C = (-(-n//(b or n)) for n, b in zip(shape, block, strict=True))
                alpha = scales.alpha()
                assert alpha.shape == (bits, R, C) and codes.dtype == torch.uint8 and codes.max() < 2**bits
                assert scales.kind == kind or bits == 1 and kind == "ladder"
                (r, c), K = scales.block, 1 if kind == "power" else 3
                d = inside(shape, scales.block)
                first = fitted(tiles(W, scales.block), bits, kind, d, K).T.unflatten(1, (R, C))
                assert torch.equal(alpha, first) and torch.equal(stored(first, kind, (r, c)).alpha(), first)
                every = levels(alpha.flatten(1).T).unflatten(0, (R, C))
                mine = every[torch.arange(shape[0])[:, None]//scales.block[0], torch.arange(shape[1])//scales.block[1]]
                least = (W[..., None] - mine).abs().amin(-1)
                torch.testing.assert_close((W - decoded(codes, scales)).abs(), least, rtol=1e-4, atol=1e-6)
    print(refusal(SettingError, fit_weight, W, 5))
    print(refusal(SettingError, fit_weight, W, 3, "ladders"))
    print(refusal(SettingError, fit_weight, W, 3, name="q_proj"))
    print(refusal(NonFiniteError, fit_weight, torch.full((2, 128), math.nan), name="q_proj"))


def test_two_objectives_in_one():
    # %% ../nbs/41_shiftadd.ipynb #bb2d4f18
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/41_shiftadd.ipynb #3e260ede
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens=2048, outliers=0, seed=0):
        "Inputs (in, tokens) that are mixtures of each other, a few of them fifteen times as large."
        X = gaussian(in_, in_, seed + 1)/in_**.5 @ gaussian(in_, tokens, seed + 2) + .5*gaussian(in_, tokens, seed + 3)
        X[torch.arange(outliers)*in_//max(outliers, 1)] *= 15
        return X

    def relative(W, What, X):
        "The output error on inputs, as a share of the outputs, both as norms."
        return (torch.linalg.norm((W - What) @ X)/torch.linalg.norm(W @ X)).item()

    def packed(shape, bits=3, kind="ladder", block=(1, 128), terms=3, bias=False, seed=0):
        "A layer of random weights."
        codes, scales = fit_weight(gaussian(*shape, seed), bits, kind, block, True, terms)
        return ShiftAddLinear(codes, scales, gaussian(1, shape[0])[0] if bias else None)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError("it went through")

    # %% ../nbs/41_shiftadd.ipynb #545d9c24
    d = torch.tensor([1., 1, 5, 0, 2, 2, 9])
    assert by_energy(torch.diag(d), 2).tolist() == [2, 3, 4, 5, 0, 1, 6]  # A block that is not full stays last
    assert by_energy(torch.diag(d), 1).tolist() == [6, 2, 4, 5, 0, 1, 3]


def test_two_objectives_in_one_2():
    # %% ../nbs/41_shiftadd.ipynb #bb2d4f18
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/41_shiftadd.ipynb #3e260ede
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens=2048, outliers=0, seed=0):
        "Inputs (in, tokens) that are mixtures of each other, a few of them fifteen times as large."
        X = gaussian(in_, in_, seed + 1)/in_**.5 @ gaussian(in_, tokens, seed + 2) + .5*gaussian(in_, tokens, seed + 3)
        X[torch.arange(outliers)*in_//max(outliers, 1)] *= 15
        return X

    def relative(W, What, X):
        "The output error on inputs, as a share of the outputs, both as norms."
        return (torch.linalg.norm((W - What) @ X)/torch.linalg.norm(W @ X)).item()

    def packed(shape, bits=3, kind="ladder", block=(1, 128), terms=3, bias=False, seed=0):
        "A layer of random weights."
        codes, scales = fit_weight(gaussian(*shape, seed), bits, kind, block, True, terms)
        return ShiftAddLinear(codes, scales, gaussian(1, shape[0])[0] if bias else None)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError("it went through")

    # %% ../nbs/41_shiftadd.ipynb #129cb97d
    def plainly(W, G, bits, fit, block, damp=.01, priced=True):
        "The loop of `fit_output`, written out."
        (out, in_), c = W.shape, block[1]
        r, order = block[0] or out, by_energy(G, c)
        U = inverse_root(G, damp, order=order)
        T, Q = W[:, order].double(), torch.zeros(out, in_).double()
        for j in range(in_):
            if j % c == 0:
                own, prices = T[:, j:j + c].float(), (U.diagonal()[j:j + c]**-2).float()
                tile = (r, own.shape[1])
                d = tiles((prices if priced else torch.ones_like(prices)).expand(own.shape), tile)
                alpha = fit(tiles(own, tile), bits, d).repeat_interleave(r, 0)[:out]
            w = T[:, j:j + 1].float()
            Q[:, j] = values(alpha, assign(w, alpha))[:, 0]
            T[:, j:] -= torch.outer((T[:, j] - Q[:, j])/U[j, j], U[j, j:])
        return Q[:, order.argsort()].float()

    # %% ../nbs/41_shiftadd.ipynb #fd556391
    X = correlated(96, 400, outliers=2)
    G = X @ X.T
    for kind, block in ("ladder", (1, 32)), ("power", (2, 24)), ("float", (None, 1)), ("sum", (8, 8)), ("ladder", (3, 40)):
        W = gaussian(24, 96)
        ours, plain = decoded(*fit_output(W, G, 3, kind, block, pad=True)), plainly(W, G, 3, KINDS[kind], block)
        assert ((ours - plain).abs() > 1e-4).float().mean() < .02
        assert abs(output_error(W, ours, ridge(G))/output_error(W, plain, ridge(G)) - 1) < .02


def test_two_objectives_in_one_3():
    # %% ../nbs/41_shiftadd.ipynb #bb2d4f18
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/41_shiftadd.ipynb #3e260ede
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens=2048, outliers=0, seed=0):
        "Inputs (in, tokens) that are mixtures of each other, a few of them fifteen times as large."
        X = gaussian(in_, in_, seed + 1)/in_**.5 @ gaussian(in_, tokens, seed + 2) + .5*gaussian(in_, tokens, seed + 3)
        X[torch.arange(outliers)*in_//max(outliers, 1)] *= 15
        return X

    def relative(W, What, X):
        "The output error on inputs, as a share of the outputs, both as norms."
        return (torch.linalg.norm((W - What) @ X)/torch.linalg.norm(W @ X)).item()

    def packed(shape, bits=3, kind="ladder", block=(1, 128), terms=3, bias=False, seed=0):
        "A layer of random weights."
        codes, scales = fit_weight(gaussian(*shape, seed), bits, kind, block, True, terms)
        return ShiftAddLinear(codes, scales, gaussian(1, shape[0])[0] if bias else None)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError("it went through")

    # %% ../nbs/41_shiftadd.ipynb #129cb97d
    def plainly(W, G, bits, fit, block, damp=.01, priced=True):
        "The loop of `fit_output`, written out."
        (out, in_), c = W.shape, block[1]
        r, order = block[0] or out, by_energy(G, c)
        U = inverse_root(G, damp, order=order)
        T, Q = W[:, order].double(), torch.zeros(out, in_).double()
        for j in range(in_):
            if j % c == 0:
                own, prices = T[:, j:j + c].float(), (U.diagonal()[j:j + c]**-2).float()
                tile = (r, own.shape[1])
                d = tiles((prices if priced else torch.ones_like(prices)).expand(own.shape), tile)
                alpha = fit(tiles(own, tile), bits, d).repeat_interleave(r, 0)[:out]
            w = T[:, j:j + 1].float()
            Q[:, j] = values(alpha, assign(w, alpha))[:, 0]
            T[:, j:] -= torch.outer((T[:, j] - Q[:, j])/U[j, j], U[j, j:])
        return Q[:, order.argsort()].float()

    # %% ../nbs/41_shiftadd.ipynb #708743a7
    X = correlated(64, 300)
    X[::2] = 0
    G = X @ X.T
    for kind in KINDS:
        plain = relative(W := gaussian(8, 64), decoded(*fit_output(W, G, 3, kind, (1, 32), damp=1e-6)), X)
        assert abs(relative(W, decoded(*fit_output(W, G*1e-4, 3, kind, (1, 32), damp=0)), X)/plain - 1) < .1
        for scale in 1e-12, 1., 1e12:
            near_, far = (decoded(*fit_output(w*t, G*g, 3, kind, (1, 32))) for w, t, g in ((W, 1, 1), (W, scale, 1e30)))
            assert far.isfinite().all()
            if kind in ("float", "ladder"): assert ((far/scale - near_).abs() > .1).float().mean() < .02
        for w, g in (W.half(), G), (W.bfloat16(), 0*G), (W[:1], G), (W[:, :1].double(), G[:1, :1]), (0*W, G):
            what = decoded(*fit_output(w, g, 2, kind, (1, 32), True))
            assert what.isfinite().all() and (what - w).abs().max() <= w.abs().max() + 1e-18


def test_two_objectives_in_one_4():
    # %% ../nbs/41_shiftadd.ipynb #bb2d4f18
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/41_shiftadd.ipynb #3e260ede
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens=2048, outliers=0, seed=0):
        "Inputs (in, tokens) that are mixtures of each other, a few of them fifteen times as large."
        X = gaussian(in_, in_, seed + 1)/in_**.5 @ gaussian(in_, tokens, seed + 2) + .5*gaussian(in_, tokens, seed + 3)
        X[torch.arange(outliers)*in_//max(outliers, 1)] *= 15
        return X

    def relative(W, What, X):
        "The output error on inputs, as a share of the outputs, both as norms."
        return (torch.linalg.norm((W - What) @ X)/torch.linalg.norm(W @ X)).item()

    def packed(shape, bits=3, kind="ladder", block=(1, 128), terms=3, bias=False, seed=0):
        "A layer of random weights."
        codes, scales = fit_weight(gaussian(*shape, seed), bits, kind, block, True, terms)
        return ShiftAddLinear(codes, scales, gaussian(1, shape[0])[0] if bias else None)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError("it went through")

    # %% ../nbs/41_shiftadd.ipynb #129cb97d
    def plainly(W, G, bits, fit, block, damp=.01, priced=True):
        "The loop of `fit_output`, written out."
        (out, in_), c = W.shape, block[1]
        r, order = block[0] or out, by_energy(G, c)
        U = inverse_root(G, damp, order=order)
        T, Q = W[:, order].double(), torch.zeros(out, in_).double()
        for j in range(in_):
            if j % c == 0:
                own, prices = T[:, j:j + c].float(), (U.diagonal()[j:j + c]**-2).float()
                tile = (r, own.shape[1])
                d = tiles((prices if priced else torch.ones_like(prices)).expand(own.shape), tile)
                alpha = fit(tiles(own, tile), bits, d).repeat_interleave(r, 0)[:out]
            w = T[:, j:j + 1].float()
            Q[:, j] = values(alpha, assign(w, alpha))[:, 0]
            T[:, j:] -= torch.outer((T[:, j] - Q[:, j])/U[j, j], U[j, j:])
        return Q[:, order.argsort()].float()

    # %% ../nbs/41_shiftadd.ipynb #6004b00d
    for kind in KINDS:
        W, better = gaussian(16, 64), 0
        for G, damp in (torch.eye(64), .01), (correlated(64) @ correlated(64).T, 1e9):
            alike = decoded(*fit_output(W, G, 3, kind, (1, 32), damp=damp)), decoded(*fit_weight(W, 3, kind, (1, 32)))
            torch.testing.assert_close(*alike, rtol=.01, atol=.01)
        for seed in range(20):
            W, X = gaussian(16, 64, seed), correlated(64, 400, seed=seed)
            G = X @ X.T
            by_output, by_weight = decoded(*fit_output(W, G, 3, kind, (1, 32))), decoded(*fit_weight(W, 3, kind, (1, 32)))
            better += output_error(W, by_output, G) < output_error(W, by_weight, G)
            assert weight_error(W, by_output) > weight_error(W, by_weight)
        assert better == 20, kind


def test_the_exchange_rate():
    # %% ../nbs/41_shiftadd.ipynb #bb2d4f18
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/41_shiftadd.ipynb #3e260ede
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens=2048, outliers=0, seed=0):
        "Inputs (in, tokens) that are mixtures of each other, a few of them fifteen times as large."
        X = gaussian(in_, in_, seed + 1)/in_**.5 @ gaussian(in_, tokens, seed + 2) + .5*gaussian(in_, tokens, seed + 3)
        X[torch.arange(outliers)*in_//max(outliers, 1)] *= 15
        return X

    def relative(W, What, X):
        "The output error on inputs, as a share of the outputs, both as norms."
        return (torch.linalg.norm((W - What) @ X)/torch.linalg.norm(W @ X)).item()

    def packed(shape, bits=3, kind="ladder", block=(1, 128), terms=3, bias=False, seed=0):
        "A layer of random weights."
        codes, scales = fit_weight(gaussian(*shape, seed), bits, kind, block, True, terms)
        return ShiftAddLinear(codes, scales, gaussian(1, shape[0])[0] if bias else None)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError("it went through")

    # %% ../nbs/41_shiftadd.ipynb #129cb97d
    def plainly(W, G, bits, fit, block, damp=.01, priced=True):
        "The loop of `fit_output`, written out."
        (out, in_), c = W.shape, block[1]
        r, order = block[0] or out, by_energy(G, c)
        U = inverse_root(G, damp, order=order)
        T, Q = W[:, order].double(), torch.zeros(out, in_).double()
        for j in range(in_):
            if j % c == 0:
                own, prices = T[:, j:j + c].float(), (U.diagonal()[j:j + c]**-2).float()
                tile = (r, own.shape[1])
                d = tiles((prices if priced else torch.ones_like(prices)).expand(own.shape), tile)
                alpha = fit(tiles(own, tile), bits, d).repeat_interleave(r, 0)[:out]
            w = T[:, j:j + 1].float()
            Q[:, j] = values(alpha, assign(w, alpha))[:, 0]
            T[:, j:] -= torch.outer((T[:, j] - Q[:, j])/U[j, j], U[j, j:])
        return Q[:, order.argsort()].float()

    # %% ../nbs/41_shiftadd.ipynb #22b5841f
    W, test, damps = gaussian(64, 256), correlated(256, 4000, seed=0)[:, 2000:], [10**(k/2) for k in range(-8, 5)]
    curves = {}
    for tokens in 2000, 200:
        X = correlated(256, 4000, seed=0)[:, :tokens]
        curves[tokens] = [(relative(W, Q, test), ((W - Q).norm()/W.norm()).item()) for Q in
                          (decoded(*fit_output(W, X @ X.T, 3, damp=damp)) for damp in damps)]
        at = min(range(len(damps)), key=lambda i: curves[tokens][i][0])
        print(f"{tokens} tokens: least output error {curves[tokens][at][0]:.3f} at ρ = {damps[at]:.2g} of the mean, "
          f"{curves[tokens][0][0]:.3f} at ρ = {damps[0]:.0e}, {curves[tokens][-1][0]:.3f} at ρ = {damps[-1]:.0f}")
        assert curves[tokens][at][0] < curves[tokens][-1][0]
    assert min(e for e, _ in curves[200]) > min(e for e, _ in curves[2000])


def test_what_the_prices_are_worth():
    # %% ../nbs/41_shiftadd.ipynb #bb2d4f18
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/41_shiftadd.ipynb #3e260ede
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens=2048, outliers=0, seed=0):
        "Inputs (in, tokens) that are mixtures of each other, a few of them fifteen times as large."
        X = gaussian(in_, in_, seed + 1)/in_**.5 @ gaussian(in_, tokens, seed + 2) + .5*gaussian(in_, tokens, seed + 3)
        X[torch.arange(outliers)*in_//max(outliers, 1)] *= 15
        return X

    def relative(W, What, X):
        "The output error on inputs, as a share of the outputs, both as norms."
        return (torch.linalg.norm((W - What) @ X)/torch.linalg.norm(W @ X)).item()

    def packed(shape, bits=3, kind="ladder", block=(1, 128), terms=3, bias=False, seed=0):
        "A layer of random weights."
        codes, scales = fit_weight(gaussian(*shape, seed), bits, kind, block, True, terms)
        return ShiftAddLinear(codes, scales, gaussian(1, shape[0])[0] if bias else None)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError("it went through")

    # %% ../nbs/41_shiftadd.ipynb #129cb97d
    def plainly(W, G, bits, fit, block, damp=.01, priced=True):
        "The loop of `fit_output`, written out."
        (out, in_), c = W.shape, block[1]
        r, order = block[0] or out, by_energy(G, c)
        U = inverse_root(G, damp, order=order)
        T, Q = W[:, order].double(), torch.zeros(out, in_).double()
        for j in range(in_):
            if j % c == 0:
                own, prices = T[:, j:j + c].float(), (U.diagonal()[j:j + c]**-2).float()
                tile = (r, own.shape[1])
                d = tiles((prices if priced else torch.ones_like(prices)).expand(own.shape), tile)
                alpha = fit(tiles(own, tile), bits, d).repeat_interleave(r, 0)[:out]
            w = T[:, j:j + 1].float()
            Q[:, j] = values(alpha, assign(w, alpha))[:, 0]
            T[:, j:] -= torch.outer((T[:, j] - Q[:, j])/U[j, j], U[j, j:])
        return Q[:, order.argsort()].float()

    # %% ../nbs/41_shiftadd.ipynb #a3d3e1d4
    W = gaussian(64, 256)
    for outliers in 0, 3:
        X, test = correlated(256, 3072, outliers).split(2048, 1)
        G = X @ X.T
        for kind, block in ("ladder", (1, 128)), ("sum", (1, 128)), ("sum", (8, 8)):
            with_, without = (relative(W, plainly(W, G, 3, KINDS[kind], block, priced=p), test) for p in (True, False))
            how = f"{outliers} outliers, {kind:6}, block {block!s:8}"
            print(f"{how}: output error {without:.3f} without prices, {with_:.3f} with")
            assert with_ < (.8*without if outliers else 1.01*without)


def test_what_runs_and_what_does_not():
    # %% ../nbs/41_shiftadd.ipynb #bb2d4f18
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/41_shiftadd.ipynb #3e260ede
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens=2048, outliers=0, seed=0):
        "Inputs (in, tokens) that are mixtures of each other, a few of them fifteen times as large."
        X = gaussian(in_, in_, seed + 1)/in_**.5 @ gaussian(in_, tokens, seed + 2) + .5*gaussian(in_, tokens, seed + 3)
        X[torch.arange(outliers)*in_//max(outliers, 1)] *= 15
        return X

    def relative(W, What, X):
        "The output error on inputs, as a share of the outputs, both as norms."
        return (torch.linalg.norm((W - What) @ X)/torch.linalg.norm(W @ X)).item()

    def packed(shape, bits=3, kind="ladder", block=(1, 128), terms=3, bias=False, seed=0):
        "A layer of random weights."
        codes, scales = fit_weight(gaussian(*shape, seed), bits, kind, block, True, terms)
        return ShiftAddLinear(codes, scales, gaussian(1, shape[0])[0] if bias else None)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError("it went through")

    # %% ../nbs/41_shiftadd.ipynb #40c04e3d
    def published(w, bits, d=None):
        "Sums of three powers, rounded inside the alternation; it knows no prices."
        return alternate(w, bits, rounding=lambda a: by_logarithm(a, 3))[0]

    def official_acc(W, G, bits, seed=0):
        "The published `acc`: scale, rotate from both sides, quantize column by column, undo. The result is dense."
        (out, in_), W, H = W.shape, W.double(), G.double()/G.abs().max()
        s = (H.diagonal().clamp(min=1e-8)/W.square().sum(0).clamp(min=1e-8))**.25
        W, H = W*s, H/s/s[:, None]
        H = H*in_/H.trace() + .01*torch.eye(in_).double()
        U, V = (torch.linalg.qr(gaussian(n, n, seed + k).double()).Q for k, n in enumerate((out, in_)))
        Q = plainly((U @ W @ V.T).float(), V @ H @ V.T, bits, published, (None, 1)).double()
        return (U.T @ Q @ V/s).float()

    # %% ../nbs/41_shiftadd.ipynb #9c7f605c
    W = gaussian(32, 128)
    X, test = correlated(128, 2048, 2).split(1024, 1)
    G, s = X @ X.T, rotation(128)
    Q = turn_back(decoded(*fit_output(turn_weight(W, s), turn_gram(G, s))), s)
    assert relative(W, Q, test) < .95*relative(W, decoded(*fit_output(W, G)), test)


def test_the_packed_layer():
    # %% ../nbs/41_shiftadd.ipynb #bb2d4f18
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/41_shiftadd.ipynb #3e260ede
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens=2048, outliers=0, seed=0):
        "Inputs (in, tokens) that are mixtures of each other, a few of them fifteen times as large."
        X = gaussian(in_, in_, seed + 1)/in_**.5 @ gaussian(in_, tokens, seed + 2) + .5*gaussian(in_, tokens, seed + 3)
        X[torch.arange(outliers)*in_//max(outliers, 1)] *= 15
        return X

    def relative(W, What, X):
        "The output error on inputs, as a share of the outputs, both as norms."
        return (torch.linalg.norm((W - What) @ X)/torch.linalg.norm(W @ X)).item()

    def packed(shape, bits=3, kind="ladder", block=(1, 128), terms=3, bias=False, seed=0):
        "A layer of random weights."
        codes, scales = fit_weight(gaussian(*shape, seed), bits, kind, block, True, terms)
        return ShiftAddLinear(codes, scales, gaussian(1, shape[0])[0] if bias else None)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError("it went through")

    # %% ../nbs/41_shiftadd.ipynb #c5dce27e
    for (out, in_), block in (((6, 256), (1, 128)), ((5, 300), (2, 128)), ((1, 1), (1, 1)), ((24, 7), (None, 1)),
                              ((24, 20), (3, 8)), ((9, 130), (1, 16))):
        for kind in KINDS:
            for bits in 1, 2, 3, 4:
                layer = packed((out, in_), bits, kind, block, bias=True)
                state = layer.state_dict()
                r, c = layer.block
                blocks = -(-out//r)*-(-in_//c)
                stored_bytes = bits*out*-(-in_//8) + scale_bits(kind, bits)//8*blocks + 12 + 4*out
                assert sum(t.nbytes for t in state.values()) == stored_bytes
                with tempfile.TemporaryDirectory() as d:
                    save_file(state, f"{d}/layer.safetensors")
                    again = shiftadd_linear_from(load_file(f"{d}/layer.safetensors"))
                assert all(torch.equal(t, again.state_dict()[k]) for k, t in state.items())
                W = layer.effective_weight()
                assert torch.equal(again.effective_weight(), W) and torch.equal(layer.half().float().effective_weight(), W)
                assert torch.equal(layer.rebuilt(W).effective_weight(), W)
                assert layer.bfloat16().weight.dtype == torch.bfloat16
    assert true_bits(3, "sum") == 3.5625 and true_bits(3) == 3.125 and true_bits(3, "float") == 3.375
    layer = packed((8, 256))
    print(layer)
    print(refusal(MergeError, layer.rebuilt, layer.weight + .01))
    print(refusal(CheckpointError, shiftadd_linear_from, layer.state_dict() | {"size": torch.tensor([256, 1, 64])}))
    planes = layer.state_dict()["planes"]
    print(refusal(CheckpointError, shiftadd_linear_from, layer.state_dict() | {"planes": planes[:, :, 1:]}))
    for spoilt in ({"planes": planes[0]}, {"planes": planes.repeat(2, 1, 1)},
                   {"size": torch.tensor([256, 0, 128])}, {"numbers": layer.scales.numbers}, {"numbers": None},
                   {"bias": torch.zeros(9)}):
        refusal(CheckpointError, shiftadd_linear_from, layer.state_dict() | spoilt)
    print(refusal(CheckpointError, packed((8, 256), block=(1, 64)).load_state_dict, layer.state_dict()))
    for layer in packed((9, 21)), packed((9, 21), kind="sum"):
        state = layer.state_dict()
        for name, value in {"planes": 255, "numbers": 0x7f80, "terms": 128}.items():
            if name not in state: continue
            spoilt = state[name].clone()
            spoilt[-1, -1, -1] = value
            print(refusal(CheckpointError, shiftadd_linear_from, state | {name: spoilt}))
            assert name in refusal(CheckpointError, layer.load_state_dict, state | {name: spoilt})


def test_look_ups_shifts_additions():
    # %% ../nbs/41_shiftadd.ipynb #bb2d4f18
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/41_shiftadd.ipynb #3e260ede
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens=2048, outliers=0, seed=0):
        "Inputs (in, tokens) that are mixtures of each other, a few of them fifteen times as large."
        X = gaussian(in_, in_, seed + 1)/in_**.5 @ gaussian(in_, tokens, seed + 2) + .5*gaussian(in_, tokens, seed + 3)
        X[torch.arange(outliers)*in_//max(outliers, 1)] *= 15
        return X

    def relative(W, What, X):
        "The output error on inputs, as a share of the outputs, both as norms."
        return (torch.linalg.norm((W - What) @ X)/torch.linalg.norm(W @ X)).item()

    def packed(shape, bits=3, kind="ladder", block=(1, 128), terms=3, bias=False, seed=0):
        "A layer of random weights."
        codes, scales = fit_weight(gaussian(*shape, seed), bits, kind, block, True, terms)
        return ShiftAddLinear(codes, scales, gaussian(1, shape[0])[0] if bias else None)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError("it went through")

    # %% ../nbs/41_shiftadd.ipynb #a404f820
    @given(st.integers(1, 12), st.integers(1, 70), st.integers(1, 4), st.sampled_from(list(KINDS)),
           st.sampled_from([(1, 8), (1, 16), (2, 24), (None, 1), (3, 1), (2, 5), (None, None), (4, 8)]), st.integers(1, 3))
    @settings(deadline=None, max_examples=60, derandomize=True)
    def lookups_give_the_product(out, in_, bits, kind, block, tokens):
        layer, x = packed((out, in_), bits, kind, block), gaussian(tokens, in_, 5)
        exact = x.double() @ layer.effective_weight().double().T
        bound = x.double().abs() @ layer.effective_weight().double().abs().T
        assert ((layer.lookup(x).double() - exact).abs() <= 1e-5*bound + 1e-9).all()

    lookups_give_the_product()
    for dtype, tolerance in (torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 2e-3):
        layer, x = packed((12, 256), bias=True).to(dtype), gaussian(6, 256).view(2, 3, 256).to(dtype)
        layer.exact = True
        torch.testing.assert_close(layer.lookup(x), layer(x), rtol=tolerance, atol=20*tolerance)
        assert layer(x).dtype == dtype and layer(x[:0]).shape == layer.lookup(x[:0]).shape == (0, 3, 12)
        assert layer.lookup(x[0, 0]).shape == (12,)
    print(refusal(SettingError, layer.lookup, torch.ones(2, 264)))


def test_a_model():
    # %% ../nbs/41_shiftadd.ipynb #bb2d4f18
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/41_shiftadd.ipynb #3e260ede
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens=2048, outliers=0, seed=0):
        "Inputs (in, tokens) that are mixtures of each other, a few of them fifteen times as large."
        X = gaussian(in_, in_, seed + 1)/in_**.5 @ gaussian(in_, tokens, seed + 2) + .5*gaussian(in_, tokens, seed + 3)
        X[torch.arange(outliers)*in_//max(outliers, 1)] *= 15
        return X

    def relative(W, What, X):
        "The output error on inputs, as a share of the outputs, both as norms."
        return (torch.linalg.norm((W - What) @ X)/torch.linalg.norm(W @ X)).item()

    def packed(shape, bits=3, kind="ladder", block=(1, 128), terms=3, bias=False, seed=0):
        "A layer of random weights."
        codes, scales = fit_weight(gaussian(*shape, seed), bits, kind, block, True, terms)
        return ShiftAddLinear(codes, scales, gaussian(1, shape[0])[0] if bias else None)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError("it went through")

    # %% ../nbs/41_shiftadd.ipynb #bf932c78
    def tiny(kind="Llama", **options):
        torch.manual_seed(0)
        sizes = dict(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        if kind == "GPT-2": return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4)).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**sizes | options, num_key_value_heads=2)).eval()

    def bytes_of(model): return {k: t.clone() for k, t in model.state_dict().items()}

    def some_ids(n=3): return [torch.randint(0, 96, (4, 24), generator=torch.Generator().manual_seed(i)) for i in range(n)]

    def logits(model):
        with torch.no_grad(): return model(some_ids()[0]).logits

    # %% ../nbs/41_shiftadd.ipynb #938cdb91
    for kind in "Llama", "GPT-2":
        for text in None, some_ids(6):
            for rotate in None, 7:
                model = shift_add(tiny(kind), text, 4, block=(1, 32), rotate=rotate)
                inner = [getattr(layer, "inner", layer) for layer in linears(model).values()]
                assert all(isinstance(layer, ShiftAddLinear) for layer in inner)
                assert not any(p.ndim > 1 for layer in inner for p in layer.parameters())
                torch.testing.assert_close(logits(model), logits(densify(copy.deepcopy(model))), rtol=1e-4, atol=1e-4)
    assert all(isinstance(layer, RotatedLinear) for layer in linears(model).values())


def test_a_model_2():
    # %% ../nbs/41_shiftadd.ipynb #bb2d4f18
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/41_shiftadd.ipynb #3e260ede
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens=2048, outliers=0, seed=0):
        "Inputs (in, tokens) that are mixtures of each other, a few of them fifteen times as large."
        X = gaussian(in_, in_, seed + 1)/in_**.5 @ gaussian(in_, tokens, seed + 2) + .5*gaussian(in_, tokens, seed + 3)
        X[torch.arange(outliers)*in_//max(outliers, 1)] *= 15
        return X

    def relative(W, What, X):
        "The output error on inputs, as a share of the outputs, both as norms."
        return (torch.linalg.norm((W - What) @ X)/torch.linalg.norm(W @ X)).item()

    def packed(shape, bits=3, kind="ladder", block=(1, 128), terms=3, bias=False, seed=0):
        "A layer of random weights."
        codes, scales = fit_weight(gaussian(*shape, seed), bits, kind, block, True, terms)
        return ShiftAddLinear(codes, scales, gaussian(1, shape[0])[0] if bias else None)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError("it went through")

    # %% ../nbs/41_shiftadd.ipynb #bf932c78
    def tiny(kind="Llama", **options):
        torch.manual_seed(0)
        sizes = dict(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        if kind == "GPT-2": return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4)).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**sizes | options, num_key_value_heads=2)).eval()

    def bytes_of(model): return {k: t.clone() for k, t in model.state_dict().items()}

    def some_ids(n=3): return [torch.randint(0, 96, (4, 24), generator=torch.Generator().manual_seed(i)) for i in range(n)]

    def logits(model):
        with torch.no_grad(): return model(some_ids()[0]).logits

    # %% ../nbs/41_shiftadd.ipynb #9e416474
    text, whole = some_ids(6), shift_add(tiny(), some_ids(6), 3, block=(1, 32))
    with tempfile.TemporaryDirectory() as d:
        model = tiny()
        original, calls = bytes_of(model), []
        def stop(*_):
            calls.append(1)
            if len(calls) > 8: raise KeyboardInterrupt
        hook = model.model.layers[1].mlp.down_proj.register_forward_pre_hook(stop)
        refusal(KeyboardInterrupt, shift_add, model, text, 3, block=(1, 32), folder=d)
        hook.remove()
        assert all(torch.equal(t, original[k]) for k, t in bytes_of(model).items())
        began = sorted(p.name for p in Path(d).glob("*.safetensors"))
        assert 0 < len(began) < 14
        again = shift_add(model, text, 3, block=(1, 32), folder=d)
        assert all(torch.equal(t, bytes_of(whole)[k]) for k, t in bytes_of(again).items())
        assert "keeps a run with bits" in refusal(SettingError, shift_add, tiny(), text, 2, block=(1, 32), folder=d)


def test_a_model_3():
    # %% ../nbs/41_shiftadd.ipynb #bb2d4f18
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/41_shiftadd.ipynb #3e260ede
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens=2048, outliers=0, seed=0):
        "Inputs (in, tokens) that are mixtures of each other, a few of them fifteen times as large."
        X = gaussian(in_, in_, seed + 1)/in_**.5 @ gaussian(in_, tokens, seed + 2) + .5*gaussian(in_, tokens, seed + 3)
        X[torch.arange(outliers)*in_//max(outliers, 1)] *= 15
        return X

    def relative(W, What, X):
        "The output error on inputs, as a share of the outputs, both as norms."
        return (torch.linalg.norm((W - What) @ X)/torch.linalg.norm(W @ X)).item()

    def packed(shape, bits=3, kind="ladder", block=(1, 128), terms=3, bias=False, seed=0):
        "A layer of random weights."
        codes, scales = fit_weight(gaussian(*shape, seed), bits, kind, block, True, terms)
        return ShiftAddLinear(codes, scales, gaussian(1, shape[0])[0] if bias else None)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError("it went through")

    # %% ../nbs/41_shiftadd.ipynb #bf932c78
    def tiny(kind="Llama", **options):
        torch.manual_seed(0)
        sizes = dict(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        if kind == "GPT-2": return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4)).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**sizes | options, num_key_value_heads=2)).eval()

    def bytes_of(model): return {k: t.clone() for k, t in model.state_dict().items()}

    def some_ids(n=3): return [torch.randint(0, 96, (4, 24), generator=torch.Generator().manual_seed(i)) for i in range(n)]

    def logits(model):
        with torch.no_grad(): return model(some_ids()[0]).logits

    # %% ../nbs/41_shiftadd.ipynb #38746cba
    model = tiny(tie_word_embeddings=True)
    before, name = bytes_of(model), "model.layers.0.self_attn.q_proj"
    fits = dict(block=(1, 32))
    for how in (dict(bits=5, **fits), dict(bits=0, **fits), {}, dict(block=(1, 48)), dict(scales="apot"),
                dict(bits={name: 3}, **fits), dict(bits={"q_prj": 3}, **fits), dict(target="lm_head", **fits),
                dict(target="q_prj", **fits), dict(batches=[], **fits), dict(batches=some_ids(), damp=-1, **fits)):
        print(refusal((SettingError, UnknownModuleError), shift_add, model, **how))
        assert all(torch.equal(t, before[k]) for k, t in bytes_of(model).items())
    with torch.no_grad(): model.get_submodule(name).weight[3, 3] = math.nan
    print(refusal(NonFiniteError, shift_add, model, None, 3, block=(1, 32)))


def test_a_model_4():
    # %% ../nbs/41_shiftadd.ipynb #bb2d4f18
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/41_shiftadd.ipynb #3e260ede
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens=2048, outliers=0, seed=0):
        "Inputs (in, tokens) that are mixtures of each other, a few of them fifteen times as large."
        X = gaussian(in_, in_, seed + 1)/in_**.5 @ gaussian(in_, tokens, seed + 2) + .5*gaussian(in_, tokens, seed + 3)
        X[torch.arange(outliers)*in_//max(outliers, 1)] *= 15
        return X

    def relative(W, What, X):
        "The output error on inputs, as a share of the outputs, both as norms."
        return (torch.linalg.norm((W - What) @ X)/torch.linalg.norm(W @ X)).item()

    def packed(shape, bits=3, kind="ladder", block=(1, 128), terms=3, bias=False, seed=0):
        "A layer of random weights."
        codes, scales = fit_weight(gaussian(*shape, seed), bits, kind, block, True, terms)
        return ShiftAddLinear(codes, scales, gaussian(1, shape[0])[0] if bias else None)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError("it went through")

    # %% ../nbs/41_shiftadd.ipynb #bf932c78
    def tiny(kind="Llama", **options):
        torch.manual_seed(0)
        sizes = dict(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        if kind == "GPT-2": return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4)).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**sizes | options, num_key_value_heads=2)).eval()

    def bytes_of(model): return {k: t.clone() for k, t in model.state_dict().items()}

    def some_ids(n=3): return [torch.randint(0, 96, (4, 24), generator=torch.Generator().manual_seed(i)) for i in range(n)]

    def logits(model):
        with torch.no_grad(): return model(some_ids()[0]).logits

    # %% ../nbs/41_shiftadd.ipynb #f9bc2cfb
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        shift_add(tiny(), some_ids(6), 3, block=(1, 32))
        assert not any("fill their space" in str(w.message) for w in caught)
        shift_add(tiny(), [some_ids()[0][:1]], 3, block=(1, 32))
    print(next(str(w.message) for w in caught if "fill their space" in str(w.message)))


def test_a_model_5():
    # %% ../nbs/41_shiftadd.ipynb #bb2d4f18
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/41_shiftadd.ipynb #3e260ede
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def correlated(in_, tokens=2048, outliers=0, seed=0):
        "Inputs (in, tokens) that are mixtures of each other, a few of them fifteen times as large."
        X = gaussian(in_, in_, seed + 1)/in_**.5 @ gaussian(in_, tokens, seed + 2) + .5*gaussian(in_, tokens, seed + 3)
        X[torch.arange(outliers)*in_//max(outliers, 1)] *= 15
        return X

    def relative(W, What, X):
        "The output error on inputs, as a share of the outputs, both as norms."
        return (torch.linalg.norm((W - What) @ X)/torch.linalg.norm(W @ X)).item()

    def packed(shape, bits=3, kind="ladder", block=(1, 128), terms=3, bias=False, seed=0):
        "A layer of random weights."
        codes, scales = fit_weight(gaussian(*shape, seed), bits, kind, block, True, terms)
        return ShiftAddLinear(codes, scales, gaussian(1, shape[0])[0] if bias else None)

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError("it went through")

    # %% ../nbs/41_shiftadd.ipynb #bf932c78
    def tiny(kind="Llama", **options):
        torch.manual_seed(0)
        sizes = dict(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        if kind == "GPT-2": return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4)).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**sizes | options, num_key_value_heads=2)).eval()

    def bytes_of(model): return {k: t.clone() for k, t in model.state_dict().items()}

    def some_ids(n=3): return [torch.randint(0, 96, (4, 24), generator=torch.Generator().manual_seed(i)) for i in range(n)]

    def logits(model):
        with torch.no_grad(): return model(some_ids()[0]).logits

    # %% ../nbs/41_shiftadd.ipynb #746f4b25
    for config in LoRA(r=2, lora_alpha=4), VBLoRA(num_vectors=8, vector_length=16), SVFT():
        model = shift_add(tiny(), some_ids(6), 3, block=lambda out, in_: (out//8, 8))
        planes, before = {k: t for k, t in bytes_of(model).items() if k.endswith("planes")}, logits(model)
        attach(model, config)
        torch.testing.assert_close(logits(model), before, rtol=1e-2, atol=1e-2)  # VB-LoRA begins near zero, not at it
        optimizer, losses = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 3e-2), []
        for _ in range(10):
            losses.append(model(some_ids()[0], labels=some_ids()[0]).loss)
            losses[-1].backward()
            optimizer.step()
            optimizer.zero_grad()
        assert losses[-1] < losses[0]
        assert all(torch.equal(t, bytes_of(model)[k.replace("planes", "base.planes")]) for k, t in planes.items())
        assert "are not on the layer's levels" in refusal(MergeError, merge, model)
        torch.testing.assert_close(logits(densify(copy.deepcopy(model))), logits(model), rtol=1e-3, atol=1e-3)
    print(refusal(MergeError, merge, model))
