"""HQQ: the offsets, what they lessen, and how they are stored."""

import pytest
import torch
from torch import Tensor

from trimtab.core.kinds import LinearWeight
from trimtab.core.registry import get
from trimtab.formats import linear
from trimtab.tensors.rounding import fit
from trimtab.testing.problems import Layer, layer, solve


def distance(weight: Tensor, answer: LinearWeight) -> float:
    return float((weight - answer.dense()).double().square().sum())


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("group_size", [0, 32])
@pytest.mark.parametrize("clip", [False, True])
def test_hqq_without_rounds_is_rtn(bits: int, group_size: int, clip: bool) -> None:
    """But for offsets that are stored in float16: a few of a million codes on the edge, and 2^-11 of an offset elsewhere."""
    same = {"bits": bits, "group_size": group_size, "clip": clip}
    hqq, rtn = solve(get("hqq")(rounds=0, **same), layer()), solve(get("rtn")(**same), layer())
    uniform = hqq.parts[0]
    assert torch.equal(uniform.scale, rtn.scale)
    torch.testing.assert_close(hqq.dense(), rtn.dense(), rtol=0, atol=float(rtn.scale.max()) * 2.0 ** (bits - 11))


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("relative", [False, True])
def test_hqq_never_ends_with_a_larger_mean_error_than_it_starts(bits: int, relative: bool) -> None:
    weight = layer().weight
    sizes = []
    for rounds in (0, 5, 20):
        change = weight - solve(get("hqq")(bits=bits, relative=relative, rounds=rounds), layer()).dense()
        sizes.append(change.reshape(24, 2, 64).abs().mean(-1))  # of every group
    assert (sizes[1] <= sizes[0] * (1 + 1e-6)).all()
    assert (sizes[2] <= sizes[1] * (1 + 1e-6)).all()
    assert sizes[2].mean() < 0.99 * sizes[0].mean()


def test_hqq_leaves_codes_that_are_nearest_to_the_stored_offsets() -> None:
    problem = layer()
    answer = solve(get("hqq")(bits=3), problem)
    uniform, offsets = answer.parts
    scale = uniform.scale.float().repeat_interleave(64, dim=1)
    for other in (-1, 1):
        moved = (uniform.codes.int() + other).clamp(0, 7)
        values = (moved - 4) * scale + offsets.dense()
        assert ((problem.weight - answer.dense()).abs() <= (problem.weight - values).abs() + 1e-6).all()


def test_hqq_of_small_weights_shrinks_only_where_errors_are_relative() -> None:
    """In the units of weights like a language model's, p and beta do not matter: all that is set apart is zero."""
    usual, small = layer(), Layer(layer().weight * 2.0**-6, layer().x)
    make = get("hqq")
    absolute = [solve(make(bits=3, norm=norm), small).dense() for norm in (0.3, 0.7)]
    assert torch.equal(*absolute)
    relative = [solve(make(bits=3, norm=norm, relative=True), small).dense() for norm in (0.3, 0.7)]
    assert not torch.equal(*relative)
    again = solve(make(bits=3, norm=0.7, relative=True), usual).dense()
    torch.testing.assert_close(relative[1] * 2.0**6, again, rtol=1e-3, atol=1e-3)


def test_hqq_with_no_part_set_apart_ends_at_a_fixed_point_of_least_squares() -> None:
    """e = 0: offset and codes alternate as in k-means, whose squared error cannot rise."""
    small = Layer(layer().weight * 2.0**-6, layer().x)
    errors = [distance(small.weight, solve(get("hqq")(bits=2, rounds=r), small)) for r in (0, 1, 20)]
    assert errors[1] < errors[0]
    assert errors[2] < errors[1]


def test_hqq_spreads_its_offsets_exactly() -> None:
    """As a product of factors it must say what scale * code + offset says, to the last bit, and apply as one matrix."""
    problem = layer()
    answer = solve(get("hqq")(bits=3, group_size=32), problem)
    uniform, chain = answer.parts
    offsets = chain.factors[0].weight.float().repeat_interleave(32, dim=1)
    assert torch.equal(chain.dense(), offsets)
    assert torch.equal(answer.dense(), uniform.dense() + offsets)
    torch.testing.assert_close(linear(problem.x, answer), problem.x @ answer.dense().T, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("out", "inputs", "bits", "group_size"), [(24, 128, 3, 32), (64, 256, 2, 64), (24, 128, 4, 0)])
def test_hqq_counts_what_it_stores(out: int, inputs: int, bits: int, group_size: int) -> None:
    answer = solve(get("hqq")(bits=bits, group_size=group_size), layer(out, inputs))
    groups = inputs // (group_size or inputs)
    stored = out * inputs * bits + 2 * 16 * out * groups + groups * (2 * inputs + 16)
    assert answer.bits == stored / (out * inputs)


def test_hqq_refuses_an_offset_beyond_float16() -> None:
    far = Layer(layer().weight + 140_000.0, layer().x)  # whose scales float16 still holds
    with pytest.raises(ArithmeticError, match="exceeds float16"):
        solve(get("hqq")(bits=8), far)


@pytest.mark.parametrize("seed", range(4))
def test_a_clipped_start_beats_the_full_range(seed: int) -> None:
    """At 2 bits the offset alone cannot make up for a range that is too wide; with both, less is lost than by `rtn`'s grid."""
    problem = layer(seed=seed)
    wide, clipped = (distance(problem.weight, solve(get("hqq")(bits=2, clip=c), problem)) for c in (False, True))
    groups = problem.weight.reshape(24, 2, 64)
    grid = float((fit(groups, 2, clip=True).nearest(groups) - groups).double().square().sum())
    assert clipped < grid < wide


def test_hqq_looks_at_the_weights_only() -> None:
    method, problem = get("hqq")(), layer()
    assert method.needs == ()
    answers = [solve(method, Layer(problem.weight, x)).dense() for x in (problem.x, -3 * problem.x.flip(1))]
    assert torch.equal(*answers)
