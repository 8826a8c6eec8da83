"""Learning the matrices of a block against what the untouched block answers: the one trainer of all block methods.

Two streams go through the model side by side, one through the blocks that are done, one through the untouched ones. The
learners of a window stand in for its matrices while AdamW lowers

    ||blocks(x) - blocks°(x°)||^2 / ||blocks°(x°)||^2

over the calibration set; x: what the blocks done so far make of it, x°: what the untouched ones do. Memory holds the window in
float32, the learners with their optimizer's state, and two sets of activations. A window that would end up worse than it began
stays as it began.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from math import cos, isfinite, pi
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call

from trimtab.anatomy import Anatomy
from trimtab.core.edits import SetWeight
from trimtab.core.errors import CalibrationError, RecipeError
from trimtab.core.feeding import Feeds
from trimtab.core.kinds import BlockMethod, Learner, Original, Seen
from trimtab.core.places import Site
from trimtab.core.progress import Progress
from trimtab.core.report import Receipt
from trimtab.engine.apply import apply
from trimtab.engine.observing import is_statistic
from trimtab.engine.packed_linear import PackedLinear
from trimtab.engine.resume import Begun, block_done

if TYPE_CHECKING:
    from trimtab.engine.depot import Depot
    from trimtab.engine.run import Bench
    from trimtab.engine.shelf import Shelf


def tune(
    bench: Bench, anatomy: Anatomy, number: int, work: Mapping[Site, BlockMethod], shelf: Shelf | Depot, begun: Begun | None
) -> None:
    """Carry out step `number`: learn the matrices in `work`, window by window, and put them into the model.

    Raises `RecipeError` for matrices outside of the blocks and for another precision than float32, `CalibrationError` where
    the loss is no number any more; what was done before is kept as always.
    """
    method = next(iter(work.values()))
    outside = [site.name for site in work if site.block is None]
    if outside:
        raise RecipeError(f"{method.card.id} learns matrices of blocks; leave {outside[0]} out")
    if bench.compute is not torch.float32:
        raise RecipeError(f"{method.card.id} learns in float32; leave `compute` out of the calibration")
    if any(map(is_statistic, method.needs)):
        raise RecipeError(f"{method.card.id} asks for statistics, which are not collected where blocks are learned")
    _Tuner(bench, anatomy, number, work, shelf, begun).run(method)


class _Tuner:
    """Where the work is: `done` blocks are learned and behind `inputs`, `shown` blocks are behind `targets`."""

    def __init__(
        self,
        bench: Bench,
        anatomy: Anatomy,
        number: int,
        work: Mapping[Site, BlockMethod],
        shelf: Shelf | Depot,
        begun: Begun | None,
    ):
        self.bench, self.anatomy, self.number, self.work, self.shelf = bench, anatomy, number, work, shelf
        self.inputs, self.targets = bench.stream(anatomy), bench.stream(anatomy)
        self.learners: dict[Site, Learner] = {}
        self.notes: dict[int, dict[str, float]] = {}  # by block, of the last window that it was in
        self.seconds: dict[int, float] = defaultdict(float)
        self.done = self.shown = begun.blocks if begun else 0
        if begun is not None:
            begun.take_up([self.inputs, self.targets])
        shelf.rest()

    def run(self, method: BlockMethod) -> None:
        depth = len(self.anatomy.blocks)
        windows = [window for window in method.windows(depth) if window.stop > self.done]
        for count, window in enumerate(windows):
            while self.done < window.start:
                self._finish()
            begun = perf_counter()
            with ExitStack() as stack:
                for block in window:
                    stack.enter_context(self.shelf.at(block))
                while self.shown < window.stop:
                    self._begin(self.shown)
                    self.targets.advance(self.shown)
                    self.shown += 1
                for block in window:  # open until gradients have gone back through it
                    stack.enter_context(self.inputs.computing(block))
                    stack.enter_context(_fixed(self.anatomy.blocks[block]))
                self._learn(method, window, (count, len(windows)))
            for block in window:
                self.seconds[block] += (perf_counter() - begun) / len(window)
        while self.done < depth:
            self._finish()

    def _begin(self, block: int) -> None:
        for site in (s for s in self.work if s.block == block):
            weight = self.bench.weight(self.anatomy, site)
            seen = Seen({Original: weight.dense()}, self.bench.seeds.at(self.number, site.name))
            try:
                with torch.enable_grad():
                    self.learners[site] = self.work[site].begin(weight, seen, site)
            except ArithmeticError as error:
                raise CalibrationError(f"{self.work[site].card.id} at {site.name}: {error}") from error
            self.bench.drew |= seen.drew

    def _learn(self, method: BlockMethod, window: range, at: tuple[int, int]) -> None:
        """Lower the error of a window; what was learned stays with its learners."""
        learners = {site: learner for site, learner in self.learners.items() if site.block in window}
        if not learners or not method.epochs:
            return
        self._harden(learners, 1.0)
        before = self._error(learners, window)
        start = [{name: value.clone() for name, value in learner.state_dict().items()} for learner in learners.values()]
        with torch.enable_grad(), self.bench.profile("learn"):
            self._descend(method, learners, window, at)
        self._harden(learners, 1.0)
        after = self._error(learners, window)
        better = after < before  # written so that NaN is not
        if not better:
            for learner, state in zip(learners.values(), start, strict=True):
                learner.load_state_dict(state)
        for block in window:
            self.notes[block] = {"error_before": before, "error_after": after if better else before}

    def _descend(self, method: BlockMethod, learners: dict[Site, Learner], window: range, at: tuple[int, int]) -> None:
        groups = [
            {"params": [parameter], "lr": learner.rates[name]}
            for learner in learners.values()
            for name, parameter in learner.named_parameters()
            if parameter.requires_grad
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        batches = len(self.inputs.hidden)
        steps = method.epochs * batches
        slower = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 + cos(pi * min(step / steps, 1.0))) / 2)
        generator = self.bench.seeds.at(self.number, "window", window.start, window.stop)
        for epoch in range(method.epochs):
            where = f"blocks {window.start} to {window.stop - 1}, epoch {epoch + 1} of {method.epochs}"
            self.bench.watch(Progress("learn", at[0] * method.epochs + epoch, at[1] * method.epochs, where))
            for count, batch in enumerate(torch.randperm(batches, generator=generator).tolist()):
                self._harden(learners, (epoch * batches + count) / steps)
                optimizer.zero_grad()
                loss = self._loss(learners, window, batch)
                if not isfinite(float(loss.detach())):
                    raise CalibrationError(
                        f"{method.card.id}: the loss is no number in {where}; take smaller rates, or look for activations that "
                        "are not finite (trimtab probe outliers)"
                    )
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                slower.step()
        self.bench.drew = True  # the order of the batches

    def _harden(self, learners: Mapping[Site, Learner], progress: float) -> None:
        for learner in learners.values():
            learner.progress = progress

    def _error(self, learners: dict[Site, Learner], window: range) -> float:
        batches = len(self.inputs.hidden)
        return sum(float(self._loss(learners, window, batch)) for batch in range(batches)) / batches

    def _loss(self, learners: dict[Site, Learner], window: range, batch: int) -> Tensor:
        """Squared distance from what the untouched blocks answer to a batch, over the square of that."""
        hidden, wanted = self.inputs.hidden[batch], self.targets.hidden[batch]
        for block in window:
            own = {site: learner for site, learner in learners.items() if site.block == block}
            hidden = self._answer(block, batch, hidden, own)
        return (hidden - wanted).square().mean() / wanted.square().mean().clamp(min=torch.finfo(torch.float32).tiny)

    def _answer(self, block: int, batch: int, hidden: Tensor, learners: dict[Site, Learner]) -> Tensor:
        module, call = self.anatomy.blocks[block], self.inputs.calls[block][batch]
        with _unpacked(self.anatomy, learners), _feeding(self.anatomy, learners):
            output = functional_call(module, _instead(self.anatomy, block, learners), (hidden, *call.args), call.kwargs)
        answer: Tensor = output[0] if isinstance(output, tuple) else output
        return answer

    def _finish(self) -> None:
        """Put what was learned of the next block into the model, and move on through it."""
        block, depth = self.done, len(self.anatomy.blocks)
        sites = [site for site in self.anatomy.sites if site.block == block and site in self.learners]
        with self.shelf.at(block):
            for site in sites:
                self._put(site, self.learners.pop(site), self.seconds[block] / len(sites))
            if block + 1 < depth:
                self.inputs.advance(block)
            self.done += 1
            kept = block_done(
                self.bench, self.anatomy, block, sites, [self.inputs, self.targets], settled=self.done == self.shown
            )
        if kept:
            self.shelf.rest()

    def _put(self, site: Site, learner: Learner, seconds: float) -> None:
        before, weight = self.bench.weight(self.anatomy, site), learner.result()
        if not bool(torch.isfinite(weight.dense()).all()):
            raise CalibrationError(f"{self.work[site].card.id} at {site.name}: the result is not finite")
        notes = self.notes.get(self.done, {})
        size = site.shape[0] * site.shape[1]
        bits = self.bench.stored_bits(before), self.bench.stored_bits(weight)
        self.bench.receipts.append(
            Receipt(self.number, str(self.work[site]), site.name, weight.kind, size, *bits, seconds, None, notes)
        )
        with self.bench.profile("apply"):
            apply(self.anatomy, [SetWeight(site, weight)], self.bench.packed)
        self.bench.held.pop(site.name, None)


@contextmanager
def _fixed(block: nn.Module) -> Iterator[None]:
    """Inside, gradients go through the block's own parameters and stop at none of them."""
    asked = [parameter for parameter in block.parameters() if parameter.requires_grad]
    try:
        for parameter in asked:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)


@contextmanager
def _unpacked(anatomy: Anatomy, learners: Mapping[Site, Learner]) -> Iterator[None]:
    """Inside, layers whose matrices are packed are ordinary ones, which wait for a matrix."""
    modules = {site.path: anatomy.module(site) for site in learners}
    packed = {path: module for path, module in modules.items() if isinstance(module, PackedLinear)}
    try:
        for path, module in packed.items():
            layer = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
            layer.bias = module.bias
            anatomy.model.set_submodule(path, layer)
        yield
    finally:
        for path, module in packed.items():
            anatomy.model.set_submodule(path, module)


@contextmanager
def _feeding(anatomy: Anatomy, learners: Mapping[Site, Learner]) -> Iterator[None]:
    """Inside, learners that change what their matrix is given do so."""
    with ExitStack() as stack:
        for site, learner in learners.items():
            if isinstance(learner, Feeds):
                module = anatomy.model.get_submodule(site.path)
                handle = module.register_forward_pre_hook(lambda _, given, learner=learner: (learner.feed(given[0]),))
                stack.callback(handle.remove)
        yield


def _instead(anatomy: Anatomy, block: int, learners: Mapping[Site, Learner]) -> dict[str, Tensor]:
    """What stands for the block's own parameters, by their names in it."""
    prefix = f"{anatomy.blocks_path}.{block}."
    found: dict[str, Tensor] = {}
    stacks: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for site, learner in learners.items():
        matrix = learner.fed() if isinstance(learner, Feeds) else learner.matrix()
        matrix = matrix.T if site.transposed else matrix
        name = site.path.removeprefix(prefix)
        if site.index is None:
            found[f"{name}.weight"] = matrix
        else:
            stacks[name][site.index] = matrix
    for name, own in stacks.items():
        stack = anatomy.blocks[block].get_parameter(name)
        found[name] = torch.stack([own.get(i, stack[i]) for i in range(len(stack))])
    return found
