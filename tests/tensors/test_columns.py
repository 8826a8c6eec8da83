"""The lazy sweep is the textbook loop; without correlation it is plain choosing; with it, GPTQ beats rounding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trimtab.tensors import columns
from trimtab.tensors.columns import Feed, fed, sweep
from trimtab.tensors.rounding import fit
from trimtab.tensors.spd import damped, inverse_upper


def draw(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def correlated(inputs: int, seed: int = 0) -> Tensor:
    x = draw(4 * inputs, inputs, seed=seed) @ (draw(inputs, inputs, seed=seed + 1) / inputs**0.5 + torch.eye(inputs))
    return x.T @ x / len(x)


class ToGrid:
    """Rounds to a fixed grid of step `step`, and writes down what it was shown."""

    def __init__(self, width: int, step: float = 0.5):
        self.width, self.step = width, step
        self.entered: list[tuple[int, Tensor, Tensor]] = []

    def enter(self, start: int, columns: Tensor, diagonal: Tensor) -> None:
        self.entered.append((start, columns.clone(), diagonal.clone()))

    def choose(self, index: int, column: Tensor) -> Tensor:
        return torch.round(column / self.step) * self.step


def textbook(weight: Tensor, upper: Tensor, step: float = 0.5) -> tuple[Tensor, list[Tensor]]:
    """One column at a time in float64; returns the choice and the compensated weight before every column."""
    weight, chosen, before = weight.double().clone(), torch.zeros_like(weight.double()), []
    for i in range(weight.shape[1]):
        before.append(weight.clone())
        chosen[:, i] = torch.round(weight[:, i] / step) * step
        error = (weight[:, i] - chosen[:, i]) / upper[i, i]
        weight -= error[:, None] * torch.where(torch.arange(weight.shape[1]) > i, upper[i], 0)[None]
    return chosen, before


@pytest.mark.parametrize("lazy", [1, 4, 7, 128])
@pytest.mark.parametrize("width", [1, 3, 8, 21, 42])
def test_equals_the_textbook_loop(width: int, lazy: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "LAZY", lazy)
    weight = draw(9, 42)
    upper, _ = inverse_upper(correlated(42), 0.01)
    expected, before = textbook(weight, upper)
    chooser = ToGrid(width)
    assert torch.equal(sweep(weight, upper, chooser).double(), expected)
    assert [start for start, _, _ in chooser.entered] == list(range(0, 42, width))
    for start, shown, diagonal in chooser.entered:
        span = slice(start, start + width)
        assert torch.allclose(shown.double(), before[start][:, span].T, atol=1e-5)
        assert torch.allclose(diagonal.double(), upper.diagonal()[span], rtol=1e-6)


def textbook_with_feed(weight: Tensor, upper: Tensor, feed: Feed, lazy: int, step: float = 0.5) -> Tensor:
    """The loop with what columns hand on, in float64; beyond the lazy block of a column its chosen value counts, if asked."""
    original, weight, chosen = weight.double(), weight.double().clone(), torch.zeros_like(weight.double())
    for i in range(weight.shape[1]):
        column = weight[:, i].clone()
        chosen[:, i] = torch.round(column / step) * step
        error = (column - chosen[:, i]) / upper[i, i]
        block_end = (i // lazy + 1) * lazy
        for j in range(i + 1, weight.shape[1]):
            left = chosen[:, i] if feed.chosen and j >= block_end else column
            weight[:, j] += left * feed.inputs[i, j] - error * upper[i, j]
            if feed.rebound is not None:
                weight[:, j] += (original[:, i] - left) * feed.rebound[i, j]
    return chosen


@pytest.mark.parametrize("chosen", [True, False])
@pytest.mark.parametrize("rebounds", [True, False])
@pytest.mark.parametrize("lazy", [1, 7, 128])
def test_what_columns_hand_on_equals_the_textbook_loop(
    lazy: int, rebounds: bool, chosen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "LAZY", lazy)
    weight, (upper, _) = draw(9, 42), inverse_upper(correlated(42), 0.01)
    feed = Feed(0.05 * draw(42, 42, seed=3).triu(1).float(), 0.05 * draw(42, 42, seed=4).triu(1).float(), chosen)
    feed = feed if rebounds else Feed(feed.inputs, None, chosen)
    assert torch.equal(sweep(weight, upper, ToGrid(1), feed).double(), textbook_with_feed(weight, upper, feed, lazy))


def test_no_drift_feeds_nothing_and_the_grams_own_feed_doubles_the_compensation() -> None:
    """With the gram itself in place of the drift, striu(gram Uᵀ) U = striu(inverse(U)) U: minus each row of U over its pivot."""
    gram = damped(correlated(20), 0.01)
    upper, _ = inverse_upper(gram, 0.0)
    assert (fed(torch.zeros(20, 20), upper.float()) == 0).all()
    rows = -(upper / upper.diagonal()[:, None]).triu(1)
    assert torch.allclose(fed(gram, upper.float()).double(), rows, atol=1e-4)


def test_the_textbook_loop_is_not_plain_rounding() -> None:
    weight = draw(9, 42)
    expected, _ = textbook(weight, inverse_upper(correlated(42), 0.01)[0])
    assert (expected != torch.round(weight / 0.5) * 0.5).any()


@pytest.mark.parametrize("width", [1, 5, 30])
def test_without_correlation_it_is_plain_rounding(width: int) -> None:
    weight = draw(9, 30).float()
    assert torch.equal(sweep(weight, torch.eye(30), ToGrid(width)), torch.round(weight / 0.5) * 0.5)


def test_leaves_the_weight_alone() -> None:
    weight = draw(3, 12).float()
    before = weight.clone()
    sweep(weight, inverse_upper(correlated(12), 0.01)[0], ToGrid(4))
    assert torch.equal(weight, before)


class RowGrid:
    """GPTQ with one grid per row, of the uncompensated weight."""

    def __init__(self, weight: Tensor, bits: int):
        grid = fit(weight, bits)
        self.width, self.nearest = weight.shape[1], lambda column: grid.nearest(column[:, None])[:, 0]

    def enter(self, start: int, columns: Tensor, diagonal: Tensor) -> None:
        pass

    def choose(self, index: int, column: Tensor) -> Tensor:
        return self.nearest(column)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), bits=st.integers(2, 4))
def test_sweeping_beats_rounding_in_the_metric_of_the_gram(seed: int, bits: int) -> None:
    weight, gram = draw(16, 48, seed=seed).float(), damped(correlated(48, seed), 0.01)
    swept = sweep(weight, inverse_upper(correlated(48, seed), 0.01)[0], RowGrid(weight, bits))

    def error(other: Tensor) -> float:
        change = (weight - other).double()
        return float(((change @ gram) * change).sum())

    assert error(swept) < error(fit(weight, bits).nearest(weight))
