import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from contextlib import redirect_stdout
from itertools import product
from pathlib import Path
import torch
import torch.distributed as dist
import transformers as tf
from torch.nn.parallel import DistributedDataParallel
import pathlm
from pathlm.adapters.core import UNSENT
from pathlm.adapters.core import adapters
from pathlm.adapters.core import parameter_groups
from pathlm.adapters.core import trained
from pathlm.adapters.lora import random_rule
from pathlm.adapters.lora import rank_space
from pathlm.adapters.lora import set_ranks
from pathlm.adapters.lora import smallest
from pathlm.grid import quantize
from pathlm.shiftadd.layer import shift_add


def test_training_in_several_processes():
    # %% ../nbs/58_processes.ipynb #dc0456ec
    def tiny(base="dense"):
        "A random Llama of two blocks, its linear layers in a stored form if one is named."
        torch.manual_seed(0)
        model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=96, hidden_size=32, intermediate_size=48, pad_token_id=0,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2))
        if base == "int4": quantize(model, bits=4, group=16, method="rtn")
        if base == "shift": shift_add(model, bits=3, block=(1, 16))
        return model

    lora = pathlm.LoRA(r=4, target_modules=["q_proj", "v_proj"])
    elastic = pathlm.LoRA(r=4, target_modules=["q_proj", "v_proj"], elastic={"q_proj,v_proj": [4, 2, 1]})
    vblora = pathlm.VBLoRA(r=2, num_vectors=12, vector_length=16)
    svft = pathlm.SVFT(pattern="banded", off_diagonal=1)

    # %% ../nbs/58_processes.ipynb #437d2760
    def gradient(model, ids, labels):
        "The gradient of the loss, as one vector."
        model.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    def by_shares(n_few):
        "How far the weighted sum and the mean of two shares are from the whole gradient, one with few tokens a sequence."
        model = tiny()
        pathlm.attach(model, lora)
        ids = torch.randint(0, 96, (8, 12), generator=torch.Generator().manual_seed(1))
        labels = ids.clone()
        labels[4:, :12 - n_few] = -100
        g = gradient(model, ids, labels)
        shares = [gradient(model, ids[rows], labels[rows]) for rows in (slice(4), slice(4, 8))]
        n = [(labels[rows, 1:] >= 0).sum() for rows in (slice(4), slice(4, 8))]
        weighted = sum(m*share for m, share in zip(n, shares))/sum(n)
        return [float((h - g).norm()/g.norm()) for h in (weighted, sum(shares)/2)]

    # %% ../nbs/58_processes.ipynb #8fec4fe4
    weighted, mean = by_shares(n_few=3)
    assert weighted < 1e-5 and mean > .1
    assert max(by_shares(n_few=11)) < 1e-5
    print(f"the mean is off by {mean:.0%}")


def test_what_goes_between_processes():
    # %% ../nbs/58_processes.ipynb #dc0456ec
    def tiny(base="dense"):
        "A random Llama of two blocks, its linear layers in a stored form if one is named."
        torch.manual_seed(0)
        model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=96, hidden_size=32, intermediate_size=48, pad_token_id=0,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2))
        if base == "int4": quantize(model, bits=4, group=16, method="rtn")
        if base == "shift": shift_add(model, bits=3, block=(1, 16))
        return model

    lora = pathlm.LoRA(r=4, target_modules=["q_proj", "v_proj"])
    elastic = pathlm.LoRA(r=4, target_modules=["q_proj", "v_proj"], elastic={"q_proj,v_proj": [4, 2, 1]})
    vblora = pathlm.VBLoRA(r=2, num_vectors=12, vector_length=16)
    svft = pathlm.SVFT(pattern="banded", off_diagonal=1)

    # %% ../nbs/58_processes.ipynb #437d2760
    def gradient(model, ids, labels):
        "The gradient of the loss, as one vector."
        model.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    def by_shares(n_few):
        "How far the weighted sum and the mean of two shares are from the whole gradient, one with few tokens a sequence."
        model = tiny()
        pathlm.attach(model, lora)
        ids = torch.randint(0, 96, (8, 12), generator=torch.Generator().manual_seed(1))
        labels = ids.clone()
        labels[4:, :12 - n_few] = -100
        g = gradient(model, ids, labels)
        shares = [gradient(model, ids[rows], labels[rows]) for rows in (slice(4), slice(4, 8))]
        n = [(labels[rows, 1:] >= 0).sum() for rows in (slice(4), slice(4, 8))]
        weighted = sum(m*share for m, share in zip(n, shares))/sum(n)
        return [float((h - g).norm()/g.norm()) for h in (weighted, sum(shares)/2)]

    # %% ../nbs/58_processes.ipynb #fa3a468f
    @contextmanager
    def alone():
        "A process group of this process."
        with tempfile.TemporaryDirectory() as d:
            dist.init_process_group("gloo", init_method=f"file://{d}/store", rank=0, world_size=1)
            try: yield
            finally: dist.destroy_process_group()

    def counted(sent, bucket):
        "Count what a bucket of gradients takes."
        sent.append(bucket.buffer().nbytes)
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    def step(wrapped, ids=None):
        "A forward and a backward pass."
        ids = torch.arange(24).view(2, 12) if ids is None else ids
        wrapped(input_ids=ids, labels=ids).loss.backward()

    # %% ../nbs/58_processes.ipynb #f4d7373b
    with alone():
        for base, config in [*product(["int4"], [lora, elastic, vblora, svft]), ("shift", lora)]:
            model, sent = tiny(base), []
            pathlm.attach(model, config)
            wrapped = DistributedDataParallel(model)
            wrapped.register_comm_hook(sent, counted)
            step(wrapped)
            assert sum(sent) == 4*trained(model)
            assert all(p.grad is not None for group in parameter_groups(model) for p in group["params"])


def test_what_goes_between_processes_2():
    # %% ../nbs/58_processes.ipynb #dc0456ec
    def tiny(base="dense"):
        "A random Llama of two blocks, its linear layers in a stored form if one is named."
        torch.manual_seed(0)
        model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=96, hidden_size=32, intermediate_size=48, pad_token_id=0,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2))
        if base == "int4": quantize(model, bits=4, group=16, method="rtn")
        if base == "shift": shift_add(model, bits=3, block=(1, 16))
        return model

    lora = pathlm.LoRA(r=4, target_modules=["q_proj", "v_proj"])
    elastic = pathlm.LoRA(r=4, target_modules=["q_proj", "v_proj"], elastic={"q_proj,v_proj": [4, 2, 1]})
    vblora = pathlm.VBLoRA(r=2, num_vectors=12, vector_length=16)
    svft = pathlm.SVFT(pattern="banded", off_diagonal=1)

    # %% ../nbs/58_processes.ipynb #437d2760
    def gradient(model, ids, labels):
        "The gradient of the loss, as one vector."
        model.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    def by_shares(n_few):
        "How far the weighted sum and the mean of two shares are from the whole gradient, one with few tokens a sequence."
        model = tiny()
        pathlm.attach(model, lora)
        ids = torch.randint(0, 96, (8, 12), generator=torch.Generator().manual_seed(1))
        labels = ids.clone()
        labels[4:, :12 - n_few] = -100
        g = gradient(model, ids, labels)
        shares = [gradient(model, ids[rows], labels[rows]) for rows in (slice(4), slice(4, 8))]
        n = [(labels[rows, 1:] >= 0).sum() for rows in (slice(4), slice(4, 8))]
        weighted = sum(m*share for m, share in zip(n, shares))/sum(n)
        return [float((h - g).norm()/g.norm()) for h in (weighted, sum(shares)/2)]

    # %% ../nbs/58_processes.ipynb #fa3a468f
    @contextmanager
    def alone():
        "A process group of this process."
        with tempfile.TemporaryDirectory() as d:
            dist.init_process_group("gloo", init_method=f"file://{d}/store", rank=0, world_size=1)
            try: yield
            finally: dist.destroy_process_group()

    def counted(sent, bucket):
        "Count what a bucket of gradients takes."
        sent.append(bucket.buffer().nbytes)
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    def step(wrapped, ids=None):
        "A forward and a backward pass."
        ids = torch.arange(24).view(2, 12) if ids is None else ids
        wrapped(input_ids=ids, labels=ids).loss.backward()

    # %% ../nbs/58_processes.ipynb #25b4de38
    def left(model): return set(getattr(model, UNSENT, ()))

    def kept(model):
        "All buffers but those of the rotary embedding."
        return {n for n, _ in model.named_buffers() if "rotary" not in n}

    # %% ../nbs/58_processes.ipynb #5b60f27d
    for base, code in ("int4", "scale_bits"), ("shift", "numbers"):
        model = tiny(base)
        pathlm.attach(model, lora)
        codes = f"layers.0.self_attn.q_proj.base.{code}"
        assert left(model) == kept(model) and f"model.{codes}" in left(model)
        assert model.get_buffer(f"model.{codes}").dtype == torch.int16
        pathlm.attach(model, svft, "second")
        assert left(model) == kept(model) and f"model.layers.0.mlp.up_proj.base.{code}" in left(model)
        assert any(n.endswith(".Vh") for n in left(model))
        pathlm.detach(model, "second")
        assert left(model) == kept(model) and f"model.layers.0.mlp.up_proj.{code}" in left(model)
        assert not left(pathlm.detach(model))

    model, own = tiny("int4"), ["lm_head.weight"]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, own)
    pathlm.attach(model, lora)
    assert left(model) == kept(model) | {*own}
    pathlm.attach(model, vblora, "second")
    pathlm.detach(model, "second")
    assert left(model) == kept(model) | {*own}
    assert getattr(pathlm.detach(model), UNSENT) == own == ["lm_head.weight"]


def test_what_goes_between_processes_3():
    # %% ../nbs/58_processes.ipynb #dc0456ec
    def tiny(base="dense"):
        "A random Llama of two blocks, its linear layers in a stored form if one is named."
        torch.manual_seed(0)
        model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=96, hidden_size=32, intermediate_size=48, pad_token_id=0,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2))
        if base == "int4": quantize(model, bits=4, group=16, method="rtn")
        if base == "shift": shift_add(model, bits=3, block=(1, 16))
        return model

    lora = pathlm.LoRA(r=4, target_modules=["q_proj", "v_proj"])
    elastic = pathlm.LoRA(r=4, target_modules=["q_proj", "v_proj"], elastic={"q_proj,v_proj": [4, 2, 1]})
    vblora = pathlm.VBLoRA(r=2, num_vectors=12, vector_length=16)
    svft = pathlm.SVFT(pattern="banded", off_diagonal=1)

    # %% ../nbs/58_processes.ipynb #437d2760
    def gradient(model, ids, labels):
        "The gradient of the loss, as one vector."
        model.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    def by_shares(n_few):
        "How far the weighted sum and the mean of two shares are from the whole gradient, one with few tokens a sequence."
        model = tiny()
        pathlm.attach(model, lora)
        ids = torch.randint(0, 96, (8, 12), generator=torch.Generator().manual_seed(1))
        labels = ids.clone()
        labels[4:, :12 - n_few] = -100
        g = gradient(model, ids, labels)
        shares = [gradient(model, ids[rows], labels[rows]) for rows in (slice(4), slice(4, 8))]
        n = [(labels[rows, 1:] >= 0).sum() for rows in (slice(4), slice(4, 8))]
        weighted = sum(m*share for m, share in zip(n, shares))/sum(n)
        return [float((h - g).norm()/g.norm()) for h in (weighted, sum(shares)/2)]

    # %% ../nbs/58_processes.ipynb #fa3a468f
    @contextmanager
    def alone():
        "A process group of this process."
        with tempfile.TemporaryDirectory() as d:
            dist.init_process_group("gloo", init_method=f"file://{d}/store", rank=0, world_size=1)
            try: yield
            finally: dist.destroy_process_group()

    def counted(sent, bucket):
        "Count what a bucket of gradients takes."
        sent.append(bucket.buffer().nbytes)
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    def step(wrapped, ids=None):
        "A forward and a backward pass."
        ids = torch.arange(24).view(2, 12) if ids is None else ids
        wrapped(input_ids=ids, labels=ids).loss.backward()

    # %% ../nbs/58_processes.ipynb #25b4de38
    def left(model): return set(getattr(model, UNSENT, ()))

    def kept(model):
        "All buffers but those of the rotary embedding."
        return {n for n, _ in model.named_buffers() if "rotary" not in n}

    # %% ../nbs/58_processes.ipynb #8fd84b0a
    net = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 3))
    pathlm.attach(net, pathlm.SVFT(target_modules=["0", "2"], modules_to_save=["1"]))
    assert {n for n, _ in net.named_buffers()} - left(net) == {
        "1.running_mean", "1.running_var", "1.num_batches_tracked"}


def test_every_process_every_parameter():
    # %% ../nbs/58_processes.ipynb #dc0456ec
    def tiny(base="dense"):
        "A random Llama of two blocks, its linear layers in a stored form if one is named."
        torch.manual_seed(0)
        model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=96, hidden_size=32, intermediate_size=48, pad_token_id=0,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2))
        if base == "int4": quantize(model, bits=4, group=16, method="rtn")
        if base == "shift": shift_add(model, bits=3, block=(1, 16))
        return model

    lora = pathlm.LoRA(r=4, target_modules=["q_proj", "v_proj"])
    elastic = pathlm.LoRA(r=4, target_modules=["q_proj", "v_proj"], elastic={"q_proj,v_proj": [4, 2, 1]})
    vblora = pathlm.VBLoRA(r=2, num_vectors=12, vector_length=16)
    svft = pathlm.SVFT(pattern="banded", off_diagonal=1)

    # %% ../nbs/58_processes.ipynb #437d2760
    def gradient(model, ids, labels):
        "The gradient of the loss, as one vector."
        model.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    def by_shares(n_few):
        "How far the weighted sum and the mean of two shares are from the whole gradient, one with few tokens a sequence."
        model = tiny()
        pathlm.attach(model, lora)
        ids = torch.randint(0, 96, (8, 12), generator=torch.Generator().manual_seed(1))
        labels = ids.clone()
        labels[4:, :12 - n_few] = -100
        g = gradient(model, ids, labels)
        shares = [gradient(model, ids[rows], labels[rows]) for rows in (slice(4), slice(4, 8))]
        n = [(labels[rows, 1:] >= 0).sum() for rows in (slice(4), slice(4, 8))]
        weighted = sum(m*share for m, share in zip(n, shares))/sum(n)
        return [float((h - g).norm()/g.norm()) for h in (weighted, sum(shares)/2)]

    # %% ../nbs/58_processes.ipynb #fa3a468f
    @contextmanager
    def alone():
        "A process group of this process."
        with tempfile.TemporaryDirectory() as d:
            dist.init_process_group("gloo", init_method=f"file://{d}/store", rank=0, world_size=1)
            try: yield
            finally: dist.destroy_process_group()

    def counted(sent, bucket):
        "Count what a bucket of gradients takes."
        sent.append(bucket.buffer().nbytes)
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    def step(wrapped, ids=None):
        "A forward and a backward pass."
        ids = torch.arange(24).view(2, 12) if ids is None else ids
        wrapped(input_ids=ids, labels=ids).loss.backward()

    # %% ../nbs/58_processes.ipynb #70b7db65
    with alone():
        model = tiny()
        adapter = pathlm.attach(model, elastic)
        torch.nn.init.normal_(adapter.parts[0].B)
        set_ranks(model, smallest(rank_space(model)))
        wrapped = DistributedDataParallel(model)
        for _ in range(2): step(wrapped)
        A, B = adapter.parts[0].A.grad, adapter.parts[0].B.grad
        assert A[:1].any() and not A[1:].any() and B[:, :1].any() and not B[:, 1:].any()
    space = rank_space(model)
    assert [random_rule(space, k) for k in range(8)] == [random_rule(dict(space), k) for k in range(8)]
    assert len({str(random_rule(space, k)) for k in range(8)}) > 1


def test_every_process_every_parameter_2():
    # %% ../nbs/58_processes.ipynb #dc0456ec
    def tiny(base="dense"):
        "A random Llama of two blocks, its linear layers in a stored form if one is named."
        torch.manual_seed(0)
        model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=96, hidden_size=32, intermediate_size=48, pad_token_id=0,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2))
        if base == "int4": quantize(model, bits=4, group=16, method="rtn")
        if base == "shift": shift_add(model, bits=3, block=(1, 16))
        return model

    lora = pathlm.LoRA(r=4, target_modules=["q_proj", "v_proj"])
    elastic = pathlm.LoRA(r=4, target_modules=["q_proj", "v_proj"], elastic={"q_proj,v_proj": [4, 2, 1]})
    vblora = pathlm.VBLoRA(r=2, num_vectors=12, vector_length=16)
    svft = pathlm.SVFT(pattern="banded", off_diagonal=1)

    # %% ../nbs/58_processes.ipynb #437d2760
    def gradient(model, ids, labels):
        "The gradient of the loss, as one vector."
        model.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    def by_shares(n_few):
        "How far the weighted sum and the mean of two shares are from the whole gradient, one with few tokens a sequence."
        model = tiny()
        pathlm.attach(model, lora)
        ids = torch.randint(0, 96, (8, 12), generator=torch.Generator().manual_seed(1))
        labels = ids.clone()
        labels[4:, :12 - n_few] = -100
        g = gradient(model, ids, labels)
        shares = [gradient(model, ids[rows], labels[rows]) for rows in (slice(4), slice(4, 8))]
        n = [(labels[rows, 1:] >= 0).sum() for rows in (slice(4), slice(4, 8))]
        weighted = sum(m*share for m, share in zip(n, shares))/sum(n)
        return [float((h - g).norm()/g.norm()) for h in (weighted, sum(shares)/2)]

    # %% ../nbs/58_processes.ipynb #fa3a468f
    @contextmanager
    def alone():
        "A process group of this process."
        with tempfile.TemporaryDirectory() as d:
            dist.init_process_group("gloo", init_method=f"file://{d}/store", rank=0, world_size=1)
            try: yield
            finally: dist.destroy_process_group()

    def counted(sent, bucket):
        "Count what a bucket of gradients takes."
        sent.append(bucket.buffer().nbytes)
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    def step(wrapped, ids=None):
        "A forward and a backward pass."
        ids = torch.arange(24).view(2, 12) if ids is None else ids
        wrapped(input_ids=ids, labels=ids).loss.backward()

    # %% ../nbs/58_processes.ipynb #14192093
    def two_steps(search):
        "Train one adapter while another stands by."
        model = tiny()
        pathlm.attach(model, svft, "idle")
        pathlm.attach(model, lora, "trained")
        wrapped = DistributedDataParallel(model, find_unused_parameters=search)
        for _ in range(2): step(wrapped)
        return adapters(model)

    with alone():
        try: two_steps(search=False)
        except RuntimeError as e: said = str(e)
        assert "did not receive grad" in said
        both = two_steps(search=True)
        assert all(p.grad is not None for p in both["trained"].parameters())
        assert all(p.grad is None for p in both["idle"].parameters())
    print(said.partition(".")[0])


def test_every_process_every_parameter_3():
    # %% ../nbs/58_processes.ipynb #dc0456ec
    def tiny(base="dense"):
        "A random Llama of two blocks, its linear layers in a stored form if one is named."
        torch.manual_seed(0)
        model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=96, hidden_size=32, intermediate_size=48, pad_token_id=0,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2))
        if base == "int4": quantize(model, bits=4, group=16, method="rtn")
        if base == "shift": shift_add(model, bits=3, block=(1, 16))
        return model

    lora = pathlm.LoRA(r=4, target_modules=["q_proj", "v_proj"])
    elastic = pathlm.LoRA(r=4, target_modules=["q_proj", "v_proj"], elastic={"q_proj,v_proj": [4, 2, 1]})
    vblora = pathlm.VBLoRA(r=2, num_vectors=12, vector_length=16)
    svft = pathlm.SVFT(pattern="banded", off_diagonal=1)

    # %% ../nbs/58_processes.ipynb #437d2760
    def gradient(model, ids, labels):
        "The gradient of the loss, as one vector."
        model.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    def by_shares(n_few):
        "How far the weighted sum and the mean of two shares are from the whole gradient, one with few tokens a sequence."
        model = tiny()
        pathlm.attach(model, lora)
        ids = torch.randint(0, 96, (8, 12), generator=torch.Generator().manual_seed(1))
        labels = ids.clone()
        labels[4:, :12 - n_few] = -100
        g = gradient(model, ids, labels)
        shares = [gradient(model, ids[rows], labels[rows]) for rows in (slice(4), slice(4, 8))]
        n = [(labels[rows, 1:] >= 0).sum() for rows in (slice(4), slice(4, 8))]
        weighted = sum(m*share for m, share in zip(n, shares))/sum(n)
        return [float((h - g).norm()/g.norm()) for h in (weighted, sum(shares)/2)]

    # %% ../nbs/58_processes.ipynb #fa3a468f
    @contextmanager
    def alone():
        "A process group of this process."
        with tempfile.TemporaryDirectory() as d:
            dist.init_process_group("gloo", init_method=f"file://{d}/store", rank=0, world_size=1)
            try: yield
            finally: dist.destroy_process_group()

    def counted(sent, bucket):
        "Count what a bucket of gradients takes."
        sent.append(bucket.buffer().nbytes)
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    def step(wrapped, ids=None):
        "A forward and a backward pass."
        ids = torch.arange(24).view(2, 12) if ids is None else ids
        wrapped(input_ids=ids, labels=ids).loss.backward()

    # %% ../nbs/58_processes.ipynb #de026718
    with alone():
        model = tiny()
        pathlm.attach(model, pathlm.VBLoRA(r=2, num_vectors=12, vector_length=16, sparse_gradients=True))
        wrapped = DistributedDataParallel(model)
        try: step(wrapped)
        except RuntimeError as e: said = str(e)
        else: said = ""
        assert "sparse" in said.lower()


def test_one_script_two_processes():
    # %% ../nbs/58_processes.ipynb #dc0456ec
    def tiny(base="dense"):
        "A random Llama of two blocks, its linear layers in a stored form if one is named."
        torch.manual_seed(0)
        model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=96, hidden_size=32, intermediate_size=48, pad_token_id=0,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2))
        if base == "int4": quantize(model, bits=4, group=16, method="rtn")
        if base == "shift": shift_add(model, bits=3, block=(1, 16))
        return model

    lora = pathlm.LoRA(r=4, target_modules=["q_proj", "v_proj"])
    elastic = pathlm.LoRA(r=4, target_modules=["q_proj", "v_proj"], elastic={"q_proj,v_proj": [4, 2, 1]})
    vblora = pathlm.VBLoRA(r=2, num_vectors=12, vector_length=16)
    svft = pathlm.SVFT(pattern="banded", off_diagonal=1)

    # %% ../nbs/58_processes.ipynb #437d2760
    def gradient(model, ids, labels):
        "The gradient of the loss, as one vector."
        model.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    def by_shares(n_few):
        "How far the weighted sum and the mean of two shares are from the whole gradient, one with few tokens a sequence."
        model = tiny()
        pathlm.attach(model, lora)
        ids = torch.randint(0, 96, (8, 12), generator=torch.Generator().manual_seed(1))
        labels = ids.clone()
        labels[4:, :12 - n_few] = -100
        g = gradient(model, ids, labels)
        shares = [gradient(model, ids[rows], labels[rows]) for rows in (slice(4), slice(4, 8))]
        n = [(labels[rows, 1:] >= 0).sum() for rows in (slice(4), slice(4, 8))]
        weighted = sum(m*share for m, share in zip(n, shares))/sum(n)
        return [float((h - g).norm()/g.norm()) for h in (weighted, sum(shares)/2)]

    # %% ../nbs/58_processes.ipynb #fa3a468f
    @contextmanager
    def alone():
        "A process group of this process."
        with tempfile.TemporaryDirectory() as d:
            dist.init_process_group("gloo", init_method=f"file://{d}/store", rank=0, world_size=1)
            try: yield
            finally: dist.destroy_process_group()

    def counted(sent, bucket):
        "Count what a bucket of gradients takes."
        sent.append(bucket.buffer().nbytes)
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    def step(wrapped, ids=None):
        "A forward and a backward pass."
        ids = torch.arange(24).view(2, 12) if ids is None else ids
        wrapped(input_ids=ids, labels=ids).loss.backward()

    # %% ../nbs/58_processes.ipynb #36ab5a1e
    SCRIPT = '''"""Train adapters: train.py FOLDER BATCH WAY"""
import sys
import tempfile
from pathlib import Path

import torch
import transformers as tf
from accelerate import Accelerator

import pathlm
from pathlm.adapters.core import parameter_groups
from pathlm.adapters.lora import elastic_backward, elastic_callback
from pathlm.grid import quantize

SOME = ["q_proj", "v_proj"]
CONFIGS = {
    "lora": pathlm.LoRA(r=4, target_modules=SOME),
    "elastic": pathlm.LoRA(r=4, target_modules=SOME, elastic={"q_proj,v_proj": [4, 2, 1]}),
    "vblora": pathlm.VBLoRA(r=2, num_vectors=12, vector_length=16),
    "svft": pathlm.SVFT(pattern="banded", off_diagonal=1),
}

def fresh(base):
    torch.manual_seed(0)
    model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=96, hidden_size=32, intermediate_size=48, pad_token_id=0,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2))
    if base == "dense": return model
    with tempfile.TemporaryDirectory() as d:
        pathlm.save(quantize(model, bits=4, group=16, method="rtn"), None, d)
        return tf.AutoModelForCausalLM.from_pretrained(d)

def texts(uneven):
    "Sequences of 12 tokens, and where they are uneven, some of which are not to be predicted."
    ids = torch.randint(0, 96, (32, 12), generator=torch.Generator().manual_seed(1))
    labels = [row.masked_fill(torch.arange(12) < uneven*(i % 9), -100) for i, row in enumerate(ids)]
    return [{"input_ids": row, "labels": label} for row, label in zip(ids, labels)]

def by_hand(model, optimizer, name, batch, folder):
    loader = torch.utils.data.DataLoader(texts(uneven=False), batch)
    wrapped, optimizer, loader = Accelerator(cpu=True).prepare(model, optimizer, loader)
    for step, inputs in enumerate(loader):
        if name == "elastic": elastic_backward(model, lambda: wrapped(**inputs).loss, step)
        else: wrapped(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

def by_trainer(model, optimizer, name, batch, folder):
    args = tf.TrainingArguments(folder, per_device_train_batch_size=batch, num_train_epochs=1, use_cpu=True,
        save_strategy="no", report_to="none", disable_tqdm=True, logging_strategy="no")
    calls = [elastic_callback(model)] if name == "elastic" else []
    tf.Trainer(model, args, train_dataset=texts(uneven=True), optimizers=(optimizer, None), callbacks=calls).train()

def main(folder, batch, way):
    for base in "dense", "int4":
        for name, config in CONFIGS.items():
            model, here = fresh(base), Path(folder)/base/name
            pathlm.attach(model, config)
            optimizer = torch.optim.AdamW(parameter_groups(model))
            {"hand": by_hand, "trainer": by_trainer}[way](model, optimizer, name, int(batch), here)
            rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
            pathlm.save_adapter(model, here/str(rank))

if __name__ == "__main__": main(*sys.argv[1:])
'''

    # %% ../nbs/58_processes.ipynb #4e579ce1
    WAYS = {"hand": ["accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1",
                     "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"],
            "trainer": ["torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d",
                        "--rdzv-endpoint=localhost:0"]}

    @contextmanager
    def launched(folder, way, batch=4):
        "Start the script in two processes, and end them where they still run when the block is left."
        env = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", *WAYS[way], str(folder/"train.py"), str(folder/way), str(batch), way]
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try: yield process
        finally:
            process.terminate()  # The launcher hands it on to its processes
            process.wait()

    def imported(path):
        "A script as a module."
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def files(folder):
        "The adapters that a run left, by base and method, and by rank."
        found = {}
        for file in sorted(folder.glob("*/*/[0-9]/adapter.safetensors")):
            found.setdefault("-".join(file.parts[-4:-2]), []).append(file)
        return found

    def off(model, config, first, second):
        "How far two adapters are apart in the weights that they make, relative to the change."
        def change(folder):
            pathlm.load_adapter(model, folder)
            deltas = [part.delta().detach() for part in adapters(model)["default"].parts]
            pathlm.detach(model)
            return torch.cat([d.flatten() for d in deltas])
        a, b = change(first), change(second)
        return float((a - b).norm()/b.norm())

    # %% ../nbs/58_processes.ipynb #a10a0ccd
    with tempfile.TemporaryDirectory() as d:
        folder = Path(d)
        (folder/"train.py").write_text(SCRIPT)
        script = imported(folder/"train.py")
        with launched(folder, "hand") as hand, launched(folder, "trainer") as trainer, redirect_stdout(sys.stderr):
            for way in WAYS: script.main(folder/f"{way}-one", 8, way)
            for process in hand, trainer:
                text, _ = process.communicate(timeout=300)
                assert process.returncode == 0, text
        for way in WAYS:
            two, one = files(folder/way), files(folder/f"{way}-one")
            assert len(two) == 8 and two.keys() == one.keys()
            for name, ranks in two.items():
                first, second = (file.read_bytes() for file in ranks)
                assert first == second
                base, _, method = name.partition("-")
                gap = off(script.fresh(base), script.CONFIGS[method], ranks[0].parent, one[name][0].parent)
                assert gap < 1e-4, (way, name, gap)


def test_going_on_after_a_stop():
    # %% ../nbs/58_processes.ipynb #dc0456ec
    def tiny(base="dense"):
        "A random Llama of two blocks, its linear layers in a stored form if one is named."
        torch.manual_seed(0)
        model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=96, hidden_size=32, intermediate_size=48, pad_token_id=0,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2))
        if base == "int4": quantize(model, bits=4, group=16, method="rtn")
        if base == "shift": shift_add(model, bits=3, block=(1, 16))
        return model

    lora = pathlm.LoRA(r=4, target_modules=["q_proj", "v_proj"])
    elastic = pathlm.LoRA(r=4, target_modules=["q_proj", "v_proj"], elastic={"q_proj,v_proj": [4, 2, 1]})
    vblora = pathlm.VBLoRA(r=2, num_vectors=12, vector_length=16)
    svft = pathlm.SVFT(pattern="banded", off_diagonal=1)

    # %% ../nbs/58_processes.ipynb #437d2760
    def gradient(model, ids, labels):
        "The gradient of the loss, as one vector."
        model.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    def by_shares(n_few):
        "How far the weighted sum and the mean of two shares are from the whole gradient, one with few tokens a sequence."
        model = tiny()
        pathlm.attach(model, lora)
        ids = torch.randint(0, 96, (8, 12), generator=torch.Generator().manual_seed(1))
        labels = ids.clone()
        labels[4:, :12 - n_few] = -100
        g = gradient(model, ids, labels)
        shares = [gradient(model, ids[rows], labels[rows]) for rows in (slice(4), slice(4, 8))]
        n = [(labels[rows, 1:] >= 0).sum() for rows in (slice(4), slice(4, 8))]
        weighted = sum(m*share for m, share in zip(n, shares))/sum(n)
        return [float((h - g).norm()/g.norm()) for h in (weighted, sum(shares)/2)]

    # %% ../nbs/58_processes.ipynb #fa3a468f
    @contextmanager
    def alone():
        "A process group of this process."
        with tempfile.TemporaryDirectory() as d:
            dist.init_process_group("gloo", init_method=f"file://{d}/store", rank=0, world_size=1)
            try: yield
            finally: dist.destroy_process_group()

    def counted(sent, bucket):
        "Count what a bucket of gradients takes."
        sent.append(bucket.buffer().nbytes)
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    def step(wrapped, ids=None):
        "A forward and a backward pass."
        ids = torch.arange(24).view(2, 12) if ids is None else ids
        wrapped(input_ids=ids, labels=ids).loss.backward()

    # %% ../nbs/58_processes.ipynb #36ab5a1e
    SCRIPT = '''"""Train adapters: train.py FOLDER BATCH WAY"""
import sys
import tempfile
from pathlib import Path

import torch
import transformers as tf
from accelerate import Accelerator

import pathlm
from pathlm.adapters.core import parameter_groups
from pathlm.adapters.lora import elastic_backward, elastic_callback
from pathlm.grid import quantize

SOME = ["q_proj", "v_proj"]
CONFIGS = {
    "lora": pathlm.LoRA(r=4, target_modules=SOME),
    "elastic": pathlm.LoRA(r=4, target_modules=SOME, elastic={"q_proj,v_proj": [4, 2, 1]}),
    "vblora": pathlm.VBLoRA(r=2, num_vectors=12, vector_length=16),
    "svft": pathlm.SVFT(pattern="banded", off_diagonal=1),
}

def fresh(base):
    torch.manual_seed(0)
    model = tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=96, hidden_size=32, intermediate_size=48, pad_token_id=0,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2))
    if base == "dense": return model
    with tempfile.TemporaryDirectory() as d:
        pathlm.save(quantize(model, bits=4, group=16, method="rtn"), None, d)
        return tf.AutoModelForCausalLM.from_pretrained(d)

def texts(uneven):
    "Sequences of 12 tokens, and where they are uneven, some of which are not to be predicted."
    ids = torch.randint(0, 96, (32, 12), generator=torch.Generator().manual_seed(1))
    labels = [row.masked_fill(torch.arange(12) < uneven*(i % 9), -100) for i, row in enumerate(ids)]
    return [{"input_ids": row, "labels": label} for row, label in zip(ids, labels)]

def by_hand(model, optimizer, name, batch, folder):
    loader = torch.utils.data.DataLoader(texts(uneven=False), batch)
    wrapped, optimizer, loader = Accelerator(cpu=True).prepare(model, optimizer, loader)
    for step, inputs in enumerate(loader):
        if name == "elastic": elastic_backward(model, lambda: wrapped(**inputs).loss, step)
        else: wrapped(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

def by_trainer(model, optimizer, name, batch, folder):
    args = tf.TrainingArguments(folder, per_device_train_batch_size=batch, num_train_epochs=1, use_cpu=True,
        save_strategy="no", report_to="none", disable_tqdm=True, logging_strategy="no")
    calls = [elastic_callback(model)] if name == "elastic" else []
    tf.Trainer(model, args, train_dataset=texts(uneven=True), optimizers=(optimizer, None), callbacks=calls).train()

def main(folder, batch, way):
    for base in "dense", "int4":
        for name, config in CONFIGS.items():
            model, here = fresh(base), Path(folder)/base/name
            pathlm.attach(model, config)
            optimizer = torch.optim.AdamW(parameter_groups(model))
            {"hand": by_hand, "trainer": by_trainer}[way](model, optimizer, name, int(batch), here)
            rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
            pathlm.save_adapter(model, here/str(rank))

if __name__ == "__main__": main(*sys.argv[1:])
'''

    # %% ../nbs/58_processes.ipynb #4e579ce1
    WAYS = {"hand": ["accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1",
                     "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"],
            "trainer": ["torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d",
                        "--rdzv-endpoint=localhost:0"]}

    @contextmanager
    def launched(folder, way, batch=4):
        "Start the script in two processes, and end them where they still run when the block is left."
        env = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", *WAYS[way], str(folder/"train.py"), str(folder/way), str(batch), way]
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try: yield process
        finally:
            process.terminate()  # The launcher hands it on to its processes
            process.wait()

    def imported(path):
        "A script as a module."
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def files(folder):
        "The adapters that a run left, by base and method, and by rank."
        found = {}
        for file in sorted(folder.glob("*/*/[0-9]/adapter.safetensors")):
            found.setdefault("-".join(file.parts[-4:-2]), []).append(file)
        return found

    def off(model, config, first, second):
        "How far two adapters are apart in the weights that they make, relative to the change."
        def change(folder):
            pathlm.load_adapter(model, folder)
            deltas = [part.delta().detach() for part in adapters(model)["default"].parts]
            pathlm.detach(model)
            return torch.cat([d.flatten() for d in deltas])
        a, b = change(first), change(second)
        return float((a - b).norm()/b.norm())

    # %% ../nbs/58_processes.ipynb #892eab34
    def resumed(script, base, name, folder, checkpoint=None):
        "Train by `Trainer` with checkpoints, from the beginning or from one of them, and give what was trained."
        model = script.fresh(base)
        adapter = pathlm.attach(model, script.CONFIGS[name])
        args = tf.TrainingArguments(folder, per_device_train_batch_size=8, max_steps=4, save_steps=2, use_cpu=True,
            report_to="none", disable_tqdm=True)
        optimizer = torch.optim.AdamW(parameter_groups(model))
        trainer = tf.Trainer(model, args, train_dataset=script.texts(uneven=True), optimizers=(optimizer, None))
        trainer.train(resume_from_checkpoint=checkpoint)
        assert trainer.state.global_step == 4
        return torch.nn.utils.parameters_to_vector(adapter.parameters())

    # %% ../nbs/58_processes.ipynb #b1e0c2e2
    with tempfile.TemporaryDirectory() as d, redirect_stdout(sys.stderr):
        (Path(d)/"train.py").write_text(SCRIPT)
        script = imported(Path(d)/"train.py")
        for base, name in ("dense", "vblora"), ("int4", "svft"):
            whole = resumed(script, base, name, f"{d}/{base}")
            shutil.rmtree(f"{d}/{base}/checkpoint-4")
            assert torch.equal(resumed(script, base, name, f"{d}/{base}", f"{d}/{base}/checkpoint-2"), whole)
        try: pathlm.load(f"{d}/int4/checkpoint-2")
        except pathlm.PathlmError as e: assert "checkpoint-2" in str(e)
        else: raise AssertionError("a run's state was loaded as a model")
