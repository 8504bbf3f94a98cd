from pathlm.shiftadd.kernels import *
import math
import os
import shutil
import tempfile
import warnings
from pathlib import Path
import torch
import torch.nn.functional as F
from torch import Tensor
from pathlm.base import SettingError
from pathlm.rotation import turn
import signal
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import patch
from hypothesis import example
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx
import pathlm.shiftadd.kernels as module
from pathlm.bench import threads_set
from pathlm.linear import pack_mask
from pathlm.rotation import RotatedLinear
from pathlm.rotation import rotation
from pathlm.shiftadd.layer import KINDS
from pathlm.shiftadd.layer import ShiftAddLinear
from pathlm.shiftadd.layer import decoded
from pathlm.shiftadd.layer import fit_weight


def test_four_weights_one_look_up():
    # %% ../nbs/43_kernels.ipynb #2f672159
    def four_sums(
        x: Tensor,  # (4,)
    ) -> Tensor:    # (16,)
        "Compute the table of four inputs, (2)."
        bits = torch.arange(16)[:, None] >> torch.arange(4) & 1
        return (2*bits - 1).to(x) @ x

    x = torch.tensor([1., 10, 100, 1000])
    for k in 0b0000, 0b0001, 0b1010, 0b1111: print(f"t[{k:04b}] = {four_sums(x)[k]:+.0f}")
    assert torch.equal(four_sums(x), -four_sums(x).flip(0))


def test_the_order_of_the_bytes():
    # %% ../nbs/43_kernels.ipynb #488997dc
    @given(st.integers(1, 3), st.integers(1, 2300), st.integers(1, 40))
    @settings(deadline=None, max_examples=30, derandomize=True)
    def tiles_keep_the_planes(q, out, k):
        planes = torch.randint(0, 256, (q, out, k), dtype=torch.uint8)
        assert torch.equal(untiled(tiled(planes), out, k, q), planes)

    @given(st.integers(1, 2300), st.sampled_from([1, 2, 16, 40, 64, 100, 5000]), st.integers(1, 4))
    @settings(deadline=None, max_examples=30, derandomize=True)
    def tiles_keep_the_scales(out, r, C):
        t = torch.randint(0, 999, (3, 2, -(-out//r), C))
        assert torch.equal(untiled_scales(tiled_scales(t, out, r), out, r, t.shape), t)

    tiles_keep_the_planes()
    tiles_keep_the_scales()


def test_laws():
    # %% ../nbs/43_kernels.ipynb #fe2cb89b
    def refusal(error, f, *args, **kwargs):
        "What a function says when it refuses."
        try: f(*args, **kwargs)
        except error as e: return f"{type(e).__name__}: {e}"
        raise AssertionError(f"{f} did not raise")

    def gaussian(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

    def layer_of(out, in_, bits=3, kind="ladder", block=(1, 128), bias=False, seed=0):
        "A packed layer with random weights."
        codes, scales = fit_weight(gaussian(out, in_, seed=seed), bits, kind, block, pad=True)
        return ShiftAddLinear(codes, scales, gaussian(out, seed=9) if bias else None).requires_grad_(False)

    def operands(layer):
        "A layer as the operations take it."
        about = layer.out_features, layer.code_bits, *layer.block
        return (layer.planes, layer.numbers, layer.terms), about

    def product(layer, x, signs=None, **how):
        parts, about = operands(layer)
        return lookup_cpu(x, *parts, layer.bias, signs, *about, **how)

    BLOCKS = [(1, 128), (1, 8), (16, 8), (3, 24), (None, 1), (None, None), (1, 12), (7, 100), (600, 3)]

    def bound(layer, x, exact):
        "What (4) allows, and a little for float32."
        fours = F.pad(x, (0, -x.shape[1] % 4)).unflatten(1, (-1, 4)).abs().sum(2).amax(1, keepdim=True)
        W, alpha = layer.effective_weight(), layer.scales.alpha().abs()
        r, c = layer.block
        a = alpha.sum(0).amax(1).repeat_interleave(r)[:layer.out_features]
        if c < 8: fours, a = fours*alpha.max(), a*0 + layer.code_bits
        lookups = 2*(-(-x.shape[1]//8) + (-(-x.shape[1]//c) if c >= 8 else 0))
        return lookups*fours/(32767 if exact else 127)/2*a + 1e-5*(x.abs() @ W.abs().T) + 1e-6*lookups*fours*a

    # %% ../nbs/43_kernels.ipynb #a80d7308
    if not ready("cpu"): print("skipped: no kernels here")
    else:
        @given(st.one_of(st.integers(1, 300), st.integers(1025, 1300)), st.integers(1, 300), st.integers(1, 4),
               st.sampled_from(list(KINDS)), st.sampled_from(BLOCKS), st.sampled_from([1, 2, 3, 7, 17]), st.booleans())
        @example(1300, 40, 3, "sum", (600, 3), 3, False).via("several rows of blocks")
        @example(2100, 200, 3, "ladder", (1, 128), 1, False).via("several groups")
        @settings(deadline=None, max_examples=60, derandomize=True)
        def products_are_right(out, in_, bits, kind, block, tokens, exact):
            layer, x = layer_of(out, in_, bits, kind, block), gaussian(tokens, in_, seed=5)
            parts, (out, q, r, c) = operands(layer)
            W = decoded(layer.codes(), layer.scales)
            y = product(layer, x, exact=exact)
            assert ((y.double() - x.double() @ W.double().T).abs() <= bound(layer, x, exact)).all()
            for name in instructions():
                assert torch.equal(product(layer, x, exact=exact, instruction_set=name), y)
                assert torch.equal(decode_cpu(*parts, out, in_, q, r, c, instruction_set=name), W)
            alone = torch.cat([product(layer, row[None], exact=exact) for row in x])
            torch.testing.assert_close(alone, y, rtol=1e-6, atol=1e-6*y.abs().max().item())

        products_are_right()


def test_laws_2():
    # %% ../nbs/43_kernels.ipynb #fe2cb89b
    def refusal(error, f, *args, **kwargs):
        "What a function says when it refuses."
        try: f(*args, **kwargs)
        except error as e: return f"{type(e).__name__}: {e}"
        raise AssertionError(f"{f} did not raise")

    def gaussian(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

    def layer_of(out, in_, bits=3, kind="ladder", block=(1, 128), bias=False, seed=0):
        "A packed layer with random weights."
        codes, scales = fit_weight(gaussian(out, in_, seed=seed), bits, kind, block, pad=True)
        return ShiftAddLinear(codes, scales, gaussian(out, seed=9) if bias else None).requires_grad_(False)

    def operands(layer):
        "A layer as the operations take it."
        about = layer.out_features, layer.code_bits, *layer.block
        return (layer.planes, layer.numbers, layer.terms), about

    def product(layer, x, signs=None, **how):
        parts, about = operands(layer)
        return lookup_cpu(x, *parts, layer.bias, signs, *about, **how)

    BLOCKS = [(1, 128), (1, 8), (16, 8), (3, 24), (None, 1), (None, None), (1, 12), (7, 100), (600, 3)]

    def bound(layer, x, exact):
        "What (4) allows, and a little for float32."
        fours = F.pad(x, (0, -x.shape[1] % 4)).unflatten(1, (-1, 4)).abs().sum(2).amax(1, keepdim=True)
        W, alpha = layer.effective_weight(), layer.scales.alpha().abs()
        r, c = layer.block
        a = alpha.sum(0).amax(1).repeat_interleave(r)[:layer.out_features]
        if c < 8: fours, a = fours*alpha.max(), a*0 + layer.code_bits
        lookups = 2*(-(-x.shape[1]//8) + (-(-x.shape[1]//c) if c >= 8 else 0))
        return lookups*fours/(32767 if exact else 127)/2*a + 1e-5*(x.abs() @ W.abs().T) + 1e-6*lookups*fours*a

    # %% ../nbs/43_kernels.ipynb #b0c3dfcf
    def relative(layer, x, exact):
        "Relative error of a product, and what (3) expects, both over all outputs."
        W = layer.effective_weight().double()
        pieces = x.unflatten(1, (-1, 128))
        step = pieces.unflatten(2, (-1, 4)).abs().sum(3).amax(2).double()/(32767 if exact else 127)
        alpha = layer.scales.alpha().double().square().sum(0)
        expected = ((step**2/12*32) @ alpha.T).sum().sqrt()
        y = x.double() @ W.T
        return ((product(layer, x, exact=exact).double() - y).norm()/y.norm()).item(), (expected/y.norm()).item()

    if not ready("cpu"): print("skipped: no kernels here")
    else:
        layer, x = layer_of(256, 4096), gaussian(16, 4096, seed=2)
        spiked = x.clone()
        spiked[:, 7] = 20
        for name, inputs in ("normal inputs", x), ("an outlier of 20", spiked):
            for exact in False, True:
                got, expected = relative(layer, inputs, exact)
                print(f"{name:16}  {'two bytes' if exact else 'one byte ':9}  {got:.1e}, expected {expected:.1e}")
                assert got <= (1e-4 if exact else .01) and .7 < got/expected < 1.1


def test_laws_3():
    # %% ../nbs/43_kernels.ipynb #fe2cb89b
    def refusal(error, f, *args, **kwargs):
        "What a function says when it refuses."
        try: f(*args, **kwargs)
        except error as e: return f"{type(e).__name__}: {e}"
        raise AssertionError(f"{f} did not raise")

    def gaussian(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

    def layer_of(out, in_, bits=3, kind="ladder", block=(1, 128), bias=False, seed=0):
        "A packed layer with random weights."
        codes, scales = fit_weight(gaussian(out, in_, seed=seed), bits, kind, block, pad=True)
        return ShiftAddLinear(codes, scales, gaussian(out, seed=9) if bias else None).requires_grad_(False)

    def operands(layer):
        "A layer as the operations take it."
        about = layer.out_features, layer.code_bits, *layer.block
        return (layer.planes, layer.numbers, layer.terms), about

    def product(layer, x, signs=None, **how):
        parts, about = operands(layer)
        return lookup_cpu(x, *parts, layer.bias, signs, *about, **how)

    BLOCKS = [(1, 128), (1, 8), (16, 8), (3, 24), (None, 1), (None, None), (1, 12), (7, 100), (600, 3)]

    def bound(layer, x, exact):
        "What (4) allows, and a little for float32."
        fours = F.pad(x, (0, -x.shape[1] % 4)).unflatten(1, (-1, 4)).abs().sum(2).amax(1, keepdim=True)
        W, alpha = layer.effective_weight(), layer.scales.alpha().abs()
        r, c = layer.block
        a = alpha.sum(0).amax(1).repeat_interleave(r)[:layer.out_features]
        if c < 8: fours, a = fours*alpha.max(), a*0 + layer.code_bits
        lookups = 2*(-(-x.shape[1]//8) + (-(-x.shape[1]//c) if c >= 8 else 0))
        return lookups*fours/(32767 if exact else 127)/2*a + 1e-5*(x.abs() @ W.abs().T) + 1e-6*lookups*fours*a

    # %% ../nbs/43_kernels.ipynb #0509e0b7
    def under(threads, f):
        "Call with a number of threads."
        with threads_set(threads): return f()

    def in_a_fork(f):
        "Whether a forked process finds `f()` true within a minute; None where processes do not fork."
        if not hasattr(os, "fork"): return
        if not (pid := os.fork()):
            signal.alarm(60)
            try: os._exit(0 if f() else 1)
            finally: os._exit(2)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    if not ready("cpu"): print("skipped: no kernels here")
    else:
        layer, x = layer_of(2100, 300, block=(1, 64)), gaussian(40, 300)
        wanted = {n: under(1, lambda n=n: product(layer, x[:n])) for n in (1, 5, 40)}
        for threads in 2, 3, 8:
            assert all(torch.equal(under(threads, lambda n=n: product(layer, x[:n])), y) for n, y in wanted.items())
        with ThreadPoolExecutor(4) as several:
            found = under(2, lambda: list(several.map(lambda i: product(layer, x[:(1, 5, 40)[i % 3]]), range(60))))
            assert all(torch.equal(y, wanted[len(y)]) for y in found)
            busy = [several.submit(product, layer, x) for _ in range(40)]
            def same(): return torch.equal(under(2, lambda: product(layer, x[:5])), wanted[5])
            assert in_a_fork(same) is not False and all(torch.equal(b.result(), wanted[40]) for b in busy)
        for block in (None, 1), (600, 3), (16, 8):
            other = layer_of(1300, 140, 2, "float", block)
            assert torch.equal(*(under(n, lambda other=other: product(other, x[:3, :140])) for n in (1, 3)))


def test_laws_4():
    # %% ../nbs/43_kernels.ipynb #fe2cb89b
    def refusal(error, f, *args, **kwargs):
        "What a function says when it refuses."
        try: f(*args, **kwargs)
        except error as e: return f"{type(e).__name__}: {e}"
        raise AssertionError(f"{f} did not raise")

    def gaussian(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

    def layer_of(out, in_, bits=3, kind="ladder", block=(1, 128), bias=False, seed=0):
        "A packed layer with random weights."
        codes, scales = fit_weight(gaussian(out, in_, seed=seed), bits, kind, block, pad=True)
        return ShiftAddLinear(codes, scales, gaussian(out, seed=9) if bias else None).requires_grad_(False)

    def operands(layer):
        "A layer as the operations take it."
        about = layer.out_features, layer.code_bits, *layer.block
        return (layer.planes, layer.numbers, layer.terms), about

    def product(layer, x, signs=None, **how):
        parts, about = operands(layer)
        return lookup_cpu(x, *parts, layer.bias, signs, *about, **how)

    BLOCKS = [(1, 128), (1, 8), (16, 8), (3, 24), (None, 1), (None, None), (1, 12), (7, 100), (600, 3)]

    def bound(layer, x, exact):
        "What (4) allows, and a little for float32."
        fours = F.pad(x, (0, -x.shape[1] % 4)).unflatten(1, (-1, 4)).abs().sum(2).amax(1, keepdim=True)
        W, alpha = layer.effective_weight(), layer.scales.alpha().abs()
        r, c = layer.block
        a = alpha.sum(0).amax(1).repeat_interleave(r)[:layer.out_features]
        if c < 8: fours, a = fours*alpha.max(), a*0 + layer.code_bits
        lookups = 2*(-(-x.shape[1]//8) + (-(-x.shape[1]//c) if c >= 8 else 0))
        return lookups*fours/(32767 if exact else 127)/2*a + 1e-5*(x.abs() @ W.abs().T) + 1e-6*lookups*fours*a

    # %% ../nbs/43_kernels.ipynb #86145d6e
    if not ready("cpu"): print("skipped: no kernels here")
    else:
        layer = layer_of(70, 300, bias=True, block=(1, 64))
        layer.exact, W = True, layer.effective_weight()
        for dtype, tolerance in (torch.float32, 1e-4), (torch.bfloat16, 1e-2), (torch.float16, 1e-3):
            x = gaussian(2, 3, 300).to(dtype)
            y = F.linear(x.double(), W.double(), layer.bias.double())
            assert layer(x).dtype == dtype and (layer(x) - y).norm() <= tolerance*y.norm()
        x = gaussian(3, 300)
        for view in x.T.contiguous().T, gaussian(3, 2, 300)[:, 0], x[:0], x[0]:
            torch.testing.assert_close(layer(view), F.linear(view, W, layer.bias), rtol=1e-4, atol=3e-3)
        many = gaussian(100, 300)
        for n in 64, 65, 100:
            torch.testing.assert_close(layer(many[:n]), F.linear(many[:n], W, layer.bias), rtol=1e-4, atol=3e-3)
        for default in torch.bfloat16, torch.float64:
            torch.set_default_dtype(default)
            try: assert layer(many).dtype == layer(x).dtype == layer.effective_weight().dtype == torch.float32
            finally: torch.set_default_dtype(torch.float32)
        for wide in 256, 300, 21:
            turned, s = layer_of(65, wide, block=(1, 32)), rotation(wide, 3)
            turned.exact, x, signs = True, gaussian(4, wide), pack_mask(s[None] < 0)[0]
            y = turn(x, s) @ turned.effective_weight().T
            assert (turned(x, signs) - y).norm() <= 1e-4*y.norm()
            assert (turned(x.repeat(20, 1), signs)[:4] - y).norm() <= 1e-5*y.norm()
        assert layer(x := gaussian(3, 300)).isfinite().all()
        x[1, 5] = math.nan
        assert layer(x).isnan().all(1).tolist() == [False, True, False] and layer(x*0)[0].equal(layer.bias)


def test_laws_5():
    # %% ../nbs/43_kernels.ipynb #fe2cb89b
    def refusal(error, f, *args, **kwargs):
        "What a function says when it refuses."
        try: f(*args, **kwargs)
        except error as e: return f"{type(e).__name__}: {e}"
        raise AssertionError(f"{f} did not raise")

    def gaussian(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

    def layer_of(out, in_, bits=3, kind="ladder", block=(1, 128), bias=False, seed=0):
        "A packed layer with random weights."
        codes, scales = fit_weight(gaussian(out, in_, seed=seed), bits, kind, block, pad=True)
        return ShiftAddLinear(codes, scales, gaussian(out, seed=9) if bias else None).requires_grad_(False)

    def operands(layer):
        "A layer as the operations take it."
        about = layer.out_features, layer.code_bits, *layer.block
        return (layer.planes, layer.numbers, layer.terms), about

    def product(layer, x, signs=None, **how):
        parts, about = operands(layer)
        return lookup_cpu(x, *parts, layer.bias, signs, *about, **how)

    BLOCKS = [(1, 128), (1, 8), (16, 8), (3, 24), (None, 1), (None, None), (1, 12), (7, 100), (600, 3)]

    def bound(layer, x, exact):
        "What (4) allows, and a little for float32."
        fours = F.pad(x, (0, -x.shape[1] % 4)).unflatten(1, (-1, 4)).abs().sum(2).amax(1, keepdim=True)
        W, alpha = layer.effective_weight(), layer.scales.alpha().abs()
        r, c = layer.block
        a = alpha.sum(0).amax(1).repeat_interleave(r)[:layer.out_features]
        if c < 8: fours, a = fours*alpha.max(), a*0 + layer.code_bits
        lookups = 2*(-(-x.shape[1]//8) + (-(-x.shape[1]//c) if c >= 8 else 0))
        return lookups*fours/(32767 if exact else 127)/2*a + 1e-5*(x.abs() @ W.abs().T) + 1e-6*lookups*fours*a

    # %% ../nbs/43_kernels.ipynb #4bb816c9
    layer, x = layer_of(70, 300, bias=True, block=(1, 64)), gaussian(3, 300)
    with patch.dict(os.environ, PATHLM_KERNELS="off"):
        y = F.linear(x, layer.effective_weight(), layer.bias)
        torch.testing.assert_close(layer(x), y)
        assert (layer(x.bfloat16()) - y).norm() <= 1e-2*y.norm() and layer(x.bfloat16()).dtype == torch.bfloat16
    for name in instructions():
        with patch.dict(os.environ, PATHLM_KERNELS=name):
            chosen.cache_clear()
            assert chosen() == instructions()[name]
    chosen.cache_clear()
    x.requires_grad_()
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.effective_weight().sum(0).expand(3, -1))


def test_laws_6():
    # %% ../nbs/43_kernels.ipynb #fe2cb89b
    def refusal(error, f, *args, **kwargs):
        "What a function says when it refuses."
        try: f(*args, **kwargs)
        except error as e: return f"{type(e).__name__}: {e}"
        raise AssertionError(f"{f} did not raise")

    def gaussian(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

    def layer_of(out, in_, bits=3, kind="ladder", block=(1, 128), bias=False, seed=0):
        "A packed layer with random weights."
        codes, scales = fit_weight(gaussian(out, in_, seed=seed), bits, kind, block, pad=True)
        return ShiftAddLinear(codes, scales, gaussian(out, seed=9) if bias else None).requires_grad_(False)

    def operands(layer):
        "A layer as the operations take it."
        about = layer.out_features, layer.code_bits, *layer.block
        return (layer.planes, layer.numbers, layer.terms), about

    def product(layer, x, signs=None, **how):
        parts, about = operands(layer)
        return lookup_cpu(x, *parts, layer.bias, signs, *about, **how)

    BLOCKS = [(1, 128), (1, 8), (16, 8), (3, 24), (None, 1), (None, None), (1, 12), (7, 100), (600, 3)]

    def bound(layer, x, exact):
        "What (4) allows, and a little for float32."
        fours = F.pad(x, (0, -x.shape[1] % 4)).unflatten(1, (-1, 4)).abs().sum(2).amax(1, keepdim=True)
        W, alpha = layer.effective_weight(), layer.scales.alpha().abs()
        r, c = layer.block
        a = alpha.sum(0).amax(1).repeat_interleave(r)[:layer.out_features]
        if c < 8: fours, a = fours*alpha.max(), a*0 + layer.code_bits
        lookups = 2*(-(-x.shape[1]//8) + (-(-x.shape[1]//c) if c >= 8 else 0))
        return lookups*fours/(32767 if exact else 127)/2*a + 1e-5*(x.abs() @ W.abs().T) + 1e-6*lookups*fours*a

    # %% ../nbs/43_kernels.ipynb #045757f7
    if not ready("cpu"): print("skipped: no kernels here")
    else:
        layer, x = layer_of(70, 300, bias=True), gaussian(3, 300)
        parts, about = operands(layer)
        args = (x, *parts, layer.bias, None, *about, False)
        found = torch.library.opcheck(torch.ops.pathlm.lookup.default, args, test_utils=["test_schema", "test_faketensor"])
        assert set(found.values()) == {"SUCCESS"}
        graphs = []
        def backend(graph, inputs):
            graphs.append(graph)
            return graph.forward
        for model in layer, RotatedLinear(layer, rotation(300)):
            with torch.no_grad(): y = torch.compile(model, backend=backend, fullgraph=True)(x)
            assert torch.equal(y, model(x))
            assert [str(n.target) for n in graphs[-1].graph.nodes if "pathlm" in str(n.target)] == ["pathlm.lookup"]
        assert len(graphs) == 2
        with torch.no_grad(): recorded = make_fx(layer)(x)
        assert torch.equal(recorded(x*2), layer(x*2))


def test_laws_7():
    # %% ../nbs/43_kernels.ipynb #fe2cb89b
    def refusal(error, f, *args, **kwargs):
        "What a function says when it refuses."
        try: f(*args, **kwargs)
        except error as e: return f"{type(e).__name__}: {e}"
        raise AssertionError(f"{f} did not raise")

    def gaussian(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

    def layer_of(out, in_, bits=3, kind="ladder", block=(1, 128), bias=False, seed=0):
        "A packed layer with random weights."
        codes, scales = fit_weight(gaussian(out, in_, seed=seed), bits, kind, block, pad=True)
        return ShiftAddLinear(codes, scales, gaussian(out, seed=9) if bias else None).requires_grad_(False)

    def operands(layer):
        "A layer as the operations take it."
        about = layer.out_features, layer.code_bits, *layer.block
        return (layer.planes, layer.numbers, layer.terms), about

    def product(layer, x, signs=None, **how):
        parts, about = operands(layer)
        return lookup_cpu(x, *parts, layer.bias, signs, *about, **how)

    BLOCKS = [(1, 128), (1, 8), (16, 8), (3, 24), (None, 1), (None, None), (1, 12), (7, 100), (600, 3)]

    def bound(layer, x, exact):
        "What (4) allows, and a little for float32."
        fours = F.pad(x, (0, -x.shape[1] % 4)).unflatten(1, (-1, 4)).abs().sum(2).amax(1, keepdim=True)
        W, alpha = layer.effective_weight(), layer.scales.alpha().abs()
        r, c = layer.block
        a = alpha.sum(0).amax(1).repeat_interleave(r)[:layer.out_features]
        if c < 8: fours, a = fours*alpha.max(), a*0 + layer.code_bits
        lookups = 2*(-(-x.shape[1]//8) + (-(-x.shape[1]//c) if c >= 8 else 0))
        return lookups*fours/(32767 if exact else 127)/2*a + 1e-5*(x.abs() @ W.abs().T) + 1e-6*lookups*fours*a

    # %% ../nbs/43_kernels.ipynb #72bef3e8
    layer, x = layer_of(70, 300, bias=True), gaussian(3, 300)
    (tiles, numbers, terms), (out, q, r, c) = operands(layer)
    if not ready("cpu"): print("skipped: no kernels here")
    else:
        for wrong in (dict(x=x.double()), dict(x=x[0]), dict(x=x[:, :200]), dict(tiles=tiles[:-1]), dict(tiles=tiles.int()),
                      dict(numbers=None), dict(numbers=numbers[1:]), dict(numbers=numbers.float()), dict(terms=tiles),
                      dict(bias=layer.bias[1:]), dict(out=90), dict(q=5), dict(r=0), dict(c=-1), dict(x=x.to("meta")),
                      dict(c=2**40), dict(tiles=tiles.view(3, -1)), dict(numbers=None, terms=tiles[:0]),
                      dict(signs=tiles[:5]), dict(instruction_set="sse")):
            right = dict(x=x, tiles=tiles, numbers=numbers, terms=terms, bias=layer.bias, signs=None)
            right |= dict(out=out, q=q, r=r, c=c)
            print(refusal(SettingError, lookup_cpu, **right | wrong).replace(", ".join(instructions()), "…"))
    print(refusal(SettingError, layer, x[:, :200]))

    # %% ../nbs/43_kernels.ipynb #fbdda7a7
    with tempfile.TemporaryDirectory() as d:
        print(refusal(OSError, compiled, d, "no-such-compiler").split(":")[0])
        broken = Path(d)/"cc"
        broken.write_text("#!/bin/sh\necho this compiler does not work >&2\nexit 1\n")
        broken.chmod(0o755)
        assert "this compiler does not work" in refusal(OSError, compiled, d, str(broken))
        assert not list(Path(d).glob("*.so"))
        if shutil.which("cc"):
            made = compiled(d, "cc", "-O0")
            assert opened(made) and compiled(d, "cc", "-O0") == made
            Path(d, "other.so").write_bytes(made.read_bytes().replace(source_key().encode(), b"0"*16))
            assert "expected" in refusal(OSError, opened, Path(d, "other.so"))
        layer, x = layer_of(70, 300), gaussian(3, 300)
        module.library.cache_clear()
        with patch.dict(os.environ, CC=str(broken), PATHLM_CFLAGS="-O1"), warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for _ in range(3): torch.testing.assert_close(layer(x), x @ layer.effective_weight().T)
        module.library.cache_clear()
    print(str(told[0].message).split(":")[0], "; warnings:", len(told))
    assert len(told) == 1
