"""Which units survive when all of a model's units compete for one budget."""

from collections.abc import Sequence

import torch
from torch import Tensor


def keep_within(scores: Sequence[Tensor], costs: Sequence[int], sparsity: float) -> list[Tensor]:
    """Remove the lowest-scored units until `sparsity` of the total cost is gone, as nearly as whole units allow.

    scores: one [units] tensor per coupling, larger = keep; costs: of one unit of that coupling. Every coupling keeps its best
    unit. Returns one bool [units] tensor per coupling, True = survives. Ties go by coupling, then by unit.
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
            break
        keeps[which][unit] = False
        gone += costs[which]
    return keeps
