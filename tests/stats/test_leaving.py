"""Leaving: the first tokens of all that are seen, each of the same size."""

import torch

from trimtab.stats import Leaving
from trimtab.stats.leaving import MOST


def test_tokens_lose_their_size_and_keep_their_order() -> None:
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 6, 50)[:, None]
    state = Leaving.start((0, 0), x.device)
    for some in x.split(7):
        state = Leaving.update(state, -some, some)
    found = Leaving.finish(state).float()
    assert torch.allclose(found.square().mean(1), torch.ones(50), atol=1e-2)
    assert torch.allclose(torch.cosine_similarity(found, x), torch.ones(50), atol=1e-5)


def test_no_more_than_are_wanted_are_kept() -> None:
    x = torch.randn(MOST - 10, 4, generator=torch.Generator().manual_seed(0))
    once = Leaving.update(Leaving.start((0, 0), x.device), x, x)
    both = Leaving.finish(Leaving.merge(once, Leaving.update((), x, -x)))
    assert both.shape == (MOST, 4)
    assert torch.equal(both[: len(x)], Leaving.finish(once))
    assert torch.equal(both[len(x) :], -both[:10])
    assert torch.equal(Leaving.finish(Leaving.update(once, x, -x)), both)


def test_nothing_seen_and_zero_tokens() -> None:
    assert Leaving.finish(()).shape == (0, 0)
    assert torch.equal(Leaving.finish(Leaving.update((), torch.ones(2, 3), torch.zeros(2, 3))), torch.zeros(2, 3).half())
