"""SST: every matrix is trained as its singular value decomposition, all values at every step and a few vectors at a time.

W = U diag(s) V^T, all of it there. s >= 0 is trained always; for `every` steps `rank` pairs of vectors are, drawn without
replacement with p_i = (1/m + s_i / sum s) / 2. Their gradients leave s_i out, so a small value does not stop its vectors:
dU_i = (dL/dW) V_i, dV_i = (dL/dW)^T U_i. After an update they are brought back to length one; with every draw the optimizer
forgets the vectors and begins gently. Once as many have been drawn as there are, W is decomposed anew.
Zhao et al., ICML 2025. In memory U and V are larger than W; what is small are their gradients and the optimizer's states.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from trimtab.core.card import Card, Claim
from trimtab.core.knobs import count
from trimtab.core.places import Site
from trimtab.core.scratch import Renewed, Rounds, ScratchMethod, Structure, fixed
from trimtab.core.seeds import Seeds
from trimtab.core.trained import check_rank
from trimtab.formats.dense import Dense


@dataclass(frozen=True)
class Sst(ScratchMethod):
    card: ClassVar = Card(
        id="sst",
        title="Sparse Spectral Training and Inference on Euclidean and Hyperbolic Neural Networks",
        paper="arXiv:2405.15481",
        fidelity="reconstructed",
        beside=("relora", "galore"),
        claims=(
            Claim(
                "beats-relora",
                "sst(rank=16, every=25, warm_up=5)",
                "<",
                "relora(rank=16, every=75, warm_up=5)",
                model="asset:own-2m",
                note="trained from random weights on equal tokens, with the same rank trained at a time",
            ),
        ),
    )

    rank: int = count("how many pairs of singular vectors are trained at a time", 32)
    every: int = count("steps between draws", 200)
    warm_up: int = count("small steps after a draw", 20, low=0)

    def fits(self, site: Site) -> None:
        check_rank(self.card.id, self.rank, site)

    def numbers(self, shape: tuple[int, int]) -> int:
        return shape[0] * shape[1]

    def begin(self, weight: Tensor, generator: torch.Generator, site: Site) -> "Spectral":
        return Spectral(weight, self.rank, generator)

    def hook(self, structures: Mapping[str, Structure], steps: int, seeds: Seeds) -> Rounds:
        return Rounds(cast(Mapping[str, Spectral], structures), self.every, self.warm_up, seeds)


class Spectral(Renewed):
    """left [out, m] diag(values [m]) right^T [m, in], m the smaller side; columns `drawn` [rank] of left and right are trained.

    The trained columns stand in parameters of their own, so gradients and optimizer are of their size; left and right are
    always up to date.
    """

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator):
        super().__init__()
        left, values, right = _decomposed(weight)
        self.left, self.right, self.values = fixed(left), fixed(right), nn.Parameter(values)
        self.drawn = fixed(self._draw(rank, generator))
        self.left_part = nn.Parameter(left[:, self.drawn])
        self.right_part = nn.Parameter(right[:, self.drawn])

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        product: Tensor = _Times.apply(
            flat, self.values, self.left_part, self.right_part, self.left.detach(), self.right.detach(), self.drawn
        )
        return product.view(*x.shape[:-1], -1)

    def matrix(self) -> Tensor:
        return (self.left * self.values) @ self.right.T

    def result(self) -> Dense:
        return Dense(self.matrix().detach())

    def parts(self) -> list[nn.Parameter]:
        return [self.left_part, self.right_part]

    @torch.no_grad()
    def renew(self, generator: torch.Generator, time: int) -> None:
        rank = len(self.drawn)
        if time % ceil(len(self.values) / rank) == 0:
            for mine, found in zip((self.left, self.values, self.right), _decomposed(self.matrix()), strict=True):
                mine.copy_(found)
        self.drawn.copy_(self._draw(rank, generator))
        self.left_part.copy_(self.left[:, self.drawn])
        self.right_part.copy_(self.right[:, self.drawn])

    @torch.no_grad()
    def settle(self) -> None:
        self.values.clamp_(min=0)
        for whole, part in ((self.left, self.left_part), (self.right, self.right_part)):
            part.div_(part.norm(dim=0).clamp(min=torch.finfo(part.dtype).tiny))
            whole[:, self.drawn] = part

    def _draw(self, rank: int, generator: torch.Generator) -> Tensor:
        values = self.values.detach().double().cpu()
        chance = 0.5 / len(values) + 0.5 * values / values.sum().clamp(min=torch.finfo(torch.float64).tiny)
        return torch.multinomial(chance, rank, generator=generator).sort().values.to(self.values.device)


def _decomposed(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[out, m], [m], [in, m]; in float64, since what is off is off for the whole round."""
    left, values, right = torch.linalg.svd(weight.double(), full_matrices=False)
    return left.to(weight.dtype), values.to(weight.dtype), right.T.to(weight.dtype).contiguous()


class _Times(torch.autograd.Function):
    """x V diag(s) U^T; to the drawn vectors goes the gradient of W times their partners, without s."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, *others: Tensor) -> Tensor:
        _, _, left, right, drawn = others
        inside = x @ right
        ctx.save_for_backward(x, values, left, right, drawn, inside)
        return inside * values @ left.T

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor | None, ...]:
        x, values, left, right, drawn, inside = ctx.saved_tensors
        outside = above[0] @ left  # [tokens, m]
        to_left, to_right = above[0].T @ inside[:, drawn], x.T @ outside[:, drawn]
        return outside * values @ right.T, (inside * outside).sum(0), to_left, to_right, None, None, None
