from pathlm import decompose
from pathlm import load
from pathlm import prune
import torch
from pathlm import SVFT
from pathlm import attach
from pathlm import detach
from pathlm import merge
from pathlm import parameter_groups
from pathlm import unmerge
from pathlm import SparsePEFT
from pathlm import bake
from pathlm import sparsify
from pathlm import sparsity_report
from pathlm import shift_add
from pathlm import choose_clip
from pathlm.incontext import labellings
from pathlm.incontext import network


def test_in_python():
    # %% ../nbs/index.ipynb #c3e8ff44
    model, tokenizer = load()                                  # the embedded model; or any model folder
    spectra = decompose(model, ["up_proj", "down_proj"])       # one decomposition, every rank
    rows = prune(model, spectra, rate=.75)                     # factors where they are smaller
    rows[0]["rank"], rows[0]["after"]/rows[0]["before"]            # of 256, and the share of the numbers that is left

    # %% ../nbs/index.ipynb #fb4ff3c2
    assert len(rows) == 12 and {row["rank"] for row in rows} == {64}


def test_in_python_2():
    # %% ../nbs/index.ipynb #c3e8ff44
    model, tokenizer = load()                                  # the embedded model; or any model folder
    spectra = decompose(model, ["up_proj", "down_proj"])       # one decomposition, every rank
    rows = prune(model, spectra, rate=.75)                     # factors where they are smaller
    rows[0]["rank"], rows[0]["after"]/rows[0]["before"]            # of 256, and the share of the numbers that is left

    # %% ../nbs/index.ipynb #067f98e0
    model, tokenizer = load()
    attach(model, SVFT(target_modules=["q_proj", "v_proj"], pattern="banded", off_diagonal=2))  # or LoRA(...), VBLoRA(...)
    optimizer = torch.optim.AdamW(parameter_groups(model))     # the method's own learning rates
    ...                                                        # train it, save_adapter(model, "out"), load_adapter
    merge(model), unmerge(model), detach(model)                # back to the first bit
    sum(p.numel() for group in optimizer.param_groups for p in group["params"])     # of 5,770,496

    # %% ../nbs/index.ipynb #a466eba0
    assert optimizer.param_groups[0]["params"] and not hasattr(model, "pathlm_adapters")


def test_in_python_3():
    # %% ../nbs/index.ipynb #c3e8ff44
    model, tokenizer = load()                                  # the embedded model; or any model folder
    spectra = decompose(model, ["up_proj", "down_proj"])       # one decomposition, every rank
    rows = prune(model, spectra, rate=.75)                     # factors where they are smaller
    rows[0]["rank"], rows[0]["after"]/rows[0]["before"]            # of 256, and the share of the numbers that is left

    # %% ../nbs/index.ipynb #067f98e0
    model, tokenizer = load()
    attach(model, SVFT(target_modules=["q_proj", "v_proj"], pattern="banded", off_diagonal=2))  # or LoRA(...), VBLoRA(...)
    optimizer = torch.optim.AdamW(parameter_groups(model))     # the method's own learning rates
    ...                                                        # train it, save_adapter(model, "out"), load_adapter
    merge(model), unmerge(model), detach(model)                # back to the first bit
    sum(p.numel() for group in optimizer.param_groups for p in group["params"])     # of 5,770,496

    # %% ../nbs/index.ipynb #922bf45a
    model, tokenizer = load()
    sparsify(model, method="magnitude", sparsity=.5)           # or "wanda", "sparsegpt" with calibration batches
    attach(model, SparsePEFT(r=8))                             # the update is masked like the weight; train it
    bake(model)
    sparsity_report(model)[-1]["sparsity"]                     # still

    # %% ../nbs/index.ipynb #8147fd9f
    assert sparsity_report(model)[-1]["sparsity"] == .5


def test_in_python_4():
    # %% ../nbs/index.ipynb #c3e8ff44
    model, tokenizer = load()                                  # the embedded model; or any model folder
    spectra = decompose(model, ["up_proj", "down_proj"])       # one decomposition, every rank
    rows = prune(model, spectra, rate=.75)                     # factors where they are smaller
    rows[0]["rank"], rows[0]["after"]/rows[0]["before"]            # of 256, and the share of the numbers that is left

    # %% ../nbs/index.ipynb #067f98e0
    model, tokenizer = load()
    attach(model, SVFT(target_modules=["q_proj", "v_proj"], pattern="banded", off_diagonal=2))  # or LoRA(...), VBLoRA(...)
    optimizer = torch.optim.AdamW(parameter_groups(model))     # the method's own learning rates
    ...                                                        # train it, save_adapter(model, "out"), load_adapter
    merge(model), unmerge(model), detach(model)                # back to the first bit
    sum(p.numel() for group in optimizer.param_groups for p in group["params"])     # of 5,770,496

    # %% ../nbs/index.ipynb #922bf45a
    model, tokenizer = load()
    sparsify(model, method="magnitude", sparsity=.5)           # or "wanda", "sparsegpt" with calibration batches
    attach(model, SparsePEFT(r=8))                             # the update is masked like the weight; train it
    bake(model)
    sparsity_report(model)[-1]["sparsity"]                     # still

    # %% ../nbs/index.ipynb #a12daf43
    model, tokenizer = load()
    shift_add(model, bits=3)                                   # with calibration batches: for weights and outputs together
    layer = model.model.layers[0].mlp.up_proj
    8*sum(t.nbytes for t in (layer.planes, layer.numbers))/(layer.in_features*layer.out_features)  # bits a weight, all told

    # %% ../nbs/index.ipynb #48df8173
    assert 8*(layer.planes.nbytes + layer.numbers.nbytes)/(256*512) == 3.125


def test_in_python_5():
    # %% ../nbs/index.ipynb #c3e8ff44
    model, tokenizer = load()                                  # the embedded model; or any model folder
    spectra = decompose(model, ["up_proj", "down_proj"])       # one decomposition, every rank
    rows = prune(model, spectra, rate=.75)                     # factors where they are smaller
    rows[0]["rank"], rows[0]["after"]/rows[0]["before"]            # of 256, and the share of the numbers that is left

    # %% ../nbs/index.ipynb #067f98e0
    model, tokenizer = load()
    attach(model, SVFT(target_modules=["q_proj", "v_proj"], pattern="banded", off_diagonal=2))  # or LoRA(...), VBLoRA(...)
    optimizer = torch.optim.AdamW(parameter_groups(model))     # the method's own learning rates
    ...                                                        # train it, save_adapter(model, "out"), load_adapter
    merge(model), unmerge(model), detach(model)                # back to the first bit
    sum(p.numel() for group in optimizer.param_groups for p in group["params"])     # of 5,770,496

    # %% ../nbs/index.ipynb #922bf45a
    model, tokenizer = load()
    sparsify(model, method="magnitude", sparsity=.5)           # or "wanda", "sparsegpt" with calibration batches
    attach(model, SparsePEFT(r=8))                             # the update is masked like the weight; train it
    bake(model)
    sparsity_report(model)[-1]["sparsity"]                     # still

    # %% ../nbs/index.ipynb #a12daf43
    model, tokenizer = load()
    shift_add(model, bits=3)                                   # with calibration batches: for weights and outputs together
    layer = model.model.layers[0].mlp.up_proj
    8*sum(t.nbytes for t in (layer.planes, layer.numbers))/(layer.in_features*layer.out_features)  # bits a weight, all told

    # %% ../nbs/index.ipynb #e4532491
    net = network("labels")
    found = choose_clip(net, labellings(100, 0), labellings(400, 1), by="loss", rates=[.9], layers=[-2, -1])
    {row["way"]: round(row["test"]["accuracy"], 3) for row in found["table"]}

    # %% ../nbs/index.ipynb #82cc456f
    assert found["table"][0]["test"]["accuracy"] > .85
