"""Uniform grids: exact on themselves, half a step off at most elsewhere, and zero stays zero."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trimtab.tensors.rounding import SMALLEST, Grid, fit

BITS = st.integers(2, 8)
KINDS = [(False, False), (False, True), (True, False), (True, True)]


def weights(*size: int, seed: int = 0, shift: float = 0.0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)) + shift


def squared(grid: Grid, weight: Tensor) -> Tensor:
    return (grid.nearest(weight) - weight).double().square().sum(-1)


@settings(max_examples=40, deadline=None)
@given(bits=BITS, scale=st.sampled_from([2.0**-6, 0.5, 1.0, 3.0]), zero=st.integers(0, 255), seed=st.integers(0, 99))
def test_exact_on_a_grid(bits: int, scale: float, zero: int, seed: int) -> None:
    top = 2**bits - 1
    zero = zero % (top + 1)
    codes = torch.randint(0, top + 1, (5, 40), generator=torch.Generator().manual_seed(seed))
    codes[:, 0], codes[:, 1] = 0, top  # the range is filled
    weight = (codes - zero) * scale
    grid = fit(weight, bits)
    assert torch.equal(grid.nearest(weight), weight)
    assert torch.equal(grid.codes(weight).long(), codes)


@settings(max_examples=40, deadline=None)
@given(bits=BITS, symmetric=st.booleans(), seed=st.integers(0, 999), shift=st.sampled_from([0.0, -3.0, 0.7, 40.0]))
def test_half_a_step_inside_the_range(bits: int, symmetric: bool, seed: int, shift: float) -> None:
    weight = weights(6, 32, seed=seed, shift=shift)
    grid = fit(weight, bits, symmetric)
    # The zero point is an integer and a float16 step is rounded: an end of the range may lie that much outside the grid.
    inside = torch.minimum(torch.maximum(weight, grid.values(torch.zeros(6, 1))), grid.values(torch.full((6, 1), 2.0**bits - 1)))
    assert ((grid.nearest(weight) - inside).abs() <= grid.scale * 0.5001).all()
    assert ((weight - inside).abs() <= grid.scale * (1.0 if symmetric else 0.5) + 2**bits * grid.scale * 2**-10).all()


@settings(max_examples=40, deadline=None)
@given(bits=BITS, kind=st.sampled_from(KINDS), seed=st.integers(0, 999), shift=st.sampled_from([0.0, 5.0, -5.0]))
def test_zero_stays_zero_and_codes_fit(bits: int, kind: tuple[bool, bool], seed: int, shift: float) -> None:
    weight = weights(6, 32, seed=seed, shift=shift)
    weight[:, ::5] = 0
    grid = fit(weight, bits, *kind)
    assert (grid.nearest(weight)[:, ::5] == 0).all()
    codes = grid.codes(weight * 3)
    assert codes.min() >= 0
    assert codes.max() <= 2**bits - 1
    assert torch.equal(codes, codes.round())
    assert torch.equal(grid.zero, grid.zero.round())
    assert torch.equal(grid.scale, grid.scale.half().float())


@settings(max_examples=25, deadline=None)
@given(bits=BITS, symmetric=st.booleans(), seed=st.integers(0, 999))
def test_clipping_is_never_worse_in_squared_error(bits: int, symmetric: bool, seed: int) -> None:
    weight = weights(6, 64, seed=seed)
    weight[:3] **= 3  # heavy tails, where clipping pays
    plain, clipped = (squared(fit(weight, bits, symmetric, clip), weight) for clip in (False, True))
    assert (clipped <= plain * (1 + 1e-6)).all()


def test_clipping_pays_at_two_bits() -> None:
    weight = weights(64, 128)
    assert squared(fit(weight, 2, clip=True), weight).sum() < 0.7 * squared(fit(weight, 2), weight).sum()


def test_symmetric_grids_are_centred_and_reach_both_ends() -> None:
    weight = weights(6, 32, shift=2.0)
    grid = fit(weight, 4, symmetric=True)
    assert (grid.zero == 8).all()
    assert torch.allclose(grid.scale.squeeze(-1), 2 * weight.abs().amax(-1) / 15, rtol=1e-3)


@pytest.mark.parametrize(("symmetric", "clip"), KINDS)
def test_zero_and_tiny_groups(symmetric: bool, clip: bool) -> None:
    weight = torch.zeros(2, 16)
    weight[1] = SMALLEST / 4
    grid = fit(weight, 3, symmetric, clip)
    assert (grid.scale > 0).all()
    assert (grid.nearest(weight) == 0).all()


@pytest.mark.parametrize("value", [1.5, -1.5, 1e-3, -600.0])
def test_constant_groups(value: float) -> None:
    weight = torch.full((2, 16), value)
    grid = fit(weight, 4)
    assert torch.allclose(grid.nearest(weight), weight, rtol=1e-3)


@pytest.mark.parametrize("bad", [3e5, float("inf"), float("nan")])
@pytest.mark.parametrize(("symmetric", "clip"), KINDS)
def test_a_scale_beyond_float16_is_an_error(symmetric: bool, clip: bool, bad: float) -> None:
    weight = weights(2, 16)
    weight[1, 3] = bad
    with pytest.raises(ArithmeticError, match="float16"):
        fit(weight, 2, symmetric, clip)


@pytest.mark.parametrize(("symmetric", "clip"), KINDS)
def test_the_largest_scales_stay_finite(symmetric: bool, clip: bool) -> None:
    weight = torch.zeros(1, 8)
    weight[0, 0], weight[0, 1] = 65503.0 * 1.5, -65503.0 * 1.5
    grid = fit(weight, 2, symmetric, clip)
    assert grid.scale.half().isfinite().all()
    assert grid.nearest(weight).isfinite().all()


@pytest.mark.parametrize(("symmetric", "clip"), KINDS)
def test_every_group_is_fitted_alone(symmetric: bool, clip: bool) -> None:
    weight = weights(4, 3, 16)
    grid = fit(weight, 3, symmetric, clip)
    alone = fit(weight[2, 1], 3, symmetric, clip)
    assert torch.equal(grid.nearest(weight)[2, 1], alone.nearest(weight[2, 1]))
