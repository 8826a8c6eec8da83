"""The lattice E8 in whole and in part: the densest packing in eight dimensions as a codebook that nobody has to store.

E8 is the union of D8 = {x in Z^8, sum x even} and D8 + 1/2. Two finite books are cut out of it; a code is a number.

Two bits per coordinate, 2^16 points, for numbers of standard deviation about 1 ("E8P"): of E8 + 1/4, near the origin. A point is
    sign * magnitude + shift,   shift = +-1/4 in all coordinates,
magnitude one of 256 vectors of positive half-integers, and signs such that sign * magnitude sums to an even number. So 8 bits say
which magnitude, 7 the signs of all coordinates but the last, 1 the shift. The magnitudes are those 227 with squared
length at most 10 and 29 of those with squared length 12: the first in order that have five times 3/2 and three times 1/2.
One bit, 2^8 points: the origin, the 240 shortest vectors of E8, and 15 of the next: 2 in one coordinate, without -2 in the first.
Tseng et al., 2024 (arXiv:2402.04396); nearest points of D8 + 1/2 as Conway & Sloane (1982).
"""

from functools import cache
from itertools import product

import torch
from torch import Tensor

DIM = 8
SHIFT = 0.25
FULL = 10.0  # squared length up to which all magnitudes are there
AT_ONCE = 1024  # vectors that are compared with all magnitudes together


def points(codes: Tensor, bits: int) -> Tensor:
    """[..., 8] float32 of codes [...], any integer dtype, below 256^bits; bits per coordinate 1 or 2."""
    codes = codes.long()
    if bits == 1:
        return _small().to(codes.device)[codes]
    binary = (codes.unsqueeze(-1) >> torch.arange(DIM, 2 * DIM, device=codes.device)) & 1
    magnitude = _magnitudes().to(codes.device)[codes & 255]
    signs = 1.0 - 2.0 * binary[..., :-1].float()
    # The last sign makes the sum even: each minus changes it by an odd number.
    odd = (magnitude.sum(-1).long() + binary[..., :-1].sum(-1)) % 2
    last = 1.0 - 2.0 * odd.float()
    shift = (2.0 * binary[..., -1:].float() - 1.0) * SHIFT
    return magnitude * torch.cat([signs, last.unsqueeze(-1)], -1) + shift


def nearest(vectors: Tensor, bits: int) -> Tensor:
    """Codes [n] int64 of the points that are nearest to vectors [n, 8] float32, of equals any."""
    if bits == 1:
        grid = _small().to(vectors.device)
        return torch.cat([(grid.square().sum(1) / 2 - some @ grid.T).argmin(1) for some in _split(vectors)])
    shifts = (-SHIFT, SHIFT)
    rounded = [_by_rounding(vectors - shift) for shift in shifts]
    searched = [_searched(vectors - shifts[i], *rounded[i], rounded[1 - i][1:]) for i in range(2)]
    (below, least), (above, other) = searched
    return torch.where(other < least, above + (1 << 15), below)


def _searched(
    vectors: Tensor, codes: Tensor, error: Tensor, known: Tensor, other: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """(codes, squared distances) [n] of the nearest points before the shift, where they could be the nearest of all.

    error: to the nearest point of the lattice, in the book (known) or not; other: the same with the other shift.
    """
    needless = other[1] & (other[0] <= error)
    rest = (~known & ~needless).nonzero()[:, 0]
    error = error.masked_fill(~known, torch.inf)
    if len(rest):
        found = [_by_search(some) for some in _split(vectors[rest])]
        codes = codes.index_copy(0, rest, torch.cat([code for code, _ in found]))
        error = error.index_copy(0, rest, torch.cat([distance for _, distance in found]))
    return codes, error


def _by_rounding(vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(codes, squared distance, whether it is in the book) [n] of the nearest point of all of D8 + 1/2."""
    half = vectors.floor() + 0.5
    off = vectors - half
    worst = off.abs().argmax(1, keepdim=True)
    odd = half.sum(1, keepdim=True).long() % 2 != 0
    step = torch.where(off.gather(1, worst) < 0, -1.0, 1.0) * odd
    half = half.scatter_add(1, worst, step)
    known = half.square().sum(1) <= FULL
    index = (half.abs() - 0.5).clamp_(max=2).long() @ _places(half.device)
    return _numbers(half.device)[index] + (_negative(half) << DIM), (vectors - half).square().sum(1), known


def _by_search(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """(codes, squared distance) [n] of the nearest point in the book before the shift, by comparing every magnitude."""
    size, grid = vectors.abs(), _magnitudes().to(vectors.device)
    distance = grid.square().sum(1) - 2 * size @ grid.T  # [n, 256], without what all have in common
    cheapest = size[:, :1] * grid[:, 0]
    for i in range(1, DIM):
        cheapest = torch.minimum(cheapest, size[:, i : i + 1] * grid[:, i])
    minus = vectors < 0
    odd = (minus.sum(1, keepdim=True) + grid.sum(1).long()) % 2  # [n, 256]: one sign more has to change
    least, best = (distance + 4 * cheapest * odd).min(1)
    chosen = grid[best]
    flipped = (size * chosen).argmin(1, keepdim=True)
    change = odd.gather(1, best[:, None]).bool()
    minus = minus.scatter(1, flipped, minus.gather(1, flipped) ^ change)
    return best + (_negative(torch.where(minus, -1.0, 1.0)) << DIM), least + vectors.square().sum(1)


def _negative(vectors: Tensor) -> Tensor:
    """[n] int64: bit i is set where coordinate i is negative, for all but the last."""
    return (vectors[:, : DIM - 1] < 0).long() @ (1 << torch.arange(DIM - 1, device=vectors.device))


def _split(vectors: Tensor) -> tuple[Tensor, ...]:
    return torch.split(vectors, AT_ONCE)


@cache
def _magnitudes() -> Tensor:
    """[256, 8] float32, in lexicographic order but for the longer ones, which come last."""
    full = torch.tensor(list(product((0.5, 1.5, 2.5), repeat=DIM)))
    more = torch.tensor(list(product((0.5, 1.5), repeat=DIM)))
    more = more[more.square().sum(1) == 12.0]
    within = full[full.square().sum(1) <= FULL]
    return torch.cat([within, more[: 2**DIM - len(within)]])


def _places(device: torch.device) -> Tensor:
    return 3 ** torch.arange(DIM - 1, -1, -1, device=device)


@cache
def _numbers(device: torch.device) -> Tensor:
    """[3^8]: which magnitude has these coordinates, each 1/2, 3/2 or 5/2; 0 where none has."""
    grid = _magnitudes().to(device)
    table = torch.zeros(3**DIM, dtype=torch.int64, device=device)
    return table.scatter_(0, (grid - 0.5).long() @ _places(device), torch.arange(len(grid), device=device))


@cache
def _small() -> Tensor:
    """[256, 8] float32: by length, and lexicographically among equals."""
    whole = torch.tensor(list(product((-1.0, 0.0, 1.0), repeat=DIM)))
    halves = torch.tensor(list(product((-0.5, 0.5), repeat=DIM)))
    even = torch.cat([halves, whole])
    even = even[even.sum(1).long() % 2 == 0]
    length = even.square().sum(1)
    twice = torch.cat([-2 * torch.eye(DIM), 2 * torch.eye(DIM).flip(0)])[1:]
    return torch.cat([even[length == 0], even[length == 2], twice])
