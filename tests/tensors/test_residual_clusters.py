"""Sums of clusters: exact where a sum of entries exists, the Lloyd optimum for one book, better with every book and round."""

from itertools import pairwise

import torch
from torch import Tensor

from trimtab.tensors.residual_clusters import fit


def normal(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def squared(points: Tensor, weight: Tensor, made: tuple[Tensor, Tensor]) -> float:
    codes, centres = made
    change = points - sum(book[code] for code, book in zip(codes, centres, strict=True))
    return float((weight * change.double().square().sum(1)).sum())


def test_as_many_entries_as_points_is_exact() -> None:
    points, weight = normal(40, 5), normal(40, seed=1).exp()
    codes, centres = fit(points, weight, 1, 40, 1, 0)
    assert torch.allclose(centres[0][codes[0]], points)


def test_sums_that_are_there_are_found() -> None:
    """Two books far apart in size: the first is the coarse one."""
    coarse, fine = 10 * normal(8, 6), 0.1 * normal(8, 6, seed=1)
    points = (coarse[:, None] + fine).flatten(0, 1)
    found = fit(points, torch.ones(64), 2, 8, 20, 5)
    assert squared(points, torch.ones(64), found) < 0.2 * 64 * 6 * 0.01


def test_codes_are_nearest_and_entries_are_means() -> None:
    """Where k-means has come to rest."""
    points, weight = normal(300, 3), normal(300, seed=1).exp()
    codes, centres = fit(points, weight, 1, 6, 200, 0)
    assert torch.equal(torch.cdist(points, centres[0]).argmin(1), codes[0])
    for entry in range(6):
        own = codes[0] == entry
        mean = (points[own] * weight[own, None]).sum(0) / weight[own].sum()
        assert torch.allclose(centres[0, entry], mean, atol=1e-5)


def test_never_worse_with_more_books_or_more_rounds() -> None:
    points, weight = normal(400, 8), normal(400, seed=1).exp()
    by_books = [squared(points, weight, fit(points, weight, books, 16, 5, 2)) for books in range(1, 6)]
    assert all(more < 0.9 * fewer for fewer, more in pairwise(by_books))
    by_rounds = [squared(points, weight, fit(points, weight, 3, 16, 5, again)) for again in range(5)]
    assert all(more <= fewer * (1 + 1e-6) for fewer, more in pairwise(by_rounds))
    assert by_rounds[-1] < 0.97 * by_rounds[0]


def test_no_entry_lies_idle() -> None:
    """The points that a book starts from are all one point here."""
    points = torch.eye(8).repeat(8, 1)
    codes, centres = fit(points, torch.ones(64), 1, 8, 20, 0)
    assert squared(points, torch.ones(64), (codes, centres)) < 1e-10
    assert len(codes.unique()) == 8


def test_weight_draws_entries() -> None:
    """Two far clusters of equal size: nearly all entries go where nearly all the weight is."""
    points = torch.cat([normal(100, 4), normal(100, 4, seed=1) + 100])
    weight = torch.cat([torch.full((100,), 1000.0), torch.ones(100)])
    heavy = weight[:100]
    codes, centres = fit(points, weight, 1, 16, 50, 0)
    assert len(codes[0, :100].unique()) > len(codes[0, 100:].unique())
    plain = fit(points, torch.ones(200), 1, 16, 50, 0)
    assert squared(points[:100], heavy, (codes[:, :100], centres)) < squared(points[:100], heavy, (plain[0][:, :100], plain[1]))


def test_equal_points_stay_finite() -> None:
    points = torch.ones(20, 3)
    codes, centres = fit(points, torch.ones(20), 2, 5, 5, 2)
    assert bool(centres.isfinite().all())
    assert torch.allclose(centres[0][codes[0]] + centres[1][codes[1]], points)
