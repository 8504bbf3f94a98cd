from pathlm.choosing import *
import json
import tempfile
from pathlib import Path
import torch
from pathlm.adapters.core import attach
from pathlm.adapters.lora import LoRA
from pathlm.adapters.svft import SVFT
from pathlm.base import SettingError
from pathlm.base import read_json
from pathlm.grid import quantize
from pathlm.paths import ground
from unittest.mock import patch
import matplotlib.pyplot as plt
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from pathlm import choosing
from pathlm.checkpoints import save
from pathlm.models import new_model
from pathlm.models import train_tokenizer
from pathlm.prompts import TASKS


def test_paths_as_sequences_of_calls():
    # %% ../nbs/56_choosing.ipynb #ce6ba26f
    assert str(seeing(quantize, bits=4, group=None)) == "quantize(model, seen, bits=4, group=None)"
    assert str(blind(attach, config=LoRA(r=4, learning_rate=1e-3))) == \
           "attach(model, config=LoRA(r=4, learning_rate=0.001))"


def test_paths_as_sequences_of_calls_2():
    # %% ../nbs/56_choosing.ipynb #183f534d
    way = seeing(quantize, bits=4, group=64), blind(attach, config=SVFT(pattern="banded"))
    print(code("integers, then SVFT", way, ground()))

    # %% ../nbs/56_choosing.ipynb #a270aa45
    for name, steps in all_paths(new_model()).items():
        known = {}
        exec("\n".join(imports(steps)), known)
        for step in steps:
            assert known[step.change.__name__] is step.change
            for value in step.settings.values():
                again = eval(spelled(value), known)
                assert again == value and type(again) is type(value)
        compile(code(name, steps, ground(), r"C:\texts\a 'text'.txt"), name, "exec")


def test_the_front_and_the_budget():
    # %% ../nbs/56_choosing.ipynb #032fe795
    assert front([(1, 3), (2, 2), (3, 1), (2, 3), (2, 2)]) == [True, True, True, False, True]


    @settings(deadline=None, max_examples=25, derandomize=True)
    @given(st.lists(st.tuples(*[st.integers(0, 5)]*3), min_size=1, max_size=12))
    def front_holds_the_best(costs):
        on = front(costs)
        best = [min(c[i] for c in costs) for i in range(3)]
        assert all(any(c[i] == best[i] for c, f in zip(costs, on, strict=True) if f) for i in range(3))
        kept = [q for q, f in zip(costs, on, strict=True) if f]
        def beaten(p): return any(q != p and all(a <= b for a, b in zip(q, p, strict=True)) for q in kept)
        assert [not beaten(p) for p in costs] == on  # What is off the front is dominated by something on it
        assert on[min(range(len(costs)), key=lambda k: sum(w*c for w, c in zip((3, 2, 1), costs[k], strict=True)))]


    front_holds_the_best()


def test_the_front_and_the_budget_2():
    # %% ../nbs/56_choosing.ipynb #bc26bce8
    some = [dict(path=n, loss=l, stored_bytes=s*1e6, peak_bytes=9e6, tokens_per_second=t, joules=1e-6)
            for n, l, s, t in (("dense", 2.0, 10, 100), ("small", 2.1, 4, 50), ("tiny", 2.5, 2, 200))]
    assert [recommend(some, {"mb": b})["path"] for b in (12, 5, 3)] == ["dense", "small", "tiny"]
    assert recommend(some, {"mb": 1}) is None and recommend(some, {"mb": 5, "ms": 10})["path"] == "tiny"
    def refused(limits):
        try: recommend(some, limits)
        except SettingError as e: return str(e)
    assert "'kb'" in refused({"kb": 3}) and "above 0" in refused({"mb": 0})
    assert all("above 0" in refused({"mb": float(x)}) for x in ("nan", "inf"))


def test_a_small_model_from_end_to_end():
    # %% ../nbs/56_choosing.ipynb #5509045d
    def tiny_ground(folder):
        text = [f"number {i} is {'even' if i % 2 == 0 else 'odd'}, and {i + 1} is not. "*4 for i in range(24)]
        tokenizer = train_tokenizer(text, vocab_size=300, context=64)
        torch.manual_seed(0)
        small = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, head_dim=16, max_position_embeddings=64,
                     num_attention_heads=2, num_key_value_heads=1, vocab_size=len(tokenizer))
        save(new_model(**small), tokenizer, folder/"model", dtype=torch.bfloat16)
        (folder/"text.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in text))
        return dict(model=f"{folder}/model", text=f"{folder}/text.jsonl", quick=True, desc=None)


    def chosen(folder, measure=measured, real=turns, **how):
        once = lambda models, prompt, tokens: real(models, prompt, 4, rounds=1)
        here = lambda name, **job: json.loads(json.dumps(measure(**job)))
        with patch.dict(rows_of.__globals__, elsewhere=here, turns=once):
            with patch.dict("os.environ", PATHLM_CACHE="off"): return choose(folder, **how)

    # %% ../nbs/56_choosing.ipynb #cbb07013
    with tempfile.TemporaryDirectory() as d:
        here = tiny_ground(Path(d))
        first = chosen(f"{d}/out", limits=[{"mb": .1}, {"mb": .1, "uj": 1e-6}], **here)
        again = chosen(f"{d}/out", lambda **job: 1/0, **here)
        there = {p.name for p in Path(f"{d}/out").iterdir()}
        assert there == {"index.html", "results.json", "front.png", "paths"} and again["rows"] == first["rows"]
        assert json.loads(Path(f"{d}/out/results.json").read_text()) == again
        refused = [r for r in first["rows"] if "refused" in r]
        whole = [r for r in first["rows"] if "refused" not in r]
        assert not refused and len(whole) == len(all_paths(new_model())) and set(first) == set(SCHEMA["results.json"])
        assert all(r.keys() == SCHEMA["a row"].keys() for r in whole)
        assert all(r.keys() == SCHEMA["a recommendation"].keys() for r in first["recommended"])
        blind_to = first | {"rows": fronts([r | {"peak_bytes": None} for r in first["rows"]])}
        assert report(blind_to).count("\n") == report(first).count("\n") and len(front_figure(blind_to).axes) == 4
        plt.close()
        best, none = first["recommended"]
        assert none["path"] is None and none["code"] is None and "no path" in report(first)
        row = next(r for r in whole if r["path"] == best["path"])
        assert row["stored_bytes"] <= 1e5 and best["path"] not in best["as_good"] and whole[0]["rise"] == 0
        small = {r["path"] for r in whole if r["stored_bytes"] < whole[0]["stored_bytes"]}
        alone = {r["path"] for r in whole if not r["adapter_bytes"]}
        assert small >= {path for path in alone if "INT" in path or "shift" in path}
        begin = ground(here["model"], here["text"], 0, True)
        for name in best["path"], "half the rank + LoRA", "QA-SparsePEFT", "INT4 + VB-LoRA":  # Programs repeat the bytes
            steps, row = all_paths(begin.load()[0], 4, 0, begin.dtype())[name], next(r for r in whole if r["path"] == name)
            program = code(name, steps, begin, here["text"], f"{d}/{name}")
            exec(compile(program, name, "exec"), {})
            assert content_of(f"{d}/{name}") == row["content"]
            told, = json.loads(Path(d, name, "pathlm.json").read_text())["steps"]
            assert told["what"] == name and told["settings"]["calls"] == row["calls"] and told["calibration"]["text"]


def test_a_small_model_from_end_to_end_2():
    # %% ../nbs/56_choosing.ipynb #5509045d
    def tiny_ground(folder):
        text = [f"number {i} is {'even' if i % 2 == 0 else 'odd'}, and {i + 1} is not. "*4 for i in range(24)]
        tokenizer = train_tokenizer(text, vocab_size=300, context=64)
        torch.manual_seed(0)
        small = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, head_dim=16, max_position_embeddings=64,
                     num_attention_heads=2, num_key_value_heads=1, vocab_size=len(tokenizer))
        save(new_model(**small), tokenizer, folder/"model", dtype=torch.bfloat16)
        (folder/"text.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in text))
        return dict(model=f"{folder}/model", text=f"{folder}/text.jsonl", quick=True, desc=None)


    def chosen(folder, measure=measured, real=turns, **how):
        once = lambda models, prompt, tokens: real(models, prompt, 4, rounds=1)
        here = lambda name, **job: json.loads(json.dumps(measure(**job)))
        with patch.dict(rows_of.__globals__, elsewhere=here, turns=once):
            with patch.dict("os.environ", PATHLM_CACHE="off"): return choose(folder, **how)

    # %% ../nbs/56_choosing.ipynb #95c577ba
    with tempfile.TemporaryDirectory() as d:
        here = tiny_ground(Path(d))
        job = dict(folder=here["model"], dense=here["model"], documents=["number 3 is odd, and 4 is not. "*9]*2)
        apart, within = elsewhere("a", **job), measured(**job)
        assert apart["loss"] == within["loss"] and apart["peak_bytes"] > 0 and apart.keys() == within.keys()
        try: elsewhere("a path", **job | {"folder": f"{d}/nothing"})
        except MeasureError as e: assert "'a path'" in str(e) and "nothing" in str(e) and "CheckpointError" in str(e)
        else: raise AssertionError("a folder that is not there was measured")
        try: choose(f"{d}/out", **here, only=["INT5"])
        except SettingError as e: assert "'INT5'" in str(e) and "INT4, GPTQ" in str(e)
        else: raise AssertionError("an unknown path went through")
        rows = [json.dumps({"sentence": f"{n} is {'even' if n % 2 else 'odd'}", "label": str(n % 2)}) for n in range(30)]
        for file, part in zip(TASKS["sst2"].files.values(), (rows[:10], rows[10:20], rows[20:]), strict=True):
            Path(d, file).parent.mkdir(exist_ok=True)
            Path(d, file).write_text("\n".join(part))
        row = measured(**job, task={"name": "sst2", "data": d})
        assert row.keys() - within.keys() == SCHEMA["with a task"].keys() and row["questions"] == 10
        assert 0 <= row["accuracy"] <= 1 and row["loss"] == within["loss"]
        torn = seeing(quantize, bits=4, group=7)
        begin, folder = ground(here["model"], here["text"], 0, True), Path(d)
        row = take(begin, "torn", (torn,))
        assert row["path"] == "torn" and "group=7" in row["refused"] and row["calls"] == [str(torn)]

        paths = {"dense": (), "torn": (choosing.seeing(quantize, bits=4, group=7),)}  # Processes find what a module has
        (Path(d)/"known.json").write_text('{"path": "was", "loss": 1}')
        assert rows_of(begin, {"dense": ()}, {"dense": "known"}, folder) == [{"path": "dense", "loss": 1}]
        both = choosing.rows_of(begin, paths, {"dense": "a", "torn": "b"}, folder, jobs=2)
        assert both[0]["content"] == content_of(here["model"]) and both[1] == row
        assert read_json(folder/"a.json") == both[0] and not (folder/"b.json").exists()
