"""Evolution keeps the budget, never repeats itself, and finds what trying everything finds."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.tensors.evolution import Course, evolve, exchange, offspring, swap


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cost(costs, choices) -> int:
    return sum(row[at] for row, at in zip(costs, choices, strict=True))


SIZES = [1, 3, 3, 8]
COSTS = [[size * bits for bits in (2, 3, 4)] for size in SIZES]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([1, 3, 8]), min_size=2, max_size=8), st.integers(2, 5), st.integers(0, 10**6))
def test_every_child_costs_what_its_parent_costs(sizes, levels, seed) -> None:
    costs = [[size * level**2 for level in range(1, levels + 1)] for size in sizes]
    chance = draw(seed)
    parent = tuple(torch.randint(levels, (len(sizes),), generator=chance).tolist())
    for _ in range(20):
        child = exchange(parent, costs, 3, chance)
        assert child is None or cost(costs, child) == cost(costs, parent)


def test_places_of_different_size_trade() -> None:
    """Of 1 + 3 + 3 + 8 weights, one bit at the 8 is paid for by others, or by nobody."""
    chance, found = draw(), {exchange((1, 1, 1, 1), COSTS, 1, draw(seed)) for seed in range(200)}
    assert (1, 0, 2, 1) in found
    every = {c for c in product(range(3), repeat=4) if cost(COSTS, c) == cost(COSTS, (1, 1, 1, 1))}
    assert found - {None} <= every
    assert exchange((2, 2, 2, 2), COSTS, 3, chance) is None


@pytest.mark.parametrize("seed", range(5))
def test_it_finds_what_trying_everything_finds(seed) -> None:
    """Four sites at five levels, more is better; what a site gains depends on all others, so that none can be judged alone."""
    chance = draw(seed)
    costs = [[size * level for level in range(5)] for size in (1, 1, 2, 2)]
    stakes = 4 * torch.rand(4, 1, generator=chance, dtype=torch.float64)
    alone = stakes * 0.5 ** torch.arange(5)
    pairs = 0.3 * torch.randn(4, 4, 5, 5, generator=chance, dtype=torch.float64)

    def loss(c) -> float:
        return float(sum(alone[i, c[i]] for i in range(4)) + sum(pairs[i, j, c[i], c[j]] for i in range(4) for j in range(i)))

    start = (2, 2, 2, 2)
    every = [c for c in product(range(5), repeat=4) if cost(costs, c) == cost(costs, start)]
    vary = lambda parent: exchange(parent, costs, 3, chance)  # noqa: E731
    found, history = evolve(start, vary, lambda several, stage: [loss(c) for c in several], Course(16, 25, (4, 1)))
    assert found == min(every, key=loss)
    assert history == sorted(history, reverse=True)
    assert history[-1] == loss(found)


def test_no_child_is_its_parent_or_its_sibling() -> None:
    chance = draw()
    parent = (1, 1, 1, 1)
    children = offspring(parent, lambda p: exchange(p, COSTS, 3, chance), 64)
    every = {c for c in product(range(3), repeat=4) if cost(COSTS, c) == cost(COSTS, parent)} - {parent}
    assert len(children) == len(set(children))
    assert set(children) == every
    assert offspring(parent, lambda p: p, 8) == []


def test_the_parent_stays_unless_a_child_is_better_on_the_last_stage() -> None:
    """The first stage lies: it likes what the last one does not."""
    calls: list[tuple[int, int]] = []

    def judge(several, stage):
        calls.append((stage, len(several)))
        return [abs(c[0]) if stage else -abs(c[0]) for c in several]

    chance = draw()
    vary = lambda p: (p[0] + int(torch.randint(-3, 4, (1,), generator=chance)),)  # noqa: E731
    found, history = evolve((0,), vary, judge, Course(6, 4, (2, 1)))
    assert found == (0,)
    assert history == [0.0] * 4
    assert calls == [(0, 6), (1, 3)] * 4


def test_infinite_losses_never_survive() -> None:
    chance = draw()
    judge = lambda several, stage: [float("inf") if sum(c[:2]) != 1 else 0.0 for c in several]  # noqa: E731
    found, _ = evolve((1, 0, 1, 0), lambda p: swap(p, 2, chance), judge, Course(4, 10, (2, 1)))
    assert sum(found[:2]) == 1


@given(st.lists(st.integers(0, 1), min_size=1, max_size=12), st.integers(0, 1000))
def test_swaps_keep_the_number_of_ones(parent, seed) -> None:
    child = swap(tuple(parent), 3, draw(seed))
    assert sum(child) == sum(parent)
    assert (child == tuple(parent)) == (sum(parent) in (0, len(parent)))
