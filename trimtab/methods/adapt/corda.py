"""CorDA: the adapter begins as those directions of the matrix that matter most, or least, for inputs that were shown.

U S V^T = W C, C the mean of x x^T over what was shown, with 1 % of its mean diagonal added; W = U S (V^T C^-1). Of these
directions the first ones (`mode="ipm"`: what the new task uses is trained) or the last ones (`mode="kpm"`: what the shown
text does not use is trained, and what it knows is kept) make B = U sqrt(S), A = sqrt(S) V^T C^-1, and the rest of W is
frozen. Yang et al., NeurIPS 2024. With "ipm" rows of the task are shown, with "kpm" the general text. Different: no sample is
scaled by its largest value before it is counted, and the decomposition is of float64, where the added 1 % always suffices. As
with `pissa` the frozen matrix stays W and what the adapter began as is subtracted: the same function, and an ordinary LoRA of
twice the rank.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import LinearWeight, Seen
from trimtab.core.knobs import choice, count, rate
from trimtab.core.places import Site
from trimtab.core.trained import RankedMethod
from trimtab.formats.deltas import LowRankDelta, lora_fields
from trimtab.stats import Gram
from trimtab.tensors.spd import cholesky, damped


@dataclass(frozen=True)
class Corda(RankedMethod):
    card: ClassVar = Card(
        id="corda",
        title="CorDA: Context-Oriented Decomposition Adaptation of Large Language Models",
        paper="arXiv:2406.05223",
        fidelity="variant",
        beside=("pissa", "lora"),
        claims=(
            Claim(
                "beats-pissa",
                "corda(rank=8)",
                "<",
                "pissa(rank=8)",
                model="asset:own-5m",
                text="asset:gsm8k-rest",
                note="adapted to asset:gsm8k, of which rows are shown before; equal trained parameters",
            ),
            Claim(
                "keeps-more-than-lora",
                "corda(rank=8, mode='kpm')",
                "<",
                "lora(rank=8, alpha=8.0)",
                model="asset:own-5m",
                text="asset:boolq",
                note="adapted to asset:gsm8k, measured on general text: what is forgotten, not what is learned",
            ),
        ),
    )
    needs: ClassVar = (Gram,)

    rank: int = count("how many directions are trained", 16)
    mode: str = choice("which: those that what was shown uses most (ipm), or least (kpm)", "ipm", ("ipm", "kpm"))
    damping: float = rate("added to the diagonal of C, times its mean", 0.01, low=1e-7)

    @property
    def looks_at(self) -> Literal["rows", "general"]:
        return "rows" if self.mode == "ipm" else "general"

    def attach(self, weight: LinearWeight, seen: Seen, site: Site) -> LowRankDelta:
        left, right = oriented(weight.dense(), seen[Gram], self.damping)
        kept = slice(None, self.rank) if self.mode == "ipm" else slice(-self.rank, None)
        return LowRankDelta(left[:, kept], right[kept], from_start=True)

    def portable(self) -> dict[str, Any]:
        return lora_fields(2 * self.rank, 2.0 * self.rank)


def oriented(weight: Tensor, gram: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """left [out, n], right [n, in] float64 with left @ right = weight, largest singular values of weight @ gram first.

    Raises ArithmeticError where nothing was seen, or not finitely.
    """
    factor, used = cholesky(gram, damping)
    try:
        u, s, vt = torch.linalg.svd(weight.double() @ damped(gram, used), full_matrices=False)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # made at run time by torch
        raise ArithmeticError("weight and inputs have no singular values: they are not finite or too far apart") from error
    half = s.sqrt()
    return u * half, half[:, None] * torch.cholesky_solve(vt.mT, factor).mT
