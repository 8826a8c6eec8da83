"""AWQ: channels with loud inputs are scaled up before rounding, and what feeds them is scaled down.

s = a^r / sqrt(max * min),  a = mean_t |x_t| per channel;  r of {0, 1/20 .. 19/20} with the least output error of rounding
    sum over the matrices that share the input of  mean_t |(Q(W diag(s)) diag(s)^-1 - W) x_t|^2.
Norm gains or rows of the matrix before are divided, so the model says the same; then round by `awq_clip` (the paper's second
half), `rtn` or `gptq` with the same bits and group_size.
Lin et al., MLSys 2024 (arXiv:2306.00978). The error is summed over the matrices instead of being taken behind the attention
or MLP they belong to; it comes from the gram, so all calibration tokens count and not a sample. Channels that are silent keep
scale 1. Query heads that share values share scales, by the mean of a. duo: s = a^r / u^(1-r) with u the mean of |w| over the
largest |w| of its group, as later implementations offer; exponent 0 scales nothing in both.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import LinearWeight, ScaleMethod, Seen
from trimtab.core.knobs import count, flag
from trimtab.core.places import Fold, Site
from trimtab.formats import check_group_size
from trimtab.stats import AbsMean, Gram
from trimtab.tensors.scaling import Rounding, power, search

TINY = 1e-4  # keeps channels without weights from growing beyond bounds


@dataclass(frozen=True)
class Awq(ScaleMethod):
    card: ClassVar = Card(
        id="awq",
        title="AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration",
        paper="arXiv:2306.00978",
        fidelity="variant",
        beside=("awq_clip", "smoothquant", "gptq", "rtn"),
        claims=(
            Claim(
                "helps-rtn-at-3-bit",
                "awq(bits=3) -> rtn(bits=3)",
                "<",
                "rtn(bits=3)",
                published="6.24 (with clipping) < 6.66, Llama-2-7B, WikiText2, groups of 128",
            ),
            Claim("helps-clipped-rtn-at-3-bit", "awq(bits=3) -> rtn(bits=3, clip=True)", "<", "rtn(bits=3, clip=True)"),
            Claim(
                "helps-rtn-at-4-bit",
                "awq(bits=4) -> rtn(bits=4)",
                "<",
                "rtn(bits=4)",
                published="5.60 (with clipping) < 5.73, Llama-2-7B, WikiText2, groups of 128",
            ),
            Claim(
                "beats-gptq-at-3-bit",
                "awq(bits=3) -> awq_clip(bits=3)",
                "<",
                "gptq(bits=3)",
                published="6.24 < 6.42, Llama-2-7B, WikiText2, groups of 128",
            ),
            Claim("helps-gptq-at-3-bit", "awq(bits=3) -> gptq(bits=3)", "<", "gptq(bits=3)"),
            Claim(
                "helps-rtn-where-channels-stand-out",
                "awq(bits=3) -> rtn(bits=3, clip=True)",
                "<",
                "rtn(bits=3, clip=True)",
                model="asset:own-5m-outliers",
            ),
            Claim("beats-smoothquant-at-3-bit", "awq(bits=3) -> rtn(bits=3)", "<", "smoothquant -> rtn(bits=3)"),
        ),
    )
    needs: ClassVar = (AbsMean, Gram)

    bits: int = count("bits per code of the rounding that follows", 4, 2, 8)
    group_size: int = count("inputs that share a scale in the rounding that follows; 0 = the whole row", 64, 0)
    symmetric: bool = flag("the rounding that follows centres its grid on zero", False)
    clip: bool = flag("the rounding that follows searches its clipping range", False)
    steps: int = count("exponents to try, from 0 in steps of one over their number", 20, 2, 100)
    duo: bool = flag("also scale down where the weights of a channel are large", False)

    def fits(self, site: Site) -> None:
        check_group_size(site.shape[1], self.group_size or site.shape[1], site.name)

    def scale(self, fold: Fold, weights: Mapping[Site, LinearWeight], seen: Seen) -> Tensor:
        loudness = fold.pooled(seen[AbsMean][fold.consumers[0]].double())  # [in]
        matrices = [weight.dense() for weight in weights.values()]
        spread = fold.pooled(self._spread(torch.cat(matrices))) if self.duo else None

        def curve(exponent: float) -> Tensor:
            if spread is None or exponent == 0:
                return power(loudness, exponent)
            return power(loudness.pow(exponent) / (spread.pow(1 - exponent) + TINY), 1.0)

        rounding = Rounding(self.bits, self.group_size, self.symmetric, self.clip)
        found = search(curve, self.steps, matrices, [seen[Gram][site] for site in weights], rounding)
        seen.note("exponent", found.exponent)
        seen.note("relative_error", found.relative)
        return found.scale

    def _spread(self, weight: Tensor) -> Tensor:
        """[in] float64: mean over rows of |w| relative to the largest of its group. weight: all rows, [out, in]."""
        groups = weight.double().abs().reshape(len(weight), -1, self.group_size or weight.shape[1])
        return (groups / (groups.amax(-1, keepdim=True) + TINY)).reshape(weight.shape).mean(0)
