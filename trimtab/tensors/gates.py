"""Gates that are learned: numbers from 0 to 1 with a gradient, and most of them at one end or the other."""

import math

import torch
from torch import Tensor

TEMPERATURE = 2 / 3
LOW, HIGH = -0.1, 1.1  # a sigmoid is stretched to this and cut to [0, 1], so that both ends have a share of their own
OFFSET, COLD = 3.0, 0.4
SETTLING = 0.8  # of a logit over the temperature, where nothing is drawn any more


def hard_concrete(logits: Tensor, uniform: Tensor) -> Tensor:
    """clip(sigmoid((log u - log(1 - u) + a) / T) (HIGH - LOW) + LOW, 0, 1), elementwise. uniform: u in (0, 1).

    Louizos et al., 2018 (arXiv:1712.01312).
    """
    return _stretched((torch.logit(uniform) + logits) / TEMPERATURE)


def without_noise(logits: Tensor) -> Tensor:
    """What a gate is once nothing is drawn."""
    return _stretched(logits / TEMPERATURE * SETTLING)


def likely_open(logits: Tensor) -> Tensor:
    """P(gate > 0) of a hard concrete gate."""
    return torch.sigmoid(logits - TEMPERATURE * math.log(-LOW / HIGH))


def gumbel_sigmoid(logits: Tensor, uniform: Tensor) -> Tensor:
    """sigmoid((a - log(-log u) + OFFSET) / COLD), elementwise. uniform: u in (0, 1).

    Gao et al., 2024 (arXiv:2410.11988); the offset opens nearly all gates in the beginning, where logits are near zero.
    """
    return torch.sigmoid((logits - torch.log(-torch.log(uniform)) + OFFSET) / COLD)


def _stretched(x: Tensor) -> Tensor:
    return (x.sigmoid() * (HIGH - LOW) + LOW).clamp(0, 1)


def polar(strength: Tensor, softness: float) -> Tensor:
    """a^2 / (a^2 + softness), elementwise: the smaller the softness, the nearer to 0 or 1."""
    square = strength.square()
    return square / (square + softness)


def reversed_(value: Tensor) -> Tensor:
    """The same value with the gradient turned round: what lowers a loss raises it by this one."""
    return 2 * value.detach() - value
