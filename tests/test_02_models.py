from pathlm.models import *
import ast
import json
from pathlib import Path
import numpy as np
import torch
import pathlm
from pathlm.base import CheckpointError
from pathlm.base import read_tensors
from pathlm.base import write_json
from pathlm.base import write_tensors
import math
import tempfile
from pathlm.base import read_json
from pathlm.evaluate import evaluate
from pathlm.linear import effective_weight
from pathlm.linear import linears
from pathlm.linear import set_weight
import pathlm.models


def test_the_text():
    # %% ../nbs/02_models.ipynb #52d6d6b8
    source = '''"A module."
class Queue(list):
    "First in, first out."
    def put(self, item, *, block=True):
        "Put an item."
if True: add_newdoc("queue", "sizes", """The sizes.""")
'''
    assert list(docstrings(ast.parse(source))) == [
        "A module.", "class Queue(list)\nFirst in, first out.", "put(self, item, *, block=True)\nPut an item.",
        "The sizes."]


def test_fixed_splits_nothing_shared():
    # %% ../nbs/02_models.ipynb #e5e0607f
    share = [split_of(f"module{i}") for i in range(20_000)]
    assert abs(share.count("test")/20_000 - .10) < .01 and abs(share.count("valid")/20_000 - .05) < .01


def test_fixed_splits_nothing_shared_2():
    # %% ../nbs/02_models.ipynb #79242f87
    seen = set()
    assert fresh("one\n\nThis paragraph is certainly longer than that.\n\ntwo", seen).count("\n\n") == 2
    assert fresh("one\n\nThis  paragraph is\ncertainly longer than that.\n\nthree", seen) == "one\n\nthree"


def test_fixed_splits_nothing_shared_3():
    # %% ../nbs/02_models.ipynb #8af07855
    test, valid = corpus("test"), corpus("valid")
    for name, docs in ("test", test), ("valid", valid):
        print(f"{name:6}{len(docs):4} documents {sum(map(len, docs.values())):8,} characters  {fingerprint(docs)}")

    # %% ../nbs/02_models.ipynb #7fb671fa
    def paragraphs(docs):
        flat = (" ".join(p.split()) for text in docs.values() for p in text.split("\n\n"))
        return {p for p in flat if len(p) >= 40}

    test, valid = corpus("test"), corpus("valid")
    assert not set(test) & set(valid) and not paragraphs(test) & paragraphs(valid)
    assert len(paragraphs(test)) > 500
    assert not (paragraphs(test) | paragraphs(valid)) & paragraphs(corpus("train"))


def test_the_tokenizer():
    # %% ../nbs/02_models.ipynb #66287f30
    tokenizer = train_tokenizer(corpus("valid").values(), vocab_size=500)
    odd = "    if naïve:\n\treturn '→ 日本'  "
    assert tokenizer.decode(tokenizer(odd)["input_ids"]) == odd
    assert len(tokenizer) == 500


def test_the_architecture():
    # %% ../nbs/02_models.ipynb #0f8acf7c
    V, d, ff, L, h, kv, dh = 4096, 256, 512, 6, 8, 4, 64
    block = 2*d*h*dh + 2*d*kv*dh + 3*d*ff + 2*d
    count = sum(p.numel() for p in new_model().parameters())
    assert count == V*d + L*block + d
    print(f"{count:,} parameters, {2*count/1e6:.2f} MB in bf16, {L*block/count:.0%} of them in the blocks")


def test_the_training():
    # %% ../nbs/02_models.ipynb #ddad462c
    stream = np.arange(1000, dtype=np.int32)
    x = minibatch(stream, step=3, length=8, size=64)
    assert x.shape == (8, 9) and (x.diff() == 1).all() and torch.equal(x, minibatch(stream, 3, 8, 64))
    assert not torch.equal(x, minibatch(stream, 4, 8, 64))


def test_the_training_2():
    # %% ../nbs/02_models.ipynb #9fdf4038
    rates = [learning_rate(i, 1000) for i in range(1000)]
    assert rates[99] == rates[700] == 2e-3 and rates[0] == 2e-5 and 0 < rates[999] < 1e-5


def test_the_training_3():
    # %% ../nbs/02_models.ipynb #00d0dcea
    def tiny(folder):
        tokenizer = train_tokenizer(["a small text to learn from"]*4, vocab_size=300)
        data = tokenizer, np.arange(5000, dtype=np.int32) % len(tokenizer), np.arange(600, dtype=np.int32) % len(tokenizer)
        return pretrain(folder, 8, device="cpu", every=2, data=data, num_hidden_layers=1, hidden_size=16,
                        intermediate_size=16, num_attention_heads=2, num_key_value_heads=1, head_dim=8).state_dict()

    def stops(tokens, step, *args, **kw):
        if step == 5: raise KeyboardInterrupt
        return minibatch(tokens, step, *args, **kw)

    with tempfile.TemporaryDirectory() as d:
        whole = tiny(f"{d}/whole")
        pathlm.models.minibatch = stops
        try: tiny(f"{d}/broken")
        except KeyboardInterrupt: assert json.loads(Path(f"{d}/whole/training.json").read_text())["step"] == 8
        pathlm.models.minibatch = minibatch
        mended = tiny(f"{d}/broken")
    assert all(torch.equal(whole[k], mended[k]) for k in whole)


def test_any_model_of_hugging_face_s_takes_its_place():
    # %% ../nbs/02_models.ipynb #b584a7d9
    model, tokenizer = pretrained()
    with tempfile.TemporaryDirectory() as d:
        model.save_pretrained(d)
        tokenizer.save_pretrained(d)
        again, _ = pretrained(d)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
        weights = Path(d)/"model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
        for bad in d, f"{d}/absent":
            try: pretrained(bad)
            except CheckpointError as e: assert bad in str(e) and "\n" not in str(e)
            else: raise AssertionError(f"{bad} was loaded")


def test_any_model_of_hugging_face_s_takes_its_place_2():
    # %% ../nbs/02_models.ipynb #f7e6b772
    model, tokenizer = pretrained()
    with tempfile.TemporaryDirectory() as d:
        model.save_pretrained(d)
        tokenizer.save_pretrained(d)
        tensors = read_tensors(f"{d}/model.safetensors")
        del tensors["model.layers.3.mlp.up_proj.weight"]
        write_tensors(f"{d}/model.safetensors", tensors, {"format": "pt"})
        try: pretrained(d)
        except CheckpointError as e: assert "model.layers.3.mlp.up_proj.weight" in str(e)
        else: raise AssertionError("a model with a missing tensor was loaded")


def test_any_model_of_hugging_face_s_takes_its_place_3():
    # %% ../nbs/02_models.ipynb #f3588c46
    torch.manual_seed(0)
    small = dict(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, head_dim=8)
    with tempfile.TemporaryDirectory() as d:
        new_model(**small, attention_bias=True).save_pretrained(d)
        write_json(f"{d}/config.json", read_json(f"{d}/config.json") | {"attention_bias": False})
        try: pretrained(d)
        except CheckpointError as e: assert d in str(e) and "4 tensors" in str(e) and "self_attn.k_proj.bias" in str(e)
        else: raise AssertionError("a model was loaded without its biases")


def test_against_an_n_gram_model():
    # %% ../nbs/02_models.ipynb #c54d3b45
    log = read_json(EMBEDDED/"training.json")
    print(f"{log['step']:,} steps, {log['step']*4096/1e6:.1f} M tokens, {log['seconds']/60:.0f} minutes, {log['versions']}")

    # %% ../nbs/02_models.ipynb #8371c003
    print(log["fingerprints"]["test"] == fingerprint(corpus("test")))

    # %% ../nbs/02_models.ipynb #d4085dfc
    assert [hex(i) for i in pieces(b"abcd", 3)] == ["0x616263", "0x626364"]


def test_against_an_n_gram_model_2():
    # %% ../nbs/02_models.ipynb #c54d3b45
    log = read_json(EMBEDDED/"training.json")
    print(f"{log['step']:,} steps, {log['step']*4096/1e6:.1f} M tokens, {log['seconds']/60:.0f} minutes, {log['versions']}")

    # %% ../nbs/02_models.ipynb #8371c003
    print(log["fingerprints"]["test"] == fingerprint(corpus("test")))

    # %% ../nbs/02_models.ipynb #2d15acb9
    seen = np.sort(pieces(b"ab ab ac", 2))
    every = (np.uint64(ord("a")) << np.uint64(8)) + np.arange(256, dtype=np.uint64)
    p = witten_bell(seen, every, 1/256)
    assert np.isclose(p.sum(), 1) and np.isclose(p[ord("b")], (2 + 2/256)/5)


def test_against_an_n_gram_model_3():
    # %% ../nbs/02_models.ipynb #c54d3b45
    log = read_json(EMBEDDED/"training.json")
    print(f"{log['step']:,} steps, {log['step']*4096/1e6:.1f} M tokens, {log['seconds']/60:.0f} minutes, {log['versions']}")

    # %% ../nbs/02_models.ipynb #8371c003
    print(log["fingerprints"]["test"] == fingerprint(corpus("test")))

    # %% ../nbs/02_models.ipynb #0a08db3d
    text = "the cat sat on the mat. " * 40
    assert ngram_bits(text, "the cat sat on the mat. ") < .5 < 2 < ngram_bits(text, "Quite another sentence?")


def test_against_an_n_gram_model_4():
    # %% ../nbs/02_models.ipynb #c54d3b45
    log = read_json(EMBEDDED/"training.json")
    print(f"{log['step']:,} steps, {log['step']*4096/1e6:.1f} M tokens, {log['seconds']/60:.0f} minutes, {log['versions']}")

    # %% ../nbs/02_models.ipynb #8371c003
    print(log["fingerprints"]["test"] == fingerprint(corpus("test")))

    # %% ../nbs/02_models.ipynb #e8fed291
    row = evaluate(*pretrained(), list(corpus("valid").values()))
    assert row["bits_per_char"] < .9*xz_bits("".join(corpus("valid").values()))
    print({k: round(v, 3) for k, v in row.items()})


def test_against_itself_shuffled():
    # %% ../nbs/02_models.ipynb #c54d3b45
    log = read_json(EMBEDDED/"training.json")
    print(f"{log['step']:,} steps, {log['step']*4096/1e6:.1f} M tokens, {log['seconds']/60:.0f} minutes, {log['versions']}")

    # %% ../nbs/02_models.ipynb #8371c003
    print(log["fingerprints"]["test"] == fingerprint(corpus("test")))

    # %% ../nbs/02_models.ipynb #d27084bf
    def permuted(W, seed=0):
        order = torch.randperm(W.numel(), generator=torch.Generator().manual_seed(seed))
        return W.flatten()[order].view_as(W)

    def loss_permuted(names, docs):
        model, tokenizer = pretrained()
        for name, layer in linears(model).items():
            if name in names: set_weight(layer, permuted(effective_weight(layer)))
        return evaluate(model, tokenizer, docs)["loss"]

    # %% ../nbs/02_models.ipynb #e4af29e0
    docs = list(corpus("valid").values())[:3]
    names = list(linears(pretrained()[0]))
    intact, shuffled = loss_permuted([], docs), loss_permuted(names, docs)
    assert shuffled > math.log(4096) > intact + 3
    print(f"intact {intact:.2f}, every matrix permuted {shuffled:.2f} nats a token")
