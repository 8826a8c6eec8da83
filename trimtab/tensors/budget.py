"""Which units survive when units compete for one budget, in one pool or in several."""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

Pools = Sequence[tuple[Sequence[int], float]]


def keep_within(scores: Sequence[Tensor], costs: Sequence[int], sparsity: float) -> list[Tensor]:
    """Remove the lowest-scored units until `sparsity` of the total cost is gone, as nearly as whole units allow.

    scores: one [units] tensor per coupling, larger = keep; costs: of one unit of that coupling. Every coupling keeps its best
    unit. Where a dear unit is next and would overshoot by more than half of itself, it stays, and cheaper ones after it go.
    Returns one bool [units] tensor per coupling, True = survives. Ties go by coupling, then by unit.
    """
    keeps = [torch.ones(len(s), dtype=torch.bool) for s in scores]
    budget = sparsity * sum(len(s) * c for s, c in zip(scores, costs, strict=True))
    order = sorted(
        (float(score), which, unit)
        for which, unit_scores in enumerate(scores)
        for unit, score in enumerate(unit_scores.double().tolist())
        if unit != int(unit_scores.argmax())
    )
    gone = 0
    for _, which, unit in order:
        if gone + costs[which] / 2 > budget:
            continue
        keeps[which][unit] = False
        gone += costs[which]
    return keeps


def keep_in_pools(
    scores: Sequence[Tensor], costs: Sequence[int], pools: Pools, budget: float, carried: bool = False
) -> list[Tensor]:
    """The same where only couplings of a pool compete, and each pool has a budget of its own. budget: of all; both in cost.

    Pools of dear units choose first, each for itself. Those whose units are the cheapest lose what then is missing to the
    budget, in proportion to what they were asked for. Couplings in no pool stay whole. carried: what whole units miss in a pool
    is asked of the next one of its rank, so that rounding does not add up; pools of one size may then differ by a unit.
    """
    keeps = [torch.ones(len(s), dtype=torch.bool) for s in scores]

    def dearest(pool: tuple[Sequence[int], float]) -> int:
        return max(costs[which] for which in pool[0])

    ranks = [list(rank) for _, rank in groupby(sorted(pools, key=dearest, reverse=True), dearest)]
    for number, rank in enumerate(ranks):
        asked = sum(cost for _, cost in rank)
        left = budget - sum(int((~keep).sum()) * cost for keep, cost in zip(keeps, costs, strict=True))
        factor = max(left, 0.0) / asked if number + 1 == len(ranks) and asked > 0 else 1.0
        missed = 0.0
        for members, cost in rank:
            whole = sum(len(scores[which]) * costs[which] for which in members)
            wanted = cost * factor + missed
            chosen = keep_within([scores[i] for i in members], [costs[i] for i in members], wanted / whole)
            for which, keep in zip(members, chosen, strict=True):
                keeps[which] = keep
            if carried:
                missed = wanted - sum(int((~keep).sum()) * costs[which] for which, keep in zip(members, chosen, strict=True))
    return keeps
