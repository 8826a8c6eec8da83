"""Coupled channels are scored, and the lowest of each pool vanish until the budget is met."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trimtab.anatomy import Anatomy
from trimtab.core.edits import Edits, Narrow, SetParam
from trimtab.core.errors import TrimtabError, UsageError
from trimtab.core.kinds import ChannelMethod, Original, Repairs, Seen
from trimtab.core.places import Coupling, Member, Unit
from trimtab.core.recipe import Step
from trimtab.core.report import Receipt
from trimtab.engine.apply import apply
from trimtab.engine.gradients import alone, backward
from trimtab.engine.narrowing import narrows
from trimtab.engine.observing import is_statistic, observe
from trimtab.engine.references import Matrices
from trimtab.engine.storage import tensors
from trimtab.engine.sweep import Stream
from trimtab.tensors.budget import keep_in_pools

if TYPE_CHECKING:
    from trimtab.engine.run import Bench

EXACT = 0.005  # a budget that is missed by more is said so
_NEARLY_HALF = 0.5 - 1e-6  # of a unit: less of it makes rounding to the nearest unit a rounding down


def narrow(bench: Bench, steps: Sequence[tuple[int, Step]]) -> None:
    """The runner of channel methods. Raises `TrimtabError` where the model has no channels that could go."""
    ((number, step),) = steps
    method, begun = step.method, perf_counter()
    assert isinstance(method, ChannelMethod)
    anatomy = Anatomy.of(bench.model)
    units = [u for u in method.unit if method.units in ("all", u)]
    first = {c.name: c for c in separable(bench, anatomy, method.card.id, units)}
    bits = {name: anatomy.weight(c.consumer.site).bits for name, c in first.items()}
    budget, owed = _budget(method, anatomy, list(first.values())), dict.fromkeys(first, 0.0)
    couplings, keeps = list(first.values()), dict[Coupling, Tensor]()
    for turn in range(1, method.rounds() + 1):
        if turn > 1:
            anatomy, couplings = Anatomy.of(bench.model), [after(c, keep) for c, keep in keeps.items()]
        gone = sum(first[c.name].cost * (first[c.name].units - c.units) for c in couplings)
        scored = _scored(bench, number, method, anatomy, couplings)
        left = budget - gone if turn == method.rounds() else None
        keeps = _kept(method, couplings, first, scored, owed, budget / method.rounds(), left)
        _remove(bench, method, anatomy, keeps, scored)
    kept = {c.name: int(keep.sum()) for c, keep in keeps.items()}
    bench.notes += _reached(method, first, kept, budget)
    seconds = (perf_counter() - begun) / len(first)
    bench.receipts += [_narrowed(number, method, c, bits[name], kept[name], seconds) for name, c in first.items()]


def after(coupling: Coupling, keep: Tensor) -> Coupling:
    """The coupling once only the units in `keep` are left: what stays moves up, in order."""
    members = []
    for member in coupling.members:
        alive, axis = member.indices[keep], 0 if member.axis == "rows" else 1
        shape = list(member.site.shape)
        shape[axis] = alive.numel()
        moved = torch.searchsorted(alive.flatten().sort().values, alive)
        members.append(Member(replace(member.site, shape=(shape[0], shape[1])), member.axis, moved))
    return replace(coupling, members=tuple(members))


def _remove(bench: Bench, method: ChannelMethod, anatomy: Anatomy, keeps: Mapping[Coupling, Tensor], scored: _Scored) -> None:
    edits: Edits = []
    for coupling, keep in keeps.items():
        if not bool(keep.all()):
            edits += _removal(method, anatomy, coupling, keep, scored.seen[coupling])
    with bench.profile("apply"):
        apply(anatomy, edits, bench.packed)


@dataclass
class _Scored:
    """scores: [units] each. seen: what a repair may look at. blocks: what pools are chosen by."""

    scores: dict[Coupling, Tensor]
    seen: dict[Coupling, Seen]
    blocks: Seen


def _budget(method: ChannelMethod, anatomy: Anatomy, couplings: Sequence[Coupling]) -> float:
    """How many of the couplings' weights shall go. Raises `UsageError` where the model has not so many in them."""
    coupled = sum(c.cost * c.units for c in couplings)
    if method.of == "coupled":
        return method.sparsity * coupled
    parameters = sum(t.numel() for t in tensors(anatomy.model))
    most = sum(c.cost * (c.units - 1) for c in couplings)
    if method.sparsity * parameters > most:
        raise UsageError(
            f"{method.card.id}: sparsity={method.sparsity} of {parameters} parameters is more than the {most} that can go, "
            f"{most / parameters:.3f} of them; use less"
        )
    return method.sparsity * parameters


def _scored(bench: Bench, number: int, method: ChannelMethod, anatomy: Anatomy, couplings: Sequence[Coupling]) -> _Scored:
    needs = [n for n in method.needs if n is not Original and getattr(n, "on", "") != "gradient"]
    consumers = [c.consumer.site for c in couplings]
    watched = observe(_looking(bench, method), anatomy, needs, consumers, bench.seeds.at(number))
    of_blocks = [n for n in needs if n.on == "block"]  # type: ignore[attr-defined]
    found = _Scored({}, {}, Seen({n: watched[n] for n in of_blocks}, bench.seeds.at(number)))
    for some, gradients in _by_block(bench, method, anatomy, couplings):
        for coupling in some:
            known: dict[type, Any] = {n: watched[n][coupling.consumer.site] for n in needs if n not in of_blocks}
            if Original in method.needs:
                known[Original] = Matrices(anatomy.weight, [m.site for m in coupling.members])
            place = bench.seeds.at(number, coupling.name)
            shown = Seen({**known, **gradients}, place)
            with bench.profile("solve"):
                found.scores[coupling] = method.score(coupling, anatomy.weight(coupling.consumer.site), shown)
            bench.drew |= shown.drew
            found.seen[coupling] = Seen(known, place)
    return found


def _looking(bench: Bench, method: ChannelMethod) -> Bench:
    """With the windows that the method asks for; with all where it does not say how many."""
    windows = method.knobs().get("windows")
    return bench if windows is None else replace(bench, batches=alone(bench.batches, windows))


def _by_block(
    bench: Bench, method: ChannelMethod, anatomy: Anatomy, couplings: Sequence[Coupling]
) -> Iterator[tuple[list[Coupling], dict[type, Any]]]:
    """Couplings, and the statistics on gradients of their matrices: a mapping by site each. These are not kept."""
    needs: list[Any] = [n for n in method.needs if is_statistic(n) and n.on == "gradient"]  # type: ignore[attr-defined]
    if not needs:
        yield list(couplings), {}
        return
    sites = list(dict.fromkeys(m.site for c in couplings for m in c.members))
    for block, stats in backward(bench, anatomy, needs, sites, method.knobs()["windows"]):
        some = [c for c in couplings if c.block == block]
        yield some, {need: {site: found[need] for site, found in stats.items()} for need in needs}


def _kept(
    method: ChannelMethod,
    couplings: Sequence[Coupling],
    first: Mapping[str, Coupling],
    scored: _Scored,
    owed: dict[str, float],
    part: float,
    left: float | None,
) -> dict[Coupling, Tensor]:
    """[units] bool by coupling, for one round.

    part: of the weights that were there at `first`, what every round takes. owed: by name, what a coupling was asked for and
    whole units did not meet; it changes. left: of the budget, in the last round, where everything has to be met; before, units
    only go once the whole of them is owed.
    """
    place = {c: i for i, c in enumerate(couplings)}
    sparsity = part / sum(c.cost * c.units for c in first.values())
    pools = [([c], sparsity) for c in couplings] if method.uniform else method.pools(couplings, sparsity, scored.blocks)
    several, asked = method.rounds() > 1, []
    for pool, fraction in pools:
        for c in pool:
            owed[c.name] += fraction * first[c.name].cost * first[c.name].units
        held_back = _NEARLY_HALF * max(c.cost for c in pool) if several else 0.0
        asked.append(([place[c] for c in pool], max(0.0, sum(owed[c.name] for c in pool) - held_back)))
    budget = sum(cost for _, cost in asked) if left is None else left
    scores = [scored.scores[c] for c in couplings]
    keeps = dict(zip(couplings, keep_in_pools(scores, [c.cost for c in couplings], asked, budget), strict=True))
    for c, keep in keeps.items():
        owed[c.name] -= c.cost * int((~keep).sum())
    return keeps


def _reached(method: ChannelMethod, first: Mapping[str, Coupling], left: Mapping[str, int], budget: float) -> list[str]:
    """What has to be said where a budget was not met."""
    gone = sum(c.cost * (c.units - left[name]) for name, c in first.items())
    if abs(gone - budget) <= EXACT * budget:
        return []
    return [f"{method.card.id} removed {gone} weights where {budget:.0f} were asked for: whole units come no nearer"]


def separable(bench: Bench, anatomy: Anatomy, who: str, units: Sequence[Unit]) -> list[Coupling]:
    """The couplings that can be narrowed in this model. Experts share one tensor: one of them alone cannot.

    Raises `TrimtabError` that says what is there instead, if there is none.
    """
    wanted = [c for c in anatomy.couplings() if c.unit in units]
    plain = [c for c in wanted if c.units > 1 and all(member.site.index is None for member in c.members)]
    with bench.profile("probe"):
        stream = Stream(anatomy, [bench.batches[0][:1, :16]])
        found = [c for c in plain if narrows(stream, c)]
    if not found:
        raise TrimtabError(
            f"{who}: this model has no separable {' or '.join(units) or 'such'} units; {_instead(anatomy, wanted)}"
        )
    if left := [c.name for c in wanted if c not in found and c.units > 1]:
        bench.notes.append(
            f"{who} left {len(left)} of {len(wanted)} sets of channels whole, e.g. {left[0]}: this family fixes them"
        )
    return found


def _instead(anatomy: Anatomy, wanted: Sequence[Coupling]) -> str:
    """What was seen where nothing could be used."""
    if not wanted:
        seen = sorted({f"{s.path.rpartition('.')[2]} ({s.role})" for s in anatomy.sites if s.block is not None})
        return f"no matrices were found between which channels are coupled, only {', '.join(seen)}"
    first = wanted[0]
    return f"seen: {len(wanted)} sets of channels, e.g. {first.name} with {first.units}: {_why(first)}"


def _why(coupling: Coupling) -> str:
    out, width = coupling.consumer.site.shape
    if any(m.site.index is not None for m in coupling.members):
        return "experts share one tensor"
    if coupling.units == 1:
        return "a single unit"
    if coupling.unit is Unit.NEURON and out == width:  # what is narrower meets the stream no more
        return "the module binds its width to the residual stream's, of which nothing was asked to go"
    return "the module fixes its width"


def _removal(method: ChannelMethod, anatomy: Anatomy, coupling: Coupling, keep: Tensor, seen: Seen) -> Edits:
    edits: Edits = [Narrow(coupling, keep)]
    site = coupling.consumer.site
    added = method.repair(coupling, anatomy.weight(site), keep, seen) if isinstance(method, Repairs) else None
    if added is not None:
        present = anatomy.bias(site)
        edits.append(SetParam(f"{site.path}.bias", added if present is None else present.float() + added))
    return edits


def _narrowed(number: int, method: ChannelMethod, coupling: Coupling, before: float, kept: int, seconds: float) -> Receipt:
    weights = coupling.cost * coupling.units
    notes = {"units_before": coupling.units, "units_after": kept, **({"last_unit_kept": True} if kept == 1 else {})}
    place, after = coupling.name, before * kept / coupling.units
    return Receipt(number, str(method), place, coupling.unit, weights, before, after, seconds, None, notes)
