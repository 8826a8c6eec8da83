"""From scores to strengths: a mean that is met exactly, with what is worth more above or below it."""

import torch
from torch import Tensor

HALVINGS = 80  # of the interval that holds the shift


def centred(scores: Tensor) -> Tensor:
    """Less their mean, in units of the largest deviation: [-1, 1]. Zeros where all are equal."""
    deviation = scores.double() - scores.double().mean()
    return deviation / deviation.abs().max().clamp_min(torch.finfo(torch.float64).tiny)


def around(offsets: Tensor, weights: Tensor, mean: float, low: float, high: float) -> Tensor:
    """mean + offsets + one shift for all, within [low, high], such that the weighted mean is `mean`. [n] float64 each.

    Raises ValueError unless low <= mean <= high.
    """
    if not low <= mean <= high:
        raise ValueError(f"a mean of {mean:g} is not between {low:g} and {high:g}")
    share = weights.double() / weights.double().sum()
    reach = float(offsets.abs().max()) + high - low
    below, above = -reach, reach
    for _ in range(HALVINGS):
        middle = (below + above) / 2
        if float((share * (mean + offsets + middle).clamp(low, high)).sum()) < mean:
            below = middle
        else:
            above = middle
    return (mean + offsets.double() + above).clamp(low, high)
