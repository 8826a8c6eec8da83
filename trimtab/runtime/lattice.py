"""Points of the lattice E8 by their numbers, as `tensors.lattice` defines them, without torch."""

from functools import cache
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trimtab.core.errors import ModelError

if TYPE_CHECKING:
    from trimtab.runtime.weights import Weight

DIM = 8
SHIFT = 0.25
FULL = 10.0  # squared length up to which all magnitudes are there


def lattice(weight: "Weight") -> NDArray[np.float32]:
    """[out, in] of a `formats.Lattice`. Raises `ModelError` where spec and tensors disagree."""
    (out, in_), bits = weight.shape, weight.size("bits", 1, 2)
    if in_ % DIM:
        raise ModelError(f"{weight.path}: {DIM} does not divide {in_}")
    stored = weight.tensor("codes", "uint8", out, bits * in_ // DIM).array().reshape(out, -1, bits)
    codes = sum(stored[..., i].astype(np.int64) << (8 * i) for i in range(bits))
    scale = weight.tensor("scale", "float16", 1).floats()
    full: NDArray[np.float32] = (_points(codes, bits) * scale).reshape(out, in_)
    return full


def _points(codes: Any, bits: int) -> NDArray[np.float32]:
    """[..., 8] of codes [...]."""
    if bits == 1:
        return _small()[codes]
    binary = (codes[..., None] >> np.arange(DIM, 2 * DIM)) & 1
    magnitude = _magnitudes()[codes & 255]
    # The last sign makes the sum even: each minus changes it by an odd number.
    odd = (magnitude.sum(-1).astype(np.int64) + binary[..., :-1].sum(-1)) % 2
    signs = 1 - 2 * np.concatenate([binary[..., :-1], odd[..., None]], -1)
    found: NDArray[np.float32] = (magnitude * signs + (2 * binary[..., -1:] - 1) * SHIFT).astype(np.float32)
    return found


@cache
def _magnitudes() -> NDArray[np.float32]:
    """[256, 8], in lexicographic order but for the longer ones, which come last."""
    full = np.array(list(product((0.5, 1.5, 2.5), repeat=DIM)), np.float32)
    more = np.array(list(product((0.5, 1.5), repeat=DIM)), np.float32)
    more = more[np.square(more).sum(1) == 12.0]
    within = full[np.square(full).sum(1) <= FULL]
    return np.concatenate([within, more[: 2**DIM - len(within)]])


@cache
def _small() -> NDArray[np.float32]:
    """[256, 8]: by length, and lexicographically among equals."""
    whole = np.array(list(product((-1.0, 0.0, 1.0), repeat=DIM)), np.float32)
    halves = np.array(list(product((-0.5, 0.5), repeat=DIM)), np.float32)
    even = np.concatenate([halves, whole])
    even = even[even.sum(1).astype(np.int64) % 2 == 0]
    length = np.square(even).sum(1)
    twice = np.concatenate([-2 * np.eye(DIM), 2 * np.eye(DIM)[::-1]])[1:].astype(np.float32)
    return np.concatenate([even[length == 0], even[length == 2], twice])
