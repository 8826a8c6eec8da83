"""QuIP and QuIP#: linear feedback as the papers have it, exact where the grid is, and better by each of their parts."""

from typing import Any

import pytest
import torch
from torch import Tensor

from trimtab.core.errors import UsageError
from trimtab.core.kinds import Seen
from trimtab.core.places import Role, Site
from trimtab.core.seeds import Seeds
from trimtab.formats import Chain, Dense, Lattice, Sum
from trimtab.methods.quantize.gptq import Gptq
from trimtab.methods.quantize.quip import Quip
from trimtab.methods.quantize.quip_sharp import STAGES, QuipSharp
from trimtab.stats import Gram
from trimtab.tensors.hadamard import transform
from trimtab.tensors.lattice import nearest, points
from trimtab.tensors.spd import damped

SITE = Site("model.layers.0.mlp.down_proj", Role.DOWN, (48, 128), block=0)


def problem(seed: int) -> tuple[Tensor, Tensor]:
    """weight [48, 128] with a loud column and row, and the gram of correlated inputs."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(500, 128, generator=draw) @ (torch.randn(128, 128, generator=draw) / 11 + 0.3 * torch.eye(128))
    weight = torch.randn(48, 128, generator=draw)
    weight[:, 5] *= 4
    weight[7] *= 4
    return weight, x.T @ x / len(x)


def solved(method: Any, weight: Tensor, gram: Tensor, seed: int = 0) -> Any:
    return method.solve(Dense(weight), Seen({Gram: gram}, Seeds(seed).at("here")), SITE)


def error(weight: Tensor, made: Tensor, gram: Tensor) -> float:
    change = (weight - made).double()
    return float((change @ gram.double() * change).sum() / (weight.double() @ gram.double() * weight.double()).sum())


def turned(made: Chain, weight: Tensor, gram: Tensor) -> tuple[Tensor, Tensor]:
    """The weight and the gram as the grid saw them, float64, by the rotations that were stored."""
    left, right = made.factors[0].dense().double(), made.factors[1]
    inputs = transform(torch.eye(weight.shape[1], dtype=torch.float64), right.block, right.signs)
    return left.T @ weight.double() @ inputs, inputs.T @ gram.double() @ inputs


def feedback(gram: Tensor, width: int) -> Tensor:
    """F, zero in and below the blocks of `width`, with damped gram = (I + F) D (I + F)ᵀ and D block diagonal."""
    n = len(gram)
    left, factor = damped(gram, 0.01), torch.zeros(n, n, dtype=torch.float64)
    for end in range(n, 0, -width):
        here = slice(end - width, end)
        column = left[:, here] @ torch.linalg.inv(left[here, here])
        left = left - column @ left[here]
        factor[: end - width, here] = column[: end - width]
    return factor


@pytest.mark.parametrize("seed", range(3))
def test_the_lattice_beats_even_levels_and_both_beat_gptq_where_something_stands_out(seed: int) -> None:
    weight, gram = problem(seed)
    made = [solved(method, weight, gram) for method in (QuipSharp(), Quip(), Gptq(bits=2, group_size=0, clip=True))]
    errors = [error(weight, m.dense(), gram) for m in made]
    assert errors == sorted(errors)
    assert made[0].bits < made[1].bits < made[2].bits + 0.05


@pytest.mark.parametrize(("method", "width"), [(Quip(), 1), (QuipSharp(), 8)])
def test_the_sweep_is_linear_feedback(method: Any, width: int) -> None:
    """What is rounded is V_k + (V - rounded V) F_k, with V and F of the turned problem, as the papers write it."""
    weight, gram = problem(1)
    made = solved(method, weight, gram)
    matrix, seen = turned(made, weight, gram)
    factor, inner = feedback(seen, width), made.factors[1].inner
    rounded, same = inner.dense().double(), 0
    for start in range(0, 128, width):
        here = slice(start, start + width)
        target = (matrix[:, here] + (matrix - rounded) @ factor[:, here]).float()
        if width == 8:
            found = points(nearest(target / inner.scale.float(), 2), 2) * inner.scale.float()
        else:
            scale = inner.scale.float()
            found = ((target / scale - 0.5).round().clamp(-2, 1) + 0.5) * scale
        same += int(torch.isclose(found.double(), rounded[:, here], atol=1e-5).all(1).sum())
    assert same > 0.98 * 48 * (128 // width)  # ties fall differently in float32


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_lattice_is_stored_as_its_codes_a_scale_and_signs(bits: int) -> None:
    made = solved(QuipSharp(bits=bits), *problem(0))
    inner = made.factors[1].inner
    parts = inner.parts if isinstance(inner, Sum) else (inner,)
    assert [p.code_bits for p in parts] == [b for b, _ in STAGES[bits][1]]
    assert all(isinstance(p, Lattice) for p in parts)
    assert made.bits == bits + (16 * len(parts) + 48 + 128) / (48 * 128)


def test_even_levels_are_stored_as_codes_a_scale_a_row_a_palette_and_signs() -> None:
    made = solved(Quip(bits=3), *problem(0))
    assert made.bits == 3 + 16 / 128 + (16 * 8 + 48 + 128) / (48 * 128)
    assert made.factors[1].inner.codebook.flatten().tolist() == [-3.5, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5]


@pytest.mark.parametrize("method", [Quip(), Quip(bits=3, group_size=32), QuipSharp(), QuipSharp(bits=4)])
def test_what_lies_on_the_grid_comes_back(method: Any) -> None:
    """The turned matrix is made of the grid's own points; then nothing is lost, whatever the gram."""
    _, gram = problem(0)
    first = solved(method, torch.randn(48, 128, generator=torch.Generator().manual_seed(3)), gram)
    exact = first.dense()
    again = solved(method, exact, gram)
    if isinstance(method, Quip):
        assert error(exact, again.dense(), gram) < 1e-6
    else:  # one scale from the root mean square, which rounding has changed: near, not the same
        assert error(exact, again.dense(), gram) < 0.5 * error(exact, solved(method, exact, gram, seed=1).dense(), gram)


def test_nothing_stands_out_once_it_is_turned() -> None:
    weight, gram = problem(0)
    matrix, seen = turned(solved(Quip(), weight, gram), weight, gram)
    assert float(weight.abs().max() / weight.square().mean().sqrt()) > 6
    assert float(matrix.abs().max() / matrix.square().mean().sqrt()) < 5
    assert float(matrix.norm()) == pytest.approx(float(weight.norm()), rel=1e-6)
    assert float(seen.trace()) == pytest.approx(float(gram.trace()), rel=1e-6)


def test_matrices_with_one_input_share_its_signs_and_no_others() -> None:
    weight, gram = problem(0)
    shared: dict[Any, Any] = {}
    first, second = (Quip().solve(Dense(weight), Seen({Gram: gram}, Seeds(0).at(n), shared), SITE) for n in ("q", "k"))
    assert torch.equal(first.factors[1].signs, second.factors[1].signs)
    assert not torch.equal(first.factors[0].signs, second.factors[0].signs)
    alone = Quip().solve(Dense(weight), Seen({Gram: gram}, Seeds(0).at("k")), SITE)
    assert torch.equal(alone.factors[0].signs, second.factors[0].signs)
    assert not torch.equal(alone.factors[1].signs, second.factors[1].signs)


def test_widths_without_eights_are_refused() -> None:
    with pytest.raises(UsageError, match=r"needs in % 8 == 0: a\.b has in=300; skip it or use quip"):
        QuipSharp().fits(Site("a.b", Role.Q, (8, 300), block=0))


@pytest.mark.parametrize("method", [Quip(), QuipSharp()])
def test_too_large_for_float16_is_an_error(method: Any) -> None:
    weight, gram = problem(0)
    with pytest.raises(ArithmeticError, match="exceeds float16"):
        solved(method, weight * 1e6, gram)
