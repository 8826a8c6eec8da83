"""A toy whose blocks are plain functions, for probes whose answer is known on it; and what a probe says in short."""

from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from trimtab.core.kinds import ProbeMethod
from trimtab.core.seeds import Seeds
from trimtab.engine.probe import probe
from trimtab.testing.tiny import tokens

WINDOWS, LENGTH, WIDTH = 4, 24, 8
Block = Callable[[Tensor], Tensor]


class Toy:
    """A `Subject` of blocks that are functions [length, width] -> [length, width]; the head is a random matrix."""

    def __init__(self, blocks: Sequence[Block], entering: Tensor | None = None, after: Block = lambda h: h):
        draw = Seeds(0).at("toy")
        entering = torch.randn(WINDOWS, LENGTH, WIDTH, generator=draw) if entering is None else entering
        self._functions, self._after = blocks, after
        self._head = torch.randn(2 * WIDTH, entering.shape[-1], generator=draw)
        self._states = [[window] for window in entering]
        for states in self._states:
            for block in blocks:
                states.append(block(states[-1]))
        self.windows, self.generator = len(entering), draw
        self.anatomy: Any = SimpleNamespace(blocks=blocks, block_sites=lambda block: ())

    def blocks(self) -> Iterator[int]:
        yield from range(len(self._functions))

    def hidden(self, block: int, window: int) -> Tensor:
        return self._states[window][block]

    def inputs(self, block: int, window: int, sites: Any) -> dict[Any, Tensor]:
        return {}

    def drive(self, block: int, window: int, hidden: Tensor, instead: Any = None) -> Tensor:
        return self._functions[block](hidden)

    def onward(self, block: int, window: int, hidden: Tensor) -> Tensor:
        for function in self._functions[block:]:
            hidden = function(hidden)
        return hidden

    def head_input(self, hidden: Tensor) -> Tensor:
        return self._after(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        return self._after(hidden) @ self._head.T


def found(method: ProbeMethod, subject: Any) -> dict[str, list[float]]:
    """Name -> values, block by block."""
    return {f.measurements[0].name: [m.value for m in f.measurements] for f in method.measure(subject) if f.measurements}


def on_tiny(method: ProbeMethod, model: Any) -> dict[str, list[float]]:
    (findings,) = probe(model, tokens(model, WINDOWS, LENGTH), [method])
    return {f.measurements[0].name: [m.value for m in f.measurements] for f in findings if f.measurements}


def causal_mean(hidden: Tensor) -> Tensor:
    """Every token is mixed with all before it."""
    return hidden + hidden.cumsum(0) / torch.arange(1, len(hidden) + 1)[:, None]
