from pathlm.shiftadd.energy import *
from torch import nn
from pathlm.base import SettingError
from collections import Counter
from functools import partial
from functools import reduce
from math import log2
from operator import add
import torch
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from pathlm.adapters.core import AdaptedLinear
from pathlm.adapters.lora import LoRAPart
from pathlm.base import PathlmError
from pathlm.grid import quantize
from pathlm.linear import linear_from
from pathlm.models import pretrained
from pathlm.rotation import RotatedLinear
from pathlm.shiftadd.layer import KINDS
from pathlm.shiftadd.layer import ShiftAddLinear
from pathlm.shiftadd.layer import fit_weight
from pathlm.shiftadd.layer import shift_add
from pathlm.sparsity import SparseLinear
from pathlm.spectral import FactoredLinear


def test_dense():
    # %% ../nbs/44_energy.ipynb #a20cf76a
    torch.set_num_threads(1)

    # %% ../nbs/44_energy.ipynb #62f6ccca
    class Number(float):
        "A number that keeps a tally of what is done with it."
        tally = Counter()
        def done(self, what, value):
            Number.tally[what] += 1
            return Number(value)
        def __add__(self, other): return self.done("add", float(self) + float(other))
        def __sub__(self, other): return self.done("add", float(self) - float(other))
        def __mul__(self, other): return self.done("multiply", float(self)*float(other))
        def __neg__(self): return Number(-float(self))
        def shift(self, p): return self.done("shift", float(self)*2.**p)


    def added(numbers): return reduce(add, numbers)

    def numbers(n, seed=0):
        "Whole numbers, so that every sum is exact."
        return [Number(v) for v in torch.randint(-50, 50, (n,), generator=torch.Generator().manual_seed(seed)).tolist()]

    def matrix(out, in_, seed=1): return [numbers(in_, seed + 100*i) for i in range(out)]

    def tallied(product, *args):
        "What a product returns, and its operations."
        Number.tally.clear()
        return product(*args), Counts(**Number.tally)

    def exact(W, x): return [float(sum(float(a)*float(b) for a, b in zip(w, x, strict=True))) for w in W]

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/44_energy.ipynb #24c61e02
    SHAPES = {"Llama-2-7B": (32, [(4, 4096, 4096), (2, 11008, 4096), (1, 4096, 11008)], (32000, 4096)),
              "Llama-2-70B": (80, [(4, 8192, 8192), (2, 28672, 8192), (1, 8192, 28672)], (32000, 8192)),
              "OPT-66B": (64, [(4, 9216, 9216), (1, 36864, 9216), (1, 9216, 36864)], (50272, 9216))}

    def model_energy(name, product, batch=1, **prices):
        "Joules a token by what takes them; the output embedding stays in float16."
        blocks, body, head = SHAPES[name]
        counts = [times(blocks*n, product(*shape, batch)) for n, *shape in body]
        return joules(times(1/batch, total(*counts, dense_counts(*head, batch))), PRICES._replace(**prices))

    def whole(*args, **prices): return sum(model_energy(*args, **prices).values())

    # %% ../nbs/44_energy.ipynb #6aeb4222
    def dense_product(W, x): return [added(a*b for a, b in zip(w, x, strict=True)) for w in W]

    for out, in_ in (1, 1), (1, 2), (3, 5):
        W, x = matrix(out, in_), numbers(in_)
        y, ops = tallied(dense_product, W, x)
        assert y == exact(W, x) and ops == dense_ops(out, in_)
        print(f"{out} × {in_}: {ops.multiply} multiplications, {ops.add} additions")


def test_a_grid():
    # %% ../nbs/44_energy.ipynb #a20cf76a
    torch.set_num_threads(1)

    # %% ../nbs/44_energy.ipynb #62f6ccca
    class Number(float):
        "A number that keeps a tally of what is done with it."
        tally = Counter()
        def done(self, what, value):
            Number.tally[what] += 1
            return Number(value)
        def __add__(self, other): return self.done("add", float(self) + float(other))
        def __sub__(self, other): return self.done("add", float(self) - float(other))
        def __mul__(self, other): return self.done("multiply", float(self)*float(other))
        def __neg__(self): return Number(-float(self))
        def shift(self, p): return self.done("shift", float(self)*2.**p)


    def added(numbers): return reduce(add, numbers)

    def numbers(n, seed=0):
        "Whole numbers, so that every sum is exact."
        return [Number(v) for v in torch.randint(-50, 50, (n,), generator=torch.Generator().manual_seed(seed)).tolist()]

    def matrix(out, in_, seed=1): return [numbers(in_, seed + 100*i) for i in range(out)]

    def tallied(product, *args):
        "What a product returns, and its operations."
        Number.tally.clear()
        return product(*args), Counts(**Number.tally)

    def exact(W, x): return [float(sum(float(a)*float(b) for a, b in zip(w, x, strict=True))) for w in W]

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/44_energy.ipynb #24c61e02
    SHAPES = {"Llama-2-7B": (32, [(4, 4096, 4096), (2, 11008, 4096), (1, 4096, 11008)], (32000, 4096)),
              "Llama-2-70B": (80, [(4, 8192, 8192), (2, 28672, 8192), (1, 8192, 28672)], (32000, 8192)),
              "OPT-66B": (64, [(4, 9216, 9216), (1, 36864, 9216), (1, 9216, 36864)], (50272, 9216))}

    def model_energy(name, product, batch=1, **prices):
        "Joules a token by what takes them; the output embedding stays in float16."
        blocks, body, head = SHAPES[name]
        counts = [times(blocks*n, product(*shape, batch)) for n, *shape in body]
        return joules(times(1/batch, total(*counts, dense_counts(*head, batch))), PRICES._replace(**prices))

    def whole(*args, **prices): return sum(model_energy(*args, **prices).values())

    # %% ../nbs/44_energy.ipynb #7ced6449
    def grid_product(codes, s, z, x, group):
        spans = [slice(j, j + group) for j in range(0, len(x), group)]
        sums = None if z is None else [added(x[J]) for J in spans]
        def part(c, i, k):
            p = added(a*b for a, b in zip(c[spans[k]], x[spans[k]], strict=True))
            return s[i][k]*(p if z is None else p - z[i][k]*sums[k])
        return [added(part(c, i, k) for k in range(len(spans))) for i, c in enumerate(codes)]

    for out, in_, group in (1, 1, 1), (1, 4, 2), (3, 6, 3), (2, 6, 6):
        codes, s, zero, x = matrix(out, in_), matrix(out, in_//group, 2), matrix(out, in_//group, 3), numbers(in_)
        for z in None, zero:
            W = [[s[i][j//group]*(c - (z[i][j//group] if z else 0)) for j, c in enumerate(row)]
                 for i, row in enumerate(codes)]
            y, ops = tallied(grid_product, codes, s, z, x, group)
            assert y == exact(W, x) and ops == grid_ops(out, in_, group, z is None)
    print(refusal(SettingError, grid_ops, 4, 96, 128))


def test_tables():
    # %% ../nbs/44_energy.ipynb #a20cf76a
    torch.set_num_threads(1)

    # %% ../nbs/44_energy.ipynb #62f6ccca
    class Number(float):
        "A number that keeps a tally of what is done with it."
        tally = Counter()
        def done(self, what, value):
            Number.tally[what] += 1
            return Number(value)
        def __add__(self, other): return self.done("add", float(self) + float(other))
        def __sub__(self, other): return self.done("add", float(self) - float(other))
        def __mul__(self, other): return self.done("multiply", float(self)*float(other))
        def __neg__(self): return Number(-float(self))
        def shift(self, p): return self.done("shift", float(self)*2.**p)


    def added(numbers): return reduce(add, numbers)

    def numbers(n, seed=0):
        "Whole numbers, so that every sum is exact."
        return [Number(v) for v in torch.randint(-50, 50, (n,), generator=torch.Generator().manual_seed(seed)).tolist()]

    def matrix(out, in_, seed=1): return [numbers(in_, seed + 100*i) for i in range(out)]

    def tallied(product, *args):
        "What a product returns, and its operations."
        Number.tally.clear()
        return product(*args), Counts(**Number.tally)

    def exact(W, x): return [float(sum(float(a)*float(b) for a, b in zip(w, x, strict=True))) for w in W]

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/44_energy.ipynb #24c61e02
    SHAPES = {"Llama-2-7B": (32, [(4, 4096, 4096), (2, 11008, 4096), (1, 4096, 11008)], (32000, 4096)),
              "Llama-2-70B": (80, [(4, 8192, 8192), (2, 28672, 8192), (1, 8192, 28672)], (32000, 8192)),
              "OPT-66B": (64, [(4, 9216, 9216), (1, 36864, 9216), (1, 9216, 36864)], (50272, 9216))}

    def model_energy(name, product, batch=1, **prices):
        "Joules a token by what takes them; the output embedding stays in float16."
        blocks, body, head = SHAPES[name]
        counts = [times(blocks*n, product(*shape, batch)) for n, *shape in body]
        return joules(times(1/batch, total(*counts, dense_counts(*head, batch))), PRICES._replace(**prices))

    def whole(*args, **prices): return sum(model_energy(*args, **prices).values())

    # %% ../nbs/44_energy.ipynb #7c7f9dcd
    def half_table(x):
        "The sums in which the last input has a plus; bit j of a position says that input j has one too."
        doubles, table = [v.shift(1) for v in x[:-1]], [reduce(lambda a, b: a - b, x[:-1], x[-1])]
        for double in doubles: table += [entry + double for entry in table]
        return table

    def look_up(table, key):
        "Choose a sum by the signs of all inputs."
        Number.tally["lookup"] += 1
        top = len(table)
        return table[key - top] if key >= top else -table[top - 1 - key]

    # %% ../nbs/44_energy.ipynb #141bce37
    for m in range(1, 9):
        x = numbers(m, m)
        table, ops = tallied(half_table, x)
        assert len(table) == 2**(m - 1) and ops == table_ops(m)
        for key in range(2**m):
            assert look_up(table, key) == sum(float(v)*(1 if key >> j & 1 else -1) for j, v in enumerate(x))
    print(f"eight inputs: {len(table)} entries, {ops.add} additions, {ops.shift} shifts")


def test_tables_2():
    # %% ../nbs/44_energy.ipynb #a20cf76a
    torch.set_num_threads(1)

    # %% ../nbs/44_energy.ipynb #62f6ccca
    class Number(float):
        "A number that keeps a tally of what is done with it."
        tally = Counter()
        def done(self, what, value):
            Number.tally[what] += 1
            return Number(value)
        def __add__(self, other): return self.done("add", float(self) + float(other))
        def __sub__(self, other): return self.done("add", float(self) - float(other))
        def __mul__(self, other): return self.done("multiply", float(self)*float(other))
        def __neg__(self): return Number(-float(self))
        def shift(self, p): return self.done("shift", float(self)*2.**p)


    def added(numbers): return reduce(add, numbers)

    def numbers(n, seed=0):
        "Whole numbers, so that every sum is exact."
        return [Number(v) for v in torch.randint(-50, 50, (n,), generator=torch.Generator().manual_seed(seed)).tolist()]

    def matrix(out, in_, seed=1): return [numbers(in_, seed + 100*i) for i in range(out)]

    def tallied(product, *args):
        "What a product returns, and its operations."
        Number.tally.clear()
        return product(*args), Counts(**Number.tally)

    def exact(W, x): return [float(sum(float(a)*float(b) for a, b in zip(w, x, strict=True))) for w in W]

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/44_energy.ipynb #24c61e02
    SHAPES = {"Llama-2-7B": (32, [(4, 4096, 4096), (2, 11008, 4096), (1, 4096, 11008)], (32000, 4096)),
              "Llama-2-70B": (80, [(4, 8192, 8192), (2, 28672, 8192), (1, 8192, 28672)], (32000, 8192)),
              "OPT-66B": (64, [(4, 9216, 9216), (1, 36864, 9216), (1, 9216, 36864)], (50272, 9216))}

    def model_energy(name, product, batch=1, **prices):
        "Joules a token by what takes them; the output embedding stays in float16."
        blocks, body, head = SHAPES[name]
        counts = [times(blocks*n, product(*shape, batch)) for n, *shape in body]
        return joules(times(1/batch, total(*counts, dense_counts(*head, batch))), PRICES._replace(**prices))

    def whole(*args, **prices): return sum(model_energy(*args, **prices).values())

    # %% ../nbs/44_energy.ipynb #7c7f9dcd
    def half_table(x):
        "The sums in which the last input has a plus; bit j of a position says that input j has one too."
        doubles, table = [v.shift(1) for v in x[:-1]], [reduce(lambda a, b: a - b, x[:-1], x[-1])]
        for double in doubles: table += [entry + double for entry in table]
        return table

    def look_up(table, key):
        "Choose a sum by the signs of all inputs."
        Number.tally["lookup"] += 1
        top = len(table)
        return table[key - top] if key >= top else -table[top - 1 - key]

    # %% ../nbs/44_energy.ipynb #9c497886
    def scale_of(kind, a, i):
        "The number that plane i is multiplied with."
        return {"float": lambda: a[i], "power": lambda: 2.**a[i], "sum": lambda: sum(s*2.**p for s, p in a[i]),
                "ladder": lambda: a*2.**-i}[kind]()

    def scaled(kind, a, i, v):
        "That number times v, with the operations that it takes."
        if kind == "sum": return added(v.shift(p) if s > 0 else -v.shift(p) for s, p in a[i])
        return v.shift(a[i]) if kind == "power" else v*a[i]

    def rungs(sums):
        "The sums of a ladder's planes, from the lowest up."
        return reduce(lambda low, high: low.shift(-1) + high, sums[::-1])

    def spans_of(widths, start=0):
        "The positions of pieces that follow each other."
        return [range(start + sum(widths[:k]), start + sum(widths[:k + 1])) for k in range(len(widths))]

    def looked_up(tables, codes, i, spans):
        "The sum of plane i over some tables."
        keys = [sum((codes[j] >> i & 1) << k for k, j in enumerate(J)) for J in spans]
        return added(look_up(t, key) for t, key in zip(tables, keys, strict=True))

    def wide_product(codes, alpha, x, q, kind, block):
        spans = [J for wide in spans_of(cut(len(x), block[1])) for J in spans_of(cut(len(wide), SLICE), wide.start)]
        tables = [[half_table([x[j] for j in T]) for T in spans_of(cut(len(J)), J.start)] for J in spans]
        def part(c, I, J, tables):
            sums = [looked_up(tables, c, i, spans_of(cut(len(J)), J.start)) for i in range(q)]
            a = alpha[I//block[0]][J.start//block[1]]
            return rungs(sums)*a if kind == "ladder" else added(scaled(kind, a, i, v) for i, v in enumerate(sums))
        return [added(part(c, I, *both) for both in zip(spans, tables, strict=True)) for I, c in enumerate(codes)]

    def narrow_product(codes, alpha, x, q, kind, block):
        at, y = spans_of(cut(len(x))), []
        def tables(a, i):
            u = [v*a[j//block[1]] if kind == "ladder" else scaled(kind, a[j//block[1]], i, v) for j, v in enumerate(x)]
            return [half_table([u[j] for j in T]) for T in at]
        for I, c in enumerate(codes):
            if I % block[0] == 0: sets = [tables(alpha[I//block[0]], i) for i in range(1 if kind == "ladder" else q)]
            sums = [looked_up(sets[min(i, len(sets) - 1)], c, i, at) for i in range(q)]
            y.append(rungs(sums) if kind == "ladder" else added(sums))
        return y

    # %% ../nbs/44_energy.ipynb #2c4ba66f
    def some_scales(kind, q, draw):
        "Scales of one block."
        if kind == "ladder": return Number(draw(9))
        one = {"float": lambda: Number(draw(9)), "power": lambda: draw(5) - 2,
               "sum": lambda: [(1 - 2*draw(2), draw(5) - 2) for _ in range(3)]}[kind]
        return [one() for _ in range(q)]

    @given(st.integers(1, 4), st.integers(1, 40) | st.just(140), st.integers(1, 4), st.sampled_from(list(KINDS)),
           st.sampled_from([None, 1, 2]), st.sampled_from([None, 1, 3, 8, 11, 16, 130]), st.integers(0, 99))
    @settings(deadline=None, max_examples=60, derandomize=True)
    def agrees(out, in_, q, kind, r, c, seed):
        g = torch.Generator().manual_seed(seed)
        def draw(n): return int(torch.randint(0, n, (1,), generator=g))
        block = min(r or out, out), min(c or in_, in_)
        codes, x = [[draw(2**q) for _ in range(in_)] for _ in range(out)], numbers(in_, seed)
        alpha = [[some_scales(kind, q, draw) for _ in range(-(-in_//block[1]))] for _ in range(-(-out//block[0]))]
        W = [[sum(scale_of(kind, alpha[I//block[0]][j//block[1]], i)*(1 if code >> i & 1 else -1) for i in range(q))
              for j, code in enumerate(row)] for I, row in enumerate(codes)]
        product = narrow_product if block[1] < min(8, in_) else wide_product
        y, ops = tallied(product, codes, alpha, x, q, kind, block)
        assert y == exact(W, x) and ops == lookup_ops(out, in_, q, kind, (r, c))

    agrees()
    assert "expected one of float" in refusal(SettingError, lookup_ops, 4, 8, scales="apot")
    for bad in 0, 9: assert f"bits={bad}, expected" in refusal(SettingError, lookup_ops, 4, 8, bad, block=(None, 1))


def test_bytes():
    # %% ../nbs/44_energy.ipynb #a20cf76a
    torch.set_num_threads(1)

    # %% ../nbs/44_energy.ipynb #62f6ccca
    class Number(float):
        "A number that keeps a tally of what is done with it."
        tally = Counter()
        def done(self, what, value):
            Number.tally[what] += 1
            return Number(value)
        def __add__(self, other): return self.done("add", float(self) + float(other))
        def __sub__(self, other): return self.done("add", float(self) - float(other))
        def __mul__(self, other): return self.done("multiply", float(self)*float(other))
        def __neg__(self): return Number(-float(self))
        def shift(self, p): return self.done("shift", float(self)*2.**p)


    def added(numbers): return reduce(add, numbers)

    def numbers(n, seed=0):
        "Whole numbers, so that every sum is exact."
        return [Number(v) for v in torch.randint(-50, 50, (n,), generator=torch.Generator().manual_seed(seed)).tolist()]

    def matrix(out, in_, seed=1): return [numbers(in_, seed + 100*i) for i in range(out)]

    def tallied(product, *args):
        "What a product returns, and its operations."
        Number.tally.clear()
        return product(*args), Counts(**Number.tally)

    def exact(W, x): return [float(sum(float(a)*float(b) for a, b in zip(w, x, strict=True))) for w in W]

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/44_energy.ipynb #24c61e02
    SHAPES = {"Llama-2-7B": (32, [(4, 4096, 4096), (2, 11008, 4096), (1, 4096, 11008)], (32000, 4096)),
              "Llama-2-70B": (80, [(4, 8192, 8192), (2, 28672, 8192), (1, 8192, 28672)], (32000, 8192)),
              "OPT-66B": (64, [(4, 9216, 9216), (1, 36864, 9216), (1, 9216, 36864)], (50272, 9216))}

    def model_energy(name, product, batch=1, **prices):
        "Joules a token by what takes them; the output embedding stays in float16."
        blocks, body, head = SHAPES[name]
        counts = [times(blocks*n, product(*shape, batch)) for n, *shape in body]
        return joules(times(1/batch, total(*counts, dense_counts(*head, batch))), PRICES._replace(**prices))

    def whole(*args, **prices): return sum(model_energy(*args, **prices).values())

    # %% ../nbs/44_energy.ipynb #c8398a53
    def walked(out, in_, stored, held, batch):
        "Walk a batch through the memories."
        moved, slices = Counter(weights=stored, activations=0, buffer=stored), cut(in_, SLICE)
        moved.update(activations=batch*WORD*in_, buffer=batch*WORD*in_)               # inputs come in
        for tokens in cut(batch, max(1, ROOM//max(1, held))):
            for k, width in enumerate(slices):
                moved.update(buffer=tokens*WORD*width)                                # and go to the registers
                for _ in range(out):
                    moved.update(buffer=stored/(out*len(slices)))                     # a row's weights for all these tokens
                    for _ in range(tokens): moved.update(buffer=WORD*(k > 0) + WORD)  # its partial sums
        moved.update(activations=batch*WORD*out, buffer=batch*WORD*out)               # outputs leave
        return moved

    for case in (1, 2, 4, 4, 1), (3, 300, 1800, 256, 5), (2, 128, 96, 2**15, 5), (4, 130, 65, 2**17, 3):
        ours, steps = placed(Counts(), *case), walked(*case)
        for k in "weights", "activations", "buffer": assert abs(getattr(ours, k) - steps[k]) < 1e-6
    assert operands(Counts(multiply=1, add=1, shift=1, lookup=1)) == 6 + 6 + 4 + 5
    for bad in 0, -1, 1.5, True: assert f"batch={bad}, expected" in refusal(SettingError, placed, Counts(), 1, 1, 1, 1, bad)


def test_bytes_2():
    # %% ../nbs/44_energy.ipynb #a20cf76a
    torch.set_num_threads(1)

    # %% ../nbs/44_energy.ipynb #62f6ccca
    class Number(float):
        "A number that keeps a tally of what is done with it."
        tally = Counter()
        def done(self, what, value):
            Number.tally[what] += 1
            return Number(value)
        def __add__(self, other): return self.done("add", float(self) + float(other))
        def __sub__(self, other): return self.done("add", float(self) - float(other))
        def __mul__(self, other): return self.done("multiply", float(self)*float(other))
        def __neg__(self): return Number(-float(self))
        def shift(self, p): return self.done("shift", float(self)*2.**p)


    def added(numbers): return reduce(add, numbers)

    def numbers(n, seed=0):
        "Whole numbers, so that every sum is exact."
        return [Number(v) for v in torch.randint(-50, 50, (n,), generator=torch.Generator().manual_seed(seed)).tolist()]

    def matrix(out, in_, seed=1): return [numbers(in_, seed + 100*i) for i in range(out)]

    def tallied(product, *args):
        "What a product returns, and its operations."
        Number.tally.clear()
        return product(*args), Counts(**Number.tally)

    def exact(W, x): return [float(sum(float(a)*float(b) for a, b in zip(w, x, strict=True))) for w in W]

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/44_energy.ipynb #24c61e02
    SHAPES = {"Llama-2-7B": (32, [(4, 4096, 4096), (2, 11008, 4096), (1, 4096, 11008)], (32000, 4096)),
              "Llama-2-70B": (80, [(4, 8192, 8192), (2, 28672, 8192), (1, 8192, 28672)], (32000, 8192)),
              "OPT-66B": (64, [(4, 9216, 9216), (1, 36864, 9216), (1, 9216, 36864)], (50272, 9216))}

    def model_energy(name, product, batch=1, **prices):
        "Joules a token by what takes them; the output embedding stays in float16."
        blocks, body, head = SHAPES[name]
        counts = [times(blocks*n, product(*shape, batch)) for n, *shape in body]
        return joules(times(1/batch, total(*counts, dense_counts(*head, batch))), PRICES._replace(**prices))

    def whole(*args, **prices): return sum(model_energy(*args, **prices).values())

    # %% ../nbs/44_energy.ipynb #b178b05a
    columns = partial(lookup_counts, scales="sum", block=(None, 1))
    for product, t in (dense_counts, 256), (grid_counts, 256), (lookup_counts, 16), (columns, 16//3), \
                      (partial(lookup_counts, block=(None, 1)), 16):
        one, full, more = (product(24, 256, batch) for batch in (1, t, t + 1))
        each = 4*256 + 4*24*2
        assert one.buffer == 2*one.weights + each and full.buffer == 2*one.weights + t*each
        assert more.buffer == 3*one.weights + (t + 1)*each


def test_prices():
    # %% ../nbs/44_energy.ipynb #a20cf76a
    torch.set_num_threads(1)

    # %% ../nbs/44_energy.ipynb #62f6ccca
    class Number(float):
        "A number that keeps a tally of what is done with it."
        tally = Counter()
        def done(self, what, value):
            Number.tally[what] += 1
            return Number(value)
        def __add__(self, other): return self.done("add", float(self) + float(other))
        def __sub__(self, other): return self.done("add", float(self) - float(other))
        def __mul__(self, other): return self.done("multiply", float(self)*float(other))
        def __neg__(self): return Number(-float(self))
        def shift(self, p): return self.done("shift", float(self)*2.**p)


    def added(numbers): return reduce(add, numbers)

    def numbers(n, seed=0):
        "Whole numbers, so that every sum is exact."
        return [Number(v) for v in torch.randint(-50, 50, (n,), generator=torch.Generator().manual_seed(seed)).tolist()]

    def matrix(out, in_, seed=1): return [numbers(in_, seed + 100*i) for i in range(out)]

    def tallied(product, *args):
        "What a product returns, and its operations."
        Number.tally.clear()
        return product(*args), Counts(**Number.tally)

    def exact(W, x): return [float(sum(float(a)*float(b) for a, b in zip(w, x, strict=True))) for w in W]

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/44_energy.ipynb #24c61e02
    SHAPES = {"Llama-2-7B": (32, [(4, 4096, 4096), (2, 11008, 4096), (1, 4096, 11008)], (32000, 4096)),
              "Llama-2-70B": (80, [(4, 8192, 8192), (2, 28672, 8192), (1, 8192, 28672)], (32000, 8192)),
              "OPT-66B": (64, [(4, 9216, 9216), (1, 36864, 9216), (1, 9216, 36864)], (50272, 9216))}

    def model_energy(name, product, batch=1, **prices):
        "Joules a token by what takes them; the output embedding stays in float16."
        blocks, body, head = SHAPES[name]
        counts = [times(blocks*n, product(*shape, batch)) for n, *shape in body]
        return joules(times(1/batch, total(*counts, dense_counts(*head, batch))), PRICES._replace(**prices))

    def whole(*args, **prices): return sum(model_energy(*args, **prices).values())

    # %% ../nbs/44_energy.ipynb #cbe7ad85
    by_hand = 2*1.1 + .4 + 4*160 + 6*160 + (8 + 8 + 4)*12.5 + 18*.25
    print(f"{by_hand:.1f} pJ, of them {2*1.1 + .4:.1f} for arithmetic")
    assert abs(1e12*sum(joules(dense_counts(1, 2)).values()) - by_hand) < 1e-9
    assert abs(1e12*sum(joules(Counts(shift=100, lookup=10)).values()) - (3 + 3.7)) < 1e-9


def test_prices_2():
    # %% ../nbs/44_energy.ipynb #a20cf76a
    torch.set_num_threads(1)

    # %% ../nbs/44_energy.ipynb #62f6ccca
    class Number(float):
        "A number that keeps a tally of what is done with it."
        tally = Counter()
        def done(self, what, value):
            Number.tally[what] += 1
            return Number(value)
        def __add__(self, other): return self.done("add", float(self) + float(other))
        def __sub__(self, other): return self.done("add", float(self) - float(other))
        def __mul__(self, other): return self.done("multiply", float(self)*float(other))
        def __neg__(self): return Number(-float(self))
        def shift(self, p): return self.done("shift", float(self)*2.**p)


    def added(numbers): return reduce(add, numbers)

    def numbers(n, seed=0):
        "Whole numbers, so that every sum is exact."
        return [Number(v) for v in torch.randint(-50, 50, (n,), generator=torch.Generator().manual_seed(seed)).tolist()]

    def matrix(out, in_, seed=1): return [numbers(in_, seed + 100*i) for i in range(out)]

    def tallied(product, *args):
        "What a product returns, and its operations."
        Number.tally.clear()
        return product(*args), Counts(**Number.tally)

    def exact(W, x): return [float(sum(float(a)*float(b) for a, b in zip(w, x, strict=True))) for w in W]

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/44_energy.ipynb #24c61e02
    SHAPES = {"Llama-2-7B": (32, [(4, 4096, 4096), (2, 11008, 4096), (1, 4096, 11008)], (32000, 4096)),
              "Llama-2-70B": (80, [(4, 8192, 8192), (2, 28672, 8192), (1, 8192, 28672)], (32000, 8192)),
              "OPT-66B": (64, [(4, 9216, 9216), (1, 36864, 9216), (1, 9216, 36864)], (50272, 9216))}

    def model_energy(name, product, batch=1, **prices):
        "Joules a token by what takes them; the output embedding stays in float16."
        blocks, body, head = SHAPES[name]
        counts = [times(blocks*n, product(*shape, batch)) for n, *shape in body]
        return joules(times(1/batch, total(*counts, dense_counts(*head, batch))), PRICES._replace(**prices))

    def whole(*args, **prices): return sum(model_energy(*args, **prices).values())

    # %% ../nbs/44_energy.ipynb #71c29994
    @given(st.integers(1, 300), st.integers(1, 9), st.sampled_from(list(KINDS)), st.integers(1, 64))
    @settings(deadline=None, max_examples=25, derandomize=True)
    def laws(out, groups, kind, batch):
        n = 32*groups
        def e(counts): return sum(joules(counts).values())
        planes = [lookup_counts(out, n, batch, q, kind, (1, 8)) for q in (1, 2, 3, 4)]
        codes = [grid_counts(out, n, batch, b, 8) for b in (2, 3, 4, 8)]
        for rising in planes, codes:
            assert all(e(a) < e(b) and a.weights < b.weights for a, b in zip(rising, rising[1:]))
        for one, q in zip(planes, (1, 2, 3, 4), strict=True):
            scale = {"float": 16*q, "power": 8*q, "sum": 24*q, "ladder": 16}[kind]
            assert 8*one.weights == out*(n*q + n//8*scale)
        for counts in (dense_counts, grid_counts, lookup_counts):
            once, twice = counts(out, 128, batch), counts(out, 128, 2*batch)
            assert e(once) < e(twice) and once.weights == twice.weights == counts(out, 128).weights
            if 2*batch <= 16: assert e(twice) < 2*e(once)

    laws()


def test_layers_and_models():
    # %% ../nbs/44_energy.ipynb #a20cf76a
    torch.set_num_threads(1)

    # %% ../nbs/44_energy.ipynb #62f6ccca
    class Number(float):
        "A number that keeps a tally of what is done with it."
        tally = Counter()
        def done(self, what, value):
            Number.tally[what] += 1
            return Number(value)
        def __add__(self, other): return self.done("add", float(self) + float(other))
        def __sub__(self, other): return self.done("add", float(self) - float(other))
        def __mul__(self, other): return self.done("multiply", float(self)*float(other))
        def __neg__(self): return Number(-float(self))
        def shift(self, p): return self.done("shift", float(self)*2.**p)


    def added(numbers): return reduce(add, numbers)

    def numbers(n, seed=0):
        "Whole numbers, so that every sum is exact."
        return [Number(v) for v in torch.randint(-50, 50, (n,), generator=torch.Generator().manual_seed(seed)).tolist()]

    def matrix(out, in_, seed=1): return [numbers(in_, seed + 100*i) for i in range(out)]

    def tallied(product, *args):
        "What a product returns, and its operations."
        Number.tally.clear()
        return product(*args), Counts(**Number.tally)

    def exact(W, x): return [float(sum(float(a)*float(b) for a, b in zip(w, x, strict=True))) for w in W]

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/44_energy.ipynb #24c61e02
    SHAPES = {"Llama-2-7B": (32, [(4, 4096, 4096), (2, 11008, 4096), (1, 4096, 11008)], (32000, 4096)),
              "Llama-2-70B": (80, [(4, 8192, 8192), (2, 28672, 8192), (1, 8192, 28672)], (32000, 8192)),
              "OPT-66B": (64, [(4, 9216, 9216), (1, 36864, 9216), (1, 9216, 36864)], (50272, 9216))}

    def model_energy(name, product, batch=1, **prices):
        "Joules a token by what takes them; the output embedding stays in float16."
        blocks, body, head = SHAPES[name]
        counts = [times(blocks*n, product(*shape, batch)) for n, *shape in body]
        return joules(times(1/batch, total(*counts, dense_counts(*head, batch))), PRICES._replace(**prices))

    def whole(*args, **prices): return sum(model_energy(*args, **prices).values())

    # %% ../nbs/44_energy.ipynb #301ed458
    W = torch.randn(24, 40, generator=torch.Generator().manual_seed(0))

    def stored(layer):
        "Bytes of a layer's state without its shape; a layer with zeros computes with the dense weight."
        state = dict(layer.named_parameters()) if isinstance(layer, SparseLinear) else layer.state_dict()
        return sum(t.nbytes for k, t in state.items() if k != "size")

    # %% ../nbs/44_energy.ipynb #396434a9
    for bias in None, torch.ones(24):
        plain = linear_from(W, bias)
        cases = [plain, linear_from(W.half(), None if bias is None else bias.half()), FactoredLinear(W[:, :3], W[:3], bias),
                 SparseLinear(W, W > 0, bias)]
        cases += [quantize(nn.Sequential(linear_from(W, bias)), bits=b, group=g, symmetric=s, method="rtn")[0]
                  for b in (2, 3, 4, 8) for g in (8, None) for s in (True, False)]
        for layer in cases:
            counts = layer_counts(layer, 3)
            assert counts.weights == stored(layer)
            assert counts.activations == 3*2*(64 if not isinstance(layer, FactoredLinear) else 64 + 2*3)
        ops = layer_counts(plain, 3)
        assert ops.multiply == 3*24*40 and ops.add == 3*24*(40 - (bias is None))
    assert layer_counts(FactoredLinear(W[:, :0], W[:0], None), 3).multiply == 0  # Rank 0 costs nothing


def test_layers_and_models_2():
    # %% ../nbs/44_energy.ipynb #a20cf76a
    torch.set_num_threads(1)

    # %% ../nbs/44_energy.ipynb #62f6ccca
    class Number(float):
        "A number that keeps a tally of what is done with it."
        tally = Counter()
        def done(self, what, value):
            Number.tally[what] += 1
            return Number(value)
        def __add__(self, other): return self.done("add", float(self) + float(other))
        def __sub__(self, other): return self.done("add", float(self) - float(other))
        def __mul__(self, other): return self.done("multiply", float(self)*float(other))
        def __neg__(self): return Number(-float(self))
        def shift(self, p): return self.done("shift", float(self)*2.**p)


    def added(numbers): return reduce(add, numbers)

    def numbers(n, seed=0):
        "Whole numbers, so that every sum is exact."
        return [Number(v) for v in torch.randint(-50, 50, (n,), generator=torch.Generator().manual_seed(seed)).tolist()]

    def matrix(out, in_, seed=1): return [numbers(in_, seed + 100*i) for i in range(out)]

    def tallied(product, *args):
        "What a product returns, and its operations."
        Number.tally.clear()
        return product(*args), Counts(**Number.tally)

    def exact(W, x): return [float(sum(float(a)*float(b) for a, b in zip(w, x, strict=True))) for w in W]

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/44_energy.ipynb #24c61e02
    SHAPES = {"Llama-2-7B": (32, [(4, 4096, 4096), (2, 11008, 4096), (1, 4096, 11008)], (32000, 4096)),
              "Llama-2-70B": (80, [(4, 8192, 8192), (2, 28672, 8192), (1, 8192, 28672)], (32000, 8192)),
              "OPT-66B": (64, [(4, 9216, 9216), (1, 36864, 9216), (1, 9216, 36864)], (50272, 9216))}

    def model_energy(name, product, batch=1, **prices):
        "Joules a token by what takes them; the output embedding stays in float16."
        blocks, body, head = SHAPES[name]
        counts = [times(blocks*n, product(*shape, batch)) for n, *shape in body]
        return joules(times(1/batch, total(*counts, dense_counts(*head, batch))), PRICES._replace(**prices))

    def whole(*args, **prices): return sum(model_energy(*args, **prices).values())

    # %% ../nbs/44_energy.ipynb #301ed458
    W = torch.randn(24, 40, generator=torch.Generator().manual_seed(0))

    def stored(layer):
        "Bytes of a layer's state without its shape; a layer with zeros computes with the dense weight."
        state = dict(layer.named_parameters()) if isinstance(layer, SparseLinear) else layer.state_dict()
        return sum(t.nbytes for k, t in state.items() if k != "size")

    # %% ../nbs/44_energy.ipynb #627c3a67
    def hadamard_product(x):
        "The transform by butterflies, with one shift of each result."
        n, h = len(x), 1
        while n % (2*h) == 0:
            x = [x[j] + x[j + h] if j//h % 2 == 0 else x[j - h] - x[j] for j in range(n)]
            h *= 2
        return [v.shift(-int(log2(h))//2) for v in x]

    for n in 1, 2, 6, 16, 24:
        ops = turn_counts(n)
        assert tallied(hadamard_product, numbers(n))[1] == Counts(add=ops.add, shift=ops.shift)
    assert turn_counts(16, 4, 2).weights == 2 and turn_counts(16, 4, 2).activations == 0


def test_layers_and_models_3():
    # %% ../nbs/44_energy.ipynb #a20cf76a
    torch.set_num_threads(1)

    # %% ../nbs/44_energy.ipynb #62f6ccca
    class Number(float):
        "A number that keeps a tally of what is done with it."
        tally = Counter()
        def done(self, what, value):
            Number.tally[what] += 1
            return Number(value)
        def __add__(self, other): return self.done("add", float(self) + float(other))
        def __sub__(self, other): return self.done("add", float(self) - float(other))
        def __mul__(self, other): return self.done("multiply", float(self)*float(other))
        def __neg__(self): return Number(-float(self))
        def shift(self, p): return self.done("shift", float(self)*2.**p)


    def added(numbers): return reduce(add, numbers)

    def numbers(n, seed=0):
        "Whole numbers, so that every sum is exact."
        return [Number(v) for v in torch.randint(-50, 50, (n,), generator=torch.Generator().manual_seed(seed)).tolist()]

    def matrix(out, in_, seed=1): return [numbers(in_, seed + 100*i) for i in range(out)]

    def tallied(product, *args):
        "What a product returns, and its operations."
        Number.tally.clear()
        return product(*args), Counts(**Number.tally)

    def exact(W, x): return [float(sum(float(a)*float(b) for a, b in zip(w, x, strict=True))) for w in W]

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/44_energy.ipynb #24c61e02
    SHAPES = {"Llama-2-7B": (32, [(4, 4096, 4096), (2, 11008, 4096), (1, 4096, 11008)], (32000, 4096)),
              "Llama-2-70B": (80, [(4, 8192, 8192), (2, 28672, 8192), (1, 8192, 28672)], (32000, 8192)),
              "OPT-66B": (64, [(4, 9216, 9216), (1, 36864, 9216), (1, 9216, 36864)], (50272, 9216))}

    def model_energy(name, product, batch=1, **prices):
        "Joules a token by what takes them; the output embedding stays in float16."
        blocks, body, head = SHAPES[name]
        counts = [times(blocks*n, product(*shape, batch)) for n, *shape in body]
        return joules(times(1/batch, total(*counts, dense_counts(*head, batch))), PRICES._replace(**prices))

    def whole(*args, **prices): return sum(model_energy(*args, **prices).values())

    # %% ../nbs/44_energy.ipynb #301ed458
    W = torch.randn(24, 40, generator=torch.Generator().manual_seed(0))

    def stored(layer):
        "Bytes of a layer's state without its shape; a layer with zeros computes with the dense weight."
        state = dict(layer.named_parameters()) if isinstance(layer, SparseLinear) else layer.state_dict()
        return sum(t.nbytes for k, t in state.items() if k != "size")

    # %% ../nbs/44_energy.ipynb #9a504ab4
    kinds = [(3, "sum", (1, 8)), (2, "ladder", (None, 10)), (1, "ladder", (1, None)), (4, "float", (None, 1)),
             (2, "power", (3, 8)), (3, "sum", (5, 16))]
    for q, kind, block in kinds:
        codes, scales = fit_weight(W, q, kind, block, pad=True, terms=2)
        layer = ShiftAddLinear(codes, scales, torch.ones(24))
        bias = Counts(add=5*24, weights=96, buffer=2*96, register=5*24*6)
        assert layer_counts(layer, 5) == total(lookup_counts(24, 40, 5, q, kind, block, 2), bias)
        assert layer_counts(layer, 5).weights == stored(layer)
        layer.__class__ = type("Own", (ShiftAddLinear,), {})
        assert layer_counts(layer, 5).weights == stored(layer)


def test_layers_and_models_4():
    # %% ../nbs/44_energy.ipynb #a20cf76a
    torch.set_num_threads(1)

    # %% ../nbs/44_energy.ipynb #62f6ccca
    class Number(float):
        "A number that keeps a tally of what is done with it."
        tally = Counter()
        def done(self, what, value):
            Number.tally[what] += 1
            return Number(value)
        def __add__(self, other): return self.done("add", float(self) + float(other))
        def __sub__(self, other): return self.done("add", float(self) - float(other))
        def __mul__(self, other): return self.done("multiply", float(self)*float(other))
        def __neg__(self): return Number(-float(self))
        def shift(self, p): return self.done("shift", float(self)*2.**p)


    def added(numbers): return reduce(add, numbers)

    def numbers(n, seed=0):
        "Whole numbers, so that every sum is exact."
        return [Number(v) for v in torch.randint(-50, 50, (n,), generator=torch.Generator().manual_seed(seed)).tolist()]

    def matrix(out, in_, seed=1): return [numbers(in_, seed + 100*i) for i in range(out)]

    def tallied(product, *args):
        "What a product returns, and its operations."
        Number.tally.clear()
        return product(*args), Counts(**Number.tally)

    def exact(W, x): return [float(sum(float(a)*float(b) for a, b in zip(w, x, strict=True))) for w in W]

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/44_energy.ipynb #24c61e02
    SHAPES = {"Llama-2-7B": (32, [(4, 4096, 4096), (2, 11008, 4096), (1, 4096, 11008)], (32000, 4096)),
              "Llama-2-70B": (80, [(4, 8192, 8192), (2, 28672, 8192), (1, 8192, 28672)], (32000, 8192)),
              "OPT-66B": (64, [(4, 9216, 9216), (1, 36864, 9216), (1, 9216, 36864)], (50272, 9216))}

    def model_energy(name, product, batch=1, **prices):
        "Joules a token by what takes them; the output embedding stays in float16."
        blocks, body, head = SHAPES[name]
        counts = [times(blocks*n, product(*shape, batch)) for n, *shape in body]
        return joules(times(1/batch, total(*counts, dense_counts(*head, batch))), PRICES._replace(**prices))

    def whole(*args, **prices): return sum(model_energy(*args, **prices).values())

    # %% ../nbs/44_energy.ipynb #301ed458
    W = torch.randn(24, 40, generator=torch.Generator().manual_seed(0))

    def stored(layer):
        "Bytes of a layer's state without its shape; a layer with zeros computes with the dense weight."
        state = dict(layer.named_parameters()) if isinstance(layer, SparseLinear) else layer.state_dict()
        return sum(t.nbytes for k, t in state.items() if k != "size")

    # %% ../nbs/44_energy.ipynb #6edf38f0
    plain = linear_from(torch.ones(24, 16), torch.ones(24))
    for signs, n in (torch.ones(16), 2), (None, 0):
        assert layer_counts(RotatedLinear(plain, signs), 5) == total(layer_counts(plain, 5), turn_counts(16, 5, n))
    two = nn.Sequential(plain, nn.ReLU(), linear_from(torch.ones(24, 16), torch.ones(24)))
    assert energy(two, 4) == joules(times(2/4, layer_counts(plain, 4)))
    adapted = AdaptedLinear(plain)
    assert layer_counts(adapted, 5) == layer_counts(plain, 5)
    adapted.parts["a"], adapted.active = LoRAPart((24, 16), 2, 1.), ("a",)
    assert layer_counts(adapted, 5) == total(layer_counts(plain, 5), dense_counts(2, 16, 5, 4), dense_counts(24, 2, 5, 4))
    cached = quantize(nn.Sequential(linear_from(torch.ones(24, 16))), bits=4, group=8, method="rtn")[0]
    assert layer_counts(AdaptedLinear(cached), 5) == grid_counts(24, 16, 5, 4, 8)


def test_layers_and_models_5():
    # %% ../nbs/44_energy.ipynb #a20cf76a
    torch.set_num_threads(1)

    # %% ../nbs/44_energy.ipynb #62f6ccca
    class Number(float):
        "A number that keeps a tally of what is done with it."
        tally = Counter()
        def done(self, what, value):
            Number.tally[what] += 1
            return Number(value)
        def __add__(self, other): return self.done("add", float(self) + float(other))
        def __sub__(self, other): return self.done("add", float(self) - float(other))
        def __mul__(self, other): return self.done("multiply", float(self)*float(other))
        def __neg__(self): return Number(-float(self))
        def shift(self, p): return self.done("shift", float(self)*2.**p)


    def added(numbers): return reduce(add, numbers)

    def numbers(n, seed=0):
        "Whole numbers, so that every sum is exact."
        return [Number(v) for v in torch.randint(-50, 50, (n,), generator=torch.Generator().manual_seed(seed)).tolist()]

    def matrix(out, in_, seed=1): return [numbers(in_, seed + 100*i) for i in range(out)]

    def tallied(product, *args):
        "What a product returns, and its operations."
        Number.tally.clear()
        return product(*args), Counts(**Number.tally)

    def exact(W, x): return [float(sum(float(a)*float(b) for a, b in zip(w, x, strict=True))) for w in W]

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/44_energy.ipynb #24c61e02
    SHAPES = {"Llama-2-7B": (32, [(4, 4096, 4096), (2, 11008, 4096), (1, 4096, 11008)], (32000, 4096)),
              "Llama-2-70B": (80, [(4, 8192, 8192), (2, 28672, 8192), (1, 8192, 28672)], (32000, 8192)),
              "OPT-66B": (64, [(4, 9216, 9216), (1, 36864, 9216), (1, 9216, 36864)], (50272, 9216))}

    def model_energy(name, product, batch=1, **prices):
        "Joules a token by what takes them; the output embedding stays in float16."
        blocks, body, head = SHAPES[name]
        counts = [times(blocks*n, product(*shape, batch)) for n, *shape in body]
        return joules(times(1/batch, total(*counts, dense_counts(*head, batch))), PRICES._replace(**prices))

    def whole(*args, **prices): return sum(model_energy(*args, **prices).values())

    # %% ../nbs/44_energy.ipynb #301ed458
    W = torch.randn(24, 40, generator=torch.Generator().manual_seed(0))

    def stored(layer):
        "Bytes of a layer's state without its shape; a layer with zeros computes with the dense weight."
        state = dict(layer.named_parameters()) if isinstance(layer, SparseLinear) else layer.state_dict()
        return sum(t.nbytes for k, t in state.items() if k != "size")

    # %% ../nbs/44_energy.ipynb #aeb4edd2
    model, _ = pretrained()
    print("mJ a token, batch             1      16")
    for name, change in {"float32": lambda m: m, "float16": lambda m: m.half(),
                         "4 bits, groups of 128": lambda m: quantize(m, method="rtn"),
                         "3 planes, ladder": lambda m: shift_add(pretrained()[0].half())}.items():
        one, sixteen = energy(change(model)), energy(model, 16)
        print(f"{name:24} {1e3*sum(one.values()):7.3f} {1e3*sum(sixteen.values()):7.3f}")
        assert sum(sixteen.values()) < sum(one.values())
    print(refusal(PathlmError, energy, nn.Sequential(nn.ReLU())))


def test_the_published_model():
    # %% ../nbs/44_energy.ipynb #a20cf76a
    torch.set_num_threads(1)

    # %% ../nbs/44_energy.ipynb #62f6ccca
    class Number(float):
        "A number that keeps a tally of what is done with it."
        tally = Counter()
        def done(self, what, value):
            Number.tally[what] += 1
            return Number(value)
        def __add__(self, other): return self.done("add", float(self) + float(other))
        def __sub__(self, other): return self.done("add", float(self) - float(other))
        def __mul__(self, other): return self.done("multiply", float(self)*float(other))
        def __neg__(self): return Number(-float(self))
        def shift(self, p): return self.done("shift", float(self)*2.**p)


    def added(numbers): return reduce(add, numbers)

    def numbers(n, seed=0):
        "Whole numbers, so that every sum is exact."
        return [Number(v) for v in torch.randint(-50, 50, (n,), generator=torch.Generator().manual_seed(seed)).tolist()]

    def matrix(out, in_, seed=1): return [numbers(in_, seed + 100*i) for i in range(out)]

    def tallied(product, *args):
        "What a product returns, and its operations."
        Number.tally.clear()
        return product(*args), Counts(**Number.tally)

    def exact(W, x): return [float(sum(float(a)*float(b) for a, b in zip(w, x, strict=True))) for w in W]

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/44_energy.ipynb #24c61e02
    SHAPES = {"Llama-2-7B": (32, [(4, 4096, 4096), (2, 11008, 4096), (1, 4096, 11008)], (32000, 4096)),
              "Llama-2-70B": (80, [(4, 8192, 8192), (2, 28672, 8192), (1, 8192, 28672)], (32000, 8192)),
              "OPT-66B": (64, [(4, 9216, 9216), (1, 36864, 9216), (1, 9216, 36864)], (50272, 9216))}

    def model_energy(name, product, batch=1, **prices):
        "Joules a token by what takes them; the output embedding stays in float16."
        blocks, body, head = SHAPES[name]
        counts = [times(blocks*n, product(*shape, batch)) for n, *shape in body]
        return joules(times(1/batch, total(*counts, dense_counts(*head, batch))), PRICES._replace(**prices))

    def whole(*args, **prices): return sum(model_energy(*args, **prices).values())

    # %% ../nbs/44_energy.ipynb #e2df17da
    by_hand = 1.1 + 3*200 + 2*22.2 + 7.4*(1 + 1 + .5) + 3.7*(1 + 2 + 1)
    assert abs(step_energy(Step("multiply", 1, 1)) - by_hand) < 1e-9
    assert abs(step_energy(Step("add", 1, 1)) - (.4 + 3.7*(1 + 2 + 1 + 1))) < 1e-9
    assert abs(step_energy(Step("add", 1, 1), equal=True) - (by_hand - .7)) < 1e-9
    assert factored(12, 2).T.tolist() == [[1, 12], [2, 6], [3, 4], [4, 3], [6, 2], [12, 1]]


def test_the_published_model_2():
    # %% ../nbs/44_energy.ipynb #a20cf76a
    torch.set_num_threads(1)

    # %% ../nbs/44_energy.ipynb #62f6ccca
    class Number(float):
        "A number that keeps a tally of what is done with it."
        tally = Counter()
        def done(self, what, value):
            Number.tally[what] += 1
            return Number(value)
        def __add__(self, other): return self.done("add", float(self) + float(other))
        def __sub__(self, other): return self.done("add", float(self) - float(other))
        def __mul__(self, other): return self.done("multiply", float(self)*float(other))
        def __neg__(self): return Number(-float(self))
        def shift(self, p): return self.done("shift", float(self)*2.**p)


    def added(numbers): return reduce(add, numbers)

    def numbers(n, seed=0):
        "Whole numbers, so that every sum is exact."
        return [Number(v) for v in torch.randint(-50, 50, (n,), generator=torch.Generator().manual_seed(seed)).tolist()]

    def matrix(out, in_, seed=1): return [numbers(in_, seed + 100*i) for i in range(out)]

    def tallied(product, *args):
        "What a product returns, and its operations."
        Number.tally.clear()
        return product(*args), Counts(**Number.tally)

    def exact(W, x): return [float(sum(float(a)*float(b) for a, b in zip(w, x, strict=True))) for w in W]

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/44_energy.ipynb #24c61e02
    SHAPES = {"Llama-2-7B": (32, [(4, 4096, 4096), (2, 11008, 4096), (1, 4096, 11008)], (32000, 4096)),
              "Llama-2-70B": (80, [(4, 8192, 8192), (2, 28672, 8192), (1, 8192, 28672)], (32000, 8192)),
              "OPT-66B": (64, [(4, 9216, 9216), (1, 36864, 9216), (1, 9216, 36864)], (50272, 9216))}

    def model_energy(name, product, batch=1, **prices):
        "Joules a token by what takes them; the output embedding stays in float16."
        blocks, body, head = SHAPES[name]
        counts = [times(blocks*n, product(*shape, batch)) for n, *shape in body]
        return joules(times(1/batch, total(*counts, dense_counts(*head, batch))), PRICES._replace(**prices))

    def whole(*args, **prices): return sum(model_energy(*args, **prices).values())

    # %% ../nbs/44_energy.ipynb #35bedb36
    OTHERS = {"OPT-66B": 5*[Step("add", 9216, 1)] + [Step("add", 36864, 1)], "Llama-2-70B": [Step("add", 28672, 1)]}
    PRINTED = {"OPT-66B": {("FP16", 16): 15539.9, ("OPTQ", 3): 3658, ("LUT-GEMM", 3): 2859, ("ShiftAddLLM", 3): 1990,
                           ("ShiftAddLLM", 2): 1787},
               "Llama-2-70B": {("FP16", 16): 18482, ("OPTQ", 3): 4297, ("LUT-GEMM", 3): 3349, ("ShiftAddLLM", 3): 2310,
                               ("ShiftAddLLM", 2): 2066}}

    def published_model(name, method, bits, equal=False):
        "Joules for a token."
        blocks, body, head = SHAPES[name]
        one = sum(n*published_energy(*shape, method, bits, equal) for n, *shape in body)
        one += 1e-12*sum(step_energy(s, equal) for s in OTHERS[name])
        return blocks*one + published_energy(*head, "FP16", 16, equal)

    # %% ../nbs/44_energy.ipynb #0876c57c
    print("                                printed    restated")
    for name, rows in PRINTED.items():
        for (method, bits), printed in rows.items():
            ours = published_model(name, method, bits)
            print(f"{name:12} {method:12} {bits:2} bits {printed:9} {1e3*ours:9.1f} mJ")
            assert abs(1e3*ours/printed - 1) < 3e-4
    one = [1e3*published_energy(36864, 9216, *m) for m in (("FP16", 16), ("ShiftAddLLM", 3))]
    print(f"one matrix of the MLP: printed 80.36 and 9.77, restated {one[0]:.2f} and {one[1]:.2f} mJ")
    assert abs(one[0] - 80.36) < .005 and abs(one[1] - 9.77) < .015


def test_the_published_model_3():
    # %% ../nbs/44_energy.ipynb #a20cf76a
    torch.set_num_threads(1)

    # %% ../nbs/44_energy.ipynb #62f6ccca
    class Number(float):
        "A number that keeps a tally of what is done with it."
        tally = Counter()
        def done(self, what, value):
            Number.tally[what] += 1
            return Number(value)
        def __add__(self, other): return self.done("add", float(self) + float(other))
        def __sub__(self, other): return self.done("add", float(self) - float(other))
        def __mul__(self, other): return self.done("multiply", float(self)*float(other))
        def __neg__(self): return Number(-float(self))
        def shift(self, p): return self.done("shift", float(self)*2.**p)


    def added(numbers): return reduce(add, numbers)

    def numbers(n, seed=0):
        "Whole numbers, so that every sum is exact."
        return [Number(v) for v in torch.randint(-50, 50, (n,), generator=torch.Generator().manual_seed(seed)).tolist()]

    def matrix(out, in_, seed=1): return [numbers(in_, seed + 100*i) for i in range(out)]

    def tallied(product, *args):
        "What a product returns, and its operations."
        Number.tally.clear()
        return product(*args), Counts(**Number.tally)

    def exact(W, x): return [float(sum(float(a)*float(b) for a, b in zip(w, x, strict=True))) for w in W]

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/44_energy.ipynb #24c61e02
    SHAPES = {"Llama-2-7B": (32, [(4, 4096, 4096), (2, 11008, 4096), (1, 4096, 11008)], (32000, 4096)),
              "Llama-2-70B": (80, [(4, 8192, 8192), (2, 28672, 8192), (1, 8192, 28672)], (32000, 8192)),
              "OPT-66B": (64, [(4, 9216, 9216), (1, 36864, 9216), (1, 9216, 36864)], (50272, 9216))}

    def model_energy(name, product, batch=1, **prices):
        "Joules a token by what takes them; the output embedding stays in float16."
        blocks, body, head = SHAPES[name]
        counts = [times(blocks*n, product(*shape, batch)) for n, *shape in body]
        return joules(times(1/batch, total(*counts, dense_counts(*head, batch))), PRICES._replace(**prices))

    def whole(*args, **prices): return sum(model_energy(*args, **prices).values())

    # %% ../nbs/44_energy.ipynb #35bedb36
    OTHERS = {"OPT-66B": 5*[Step("add", 9216, 1)] + [Step("add", 36864, 1)], "Llama-2-70B": [Step("add", 28672, 1)]}
    PRINTED = {"OPT-66B": {("FP16", 16): 15539.9, ("OPTQ", 3): 3658, ("LUT-GEMM", 3): 2859, ("ShiftAddLLM", 3): 1990,
                           ("ShiftAddLLM", 2): 1787},
               "Llama-2-70B": {("FP16", 16): 18482, ("OPTQ", 3): 4297, ("LUT-GEMM", 3): 3349, ("ShiftAddLLM", 3): 2310,
                               ("ShiftAddLLM", 2): 2066}}

    def published_model(name, method, bits, equal=False):
        "Joules for a token."
        blocks, body, head = SHAPES[name]
        one = sum(n*published_energy(*shape, method, bits, equal) for n, *shape in body)
        one += 1e-12*sum(step_energy(s, equal) for s in OTHERS[name])
        return blocks*one + published_energy(*head, "FP16", 16, equal)

    # %% ../nbs/44_energy.ipynb #021d9feb
    print("                 multiply   add | tables  look-ups  scales   sums |   all")
    for method, bits in PRINTED["OPT-66B"]:
        steps = [step_energy(step)/(36864*9216) for step in published_steps(36864, 9216, method, bits)]
        if len(steps) == 2: cells = f"{steps[0]:8.2f} {steps[1]:5.2f} |{'':33}"
        else: cells = f"{'':14} | {sum(steps[:3]):6.2f} {steps[3]:9.2f} {steps[4]:7.2f} {steps[5]:6.2f} "
        print(f"{method:12}{bits:3} {cells}| {sum(steps):6.2f}")

    # %% ../nbs/44_energy.ipynb #5790ed84
    size = 36864*9216
    multiplied, shifted = (step_energy(Step(kind, 36864, 3, 9216//8))/size for kind in ("multiply", "shift"))
    shorter = (multiplied - 3/8*1.1)*10/16 + 3/8*1.1
    print(f"scale step: {multiplied:.2f} pJ a weight multiplied, {shifted:.2f} shifted,",
          f"{shorter:.2f} multiplied in words of ten bits")
    assert abs(shorter - shifted - 3/8*(1.1 - .15)) < 1e-3*shifted


def test_the_same_accounting_for_all():
    # %% ../nbs/44_energy.ipynb #a20cf76a
    torch.set_num_threads(1)

    # %% ../nbs/44_energy.ipynb #62f6ccca
    class Number(float):
        "A number that keeps a tally of what is done with it."
        tally = Counter()
        def done(self, what, value):
            Number.tally[what] += 1
            return Number(value)
        def __add__(self, other): return self.done("add", float(self) + float(other))
        def __sub__(self, other): return self.done("add", float(self) - float(other))
        def __mul__(self, other): return self.done("multiply", float(self)*float(other))
        def __neg__(self): return Number(-float(self))
        def shift(self, p): return self.done("shift", float(self)*2.**p)


    def added(numbers): return reduce(add, numbers)

    def numbers(n, seed=0):
        "Whole numbers, so that every sum is exact."
        return [Number(v) for v in torch.randint(-50, 50, (n,), generator=torch.Generator().manual_seed(seed)).tolist()]

    def matrix(out, in_, seed=1): return [numbers(in_, seed + 100*i) for i in range(out)]

    def tallied(product, *args):
        "What a product returns, and its operations."
        Number.tally.clear()
        return product(*args), Counts(**Number.tally)

    def exact(W, x): return [float(sum(float(a)*float(b) for a, b in zip(w, x, strict=True))) for w in W]

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/44_energy.ipynb #24c61e02
    SHAPES = {"Llama-2-7B": (32, [(4, 4096, 4096), (2, 11008, 4096), (1, 4096, 11008)], (32000, 4096)),
              "Llama-2-70B": (80, [(4, 8192, 8192), (2, 28672, 8192), (1, 8192, 28672)], (32000, 8192)),
              "OPT-66B": (64, [(4, 9216, 9216), (1, 36864, 9216), (1, 9216, 36864)], (50272, 9216))}

    def model_energy(name, product, batch=1, **prices):
        "Joules a token by what takes them; the output embedding stays in float16."
        blocks, body, head = SHAPES[name]
        counts = [times(blocks*n, product(*shape, batch)) for n, *shape in body]
        return joules(times(1/batch, total(*counts, dense_counts(*head, batch))), PRICES._replace(**prices))

    def whole(*args, **prices): return sum(model_energy(*args, **prices).values())

    # %% ../nbs/44_energy.ipynb #35bedb36
    OTHERS = {"OPT-66B": 5*[Step("add", 9216, 1)] + [Step("add", 36864, 1)], "Llama-2-70B": [Step("add", 28672, 1)]}
    PRINTED = {"OPT-66B": {("FP16", 16): 15539.9, ("OPTQ", 3): 3658, ("LUT-GEMM", 3): 2859, ("ShiftAddLLM", 3): 1990,
                           ("ShiftAddLLM", 2): 1787},
               "Llama-2-70B": {("FP16", 16): 18482, ("OPTQ", 3): 4297, ("LUT-GEMM", 3): 3349, ("ShiftAddLLM", 3): 2310,
                               ("ShiftAddLLM", 2): 2066}}

    def published_model(name, method, bits, equal=False):
        "Joules for a token."
        blocks, body, head = SHAPES[name]
        one = sum(n*published_energy(*shape, method, bits, equal) for n, *shape in body)
        one += 1e-12*sum(step_energy(s, equal) for s in OTHERS[name])
        return blocks*one + published_energy(*head, "FP16", 16, equal)

    # %% ../nbs/44_energy.ipynb #021d9feb
    print("                 multiply   add | tables  look-ups  scales   sums |   all")
    for method, bits in PRINTED["OPT-66B"]:
        steps = [step_energy(step)/(36864*9216) for step in published_steps(36864, 9216, method, bits)]
        if len(steps) == 2: cells = f"{steps[0]:8.2f} {steps[1]:5.2f} |{'':33}"
        else: cells = f"{'':14} | {sum(steps[:3]):6.2f} {steps[3]:9.2f} {steps[4]:7.2f} {steps[5]:6.2f} "
        print(f"{method:12}{bits:3} {cells}| {sum(steps):6.2f}")

    # %% ../nbs/44_energy.ipynb #8b0503d5
    THEIRS = dict(shift=.15, weights=100, activations=100, buffer=11.1, register=1.85)

    def blockwise(out, in_, batch=1, q=3): return lookup_counts(out, in_, batch, q, "sum", (out//8, 8))
    def rowwise(out, in_, batch=1, q=3): return lookup_counts(out, in_, batch, q, "float")

    OURS = {("FP16", 16): dense_counts, ("OPTQ", 3): partial(grid_counts, bits=3), ("LUT-GEMM", 3): rowwise,
            ("ShiftAddLLM", 3): blockwise, ("ShiftAddLLM", 2): partial(blockwise, q=2)}

    # %% ../nbs/44_energy.ipynb #cf7ddc7d
    def four(key):
        "Four estimates for a token of OPT-66B."
        return [published_model("OPT-66B", *key), published_model("OPT-66B", *key, True),
                whole("OPT-66B", OURS[key], **THEIRS), whole("OPT-66B", OURS[key])]

    shares = {key: four(key) for key in OURS}
    print("J a token, OPT-66B   published   every step   counts of (4),  counts of (4),")
    print("                                 pays         their prices    our prices")
    for (method, bits), values in shares.items():
        cells = [f"{v:6.2f} {v/w:4.0%}" for v, w in zip(values, shares["FP16", 16], strict=True)]
        print(f"{method:12} {bits:2}    ", "   ".join(cells))
    ratio = [shares["ShiftAddLLM", 3][k]/shares["OPTQ", 3][k] for k in range(4)]
    print("ShiftAddLLM over OPTQ at 3 bits: {:.2f}, {:.2f}, {:.2f} and {:.2f}".format(*ratio))
    assert ratio[1] < ratio[0] < .6 and .9 < ratio[2] < 1.1 and .9 < ratio[3] < 1.1


def test_what_decides():
    # %% ../nbs/44_energy.ipynb #a20cf76a
    torch.set_num_threads(1)

    # %% ../nbs/44_energy.ipynb #62f6ccca
    class Number(float):
        "A number that keeps a tally of what is done with it."
        tally = Counter()
        def done(self, what, value):
            Number.tally[what] += 1
            return Number(value)
        def __add__(self, other): return self.done("add", float(self) + float(other))
        def __sub__(self, other): return self.done("add", float(self) - float(other))
        def __mul__(self, other): return self.done("multiply", float(self)*float(other))
        def __neg__(self): return Number(-float(self))
        def shift(self, p): return self.done("shift", float(self)*2.**p)


    def added(numbers): return reduce(add, numbers)

    def numbers(n, seed=0):
        "Whole numbers, so that every sum is exact."
        return [Number(v) for v in torch.randint(-50, 50, (n,), generator=torch.Generator().manual_seed(seed)).tolist()]

    def matrix(out, in_, seed=1): return [numbers(in_, seed + 100*i) for i in range(out)]

    def tallied(product, *args):
        "What a product returns, and its operations."
        Number.tally.clear()
        return product(*args), Counts(**Number.tally)

    def exact(W, x): return [float(sum(float(a)*float(b) for a, b in zip(w, x, strict=True))) for w in W]

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/44_energy.ipynb #24c61e02
    SHAPES = {"Llama-2-7B": (32, [(4, 4096, 4096), (2, 11008, 4096), (1, 4096, 11008)], (32000, 4096)),
              "Llama-2-70B": (80, [(4, 8192, 8192), (2, 28672, 8192), (1, 8192, 28672)], (32000, 8192)),
              "OPT-66B": (64, [(4, 9216, 9216), (1, 36864, 9216), (1, 9216, 36864)], (50272, 9216))}

    def model_energy(name, product, batch=1, **prices):
        "Joules a token by what takes them; the output embedding stays in float16."
        blocks, body, head = SHAPES[name]
        counts = [times(blocks*n, product(*shape, batch)) for n, *shape in body]
        return joules(times(1/batch, total(*counts, dense_counts(*head, batch))), PRICES._replace(**prices))

    def whole(*args, **prices): return sum(model_energy(*args, **prices).values())

    # %% ../nbs/44_energy.ipynb #72db83eb
    for form, product, e in ("float16", dense_counts, 4.9), ("grid 4", grid_counts, 4.9), *(
            (f"ladder {q}", partial(lookup_counts, bits=q), .4 + .45*q) for q in (2, 3, 4)):
        left = sum(joules(product(4096, 4096)._replace(weights=0, activations=0)).values())*1e12/4096**2
        left -= 2*product(4096, 4096).weights*PRICES.buffer/4096**2
        print(f"{form:8}: e = {left:.2f} pJ")
        assert abs(left/e - 1) < .05


def test_what_decides_2():
    # %% ../nbs/44_energy.ipynb #a20cf76a
    torch.set_num_threads(1)

    # %% ../nbs/44_energy.ipynb #62f6ccca
    class Number(float):
        "A number that keeps a tally of what is done with it."
        tally = Counter()
        def done(self, what, value):
            Number.tally[what] += 1
            return Number(value)
        def __add__(self, other): return self.done("add", float(self) + float(other))
        def __sub__(self, other): return self.done("add", float(self) - float(other))
        def __mul__(self, other): return self.done("multiply", float(self)*float(other))
        def __neg__(self): return Number(-float(self))
        def shift(self, p): return self.done("shift", float(self)*2.**p)


    def added(numbers): return reduce(add, numbers)

    def numbers(n, seed=0):
        "Whole numbers, so that every sum is exact."
        return [Number(v) for v in torch.randint(-50, 50, (n,), generator=torch.Generator().manual_seed(seed)).tolist()]

    def matrix(out, in_, seed=1): return [numbers(in_, seed + 100*i) for i in range(out)]

    def tallied(product, *args):
        "What a product returns, and its operations."
        Number.tally.clear()
        return product(*args), Counts(**Number.tally)

    def exact(W, x): return [float(sum(float(a)*float(b) for a, b in zip(w, x, strict=True))) for w in W]

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/44_energy.ipynb #24c61e02
    SHAPES = {"Llama-2-7B": (32, [(4, 4096, 4096), (2, 11008, 4096), (1, 4096, 11008)], (32000, 4096)),
              "Llama-2-70B": (80, [(4, 8192, 8192), (2, 28672, 8192), (1, 8192, 28672)], (32000, 8192)),
              "OPT-66B": (64, [(4, 9216, 9216), (1, 36864, 9216), (1, 9216, 36864)], (50272, 9216))}

    def model_energy(name, product, batch=1, **prices):
        "Joules a token by what takes them; the output embedding stays in float16."
        blocks, body, head = SHAPES[name]
        counts = [times(blocks*n, product(*shape, batch)) for n, *shape in body]
        return joules(times(1/batch, total(*counts, dense_counts(*head, batch))), PRICES._replace(**prices))

    def whole(*args, **prices): return sum(model_energy(*args, **prices).values())

    # %% ../nbs/44_energy.ipynb #2b3b6c6b
    FORMS_SHOWN = {"float16": dense_counts, "grid 4": grid_counts, "grid 3": partial(grid_counts, bits=3)}
    for q in (4, 3, 2): FORMS_SHOWN[f"BCQ {q}"] = partial(lookup_counts, bits=q, scales="float")
    for q in (4, 3, 2): FORMS_SHOWN[f"sum of 3 {q}"] = partial(lookup_counts, bits=q, scales="sum")
    for q in (4, 3, 2): FORMS_SHOWN[f"ladder {q}"] = partial(lookup_counts, bits=q)
    FORMS_SHOWN["columns 3"] = partial(lookup_counts, bits=3, scales="sum", block=(None, 1))
    FORMS_SHOWN["blocks 3"] = lambda out, in_, batch=1: lookup_counts(out, in_, batch, 3, "sum", (out//8, 8))

    def stored_bits(name, product):
        "Bits of a weight, the output embedding included."
        blocks, body, head = SHAPES[name]
        layers = [(blocks*n, *shape) for n, *shape in body] + [(1, *head)]
        read = sum(n*product(*shape, 1).weights for n, *shape in layers[:-1]) + 2*head[0]*head[1]
        return 8*read/sum(n*out*in_ for n, out, in_ in layers)

    # %% ../nbs/44_energy.ipynb #35e8eace
    for name in "Llama-2-7B", "OPT-66B":
        dense = [whole(name, dense_counts, B) for B in (1, 16, 128)]
        print(f"{name:12} bits   mJ a token at batch 1, 16, 128    over float16        bits/16")
        for form, product in FORMS_SHOWN.items():
            e, b = [whole(name, product, B) for B in (1, 16, 128)], stored_bits(name, product)
            rel = [v/w for v, w in zip(e, dense, strict=True)]
            print(f"{form:11} {b:5.2f}", *(f"{1e3*v:9.1f}" for v in e), "   ", *(f"{r:5.3f}" for r in rel),
                  f"    {b/16:5.3f}")
            assert abs(rel[0]/(b/16) - 1) < .07


def test_crossovers():
    # %% ../nbs/44_energy.ipynb #a20cf76a
    torch.set_num_threads(1)

    # %% ../nbs/44_energy.ipynb #62f6ccca
    class Number(float):
        "A number that keeps a tally of what is done with it."
        tally = Counter()
        def done(self, what, value):
            Number.tally[what] += 1
            return Number(value)
        def __add__(self, other): return self.done("add", float(self) + float(other))
        def __sub__(self, other): return self.done("add", float(self) - float(other))
        def __mul__(self, other): return self.done("multiply", float(self)*float(other))
        def __neg__(self): return Number(-float(self))
        def shift(self, p): return self.done("shift", float(self)*2.**p)


    def added(numbers): return reduce(add, numbers)

    def numbers(n, seed=0):
        "Whole numbers, so that every sum is exact."
        return [Number(v) for v in torch.randint(-50, 50, (n,), generator=torch.Generator().manual_seed(seed)).tolist()]

    def matrix(out, in_, seed=1): return [numbers(in_, seed + 100*i) for i in range(out)]

    def tallied(product, *args):
        "What a product returns, and its operations."
        Number.tally.clear()
        return product(*args), Counts(**Number.tally)

    def exact(W, x): return [float(sum(float(a)*float(b) for a, b in zip(w, x, strict=True))) for w in W]

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/44_energy.ipynb #24c61e02
    SHAPES = {"Llama-2-7B": (32, [(4, 4096, 4096), (2, 11008, 4096), (1, 4096, 11008)], (32000, 4096)),
              "Llama-2-70B": (80, [(4, 8192, 8192), (2, 28672, 8192), (1, 8192, 28672)], (32000, 8192)),
              "OPT-66B": (64, [(4, 9216, 9216), (1, 36864, 9216), (1, 9216, 36864)], (50272, 9216))}

    def model_energy(name, product, batch=1, **prices):
        "Joules a token by what takes them; the output embedding stays in float16."
        blocks, body, head = SHAPES[name]
        counts = [times(blocks*n, product(*shape, batch)) for n, *shape in body]
        return joules(times(1/batch, total(*counts, dense_counts(*head, batch))), PRICES._replace(**prices))

    def whole(*args, **prices): return sum(model_energy(*args, **prices).values())

    # %% ../nbs/44_energy.ipynb #2b3b6c6b
    FORMS_SHOWN = {"float16": dense_counts, "grid 4": grid_counts, "grid 3": partial(grid_counts, bits=3)}
    for q in (4, 3, 2): FORMS_SHOWN[f"BCQ {q}"] = partial(lookup_counts, bits=q, scales="float")
    for q in (4, 3, 2): FORMS_SHOWN[f"sum of 3 {q}"] = partial(lookup_counts, bits=q, scales="sum")
    for q in (4, 3, 2): FORMS_SHOWN[f"ladder {q}"] = partial(lookup_counts, bits=q)
    FORMS_SHOWN["columns 3"] = partial(lookup_counts, bits=3, scales="sum", block=(None, 1))
    FORMS_SHOWN["blocks 3"] = lambda out, in_, batch=1: lookup_counts(out, in_, batch, 3, "sum", (out//8, 8))

    def stored_bits(name, product):
        "Bits of a weight, the output embedding included."
        blocks, body, head = SHAPES[name]
        layers = [(blocks*n, *shape) for n, *shape in body] + [(1, *head)]
        read = sum(n*product(*shape, 1).weights for n, *shape in layers[:-1]) + 2*head[0]*head[1]
        return 8*read/sum(n*out*in_ for n, out, in_ in layers)

    # %% ../nbs/44_energy.ipynb #28866147
    def first_batch(holds): return next(B for B in range(1, 1025) if holds(B))

    def half(product):
        def less(B):
            e = model_energy("Llama-2-7B", product, B)
            return e["weights"] < sum(e.values())/2
        return first_batch(less)

    # %% ../nbs/44_energy.ipynb #b9b49ccb
    for form in "float16", "grid 4", "ladder 4", "ladder 3", "ladder 2":
        print(f"{form:8}: weights from DRAM are less than half from batch {half(FORMS_SHOWN[form])}")
    for more, less in ("ladder 4", "grid 3"), ("BCQ 3", "grid 3"), ("sum of 3 4", "grid 4"):
        a, b = (partial(whole, "Llama-2-7B", FORMS_SHOWN[form]) for form in (more, less))
        print(f"{more} costs less than {less} from batch {first_batch(lambda B, a=a, b=b: a(B) < b(B))}")
        assert a(1) > b(1) and a(128) < b(128)


def test_crossovers_2():
    # %% ../nbs/44_energy.ipynb #a20cf76a
    torch.set_num_threads(1)

    # %% ../nbs/44_energy.ipynb #62f6ccca
    class Number(float):
        "A number that keeps a tally of what is done with it."
        tally = Counter()
        def done(self, what, value):
            Number.tally[what] += 1
            return Number(value)
        def __add__(self, other): return self.done("add", float(self) + float(other))
        def __sub__(self, other): return self.done("add", float(self) - float(other))
        def __mul__(self, other): return self.done("multiply", float(self)*float(other))
        def __neg__(self): return Number(-float(self))
        def shift(self, p): return self.done("shift", float(self)*2.**p)


    def added(numbers): return reduce(add, numbers)

    def numbers(n, seed=0):
        "Whole numbers, so that every sum is exact."
        return [Number(v) for v in torch.randint(-50, 50, (n,), generator=torch.Generator().manual_seed(seed)).tolist()]

    def matrix(out, in_, seed=1): return [numbers(in_, seed + 100*i) for i in range(out)]

    def tallied(product, *args):
        "What a product returns, and its operations."
        Number.tally.clear()
        return product(*args), Counts(**Number.tally)

    def exact(W, x): return [float(sum(float(a)*float(b) for a, b in zip(w, x, strict=True))) for w in W]

    def refusal(error, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} went through")

    # %% ../nbs/44_energy.ipynb #24c61e02
    SHAPES = {"Llama-2-7B": (32, [(4, 4096, 4096), (2, 11008, 4096), (1, 4096, 11008)], (32000, 4096)),
              "Llama-2-70B": (80, [(4, 8192, 8192), (2, 28672, 8192), (1, 8192, 28672)], (32000, 8192)),
              "OPT-66B": (64, [(4, 9216, 9216), (1, 36864, 9216), (1, 9216, 36864)], (50272, 9216))}

    def model_energy(name, product, batch=1, **prices):
        "Joules a token by what takes them; the output embedding stays in float16."
        blocks, body, head = SHAPES[name]
        counts = [times(blocks*n, product(*shape, batch)) for n, *shape in body]
        return joules(times(1/batch, total(*counts, dense_counts(*head, batch))), PRICES._replace(**prices))

    def whole(*args, **prices): return sum(model_energy(*args, **prices).values())

    # %% ../nbs/44_energy.ipynb #2b3b6c6b
    FORMS_SHOWN = {"float16": dense_counts, "grid 4": grid_counts, "grid 3": partial(grid_counts, bits=3)}
    for q in (4, 3, 2): FORMS_SHOWN[f"BCQ {q}"] = partial(lookup_counts, bits=q, scales="float")
    for q in (4, 3, 2): FORMS_SHOWN[f"sum of 3 {q}"] = partial(lookup_counts, bits=q, scales="sum")
    for q in (4, 3, 2): FORMS_SHOWN[f"ladder {q}"] = partial(lookup_counts, bits=q)
    FORMS_SHOWN["columns 3"] = partial(lookup_counts, bits=3, scales="sum", block=(None, 1))
    FORMS_SHOWN["blocks 3"] = lambda out, in_, batch=1: lookup_counts(out, in_, batch, 3, "sum", (out//8, 8))

    def stored_bits(name, product):
        "Bits of a weight, the output embedding included."
        blocks, body, head = SHAPES[name]
        layers = [(blocks*n, *shape) for n, *shape in body] + [(1, *head)]
        read = sum(n*product(*shape, 1).weights for n, *shape in layers[:-1]) + 2*head[0]*head[1]
        return 8*read/sum(n*out*in_ for n, out, in_ in layers)

    # %% ../nbs/44_energy.ipynb #28866147
    def first_batch(holds): return next(B for B in range(1, 1025) if holds(B))

    def half(product):
        def less(B):
            e = model_energy("Llama-2-7B", product, B)
            return e["weights"] < sum(e.values())/2
        return first_batch(less)

    # %% ../nbs/44_energy.ipynb #53020f33
    def break_even(q, **prices):
        "The price of a look-up at which a ladder of q planes costs what a grid of four bits does."
        at = [whole("Llama-2-7B", FORMS_SHOWN[form], 128, **prices, lookup=p)
              for form, p in (("grid 4", 0), (f"ladder {q}", 0), (f"ladder {q}", 1))]
        return (at[0] - at[1])/(at[2] - at[1])

    cases = {"prices of the table": {}, "operands passed on, no registers": {"register": 0},
             "and multiplications at 0.2 pJ": {"register": 0, "multiply": .2}}
    for case, prices in cases.items():
        print(f"{case:34}", ", ".join(f"{break_even(q, **prices):5.2f} pJ at {q} bits" for q in (2, 3, 4)))
    assert break_even(4) < break_even(3) < break_even(2)
    ladder, grid = (whole("Llama-2-7B", FORMS_SHOWN[form], 128, lookup=break_even(3)) for form in ("ladder 3", "grid 4"))
    assert abs(ladder/grid - 1) < 1e-9
