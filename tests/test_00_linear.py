from pathlm.linear import *
import warnings
import torch
import torch.nn.functional as F
from torch import nn
from pathlm.base import MergeError
from pathlm.base import NonFiniteError
from pathlm.base import SettingError
from pathlm.base import UnknownModuleError
import math
import numpy as np
import transformers as tf
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from transformers.pytorch_utils import Conv1D


def test_one_orientation():
    # %% ../nbs/00_linear.ipynb #73731b39
    def tiny(name):
        "A random model of three blocks, a few thousand weights, with the layers of its family."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
        torch.manual_seed(0)
        return {
            "Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
            "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=3, n_head=4)),
            "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32)),
            "GPT-NeoX": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**common)),
            "Phi-3": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**common, num_key_value_heads=2)),
            "BERT": lambda: tf.BertForMaskedLM(tf.BertConfig(**common)),
        }[name]().eval()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    law = settings(deadline=None, max_examples=25, derandomize=True)

    # %% ../nbs/00_linear.ipynb #12115a99
    layer = tiny("GPT-2").transformer.h[0].mlp.c_fc
    W = effective_weight(layer)
    print(tuple(layer.weight.shape), "is stored,", tuple(W.shape), "is the effective weight")

    # %% ../nbs/00_linear.ipynb #70e10149
    x = torch.randn(5, 32)
    torch.testing.assert_close(layer(x), F.linear(x, W, layer.bias))
    assert W.data_ptr() == layer.weight.data_ptr()


def test_one_orientation_2():
    # %% ../nbs/00_linear.ipynb #73731b39
    def tiny(name):
        "A random model of three blocks, a few thousand weights, with the layers of its family."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
        torch.manual_seed(0)
        return {
            "Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
            "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=3, n_head=4)),
            "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32)),
            "GPT-NeoX": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**common)),
            "Phi-3": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**common, num_key_value_heads=2)),
            "BERT": lambda: tf.BertForMaskedLM(tf.BertConfig(**common)),
        }[name]().eval()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    law = settings(deadline=None, max_examples=25, derandomize=True)

    # %% ../nbs/00_linear.ipynb #12115a99
    layer = tiny("GPT-2").transformer.h[0].mlp.c_fc
    W = effective_weight(layer)
    print(tuple(layer.weight.shape), "is stored,", tuple(W.shape), "is the effective weight")

    # %% ../nbs/00_linear.ipynb #627c845c
    @law
    @given(st.sampled_from([nn.Linear, Conv1D]), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
    def one_orientation(kind, out, in_, seed):
        torch.manual_seed(seed)
        layer = kind(out, in_) if kind is Conv1D else kind(in_, out)
        x = torch.randn(2, 3, in_)
        torch.testing.assert_close(layer(x), F.linear(x, effective_weight(layer), layer.bias))
        assert effective_weight(layer).shape == (out, in_)

    one_orientation()


def test_one_orientation_3():
    # %% ../nbs/00_linear.ipynb #73731b39
    def tiny(name):
        "A random model of three blocks, a few thousand weights, with the layers of its family."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
        torch.manual_seed(0)
        return {
            "Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
            "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=3, n_head=4)),
            "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32)),
            "GPT-NeoX": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**common)),
            "Phi-3": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**common, num_key_value_heads=2)),
            "BERT": lambda: tf.BertForMaskedLM(tf.BertConfig(**common)),
        }[name]().eval()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    law = settings(deadline=None, max_examples=25, derandomize=True)

    # %% ../nbs/00_linear.ipynb #12115a99
    layer = tiny("GPT-2").transformer.h[0].mlp.c_fc
    W = effective_weight(layer)
    print(tuple(layer.weight.shape), "is stored,", tuple(W.shape), "is the effective weight")

    # %% ../nbs/00_linear.ipynb #a5d0252a
    class Doubled(nn.Linear):
        def effective_weight(self): return 2*self.weight

    class Unread(nn.Module):
        out_features, in_features = 3, 5
        def effective_weight(self): raise AssertionError("a shape was asked for, and the weight was computed")

    layer = Doubled(5, 3)
    assert torch.equal(stored_weight(layer), 2*layer.weight) and weight_shape(Unread()) == weight_shape(layer) == (3, 5)
    layer.kind = Conv1D
    assert torch.equal(stored_weight(layer), 2*layer.weight.T) and weight_shape(Conv1D(3, 5)) == (3, 5)


def test_one_orientation_4():
    # %% ../nbs/00_linear.ipynb #73731b39
    def tiny(name):
        "A random model of three blocks, a few thousand weights, with the layers of its family."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
        torch.manual_seed(0)
        return {
            "Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
            "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=3, n_head=4)),
            "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32)),
            "GPT-NeoX": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**common)),
            "Phi-3": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**common, num_key_value_heads=2)),
            "BERT": lambda: tf.BertForMaskedLM(tf.BertConfig(**common)),
        }[name]().eval()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    law = settings(deadline=None, max_examples=25, derandomize=True)

    # %% ../nbs/00_linear.ipynb #12115a99
    layer = tiny("GPT-2").transformer.h[0].mlp.c_fc
    W = effective_weight(layer)
    print(tuple(layer.weight.shape), "is stored,", tuple(W.shape), "is the effective weight")

    # %% ../nbs/00_linear.ipynb #6cd59124
    assert not is_linear(nn.Conv1d(4, 4, 1)) and not is_linear(nn.Embedding(4, 4)) and is_linear(Conv1D(4, 4))
    print(refusal(SettingError, effective_weight, nn.Embedding(4, 4)))


def test_writing_a_weight():
    # %% ../nbs/00_linear.ipynb #73731b39
    def tiny(name):
        "A random model of three blocks, a few thousand weights, with the layers of its family."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
        torch.manual_seed(0)
        return {
            "Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
            "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=3, n_head=4)),
            "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32)),
            "GPT-NeoX": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**common)),
            "Phi-3": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**common, num_key_value_heads=2)),
            "BERT": lambda: tf.BertForMaskedLM(tf.BertConfig(**common)),
        }[name]().eval()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    law = settings(deadline=None, max_examples=25, derandomize=True)

    # %% ../nbs/00_linear.ipynb #16e8a700
    @law
    @given(st.sampled_from([nn.Linear, Conv1D]), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
           st.integers(1, 9), st.integers(1, 9))
    def written_is_read(kind, dtype, out, in_):
        layer = (kind(out, in_) if kind is Conv1D else kind(in_, out)).to(dtype)
        W = torch.randn(out, in_, dtype=torch.float64)
        set_weight(layer, W)
        assert torch.equal(effective_weight(layer), W.to(dtype)) and layer.weight.requires_grad

    written_is_read()


def test_writing_a_weight_2():
    # %% ../nbs/00_linear.ipynb #73731b39
    def tiny(name):
        "A random model of three blocks, a few thousand weights, with the layers of its family."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
        torch.manual_seed(0)
        return {
            "Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
            "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=3, n_head=4)),
            "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32)),
            "GPT-NeoX": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**common)),
            "Phi-3": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**common, num_key_value_heads=2)),
            "BERT": lambda: tf.BertForMaskedLM(tf.BertConfig(**common)),
        }[name]().eval()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    law = settings(deadline=None, max_examples=25, derandomize=True)

    # %% ../nbs/00_linear.ipynb #3a1cbe8a
    layer = nn.Linear(3, 2).half()
    old = layer.weight.clone()
    big = torch.tensor([[7e4, 0, 0], [float("nan"), 0, 0]])
    print(refusal(NonFiniteError, set_weight, layer, big, "down_proj"))
    print(refusal(SettingError, set_weight, layer, torch.zeros(3, 2), "down_proj"))
    assert torch.equal(layer.weight, old)


def test_finding_the_layers():
    # %% ../nbs/00_linear.ipynb #73731b39
    def tiny(name):
        "A random model of three blocks, a few thousand weights, with the layers of its family."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
        torch.manual_seed(0)
        return {
            "Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
            "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=3, n_head=4)),
            "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32)),
            "GPT-NeoX": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**common)),
            "Phi-3": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**common, num_key_value_heads=2)),
            "BERT": lambda: tf.BertForMaskedLM(tf.BertConfig(**common)),
        }[name]().eval()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    law = settings(deadline=None, max_examples=25, derandomize=True)

    # %% ../nbs/00_linear.ipynb #861cdb96
    for family in "Llama", "GPT-2", "OPT", "GPT-NeoX", "Phi-3", "BERT":
        found = {n: effective_weight(m) for n, m in linears(tiny(family)).items() if ".0." in n}
        print(f"{family:9}", ", ".join(f"{n.rpartition('.')[2]} {len(W)}×{W.shape[1]}" for n, W in found.items()))

    # %% ../nbs/00_linear.ipynb #ffeef949
    counts = {"Llama": 3*7, "GPT-2": 3*4, "OPT": 3*6, "GPT-NeoX": 3*4, "Phi-3": 3*4, "BERT": 3*6 + 1}
    for family, count in counts.items():
        model = tiny(family)
        found = linears(model)
        assert len(found) == count and all(model.get_submodule(n) is m for n, m in found.items())
        assert [m for _, m in walk(model) if m not in found.values()] == [model.get_output_embeddings()]


def test_finding_the_layers_2():
    # %% ../nbs/00_linear.ipynb #73731b39
    def tiny(name):
        "A random model of three blocks, a few thousand weights, with the layers of its family."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
        torch.manual_seed(0)
        return {
            "Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
            "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=3, n_head=4)),
            "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32)),
            "GPT-NeoX": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**common)),
            "Phi-3": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**common, num_key_value_heads=2)),
            "BERT": lambda: tf.BertForMaskedLM(tf.BertConfig(**common)),
        }[name]().eval()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    law = settings(deadline=None, max_examples=25, derandomize=True)

    # %% ../nbs/00_linear.ipynb #861cdb96
    for family in "Llama", "GPT-2", "OPT", "GPT-NeoX", "Phi-3", "BERT":
        found = {n: effective_weight(m) for n, m in linears(tiny(family)).items() if ".0." in n}
        print(f"{family:9}", ", ".join(f"{n.rpartition('.')[2]} {len(W)}×{W.shape[1]}" for n, W in found.items()))

    # %% ../nbs/00_linear.ipynb #50c33541
    def share(config):
        "Millions of parameters, and the shares of linear layers and of embeddings among them."
        with torch.device("meta"): model = tf.AutoModelForCausalLM.from_config(config)
        total = sum(p.numel() for p in model.parameters())
        linear = sum(effective_weight(m).numel() for m in linears(model).values())
        tables = {id(e.weight): e.weight.numel() for e in [model.get_output_embeddings(), *model.modules()]
                  if isinstance(e, nn.Embedding) or e is model.get_output_embeddings()}
        return total / 1e6, linear / total, sum(tables.values()) / total

    # %% ../nbs/00_linear.ipynb #1e7b2c11
    families = {"GPT-2 124M": tf.GPT2Config(), "OPT 125M": tf.OPTConfig(), "Phi-3 3.8B": tf.Phi3Config(),
                "Llama 6.7B": tf.LlamaConfig(), "GPT-NeoX 20B": tf.GPTNeoXConfig()}

    # %% ../nbs/00_linear.ipynb #14fd3818
    for family, config in families.items():
        total, linear, tables = share(config)
        print(f"{family:13} {total:8.0f} M, {linear:.1%} linear, {tables:.1%} embeddings")

    # %% ../nbs/00_linear.ipynb #cbee97ec
    d, f = 4096, 11008
    total, linear, _ = share(tf.LlamaConfig())
    assert round(linear * total * 1e6) == 32 * (4*d*d + 3*d*f) and linear > .95


def test_blocks():
    # %% ../nbs/00_linear.ipynb #73731b39
    def tiny(name):
        "A random model of three blocks, a few thousand weights, with the layers of its family."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
        torch.manual_seed(0)
        return {
            "Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
            "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=3, n_head=4)),
            "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32)),
            "GPT-NeoX": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**common)),
            "Phi-3": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**common, num_key_value_heads=2)),
            "BERT": lambda: tf.BertForMaskedLM(tf.BertConfig(**common)),
        }[name]().eval()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    law = settings(deadline=None, max_examples=25, derandomize=True)

    # %% ../nbs/00_linear.ipynb #8a0f1896
    names = {"Llama": "model.layers", "GPT-2": "transformer.h", "OPT": "model.decoder.layers",
             "GPT-NeoX": "gpt_neox.layers", "Phi-3": "model.layers", "BERT": "bert.encoder.layer"}
    for family, name in names.items():
        found, stack = blocks(tiny(family))
        assert found == name and len(stack) == 3
        at = depths(tiny(family))
        assert {None, 0, 1, 2} == set(at.values()) and all(f"{name}.{i}." in n for n, i in at.items() if i is not None)
    print(depths(tiny("Llama"))["model.layers.2.mlp.down_proj"], depths(tiny("Llama"))["lm_head"])


def test_blocks_2():
    # %% ../nbs/00_linear.ipynb #73731b39
    def tiny(name):
        "A random model of three blocks, a few thousand weights, with the layers of its family."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
        torch.manual_seed(0)
        return {
            "Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
            "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=3, n_head=4)),
            "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32)),
            "GPT-NeoX": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**common)),
            "Phi-3": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**common, num_key_value_heads=2)),
            "BERT": lambda: tf.BertForMaskedLM(tf.BertConfig(**common)),
        }[name]().eval()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    law = settings(deadline=None, max_examples=25, derandomize=True)

    # %% ../nbs/00_linear.ipynb #5aaf7725
    inner = lambda: nn.ModuleDict({"experts": nn.ModuleList([nn.Linear(2, 2) for _ in range(9)])})
    model = nn.ModuleDict({"short": nn.ModuleList([nn.Linear(2, 2)]), "long": nn.ModuleList([inner(), inner()])})
    assert blocks(model)[0] == "long" and depths(model)["long.1.experts.8"] == 1 and depths(model)["short.0"] is None
    print(refusal(UnknownModuleError, blocks, nn.Sequential(nn.Linear(2, 2))))


def test_choosing_layers():
    # %% ../nbs/00_linear.ipynb #73731b39
    def tiny(name):
        "A random model of three blocks, a few thousand weights, with the layers of its family."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
        torch.manual_seed(0)
        return {
            "Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
            "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=3, n_head=4)),
            "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32)),
            "GPT-NeoX": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**common)),
            "Phi-3": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**common, num_key_value_heads=2)),
            "BERT": lambda: tf.BertForMaskedLM(tf.BertConfig(**common)),
        }[name]().eval()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    law = settings(deadline=None, max_examples=25, derandomize=True)

    # %% ../nbs/00_linear.ipynb #204c6a9d
    name = "model.layers.0.mlp.down_proj"
    assert all(matches(name, t) for t in ("down_proj", "mlp.down_proj", name, r".*\.(up|down)_proj", r".*\.0\..*"))
    assert not any(matches(name, t) for t in ("proj", "_proj", "own_proj", "down_pro", r"\.0\.", "*_proj", ""))


def test_choosing_layers_2():
    # %% ../nbs/00_linear.ipynb #73731b39
    def tiny(name):
        "A random model of three blocks, a few thousand weights, with the layers of its family."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
        torch.manual_seed(0)
        return {
            "Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
            "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=3, n_head=4)),
            "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32)),
            "GPT-NeoX": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**common)),
            "Phi-3": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**common, num_key_value_heads=2)),
            "BERT": lambda: tf.BertForMaskedLM(tf.BertConfig(**common)),
        }[name]().eval()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    law = settings(deadline=None, max_examples=25, derandomize=True)

    # %% ../nbs/00_linear.ipynb #0db1af67
    every = [n for n, _ in walk(tiny("Llama"))]
    for name in "q_prj", "model.layers.0.mlp.dwn_proj", "query": print(f"{name}: {near(name, every)}")

    # %% ../nbs/00_linear.ipynb #37ec72b9
    assert shared(tiny("Llama")) == {}
    assert shared(tiny("GPT-2"))["lm_head.weight"] == ["transformer.wte.weight", "lm_head.weight"]


def test_choosing_layers_3():
    # %% ../nbs/00_linear.ipynb #73731b39
    def tiny(name):
        "A random model of three blocks, a few thousand weights, with the layers of its family."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
        torch.manual_seed(0)
        return {
            "Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
            "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=3, n_head=4)),
            "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32)),
            "GPT-NeoX": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**common)),
            "Phi-3": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**common, num_key_value_heads=2)),
            "BERT": lambda: tf.BertForMaskedLM(tf.BertConfig(**common)),
        }[name]().eval()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    law = settings(deadline=None, max_examples=25, derandomize=True)

    # %% ../nbs/00_linear.ipynb #0db1af67
    every = [n for n, _ in walk(tiny("Llama"))]
    for name in "q_prj", "model.layers.0.mlp.dwn_proj", "query": print(f"{name}: {near(name, every)}")

    # %% ../nbs/00_linear.ipynb #7943f943
    model = tiny("Llama")
    print(*select(model, ["q_proj", "mlp.down_proj"], layers=[0, -1]), sep="\n")

    # %% ../nbs/00_linear.ipynb #8e857893
    assert select(model, "down_proj") == select(model, ["down_proj"]) == select(model, r".*\.mlp\.down_proj")
    assert select(model, ["v_proj", "q_proj", "q_proj"]) == select(model, r".*\.[qv]_proj")
    assert select(model) == linears(model) == select(model, layers=range(3)) == select(model, layers=[-3, -2, -1, 0])
    assert list(select(model, layers=[1])) == [n for n, i in depths(model).items() if i == 1]
    assert list(select(model, ["lm_head", "up_proj"], layers=None))[-1] == "lm_head"


def test_choosing_layers_4():
    # %% ../nbs/00_linear.ipynb #73731b39
    def tiny(name):
        "A random model of three blocks, a few thousand weights, with the layers of its family."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
        torch.manual_seed(0)
        return {
            "Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
            "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=3, n_head=4)),
            "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32)),
            "GPT-NeoX": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**common)),
            "Phi-3": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**common, num_key_value_heads=2)),
            "BERT": lambda: tf.BertForMaskedLM(tf.BertConfig(**common)),
        }[name]().eval()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    law = settings(deadline=None, max_examples=25, derandomize=True)

    # %% ../nbs/00_linear.ipynb #0db1af67
    every = [n for n, _ in walk(tiny("Llama"))]
    for name in "q_prj", "model.layers.0.mlp.dwn_proj", "query": print(f"{name}: {near(name, every)}")

    # %% ../nbs/00_linear.ipynb #7943f943
    model = tiny("Llama")
    print(*select(model, ["q_proj", "mlp.down_proj"], layers=[0, -1]), sep="\n")

    # %% ../nbs/00_linear.ipynb #4f839b26
    small = dict(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    mixture = tf.MixtralForCausalLM(tf.MixtralConfig(**small, num_key_value_heads=2, num_local_experts=3))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert {n.rpartition(".")[2] for n in select(mixture)} == {"q_proj", "k_proj", "v_proj", "o_proj"}
        select(mixture, "q_proj")
    print(told[0].message)
    assert len(told) == 1 and "4 parameters of MixtralForCausalLM" in str(told[0].message)
    assert not any(stacks(tiny(name)) for name in ("Llama", "GPT-2", "OPT", "GPT-NeoX", "Phi-3", "BERT"))


def test_choosing_layers_5():
    # %% ../nbs/00_linear.ipynb #73731b39
    def tiny(name):
        "A random model of three blocks, a few thousand weights, with the layers of its family."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
        torch.manual_seed(0)
        return {
            "Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
            "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=3, n_head=4)),
            "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32)),
            "GPT-NeoX": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**common)),
            "Phi-3": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**common, num_key_value_heads=2)),
            "BERT": lambda: tf.BertForMaskedLM(tf.BertConfig(**common)),
        }[name]().eval()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    law = settings(deadline=None, max_examples=25, derandomize=True)

    # %% ../nbs/00_linear.ipynb #0db1af67
    every = [n for n, _ in walk(tiny("Llama"))]
    for name in "q_prj", "model.layers.0.mlp.dwn_proj", "query": print(f"{name}: {near(name, every)}")

    # %% ../nbs/00_linear.ipynb #7943f943
    model = tiny("Llama")
    print(*select(model, ["q_proj", "mlp.down_proj"], layers=[0, -1]), sep="\n")

    # %% ../nbs/00_linear.ipynb #5bd316b1
    small = dict(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4)
    for family in "Bert", "Llama", "Roberta":
        config = getattr(tf, f"{family}Config")(**small, pad_token_id=0)
        judge = getattr(tf, f"{family}ForSequenceClassification")(config)
        head = {name for name, _ in walk(judge)} - linears(judge).keys()
        assert head and all(name.startswith(("classifier", "score")) for name in head)
        assert select(judge, list(head)).keys() == head


def test_choosing_layers_6():
    # %% ../nbs/00_linear.ipynb #73731b39
    def tiny(name):
        "A random model of three blocks, a few thousand weights, with the layers of its family."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
        torch.manual_seed(0)
        return {
            "Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
            "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=3, n_head=4)),
            "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32)),
            "GPT-NeoX": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**common)),
            "Phi-3": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**common, num_key_value_heads=2)),
            "BERT": lambda: tf.BertForMaskedLM(tf.BertConfig(**common)),
        }[name]().eval()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    law = settings(deadline=None, max_examples=25, derandomize=True)

    # %% ../nbs/00_linear.ipynb #0db1af67
    every = [n for n, _ in walk(tiny("Llama"))]
    for name in "q_prj", "model.layers.0.mlp.dwn_proj", "query": print(f"{name}: {near(name, every)}")

    # %% ../nbs/00_linear.ipynb #7943f943
    model = tiny("Llama")
    print(*select(model, ["q_proj", "mlp.down_proj"], layers=[0, -1]), sep="\n")

    # %% ../nbs/00_linear.ipynb #0fb146d0
    print(refusal(UnknownModuleError, select, model, "q_prj"))
    print(refusal(UnknownModuleError, select, model, ["q_proj", "c_attn"]))
    print(refusal(UnknownModuleError, select, model, "lm_head", layers=[0]))
    print(refusal(SettingError, select, model, "q_proj", layers=[0, 3]))
    print(refusal(SettingError, select, tiny("GPT-2"), "lm_head"))

    # %% ../nbs/00_linear.ipynb #28ea6114
    assert "near: q_proj" in refusal(UnknownModuleError, select, model, "q_prj")
    assert "'embed_tokens' (of Embedding)" in refusal(UnknownModuleError, select, model, "embed_tokens")
    assert "'c_attn'" in refusal(UnknownModuleError, select, model, ["q_proj", "c_attn"])
    assert "leave no layer" in refusal(UnknownModuleError, select, model, [])
    assert "[3] outside the 3 blocks" in refusal(SettingError, select, model, "q_proj", layers=[0, 3])
    assert "one parameter" in refusal(SettingError, select, tiny("GPT-2"), "lm_head")


def test_replacing():
    # %% ../nbs/00_linear.ipynb #73731b39
    def tiny(name):
        "A random model of three blocks, a few thousand weights, with the layers of its family."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
        torch.manual_seed(0)
        return {
            "Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
            "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=3, n_head=4)),
            "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32)),
            "GPT-NeoX": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**common)),
            "Phi-3": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**common, num_key_value_heads=2)),
            "BERT": lambda: tf.BertForMaskedLM(tf.BertConfig(**common)),
        }[name]().eval()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    law = settings(deadline=None, max_examples=25, derandomize=True)

    # %% ../nbs/00_linear.ipynb #17a0c656
    @law
    @given(st.sampled_from([nn.Linear, Conv1D]), st.booleans(), st.integers(1, 9), st.integers(1, 9),
           st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    def a_weight_survives(kind, biased, out, in_, dtype):
        W, bias = torch.randn(out, in_).to(dtype), torch.randn(out).to(dtype) if biased else None
        state = torch.get_rng_state()
        layer = linear_from(W, bias, kind)
        assert torch.equal(torch.get_rng_state(), state) and type(layer) is kind
        assert torch.equal(effective_weight(layer), W) and effective_weight(layer).dtype == dtype
        x = torch.randn(3, in_).to(dtype)
        torch.testing.assert_close(layer(x), F.linear(x, W, bias))

    a_weight_survives()


def test_merging():
    # %% ../nbs/00_linear.ipynb #73731b39
    def tiny(name):
        "A random model of three blocks, a few thousand weights, with the layers of its family."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
        torch.manual_seed(0)
        return {
            "Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
            "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=3, n_head=4)),
            "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32)),
            "GPT-NeoX": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**common)),
            "Phi-3": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**common, num_key_value_heads=2)),
            "BERT": lambda: tf.BertForMaskedLM(tf.BertConfig(**common)),
        }[name]().eval()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    law = settings(deadline=None, max_examples=25, derandomize=True)

    # %% ../nbs/00_linear.ipynb #ad0a6265
    class LowRank(nn.Module):
        def __init__(self, layer, r):
            super().__init__()
            U, S, Vh = torch.linalg.svd(effective_weight(layer).detach(), full_matrices=False)
            self.A, self.B, self.bias = nn.Parameter(U[:, :r] * S[:r]), nn.Parameter(Vh[:r]), layer.bias

        def effective_weight(self): return self.A @ self.B

        def forward(self, x): return F.linear(F.linear(x, self.B), self.A, self.bias)

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    # %% ../nbs/00_linear.ipynb #30523659
    for family in "Llama", "GPT-2", "OPT", "GPT-NeoX", "Phi-3", "BERT":
        model, fresh = tiny(family), tiny(family)
        before = {name: type(layer) for name, layer in walk(model)}
        for name, layer in select(model).items(): replace(model, name, LowRank(layer, 3))
        assert [n for n, _ in walk(model)] == list(before)
        pruned = logits(model)
        assert not torch.allclose(pruned, logits(fresh), atol=1e-3)
        torch.testing.assert_close(logits(merge(model)), pruned, rtol=1e-4, atol=1e-5)
        assert {name: type(layer) for name, layer in walk(model)} == before
        fresh.load_state_dict(model.state_dict())
        assert torch.equal(logits(fresh), logits(model))
        assert torch.equal(logits(unmerge(model)), pruned) and not hasattr(model, "unmerged")


def test_merging_2():
    # %% ../nbs/00_linear.ipynb #73731b39
    def tiny(name):
        "A random model of three blocks, a few thousand weights, with the layers of its family."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
        torch.manual_seed(0)
        return {
            "Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
            "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=3, n_head=4)),
            "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32)),
            "GPT-NeoX": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**common)),
            "Phi-3": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**common, num_key_value_heads=2)),
            "BERT": lambda: tf.BertForMaskedLM(tf.BertConfig(**common)),
        }[name]().eval()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    law = settings(deadline=None, max_examples=25, derandomize=True)

    # %% ../nbs/00_linear.ipynb #ad0a6265
    class LowRank(nn.Module):
        def __init__(self, layer, r):
            super().__init__()
            U, S, Vh = torch.linalg.svd(effective_weight(layer).detach(), full_matrices=False)
            self.A, self.B, self.bias = nn.Parameter(U[:, :r] * S[:r]), nn.Parameter(Vh[:r]), layer.bias

        def effective_weight(self): return self.A @ self.B

        def forward(self, x): return F.linear(F.linear(x, self.B), self.A, self.bias)

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    # %% ../nbs/00_linear.ipynb #68a41954
    model = tiny("GPT-2")
    before = {name: effective_weight(layer).clone() for name, layer in linears(model).items()}
    for name, layer in select(model).items(): replace(model, name, LowRank(layer, 32))
    merge(model)
    for name, layer in linears(model).items():
        torch.testing.assert_close(effective_weight(layer), before[name], atol=1e-6, rtol=1e-5)


def test_merging_3():
    # %% ../nbs/00_linear.ipynb #73731b39
    def tiny(name):
        "A random model of three blocks, a few thousand weights, with the layers of its family."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
        torch.manual_seed(0)
        return {
            "Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
            "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=3, n_head=4)),
            "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32)),
            "GPT-NeoX": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**common)),
            "Phi-3": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**common, num_key_value_heads=2)),
            "BERT": lambda: tf.BertForMaskedLM(tf.BertConfig(**common)),
        }[name]().eval()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    law = settings(deadline=None, max_examples=25, derandomize=True)

    # %% ../nbs/00_linear.ipynb #ad0a6265
    class LowRank(nn.Module):
        def __init__(self, layer, r):
            super().__init__()
            U, S, Vh = torch.linalg.svd(effective_weight(layer).detach(), full_matrices=False)
            self.A, self.B, self.bias = nn.Parameter(U[:, :r] * S[:r]), nn.Parameter(Vh[:r]), layer.bias

        def effective_weight(self): return self.A @ self.B

        def forward(self, x): return F.linear(F.linear(x, self.B), self.A, self.bias)

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    # %% ../nbs/00_linear.ipynb #38c8905b
    model, name = tiny("GPT-2").train(), "transformer.h.1.attn.c_proj"
    for r in 8, 4: layer = replace(model, name, LowRank(model.get_submodule(name), r))
    assert layer.kind is Conv1D and layer.training and layer.A.shape == (32, 4)
    print(refusal(UnknownModuleError, replace, model, "transformer.h.1.attn.c_porj", layer))
    with torch.no_grad(): layer.A[0, 0] = float("inf")
    print(refusal(NonFiniteError, merge, model))
    assert model.get_submodule(name) is layer and not hasattr(model, "unmerged")


def test_merging_4():
    # %% ../nbs/00_linear.ipynb #73731b39
    def tiny(name):
        "A random model of three blocks, a few thousand weights, with the layers of its family."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
        torch.manual_seed(0)
        return {
            "Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
            "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=3, n_head=4)),
            "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32)),
            "GPT-NeoX": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**common)),
            "Phi-3": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**common, num_key_value_heads=2)),
            "BERT": lambda: tf.BertForMaskedLM(tf.BertConfig(**common)),
        }[name]().eval()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    law = settings(deadline=None, max_examples=25, derandomize=True)

    # %% ../nbs/00_linear.ipynb #ad0a6265
    class LowRank(nn.Module):
        def __init__(self, layer, r):
            super().__init__()
            U, S, Vh = torch.linalg.svd(effective_weight(layer).detach(), full_matrices=False)
            self.A, self.B, self.bias = nn.Parameter(U[:, :r] * S[:r]), nn.Parameter(Vh[:r]), layer.bias

        def effective_weight(self): return self.A @ self.B

        def forward(self, x): return F.linear(F.linear(x, self.B), self.A, self.bias)

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    # %% ../nbs/00_linear.ipynb #68ba3763
    class Upper(nn.Module):
        def __init__(self, W, update=None):
            super().__init__()
            self.weight, self.update, self.bias = nn.Parameter(W.triu()), update, None

        def effective_weight(self): return self.weight if self.update is None else self.weight + self.update

        def forward(self, x): return F.linear(x, self.effective_weight(), self.bias)

        def merged(self):
            lost = int(self.effective_weight().tril(-1).count_nonzero())
            if lost: raise MergeError(f"{lost} weights below the diagonal are no longer 0", lost)
            return self if self.update is None else Upper(self.effective_weight())

    # %% ../nbs/00_linear.ipynb #ad998565
    net, x = nn.Sequential(Upper(torch.ones(3, 3)), Upper(torch.ones(3, 3), torch.ones(3, 3).triu())), torch.eye(3)
    first, y = net[0], net(x)
    assert net[0] is first and torch.equal(merge(net)(x), y) and type(net[1]) is Upper and net[1].update is None
    assert torch.equal(unmerge(net)(x), y) and net[1].update is not None
    net[0].update = net[1].update = torch.ones(3, 3)
    print(refusal(MergeError, merge, net))
    assert net[0] is first and not hasattr(net, "unmerged")
    y = net(x)
    assert torch.equal(densify(net)(x), y) and type(net[0]) is nn.Linear
    assert "call unmerge or bake" in refusal(SettingError, check_unmerged, net) and torch.equal(unmerge(net)(x), y)
    check_unmerged(net)


def test_merging_5():
    # %% ../nbs/00_linear.ipynb #73731b39
    def tiny(name):
        "A random model of three blocks, a few thousand weights, with the layers of its family."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
        torch.manual_seed(0)
        return {
            "Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
            "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=3, n_head=4)),
            "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32)),
            "GPT-NeoX": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**common)),
            "Phi-3": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**common, num_key_value_heads=2)),
            "BERT": lambda: tf.BertForMaskedLM(tf.BertConfig(**common)),
        }[name]().eval()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    law = settings(deadline=None, max_examples=25, derandomize=True)

    # %% ../nbs/00_linear.ipynb #ad0a6265
    class LowRank(nn.Module):
        def __init__(self, layer, r):
            super().__init__()
            U, S, Vh = torch.linalg.svd(effective_weight(layer).detach(), full_matrices=False)
            self.A, self.B, self.bias = nn.Parameter(U[:, :r] * S[:r]), nn.Parameter(Vh[:r]), layer.bias

        def effective_weight(self): return self.A @ self.B

        def forward(self, x): return F.linear(F.linear(x, self.B), self.A, self.bias)

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    # %% ../nbs/00_linear.ipynb #68ba3763
    class Upper(nn.Module):
        def __init__(self, W, update=None):
            super().__init__()
            self.weight, self.update, self.bias = nn.Parameter(W.triu()), update, None

        def effective_weight(self): return self.weight if self.update is None else self.weight + self.update

        def forward(self, x): return F.linear(x, self.effective_weight(), self.bias)

        def merged(self):
            lost = int(self.effective_weight().tril(-1).count_nonzero())
            if lost: raise MergeError(f"{lost} weights below the diagonal are no longer 0", lost)
            return self if self.update is None else Upper(self.effective_weight())

    # %% ../nbs/00_linear.ipynb #c1d36e0c
    layer = nn.Linear(3, 2)
    assert torch.equal(float_weight("a", layer), layer.weight) and not float_weight("a", layer).requires_grad
    print(refusal(SettingError, float_weight, "model.layers.0.up_proj", Upper(torch.eye(3))))


def test_merging_6():
    # %% ../nbs/00_linear.ipynb #73731b39
    def tiny(name):
        "A random model of three blocks, a few thousand weights, with the layers of its family."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
        torch.manual_seed(0)
        return {
            "Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
            "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=3, n_head=4)),
            "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32)),
            "GPT-NeoX": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**common)),
            "Phi-3": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**common, num_key_value_heads=2)),
            "BERT": lambda: tf.BertForMaskedLM(tf.BertConfig(**common)),
        }[name]().eval()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    law = settings(deadline=None, max_examples=25, derandomize=True)

    # %% ../nbs/00_linear.ipynb #ad0a6265
    class LowRank(nn.Module):
        def __init__(self, layer, r):
            super().__init__()
            U, S, Vh = torch.linalg.svd(effective_weight(layer).detach(), full_matrices=False)
            self.A, self.B, self.bias = nn.Parameter(U[:, :r] * S[:r]), nn.Parameter(Vh[:r]), layer.bias

        def effective_weight(self): return self.A @ self.B

        def forward(self, x): return F.linear(F.linear(x, self.B), self.A, self.bias)

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    # %% ../nbs/00_linear.ipynb #68ba3763
    class Upper(nn.Module):
        def __init__(self, W, update=None):
            super().__init__()
            self.weight, self.update, self.bias = nn.Parameter(W.triu()), update, None

        def effective_weight(self): return self.weight if self.update is None else self.weight + self.update

        def forward(self, x): return F.linear(x, self.effective_weight(), self.bias)

        def merged(self):
            lost = int(self.effective_weight().tril(-1).count_nonzero())
            if lost: raise MergeError(f"{lost} weights below the diagonal are no longer 0", lost)
            return self if self.update is None else Upper(self.effective_weight())

    # %% ../nbs/00_linear.ipynb #507d1fe3
    layer = nn.Linear(3, 2)
    assert torch.equal(dense_weight("a", layer), layer.weight)
    layer.mask = torch.ones(2, 3, dtype=torch.bool)
    print(refusal(SettingError, dense_weight, "model.layers.0.up_proj", layer))


def test_merging_7():
    # %% ../nbs/00_linear.ipynb #73731b39
    def tiny(name):
        "A random model of three blocks, a few thousand weights, with the layers of its family."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
        torch.manual_seed(0)
        return {
            "Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
            "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=3, n_head=4)),
            "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32)),
            "GPT-NeoX": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**common)),
            "Phi-3": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**common, num_key_value_heads=2)),
            "BERT": lambda: tf.BertForMaskedLM(tf.BertConfig(**common)),
        }[name]().eval()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    law = settings(deadline=None, max_examples=25, derandomize=True)

    # %% ../nbs/00_linear.ipynb #ad0a6265
    class LowRank(nn.Module):
        def __init__(self, layer, r):
            super().__init__()
            U, S, Vh = torch.linalg.svd(effective_weight(layer).detach(), full_matrices=False)
            self.A, self.B, self.bias = nn.Parameter(U[:, :r] * S[:r]), nn.Parameter(Vh[:r]), layer.bias

        def effective_weight(self): return self.A @ self.B

        def forward(self, x): return F.linear(F.linear(x, self.B), self.A, self.bias)

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    # %% ../nbs/00_linear.ipynb #68ba3763
    class Upper(nn.Module):
        def __init__(self, W, update=None):
            super().__init__()
            self.weight, self.update, self.bias = nn.Parameter(W.triu()), update, None

        def effective_weight(self): return self.weight if self.update is None else self.weight + self.update

        def forward(self, x): return F.linear(x, self.effective_weight(), self.bias)

        def merged(self):
            lost = int(self.effective_weight().tril(-1).count_nonzero())
            if lost: raise MergeError(f"{lost} weights below the diagonal are no longer 0", lost)
            return self if self.update is None else Upper(self.effective_weight())

    # %% ../nbs/00_linear.ipynb #b3226094
    W = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    x, bias = torch.ones(2, 5, 4, requires_grad=True), torch.zeros(3, requires_grad=True)
    ours = torch.autograd.grad(Decoded.apply(x, bias, Upper(W)).square().sum(), (x, bias))
    dense = torch.autograd.grad(F.linear(x, Upper(W).effective_weight(), bias).square().sum(), (x, bias))
    for a, b in zip(ours, dense, strict=True): torch.testing.assert_close(a, b)
    y = Decoded.apply(x, bias, Upper(W))
    y += 1  # a RuntimeError, were it a view
    torch.testing.assert_close(torch.autograd.grad(y.sum(), bias)[0], torch.full((3,), 10.))


def test_merging_8():
    # %% ../nbs/00_linear.ipynb #73731b39
    def tiny(name):
        "A random model of three blocks, a few thousand weights, with the layers of its family."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
        torch.manual_seed(0)
        return {
            "Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
            "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=3, n_head=4)),
            "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32)),
            "GPT-NeoX": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**common)),
            "Phi-3": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**common, num_key_value_heads=2)),
            "BERT": lambda: tf.BertForMaskedLM(tf.BertConfig(**common)),
        }[name]().eval()

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    law = settings(deadline=None, max_examples=25, derandomize=True)

    # %% ../nbs/00_linear.ipynb #ad0a6265
    class LowRank(nn.Module):
        def __init__(self, layer, r):
            super().__init__()
            U, S, Vh = torch.linalg.svd(effective_weight(layer).detach(), full_matrices=False)
            self.A, self.B, self.bias = nn.Parameter(U[:, :r] * S[:r]), nn.Parameter(Vh[:r]), layer.bias

        def effective_weight(self): return self.A @ self.B

        def forward(self, x): return F.linear(F.linear(x, self.B), self.A, self.bias)

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    # %% ../nbs/00_linear.ipynb #68ba3763
    class Upper(nn.Module):
        def __init__(self, W, update=None):
            super().__init__()
            self.weight, self.update, self.bias = nn.Parameter(W.triu()), update, None

        def effective_weight(self): return self.weight if self.update is None else self.weight + self.update

        def forward(self, x): return F.linear(x, self.effective_weight(), self.bias)

        def merged(self):
            lost = int(self.effective_weight().tril(-1).count_nonzero())
            if lost: raise MergeError(f"{lost} weights below the diagonal are no longer 0", lost)
            return self if self.update is None else Upper(self.effective_weight())

    # %% ../nbs/00_linear.ipynb #731d479b
    for out, in_ in (1, 1), (3, 8), (5, 17), (2, 512):
        mask = torch.rand(out, in_, generator=torch.Generator().manual_seed(in_)) < .5
        assert torch.equal(unpack_mask(pack_mask(mask), in_), mask) and pack_mask(mask).nbytes == out*math.ceil(in_/8)
        assert pack_mask(mask).numpy().tolist() == np.packbits(mask.numpy(), axis=1, bitorder="little").tolist()
