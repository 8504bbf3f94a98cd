from pathlm.shiftadd.bcq import *
import torch
import torch.nn.functional as F
from pathlm.base import SettingError
import itertools
import math
import numpy as np
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st


def test_codes_and_levels():
    # %% ../nbs/40_bcq.ipynb #b41fec76
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/40_bcq.ipynb #3ad08ebf
    def gaussian(n, g, seed=0): return torch.randn(n, g, generator=torch.Generator().manual_seed(seed))

    def error(w, alpha, codes, d=None):
        "(2) for each row, in float64."
        return ((w.double() - values(alpha.double(), codes)).square()*(1 if d is None else d)).sum(1)

    def relative(w, alpha, codes): return (error(w, alpha, codes).sum()/w.double().square().sum()).sqrt().item()

    def drawn(n, g, kind, seed):
        "Weights and costs of an awkward kind."
        w, d = gaussian(n, g, seed) * 10**gaussian(n, 1, seed + 1), gaussian(n, g, seed + 2).abs()
        if kind == "gaps": w, d = w*(gaussian(n, g, seed + 3) > 0), d*(gaussian(n, g, seed + 4) > 0)
        if kind == "few values": w = w.sign()*(gaussian(n, g, seed + 3) > 0)
        return (w.double() if kind == "double" else w), d

    awkward = st.integers(1, 5), st.integers(1, 40), st.sampled_from(["plain", "gaps", "few values", "double"])

    def refusal(kind, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except kind as e: return str(e)
        raise RuntimeError(f"{f.__name__} went through")

    # %% ../nbs/40_bcq.ipynb #094c842e
    alpha, codes = torch.tensor([[3., 1.]]), torch.tensor([[0, 1, 2, 3]], dtype=torch.uint8)
    for plane in signs(codes, 2): print([f"{b:+.0f}" for b in plane[0].tolist()])
    print(levels(alpha)[0].tolist())
    assert levels(alpha).tolist() == [[-4, 2, -2, 4]] == values(alpha, codes).tolist()


def test_codes_and_levels_2():
    # %% ../nbs/40_bcq.ipynb #b41fec76
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/40_bcq.ipynb #3ad08ebf
    def gaussian(n, g, seed=0): return torch.randn(n, g, generator=torch.Generator().manual_seed(seed))

    def error(w, alpha, codes, d=None):
        "(2) for each row, in float64."
        return ((w.double() - values(alpha.double(), codes)).square()*(1 if d is None else d)).sum(1)

    def relative(w, alpha, codes): return (error(w, alpha, codes).sum()/w.double().square().sum()).sqrt().item()

    def drawn(n, g, kind, seed):
        "Weights and costs of an awkward kind."
        w, d = gaussian(n, g, seed) * 10**gaussian(n, 1, seed + 1), gaussian(n, g, seed + 2).abs()
        if kind == "gaps": w, d = w*(gaussian(n, g, seed + 3) > 0), d*(gaussian(n, g, seed + 4) > 0)
        if kind == "few values": w = w.sign()*(gaussian(n, g, seed + 3) > 0)
        return (w.double() if kind == "double" else w), d

    awkward = st.integers(1, 5), st.integers(1, 40), st.sampled_from(["plain", "gaps", "few values", "double"])

    def refusal(kind, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except kind as e: return str(e)
        raise RuntimeError(f"{f.__name__} went through")

    # %% ../nbs/40_bcq.ipynb #41e29f4d
    @given(*awkward[:2], st.integers(1, 4), st.integers(0, 99))
    @settings(deadline=None, max_examples=25, derandomize=True)
    def look_up_is_the_sum(n, g, bits, seed):
        alpha, codes = gaussian(n, bits, seed), torch.randint(0, 2**bits, (n, g)).to(torch.uint8)
        summed = torch.einsum("nq,qng->ng", alpha.double(), signs(codes, bits).double())
        torch.testing.assert_close(values(alpha, codes).double(), summed, rtol=1e-6, atol=1e-6)
        assert torch.equal(values(alpha, 2**bits - 1 - codes), -values(alpha, codes))

    look_up_is_the_sum()


def test_codes_and_levels_3():
    # %% ../nbs/40_bcq.ipynb #b41fec76
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/40_bcq.ipynb #3ad08ebf
    def gaussian(n, g, seed=0): return torch.randn(n, g, generator=torch.Generator().manual_seed(seed))

    def error(w, alpha, codes, d=None):
        "(2) for each row, in float64."
        return ((w.double() - values(alpha.double(), codes)).square()*(1 if d is None else d)).sum(1)

    def relative(w, alpha, codes): return (error(w, alpha, codes).sum()/w.double().square().sum()).sqrt().item()

    def drawn(n, g, kind, seed):
        "Weights and costs of an awkward kind."
        w, d = gaussian(n, g, seed) * 10**gaussian(n, 1, seed + 1), gaussian(n, g, seed + 2).abs()
        if kind == "gaps": w, d = w*(gaussian(n, g, seed + 3) > 0), d*(gaussian(n, g, seed + 4) > 0)
        if kind == "few values": w = w.sign()*(gaussian(n, g, seed + 3) > 0)
        return (w.double() if kind == "double" else w), d

    awkward = st.integers(1, 5), st.integers(1, 40), st.sampled_from(["plain", "gaps", "few values", "double"])

    def refusal(kind, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except kind as e: return str(e)
        raise RuntimeError(f"{f.__name__} went through")

    # %% ../nbs/40_bcq.ipynb #561f7b03
    for bits in 1, 2, 3, 4:
        alpha, codes = gaussian(50, bits).abs(), torch.randint(0, 2**bits, (50, 9)).to(torch.uint8)
        new, moved = ordered(alpha, codes)
        assert (new.diff(dim=1) <= 0).all() and moved.dtype == torch.uint8
        torch.testing.assert_close(values(new, moved), values(alpha, codes))


def test_one_plane_after_the_other():
    # %% ../nbs/40_bcq.ipynb #b41fec76
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/40_bcq.ipynb #3ad08ebf
    def gaussian(n, g, seed=0): return torch.randn(n, g, generator=torch.Generator().manual_seed(seed))

    def error(w, alpha, codes, d=None):
        "(2) for each row, in float64."
        return ((w.double() - values(alpha.double(), codes)).square()*(1 if d is None else d)).sum(1)

    def relative(w, alpha, codes): return (error(w, alpha, codes).sum()/w.double().square().sum()).sqrt().item()

    def drawn(n, g, kind, seed):
        "Weights and costs of an awkward kind."
        w, d = gaussian(n, g, seed) * 10**gaussian(n, 1, seed + 1), gaussian(n, g, seed + 2).abs()
        if kind == "gaps": w, d = w*(gaussian(n, g, seed + 3) > 0), d*(gaussian(n, g, seed + 4) > 0)
        if kind == "few values": w = w.sign()*(gaussian(n, g, seed + 3) > 0)
        return (w.double() if kind == "double" else w), d

    awkward = st.integers(1, 5), st.integers(1, 40), st.sampled_from(["plain", "gaps", "few values", "double"])

    def refusal(kind, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except kind as e: return str(e)
        raise RuntimeError(f"{f.__name__} went through")

    # %% ../nbs/40_bcq.ipynb #6a8e9f7e
    w = torch.tensor([[3., -1., .5, -2.], [0., 0., 0., 1.]])
    alpha, codes = greedy(w, 2)
    print(alpha.tolist(), values(alpha, codes).tolist())
    assert alpha.tolist() == [[1.625, .875], [.375, .25]]
    assert values(alpha, codes).tolist() == [[2.5, -.75, .75, -2.5], [-.125, -.125, -.125, .625]]


def test_one_plane_after_the_other_2():
    # %% ../nbs/40_bcq.ipynb #b41fec76
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/40_bcq.ipynb #3ad08ebf
    def gaussian(n, g, seed=0): return torch.randn(n, g, generator=torch.Generator().manual_seed(seed))

    def error(w, alpha, codes, d=None):
        "(2) for each row, in float64."
        return ((w.double() - values(alpha.double(), codes)).square()*(1 if d is None else d)).sum(1)

    def relative(w, alpha, codes): return (error(w, alpha, codes).sum()/w.double().square().sum()).sqrt().item()

    def drawn(n, g, kind, seed):
        "Weights and costs of an awkward kind."
        w, d = gaussian(n, g, seed) * 10**gaussian(n, 1, seed + 1), gaussian(n, g, seed + 2).abs()
        if kind == "gaps": w, d = w*(gaussian(n, g, seed + 3) > 0), d*(gaussian(n, g, seed + 4) > 0)
        if kind == "few values": w = w.sign()*(gaussian(n, g, seed + 3) > 0)
        return (w.double() if kind == "double" else w), d

    awkward = st.integers(1, 5), st.integers(1, 40), st.sampled_from(["plain", "gaps", "few values", "double"])

    def refusal(kind, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except kind as e: return str(e)
        raise RuntimeError(f"{f.__name__} went through")

    # %% ../nbs/40_bcq.ipynb #271b8d27
    every = signs(torch.arange(256), 8).T.double()
    for seed in range(20):
        w, d = gaussian(1, 8, seed).double(), gaussian(1, 8, seed + 50).double().abs()
        for cost in None, d:
            k = torch.ones_like(w) if cost is None else cost
            best = (k*(w - every*((k*every*w).sum(1)/k.sum())[:, None])**2).sum(1).min()
            torch.testing.assert_close(error(w, *greedy(w, 1, cost), cost)[0], best)

    @given(*awkward, st.integers(0, 99))
    @settings(deadline=None, max_examples=25, derandomize=True)
    def falls_by_g_alpha_squared(n, g, kind, seed):
        w, d = drawn(n, g, kind, seed)
        for cost in None, d:
            alpha, codes = greedy(w, 4, cost)
            fall = alpha.double().square().sum(1)*(g if cost is None else d.double().sum(1))
            start = error(w, 0*alpha, codes, cost)
            gap = error(w, alpha, codes, cost) - (start - fall)
            assert (gap.abs() <= 1e-5*start).all()
            if cost is None: torch.testing.assert_close(greedy(w, 1)[0], w.abs().mean(1, keepdim=True))

    falls_by_g_alpha_squared()


def test_one_plane_after_the_other_3():
    # %% ../nbs/40_bcq.ipynb #b41fec76
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/40_bcq.ipynb #3ad08ebf
    def gaussian(n, g, seed=0): return torch.randn(n, g, generator=torch.Generator().manual_seed(seed))

    def error(w, alpha, codes, d=None):
        "(2) for each row, in float64."
        return ((w.double() - values(alpha.double(), codes)).square()*(1 if d is None else d)).sum(1)

    def relative(w, alpha, codes): return (error(w, alpha, codes).sum()/w.double().square().sum()).sqrt().item()

    def drawn(n, g, kind, seed):
        "Weights and costs of an awkward kind."
        w, d = gaussian(n, g, seed) * 10**gaussian(n, 1, seed + 1), gaussian(n, g, seed + 2).abs()
        if kind == "gaps": w, d = w*(gaussian(n, g, seed + 3) > 0), d*(gaussian(n, g, seed + 4) > 0)
        if kind == "few values": w = w.sign()*(gaussian(n, g, seed + 3) > 0)
        return (w.double() if kind == "double" else w), d

    awkward = st.integers(1, 5), st.integers(1, 40), st.sampled_from(["plain", "gaps", "few values", "double"])

    def refusal(kind, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except kind as e: return str(e)
        raise RuntimeError(f"{f.__name__} went through")

    # %% ../nbs/40_bcq.ipynb #74bb5323
    for g in 2, 8, 128:
        w = gaussian(2**18//g, g)
        predicted, measured = (1 - 2/math.pi)*(1 - 1/g), (error(w, *greedy(w, 1)).sum()/w.numel()).item()
        print(f"g = {g:<3} squared error by (4) {predicted:.3f}, measured {measured:.3f}")
        assert abs(measured/predicted - 1) < .01


def test_scales_for_given_signs():
    # %% ../nbs/40_bcq.ipynb #b41fec76
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/40_bcq.ipynb #3ad08ebf
    def gaussian(n, g, seed=0): return torch.randn(n, g, generator=torch.Generator().manual_seed(seed))

    def error(w, alpha, codes, d=None):
        "(2) for each row, in float64."
        return ((w.double() - values(alpha.double(), codes)).square()*(1 if d is None else d)).sum(1)

    def relative(w, alpha, codes): return (error(w, alpha, codes).sum()/w.double().square().sum()).sqrt().item()

    def drawn(n, g, kind, seed):
        "Weights and costs of an awkward kind."
        w, d = gaussian(n, g, seed) * 10**gaussian(n, 1, seed + 1), gaussian(n, g, seed + 2).abs()
        if kind == "gaps": w, d = w*(gaussian(n, g, seed + 3) > 0), d*(gaussian(n, g, seed + 4) > 0)
        if kind == "few values": w = w.sign()*(gaussian(n, g, seed + 3) > 0)
        return (w.double() if kind == "double" else w), d

    awkward = st.integers(1, 5), st.integers(1, 40), st.sampled_from(["plain", "gaps", "few values", "double"])

    def refusal(kind, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except kind as e: return str(e)
        raise RuntimeError(f"{f.__name__} went through")

    # %% ../nbs/40_bcq.ipynb #3fce457f
    @given(*awkward, st.integers(1, 4), st.integers(0, 99))
    @settings(deadline=None, max_examples=25, derandomize=True)
    def is_least_squares(n, g, kind, bits, seed):
        w, d = drawn(n, g, kind, seed)
        codes = torch.randint(0, 2**bits, (n, g), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
        for cost in None, d:
            alpha, root = least_squares(w, codes, bits, cost), (torch.ones_like(w) if cost is None else d).double().sqrt()
            A, c, _ = solve(*sums(w, codes, bits, cost))
            size = root.square()*w.double().square()
            torch.testing.assert_close(quadratic(A, c, alpha) + size.sum(1), error(w, alpha, codes, cost), rtol=1e-4,
                                       atol=1e-9*size.sum().item())
            for i in range(n):
                B = (signs(codes[i], bits).double()*root[i]).T
                if np.linalg.cond(B) > 1e3 and np.linalg.matrix_rank(B) == bits: continue
                best = np.linalg.lstsq(B.numpy(), (root*w)[i].double().numpy(), rcond=1e-9)[0]
                assert (alpha[i] - torch.tensor(best)).abs().max() <= 1e-5*max(np.abs(best).max(), w[i].abs().max())

    is_least_squares()


def test_scales_for_given_signs_2():
    # %% ../nbs/40_bcq.ipynb #b41fec76
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/40_bcq.ipynb #3ad08ebf
    def gaussian(n, g, seed=0): return torch.randn(n, g, generator=torch.Generator().manual_seed(seed))

    def error(w, alpha, codes, d=None):
        "(2) for each row, in float64."
        return ((w.double() - values(alpha.double(), codes)).square()*(1 if d is None else d)).sum(1)

    def relative(w, alpha, codes): return (error(w, alpha, codes).sum()/w.double().square().sum()).sqrt().item()

    def drawn(n, g, kind, seed):
        "Weights and costs of an awkward kind."
        w, d = gaussian(n, g, seed) * 10**gaussian(n, 1, seed + 1), gaussian(n, g, seed + 2).abs()
        if kind == "gaps": w, d = w*(gaussian(n, g, seed + 3) > 0), d*(gaussian(n, g, seed + 4) > 0)
        if kind == "few values": w = w.sign()*(gaussian(n, g, seed + 3) > 0)
        return (w.double() if kind == "double" else w), d

    awkward = st.integers(1, 5), st.integers(1, 40), st.sampled_from(["plain", "gaps", "few values", "double"])

    def refusal(kind, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except kind as e: return str(e)
        raise RuntimeError(f"{f.__name__} went through")

    # %% ../nbs/40_bcq.ipynb #595e2f96
    w = gaussian(1, 6)
    for codes in torch.tensor([[0, 3, 3, 0, 3, 0]]), torch.tensor([[1, 2, 2, 1, 2, 1]]):
        alpha = least_squares(w, codes.to(torch.uint8), 2)
        torch.testing.assert_close(alpha.abs()[:, 0], alpha.abs()[:, 1])
    one = least_squares(torch.tensor([[3.]]), torch.tensor([[5]], dtype=torch.uint8), 3)
    torch.testing.assert_close(one, torch.tensor([[1., -1., 1.]]))
    assert not least_squares(w, codes.to(torch.uint8), 2, 0*w).any() and not greedy(w, 3, 0*w)[0].any()


def test_signs_for_given_scales():
    # %% ../nbs/40_bcq.ipynb #b41fec76
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/40_bcq.ipynb #3ad08ebf
    def gaussian(n, g, seed=0): return torch.randn(n, g, generator=torch.Generator().manual_seed(seed))

    def error(w, alpha, codes, d=None):
        "(2) for each row, in float64."
        return ((w.double() - values(alpha.double(), codes)).square()*(1 if d is None else d)).sum(1)

    def relative(w, alpha, codes): return (error(w, alpha, codes).sum()/w.double().square().sum()).sqrt().item()

    def drawn(n, g, kind, seed):
        "Weights and costs of an awkward kind."
        w, d = gaussian(n, g, seed) * 10**gaussian(n, 1, seed + 1), gaussian(n, g, seed + 2).abs()
        if kind == "gaps": w, d = w*(gaussian(n, g, seed + 3) > 0), d*(gaussian(n, g, seed + 4) > 0)
        if kind == "few values": w = w.sign()*(gaussian(n, g, seed + 3) > 0)
        return (w.double() if kind == "double" else w), d

    awkward = st.integers(1, 5), st.integers(1, 40), st.sampled_from(["plain", "gaps", "few values", "double"])

    def refusal(kind, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except kind as e: return str(e)
        raise RuntimeError(f"{f.__name__} went through")

    # %% ../nbs/40_bcq.ipynb #578bd6c9
    @given(*awkward, st.integers(1, 4), st.integers(0, 99))
    @settings(deadline=None, max_examples=25, derandomize=True)
    def is_nearest(n, g, kind, bits, seed):
        w = drawn(n, g, kind, seed)[0]
        for alpha in drawn(n, bits, kind, seed + 7)[0].to(w), greedy(w, bits)[0]:
            away = (w - values(alpha, assign(w, alpha))).abs()
            least = (w[:, :, None] - levels(alpha)[:, None]).abs().amin(2)
            assert (away <= least + 1e-6*w.abs()).all()
        assert (assign(0*w, w.abs().amax(1, keepdim=True)) == 1).all()

    is_nearest()
    w, alpha = gaussian(512, 128), torch.tensor([[1., .9, .4]]).expand(512, 3)
    r, plane_by_plane = w, torch.zeros_like(w)
    for a in alpha[0]: r, plane_by_plane = r - a*(r.sign()), plane_by_plane + a*r.sign()
    share = (values(alpha, assign(w, alpha)) - plane_by_plane).abs().gt(1e-6).float().mean().item()
    print(f"scales 1, .9, .4: {100*share:.0f} % of greedy signs are not the nearest level")
    assert share > .1


def test_in_turns():
    # %% ../nbs/40_bcq.ipynb #b41fec76
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/40_bcq.ipynb #3ad08ebf
    def gaussian(n, g, seed=0): return torch.randn(n, g, generator=torch.Generator().manual_seed(seed))

    def error(w, alpha, codes, d=None):
        "(2) for each row, in float64."
        return ((w.double() - values(alpha.double(), codes)).square()*(1 if d is None else d)).sum(1)

    def relative(w, alpha, codes): return (error(w, alpha, codes).sum()/w.double().square().sum()).sqrt().item()

    def drawn(n, g, kind, seed):
        "Weights and costs of an awkward kind."
        w, d = gaussian(n, g, seed) * 10**gaussian(n, 1, seed + 1), gaussian(n, g, seed + 2).abs()
        if kind == "gaps": w, d = w*(gaussian(n, g, seed + 3) > 0), d*(gaussian(n, g, seed + 4) > 0)
        if kind == "few values": w = w.sign()*(gaussian(n, g, seed + 3) > 0)
        return (w.double() if kind == "double" else w), d

    awkward = st.integers(1, 5), st.integers(1, 40), st.sampled_from(["plain", "gaps", "few values", "double"])

    def refusal(kind, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except kind as e: return str(e)
        raise RuntimeError(f"{f.__name__} went through")

    # %% ../nbs/40_bcq.ipynb #1dae8045
    @given(*awkward, st.integers(1, 4), st.integers(0, 99))
    @settings(deadline=None, max_examples=25, derandomize=True)
    def sums_agree(n, g, kind, bits, seed):
        w, d = drawn(n, g, kind, seed)
        alpha = drawn(n, bits, kind, seed + 7)[0].to(w)
        for cost in None, d, d[:1]:
            for fast, plain in zip(sorted_sums(w, cost)(alpha), sums(w, assign(w, alpha), bits, cost), strict=True):
                torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-9*w.abs().sum().item())

    sums_agree()


def test_in_turns_2():
    # %% ../nbs/40_bcq.ipynb #b41fec76
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/40_bcq.ipynb #3ad08ebf
    def gaussian(n, g, seed=0): return torch.randn(n, g, generator=torch.Generator().manual_seed(seed))

    def error(w, alpha, codes, d=None):
        "(2) for each row, in float64."
        return ((w.double() - values(alpha.double(), codes)).square()*(1 if d is None else d)).sum(1)

    def relative(w, alpha, codes): return (error(w, alpha, codes).sum()/w.double().square().sum()).sqrt().item()

    def drawn(n, g, kind, seed):
        "Weights and costs of an awkward kind."
        w, d = gaussian(n, g, seed) * 10**gaussian(n, 1, seed + 1), gaussian(n, g, seed + 2).abs()
        if kind == "gaps": w, d = w*(gaussian(n, g, seed + 3) > 0), d*(gaussian(n, g, seed + 4) > 0)
        if kind == "few values": w = w.sign()*(gaussian(n, g, seed + 3) > 0)
        return (w.double() if kind == "double" else w), d

    awkward = st.integers(1, 5), st.integers(1, 40), st.sampled_from(["plain", "gaps", "few values", "double"])

    def refusal(kind, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except kind as e: return str(e)
        raise RuntimeError(f"{f.__name__} went through")

    # %% ../nbs/40_bcq.ipynb #205f007b
    @given(*awkward, st.integers(1, 4), st.booleans(), st.integers(0, 99))
    @settings(deadline=None, max_examples=25, derandomize=True)
    def laws(n, g, kind, bits, costs, seed):
        w, d = drawn(n, g, kind, seed)
        d = d if costs else None
        slack, last = 1e-5*error(w, 0*w[:, :1], 0*w.to(torch.uint8), d), error(w, *greedy(w, bits, d), d)
        for rounds in 0, 1, 2, 5, 200:
            alpha, codes = alternate(w, bits, rounds, d)
            now = error(w, alpha, codes, d)
            assert (now <= last*(1 + 1e-6) + 1e-6*slack).all()
            last = now
        assert alpha.dtype == w.dtype and codes.dtype == torch.uint8
        assert (now <= error(w, least_squares(w, codes, bits, d), codes, d) + slack).all()
        near = dict(rtol=1e-4, atol=slack.sum().item())
        filled, cost = F.pad(w, (0, 3)), F.pad(torch.ones_like(w) if d is None else d, (0, 3))
        torch.testing.assert_close(error(filled, *alternate(filled, bits, 200, cost), cost), now, **near)
        one = None if d is None else d[:1]
        torch.testing.assert_close(error(w[:1], *alternate(w[:1], bits, 200, one), one), now[:1], **near)
        for c in 4., 2.**90, 2.**-90:
            again = alternate(c*w, bits, 200, d)
            assert torch.equal(again[0], c*alpha) and torch.equal(again[1], codes)

    laws()


def test_in_turns_3():
    # %% ../nbs/40_bcq.ipynb #b41fec76
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/40_bcq.ipynb #3ad08ebf
    def gaussian(n, g, seed=0): return torch.randn(n, g, generator=torch.Generator().manual_seed(seed))

    def error(w, alpha, codes, d=None):
        "(2) for each row, in float64."
        return ((w.double() - values(alpha.double(), codes)).square()*(1 if d is None else d)).sum(1)

    def relative(w, alpha, codes): return (error(w, alpha, codes).sum()/w.double().square().sum()).sqrt().item()

    def drawn(n, g, kind, seed):
        "Weights and costs of an awkward kind."
        w, d = gaussian(n, g, seed) * 10**gaussian(n, 1, seed + 1), gaussian(n, g, seed + 2).abs()
        if kind == "gaps": w, d = w*(gaussian(n, g, seed + 3) > 0), d*(gaussian(n, g, seed + 4) > 0)
        if kind == "few values": w = w.sign()*(gaussian(n, g, seed + 3) > 0)
        return (w.double() if kind == "double" else w), d

    awkward = st.integers(1, 5), st.integers(1, 40), st.sampled_from(["plain", "gaps", "few values", "double"])

    def refusal(kind, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except kind as e: return str(e)
        raise RuntimeError(f"{f.__name__} went through")

    # %% ../nbs/40_bcq.ipynb #f4e4d1c6
    for w in torch.zeros(2, 5), torch.full((1, 7), -.3), torch.tensor([[.1, .7, .7, -.1, .1]]), gaussian(4, 1), \
             gaussian(4, 2), torch.full((1, 3), 1e-38), torch.full((2, 130), .1):
        for bits in 2, 3, 4:
            alpha, codes = alternate(w, bits)
            assert alpha.isfinite().all() and (values(alpha, codes) - w).abs().max() <= 2e-7*w.abs().max()


def test_where_it_comes_to_rest():
    # %% ../nbs/40_bcq.ipynb #b41fec76
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/40_bcq.ipynb #3ad08ebf
    def gaussian(n, g, seed=0): return torch.randn(n, g, generator=torch.Generator().manual_seed(seed))

    def error(w, alpha, codes, d=None):
        "(2) for each row, in float64."
        return ((w.double() - values(alpha.double(), codes)).square()*(1 if d is None else d)).sum(1)

    def relative(w, alpha, codes): return (error(w, alpha, codes).sum()/w.double().square().sum()).sqrt().item()

    def drawn(n, g, kind, seed):
        "Weights and costs of an awkward kind."
        w, d = gaussian(n, g, seed) * 10**gaussian(n, 1, seed + 1), gaussian(n, g, seed + 2).abs()
        if kind == "gaps": w, d = w*(gaussian(n, g, seed + 3) > 0), d*(gaussian(n, g, seed + 4) > 0)
        if kind == "few values": w = w.sign()*(gaussian(n, g, seed + 3) > 0)
        return (w.double() if kind == "double" else w), d

    awkward = st.integers(1, 5), st.integers(1, 40), st.sampled_from(["plain", "gaps", "few values", "double"])

    def refusal(kind, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except kind as e: return str(e)
        raise RuntimeError(f"{f.__name__} went through")

    # %% ../nbs/40_bcq.ipynb #de253346
    every = torch.tensor(list(itertools.product(range(4), repeat=8)), dtype=torch.uint8)
    w, least = gaussian(40, 8), []
    for row in w:
        many = row.expand(len(every), 8)
        least.append(error(many, least_squares(many, every, 2), every).min())
    least = torch.stack(least)
    for f in greedy, alternate, fit_codes:
        e = error(w, *f(w, 2))
        print(f"{f.__name__:9} squared error {e.sum()/least.sum():.2f} of the least,",
              f"the least in {(e < least*1.0001).sum()} of 40 groups")
        assert (e > least*.9999).all()


def test_where_it_comes_to_rest_2():
    # %% ../nbs/40_bcq.ipynb #b41fec76
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/40_bcq.ipynb #3ad08ebf
    def gaussian(n, g, seed=0): return torch.randn(n, g, generator=torch.Generator().manual_seed(seed))

    def error(w, alpha, codes, d=None):
        "(2) for each row, in float64."
        return ((w.double() - values(alpha.double(), codes)).square()*(1 if d is None else d)).sum(1)

    def relative(w, alpha, codes): return (error(w, alpha, codes).sum()/w.double().square().sum()).sqrt().item()

    def drawn(n, g, kind, seed):
        "Weights and costs of an awkward kind."
        w, d = gaussian(n, g, seed) * 10**gaussian(n, 1, seed + 1), gaussian(n, g, seed + 2).abs()
        if kind == "gaps": w, d = w*(gaussian(n, g, seed + 3) > 0), d*(gaussian(n, g, seed + 4) > 0)
        if kind == "few values": w = w.sign()*(gaussian(n, g, seed + 3) > 0)
        return (w.double() if kind == "double" else w), d

    awkward = st.integers(1, 5), st.integers(1, 40), st.sampled_from(["plain", "gaps", "few values", "double"])

    def refusal(kind, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except kind as e: return str(e)
        raise RuntimeError(f"{f.__name__} went through")

    # %% ../nbs/40_bcq.ipynb #d27558da
    w = gaussian(2048, 128)
    for bits in 2, 3, 4:
        ways = alternate(w, bits), alternate(w, bits, start=grid_start(w, bits)), fit_codes(w, bits)
        one, two, better = (relative(w, *solution) for solution in ways)
        print(f"{bits} bits: from greedy {one:.3f}, from a grid {two:.3f}, the better in each row {better:.3f}")
        assert (error(w, *ways[2]) <= torch.minimum(error(w, *ways[0]), error(w, *ways[1]))*(1 + 1e-5)).all()
        assert better < one*{2: 1, 3: .99, 4: .95}[bits]
        for c in 2.**90, 2.**-90:
            again = fit_codes(c*w[:64], bits)
            assert torch.equal(again[0], c*ways[2][0][:64]) and torch.equal(again[1], ways[2][1][:64])
    assert 1.65 < greedy(w, 4)[0].sum(1).mean() < 1.75
    if torch.cuda.is_available():
        for bits in 1, 2, 3, 4:
            (alpha, codes), there = fit_codes(w, bits), fit_codes(w.cuda(), bits)
            assert (there[1].cpu() != codes).float().mean() < 1e-3
            torch.testing.assert_close(error(w, *(t.cpu() for t in there)), error(w, alpha, codes), rtol=1e-3, atol=0)


def test_beside_the_best_quantizer():
    # %% ../nbs/40_bcq.ipynb #b41fec76
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/40_bcq.ipynb #3ad08ebf
    def gaussian(n, g, seed=0): return torch.randn(n, g, generator=torch.Generator().manual_seed(seed))

    def error(w, alpha, codes, d=None):
        "(2) for each row, in float64."
        return ((w.double() - values(alpha.double(), codes)).square()*(1 if d is None else d)).sum(1)

    def relative(w, alpha, codes): return (error(w, alpha, codes).sum()/w.double().square().sum()).sqrt().item()

    def drawn(n, g, kind, seed):
        "Weights and costs of an awkward kind."
        w, d = gaussian(n, g, seed) * 10**gaussian(n, 1, seed + 1), gaussian(n, g, seed + 2).abs()
        if kind == "gaps": w, d = w*(gaussian(n, g, seed + 3) > 0), d*(gaussian(n, g, seed + 4) > 0)
        if kind == "few values": w = w.sign()*(gaussian(n, g, seed + 3) > 0)
        return (w.double() if kind == "double" else w), d

    awkward = st.integers(1, 5), st.integers(1, 40), st.sampled_from(["plain", "gaps", "few values", "double"])

    def refusal(kind, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except kind as e: return str(e)
        raise RuntimeError(f"{f.__name__} went through")

    # %% ../nbs/40_bcq.ipynb #91215f95
    for bits in 1, 2, 3, 4:
        v = levels(2.**-torch.arange(1, bits + 1)[None])[0].sort().values
        assert torch.equal(v*2**bits, torch.arange(1 - 2**bits, 2**bits, 2).float())


def test_beside_the_best_quantizer_2():
    # %% ../nbs/40_bcq.ipynb #b41fec76
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/40_bcq.ipynb #3ad08ebf
    def gaussian(n, g, seed=0): return torch.randn(n, g, generator=torch.Generator().manual_seed(seed))

    def error(w, alpha, codes, d=None):
        "(2) for each row, in float64."
        return ((w.double() - values(alpha.double(), codes)).square()*(1 if d is None else d)).sum(1)

    def relative(w, alpha, codes): return (error(w, alpha, codes).sum()/w.double().square().sum()).sqrt().item()

    def drawn(n, g, kind, seed):
        "Weights and costs of an awkward kind."
        w, d = gaussian(n, g, seed) * 10**gaussian(n, 1, seed + 1), gaussian(n, g, seed + 2).abs()
        if kind == "gaps": w, d = w*(gaussian(n, g, seed + 3) > 0), d*(gaussian(n, g, seed + 4) > 0)
        if kind == "few values": w = w.sign()*(gaussian(n, g, seed + 3) > 0)
        return (w.double() if kind == "double" else w), d

    awkward = st.integers(1, 5), st.integers(1, 40), st.sampled_from(["plain", "gaps", "few values", "double"])

    def refusal(kind, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except kind as e: return str(e)
        raise RuntimeError(f"{f.__name__} went through")

    # %% ../nbs/40_bcq.ipynb #6f52bb0f
    def normal_sums(alpha):
        middle, codes = middles(alpha)
        Phi, phi = F.pad(torch.special.ndtr(middle), (1, 1)), F.pad((-middle**2/2).exp()/math.sqrt(2*math.pi), (1, 1))
        Phi[:, -1] = 1
        return tuple(torch.empty_like(t[:, 1:]).scatter(1, codes, t.diff(dim=1)) for t in (Phi, -phi))

    def normal_error(alpha):
        "The mean square error of the levels for a standard normal weight."
        A, c, _ = solve(*normal_sums(alpha))
        return 1 + quadratic(A, c, alpha)

    def best_normal(bits, starts=50, rounds=300):
        "The best scales that alternation finds from random starts."
        alpha = 1.5*torch.rand(starts, bits, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        for _ in range(rounds): alpha = solve(*normal_sums(alpha))[2].abs().sort(dim=1, descending=True)[0]
        return alpha[normal_error(alpha).argmin()][None]

    lloyd = {1: .3634, 2: .1175, 3: .03454, 4: .009497}
    steps = torch.linspace(.5, 6, 2001, dtype=torch.float64)[:, None]
    w = gaussian(2**13, 128)
    print("bits  grid     planes   Lloyd–Max  bound    planes, groups of 128")
    for bits in 1, 2, 3, 4:
        grid = normal_error(steps*2.**-torch.arange(1, bits + 1)).min().item()
        alpha = best_normal(bits)
        planes, fitted = normal_error(alpha).item(), relative(w, *fit_codes(w, bits))**2
        print(f"{bits}     {grid:.5f}  {planes:.5f}  {lloyd[bits]:.5f}    {4**-bits:.5f}  {fitted:.4f}, scales",
              [round(a, 2) for a in alpha[0].tolist()])
        assert planes < grid*1.00001 and planes > lloyd[bits]*.999 and (bits > 2 or planes < lloyd[bits]*1.001)
        assert bits < 3 or 1.01 < planes/lloyd[bits] < 1.05
        assert bits < 4 or 2.65 < alpha.sum() < 2.75


def test_what_a_power_of_two_costs():
    # %% ../nbs/40_bcq.ipynb #b41fec76
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/40_bcq.ipynb #3ad08ebf
    def gaussian(n, g, seed=0): return torch.randn(n, g, generator=torch.Generator().manual_seed(seed))

    def error(w, alpha, codes, d=None):
        "(2) for each row, in float64."
        return ((w.double() - values(alpha.double(), codes)).square()*(1 if d is None else d)).sum(1)

    def relative(w, alpha, codes): return (error(w, alpha, codes).sum()/w.double().square().sum()).sqrt().item()

    def drawn(n, g, kind, seed):
        "Weights and costs of an awkward kind."
        w, d = gaussian(n, g, seed) * 10**gaussian(n, 1, seed + 1), gaussian(n, g, seed + 2).abs()
        if kind == "gaps": w, d = w*(gaussian(n, g, seed + 3) > 0), d*(gaussian(n, g, seed + 4) > 0)
        if kind == "few values": w = w.sign()*(gaussian(n, g, seed + 3) > 0)
        return (w.double() if kind == "double" else w), d

    awkward = st.integers(1, 5), st.integers(1, 40), st.sampled_from(["plain", "gaps", "few values", "double"])

    def refusal(kind, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except kind as e: return str(e)
        raise RuntimeError(f"{f.__name__} went through")

    # %% ../nbs/40_bcq.ipynb #e257082e
    def signed_powers(x, K):
        "Round to a sum of K signed powers of two, each taken from what the earlier ones left."
        total = torch.zeros_like(x)
        for _ in range(K):
            r = x - total
            total = total + torch.where(r == 0, 0, r.sign()*2.**r.abs().log2().round())
        return total

    def octave(): return 2.**torch.linspace(-.5, .5, 500_001, dtype=torch.float64)[1:-1]

    # %% ../nbs/40_bcq.ipynb #20215f79
    for K in 1, 2, 3, 4:
        e, theta = (signed_powers(octave(), K)/octave() - 1).abs(), math.sqrt(2)*4**(1 - K)
        bound = (math.sqrt(2) - 1)*theta/(sum(4**-k for k in range(K - 1)) + theta)
        print(f"K = {K}: mean {100*e.mean():.2f} %, largest {100*e.max():.2f} %, by (9) {100*bound:.2f} %")
        assert .999*bound < e.max() <= bound
        if K == 1:
            assert abs(e.mean() - (math.sqrt(2) + math.sqrt(.5) - 2)/math.log(2)) < 1e-6
            assert abs(e.square().mean() - (1 - math.sqrt(2)/math.log(2) + .75/math.log(2))) < 1e-6
    second = signed_powers(octave(), 2) - signed_powers(octave(), 1)
    assert abs((second < 0).double().mean() - .5) < 1e-5
    assert signed_powers(torch.tensor([0., 6., -.75]), 3).tolist() == [0, 6, -.75]


def test_what_a_power_of_two_costs_2():
    # %% ../nbs/40_bcq.ipynb #b41fec76
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/40_bcq.ipynb #3ad08ebf
    def gaussian(n, g, seed=0): return torch.randn(n, g, generator=torch.Generator().manual_seed(seed))

    def error(w, alpha, codes, d=None):
        "(2) for each row, in float64."
        return ((w.double() - values(alpha.double(), codes)).square()*(1 if d is None else d)).sum(1)

    def relative(w, alpha, codes): return (error(w, alpha, codes).sum()/w.double().square().sum()).sqrt().item()

    def drawn(n, g, kind, seed):
        "Weights and costs of an awkward kind."
        w, d = gaussian(n, g, seed) * 10**gaussian(n, 1, seed + 1), gaussian(n, g, seed + 2).abs()
        if kind == "gaps": w, d = w*(gaussian(n, g, seed + 3) > 0), d*(gaussian(n, g, seed + 4) > 0)
        if kind == "few values": w = w.sign()*(gaussian(n, g, seed + 3) > 0)
        return (w.double() if kind == "double" else w), d

    awkward = st.integers(1, 5), st.integers(1, 40), st.sampled_from(["plain", "gaps", "few values", "double"])

    def refusal(kind, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except kind as e: return str(e)
        raise RuntimeError(f"{f.__name__} went through")

    # %% ../nbs/40_bcq.ipynb #e257082e
    def signed_powers(x, K):
        "Round to a sum of K signed powers of two, each taken from what the earlier ones left."
        total = torch.zeros_like(x)
        for _ in range(K):
            r = x - total
            total = total + torch.where(r == 0, 0, r.sign()*2.**r.abs().log2().round())
        return total

    def octave(): return 2.**torch.linspace(-.5, .5, 500_001, dtype=torch.float64)[1:-1]

    # %% ../nbs/40_bcq.ipynb #6ff2e17b
    def over_an_octave(n, g): return gaussian(n, g)*2**torch.rand(n, 1, generator=torch.Generator().manual_seed(1))

    # %% ../nbs/40_bcq.ipynb #f164b928
    w = over_an_octave(1024, 128)
    print("shares of the weights' square: for the best scales; for rounded ones predicted, measured, and with codes anew")
    for bits, K in itertools.product((1, 2, 3, 4), (1, 2, 3)):
        codes = alternate(w, bits)[1]
        alpha = least_squares(w, codes, bits).double()
        new, mean_square = signed_powers(alpha, K), (signed_powers(octave(), K)/octave() - 1).square().mean()
        best, same, anew = error(w, alpha, codes), error(w, new, codes), error(w, new, assign(w, new.float()))
        more = torch.einsum("ni,nij,nj->n", new - alpha, solve(*sums(w, codes, bits))[0], new - alpha)
        torch.testing.assert_close(same, best + more, rtol=1e-5, atol=1e-6)
        assert (anew <= same*(1 + 1e-5)).all() and (bits > 1 or torch.allclose(anew, same))
        predicted = best + 128*alpha.square().sum(1)*mean_square
        best, predicted, same, anew = ((e/w.double().square().sum(1)).mean().item() for e in (best, predicted, same, anew))
        print(f"{bits} bits, K = {K}: {best:.4f}, {predicted:.4f}, {same:.4f}, {anew:.4f}")
        assert .8 < (predicted - best)/(same - best) < 1.25


def test_what_a_power_of_two_costs_3():
    # %% ../nbs/40_bcq.ipynb #b41fec76
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/40_bcq.ipynb #3ad08ebf
    def gaussian(n, g, seed=0): return torch.randn(n, g, generator=torch.Generator().manual_seed(seed))

    def error(w, alpha, codes, d=None):
        "(2) for each row, in float64."
        return ((w.double() - values(alpha.double(), codes)).square()*(1 if d is None else d)).sum(1)

    def relative(w, alpha, codes): return (error(w, alpha, codes).sum()/w.double().square().sum()).sqrt().item()

    def drawn(n, g, kind, seed):
        "Weights and costs of an awkward kind."
        w, d = gaussian(n, g, seed) * 10**gaussian(n, 1, seed + 1), gaussian(n, g, seed + 2).abs()
        if kind == "gaps": w, d = w*(gaussian(n, g, seed + 3) > 0), d*(gaussian(n, g, seed + 4) > 0)
        if kind == "few values": w = w.sign()*(gaussian(n, g, seed + 3) > 0)
        return (w.double() if kind == "double" else w), d

    awkward = st.integers(1, 5), st.integers(1, 40), st.sampled_from(["plain", "gaps", "few values", "double"])

    def refusal(kind, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except kind as e: return str(e)
        raise RuntimeError(f"{f.__name__} went through")

    # %% ../nbs/40_bcq.ipynb #e257082e
    def signed_powers(x, K):
        "Round to a sum of K signed powers of two, each taken from what the earlier ones left."
        total = torch.zeros_like(x)
        for _ in range(K):
            r = x - total
            total = total + torch.where(r == 0, 0, r.sign()*2.**r.abs().log2().round())
        return total

    def octave(): return 2.**torch.linspace(-.5, .5, 500_001, dtype=torch.float64)[1:-1]

    # %% ../nbs/40_bcq.ipynb #6ff2e17b
    def over_an_octave(n, g): return gaussian(n, g)*2**torch.rand(n, 1, generator=torch.Generator().manual_seed(1))

    # %% ../nbs/40_bcq.ipynb #2beb0789
    w = over_an_octave(512, 128)
    print("bits  K   rounded in each round   once, at the end   share of rows that rise on the way")
    for bits, K in itertools.product((2, 3, 4), (1, 2, 3)):
        path = [alternate(w, bits, r, rounding=lambda a, K=K: signed_powers(a, K)) for r in range(1, 16)]
        e = torch.stack([error(w, *p) for p in path])
        alpha = signed_powers(alternate(w, bits)[0], K)
        each, end = relative(w, *path[-1]), relative(w, alpha, assign(w, alpha))
        rise = (e.diff(dim=0) > 1e-5*e[:-1]).any(0).double().mean().item()
        print(f"{bits}     {K}   {each:.4f}                  {end:.4f}             {rise:.1f}")
        assert end < each and (K == 1 or rise > .02)


def test_blocks_of_a_matrix():
    # %% ../nbs/40_bcq.ipynb #b41fec76
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/40_bcq.ipynb #3ad08ebf
    def gaussian(n, g, seed=0): return torch.randn(n, g, generator=torch.Generator().manual_seed(seed))

    def error(w, alpha, codes, d=None):
        "(2) for each row, in float64."
        return ((w.double() - values(alpha.double(), codes)).square()*(1 if d is None else d)).sum(1)

    def relative(w, alpha, codes): return (error(w, alpha, codes).sum()/w.double().square().sum()).sqrt().item()

    def drawn(n, g, kind, seed):
        "Weights and costs of an awkward kind."
        w, d = gaussian(n, g, seed) * 10**gaussian(n, 1, seed + 1), gaussian(n, g, seed + 2).abs()
        if kind == "gaps": w, d = w*(gaussian(n, g, seed + 3) > 0), d*(gaussian(n, g, seed + 4) > 0)
        if kind == "few values": w = w.sign()*(gaussian(n, g, seed + 3) > 0)
        return (w.double() if kind == "double" else w), d

    awkward = st.integers(1, 5), st.integers(1, 40), st.sampled_from(["plain", "gaps", "few values", "double"])

    def refusal(kind, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except kind as e: return str(e)
        raise RuntimeError(f"{f.__name__} went through")

    # %% ../nbs/40_bcq.ipynb #5dc91a45
    W = torch.arange(12.).view(3, 4)
    print(tiles(W, (2, 3)).long().tolist())
    assert tiles(W, (2, 3))[2].tolist() == [8, 9, 10, 0, 0, 0] and inside((3, 4), (2, 3)).sum(1).tolist() == [6, 2, 3, 1]


def test_blocks_of_a_matrix_2():
    # %% ../nbs/40_bcq.ipynb #b41fec76
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/40_bcq.ipynb #3ad08ebf
    def gaussian(n, g, seed=0): return torch.randn(n, g, generator=torch.Generator().manual_seed(seed))

    def error(w, alpha, codes, d=None):
        "(2) for each row, in float64."
        return ((w.double() - values(alpha.double(), codes)).square()*(1 if d is None else d)).sum(1)

    def relative(w, alpha, codes): return (error(w, alpha, codes).sum()/w.double().square().sum()).sqrt().item()

    def drawn(n, g, kind, seed):
        "Weights and costs of an awkward kind."
        w, d = gaussian(n, g, seed) * 10**gaussian(n, 1, seed + 1), gaussian(n, g, seed + 2).abs()
        if kind == "gaps": w, d = w*(gaussian(n, g, seed + 3) > 0), d*(gaussian(n, g, seed + 4) > 0)
        if kind == "few values": w = w.sign()*(gaussian(n, g, seed + 3) > 0)
        return (w.double() if kind == "double" else w), d

    awkward = st.integers(1, 5), st.integers(1, 40), st.sampled_from(["plain", "gaps", "few values", "double"])

    def refusal(kind, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except kind as e: return str(e)
        raise RuntimeError(f"{f.__name__} went through")

    # %% ../nbs/40_bcq.ipynb #f43162d6
    def coded_blocks(W, bits, block, pad=False):
        "Codes (out, in) and scales (q, R, C) of a weight."
        block = check_block(W, block, pad)
        alpha, codes = fit_codes(tiles(W, block), bits, d=inside(W.shape, block))
        return untile(codes, W.shape, block), alpha.T.reshape(bits, -(-W.shape[0]//block[0]), -1)

    # %% ../nbs/40_bcq.ipynb #ddb880e3
    @given(st.integers(1, 7), st.integers(1, 9), st.integers(1, 8), st.integers(1, 10), st.integers(1, 4),
           st.sampled_from([torch.float32, torch.float16, torch.bfloat16]), st.integers(0, 99))
    @settings(deadline=None, max_examples=25, derandomize=True)
    def blocks(out, in_, r, c, bits, dtype, seed):
        W = gaussian(out, in_, seed).to(dtype)
        assert torch.equal(untile(tiles(W, (r, c)), W.shape, (r, c)), W)
        codes, alpha = coded_blocks(W, bits, (r, c), pad=True)
        again = coded_blocks(W.float(), bits, (r, c), pad=True)
        assert torch.equal(codes, again[0]) and torch.equal(alpha, again[1]) and alpha.dtype == torch.float32
        assert codes.shape == W.shape and alpha.shape == (bits, -(-out//min(r, out)), -(-in_//min(c, in_)))
        for i, j in itertools.product(range(alpha.shape[1]), range(alpha.shape[2])):
            part = W[i*r:(i + 1)*r, j*c:(j + 1)*c].float()
            own, a = codes[i*r:(i + 1)*r, j*c:(j + 1)*c].reshape(1, -1), alpha[:, i, j][None]
            e, alone = error(part.reshape(1, -1), a, own), error(part.reshape(1, -1), *fit_codes(part.reshape(1, -1), bits))
            torch.testing.assert_close(e, alone, rtol=1e-3, atol=1e-6)

    blocks()
    W = gaussian(6, 8)
    for block in (1, 8), (None, 1), (3, 2), (None, None), (1, None):
        codes, alpha = coded_blocks(W, 2, block)
        r, c = (n if b is None else b for b, n in zip(block, W.shape, strict=True))
        assert alpha.shape == (2, 6//r, 8//c)
        each = alpha.repeat_interleave(r, 1).repeat_interleave(c, 2)
        by_planes, by_tiles = (each*signs(codes, 2)).sum(0), values(alpha.flatten(1).T, tiles(codes, (r, c)))
        torch.testing.assert_close(by_planes, untile(by_tiles, W.shape, (r, c)))


def test_blocks_of_a_matrix_3():
    # %% ../nbs/40_bcq.ipynb #b41fec76
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/40_bcq.ipynb #3ad08ebf
    def gaussian(n, g, seed=0): return torch.randn(n, g, generator=torch.Generator().manual_seed(seed))

    def error(w, alpha, codes, d=None):
        "(2) for each row, in float64."
        return ((w.double() - values(alpha.double(), codes)).square()*(1 if d is None else d)).sum(1)

    def relative(w, alpha, codes): return (error(w, alpha, codes).sum()/w.double().square().sum()).sqrt().item()

    def drawn(n, g, kind, seed):
        "Weights and costs of an awkward kind."
        w, d = gaussian(n, g, seed) * 10**gaussian(n, 1, seed + 1), gaussian(n, g, seed + 2).abs()
        if kind == "gaps": w, d = w*(gaussian(n, g, seed + 3) > 0), d*(gaussian(n, g, seed + 4) > 0)
        if kind == "few values": w = w.sign()*(gaussian(n, g, seed + 3) > 0)
        return (w.double() if kind == "double" else w), d

    awkward = st.integers(1, 5), st.integers(1, 40), st.sampled_from(["plain", "gaps", "few values", "double"])

    def refusal(kind, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except kind as e: return str(e)
        raise RuntimeError(f"{f.__name__} went through")

    # %% ../nbs/40_bcq.ipynb #f43162d6
    def coded_blocks(W, bits, block, pad=False):
        "Codes (out, in) and scales (q, R, C) of a weight."
        block = check_block(W, block, pad)
        alpha, codes = fit_codes(tiles(W, block), bits, d=inside(W.shape, block))
        return untile(codes, W.shape, block), alpha.T.reshape(bits, -(-W.shape[0]//block[0]), -1)

    # %% ../nbs/40_bcq.ipynb #6bd24b8f
    W, name = torch.ones(4, 96), "model.layers.0.mlp.up_proj"
    print(refusal(SettingError, check_bits, 5))
    print(refusal(SettingError, check_block, W, (1, 128), name=name))
    for bits, f in itertools.product((0, 5, 3., True, None, np.int64(3)), (greedy, alternate, fit_codes)):
        assert refusal(SettingError, f, W, bits) == f"bits={bits!r}, expected an int from 1 to 4"
    for w, f in itertools.product((W[:0], W[:, :0], W[0]), (greedy, alternate, fit_codes)):
        assert "expected (groups, weights)" in refusal(SettingError, f, w, 3)
    for block in (0, 96), (1, 2.), 96, (1, 2, 3), (True, 96), "ab", None:
        assert refusal(SettingError, check_block, W, block).startswith(f"block={block}, expected")
    assert "does not divide" in refusal(SettingError, check_block, W, (3, 96))
    assert "has shape (4,)" in refusal(SettingError, check_block, torch.ones(4), (1, 2))
    assert check_block(W, (10**9, 10**9), True) == (4, 96) == check_block(W, (None, None))


def test_measured():
    # %% ../nbs/40_bcq.ipynb #b41fec76
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/40_bcq.ipynb #3ad08ebf
    def gaussian(n, g, seed=0): return torch.randn(n, g, generator=torch.Generator().manual_seed(seed))

    def error(w, alpha, codes, d=None):
        "(2) for each row, in float64."
        return ((w.double() - values(alpha.double(), codes)).square()*(1 if d is None else d)).sum(1)

    def relative(w, alpha, codes): return (error(w, alpha, codes).sum()/w.double().square().sum()).sqrt().item()

    def drawn(n, g, kind, seed):
        "Weights and costs of an awkward kind."
        w, d = gaussian(n, g, seed) * 10**gaussian(n, 1, seed + 1), gaussian(n, g, seed + 2).abs()
        if kind == "gaps": w, d = w*(gaussian(n, g, seed + 3) > 0), d*(gaussian(n, g, seed + 4) > 0)
        if kind == "few values": w = w.sign()*(gaussian(n, g, seed + 3) > 0)
        return (w.double() if kind == "double" else w), d

    awkward = st.integers(1, 5), st.integers(1, 40), st.sampled_from(["plain", "gaps", "few values", "double"])

    def refusal(kind, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except kind as e: return str(e)
        raise RuntimeError(f"{f.__name__} went through")

    # %% ../nbs/40_bcq.ipynb #1d309193
    def conjugate_gradients(A, c, x):
        x, r = x[:, :, None], c[:, :, None] - A @ x[:, :, None]
        p, rr = r, (r*r).sum(1, keepdim=True)
        for _ in range(A.shape[1]):
            step = rr/((p*(A @ p)).sum(1, keepdim=True) + 1e-6)
            x, r = x + step*p, r - step*(A @ p)
            p, rr = r + (r*r).sum(1, keepdim=True)/(rr + 1e-6)*p, (r*r).sum(1, keepdim=True)
        return x[:, :, 0]

    for scale in 1., .02, .001:
        w = scale*gaussian(1024, 128)
        alpha = greedy(w, 3)[0]
        codes = assign(w, alpha)
        for _ in range(15):
            A, c, _ = (t.float() for t in solve(*sums(w, codes, 3)))
            alpha = conjugate_gradients(A, c, alpha).abs().sort(dim=1, descending=True)[0]
            codes = assign(w, alpha)
        ours, theirs = relative(w, *alternate(w, 3)), relative(w, alpha, codes)
        print(f"weights of size {scale}: solved {ours:.3f}, by conjugate gradients {theirs:.3f}")
        assert abs(theirs/ours - 1) < .003


def test_measured_2():
    # %% ../nbs/40_bcq.ipynb #b41fec76
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/40_bcq.ipynb #3ad08ebf
    def gaussian(n, g, seed=0): return torch.randn(n, g, generator=torch.Generator().manual_seed(seed))

    def error(w, alpha, codes, d=None):
        "(2) for each row, in float64."
        return ((w.double() - values(alpha.double(), codes)).square()*(1 if d is None else d)).sum(1)

    def relative(w, alpha, codes): return (error(w, alpha, codes).sum()/w.double().square().sum()).sqrt().item()

    def drawn(n, g, kind, seed):
        "Weights and costs of an awkward kind."
        w, d = gaussian(n, g, seed) * 10**gaussian(n, 1, seed + 1), gaussian(n, g, seed + 2).abs()
        if kind == "gaps": w, d = w*(gaussian(n, g, seed + 3) > 0), d*(gaussian(n, g, seed + 4) > 0)
        if kind == "few values": w = w.sign()*(gaussian(n, g, seed + 3) > 0)
        return (w.double() if kind == "double" else w), d

    awkward = st.integers(1, 5), st.integers(1, 40), st.sampled_from(["plain", "gaps", "few values", "double"])

    def refusal(kind, f, *args, **kwargs):
        "The message with which `f` refuses."
        try: f(*args, **kwargs)
        except kind as e: return str(e)
        raise RuntimeError(f"{f.__name__} went through")

    # %% ../nbs/40_bcq.ipynb #a15e207f
    w = .02*gaussian(2048, 128)
    for bits in 2, 3, 4:
        alpha, codes = fit_codes(w, bits)
        rise = relative(w, alpha.bfloat16().float(), codes)/relative(w, alpha, codes) - 1
        print(f"{bits} bits: the error rises by {rise:.1e} of itself")
        assert 0 < rise < 1e-3
