"""One matrix on its way through the steps of a phase: what each makes of it, what that cost, and the result in the model."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trimtab.anatomy import Anatomy
from trimtab.core.edits import SetParam, SetWeight
from trimtab.core.errors import CalibrationError, ModelError
from trimtab.core.kinds import LinearMethod, LinearWeight, Original, Seen
from trimtab.core.places import Site
from trimtab.core.report import Receipt
from trimtab.core.shifts import Shifts
from trimtab.engine import by_factor
from trimtab.engine.apply import apply
from trimtab.engine.observing import is_statistic
from trimtab.engine.plan import takes
from trimtab.engine.sweep import Stats
from trimtab.formats import Chain, Masked
from trimtab.stats import Gram

if TYPE_CHECKING:
    from trimtab.engine.run import Bench

Work = dict[int, dict[Site, LinearMethod]]
Shared = dict[tuple[int, Any], dict[Any, Any]]  # by step, and by what was seen: one input, one entry


def solve(bench: Bench, anatomy: Anatomy, site: Site, work: Work, stats: Stats, shared: Shared) -> None:
    """Take one matrix through all steps of the phase and put the result into the model."""
    weight = bench.weight(anatomy, site)
    original = weight.dense()
    if not bool(torch.isfinite(original).all()):
        raise ModelError(f"{site.name} has values that are not finite numbers; fetch the model again")
    shift: Tensor | None = None
    for number, chosen in work.items():
        if site not in chosen:
            continue
        method, before, begun = chosen[site], weight, perf_counter()
        common = shared.setdefault((number, tuple(map(id, stats.values())) or site.name), {})
        seen = Seen({**stats, Original: original}, bench.seeds.at(number, site.name), common)
        with bench.profile("solve"):
            weight = _solved(method, weight, seen, site)
        shift = _shifted(method, before, weight, seen, site, shift)
        bench.drew |= seen.drew
        bench.receipts.append(
            Receipt(
                number,
                str(method),
                site.name,
                weight.kind,
                original.numel(),
                bench.stored_bits(before),
                bench.stored_bits(weight),
                perf_counter() - begun,
                _output_error(original, weight, stats.get(Gram)),
                seen.notes,
            )
        )
    with bench.profile("apply"):
        apply(anatomy, [SetWeight(site, weight)], bench.packed)
        if shift is not None:
            present = anatomy.bias(site)
            apply(anatomy, [SetParam(f"{site.path}.bias", shift if present is None else present.double() + shift)])
    if isinstance(weight, Masked) and not bench.packed and max(work) < len(bench.recipe.steps):
        bench.held[site.name] = weight
    else:
        bench.held.pop(site.name, None)


def _shifted(
    method: LinearMethod, before: LinearWeight, solved: LinearWeight, seen: Seen, site: Site, so_far: Tensor | None
) -> Tensor | None:
    """What the bias [out] gets in all, None: nothing. Experts have none of their own."""
    more = method.shift(before, solved, seen) if isinstance(method, Shifts) and site.index is None else None
    if more is None:
        return so_far
    seen.note("bias", "holds the mean of what was left out; `error` is of the matrix alone")
    return more if so_far is None else so_far + more


def _solved(method: LinearMethod, weight: LinearWeight, seen: Seen, site: Site) -> LinearWeight:
    try:
        split = isinstance(weight, Chain) and not takes(method, Chain)
        solved = by_factor.solved(method, weight, seen, site) if split else method.solve(weight, seen, site)
    except ArithmeticError as error:
        cure = "; show more or other calibration text" if any(map(is_statistic, method.needs)) else ""
        raise CalibrationError(f"{method.card.id} at {site.name}: {error}{cure}") from error
    if not bool(torch.isfinite(solved.dense()).all()):
        raise CalibrationError(f"{method.card.id} at {site.name}: the result is not finite")
    return solved


def _output_error(original: Tensor, weight: LinearWeight, gram: Tensor | None) -> float | None:
    """||(W - W') X||^2 / ||W X||^2 over the calibration tokens."""
    if gram is None:
        return None
    change = original - weight.dense()
    whole = float(((original @ gram) * original).sum(dtype=torch.float64))
    return float(((change @ gram) * change).sum(dtype=torch.float64)) / whole if whole > 0 else None
