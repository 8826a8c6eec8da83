"""How a weight is applied: y = x W^T + bias, following the structure instead of multiplying it out where that is cheaper.

A chain is applied factor by factor, a sum part by part, a rotation to the activations; every other format through dense().
This is the specification in terms of outputs, and the path where no kernel serves a format.
"""

import torch.nn.functional as F
from torch import Tensor

from trimtab.core.kinds import LinearWeight
from trimtab.formats.lowrank import Chain
from trimtab.formats.rotated import Rotated
from trimtab.formats.sum import Sum
from trimtab.tensors.hadamard import transform


def linear(x: Tensor, weight: LinearWeight, bias: Tensor | None = None) -> Tensor:
    """x [..., in], weight [out, in], bias [out] or None -> [..., out], in the dtype of x."""
    if isinstance(weight, Chain):
        for factor in reversed(weight.factors[1:]):
            x = linear(x, factor)
        return linear(x, weight.factors[0], bias)
    if isinstance(weight, Sum):
        total = linear(x, weight.parts[0], bias)
        for part in weight.parts[1:]:
            total = total + linear(x, part)
        return total
    if isinstance(weight, Rotated):
        return linear(transform(x, weight.block, weight.signs), weight.inner, bias)
    return F.linear(x, weight.dense().to(x.dtype), bias)
