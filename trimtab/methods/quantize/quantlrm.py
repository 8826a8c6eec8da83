"""QuantLRM: AWQ's scales, from what fine-tuning did to the weights instead of from the activations.

delta = |W - W_base|. Over all positive entries of all matrices: the least x0, the median xm, the largest x1. Each entry counts
    1 + 9 ((xm - delta) / (xm - x0))^2 below the median,  1 + 9 ((delta - xm) / (x1 - xm))^2 above,  1 where it is 0,
so that both ends are protected. A channel's importance: the mean over rows, times 1 + the number of rows that did not move.
Then scales = importance^r with the r of {0, 1/20 .. 19/20} that leaves the least output error, folded as in `awq`.
Zhang et al., 2026 (arXiv:2602.02581), the authors' code. Matrices that share an input go by the first of them, stacked experts
by their mean. Query heads that share values share importance before the search, not after it. A common factor of the scales
is taken out, which means nothing to the rounding. Both models are compared in bfloat16 (`rounded`): in float32 hardly any
weight stays exactly where it was. The error is measured as in `awq`. Must come first in a recipe: what an earlier step rotated
or scaled differs from the base everywhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import LinearWeight, Original, Reference, ScaleMethod, Seen
from trimtab.core.knobs import count, flag, model, number
from trimtab.core.places import Fold, Role, Site
from trimtab.formats import check_group_size
from trimtab.stats import Gram
from trimtab.tensors.middle import spread
from trimtab.tensors.scaling import Rounding, power, search

STEPS = 20
PAIR = "the pair is small: 5 million parameters, 1.3 million tokens of passages, then 0.2 million of arithmetic"


@dataclass(frozen=True)
class QuantLRM(ScaleMethod):
    card: ClassVar = Card(
        id="quantlrm",
        title="QuantLRM: Quantization of Large Reasoning Models via Fine-Tuning Signals",
        paper="arXiv:2602.02581",
        fidelity="variant",
        beside=("awq", "awq_clip"),
        claims=(
            Claim(
                "helps-rtn-at-3-bit",
                "quantlrm(base='asset:own-5m', bits=3) -> rtn(bits=3)",
                "<",
                "rtn(bits=3)",
                note=PAIR,
                model="asset:own-5m-tuned",
                text="asset:gsm8k-rest",
            ),
            Claim(
                "beats-awq-at-3-bit",
                "quantlrm(base='asset:own-5m', bits=3) -> awq_clip(bits=3)",
                "<",
                "awq(bits=3) -> awq_clip(bits=3)",
                published="6.55 % better task scores on average after reinforcement learning, reasoning models, groups of 128",
                note=f"{PAIR}; both with the clipping of awq, as published",
                model="asset:own-5m-tuned",
                text="asset:gsm8k-rest",
            ),
            Claim(
                "ends-beat-the-middle-at-3-bit",
                "quantlrm(base='asset:own-5m', bits=3) -> rtn(bits=3)",
                "<",
                "quantlrm(base='asset:own-5m', bits=3, ends=0.1) -> rtn(bits=3)",
                note=f"{PAIR}; protected is what changed least and most, against what changed by the median",
                model="asset:own-5m-tuned",
                text="asset:gsm8k-rest",
            ),
        ),
    )
    needs: ClassVar = (Gram, Reference, Original)

    base: str = model("the model before fine-tuning: folder, hub name or asset")
    bits: int = count("bits per code of the rounding that follows", 3, 2, 8)
    group_size: int = count("inputs that share a scale in the rounding that follows; 0 = the whole row", 64, 0)
    symmetric: bool = flag("the rounding that follows centres its grid on zero", False)
    clip: bool = flag("the rounding that follows searches its clipping range", False)
    ends: float = number("what the least and largest change count, the median being 1; below 1: the middle", 10.0, 0.01, 1000)
    rounded: bool = flag("compare the two models in bfloat16", True)

    def fits(self, site: Site) -> None:
        check_group_size(site.shape[1], self.group_size or site.shape[1], site.name)

    def scale(self, fold: Fold, weights: Mapping[Site, LinearWeight], seen: Seen) -> Tensor:
        importance = seen.once(QuantLRM, lambda: self._importance(seen))
        sites = list(weights)
        speaking = sites if sites[0].index is not None else sites[:1]
        values = fold.pooled(torch.stack([importance[site] for site in speaking]).mean(0))
        matrices, grams = [weights[site].dense() for site in sites], [seen[Gram][site] for site in sites]
        rounding = Rounding(self.bits, self.group_size, self.symmetric, self.clip)
        found = search(lambda exponent: power(values, exponent), STEPS, matrices, grams, rounding)
        seen.note("exponent", found.exponent)
        seen.note("relative_error", found.relative)
        return found.scale

    def _importance(self, seen: Seen) -> dict[Site, Tensor]:
        """[in] float64 of every matrix of the blocks. Asked before anything is folded, of the untouched model."""
        mine: Mapping[Site, Tensor] = seen[Original]
        base: Mapping[Site, Tensor] = seen[Reference]
        sites = [site for site in mine if site.block is not None and site.role is not Role.ROUTER]

        def change(site: Site) -> Tensor:
            dtype = torch.bfloat16 if self.rounded else torch.float32
            return (mine[site].to(dtype).float() - base[site].to(dtype).float()).abs()

        try:
            least, median, largest = spread(lambda: map(change, sites))
        except ArithmeticError as error:
            raise ArithmeticError(f"no weight differs from those of {self.base}") from error
        return {site: self._channels(change(site), least, median, largest) for site in sites}

    def _channels(self, change: Tensor, least: float, median: float, largest: float) -> Tensor:
        """[in] float64 from the changes [out, in] of one matrix."""
        change = change.double()
        width = torch.where(change <= median, median - least, largest - median).clamp(min=1e-30)
        counts = 1 + (self.ends - 1) * ((change - median) / width).clamp(-1, 1).square()
        still = change == 0
        return torch.where(still, 1.0, counts).mean(0) * (1 + still.sum(0))
