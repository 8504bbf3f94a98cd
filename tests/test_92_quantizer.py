from pathlm.quantizer import *
import torch
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from pathlm.base import CheckpointError
from pathlm.base import Tensors
import tempfile
from unittest.mock import patch
from transformers import AutoModelForCausalLM
from transformers import logging
from pathlm.checkpoints import forms_of
from pathlm.checkpoints import save
from pathlm.checkpoints import skeleton
from pathlm.models import new_model
from pathlm.spectral import decompose
from pathlm.spectral import prune
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING


def test_the_door_in_transformers():
    # %% ../nbs/92_quantizer.ipynb #f50dc240
    logging.disable_progress_bar()


    def factored():
        torch.manual_seed(0)
        model = new_model(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, head_dim=8)
        prune(model, decompose(model), rate=.75)
        return model.eval()

    # %% ../nbs/92_quantizer.ipynb #db01f0b9
    with tempfile.TemporaryDirectory() as d:
        save(factored(), None, d)
        dense, name = skeleton(d, torch.bfloat16)[0], "model.layers.0.mlp.up_proj"
        waiting = Waiting(dense.get_submodule(name), Tensors(d), name)
    print({key: (tuple(t.shape), t.dtype) for key, t in waiting.state_dict().items()})
    assert all(t.is_meta for t in waiting.buffers()) and not list(waiting.children())


def test_the_door_in_transformers_2():
    # %% ../nbs/92_quantizer.ipynb #f50dc240
    logging.disable_progress_bar()


    def factored():
        torch.manual_seed(0)
        model = new_model(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, head_dim=8)
        prune(model, decompose(model), rate=.75)
        return model.eval()

    # %% ../nbs/92_quantizer.ipynb #86530fb2
    assert AUTO_QUANTIZER_MAPPING["pathlm"].__name__ == FormsQuantizer.__name__
    with patch.dict(AUTO_QUANTIZER_MAPPING), patch.dict(AUTO_QUANTIZATION_CONFIG_MAPPING):
        del AUTO_QUANTIZER_MAPPING["pathlm"], AUTO_QUANTIZATION_CONFIG_MAPPING["pathlm"]
        register()
        register()
        assert AUTO_QUANTIZER_MAPPING["pathlm"] is FormsQuantizer


def test_the_door_in_transformers_3():
    # %% ../nbs/92_quantizer.ipynb #f50dc240
    logging.disable_progress_bar()


    def factored():
        torch.manual_seed(0)
        model = new_model(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, head_dim=8)
        prune(model, decompose(model), rate=.75)
        return model.eval()

    # %% ../nbs/92_quantizer.ipynb #1cc0e01e
    model = factored()
    with tempfile.TemporaryDirectory() as d:
        loaded = AutoModelForCausalLM.from_pretrained(save(model, None, d))
    print(type(loaded.get_submodule("model.layers.0.mlp.up_proj")).__name__, loaded.config.quantization_config.quant_method)
    assert all(torch.equal(t, loaded.state_dict()[name]) for name, t in model.state_dict().items())
    assert all(p.requires_grad for p in loaded.parameters()) and loaded.double().dtype == torch.float64


def test_the_door_in_transformers_4():
    # %% ../nbs/92_quantizer.ipynb #f50dc240
    logging.disable_progress_bar()


    def factored():
        torch.manual_seed(0)
        model = new_model(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, head_dim=8)
        prune(model, decompose(model), rate=.75)
        return model.eval()

    # %% ../nbs/92_quantizer.ipynb #2de3024e
    model, ids = factored(), torch.arange(12)[None]
    with tempfile.TemporaryDirectory() as d:
        save(model, None, d)
        name, *_ = forms_of(model)
        rest = {n: "cpu" for n, m in model.named_modules() if not list(m.children())}
        for settings in {"dtype": "auto"}, {"device_map": "cpu"}, {
                "device_map": rest | {"model.norm": "disk"}, "offload_folder": f"{d}/disk"}:
            loaded = AutoModelForCausalLM.from_pretrained(d, **settings)
            with torch.no_grad(): assert torch.equal(loaded(ids).logits, model(ids).logits)
        assert hasattr(loaded.get_submodule(name), "_hf_hook") and loaded.model.norm.weight.is_meta
        settings = {"device_map": rest | {name: "disk"}, "offload_folder": f"{d}/disk", "offload_buffers": True}
        try: AutoModelForCausalLM.from_pretrained(d, **settings)
        except CheckpointError as e: assert d in str(e) and name in str(e)
        else: raise AssertionError("a layer was left on disk")
