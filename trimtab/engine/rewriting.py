"""The whole model at once: it is shown to a model method, which proposes edits; one that promises to, keeps the logits."""

from __future__ import annotations

from contextlib import nullcontext
from time import perf_counter
from typing import TYPE_CHECKING, Any

from trimtab.anatomy import Anatomy
from trimtab.core.edits import DropBlock, Edits, Share
from trimtab.core.kinds import ModelMethod, Trials
from trimtab.core.recipe import Step
from trimtab.core.report import Receipt
from trimtab.engine.apply import apply
from trimtab.engine.observing import determined, observe
from trimtab.engine.preserving import preserved
from trimtab.engine.search import trials

if TYPE_CHECKING:
    from trimtab.engine.run import Bench


def rewrite(bench: Bench, steps: list[tuple[int, Step]]) -> None:
    """Carry out a step of a model method."""
    ((number, step),) = steps
    method, begun = step.method, perf_counter()
    assert isinstance(method, ModelMethod)
    anatomy = Anatomy.of(bench.model)
    draw = bench.seeds.at(number)
    with determined(method.card.id), trials(bench, anatomy, number, step, (), lambda _: {}) as search:
        seen = observe(bench, anatomy, method.needs, anatomy.sites, draw, {Trials: search})
        with bench.profile("solve"):
            edits = method.rewrite(anatomy, seen)
    bench.drew |= seen.drew
    before = _stored_bits(anatomy)
    held_to_it = preserved(bench.model, bench.batches[0][:1, :16], method.card.id) if method.preserves else nullcontext()
    with bench.profile("apply"), held_to_it:
        apply(anatomy, edits, bench.packed)
    after = _stored_bits(Anatomy.of(bench.model))
    weights = sum(s.shape[0] * s.shape[1] for s in anatomy.sites)
    notes = {**seen.notes, **_dropped(edits)}
    seconds = perf_counter() - begun
    receipt = Receipt(number, str(method), "model", "model", weights, before / weights, after / weights, seconds, None, notes)
    bench.receipts.append(receipt)
    bench.held.clear()


def _stored_bits(anatomy: Anatomy) -> float:
    return sum(anatomy.weight(s).bits * s.shape[0] * s.shape[1] for s in anatomy.sites)


def _dropped(edits: Edits) -> dict[str, Any]:
    blocks = [e.block for e in edits if isinstance(e, DropBlock)]
    shared = {str(e.block): e.source for e in edits if isinstance(e, Share)}
    return {**({"dropped_blocks": blocks} if blocks else {}), **({"shared_blocks": shared} if shared else {})}
