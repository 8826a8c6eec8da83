"""The base matrix that a stored rotation starts from: entries +-1, for orders that are no power of two.

The same matrices as `tensors.hadamard`, which builds more of them and imports torch: here fields of prime size suffice, so
that orders built on a prime power (28, 52, 76, ...) are refused.
"""

from math import isqrt
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trimtab.core.errors import ModelError
from trimtab.runtime.errors import Unsupported

if TYPE_CHECKING:
    from trimtab.runtime.weights import Weight

LARGEST = 2048


def base(block: int) -> NDArray[np.float32]:
    """[n, n] with block = n * 2**k, n the smallest order of Paley's; [1, 1] for a power of two. Raises `Unsupported`."""
    odd = block // (block & -block)
    if odd == 1:
        return np.ones((1, 1), np.float32)
    order = 4 * odd
    while order <= min(block, LARGEST):
        first, second = order - 1, order // 2 - 1
        if first % 4 == 3 and _is_power(first):
            return np.eye(order, dtype=np.float32) + _bordered(_prime(first), -1.0)
        if second % 4 == 1 and _is_power(second):
            core = _bordered(_prime(second), 1.0)
            off, on = np.array([[1.0, 1.0], [1.0, -1.0]]), np.array([[1.0, -1.0], [-1.0, -1.0]])
            return (np.kron(core, off) + np.kron(np.eye(len(core)), on)).astype(np.float32)
        order *= 2
    raise Unsupported(f"there is no Hadamard matrix of order {block} here")


def rotation(weight: "Weight") -> NDArray[np.float32]:
    """[n, n] of a `formats.Rotation`. Raises `ModelError` where spec and tensors disagree."""
    width, block = weight.shape[0], weight.size("block")
    if width % block or weight.shape[1] != width:
        raise ModelError(f"{weight.path}: a block of {block} does not divide {list(weight.shape)}")
    turn = base(block)
    while len(turn) < block:
        turn = np.kron(turn, np.array([[1, 1], [1, -1]], np.float32))
    bits = np.unpackbits(weight.tensor("signs", "uint8", -(-width // 8)).array(), bitorder="little")[:width]
    full = np.kron(np.eye(width // block, dtype=np.float32), turn / np.float32(block**0.5))
    return full * (1 - 2 * bits.astype(np.float32))[:, None]


def _bordered(q: int, below: float) -> NDArray[np.float32]:
    """[q + 1, q + 1]: +1 where row - column is a nonzero square modulo q, -1 where it is none, in a border of ones."""
    character = np.full(q, -1.0)
    character[np.arange(q) ** 2 % q] = 1.0
    character[0] = 0.0
    matrix = np.ones((q + 1, q + 1))
    matrix[0, 0] = 0.0
    matrix[1:, 0] = below
    matrix[1:, 1:] = character[(np.arange(q)[:, None] - np.arange(q)) % q]
    return matrix.astype(np.float32)


def _is_power(q: int) -> bool:
    """Whether q is a prime, its square or its cube."""
    if q < 2:
        return False
    p = _smallest_factor(q)
    return q in (p, p**2, p**3)


def _prime(q: int) -> int:
    if _smallest_factor(q) != q:
        raise Unsupported(f"rotations built on the field of {q} elements are not covered")
    return q


def _smallest_factor(q: int) -> int:
    return next((d for d in range(2, isqrt(q) + 1) if q % d == 0), q)
