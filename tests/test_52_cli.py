from pathlm.cli import *
import json
import shutil
import sys
from pathlib import Path
import contextlib
import io
import subprocess
import tempfile
from unittest.mock import patch
import torch
import transformers as tf
from safetensors.torch import load_file
from safetensors.torch import save_file
from pathlm.checkpoints import load
from pathlm.checkpoints import save
from pathlm.choosing import measured
from pathlm.choosing import rows_of
from pathlm.choosing import turns
from pathlm.models import train_tokenizer


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

    TEXT = [f"The sum of {i} and {j} is a number, and {i + j} is one. "*3 for i in range(8) for j in range(6)]
    WORDS = train_tokenizer(TEXT, vocab_size=288, context=64)

    def tiny(folder, context=64):
        "A folder with a random Llama, and a text beside it."
        torch.manual_seed(0)
        model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=len(WORDS), hidden_size=32, intermediate_size=64,
            num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=context,
            tie_word_embeddings=True, bos_token_id=0, eos_token_id=0))
        save(model.eval(), WORDS, f"{folder}/tiny")
        Path(f"{folder}/text.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in TEXT))
        return f"{folder}/tiny", f"{folder}/text.jsonl"

    def plainly(folder):
        "The model as transformers loads it, and what it says about a few tokens."
        model = tf.AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad(): return model, model(torch.arange(24).view(2, 12)).logits

    # %% ../nbs/52_cli.ipynb #e8ebd4bf
    with tempfile.TemporaryDirectory() as d:
        Path(f"{d}/text.txt").write_text("The sum of two numbers is a number.\n\n" * 80)
        own = done("eval --text", f"{d}/text.txt")
        assert set(own) == {"loss", "loss_se", "perplexity", "bits_per_char", "tokens", "chars", "stored_bytes"}
        model, text = tiny(d)
        found = done("prune --rate 0.9 --target down_proj,up_proj --layers=-1", model, "--out", f"{d}/small")
        assert found["forms"] == {"FactoredLinear": 2} and found["settings"]["rate"] == .9
        sizes = {name: done("eval --text", text, *folder) for name, *folder in (
            ("dense", model), ("pruned", "--model", f"{d}/small"), ("again", f"{d}/small"))}
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

    TEXT = [f"The sum of {i} and {j} is a number, and {i + j} is one. "*3 for i in range(8) for j in range(6)]
    WORDS = train_tokenizer(TEXT, vocab_size=288, context=64)

    def tiny(folder, context=64):
        "A folder with a random Llama, and a text beside it."
        torch.manual_seed(0)
        model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=len(WORDS), hidden_size=32, intermediate_size=64,
            num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=context,
            tie_word_embeddings=True, bos_token_id=0, eos_token_id=0))
        save(model.eval(), WORDS, f"{folder}/tiny")
        Path(f"{folder}/text.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in TEXT))
        return f"{folder}/tiny", f"{folder}/text.jsonl"

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
            sees = "--batches" in line
            found = done(line, model, "--out", f"{d}/{name}", *["--text", text]*sees)
            assert set(found["forms"]) == {form}, found["forms"]
            assert found.get("calibration", {}).get("batches") == (2 if sees else None)
            assert name != "average" or found["settings"]["average"] == {"bits": 3.5, **found["calibration"]}
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

    TEXT = [f"The sum of {i} and {j} is a number, and {i + j} is one. "*3 for i in range(8) for j in range(6)]
    WORDS = train_tokenizer(TEXT, vocab_size=288, context=64)

    def tiny(folder, context=64):
        "A folder with a random Llama, and a text beside it."
        torch.manual_seed(0)
        model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=len(WORDS), hidden_size=32, intermediate_size=64,
            num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=context,
            tie_word_embeddings=True, bos_token_id=0, eos_token_id=0))
        save(model.eval(), WORDS, f"{folder}/tiny")
        Path(f"{folder}/text.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in TEXT))
        return f"{folder}/tiny", f"{folder}/text.jsonl"

    def plainly(folder):
        "The model as transformers loads it, and what it says about a few tokens."
        model = tf.AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad(): return model, model(torch.arange(24).view(2, 12)).logits

    # %% ../nbs/52_cli.ipynb #04586407
    def older(kind, new, old):
        "Write a model folder, and the same model under `old` as older versions stored it."
        if kind == "GPT-2":
            save(tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=2, n_positions=64,
                                                  bos_token_id=0, eos_token_id=0)), None, new)
        else: save(load(new)[0], None, new)
        shutil.copytree(new, old, ignore=shutil.ignore_patterns("pathlm.json", "*.safetensors"))
        tensors = load_file(f"{new}/model.safetensors")
        if kind == "GPT-2": tensors = {n.removeprefix("transformer."): t for n, t in tensors.items()}
        else: tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
        save_file(tensors, f"{old}/model.safetensors", {"format": "pt"})

    with tempfile.TemporaryDirectory() as d:
        for kind in "GPT-2", "Llama 2":
            new, old = f"{d}/{kind} new", f"{d}/{kind} old"
            if kind != "GPT-2": shutil.copytree(tiny(d)[0], new)
            older(kind, new, old)
            for folder in new, old: done("quantize --method rtn --group 0", folder, "--out", f"{folder} int4")
            a, b = (Path(f"{folder} int4/model.safetensors").read_bytes() for folder in (new, old))
            assert a == b and {p.name for p in Path(f"{old} int4").iterdir()} == {p.name for p in Path(
                f"{new} int4").iterdir()}
        with patch("pathlm.models.corpus", {"test": {"a": "b"}}.get): assert texts(None, "test") == ["b"]


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

    TEXT = [f"The sum of {i} and {j} is a number, and {i + j} is one. "*3 for i in range(8) for j in range(6)]
    WORDS = train_tokenizer(TEXT, vocab_size=288, context=64)

    def tiny(folder, context=64):
        "A folder with a random Llama, and a text beside it."
        torch.manual_seed(0)
        model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=len(WORDS), hidden_size=32, intermediate_size=64,
            num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=context,
            tie_word_embeddings=True, bos_token_id=0, eos_token_id=0))
        save(model.eval(), WORDS, f"{folder}/tiny")
        Path(f"{folder}/text.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in TEXT))
        return f"{folder}/tiny", f"{folder}/text.jsonl"

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
        options = [tiny(d, 256)[0], *f"--data {d} --shots 2 --module mlp --layers=-1 --by loss".split()]
        found = done("prune --task sst2", *options, "--out", f"{d}/clipped")
        assert found["n"] == {"valid": 8, "test": 24} and found["task"] == "sst2"
        assert found["module"] == "mlp" and len(found["data"]) == 16
        assert json.loads(Path(f"{d}/clipped/search.json").read_text())["table"] == found["table"]
        assert Path(f"{d}/clipped/search.png").stat().st_size > 5000
        assert run("prune", "--task", "sst2", *options, "--out", f"{d}/clipped")[1].splitlines()[1].startswith("way")
        assert done("eval", f"{d}/clipped", "--text", f"{d}/text.jsonl")["stored_bytes"] == found["stored_bytes"]
        for argv, said in [(("--task", "sst3", *options), "sst2"), (("--task", "rte", *options), "rte"),
                           (("--task", "sst2", *options, "--module", "ffn"), "ffn")]:
            code, out, err = run("prune", *argv, "--out", f"{d}/o")
            assert (code, out) == (2, "") and said in err and "Traceback" not in err
        assert not Path(f"{d}/o/config.json").exists()


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

    TEXT = [f"The sum of {i} and {j} is a number, and {i + j} is one. "*3 for i in range(8) for j in range(6)]
    WORDS = train_tokenizer(TEXT, vocab_size=288, context=64)

    def tiny(folder, context=64):
        "A folder with a random Llama, and a text beside it."
        torch.manual_seed(0)
        model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=len(WORDS), hidden_size=32, intermediate_size=64,
            num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=context,
            tie_word_embeddings=True, bos_token_id=0, eos_token_id=0))
        save(model.eval(), WORDS, f"{folder}/tiny")
        Path(f"{folder}/text.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in TEXT))
        return f"{folder}/tiny", f"{folder}/text.jsonl"

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

    TEXT = [f"The sum of {i} and {j} is a number, and {i + j} is one. "*3 for i in range(8) for j in range(6)]
    WORDS = train_tokenizer(TEXT, vocab_size=288, context=64)

    def tiny(folder, context=64):
        "A folder with a random Llama, and a text beside it."
        torch.manual_seed(0)
        model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=len(WORDS), hidden_size=32, intermediate_size=64,
            num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=context,
            tie_word_embeddings=True, bos_token_id=0, eos_token_id=0))
        save(model.eval(), WORDS, f"{folder}/tiny")
        Path(f"{folder}/text.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in TEXT))
        return f"{folder}/tiny", f"{folder}/text.jsonl"

    def plainly(folder):
        "The model as transformers loads it, and what it says about a few tokens."
        model = tf.AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad(): return model, model(torch.arange(24).view(2, 12)).logits

    # %% ../nbs/52_cli.ipynb #8c7cd6db
    with tempfile.TemporaryDirectory() as d:
        model, text = tiny(d)
        options = f"--method lora --set r=2 --set learning_rate=0.05 --steps 12 --window 32 {model}".split()
        made = done("adapt", *options, "--text", text, "--out", f"{d}/adapted", "--target", "v_proj,up_proj")
        assert made["trained"] == 2*2*(32 + 16 + 32 + 64)
        assert made["settings"]["merged"] and made["settings"]["window"] == 32
        assert {p.name for p in Path(f"{d}/adapted").iterdir() if p.is_dir()} == {"adapter"}
        losses = {name: done("eval --text", text, *folder)["loss"] for name, *folder in (
            ("dense", model), ("merged", f"{d}/adapted"), ("beside", model, "--adapter", f"{d}/adapted/adapter"))}
        assert losses["merged"] < losses["dense"] - .05 and abs(losses["merged"] - losses["beside"]) < 1e-4
        Path(f"{d}/other.jsonl").write_text(Path(text).read_text().replace("sum", "sun"))
        with patch.dict(run_adapt.__globals__, told=lambda *_: 1/0):  # Stops before the run is cleared away
            assert run("adapt", *options, "--text", text, "--out", f"{d}/cut")[0] == 1
            code, out, err = run("adapt", *options, "--text", f"{d}/other.jsonl", "--out", f"{d}/cut")
            assert (code, out) == (2, "") and "keeps a run with calibration" in err
        apart = done("adapt", *options, "--text", text, "--out", f"{d}/cut", "--apart")
        assert beside(Path(f"{d}/cut")) == Path(f"{d}/cut/adapter") and not apart["settings"]["merged"]
        done("quantize --method rtn", model, "--out", f"{d}/cut")
        assert beside(Path(f"{d}/cut")) is None and "adapter_bytes" not in done("eval", f"{d}/cut", "--text", text)


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

    TEXT = [f"The sum of {i} and {j} is a number, and {i + j} is one. "*3 for i in range(8) for j in range(6)]
    WORDS = train_tokenizer(TEXT, vocab_size=288, context=64)

    def tiny(folder, context=64):
        "A folder with a random Llama, and a text beside it."
        torch.manual_seed(0)
        model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=len(WORDS), hidden_size=32, intermediate_size=64,
            num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=context,
            tie_word_embeddings=True, bos_token_id=0, eos_token_id=0))
        save(model.eval(), WORDS, f"{folder}/tiny")
        Path(f"{folder}/text.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in TEXT))
        return f"{folder}/tiny", f"{folder}/text.jsonl"

    def plainly(folder):
        "The model as transformers loads it, and what it says about a few tokens."
        model = tf.AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad(): return model, model(torch.arange(24).view(2, 12)).logits

    # %% ../nbs/52_cli.ipynb #5d004a6c
    with tempfile.TemporaryDirectory() as d:
        model, text = tiny(d)
        done("quantize --method rtn", model, "--out", f"{d}/int4")
        options = ["--text", text, "--steps", "2", "--window", "32", "--batch", "2"]
        before = done("eval", f"{d}/int4", "--text", text)["loss"]
        for method, *more in (("lora", "--set", "learning_rate=0.01"), ("vblora", "--set", "vector_length=16"), ("svft",)):
            found = done(f"adapt --method {method}", *more, f"{d}/int4", "--out", f"{d}/{method}", *options)
            assert not found["settings"]["merged"]
            own = done("eval", f"{d}/{method}", "--text", text)
            assert own["loss"] != before and own["adapter_bytes"] == found["adapter_bytes"] > 0
            assert type(plainly(f"{d}/{method}")[0].model.layers[0].mlp.up_proj).__name__ == "GridLinear"
        for words in ("quantize", "--method", "rtn"), ("prune", "--rate", ".5"), ("adapt", "--method", "lora"), \
                ("tour", "--quick"), ("paths", "--quick"):
            code, out, err = run(*words, f"{d}/lora", "--out", f"{d}/o")
            assert (code, out) == (2, "") and "not merged" in err and not Path(f"{d}/o").exists()


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

    TEXT = [f"The sum of {i} and {j} is a number, and {i + j} is one. "*3 for i in range(8) for j in range(6)]
    WORDS = train_tokenizer(TEXT, vocab_size=288, context=64)

    def tiny(folder, context=64):
        "A folder with a random Llama, and a text beside it."
        torch.manual_seed(0)
        model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=len(WORDS), hidden_size=32, intermediate_size=64,
            num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=context,
            tie_word_embeddings=True, bos_token_id=0, eos_token_id=0))
        save(model.eval(), WORDS, f"{folder}/tiny")
        Path(f"{folder}/text.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in TEXT))
        return f"{folder}/tiny", f"{folder}/text.jsonl"

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
        for name, merged in ("SQFT", False), ("QA-SparsePEFT", True):
            found = done("adapt --pipeline", name, model, "--out", f"{d}/{name}", *options)
            assert found["settings"]["merged"] is merged and found["trained"] > 0
            assert type(plainly(f"{d}/{name}")[0].model.layers[0].mlp.up_proj).__name__ == "GridLinear"
        found = done("adapt --method lora --apart", "--set", 'elastic={"q_proj": [4, 2]}', "--target", "q_proj", model,
                     "--out", f"{d}/elastic", *options)
        assert not found["settings"]["merged"] and beside(Path(f"{d}/elastic"))


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

    TEXT = [f"The sum of {i} and {j} is a number, and {i + j} is one. "*3 for i in range(8) for j in range(6)]
    WORDS = train_tokenizer(TEXT, vocab_size=288, context=64)

    def tiny(folder, context=64):
        "A folder with a random Llama, and a text beside it."
        torch.manual_seed(0)
        model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=len(WORDS), hidden_size=32, intermediate_size=64,
            num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=context,
            tie_word_embeddings=True, bos_token_id=0, eos_token_id=0))
        save(model.eval(), WORDS, f"{folder}/tiny")
        Path(f"{folder}/text.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in TEXT))
        return f"{folder}/tiny", f"{folder}/text.jsonl"

    def plainly(folder):
        "The model as transformers loads it, and what it says about a few tokens."
        model = tf.AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad(): return model, model(torch.arange(24).view(2, 12)).logits

    # %% ../nbs/52_cli.ipynb #0569cc71
    with tempfile.TemporaryDirectory() as d:
        model, text = tiny(d)
        options = ["--text", text, "--window", "32", "--budget", "5", "--way", "greedy"]
        found = done("search --ranks 4,2 --steps 3 --set learning_rate=0.01", model, "--out", f"{d}/found", *options)
        assert found["settings"]["trained"]["calibration"]["text"] != found["calibration"]["text"]
        assert found["settings"]["trained"]["settings"]["set"] == ["learning_rate=0.01"]
        assert found["tried"] <= 5 and set(found["row"]["config"].values()) <= {4, 2} and found["settings"]["merged"]
        assert Path(f"{d}/found/search.png").stat().st_size > 5000
        assert len(json.loads(Path(f"{d}/found/search.json").read_text())["rows"]) == found["tried"]
        again = done("search --apart --adapter", f"{d}/found/elastic", model, "--out", f"{d}/again", *options)
        assert again["row"]["config"] == found["row"]["config"] and again["adapter_bytes"] == found["adapter_bytes"]
        merged, apart = (done("eval", f"{d}/{name}", "--text", text) for name in ("found", "again"))
        assert abs(merged["loss"] - apart["loss"]) < 1e-4 and "adapter_bytes" in apart and "adapter_bytes" not in merged


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

    TEXT = [f"The sum of {i} and {j} is a number, and {i + j} is one. "*3 for i in range(8) for j in range(6)]
    WORDS = train_tokenizer(TEXT, vocab_size=288, context=64)

    def tiny(folder, context=64):
        "A folder with a random Llama, and a text beside it."
        torch.manual_seed(0)
        model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=len(WORDS), hidden_size=32, intermediate_size=64,
            num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=context,
            tie_word_embeddings=True, bos_token_id=0, eos_token_id=0))
        save(model.eval(), WORDS, f"{folder}/tiny")
        Path(f"{folder}/text.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in TEXT))
        return f"{folder}/tiny", f"{folder}/text.jsonl"

    def plainly(folder):
        "The model as transformers loads it, and what it says about a few tokens."
        model = tf.AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad(): return model, model(torch.arange(24).view(2, 12)).logits

    # %% ../nbs/52_cli.ipynb #f405382e
    def here(name, **job): return json.loads(json.dumps(measured(**job)))
    def once(models, prompt, tokens): return turns(models, prompt, 4, rounds=1)

    with tempfile.TemporaryDirectory() as d:
        model, text = tiny(d)
        options = ["--text", text, "--only", "INT8, n", "--quick", "--budget-mb", "9", "0.001", "--out", f"{d}/paths"]
        with patch.dict(rows_of.__globals__, elsewhere=here, turns=once), patch.dict("os.environ", PATHLM_CACHE="off"):
            found = done("paths", model, *options)
        assert [r["path"] for r in found["rows"]] == ["dense", "INT8, nearest"]
        assert found["recommended"][0]["path"] and not found["recommended"][1]["path"]
        assert {p.name for p in Path(f"{d}/paths").iterdir()} >= {"results.json", "index.html", "front.png"}


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

    TEXT = [f"The sum of {i} and {j} is a number, and {i + j} is one. "*3 for i in range(8) for j in range(6)]
    WORDS = train_tokenizer(TEXT, vocab_size=288, context=64)

    def tiny(folder, context=64):
        "A folder with a random Llama, and a text beside it."
        torch.manual_seed(0)
        model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=len(WORDS), hidden_size=32, intermediate_size=64,
            num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=context,
            tie_word_embeddings=True, bos_token_id=0, eos_token_id=0))
        save(model.eval(), WORDS, f"{folder}/tiny")
        Path(f"{folder}/text.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in TEXT))
        return f"{folder}/tiny", f"{folder}/text.jsonl"

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
        model, text = tiny(d)
        Path(f"{d}/short.txt").write_text("Too short.")
        Path(f"{d}/file").touch()
        Path(f"{d}/damaged").mkdir()
        for name, content in ("config.json", '{"model_type": "llama"}'), ("model.safetensors", "none"):
            Path(f"{d}/damaged/{name}").write_text(content)
        save(load(model)[0], None, f"{d}/mute")
        for line, said in [
            ("prune --rate 1.5", "rate=1.5 is outside [0, 1)"),
            ("prune --rate .5 --target q_prj", "near: q_proj"),
            ("prune --rate .5 --layers=9", "9"),
            ("prune --rank 999", "r=999"),
            ("prune --rate .5 --method wanda", "--method wanda"),
            ("prune --rate .5 --text D/absent", "--text D/absent"),
            ("prune --rate .5 --by loss", "--by loss would not be read without --task"),
            ("prune --task sst2 --objective output", "--objective output would not be read with --task"),
            ("prune --sparsity 1.5 --text D/text.jsonl", "1.5"),
            ("prune --sparsity .5 --objective output", "--objective"),
            ("prune --sparsity .5 --method magnitude --batches 2", "--batches 2"),
            ("prune --pattern 2of4 --text D/text.jsonl", "2of4"),
            ("prune --sparsity .5 --batches 0", "--batches 0"),
            ("prune D/damaged --rate .5", "D/damaged"),
            ("prune D/absent --rate .5", "D/absent"),
            ("prune D/file --rate .5", "D/file"),
            ("prune D/mute --sparsity .5", "D/mute has no tokenizer"),
            ("prune --sparsity .5 --text D/absent.txt", "D/absent.txt"),
            ("quantize --method rtn --bits 9", "9"),
            ("quantize --method rtn --bits 0", "bits=0"),
            ("quantize --method shift-add --bits 0 --text D/text.jsonl", "0"),
            ("quantize --method shift-add --bits 5 --text D/text.jsonl", "5"),
            ("quantize --method rtn --group 100", "100"),
            ("quantize --method rtn --group -1", "--group -1"),
            ("quantize --method rtn --objective output", "weight objective"),
            ("quantize --method rtn --average 0", "--average"),
            ("quantize --method rtn --batches 2", "--batches 2"),
            ("quantize --method gptq --average 3", "--average"),
            ("quantize --method shift-add --average 3 --bits 3", "--bits 3"),
            ("quantize --method shift-add --asymmetric", "--asymmetric"),
            ("quantize --method gptq --text D/short.txt", "64"),
            ("adapt --method lora --set rank=4", "rank=4"),
            ("adapt --method lora --set r=four --text D/text.jsonl", "r=four"),
            ("adapt --method lora --set r=0", "r=0"),
            ("adapt --method svft --set pattern=diagonal", "diagonal"),
            ("adapt --method vblora --set vector_length=100 --text D/text.jsonl --window 32", "vector_length=100"),
            ("adapt --method sparsepeft --text D/text.jsonl --window 32", "without a mask"),
            ("adapt --method lora --steps 0 --text D/text.jsonl --window 32", "steps=0"),
            ("adapt --method lora --sparsity .6", "--sparsity 0.6 would not be read without --pipeline"),
            ("adapt --method lora D/mute", "D/mute has no tokenizer"),
            ("adapt --pipeline sqft", "'SQFT'"),
            ("adapt --pipeline SQFT --layers 1", "--layers"),
            ("search --ranks 0 --text D/text.jsonl --window 32", "0"),
            ("search --adapter D/absent --text D/text.jsonl --window 32", "D/absent"),
            ("search --adapter D/absent --steps 3", "--steps 3 would not be read with --adapter"),
            ("search --way climb --budget 0 --steps 1 --text D/short.txt", "document"),
            ("search D/mute --text D/text.jsonl", "D/mute has no tokenizer"),
            ("tour D/mute", "D/mute has no tokenizer"),
            ("tour --seed -1", "seed=-1"),
            ("tour --text D/short.txt", "one document"),
            ("paths --only nothing --budget-mb 3 --text D/text.jsonl", "nothing"),
            ("paths --jobs 0 --text D/text.jsonl", "jobs=0"),
            ("paths --task sst3 --text D/text.jsonl", "'sst3'"),
            ("paths --data D --text D/text.jsonl", "without --task"),
        ]:
            (name, *rest), said = line.replace("D/", f"{d}/").split(), said.replace("D/", f"{d}/")
            refused([name, "--model", model, *rest, "--out", f"{d}/o"], said)
            assert not {p.name for p in Path(d).glob("o/*")} & {"model.safetensors", "config.json", "results.json"}, line
        with patch.dict("os.environ", WORLD_SIZE="2"):
            for name in ["tour"], ["paths"], ["adapt", "--method", "lora"]:
                refused([*name, "--model", model, "--out", f"{d}/o"], "2 processes")
        refused(["prune", f"{d}/damaged", "--rate", ".5", "--out", f"{d}/damaged"], "the model itself")
        refused(["tour", "--out", f"{d}/file", model, "--text", text], f"{d}/file")
        refused(["quantize", "--method", "rtn", model, "--out", f"{d}/file"], f"{d}/file")
        refused(["pretrain", "--device", "foo", "--out", f"{d}/o"], "'foo'")
        for line, said in [
            ("eval --adapter D/absent", "D/absent"),
            ("eval --text D/short.txt", "64"),
            ("eval --text D/absent.txt", "D/absent.txt"),
            ("eval D/absent", "D/absent"),
            ("eval D/damaged", "D/damaged"),
            ("eval --window 9999", "9999"),
        ]:
            refused(["eval", "--model", model, *["--text", text]*("--text" not in line),
                     *line.replace("D/", f"{d}/").split()[1:]], said.replace("D/", f"{d}/"))
        refused(["bench", "sweep", "--seed", "-1"], "seed=-1")
        assert {p.name for p in Path(f"{d}/damaged").iterdir()} == {"config.json", "model.safetensors"}


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

    TEXT = [f"The sum of {i} and {j} is a number, and {i + j} is one. "*3 for i in range(8) for j in range(6)]
    WORDS = train_tokenizer(TEXT, vocab_size=288, context=64)

    def tiny(folder, context=64):
        "A folder with a random Llama, and a text beside it."
        torch.manual_seed(0)
        model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=len(WORDS), hidden_size=32, intermediate_size=64,
            num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=context,
            tie_word_embeddings=True, bos_token_id=0, eos_token_id=0))
        save(model.eval(), WORDS, f"{folder}/tiny")
        Path(f"{folder}/text.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in TEXT))
        return f"{folder}/tiny", f"{folder}/text.jsonl"

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

    TEXT = [f"The sum of {i} and {j} is a number, and {i + j} is one. "*3 for i in range(8) for j in range(6)]
    WORDS = train_tokenizer(TEXT, vocab_size=288, context=64)

    def tiny(folder, context=64):
        "A folder with a random Llama, and a text beside it."
        torch.manual_seed(0)
        model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=len(WORDS), hidden_size=32, intermediate_size=64,
            num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=context,
            tie_word_embeddings=True, bos_token_id=0, eos_token_id=0))
        save(model.eval(), WORDS, f"{folder}/tiny")
        Path(f"{folder}/text.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in TEXT))
        return f"{folder}/tiny", f"{folder}/text.jsonl"

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

    def fail(args): raise RuntimeError("no such luck")

    args, err = arguments().parse_args(["eval"]), io.StringIO()
    args.run = fail
    with contextlib.redirect_stderr(err): code = answer(args)
    assert code == 1 and "Traceback" in err.getvalue() and "pathlm: failed" in err.getvalue()


def test_it_works_14():
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

    TEXT = [f"The sum of {i} and {j} is a number, and {i + j} is one. "*3 for i in range(8) for j in range(6)]
    WORDS = train_tokenizer(TEXT, vocab_size=288, context=64)

    def tiny(folder, context=64):
        "A folder with a random Llama, and a text beside it."
        torch.manual_seed(0)
        model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=len(WORDS), hidden_size=32, intermediate_size=64,
            num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=context,
            tie_word_embeddings=True, bos_token_id=0, eos_token_id=0))
        save(model.eval(), WORDS, f"{folder}/tiny")
        Path(f"{folder}/text.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in TEXT))
        return f"{folder}/tiny", f"{folder}/text.jsonl"

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
