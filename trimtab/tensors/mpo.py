"""Matrix product operators: a matrix as a chain of small cores, each with a share of the outputs and of the inputs.

With out = o_1 ... o_N and in = i_1 ... i_N, the matrix becomes a tensor whose axis j pairs o_j with i_j, and is split from left
to right by singular values (Oseledets 2011): core j is [b_{j-1}, o_j, i_j, b_j], b_0 = b_N = 1. Where every bond b_j is full, the
product of the cores is the matrix; with N = 2 it is a sum of b_1 Kronecker products, the best one there is.
"""

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from math import prod

import torch
from torch import Tensor

Cores = Sequence[Tensor]


@cache
def split(width: int, sites: int) -> tuple[int, ...]:
    """`width` as a product of `sites` factors, ascending, with the least sum: as even as it can be. Ones where it is prime."""
    if sites == 1:
        return (width,)
    divisors = [d for d in range(1, width + 1) if width % d == 0 and d**sites <= width]
    found = [(d, *rest) for d in divisors for rest in [split(width // d, sites - 1)] if rest[0] >= d]
    return min(found, key=lambda factors: (sum(factors), factors))


def axes(shape: tuple[int, int], sites: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(o_1 ... o_N), (i_1 ... i_N): small shares of the outputs meet large ones of the inputs, so that sites are alike."""
    return split(shape[0], sites), split(shape[1], sites)[::-1]


def bonds(rows: Sequence[int], columns: Sequence[int], most: int) -> tuple[int, ...]:
    """b_0 ... b_N, none above `most` or above what is exact."""
    pairs = [o * i for o, i in zip(rows, columns, strict=True)]
    inner = [min(most, prod(pairs[:j]), prod(pairs[j:])) for j in range(1, len(pairs))]
    return 1, *inner, 1


def numbers(rows: Sequence[int], columns: Sequence[int], of: Sequence[int]) -> int:
    """How many numbers cores with these bonds hold."""
    return sum(a * o * i * b for o, i, (a, b) in zip(rows, columns, pairwise(of), strict=True))


def bonds_for(rows: Sequence[int], columns: Sequence[int], budget: float) -> tuple[int, ...]:
    """The largest bonds, equal but for what is exact, whose cores hold at most `budget` numbers; at least 1 each."""
    low, high = 1, max(bonds(rows, columns, prod(rows) * prod(columns)))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if numbers(rows, columns, bonds(rows, columns, middle)) <= budget else (low, middle - 1)
    return bonds(rows, columns, low)


def decomposed(weight: Tensor, rows: Sequence[int], columns: Sequence[int], of: Sequence[int]) -> list[Tensor]:
    """Cores, float32, of weight [out, in] with these bonds; every bond is cut where what is left is smallest.

    Raises ArithmeticError where the weight has no singular values.
    """
    sites = len(rows)
    paired = [axis for j in range(sites) for axis in (j, sites + j)]
    rest = weight.double().reshape(*rows, *columns).permute(paired).reshape(1, -1)
    cores = []
    for j in range(sites - 1):
        before, after = of[j], of[j + 1]
        try:
            u, s, vt = torch.linalg.svd(rest.reshape(before * rows[j] * columns[j], -1), full_matrices=False)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # made at run time by torch
            raise ArithmeticError("the weight has no singular values: it is not finite") from error
        cores.append(u[:, :after].reshape(before, rows[j], columns[j], after).float())
        rest = s[:after, None] * vt[:after]
    return [*cores, rest.reshape(of[-2], rows[-1], columns[-1], 1).float()]


def product(cores: Cores) -> Tensor:
    """[out, in] float32."""
    height, width = 1, 1
    grown = torch.ones(1, 1, 1, device=cores[0].device)  # [out so far, in so far, bond]
    for core in cores:
        height, width = height * core.shape[1], width * core.shape[2]
        # [o, i, b] x [b, o', i', b'] -> [o, o', i, i', b']
        grown = torch.tensordot(grown, core.float(), 1).permute(0, 2, 1, 3, 4).reshape(height, width, core.shape[3])
    return grown[:, :, 0]


def applied(x: Tensor, cores: Cores) -> Tensor:
    """x [tokens, in] -> [tokens, out], both of the cores' dtype, core by core: the matrix is never there."""
    tokens = len(x)
    state, done = x.reshape(tokens, 1, 1, -1), 1  # [tokens, outputs so far, bond, inputs left]
    for core in cores:
        bond, out, in_, after = core.shape
        state = state.reshape(tokens, done, bond, in_, -1)
        # over the bond and this site's inputs: [tokens, done, left, out, after]
        state = torch.tensordot(state, core, ([2, 3], [0, 2]))
        done *= out
        state = state.permute(0, 1, 3, 4, 2).reshape(tokens, done, after, -1)
    return state.reshape(tokens, -1)


def multiplications(rows: Sequence[int], columns: Sequence[int], of: Sequence[int]) -> int:
    """Of `applied`, per token."""
    return sum(prod(rows[: j + 1]) * of[j] * of[j + 1] * prod(columns[j:]) for j in range(len(rows)))
