from pathlm.adapters.core import *
from dataclasses import dataclass
from pathlib import Path
import torch
import torch.nn.functional as F
from torch import nn
from pathlm.base import CheckpointError
from pathlm.base import SettingError
from pathlm.base import UnknownAdapterError
from pathlm.linear import effective_weight
from pathlm.linear import merge
from pathlm.linear import unmerge
import copy
import subprocess
import sys
import tempfile
import transformers as tf
from transformers.pytorch_utils import Conv1D
from pathlm.base import MergeError
from pathlm.linear import densify
from pathlm.linear import linear_from
from pathlm.base import NonFiniteError
from pathlm.base import UnknownModuleError


def test_adapters_one_set_of_verbs():
    # %% ../nbs/04_adapters.ipynb #83404782
    def tiny(name="Llama", **settings):
        "A random model of two blocks, a few thousand weights, with the layers of its family."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
        torch.manual_seed(0)
        return {
            "Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2, **settings)),
            "Qwen": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**common, num_key_value_heads=2, head_dim=8)),
            "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
            "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32)),
            "BERT": lambda: tf.BertForMaskedLM(tf.BertConfig(**common)),
            "RoBERTa": lambda: tf.RobertaForMaskedLM(tf.RobertaConfig(**common)),
            "ViT": lambda: tf.ViTForImageClassification(tf.ViTConfig(hidden_size=32, intermediate_size=48, image_size=8,
                num_hidden_layers=2, num_attention_heads=4, patch_size=4)),
        }[name]().eval()

    def logits(model, batch=2):
        "What a model says about a fixed input."
        seen = torch.linspace(-1, 1, batch*192).view(batch, 3, 8, 8) if hasattr(model.config, "patch_size") else \
            torch.arange(12*batch).view(batch, 12)
        with torch.no_grad(): return model(seen).logits

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    # %% ../nbs/04_adapters.ipynb #65463478
    class FullPart(Part):
        def __init__(self, out_, in_):
            super().__init__()
            self.D = nn.Parameter(torch.zeros(out_, in_))

        def delta(self): return self.D

    def small():
        "A layer of three outputs that carries one part."
        layer = AdaptedLinear(nn.Linear(5, 3))
        layer.parts["a"], layer.active = FullPart(3, 5), ("a",)
        nn.init.normal_(layer.parts["a"].D)
        return layer

    # %% ../nbs/04_adapters.ipynb #4fd8d446
    layer, x = small(), torch.randn(2, 7, 5)
    torch.testing.assert_close(layer(x), F.linear(x, layer.effective_weight(), layer.bias))
    torch.testing.assert_close(layer.effective_weight(), layer.base.weight + layer.parts["a"].D)
    assert [n for n, _ in layer.named_parameters()] == ["base.weight", "base.bias"]
    assert torch.equal(layer.weight, layer.effective_weight()) and (layer.out_features, layer.in_features) == (3, 5)
    layer.mixed = 2, {}
    print(refusal(SettingError, getattr, layer, "weight"))


def test_adapters_one_set_of_verbs_2():
    # %% ../nbs/04_adapters.ipynb #83404782
    def tiny(name="Llama", **settings):
        "A random model of two blocks, a few thousand weights, with the layers of its family."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
        torch.manual_seed(0)
        return {
            "Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2, **settings)),
            "Qwen": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**common, num_key_value_heads=2, head_dim=8)),
            "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
            "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32)),
            "BERT": lambda: tf.BertForMaskedLM(tf.BertConfig(**common)),
            "RoBERTa": lambda: tf.RobertaForMaskedLM(tf.RobertaConfig(**common)),
            "ViT": lambda: tf.ViTForImageClassification(tf.ViTConfig(hidden_size=32, intermediate_size=48, image_size=8,
                num_hidden_layers=2, num_attention_heads=4, patch_size=4)),
        }[name]().eval()

    def logits(model, batch=2):
        "What a model says about a fixed input."
        seen = torch.linspace(-1, 1, batch*192).view(batch, 3, 8, 8) if hasattr(model.config, "patch_size") else \
            torch.arange(12*batch).view(batch, 12)
        with torch.no_grad(): return model(seen).logits

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    # %% ../nbs/04_adapters.ipynb #65463478
    class FullPart(Part):
        def __init__(self, out_, in_):
            super().__init__()
            self.D = nn.Parameter(torch.zeros(out_, in_))

        def delta(self): return self.D

    def small():
        "A layer of three outputs that carries one part."
        layer = AdaptedLinear(nn.Linear(5, 3))
        layer.parts["a"], layer.active = FullPart(3, 5), ("a",)
        nn.init.normal_(layer.parts["a"].D)
        return layer

    # %% ../nbs/04_adapters.ipynb #4d8c3c05
    layer = small().to(torch.bfloat16)
    W, D = layer.base.weight, layer.parts["a"].D
    assert torch.equal(layer.effective_weight(), (W.float() + D.float()).bfloat16())


def test_adapters_one_set_of_verbs_3():
    # %% ../nbs/04_adapters.ipynb #83404782
    def tiny(name="Llama", **settings):
        "A random model of two blocks, a few thousand weights, with the layers of its family."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
        torch.manual_seed(0)
        return {
            "Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2, **settings)),
            "Qwen": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**common, num_key_value_heads=2, head_dim=8)),
            "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
            "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32)),
            "BERT": lambda: tf.BertForMaskedLM(tf.BertConfig(**common)),
            "RoBERTa": lambda: tf.RobertaForMaskedLM(tf.RobertaConfig(**common)),
            "ViT": lambda: tf.ViTForImageClassification(tf.ViTConfig(hidden_size=32, intermediate_size=48, image_size=8,
                num_hidden_layers=2, num_attention_heads=4, patch_size=4)),
        }[name]().eval()

    def logits(model, batch=2):
        "What a model says about a fixed input."
        seen = torch.linspace(-1, 1, batch*192).view(batch, 3, 8, 8) if hasattr(model.config, "patch_size") else \
            torch.arange(12*batch).view(batch, 12)
        with torch.no_grad(): return model(seen).logits

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    # %% ../nbs/04_adapters.ipynb #65463478
    class FullPart(Part):
        def __init__(self, out_, in_):
            super().__init__()
            self.D = nn.Parameter(torch.zeros(out_, in_))

        def delta(self): return self.D

    def small():
        "A layer of three outputs that carries one part."
        layer = AdaptedLinear(nn.Linear(5, 3))
        layer.parts["a"], layer.active = FullPart(3, 5), ("a",)
        nn.init.normal_(layer.parts["a"].D)
        return layer

    # %% ../nbs/04_adapters.ipynb #af353070
    class Whole(nn.Linear):
        def rebuilt(self, W):
            lost = int((W != W.round()).sum())
            if lost: raise MergeError(f"{lost} of {W.numel()} weights are not whole", lost)
            return linear_from(W, self.bias)

    class Rounding(nn.Linear):
        def project(self, W): return W + (W.round() - W).detach()
        def effective_weight(self): return self.project(self.weight)
        def forward(self, x): return F.linear(x, self.effective_weight(), self.bias)

    # %% ../nbs/04_adapters.ipynb #89fba410
    layer, x = small(), torch.randn(2, 5)
    base = layer.base = Rounding(5, 3)
    D = layer.parts["a"].D
    assert torch.equal(layer.effective_weight(), (base.weight + D).round())
    assert torch.equal(layer(x), F.linear(x, layer.effective_weight(), base.bias))
    layer(x).sum().backward()
    torch.testing.assert_close(D.grad, x.sum(0).expand(3, 5))  # as if nothing were rounded
    layer.parts["b"], layer.active = FullPart(3, 5), ("a", "b")
    nn.init.normal_(layer.parts["b"].D)
    assert torch.equal(layer.effective_weight(), (base.weight + D + layer.parts["b"].D).round())
    assert torch.equal(layer(x), F.linear(x, layer.effective_weight(), base.bias))

    layer = small()
    layer.base, net = Whole(5, 3), nn.Sequential(layer)
    print(refusal(MergeError, merge, net))
    with torch.no_grad(): layer.base.weight.zero_(), layer.parts["a"].D.fill_(1)
    assert torch.equal(merge(net)[0].weight, torch.ones(3, 5))
    assert torch.equal(densify(unmerge(net))[0].weight, torch.ones(3, 5))


def test_attaching():
    # %% ../nbs/04_adapters.ipynb #83404782
    def tiny(name="Llama", **settings):
        "A random model of two blocks, a few thousand weights, with the layers of its family."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
        torch.manual_seed(0)
        return {
            "Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2, **settings)),
            "Qwen": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**common, num_key_value_heads=2, head_dim=8)),
            "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
            "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32)),
            "BERT": lambda: tf.BertForMaskedLM(tf.BertConfig(**common)),
            "RoBERTa": lambda: tf.RobertaForMaskedLM(tf.RobertaConfig(**common)),
            "ViT": lambda: tf.ViTForImageClassification(tf.ViTConfig(hidden_size=32, intermediate_size=48, image_size=8,
                num_hidden_layers=2, num_attention_heads=4, patch_size=4)),
        }[name]().eval()

    def logits(model, batch=2):
        "What a model says about a fixed input."
        seen = torch.linspace(-1, 1, batch*192).view(batch, 3, 8, 8) if hasattr(model.config, "patch_size") else \
            torch.arange(12*batch).view(batch, 12)
        with torch.no_grad(): return model(seen).logits

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    # %% ../nbs/04_adapters.ipynb #65463478
    class FullPart(Part):
        def __init__(self, out_, in_):
            super().__init__()
            self.D = nn.Parameter(torch.zeros(out_, in_))

        def delta(self): return self.D

    def small():
        "A layer of three outputs that carries one part."
        layer = AdaptedLinear(nn.Linear(5, 3))
        layer.parts["a"], layer.active = FullPart(3, 5), ("a",)
        nn.init.normal_(layer.parts["a"].D)
        return layer

    # %% ../nbs/04_adapters.ipynb #af353070
    class Whole(nn.Linear):
        def rebuilt(self, W):
            lost = int((W != W.round()).sum())
            if lost: raise MergeError(f"{lost} of {W.numel()} weights are not whole", lost)
            return linear_from(W, self.bias)

    class Rounding(nn.Linear):
        def project(self, W): return W + (W.round() - W).detach()
        def effective_weight(self): return self.project(self.weight)
        def forward(self, x): return F.linear(x, self.effective_weight(), self.bias)

    # %% ../nbs/04_adapters.ipynb #45fda038
    @dataclass(kw_only=True)
    class Full(Config, method="full"):
        def build(self, layers):
            return Adapter(self, {name: FullPart(*effective_weight(layer).shape) for name, layer in layers.items()})

    def shaken(model, std=.05):
        "Give the parameters of all adapters random values."
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=std)
        return model

    # %% ../nbs/04_adapters.ipynb #7b0d6be1
    at = sample(torch.arange(512*512).view(512, 512)).long()
    assert len(at) <= 4096 and len((at % 512).unique()) == 512 and len((at // 512).unique()) == 512


def test_attaching_2():
    # %% ../nbs/04_adapters.ipynb #83404782
    def tiny(name="Llama", **settings):
        "A random model of two blocks, a few thousand weights, with the layers of its family."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
        torch.manual_seed(0)
        return {
            "Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2, **settings)),
            "Qwen": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**common, num_key_value_heads=2, head_dim=8)),
            "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
            "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32)),
            "BERT": lambda: tf.BertForMaskedLM(tf.BertConfig(**common)),
            "RoBERTa": lambda: tf.RobertaForMaskedLM(tf.RobertaConfig(**common)),
            "ViT": lambda: tf.ViTForImageClassification(tf.ViTConfig(hidden_size=32, intermediate_size=48, image_size=8,
                num_hidden_layers=2, num_attention_heads=4, patch_size=4)),
        }[name]().eval()

    def logits(model, batch=2):
        "What a model says about a fixed input."
        seen = torch.linspace(-1, 1, batch*192).view(batch, 3, 8, 8) if hasattr(model.config, "patch_size") else \
            torch.arange(12*batch).view(batch, 12)
        with torch.no_grad(): return model(seen).logits

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    # %% ../nbs/04_adapters.ipynb #65463478
    class FullPart(Part):
        def __init__(self, out_, in_):
            super().__init__()
            self.D = nn.Parameter(torch.zeros(out_, in_))

        def delta(self): return self.D

    def small():
        "A layer of three outputs that carries one part."
        layer = AdaptedLinear(nn.Linear(5, 3))
        layer.parts["a"], layer.active = FullPart(3, 5), ("a",)
        nn.init.normal_(layer.parts["a"].D)
        return layer

    # %% ../nbs/04_adapters.ipynb #af353070
    class Whole(nn.Linear):
        def rebuilt(self, W):
            lost = int((W != W.round()).sum())
            if lost: raise MergeError(f"{lost} of {W.numel()} weights are not whole", lost)
            return linear_from(W, self.bias)

    class Rounding(nn.Linear):
        def project(self, W): return W + (W.round() - W).detach()
        def effective_weight(self): return self.project(self.weight)
        def forward(self, x): return F.linear(x, self.effective_weight(), self.bias)

    # %% ../nbs/04_adapters.ipynb #45fda038
    @dataclass(kw_only=True)
    class Full(Config, method="full"):
        def build(self, layers):
            return Adapter(self, {name: FullPart(*effective_weight(layer).shape) for name, layer in layers.items()})

    def shaken(model, std=.05):
        "Give the parameters of all adapters random values."
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=std)
        return model

    # %% ../nbs/04_adapters.ipynb #52b137f4
    for family in "Llama", "Qwen", "GPT-2", "OPT", "BERT", "RoBERTa", "ViT":
        model = tiny(family)
        before, base = copy.deepcopy(model.state_dict()), logits(model)
        adapter = attach(model, Full())
        assert torch.equal(logits(model), base)
        assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in adapter.parameters()}
        changed = logits(shaken(model))
        assert (changed - base).abs().max() > .01
        torch.testing.assert_close(logits(merge(model)), changed, rtol=1e-4, atol=1e-5)
        assert not any(isinstance(m, AdaptedLinear) for m in model.modules())
        detach(model)
        after = model.state_dict()
        assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
        assert torch.equal(logits(model), base) and all(p.requires_grad for p in model.parameters())


def test_attaching_3():
    # %% ../nbs/04_adapters.ipynb #83404782
    def tiny(name="Llama", **settings):
        "A random model of two blocks, a few thousand weights, with the layers of its family."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
        torch.manual_seed(0)
        return {
            "Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2, **settings)),
            "Qwen": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**common, num_key_value_heads=2, head_dim=8)),
            "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
            "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32)),
            "BERT": lambda: tf.BertForMaskedLM(tf.BertConfig(**common)),
            "RoBERTa": lambda: tf.RobertaForMaskedLM(tf.RobertaConfig(**common)),
            "ViT": lambda: tf.ViTForImageClassification(tf.ViTConfig(hidden_size=32, intermediate_size=48, image_size=8,
                num_hidden_layers=2, num_attention_heads=4, patch_size=4)),
        }[name]().eval()

    def logits(model, batch=2):
        "What a model says about a fixed input."
        seen = torch.linspace(-1, 1, batch*192).view(batch, 3, 8, 8) if hasattr(model.config, "patch_size") else \
            torch.arange(12*batch).view(batch, 12)
        with torch.no_grad(): return model(seen).logits

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    # %% ../nbs/04_adapters.ipynb #65463478
    class FullPart(Part):
        def __init__(self, out_, in_):
            super().__init__()
            self.D = nn.Parameter(torch.zeros(out_, in_))

        def delta(self): return self.D

    def small():
        "A layer of three outputs that carries one part."
        layer = AdaptedLinear(nn.Linear(5, 3))
        layer.parts["a"], layer.active = FullPart(3, 5), ("a",)
        nn.init.normal_(layer.parts["a"].D)
        return layer

    # %% ../nbs/04_adapters.ipynb #af353070
    class Whole(nn.Linear):
        def rebuilt(self, W):
            lost = int((W != W.round()).sum())
            if lost: raise MergeError(f"{lost} of {W.numel()} weights are not whole", lost)
            return linear_from(W, self.bias)

    class Rounding(nn.Linear):
        def project(self, W): return W + (W.round() - W).detach()
        def effective_weight(self): return self.project(self.weight)
        def forward(self, x): return F.linear(x, self.effective_weight(), self.bias)

    # %% ../nbs/04_adapters.ipynb #45fda038
    @dataclass(kw_only=True)
    class Full(Config, method="full"):
        def build(self, layers):
            return Adapter(self, {name: FullPart(*effective_weight(layer).shape) for name, layer in layers.items()})

    def shaken(model, std=.05):
        "Give the parameters of all adapters random values."
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=std)
        return model

    # %% ../nbs/04_adapters.ipynb #8cab0d3f
    net, x = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)), torch.randn(2, 5)
    base = net(x)
    attach(net, Full())
    assert torch.equal(net(x), base) and not torch.equal(shaken(net, 1.)(x), base)
    torch.testing.assert_close(merge(net)(x), unmerge(net)(x))
    assert torch.equal(detach(net)(x), base) and len(net) == 3


def test_attaching_4():
    # %% ../nbs/04_adapters.ipynb #83404782
    def tiny(name="Llama", **settings):
        "A random model of two blocks, a few thousand weights, with the layers of its family."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
        torch.manual_seed(0)
        return {
            "Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2, **settings)),
            "Qwen": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**common, num_key_value_heads=2, head_dim=8)),
            "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
            "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32)),
            "BERT": lambda: tf.BertForMaskedLM(tf.BertConfig(**common)),
            "RoBERTa": lambda: tf.RobertaForMaskedLM(tf.RobertaConfig(**common)),
            "ViT": lambda: tf.ViTForImageClassification(tf.ViTConfig(hidden_size=32, intermediate_size=48, image_size=8,
                num_hidden_layers=2, num_attention_heads=4, patch_size=4)),
        }[name]().eval()

    def logits(model, batch=2):
        "What a model says about a fixed input."
        seen = torch.linspace(-1, 1, batch*192).view(batch, 3, 8, 8) if hasattr(model.config, "patch_size") else \
            torch.arange(12*batch).view(batch, 12)
        with torch.no_grad(): return model(seen).logits

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    # %% ../nbs/04_adapters.ipynb #65463478
    class FullPart(Part):
        def __init__(self, out_, in_):
            super().__init__()
            self.D = nn.Parameter(torch.zeros(out_, in_))

        def delta(self): return self.D

    def small():
        "A layer of three outputs that carries one part."
        layer = AdaptedLinear(nn.Linear(5, 3))
        layer.parts["a"], layer.active = FullPart(3, 5), ("a",)
        nn.init.normal_(layer.parts["a"].D)
        return layer

    # %% ../nbs/04_adapters.ipynb #af353070
    class Whole(nn.Linear):
        def rebuilt(self, W):
            lost = int((W != W.round()).sum())
            if lost: raise MergeError(f"{lost} of {W.numel()} weights are not whole", lost)
            return linear_from(W, self.bias)

    class Rounding(nn.Linear):
        def project(self, W): return W + (W.round() - W).detach()
        def effective_weight(self): return self.project(self.weight)
        def forward(self, x): return F.linear(x, self.effective_weight(), self.bias)

    # %% ../nbs/04_adapters.ipynb #45fda038
    @dataclass(kw_only=True)
    class Full(Config, method="full"):
        def build(self, layers):
            return Adapter(self, {name: FullPart(*effective_weight(layer).shape) for name, layer in layers.items()})

    def shaken(model, std=.05):
        "Give the parameters of all adapters random values."
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=std)
        return model

    # %% ../nbs/04_adapters.ipynb #a48873f1
    for dtype in torch.float32, torch.bfloat16, torch.float16:
        model = tiny("GPT-2").to(dtype)
        before = copy.deepcopy(model.state_dict())
        attach(model, Full())
        layer = adapted(shaken(model))["transformer.h.0.attn.c_proj"]
        for _ in range(10):
            W, D = effective_weight(layer.base), layer.parts["default"].delta()
            merge(model)
            merged = model.get_submodule("transformer.h.0.attn.c_proj")
            assert type(merged) is Conv1D and torch.equal(effective_weight(merged), (W.float() + D.float()).to(dtype))
            unmerge(model)
            assert model.get_submodule("transformer.h.0.attn.c_proj") is layer
        after = detach(model).state_dict()
        assert all(torch.equal(before[k], after[k]) for k in before)


def test_several_adapters():
    # %% ../nbs/04_adapters.ipynb #83404782
    def tiny(name="Llama", **settings):
        "A random model of two blocks, a few thousand weights, with the layers of its family."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
        torch.manual_seed(0)
        return {
            "Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2, **settings)),
            "Qwen": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**common, num_key_value_heads=2, head_dim=8)),
            "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
            "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32)),
            "BERT": lambda: tf.BertForMaskedLM(tf.BertConfig(**common)),
            "RoBERTa": lambda: tf.RobertaForMaskedLM(tf.RobertaConfig(**common)),
            "ViT": lambda: tf.ViTForImageClassification(tf.ViTConfig(hidden_size=32, intermediate_size=48, image_size=8,
                num_hidden_layers=2, num_attention_heads=4, patch_size=4)),
        }[name]().eval()

    def logits(model, batch=2):
        "What a model says about a fixed input."
        seen = torch.linspace(-1, 1, batch*192).view(batch, 3, 8, 8) if hasattr(model.config, "patch_size") else \
            torch.arange(12*batch).view(batch, 12)
        with torch.no_grad(): return model(seen).logits

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    # %% ../nbs/04_adapters.ipynb #65463478
    class FullPart(Part):
        def __init__(self, out_, in_):
            super().__init__()
            self.D = nn.Parameter(torch.zeros(out_, in_))

        def delta(self): return self.D

    def small():
        "A layer of three outputs that carries one part."
        layer = AdaptedLinear(nn.Linear(5, 3))
        layer.parts["a"], layer.active = FullPart(3, 5), ("a",)
        nn.init.normal_(layer.parts["a"].D)
        return layer

    # %% ../nbs/04_adapters.ipynb #af353070
    class Whole(nn.Linear):
        def rebuilt(self, W):
            lost = int((W != W.round()).sum())
            if lost: raise MergeError(f"{lost} of {W.numel()} weights are not whole", lost)
            return linear_from(W, self.bias)

    class Rounding(nn.Linear):
        def project(self, W): return W + (W.round() - W).detach()
        def effective_weight(self): return self.project(self.weight)
        def forward(self, x): return F.linear(x, self.effective_weight(), self.bias)

    # %% ../nbs/04_adapters.ipynb #45fda038
    @dataclass(kw_only=True)
    class Full(Config, method="full"):
        def build(self, layers):
            return Adapter(self, {name: FullPart(*effective_weight(layer).shape) for name, layer in layers.items()})

    def shaken(model, std=.05):
        "Give the parameters of all adapters random values."
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=std)
        return model

    # %% ../nbs/04_adapters.ipynb #0fbacee9
    model = tiny()
    base = logits(model, 4)
    attach(model, Full(target_modules=["q_proj", "down_proj"]), "a")
    attach(model, Full(target_modules=["q_proj", "v_proj"], layers_to_transform=[-1]), "b")
    shaken(model)
    alone = {"__base__": base}
    for name in "a", "b":
        activate(model, name)
        alone[name] = logits(model, 4)
    names = ["b", "__base__", "a", "b"]
    with mixed(model, names): together = logits(model, 4)
    for i, name in enumerate(names): torch.testing.assert_close(together[i], alone[name][i], rtol=1e-5, atol=1e-6)
    activate(model, "a")
    attach(model, Full(), "c")
    activate(model, "a")
    assert torch.equal(logits(model, 4), alone["a"])
    detach(model, "b", "c")
    assert torch.equal(logits(model, 4), alone["a"]) and list(adapters(model)) == ["a"]
    activate(model)
    assert torch.equal(logits(model, 4), base)


def test_several_adapters_2():
    # %% ../nbs/04_adapters.ipynb #83404782
    def tiny(name="Llama", **settings):
        "A random model of two blocks, a few thousand weights, with the layers of its family."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
        torch.manual_seed(0)
        return {
            "Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2, **settings)),
            "Qwen": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**common, num_key_value_heads=2, head_dim=8)),
            "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
            "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32)),
            "BERT": lambda: tf.BertForMaskedLM(tf.BertConfig(**common)),
            "RoBERTa": lambda: tf.RobertaForMaskedLM(tf.RobertaConfig(**common)),
            "ViT": lambda: tf.ViTForImageClassification(tf.ViTConfig(hidden_size=32, intermediate_size=48, image_size=8,
                num_hidden_layers=2, num_attention_heads=4, patch_size=4)),
        }[name]().eval()

    def logits(model, batch=2):
        "What a model says about a fixed input."
        seen = torch.linspace(-1, 1, batch*192).view(batch, 3, 8, 8) if hasattr(model.config, "patch_size") else \
            torch.arange(12*batch).view(batch, 12)
        with torch.no_grad(): return model(seen).logits

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    # %% ../nbs/04_adapters.ipynb #65463478
    class FullPart(Part):
        def __init__(self, out_, in_):
            super().__init__()
            self.D = nn.Parameter(torch.zeros(out_, in_))

        def delta(self): return self.D

    def small():
        "A layer of three outputs that carries one part."
        layer = AdaptedLinear(nn.Linear(5, 3))
        layer.parts["a"], layer.active = FullPart(3, 5), ("a",)
        nn.init.normal_(layer.parts["a"].D)
        return layer

    # %% ../nbs/04_adapters.ipynb #af353070
    class Whole(nn.Linear):
        def rebuilt(self, W):
            lost = int((W != W.round()).sum())
            if lost: raise MergeError(f"{lost} of {W.numel()} weights are not whole", lost)
            return linear_from(W, self.bias)

    class Rounding(nn.Linear):
        def project(self, W): return W + (W.round() - W).detach()
        def effective_weight(self): return self.project(self.weight)
        def forward(self, x): return F.linear(x, self.effective_weight(), self.bias)

    # %% ../nbs/04_adapters.ipynb #45fda038
    @dataclass(kw_only=True)
    class Full(Config, method="full"):
        def build(self, layers):
            return Adapter(self, {name: FullPart(*effective_weight(layer).shape) for name, layer in layers.items()})

    def shaken(model, std=.05):
        "Give the parameters of all adapters random values."
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=std)
        return model

    # %% ../nbs/04_adapters.ipynb #5a5b1c2d
    model = tiny("GPT-2")
    attach(model, Full(), "a")
    shaken(model)
    for layer in adapted(model).values(): assert layer.weight.shape == layer.base.weight.shape


def test_several_adapters_3():
    # %% ../nbs/04_adapters.ipynb #83404782
    def tiny(name="Llama", **settings):
        "A random model of two blocks, a few thousand weights, with the layers of its family."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
        torch.manual_seed(0)
        return {
            "Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2, **settings)),
            "Qwen": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**common, num_key_value_heads=2, head_dim=8)),
            "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
            "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32)),
            "BERT": lambda: tf.BertForMaskedLM(tf.BertConfig(**common)),
            "RoBERTa": lambda: tf.RobertaForMaskedLM(tf.RobertaConfig(**common)),
            "ViT": lambda: tf.ViTForImageClassification(tf.ViTConfig(hidden_size=32, intermediate_size=48, image_size=8,
                num_hidden_layers=2, num_attention_heads=4, patch_size=4)),
        }[name]().eval()

    def logits(model, batch=2):
        "What a model says about a fixed input."
        seen = torch.linspace(-1, 1, batch*192).view(batch, 3, 8, 8) if hasattr(model.config, "patch_size") else \
            torch.arange(12*batch).view(batch, 12)
        with torch.no_grad(): return model(seen).logits

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    # %% ../nbs/04_adapters.ipynb #65463478
    class FullPart(Part):
        def __init__(self, out_, in_):
            super().__init__()
            self.D = nn.Parameter(torch.zeros(out_, in_))

        def delta(self): return self.D

    def small():
        "A layer of three outputs that carries one part."
        layer = AdaptedLinear(nn.Linear(5, 3))
        layer.parts["a"], layer.active = FullPart(3, 5), ("a",)
        nn.init.normal_(layer.parts["a"].D)
        return layer

    # %% ../nbs/04_adapters.ipynb #af353070
    class Whole(nn.Linear):
        def rebuilt(self, W):
            lost = int((W != W.round()).sum())
            if lost: raise MergeError(f"{lost} of {W.numel()} weights are not whole", lost)
            return linear_from(W, self.bias)

    class Rounding(nn.Linear):
        def project(self, W): return W + (W.round() - W).detach()
        def effective_weight(self): return self.project(self.weight)
        def forward(self, x): return F.linear(x, self.effective_weight(), self.bias)

    # %% ../nbs/04_adapters.ipynb #45fda038
    @dataclass(kw_only=True)
    class Full(Config, method="full"):
        def build(self, layers):
            return Adapter(self, {name: FullPart(*effective_weight(layer).shape) for name, layer in layers.items()})

    def shaken(model, std=.05):
        "Give the parameters of all adapters random values."
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=std)
        return model

    # %% ../nbs/04_adapters.ipynb #657feac4
    model = tiny("OPT")
    attach(model, Full(), "a")
    shaken(model)
    alone = logits(model, 4)
    with mixed(model, ["__base__", "a", "a", "__base__"]): together = logits(model, 4)
    torch.testing.assert_close(together[1:3], alone[1:3], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(together[::3], logits(tiny("OPT"), 4)[::3], rtol=1e-5, atol=1e-6)


def test_several_adapters_4():
    # %% ../nbs/04_adapters.ipynb #83404782
    def tiny(name="Llama", **settings):
        "A random model of two blocks, a few thousand weights, with the layers of its family."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
        torch.manual_seed(0)
        return {
            "Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2, **settings)),
            "Qwen": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**common, num_key_value_heads=2, head_dim=8)),
            "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
            "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32)),
            "BERT": lambda: tf.BertForMaskedLM(tf.BertConfig(**common)),
            "RoBERTa": lambda: tf.RobertaForMaskedLM(tf.RobertaConfig(**common)),
            "ViT": lambda: tf.ViTForImageClassification(tf.ViTConfig(hidden_size=32, intermediate_size=48, image_size=8,
                num_hidden_layers=2, num_attention_heads=4, patch_size=4)),
        }[name]().eval()

    def logits(model, batch=2):
        "What a model says about a fixed input."
        seen = torch.linspace(-1, 1, batch*192).view(batch, 3, 8, 8) if hasattr(model.config, "patch_size") else \
            torch.arange(12*batch).view(batch, 12)
        with torch.no_grad(): return model(seen).logits

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    # %% ../nbs/04_adapters.ipynb #65463478
    class FullPart(Part):
        def __init__(self, out_, in_):
            super().__init__()
            self.D = nn.Parameter(torch.zeros(out_, in_))

        def delta(self): return self.D

    def small():
        "A layer of three outputs that carries one part."
        layer = AdaptedLinear(nn.Linear(5, 3))
        layer.parts["a"], layer.active = FullPart(3, 5), ("a",)
        nn.init.normal_(layer.parts["a"].D)
        return layer

    # %% ../nbs/04_adapters.ipynb #af353070
    class Whole(nn.Linear):
        def rebuilt(self, W):
            lost = int((W != W.round()).sum())
            if lost: raise MergeError(f"{lost} of {W.numel()} weights are not whole", lost)
            return linear_from(W, self.bias)

    class Rounding(nn.Linear):
        def project(self, W): return W + (W.round() - W).detach()
        def effective_weight(self): return self.project(self.weight)
        def forward(self, x): return F.linear(x, self.effective_weight(), self.bias)

    # %% ../nbs/04_adapters.ipynb #45fda038
    @dataclass(kw_only=True)
    class Full(Config, method="full"):
        def build(self, layers):
            return Adapter(self, {name: FullPart(*effective_weight(layer).shape) for name, layer in layers.items()})

    def shaken(model, std=.05):
        "Give the parameters of all adapters random values."
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=std)
        return model

    # %% ../nbs/04_adapters.ipynb #35708b32
    model = tiny()
    for name in "a", "b": attach(model, Full(target_modules="q_proj"), name)
    shaken(model)
    activate(model, "a", "b")
    layer = adapted(model)["model.layers.0.self_attn.q_proj"]
    summed = layer.base.weight + layer.parts["a"].D + layer.parts["b"].D
    torch.testing.assert_close(layer.effective_weight(), summed)
    x = torch.randn(3, 32)
    torch.testing.assert_close(layer(x), F.linear(x, summed))


def test_training():
    # %% ../nbs/04_adapters.ipynb #83404782
    def tiny(name="Llama", **settings):
        "A random model of two blocks, a few thousand weights, with the layers of its family."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
        torch.manual_seed(0)
        return {
            "Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2, **settings)),
            "Qwen": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**common, num_key_value_heads=2, head_dim=8)),
            "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
            "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32)),
            "BERT": lambda: tf.BertForMaskedLM(tf.BertConfig(**common)),
            "RoBERTa": lambda: tf.RobertaForMaskedLM(tf.RobertaConfig(**common)),
            "ViT": lambda: tf.ViTForImageClassification(tf.ViTConfig(hidden_size=32, intermediate_size=48, image_size=8,
                num_hidden_layers=2, num_attention_heads=4, patch_size=4)),
        }[name]().eval()

    def logits(model, batch=2):
        "What a model says about a fixed input."
        seen = torch.linspace(-1, 1, batch*192).view(batch, 3, 8, 8) if hasattr(model.config, "patch_size") else \
            torch.arange(12*batch).view(batch, 12)
        with torch.no_grad(): return model(seen).logits

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    # %% ../nbs/04_adapters.ipynb #65463478
    class FullPart(Part):
        def __init__(self, out_, in_):
            super().__init__()
            self.D = nn.Parameter(torch.zeros(out_, in_))

        def delta(self): return self.D

    def small():
        "A layer of three outputs that carries one part."
        layer = AdaptedLinear(nn.Linear(5, 3))
        layer.parts["a"], layer.active = FullPart(3, 5), ("a",)
        nn.init.normal_(layer.parts["a"].D)
        return layer

    # %% ../nbs/04_adapters.ipynb #af353070
    class Whole(nn.Linear):
        def rebuilt(self, W):
            lost = int((W != W.round()).sum())
            if lost: raise MergeError(f"{lost} of {W.numel()} weights are not whole", lost)
            return linear_from(W, self.bias)

    class Rounding(nn.Linear):
        def project(self, W): return W + (W.round() - W).detach()
        def effective_weight(self): return self.project(self.weight)
        def forward(self, x): return F.linear(x, self.effective_weight(), self.bias)

    # %% ../nbs/04_adapters.ipynb #45fda038
    @dataclass(kw_only=True)
    class Full(Config, method="full"):
        def build(self, layers):
            return Adapter(self, {name: FullPart(*effective_weight(layer).shape) for name, layer in layers.items()})

    def shaken(model, std=.05):
        "Give the parameters of all adapters random values."
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=std)
        return model

    # %% ../nbs/04_adapters.ipynb #93bdba96
    model = tiny()
    before = copy.deepcopy(model.state_dict())
    attach(model, Full(modules_to_save=["lm_head"]))
    groups = parameter_groups(model)
    print(*(f"{g['name']:8} {sum(p.numel() for p in g['params']):6}" for g in groups), sep="\n")
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    ids = torch.randint(0, 96, (4, 16))
    losses = []
    for _ in range(5):
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step(), optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - .1 and trained(model) == sum(p.numel() for g in groups for p in g["params"])
    after = detach(model).state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_training_2():
    # %% ../nbs/04_adapters.ipynb #83404782
    def tiny(name="Llama", **settings):
        "A random model of two blocks, a few thousand weights, with the layers of its family."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
        torch.manual_seed(0)
        return {
            "Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2, **settings)),
            "Qwen": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**common, num_key_value_heads=2, head_dim=8)),
            "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
            "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32)),
            "BERT": lambda: tf.BertForMaskedLM(tf.BertConfig(**common)),
            "RoBERTa": lambda: tf.RobertaForMaskedLM(tf.RobertaConfig(**common)),
            "ViT": lambda: tf.ViTForImageClassification(tf.ViTConfig(hidden_size=32, intermediate_size=48, image_size=8,
                num_hidden_layers=2, num_attention_heads=4, patch_size=4)),
        }[name]().eval()

    def logits(model, batch=2):
        "What a model says about a fixed input."
        seen = torch.linspace(-1, 1, batch*192).view(batch, 3, 8, 8) if hasattr(model.config, "patch_size") else \
            torch.arange(12*batch).view(batch, 12)
        with torch.no_grad(): return model(seen).logits

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    # %% ../nbs/04_adapters.ipynb #65463478
    class FullPart(Part):
        def __init__(self, out_, in_):
            super().__init__()
            self.D = nn.Parameter(torch.zeros(out_, in_))

        def delta(self): return self.D

    def small():
        "A layer of three outputs that carries one part."
        layer = AdaptedLinear(nn.Linear(5, 3))
        layer.parts["a"], layer.active = FullPart(3, 5), ("a",)
        nn.init.normal_(layer.parts["a"].D)
        return layer

    # %% ../nbs/04_adapters.ipynb #af353070
    class Whole(nn.Linear):
        def rebuilt(self, W):
            lost = int((W != W.round()).sum())
            if lost: raise MergeError(f"{lost} of {W.numel()} weights are not whole", lost)
            return linear_from(W, self.bias)

    class Rounding(nn.Linear):
        def project(self, W): return W + (W.round() - W).detach()
        def effective_weight(self): return self.project(self.weight)
        def forward(self, x): return F.linear(x, self.effective_weight(), self.bias)

    # %% ../nbs/04_adapters.ipynb #45fda038
    @dataclass(kw_only=True)
    class Full(Config, method="full"):
        def build(self, layers):
            return Adapter(self, {name: FullPart(*effective_weight(layer).shape) for name, layer in layers.items()})

    def shaken(model, std=.05):
        "Give the parameters of all adapters random values."
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=std)
        return model

    # %% ../nbs/04_adapters.ipynb #61640335
    p, before = nn.Parameter(torch.ones(3)), steps()
    optimizers = torch.optim.SGD([p]), torch.optim.AdamW([p], fused=True)
    p.sum().backward()
    for optimizer in optimizers: optimizer.step()
    assert steps() == before + 2


def test_training_3():
    # %% ../nbs/04_adapters.ipynb #83404782
    def tiny(name="Llama", **settings):
        "A random model of two blocks, a few thousand weights, with the layers of its family."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
        torch.manual_seed(0)
        return {
            "Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2, **settings)),
            "Qwen": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**common, num_key_value_heads=2, head_dim=8)),
            "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
            "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32)),
            "BERT": lambda: tf.BertForMaskedLM(tf.BertConfig(**common)),
            "RoBERTa": lambda: tf.RobertaForMaskedLM(tf.RobertaConfig(**common)),
            "ViT": lambda: tf.ViTForImageClassification(tf.ViTConfig(hidden_size=32, intermediate_size=48, image_size=8,
                num_hidden_layers=2, num_attention_heads=4, patch_size=4)),
        }[name]().eval()

    def logits(model, batch=2):
        "What a model says about a fixed input."
        seen = torch.linspace(-1, 1, batch*192).view(batch, 3, 8, 8) if hasattr(model.config, "patch_size") else \
            torch.arange(12*batch).view(batch, 12)
        with torch.no_grad(): return model(seen).logits

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    # %% ../nbs/04_adapters.ipynb #65463478
    class FullPart(Part):
        def __init__(self, out_, in_):
            super().__init__()
            self.D = nn.Parameter(torch.zeros(out_, in_))

        def delta(self): return self.D

    def small():
        "A layer of three outputs that carries one part."
        layer = AdaptedLinear(nn.Linear(5, 3))
        layer.parts["a"], layer.active = FullPart(3, 5), ("a",)
        nn.init.normal_(layer.parts["a"].D)
        return layer

    # %% ../nbs/04_adapters.ipynb #af353070
    class Whole(nn.Linear):
        def rebuilt(self, W):
            lost = int((W != W.round()).sum())
            if lost: raise MergeError(f"{lost} of {W.numel()} weights are not whole", lost)
            return linear_from(W, self.bias)

    class Rounding(nn.Linear):
        def project(self, W): return W + (W.round() - W).detach()
        def effective_weight(self): return self.project(self.weight)
        def forward(self, x): return F.linear(x, self.effective_weight(), self.bias)

    # %% ../nbs/04_adapters.ipynb #45fda038
    @dataclass(kw_only=True)
    class Full(Config, method="full"):
        def build(self, layers):
            return Adapter(self, {name: FullPart(*effective_weight(layer).shape) for name, layer in layers.items()})

    def shaken(model, std=.05):
        "Give the parameters of all adapters random values."
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=std)
        return model

    # %% ../nbs/04_adapters.ipynb #25193813
    p = nn.Parameter(torch.ones(2))
    before = state_of(p)
    assert state_of(p) == before
    p.grad = torch.ones(2)
    torch.optim.SGD([p], lr=0.).step()
    assert state_of(p) != before


def test_files():
    # %% ../nbs/04_adapters.ipynb #83404782
    def tiny(name="Llama", **settings):
        "A random model of two blocks, a few thousand weights, with the layers of its family."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
        torch.manual_seed(0)
        return {
            "Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2, **settings)),
            "Qwen": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**common, num_key_value_heads=2, head_dim=8)),
            "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
            "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32)),
            "BERT": lambda: tf.BertForMaskedLM(tf.BertConfig(**common)),
            "RoBERTa": lambda: tf.RobertaForMaskedLM(tf.RobertaConfig(**common)),
            "ViT": lambda: tf.ViTForImageClassification(tf.ViTConfig(hidden_size=32, intermediate_size=48, image_size=8,
                num_hidden_layers=2, num_attention_heads=4, patch_size=4)),
        }[name]().eval()

    def logits(model, batch=2):
        "What a model says about a fixed input."
        seen = torch.linspace(-1, 1, batch*192).view(batch, 3, 8, 8) if hasattr(model.config, "patch_size") else \
            torch.arange(12*batch).view(batch, 12)
        with torch.no_grad(): return model(seen).logits

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    # %% ../nbs/04_adapters.ipynb #65463478
    class FullPart(Part):
        def __init__(self, out_, in_):
            super().__init__()
            self.D = nn.Parameter(torch.zeros(out_, in_))

        def delta(self): return self.D

    def small():
        "A layer of three outputs that carries one part."
        layer = AdaptedLinear(nn.Linear(5, 3))
        layer.parts["a"], layer.active = FullPart(3, 5), ("a",)
        nn.init.normal_(layer.parts["a"].D)
        return layer

    # %% ../nbs/04_adapters.ipynb #af353070
    class Whole(nn.Linear):
        def rebuilt(self, W):
            lost = int((W != W.round()).sum())
            if lost: raise MergeError(f"{lost} of {W.numel()} weights are not whole", lost)
            return linear_from(W, self.bias)

    class Rounding(nn.Linear):
        def project(self, W): return W + (W.round() - W).detach()
        def effective_weight(self): return self.project(self.weight)
        def forward(self, x): return F.linear(x, self.effective_weight(), self.bias)

    # %% ../nbs/04_adapters.ipynb #45fda038
    @dataclass(kw_only=True)
    class Full(Config, method="full"):
        def build(self, layers):
            return Adapter(self, {name: FullPart(*effective_weight(layer).shape) for name, layer in layers.items()})

    def shaken(model, std=.05):
        "Give the parameters of all adapters random values."
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=std)
        return model

    # %% ../nbs/04_adapters.ipynb #1b0b7daa
    code = "from pathlm.adapters.core import METHODS, method_named as m; print(*METHODS, m('sparsepeft').__name__, m('no'))"
    print(said := subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip())
    assert said == "SparsePEFT None"


def test_files_2():
    # %% ../nbs/04_adapters.ipynb #83404782
    def tiny(name="Llama", **settings):
        "A random model of two blocks, a few thousand weights, with the layers of its family."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
        torch.manual_seed(0)
        return {
            "Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2, **settings)),
            "Qwen": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**common, num_key_value_heads=2, head_dim=8)),
            "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
            "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32)),
            "BERT": lambda: tf.BertForMaskedLM(tf.BertConfig(**common)),
            "RoBERTa": lambda: tf.RobertaForMaskedLM(tf.RobertaConfig(**common)),
            "ViT": lambda: tf.ViTForImageClassification(tf.ViTConfig(hidden_size=32, intermediate_size=48, image_size=8,
                num_hidden_layers=2, num_attention_heads=4, patch_size=4)),
        }[name]().eval()

    def logits(model, batch=2):
        "What a model says about a fixed input."
        seen = torch.linspace(-1, 1, batch*192).view(batch, 3, 8, 8) if hasattr(model.config, "patch_size") else \
            torch.arange(12*batch).view(batch, 12)
        with torch.no_grad(): return model(seen).logits

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    # %% ../nbs/04_adapters.ipynb #65463478
    class FullPart(Part):
        def __init__(self, out_, in_):
            super().__init__()
            self.D = nn.Parameter(torch.zeros(out_, in_))

        def delta(self): return self.D

    def small():
        "A layer of three outputs that carries one part."
        layer = AdaptedLinear(nn.Linear(5, 3))
        layer.parts["a"], layer.active = FullPart(3, 5), ("a",)
        nn.init.normal_(layer.parts["a"].D)
        return layer

    # %% ../nbs/04_adapters.ipynb #af353070
    class Whole(nn.Linear):
        def rebuilt(self, W):
            lost = int((W != W.round()).sum())
            if lost: raise MergeError(f"{lost} of {W.numel()} weights are not whole", lost)
            return linear_from(W, self.bias)

    class Rounding(nn.Linear):
        def project(self, W): return W + (W.round() - W).detach()
        def effective_weight(self): return self.project(self.weight)
        def forward(self, x): return F.linear(x, self.effective_weight(), self.bias)

    # %% ../nbs/04_adapters.ipynb #45fda038
    @dataclass(kw_only=True)
    class Full(Config, method="full"):
        def build(self, layers):
            return Adapter(self, {name: FullPart(*effective_weight(layer).shape) for name, layer in layers.items()})

    def shaken(model, std=.05):
        "Give the parameters of all adapters random values."
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=std)
        return model

    # %% ../nbs/04_adapters.ipynb #e422683a
    model = tiny()
    attach(model, Full(target_modules="q_proj", modules_to_save=["lm_head"]), "task")
    shaken(model)
    nn.init.normal_(model.lm_head.weight)
    with tempfile.TemporaryDirectory() as d:
        save_adapter(model, d)
        other = tiny()
        load_adapter(other, d, "again")
        assert torch.equal(logits(other), logits(model)) and other.lm_head.weight.requires_grad
        assert torch.equal(logits(detach(other)), logits(tiny()))
        print(*sorted(f.name for f in Path(d).iterdir()))
        print((Path(d)/"adapter.json").read_text())


def test_files_3():
    # %% ../nbs/04_adapters.ipynb #83404782
    def tiny(name="Llama", **settings):
        "A random model of two blocks, a few thousand weights, with the layers of its family."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
        torch.manual_seed(0)
        return {
            "Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2, **settings)),
            "Qwen": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**common, num_key_value_heads=2, head_dim=8)),
            "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
            "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32)),
            "BERT": lambda: tf.BertForMaskedLM(tf.BertConfig(**common)),
            "RoBERTa": lambda: tf.RobertaForMaskedLM(tf.RobertaConfig(**common)),
            "ViT": lambda: tf.ViTForImageClassification(tf.ViTConfig(hidden_size=32, intermediate_size=48, image_size=8,
                num_hidden_layers=2, num_attention_heads=4, patch_size=4)),
        }[name]().eval()

    def logits(model, batch=2):
        "What a model says about a fixed input."
        seen = torch.linspace(-1, 1, batch*192).view(batch, 3, 8, 8) if hasattr(model.config, "patch_size") else \
            torch.arange(12*batch).view(batch, 12)
        with torch.no_grad(): return model(seen).logits

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    # %% ../nbs/04_adapters.ipynb #65463478
    class FullPart(Part):
        def __init__(self, out_, in_):
            super().__init__()
            self.D = nn.Parameter(torch.zeros(out_, in_))

        def delta(self): return self.D

    def small():
        "A layer of three outputs that carries one part."
        layer = AdaptedLinear(nn.Linear(5, 3))
        layer.parts["a"], layer.active = FullPart(3, 5), ("a",)
        nn.init.normal_(layer.parts["a"].D)
        return layer

    # %% ../nbs/04_adapters.ipynb #af353070
    class Whole(nn.Linear):
        def rebuilt(self, W):
            lost = int((W != W.round()).sum())
            if lost: raise MergeError(f"{lost} of {W.numel()} weights are not whole", lost)
            return linear_from(W, self.bias)

    class Rounding(nn.Linear):
        def project(self, W): return W + (W.round() - W).detach()
        def effective_weight(self): return self.project(self.weight)
        def forward(self, x): return F.linear(x, self.effective_weight(), self.bias)

    # %% ../nbs/04_adapters.ipynb #45fda038
    @dataclass(kw_only=True)
    class Full(Config, method="full"):
        def build(self, layers):
            return Adapter(self, {name: FullPart(*effective_weight(layer).shape) for name, layer in layers.items()})

    def shaken(model, std=.05):
        "Give the parameters of all adapters random values."
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=std)
        return model

    # %% ../nbs/04_adapters.ipynb #f48a52a4
    def judge():
        "A random classifier."
        torch.manual_seed(0)
        return tf.BertForSequenceClassification(tf.BertConfig(vocab_size=96, hidden_size=32, intermediate_size=48,
            num_hidden_layers=2, num_attention_heads=4)).eval()

    model = judge()
    adapter = attach(model, Full(modules_to_save={"classifier"}, layers_to_transform=range(1, 2)))
    assert not any("classifier" in n for n in adapter.names) and all(".1." in n for n in adapter.names)
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=.1)
    model(torch.arange(12)[None], labels=torch.tensor([1])).loss.backward()
    optimizer.step()
    with tempfile.TemporaryDirectory() as d:
        save_adapter(model, d)
        load_adapter(other := judge(), d)
        assert torch.equal(logits(other), logits(model)) and not torch.equal(logits(other), logits(judge()))


def test_what_is_refused():
    # %% ../nbs/04_adapters.ipynb #83404782
    def tiny(name="Llama", **settings):
        "A random model of two blocks, a few thousand weights, with the layers of its family."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
        torch.manual_seed(0)
        return {
            "Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2, **settings)),
            "Qwen": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**common, num_key_value_heads=2, head_dim=8)),
            "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
            "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32)),
            "BERT": lambda: tf.BertForMaskedLM(tf.BertConfig(**common)),
            "RoBERTa": lambda: tf.RobertaForMaskedLM(tf.RobertaConfig(**common)),
            "ViT": lambda: tf.ViTForImageClassification(tf.ViTConfig(hidden_size=32, intermediate_size=48, image_size=8,
                num_hidden_layers=2, num_attention_heads=4, patch_size=4)),
        }[name]().eval()

    def logits(model, batch=2):
        "What a model says about a fixed input."
        seen = torch.linspace(-1, 1, batch*192).view(batch, 3, 8, 8) if hasattr(model.config, "patch_size") else \
            torch.arange(12*batch).view(batch, 12)
        with torch.no_grad(): return model(seen).logits

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    # %% ../nbs/04_adapters.ipynb #65463478
    class FullPart(Part):
        def __init__(self, out_, in_):
            super().__init__()
            self.D = nn.Parameter(torch.zeros(out_, in_))

        def delta(self): return self.D

    def small():
        "A layer of three outputs that carries one part."
        layer = AdaptedLinear(nn.Linear(5, 3))
        layer.parts["a"], layer.active = FullPart(3, 5), ("a",)
        nn.init.normal_(layer.parts["a"].D)
        return layer

    # %% ../nbs/04_adapters.ipynb #af353070
    class Whole(nn.Linear):
        def rebuilt(self, W):
            lost = int((W != W.round()).sum())
            if lost: raise MergeError(f"{lost} of {W.numel()} weights are not whole", lost)
            return linear_from(W, self.bias)

    class Rounding(nn.Linear):
        def project(self, W): return W + (W.round() - W).detach()
        def effective_weight(self): return self.project(self.weight)
        def forward(self, x): return F.linear(x, self.effective_weight(), self.bias)

    # %% ../nbs/04_adapters.ipynb #45fda038
    @dataclass(kw_only=True)
    class Full(Config, method="full"):
        def build(self, layers):
            return Adapter(self, {name: FullPart(*effective_weight(layer).shape) for name, layer in layers.items()})

    def shaken(model, std=.05):
        "Give the parameters of all adapters random values."
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=std)
        return model

    # %% ../nbs/04_adapters.ipynb #519bd140
    def untouched(model, error, f, *args, **kwargs):
        "The message of a refusal that left the model as it was."
        before = copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]
        message = refusal(error, f, model, *args, **kwargs)
        after = model.state_dict(), [type(m) for m in model.modules()]
        assert before[1] == after[1] and before[0].keys() == after[0].keys()
        assert all(torch.equal(before[0][k], t) or t.isnan().any() for k, t in after[0].items())
        return message


    model = tiny()
    broken = tiny()
    with torch.no_grad(): broken.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    for error, config in ((UnknownModuleError, Full(target_modules="q_prj")),
                          (UnknownModuleError, Full(target_modules="embed_tokens")),
                          (SettingError, Full(layers_to_transform=[2])),
                          (SettingError, Full(modules_to_save=["score"])), (SettingError, Full(target_modules=5)),
                          (SettingError, Full(layers_to_transform=[.5])), (SettingError, Full)):
        print(untouched(model, error, attach, config))
    for name in "a.b", "training", "_modules", "trainable", "": print(untouched(model, SettingError, attach, Full(), name))
    attach(model, Full())
    print(untouched(model, SettingError, attach, Full()))
    print(untouched(model, UnknownAdapterError, activate, "french"))
    print(untouched(model, UnknownAdapterError, lambda m: mixed(m, ["french"]).__enter__()))
    print(untouched(merge(model), SettingError, attach, Full(), "second"))
    print(untouched(broken, NonFiniteError, attach, Full()))

    # %% ../nbs/04_adapters.ipynb #bbb5c1fb
    with tempfile.TemporaryDirectory() as d:
        model = tiny()
        attach(model, Full(target_modules="q_proj"))
        save_adapter(model, d)
        rounded = tiny().to(torch.bfloat16).float()
        assert "other weights" in untouched(rounded, CheckpointError, load_adapter, d)
        assert load_adapter(rounded, d, other_base=True).names == adapters(model)["default"].names
        assert "other layers" in untouched(tiny("OPT"), CheckpointError, load_adapter, d)
        file = Path(d)/"adapter.safetensors"
        whole = file.read_bytes()
        for damaged in whole[:100], whole[:-10], b"", b"not a file of tensors at all":
            file.write_bytes(damaged)
            assert "adapter.safetensors" in untouched(tiny(), CheckpointError, load_adapter, d)
        file.unlink()
        assert "no file" in untouched(tiny(), CheckpointError, load_adapter, d)


def test_what_is_refused_2():
    # %% ../nbs/04_adapters.ipynb #83404782
    def tiny(name="Llama", **settings):
        "A random model of two blocks, a few thousand weights, with the layers of its family."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
        torch.manual_seed(0)
        return {
            "Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2, **settings)),
            "Qwen": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**common, num_key_value_heads=2, head_dim=8)),
            "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
            "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32)),
            "BERT": lambda: tf.BertForMaskedLM(tf.BertConfig(**common)),
            "RoBERTa": lambda: tf.RobertaForMaskedLM(tf.RobertaConfig(**common)),
            "ViT": lambda: tf.ViTForImageClassification(tf.ViTConfig(hidden_size=32, intermediate_size=48, image_size=8,
                num_hidden_layers=2, num_attention_heads=4, patch_size=4)),
        }[name]().eval()

    def logits(model, batch=2):
        "What a model says about a fixed input."
        seen = torch.linspace(-1, 1, batch*192).view(batch, 3, 8, 8) if hasattr(model.config, "patch_size") else \
            torch.arange(12*batch).view(batch, 12)
        with torch.no_grad(): return model(seen).logits

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    # %% ../nbs/04_adapters.ipynb #65463478
    class FullPart(Part):
        def __init__(self, out_, in_):
            super().__init__()
            self.D = nn.Parameter(torch.zeros(out_, in_))

        def delta(self): return self.D

    def small():
        "A layer of three outputs that carries one part."
        layer = AdaptedLinear(nn.Linear(5, 3))
        layer.parts["a"], layer.active = FullPart(3, 5), ("a",)
        nn.init.normal_(layer.parts["a"].D)
        return layer

    # %% ../nbs/04_adapters.ipynb #af353070
    class Whole(nn.Linear):
        def rebuilt(self, W):
            lost = int((W != W.round()).sum())
            if lost: raise MergeError(f"{lost} of {W.numel()} weights are not whole", lost)
            return linear_from(W, self.bias)

    class Rounding(nn.Linear):
        def project(self, W): return W + (W.round() - W).detach()
        def effective_weight(self): return self.project(self.weight)
        def forward(self, x): return F.linear(x, self.effective_weight(), self.bias)

    # %% ../nbs/04_adapters.ipynb #45fda038
    @dataclass(kw_only=True)
    class Full(Config, method="full"):
        def build(self, layers):
            return Adapter(self, {name: FullPart(*effective_weight(layer).shape) for name, layer in layers.items()})

    def shaken(model, std=.05):
        "Give the parameters of all adapters random values."
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=std)
        return model

    # %% ../nbs/04_adapters.ipynb #519bd140
    def untouched(model, error, f, *args, **kwargs):
        "The message of a refusal that left the model as it was."
        before = copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]
        message = refusal(error, f, model, *args, **kwargs)
        after = model.state_dict(), [type(m) for m in model.modules()]
        assert before[1] == after[1] and before[0].keys() == after[0].keys()
        assert all(torch.equal(before[0][k], t) or t.isnan().any() for k, t in after[0].items())
        return message


    model = tiny()
    broken = tiny()
    with torch.no_grad(): broken.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    for error, config in ((UnknownModuleError, Full(target_modules="q_prj")),
                          (UnknownModuleError, Full(target_modules="embed_tokens")),
                          (SettingError, Full(layers_to_transform=[2])),
                          (SettingError, Full(modules_to_save=["score"])), (SettingError, Full(target_modules=5)),
                          (SettingError, Full(layers_to_transform=[.5])), (SettingError, Full)):
        print(untouched(model, error, attach, config))
    for name in "a.b", "training", "_modules", "trainable", "": print(untouched(model, SettingError, attach, Full(), name))
    attach(model, Full())
    print(untouched(model, SettingError, attach, Full()))
    print(untouched(model, UnknownAdapterError, activate, "french"))
    print(untouched(model, UnknownAdapterError, lambda m: mixed(m, ["french"]).__enter__()))
    print(untouched(merge(model), SettingError, attach, Full(), "second"))
    print(untouched(broken, NonFiniteError, attach, Full()))

    # %% ../nbs/04_adapters.ipynb #b6a50371
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 1).eval()
    for target in "out_proj", "linear1": assert "reads its weight" in untouched(encoder, SettingError, attach, Full(
        target_modules=target))
    model = tiny()
    attach(model, Full())
    with torch.no_grad(): adapters(model)["default"].parts[-1].D[0, 0] = float("nan")
    assert "down_proj" in untouched(model, NonFiniteError, merge)
    detach(model)
    attach(model, Full())
    merge(model).to(torch.bfloat16)
    assert logits(unmerge(model)).dtype == torch.bfloat16


def test_what_is_refused_3():
    # %% ../nbs/04_adapters.ipynb #83404782
    def tiny(name="Llama", **settings):
        "A random model of two blocks, a few thousand weights, with the layers of its family."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
        torch.manual_seed(0)
        return {
            "Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2, **settings)),
            "Qwen": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**common, num_key_value_heads=2, head_dim=8)),
            "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
            "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32)),
            "BERT": lambda: tf.BertForMaskedLM(tf.BertConfig(**common)),
            "RoBERTa": lambda: tf.RobertaForMaskedLM(tf.RobertaConfig(**common)),
            "ViT": lambda: tf.ViTForImageClassification(tf.ViTConfig(hidden_size=32, intermediate_size=48, image_size=8,
                num_hidden_layers=2, num_attention_heads=4, patch_size=4)),
        }[name]().eval()

    def logits(model, batch=2):
        "What a model says about a fixed input."
        seen = torch.linspace(-1, 1, batch*192).view(batch, 3, 8, 8) if hasattr(model.config, "patch_size") else \
            torch.arange(12*batch).view(batch, 12)
        with torch.no_grad(): return model(seen).logits

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    # %% ../nbs/04_adapters.ipynb #65463478
    class FullPart(Part):
        def __init__(self, out_, in_):
            super().__init__()
            self.D = nn.Parameter(torch.zeros(out_, in_))

        def delta(self): return self.D

    def small():
        "A layer of three outputs that carries one part."
        layer = AdaptedLinear(nn.Linear(5, 3))
        layer.parts["a"], layer.active = FullPart(3, 5), ("a",)
        nn.init.normal_(layer.parts["a"].D)
        return layer

    # %% ../nbs/04_adapters.ipynb #af353070
    class Whole(nn.Linear):
        def rebuilt(self, W):
            lost = int((W != W.round()).sum())
            if lost: raise MergeError(f"{lost} of {W.numel()} weights are not whole", lost)
            return linear_from(W, self.bias)

    class Rounding(nn.Linear):
        def project(self, W): return W + (W.round() - W).detach()
        def effective_weight(self): return self.project(self.weight)
        def forward(self, x): return F.linear(x, self.effective_weight(), self.bias)

    # %% ../nbs/04_adapters.ipynb #45fda038
    @dataclass(kw_only=True)
    class Full(Config, method="full"):
        def build(self, layers):
            return Adapter(self, {name: FullPart(*effective_weight(layer).shape) for name, layer in layers.items()})

    def shaken(model, std=.05):
        "Give the parameters of all adapters random values."
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=std)
        return model

    # %% ../nbs/04_adapters.ipynb #519bd140
    def untouched(model, error, f, *args, **kwargs):
        "The message of a refusal that left the model as it was."
        before = copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]
        message = refusal(error, f, model, *args, **kwargs)
        after = model.state_dict(), [type(m) for m in model.modules()]
        assert before[1] == after[1] and before[0].keys() == after[0].keys()
        assert all(torch.equal(before[0][k], t) or t.isnan().any() for k, t in after[0].items())
        return message


    model = tiny()
    broken = tiny()
    with torch.no_grad(): broken.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    for error, config in ((UnknownModuleError, Full(target_modules="q_prj")),
                          (UnknownModuleError, Full(target_modules="embed_tokens")),
                          (SettingError, Full(layers_to_transform=[2])),
                          (SettingError, Full(modules_to_save=["score"])), (SettingError, Full(target_modules=5)),
                          (SettingError, Full(layers_to_transform=[.5])), (SettingError, Full)):
        print(untouched(model, error, attach, config))
    for name in "a.b", "training", "_modules", "trainable", "": print(untouched(model, SettingError, attach, Full(), name))
    attach(model, Full())
    print(untouched(model, SettingError, attach, Full()))
    print(untouched(model, UnknownAdapterError, activate, "french"))
    print(untouched(model, UnknownAdapterError, lambda m: mixed(m, ["french"]).__enter__()))
    print(untouched(merge(model), SettingError, attach, Full(), "second"))
    print(untouched(broken, NonFiniteError, attach, Full()))

    # %% ../nbs/04_adapters.ipynb #44d2fdc1
    with tempfile.TemporaryDirectory() as d:
        model = tiny().to(torch.bfloat16)
        attach(model, Full(target_modules="q_proj"))
        save_adapter(shaken(model), d)
        wider = tiny().to(torch.bfloat16).float()
        load_adapter(wider, d)
        torch.testing.assert_close(logits(wider), logits(model).float(), rtol=.05, atol=.05)


def test_limits():
    # %% ../nbs/04_adapters.ipynb #83404782
    def tiny(name="Llama", **settings):
        "A random model of two blocks, a few thousand weights, with the layers of its family."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
        torch.manual_seed(0)
        return {
            "Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2, **settings)),
            "Qwen": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**common, num_key_value_heads=2, head_dim=8)),
            "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
            "OPT": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=32)),
            "BERT": lambda: tf.BertForMaskedLM(tf.BertConfig(**common)),
            "RoBERTa": lambda: tf.RobertaForMaskedLM(tf.RobertaConfig(**common)),
            "ViT": lambda: tf.ViTForImageClassification(tf.ViTConfig(hidden_size=32, intermediate_size=48, image_size=8,
                num_hidden_layers=2, num_attention_heads=4, patch_size=4)),
        }[name]().eval()

    def logits(model, batch=2):
        "What a model says about a fixed input."
        seen = torch.linspace(-1, 1, batch*192).view(batch, 3, 8, 8) if hasattr(model.config, "patch_size") else \
            torch.arange(12*batch).view(batch, 12)
        with torch.no_grad(): return model(seen).logits

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    # %% ../nbs/04_adapters.ipynb #65463478
    class FullPart(Part):
        def __init__(self, out_, in_):
            super().__init__()
            self.D = nn.Parameter(torch.zeros(out_, in_))

        def delta(self): return self.D

    def small():
        "A layer of three outputs that carries one part."
        layer = AdaptedLinear(nn.Linear(5, 3))
        layer.parts["a"], layer.active = FullPart(3, 5), ("a",)
        nn.init.normal_(layer.parts["a"].D)
        return layer

    # %% ../nbs/04_adapters.ipynb #af353070
    class Whole(nn.Linear):
        def rebuilt(self, W):
            lost = int((W != W.round()).sum())
            if lost: raise MergeError(f"{lost} of {W.numel()} weights are not whole", lost)
            return linear_from(W, self.bias)

    class Rounding(nn.Linear):
        def project(self, W): return W + (W.round() - W).detach()
        def effective_weight(self): return self.project(self.weight)
        def forward(self, x): return F.linear(x, self.effective_weight(), self.bias)

    # %% ../nbs/04_adapters.ipynb #45fda038
    @dataclass(kw_only=True)
    class Full(Config, method="full"):
        def build(self, layers):
            return Adapter(self, {name: FullPart(*effective_weight(layer).shape) for name, layer in layers.items()})

    def shaken(model, std=.05):
        "Give the parameters of all adapters random values."
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=std)
        return model

    # %% ../nbs/04_adapters.ipynb #07e04a7f
    model = tiny("GPT-2")
    attach(model, Full())
    changed = logits(shaken(model))
    torch.testing.assert_close(logits(bake(model)), changed, rtol=1e-4, atol=1e-5)
    assert model.state_dict().keys() == tiny("GPT-2").state_dict().keys() and not adapters(model)
