from pathlm.adapters.vblora import *
import math
from pathlib import Path
import torch
from torch import Tensor
from torch import nn
from pathlm.base import CheckpointError
from pathlm.base import SettingError
from pathlm.base import read_tensors
from pathlm.linear import effective_weight
import copy
import re
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
import transformers as tf
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D
from pathlm.adapters.core import activate
from pathlm.adapters.core import adapted
from pathlm.adapters.core import adapters
from pathlm.adapters.core import attach
from pathlm.adapters.core import detach
from pathlm.adapters.core import load_adapter
from pathlm.adapters.core import mixed
from pathlm.adapters.core import parameter_groups
from pathlm.adapters.core import save_adapter
from pathlm.adapters.core import trained
from pathlm.base import read_metadata
from pathlm.base import write_tensors
from pathlm.linear import merge
from pathlm.linear import select
from pathlm.linear import unmerge


def test_sub_vectors():
    # %% ../nbs/21_vblora.ipynb #57fac1f4
    def mlp(kind=nn.Linear):
        "Two linear layers with something in between."
        torch.manual_seed(0)
        return nn.Sequential(kind(48, 32), nn.Tanh(), kind(32, 48)) if kind is nn.Linear else \
            nn.Sequential(kind(32, 48), nn.Tanh(), kind(48, 32))

    def tiny(name="Llama"):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        torch.manual_seed(0)
        gpt2 = tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)
        if name == "GPT-2": return tf.GPT2LMHeadModel(gpt2).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**ids, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2)).eval()

    def small(**changes):
        "A configuration that fits the tiny models."
        return VBLoRA(**dict(num_vectors=10, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def outputs(model):
        "What a model says about a fixed input."
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def relative(a, b):
        "The relative difference of two tensors in the Frobenius norm."
        return ((a - b).norm() / b.norm()).item()

    # %% ../nbs/21_vblora.ipynb #ab493a06
    def block(width=48):
        return nn.Sequential(nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, width))

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def peft_twin(net, adapter, **settings):
        "The same network under PEFT with the numbers of an adapter of ours."
        import peft
        c = adapter.config
        twin = peft.get_peft_model(copy.deepcopy(net), peft.VBLoRAConfig(r=c.r, num_vectors=c.num_vectors,
            vector_length=c.vector_length, topk=c.topk, target_modules=adapter.names,
            fan_in_fan_out=isinstance(net[0], Conv1D), **settings))
        with torch.no_grad():
            twin.base_model.vblora_vector_bank["default"].copy_(adapter.bank)
            for name, part in zip(adapter.names, adapter.parts, strict=True):
                layer, (A, B) = twin.base_model.model.get_submodule(name), part.tables()
                layer.vblora_logits_A["default"].copy_(A), layer.vblora_logits_B["default"].copy_(B)
        return twin

    def dressed(model):
        "Train an adapter's model for a few steps and return its loss."
        ids = torch.arange(24).view(2, 12)
        optimizer = torch.optim.AdamW(parameter_groups(model))
        for _ in range(3):
            optimizer.zero_grad()
            model(ids, labels=ids).loss.backward()
            optimizer.step()
        return model(ids, labels=ids).loss.item()

    def file_bytes(folder):
        "Bytes of both files of an adapter, and of its tensors."
        from safetensors.torch import load_file
        tensors = load_file(Path(folder)/"adapter.safetensors")
        return sum(f.stat().st_size for f in Path(folder).iterdir()), sum(t.nbytes for t in tensors.values())

    # %% ../nbs/21_vblora.ipynb #2de8a66d
    bank = torch.tensor([[1., 0.], [0., 1.], [5., 5.]])
    T, w = chosen(torch.tensor([[0., math.log(3), -9.]]), k=2)
    assert T.tolist() == [[1, 0]]
    torch.testing.assert_close(w, torch.tensor([[.75, .25]]))
    torch.testing.assert_close(compose(bank, T, w), torch.tensor([[.25, .75]]))


def test_sub_vectors_2():
    # %% ../nbs/21_vblora.ipynb #57fac1f4
    def mlp(kind=nn.Linear):
        "Two linear layers with something in between."
        torch.manual_seed(0)
        return nn.Sequential(kind(48, 32), nn.Tanh(), kind(32, 48)) if kind is nn.Linear else \
            nn.Sequential(kind(32, 48), nn.Tanh(), kind(48, 32))

    def tiny(name="Llama"):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        torch.manual_seed(0)
        gpt2 = tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)
        if name == "GPT-2": return tf.GPT2LMHeadModel(gpt2).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**ids, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2)).eval()

    def small(**changes):
        "A configuration that fits the tiny models."
        return VBLoRA(**dict(num_vectors=10, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def outputs(model):
        "What a model says about a fixed input."
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def relative(a, b):
        "The relative difference of two tensors in the Frobenius norm."
        return ((a - b).norm() / b.norm()).item()

    # %% ../nbs/21_vblora.ipynb #ab493a06
    def block(width=48):
        return nn.Sequential(nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, width))

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def peft_twin(net, adapter, **settings):
        "The same network under PEFT with the numbers of an adapter of ours."
        import peft
        c = adapter.config
        twin = peft.get_peft_model(copy.deepcopy(net), peft.VBLoRAConfig(r=c.r, num_vectors=c.num_vectors,
            vector_length=c.vector_length, topk=c.topk, target_modules=adapter.names,
            fan_in_fan_out=isinstance(net[0], Conv1D), **settings))
        with torch.no_grad():
            twin.base_model.vblora_vector_bank["default"].copy_(adapter.bank)
            for name, part in zip(adapter.names, adapter.parts, strict=True):
                layer, (A, B) = twin.base_model.model.get_submodule(name), part.tables()
                layer.vblora_logits_A["default"].copy_(A), layer.vblora_logits_B["default"].copy_(B)
        return twin

    def dressed(model):
        "Train an adapter's model for a few steps and return its loss."
        ids = torch.arange(24).view(2, 12)
        optimizer = torch.optim.AdamW(parameter_groups(model))
        for _ in range(3):
            optimizer.zero_grad()
            model(ids, labels=ids).loss.backward()
            optimizer.step()
        return model(ids, labels=ids).loss.item()

    def file_bytes(folder):
        "Bytes of both files of an adapter, and of its tensors."
        from safetensors.torch import load_file
        tensors = load_file(Path(folder)/"adapter.safetensors")
        return sum(f.stat().st_size for f in Path(folder).iterdir()), sum(t.nbytes for t in tensors.values())

    # %% ../nbs/21_vblora.ipynb #b43064d9
    @settings(deadline=None, max_examples=25, derandomize=True)
    @given(st.integers(1, 9), st.integers(1, 7), st.integers(1, 5), st.data())
    def check_gradients(rows, h, b, data):
        k = data.draw(st.integers(1, h))
        torch.manual_seed(rows + 10*h + 100*b)
        bank, logits = torch.randn(h, b).double().requires_grad_(), torch.randn(rows, h).double().requires_grad_()
        g = torch.randn(rows, b).double()
        T, w = chosen(logits, k)
        dbank, dlogits = torch.autograd.grad(compose(bank, T, w), (bank, logits), g)
        ours = logit_gradient(bank, T, w, g)
        torch.testing.assert_close(dlogits, torch.zeros_like(dlogits).scatter(1, T, ours))
        torch.testing.assert_close(dbank, bank_gradient(bank, T, w, g))
        assert ours.sum(-1).abs().max() < 1e-12 and (dlogits != 0).sum(-1).max() <= k
        if k == 1: assert ours.abs().max() == 0

    check_gradients()


def test_the_adapter():
    # %% ../nbs/21_vblora.ipynb #57fac1f4
    def mlp(kind=nn.Linear):
        "Two linear layers with something in between."
        torch.manual_seed(0)
        return nn.Sequential(kind(48, 32), nn.Tanh(), kind(32, 48)) if kind is nn.Linear else \
            nn.Sequential(kind(32, 48), nn.Tanh(), kind(48, 32))

    def tiny(name="Llama"):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        torch.manual_seed(0)
        gpt2 = tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)
        if name == "GPT-2": return tf.GPT2LMHeadModel(gpt2).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**ids, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2)).eval()

    def small(**changes):
        "A configuration that fits the tiny models."
        return VBLoRA(**dict(num_vectors=10, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def outputs(model):
        "What a model says about a fixed input."
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def relative(a, b):
        "The relative difference of two tensors in the Frobenius norm."
        return ((a - b).norm() / b.norm()).item()

    # %% ../nbs/21_vblora.ipynb #ab493a06
    def block(width=48):
        return nn.Sequential(nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, width))

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def peft_twin(net, adapter, **settings):
        "The same network under PEFT with the numbers of an adapter of ours."
        import peft
        c = adapter.config
        twin = peft.get_peft_model(copy.deepcopy(net), peft.VBLoRAConfig(r=c.r, num_vectors=c.num_vectors,
            vector_length=c.vector_length, topk=c.topk, target_modules=adapter.names,
            fan_in_fan_out=isinstance(net[0], Conv1D), **settings))
        with torch.no_grad():
            twin.base_model.vblora_vector_bank["default"].copy_(adapter.bank)
            for name, part in zip(adapter.names, adapter.parts, strict=True):
                layer, (A, B) = twin.base_model.model.get_submodule(name), part.tables()
                layer.vblora_logits_A["default"].copy_(A), layer.vblora_logits_B["default"].copy_(B)
        return twin

    def dressed(model):
        "Train an adapter's model for a few steps and return its loss."
        ids = torch.arange(24).view(2, 12)
        optimizer = torch.optim.AdamW(parameter_groups(model))
        for _ in range(3):
            optimizer.zero_grad()
            model(ids, labels=ids).loss.backward()
            optimizer.step()
        return model(ids, labels=ids).loss.item()

    def file_bytes(folder):
        "Bytes of both files of an adapter, and of its tensors."
        from safetensors.torch import load_file
        tensors = load_file(Path(folder)/"adapter.safetensors")
        return sum(f.stat().st_size for f in Path(folder).iterdir()), sum(t.nbytes for t in tensors.values())

    # %% ../nbs/21_vblora.ipynb #6c757d68
    torch.manual_seed(0)
    adapter = VBLoRA(num_vectors=90).build({f"layer{i}": nn.Linear(768, 768) for i in range(24)})
    bank, logits = adapter.bank.detach(), adapter.logits.detach()
    assert bank.abs().max() <= .02 and abs(bank.var()/(.02**2/3) - 1) < .05 and abs(logits.std()/.1 - 1) < .05
    expected = 2 * chosen(logits, 2)[1].square().sum(-1).mean() * .02**2/3
    measured = torch.stack([p.delta() for p in adapter.parts]).std()
    assert abs(measured/expected - 1) < .1 and abs(expected/1.34e-4 - 1) < .02
    print(f"standard deviation of ΔW: {expected:.2e} by (3), {measured:.2e} measured")


def test_the_adapter_2():
    # %% ../nbs/21_vblora.ipynb #57fac1f4
    def mlp(kind=nn.Linear):
        "Two linear layers with something in between."
        torch.manual_seed(0)
        return nn.Sequential(kind(48, 32), nn.Tanh(), kind(32, 48)) if kind is nn.Linear else \
            nn.Sequential(kind(32, 48), nn.Tanh(), kind(48, 32))

    def tiny(name="Llama"):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        torch.manual_seed(0)
        gpt2 = tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)
        if name == "GPT-2": return tf.GPT2LMHeadModel(gpt2).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**ids, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2)).eval()

    def small(**changes):
        "A configuration that fits the tiny models."
        return VBLoRA(**dict(num_vectors=10, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def outputs(model):
        "What a model says about a fixed input."
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def relative(a, b):
        "The relative difference of two tensors in the Frobenius norm."
        return ((a - b).norm() / b.norm()).item()

    # %% ../nbs/21_vblora.ipynb #ab493a06
    def block(width=48):
        return nn.Sequential(nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, width))

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def peft_twin(net, adapter, **settings):
        "The same network under PEFT with the numbers of an adapter of ours."
        import peft
        c = adapter.config
        twin = peft.get_peft_model(copy.deepcopy(net), peft.VBLoRAConfig(r=c.r, num_vectors=c.num_vectors,
            vector_length=c.vector_length, topk=c.topk, target_modules=adapter.names,
            fan_in_fan_out=isinstance(net[0], Conv1D), **settings))
        with torch.no_grad():
            twin.base_model.vblora_vector_bank["default"].copy_(adapter.bank)
            for name, part in zip(adapter.names, adapter.parts, strict=True):
                layer, (A, B) = twin.base_model.model.get_submodule(name), part.tables()
                layer.vblora_logits_A["default"].copy_(A), layer.vblora_logits_B["default"].copy_(B)
        return twin

    def dressed(model):
        "Train an adapter's model for a few steps and return its loss."
        ids = torch.arange(24).view(2, 12)
        optimizer = torch.optim.AdamW(parameter_groups(model))
        for _ in range(3):
            optimizer.zero_grad()
            model(ids, labels=ids).loss.backward()
            optimizer.step()
        return model(ids, labels=ids).loss.item()

    def file_bytes(folder):
        "Bytes of both files of an adapter, and of its tensors."
        from safetensors.torch import load_file
        tensors = load_file(Path(folder)/"adapter.safetensors")
        return sum(f.stat().st_size for f in Path(folder).iterdir()), sum(t.nbytes for t in tensors.values())

    # %% ../nbs/21_vblora.ipynb #5f63fcaf
    for family in "Llama", "GPT-2":
        for dtype in torch.float32, torch.bfloat16, torch.float16:
            model = tiny(family).to(dtype)
            before, base = copy.deepcopy(model.state_dict()), outputs(model)
            torch.manual_seed(1)
            adapter = attach(model, small())
            assert [n for n, p in model.named_parameters() if p.requires_grad] == [
                "pathlm_adapters.default.bank", "pathlm_adapters.default.logits"]
            name, layer = next(iter(adapted(model).items()))
            W, D, changed = effective_weight(layer.base), layer.parts["default"].delta(), outputs(model)
            assert (changed - base).abs().max() > .01 and torch.linalg.matrix_rank(D.float()) == 4
            for _ in range(10): merge(model) and unmerge(model)
            assert torch.equal(effective_weight(merge(model).get_submodule(name)), (W.float() + D.float()).to(dtype))
            if dtype == torch.float32: assert relative(outputs(model), changed) < 1e-6
            after = detach(model).state_dict()
            assert all(torch.equal(before[k], after[k]) for k in before) and torch.equal(outputs(model), base)


def test_the_adapter_3():
    # %% ../nbs/21_vblora.ipynb #57fac1f4
    def mlp(kind=nn.Linear):
        "Two linear layers with something in between."
        torch.manual_seed(0)
        return nn.Sequential(kind(48, 32), nn.Tanh(), kind(32, 48)) if kind is nn.Linear else \
            nn.Sequential(kind(32, 48), nn.Tanh(), kind(48, 32))

    def tiny(name="Llama"):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        torch.manual_seed(0)
        gpt2 = tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)
        if name == "GPT-2": return tf.GPT2LMHeadModel(gpt2).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**ids, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2)).eval()

    def small(**changes):
        "A configuration that fits the tiny models."
        return VBLoRA(**dict(num_vectors=10, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def outputs(model):
        "What a model says about a fixed input."
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def relative(a, b):
        "The relative difference of two tensors in the Frobenius norm."
        return ((a - b).norm() / b.norm()).item()

    # %% ../nbs/21_vblora.ipynb #ab493a06
    def block(width=48):
        return nn.Sequential(nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, width))

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def peft_twin(net, adapter, **settings):
        "The same network under PEFT with the numbers of an adapter of ours."
        import peft
        c = adapter.config
        twin = peft.get_peft_model(copy.deepcopy(net), peft.VBLoRAConfig(r=c.r, num_vectors=c.num_vectors,
            vector_length=c.vector_length, topk=c.topk, target_modules=adapter.names,
            fan_in_fan_out=isinstance(net[0], Conv1D), **settings))
        with torch.no_grad():
            twin.base_model.vblora_vector_bank["default"].copy_(adapter.bank)
            for name, part in zip(adapter.names, adapter.parts, strict=True):
                layer, (A, B) = twin.base_model.model.get_submodule(name), part.tables()
                layer.vblora_logits_A["default"].copy_(A), layer.vblora_logits_B["default"].copy_(B)
        return twin

    def dressed(model):
        "Train an adapter's model for a few steps and return its loss."
        ids = torch.arange(24).view(2, 12)
        optimizer = torch.optim.AdamW(parameter_groups(model))
        for _ in range(3):
            optimizer.zero_grad()
            model(ids, labels=ids).loss.backward()
            optimizer.step()
        return model(ids, labels=ids).loss.item()

    def file_bytes(folder):
        "Bytes of both files of an adapter, and of its tensors."
        from safetensors.torch import load_file
        tensors = load_file(Path(folder)/"adapter.safetensors")
        return sum(f.stat().st_size for f in Path(folder).iterdir()), sum(t.nbytes for t in tensors.values())

    # %% ../nbs/21_vblora.ipynb #48e19c00
    model = tiny()
    base = outputs(model)
    adapter = attach(model, small(zero_init=True))
    assert torch.equal(outputs(model), base) and adapter.gates.shape == (14,)
    optimizer = torch.optim.AdamW(parameter_groups(model))
    ids = torch.arange(24).view(2, 12)
    norms = []
    for _ in range(2):
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        norms.append([p.grad.norm().item() for p in (adapter.gates, adapter.bank, adapter.logits)])
        optimizer.step()
    assert norms[0][0] > 0 and norms[0][1:] == [0, 0] and all(n > 0 for n in norms[1])
    assert (outputs(model) - base).abs().max() > 0


def test_the_same_numbers_as_peft_s():
    # %% ../nbs/21_vblora.ipynb #57fac1f4
    def mlp(kind=nn.Linear):
        "Two linear layers with something in between."
        torch.manual_seed(0)
        return nn.Sequential(kind(48, 32), nn.Tanh(), kind(32, 48)) if kind is nn.Linear else \
            nn.Sequential(kind(32, 48), nn.Tanh(), kind(48, 32))

    def tiny(name="Llama"):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        torch.manual_seed(0)
        gpt2 = tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)
        if name == "GPT-2": return tf.GPT2LMHeadModel(gpt2).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**ids, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2)).eval()

    def small(**changes):
        "A configuration that fits the tiny models."
        return VBLoRA(**dict(num_vectors=10, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def outputs(model):
        "What a model says about a fixed input."
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def relative(a, b):
        "The relative difference of two tensors in the Frobenius norm."
        return ((a - b).norm() / b.norm()).item()

    # %% ../nbs/21_vblora.ipynb #ab493a06
    def block(width=48):
        return nn.Sequential(nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, width))

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def peft_twin(net, adapter, **settings):
        "The same network under PEFT with the numbers of an adapter of ours."
        import peft
        c = adapter.config
        twin = peft.get_peft_model(copy.deepcopy(net), peft.VBLoRAConfig(r=c.r, num_vectors=c.num_vectors,
            vector_length=c.vector_length, topk=c.topk, target_modules=adapter.names,
            fan_in_fan_out=isinstance(net[0], Conv1D), **settings))
        with torch.no_grad():
            twin.base_model.vblora_vector_bank["default"].copy_(adapter.bank)
            for name, part in zip(adapter.names, adapter.parts, strict=True):
                layer, (A, B) = twin.base_model.model.get_submodule(name), part.tables()
                layer.vblora_logits_A["default"].copy_(A), layer.vblora_logits_B["default"].copy_(B)
        return twin

    def dressed(model):
        "Train an adapter's model for a few steps and return its loss."
        ids = torch.arange(24).view(2, 12)
        optimizer = torch.optim.AdamW(parameter_groups(model))
        for _ in range(3):
            optimizer.zero_grad()
            model(ids, labels=ids).loss.backward()
            optimizer.step()
        return model(ids, labels=ids).loss.item()

    def file_bytes(folder):
        "Bytes of both files of an adapter, and of its tensors."
        from safetensors.torch import load_file
        tensors = load_file(Path(folder)/"adapter.safetensors")
        return sum(f.stat().st_size for f in Path(folder).iterdir()), sum(t.nbytes for t in tensors.values())

    # %% ../nbs/21_vblora.ipynb #e3753e7a
    for kind in (nn.Linear, Conv1D) if find_spec("peft") else ():
        net = mlp(kind=kind)
        ours = copy.deepcopy(net)
        adapter = attach(ours, small(topk=3))
        twin = peft_twin(net, adapter)
        x = torch.randn(5, 48)
        for model in ours, twin: model(x).square().sum().backward()
        assert relative(ours(x), twin(x)) < 1e-6
        assert relative(adapter.bank.grad, twin.base_model.vblora_vector_bank["default"].grad) < 1e-5
        for name, part in zip(adapter.names, adapter.parts, strict=True):
            layer = twin.base_model.model.get_submodule(name)
            D = layer.get_delta_weight("default")
            assert relative(part.delta(), D.T if kind is Conv1D else D) < 1e-6
            grads = adapter.logits.grad[part.start:part.middle], adapter.logits.grad[part.middle:part.stop]
            A, B = (g.view(4, -1, 10) for g in grads)
            assert relative(A, layer.vblora_logits_A["default"].grad) < 1e-5
            assert relative(B.transpose(0, 1), layer.vblora_logits_B["default"].grad) < 1e-5


def test_how_often_it_composes():
    # %% ../nbs/21_vblora.ipynb #57fac1f4
    def mlp(kind=nn.Linear):
        "Two linear layers with something in between."
        torch.manual_seed(0)
        return nn.Sequential(kind(48, 32), nn.Tanh(), kind(32, 48)) if kind is nn.Linear else \
            nn.Sequential(kind(32, 48), nn.Tanh(), kind(48, 32))

    def tiny(name="Llama"):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        torch.manual_seed(0)
        gpt2 = tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)
        if name == "GPT-2": return tf.GPT2LMHeadModel(gpt2).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**ids, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2)).eval()

    def small(**changes):
        "A configuration that fits the tiny models."
        return VBLoRA(**dict(num_vectors=10, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def outputs(model):
        "What a model says about a fixed input."
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def relative(a, b):
        "The relative difference of two tensors in the Frobenius norm."
        return ((a - b).norm() / b.norm()).item()

    # %% ../nbs/21_vblora.ipynb #ab493a06
    def block(width=48):
        return nn.Sequential(nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, width))

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def peft_twin(net, adapter, **settings):
        "The same network under PEFT with the numbers of an adapter of ours."
        import peft
        c = adapter.config
        twin = peft.get_peft_model(copy.deepcopy(net), peft.VBLoRAConfig(r=c.r, num_vectors=c.num_vectors,
            vector_length=c.vector_length, topk=c.topk, target_modules=adapter.names,
            fan_in_fan_out=isinstance(net[0], Conv1D), **settings))
        with torch.no_grad():
            twin.base_model.vblora_vector_bank["default"].copy_(adapter.bank)
            for name, part in zip(adapter.names, adapter.parts, strict=True):
                layer, (A, B) = twin.base_model.model.get_submodule(name), part.tables()
                layer.vblora_logits_A["default"].copy_(A), layer.vblora_logits_B["default"].copy_(B)
        return twin

    def dressed(model):
        "Train an adapter's model for a few steps and return its loss."
        ids = torch.arange(24).view(2, 12)
        optimizer = torch.optim.AdamW(parameter_groups(model))
        for _ in range(3):
            optimizer.zero_grad()
            model(ids, labels=ids).loss.backward()
            optimizer.step()
        return model(ids, labels=ids).loss.item()

    def file_bytes(folder):
        "Bytes of both files of an adapter, and of its tensors."
        from safetensors.torch import load_file
        tensors = load_file(Path(folder)/"adapter.safetensors")
        return sum(f.stat().st_size for f in Path(folder).iterdir()), sum(t.nbytes for t in tensors.values())

    # %% ../nbs/21_vblora.ipynb #1010f40a
    class Count(TorchDispatchMode):
        "Count the calls of top-k, and those whose result a program has to wait for."
        def __init__(self):
            super().__init__()
            self.topk, self.waits = 0, 0

        def __torch_dispatch__(self, f, types, args=(), kwargs=None):
            self.topk += f is torch.ops.aten.topk.default
            self.waits += f.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "masked_select", "_unique2")
            return f(*args, **(kwargs or {}))

    def blocks_of(model, x, how):
        "Run a network of equal blocks, checkpointed or not."
        for block in model: x = block(x) if how is None else checkpoint(block, x, use_reentrant=how == "reentrant")
        return x

    def stepped(how, plain=False, **changes):
        "The gradients of a step of four micro-batches and how many top-k it took, with two evaluations after it."
        torch.manual_seed(0)
        model = nn.Sequential(block(), block(), block())
        adapter = attach(model, small(**changes))
        if plain: adapter.composed = lambda part: composed_alone(adapter, part)
        optimizer = torch.optim.SGD(adapter.groups())
        with Count() as count:
            for x in torch.randn(4, 5, 48): blocks_of(model, x.requires_grad_(), how).square().mean().backward()
            before, grads = count.topk, [p.grad.to_dense().clone() for p in adapter.parameters()]
            waits = count.waits
            optimizer.step()
            for x in torch.randn(2, 5, 48):
                with torch.no_grad(): model(x)
                with torch.inference_mode(): model(x)
        return grads, before, count.topk - before, waits

    # %% ../nbs/21_vblora.ipynb #584bc9f8
    reference, *counts = stepped(None, plain=True)
    assert counts == [4*6, 4*6, 0]
    for how in None, "reentrant", "not reentrant":
        for sparse in False, True:
            grads, *counts = stepped(how, sparse_gradients=sparse)
            assert counts == [1, 1, 0]
            for ours, plain in zip(grads, reference, strict=True): assert relative(ours, plain) < 1e-6


def test_how_often_it_composes_2():
    # %% ../nbs/21_vblora.ipynb #57fac1f4
    def mlp(kind=nn.Linear):
        "Two linear layers with something in between."
        torch.manual_seed(0)
        return nn.Sequential(kind(48, 32), nn.Tanh(), kind(32, 48)) if kind is nn.Linear else \
            nn.Sequential(kind(32, 48), nn.Tanh(), kind(48, 32))

    def tiny(name="Llama"):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        torch.manual_seed(0)
        gpt2 = tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)
        if name == "GPT-2": return tf.GPT2LMHeadModel(gpt2).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**ids, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2)).eval()

    def small(**changes):
        "A configuration that fits the tiny models."
        return VBLoRA(**dict(num_vectors=10, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def outputs(model):
        "What a model says about a fixed input."
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def relative(a, b):
        "The relative difference of two tensors in the Frobenius norm."
        return ((a - b).norm() / b.norm()).item()

    # %% ../nbs/21_vblora.ipynb #ab493a06
    def block(width=48):
        return nn.Sequential(nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, width))

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def peft_twin(net, adapter, **settings):
        "The same network under PEFT with the numbers of an adapter of ours."
        import peft
        c = adapter.config
        twin = peft.get_peft_model(copy.deepcopy(net), peft.VBLoRAConfig(r=c.r, num_vectors=c.num_vectors,
            vector_length=c.vector_length, topk=c.topk, target_modules=adapter.names,
            fan_in_fan_out=isinstance(net[0], Conv1D), **settings))
        with torch.no_grad():
            twin.base_model.vblora_vector_bank["default"].copy_(adapter.bank)
            for name, part in zip(adapter.names, adapter.parts, strict=True):
                layer, (A, B) = twin.base_model.model.get_submodule(name), part.tables()
                layer.vblora_logits_A["default"].copy_(A), layer.vblora_logits_B["default"].copy_(B)
        return twin

    def dressed(model):
        "Train an adapter's model for a few steps and return its loss."
        ids = torch.arange(24).view(2, 12)
        optimizer = torch.optim.AdamW(parameter_groups(model))
        for _ in range(3):
            optimizer.zero_grad()
            model(ids, labels=ids).loss.backward()
            optimizer.step()
        return model(ids, labels=ids).loss.item()

    def file_bytes(folder):
        "Bytes of both files of an adapter, and of its tensors."
        from safetensors.torch import load_file
        tensors = load_file(Path(folder)/"adapter.safetensors")
        return sum(f.stat().st_size for f in Path(folder).iterdir()), sum(t.nbytes for t in tensors.values())

    # %% ../nbs/21_vblora.ipynb #1010f40a
    class Count(TorchDispatchMode):
        "Count the calls of top-k, and those whose result a program has to wait for."
        def __init__(self):
            super().__init__()
            self.topk, self.waits = 0, 0

        def __torch_dispatch__(self, f, types, args=(), kwargs=None):
            self.topk += f is torch.ops.aten.topk.default
            self.waits += f.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "masked_select", "_unique2")
            return f(*args, **(kwargs or {}))

    def blocks_of(model, x, how):
        "Run a network of equal blocks, checkpointed or not."
        for block in model: x = block(x) if how is None else checkpoint(block, x, use_reentrant=how == "reentrant")
        return x

    def stepped(how, plain=False, **changes):
        "The gradients of a step of four micro-batches and how many top-k it took, with two evaluations after it."
        torch.manual_seed(0)
        model = nn.Sequential(block(), block(), block())
        adapter = attach(model, small(**changes))
        if plain: adapter.composed = lambda part: composed_alone(adapter, part)
        optimizer = torch.optim.SGD(adapter.groups())
        with Count() as count:
            for x in torch.randn(4, 5, 48): blocks_of(model, x.requires_grad_(), how).square().mean().backward()
            before, grads = count.topk, [p.grad.to_dense().clone() for p in adapter.parameters()]
            waits = count.waits
            optimizer.step()
            for x in torch.randn(2, 5, 48):
                with torch.no_grad(): model(x)
                with torch.inference_mode(): model(x)
        return grads, before, count.topk - before, waits

    # %% ../nbs/21_vblora.ipynb #1c5a18f2
    class Sneaky(torch.optim.Optimizer):
        "An optimizer that writes through `.data`."
        def step(self):
            for p in self.param_groups[0]["params"]: p.data.mul_(2)

    def follows(model, adapter):
        "Check that the model's output is that of its numbers now."
        x = torch.ones(1, 48)
        expected = nn.Sequential(nn.Linear(48, 32), nn.Tanh(), nn.Linear(32, 48)).to(adapter.logits)
        for n, layer in zip("02", (model[0], model[2]), strict=True):
            A, Bt = composed_alone(adapter, adapter.parts[n == "2"])
            W = layer.base.weight + Bt.T @ A
            with torch.no_grad():
                expected[int(n)].weight.copy_(W), expected[int(n)].bias.copy_(layer.base.bias)
        torch.testing.assert_close(model(x.to(adapter.logits)), expected(x.to(adapter.logits)))

    # %% ../nbs/21_vblora.ipynb #68e2da0e
    model = mlp()
    adapter = attach(model, small())
    follows(model, adapter)
    Sneaky(adapter.parameters(), {}).step()
    follows(model, adapter)
    nn.init.normal_(adapter.logits)
    follows(model, adapter)
    follows(model.double(), adapter)
    other = copy.deepcopy(model)
    nn.init.normal_(adapters(other)["default"].bank)
    follows(other, adapters(other)["default"])
    follows(model, adapter)
    loss = model(torch.ones(1, 48).double()).sum()
    nn.init.normal_(adapter.bank)
    assert "changed between" in refusal(RuntimeError, loss.backward)


def test_how_often_it_composes_3():
    # %% ../nbs/21_vblora.ipynb #57fac1f4
    def mlp(kind=nn.Linear):
        "Two linear layers with something in between."
        torch.manual_seed(0)
        return nn.Sequential(kind(48, 32), nn.Tanh(), kind(32, 48)) if kind is nn.Linear else \
            nn.Sequential(kind(32, 48), nn.Tanh(), kind(48, 32))

    def tiny(name="Llama"):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        torch.manual_seed(0)
        gpt2 = tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)
        if name == "GPT-2": return tf.GPT2LMHeadModel(gpt2).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**ids, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2)).eval()

    def small(**changes):
        "A configuration that fits the tiny models."
        return VBLoRA(**dict(num_vectors=10, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def outputs(model):
        "What a model says about a fixed input."
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def relative(a, b):
        "The relative difference of two tensors in the Frobenius norm."
        return ((a - b).norm() / b.norm()).item()

    # %% ../nbs/21_vblora.ipynb #ab493a06
    def block(width=48):
        return nn.Sequential(nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, width))

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def peft_twin(net, adapter, **settings):
        "The same network under PEFT with the numbers of an adapter of ours."
        import peft
        c = adapter.config
        twin = peft.get_peft_model(copy.deepcopy(net), peft.VBLoRAConfig(r=c.r, num_vectors=c.num_vectors,
            vector_length=c.vector_length, topk=c.topk, target_modules=adapter.names,
            fan_in_fan_out=isinstance(net[0], Conv1D), **settings))
        with torch.no_grad():
            twin.base_model.vblora_vector_bank["default"].copy_(adapter.bank)
            for name, part in zip(adapter.names, adapter.parts, strict=True):
                layer, (A, B) = twin.base_model.model.get_submodule(name), part.tables()
                layer.vblora_logits_A["default"].copy_(A), layer.vblora_logits_B["default"].copy_(B)
        return twin

    def dressed(model):
        "Train an adapter's model for a few steps and return its loss."
        ids = torch.arange(24).view(2, 12)
        optimizer = torch.optim.AdamW(parameter_groups(model))
        for _ in range(3):
            optimizer.zero_grad()
            model(ids, labels=ids).loss.backward()
            optimizer.step()
        return model(ids, labels=ids).loss.item()

    def file_bytes(folder):
        "Bytes of both files of an adapter, and of its tensors."
        from safetensors.torch import load_file
        tensors = load_file(Path(folder)/"adapter.safetensors")
        return sum(f.stat().st_size for f in Path(folder).iterdir()), sum(t.nbytes for t in tensors.values())

    # %% ../nbs/21_vblora.ipynb #1010f40a
    class Count(TorchDispatchMode):
        "Count the calls of top-k, and those whose result a program has to wait for."
        def __init__(self):
            super().__init__()
            self.topk, self.waits = 0, 0

        def __torch_dispatch__(self, f, types, args=(), kwargs=None):
            self.topk += f is torch.ops.aten.topk.default
            self.waits += f.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "masked_select", "_unique2")
            return f(*args, **(kwargs or {}))

    def blocks_of(model, x, how):
        "Run a network of equal blocks, checkpointed or not."
        for block in model: x = block(x) if how is None else checkpoint(block, x, use_reentrant=how == "reentrant")
        return x

    def stepped(how, plain=False, **changes):
        "The gradients of a step of four micro-batches and how many top-k it took, with two evaluations after it."
        torch.manual_seed(0)
        model = nn.Sequential(block(), block(), block())
        adapter = attach(model, small(**changes))
        if plain: adapter.composed = lambda part: composed_alone(adapter, part)
        optimizer = torch.optim.SGD(adapter.groups())
        with Count() as count:
            for x in torch.randn(4, 5, 48): blocks_of(model, x.requires_grad_(), how).square().mean().backward()
            before, grads = count.topk, [p.grad.to_dense().clone() for p in adapter.parameters()]
            waits = count.waits
            optimizer.step()
            for x in torch.randn(2, 5, 48):
                with torch.no_grad(): model(x)
                with torch.inference_mode(): model(x)
        return grads, before, count.topk - before, waits

    # %% ../nbs/21_vblora.ipynb #1c5a18f2
    class Sneaky(torch.optim.Optimizer):
        "An optimizer that writes through `.data`."
        def step(self):
            for p in self.param_groups[0]["params"]: p.data.mul_(2)

    def follows(model, adapter):
        "Check that the model's output is that of its numbers now."
        x = torch.ones(1, 48)
        expected = nn.Sequential(nn.Linear(48, 32), nn.Tanh(), nn.Linear(32, 48)).to(adapter.logits)
        for n, layer in zip("02", (model[0], model[2]), strict=True):
            A, Bt = composed_alone(adapter, adapter.parts[n == "2"])
            W = layer.base.weight + Bt.T @ A
            with torch.no_grad():
                expected[int(n)].weight.copy_(W), expected[int(n)].bias.copy_(layer.base.bias)
        torch.testing.assert_close(model(x.to(adapter.logits)), expected(x.to(adapter.logits)))

    # %% ../nbs/21_vblora.ipynb #61fe5196
    def grads_of(f, model, x):
        "The output, and the gradients of all that is trained."
        model.zero_grad()
        y = f(x)
        y.square().sum().backward()
        return [y.detach(), *(p.grad.clone() for p in model.parameters() if p.requires_grad)]

    # %% ../nbs/21_vblora.ipynb #407fef2f
    model, x = mlp(), torch.randn(3, 48)
    attach(model.train(), small(zero_init=True))
    nn.init.normal_(adapters(model)["default"].gates)
    for backend in "eager", "aot_eager":
        compiled = grads_of(torch.compile(model, fullgraph=True, backend=backend), model, x)
        for a, b in zip(compiled, grads_of(model, model, x), strict=True): torch.testing.assert_close(a, b)


def test_counts():
    # %% ../nbs/21_vblora.ipynb #57fac1f4
    def mlp(kind=nn.Linear):
        "Two linear layers with something in between."
        torch.manual_seed(0)
        return nn.Sequential(kind(48, 32), nn.Tanh(), kind(32, 48)) if kind is nn.Linear else \
            nn.Sequential(kind(32, 48), nn.Tanh(), kind(48, 32))

    def tiny(name="Llama"):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        torch.manual_seed(0)
        gpt2 = tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)
        if name == "GPT-2": return tf.GPT2LMHeadModel(gpt2).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**ids, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2)).eval()

    def small(**changes):
        "A configuration that fits the tiny models."
        return VBLoRA(**dict(num_vectors=10, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def outputs(model):
        "What a model says about a fixed input."
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def relative(a, b):
        "The relative difference of two tensors in the Frobenius norm."
        return ((a - b).norm() / b.norm()).item()

    # %% ../nbs/21_vblora.ipynb #ab493a06
    def block(width=48):
        return nn.Sequential(nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, width))

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def peft_twin(net, adapter, **settings):
        "The same network under PEFT with the numbers of an adapter of ours."
        import peft
        c = adapter.config
        twin = peft.get_peft_model(copy.deepcopy(net), peft.VBLoRAConfig(r=c.r, num_vectors=c.num_vectors,
            vector_length=c.vector_length, topk=c.topk, target_modules=adapter.names,
            fan_in_fan_out=isinstance(net[0], Conv1D), **settings))
        with torch.no_grad():
            twin.base_model.vblora_vector_bank["default"].copy_(adapter.bank)
            for name, part in zip(adapter.names, adapter.parts, strict=True):
                layer, (A, B) = twin.base_model.model.get_submodule(name), part.tables()
                layer.vblora_logits_A["default"].copy_(A), layer.vblora_logits_B["default"].copy_(B)
        return twin

    def dressed(model):
        "Train an adapter's model for a few steps and return its loss."
        ids = torch.arange(24).view(2, 12)
        optimizer = torch.optim.AdamW(parameter_groups(model))
        for _ in range(3):
            optimizer.zero_grad()
            model(ids, labels=ids).loss.backward()
            optimizer.step()
        return model(ids, labels=ids).loss.item()

    def file_bytes(folder):
        "Bytes of both files of an adapter, and of its tensors."
        from safetensors.torch import load_file
        tensors = load_file(Path(folder)/"adapter.safetensors")
        return sum(f.stat().st_size for f in Path(folder).iterdir()), sum(t.nbytes for t in tensors.values())

    # %% ../nbs/21_vblora.ipynb #8cfac38c
    def on_meta(kind, config, **kwargs):
        "The linear layers of an architecture, without weights."
        with torch.device("meta"): return kind(config, **kwargs)

    roberta = {"base": tf.RobertaConfig(), "large": tf.RobertaConfig(hidden_size=1024, num_hidden_layers=24,
        num_attention_heads=16, intermediate_size=4096)}
    llama3b = tf.LlamaConfig(hidden_size=3072, intermediate_size=8192, num_hidden_layers=28, num_attention_heads=24,
        num_key_value_heads=8, head_dim=128)
    llama13b = tf.LlamaConfig(hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40)

    table = [  # Model, targets, settings, layers, trained parameters, bytes
        ("RoBERTa-base", ["query", "value"], dict(num_vectors=90), 24, 74_880, 95_616),
        ("RoBERTa-base", "all-linear", dict(num_vectors=90), 72, 256_320, 107_712),
        ("RoBERTa-large", ["query", "value"], dict(num_vectors=90), 48, 161_280, 101_376),
        ("RoBERTa-large", "all-linear", dict(num_vectors=90), 144, 645_120, 133_632),
        ("GPT2-medium", "all-linear", dict(), 96, 1_638_400, 299_008),
        ("GPT2-large", "all-linear", dict(num_vectors=350), 144, 4_121_600, 450_560),
        ("Llama-2-7B", "all-linear", dict(num_vectors=2048), 224, 80_478_208, 2_409_472),
        ("Llama-2-13B", "all-linear", dict(num_vectors=2048, r=6), 280, 188_284_928, 2_830_592),
        ("Llama-2-13B", "all-linear", dict(num_vectors=4096), 280, 251_396_096, 4_683_264),
        ("Mistral-7B", "all-linear", dict(num_vectors=2048), 224, 84_410_368, 2_424_832),
        ("Gemma-7B", "all-linear", dict(num_vectors=2048), 196, 100_532_224, 2_487_808),
        ("Llama-3.2-3B", ["q_proj", "v_proj"], dict(num_vectors=256), 56, 1_212_416, 289_024),
        ("Llama-3.2-3B", ["q_proj", "v_proj"], dict(num_vectors=1024), 56, 4_849_664, 1_084_416),
        ("Llama-3.2-3B", "all-linear", dict(num_vectors=2048), 196, 49_152_000, 2_287_104)]

    def architecture(name):
        "A model by name, on the meta device."
        if name.startswith("RoBERTa"): return on_meta(tf.RobertaModel, roberta[name[8:]], add_pooling_layer=False)
        if name == "GPT2-medium": return on_meta(tf.GPT2Model, tf.GPT2Config(n_embd=1024, n_layer=24, n_head=16))
        if name == "GPT2-large": return on_meta(tf.GPT2Model, tf.GPT2Config(n_embd=1280, n_layer=36, n_head=20))
        if name == "Mistral-7B": return on_meta(tf.MistralModel, tf.MistralConfig())
        if name == "Gemma-7B": return on_meta(tf.GemmaModel, tf.GemmaConfig())
        llamas = {"Llama-2-7B": tf.LlamaConfig(), "Llama-2-13B": llama13b, "Llama-3.2-3B": llama3b}
        return on_meta(tf.LlamaModel, llamas[name])

    # %% ../nbs/21_vblora.ipynb #79d619a1
    print(f"{'':14} {'targets':14} {'h':>4} r {'rows':>6} {'trained':>11} {'bytes':>9} {'packed':>9}")
    for name, targets, changes, layers, parameters, size in table:
        config, shapes = VBLoRA(target_modules=targets, **changes), shapes_of(select(architecture(name), targets))
        assert (len(shapes), count_trained(config, shapes), count_bytes(config, shapes)) == (layers, parameters, size)
        packed = count_bytes(VBLoRA(packed=True, target_modules=targets, **changes), shapes)
        meant = targets if isinstance(targets, str) else ",".join(targets)
        print(f"{name:14} {meant:14} {config.num_vectors:4} {config.r} "
          f"{count_rows(config, shapes):6} {parameters:11,} {size:9,} {packed:9,}")


def test_the_file():
    # %% ../nbs/21_vblora.ipynb #57fac1f4
    def mlp(kind=nn.Linear):
        "Two linear layers with something in between."
        torch.manual_seed(0)
        return nn.Sequential(kind(48, 32), nn.Tanh(), kind(32, 48)) if kind is nn.Linear else \
            nn.Sequential(kind(32, 48), nn.Tanh(), kind(48, 32))

    def tiny(name="Llama"):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        torch.manual_seed(0)
        gpt2 = tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)
        if name == "GPT-2": return tf.GPT2LMHeadModel(gpt2).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**ids, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2)).eval()

    def small(**changes):
        "A configuration that fits the tiny models."
        return VBLoRA(**dict(num_vectors=10, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def outputs(model):
        "What a model says about a fixed input."
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def relative(a, b):
        "The relative difference of two tensors in the Frobenius norm."
        return ((a - b).norm() / b.norm()).item()

    # %% ../nbs/21_vblora.ipynb #ab493a06
    def block(width=48):
        return nn.Sequential(nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, width))

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def peft_twin(net, adapter, **settings):
        "The same network under PEFT with the numbers of an adapter of ours."
        import peft
        c = adapter.config
        twin = peft.get_peft_model(copy.deepcopy(net), peft.VBLoRAConfig(r=c.r, num_vectors=c.num_vectors,
            vector_length=c.vector_length, topk=c.topk, target_modules=adapter.names,
            fan_in_fan_out=isinstance(net[0], Conv1D), **settings))
        with torch.no_grad():
            twin.base_model.vblora_vector_bank["default"].copy_(adapter.bank)
            for name, part in zip(adapter.names, adapter.parts, strict=True):
                layer, (A, B) = twin.base_model.model.get_submodule(name), part.tables()
                layer.vblora_logits_A["default"].copy_(A), layer.vblora_logits_B["default"].copy_(B)
        return twin

    def dressed(model):
        "Train an adapter's model for a few steps and return its loss."
        ids = torch.arange(24).view(2, 12)
        optimizer = torch.optim.AdamW(parameter_groups(model))
        for _ in range(3):
            optimizer.zero_grad()
            model(ids, labels=ids).loss.backward()
            optimizer.step()
        return model(ids, labels=ids).loss.item()

    def file_bytes(folder):
        "Bytes of both files of an adapter, and of its tensors."
        from safetensors.torch import load_file
        tensors = load_file(Path(folder)/"adapter.safetensors")
        return sum(f.stat().st_size for f in Path(folder).iterdir()), sum(t.nbytes for t in tensors.values())

    # %% ../nbs/21_vblora.ipynb #782b0767
    torch.manual_seed(0)
    for k in 1, 2, 3, 4, 6:
        for scale in 1, 10, 100:
            bank, logits = torch.rand(90, 16) - .5, scale * torch.randn(2000, 90)
            T, w = chosen(logits, k)
            again = spread(T, w[:, 1:], 90)
            T2, w2 = chosen(again, k)
            assert again.isfinite().all() and torch.equal(T.sort().values, T2.sort().values)
            assert relative(compose(bank, T2, w2), compose(bank, T, w)) < 3e-7


def test_the_file_2():
    # %% ../nbs/21_vblora.ipynb #57fac1f4
    def mlp(kind=nn.Linear):
        "Two linear layers with something in between."
        torch.manual_seed(0)
        return nn.Sequential(kind(48, 32), nn.Tanh(), kind(32, 48)) if kind is nn.Linear else \
            nn.Sequential(kind(32, 48), nn.Tanh(), kind(48, 32))

    def tiny(name="Llama"):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        torch.manual_seed(0)
        gpt2 = tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)
        if name == "GPT-2": return tf.GPT2LMHeadModel(gpt2).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**ids, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2)).eval()

    def small(**changes):
        "A configuration that fits the tiny models."
        return VBLoRA(**dict(num_vectors=10, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def outputs(model):
        "What a model says about a fixed input."
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def relative(a, b):
        "The relative difference of two tensors in the Frobenius norm."
        return ((a - b).norm() / b.norm()).item()

    # %% ../nbs/21_vblora.ipynb #ab493a06
    def block(width=48):
        return nn.Sequential(nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, width))

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def peft_twin(net, adapter, **settings):
        "The same network under PEFT with the numbers of an adapter of ours."
        import peft
        c = adapter.config
        twin = peft.get_peft_model(copy.deepcopy(net), peft.VBLoRAConfig(r=c.r, num_vectors=c.num_vectors,
            vector_length=c.vector_length, topk=c.topk, target_modules=adapter.names,
            fan_in_fan_out=isinstance(net[0], Conv1D), **settings))
        with torch.no_grad():
            twin.base_model.vblora_vector_bank["default"].copy_(adapter.bank)
            for name, part in zip(adapter.names, adapter.parts, strict=True):
                layer, (A, B) = twin.base_model.model.get_submodule(name), part.tables()
                layer.vblora_logits_A["default"].copy_(A), layer.vblora_logits_B["default"].copy_(B)
        return twin

    def dressed(model):
        "Train an adapter's model for a few steps and return its loss."
        ids = torch.arange(24).view(2, 12)
        optimizer = torch.optim.AdamW(parameter_groups(model))
        for _ in range(3):
            optimizer.zero_grad()
            model(ids, labels=ids).loss.backward()
            optimizer.step()
        return model(ids, labels=ids).loss.item()

    def file_bytes(folder):
        "Bytes of both files of an adapter, and of its tensors."
        from safetensors.torch import load_file
        tensors = load_file(Path(folder)/"adapter.safetensors")
        return sum(f.stat().st_size for f in Path(folder).iterdir()), sum(t.nbytes for t in tensors.values())

    # %% ../nbs/21_vblora.ipynb #fd719fb6
    @settings(deadline=None, max_examples=25, derandomize=True)
    @given(st.integers(1, 5000), st.integers(0, 20), st.integers(1, 6))
    def check_bits(h, rows, k):
        torch.manual_seed(h)
        numbers, bits = torch.randint(0, h, (rows, k)), bits_of(h)
        packed = packed_bits(numbers, bits)
        assert len(packed) == -(-rows*k*bits//8) and torch.equal(unpacked_bits(packed, bits, (rows, k)), numbers)

    check_bits()


def test_the_file_3():
    # %% ../nbs/21_vblora.ipynb #57fac1f4
    def mlp(kind=nn.Linear):
        "Two linear layers with something in between."
        torch.manual_seed(0)
        return nn.Sequential(kind(48, 32), nn.Tanh(), kind(32, 48)) if kind is nn.Linear else \
            nn.Sequential(kind(32, 48), nn.Tanh(), kind(48, 32))

    def tiny(name="Llama"):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        torch.manual_seed(0)
        gpt2 = tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)
        if name == "GPT-2": return tf.GPT2LMHeadModel(gpt2).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**ids, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2)).eval()

    def small(**changes):
        "A configuration that fits the tiny models."
        return VBLoRA(**dict(num_vectors=10, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def outputs(model):
        "What a model says about a fixed input."
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def relative(a, b):
        "The relative difference of two tensors in the Frobenius norm."
        return ((a - b).norm() / b.norm()).item()

    # %% ../nbs/21_vblora.ipynb #ab493a06
    def block(width=48):
        return nn.Sequential(nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, width))

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def peft_twin(net, adapter, **settings):
        "The same network under PEFT with the numbers of an adapter of ours."
        import peft
        c = adapter.config
        twin = peft.get_peft_model(copy.deepcopy(net), peft.VBLoRAConfig(r=c.r, num_vectors=c.num_vectors,
            vector_length=c.vector_length, topk=c.topk, target_modules=adapter.names,
            fan_in_fan_out=isinstance(net[0], Conv1D), **settings))
        with torch.no_grad():
            twin.base_model.vblora_vector_bank["default"].copy_(adapter.bank)
            for name, part in zip(adapter.names, adapter.parts, strict=True):
                layer, (A, B) = twin.base_model.model.get_submodule(name), part.tables()
                layer.vblora_logits_A["default"].copy_(A), layer.vblora_logits_B["default"].copy_(B)
        return twin

    def dressed(model):
        "Train an adapter's model for a few steps and return its loss."
        ids = torch.arange(24).view(2, 12)
        optimizer = torch.optim.AdamW(parameter_groups(model))
        for _ in range(3):
            optimizer.zero_grad()
            model(ids, labels=ids).loss.backward()
            optimizer.step()
        return model(ids, labels=ids).loss.item()

    def file_bytes(folder):
        "Bytes of both files of an adapter, and of its tensors."
        from safetensors.torch import load_file
        tensors = load_file(Path(folder)/"adapter.safetensors")
        return sum(f.stat().st_size for f in Path(folder).iterdir()), sum(t.nbytes for t in tensors.values())

    # %% ../nbs/21_vblora.ipynb #cd9daaa7
    for k in 2, 3, 6:
        w = chosen(torch.randn(5000, 20), k)[1][:, 1:]
        error = (from_eighth(eighth(w)) - w).abs().amax(0)
        assert (error <= 1/(510*torch.arange(2, k + 1)) + 1e-6).all() and from_eighth(eighth(w)).sum(-1).max() < 1


def test_the_file_4():
    # %% ../nbs/21_vblora.ipynb #57fac1f4
    def mlp(kind=nn.Linear):
        "Two linear layers with something in between."
        torch.manual_seed(0)
        return nn.Sequential(kind(48, 32), nn.Tanh(), kind(32, 48)) if kind is nn.Linear else \
            nn.Sequential(kind(32, 48), nn.Tanh(), kind(48, 32))

    def tiny(name="Llama"):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        torch.manual_seed(0)
        gpt2 = tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)
        if name == "GPT-2": return tf.GPT2LMHeadModel(gpt2).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**ids, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2)).eval()

    def small(**changes):
        "A configuration that fits the tiny models."
        return VBLoRA(**dict(num_vectors=10, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def outputs(model):
        "What a model says about a fixed input."
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def relative(a, b):
        "The relative difference of two tensors in the Frobenius norm."
        return ((a - b).norm() / b.norm()).item()

    # %% ../nbs/21_vblora.ipynb #ab493a06
    def block(width=48):
        return nn.Sequential(nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, width))

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def peft_twin(net, adapter, **settings):
        "The same network under PEFT with the numbers of an adapter of ours."
        import peft
        c = adapter.config
        twin = peft.get_peft_model(copy.deepcopy(net), peft.VBLoRAConfig(r=c.r, num_vectors=c.num_vectors,
            vector_length=c.vector_length, topk=c.topk, target_modules=adapter.names,
            fan_in_fan_out=isinstance(net[0], Conv1D), **settings))
        with torch.no_grad():
            twin.base_model.vblora_vector_bank["default"].copy_(adapter.bank)
            for name, part in zip(adapter.names, adapter.parts, strict=True):
                layer, (A, B) = twin.base_model.model.get_submodule(name), part.tables()
                layer.vblora_logits_A["default"].copy_(A), layer.vblora_logits_B["default"].copy_(B)
        return twin

    def dressed(model):
        "Train an adapter's model for a few steps and return its loss."
        ids = torch.arange(24).view(2, 12)
        optimizer = torch.optim.AdamW(parameter_groups(model))
        for _ in range(3):
            optimizer.zero_grad()
            model(ids, labels=ids).loss.backward()
            optimizer.step()
        return model(ids, labels=ids).loss.item()

    def file_bytes(folder):
        "Bytes of both files of an adapter, and of its tensors."
        from safetensors.torch import load_file
        tensors = load_file(Path(folder)/"adapter.safetensors")
        return sum(f.stat().st_size for f in Path(folder).iterdir()), sum(t.nbytes for t in tensors.values())

    # %% ../nbs/21_vblora.ipynb #06885b75
    with tempfile.TemporaryDirectory() as d:
        for changes in {}, {"topk": 1}, {"topk": 4, "num_vectors": 256}, {"num_vectors": 257}, {"packed": True}, \
                {"save_only_topk_weights": False}, {"zero_init": True}:
            model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(300)))
            attach(model, config := small(**changes))
            whole, of_tensors = file_bytes(save_adapter(model, d))
            shapes = {str(i): (16, 16) for i in range(300)}
            assert of_tensors == count_bytes(config, shapes) and whole - of_tensors <= 2048
            assert trained(model) == count_trained(config, shapes)


def test_the_file_5():
    # %% ../nbs/21_vblora.ipynb #57fac1f4
    def mlp(kind=nn.Linear):
        "Two linear layers with something in between."
        torch.manual_seed(0)
        return nn.Sequential(kind(48, 32), nn.Tanh(), kind(32, 48)) if kind is nn.Linear else \
            nn.Sequential(kind(32, 48), nn.Tanh(), kind(48, 32))

    def tiny(name="Llama"):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        torch.manual_seed(0)
        gpt2 = tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)
        if name == "GPT-2": return tf.GPT2LMHeadModel(gpt2).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**ids, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2)).eval()

    def small(**changes):
        "A configuration that fits the tiny models."
        return VBLoRA(**dict(num_vectors=10, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def outputs(model):
        "What a model says about a fixed input."
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def relative(a, b):
        "The relative difference of two tensors in the Frobenius norm."
        return ((a - b).norm() / b.norm()).item()

    # %% ../nbs/21_vblora.ipynb #ab493a06
    def block(width=48):
        return nn.Sequential(nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, width))

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def peft_twin(net, adapter, **settings):
        "The same network under PEFT with the numbers of an adapter of ours."
        import peft
        c = adapter.config
        twin = peft.get_peft_model(copy.deepcopy(net), peft.VBLoRAConfig(r=c.r, num_vectors=c.num_vectors,
            vector_length=c.vector_length, topk=c.topk, target_modules=adapter.names,
            fan_in_fan_out=isinstance(net[0], Conv1D), **settings))
        with torch.no_grad():
            twin.base_model.vblora_vector_bank["default"].copy_(adapter.bank)
            for name, part in zip(adapter.names, adapter.parts, strict=True):
                layer, (A, B) = twin.base_model.model.get_submodule(name), part.tables()
                layer.vblora_logits_A["default"].copy_(A), layer.vblora_logits_B["default"].copy_(B)
        return twin

    def dressed(model):
        "Train an adapter's model for a few steps and return its loss."
        ids = torch.arange(24).view(2, 12)
        optimizer = torch.optim.AdamW(parameter_groups(model))
        for _ in range(3):
            optimizer.zero_grad()
            model(ids, labels=ids).loss.backward()
            optimizer.step()
        return model(ids, labels=ids).loss.item()

    def file_bytes(folder):
        "Bytes of both files of an adapter, and of its tensors."
        from safetensors.torch import load_file
        tensors = load_file(Path(folder)/"adapter.safetensors")
        return sum(f.stat().st_size for f in Path(folder).iterdir()), sum(t.nbytes for t in tensors.values())

    # %% ../nbs/21_vblora.ipynb #72b133f4
    for changes in *({"topk": k} for k in (1, 2, 4, 6)), {"zero_init": True}, {"save_only_topk_weights": False}:
        for dtype in torch.float32, torch.bfloat16, torch.float16:
            model, other = tiny().to(dtype), tiny().to(dtype)
            ours = attach(model, small(**changes))
            loss = dressed(model)
            with tempfile.TemporaryDirectory() as d: theirs = load_adapter(other, save_adapter(model, d))
            for a, b in zip(ours.parts, theirs.parts, strict=True): assert relative(b.delta(), a.delta()) < 1e-6
            ids = torch.arange(24).view(2, 12)
            again = other(ids, labels=ids).loss.item()
            assert abs(again - loss) <= (1e-5 if dtype == torch.float32 else 1e-2)
            assert math.isfinite(dressed(other)) and all(p.isfinite().all() for p in theirs.parameters())
        if "save_only_topk_weights" in changes:
            with tempfile.TemporaryDirectory() as d:
                assert torch.equal(load_adapter(tiny().to(dtype), save_adapter(model, d)).logits, ours.logits)


def test_the_file_6():
    # %% ../nbs/21_vblora.ipynb #57fac1f4
    def mlp(kind=nn.Linear):
        "Two linear layers with something in between."
        torch.manual_seed(0)
        return nn.Sequential(kind(48, 32), nn.Tanh(), kind(32, 48)) if kind is nn.Linear else \
            nn.Sequential(kind(32, 48), nn.Tanh(), kind(48, 32))

    def tiny(name="Llama"):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        torch.manual_seed(0)
        gpt2 = tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)
        if name == "GPT-2": return tf.GPT2LMHeadModel(gpt2).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**ids, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2)).eval()

    def small(**changes):
        "A configuration that fits the tiny models."
        return VBLoRA(**dict(num_vectors=10, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def outputs(model):
        "What a model says about a fixed input."
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def relative(a, b):
        "The relative difference of two tensors in the Frobenius norm."
        return ((a - b).norm() / b.norm()).item()

    # %% ../nbs/21_vblora.ipynb #ab493a06
    def block(width=48):
        return nn.Sequential(nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, width))

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def peft_twin(net, adapter, **settings):
        "The same network under PEFT with the numbers of an adapter of ours."
        import peft
        c = adapter.config
        twin = peft.get_peft_model(copy.deepcopy(net), peft.VBLoRAConfig(r=c.r, num_vectors=c.num_vectors,
            vector_length=c.vector_length, topk=c.topk, target_modules=adapter.names,
            fan_in_fan_out=isinstance(net[0], Conv1D), **settings))
        with torch.no_grad():
            twin.base_model.vblora_vector_bank["default"].copy_(adapter.bank)
            for name, part in zip(adapter.names, adapter.parts, strict=True):
                layer, (A, B) = twin.base_model.model.get_submodule(name), part.tables()
                layer.vblora_logits_A["default"].copy_(A), layer.vblora_logits_B["default"].copy_(B)
        return twin

    def dressed(model):
        "Train an adapter's model for a few steps and return its loss."
        ids = torch.arange(24).view(2, 12)
        optimizer = torch.optim.AdamW(parameter_groups(model))
        for _ in range(3):
            optimizer.zero_grad()
            model(ids, labels=ids).loss.backward()
            optimizer.step()
        return model(ids, labels=ids).loss.item()

    def file_bytes(folder):
        "Bytes of both files of an adapter, and of its tensors."
        from safetensors.torch import load_file
        tensors = load_file(Path(folder)/"adapter.safetensors")
        return sum(f.stat().st_size for f in Path(folder).iterdir()), sum(t.nbytes for t in tensors.values())

    # %% ../nbs/21_vblora.ipynb #e59c48f2
    model, other = tiny(), tiny()
    ours = attach(model, small(packed=True, num_vectors=90))
    with tempfile.TemporaryDirectory() as d: theirs = load_adapter(other, save_adapter(model, d))
    errors = [relative(b.delta(), a.delta()) for a, b in zip(ours.parts, theirs.parts, strict=True)]
    assert .002 < sum(errors)/len(errors) < .003 and relative(theirs.bank, ours.bank) < 2**-9
    T, w = chosen(torch.randn(3000, 90), 6)
    bank, q = torch.rand(90, 16) - .5, from_eighth(eighth(w[:, 1:]))
    error = relative(compose(bank, T, torch.cat([1 - q.sum(-1, keepdim=True), q], -1)), compose(bank, T, w))
    assert .0022 < error < .003
    print(f"relative error of ΔW in the packed form, k = 2: {sum(errors)/len(errors):.4f}")


def test_one_bank_for_several_tasks():
    # %% ../nbs/21_vblora.ipynb #57fac1f4
    def mlp(kind=nn.Linear):
        "Two linear layers with something in between."
        torch.manual_seed(0)
        return nn.Sequential(kind(48, 32), nn.Tanh(), kind(32, 48)) if kind is nn.Linear else \
            nn.Sequential(kind(32, 48), nn.Tanh(), kind(48, 32))

    def tiny(name="Llama"):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        torch.manual_seed(0)
        gpt2 = tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)
        if name == "GPT-2": return tf.GPT2LMHeadModel(gpt2).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**ids, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2)).eval()

    def small(**changes):
        "A configuration that fits the tiny models."
        return VBLoRA(**dict(num_vectors=10, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def outputs(model):
        "What a model says about a fixed input."
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def relative(a, b):
        "The relative difference of two tensors in the Frobenius norm."
        return ((a - b).norm() / b.norm()).item()

    # %% ../nbs/21_vblora.ipynb #ab493a06
    def block(width=48):
        return nn.Sequential(nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, width))

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def peft_twin(net, adapter, **settings):
        "The same network under PEFT with the numbers of an adapter of ours."
        import peft
        c = adapter.config
        twin = peft.get_peft_model(copy.deepcopy(net), peft.VBLoRAConfig(r=c.r, num_vectors=c.num_vectors,
            vector_length=c.vector_length, topk=c.topk, target_modules=adapter.names,
            fan_in_fan_out=isinstance(net[0], Conv1D), **settings))
        with torch.no_grad():
            twin.base_model.vblora_vector_bank["default"].copy_(adapter.bank)
            for name, part in zip(adapter.names, adapter.parts, strict=True):
                layer, (A, B) = twin.base_model.model.get_submodule(name), part.tables()
                layer.vblora_logits_A["default"].copy_(A), layer.vblora_logits_B["default"].copy_(B)
        return twin

    def dressed(model):
        "Train an adapter's model for a few steps and return its loss."
        ids = torch.arange(24).view(2, 12)
        optimizer = torch.optim.AdamW(parameter_groups(model))
        for _ in range(3):
            optimizer.zero_grad()
            model(ids, labels=ids).loss.backward()
            optimizer.step()
        return model(ids, labels=ids).loss.item()

    def file_bytes(folder):
        "Bytes of both files of an adapter, and of its tensors."
        from safetensors.torch import load_file
        tensors = load_file(Path(folder)/"adapter.safetensors")
        return sum(f.stat().st_size for f in Path(folder).iterdir()), sum(t.nbytes for t in tensors.values())

    # %% ../nbs/21_vblora.ipynb #b1ccf54e
    with tempfile.TemporaryDirectory() as d:
        first, second = tiny(), tiny()
        attach(first, small())
        dressed(first)
        save_adapter(first, f"{d}/first")
        shared = attach(second, small(bank=f"{d}/first"))
        bank = adapters(first)["default"].bank.clone()
        assert [g["name"] for g in parameter_groups(second)] == ["logits"]
        dressed(second)
        assert torch.equal(shared.bank, bank) and trained(second) == shared.logits.numel()
        save_adapter(second, f"{d}/second")
        rows = len(shared.logits)
        assert file_bytes(f"{d}/second")[1] == rows*(4 + 2) == count_bytes(shared.config, shapes_of(select(tiny())))
        assert relative(outputs(load := tiny()), outputs(second)) > 1e-3
        load_adapter(load, f"{d}/second")
        torch.testing.assert_close(outputs(load), outputs(second))
        dressed(first)
        save_adapter(first, f"{d}/first")
        message = refusal(CheckpointError, load_adapter, tiny(), f"{d}/second")
        print(re.sub("[0-9a-f]{16}", "…", message.replace(d, "DIR")))
        print(refusal(SettingError, attach, tiny(), small(bank=f"{d}/first", num_vectors=11)).replace(d, "DIR"))
        print(refusal(SettingError, attach, tiny(), small(bank=f"{d}/third")).replace(d, "DIR"))


def test_many_adapters_and_as_lora():
    # %% ../nbs/21_vblora.ipynb #57fac1f4
    def mlp(kind=nn.Linear):
        "Two linear layers with something in between."
        torch.manual_seed(0)
        return nn.Sequential(kind(48, 32), nn.Tanh(), kind(32, 48)) if kind is nn.Linear else \
            nn.Sequential(kind(32, 48), nn.Tanh(), kind(48, 32))

    def tiny(name="Llama"):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        torch.manual_seed(0)
        gpt2 = tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)
        if name == "GPT-2": return tf.GPT2LMHeadModel(gpt2).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**ids, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2)).eval()

    def small(**changes):
        "A configuration that fits the tiny models."
        return VBLoRA(**dict(num_vectors=10, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def outputs(model):
        "What a model says about a fixed input."
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def relative(a, b):
        "The relative difference of two tensors in the Frobenius norm."
        return ((a - b).norm() / b.norm()).item()

    # %% ../nbs/21_vblora.ipynb #ab493a06
    def block(width=48):
        return nn.Sequential(nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, width))

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def peft_twin(net, adapter, **settings):
        "The same network under PEFT with the numbers of an adapter of ours."
        import peft
        c = adapter.config
        twin = peft.get_peft_model(copy.deepcopy(net), peft.VBLoRAConfig(r=c.r, num_vectors=c.num_vectors,
            vector_length=c.vector_length, topk=c.topk, target_modules=adapter.names,
            fan_in_fan_out=isinstance(net[0], Conv1D), **settings))
        with torch.no_grad():
            twin.base_model.vblora_vector_bank["default"].copy_(adapter.bank)
            for name, part in zip(adapter.names, adapter.parts, strict=True):
                layer, (A, B) = twin.base_model.model.get_submodule(name), part.tables()
                layer.vblora_logits_A["default"].copy_(A), layer.vblora_logits_B["default"].copy_(B)
        return twin

    def dressed(model):
        "Train an adapter's model for a few steps and return its loss."
        ids = torch.arange(24).view(2, 12)
        optimizer = torch.optim.AdamW(parameter_groups(model))
        for _ in range(3):
            optimizer.zero_grad()
            model(ids, labels=ids).loss.backward()
            optimizer.step()
        return model(ids, labels=ids).loss.item()

    def file_bytes(folder):
        "Bytes of both files of an adapter, and of its tensors."
        from safetensors.torch import load_file
        tensors = load_file(Path(folder)/"adapter.safetensors")
        return sum(f.stat().st_size for f in Path(folder).iterdir()), sum(t.nbytes for t in tensors.values())

    # %% ../nbs/21_vblora.ipynb #3170a027
    model = tiny()
    attach(model, small(), "a")
    attach(model, small(r=2, num_vectors=5, vector_length=8, topk=3, target_modules=["q_proj", "down_proj"]), "b")
    ids = torch.randint(0, 96, (4, 12), generator=torch.Generator().manual_seed(0))
    alone = {}
    for name in "a", "b", "__base__":
        activate(model, *([] if name == "__base__" else [name]))
        alone[name] = model(ids).logits
    names = ["b", "a", "__base__", "b"]
    with mixed(model, names): together = model(ids).logits
    for i, name in enumerate(names): assert relative(together[i], alone[name][i]) < 1e-6
    assert (alone["a"] - alone["b"]).abs().max() > .01
    activate(model, "a")
    detach(model, "b")
    assert torch.equal(model(ids).logits, alone["a"])


def test_many_adapters_and_as_lora_2():
    # %% ../nbs/21_vblora.ipynb #57fac1f4
    def mlp(kind=nn.Linear):
        "Two linear layers with something in between."
        torch.manual_seed(0)
        return nn.Sequential(kind(48, 32), nn.Tanh(), kind(32, 48)) if kind is nn.Linear else \
            nn.Sequential(kind(32, 48), nn.Tanh(), kind(48, 32))

    def tiny(name="Llama"):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        torch.manual_seed(0)
        gpt2 = tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)
        if name == "GPT-2": return tf.GPT2LMHeadModel(gpt2).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**ids, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2)).eval()

    def small(**changes):
        "A configuration that fits the tiny models."
        return VBLoRA(**dict(num_vectors=10, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def outputs(model):
        "What a model says about a fixed input."
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def relative(a, b):
        "The relative difference of two tensors in the Frobenius norm."
        return ((a - b).norm() / b.norm()).item()

    # %% ../nbs/21_vblora.ipynb #ab493a06
    def block(width=48):
        return nn.Sequential(nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, width))

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def peft_twin(net, adapter, **settings):
        "The same network under PEFT with the numbers of an adapter of ours."
        import peft
        c = adapter.config
        twin = peft.get_peft_model(copy.deepcopy(net), peft.VBLoRAConfig(r=c.r, num_vectors=c.num_vectors,
            vector_length=c.vector_length, topk=c.topk, target_modules=adapter.names,
            fan_in_fan_out=isinstance(net[0], Conv1D), **settings))
        with torch.no_grad():
            twin.base_model.vblora_vector_bank["default"].copy_(adapter.bank)
            for name, part in zip(adapter.names, adapter.parts, strict=True):
                layer, (A, B) = twin.base_model.model.get_submodule(name), part.tables()
                layer.vblora_logits_A["default"].copy_(A), layer.vblora_logits_B["default"].copy_(B)
        return twin

    def dressed(model):
        "Train an adapter's model for a few steps and return its loss."
        ids = torch.arange(24).view(2, 12)
        optimizer = torch.optim.AdamW(parameter_groups(model))
        for _ in range(3):
            optimizer.zero_grad()
            model(ids, labels=ids).loss.backward()
            optimizer.step()
        return model(ids, labels=ids).loss.item()

    def file_bytes(folder):
        "Bytes of both files of an adapter, and of its tensors."
        from safetensors.torch import load_file
        tensors = load_file(Path(folder)/"adapter.safetensors")
        return sum(f.stat().st_size for f in Path(folder).iterdir()), sum(t.nbytes for t in tensors.values())

    # %% ../nbs/21_vblora.ipynb #448894ca
    model = tiny("GPT-2")
    adapter = attach(model, small(zero_init=True))
    nn.init.normal_(adapter.gates)
    expected, factors = outputs(model), lora_factors(adapter)
    detach(model)
    with torch.no_grad():
        for name, (A, B) in factors.items():
            assert A.shape[0] == B.shape[1] == 4
            effective_weight(model.get_submodule(name)).add_(B @ A)
    assert relative(outputs(model), expected) < 1e-5


def test_lazy_adam():
    # %% ../nbs/21_vblora.ipynb #57fac1f4
    def mlp(kind=nn.Linear):
        "Two linear layers with something in between."
        torch.manual_seed(0)
        return nn.Sequential(kind(48, 32), nn.Tanh(), kind(32, 48)) if kind is nn.Linear else \
            nn.Sequential(kind(32, 48), nn.Tanh(), kind(48, 32))

    def tiny(name="Llama"):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        torch.manual_seed(0)
        gpt2 = tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)
        if name == "GPT-2": return tf.GPT2LMHeadModel(gpt2).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**ids, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2)).eval()

    def small(**changes):
        "A configuration that fits the tiny models."
        return VBLoRA(**dict(num_vectors=10, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def outputs(model):
        "What a model says about a fixed input."
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def relative(a, b):
        "The relative difference of two tensors in the Frobenius norm."
        return ((a - b).norm() / b.norm()).item()

    # %% ../nbs/21_vblora.ipynb #ab493a06
    def block(width=48):
        return nn.Sequential(nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, width))

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def peft_twin(net, adapter, **settings):
        "The same network under PEFT with the numbers of an adapter of ours."
        import peft
        c = adapter.config
        twin = peft.get_peft_model(copy.deepcopy(net), peft.VBLoRAConfig(r=c.r, num_vectors=c.num_vectors,
            vector_length=c.vector_length, topk=c.topk, target_modules=adapter.names,
            fan_in_fan_out=isinstance(net[0], Conv1D), **settings))
        with torch.no_grad():
            twin.base_model.vblora_vector_bank["default"].copy_(adapter.bank)
            for name, part in zip(adapter.names, adapter.parts, strict=True):
                layer, (A, B) = twin.base_model.model.get_submodule(name), part.tables()
                layer.vblora_logits_A["default"].copy_(A), layer.vblora_logits_B["default"].copy_(B)
        return twin

    def dressed(model):
        "Train an adapter's model for a few steps and return its loss."
        ids = torch.arange(24).view(2, 12)
        optimizer = torch.optim.AdamW(parameter_groups(model))
        for _ in range(3):
            optimizer.zero_grad()
            model(ids, labels=ids).loss.backward()
            optimizer.step()
        return model(ids, labels=ids).loss.item()

    def file_bytes(folder):
        "Bytes of both files of an adapter, and of its tensors."
        from safetensors.torch import load_file
        tensors = load_file(Path(folder)/"adapter.safetensors")
        return sum(f.stat().st_size for f in Path(folder).iterdir()), sum(t.nbytes for t in tensors.values())

    # %% ../nbs/21_vblora.ipynb #792130c3
    def run(kind, count=12, resumed=False, **changes):
        "Train a network, and return its parameters and the optimizer."
        torch.manual_seed(0)
        model = nn.Sequential(block(), block())
        adapter = attach(model, small(num_vectors=40, init_logits_std=.01, **changes))
        optimizer, x = kind(adapter.groups()), torch.randn(count, 8, 48)
        for i in range(count):
            optimizer.zero_grad()
            (model(x[i]) - x[i]).square().mean().backward()
            optimizer.step()
            if resumed and i == 4:
                saved, optimizer = copy.deepcopy(optimizer.state_dict()), kind(adapter.groups())
                optimizer.load_state_dict(saved)
        return adapter, optimizer

    # %% ../nbs/21_vblora.ipynb #dd976f43
    dense, adam = run(torch.optim.Adam)
    for changes in {}, {"sparse_gradients": True}, {"resumed": True}:
        lazy, optimizer = run(LazyAdam, **changes)
        for a, b in zip(lazy.parameters(), dense.parameters(), strict=True): torch.testing.assert_close(a, b)
        state = optimizer.state[lazy.logits]
        assert state["at"].dtype == torch.int64 and state["step"] == 12
        still = torch.ones(lazy.logits.numel(), dtype=torch.bool).index_fill_(0, state["at"], False)
        assert torch.equal(lazy.logits.flatten()[still], run(LazyAdam, count=0)[0].logits.flatten()[still])
        touched = len(state["at"])/lazy.logits.numel()
        assert .06 < touched < .5
    print(f"after 12 steps {100*touched:.0f} % of the logits have had a gradient; k/h is {100*2/40:.0f} %")
    assert "LazyAdam takes 0 only" in refusal(SettingError, LazyAdam, [{"params": dense.parameters(), "weight_decay": .1}])


def test_lazy_adam_2():
    # %% ../nbs/21_vblora.ipynb #57fac1f4
    def mlp(kind=nn.Linear):
        "Two linear layers with something in between."
        torch.manual_seed(0)
        return nn.Sequential(kind(48, 32), nn.Tanh(), kind(32, 48)) if kind is nn.Linear else \
            nn.Sequential(kind(32, 48), nn.Tanh(), kind(48, 32))

    def tiny(name="Llama"):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        torch.manual_seed(0)
        gpt2 = tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)
        if name == "GPT-2": return tf.GPT2LMHeadModel(gpt2).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**ids, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2)).eval()

    def small(**changes):
        "A configuration that fits the tiny models."
        return VBLoRA(**dict(num_vectors=10, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def outputs(model):
        "What a model says about a fixed input."
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def relative(a, b):
        "The relative difference of two tensors in the Frobenius norm."
        return ((a - b).norm() / b.norm()).item()

    # %% ../nbs/21_vblora.ipynb #ab493a06
    def block(width=48):
        return nn.Sequential(nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, width))

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def peft_twin(net, adapter, **settings):
        "The same network under PEFT with the numbers of an adapter of ours."
        import peft
        c = adapter.config
        twin = peft.get_peft_model(copy.deepcopy(net), peft.VBLoRAConfig(r=c.r, num_vectors=c.num_vectors,
            vector_length=c.vector_length, topk=c.topk, target_modules=adapter.names,
            fan_in_fan_out=isinstance(net[0], Conv1D), **settings))
        with torch.no_grad():
            twin.base_model.vblora_vector_bank["default"].copy_(adapter.bank)
            for name, part in zip(adapter.names, adapter.parts, strict=True):
                layer, (A, B) = twin.base_model.model.get_submodule(name), part.tables()
                layer.vblora_logits_A["default"].copy_(A), layer.vblora_logits_B["default"].copy_(B)
        return twin

    def dressed(model):
        "Train an adapter's model for a few steps and return its loss."
        ids = torch.arange(24).view(2, 12)
        optimizer = torch.optim.AdamW(parameter_groups(model))
        for _ in range(3):
            optimizer.zero_grad()
            model(ids, labels=ids).loss.backward()
            optimizer.step()
        return model(ids, labels=ids).loss.item()

    def file_bytes(folder):
        "Bytes of both files of an adapter, and of its tensors."
        from safetensors.torch import load_file
        tensors = load_file(Path(folder)/"adapter.safetensors")
        return sum(f.stat().st_size for f in Path(folder).iterdir()), sum(t.nbytes for t in tensors.values())

    # %% ../nbs/21_vblora.ipynb #792130c3
    def run(kind, count=12, resumed=False, **changes):
        "Train a network, and return its parameters and the optimizer."
        torch.manual_seed(0)
        model = nn.Sequential(block(), block())
        adapter = attach(model, small(num_vectors=40, init_logits_std=.01, **changes))
        optimizer, x = kind(adapter.groups()), torch.randn(count, 8, 48)
        for i in range(count):
            optimizer.zero_grad()
            (model(x[i]) - x[i]).square().mean().backward()
            optimizer.step()
            if resumed and i == 4:
                saved, optimizer = copy.deepcopy(optimizer.state_dict()), kind(adapter.groups())
                optimizer.load_state_dict(saved)
        return adapter, optimizer

    # %% ../nbs/21_vblora.ipynb #544b5d34
    def held(kind, **changes):
        "Bytes of the logits, their gradient and their optimizer's state after three steps, in multiples of the logits'."
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 256))
        adapter = attach(model, small(num_vectors=2048, init_logits_std=.1, **changes))
        optimizer = kind(adapter.groups())
        for _ in range(3):
            optimizer.zero_grad()
            (model(x := torch.randn(32, 256)) - x).square().mean().backward()
            optimizer.step()
        p, g = adapter.logits, adapter.logits.grad
        parts = [g.coalesce().indices(), g.coalesce().values()] if g.is_sparse else [g]
        return sum(t.nbytes for t in [p, *parts, *optimizer.state[p].values()] if isinstance(t, Tensor)) / p.nbytes

    # %% ../nbs/21_vblora.ipynb #920d74ac
    dense, lazy, sparse = held(torch.optim.Adam), held(LazyAdam), held(LazyAdam, sparse_gradients=True)
    assert abs(dense - 4) < .01 and lazy < 2.1 and sparse < 1.1
    print(f"logits, gradient and state, in multiples of the logits: Adam {dense:.1f}, lazy {lazy:.1f}, sparse {sparse:.1f}")


def test_what_peft_s_implementation_gets_wrong():
    # %% ../nbs/21_vblora.ipynb #57fac1f4
    def mlp(kind=nn.Linear):
        "Two linear layers with something in between."
        torch.manual_seed(0)
        return nn.Sequential(kind(48, 32), nn.Tanh(), kind(32, 48)) if kind is nn.Linear else \
            nn.Sequential(kind(32, 48), nn.Tanh(), kind(48, 32))

    def tiny(name="Llama"):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        torch.manual_seed(0)
        gpt2 = tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)
        if name == "GPT-2": return tf.GPT2LMHeadModel(gpt2).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**ids, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2)).eval()

    def small(**changes):
        "A configuration that fits the tiny models."
        return VBLoRA(**dict(num_vectors=10, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def outputs(model):
        "What a model says about a fixed input."
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def relative(a, b):
        "The relative difference of two tensors in the Frobenius norm."
        return ((a - b).norm() / b.norm()).item()

    # %% ../nbs/21_vblora.ipynb #ab493a06
    def block(width=48):
        return nn.Sequential(nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, width))

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def peft_twin(net, adapter, **settings):
        "The same network under PEFT with the numbers of an adapter of ours."
        import peft
        c = adapter.config
        twin = peft.get_peft_model(copy.deepcopy(net), peft.VBLoRAConfig(r=c.r, num_vectors=c.num_vectors,
            vector_length=c.vector_length, topk=c.topk, target_modules=adapter.names,
            fan_in_fan_out=isinstance(net[0], Conv1D), **settings))
        with torch.no_grad():
            twin.base_model.vblora_vector_bank["default"].copy_(adapter.bank)
            for name, part in zip(adapter.names, adapter.parts, strict=True):
                layer, (A, B) = twin.base_model.model.get_submodule(name), part.tables()
                layer.vblora_logits_A["default"].copy_(A), layer.vblora_logits_B["default"].copy_(B)
        return twin

    def dressed(model):
        "Train an adapter's model for a few steps and return its loss."
        ids = torch.arange(24).view(2, 12)
        optimizer = torch.optim.AdamW(parameter_groups(model))
        for _ in range(3):
            optimizer.zero_grad()
            model(ids, labels=ids).loss.backward()
            optimizer.step()
        return model(ids, labels=ids).loss.item()

    def file_bytes(folder):
        "Bytes of both files of an adapter, and of its tensors."
        from safetensors.torch import load_file
        tensors = load_file(Path(folder)/"adapter.safetensors")
        return sum(f.stat().st_size for f in Path(folder).iterdir()), sum(t.nbytes for t in tensors.values())

    # %% ../nbs/21_vblora.ipynb #ae3ffcfb
    if find_spec("peft") and version("peft") == "0.21.2":
        import peft

        def through_a_file(k, h, half=False):
            "The weights of PEFT's VB-LoRA after a compact file was read, and the file's tensors."
            net = nn.Sequential(nn.Linear(1024, 1024))
            ours = copy.deepcopy(net)
            adapter = attach(ours, small(topk=k, num_vectors=h, init_logits_std=20.))
            twin = peft_twin(net, adapter, save_only_topk_weights=True)
            twin = twin.half() if half else twin.eval()
            held = peft.get_peft_model_state_dict(twin)
            peft.set_peft_model_state_dict(twin, held)
            D = twin.base_model.model.get_submodule("0").get_delta_weight("default")
            return D, held, adapter.parts[0].delta()

        D, held, ours = through_a_file(2, 256)
        assert relative(D, ours) < 1e-5 and {t.dtype for n, t in held.items() if "indices" in n} == {torch.int16}
        for k in 4, 6:
            D, _, ours = through_a_file(k, 90)
            assert D.isnan().any() and ours.isfinite().all()
        assert "dtype" in refusal(RuntimeError, through_a_file, 2, 90, half=True)


def test_what_peft_s_implementation_gets_wrong_2():
    # %% ../nbs/21_vblora.ipynb #57fac1f4
    def mlp(kind=nn.Linear):
        "Two linear layers with something in between."
        torch.manual_seed(0)
        return nn.Sequential(kind(48, 32), nn.Tanh(), kind(32, 48)) if kind is nn.Linear else \
            nn.Sequential(kind(32, 48), nn.Tanh(), kind(48, 32))

    def tiny(name="Llama"):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        torch.manual_seed(0)
        gpt2 = tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)
        if name == "GPT-2": return tf.GPT2LMHeadModel(gpt2).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**ids, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2)).eval()

    def small(**changes):
        "A configuration that fits the tiny models."
        return VBLoRA(**dict(num_vectors=10, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def outputs(model):
        "What a model says about a fixed input."
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def relative(a, b):
        "The relative difference of two tensors in the Frobenius norm."
        return ((a - b).norm() / b.norm()).item()

    # %% ../nbs/21_vblora.ipynb #ab493a06
    def block(width=48):
        return nn.Sequential(nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, width))

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def peft_twin(net, adapter, **settings):
        "The same network under PEFT with the numbers of an adapter of ours."
        import peft
        c = adapter.config
        twin = peft.get_peft_model(copy.deepcopy(net), peft.VBLoRAConfig(r=c.r, num_vectors=c.num_vectors,
            vector_length=c.vector_length, topk=c.topk, target_modules=adapter.names,
            fan_in_fan_out=isinstance(net[0], Conv1D), **settings))
        with torch.no_grad():
            twin.base_model.vblora_vector_bank["default"].copy_(adapter.bank)
            for name, part in zip(adapter.names, adapter.parts, strict=True):
                layer, (A, B) = twin.base_model.model.get_submodule(name), part.tables()
                layer.vblora_logits_A["default"].copy_(A), layer.vblora_logits_B["default"].copy_(B)
        return twin

    def dressed(model):
        "Train an adapter's model for a few steps and return its loss."
        ids = torch.arange(24).view(2, 12)
        optimizer = torch.optim.AdamW(parameter_groups(model))
        for _ in range(3):
            optimizer.zero_grad()
            model(ids, labels=ids).loss.backward()
            optimizer.step()
        return model(ids, labels=ids).loss.item()

    def file_bytes(folder):
        "Bytes of both files of an adapter, and of its tensors."
        from safetensors.torch import load_file
        tensors = load_file(Path(folder)/"adapter.safetensors")
        return sum(f.stat().st_size for f in Path(folder).iterdir()), sum(t.nbytes for t in tensors.values())

    # %% ../nbs/21_vblora.ipynb #57021288
    if find_spec("peft") and version("peft") == "0.21.2":
        net, x = mlp(), torch.randn(2, 48)
        ours = copy.deepcopy(net)
        twin = peft_twin(net, attach(ours, small()))
        assert torch.equal(twin.eval()(x, adapter_names=["nobody", "__base__"]), twin(x))
        assert torch._dynamo.explain(twin.train())(x).graph_break_count >= 2
        assert torch._dynamo.explain(ours.train())(x).graph_break_count == 0


def test_what_is_refused():
    # %% ../nbs/21_vblora.ipynb #57fac1f4
    def mlp(kind=nn.Linear):
        "Two linear layers with something in between."
        torch.manual_seed(0)
        return nn.Sequential(kind(48, 32), nn.Tanh(), kind(32, 48)) if kind is nn.Linear else \
            nn.Sequential(kind(32, 48), nn.Tanh(), kind(48, 32))

    def tiny(name="Llama"):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        torch.manual_seed(0)
        gpt2 = tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)
        if name == "GPT-2": return tf.GPT2LMHeadModel(gpt2).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**ids, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2)).eval()

    def small(**changes):
        "A configuration that fits the tiny models."
        return VBLoRA(**dict(num_vectors=10, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def outputs(model):
        "What a model says about a fixed input."
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def relative(a, b):
        "The relative difference of two tensors in the Frobenius norm."
        return ((a - b).norm() / b.norm()).item()

    # %% ../nbs/21_vblora.ipynb #ab493a06
    def block(width=48):
        return nn.Sequential(nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, width))

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def peft_twin(net, adapter, **settings):
        "The same network under PEFT with the numbers of an adapter of ours."
        import peft
        c = adapter.config
        twin = peft.get_peft_model(copy.deepcopy(net), peft.VBLoRAConfig(r=c.r, num_vectors=c.num_vectors,
            vector_length=c.vector_length, topk=c.topk, target_modules=adapter.names,
            fan_in_fan_out=isinstance(net[0], Conv1D), **settings))
        with torch.no_grad():
            twin.base_model.vblora_vector_bank["default"].copy_(adapter.bank)
            for name, part in zip(adapter.names, adapter.parts, strict=True):
                layer, (A, B) = twin.base_model.model.get_submodule(name), part.tables()
                layer.vblora_logits_A["default"].copy_(A), layer.vblora_logits_B["default"].copy_(B)
        return twin

    def dressed(model):
        "Train an adapter's model for a few steps and return its loss."
        ids = torch.arange(24).view(2, 12)
        optimizer = torch.optim.AdamW(parameter_groups(model))
        for _ in range(3):
            optimizer.zero_grad()
            model(ids, labels=ids).loss.backward()
            optimizer.step()
        return model(ids, labels=ids).loss.item()

    def file_bytes(folder):
        "Bytes of both files of an adapter, and of its tensors."
        from safetensors.torch import load_file
        tensors = load_file(Path(folder)/"adapter.safetensors")
        return sum(f.stat().st_size for f in Path(folder).iterdir()), sum(t.nbytes for t in tensors.values())

    # %% ../nbs/21_vblora.ipynb #32f31019
    for settings_ in dict(r=0), dict(topk=0), dict(topk=11), dict(num_vectors=-1), dict(vector_length=2.5), \
            dict(init_logits_std=-.1), dict(init_vector_bank_bound=math.nan), dict(vblora_dropout=1.), \
            dict(packed=True, save_only_topk_weights=False):
        print(refusal(SettingError, small, **settings_))
    model = tiny()
    before = [type(m) for m in model.modules()]
    print(refusal(SettingError, attach, model, small(vector_length=32)))
    assert [type(m) for m in model.modules()] == before and not adapters(model)
    assert count_bytes(small(), {"a": (32, 48)}) > 0
    assert "'a', out=40" in refusal(SettingError, count_bytes, small(), {"a": (40, 48)})


def test_what_is_refused_2():
    # %% ../nbs/21_vblora.ipynb #57fac1f4
    def mlp(kind=nn.Linear):
        "Two linear layers with something in between."
        torch.manual_seed(0)
        return nn.Sequential(kind(48, 32), nn.Tanh(), kind(32, 48)) if kind is nn.Linear else \
            nn.Sequential(kind(32, 48), nn.Tanh(), kind(48, 32))

    def tiny(name="Llama"):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        torch.manual_seed(0)
        gpt2 = tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)
        if name == "GPT-2": return tf.GPT2LMHeadModel(gpt2).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**ids, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2)).eval()

    def small(**changes):
        "A configuration that fits the tiny models."
        return VBLoRA(**dict(num_vectors=10, vector_length=16, init_vector_bank_bound=.5, init_logits_std=1.) | changes)

    def outputs(model):
        "What a model says about a fixed input."
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def relative(a, b):
        "The relative difference of two tensors in the Frobenius norm."
        return ((a - b).norm() / b.norm()).item()

    # %% ../nbs/21_vblora.ipynb #ab493a06
    def block(width=48):
        return nn.Sequential(nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, width))

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def peft_twin(net, adapter, **settings):
        "The same network under PEFT with the numbers of an adapter of ours."
        import peft
        c = adapter.config
        twin = peft.get_peft_model(copy.deepcopy(net), peft.VBLoRAConfig(r=c.r, num_vectors=c.num_vectors,
            vector_length=c.vector_length, topk=c.topk, target_modules=adapter.names,
            fan_in_fan_out=isinstance(net[0], Conv1D), **settings))
        with torch.no_grad():
            twin.base_model.vblora_vector_bank["default"].copy_(adapter.bank)
            for name, part in zip(adapter.names, adapter.parts, strict=True):
                layer, (A, B) = twin.base_model.model.get_submodule(name), part.tables()
                layer.vblora_logits_A["default"].copy_(A), layer.vblora_logits_B["default"].copy_(B)
        return twin

    def dressed(model):
        "Train an adapter's model for a few steps and return its loss."
        ids = torch.arange(24).view(2, 12)
        optimizer = torch.optim.AdamW(parameter_groups(model))
        for _ in range(3):
            optimizer.zero_grad()
            model(ids, labels=ids).loss.backward()
            optimizer.step()
        return model(ids, labels=ids).loss.item()

    def file_bytes(folder):
        "Bytes of both files of an adapter, and of its tensors."
        from safetensors.torch import load_file
        tensors = load_file(Path(folder)/"adapter.safetensors")
        return sum(f.stat().st_size for f in Path(folder).iterdir()), sum(t.nbytes for t in tensors.values())

    # %% ../nbs/21_vblora.ipynb #df3277f3
    def damage(folder, **changes):
        "Write an adapter's file again with other tensors."
        file = Path(folder)/"adapter.safetensors"
        held = {k: t for k, t in (read_tensors(file) | changes).items() if t is not None}
        write_tensors(file, held, read_metadata(file))

    # %% ../nbs/21_vblora.ipynb #1a4663b6
    model = tiny()
    attach(model, small())
    byte = torch.uint8
    for changes in dict(indices=None), dict(indices=torch.zeros(1, 2, dtype=byte)), dict(weights=-torch.ones(232, 1)), \
            dict(indices=torch.full((232, 2), 10, dtype=byte)), dict(bank=torch.full((10, 16), math.nan)), \
            dict(weights=torch.full((232, 1), 1.1)):
        with tempfile.TemporaryDirectory() as d:
            damage(save_adapter(model, d), **changes)
            other = tiny()
            print(refusal(CheckpointError, load_adapter, other, d).replace(d, "DIR"))
            assert not adapters(other)
