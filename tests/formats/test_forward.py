"""Products that do not unpack a weight say what unpacking it would have said."""

import pytest
import torch

from trimtab.engine.packed_linear import PackedLinear
from trimtab.formats import Chain, Codebook, Dense, Rotation
from trimtab.formats.forward import FEW, leaves, linear, picks, through_dense


def _draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("books", [1, 3])
@pytest.mark.parametrize("rows", [1, FEW, FEW + 1])
def test_outputs_that_pick_whole_rows(books: int, rows: int) -> None:
    draw = _draw()
    codes = torch.randint(0, 8, (books, 40, 1), generator=draw, dtype=torch.uint8)
    weight = Codebook(codes, torch.randn(books, 8, 24, generator=draw).half())
    x, bias = torch.randn(rows, 24, generator=draw), torch.randn(40, generator=draw)
    assert picks(weight, x) == (rows <= FEW)
    _close(linear(x, weight, bias), through_dense(x, weight, bias))


def test_short_entries_are_not_looked_up() -> None:
    draw = _draw()
    codes = torch.randint(0, 8, (1, 40, 3), generator=draw, dtype=torch.uint8)
    assert not picks(Codebook(codes, torch.randn(1, 8, 8, generator=draw).half()), torch.randn(1, 24, generator=draw))


def test_a_rotation_turns_without_a_matrix() -> None:
    draw = _draw()
    signs = 1 - 2 * torch.randint(0, 2, (24,), generator=draw)
    rotation = Rotation(signs, 8)
    x, bias = torch.randn(5, 24, generator=draw), torch.randn(24, generator=draw)
    _close(linear(x, rotation, bias), through_dense(x, rotation, bias))
    whole = Chain((rotation, Dense(torch.randn(24, 16, generator=draw))))
    x = torch.randn(5, 16, generator=draw)
    _close(linear(x, whole), through_dense(x, whole))
    assert list(leaves(whole)) == [whole.factors[1]]


def test_a_packed_layer_keeps_no_matrix_for_few_rows() -> None:
    draw = _draw()
    codes = torch.randint(0, 8, (2, 40, 1), generator=draw, dtype=torch.uint8)
    weight = Codebook(codes, torch.randn(2, 8, 24, generator=draw).half())
    layer = PackedLinear.of(weight).eval()
    x = torch.randn(2, 24, generator=draw)
    _close(layer(x), through_dense(x, weight))
    assert not layer._cache
