from pathlm.adapters.svft import *
from pathlib import Path
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from pathlm.base import CheckpointError
from pathlm.base import SettingError
from pathlm.base import kept
from pathlm.linear import effective_weight
from pathlm.objectives import svd
import copy
import json
import math
import os
import tempfile
from functools import partial
from unittest.mock import patch
import scipy.linalg
import transformers as tf
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from transformers.pytorch_utils import Conv1D
from pathlm.adapters.core import adapted
from pathlm.adapters.core import adapters
from pathlm.adapters.core import attach
from pathlm.adapters.core import detach
from pathlm.adapters.core import load_adapter
from pathlm.adapters.core import parameter_groups
from pathlm.adapters.core import save_adapter
from pathlm.adapters.core import trained
from pathlm.base import PathlmError
from pathlm.grid import GridLinear
from pathlm.grid import rtn
from pathlm.linear import linear_from
from pathlm.linear import merge
from pathlm.linear import select
from pathlm.linear import unmerge


def test_what_the_middle_can_say():
    # %% ../nbs/22_svft.ipynb #a495517d
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/22_svft.ipynb #aabefcbb
    def gaussian(out, in_, seed=0, dtype=torch.float32):
        "A matrix of independent normal numbers, as well conditioned as its shape allows."
        return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed), dtype=dtype)

    def conditioned(out, in_, cond, seed=0, dtype=torch.float32):
        "A matrix with singular values from 1 down to 1/cond, geometrically."
        U, _, Vh = torch.linalg.svd(gaussian(out, in_, seed, torch.float64), full_matrices=False)
        return (U * torch.logspace(0, -math.log10(cond), len(Vh), dtype=torch.float64) @ Vh).to(dtype)

    def apart(A, B):
        "The relative distance of A from B."
        return ((A - B).norm()/B.norm()).item()

    def drivers(W):
        "One matrix decomposed in four ways."
        for driver in "gesdd", "gesvd":
            U, S, Vh = scipy.linalg.svd(W.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (U, S, Vh))
            V, S, Uh = scipy.linalg.svd(W.T.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (Uh.T, S, V.T))

    def tiny(**options):
        "A random Llama of two blocks with square and 4:1 layers."
        torch.manual_seed(0)
        return tf.LlamaForCausalLM(tf.LlamaConfig(**dict(vocab_size=96, hidden_size=32, intermediate_size=128,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, eos_token_id=None) | options)).eval()

    def shaken(model, share=.1):
        "Give the values of M random numbers, `share` of the norm of each weight in all."
        torch.manual_seed(1)
        for adapter in adapters(model).values():
            for part in adapter.parts:
                W = effective_weight(part.base)
                nn.init.normal_(part.M, std=share*W.float().norm().item()/len(part.M)**.5)
                vars(part)["known"] = None
        return model

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def llama(h, ff, blocks, heads, kv, size=None, **options):
        "The linear layers of a model with Llama's shapes, on the meta device."
        with torch.device("meta"): model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=32, hidden_size=h, head_dim=size,
            intermediate_size=ff, num_hidden_layers=blocks, num_attention_heads=heads, num_key_value_heads=kv, **options))
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{args} {kwargs} were accepted")

    # %% ../nbs/22_svft.ipynb #ac61f9b0
    for shape in (64, 64), (96, 64), (64, 96):
        D = gaussian(*shape, seed=1, dtype=torch.float64)
        U, S, Vh = svd(gaussian(*shape, dtype=torch.float64))
        reached = U @ (U.T @ D @ Vh.T) @ Vh
        torch.testing.assert_close(reached, (U @ U.T) @ D @ (Vh.T @ Vh), rtol=1e-12, atol=1e-12)
        print(shape, f"misses {apart(reached, D):.2f}")
        assert (apart(reached, D) < 1e-13) == (shape == (64, 64))
        U, S, Vh = torch.linalg.svd(gaussian(*shape, dtype=torch.float64))
        assert apart(U @ (U.T @ D @ Vh.T) @ Vh, D) < 1e-13


def test_what_the_middle_can_say_2():
    # %% ../nbs/22_svft.ipynb #a495517d
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/22_svft.ipynb #aabefcbb
    def gaussian(out, in_, seed=0, dtype=torch.float32):
        "A matrix of independent normal numbers, as well conditioned as its shape allows."
        return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed), dtype=dtype)

    def conditioned(out, in_, cond, seed=0, dtype=torch.float32):
        "A matrix with singular values from 1 down to 1/cond, geometrically."
        U, _, Vh = torch.linalg.svd(gaussian(out, in_, seed, torch.float64), full_matrices=False)
        return (U * torch.logspace(0, -math.log10(cond), len(Vh), dtype=torch.float64) @ Vh).to(dtype)

    def apart(A, B):
        "The relative distance of A from B."
        return ((A - B).norm()/B.norm()).item()

    def drivers(W):
        "One matrix decomposed in four ways."
        for driver in "gesdd", "gesvd":
            U, S, Vh = scipy.linalg.svd(W.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (U, S, Vh))
            V, S, Uh = scipy.linalg.svd(W.T.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (Uh.T, S, V.T))

    def tiny(**options):
        "A random Llama of two blocks with square and 4:1 layers."
        torch.manual_seed(0)
        return tf.LlamaForCausalLM(tf.LlamaConfig(**dict(vocab_size=96, hidden_size=32, intermediate_size=128,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, eos_token_id=None) | options)).eval()

    def shaken(model, share=.1):
        "Give the values of M random numbers, `share` of the norm of each weight in all."
        torch.manual_seed(1)
        for adapter in adapters(model).values():
            for part in adapter.parts:
                W = effective_weight(part.base)
                nn.init.normal_(part.M, std=share*W.float().norm().item()/len(part.M)**.5)
                vars(part)["known"] = None
        return model

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def llama(h, ff, blocks, heads, kv, size=None, **options):
        "The linear layers of a model with Llama's shapes, on the meta device."
        with torch.device("meta"): model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=32, hidden_size=h, head_dim=size,
            intermediate_size=ff, num_hidden_layers=blocks, num_attention_heads=heads, num_key_value_heads=kv, **options))
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{args} {kwargs} were accepted")

    # %% ../nbs/22_svft.ipynb #83034828
    W, m = gaussian(40, 24, dtype=torch.float64), torch.zeros(24, dtype=torch.float64)
    m[::3] = gaussian(1, 8, seed=2, dtype=torch.float64)[0]*3
    U, S, Vh = svd(W)
    D = U*m @ Vh
    torch.testing.assert_close(torch.linalg.svdvals(W + D), (S + m).abs().sort(descending=True).values)
    assert torch.linalg.matrix_rank(D) == 8


def test_the_same_vectors_everywhere():
    # %% ../nbs/22_svft.ipynb #a495517d
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/22_svft.ipynb #aabefcbb
    def gaussian(out, in_, seed=0, dtype=torch.float32):
        "A matrix of independent normal numbers, as well conditioned as its shape allows."
        return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed), dtype=dtype)

    def conditioned(out, in_, cond, seed=0, dtype=torch.float32):
        "A matrix with singular values from 1 down to 1/cond, geometrically."
        U, _, Vh = torch.linalg.svd(gaussian(out, in_, seed, torch.float64), full_matrices=False)
        return (U * torch.logspace(0, -math.log10(cond), len(Vh), dtype=torch.float64) @ Vh).to(dtype)

    def apart(A, B):
        "The relative distance of A from B."
        return ((A - B).norm()/B.norm()).item()

    def drivers(W):
        "One matrix decomposed in four ways."
        for driver in "gesdd", "gesvd":
            U, S, Vh = scipy.linalg.svd(W.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (U, S, Vh))
            V, S, Uh = scipy.linalg.svd(W.T.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (Uh.T, S, V.T))

    def tiny(**options):
        "A random Llama of two blocks with square and 4:1 layers."
        torch.manual_seed(0)
        return tf.LlamaForCausalLM(tf.LlamaConfig(**dict(vocab_size=96, hidden_size=32, intermediate_size=128,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, eos_token_id=None) | options)).eval()

    def shaken(model, share=.1):
        "Give the values of M random numbers, `share` of the norm of each weight in all."
        torch.manual_seed(1)
        for adapter in adapters(model).values():
            for part in adapter.parts:
                W = effective_weight(part.base)
                nn.init.normal_(part.M, std=share*W.float().norm().item()/len(part.M)**.5)
                vars(part)["known"] = None
        return model

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def llama(h, ff, blocks, heads, kv, size=None, **options):
        "The linear layers of a model with Llama's shapes, on the meta device."
        with torch.device("meta"): model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=32, hidden_size=h, head_dim=size,
            intermediate_size=ff, num_hidden_layers=blocks, num_attention_heads=heads, num_key_value_heads=kv, **options))
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{args} {kwargs} were accepted")

    # %% ../nbs/22_svft.ipynb #22e347d0
    assert [hex(h) for h in hashed(2)] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4"]
    z = noise(400, 250)
    assert abs(z.mean()) < .004 and abs(z.var() - 1/12) < .002
    assert abs((z[1:]*z[:-1]).mean()*12) < .02 and abs((z*noise(400, 250, stream=1)).mean()*12) < .02


def test_the_same_vectors_everywhere_2():
    # %% ../nbs/22_svft.ipynb #a495517d
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/22_svft.ipynb #aabefcbb
    def gaussian(out, in_, seed=0, dtype=torch.float32):
        "A matrix of independent normal numbers, as well conditioned as its shape allows."
        return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed), dtype=dtype)

    def conditioned(out, in_, cond, seed=0, dtype=torch.float32):
        "A matrix with singular values from 1 down to 1/cond, geometrically."
        U, _, Vh = torch.linalg.svd(gaussian(out, in_, seed, torch.float64), full_matrices=False)
        return (U * torch.logspace(0, -math.log10(cond), len(Vh), dtype=torch.float64) @ Vh).to(dtype)

    def apart(A, B):
        "The relative distance of A from B."
        return ((A - B).norm()/B.norm()).item()

    def drivers(W):
        "One matrix decomposed in four ways."
        for driver in "gesdd", "gesvd":
            U, S, Vh = scipy.linalg.svd(W.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (U, S, Vh))
            V, S, Uh = scipy.linalg.svd(W.T.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (Uh.T, S, V.T))

    def tiny(**options):
        "A random Llama of two blocks with square and 4:1 layers."
        torch.manual_seed(0)
        return tf.LlamaForCausalLM(tf.LlamaConfig(**dict(vocab_size=96, hidden_size=32, intermediate_size=128,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, eos_token_id=None) | options)).eval()

    def shaken(model, share=.1):
        "Give the values of M random numbers, `share` of the norm of each weight in all."
        torch.manual_seed(1)
        for adapter in adapters(model).values():
            for part in adapter.parts:
                W = effective_weight(part.base)
                nn.init.normal_(part.M, std=share*W.float().norm().item()/len(part.M)**.5)
                vars(part)["known"] = None
        return model

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def llama(h, ff, blocks, heads, kv, size=None, **options):
        "The linear layers of a model with Llama's shapes, on the meta device."
        with torch.device("meta"): model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=32, hidden_size=h, head_dim=size,
            intermediate_size=ff, num_hidden_layers=blocks, num_attention_heads=heads, num_key_value_heads=kv, **options))
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{args} {kwargs} were accepted")

    # %% ../nbs/22_svft.ipynb #91497ad3
    W = gaussian(256, 256)
    M = gaussian(256, 256, seed=1).tril(2).triu(-2)
    (U, _, Vh), *others = drivers(W)
    for U2, S2, V2 in others:
        raw = apart(U2 @ M @ V2, U @ M @ Vh)
        (P, _, Q), (P2, _, Q2) = signed(U, S2, Vh), signed(U2, S2, V2)
        print(f"flipped {((U*U2).sum(0) < 0).float().mean():.1f}, apart by {raw:.1f}, with signs chosen below 0.002:",
              apart(P2 @ M @ Q2, P @ M @ Q) < 2e-3)
        assert apart(P2 @ M @ Q2, P @ M @ Q) < 2e-3
    assert max(apart(U2 @ M @ V2, U @ M @ Vh) for U2, _, V2 in others) > 1


def test_the_same_vectors_everywhere_3():
    # %% ../nbs/22_svft.ipynb #a495517d
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/22_svft.ipynb #aabefcbb
    def gaussian(out, in_, seed=0, dtype=torch.float32):
        "A matrix of independent normal numbers, as well conditioned as its shape allows."
        return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed), dtype=dtype)

    def conditioned(out, in_, cond, seed=0, dtype=torch.float32):
        "A matrix with singular values from 1 down to 1/cond, geometrically."
        U, _, Vh = torch.linalg.svd(gaussian(out, in_, seed, torch.float64), full_matrices=False)
        return (U * torch.logspace(0, -math.log10(cond), len(Vh), dtype=torch.float64) @ Vh).to(dtype)

    def apart(A, B):
        "The relative distance of A from B."
        return ((A - B).norm()/B.norm()).item()

    def drivers(W):
        "One matrix decomposed in four ways."
        for driver in "gesdd", "gesvd":
            U, S, Vh = scipy.linalg.svd(W.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (U, S, Vh))
            V, S, Uh = scipy.linalg.svd(W.T.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (Uh.T, S, V.T))

    def tiny(**options):
        "A random Llama of two blocks with square and 4:1 layers."
        torch.manual_seed(0)
        return tf.LlamaForCausalLM(tf.LlamaConfig(**dict(vocab_size=96, hidden_size=32, intermediate_size=128,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, eos_token_id=None) | options)).eval()

    def shaken(model, share=.1):
        "Give the values of M random numbers, `share` of the norm of each weight in all."
        torch.manual_seed(1)
        for adapter in adapters(model).values():
            for part in adapter.parts:
                W = effective_weight(part.base)
                nn.init.normal_(part.M, std=share*W.float().norm().item()/len(part.M)**.5)
                vars(part)["known"] = None
        return model

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def llama(h, ff, blocks, heads, kv, size=None, **options):
        "The linear layers of a model with Llama's shapes, on the meta device."
        with torch.device("meta"): model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=32, hidden_size=h, head_dim=size,
            intermediate_size=ff, num_hidden_layers=blocks, num_attention_heads=heads, num_key_value_heads=kv, **options))
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{args} {kwargs} were accepted")

    # %% ../nbs/22_svft.ipynb #3c579021
    for dtype in torch.float32, torch.bfloat16, torch.float16, torch.float64:
        W = gaussian(7, 12).to(dtype)
        with tempfile.TemporaryDirectory() as d:
            first, second = singular(W, d), singular(W, d)
            assert all(torch.equal(a, b) for a, b in zip(first, second)) and len(list(Path(d).iterdir())) == 1
            singular(W.T, d)
            assert len(list(Path(d).iterdir())) == 2
        U, S, Vh = first
        assert U.dtype == Vh.dtype == dtype and S.dtype == torch.promote_types(dtype, torch.float32)
        assert apart((U.double()*S) @ Vh.double(), W.double()) < 20*torch.finfo(dtype).eps


def test_which_entries():
    # %% ../nbs/22_svft.ipynb #a495517d
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/22_svft.ipynb #aabefcbb
    def gaussian(out, in_, seed=0, dtype=torch.float32):
        "A matrix of independent normal numbers, as well conditioned as its shape allows."
        return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed), dtype=dtype)

    def conditioned(out, in_, cond, seed=0, dtype=torch.float32):
        "A matrix with singular values from 1 down to 1/cond, geometrically."
        U, _, Vh = torch.linalg.svd(gaussian(out, in_, seed, torch.float64), full_matrices=False)
        return (U * torch.logspace(0, -math.log10(cond), len(Vh), dtype=torch.float64) @ Vh).to(dtype)

    def apart(A, B):
        "The relative distance of A from B."
        return ((A - B).norm()/B.norm()).item()

    def drivers(W):
        "One matrix decomposed in four ways."
        for driver in "gesdd", "gesvd":
            U, S, Vh = scipy.linalg.svd(W.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (U, S, Vh))
            V, S, Uh = scipy.linalg.svd(W.T.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (Uh.T, S, V.T))

    def tiny(**options):
        "A random Llama of two blocks with square and 4:1 layers."
        torch.manual_seed(0)
        return tf.LlamaForCausalLM(tf.LlamaConfig(**dict(vocab_size=96, hidden_size=32, intermediate_size=128,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, eos_token_id=None) | options)).eval()

    def shaken(model, share=.1):
        "Give the values of M random numbers, `share` of the norm of each weight in all."
        torch.manual_seed(1)
        for adapter in adapters(model).values():
            for part in adapter.parts:
                W = effective_weight(part.base)
                nn.init.normal_(part.M, std=share*W.float().norm().item()/len(part.M)**.5)
                vars(part)["known"] = None
        return model

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def llama(h, ff, blocks, heads, kv, size=None, **options):
        "The linear layers of a model with Llama's shapes, on the meta device."
        with torch.device("meta"): model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=32, hidden_size=h, head_dim=size,
            intermediate_size=ff, num_hidden_layers=blocks, num_attention_heads=heads, num_key_value_heads=kv, **options))
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{args} {kwargs} were accepted")

    # %% ../nbs/22_svft.ipynb #9a83fe83
    def counts(model, target="all-linear"):
        "Entries for d = 0, 2, 8 and 16."
        shapes = [effective_weight(layer).shape for layer in select(model, target).values()]
        return [sum(entries(min(shape), d) for shape in shapes) for d in (0, 2, 8, 16)]

    # %% ../nbs/22_svft.ipynb #54d9bd80
    gemma2b, gemma7b = llama(2048, 16384, 18, 8, 1, 256), llama(3072, 24576, 28, 16, 16, 256)
    assert counts(gemma2b) == [193_536, 966_924, 3_281_040, 6_352_416]
    assert counts(gemma7b) == [602_112, 3_009_384, 10_221_792, 19_816_384]
    llama3, udog = llama(4096, 14336, 32, 32, 8), ["up_proj", "down_proj", "o_proj", "gate_proj"]
    assert counts(llama3) == [720_896, 3_603_136, 12_239_104, 23_728_640]
    assert counts(llama3, udog) == [524_288, 2_620_672, 8_903_680, 17_266_688]
    llama2 = llama(4096, 11008, 32, 32, 32)
    assert counts(llama2) == [917_504, 4_586_176, 15_581_440, 30_216_704]
    assert 4*counts(gemma2b)[0] == 774_144 and 4*counts(llama2)[0] == 3_670_016
    with torch.device("meta"): bert = tf.BertModel(tf.BertConfig(vocab_size=32), add_pooling_layer=False)
    assert counts(bert) == [55_296, 276_048, 934_848, 1_805_184]
    assert counts(bert, ["query", "value"])[:3] == [18_432, 92_016, 311_616]


def test_which_entries_2():
    # %% ../nbs/22_svft.ipynb #a495517d
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/22_svft.ipynb #aabefcbb
    def gaussian(out, in_, seed=0, dtype=torch.float32):
        "A matrix of independent normal numbers, as well conditioned as its shape allows."
        return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed), dtype=dtype)

    def conditioned(out, in_, cond, seed=0, dtype=torch.float32):
        "A matrix with singular values from 1 down to 1/cond, geometrically."
        U, _, Vh = torch.linalg.svd(gaussian(out, in_, seed, torch.float64), full_matrices=False)
        return (U * torch.logspace(0, -math.log10(cond), len(Vh), dtype=torch.float64) @ Vh).to(dtype)

    def apart(A, B):
        "The relative distance of A from B."
        return ((A - B).norm()/B.norm()).item()

    def drivers(W):
        "One matrix decomposed in four ways."
        for driver in "gesdd", "gesvd":
            U, S, Vh = scipy.linalg.svd(W.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (U, S, Vh))
            V, S, Uh = scipy.linalg.svd(W.T.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (Uh.T, S, V.T))

    def tiny(**options):
        "A random Llama of two blocks with square and 4:1 layers."
        torch.manual_seed(0)
        return tf.LlamaForCausalLM(tf.LlamaConfig(**dict(vocab_size=96, hidden_size=32, intermediate_size=128,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, eos_token_id=None) | options)).eval()

    def shaken(model, share=.1):
        "Give the values of M random numbers, `share` of the norm of each weight in all."
        torch.manual_seed(1)
        for adapter in adapters(model).values():
            for part in adapter.parts:
                W = effective_weight(part.base)
                nn.init.normal_(part.M, std=share*W.float().norm().item()/len(part.M)**.5)
                vars(part)["known"] = None
        return model

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def llama(h, ff, blocks, heads, kv, size=None, **options):
        "The linear layers of a model with Llama's shapes, on the meta device."
        with torch.device("meta"): model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=32, hidden_size=h, head_dim=size,
            intermediate_size=ff, num_hidden_layers=blocks, num_attention_heads=heads, num_key_value_heads=kv, **options))
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{args} {kwargs} were accepted")

    # %% ../nbs/22_svft.ipynb #9a83fe83
    def counts(model, target="all-linear"):
        "Entries for d = 0, 2, 8 and 16."
        shapes = [effective_weight(layer).shape for layer in select(model, target).values()]
        return [sum(entries(min(shape), d) for shape in shapes) for d in (0, 2, 8, 16)]

    # %% ../nbs/22_svft.ipynb #979f1a4c
    @given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 99))
    @settings(deadline=None, max_examples=25, derandomize=True)
    def draws(count, more, seed):
        got = distinct(count, count + more, seed)
        assert len(set(got)) == count and all(0 <= k < count + more for k in got) and list(got) == sorted(got)
        assert (got == distinct(count, count + more, seed)).all()

    draws()
    assert list(distinct(6, 100)) != list(distinct(6, 100, seed=1)) != list(distinct(6, 100, stream=1))
    hits = np.bincount(np.concatenate([distinct(10, 40, stream=k) for k in range(2000)]), minlength=40)
    assert abs(hits - 500).max() < 5*math.sqrt(500*.75)


def test_which_entries_3():
    # %% ../nbs/22_svft.ipynb #a495517d
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/22_svft.ipynb #aabefcbb
    def gaussian(out, in_, seed=0, dtype=torch.float32):
        "A matrix of independent normal numbers, as well conditioned as its shape allows."
        return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed), dtype=dtype)

    def conditioned(out, in_, cond, seed=0, dtype=torch.float32):
        "A matrix with singular values from 1 down to 1/cond, geometrically."
        U, _, Vh = torch.linalg.svd(gaussian(out, in_, seed, torch.float64), full_matrices=False)
        return (U * torch.logspace(0, -math.log10(cond), len(Vh), dtype=torch.float64) @ Vh).to(dtype)

    def apart(A, B):
        "The relative distance of A from B."
        return ((A - B).norm()/B.norm()).item()

    def drivers(W):
        "One matrix decomposed in four ways."
        for driver in "gesdd", "gesvd":
            U, S, Vh = scipy.linalg.svd(W.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (U, S, Vh))
            V, S, Uh = scipy.linalg.svd(W.T.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (Uh.T, S, V.T))

    def tiny(**options):
        "A random Llama of two blocks with square and 4:1 layers."
        torch.manual_seed(0)
        return tf.LlamaForCausalLM(tf.LlamaConfig(**dict(vocab_size=96, hidden_size=32, intermediate_size=128,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, eos_token_id=None) | options)).eval()

    def shaken(model, share=.1):
        "Give the values of M random numbers, `share` of the norm of each weight in all."
        torch.manual_seed(1)
        for adapter in adapters(model).values():
            for part in adapter.parts:
                W = effective_weight(part.base)
                nn.init.normal_(part.M, std=share*W.float().norm().item()/len(part.M)**.5)
                vars(part)["known"] = None
        return model

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def llama(h, ff, blocks, heads, kv, size=None, **options):
        "The linear layers of a model with Llama's shapes, on the meta device."
        with torch.device("meta"): model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=32, hidden_size=h, head_dim=size,
            intermediate_size=ff, num_hidden_layers=blocks, num_attention_heads=heads, num_key_value_heads=kv, **options))
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{args} {kwargs} were accepted")

    # %% ../nbs/22_svft.ipynb #9a83fe83
    def counts(model, target="all-linear"):
        "Entries for d = 0, 2, 8 and 16."
        shapes = [effective_weight(layer).shape for layer in select(model, target).values()]
        return [sum(entries(min(shape), d) for shape in shapes) for d in (0, 2, 8, 16)]

    # %% ../nbs/22_svft.ipynb #639db658
    U, S, Vh = svd(gaussian(30, 30))
    best = sorted(((abs(float(U[:, i] @ Vh[j])), i, j) for i in range(30) for j in range(30)), reverse=True)[:50]
    assert sorted((i, j) for _, i, j in best) == list(map(tuple, aligned(U, Vh, 50).T.tolist()))
    flip = torch.where(torch.arange(30) % 3 == 0, -1., 1.)
    assert torch.equal(aligned(U*flip, Vh*flip[:, None], 50), aligned(U, Vh, 50))


def test_which_entries_4():
    # %% ../nbs/22_svft.ipynb #a495517d
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/22_svft.ipynb #aabefcbb
    def gaussian(out, in_, seed=0, dtype=torch.float32):
        "A matrix of independent normal numbers, as well conditioned as its shape allows."
        return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed), dtype=dtype)

    def conditioned(out, in_, cond, seed=0, dtype=torch.float32):
        "A matrix with singular values from 1 down to 1/cond, geometrically."
        U, _, Vh = torch.linalg.svd(gaussian(out, in_, seed, torch.float64), full_matrices=False)
        return (U * torch.logspace(0, -math.log10(cond), len(Vh), dtype=torch.float64) @ Vh).to(dtype)

    def apart(A, B):
        "The relative distance of A from B."
        return ((A - B).norm()/B.norm()).item()

    def drivers(W):
        "One matrix decomposed in four ways."
        for driver in "gesdd", "gesvd":
            U, S, Vh = scipy.linalg.svd(W.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (U, S, Vh))
            V, S, Uh = scipy.linalg.svd(W.T.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (Uh.T, S, V.T))

    def tiny(**options):
        "A random Llama of two blocks with square and 4:1 layers."
        torch.manual_seed(0)
        return tf.LlamaForCausalLM(tf.LlamaConfig(**dict(vocab_size=96, hidden_size=32, intermediate_size=128,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, eos_token_id=None) | options)).eval()

    def shaken(model, share=.1):
        "Give the values of M random numbers, `share` of the norm of each weight in all."
        torch.manual_seed(1)
        for adapter in adapters(model).values():
            for part in adapter.parts:
                W = effective_weight(part.base)
                nn.init.normal_(part.M, std=share*W.float().norm().item()/len(part.M)**.5)
                vars(part)["known"] = None
        return model

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def llama(h, ff, blocks, heads, kv, size=None, **options):
        "The linear layers of a model with Llama's shapes, on the meta device."
        with torch.device("meta"): model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=32, hidden_size=h, head_dim=size,
            intermediate_size=ff, num_hidden_layers=blocks, num_attention_heads=heads, num_key_value_heads=kv, **options))
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{args} {kwargs} were accepted")

    # %% ../nbs/22_svft.ipynb #9a83fe83
    def counts(model, target="all-linear"):
        "Entries for d = 0, 2, 8 and 16."
        shapes = [effective_weight(layer).shape for layer in select(model, target).values()]
        return [sum(entries(min(shape), d) for shape in shapes) for d in (0, 2, 8, 16)]

    # %% ../nbs/22_svft.ipynb #efee0a93
    def as_published(U, Vh, count): return set((U @ Vh.T).flatten().topk(count).indices.tolist())

    n, k = 256, entries(256, 8)
    U, S, Vh = svd(gaussian(n, n))
    i, j = aligned(U, Vh, k)
    right = set((i*n + j).tolist())
    chance = k/n**2
    print(f"published top-k shares {len(right & as_published(U, Vh, k))/k:.1%} with top-k, chance is {chance:.1%}")
    assert abs(len(right & as_published(U, Vh, k))/k - chance) < 5*math.sqrt(chance/k)


def test_which_entries_5():
    # %% ../nbs/22_svft.ipynb #a495517d
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/22_svft.ipynb #aabefcbb
    def gaussian(out, in_, seed=0, dtype=torch.float32):
        "A matrix of independent normal numbers, as well conditioned as its shape allows."
        return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed), dtype=dtype)

    def conditioned(out, in_, cond, seed=0, dtype=torch.float32):
        "A matrix with singular values from 1 down to 1/cond, geometrically."
        U, _, Vh = torch.linalg.svd(gaussian(out, in_, seed, torch.float64), full_matrices=False)
        return (U * torch.logspace(0, -math.log10(cond), len(Vh), dtype=torch.float64) @ Vh).to(dtype)

    def apart(A, B):
        "The relative distance of A from B."
        return ((A - B).norm()/B.norm()).item()

    def drivers(W):
        "One matrix decomposed in four ways."
        for driver in "gesdd", "gesvd":
            U, S, Vh = scipy.linalg.svd(W.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (U, S, Vh))
            V, S, Uh = scipy.linalg.svd(W.T.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (Uh.T, S, V.T))

    def tiny(**options):
        "A random Llama of two blocks with square and 4:1 layers."
        torch.manual_seed(0)
        return tf.LlamaForCausalLM(tf.LlamaConfig(**dict(vocab_size=96, hidden_size=32, intermediate_size=128,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, eos_token_id=None) | options)).eval()

    def shaken(model, share=.1):
        "Give the values of M random numbers, `share` of the norm of each weight in all."
        torch.manual_seed(1)
        for adapter in adapters(model).values():
            for part in adapter.parts:
                W = effective_weight(part.base)
                nn.init.normal_(part.M, std=share*W.float().norm().item()/len(part.M)**.5)
                vars(part)["known"] = None
        return model

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def llama(h, ff, blocks, heads, kv, size=None, **options):
        "The linear layers of a model with Llama's shapes, on the meta device."
        with torch.device("meta"): model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=32, hidden_size=h, head_dim=size,
            intermediate_size=ff, num_hidden_layers=blocks, num_attention_heads=heads, num_key_value_heads=kv, **options))
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{args} {kwargs} were accepted")

    # %% ../nbs/22_svft.ipynb #9a83fe83
    def counts(model, target="all-linear"):
        "Entries for d = 0, 2, 8 and 16."
        shapes = [effective_weight(layer).shape for layer in select(model, target).values()]
        return [sum(entries(min(shape), d) for shape in shapes) for d in (0, 2, 8, 16)]

    # %% ../nbs/22_svft.ipynb #11e15ee6
    for (m, n), r in (((9, 9), 9), ((12, 7), 7), ((7, 12), 4), ((1, 5), 1), ((5, 1), 1)):
        U, S, Vh = svd(gaussian(m, n))
        for pattern in PATTERNS[1:]:
            for d in range(min(r, 4)):
                at = pairs(pattern, d, U[:, :r], Vh[:r])
                assert at.shape == (2, entries(r, d)) and (0 <= at).all() and (at < r).all()
                assert len(set(map(tuple, at.T.tolist()))) == at.shape[1]
                if pattern == "banded": assert set(map(tuple, at.T.tolist())) == {
                    (i, j) for i in range(r) for j in range(r) if abs(i - j) <= d}


def test_one_product_instead_of_three():
    # %% ../nbs/22_svft.ipynb #a495517d
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/22_svft.ipynb #aabefcbb
    def gaussian(out, in_, seed=0, dtype=torch.float32):
        "A matrix of independent normal numbers, as well conditioned as its shape allows."
        return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed), dtype=dtype)

    def conditioned(out, in_, cond, seed=0, dtype=torch.float32):
        "A matrix with singular values from 1 down to 1/cond, geometrically."
        U, _, Vh = torch.linalg.svd(gaussian(out, in_, seed, torch.float64), full_matrices=False)
        return (U * torch.logspace(0, -math.log10(cond), len(Vh), dtype=torch.float64) @ Vh).to(dtype)

    def apart(A, B):
        "The relative distance of A from B."
        return ((A - B).norm()/B.norm()).item()

    def drivers(W):
        "One matrix decomposed in four ways."
        for driver in "gesdd", "gesvd":
            U, S, Vh = scipy.linalg.svd(W.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (U, S, Vh))
            V, S, Uh = scipy.linalg.svd(W.T.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (Uh.T, S, V.T))

    def tiny(**options):
        "A random Llama of two blocks with square and 4:1 layers."
        torch.manual_seed(0)
        return tf.LlamaForCausalLM(tf.LlamaConfig(**dict(vocab_size=96, hidden_size=32, intermediate_size=128,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, eos_token_id=None) | options)).eval()

    def shaken(model, share=.1):
        "Give the values of M random numbers, `share` of the norm of each weight in all."
        torch.manual_seed(1)
        for adapter in adapters(model).values():
            for part in adapter.parts:
                W = effective_weight(part.base)
                nn.init.normal_(part.M, std=share*W.float().norm().item()/len(part.M)**.5)
                vars(part)["known"] = None
        return model

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def llama(h, ff, blocks, heads, kv, size=None, **options):
        "The linear layers of a model with Llama's shapes, on the meta device."
        with torch.device("meta"): model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=32, hidden_size=h, head_dim=size,
            intermediate_size=ff, num_hidden_layers=blocks, num_attention_heads=heads, num_key_value_heads=kv, **options))
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{args} {kwargs} were accepted")

    # %% ../nbs/22_svft.ipynb #e4b2d59e
    for T in 3, 100:
        for at in None, banded(4, 1):
            g, x, U, Vh = (gaussian(*s, seed=k, dtype=torch.float64)
                           for k, s in enumerate(((T, 6), (T, 5), (6, 4), (4, 5))))
            m = torch.ones(4 if at is None else at.shape[1], dtype=torch.float64, requires_grad=True)
            (F.linear(F.linear(x, dense(m, at, 4) @ Vh), U)*g).sum().backward()
            torch.testing.assert_close(gradient(g, x, U, Vh, at), m.grad)


def test_which_form_where():
    # %% ../nbs/22_svft.ipynb #a495517d
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/22_svft.ipynb #aabefcbb
    def gaussian(out, in_, seed=0, dtype=torch.float32):
        "A matrix of independent normal numbers, as well conditioned as its shape allows."
        return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed), dtype=dtype)

    def conditioned(out, in_, cond, seed=0, dtype=torch.float32):
        "A matrix with singular values from 1 down to 1/cond, geometrically."
        U, _, Vh = torch.linalg.svd(gaussian(out, in_, seed, torch.float64), full_matrices=False)
        return (U * torch.logspace(0, -math.log10(cond), len(Vh), dtype=torch.float64) @ Vh).to(dtype)

    def apart(A, B):
        "The relative distance of A from B."
        return ((A - B).norm()/B.norm()).item()

    def drivers(W):
        "One matrix decomposed in four ways."
        for driver in "gesdd", "gesvd":
            U, S, Vh = scipy.linalg.svd(W.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (U, S, Vh))
            V, S, Uh = scipy.linalg.svd(W.T.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (Uh.T, S, V.T))

    def tiny(**options):
        "A random Llama of two blocks with square and 4:1 layers."
        torch.manual_seed(0)
        return tf.LlamaForCausalLM(tf.LlamaConfig(**dict(vocab_size=96, hidden_size=32, intermediate_size=128,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, eos_token_id=None) | options)).eval()

    def shaken(model, share=.1):
        "Give the values of M random numbers, `share` of the norm of each weight in all."
        torch.manual_seed(1)
        for adapter in adapters(model).values():
            for part in adapter.parts:
                W = effective_weight(part.base)
                nn.init.normal_(part.M, std=share*W.float().norm().item()/len(part.M)**.5)
                vars(part)["known"] = None
        return model

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def llama(h, ff, blocks, heads, kv, size=None, **options):
        "The linear layers of a model with Llama's shapes, on the meta device."
        with torch.device("meta"): model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=32, hidden_size=h, head_dim=size,
            intermediate_size=ff, num_hidden_layers=blocks, num_attention_heads=heads, num_key_value_heads=kv, **options))
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{args} {kwargs} were accepted")

    # %% ../nbs/22_svft.ipynb #e998141c
    def chosen(W, kind=nn.Linear): return route(linear_from(W, kind=kind), svd(W)[1]).__name__

    square, tall, wide_ = gaussian(32, 32), gaussian(64, 16), gaussian(16, 64)
    assert [chosen(W) for W in (square, tall, wide_, gaussian(31, 16))] == ["Fused", "OneSided", "OneSided", "Fused"]
    assert [chosen(W, Conv1D) for W in (square, tall, wide_)] == ["Fused", "OneSided", "OneSided"]
    assert [chosen(conditioned(64, 16, c)) for c in (90, 110)] == ["OneSided", "Fused"]
    assert chosen(tall.bfloat16()) == "TwoBasis" and chosen(0*tall) == "Fused"
    assert [route(GridLinear(*rtn(W, group=None)), svd(W)[1][:8]).__name__ for W in (square, tall)] == ["OneSided"]*2
    assert [route(GridLinear(*rtn(W, group=None)), svd(W)[1]).__name__ for W in (conditioned(32, 32, 110), 0*tall)] == \
        ["TwoBasis"]*2


def test_which_form_where_2():
    # %% ../nbs/22_svft.ipynb #a495517d
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/22_svft.ipynb #aabefcbb
    def gaussian(out, in_, seed=0, dtype=torch.float32):
        "A matrix of independent normal numbers, as well conditioned as its shape allows."
        return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed), dtype=dtype)

    def conditioned(out, in_, cond, seed=0, dtype=torch.float32):
        "A matrix with singular values from 1 down to 1/cond, geometrically."
        U, _, Vh = torch.linalg.svd(gaussian(out, in_, seed, torch.float64), full_matrices=False)
        return (U * torch.logspace(0, -math.log10(cond), len(Vh), dtype=torch.float64) @ Vh).to(dtype)

    def apart(A, B):
        "The relative distance of A from B."
        return ((A - B).norm()/B.norm()).item()

    def drivers(W):
        "One matrix decomposed in four ways."
        for driver in "gesdd", "gesvd":
            U, S, Vh = scipy.linalg.svd(W.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (U, S, Vh))
            V, S, Uh = scipy.linalg.svd(W.T.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (Uh.T, S, V.T))

    def tiny(**options):
        "A random Llama of two blocks with square and 4:1 layers."
        torch.manual_seed(0)
        return tf.LlamaForCausalLM(tf.LlamaConfig(**dict(vocab_size=96, hidden_size=32, intermediate_size=128,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, eos_token_id=None) | options)).eval()

    def shaken(model, share=.1):
        "Give the values of M random numbers, `share` of the norm of each weight in all."
        torch.manual_seed(1)
        for adapter in adapters(model).values():
            for part in adapter.parts:
                W = effective_weight(part.base)
                nn.init.normal_(part.M, std=share*W.float().norm().item()/len(part.M)**.5)
                vars(part)["known"] = None
        return model

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def llama(h, ff, blocks, heads, kv, size=None, **options):
        "The linear layers of a model with Llama's shapes, on the meta device."
        with torch.device("meta"): model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=32, hidden_size=h, head_dim=size,
            intermediate_size=ff, num_hidden_layers=blocks, num_attention_heads=heads, num_key_value_heads=kv, **options))
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{args} {kwargs} were accepted")

    # %% ../nbs/22_svft.ipynb #cb4c678b
    FORMS = TwoBasis, Fused, OneSided, Bare

    def made(form, W, pattern="plain", d=0, r=None, kind=nn.Linear, bias=True, gated=False):
        "A layer, a part of a options form with random values, and the change that it should make."
        base = linear_from(W, gaussian(1, len(W), seed=3)[0].to(W.dtype) if bias else None, kind).requires_grad_(False)
        U, S, Vh = singular(W)
        U, S, Vh = U[:, :r].contiguous(), S[:r], Vh[:r].contiguous()
        at = pairs(pattern, d, U, Vh)
        part = form(base, U, S, Vh, at, gated)
        nn.init.normal_(part.M, std=.3*S.mean().item())
        m = part.values().detach()
        M = torch.zeros(len(S), len(S), dtype=m.dtype)
        if at is None: M += m.diag()
        else: M[at[0], at[1]] = m
        return base, part, U.double() @ M.double() @ Vh.double()

    def compare(form, W, tolerance, **options):
        "Compare output and gradients with those of a dense weight in float64."
        base, part, D = made(form, W, **options)
        x = gaussian(24, W.shape[1], seed=5).view(2, 12, -1).to(W.dtype).requires_grad_()
        g = gaussian(24, len(W), seed=6).view(2, 12, -1).to(W.dtype)
        y = part.onto(base, x)
        y.backward(g)
        What = effective_weight(base).double() + D
        want = F.linear(x.double(), What, base.bias if base.bias is None else base.bias.double())
        H = part.coordinates(g.double().flatten(0, 1).T, x.detach().double().flatten(0, 1).T)
        dM = picked(H[0].T, H[1].T, part.at)*(1 if part.gate is None else part.gate.sigmoid())
        assert apart(y.double(), want) < tolerance and apart(part.delta().double(), D) < tolerance
        assert apart(x.grad.double(), g.double() @ What) < tolerance
        assert apart(part.M.grad.double(), dM) < tolerance
        torch.testing.assert_close(part(x).double(), F.linear(x.double(), D), rtol=5*tolerance, atol=5*tolerance)

    # %% ../nbs/22_svft.ipynb #9a54d505
    for form in FORMS:
        for W in gaussian(24, 24), gaussian(40, 10), gaussian(10, 40), gaussian(7, 5):
            for pattern, d in ("plain", 0), ("banded", 1), ("random", 2), ("top_k", 1):
                conv = pattern in ("banded", "top_k")
                compare(form, W, 2e-5, pattern=pattern, d=d, kind=Conv1D if conv else nn.Linear, bias=conv)
                if form is not Bare: compare(form, W, 2e-5, pattern=pattern, d=d, r=4, gated=True)


def test_which_form_where_3():
    # %% ../nbs/22_svft.ipynb #a495517d
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/22_svft.ipynb #aabefcbb
    def gaussian(out, in_, seed=0, dtype=torch.float32):
        "A matrix of independent normal numbers, as well conditioned as its shape allows."
        return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed), dtype=dtype)

    def conditioned(out, in_, cond, seed=0, dtype=torch.float32):
        "A matrix with singular values from 1 down to 1/cond, geometrically."
        U, _, Vh = torch.linalg.svd(gaussian(out, in_, seed, torch.float64), full_matrices=False)
        return (U * torch.logspace(0, -math.log10(cond), len(Vh), dtype=torch.float64) @ Vh).to(dtype)

    def apart(A, B):
        "The relative distance of A from B."
        return ((A - B).norm()/B.norm()).item()

    def drivers(W):
        "One matrix decomposed in four ways."
        for driver in "gesdd", "gesvd":
            U, S, Vh = scipy.linalg.svd(W.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (U, S, Vh))
            V, S, Uh = scipy.linalg.svd(W.T.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (Uh.T, S, V.T))

    def tiny(**options):
        "A random Llama of two blocks with square and 4:1 layers."
        torch.manual_seed(0)
        return tf.LlamaForCausalLM(tf.LlamaConfig(**dict(vocab_size=96, hidden_size=32, intermediate_size=128,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, eos_token_id=None) | options)).eval()

    def shaken(model, share=.1):
        "Give the values of M random numbers, `share` of the norm of each weight in all."
        torch.manual_seed(1)
        for adapter in adapters(model).values():
            for part in adapter.parts:
                W = effective_weight(part.base)
                nn.init.normal_(part.M, std=share*W.float().norm().item()/len(part.M)**.5)
                vars(part)["known"] = None
        return model

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def llama(h, ff, blocks, heads, kv, size=None, **options):
        "The linear layers of a model with Llama's shapes, on the meta device."
        with torch.device("meta"): model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=32, hidden_size=h, head_dim=size,
            intermediate_size=ff, num_hidden_layers=blocks, num_attention_heads=heads, num_key_value_heads=kv, **options))
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{args} {kwargs} were accepted")

    # %% ../nbs/22_svft.ipynb #cb4c678b
    FORMS = TwoBasis, Fused, OneSided, Bare

    def made(form, W, pattern="plain", d=0, r=None, kind=nn.Linear, bias=True, gated=False):
        "A layer, a part of a options form with random values, and the change that it should make."
        base = linear_from(W, gaussian(1, len(W), seed=3)[0].to(W.dtype) if bias else None, kind).requires_grad_(False)
        U, S, Vh = singular(W)
        U, S, Vh = U[:, :r].contiguous(), S[:r], Vh[:r].contiguous()
        at = pairs(pattern, d, U, Vh)
        part = form(base, U, S, Vh, at, gated)
        nn.init.normal_(part.M, std=.3*S.mean().item())
        m = part.values().detach()
        M = torch.zeros(len(S), len(S), dtype=m.dtype)
        if at is None: M += m.diag()
        else: M[at[0], at[1]] = m
        return base, part, U.double() @ M.double() @ Vh.double()

    def compare(form, W, tolerance, **options):
        "Compare output and gradients with those of a dense weight in float64."
        base, part, D = made(form, W, **options)
        x = gaussian(24, W.shape[1], seed=5).view(2, 12, -1).to(W.dtype).requires_grad_()
        g = gaussian(24, len(W), seed=6).view(2, 12, -1).to(W.dtype)
        y = part.onto(base, x)
        y.backward(g)
        What = effective_weight(base).double() + D
        want = F.linear(x.double(), What, base.bias if base.bias is None else base.bias.double())
        H = part.coordinates(g.double().flatten(0, 1).T, x.detach().double().flatten(0, 1).T)
        dM = picked(H[0].T, H[1].T, part.at)*(1 if part.gate is None else part.gate.sigmoid())
        assert apart(y.double(), want) < tolerance and apart(part.delta().double(), D) < tolerance
        assert apart(x.grad.double(), g.double() @ What) < tolerance
        assert apart(part.M.grad.double(), dM) < tolerance
        torch.testing.assert_close(part(x).double(), F.linear(x.double(), D), rtol=5*tolerance, atol=5*tolerance)

    # %% ../nbs/22_svft.ipynb #c78db8cb
    for form in FORMS:
        for W in conditioned(64, 16, 90), conditioned(16, 64, 90): compare(form, W, 2e-5, pattern="banded", d=2)
        if form not in (Fused, OneSided):
            for W in gaussian(64, 64), gaussian(128, 32), gaussian(32, 128): compare(form, W.bfloat16(), 1e-2)


def test_which_form_where_4():
    # %% ../nbs/22_svft.ipynb #a495517d
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/22_svft.ipynb #aabefcbb
    def gaussian(out, in_, seed=0, dtype=torch.float32):
        "A matrix of independent normal numbers, as well conditioned as its shape allows."
        return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed), dtype=dtype)

    def conditioned(out, in_, cond, seed=0, dtype=torch.float32):
        "A matrix with singular values from 1 down to 1/cond, geometrically."
        U, _, Vh = torch.linalg.svd(gaussian(out, in_, seed, torch.float64), full_matrices=False)
        return (U * torch.logspace(0, -math.log10(cond), len(Vh), dtype=torch.float64) @ Vh).to(dtype)

    def apart(A, B):
        "The relative distance of A from B."
        return ((A - B).norm()/B.norm()).item()

    def drivers(W):
        "One matrix decomposed in four ways."
        for driver in "gesdd", "gesvd":
            U, S, Vh = scipy.linalg.svd(W.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (U, S, Vh))
            V, S, Uh = scipy.linalg.svd(W.T.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (Uh.T, S, V.T))

    def tiny(**options):
        "A random Llama of two blocks with square and 4:1 layers."
        torch.manual_seed(0)
        return tf.LlamaForCausalLM(tf.LlamaConfig(**dict(vocab_size=96, hidden_size=32, intermediate_size=128,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, eos_token_id=None) | options)).eval()

    def shaken(model, share=.1):
        "Give the values of M random numbers, `share` of the norm of each weight in all."
        torch.manual_seed(1)
        for adapter in adapters(model).values():
            for part in adapter.parts:
                W = effective_weight(part.base)
                nn.init.normal_(part.M, std=share*W.float().norm().item()/len(part.M)**.5)
                vars(part)["known"] = None
        return model

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def llama(h, ff, blocks, heads, kv, size=None, **options):
        "The linear layers of a model with Llama's shapes, on the meta device."
        with torch.device("meta"): model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=32, hidden_size=h, head_dim=size,
            intermediate_size=ff, num_hidden_layers=blocks, num_attention_heads=heads, num_key_value_heads=kv, **options))
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{args} {kwargs} were accepted")

    # %% ../nbs/22_svft.ipynb #cb4c678b
    FORMS = TwoBasis, Fused, OneSided, Bare

    def made(form, W, pattern="plain", d=0, r=None, kind=nn.Linear, bias=True, gated=False):
        "A layer, a part of a options form with random values, and the change that it should make."
        base = linear_from(W, gaussian(1, len(W), seed=3)[0].to(W.dtype) if bias else None, kind).requires_grad_(False)
        U, S, Vh = singular(W)
        U, S, Vh = U[:, :r].contiguous(), S[:r], Vh[:r].contiguous()
        at = pairs(pattern, d, U, Vh)
        part = form(base, U, S, Vh, at, gated)
        nn.init.normal_(part.M, std=.3*S.mean().item())
        m = part.values().detach()
        M = torch.zeros(len(S), len(S), dtype=m.dtype)
        if at is None: M += m.diag()
        else: M[at[0], at[1]] = m
        return base, part, U.double() @ M.double() @ Vh.double()

    def compare(form, W, tolerance, **options):
        "Compare output and gradients with those of a dense weight in float64."
        base, part, D = made(form, W, **options)
        x = gaussian(24, W.shape[1], seed=5).view(2, 12, -1).to(W.dtype).requires_grad_()
        g = gaussian(24, len(W), seed=6).view(2, 12, -1).to(W.dtype)
        y = part.onto(base, x)
        y.backward(g)
        What = effective_weight(base).double() + D
        want = F.linear(x.double(), What, base.bias if base.bias is None else base.bias.double())
        H = part.coordinates(g.double().flatten(0, 1).T, x.detach().double().flatten(0, 1).T)
        dM = picked(H[0].T, H[1].T, part.at)*(1 if part.gate is None else part.gate.sigmoid())
        assert apart(y.double(), want) < tolerance and apart(part.delta().double(), D) < tolerance
        assert apart(x.grad.double(), g.double() @ What) < tolerance
        assert apart(part.M.grad.double(), dM) < tolerance
        torch.testing.assert_close(part(x).double(), F.linear(x.double(), D), rtol=5*tolerance, atol=5*tolerance)

    # %% ../nbs/22_svft.ipynb #d8f38819
    class Onto(nn.Module):
        "A layer with its part, as one module."
        def __init__(self, base, part):
            super().__init__()
            self.base, self.part = base, part

        def forward(self, x):
            self.part.known = None  # gradcheck moves parameters behind the back of their version counters
            return self.part.onto(self.base, x)

    def of_values(layer, names, x, *values):
        "The layer's output as a function of its parameters."
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    # %% ../nbs/22_svft.ipynb #01f3cc17
    for form in FORMS:
        for shape in (5, 5), (7, 3), (3, 7):
            for pattern, d in ("plain", 0), ("banded", 1):
                base, part, _ = made(form, gaussian(*shape, dtype=torch.float64), pattern, d, gated=True)
                layer, x = Onto(base, part.double()), gaussian(4, shape[1], seed=2, dtype=torch.float64).requires_grad_()
                names = [f"part.{name}" for name, _ in part.named_parameters()]
                f = partial(of_values, layer, names)
                own = [p.detach().clone().requires_grad_() for p in part.parameters()]
                assert len(own) == 2 and torch.autograd.gradcheck(f, (x, *own))


def test_the_adapter():
    # %% ../nbs/22_svft.ipynb #a495517d
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/22_svft.ipynb #aabefcbb
    def gaussian(out, in_, seed=0, dtype=torch.float32):
        "A matrix of independent normal numbers, as well conditioned as its shape allows."
        return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed), dtype=dtype)

    def conditioned(out, in_, cond, seed=0, dtype=torch.float32):
        "A matrix with singular values from 1 down to 1/cond, geometrically."
        U, _, Vh = torch.linalg.svd(gaussian(out, in_, seed, torch.float64), full_matrices=False)
        return (U * torch.logspace(0, -math.log10(cond), len(Vh), dtype=torch.float64) @ Vh).to(dtype)

    def apart(A, B):
        "The relative distance of A from B."
        return ((A - B).norm()/B.norm()).item()

    def drivers(W):
        "One matrix decomposed in four ways."
        for driver in "gesdd", "gesvd":
            U, S, Vh = scipy.linalg.svd(W.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (U, S, Vh))
            V, S, Uh = scipy.linalg.svd(W.T.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (Uh.T, S, V.T))

    def tiny(**options):
        "A random Llama of two blocks with square and 4:1 layers."
        torch.manual_seed(0)
        return tf.LlamaForCausalLM(tf.LlamaConfig(**dict(vocab_size=96, hidden_size=32, intermediate_size=128,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, eos_token_id=None) | options)).eval()

    def shaken(model, share=.1):
        "Give the values of M random numbers, `share` of the norm of each weight in all."
        torch.manual_seed(1)
        for adapter in adapters(model).values():
            for part in adapter.parts:
                W = effective_weight(part.base)
                nn.init.normal_(part.M, std=share*W.float().norm().item()/len(part.M)**.5)
                vars(part)["known"] = None
        return model

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def llama(h, ff, blocks, heads, kv, size=None, **options):
        "The linear layers of a model with Llama's shapes, on the meta device."
        with torch.device("meta"): model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=32, hidden_size=h, head_dim=size,
            intermediate_size=ff, num_hidden_layers=blocks, num_attention_heads=heads, num_key_value_heads=kv, **options))
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{args} {kwargs} were accepted")

    # %% ../nbs/22_svft.ipynb #6162b7d9
    for dtype in torch.float32, torch.bfloat16:
        base = logits(tiny().to(dtype))
        for options in (dict(), dict(pattern="banded"), dict(pattern="random", rank=9),
                        dict(pattern="top_k", off_diagonal=1)):
            model = tiny().to(dtype)
            adapter = attach(model, SVFT(**options))
            assert torch.equal(logits(model), base)
            d = 0 if not options else options.get("off_diagonal", 2)
            assert trained(model) == 14*entries(options.get("rank", 32), d)
            assert [p.numel() for p in parameter_groups(model)[0]["params"]] == [trained(model)//14]*14
            assert apart(logits(shaken(model)), base) > .01
        print(dtype, sorted({type(part).__name__ for part in adapter.parts}))


def test_the_adapter_2():
    # %% ../nbs/22_svft.ipynb #a495517d
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/22_svft.ipynb #aabefcbb
    def gaussian(out, in_, seed=0, dtype=torch.float32):
        "A matrix of independent normal numbers, as well conditioned as its shape allows."
        return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed), dtype=dtype)

    def conditioned(out, in_, cond, seed=0, dtype=torch.float32):
        "A matrix with singular values from 1 down to 1/cond, geometrically."
        U, _, Vh = torch.linalg.svd(gaussian(out, in_, seed, torch.float64), full_matrices=False)
        return (U * torch.logspace(0, -math.log10(cond), len(Vh), dtype=torch.float64) @ Vh).to(dtype)

    def apart(A, B):
        "The relative distance of A from B."
        return ((A - B).norm()/B.norm()).item()

    def drivers(W):
        "One matrix decomposed in four ways."
        for driver in "gesdd", "gesvd":
            U, S, Vh = scipy.linalg.svd(W.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (U, S, Vh))
            V, S, Uh = scipy.linalg.svd(W.T.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (Uh.T, S, V.T))

    def tiny(**options):
        "A random Llama of two blocks with square and 4:1 layers."
        torch.manual_seed(0)
        return tf.LlamaForCausalLM(tf.LlamaConfig(**dict(vocab_size=96, hidden_size=32, intermediate_size=128,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, eos_token_id=None) | options)).eval()

    def shaken(model, share=.1):
        "Give the values of M random numbers, `share` of the norm of each weight in all."
        torch.manual_seed(1)
        for adapter in adapters(model).values():
            for part in adapter.parts:
                W = effective_weight(part.base)
                nn.init.normal_(part.M, std=share*W.float().norm().item()/len(part.M)**.5)
                vars(part)["known"] = None
        return model

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def llama(h, ff, blocks, heads, kv, size=None, **options):
        "The linear layers of a model with Llama's shapes, on the meta device."
        with torch.device("meta"): model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=32, hidden_size=h, head_dim=size,
            intermediate_size=ff, num_hidden_layers=blocks, num_attention_heads=heads, num_key_value_heads=kv, **options))
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{args} {kwargs} were accepted")

    # %% ../nbs/22_svft.ipynb #f90d0b7d
    model = tiny()
    optimizer = torch.optim.AdamW(parameter_groups(model)) if attach(model, SVFT()) else None
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [(5e-2, 0)]
    for d, lr in (2, 1e-2), (8, 5e-3):
        adapter = SVFT(pattern="random", off_diagonal=d).build({"a": nn.Linear(9, 9)})
        assert [g["lr"] for g in adapter.groups()] == [lr]
    ids = torch.randint(0, 96, (4, 16))
    for _ in range(5):
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step(), optimizer.zero_grad()
    held = {id(p) for p in model.pathlm_adapters.parameters()}
    assert sum(t.numel() for s in optimizer.state.values() for t in s.values() if t.numel() > 1) == 2*trained(model)
    assert all(p.grad is None for p in model.parameters() if id(p) not in held)
    assert apart(logits(model), logits(tiny())) > .01
    assert all(p.dtype == torch.float32 for p in model.pathlm_adapters.parameters())


def test_the_adapter_3():
    # %% ../nbs/22_svft.ipynb #a495517d
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/22_svft.ipynb #aabefcbb
    def gaussian(out, in_, seed=0, dtype=torch.float32):
        "A matrix of independent normal numbers, as well conditioned as its shape allows."
        return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed), dtype=dtype)

    def conditioned(out, in_, cond, seed=0, dtype=torch.float32):
        "A matrix with singular values from 1 down to 1/cond, geometrically."
        U, _, Vh = torch.linalg.svd(gaussian(out, in_, seed, torch.float64), full_matrices=False)
        return (U * torch.logspace(0, -math.log10(cond), len(Vh), dtype=torch.float64) @ Vh).to(dtype)

    def apart(A, B):
        "The relative distance of A from B."
        return ((A - B).norm()/B.norm()).item()

    def drivers(W):
        "One matrix decomposed in four ways."
        for driver in "gesdd", "gesvd":
            U, S, Vh = scipy.linalg.svd(W.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (U, S, Vh))
            V, S, Uh = scipy.linalg.svd(W.T.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (Uh.T, S, V.T))

    def tiny(**options):
        "A random Llama of two blocks with square and 4:1 layers."
        torch.manual_seed(0)
        return tf.LlamaForCausalLM(tf.LlamaConfig(**dict(vocab_size=96, hidden_size=32, intermediate_size=128,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, eos_token_id=None) | options)).eval()

    def shaken(model, share=.1):
        "Give the values of M random numbers, `share` of the norm of each weight in all."
        torch.manual_seed(1)
        for adapter in adapters(model).values():
            for part in adapter.parts:
                W = effective_weight(part.base)
                nn.init.normal_(part.M, std=share*W.float().norm().item()/len(part.M)**.5)
                vars(part)["known"] = None
        return model

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def llama(h, ff, blocks, heads, kv, size=None, **options):
        "The linear layers of a model with Llama's shapes, on the meta device."
        with torch.device("meta"): model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=32, hidden_size=h, head_dim=size,
            intermediate_size=ff, num_hidden_layers=blocks, num_attention_heads=heads, num_key_value_heads=kv, **options))
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{args} {kwargs} were accepted")

    # %% ../nbs/22_svft.ipynb #5815bcdd
    model = tiny().bfloat16()
    for part in attach(model, SVFT()).parts:
        out, in_ = part.base.weight.shape
        assert sum(t.numel()*t.element_size() for t in part.buffers()) == 2*32*(in_ + out)
    model = tiny()
    for part in attach(model, SVFT()).parts:
        if type(part) is OneSided: assert sum(t.numel()*t.element_size() for t in part.buffers()) == 4*(32**2 + 32)


def test_the_adapter_4():
    # %% ../nbs/22_svft.ipynb #a495517d
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/22_svft.ipynb #aabefcbb
    def gaussian(out, in_, seed=0, dtype=torch.float32):
        "A matrix of independent normal numbers, as well conditioned as its shape allows."
        return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed), dtype=dtype)

    def conditioned(out, in_, cond, seed=0, dtype=torch.float32):
        "A matrix with singular values from 1 down to 1/cond, geometrically."
        U, _, Vh = torch.linalg.svd(gaussian(out, in_, seed, torch.float64), full_matrices=False)
        return (U * torch.logspace(0, -math.log10(cond), len(Vh), dtype=torch.float64) @ Vh).to(dtype)

    def apart(A, B):
        "The relative distance of A from B."
        return ((A - B).norm()/B.norm()).item()

    def drivers(W):
        "One matrix decomposed in four ways."
        for driver in "gesdd", "gesvd":
            U, S, Vh = scipy.linalg.svd(W.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (U, S, Vh))
            V, S, Uh = scipy.linalg.svd(W.T.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (Uh.T, S, V.T))

    def tiny(**options):
        "A random Llama of two blocks with square and 4:1 layers."
        torch.manual_seed(0)
        return tf.LlamaForCausalLM(tf.LlamaConfig(**dict(vocab_size=96, hidden_size=32, intermediate_size=128,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, eos_token_id=None) | options)).eval()

    def shaken(model, share=.1):
        "Give the values of M random numbers, `share` of the norm of each weight in all."
        torch.manual_seed(1)
        for adapter in adapters(model).values():
            for part in adapter.parts:
                W = effective_weight(part.base)
                nn.init.normal_(part.M, std=share*W.float().norm().item()/len(part.M)**.5)
                vars(part)["known"] = None
        return model

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def llama(h, ff, blocks, heads, kv, size=None, **options):
        "The linear layers of a model with Llama's shapes, on the meta device."
        with torch.device("meta"): model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=32, hidden_size=h, head_dim=size,
            intermediate_size=ff, num_hidden_layers=blocks, num_attention_heads=heads, num_key_value_heads=kv, **options))
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{args} {kwargs} were accepted")

    # %% ../nbs/22_svft.ipynb #c2a1b3e7
    for n in 64, 256, 1024:
        adapter = SVFT(gate=True, pattern="banded").build({"a": linear_from(torch.eye(n))})
        assert abs(adapter.parts[0].delta().norm() - .5**.5) < .1
    torch.manual_seed(0)
    model = tiny()
    attach(model, SVFT(gate=True))
    assert trained(model) == 14*(32 + 1) and not torch.equal(logits(model), logits(tiny()))
    U, S, Vh = svd(W := gaussian(256, 256))
    cut = apart(U[:, :64]*S[:64] @ Vh[:64], W)
    print(f"a weight cut to a quarter of its rank: error {cut:.0%}")
    assert .58 < cut < .64


def test_the_adapter_5():
    # %% ../nbs/22_svft.ipynb #a495517d
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/22_svft.ipynb #aabefcbb
    def gaussian(out, in_, seed=0, dtype=torch.float32):
        "A matrix of independent normal numbers, as well conditioned as its shape allows."
        return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed), dtype=dtype)

    def conditioned(out, in_, cond, seed=0, dtype=torch.float32):
        "A matrix with singular values from 1 down to 1/cond, geometrically."
        U, _, Vh = torch.linalg.svd(gaussian(out, in_, seed, torch.float64), full_matrices=False)
        return (U * torch.logspace(0, -math.log10(cond), len(Vh), dtype=torch.float64) @ Vh).to(dtype)

    def apart(A, B):
        "The relative distance of A from B."
        return ((A - B).norm()/B.norm()).item()

    def drivers(W):
        "One matrix decomposed in four ways."
        for driver in "gesdd", "gesvd":
            U, S, Vh = scipy.linalg.svd(W.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (U, S, Vh))
            V, S, Uh = scipy.linalg.svd(W.T.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (Uh.T, S, V.T))

    def tiny(**options):
        "A random Llama of two blocks with square and 4:1 layers."
        torch.manual_seed(0)
        return tf.LlamaForCausalLM(tf.LlamaConfig(**dict(vocab_size=96, hidden_size=32, intermediate_size=128,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, eos_token_id=None) | options)).eval()

    def shaken(model, share=.1):
        "Give the values of M random numbers, `share` of the norm of each weight in all."
        torch.manual_seed(1)
        for adapter in adapters(model).values():
            for part in adapter.parts:
                W = effective_weight(part.base)
                nn.init.normal_(part.M, std=share*W.float().norm().item()/len(part.M)**.5)
                vars(part)["known"] = None
        return model

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def llama(h, ff, blocks, heads, kv, size=None, **options):
        "The linear layers of a model with Llama's shapes, on the meta device."
        with torch.device("meta"): model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=32, hidden_size=h, head_dim=size,
            intermediate_size=ff, num_hidden_layers=blocks, num_attention_heads=heads, num_key_value_heads=kv, **options))
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{args} {kwargs} were accepted")

    # %% ../nbs/22_svft.ipynb #42317116
    for dtype in torch.float32, torch.bfloat16:
        for pattern in PATTERNS:
            model = tiny().to(dtype)
            before = copy.deepcopy(model.state_dict())
            attach(model, SVFT(pattern=pattern))
            changed = logits(shaken(model))
            layer = adapted(model)["model.layers.0.mlp.up_proj"]
            want = (layer.base.weight.float() + layer.parts["default"].delta().float()).to(dtype)
            for _ in range(3):
                merge(model)
                assert torch.equal(model.model.layers[0].mlp.up_proj.weight, want)
                assert apart(logits(model).float(), changed.float()) < (1e-5 if dtype == torch.float32 else 3e-2)
                unmerge(model)
            assert torch.equal(logits(model), changed)
            after = detach(model).state_dict()
            assert all(torch.equal(before[k], after[k]) for k in before)


def test_the_adapter_6():
    # %% ../nbs/22_svft.ipynb #a495517d
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/22_svft.ipynb #aabefcbb
    def gaussian(out, in_, seed=0, dtype=torch.float32):
        "A matrix of independent normal numbers, as well conditioned as its shape allows."
        return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed), dtype=dtype)

    def conditioned(out, in_, cond, seed=0, dtype=torch.float32):
        "A matrix with singular values from 1 down to 1/cond, geometrically."
        U, _, Vh = torch.linalg.svd(gaussian(out, in_, seed, torch.float64), full_matrices=False)
        return (U * torch.logspace(0, -math.log10(cond), len(Vh), dtype=torch.float64) @ Vh).to(dtype)

    def apart(A, B):
        "The relative distance of A from B."
        return ((A - B).norm()/B.norm()).item()

    def drivers(W):
        "One matrix decomposed in four ways."
        for driver in "gesdd", "gesvd":
            U, S, Vh = scipy.linalg.svd(W.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (U, S, Vh))
            V, S, Uh = scipy.linalg.svd(W.T.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (Uh.T, S, V.T))

    def tiny(**options):
        "A random Llama of two blocks with square and 4:1 layers."
        torch.manual_seed(0)
        return tf.LlamaForCausalLM(tf.LlamaConfig(**dict(vocab_size=96, hidden_size=32, intermediate_size=128,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, eos_token_id=None) | options)).eval()

    def shaken(model, share=.1):
        "Give the values of M random numbers, `share` of the norm of each weight in all."
        torch.manual_seed(1)
        for adapter in adapters(model).values():
            for part in adapter.parts:
                W = effective_weight(part.base)
                nn.init.normal_(part.M, std=share*W.float().norm().item()/len(part.M)**.5)
                vars(part)["known"] = None
        return model

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def llama(h, ff, blocks, heads, kv, size=None, **options):
        "The linear layers of a model with Llama's shapes, on the meta device."
        with torch.device("meta"): model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=32, hidden_size=h, head_dim=size,
            intermediate_size=ff, num_hidden_layers=blocks, num_attention_heads=heads, num_key_value_heads=kv, **options))
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{args} {kwargs} were accepted")

    # %% ../nbs/22_svft.ipynb #578816f6
    def gradients(pattern, halves=1, **kwargs):
        "The gradients of one batch."
        model = tiny().train()
        if kwargs: model.gradient_checkpointing_enable(kwargs)
        attach(model, SVFT(pattern=pattern, residual=pattern != "random"))
        if kwargs: model.enable_input_require_grads()
        ids = torch.arange(48).view(4, 12)
        for part in ids.chunk(halves): (shaken(model)(part, labels=part).loss/halves).backward()
        return [p.grad for p in model.pathlm_adapters.parameters()]

    for pattern in "plain", "banded", "random":
        want = gradients(pattern)
        for got in gradients(pattern, use_reentrant=False), gradients(pattern, use_reentrant=True):
            assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
        for got, whole in zip(gradients(pattern, halves=2), want, strict=True):
            torch.testing.assert_close(got, whole, rtol=1e-4, atol=1e-6)


def test_the_adapter_7():
    # %% ../nbs/22_svft.ipynb #a495517d
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/22_svft.ipynb #aabefcbb
    def gaussian(out, in_, seed=0, dtype=torch.float32):
        "A matrix of independent normal numbers, as well conditioned as its shape allows."
        return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed), dtype=dtype)

    def conditioned(out, in_, cond, seed=0, dtype=torch.float32):
        "A matrix with singular values from 1 down to 1/cond, geometrically."
        U, _, Vh = torch.linalg.svd(gaussian(out, in_, seed, torch.float64), full_matrices=False)
        return (U * torch.logspace(0, -math.log10(cond), len(Vh), dtype=torch.float64) @ Vh).to(dtype)

    def apart(A, B):
        "The relative distance of A from B."
        return ((A - B).norm()/B.norm()).item()

    def drivers(W):
        "One matrix decomposed in four ways."
        for driver in "gesdd", "gesvd":
            U, S, Vh = scipy.linalg.svd(W.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (U, S, Vh))
            V, S, Uh = scipy.linalg.svd(W.T.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (Uh.T, S, V.T))

    def tiny(**options):
        "A random Llama of two blocks with square and 4:1 layers."
        torch.manual_seed(0)
        return tf.LlamaForCausalLM(tf.LlamaConfig(**dict(vocab_size=96, hidden_size=32, intermediate_size=128,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, eos_token_id=None) | options)).eval()

    def shaken(model, share=.1):
        "Give the values of M random numbers, `share` of the norm of each weight in all."
        torch.manual_seed(1)
        for adapter in adapters(model).values():
            for part in adapter.parts:
                W = effective_weight(part.base)
                nn.init.normal_(part.M, std=share*W.float().norm().item()/len(part.M)**.5)
                vars(part)["known"] = None
        return model

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def llama(h, ff, blocks, heads, kv, size=None, **options):
        "The linear layers of a model with Llama's shapes, on the meta device."
        with torch.device("meta"): model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=32, hidden_size=h, head_dim=size,
            intermediate_size=ff, num_hidden_layers=blocks, num_attention_heads=heads, num_key_value_heads=kv, **options))
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{args} {kwargs} were accepted")

    # %% ../nbs/22_svft.ipynb #432b97eb
    model = tiny()
    attach(model, SVFT(target_modules="q_proj"))
    part = adapters(model)["default"].parts[0]
    optimizer = torch.optim.AdamW(parameter_groups(model), fused=True)
    logits(shaken(model))
    first = part.What
    for _ in range(2): model(ids := torch.arange(24).view(2, 12), labels=ids).loss.backward()
    assert part.What is first
    optimizer.step()
    want = part.base.weight + part.delta()
    model(ids)
    assert part.What is not first and torch.equal(part.What, want)
    with torch.no_grad(): part.base.weight.mul_(1.5)
    with torch.inference_mode(): model(ids)
    assert apart(part.What, want) > .1
    model(ids, labels=ids).loss.backward()


def test_the_adapter_8():
    # %% ../nbs/22_svft.ipynb #a495517d
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/22_svft.ipynb #aabefcbb
    def gaussian(out, in_, seed=0, dtype=torch.float32):
        "A matrix of independent normal numbers, as well conditioned as its shape allows."
        return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed), dtype=dtype)

    def conditioned(out, in_, cond, seed=0, dtype=torch.float32):
        "A matrix with singular values from 1 down to 1/cond, geometrically."
        U, _, Vh = torch.linalg.svd(gaussian(out, in_, seed, torch.float64), full_matrices=False)
        return (U * torch.logspace(0, -math.log10(cond), len(Vh), dtype=torch.float64) @ Vh).to(dtype)

    def apart(A, B):
        "The relative distance of A from B."
        return ((A - B).norm()/B.norm()).item()

    def drivers(W):
        "One matrix decomposed in four ways."
        for driver in "gesdd", "gesvd":
            U, S, Vh = scipy.linalg.svd(W.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (U, S, Vh))
            V, S, Uh = scipy.linalg.svd(W.T.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (Uh.T, S, V.T))

    def tiny(**options):
        "A random Llama of two blocks with square and 4:1 layers."
        torch.manual_seed(0)
        return tf.LlamaForCausalLM(tf.LlamaConfig(**dict(vocab_size=96, hidden_size=32, intermediate_size=128,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, eos_token_id=None) | options)).eval()

    def shaken(model, share=.1):
        "Give the values of M random numbers, `share` of the norm of each weight in all."
        torch.manual_seed(1)
        for adapter in adapters(model).values():
            for part in adapter.parts:
                W = effective_weight(part.base)
                nn.init.normal_(part.M, std=share*W.float().norm().item()/len(part.M)**.5)
                vars(part)["known"] = None
        return model

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def llama(h, ff, blocks, heads, kv, size=None, **options):
        "The linear layers of a model with Llama's shapes, on the meta device."
        with torch.device("meta"): model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=32, hidden_size=h, head_dim=size,
            intermediate_size=ff, num_hidden_layers=blocks, num_attention_heads=heads, num_key_value_heads=kv, **options))
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{args} {kwargs} were accepted")

    # %% ../nbs/22_svft.ipynb #789cc79d
    for target in "self_attn.q_proj", "mlp.up_proj", "mlp.down_proj":
        attach(model := tiny(), SVFT(target_modules=target))
        held, ids = list(shaken(model).pathlm_adapters.parameters()), torch.arange(24).view(2, 12)
        with torch.autocast("cpu", torch.bfloat16): model(ids, labels=ids).loss.backward()
        rough = [p.grad.clone() for p in held]
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        assert all(apart(a, p.grad) < .1 for a, p in zip(rough, held, strict=True))
        layer, whole, seen = adapted(model)[f"model.layers.0.{target}"], logits(model), []
        hook = layer.base.register_forward_hook(lambda *args, to=seen: to.append(args))
        torch.testing.assert_close(logits(model), whole, rtol=1e-4, atol=1e-5)
        assert len(seen) == 1
        hook.remove()
        compiled, x = torch.compile(layer, backend="eager", fullgraph=True), gaussian(3, layer.in_features)
        torch.testing.assert_close(compiled(x), layer(x), rtol=1e-4, atol=1e-5)


def test_files():
    # %% ../nbs/22_svft.ipynb #a495517d
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/22_svft.ipynb #aabefcbb
    def gaussian(out, in_, seed=0, dtype=torch.float32):
        "A matrix of independent normal numbers, as well conditioned as its shape allows."
        return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed), dtype=dtype)

    def conditioned(out, in_, cond, seed=0, dtype=torch.float32):
        "A matrix with singular values from 1 down to 1/cond, geometrically."
        U, _, Vh = torch.linalg.svd(gaussian(out, in_, seed, torch.float64), full_matrices=False)
        return (U * torch.logspace(0, -math.log10(cond), len(Vh), dtype=torch.float64) @ Vh).to(dtype)

    def apart(A, B):
        "The relative distance of A from B."
        return ((A - B).norm()/B.norm()).item()

    def drivers(W):
        "One matrix decomposed in four ways."
        for driver in "gesdd", "gesvd":
            U, S, Vh = scipy.linalg.svd(W.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (U, S, Vh))
            V, S, Uh = scipy.linalg.svd(W.T.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (Uh.T, S, V.T))

    def tiny(**options):
        "A random Llama of two blocks with square and 4:1 layers."
        torch.manual_seed(0)
        return tf.LlamaForCausalLM(tf.LlamaConfig(**dict(vocab_size=96, hidden_size=32, intermediate_size=128,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, eos_token_id=None) | options)).eval()

    def shaken(model, share=.1):
        "Give the values of M random numbers, `share` of the norm of each weight in all."
        torch.manual_seed(1)
        for adapter in adapters(model).values():
            for part in adapter.parts:
                W = effective_weight(part.base)
                nn.init.normal_(part.M, std=share*W.float().norm().item()/len(part.M)**.5)
                vars(part)["known"] = None
        return model

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def llama(h, ff, blocks, heads, kv, size=None, **options):
        "The linear layers of a model with Llama's shapes, on the meta device."
        with torch.device("meta"): model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=32, hidden_size=h, head_dim=size,
            intermediate_size=ff, num_hidden_layers=blocks, num_attention_heads=heads, num_key_value_heads=kv, **options))
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{args} {kwargs} were accepted")

    # %% ../nbs/22_svft.ipynb #a8654751
    for options in (dict(), dict(pattern="banded"), dict(pattern="random", seed=3, rank=20),
                    dict(pattern="top_k", gate=True),
                    dict(pattern="banded", off_diagonal=1, residual=False, learning_rate=.1)):
        model = tiny()
        adapter = attach(model, SVFT(target_modules=["q_proj", "up_proj"], **options))
        with tempfile.TemporaryDirectory() as d:
            save_adapter(shaken(model), d)
            back = load_adapter(other := tiny(), d)
            assert torch.equal(logits(other), logits(model)) and back.config == adapter.config
            tensors = adapter.tensors()
            assert tensors.keys() == {"M", *["gate"]*("gate" in options), *["at"]*(options.get("pattern") == "top_k")}
            bytes_ = sum(t.numel()*t.element_size() for t in tensors.values())
            assert bytes_ == 4*trained(model) + ("at" in tensors)*4*len(tensors["M"])
            assert 0 < Path(d, "adapter.safetensors").stat().st_size - bytes_ < 2048


def test_files_2():
    # %% ../nbs/22_svft.ipynb #a495517d
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/22_svft.ipynb #aabefcbb
    def gaussian(out, in_, seed=0, dtype=torch.float32):
        "A matrix of independent normal numbers, as well conditioned as its shape allows."
        return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed), dtype=dtype)

    def conditioned(out, in_, cond, seed=0, dtype=torch.float32):
        "A matrix with singular values from 1 down to 1/cond, geometrically."
        U, _, Vh = torch.linalg.svd(gaussian(out, in_, seed, torch.float64), full_matrices=False)
        return (U * torch.logspace(0, -math.log10(cond), len(Vh), dtype=torch.float64) @ Vh).to(dtype)

    def apart(A, B):
        "The relative distance of A from B."
        return ((A - B).norm()/B.norm()).item()

    def drivers(W):
        "One matrix decomposed in four ways."
        for driver in "gesdd", "gesvd":
            U, S, Vh = scipy.linalg.svd(W.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (U, S, Vh))
            V, S, Uh = scipy.linalg.svd(W.T.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (Uh.T, S, V.T))

    def tiny(**options):
        "A random Llama of two blocks with square and 4:1 layers."
        torch.manual_seed(0)
        return tf.LlamaForCausalLM(tf.LlamaConfig(**dict(vocab_size=96, hidden_size=32, intermediate_size=128,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, eos_token_id=None) | options)).eval()

    def shaken(model, share=.1):
        "Give the values of M random numbers, `share` of the norm of each weight in all."
        torch.manual_seed(1)
        for adapter in adapters(model).values():
            for part in adapter.parts:
                W = effective_weight(part.base)
                nn.init.normal_(part.M, std=share*W.float().norm().item()/len(part.M)**.5)
                vars(part)["known"] = None
        return model

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def llama(h, ff, blocks, heads, kv, size=None, **options):
        "The linear layers of a model with Llama's shapes, on the meta device."
        with torch.device("meta"): model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=32, hidden_size=h, head_dim=size,
            intermediate_size=ff, num_hidden_layers=blocks, num_attention_heads=heads, num_key_value_heads=kv, **options))
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{args} {kwargs} were accepted")

    # %% ../nbs/22_svft.ipynb #4ae94940
    class Shapes(SVFTAdapter):
        "The adapter of a model that is not there."
        def probes(self): return noise(len(self.parts), 1).mul(6).mul(1000).round().div(1000)

    for sizes, layers, want in ((2048, 16384, 18, 8, 1, 256), 126, 774_144), ((4096, 11008, 32, 32, 32), 224, 3_670_016):
        found = select(llama(*sizes))
        with torch.device("meta"):
            parts = {name: SVFTPart(layer, None, min(layer.weight.shape)) for name, layer in found.items()}
        adapter = Shapes(SVFT(), parts)
        assert len(found) == layers and 4*sum(t.numel() for t in adapter.tensors().values()) == want
        about = {"pathlm": "0.0.1", "method": "svft", "config": {}, "layers": "0"*16, "base": "0"*16}
        about["notes"] = adapter.notes()
        assert len(json.dumps(about, separators=(",", ":"))) + 128 < 2048
        print(f"{layers} layers: {want:,} bytes")


def test_on_another_machine():
    # %% ../nbs/22_svft.ipynb #a495517d
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/22_svft.ipynb #aabefcbb
    def gaussian(out, in_, seed=0, dtype=torch.float32):
        "A matrix of independent normal numbers, as well conditioned as its shape allows."
        return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed), dtype=dtype)

    def conditioned(out, in_, cond, seed=0, dtype=torch.float32):
        "A matrix with singular values from 1 down to 1/cond, geometrically."
        U, _, Vh = torch.linalg.svd(gaussian(out, in_, seed, torch.float64), full_matrices=False)
        return (U * torch.logspace(0, -math.log10(cond), len(Vh), dtype=torch.float64) @ Vh).to(dtype)

    def apart(A, B):
        "The relative distance of A from B."
        return ((A - B).norm()/B.norm()).item()

    def drivers(W):
        "One matrix decomposed in four ways."
        for driver in "gesdd", "gesvd":
            U, S, Vh = scipy.linalg.svd(W.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (U, S, Vh))
            V, S, Uh = scipy.linalg.svd(W.T.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (Uh.T, S, V.T))

    def tiny(**options):
        "A random Llama of two blocks with square and 4:1 layers."
        torch.manual_seed(0)
        return tf.LlamaForCausalLM(tf.LlamaConfig(**dict(vocab_size=96, hidden_size=32, intermediate_size=128,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, eos_token_id=None) | options)).eval()

    def shaken(model, share=.1):
        "Give the values of M random numbers, `share` of the norm of each weight in all."
        torch.manual_seed(1)
        for adapter in adapters(model).values():
            for part in adapter.parts:
                W = effective_weight(part.base)
                nn.init.normal_(part.M, std=share*W.float().norm().item()/len(part.M)**.5)
                vars(part)["known"] = None
        return model

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def llama(h, ff, blocks, heads, kv, size=None, **options):
        "The linear layers of a model with Llama's shapes, on the meta device."
        with torch.device("meta"): model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=32, hidden_size=h, head_dim=size,
            intermediate_size=ff, num_hidden_layers=blocks, num_attention_heads=heads, num_key_value_heads=kv, **options))
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{args} {kwargs} were accepted")

    # %% ../nbs/22_svft.ipynb #619ce41e
    def elsewhere(W, folder, signs=True):
        "Put a decomposition by another algorithm into a cache."
        U, S, Vh = list(drivers(W))[3]
        if signs: U, S, Vh = signed(U, S, Vh)
        kept(lambda: {"U": U.contiguous(), "S": S, "Vh": Vh.contiguous()}, folder, "svft", W)

    def moved(folder, signs, **options):
        "Save an adapter, and load it where the decompositions are others."
        model = tiny(hidden_size=128, intermediate_size=512)
        attach(model, SVFT(target_modules=["q_proj", "up_proj"], layers_to_transform=[0], **options))
        save_adapter(shaken(model), folder)
        other = tiny(hidden_size=128, intermediate_size=512)
        cache = f"{folder}/{signs}"
        for layer in select(other, ["q_proj", "up_proj"], [0]).values(): elsewhere(layer.weight.detach(), cache, signs)
        with patch.dict(os.environ, PATHLM_CACHE=cache): load_adapter(other, folder)
        here, there = (adapters(m)["default"].parts for m in (model, other))
        return [apart(b.delta(), a.delta()) for a, b in zip(here, there, strict=True)]

    # %% ../nbs/22_svft.ipynb #b7417da1
    with tempfile.TemporaryDirectory() as d:
        for options in dict(), dict(pattern="banded"), dict(pattern="random", gate=True), dict(pattern="top_k"):
            assert max(moved(d, True, **options)) < 2e-3
        assert max(moved(d, False)) < 2e-3
        for options in dict(pattern="banded"), dict(pattern="top_k"):
            message = refusal(CheckpointError, moved, d, False, **options)
            assert "mean another change here" in message and "model.layers.0." in message


def test_on_another_machine_2():
    # %% ../nbs/22_svft.ipynb #a495517d
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/22_svft.ipynb #aabefcbb
    def gaussian(out, in_, seed=0, dtype=torch.float32):
        "A matrix of independent normal numbers, as well conditioned as its shape allows."
        return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed), dtype=dtype)

    def conditioned(out, in_, cond, seed=0, dtype=torch.float32):
        "A matrix with singular values from 1 down to 1/cond, geometrically."
        U, _, Vh = torch.linalg.svd(gaussian(out, in_, seed, torch.float64), full_matrices=False)
        return (U * torch.logspace(0, -math.log10(cond), len(Vh), dtype=torch.float64) @ Vh).to(dtype)

    def apart(A, B):
        "The relative distance of A from B."
        return ((A - B).norm()/B.norm()).item()

    def drivers(W):
        "One matrix decomposed in four ways."
        for driver in "gesdd", "gesvd":
            U, S, Vh = scipy.linalg.svd(W.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (U, S, Vh))
            V, S, Uh = scipy.linalg.svd(W.T.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (Uh.T, S, V.T))

    def tiny(**options):
        "A random Llama of two blocks with square and 4:1 layers."
        torch.manual_seed(0)
        return tf.LlamaForCausalLM(tf.LlamaConfig(**dict(vocab_size=96, hidden_size=32, intermediate_size=128,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, eos_token_id=None) | options)).eval()

    def shaken(model, share=.1):
        "Give the values of M random numbers, `share` of the norm of each weight in all."
        torch.manual_seed(1)
        for adapter in adapters(model).values():
            for part in adapter.parts:
                W = effective_weight(part.base)
                nn.init.normal_(part.M, std=share*W.float().norm().item()/len(part.M)**.5)
                vars(part)["known"] = None
        return model

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def llama(h, ff, blocks, heads, kv, size=None, **options):
        "The linear layers of a model with Llama's shapes, on the meta device."
        with torch.device("meta"): model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=32, hidden_size=h, head_dim=size,
            intermediate_size=ff, num_hidden_layers=blocks, num_attention_heads=heads, num_key_value_heads=kv, **options))
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{args} {kwargs} were accepted")

    # %% ../nbs/22_svft.ipynb #619ce41e
    def elsewhere(W, folder, signs=True):
        "Put a decomposition by another algorithm into a cache."
        U, S, Vh = list(drivers(W))[3]
        if signs: U, S, Vh = signed(U, S, Vh)
        kept(lambda: {"U": U.contiguous(), "S": S, "Vh": Vh.contiguous()}, folder, "svft", W)

    def moved(folder, signs, **options):
        "Save an adapter, and load it where the decompositions are others."
        model = tiny(hidden_size=128, intermediate_size=512)
        attach(model, SVFT(target_modules=["q_proj", "up_proj"], layers_to_transform=[0], **options))
        save_adapter(shaken(model), folder)
        other = tiny(hidden_size=128, intermediate_size=512)
        cache = f"{folder}/{signs}"
        for layer in select(other, ["q_proj", "up_proj"], [0]).values(): elsewhere(layer.weight.detach(), cache, signs)
        with patch.dict(os.environ, PATHLM_CACHE=cache): load_adapter(other, folder)
        here, there = (adapters(m)["default"].parts for m in (model, other))
        return [apart(b.delta(), a.delta()) for a, b in zip(here, there, strict=True)]

    # %% ../nbs/22_svft.ipynb #c45c098c
    with tempfile.TemporaryDirectory() as d:
        threads, found = torch.get_num_threads(), []
        for n in 1, 2:
            torch.set_num_threads(n)
            found.append(singular(gaussian(300, 300)))
        torch.set_num_threads(threads)
        M = gaussian(300, 300, seed=1).tril(3).triu(-3)
        assert apart(*(U @ M @ Vh for U, _, Vh in found)) < 2e-3


def test_on_another_machine_3():
    # %% ../nbs/22_svft.ipynb #a495517d
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/22_svft.ipynb #aabefcbb
    def gaussian(out, in_, seed=0, dtype=torch.float32):
        "A matrix of independent normal numbers, as well conditioned as its shape allows."
        return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed), dtype=dtype)

    def conditioned(out, in_, cond, seed=0, dtype=torch.float32):
        "A matrix with singular values from 1 down to 1/cond, geometrically."
        U, _, Vh = torch.linalg.svd(gaussian(out, in_, seed, torch.float64), full_matrices=False)
        return (U * torch.logspace(0, -math.log10(cond), len(Vh), dtype=torch.float64) @ Vh).to(dtype)

    def apart(A, B):
        "The relative distance of A from B."
        return ((A - B).norm()/B.norm()).item()

    def drivers(W):
        "One matrix decomposed in four ways."
        for driver in "gesdd", "gesvd":
            U, S, Vh = scipy.linalg.svd(W.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (U, S, Vh))
            V, S, Uh = scipy.linalg.svd(W.T.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (Uh.T, S, V.T))

    def tiny(**options):
        "A random Llama of two blocks with square and 4:1 layers."
        torch.manual_seed(0)
        return tf.LlamaForCausalLM(tf.LlamaConfig(**dict(vocab_size=96, hidden_size=32, intermediate_size=128,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, eos_token_id=None) | options)).eval()

    def shaken(model, share=.1):
        "Give the values of M random numbers, `share` of the norm of each weight in all."
        torch.manual_seed(1)
        for adapter in adapters(model).values():
            for part in adapter.parts:
                W = effective_weight(part.base)
                nn.init.normal_(part.M, std=share*W.float().norm().item()/len(part.M)**.5)
                vars(part)["known"] = None
        return model

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def llama(h, ff, blocks, heads, kv, size=None, **options):
        "The linear layers of a model with Llama's shapes, on the meta device."
        with torch.device("meta"): model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=32, hidden_size=h, head_dim=size,
            intermediate_size=ff, num_hidden_layers=blocks, num_attention_heads=heads, num_key_value_heads=kv, **options))
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{args} {kwargs} were accepted")

    # %% ../nbs/22_svft.ipynb #619ce41e
    def elsewhere(W, folder, signs=True):
        "Put a decomposition by another algorithm into a cache."
        U, S, Vh = list(drivers(W))[3]
        if signs: U, S, Vh = signed(U, S, Vh)
        kept(lambda: {"U": U.contiguous(), "S": S, "Vh": Vh.contiguous()}, folder, "svft", W)

    def moved(folder, signs, **options):
        "Save an adapter, and load it where the decompositions are others."
        model = tiny(hidden_size=128, intermediate_size=512)
        attach(model, SVFT(target_modules=["q_proj", "up_proj"], layers_to_transform=[0], **options))
        save_adapter(shaken(model), folder)
        other = tiny(hidden_size=128, intermediate_size=512)
        cache = f"{folder}/{signs}"
        for layer in select(other, ["q_proj", "up_proj"], [0]).values(): elsewhere(layer.weight.detach(), cache, signs)
        with patch.dict(os.environ, PATHLM_CACHE=cache): load_adapter(other, folder)
        here, there = (adapters(m)["default"].parts for m in (model, other))
        return [apart(b.delta(), a.delta()) for a, b in zip(here, there, strict=True)]

    # %% ../nbs/22_svft.ipynb #4bff87e2
    with tempfile.TemporaryDirectory() as d:
        model = tiny()
        attach(model, SVFT(pattern="banded"))
        save_adapter(model, d)
        before = Path(d, "adapter.safetensors").read_bytes()
        assert "Cast a model before" in refusal(SettingError, save_adapter, model.bfloat16(), d)
        assert Path(d, "adapter.safetensors").read_bytes() == before
    for out, in_ in (8, 8), (32, 8), (8, 32):
        attach(model := nn.Sequential(nn.Linear(in_, out)), SVFT())
        model[0].base.bias.requires_grad_()
        g = gaussian(5, out, seed=3)
        nn.init.normal_(model[0].parts["default"].M)
        model(gaussian(5, in_)).backward(g)
        torch.testing.assert_close(model[0].base.bias.grad, g.sum(0))


def test_on_another_base():
    # %% ../nbs/22_svft.ipynb #a495517d
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/22_svft.ipynb #aabefcbb
    def gaussian(out, in_, seed=0, dtype=torch.float32):
        "A matrix of independent normal numbers, as well conditioned as its shape allows."
        return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed), dtype=dtype)

    def conditioned(out, in_, cond, seed=0, dtype=torch.float32):
        "A matrix with singular values from 1 down to 1/cond, geometrically."
        U, _, Vh = torch.linalg.svd(gaussian(out, in_, seed, torch.float64), full_matrices=False)
        return (U * torch.logspace(0, -math.log10(cond), len(Vh), dtype=torch.float64) @ Vh).to(dtype)

    def apart(A, B):
        "The relative distance of A from B."
        return ((A - B).norm()/B.norm()).item()

    def drivers(W):
        "One matrix decomposed in four ways."
        for driver in "gesdd", "gesvd":
            U, S, Vh = scipy.linalg.svd(W.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (U, S, Vh))
            V, S, Uh = scipy.linalg.svd(W.T.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (Uh.T, S, V.T))

    def tiny(**options):
        "A random Llama of two blocks with square and 4:1 layers."
        torch.manual_seed(0)
        return tf.LlamaForCausalLM(tf.LlamaConfig(**dict(vocab_size=96, hidden_size=32, intermediate_size=128,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, eos_token_id=None) | options)).eval()

    def shaken(model, share=.1):
        "Give the values of M random numbers, `share` of the norm of each weight in all."
        torch.manual_seed(1)
        for adapter in adapters(model).values():
            for part in adapter.parts:
                W = effective_weight(part.base)
                nn.init.normal_(part.M, std=share*W.float().norm().item()/len(part.M)**.5)
                vars(part)["known"] = None
        return model

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def llama(h, ff, blocks, heads, kv, size=None, **options):
        "The linear layers of a model with Llama's shapes, on the meta device."
        with torch.device("meta"): model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=32, hidden_size=h, head_dim=size,
            intermediate_size=ff, num_hidden_layers=blocks, num_attention_heads=heads, num_key_value_heads=kv, **options))
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{args} {kwargs} were accepted")

    # %% ../nbs/22_svft.ipynb #312f72ed
    for options in dict(target_modules="q_proj", layers_to_transform=[0]), dict(), dict(pattern="banded"):
        with tempfile.TemporaryDirectory() as d:
            model = tiny()
            attach(model, SVFT(**options))
            save_adapter(shaken(model), d)
            assert "other weights" in refusal(CheckpointError, load_adapter, tiny().bfloat16().float(), d)
            assert "another change" in refusal(CheckpointError, load_adapter, tiny().bfloat16().float(), d, other_base=True)
            assert not adapters(rounded := tiny().bfloat16())
            attach(rounded, SVFT(**options))
            save_adapter(shaken(rounded), d)
            finer = tiny().bfloat16().float()
            load_adapter(finer, d)
            for a, b in zip(*(adapters(m)["default"].parts for m in (rounded, finer)), strict=True):
                assert apart(a.delta(), b.delta()) < 1e-2


def test_damaged():
    # %% ../nbs/22_svft.ipynb #a495517d
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/22_svft.ipynb #aabefcbb
    def gaussian(out, in_, seed=0, dtype=torch.float32):
        "A matrix of independent normal numbers, as well conditioned as its shape allows."
        return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed), dtype=dtype)

    def conditioned(out, in_, cond, seed=0, dtype=torch.float32):
        "A matrix with singular values from 1 down to 1/cond, geometrically."
        U, _, Vh = torch.linalg.svd(gaussian(out, in_, seed, torch.float64), full_matrices=False)
        return (U * torch.logspace(0, -math.log10(cond), len(Vh), dtype=torch.float64) @ Vh).to(dtype)

    def apart(A, B):
        "The relative distance of A from B."
        return ((A - B).norm()/B.norm()).item()

    def drivers(W):
        "One matrix decomposed in four ways."
        for driver in "gesdd", "gesvd":
            U, S, Vh = scipy.linalg.svd(W.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (U, S, Vh))
            V, S, Uh = scipy.linalg.svd(W.T.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (Uh.T, S, V.T))

    def tiny(**options):
        "A random Llama of two blocks with square and 4:1 layers."
        torch.manual_seed(0)
        return tf.LlamaForCausalLM(tf.LlamaConfig(**dict(vocab_size=96, hidden_size=32, intermediate_size=128,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, eos_token_id=None) | options)).eval()

    def shaken(model, share=.1):
        "Give the values of M random numbers, `share` of the norm of each weight in all."
        torch.manual_seed(1)
        for adapter in adapters(model).values():
            for part in adapter.parts:
                W = effective_weight(part.base)
                nn.init.normal_(part.M, std=share*W.float().norm().item()/len(part.M)**.5)
                vars(part)["known"] = None
        return model

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def llama(h, ff, blocks, heads, kv, size=None, **options):
        "The linear layers of a model with Llama's shapes, on the meta device."
        with torch.device("meta"): model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=32, hidden_size=h, head_dim=size,
            intermediate_size=ff, num_hidden_layers=blocks, num_attention_heads=heads, num_key_value_heads=kv, **options))
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{args} {kwargs} were accepted")

    # %% ../nbs/22_svft.ipynb #23af433d
    with tempfile.TemporaryDirectory() as d:
        model = tiny()
        adapter = attach(model, SVFT(target_modules="q_proj", pattern="top_k"))
        shaken(model)
        good = adapter.tensors(), adapter.notes()
        M, at = good[0]["M"], good[0]["at"]
        for change, says in ((dict(M=M[:-1]), "has shape"), (dict(M=M*torch.nan), "NaN"),
                             (dict(M=M.flip(0)), "another change"), (dict(at=at*0), "place the entries"),
                             (dict(at=at + 99), "place the entries"),
                             (dict(at=at.flip(0)), "another change")):
            fresh = SVFT(target_modules="q_proj", pattern="top_k").build(select(tiny(), "q_proj"))
            tensors = {k: t.clone() for k, t in (good[0] | change).items()}
            assert says in refusal(CheckpointError, fresh.fill, tensors, good[1])
        for notes in {}, {"probe": [1.]}, {"probe": [[1.], 2.]}, {"probe": "no"}, {"probe": None}:
            assert "no probe" in refusal(CheckpointError, fresh.fill, good[0], notes)
        fresh.fill(*good)
        assert all(torch.equal(a.delta(), b.delta()) for a, b in zip(fresh.parts, adapter.parts, strict=True))


def test_weights_that_have_no_singular_vectors_of_their_own():
    # %% ../nbs/22_svft.ipynb #a495517d
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/22_svft.ipynb #aabefcbb
    def gaussian(out, in_, seed=0, dtype=torch.float32):
        "A matrix of independent normal numbers, as well conditioned as its shape allows."
        return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed), dtype=dtype)

    def conditioned(out, in_, cond, seed=0, dtype=torch.float32):
        "A matrix with singular values from 1 down to 1/cond, geometrically."
        U, _, Vh = torch.linalg.svd(gaussian(out, in_, seed, torch.float64), full_matrices=False)
        return (U * torch.logspace(0, -math.log10(cond), len(Vh), dtype=torch.float64) @ Vh).to(dtype)

    def apart(A, B):
        "The relative distance of A from B."
        return ((A - B).norm()/B.norm()).item()

    def drivers(W):
        "One matrix decomposed in four ways."
        for driver in "gesdd", "gesvd":
            U, S, Vh = scipy.linalg.svd(W.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (U, S, Vh))
            V, S, Uh = scipy.linalg.svd(W.T.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (Uh.T, S, V.T))

    def tiny(**options):
        "A random Llama of two blocks with square and 4:1 layers."
        torch.manual_seed(0)
        return tf.LlamaForCausalLM(tf.LlamaConfig(**dict(vocab_size=96, hidden_size=32, intermediate_size=128,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, eos_token_id=None) | options)).eval()

    def shaken(model, share=.1):
        "Give the values of M random numbers, `share` of the norm of each weight in all."
        torch.manual_seed(1)
        for adapter in adapters(model).values():
            for part in adapter.parts:
                W = effective_weight(part.base)
                nn.init.normal_(part.M, std=share*W.float().norm().item()/len(part.M)**.5)
                vars(part)["known"] = None
        return model

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def llama(h, ff, blocks, heads, kv, size=None, **options):
        "The linear layers of a model with Llama's shapes, on the meta device."
        with torch.device("meta"): model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=32, hidden_size=h, head_dim=size,
            intermediate_size=ff, num_hidden_layers=blocks, num_attention_heads=heads, num_key_value_heads=kv, **options))
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{args} {kwargs} were accepted")

    # %% ../nbs/22_svft.ipynb #2b68a647
    def odd(shape, kind):
        "Weights that are degenerate in one way or another."
        if kind == "zero": return torch.zeros(shape)
        if kind == "rank one": return gaussian(shape[0], 1) @ gaussian(1, shape[1])
        if kind == "repeated": return torch.eye(*shape)*2
        if kind == "tiny": return gaussian(*shape)*1e-30
        return gaussian(*shape)

    class Only(nn.Module):
        "A model of one layer."
        def __init__(self, W):
            super().__init__()
            self.a = linear_from(W)

        def forward(self, x): return self.a(x)

    # %% ../nbs/22_svft.ipynb #16834dbb
    for kind in "zero", "rank one", "repeated", "tiny", "any":
        for shape in (8, 8), (1, 6), (6, 1), (1, 1), (13, 5), (5, 13):
            for dtype in torch.float32, torch.bfloat16, torch.float16:
                for pattern in PATTERNS:
                    W = odd(shape, kind).to(dtype)
                    d = None if pattern == "plain" else min(shape)//3
                    adapter = attach(model := Only(W), SVFT(pattern=pattern, off_diagonal=d))
                    x = gaussian(3, shape[1]).to(dtype).requires_grad_()
                    assert torch.equal(model(x), F.linear(x, W))
                    nn.init.normal_(adapter.parts[0].M)
                    vars(adapter.parts[0])["known"] = None
                    model(x).float().sum().backward()
                    assert all(t.isfinite().all() for t in (x.grad, adapter.parts[0].M.grad, adapter.parts[0].delta()))
                    with tempfile.TemporaryDirectory() as d:
                        save_adapter(model, d)
                        load_adapter(again := Only(W), d)
                    assert torch.equal(again(x), model(x))


def test_weights_that_have_no_singular_vectors_of_their_own_2():
    # %% ../nbs/22_svft.ipynb #a495517d
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/22_svft.ipynb #aabefcbb
    def gaussian(out, in_, seed=0, dtype=torch.float32):
        "A matrix of independent normal numbers, as well conditioned as its shape allows."
        return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed), dtype=dtype)

    def conditioned(out, in_, cond, seed=0, dtype=torch.float32):
        "A matrix with singular values from 1 down to 1/cond, geometrically."
        U, _, Vh = torch.linalg.svd(gaussian(out, in_, seed, torch.float64), full_matrices=False)
        return (U * torch.logspace(0, -math.log10(cond), len(Vh), dtype=torch.float64) @ Vh).to(dtype)

    def apart(A, B):
        "The relative distance of A from B."
        return ((A - B).norm()/B.norm()).item()

    def drivers(W):
        "One matrix decomposed in four ways."
        for driver in "gesdd", "gesvd":
            U, S, Vh = scipy.linalg.svd(W.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (U, S, Vh))
            V, S, Uh = scipy.linalg.svd(W.T.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (Uh.T, S, V.T))

    def tiny(**options):
        "A random Llama of two blocks with square and 4:1 layers."
        torch.manual_seed(0)
        return tf.LlamaForCausalLM(tf.LlamaConfig(**dict(vocab_size=96, hidden_size=32, intermediate_size=128,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, eos_token_id=None) | options)).eval()

    def shaken(model, share=.1):
        "Give the values of M random numbers, `share` of the norm of each weight in all."
        torch.manual_seed(1)
        for adapter in adapters(model).values():
            for part in adapter.parts:
                W = effective_weight(part.base)
                nn.init.normal_(part.M, std=share*W.float().norm().item()/len(part.M)**.5)
                vars(part)["known"] = None
        return model

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def llama(h, ff, blocks, heads, kv, size=None, **options):
        "The linear layers of a model with Llama's shapes, on the meta device."
        with torch.device("meta"): model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=32, hidden_size=h, head_dim=size,
            intermediate_size=ff, num_hidden_layers=blocks, num_attention_heads=heads, num_key_value_heads=kv, **options))
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{args} {kwargs} were accepted")

    # %% ../nbs/22_svft.ipynb #2b68a647
    def odd(shape, kind):
        "Weights that are degenerate in one way or another."
        if kind == "zero": return torch.zeros(shape)
        if kind == "rank one": return gaussian(shape[0], 1) @ gaussian(1, shape[1])
        if kind == "repeated": return torch.eye(*shape)*2
        if kind == "tiny": return gaussian(*shape)*1e-30
        return gaussian(*shape)

    class Only(nn.Module):
        "A model of one layer."
        def __init__(self, W):
            super().__init__()
            self.a = linear_from(W)

        def forward(self, x): return self.a(x)

    # %% ../nbs/22_svft.ipynb #4860edcb
    W, R = torch.eye(16), torch.linalg.qr(gaussian(16, 16)).Q
    here, there = (TwoBasis(linear_from(W), Q, torch.ones(16), Q.T, None) for Q in (torch.eye(16), R))
    for m, same in (torch.ones(16), True), (torch.arange(16.), False):
        for part in here, there: part.M.data.copy_(m)
        far = (probe(here, 32) - probe(there, 32)).abs().max()
        assert (apart(there.delta(), here.delta()) < 1e-5) == same
        assert far > FAR if not same else True


def test_what_is_refused():
    # %% ../nbs/22_svft.ipynb #a495517d
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/22_svft.ipynb #aabefcbb
    def gaussian(out, in_, seed=0, dtype=torch.float32):
        "A matrix of independent normal numbers, as well conditioned as its shape allows."
        return torch.randn(out, in_, generator=torch.Generator().manual_seed(seed), dtype=dtype)

    def conditioned(out, in_, cond, seed=0, dtype=torch.float32):
        "A matrix with singular values from 1 down to 1/cond, geometrically."
        U, _, Vh = torch.linalg.svd(gaussian(out, in_, seed, torch.float64), full_matrices=False)
        return (U * torch.logspace(0, -math.log10(cond), len(Vh), dtype=torch.float64) @ Vh).to(dtype)

    def apart(A, B):
        "The relative distance of A from B."
        return ((A - B).norm()/B.norm()).item()

    def drivers(W):
        "One matrix decomposed in four ways."
        for driver in "gesdd", "gesvd":
            U, S, Vh = scipy.linalg.svd(W.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (U, S, Vh))
            V, S, Uh = scipy.linalg.svd(W.T.numpy(), full_matrices=False, lapack_driver=driver)
            yield tuple(torch.from_numpy(t.copy()) for t in (Uh.T, S, V.T))

    def tiny(**options):
        "A random Llama of two blocks with square and 4:1 layers."
        torch.manual_seed(0)
        return tf.LlamaForCausalLM(tf.LlamaConfig(**dict(vocab_size=96, hidden_size=32, intermediate_size=128,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, eos_token_id=None) | options)).eval()

    def shaken(model, share=.1):
        "Give the values of M random numbers, `share` of the norm of each weight in all."
        torch.manual_seed(1)
        for adapter in adapters(model).values():
            for part in adapter.parts:
                W = effective_weight(part.base)
                nn.init.normal_(part.M, std=share*W.float().norm().item()/len(part.M)**.5)
                vars(part)["known"] = None
        return model

    def logits(model):
        with torch.no_grad(): return model(torch.arange(24).view(2, 12)).logits

    def llama(h, ff, blocks, heads, kv, size=None, **options):
        "The linear layers of a model with Llama's shapes, on the meta device."
        with torch.device("meta"): model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=32, hidden_size=h, head_dim=size,
            intermediate_size=ff, num_hidden_layers=blocks, num_attention_heads=heads, num_key_value_heads=kv, **options))
        return model

    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{args} {kwargs} were accepted")

    # %% ../nbs/22_svft.ipynb #1be23d2d
    for options in (dict(pattern="diagonal"), dict(off_diagonal=2), dict(pattern="banded", off_diagonal=-1), dict(rank=0),
                  dict(rank=2.5), dict(pattern="random", off_diagonal=1.), dict(rank=4, residual=False),
                  dict(learning_rate=-1.)):
        print(refusal(SettingError, SVFT, **options))
    model = tiny()
    for options in dict(rank=33), dict(pattern="banded", off_diagonal=32), dict(pattern="top_k", rank=3, off_diagonal=3):
        print(refusal(SettingError, attach, model, SVFT(**options)))
    with torch.no_grad(): model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    print(refusal(PathlmError, attach, model, SVFT()))
    assert not adapters(model)
