"""Orthonormal Hadamard transforms for the widths that models really have, 576 = 36 * 16 and 11008 = 344 * 32 included.

A rotation spreads an outlier over many channels; a Hadamard matrix does it as evenly as possible, with entries +-1/sqrt(n),
and is cheap to apply because it is a Kronecker product. Order n = m * 2**k: the base m is built from the quadratic residues
of a finite field (Paley 1933, both constructions; fields of p, p**2 and p**3 elements), the rest by Sylvester's doubling.
H_n = H_m (x) H_64 (x) ... (x) H_r: applied one factor at a time, each a small matrix product. Radix 64 rather than 2: fewer
passes over memory, the same sums.

A base is not symmetric in general, so H and its transpose must not be confused: `transform` multiplies rows by R from the
right, `inverse` by its transpose, where R = diag(signs) (I (x) H_block).
"""

from functools import cache
from itertools import product
from math import isqrt, sqrt

import torch
from torch import Tensor

LARGEST_BASE = 2048  # a base is applied densely: beyond this it is no fast transform any more
RADIX = 64


def hadamard(n: int) -> Tensor:
    """[n, n] float64, orthonormal (entries +-1/sqrt(n)). Raises ValueError where no construction is at hand."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    for factor in _factors(n):
        matrix = torch.kron(matrix, factor)
    return matrix / sqrt(n)


def transform(x: Tensor, block: int, signs: Tensor | None = None) -> Tensor:
    """x R along the last axis, R = diag(signs) (I (x) H_block); x [..., width], signs [width] of +-1 or None for ones.

    Computed in float32 for narrower types, returned in the dtype of x. Raises ValueError if block does not divide the
    width or has no construction.
    """
    y = _wide(x) if signs is None else _wide(x) * signs.to(x.device, _wide(x).dtype)
    return _blockwise(y, block, transpose=False).to(x.dtype)


def inverse(x: Tensor, block: int, signs: Tensor | None = None) -> Tensor:
    """x R^T along the last axis: undoes `transform` with the same block and signs."""
    y = _blockwise(_wide(x), block, transpose=True)
    return (y if signs is None else y * signs.to(y.device, y.dtype)).to(x.dtype)


def exists(n: int) -> bool:
    """Whether `hadamard(n)` can be built."""
    return _base(n) is not None


def largest_block(width: int) -> int:
    """The largest n that divides width and for which `hadamard(n)` exists; 1 (no rotation at all) at worst."""
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    small = [d for d in range(1, isqrt(width) + 1) if width % d == 0]
    return next(n for n in sorted({*small, *(width // d for d in small)}, reverse=True) if exists(n))


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _blockwise(x: Tensor, block: int, transpose: bool) -> Tensor:
    if block < 1 or x.shape[-1] % block:
        raise ValueError(f"block {block} does not divide the width {x.shape[-1]}; use {largest_block(x.shape[-1])}")
    y, after = x, block
    for factor in _factors(block):
        matrix = (factor if transpose else factor.T).to(x.device, x.dtype)
        after //= len(matrix)
        y = _along(y.reshape(-1, len(matrix), after), matrix)
    return y.reshape(x.shape) / sqrt(block)


def _along(y: Tensor, matrix: Tensor) -> Tensor:
    """matrix [n, n] over the middle axis of y [before, n, after]."""
    return (y.squeeze(-1) @ matrix.T).unsqueeze(-1) if y.shape[-1] == 1 else matrix @ y


@cache
def _factors(n: int) -> tuple[Tensor, ...]:
    """Kronecker factors of H_n with entries +-1, the base first."""
    base = _base(n)
    if base is None:
        hint = f"; use {largest_block(n)}, which divides it" if n > 0 else ""
        raise ValueError(f"no Hadamard matrix of order {n} can be built here{hint}")
    rest = n // base
    sizes = []
    while rest > 1:
        sizes.append(min(rest, RADIX))
        rest //= sizes[-1]
    return (*((_paley(base),) if base > 1 else ()), *map(_sylvester, sizes))


def _sylvester(n: int) -> Tensor:
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < n:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


@cache
def _base(n: int) -> int | None:
    """The smallest m with n = m * 2**k that is 1 or an order of Paley's."""
    if n < 1:
        return None
    odd = n // (n & -n)
    if odd == 1:
        return 1
    m = 4 * odd
    while m <= min(n, LARGEST_BASE):
        if n % m == 0 and (_first(m) or _second(m)):
            return m
        m *= 2
    return None


def _first(m: int) -> bool:
    """Paley I: m = q + 1, q = 3 mod 4."""
    return (m - 1) % 4 == 3 and _prime_power(m - 1) is not None


def _second(m: int) -> bool:
    """Paley II: m = 2 (q + 1), q = 1 mod 4."""
    return (m // 2 - 1) % 4 == 1 and _prime_power(m // 2 - 1) is not None


def _paley(m: int) -> Tensor:
    if _first(m):
        return torch.eye(m, dtype=torch.float64) + _bordered(m - 1, below=-1.0)
    core = _bordered(m // 2 - 1, below=1.0)
    off = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    on = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
    return torch.kron(core, off) + torch.kron(torch.eye(len(core), dtype=torch.float64), on)


def _bordered(q: int, below: float) -> Tensor:
    """[q + 1, q + 1]: the residue matrix of GF(q) with a border of ones above, `below` to the left and 0 in the corner."""
    matrix = torch.ones(q + 1, q + 1, dtype=torch.float64)
    matrix[0, 0] = 0
    matrix[1:, 0] = below
    matrix[1:, 1:] = _residues(q)
    return matrix


def _residues(q: int) -> Tensor:
    """[q, q]: entry (a, b) is 1 where a - b is a nonzero square of GF(q), -1 where it is none, 0 on the diagonal."""
    field = _prime_power(q)
    assert field is not None
    p, degree = field
    elements = list(product(range(p), repeat=degree))
    squares = {_square(e, _irreducible(p, degree), p) for e in elements} - {(0,) * degree}
    character = torch.tensor([0.0 if not any(e) else 1.0 if e in squares else -1.0 for e in elements])
    digits = torch.tensor(elements)
    place = p ** torch.arange(degree - 1, -1, -1)
    difference = ((digits[:, None] - digits[None]) % p * place).sum(-1)
    return character.double()[difference]


def _square(element: tuple[int, ...], modulus: tuple[int, ...], p: int) -> tuple[int, ...]:
    """element, lowest power first, times itself modulo x**degree - modulus(x)."""
    degree = len(element)
    powers = [0] * (2 * degree - 1)
    for (i, a), (j, b) in product(enumerate(element), repeat=2):
        powers[i + j] += a * b
    for high in range(2 * degree - 2, degree - 1, -1):
        for i, c in enumerate(modulus):
            powers[high - degree + i] += powers[high] * c
    return tuple(c % p for c in powers[:degree])


@cache
def _irreducible(p: int, degree: int) -> tuple[int, ...]:
    """Coefficients c, lowest first, such that x**degree - c(x) is irreducible over GF(p).

    Up to degree 3 that is the same as having no root, which is why larger degrees are not offered.
    """
    if degree == 1:
        return (0,)
    for c in product(range(p), repeat=degree):
        if all((x**degree - sum(a * x**i for i, a in enumerate(c))) % p for x in range(p)):
            return c
    raise AssertionError(f"GF({p}) has an irreducible polynomial of every degree")


@cache
def _prime_power(q: int) -> tuple[int, int] | None:
    """(p, degree) with q = p**degree, p prime, degree at most 3; None otherwise."""
    if q < 2:
        return None
    p = next((d for d in range(2, isqrt(q) + 1) if q % d == 0), q)
    return next(((p, degree) for degree in (1, 2, 3) if p**degree == q), None)
