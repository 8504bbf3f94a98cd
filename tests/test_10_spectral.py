from pathlm.spectral import *
import math
from pathlib import Path
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from pathlm.base import SettingError
from pathlm.base import digest
from pathlm.evaluate import Batch
from pathlm.evaluate import batch_nll
from pathlm.linear import effective_weight
from pathlm.linear import replace
from pathlm.linear import select
from pathlm.objectives import whiten
import tempfile
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from transformers.pytorch_utils import Conv1D
from pathlm.adapters.core import attach
from pathlm.adapters.lora import LoRA
from pathlm.evaluate import batches
from pathlm.evaluate import evaluate
from pathlm.linear import densify
from pathlm.linear import merge
from pathlm.models import corpus
from pathlm.models import new_model
from pathlm.models import pretrained
from pathlm.objectives import gram
from pathlm.objectives import output_error
from pathlm.objectives import weight_error
from transformers import GPT2Config
from transformers import GPT2LMHeadModel
from transformers import GPTNeoXConfig
from transformers import GPTNeoXForCausalLM
from transformers import OPTConfig
from transformers import OPTForCausalLM


def test_one_form_for_two_objectives():
    # %% ../nbs/10_spectral.ipynb #a63c7bd9
    @given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
    @settings(deadline=None, max_examples=25, derandomize=True)
    def law(m, n, seed):
        g = torch.Generator().manual_seed(seed)
        W, X = (torch.randn(*s, dtype=torch.float64, generator=g) for s in ((m, n), (n, 20)))
        G = X @ X.T
        for spec, error in (spectrum(W), weight_error), (output_spectrum(W, whiten(G)[0]), lambda *a: output_error(*a, G)):
            for r in range(min(m, n) + 1):
                assert math.isclose(spec.error(r)**2, error(W, spec.at(r)).item(), rel_tol=1e-9, abs_tol=1e-12)

    law()


def test_one_form_for_two_objectives_2():
    # %% ../nbs/10_spectral.ipynb #0aeb3a97
    zero, row = spectrum(torch.zeros(3, 5)), spectrum(torch.tensor([[3., 4.]], dtype=torch.bfloat16))
    assert zero.error(0) == 0 and torch.equal(zero.at(2), torch.zeros(3, 5))
    assert abs(row.error(0) - 5) < 1e-6 and row.at(1).dtype == torch.float32


def test_a_sketch_when_the_rank_is_small():
    # %% ../nbs/10_spectral.ipynb #98bdacdf
    def decaying(m, n, power, seed=0):
        g = torch.Generator().manual_seed(seed)
        U, V = (torch.linalg.qr(torch.randn(k, min(m, n), generator=g, dtype=torch.float64)).Q for k in (m, n))
        return U @ torch.diag(torch.arange(1, min(m, n) + 1, dtype=torch.float64)**-power) @ V.T

    # %% ../nbs/10_spectral.ipynb #b4d6092a
    W = decaying(60, 40, .5)
    spec = sketch(W, 10)
    for r in range(11): assert math.isclose(spec.error(r)**2, weight_error(W, spec.at(r)).item(), rel_tol=1e-9)
    assert spec.error(10) >= spectrum(W).error(10)*(1 - 1e-12)


def test_rate_rank_energy():
    # %% ../nbs/10_spectral.ipynb #9f8d8552
    assert [rank_of_rate(r, 4096) for r in RATES] == [4096, 3686, 2048, 1024, 409, 204, 40, 20]
    assert rank_of_rate(.9, 10) == 1 and rank_of_rate(.99, 10) == 0
    for bad in -.1, 1, 1.5, math.nan:
        try: rank_of_rate(bad, 10)
        except SettingError as e: assert str(e) == f"rate={bad} is outside [0, 1)"
        else: raise AssertionError(bad)


def test_rate_rank_energy_2():
    # %% ../nbs/10_spectral.ipynb #c8dcb88d
    spec = spectrum(torch.diag(torch.tensor([4., 3., 0.])))
    assert [rank_of_energy(e, spec) for e in (.1, .64, .65, 1)] == [1, 1, 2, 2]
    assert rank_of_energy(.5, spectrum(torch.zeros(3, 2))) == 0


def test_rate_rank_energy_3():
    # %% ../nbs/10_spectral.ipynb #d36e8cfa
    W = torch.eye(7, 5, dtype=torch.float64) @ torch.diag(1/torch.arange(1., 6)).double()
    assert math.isclose(condition_number(W), np.linalg.cond(W.numpy()), rel_tol=1e-6)
    assert condition_number(W @ torch.diag(torch.tensor([1., 1, 1, 1, 0])).double()) == math.inf
    assert math.isclose(condition_number(torch.diag(torch.logspace(0, -4, 300))), 1e4, rel_tol=1e-3)
    assert math.isclose(stable_rank(spectrum(W)), sum(i**-2 for i in range(1, 6)), rel_tol=1e-6)
    assert stable_rank(spectrum(torch.zeros(2, 2))) == 0


def test_factors_where_they_pay():
    # %% ../nbs/10_spectral.ipynb #d0f23c3d
    assert pays(127, 256, 256) and not pays(128, 256, 256) and pays(170, 512, 256) and not pays(171, 512, 256)


def test_factors_where_they_pay_2():
    # %% ../nbs/10_spectral.ipynb #976d1501
    def check(layer, tolerance):
        W, x = effective_weight(layer).detach(), torch.randn(2, 3, effective_weight(layer).shape[1]).to(layer.weight)
        spec = spectrum(W)
        for r in range(len(spec.s) + 1):
            new = truncated(layer, spec, r)
            assert isinstance(new, FactoredLinear) == (pays(r, *W.shape) and r < len(spec.s))
            want = F.linear(x, spec.at(r).to(W) if r < len(spec.s) else W, layer.bias)
            torch.testing.assert_close(new(x), want, rtol=tolerance, atol=tolerance)

    torch.manual_seed(0)
    for m, n in (1, 7), (8, 8), (5, 12), (9, 1):
        for layer in nn.Linear(n, m), Conv1D(m, n): check(layer, 1e-5)
    check(nn.Linear(6, 9).bfloat16(), .06)
    check(nn.Linear(6, 9, bias=False).half(), .01)


def test_factors_where_they_pay_3():
    # %% ../nbs/10_spectral.ipynb #6e4dfa03
    layer = FactoredLinear(torch.randn(9, 2), torch.randn(2, 8), torch.randn(9))
    A1, B1, x = torch.randn(1, 8), torch.randn(9, 1), torch.randn(3, 8)
    for more in [(A1, B1)], [(A1, B1)]*2:
        torch.testing.assert_close(layer.extended(more)(x), layer(x) + len(more)*F.linear(F.linear(x, A1), B1))
    assert layer.extended([(A1, B1)]*3) is None and pays(4, 9, 8) and not pays(5, 9, 8)
    assert layer.merged() is layer


def test_factors_where_they_pay_4():
    # %% ../nbs/10_spectral.ipynb #18a7f20d
    model = nn.Sequential(FactoredLinear(torch.randn(9, 2), torch.randn(2, 8), None).bfloat16())
    part = attach(model, LoRA(r=3)).parts[0]
    for p in part.parameters(): nn.init.normal_(p)
    W = effective_weight(model[0]).detach()
    assert W.dtype == torch.bfloat16 and not torch.equal(W, (torch.cat([model[0].base.A, part.factors()[1].bfloat16()], 1) @
                                                             torch.cat([model[0].base.B, part.factors()[0].bfloat16()])))
    assert type(merge(model)[0]) is nn.Linear and torch.equal(model[0].weight, W)


def test_factors_where_they_pay_5():
    # %% ../nbs/10_spectral.ipynb #169b60f6
    layer = replace(nn.Sequential(Conv1D(9, 8)), "0", FactoredLinear(torch.randn(9, 2), torch.randn(2, 8), None))
    assert layer.weight.shape == (8, 9) and effective_weight(layer).shape == (9, 8)


def test_pruning_a_model():
    # %% ../nbs/10_spectral.ipynb #3e19ce68
    model, tokenizer = pretrained()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    spectra = decompose(model)
    prune(model, spectra, rate=0)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    rows = prune(model, spectra, rate=.75)
    assert len(rows) == 42 and {r["rank"] for r in rows} == {64} and {r["form"] for r in rows} == {"factors"}
    untouched = sum(p.numel() for n, p in new_model().named_parameters() if n.removesuffix(".weight") not in spectra)
    assert count(model) == untouched + sum(r["after"] for r in rows)


def test_pruning_a_model_2():
    # %% ../nbs/10_spectral.ipynb #d096b841
    with tempfile.TemporaryDirectory() as d:
        small = new_model(num_hidden_layers=2, vocab_size=64, hidden_size=32, intermediate_size=48, head_dim=8,
                          num_attention_heads=4)
        first, files = decompose(small, "down_proj", cache=d), list(Path(d).iterdir())
        again = decompose(small, "down_proj", cache=d)
        assert len(files) == 2 and all(torch.equal(a, b) for n in first for a, b in zip(first[n], again[n], strict=True))


def test_pruning_a_model_3():
    # %% ../nbs/10_spectral.ipynb #42b45fac
    small = new_model(num_hidden_layers=2, vocab_size=64, hidden_size=32, intermediate_size=48, head_dim=8,
                      num_attention_heads=4)
    small.model.layers[1].mlp.up_proj.weight.data[3, 4] = math.nan
    try: decompose(small)
    except ValueError as e: assert "model.layers.1.mlp.up_proj.weight holds 1 NaN" in str(e)
    else: raise AssertionError("NaN went through")


def test_pruning_a_model_4():
    # %% ../nbs/10_spectral.ipynb #d698fd7d
    small = new_model(num_hidden_layers=2, vocab_size=64, hidden_size=32, intermediate_size=48, head_dim=8,
                      num_attention_heads=4)
    prune(small, decompose(small), rank=8)
    state = densify(small).state_dict()
    try: prune(small, decompose(small), rank=4)
    except SettingError as e: assert "call unmerge or bake" in str(e) and small.state_dict().keys() == state.keys()
    else: raise AssertionError("the merged model was cut")


def test_everything_that_ran_before_returns_what_it_returned():
    # %% ../nbs/10_spectral.ipynb #95a321ee
    def tiny_models():
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4)
        yield new_model(**sizes, intermediate_size=48, head_dim=8, num_key_value_heads=2)
        yield GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64))
        yield OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64))
        shared = new_model(**sizes, intermediate_size=48, head_dim=8, num_key_value_heads=2)
        shared.model.layers[2].input_layernorm = shared.model.layers[0].input_layernorm
        shared.model.layers[2].mlp.act_fn = shared.model.layers[1].mlp.act_fn
        yield shared
        yield GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48, max_position_embeddings=64))

    def random_batch(seed=0):
        ids = torch.randint(0, 64, (3, 13), generator=torch.Generator().manual_seed(seed))
        mask = torch.ones(3, 12, dtype=torch.long)
        mask[1, 7:] = 0
        return Batch(ids[:, :-1], mask, ids[:, 1:].where(mask.bool(), -100), torch.tensor([0, 1, 1]))

    # %% ../nbs/10_spectral.ipynb #99147fb0
    for model in tiny_models():
        torch.manual_seed(0)
        for p in model.parameters(): p.data.normal_(0, .2)
        weights, spectra = digest(*model.parameters()), decompose(model.eval())
        changes = truncations(model, spectra, {n: [0, 3, 11] for n in spectra})
        for i in range(3):
            several = list(select(model, layers=[i]))
            changes[i] = {n: changes[n, 3][n] for n in several[-2:]}
        changes["blocks"] = {n: changes[n, 3][n] for n in spectra}
        def run(model=model): return batch_nll(model, random_batch())
        fast, slow = (f(model, run, changes) for f in (tried, tried_plainly))
        torch.testing.assert_close(fast.pop(None), run(), rtol=1e-5, atol=1e-5)
        assert fast.keys() == slow.keys() and digest(*model.parameters()) == weights
        for k in fast: torch.testing.assert_close(fast[k], slow[k], rtol=1e-5, atol=1e-5)


def test_everything_that_ran_before_returns_what_it_returned_2():
    # %% ../nbs/10_spectral.ipynb #95a321ee
    def tiny_models():
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4)
        yield new_model(**sizes, intermediate_size=48, head_dim=8, num_key_value_heads=2)
        yield GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64))
        yield OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64))
        shared = new_model(**sizes, intermediate_size=48, head_dim=8, num_key_value_heads=2)
        shared.model.layers[2].input_layernorm = shared.model.layers[0].input_layernorm
        shared.model.layers[2].mlp.act_fn = shared.model.layers[1].mlp.act_fn
        yield shared
        yield GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48, max_position_embeddings=64))

    def random_batch(seed=0):
        ids = torch.randint(0, 64, (3, 13), generator=torch.Generator().manual_seed(seed))
        mask = torch.ones(3, 12, dtype=torch.long)
        mask[1, 7:] = 0
        return Batch(ids[:, :-1], mask, ids[:, 1:].where(mask.bool(), -100), torch.tensor([0, 1, 1]))

    # %% ../nbs/10_spectral.ipynb #0cbcd4e3
    model = next(tiny_models()).eval()
    with torch.no_grad():
        *_, (_, known) = passes(model, lambda: batch_nll(model, random_batch()))
        name, other = "model.layers.2.mlp.down_proj", torch.nn.Linear(48, 32)
        last = model.get_submodule(name)
        try:
            with replayed(before(known, last)), lent(model, {name: other}): raise KeyboardInterrupt
        except KeyboardInterrupt: pass
    assert model.get_submodule(name) is last and not any("forward" in vars(m) for m in model.modules())
    spared = {c.module for c in before(known, last)}
    assert last not in spared and model.model.layers[1] in spared
    up = model.model.layers[2].mlp.up_proj
    assert up in spared and up not in {c.module for c in before(known, last, up)}


def test_the_sweep():
    # %% ../nbs/10_spectral.ipynb #95a321ee
    def tiny_models():
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4)
        yield new_model(**sizes, intermediate_size=48, head_dim=8, num_key_value_heads=2)
        yield GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64))
        yield OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64))
        shared = new_model(**sizes, intermediate_size=48, head_dim=8, num_key_value_heads=2)
        shared.model.layers[2].input_layernorm = shared.model.layers[0].input_layernorm
        shared.model.layers[2].mlp.act_fn = shared.model.layers[1].mlp.act_fn
        yield shared
        yield GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48, max_position_embeddings=64))

    def random_batch(seed=0):
        ids = torch.randint(0, 64, (3, 13), generator=torch.Generator().manual_seed(seed))
        mask = torch.ones(3, 12, dtype=torch.long)
        mask[1, 7:] = 0
        return Batch(ids[:, :-1], mask, ids[:, 1:].where(mask.bool(), -100), torch.tensor([0, 1, 1]))

    # %% ../nbs/10_spectral.ipynb #32121fb3
    model = next(tiny_models()).eval()
    todo, spectra = [random_batch(i) for i in range(3)], decompose(model, ["up_proj", "q_proj"])

    with tempfile.TemporaryDirectory() as d:
        whole = sweep(model, todo, spectra, (0, .5, .9))
        sweep(model, todo, spectra, (0, .5, .9), f"{d}/rows.jsonl")
        lines = Path(f"{d}/rows.jsonl").read_text().splitlines(keepends=True)
        Path(f"{d}/rows.jsonl").write_text("".join(lines[:2]) + lines[2][:40])
        resumed = sweep(model, todo, spectra, (0, .5, .9), f"{d}/rows.jsonl")
    assert len(lines) == 4 and all(np.array_equal(a, b) for a, b in zip(whole[2:], resumed[2:], strict=True))
    assert (whole.rise()[:, 0] == 0).all() and whole.nll.shape == (6, 3, 2)


def test_a_race_to_the_best():
    # %% ../nbs/10_spectral.ipynb #95a321ee
    def tiny_models():
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4)
        yield new_model(**sizes, intermediate_size=48, head_dim=8, num_key_value_heads=2)
        yield GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64))
        yield OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64))
        shared = new_model(**sizes, intermediate_size=48, head_dim=8, num_key_value_heads=2)
        shared.model.layers[2].input_layernorm = shared.model.layers[0].input_layernorm
        shared.model.layers[2].mlp.act_fn = shared.model.layers[1].mlp.act_fn
        yield shared
        yield GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48, max_position_embeddings=64))

    def random_batch(seed=0):
        ids = torch.randint(0, 64, (3, 13), generator=torch.Generator().manual_seed(seed))
        mask = torch.ones(3, 12, dtype=torch.long)
        mask[1, 7:] = 0
        return Batch(ids[:, :-1], mask, ids[:, 1:].where(mask.bool(), -100), torch.tensor([0, 1, 1]))

    # %% ../nbs/10_spectral.ipynb #2931dc38
    model = next(tiny_models()).eval()
    for p in model.parameters(): p.data.normal_(0, 1, generator=torch.Generator().manual_seed(p.numel()))
    todo, spectra = [random_batch(i) for i in range(12)], decompose(model)
    rise = sweep(model, todo, spectra, (0, .5, .9)).rise()
    found, (i, j) = race(model, todo, spectra, (0, .5, .9)), np.unravel_index(rise.argmin(), rise.shape)
    name = list(spectra)[i]
    assert found.winner == (name, rank_of_rate((0, .5, .9)[j], spectra[name].full))
    assert math.isclose(found.change, rise.min(), rel_tol=1e-9) and found.alive[-1] < found.alive[0] == 43


def test_weight_error_against_output_error():
    # %% ../nbs/10_spectral.ipynb #abead777
    model, tokenizer = pretrained()
    calibration = batches([text[:3000] for text in corpus("valid").values()][:12], tokenizer, 512, 512)
    grams = gram(model, [b.inputs for b in calibration])
    by_weight, by_output = decompose(model), decompose(model, grams=grams)
    held_out = [text[:1500] for text in corpus("test").values()][:10]

    def loss_at(spectra, rate):
        model, tokenizer = pretrained()
        prune(model, spectra, rate=rate)
        return evaluate(model, tokenizer, held_out)["loss"]

    # %% ../nbs/10_spectral.ipynb #ea569e7d
    tried = (0, .25, .5, .75, .9)
    curves = {"weight error": [loss_at(by_weight, r) for r in tried],
              "output error": [loss_at(by_output, r) for r in tried]}
    assert curves["weight error"][0] == curves["output error"][0]
    assert all(o < w for w, o in zip(curves["weight error"][1:4], curves["output error"][1:4], strict=True))
    for name, losses_ in curves.items(): print(f"{name:13}", " ".join(f"{x:7.3f}" for x in losses_))


def test_block_after_block():
    # %% ../nbs/10_spectral.ipynb #563e172a
    def small(seed=0):
        torch.manual_seed(seed)
        return new_model(num_hidden_layers=2, vocab_size=64, hidden_size=32, intermediate_size=48, head_dim=8,
                         num_attention_heads=4).eval()


    ids = torch.randint(0, 64, (4, 16), generator=torch.Generator().manual_seed(0))

    # %% ../nbs/10_spectral.ipynb #5eb30584
    for amount in {"rate": .75}, {"rank": 7}, {"energy": .8}, {"rate": 0}, {"rate": .3}:
        one, other = small(), small()
        prune(one, decompose(one), **amount)
        factorize(other, **amount)
        assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    one, other = small(), small()
    factorize(one, [ids], rate=.75, layers=[0])
    prune(other, decompose(other, layers=[0], grams=gram(other, [ids], select(other, layers=[0]))), rate=.75)
    first, second = dict(one.named_parameters()), dict(other.named_parameters())
    q = "model.layers.0.self_attn.q_proj."  # What enters the first block is the same either way
    assert torch.equal(first[q + "A"], second[q + "A"]) and first.keys() == second.keys()
    try: factorize(small(), rank=40)
    except SettingError as e: assert "r=40 exceeds min(out, in)=32" in str(e)
    else: raise AssertionError("a rank beyond the matrix went through")
