"""Rounded inputs: the grid is that of the formula, and what is rounded is what the weight says."""

import pytest
import torch

from trimtab.core.errors import UsageError
from trimtab.engine.packed_linear import PackedLinear
from trimtab.formats import Activations, Chain, Dense, Permutation, Rotated, Sum, linear
from trimtab.formats.activations import rounds_inputs
from trimtab.formats.forward import leaves
from trimtab.tensors.activations import per_token
from trimtab.tensors.hadamard import transform


def drawn(*size: int) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("group_size", [24, 8])
def test_every_number_goes_to_the_nearest_point_of_its_groups_grid(bits: int, group_size: int) -> None:
    x, top = drawn(3, 5, 24), 2 ** (bits - 1) - 1
    found = per_token(x, bits, group_size)
    for token, answer in zip(x.reshape(-1, group_size), found.reshape(-1, group_size), strict=True):
        points = torch.arange(-top - 1, top + 1) * token.abs().max() / top
        torch.testing.assert_close(answer, points[(token[:, None] - points).abs().argmin(1)])


def test_whole_numbers_within_the_range_stay() -> None:
    x = torch.tensor([[7.0, -3, 0, 1], [-7, 7, 2, 2]])
    assert torch.equal(per_token(x, 4, 4), x)
    assert torch.equal(per_token(x.double(), 4, 4), x.double())


def test_clipped_numbers_go_to_the_ends() -> None:
    assert torch.equal(per_token(torch.tensor([[14.0, -14, 3, 0]]), 4, 4, clip=0.5), torch.tensor([[7.0, -8, 3, 0]]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_nothing_becomes_nothing(dtype: torch.dtype) -> None:
    x = torch.zeros(2, 8, dtype=dtype)
    x[1] = 1e-45
    answer = per_token(x, 4, 8)
    assert answer.dtype == dtype
    assert bool(answer.isfinite().all())
    assert float(answer.abs().max()) < 1e-40


def test_loud_groups_have_eight_bits() -> None:
    x = drawn(3, 24)
    found = per_token(x, 3, 8, loud=2)
    assert torch.equal(found[:, :16], per_token(x[:, :16], 8, 8))
    assert torch.equal(found[:, 16:], per_token(x[:, 16:], 3, 8))
    with pytest.raises(UsageError, match="of 3 groups 4 cannot be loud"):
        Activations(Dense(drawn(5, 24)), 4, 8, loud=4)


def test_gradients_pass_the_rounding() -> None:
    x, clip = drawn(4, 6).requires_grad_(), torch.tensor(0.5, requires_grad=True)
    per_token(x, 4, 6, clip).sum().backward()
    assert x.grad is not None
    assert bool((x.grad != 0).any())
    assert clip.grad is not None
    assert float(clip.grad) != 0


def test_a_weight_rounds_before_it_multiplies() -> None:
    x, bias, plain = drawn(2, 3, 24), drawn(5), Dense(drawn(5, 24))
    weight = Activations(plain, 4, 8, 0.9)
    assert torch.equal(linear(x, weight, bias), linear(per_token(x, 4, 8, 0.9), plain, bias))
    assert torch.equal(weight.dense(), plain.dense())
    assert list(leaves(weight)) == [plain]


def test_another_order_is_that_of_the_columns() -> None:
    x, order, plain = drawn(4, 24), torch.randperm(24, generator=torch.Generator().manual_seed(1)), drawn(5, 24)
    weight = Chain((Dense(plain[:, order]), Permutation(order)))
    torch.testing.assert_close(linear(x, weight), x @ plain.T)
    assert torch.equal(weight.dense(), plain)


def test_inside_a_rotation_what_was_turned_is_rounded() -> None:
    x, inner = drawn(3, 24), Dense(drawn(5, 24))
    weight = Rotated(Activations(inner, 4, 24), 8)
    assert torch.equal(linear(x, weight), linear(per_token(transform(x, 8), 4, 24), inner))


@pytest.mark.parametrize("training", [False, True])
def test_a_layer_of_a_model_rounds(training: bool) -> None:
    x, weight = drawn(2, 3, 24), Activations(Dense(drawn(5, 24)), 3, 24)
    layer = PackedLinear.of(weight).train(training)
    assert torch.equal(layer(x), linear(x, weight))
    assert not torch.equal(layer(x), linear(x, weight.inner))


def test_who_asks_is_told_that_the_matrix_is_not_everything() -> None:
    plain = Dense(drawn(5, 24))
    rounding = Activations(plain, 4, 24)
    assert rounds_inputs(rounding.spec())
    assert rounds_inputs(Rotated(rounding, 8).spec())
    assert not rounds_inputs(Sum((plain, plain)).spec())


@pytest.mark.parametrize(("bits", "group_size", "clip"), [(1, 24, 1.0), (9, 24, 1.0), (4, 7, 1.0), (4, 24, 0.0), (4, 24, 1.1)])
def test_what_makes_no_sense_is_refused(bits: int, group_size: int, clip: float) -> None:
    with pytest.raises(UsageError, match=r"Activations: "):
        Activations(Dense(drawn(5, 24)), bits, group_size, clip)
