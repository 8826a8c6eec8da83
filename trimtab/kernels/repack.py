"""From stored tensors to the layout that kernels read, once per weight.

Files are the same on every machine; what a processor wants to stream is not that. A weight is repacked when it is first
multiplied, and the result lives as long as the weight. How the bytes lie is told in native/include/trimtab/layout.h.
"""

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from trimtab.core.errors import ModelError
from trimtab.core.kinds import LinearWeight
from trimtab.formats import NM, BitPlanes, BlockDiagonal, Codebook, Dense, Grouped, Masked
from trimtab.kernels.module import native

PLAIN = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}

_made: WeakKeyDictionary[LinearWeight, Any] = WeakKeyDictionary()


def has_kernel(weight: LinearWeight) -> bool:
    """Whether kernels exist for this format, as it is stored and where it is."""
    if type(weight) not in _REPACK or any(t.device.type != "cpu" for t in weight.tensors().values()):
        return False
    return all(dtype in PLAIN for dtype in _number_types(weight))


def repacked(weight: LinearWeight) -> Any:
    """The matrix for `trimtab_native.linear`. Raises `ModelError` where tensors disagree with the sizes beside them."""
    if weight not in _made:
        _made[weight] = repack(weight)
    return _made[weight]


def repack(weight: LinearWeight) -> Any:
    """The same, made anew."""
    try:
        return _REPACK[type(weight)](weight)
    except ValueError as error:
        raise ModelError(f"{weight.kind}: {error}") from error


def raw(tensor: Tensor) -> Any:
    """The bytes of a tensor as a flat NumPy array, without a copy where they lie in order."""
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()


def _number_types(weight: LinearWeight) -> list[torch.dtype]:
    """Of the weights that a format keeps as numbers; of some types there is no kernel."""
    if isinstance(weight, Dense):
        return [weight.weight.dtype]
    if isinstance(weight, BlockDiagonal):
        return [weight.blocks.dtype]
    return [weight.values.dtype] if isinstance(weight, Masked | NM) else []


def _grouped(weight: Grouped) -> Any:
    zero = None if weight.packed_zero is None else raw(weight.packed_zero)
    return native().Matrix.grouped(
        raw(weight.packed), raw(weight.scale), zero, *weight.shape, weight.code_bits, weight.group_size
    )


def _bitplanes(weight: BitPlanes) -> Any:
    planes, scale, offset = raw(weight.planes), raw(weight.scale), raw(weight.offset)
    return native().Matrix.bitplanes(planes, scale, offset, *weight.shape, len(weight.planes), weight.group_size)


def _dense(weight: Dense) -> Any:
    return native().Matrix.dense(raw(weight.weight), PLAIN[weight.weight.dtype], *weight.shape)


def _masked(weight: Masked) -> Any:
    return native().Matrix.masked(raw(weight.values), raw(weight.bitmap), PLAIN[weight.values.dtype], *weight.shape)


def _block_diagonal(weight: BlockDiagonal) -> Any:
    return native().Matrix.masked(raw(weight.blocks), raw(weight.bitmap), PLAIN[weight.blocks.dtype], *weight.shape)


def _nm(weight: NM) -> Any:
    values, positions = raw(weight.values), raw(weight.packed)
    return native().Matrix.some_of(values, positions, PLAIN[weight.values.dtype], *weight.shape, weight.n, weight.m)


def _codebook(weight: Codebook) -> Any:
    scale = None if weight.scale is None else raw(weight.scale)
    group_size = weight.group_size or weight.shape[1]
    sizes = weight.codebook.shape  # [books, entries, dim]
    return native().Matrix.codebook(raw(weight.packed), raw(weight.codebook), scale, *weight.shape, *sizes, group_size)


_REPACK: dict[type, Callable[[Any], Any]] = {
    Grouped: _grouped,
    BitPlanes: _bitplanes,
    Dense: _dense,
    Masked: _masked,
    NM: _nm,
    BlockDiagonal: _block_diagonal,
    Codebook: _codebook,
}
