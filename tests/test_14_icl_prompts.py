from pathlm.prompts import *
import json
import math
import os
from pathlib import Path
import numpy as np
import torch
from torch import nn
from pathlm.base import SettingError
from pathlm.base import TextError
import sys
import tempfile
from types import SimpleNamespace
import transformers as tf
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from pathlm.evaluate import item_scores
from pathlm.models import pretrained


def test_seven_tasks():
    # %% ../nbs/14_icl_prompts.ipynb #ab95ae15
    tokenizer = tf.AutoTokenizer.from_pretrained(Path(pretrained.__code__.co_filename).parent/"embedded")

    def tiny(kind, room=256):
        "A random language model of two blocks, with weights large enough for its answers to differ."
        torch.manual_seed(0)
        common = dict(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, pad_token_id=0, initializer_range=.2)
        gpt = dict(n_embd=32, n_layer=2, n_head=2, n_positions=room)
        config, cls = {
            "llama": lambda: (tf.LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                num_attention_heads=2, max_position_embeddings=room, **common), tf.LlamaForCausalLM),
            "gpt2": lambda: (tf.GPT2Config(**gpt, **common), tf.GPT2LMHeadModel),
            "gptj": lambda: (tf.GPTJConfig(rotary_dim=8, **gpt, **common), tf.GPTJForCausalLM),
            "opt": lambda: (tf.OPTConfig(hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=2,
                word_embed_proj_dim=32, max_position_embeddings=room, init_std=.2,
                **{k: v for k, v in common.items() if k != "initializer_range"}), tf.OPTForCausalLM),
        }[kind]()
        return cls(config).eval()

    def message(error, call):
        "What a call complains of."
        try: call()
        except error as e: return str(e)
        raise AssertionError("nothing was raised")

    # %% ../nbs/14_icl_prompts.ipynb #2bce5c82
    FILED = [{"sentence": f"film {n} is {'good' if n % 2 else 'bad'}", "label": str(n % 2)} for n in range(40)]
    SENTENCES = ["good", "a film that does what it sets out to do and then some more", "no", "dull from end to end ,"]

    def made(rows):
        "Questions of SST-2."
        return [item_of(TASKS["sst2"], row) for row in rows]

    def worded(*words):
        "Eight questions of four lengths with other answers."
        rows = [{"sentence": f"{s} {n}", "label": n % 2} for n, s in enumerate(SENTENCES * 2)]
        return [item._replace(choices=words) for item in made(rows)]

    # %% ../nbs/14_icl_prompts.ipynb #a00f3610
    for task in TASKS.values():
        print(f"{task.name:7}{task.shots:3}  {' |'.join(task.words.values()):62}  {task.source}")

    # %% ../nbs/14_icl_prompts.ipynb #a27ecc1b
    assert find_task("sst2") is find_task(TASKS["sst2"]) and len(TASKS) == 7
    assert "did you mean agnews?" in message(SettingError, lambda: find_task("AG-News"))
    assert "sst2, agnews, trec, mrpc, rte, cb, copa" in message(SettingError, lambda: find_task("squad"))


def test_rows_become_questions():
    # %% ../nbs/14_icl_prompts.ipynb #ab95ae15
    tokenizer = tf.AutoTokenizer.from_pretrained(Path(pretrained.__code__.co_filename).parent/"embedded")

    def tiny(kind, room=256):
        "A random language model of two blocks, with weights large enough for its answers to differ."
        torch.manual_seed(0)
        common = dict(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, pad_token_id=0, initializer_range=.2)
        gpt = dict(n_embd=32, n_layer=2, n_head=2, n_positions=room)
        config, cls = {
            "llama": lambda: (tf.LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                num_attention_heads=2, max_position_embeddings=room, **common), tf.LlamaForCausalLM),
            "gpt2": lambda: (tf.GPT2Config(**gpt, **common), tf.GPT2LMHeadModel),
            "gptj": lambda: (tf.GPTJConfig(rotary_dim=8, **gpt, **common), tf.GPTJForCausalLM),
            "opt": lambda: (tf.OPTConfig(hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=2,
                word_embed_proj_dim=32, max_position_embeddings=room, init_std=.2,
                **{k: v for k, v in common.items() if k != "initializer_range"}), tf.OPTForCausalLM),
        }[kind]()
        return cls(config).eval()

    def message(error, call):
        "What a call complains of."
        try: call()
        except error as e: return str(e)
        raise AssertionError("nothing was raised")

    # %% ../nbs/14_icl_prompts.ipynb #2bce5c82
    FILED = [{"sentence": f"film {n} is {'good' if n % 2 else 'bad'}", "label": str(n % 2)} for n in range(40)]
    SENTENCES = ["good", "a film that does what it sets out to do and then some more", "no", "dull from end to end ,"]

    def made(rows):
        "Questions of SST-2."
        return [item_of(TASKS["sst2"], row) for row in rows]

    def worded(*words):
        "Eight questions of four lengths with other answers."
        rows = [{"sentence": f"{s} {n}", "label": n % 2} for n, s in enumerate(SENTENCES * 2)]
        return [item._replace(choices=words) for item in made(rows)]

    # %% ../nbs/14_icl_prompts.ipynb #bfd84777
    AS_FILED = {"Class Index": "3", "Title": "Oil falls", "Description": "Prices fell on Monday."}
    AS_HUB = {"text": "Oil falls Prices fell on Monday.", "label": 2}
    CAUSE = {"asks-for": "cause", "most-plausible-alternative": "1", "p": "The grass was wet.", "a1": "It had rained.",
             "a2": "I mowed it."}

    # %% ../nbs/14_icl_prompts.ipynb #e95bd3a5
    for item in item_of(TASKS["agnews"], AS_FILED), item_of(TASKS["copa"], CAUSE):
        print(repr(item.prompt), *map(repr, item.choices), f"label {item.label}, without content {item.free!r}", sep="\n  ")

    # %% ../nbs/14_icl_prompts.ipynb #96095693
    assert item_of(TASKS["agnews"], AS_FILED) == item_of(TASKS["agnews"], AS_HUB)
    assert item_of(TASKS["copa"], CAUSE) == item_of(TASKS["copa"], {"premise": "The grass was wet.", "question": "cause",
        "choice1": "It had rained.", "choice2": "I mowed it.", "label": 0})
    assert item_of(TASKS["copa"], CAUSE).solved == "The grass was wet because it had rained."
    assert item_of(TASKS["trec"], {"label": "HUM:ind", "question": "Who was Galileo ?"}).choices[3] == " person"
    assert item_of(TASKS["trec"], {"coarse_label": 3, "text": "Who was Galileo ?"}).label == 3
    assert item_of(TASKS["agnews"], AS_FILED | {"Class Index": 3}) == item_of(TASKS["agnews"], AS_FILED)
    assert item_of(TASKS["copa"], CAUSE | {"most-plausible-alternative": 1}).label == 0
    assert [class_of(TASKS["mrpc"], {"Quality": n}) for n in (0, 1, "0", "1", 2, -1)] == [0, 1, 0, 1, None, None]
    braces = item_of(TASKS["sst2"], {"sentence": "{0} {text} % \\n", "label": "1"})
    assert braces.prompt == "text: {0} {text} % \\n\nsentiment:" and braces.label == 1


def test_rows_become_questions_2():
    # %% ../nbs/14_icl_prompts.ipynb #ab95ae15
    tokenizer = tf.AutoTokenizer.from_pretrained(Path(pretrained.__code__.co_filename).parent/"embedded")

    def tiny(kind, room=256):
        "A random language model of two blocks, with weights large enough for its answers to differ."
        torch.manual_seed(0)
        common = dict(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, pad_token_id=0, initializer_range=.2)
        gpt = dict(n_embd=32, n_layer=2, n_head=2, n_positions=room)
        config, cls = {
            "llama": lambda: (tf.LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                num_attention_heads=2, max_position_embeddings=room, **common), tf.LlamaForCausalLM),
            "gpt2": lambda: (tf.GPT2Config(**gpt, **common), tf.GPT2LMHeadModel),
            "gptj": lambda: (tf.GPTJConfig(rotary_dim=8, **gpt, **common), tf.GPTJForCausalLM),
            "opt": lambda: (tf.OPTConfig(hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=2,
                word_embed_proj_dim=32, max_position_embeddings=room, init_std=.2,
                **{k: v for k, v in common.items() if k != "initializer_range"}), tf.OPTForCausalLM),
        }[kind]()
        return cls(config).eval()

    def message(error, call):
        "What a call complains of."
        try: call()
        except error as e: return str(e)
        raise AssertionError("nothing was raised")

    # %% ../nbs/14_icl_prompts.ipynb #2bce5c82
    FILED = [{"sentence": f"film {n} is {'good' if n % 2 else 'bad'}", "label": str(n % 2)} for n in range(40)]
    SENTENCES = ["good", "a film that does what it sets out to do and then some more", "no", "dull from end to end ,"]

    def made(rows):
        "Questions of SST-2."
        return [item_of(TASKS["sst2"], row) for row in rows]

    def worded(*words):
        "Eight questions of four lengths with other answers."
        rows = [{"sentence": f"{s} {n}", "label": n % 2} for n, s in enumerate(SENTENCES * 2)]
        return [item._replace(choices=words) for item in made(rows)]

    # %% ../nbs/14_icl_prompts.ipynb #bfd84777
    AS_FILED = {"Class Index": "3", "Title": "Oil falls", "Description": "Prices fell on Monday."}
    AS_HUB = {"text": "Oil falls Prices fell on Monday.", "label": 2}
    CAUSE = {"asks-for": "cause", "most-plausible-alternative": "1", "p": "The grass was wet.", "a1": "It had rained.",
             "a2": "I mowed it."}

    # %% ../nbs/14_icl_prompts.ipynb #e95bd3a5
    for item in item_of(TASKS["agnews"], AS_FILED), item_of(TASKS["copa"], CAUSE):
        print(repr(item.prompt), *map(repr, item.choices), f"label {item.label}, without content {item.free!r}", sep="\n  ")

    # %% ../nbs/14_icl_prompts.ipynb #93c2b84a
    for row, wrong in (({"label": "5", "sentence": "a"}, "has the label '5'"), ({"label": -1, "sentence": "a"}, "label -1"),
                       ({"label": 1.5, "sentence": "a"}, "label 1.5"), ({"label": True, "sentence": "a"}, "label True"),
                       ({"sentence": "a"}, "label None"), ({"label": "1", "body": "a"}, "expected {sentence} or {text}")):
        assert wrong in message(TextError, lambda row=row: item_of(TASKS["sst2"], row, "line 1"))
    for n in 0, 5, False:
        wrong = message(TextError, lambda n=n: item_of(TASKS["agnews"], AS_FILED | {"Class Index": n}))
        assert f"label {n} in Class Index or label; expected one of 1, 2, 3, 4, or in label or coarse_label" in wrong
    assert "'reason'" in message(TextError, lambda: item_of(TASKS["copa"], CAUSE | {"asks-for": "reason"}))


def test_rows_become_questions_3():
    # %% ../nbs/14_icl_prompts.ipynb #ab95ae15
    tokenizer = tf.AutoTokenizer.from_pretrained(Path(pretrained.__code__.co_filename).parent/"embedded")

    def tiny(kind, room=256):
        "A random language model of two blocks, with weights large enough for its answers to differ."
        torch.manual_seed(0)
        common = dict(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, pad_token_id=0, initializer_range=.2)
        gpt = dict(n_embd=32, n_layer=2, n_head=2, n_positions=room)
        config, cls = {
            "llama": lambda: (tf.LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                num_attention_heads=2, max_position_embeddings=room, **common), tf.LlamaForCausalLM),
            "gpt2": lambda: (tf.GPT2Config(**gpt, **common), tf.GPT2LMHeadModel),
            "gptj": lambda: (tf.GPTJConfig(rotary_dim=8, **gpt, **common), tf.GPTJForCausalLM),
            "opt": lambda: (tf.OPTConfig(hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=2,
                word_embed_proj_dim=32, max_position_embeddings=room, init_std=.2,
                **{k: v for k, v in common.items() if k != "initializer_range"}), tf.OPTForCausalLM),
        }[kind]()
        return cls(config).eval()

    def message(error, call):
        "What a call complains of."
        try: call()
        except error as e: return str(e)
        raise AssertionError("nothing was raised")

    # %% ../nbs/14_icl_prompts.ipynb #2bce5c82
    FILED = [{"sentence": f"film {n} is {'good' if n % 2 else 'bad'}", "label": str(n % 2)} for n in range(40)]
    SENTENCES = ["good", "a film that does what it sets out to do and then some more", "no", "dull from end to end ,"]

    def made(rows):
        "Questions of SST-2."
        return [item_of(TASKS["sst2"], row) for row in rows]

    def worded(*words):
        "Eight questions of four lengths with other answers."
        rows = [{"sentence": f"{s} {n}", "label": n % 2} for n, s in enumerate(SENTENCES * 2)]
        return [item._replace(choices=words) for item in made(rows)]

    # %% ../nbs/14_icl_prompts.ipynb #bfd84777
    AS_FILED = {"Class Index": "3", "Title": "Oil falls", "Description": "Prices fell on Monday."}
    AS_HUB = {"text": "Oil falls Prices fell on Monday.", "label": 2}
    CAUSE = {"asks-for": "cause", "most-plausible-alternative": "1", "p": "The grass was wet.", "a1": "It had rained.",
             "a2": "I mowed it."}

    # %% ../nbs/14_icl_prompts.ipynb #e95bd3a5
    for item in item_of(TASKS["agnews"], AS_FILED), item_of(TASKS["copa"], CAUSE):
        print(repr(item.prompt), *map(repr, item.choices), f"label {item.label}, without content {item.free!r}", sep="\n  ")

    # %% ../nbs/14_icl_prompts.ipynb #92201812
    HUBBED = [row | {"label": int(row["label"]), "idx": n} for n, row in enumerate(FILED)]

    def written(folder, **splits):
        "Put rows where a task's files are expected."
        for split, rows in splits.items():
            path = Path(folder)/TASKS["sst2"].files[split]
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder

    # %% ../nbs/14_icl_prompts.ipynb #a58722f9
    calls = []
    def load_dataset(*args, **options):
        calls.append((args, options))
        if args[0] == "none": raise ConnectionError("no network")
        return {"train": HUBBED[:20], "validation": HUBBED[20:]}

    before = sys.modules.get("datasets", ...)
    sys.modules["datasets"] = SimpleNamespace(load_dataset=load_dataset)
    try:
        found = hub_items("sst2", revision="main")
        assert "no network" in message(TextError, lambda: hub_items("sst2", "none"))
        assert "expected test" in message(TextError, lambda: hub_items("trec"))
        sys.modules["datasets"] = None
        assert "pip install datasets" in message(SettingError, lambda: hub_items("sst2"))
    finally:
        del sys.modules["datasets"]
        if before is not ...: sys.modules["datasets"] = before
    assert calls[0] == (("nyu-mll/glue", "sst2"), {"revision": "main"})
    with tempfile.TemporaryDirectory() as d:
        filed = file_items("sst2", written(d, train=FILED[:20], valid=FILED[20:30], test=FILED[30:]))
    assert list(found) == ["train", "test"] and list(filed) == ["train", "valid", "test"]
    assert found["train"] == filed["train"] and found["test"] == filed["valid"] + filed["test"]


def test_rows_become_questions_4():
    # %% ../nbs/14_icl_prompts.ipynb #ab95ae15
    tokenizer = tf.AutoTokenizer.from_pretrained(Path(pretrained.__code__.co_filename).parent/"embedded")

    def tiny(kind, room=256):
        "A random language model of two blocks, with weights large enough for its answers to differ."
        torch.manual_seed(0)
        common = dict(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, pad_token_id=0, initializer_range=.2)
        gpt = dict(n_embd=32, n_layer=2, n_head=2, n_positions=room)
        config, cls = {
            "llama": lambda: (tf.LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                num_attention_heads=2, max_position_embeddings=room, **common), tf.LlamaForCausalLM),
            "gpt2": lambda: (tf.GPT2Config(**gpt, **common), tf.GPT2LMHeadModel),
            "gptj": lambda: (tf.GPTJConfig(rotary_dim=8, **gpt, **common), tf.GPTJForCausalLM),
            "opt": lambda: (tf.OPTConfig(hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=2,
                word_embed_proj_dim=32, max_position_embeddings=room, init_std=.2,
                **{k: v for k, v in common.items() if k != "initializer_range"}), tf.OPTForCausalLM),
        }[kind]()
        return cls(config).eval()

    def message(error, call):
        "What a call complains of."
        try: call()
        except error as e: return str(e)
        raise AssertionError("nothing was raised")

    # %% ../nbs/14_icl_prompts.ipynb #2bce5c82
    FILED = [{"sentence": f"film {n} is {'good' if n % 2 else 'bad'}", "label": str(n % 2)} for n in range(40)]
    SENTENCES = ["good", "a film that does what it sets out to do and then some more", "no", "dull from end to end ,"]

    def made(rows):
        "Questions of SST-2."
        return [item_of(TASKS["sst2"], row) for row in rows]

    def worded(*words):
        "Eight questions of four lengths with other answers."
        rows = [{"sentence": f"{s} {n}", "label": n % 2} for n, s in enumerate(SENTENCES * 2)]
        return [item._replace(choices=words) for item in made(rows)]

    # %% ../nbs/14_icl_prompts.ipynb #bfd84777
    AS_FILED = {"Class Index": "3", "Title": "Oil falls", "Description": "Prices fell on Monday."}
    AS_HUB = {"text": "Oil falls Prices fell on Monday.", "label": 2}
    CAUSE = {"asks-for": "cause", "most-plausible-alternative": "1", "p": "The grass was wet.", "a1": "It had rained.",
             "a2": "I mowed it."}

    # %% ../nbs/14_icl_prompts.ipynb #e95bd3a5
    for item in item_of(TASKS["agnews"], AS_FILED), item_of(TASKS["copa"], CAUSE):
        print(repr(item.prompt), *map(repr, item.choices), f"label {item.label}, without content {item.free!r}", sep="\n  ")

    # %% ../nbs/14_icl_prompts.ipynb #92201812
    HUBBED = [row | {"label": int(row["label"]), "idx": n} for n, row in enumerate(FILED)]

    def written(folder, **splits):
        "Put rows where a task's files are expected."
        for split, rows in splits.items():
            path = Path(folder)/TASKS["sst2"].files[split]
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder

    # %% ../nbs/14_icl_prompts.ipynb #20325f8e
    with tempfile.TemporaryDirectory() as d:
        for text, wrong in (("", "no rows"), ("{\n", "line 1 is no json"), ("\n[1]\n", "line 2 is no json object")):
            (Path(d)/"rows.jsonl").write_text(text)
            assert wrong in message(TextError, lambda: read_rows(f"{d}/rows.jsonl"))
        assert "cannot read" in message(TextError, lambda: file_items("cb", d))
        written(d, train=[*FILED, {"sentence": "a", "label": "2"}], valid=FILED, test=FILED)
        assert "train_sentences.jsonl, row 40" in message(TextError, lambda: file_items("sst2", d))


def test_demonstrations_validation_test():
    # %% ../nbs/14_icl_prompts.ipynb #ab95ae15
    tokenizer = tf.AutoTokenizer.from_pretrained(Path(pretrained.__code__.co_filename).parent/"embedded")

    def tiny(kind, room=256):
        "A random language model of two blocks, with weights large enough for its answers to differ."
        torch.manual_seed(0)
        common = dict(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, pad_token_id=0, initializer_range=.2)
        gpt = dict(n_embd=32, n_layer=2, n_head=2, n_positions=room)
        config, cls = {
            "llama": lambda: (tf.LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                num_attention_heads=2, max_position_embeddings=room, **common), tf.LlamaForCausalLM),
            "gpt2": lambda: (tf.GPT2Config(**gpt, **common), tf.GPT2LMHeadModel),
            "gptj": lambda: (tf.GPTJConfig(rotary_dim=8, **gpt, **common), tf.GPTJForCausalLM),
            "opt": lambda: (tf.OPTConfig(hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=2,
                word_embed_proj_dim=32, max_position_embeddings=room, init_std=.2,
                **{k: v for k, v in common.items() if k != "initializer_range"}), tf.OPTForCausalLM),
        }[kind]()
        return cls(config).eval()

    def message(error, call):
        "What a call complains of."
        try: call()
        except error as e: return str(e)
        raise AssertionError("nothing was raised")

    # %% ../nbs/14_icl_prompts.ipynb #2bce5c82
    FILED = [{"sentence": f"film {n} is {'good' if n % 2 else 'bad'}", "label": str(n % 2)} for n in range(40)]
    SENTENCES = ["good", "a film that does what it sets out to do and then some more", "no", "dull from end to end ,"]

    def made(rows):
        "Questions of SST-2."
        return [item_of(TASKS["sst2"], row) for row in rows]

    def worded(*words):
        "Eight questions of four lengths with other answers."
        rows = [{"sentence": f"{s} {n}", "label": n % 2} for n, s in enumerate(SENTENCES * 2)]
        return [item._replace(choices=words) for item in made(rows)]

    # %% ../nbs/14_icl_prompts.ipynb #f2acb2b9
    films = made(FILED)
    for seed in range(5):
        for pools in {"train": films}, {"train": films[:20], "test": films[20:]}, {"train": films, "valid": films[30:]}:
            splits = draw_splits(pools, shots=5, valid=6, seed=seed)
            assert abs(sum(2*item.label - 1 for item in splits.demos)) == 1 and len(splits.valid) == 6
            keys = [item.key for part in splits for item in part]
            assert len(keys) == len(set(keys)) and set(splits.demos) <= set(pools["train"])
    assert draw_splits({"train": films}, 4, 6, seed=3) == draw_splits({"train": films}, 4, 6, seed=3)
    assert draw_splits({"train": films}, 4, 6, seed=3) != draw_splits({"train": films}, 4, 6, seed=4)
    assert len(draw_splits({"train": films + films}, 4, 6).test) == 30


def test_demonstrations_validation_test_2():
    # %% ../nbs/14_icl_prompts.ipynb #ab95ae15
    tokenizer = tf.AutoTokenizer.from_pretrained(Path(pretrained.__code__.co_filename).parent/"embedded")

    def tiny(kind, room=256):
        "A random language model of two blocks, with weights large enough for its answers to differ."
        torch.manual_seed(0)
        common = dict(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, pad_token_id=0, initializer_range=.2)
        gpt = dict(n_embd=32, n_layer=2, n_head=2, n_positions=room)
        config, cls = {
            "llama": lambda: (tf.LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                num_attention_heads=2, max_position_embeddings=room, **common), tf.LlamaForCausalLM),
            "gpt2": lambda: (tf.GPT2Config(**gpt, **common), tf.GPT2LMHeadModel),
            "gptj": lambda: (tf.GPTJConfig(rotary_dim=8, **gpt, **common), tf.GPTJForCausalLM),
            "opt": lambda: (tf.OPTConfig(hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=2,
                word_embed_proj_dim=32, max_position_embeddings=room, init_std=.2,
                **{k: v for k, v in common.items() if k != "initializer_range"}), tf.OPTForCausalLM),
        }[kind]()
        return cls(config).eval()

    def message(error, call):
        "What a call complains of."
        try: call()
        except error as e: return str(e)
        raise AssertionError("nothing was raised")

    # %% ../nbs/14_icl_prompts.ipynb #2bce5c82
    FILED = [{"sentence": f"film {n} is {'good' if n % 2 else 'bad'}", "label": str(n % 2)} for n in range(40)]
    SENTENCES = ["good", "a film that does what it sets out to do and then some more", "no", "dull from end to end ,"]

    def made(rows):
        "Questions of SST-2."
        return [item_of(TASKS["sst2"], row) for row in rows]

    def worded(*words):
        "Eight questions of four lengths with other answers."
        rows = [{"sentence": f"{s} {n}", "label": n % 2} for n, s in enumerate(SENTENCES * 2)]
        return [item._replace(choices=words) for item in made(rows)]

    # %% ../nbs/14_icl_prompts.ipynb #a548807f
    films = made(FILED)
    good = films[1::2]
    spaced = [item._replace(prompt=f"  {item.prompt.upper()}") for item in films[:3]]
    for splits, wrong in ((Splits([], [], films), "valid split is empty"), (Splits([], films, []), "test split is empty"),
                          (Splits([], good, films), "all 20 questions of the valid"),
                          (Splits(good[:2], films[20:], films[:20]), "all 2 questions of the demos"),
                          (Splits([], spaced, films), "3 questions are in valid and in test, such as '  TEXT: FILM"),
                          (Splits(films[:1], films[:2], films[2:]), "1 questions are in demos and in valid")):
        assert wrong in message(SettingError, lambda splits=splits: check_splits(splits))
    for options, wrong in ((dict(shots=41, valid=1), "shots=41"), (dict(shots=4), "data have one split"),
                           (dict(shots=4, valid=37), "valid=37 is not between 1 and the 36"),
                           (dict(shots=4, valid=30, test=0), "test=0")):
        assert wrong in message(SettingError, lambda options=options: draw_splits({"train": films}, **options))


def test_demonstrations_validation_test_3():
    # %% ../nbs/14_icl_prompts.ipynb #ab95ae15
    tokenizer = tf.AutoTokenizer.from_pretrained(Path(pretrained.__code__.co_filename).parent/"embedded")

    def tiny(kind, room=256):
        "A random language model of two blocks, with weights large enough for its answers to differ."
        torch.manual_seed(0)
        common = dict(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, pad_token_id=0, initializer_range=.2)
        gpt = dict(n_embd=32, n_layer=2, n_head=2, n_positions=room)
        config, cls = {
            "llama": lambda: (tf.LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                num_attention_heads=2, max_position_embeddings=room, **common), tf.LlamaForCausalLM),
            "gpt2": lambda: (tf.GPT2Config(**gpt, **common), tf.GPT2LMHeadModel),
            "gptj": lambda: (tf.GPTJConfig(rotary_dim=8, **gpt, **common), tf.GPTJForCausalLM),
            "opt": lambda: (tf.OPTConfig(hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=2,
                word_embed_proj_dim=32, max_position_embeddings=room, init_std=.2,
                **{k: v for k, v in common.items() if k != "initializer_range"}), tf.OPTForCausalLM),
        }[kind]()
        return cls(config).eval()

    def message(error, call):
        "What a call complains of."
        try: call()
        except error as e: return str(e)
        raise AssertionError("nothing was raised")

    # %% ../nbs/14_icl_prompts.ipynb #2bce5c82
    FILED = [{"sentence": f"film {n} is {'good' if n % 2 else 'bad'}", "label": str(n % 2)} for n in range(40)]
    SENTENCES = ["good", "a film that does what it sets out to do and then some more", "no", "dull from end to end ,"]

    def made(rows):
        "Questions of SST-2."
        return [item_of(TASKS["sst2"], row) for row in rows]

    def worded(*words):
        "Eight questions of four lengths with other answers."
        rows = [{"sentence": f"{s} {n}", "label": n % 2} for n, s in enumerate(SENTENCES * 2)]
        return [item._replace(choices=words) for item in made(rows)]

    # %% ../nbs/14_icl_prompts.ipynb #9510b0af
    if os.environ.get("PATHLM_DATA"):
        sizes = {name: {split: len(items) for split, items in file_items(name).items()} for name in TASKS}
        assert sizes["sst2"] == {"train": 6920, "valid": 872, "test": 1821} and sizes["agnews"] == {"train": 7600}
        assert [sum(s.values()) for s in sizes.values()] == [9613, 7600, 5952, 5801, 2767, 306, 1000]
        trec = file_items("trec")
        assert len({item.key for item in trec["train"]} & {item.key for item in trec["test"]}) == 11


def test_what_is_scored():
    # %% ../nbs/14_icl_prompts.ipynb #ab95ae15
    tokenizer = tf.AutoTokenizer.from_pretrained(Path(pretrained.__code__.co_filename).parent/"embedded")

    def tiny(kind, room=256):
        "A random language model of two blocks, with weights large enough for its answers to differ."
        torch.manual_seed(0)
        common = dict(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, pad_token_id=0, initializer_range=.2)
        gpt = dict(n_embd=32, n_layer=2, n_head=2, n_positions=room)
        config, cls = {
            "llama": lambda: (tf.LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                num_attention_heads=2, max_position_embeddings=room, **common), tf.LlamaForCausalLM),
            "gpt2": lambda: (tf.GPT2Config(**gpt, **common), tf.GPT2LMHeadModel),
            "gptj": lambda: (tf.GPTJConfig(rotary_dim=8, **gpt, **common), tf.GPTJForCausalLM),
            "opt": lambda: (tf.OPTConfig(hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=2,
                word_embed_proj_dim=32, max_position_embeddings=room, init_std=.2,
                **{k: v for k, v in common.items() if k != "initializer_range"}), tf.OPTForCausalLM),
        }[kind]()
        return cls(config).eval()

    def message(error, call):
        "What a call complains of."
        try: call()
        except error as e: return str(e)
        raise AssertionError("nothing was raised")

    # %% ../nbs/14_icl_prompts.ipynb #2bce5c82
    FILED = [{"sentence": f"film {n} is {'good' if n % 2 else 'bad'}", "label": str(n % 2)} for n in range(40)]
    SENTENCES = ["good", "a film that does what it sets out to do and then some more", "no", "dull from end to end ,"]

    def made(rows):
        "Questions of SST-2."
        return [item_of(TASKS["sst2"], row) for row in rows]

    def worded(*words):
        "Eight questions of four lengths with other answers."
        rows = [{"sentence": f"{s} {n}", "label": n % 2} for n, s in enumerate(SENTENCES * 2)]
        return [item._replace(choices=words) for item in made(rows)]

    # %% ../nbs/14_icl_prompts.ipynb #b316547f
    s = torch.tensor([[1., 0.], [1 - 2., 0 - 0.], [0., 0.], [0., -math.inf], [-math.inf, 0.], [-math.inf]*2]).double()
    table = losses_and_credit(s, torch.zeros(6, dtype=torch.long))
    expected = [math.log(1 + math.exp(-1)), math.log(1 + math.e), math.log(2), 0, math.inf, math.inf]
    np.testing.assert_allclose(table[:, 0], expected, atol=1e-12)
    assert table[:, 1].tolist() == [1, 0, .5, 1, 0, .5]


def test_what_is_scored_2():
    # %% ../nbs/14_icl_prompts.ipynb #ab95ae15
    tokenizer = tf.AutoTokenizer.from_pretrained(Path(pretrained.__code__.co_filename).parent/"embedded")

    def tiny(kind, room=256):
        "A random language model of two blocks, with weights large enough for its answers to differ."
        torch.manual_seed(0)
        common = dict(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, pad_token_id=0, initializer_range=.2)
        gpt = dict(n_embd=32, n_layer=2, n_head=2, n_positions=room)
        config, cls = {
            "llama": lambda: (tf.LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                num_attention_heads=2, max_position_embeddings=room, **common), tf.LlamaForCausalLM),
            "gpt2": lambda: (tf.GPT2Config(**gpt, **common), tf.GPT2LMHeadModel),
            "gptj": lambda: (tf.GPTJConfig(rotary_dim=8, **gpt, **common), tf.GPTJForCausalLM),
            "opt": lambda: (tf.OPTConfig(hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=2,
                word_embed_proj_dim=32, max_position_embeddings=room, init_std=.2,
                **{k: v for k, v in common.items() if k != "initializer_range"}), tf.OPTForCausalLM),
        }[kind]()
        return cls(config).eval()

    def message(error, call):
        "What a call complains of."
        try: call()
        except error as e: return str(e)
        raise AssertionError("nothing was raised")

    # %% ../nbs/14_icl_prompts.ipynb #2bce5c82
    FILED = [{"sentence": f"film {n} is {'good' if n % 2 else 'bad'}", "label": str(n % 2)} for n in range(40)]
    SENTENCES = ["good", "a film that does what it sets out to do and then some more", "no", "dull from end to end ,"]

    def made(rows):
        "Questions of SST-2."
        return [item_of(TASKS["sst2"], row) for row in rows]

    def worded(*words):
        "Eight questions of four lengths with other answers."
        rows = [{"sentence": f"{s} {n}", "label": n % 2} for n, s in enumerate(SENTENCES * 2)]
        return [item._replace(choices=words) for item in made(rows)]

    # %% ../nbs/14_icl_prompts.ipynb #b9cd46b6
    s = torch.tensor([[0., math.nan], [math.nan, 0.], [-3., math.inf], [math.inf, -3.], [math.nan]*2]).double()
    for label in 0, 1:
        table = losses_and_credit(s, torch.full((5,), label))
        assert table[:, 0].isposinf().all() and not table[:, 1].any()
    mixed = losses_and_credit(torch.cat([s, torch.tensor([[1., 0.]])]), torch.zeros(6, dtype=torch.long))
    assert mixed[5, 1] == 1 and mixed[5, 0].isfinite()


def test_one_row_a_question_or_one_row_an_answer():
    # %% ../nbs/14_icl_prompts.ipynb #ab95ae15
    tokenizer = tf.AutoTokenizer.from_pretrained(Path(pretrained.__code__.co_filename).parent/"embedded")

    def tiny(kind, room=256):
        "A random language model of two blocks, with weights large enough for its answers to differ."
        torch.manual_seed(0)
        common = dict(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, pad_token_id=0, initializer_range=.2)
        gpt = dict(n_embd=32, n_layer=2, n_head=2, n_positions=room)
        config, cls = {
            "llama": lambda: (tf.LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                num_attention_heads=2, max_position_embeddings=room, **common), tf.LlamaForCausalLM),
            "gpt2": lambda: (tf.GPT2Config(**gpt, **common), tf.GPT2LMHeadModel),
            "gptj": lambda: (tf.GPTJConfig(rotary_dim=8, **gpt, **common), tf.GPTJForCausalLM),
            "opt": lambda: (tf.OPTConfig(hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=2,
                word_embed_proj_dim=32, max_position_embeddings=room, init_std=.2,
                **{k: v for k, v in common.items() if k != "initializer_range"}), tf.OPTForCausalLM),
        }[kind]()
        return cls(config).eval()

    def message(error, call):
        "What a call complains of."
        try: call()
        except error as e: return str(e)
        raise AssertionError("nothing was raised")

    # %% ../nbs/14_icl_prompts.ipynb #2bce5c82
    FILED = [{"sentence": f"film {n} is {'good' if n % 2 else 'bad'}", "label": str(n % 2)} for n in range(40)]
    SENTENCES = ["good", "a film that does what it sets out to do and then some more", "no", "dull from end to end ,"]

    def made(rows):
        "Questions of SST-2."
        return [item_of(TASKS["sst2"], row) for row in rows]

    def worded(*words):
        "Eight questions of four lengths with other answers."
        rows = [{"sentence": f"{s} {n}", "label": n % 2} for n, s in enumerate(SENTENCES * 2)]
        return [item._replace(choices=words) for item in made(rows)]

    # %% ../nbs/14_icl_prompts.ipynb #4050e769
    class Table(nn.Module):
        "Predicts the next token from the last by a table of logits; all others are at -30."
        def __init__(self, **logits):
            super().__init__()
            self.logits = torch.full((len(tokenizer), len(tokenizer)), -30.)
            for last, nexts in logits.items():
                for token, value in nexts.items(): self.logits[code(last), code(token)] = value

        def forward(self, input_ids, **kwargs): return SimpleNamespace(logits=self.logits[input_ids])

    def code(c): return tokenizer(c)["input_ids"][0]

    # %% ../nbs/14_icl_prompts.ipynb #70df6c23
    by_hand = Table(q={"a": 1, "b": 0}, A={"a": 2, "b": 0}, b={"z": 1, "y": 0})
    first, second = Item("q", ("a", "b"), 0, "N/A"), Item("qq", ("a", "b"), 1, "N/A")
    def scored(*items, **options): return item_scores(by_hand, prompt_scorer(list(items), [], tokenizer, **options))

    for one_row in True, False:
        plain_scores = scored(first, second, one_row=one_row)
        np.testing.assert_allclose(plain_scores[:, 0], [math.log(1 + math.exp(-1)), math.log(1 + math.e)], atol=1e-6)
        freed = scored(first, second, calibrated=True, one_row=one_row)
        np.testing.assert_allclose(freed[:, 0], [math.log(1 + math.e), math.log(1 + math.exp(-1))], atol=1e-6)
        assert plain_scores[:, 1].tolist() == [1, 0] and freed[:, 1].tolist() == [0, 1]

    ln_a, ln_b = (v - math.log(1 + math.e) for v in (1, 0))
    longer = scored(Item("q", ("a", "bz"), 0, "N/A"))  # the z is as probable after b as a is after q
    np.testing.assert_allclose(longer[0, 0], math.log(1 + math.exp((ln_b + ln_a)/2 - ln_a)), atol=1e-6)


def test_one_row_a_question_or_one_row_an_answer_2():
    # %% ../nbs/14_icl_prompts.ipynb #ab95ae15
    tokenizer = tf.AutoTokenizer.from_pretrained(Path(pretrained.__code__.co_filename).parent/"embedded")

    def tiny(kind, room=256):
        "A random language model of two blocks, with weights large enough for its answers to differ."
        torch.manual_seed(0)
        common = dict(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, pad_token_id=0, initializer_range=.2)
        gpt = dict(n_embd=32, n_layer=2, n_head=2, n_positions=room)
        config, cls = {
            "llama": lambda: (tf.LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                num_attention_heads=2, max_position_embeddings=room, **common), tf.LlamaForCausalLM),
            "gpt2": lambda: (tf.GPT2Config(**gpt, **common), tf.GPT2LMHeadModel),
            "gptj": lambda: (tf.GPTJConfig(rotary_dim=8, **gpt, **common), tf.GPTJForCausalLM),
            "opt": lambda: (tf.OPTConfig(hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=2,
                word_embed_proj_dim=32, max_position_embeddings=room, init_std=.2,
                **{k: v for k, v in common.items() if k != "initializer_range"}), tf.OPTForCausalLM),
        }[kind]()
        return cls(config).eval()

    def message(error, call):
        "What a call complains of."
        try: call()
        except error as e: return str(e)
        raise AssertionError("nothing was raised")

    # %% ../nbs/14_icl_prompts.ipynb #2bce5c82
    FILED = [{"sentence": f"film {n} is {'good' if n % 2 else 'bad'}", "label": str(n % 2)} for n in range(40)]
    SENTENCES = ["good", "a film that does what it sets out to do and then some more", "no", "dull from end to end ,"]

    def made(rows):
        "Questions of SST-2."
        return [item_of(TASKS["sst2"], row) for row in rows]

    def worded(*words):
        "Eight questions of four lengths with other answers."
        rows = [{"sentence": f"{s} {n}", "label": n % 2} for n, s in enumerate(SENTENCES * 2)]
        return [item._replace(choices=words) for item in made(rows)]

    # %% ../nbs/14_icl_prompts.ipynb #4050e769
    class Table(nn.Module):
        "Predicts the next token from the last by a table of logits; all others are at -30."
        def __init__(self, **logits):
            super().__init__()
            self.logits = torch.full((len(tokenizer), len(tokenizer)), -30.)
            for last, nexts in logits.items():
                for token, value in nexts.items(): self.logits[code(last), code(token)] = value

        def forward(self, input_ids, **kwargs): return SimpleNamespace(logits=self.logits[input_ids])

    def code(c): return tokenizer(c)["input_ids"][0]

    # %% ../nbs/14_icl_prompts.ipynb #36ad9916
    films, SINGLE, LONGER = made(FILED), worded(" false", " true"), worded(" not at all", " true")
    for kind in "llama", "gpt2", "opt", "gptj":
        model = tiny(kind)
        for calibrated in False, True:
            one = item_scores(model, prompt_scorer(SINGLE, films[:3], tokenizer, 256, calibrated, one_row=True))
            assert prompt_scorer(SINGLE, films[:3], tokenizer, 256, calibrated).batches[0].answers is not None
            for items in SINGLE, LONGER:
                base = item_scores(model, prompt_scorer(items, films[:3], tokenizer, 256, calibrated, one_row=False))
                if items is SINGLE: torch.testing.assert_close(one, base, atol=1e-5, rtol=0)
                assert base[:, 0].std() > 1e-3
                turned = [i._replace(choices=i.choices[::-1], label=1 - i.label) for i in items[::-1]]
                for size in 1, 3:
                    other = item_scores(model, prompt_scorer(turned, films[:3], tokenizer, 256, calibrated, size))
                    torch.testing.assert_close(base, other.flip(0), atol=1e-5, rtol=0)


def test_one_row_a_question_or_one_row_an_answer_3():
    # %% ../nbs/14_icl_prompts.ipynb #ab95ae15
    tokenizer = tf.AutoTokenizer.from_pretrained(Path(pretrained.__code__.co_filename).parent/"embedded")

    def tiny(kind, room=256):
        "A random language model of two blocks, with weights large enough for its answers to differ."
        torch.manual_seed(0)
        common = dict(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, pad_token_id=0, initializer_range=.2)
        gpt = dict(n_embd=32, n_layer=2, n_head=2, n_positions=room)
        config, cls = {
            "llama": lambda: (tf.LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                num_attention_heads=2, max_position_embeddings=room, **common), tf.LlamaForCausalLM),
            "gpt2": lambda: (tf.GPT2Config(**gpt, **common), tf.GPT2LMHeadModel),
            "gptj": lambda: (tf.GPTJConfig(rotary_dim=8, **gpt, **common), tf.GPTJForCausalLM),
            "opt": lambda: (tf.OPTConfig(hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=2,
                word_embed_proj_dim=32, max_position_embeddings=room, init_std=.2,
                **{k: v for k, v in common.items() if k != "initializer_range"}), tf.OPTForCausalLM),
        }[kind]()
        return cls(config).eval()

    def message(error, call):
        "What a call complains of."
        try: call()
        except error as e: return str(e)
        raise AssertionError("nothing was raised")

    # %% ../nbs/14_icl_prompts.ipynb #2bce5c82
    FILED = [{"sentence": f"film {n} is {'good' if n % 2 else 'bad'}", "label": str(n % 2)} for n in range(40)]
    SENTENCES = ["good", "a film that does what it sets out to do and then some more", "no", "dull from end to end ,"]

    def made(rows):
        "Questions of SST-2."
        return [item_of(TASKS["sst2"], row) for row in rows]

    def worded(*words):
        "Eight questions of four lengths with other answers."
        rows = [{"sentence": f"{s} {n}", "label": n % 2} for n, s in enumerate(SENTENCES * 2)]
        return [item._replace(choices=words) for item in made(rows)]

    # %% ../nbs/14_icl_prompts.ipynb #4050e769
    class Table(nn.Module):
        "Predicts the next token from the last by a table of logits; all others are at -30."
        def __init__(self, **logits):
            super().__init__()
            self.logits = torch.full((len(tokenizer), len(tokenizer)), -30.)
            for last, nexts in logits.items():
                for token, value in nexts.items(): self.logits[code(last), code(token)] = value

        def forward(self, input_ids, **kwargs): return SimpleNamespace(logits=self.logits[input_ids])

    def code(c): return tokenizer(c)["input_ids"][0]

    # %% ../nbs/14_icl_prompts.ipynb #b6dcef3a
    model, row = tiny("gpt2"), torch.tensor([tokenizer("text: good\nsentiment:")["input_ids"]])
    left, right = (torch.nn.functional.pad(row, side) for side in ((7, 0), (0, 7)))
    with torch.no_grad():
        alone = model(row).logits[0, -1]
        on_right = model(right, attention_mask=(right > 0).long()).logits[0, row.shape[1] - 1]
        on_left = model(left, attention_mask=(left > 0).long()).logits[0, -1]
    assert (alone - on_right).abs().max() < 1e-5 < 1e-2 < (alone - on_left).abs().max()


def test_one_row_a_question_or_one_row_an_answer_4():
    # %% ../nbs/14_icl_prompts.ipynb #ab95ae15
    tokenizer = tf.AutoTokenizer.from_pretrained(Path(pretrained.__code__.co_filename).parent/"embedded")

    def tiny(kind, room=256):
        "A random language model of two blocks, with weights large enough for its answers to differ."
        torch.manual_seed(0)
        common = dict(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, pad_token_id=0, initializer_range=.2)
        gpt = dict(n_embd=32, n_layer=2, n_head=2, n_positions=room)
        config, cls = {
            "llama": lambda: (tf.LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                num_attention_heads=2, max_position_embeddings=room, **common), tf.LlamaForCausalLM),
            "gpt2": lambda: (tf.GPT2Config(**gpt, **common), tf.GPT2LMHeadModel),
            "gptj": lambda: (tf.GPTJConfig(rotary_dim=8, **gpt, **common), tf.GPTJForCausalLM),
            "opt": lambda: (tf.OPTConfig(hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=2,
                word_embed_proj_dim=32, max_position_embeddings=room, init_std=.2,
                **{k: v for k, v in common.items() if k != "initializer_range"}), tf.OPTForCausalLM),
        }[kind]()
        return cls(config).eval()

    def message(error, call):
        "What a call complains of."
        try: call()
        except error as e: return str(e)
        raise AssertionError("nothing was raised")

    # %% ../nbs/14_icl_prompts.ipynb #2bce5c82
    FILED = [{"sentence": f"film {n} is {'good' if n % 2 else 'bad'}", "label": str(n % 2)} for n in range(40)]
    SENTENCES = ["good", "a film that does what it sets out to do and then some more", "no", "dull from end to end ,"]

    def made(rows):
        "Questions of SST-2."
        return [item_of(TASKS["sst2"], row) for row in rows]

    def worded(*words):
        "Eight questions of four lengths with other answers."
        rows = [{"sentence": f"{s} {n}", "label": n % 2} for n, s in enumerate(SENTENCES * 2)]
        return [item._replace(choices=words) for item in made(rows)]

    # %% ../nbs/14_icl_prompts.ipynb #4050e769
    class Table(nn.Module):
        "Predicts the next token from the last by a table of logits; all others are at -30."
        def __init__(self, **logits):
            super().__init__()
            self.logits = torch.full((len(tokenizer), len(tokenizer)), -30.)
            for last, nexts in logits.items():
                for token, value in nexts.items(): self.logits[code(last), code(token)] = value

        def forward(self, input_ids, **kwargs): return SimpleNamespace(logits=self.logits[input_ids])

    def code(c): return tokenizer(c)["input_ids"][0]

    # %% ../nbs/14_icl_prompts.ipynb #594932c3
    opened = tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, bos_token="<|endoftext|>")
    closed = tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer)
    SINGLE = worded(" false", " true")
    assert opened.bos_token_id is not None and closed.bos_token_id is None
    for calibrated in False, True:
        with_bos, without = (prompt_scorer(SINGLE, [], t, 256, calibrated, one_row=True) for t in (opened, closed))
        rows = with_bos.batches[0].rows, without.batches[0].rows
        assert rows[0].ids.shape[1] == rows[1].ids.shape[1] + 1 and (rows[0].ids[:, 0] == opened.bos_token_id).all()
        agree = item_scores(tiny("llama"), without), item_scores(tiny("llama"), prompt_scorer(SINGLE, [], closed, 256,
                                                                                            calibrated, one_row=False))
        torch.testing.assert_close(*agree, atol=1e-5, rtol=0)
    assert "nothing stands" in message(TextError, lambda: prompt_scorer([SINGLE[0]._replace(prompt="")], [], closed))


def test_one_row_a_question_or_one_row_an_answer_5():
    # %% ../nbs/14_icl_prompts.ipynb #ab95ae15
    tokenizer = tf.AutoTokenizer.from_pretrained(Path(pretrained.__code__.co_filename).parent/"embedded")

    def tiny(kind, room=256):
        "A random language model of two blocks, with weights large enough for its answers to differ."
        torch.manual_seed(0)
        common = dict(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, pad_token_id=0, initializer_range=.2)
        gpt = dict(n_embd=32, n_layer=2, n_head=2, n_positions=room)
        config, cls = {
            "llama": lambda: (tf.LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                num_attention_heads=2, max_position_embeddings=room, **common), tf.LlamaForCausalLM),
            "gpt2": lambda: (tf.GPT2Config(**gpt, **common), tf.GPT2LMHeadModel),
            "gptj": lambda: (tf.GPTJConfig(rotary_dim=8, **gpt, **common), tf.GPTJForCausalLM),
            "opt": lambda: (tf.OPTConfig(hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=2,
                word_embed_proj_dim=32, max_position_embeddings=room, init_std=.2,
                **{k: v for k, v in common.items() if k != "initializer_range"}), tf.OPTForCausalLM),
        }[kind]()
        return cls(config).eval()

    def message(error, call):
        "What a call complains of."
        try: call()
        except error as e: return str(e)
        raise AssertionError("nothing was raised")

    # %% ../nbs/14_icl_prompts.ipynb #2bce5c82
    FILED = [{"sentence": f"film {n} is {'good' if n % 2 else 'bad'}", "label": str(n % 2)} for n in range(40)]
    SENTENCES = ["good", "a film that does what it sets out to do and then some more", "no", "dull from end to end ,"]

    def made(rows):
        "Questions of SST-2."
        return [item_of(TASKS["sst2"], row) for row in rows]

    def worded(*words):
        "Eight questions of four lengths with other answers."
        rows = [{"sentence": f"{s} {n}", "label": n % 2} for n, s in enumerate(SENTENCES * 2)]
        return [item._replace(choices=words) for item in made(rows)]

    # %% ../nbs/14_icl_prompts.ipynb #4050e769
    class Table(nn.Module):
        "Predicts the next token from the last by a table of logits; all others are at -30."
        def __init__(self, **logits):
            super().__init__()
            self.logits = torch.full((len(tokenizer), len(tokenizer)), -30.)
            for last, nexts in logits.items():
                for token, value in nexts.items(): self.logits[code(last), code(token)] = value

        def forward(self, input_ids, **kwargs): return SimpleNamespace(logits=self.logits[input_ids])

    def code(c): return tokenizer(c)["input_ids"][0]

    # %% ../nbs/14_icl_prompts.ipynb #9afdbf49
    broken = tiny("llama")
    broken.lm_head.weight.data.fill_(math.nan)
    for one_row in True, False:
        scorer = prompt_scorer(worded(" false", " true"), [], tokenizer, calibrated=True, one_row=one_row)
        table = item_scores(broken, scorer)
        assert table[:, 0].isposinf().all() and not table[:, 1].any()
    half = Table(q={"a": 1, "b": 0}, b={"z": math.nan})
    scorer = prompt_scorer([Item("q", ("a", "bz"), label, "N/A") for label in (0, 1)], [], tokenizer)
    assert item_scores(half, scorer).tolist() == [[math.inf, 0.], [math.inf, 0.]]


def test_what_is_refused():
    # %% ../nbs/14_icl_prompts.ipynb #ab95ae15
    tokenizer = tf.AutoTokenizer.from_pretrained(Path(pretrained.__code__.co_filename).parent/"embedded")

    def tiny(kind, room=256):
        "A random language model of two blocks, with weights large enough for its answers to differ."
        torch.manual_seed(0)
        common = dict(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, pad_token_id=0, initializer_range=.2)
        gpt = dict(n_embd=32, n_layer=2, n_head=2, n_positions=room)
        config, cls = {
            "llama": lambda: (tf.LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                num_attention_heads=2, max_position_embeddings=room, **common), tf.LlamaForCausalLM),
            "gpt2": lambda: (tf.GPT2Config(**gpt, **common), tf.GPT2LMHeadModel),
            "gptj": lambda: (tf.GPTJConfig(rotary_dim=8, **gpt, **common), tf.GPTJForCausalLM),
            "opt": lambda: (tf.OPTConfig(hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=2,
                word_embed_proj_dim=32, max_position_embeddings=room, init_std=.2,
                **{k: v for k, v in common.items() if k != "initializer_range"}), tf.OPTForCausalLM),
        }[kind]()
        return cls(config).eval()

    def message(error, call):
        "What a call complains of."
        try: call()
        except error as e: return str(e)
        raise AssertionError("nothing was raised")

    # %% ../nbs/14_icl_prompts.ipynb #2bce5c82
    FILED = [{"sentence": f"film {n} is {'good' if n % 2 else 'bad'}", "label": str(n % 2)} for n in range(40)]
    SENTENCES = ["good", "a film that does what it sets out to do and then some more", "no", "dull from end to end ,"]

    def made(rows):
        "Questions of SST-2."
        return [item_of(TASKS["sst2"], row) for row in rows]

    def worded(*words):
        "Eight questions of four lengths with other answers."
        rows = [{"sentence": f"{s} {n}", "label": n % 2} for n, s in enumerate(SENTENCES * 2)]
        return [item._replace(choices=words) for item in made(rows)]

    # %% ../nbs/14_icl_prompts.ipynb #e03b45ad
    for words, wrong in (((" true", ""), "no valid label token"), ((" true", " true"), "same tokens"),
                         ((" not", " not at all"), "' not' is how the answer ' not at all' begins"),
                         ((" not at all", " not"), "' not' is how the answer ' not at all' begins"),
                         ((" true",), "two or more")):
        assert wrong in message(SettingError, lambda words=words: prompt_scorer(worded(*words), [], tokenizer))
    for words in (" not at all", " true"), (" not so", " not at all"):
        refused = message(SettingError, lambda words=words: prompt_scorer(worded(*words), [], tokenizer, one_row=True))
        assert "one token each" in refused and words[0] in refused
    SINGLE = worded(" false", " true")
    assert "no questions" in message(SettingError, lambda: prompt_scorer([], [], tokenizer))
    assert "1 of the questions are demonstrations too, with their answers, such as 'text: good 0 sentiment:" in message(
        SettingError, lambda: prompt_scorer(SINGLE, [made(FILED)[1], SINGLE[0]], tokenizer))
    assert "batch_size=0" in message(SettingError, lambda: prompt_scorer(SINGLE, [], tokenizer, batch_size=0))

    known = tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, unk_token="!")
    assert "does not know" in message(SettingError, lambda: prompt_scorer(worded(" true", " no!"), [], known))


def test_what_is_refused_2():
    # %% ../nbs/14_icl_prompts.ipynb #ab95ae15
    tokenizer = tf.AutoTokenizer.from_pretrained(Path(pretrained.__code__.co_filename).parent/"embedded")

    def tiny(kind, room=256):
        "A random language model of two blocks, with weights large enough for its answers to differ."
        torch.manual_seed(0)
        common = dict(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, pad_token_id=0, initializer_range=.2)
        gpt = dict(n_embd=32, n_layer=2, n_head=2, n_positions=room)
        config, cls = {
            "llama": lambda: (tf.LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                num_attention_heads=2, max_position_embeddings=room, **common), tf.LlamaForCausalLM),
            "gpt2": lambda: (tf.GPT2Config(**gpt, **common), tf.GPT2LMHeadModel),
            "gptj": lambda: (tf.GPTJConfig(rotary_dim=8, **gpt, **common), tf.GPTJForCausalLM),
            "opt": lambda: (tf.OPTConfig(hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=2,
                word_embed_proj_dim=32, max_position_embeddings=room, init_std=.2,
                **{k: v for k, v in common.items() if k != "initializer_range"}), tf.OPTForCausalLM),
        }[kind]()
        return cls(config).eval()

    def message(error, call):
        "What a call complains of."
        try: call()
        except error as e: return str(e)
        raise AssertionError("nothing was raised")

    # %% ../nbs/14_icl_prompts.ipynb #2bce5c82
    FILED = [{"sentence": f"film {n} is {'good' if n % 2 else 'bad'}", "label": str(n % 2)} for n in range(40)]
    SENTENCES = ["good", "a film that does what it sets out to do and then some more", "no", "dull from end to end ,"]

    def made(rows):
        "Questions of SST-2."
        return [item_of(TASKS["sst2"], row) for row in rows]

    def worded(*words):
        "Eight questions of four lengths with other answers."
        rows = [{"sentence": f"{s} {n}", "label": n % 2} for n, s in enumerate(SENTENCES * 2)]
        return [item._replace(choices=words) for item in made(rows)]

    # %% ../nbs/14_icl_prompts.ipynb #240e24e4
    SINGLE = worded(" false", " true")
    reads = [max(len(ids) for ids, _ in answer_rows(tokenizer, i.prompt, i.choices, None, "")) for i in SINGLE]
    refused = message(TextError, lambda: prompt_scorer(SINGLE, [], tokenizer, max(reads) - 2))
    assert f"item 1 has {max(reads)} tokens to read, 2 more than the context of {max(reads) - 2}" in refused
    assert len(prompt_scorer(SINGLE, [], tokenizer, max(reads)).keys) == 8


def test_what_is_refused_3():
    # %% ../nbs/14_icl_prompts.ipynb #ab95ae15
    tokenizer = tf.AutoTokenizer.from_pretrained(Path(pretrained.__code__.co_filename).parent/"embedded")

    def tiny(kind, room=256):
        "A random language model of two blocks, with weights large enough for its answers to differ."
        torch.manual_seed(0)
        common = dict(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, pad_token_id=0, initializer_range=.2)
        gpt = dict(n_embd=32, n_layer=2, n_head=2, n_positions=room)
        config, cls = {
            "llama": lambda: (tf.LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                num_attention_heads=2, max_position_embeddings=room, **common), tf.LlamaForCausalLM),
            "gpt2": lambda: (tf.GPT2Config(**gpt, **common), tf.GPT2LMHeadModel),
            "gptj": lambda: (tf.GPTJConfig(rotary_dim=8, **gpt, **common), tf.GPTJForCausalLM),
            "opt": lambda: (tf.OPTConfig(hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=2,
                word_embed_proj_dim=32, max_position_embeddings=room, init_std=.2,
                **{k: v for k, v in common.items() if k != "initializer_range"}), tf.OPTForCausalLM),
        }[kind]()
        return cls(config).eval()

    def message(error, call):
        "What a call complains of."
        try: call()
        except error as e: return str(e)
        raise AssertionError("nothing was raised")

    # %% ../nbs/14_icl_prompts.ipynb #2bce5c82
    FILED = [{"sentence": f"film {n} is {'good' if n % 2 else 'bad'}", "label": str(n % 2)} for n in range(40)]
    SENTENCES = ["good", "a film that does what it sets out to do and then some more", "no", "dull from end to end ,"]

    def made(rows):
        "Questions of SST-2."
        return [item_of(TASKS["sst2"], row) for row in rows]

    def worded(*words):
        "Eight questions of four lengths with other answers."
        rows = [{"sentence": f"{s} {n}", "label": n % 2} for n, s in enumerate(SENTENCES * 2)]
        return [item._replace(choices=words) for item in made(rows)]

    # %% ../nbs/14_icl_prompts.ipynb #5fa16c9b
    films, SINGLE = made(FILED), worded(" false", " true")
    reads = [max(len(ids) for ids, _ in answer_rows(tokenizer, i.prompt, i.choices, None, "")) for i in SINGLE]
    short = max(reads[0], reads[2])
    assert fitting(SINGLE, [], tokenizer, max(reads)) == SINGLE and SINGLE[1] not in fitting(SINGLE, [], tokenizer, short)
    assert fitting(SINGLE, films[:1], tokenizer, short) == []
    splits = Splits(films[:12], SINGLE[::2] + films[15:20], SINGLE[1::2] + films[20:30])
    splits = splits._replace(test=[*splits.test, SINGLE[0]._replace(prompt="text: other\nsentiment:")])
    assert fitted(splits, tokenizer, 512)[1:] == splits[1:] and len(fitted(splits, tokenizer, 512).demos) == 12
    for share in .7, 1:
        roomy = fitted(splits, tokenizer, 70, share)
        assert 0 < len(roomy.demos) < 12 and set(roomy.demos) < set(splits.demos)
        assert len(roomy.test) >= share*len(splits.test) and (len(roomy.test) < len(splits.test)) == (share < 1)
        prompt_scorer(roomy.test, roomy.demos, tokenizer, 70)
    assert "expected 90%" in message(TextError, lambda: fitted(splits, tokenizer, 3))


def test_chance():
    # %% ../nbs/14_icl_prompts.ipynb #ab95ae15
    tokenizer = tf.AutoTokenizer.from_pretrained(Path(pretrained.__code__.co_filename).parent/"embedded")

    def tiny(kind, room=256):
        "A random language model of two blocks, with weights large enough for its answers to differ."
        torch.manual_seed(0)
        common = dict(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, pad_token_id=0, initializer_range=.2)
        gpt = dict(n_embd=32, n_layer=2, n_head=2, n_positions=room)
        config, cls = {
            "llama": lambda: (tf.LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                num_attention_heads=2, max_position_embeddings=room, **common), tf.LlamaForCausalLM),
            "gpt2": lambda: (tf.GPT2Config(**gpt, **common), tf.GPT2LMHeadModel),
            "gptj": lambda: (tf.GPTJConfig(rotary_dim=8, **gpt, **common), tf.GPTJForCausalLM),
            "opt": lambda: (tf.OPTConfig(hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=2,
                word_embed_proj_dim=32, max_position_embeddings=room, init_std=.2,
                **{k: v for k, v in common.items() if k != "initializer_range"}), tf.OPTForCausalLM),
        }[kind]()
        return cls(config).eval()

    def message(error, call):
        "What a call complains of."
        try: call()
        except error as e: return str(e)
        raise AssertionError("nothing was raised")

    # %% ../nbs/14_icl_prompts.ipynb #2bce5c82
    FILED = [{"sentence": f"film {n} is {'good' if n % 2 else 'bad'}", "label": str(n % 2)} for n in range(40)]
    SENTENCES = ["good", "a film that does what it sets out to do and then some more", "no", "dull from end to end ,"]

    def made(rows):
        "Questions of SST-2."
        return [item_of(TASKS["sst2"], row) for row in rows]

    def worded(*words):
        "Eight questions of four lengths with other answers."
        rows = [{"sentence": f"{s} {n}", "label": n % 2} for n, s in enumerate(SENTENCES * 2)]
        return [item._replace(choices=words) for item in made(rows)]

    # %% ../nbs/14_icl_prompts.ipynb #0b55464b
    @settings(deadline=None, max_examples=25, derandomize=True)
    @given(st.integers(2, 6), st.integers(2, 400), st.integers(0, 2**32))
    def chance_is_chance(k, n, seed):
        rng = np.random.default_rng(seed)
        items = [Item("q", tuple(" abcdef"[:k]), int(label), "n") for label in rng.integers(k, size=n)]
        found = baselines(items)
        assert math.isclose(found["chance"], 1/k) and math.isclose(found["guess_loss"], math.log(k))
        assert math.isclose(found["chance_se"], math.sqrt((k - 1)/n)/k) and found["majority"] >= 1/k
        guesses = losses_and_credit(torch.from_numpy(rng.normal(size=(n, k))), torch.tensor([i.label for i in items]))
        assert abs(guesses[:, 1].mean() - found["chance"]) < 5*found["chance_se"]

    chance_is_chance()
