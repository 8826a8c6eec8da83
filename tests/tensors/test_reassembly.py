"""Channels split and merged: against sums over all tokens and outputs, and a search over all pairs."""

import pytest
import torch

from trimtab.formats import Reassembly
from trimtab.tensors.reassembly import copies, merge_costs, merges, reassembled


def drawn(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_no_part_is_louder_than_the_threshold() -> None:
    loudest = torch.tensor([1.0, 7.9, 0.0, 2.0, 2.1])
    assert copies(loudest, 2.0).tolist() == [1, 4, 1, 1, 2]


def test_costs_are_sums_over_tokens_and_outputs() -> None:
    x, weight = drawn(40, 6), drawn(5, 6, seed=1)
    costs = merge_costs(x.T @ x / 40, weight)
    for i in range(6):
        for j in range(6):
            merged = (x[:, i] + x[:, j])[:, None] / 2 * (weight[:, i] + weight[:, j])
            apart = x[:, i : i + 1] * weight[:, i] + x[:, j : j + 1] * weight[:, j]
            torch.testing.assert_close(costs[i, j], (merged - apart).square().sum() / 40, rtol=1e-9, atol=1e-12)


def test_the_cheapest_pairs_merge() -> None:
    costs, free = drawn(8, 8).abs(), torch.tensor([True, True, False, True, True, True, True, False])
    into = merges(costs, free, 2)
    best = {even: min((float(costs[even, odd]), odd) for odd in (1, 3, 5)) for even in (0, 4, 6)}
    wanted = dict(sorted(best.items(), key=lambda item: item[1])[:2])
    assert into.tolist() == [wanted[i][1] if i in wanted else i for i in range(8)]
    assert merges(costs, free, 0).tolist() == list(range(8))
    with pytest.raises(ArithmeticError, match="only 3 are free"):
        merges(costs, free, 4)


def test_splitting_alone_is_exact() -> None:
    parts, x, weight = torch.tensor([1, 3, 1, 2, 1]), drawn(7, 5), drawn(4, 5, seed=1)
    split = Reassembly(*reassembled(parts, torch.arange(5)))
    assert split.shape == (8, 5)
    torch.testing.assert_close(split.applied(x) @ split.gathered(weight).T, x @ weight.T, rtol=1e-6, atol=1e-6)


def test_members_of_a_merge_become_their_mean() -> None:
    parts, into, x = torch.tensor([1, 1, 1, 2, 1]), torch.tensor([1, 1, 1, 3, 4]), drawn(7, 5)
    both = Reassembly(*reassembled(parts, into))
    assert both.shape == (4, 5)
    wanted = torch.stack([x[:, :3].mean(1), x[:, 3] / 2, x[:, 3] / 2, x[:, 4]], 1)
    torch.testing.assert_close(both.applied(x), wanted, rtol=1e-6, atol=1e-6)
    assert torch.equal(both.gathered(torch.arange(5.0)[None]), torch.tensor([[3.0, 3, 3, 4]]))
    assert torch.allclose(both.dense().double() @ x.T, both.applied(x).T, atol=1e-6)
