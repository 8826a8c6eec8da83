"""Masks have exactly the promised number of zeros, in the promised places, and keep the largest scores."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trimtab.tensors.masks import Pattern, keep_top, keep_top_of_matrix


def scores(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=50, deadline=None)
@given(out=st.integers(1, 12), inputs=st.integers(1, 40), sparsity=st.floats(0, 1), seed=st.integers(0, 999))
def test_counts_are_exact_and_the_largest_stay(out: int, inputs: int, sparsity: float, seed: int) -> None:
    score = scores(out, inputs, seed=seed)
    keep = keep_top(score, sparsity, Pattern())
    assert keep.dtype == torch.bool
    assert ((~keep).sum(1) == int(sparsity * inputs + 1e-9)).all()
    whole = keep_top_of_matrix(score, sparsity)
    assert int((~whole).sum()) == int(sparsity * out * inputs + 1e-9)
    for kept, values in (*zip(keep, score, strict=True), (whole.flatten(), score.flatten())):
        if bool(kept.any()) and not bool(kept.all()):
            assert values[~kept].max() <= values[kept].min()


@pytest.mark.parametrize("sparsity", [0.1, 0.3, 0.6, 0.7])
def test_decimal_fractions_are_not_rounded_down(sparsity: float) -> None:
    assert int((~keep_top(scores(1, 10), sparsity, Pattern())).sum()) == round(10 * sparsity)


@settings(max_examples=30, deadline=None)
@given(groups=st.integers(1, 6), m=st.integers(2, 16), n=st.integers(1, 15), seed=st.integers(0, 999))
def test_patterns_hold_in_every_group(groups: int, m: int, n: int, seed: int) -> None:
    n = 1 + (n - 1) % (m - 1)
    score = scores(5, groups * m, seed=seed)
    keep = keep_top(score, 0.123, Pattern.parse(f"{n}:{m}")).reshape(-1, m)
    assert (keep.sum(1) == n).all()
    best = score.reshape(-1, m).topk(n, dim=1).indices
    assert keep.gather(1, best).all()


@pytest.mark.parametrize("inputs", [4, 16, 300, 2000])
def test_of_equal_scores_those_to_the_left_stay(inputs: int) -> None:
    assert torch.equal(keep_top(torch.ones(3, inputs), 0.5, Pattern()), (torch.arange(inputs) < inputs // 2).expand(3, -1))
    score = scores(6, inputs).round()
    drop = inputs // 3
    keep = keep_top(score, drop / inputs, Pattern())
    assert torch.equal(keep, stable(score, drop))
    flat = keep_top_of_matrix(score, drop / inputs)
    assert torch.equal(flat, stable(score.reshape(1, -1), 6 * drop).reshape(6, -1))


def stable(score: Tensor, drop: int) -> Tensor:
    """By a full stable sort, from the right."""
    order = score.flip(-1).argsort(dim=-1, stable=True)[:, :drop]
    return torch.ones_like(score, dtype=torch.bool).scatter(-1, order, False).flip(-1)


def test_a_score_that_is_no_number_is_not_quietly_dropped() -> None:
    score = scores(2, 8)
    score[:, 3] = float("nan")
    assert keep_top(score, 0.5, Pattern())[:, 3].all()


def test_ties_are_broken_the_same_way_every_time() -> None:
    score = scores(20, 96).mul(2).round()
    for pattern in (Pattern(), Pattern(2, 4)):
        assert torch.equal(keep_top(score, 0.5, pattern), keep_top(score.clone(), 0.5, pattern))
    assert torch.equal(keep_top_of_matrix(score, 0.5), keep_top_of_matrix(score.clone(), 0.5))


def test_patterns_must_tile_the_row() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        keep_top(scores(2, 10), 0.5, Pattern(2, 4))


@pytest.mark.parametrize("text", ["", "2", "2:", ":4", "4:4", "5:4", "0:4", "-1:4", "2:65", "2:4:8", "two:four", "2 :4"])
def test_bad_patterns(text: str) -> None:
    with pytest.raises(ValueError, match="N:M"):
        Pattern.parse(text)


def test_patterns_say_their_sparsity() -> None:
    assert Pattern.parse("unstructured") == Pattern()
    assert Pattern.parse("unstructured").sparsity(0.3) == 0.3
    assert Pattern.parse("1:4").sparsity(0.3) == 0.75
