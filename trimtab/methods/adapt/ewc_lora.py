"""EWC-LoRA: LoRA that is held back where general text needs the weights as they are.

loss + strength * sum_ij F_ij D_ij^2 over all matrices. D = (alpha / rank) B A is the change; F the mean over windows of general
text (`--general`) of the squared gradient of the window's mean loss, for the model without the change, divided by its mean over
all matrices. Xiang et al., NeurIPS 2023. Different: F is scaled to mean 1, since its raw size (1e-8 to 1e-4) depends on model and
loss, so `strength` is not comparable with theirs; and it stays in memory, one float32 for every weight.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import LinearWeight, Seen
from trimtab.core.knobs import count, number
from trimtab.core.places import Site
from trimtab.core.trained import Delta, Hook, RankedMethod, Training
from trimtab.formats.deltas import LowRankDelta, fresh_product, lora_fields


@dataclass(frozen=True)
class EwcLora(RankedMethod):
    card: ClassVar = Card(
        id="ewc_lora",
        title="Language Models Meet World Models: Embodied Experiences Enhance Language Models",
        paper="arXiv:2305.10626",
        fidelity="variant",
        beside=("lora",),
        claims=(
            Claim(
                "forgets-less",
                "ewc_lora(rank=8)",
                "<",
                "lora(rank=8)",
                model="asset:own-5m",
                text="asset:boolq",
                note="adapted to asset:gsm8k, measured on general text: what is forgotten, not what is learned",
            ),
        ),
    )

    rank: int = count("inner dimension of the product", 8)
    alpha: float = number("the product is multiplied by alpha / rank", 32.0, low=0.001)
    strength: float = number("the penalty is multiplied by this", 0.01, low=0.0)
    windows: int = count("windows of general text that are looked at", 64)

    def attach(self, weight: LinearWeight, seen: Seen, site: Site) -> LowRankDelta:
        return fresh_product(weight, self.rank, self.alpha / self.rank, seen.generator)

    def hook(self, deltas: Mapping[Site, Delta]) -> "Penalty":
        changes = [delta for delta in deltas.values() if isinstance(delta, LowRankDelta)]
        return Penalty(changes, self.strength, self.windows)

    def portable(self) -> dict[str, Any]:
        return lora_fields(self.rank, self.alpha)


class Penalty(Hook):
    """fisher: [out, in] float32 of every matrix, 1 on average; found anew where a training goes on."""

    def __init__(self, changes: Sequence[LowRankDelta], strength: float, windows: int):
        self.changes, self.strength, self.windows = changes, strength, windows
        self.fisher: list[Tensor] = []

    def begin(self, training: Training) -> None:
        shapes = [(change.left.shape[0], change.right.shape[1]) for change in self.changes]
        squares = [change.left.new_zeros(shape).detach() for change, shape in zip(self.changes, shapes, strict=True)]
        with _observed(self.changes, squares):
            for loss in training.general(self.windows):
                torch.autograd.grad(loss, [change.left for change in self.changes])
        mean = sum(float(one.sum(dtype=torch.float64)) for one in squares) / sum(one.numel() for one in squares)
        self.fisher = [one / mean if mean else one for one in squares]

    def penalty(self) -> Tensor:
        moved = (change.scale * (change.left @ change.right) for change in self.changes)
        terms = [(fisher * change.square()).sum() for fisher, change in zip(self.fisher, moved, strict=True)]
        return self.strength * torch.stack(terms).sum()


@contextmanager
def _observed(changes: Sequence[LowRankDelta], squares: Sequence[Tensor]) -> Iterator[None]:
    """Inside, the changes are silent, and every backward pass adds the squared gradients of their matrices to `squares`."""

    def silent(module: nn.Module, given: tuple[Any, ...], said: Tensor, *, into: Tensor) -> Tensor:
        x, nothing = given[0].detach().flatten(0, -2), 0 * said

        def look(pull: Tensor) -> None:
            into.add_((pull.flatten(0, -2).T @ x).square())

        nothing.register_hook(look)  # type: ignore[no-untyped-call]
        return nothing

    handles = [one.register_forward_hook(partial(silent, into=into)) for one, into in zip(changes, squares, strict=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
