"""Flip tables add up, and their interval says what McNemar's test says."""

import math

import pytest
import torch

from trimtab.core.errors import DataError
from trimtab.measure.flips import NORMAL, Flips


def outcomes(*chances: float, items: int, generator: torch.Generator) -> list[torch.Tensor]:
    return [torch.rand(items, generator=generator) < chance for chance in chances]


def test_a_table_adds_up_to_the_items() -> None:
    base, other = outcomes(0.6, 0.5, items=173, generator=torch.Generator().manual_seed(0))
    found = Flips.of(base, other)
    assert sum(found.json().values()) == 2 * 173  # the cells, and n
    assert found.n == 173
    assert found.both_right + found.right_to_wrong == base.sum()
    assert found.both_right + found.wrong_to_right == other.sum()
    assert found.difference().difference == pytest.approx((other.double().mean() - base.double().mean()).item())


def test_a_model_against_itself_has_no_flips_but_an_interval() -> None:
    right = torch.arange(200) % 3 == 0
    found = Flips.of(right, right)
    assert (found.right_to_wrong, found.wrong_to_right) == (0, 0)
    interval = found.difference()
    assert interval.difference == 0
    assert interval.low == pytest.approx(-interval.high)
    assert interval.high == pytest.approx(NORMAL**2 / (200 + NORMAL**2))  # the score interval of none in 200
    assert interval.verdict(lower_is_better=False) == "not separable"


def test_sides_swap() -> None:
    one, other = Flips(40, 12, 3, 20).difference(), Flips(40, 3, 12, 20).difference()
    assert other.low == pytest.approx(-one.high)
    assert other.high == pytest.approx(-one.low)


@pytest.mark.parametrize("lost", range(0, 24, 2))
@pytest.mark.parametrize("won", range(0, 13, 3))
def test_zero_is_left_out_when_mcnemar_rejects(lost: int, won: int) -> None:
    found = Flips(30, lost, won, 30).difference()
    statistic = (lost - won) ** 2 / (lost + won) if lost + won else 0.0
    assert (found.low > 0 or found.high < 0) == (statistic > NORMAL**2)


def likelihood(shares: torch.Tensor, shift: float, won: int, lost: int, n: int) -> torch.Tensor:
    """Log-likelihood of the table if `shares` of the items are lost and `shift` more are won."""
    gained, rest = (shares + shift).clamp_min(0), (1 - 2 * shares - shift).clamp_min(0)
    return torch.special.xlogy(won, gained) + torch.special.xlogy(lost, shares) + torch.special.xlogy(n - won - lost, rest)


@pytest.mark.parametrize(("lost", "won", "n"), [(14, 0, 50), (3, 9, 80), (20, 25, 200)])
def test_the_ends_solve_the_score_equation(lost: int, won: int, n: int) -> None:
    """With the likeliest share found by brute force instead of by a formula."""
    found = Flips(n - lost - won, lost, won, 0).difference()
    for end, sign in ((found.low, 1), (found.high, -1)):
        shares = torch.linspace(max(0.0, -end), (1 - end) / 2, 2_000_001, dtype=torch.float64)
        share = shares[likelihood(shares, end, won, lost, n).argmax()].item()
        spread = math.sqrt(n * (2 * share + end - end**2))
        assert (won - lost - n * end) / spread == pytest.approx(sign * NORMAL, abs=1e-3)


@pytest.mark.parametrize(("lost", "won", "low", "high"), [(10, 0, -1, -0.4), (0, 10, 0.4, 1)])
def test_nothing_else_than_flips(lost: int, won: int, low: float, high: float) -> None:
    found = Flips(0, lost, won, 0).difference()
    assert low <= found.low <= found.difference <= found.high <= high


def test_what_does_not_differ_is_rarely_told_apart() -> None:
    """200 comparisons of two models that answer an item rightly with the same chance, hard items and easy ones."""
    generator = torch.Generator().manual_seed(0)
    apart = 0
    for _ in range(200):
        chance = torch.rand(250, generator=generator)
        base, other = (torch.rand(250, generator=generator) < chance for _ in range(2))
        apart += Flips.of(base, other).difference().verdict() != "not separable"
    assert 4 <= apart <= 16


@pytest.mark.parametrize(("lost", "won"), [(0.03, 0.03), (0.1, 0.04), (0.3, 0.05)])
def test_coverage_is_near_95_percent(lost: float, won: float) -> None:
    """1000 tables each: the binomial error is 0.7 %."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(1000, 200, generator=generator)
    gone, new = (draws < lost).sum(1).tolist(), ((draws >= lost) & (draws < lost + won)).sum(1).tolist()
    tables = [Flips(200 - a - b, a, b, 0).difference() for a, b in zip(gone, new, strict=True)]
    hits = sum(found.low <= won - lost <= found.high for found in tables)
    assert 0.93 <= hits / 1000 <= 0.97


def test_other_items_are_an_error() -> None:
    with pytest.raises(DataError, match="the same items of both models"):
        Flips.of(torch.ones(3, dtype=torch.bool), torch.ones(4, dtype=torch.bool))
