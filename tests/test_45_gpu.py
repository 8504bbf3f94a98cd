from pathlm.shiftadd.gpu import *
import torch
from pathlm.base import SettingError
from pathlm.rotation import turn
from pathlm.rotation import unpacked_signs
from pathlm.shiftadd.kernels import has_triton
import math
import re
from unittest.mock import patch
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from pathlm.linear import pack_mask
from pathlm.rotation import rotation
from pathlm.shiftadd.kernels import tiled
from pathlm.shiftadd.kernels import tiled_scales
from pathlm.shiftadd.layer import KINDS
from pathlm.shiftadd.layer import decoded
from pathlm.shiftadd.layer import fit_weight
from pathlm.shiftadd.layer import pack_planes
from pathlm.shiftadd.layer import true_bits


def test_scaling_by_adding_to_the_exponent():
    # %% ../nbs/45_gpu.ipynb #01d74cd1
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/45_gpu.ipynb #5089fca0
    def bound(out, in_, bits, bandwidth): return bits*out*in_/8/bandwidth

    print("microseconds at least        float16    4 bits    3 bits    2 bits")
    for card, beta in {"0.3 TB/s": .3e12, "1 TB/s": 1e12, "2 TB/s": 2e12, "4.8 TB/s": 4.8e12}.items():
        for shape in (4096, 4096), (4096, 11008):
            times = [bound(*shape, bits, beta)*1e6 for bits in (16, *map(true_bits, (4, 3, 2)))]
            print(f"{card:9} {shape[0]:5} × {shape[1]:5} ", *(f"{t:9.1f}" for t in times))

    # %% ../nbs/45_gpu.ipynb #d472afa2
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError("it went through")

    def packed(shape, bits=3, kind="ladder", block=(1, 128), terms=3, seed=0):
        "Random weights: what the operations take, and the dense weight."
        codes, scales = fit_weight(gaussian(*shape, seed), bits, kind, block, True, terms)
        (r, c), numbers = scales.block, None if scales.numbers is None else scales.numbers.view(torch.int16)
        laid = [t if t is None or c < 8 else tiled_scales(t, shape[0], r) for t in (numbers, scales.terms)]
        return (tiled(pack_planes(codes, bits)), *laid), (bits, r, c), decoded(codes, scales)

    def by_gpu(x, layer, bias=None, signs=None):
        "What the kernels make of `x`."
        operands, sizes, W = layer
        return lookup_gpu(x, *operands, bias, signs, len(W), *sizes)

    HERE = has_triton()
    BLOCKS = [(1, 8), (1, 16), (2, 24), (None, 1), (3, 1), (2, 5), (None, None), (4, 12), (70, 9), (1, 128)]

    # %% ../nbs/45_gpu.ipynb #9841b8fe
    if not HERE: print("skipped: no Triton here")
    else:
        some, seeded = torch.tensor([0, 1, 2**22, 2**23 - 1]).int(), torch.Generator().manual_seed(0)
        x = (torch.arange(256).int() << 23)[:, None] + some
        x = torch.cat([x, torch.randint(2**31 - 1, (40, 4), generator=seeded).int()]).flatten()
        x = torch.cat([x.view(torch.float32), -x.view(torch.float32)])
        p = torch.arange(-67, 64).int()
        x, p = (t.flatten().contiguous() for t in torch.broadcast_tensors(x[:, None], p))
        kernels(True).shift_all[(1,)](x, p, y := torch.empty_like(x), len(x), N=2**19)
        wanted = torch.where(x.abs() < 2.**-126, 0, x.double())*torch.exp2(p.double())
        wanted = torch.where(wanted.abs() < 2.**-126, 0, wanted.abs()).float().copysign(x)
        y, x, wanted = (t.view(torch.int32) for t in (y, x, torch.where(x.isnan(), x, wanted)))
        assert len(x) < 2**19 and torch.equal(y, wanted)


def test_decoding():
    # %% ../nbs/45_gpu.ipynb #01d74cd1
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/45_gpu.ipynb #5089fca0
    def bound(out, in_, bits, bandwidth): return bits*out*in_/8/bandwidth

    print("microseconds at least        float16    4 bits    3 bits    2 bits")
    for card, beta in {"0.3 TB/s": .3e12, "1 TB/s": 1e12, "2 TB/s": 2e12, "4.8 TB/s": 4.8e12}.items():
        for shape in (4096, 4096), (4096, 11008):
            times = [bound(*shape, bits, beta)*1e6 for bits in (16, *map(true_bits, (4, 3, 2)))]
            print(f"{card:9} {shape[0]:5} × {shape[1]:5} ", *(f"{t:9.1f}" for t in times))

    # %% ../nbs/45_gpu.ipynb #d472afa2
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError("it went through")

    def packed(shape, bits=3, kind="ladder", block=(1, 128), terms=3, seed=0):
        "Random weights: what the operations take, and the dense weight."
        codes, scales = fit_weight(gaussian(*shape, seed), bits, kind, block, True, terms)
        (r, c), numbers = scales.block, None if scales.numbers is None else scales.numbers.view(torch.int16)
        laid = [t if t is None or c < 8 else tiled_scales(t, shape[0], r) for t in (numbers, scales.terms)]
        return (tiled(pack_planes(codes, bits)), *laid), (bits, r, c), decoded(codes, scales)

    def by_gpu(x, layer, bias=None, signs=None):
        "What the kernels make of `x`."
        operands, sizes, W = layer
        return lookup_gpu(x, *operands, bias, signs, len(W), *sizes)

    HERE = has_triton()
    BLOCKS = [(1, 8), (1, 16), (2, 24), (None, 1), (3, 1), (2, 5), (None, None), (4, 12), (70, 9), (1, 128)]

    # %% ../nbs/45_gpu.ipynb #999b9ae8
    @given(st.integers(1, 140), st.integers(1, 90), st.integers(1, 4), st.sampled_from(list(KINDS)),
           st.sampled_from(BLOCKS), st.integers(1, 4))
    @settings(deadline=None, max_examples=25, derandomize=True)
    def decoding_is_exact(out, in_, bits, kind, block, terms):
        operands, sizes, W = packed((out, in_), bits, kind, block, terms)
        assert torch.equal(decode_gpu(*operands, out, in_, *sizes), W)

    if HERE: decoding_is_exact()
    else: print("skipped: no Triton here")


def test_the_product():
    # %% ../nbs/45_gpu.ipynb #01d74cd1
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/45_gpu.ipynb #5089fca0
    def bound(out, in_, bits, bandwidth): return bits*out*in_/8/bandwidth

    print("microseconds at least        float16    4 bits    3 bits    2 bits")
    for card, beta in {"0.3 TB/s": .3e12, "1 TB/s": 1e12, "2 TB/s": 2e12, "4.8 TB/s": 4.8e12}.items():
        for shape in (4096, 4096), (4096, 11008):
            times = [bound(*shape, bits, beta)*1e6 for bits in (16, *map(true_bits, (4, 3, 2)))]
            print(f"{card:9} {shape[0]:5} × {shape[1]:5} ", *(f"{t:9.1f}" for t in times))

    # %% ../nbs/45_gpu.ipynb #d472afa2
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError("it went through")

    def packed(shape, bits=3, kind="ladder", block=(1, 128), terms=3, seed=0):
        "Random weights: what the operations take, and the dense weight."
        codes, scales = fit_weight(gaussian(*shape, seed), bits, kind, block, True, terms)
        (r, c), numbers = scales.block, None if scales.numbers is None else scales.numbers.view(torch.int16)
        laid = [t if t is None or c < 8 else tiled_scales(t, shape[0], r) for t in (numbers, scales.terms)]
        return (tiled(pack_planes(codes, bits)), *laid), (bits, r, c), decoded(codes, scales)

    def by_gpu(x, layer, bias=None, signs=None):
        "What the kernels make of `x`."
        operands, sizes, W = layer
        return lookup_gpu(x, *operands, bias, signs, len(W), *sizes)

    HERE = has_triton()
    BLOCKS = [(1, 8), (1, 16), (2, 24), (None, 1), (3, 1), (2, 5), (None, None), (4, 12), (70, 9), (1, 128)]

    # %% ../nbs/45_gpu.ipynb #146665c4
    x = torch.cat([gaussian(50, 40)*torch.exp2(torch.randint(-40, 40, (50, 1))), torch.tensor([[0., -0.]*20])])
    assert torch.equal(pieces(x).double().view(3, 51, 40).sum(0), x.double())
    odd = torch.tensor([3.4e38, -math.inf, math.nan, 2.**-110*(2 - 2**-23), 2.**-111*(2 - 2**-23)])
    y = pieces(odd[None]).double().view(3, 5).sum(0)
    assert y[:2].tolist() == [math.inf, -math.inf] and y[2].isnan() and y[3] == odd[3] and y[4] == 2.**-110
    assert by_bit(x)[3, 7, 2] == x[7, 19] and by_bit(x[:, :37])[5:, :, 4].eq(0).all()


def test_the_tests_that_it_passes():
    # %% ../nbs/45_gpu.ipynb #01d74cd1
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/45_gpu.ipynb #5089fca0
    def bound(out, in_, bits, bandwidth): return bits*out*in_/8/bandwidth

    print("microseconds at least        float16    4 bits    3 bits    2 bits")
    for card, beta in {"0.3 TB/s": .3e12, "1 TB/s": 1e12, "2 TB/s": 2e12, "4.8 TB/s": 4.8e12}.items():
        for shape in (4096, 4096), (4096, 11008):
            times = [bound(*shape, bits, beta)*1e6 for bits in (16, *map(true_bits, (4, 3, 2)))]
            print(f"{card:9} {shape[0]:5} × {shape[1]:5} ", *(f"{t:9.1f}" for t in times))

    # %% ../nbs/45_gpu.ipynb #d472afa2
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError("it went through")

    def packed(shape, bits=3, kind="ladder", block=(1, 128), terms=3, seed=0):
        "Random weights: what the operations take, and the dense weight."
        codes, scales = fit_weight(gaussian(*shape, seed), bits, kind, block, True, terms)
        (r, c), numbers = scales.block, None if scales.numbers is None else scales.numbers.view(torch.int16)
        laid = [t if t is None or c < 8 else tiled_scales(t, shape[0], r) for t in (numbers, scales.terms)]
        return (tiled(pack_planes(codes, bits)), *laid), (bits, r, c), decoded(codes, scales)

    def by_gpu(x, layer, bias=None, signs=None):
        "What the kernels make of `x`."
        operands, sizes, W = layer
        return lookup_gpu(x, *operands, bias, signs, len(W), *sizes)

    HERE = has_triton()
    BLOCKS = [(1, 8), (1, 16), (2, 24), (None, 1), (3, 1), (2, 5), (None, None), (4, 12), (70, 9), (1, 128)]

    # %% ../nbs/45_gpu.ipynb #fc3eb646
    def near_exact(x, layer, bias=None, signs=None, tolerance=1e-5):
        "Assert that a product is right; return the largest error, over the sum of absolute values."
        W, X = layer[2].double(), x.double()
        if signs is not None: X = turn(X, unpacked_signs(signs, x.shape[1]))
        y, exact, most = by_gpu(x, layer, bias, signs), X @ W.T, X.abs() @ W.abs().T
        if bias is not None: exact, most = exact + bias.double(), most + bias.double().abs()
        worst = ((y.double() - exact).abs()/(most + 1e-30)).max().item()
        assert y.dtype == x.dtype and y.shape == exact.shape and worst <= tolerance, worst
        return worst

    # %% ../nbs/45_gpu.ipynb #84a026a5
    @given(st.integers(1, 140), st.integers(1, 150), st.integers(1, 4), st.sampled_from(list(KINDS)),
           st.sampled_from(BLOCKS), st.sampled_from([1, 2, 5, 16, 17, 40]), st.booleans())
    @settings(deadline=None, max_examples=25, derandomize=True)
    def products_are_near(out, in_, bits, kind, block, tokens, bias):
        layer = packed((out, in_), bits, kind, block)
        near_exact(gaussian(tokens, in_, 5), layer, gaussian(1, out, 6)[0] if bias else None)

    if HERE: products_are_near()
    else: print("skipped: no Triton here")


def test_the_tests_that_it_passes_2():
    # %% ../nbs/45_gpu.ipynb #01d74cd1
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/45_gpu.ipynb #5089fca0
    def bound(out, in_, bits, bandwidth): return bits*out*in_/8/bandwidth

    print("microseconds at least        float16    4 bits    3 bits    2 bits")
    for card, beta in {"0.3 TB/s": .3e12, "1 TB/s": 1e12, "2 TB/s": 2e12, "4.8 TB/s": 4.8e12}.items():
        for shape in (4096, 4096), (4096, 11008):
            times = [bound(*shape, bits, beta)*1e6 for bits in (16, *map(true_bits, (4, 3, 2)))]
            print(f"{card:9} {shape[0]:5} × {shape[1]:5} ", *(f"{t:9.1f}" for t in times))

    # %% ../nbs/45_gpu.ipynb #d472afa2
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError("it went through")

    def packed(shape, bits=3, kind="ladder", block=(1, 128), terms=3, seed=0):
        "Random weights: what the operations take, and the dense weight."
        codes, scales = fit_weight(gaussian(*shape, seed), bits, kind, block, True, terms)
        (r, c), numbers = scales.block, None if scales.numbers is None else scales.numbers.view(torch.int16)
        laid = [t if t is None or c < 8 else tiled_scales(t, shape[0], r) for t in (numbers, scales.terms)]
        return (tiled(pack_planes(codes, bits)), *laid), (bits, r, c), decoded(codes, scales)

    def by_gpu(x, layer, bias=None, signs=None):
        "What the kernels make of `x`."
        operands, sizes, W = layer
        return lookup_gpu(x, *operands, bias, signs, len(W), *sizes)

    HERE = has_triton()
    BLOCKS = [(1, 8), (1, 16), (2, 24), (None, 1), (3, 1), (2, 5), (None, None), (4, 12), (70, 9), (1, 128)]

    # %% ../nbs/45_gpu.ipynb #fc3eb646
    def near_exact(x, layer, bias=None, signs=None, tolerance=1e-5):
        "Assert that a product is right; return the largest error, over the sum of absolute values."
        W, X = layer[2].double(), x.double()
        if signs is not None: X = turn(X, unpacked_signs(signs, x.shape[1]))
        y, exact, most = by_gpu(x, layer, bias, signs), X @ W.T, X.abs() @ W.abs().T
        if bias is not None: exact, most = exact + bias.double(), most + bias.double().abs()
        worst = ((y.double() - exact).abs()/(most + 1e-30)).max().item()
        assert y.dtype == x.dtype and y.shape == exact.shape and worst <= tolerance, worst
        return worst

    # %% ../nbs/45_gpu.ipynb #086f2f5f
    if not HERE: print("skipped: no Triton here")
    else:
        for kind in KINDS:
            for bits in 1, 2, 3, 4: near_exact(gaussian(1, 136, 3), packed((72, 136), bits, kind, (1, 64)))
        layer, bias = packed((70, 200), 3, block=(2, 64)), gaussian(1, 70)[0]
        for dtype, tolerance in (torch.bfloat16, 2**-8), (torch.float16, 2**-11):
            for tokens in 1, 4: near_exact(gaussian(tokens, 200).to(dtype), layer, bias.to(dtype), tolerance=tolerance)
        near_exact(gaussian(20, 200).bfloat16(), layer, bias.bfloat16(), tolerance=2**-7)


def test_the_tests_that_it_passes_3():
    # %% ../nbs/45_gpu.ipynb #01d74cd1
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/45_gpu.ipynb #5089fca0
    def bound(out, in_, bits, bandwidth): return bits*out*in_/8/bandwidth

    print("microseconds at least        float16    4 bits    3 bits    2 bits")
    for card, beta in {"0.3 TB/s": .3e12, "1 TB/s": 1e12, "2 TB/s": 2e12, "4.8 TB/s": 4.8e12}.items():
        for shape in (4096, 4096), (4096, 11008):
            times = [bound(*shape, bits, beta)*1e6 for bits in (16, *map(true_bits, (4, 3, 2)))]
            print(f"{card:9} {shape[0]:5} × {shape[1]:5} ", *(f"{t:9.1f}" for t in times))

    # %% ../nbs/45_gpu.ipynb #d472afa2
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError("it went through")

    def packed(shape, bits=3, kind="ladder", block=(1, 128), terms=3, seed=0):
        "Random weights: what the operations take, and the dense weight."
        codes, scales = fit_weight(gaussian(*shape, seed), bits, kind, block, True, terms)
        (r, c), numbers = scales.block, None if scales.numbers is None else scales.numbers.view(torch.int16)
        laid = [t if t is None or c < 8 else tiled_scales(t, shape[0], r) for t in (numbers, scales.terms)]
        return (tiled(pack_planes(codes, bits)), *laid), (bits, r, c), decoded(codes, scales)

    def by_gpu(x, layer, bias=None, signs=None):
        "What the kernels make of `x`."
        operands, sizes, W = layer
        return lookup_gpu(x, *operands, bias, signs, len(W), *sizes)

    HERE = has_triton()
    BLOCKS = [(1, 8), (1, 16), (2, 24), (None, 1), (3, 1), (2, 5), (None, None), (4, 12), (70, 9), (1, 128)]

    # %% ../nbs/45_gpu.ipynb #fc3eb646
    def near_exact(x, layer, bias=None, signs=None, tolerance=1e-5):
        "Assert that a product is right; return the largest error, over the sum of absolute values."
        W, X = layer[2].double(), x.double()
        if signs is not None: X = turn(X, unpacked_signs(signs, x.shape[1]))
        y, exact, most = by_gpu(x, layer, bias, signs), X @ W.T, X.abs() @ W.abs().T
        if bias is not None: exact, most = exact + bias.double(), most + bias.double().abs()
        worst = ((y.double() - exact).abs()/(most + 1e-30)).max().item()
        assert y.dtype == x.dtype and y.shape == exact.shape and worst <= tolerance, worst
        return worst

    # %% ../nbs/45_gpu.ipynb #e2ed2832
    if not HERE: print("skipped: no Triton here")
    else:
        layer, x = packed((66, 96), 2, "power", (1, 32)), gaussian(3, 96)
        near_exact(x, layer, signs=pack_mask(rotation(96)[None] < 0)[0])
        near_exact(gaussian(2, 2050), packed((3, 2050), 2, "sum", (1, 128)))
        y = by_gpu(x, layer)
        assert torch.equal(by_gpu(x, layer), y) and torch.allclose(by_gpu(x[1:2], layer), y[1:2], rtol=1e-6, atol=1e-5)
        assert by_gpu(x*0, layer).eq(0).all() and by_gpu(x[:0], layer).shape == (0, 66)
        x[1, 5] = math.nan
        with_nan = by_gpu(x, layer)
        assert with_nan.isnan().all(1).tolist() == [False, True, False] and torch.equal(with_nan[::2], y[::2])


def test_the_tests_that_it_passes_4():
    # %% ../nbs/45_gpu.ipynb #01d74cd1
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/45_gpu.ipynb #5089fca0
    def bound(out, in_, bits, bandwidth): return bits*out*in_/8/bandwidth

    print("microseconds at least        float16    4 bits    3 bits    2 bits")
    for card, beta in {"0.3 TB/s": .3e12, "1 TB/s": 1e12, "2 TB/s": 2e12, "4.8 TB/s": 4.8e12}.items():
        for shape in (4096, 4096), (4096, 11008):
            times = [bound(*shape, bits, beta)*1e6 for bits in (16, *map(true_bits, (4, 3, 2)))]
            print(f"{card:9} {shape[0]:5} × {shape[1]:5} ", *(f"{t:9.1f}" for t in times))

    # %% ../nbs/45_gpu.ipynb #d472afa2
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError("it went through")

    def packed(shape, bits=3, kind="ladder", block=(1, 128), terms=3, seed=0):
        "Random weights: what the operations take, and the dense weight."
        codes, scales = fit_weight(gaussian(*shape, seed), bits, kind, block, True, terms)
        (r, c), numbers = scales.block, None if scales.numbers is None else scales.numbers.view(torch.int16)
        laid = [t if t is None or c < 8 else tiled_scales(t, shape[0], r) for t in (numbers, scales.terms)]
        return (tiled(pack_planes(codes, bits)), *laid), (bits, r, c), decoded(codes, scales)

    def by_gpu(x, layer, bias=None, signs=None):
        "What the kernels make of `x`."
        operands, sizes, W = layer
        return lookup_gpu(x, *operands, bias, signs, len(W), *sizes)

    HERE = has_triton()
    BLOCKS = [(1, 8), (1, 16), (2, 24), (None, 1), (3, 1), (2, 5), (None, None), (4, 12), (70, 9), (1, 128)]

    # %% ../nbs/45_gpu.ipynb #fc3eb646
    def near_exact(x, layer, bias=None, signs=None, tolerance=1e-5):
        "Assert that a product is right; return the largest error, over the sum of absolute values."
        W, X = layer[2].double(), x.double()
        if signs is not None: X = turn(X, unpacked_signs(signs, x.shape[1]))
        y, exact, most = by_gpu(x, layer, bias, signs), X @ W.T, X.abs() @ W.abs().T
        if bias is not None: exact, most = exact + bias.double(), most + bias.double().abs()
        worst = ((y.double() - exact).abs()/(most + 1e-30)).max().item()
        assert y.dtype == x.dtype and y.shape == exact.shape and worst <= tolerance, worst
        return worst

    # %% ../nbs/45_gpu.ipynb #cdf75937
    if not HERE: print("skipped: no Triton here")
    else:
        layer, x, kept, found = packed((1100, 40), 2, block=(3, 16)), gaussian(2, 40), CHOICES[0], []
        for choice in CHOICES[::2]:
            CHOICES[0] = choice
            kernels.cache_clear()
            found += [by_gpu(x, layer), by_gpu(x.repeat(9, 1), layer)]
        CHOICES[0] = kept
        kernels.cache_clear()
        assert len(found) == 8 and all(map(torch.equal, found[2:], found[:-2]))
        for some in layer, packed((1100, 150), 1, "float", (3, 64)), packed((1100, 40), 2, "sum", (1100, 9)):
            near_exact(gaussian(2, some[2].shape[1]), some)
            assert torch.equal(decode_gpu(*some[0], *some[2].shape, *some[1]), some[2])


def test_the_tests_that_it_passes_5():
    # %% ../nbs/45_gpu.ipynb #01d74cd1
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/45_gpu.ipynb #5089fca0
    def bound(out, in_, bits, bandwidth): return bits*out*in_/8/bandwidth

    print("microseconds at least        float16    4 bits    3 bits    2 bits")
    for card, beta in {"0.3 TB/s": .3e12, "1 TB/s": 1e12, "2 TB/s": 2e12, "4.8 TB/s": 4.8e12}.items():
        for shape in (4096, 4096), (4096, 11008):
            times = [bound(*shape, bits, beta)*1e6 for bits in (16, *map(true_bits, (4, 3, 2)))]
            print(f"{card:9} {shape[0]:5} × {shape[1]:5} ", *(f"{t:9.1f}" for t in times))

    # %% ../nbs/45_gpu.ipynb #d472afa2
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError("it went through")

    def packed(shape, bits=3, kind="ladder", block=(1, 128), terms=3, seed=0):
        "Random weights: what the operations take, and the dense weight."
        codes, scales = fit_weight(gaussian(*shape, seed), bits, kind, block, True, terms)
        (r, c), numbers = scales.block, None if scales.numbers is None else scales.numbers.view(torch.int16)
        laid = [t if t is None or c < 8 else tiled_scales(t, shape[0], r) for t in (numbers, scales.terms)]
        return (tiled(pack_planes(codes, bits)), *laid), (bits, r, c), decoded(codes, scales)

    def by_gpu(x, layer, bias=None, signs=None):
        "What the kernels make of `x`."
        operands, sizes, W = layer
        return lookup_gpu(x, *operands, bias, signs, len(W), *sizes)

    HERE = has_triton()
    BLOCKS = [(1, 8), (1, 16), (2, 24), (None, 1), (3, 1), (2, 5), (None, None), (4, 12), (70, 9), (1, 128)]

    # %% ../nbs/45_gpu.ipynb #fc3eb646
    def near_exact(x, layer, bias=None, signs=None, tolerance=1e-5):
        "Assert that a product is right; return the largest error, over the sum of absolute values."
        W, X = layer[2].double(), x.double()
        if signs is not None: X = turn(X, unpacked_signs(signs, x.shape[1]))
        y, exact, most = by_gpu(x, layer, bias, signs), X @ W.T, X.abs() @ W.abs().T
        if bias is not None: exact, most = exact + bias.double(), most + bias.double().abs()
        worst = ((y.double() - exact).abs()/(most + 1e-30)).max().item()
        assert y.dtype == x.dtype and y.shape == exact.shape and worst <= tolerance, worst
        return worst

    # %% ../nbs/45_gpu.ipynb #aade3f38
    (tiles, numbers, _), sizes, W = packed((70, 200), 3)
    right = dict(x=gaussian(2, 200), tiles=tiles, numbers=numbers, terms=None, bias=None, signs=None, out=70)
    right |= dict(zip("qrc", sizes))
    two = dict(zip(("tiles", "numbers"), packed((128, 200), 1)[0])) | {"out": 64}  # Two tiles of one plane, not one of two
    for wrong in (dict(x=right["x"].double()), dict(x=right["x"][0]), dict(x=right["x"][:, :192]), dict(bias=W[0]),
                  dict(signs=W[0]), dict(out=200), dict(q=2), dict(q=5), two | {"q": 1}, dict(terms=tiles),
                  *(dict(numbers=n) for n in (None, numbers.int(), numbers[1:], numbers.repeat(2)))):
        print(refusal(SettingError, lookup_gpu, **right | wrong))
    assert "planes of" in refusal(SettingError, decode_gpu, **two, terms=None, in_=200, q=1, r=1, c=128)
    assert "cpu" in refusal(SettingError, lookup_gpu, **right | {"x": right["x"].to("meta")})
    huge = torch.empty(2**31, dtype=torch.uint8, device="meta")
    print(refusal(SettingError, decode_gpu, huge, numbers.to("meta"), None, 2**16, 2**16, 4, 1, 128))
    with patch.dict(kernels.__wrapped__.__globals__, has_triton=lambda: False):
        print(refusal(SettingError, kernels.__wrapped__, True))


def test_compiled_for_a_card_that_is_not_there():
    # %% ../nbs/45_gpu.ipynb #01d74cd1
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/45_gpu.ipynb #5089fca0
    def bound(out, in_, bits, bandwidth): return bits*out*in_/8/bandwidth

    print("microseconds at least        float16    4 bits    3 bits    2 bits")
    for card, beta in {"0.3 TB/s": .3e12, "1 TB/s": 1e12, "2 TB/s": 2e12, "4.8 TB/s": 4.8e12}.items():
        for shape in (4096, 4096), (4096, 11008):
            times = [bound(*shape, bits, beta)*1e6 for bits in (16, *map(true_bits, (4, 3, 2)))]
            print(f"{card:9} {shape[0]:5} × {shape[1]:5} ", *(f"{t:9.1f}" for t in times))

    # %% ../nbs/45_gpu.ipynb #d472afa2
    def gaussian(out, in_, seed=0): return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError("it went through")

    def packed(shape, bits=3, kind="ladder", block=(1, 128), terms=3, seed=0):
        "Random weights: what the operations take, and the dense weight."
        codes, scales = fit_weight(gaussian(*shape, seed), bits, kind, block, True, terms)
        (r, c), numbers = scales.block, None if scales.numbers is None else scales.numbers.view(torch.int16)
        laid = [t if t is None or c < 8 else tiled_scales(t, shape[0], r) for t in (numbers, scales.terms)]
        return (tiled(pack_planes(codes, bits)), *laid), (bits, r, c), decoded(codes, scales)

    def by_gpu(x, layer, bias=None, signs=None):
        "What the kernels make of `x`."
        operands, sizes, W = layer
        return lookup_gpu(x, *operands, bias, signs, len(W), *sizes)

    HERE = has_triton()
    BLOCKS = [(1, 8), (1, 16), (2, 24), (None, 1), (3, 1), (2, 5), (None, None), (4, 12), (70, 9), (1, 128)]

    # %% ../nbs/45_gpu.ipynb #60ecb71a
    def machine_code(name, x="*bf16", **constants):
        "Compile a kernel for compute capability 8.0, with inputs and outputs of one type."
        import triton
        from triton.backends.compiler import GPUTarget
        f = getattr(kernels(False), name)
        f = f.fn if name.startswith("multiply") else f
        kinds = {"tiles": "*u8", "numbers": "*i16", "terms": "*u8", "parts": "*fp32", "W": "*fp32"}
        kinds |= dict.fromkeys(("x", "bias", "y"), x)
        signature = {p: "constexpr" if p in constants else kinds.get(p, "i32") for p in f.arg_names}
        source = triton.compiler.ASTSource(f, signature, constants)
        return triton.compile(source, target=GPUTarget("cuda", 80, 32), options={"enable_fp_fusion": True}).asm["ptx"]

    LADDER = {"terms": None, "Q": 3, "KIND": "ladder", "TERMS": 0, "TILED": True, "N": 64}
    TERMS = {"numbers": None, "Q": 2, "KIND": "terms", "TERMS": 3, "TILED": True, "N": 64}
    COMPILED = {"multiply_planes, ladder, bfloat16": LADDER | {"M": 16},
                "multiply_planes, terms, float16": TERMS | {"M": 16, "x": "*fp16"},
                "multiply_planes, column-wise": LADDER | {"M": 16, "KIND": "none", "TILED": False},
                "multiply_decoded, ladder, bfloat16": LADDER | {"M": 16},
                "multiply_decoded, float, float32": LADDER | {"M": 64, "KIND": "float", "x": "*fp32"},
                "decode_tiles, terms": TERMS, "add_parts, float16": {"N": 256, "x": "*fp16"}}

    # %% ../nbs/45_gpu.ipynb #e0446991
    if not HERE: print("skipped: no Triton here")
    else:
        for what, constants in COMPILED.items():
            code = machine_code(what.split(",")[0], **constants)
            mma, atomic = len(re.findall(r"mma\.sync", code)), len(re.findall(r"\b(atom|red)\.", code))
            assert atomic == 0 and (mma > 0) == (what.startswith("multiply") and "float32" not in what), what
            print(f"{what:34} mma: {'yes' if mma else 'no':3}  atomic additions: {atomic}")
