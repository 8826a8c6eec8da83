"""How a weight is applied: y = x W^T + bias, following the structure instead of multiplying it out where that is cheaper.

A chain is applied factor by factor, a sum part by part, a rotation and a rounding to the activations, a Kronecker product
factor by factor; every other format, a leaf, through
dense(). This is the specification in terms of outputs, and the path where no kernel serves a format.
"""

from collections.abc import Callable, Iterator
from typing import TypeGuard

import torch.nn.functional as F
from torch import Tensor

from trimtab.core.kinds import LinearWeight
from trimtab.formats.activations import Activations
from trimtab.formats.block_diagonal import BlockDiagonal
from trimtab.formats.butterfly import Butterfly
from trimtab.formats.codebook import Codebook
from trimtab.formats.kronecker import Kronecker
from trimtab.formats.lowrank import Chain
from trimtab.formats.mpo import Mpo
from trimtab.formats.permutation import Permutation
from trimtab.formats.reassembly import Reassembly
from trimtab.formats.rotated import Rotated
from trimtab.formats.rotation import Rotation
from trimtab.formats.sum import Sum
from trimtab.tensors.blocks import from_right
from trimtab.tensors.hadamard import inverse, transform


def through_dense(x: Tensor, weight: LinearWeight, bias: Tensor | None = None) -> Tensor:
    """One product with the unpacked matrix, or with its blocks, cores or factors where these are less, in the dtype of x."""
    if isinstance(weight, BlockDiagonal):
        y = from_right(x.reshape(-1, weight.shape[1]), weight.blocks.to(x.dtype).mT).view(*x.shape[:-1], weight.shape[0])
        return y if bias is None else y + bias
    if is_short(weight):
        # In float32: what is rounded at every factor adds up.
        y = weight.times(x.reshape(-1, weight.shape[1]).float()).to(x.dtype).view(*x.shape[:-1], weight.shape[0])
        return y if bias is None else y + bias
    return F.linear(x, weight.dense().to(x.dtype), bias)


def is_short(weight: LinearWeight) -> TypeGuard[Mpo | Butterfly]:
    """Whether going through the structure multiplies less than the unpacked matrix would."""
    return isinstance(weight, Mpo | Butterfly) and weight.is_short


FEW = 8  # rows of x up to which picking sums out of a table beats the product: the table is read once, the picks per row


def picks(weight: LinearWeight, x: Tensor) -> TypeGuard[Codebook]:
    """Whether outputs are sums of entries that are whole rows, and x has few rows: then entries are multiplied, not outputs."""
    whole = isinstance(weight, Codebook) and weight.scale is None and weight.codebook.shape[-1] == weight.shape[1]
    return whole and x.numel() <= FEW * x.shape[-1]


def _picked(x: Tensor, weight: Codebook, bias: Tensor | None) -> Tensor:
    products = x @ weight.codebook.flatten(0, 1).to(x.dtype).T  # [..., books * entries]
    codes, entries = weight.codes.flatten(1).long(), weight.codebook.shape[1]
    total = products[..., codes[0]]
    for book in range(1, len(codes)):
        total = total + products[..., codes[book] + book * entries]
    return total if bias is None else total + bias


Leaf = Callable[[Tensor, LinearWeight, Tensor | None], Tensor]


def linear(x: Tensor, weight: LinearWeight, bias: Tensor | None = None, leaf: Leaf = through_dense) -> Tensor:
    """x [..., in], weight [out, in], bias [out] or None -> [..., out], in the dtype of x.

    leaf: multiplies by what is no composition.
    """
    if isinstance(weight, Chain):
        for factor in reversed(weight.factors[1:]):
            x = linear(x, factor, None, leaf)
        return linear(x, weight.factors[0], bias, leaf)
    if isinstance(weight, Sum):
        total = linear(x, weight.parts[0], bias, leaf)
        for part in weight.parts[1:]:
            total = total + linear(x, part, None, leaf)
        return total
    if isinstance(weight, Rotated):
        return linear(transform(x, weight.block, weight.signs), weight.inner, bias, leaf)
    if isinstance(weight, Activations):
        return linear(weight.rounded(x), weight.inner, bias, leaf)
    if picks(weight, x):
        return _picked(x, weight, bias)
    if isinstance(weight, Rotation | Kronecker | Permutation | Reassembly):
        y = inverse(x, weight.block, weight.signs) if isinstance(weight, Rotation) else weight.applied(x)
        return y if bias is None else y + bias
    return leaf(x, weight, bias)


def leaves(weight: LinearWeight) -> Iterator[LinearWeight]:
    """What `linear` multiplies by, in no particular order."""
    if isinstance(weight, Chain):
        parts = weight.factors
    elif isinstance(weight, Sum):
        parts = weight.parts
    elif isinstance(weight, Rotated | Activations):
        parts = (weight.inner,)
    elif isinstance(weight, Rotation | Kronecker | Permutation | Reassembly):
        return
    else:
        yield weight
        return
    for part in parts:
        yield from leaves(part)
