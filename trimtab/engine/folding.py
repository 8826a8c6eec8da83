"""Scales move from one side of a linear connection to the other: columns are multiplied, their source is divided.

A scale method is asked for every fold of the model, block by block in forward order, with what the untouched model shows;
since the function stays the same, nothing that is done to one fold changes what another one sees. Everything is computed in
float64 and stored in the model's dtype. Whether a norm's output goes anywhere else is not known beforehand: after each fold
the block has to answer a few tokens as before, or the fold is taken back and the notes say so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trimtab.anatomy import Anatomy
from trimtab.core.edits import Edit, Edits, SetParam, SetWeight
from trimtab.core.errors import CalibrationError, TrimtabError
from trimtab.core.kinds import LinearWeight, Original, Reference, ScaleMethod, Seen
from trimtab.core.places import Fold, Gain, Role, Rows, Site
from trimtab.core.progress import Progress
from trimtab.core.recipe import Recipe, Step
from trimtab.core.report import Receipt
from trimtab.engine.apply import apply
from trimtab.engine.plan import resolve
from trimtab.engine.preserving import preserved
from trimtab.engine.references import Matrices, base_of, others
from trimtab.engine.sweep import Stats, Stream
from trimtab.formats import Dense, Masked
from trimtab.formats.plain import plain

if TYPE_CHECKING:
    from trimtab.engine.run import Bench

# Change of what the block adds to the stream, relative, by the dtype of its matrices: their rounding, and nothing more.
SAME = {torch.float64: 1e-5, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def fold(bench: Bench, steps: Sequence[tuple[int, Step]]) -> None:
    """The runner of scale methods. Raises `TrimtabError` where nothing can be folded or the function did not stay."""
    ((number, step),) = steps
    anatomy = Anatomy.of(bench.model)
    with bench.profile("probe"):
        folds = _chosen(bench, anatomy, step)
    few = bench.batches[0][:1, :16]
    with preserved(bench.model, few, step.method.card.id):
        done = _Folding(bench, anatomy, number, step, few).all(folds)
    if not done:
        bench.notes.append(f"{step.method} has nothing to scale in this model")


def _chosen(bench: Bench, anatomy: Anatomy, step: Step) -> list[Fold]:
    """The folds all of whose consumers are meant, and both of whose sides are plain matrices."""
    meant = set(resolve(anatomy, step.where)[0])
    wanted = [f for f in anatomy.folds() if all(c in meant or c.role is Role.ROUTER for c in f.consumers)]
    found = [f for f in wanted if all(isinstance(anatomy.weight(s), Dense | Masked) for s in _matrices(f))]
    if not found:
        raise TrimtabError(f"{step.method.card.id}: there is no place in this model where a scale could be folded in")
    if left := [f.name for f in wanted if f not in found]:
        bench.notes.append(f"{step.method.card.id} left {len(left)} folds alone, e.g. {left[0]}: not a plain matrix any more")
    return found


def _matrices(fold: Fold) -> tuple[Site, ...]:
    return fold.consumers if isinstance(fold.source, Gain) else (*fold.consumers, fold.source.site)


def _whole(bench: Bench, anatomy: Anatomy, step: Step) -> dict[type, Mapping[Site, Tensor]]:
    """What the method is shown besides statistics: the model's matrices, and another model's."""
    found: dict[type, Mapping[Site, Tensor]] = {}
    if Reference in step.method.needs:
        found[Reference] = others(anatomy, Recipe((step,)), bench.bases)[base_of(step.method)]
    if Original in step.method.needs:
        inside = [site for site in anatomy.sites if site.block is not None]
        found[Original] = Matrices(lambda site: bench.weight(anatomy, site), inside)
    return found


class _Folding:
    """One step under way."""

    def __init__(self, bench: Bench, anatomy: Anatomy, number: int, step: Step, few: Tensor):
        assert isinstance(step.method, ScaleMethod)
        self.bench, self.anatomy, self.number, self.method = bench, anatomy, number, step.method
        self.few = Stream(anatomy, [few])
        self.statistics = [need for need in self.method.needs if need not in (Original, Reference)]
        self.whole = _whole(bench, anatomy, step)
        self.shared: dict[Any, Any] = {}

    def all(self, folds: Sequence[Fold]) -> int:
        """How many folds were scaled."""
        bench, anatomy = self.bench, self.anatomy
        stream = Stream(anatomy, bench.batches, bench.profile, bench.compute) if self.statistics else None
        done = 0
        for block in range(len(anatomy.blocks)):
            bench.watch(Progress("fold", block, len(anatomy.blocks)))
            here = [f for f in folds if f.block == block]
            stats: Mapping[Site, Stats] = {}
            if stream is not None:
                needs = {c: self.statistics for f in here for c in f.consumers}
                stats = stream.collect(block, needs, advance=True).sites
            done += sum(self.one(fold, stats) for fold in here)
            self.few.advance(block)
        bench.watch(Progress("fold", len(anatomy.blocks), len(anatomy.blocks)))
        return done

    def one(self, fold: Fold, stats: Mapping[Site, Stats]) -> bool:
        """Ask for a scale, move it, and look whether the block still says the same. False if nothing is moved."""
        begun = perf_counter()
        weights = {s: self.bench.weight(self.anatomy, s) for s in fold.consumers if s.role is not Role.ROUTER}
        shown = {need: {site: stats[site][need] for site in fold.consumers} for need in self.statistics}
        seen = Seen({**shown, **self.whole}, self.bench.seeds.at(self.number, fold.name), self.shared)
        with self.bench.profile("solve"):
            scale = self._asked(fold, weights, seen)
        self.bench.drew |= seen.drew
        if scale is None:
            return False
        with self.bench.profile("apply"):
            kept = self._moved(fold, scale)
        if not kept:
            self.bench.notes.append(
                f"{self.method.card.id} left {fold.name} alone: what it gives goes elsewhere too, a scale would change the model"
            )
            return False
        notes = {**seen.notes, "least": float(scale.min()), "most": float(scale.max())}
        self.bench.receipts.append(self._receipt(fold, weights, perf_counter() - begun, notes))
        return True

    def _asked(self, fold: Fold, weights: Mapping[Site, LinearWeight], seen: Seen) -> Tensor | None:
        """[in] float64 on the weights' device, or None. Raises where the answer breaks the protocol."""
        who = f"{self.method.card.id} at {fold.name}"
        try:
            scale = self.method.scale(fold, weights, seen)
        except ArithmeticError as error:
            cure = "; show more or other calibration text" if self.method.needs else ""
            raise CalibrationError(f"{who}: {error}{cure}") from error
        if scale is None:
            return None
        scale = scale.double()
        if scale.shape != (fold.width,) or not bool((scale.isfinite() & (scale > 0)).all()):
            raise CalibrationError(f"{who}: a scale is one positive number for each of {fold.width} channels")
        if not torch.equal(fold.pooled(scale, "amax"), -fold.pooled(-scale, "amax")):
            raise TrimtabError(f"{who}: columns that depend on the same output have different scales; see Fold.pooled")
        return scale

    def _moved(self, fold: Fold, scale: Tensor) -> bool:
        """Fold the scale in. False, and everything as before, if the block then says something else."""
        then = self._edits(fold, scale)
        there = [self._present(edit) for edit in then]
        before, entering = self._answer(fold.block), self.few.hidden[0]
        self._apply(then)
        dtype = plain(self.anatomy.weight(fold.consumers[0])).dtype  # type: ignore[arg-type]
        change = self._answer(fold.block) - before
        if bool(change.norm() <= SAME[dtype] * (before - entering).norm()):
            return True
        self._apply(there)
        return False

    def _answer(self, block: int) -> Tensor:
        """What the block makes of the few tokens, [1, length, width]."""
        entering = list(self.few.hidden)
        try:
            self.few.advance(block)
            return self.few.hidden[0]
        finally:
            self.few.hidden = entering

    def _apply(self, edits: Edits) -> None:
        apply(self.anatomy, edits, self.bench.packed)
        for edit in edits:
            if isinstance(edit, SetWeight) and isinstance(edit.weight, Masked) and edit.site.name in self.bench.held:
                self.bench.held[edit.site.name] = edit.weight

    def _edits(self, fold: Fold, scale: Tensor) -> Edits:
        source = self._norm(fold.source, scale) if isinstance(fold.source, Gain) else self._rows(fold.source, scale)
        return [*(SetWeight(site, self._scaled(site, scale)) for site in fold.consumers), *source]

    def _norm(self, source: Gain, scale: Tensor) -> Edits:
        norm = self.anatomy.model.get_submodule(source.path)
        gain = (norm.get_parameter("weight").detach().double() + source.offset) / scale - source.offset
        return [SetParam(f"{source.path}.weight", gain), *_bias(source.path, norm._parameters.get("bias"), scale)]

    def _rows(self, source: Rows, scale: Tensor) -> Edits:
        divisor = torch.ones(source.site.shape[0], dtype=scale.dtype, device=scale.device)
        divisor[source.rows.to(scale.device)] = scale
        matrix = SetWeight(source.site, self._scaled(source.site, 1 / divisor[:, None]))
        return [matrix, *_bias(source.site.path, self.anatomy.bias(source.site), divisor)]

    def _present(self, edit: Edit) -> Edit:
        """What takes the edit back: a copy of what is there, because experts are changed in place."""
        if isinstance(edit, SetWeight):
            return SetWeight(edit.site, self._scaled(edit.site, torch.ones(())))
        assert isinstance(edit, SetParam)
        return SetParam(edit.path, self.anatomy.model.get_parameter(edit.path).detach().clone())

    def _scaled(self, site: Site, factor: Tensor) -> Dense | Masked:
        """The matrix times a factor, [in] or [out, 1]; a copy. Raises `CalibrationError` if its dtype cannot hold it."""
        weight = self.bench.weight(self.anatomy, site)
        assert isinstance(weight, Dense | Masked)
        matrix = plain(weight)
        product = (matrix.double() * factor).to(matrix.dtype)
        if not bool(product.isfinite().all()):
            raise CalibrationError(f"{self.method.card.id}: {site.name} exceeds {matrix.dtype} when its scale is folded in")
        return Masked(product, weight.keep) if isinstance(weight, Masked) else Dense(product)

    def _receipt(self, fold: Fold, weights: Mapping[Site, LinearWeight], seconds: float, notes: dict[str, Any]) -> Receipt:
        count = sum(w.shape[0] * w.shape[1] for w in weights.values())
        bits = sum(self.bench.stored_bits(w) * w.shape[0] * w.shape[1] for w in weights.values()) / count
        return Receipt(self.number, str(self.method), fold.name, "scale", count, bits, bits, seconds, None, notes)


def _bias(path: str, bias: Tensor | None, divisor: Tensor) -> Edits:
    return [] if bias is None else [SetParam(f"{path}.bias", bias.detach().double() / divisor)]
