"""Which codes to change when a gradient says how the matrix should be: few at once, so that the linear picture still holds.

A change of a code is a jump. Many jumps together leave the region where the gradient tells anything, and the loss rises; a few
of the most wanted ones, together no longer than a trusted length, lower it. (PV-tuning, arXiv:2405.14852, section 3.)
"""

import torch
from torch import Tensor

MEMORY = 0.95  # of the squared gradients, from step to step


def adaptive(gradient: Tensor, square: Tensor, taken: int) -> Tensor:
    """Adam's direction without momentum, scaled to root mean square 1 over the matrix; zero where no gradient ever was.

    square: the running mean of squared gradients, renewed in place. taken: steps so far, this one included.
    """
    square.mul_(MEMORY).addcmul_(gradient, gradient, value=1 - MEMORY)
    steady = square / (1 - MEMORY**taken)
    direction = torch.where(square > 0, gradient * steady.rsqrt(), 0.0)
    return direction / direction.square().mean().sqrt().clamp(min=torch.finfo(direction.dtype).tiny)


def most_wanted(asked: Tensor, share: float) -> Tensor:
    """Numbers of the runs that shall change most, the first one most; a share of all runs, at least one. asked [runs, dim]."""
    count = max(1, int(share * len(asked) + 1e-9))
    return asked.square().sum(1).topk(count).indices


def trusted(change: Tensor, length: float) -> Tensor:
    """The longest beginning of some changes [n, dim] that is together no longer than `length`. bool [n]."""
    return change.double().square().sum(1).cumsum(0) <= length**2
