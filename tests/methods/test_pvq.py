"""PVQ: stored as promised, exact where points are dense, and its sweep is the block form of the optimal-brain update."""

import pytest
import torch
from torch import Tensor

from trimtab.core.errors import UsageError
from trimtab.core.kinds import Seen
from trimtab.core.places import Role, Site
from trimtab.formats import Dense, Pyramid
from trimtab.methods.quantize.gptq import Gptq
from trimtab.methods.quantize.pvq import Pvq
from trimtab.methods.quantize.rtn import Rtn
from trimtab.stats import Gram
from trimtab.tensors.pyramid import index_bits, nearest
from trimtab.tensors.spd import inverse_upper

SITE = Site("model.layers.0.mlp.down_proj", Role.DOWN, (40, 128), block=0)


def problem(seed: int) -> tuple[Tensor, Tensor]:
    """weight [40, 128] and the gram of correlated inputs."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(500, 128, generator=draw) @ (torch.randn(128, 128, generator=draw) / 11 + 0.3 * torch.eye(128))
    return torch.randn(40, 128, generator=draw), x.T @ x / len(x)


def solved(method: Pvq | Gptq | Rtn, weight: Tensor, gram: Tensor) -> Pyramid:
    return method.solve(Dense(weight), Seen({Gram: gram}), SITE)


def error(weight: Tensor, made: Tensor, gram: Tensor) -> float:
    change = (weight - made).double()
    return float((change @ gram.double() * change).sum() / (weight.double() @ gram.double() * weight.double()).sum())


@pytest.mark.parametrize("seed", range(3))
def test_each_part_of_it_lowers_the_output_error(seed: int) -> None:
    weight, gram = problem(seed)
    made = (Pvq(), Pvq(moves=0), Pvq(moves=0, weighted=False), Pvq(compensate=False))
    errors = [error(weight, solved(m, weight, gram).dense(), gram) for m in made]
    assert errors == sorted(errors)


@pytest.mark.parametrize(("bits", "code_bits"), [(2.25, 2), (3.25, 3)])
def test_below_uniform_grids_at_no_more_bits(bits: float, code_bits: int) -> None:
    weight, gram = problem(0)
    sides = [(Pvq(bits=bits), Gptq(bits=code_bits, clip=True, group_size=32))]
    sides.append((Pvq(bits=bits, compensate=False), Rtn(bits=code_bits, clip=True, group_size=32)))
    for pvq, uniform in sides:
        mine, theirs = solved(pvq, weight, gram), solved(uniform, weight, gram)
        assert mine.bits <= theirs.bits
        assert error(weight, mine.dense(), gram) < error(weight, theirs.dense(), gram)


@pytest.mark.parametrize(("bits", "group_size", "radius_bits"), [(2.25, 32, 3), (3.25, 16, 4), (2.0, 128, 6), (4.5, 8, 2)])
def test_stored_bits_are_those_of_the_codes_the_row_and_the_table(bits: float, group_size: int, radius_bits: int) -> None:
    made = solved(Pvq(bits=bits, group_size=group_size, radius_bits=radius_bits), *problem(0))
    codes = (index_bits(group_size, made.pulses) + radius_bits) / group_size
    assert codes <= bits < (index_bits(group_size, made.pulses + 1) + radius_bits) / group_size + 1e-9
    assert made.bits == pytest.approx(codes + 16 / 128 + 16 * 2**radius_bits / (40 * 128), abs=2 * 7 / 128)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_sweep_is_the_block_form(weighted: bool) -> None:
    """In float64: the rest is moved by (W_b - Q_b) inverse(U_bb) U_b,rest; the next points are for what it is then."""
    weight, gram = problem(1)
    made = solved(Pvq(order="given", weighted=weighted), weight, gram)
    upper, _ = inverse_upper(gram, 0.01)
    left, dense = weight.double(), made.dense().double()
    for start in range(0, 128, 32):
        here, rest = slice(start, start + 32), slice(start + 32, 128)
        inverse = torch.linalg.inv(upper[here, here])
        points = nearest(left[:, here], made.pulses, (inverse @ inverse.T).float() if weighted else None, moves=4)
        assert (points == made.points[:, here]).all(1).float().mean() > 0.9  # ties fall differently in float32
        left[:, rest] -= (left[:, here] - dense[:, here]) @ inverse @ upper[here, rest]


def test_what_lies_on_the_pyramid_comes_back() -> None:
    weight, gram = problem(0)
    for method in (Pvq(), Pvq(compensate=False)):
        points = solved(method, weight, gram).points.float().view(40, 4, 32)
        exact = (points / points.norm(dim=-1, keepdim=True)).flatten(1)
        found = solved(method, exact, gram)
        assert torch.equal(found.points.view(40, 4, 32).float(), points)
        assert error(exact, found.dense(), gram) < 1e-6


def test_groups_of_zeros_stay_zero() -> None:
    weight, gram = problem(0)
    weight[3], weight[5:9, 32:64] = 0, 0
    for made in (solved(Pvq(compensate=False), weight, gram), solved(Pvq(), weight, torch.eye(128))):
        dense = made.dense()
        assert bool((dense[3] == 0).all())
        assert bool((dense[5:9, 32:64] == 0).all())
        assert bool((dense[5:9, :32] != 0).any())


def test_settings_without_room_for_a_direction_are_refused() -> None:
    with pytest.raises(UsageError, match="1 bits are too few for groups of 4"):
        Pvq(bits=1.0, group_size=4)
    with pytest.raises(UsageError, match=r"no 300 inputs of a\.b can be"):
        Pvq(group_size=0).fits(Site("a.b", Role.Q, (8, 300), block=0))
    with pytest.raises(UsageError, match="no 3 inputs"):
        Pvq(group_size=0, bits=1.0).fits(Site("a.b", Role.Q, (8, 3), block=0))


def test_too_large_for_float16_is_an_error() -> None:
    weight, gram = problem(0)
    with pytest.raises(ArithmeticError, match="exceeds float16"):
        solved(Pvq(), weight * 1e6, gram)
