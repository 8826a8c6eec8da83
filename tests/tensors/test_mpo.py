"""Cores multiply back to the matrix at full bonds, are the best sum of Kronecker products with two sites, and count."""

import pytest
import torch
from torch import Tensor

from trimtab.formats import Mpo
from trimtab.tensors.mpo import applied, axes, bonds, bonds_for, decomposed, multiplications, numbers, product, split


def normal(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("width", "sites", "wanted"),
    [(576, 3, (8, 8, 9)), (1536, 3, (8, 12, 16)), (576, 2, (24, 24)), (17, 3, (1, 1, 17)), (64, 1, (64,)), (1, 2, (1, 1))],
)
def test_widths_are_split_evenly(width: int, sites: int, wanted: tuple[int, ...]) -> None:
    assert split(width, sites) == wanted


@pytest.mark.parametrize("sites", [2, 3, 4])
@pytest.mark.parametrize("shape", [(24, 36), (17, 33), (1, 64)])
def test_full_bonds_are_exact(shape: tuple[int, int], sites: int) -> None:
    weight = normal(*shape)
    rows, columns = axes(shape, sites)
    cores = decomposed(weight, rows, columns, bonds(rows, columns, 10**6))
    torch.testing.assert_close(product(cores).double(), weight, rtol=0, atol=1e-5)
    x = normal(5, shape[1], seed=1).float()
    torch.testing.assert_close(applied(x, cores), x @ product(cores).T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bond", [1, 3, 7])
def test_two_sites_are_the_best_sum_of_kronecker_products(bond: int) -> None:
    """Against sums built with torch.kron, and the tail of the rearranged matrix (Van Loan and Pitsianis 1993)."""
    weight, (rows, columns) = normal(12, 20), axes((12, 20), 2)
    first, second = decomposed(weight, rows, columns, bonds(rows, columns, bond))
    summed = sum(torch.kron(first[0, :, :, c].double(), second[c, :, :, 0].double()) for c in range(bond))
    torch.testing.assert_close(product([first, second]).double(), summed, rtol=0, atol=1e-5)
    rearranged = weight.reshape(rows[0], rows[1], columns[0], columns[1]).permute(0, 2, 1, 3).reshape(rows[0] * columns[0], -1)
    tail = torch.linalg.svdvals(rearranged)[bond:].square().sum()
    assert float((weight - summed).square().sum()) == pytest.approx(float(tail), rel=1e-5)


def test_a_kronecker_product_is_found() -> None:
    weight = torch.kron(torch.kron(normal(2, 3), normal(3, 2, seed=1)), normal(4, 5, seed=2))
    cores = decomposed(weight, (2, 3, 4), (3, 2, 5), (1, 1, 1, 1))
    torch.testing.assert_close(product(cores).double(), weight, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("keep", [0.05, 0.3, 0.8])
def test_the_budget_is_kept_and_used(keep: float) -> None:
    rows, columns = axes((48, 60), 3)
    of = bonds_for(rows, columns, keep * 48 * 60)
    assert numbers(rows, columns, of) <= keep * 48 * 60 < numbers(rows, columns, bonds(rows, columns, max(of) + 1))
    cores = decomposed(normal(48, 60), rows, columns, of)
    assert sum(core.numel() for core in cores) == numbers(rows, columns, of)


def test_what_is_counted_is_what_is_multiplied() -> None:
    """A sum of one Kronecker product: o1 i1 i2 + o1 o2 i2 multiplications; with large bonds the matrix itself is less."""
    assert multiplications((3, 5), (7, 11), (1, 1, 1)) == 3 * 7 * 11 + 3 * 5 * 11
    rows, columns = axes((24, 36), 2)
    made = [Mpo(tuple(decomposed(normal(24, 36), rows, columns, bonds(rows, columns, bond)))) for bond in (1, 30)]
    assert [weight.is_short for weight in made] == [True, False]
