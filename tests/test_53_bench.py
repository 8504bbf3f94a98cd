from pathlm.bench import *
import time
import torch
from pathlm.base import SettingError
from pathlm.linear import select
from pathlm.models import pretrained
from pathlm.shiftadd import kernels
from pathlm.shiftadd.layer import ShiftAddLinear
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


def test_kernels():
    # %% ../nbs/53_bench.ipynb #42bec19a
    weight = other_ways(3, 5)["half zeros, torch CSR"].make()
    assert held(weight) == len(weight.values())*(4 + 4) + 4*4 < 8*15*(4 + 4)
    assert held((torch.ones(3), torch.ones(2, dtype=torch.uint8))) == 14
    several = copies(Way(lambda: torch.ones(25), None), 400)
    assert len(several) == 5 and len({t.data_ptr() for t in several}) == 5 and torch.equal(several[4], several[0])
    assert len(copies(Way(lambda: weight, None), 2*held(weight))) == 3 == len(copies(our_ways(64, 64)["2 bits"], 2000))
    with threads_set(2): assert torch.get_num_threads() == 2
    found = in_turns(2, {"long": lambda: sum(range(200_000)), "sleep": lambda: time.sleep(.05)})
    assert found["long"].n == 10 and 0 < found["long"].cpu and found["sleep"].cpu < .025 < found["sleep"].wall


def test_kernels_2():
    # %% ../nbs/53_bench.ipynb #bc3b7cb5
    found = list(kernel_times(128, 256, repeat=1, counts=(1, 3), cold=1))
    rows = [r for f in found for r in kernel_rows(f)]
    assert all(r["ratio"] > 0 and r["n"] == 5 and r["gb_per_s"] > 0 for r in rows)
    assert {(r["threads"], r["metric"]) for r in rows} >= {(1, "wall time"), (1, "CPU time")}
    own = [r["peer"].split(",")[0] for r in rows if r["case"] == "3 bits, 128 x 256, batch 3, 1 thread"]
    assert own[:3] == ["torch float32"]*2 + ["torch bfloat16"]
    assert {*own[3:]} <= {"torch int8", "torch int4", "read of 3 bits"}
    assert 128*256*3//8 + 128*2*2 <= found[0]["ways"]["3 bits"]["bytes"] <= 128*256*3//8 + 128*2*2 + 64
    alone = list(kernel_times(128, 256, repeat=1, those=alone_ways, counts=(1, 3), cold=1))
    names = [f"3 bits, {name}" for name in kernels.instructions()]
    assert not names or len(alone) == 1 and {*names, "3 bits, C alone"} <= alone[0]["ways"].keys()
    others = list(kernel_times(128, 256, repeat=1, those=other_ways, counts=(1, 3), cold=1))
    assert all({"half zeros, torch CSR", "4 bits, GridLinear"} <= found["ways"].keys() for found in others)
    few = list(kernel_times(100, 99, "4 bits", repeat=1, counts=(2,), cold=1))
    assert {*few[0]["ways"]} - {"read of 4 bits"} == {"4 bits", "torch float32", "torch bfloat16"}
    assert not list(kernel_times(128, 128, "no such case"))


def test_kernels_3():
    # %% ../nbs/53_bench.ipynb #83758607
    small = LLAMA | dict(vocab_size=128, hidden_size=128, intermediate_size=192, num_hidden_layers=2,
                         num_attention_heads=2, num_key_value_heads=2)
    for kind in DECODERS[1:4]:
        model = decoder(kind, small)
        assert len(token_times(model, 3)) == 3 and all(p.isfinite().all() for p in model.parameters())
        packed = [n for n, m in model.named_modules() if isinstance(m, ShiftAddLinear)]
        assert len(packed) == (15 if kind.endswith("bits") else 0) and model.dtype == getattr(torch, kind, torch.float32)
        assert model(torch.tensor([[1, 2]])).logits.isfinite().all()
    took = decode_times(("3 bits",), 1, small, 2)
    assert took["3 bits"]["wall"] > 0 and (took["3 bits"]["bytes"] is None or took["3 bits"]["bytes"] > 1e7)


def test_memory():
    # %% ../nbs/53_bench.ipynb #c4eef5c2
    small = STREAMED | dict(vocab_size=64, hidden_size=256, intermediate_size=384, num_hidden_layers=12,
                            num_attention_heads=4, num_key_value_heads=4)  # Blocks of 1.1 MB
    took = memory_rounds({"method": "gptq", "target": "up_proj"}, 1, small)
    if took["streamed"]["bytes"] is not None: assert took["streamed"]["bytes"] + 5e6 < took["in memory"]["bytes"]


def test_the_command():
    # %% ../nbs/53_bench.ipynb #c55d30af
    model, tokenizer = pretrained()
    todo, rates = sweep_text(tokenizer, 4), (0., .5, .95)
    fast = sweep(model, todo, decompose(model, "down_proj"), rates)
    slow = straightforward(model, todo, {n: [n] for n in select(model, "down_proj")}, rates)
    for i, name in enumerate(fast.layers):
        for j, rate in enumerate(rates):
            assert math.isclose(fast.nll[i, j].sum()/fast.tokens.sum(), slow[name, rate], abs_tol=1e-5)


def test_the_command_2():
    # %% ../nbs/53_bench.ipynb #7550aeaa
    model, todo = planted_prompts(depth=3, d=48, vocab=128, prompts=64)
    layers = {(i, "mlp"): list(select(model, ["mlp.c_fc", "mlp.c_proj"], [i])) for i in range(3)}
    slow, fast = straightforward_clips(model, todo, layers), clip_losses(model, todo, [0, 1, 2])
    assert slow.keys() == fast.keys() and all(math.isclose(slow[c], fast[c], rel_tol=1e-5) for c in slow)
    winner = min(slow, key=slow.get)
    assert winner == clip_race(model, todo) and winner.block == 2 and slow[winner] < slow[None] - .1


def test_the_command_3():
    # %% ../nbs/53_bench.ipynb #8a4850e2
    first, second = interleaved(3, lambda: time.sleep(.02), lambda: time.sleep(.04))
    found = row("sweep", "sleep", "wall time", "s", first, "a longer sleep", second, 3)
    assert list(found) == "bench case metric unit ours peer peer_value ratio threads n".split() and found["ratio"] > 1
    for bad in ("sweeep", None, 3), ("sweep", "no such case", 3), ("sweep", None, 0):
        try: bench(bad[0], bad[1], repeat=bad[2])
        except SettingError: pass
        else: raise AssertionError(bad)
