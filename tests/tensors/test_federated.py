"""Stacking is the mean of the products, to the last bit where numbers are whole; averaging factors is not."""

import pytest
import torch

from trimtab.core.seeds import Seeds
from trimtab.tensors.federated import Factors, averaged, stacked

RANKS, SHARES = (4, 8, 16, 32), (0.125, 0.25, 0.5, 0.125)


def whole(ranks: tuple[int, ...]) -> list[Factors]:
    """Factors of small whole numbers, whose sums and products float64 holds exactly."""
    draw = Seeds(0).at("factors")
    return [
        (
            torch.randint(-9, 10, (24, rank), generator=draw).double(),
            torch.randint(-9, 10, (rank, 40), generator=draw).double(),
        )
        for rank in ranks
    ]


def wanted(parts: list[Factors], shares: tuple[float, ...]) -> torch.Tensor:
    return sum((share * (left @ right) for (left, right), share in zip(parts, shares, strict=True)), torch.zeros(24, 40))


def test_stacking_has_no_error() -> None:
    parts = whole(RANKS)
    left, right = stacked(parts, SHARES)
    assert left.shape == (24, sum(RANKS))
    assert torch.equal(left @ right, wanted(parts, SHARES))


@pytest.mark.parametrize("ranks", [RANKS, (8, 8, 8, 8)])
def test_averaging_factors_is_another_change(ranks: tuple[int, ...]) -> None:
    parts = whole(ranks)
    left, right = averaged(parts, SHARES)
    assert left.shape == (24, max(ranks))
    true = wanted(parts, SHARES)
    assert (left @ right - true).norm() > 0.1 * true.norm()


def test_one_party_is_the_same_either_way() -> None:
    parts = whole((8,))
    for join in (stacked, averaged):
        left, right = join(parts, [1.0])
        assert torch.equal(left @ right, wanted(parts, (1.0,)))
