"""Windows of all players give the Shapley value; smaller ones what it is where players far apart do not meet."""

from itertools import permutations
from math import factorial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trimtab.tensors.shapley import coalitions, window_of, windowed_shapley
from trimtab.tensors.spreading import around, centred


def game(players: int, reach: int, seed: int = 0):
    """The value of a team by who is absent: a part of each, and of pairs at most `reach` apart."""
    chance = torch.Generator().manual_seed(seed)
    alone = torch.randn(players, generator=chance, dtype=torch.float64)
    pairs = torch.randn(players, players, generator=chance, dtype=torch.float64)

    def value(absent) -> float:
        there = [p for p in range(players) if p not in absent]
        near = [(i, j) for i in there for j in there if i < j <= i + reach]
        return float(sum(alone[i] for i in there) + sum(pairs[i, j] for i, j in near))

    return value


def by_definition(players: int, value) -> list[float]:
    """The mean over all orders of arrival of what a player adds."""
    shares = [0.0] * players
    for order in permutations(range(players)):
        absent = set(range(players))
        for player in order:
            before = value(frozenset(absent))
            absent.remove(player)
            shares[player] += value(frozenset(absent)) - before
    return [share / factorial(players) for share in shares]


def test_a_window_of_all_is_exact() -> None:
    value = game(6, reach=5)
    found = windowed_shapley(6, 6, lambda teams: [value(t) for t in teams])
    assert found == pytest.approx(by_definition(6, value))
    assert sum(found) == pytest.approx(value(frozenset()) - value(frozenset(range(6))))
    assert windowed_shapley(6, 99, lambda teams: [value(t) for t in teams]) == found


def test_what_is_outside_of_the_window_is_taken_to_be_there() -> None:
    """Pairs share what they make. Where the partner cannot leave, all of it is the player's: the sum is then too large."""
    value = game(5, reach=0)
    assert windowed_shapley(5, 1, lambda teams: [value(t) for t in teams]) == pytest.approx(by_definition(5, value))
    near = game(5, reach=1)
    found = windowed_shapley(5, 3, lambda teams: [near(t) for t in teams])
    exact = by_definition(5, near)
    assert found[1:4] == pytest.approx(exact[1:4])
    assert found == pytest.approx(exact)


def test_windows_are_shifted_at_the_ends_and_share_values() -> None:
    assert [list(window_of(p, 5, 3)) for p in range(5)] == [[0, 1, 2], [0, 1, 2], [1, 2, 3], [2, 3, 4], [2, 3, 4]]
    asked = coalitions(5, 3)
    assert len(asked) == len(set(asked)) < 5 * 2**3
    assert len(coalitions(6, 6)) == 2**6


@given(
    st.lists(st.floats(-1, 1), min_size=1, max_size=9),
    st.lists(st.integers(1, 100), min_size=9, max_size=9),
    st.floats(0.05, 0.9),
)
def test_the_weighted_mean_is_met(scores, weights, mean) -> None:
    offsets = 0.3 * centred(torch.tensor(scores))
    share = torch.tensor(weights[: len(scores)], dtype=torch.float64)
    found = around(offsets, share, mean, 0.0, 0.99)
    assert float((found * share).sum() / share.sum()) == pytest.approx(mean, abs=1e-12)
    assert 0 <= float(found.min()) <= float(found.max()) <= 0.99
    order = offsets.argsort()
    assert (found[order].diff() >= 0).all()


def test_equal_scores_give_the_mean_everywhere() -> None:
    assert around(centred(torch.ones(4)), torch.ones(4), 0.6, 0, 0.99).tolist() == pytest.approx([0.6] * 4)
    with pytest.raises(ValueError, match="not between"):
        around(torch.zeros(2), torch.ones(2), 1.5, 0, 0.99)
