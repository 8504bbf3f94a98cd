from pathlm.checkpoints import *
from pathlib import Path
import torch
from pathlm.base import CheckpointError
from pathlm.base import SettingError
from pathlm.base import read_json
from pathlm.base import read_tensors
from pathlm.base import write_json
from pathlm.base import write_tensors
from pathlm.models import EMBEDDED
import tempfile
from pathlm.adapters.core import attach
from pathlm.adapters.lora import LoRA
from pathlm.base import NonFiniteError
from pathlm.base import OutputError
from pathlm.evaluate import stored_bytes
from pathlm.grid import quantize
from pathlm.grid import rounding
from pathlm.linear import densify
from pathlm.linear import merge
from pathlm.models import new_model
from pathlm.shiftadd.layer import shift_add
from pathlm.sparsity import sparsify
from pathlm.spectral import decompose
from pathlm.spectral import prune
from pathlm.widths import attach_widths
from pathlm.widths import extract_widths
from pathlm.widths import set_widths
from pathlm.widths import width_choices
from pathlm.widths import width_space
from transformers import AutoModelForCausalLM
from transformers import GPT2Config
from transformers import GPT2LMHeadModel


def test_loading():
    # %% ../nbs/50_checkpoints.ipynb #31c7ab0a
    def tiny_models():
        yield new_model(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
                        head_dim=8)
        yield GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64))

    # %% ../nbs/50_checkpoints.ipynb #6ccddf29
    assert stored_dtype() == torch.bfloat16 and load()[0].dtype == torch.float32


def test_loading_2():
    # %% ../nbs/50_checkpoints.ipynb #31c7ab0a
    def tiny_models():
        yield new_model(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
                        head_dim=8)
        yield GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64))

    # %% ../nbs/50_checkpoints.ipynb #6e101aa0
    def half(model): return sparsify(model, method="magnitude", sparsity=.5)

    CHANGES = {
        "FactoredLinear": lambda model: prune(model, decompose(model), rate=.75),
        "SparseLinear": half,
        "GridLinear": lambda model: quantize(half(model), method="rtn", group=16),
        "GridLinear, asymmetric": lambda model: quantize(model, method="rtn", group=8, bits=3, symmetric=False),
        "RoundingLinear": lambda model: rounding(half(model), group=16),
        "ShiftAddLinear": lambda model: shift_add(model, block=(1, 16)),
        "ShiftAddLinear, sums by column": lambda model: shift_add(model, None, 2, "sum", (None, 1)),
        "RotatedLinear:ShiftAddLinear": lambda model: shift_add(model, None, 4, "power", (3, 16), True, rotate=5),
        "RotatedLinear:GridLinear": lambda model: quantize(model, method="rtn", group=16, rotate=5),
    }

    def check_round_trip(model, dtype, form):
        ids = torch.arange(12)[None]
        for p in model.eval().parameters(): p.data = p.data.to(dtype)
        CHANGES[form](model)
        with tempfile.TemporaryDirectory() as d:
            again, _ = load(save(model, None, f"{d}/model", {"rate": .75}), dtype)
            assert read_json(f"{d}/model/pathlm.json")["recipe"] == {"rate": .75}
            assert {p.name for p in Path(d).iterdir()} == {"model"}
        assert forms_of(again) == forms_of(model) and form.split(",")[0] in forms_of(model).values()
        assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
        assert torch.equal(again(ids).logits, model(ids).logits)

    # %% ../nbs/50_checkpoints.ipynb #75b426ce
    for form in CHANGES:
        for model in tiny_models(): check_round_trip(model, torch.float32, form)
        for model in tiny_models(): check_round_trip(model, torch.bfloat16, form)


def test_loading_3():
    # %% ../nbs/50_checkpoints.ipynb #31c7ab0a
    def tiny_models():
        yield new_model(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
                        head_dim=8)
        yield GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64))

    # %% ../nbs/50_checkpoints.ipynb #6e101aa0
    def half(model): return sparsify(model, method="magnitude", sparsity=.5)

    CHANGES = {
        "FactoredLinear": lambda model: prune(model, decompose(model), rate=.75),
        "SparseLinear": half,
        "GridLinear": lambda model: quantize(half(model), method="rtn", group=16),
        "GridLinear, asymmetric": lambda model: quantize(model, method="rtn", group=8, bits=3, symmetric=False),
        "RoundingLinear": lambda model: rounding(half(model), group=16),
        "ShiftAddLinear": lambda model: shift_add(model, block=(1, 16)),
        "ShiftAddLinear, sums by column": lambda model: shift_add(model, None, 2, "sum", (None, 1)),
        "RotatedLinear:ShiftAddLinear": lambda model: shift_add(model, None, 4, "power", (3, 16), True, rotate=5),
        "RotatedLinear:GridLinear": lambda model: quantize(model, method="rtn", group=16, rotate=5),
    }

    def check_round_trip(model, dtype, form):
        ids = torch.arange(12)[None]
        for p in model.eval().parameters(): p.data = p.data.to(dtype)
        CHANGES[form](model)
        with tempfile.TemporaryDirectory() as d:
            again, _ = load(save(model, None, f"{d}/model", {"rate": .75}), dtype)
            assert read_json(f"{d}/model/pathlm.json")["recipe"] == {"rate": .75}
            assert {p.name for p in Path(d).iterdir()} == {"model"}
        assert forms_of(again) == forms_of(model) and form.split(",")[0] in forms_of(model).values()
        assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
        assert torch.equal(again(ids).logits, model(ids).logits)

    # %% ../nbs/50_checkpoints.ipynb #7fab08b6
    for model in tiny_models():
        ids = torch.arange(12)[None]
        attach_widths(model.eval(), {g: [w, 24, 17] for g, (w, *_) in width_choices(model).items()})
        set_widths(model, dict(zip(width_space(model), (24, 17), strict=True)))
        with tempfile.TemporaryDirectory() as d:
            try: save(model, None, d)
            except SettingError as e: assert "extract_widths" in str(e)
            else: raise AssertionError("saved with elastic widths")
            extract_widths(model)
            again, _ = load(save(model, None, d))
        assert len(forms_of(model)) == len(forms_of(again)) > 3
        assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
        torch.testing.assert_close(again(ids).logits, model(ids).logits)


def test_loading_4():
    # %% ../nbs/50_checkpoints.ipynb #31c7ab0a
    def tiny_models():
        yield new_model(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
                        head_dim=8)
        yield GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64))

    # %% ../nbs/50_checkpoints.ipynb #6e101aa0
    def half(model): return sparsify(model, method="magnitude", sparsity=.5)

    CHANGES = {
        "FactoredLinear": lambda model: prune(model, decompose(model), rate=.75),
        "SparseLinear": half,
        "GridLinear": lambda model: quantize(half(model), method="rtn", group=16),
        "GridLinear, asymmetric": lambda model: quantize(model, method="rtn", group=8, bits=3, symmetric=False),
        "RoundingLinear": lambda model: rounding(half(model), group=16),
        "ShiftAddLinear": lambda model: shift_add(model, block=(1, 16)),
        "ShiftAddLinear, sums by column": lambda model: shift_add(model, None, 2, "sum", (None, 1)),
        "RotatedLinear:ShiftAddLinear": lambda model: shift_add(model, None, 4, "power", (3, 16), True, rotate=5),
        "RotatedLinear:GridLinear": lambda model: quantize(model, method="rtn", group=16, rotate=5),
    }

    def check_round_trip(model, dtype, form):
        ids = torch.arange(12)[None]
        for p in model.eval().parameters(): p.data = p.data.to(dtype)
        CHANGES[form](model)
        with tempfile.TemporaryDirectory() as d:
            again, _ = load(save(model, None, f"{d}/model", {"rate": .75}), dtype)
            assert read_json(f"{d}/model/pathlm.json")["recipe"] == {"rate": .75}
            assert {p.name for p in Path(d).iterdir()} == {"model"}
        assert forms_of(again) == forms_of(model) and form.split(",")[0] in forms_of(model).values()
        assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
        assert torch.equal(again(ids).logits, model(ids).logits)

    # %% ../nbs/50_checkpoints.ipynb #26489634
    model, tokenizer = load()
    prune(model, decompose(model), rate=.75)
    with tempfile.TemporaryDirectory() as d:
        save(model, tokenizer, d, dtype=torch.bfloat16)
        numbers = sum(t.numel() for t in own_tensors(model).values())
        assert 0 <= stored_bytes(d) - 2*numbers < 20_000
        print(f"{stored_bytes(d)/1e6:.2f} MB for {numbers:,} numbers; dense {stored_bytes(EMBEDDED)/1e6:.2f} MB")


def test_damage_is_found():
    # %% ../nbs/50_checkpoints.ipynb #31c7ab0a
    def tiny_models():
        yield new_model(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
                        head_dim=8)
        yield GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64))

    # %% ../nbs/50_checkpoints.ipynb #bf4d4db1
    def spoil(folder, how):
        weights, about = folder/"pathlm.safetensors", read_json(folder/"pathlm.json")
        tensors, name = read_tensors(weights), next(iter(about["layers"]))
        A, B = tensors[f"{name}.A"], tensors[f"{name}.B"]
        changed = {"missing": {f"{name}.A": None}, "rows": {f"{name}.A": A[1:]}, "rank": {f"{name}.B": B[1:]},
                   "nan": {f"{name}.A": A/0}, "norm": {"model.norm.weight": None},
                   "shape": {"model.norm.weight": torch.ones(3)}}
        if how in changed: write_tensors(weights, {k: t for k, t in (tensors | changed[how]).items() if t is not None})
        if how == "cut": weights.write_bytes(b"short")
        if how == "form": write_json(folder/"pathlm.json", about | {"layers": {name: "Unheard"}})
        if how == "empty": write_json(folder/"pathlm.json", {})
        if how == "json": (folder/"pathlm.json").write_text("{")

    # %% ../nbs/50_checkpoints.ipynb #5c87f86f
    for how in "cut missing rows rank norm shape nan form empty json".split():
        model = next(tiny_models())
        prune(model, decompose(model), rate=.75)
        with tempfile.TemporaryDirectory() as d:
            spoil(save(model, None, Path(d)/"model"), how)
            try: load(f"{d}/model")
            except (CheckpointError, NonFiniteError) as e: assert f"{d}/model" in str(e) and "\n" not in str(e), (how, e)
            else: raise AssertionError(how)


def test_damage_is_found_2():
    # %% ../nbs/50_checkpoints.ipynb #31c7ab0a
    def tiny_models():
        yield new_model(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
                        head_dim=8)
        yield GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64))

    # %% ../nbs/50_checkpoints.ipynb #bf4d4db1
    def spoil(folder, how):
        weights, about = folder/"pathlm.safetensors", read_json(folder/"pathlm.json")
        tensors, name = read_tensors(weights), next(iter(about["layers"]))
        A, B = tensors[f"{name}.A"], tensors[f"{name}.B"]
        changed = {"missing": {f"{name}.A": None}, "rows": {f"{name}.A": A[1:]}, "rank": {f"{name}.B": B[1:]},
                   "nan": {f"{name}.A": A/0}, "norm": {"model.norm.weight": None},
                   "shape": {"model.norm.weight": torch.ones(3)}}
        if how in changed: write_tensors(weights, {k: t for k, t in (tensors | changed[how]).items() if t is not None})
        if how == "cut": weights.write_bytes(b"short")
        if how == "form": write_json(folder/"pathlm.json", about | {"layers": {name: "Unheard"}})
        if how == "empty": write_json(folder/"pathlm.json", {})
        if how == "json": (folder/"pathlm.json").write_text("{")

    # %% ../nbs/50_checkpoints.ipynb #70703c67
    model = shift_add(next(tiny_models()), block=(1, 16))
    with tempfile.TemporaryDirectory() as d:
        weights = save(model, None, d)/"pathlm.safetensors"
        tensors, name = read_tensors(weights), next(iter(forms_of(model)))
        for key, spoilt in (("planes", lambda t: t[..., 1:]), ("numbers", lambda t: t[:, 1:]), ("size", lambda t: t*2),
                            ("planes", None)):
            changed = tensors | {f"{name}.{key}": spoilt and spoilt(tensors[f"{name}.{key}"])}
            write_tensors(weights, {k: t.contiguous() for k, t in changed.items() if t is not None})
            try: load(d)
            except CheckpointError as e: assert d in str(e) and name in str(e), e
            else: raise AssertionError(key)


def test_damage_is_found_3():
    # %% ../nbs/50_checkpoints.ipynb #31c7ab0a
    def tiny_models():
        yield new_model(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
                        head_dim=8)
        yield GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64))

    # %% ../nbs/50_checkpoints.ipynb #bf4d4db1
    def spoil(folder, how):
        weights, about = folder/"pathlm.safetensors", read_json(folder/"pathlm.json")
        tensors, name = read_tensors(weights), next(iter(about["layers"]))
        A, B = tensors[f"{name}.A"], tensors[f"{name}.B"]
        changed = {"missing": {f"{name}.A": None}, "rows": {f"{name}.A": A[1:]}, "rank": {f"{name}.B": B[1:]},
                   "nan": {f"{name}.A": A/0}, "norm": {"model.norm.weight": None},
                   "shape": {"model.norm.weight": torch.ones(3)}}
        if how in changed: write_tensors(weights, {k: t for k, t in (tensors | changed[how]).items() if t is not None})
        if how == "cut": weights.write_bytes(b"short")
        if how == "form": write_json(folder/"pathlm.json", about | {"layers": {name: "Unheard"}})
        if how == "empty": write_json(folder/"pathlm.json", {})
        if how == "json": (folder/"pathlm.json").write_text("{")

    # %% ../nbs/50_checkpoints.ipynb #748651fb
    model = next(tiny_models())
    with tempfile.TemporaryDirectory() as d:
        (Path(d)/"file").touch()
        try: save(model, None, f"{d}/file/model")
        except OutputError as e: assert f"{d}/file/model" in str(e)
        else: raise AssertionError("written into a file")


def test_adapters():
    # %% ../nbs/50_checkpoints.ipynb #31c7ab0a
    def tiny_models():
        yield new_model(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
                        head_dim=8)
        yield GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64))

    # %% ../nbs/50_checkpoints.ipynb #f1f78565
    model = next(tiny_models())
    torch.manual_seed(0)
    attach(model, LoRA(r=2))
    for part in model.pathlm_adapters["default"].parts: torch.nn.init.normal_(part.B, std=.1)
    logits = model(torch.arange(12)[None]).logits
    with tempfile.TemporaryDirectory() as d:
        try: save(model, None, d)
        except SettingError as e: assert "save_adapter" in str(e) and not list(Path(d).iterdir())
        else: raise AssertionError("saved with adapters")
        dense = AutoModelForCausalLM.from_pretrained(save(merge(model), None, d))
        torch.testing.assert_close(dense(torch.arange(12)[None]).logits, logits, rtol=1e-4, atol=1e-5)


def test_limits():
    # %% ../nbs/50_checkpoints.ipynb #31c7ab0a
    def tiny_models():
        yield new_model(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
                        head_dim=8)
        yield GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64))

    # %% ../nbs/50_checkpoints.ipynb #ac5b069e
    model = next(tiny_models())
    prune(model, decompose(model), rate=.75)
    with tempfile.TemporaryDirectory() as d:
        dense = AutoModelForCausalLM.from_pretrained(save(densify(model), None, d))
        ids = torch.arange(12)[None]
        torch.testing.assert_close(dense(ids).logits, model(ids).logits)


def test_limits_2():
    # %% ../nbs/50_checkpoints.ipynb #31c7ab0a
    def tiny_models():
        yield new_model(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
                        head_dim=8)
        yield GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64))

    # %% ../nbs/50_checkpoints.ipynb #e3bcf241
    model = next(tiny_models())
    prune(model, decompose(model), rate=.75)
    with tempfile.TemporaryDirectory() as d:
        save(model, None, d)
        try: AutoModelForCausalLM.from_pretrained(d)
        except OSError as e: assert "model.safetensors" in str(e)
        else: raise AssertionError("transformers made up the weights")
        save(densify(model), None, d)
        assert {f.name for f in Path(d).glob("*.safetensors")} == {"model.safetensors"}
