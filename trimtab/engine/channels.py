"""Coupled channels are scored all over the model, and the lowest vanish until the budget is met."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import TYPE_CHECKING

from torch import Tensor

from trimtab.anatomy import Anatomy
from trimtab.core.edits import Edits, Narrow, SetParam
from trimtab.core.errors import TrimtabError
from trimtab.core.kinds import ChannelMethod, Repairs, Seen
from trimtab.core.places import Coupling
from trimtab.core.recipe import Step
from trimtab.core.report import Receipt
from trimtab.engine.apply import apply
from trimtab.engine.budget import keep_within
from trimtab.engine.narrowing import narrows
from trimtab.engine.observing import observe
from trimtab.engine.sweep import Stream

if TYPE_CHECKING:
    from trimtab.engine.run import Bench


def narrow(bench: Bench, steps: Sequence[tuple[int, Step]]) -> None:
    """The runner of channel methods. Raises `TrimtabError` where the model has no channels that could go."""
    ((number, step),) = steps
    method, begun = step.method, perf_counter()
    assert isinstance(method, ChannelMethod)
    anatomy = Anatomy.of(bench.model)
    couplings = _separable(bench, anatomy, method)
    if not couplings:
        raise TrimtabError(f"{method.card.id}: this model has no separable {' or '.join(method.unit)} units")
    consumers = [c.consumer.site for c in couplings]
    watched = observe(bench, anatomy, method.needs, consumers, bench.seeds.at(number))
    local = {c: Seen({n: watched[n][c.consumer.site] for n in method.needs}, bench.seeds.at(number, c.name)) for c in couplings}
    with bench.profile("solve"):
        scores = [method.score(c, anatomy.weight(c.consumer.site), local[c]) for c in couplings]
        keeps = keep_within(scores, [c.cost for c in couplings], method.sparsity)
    edits: Edits = []
    for coupling, keep in zip(couplings, keeps, strict=True):
        if not bool(keep.all()):
            edits += _removal(method, anatomy, coupling, keep, local[coupling])
        bench.receipts.append(_narrowed(number, method, anatomy, coupling, keep, perf_counter() - begun))
        begun = perf_counter()
    with bench.profile("apply"):
        apply(anatomy, edits, bench.packed)


def _separable(bench: Bench, anatomy: Anatomy, method: ChannelMethod) -> list[Coupling]:
    """The couplings that can be narrowed in this model. Experts share one tensor: one of them alone cannot."""
    wanted = [c for c in anatomy.couplings() if c.unit in method.unit and c.units > 1]
    plain = [c for c in wanted if all(member.site.index is None for member in c.members)]
    with bench.profile("probe"):
        stream = Stream(anatomy, [bench.batches[0][:1, :16]])
        found = [c for c in plain if narrows(stream, c)]
    if left := [c.name for c in wanted if c not in found]:
        bench.notes.append(
            f"{method.card.id} left {len(left)} of {len(wanted)} sets of channels whole, e.g. {left[0]}: this family fixes them"
        )
    return found


def _removal(method: ChannelMethod, anatomy: Anatomy, coupling: Coupling, keep: Tensor, seen: Seen) -> Edits:
    edits: Edits = [Narrow(coupling, keep)]
    site = coupling.consumer.site
    added = method.repair(coupling, anatomy.weight(site), keep, seen) if isinstance(method, Repairs) else None
    if added is not None:
        present = anatomy.bias(site)
        edits.append(SetParam(f"{site.path}.bias", added if present is None else present.float() + added))
    return edits


def _narrowed(number: int, method: ChannelMethod, anatomy: Anatomy, coupling: Coupling, keep: Tensor, seconds: float) -> Receipt:
    weights = coupling.cost * coupling.units
    before = anatomy.weight(coupling.consumer.site).bits
    kept = int(keep.sum())
    notes = {"units_before": coupling.units, "units_after": kept}
    place, after = coupling.name, before * kept / coupling.units
    return Receipt(number, str(method), place, coupling.unit, weights, before, after, seconds, None, notes)
