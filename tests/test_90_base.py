from pathlm.base import *
import math
import os
import tempfile
import warnings
from pathlib import Path
import matplotlib.pyplot as plt
import torch
from unittest.mock import patch


def test_errors():
    # %% ../nbs/90_base.ipynb #354c5386
    for error, builtin in (SettingError, ValueError), (UnknownModuleError, LookupError), (CheckpointError, OSError):
        assert issubclass(error, PathlmError) and issubclass(error, builtin)


def test_files_are_whole_or_absent():
    # %% ../nbs/90_base.ipynb #8671ec86
    def half(path):
        path.write_text("half of")
        raise KeyboardInterrupt

    with tempfile.TemporaryDirectory() as d:
        path = write_file(Path(d)/"note.txt", lambda p: p.write_text("whole"))
        try: write_file(path, half)
        except KeyboardInterrupt: pass
        assert path.read_text() == "whole" and list(Path(d).iterdir()) == [path]


def test_files_are_whole_or_absent_2():
    # %% ../nbs/90_base.ipynb #91d52d1f
    assert plain({"loss": math.inf, "rows": (1, math.nan, "x")}) == {"loss": None, "rows": [1, None, "x"]}


def test_files_are_whole_or_absent_3():
    # %% ../nbs/90_base.ipynb #42836043
    with tempfile.TemporaryDirectory() as d:
        path = write_tensors(f"{d}/w.safetensors", {"W": torch.arange(6.).view(2, 3).T}, {"by": "hand"})
        assert torch.equal(read_tensors(path)["W"], torch.arange(6.).view(2, 3).T) and read_metadata(path) == {"by": "hand"}
        path.write_bytes(path.read_bytes()[:-4])
        for bad in path, f"{d}/absent.safetensors":
            for read in read_tensors, read_metadata:
                try: read(bad)
                except CheckpointError as e: assert str(bad) in str(e)
                else: raise AssertionError(f"{bad} was read")


def test_files_are_whole_or_absent_4():
    # %% ../nbs/90_base.ipynb #00af0642
    with tempfile.TemporaryDirectory() as d:
        assert output_folder(f"{d}/a/b").is_dir()
        write_file(f"{d}/file", lambda p: p.touch())
        try: output_folder(f"{d}/file/b")
        except OutputError as e: assert f"{d}/file/b" in str(e)
        else: raise AssertionError("a file was taken for a folder")


def test_files_are_whole_or_absent_5():
    # %% ../nbs/90_base.ipynb #d47c7398
    with tempfile.TemporaryDirectory() as d:
        for text in "first", "second":
            with model_folder(f"{d}/model") as draft:
                for name in "config.json", f"model-{text}.safetensors": (draft/name).write_text(text)
        assert {f.name: f.read_text() for f in Path(f"{d}/model").iterdir()} \
            == {"config.json": "second", "model-second.safetensors": "second"}
        try:
            with model_folder(f"{d}/model") as draft:
                (draft/"config.json").write_text("third")
                raise OSError("the disk is full")
        except OutputError as e: assert "the disk is full" in str(e)
        assert Path(f"{d}/model/config.json").read_text() == "second" and len(list(Path(f"{d}/model").iterdir())) == 2


def test_files_are_whole_or_absent_6():
    # %% ../nbs/90_base.ipynb #862dfa10
    with tempfile.TemporaryDirectory() as d:
        stays = {"adapter.safetensors", "adapter_model.safetensors", "adapter.json", "adapter_config.json", "README.md"}
        goes = {"model-00001-of-00002.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "tokenizer.json",
                "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json", "generation_config.json"}
        for name in stays | goes: Path(d, name).touch()
        (output_folder(f"{d}/.{os.getpid()}.part")/"stray").touch()  # Of a killed process that had our number
        with model_folder(d) as draft: (draft/"config.json").touch()
        assert {f.name for f in Path(d).iterdir() if f.is_file()} == stays | {"config.json"}


def test_weights_in_parts():
    # %% ../nbs/90_base.ipynb #a7e04a32
    def check_joined(cuts, limit):
        torch.manual_seed(0)
        tensors = {"a.w": torch.randn(3, 5).bfloat16(), "a.n": torch.tensor(7), "b": torch.zeros(0, 4),
                   "c": torch.arange(3), "a.bits": torch.arange(5).byte(), "d": torch.randn(2, 3),
                   "é": torch.tensor([True]), "f": torch.ones(3).char(), "g": torch.ones(3).half(),
                   "h": torch.ones(3).short()}
        names = list(tensors)
        with tempfile.TemporaryDirectory() as d:
            parts = output_folder(f"{d}/parts")
            for k, (i, j) in enumerate(zip([0, *cuts], [*cuts, len(names)], strict=True)):
                write_part(parts, k, part := {n: tensors[n] for n in names[i:j]})
                assert read_part(parts, k).keys() == part.keys() and read_part(parts, k + 1) is None
            hashes = join_parts(parts, output_folder(f"{d}/model"), limit)
            read = Tensors(f"{d}/model", hashes)
            assert list(hashes) == list(read.files) and len(hashes) == (1 if limit else len(cuts) + 1)
            for n, t in tensors.items():
                assert torch.equal(read[n], t) and (read.shape(n), read.dtype(n)) == (t.shape, t.dtype)
            assert len(read) == len(tensors) and "z" not in read
            if limit:
                one = write_tensors(f"{d}/one.safetensors", tensors, {"format": "pt"})
                assert one.read_bytes() == Path(f"{d}/model/{WEIGHTS}").read_bytes()

    # %% ../nbs/90_base.ipynb #f95811de
    for cuts in [], [3], [1, 2, 6]:
        check_joined(cuts, 2**30)
        check_joined(cuts, 0)


def test_weights_in_parts_2():
    # %% ../nbs/90_base.ipynb #a7e04a32
    def check_joined(cuts, limit):
        torch.manual_seed(0)
        tensors = {"a.w": torch.randn(3, 5).bfloat16(), "a.n": torch.tensor(7), "b": torch.zeros(0, 4),
                   "c": torch.arange(3), "a.bits": torch.arange(5).byte(), "d": torch.randn(2, 3),
                   "é": torch.tensor([True]), "f": torch.ones(3).char(), "g": torch.ones(3).half(),
                   "h": torch.ones(3).short()}
        names = list(tensors)
        with tempfile.TemporaryDirectory() as d:
            parts = output_folder(f"{d}/parts")
            for k, (i, j) in enumerate(zip([0, *cuts], [*cuts, len(names)], strict=True)):
                write_part(parts, k, part := {n: tensors[n] for n in names[i:j]})
                assert read_part(parts, k).keys() == part.keys() and read_part(parts, k + 1) is None
            hashes = join_parts(parts, output_folder(f"{d}/model"), limit)
            read = Tensors(f"{d}/model", hashes)
            assert list(hashes) == list(read.files) and len(hashes) == (1 if limit else len(cuts) + 1)
            for n, t in tensors.items():
                assert torch.equal(read[n], t) and (read.shape(n), read.dtype(n)) == (t.shape, t.dtype)
            assert len(read) == len(tensors) and "z" not in read
            if limit:
                one = write_tensors(f"{d}/one.safetensors", tensors, {"format": "pt"})
                assert one.read_bytes() == Path(f"{d}/model/{WEIGHTS}").read_bytes()

    # %% ../nbs/90_base.ipynb #877a23e1
    with tempfile.TemporaryDirectory() as d:
        for k in range(2): write_part(d, k, {f"t{k}": torch.randn(4, 4)})
        hashes = join_parts(d, output_folder(f"{d}/model"), 0)
        path = Path(d)/"model"/list(hashes)[1]
        whole = path.read_bytes()
        for spoilt, read in ((whole[:-1] + bytes([whole[-1] ^ 1]), lambda: Tensors(path.parent, hashes)["t1"]),
                             (whole[:-1], lambda: Tensors(path.parent)), (None, lambda: Tensors(path.parent))):
            path.unlink()
            if spoilt: path.write_bytes(spoilt)
            try: read()
            except CheckpointError as e: assert path.name in str(e)
            else: raise AssertionError("read")
        assert read_part(d, 1)["t1"].shape == (4, 4)
        (Path(d)/"part-00001.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert read_part(d, 1) is None and find_part(d, 1) is None and find_part(d, 0).name == "part-00000.safetensors"
        try: join_parts(d, f"{d}/model")
        except CheckpointError as e: assert "part-00001" in str(e) and not Path(f"{d}/model/{WEIGHTS}").exists()
        else: raise AssertionError("a damaged part was joined")


def test_weights_in_parts_3():
    # %% ../nbs/90_base.ipynb #a7e04a32
    def check_joined(cuts, limit):
        torch.manual_seed(0)
        tensors = {"a.w": torch.randn(3, 5).bfloat16(), "a.n": torch.tensor(7), "b": torch.zeros(0, 4),
                   "c": torch.arange(3), "a.bits": torch.arange(5).byte(), "d": torch.randn(2, 3),
                   "é": torch.tensor([True]), "f": torch.ones(3).char(), "g": torch.ones(3).half(),
                   "h": torch.ones(3).short()}
        names = list(tensors)
        with tempfile.TemporaryDirectory() as d:
            parts = output_folder(f"{d}/parts")
            for k, (i, j) in enumerate(zip([0, *cuts], [*cuts, len(names)], strict=True)):
                write_part(parts, k, part := {n: tensors[n] for n in names[i:j]})
                assert read_part(parts, k).keys() == part.keys() and read_part(parts, k + 1) is None
            hashes = join_parts(parts, output_folder(f"{d}/model"), limit)
            read = Tensors(f"{d}/model", hashes)
            assert list(hashes) == list(read.files) and len(hashes) == (1 if limit else len(cuts) + 1)
            for n, t in tensors.items():
                assert torch.equal(read[n], t) and (read.shape(n), read.dtype(n)) == (t.shape, t.dtype)
            assert len(read) == len(tensors) and "z" not in read
            if limit:
                one = write_tensors(f"{d}/one.safetensors", tensors, {"format": "pt"})
                assert one.read_bytes() == Path(f"{d}/model/{WEIGHTS}").read_bytes()

    # %% ../nbs/90_base.ipynb #598d7197
    with tempfile.TemporaryDirectory() as d:
        for k in range(2): write_part(d, k, {"t": torch.zeros(k + 1)})
        (Path(d)/INDEX).write_text('{"weight_map": {"t": 1}}')
        for read, word in (lambda: join_parts(d, d), "such as t"), (lambda: Tensors(d), "weight_map"):
            try: read()
            except CheckpointError as e: assert word in str(e) and not (Path(d)/WEIGHTS).exists()
            else: raise AssertionError(word)


def test_weights_in_parts_4():
    # %% ../nbs/90_base.ipynb #a7e04a32
    def check_joined(cuts, limit):
        torch.manual_seed(0)
        tensors = {"a.w": torch.randn(3, 5).bfloat16(), "a.n": torch.tensor(7), "b": torch.zeros(0, 4),
                   "c": torch.arange(3), "a.bits": torch.arange(5).byte(), "d": torch.randn(2, 3),
                   "é": torch.tensor([True]), "f": torch.ones(3).char(), "g": torch.ones(3).half(),
                   "h": torch.ones(3).short()}
        names = list(tensors)
        with tempfile.TemporaryDirectory() as d:
            parts = output_folder(f"{d}/parts")
            for k, (i, j) in enumerate(zip([0, *cuts], [*cuts, len(names)], strict=True)):
                write_part(parts, k, part := {n: tensors[n] for n in names[i:j]})
                assert read_part(parts, k).keys() == part.keys() and read_part(parts, k + 1) is None
            hashes = join_parts(parts, output_folder(f"{d}/model"), limit)
            read = Tensors(f"{d}/model", hashes)
            assert list(hashes) == list(read.files) and len(hashes) == (1 if limit else len(cuts) + 1)
            for n, t in tensors.items():
                assert torch.equal(read[n], t) and (read.shape(n), read.dtype(n)) == (t.shape, t.dtype)
            assert len(read) == len(tensors) and "z" not in read
            if limit:
                one = write_tensors(f"{d}/one.safetensors", tensors, {"format": "pt"})
                assert one.read_bytes() == Path(f"{d}/model/{WEIGHTS}").read_bytes()

    # %% ../nbs/90_base.ipynb #eae40694
    with tempfile.TemporaryDirectory() as d:
        W, made = torch.randn(3, 4), []
        def make():
            made.append(1)
            return {"square": W @ W.T}
        for cache, n in (None, 1), (d, 2), (d, 2):
            assert torch.equal(kept(make, cache, "square", W)["square"], W @ W.T) and len(made) == n
        kept(make, d, "square", W.bfloat16())
        assert len(made) == 3
        for file in Path(d).iterdir(): file.write_bytes(b"damaged")
        assert torch.equal(kept(make, d, "square", W)["square"], W @ W.T) and len(made) == 4
        Path(f"{d}/file").touch()
        with warnings.catch_warnings(record=True) as seen: kept(make, f"{d}/file/cache", "square", W)
        assert "not kept" in str(seen[0].message) and len(made) == 5


def test_weights_in_parts_5():
    # %% ../nbs/90_base.ipynb #a7e04a32
    def check_joined(cuts, limit):
        torch.manual_seed(0)
        tensors = {"a.w": torch.randn(3, 5).bfloat16(), "a.n": torch.tensor(7), "b": torch.zeros(0, 4),
                   "c": torch.arange(3), "a.bits": torch.arange(5).byte(), "d": torch.randn(2, 3),
                   "é": torch.tensor([True]), "f": torch.ones(3).char(), "g": torch.ones(3).half(),
                   "h": torch.ones(3).short()}
        names = list(tensors)
        with tempfile.TemporaryDirectory() as d:
            parts = output_folder(f"{d}/parts")
            for k, (i, j) in enumerate(zip([0, *cuts], [*cuts, len(names)], strict=True)):
                write_part(parts, k, part := {n: tensors[n] for n in names[i:j]})
                assert read_part(parts, k).keys() == part.keys() and read_part(parts, k + 1) is None
            hashes = join_parts(parts, output_folder(f"{d}/model"), limit)
            read = Tensors(f"{d}/model", hashes)
            assert list(hashes) == list(read.files) and len(hashes) == (1 if limit else len(cuts) + 1)
            for n, t in tensors.items():
                assert torch.equal(read[n], t) and (read.shape(n), read.dtype(n)) == (t.shape, t.dtype)
            assert len(read) == len(tensors) and "z" not in read
            if limit:
                one = write_tensors(f"{d}/one.safetensors", tensors, {"format": "pt"})
                assert one.read_bytes() == Path(f"{d}/model/{WEIGHTS}").read_bytes()

    # %% ../nbs/90_base.ipynb #4c369be4
    with patch.dict(os.environ, {"PATHLM_CACHE": "", "XDG_CACHE_HOME": "/x"}): assert cache_folder() == Path("/x/pathlm")
    with patch.dict(os.environ, PATHLM_CACHE="off"): assert cache_folder() is None
    with patch.dict(os.environ, PATHLM_CACHE="/y"): assert cache_folder() == Path("/y")


def test_memory():
    # %% ../nbs/90_base.ipynb #0c1bfa58
    much = torch.ones(10_000_000)
    now, peak = resident()
    assert peak >= now > much.nbytes
    del much
    if reset_peak(): assert resident()[1] < peak


def test_figures():
    # %% ../nbs/90_base.ipynb #443aa6e3
    with tempfile.TemporaryDirectory() as d:
        save_figure(f"{d}/line.png", plt.figure())
        assert Path(d, "line.png").read_bytes().startswith(b"\x89PNG") and not plt.get_fignums()


def test_long_loops_resume():
    # %% ../nbs/90_base.ipynb #7567780d
    ran = []
    def square(key):
        if key == "3" and "3" not in ran and len(ran) == 2: raise KeyboardInterrupt
        ran.append(key)
        return {"square": int(key)**2}

    with tempfile.TemporaryDirectory() as d:
        path, jobs = Path(d)/"rows.jsonl", ["1", "2", "3", "4"]
        try: list(resumable(jobs, square, path, {"power": 2}))
        except KeyboardInterrupt: ran.append("stop")
        with path.open("a") as f: f.write('{"key": "3", "squ')
        rows = list(resumable(jobs, square, path, {"power": 2}))
        again = list(resumable(jobs, square, path, {"power": 2}))
        other = list(resumable(["1"], square, path, {"power": 3}))
    assert ran == ["1", "2", "stop", "3", "4", "1"]
    assert [r["square"] for r in rows] == [1, 4, 9, 16] and again == rows and other == rows[:1]


def test_long_loops_resume_2():
    # %% ../nbs/90_base.ipynb #ffe21a96
    with tempfile.TemporaryDirectory() as d:
        Path(d, "notes.txt").write_text("my notes\n")
        try: list(resumable(["1"], dict, f"{d}/notes.txt"))
        except CheckpointError as e: assert f"{d}/notes.txt" in str(e)
        else: raise AssertionError("a foreign file was taken for rows")
        assert Path(d, "notes.txt").read_text() == "my notes\n"
