"""Student's t for any number of degrees of freedom, also broken ones, as estimates of variance in several parts have them."""

import math

import torch

STEPS = 20_000
MOST = 1e4  # beyond, the normal distribution is reached to four digits


def student_quantile(probability: float, freedom: float) -> float:
    """The value below which a t variable of `freedom` >= 1 degrees stays with `probability` >= 0.5. Good to five digits.

    With t = sqrt(freedom) tan(angle) the density becomes cos(angle) ** (freedom - 1) on a finite stretch, which is summed up.
    """
    freedom = min(freedom, MOST)
    angle = torch.linspace(0, math.pi / 2, STEPS + 1, dtype=torch.float64)
    density = angle.cos().clamp_min(0) ** (freedom - 1)
    area = torch.cat([torch.zeros(1, dtype=torch.float64), torch.cumulative_trapezoid(density, angle)])
    wanted = (2 * probability - 1) * area[-1]
    after = int(torch.searchsorted(area, wanted).clamp(1, STEPS))
    share = (wanted - area[after - 1]) / (area[after] - area[after - 1])
    return math.sqrt(freedom) * math.tan(float(angle[after - 1] + share * (angle[after] - angle[after - 1])))
