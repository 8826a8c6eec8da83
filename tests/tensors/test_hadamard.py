"""Hadamard matrices are orthonormal with entries of one size, and the fast transform is the matrix product."""

import pytest
import torch

from trimtab.tensors.hadamard import exists, hadamard, inverse, largest_block, transform

# 28 and 344 need fields of 27 and 343 elements, 52 one of 25; 36 and 52 are of the second construction.
ORDERS = [1, 2, 4, 12, 20, 28, 36, 52, 64, 100, 192, 344, 576, 1536]


def rows(*size: int) -> torch.Tensor:
    return torch.randn(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("n", ORDERS)
def test_orthonormal(n):
    matrix = hadamard(n)
    assert matrix.shape == (n, n)
    assert matrix.dtype == torch.float64
    assert torch.allclose(matrix.abs() * n**0.5, torch.ones(n, n, dtype=torch.float64), rtol=0, atol=1e-12)
    assert torch.allclose(matrix @ matrix.T, torch.eye(n, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", ORDERS)
def test_transform_is_the_product(n):
    x = rows(3, 2 * n)
    signs = torch.where(rows(2 * n) < 0, -1, 1)
    turn = signs[:, None] * torch.block_diag(hadamard(n), hadamard(n))
    assert torch.allclose(transform(x, n, signs), x @ turn, rtol=0, atol=1e-12)
    assert torch.allclose(inverse(x, n, signs), x @ turn.T, rtol=0, atol=1e-12)
    assert torch.allclose(transform(x, n), x @ (signs[:, None] * turn), rtol=0, atol=1e-12)


def test_bases_are_not_symmetric_so_the_orientation_tests_can_fail():
    assert not torch.equal(hadamard(12), hadamard(12).T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_inverse_undoes_in_every_dtype(dtype):
    x = rows(2, 5, 576).to(dtype)
    there = transform(x, 576)
    assert there.dtype == dtype
    assert there.shape == x.shape
    back = inverse(there, 576)
    assert torch.allclose(back.double(), x.double(), rtol=0, atol=16 * torch.finfo(dtype).eps)


def test_narrow_types_are_rounded_once():
    x = rows(4, 576).bfloat16()
    assert torch.equal(transform(x, 576), transform(x.float(), 576).bfloat16())


def test_argument_is_left_alone():
    x = rows(2, 64)
    before = x.clone()
    transform(x, 64, torch.ones(64))
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("width", "block"), [(576, 576), (1536, 1536), (192, 192), (33, 1), (7, 1), (46, 2), (184, 8), (11008, 11008), (1, 1)]
)
def test_largest_block(width, block):
    assert largest_block(width) == block
    assert width % block == 0
    assert exists(block)


@pytest.mark.parametrize("n", [-4, 0, 3, 6, 33, 92])
def test_no_construction(n):
    assert not exists(n)
    with pytest.raises(ValueError, match="can be built"):
        hadamard(n)


def test_block_must_divide():
    with pytest.raises(ValueError, match="use 4"):
        transform(rows(2, 4), 3)
    with pytest.raises(ValueError, match="at least 1"):
        largest_block(0)
