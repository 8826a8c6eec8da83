"""The fit finds planes that are there, never loses to the uniform grid, and reaches the error known for normal weights."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trimtab.tensors.bitplanes import Planes, fit
from trimtab.tensors.rounding import fit as uniform


def normal(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def squared(planes: Planes, weight: Tensor) -> Tensor:
    return (planes.values(planes.codes(weight)) - weight).double().square().sum(-1)


def brute_force(planes: Planes, weight: Tensor) -> Tensor:
    """The nearest of all sums of a subset of the planes, one weight at a time."""
    bits = planes.scale.shape[-1]
    best = torch.empty_like(weight)
    for g in range(len(weight)):
        sums = [planes.offset[g, 0] + sum(planes.scale[g, j] * (c >> j & 1) for j in range(bits)) for c in range(2**bits)]
        for i, w in enumerate(weight[g]):
            best[g, i] = min(sums, key=lambda s: abs(s - w))
    return best


@settings(max_examples=20, deadline=None)
@given(bits=st.integers(1, 4), seed=st.integers(0, 999))
def test_finds_evenly_spaced_planes_exactly(bits: int, seed: int) -> None:
    codes = torch.randint(0, 2**bits, (4, 48), generator=torch.Generator().manual_seed(seed))
    codes[:, 0], codes[:, 1] = 0, 2**bits - 1
    weight = codes * 0.25 - 1.0
    for rounds in (0, 5):
        planes = fit(weight, bits, rounds)
        assert torch.equal(planes.values(planes.codes(weight)), weight)


@pytest.mark.parametrize("scale", [(0.5, 0.75), (0.25, 0.75), (0.2, 0.5, 0.8)])
def test_finds_unevenly_spaced_planes(scale: tuple[float, ...]) -> None:
    """Levels that no uniform grid has."""
    bits = len(scale)
    codes = torch.randint(0, 2**bits, (4, 64), generator=torch.Generator().manual_seed(1))
    codes[:, : 2**bits] = torch.arange(2**bits)
    weight = sum(s * (codes >> j & 1) for j, s in enumerate(scale)) - 0.5
    fitted = fit(weight, bits, 20)
    assert squared(fitted, weight).max() < 1e-5
    assert squared(fit(weight, bits, 0), weight).min() > 1e-2
    assert torch.allclose(fitted.scale, torch.tensor(scale).expand(4, -1), atol=2e-3)


@settings(max_examples=25, deadline=None)
@given(bits=st.integers(1, 4), rounds=st.integers(1, 12), seed=st.integers(0, 999), cube=st.booleans())
def test_never_worse_with_more_rounds_and_in_canonical_form(bits: int, rounds: int, seed: int, cube: bool) -> None:
    weight = normal(6, 32, seed=seed) ** (3 if cube else 1)
    none, some, more = (fit(weight, bits, r) for r in (0, rounds, rounds + 3))
    assert (squared(some, weight) <= squared(none, weight) * (1 + 1e-6)).all()
    assert (squared(more, weight) <= squared(some, weight) * (1 + 1e-6)).all()
    assert (more.scale >= 0).all()
    assert (more.scale.diff(dim=-1) >= 0).all()
    assert torch.equal(more.scale, more.scale.half().float())
    assert torch.equal(more.offset, more.offset.half().float())


def test_codes_are_the_nearest_levels() -> None:
    weight = normal(3, 20)
    planes = fit(weight, 3, 4)
    assert torch.allclose(planes.values(planes.codes(weight)), brute_force(planes, weight), atol=1e-6)


# Relative squared error on N(0, 1) in groups of 128: the starting grid, and the fit.
@pytest.mark.parametrize(("bits", "start", "reached"), [(2, 0.254, 0.110), (3, 0.0466, 0.0331), (4, 0.0101, 0.0085)])
def test_error_on_normal_weights(bits: int, start: float, reached: float) -> None:
    weight = normal(1500, 128)
    for rounds, expected in ((0, start), (10, reached)):
        relative = squared(fit(weight, bits, rounds), weight) / weight.double().square().sum(-1)
        stderr = float(relative.std() / len(weight) ** 0.5)
        assert abs(float(relative.mean()) - expected) < 4 * stderr + 0.025 * expected


def test_beats_the_clipped_uniform_grid_at_two_bits() -> None:
    weight = normal(200, 128)
    clipped = (uniform(weight, 2, clip=True).nearest(weight) - weight).double().square().sum()
    assert squared(fit(weight, 2, 10), weight).sum() < 0.9 * clipped


def test_degenerate_groups_stay_finite() -> None:
    weight = torch.stack([torch.zeros(16), torch.full((16,), 3.5), torch.cat([torch.ones(1), torch.zeros(15)])])
    planes = fit(weight, 3, 10)
    assert torch.allclose(planes.values(planes.codes(weight)), weight, atol=1e-3)


def test_scales_beyond_float16_are_an_error() -> None:
    weight = normal(2, 16)
    weight[0, 0] = 4e5
    with pytest.raises(ArithmeticError, match="float16"):
        fit(weight, 2, 3)
