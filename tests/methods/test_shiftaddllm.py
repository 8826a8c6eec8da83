"""ShiftAddLLM: scales where the layout says, as sums of few powers of two, fitted to what the sweep made of the weights."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from trimtab.anatomy import Anatomy
from trimtab.core.kinds import Seen
from trimtab.core.places import Role, Site
from trimtab.core.recipe import Recipe
from trimtab.engine.plan import plan
from trimtab.engine.run import run
from trimtab.formats import BitPlanes, Dense, SignPlanes
from trimtab.methods.quantize.gptq import Gptq
from trimtab.methods.quantize.shiftaddllm import ShiftAddLlm
from trimtab.stats import Gram
from trimtab.tensors.signs import fit
from trimtab.tensors.spd import inverse_upper
from trimtab.testing.tiny import tiny, tokens


def problem(seed: int, out: int = 48, in_: int = 128) -> tuple[Tensor, Tensor]:
    """weight [out, in] and the gram of correlated inputs of different size."""
    draw = torch.Generator().manual_seed(seed)
    mixing = torch.randn(in_, in_, generator=draw) * in_**-0.5 + 0.3 * torch.eye(in_)
    x = torch.randn(500, in_, generator=draw) @ mixing * torch.exp(0.5 * torch.randn(in_, generator=draw))
    return torch.randn(out, in_, generator=draw), x.T @ x / len(x)


def solved(method: ShiftAddLlm | Gptq, weight: Tensor, gram: Tensor) -> SignPlanes | BitPlanes:
    site = Site("model.layers.0.mlp.down_proj", Role.DOWN, (weight.shape[0], weight.shape[1]), block=0)
    return method.solve(Dense(weight), Seen({Gram: gram}), site)


def error(weight: Tensor, made: Tensor, gram: Tensor) -> float:
    change = (weight - made).double()
    return float((change @ gram.double() * change).sum() / (weight.double() @ gram.double() * weight.double()).sum())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("layout", ["column", "block", "row"])
def test_each_part_of_it_lowers_the_output_error(layout: str, seed: int) -> None:
    weight, gram = problem(seed)
    best = ShiftAddLlm(layout=layout)
    made = (best, replace(best, terms=1), replace(best, terms=1, compensate=False))
    errors = [error(weight, solved(m, weight, gram).dense(), gram) for m in made]
    assert errors == sorted(errors)
    assert errors[0] < error(weight, solved(replace(best, rounds=0), weight, gram).dense(), gram)


def test_below_uniform_grids_at_no_more_bits() -> None:
    """At 2 bits; the paper's layout has one scale per column and plane where a row has a scale and a zero point."""
    weight, gram = problem(0, 96, 96)
    mine, theirs = (solved(m, weight, gram) for m in (ShiftAddLlm(group_size=0), Gptq(bits=2, clip=True, group_size=48)))
    assert mine.bits <= theirs.bits
    assert error(weight, mine.dense(), gram) < error(weight, theirs.dense(), gram)


@pytest.mark.parametrize(("layout", "rows", "columns"), [("column", 16, 1), ("block", 2, 8)])
def test_scales_lie_where_the_layout_says_and_are_stored_once(layout: str, rows: int, columns: int) -> None:
    weight, gram = problem(0, 24, 72)
    for terms, width in ((3, 16), (1, 8)):
        made = solved(ShiftAddLlm(layout=layout, group_size=16, terms=terms), weight, gram)
        blocks = -(-24 // rows) * -(-72 // columns)
        assert (made.rows, made.columns) == (rows, columns)
        assert made.bits == pytest.approx(2 + width * 2 * blocks / (24 * 72))
        dense = made.dense()
        for row in range(0, 24, rows):
            for column in range(0, 72, columns):
                assert len(dense[row : row + rows, column : column + columns].abs().unique()) <= 2


def test_with_one_term_every_scale_is_a_power_of_two() -> None:
    weight, gram = problem(0)
    for layout in ("column", "block", "row"):
        made = solved(ShiftAddLlm(layout=layout, terms=1), weight, gram)
        if isinstance(made, SignPlanes):
            assert made.scale.dtype == torch.int8
        else:
            mantissa, _ = torch.frexp(made.scale.float())
            assert torch.equal(mantissa, torch.full_like(mantissa, 0.5))


def test_the_sweep_fits_each_column_to_what_is_left() -> None:
    """In float64, in order of input energy; a last block short of rows is fitted with rows of the one before it."""
    weight, gram = problem(1, 40, 64)
    made = solved(ShiftAddLlm(group_size=16), weight, gram)
    order = gram.diagonal().argsort(descending=True)
    upper, _ = inverse_upper(gram[order][:, order], 0.01)
    left, dense = weight[:, order].double(), made.dense()[:, order].double()
    for i in range(64):
        if i % 32 == 0:
            run = left[:, i : i + 32].T.float()
        for rows, members in (((0, 16), (0, 16)), ((16, 32), (16, 32)), ((32, 40), (24, 40))):
            start = fit(run[i % 32, members[0] : members[1]], 2, 15, 3)
            planes = fit(left[members[0] : members[1], i].float(), 2, 3, 3, start)
            expected = planes.values(planes.codes(left[rows[0] : rows[1], i].float()))
            assert ((expected - dense[rows[0] : rows[1], i]).abs() < 1e-5).float().mean() > 0.7  # ties in float32
        left[:, i + 1 :] -= ((left[:, i] - dense[:, i]) / upper[i, i])[:, None] * upper[i, i + 1 :]


@pytest.mark.parametrize("layout", ["column", "block"])
def test_orders_are_undone(layout: str) -> None:
    """Uncorrelated inputs hand nothing on: the order in which columns are met cannot matter."""
    weight, energy = problem(0, 24, 68)[0], torch.rand(68, generator=torch.Generator().manual_seed(0)) + 0.5
    made = [solved(ShiftAddLlm(layout=layout, order=order), weight, energy.diag()) for order in ("energy", "given")]
    assert torch.allclose(made[0].dense(), made[1].dense(), atol=1e-5)
    nearest = solved(ShiftAddLlm(layout=layout, compensate=False), weight, energy.diag())
    assert torch.allclose(made[0].dense(), nearest.dense(), atol=1e-5)


def test_what_such_scales_can_say_comes_back() -> None:
    """Each block has its own power of two; the last one of 40 rows is shorter."""
    gram = problem(0, 40, 64)[1]
    codes = torch.randint(0, 2, (40, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for rows, columns, layout in ((16, 1, "column"), (2, 8, "block")):
        blocks = -(-40 // rows), 64 // columns, 1
        shifts = torch.randint(-4, 3, blocks, dtype=torch.int8, generator=torch.Generator().manual_seed(1))
        shifts[-1] = shifts[-2]
        exact = SignPlanes(codes, shifts, rows, columns)
        method = ShiftAddLlm(bits=1, group_size=rows * columns, layout=layout, terms=1)
        assert torch.equal(solved(method, exact.dense(), gram).dense(), exact.dense())


@pytest.mark.parametrize("layout", ["column", "block"])
def test_composes_with_its_bit_allocation(layout: str) -> None:
    """Mixed planes, together as many stored bits as three planes everywhere take, and no more."""
    uniform = plan(Anatomy.of(tiny("llama")), Recipe.of(f"shiftaddllm(bits=3, layout={layout!r})")).steps[0].bits
    model = tiny("llama")
    run(model, Recipe.of(f"shiftaddllm(layout={layout!r}, rounds=2) by shiftadd_bits(bits={uniform})"), [tokens(model, 4, 16)])
    anatomy = Anatomy.of(model)
    made = [anatomy.weight(site) for site in anatomy.sites if site.block is not None]
    assert {len(w.planes) for w in made} == {2, 3, 4}
    sizes = [w.shape[0] * w.shape[1] for w in made]
    mean = sum(w.bits * size for w, size in zip(made, sizes, strict=True)) / sum(sizes)
    assert uniform * 0.995 <= mean <= uniform
