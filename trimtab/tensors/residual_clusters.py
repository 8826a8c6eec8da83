"""Clusters of what clusters left over, for weighed points and without chance: a point is a sum of one centre from each book.

Book after book k-means on what those before left over (residual quantization), then rounds in which each book in turn is
fitted again to what all the others leave: a centre for every point, then the mean of a centre's points. No step raises the
weighted squared error.
"""

import torch
from torch import Tensor

AT_ONCE = 2**14  # points whose distances to all centres are held together


def fit(points: Tensor, weight: Tensor, books: int, entries: int, rounds: int, again: int) -> tuple[Tensor, Tensor]:
    """Codes int64 [books, n] and centres [books, entries, dim], float32. points: [n, dim] float32, entries <= n; weight: [n].

    rounds: of k-means for a new book, at least 1; again: times that all books are fitted anew.
    """
    left, found = points.clone(), []
    for _ in range(books):
        centres = _first(left, weight, entries)
        codes = _nearest(left, centres)
        for _ in range(rounds):
            centres = _means(left, weight, codes, centres)
            before, codes = codes, _nearest(left, centres)
            if torch.equal(codes, before):
                break
        found.append((codes, centres))
        left -= centres[codes]
    for _ in range(again):
        for book, (codes, centres) in enumerate(found):
            left += centres[codes]
            centres = _means(left, weight, codes, centres)
            codes = _nearest(left, centres)
            found[book] = codes, centres
            left -= centres[codes]
    return torch.stack([codes for codes, _ in found]), torch.stack([centres for _, centres in found])


def _first(points: Tensor, weight: Tensor, entries: int) -> Tensor:
    """Points that each stand for as much weight, heaviest first: no two are one point."""
    order = weight.argsort(descending=True, stable=True)
    share = weight[order].double().cumsum(0)
    steps = torch.arange(entries, device=points.device)
    places = torch.searchsorted(share, (steps + 0.5) / entries * share[-1])
    places = torch.minimum((places - steps).cummax(0).values + steps, len(points) - entries + steps)
    return points[order[places]].clone()


def _means(points: Tensor, weight: Tensor, codes: Tensor, centres: Tensor) -> Tensor:
    """The weighted mean of each centre's points. Centres without any go where the points with the largest errors are."""
    mass = torch.zeros(len(centres), device=points.device).index_add_(0, codes, weight)
    means = torch.zeros_like(centres).index_add_(0, codes, points * weight[:, None]) / mass[:, None]
    unused = (mass == 0).nonzero().flatten()
    if len(unused):
        errors = weight * (points - centres[codes]).square().sum(1)
        means[unused] = points[errors.topk(len(unused)).indices]
    return means


def _nearest(points: Tensor, centres: Tensor) -> Tensor:
    lengths = centres.square().sum(1)
    return torch.cat([(lengths - 2 * some @ centres.T).argmin(1) for some in torch.split(points, AT_ONCE)])
