"""Matrices that are sums of signs, unpacked: `formats.SignPlanes` and `formats.SignStack` without torch."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trimtab.core.errors import ModelError

if TYPE_CHECKING:
    from trimtab.runtime.weights import Weight

NOTHING, LEAST, MOST = -128, -64, 63  # exponents of two: what stands for zero, and the range of the others


def signplanes(weight: "Weight") -> NDArray[np.float32]:
    """[out, in]. Raises `ModelError` where spec and tensors disagree."""
    (out, in_), count = weight.shape, weight.size("planes", 1, 8)
    rows, columns = weight.size("rows", 1, out), weight.size("columns", 1, in_)
    blocks = -(-out // rows), -(-in_ // columns), count
    if weight.spec.get("shifts"):
        scale = _powers(weight, weight.tensor("shifts", "int8", *blocks).array())
    else:
        scale = weight.tensor("scale", "float16", *blocks).floats()
    planes = weight.tensor("planes", "uint8", count, out, -(-in_ // 8)).array()
    full = np.zeros((out, in_), np.float32)
    for j, plane in enumerate(planes):
        size = scale[..., j].repeat(rows, 0)[:out].repeat(columns, 1)[:, :in_]
        full += np.where(_set_bits(plane, in_), size, -size)
    return full


def signstack(weight: "Weight") -> NDArray[np.float32]:
    """[out, in], of all blocks that are there. Raises `ModelError` where spec and tensors disagree."""
    (out, in_), blocks = weight.shape, weight.size("blocks", 1, 64)
    rank = weight.size("rank", 1, min(out, in_))
    signs = weight.tensor("signs", "uint8", blocks, out, -(-in_ // 8)).array()
    left = weight.tensor("left", "float16", blocks, out, rank).floats()
    right = weight.tensor("right", "float16", blocks, rank, in_).floats()
    full = np.zeros((out, in_), np.float32)
    for sign, a, b in zip(signs, left, right, strict=True):
        size = a @ b
        full += np.where(_set_bits(sign, in_), -size, size)
    return full


def _set_bits(packed: NDArray[np.uint8], n: int) -> NDArray[np.bool_]:
    return np.unpackbits(packed, axis=-1, bitorder="little")[:, :n].astype(bool)


def _powers(weight: "Weight", exponents: NDArray[Any]) -> NDArray[np.float32]:
    there = exponents != NOTHING
    if bool((there & ((exponents < LEAST) | (exponents > MOST))).any()):
        raise ModelError(f"{weight.path}: shifts must be from {LEAST} to {MOST}, or {NOTHING} for zero")
    return np.where(there, np.ldexp(np.float32(1), exponents.astype(np.int32)), np.float32(0)).astype(np.float32)
