"""One symmetric scale for a whole matrix, clipped where the expected error over the distribution of its weights is least.

With p the histogram of |W| and Q the grid of integers -top .. top times limit / top, the limit with the least
    sum over |w| < limit of p(w) (w - Q(w))^2  +  sum over |w| >= limit of p(w) (|w| - limit)^2,
searched among ten fractions of the largest weight, then among all edges of bins between the neighbours of the best.
"""

import torch
from torch import Tensor

from trimtab.tensors.rounding import LARGEST, SMALLEST

FEWEST, MOST, PER_BIN = 512, 20_000, 1000  # bins of the histogram, and how many weights ask for one
COARSE = 10
AT_ONCE = 256  # limits that are tried together


def one_scale(weight: Tensor, bits: int, clip: bool = True) -> tuple[Tensor, Tensor]:
    """weight [out, in] float32 -> codes uint8 [out, in] with the middle 2^(bits - 1) for zero, and scale float16 [out, 1].

    clip: the range with the least expected error; else up to the largest weight. Raises ArithmeticError if the scale exceeds
    float16.
    """
    top = (1 << (bits - 1)) - 1
    limit = best_limit(weight.abs(), top) if clip else float(weight.abs().max())
    if not limit / top <= LARGEST:  # written so that NaN fails
        raise ArithmeticError("the scale of the matrix exceeds float16")
    scale = torch.full((len(weight), 1), limit / top if limit / top >= SMALLEST else 1.0, device=weight.device).half()
    codes = (weight / scale.float()).round_().clamp_(-top, top) + (top + 1)
    return codes.to(torch.uint8), scale


def best_limit(sizes: Tensor, top: int) -> float:
    """The clipping limit for integers -top .. top with the least expected squared error. sizes: |W|, any shape, float32."""
    largest = float(sizes.max())
    if largest == 0:
        return 0.0
    bins = min(max(FEWEST, sizes.numel() // PER_BIN), MOST)
    counts = torch.histc(sizes, bins, 0, largest).double()
    centres = torch.arange(bins, dtype=torch.float64, device=sizes.device) + 0.5  # everything in widths of a bin
    coarse = torch.linspace(bins / COARSE, bins, COARSE, dtype=torch.float64, device=sizes.device).round()
    near = int(_expected(coarse, centres, counts, top).argmin())
    low, high = (int(coarse[max(0, min(near + side, COARSE - 1))]) for side in (-1, 1))
    fine = torch.arange(1 if near == 0 else low, high + 1, dtype=torch.float64, device=sizes.device)
    best = float(fine[_expected(fine, centres, counts, top).argmin()])
    return best * largest / bins


def _expected(limits: Tensor, centres: Tensor, counts: Tensor, top: int) -> Tensor:
    """[limits]: squared error summed over the histogram, counts [bins] at centres [bins]."""
    errors = []
    for part in torch.split(limits, AT_ONCE):
        step = part[:, None] / top
        errors.append(((centres / step).round_().clamp_(max=top) * step - centres).square_() @ counts)
    return torch.cat(errors)
