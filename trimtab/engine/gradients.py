"""The gradient of the loss on calibration text, block by block from the last to the first.

What entered every block is kept from a forward pass; then the head says how the loss changes with the last output, and each
block is run again with gradients on and passes the answer back. So the memory holds one block in float32 with its gradients,
and the activations of the few windows that are looked at, never a second model of gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trimtab.anatomy import Anatomy
from trimtab.core.kinds import Statistic
from trimtab.core.places import Site
from trimtab.core.progress import Progress
from trimtab.engine.sweep import Stats, Stream

if TYPE_CHECKING:
    from trimtab.engine.run import Bench


def alone(batches: Sequence[Tensor], windows: int) -> list[Tensor]:
    """The first windows of all batches, each in a batch of its own: [1, length]."""
    return [window[None] for batch in batches for window in batch][:windows]


def backward(
    bench: Bench, anatomy: Anatomy, needs: Sequence[type[Statistic]], sites: Sequence[Site], windows: int
) -> Iterator[tuple[int, dict[Site, Stats]]]:
    """(block, statistics on the gradients of its sites), from the last block to the first. The loss is that of the next token.

    windows: how many of the calibration set are looked at, each by itself.
    """
    shown = alone(bench.batches, windows)
    stream = Stream(anatomy, shown, bench.profile)
    entering: list[list[Tensor]] = []
    for block in range(len(anatomy.blocks)):
        bench.watch(Progress("forward", block, len(anatomy.blocks)))
        entering.append(list(stream.hidden))
        stream.advance(block)
    with bench.profile("backward"):
        pulls = [_at_the_end(stream, hidden, ids) for hidden, ids in zip(stream.hidden, shown, strict=True)]
    for block in reversed(range(len(anatomy.blocks))):
        bench.watch(Progress("backward", len(anatomy.blocks) - 1 - block, len(anatomy.blocks)))
        with bench.profile("backward"):
            found = _through(stream, block, entering.pop(), pulls, needs, [s for s in sites if s.block == block])
        yield block, found


def _at_the_end(stream: Stream, hidden: Tensor, ids: Tensor) -> Tensor:
    """d loss / d output of the last block, [1, length, width]."""
    with torch.enable_grad():
        output = hidden.detach().requires_grad_()
        logits = stream.head(output, ids)[0, :-1]
        loss = nn.functional.cross_entropy(logits, ids[0, 1:])
        return torch.autograd.grad(loss, output)[0]


def _through(
    stream: Stream,
    block: int,
    entering: list[Tensor],
    pulls: list[Tensor],
    needs: Sequence[type[Statistic]],
    sites: Sequence[Site],
) -> dict[Site, Stats]:
    """The block's statistics; `pulls` become the gradients of what entered the block."""
    states: dict[Site, dict[type[Statistic], Any]] = {
        site: {need: need.start(site.shape, entering[0].device) for need in needs} for site in sites
    }
    weights = {site: stream.anatomy.module(site).get_parameter("weight") for site in sites}
    with stream.computing(block), _differentiable(weights):
        for window, hidden in enumerate(entering):
            pulls[window], gradients = _one(stream, block, window, hidden, pulls[window], list(weights.values()))
            for site, gradient in zip(sites, gradients, strict=True):
                turned = gradient.T if site.transposed else gradient
                states[site] = {need: need.update(state, turned) for need, state in states[site].items()}
    return {site: {need: need.finish(state) for need, state in found.items()} for site, found in states.items()}


def _one(
    stream: Stream, block: int, window: int, hidden: Tensor, pull: Tensor, weights: list[nn.Parameter]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    with torch.enable_grad():
        entering = hidden.detach().requires_grad_()
        leaving = stream.answer(block, window, entering)
        before, *gradients = torch.autograd.grad(leaving, [entering, *weights], pull.to(leaving.dtype))
    return before, tuple(gradients)


@contextmanager
def _differentiable(weights: Mapping[Site, nn.Parameter]) -> Iterator[None]:
    """Inside, exactly these parameters are differentiated, whatever the model was opened with."""
    before = [(weight, weight.requires_grad) for weight in weights.values()]
    try:
        for weight, _ in before:
            weight.requires_grad_(True)
        yield
    finally:
        for weight, wanted in before:
            weight.requires_grad_(wanted)
