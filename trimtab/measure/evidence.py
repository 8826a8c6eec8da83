"""What the two sides of a claim came to, cell by cell: under two recipes the losses of the same windows of text, or two
findings of a probe in the same blocks of a model. Everything behind it (intervals, statuses, the ledger) is the same for both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trimtab.core.card import Claim
from trimtab.core.errors import UsageError
from trimtab.core.kinds import ProbeMethod
from trimtab.core.observed import Observed
from trimtab.core.progress import Watcher, unwatched
from trimtab.core.recipe import Recipe
from trimtab.measure.finding_store import FindingStore, modules_of_probe
from trimtab.measure.findings import Reading
from trimtab.measure.side_store import Ground, SideStore, counting, modules_of
from trimtab.measure.sides import Setting, Side

VALUES = {"ppl": ("left_ppl", "right_ppl"), "finding": ("left_values", "right_values")}  # one number per seed
Units = list[dict[int, float]]


@dataclass(frozen=True)
class Evidence:
    """left, right: [seeds, windows or blocks] float64. unit: of left - right. said: what else goes into the ledger's line."""

    left: Tensor
    right: Tensor
    unit: str
    said: dict[str, Any]


def gathered(claim: Claim, setting: Setting, ground: Ground, watch: Watcher = unwatched, base: bool = True) -> Evidence:
    """Measured or remembered. base: also the model as it came, for claims about recipes."""
    if claim.metric == "finding":
        return _observed(claim, FindingStore(setting, ground), watch)
    store = SideStore(setting, ground)
    *first, left, right = store.sides(_expressions(claim, base), watch)
    said: dict[str, Any] = {
        "left_ppl": [perplexity_of(side) for side in left],
        "right_ppl": [perplexity_of(side) for side in right],
        **({"base_ppl": perplexity_of(first[0][0])} if base else {}),
        "left_bits": left[0].bits,
        "right_bits": right[0].bits,
        "seconds": round(sum(side.seconds for side in (*left, *right)), 1),
    }
    return Evidence(_losses(left), _losses(right), "nats per token, left - right", said)


def missing(claim: Claim, setting: Setting, ground: Ground, base: bool = True) -> int:
    """How much of it would have to be measured, at most."""
    if claim.metric == "finding":
        store = FindingStore(setting, ground)
        return sum(store.missing(method) for method in _probes(claim))
    return SideStore(setting, ground).missing(_expressions(claim, base))


def modules(claim: Claim) -> list[str]:
    """What measures the sides."""
    if claim.metric == "finding":
        return [name for method in _probes(claim) for name in modules_of_probe(method)]
    return modules_of((Recipe.of(claim.left), Recipe.of(claim.right)))


def perplexity_of(side: Side) -> float:
    return float(side.losses.mean().exp())


def _expressions(claim: Claim, base: bool) -> tuple[str | None, ...]:
    return (None, claim.left, claim.right) if base else (claim.left, claim.right)


def _losses(sides: Sequence[Side]) -> Tensor:
    return torch.stack([side.losses for side in sides])


def _probes(claim: Claim) -> list[ProbeMethod]:
    found = [side.probe for side in _both(claim) if side.probe is not None]
    return found[:1] if len(found) == 2 and found[0] == found[1] else found


def _both(claim: Claim) -> tuple[Observed, Observed]:
    return Observed.of(claim.left), Observed.of(claim.right)


def _observed(claim: Claim, store: FindingStore, watch: Watcher) -> Evidence:
    probes, seeds = _probes(claim), len(store.setting.seeds)
    counted = counting(watch, len(probes) * seeds)
    readings = {str(method): store.readings(method, counted) for method in probes}
    sides = [_by_unit(side, readings, seeds) for side in _both(claim)]
    units = _shared(claim, *sides)
    left, right = (_cells(side, units, seeds) for side in sides)
    said = {
        **{name: cells.mean(1).tolist() for name, cells in zip(VALUES["finding"], (left, right), strict=True)},
        "seconds": round(sum(one.seconds for some in readings.values() for one in some), 1),
    }
    return Evidence(left, right, "of the finding, left - right", said)


def _by_unit(side: Observed, readings: Mapping[str, Sequence[Reading]], seeds: int) -> float | Units:
    """A number for all units, or by seed and unit."""
    return side.value if side.probe is None else [side.of_units(reading.found) for reading in readings[str(side.probe)]]


def _shared(claim: Claim, left: float | Units, right: float | Units) -> list[int]:
    """Units that both sides have with every seed. Raises `UsageError` where the sides are of different ones."""
    known = [one.keys() for side in (left, right) if not isinstance(side, float) for one in side]
    if not known:
        raise UsageError(f"the claim {claim.name} compares two numbers; one side must be a finding")
    if any(keys != known[0] for keys in known):
        raise UsageError(f"the sides of the claim {claim.name} are about different blocks; name findings of the same ones")
    return sorted(known[0])


def _cells(side: float | Units, units: Sequence[int], seeds: int) -> Tensor:
    """[seeds, units], also of a number."""
    if isinstance(side, float):
        return torch.full((seeds, len(units)), side, dtype=torch.float64)
    return torch.tensor([[one[unit] for unit in units] for one in side], dtype=torch.float64)
