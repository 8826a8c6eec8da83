"""Matrix product operators and butterflies as plain matrices, as `tensors.mpo` and `.butterfly` define them, without torch."""

from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trimtab.core.errors import ModelError

if TYPE_CHECKING:
    from trimtab.runtime.weights import Weight

MOST_SITES = 16
MOST_PER_NUMBER = 4096  # weights
WIDEST = 2**15  # inputs of a butterfly
Matrix = NDArray[np.float32]


def mpo(weight: "Weight") -> Matrix:
    """[out, in] of a `formats.Mpo`. Raises `ModelError` where spec and tensors disagree."""
    rows, columns, bonds = (_sizes(weight, name) for name in ("out", "in", "bonds"))
    if not len(rows) == len(columns) == len(bonds) - 1 or (bonds[0], bonds[-1]) != (1, 1):
        raise ModelError(f"{weight.path}: sites and bonds do not fit together")
    shapes = list(zip(bonds[:-1], rows, columns, bonds[1:], strict=True))
    few = sum(map(prod, shapes)) * MOST_PER_NUMBER < prod(weight.shape)
    if (prod(rows), prod(columns)) != weight.shape or few:
        raise ModelError(f"{weight.path}: the sites make no matrix of {weight.shape[0]} x {weight.shape[1]}")
    dtype, grown = _dtype(weight), np.ones((1, 1, 1), np.float32)  # [out so far, in so far, bond]
    for j, shape in enumerate(shapes):
        core = weight.tensor(f"core_{j}", dtype, *shape).floats().reshape(shape)
        joined = np.tensordot(grown, core, 1).transpose(0, 2, 1, 3, 4)
        grown = joined.reshape(grown.shape[0] * shape[1], grown.shape[1] * shape[2], shape[3])
    return np.ascontiguousarray(grown[:, :, 0])


def butterfly(weight: "Weight") -> Matrix:
    """[out, in] of a `formats.Butterfly`. Raises `ModelError` where spec and tensors disagree."""
    (out, in_), dtype = weight.shape, _dtype(weight)
    if in_ > WIDEST:
        raise ModelError(f"{weight.path}: a butterfly has at most {WIDEST} inputs, got {in_}")
    size = max(8, 1 << (in_ - 1).bit_length())
    stacks, levels, half = -(-out // size), size.bit_length() - 3, size // 2
    first = weight.tensor("first", dtype, stacks, in_, 2).floats().reshape(stacks, in_, 2)
    middle = weight.tensor("middle", dtype, stacks, levels, half, 2, 2).floats().reshape(stacks, levels, half, 2, 2)
    last = weight.tensor("last", dtype, out, 2).floats().reshape(out, 2)
    every = np.arange(in_)
    found = []
    for stack in range(stacks):
        whole = np.zeros((size, in_), np.float32)
        for side in range(2):
            whole[every // 2 * 2 + side, every] = first[stack, :, side]
        for level in range(levels):
            stride = 2 << level
            pairs = middle[stack, level].reshape(-1, stride, 2, 2)
            mixed = np.einsum("bjoi,bijc->bojc", pairs, whole.reshape(-1, 2, stride, in_))
            whole = mixed.reshape(size, in_)
        rows = np.arange(stack * size, min(out, (stack + 1) * size))
        found.append(last[rows, :1] * whole[rows % half] + last[rows, 1:] * whole[rows % half + half])
    return np.concatenate(found).astype(np.float32)


def _dtype(weight: "Weight") -> str:
    dtype = weight.spec.get("dtype")
    if dtype not in ("float32", "float16", "bfloat16", "float64"):
        raise ModelError(f"{weight.path}: dtype must be one of floating point numbers, got {dtype!r:.40}")
    return str(dtype)


def _sizes(weight: "Weight", name: str) -> list[int]:
    value: Any = weight.spec.get(name)
    whole = isinstance(value, list) and all(type(size) is int and size >= 1 for size in value)
    if not whole or not 1 <= len(value) <= MOST_SITES + 1:
        raise ModelError(f"{weight.path}: {name} must be a list of 1 to {MOST_SITES} sizes")
    return list(value)
