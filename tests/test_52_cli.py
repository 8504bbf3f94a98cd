from pathlm.cli import *
import json
import sys
from pathlib import Path
import contextlib
import io
import subprocess
import tempfile
import torch
import transformers as tf
from pathlm.checkpoints import load
from pathlm.checkpoints import save
from pathlm.models import EMBEDDED
from pathlm.models import tokenizer_of


def test_it_works():
    # %% ../nbs/52_cli.ipynb #27b50488
    def run(*argv):
        "Exit code, stdout and stderr of a command."
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try: code = main([str(a) for a in argv])
            except SystemExit as e: code = e.code
        return code, out.getvalue(), err.getvalue()

    def done(line, *more):
        "The result of a command that succeeds."
        code, out, err = run(*line.split(), *more, "--json")
        assert code == 0, err
        return json.loads(out)

    def tiny(folder, text="The sum of two numbers is a number, and {} is one of them.\n\n"):
        "A folder with a random Llama, and a text beside it."
        torch.manual_seed(0)
        model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=4096, hidden_size=64, intermediate_size=96,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
            tie_word_embeddings=True))
        save(model.eval(), tokenizer_of(EMBEDDED), f"{folder}/tiny")
        Path(f"{folder}/text.txt").write_text("".join(text.format(i) for i in range(600)))
        return f"{folder}/tiny", f"{folder}/text.txt"

    def plainly(folder):
        "The model as transformers loads it, and what it says about a few tokens."
        model = tf.AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad(): return model, model(torch.arange(24).view(2, 12)).logits

    # %% ../nbs/52_cli.ipynb #e8ebd4bf
    with tempfile.TemporaryDirectory() as d:
        Path(f"{d}/text.txt").write_text("The sum of two numbers is a number.\n\n" * 300)
        found = done("prune --rate 0.9 --target down_proj,up_proj --layers=-2,-1 --out", f"{d}/small")
        assert found["forms"] == {"FactoredLinear": 4} and found["settings"]["rate"] == .9
        sizes = {name: done("eval --text", f"{d}/text.txt", *model) for name, *model in (
            ("dense",), ("pruned", "--model", f"{d}/small"), ("again", f"{d}/small"))}
    assert set(sizes["dense"]) == {"loss", "loss_se", "perplexity", "bits_per_char", "tokens", "chars", "stored_bytes"}
    assert sizes["pruned"]["stored_bytes"] < sizes["dense"]["stored_bytes"]
    assert sizes["pruned"]["loss"] != sizes["dense"]["loss"] and sizes["again"] == sizes["pruned"]


def test_it_works_2():
    # %% ../nbs/52_cli.ipynb #27b50488
    def run(*argv):
        "Exit code, stdout and stderr of a command."
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try: code = main([str(a) for a in argv])
            except SystemExit as e: code = e.code
        return code, out.getvalue(), err.getvalue()

    def done(line, *more):
        "The result of a command that succeeds."
        code, out, err = run(*line.split(), *more, "--json")
        assert code == 0, err
        return json.loads(out)

    def tiny(folder, text="The sum of two numbers is a number, and {} is one of them.\n\n"):
        "A folder with a random Llama, and a text beside it."
        torch.manual_seed(0)
        model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=4096, hidden_size=64, intermediate_size=96,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
            tie_word_embeddings=True))
        save(model.eval(), tokenizer_of(EMBEDDED), f"{folder}/tiny")
        Path(f"{folder}/text.txt").write_text("".join(text.format(i) for i in range(600)))
        return f"{folder}/tiny", f"{folder}/text.txt"

    def plainly(folder):
        "The model as transformers loads it, and what it says about a few tokens."
        model = tf.AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad(): return model, model(torch.arange(24).view(2, 12)).logits

    # %% ../nbs/52_cli.ipynb #bae00177
    with tempfile.TemporaryDirectory() as d:
        model, text = tiny(d)
        ways = {
            "rank": ("prune --rank 8 --objective output --batches 2", "FactoredLinear"),
            "energy": ("prune --energy 0.5 --layers=-1", "FactoredLinear"),
            "magnitude": ("prune --sparsity 0.5 --method magnitude", "SparseLinear"),
            "wanda": ("prune --pattern 2:4 --batches 2", "SparseLinear"),
            "sparsegpt": ("prune --sparsity 0.5 --method sparsegpt --batches 2", "SparseLinear"),
            "rtn": ("quantize --method rtn --bits 8 --asymmetric --group 0", "GridLinear"),
            "gptq": ("quantize --method gptq --batches 2 --rotate", "RotatedLinear:GridLinear"),
            "signs": ("quantize --method shift-add --objective weight --bits 2", "ShiftAddLinear"),
            "output": ("quantize --method shift-add --batches 2 --target q_proj", "ShiftAddLinear"),
            "average": ("quantize --method shift-add --batches 2 --average 3.5 --group 32", "ShiftAddLinear"),
        }
        for name, (line, form) in ways.items():
            line, sees = line.split(), "--batches" in line
            found = done(" ".join(line), model, "--out", f"{d}/{name}", "--text", text)
            assert set(found["forms"]) == {form}, found["forms"]
            assert found.get("calibration", {}).get("batches") == (2 if sees else None)
            own, _ = load(f"{d}/{name}")
            with torch.no_grad(): said = own(torch.arange(24).view(2, 12)).logits
            torch.testing.assert_close(plainly(f"{d}/{name}")[1], said)
        done("quantize --method gptq --batches 2", f"{d}/wanda", "--out", f"{d}/both", "--text", text)
        steps = json.loads(Path(f"{d}/both/pathlm.json").read_text())["steps"]
        assert [s["what"] for s in steps] == ["sparsify", "quantize"] and steps[1]["settings"]["bits"] == 4
        small, large = (done("eval", folder, "--text", text)["stored_bytes"] for folder in (f"{d}/both", model))
        assert small < large


def test_it_works_3():
    # %% ../nbs/52_cli.ipynb #27b50488
    def run(*argv):
        "Exit code, stdout and stderr of a command."
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try: code = main([str(a) for a in argv])
            except SystemExit as e: code = e.code
        return code, out.getvalue(), err.getvalue()

    def done(line, *more):
        "The result of a command that succeeds."
        code, out, err = run(*line.split(), *more, "--json")
        assert code == 0, err
        return json.loads(out)

    def tiny(folder, text="The sum of two numbers is a number, and {} is one of them.\n\n"):
        "A folder with a random Llama, and a text beside it."
        torch.manual_seed(0)
        model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=4096, hidden_size=64, intermediate_size=96,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
            tie_word_embeddings=True))
        save(model.eval(), tokenizer_of(EMBEDDED), f"{folder}/tiny")
        Path(f"{folder}/text.txt").write_text("".join(text.format(i) for i in range(600)))
        return f"{folder}/tiny", f"{folder}/text.txt"

    def plainly(folder):
        "The model as transformers loads it, and what it says about a few tokens."
        model = tf.AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad(): return model, model(torch.arange(24).view(2, 12)).logits

    # %% ../nbs/52_cli.ipynb #fa5aafec
    def reviews(folder):
        "Write forty reviews in the format of SST-2."
        Path(f"{folder}/sst2").mkdir()
        for split, n in ("train_sentences", 8), ("dev", 8), ("test_labelled", 24):
            rows = [{"sentence": f"{split} {i} was {'good' if i % 2 else 'bad'}", "label": str(i % 2)} for i in range(n)]
            Path(f"{folder}/sst2/{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))

    with tempfile.TemporaryDirectory() as d:
        reviews(d)
        options = [tiny(d)[0], *f"--data {d} --shots 2 --module mlp --layers=-1 --by loss".split()]
        found = done("prune --task sst2", *options, "--out", f"{d}/clipped")
        assert found["n"] == {"valid": 8, "test": 24} and found["task"] == "sst2"
        assert json.loads(Path(f"{d}/clipped/search.json").read_text())["table"] == found["table"]
        assert Path(f"{d}/clipped/search.png").stat().st_size > 5000
        assert run("prune", "--task", "sst2", *options, "--out", f"{d}/clipped")[1].splitlines()[1].startswith("way")
        assert done("eval", f"{d}/clipped", "--text", f"{d}/text.txt")["stored_bytes"] == found["stored_bytes"]
        for argv, said in [(("--task", "sst3", *options), "sst2"), (("--task", "rte", *options), "rte"),
                           (("--task", "sst2", *options, "--module", "ffn"), "ffn")]:
            code, out, err = run("prune", *argv, "--out", f"{d}/o")
            assert (code, out) == (2, "") and said in err and "Traceback" not in err
        assert not Path(f"{d}/o/config.json").exists()


def test_it_works_4():
    # %% ../nbs/52_cli.ipynb #27b50488
    def run(*argv):
        "Exit code, stdout and stderr of a command."
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try: code = main([str(a) for a in argv])
            except SystemExit as e: code = e.code
        return code, out.getvalue(), err.getvalue()

    def done(line, *more):
        "The result of a command that succeeds."
        code, out, err = run(*line.split(), *more, "--json")
        assert code == 0, err
        return json.loads(out)

    def tiny(folder, text="The sum of two numbers is a number, and {} is one of them.\n\n"):
        "A folder with a random Llama, and a text beside it."
        torch.manual_seed(0)
        model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=4096, hidden_size=64, intermediate_size=96,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
            tie_word_embeddings=True))
        save(model.eval(), tokenizer_of(EMBEDDED), f"{folder}/tiny")
        Path(f"{folder}/text.txt").write_text("".join(text.format(i) for i in range(600)))
        return f"{folder}/tiny", f"{folder}/text.txt"

    def plainly(folder):
        "The model as transformers loads it, and what it says about a few tokens."
        model = tf.AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad(): return model, model(torch.arange(24).view(2, 12)).logits

    # %% ../nbs/52_cli.ipynb #e432c3a3
    with tempfile.TemporaryDirectory() as d:
        code, out, _ = run("pretrain", "--network", "labels", "--steps", "2", "--out", d, "--json")
        assert code == 0 and json.loads(out)["step"] == 2 and Path(f"{d}/model.safetensors").is_file()
        code, out, err = run("pretrain", "--network", "images", "--out", d)
        assert (code, out) == (2, "") and "regression" in err


def test_it_works_5():
    # %% ../nbs/52_cli.ipynb #27b50488
    def run(*argv):
        "Exit code, stdout and stderr of a command."
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try: code = main([str(a) for a in argv])
            except SystemExit as e: code = e.code
        return code, out.getvalue(), err.getvalue()

    def done(line, *more):
        "The result of a command that succeeds."
        code, out, err = run(*line.split(), *more, "--json")
        assert code == 0, err
        return json.loads(out)

    def tiny(folder, text="The sum of two numbers is a number, and {} is one of them.\n\n"):
        "A folder with a random Llama, and a text beside it."
        torch.manual_seed(0)
        model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=4096, hidden_size=64, intermediate_size=96,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
            tie_word_embeddings=True))
        save(model.eval(), tokenizer_of(EMBEDDED), f"{folder}/tiny")
        Path(f"{folder}/text.txt").write_text("".join(text.format(i) for i in range(600)))
        return f"{folder}/tiny", f"{folder}/text.txt"

    def plainly(folder):
        "The model as transformers loads it, and what it says about a few tokens."
        model = tf.AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad(): return model, model(torch.arange(24).view(2, 12)).logits

    # %% ../nbs/52_cli.ipynb #8c7cd6db
    with tempfile.TemporaryDirectory() as d:
        Path(f"{d}/text.txt").write_text("The sum of two numbers is a number.\n\n" * 300)
        options = "--method lora --set r=2 --set learning_rate=0.01 --target v_proj --steps 3"
        made = done(f"adapt {options}", "--text", f"{d}/text.txt", "--out", f"{d}/adapted")
        assert made["trained"] == 6*2*(256 + 256) and made["settings"]["merged"]
        assert {p.name for p in Path(f"{d}/adapted").iterdir() if p.is_dir()} == {"adapter"}
        losses = {name: done("eval --text", f"{d}/text.txt", *model)["loss"] for name, *model in (
            ("dense",), ("merged", f"{d}/adapted"), ("beside", "--adapter", f"{d}/adapted/adapter"))}
    assert losses["merged"] < losses["dense"] - .05 and abs(losses["merged"] - losses["beside"]) < .02


def test_it_works_6():
    # %% ../nbs/52_cli.ipynb #27b50488
    def run(*argv):
        "Exit code, stdout and stderr of a command."
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try: code = main([str(a) for a in argv])
            except SystemExit as e: code = e.code
        return code, out.getvalue(), err.getvalue()

    def done(line, *more):
        "The result of a command that succeeds."
        code, out, err = run(*line.split(), *more, "--json")
        assert code == 0, err
        return json.loads(out)

    def tiny(folder, text="The sum of two numbers is a number, and {} is one of them.\n\n"):
        "A folder with a random Llama, and a text beside it."
        torch.manual_seed(0)
        model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=4096, hidden_size=64, intermediate_size=96,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
            tie_word_embeddings=True))
        save(model.eval(), tokenizer_of(EMBEDDED), f"{folder}/tiny")
        Path(f"{folder}/text.txt").write_text("".join(text.format(i) for i in range(600)))
        return f"{folder}/tiny", f"{folder}/text.txt"

    def plainly(folder):
        "The model as transformers loads it, and what it says about a few tokens."
        model = tf.AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad(): return model, model(torch.arange(24).view(2, 12)).logits

    # %% ../nbs/52_cli.ipynb #5d004a6c
    with tempfile.TemporaryDirectory() as d:
        model, text = tiny(d)
        done("quantize --method rtn", model, "--out", f"{d}/int4")
        options = ["--text", text, "--steps", "3", "--window", "32", "--batch", "2"]
        before = done("eval", f"{d}/int4", "--text", text)["loss"]
        for method, *more in (("lora", "--set", "learning_rate=0.01"), ("vblora", "--set", "vector_length=32"), ("svft",)):
            found = done(f"adapt --method {method}", *more, f"{d}/int4", "--out", f"{d}/{method}", *options)
            assert not found["settings"]["merged"]
            own = done("eval", f"{d}/{method}", "--text", text)
            assert own["loss"] != before and own["adapter_bytes"] == found["adapter_bytes"] > 0
            assert type(plainly(f"{d}/{method}")[0].model.layers[0].mlp.up_proj).__name__ == "GridLinear"
        for words in ("quantize", "--method", "rtn"), ("prune", "--rate", ".5"), ("adapt", "--method", "lora"):
            code, out, err = run(*words, f"{d}/lora", "--out", f"{d}/o")
            assert (code, out) == (2, "") and "not merged" in err and not Path(f"{d}/o").exists()


def test_it_works_7():
    # %% ../nbs/52_cli.ipynb #27b50488
    def run(*argv):
        "Exit code, stdout and stderr of a command."
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try: code = main([str(a) for a in argv])
            except SystemExit as e: code = e.code
        return code, out.getvalue(), err.getvalue()

    def done(line, *more):
        "The result of a command that succeeds."
        code, out, err = run(*line.split(), *more, "--json")
        assert code == 0, err
        return json.loads(out)

    def tiny(folder, text="The sum of two numbers is a number, and {} is one of them.\n\n"):
        "A folder with a random Llama, and a text beside it."
        torch.manual_seed(0)
        model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=4096, hidden_size=64, intermediate_size=96,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
            tie_word_embeddings=True))
        save(model.eval(), tokenizer_of(EMBEDDED), f"{folder}/tiny")
        Path(f"{folder}/text.txt").write_text("".join(text.format(i) for i in range(600)))
        return f"{folder}/tiny", f"{folder}/text.txt"

    def plainly(folder):
        "The model as transformers loads it, and what it says about a few tokens."
        model = tf.AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad(): return model, model(torch.arange(24).view(2, 12)).logits

    # %% ../nbs/52_cli.ipynb #1c8a4e48
    with tempfile.TemporaryDirectory() as d:
        model, text = tiny(d)
        options = ["--text", text, "--steps", "2", "--window", "32", "--batch", "2", "--set", "r=4"]
        done("prune --pattern 2:4 --method magnitude", model, "--out", f"{d}/zeros")
        masked = done("adapt --method sparsepeft", f"{d}/zeros", "--out", f"{d}/masked", *options)
        assert masked["settings"]["merged"]
        V, W = (load(f"{d}/{name}")[0].model.layers[0].mlp.up_proj.weight for name in ("zeros", "masked"))
        assert (W.unflatten(1, (-1, 4)).count_nonzero(-1) <= 2).all() and not torch.equal(V, W)
        for name, merged, form in ("SQFT", False, "GridLinear"), ("QA-SparsePEFT", True, "GridLinear"):
            found = done("adapt --pipeline", name, model, "--out", f"{d}/{name}", *options)
            assert found["settings"]["merged"] is merged and found["trained"] > 0
            assert type(plainly(f"{d}/{name}")[0].model.layers[0].mlp.up_proj).__name__ == form
            assert done("eval", f"{d}/{name}", "--text", text)["loss"] > 0
        found = done("adapt --method lora --apart", "--set", 'elastic={"q_proj": [4, 2]}', "--target", "q_proj", model,
                     "--out", f"{d}/elastic", *options)
        assert not found["settings"]["merged"]


def test_it_works_8():
    # %% ../nbs/52_cli.ipynb #27b50488
    def run(*argv):
        "Exit code, stdout and stderr of a command."
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try: code = main([str(a) for a in argv])
            except SystemExit as e: code = e.code
        return code, out.getvalue(), err.getvalue()

    def done(line, *more):
        "The result of a command that succeeds."
        code, out, err = run(*line.split(), *more, "--json")
        assert code == 0, err
        return json.loads(out)

    def tiny(folder, text="The sum of two numbers is a number, and {} is one of them.\n\n"):
        "A folder with a random Llama, and a text beside it."
        torch.manual_seed(0)
        model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=4096, hidden_size=64, intermediate_size=96,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
            tie_word_embeddings=True))
        save(model.eval(), tokenizer_of(EMBEDDED), f"{folder}/tiny")
        Path(f"{folder}/text.txt").write_text("".join(text.format(i) for i in range(600)))
        return f"{folder}/tiny", f"{folder}/text.txt"

    def plainly(folder):
        "The model as transformers loads it, and what it says about a few tokens."
        model = tf.AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad(): return model, model(torch.arange(24).view(2, 12)).logits

    # %% ../nbs/52_cli.ipynb #0569cc71
    with tempfile.TemporaryDirectory() as d:
        model, text = tiny(d)
        options = ["--text", text, "--window", "32", "--budget", "5", "--way", "greedy"]
        found = done("search --ranks 4,2 --steps 3 --set learning_rate=0.01", model, "--out", f"{d}/found", *options)
        assert found["tried"] <= 5 and set(found["row"]["config"].values()) <= {4, 2} and found["settings"]["merged"]
        assert Path(f"{d}/found/search.png").stat().st_size > 5000
        assert len(json.loads(Path(f"{d}/found/search.json").read_text())["rows"]) == found["tried"]
        again = done("search --apart --adapter", f"{d}/found/elastic", model, "--out", f"{d}/again", *options)
        assert again["row"]["config"] == found["row"]["config"] and again["adapter_bytes"] == found["adapter_bytes"]
        merged, apart = (done("eval", f"{d}/{name}", "--text", text) for name in ("found", "again"))
        assert abs(merged["loss"] - apart["loss"]) < 1e-4 and "adapter_bytes" in apart and "adapter_bytes" not in merged


def test_it_works_9():
    # %% ../nbs/52_cli.ipynb #27b50488
    def run(*argv):
        "Exit code, stdout and stderr of a command."
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try: code = main([str(a) for a in argv])
            except SystemExit as e: code = e.code
        return code, out.getvalue(), err.getvalue()

    def done(line, *more):
        "The result of a command that succeeds."
        code, out, err = run(*line.split(), *more, "--json")
        assert code == 0, err
        return json.loads(out)

    def tiny(folder, text="The sum of two numbers is a number, and {} is one of them.\n\n"):
        "A folder with a random Llama, and a text beside it."
        torch.manual_seed(0)
        model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=4096, hidden_size=64, intermediate_size=96,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
            tie_word_embeddings=True))
        save(model.eval(), tokenizer_of(EMBEDDED), f"{folder}/tiny")
        Path(f"{folder}/text.txt").write_text("".join(text.format(i) for i in range(600)))
        return f"{folder}/tiny", f"{folder}/text.txt"

    def plainly(folder):
        "The model as transformers loads it, and what it says about a few tokens."
        model = tf.AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad(): return model, model(torch.arange(24).view(2, 12)).logits

    # %% ../nbs/52_cli.ipynb #f405382e
    with tempfile.TemporaryDirectory() as d:
        model, text = tiny(d)
        options = ["--text", text, "--only", "INT8, n", "--quick", "--budget-mb", "9", "0.001", "--out", f"{d}/paths"]
        found = done("paths", model, *options)
        assert [r["path"] for r in found["rows"]] == ["dense", "INT8, nearest"]
        assert found["recommended"][0]["path"] and not found["recommended"][1]["path"]
        assert {p.name for p in Path(f"{d}/paths").iterdir()} >= {"results.json", "index.html", "front.png"}


def test_it_works_10():
    # %% ../nbs/52_cli.ipynb #27b50488
    def run(*argv):
        "Exit code, stdout and stderr of a command."
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try: code = main([str(a) for a in argv])
            except SystemExit as e: code = e.code
        return code, out.getvalue(), err.getvalue()

    def done(line, *more):
        "The result of a command that succeeds."
        code, out, err = run(*line.split(), *more, "--json")
        assert code == 0, err
        return json.loads(out)

    def tiny(folder, text="The sum of two numbers is a number, and {} is one of them.\n\n"):
        "A folder with a random Llama, and a text beside it."
        torch.manual_seed(0)
        model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=4096, hidden_size=64, intermediate_size=96,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
            tie_word_embeddings=True))
        save(model.eval(), tokenizer_of(EMBEDDED), f"{folder}/tiny")
        Path(f"{folder}/text.txt").write_text("".join(text.format(i) for i in range(600)))
        return f"{folder}/tiny", f"{folder}/text.txt"

    def plainly(folder):
        "The model as transformers loads it, and what it says about a few tokens."
        model = tf.AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad(): return model, model(torch.arange(24).view(2, 12)).logits

    # %% ../nbs/52_cli.ipynb #f5f1766a
    def refused(argv, said):
        "A command must answer with one line that says `said`, and code 2."
        code, out, err = run(*argv)
        line = [l for l in err.splitlines() if l.startswith("pathlm: ")]
        assert (code, out, len(line)) == (2, "", 1) and said in line[0] and "Traceback" not in err, (argv, err)

    with tempfile.TemporaryDirectory() as d:
        Path(f"{d}/short.txt").write_text("Too short.")
        Path(f"{d}/file").touch()
        Path(f"{d}/damaged").mkdir()
        for name, text in ("config.json", '{"model_type": "llama"}'), ("model.safetensors", "none"):
            Path(f"{d}/damaged/{name}").write_text(text)
        for line, said in [
            ("prune --rate 1.5", "rate=1.5 is outside [0, 1)"),
            ("prune --rate .5 --target q_prj", "near: q_proj"),
            ("prune --rate .5 --layers=9", "9"),
            ("prune --rank 999", "r=999"),
            ("prune --rate .5 --method wanda", "--method wanda"),
            ("prune --sparsity 1.5", "1.5"),
            ("prune --sparsity .5 --objective output", "--objective"),
            ("prune --pattern 2of4", "2of4"),
            ("prune --sparsity .5 --batches 0", "--batches 0"),
            ("prune D/damaged --rate .5", "D/damaged"),
            ("prune D/absent --rate .5", "D/absent"),
            ("prune D/file --rate .5", "D/file"),
            ("prune --sparsity .5 --text D/absent.txt", "D/absent.txt"),
            ("quantize --method rtn --bits 9", "9"),
            ("quantize --method shift-add --bits 5", "5"),
            ("quantize --method rtn --group 100", "100"),
            ("quantize --method rtn --group -1", "--group -1"),
            ("quantize --method rtn --objective output", "weight objective"),
            ("quantize --method gptq --average 3", "--average"),
            ("quantize --method shift-add --average 3 --bits 3", "--bits 3"),
            ("quantize --method shift-add --asymmetric", "--asymmetric"),
            ("quantize --method gptq --text D/short.txt", "512"),
            ("adapt --method lora --set rank=4", "rank=4"),
            ("adapt --method lora --set r=four", "r=four"),
            ("adapt --method lora --set r=0", "r=0"),
            ("adapt --method svft --set pattern=diagonal", "diagonal"),
            ("adapt --method vblora --set vector_length=100", "vector_length=100"),
            ("adapt --method sparsepeft", "without a mask"),
            ("adapt --method lora --steps 0", "steps=0"),
            ("adapt --pipeline sqft", "'SQFT'"),
            ("adapt --pipeline SQFT --layers 1", "--layers"),
            ("search --ranks 0", "0"),
            ("search --adapter D/absent", "D/absent"),
            ("search --way climb --budget 0 --steps 1 --text D/short.txt", "document"),
            ("tour --seed -1", "seed=-1"),
            ("tour --text D/short.txt", "one document"),
            ("paths --only nothing --budget-mb 3", "nothing"),
            ("pretrain --device foo", "'foo'"),
        ]:
            line, said = line.replace("D/", f"{d}/"), said.replace("D/", f"{d}/")
            refused([*line.split(), "--out", f"{d}/o"], said)
            assert not {p.name for p in Path(d).glob("o/*")} & {"model.safetensors", "config.json", "results.json"}, line
        refused(["prune", f"{d}/damaged", "--rate", ".5", "--out", f"{d}/damaged"], "the model itself")
        refused(["tour", "--out", f"{d}/file"], f"{d}/file")
        refused(["quantize", "--method", "rtn", "--out", f"{d}/file"], f"{d}/file")
        for line, said in [
            ("eval --adapter D/absent", "D/absent"),
            ("eval --text D/short.txt", "512"),
            ("eval --text D/absent.txt", "D/absent.txt"),
            ("eval D/absent", "D/absent"),
            ("eval D/damaged", "D/damaged"),
            ("eval --window 9999", "9999"),
            ("bench sweep --seed -1", "seed=-1"),
        ]: refused(line.replace("D/", f"{d}/").split(), said.replace("D/", f"{d}/"))
        assert {p.name for p in Path(f"{d}/damaged").iterdir()} == {"config.json", "model.safetensors"}


def test_it_works_11():
    # %% ../nbs/52_cli.ipynb #27b50488
    def run(*argv):
        "Exit code, stdout and stderr of a command."
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try: code = main([str(a) for a in argv])
            except SystemExit as e: code = e.code
        return code, out.getvalue(), err.getvalue()

    def done(line, *more):
        "The result of a command that succeeds."
        code, out, err = run(*line.split(), *more, "--json")
        assert code == 0, err
        return json.loads(out)

    def tiny(folder, text="The sum of two numbers is a number, and {} is one of them.\n\n"):
        "A folder with a random Llama, and a text beside it."
        torch.manual_seed(0)
        model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=4096, hidden_size=64, intermediate_size=96,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
            tie_word_embeddings=True))
        save(model.eval(), tokenizer_of(EMBEDDED), f"{folder}/tiny")
        Path(f"{folder}/text.txt").write_text("".join(text.format(i) for i in range(600)))
        return f"{folder}/tiny", f"{folder}/text.txt"

    def plainly(folder):
        "The model as transformers loads it, and what it says about a few tokens."
        model = tf.AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad(): return model, model(torch.arange(24).view(2, 12)).logits

    # %% ../nbs/52_cli.ipynb #eacdbd8f
    NAMES = "tour", "paths", "prune", "quantize", "adapt", "search", "eval", "pretrain", "bench"
    for name in [], *([n] for n in NAMES):
        code, out, _ = run(*name, "--help")
        assert code == 0 and "example:" in out
    for line in "prune --out x", "wander", "", "prune --rate .5", "prune --rate .5 --rank 3 --out x", "adapt --out x", \
            "adapt --method lora --pipeline SQFT --out x", "quantize --method int4 --out x", "search --ranks a --out x":
        code, out, err = run(*line.split())
        assert (code, out) == (2, "") and "Traceback" not in err


def test_it_works_12():
    # %% ../nbs/52_cli.ipynb #27b50488
    def run(*argv):
        "Exit code, stdout and stderr of a command."
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try: code = main([str(a) for a in argv])
            except SystemExit as e: code = e.code
        return code, out.getvalue(), err.getvalue()

    def done(line, *more):
        "The result of a command that succeeds."
        code, out, err = run(*line.split(), *more, "--json")
        assert code == 0, err
        return json.loads(out)

    def tiny(folder, text="The sum of two numbers is a number, and {} is one of them.\n\n"):
        "A folder with a random Llama, and a text beside it."
        torch.manual_seed(0)
        model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=4096, hidden_size=64, intermediate_size=96,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
            tie_word_embeddings=True))
        save(model.eval(), tokenizer_of(EMBEDDED), f"{folder}/tiny")
        Path(f"{folder}/text.txt").write_text("".join(text.format(i) for i in range(600)))
        return f"{folder}/tiny", f"{folder}/text.txt"

    def plainly(folder):
        "The model as transformers loads it, and what it says about a few tokens."
        model = tf.AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad(): return model, model(torch.arange(24).view(2, 12)).logits

    # %% ../nbs/52_cli.ipynb #5021025d
    def shell(*argv):
        "Exit code, stdout and stderr of a process."
        done = subprocess.run(argv, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    pathlm_ = [sys.executable, "-c", "import sys; from pathlm.cli import main; sys.exit(main())"]  # As `pathlm`
    torchrun = [sys.executable, *("-m torch.distributed.run --nproc-per-node=2 --rdzv-backend=c10d "
                              "--rdzv-endpoint=localhost:0 --no-python").split()]

    with tempfile.TemporaryDirectory() as d:
        model, text = tiny(d)
        line = ["quantize", model, "--method", "gptq", "--batches", "2", "--text", text, "--json", "--out"]
        code, out, err = shell(*torchrun, *pathlm_, *line, f"{d}/two")
        assert code == 0 and json.loads(out)["forms"] == {"GridLinear": 14} and out.count("\n") == 1, err
        assert run(*line, f"{d}/one")[0] == 0
        assert Path(f"{d}/one/model.safetensors").read_bytes() == Path(f"{d}/two/model.safetensors").read_bytes()
        code, out, err = shell(*pathlm_, "prune", "--rate", "1.5", "--out", f"{d}/o", "--json")
        assert (code, out) == (2, "") and err.count("\n") == 1 and "rate=1.5" in err

    def fail(args): raise RuntimeError("no such luck")

    args, err = arguments().parse_args(["eval"]), io.StringIO()
    args.run = fail
    with contextlib.redirect_stderr(err): code = answer(args)
    assert code == 1 and "Traceback" in err.getvalue() and "pathlm: failed" in err.getvalue()


def test_it_works_13():
    # %% ../nbs/52_cli.ipynb #27b50488
    def run(*argv):
        "Exit code, stdout and stderr of a command."
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try: code = main([str(a) for a in argv])
            except SystemExit as e: code = e.code
        return code, out.getvalue(), err.getvalue()

    def done(line, *more):
        "The result of a command that succeeds."
        code, out, err = run(*line.split(), *more, "--json")
        assert code == 0, err
        return json.loads(out)

    def tiny(folder, text="The sum of two numbers is a number, and {} is one of them.\n\n"):
        "A folder with a random Llama, and a text beside it."
        torch.manual_seed(0)
        model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=4096, hidden_size=64, intermediate_size=96,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
            tie_word_embeddings=True))
        save(model.eval(), tokenizer_of(EMBEDDED), f"{folder}/tiny")
        Path(f"{folder}/text.txt").write_text("".join(text.format(i) for i in range(600)))
        return f"{folder}/tiny", f"{folder}/text.txt"

    def plainly(folder):
        "The model as transformers loads it, and what it says about a few tokens."
        model = tf.AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad(): return model, model(torch.arange(24).view(2, 12)).logits

    # %% ../nbs/52_cli.ipynb #271bfb93
    def stop(args): raise KeyboardInterrupt

    err = io.StringIO()
    args = arguments().parse_args(["tour", "--out", "somewhere"])
    args.run = stop
    with contextlib.redirect_stderr(err): code = answer(args)
    assert code == 130 and "Finished rows are in somewhere" in err.getvalue() and "goes on" in err.getvalue()
