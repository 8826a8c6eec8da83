"""Points on a pyramid of whole numbers: vectors whose magnitudes sum to `pulses`, as directions that need no codebook.

How many there are is known, so a point is stored as its number among them, in as many bits as that takes (Fischer 1986). The
first coordinate decides most: the fewer pulses it leaves for the others, the lower the number; then positive before negative.
With N(d, k) points of d coordinates and k pulses, a coordinate that leaves q pulses for d others therefore adds
    2 (N(d, 0) + ... + N(d, q - 1)),  and N(d, q) more if it is negative.
Numbers are long: 16 coordinates at 3 bits are 48 bits, 128 of them 384. They are handled in limbs of 48 bits.
"""

from functools import lru_cache
from math import comb

import torch
from torch import Tensor

LIMB = 48  # bits: sums of hundreds of limbs stay below 2^63
MASK = (1 << LIMB) - 1
AT_ONCE = 2**11  # vectors that are searched together: what the search works on then stays near the processor
TINY = 1e-30


def points(dim: int, pulses: int) -> int:
    """N(dim, pulses): how many vectors of `dim` whole numbers have magnitudes that sum to `pulses`. dim >= 1."""
    if not pulses:
        return 1
    return sum(comb(dim, i) * comb(pulses - 1, i - 1) << i for i in range(1, min(dim, pulses) + 1))


def index_bits(dim: int, pulses: int) -> int:
    """Bits that the number of such a point takes."""
    return (points(dim, pulses) - 1).bit_length()


@lru_cache(maxsize=64)
def most_pulses(dim: int, bits: int, limit: int) -> int:
    """The most pulses, up to `limit`, whose points can be numbered in `bits` bits; 0 if not even one pulse can."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if index_bits(dim, middle) <= bits else (low, middle - 1)
    return low


def nearest(vectors: Tensor, pulses: int, metric: Tensor | None = None, moves: int = 0) -> Tensor:
    """A point close to each vector's direction, [n, dim] float32. vectors [n, dim]; a zero vector: any point.

    metric [dim, dim]: positive definite, the cosine is taken in it; the identity by default. Magnitudes are rounded down to
    the pyramid, then every missing pulse goes where the cosine grows most. moves: how often the pulse that is missed least is
    moved to the best other place, as long as that helps.
    """
    return torch.cat([_nearest(_unit(some), pulses, metric, moves) for some in torch.split(vectors.float(), AT_ONCE)])


def _nearest(vectors: Tensor, pulses: int, metric: Tensor | None, moves: int) -> Tensor:
    total = vectors.abs().sum(1, keepdim=True)
    surface = vectors * (pulses / torch.where(total > 0, total, 1.0))
    found = surface.trunc_() if metric is None else _rounded(surface, metric)
    aim = vectors if metric is None else vectors @ metric
    missing = pulses - found.abs().sum(1, keepdim=True)
    while bool((missing < 0).any()):
        place, step = _least_missed(found, aim, metric)
        found.scatter_add_(1, place, step * (missing < 0))
        missing += (missing < 0).float()
    while bool((missing > 0).any()):
        place, step, _ = _best_step(found, aim, metric)
        found.scatter_add_(1, place, step * (missing > 0))
        missing -= 1
    for _ in range(moves):
        now = _cosine(found, aim, metric)
        place, step = _least_missed(found, aim, metric)
        fewer = found.scatter_add(1, place, step)
        place, step, then = _best_step(fewer, aim, metric)
        better = then > now * (1 + 1e-6)
        if not bool(better.any()):
            break
        found = torch.where(better, fewer.scatter_add_(1, place, step), found)
    return found


def _rounded(surface: Tensor, metric: Tensor) -> Tensor:
    """Coordinate by coordinate to whole numbers, each one's error made up for by those after it. [n, dim]"""
    lower = torch.linalg.cholesky(metric.double().flip(0, 1))
    upper = torch.linalg.inv(lower).flip(0, 1).to(surface.dtype)  # inverse(metric) = upperᵀ upper
    found = torch.empty_like(surface)
    for i in range(len(metric)):
        found[:, i] = surface[:, i].round()
        error = (surface[:, i] - found[:, i]) / upper[i, i]
        surface[:, i + 1 :].addr_(error, upper[i, i + 1 :], alpha=-1)
    return found


def _unit(vectors: Tensor) -> Tensor:
    """Scaled to a largest magnitude of 1; zero stays."""
    largest = vectors.abs().amax(1, keepdim=True)
    return vectors / torch.where(largest > 0, largest, 1.0)


def _products(found: Tensor, aim: Tensor, metric: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """found @ metric [n, dim], and the products [n, 1] of each point with the vector and with itself. aim: vectors @ metric."""
    push = found if metric is None else found @ metric
    return push, (found * aim).sum(1, keepdim=True), (found * push).sum(1, keepdim=True)


def _cosine(found: Tensor, aim: Tensor, metric: Tensor | None) -> Tensor:
    """[n, 1] the square of the cosine, with its sign, up to a factor that depends on the vector alone."""
    _, along, square = _products(found, aim, metric)
    return along * along.abs() / square


def _stepped(found: Tensor, step: Tensor, aim: Tensor, metric: Tensor | None, parts: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """[n, dim] the same if one coordinate moved by its step, [n, dim] of +-1."""
    push, along, square = parts
    own = 1.0 if metric is None else metric.diagonal()
    then = torch.addcmul(along, step, aim)
    return (then * then.abs()).div_(torch.addcmul(square, step, push, value=2).add_(own).clamp_(min=TINY))


def _best_step(found: Tensor, aim: Tensor, metric: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Where one more pulse makes the cosine largest: the place [n, 1], the step there, and the cosine then."""
    parts = push, along, square = _products(found, aim, metric)
    # The cosine's slope says which way out of zero; a point that is all zeros has none yet.
    rising = torch.addcmul(aim * (square + (square == 0)), along, push, value=-1)
    step = torch.where(found == 0, rising, found).sign_()
    step += step == 0
    then, place = _stepped(found, step, aim, metric, parts).max(1, keepdim=True)
    return place, step.gather(1, place), then


def _least_missed(found: Tensor, aim: Tensor, metric: Tensor | None) -> tuple[Tensor, Tensor]:
    """The pulse [n, 1] without which the cosine is largest, and the step that takes it away."""
    step = -found.sign()
    then = _stepped(found, step, aim, metric, _products(found, aim, metric)).masked_fill_(found == 0, -torch.inf)
    place = then.argmax(1, keepdim=True)
    return place, step.gather(1, place)


def numbers(found: Tensor, pulses: int) -> Tensor:
    """The number of each point, as bits: found [n, dim] whole numbers -> uint8 [n, index_bits], lowest bit first."""
    dim = found.shape[1]
    below, count = _tables(dim, pulses, found.device)
    left = pulses - found.abs().long().cumsum(1)  # [n, dim]
    others = torch.arange(dim - 1, -1, -1, device=found.device)
    limbs = below[others, left] + (found < 0).long().unsqueeze(-1) * count[others, left]  # [n, dim, limbs]
    index = _carried(limbs.sum(1))
    return (index.unsqueeze(-1) >> torch.arange(LIMB, device=found.device) & 1).flatten(1)[:, : index_bits(dim, pulses)].byte()


def exist(bits: Tensor, dim: int, pulses: int) -> bool:
    """Whether there are points of all these numbers, uint8 [n, index_bits]."""
    index = _limbs(bits)
    return bool((_carried(index - _split(points(dim, pulses), index))[:, -1] < 0).all())


def numbered(bits: Tensor, dim: int, pulses: int) -> Tensor:
    """The inverse of `numbers`: uint8 [n, index_bits] -> [n, dim] int16. Only for numbers of points that `exist`."""
    index = _limbs(bits)
    below, count = _tables(dim, pulses, bits.device)
    left = torch.full((len(index),), pulses, device=bits.device)
    found = torch.empty(len(index), dim, dtype=torch.int16, device=bits.device)
    for i in range(dim):
        of_others, lower = count[dim - 1 - i], below[dim - 1 - i]
        rest = _last(lower, index, left)
        index = _carried(index - lower[rest])
        beyond = _carried(index - of_others[rest])
        negative = (rest < left) & (beyond[:, -1] >= 0)
        index = torch.where(negative[:, None], beyond, index)
        found[:, i] = torch.where(negative, rest - left, left - rest)
        left = rest
    return found


def _last(ascending: Tensor, index: Tensor, most: Tensor) -> Tensor:
    """[n] the largest q up to most [n] with ascending[q] <= index; ascending [pulses + 1, limbs], index [n, limbs]."""
    if index.shape[1] == 1:
        place = torch.searchsorted(ascending[:, 0].contiguous(), index[:, 0].contiguous(), right=True) - 1
        return torch.minimum(place, most)
    place = torch.zeros_like(most)
    step = 1 << (len(ascending) - 1).bit_length()
    while step := step // 2:
        tried = torch.minimum(place + step, most)
        fits = _carried(index - ascending[tried])[:, -1] >= 0
        place = torch.where(fits, tried, place)
    return place


def _carried(limbs: Tensor) -> Tensor:
    """The same numbers with limbs from 0 to 2^LIMB - 1; the last one takes the rest, and the sign. [..., limbs]"""
    parts = list(limbs.unbind(-1))
    for i in range(len(parts) - 1):
        parts[i + 1] = parts[i + 1] + (parts[i] >> LIMB)
        parts[i] = parts[i] & MASK
    return torch.stack(parts, -1)


def _limbs(bits: Tensor) -> Tensor:
    """uint8 [n, bits] -> int64 [n, limbs]."""
    limbs = -(-bits.shape[1] // LIMB)
    padded = torch.nn.functional.pad(bits, (0, limbs * LIMB - bits.shape[1])).view(len(bits), limbs, LIMB)
    return (padded.long() << torch.arange(LIMB, device=bits.device)).sum(-1)


def _split(number: int, like: Tensor) -> Tensor:
    """[limbs] int64, as many limbs as `like` has; the last one takes the rest."""
    last = like.shape[-1] - 1
    parts = [(number >> (LIMB * i)) & MASK for i in range(last)] + [number >> (LIMB * last)]
    return torch.tensor(parts, device=like.device)


@lru_cache(maxsize=16)
def _tables(dim: int, pulses: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """2 (N(d, 0) + ... + N(d, q - 1)) and N(d, q) for d < dim, q <= pulses, each int64 [dim, pulses + 1, limbs]."""
    count = [[1] + [0] * pulses]
    for _ in range(dim - 1):
        row, above = [1], count[-1]
        for q in range(1, pulses + 1):
            row.append(row[-1] + above[q] + above[q - 1])
        count.append(row)
    below = [[0] for _ in count]
    for sums, row in zip(below, count, strict=True):
        for value in row[:-1]:
            sums.append(sums[-1] + 2 * value)
    limbs = -(-index_bits(dim, pulses) // LIMB)
    lower, number = (
        torch.tensor([[[(v >> (LIMB * i)) & MASK for i in range(limbs)] for v in row] for row in table], device=device)
        for table in (below, count)
    )
    return lower, number
