from pathlm.evaluate import *
import math
from pathlib import Path
import numpy as np
import torch
import torch.nn.functional as F
from pathlm.base import CheckpointError
from pathlm.base import SettingError
from pathlm.base import TextError
import os
import tempfile
from types import SimpleNamespace
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from scipy.special import digamma
from scipy.stats import betabinom
from tokenizers import Tokenizer
from tokenizers import models
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM
from transformers import AutoTokenizer
from transformers import BertConfig
from transformers import BertForMaskedLM
from transformers import BertForSequenceClassification
from transformers import GPT2Config
from transformers import GPT2LMHeadModel
from transformers import LlamaConfig
from transformers import LlamaForCausalLM
from transformers import PreTrainedTokenizerFast
from pathlm.base import write_tensors


def test_a_text_is_a_list_of_documents():
    # %% ../nbs/03_evaluate.ipynb #c0f5bf5b
    def byte_tokenizer(*merges, bos="<s>"):
        vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        for a, b in merges: vocab[a + b] = len(vocab)
        t = Tokenizer(models.BPE(vocab, list(merges)))
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return PreTrainedTokenizerFast(tokenizer_object=t, bos_token=bos)

    # %% ../nbs/03_evaluate.ipynb #149d5408
    class Counting(torch.nn.Module):
        def __init__(self, letters, alpha=0.5):
            super().__init__()
            ids = byte_tokenizer(bos=None)(letters)["input_ids"]
            self.register_buffer("alpha", torch.zeros(256).index_fill(0, torch.tensor(ids), alpha))

        def forward(self, input_ids, **kwargs):
            seen = F.one_hot(input_ids, 257)[..., :256].cumsum(1)  # (B, T, 256); the token 256 opens a text
            return SimpleNamespace(logits=torch.log(seen + self.alpha))

    # %% ../nbs/03_evaluate.ipynb #217817e3
    def tiny(cls, **kwargs):
        torch.manual_seed(0)
        if cls is GPT2LMHeadModel: return cls(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, vocab_size=264,
                                                                    bos_token_id=256, eos_token_id=256))
        return cls(LlamaConfig(vocab_size=264, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                               num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32, **kwargs))

    # %% ../nbs/03_evaluate.ipynb #5f9ae050
    cut("To be.\n\nOr not to be. That\nis the question.", size=18)

    # %% ../nbs/03_evaluate.ipynb #ba97cef8
    @settings(deadline=None, max_examples=50, derandomize=True)
    @given(st.text("ab \n", max_size=60), st.integers(1, 20))
    def check(text, size):
        pieces = cut(text, size)
        assert "".join(pieces) == text and max(map(len, pieces)) <= size
        assert all(2 * len(p) > size for p in pieces[:-1])

    check()


def test_a_text_is_a_list_of_documents_2():
    # %% ../nbs/03_evaluate.ipynb #c0f5bf5b
    def byte_tokenizer(*merges, bos="<s>"):
        vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        for a, b in merges: vocab[a + b] = len(vocab)
        t = Tokenizer(models.BPE(vocab, list(merges)))
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return PreTrainedTokenizerFast(tokenizer_object=t, bos_token=bos)

    # %% ../nbs/03_evaluate.ipynb #149d5408
    class Counting(torch.nn.Module):
        def __init__(self, letters, alpha=0.5):
            super().__init__()
            ids = byte_tokenizer(bos=None)(letters)["input_ids"]
            self.register_buffer("alpha", torch.zeros(256).index_fill(0, torch.tensor(ids), alpha))

        def forward(self, input_ids, **kwargs):
            seen = F.one_hot(input_ids, 257)[..., :256].cumsum(1)  # (B, T, 256); the token 256 opens a text
            return SimpleNamespace(logits=torch.log(seen + self.alpha))

    # %% ../nbs/03_evaluate.ipynb #217817e3
    def tiny(cls, **kwargs):
        torch.manual_seed(0)
        if cls is GPT2LMHeadModel: return cls(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, vocab_size=264,
                                                                    bos_token_id=256, eos_token_id=256))
        return cls(LlamaConfig(vocab_size=264, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                               num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32, **kwargs))

    # %% ../nbs/03_evaluate.ipynb #5f9ae050
    cut("To be.\n\nOr not to be. That\nis the question.", size=18)

    # %% ../nbs/03_evaluate.ipynb #7b285934
    with tempfile.TemporaryDirectory() as d:
        for name, content in ("a.jsonl", '{"text": "one\u2028"}\n\n{"text": "two"}\n'), ("a.json", '["one\u2028", "two"]'):
            (Path(d)/name).write_text(content, encoding="utf-8")
            assert read_documents(f"{d}/{name}") == ["one\u2028", "two"]
        (Path(d)/"a.txt").write_text("one\n\ntwo\n", encoding="utf-8")
        assert read_documents(f"{d}/a.txt") == ["one\n\ntwo\n"]
        assert read_documents(f"{d}/a.txt", size=6) == ["one\n\n", "two\n"]


def test_a_text_is_a_list_of_documents_3():
    # %% ../nbs/03_evaluate.ipynb #c0f5bf5b
    def byte_tokenizer(*merges, bos="<s>"):
        vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        for a, b in merges: vocab[a + b] = len(vocab)
        t = Tokenizer(models.BPE(vocab, list(merges)))
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return PreTrainedTokenizerFast(tokenizer_object=t, bos_token=bos)

    # %% ../nbs/03_evaluate.ipynb #149d5408
    class Counting(torch.nn.Module):
        def __init__(self, letters, alpha=0.5):
            super().__init__()
            ids = byte_tokenizer(bos=None)(letters)["input_ids"]
            self.register_buffer("alpha", torch.zeros(256).index_fill(0, torch.tensor(ids), alpha))

        def forward(self, input_ids, **kwargs):
            seen = F.one_hot(input_ids, 257)[..., :256].cumsum(1)  # (B, T, 256); the token 256 opens a text
            return SimpleNamespace(logits=torch.log(seen + self.alpha))

    # %% ../nbs/03_evaluate.ipynb #217817e3
    def tiny(cls, **kwargs):
        torch.manual_seed(0)
        if cls is GPT2LMHeadModel: return cls(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, vocab_size=264,
                                                                    bos_token_id=256, eos_token_id=256))
        return cls(LlamaConfig(vocab_size=264, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                               num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32, **kwargs))

    # %% ../nbs/03_evaluate.ipynb #5f9ae050
    cut("To be.\n\nOr not to be. That\nis the question.", size=18)

    # %% ../nbs/03_evaluate.ipynb #68b9fada
    bad = {"a.jsonl": b'{"text": "one"}\n{"test": "two"}', "b.jsonl": b"[1]", "c.json": b'{"text": "one"}',
           "d.json": b"[1]", "e.json": b"", "f.txt": b" \n", "g.txt": b"\xff\xfe", "h.jsonl": b"\n"}
    with tempfile.TemporaryDirectory() as d:
        for name, content in bad.items(): (Path(d)/name).write_bytes(content)
        for name in [*bad, "absent.txt"]:
            try: read_documents(f"{d}/{name}")
            except TextError as e: assert f"{d}/{name}" in str(e) and ("line 2" in str(e)) == (name == "a.jsonl")
            else: raise AssertionError(f"{name} was read")


def test_every_token_is_scored_once():
    # %% ../nbs/03_evaluate.ipynb #c0f5bf5b
    def byte_tokenizer(*merges, bos="<s>"):
        vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        for a, b in merges: vocab[a + b] = len(vocab)
        t = Tokenizer(models.BPE(vocab, list(merges)))
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return PreTrainedTokenizerFast(tokenizer_object=t, bos_token=bos)

    # %% ../nbs/03_evaluate.ipynb #149d5408
    class Counting(torch.nn.Module):
        def __init__(self, letters, alpha=0.5):
            super().__init__()
            ids = byte_tokenizer(bos=None)(letters)["input_ids"]
            self.register_buffer("alpha", torch.zeros(256).index_fill(0, torch.tensor(ids), alpha))

        def forward(self, input_ids, **kwargs):
            seen = F.one_hot(input_ids, 257)[..., :256].cumsum(1)  # (B, T, 256); the token 256 opens a text
            return SimpleNamespace(logits=torch.log(seen + self.alpha))

    # %% ../nbs/03_evaluate.ipynb #217817e3
    def tiny(cls, **kwargs):
        torch.manual_seed(0)
        if cls is GPT2LMHeadModel: return cls(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, vocab_size=264,
                                                                    bos_token_id=256, eos_token_id=256))
        return cls(LlamaConfig(vocab_size=264, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                               num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32, **kwargs))

    # %% ../nbs/03_evaluate.ipynb #d279aeeb
    windows(11, window=4, stride=2)

    # %% ../nbs/03_evaluate.ipynb #a9d13227
    @settings(deadline=None, max_examples=100, derandomize=True)
    @given(st.integers(0, 60), st.integers(1, 20), st.data())
    def check(n, window, data):
        stride = data.draw(st.integers(1, window))
        spans = windows(n, window, stride)
        scored = [(t, t - start) for start, stop, first in spans for t in range(first, stop + 1)]  # token, its context
        assert [t for t, _ in scored] == list(range(1, n))
        assert all(0 <= start < stop <= min(start + window, n - 1) for start, stop, _ in spans)
        assert all(context >= min(t, window - stride + 1) for t, context in scored)

    check()


def test_every_token_is_scored_once_2():
    # %% ../nbs/03_evaluate.ipynb #c0f5bf5b
    def byte_tokenizer(*merges, bos="<s>"):
        vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        for a, b in merges: vocab[a + b] = len(vocab)
        t = Tokenizer(models.BPE(vocab, list(merges)))
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return PreTrainedTokenizerFast(tokenizer_object=t, bos_token=bos)

    # %% ../nbs/03_evaluate.ipynb #149d5408
    class Counting(torch.nn.Module):
        def __init__(self, letters, alpha=0.5):
            super().__init__()
            ids = byte_tokenizer(bos=None)(letters)["input_ids"]
            self.register_buffer("alpha", torch.zeros(256).index_fill(0, torch.tensor(ids), alpha))

        def forward(self, input_ids, **kwargs):
            seen = F.one_hot(input_ids, 257)[..., :256].cumsum(1)  # (B, T, 256); the token 256 opens a text
            return SimpleNamespace(logits=torch.log(seen + self.alpha))

    # %% ../nbs/03_evaluate.ipynb #217817e3
    def tiny(cls, **kwargs):
        torch.manual_seed(0)
        if cls is GPT2LMHeadModel: return cls(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, vocab_size=264,
                                                                    bos_token_id=256, eos_token_id=256))
        return cls(LlamaConfig(vocab_size=264, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                               num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32, **kwargs))

    # %% ../nbs/03_evaluate.ipynb #d279aeeb
    windows(11, window=4, stride=2)

    # %% ../nbs/03_evaluate.ipynb #96cde0ed
    for window, stride in (0, 0), (4, 0), (4, 5):
        try: windows(10, window, stride)
        except SettingError as e: assert f"={0 if stride == 0 else 5} " in str(e)
        else: raise AssertionError("impossible windows were cut")


def test_every_token_is_scored_once_3():
    # %% ../nbs/03_evaluate.ipynb #c0f5bf5b
    def byte_tokenizer(*merges, bos="<s>"):
        vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        for a, b in merges: vocab[a + b] = len(vocab)
        t = Tokenizer(models.BPE(vocab, list(merges)))
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return PreTrainedTokenizerFast(tokenizer_object=t, bos_token=bos)

    # %% ../nbs/03_evaluate.ipynb #149d5408
    class Counting(torch.nn.Module):
        def __init__(self, letters, alpha=0.5):
            super().__init__()
            ids = byte_tokenizer(bos=None)(letters)["input_ids"]
            self.register_buffer("alpha", torch.zeros(256).index_fill(0, torch.tensor(ids), alpha))

        def forward(self, input_ids, **kwargs):
            seen = F.one_hot(input_ids, 257)[..., :256].cumsum(1)  # (B, T, 256); the token 256 opens a text
            return SimpleNamespace(logits=torch.log(seen + self.alpha))

    # %% ../nbs/03_evaluate.ipynb #217817e3
    def tiny(cls, **kwargs):
        torch.manual_seed(0)
        if cls is GPT2LMHeadModel: return cls(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, vocab_size=264,
                                                                    bos_token_id=256, eos_token_id=256))
        return cls(LlamaConfig(vocab_size=264, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                               num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32, **kwargs))

    # %% ../nbs/03_evaluate.ipynb #d279aeeb
    windows(11, window=4, stride=2)

    # %% ../nbs/03_evaluate.ipynb #21bfa682
    llama = tiny(LlamaForCausalLM)
    assert context(llama) == context(tiny(GPT2LMHeadModel)) == 32 and context(Counting("ab")) is None
    assert window_and_stride(llama) == (32, 16) and window_and_stride(Counting("ab")) == (512, 256)
    assert window_and_stride(Counting("ab"), 700, 1) == (700, 1)
    try: window_and_stride(llama, 33)
    except SettingError as e: assert "33" in str(e) and "32" in str(e)
    else: raise AssertionError("a window longer than the context was taken")


def test_windows_are_read_in_batches():
    # %% ../nbs/03_evaluate.ipynb #c0f5bf5b
    def byte_tokenizer(*merges, bos="<s>"):
        vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        for a, b in merges: vocab[a + b] = len(vocab)
        t = Tokenizer(models.BPE(vocab, list(merges)))
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return PreTrainedTokenizerFast(tokenizer_object=t, bos_token=bos)

    # %% ../nbs/03_evaluate.ipynb #149d5408
    class Counting(torch.nn.Module):
        def __init__(self, letters, alpha=0.5):
            super().__init__()
            ids = byte_tokenizer(bos=None)(letters)["input_ids"]
            self.register_buffer("alpha", torch.zeros(256).index_fill(0, torch.tensor(ids), alpha))

        def forward(self, input_ids, **kwargs):
            seen = F.one_hot(input_ids, 257)[..., :256].cumsum(1)  # (B, T, 256); the token 256 opens a text
            return SimpleNamespace(logits=torch.log(seen + self.alpha))

    # %% ../nbs/03_evaluate.ipynb #217817e3
    def tiny(cls, **kwargs):
        torch.manual_seed(0)
        if cls is GPT2LMHeadModel: return cls(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, vocab_size=264,
                                                                    bos_token_id=256, eos_token_id=256))
        return cls(LlamaConfig(vocab_size=264, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                               num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32, **kwargs))

    # %% ../nbs/03_evaluate.ipynb #579c1b71
    for name, value in batches(["abcde", "ab"], byte_tokenizer(), window=4, stride=2)[0]._asdict().items():
        print(f"{name:8}", value.tolist())

    # %% ../nbs/03_evaluate.ipynb #6996f66c
    @settings(deadline=None, max_examples=25, derandomize=True)
    @given(st.lists(st.text("abc", max_size=30), min_size=1, max_size=5), st.integers(1, 5), st.sampled_from(["<s>", None]))
    def check(documents, batch_size, bos):
        tokenizer = byte_tokenizer(bos=bos)
        if sum(map(len, documents)) < 4: return
        found = [[] for _ in documents]
        for b in batches(documents, tokenizer, 4, 3, batch_size):
            assert len(b.doc) <= batch_size and b.ids.shape[1] <= 4 and not (b.scored & (b.mask == 0)).any()
            inside = b.scored[:, :-1] & (b.mask[:, 1:] == 1)
            assert torch.equal(b.targets[:, :-1][inside], b.ids[:, 1:][inside])
            for d, targets in zip(b.doc.tolist(), b.targets): found[d] += targets[targets >= 0].tolist()
        for text, ids in zip(documents, found): assert sorted(ids) == sorted(encode(tokenizer, text)[1:])

    check()


def test_windows_are_read_in_batches_2():
    # %% ../nbs/03_evaluate.ipynb #c0f5bf5b
    def byte_tokenizer(*merges, bos="<s>"):
        vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        for a, b in merges: vocab[a + b] = len(vocab)
        t = Tokenizer(models.BPE(vocab, list(merges)))
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return PreTrainedTokenizerFast(tokenizer_object=t, bos_token=bos)

    # %% ../nbs/03_evaluate.ipynb #149d5408
    class Counting(torch.nn.Module):
        def __init__(self, letters, alpha=0.5):
            super().__init__()
            ids = byte_tokenizer(bos=None)(letters)["input_ids"]
            self.register_buffer("alpha", torch.zeros(256).index_fill(0, torch.tensor(ids), alpha))

        def forward(self, input_ids, **kwargs):
            seen = F.one_hot(input_ids, 257)[..., :256].cumsum(1)  # (B, T, 256); the token 256 opens a text
            return SimpleNamespace(logits=torch.log(seen + self.alpha))

    # %% ../nbs/03_evaluate.ipynb #217817e3
    def tiny(cls, **kwargs):
        torch.manual_seed(0)
        if cls is GPT2LMHeadModel: return cls(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, vocab_size=264,
                                                                    bos_token_id=256, eos_token_id=256))
        return cls(LlamaConfig(vocab_size=264, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                               num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32, **kwargs))

    # %% ../nbs/03_evaluate.ipynb #579c1b71
    for name, value in batches(["abcde", "ab"], byte_tokenizer(), window=4, stride=2)[0]._asdict().items():
        print(f"{name:8}", value.tolist())

    # %% ../nbs/03_evaluate.ipynb #4239d727
    for stride, size, text in (0, 1, "abcd"), (1, 0, "abcd"), (1, 1, "abc"):
        try: batches([text], byte_tokenizer(), 4, stride, size)
        except SettingError as e: assert "stride=0" in str(e) or "batch_size=0" in str(e)
        except TextError as e: assert "3 tokens" in str(e) and "needs 4" in str(e)
        else: raise AssertionError("impossible batches were made")


def test_the_head_is_computed_where_it_is_scored():
    # %% ../nbs/03_evaluate.ipynb #c0f5bf5b
    def byte_tokenizer(*merges, bos="<s>"):
        vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        for a, b in merges: vocab[a + b] = len(vocab)
        t = Tokenizer(models.BPE(vocab, list(merges)))
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return PreTrainedTokenizerFast(tokenizer_object=t, bos_token=bos)

    # %% ../nbs/03_evaluate.ipynb #149d5408
    class Counting(torch.nn.Module):
        def __init__(self, letters, alpha=0.5):
            super().__init__()
            ids = byte_tokenizer(bos=None)(letters)["input_ids"]
            self.register_buffer("alpha", torch.zeros(256).index_fill(0, torch.tensor(ids), alpha))

        def forward(self, input_ids, **kwargs):
            seen = F.one_hot(input_ids, 257)[..., :256].cumsum(1)  # (B, T, 256); the token 256 opens a text
            return SimpleNamespace(logits=torch.log(seen + self.alpha))

    # %% ../nbs/03_evaluate.ipynb #217817e3
    def tiny(cls, **kwargs):
        torch.manual_seed(0)
        if cls is GPT2LMHeadModel: return cls(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, vocab_size=264,
                                                                    bos_token_id=256, eos_token_id=256))
        return cls(LlamaConfig(vocab_size=264, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                               num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32, **kwargs))

    # %% ../nbs/03_evaluate.ipynb #c5761f83
    def plain_nll(model, batch):
        with torch.no_grad(): logits = model(input_ids=batch.ids, attention_mask=batch.mask).logits
        return F.cross_entropy(logits.float().mT, batch.targets, reduction="none").double().sum(1)

    llama = tiny(LlamaForCausalLM)
    docs = ["the cat sat on the mat and the dog sat on the cat", "a cat", "", "no"]
    todo = batches(docs, byte_tokenizer(), window=16, stride=5, batch_size=3)

    # %% ../nbs/03_evaluate.ipynb #edd23da8
    cases = {"llama": llama, "tied": tiny(LlamaForCausalLM, tie_word_embeddings=True), "gpt2": tiny(GPT2LMHeadModel),
             "bf16": tiny(LlamaForCausalLM).bfloat16(), "counting": Counting("abcdeghmnost ")}
    for name, model in cases.items():
        model.eval()
        tol = 1e-2 if name == "bf16" else 1e-5
        for b in todo: torch.testing.assert_close(batch_nll(model, b), plain_nll(model, b), rtol=tol, atol=tol)


def test_the_head_is_computed_where_it_is_scored_2():
    # %% ../nbs/03_evaluate.ipynb #c0f5bf5b
    def byte_tokenizer(*merges, bos="<s>"):
        vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        for a, b in merges: vocab[a + b] = len(vocab)
        t = Tokenizer(models.BPE(vocab, list(merges)))
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return PreTrainedTokenizerFast(tokenizer_object=t, bos_token=bos)

    # %% ../nbs/03_evaluate.ipynb #149d5408
    class Counting(torch.nn.Module):
        def __init__(self, letters, alpha=0.5):
            super().__init__()
            ids = byte_tokenizer(bos=None)(letters)["input_ids"]
            self.register_buffer("alpha", torch.zeros(256).index_fill(0, torch.tensor(ids), alpha))

        def forward(self, input_ids, **kwargs):
            seen = F.one_hot(input_ids, 257)[..., :256].cumsum(1)  # (B, T, 256); the token 256 opens a text
            return SimpleNamespace(logits=torch.log(seen + self.alpha))

    # %% ../nbs/03_evaluate.ipynb #217817e3
    def tiny(cls, **kwargs):
        torch.manual_seed(0)
        if cls is GPT2LMHeadModel: return cls(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, vocab_size=264,
                                                                    bos_token_id=256, eos_token_id=256))
        return cls(LlamaConfig(vocab_size=264, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                               num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32, **kwargs))

    # %% ../nbs/03_evaluate.ipynb #c5761f83
    def plain_nll(model, batch):
        with torch.no_grad(): logits = model(input_ids=batch.ids, attention_mask=batch.mask).logits
        return F.cross_entropy(logits.float().mT, batch.targets, reduction="none").double().sum(1)

    llama = tiny(LlamaForCausalLM)
    docs = ["the cat sat on the mat and the dog sat on the cat", "a cat", "", "no"]
    todo = batches(docs, byte_tokenizer(), window=16, stride=5, batch_size=3)

    # %% ../nbs/03_evaluate.ipynb #e9e62af8
    head, seen = tiny(LlamaForCausalLM), []
    head.lm_head.register_forward_hook(lambda m, args, out: seen.append(args[0].shape[:-1].numel()))
    for b in todo: batch_nll(head, b)
    assert seen == [int(b.scored.sum()) for b in todo] and not head.lm_head._forward_pre_hooks


def test_the_head_is_computed_where_it_is_scored_3():
    # %% ../nbs/03_evaluate.ipynb #c0f5bf5b
    def byte_tokenizer(*merges, bos="<s>"):
        vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        for a, b in merges: vocab[a + b] = len(vocab)
        t = Tokenizer(models.BPE(vocab, list(merges)))
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return PreTrainedTokenizerFast(tokenizer_object=t, bos_token=bos)

    # %% ../nbs/03_evaluate.ipynb #149d5408
    class Counting(torch.nn.Module):
        def __init__(self, letters, alpha=0.5):
            super().__init__()
            ids = byte_tokenizer(bos=None)(letters)["input_ids"]
            self.register_buffer("alpha", torch.zeros(256).index_fill(0, torch.tensor(ids), alpha))

        def forward(self, input_ids, **kwargs):
            seen = F.one_hot(input_ids, 257)[..., :256].cumsum(1)  # (B, T, 256); the token 256 opens a text
            return SimpleNamespace(logits=torch.log(seen + self.alpha))

    # %% ../nbs/03_evaluate.ipynb #217817e3
    def tiny(cls, **kwargs):
        torch.manual_seed(0)
        if cls is GPT2LMHeadModel: return cls(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, vocab_size=264,
                                                                    bos_token_id=256, eos_token_id=256))
        return cls(LlamaConfig(vocab_size=264, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                               num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32, **kwargs))

    # %% ../nbs/03_evaluate.ipynb #c5761f83
    def plain_nll(model, batch):
        with torch.no_grad(): logits = model(input_ids=batch.ids, attention_mask=batch.mask).logits
        return F.cross_entropy(logits.float().mT, batch.targets, reduction="none").double().sum(1)

    llama = tiny(LlamaForCausalLM)
    docs = ["the cat sat on the mat and the dog sat on the cat", "a cat", "", "no"]
    todo = batches(docs, byte_tokenizer(), window=16, stride=5, batch_size=3)

    # %% ../nbs/03_evaluate.ipynb #7bc7d651
    x, n = document_nll(Counting("ab"), batches(["aab", "b"], byte_tokenizer(), window=4, stride=2))
    assert n.tolist() == [3, 1] and np.allclose(x, [-math.log(1/2 * 3/4 * 1/6), math.log(2)], atol=1e-6)


def test_the_head_is_computed_where_it_is_scored_4():
    # %% ../nbs/03_evaluate.ipynb #c0f5bf5b
    def byte_tokenizer(*merges, bos="<s>"):
        vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        for a, b in merges: vocab[a + b] = len(vocab)
        t = Tokenizer(models.BPE(vocab, list(merges)))
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return PreTrainedTokenizerFast(tokenizer_object=t, bos_token=bos)

    # %% ../nbs/03_evaluate.ipynb #149d5408
    class Counting(torch.nn.Module):
        def __init__(self, letters, alpha=0.5):
            super().__init__()
            ids = byte_tokenizer(bos=None)(letters)["input_ids"]
            self.register_buffer("alpha", torch.zeros(256).index_fill(0, torch.tensor(ids), alpha))

        def forward(self, input_ids, **kwargs):
            seen = F.one_hot(input_ids, 257)[..., :256].cumsum(1)  # (B, T, 256); the token 256 opens a text
            return SimpleNamespace(logits=torch.log(seen + self.alpha))

    # %% ../nbs/03_evaluate.ipynb #217817e3
    def tiny(cls, **kwargs):
        torch.manual_seed(0)
        if cls is GPT2LMHeadModel: return cls(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, vocab_size=264,
                                                                    bos_token_id=256, eos_token_id=256))
        return cls(LlamaConfig(vocab_size=264, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                               num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32, **kwargs))

    # %% ../nbs/03_evaluate.ipynb #c5761f83
    def plain_nll(model, batch):
        with torch.no_grad(): logits = model(input_ids=batch.ids, attention_mask=batch.mask).logits
        return F.cross_entropy(logits.float().mT, batch.targets, reduction="none").double().sum(1)

    llama = tiny(LlamaForCausalLM)
    docs = ["the cat sat on the mat and the dog sat on the cat", "a cat", "", "no"]
    todo = batches(docs, byte_tokenizer(), window=16, stride=5, batch_size=3)

    # %% ../nbs/03_evaluate.ipynb #59503c7f
    llama.train()
    llama.model.layers[0].eval()
    before = [m.training for m in llama.modules()]
    x, n = document_nll(llama, todo)
    for size in 1, 2, 50:
        y, m = document_nll(llama, batches(docs, byte_tokenizer(), 16, 5, size))
        np.testing.assert_allclose(x, y, rtol=1e-5)
        assert n.tolist() == m.tolist() == [len(d) for d in docs]
    assert before == [m.training for m in llama.modules()]


def test_the_head_is_computed_where_it_is_scored_5():
    # %% ../nbs/03_evaluate.ipynb #c0f5bf5b
    def byte_tokenizer(*merges, bos="<s>"):
        vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        for a, b in merges: vocab[a + b] = len(vocab)
        t = Tokenizer(models.BPE(vocab, list(merges)))
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return PreTrainedTokenizerFast(tokenizer_object=t, bos_token=bos)

    # %% ../nbs/03_evaluate.ipynb #149d5408
    class Counting(torch.nn.Module):
        def __init__(self, letters, alpha=0.5):
            super().__init__()
            ids = byte_tokenizer(bos=None)(letters)["input_ids"]
            self.register_buffer("alpha", torch.zeros(256).index_fill(0, torch.tensor(ids), alpha))

        def forward(self, input_ids, **kwargs):
            seen = F.one_hot(input_ids, 257)[..., :256].cumsum(1)  # (B, T, 256); the token 256 opens a text
            return SimpleNamespace(logits=torch.log(seen + self.alpha))

    # %% ../nbs/03_evaluate.ipynb #217817e3
    def tiny(cls, **kwargs):
        torch.manual_seed(0)
        if cls is GPT2LMHeadModel: return cls(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, vocab_size=264,
                                                                    bos_token_id=256, eos_token_id=256))
        return cls(LlamaConfig(vocab_size=264, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                               num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32, **kwargs))

    # %% ../nbs/03_evaluate.ipynb #c5761f83
    def plain_nll(model, batch):
        with torch.no_grad(): logits = model(input_ids=batch.ids, attention_mask=batch.mask).logits
        return F.cross_entropy(logits.float().mT, batch.targets, reduction="none").double().sum(1)

    llama = tiny(LlamaForCausalLM)
    docs = ["the cat sat on the mat and the dog sat on the cat", "a cat", "", "no"]
    todo = batches(docs, byte_tokenizer(), window=16, stride=5, batch_size=3)

    # %% ../nbs/03_evaluate.ipynb #27fa9a81
    for bad in math.nan, math.inf:
        broken = tiny(LlamaForCausalLM)
        with torch.no_grad(): broken.model.norm.weight[0] = bad
        assert np.isinf(document_nll(broken, todo)[0][[0, 1, 3]]).all()


def test_the_loss_is_a_ratio_and_so_is_its_error():
    # %% ../nbs/03_evaluate.ipynb #c0f5bf5b
    def byte_tokenizer(*merges, bos="<s>"):
        vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        for a, b in merges: vocab[a + b] = len(vocab)
        t = Tokenizer(models.BPE(vocab, list(merges)))
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return PreTrainedTokenizerFast(tokenizer_object=t, bos_token=bos)

    # %% ../nbs/03_evaluate.ipynb #149d5408
    class Counting(torch.nn.Module):
        def __init__(self, letters, alpha=0.5):
            super().__init__()
            ids = byte_tokenizer(bos=None)(letters)["input_ids"]
            self.register_buffer("alpha", torch.zeros(256).index_fill(0, torch.tensor(ids), alpha))

        def forward(self, input_ids, **kwargs):
            seen = F.one_hot(input_ids, 257)[..., :256].cumsum(1)  # (B, T, 256); the token 256 opens a text
            return SimpleNamespace(logits=torch.log(seen + self.alpha))

    # %% ../nbs/03_evaluate.ipynb #217817e3
    def tiny(cls, **kwargs):
        torch.manual_seed(0)
        if cls is GPT2LMHeadModel: return cls(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, vocab_size=264,
                                                                    bos_token_id=256, eos_token_id=256))
        return cls(LlamaConfig(vocab_size=264, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                               num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32, **kwargs))

    # %% ../nbs/03_evaluate.ipynb #2436d0aa
    rng = np.random.default_rng(0)

    # %% ../nbs/03_evaluate.ipynb #9f3a8905
    x, n = rng.gamma(2, 3, 30), np.full(30, 7)
    assert np.allclose(ratio(x, n), ((x / 7).mean(), (x / 7).std(ddof=1) / math.sqrt(30)))
    assert np.isnan(ratio(x[:1], n[:1])[1]) and ratio(np.array([1, math.inf]), n[:2])[0] == math.inf


def test_the_loss_is_a_ratio_and_so_is_its_error_2():
    # %% ../nbs/03_evaluate.ipynb #c0f5bf5b
    def byte_tokenizer(*merges, bos="<s>"):
        vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        for a, b in merges: vocab[a + b] = len(vocab)
        t = Tokenizer(models.BPE(vocab, list(merges)))
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return PreTrainedTokenizerFast(tokenizer_object=t, bos_token=bos)

    # %% ../nbs/03_evaluate.ipynb #149d5408
    class Counting(torch.nn.Module):
        def __init__(self, letters, alpha=0.5):
            super().__init__()
            ids = byte_tokenizer(bos=None)(letters)["input_ids"]
            self.register_buffer("alpha", torch.zeros(256).index_fill(0, torch.tensor(ids), alpha))

        def forward(self, input_ids, **kwargs):
            seen = F.one_hot(input_ids, 257)[..., :256].cumsum(1)  # (B, T, 256); the token 256 opens a text
            return SimpleNamespace(logits=torch.log(seen + self.alpha))

    # %% ../nbs/03_evaluate.ipynb #217817e3
    def tiny(cls, **kwargs):
        torch.manual_seed(0)
        if cls is GPT2LMHeadModel: return cls(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, vocab_size=264,
                                                                    bos_token_id=256, eos_token_id=256))
        return cls(LlamaConfig(vocab_size=264, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                               num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32, **kwargs))

    # %% ../nbs/03_evaluate.ipynb #2436d0aa
    rng = np.random.default_rng(0)

    # %% ../nbs/03_evaluate.ipynb #729a9c9c
    n = rng.integers(50, 1000, 120)
    x = n * rng.normal(2, 0.3, 120)
    draws = rng.integers(0, 120, (4000, 120))
    bootstrap = (x[draws].sum(1) / n[draws].sum(1)).std()
    print(f"equation (2) {ratio(x, n)[1]:.4f}, bootstrap {bootstrap:.4f}")
    assert abs(ratio(x, n)[1] / bootstrap - 1) < 0.05


def test_the_loss_is_a_ratio_and_so_is_its_error_3():
    # %% ../nbs/03_evaluate.ipynb #c0f5bf5b
    def byte_tokenizer(*merges, bos="<s>"):
        vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        for a, b in merges: vocab[a + b] = len(vocab)
        t = Tokenizer(models.BPE(vocab, list(merges)))
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return PreTrainedTokenizerFast(tokenizer_object=t, bos_token=bos)

    # %% ../nbs/03_evaluate.ipynb #149d5408
    class Counting(torch.nn.Module):
        def __init__(self, letters, alpha=0.5):
            super().__init__()
            ids = byte_tokenizer(bos=None)(letters)["input_ids"]
            self.register_buffer("alpha", torch.zeros(256).index_fill(0, torch.tensor(ids), alpha))

        def forward(self, input_ids, **kwargs):
            seen = F.one_hot(input_ids, 257)[..., :256].cumsum(1)  # (B, T, 256); the token 256 opens a text
            return SimpleNamespace(logits=torch.log(seen + self.alpha))

    # %% ../nbs/03_evaluate.ipynb #217817e3
    def tiny(cls, **kwargs):
        torch.manual_seed(0)
        if cls is GPT2LMHeadModel: return cls(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, vocab_size=264,
                                                                    bos_token_id=256, eos_token_id=256))
        return cls(LlamaConfig(vocab_size=264, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                               num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32, **kwargs))

    # %% ../nbs/03_evaluate.ipynb #2436d0aa
    rng = np.random.default_rng(0)

    # %% ../nbs/03_evaluate.ipynb #3785b121
    low, mid, high = (perplexity(1 + d, 0.2) for d in (-1e-4, 0, 1e-4))
    assert math.isclose(mid[0], math.e) and math.isclose(mid[1], (high[0] - low[0]) / 2e-4 * 0.2, rel_tol=1e-6)
    assert perplexity(800, 1) == perplexity(math.inf, 1) == (math.inf, math.inf)


def test_the_loss_is_a_ratio_and_so_is_its_error_4():
    # %% ../nbs/03_evaluate.ipynb #c0f5bf5b
    def byte_tokenizer(*merges, bos="<s>"):
        vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        for a, b in merges: vocab[a + b] = len(vocab)
        t = Tokenizer(models.BPE(vocab, list(merges)))
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return PreTrainedTokenizerFast(tokenizer_object=t, bos_token=bos)

    # %% ../nbs/03_evaluate.ipynb #149d5408
    class Counting(torch.nn.Module):
        def __init__(self, letters, alpha=0.5):
            super().__init__()
            ids = byte_tokenizer(bos=None)(letters)["input_ids"]
            self.register_buffer("alpha", torch.zeros(256).index_fill(0, torch.tensor(ids), alpha))

        def forward(self, input_ids, **kwargs):
            seen = F.one_hot(input_ids, 257)[..., :256].cumsum(1)  # (B, T, 256); the token 256 opens a text
            return SimpleNamespace(logits=torch.log(seen + self.alpha))

    # %% ../nbs/03_evaluate.ipynb #217817e3
    def tiny(cls, **kwargs):
        torch.manual_seed(0)
        if cls is GPT2LMHeadModel: return cls(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, vocab_size=264,
                                                                    bos_token_id=256, eos_token_id=256))
        return cls(LlamaConfig(vocab_size=264, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                               num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32, **kwargs))

    # %% ../nbs/03_evaluate.ipynb #2436d0aa
    rng = np.random.default_rng(0)

    # %% ../nbs/03_evaluate.ipynb #7203c0bc
    row = summarize(np.array([2., 4.]), np.array([1, 3]), chars=8)
    assert row == {"loss": 1.5, "loss_se": math.sqrt(2 * 0.5) / 4, "perplexity": math.exp(1.5),
                   "bits_per_char": 6 / math.log(2) / 8, "tokens": 4, "chars": 8}
    assert summarize(np.array([2.]), np.array([1]), 2)["loss_se"] is None


def test_the_loss_is_a_ratio_and_so_is_its_error_5():
    # %% ../nbs/03_evaluate.ipynb #c0f5bf5b
    def byte_tokenizer(*merges, bos="<s>"):
        vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        for a, b in merges: vocab[a + b] = len(vocab)
        t = Tokenizer(models.BPE(vocab, list(merges)))
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return PreTrainedTokenizerFast(tokenizer_object=t, bos_token=bos)

    # %% ../nbs/03_evaluate.ipynb #149d5408
    class Counting(torch.nn.Module):
        def __init__(self, letters, alpha=0.5):
            super().__init__()
            ids = byte_tokenizer(bos=None)(letters)["input_ids"]
            self.register_buffer("alpha", torch.zeros(256).index_fill(0, torch.tensor(ids), alpha))

        def forward(self, input_ids, **kwargs):
            seen = F.one_hot(input_ids, 257)[..., :256].cumsum(1)  # (B, T, 256); the token 256 opens a text
            return SimpleNamespace(logits=torch.log(seen + self.alpha))

    # %% ../nbs/03_evaluate.ipynb #217817e3
    def tiny(cls, **kwargs):
        torch.manual_seed(0)
        if cls is GPT2LMHeadModel: return cls(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, vocab_size=264,
                                                                    bos_token_id=256, eos_token_id=256))
        return cls(LlamaConfig(vocab_size=264, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                               num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32, **kwargs))

    # %% ../nbs/03_evaluate.ipynb #2436d0aa
    rng = np.random.default_rng(0)

    # %% ../nbs/03_evaluate.ipynb #c90aa9b2
    words = dict(vocab_size=264, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    ids = torch.arange(8)[None]
    for model in Counting("abc"), tiny(GPT2LMHeadModel), tiny(LlamaForCausalLM, sliding_window=4): check_causal(model, ids)
    for kind, message in (BertForMaskedLM, "depends on later ones"), (BertForSequenceClassification, "of shape (1, 2)"):
        try: check_causal(kind(BertConfig(**words)), ids)
        except SettingError as e: assert message in str(e)
        else: raise AssertionError(f"{kind.__name__} passed for a causal model")


def test_the_loss_is_a_ratio_and_so_is_its_error_6():
    # %% ../nbs/03_evaluate.ipynb #c0f5bf5b
    def byte_tokenizer(*merges, bos="<s>"):
        vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        for a, b in merges: vocab[a + b] = len(vocab)
        t = Tokenizer(models.BPE(vocab, list(merges)))
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return PreTrainedTokenizerFast(tokenizer_object=t, bos_token=bos)

    # %% ../nbs/03_evaluate.ipynb #149d5408
    class Counting(torch.nn.Module):
        def __init__(self, letters, alpha=0.5):
            super().__init__()
            ids = byte_tokenizer(bos=None)(letters)["input_ids"]
            self.register_buffer("alpha", torch.zeros(256).index_fill(0, torch.tensor(ids), alpha))

        def forward(self, input_ids, **kwargs):
            seen = F.one_hot(input_ids, 257)[..., :256].cumsum(1)  # (B, T, 256); the token 256 opens a text
            return SimpleNamespace(logits=torch.log(seen + self.alpha))

    # %% ../nbs/03_evaluate.ipynb #217817e3
    def tiny(cls, **kwargs):
        torch.manual_seed(0)
        if cls is GPT2LMHeadModel: return cls(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, vocab_size=264,
                                                                    bos_token_id=256, eos_token_id=256))
        return cls(LlamaConfig(vocab_size=264, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                               num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32, **kwargs))

    # %% ../nbs/03_evaluate.ipynb #2436d0aa
    rng = np.random.default_rng(0)

    # %% ../nbs/03_evaluate.ipynb #acca2b13
    same = dict(vocab_size=264, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    for ids in torch.full((1, 8), 61), torch.zeros(1, 8, dtype=torch.long), torch.full((1, 1), 61):  # "========", say
        check_causal(tiny(GPT2LMHeadModel), ids)
        try: check_causal(BertForMaskedLM(BertConfig(**same)), ids)
        except SettingError as e: assert "depends on later ones" in str(e)
        else: raise AssertionError("BERT passed for a causal model")


def test_the_loss_is_a_ratio_and_so_is_its_error_7():
    # %% ../nbs/03_evaluate.ipynb #c0f5bf5b
    def byte_tokenizer(*merges, bos="<s>"):
        vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        for a, b in merges: vocab[a + b] = len(vocab)
        t = Tokenizer(models.BPE(vocab, list(merges)))
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return PreTrainedTokenizerFast(tokenizer_object=t, bos_token=bos)

    # %% ../nbs/03_evaluate.ipynb #149d5408
    class Counting(torch.nn.Module):
        def __init__(self, letters, alpha=0.5):
            super().__init__()
            ids = byte_tokenizer(bos=None)(letters)["input_ids"]
            self.register_buffer("alpha", torch.zeros(256).index_fill(0, torch.tensor(ids), alpha))

        def forward(self, input_ids, **kwargs):
            seen = F.one_hot(input_ids, 257)[..., :256].cumsum(1)  # (B, T, 256); the token 256 opens a text
            return SimpleNamespace(logits=torch.log(seen + self.alpha))

    # %% ../nbs/03_evaluate.ipynb #217817e3
    def tiny(cls, **kwargs):
        torch.manual_seed(0)
        if cls is GPT2LMHeadModel: return cls(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, vocab_size=264,
                                                                    bos_token_id=256, eos_token_id=256))
        return cls(LlamaConfig(vocab_size=264, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                               num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32, **kwargs))

    # %% ../nbs/03_evaluate.ipynb #2436d0aa
    rng = np.random.default_rng(0)

    # %% ../nbs/03_evaluate.ipynb #a1560a1c
    row = evaluate(Counting("abc"), byte_tokenizer(), ["abcab", "cab"], window=8)
    {k: round(v, 3) for k, v in row.items()}

    # %% ../nbs/03_evaluate.ipynb #627f37d4
    if data := os.environ.get("PATHLM_DATA"):
        small = AutoModelForCausalLM.from_pretrained(f"{data}/models/stories260K")
        tokenizer = AutoTokenizer.from_pretrained(f"{data}/models/stories260K")
        texts = read_documents(f"{data}/text/tinystories/tinystories_5k.jsonl")[-500:]
        stories = [encode(tokenizer, text)[:513] for text in texts]
        x, n = document_nll(small, pack([(ids[:-1], ids[1:], d) for d, ids in enumerate(stories)], batch_size=16))
        row = summarize(x, n, sum(len(tokenizer.decode(ids[1:])) for ids in stories))
        assert abs(row["loss"] - 1.2803) < 2e-4 and abs(row["bits_per_char"] - 0.892) < 5e-4


def test_two_models_are_compared_on_the_same_documents():
    # %% ../nbs/03_evaluate.ipynb #c0f5bf5b
    def byte_tokenizer(*merges, bos="<s>"):
        vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        for a, b in merges: vocab[a + b] = len(vocab)
        t = Tokenizer(models.BPE(vocab, list(merges)))
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return PreTrainedTokenizerFast(tokenizer_object=t, bos_token=bos)

    # %% ../nbs/03_evaluate.ipynb #149d5408
    class Counting(torch.nn.Module):
        def __init__(self, letters, alpha=0.5):
            super().__init__()
            ids = byte_tokenizer(bos=None)(letters)["input_ids"]
            self.register_buffer("alpha", torch.zeros(256).index_fill(0, torch.tensor(ids), alpha))

        def forward(self, input_ids, **kwargs):
            seen = F.one_hot(input_ids, 257)[..., :256].cumsum(1)  # (B, T, 256); the token 256 opens a text
            return SimpleNamespace(logits=torch.log(seen + self.alpha))

    # %% ../nbs/03_evaluate.ipynb #217817e3
    def tiny(cls, **kwargs):
        torch.manual_seed(0)
        if cls is GPT2LMHeadModel: return cls(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, vocab_size=264,
                                                                    bos_token_id=256, eos_token_id=256))
        return cls(LlamaConfig(vocab_size=264, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                               num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32, **kwargs))

    # %% ../nbs/03_evaluate.ipynb #61b0a088
    rng, K = np.random.default_rng(1), 8
    P = rng.dirichlet([1/2] * K, size=48)                          # (D, K) the letters' probabilities
    letters = [rng.choice(K, size=512, p=p) for p in P]
    texts = ["".join("abcdefgh"[k] for k in l) for l in letters]
    print(texts[0][:60], texts[1][:60], sep="\n")

    # %% ../nbs/03_evaluate.ipynb #1aeb4169
    todo = batches(texts, byte_tokenizer(), window=64, stride=16, batch_size=64)
    (a, n), (b, _) = (document_nll(Counting("abcdefgh", alpha), todo) for alpha in (2, 0.5))

    # %% ../nbs/03_evaluate.ipynb #c44419a7
    unpaired = math.hypot(ratio(a, n)[1], ratio(b, n)[1])
    print(f"α = 2 {ratio(a, n)[0]:.3f} ± {ratio(a, n)[1]:.3f}, α = ½ {ratio(b, n)[0]:.3f} ± {ratio(b, n)[1]:.3f}")
    print(f"difference {paired(a, b, n)[0]:.4f} ± {paired(a, b, n)[1]:.4f}, taken for independent ± {unpaired:.4f}")
    assert 10 * paired(a, b, n)[1] < unpaired and paired(a, a, n) == (0, 0)
    assert math.isclose(paired(a, b, n)[0], ratio(a, n)[0] - ratio(b, n)[0])


def test_what_the_stride_costs_and_gives():
    # %% ../nbs/03_evaluate.ipynb #c0f5bf5b
    def byte_tokenizer(*merges, bos="<s>"):
        vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        for a, b in merges: vocab[a + b] = len(vocab)
        t = Tokenizer(models.BPE(vocab, list(merges)))
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return PreTrainedTokenizerFast(tokenizer_object=t, bos_token=bos)

    # %% ../nbs/03_evaluate.ipynb #149d5408
    class Counting(torch.nn.Module):
        def __init__(self, letters, alpha=0.5):
            super().__init__()
            ids = byte_tokenizer(bos=None)(letters)["input_ids"]
            self.register_buffer("alpha", torch.zeros(256).index_fill(0, torch.tensor(ids), alpha))

        def forward(self, input_ids, **kwargs):
            seen = F.one_hot(input_ids, 257)[..., :256].cumsum(1)  # (B, T, 256); the token 256 opens a text
            return SimpleNamespace(logits=torch.log(seen + self.alpha))

    # %% ../nbs/03_evaluate.ipynb #217817e3
    def tiny(cls, **kwargs):
        torch.manual_seed(0)
        if cls is GPT2LMHeadModel: return cls(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, vocab_size=264,
                                                                    bos_token_id=256, eos_token_id=256))
        return cls(LlamaConfig(vocab_size=264, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                               num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32, **kwargs))

    # %% ../nbs/03_evaluate.ipynb #61b0a088
    rng, K = np.random.default_rng(1), 8
    P = rng.dirichlet([1/2] * K, size=48)                          # (D, K) the letters' probabilities
    letters = [rng.choice(K, size=512, p=p) for p in P]
    texts = ["".join("abcdefgh"[k] for k in l) for l in letters]
    print(texts[0][:60], texts[1][:60], sep="\n")

    # %% ../nbs/03_evaluate.ipynb #6c4b0e8c
    def expected(c):
        k = np.arange(c + 1)
        p = (k + 1/2) / (c + K/2)
        return -K * (betabinom.pmf(k, c, 1/2, (K - 1) / 2) * p * np.log(p)).sum()

    limit = digamma(K/2 + 1) - digamma(3/2)
    print(*(f"{expected(c) - limit:.3f}" for c in (0, 1, 8, 64, 512)))

    # %% ../nbs/03_evaluate.ipynb #741bad32
    assert math.isclose(expected(0), math.log(K)) and abs((expected(8000) - limit) / ((K - 1) / 16000) - 1) < 0.02


def test_what_the_stride_costs_and_gives_2():
    # %% ../nbs/03_evaluate.ipynb #c0f5bf5b
    def byte_tokenizer(*merges, bos="<s>"):
        vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        for a, b in merges: vocab[a + b] = len(vocab)
        t = Tokenizer(models.BPE(vocab, list(merges)))
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return PreTrainedTokenizerFast(tokenizer_object=t, bos_token=bos)

    # %% ../nbs/03_evaluate.ipynb #149d5408
    class Counting(torch.nn.Module):
        def __init__(self, letters, alpha=0.5):
            super().__init__()
            ids = byte_tokenizer(bos=None)(letters)["input_ids"]
            self.register_buffer("alpha", torch.zeros(256).index_fill(0, torch.tensor(ids), alpha))

        def forward(self, input_ids, **kwargs):
            seen = F.one_hot(input_ids, 257)[..., :256].cumsum(1)  # (B, T, 256); the token 256 opens a text
            return SimpleNamespace(logits=torch.log(seen + self.alpha))

    # %% ../nbs/03_evaluate.ipynb #217817e3
    def tiny(cls, **kwargs):
        torch.manual_seed(0)
        if cls is GPT2LMHeadModel: return cls(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, vocab_size=264,
                                                                    bos_token_id=256, eos_token_id=256))
        return cls(LlamaConfig(vocab_size=264, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                               num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32, **kwargs))

    # %% ../nbs/03_evaluate.ipynb #61b0a088
    rng, K = np.random.default_rng(1), 8
    P = rng.dirichlet([1/2] * K, size=48)                          # (D, K) the letters' probabilities
    letters = [rng.choice(K, size=512, p=p) for p in P]
    texts = ["".join("abcdefgh"[k] for k in l) for l in letters]
    print(texts[0][:60], texts[1][:60], sep="\n")

    # %% ../nbs/03_evaluate.ipynb #6c4b0e8c
    def expected(c):
        k = np.arange(c + 1)
        p = (k + 1/2) / (c + K/2)
        return -K * (betabinom.pmf(k, c, 1/2, (K - 1) / 2) * p * np.log(p)).sum()

    limit = digamma(K/2 + 1) - digamma(3/2)
    print(*(f"{expected(c) - limit:.3f}" for c in (0, 1, 8, 64, 512)))

    # %% ../nbs/03_evaluate.ipynb #f01e7696
    def excess(stride, window=64):
        todo = batches(texts, byte_tokenizer(), window, stride, batch_size=64)
        x, n = document_nll(Counting("abcdefgh"), todo)
        entropy = np.array([-np.log(p[l]).sum() for p, l in zip(P, letters)])
        spans = windows(513, window, stride)
        contexts = [t - max(start, 1) for start, stop, first in spans for t in range(first, stop + 1)]  # in letters
        theory = np.mean([expected(c) for c in contexts]) - limit
        return *paired(x, entropy, n), theory, sum(int(b.mask.sum()) for b in todo) / n.sum()

    # %% ../nbs/03_evaluate.ipynb #c818fb3b
    strides = [64, 32, 16, 8]
    rows = np.array([excess(s) for s in strides])
    print("stride   excess ± se       theory   tokens read per token scored")
    for s, (mean, se, theory, cost) in zip(strides, rows):
        print(f"{s:6}   {mean:.4f} ± {se:.4f}   {theory:.4f}   {cost:.1f}")
    assert (abs(rows[:, 0] - rows[:, 2]) < 3 * rows[:, 1]).all() and rows[:, 1].max() < 0.01
    assert np.allclose(rows[:, 3], [64 / s * (1 - (64 - s) / 512) for s in strides])


def test_multiple_choice():
    # %% ../nbs/03_evaluate.ipynb #c0f5bf5b
    def byte_tokenizer(*merges, bos="<s>"):
        vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        for a, b in merges: vocab[a + b] = len(vocab)
        t = Tokenizer(models.BPE(vocab, list(merges)))
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return PreTrainedTokenizerFast(tokenizer_object=t, bos_token=bos)

    # %% ../nbs/03_evaluate.ipynb #149d5408
    class Counting(torch.nn.Module):
        def __init__(self, letters, alpha=0.5):
            super().__init__()
            ids = byte_tokenizer(bos=None)(letters)["input_ids"]
            self.register_buffer("alpha", torch.zeros(256).index_fill(0, torch.tensor(ids), alpha))

        def forward(self, input_ids, **kwargs):
            seen = F.one_hot(input_ids, 257)[..., :256].cumsum(1)  # (B, T, 256); the token 256 opens a text
            return SimpleNamespace(logits=torch.log(seen + self.alpha))

    # %% ../nbs/03_evaluate.ipynb #217817e3
    def tiny(cls, **kwargs):
        torch.manual_seed(0)
        if cls is GPT2LMHeadModel: return cls(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, vocab_size=264,
                                                                    bos_token_id=256, eos_token_id=256))
        return cls(LlamaConfig(vocab_size=264, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                               num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32, **kwargs))

    # %% ../nbs/03_evaluate.ipynb #6634f796
    reviews = [{"text": t, "label": int(t in ("good", "fine", "great", "ok"))}
               for t in ("good", "dull", "fine", "great", "bad", "ok")]
    words = {0: " no", 1: " yes"}

    # %% ../nbs/03_evaluate.ipynb #a5f07c13
    print(few_shot(reviews, "{text}?", words, shots=4, gap="\n"), end="")

    # %% ../nbs/03_evaluate.ipynb #019dd826
    for seed in range(20):
        shown = few_shot(reviews, "{text}?", words, shots=4, seed=seed)
        assert shown.count(" yes") == shown.count(" no") == 2 and len(set(shown.split("\n\n"))) == 5
        assert few_shot(reviews, "{text}?", words, shots=6, seed=seed).count(" no") == 2
    assert few_shot(reviews, "{text}?", words, shots=0) == ""
    assert len({few_shot(reviews, "{text}?", words, shots=4, seed=seed) for seed in range(20)}) > 10
    for shots in 7, -1:
        try: few_shot(reviews, "{text}?", words, shots=shots)
        except SettingError as e: assert f"shots={shots}" in str(e) and "6 labelled" in str(e)
        else: raise AssertionError(f"{shots} of six examples were shown")


def test_multiple_choice_2():
    # %% ../nbs/03_evaluate.ipynb #c0f5bf5b
    def byte_tokenizer(*merges, bos="<s>"):
        vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        for a, b in merges: vocab[a + b] = len(vocab)
        t = Tokenizer(models.BPE(vocab, list(merges)))
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return PreTrainedTokenizerFast(tokenizer_object=t, bos_token=bos)

    # %% ../nbs/03_evaluate.ipynb #149d5408
    class Counting(torch.nn.Module):
        def __init__(self, letters, alpha=0.5):
            super().__init__()
            ids = byte_tokenizer(bos=None)(letters)["input_ids"]
            self.register_buffer("alpha", torch.zeros(256).index_fill(0, torch.tensor(ids), alpha))

        def forward(self, input_ids, **kwargs):
            seen = F.one_hot(input_ids, 257)[..., :256].cumsum(1)  # (B, T, 256); the token 256 opens a text
            return SimpleNamespace(logits=torch.log(seen + self.alpha))

    # %% ../nbs/03_evaluate.ipynb #217817e3
    def tiny(cls, **kwargs):
        torch.manual_seed(0)
        if cls is GPT2LMHeadModel: return cls(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, vocab_size=264,
                                                                    bos_token_id=256, eos_token_id=256))
        return cls(LlamaConfig(vocab_size=264, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                               num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32, **kwargs))

    # %% ../nbs/03_evaluate.ipynb #6634f796
    reviews = [{"text": t, "label": int(t in ("good", "fine", "great", "ok"))}
               for t in ("good", "dull", "fine", "great", "bad", "ok")]
    words = {0: " no", 1: " yes"}

    # %% ../nbs/03_evaluate.ipynb #a5f07c13
    print(few_shot(reviews, "{text}?", words, shots=4, gap="\n"), end="")

    # %% ../nbs/03_evaluate.ipynb #25be7aeb
    tokenizer = byte_tokenizer(("Ġ", "y"), ("Ġy", "e"), ("Ġye", "s"))
    for text in "is ", "is yes", "is 12": print(tokenizer.convert_ids_to_tokens(encode(tokenizer, text)))

    # %% ../nbs/03_evaluate.ipynb #2ca5b4cd
    assert common_prefix([encode(tokenizer, t) for t in ("is ", "is yes", "is 12")]) == 3  # <s> i s
    assert common_prefix([encode(tokenizer, t) for t in ("is ", "is 11", "is 12")]) == 4
    assert common_prefix([[1, 2], [1, 2, 3]]) == 2


def test_multiple_choice_3():
    # %% ../nbs/03_evaluate.ipynb #c0f5bf5b
    def byte_tokenizer(*merges, bos="<s>"):
        vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        for a, b in merges: vocab[a + b] = len(vocab)
        t = Tokenizer(models.BPE(vocab, list(merges)))
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return PreTrainedTokenizerFast(tokenizer_object=t, bos_token=bos)

    # %% ../nbs/03_evaluate.ipynb #149d5408
    class Counting(torch.nn.Module):
        def __init__(self, letters, alpha=0.5):
            super().__init__()
            ids = byte_tokenizer(bos=None)(letters)["input_ids"]
            self.register_buffer("alpha", torch.zeros(256).index_fill(0, torch.tensor(ids), alpha))

        def forward(self, input_ids, **kwargs):
            seen = F.one_hot(input_ids, 257)[..., :256].cumsum(1)  # (B, T, 256); the token 256 opens a text
            return SimpleNamespace(logits=torch.log(seen + self.alpha))

    # %% ../nbs/03_evaluate.ipynb #217817e3
    def tiny(cls, **kwargs):
        torch.manual_seed(0)
        if cls is GPT2LMHeadModel: return cls(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, vocab_size=264,
                                                                    bos_token_id=256, eos_token_id=256))
        return cls(LlamaConfig(vocab_size=264, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                               num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32, **kwargs))

    # %% ../nbs/03_evaluate.ipynb #6634f796
    reviews = [{"text": t, "label": int(t in ("good", "fine", "great", "ok"))}
               for t in ("good", "dull", "fine", "great", "bad", "ok")]
    words = {0: " no", 1: " yes"}

    # %% ../nbs/03_evaluate.ipynb #a5f07c13
    print(few_shot(reviews, "{text}?", words, shots=4, gap="\n"), end="")

    # %% ../nbs/03_evaluate.ipynb #25be7aeb
    tokenizer = byte_tokenizer(("Ġ", "y"), ("Ġy", "e"), ("Ġye", "s"))
    for text in "is ", "is yes", "is 12": print(tokenizer.convert_ids_to_tokens(encode(tokenizer, text)))

    # %% ../nbs/03_evaluate.ipynb #52276b8a
    item = choices_loglik(Counting("ab"), byte_tokenizer(), ["ab", "a"], [["a", "ab"], ["b"]])
    assert np.allclose(item.loglik[0], [math.log(1/2), math.log(1/2 * 3/8)], atol=1e-6)
    assert np.isclose(item.loglik[1, 0], math.log(1/4), atol=1e-6) and np.isnan([c[1, 1] for c in item]).all()
    assert item.tokens[0].tolist() == item.chars[0].tolist() == [1, 2]


def test_multiple_choice_4():
    # %% ../nbs/03_evaluate.ipynb #c0f5bf5b
    def byte_tokenizer(*merges, bos="<s>"):
        vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        for a, b in merges: vocab[a + b] = len(vocab)
        t = Tokenizer(models.BPE(vocab, list(merges)))
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return PreTrainedTokenizerFast(tokenizer_object=t, bos_token=bos)

    # %% ../nbs/03_evaluate.ipynb #149d5408
    class Counting(torch.nn.Module):
        def __init__(self, letters, alpha=0.5):
            super().__init__()
            ids = byte_tokenizer(bos=None)(letters)["input_ids"]
            self.register_buffer("alpha", torch.zeros(256).index_fill(0, torch.tensor(ids), alpha))

        def forward(self, input_ids, **kwargs):
            seen = F.one_hot(input_ids, 257)[..., :256].cumsum(1)  # (B, T, 256); the token 256 opens a text
            return SimpleNamespace(logits=torch.log(seen + self.alpha))

    # %% ../nbs/03_evaluate.ipynb #217817e3
    def tiny(cls, **kwargs):
        torch.manual_seed(0)
        if cls is GPT2LMHeadModel: return cls(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, vocab_size=264,
                                                                    bos_token_id=256, eos_token_id=256))
        return cls(LlamaConfig(vocab_size=264, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                               num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32, **kwargs))

    # %% ../nbs/03_evaluate.ipynb #6634f796
    reviews = [{"text": t, "label": int(t in ("good", "fine", "great", "ok"))}
               for t in ("good", "dull", "fine", "great", "bad", "ok")]
    words = {0: " no", 1: " yes"}

    # %% ../nbs/03_evaluate.ipynb #a5f07c13
    print(few_shot(reviews, "{text}?", words, shots=4, gap="\n"), end="")

    # %% ../nbs/03_evaluate.ipynb #25be7aeb
    tokenizer = byte_tokenizer(("Ġ", "y"), ("Ġy", "e"), ("Ġye", "s"))
    for text in "is ", "is yes", "is 12": print(tokenizer.convert_ids_to_tokens(encode(tokenizer, text)))

    # %% ../nbs/03_evaluate.ipynb #30da2545
    loglik = np.array([[-1, -4, np.nan], [-2, -2, -2], [-3, -4, -9], [-math.inf, -math.inf, np.nan]])
    assert np.allclose(credit(loglik, [0, 1, 2, 0]), [1, 1/3, 0, 1/2])
    lengths = np.array([[1, 5, np.nan], [1, 2, 3], [1, 1, 9], [1, 1, np.nan]])
    assert np.allclose(credit(loglik, [1, 0, 2, 0], lengths), [1, 0, 1, 1/2])
    p, se = accuracy(np.array([1., 0, 1, 1]))
    assert p == 0.75 and math.isclose(se, math.sqrt(0.75 * 0.25 / 3)) and math.isnan(accuracy(np.ones(1))[1])


def test_multiple_choice_5():
    # %% ../nbs/03_evaluate.ipynb #c0f5bf5b
    def byte_tokenizer(*merges, bos="<s>"):
        vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        for a, b in merges: vocab[a + b] = len(vocab)
        t = Tokenizer(models.BPE(vocab, list(merges)))
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return PreTrainedTokenizerFast(tokenizer_object=t, bos_token=bos)

    # %% ../nbs/03_evaluate.ipynb #149d5408
    class Counting(torch.nn.Module):
        def __init__(self, letters, alpha=0.5):
            super().__init__()
            ids = byte_tokenizer(bos=None)(letters)["input_ids"]
            self.register_buffer("alpha", torch.zeros(256).index_fill(0, torch.tensor(ids), alpha))

        def forward(self, input_ids, **kwargs):
            seen = F.one_hot(input_ids, 257)[..., :256].cumsum(1)  # (B, T, 256); the token 256 opens a text
            return SimpleNamespace(logits=torch.log(seen + self.alpha))

    # %% ../nbs/03_evaluate.ipynb #217817e3
    def tiny(cls, **kwargs):
        torch.manual_seed(0)
        if cls is GPT2LMHeadModel: return cls(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, vocab_size=264,
                                                                    bos_token_id=256, eos_token_id=256))
        return cls(LlamaConfig(vocab_size=264, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                               num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32, **kwargs))

    # %% ../nbs/03_evaluate.ipynb #6634f796
    reviews = [{"text": t, "label": int(t in ("good", "fine", "great", "ok"))}
               for t in ("good", "dull", "fine", "great", "bad", "ok")]
    words = {0: " no", 1: " yes"}

    # %% ../nbs/03_evaluate.ipynb #a5f07c13
    print(few_shot(reviews, "{text}?", words, shots=4, gap="\n"), end="")

    # %% ../nbs/03_evaluate.ipynb #25be7aeb
    tokenizer = byte_tokenizer(("Ġ", "y"), ("Ġy", "e"), ("Ġye", "s"))
    for text in "is ", "is yes", "is 12": print(tokenizer.convert_ids_to_tokens(encode(tokenizer, text)))

    # %% ../nbs/03_evaluate.ipynb #be4d9d91
    prompts = ["the cat sat on ", "is ", "", "the dog is "]
    options = [["the mat", "a", "the cat"], ["yes", "12", "no"], ["a", "b", "c"], ["yes", "no", "on the mat"]]
    base = choices_loglik(llama := tiny(LlamaForCausalLM).eval(), tokenizer, prompts, options)
    for size in 1, 5, 100:
        turned = choices_loglik(llama, tokenizer, prompts, [texts[::-1] for texts in options], size)
        for a, b in zip(base, turned): np.testing.assert_allclose(a, b[:, ::-1], rtol=1e-5)


def test_multiple_choice_6():
    # %% ../nbs/03_evaluate.ipynb #c0f5bf5b
    def byte_tokenizer(*merges, bos="<s>"):
        vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        for a, b in merges: vocab[a + b] = len(vocab)
        t = Tokenizer(models.BPE(vocab, list(merges)))
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return PreTrainedTokenizerFast(tokenizer_object=t, bos_token=bos)

    # %% ../nbs/03_evaluate.ipynb #149d5408
    class Counting(torch.nn.Module):
        def __init__(self, letters, alpha=0.5):
            super().__init__()
            ids = byte_tokenizer(bos=None)(letters)["input_ids"]
            self.register_buffer("alpha", torch.zeros(256).index_fill(0, torch.tensor(ids), alpha))

        def forward(self, input_ids, **kwargs):
            seen = F.one_hot(input_ids, 257)[..., :256].cumsum(1)  # (B, T, 256); the token 256 opens a text
            return SimpleNamespace(logits=torch.log(seen + self.alpha))

    # %% ../nbs/03_evaluate.ipynb #217817e3
    def tiny(cls, **kwargs):
        torch.manual_seed(0)
        if cls is GPT2LMHeadModel: return cls(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, vocab_size=264,
                                                                    bos_token_id=256, eos_token_id=256))
        return cls(LlamaConfig(vocab_size=264, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                               num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32, **kwargs))

    # %% ../nbs/03_evaluate.ipynb #6634f796
    reviews = [{"text": t, "label": int(t in ("good", "fine", "great", "ok"))}
               for t in ("good", "dull", "fine", "great", "bad", "ok")]
    words = {0: " no", 1: " yes"}

    # %% ../nbs/03_evaluate.ipynb #a5f07c13
    print(few_shot(reviews, "{text}?", words, shots=4, gap="\n"), end="")

    # %% ../nbs/03_evaluate.ipynb #25be7aeb
    tokenizer = byte_tokenizer(("Ġ", "y"), ("Ġy", "e"), ("Ġye", "s"))
    for text in "is ", "is yes", "is 12": print(tokenizer.convert_ids_to_tokens(encode(tokenizer, text)))

    # %% ../nbs/03_evaluate.ipynb #23f426c8
    mistakes = [("", "a", None, "nothing stands"), ("a", "", "<s>", "adds no token"), ("a" * 30, "bcd", "<s>", "1 more")]
    for prompt, choice, bos, words in mistakes:
        try: choices_loglik(tiny(LlamaForCausalLM), byte_tokenizer(bos=bos), [prompt], [[choice]])
        except TextError as e: assert words in str(e)
        else: raise AssertionError(f"{choice!r} was scored after {prompt!r}")


def test_items_that_a_scorer_hands_out():
    # %% ../nbs/03_evaluate.ipynb #c0f5bf5b
    def byte_tokenizer(*merges, bos="<s>"):
        vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        for a, b in merges: vocab[a + b] = len(vocab)
        t = Tokenizer(models.BPE(vocab, list(merges)))
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return PreTrainedTokenizerFast(tokenizer_object=t, bos_token=bos)

    # %% ../nbs/03_evaluate.ipynb #149d5408
    class Counting(torch.nn.Module):
        def __init__(self, letters, alpha=0.5):
            super().__init__()
            ids = byte_tokenizer(bos=None)(letters)["input_ids"]
            self.register_buffer("alpha", torch.zeros(256).index_fill(0, torch.tensor(ids), alpha))

        def forward(self, input_ids, **kwargs):
            seen = F.one_hot(input_ids, 257)[..., :256].cumsum(1)  # (B, T, 256); the token 256 opens a text
            return SimpleNamespace(logits=torch.log(seen + self.alpha))

    # %% ../nbs/03_evaluate.ipynb #217817e3
    def tiny(cls, **kwargs):
        torch.manual_seed(0)
        if cls is GPT2LMHeadModel: return cls(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, vocab_size=264,
                                                                    bos_token_id=256, eos_token_id=256))
        return cls(LlamaConfig(vocab_size=264, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                               num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32, **kwargs))

    # %% ../nbs/03_evaluate.ipynb #2bdf5546
    class Doubler:
        "Items 0 to 4 in two batches, in another order; the model is a number to multiply them with."
        batches = [torch.tensor([4, 1]), torch.tensor([0, 2, 3])]
        def items(self, batch): return batch
        def score(self, model, batch): return torch.stack([model.weight[0, 0]*batch, batch % 2], 1).double()

    twice = torch.nn.Linear(1, 1)
    twice.weight.data.fill_(2)
    table = item_scores(twice, Doubler())
    assert table.tolist() == [[0, 0], [2, 1], [4, 0], [6, 1], [8, 0]] and twice.training
    found = item_summary(table)
    assert (found["loss"], found["accuracy"], found["n"]) == (4, .4, 5)
    assert math.isclose(found["loss_se"], math.sqrt(10/5)) and math.isclose(found["accuracy_se"], math.sqrt(.4*.6/4))


def test_bytes():
    # %% ../nbs/03_evaluate.ipynb #c0f5bf5b
    def byte_tokenizer(*merges, bos="<s>"):
        vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        for a, b in merges: vocab[a + b] = len(vocab)
        t = Tokenizer(models.BPE(vocab, list(merges)))
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return PreTrainedTokenizerFast(tokenizer_object=t, bos_token=bos)

    # %% ../nbs/03_evaluate.ipynb #149d5408
    class Counting(torch.nn.Module):
        def __init__(self, letters, alpha=0.5):
            super().__init__()
            ids = byte_tokenizer(bos=None)(letters)["input_ids"]
            self.register_buffer("alpha", torch.zeros(256).index_fill(0, torch.tensor(ids), alpha))

        def forward(self, input_ids, **kwargs):
            seen = F.one_hot(input_ids, 257)[..., :256].cumsum(1)  # (B, T, 256); the token 256 opens a text
            return SimpleNamespace(logits=torch.log(seen + self.alpha))

    # %% ../nbs/03_evaluate.ipynb #217817e3
    def tiny(cls, **kwargs):
        torch.manual_seed(0)
        if cls is GPT2LMHeadModel: return cls(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, vocab_size=264,
                                                                    bos_token_id=256, eos_token_id=256))
        return cls(LlamaConfig(vocab_size=264, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                               num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32, **kwargs))

    # %% ../nbs/03_evaluate.ipynb #d12cb38c
    W = torch.zeros(3, 5, dtype=torch.bfloat16)
    assert tensor_bytes({"W": W, "tied": W, "turned": W.T, "b": torch.zeros(3)}) == 30 + 12
    assert tensor_bytes({"first": W[:1], "rest": W[1:], "none": torch.zeros(0)}) == 30
    with tempfile.TemporaryDirectory() as d:
        try: stored_bytes(d)
        except CheckpointError as e: assert d in str(e)
        else: raise AssertionError("an empty folder was weighed")
        write_tensors(f"{d}/model-1.safetensors", {"W": W})
        write_tensors(f"{d}/model-2.safetensors", {"b": torch.zeros(3)})
        assert 30 + 12 < stored_bytes(d) < 30 + 12 + 300  # the files' headers are the rest
    tied = tiny(LlamaForCausalLM, tie_word_embeddings=True)
    assert bits_per_weight(tensor_bytes(tied.state_dict()), sum(p.numel() for p in tied.parameters())) == 32
