from pathlm.adapters.lora import *
import numpy as np
import torch
from torch import nn
from pathlm.base import SettingError
from pathlm.base import UnknownModuleError
from pathlm.linear import effective_weight
import importlib.util
import json
import random
import tempfile
import transformers as tf
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from torch.utils.checkpoint import CheckpointError as RecomputeError
from pathlm.adapters.core import adapted
from pathlm.adapters.core import attach
from pathlm.adapters.core import detach
from pathlm.adapters.core import load_adapter
from pathlm.adapters.core import parameter_groups
from pathlm.adapters.core import save_adapter
from pathlm.adapters.core import trained
from pathlm.linear import merge


def test_the_part():
    # %% ../nbs/20_lora.ipynb #152f8ded
    def tiny(name="Llama"):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
        torch.manual_seed(0)
        return {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
                }[name]().eval()

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def shaken(model, std=.1):
        "Give the parameters of all adapters random values."
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=std)
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    QKV, THREE = "q_proj,k_proj,v_proj", {"q_proj,k_proj,v_proj": [8, 6, 4], "up_proj": [8, 4, 2]}
    FIVE = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]

    # %% ../nbs/20_lora.ipynb #c2a1e714
    @settings(deadline=None, max_examples=25, derandomize=True)
    @given(out_=st.integers(1, 9), in_=st.integers(1, 9), R=st.integers(1, 6), data=st.data(),
           dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]))
    def a_prefix_is_a_sum(out_, in_, R, data, dtype):
        part = LoRAPart((out_, in_), R, .5)
        assert not part.delta().any()
        nn.init.normal_(part.B)
        part.rank = r = data.draw(st.integers(1, R))
        D = .5 * sum(torch.outer(part.B[:, i], part.A[i]) for i in range(r))
        torch.testing.assert_close(part.delta(), D)
        x = torch.randn(3, in_).to(dtype)
        wide = torch.float32 if dtype != torch.float64 else dtype
        got, want = part(x), x.to(wide) @ D.T.to(wide)
        assert got.dtype == dtype
        torch.testing.assert_close(got.to(wide), want, rtol=.05 if dtype in (torch.bfloat16, torch.float16) else 1e-5,
                                   atol=.05 if dtype in (torch.bfloat16, torch.float16) else 1e-5)

    a_prefix_is_a_sum()


def test_the_configuration():
    # %% ../nbs/20_lora.ipynb #152f8ded
    def tiny(name="Llama"):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
        torch.manual_seed(0)
        return {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
                }[name]().eval()

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def shaken(model, std=.1):
        "Give the parameters of all adapters random values."
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=std)
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    QKV, THREE = "q_proj,k_proj,v_proj", {"q_proj,k_proj,v_proj": [8, 6, 4], "up_proj": [8, 4, 2]}
    FIVE = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]

    # %% ../nbs/20_lora.ipynb #53f2d198
    for family, targets in ("Llama", ["q_proj", "k_proj", "v_proj", "up_proj"]), ("GPT-2", ["c_attn", "c_proj"]):
        model = tiny(family)
        base = logits(model)
        adapter = attach(model, LoRA(r=4, target_modules=targets))
        expected = sum(4*sum(effective_weight(layer.base).shape) for layer in adapted(model).values())
        assert trained(model) == expected == sum(t.numel() for t in adapter.tensors().values())
        assert torch.equal(logits(model), base)
        after = logits(shaken(model))
        torch.testing.assert_close(logits(merge(model)), after, rtol=1e-4, atol=1e-5)
        assert torch.equal(logits(detach(model)), base) and (after - base).abs().max() > .1


def test_the_configuration_2():
    # %% ../nbs/20_lora.ipynb #152f8ded
    def tiny(name="Llama"):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
        torch.manual_seed(0)
        return {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
                }[name]().eval()

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def shaken(model, std=.1):
        "Give the parameters of all adapters random values."
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=std)
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    QKV, THREE = "q_proj,k_proj,v_proj", {"q_proj,k_proj,v_proj": [8, 6, 4], "up_proj": [8, 4, 2]}
    FIVE = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]

    # %% ../nbs/20_lora.ipynb #81ab08ef
    model = tiny()
    attach(model, LoRA(r=4))
    layer = adapted(shaken(model))["model.layers.0.mlp.up_proj"]
    x = torch.randn(64, 32)
    unmerged = layer(x)
    merged = merge(model).model.layers[0].mlp.up_proj(x)
    assert (merged - unmerged).norm() <= 1e-6 * unmerged.norm()


def test_setting_the_ranks():
    # %% ../nbs/20_lora.ipynb #152f8ded
    def tiny(name="Llama"):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
        torch.manual_seed(0)
        return {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
                }[name]().eval()

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def shaken(model, std=.1):
        "Give the parameters of all adapters random values."
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=std)
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    QKV, THREE = "q_proj,k_proj,v_proj", {"q_proj,k_proj,v_proj": [8, 6, 4], "up_proj": [8, 4, 2]}
    FIVE = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]

    # %% ../nbs/20_lora.ipynb #a2ede9fb
    model = tiny()
    attach(model, LoRA(r=8, lora_alpha=16, target_modules=FIVE, elastic=THREE))
    print(*rank_space(model).items(), sep="\n")

    # %% ../nbs/20_lora.ipynb #95dd5124
    model = tiny()
    attach(model, LoRA(r=8, lora_alpha=16, target_modules=FIVE, elastic=THREE))
    shaken(model)
    full = logits(model)
    set_ranks(model, {f"model.layers.0:{QKV}": 4, "model.layers.1:up_proj": 2})
    assert get_ranks(model) == {f"model.layers.0:{QKV}": 4, f"model.layers.1:{QKV}": 8,
                                "model.layers.0:up_proj": 8, "model.layers.1:up_proj": 2}
    layer = adapted(model)["model.layers.0.self_attn.k_proj"]
    part = layer.parts["default"]
    torch.testing.assert_close(layer.effective_weight(), layer.base.weight + 2*part.B[:, :4] @ part.A[:4])
    sub = logits(model)
    assert (sub - full).abs().max() > .01
    with tempfile.TemporaryDirectory() as d:
        save_adapter(model, d)
        load_adapter(other := tiny(), d)
        assert torch.equal(logits(other), sub) and json.loads(json.dumps(get_ranks(other))) == get_ranks(model)
    torch.testing.assert_close(logits(merge(model)), sub, rtol=1e-4, atol=1e-5)


def test_setting_the_ranks_2():
    # %% ../nbs/20_lora.ipynb #152f8ded
    def tiny(name="Llama"):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
        torch.manual_seed(0)
        return {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
                }[name]().eval()

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def shaken(model, std=.1):
        "Give the parameters of all adapters random values."
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=std)
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    QKV, THREE = "q_proj,k_proj,v_proj", {"q_proj,k_proj,v_proj": [8, 6, 4], "up_proj": [8, 4, 2]}
    FIVE = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]

    # %% ../nbs/20_lora.ipynb #a2ede9fb
    model = tiny()
    attach(model, LoRA(r=8, lora_alpha=16, target_modules=FIVE, elastic=THREE))
    print(*rank_space(model).items(), sep="\n")

    # %% ../nbs/20_lora.ipynb #db3f53bb
    model = tiny()
    attach(model, LoRA(target_modules=["q_proj", "k_proj", "v_proj", "up_proj"], elastic=THREE))
    before = get_ranks(model)
    print(refusal(SettingError, set_ranks, model, {"model.layers.0:up_proj": 4, "model.layers.1:up_proj": 5}))
    print(refusal(SettingError, set_ranks, model, {"model.layers.2:up_proj": 4}))
    print(refusal(SettingError, LoRA, r=0))
    print(refusal(SettingError, LoRA, r="8"))
    print(refusal(SettingError, LoRA, elastic={"q_proj": [8, 8]}))
    print(refusal(SettingError, LoRA, r=4, elastic={"q_proj": [8, 4]}))
    print(refusal(SettingError, attach, tiny(), LoRA(rank_pattern={"q_proj": 4}, elastic={"q_proj": [8, 4]})))
    print(refusal(SettingError, attach, tiny(), LoRA(r=33)))
    print(refusal(UnknownModuleError, attach, tiny(), LoRA(target_modules="q_proj", elastic={"k_proj": [8, 4]})))
    print(refusal(SettingError, attach, tiny(), LoRA(elastic={"q_proj,k_proj": [8, 4], "q_proj": [8, 2]})))
    print(refusal(SettingError, lambda m: (attach(m, LoRA()), rank_space(m)), tiny()))
    assert get_ranks(model) == before


def test_which_sub_adapter_a_step_trains():
    # %% ../nbs/20_lora.ipynb #152f8ded
    def tiny(name="Llama"):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
        torch.manual_seed(0)
        return {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
                }[name]().eval()

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def shaken(model, std=.1):
        "Give the parameters of all adapters random values."
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=std)
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    QKV, THREE = "q_proj,k_proj,v_proj", {"q_proj,k_proj,v_proj": [8, 6, 4], "up_proj": [8, 4, 2]}
    FIVE = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]

    # %% ../nbs/20_lora.ipynb #2c2a2af3
    space = {"0:q": [8, 6, 4], "1:q": [8, 6, 4]}
    drawn = [random_rule(space, step)[0] for step in range(3000)]
    share = np.array([[np.mean([d[g] == r for d in drawn]) for r in space[g]] for g in space])
    assert np.abs(share - 1/3).max() < 4*np.sqrt(2/9/3000)
    assert abs(np.mean([d["0:q"] == d["1:q"] for d in drawn]) - 1/3) < 4*np.sqrt(2/9/3000)
    assert random_rule(space, 7, seed=1) == random_rule(space, 7, seed=1)
    assert sandwich_rule(space, 5)[0] == largest(space) and sandwich_rule(space, 5)[2] == smallest(space)


def test_which_sub_adapter_a_step_trains_2():
    # %% ../nbs/20_lora.ipynb #152f8ded
    def tiny(name="Llama"):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
        torch.manual_seed(0)
        return {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
                }[name]().eval()

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def shaken(model, std=.1):
        "Give the parameters of all adapters random values."
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=std)
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    QKV, THREE = "q_proj,k_proj,v_proj", {"q_proj,k_proj,v_proj": [8, 6, 4], "up_proj": [8, 4, 2]}
    FIVE = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]

    # %% ../nbs/20_lora.ipynb #6e7be3f3
    model = tiny()
    attach(model, LoRA(target_modules=["q_proj", "k_proj", "v_proj", "up_proj"], elastic=THREE))
    shaken(model)
    ids = torch.randint(0, 96, (2, 12))
    ranks = random_rule(rank_space(model), 3)[0]
    elastic_backward(model, lambda: model(ids, labels=ids).loss, step=3)
    for group, r in ranks.items():
        for part in model.pathlm_adapters["default"].by_group[group]:
            assert part.A.grad[:r].abs().min() > 0 and part.B.grad[:, :r].abs().min() > 0
            assert not part.A.grad[r:].any() and not part.B.grad[:, r:].any() and part.rank == len(part.A)


def test_which_sub_adapter_a_step_trains_3():
    # %% ../nbs/20_lora.ipynb #152f8ded
    def tiny(name="Llama"):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
        torch.manual_seed(0)
        return {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
                }[name]().eval()

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def shaken(model, std=.1):
        "Give the parameters of all adapters random values."
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=std)
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    QKV, THREE = "q_proj,k_proj,v_proj", {"q_proj,k_proj,v_proj": [8, 6, 4], "up_proj": [8, 4, 2]}
    FIVE = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]

    # %% ../nbs/20_lora.ipynb #14ee037f
    if importlib.util.find_spec("accelerate"):
        model, data = tiny(), [{"input_ids": i, "labels": i} for i in torch.randint(0, 96, (24, 12))]
        attach(model, LoRA(target_modules=["q_proj", "k_proj", "v_proj", "up_proj"], elastic=THREE, learning_rate=1e-2))
        seen = []
        hook = model.register_forward_pre_hook(lambda *_: seen.append(get_ranks(model)))
        optimizer = torch.optim.AdamW(parameter_groups(model))
        with tempfile.TemporaryDirectory() as d:
            args = tf.TrainingArguments(d, max_steps=4, per_device_train_batch_size=4, gradient_accumulation_steps=3,
                report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True, logging_strategy="no")
            trainer = tf.Trainer(model, args, train_dataset=data, optimizers=(optimizer, None),
                                 callbacks=[elastic_callback(model, seed=1, rule=sandwich_rule)])
            trainer.remove_callback(tf.trainer_callback.PrinterCallback)
            trainer.train()
        hook.remove()
        space = rank_space(model)
        assert seen == [ranks for step in range(4) for ranks in sandwich_rule(space, step, seed=1)]
        assert get_ranks(model) == largest(space)
        assert any(part.B.any() for part in model.pathlm_adapters["default"].parts)


def test_why_the_draw_is_not_in_the_forward_pass():
    # %% ../nbs/20_lora.ipynb #152f8ded
    def tiny(name="Llama"):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
        torch.manual_seed(0)
        return {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
                }[name]().eval()

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def shaken(model, std=.1):
        "Give the parameters of all adapters random values."
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=std)
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    QKV, THREE = "q_proj,k_proj,v_proj", {"q_proj,k_proj,v_proj": [8, 6, 4], "up_proj": [8, 4, 2]}
    FIVE = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]

    # %% ../nbs/20_lora.ipynb #09e70ceb
    class Drawing(LoRAPart):
        "What not to do."
        def forward(self, x):
            self.rank = self.draws.choice([8, 6, 4])
            return super().forward(x)

    def gradients(kind, reentrant=None, seed=0):
        "The gradients of one step, with gradient checkpointing of either kind or without."
        model = tiny().train()
        adapter = shaken_alike(model, kind, seed)
        model.enable_input_require_grads()
        if reentrant is not None: model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        ids = torch.arange(24).view(2, 12)
        model(ids, labels=ids).loss.backward()
        return torch.cat([p.grad.flatten() for p in adapter.parameters()])

    def shaken_alike(model, kind, seed):
        "Attach an elastic adapter with parts of a kind."
        torch.manual_seed(1)
        adapter = attach(model, LoRA(target_modules=["q_proj", "k_proj", "v_proj", "up_proj"], elastic=THREE))
        shaken(model)
        set_ranks(model, random_rule(rank_space(model), seed)[0])
        draws = random.Random(seed)
        for part in adapter.parts: part.__class__, part.draws = kind, draws
        return adapter

    # %% ../nbs/20_lora.ipynb #52fc7de4
    plain = gradients(LoRAPart)
    for reentrant in True, False: torch.testing.assert_close(gradients(LoRAPart, reentrant), plain)
    wrong = (gradients(Drawing, True) - gradients(Drawing)).norm() / gradients(Drawing).norm()
    print(f"drawn in the forward pass: gradients off by {wrong:.0%} of their norm, or "
      f"{refusal(RecomputeError, gradients, Drawing, False).splitlines()[0][:72]}…")
    assert wrong > .1


def test_taking_a_sub_adapter_out():
    # %% ../nbs/20_lora.ipynb #152f8ded
    def tiny(name="Llama"):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
        torch.manual_seed(0)
        return {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
                }[name]().eval()

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def shaken(model, std=.1):
        "Give the parameters of all adapters random values."
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=std)
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    QKV, THREE = "q_proj,k_proj,v_proj", {"q_proj,k_proj,v_proj": [8, 6, 4], "up_proj": [8, 4, 2]}
    FIVE = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]

    # %% ../nbs/20_lora.ipynb #12c397cf
    model = tiny()
    adapter = attach(model, LoRA(lora_alpha=5, use_rslora=True, target_modules=["q_proj", "k_proj", "v_proj", "up_proj"],
                                 elastic=THREE))
    shaken(model)
    set_ranks(model, random_rule(rank_space(model), 1)[0])
    plain = extract(adapter)
    for old, new in zip(adapter.parts, plain.parts, strict=True):
        assert torch.equal(old.delta(), new.delta()) and len(new.A) == old.rank
    rebuilt = plain.config.build({n: layer.base for n, layer in adapted(model).items()})
    assert [(p.rank, round(p.scale, 6)) for p in rebuilt.parts] == [(p.rank, round(p.scale, 6)) for p in plain.parts]


def test_taking_a_sub_adapter_out_2():
    # %% ../nbs/20_lora.ipynb #152f8ded
    def tiny(name="Llama"):
        "A random model of two blocks, a few thousand weights."
        ids = dict(vocab_size=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        common = ids | dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
        torch.manual_seed(0)
        return {"Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, num_key_value_heads=2)),
                "GPT-2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**ids, n_embd=32, n_inner=48, n_layer=2, n_head=4)),
                }[name]().eval()

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def shaken(model, std=.1):
        "Give the parameters of all adapters random values."
        for p in model.pathlm_adapters.parameters(): nn.init.normal_(p, std=std)
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    QKV, THREE = "q_proj,k_proj,v_proj", {"q_proj,k_proj,v_proj": [8, 6, 4], "up_proj": [8, 4, 2]}
    FIVE = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]

    # %% ../nbs/20_lora.ipynb #81542ae5
    class MLP(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x): return self.down(torch.relu(self.up(x)))

    torch.manual_seed(0)
    model = MLP()
    attach(model, LoRA(r=2))
    shaken(model)
    x = torch.randn(4, 8)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))
    compiled(x).sum().backward()
    assert all(p.grad is not None for p in model.pathlm_adapters.parameters())
