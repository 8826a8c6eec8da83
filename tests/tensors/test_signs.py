"""Sums of powers of two are those and no others, and the fit of scaled signs finds what is there."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trimtab.tensors.bitplanes import Planes
from trimtab.tensors.signs import LEAST, MOST, NOTHING, exponents, fit, powers, shifted


def normal(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def squared(planes: Planes, weight: Tensor) -> Tensor:
    return (planes.values(planes.codes(weight)) - weight).double().square().sum(-1)


def terms_of(value: float) -> int:
    """The fewest signed powers of two that a number is a sum of: the non-zero digits of its non-adjacent form."""
    whole, count = abs(int(value * 2**40)), 0
    assert whole == abs(value) * 2**40
    while whole:
        if whole & 1:
            count, whole = count + 1, whole - (2 - whole % 4)
        whole >>= 1
    return count


@settings(max_examples=50, deadline=None)
@given(value=st.floats(-1e4, 1e4, width=32, allow_subnormal=False), terms=st.integers(1, 4))
def test_each_power_is_the_nearest_in_the_logarithm(value: float, terms: int) -> None:
    total, left = 0.0, torch.tensor([value], dtype=torch.float64)
    for _ in range(terms):
        if left != 0:
            total += float(left.sign() * 2.0 ** left.abs().log2().round())
        left = torch.tensor([value - total], dtype=torch.float64)
    assert powers(torch.tensor([value]), terms).item() == pytest.approx(total, abs=2.0**-22 * abs(value))


def test_powers_of_two_stay_and_more_of_them_come_closer() -> None:
    exact = 2.0 ** torch.arange(-20, 20)
    assert torch.equal(powers(exact, 1), exact)
    assert torch.equal(powers(-exact * 1.25, 2), -exact * 1.25)
    assert torch.equal(powers(torch.zeros(3), 3), torch.zeros(3))
    values = normal(1000)
    errors = [(powers(values, terms) - values).abs() for terms in range(1, 6)]
    assert all((more <= fewer).all() for fewer, more in pairwise(errors))
    assert (errors[0] <= values.abs() * (2**0.5 - 1) * (1 + 1e-6)).all()


def test_exponents_come_back() -> None:
    scale = torch.cat([torch.zeros(1), 2.0 ** torch.arange(LEAST - 3, MOST + 1)])
    found = exponents(scale)
    assert found[:5].tolist() == [NOTHING] * 4 + [LEAST]
    assert torch.equal(shifted(found), torch.where(scale < 2.0**LEAST, 0.0, scale))


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_finds_signs_that_are_there(bits: int) -> None:
    """All combinations equally often: then greedy signs start where the fit should end."""
    scale = torch.tensor([3.0, 1.0, 0.25])[:bits]
    codes = torch.arange(64) % 2**bits
    weight = ((codes[:, None] >> torch.arange(bits) & 1) * 2.0 - 1) @ scale
    planes = fit(weight, bits, 15, 2)
    assert torch.equal(planes.values(planes.codes(weight)), weight)
    assert torch.equal(planes.scale, 2 * scale.flip(0))


@pytest.mark.parametrize("bits", [2, 3])
def test_the_error_falls_with_the_number_of_powers(bits: int) -> None:
    weight = normal(400, 64)
    errors = [float(squared(fit(weight, bits, 15, terms), weight).sum()) for terms in (1, 2, 3, 0)]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 1.02 * errors[3]


@settings(max_examples=25, deadline=None)
@given(bits=st.integers(1, 4), rounds=st.integers(1, 12), terms=st.integers(0, 4), seed=st.integers(0, 999))
def test_never_worse_with_more_rounds_and_as_stored(bits: int, rounds: int, terms: int, seed: int) -> None:
    weight = normal(6, 32, seed=seed) ** 3
    none, some, more = (fit(weight, bits, r, terms) for r in (0, rounds, rounds + 3))
    assert (squared(some, weight) <= squared(none, weight) * (1 + 1e-5)).all()
    assert (squared(more, weight) <= squared(some, weight) * (1 + 1e-5)).all()
    assert (more.scale.diff(dim=-1) >= 0).all()
    assert torch.equal(more.scale, more.scale.half().float())
    assert torch.allclose(more.offset, -more.scale.sum(-1, keepdim=True) / 2)
    if terms:
        assert max(map(terms_of, more.scale.flatten().tolist())) <= terms


def test_a_start_is_never_left_for_a_worse_place() -> None:
    weight = normal(6, 32)
    start = fit(weight, 2, 15, 3)
    assert torch.equal(fit(weight, 2, 0, 3, start).scale, start.scale)
    moved = weight + 0.1 * normal(6, 32, seed=1)
    assert (squared(fit(moved, 2, 3, 3, start), moved) <= squared(start, moved)).all()


# Relative squared error on N(0, 1) in groups of 128: the least that symmetric levels of one group can have, by Lloyd's method
# on the distribution, is 0.363, 0.1175 and 0.0345 for 1, 2 and 3 bits.
@pytest.mark.parametrize(("bits", "reached"), [(1, 0.363), (2, 0.114), (3, 0.036)])
def test_error_on_normal_weights(bits: int, reached: float) -> None:
    weight = normal(1500, 128)
    relative = squared(fit(weight, bits, 50, 0), weight) / weight.double().square().sum(-1)
    stderr = float(relative.std() / len(weight) ** 0.5)
    assert abs(float(relative.mean()) - reached) < 4 * stderr + 0.025 * reached


def test_degenerate_groups_stay_finite() -> None:
    weight = torch.stack([torch.zeros(16), torch.full((16,), 3.5), torch.cat([torch.ones(1), torch.zeros(15)])])
    planes = fit(weight, 3, 10, 3)
    values = planes.values(planes.codes(weight))
    assert torch.equal(values[:2], weight[:2])
    assert bool(values.isfinite().all())


@pytest.mark.parametrize(("terms", "size"), [(3, 1e5), (0, 1e5), (1, 1e25)])
def test_scales_beyond_their_format_are_an_error(terms: int, size: float) -> None:
    with pytest.raises(ArithmeticError, match="exceeds its format"):
        fit(normal(2, 16) * size, 2, 3, terms)
