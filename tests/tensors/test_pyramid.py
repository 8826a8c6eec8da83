"""Points of the pyramid: counted, numbered without gaps, found as near as the best of all where all can be tried."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trimtab.tensors.pyramid import exist, index_bits, most_pulses, nearest, numbered, numbers, points


def every(dim: int, pulses: int) -> Tensor:
    """All points [n, dim], by trying all vectors."""
    return torch.tensor([p for p in product(range(-pulses, pulses + 1), repeat=dim) if sum(map(abs, p)) == pulses])


def random_points(dim: int, pulses: int, seed: int, n: int = 20) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    counts = torch.nn.functional.one_hot(torch.randint(0, dim, (n, pulses), generator=draw), dim).sum(1)
    return counts * (1 - 2 * torch.randint(0, 2, counts.shape, generator=draw))


@pytest.mark.parametrize(("dim", "pulses"), [(1, 1), (1, 7), (2, 4), (3, 3), (4, 2), (5, 1), (4, 5), (6, 3)])
def test_numbers_are_all_those_from_zero_in_the_documented_order(dim: int, pulses: int) -> None:
    found = every(dim, pulses)
    bits = numbers(found, pulses)
    assert bits.shape == (len(found), index_bits(dim, pulses))
    index = (bits.long() << torch.arange(bits.shape[1])).sum(1)
    assert sorted(index.tolist()) == list(range(points(dim, pulses)))
    assert torch.equal(numbered(bits, dim, pulses).long(), found)
    first = found[index.argsort()][:, 0].tolist()
    assert first == sorted(first, key=lambda v: (-abs(v), v < 0))


@settings(max_examples=40, deadline=None)
@given(dim=st.integers(1, 130), pulses=st.integers(1, 200), seed=st.integers(0, 99))
def test_long_numbers_come_back(dim: int, pulses: int, seed: int) -> None:
    found = random_points(dim, pulses, seed)
    bits = numbers(found, pulses)
    assert torch.equal(numbered(bits, dim, pulses).long(), found)
    assert exist(bits, dim, pulses)
    values = [sum(int(b) << i for i, b in enumerate(row)) for row in bits]
    assert all(value < points(dim, pulses) for value in values)
    assert len(set(values)) == len({tuple(row) for row in found.tolist()})


@pytest.mark.parametrize(("dim", "pulses"), [(3, 3), (16, 12), (32, 22), (128, 187)])
def test_the_last_point_exists_and_the_next_does_not(dim: int, pulses: int) -> None:
    def bits(number: int) -> Tensor:
        return torch.tensor([[number >> i & 1 for i in range(index_bits(dim, pulses))]], dtype=torch.uint8)

    last = points(dim, pulses) - 1
    assert exist(bits(last), dim, pulses)
    assert torch.equal(numbers(numbered(bits(last), dim, pulses), pulses), bits(last))
    if (last + 1).bit_length() == index_bits(dim, pulses):
        assert not exist(bits(last + 1), dim, pulses)


def test_counts_are_those_of_the_recursion() -> None:
    for dim in range(1, 20):
        for pulses in range(1, 20):
            before = points(dim - 1, pulses) + points(dim - 1, pulses - 1) if dim > 1 else int(pulses == 1)
            assert points(dim, pulses) == before + points(dim, pulses - 1)
    assert points(7, 0) == 1


def test_as_many_pulses_as_the_bits_allow() -> None:
    for dim, bits in ((1, 3), (8, 24), (16, 32), (16, 48), (32, 69), (128, 256)):
        pulses = most_pulses(dim, bits, 4096)
        assert index_bits(dim, pulses) <= bits
        assert index_bits(dim, pulses + 1) > bits or pulses == 4096
    assert most_pulses(16, 4, 4096) == 0
    assert most_pulses(16, 5, 4096) == 1
    assert most_pulses(2, 60, 100) == 100


def test_nearest_has_the_pulses_and_the_signs() -> None:
    vectors = torch.randn(50, 12, generator=torch.Generator().manual_seed(0))
    for pulses in (1, 5, 40):
        found = nearest(vectors, pulses)
        assert torch.equal(found, found.round())
        assert torch.equal(found.abs().sum(1), torch.full((50,), float(pulses)))
        assert bool((found * vectors >= 0).all())


def test_a_point_is_nearest_to_itself_at_any_length() -> None:
    found = random_points(10, 9, 0).float()
    for length in (1.0, 1e-20, 1e20):
        assert torch.equal(nearest(found * length, 9), found)


@pytest.mark.parametrize("pulses", [1, 3])
def test_a_zero_vector_gets_some_point(pulses: int) -> None:
    metric = torch.eye(4) + 0.1
    for chosen in (None, metric):
        found = nearest(torch.zeros(2, 4), pulses, chosen, moves=2)
        assert torch.equal(found.abs().sum(1), torch.full((2,), float(pulses)))


def cosines(found: Tensor, vectors: Tensor, metric: Tensor) -> Tensor:
    """[n] in the metric, float64."""
    found, vectors, metric = found.double(), vectors.double(), metric.double()
    both = (found @ metric * vectors).sum(-1)
    return both / ((found @ metric * found).sum(-1) * (vectors @ metric * vectors).sum(-1)).sqrt()


def problem(dim: int, seed: int) -> tuple[Tensor, Tensor]:
    """vectors [40, dim] and a metric in which they are far from round."""
    draw = torch.Generator().manual_seed(seed)
    root = torch.eye(dim) + torch.randn(dim, dim, generator=draw) * dim**-0.5
    return torch.randn(40, dim, generator=draw), root @ root.T


@pytest.mark.parametrize("seed", range(3))
def test_close_to_the_best_of_all_points(seed: int) -> None:
    """Against exhaustive search, by the mean squared sine: the very best in the plain metric, near it in a crooked one."""
    vectors, metric = problem(5, seed)
    all_points = every(5, 4)
    for chosen, moves, factor in ((None, 0, 1.02), (None, 6, 1.002), (metric, 6, 2.0)):
        own = torch.eye(5) if chosen is None else chosen
        best = torch.stack([cosines(all_points, v.expand(len(all_points), -1), own).max() for v in vectors])
        found = cosines(nearest(vectors, 4, chosen, moves), vectors, own)
        assert bool((found <= best + 1e-9).all())
        assert (1 - found.square()).mean() <= factor * (1 - best.square()).mean()


@pytest.mark.parametrize("seed", range(3))
def test_the_metric_is_what_is_searched_in_and_moves_never_hurt(seed: int) -> None:
    vectors, metric = problem(16, seed)
    plain, searched, moved = (
        cosines(found, vectors, metric)
        for found in (nearest(vectors, 12), nearest(vectors, 12, metric), nearest(vectors, 12, metric, moves=20))
    )
    sines = [(1 - found.square()).mean() for found in (moved, searched, plain)]
    assert sines == sorted(sines)
    assert bool((moved >= searched - 1e-6).all())


@pytest.mark.parametrize(
    ("dim", "pulses", "distortion"), [(16, 12, 0.083), (16, 27, 0.0193), (32, 22, 0.0916), (32, 50, 0.0215), (128, 84, 0.0958)]
)
def test_distortion_of_gaussian_vectors(dim: int, pulses: int, distortion: float) -> None:
    """With exact lengths, at 2 or 3 bits a coordinate: between the bound of rate and distortion and scalar quantization."""
    vectors = torch.randn(60000 // dim, dim, generator=torch.Generator().manual_seed(1))
    found = nearest(vectors, pulses)
    along = (vectors * found).sum(1, keepdim=True) / found.square().sum(1, keepdim=True)
    error = float((vectors - along * found).square().mean() / vectors.square().mean())
    assert error == pytest.approx(distortion, rel=0.03)
    assert error > 2 ** (-2 * math.log2(points(dim, pulses)) / dim)
