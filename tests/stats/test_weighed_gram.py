"""Weights of tokens: what the formula says window by window, and the plain gram where all tokens count the same."""

import pytest
import torch
from torch import Tensor

from trimtab.stats import Gram, weighed_gram
from trimtab.stats.weighed_gram import SCORES, weights

WINDOWS, LENGTH, WIDTH, CHANNELS = 3, 10, 6, 9


def draw(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def about(score: str, windows: int = WINDOWS) -> tuple[Tensor, ...]:
    """What the statistic of this score is shown besides x."""
    if score == "attention":
        return (draw(windows, LENGTH, seed=1).exp(),)
    return draw(windows, LENGTH, WIDTH, seed=2), draw(windows, LENGTH, WIDTH, seed=3)


def found(statistic: type, *pieces: tuple[Tensor, ...]) -> Tensor:
    state = statistic.start((4, CHANNELS), torch.device("cpu"))
    for piece in pieces:
        state = statistic.update(state, *piece)
    return statistic.finish(state)


def naive_scores(score: str, *shown: Tensor) -> Tensor:
    """[windows, length] float64, token by token."""
    if score == "attention":
        return shown[0].double()
    entering, leaving = (t.double() for t in shown)
    rows = []
    for x, y in zip(entering, leaving, strict=True):
        if score == "norm":
            rows.append([float(token.square().sum().sqrt()) for token in x])
        elif score == "change":
            rows.append([-float((b - a).square().sum().sqrt()) for a, b in zip(x, y, strict=True)])
        elif score == "distance":
            rows.append([float(torch.stack([(token - other).square().sum() for other in x]).mean()) for token in x])
        else:
            rows.append([1.0] * 5 + [0.0] * 5)
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("score", SCORES)
def test_a_window_at_a_time_by_the_formula(score: str) -> None:
    x, shown = draw(WINDOWS * LENGTH, CHANNELS), about(score)
    expected = torch.zeros(CHANNELS, CHANNELS, dtype=torch.float64)
    for window, scores in enumerate(naive_scores(score, *shown)):
        rank = 0.1 + 0.9 * (scores - scores.min()) / (scores.max() - scores.min())
        for counts, token in zip(rank / rank.mean(), x[window * LENGTH :], strict=False):
            expected += counts * torch.outer(token.double(), token.double())
    gram = found(weighed_gram(score, 0.1), (x, *shown))
    assert torch.allclose(gram.double(), expected / len(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("score", SCORES)
def test_batches_may_be_cut_anywhere_between_windows(score: str) -> None:
    x, shown = draw(WINDOWS * LENGTH, CHANNELS), about(score)
    statistic = weighed_gram(score, 0.005)
    first = (x[:LENGTH], *(t[:1] for t in shown))
    rest = (x[LENGTH:], *(t[1:] for t in shown))
    whole = found(statistic, (x, *shown))
    assert torch.allclose(found(statistic, first, rest), whole, atol=1e-5)
    states = [statistic.update(statistic.start((4, CHANNELS), x.device), *piece) for piece in (first, rest)]
    assert torch.allclose(statistic.finish(statistic.merge(*states)), whole, atol=1e-5)


@pytest.mark.parametrize("score", SCORES)
def test_at_a_floor_of_one_it_is_the_gram(score: str) -> None:
    x = draw(WINDOWS * LENGTH, CHANNELS)
    assert torch.equal(found(weighed_gram(score, 1.0), (x, *about(score))), found(Gram, (x,)))


@pytest.mark.parametrize("floor", [0.0, 0.005, 0.5])
@pytest.mark.parametrize("reverse", [False, True])
def test_weights_keep_the_order_the_mean_and_the_floor(floor: float, reverse: bool) -> None:
    scores = draw(4, 50)
    found = weights(scores, floor, reverse=reverse)
    assert torch.allclose(found.mean(1), torch.ones(4), atol=1e-6)
    assert torch.allclose(found.amin(1), floor * found.amax(1), atol=1e-6)
    ranked = found.gather(1, scores.argsort(1, descending=reverse))
    assert bool((ranked.diff(dim=1) >= 0).all())


def test_from_the_cap_on_tokens_count_the_same() -> None:
    scores = draw(2, 101)
    scores[:, 0] = 1000.0  # a sink
    plain, capped = weights(scores, 0.01), weights(scores, 0.01, cap=0.9)
    assert plain[:, 0].min() > 40
    assert bool((capped.amax(1, keepdim=True) == capped).sum(1).eq(11).all())
    assert capped[:, 0].max() < 10


def test_tokens_that_do_not_differ_count_the_same() -> None:
    assert torch.equal(weights(torch.full((2, 5), 3.0), 0.005), torch.ones(2, 5))
    assert torch.equal(weights(torch.zeros(2, 1), 0.0), torch.ones(2, 1))


def test_one_class_for_the_same_arguments() -> None:
    assert weighed_gram("norm", 0.5) is weighed_gram("norm", 0.5)
    assert weighed_gram("norm", 0.5) is not weighed_gram("norm", 0.25)
