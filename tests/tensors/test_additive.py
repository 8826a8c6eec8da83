"""Additive codebooks: every step is a minimum of the same quadratic form in what it moves."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from trimtab.tensors.additive import Additive, loss, recoded, refitted, rescaled, start


def problem(seed: int = 0, out: int = 40, width: int = 24) -> tuple[Tensor, Tensor]:
    """weight [40, 24] and a gram that mixes all inputs."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(300, width, generator=draw) @ torch.randn(width, width, generator=draw)
    return torch.randn(out, width, generator=draw), x.T @ x / len(x)


@pytest.mark.parametrize("seed", range(3))
def test_no_step_makes_it_worse_and_all_of_them_help(seed: int) -> None:
    weight, gram = problem(seed)
    made = start(weight, 2, 16, 4)
    found = [loss(weight, gram, made)]
    for _ in range(5):
        for step in (
            lambda m: recoded(weight, gram, m, 3),
            lambda m: refitted(weight, gram, m, 10),
            lambda m: rescaled(weight, gram, m),
        ):
            made = step(made)
            found.append(loss(weight, gram, made))
    assert all(later <= earlier * (1 + 1e-5) for earlier, later in pairwise(found))
    assert found[3] < 0.8 * found[0]
    assert found[-1] < 0.8 * found[3]


def test_loss_is_what_the_outputs_lose() -> None:
    weight, _ = problem()
    x = torch.randn(50, 24, generator=torch.Generator().manual_seed(5))
    made = start(weight, 1, 8, 4)
    direct = (x @ (weight - made.values()).T).double().square().sum()
    assert loss(weight, x.T @ x, made) == pytest.approx(float(direct), rel=1e-4)


def test_the_start_is_residual_and_does_not_see_scales() -> None:
    weight, _ = problem()
    one, two, four = (start(weight, books, 16, 4) for books in (1, 2, 4))
    errors = [float((weight - m.values()).square().sum()) for m in (one, two, four)]
    assert errors[0] > 1.5 * errors[1] > 2 * errors[2]
    loud = start(weight * torch.arange(1.0, 41.0)[:, None], 2, 16, 4)
    assert torch.equal(loud.codes, two.codes)


def test_one_run_of_one_book_takes_the_cheapest_entry_of_all() -> None:
    """With a single run there is nothing else to wait for: the pass is exhaustive search."""
    weight, gram = problem(out=10, width=6)
    made = start(weight, 1, 8, 6)
    found = recoded(weight, gram, made, 1)
    every = weight[:, None] - made.scale[:, None, None] * made.codebook[0]  # [out, entries, in]
    cost = ((every @ gram) * every).sum(-1)
    assert torch.equal(found.codes[0, :, 0], cost.argmin(1))


def test_a_beam_over_all_pairs_is_exhaustive() -> None:
    weight, gram = problem(out=12, width=4)
    made = start(weight, 2, 8, 4)
    found = recoded(weight, gram, made, 8)
    pairs = made.codebook[0][:, None] + made.codebook[1]
    every = weight[:, None] - made.scale[:, None, None] * pairs.flatten(0, 1)
    cost = ((every @ gram) * every).sum(-1)
    left = weight - found.values()
    assert torch.allclose(((left @ gram) * left).sum(1), cost.amin(1), rtol=1e-4)


def test_codebooks_reach_the_least_squares_solution() -> None:
    weight, gram = problem()
    made = recoded(weight, gram, start(weight, 2, 8, 4), 2)
    each = torch.eye(made.codebook.numel()).view(-1, *made.codebook.shape)
    columns = [replace(made, codebook=one).values() for one in each]
    root = torch.linalg.cholesky(gram.double())
    design = torch.stack([(c.double() @ root).flatten() for c in columns], 1)
    target = (weight.double() @ root).flatten()
    left = target - design @ torch.linalg.pinv(design) @ target
    best = float(left.square().sum())
    assert loss(weight, gram, refitted(weight, gram, made, 200)) == pytest.approx(best, rel=1e-3)


def test_many_steps_beyond_the_minimum_do_no_harm() -> None:
    weight, gram = problem()
    made = recoded(weight, gram, start(weight, 3, 16, 4), 2)
    few, many = (refitted(weight, gram, made, steps) for steps in (60, 2000))
    assert loss(weight, gram, many) <= loss(weight, gram, few) * 1.001
    assert float(many.codebook.abs().max()) < 100


def test_scales_are_the_least_squares_ones_and_rows_of_zeros_stay_zero() -> None:
    weight, gram = problem()
    weight[3] = 0
    made = rescaled(weight, gram, recoded(weight, gram, start(weight, 2, 8, 4), 2))
    best = loss(weight, gram, made)
    for factor in (0.97, 1.03):
        assert loss(weight, gram, replace(made, scale=made.scale * factor)) > best
    assert float(made.values()[3].abs().max()) == 0


def test_what_is_such_a_sum_comes_back() -> None:
    draw = torch.Generator().manual_seed(2)
    book = torch.randn(2, 4, 8, generator=draw)
    codes = torch.randint(0, 4, (2, 60, 3), generator=draw)
    exact = Additive(codes, book, torch.rand(60, generator=draw) + 0.5)
    weight, gram = exact.values(), problem(width=24)[1]
    assert loss(weight, gram, exact) == 0
    again = recoded(weight, gram, replace(exact, codes=(codes + 1) % 4), 4)
    for _ in range(4):
        again = recoded(weight, gram, again, 4)
    assert loss(weight, gram, again) < 0.05 * float(((weight @ gram) * weight).sum())
