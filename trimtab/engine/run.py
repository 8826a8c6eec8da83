"""A recipe becomes edits becomes a smaller model: one runner per kind, and nothing else.

Adjacent linear steps share one pass over the model: a matrix goes through all of them before the stream moves on.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from trimtab.anatomy import Anatomy
from trimtab.core.errors import CalibrationError, UsageError
from trimtab.core.kinds import BlockMethod, LinearMethod, LinearWeight, Statistic, Storage, Trials
from trimtab.core.places import Site
from trimtab.core.progress import Progress, Watcher, unwatched
from trimtab.core.recipe import Recipe, Step
from trimtab.core.registry import kind
from trimtab.core.report import Profile, Receipt
from trimtab.core.seeds import Seeds
from trimtab.core.taught import School
from trimtab.engine.channels import narrow
from trimtab.engine.depot import Depot, Filed
from trimtab.engine.folding import fold
from trimtab.engine.memory import kept_heap
from trimtab.engine.observing import determined, is_statistic, observe
from trimtab.engine.packed_linear import nothing_kept_unpacked
from trimtab.engine.passes import notes
from trimtab.engine.plan import plan, resolve
from trimtab.engine.references import others
from trimtab.engine.resume import UNKEPT, Begun, Keeper, Place, block_done, done_already, phase_done, strengths_chosen, take_up
from trimtab.engine.rewriting import rewrite
from trimtab.engine.search import Judging, trials
from trimtab.engine.shelf import Shelf
from trimtab.engine.solving import Shared, Work, solve
from trimtab.engine.storage import Files
from trimtab.engine.sweep import Stats, Stream
from trimtab.engine.teaching import teach
from trimtab.engine.tuning import tune
from trimtab.formats import Masked
from trimtab.tensors.products import fast_products


@dataclass
class Bench:
    """What the runners share: the model being worked on, what it is shown, and the record of what was done."""

    model: torch.nn.Module
    batches: list[Tensor]
    seeds: Seeds
    watch: Watcher
    packed: bool
    recipe: Recipe
    before: int  # bytes of all tensors
    compute: torch.dtype = torch.float32
    bases: Mapping[str, torch.nn.Module] = field(default_factory=dict)  # other models, by what the recipe calls them
    profile: Profile = field(default_factory=Profile)
    receipts: list[Receipt] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    drew: bool = False  # whether any method asked for randomness
    held: dict[str, Masked] = field(default_factory=dict)  # by site name: masks that later steps have to know
    keeper: Keeper = UNKEPT
    depot: Depot | None = None  # where the blocks are, if they are not in memory
    place: Place = field(default_factory=Place)
    begun: Begun | None = None  # the phase that an earlier process was in, until it is taken up
    judging: Judging | None = None  # how candidates are judged where a method searches
    school: School | None = None  # who trains where a method is taught
    teacher: torch.nn.Module | None = None  # the model before the first step, where a method needs it
    encode: Callable[[str], Sequence[int]] | None = None  # what the tokens of a text before the windows are

    def stored_bits(self, weight: LinearWeight) -> float:
        """Bits per weight as it will be written: sparse matrices are written with their zeros unless `packed`."""
        return 8.0 * weight.values.itemsize if isinstance(weight, Masked) and not self.packed else weight.bits

    def stream(self, anatomy: Anatomy) -> Stream:
        """The calibration set before the first block."""
        if self.depot is None:
            return Stream(anatomy, self.batches, self.profile, self.compute)
        hidden = Filed(self.depot.folder)
        return Stream(anatomy, self.batches, self.profile, self.compute, hidden, self.depot.present)

    def at(self, block: int | None) -> AbstractContextManager[None]:
        """Inside, a block is in memory and may be changed."""
        return nullcontext() if self.depot is None else self.depot.at(block)

    def present(self, block: int | None) -> AbstractContextManager[None]:
        """Inside, a block is in memory to be looked at."""
        return nullcontext() if self.depot is None or block is None else self.depot.present(block)

    def weight(self, anatomy: Anatomy, site: Site) -> LinearWeight:
        held = self.held.get(site.name)
        if held is not None and held.shape == site.shape:
            return held
        return anatomy.weight(site) if self.depot is None else self.depot.weight(anatomy, site)


def run(
    model: torch.nn.Module,
    recipe: Recipe,
    batches: Sequence[Tensor],
    watch: Watcher = unwatched,
    packed: bool = False,
    bases: Mapping[str, torch.nn.Module] | None = None,
    keeper: Keeper = UNKEPT,
    depot: Depot | None = None,
    judging: Judging | None = None,
    school: School | None = None,
    teacher: torch.nn.Module | None = None,
    encode: Callable[[str], Sequence[int]] | None = None,
) -> Bench:
    """Carry a recipe out on a model, in place. batches: token ids [windows, length] each.

    packed: store sparse results as bitmap and values instead of plain matrices with zeros, which open everywhere.
    bases: the other models that the recipe compares with, by the names it gives them (`references.named`).
    keeper: told of every unit of work that is done. Where it has what an earlier process left, the run goes on from there;
    the model is then to be the one it was given before, or the last one that the keeper was given as a whole.
    depot: where the model's blocks are, if they are not in memory; then all steps are linear ones, and none searches.
    judging: how methods that search judge candidates; by default on the batches, which a note then says.
    school, teacher: who trains where a method is taught, and the untouched model where it learns from that.
    encode: makes ids of a text that stands before the windows, what opens every text first (`data.windows.leading`).
    Raises what `plan` raises before any weight moves, and `CalibrationError` where what was seen decides nothing.
    """
    with nothing_kept_unpacked():
        if keeper.record is None:  # else the plan was checked on the untouched model, which is not there any more
            before = plan(anatomy := Anatomy.of(model), recipe, packed).bytes_before
            others(anatomy, recipe, bases or {})
        else:
            before = int(keeper.record["before"])
    compute, seeds = getattr(torch, recipe.calibration.compute), Seeds(recipe.seed)
    bench = Bench(model, list(batches), seeds, watch, packed, recipe, before, compute, bases or {}, keeper=keeper, depot=depot)
    bench.judging, bench.school, bench.teacher, bench.encode = judging, school, teacher, encode
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), fast_products(), kept_heap() if depot is None else nullcontext(), nothing_kept_unpacked():
            _carry_out(bench)
        bench.notes += notes(model, compute) if "forward" in bench.profile.seconds else []
    finally:
        model.train(training)
    return bench


def _carry_out(bench: Bench) -> None:
    phases = _phases(bench.recipe.steps)
    for number in range(take_up(bench), len(phases) + 1):  # one more: all may be done already
        steps = phases[number] if number < len(phases) else []
        linear = bool(steps) and isinstance(steps[0][1].method, LinearMethod)
        if done_already(bench, number, linear) or not steps:
            continue
        again = bench.keeper.record is not None and number < bench.keeper.record["phase"]
        _RUNNERS[kind(type(steps[0][1].method))](bench, steps)
        if not again:
            phase_done(bench, number, linear)


Numbered = tuple[int, Step]


def _phases(steps: Iterable[Step]) -> list[list[Numbered]]:
    """Adjacent linear steps that carry the same activations together, everything else alone."""

    def key(numbered: Numbered) -> Any:
        number, step = numbered
        together = isinstance(step.method, LinearMethod) and not isinstance(step.method, BlockMethod)
        return step.method.carry if together else number

    return [list(group) for _, group in groupby(enumerate(steps, 1), key)]


def _linear(bench: Bench, steps: list[Numbered]) -> None:
    begun, bench.begun = bench.begun, None
    anatomy = Anatomy.of(bench.model)
    work = _strengths(bench, anatomy, steps) if begun is None else _recalled(anatomy, steps, begun)
    if begun is None:
        strengths_chosen(bench, work)
    _through(bench, anatomy, steps[0][1].method, work, begun)  # type: ignore[arg-type]
    bench.watch(Progress("sweep", len(anatomy.blocks), len(anatomy.blocks)))


def _through(bench: Bench, anatomy: Anatomy, method: LinearMethod, work: Work, begun: Begun | None) -> None:
    """Take all blocks through the phase that begins with this method."""
    learned = isinstance(method, BlockMethod)
    with bench.depot or Shelf(anatomy, use=learned or _needs_data(work)) as shelf:
        if learned:
            ((number, chosen),) = work.items()  # never together with other steps
            tune(bench, anatomy, number, chosen, shelf, begun)  # type: ignore[arg-type]
        else:
            _sweep(bench, anatomy, work, method.carry, shelf, begun)


def _sweep(bench: Bench, anatomy: Anatomy, work: Work, carry: str, shelf: Shelf | Depot, begun: Begun | None) -> None:
    stream = bench.stream(anatomy) if _needs_data(work) else None
    beside = bench.stream(anatomy) if _needs_pairs(work) else None
    sites = [site for site in anatomy.sites if any(site in chosen for chosen in work.values())]
    streams = [s for s in (stream, beside) if s is not None]
    if begun is not None:
        begun.take_up(streams)
    shelf.rest()  # the embedding was read
    for block in range(begun.blocks if begun else 0, len(anatomy.blocks)):
        with shelf.at(block):
            _block(bench, anatomy, block, work, stream, carry, beside)
            if stream is not None and carry == "compressed" and block + 1 < len(anatomy.blocks):
                stream.advance(block)
            kept = block_done(bench, anatomy, block, sites, streams)
        if kept:
            shelf.rest()  # weights of other blocks were read
    with shelf.at(None):
        _block(bench, anatomy, None, work, stream, carry, beside)
    block_done(bench, anatomy, None, sites, streams)


def _block(
    bench: Bench, anatomy: Anatomy, block: int | None, work: Work, stream: Stream | None, carry: str, beside: Stream | None
) -> None:
    """Take a block's matrices through all steps of the phase. Nothing that was collected for it outlives this."""
    sites = [s for s in anatomy.sites if s.block == block and any(s in chosen for chosen in work.values())]
    stats: dict[Site, Stats] = {}
    if stream is not None and block is not None:
        needs = {site: _statistics(work, site) for site in sites}
        stats = stream.collect(block, needs, advance=carry == "original", beside=beside).sites
    elif stream is not None:
        _refuse_outside(work, sites)
    shared: Shared = {}
    for site in sites:
        bench.watch(Progress("sweep", block or 0, len(anatomy.blocks), site.name))
        solve(bench, anatomy, site, work, stats.get(site, {}), shared)


def _strengths(bench: Bench, anatomy: Anatomy, steps: list[Numbered]) -> Work:
    """The method of each step at every site it works on, as strong as its allocator says."""
    first = steps[0][0]  # what earlier steps named may be gone
    sites = [resolve(anatomy, step.where)[0] if n >= first else () for n, step in enumerate(bench.recipe.steps, 1)]
    files = Files(anatomy, bench.recipe, sites, bench.packed, bench.before)
    work: Work = {}
    for number, step in steps:
        assert isinstance(step.method, LinearMethod)
        if step.by is not None and Trials in step.by.needs and work:
            raise UsageError(
                f"{step.by.card.id} judges candidates before {steps[0][1]} is done; put that into a recipe of its own"
            )
        for site in sites[number - 1]:  # again: an earlier step may have changed the shapes that the plan saw
            step.method.fits(site)
        work[number] = _allotted(bench, anatomy, number, step, sites[number - 1], files)
        files.choose(work[number])
    return work


def _recalled(anatomy: Anatomy, steps: list[Numbered], begun: Begun) -> Work:
    """What `_strengths` said when the phase began. The model has changed since, so that allocators cannot be asked again."""
    work: Work = {}
    for number, step in steps:
        assert isinstance(step.method, LinearMethod)
        chosen = begun.strengths.get(number, {})
        sites = resolve(anatomy, step.where)[0]
        work[number] = {
            s: step.method if step.by is None else replace(step.method, **{step.by.knob: chosen[s.name]}) for s in sites
        }
    return work


def _allotted(
    bench: Bench, anatomy: Anatomy, number: int, step: Step, sites: Sequence[Site], files: Files
) -> dict[Site, LinearMethod]:
    assert isinstance(step.method, LinearMethod)
    if step.by is None:
        return dict.fromkeys(sites, step.method)
    draw = Seeds(bench.seeds.seed).at("by", number)
    level = partial(_level, bench, number, step, sites)
    with determined(step.by.card.id), trials(bench, anatomy, number, step, sites, level) as search:
        seen = observe(bench, anatomy, step.by.needs, sites, draw, {Storage: files.storage(number, sites), Trials: search})
        chosen = step.by.allocate(sites, seen)
    bench.drew |= seen.drew
    bench.notes += [f"{step.by.card.id}: {name} {value}" for name, value in seen.notes.items()]
    return {site: replace(step.method, **{step.by.knob: chosen[site]}) for site in sites}


def _level(bench: Bench, number: int, step: Step, sites: Sequence[Site], strength: Any) -> dict[str, LinearWeight]:
    """What the step would make of every site, were it as strong everywhere. The model stays as it is."""
    assert step.by is not None
    method = replace(step.method, **{step.by.knob: strength})
    assert isinstance(method, LinearMethod)
    other = replace(
        bench, model=deepcopy(bench.model), receipts=[], notes=[], held=dict(bench.held), keeper=UNKEPT, place=Place()
    )
    other.watch = lambda now: bench.watch(replace(now, phase=f"{step.by.knob}={strength}"))  # type: ignore[union-attr]
    anatomy, work = Anatomy.of(other.model), {number: dict.fromkeys(sites, method)}
    _through(other, anatomy, method, work, None)
    return {site.name: other.weight(anatomy, site) for site in sites}


def _needs_data(work: Work) -> bool:
    return any(is_statistic(need) for chosen in work.values() for m in set(chosen.values()) for need in m.needs)


def _needs_pairs(work: Work) -> bool:
    needed = {need for chosen in work.values() for m in set(chosen.values()) for need in m.needs if is_statistic(need)}
    return any(need.on == "pair" for need in needed)  # type: ignore[attr-defined]


def _statistics(work: Work, site: Site) -> tuple[type[Statistic], ...]:
    wanted = [n for chosen in work.values() if site in chosen for n in chosen[site].needs if is_statistic(n)]
    return tuple(dict.fromkeys(wanted))


def _refuse_outside(work: Work, sites: Sequence[Site]) -> None:
    for site in sites:
        if _statistics(work, site):
            raise CalibrationError(
                f"{site.name} is outside of the blocks, where no inputs are collected; use a method without data there (rtn)"
            )


_RUNNERS = {"linear": _linear, "block": _linear, "channel": narrow, "model": rewrite, "scale": fold, "taught": teach}
