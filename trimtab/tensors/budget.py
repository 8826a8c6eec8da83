"""Which units survive when units compete for one budget, in one pool or in several."""

from collections.abc import Hashable, Sequence
from itertools import groupby

import torch
from torch import Tensor

Pools = Sequence[tuple[Sequence[int], float]]

_ROUNDS = 200  # of halving an interval: more than float64 can tell apart


def keep_within(scores: Sequence[Tensor], costs: Sequence[int], sparsity: float) -> list[Tensor]:
    """Remove the lowest-scored units until `sparsity` of the total cost is gone, as nearly as whole units allow.

    scores: one [units] tensor per coupling, larger = keep, -inf = goes whatever the budget; costs: of one unit of that coupling.
    Every coupling keeps its best unit. Where a dear unit is next and would overshoot by more than half of itself, it stays, and
    cheaper ones after it go. Returns one bool [units] tensor per coupling, True = survives. Ties go by coupling, then by unit.
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
    for score, which, unit in order:
        if score > -torch.inf and gone + costs[which] / 2 > budget:
            continue
        keeps[which][unit] = False
        gone += costs[which]
    return keeps


def keep_in_pools(scores: Sequence[Tensor], costs: Sequence[int], pools: Pools, budget: float) -> list[Tensor]:
    """The same where only couplings of a pool compete, and each pool has a budget of its own. budget: of all; both in cost.

    Pools of dear units choose first, each for itself. Those whose units are the cheapest lose what then is missing to the
    budget, in proportion to what they were asked for. Couplings in no pool stay whole.
    """
    keeps = [torch.ones(len(s), dtype=torch.bool) for s in scores]
    ranks = _ranks(costs, pools)
    for number, rank in enumerate(ranks):
        asked = sum(cost for _, cost in rank)
        left = budget - _gone(keeps, costs)
        factor = max(left, 0.0) / asked if number + 1 == len(ranks) and asked > 0 else 1.0
        for members, cost in rank:
            _choose(keeps, scores, costs, members, cost * factor)
    return keeps


def keep_on(scores: Sequence[Tensor], costs: Sequence[int], pools: Pools, budget: float) -> list[Tensor]:
    """The same where units go little by little: those that are gone, of score -inf, stay gone, and rounding does not add up.

    Every pool is asked for what is gone there at least, and for what it can lose at most; the others of its rank make that good
    in proportion. What whole units miss is asked of the next pool of a rank, so pools of one size may differ by a unit. Pools of
    dear units leave what the cheaper ones have lost, and no more than these can lose, so that a growing budget is met in the end.
    """
    keeps = [torch.ones(len(s), dtype=torch.bool) for s in scores]
    least = [cost * int((s == -torch.inf).sum()) for s, cost in zip(scores, costs, strict=True)]
    most = [cost * (len(s) - 1) for s, cost in zip(scores, costs, strict=True)]
    ranks = _ranks(costs, pools)
    for number, rank in enumerate(ranks):
        later = [which for others in ranks[number + 1 :] for members, _ in others for which in members]
        total = budget - _gone(keeps, costs)
        if later:
            half = max(costs[which] for which in rank[0][0]) / 2  # by which rounding may miss
            low, high = total - sum(most[i] for i in later) + half, total - sum(least[i] for i in later) - half
            if low > high:
                low = high = (low + high) / 2
            total = min(max(sum(cost for _, cost in rank), low), high)
        bounds = [(sum(least[which] for which in members), sum(most[which] for which in members)) for members, _ in rank]
        missed = 0.0
        for (members, _), part in zip(rank, _shared(total, [cost for _, cost in rank], bounds), strict=True):
            missed += part
            missed -= _choose(keeps, scores, costs, members, missed)
    return keeps


def keep_alike(
    scores: Sequence[Tensor], costs: Sequence[int], kinds: Sequence[Hashable], pools: Pools, budget: float
) -> list[Tensor]:
    """The same where couplings of one kind, [units] alike, keep equally many units: their n-th lowest ones go together or not
    at all, and are worth their mean. Pools of the same kinds become one."""
    names = list(dict.fromkeys(kinds))
    alike = [[which for which, kind in enumerate(kinds) if kind == name] for name in names]
    ordered = [score.double().sort(stable=True) for score in scores]
    means = [torch.stack([ordered[which].values for which in members]).mean(0) for members in alike]
    asked: dict[tuple[int, ...], float] = {}
    for members, cost in pools:
        joined = tuple(sorted({names.index(kinds[which]) for which in members}))
        asked[joined] = asked.get(joined, 0.0) + cost
    together = [sum(costs[which] for which in members) for members in alike]
    keeps = [torch.empty_like(score, dtype=torch.bool) for score in scores]
    for members, keep in zip(alike, keep_on(means, together, list(asked.items()), budget), strict=True):
        for which in members:
            keeps[which][ordered[which].indices] = keep.to(keeps[which].device)
    return keeps


def _ranks(costs: Sequence[int], pools: Pools) -> list[list[tuple[Sequence[int], float]]]:
    """Pools of equally dear units, the dearest first."""

    def dearest(pool: tuple[Sequence[int], float]) -> int:
        return max(costs[which] for which in pool[0])

    return [list(rank) for _, rank in groupby(sorted(pools, key=dearest, reverse=True), dearest)]


def _choose(keeps: list[Tensor], scores: Sequence[Tensor], costs: Sequence[int], members: Sequence[int], wanted: float) -> int:
    """Sets what the members of a pool keep; what they lose."""
    own = [costs[which] for which in members]
    whole = sum(len(scores[which]) * costs[which] for which in members)
    chosen = keep_within([scores[which] for which in members], own, wanted / whole)
    for which, keep in zip(members, chosen, strict=True):
        keeps[which] = keep
    return _gone(chosen, own)


def _gone(keeps: Sequence[Tensor], costs: Sequence[int]) -> int:
    return sum(int((~keep).sum()) * cost for keep, cost in zip(keeps, costs, strict=True))


def _shared(total: float, parts: Sequence[float], bounds: Sequence[tuple[float, float]]) -> list[float]:
    """In proportion to the parts, but each within its bounds, least and most; their sum is as near to `total` as these allow."""
    little = 1e-9 * max(sum(parts), 1.0)  # who is asked for nothing is asked last
    parts = [max(part, little) for part in parts]

    def at(factor: float) -> list[float]:
        return [min(max(factor * part, least), most) for part, (least, most) in zip(parts, bounds, strict=True)]

    low, high = 0.0, max(most / part for part, (_, most) in zip(parts, bounds, strict=True))
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(at(middle)) < total else (low, middle)
    return at(high)
