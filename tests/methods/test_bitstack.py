"""BitStack: each block mends what is left over, less is the beginning of more, and blocks say what they are worth."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from trimtab.core.kinds import Seen
from trimtab.core.places import Role, Site
from trimtab.formats import Dense, SignStack
from trimtab.methods.factorize.svd_llm import SvdLlm
from trimtab.methods.quantize.bitstack import BitStack
from trimtab.stats import Gram
from trimtab.tensors.leading import leading
from trimtab.tensors.residual_signs import refitted

SITE = Site("model.layers.0.mlp.down_proj", Role.DOWN, (128, 192), block=0)


def problem(seed: int) -> tuple[Tensor, Tensor]:
    """weight [128, 192] and the gram of inputs of different loudness that 48 causes explain for the most part."""
    draw = torch.Generator().manual_seed(seed)
    causes = torch.randn(600, 48, generator=draw) @ torch.randn(48, 192, generator=draw) / 7
    x = (causes + 0.3 * torch.randn(600, 192, generator=draw)) * torch.randn(192, generator=draw).mul(0.5).exp()
    return torch.randn(128, 192, generator=draw) * torch.rand(128, 1, generator=draw), x.T @ x / len(x)


def solved(method: BitStack | SvdLlm, weight: Tensor, gram: Tensor) -> SignStack:
    return method.solve(Dense(weight), Seen({Gram: gram}), SITE)


def error(weight: Tensor, made: Tensor, gram: Tensor) -> float:
    change = (weight - made).double()
    return float((change @ gram.double() * change).sum() / (weight.double() @ gram.double() * weight.double()).sum())


@pytest.mark.parametrize("compensate", [True, False])
def test_every_block_lowers_the_error_and_says_by_how_much(compensate: bool) -> None:
    weight, gram = problem(0)
    made = solved(BitStack(compensate=compensate), weight, gram)
    errors = [1.0, *(error(weight, made.first(n).dense(), gram) for n in range(1, 9))]
    assert errors == sorted(errors, reverse=True)
    assert errors[8] < 0.01
    assert made.worth.tolist() == pytest.approx([a - b for a, b in pairwise(errors)], abs=1e-5)


@pytest.mark.parametrize("compensate", [True, False])
def test_fewer_blocks_are_the_beginning_of_more(compensate: bool) -> None:
    weight, gram = problem(1)
    few, many = (solved(BitStack(blocks=n, compensate=compensate), weight, gram) for n in (3, 5))
    assert torch.equal(few.dense(), many.first(3).dense())


@pytest.mark.parametrize("seed", range(3))
def test_the_sweep_and_the_refit_lower_the_error_at_every_size(seed: int) -> None:
    weight, gram = problem(seed)
    made = [solved(BitStack(blocks=5, compensate=c), weight, gram) for c in (True, False)]
    for n in range(1, 6):
        ours, theirs = (error(weight, m.first(n).dense(), gram) for m in made)
        assert ours < 0.7 * theirs


def test_far_below_low_rank_alone_at_equal_bits() -> None:
    weight, gram = problem(0)
    ours, theirs = solved(BitStack(blocks=2), weight, gram), solved(SvdLlm(keep=0.21), weight.half(), gram)
    assert ours.bits <= theirs.bits
    assert error(weight, ours.dense(), gram) < error(weight, theirs.dense(), gram) / 4


def test_as_published_a_block_is_the_signs_and_the_best_low_rank_of_what_is_left() -> None:
    """In float64, block by block: R, sign(R), the truncated SVD of |R| diag(a)."""
    weight, gram = problem(2)
    made = solved(BitStack(blocks=3, rank=2, compensate=False, damping=0.0), weight, gram)
    left_over, loudness = weight.double(), gram.double().diagonal().sqrt()
    for n in range(1, 4):
        u, s, vt = torch.linalg.svd(left_over.abs() * loudness, full_matrices=False)
        low = (u[:, :2] * s[:2]) @ vt[:2] / loudness
        block = torch.where(left_over < 0, -1.0, 1.0) * low.abs()
        found = made.first(n).dense().double() - (made.first(n - 1).dense().double() if n > 1 else 0)
        assert float((found - block).norm() / block.norm()) < 0.02  # float16, and signs of what is nearly zero
        left_over = weight.double() - made.first(n).dense().double()


def test_the_refit_is_least_squares() -> None:
    weight, gram = problem(0)
    draw = torch.Generator().manual_seed(0)
    right, negative = torch.rand(3, 192, generator=draw), weight < 0
    left = refitted(weight, negative, right, gram).double()
    sign = torch.where(negative, -1.0, 1.0).double()
    for row in (0, 77):
        design = (sign[row] * right.double()) @ torch.linalg.cholesky(gram.double())
        wanted = torch.linalg.lstsq(design.T, weight[row].double() @ torch.linalg.cholesky(gram.double())).solution
        assert left[row] == pytest.approx(wanted.numpy(), rel=1e-3, abs=1e-4)


def test_a_matrix_of_equal_magnitudes_is_one_block() -> None:
    _, gram = problem(0)
    weight = torch.randn(128, 192, generator=torch.Generator().manual_seed(3)).sign() * 0.25
    made = solved(BitStack(blocks=1, rank=1, compensate=False), weight, gram)
    assert error(weight, made.dense(), gram) < 1e-5


@pytest.mark.parametrize("shape", [(200, 300), (300, 200), (40, 300)])
def test_the_leading_part_is_that_of_the_svd(shape: tuple[int, int]) -> None:
    draw = torch.Generator().manual_seed(0)
    matrix = torch.randn(shape, generator=draw).abs() * torch.rand(shape[0], 1, generator=draw)
    left, right = leading(matrix, 3)
    best = torch.linalg.svdvals(matrix.double())[3:].square().sum()
    assert float((matrix - left @ right).double().square().sum()) < 1.01 * float(best)
    assert torch.equal(left, leading(matrix, 3)[0])
    low = torch.randn(shape[0], 3, generator=draw) @ torch.randn(3, shape[1], generator=draw)
    left, right = leading(low, 3)
    assert torch.allclose(left @ right, low, atol=1e-4)


def test_an_expert_that_saw_nothing_is_stacked_to_the_nearest() -> None:
    weight, gram = problem(0)
    made = solved(BitStack(), weight, torch.zeros_like(gram))
    assert float((made.dense() - weight).norm() / weight.norm()) < 0.1
    assert not made.worth.any()


def test_magnitudes_beyond_float16_are_refused() -> None:
    weight, gram = problem(0)
    with pytest.raises(ArithmeticError, match="exceed float16"):
        solved(BitStack(), weight * 1e12, gram)
