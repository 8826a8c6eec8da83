"""The runner of probes: the model reads the windows once, and probes look at what passed between its blocks.

Every window has a stream of its own (`engine/sweep.py`), so a block can be driven again on any hidden states of that window,
and a change after block 7 costs the blocks behind it and no more. The hidden states between all blocks are kept:
(blocks + 1) x tokens x width numbers in float32. Other matrices are tried by putting another forward in front of a module
for the time of one call; the model's own are never touched.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trimtab.anatomy import Anatomy, Watch
from trimtab.anatomy.probe import eager_experts, expert_products, still
from trimtab.anatomy.sites import device_of, is_linear, parent
from trimtab.core.errors import CalibrationError, DataError, ModelError
from trimtab.core.kinds import Finding, Instead, ProbeMethod
from trimtab.core.places import Role, Site
from trimtab.core.progress import Progress, Watcher, unwatched
from trimtab.core.seeds import Seeds
from trimtab.engine.memory import kept_heap
from trimtab.engine.sweep import COMPUTED, Stream
from trimtab.tensors.products import fast_products

SHORTEST = 8  # tokens per window: what the streams need to try the blocks


@dataclass(frozen=True, eq=False)
class Reading:
    """The `Subject` that probes are handed: a model that has read some windows. Make one with `read`."""

    anatomy: Anatomy
    generator: torch.Generator
    watch: Watcher
    phase: str
    _ids: Tensor = field(repr=False)  # [1, length] of the first window
    _streams: tuple[Stream, ...] = field(repr=False)
    _states: tuple[tuple[Tensor, ...], ...] = field(repr=False)  # [windows][blocks + 1] of [length, width]

    @property
    def windows(self) -> int:
        return len(self._streams)

    def blocks(self) -> Iterator[int]:
        depth = len(self.anatomy.blocks)
        for block in range(depth):
            self.watch(Progress(self.phase, block, depth))
            yield block
        self.watch(Progress(self.phase, depth, depth))

    def hidden(self, block: int, window: int) -> Tensor:
        return self._states[window][block]

    def inputs(self, block: int, window: int, sites: Sequence[Site]) -> dict[Site, Tensor]:
        """By site, [tokens, in] of the window; an expert's are the tokens that it was given, and missing if there were none."""
        found: dict[Site, Tensor] = {}
        with Watch(self.anatomy, sites, lambda group, x: found.update(dict.fromkeys(group, x)), stop=True):
            self.drive(block, window, self.hidden(block, window))
        return found

    def drive(self, block: int, window: int, hidden: Tensor, instead: Instead | None = None) -> Tensor:
        stream = self._streams[window]
        stream.hidden = [hidden[None]]
        with _instead(self.anatomy, instead or {}):
            # Blocks are driven by the thousand here: giving memory back after each, as `advance` does, costs a quarter.
            if not _must_be_raised(self.anatomy.blocks[block], stream.compute):
                return stream.drive(block, 0)[0]
            stream.advance(block)
        return stream.hidden[0][0]

    def onward(self, block: int, window: int, hidden: Tensor) -> Tensor:
        for later in range(block, len(self.anatomy.blocks)):
            hidden = self.drive(later, window, hidden)
        return hidden

    def head_input(self, hidden: Tensor) -> Tensor:
        head = next(site for site in self.anatomy.sites if site.role is Role.HEAD)
        found: list[Tensor] = []
        with Watch(self.anatomy, [head], lambda group, x: found.append(x), stop=True):
            self.logits(hidden)
        return found[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """In float32, of at most one window's tokens. Norm and head work token by token, so it does not matter of which."""
        stream = self._streams[0]
        stream.hidden = [hidden[None]]
        # The blocks are left out, so of the ids only their number counts: some families shape their output by it.
        return stream.logits(0, self._ids[:, : len(hidden)])[0]


def _must_be_raised(block: nn.Module, compute: torch.dtype) -> bool:
    return any(p.dtype in COMPUTED and p.dtype != compute for p in block.parameters())


def probe(
    model: nn.Module,
    windows: Tensor,
    probes: Sequence[ProbeMethod],
    seed: int = 0,
    watch: Watcher = unwatched,
) -> list[list[Finding]]:
    """What every probe finds. windows: token ids [count, length]. The model stays as it is, to the last bit.

    Raises DataError for windows too short, ModelError where the blocks cannot be driven one by one or something is not finite.
    """
    with still(model), fast_products(), kept_heap():
        subject = read(model, windows, watch)
        return [_found(method, subject, seed) for method in probes]


def read(model: nn.Module, windows: Tensor, watch: Watcher = unwatched) -> Reading:
    """Let the model read the windows [count, length] and keep all hidden states. Call it inside of `still(model)`."""
    if windows.ndim != 2 or windows.shape[0] < 1 or windows.shape[1] < SHORTEST:
        raise DataError(f"windows must be [count >= 1, length >= {SHORTEST}], got {list(windows.shape)}; use longer windows")
    anatomy = Anatomy.of(model)
    ids = windows.to(device_of(model.get_submodule(anatomy.sites[0].path)))
    streams, states = [], []
    for number, window in enumerate(ids):
        watch(Progress("read", number, len(ids)))
        stream = Stream(anatomy, [window[None]])
        passed = [stream.hidden[0][0]]
        for block in range(len(anatomy.blocks)):
            stream.advance(block)
            passed.append(stream.hidden[0][0])
        if not bool(passed[-1].isfinite().all()):
            raise ModelError(f"what leaves the last block in window {number} is not finite; fetch the model again")
        streams.append(stream)
        states.append(tuple(passed))
    return Reading(anatomy, Seeds().at("read"), watch, "read", ids[:1], tuple(streams), tuple(states))


def _found(method: ProbeMethod, subject: Reading, seed: int) -> list[Finding]:
    mine = replace(subject, generator=Seeds(seed).at(method.card.id), phase=method.card.id)
    try:
        findings = method.measure(mine)
    except ArithmeticError as error:
        raise CalibrationError(f"{method.card.id}: {error}; show more or other text") from error
    for finding in findings:
        for measured in finding.measurements:
            if not abs(measured.value) < float("inf"):  # written so that NaN fails
                raise ModelError(f"{method.card.id}: {measured.name} of block {measured.setting['block']} is not finite")
    return findings


@contextmanager
def _instead(anatomy: Anatomy, instead: Instead) -> Iterator[None]:
    """Inside, the products with these matrices are computed with others. Raises `ModelError` for one that is no product."""

    def product(site: Site, x: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        weight = instead[site]
        return x.new_zeros(*x.shape[:-1], site.shape[0]) if weight is None else x @ weight.to(x.dtype).T

    experts = [site for site in instead if site.index is not None]
    with ExitStack() as stack:
        for site, weight in instead.items():
            if site.index is None:
                stack.enter_context(_replaced_forward(anatomy, site, weight))
        if experts:
            stack.enter_context(eager_experts({anatomy.model.get_submodule(parent(site.path)) for site in experts}))
            stack.enter_context(expert_products(anatomy.model, experts, product))
        yield


@contextmanager
def _replaced_forward(anatomy: Anatomy, site: Site, weight: Tensor | None) -> Iterator[None]:
    module = anatomy.module(site)
    if not is_linear(module):
        raise ModelError(f"{site.name} is not a plain product, so no other matrix can be tried there; leave it out")

    def forward(x: Tensor) -> Tensor:
        if weight is None:
            return x.new_zeros(*x.shape[:-1], site.shape[0])
        bias = anatomy.bias(site)  # asked for here: while a block is driven, its parameters are in the stream's dtype
        return F.linear(x, weight.to(x.dtype), bias)

    before = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = before
