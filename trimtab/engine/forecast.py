"""What a recipe will take, in bytes of memory and in seconds, before any weight moves.

Memory is counted: what a phase holds at once follows from shapes alone. Time is not: how long a method ponders over a matrix is
known to nobody but the method, so one block is gone through with a batch or a few of arbitrary tokens, each step is asked for the
matrices of that block, and what that took is multiplied. Nothing of it is put into the model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from statistics import median
from time import perf_counter
from typing import Any, TypeVar

import torch

from trimtab.anatomy import Anatomy
from trimtab.core.kinds import BlockMethod, LinearMethod, LinearWeight, Method, Original, ScaleMethod, Searches, Seen
from trimtab.core.places import Fold, Role, Rows, Site
from trimtab.core.recipe import Recipe, Step
from trimtab.core.seeds import Seeds
from trimtab.core.taught import TaughtMethod, Teacher
from trimtab.engine.judge import KEPT
from trimtab.engine.memory import kept_heap
from trimtab.engine.observing import is_statistic
from trimtab.engine.packed_linear import PackedLinear, nothing_kept_unpacked
from trimtab.engine.plan import resolve
from trimtab.engine.storage import tensors
from trimtab.engine.sweep import Stats, Stream
from trimtab.formats import is_plain
from trimtab.tensors.products import fast_products

T = TypeVar("T")
FIRST_USE = 50_000_000  # bytes that libraries of linear algebra and of text take when they are first used
LEARNT = 12  # copies of a matrix, of its kind: itself, its parameters with gradients and moments, the steps to its rounded form
FEW, LITTLE = 4, 2e10  # batches that are gone through, if one takes no more multiplications than that: calls cost, too
A_FEW = 16  # tokens by which a block is compared before and after a scale is moved
ENOUGH, MOST = 0.2, 6  # what is quicker than so many seconds is done so many times; the first time is for first uses
RETAINED = 2  # what a batch makes in a block is there twice, once kept for the way back


@dataclass(frozen=True)
class Expected:
    """Of one step: bytes that the process holds at most besides what it held before the model, and seconds (None: not asked)."""

    method: str
    memory: int
    seconds: float | None = None


@dataclass(frozen=True)
class Shown:
    """What the calibration set amounts to."""

    tokens: int
    length: int
    batch: int
    compute: torch.dtype

    @classmethod
    def by(cls, recipe: Recipe) -> "Shown":
        given = recipe.calibration
        windows = -(-given.tokens // given.length)
        return cls(windows * given.length, given.length, min(given.batch, windows), getattr(torch, given.compute))

    @property
    def batches(self) -> int:
        return -(-self.tokens // (self.length * self.batch))


def memory(anatomy: Anatomy, recipe: Recipe, offloaded: bool = False, apart: int = 0, process: int = 0) -> list[Expected]:
    """By step, on a machine with a disk for what is not worked on. offloaded: the blocks and the activations never leave it.

    apart: processes here that judge candidates, each with a model of its own, instead of this one; process: bytes that each of
    them holds before it opens anything.
    """
    held = outside(anatomy) if offloaded else sum(t.nbytes for t in tensors(anatomy.model))
    shown = Shown.by(recipe)
    found = []
    for step in recipe.steps:
        wanted = [n for m in (step.method, step.by) if m is not None for n in m.needs]
        data = [n for n in wanted if is_statistic(n)]
        pairs = any(getattr(n, "on", "") == "pair" for n in data)
        if isinstance(step.method, BlockMethod):
            found.append(Expected(str(step), FIRST_USE + max(held, _learning(anatomy, step.method, shown, offloaded))))
            continue
        if isinstance(step.method, TaughtMethod):
            found.append(Expected(str(step), FIRST_USE + held + _teaching(anatomy, step.method, shown)))
            continue
        if not data:
            block = max(sum(p.nbytes for p in b.parameters()) for b in anatomy.blocks) if offloaded else 0
            found.append(Expected(str(step), held + block + _work(anatomy, step)))
            continue
        weights = 0 if isinstance(step.method, LinearMethod) and not offloaded else held
        tokens = 2 * shown.batch * shown.length if offloaded else shown.tokens
        streams = (2 if pairs else 1) * tokens * _width(anatomy) * shown.compute.itemsize
        block = max(_block(anatomy, number, shown, len(data)) for number in range(len(anatomy.blocks)))
        found.append(Expected(str(step), FIRST_USE + max(held, weights + streams + block + _work(anatomy, step))))
    judging = [_judging(anatomy, step.by or step.method, held) for step in recipe.steps]
    all_of_them = [apart * (process + FIRST_USE + one) if one and apart else one for one in judging]
    return [replace(step, memory=step.memory + more) for step, more in zip(found, all_of_them, strict=True)]


def _learning(anatomy: Anatomy, method: BlockMethod, shown: Shown, offloaded: bool) -> int:
    """A window in float32 with its learners, what their gradients need, and the activations with and without the change."""
    depth = len(anatomy.blocks)
    sizes = [sum(p.numel() for p in block.parameters()) for block in anatomy.blocks]
    tokens = 2 * shown.batch * shown.length if offloaded else shown.tokens
    window = max(
        sum(4 * LEARNT * sizes[block] + RETAINED * _block(anatomy, block, shown, 0) for block in window)
        for window in method.windows(depth)
    )
    return window + 2 * tokens * _width(anatomy) * 4


def _teaching(anatomy: Anatomy, method: TaughtMethod, shown: Shown) -> int:
    """The model in float32, its teacher, what was seen before, what is trained with gradients and moments, and what one window
    makes on its way."""
    plain = sum(4 * p.numel() for p in anatomy.model.parameters() if p.dtype != torch.float32)
    teacher = sum(t.nbytes for t in tensors(anatomy.model)) if Teacher in method.needs else 0
    one = replace(shown, batch=1)
    passing = sum(RETAINED * _block(anatomy, block, one, 0) for block in range(len(anatomy.blocks)))
    stored = sum(p.nbytes for p in anatomy.blocks.parameters())
    answers = 4 * 4 * shown.length * anatomy.sites[0].shape[0]
    statistics = sum(is_statistic(need) for need in method.needs)
    seen = statistics * sum(_grams(anatomy, block) for block in range(len(anatomy.blocks)))
    return plain + teacher + seen + 4 * 4 * method.trained(anatomy) + passing - RETAINED * stored + answers


def _judging(anatomy: Anatomy, method: Method, held: int) -> int:
    """What a judge of candidates holds: a model of its own in float32, hidden states, log-probabilities."""
    if not isinstance(method, Searches):
        return 0
    tokens, parameters = method.held_out, sum(p.numel() for p in anatomy.blocks.parameters())  # type: ignore[attr-defined]
    states = 4 * tokens * _width(anatomy) * len(anatomy.blocks)
    return held + 4 * parameters + min(KEPT, states) + min(KEPT, 4 * tokens * anatomy.sites[0].shape[0])


def outside(anatomy: Anatomy) -> int:
    """Bytes of the model's tensors that are in no block."""
    inside = {id(p) for p in anatomy.blocks.parameters()}
    return sum(t.nbytes for t in tensors(anatomy.model) if id(t) not in inside)


def _block(anatomy: Anatomy, block: int, shown: Shown, statistics: int) -> int:
    """The block as it is stored and as it is computed with, what a batch makes in it, and the grams of its inputs."""
    stored = sum(p.nbytes for p in anatomy.blocks[block].parameters())
    cast = sum(p.numel() * shown.compute.itemsize for p in anatomy.blocks[block].parameters() if p.dtype != shown.compute)
    stages = anatomy.stages(block)
    batch = min(shown.batch * shown.length, shown.tokens)
    outputs = sum(site.shape[0] for stage in stages for site in stage if site.index is None)
    passing = batch * (outputs + 4 * _width(anatomy)) * shown.compute.itemsize + 4 * batch * max(s[0].shape[1] for s in stages)
    return stored + cast + passing + statistics * _grams(anatomy, block)


def _grams(anatomy: Anatomy, block: int) -> int:
    """Of all inputs in the block."""
    stages = anatomy.stages(block)
    return sum((len(stage) if stage[0].index is not None else 1) * stage[0].shape[1] ** 2 * 4 for stage in stages)


def _work(anatomy: Anatomy, step: Step) -> int:
    """What deciding about one matrix takes: a few copies of it in float32, and of its gram, in float64 where it is factored."""
    inside = [site for site in anatomy.sites if site.block is not None]
    needs = any(is_statistic(n) for n in step.method.needs)
    return max(4 * 4 * s.shape[0] * s.shape[1] + (24 * s.shape[1] ** 2 if needs else 0) for s in inside)


def _width(anatomy: Anatomy) -> int:
    return anatomy.sites[0].shape[1]


def seconds(anatomy: Anatomy, recipe: Recipe) -> list[float | None]:
    """By step; a pass that several share counts for the first. None where arbitrary tokens could not tell."""
    shown = Shown.by(recipe)
    with torch.no_grad(), fast_products(), kept_heap(), nothing_kept_unpacked():
        rehearsal = _Rehearsal(anatomy, shown, Seeds(recipe.seed))
        found: list[float | None] = []
        for linear, steps in groupby(recipe.steps, lambda step: _swept(step.method) and step.method.carry):  # type: ignore[attr-defined]
            together = list(steps)
            found += rehearsal.linear(together) if linear else [rehearsal.alone(step) for step in together]
    searches = [isinstance(step.by or step.method, Searches) for step in recipe.steps]  # their candidates tell, not one block
    return [None if search else took for search, took in zip(searches, found, strict=True)]


class _Rehearsal:
    """One block and one batch, or a few where that is quick, gone through as a run would."""

    def __init__(self, anatomy: Anatomy, shown: Shown, seeds: Seeds):
        self.anatomy, self.shown, self.seeds = anatomy, shown, seeds
        self.block = len(anatomy.blocks) // 2
        products = shown.batch * shown.length * sum(p.numel() for p in anatomy.blocks[self.block].parameters())
        batches = min(shown.batches, FEW if products < LITTLE else 1)
        count, device = anatomy.sites[0].shape[0], next(anatomy.model.parameters()).device
        ids = torch.randint(0, count, (batches, shown.batch, shown.length), generator=seeds.at("forecast"))
        self.ids = list(ids.to(device))
        record, self.stream = _timed(lambda: Stream(anatomy, self.ids, compute=shown.compute))
        self.record = record / batches

    def linear(self, steps: Sequence[Step]) -> list[float | None]:
        """Seconds of each of the steps that share a pass."""
        shown, blocks = self.shown, len(self.anatomy.blocks)
        data = [n for step in steps for n in step.method.needs if is_statistic(n)]
        looks = sum(self.looking(step.by) for step in steps if step.by is not None)
        passed, stats = 0.0, {}
        if data:
            passed, stats = self.passes(steps, data)
        found: list[float | None] = []
        weights = {s: self.anatomy.weight(s) for s in self.anatomy.block_sites(self.block)}
        for number, step in enumerate(steps):
            solving = self.solving(step, weights, stats)
            of_pass = looks + passed * shown.batches * blocks + (self.record * shown.batches if data else 0) if not number else 0
            found.append(None if solving is None else of_pass + solving)
        return found

    def passes(self, steps: Sequence[Step], data: Sequence[type]) -> tuple[float, dict[Site, Stats]]:
        """Seconds that a batch takes through one block, there and, if it was changed, back again; and what was seen."""
        needs = {s: tuple(dict.fromkeys(data)) for s in self.anatomy.block_sites(self.block) if s.role != "router"}
        pairs = any(getattr(n, "on", "") == "pair" for n in data)
        carry = steps[0].method.carry  # type: ignore[attr-defined]
        entering = list(self.stream.hidden)

        def through(beside: Stream | None) -> Any:
            seen = self.stream.collect(self.block, needs, advance=carry == "original", beside=beside)
            self.stream.hidden[:] = entering
            if carry == "compressed":
                self.stream.advance(self.block)
                self.stream.hidden[:] = entering
            return seen.sites

        def prepared() -> Callable[[], Any]:
            beside = Stream(self.anatomy, self.ids, compute=self.shown.compute) if pairs else None
            return lambda: through(beside)

        took, seen = _usual(prepared)
        return took / len(self.ids), seen

    def looking(self, method: Method) -> float:
        """Seconds of showing the whole model to everything, for a method that decides about all of it at once."""
        of_site = tuple(n for n in method.needs if is_statistic(n) and n.on == "input")  # type: ignore[attr-defined]
        of_block = tuple(n for n in method.needs if is_statistic(n) and n.on == "block")  # type: ignore[attr-defined]
        if not of_site and not of_block:
            return 0.0
        took, _ = self.shows(dict.fromkeys(self.anatomy.block_sites(self.block), of_site), of_block)
        return self.shown.batches * (took * len(self.anatomy.blocks) + self.record)

    def shows(self, wanted: Mapping[Site, Any], of_block: tuple[Any, ...] = ()) -> tuple[float, Any]:
        """Seconds of showing a batch to a block, and what was seen of all; the stream stays before it."""
        entering = list(self.stream.hidden)

        def show() -> Any:
            seen = self.stream.collect(self.block, wanted, of_block, advance=True)
            self.stream.hidden[:] = entering
            return seen

        took, seen = _usual(lambda: show)
        return took / len(self.ids), seen

    def solving(self, step: Step, weights: dict[Site, LinearWeight], stats: dict[Site, Stats]) -> float | None:
        """Seconds for all matrices of the step; what it makes of the block's goes to the next step. None: it could not."""
        method: Any = step.method
        if step.by is not None:
            method = replace(method, **{step.by.knob: getattr(method, step.by.knob)})
        sites = resolve(self.anatomy, step.where)[0]
        here = [s for s in sites if s.block == self.block]
        took, shared = 0.0, {}
        try:
            for site in here:
                known = shared.setdefault(tuple(map(id, stats.get(site, {}).values())) or site.name, {})
                before, given = dict(known), stats.get(site, {})
                spent, solved = self.solved(method, site, weights[site], given, known)
                if site is here[0] and spent < ENOUGH:  # whatever is done once was done then
                    known.clear()
                    known.update(before)
                    spent, solved = self.solved(method, site, weights[site], given, known)
                took, weights[site] = took + spent, solved
        except ArithmeticError:
            return None
        size = sum(s.shape[0] * s.shape[1] for s in here)
        return took * sum(s.shape[0] * s.shape[1] for s in sites) / size if size else 0.0

    def solved(
        self, method: LinearMethod, site: Site, weight: LinearWeight, stats: Stats, known: dict[Any, Any]
    ) -> tuple[float, LinearWeight]:
        """Seconds for one matrix, and what became of it. known: what matrices with the same input share, added to."""
        seen = Seen({**stats, Original: weight.dense()}, self.seeds.at("forecast", site.name), known)

        def work() -> LinearWeight:
            found = method.solve(weight, seen, site)
            torch.isfinite(found.dense()).all()
            if not is_plain(found):
                PackedLinear.of(found, None)  # what would be put into the model
            return found

        return _timed(work)

    def alone(self, step: Step) -> float | None:
        """Seconds of a step that shares no pass with others; None for what learns, which arbitrary tokens do not tell."""
        if isinstance(step.method, BlockMethod | TaughtMethod):
            return None
        return self.scaling(step) if isinstance(step.method, ScaleMethod) else self.other(step)

    def scaling(self, step: Step) -> float:
        """A step that moves scales: looking where it can, what it is shown, and its answer for the folds of the block."""
        method: Any = step.method
        data = [n for n in method.needs if is_statistic(n)]
        if len(data) < len(method.needs):  # the model itself, or another one: only what that is shown to is known here
            return self.other(step)
        search, folds = _timed(self.anatomy.folds)
        here = [fold for fold in folds if fold.block == self.block]
        needs = {site: tuple(data) for fold in here for site in fold.consumers}
        passed, seen = self.shows(needs)
        few = Stream(self.anatomy, [self.ids[0][:1, :A_FEW]])
        took = 0.0
        for fold in here:
            asked, moved = partial(self._asked, method, fold, data, seen.sites), partial(self._moved, fold, few)
            took += sum(_usual(lambda work=work: work)[0] for work in (asked, moved))  # type: ignore[misc]
        blocks = len(self.anatomy.blocks)
        return search + self.shown.batches * (self.record + passed * blocks) + took * blocks

    def _asked(self, method: ScaleMethod, fold: Fold, data: Sequence[type], stats: Mapping[Site, Stats]) -> None:
        weights = {site: self.anatomy.weight(site) for site in fold.consumers if site.role is not Role.ROUTER}
        shown: dict[Any, Any] = {need: {site: stats[site][need] for site in fold.consumers} for need in data}
        method.scale(fold, weights, Seen(shown, self.seeds.at("forecast", fold.name), {}))

    def _moved(self, fold: Fold, few: Stream) -> None:
        """As a scale is moved: copies of the matrices, for the way there and back, and the block's answer before and after."""
        rows = [fold.source.site] if isinstance(fold.source, Rows) else []
        for site in (*fold.consumers, *rows):
            matrix = self.anatomy.weight(site).dense()
            for _ in range(2):
                (matrix.double() * torch.ones(matrix.shape[1], dtype=torch.float64)).to(matrix.dtype).isfinite().all()
        for _ in range(2):
            entering = list(few.hidden)
            few.advance(self.block)
            few.hidden[:] = entering

    def other(self, step: Step) -> float:
        """A step on the whole model: what it is shown, and about one product per matrix."""
        inside = [s for s in self.anatomy.sites if s.block == self.block]
        product, _ = _timed(lambda: [self.anatomy.weight(s).dense() @ torch.eye(s.shape[1]) for s in inside])
        return self.looking(step.method) + product * len(self.anatomy.blocks)


def _swept(method: Method) -> bool:
    return isinstance(method, LinearMethod) and not isinstance(method, BlockMethod)


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    begun = perf_counter()
    made = work()
    return perf_counter() - begun, made


def _usual(prepared: Callable[[], Callable[[], T]]) -> tuple[float, T]:
    """What some work usually takes. prepared: makes it ready once more, which is not counted."""
    runs = [_timed(prepared())]
    while sum(spent for spent, _ in runs) < ENOUGH and len(runs) < MOST:
        runs.append(_timed(prepared()))
    return median(spent for spent, _ in runs[1:] or runs), runs[-1][1]


def activations(recipe: Recipe, width: int) -> int:
    """Bytes of the stream's activations: what fewer tokens would save."""
    shown = Shown.by(recipe)
    return shown.tokens * width * shown.compute.itemsize
