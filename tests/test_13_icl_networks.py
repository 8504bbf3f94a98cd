from pathlm.incontext import *
import math
from functools import partial
import torch
import torch.nn.functional as F
from pathlm.base import SettingError
from pathlm.base import TextError
from pathlm.icl import regression_prompts
import tempfile
from pathlm.base import digest
from pathlm.evaluate import item_scores
from pathlm.evaluate import item_summary


def test_regression():
    # %% ../nbs/13_icl_networks.ipynb #04e29330
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/13_icl_networks.ipynb #d29f2a9b
    torch.manual_seed(0)
    net = Regressor().eval()
    x, y, _ = regression_prompts(3, 12, 4, seed=1)
    with torch.no_grad(): own = net(x, y)
    for i in (1, 7, 12):
        x_, y_ = x.clone(), y.clone()
        x_[:, i + 1:], y_[:, i:] = 0, 0
        with torch.no_grad(): torch.testing.assert_close(net(x_, y_)[:, :i + 1], own[:, :i + 1], rtol=1e-5, atol=1e-6)
        y_[:, i - 1] += 1
        with torch.no_grad(): assert (net(x_, y_)[:, i] - own[:, i]).abs().min() > 1e-5
    try: net(torch.zeros(1, 18, 4), torch.zeros(1, 18))
    except TextError as e: print(e)
    else: raise AssertionError


def test_labels():
    # %% ../nbs/13_icl_networks.ipynb #04e29330
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/13_icl_networks.ipynb #e3c6e300
    for row in label_prompts(3)[0]: print(readable(row))

    # %% ../nbs/13_icl_networks.ipynb #3bc99aca
    tokens, right = label_prompts(4000, seed=1)
    assert abs(right.float().mean(0) - .5).max() < .03
    assert torch.equal(tokens[:, 1::2] - LABELS[0], right)
    topic = tokens[:, ::2]//WORDS
    for t in range(12): assert abs(right[topic == t].float().mean() - .5) < .04
    flips, right = label_prompts(4000, seed=1, flipped=.2)
    wrong = flips[:, 1::2] - LABELS[0] != right
    assert abs(wrong[:, :SHOTS].float().mean() - .2) < .01 and not wrong[:, SHOTS].any()
    assert len(pairs()) + len(pairs(True)) == 66 and not set(pairs()) & set(pairs(True))
    pure = label_prompts(500, seed=2, clear=1., new=True)[0][:, ::2]//WORDS
    both = [tuple(sorted(p.unique().tolist(), reverse=True)) for p in pure]
    assert sum(len(p) == 2 for p in both) > 490 and all(p in pairs(True) for p in both if len(p) == 2)
    for wrong in {"shots": -1}, {"flipped": 1.5}, {"clear": -.1}:
        try: label_prompts(1, **wrong)
        except SettingError as e: print(e)
        else: raise AssertionError


def test_labels_2():
    # %% ../nbs/13_icl_networks.ipynb #04e29330
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/13_icl_networks.ipynb #e3c6e300
    for row in label_prompts(3)[0]: print(readable(row))

    # %% ../nbs/13_icl_networks.ipynb #8a92f58c
    for settings_ in {}, {"flipped": .2}, {"shots": 2}, {"clear": .6}, {"new": True}:
        tokens, right = label_prompts(8000, seed=3, **settings_)
        p = bayes_labels(tokens, **{k: v for k, v in settings_.items() if k != "shots"})
        for low in (0, .2, .4, .6, .8):
            near = (p >= low) & (p < low + .2)
            gap = p[near].mean() - right[near, -1].double().mean()
            assert abs(gap) < 4.5*(p[near]*(1 - p[near])).sum().sqrt()/near.sum(), (settings_, low)


def test_training():
    # %% ../nbs/13_icl_networks.ipynb #04e29330
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/13_icl_networks.ipynb #b9fc4602
    short = NETWORKS["regression"]._replace(new=partial(Regressor, width=16, depth=2), steps=6)
    whole, log = learn(short, seed=1)
    class Stopped(Exception): pass
    def until(net, seed):
        if seed % 2**20 == 4: raise Stopped
        return regression_loss(net, seed)

    with tempfile.TemporaryDirectory() as d:
        try: learn(short._replace(loss=until), 1, d, every=2)
        except Stopped: pass
        again, log_ = learn(short, 1, d, every=2)
    assert digest(*whole.parameters()) == digest(*again.parameters()) and log["train"] == log_["train"]
    assert digest(*learn(short, seed=2)[0].parameters()) != digest(*whole.parameters())


def test_prompts_to_score_on():
    # %% ../nbs/13_icl_networks.ipynb #04e29330
    torch.set_num_threads(1)  # Small matrices gain nothing from two

    # %% ../nbs/13_icl_networks.ipynb #84a4cf90
    torch.manual_seed(0)
    net, prompts = labeller(16, 2).eval(), labellings(700, seed=5)
    batch = prompts.batches[1]
    with torch.no_grad(): logits = net(batch["tokens"][:, :-1]).logits[:, -1, LABELS]
    loss = F.cross_entropy(logits, batch["right"], reduction="none").double()
    score = prompts.score(net, batch)
    torch.testing.assert_close(score[:, 0], loss, rtol=1e-5, atol=1e-6)
    assert torch.equal(score[:, 1], (logits.argmax(1) == batch["right"]).double()) and 0 < score[:, 1].mean() < 1
    assert torch.cat([prompts.items(b) for b in prompts.batches]).tolist() == list(range(700))
    found = item_summary(item_scores(net, prompts))
    assert found["n"] == 700 and abs(found["loss"] - math.log(2)) < .2 and .015 < found["accuracy_se"] < .02

    net, prompts = Regressor(width=16, depth=2).eval(), regressions(600, seed=5, noise=1.)
    batch = prompts.batches[0]
    with torch.no_grad(): error = (net(batch["x"], batch["y"])[:, -1] - batch["y"][:, -1]).square().double()
    torch.testing.assert_close(prompts.score(net, batch)[:, 0], error, rtol=1e-4, atol=1e-6)
    net.lm_head.weight.data[0, 0] = math.nan
    assert prompts.score(net, batch)[:, 0].isinf().all()
