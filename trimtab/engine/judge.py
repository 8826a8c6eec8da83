"""How far is the model with a candidate in it from the model as it is? One judge, in whatever process it is.

A judge works on a model of its own in which only what differs from the candidate before is exchanged. Blocks are driven one by
one (`engine/sweep.py`), and the hidden states of the candidate before are kept, so that the next one is computed from the first
block on in which it differs; sorted candidates share long beginnings. All of it is on one thread: then the same candidate gets
the same number to the last bit whoever judges it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trimtab.anatomy import Anatomy
from trimtab.core.edits import SetWeight
from trimtab.core.errors import ModelError
from trimtab.core.kinds import Candidate, LinearWeight
from trimtab.core.places import Site
from trimtab.engine.apply import apply
from trimtab.engine.levels import Levels
from trimtab.engine.sweep import COMPUTED, Stream
from trimtab.formats import Dense
from trimtab.tensors.products import fast_products
from trimtab.tensors.threads import one_thread

KEPT = 1 << 30  # bytes of hidden states, and of log-probabilities of the model as it is
AT_ONCE = 64  # tokens whose divergence is computed at a time

UNKNOWN = object()  # what a place holds after its exchange failed

Outcome = tuple[float | None, str]  # loss, or why there is none


@dataclass(frozen=True)
class Material:
    """All that a judge needs; it can be sent to another process.

    names: of the sites that are places; () where blocks are. windows: held-out token ids [count, length].
    """

    model: nn.Module
    names: tuple[str, ...]
    windows: Tensor
    compute: torch.dtype
    folder: Path
    key: str


class Judge:
    """Takes the model of the material for its own."""

    def __init__(self, material: Material):
        self.levels, self.windows = Levels(material.folder, material.key), material.windows
        self.anatomy = Anatomy.of(material.model.eval())
        self.sites = [self.anatomy.site(name) for name in material.names]
        self.plain = [_own(self.anatomy.weight(site), site) for site in self.sites]
        for parameter in self.anatomy.blocks.parameters():
            if parameter.dtype in COMPUTED:
                parameter.data = parameter.data.to(material.compute)
        self.now: list[Any] = [None] * len(self.sites)
        with torch.no_grad(), one_thread(), fast_products():
            self.stream = Stream(self.anatomy, [window[None] for window in self.windows], compute=material.compute)
            self.entering = list(self.stream.hidden)
            self.depth = len(self.anatomy.blocks)
            self.trail = Trail(self.depth, sum(h.nbytes for h in self.entering))
            self.final = self._driven(self._keys(self._nothing()), range(len(self.windows)))
            self.known: dict[int, Tensor] = {}  # by window: log-probabilities of the model as it is

    def losses(self, candidates: Sequence[Candidate], windows: Sequence[int]) -> Iterator[tuple[int, Outcome]]:
        """(number, outcome) of every candidate, in the order that suits the judge."""
        order = sorted(range(len(candidates)), key=lambda i: repr(self._keys(candidates[i])))
        for number in order:
            yield number, self._outcome(candidates[number], windows)

    def _outcome(self, candidate: Candidate, windows: Sequence[int]) -> Outcome:
        try:
            with torch.no_grad(), one_thread(), fast_products():
                return self._loss(candidate, windows), ""
        # Whatever is wrong with one candidate, memory that was short included, is its outcome and is recorded as such.
        except Exception as error:
            self.trail.forget()
            return None, f"{type(error).__name__}: {error}"[:300]

    def _loss(self, candidate: Candidate, windows: Sequence[int]) -> float:
        for place, (site, entry) in enumerate(zip(self.sites, candidate, strict=False)):
            if entry != self.now[place]:
                self.now[place] = UNKNOWN
                self._exchange(place, site, entry)
                self.now[place] = entry
        leaving = self._driven(self._keys(candidate), windows)
        total = sum(self._divergence(window, hidden) for window, hidden in zip(windows, leaving, strict=True))
        loss = total / (len(windows) * self.windows.shape[1])
        if not abs(loss) < float("inf"):  # written so that NaN fails
            raise ModelError("what the model says with it is not finite")
        return loss

    def _exchange(self, place: int, site: Site, entry: Any) -> None:
        weight = self.plain[place] if entry is None else self.levels.weight(site.name, entry)
        apply(self.anatomy, [SetWeight(site, Dense(weight.dense()))])

    def _nothing(self) -> Candidate:
        return (None,) * (len(self.sites) or self.depth)

    def _keys(self, candidate: Candidate) -> list[Candidate]:
        """What decides about each block's output, given its input."""
        if not self.sites:
            return [(out,) for out in candidate]
        keys: list[list[Any]] = [[] for _ in range(self.depth)]
        for site, entry in zip(self.sites, candidate, strict=True):
            if site.block is not None:
                keys[site.block].append(entry)
        return [tuple(key) for key in keys]

    def _driven(self, keys: list[Candidate], windows: Sequence[int]) -> list[Tensor]:
        """What leaves the last block, per window."""
        first, hidden = self.trail.resume(keys, tuple(windows)) or (0, [self.entering[window] for window in windows])
        for block in range(first, self.depth):
            if self.sites or not keys[block][0]:
                hidden = [self._step(block, window, h) for window, h in zip(windows, hidden, strict=True)]
            self.trail.keep(block, keys[: block + 1], hidden)
        return hidden

    def _step(self, block: int, window: int, entering: Tensor) -> Tensor:
        self.stream.hidden[window] = entering
        return self.stream.drive(block, window)

    def _divergence(self, window: int, leaving: Tensor) -> float:
        """KL summed over the window's tokens."""
        said, other = self._as_it_is(window), self._said(window, leaving)
        parts = zip(said.split(AT_ONCE), other.split(AT_ONCE), strict=True)
        return sum(float(F.kl_div(b, a, reduction="none", log_target=True).sum(dtype=torch.float64)) for a, b in parts)

    def _as_it_is(self, window: int) -> Tensor:
        if window in self.known:
            return self.known[window]
        said = self._said(window, self.final[window])
        if (len(self.known) + 1) * said.nbytes <= KEPT:
            self.known[window] = said
        return said

    def _said(self, window: int, leaving: Tensor) -> Tensor:
        """Log-probabilities [length, vocabulary]."""
        self.stream.hidden[window] = leaving
        return self.stream.logits(window, self.windows[window][None])[0].log_softmax(-1)


def _own(weight: LinearWeight, site: Site) -> LinearWeight:
    """The matrix before anything is exchanged. An expert is a view of a stack that others are exchanged in."""
    return weight if site.index is None else Dense(weight.dense().clone())


class Trail:
    """Hidden states behind the blocks, per window, of the candidate that was judged last.

    Behind every block if that takes at most `KEPT` bytes, else behind every second, third, ...
    """

    def __init__(self, depth: int, size: int):
        self.every = max(1, -(-depth * size // KEPT))
        self.windows: tuple[int, ...] = ()
        self.states: list[tuple[list[Candidate], list[Tensor]]] = []

    def resume(self, keys: list[Candidate], windows: tuple[int, ...]) -> tuple[int, list[Tensor]] | None:
        """(block to go on with, what enters it) where the last candidate had the same blocks before it."""
        if windows != self.windows:
            self.forget()
            self.windows = windows
        while self.states and keys[: len(self.states[-1][0])] != self.states[-1][0]:
            self.states.pop()
        return (len(self.states[-1][0]), self.states[-1][1]) if self.states else None

    def keep(self, block: int, keys: list[Candidate], hidden: list[Tensor]) -> None:
        if block % self.every == 0:
            self.states.append((keys, hidden))

    def forget(self) -> None:
        self.states = []
