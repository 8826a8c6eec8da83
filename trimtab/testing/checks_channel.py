"""What a channel method must keep: the budget, and that a narrowed model is the model without these channels."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trimtab.anatomy import Anatomy
from trimtab.core.kinds import ChannelMethod, LinearWeight, Repairs, Seen
from trimtab.core.places import Coupling
from trimtab.core.recipe import Recipe
from trimtab.engine.run import run
from trimtab.testing.checks_any import READ_BY_ENGINE
from trimtab.testing.problems import brief, expect, settings
from trimtab.testing.roundtrip import logits, ran, same_after_saving, shown
from trimtab.testing.tiny import tiny

FAMILIES = ("llama", "gpt_neox")  # grouped queries and a gated MLP; fused queries and a plain MLP with biases


def scores_every_unit(method: type[ChannelMethod]) -> None:
    for family in FAMILIES:
        for made in _own_settings(method):
            found = _scores(made, family)
            expect(bool(found), f"{family} has no {' or '.join(made.unit)} units")
            for coupling, score in found:
                expect(score.shape == (coupling.units,), f"{made}: {list(score.shape)} scores for {coupling.units} units")
                expect(bool(score.isfinite().all()), f"{made}: a score in {coupling.name} is not finite")
        for (coupling, score), (_, again) in zip(_scores(brief(method()), family), _scores(brief(method()), family), strict=True):
            expect(torch.equal(score, again), f"{method()} scores {coupling.name} differently the second time")


def keeps_everything_at_zero(method: type[ChannelMethod]) -> None:
    for family in FAMILIES:
        model, _ = ran(family, Recipe((brief(method(sparsity=0.0)),)))
        expect(torch.equal(logits(model), logits(tiny(family))), f"sparsity=0 changes {family}")


def meets_its_sparsity(method: type[ChannelMethod]) -> None:
    """To within the largest unit."""
    for family in FAMILIES:
        for sparsity in (0.2, 0.5):
            _, bench = ran(family, Recipe((brief(method(sparsity=sparsity)),)))
            whole = sum(r.weights for r in bench.receipts)
            unit = max(r.weights // r.notes["units_before"] for r in bench.receipts)
            kept = sum(r.weights * r.notes["units_after"] / r.notes["units_before"] for r in bench.receipts)
            off = abs((whole - kept) - sparsity * whole)
            expect(off <= unit, f"sparsity={sparsity} on {family}: {(whole - kept) / whole:.4f} was removed")


def equals_the_model_without_its_units(method: type[ChannelMethod]) -> None:
    """The narrowed model says what the dense one says with the removed inputs of each consumer zeroed, plus the repair."""
    for family in FAMILIES:
        for made in _own_settings(method):
            narrows_truly(made, family)


def is_the_same_after_saving(method: type[ChannelMethod]) -> None:
    for family in FAMILIES:
        same_after_saving(family, Recipe((brief(method(sparsity=0.3)),)))


def narrows_truly(method: ChannelMethod, family: str) -> None:
    """One method on one family, as above, at a sparsity at which whole heads go too."""
    record = _Record()
    model = tiny(family).double()
    run(model, Recipe((_spied(replace(method, sparsity=0.4), record),)), shown(model))
    expect(bool(record.kept), f"{method} removes nothing from {family} at sparsity=0.4")
    there, here = logits(_zeroed(tiny(family).double(), record)), logits(model)
    error = float((there - here).norm() / there.norm())
    expect(error < 1e-6, f"{method}: the narrowed {family} is off by {error:.2g} from the one with zeros")


def _own_settings(method: type[ChannelMethod]) -> list[Any]:
    """Without those of the knobs that the engine reads: they are the same for all methods."""
    default = brief(method())
    engines = READ_BY_ENGINE[ChannelMethod]
    return [
        made
        for made in map(brief, settings(method))
        if all(made.knobs()[k] == default.knobs()[k] for k in engines if k in made.knobs())
    ]


@dataclass
class _Record:
    """What a run decided, by name of the coupling."""

    kept: dict[str, Tensor] = field(default_factory=dict)
    added: dict[str, Tensor | None] = field(default_factory=dict)


def _spied(method: Any, record: _Record) -> Any:
    """The same method, writing down which units survive and what is added to the bias."""
    kind = type(method)

    def repair(self: Any, coupling: Coupling, weight: LinearWeight, keep: Tensor, seen: Seen) -> Tensor | None:
        alive = record.kept.get(coupling.name, torch.ones(len(keep), dtype=torch.bool)).clone()
        alive[alive.nonzero().flatten()] = keep  # in several rounds, those that were there before this one
        record.kept[coupling.name] = alive
        added = kind.repair(self, coupling, weight, keep, seen) if isinstance(method, Repairs) else None
        before = record.added.get(coupling.name)
        record.added[coupling.name] = added if before is None or added is None else before + added
        return added

    return type(kind.__name__, (kind,), {"repair": repair})(**method.knobs())


@torch.no_grad()
def _zeroed(model: PreTrainedModel, record: _Record) -> PreTrainedModel:
    anatomy = Anatomy.of(model)
    for coupling in anatomy.couplings():
        if coupling.name not in record.kept:
            continue
        site, added = coupling.consumer.site, record.added[coupling.name]
        module = anatomy.module(site)
        matrix = module.weight.T if site.transposed else module.weight
        matrix[:, coupling.consumer.indices[~record.kept[coupling.name]].flatten()] = 0
        if added is not None:
            present = anatomy.bias(site)
            module.bias = torch.nn.Parameter(added.to(matrix.dtype) + (0 if present is None else present))
    return model


def _scores(method: ChannelMethod, family: str) -> list[tuple[Coupling, Tensor]]:
    """What the method answers in a run that removes nothing."""
    kind, found = type(method), []

    def score(self: Any, coupling: Coupling, weight: LinearWeight, seen: Seen) -> Tensor:
        given: Tensor = kind.score(self, coupling, weight, seen)
        found.append((coupling, given))
        return given

    spied = type(kind.__name__, (kind,), {"score": score})(**{**method.knobs(), "sparsity": 0.0})
    ran(family, Recipe((spied,)))
    return found


CHECKS = (
    scores_every_unit,
    keeps_everything_at_zero,
    meets_its_sparsity,
    equals_the_model_without_its_units,
    is_the_same_after_saving,
)
