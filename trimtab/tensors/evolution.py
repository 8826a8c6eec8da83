"""(1 + lambda) evolution with selection in stages: many children on little text, few on much, and the parent among the last.

Judging is what costs. So a generation's children are judged on a small sample first and most of them are dropped; those that are
left meet their parent on the largest sample, and the parent stays unless one of them is better there (elitism). No child
is its parent, and no two of a generation are equal. (Sieberling et al., 2024, arXiv:2410.14649.)
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

TRIES = 20  # draws for every child that is wanted; in a small space there are not so many

H = TypeVar("H", bound=Hashable)
Choices = tuple[int, ...]


@dataclass(frozen=True)
class Course:
    """survivors: how many a stage leaves, falling; the last stage leaves one."""

    offspring: int
    generations: int
    survivors: tuple[int, ...]


def evolve(
    parent: H,
    vary: Callable[[H], H | None],
    judge: Callable[[Sequence[H], int], Sequence[float]],
    course: Course,
) -> tuple[H, list[float]]:
    """The parent of the last generation, and the loss of the parent after each.

    vary: a changed copy, None where chance led nowhere. judge: losses of several in a stage, from 0; of one stage they are
    comparable within a call. Of equal losses the earlier one survives, the parent before all.
    """
    last, history = len(course.survivors) - 1, []
    for _ in range(course.generations):
        children = offspring(parent, vary, course.offspring)
        if not children:
            break
        for stage in range(last):
            children = _fittest(children, judge(children, stage), course.survivors[stage])
        family = [parent, *children]
        losses = judge(family, last)
        (parent,) = _fittest(family, losses, 1)
        history.append(min(losses))
    return parent, history


def offspring(parent: H, vary: Callable[[H], H | None], count: int) -> list[H]:
    """At most so many variations, each once and none the parent."""
    found: dict[H, None] = {}
    for _ in range(TRIES * count):
        child = vary(parent)
        if child is not None and child != parent:
            found[child] = None
        if len(found) == count:
            break
    return list(found)


def _fittest(candidates: Sequence[H], losses: Sequence[float], count: int) -> list[H]:
    order = sorted(range(len(candidates)), key=lambda i: (losses[i], i))
    return [candidates[i] for i in sorted(order[:count])]


def exchange(parent: Choices, costs: Sequence[Sequence[int]], switches: int, draw: torch.Generator) -> Choices | None:
    """The same total cost, other choices; None where chance led nowhere.

    costs[place][choice]. The lesser of two numbers from 1 to `switches` says how often one place moves to a neighbouring
    choice and others pay for it: moves of the opposite sign, none larger than what is left to pay, until nothing is.
    """
    now = list(parent)
    for _ in range(_few(switches, draw)):
        place, choice = _pick(_moves(now, costs), draw)
        debt = costs[place][choice] - costs[place][now[place]]
        now[place] = choice
        while debt:
            payments = [move for move in _moves(now, costs) if move[0] != place and _pays(now, costs, move, debt)]
            if not payments:
                return None
            other, choice = _pick(payments, draw)
            debt += costs[other][choice] - costs[other][now[other]]
            now[other] = choice
    return tuple(now)


def swap(parent: Choices, switches: int, draw: torch.Generator) -> Choices:
    """Ones and zeros, as many ones as before: as many ones as `exchange` makes moves trade places with zeros."""
    ones = [place for place, held in enumerate(parent) if held]
    zeros = [place for place, held in enumerate(parent) if not held]
    count = min(_few(switches, draw), len(ones), len(zeros))
    now = list(parent)
    for places, value in ((ones, 0), (zeros, 1)):
        for i in torch.randperm(len(places), generator=draw)[:count].tolist():
            now[places[i]] = value
    return tuple(now)


def _few(most: int, draw: torch.Generator) -> int:
    return int(torch.randint(1, most + 1, (2,), generator=draw).min())


def _pick(options: Sequence[tuple[int, int]], draw: torch.Generator) -> tuple[int, int]:
    return options[int(torch.randint(len(options), (1,), generator=draw))]


def _moves(now: Sequence[int], costs: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """(place, choice) of every move by one choice."""
    steps = ((place, at + step) for place, at in enumerate(now) for step in (-1, 1))
    return [(place, choice) for place, choice in steps if 0 <= choice < len(costs[place])]


def _pays(now: Sequence[int], costs: Sequence[Sequence[int]], move: tuple[int, int], debt: int) -> bool:
    place, choice = move
    change = costs[place][choice] - costs[place][now[place]]
    return change * debt < 0 and abs(change) <= abs(debt)
