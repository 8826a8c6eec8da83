"""Calibration error where it is known: of a perfect predictor, and of one that is off by a constant."""

import math

import pytest
import torch
from torch import Tensor

from trimtab.core.errors import DataError
from trimtab.measure.calibration import MOST_BINS, calibration


def honest(windows: int, tokens: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Confidences, and outcomes that come true with just that chance."""
    chance = 0.3 + 0.6 * torch.rand(windows, tokens, generator=generator, dtype=torch.float64)
    return chance, torch.rand(windows, tokens, generator=generator) < chance


def test_a_perfect_predictor_has_almost_no_error() -> None:
    chance, right = honest(400, 500, torch.Generator().manual_seed(0))
    found = calibration(chance, right)
    by_chance = 0.8 * math.sqrt(0.24 * MOST_BINS / 200_000)
    assert 0 < found.error < 2 * by_chance
    assert found.n == 200_000


@pytest.mark.parametrize("shift", [0.1, -0.1, -0.25])
def test_a_shifted_predictor_is_off_by_the_shift(shift: float) -> None:
    chance, right = honest(400, 500, torch.Generator().manual_seed(0))
    found = calibration(chance + shift, right)
    assert found.error == pytest.approx(abs(shift), abs=0.003)
    assert all(math.copysign(1, b.confidence - b.accuracy) == math.copysign(1, shift) for b in found.bins)


def test_bins_hold_equally_many_and_all_of_them() -> None:
    chance, right = honest(7, 211, torch.Generator().manual_seed(0))
    found = calibration(chance, right)
    sizes = [b.n for b in found.bins]
    assert len(sizes) == MOST_BINS
    assert sum(sizes) == 7 * 211
    assert max(sizes) - min(sizes) <= 1
    assert all(b.low <= b.confidence <= b.high for b in found.bins)
    assert all(b.high <= after.low for b, after in zip(found.bins, found.bins[1:], strict=False))
    again = sum(abs(b.confidence - b.accuracy) * b.n for b in found.bins) / found.n
    assert found.error == pytest.approx(again)
    overall = sum(b.accuracy * b.n for b in found.bins) / found.n
    assert overall == pytest.approx(right.double().mean().item())


def test_few_predictions_get_few_bins() -> None:
    chance, right = honest(30, 1, torch.Generator().manual_seed(0))
    found = calibration(chance[:, 0], right[:, 0])
    assert len(found.bins) == 1
    assert found.error == pytest.approx(abs((chance - right.double()).mean().item()))


def test_the_standard_error_takes_windows_as_the_units() -> None:
    """Over many draws of clustered predictions the error spreads as a single draw says."""
    generator = torch.Generator().manual_seed(0)
    draws = []
    for _ in range(150):
        chance, _ = honest(40, 50, generator)
        luck = 0.2 * torch.randn(40, 1, generator=generator, dtype=torch.float64)
        draws.append(calibration(chance + 0.15, torch.rand(40, 50, generator=generator) < chance + luck))
    spread = torch.tensor([found.error for found in draws]).std().item()
    claimed = sum(found.stderr for found in draws) / len(draws)
    assert claimed == pytest.approx(spread, rel=0.25)


def test_equal_confidences_are_no_problem() -> None:
    found = calibration(torch.full((4, 100), 0.5), torch.arange(400).view(4, 100) % 2 == 0)
    assert found.error == pytest.approx(0, abs=0.02)


def test_no_predictions_are_an_error() -> None:
    with pytest.raises(DataError, match="a confidence per answer"):
        calibration(torch.zeros(0, 3), torch.zeros(0, 3))
