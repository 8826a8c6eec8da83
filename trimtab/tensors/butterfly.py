"""Butterfly products: an n x n matrix, n a power of two, as log2 n factors of 2 n numbers each, as fast transforms have it.

Factor l (from 0, applied first) mixes the entries j and j + 2^l of every stretch of 2^(l + 1) by a 2 x 2 matrix of their own. All
pairs of a factor in order are `twiddle[l]`: [n / 2, 2, 2]; pair p = stretch * 2^l + j. Dao et al., ICML 2019 (arXiv:1903.05895).

The factors of a matrix follow in closed form, without descent or restarts. The last factor D mixes halves, so with
B = D diag(R0, R1) the rows j and j + n/2 of the columns of half h are both multiples of row j of R_h: a matrix of two rows and
rank one, whose leading left singular vector is a column of that pair's 2 x 2 matrix. R0 and R1 are butterflies of half the size.
What is a butterfly product is recovered exactly; of anything else every step keeps the most it can (Le, Zheng, Riccietti,
Gribonval, ICASSP 2022).
"""

from math import log2

import torch
from torch import Tensor
from torch.nn.functional import pad

SMALLEST = 8  # there are factors between the first and the last


def size_for(width: int) -> int:
    """The smallest power of two, at least 8, that is not below `width`."""
    return max(SMALLEST, 1 << (width - 1).bit_length())


def stacks_for(shape: tuple[int, int]) -> int:
    """How many butterflies of the inputs' size stand on top of each other to give all outputs."""
    return -(-shape[0] // size_for(shape[1]))


def numbers(shape: tuple[int, int]) -> int:
    """How many the butterflies of a matrix [out, in] hold: at most 2 n log2 n in every stack."""
    size, stacks = size_for(shape[1]), stacks_for(shape)
    return 2 * (stacks * shape[1] + stacks * size * (int(log2(size)) - 2) + shape[0])


def applied(x: Tensor, twiddle: Tensor) -> Tensor:
    """x [tokens, stacks, n] -> the same, twiddle [stacks, log2 n, n / 2, 2, 2]; one of the two may have one stack only."""
    tokens, _, size = x.shape
    for level in range(twiddle.shape[1]):
        stride = 1 << level
        pairs = twiddle[:, level].view(len(twiddle), -1, stride, 2, 2)
        halves = x.reshape(tokens, -1, size // (2 * stride), 2, stride)
        x = torch.einsum("sbjoi,tsbij->tsboj", pairs, halves.expand(-1, len(twiddle), -1, -1, -1)).reshape(tokens, -1, size)
    return x


def product(twiddle: Tensor) -> Tensor:
    """[stacks, n, n], in the dtype of twiddle [stacks, log2 n, n / 2, 2, 2]."""
    eye = torch.eye(2 * twiddle.shape[2], dtype=twiddle.dtype, device=twiddle.device)
    return applied(eye[:, None], twiddle).permute(1, 2, 0)


def projected(matrix: Tensor) -> Tensor:
    """twiddle [log2 n, n / 2, 2, 2] of the butterfly product near matrix [n, n], float64 or complex128."""
    size = len(matrix)
    rest, found = matrix[None], []  # [blocks, width, width]
    while rest.shape[1] > 2:
        half = rest.shape[1] // 2
        # rows of a pair together, by half of the columns: [blocks, pair, half, row of the pair, column]
        rows = rest.reshape(-1, 2, half, 2, half).permute(0, 2, 3, 1, 4)
        leading = torch.linalg.eigh(rows @ rows.mH).eigenvectors[..., -1]  # [blocks, pair, half, row of the pair]
        found.append(leading.mT.reshape(size // 2, 2, 2))
        kept = (leading.conj()[..., None, :] @ rows)[..., 0, :]  # [blocks, pair, half, column]
        rest = kept.permute(0, 2, 1, 3).reshape(-1, half, half)
    return torch.stack([rest.reshape(size // 2, 2, 2), *reversed(found)])


def fitted(weight: Tensor) -> Tensor:
    """twiddle [stacks, log2 n, n / 2, 2, 2], float32, near weight [out, in] padded with zeros to n inputs and full stacks."""
    (out, inputs), size = weight.shape, size_for(weight.shape[1])
    stacks = stacks_for((out, inputs))
    padded = torch.zeros(stacks * size, size, dtype=torch.float64, device=weight.device)
    padded[:out, :inputs] = weight
    return torch.stack([projected(part) for part in padded.view(stacks, size, size)]).float()


def used(twiddle: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """What a matrix [out, in] needs of its butterflies: of the first factor what its inputs go through, of the last its outputs.

    first [stacks, in, 2], middle [stacks, log2 n - 2, n / 2, 2, 2], last [out, 2].
    """
    stacks, size = len(twiddle), 2 * twiddle.shape[2]
    first = twiddle[:, 0].mT.reshape(stacks, size, 2)[:, : shape[1]]
    last = twiddle[:, -1].transpose(1, 2).reshape(stacks * size, 2)[: shape[0]]
    return first, twiddle[:, 1:-1], last


def whole(first: Tensor, middle: Tensor, last: Tensor) -> Tensor:
    """The twiddle again, with zeros for what was not needed."""
    stacks, size = len(middle), 2 * middle.shape[2]
    entered = pad(first, (0, 0, 0, size - first.shape[1])).view(stacks, 1, size // 2, 2, 2).mT
    left = pad(last, (0, 0, 0, stacks * size - len(last))).view(stacks, 1, 2, size // 2, 2).transpose(2, 3)
    return torch.cat([entered, middle, left], 1)


def bit_reversal(size: int) -> Tensor:
    """[n] int64: the order that turns a Fourier matrix's columns into those of a butterfly product."""
    order = torch.zeros(1, dtype=torch.int64)
    while len(order) < size:
        order = torch.cat([2 * order, 2 * order + 1])
    return order
