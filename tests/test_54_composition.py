import copy
import gc
import tempfile
from itertools import product
import torch
import transformers as tf
from torch import Tensor
from torch import nn
from pathlm.adapters.core import adapted
from pathlm.adapters.core import adapters
from pathlm.adapters.core import attach
from pathlm.adapters.core import bake
from pathlm.adapters.core import detach
from pathlm.adapters.core import load_adapter
from pathlm.adapters.core import parameter_groups
from pathlm.adapters.core import save_adapter
from pathlm.adapters.lora import LoRA
from pathlm.adapters.lora import elastic_backward
from pathlm.adapters.lora import rank_space
from pathlm.adapters.lora import set_ranks
from pathlm.adapters.lora import smallest
from pathlm.adapters.svft import PATTERNS
from pathlm.adapters.svft import SVFT
from pathlm.adapters.svft import OneSided
from pathlm.adapters.svft import dense
from pathlm.adapters.svft import pairs
from pathlm.adapters.vblora import VBLoRA
from pathlm.base import MergeError
from pathlm.base import SettingError
from pathlm.checkpoints import form_of
from pathlm.checkpoints import load
from pathlm.checkpoints import save
from pathlm.grid import RoundingLinear
from pathlm.grid import quantize
from pathlm.grid import rounding
from pathlm.linear import densify
from pathlm.linear import effective_weight
from pathlm.linear import merge
from pathlm.linear import replace
from pathlm.linear import select
from pathlm.linear import unmerge
from pathlm.objectives import svd
from pathlm.rotation import RotatedLinear
from pathlm.rotation import turn_weight
from pathlm.rotation import turned_layer
from pathlm.shiftadd.layer import shift_add
from pathlm.sparsity import SparseLinear
from pathlm.sparsity import sparsify
from pathlm.spectral import FactoredLinear
from pathlm.spectral import decompose
from pathlm.spectral import prune
from pathlm.sqft import SparsePEFT


def test_every_pair_tried():
    # %% ../nbs/54_composition.ipynb #02bb5626
    def tiny(conv=False):
        "A random model of one block: Llama's, or GPT-2's with its layers of another orientation."
        torch.manual_seed(0)
        ids = dict(vocab_size=64, bos_token_id=0, eos_token_id=0, pad_token_id=1)
        off = dict(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
        if conv: return tf.GPT2LMHeadModel(tf.GPT2Config(**ids, **off, n_embd=32, n_inner=48, n_layer=1, n_head=4)).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**ids, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                                                  num_attention_heads=4, num_key_value_heads=2)).eval()

    def rotated(model):
        "Put every layer behind a rotation and leave it dense."
        for name, layer in select(model).items(): replace(model, name, RotatedLinear(*turned_layer(name, layer, 0)))
        return model

    def sparse(): return sparsify(tiny(), method="magnitude")
    def factors(model):
        prune(model, decompose(model), rank=6)
        return model

    GRID, SHIFT = dict(group=16), dict(bits=2, block=(1, 16))
    FORMS = {"dense": tiny,
             "Conv1D": lambda: tiny(conv=True),
             "factors": lambda: factors(tiny()),
             "sparse": sparse,
             "rounding": lambda: rounding(tiny(), **GRID),
             "rounding, sparse": lambda: rounding(sparse(), **GRID),
             "integers": lambda: quantize(tiny(), method="rtn", **GRID),
             "integers, sparse": lambda: quantize(sparse(), method="rtn", **GRID),
             "shift-add": lambda: shift_add(tiny(), **SHIFT),
             "rotated": lambda: rotated(tiny()),
             "rotated integers": lambda: quantize(tiny(), method="rtn", rotate=0, **GRID),
             "rotated shift-add": lambda: shift_add(tiny(), rotate=0, **SHIFT)}

    # %% ../nbs/54_composition.ipynb #0e1507dc
    def some(model): return list(select(model))[::3]

    def elastic(model):
        return LoRA(target_modules=some(model), r=4, elastic={some(model)[0]: [4, 2]}, learning_rate=1e-2)

    def vectors(model):
        return VBLoRA(target_modules=some(model), r=2, vector_length=16, num_vectors=16, init_vector_bank_bound=.1,
                      save_only_topk_weights=False, learning_rate_vector_bank=1e-2, learning_rate_logits=1e-1)

    ADAPTERS = {"LoRA": lambda model: LoRA(target_modules=some(model), r=4, learning_rate=1e-2),
                "elastic": elastic,
                "VB-LoRA": vectors,
                **{f"SVFT {p}": lambda model, p=p: SVFT(target_modules=some(model), pattern=p) for p in PATTERNS},
                "SparsePEFT": lambda model: SparsePEFT(target_modules=some(model), r=4, learning_rate=1e-2)}
    RANKS = {"VB-LoRA": 2, "LoRA of 12": 12}  # Where it is not 4
    COLUMNS = list(ADAPTERS)
    ADAPTERS["LoRA of 12"] = lambda model: LoRA(target_modules=["q_proj", "o_proj"], r=12, learning_rate=1e-2)

    def chart(cells, rows, columns, width=13):
        "Print a table of words."
        print(f"{'':18}" + "".join(f"{c:{width}}" for c in columns))
        for r in rows: print(f"{r:18}" + "".join(f"{cells[r, c]:{width}}" for c in columns).rstrip())

    # %% ../nbs/54_composition.ipynb #0fac7063
    IDS = torch.arange(48).view(4, 12) % 23

    def logits(model):
        with torch.no_grad(): return model(input_ids=IDS).logits

    def train(model, steps=3):
        "Train with the groups of the adapters, and list the losses."
        optimizer, losses = torch.optim.AdamW(parameter_groups(model)), []
        def loss(): return model(input_ids=IDS, labels=IDS).loss
        model.train()
        for step in range(steps):
            if getattr(next(iter(adapters(model).values())), "by_group", None):
                losses.append(elastic_backward(model, loss, step))
            else:
                losses.append((value := loss()).item())
                value.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.eval()
        return losses

    def state(model):
        "What an error must not change: the layers, what trains, and the outputs."
        return [id(m) for m in model.modules()], [p.requires_grad for p in model.parameters()], logits(model)

    def unchanged(model, was):
        *now, y = state(model)
        assert now == list(was[:2]) and torch.equal(y, was[2])

    def weights(model): return {n: effective_weight(layer).clone() for n, layer in select(model).items()}

    # %% ../nbs/54_composition.ipynb #8ca9b018
    def levels(layer):
        "All values that each weight of a layer of codes can take, (codes, out, in)."
        shape = layer.out_features, layer.in_features
        def spread(t): return t.float().repeat_interleave(shape[0]//len(t), 0).repeat_interleave(shape[1]//t.shape[1], 1)
        if hasattr(layer, "grid"):
            s, z = spread(layer.grid.scale), spread(layer.grid.zero)
            return torch.stack([s*(k - z) for k in range(2**layer.code_bits)])
        alphas = [spread(a) for a in layer.scales.alpha()]
        return torch.stack([sum(map(torch.mul, signs, alphas)) for signs in product((1, -1), repeat=len(alphas))])

    def holder(layer, What):
        "The form that holds a matrix if this layer takes it on, or \"apart\"."
        if isinstance(layer, RotatedLinear):
            inner = holder(layer.inner, turn_weight(What, layer.s))
            return inner if inner == "apart" else f"RotatedLinear:{inner}"
        if isinstance(layer, FactoredLinear):
            smaller = int(torch.linalg.matrix_rank(What))*sum(What.shape) < What.numel()
            return "FactoredLinear" if smaller else "Linear"
        fits = True
        if isinstance(layer, SparseLinear): fits = not What[~layer.mask].any()
        elif hasattr(layer, "code_bits"): fits = bool((levels(layer) == What).any(0).all())
        form = "GridLinear" if isinstance(layer, RoundingLinear) else type(layer).__name__
        return form if fits else "apart"

    def nearest(layer, W):
        "The matrix of levels that is nearest to another one, zero outside of a mask."
        found = (each := levels(layer)).gather(0, (each - W).abs().argmin(0, keepdim=True))[0]
        return found if layer.mask is None else found*layer.mask

    def change(layer, method):
        "A random member of an adapter's set, or None where the set is not defined."
        W, mask = effective_weight(layer).detach(), getattr(layer, "mask", None)
        r = RANKS.get(method, 4)
        low = torch.randn(len(W), r) @ torch.randn(r, W.shape[1])
        if method == "SparsePEFT": return None if mask is None else low*mask
        if not method.startswith("SVFT"): return low
        (U, _, Vh), pattern = svd(W), method.split()[1]
        at = pairs(pattern, 0 if pattern == "plain" else 2, U, Vh)
        return U @ dense(torch.randn(len(Vh) if at is None else at.shape[1]), at, len(Vh)) @ Vh

    def derived(layer, method):
        "What (2) says about a layer and an adapter."
        if (D := change(layer, method)) is None: return "refused"
        if not isinstance(layer, RoundingLinear): return holder(layer, effective_weight(layer) + D)
        What = nearest(layer, layer.weight + D)
        assert torch.equal(layer.project(layer.weight + D), What)
        return holder(layer, What)

    # %% ../nbs/54_composition.ipynb #b095431b
    def merged_form(model, tolerance):
        "Merge and unmerge; give the form that the layers had in between, \"apart\" if there was none."
        was, Ws, apart, names = state(model), weights(model), tolerance, list(adapted(model))
        try: merge(model)
        except MergeError:
            unchanged(model, was)
            return "apart"
        forms = {form_of(model.get_submodule(name)) for name in names}
        if not forms & {"FactoredLinear", "RotatedLinear:Linear"}: apart = 0
        for name, W in weights(model).items(): torch.testing.assert_close(W, Ws[name], rtol=apart, atol=apart)
        torch.testing.assert_close(logits(model), was[2], rtol=50*tolerance, atol=50*tolerance)
        unchanged(unmerge(model), was)
        return forms.pop() if len(forms) == 1 else forms

    def tried(model, loaded, method, tolerance=1e-6):
        "Take a pair through its life, after which both models are as they were."
        before = state(model)
        try: attach(model, ADAPTERS[method](model))
        except SettingError:
            unchanged(model, before)
            return "refused"
        losses = train(model)
        assert losses[-1] < losses[0]
        if method == "elastic": set_ranks(model, smallest(rank_space(model)))
        with tempfile.TemporaryDirectory() as folder:
            load_adapter(loaded, save_adapter(model, folder))
        assert torch.equal(logits(loaded), logits(model))
        detach(loaded)
        form = merged_form(model, tolerance)
        unchanged(detach(model), before)
        return form

    def all_derived(forms, methods):
        layers = {form: next(iter(select(FORMS[form]()).values())).requires_grad_(False) for form in forms}
        return {(form, method): derived(layers[form], method) for form, method in product(forms, methods)}

    def both(form, dtype=torch.float32):
        "A base from its folder, twice."
        base = FORMS[form]()
        with tempfile.TemporaryDirectory() as folder:
            save(base, None, folder, dtype=dtype)
            loaded = load(folder, dtype)[0].requires_grad_(False)
        assert dtype != torch.float32 or torch.equal(logits(base), logits(loaded))
        return loaded, copy.deepcopy(loaded)

    def all_tried(forms, methods, dtype=torch.float32, tolerance=1e-6):
        return {(form, method): tried(*pair, method, tolerance) for form in forms for pair in [both(form, dtype)]
                for method in methods}

    # %% ../nbs/54_composition.ipynb #f166ad91
    torch.manual_seed(0)
    found, said = all_tried(FORMS, COLUMNS), all_derived(FORMS, COLUMNS)
    short = {"RotatedLinear:Linear": "rotated", "Linear": "dense", "FactoredLinear": "factors", "SparseLinear": "sparse",
             "GridLinear": "integers"}
    chart({pair: short.get(form, form) for pair, form in found.items()}, FORMS, COLUMNS)
    assert found == said, {pair: (found[pair], said[pair]) for pair in found if found[pair] != said[pair]}


def test_every_pair_tried_2():
    # %% ../nbs/54_composition.ipynb #02bb5626
    def tiny(conv=False):
        "A random model of one block: Llama's, or GPT-2's with its layers of another orientation."
        torch.manual_seed(0)
        ids = dict(vocab_size=64, bos_token_id=0, eos_token_id=0, pad_token_id=1)
        off = dict(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
        if conv: return tf.GPT2LMHeadModel(tf.GPT2Config(**ids, **off, n_embd=32, n_inner=48, n_layer=1, n_head=4)).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**ids, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                                                  num_attention_heads=4, num_key_value_heads=2)).eval()

    def rotated(model):
        "Put every layer behind a rotation and leave it dense."
        for name, layer in select(model).items(): replace(model, name, RotatedLinear(*turned_layer(name, layer, 0)))
        return model

    def sparse(): return sparsify(tiny(), method="magnitude")
    def factors(model):
        prune(model, decompose(model), rank=6)
        return model

    GRID, SHIFT = dict(group=16), dict(bits=2, block=(1, 16))
    FORMS = {"dense": tiny,
             "Conv1D": lambda: tiny(conv=True),
             "factors": lambda: factors(tiny()),
             "sparse": sparse,
             "rounding": lambda: rounding(tiny(), **GRID),
             "rounding, sparse": lambda: rounding(sparse(), **GRID),
             "integers": lambda: quantize(tiny(), method="rtn", **GRID),
             "integers, sparse": lambda: quantize(sparse(), method="rtn", **GRID),
             "shift-add": lambda: shift_add(tiny(), **SHIFT),
             "rotated": lambda: rotated(tiny()),
             "rotated integers": lambda: quantize(tiny(), method="rtn", rotate=0, **GRID),
             "rotated shift-add": lambda: shift_add(tiny(), rotate=0, **SHIFT)}

    # %% ../nbs/54_composition.ipynb #0e1507dc
    def some(model): return list(select(model))[::3]

    def elastic(model):
        return LoRA(target_modules=some(model), r=4, elastic={some(model)[0]: [4, 2]}, learning_rate=1e-2)

    def vectors(model):
        return VBLoRA(target_modules=some(model), r=2, vector_length=16, num_vectors=16, init_vector_bank_bound=.1,
                      save_only_topk_weights=False, learning_rate_vector_bank=1e-2, learning_rate_logits=1e-1)

    ADAPTERS = {"LoRA": lambda model: LoRA(target_modules=some(model), r=4, learning_rate=1e-2),
                "elastic": elastic,
                "VB-LoRA": vectors,
                **{f"SVFT {p}": lambda model, p=p: SVFT(target_modules=some(model), pattern=p) for p in PATTERNS},
                "SparsePEFT": lambda model: SparsePEFT(target_modules=some(model), r=4, learning_rate=1e-2)}
    RANKS = {"VB-LoRA": 2, "LoRA of 12": 12}  # Where it is not 4
    COLUMNS = list(ADAPTERS)
    ADAPTERS["LoRA of 12"] = lambda model: LoRA(target_modules=["q_proj", "o_proj"], r=12, learning_rate=1e-2)

    def chart(cells, rows, columns, width=13):
        "Print a table of words."
        print(f"{'':18}" + "".join(f"{c:{width}}" for c in columns))
        for r in rows: print(f"{r:18}" + "".join(f"{cells[r, c]:{width}}" for c in columns).rstrip())

    # %% ../nbs/54_composition.ipynb #0fac7063
    IDS = torch.arange(48).view(4, 12) % 23

    def logits(model):
        with torch.no_grad(): return model(input_ids=IDS).logits

    def train(model, steps=3):
        "Train with the groups of the adapters, and list the losses."
        optimizer, losses = torch.optim.AdamW(parameter_groups(model)), []
        def loss(): return model(input_ids=IDS, labels=IDS).loss
        model.train()
        for step in range(steps):
            if getattr(next(iter(adapters(model).values())), "by_group", None):
                losses.append(elastic_backward(model, loss, step))
            else:
                losses.append((value := loss()).item())
                value.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.eval()
        return losses

    def state(model):
        "What an error must not change: the layers, what trains, and the outputs."
        return [id(m) for m in model.modules()], [p.requires_grad for p in model.parameters()], logits(model)

    def unchanged(model, was):
        *now, y = state(model)
        assert now == list(was[:2]) and torch.equal(y, was[2])

    def weights(model): return {n: effective_weight(layer).clone() for n, layer in select(model).items()}

    # %% ../nbs/54_composition.ipynb #8ca9b018
    def levels(layer):
        "All values that each weight of a layer of codes can take, (codes, out, in)."
        shape = layer.out_features, layer.in_features
        def spread(t): return t.float().repeat_interleave(shape[0]//len(t), 0).repeat_interleave(shape[1]//t.shape[1], 1)
        if hasattr(layer, "grid"):
            s, z = spread(layer.grid.scale), spread(layer.grid.zero)
            return torch.stack([s*(k - z) for k in range(2**layer.code_bits)])
        alphas = [spread(a) for a in layer.scales.alpha()]
        return torch.stack([sum(map(torch.mul, signs, alphas)) for signs in product((1, -1), repeat=len(alphas))])

    def holder(layer, What):
        "The form that holds a matrix if this layer takes it on, or \"apart\"."
        if isinstance(layer, RotatedLinear):
            inner = holder(layer.inner, turn_weight(What, layer.s))
            return inner if inner == "apart" else f"RotatedLinear:{inner}"
        if isinstance(layer, FactoredLinear):
            smaller = int(torch.linalg.matrix_rank(What))*sum(What.shape) < What.numel()
            return "FactoredLinear" if smaller else "Linear"
        fits = True
        if isinstance(layer, SparseLinear): fits = not What[~layer.mask].any()
        elif hasattr(layer, "code_bits"): fits = bool((levels(layer) == What).any(0).all())
        form = "GridLinear" if isinstance(layer, RoundingLinear) else type(layer).__name__
        return form if fits else "apart"

    def nearest(layer, W):
        "The matrix of levels that is nearest to another one, zero outside of a mask."
        found = (each := levels(layer)).gather(0, (each - W).abs().argmin(0, keepdim=True))[0]
        return found if layer.mask is None else found*layer.mask

    def change(layer, method):
        "A random member of an adapter's set, or None where the set is not defined."
        W, mask = effective_weight(layer).detach(), getattr(layer, "mask", None)
        r = RANKS.get(method, 4)
        low = torch.randn(len(W), r) @ torch.randn(r, W.shape[1])
        if method == "SparsePEFT": return None if mask is None else low*mask
        if not method.startswith("SVFT"): return low
        (U, _, Vh), pattern = svd(W), method.split()[1]
        at = pairs(pattern, 0 if pattern == "plain" else 2, U, Vh)
        return U @ dense(torch.randn(len(Vh) if at is None else at.shape[1]), at, len(Vh)) @ Vh

    def derived(layer, method):
        "What (2) says about a layer and an adapter."
        if (D := change(layer, method)) is None: return "refused"
        if not isinstance(layer, RoundingLinear): return holder(layer, effective_weight(layer) + D)
        What = nearest(layer, layer.weight + D)
        assert torch.equal(layer.project(layer.weight + D), What)
        return holder(layer, What)

    # %% ../nbs/54_composition.ipynb #b095431b
    def merged_form(model, tolerance):
        "Merge and unmerge; give the form that the layers had in between, \"apart\" if there was none."
        was, Ws, apart, names = state(model), weights(model), tolerance, list(adapted(model))
        try: merge(model)
        except MergeError:
            unchanged(model, was)
            return "apart"
        forms = {form_of(model.get_submodule(name)) for name in names}
        if not forms & {"FactoredLinear", "RotatedLinear:Linear"}: apart = 0
        for name, W in weights(model).items(): torch.testing.assert_close(W, Ws[name], rtol=apart, atol=apart)
        torch.testing.assert_close(logits(model), was[2], rtol=50*tolerance, atol=50*tolerance)
        unchanged(unmerge(model), was)
        return forms.pop() if len(forms) == 1 else forms

    def tried(model, loaded, method, tolerance=1e-6):
        "Take a pair through its life, after which both models are as they were."
        before = state(model)
        try: attach(model, ADAPTERS[method](model))
        except SettingError:
            unchanged(model, before)
            return "refused"
        losses = train(model)
        assert losses[-1] < losses[0]
        if method == "elastic": set_ranks(model, smallest(rank_space(model)))
        with tempfile.TemporaryDirectory() as folder:
            load_adapter(loaded, save_adapter(model, folder))
        assert torch.equal(logits(loaded), logits(model))
        detach(loaded)
        form = merged_form(model, tolerance)
        unchanged(detach(model), before)
        return form

    def all_derived(forms, methods):
        layers = {form: next(iter(select(FORMS[form]()).values())).requires_grad_(False) for form in forms}
        return {(form, method): derived(layers[form], method) for form, method in product(forms, methods)}

    def both(form, dtype=torch.float32):
        "A base from its folder, twice."
        base = FORMS[form]()
        with tempfile.TemporaryDirectory() as folder:
            save(base, None, folder, dtype=dtype)
            loaded = load(folder, dtype)[0].requires_grad_(False)
        assert dtype != torch.float32 or torch.equal(logits(base), logits(loaded))
        return loaded, copy.deepcopy(loaded)

    def all_tried(forms, methods, dtype=torch.float32, tolerance=1e-6):
        return {(form, method): tried(*pair, method, tolerance) for form in forms for pair in [both(form, dtype)]
                for method in methods}

    # %% ../nbs/54_composition.ipynb #45cabb0f
    torch.manual_seed(0)
    beyond = ["factors"], ["LoRA of 12"]
    assert all_tried(*beyond) == all_derived(*beyond) == {("factors", "LoRA of 12"): "Linear"}


def test_every_pair_tried_3():
    # %% ../nbs/54_composition.ipynb #02bb5626
    def tiny(conv=False):
        "A random model of one block: Llama's, or GPT-2's with its layers of another orientation."
        torch.manual_seed(0)
        ids = dict(vocab_size=64, bos_token_id=0, eos_token_id=0, pad_token_id=1)
        off = dict(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
        if conv: return tf.GPT2LMHeadModel(tf.GPT2Config(**ids, **off, n_embd=32, n_inner=48, n_layer=1, n_head=4)).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**ids, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                                                  num_attention_heads=4, num_key_value_heads=2)).eval()

    def rotated(model):
        "Put every layer behind a rotation and leave it dense."
        for name, layer in select(model).items(): replace(model, name, RotatedLinear(*turned_layer(name, layer, 0)))
        return model

    def sparse(): return sparsify(tiny(), method="magnitude")
    def factors(model):
        prune(model, decompose(model), rank=6)
        return model

    GRID, SHIFT = dict(group=16), dict(bits=2, block=(1, 16))
    FORMS = {"dense": tiny,
             "Conv1D": lambda: tiny(conv=True),
             "factors": lambda: factors(tiny()),
             "sparse": sparse,
             "rounding": lambda: rounding(tiny(), **GRID),
             "rounding, sparse": lambda: rounding(sparse(), **GRID),
             "integers": lambda: quantize(tiny(), method="rtn", **GRID),
             "integers, sparse": lambda: quantize(sparse(), method="rtn", **GRID),
             "shift-add": lambda: shift_add(tiny(), **SHIFT),
             "rotated": lambda: rotated(tiny()),
             "rotated integers": lambda: quantize(tiny(), method="rtn", rotate=0, **GRID),
             "rotated shift-add": lambda: shift_add(tiny(), rotate=0, **SHIFT)}

    # %% ../nbs/54_composition.ipynb #0e1507dc
    def some(model): return list(select(model))[::3]

    def elastic(model):
        return LoRA(target_modules=some(model), r=4, elastic={some(model)[0]: [4, 2]}, learning_rate=1e-2)

    def vectors(model):
        return VBLoRA(target_modules=some(model), r=2, vector_length=16, num_vectors=16, init_vector_bank_bound=.1,
                      save_only_topk_weights=False, learning_rate_vector_bank=1e-2, learning_rate_logits=1e-1)

    ADAPTERS = {"LoRA": lambda model: LoRA(target_modules=some(model), r=4, learning_rate=1e-2),
                "elastic": elastic,
                "VB-LoRA": vectors,
                **{f"SVFT {p}": lambda model, p=p: SVFT(target_modules=some(model), pattern=p) for p in PATTERNS},
                "SparsePEFT": lambda model: SparsePEFT(target_modules=some(model), r=4, learning_rate=1e-2)}
    RANKS = {"VB-LoRA": 2, "LoRA of 12": 12}  # Where it is not 4
    COLUMNS = list(ADAPTERS)
    ADAPTERS["LoRA of 12"] = lambda model: LoRA(target_modules=["q_proj", "o_proj"], r=12, learning_rate=1e-2)

    def chart(cells, rows, columns, width=13):
        "Print a table of words."
        print(f"{'':18}" + "".join(f"{c:{width}}" for c in columns))
        for r in rows: print(f"{r:18}" + "".join(f"{cells[r, c]:{width}}" for c in columns).rstrip())

    # %% ../nbs/54_composition.ipynb #0fac7063
    IDS = torch.arange(48).view(4, 12) % 23

    def logits(model):
        with torch.no_grad(): return model(input_ids=IDS).logits

    def train(model, steps=3):
        "Train with the groups of the adapters, and list the losses."
        optimizer, losses = torch.optim.AdamW(parameter_groups(model)), []
        def loss(): return model(input_ids=IDS, labels=IDS).loss
        model.train()
        for step in range(steps):
            if getattr(next(iter(adapters(model).values())), "by_group", None):
                losses.append(elastic_backward(model, loss, step))
            else:
                losses.append((value := loss()).item())
                value.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.eval()
        return losses

    def state(model):
        "What an error must not change: the layers, what trains, and the outputs."
        return [id(m) for m in model.modules()], [p.requires_grad for p in model.parameters()], logits(model)

    def unchanged(model, was):
        *now, y = state(model)
        assert now == list(was[:2]) and torch.equal(y, was[2])

    def weights(model): return {n: effective_weight(layer).clone() for n, layer in select(model).items()}

    # %% ../nbs/54_composition.ipynb #8ca9b018
    def levels(layer):
        "All values that each weight of a layer of codes can take, (codes, out, in)."
        shape = layer.out_features, layer.in_features
        def spread(t): return t.float().repeat_interleave(shape[0]//len(t), 0).repeat_interleave(shape[1]//t.shape[1], 1)
        if hasattr(layer, "grid"):
            s, z = spread(layer.grid.scale), spread(layer.grid.zero)
            return torch.stack([s*(k - z) for k in range(2**layer.code_bits)])
        alphas = [spread(a) for a in layer.scales.alpha()]
        return torch.stack([sum(map(torch.mul, signs, alphas)) for signs in product((1, -1), repeat=len(alphas))])

    def holder(layer, What):
        "The form that holds a matrix if this layer takes it on, or \"apart\"."
        if isinstance(layer, RotatedLinear):
            inner = holder(layer.inner, turn_weight(What, layer.s))
            return inner if inner == "apart" else f"RotatedLinear:{inner}"
        if isinstance(layer, FactoredLinear):
            smaller = int(torch.linalg.matrix_rank(What))*sum(What.shape) < What.numel()
            return "FactoredLinear" if smaller else "Linear"
        fits = True
        if isinstance(layer, SparseLinear): fits = not What[~layer.mask].any()
        elif hasattr(layer, "code_bits"): fits = bool((levels(layer) == What).any(0).all())
        form = "GridLinear" if isinstance(layer, RoundingLinear) else type(layer).__name__
        return form if fits else "apart"

    def nearest(layer, W):
        "The matrix of levels that is nearest to another one, zero outside of a mask."
        found = (each := levels(layer)).gather(0, (each - W).abs().argmin(0, keepdim=True))[0]
        return found if layer.mask is None else found*layer.mask

    def change(layer, method):
        "A random member of an adapter's set, or None where the set is not defined."
        W, mask = effective_weight(layer).detach(), getattr(layer, "mask", None)
        r = RANKS.get(method, 4)
        low = torch.randn(len(W), r) @ torch.randn(r, W.shape[1])
        if method == "SparsePEFT": return None if mask is None else low*mask
        if not method.startswith("SVFT"): return low
        (U, _, Vh), pattern = svd(W), method.split()[1]
        at = pairs(pattern, 0 if pattern == "plain" else 2, U, Vh)
        return U @ dense(torch.randn(len(Vh) if at is None else at.shape[1]), at, len(Vh)) @ Vh

    def derived(layer, method):
        "What (2) says about a layer and an adapter."
        if (D := change(layer, method)) is None: return "refused"
        if not isinstance(layer, RoundingLinear): return holder(layer, effective_weight(layer) + D)
        What = nearest(layer, layer.weight + D)
        assert torch.equal(layer.project(layer.weight + D), What)
        return holder(layer, What)

    # %% ../nbs/54_composition.ipynb #b095431b
    def merged_form(model, tolerance):
        "Merge and unmerge; give the form that the layers had in between, \"apart\" if there was none."
        was, Ws, apart, names = state(model), weights(model), tolerance, list(adapted(model))
        try: merge(model)
        except MergeError:
            unchanged(model, was)
            return "apart"
        forms = {form_of(model.get_submodule(name)) for name in names}
        if not forms & {"FactoredLinear", "RotatedLinear:Linear"}: apart = 0
        for name, W in weights(model).items(): torch.testing.assert_close(W, Ws[name], rtol=apart, atol=apart)
        torch.testing.assert_close(logits(model), was[2], rtol=50*tolerance, atol=50*tolerance)
        unchanged(unmerge(model), was)
        return forms.pop() if len(forms) == 1 else forms

    def tried(model, loaded, method, tolerance=1e-6):
        "Take a pair through its life, after which both models are as they were."
        before = state(model)
        try: attach(model, ADAPTERS[method](model))
        except SettingError:
            unchanged(model, before)
            return "refused"
        losses = train(model)
        assert losses[-1] < losses[0]
        if method == "elastic": set_ranks(model, smallest(rank_space(model)))
        with tempfile.TemporaryDirectory() as folder:
            load_adapter(loaded, save_adapter(model, folder))
        assert torch.equal(logits(loaded), logits(model))
        detach(loaded)
        form = merged_form(model, tolerance)
        unchanged(detach(model), before)
        return form

    def all_derived(forms, methods):
        layers = {form: next(iter(select(FORMS[form]()).values())).requires_grad_(False) for form in forms}
        return {(form, method): derived(layers[form], method) for form, method in product(forms, methods)}

    def both(form, dtype=torch.float32):
        "A base from its folder, twice."
        base = FORMS[form]()
        with tempfile.TemporaryDirectory() as folder:
            save(base, None, folder, dtype=dtype)
            loaded = load(folder, dtype)[0].requires_grad_(False)
        assert dtype != torch.float32 or torch.equal(logits(base), logits(loaded))
        return loaded, copy.deepcopy(loaded)

    def all_tried(forms, methods, dtype=torch.float32, tolerance=1e-6):
        return {(form, method): tried(*pair, method, tolerance) for form in forms for pair in [both(form, dtype)]
                for method in methods}

    # %% ../nbs/54_composition.ipynb #0c9fd8c8
    model = FORMS["integers"]()
    try: attach(model, SparsePEFT(r=4))
    except SettingError as e: print(e)
    attach(model, LoRA(r=4))
    nn.init.normal_(next(iter(adapted(model).values())).parts["default"].B)
    try: merge(model)
    except MergeError as e: print(e)

    # %% ../nbs/54_composition.ipynb #ae8b9aee
    for form, make in FORMS.items():
        model = make()
        before, was = logits(model), {form_of(layer) for layer in select(model).values()}
        attach(model, LoRA(r=4))
        bake(model)
        now = {form_of(layer) for layer in select(model).values()}
        assert now == ({"GridLinear"} if was == {"RoundingLinear"} else was), form
        torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-5)


def test_every_pair_tried_4():
    # %% ../nbs/54_composition.ipynb #02bb5626
    def tiny(conv=False):
        "A random model of one block: Llama's, or GPT-2's with its layers of another orientation."
        torch.manual_seed(0)
        ids = dict(vocab_size=64, bos_token_id=0, eos_token_id=0, pad_token_id=1)
        off = dict(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
        if conv: return tf.GPT2LMHeadModel(tf.GPT2Config(**ids, **off, n_embd=32, n_inner=48, n_layer=1, n_head=4)).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**ids, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                                                  num_attention_heads=4, num_key_value_heads=2)).eval()

    def rotated(model):
        "Put every layer behind a rotation and leave it dense."
        for name, layer in select(model).items(): replace(model, name, RotatedLinear(*turned_layer(name, layer, 0)))
        return model

    def sparse(): return sparsify(tiny(), method="magnitude")
    def factors(model):
        prune(model, decompose(model), rank=6)
        return model

    GRID, SHIFT = dict(group=16), dict(bits=2, block=(1, 16))
    FORMS = {"dense": tiny,
             "Conv1D": lambda: tiny(conv=True),
             "factors": lambda: factors(tiny()),
             "sparse": sparse,
             "rounding": lambda: rounding(tiny(), **GRID),
             "rounding, sparse": lambda: rounding(sparse(), **GRID),
             "integers": lambda: quantize(tiny(), method="rtn", **GRID),
             "integers, sparse": lambda: quantize(sparse(), method="rtn", **GRID),
             "shift-add": lambda: shift_add(tiny(), **SHIFT),
             "rotated": lambda: rotated(tiny()),
             "rotated integers": lambda: quantize(tiny(), method="rtn", rotate=0, **GRID),
             "rotated shift-add": lambda: shift_add(tiny(), rotate=0, **SHIFT)}

    # %% ../nbs/54_composition.ipynb #0e1507dc
    def some(model): return list(select(model))[::3]

    def elastic(model):
        return LoRA(target_modules=some(model), r=4, elastic={some(model)[0]: [4, 2]}, learning_rate=1e-2)

    def vectors(model):
        return VBLoRA(target_modules=some(model), r=2, vector_length=16, num_vectors=16, init_vector_bank_bound=.1,
                      save_only_topk_weights=False, learning_rate_vector_bank=1e-2, learning_rate_logits=1e-1)

    ADAPTERS = {"LoRA": lambda model: LoRA(target_modules=some(model), r=4, learning_rate=1e-2),
                "elastic": elastic,
                "VB-LoRA": vectors,
                **{f"SVFT {p}": lambda model, p=p: SVFT(target_modules=some(model), pattern=p) for p in PATTERNS},
                "SparsePEFT": lambda model: SparsePEFT(target_modules=some(model), r=4, learning_rate=1e-2)}
    RANKS = {"VB-LoRA": 2, "LoRA of 12": 12}  # Where it is not 4
    COLUMNS = list(ADAPTERS)
    ADAPTERS["LoRA of 12"] = lambda model: LoRA(target_modules=["q_proj", "o_proj"], r=12, learning_rate=1e-2)

    def chart(cells, rows, columns, width=13):
        "Print a table of words."
        print(f"{'':18}" + "".join(f"{c:{width}}" for c in columns))
        for r in rows: print(f"{r:18}" + "".join(f"{cells[r, c]:{width}}" for c in columns).rstrip())

    # %% ../nbs/54_composition.ipynb #0fac7063
    IDS = torch.arange(48).view(4, 12) % 23

    def logits(model):
        with torch.no_grad(): return model(input_ids=IDS).logits

    def train(model, steps=3):
        "Train with the groups of the adapters, and list the losses."
        optimizer, losses = torch.optim.AdamW(parameter_groups(model)), []
        def loss(): return model(input_ids=IDS, labels=IDS).loss
        model.train()
        for step in range(steps):
            if getattr(next(iter(adapters(model).values())), "by_group", None):
                losses.append(elastic_backward(model, loss, step))
            else:
                losses.append((value := loss()).item())
                value.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.eval()
        return losses

    def state(model):
        "What an error must not change: the layers, what trains, and the outputs."
        return [id(m) for m in model.modules()], [p.requires_grad for p in model.parameters()], logits(model)

    def unchanged(model, was):
        *now, y = state(model)
        assert now == list(was[:2]) and torch.equal(y, was[2])

    def weights(model): return {n: effective_weight(layer).clone() for n, layer in select(model).items()}

    # %% ../nbs/54_composition.ipynb #8ca9b018
    def levels(layer):
        "All values that each weight of a layer of codes can take, (codes, out, in)."
        shape = layer.out_features, layer.in_features
        def spread(t): return t.float().repeat_interleave(shape[0]//len(t), 0).repeat_interleave(shape[1]//t.shape[1], 1)
        if hasattr(layer, "grid"):
            s, z = spread(layer.grid.scale), spread(layer.grid.zero)
            return torch.stack([s*(k - z) for k in range(2**layer.code_bits)])
        alphas = [spread(a) for a in layer.scales.alpha()]
        return torch.stack([sum(map(torch.mul, signs, alphas)) for signs in product((1, -1), repeat=len(alphas))])

    def holder(layer, What):
        "The form that holds a matrix if this layer takes it on, or \"apart\"."
        if isinstance(layer, RotatedLinear):
            inner = holder(layer.inner, turn_weight(What, layer.s))
            return inner if inner == "apart" else f"RotatedLinear:{inner}"
        if isinstance(layer, FactoredLinear):
            smaller = int(torch.linalg.matrix_rank(What))*sum(What.shape) < What.numel()
            return "FactoredLinear" if smaller else "Linear"
        fits = True
        if isinstance(layer, SparseLinear): fits = not What[~layer.mask].any()
        elif hasattr(layer, "code_bits"): fits = bool((levels(layer) == What).any(0).all())
        form = "GridLinear" if isinstance(layer, RoundingLinear) else type(layer).__name__
        return form if fits else "apart"

    def nearest(layer, W):
        "The matrix of levels that is nearest to another one, zero outside of a mask."
        found = (each := levels(layer)).gather(0, (each - W).abs().argmin(0, keepdim=True))[0]
        return found if layer.mask is None else found*layer.mask

    def change(layer, method):
        "A random member of an adapter's set, or None where the set is not defined."
        W, mask = effective_weight(layer).detach(), getattr(layer, "mask", None)
        r = RANKS.get(method, 4)
        low = torch.randn(len(W), r) @ torch.randn(r, W.shape[1])
        if method == "SparsePEFT": return None if mask is None else low*mask
        if not method.startswith("SVFT"): return low
        (U, _, Vh), pattern = svd(W), method.split()[1]
        at = pairs(pattern, 0 if pattern == "plain" else 2, U, Vh)
        return U @ dense(torch.randn(len(Vh) if at is None else at.shape[1]), at, len(Vh)) @ Vh

    def derived(layer, method):
        "What (2) says about a layer and an adapter."
        if (D := change(layer, method)) is None: return "refused"
        if not isinstance(layer, RoundingLinear): return holder(layer, effective_weight(layer) + D)
        What = nearest(layer, layer.weight + D)
        assert torch.equal(layer.project(layer.weight + D), What)
        return holder(layer, What)

    # %% ../nbs/54_composition.ipynb #b095431b
    def merged_form(model, tolerance):
        "Merge and unmerge; give the form that the layers had in between, \"apart\" if there was none."
        was, Ws, apart, names = state(model), weights(model), tolerance, list(adapted(model))
        try: merge(model)
        except MergeError:
            unchanged(model, was)
            return "apart"
        forms = {form_of(model.get_submodule(name)) for name in names}
        if not forms & {"FactoredLinear", "RotatedLinear:Linear"}: apart = 0
        for name, W in weights(model).items(): torch.testing.assert_close(W, Ws[name], rtol=apart, atol=apart)
        torch.testing.assert_close(logits(model), was[2], rtol=50*tolerance, atol=50*tolerance)
        unchanged(unmerge(model), was)
        return forms.pop() if len(forms) == 1 else forms

    def tried(model, loaded, method, tolerance=1e-6):
        "Take a pair through its life, after which both models are as they were."
        before = state(model)
        try: attach(model, ADAPTERS[method](model))
        except SettingError:
            unchanged(model, before)
            return "refused"
        losses = train(model)
        assert losses[-1] < losses[0]
        if method == "elastic": set_ranks(model, smallest(rank_space(model)))
        with tempfile.TemporaryDirectory() as folder:
            load_adapter(loaded, save_adapter(model, folder))
        assert torch.equal(logits(loaded), logits(model))
        detach(loaded)
        form = merged_form(model, tolerance)
        unchanged(detach(model), before)
        return form

    def all_derived(forms, methods):
        layers = {form: next(iter(select(FORMS[form]()).values())).requires_grad_(False) for form in forms}
        return {(form, method): derived(layers[form], method) for form, method in product(forms, methods)}

    def both(form, dtype=torch.float32):
        "A base from its folder, twice."
        base = FORMS[form]()
        with tempfile.TemporaryDirectory() as folder:
            save(base, None, folder, dtype=dtype)
            loaded = load(folder, dtype)[0].requires_grad_(False)
        assert dtype != torch.float32 or torch.equal(logits(base), logits(loaded))
        return loaded, copy.deepcopy(loaded)

    def all_tried(forms, methods, dtype=torch.float32, tolerance=1e-6):
        return {(form, method): tried(*pair, method, tolerance) for form in forms for pair in [both(form, dtype)]
                for method in methods}

    # %% ../nbs/54_composition.ipynb #0c9fd8c8
    model = FORMS["integers"]()
    try: attach(model, SparsePEFT(r=4))
    except SettingError as e: print(e)
    attach(model, LoRA(r=4))
    nn.init.normal_(next(iter(adapted(model).values())).parts["default"].B)
    try: merge(model)
    except MergeError as e: print(e)

    # %% ../nbs/54_composition.ipynb #750cd4e8
    for form, c in ("integers", -1), ("shift-add", -2):
        attach(model := FORMS[form](), LoRA(r=1, lora_alpha=1))
        name, layer = next(iter(adapted(model).items()))
        W, part = effective_weight(layer.base).clone(), layer.parts["default"]
        with torch.no_grad():
            part.B[0] = 1
            part.A.copy_(c*W[:1])
        new = bake(model).get_submodule(name)
        assert type(new) is type(layer.base) and torch.equal(new.effective_weight()[0], (1 + c)*W[0])
        assert W[0].any() and torch.equal(new.effective_weight()[1:], W[1:])


def test_every_pair_tried_5():
    # %% ../nbs/54_composition.ipynb #02bb5626
    def tiny(conv=False):
        "A random model of one block: Llama's, or GPT-2's with its layers of another orientation."
        torch.manual_seed(0)
        ids = dict(vocab_size=64, bos_token_id=0, eos_token_id=0, pad_token_id=1)
        off = dict(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
        if conv: return tf.GPT2LMHeadModel(tf.GPT2Config(**ids, **off, n_embd=32, n_inner=48, n_layer=1, n_head=4)).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**ids, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                                                  num_attention_heads=4, num_key_value_heads=2)).eval()

    def rotated(model):
        "Put every layer behind a rotation and leave it dense."
        for name, layer in select(model).items(): replace(model, name, RotatedLinear(*turned_layer(name, layer, 0)))
        return model

    def sparse(): return sparsify(tiny(), method="magnitude")
    def factors(model):
        prune(model, decompose(model), rank=6)
        return model

    GRID, SHIFT = dict(group=16), dict(bits=2, block=(1, 16))
    FORMS = {"dense": tiny,
             "Conv1D": lambda: tiny(conv=True),
             "factors": lambda: factors(tiny()),
             "sparse": sparse,
             "rounding": lambda: rounding(tiny(), **GRID),
             "rounding, sparse": lambda: rounding(sparse(), **GRID),
             "integers": lambda: quantize(tiny(), method="rtn", **GRID),
             "integers, sparse": lambda: quantize(sparse(), method="rtn", **GRID),
             "shift-add": lambda: shift_add(tiny(), **SHIFT),
             "rotated": lambda: rotated(tiny()),
             "rotated integers": lambda: quantize(tiny(), method="rtn", rotate=0, **GRID),
             "rotated shift-add": lambda: shift_add(tiny(), rotate=0, **SHIFT)}

    # %% ../nbs/54_composition.ipynb #0e1507dc
    def some(model): return list(select(model))[::3]

    def elastic(model):
        return LoRA(target_modules=some(model), r=4, elastic={some(model)[0]: [4, 2]}, learning_rate=1e-2)

    def vectors(model):
        return VBLoRA(target_modules=some(model), r=2, vector_length=16, num_vectors=16, init_vector_bank_bound=.1,
                      save_only_topk_weights=False, learning_rate_vector_bank=1e-2, learning_rate_logits=1e-1)

    ADAPTERS = {"LoRA": lambda model: LoRA(target_modules=some(model), r=4, learning_rate=1e-2),
                "elastic": elastic,
                "VB-LoRA": vectors,
                **{f"SVFT {p}": lambda model, p=p: SVFT(target_modules=some(model), pattern=p) for p in PATTERNS},
                "SparsePEFT": lambda model: SparsePEFT(target_modules=some(model), r=4, learning_rate=1e-2)}
    RANKS = {"VB-LoRA": 2, "LoRA of 12": 12}  # Where it is not 4
    COLUMNS = list(ADAPTERS)
    ADAPTERS["LoRA of 12"] = lambda model: LoRA(target_modules=["q_proj", "o_proj"], r=12, learning_rate=1e-2)

    def chart(cells, rows, columns, width=13):
        "Print a table of words."
        print(f"{'':18}" + "".join(f"{c:{width}}" for c in columns))
        for r in rows: print(f"{r:18}" + "".join(f"{cells[r, c]:{width}}" for c in columns).rstrip())

    # %% ../nbs/54_composition.ipynb #0fac7063
    IDS = torch.arange(48).view(4, 12) % 23

    def logits(model):
        with torch.no_grad(): return model(input_ids=IDS).logits

    def train(model, steps=3):
        "Train with the groups of the adapters, and list the losses."
        optimizer, losses = torch.optim.AdamW(parameter_groups(model)), []
        def loss(): return model(input_ids=IDS, labels=IDS).loss
        model.train()
        for step in range(steps):
            if getattr(next(iter(adapters(model).values())), "by_group", None):
                losses.append(elastic_backward(model, loss, step))
            else:
                losses.append((value := loss()).item())
                value.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.eval()
        return losses

    def state(model):
        "What an error must not change: the layers, what trains, and the outputs."
        return [id(m) for m in model.modules()], [p.requires_grad for p in model.parameters()], logits(model)

    def unchanged(model, was):
        *now, y = state(model)
        assert now == list(was[:2]) and torch.equal(y, was[2])

    def weights(model): return {n: effective_weight(layer).clone() for n, layer in select(model).items()}

    # %% ../nbs/54_composition.ipynb #8ca9b018
    def levels(layer):
        "All values that each weight of a layer of codes can take, (codes, out, in)."
        shape = layer.out_features, layer.in_features
        def spread(t): return t.float().repeat_interleave(shape[0]//len(t), 0).repeat_interleave(shape[1]//t.shape[1], 1)
        if hasattr(layer, "grid"):
            s, z = spread(layer.grid.scale), spread(layer.grid.zero)
            return torch.stack([s*(k - z) for k in range(2**layer.code_bits)])
        alphas = [spread(a) for a in layer.scales.alpha()]
        return torch.stack([sum(map(torch.mul, signs, alphas)) for signs in product((1, -1), repeat=len(alphas))])

    def holder(layer, What):
        "The form that holds a matrix if this layer takes it on, or \"apart\"."
        if isinstance(layer, RotatedLinear):
            inner = holder(layer.inner, turn_weight(What, layer.s))
            return inner if inner == "apart" else f"RotatedLinear:{inner}"
        if isinstance(layer, FactoredLinear):
            smaller = int(torch.linalg.matrix_rank(What))*sum(What.shape) < What.numel()
            return "FactoredLinear" if smaller else "Linear"
        fits = True
        if isinstance(layer, SparseLinear): fits = not What[~layer.mask].any()
        elif hasattr(layer, "code_bits"): fits = bool((levels(layer) == What).any(0).all())
        form = "GridLinear" if isinstance(layer, RoundingLinear) else type(layer).__name__
        return form if fits else "apart"

    def nearest(layer, W):
        "The matrix of levels that is nearest to another one, zero outside of a mask."
        found = (each := levels(layer)).gather(0, (each - W).abs().argmin(0, keepdim=True))[0]
        return found if layer.mask is None else found*layer.mask

    def change(layer, method):
        "A random member of an adapter's set, or None where the set is not defined."
        W, mask = effective_weight(layer).detach(), getattr(layer, "mask", None)
        r = RANKS.get(method, 4)
        low = torch.randn(len(W), r) @ torch.randn(r, W.shape[1])
        if method == "SparsePEFT": return None if mask is None else low*mask
        if not method.startswith("SVFT"): return low
        (U, _, Vh), pattern = svd(W), method.split()[1]
        at = pairs(pattern, 0 if pattern == "plain" else 2, U, Vh)
        return U @ dense(torch.randn(len(Vh) if at is None else at.shape[1]), at, len(Vh)) @ Vh

    def derived(layer, method):
        "What (2) says about a layer and an adapter."
        if (D := change(layer, method)) is None: return "refused"
        if not isinstance(layer, RoundingLinear): return holder(layer, effective_weight(layer) + D)
        What = nearest(layer, layer.weight + D)
        assert torch.equal(layer.project(layer.weight + D), What)
        return holder(layer, What)

    # %% ../nbs/54_composition.ipynb #b095431b
    def merged_form(model, tolerance):
        "Merge and unmerge; give the form that the layers had in between, \"apart\" if there was none."
        was, Ws, apart, names = state(model), weights(model), tolerance, list(adapted(model))
        try: merge(model)
        except MergeError:
            unchanged(model, was)
            return "apart"
        forms = {form_of(model.get_submodule(name)) for name in names}
        if not forms & {"FactoredLinear", "RotatedLinear:Linear"}: apart = 0
        for name, W in weights(model).items(): torch.testing.assert_close(W, Ws[name], rtol=apart, atol=apart)
        torch.testing.assert_close(logits(model), was[2], rtol=50*tolerance, atol=50*tolerance)
        unchanged(unmerge(model), was)
        return forms.pop() if len(forms) == 1 else forms

    def tried(model, loaded, method, tolerance=1e-6):
        "Take a pair through its life, after which both models are as they were."
        before = state(model)
        try: attach(model, ADAPTERS[method](model))
        except SettingError:
            unchanged(model, before)
            return "refused"
        losses = train(model)
        assert losses[-1] < losses[0]
        if method == "elastic": set_ranks(model, smallest(rank_space(model)))
        with tempfile.TemporaryDirectory() as folder:
            load_adapter(loaded, save_adapter(model, folder))
        assert torch.equal(logits(loaded), logits(model))
        detach(loaded)
        form = merged_form(model, tolerance)
        unchanged(detach(model), before)
        return form

    def all_derived(forms, methods):
        layers = {form: next(iter(select(FORMS[form]()).values())).requires_grad_(False) for form in forms}
        return {(form, method): derived(layers[form], method) for form, method in product(forms, methods)}

    def both(form, dtype=torch.float32):
        "A base from its folder, twice."
        base = FORMS[form]()
        with tempfile.TemporaryDirectory() as folder:
            save(base, None, folder, dtype=dtype)
            loaded = load(folder, dtype)[0].requires_grad_(False)
        assert dtype != torch.float32 or torch.equal(logits(base), logits(loaded))
        return loaded, copy.deepcopy(loaded)

    def all_tried(forms, methods, dtype=torch.float32, tolerance=1e-6):
        return {(form, method): tried(*pair, method, tolerance) for form in forms for pair in [both(form, dtype)]
                for method in methods}

    # %% ../nbs/54_composition.ipynb #0c9fd8c8
    model = FORMS["integers"]()
    try: attach(model, SparsePEFT(r=4))
    except SettingError as e: print(e)
    attach(model, LoRA(r=4))
    nn.init.normal_(next(iter(adapted(model).values())).parts["default"].B)
    try: merge(model)
    except MergeError as e: print(e)

    # %% ../nbs/54_composition.ipynb #db67e364
    masks = ["sparse", "rounding, sparse"]
    for forms, methods in (FORMS, ["LoRA", "SVFT banded"]), (masks, ["SparsePEFT"]):
        assert all_tried(forms, methods, torch.bfloat16, .02) == all_derived(forms, methods)


def test_every_pair_tried_6():
    # %% ../nbs/54_composition.ipynb #02bb5626
    def tiny(conv=False):
        "A random model of one block: Llama's, or GPT-2's with its layers of another orientation."
        torch.manual_seed(0)
        ids = dict(vocab_size=64, bos_token_id=0, eos_token_id=0, pad_token_id=1)
        off = dict(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
        if conv: return tf.GPT2LMHeadModel(tf.GPT2Config(**ids, **off, n_embd=32, n_inner=48, n_layer=1, n_head=4)).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**ids, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                                                  num_attention_heads=4, num_key_value_heads=2)).eval()

    def rotated(model):
        "Put every layer behind a rotation and leave it dense."
        for name, layer in select(model).items(): replace(model, name, RotatedLinear(*turned_layer(name, layer, 0)))
        return model

    def sparse(): return sparsify(tiny(), method="magnitude")
    def factors(model):
        prune(model, decompose(model), rank=6)
        return model

    GRID, SHIFT = dict(group=16), dict(bits=2, block=(1, 16))
    FORMS = {"dense": tiny,
             "Conv1D": lambda: tiny(conv=True),
             "factors": lambda: factors(tiny()),
             "sparse": sparse,
             "rounding": lambda: rounding(tiny(), **GRID),
             "rounding, sparse": lambda: rounding(sparse(), **GRID),
             "integers": lambda: quantize(tiny(), method="rtn", **GRID),
             "integers, sparse": lambda: quantize(sparse(), method="rtn", **GRID),
             "shift-add": lambda: shift_add(tiny(), **SHIFT),
             "rotated": lambda: rotated(tiny()),
             "rotated integers": lambda: quantize(tiny(), method="rtn", rotate=0, **GRID),
             "rotated shift-add": lambda: shift_add(tiny(), rotate=0, **SHIFT)}

    # %% ../nbs/54_composition.ipynb #0e1507dc
    def some(model): return list(select(model))[::3]

    def elastic(model):
        return LoRA(target_modules=some(model), r=4, elastic={some(model)[0]: [4, 2]}, learning_rate=1e-2)

    def vectors(model):
        return VBLoRA(target_modules=some(model), r=2, vector_length=16, num_vectors=16, init_vector_bank_bound=.1,
                      save_only_topk_weights=False, learning_rate_vector_bank=1e-2, learning_rate_logits=1e-1)

    ADAPTERS = {"LoRA": lambda model: LoRA(target_modules=some(model), r=4, learning_rate=1e-2),
                "elastic": elastic,
                "VB-LoRA": vectors,
                **{f"SVFT {p}": lambda model, p=p: SVFT(target_modules=some(model), pattern=p) for p in PATTERNS},
                "SparsePEFT": lambda model: SparsePEFT(target_modules=some(model), r=4, learning_rate=1e-2)}
    RANKS = {"VB-LoRA": 2, "LoRA of 12": 12}  # Where it is not 4
    COLUMNS = list(ADAPTERS)
    ADAPTERS["LoRA of 12"] = lambda model: LoRA(target_modules=["q_proj", "o_proj"], r=12, learning_rate=1e-2)

    def chart(cells, rows, columns, width=13):
        "Print a table of words."
        print(f"{'':18}" + "".join(f"{c:{width}}" for c in columns))
        for r in rows: print(f"{r:18}" + "".join(f"{cells[r, c]:{width}}" for c in columns).rstrip())

    # %% ../nbs/54_composition.ipynb #0fac7063
    IDS = torch.arange(48).view(4, 12) % 23

    def logits(model):
        with torch.no_grad(): return model(input_ids=IDS).logits

    def train(model, steps=3):
        "Train with the groups of the adapters, and list the losses."
        optimizer, losses = torch.optim.AdamW(parameter_groups(model)), []
        def loss(): return model(input_ids=IDS, labels=IDS).loss
        model.train()
        for step in range(steps):
            if getattr(next(iter(adapters(model).values())), "by_group", None):
                losses.append(elastic_backward(model, loss, step))
            else:
                losses.append((value := loss()).item())
                value.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.eval()
        return losses

    def state(model):
        "What an error must not change: the layers, what trains, and the outputs."
        return [id(m) for m in model.modules()], [p.requires_grad for p in model.parameters()], logits(model)

    def unchanged(model, was):
        *now, y = state(model)
        assert now == list(was[:2]) and torch.equal(y, was[2])

    def weights(model): return {n: effective_weight(layer).clone() for n, layer in select(model).items()}

    # %% ../nbs/54_composition.ipynb #8ca9b018
    def levels(layer):
        "All values that each weight of a layer of codes can take, (codes, out, in)."
        shape = layer.out_features, layer.in_features
        def spread(t): return t.float().repeat_interleave(shape[0]//len(t), 0).repeat_interleave(shape[1]//t.shape[1], 1)
        if hasattr(layer, "grid"):
            s, z = spread(layer.grid.scale), spread(layer.grid.zero)
            return torch.stack([s*(k - z) for k in range(2**layer.code_bits)])
        alphas = [spread(a) for a in layer.scales.alpha()]
        return torch.stack([sum(map(torch.mul, signs, alphas)) for signs in product((1, -1), repeat=len(alphas))])

    def holder(layer, What):
        "The form that holds a matrix if this layer takes it on, or \"apart\"."
        if isinstance(layer, RotatedLinear):
            inner = holder(layer.inner, turn_weight(What, layer.s))
            return inner if inner == "apart" else f"RotatedLinear:{inner}"
        if isinstance(layer, FactoredLinear):
            smaller = int(torch.linalg.matrix_rank(What))*sum(What.shape) < What.numel()
            return "FactoredLinear" if smaller else "Linear"
        fits = True
        if isinstance(layer, SparseLinear): fits = not What[~layer.mask].any()
        elif hasattr(layer, "code_bits"): fits = bool((levels(layer) == What).any(0).all())
        form = "GridLinear" if isinstance(layer, RoundingLinear) else type(layer).__name__
        return form if fits else "apart"

    def nearest(layer, W):
        "The matrix of levels that is nearest to another one, zero outside of a mask."
        found = (each := levels(layer)).gather(0, (each - W).abs().argmin(0, keepdim=True))[0]
        return found if layer.mask is None else found*layer.mask

    def change(layer, method):
        "A random member of an adapter's set, or None where the set is not defined."
        W, mask = effective_weight(layer).detach(), getattr(layer, "mask", None)
        r = RANKS.get(method, 4)
        low = torch.randn(len(W), r) @ torch.randn(r, W.shape[1])
        if method == "SparsePEFT": return None if mask is None else low*mask
        if not method.startswith("SVFT"): return low
        (U, _, Vh), pattern = svd(W), method.split()[1]
        at = pairs(pattern, 0 if pattern == "plain" else 2, U, Vh)
        return U @ dense(torch.randn(len(Vh) if at is None else at.shape[1]), at, len(Vh)) @ Vh

    def derived(layer, method):
        "What (2) says about a layer and an adapter."
        if (D := change(layer, method)) is None: return "refused"
        if not isinstance(layer, RoundingLinear): return holder(layer, effective_weight(layer) + D)
        What = nearest(layer, layer.weight + D)
        assert torch.equal(layer.project(layer.weight + D), What)
        return holder(layer, What)

    # %% ../nbs/54_composition.ipynb #b095431b
    def merged_form(model, tolerance):
        "Merge and unmerge; give the form that the layers had in between, \"apart\" if there was none."
        was, Ws, apart, names = state(model), weights(model), tolerance, list(adapted(model))
        try: merge(model)
        except MergeError:
            unchanged(model, was)
            return "apart"
        forms = {form_of(model.get_submodule(name)) for name in names}
        if not forms & {"FactoredLinear", "RotatedLinear:Linear"}: apart = 0
        for name, W in weights(model).items(): torch.testing.assert_close(W, Ws[name], rtol=apart, atol=apart)
        torch.testing.assert_close(logits(model), was[2], rtol=50*tolerance, atol=50*tolerance)
        unchanged(unmerge(model), was)
        return forms.pop() if len(forms) == 1 else forms

    def tried(model, loaded, method, tolerance=1e-6):
        "Take a pair through its life, after which both models are as they were."
        before = state(model)
        try: attach(model, ADAPTERS[method](model))
        except SettingError:
            unchanged(model, before)
            return "refused"
        losses = train(model)
        assert losses[-1] < losses[0]
        if method == "elastic": set_ranks(model, smallest(rank_space(model)))
        with tempfile.TemporaryDirectory() as folder:
            load_adapter(loaded, save_adapter(model, folder))
        assert torch.equal(logits(loaded), logits(model))
        detach(loaded)
        form = merged_form(model, tolerance)
        unchanged(detach(model), before)
        return form

    def all_derived(forms, methods):
        layers = {form: next(iter(select(FORMS[form]()).values())).requires_grad_(False) for form in forms}
        return {(form, method): derived(layers[form], method) for form, method in product(forms, methods)}

    def both(form, dtype=torch.float32):
        "A base from its folder, twice."
        base = FORMS[form]()
        with tempfile.TemporaryDirectory() as folder:
            save(base, None, folder, dtype=dtype)
            loaded = load(folder, dtype)[0].requires_grad_(False)
        assert dtype != torch.float32 or torch.equal(logits(base), logits(loaded))
        return loaded, copy.deepcopy(loaded)

    def all_tried(forms, methods, dtype=torch.float32, tolerance=1e-6):
        return {(form, method): tried(*pair, method, tolerance) for form in forms for pair in [both(form, dtype)]
                for method in methods}

    # %% ../nbs/54_composition.ipynb #0c9fd8c8
    model = FORMS["integers"]()
    try: attach(model, SparsePEFT(r=4))
    except SettingError as e: print(e)
    attach(model, LoRA(r=4))
    nn.init.normal_(next(iter(adapted(model).values())).parts["default"].B)
    try: merge(model)
    except MergeError as e: print(e)

    # %% ../nbs/54_composition.ipynb #4847ffa8
    for form, method in ("factors", "LoRA"), ("sparse", "SparsePEFT"), ("rounding, sparse", "SVFT plain"), \
            ("rotated", "VB-LoRA"), ("Conv1D", "elastic"):
        model = FORMS[form]()
        attach(model, ADAPTERS[method](model))
        train(model)
        bake(model)
        with tempfile.TemporaryDirectory() as folder: again = load(save(model, None, folder))[0]
        assert torch.equal(logits(again), logits(model)) and not adapters(model)


def test_packed_stays_packed():
    # %% ../nbs/54_composition.ipynb #02bb5626
    def tiny(conv=False):
        "A random model of one block: Llama's, or GPT-2's with its layers of another orientation."
        torch.manual_seed(0)
        ids = dict(vocab_size=64, bos_token_id=0, eos_token_id=0, pad_token_id=1)
        off = dict(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
        if conv: return tf.GPT2LMHeadModel(tf.GPT2Config(**ids, **off, n_embd=32, n_inner=48, n_layer=1, n_head=4)).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**ids, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                                                  num_attention_heads=4, num_key_value_heads=2)).eval()

    def rotated(model):
        "Put every layer behind a rotation and leave it dense."
        for name, layer in select(model).items(): replace(model, name, RotatedLinear(*turned_layer(name, layer, 0)))
        return model

    def sparse(): return sparsify(tiny(), method="magnitude")
    def factors(model):
        prune(model, decompose(model), rank=6)
        return model

    GRID, SHIFT = dict(group=16), dict(bits=2, block=(1, 16))
    FORMS = {"dense": tiny,
             "Conv1D": lambda: tiny(conv=True),
             "factors": lambda: factors(tiny()),
             "sparse": sparse,
             "rounding": lambda: rounding(tiny(), **GRID),
             "rounding, sparse": lambda: rounding(sparse(), **GRID),
             "integers": lambda: quantize(tiny(), method="rtn", **GRID),
             "integers, sparse": lambda: quantize(sparse(), method="rtn", **GRID),
             "shift-add": lambda: shift_add(tiny(), **SHIFT),
             "rotated": lambda: rotated(tiny()),
             "rotated integers": lambda: quantize(tiny(), method="rtn", rotate=0, **GRID),
             "rotated shift-add": lambda: shift_add(tiny(), rotate=0, **SHIFT)}

    # %% ../nbs/54_composition.ipynb #0e1507dc
    def some(model): return list(select(model))[::3]

    def elastic(model):
        return LoRA(target_modules=some(model), r=4, elastic={some(model)[0]: [4, 2]}, learning_rate=1e-2)

    def vectors(model):
        return VBLoRA(target_modules=some(model), r=2, vector_length=16, num_vectors=16, init_vector_bank_bound=.1,
                      save_only_topk_weights=False, learning_rate_vector_bank=1e-2, learning_rate_logits=1e-1)

    ADAPTERS = {"LoRA": lambda model: LoRA(target_modules=some(model), r=4, learning_rate=1e-2),
                "elastic": elastic,
                "VB-LoRA": vectors,
                **{f"SVFT {p}": lambda model, p=p: SVFT(target_modules=some(model), pattern=p) for p in PATTERNS},
                "SparsePEFT": lambda model: SparsePEFT(target_modules=some(model), r=4, learning_rate=1e-2)}
    RANKS = {"VB-LoRA": 2, "LoRA of 12": 12}  # Where it is not 4
    COLUMNS = list(ADAPTERS)
    ADAPTERS["LoRA of 12"] = lambda model: LoRA(target_modules=["q_proj", "o_proj"], r=12, learning_rate=1e-2)

    def chart(cells, rows, columns, width=13):
        "Print a table of words."
        print(f"{'':18}" + "".join(f"{c:{width}}" for c in columns))
        for r in rows: print(f"{r:18}" + "".join(f"{cells[r, c]:{width}}" for c in columns).rstrip())

    # %% ../nbs/54_composition.ipynb #0fac7063
    IDS = torch.arange(48).view(4, 12) % 23

    def logits(model):
        with torch.no_grad(): return model(input_ids=IDS).logits

    def train(model, steps=3):
        "Train with the groups of the adapters, and list the losses."
        optimizer, losses = torch.optim.AdamW(parameter_groups(model)), []
        def loss(): return model(input_ids=IDS, labels=IDS).loss
        model.train()
        for step in range(steps):
            if getattr(next(iter(adapters(model).values())), "by_group", None):
                losses.append(elastic_backward(model, loss, step))
            else:
                losses.append((value := loss()).item())
                value.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.eval()
        return losses

    def state(model):
        "What an error must not change: the layers, what trains, and the outputs."
        return [id(m) for m in model.modules()], [p.requires_grad for p in model.parameters()], logits(model)

    def unchanged(model, was):
        *now, y = state(model)
        assert now == list(was[:2]) and torch.equal(y, was[2])

    def weights(model): return {n: effective_weight(layer).clone() for n, layer in select(model).items()}

    # %% ../nbs/54_composition.ipynb #5bcc16bf
    def reachable(root):
        "The bytes of all tensors that can be reached from an object, each memory once."
        storages, seen, todo = {}, {}, [root]
        while todo:
            if id(x := todo.pop()) in seen: continue
            seen[id(x)] = x
            if isinstance(x, Tensor): storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            elif isinstance(x, dict): todo += x.values()
            elif isinstance(x, list | tuple | set): todo += x
            elif not isinstance(x, type):
                todo += vars(x).values() if hasattr(x, "__dict__") else []
                todo += [c.cell_contents for c in getattr(x, "__closure__", None) or ()]
        return sum(storages.values())

    def holds(t, Ws):
        "Whether a tensor is one of some weights, given as arrays, or the transpose of one."
        return t.is_floating_point() and t.ndim == 2 and any(
            s.shape == W.shape and bool((s.detach().double().numpy() == W).all()) for s in (t, t.T) for W in Ws)

    def alive(Ws): return sum(issubclass(type(x), Tensor) and holds(x, Ws) for x in gc.get_objects())

    OUT, IN = 64, 96
    def packed(form):
        "Two layers of integers or of shift-add codes."
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(IN, OUT), nn.Tanh(), nn.Linear(OUT, IN))
        if "integers" in form: return quantize(model, method="rtn", group=32, rotate=0 if "rotated" in form else None)
        return shift_add(model, bits=2, block=(1, 32), rotate=0 if "rotated" in form else None)

    PACKED = "integers", "shift-add", "rotated integers", "rotated shift-add"
    def arrays(model): return [effective_weight(layer).double().numpy().copy() for layer in select(model).values()]

    X = torch.linspace(-1, 1, 5*IN).view(5, IN)

    # %% ../nbs/54_composition.ipynb #d3d85f6d
    LIGHT = {"LoRA": (LoRA(r=4), 4*4*(OUT + IN)*2),
             "VB-LoRA": (VBLoRA(r=2, vector_length=32, num_vectors=16), 4*(16*32 + 2*2*(OUT + IN)//32*16)),
             "SVFT": (SVFT(), 2*4*(OUT*OUT + OUT + OUT)),
             "SVFT, rank 8": (SVFT(rank=8), 2*4*(8*OUT + 8 + 8))}

    def kept_packed(form, name):
        "Count before, during and after training."
        gc.freeze()  # What is older than the model need not be looked through
        model, (config, bytes_) = packed(form), LIGHT[name]
        Ws, bare = arrays(model), reachable(packed(form))
        assert reachable(model) == bare < 4*2*OUT*IN/4 and alive(Ws) == 0
        attach(model, config)
        assert reachable(model) == bare + bytes_ and alive(Ws) == 0, (reachable(model) - bare, bytes_)
        optimizer, saved = torch.optim.AdamW(parameter_groups(model)), []
        def pack(t):
            saved.append(holds(t, Ws))
            return t
        losses = []
        for _ in range(3):
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t): loss = (model(X) - X).square().mean()
            assert saved and not any(saved) and alive(Ws) == 0
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            del loss
        model.eval()
        assert losses[-1] < losses[0] and alive(Ws) == 0 and reachable(model) == bare + bytes_
        gc.unfreeze()
        print(f"{form:18} {bare:6,}   {name:13} {bytes_:6,}")

    # %% ../nbs/54_composition.ipynb #f48c1645
    print(f"two dense layers of {OUT} x {IN}: {4*2*OUT*IN:,} bytes")
    for form in PACKED:
        for name in LIGHT: kept_packed(form, name)


def test_packed_stays_packed_2():
    # %% ../nbs/54_composition.ipynb #02bb5626
    def tiny(conv=False):
        "A random model of one block: Llama's, or GPT-2's with its layers of another orientation."
        torch.manual_seed(0)
        ids = dict(vocab_size=64, bos_token_id=0, eos_token_id=0, pad_token_id=1)
        off = dict(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
        if conv: return tf.GPT2LMHeadModel(tf.GPT2Config(**ids, **off, n_embd=32, n_inner=48, n_layer=1, n_head=4)).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**ids, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                                                  num_attention_heads=4, num_key_value_heads=2)).eval()

    def rotated(model):
        "Put every layer behind a rotation and leave it dense."
        for name, layer in select(model).items(): replace(model, name, RotatedLinear(*turned_layer(name, layer, 0)))
        return model

    def sparse(): return sparsify(tiny(), method="magnitude")
    def factors(model):
        prune(model, decompose(model), rank=6)
        return model

    GRID, SHIFT = dict(group=16), dict(bits=2, block=(1, 16))
    FORMS = {"dense": tiny,
             "Conv1D": lambda: tiny(conv=True),
             "factors": lambda: factors(tiny()),
             "sparse": sparse,
             "rounding": lambda: rounding(tiny(), **GRID),
             "rounding, sparse": lambda: rounding(sparse(), **GRID),
             "integers": lambda: quantize(tiny(), method="rtn", **GRID),
             "integers, sparse": lambda: quantize(sparse(), method="rtn", **GRID),
             "shift-add": lambda: shift_add(tiny(), **SHIFT),
             "rotated": lambda: rotated(tiny()),
             "rotated integers": lambda: quantize(tiny(), method="rtn", rotate=0, **GRID),
             "rotated shift-add": lambda: shift_add(tiny(), rotate=0, **SHIFT)}

    # %% ../nbs/54_composition.ipynb #0e1507dc
    def some(model): return list(select(model))[::3]

    def elastic(model):
        return LoRA(target_modules=some(model), r=4, elastic={some(model)[0]: [4, 2]}, learning_rate=1e-2)

    def vectors(model):
        return VBLoRA(target_modules=some(model), r=2, vector_length=16, num_vectors=16, init_vector_bank_bound=.1,
                      save_only_topk_weights=False, learning_rate_vector_bank=1e-2, learning_rate_logits=1e-1)

    ADAPTERS = {"LoRA": lambda model: LoRA(target_modules=some(model), r=4, learning_rate=1e-2),
                "elastic": elastic,
                "VB-LoRA": vectors,
                **{f"SVFT {p}": lambda model, p=p: SVFT(target_modules=some(model), pattern=p) for p in PATTERNS},
                "SparsePEFT": lambda model: SparsePEFT(target_modules=some(model), r=4, learning_rate=1e-2)}
    RANKS = {"VB-LoRA": 2, "LoRA of 12": 12}  # Where it is not 4
    COLUMNS = list(ADAPTERS)
    ADAPTERS["LoRA of 12"] = lambda model: LoRA(target_modules=["q_proj", "o_proj"], r=12, learning_rate=1e-2)

    def chart(cells, rows, columns, width=13):
        "Print a table of words."
        print(f"{'':18}" + "".join(f"{c:{width}}" for c in columns))
        for r in rows: print(f"{r:18}" + "".join(f"{cells[r, c]:{width}}" for c in columns).rstrip())

    # %% ../nbs/54_composition.ipynb #0fac7063
    IDS = torch.arange(48).view(4, 12) % 23

    def logits(model):
        with torch.no_grad(): return model(input_ids=IDS).logits

    def train(model, steps=3):
        "Train with the groups of the adapters, and list the losses."
        optimizer, losses = torch.optim.AdamW(parameter_groups(model)), []
        def loss(): return model(input_ids=IDS, labels=IDS).loss
        model.train()
        for step in range(steps):
            if getattr(next(iter(adapters(model).values())), "by_group", None):
                losses.append(elastic_backward(model, loss, step))
            else:
                losses.append((value := loss()).item())
                value.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.eval()
        return losses

    def state(model):
        "What an error must not change: the layers, what trains, and the outputs."
        return [id(m) for m in model.modules()], [p.requires_grad for p in model.parameters()], logits(model)

    def unchanged(model, was):
        *now, y = state(model)
        assert now == list(was[:2]) and torch.equal(y, was[2])

    def weights(model): return {n: effective_weight(layer).clone() for n, layer in select(model).items()}

    # %% ../nbs/54_composition.ipynb #5bcc16bf
    def reachable(root):
        "The bytes of all tensors that can be reached from an object, each memory once."
        storages, seen, todo = {}, {}, [root]
        while todo:
            if id(x := todo.pop()) in seen: continue
            seen[id(x)] = x
            if isinstance(x, Tensor): storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            elif isinstance(x, dict): todo += x.values()
            elif isinstance(x, list | tuple | set): todo += x
            elif not isinstance(x, type):
                todo += vars(x).values() if hasattr(x, "__dict__") else []
                todo += [c.cell_contents for c in getattr(x, "__closure__", None) or ()]
        return sum(storages.values())

    def holds(t, Ws):
        "Whether a tensor is one of some weights, given as arrays, or the transpose of one."
        return t.is_floating_point() and t.ndim == 2 and any(
            s.shape == W.shape and bool((s.detach().double().numpy() == W).all()) for s in (t, t.T) for W in Ws)

    def alive(Ws): return sum(issubclass(type(x), Tensor) and holds(x, Ws) for x in gc.get_objects())

    OUT, IN = 64, 96
    def packed(form):
        "Two layers of integers or of shift-add codes."
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(IN, OUT), nn.Tanh(), nn.Linear(OUT, IN))
        if "integers" in form: return quantize(model, method="rtn", group=32, rotate=0 if "rotated" in form else None)
        return shift_add(model, bits=2, block=(1, 32), rotate=0 if "rotated" in form else None)

    PACKED = "integers", "shift-add", "rotated integers", "rotated shift-add"
    def arrays(model): return [effective_weight(layer).double().numpy().copy() for layer in select(model).values()]

    X = torch.linspace(-1, 1, 5*IN).view(5, IN)

    # %% ../nbs/54_composition.ipynb #d3d85f6d
    LIGHT = {"LoRA": (LoRA(r=4), 4*4*(OUT + IN)*2),
             "VB-LoRA": (VBLoRA(r=2, vector_length=32, num_vectors=16), 4*(16*32 + 2*2*(OUT + IN)//32*16)),
             "SVFT": (SVFT(), 2*4*(OUT*OUT + OUT + OUT)),
             "SVFT, rank 8": (SVFT(rank=8), 2*4*(8*OUT + 8 + 8))}

    def kept_packed(form, name):
        "Count before, during and after training."
        gc.freeze()  # What is older than the model need not be looked through
        model, (config, bytes_) = packed(form), LIGHT[name]
        Ws, bare = arrays(model), reachable(packed(form))
        assert reachable(model) == bare < 4*2*OUT*IN/4 and alive(Ws) == 0
        attach(model, config)
        assert reachable(model) == bare + bytes_ and alive(Ws) == 0, (reachable(model) - bare, bytes_)
        optimizer, saved = torch.optim.AdamW(parameter_groups(model)), []
        def pack(t):
            saved.append(holds(t, Ws))
            return t
        losses = []
        for _ in range(3):
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t): loss = (model(X) - X).square().mean()
            assert saved and not any(saved) and alive(Ws) == 0
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            del loss
        model.eval()
        assert losses[-1] < losses[0] and alive(Ws) == 0 and reachable(model) == bare + bytes_
        gc.unfreeze()
        print(f"{form:18} {bare:6,}   {name:13} {bytes_:6,}")

    # %% ../nbs/54_composition.ipynb #3986f580
    model = packed("integers")
    model[0].kept = effective_weight(model[0])
    assert alive(arrays(model)) == 1 and reachable(model) == reachable(packed("integers")) + 4*OUT*IN


def test_packed_stays_packed_3():
    # %% ../nbs/54_composition.ipynb #02bb5626
    def tiny(conv=False):
        "A random model of one block: Llama's, or GPT-2's with its layers of another orientation."
        torch.manual_seed(0)
        ids = dict(vocab_size=64, bos_token_id=0, eos_token_id=0, pad_token_id=1)
        off = dict(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
        if conv: return tf.GPT2LMHeadModel(tf.GPT2Config(**ids, **off, n_embd=32, n_inner=48, n_layer=1, n_head=4)).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**ids, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                                                  num_attention_heads=4, num_key_value_heads=2)).eval()

    def rotated(model):
        "Put every layer behind a rotation and leave it dense."
        for name, layer in select(model).items(): replace(model, name, RotatedLinear(*turned_layer(name, layer, 0)))
        return model

    def sparse(): return sparsify(tiny(), method="magnitude")
    def factors(model):
        prune(model, decompose(model), rank=6)
        return model

    GRID, SHIFT = dict(group=16), dict(bits=2, block=(1, 16))
    FORMS = {"dense": tiny,
             "Conv1D": lambda: tiny(conv=True),
             "factors": lambda: factors(tiny()),
             "sparse": sparse,
             "rounding": lambda: rounding(tiny(), **GRID),
             "rounding, sparse": lambda: rounding(sparse(), **GRID),
             "integers": lambda: quantize(tiny(), method="rtn", **GRID),
             "integers, sparse": lambda: quantize(sparse(), method="rtn", **GRID),
             "shift-add": lambda: shift_add(tiny(), **SHIFT),
             "rotated": lambda: rotated(tiny()),
             "rotated integers": lambda: quantize(tiny(), method="rtn", rotate=0, **GRID),
             "rotated shift-add": lambda: shift_add(tiny(), rotate=0, **SHIFT)}

    # %% ../nbs/54_composition.ipynb #0e1507dc
    def some(model): return list(select(model))[::3]

    def elastic(model):
        return LoRA(target_modules=some(model), r=4, elastic={some(model)[0]: [4, 2]}, learning_rate=1e-2)

    def vectors(model):
        return VBLoRA(target_modules=some(model), r=2, vector_length=16, num_vectors=16, init_vector_bank_bound=.1,
                      save_only_topk_weights=False, learning_rate_vector_bank=1e-2, learning_rate_logits=1e-1)

    ADAPTERS = {"LoRA": lambda model: LoRA(target_modules=some(model), r=4, learning_rate=1e-2),
                "elastic": elastic,
                "VB-LoRA": vectors,
                **{f"SVFT {p}": lambda model, p=p: SVFT(target_modules=some(model), pattern=p) for p in PATTERNS},
                "SparsePEFT": lambda model: SparsePEFT(target_modules=some(model), r=4, learning_rate=1e-2)}
    RANKS = {"VB-LoRA": 2, "LoRA of 12": 12}  # Where it is not 4
    COLUMNS = list(ADAPTERS)
    ADAPTERS["LoRA of 12"] = lambda model: LoRA(target_modules=["q_proj", "o_proj"], r=12, learning_rate=1e-2)

    def chart(cells, rows, columns, width=13):
        "Print a table of words."
        print(f"{'':18}" + "".join(f"{c:{width}}" for c in columns))
        for r in rows: print(f"{r:18}" + "".join(f"{cells[r, c]:{width}}" for c in columns).rstrip())

    # %% ../nbs/54_composition.ipynb #0fac7063
    IDS = torch.arange(48).view(4, 12) % 23

    def logits(model):
        with torch.no_grad(): return model(input_ids=IDS).logits

    def train(model, steps=3):
        "Train with the groups of the adapters, and list the losses."
        optimizer, losses = torch.optim.AdamW(parameter_groups(model)), []
        def loss(): return model(input_ids=IDS, labels=IDS).loss
        model.train()
        for step in range(steps):
            if getattr(next(iter(adapters(model).values())), "by_group", None):
                losses.append(elastic_backward(model, loss, step))
            else:
                losses.append((value := loss()).item())
                value.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.eval()
        return losses

    def state(model):
        "What an error must not change: the layers, what trains, and the outputs."
        return [id(m) for m in model.modules()], [p.requires_grad for p in model.parameters()], logits(model)

    def unchanged(model, was):
        *now, y = state(model)
        assert now == list(was[:2]) and torch.equal(y, was[2])

    def weights(model): return {n: effective_weight(layer).clone() for n, layer in select(model).items()}

    # %% ../nbs/54_composition.ipynb #5bcc16bf
    def reachable(root):
        "The bytes of all tensors that can be reached from an object, each memory once."
        storages, seen, todo = {}, {}, [root]
        while todo:
            if id(x := todo.pop()) in seen: continue
            seen[id(x)] = x
            if isinstance(x, Tensor): storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            elif isinstance(x, dict): todo += x.values()
            elif isinstance(x, list | tuple | set): todo += x
            elif not isinstance(x, type):
                todo += vars(x).values() if hasattr(x, "__dict__") else []
                todo += [c.cell_contents for c in getattr(x, "__closure__", None) or ()]
        return sum(storages.values())

    def holds(t, Ws):
        "Whether a tensor is one of some weights, given as arrays, or the transpose of one."
        return t.is_floating_point() and t.ndim == 2 and any(
            s.shape == W.shape and bool((s.detach().double().numpy() == W).all()) for s in (t, t.T) for W in Ws)

    def alive(Ws): return sum(issubclass(type(x), Tensor) and holds(x, Ws) for x in gc.get_objects())

    OUT, IN = 64, 96
    def packed(form):
        "Two layers of integers or of shift-add codes."
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(IN, OUT), nn.Tanh(), nn.Linear(OUT, IN))
        if "integers" in form: return quantize(model, method="rtn", group=32, rotate=0 if "rotated" in form else None)
        return shift_add(model, bits=2, block=(1, 32), rotate=0 if "rotated" in form else None)

    PACKED = "integers", "shift-add", "rotated integers", "rotated shift-add"
    def arrays(model): return [effective_weight(layer).double().numpy().copy() for layer in select(model).values()]

    X = torch.linspace(-1, 1, 5*IN).view(5, IN)

    # %% ../nbs/54_composition.ipynb #d3d85f6d
    LIGHT = {"LoRA": (LoRA(r=4), 4*4*(OUT + IN)*2),
             "VB-LoRA": (VBLoRA(r=2, vector_length=32, num_vectors=16), 4*(16*32 + 2*2*(OUT + IN)//32*16)),
             "SVFT": (SVFT(), 2*4*(OUT*OUT + OUT + OUT)),
             "SVFT, rank 8": (SVFT(rank=8), 2*4*(8*OUT + 8 + 8))}

    def kept_packed(form, name):
        "Count before, during and after training."
        gc.freeze()  # What is older than the model need not be looked through
        model, (config, bytes_) = packed(form), LIGHT[name]
        Ws, bare = arrays(model), reachable(packed(form))
        assert reachable(model) == bare < 4*2*OUT*IN/4 and alive(Ws) == 0
        attach(model, config)
        assert reachable(model) == bare + bytes_ and alive(Ws) == 0, (reachable(model) - bare, bytes_)
        optimizer, saved = torch.optim.AdamW(parameter_groups(model)), []
        def pack(t):
            saved.append(holds(t, Ws))
            return t
        losses = []
        for _ in range(3):
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t): loss = (model(X) - X).square().mean()
            assert saved and not any(saved) and alive(Ws) == 0
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            del loss
        model.eval()
        assert losses[-1] < losses[0] and alive(Ws) == 0 and reachable(model) == bare + bytes_
        gc.unfreeze()
        print(f"{form:18} {bare:6,}   {name:13} {bytes_:6,}")

    # %% ../nbs/54_composition.ipynb #d7b1efd3
    for form, name, asks in product(PACKED, LIGHT, (True, False)):
        model = packed(form)
        full = densify(copy.deepcopy(model))
        vars(full).pop("unmerged")
        for m in model, full:
            torch.manual_seed(1)
            attach(m, LIGHT[name][0])
            for p in m.pathlm_adapters.parameters(): nn.init.normal_(p, std=.1)
            (m(X.clone().requires_grad_(asks)) - X).square().mean().backward()
        mine, want = ({n: p.grad for n, p in m.pathlm_adapters.named_parameters()} for m in (model, full))
        for n, g in mine.items():
            assert g.abs().max() > 0
            assert (g - want[n]).abs().max() < (1e-5 if asks or "integers" in form else .03)*g.abs().max()
        if name == "SVFT, rank 8": assert all(isinstance(part, OneSided) for part in adapters(model)["default"].parts)


def test_in_what_order():
    # %% ../nbs/54_composition.ipynb #02bb5626
    def tiny(conv=False):
        "A random model of one block: Llama's, or GPT-2's with its layers of another orientation."
        torch.manual_seed(0)
        ids = dict(vocab_size=64, bos_token_id=0, eos_token_id=0, pad_token_id=1)
        off = dict(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
        if conv: return tf.GPT2LMHeadModel(tf.GPT2Config(**ids, **off, n_embd=32, n_inner=48, n_layer=1, n_head=4)).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**ids, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                                                  num_attention_heads=4, num_key_value_heads=2)).eval()

    def rotated(model):
        "Put every layer behind a rotation and leave it dense."
        for name, layer in select(model).items(): replace(model, name, RotatedLinear(*turned_layer(name, layer, 0)))
        return model

    def sparse(): return sparsify(tiny(), method="magnitude")
    def factors(model):
        prune(model, decompose(model), rank=6)
        return model

    GRID, SHIFT = dict(group=16), dict(bits=2, block=(1, 16))
    FORMS = {"dense": tiny,
             "Conv1D": lambda: tiny(conv=True),
             "factors": lambda: factors(tiny()),
             "sparse": sparse,
             "rounding": lambda: rounding(tiny(), **GRID),
             "rounding, sparse": lambda: rounding(sparse(), **GRID),
             "integers": lambda: quantize(tiny(), method="rtn", **GRID),
             "integers, sparse": lambda: quantize(sparse(), method="rtn", **GRID),
             "shift-add": lambda: shift_add(tiny(), **SHIFT),
             "rotated": lambda: rotated(tiny()),
             "rotated integers": lambda: quantize(tiny(), method="rtn", rotate=0, **GRID),
             "rotated shift-add": lambda: shift_add(tiny(), rotate=0, **SHIFT)}

    # %% ../nbs/54_composition.ipynb #0e1507dc
    def some(model): return list(select(model))[::3]

    def elastic(model):
        return LoRA(target_modules=some(model), r=4, elastic={some(model)[0]: [4, 2]}, learning_rate=1e-2)

    def vectors(model):
        return VBLoRA(target_modules=some(model), r=2, vector_length=16, num_vectors=16, init_vector_bank_bound=.1,
                      save_only_topk_weights=False, learning_rate_vector_bank=1e-2, learning_rate_logits=1e-1)

    ADAPTERS = {"LoRA": lambda model: LoRA(target_modules=some(model), r=4, learning_rate=1e-2),
                "elastic": elastic,
                "VB-LoRA": vectors,
                **{f"SVFT {p}": lambda model, p=p: SVFT(target_modules=some(model), pattern=p) for p in PATTERNS},
                "SparsePEFT": lambda model: SparsePEFT(target_modules=some(model), r=4, learning_rate=1e-2)}
    RANKS = {"VB-LoRA": 2, "LoRA of 12": 12}  # Where it is not 4
    COLUMNS = list(ADAPTERS)
    ADAPTERS["LoRA of 12"] = lambda model: LoRA(target_modules=["q_proj", "o_proj"], r=12, learning_rate=1e-2)

    def chart(cells, rows, columns, width=13):
        "Print a table of words."
        print(f"{'':18}" + "".join(f"{c:{width}}" for c in columns))
        for r in rows: print(f"{r:18}" + "".join(f"{cells[r, c]:{width}}" for c in columns).rstrip())

    # %% ../nbs/54_composition.ipynb #0fac7063
    IDS = torch.arange(48).view(4, 12) % 23

    def logits(model):
        with torch.no_grad(): return model(input_ids=IDS).logits

    def train(model, steps=3):
        "Train with the groups of the adapters, and list the losses."
        optimizer, losses = torch.optim.AdamW(parameter_groups(model)), []
        def loss(): return model(input_ids=IDS, labels=IDS).loss
        model.train()
        for step in range(steps):
            if getattr(next(iter(adapters(model).values())), "by_group", None):
                losses.append(elastic_backward(model, loss, step))
            else:
                losses.append((value := loss()).item())
                value.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.eval()
        return losses

    def state(model):
        "What an error must not change: the layers, what trains, and the outputs."
        return [id(m) for m in model.modules()], [p.requires_grad for p in model.parameters()], logits(model)

    def unchanged(model, was):
        *now, y = state(model)
        assert now == list(was[:2]) and torch.equal(y, was[2])

    def weights(model): return {n: effective_weight(layer).clone() for n, layer in select(model).items()}

    # %% ../nbs/54_composition.ipynb #544bf456
    def cut(model):
        prune(model, decompose(model), rank=4)
        return model

    VERBS = {"sparsify": lambda model: sparsify(model, method="magnitude"),
             "prune": cut,
             "rounding": lambda model: rounding(model, **GRID),
             "quantize": lambda model: quantize(model, method="rtn", **GRID),
             "rotate, quantize": lambda model: quantize(model, method="rtn", rotate=0, **GRID),
             "shift_add": lambda model: shift_add(model, **SHIFT)}

    def keeps_zeros(verb):
        model = sparse()
        zero = {n: W == 0 for n, W in weights(model).items()}
        return all(not W[zero[n]].any() for n, W in weights(VERBS[verb](bake(densify(model)))).items())

    def allowed(form, verb):
        "What the two rules say."
        if form == "factors": return verb == "prune"
        if "rounding" in form: return False  # The grid is promised
        return form in ("dense", "Conv1D") or form == "sparse" and keeps_zeros(verb)

    def applied(form, verb):
        "Compress twice; say which form that gave."
        model = FORMS[form]()
        was, zero = state(model), {n: W == 0 for n, W in weights(model).items()}
        try: VERBS[verb](model)
        except SettingError as e:
            assert "model.layers.0.self_attn.q_proj" in str(e)
            unchanged(model, was)
            return "refused"
        if form == "sparse": assert all(not W[zero[n]].any() for n, W in weights(model).items())
        return {form_of(layer) for layer in select(model).values()}.pop()

    # %% ../nbs/54_composition.ipynb #a68fe467
    orders = {pair: applied(*pair) for pair in product(FORMS, VERBS)}
    chart({pair: form.replace("RotatedLinear", "Rotated").replace("Linear", "") for pair, form in orders.items()}, FORMS,
          VERBS, 18)
    assert {pair for pair, form in orders.items() if form != "refused"} == {pair for pair in orders if allowed(*pair)}


def test_in_what_order_2():
    # %% ../nbs/54_composition.ipynb #02bb5626
    def tiny(conv=False):
        "A random model of one block: Llama's, or GPT-2's with its layers of another orientation."
        torch.manual_seed(0)
        ids = dict(vocab_size=64, bos_token_id=0, eos_token_id=0, pad_token_id=1)
        off = dict(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
        if conv: return tf.GPT2LMHeadModel(tf.GPT2Config(**ids, **off, n_embd=32, n_inner=48, n_layer=1, n_head=4)).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**ids, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                                                  num_attention_heads=4, num_key_value_heads=2)).eval()

    def rotated(model):
        "Put every layer behind a rotation and leave it dense."
        for name, layer in select(model).items(): replace(model, name, RotatedLinear(*turned_layer(name, layer, 0)))
        return model

    def sparse(): return sparsify(tiny(), method="magnitude")
    def factors(model):
        prune(model, decompose(model), rank=6)
        return model

    GRID, SHIFT = dict(group=16), dict(bits=2, block=(1, 16))
    FORMS = {"dense": tiny,
             "Conv1D": lambda: tiny(conv=True),
             "factors": lambda: factors(tiny()),
             "sparse": sparse,
             "rounding": lambda: rounding(tiny(), **GRID),
             "rounding, sparse": lambda: rounding(sparse(), **GRID),
             "integers": lambda: quantize(tiny(), method="rtn", **GRID),
             "integers, sparse": lambda: quantize(sparse(), method="rtn", **GRID),
             "shift-add": lambda: shift_add(tiny(), **SHIFT),
             "rotated": lambda: rotated(tiny()),
             "rotated integers": lambda: quantize(tiny(), method="rtn", rotate=0, **GRID),
             "rotated shift-add": lambda: shift_add(tiny(), rotate=0, **SHIFT)}

    # %% ../nbs/54_composition.ipynb #0e1507dc
    def some(model): return list(select(model))[::3]

    def elastic(model):
        return LoRA(target_modules=some(model), r=4, elastic={some(model)[0]: [4, 2]}, learning_rate=1e-2)

    def vectors(model):
        return VBLoRA(target_modules=some(model), r=2, vector_length=16, num_vectors=16, init_vector_bank_bound=.1,
                      save_only_topk_weights=False, learning_rate_vector_bank=1e-2, learning_rate_logits=1e-1)

    ADAPTERS = {"LoRA": lambda model: LoRA(target_modules=some(model), r=4, learning_rate=1e-2),
                "elastic": elastic,
                "VB-LoRA": vectors,
                **{f"SVFT {p}": lambda model, p=p: SVFT(target_modules=some(model), pattern=p) for p in PATTERNS},
                "SparsePEFT": lambda model: SparsePEFT(target_modules=some(model), r=4, learning_rate=1e-2)}
    RANKS = {"VB-LoRA": 2, "LoRA of 12": 12}  # Where it is not 4
    COLUMNS = list(ADAPTERS)
    ADAPTERS["LoRA of 12"] = lambda model: LoRA(target_modules=["q_proj", "o_proj"], r=12, learning_rate=1e-2)

    def chart(cells, rows, columns, width=13):
        "Print a table of words."
        print(f"{'':18}" + "".join(f"{c:{width}}" for c in columns))
        for r in rows: print(f"{r:18}" + "".join(f"{cells[r, c]:{width}}" for c in columns).rstrip())

    # %% ../nbs/54_composition.ipynb #0fac7063
    IDS = torch.arange(48).view(4, 12) % 23

    def logits(model):
        with torch.no_grad(): return model(input_ids=IDS).logits

    def train(model, steps=3):
        "Train with the groups of the adapters, and list the losses."
        optimizer, losses = torch.optim.AdamW(parameter_groups(model)), []
        def loss(): return model(input_ids=IDS, labels=IDS).loss
        model.train()
        for step in range(steps):
            if getattr(next(iter(adapters(model).values())), "by_group", None):
                losses.append(elastic_backward(model, loss, step))
            else:
                losses.append((value := loss()).item())
                value.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.eval()
        return losses

    def state(model):
        "What an error must not change: the layers, what trains, and the outputs."
        return [id(m) for m in model.modules()], [p.requires_grad for p in model.parameters()], logits(model)

    def unchanged(model, was):
        *now, y = state(model)
        assert now == list(was[:2]) and torch.equal(y, was[2])

    def weights(model): return {n: effective_weight(layer).clone() for n, layer in select(model).items()}

    # %% ../nbs/54_composition.ipynb #544bf456
    def cut(model):
        prune(model, decompose(model), rank=4)
        return model

    VERBS = {"sparsify": lambda model: sparsify(model, method="magnitude"),
             "prune": cut,
             "rounding": lambda model: rounding(model, **GRID),
             "quantize": lambda model: quantize(model, method="rtn", **GRID),
             "rotate, quantize": lambda model: quantize(model, method="rtn", rotate=0, **GRID),
             "shift_add": lambda model: shift_add(model, **SHIFT)}

    def keeps_zeros(verb):
        model = sparse()
        zero = {n: W == 0 for n, W in weights(model).items()}
        return all(not W[zero[n]].any() for n, W in weights(VERBS[verb](bake(densify(model)))).items())

    def allowed(form, verb):
        "What the two rules say."
        if form == "factors": return verb == "prune"
        if "rounding" in form: return False  # The grid is promised
        return form in ("dense", "Conv1D") or form == "sparse" and keeps_zeros(verb)

    def applied(form, verb):
        "Compress twice; say which form that gave."
        model = FORMS[form]()
        was, zero = state(model), {n: W == 0 for n, W in weights(model).items()}
        try: VERBS[verb](model)
        except SettingError as e:
            assert "model.layers.0.self_attn.q_proj" in str(e)
            unchanged(model, was)
            return "refused"
        if form == "sparse": assert all(not W[zero[n]].any() for n, W in weights(model).items())
        return {form_of(layer) for layer in select(model).values()}.pop()

    # %% ../nbs/54_composition.ipynb #59a3b45c
    model, said = factors(tiny()), set()
    attach(model, LoRA(r=2))
    was = state(model)
    for verb in VERBS:
        try: VERBS[verb](model)
        except SettingError as e: said.add(str(e).replace(" is sparse, and", " …"))
        unchanged(model, was)
    for line in said: print(line)
    assert len(said) == 1
    detach(model)
    quantize(bake(densify(model)), method="rtn", **GRID)
    assert min(int(torch.linalg.matrix_rank(W)) for W in weights(model).values()) > 6


def test_in_what_order_3():
    # %% ../nbs/54_composition.ipynb #02bb5626
    def tiny(conv=False):
        "A random model of one block: Llama's, or GPT-2's with its layers of another orientation."
        torch.manual_seed(0)
        ids = dict(vocab_size=64, bos_token_id=0, eos_token_id=0, pad_token_id=1)
        off = dict(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
        if conv: return tf.GPT2LMHeadModel(tf.GPT2Config(**ids, **off, n_embd=32, n_inner=48, n_layer=1, n_head=4)).eval()
        return tf.LlamaForCausalLM(tf.LlamaConfig(**ids, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                                                  num_attention_heads=4, num_key_value_heads=2)).eval()

    def rotated(model):
        "Put every layer behind a rotation and leave it dense."
        for name, layer in select(model).items(): replace(model, name, RotatedLinear(*turned_layer(name, layer, 0)))
        return model

    def sparse(): return sparsify(tiny(), method="magnitude")
    def factors(model):
        prune(model, decompose(model), rank=6)
        return model

    GRID, SHIFT = dict(group=16), dict(bits=2, block=(1, 16))
    FORMS = {"dense": tiny,
             "Conv1D": lambda: tiny(conv=True),
             "factors": lambda: factors(tiny()),
             "sparse": sparse,
             "rounding": lambda: rounding(tiny(), **GRID),
             "rounding, sparse": lambda: rounding(sparse(), **GRID),
             "integers": lambda: quantize(tiny(), method="rtn", **GRID),
             "integers, sparse": lambda: quantize(sparse(), method="rtn", **GRID),
             "shift-add": lambda: shift_add(tiny(), **SHIFT),
             "rotated": lambda: rotated(tiny()),
             "rotated integers": lambda: quantize(tiny(), method="rtn", rotate=0, **GRID),
             "rotated shift-add": lambda: shift_add(tiny(), rotate=0, **SHIFT)}

    # %% ../nbs/54_composition.ipynb #0e1507dc
    def some(model): return list(select(model))[::3]

    def elastic(model):
        return LoRA(target_modules=some(model), r=4, elastic={some(model)[0]: [4, 2]}, learning_rate=1e-2)

    def vectors(model):
        return VBLoRA(target_modules=some(model), r=2, vector_length=16, num_vectors=16, init_vector_bank_bound=.1,
                      save_only_topk_weights=False, learning_rate_vector_bank=1e-2, learning_rate_logits=1e-1)

    ADAPTERS = {"LoRA": lambda model: LoRA(target_modules=some(model), r=4, learning_rate=1e-2),
                "elastic": elastic,
                "VB-LoRA": vectors,
                **{f"SVFT {p}": lambda model, p=p: SVFT(target_modules=some(model), pattern=p) for p in PATTERNS},
                "SparsePEFT": lambda model: SparsePEFT(target_modules=some(model), r=4, learning_rate=1e-2)}
    RANKS = {"VB-LoRA": 2, "LoRA of 12": 12}  # Where it is not 4
    COLUMNS = list(ADAPTERS)
    ADAPTERS["LoRA of 12"] = lambda model: LoRA(target_modules=["q_proj", "o_proj"], r=12, learning_rate=1e-2)

    def chart(cells, rows, columns, width=13):
        "Print a table of words."
        print(f"{'':18}" + "".join(f"{c:{width}}" for c in columns))
        for r in rows: print(f"{r:18}" + "".join(f"{cells[r, c]:{width}}" for c in columns).rstrip())

    # %% ../nbs/54_composition.ipynb #0fac7063
    IDS = torch.arange(48).view(4, 12) % 23

    def logits(model):
        with torch.no_grad(): return model(input_ids=IDS).logits

    def train(model, steps=3):
        "Train with the groups of the adapters, and list the losses."
        optimizer, losses = torch.optim.AdamW(parameter_groups(model)), []
        def loss(): return model(input_ids=IDS, labels=IDS).loss
        model.train()
        for step in range(steps):
            if getattr(next(iter(adapters(model).values())), "by_group", None):
                losses.append(elastic_backward(model, loss, step))
            else:
                losses.append((value := loss()).item())
                value.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.eval()
        return losses

    def state(model):
        "What an error must not change: the layers, what trains, and the outputs."
        return [id(m) for m in model.modules()], [p.requires_grad for p in model.parameters()], logits(model)

    def unchanged(model, was):
        *now, y = state(model)
        assert now == list(was[:2]) and torch.equal(y, was[2])

    def weights(model): return {n: effective_weight(layer).clone() for n, layer in select(model).items()}

    # %% ../nbs/54_composition.ipynb #544bf456
    def cut(model):
        prune(model, decompose(model), rank=4)
        return model

    VERBS = {"sparsify": lambda model: sparsify(model, method="magnitude"),
             "prune": cut,
             "rounding": lambda model: rounding(model, **GRID),
             "quantize": lambda model: quantize(model, method="rtn", **GRID),
             "rotate, quantize": lambda model: quantize(model, method="rtn", rotate=0, **GRID),
             "shift_add": lambda model: shift_add(model, **SHIFT)}

    def keeps_zeros(verb):
        model = sparse()
        zero = {n: W == 0 for n, W in weights(model).items()}
        return all(not W[zero[n]].any() for n, W in weights(VERBS[verb](bake(densify(model)))).items())

    def allowed(form, verb):
        "What the two rules say."
        if form == "factors": return verb == "prune"
        if "rounding" in form: return False  # The grid is promised
        return form in ("dense", "Conv1D") or form == "sparse" and keeps_zeros(verb)

    def applied(form, verb):
        "Compress twice; say which form that gave."
        model = FORMS[form]()
        was, zero = state(model), {n: W == 0 for n, W in weights(model).items()}
        try: VERBS[verb](model)
        except SettingError as e:
            assert "model.layers.0.self_attn.q_proj" in str(e)
            unchanged(model, was)
            return "refused"
        if form == "sparse": assert all(not W[zero[n]].any() for n, W in weights(model).items())
        return {form_of(layer) for layer in select(model).values()}.pop()

    # %% ../nbs/54_composition.ipynb #6dbff6b0
    model = tiny()
    prune(model, decompose(model, ["q_proj", "o_proj"]), rank=6)
    quantize(model, method="rtn", target=[n for n, m in select(model).items() if form_of(m) == "Linear"], **GRID)
    assert sorted(form_of(m) for m in select(model).values()) == ["FactoredLinear"]*2 + ["GridLinear"]*5
    attach(model, LoRA(r=2))
    assert (losses := train(model))[-1] < losses[0]
    with tempfile.TemporaryDirectory() as folder:
        copy_ = load(save(detach(copy.deepcopy(model)), None, f"{folder}/base"))[0]
        load_adapter(copy_, save_adapter(model, f"{folder}/adapter"))
    assert torch.equal(logits(copy_), logits(model))
