from pathlm.cli import *
import json
from pathlib import Path
import contextlib
import io
import tempfile


def test_it_works():
    # %% ../nbs/52_cli.ipynb #27b50488
    def run(*argv):
        "Exit code, stdout and stderr of a command."
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try: code = main(list(argv))
            except SystemExit as e: code = e.code
        return code, out.getvalue(), err.getvalue()

    # %% ../nbs/52_cli.ipynb #e8ebd4bf
    with tempfile.TemporaryDirectory() as d:
        Path(f"{d}/text.txt").write_text("The sum of two numbers is a number.\n\n" * 300)
        options = "--rate 0.9 --target down_proj,up_proj --layers=-2,-1 --json --out".split()
        code, out, _ = run("prune", *options, f"{d}/small")
        assert code == 0 and len(json.loads(out)["rows"]) == 4
        sizes = {}
        for name, *model in ("dense",), ("pruned", "--model", f"{d}/small"), ("again", f"{d}/small"):
            code, out, _ = run("eval", *model, "--text", f"{d}/text.txt", "--json")
            assert code == 0
            sizes[name] = json.loads(out)
    assert set(sizes["dense"]) == {"loss", "loss_se", "perplexity", "bits_per_char", "tokens", "chars", "stored_bytes"}
    assert sizes["pruned"]["stored_bytes"] < sizes["dense"]["stored_bytes"]
    assert sizes["pruned"]["loss"] != sizes["dense"]["loss"] and sizes["again"] == sizes["pruned"]


def test_it_works_2():
    # %% ../nbs/52_cli.ipynb #27b50488
    def run(*argv):
        "Exit code, stdout and stderr of a command."
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try: code = main(list(argv))
            except SystemExit as e: code = e.code
        return code, out.getvalue(), err.getvalue()

    # %% ../nbs/52_cli.ipynb #fa5aafec
    def reviews(folder):
        "Write forty reviews in the format of SST-2."
        Path(f"{folder}/sst2").mkdir()
        for split, n in ("train_sentences", 8), ("dev", 8), ("test_labelled", 24):
            rows = [{"sentence": f"{split} {i} was {'good' if i % 2 else 'bad'}", "label": str(i % 2)} for i in range(n)]
            Path(f"{folder}/sst2/{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))

    with tempfile.TemporaryDirectory() as d:
        reviews(d)
        options = f"--data {d} --shots 2 --module mlp --layers=-1 --by loss".split()
        code, out, _ = run("prune", "--task", "sst2", *options, "--out", f"{d}/clipped", "--json")
        found = json.loads(out)
        assert code == 0 and found["n"] == {"valid": 8, "test": 24} and found["task"] == "sst2"
        assert json.loads(Path(f"{d}/clipped/search.json").read_text())["table"] == found["table"]
        assert Path(f"{d}/clipped/search.png").stat().st_size > 5000
        assert run("prune", "--task", "sst2", *options, "--out", f"{d}/clipped")[1].splitlines()[1].startswith("way")
        code, out, _ = run("eval", f"{d}/clipped", "--json")
        assert code == 0 and json.loads(out)["stored_bytes"] == found["stored_bytes"]
        for argv, said in [(("--task", "sst3", *options), "sst2"), (("--task", "rte", *options), "rte"),
                           (("--task", "sst2", *options, "--module", "ffn"), "ffn")]:
            code, out, err = run("prune", *argv, "--out", f"{d}/o")
            assert (code, out) == (2, "") and said in err and "Traceback" not in err
        assert not Path(f"{d}/o/config.json").exists()


def test_it_works_3():
    # %% ../nbs/52_cli.ipynb #27b50488
    def run(*argv):
        "Exit code, stdout and stderr of a command."
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try: code = main(list(argv))
            except SystemExit as e: code = e.code
        return code, out.getvalue(), err.getvalue()

    # %% ../nbs/52_cli.ipynb #e432c3a3
    with tempfile.TemporaryDirectory() as d:
        code, out, _ = run("pretrain", "--network", "labels", "--steps", "2", "--out", d, "--json")
        assert code == 0 and json.loads(out)["step"] == 2 and Path(f"{d}/model.safetensors").is_file()
        code, out, err = run("pretrain", "--network", "images", "--out", d)
        assert (code, out) == (2, "") and "regression" in err


def test_it_works_4():
    # %% ../nbs/52_cli.ipynb #27b50488
    def run(*argv):
        "Exit code, stdout and stderr of a command."
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try: code = main(list(argv))
            except SystemExit as e: code = e.code
        return code, out.getvalue(), err.getvalue()

    # %% ../nbs/52_cli.ipynb #8c7cd6db
    with tempfile.TemporaryDirectory() as d:
        Path(f"{d}/text.txt").write_text("The sum of two numbers is a number.\n\n" * 300)
        options = f"--method lora --set r=2 --set learning_rate=0.01 --target v_proj --steps 3 --text {d}/text.txt --json"
        code, out, _ = run("adapt", *options.split(), "--out", f"{d}/adapted")
        assert code == 0 and (made := json.loads(out))["trained"] == 6*2*(256 + 256)
        assert {p.name for p in Path(f"{d}/adapted").iterdir() if p.is_dir()} == {"adapter"}
        losses = {}
        for name, *model in ("dense",), ("merged", f"{d}/adapted"), ("beside", "--adapter", f"{d}/adapted/adapter"):
            losses[name] = json.loads(run("eval", *model, "--text", f"{d}/text.txt", "--json")[1])["loss"]
    assert losses["merged"] < losses["dense"] - .05 and abs(losses["merged"] - losses["beside"]) < .02


def test_it_works_5():
    # %% ../nbs/52_cli.ipynb #27b50488
    def run(*argv):
        "Exit code, stdout and stderr of a command."
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try: code = main(list(argv))
            except SystemExit as e: code = e.code
        return code, out.getvalue(), err.getvalue()

    # %% ../nbs/52_cli.ipynb #f5f1766a
    with tempfile.TemporaryDirectory() as d:
        Path(f"{d}/short.txt").write_text("Too short.")
        Path(f"{d}/file").touch()
        Path(f"{d}/damaged").mkdir()
        for name, text in ("config.json", '{"model_type": "llama"}'), ("model.safetensors", "none"):
            Path(f"{d}/damaged/{name}").write_text(text)
        for argv, said in [
            (("prune", "--rate", "1.5", "--out", f"{d}/o"), "rate=1.5 is outside [0, 1)"),
            (("prune", f"{d}/damaged", "--rate", ".5", "--out", f"{d}/damaged"), "the model itself"),
            (("adapt", "--method", "lora", "--set", "rank=4", "--out", f"{d}/o"), "rank=4"),
            (("adapt", "--method", "lora", "--set", "r=four", "--out", f"{d}/o"), "r=four"),
            (("adapt", "--method", "lora", "--set", "r=0", "--out", f"{d}/o"), "r=0"),
            (("adapt", "--method", "svft", "--set", "pattern=diagonal", "--out", f"{d}/o"), "diagonal"),
            (("adapt", "--method", "vblora", "--set", "vector_length=100", "--out", f"{d}/o"), "vector_length=100"),
            (("adapt", "--method", "lora", "--steps", "0", "--out", f"{d}/o"), "steps=0"),
            (("eval", "--adapter", f"{d}/absent"), f"{d}/absent"),
            (("tour", "--seed", "-1", "--out", f"{d}/o"), "seed=-1"),
            (("pretrain", "--device", "foo", "--out", f"{d}/o"), "'foo'"),
            (("bench", "sweep", "--seed", "-1"), "seed=-1"),
            (("prune", "--rate", ".5", "--target", "q_prj", "--out", f"{d}/o"), "near: q_proj"),
            (("prune", "--rate", ".5", "--layers=9", "--out", f"{d}/o"), "9"),
            (("prune", "--rank", "999", "--out", f"{d}/o"), "r=999"),
            (("eval", "--text", f"{d}/short.txt"), "512"),
            (("eval", "--text", f"{d}/absent.txt"), f"{d}/absent.txt"),
            (("eval", f"{d}/absent"), f"{d}/absent"),
            (("eval", f"{d}/damaged"), f"{d}/damaged"),
            (("eval", "--window", "9999"), "9999"),
            (("tour", "--out", f"{d}/file"), f"{d}/file"),
            (("tour", "--text", f"{d}/short.txt", "--out", f"{d}/t"), "one document"),
        ]:
            code, out, err = run(*argv)
            line = [l for l in err.splitlines() if l.startswith("pathlm: ")]
            assert (code, out, len(line)) == (2, "", 1) and said in line[0] and "Traceback" not in err, (argv, err)
        assert not any(p.name in ("model.safetensors", "config.json", "results.json") for p in Path(d).glob("[ot]/*"))
        assert {p.name for p in Path(f"{d}/damaged").iterdir()} == {"config.json", "model.safetensors"}


def test_it_works_6():
    # %% ../nbs/52_cli.ipynb #27b50488
    def run(*argv):
        "Exit code, stdout and stderr of a command."
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try: code = main(list(argv))
            except SystemExit as e: code = e.code
        return code, out.getvalue(), err.getvalue()

    # %% ../nbs/52_cli.ipynb #eacdbd8f
    for name in [], ["tour"], ["prune"], ["adapt"], ["eval"], ["pretrain"], ["bench"]:
        code, out, _ = run(*name, "--help")
        assert code == 0 and "example:" in out
    assert run("prune", "--out", "x")[0] == 2 and run("wander")[0] == 2


def test_it_works_7():
    # %% ../nbs/52_cli.ipynb #27b50488
    def run(*argv):
        "Exit code, stdout and stderr of a command."
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try: code = main(list(argv))
            except SystemExit as e: code = e.code
        return code, out.getvalue(), err.getvalue()

    # %% ../nbs/52_cli.ipynb #271bfb93
    def stop(args): raise KeyboardInterrupt

    err = io.StringIO()
    args = arguments().parse_args(["tour", "--out", "somewhere"])
    args.run = stop
    with contextlib.redirect_stderr(err): code = answer(args)
    assert code == 130 and "Finished rows are in somewhere" in err.getvalue() and "goes on" in err.getvalue()
