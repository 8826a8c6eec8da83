"""GaLore: the whole matrix is trained, but the optimizer sees its gradient only inside a small subspace.

Every `every` steps P [out, rank] are the leading left singular vectors of the gradient G [out, in] (the right ones where in <
out). With R = P^T G, W moves by -rate * scale * P Adam(R). Zhao et al., ICML 2024. A factor that is zero before every step has
R for a gradient, so the optimizer needs no change: what it makes of the factor goes into W, and the factor is zero again. The
moments stay when P changes, as in the authors' code. Different: all matrices' gradients are there at once in the steps that
look for a new P; between these, none is ever made. Weight decay does not reach W.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trimtab.core.card import Card
from trimtab.core.knobs import count, number
from trimtab.core.places import Site
from trimtab.core.scratch import ScratchMethod, Structure, fixed
from trimtab.core.seeds import Seeds
from trimtab.core.trained import Hook, check_rank
from trimtab.formats.dense import Dense


@dataclass(frozen=True)
class GaLore(ScratchMethod):
    card: ClassVar = Card(
        id="galore",
        title="GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection",
        paper="arXiv:2403.03507",
        fidelity="variant",
        beside=("sltrain", "relora"),
        baseline=True,
    )

    rank: int = count("dimensions of the subspace", 64)
    every: int = count("steps between subspaces", 200)
    scale: float = number("updates are multiplied by it", 0.25, low=0.001)

    def fits(self, site: Site) -> None:
        check_rank(self.card.id, self.rank, site)

    def numbers(self, shape: tuple[int, int]) -> int:
        return shape[0] * shape[1]

    def begin(self, weight: Tensor, generator: torch.Generator, site: Site) -> "Projected":
        return Projected(weight, self.rank, self.scale)

    def hook(self, structures: Mapping[str, Structure], steps: int, seeds: Seeds) -> "Projections":
        return Projections(cast(Mapping[str, Projected], structures).values(), self.every)


class Projected(Structure):
    """base [out, in], and beside it basis [short, rank] @ moved [rank, long], transposed where in < out; moved is zero."""

    def __init__(self, base: Tensor, rank: int, scale: float):
        super().__init__()
        short, long = sorted(base.shape)
        self.base, self.scale, self.wide = fixed(base.clone()), scale, base.shape[0] <= base.shape[1]
        self.basis = fixed(torch.zeros(short, rank, device=base.device))
        self.moved = nn.Parameter(torch.zeros(rank, long, device=base.device))

    def forward(self, x: Tensor) -> Tensor:
        product = x @ self.base.T
        return product + (x @ self.moved.T @ self.basis.T if self.wide else x @ self.basis @ self.moved)

    def matrix(self) -> Tensor:
        return self.base + self._oriented(self.basis @ self.moved)

    def result(self) -> Dense:
        return Dense(self.base.detach().clone())

    @torch.no_grad()
    def look(self) -> None:
        """Takes a new basis from the gradient of the base, and gives the factor its gradient in it."""
        assert self.base.grad is not None, "the base was asked for a gradient before the step"
        gradient = self._oriented(self.base.grad)
        left, _, _ = torch.linalg.svd(gradient.double(), full_matrices=False)
        self.basis.copy_(left[:, : self.basis.shape[1]])
        self.moved.grad = self.basis.T @ gradient

    @torch.no_grad()
    def move(self) -> None:
        """Puts into the base what the optimizer made of the factor."""
        self.base.add_(self._oriented(self.basis @ self.moved), alpha=self.scale)
        self.moved.zero_()

    def _oriented(self, matrix: Tensor) -> Tensor:
        return matrix if self.wide else matrix.T


class Projections(Hook):
    """In every step that looks for new subspaces, the bases want gradients and the factors none; otherwise the reverse."""

    def __init__(self, structures: Iterable[Projected], every: int):
        self.structures, self.every = structures, every

    def before_step(self, step: int, optimizer: Optimizer) -> None:
        looks = step % self.every == 0
        for structure in self.structures:
            structure.base.requires_grad_(looks)
            structure.moved.requires_grad_(not looks)  # a second time, it would count in the norm that is clipped

    def before_update(self, step: int, optimizer: Optimizer) -> None:
        if step % self.every:
            return
        for structure in self.structures:
            structure.look()
            structure.base.requires_grad_(False)
            structure.base.grad = None  # the optimizer leaves alone what has none
            structure.moved.requires_grad_()

    def after_update(self, step: int, optimizer: Optimizer) -> None:
        for structure in self.structures:
            structure.move()
