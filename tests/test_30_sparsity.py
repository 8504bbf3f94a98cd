from pathlm.sparsity import *
from functools import partial
from pathlib import Path
import torch
import torch.nn.functional as F
from torch import nn
from pathlm.base import CheckpointError
from pathlm.base import MergeError
from pathlm.base import SettingError
from pathlm.linear import effective_weight
from pathlm.linear import float_weight
from pathlm.linear import select
from pathlm.objectives import Norms
import math
import tempfile
from functools import cache
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from transformers import GPT2Config
from transformers import GPT2LMHeadModel
from transformers import GPTNeoXConfig
from transformers import GPTNeoXForCausalLM
from transformers import LlamaConfig
from transformers import LlamaForCausalLM
from transformers import OPTConfig
from transformers import OPTForCausalLM
from pathlm.base import NonFiniteError
from pathlm.base import UnknownModuleError
from pathlm.base import digest
from pathlm.evaluate import batches
from pathlm.linear import blocks
from pathlm.linear import densify
from pathlm.linear import depths
from pathlm.linear import merge
from pathlm.linear import replace
from pathlm.linear import set_weight
from pathlm.linear import unmerge
from pathlm.models import corpus
from pathlm.models import pretrained
from pathlm.objectives import gram
from pathlm.objectives import output_error
from pathlm.objectives import ridge
from pathlm.objectives import watch


def test_what_one_weight_is_worth():
    # %% ../nbs/30_sparsity.ipynb #b8385494
    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def problem(out, in_, tokens, seed=0, dtype=torch.float64):
        "A random weight and correlated inputs, the columns of X."
        g = torch.Generator().manual_seed(seed)
        W, mix, X = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((out, in_), (in_, in_), (in_, tokens)))
        return W.to(dtype), ((mix/3 + torch.eye(in_)) @ X).to(dtype)

    def tiny_models():
        "Small random models of four architectures, one of them with weights stored as (in, out)."
        torch.manual_seed(0)
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=64)
        models = [LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, num_key_value_heads=2)),
                  GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64)),
                  OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32)),
                  GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48))]
        for model in models:
            for p in model.parameters(): p.data.normal_(0, .2)
        return [model.eval() for model in models]

    def token_ids(seed=0, rows=3): return torch.randint(0, 64, (rows, 12), generator=torch.Generator().manual_seed(seed))

    texts = [token_ids(0), token_ids(1, 1), {"input_ids": token_ids(2), "attention_mask": torch.ones(3, 12).long().tril(8)}]
    law = settings(deadline=None, max_examples=25, derandomize=True)

    # %% ../nbs/30_sparsity.ipynb #45ba69d5
    @cache
    def embedded():
        "The embedded model's weights, text from the validation split as batches, and the inputs' Gram matrices on it."
        model, tokenizer = pretrained()
        own = batches([text[:1600] for text in corpus("valid").values()][:12], tokenizer, 512, 512)
        own = [b.inputs for b in own]
        return {n: effective_weight(layer).detach() for n, layer in select(model).items()}, own, gram(model, own)

    # %% ../nbs/30_sparsity.ipynb #f63f8dce
    def published_norms(samples):
        "The squared norm of each input, averaged over sequences (tokens, in), updated one sequence at a time."
        mean = torch.zeros(samples[0].shape[1])
        for count, x in enumerate(samples):
            mean *= count/(count + 1)
            mean += torch.norm(x.float().T, p=2, dim=1)**2/(count + 1)
        return mean

    def published_mask(W, mean, share=None, n=0, m=0):
        "True where the published script sets a weight to zero."
        metric, gone = W.abs()*mean.reshape(1, -1).sqrt(), torch.zeros_like(W, dtype=torch.bool)
        if share is None:
            for j in range(0, W.shape[1], m):
                gone.scatter_(1, j + torch.topk(metric[:, j:j + m].float(), n, dim=1, largest=False)[1], True)
        else: gone.scatter_(1, torch.sort(metric, dim=-1, stable=True)[1][:, :int(W.shape[1]*share)], True)
        return gone

    # %% ../nbs/30_sparsity.ipynb #e63e94d7
    @law
    @given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
    def one_weight_alone(out, in_, seed):
        W, X = problem(out, in_, 8, seed)
        G = X @ X.T
        for i in range(out):
            for j in range(in_):
                without = W.clone()
                without[i, j] = 0
                for metric, score in (G, wanda(W, G.diagonal())), (torch.eye(in_).double(), magnitude(W)):
                    torch.testing.assert_close(output_error(W, without, metric), score[i, j]**2)

    one_weight_alone()


def test_what_one_weight_is_worth_2():
    # %% ../nbs/30_sparsity.ipynb #b8385494
    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def problem(out, in_, tokens, seed=0, dtype=torch.float64):
        "A random weight and correlated inputs, the columns of X."
        g = torch.Generator().manual_seed(seed)
        W, mix, X = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((out, in_), (in_, in_), (in_, tokens)))
        return W.to(dtype), ((mix/3 + torch.eye(in_)) @ X).to(dtype)

    def tiny_models():
        "Small random models of four architectures, one of them with weights stored as (in, out)."
        torch.manual_seed(0)
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=64)
        models = [LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, num_key_value_heads=2)),
                  GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64)),
                  OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32)),
                  GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48))]
        for model in models:
            for p in model.parameters(): p.data.normal_(0, .2)
        return [model.eval() for model in models]

    def token_ids(seed=0, rows=3): return torch.randint(0, 64, (rows, 12), generator=torch.Generator().manual_seed(seed))

    texts = [token_ids(0), token_ids(1, 1), {"input_ids": token_ids(2), "attention_mask": torch.ones(3, 12).long().tril(8)}]
    law = settings(deadline=None, max_examples=25, derandomize=True)

    # %% ../nbs/30_sparsity.ipynb #45ba69d5
    @cache
    def embedded():
        "The embedded model's weights, text from the validation split as batches, and the inputs' Gram matrices on it."
        model, tokenizer = pretrained()
        own = batches([text[:1600] for text in corpus("valid").values()][:12], tokenizer, 512, 512)
        own = [b.inputs for b in own]
        return {n: effective_weight(layer).detach() for n, layer in select(model).items()}, own, gram(model, own)

    # %% ../nbs/30_sparsity.ipynb #f63f8dce
    def published_norms(samples):
        "The squared norm of each input, averaged over sequences (tokens, in), updated one sequence at a time."
        mean = torch.zeros(samples[0].shape[1])
        for count, x in enumerate(samples):
            mean *= count/(count + 1)
            mean += torch.norm(x.float().T, p=2, dim=1)**2/(count + 1)
        return mean

    def published_mask(W, mean, share=None, n=0, m=0):
        "True where the published script sets a weight to zero."
        metric, gone = W.abs()*mean.reshape(1, -1).sqrt(), torch.zeros_like(W, dtype=torch.bool)
        if share is None:
            for j in range(0, W.shape[1], m):
                gone.scatter_(1, j + torch.topk(metric[:, j:j + m].float(), n, dim=1, largest=False)[1], True)
        else: gone.scatter_(1, torch.sort(metric, dim=-1, stable=True)[1][:, :int(W.shape[1]*share)], True)
        return gone

    # %% ../nbs/30_sparsity.ipynb #0ae1b647
    W, X = problem(5, 7, 20, seed=2)
    gone = torch.rand(5, 7, generator=torch.Generator().manual_seed(1)) < .5
    What, G = torch.where(gone, 0, W), X @ X.T
    alone = wanda(W, G.diagonal())[gone].square().sum()
    torch.testing.assert_close(output_error(W, What, G.diagonal().diag()), alone)
    assert abs(output_error(W, What, G)/alone - 1) > .1
    assert magnitude(W.bfloat16()).dtype == torch.float32 and wanda(W.half(), G.diagonal()).dtype == torch.float64
    print(refusal(SettingError, wanda, W, torch.ones(5)))


def test_which_weights_are_compared():
    # %% ../nbs/30_sparsity.ipynb #b8385494
    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def problem(out, in_, tokens, seed=0, dtype=torch.float64):
        "A random weight and correlated inputs, the columns of X."
        g = torch.Generator().manual_seed(seed)
        W, mix, X = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((out, in_), (in_, in_), (in_, tokens)))
        return W.to(dtype), ((mix/3 + torch.eye(in_)) @ X).to(dtype)

    def tiny_models():
        "Small random models of four architectures, one of them with weights stored as (in, out)."
        torch.manual_seed(0)
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=64)
        models = [LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, num_key_value_heads=2)),
                  GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64)),
                  OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32)),
                  GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48))]
        for model in models:
            for p in model.parameters(): p.data.normal_(0, .2)
        return [model.eval() for model in models]

    def token_ids(seed=0, rows=3): return torch.randint(0, 64, (rows, 12), generator=torch.Generator().manual_seed(seed))

    texts = [token_ids(0), token_ids(1, 1), {"input_ids": token_ids(2), "attention_mask": torch.ones(3, 12).long().tril(8)}]
    law = settings(deadline=None, max_examples=25, derandomize=True)

    # %% ../nbs/30_sparsity.ipynb #45ba69d5
    @cache
    def embedded():
        "The embedded model's weights, text from the validation split as batches, and the inputs' Gram matrices on it."
        model, tokenizer = pretrained()
        own = batches([text[:1600] for text in corpus("valid").values()][:12], tokenizer, 512, 512)
        own = [b.inputs for b in own]
        return {n: effective_weight(layer).detach() for n, layer in select(model).items()}, own, gram(model, own)

    # %% ../nbs/30_sparsity.ipynb #f63f8dce
    def published_norms(samples):
        "The squared norm of each input, averaged over sequences (tokens, in), updated one sequence at a time."
        mean = torch.zeros(samples[0].shape[1])
        for count, x in enumerate(samples):
            mean *= count/(count + 1)
            mean += torch.norm(x.float().T, p=2, dim=1)**2/(count + 1)
        return mean

    def published_mask(W, mean, share=None, n=0, m=0):
        "True where the published script sets a weight to zero."
        metric, gone = W.abs()*mean.reshape(1, -1).sqrt(), torch.zeros_like(W, dtype=torch.bool)
        if share is None:
            for j in range(0, W.shape[1], m):
                gone.scatter_(1, j + torch.topk(metric[:, j:j + m].float(), n, dim=1, largest=False)[1], True)
        else: gone.scatter_(1, torch.sort(metric, dim=-1, stable=True)[1][:, :int(W.shape[1]*share)], True)
        return gone

    # %% ../nbs/30_sparsity.ipynb #30395965
    scores = torch.tensor([[3., 1, 2, 1, 1], [0, 0, 0, 0, 0]])
    assert row_mask(scores, .4).tolist() == [[True, False, True, False, True], [False, False, True, True, True]]
    assert row_mask(scores, 0).all() and row_mask(scores, .99).sum() == 2 and row_mask(scores[:, :1], .9).all()
    many = torch.rand(4, 300, generator=torch.Generator().manual_seed(0))
    for s in .3, .5, .6:
        assert (row_mask(many, s).sum(1) == 300 - int(300*s)).all()
        assert sum(row_mask(many[:, a:a + 128], s, a).sum(1)[0] for a in (0, 128, 256)) == 300 - int(300*s)
    for bad in -.1, 1, 1.5, math.nan:
        assert refusal(SettingError, row_mask, scores, bad) == f"sparsity={bad} is outside [0, 1)"
    assert refusal(SettingError, row_mask, scores, "2:4") == "sparsity='2:4' is outside [0, 1)"


def test_which_weights_are_compared_2():
    # %% ../nbs/30_sparsity.ipynb #b8385494
    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def problem(out, in_, tokens, seed=0, dtype=torch.float64):
        "A random weight and correlated inputs, the columns of X."
        g = torch.Generator().manual_seed(seed)
        W, mix, X = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((out, in_), (in_, in_), (in_, tokens)))
        return W.to(dtype), ((mix/3 + torch.eye(in_)) @ X).to(dtype)

    def tiny_models():
        "Small random models of four architectures, one of them with weights stored as (in, out)."
        torch.manual_seed(0)
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=64)
        models = [LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, num_key_value_heads=2)),
                  GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64)),
                  OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32)),
                  GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48))]
        for model in models:
            for p in model.parameters(): p.data.normal_(0, .2)
        return [model.eval() for model in models]

    def token_ids(seed=0, rows=3): return torch.randint(0, 64, (rows, 12), generator=torch.Generator().manual_seed(seed))

    texts = [token_ids(0), token_ids(1, 1), {"input_ids": token_ids(2), "attention_mask": torch.ones(3, 12).long().tril(8)}]
    law = settings(deadline=None, max_examples=25, derandomize=True)

    # %% ../nbs/30_sparsity.ipynb #45ba69d5
    @cache
    def embedded():
        "The embedded model's weights, text from the validation split as batches, and the inputs' Gram matrices on it."
        model, tokenizer = pretrained()
        own = batches([text[:1600] for text in corpus("valid").values()][:12], tokenizer, 512, 512)
        own = [b.inputs for b in own]
        return {n: effective_weight(layer).detach() for n, layer in select(model).items()}, own, gram(model, own)

    # %% ../nbs/30_sparsity.ipynb #f63f8dce
    def published_norms(samples):
        "The squared norm of each input, averaged over sequences (tokens, in), updated one sequence at a time."
        mean = torch.zeros(samples[0].shape[1])
        for count, x in enumerate(samples):
            mean *= count/(count + 1)
            mean += torch.norm(x.float().T, p=2, dim=1)**2/(count + 1)
        return mean

    def published_mask(W, mean, share=None, n=0, m=0):
        "True where the published script sets a weight to zero."
        metric, gone = W.abs()*mean.reshape(1, -1).sqrt(), torch.zeros_like(W, dtype=torch.bool)
        if share is None:
            for j in range(0, W.shape[1], m):
                gone.scatter_(1, j + torch.topk(metric[:, j:j + m].float(), n, dim=1, largest=False)[1], True)
        else: gone.scatter_(1, torch.sort(metric, dim=-1, stable=True)[1][:, :int(W.shape[1]*share)], True)
        return gone

    # %% ../nbs/30_sparsity.ipynb #8fe15a10
    scores = torch.tensor([[4., 3, 2, 1, 1, 2, 3, 4]])
    assert nm_mask(scores, 2, 4).tolist() == [[True, True, False, False, False, False, True, True]]
    assert nm_mask(scores, 1, 8).sum() == 1 and nm_mask(scores, 4, 4).all()
    print(refusal(SettingError, nm_mask, scores, 2, 5))
    print(refusal(SettingError, nm_mask, scores, 0, 4))


def test_which_weights_are_compared_3():
    # %% ../nbs/30_sparsity.ipynb #b8385494
    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def problem(out, in_, tokens, seed=0, dtype=torch.float64):
        "A random weight and correlated inputs, the columns of X."
        g = torch.Generator().manual_seed(seed)
        W, mix, X = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((out, in_), (in_, in_), (in_, tokens)))
        return W.to(dtype), ((mix/3 + torch.eye(in_)) @ X).to(dtype)

    def tiny_models():
        "Small random models of four architectures, one of them with weights stored as (in, out)."
        torch.manual_seed(0)
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=64)
        models = [LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, num_key_value_heads=2)),
                  GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64)),
                  OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32)),
                  GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48))]
        for model in models:
            for p in model.parameters(): p.data.normal_(0, .2)
        return [model.eval() for model in models]

    def token_ids(seed=0, rows=3): return torch.randint(0, 64, (rows, 12), generator=torch.Generator().manual_seed(seed))

    texts = [token_ids(0), token_ids(1, 1), {"input_ids": token_ids(2), "attention_mask": torch.ones(3, 12).long().tril(8)}]
    law = settings(deadline=None, max_examples=25, derandomize=True)

    # %% ../nbs/30_sparsity.ipynb #45ba69d5
    @cache
    def embedded():
        "The embedded model's weights, text from the validation split as batches, and the inputs' Gram matrices on it."
        model, tokenizer = pretrained()
        own = batches([text[:1600] for text in corpus("valid").values()][:12], tokenizer, 512, 512)
        own = [b.inputs for b in own]
        return {n: effective_weight(layer).detach() for n, layer in select(model).items()}, own, gram(model, own)

    # %% ../nbs/30_sparsity.ipynb #f63f8dce
    def published_norms(samples):
        "The squared norm of each input, averaged over sequences (tokens, in), updated one sequence at a time."
        mean = torch.zeros(samples[0].shape[1])
        for count, x in enumerate(samples):
            mean *= count/(count + 1)
            mean += torch.norm(x.float().T, p=2, dim=1)**2/(count + 1)
        return mean

    def published_mask(W, mean, share=None, n=0, m=0):
        "True where the published script sets a weight to zero."
        metric, gone = W.abs()*mean.reshape(1, -1).sqrt(), torch.zeros_like(W, dtype=torch.bool)
        if share is None:
            for j in range(0, W.shape[1], m):
                gone.scatter_(1, j + torch.topk(metric[:, j:j + m].float(), n, dim=1, largest=False)[1], True)
        else: gone.scatter_(1, torch.sort(metric, dim=-1, stable=True)[1][:, :int(W.shape[1]*share)], True)
        return gone

    # %% ../nbs/30_sparsity.ipynb #e5fd7c38
    many = torch.rand(4, 24, generator=torch.Generator().manual_seed(0))
    for kwargs, mask in (({}, row_mask(many, .5)), ({"sparsity": .6}, row_mask(many, .6)),
                         ({"pattern": "1:3"}, nm_mask(many, 1, 3))):
        assert torch.equal(rule(**kwargs)[0](many), mask)
    assert rule()[1] == 1 and rule(pattern="4:8")[1] == 8
    for bad in ({"sparsity": 1.}, {"pattern": "2-4"}, {"pattern": "5:4"}, {"pattern": "2:4", "sparsity": .5},
                {"pattern": 24}):
        print(refusal(SettingError, rule, **bad))


def test_the_published_algorithm_restated():
    # %% ../nbs/30_sparsity.ipynb #b8385494
    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def problem(out, in_, tokens, seed=0, dtype=torch.float64):
        "A random weight and correlated inputs, the columns of X."
        g = torch.Generator().manual_seed(seed)
        W, mix, X = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((out, in_), (in_, in_), (in_, tokens)))
        return W.to(dtype), ((mix/3 + torch.eye(in_)) @ X).to(dtype)

    def tiny_models():
        "Small random models of four architectures, one of them with weights stored as (in, out)."
        torch.manual_seed(0)
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=64)
        models = [LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, num_key_value_heads=2)),
                  GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64)),
                  OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32)),
                  GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48))]
        for model in models:
            for p in model.parameters(): p.data.normal_(0, .2)
        return [model.eval() for model in models]

    def token_ids(seed=0, rows=3): return torch.randint(0, 64, (rows, 12), generator=torch.Generator().manual_seed(seed))

    texts = [token_ids(0), token_ids(1, 1), {"input_ids": token_ids(2), "attention_mask": torch.ones(3, 12).long().tril(8)}]
    law = settings(deadline=None, max_examples=25, derandomize=True)

    # %% ../nbs/30_sparsity.ipynb #45ba69d5
    @cache
    def embedded():
        "The embedded model's weights, text from the validation split as batches, and the inputs' Gram matrices on it."
        model, tokenizer = pretrained()
        own = batches([text[:1600] for text in corpus("valid").values()][:12], tokenizer, 512, 512)
        own = [b.inputs for b in own]
        return {n: effective_weight(layer).detach() for n, layer in select(model).items()}, own, gram(model, own)

    # %% ../nbs/30_sparsity.ipynb #f63f8dce
    def published_norms(samples):
        "The squared norm of each input, averaged over sequences (tokens, in), updated one sequence at a time."
        mean = torch.zeros(samples[0].shape[1])
        for count, x in enumerate(samples):
            mean *= count/(count + 1)
            mean += torch.norm(x.float().T, p=2, dim=1)**2/(count + 1)
        return mean

    def published_mask(W, mean, share=None, n=0, m=0):
        "True where the published script sets a weight to zero."
        metric, gone = W.abs()*mean.reshape(1, -1).sqrt(), torch.zeros_like(W, dtype=torch.bool)
        if share is None:
            for j in range(0, W.shape[1], m):
                gone.scatter_(1, j + torch.topk(metric[:, j:j + m].float(), n, dim=1, largest=False)[1], True)
        else: gone.scatter_(1, torch.sort(metric, dim=-1, stable=True)[1][:, :int(W.shape[1]*share)], True)
        return gone

    # %% ../nbs/30_sparsity.ipynb #0540904e
    def summed_norms(samples): return sum(Norms().product(x) for x in samples)

    # %% ../nbs/30_sparsity.ipynb #a96a21f2
    wanted = [({"sparsity": .3}, {"share": .3}), ({"sparsity": .5}, {"share": .5}), ({"sparsity": .6}, {"share": .6}),
              ({"pattern": "2:4"}, {"n": 2, "m": 4}), ({"pattern": "4:8"}, {"n": 4, "m": 8})]

    # %% ../nbs/30_sparsity.ipynb #41d28338
    for dtype in torch.float32, torch.float16, torch.bfloat16:
        for seed in range(8):
            W, X = problem(24, 64, 96, seed, dtype)
            samples = X.T.split(12)
            for own, theirs in wanted:
                mask = rule(**own)[0](wanda(W, summed_norms(samples)))
                assert torch.equal(mask, ~published_mask(W, published_norms(samples), **theirs))


def test_the_published_algorithm_restated_2():
    # %% ../nbs/30_sparsity.ipynb #b8385494
    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def problem(out, in_, tokens, seed=0, dtype=torch.float64):
        "A random weight and correlated inputs, the columns of X."
        g = torch.Generator().manual_seed(seed)
        W, mix, X = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((out, in_), (in_, in_), (in_, tokens)))
        return W.to(dtype), ((mix/3 + torch.eye(in_)) @ X).to(dtype)

    def tiny_models():
        "Small random models of four architectures, one of them with weights stored as (in, out)."
        torch.manual_seed(0)
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=64)
        models = [LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, num_key_value_heads=2)),
                  GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64)),
                  OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32)),
                  GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48))]
        for model in models:
            for p in model.parameters(): p.data.normal_(0, .2)
        return [model.eval() for model in models]

    def token_ids(seed=0, rows=3): return torch.randint(0, 64, (rows, 12), generator=torch.Generator().manual_seed(seed))

    texts = [token_ids(0), token_ids(1, 1), {"input_ids": token_ids(2), "attention_mask": torch.ones(3, 12).long().tril(8)}]
    law = settings(deadline=None, max_examples=25, derandomize=True)

    # %% ../nbs/30_sparsity.ipynb #45ba69d5
    @cache
    def embedded():
        "The embedded model's weights, text from the validation split as batches, and the inputs' Gram matrices on it."
        model, tokenizer = pretrained()
        own = batches([text[:1600] for text in corpus("valid").values()][:12], tokenizer, 512, 512)
        own = [b.inputs for b in own]
        return {n: effective_weight(layer).detach() for n, layer in select(model).items()}, own, gram(model, own)

    # %% ../nbs/30_sparsity.ipynb #f63f8dce
    def published_norms(samples):
        "The squared norm of each input, averaged over sequences (tokens, in), updated one sequence at a time."
        mean = torch.zeros(samples[0].shape[1])
        for count, x in enumerate(samples):
            mean *= count/(count + 1)
            mean += torch.norm(x.float().T, p=2, dim=1)**2/(count + 1)
        return mean

    def published_mask(W, mean, share=None, n=0, m=0):
        "True where the published script sets a weight to zero."
        metric, gone = W.abs()*mean.reshape(1, -1).sqrt(), torch.zeros_like(W, dtype=torch.bool)
        if share is None:
            for j in range(0, W.shape[1], m):
                gone.scatter_(1, j + torch.topk(metric[:, j:j + m].float(), n, dim=1, largest=False)[1], True)
        else: gone.scatter_(1, torch.sort(metric, dim=-1, stable=True)[1][:, :int(W.shape[1]*share)], True)
        return gone

    # %% ../nbs/30_sparsity.ipynb #0540904e
    def summed_norms(samples): return sum(Norms().product(x) for x in samples)

    # %% ../nbs/30_sparsity.ipynb #a96a21f2
    wanted = [({"sparsity": .3}, {"share": .3}), ({"sparsity": .5}, {"share": .5}), ({"sparsity": .6}, {"share": .6}),
              ({"pattern": "2:4"}, {"n": 2, "m": 4}), ({"pattern": "4:8"}, {"n": 4, "m": 8})]

    # %% ../nbs/30_sparsity.ipynb #3dee5b2d
    @law
    @given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 999))
    def ties_too(out, groups, seed):
        g = torch.Generator().manual_seed(seed)
        W, x = (torch.randint(-2, 3, s, generator=g).float() for s in ((out, 8*groups), (3, 8*groups)))
        for own, theirs in wanted:
            mask = rule(**own)[0](wanda(W, summed_norms([x])))
            assert torch.equal(mask, ~published_mask(W, published_norms([x]), **theirs))

    ties_too()


def test_weights_that_make_up_for_those_that_go():
    # %% ../nbs/30_sparsity.ipynb #b8385494
    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def problem(out, in_, tokens, seed=0, dtype=torch.float64):
        "A random weight and correlated inputs, the columns of X."
        g = torch.Generator().manual_seed(seed)
        W, mix, X = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((out, in_), (in_, in_), (in_, tokens)))
        return W.to(dtype), ((mix/3 + torch.eye(in_)) @ X).to(dtype)

    def tiny_models():
        "Small random models of four architectures, one of them with weights stored as (in, out)."
        torch.manual_seed(0)
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=64)
        models = [LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, num_key_value_heads=2)),
                  GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64)),
                  OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32)),
                  GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48))]
        for model in models:
            for p in model.parameters(): p.data.normal_(0, .2)
        return [model.eval() for model in models]

    def token_ids(seed=0, rows=3): return torch.randint(0, 64, (rows, 12), generator=torch.Generator().manual_seed(seed))

    texts = [token_ids(0), token_ids(1, 1), {"input_ids": token_ids(2), "attention_mask": torch.ones(3, 12).long().tril(8)}]
    law = settings(deadline=None, max_examples=25, derandomize=True)

    # %% ../nbs/30_sparsity.ipynb #45ba69d5
    @cache
    def embedded():
        "The embedded model's weights, text from the validation split as batches, and the inputs' Gram matrices on it."
        model, tokenizer = pretrained()
        own = batches([text[:1600] for text in corpus("valid").values()][:12], tokenizer, 512, 512)
        own = [b.inputs for b in own]
        return {n: effective_weight(layer).detach() for n, layer in select(model).items()}, own, gram(model, own)

    # %% ../nbs/30_sparsity.ipynb #f63f8dce
    def published_norms(samples):
        "The squared norm of each input, averaged over sequences (tokens, in), updated one sequence at a time."
        mean = torch.zeros(samples[0].shape[1])
        for count, x in enumerate(samples):
            mean *= count/(count + 1)
            mean += torch.norm(x.float().T, p=2, dim=1)**2/(count + 1)
        return mean

    def published_mask(W, mean, share=None, n=0, m=0):
        "True where the published script sets a weight to zero."
        metric, gone = W.abs()*mean.reshape(1, -1).sqrt(), torch.zeros_like(W, dtype=torch.bool)
        if share is None:
            for j in range(0, W.shape[1], m):
                gone.scatter_(1, j + torch.topk(metric[:, j:j + m].float(), n, dim=1, largest=False)[1], True)
        else: gone.scatter_(1, torch.sort(metric, dim=-1, stable=True)[1][:, :int(W.shape[1]*share)], True)
        return gone

    # %% ../nbs/30_sparsity.ipynb #35594858
    W, X = problem(1, 9, 40)
    w, H = W[0], X @ X.T
    inverse = torch.linalg.inv(H)
    for j in range(9):
        rest = [k for k in range(9) if k != j]
        refit = torch.zeros_like(w)
        refit[rest] = torch.linalg.lstsq(X[rest].T, X.T @ w).solution
        torch.testing.assert_close(w - w[j]/inverse[j, j]*inverse[j], refit)
        torch.testing.assert_close(output_error(W, refit[None], H), w[j]**2/inverse[j, j])


def test_from_left_to_right():
    # %% ../nbs/30_sparsity.ipynb #b8385494
    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def problem(out, in_, tokens, seed=0, dtype=torch.float64):
        "A random weight and correlated inputs, the columns of X."
        g = torch.Generator().manual_seed(seed)
        W, mix, X = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((out, in_), (in_, in_), (in_, tokens)))
        return W.to(dtype), ((mix/3 + torch.eye(in_)) @ X).to(dtype)

    def tiny_models():
        "Small random models of four architectures, one of them with weights stored as (in, out)."
        torch.manual_seed(0)
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=64)
        models = [LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, num_key_value_heads=2)),
                  GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64)),
                  OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32)),
                  GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48))]
        for model in models:
            for p in model.parameters(): p.data.normal_(0, .2)
        return [model.eval() for model in models]

    def token_ids(seed=0, rows=3): return torch.randint(0, 64, (rows, 12), generator=torch.Generator().manual_seed(seed))

    texts = [token_ids(0), token_ids(1, 1), {"input_ids": token_ids(2), "attention_mask": torch.ones(3, 12).long().tril(8)}]
    law = settings(deadline=None, max_examples=25, derandomize=True)

    # %% ../nbs/30_sparsity.ipynb #45ba69d5
    @cache
    def embedded():
        "The embedded model's weights, text from the validation split as batches, and the inputs' Gram matrices on it."
        model, tokenizer = pretrained()
        own = batches([text[:1600] for text in corpus("valid").values()][:12], tokenizer, 512, 512)
        own = [b.inputs for b in own]
        return {n: effective_weight(layer).detach() for n, layer in select(model).items()}, own, gram(model, own)

    # %% ../nbs/30_sparsity.ipynb #f63f8dce
    def published_norms(samples):
        "The squared norm of each input, averaged over sequences (tokens, in), updated one sequence at a time."
        mean = torch.zeros(samples[0].shape[1])
        for count, x in enumerate(samples):
            mean *= count/(count + 1)
            mean += torch.norm(x.float().T, p=2, dim=1)**2/(count + 1)
        return mean

    def published_mask(W, mean, share=None, n=0, m=0):
        "True where the published script sets a weight to zero."
        metric, gone = W.abs()*mean.reshape(1, -1).sqrt(), torch.zeros_like(W, dtype=torch.bool)
        if share is None:
            for j in range(0, W.shape[1], m):
                gone.scatter_(1, j + torch.topk(metric[:, j:j + m].float(), n, dim=1, largest=False)[1], True)
        else: gone.scatter_(1, torch.sort(metric, dim=-1, stable=True)[1][:, :int(W.shape[1]*share)], True)
        return gone

    # %% ../nbs/30_sparsity.ipynb #c94f7837
    def slow_sparsegpt(W, G, keep, group, damp):
        W, H, lost = W.clone(), ridge(G, damp), 0
        mask, n = torch.ones_like(W, dtype=torch.bool), W.shape[1]
        for j in range(n):
            inverse = torch.linalg.inv(H[j:, j:])
            if j % group == 0:
                d = torch.stack([torch.linalg.inv(H[k:, k:])[0, 0] for k in range(j, min(j + group, n))])
                mask[:, j:j + group] = keep(W[:, j:j + group]**2/d, start=j)
            w = torch.where(mask[:, j], 0, W[:, j])
            lost += (w**2/inverse[0, 0]).sum()
            W[:, j:] -= w[:, None]/inverse[0, 0]*inverse[0]
        return torch.where(mask, W, 0), mask, lost

    for (out, in_), group, kwargs in (((7, 24), 24, {}), ((5, 40), 16, {"sparsity": .6}), ((6, 24), 4, {"pattern": "2:4"}),
                                      ((3, 280), 128, {"sparsity": .3}), ((1, 9), 3, {"pattern": "1:3"})):
        W, X = problem(out, in_, 60)
        G, keep = X @ X.T, rule(**kwargs)[0]
        What, mask = sparsegpt(W, G, keep, group)
        slow, same, lost = slow_sparsegpt(W, G, keep, group, .01)
        assert torch.equal(mask, same) and not What[~mask].any()
        torch.testing.assert_close(What, slow)
        torch.testing.assert_close(output_error(W, What, ridge(G)), lost)
        if "pattern" not in kwargs: assert (mask.sum(1) == in_ - int(in_*kwargs.get("sparsity", .5))).all()


def test_from_left_to_right_2():
    # %% ../nbs/30_sparsity.ipynb #b8385494
    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def problem(out, in_, tokens, seed=0, dtype=torch.float64):
        "A random weight and correlated inputs, the columns of X."
        g = torch.Generator().manual_seed(seed)
        W, mix, X = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((out, in_), (in_, in_), (in_, tokens)))
        return W.to(dtype), ((mix/3 + torch.eye(in_)) @ X).to(dtype)

    def tiny_models():
        "Small random models of four architectures, one of them with weights stored as (in, out)."
        torch.manual_seed(0)
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=64)
        models = [LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, num_key_value_heads=2)),
                  GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64)),
                  OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32)),
                  GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48))]
        for model in models:
            for p in model.parameters(): p.data.normal_(0, .2)
        return [model.eval() for model in models]

    def token_ids(seed=0, rows=3): return torch.randint(0, 64, (rows, 12), generator=torch.Generator().manual_seed(seed))

    texts = [token_ids(0), token_ids(1, 1), {"input_ids": token_ids(2), "attention_mask": torch.ones(3, 12).long().tril(8)}]
    law = settings(deadline=None, max_examples=25, derandomize=True)

    # %% ../nbs/30_sparsity.ipynb #45ba69d5
    @cache
    def embedded():
        "The embedded model's weights, text from the validation split as batches, and the inputs' Gram matrices on it."
        model, tokenizer = pretrained()
        own = batches([text[:1600] for text in corpus("valid").values()][:12], tokenizer, 512, 512)
        own = [b.inputs for b in own]
        return {n: effective_weight(layer).detach() for n, layer in select(model).items()}, own, gram(model, own)

    # %% ../nbs/30_sparsity.ipynb #f63f8dce
    def published_norms(samples):
        "The squared norm of each input, averaged over sequences (tokens, in), updated one sequence at a time."
        mean = torch.zeros(samples[0].shape[1])
        for count, x in enumerate(samples):
            mean *= count/(count + 1)
            mean += torch.norm(x.float().T, p=2, dim=1)**2/(count + 1)
        return mean

    def published_mask(W, mean, share=None, n=0, m=0):
        "True where the published script sets a weight to zero."
        metric, gone = W.abs()*mean.reshape(1, -1).sqrt(), torch.zeros_like(W, dtype=torch.bool)
        if share is None:
            for j in range(0, W.shape[1], m):
                gone.scatter_(1, j + torch.topk(metric[:, j:j + m].float(), n, dim=1, largest=False)[1], True)
        else: gone.scatter_(1, torch.sort(metric, dim=-1, stable=True)[1][:, :int(W.shape[1]*share)], True)
        return gone

    # %% ../nbs/30_sparsity.ipynb #06325dfd
    def optimum(W, mask, H):
        "Refit the kept weights of every row."
        kept = mask[:, :, None] & mask[:, None]
        return torch.linalg.solve(torch.where(kept, H, 0) + torch.diag_embed((~mask).to(H)), (W @ H)*mask)*mask

    # %% ../nbs/30_sparsity.ipynb #dd550cdf
    for seed in range(5):
        W, X = problem(8, 24, 60, seed)
        H = ridge(X @ X.T)
        What, mask = sparsegpt(W, X @ X.T, rule()[0])
        best = optimum(W, mask, H)
        assert output_error(W, best, H) <= output_error(W, What, H) <= output_error(W, torch.where(mask, W, 0), H)
        assert ((W - best) @ H)[mask].abs().max() < 1e-9  # No kept weight can do better


def test_over_the_block_or_in_the_row():
    # %% ../nbs/30_sparsity.ipynb #b8385494
    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def problem(out, in_, tokens, seed=0, dtype=torch.float64):
        "A random weight and correlated inputs, the columns of X."
        g = torch.Generator().manual_seed(seed)
        W, mix, X = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((out, in_), (in_, in_), (in_, tokens)))
        return W.to(dtype), ((mix/3 + torch.eye(in_)) @ X).to(dtype)

    def tiny_models():
        "Small random models of four architectures, one of them with weights stored as (in, out)."
        torch.manual_seed(0)
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=64)
        models = [LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, num_key_value_heads=2)),
                  GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64)),
                  OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32)),
                  GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48))]
        for model in models:
            for p in model.parameters(): p.data.normal_(0, .2)
        return [model.eval() for model in models]

    def token_ids(seed=0, rows=3): return torch.randint(0, 64, (rows, 12), generator=torch.Generator().manual_seed(seed))

    texts = [token_ids(0), token_ids(1, 1), {"input_ids": token_ids(2), "attention_mask": torch.ones(3, 12).long().tril(8)}]
    law = settings(deadline=None, max_examples=25, derandomize=True)

    # %% ../nbs/30_sparsity.ipynb #45ba69d5
    @cache
    def embedded():
        "The embedded model's weights, text from the validation split as batches, and the inputs' Gram matrices on it."
        model, tokenizer = pretrained()
        own = batches([text[:1600] for text in corpus("valid").values()][:12], tokenizer, 512, 512)
        own = [b.inputs for b in own]
        return {n: effective_weight(layer).detach() for n, layer in select(model).items()}, own, gram(model, own)

    # %% ../nbs/30_sparsity.ipynb #f63f8dce
    def published_norms(samples):
        "The squared norm of each input, averaged over sequences (tokens, in), updated one sequence at a time."
        mean = torch.zeros(samples[0].shape[1])
        for count, x in enumerate(samples):
            mean *= count/(count + 1)
            mean += torch.norm(x.float().T, p=2, dim=1)**2/(count + 1)
        return mean

    def published_mask(W, mean, share=None, n=0, m=0):
        "True where the published script sets a weight to zero."
        metric, gone = W.abs()*mean.reshape(1, -1).sqrt(), torch.zeros_like(W, dtype=torch.bool)
        if share is None:
            for j in range(0, W.shape[1], m):
                gone.scatter_(1, j + torch.topk(metric[:, j:j + m].float(), n, dim=1, largest=False)[1], True)
        else: gone.scatter_(1, torch.sort(metric, dim=-1, stable=True)[1][:, :int(W.shape[1]*share)], True)
        return gone

    # %% ../nbs/30_sparsity.ipynb #ff7b12a4
    W, X = problem(16, 256, 300)
    G = X @ X.T
    What, mask = sparsegpt(W, G, partial(block_mask, sparsity=.5))
    for part in mask.split(128, 1): assert part.sum() == part.numel() - int(part.numel()*.5) - 1
    assert len(mask.sum(1).unique()) > 1 and not What[~mask].any()


def test_over_the_block_or_in_the_row_2():
    # %% ../nbs/30_sparsity.ipynb #b8385494
    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def problem(out, in_, tokens, seed=0, dtype=torch.float64):
        "A random weight and correlated inputs, the columns of X."
        g = torch.Generator().manual_seed(seed)
        W, mix, X = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((out, in_), (in_, in_), (in_, tokens)))
        return W.to(dtype), ((mix/3 + torch.eye(in_)) @ X).to(dtype)

    def tiny_models():
        "Small random models of four architectures, one of them with weights stored as (in, out)."
        torch.manual_seed(0)
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=64)
        models = [LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, num_key_value_heads=2)),
                  GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64)),
                  OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32)),
                  GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48))]
        for model in models:
            for p in model.parameters(): p.data.normal_(0, .2)
        return [model.eval() for model in models]

    def token_ids(seed=0, rows=3): return torch.randint(0, 64, (rows, 12), generator=torch.Generator().manual_seed(seed))

    texts = [token_ids(0), token_ids(1, 1), {"input_ids": token_ids(2), "attention_mask": torch.ones(3, 12).long().tril(8)}]
    law = settings(deadline=None, max_examples=25, derandomize=True)

    # %% ../nbs/30_sparsity.ipynb #45ba69d5
    @cache
    def embedded():
        "The embedded model's weights, text from the validation split as batches, and the inputs' Gram matrices on it."
        model, tokenizer = pretrained()
        own = batches([text[:1600] for text in corpus("valid").values()][:12], tokenizer, 512, 512)
        own = [b.inputs for b in own]
        return {n: effective_weight(layer).detach() for n, layer in select(model).items()}, own, gram(model, own)

    # %% ../nbs/30_sparsity.ipynb #f63f8dce
    def published_norms(samples):
        "The squared norm of each input, averaged over sequences (tokens, in), updated one sequence at a time."
        mean = torch.zeros(samples[0].shape[1])
        for count, x in enumerate(samples):
            mean *= count/(count + 1)
            mean += torch.norm(x.float().T, p=2, dim=1)**2/(count + 1)
        return mean

    def published_mask(W, mean, share=None, n=0, m=0):
        "True where the published script sets a weight to zero."
        metric, gone = W.abs()*mean.reshape(1, -1).sqrt(), torch.zeros_like(W, dtype=torch.bool)
        if share is None:
            for j in range(0, W.shape[1], m):
                gone.scatter_(1, j + torch.topk(metric[:, j:j + m].float(), n, dim=1, largest=False)[1], True)
        else: gone.scatter_(1, torch.sort(metric, dim=-1, stable=True)[1][:, :int(W.shape[1]*share)], True)
        return gone

    # %% ../nbs/30_sparsity.ipynb #b8e83255
    W, X = problem(6, 16, 30, dtype=torch.float32)
    X[[1, 5, 8]] = 0
    What, mask = sparsegpt(W, X @ X.T, rule()[0], 16)
    assert What.isfinite().all() and not mask[:, [1, 5, 8]].any()
    What, mask = sparsegpt(W, torch.zeros(16, 16), rule()[0], 16)
    assert torch.equal(mask, row_mask(magnitude(W), .5)) and torch.equal(What, torch.where(mask, W, 0))
    for dtype in torch.bfloat16, torch.float16: assert sparsegpt(W.to(dtype), X @ X.T, rule()[0])[0].dtype == torch.float32
    assert not sparsegpt(torch.zeros(3, 16), X @ X.T, rule(pattern="2:4")[0], 4)[0].any()
    for bad in (W*math.nan, X @ X.T), (W, X @ X.T*math.inf): print(refusal(NonFiniteError, sparsegpt, *bad, rule()[0]))
    print(refusal(SettingError, sparsegpt, W, X, rule()[0]))


def test_a_layer_with_a_mask():
    # %% ../nbs/30_sparsity.ipynb #b8385494
    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def problem(out, in_, tokens, seed=0, dtype=torch.float64):
        "A random weight and correlated inputs, the columns of X."
        g = torch.Generator().manual_seed(seed)
        W, mix, X = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((out, in_), (in_, in_), (in_, tokens)))
        return W.to(dtype), ((mix/3 + torch.eye(in_)) @ X).to(dtype)

    def tiny_models():
        "Small random models of four architectures, one of them with weights stored as (in, out)."
        torch.manual_seed(0)
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=64)
        models = [LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, num_key_value_heads=2)),
                  GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64)),
                  OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32)),
                  GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48))]
        for model in models:
            for p in model.parameters(): p.data.normal_(0, .2)
        return [model.eval() for model in models]

    def token_ids(seed=0, rows=3): return torch.randint(0, 64, (rows, 12), generator=torch.Generator().manual_seed(seed))

    texts = [token_ids(0), token_ids(1, 1), {"input_ids": token_ids(2), "attention_mask": torch.ones(3, 12).long().tril(8)}]
    law = settings(deadline=None, max_examples=25, derandomize=True)

    # %% ../nbs/30_sparsity.ipynb #45ba69d5
    @cache
    def embedded():
        "The embedded model's weights, text from the validation split as batches, and the inputs' Gram matrices on it."
        model, tokenizer = pretrained()
        own = batches([text[:1600] for text in corpus("valid").values()][:12], tokenizer, 512, 512)
        own = [b.inputs for b in own]
        return {n: effective_weight(layer).detach() for n, layer in select(model).items()}, own, gram(model, own)

    # %% ../nbs/30_sparsity.ipynb #f63f8dce
    def published_norms(samples):
        "The squared norm of each input, averaged over sequences (tokens, in), updated one sequence at a time."
        mean = torch.zeros(samples[0].shape[1])
        for count, x in enumerate(samples):
            mean *= count/(count + 1)
            mean += torch.norm(x.float().T, p=2, dim=1)**2/(count + 1)
        return mean

    def published_mask(W, mean, share=None, n=0, m=0):
        "True where the published script sets a weight to zero."
        metric, gone = W.abs()*mean.reshape(1, -1).sqrt(), torch.zeros_like(W, dtype=torch.bool)
        if share is None:
            for j in range(0, W.shape[1], m):
                gone.scatter_(1, j + torch.topk(metric[:, j:j + m].float(), n, dim=1, largest=False)[1], True)
        else: gone.scatter_(1, torch.sort(metric, dim=-1, stable=True)[1][:, :int(W.shape[1]*share)], True)
        return gone

    # %% ../nbs/30_sparsity.ipynb #eb13dd27
    for dtype in torch.float32, torch.bfloat16, torch.float16:
        for optimizer, options in (torch.optim.AdamW, {"weight_decay": .1}), (torch.optim.SGD, {"momentum": .9}):
            W, x = problem(6, 13, 5, dtype=dtype)
            mask = row_mask(magnitude(W), .5)
            W[0] = 0
            layer = SparseLinear(W, mask, torch.ones(6, dtype=dtype))
            torch.testing.assert_close(layer(x.T), F.linear(x.T, torch.where(mask, W, 0), layer.bias))
            step = optimizer([layer.weight], lr=.01, **options)
            for _ in range(3):
                step.zero_grad()
                layer(x.T).square().mean().backward()
                step.step()
            What = layer.effective_weight()
            assert not What[~mask].any() and What[0][mask[0]].all() and not torch.equal(What[mask], W[mask])


def test_a_layer_with_a_mask_2():
    # %% ../nbs/30_sparsity.ipynb #b8385494
    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def problem(out, in_, tokens, seed=0, dtype=torch.float64):
        "A random weight and correlated inputs, the columns of X."
        g = torch.Generator().manual_seed(seed)
        W, mix, X = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((out, in_), (in_, in_), (in_, tokens)))
        return W.to(dtype), ((mix/3 + torch.eye(in_)) @ X).to(dtype)

    def tiny_models():
        "Small random models of four architectures, one of them with weights stored as (in, out)."
        torch.manual_seed(0)
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=64)
        models = [LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, num_key_value_heads=2)),
                  GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64)),
                  OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32)),
                  GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48))]
        for model in models:
            for p in model.parameters(): p.data.normal_(0, .2)
        return [model.eval() for model in models]

    def token_ids(seed=0, rows=3): return torch.randint(0, 64, (rows, 12), generator=torch.Generator().manual_seed(seed))

    texts = [token_ids(0), token_ids(1, 1), {"input_ids": token_ids(2), "attention_mask": torch.ones(3, 12).long().tril(8)}]
    law = settings(deadline=None, max_examples=25, derandomize=True)

    # %% ../nbs/30_sparsity.ipynb #45ba69d5
    @cache
    def embedded():
        "The embedded model's weights, text from the validation split as batches, and the inputs' Gram matrices on it."
        model, tokenizer = pretrained()
        own = batches([text[:1600] for text in corpus("valid").values()][:12], tokenizer, 512, 512)
        own = [b.inputs for b in own]
        return {n: effective_weight(layer).detach() for n, layer in select(model).items()}, own, gram(model, own)

    # %% ../nbs/30_sparsity.ipynb #f63f8dce
    def published_norms(samples):
        "The squared norm of each input, averaged over sequences (tokens, in), updated one sequence at a time."
        mean = torch.zeros(samples[0].shape[1])
        for count, x in enumerate(samples):
            mean *= count/(count + 1)
            mean += torch.norm(x.float().T, p=2, dim=1)**2/(count + 1)
        return mean

    def published_mask(W, mean, share=None, n=0, m=0):
        "True where the published script sets a weight to zero."
        metric, gone = W.abs()*mean.reshape(1, -1).sqrt(), torch.zeros_like(W, dtype=torch.bool)
        if share is None:
            for j in range(0, W.shape[1], m):
                gone.scatter_(1, j + torch.topk(metric[:, j:j + m].float(), n, dim=1, largest=False)[1], True)
        else: gone.scatter_(1, torch.sort(metric, dim=-1, stable=True)[1][:, :int(W.shape[1]*share)], True)
        return gone

    # %% ../nbs/30_sparsity.ipynb #d73bd570
    W = problem(6, 13, 1)[0].float()*2e-8
    layer = SparseLinear(W, row_mask(magnitude(W), .5))
    mask = layer.mask.clone()
    assert layer.half().weight[mask].eq(0).any() and torch.equal(layer.mask, mask)
    state = layer.state_dict()
    assert state.keys() == {"values", "bits", "size"} and state["bits"].nbytes == 6*2
    assert state["values"].nbytes == 2*mask.sum() and torch.equal(state["values"], layer.weight[mask])
    other = SparseLinear(torch.zeros(6, 13).half(), torch.ones(6, 13).bool())
    other.load_state_dict(state)
    assert torch.equal(other.mask, mask) and torch.equal(other.weight, layer.weight)
    assert torch.equal(sparse_linear_from(state).weight, layer.weight)
    try: sparse_linear_from(state | {"values": state["values"][1:]})
    except CheckpointError as e: assert "values for a mask that keeps" in str(e)
    else: raise AssertionError("a value was lost")


def test_a_layer_with_a_mask_3():
    # %% ../nbs/30_sparsity.ipynb #b8385494
    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def problem(out, in_, tokens, seed=0, dtype=torch.float64):
        "A random weight and correlated inputs, the columns of X."
        g = torch.Generator().manual_seed(seed)
        W, mix, X = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((out, in_), (in_, in_), (in_, tokens)))
        return W.to(dtype), ((mix/3 + torch.eye(in_)) @ X).to(dtype)

    def tiny_models():
        "Small random models of four architectures, one of them with weights stored as (in, out)."
        torch.manual_seed(0)
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=64)
        models = [LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, num_key_value_heads=2)),
                  GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64)),
                  OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32)),
                  GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48))]
        for model in models:
            for p in model.parameters(): p.data.normal_(0, .2)
        return [model.eval() for model in models]

    def token_ids(seed=0, rows=3): return torch.randint(0, 64, (rows, 12), generator=torch.Generator().manual_seed(seed))

    texts = [token_ids(0), token_ids(1, 1), {"input_ids": token_ids(2), "attention_mask": torch.ones(3, 12).long().tril(8)}]
    law = settings(deadline=None, max_examples=25, derandomize=True)

    # %% ../nbs/30_sparsity.ipynb #45ba69d5
    @cache
    def embedded():
        "The embedded model's weights, text from the validation split as batches, and the inputs' Gram matrices on it."
        model, tokenizer = pretrained()
        own = batches([text[:1600] for text in corpus("valid").values()][:12], tokenizer, 512, 512)
        own = [b.inputs for b in own]
        return {n: effective_weight(layer).detach() for n, layer in select(model).items()}, own, gram(model, own)

    # %% ../nbs/30_sparsity.ipynb #f63f8dce
    def published_norms(samples):
        "The squared norm of each input, averaged over sequences (tokens, in), updated one sequence at a time."
        mean = torch.zeros(samples[0].shape[1])
        for count, x in enumerate(samples):
            mean *= count/(count + 1)
            mean += torch.norm(x.float().T, p=2, dim=1)**2/(count + 1)
        return mean

    def published_mask(W, mean, share=None, n=0, m=0):
        "True where the published script sets a weight to zero."
        metric, gone = W.abs()*mean.reshape(1, -1).sqrt(), torch.zeros_like(W, dtype=torch.bool)
        if share is None:
            for j in range(0, W.shape[1], m):
                gone.scatter_(1, j + torch.topk(metric[:, j:j + m].float(), n, dim=1, largest=False)[1], True)
        else: gone.scatter_(1, torch.sort(metric, dim=-1, stable=True)[1][:, :int(W.shape[1]*share)], True)
        return gone

    # %% ../nbs/30_sparsity.ipynb #4f15ee3e
    W = problem(6, 14, 1)[0].float()
    layer, other = (SparseLinear(V, row_mask(magnitude(V), .5)) for V in (W[:, :13], W))
    before = {name: t.clone() for name, t in other.state_dict().items()}
    try: other.load_state_dict(layer.state_dict())
    except RuntimeError as e: assert "mask has shape (6, 13), expected (6, 14)" in str(e)
    else: raise AssertionError("loaded a narrower layer")
    assert all(torch.equal(t, before[name]) for name, t in other.state_dict().items())
    empty = SparseLinear(W, row_mask(magnitude(W), .25)).to("meta")
    assert all(t.is_meta for t in empty.state_dict().values())
    empty.load_state_dict(other.state_dict(), assign=True)
    assert torch.equal(empty.mask, other.mask) and torch.equal(empty(W), other(W))


def test_a_layer_with_a_mask_4():
    # %% ../nbs/30_sparsity.ipynb #b8385494
    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def problem(out, in_, tokens, seed=0, dtype=torch.float64):
        "A random weight and correlated inputs, the columns of X."
        g = torch.Generator().manual_seed(seed)
        W, mix, X = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((out, in_), (in_, in_), (in_, tokens)))
        return W.to(dtype), ((mix/3 + torch.eye(in_)) @ X).to(dtype)

    def tiny_models():
        "Small random models of four architectures, one of them with weights stored as (in, out)."
        torch.manual_seed(0)
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=64)
        models = [LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, num_key_value_heads=2)),
                  GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64)),
                  OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32)),
                  GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48))]
        for model in models:
            for p in model.parameters(): p.data.normal_(0, .2)
        return [model.eval() for model in models]

    def token_ids(seed=0, rows=3): return torch.randint(0, 64, (rows, 12), generator=torch.Generator().manual_seed(seed))

    texts = [token_ids(0), token_ids(1, 1), {"input_ids": token_ids(2), "attention_mask": torch.ones(3, 12).long().tril(8)}]
    law = settings(deadline=None, max_examples=25, derandomize=True)

    # %% ../nbs/30_sparsity.ipynb #45ba69d5
    @cache
    def embedded():
        "The embedded model's weights, text from the validation split as batches, and the inputs' Gram matrices on it."
        model, tokenizer = pretrained()
        own = batches([text[:1600] for text in corpus("valid").values()][:12], tokenizer, 512, 512)
        own = [b.inputs for b in own]
        return {n: effective_weight(layer).detach() for n, layer in select(model).items()}, own, gram(model, own)

    # %% ../nbs/30_sparsity.ipynb #f63f8dce
    def published_norms(samples):
        "The squared norm of each input, averaged over sequences (tokens, in), updated one sequence at a time."
        mean = torch.zeros(samples[0].shape[1])
        for count, x in enumerate(samples):
            mean *= count/(count + 1)
            mean += torch.norm(x.float().T, p=2, dim=1)**2/(count + 1)
        return mean

    def published_mask(W, mean, share=None, n=0, m=0):
        "True where the published script sets a weight to zero."
        metric, gone = W.abs()*mean.reshape(1, -1).sqrt(), torch.zeros_like(W, dtype=torch.bool)
        if share is None:
            for j in range(0, W.shape[1], m):
                gone.scatter_(1, j + torch.topk(metric[:, j:j + m].float(), n, dim=1, largest=False)[1], True)
        else: gone.scatter_(1, torch.sort(metric, dim=-1, stable=True)[1][:, :int(W.shape[1]*share)], True)
        return gone

    # %% ../nbs/30_sparsity.ipynb #d37d8c80
    layer = SparseLinear(torch.tensor([[1., 0, 2], [3, 4, 0]]), torch.tensor([[True, False, True], [True, True, False]]))
    assert layer.rebuilt(2*layer.weight).mask is layer.mask and layer.merged() is layer
    try: layer.rebuilt(layer.weight + 1)
    except MergeError as e: print(e)
    else: raise AssertionError("zeros were lost")
    model = nn.Sequential(layer)
    assert merge(model)[0] is layer and type(densify(model)[0]) is nn.Linear and unmerge(model)[0] is layer
    assert torch.equal(float_weight("0", layer), layer.weight)
    print(refusal(SettingError, SparseLinear, torch.zeros(2, 3), torch.zeros(3, 2)))


def test_a_whole_model():
    # %% ../nbs/30_sparsity.ipynb #b8385494
    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def problem(out, in_, tokens, seed=0, dtype=torch.float64):
        "A random weight and correlated inputs, the columns of X."
        g = torch.Generator().manual_seed(seed)
        W, mix, X = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((out, in_), (in_, in_), (in_, tokens)))
        return W.to(dtype), ((mix/3 + torch.eye(in_)) @ X).to(dtype)

    def tiny_models():
        "Small random models of four architectures, one of them with weights stored as (in, out)."
        torch.manual_seed(0)
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=64)
        models = [LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, num_key_value_heads=2)),
                  GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64)),
                  OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32)),
                  GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48))]
        for model in models:
            for p in model.parameters(): p.data.normal_(0, .2)
        return [model.eval() for model in models]

    def token_ids(seed=0, rows=3): return torch.randint(0, 64, (rows, 12), generator=torch.Generator().manual_seed(seed))

    texts = [token_ids(0), token_ids(1, 1), {"input_ids": token_ids(2), "attention_mask": torch.ones(3, 12).long().tril(8)}]
    law = settings(deadline=None, max_examples=25, derandomize=True)

    # %% ../nbs/30_sparsity.ipynb #45ba69d5
    @cache
    def embedded():
        "The embedded model's weights, text from the validation split as batches, and the inputs' Gram matrices on it."
        model, tokenizer = pretrained()
        own = batches([text[:1600] for text in corpus("valid").values()][:12], tokenizer, 512, 512)
        own = [b.inputs for b in own]
        return {n: effective_weight(layer).detach() for n, layer in select(model).items()}, own, gram(model, own)

    # %% ../nbs/30_sparsity.ipynb #f63f8dce
    def published_norms(samples):
        "The squared norm of each input, averaged over sequences (tokens, in), updated one sequence at a time."
        mean = torch.zeros(samples[0].shape[1])
        for count, x in enumerate(samples):
            mean *= count/(count + 1)
            mean += torch.norm(x.float().T, p=2, dim=1)**2/(count + 1)
        return mean

    def published_mask(W, mean, share=None, n=0, m=0):
        "True where the published script sets a weight to zero."
        metric, gone = W.abs()*mean.reshape(1, -1).sqrt(), torch.zeros_like(W, dtype=torch.bool)
        if share is None:
            for j in range(0, W.shape[1], m):
                gone.scatter_(1, j + torch.topk(metric[:, j:j + m].float(), n, dim=1, largest=False)[1], True)
        else: gone.scatter_(1, torch.sort(metric, dim=-1, stable=True)[1][:, :int(W.shape[1]*share)], True)
        return gone

    # %% ../nbs/30_sparsity.ipynb #524d7636
    def published_wanda(model, batches, **theirs):
        "Prune a dense model in place, a block at a time."
        for i in range(len(blocks(model)[1])):
            own, seen = {n: layer for n, layer in select(model).items() if depths(model)[n] == i}, {}
            def see(name, x, seen=seen): seen.setdefault(name, []).append(x.reshape(-1, x.shape[-1]))
            with watch(model, own, see):
                for ids in batches: model(ids)
            for name, layer in own.items():
                W = effective_weight(layer).detach()
                set_weight(layer, W.masked_fill(published_mask(W, published_norms(seen[name]), **theirs), 0))

    def inputs_of(model, batch):
        seen = {}
        with watch(model, select(model), lambda name, x: seen.setdefault(name, x)): model(batch)
        return seen

    # %% ../nbs/30_sparsity.ipynb #a4eda5e8
    ids = [token_ids(seed, 1) for seed in range(4)]
    wanted = [({"sparsity": .5}, {"share": .5}), ({"sparsity": .3}, {"share": .3}), ({"pattern": "2:4"}, {"n": 2, "m": 4}),
              ({"pattern": "4:8"}, {"n": 4, "m": 8})]
    for kwargs, theirs in wanted:
        for ours, by_hand in zip(tiny_models(), tiny_models(), strict=True):
            sparsify(ours, ids, **kwargs)
            published_wanda(by_hand, ids, **theirs)
            for name, layer in select(by_hand).items():
                mask = ours.get_submodule(name).mask
                assert torch.equal(mask, effective_weight(layer) != 0)
            for x, y in zip(inputs_of(ours, ids[0]).values(), inputs_of(by_hand, ids[0]).values(), strict=True):
                torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


def test_a_whole_model_2():
    # %% ../nbs/30_sparsity.ipynb #b8385494
    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def problem(out, in_, tokens, seed=0, dtype=torch.float64):
        "A random weight and correlated inputs, the columns of X."
        g = torch.Generator().manual_seed(seed)
        W, mix, X = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((out, in_), (in_, in_), (in_, tokens)))
        return W.to(dtype), ((mix/3 + torch.eye(in_)) @ X).to(dtype)

    def tiny_models():
        "Small random models of four architectures, one of them with weights stored as (in, out)."
        torch.manual_seed(0)
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=64)
        models = [LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, num_key_value_heads=2)),
                  GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64)),
                  OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32)),
                  GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48))]
        for model in models:
            for p in model.parameters(): p.data.normal_(0, .2)
        return [model.eval() for model in models]

    def token_ids(seed=0, rows=3): return torch.randint(0, 64, (rows, 12), generator=torch.Generator().manual_seed(seed))

    texts = [token_ids(0), token_ids(1, 1), {"input_ids": token_ids(2), "attention_mask": torch.ones(3, 12).long().tril(8)}]
    law = settings(deadline=None, max_examples=25, derandomize=True)

    # %% ../nbs/30_sparsity.ipynb #45ba69d5
    @cache
    def embedded():
        "The embedded model's weights, text from the validation split as batches, and the inputs' Gram matrices on it."
        model, tokenizer = pretrained()
        own = batches([text[:1600] for text in corpus("valid").values()][:12], tokenizer, 512, 512)
        own = [b.inputs for b in own]
        return {n: effective_weight(layer).detach() for n, layer in select(model).items()}, own, gram(model, own)

    # %% ../nbs/30_sparsity.ipynb #f63f8dce
    def published_norms(samples):
        "The squared norm of each input, averaged over sequences (tokens, in), updated one sequence at a time."
        mean = torch.zeros(samples[0].shape[1])
        for count, x in enumerate(samples):
            mean *= count/(count + 1)
            mean += torch.norm(x.float().T, p=2, dim=1)**2/(count + 1)
        return mean

    def published_mask(W, mean, share=None, n=0, m=0):
        "True where the published script sets a weight to zero."
        metric, gone = W.abs()*mean.reshape(1, -1).sqrt(), torch.zeros_like(W, dtype=torch.bool)
        if share is None:
            for j in range(0, W.shape[1], m):
                gone.scatter_(1, j + torch.topk(metric[:, j:j + m].float(), n, dim=1, largest=False)[1], True)
        else: gone.scatter_(1, torch.sort(metric, dim=-1, stable=True)[1][:, :int(W.shape[1]*share)], True)
        return gone

    # %% ../nbs/30_sparsity.ipynb #524d7636
    def published_wanda(model, batches, **theirs):
        "Prune a dense model in place, a block at a time."
        for i in range(len(blocks(model)[1])):
            own, seen = {n: layer for n, layer in select(model).items() if depths(model)[n] == i}, {}
            def see(name, x, seen=seen): seen.setdefault(name, []).append(x.reshape(-1, x.shape[-1]))
            with watch(model, own, see):
                for ids in batches: model(ids)
            for name, layer in own.items():
                W = effective_weight(layer).detach()
                set_weight(layer, W.masked_fill(published_mask(W, published_norms(seen[name]), **theirs), 0))

    def inputs_of(model, batch):
        seen = {}
        with watch(model, select(model), lambda name, x: seen.setdefault(name, x)): model(batch)
        return seen

    # %% ../nbs/30_sparsity.ipynb #c993e5f0
    for method in METHODS:
        for model in tiny_models():
            before = {k: v.clone() for k, v in model.state_dict().items()}
            layers = list(select(model))
            sparsify(model, texts, method, .5)
            for layer in select(model).values():
                assert type(layer) is SparseLinear and not layer.weight[~layer.mask].any()
                assert (layer.mask.sum(1) == layer.in_features - layer.in_features//2).all()
            for k, v in model.state_dict().items():
                if not k.startswith(tuple(layers)): assert torch.equal(v, before[k])
            assert model(token_ids()).logits.isfinite().all()


def test_a_whole_model_3():
    # %% ../nbs/30_sparsity.ipynb #b8385494
    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def problem(out, in_, tokens, seed=0, dtype=torch.float64):
        "A random weight and correlated inputs, the columns of X."
        g = torch.Generator().manual_seed(seed)
        W, mix, X = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((out, in_), (in_, in_), (in_, tokens)))
        return W.to(dtype), ((mix/3 + torch.eye(in_)) @ X).to(dtype)

    def tiny_models():
        "Small random models of four architectures, one of them with weights stored as (in, out)."
        torch.manual_seed(0)
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=64)
        models = [LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, num_key_value_heads=2)),
                  GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64)),
                  OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32)),
                  GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48))]
        for model in models:
            for p in model.parameters(): p.data.normal_(0, .2)
        return [model.eval() for model in models]

    def token_ids(seed=0, rows=3): return torch.randint(0, 64, (rows, 12), generator=torch.Generator().manual_seed(seed))

    texts = [token_ids(0), token_ids(1, 1), {"input_ids": token_ids(2), "attention_mask": torch.ones(3, 12).long().tril(8)}]
    law = settings(deadline=None, max_examples=25, derandomize=True)

    # %% ../nbs/30_sparsity.ipynb #45ba69d5
    @cache
    def embedded():
        "The embedded model's weights, text from the validation split as batches, and the inputs' Gram matrices on it."
        model, tokenizer = pretrained()
        own = batches([text[:1600] for text in corpus("valid").values()][:12], tokenizer, 512, 512)
        own = [b.inputs for b in own]
        return {n: effective_weight(layer).detach() for n, layer in select(model).items()}, own, gram(model, own)

    # %% ../nbs/30_sparsity.ipynb #f63f8dce
    def published_norms(samples):
        "The squared norm of each input, averaged over sequences (tokens, in), updated one sequence at a time."
        mean = torch.zeros(samples[0].shape[1])
        for count, x in enumerate(samples):
            mean *= count/(count + 1)
            mean += torch.norm(x.float().T, p=2, dim=1)**2/(count + 1)
        return mean

    def published_mask(W, mean, share=None, n=0, m=0):
        "True where the published script sets a weight to zero."
        metric, gone = W.abs()*mean.reshape(1, -1).sqrt(), torch.zeros_like(W, dtype=torch.bool)
        if share is None:
            for j in range(0, W.shape[1], m):
                gone.scatter_(1, j + torch.topk(metric[:, j:j + m].float(), n, dim=1, largest=False)[1], True)
        else: gone.scatter_(1, torch.sort(metric, dim=-1, stable=True)[1][:, :int(W.shape[1]*share)], True)
        return gone

    # %% ../nbs/30_sparsity.ipynb #524d7636
    def published_wanda(model, batches, **theirs):
        "Prune a dense model in place, a block at a time."
        for i in range(len(blocks(model)[1])):
            own, seen = {n: layer for n, layer in select(model).items() if depths(model)[n] == i}, {}
            def see(name, x, seen=seen): seen.setdefault(name, []).append(x.reshape(-1, x.shape[-1]))
            with watch(model, own, see):
                for ids in batches: model(ids)
            for name, layer in own.items():
                W = effective_weight(layer).detach()
                set_weight(layer, W.masked_fill(published_mask(W, published_norms(seen[name]), **theirs), 0))

    def inputs_of(model, batch):
        seen = {}
        with watch(model, select(model), lambda name, x: seen.setdefault(name, x)): model(batch)
        return seen

    # %% ../nbs/30_sparsity.ipynb #5b5746aa
    def masks_of(model, batches, **kwargs):
        sparsify(model, batches, **kwargs)
        return torch.cat([layer.mask.flatten() for layer in select(model).values()])

    for method in "wanda", "sparsegpt":
        first = masks_of(tiny_models()[0], [token_ids(0, 6), token_ids(1, 2)], method=method)
        for other in [token_ids(1, 2), token_ids(0, 6)], [*token_ids(0, 6).split(1), *token_ids(1, 2).split(1)]:
            assert (masks_of(tiny_models()[0], other, method=method) == first).float().mean() >= .9999


def test_a_whole_model_4():
    # %% ../nbs/30_sparsity.ipynb #b8385494
    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def problem(out, in_, tokens, seed=0, dtype=torch.float64):
        "A random weight and correlated inputs, the columns of X."
        g = torch.Generator().manual_seed(seed)
        W, mix, X = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((out, in_), (in_, in_), (in_, tokens)))
        return W.to(dtype), ((mix/3 + torch.eye(in_)) @ X).to(dtype)

    def tiny_models():
        "Small random models of four architectures, one of them with weights stored as (in, out)."
        torch.manual_seed(0)
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=64)
        models = [LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, num_key_value_heads=2)),
                  GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64)),
                  OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32)),
                  GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48))]
        for model in models:
            for p in model.parameters(): p.data.normal_(0, .2)
        return [model.eval() for model in models]

    def token_ids(seed=0, rows=3): return torch.randint(0, 64, (rows, 12), generator=torch.Generator().manual_seed(seed))

    texts = [token_ids(0), token_ids(1, 1), {"input_ids": token_ids(2), "attention_mask": torch.ones(3, 12).long().tril(8)}]
    law = settings(deadline=None, max_examples=25, derandomize=True)

    # %% ../nbs/30_sparsity.ipynb #45ba69d5
    @cache
    def embedded():
        "The embedded model's weights, text from the validation split as batches, and the inputs' Gram matrices on it."
        model, tokenizer = pretrained()
        own = batches([text[:1600] for text in corpus("valid").values()][:12], tokenizer, 512, 512)
        own = [b.inputs for b in own]
        return {n: effective_weight(layer).detach() for n, layer in select(model).items()}, own, gram(model, own)

    # %% ../nbs/30_sparsity.ipynb #f63f8dce
    def published_norms(samples):
        "The squared norm of each input, averaged over sequences (tokens, in), updated one sequence at a time."
        mean = torch.zeros(samples[0].shape[1])
        for count, x in enumerate(samples):
            mean *= count/(count + 1)
            mean += torch.norm(x.float().T, p=2, dim=1)**2/(count + 1)
        return mean

    def published_mask(W, mean, share=None, n=0, m=0):
        "True where the published script sets a weight to zero."
        metric, gone = W.abs()*mean.reshape(1, -1).sqrt(), torch.zeros_like(W, dtype=torch.bool)
        if share is None:
            for j in range(0, W.shape[1], m):
                gone.scatter_(1, j + torch.topk(metric[:, j:j + m].float(), n, dim=1, largest=False)[1], True)
        else: gone.scatter_(1, torch.sort(metric, dim=-1, stable=True)[1][:, :int(W.shape[1]*share)], True)
        return gone

    # %% ../nbs/30_sparsity.ipynb #524d7636
    def published_wanda(model, batches, **theirs):
        "Prune a dense model in place, a block at a time."
        for i in range(len(blocks(model)[1])):
            own, seen = {n: layer for n, layer in select(model).items() if depths(model)[n] == i}, {}
            def see(name, x, seen=seen): seen.setdefault(name, []).append(x.reshape(-1, x.shape[-1]))
            with watch(model, own, see):
                for ids in batches: model(ids)
            for name, layer in own.items():
                W = effective_weight(layer).detach()
                set_weight(layer, W.masked_fill(published_mask(W, published_norms(seen[name]), **theirs), 0))

    def inputs_of(model, batch):
        seen = {}
        with watch(model, select(model), lambda name, x: seen.setdefault(name, x)): model(batch)
        return seen

    # %% ../nbs/30_sparsity.ipynb #ce0774cf
    model = sparsify(tiny_models()[0], texts, pattern="2:4", target=["q_proj", "down_proj"], layers=[0, -1], desc="2:4")
    assert [n for n, m in model.named_modules() if type(m) is SparseLinear] == [
        f"model.layers.{i}.{n}" for i in (0, 2) for n in ("self_attn.q_proj", "mlp.down_proj")]
    half = sparsify(tiny_models()[1].bfloat16(), texts, "sparsegpt")
    logits = half(token_ids()).logits
    assert half.transformer.h[0].attn.c_attn.weight.dtype == torch.bfloat16 and logits.isfinite().all()
    layer = densify(half).transformer.h[0].attn.c_attn
    assert type(layer).__name__ == "Conv1D" and torch.equal(half(token_ids()).logits, logits)


def test_a_whole_model_5():
    # %% ../nbs/30_sparsity.ipynb #b8385494
    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def problem(out, in_, tokens, seed=0, dtype=torch.float64):
        "A random weight and correlated inputs, the columns of X."
        g = torch.Generator().manual_seed(seed)
        W, mix, X = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((out, in_), (in_, in_), (in_, tokens)))
        return W.to(dtype), ((mix/3 + torch.eye(in_)) @ X).to(dtype)

    def tiny_models():
        "Small random models of four architectures, one of them with weights stored as (in, out)."
        torch.manual_seed(0)
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=64)
        models = [LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, num_key_value_heads=2)),
                  GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64)),
                  OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32)),
                  GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48))]
        for model in models:
            for p in model.parameters(): p.data.normal_(0, .2)
        return [model.eval() for model in models]

    def token_ids(seed=0, rows=3): return torch.randint(0, 64, (rows, 12), generator=torch.Generator().manual_seed(seed))

    texts = [token_ids(0), token_ids(1, 1), {"input_ids": token_ids(2), "attention_mask": torch.ones(3, 12).long().tril(8)}]
    law = settings(deadline=None, max_examples=25, derandomize=True)

    # %% ../nbs/30_sparsity.ipynb #45ba69d5
    @cache
    def embedded():
        "The embedded model's weights, text from the validation split as batches, and the inputs' Gram matrices on it."
        model, tokenizer = pretrained()
        own = batches([text[:1600] for text in corpus("valid").values()][:12], tokenizer, 512, 512)
        own = [b.inputs for b in own]
        return {n: effective_weight(layer).detach() for n, layer in select(model).items()}, own, gram(model, own)

    # %% ../nbs/30_sparsity.ipynb #f63f8dce
    def published_norms(samples):
        "The squared norm of each input, averaged over sequences (tokens, in), updated one sequence at a time."
        mean = torch.zeros(samples[0].shape[1])
        for count, x in enumerate(samples):
            mean *= count/(count + 1)
            mean += torch.norm(x.float().T, p=2, dim=1)**2/(count + 1)
        return mean

    def published_mask(W, mean, share=None, n=0, m=0):
        "True where the published script sets a weight to zero."
        metric, gone = W.abs()*mean.reshape(1, -1).sqrt(), torch.zeros_like(W, dtype=torch.bool)
        if share is None:
            for j in range(0, W.shape[1], m):
                gone.scatter_(1, j + torch.topk(metric[:, j:j + m].float(), n, dim=1, largest=False)[1], True)
        else: gone.scatter_(1, torch.sort(metric, dim=-1, stable=True)[1][:, :int(W.shape[1]*share)], True)
        return gone

    # %% ../nbs/30_sparsity.ipynb #524d7636
    def published_wanda(model, batches, **theirs):
        "Prune a dense model in place, a block at a time."
        for i in range(len(blocks(model)[1])):
            own, seen = {n: layer for n, layer in select(model).items() if depths(model)[n] == i}, {}
            def see(name, x, seen=seen): seen.setdefault(name, []).append(x.reshape(-1, x.shape[-1]))
            with watch(model, own, see):
                for ids in batches: model(ids)
            for name, layer in own.items():
                W = effective_weight(layer).detach()
                set_weight(layer, W.masked_fill(published_mask(W, published_norms(seen[name]), **theirs), 0))

    def inputs_of(model, batch):
        seen = {}
        with watch(model, select(model), lambda name, x: seen.setdefault(name, x)): model(batch)
        return seen

    # %% ../nbs/30_sparsity.ipynb #63c9023f
    class Interrupted(Exception): pass

    def interrupt(block, calls):
        "Let a block run some times and then raise."
        left = iter(range(calls))
        def stop(*_):
            if next(left, None) is None: raise Interrupted
        return block.register_forward_pre_hook(stop)

    for method in "wanda", "sparsegpt":
        whole = sparsify(tiny_models()[0], texts, method)
        with tempfile.TemporaryDirectory() as d:
            model = tiny_models()[0]
            before = digest(*model.state_dict().values())
            hook = interrupt(model.model.layers[1], calls=4)
            try: sparsify(model, texts, method, folder=d)
            except Interrupted: hook.remove()
            else: raise AssertionError("the run was not interrupted")
            assert digest(*model.state_dict().values()) == before and any(Path(d).glob("*layers.0*.safetensors"))
            sparsify(model, texts, method, folder=d)
            assert digest(*model.state_dict().values()) == digest(*whole.state_dict().values())


def test_a_whole_model_6():
    # %% ../nbs/30_sparsity.ipynb #b8385494
    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def problem(out, in_, tokens, seed=0, dtype=torch.float64):
        "A random weight and correlated inputs, the columns of X."
        g = torch.Generator().manual_seed(seed)
        W, mix, X = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((out, in_), (in_, in_), (in_, tokens)))
        return W.to(dtype), ((mix/3 + torch.eye(in_)) @ X).to(dtype)

    def tiny_models():
        "Small random models of four architectures, one of them with weights stored as (in, out)."
        torch.manual_seed(0)
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=64)
        models = [LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, num_key_value_heads=2)),
                  GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64)),
                  OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32)),
                  GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48))]
        for model in models:
            for p in model.parameters(): p.data.normal_(0, .2)
        return [model.eval() for model in models]

    def token_ids(seed=0, rows=3): return torch.randint(0, 64, (rows, 12), generator=torch.Generator().manual_seed(seed))

    texts = [token_ids(0), token_ids(1, 1), {"input_ids": token_ids(2), "attention_mask": torch.ones(3, 12).long().tril(8)}]
    law = settings(deadline=None, max_examples=25, derandomize=True)

    # %% ../nbs/30_sparsity.ipynb #45ba69d5
    @cache
    def embedded():
        "The embedded model's weights, text from the validation split as batches, and the inputs' Gram matrices on it."
        model, tokenizer = pretrained()
        own = batches([text[:1600] for text in corpus("valid").values()][:12], tokenizer, 512, 512)
        own = [b.inputs for b in own]
        return {n: effective_weight(layer).detach() for n, layer in select(model).items()}, own, gram(model, own)

    # %% ../nbs/30_sparsity.ipynb #f63f8dce
    def published_norms(samples):
        "The squared norm of each input, averaged over sequences (tokens, in), updated one sequence at a time."
        mean = torch.zeros(samples[0].shape[1])
        for count, x in enumerate(samples):
            mean *= count/(count + 1)
            mean += torch.norm(x.float().T, p=2, dim=1)**2/(count + 1)
        return mean

    def published_mask(W, mean, share=None, n=0, m=0):
        "True where the published script sets a weight to zero."
        metric, gone = W.abs()*mean.reshape(1, -1).sqrt(), torch.zeros_like(W, dtype=torch.bool)
        if share is None:
            for j in range(0, W.shape[1], m):
                gone.scatter_(1, j + torch.topk(metric[:, j:j + m].float(), n, dim=1, largest=False)[1], True)
        else: gone.scatter_(1, torch.sort(metric, dim=-1, stable=True)[1][:, :int(W.shape[1]*share)], True)
        return gone

    # %% ../nbs/30_sparsity.ipynb #524d7636
    def published_wanda(model, batches, **theirs):
        "Prune a dense model in place, a block at a time."
        for i in range(len(blocks(model)[1])):
            own, seen = {n: layer for n, layer in select(model).items() if depths(model)[n] == i}, {}
            def see(name, x, seen=seen): seen.setdefault(name, []).append(x.reshape(-1, x.shape[-1]))
            with watch(model, own, see):
                for ids in batches: model(ids)
            for name, layer in own.items():
                W = effective_weight(layer).detach()
                set_weight(layer, W.masked_fill(published_mask(W, published_norms(seen[name]), **theirs), 0))

    def inputs_of(model, batch):
        seen = {}
        with watch(model, select(model), lambda name, x: seen.setdefault(name, x)): model(batch)
        return seen

    # %% ../nbs/30_sparsity.ipynb #2e286d6f
    model = tiny_models()[0]
    before = digest(*model.state_dict().values())
    for kwargs in ({"sparsity": 1}, {"sparsity": -.5}, {"pattern": "3:5"}, {"pattern": "two of four"}, {"method": "wnada"},
                   {"batches": None}, {"batches": []}, {"layers": [3]}):
        print(refusal(SettingError, sparsify, model, **{"batches": texts} | kwargs))
    print(refusal(UnknownModuleError, sparsify, model, texts, target="q_porj"))
    model.model.layers[2].mlp.up_proj.weight.data[0, 0] = math.nan
    print(refusal(NonFiniteError, sparsify, model, texts))
    model.model.layers[2].mlp.up_proj.weight.data[0, 0] = 0
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = math.inf
    assert "the weight of" in refusal(NonFiniteError, sparsify, model, texts)
    model = tiny_models()[0]
    assert digest(*model.state_dict().values()) == before


def test_a_whole_model_7():
    # %% ../nbs/30_sparsity.ipynb #b8385494
    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def problem(out, in_, tokens, seed=0, dtype=torch.float64):
        "A random weight and correlated inputs, the columns of X."
        g = torch.Generator().manual_seed(seed)
        W, mix, X = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((out, in_), (in_, in_), (in_, tokens)))
        return W.to(dtype), ((mix/3 + torch.eye(in_)) @ X).to(dtype)

    def tiny_models():
        "Small random models of four architectures, one of them with weights stored as (in, out)."
        torch.manual_seed(0)
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=64)
        models = [LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, num_key_value_heads=2)),
                  GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64)),
                  OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32)),
                  GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48))]
        for model in models:
            for p in model.parameters(): p.data.normal_(0, .2)
        return [model.eval() for model in models]

    def token_ids(seed=0, rows=3): return torch.randint(0, 64, (rows, 12), generator=torch.Generator().manual_seed(seed))

    texts = [token_ids(0), token_ids(1, 1), {"input_ids": token_ids(2), "attention_mask": torch.ones(3, 12).long().tril(8)}]
    law = settings(deadline=None, max_examples=25, derandomize=True)

    # %% ../nbs/30_sparsity.ipynb #45ba69d5
    @cache
    def embedded():
        "The embedded model's weights, text from the validation split as batches, and the inputs' Gram matrices on it."
        model, tokenizer = pretrained()
        own = batches([text[:1600] for text in corpus("valid").values()][:12], tokenizer, 512, 512)
        own = [b.inputs for b in own]
        return {n: effective_weight(layer).detach() for n, layer in select(model).items()}, own, gram(model, own)

    # %% ../nbs/30_sparsity.ipynb #f63f8dce
    def published_norms(samples):
        "The squared norm of each input, averaged over sequences (tokens, in), updated one sequence at a time."
        mean = torch.zeros(samples[0].shape[1])
        for count, x in enumerate(samples):
            mean *= count/(count + 1)
            mean += torch.norm(x.float().T, p=2, dim=1)**2/(count + 1)
        return mean

    def published_mask(W, mean, share=None, n=0, m=0):
        "True where the published script sets a weight to zero."
        metric, gone = W.abs()*mean.reshape(1, -1).sqrt(), torch.zeros_like(W, dtype=torch.bool)
        if share is None:
            for j in range(0, W.shape[1], m):
                gone.scatter_(1, j + torch.topk(metric[:, j:j + m].float(), n, dim=1, largest=False)[1], True)
        else: gone.scatter_(1, torch.sort(metric, dim=-1, stable=True)[1][:, :int(W.shape[1]*share)], True)
        return gone

    # %% ../nbs/30_sparsity.ipynb #524d7636
    def published_wanda(model, batches, **theirs):
        "Prune a dense model in place, a block at a time."
        for i in range(len(blocks(model)[1])):
            own, seen = {n: layer for n, layer in select(model).items() if depths(model)[n] == i}, {}
            def see(name, x, seen=seen): seen.setdefault(name, []).append(x.reshape(-1, x.shape[-1]))
            with watch(model, own, see):
                for ids in batches: model(ids)
            for name, layer in own.items():
                W = effective_weight(layer).detach()
                set_weight(layer, W.masked_fill(published_mask(W, published_norms(seen[name]), **theirs), 0))

    def inputs_of(model, batch):
        seen = {}
        with watch(model, select(model), lambda name, x: seen.setdefault(name, x)): model(batch)
        return seen

    # %% ../nbs/30_sparsity.ipynb #38dd9d56
    class Rounded(nn.Linear):
        "Stands for any layer that keeps no float weight, quantized or adapted."
        def effective_weight(self): return self.weight.round()

    model = tiny_models()[0]
    replace(model, "model.layers.1.self_attn.q_proj", Rounded(32, 32, bias=False))
    print(refusal(SettingError, sparsify, model, texts))
    assert not any(type(m) is SparseLinear for m in model.modules())


def test_a_whole_model_8():
    # %% ../nbs/30_sparsity.ipynb #b8385494
    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def problem(out, in_, tokens, seed=0, dtype=torch.float64):
        "A random weight and correlated inputs, the columns of X."
        g = torch.Generator().manual_seed(seed)
        W, mix, X = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((out, in_), (in_, in_), (in_, tokens)))
        return W.to(dtype), ((mix/3 + torch.eye(in_)) @ X).to(dtype)

    def tiny_models():
        "Small random models of four architectures, one of them with weights stored as (in, out)."
        torch.manual_seed(0)
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=64)
        models = [LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, num_key_value_heads=2)),
                  GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64)),
                  OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32)),
                  GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48))]
        for model in models:
            for p in model.parameters(): p.data.normal_(0, .2)
        return [model.eval() for model in models]

    def token_ids(seed=0, rows=3): return torch.randint(0, 64, (rows, 12), generator=torch.Generator().manual_seed(seed))

    texts = [token_ids(0), token_ids(1, 1), {"input_ids": token_ids(2), "attention_mask": torch.ones(3, 12).long().tril(8)}]
    law = settings(deadline=None, max_examples=25, derandomize=True)

    # %% ../nbs/30_sparsity.ipynb #45ba69d5
    @cache
    def embedded():
        "The embedded model's weights, text from the validation split as batches, and the inputs' Gram matrices on it."
        model, tokenizer = pretrained()
        own = batches([text[:1600] for text in corpus("valid").values()][:12], tokenizer, 512, 512)
        own = [b.inputs for b in own]
        return {n: effective_weight(layer).detach() for n, layer in select(model).items()}, own, gram(model, own)

    # %% ../nbs/30_sparsity.ipynb #f63f8dce
    def published_norms(samples):
        "The squared norm of each input, averaged over sequences (tokens, in), updated one sequence at a time."
        mean = torch.zeros(samples[0].shape[1])
        for count, x in enumerate(samples):
            mean *= count/(count + 1)
            mean += torch.norm(x.float().T, p=2, dim=1)**2/(count + 1)
        return mean

    def published_mask(W, mean, share=None, n=0, m=0):
        "True where the published script sets a weight to zero."
        metric, gone = W.abs()*mean.reshape(1, -1).sqrt(), torch.zeros_like(W, dtype=torch.bool)
        if share is None:
            for j in range(0, W.shape[1], m):
                gone.scatter_(1, j + torch.topk(metric[:, j:j + m].float(), n, dim=1, largest=False)[1], True)
        else: gone.scatter_(1, torch.sort(metric, dim=-1, stable=True)[1][:, :int(W.shape[1]*share)], True)
        return gone

    # %% ../nbs/30_sparsity.ipynb #524d7636
    def published_wanda(model, batches, **theirs):
        "Prune a dense model in place, a block at a time."
        for i in range(len(blocks(model)[1])):
            own, seen = {n: layer for n, layer in select(model).items() if depths(model)[n] == i}, {}
            def see(name, x, seen=seen): seen.setdefault(name, []).append(x.reshape(-1, x.shape[-1]))
            with watch(model, own, see):
                for ids in batches: model(ids)
            for name, layer in own.items():
                W = effective_weight(layer).detach()
                set_weight(layer, W.masked_fill(published_mask(W, published_norms(seen[name]), **theirs), 0))

    def inputs_of(model, batch):
        seen = {}
        with watch(model, select(model), lambda name, x: seen.setdefault(name, x)): model(batch)
        return seen

    # %% ../nbs/30_sparsity.ipynb #cb6ff6f4
    for method in "magnitude", "wanda":
        model = sparsify(tiny_models()[2], texts, method, .3)
        first = [layer.mask for layer in select(model).values()]
        sparsify(model, texts, method, .6)
        assert not any((layer.mask & ~old).any() for layer, old in zip(select(model).values(), first, strict=True))


def test_what_is_stored():
    # %% ../nbs/30_sparsity.ipynb #b8385494
    def refusal(error, f, *args, **kwargs):
        "The message of the error that a call must raise."
        try: f(*args, **kwargs)
        except error as e: return str(e)
        raise AssertionError(f"{f.__name__} accepted {args} {kwargs}")

    def problem(out, in_, tokens, seed=0, dtype=torch.float64):
        "A random weight and correlated inputs, the columns of X."
        g = torch.Generator().manual_seed(seed)
        W, mix, X = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((out, in_), (in_, in_), (in_, tokens)))
        return W.to(dtype), ((mix/3 + torch.eye(in_)) @ X).to(dtype)

    def tiny_models():
        "Small random models of four architectures, one of them with weights stored as (in, out)."
        torch.manual_seed(0)
        sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=64)
        models = [LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, num_key_value_heads=2)),
                  GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64)),
                  OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32)),
                  GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48))]
        for model in models:
            for p in model.parameters(): p.data.normal_(0, .2)
        return [model.eval() for model in models]

    def token_ids(seed=0, rows=3): return torch.randint(0, 64, (rows, 12), generator=torch.Generator().manual_seed(seed))

    texts = [token_ids(0), token_ids(1, 1), {"input_ids": token_ids(2), "attention_mask": torch.ones(3, 12).long().tril(8)}]
    law = settings(deadline=None, max_examples=25, derandomize=True)

    # %% ../nbs/30_sparsity.ipynb #45ba69d5
    @cache
    def embedded():
        "The embedded model's weights, text from the validation split as batches, and the inputs' Gram matrices on it."
        model, tokenizer = pretrained()
        own = batches([text[:1600] for text in corpus("valid").values()][:12], tokenizer, 512, 512)
        own = [b.inputs for b in own]
        return {n: effective_weight(layer).detach() for n, layer in select(model).items()}, own, gram(model, own)

    # %% ../nbs/30_sparsity.ipynb #f63f8dce
    def published_norms(samples):
        "The squared norm of each input, averaged over sequences (tokens, in), updated one sequence at a time."
        mean = torch.zeros(samples[0].shape[1])
        for count, x in enumerate(samples):
            mean *= count/(count + 1)
            mean += torch.norm(x.float().T, p=2, dim=1)**2/(count + 1)
        return mean

    def published_mask(W, mean, share=None, n=0, m=0):
        "True where the published script sets a weight to zero."
        metric, gone = W.abs()*mean.reshape(1, -1).sqrt(), torch.zeros_like(W, dtype=torch.bool)
        if share is None:
            for j in range(0, W.shape[1], m):
                gone.scatter_(1, j + torch.topk(metric[:, j:j + m].float(), n, dim=1, largest=False)[1], True)
        else: gone.scatter_(1, torch.sort(metric, dim=-1, stable=True)[1][:, :int(W.shape[1]*share)], True)
        return gone

    # %% ../nbs/30_sparsity.ipynb #69814b99
    model = sparsify(pretrained()[0], None, "magnitude", .6)
    *rows, total = sparsity_report(model)
    assert len(rows) == 42 and total["weights"] == sum(layer.weight.numel() for layer in select(model).values())
    for r in rows:
        layer = model.get_submodule(r["layer"])
        cut = int(layer.in_features*.6)/layer.in_features
        assert r["sparsity"] == cut and r["bitmask_bytes"]*8 == r["weights"]*(1 + 16*(1 - cut))
    print(f"{total['weights']:,} weights, {total['sparsity']:.2%} zeros, {total['dense_bytes']:,} bytes dense, "
      f"{total['bitmask_bytes']:,} with a bit mask")
    sparsify(model, None, "magnitude", 0)
    assert sparsity_report(model)[-1]["bitmask_bytes"]*16 == total["weights"]*34
