"""Budgets are used up exactly and spent best: against trying everything, and against the bound of the linear relaxation."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.tensors import allocation
from trimtab.tensors.allocation import best, most

COST, WORTH = st.integers(0, 30), st.integers(-20, 20)
PLACE = st.integers(1, 4).flatmap(
    lambda n: st.tuples(st.lists(COST, min_size=n, max_size=n), st.lists(WORTH, min_size=n, max_size=n))
)
PROBLEM = st.tuples(st.lists(PLACE, min_size=1, max_size=6), st.integers(0, 200), st.sampled_from([1, 7, 192]))


def split(problem) -> tuple[list[list[int]], list[list[int]], int]:
    places, budget, unit = problem
    return [[cost * unit for cost in c] for c, _ in places], [w for _, w in places], budget * unit


def spend(table, chosen):
    return sum(row[at] for row, at in zip(table, chosen, strict=True))


def tried(costs, worths, budget) -> tuple[int, int]:
    """The largest total within the budget, and the most worth at that total."""
    every = list(product(*(range(len(place)) for place in costs)))
    total = max(spend(costs, chosen) for chosen in every if spend(costs, chosen) <= budget)
    return total, max(spend(worths, chosen) for chosen in every if spend(costs, chosen) == total)


@settings(max_examples=150, deadline=None)
@given(PROBLEM)
def test_it_is_what_trying_everything_finds(problem) -> None:
    costs, worths, budget = split(problem)
    least = sum(map(min, costs))
    if least > budget:
        with pytest.raises(ValueError, match=f"cheapest choices cost {least}"):
            best(costs, worths, budget)
        return
    total, worth = tried(costs, worths, budget)
    chosen = best(costs, worths, budget)
    assert most(costs, budget) == spend(costs, chosen) == total <= budget
    assert spend(worths, chosen) == worth


@settings(max_examples=60, deadline=None)
@given(PROBLEM)
def test_a_narrow_band_still_meets_the_total(problem) -> None:
    costs, worths, budget = split(problem)
    if sum(map(min, costs)) > budget:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(allocation, "TABLE", 0)
        patch.setattr(allocation, "BAND", 1)
        chosen = best(costs, worths, budget)
    total, worth = tried(costs, worths, budget)
    assert spend(costs, chosen) == total
    assert spend(worths, chosen) <= worth


def realistic(places: int, seed: int) -> tuple[list[list[int]], list[list[float]]]:
    """Matrices of a few shapes at 2, 3 and 4 bits, of which each loses fourfold less with every bit."""
    draw = torch.Generator().manual_seed(seed)
    shapes = torch.randint(0, 4, (places,), generator=draw).tolist()
    stakes = torch.exp(2 * torch.randn(places, generator=draw, dtype=torch.float64)).tolist()
    rows = [(576, 73), (192, 73), (1536, 73), (576, 195)]
    costs = [[rows[s][0] * (rows[s][1] * bits + 18) for bits in (2, 3, 4)] for s in shapes]
    return costs, [[-stake * 4.0**-bits for bits in (2, 3, 4)] for stake in stakes]


def relaxed(costs, worths, total: int) -> float:
    """An upper bound on the worth at a total cost: for any price of a byte, what each place gains by itself."""
    grid = torch.logspace(-12, -3, 400, dtype=torch.float64)
    cost, worth = torch.tensor(costs, dtype=torch.float64), torch.tensor(worths, dtype=torch.float64)
    bounds = (worth[None] - grid[:, None, None] * cost[None]).amax(2).sum(1) + grid * total
    return float(bounds.min())


@pytest.mark.parametrize("table", [allocation.TABLE, 0])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.97])
def test_many_places_come_close_to_the_relaxation(monkeypatch: pytest.MonkeyPatch, table: int, share: float) -> None:
    monkeypatch.setattr(allocation, "TABLE", table)
    costs, worths = realistic(40, 3)
    low, high = sum(c[0] for c in costs), sum(c[2] for c in costs)
    budget = low + round(share * (high - low))
    chosen = best(costs, worths, budget)
    total = spend(costs, chosen)
    assert most(costs, budget) == total
    assert 0.995 * budget <= total <= budget
    bound, found, plain = relaxed(costs, worths, total), spend(worths, chosen), spend(worths, [0] * 40)
    assert found <= bound + 1e-9
    assert bound - found <= 0.02 * (bound - plain)


def test_what_is_left_over_is_said_and_not_exceeded() -> None:
    assert most([[0, 10], [0, 10]], 19) == 10
    assert best([[0, 10], [0, 10]], [[0, 1], [0, 2]], 19) == [0, 1]
    assert best([[5, 10], [5, 10]], [[0, 1], [0, 2]], 10**9) == [1, 1]
    assert best([[3], [4]], [[0.0], [0.0]], 7) == [0, 0]


def test_equal_worth_goes_to_the_earlier_choice_every_time() -> None:
    costs, worths = [[0, 6]] * 5, [[0, 1]] * 5
    found = {tuple(best(costs, worths, 18)) for _ in range(5)}
    assert len(found) == 1
    assert sum(found.pop()) == 3
