"""One matrix a head gives the scores that queries and keys give, in float64 exactly, and their gradients."""

import torch

from trimtab.tensors.query_key import joined, scores


def drawn(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_scores_are_those_of_queries_and_keys() -> None:
    query, key, x, others = drawn(12, 10), drawn(12, 10, seed=1), drawn(2, 5, 10, seed=2), drawn(2, 7, 10, seed=3)
    apart = [(y @ weight.T).unflatten(-1, (3, 4)).transpose(1, 2) for y, weight in ((x, query), (others, key))]
    both = joined(query, key, 3)
    assert both.shape == (30, 10)
    torch.testing.assert_close(scores(x, others, both), apart[0] @ apart[1].mT / 2, rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_finite_differences() -> None:
    x, others, both = drawn(1, 3, 4), drawn(1, 2, 4, seed=1), drawn(8, 4, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: scores(x, others, m), (both,))
