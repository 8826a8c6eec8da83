"""Where to spend a budget: one choice per place, each with a cost in bytes and a worth.

A multiple-choice knapsack in which the budget is used up: the total cost is the largest that the choices can reach without
exceeding the budget (`most`), and among the allocations of that very total the one of the greatest worth is taken (`best`).
So the total depends on costs alone, can be told before any worth is known, and is the same for every order of importance
that is to be compared with another. (Kellerer, Pferschy & Pisinger, Knapsack Problems, 2004, chapter 11.)
Greedy steps along the convex hull of every place come first, then dynamic programming over the deviations from that answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import gcd, inf

import torch
from torch import Tensor

TABLE = 1 << 26  # entries, one byte each: up to here every deviation is looked at
HALVINGS = 200  # of the interval in which the level lies: more than float64 can tell apart
BAND = 4  # beyond: deviations of this many of the largest steps, doubled until the total can be reached

Table = Sequence[Sequence[float]]


@dataclass(frozen=True)
class _Costs:
    """least + unit * steps[place][choice]; the smallest step of every place is 0."""

    least: int
    unit: int
    steps: list[list[int]]


def most(costs: Sequence[Sequence[int]], budget: int) -> int:
    """The largest total cost not above `budget`. costs[place][choice]. Raises ValueError if there is none."""
    split = _split(costs)
    if budget < split.least:
        raise ValueError(f"the cheapest choices cost {split.least}, the budget is {budget}")
    room = min((budget - split.least) // split.unit, sum(map(max, split.steps)))
    within = (1 << (room + 1)) - 1
    reachable = 1  # bit t: some choices so far cost t steps
    for steps in split.steps:
        shifted = [reachable << step for step in set(steps)]
        reachable = 0
        for totals in shifted:
            reachable |= totals
        reachable &= within
    return split.least + split.unit * (reachable.bit_length() - 1)


def best(costs: Sequence[Sequence[int]], worths: Table, budget: int) -> list[int]:
    """The choice at every place: the most worth of all that cost `most(costs, budget)` together.

    Exact where places times reachable totals is at most `TABLE`; beyond, the best of what deviates from the greedy answer by
    at most a band of totals at any place. Of equal worth the earlier choice. Raises ValueError as `most` does.
    """
    split = _split(costs)
    goal = (most(costs, budget) - split.least) // split.unit
    start = _greedy(split.steps, worths, goal)
    spent = [steps[at] for steps, at in zip(split.steps, start, strict=True)]
    moves = [[step - now for step in steps] for steps, now in zip(split.steps, spent, strict=True)]
    left = goal - sum(spent)
    down, up = -sum(map(min, moves)), max(sum(map(max, moves)), left)
    largest = max((abs(move) for place in moves for move in place), default=0)
    band = BAND * largest if len(moves) * (down + up + 1) > TABLE else down + up
    while (found := _exchange(moves, worths, left, min(down, band), min(up, left + band))) is None:
        band *= 2
    return found


def filled(weights: Tensor, low: Tensor, high: Tensor, budget: float) -> Tensor:
    """Shares of a budget in proportion to weights, none below `low` or above `high`: what one may not have goes to the others.

    All [places] float64, low <= high, weights >= 0. The shares sum to the budget, or as near to it as the bounds allow.
    """
    if budget <= float(low.sum()) or budget >= float(high.sum()):
        return low if budget <= float(low.sum()) else high
    weights = weights.clamp(min=torch.finfo(torch.float64).eps * float(weights.max()) or 1.0)
    below, above = 0.0, float((high / weights).max())
    for _ in range(HALVINGS):
        middle = (below + above) / 2
        enough = float((middle * weights).clamp(low, high).sum()) > budget
        below, above = (below, middle) if enough else (middle, above)
    return (below * weights).clamp(low, high)


def _split(costs: Sequence[Sequence[int]]) -> _Costs:
    least = [min(place) for place in costs]
    extra = [[cost - low for cost in place] for place, low in zip(costs, least, strict=True)]
    unit = gcd(*(cost for place in extra for cost in place)) or 1
    return _Costs(sum(least), unit, [[cost // unit for cost in place] for place in extra])


def _greedy(steps: list[list[int]], worths: Table, goal: int) -> list[int]:
    """Choices of at most `goal` steps, taken from the hulls in order of worth per step until the first that does not fit."""
    hulls = [_hull(place, worth) for place, worth in zip(steps, worths, strict=True)]
    chosen = [hull[0] for hull in hulls]
    rises = [
        ((worths[place][above] - worths[place][below]) / (steps[place][above] - steps[place][below]), place, below, above)
        for place, hull in enumerate(hulls)
        for below, above in pairwise(hull)
    ]
    left = goal
    for _, place, below, above in sorted(rises, key=lambda rise: (-rise[0], rise[1], rise[2])):
        rise = steps[place][above] - steps[place][below]
        if rise > left:
            break
        chosen[place], left = above, left - rise
    return chosen


def _hull(steps: Sequence[int], worths: Sequence[float]) -> list[int]:
    """The choices on the upper convex hull of (steps, worth), from no step to the most, slopes falling."""
    order = sorted(range(len(steps)), key=lambda choice: (steps[choice], -worths[choice], choice))
    hull: list[int] = []
    for choice in order:
        if hull and steps[hull[-1]] == steps[choice]:
            continue
        while len(hull) > 1 and _slope(steps, worths, hull[-1], choice) >= _slope(steps, worths, hull[-2], hull[-1]):
            hull.pop()
        hull.append(choice)
    return hull


def _slope(steps: Sequence[int], worths: Sequence[float], low: int, high: int) -> float:
    return (worths[high] - worths[low]) / (steps[high] - steps[low])


def _exchange(moves: list[list[int]], worths: Table, goal: int, down: int, up: int) -> list[int] | None:
    """The choices of the most worth whose moves sum to `goal` and never leave [-down, up] on the way; None if there are none."""
    width = down + up + 1
    value = torch.full((width,), -inf, dtype=torch.float64)
    value[down] = 0.0
    chosen = torch.zeros(len(moves), width, dtype=torch.uint8)
    for place, (steps, worth) in enumerate(zip(moves, worths, strict=True)):
        value = _one_place(value, steps, worth, chosen[place])
    if value[down + goal] == -inf:
        return None
    at, found = down + goal, []
    for place in range(len(moves) - 1, -1, -1):
        found.append(int(chosen[place, at]))
        at -= moves[place][found[-1]]
    return found[::-1]


def _one_place(value: Tensor, steps: Sequence[int], worths: Sequence[float], chosen: Tensor) -> Tensor:
    """The best value [width] of every total with one place more; which choice led there goes into `chosen` [width]."""
    made = torch.full_like(value, -inf)
    width = len(value)
    for choice, (step, worth) in enumerate(zip(steps, worths, strict=True)):
        if abs(step) >= width:
            continue
        here, there = slice(max(step, 0), width + min(step, 0)), slice(max(-step, 0), width - max(step, 0))
        offered = value[there] + worth
        better = offered > made[here]
        made[here] = torch.where(better, offered, made[here])
        chosen[here] = chosen[here].masked_fill(better, choice)
    return made
