"""Classes of weights move together and survive a file; the compander's curve is the one that it says."""

from math import pi
from pathlib import Path

import torch

from trimtab.anatomy import Anatomy
from trimtab.core.kinds import Seen
from trimtab.core.recipe import Where
from trimtab.core.seeds import Seeds
from trimtab.engine import adapting
from trimtab.formats import Dense
from trimtab.host import adapters
from trimtab.methods.adapt.sketchtune import Moved, Sketchtune, needed, value_ranks
from trimtab.methods.adapt.weight_compander import WeightCompander
from trimtab.stats import Gram
from trimtab.tensors.packing import pack
from trimtab.tensors.row_levels import row_levels
from trimtab.testing.problems import layer
from trimtab.testing.tiny import tiny, tokens


def test_rows_that_have_few_values_get_exactly_those() -> None:
    generator = Seeds(0).at("x")
    palette = torch.randn(6, 4, generator=generator).sort(1).values
    codes = torch.cat([torch.arange(4).repeat(6, 8), torch.randint(4, (6, 8), generator=generator)], 1)
    levels, found = row_levels(palette.gather(1, codes), torch.ones(6, 40), 4)
    torch.testing.assert_close(levels, palette.double())
    assert torch.equal(found.long(), codes)


def test_heavy_columns_are_met_better_than_with_equal_weights() -> None:
    generator = Seeds(0).at("x")
    values, weights = torch.randn(8, 200, generator=generator), 0.01 + 50 * torch.rand(8, 200, generator=generator) ** 8

    def error(by: torch.Tensor) -> float:
        levels, codes = row_levels(values, by, 8)
        return float((weights * (values - levels.gather(1, codes.long())).square()).sum())

    assert error(weights) < 0.9 * error(torch.ones_like(weights))


def test_columns_that_others_cannot_stand_in_for_count_more() -> None:
    apart = torch.eye(4)
    apart[:2, :2] = torch.tensor([[1.0, 0.99], [0.99, 1.0]])
    found = needed(apart, 3.0)
    assert (found[2:] > 100 * found[:2]).all()
    torch.testing.assert_close(needed(apart, 0.0), torch.ones(4, dtype=torch.float64))


@torch.no_grad()
def test_a_class_moves_all_its_weights_of_a_part_of_a_row_and_no_other() -> None:
    problem = layer(6, 64)
    seen = Seen({Gram: problem.x.T @ problem.x / len(problem.x)}, Seeds(0).at("x"))
    delta = Sketchtune(bits=3, groups=2).attach(Dense(problem.weight), seen, problem.site)
    assert delta.moves.shape == (12, 8)
    delta.moves[3, 5] = 0.25  # the second part of the second row
    change = delta.change()
    moved = change.nonzero()
    assert len(moved) > 0
    assert (moved[:, 0] == 1).all()
    assert (moved[:, 1] >= 32).all()
    values, others = problem.weight[change != 0], problem.weight[1, 32:][change[1, 32:] == 0]
    assert not ((others > values.min()) & (others < values.max())).any(), "a class is an interval"
    assert set(change[change != 0].tolist()) == {0.25}


def test_rows_rounded_to_as_many_bits_have_each_value_for_a_class() -> None:
    """What the gradient does to a class is then what it would do to an entry of the row's own table."""
    problem = layer(6, 256)
    step = problem.weight.abs().amax(1, keepdim=True) / 7.5
    rounded = (problem.weight / step).round().clamp(-8, 7) * step
    assert int((value_ranks(rounded).amax(1) + 1).max()) <= 16
    seen = Seen({Gram: torch.eye(256)}, Seeds(0).at("x"))
    delta = Sketchtune(bits=4).attach(Dense(rounded), seen, problem.site)
    pull = torch.randn(6, 256, generator=Seeds(0).at("pull"))
    (delta.change() * pull).sum().backward()
    assert delta.moves.grad is not None
    for row in range(6):
        values = rounded[row].unique()
        of_table = torch.stack([pull[row][rounded[row] == value].sum() for value in values])
        torch.testing.assert_close(delta.moves.grad[row, : len(values)], of_table)
        assert not delta.moves.grad[row, len(values) :].any()


def test_moves_have_the_gradient_of_a_gather() -> None:
    codes = torch.randint(8, (5, 24), generator=Seeds(0).at("codes"))
    moves = torch.randn(5, 8, dtype=torch.float64, generator=Seeds(0).at("moves"), requires_grad=True)
    assert torch.autograd.gradcheck(lambda m: Moved.apply(m, pack(codes.to(torch.uint8), 3), 3, 24), moves)
    assert torch.equal(Moved.apply(moves, pack(codes.to(torch.uint8), 3), 3, 24), moves.gather(1, codes))


@torch.no_grad()
def test_classes_are_read_from_the_file_without_showing_anything(tmp_path: Path) -> None:
    model, base = tiny("llama"), adapters.Base("tiny", "x")
    made = Sketchtune(bits=3)
    deltas = adapting.attach(Anatomy.of(model), made, Where(), Seeds(0), [tokens(model)])
    for delta in deltas.values():
        delta.moves.normal_(std=0.01, generator=Seeds(0).at("moves"))
    wanted = model(tokens(model)).logits
    adapters.write(tmp_path / "adapter", deltas, made, base, {})
    again = tiny("llama")
    adapters.read(Anatomy.of(again), tmp_path / "adapter", base)
    assert torch.equal(again(tokens(again)).logits, wanted)


@torch.no_grad()
def test_the_compander_is_a_curve_that_never_leaves_its_bounds() -> None:
    problem = layer(6, 32)
    delta = WeightCompander(headroom=1.5, slope=2.0).attach(Dense(problem.weight), Seen({}), problem.site)
    top = 1.5 * problem.weight.abs().max()
    torch.testing.assert_close(pi / 2 * delta.top, top)
    start = delta.width * torch.tan(problem.weight / delta.top)
    delta.moves.normal_(std=3.0, generator=Seeds(0).at("moves"))
    delta.log_top.fill_(-0.5)
    delta.log_width.fill_(0.25)
    merged = delta.merged(Dense(problem.weight)).dense()
    a, b = delta.top * 0.6065306597, delta.width * 1.2840254167
    torch.testing.assert_close(merged, a * torch.atan((start + delta.moves) / b), atol=1e-5, rtol=1e-4)
    delta.moves.fill_(1e9)
    assert delta.merged(Dense(problem.weight)).dense().abs().max() <= 0.6066 * top


def test_small_weights_move_slope_times_as_fast_as_their_parameter() -> None:
    weight = torch.tensor([[1e-6, 1.0]])
    site = layer(1, 2).site
    delta = WeightCompander(slope=2.0).attach(Dense(weight), Seen({}), site)
    x = torch.eye(2)
    delta(x, x, lambda: weight).sum().backward()
    near_zero, largest = delta.moves.grad.flatten().tolist()
    assert abs(near_zero - 2.0) < 1e-4
    assert largest < 0.6 * near_zero, "what is large is held back"
