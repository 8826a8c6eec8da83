"""All units compete, the cheapest in score go first, and nothing dies out."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.tensors.budget import keep_in_pools, keep_within


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 50)), min_size=1, max_size=5),
    sparsity=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_budget_is_met_to_half_a_unit_and_every_coupling_survives(sizes, sparsity, seed) -> None:
    draw = torch.Generator().manual_seed(seed)
    scores = [torch.randn(n, generator=draw) for n, _ in sizes]
    costs = [c for _, c in sizes]
    keeps = keep_within(scores, costs, sparsity)
    total = sum(n * c for n, c in sizes)
    gone = sum(int((~k).sum()) * c for k, c in zip(keeps, costs, strict=True))
    most = sum((n - 1) * c for n, c in sizes)
    assert gone <= sparsity * total + max(costs) / 2
    assert gone >= min(sparsity * total, most) - max(costs) / 2
    for keep, score in zip(keeps, scores, strict=True):
        assert keep[score.argmax()]
    for keep, score in zip(keeps, scores, strict=True):
        others = score[keep & (score != score.max())]
        assert keep.all() or not len(others) or score[~keep].max() <= others.min()


def test_nothing_goes_at_zero() -> None:
    assert all(k.all() for k in keep_within([torch.randn(5), torch.zeros(3)], [2, 9], 0.0))


def test_equal_scores_go_in_order() -> None:
    first, second = keep_within([torch.ones(4), torch.ones(4)], [1, 1], 0.25)
    assert first.tolist() == [True, False, False, True]
    assert second.all()


def test_cheap_units_make_up_for_a_dear_one_that_does_not_fit() -> None:
    dear, cheap = keep_within([torch.tensor([0.0, 9.0]), torch.arange(1.0, 11.0)], [100, 1], 0.05)
    assert dear.all()
    assert int((~cheap).sum()) == 9  # of 10: the best one stays


def test_pools_lose_their_own_part_and_the_cheapest_meet_the_budget() -> None:
    scores = [torch.arange(3.0), torch.arange(3.0), torch.arange(100.0), torch.arange(100.0) - 1000]
    costs = [50, 50, 1, 1]
    keeps = keep_in_pools(scores, costs, [([i], 0.2 * 150 if i < 2 else 20) for i in range(4)], 100.0)
    gone = [int((~keep).sum()) for keep in keeps]
    assert gone == [1, 1, 0, 0]
    keeps = keep_in_pools(scores, costs, [([i], 15 if i < 2 else 10) for i in range(4)], 50.0)
    assert [int((~keep).sum()) for keep in keeps] == [0, 0, 25, 25]
    keeps = keep_in_pools(scores, costs, [([2, 3], 1)], 50.0)
    assert [int((~keep).sum()) for keep in keeps] == [0, 0, 0, 50]


def test_what_whole_units_miss_is_asked_of_the_next_pool() -> None:
    scores, pools = [torch.rand(3, generator=torch.Generator().manual_seed(i)) for i in range(5)], [([i], 6.0) for i in range(5)]
    gone = [int((~keep).sum()) for keep in keep_in_pools(scores, [10] * 5, pools, 30.0)]
    assert gone == [1, 1, 1, 1, 1]
    gone = [int((~keep).sum()) for keep in keep_in_pools(scores, [10] * 5, pools, 30.0, carried=True)]
    assert gone == [1, 0, 1, 0, 1]
