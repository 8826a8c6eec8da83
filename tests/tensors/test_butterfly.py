"""Fast transforms are butterfly products, and are found from their matrices alone."""

import pytest
import torch
from torch import Tensor

from trimtab.formats import Butterfly
from trimtab.tensors.butterfly import applied, bit_reversal, fitted, numbers, product, projected, size_for, stacks_for
from trimtab.tensors.hadamard import hadamard


def normal(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def fourier(size: int) -> Tensor:
    return torch.fft.fft(torch.eye(size, dtype=torch.complex128), dim=0) / size**0.5


@pytest.mark.parametrize("size", [2, 4, 16, 64])
def test_the_fourier_transform_is_found(size: int) -> None:
    wanted = fourier(size)
    twiddle = projected(wanted[:, bit_reversal(size)])
    assert twiddle.shape == (size.bit_length() - 1, size // 2, 2, 2)
    found = torch.empty_like(wanted)
    found[:, bit_reversal(size)] = product(twiddle[None])[0]
    assert float((found - wanted).abs().square().mean().sqrt()) < 1e-12
    if size > 4:
        wrong = product(projected(wanted)[None])[0]  # without the reversal it is none
        assert float((wrong - wanted).abs().square().mean().sqrt()) > 1e-2


@pytest.mark.parametrize("size", [2, 8, 64])
def test_the_hadamard_transform_is_found(size: int) -> None:
    wanted = hadamard(size).double()
    assert torch.allclose(product(projected(wanted)[None])[0], wanted, atol=1e-12)


def test_a_product_of_factors_is_found_again() -> None:
    """Whatever the factors: every stretch of 2^(l + 1) mixes its halves by 2 x 2 matrices, written out here one by one."""
    size, twiddle = 16, normal(4, 8, 2, 2)
    wanted = torch.eye(size, dtype=torch.float64)
    for level in range(4):
        factor, stride = torch.zeros(size, size, dtype=torch.float64), 2**level
        for pair in range(size // 2):
            first = pair // stride * 2 * stride + pair % stride
            for o in range(2):
                for i in range(2):
                    factor[first + o * stride, first + i * stride] = twiddle[level, pair, o, i]
        wanted = factor @ wanted
    assert torch.allclose(product(twiddle[None])[0], wanted, atol=1e-12)
    assert torch.allclose(product(projected(wanted)[None])[0], wanted, atol=1e-10)


def test_the_structure_is_what_finds_it() -> None:
    """A low rank with as many numbers leaves most of the same matrix."""
    size = 64
    wanted = hadamard(size).double()
    rank = numbers((size, size)) // (2 * size)
    u, s, vt = torch.linalg.svd(wanted)
    low = (u[:, :rank] * s[:rank]) @ vt[:rank]
    assert float((low - wanted).square().sum() / wanted.square().sum()) > 0.9


@pytest.mark.parametrize("shape", [(12, 20), (40, 16), (1, 2), (33, 17)])
def test_other_shapes_are_cut_out_of_stacks(shape: tuple[int, int]) -> None:
    twiddle = fitted(normal(*shape))
    size, stacks = size_for(shape[1]), stacks_for(shape)
    assert stacks * size >= shape[0]
    weight = Butterfly.of(twiddle, shape)
    assert sum(t.numel() for t in weight.tensors().values()) == numbers(shape)
    x = normal(5, shape[1], seed=1).float()
    torch.testing.assert_close(weight.times(x), x @ weight.dense().T, rtol=1e-4, atol=1e-4)
    spread = torch.nn.functional.pad(x, (0, size - shape[1]))[:, None]
    torch.testing.assert_close(applied(spread, twiddle).flatten(1)[:, : shape[0]], weight.times(x), rtol=0, atol=1e-5)


def test_noise_is_met_as_far_as_it_goes() -> None:
    """Of a matrix that is none something is kept, and no more numbers are needed for a larger scale."""
    matrix = normal(32, 32)
    near = product(projected(matrix)[None])[0]
    assert 0.2 < float((near - matrix).norm() / matrix.norm()) < 0.95
    assert torch.allclose(product(projected(5 * matrix)[None])[0], 5 * near, atol=1e-9)
