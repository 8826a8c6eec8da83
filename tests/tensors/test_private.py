"""Clipping bounds what one example can do, and the noise is as large as it says."""

from math import sqrt

import pytest
import torch

from trimtab.core.seeds import Seeds
from trimtab.tensors.private import clip_votes, clipped, deviation, joint, noisy, pair_lengths

COUNT = 200_000


def pairs(examples: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = Seeds(0).at("pairs")
    return torch.randn(examples, 6, 2, generator=draw), torch.randn(examples, 2, 5, generator=draw)


def length(*values: torch.Tensor) -> float:
    return float(torch.cat([value.flatten() for value in values]).norm())


def test_no_example_counts_more_than_the_bound() -> None:
    left, right = pairs(4)
    left[0], right[0] = 1e6 * left[0], 1e6 * right[0]
    with_it, without = clipped(left, right, 0.5), clipped(left[1:], right[1:], 0.5)
    assert length(*(a - b for a, b in zip(with_it, without, strict=True))) <= 0.5 * (1 + 1e-5)


def test_short_gradients_are_left_alone() -> None:
    left, right = pairs(3)
    sums = clipped(left, right, 1e3)
    torch.testing.assert_close(sums, (left.sum(0), right.sum(0)))


def test_every_example_is_clipped_before_they_are_added() -> None:
    """Two that cancel: clipping the sum would leave them alone."""
    left, right = pairs(1)
    both = clipped(torch.cat([left, -2 * left]), torch.cat([right, -2 * right]), 0.1)
    assert length(*both) < 1e-6


def test_what_is_not_finite_counts_nothing() -> None:
    left, right = pairs(2)
    left[0, 0, 0] = torch.nan
    torch.testing.assert_close(clipped(left, right, 0.5), clipped(left[1:], right[1:], 0.5))


def test_the_noise_has_the_deviation_that_was_asked_for() -> None:
    """Mean and variance within four standard errors."""
    wanted = deviation(1.3, 0.1, 9)
    assert wanted == 1.3 * 0.1 * 3
    drawn = noisy(torch.zeros(COUNT), wanted, Seeds(0).at("noise")).double()
    assert abs(float(drawn.mean())) < 4 * wanted / sqrt(COUNT)
    assert abs(float(drawn.square().mean()) / wanted**2 - 1) < 4 * sqrt(2 / COUNT)


def test_votes_are_shares_of_clipped_pairs_and_one_example_moves_them_as_far_as_is_said() -> None:
    lengths = [torch.tensor([1.0, 3.0, float("nan")]), torch.tensor([2.0, 2.0, 0.0]), torch.tensor([0.0, 9.0, 0.0])]
    votes = clip_votes(lengths, [2.0, 1.0, 1.0], [0, 0, 1])
    torch.testing.assert_close(votes, torch.tensor([0.0 + 0.5 - 0.5, -0.5 + 0.5 - 0.5], dtype=torch.float64))
    for example in range(3):
        others = [length[[n for n in range(3) if n != example]] for length in lengths]
        assert float((votes - clip_votes(others, [2.0, 1.0, 1.0], [0, 0, 1])).norm()) <= sqrt(2) / 2 + 1e-12
    left, right = pairs(1)
    assert float(pair_lengths(left, right)) == pytest.approx(length(left, right))


def test_two_mechanisms_tell_as_much_as_one_of_less_noise() -> None:
    assert joint(2.0) == 2.0
    assert joint(3.0, 4.0) == pytest.approx(2.4)
    assert joint(1.0, 1e9) == pytest.approx(1.0)
