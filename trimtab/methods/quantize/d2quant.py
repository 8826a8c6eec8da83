"""D2Quant, its dual scales: a free scale for every input of the down projection, carried by the rows of the up projection.

min over c > 0 of ||W - Q(W diag(1/c)) diag(c)||^2 by rounds of  V = Q(W diag(1/c)),  c_k = <W_k, V_k> / <V_k, V_k>.
Row k of `up` is multiplied by c_k and column k of `down` divided: the model says the same, and nothing is stored, because the
row scales of `up` take c in. Round both afterwards, e.g. by `gptq` with the same bits and group_size.
Yan et al., 2026 (arXiv:2602.02546), without the second half of the paper, a correction of the mean behind the attention.
A round need not lessen the error, since the grids are fitted anew; the best round is kept. A common factor of c is taken out:
the grids follow it, and it would grow from round to round. Weighing the columns by their inputs would not change c_k.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import LinearWeight, ScaleMethod, Seen
from trimtab.core.knobs import count, flag
from trimtab.core.places import Fold, Role, Site
from trimtab.formats import check_group_size
from trimtab.stats import Gram
from trimtab.tensors.scaling import Rounding, output_error

LEAST, MOST = 1e-2, 1e2  # of c: beyond, the rows of `up` would lose more than `down` gains


@dataclass(frozen=True)
class D2Quant(ScaleMethod):
    card: ClassVar = Card(
        id="d2quant",
        title="D2Quant: Accurate Low-bit Post-Training Weight Quantization for LLMs",
        paper="arXiv:2602.02546",
        fidelity="reconstructed",
        beside=("awq", "gptq", "gptaq"),
        claims=(
            Claim(
                "helps-gptq-at-2-bit",
                "d2quant(bits=2, clip=True) -> gptq(bits=2, clip=True)",
                "<",
                "gptq(bits=2, clip=True)",
                note="the paper starts from gptaq with rotations, groups of 128",
            ),
            Claim(
                "helps-gptq-at-3-bit",
                "d2quant(bits=3, clip=True) -> gptq(bits=3, clip=True)",
                "<",
                "gptq(bits=3, clip=True)",
            ),
            Claim(
                "helps-clipped-rtn-at-3-bit",
                "d2quant(bits=3, clip=True) -> rtn(bits=3, clip=True)",
                "<",
                "rtn(bits=3, clip=True)",
            ),
            Claim(
                "helps-where-columns-stand-out",
                "d2quant(bits=2, clip=True) -> gptq(bits=2, clip=True)",
                "<",
                "gptq(bits=2, clip=True)",
                model="asset:own-5m-weight-outliers",
            ),
        ),
    )

    bits: int = count("bits per code of the rounding that follows", 2, 2, 8)
    group_size: int = count("inputs that share a scale in the rounding that follows; 0 = the whole row", 64, 0)
    symmetric: bool = flag("the rounding that follows centres its grid on zero", False)
    clip: bool = flag("the rounding that follows searches its clipping range", False)
    rounds: int = count("alternations of rounding and least squares", 15, 1, 100)
    weighted: bool = flag("keep the round with the least error of the outputs on calibration text, not of the weights", False)

    @property
    def needs(self) -> tuple[type, ...]:  # type: ignore[override]
        return (Gram,) if self.weighted else ()

    def fits(self, site: Site) -> None:
        if site.role is Role.DOWN:
            check_group_size(site.shape[1], self.group_size or site.shape[1], site.name)

    def scale(self, fold: Fold, weights: Mapping[Site, LinearWeight], seen: Seen) -> Tensor | None:
        (site, *others) = fold.consumers
        if others or site.role is not Role.DOWN:
            return None
        matrix, gram = weights[site].dense(), seen[Gram][site] if self.weighted else None
        rounding = Rounding(self.bits, self.group_size, self.symmetric, self.clip)
        tried: list[tuple[float, Tensor]] = []
        dual = torch.ones(fold.width, dtype=torch.float64, device=matrix.device)
        for _ in range(self.rounds + 1):
            rounded = rounding.nearest(matrix / dual.float())
            change = matrix - rounded * dual.float()
            tried.append((float(change.square().sum()) if gram is None else output_error(change, gram), dual))
            fitted = _fitted(matrix, rounded, dual)
            dual = fold.pooled((fitted / fitted.log().mean().exp()).clamp(LEAST, MOST))
        best, dual = min(tried, key=lambda one: one[0])
        seen.note("relative_error", best / tried[0][0] if tried[0][0] > 0 else 1.0)
        return 1 / dual


def _fitted(matrix: Tensor, rounded: Tensor, dual: Tensor) -> Tensor:
    """[in] float64: the least squares c for these rounded weights [out, in]; it stays where they are zero or turned round."""
    energy = rounded.square().sum(0, dtype=torch.float64)
    fitted = (matrix * rounded).sum(0, dtype=torch.float64) / energy
    return torch.where(fitted > 0, fitted, dual)  # NaN is not above 0
