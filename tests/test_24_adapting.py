from pathlm.adapters.train import *
from functools import partial
import torch
from pathlm.adapters.core import attach
from pathlm.adapters.lora import LoRA
from pathlm.adapters.svft import SVFT
from pathlm.adapters.vblora import VBLoRA
from pathlm.base import SettingError
from pathlm.evaluate import Batch
import tempfile
import transformers as tf


def test_the_loop():
    # %% ../nbs/24_adapting.ipynb #b842ba15
    def tiny():
        "A random language model of two blocks."
        torch.manual_seed(0)
        return tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, bos_token_id=0, eos_token_id=0, pad_token_id=0)).eval()

    def windows(n=6):
        "Batches of random tokens."
        ids = torch.randint(0, 96, (n, 2, 12), generator=torch.Generator().manual_seed(0))
        return [Batch(i, torch.ones_like(i), i.roll(-1, 1), torch.arange(2)) for i in ids]

    BANK = dict(num_vectors=8, vector_length=16, init_vector_bank_bound=.2, learning_rate_vector_bank=.02)
    METHODS_HERE = {"LoRA": LoRA(r=4, learning_rate=1e-2), "VB-LoRA": VBLoRA(r=2, **BANK),
                    "SVFT": SVFT(pattern="banded", off_diagonal=1)}

    # %% ../nbs/24_adapting.ipynb #90d5068f
    for config in METHODS_HERE.values():
        torch.manual_seed(1)
        attach(model := tiny(), config)
        log = adapt(model, windows(1), steps=30)
        assert log["train"][-1] < log["train"][0] - .02 and len(log["train"]) == 30


def test_the_loop_2():
    # %% ../nbs/24_adapting.ipynb #b842ba15
    def tiny():
        "A random language model of two blocks."
        torch.manual_seed(0)
        return tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, bos_token_id=0, eos_token_id=0, pad_token_id=0)).eval()

    def windows(n=6):
        "Batches of random tokens."
        ids = torch.randint(0, 96, (n, 2, 12), generator=torch.Generator().manual_seed(0))
        return [Batch(i, torch.ones_like(i), i.roll(-1, 1), torch.arange(2)) for i in ids]

    BANK = dict(num_vectors=8, vector_length=16, init_vector_bank_bound=.2, learning_rate_vector_bank=.02)
    METHODS_HERE = {"LoRA": LoRA(r=4, learning_rate=1e-2), "VB-LoRA": VBLoRA(r=2, **BANK),
                    "SVFT": SVFT(pattern="banded", off_diagonal=1)}

    # %% ../nbs/24_adapting.ipynb #111d5323
    class Stopped(Exception): pass

    def stops_at(last):
        "A backward pass that is interrupted."
        def backward(model, loss, step, seed):
            if step == last: raise Stopped
            return plain_backward(model, loss, step, seed)
        return backward

    for config in METHODS_HERE.values():
        runs = []
        for halt in None, 7:
            torch.manual_seed(1)
            attach(model := tiny(), config)
            with tempfile.TemporaryDirectory() as d:
                if halt:
                    try: adapt(model, windows(), steps=12, folder=d, every=5, backward=stops_at(halt))
                    except Stopped: pass
                    torch.manual_seed(2)
                    attach(model := tiny(), config)
                adapt(model, windows(), steps=12, folder=d, every=5)
            runs.append([p.detach().clone() for p in model.parameters() if p.requires_grad])
        assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_the_loop_3():
    # %% ../nbs/24_adapting.ipynb #b842ba15
    def tiny():
        "A random language model of two blocks."
        torch.manual_seed(0)
        return tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, bos_token_id=0, eos_token_id=0, pad_token_id=0)).eval()

    def windows(n=6):
        "Batches of random tokens."
        ids = torch.randint(0, 96, (n, 2, 12), generator=torch.Generator().manual_seed(0))
        return [Batch(i, torch.ones_like(i), i.roll(-1, 1), torch.arange(2)) for i in ids]

    BANK = dict(num_vectors=8, vector_length=16, init_vector_bank_bound=.2, learning_rate_vector_bank=.02)
    METHODS_HERE = {"LoRA": LoRA(r=4, learning_rate=1e-2), "VB-LoRA": VBLoRA(r=2, **BANK),
                    "SVFT": SVFT(pattern="banded", off_diagonal=1)}

    # %% ../nbs/24_adapting.ipynb #42c8fc24
    attach(model := tiny(), LoRA(r=2))
    with tempfile.TemporaryDirectory() as d:
        adapt(model, windows(), steps=2, folder=d)
        for wrong, call in (("steps=2, not 3", partial(adapt, model, windows(), steps=3, folder=d)),
                            ("steps=0", partial(adapt, model, windows(), steps=0)),
                            ("no trainable", partial(adapt, tiny().requires_grad_(False), windows()))):
            try: call()
            except SettingError as e: assert wrong in str(e)
            else: raise AssertionError(wrong)


def test_the_rule_for_learning_rates():
    # %% ../nbs/24_adapting.ipynb #9d160d60
    tried = []
    def measured(jobs):
        "A method whose best power of three is 2."
        tried.extend(jobs)
        return [{"valid": (power - 2)**2, "power": power, "seed": seed} for power, seed in jobs]

    found = swept(measured, seeds=3)
    assert [(r["power"], r["seed"]) for r in found] == [(-1, 0), (0, 0), (1, 0), (2, 0), (3, 0), (2, 1), (2, 2)]
