from pathlm.bench import *
import time
import torch
from pathlm.base import SettingError
from pathlm.linear import select
from pathlm.models import pretrained
from pathlm.spectral import decompose
from pathlm.spectral import sweep
import math


def test_adapters():
    # %% ../nbs/53_bench.ipynb #4b8bede6
    before = torch.ones(5000)
    with Peak() as peak:
        before.view(50, 100).mul_(2)
        a = torch.ones(1000)
        b = a.view(10, 100) + 1
        del b
        c = a.exp_()
    assert (peak.now, peak.most) == (4000, 8000)


def test_the_command():
    # %% ../nbs/53_bench.ipynb #c55d30af
    model, tokenizer = pretrained()
    todo, rates = sweep_text(tokenizer, 4), (0., .5, .95)
    fast = sweep(model, todo, decompose(model, "down_proj"), rates)
    slow = straightforward(model, todo, list(select(model, "down_proj")), rates)
    for i, name in enumerate(fast.layers):
        for j, rate in enumerate(rates):
            assert math.isclose(fast.nll[i, j].sum()/fast.tokens.sum(), slow[name, rate], abs_tol=1e-5)


def test_the_command_2():
    # %% ../nbs/53_bench.ipynb #8a4850e2
    first, second = interleaved(3, lambda: time.sleep(.02), lambda: time.sleep(.04))
    found = row("sweep", "sleep", "wall time", "s", first, "a longer sleep", second, 3)
    assert list(found) == "bench case metric unit ours peer peer_value ratio threads n".split() and found["ratio"] > 1
    for bad in ("sweeep", None, 3), ("sweep", "no such case", 3), ("sweep", None, 0):
        try: bench(bad[0], bad[1], repeat=bad[2])
        except SettingError: pass
        else: raise AssertionError(bad)
