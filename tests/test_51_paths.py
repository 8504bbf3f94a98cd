from pathlm.paths import *
import tempfile
from pathlib import Path
import torch
from pathlm.base import TextError
from pathlm.checkpoints import save
import json
from unittest.mock import patch
from pathlm.models import new_model
from pathlm.models import train_tokenizer


def test_the_ground():
    # %% ../nbs/51_paths.ipynb #7d7a8014
    seen, test = divide([str(i) for i in range(10)])
    assert len(seen) == 2 and sorted(seen + test) == [str(i) for i in range(10)]
    try: divide(["alone"])
    except TextError as e: assert "one document of 5 characters" in str(e)
    else: raise AssertionError


def test_the_ground_2():
    # %% ../nbs/51_paths.ipynb #5773c14f
    assert part(["a"*i for i in range(30)], most=2, size=28) == ["a"*28, "a"*28]


def test_the_folder():
    # %% ../nbs/51_paths.ipynb #63ac20b5
    assert with_error(1.234, .056, "+.2f") == "+1.23 ± 0.06" and with_error(2, None, ".1f") == "2.0 ± –"


def test_on_the_embedded_model():
    # %% ../nbs/51_paths.ipynb #81c82ee5
    def tiny_ground(folder):
        text = [f"number {i} is {'even' if i % 2 == 0 else 'odd'}, and {i + 1} is not. "*4 for i in range(24)]
        tokenizer = train_tokenizer(text, vocab_size=300, context=64)
        small = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, head_dim=16, max_position_embeddings=64,
                     num_attention_heads=2, num_key_value_heads=1, vocab_size=len(tokenizer))
        save(new_model(**small), tokenizer, folder/"model")
        (folder/"text.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in text))

    # %% ../nbs/51_paths.ipynb #a3b42b97
    with tempfile.TemporaryDirectory() as d:
        torch.manual_seed(0)
        tiny_ground(Path(d))
        here = dict(model=f"{d}/model", text=f"{d}/text.jsonl", desc=None)
        known = in_context(0, True, f"{d}/in_context.jsonl")
        def toured():
            with patch.dict(tour.__globals__, in_context=lambda *_: known): return tour(f"{d}/out", **here)
        first, again = toured(), toured()
        assert {p.name for p in Path(f"{d}/out").iterdir()} == {"index.html", "results.json", "quality.png", "sweep.png",
                                                                "rows.jsonl", "sweep.jsonl"}
        assert json.loads(Path(f"{d}/out/results.json").read_text()) == again and again["rows"] == first["rows"]
    assert [row["path"] for row in first["rows"]] == list(PATHS) and first["rows"][0]["rise"] == 0
    need = "path stored_bytes bits_per_weight loss loss_se perplexity bits_per_char seconds".split()
    assert all(k in row for row in first["rows"] for k in need)
    assert first["rows"][3]["stored_bytes"] < first["rows"][0]["stored_bytes"]
    through = [row for row in first["rows"] if "pipeline" in row["notes"]]
    assert len(through) == 5 and all(row["notes"]["zeros"] >= .5 for row in through)
    assert [PIPELINE_COLUMNS["adapter's"](r) == "merged" for r in through] == [False, True, False, True, True]
    assert [r["stored_bytes"] < first["rows"][0]["stored_bytes"] for r in through] == [False, True, True, True, True]
    shifted = [row for row in first["rows"] if "true_bits" in row["notes"]]
    assert [2 <= row["notes"]["true_bits"] - 1/4 for row in shifted] == [True]*4  # Scales of short rows weigh more
    assert shifted[2]["stored_bytes"] < shifted[3]["stored_bytes"] < shifted[1]["stored_bytes"] < shifted[0]["stored_bytes"]
    assert shifted[2]["joules"] < shifted[1]["joules"] < shifted[0]["joules"] < first["rows"][0]["joules"]
    tuned = [row for row in first["rows"] if row not in through and "adapter_bytes" in row["notes"]]
    assert len(tuned) == 4 and all(row["notes"]["adapter_bytes"] > 0 and row["rise"] != 0 for row in tuned)
    assert [row["way"] for row in first["in_context"]] == ["unpruned", "pruned", "scale"]*2
    assert first["in_context"] == again["in_context"] == known and known[0]["change"] == [0, 0, 0]
    assert .7 < first["in_context"][3]["accuracy"] < first["in_context"][0]["accuracy"] < 1
    assert all(row["stored_bytes"] == row["notes"]["adapter_bytes"] + first["rows"][0]["stored_bytes"] for row in tuned)
