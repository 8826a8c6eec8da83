"""The paired interval where it must be exact, and how often it covers the truth."""

import math

import pytest
import torch
from torch import Tensor

from trimtab.core.errors import DataError
from trimtab.measure.paired import paired_difference, resampled_means


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_identical_models_do_not_differ() -> None:
    values = normal(torch.Generator().manual_seed(0), 3, 20)
    found = paired_difference(values, values)
    assert (found.difference, found.low, found.high, found.n, found.seeds) == (0.0, 0.0, 0.0, 20, 3)


def test_a_constant_shift_is_found_without_doubt() -> None:
    values = normal(torch.Generator().manual_seed(0), 3, 20)
    found = paired_difference(values + 0.25, values)
    assert found.difference == pytest.approx(0.25, abs=1e-12)
    assert found.low == pytest.approx(0.25, abs=1e-12)
    assert found.high == pytest.approx(0.25, abs=1e-12)


def test_sides_swap_and_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = normal(generator, 3, 20), normal(generator, 3, 20)
    one, other = paired_difference(left, right), paired_difference(3 * right, 3 * left)
    assert other.difference == pytest.approx(-3 * one.difference)
    assert one.low < one.difference < one.high
    assert other.high - other.low == pytest.approx(3 * (one.high - one.low), rel=0.1)
    assert paired_difference(left, right) == one


def test_resampling_has_the_variance_of_both_ways() -> None:
    """Rows alone give var/rows, columns alone var/columns, both with the (biased) variance of what was seen."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = normal(generator, 5, 1), normal(generator, 1, 30)
    spread = resampled_means(rows.expand(5, 30) + columns, generator).var().item()
    expected = rows.var(correction=0) / 5 + columns.var(correction=0) / 30
    assert spread == pytest.approx(expected.item(), rel=0.15)  # a variance of 2000 draws is known to about 3 %


def test_coverage_is_near_95_percent() -> None:
    """Windows differ, seeds share them: 300 intervals from normal data. Binomial error sqrt(.95 * .05 / 300) = 1.3 %."""
    generator, trials, hits = torch.Generator().manual_seed(0), 300, 0
    for trial in range(trials):
        difference = normal(generator, 1, 60) + 0.1 * normal(generator, 3, 60)
        found = paired_difference(difference, torch.zeros_like(difference), seed=trial)
        hits += found.low <= 0 <= found.high
    assert abs(hits / trials - 0.95) < 3 * math.sqrt(0.95 * 0.05 / trials)


def test_more_windows_make_it_narrower() -> None:
    values = normal(torch.Generator().manual_seed(0), 1, 400)
    wide = paired_difference(values[:, :25], torch.zeros(1, 25))
    narrow = paired_difference(values, torch.zeros(1, 400))
    assert narrow.high - narrow.low == pytest.approx((wide.high - wide.low) / 4, rel=0.35)


@pytest.mark.parametrize(
    ("left", "right", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 4), r"must be \[seeds, windows\] alike, got \[2, 3\] and \[2, 4\]"),
        (torch.zeros(3), torch.zeros(3), "alike"),
        (torch.zeros(0, 3), torch.zeros(0, 3), "alike"),
        (torch.full((1, 2), math.nan), torch.zeros(1, 2), "not finite"),
    ],
)
def test_bad_input_is_an_error(left: Tensor, right: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        paired_difference(left, right)
