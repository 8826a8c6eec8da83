"""Streaming in any pieces and any order of merging gives what the formula gives on all tokens at once."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trimtab.stats import AbsMax, AbsMean, BlockCosine, Drift, Gram, InputNorm, Moments
from trimtab.stats import gram as gram_file


def naive(statistic: type, *seen: Tensor) -> Tensor:
    """The definition, in float64."""
    x = seen[0].double()
    if statistic is Gram:
        return torch.einsum("ti,tj->ij", x, x) / len(x)
    if statistic is InputNorm:
        return x.square().mean(0).sqrt()
    if statistic is AbsMean:
        return x.abs().mean(0)
    if statistic is AbsMax:
        return x.abs().amax(0)
    if statistic is Moments:
        return torch.stack([x.mean(0), x.var(0, correction=0)])
    y = seen[1].double()
    if statistic is Drift:
        return torch.einsum("ti,tj->ij", y - x, x) / len(x)
    return ((x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1))).mean()


STATISTICS = [Gram, InputNorm, AbsMean, AbsMax, Moments, BlockCosine, Drift]


def tokens(count: int, seed: int, channels: int = 9) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, generator=draw) * 3 + 5, torch.randn(count, channels, generator=draw)


def taken(statistic: type, seen: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    return seen[:1] if statistic.on == "input" else seen


def streamed(statistic: type, pieces: list[tuple[Tensor, ...]]):
    state = statistic.start((4, 9), torch.device("cpu"))
    for piece in pieces:
        state = statistic.update(state, *piece)
    return state


@pytest.mark.parametrize("statistic", STATISTICS)
@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(0, 60), max_size=4), seed=st.integers(0, 99))
def test_pieces_and_merges_give_the_whole(statistic: type, cuts: list[int], seed: int) -> None:
    seen = taken(statistic, tokens(60, seed))
    edges = [0, *sorted(cuts), 60]
    pieces = [tuple(t[a:b] for t in seen) for a, b in pairwise(edges)]
    expected = naive(statistic, *seen).float()
    one_by_one = streamed(statistic, pieces)
    merged = statistic.merge(streamed(statistic, pieces[:1]), streamed(statistic, pieces[1:]))
    for state in (one_by_one, merged):
        assert torch.allclose(statistic.finish(state).float(), expected, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_half_precision_is_accumulated_in_float32(statistic: type) -> None:
    seen = taken(statistic, tuple(t.bfloat16() for t in tokens(4000, 1)))
    pieces = [tuple(t[i : i + 50] for t in seen) for i in range(0, 4000, 50)]
    found = statistic.finish(streamed(statistic, pieces))
    assert torch.allclose(found.double(), naive(statistic, *seen), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_nothing_seen_is_zero_and_not_nan(statistic: type) -> None:
    found = statistic.finish(streamed(statistic, []))
    assert (found == 0).all()
    empty = taken(statistic, tokens(0, 0))
    assert (statistic.finish(streamed(statistic, [empty])) == 0).all()


@pytest.mark.parametrize("statistic", STATISTICS)
def test_what_was_seen_is_left_alone(statistic: type) -> None:
    seen = taken(statistic, tokens(20, 2))
    before = [t.clone() for t in seen]
    streamed(statistic, [seen])
    assert all(torch.equal(a, b) for a, b in zip(seen, before, strict=True))


def test_gram_in_tiles_is_the_gram(monkeypatch: pytest.MonkeyPatch) -> None:
    x, _ = tokens(50, 3, channels=25)
    whole = Gram.finish(Gram.update(Gram.start((4, 25), x.device), x))
    monkeypatch.setattr(gram_file, "TILE", 7)
    tiled = Gram.finish(Gram.update(Gram.start((4, 25), x.device), x))
    assert torch.allclose(tiled, whole, rtol=1e-6)
    assert torch.equal(tiled, tiled.T)


def test_variance_survives_a_large_mean() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(5000, 9, generator=draw) * 0.1 + 300
    state = streamed(Moments, [(part,) for part in x.split(100)])
    assert torch.allclose(Moments.finish(state)[1], naive(Moments, x)[1], rtol=0.02)
