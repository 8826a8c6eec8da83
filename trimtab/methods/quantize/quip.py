"""QuIP: turn a matrix at random on both sides until nothing in it stands out, then round with linear feedback.

W = R_out V R_inᵀ;  V is rounded column by column, the error of each fed to those on its right (LDLQ, which is the optimal-brain
sweep of `tensors.columns` with the gram R_inᵀ gram R_in), to 2^bits evenly spaced levels around zero, scale * (code - top / 2).
Chee et al., NeurIPS 2023 (arXiv:2307.13304). Different from the paper: the rotations are randomized Hadamard transforms, as in
the sequel, not Kronecker products of random orthogonal matrices, so that they need not be stored; a scale belongs to a row or
group and is the least-squares one, the paper's one scale of the matrix is a fixed multiple of its root mean square; no
rescaling of channels beforehand, no greedy passes afterwards.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import Seen
from trimtab.core.knobs import count
from trimtab.core.places import Site
from trimtab.formats import Chain, Codebook, Dense, check_group_size
from trimtab.formats.incoherent import Incoherent
from trimtab.stats import Gram
from trimtab.tensors.columns import ByGroup, sweep
from trimtab.tensors.rounding import LARGEST, SHRINKS


@dataclass(frozen=True)
class Quip(Incoherent):
    card: ClassVar = Card(
        id="quip",
        title="QuIP: 2-Bit Quantization of Large Language Models With Guarantees",
        paper="arXiv:2307.13304",
        fidelity="variant",
        beside=("gptq", "quarot", "quip_sharp"),
        claims=(
            Claim(
                "beats-gptq-at-2-bit",
                "quip(bits=2)",
                "<",
                "gptq(bits=2, group_size=0, clip=True)",
                note="2.03 and 2.04 stored bits per weight, one scale per row on both sides",
            ),
            Claim(
                "beats-rotated-gptq-at-2-bit",
                "quip(bits=2)",
                "<",
                "quarot -> gptq(bits=2, group_size=0, clip=True)",
                note="as above; the baseline turns inputs only, and for the whole model at once",
            ),
        ),
    )
    needs: ClassVar = (Gram,)

    bits: int = count("bits per code", 2, 1, 8)
    group_size: int = count("turned inputs that share a scale; 0 = the whole row", 0, 0)

    def fits(self, site: Site) -> None:
        check_group_size(site.shape[1], self.group_size or site.shape[1], site.name)

    def held(self, shape: tuple[int, int]) -> dict[str, Any]:
        sizes = {"books": 1, "entries": 2**self.bits, "dim": 1, "group_size": self.group_size or shape[1]}
        return {"kind": Codebook.kind, "shape": [*shape], **sizes}

    def solve(self, weight: Dense, seen: Seen, site: Site) -> Chain:
        return self.turned(weight, seen[Gram], seen, self._swept)

    def _swept(self, matrix: Tensor, upper: Tensor) -> Codebook:
        top = 2**self.bits - 1
        group_size = self.group_size or matrix.shape[1]
        chooser = ByGroup(partial(_fitted, top=top), partial(_nearest, top=top), group_size, torch.arange(matrix.shape[1]))
        sweep(matrix, upper, chooser)
        levels = torch.arange(top + 1, device=matrix.device) - top / 2
        return Codebook(
            chooser.codes.to(torch.uint8)[None],
            levels.half()[None, :, None],
            torch.cat(chooser.fitted, dim=1).half(),
            group_size,
        )


def _fitted(weights: Tensor, top: int) -> Tensor:
    """[out, 1] the scale, a float16 value, with the least squared error of a group [out, group]. Raises ArithmeticError."""
    widest = 2 * weights.abs().amax(1, keepdim=True) / top
    if not bool((widest <= LARGEST).all()):  # written so that NaN fails
        raise ArithmeticError("a group's scale exceeds float16")
    best, least = torch.zeros_like(widest), torch.full_like(widest, torch.inf)
    for shrink in SHRINKS:
        scale = (shrink * widest).half().float()
        error = (_values(_codes(weights, scale, top), scale, top) - weights).square().sum(1, keepdim=True)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best


def _nearest(scale: Tensor, position: int, column: Tensor, top: int) -> tuple[Tensor, Tensor]:
    codes = _codes(column[:, None], scale, top)
    return codes[:, 0], _values(codes, scale, top)[:, 0]


def _codes(weights: Tensor, scale: Tensor, top: int) -> Tensor:
    return (weights / torch.where(scale > 0, scale, 1.0) + top / 2).round_().clamp_(0, top)


def _values(codes: Tensor, scale: Tensor, top: int) -> Tensor:
    return (codes - top / 2) * scale
