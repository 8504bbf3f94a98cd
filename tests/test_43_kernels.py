from pathlm.shiftadd.kernels import *
import torch
from torch import Tensor
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st


def test_four_weights_one_look_up():
    # %% ../nbs/43_kernels.ipynb #2f672159
    def four_sums(
        x: Tensor,  # (4,)
    ) -> Tensor:    # (16,)
        "Compute the table of four inputs, (2)."
        bits = torch.arange(16)[:, None] >> torch.arange(4) & 1
        return (2*bits - 1).to(x) @ x

    x = torch.tensor([1., 10, 100, 1000])
    for k in 0b0000, 0b0001, 0b1010, 0b1111: print(f"t[{k:04b}] = {four_sums(x)[k]:+.0f}")
    assert torch.equal(four_sums(x), -four_sums(x).flip(0))


def test_the_order_of_the_bytes():
    # %% ../nbs/43_kernels.ipynb #488997dc
    @given(st.integers(1, 3), st.integers(1, 2300), st.integers(1, 40))
    @settings(deadline=None, max_examples=30, derandomize=True)
    def tiles_keep_the_planes(q, out, k):
        planes = torch.randint(0, 256, (q, out, k), dtype=torch.uint8)
        assert torch.equal(untiled(tiled(planes), out, k, q), planes)

    @given(st.integers(1, 2300), st.sampled_from([1, 2, 16, 40, 64, 100, 5000]), st.integers(1, 4))
    @settings(deadline=None, max_examples=30, derandomize=True)
    def tiles_keep_the_scales(out, r, C):
        t = torch.randint(0, 999, (3, 2, -(-out//r), C))
        assert torch.equal(untiled_scales(tiled_scales(t, out, r), out, r, t.shape), t)

    tiles_keep_the_planes()
    tiles_keep_the_scales()
