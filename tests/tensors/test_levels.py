"""Levels for many numbers: the known best ones for a Gaussian, exact where there are few values, zero kept."""

import pytest
import torch

from trimtab.tensors.levels import fit, nearest_level


def test_few_values_are_their_own_levels() -> None:
    values = torch.tensor([3.0, 1.0, 2.0, 1.0, 4.0])
    assert torch.equal(fit(values, 4), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert torch.equal(fit(torch.full((5,), 0.5), 4), torch.full((4,), 0.5))


@pytest.mark.parametrize(("count", "distortion"), [(2, 0.3634), (4, 0.1175), (8, 0.0345), (16, 0.0095)])
def test_a_gaussian_gets_the_levels_of_lloyd_and_max(count: int, distortion: float) -> None:
    values = torch.randn(20000, generator=torch.Generator().manual_seed(0)) + 20
    levels = fit(values, count)
    assert bool((levels.diff() >= 0).all())
    error = (levels[nearest_level(values, levels)] - values).square().mean() / values.var()
    assert float(error) == pytest.approx(distortion, rel=0.05)


def test_nothing_stays_nothing() -> None:
    values = torch.cat([torch.zeros(3), torch.linspace(5, 6, 50)])
    levels = fit(values, 4)
    assert levels[0] == 0
    assert torch.equal(levels[nearest_level(values, levels)][:3], torch.zeros(3))
    assert torch.equal(fit(torch.zeros(9), 4), torch.zeros(4))


def test_the_nearest_level_is_nearest() -> None:
    levels = torch.tensor([0.0, 1.0, 1.0, 3.0])
    values = torch.linspace(-1, 5, 60).view(6, 10)
    expected = (values[..., None] - levels).abs().amin(-1)
    assert torch.equal((levels[nearest_level(values, levels)] - values).abs(), expected)
