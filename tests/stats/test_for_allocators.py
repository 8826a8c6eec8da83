"""What allocators look at: pivots of the gram, and how varied the outputs of a block are."""

import math

import pytest
import torch

from trimtab.stats import Gram, OutputEntropy, Pivots
from trimtab.stats import output_entropy as entropy_file
from trimtab.tensors.clusters import kmeans
from trimtab.tensors.spd import damped


def inputs(count: int = 60, channels: int = 9) -> torch.Tensor:
    return torch.randn(count, channels, generator=torch.Generator().manual_seed(1)) * 3 + 5


def streamed(statistic, *pieces):
    state = statistic.start((4, 9), torch.device("cpu"))
    for piece in pieces:
        state = statistic.update(state, *piece)
    return state


def test_pivots_are_those_of_the_inverse() -> None:
    x = inputs()
    whole = streamed(Pivots, (x,))
    inverse = damped(Gram.finish(whole), 0.01).inverse()
    upper = torch.linalg.cholesky(inverse, upper=True)
    assert torch.allclose(Pivots.finish(whole), 1 / upper.diagonal(), rtol=1e-5)
    merged = Pivots.merge(streamed(Pivots, (x[:20],)), streamed(Pivots, (x[20:],)))
    assert torch.allclose(Pivots.finish(merged), Pivots.finish(whole), rtol=1e-4)


def test_inputs_that_later_ones_explain_have_small_pivots() -> None:
    x = inputs()
    x[:, 0] = x[:, 5] + 0.01 * x[:, 0]
    pivots = Pivots.finish(streamed(Pivots, (x,)))
    assert pivots[0] < 0.4 * pivots[5]


def test_nothing_seen_is_nothing_at_stake() -> None:
    assert (Pivots.finish(streamed(Pivots)) == 0).all()
    assert OutputEntropy.finish(streamed(OutputEntropy)) == 0


def test_entropy_counts_kinds_of_tokens() -> None:
    kinds = torch.randn(7, 16, generator=torch.Generator().manual_seed(2))
    tokens = kinds.repeat(40, 1)
    found = OutputEntropy.finish(streamed(OutputEntropy, (tokens, tokens)))
    assert float(found) == pytest.approx(math.log(7))
    same = torch.ones(50, 16)
    assert OutputEntropy.finish(streamed(OutputEntropy, (same, same))) == 0


def test_a_massive_channel_does_not_hide_the_others() -> None:
    kinds = torch.randn(7, 16, generator=torch.Generator().manual_seed(2))
    tokens = kinds.repeat(40, 1)
    loud = tokens.clone()
    loud[:, 3] *= 1e4
    one, other = (float(OutputEntropy.finish(streamed(OutputEntropy, (t, t)))) for t in (tokens, loud))
    assert one == pytest.approx(other)


def test_pieces_and_merges_give_the_whole_and_only_the_first_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entropy_file, "MOST", 50)
    x, y = inputs(80), inputs(80) ** 2
    whole = OutputEntropy.finish(streamed(OutputEntropy, (x[:50], y[:50])))
    pieces = streamed(OutputEntropy, *((x[a:b], y[a:b]) for a, b in ((0, 30), (30, 45), (45, 80))))
    merged = OutputEntropy.merge(streamed(OutputEntropy, (x[:45], y[:45])), streamed(OutputEntropy, (x[45:], y[45:])))
    assert whole == OutputEntropy.finish(pieces) == OutputEntropy.finish(merged)
    assert whole > 1


def test_clusters_are_found_and_the_points_left_alone() -> None:
    draw = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [20.0, 0.0], [0.0, 20.0]])
    which = torch.arange(3).repeat_interleave(30)  # the first centres are one of each
    points = centres[which] + torch.randn(90, 2, generator=draw)
    before = points.clone()
    labels = kmeans(points, 3)
    assert torch.equal(points, before)
    for kind in range(3):
        assert len(labels[which == kind].unique()) == 1
    assert len(kmeans(points[:2], 5)) == 2
