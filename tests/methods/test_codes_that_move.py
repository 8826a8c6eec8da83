"""Quantized matrices that are trained as they are: values, gradients, the choice of codes, and a loss that does not rise."""

from itertools import product

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from trimtab.anatomy import Anatomy
from trimtab.core.errors import RecipeError
from trimtab.core.recipe import Calibration, Recipe
from trimtab.engine.run import run
from trimtab.formats import BitPlanes, Codebook, Dense, Grouped, LinearWeight
from trimtab.formats.moving import Moving, Pace, moving
from trimtab.host.compress import compress
from trimtab.host.school import school
from trimtab.tensors.bitplanes import fit as fitted
from trimtab.tensors.moves import adaptive, most_wanted, trusted
from trimtab.tensors.rounding import fit
from trimtab.testing.folders import tiny_folder
from trimtab.testing.roundtrip import logits, ran, shown
from trimtab.testing.tiny import tiny

ALWAYS = Pace(share=1.0, trust=10.0, reach=1.0, forget=1.0)
FORMATS = ("grouped", "symmetric", "planes", "books", "bare books")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def example(name: str) -> LinearWeight:
    """[6, 12] in the format."""
    weight = drawn(6, 3, 4)
    if name in ("grouped", "symmetric"):
        return Grouped.on_grid(fit(weight, 2, symmetric=name == "symmetric"), weight, name == "symmetric")
    if name == "planes":
        planes = fitted(weight, 2, 5)
        codes = planes.codes(weight).view(6, 12).to(torch.uint8)
        return BitPlanes(codes, planes.scale.half(), planes.offset.squeeze(-1).half(), 4)
    codes = torch.randint(0, 5, (2, 6, 4), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    if name == "bare books":
        return Codebook(codes, drawn(2, 5, 3).half())
    return Codebook(codes, drawn(2, 5, 3).half(), drawn(6, 2, seed=2).abs().half(), 6)


def standing(name: str, pace: Pace = ALWAYS) -> Moving:
    made = moving(example(name), pace)
    assert made is not None
    return made


@pytest.mark.parametrize("name", FORMATS)
def test_what_stands_for_a_matrix_is_what_is_stored(name):
    learner = standing(name)
    assert torch.equal(learner.matrix(), example(name).dense())
    with torch.no_grad():
        for number, parameter in enumerate(learner.parameters()):
            parameter.add_(0.1 * drawn(*parameter.shape, seed=number))
    (learner.matrix() * drawn(6, 12, seed=5)).sum().backward()
    assert learner.move() > 0
    assert torch.equal(learner.matrix(), learner.result().dense())
    assert learner.result().spec() == example(name).spec()
    assert moving(Dense(drawn(2, 2)), ALWAYS) is None


@pytest.mark.parametrize("name", FORMATS)
def test_gradients_of_scales_are_those_of_differences(name):
    learner, direction = standing(name), drawn(6, 12, seed=3)
    learner.matrix().mul(direction).sum().backward()
    for near in (part for part in learner.children()):
        steps, gradient = drawn(*near.shift.shape, seed=4), near.shift.grad
        both = []
        for sign in (1, -1):
            near.start, before = (near.start.double() + sign * near.unit * 1e-3 * steps).float(), near.start
            with torch.no_grad():
                near.now, kept = (lambda near=near: near.start), near.now  # without float16, which has no slope
                both.append(float(learner.values().double().mul(direction).sum()))
                near.now = kept
            near.start = before
        assert (both[0] - both[1]) / 2e-3 == pytest.approx(float((gradient * steps).sum()), rel=1e-2, abs=1e-3)


@pytest.mark.parametrize("name", FORMATS)
def test_codes_are_the_nearest_of_all(name):
    learner, places = standing(name), torch.arange(5)
    wanted = drawn(5, learner.dim, seed=6)
    with torch.no_grad():
        chosen = learner.nearest(wanted, places)
        count = 5 if "books" in name else 4
        every = [
            torch.tensor(codes, dtype=torch.uint8)[:, None].expand(-1, 5)
            for codes in product(range(count), repeat=len(learner.codes))
        ]
        least = torch.stack([(learner.at(codes, places) - wanted).square().sum(1) for codes in every]).amin(0)
        found = (learner.at(chosen, places) - wanted).square().sum(1)
        before = (learner.at(learner.codes[:, places], places) - wanted).square().sum(1)
        assert torch.equal(learner.at(learner.codes[:, places], places), learner.values().view(-1, learner.dim)[:5])
    assert bool((found <= before + 1e-5).all())
    if "books" not in name:  # of two codebooks the alternation finds a minimum, not always the least one
        assert torch.allclose(found, least, atol=1e-5)


def test_few_codes_move_and_no_farther_than_is_trusted():
    for trust in (0.05, 0.3):
        learner = standing("grouped", Pace(share=0.5, trust=trust, reach=2.0, forget=1.0))
        before = learner.values().detach()
        learner.matrix().mul(drawn(6, 12, seed=3)).sum().backward()
        moved = learner.move()
        after = learner.values().detach()
        assert moved == int((before != after).sum()) == learner.moved()
        assert float((after - before).norm()) <= trust * float(before.norm()) * (1 + 1e-6)
        assert moved <= 36
    assert moved > 0


def test_a_change_goes_where_the_gradient_points():
    learner, direction = standing("grouped", Pace(1.0, 10.0, 3.0, 1.0)), drawn(6, 12, seed=3)
    before = learner.values().detach()
    learner.matrix().mul(direction).sum().backward()
    learner.move()
    change = learner.values().detach() - before
    assert bool((change * direction <= 0).all())
    assert bool((change * direction < 0).any())


def test_what_steps_ask_for_adds_up():
    """Steps too short to reach another code do, together, if nothing is forgotten, and never, if everything is."""
    for forget, moves in ((0.0, True), (1.0, False)):
        learner = standing("grouped", Pace(1.0, 10.0, 0.05, forget))
        taken = 0
        for _ in range(20):
            learner.matrix().mul(drawn(6, 12, seed=3)).sum().backward()
            taken += learner.move()
        assert bool(taken) == moves


def test_the_loss_of_the_same_text_never_rises_within_the_trusted_length():
    model = tiny("llama")
    (ids, _) = shown(model)
    knobs = "steps=6, windows=4, share=0.05, trust={}, reach=1.0, forget=1.0, learning_rate=1e-8"
    recipe = f"rtn(bits=2, clip=True) -> pv_tuning({knobs})"
    for trust, rises in ((0.02, False), (1.0, True)):
        losses = []

        def heard(model, trained, windows, term, loss, hooks, rates, watch, kept=losses):
            kept += school(model, trained, windows, term, loss, hooks, rates, watch)
            return kept

        bench = run(tiny("llama"), Recipe.of(recipe.format(trust)), [ids], school=heard, teacher=model)
        assert bench.receipts[-1].notes["changed_codes"] > 0
        steps = torch.tensor(losses).diff()
        assert bool((steps > 0).any()) == rises
        assert rises or losses[-1] < losses[0] - 1e-3


@pytest.mark.parametrize("before", ["gptq(bits=2)", "hlq(bits=2)", "aqlm(books=1, code_bits=4, dim=4, rounds=1)"])
def test_every_format_learns_from_the_teacher(before):
    steps = " -> pv_tuning(steps=4, windows=4, reach=0.3, learning_rate=0.02)"
    model, bench = ran("llama", Recipe.of(before + steps))
    notes = bench.receipts[-1].notes
    assert notes["last_loss"] < 0.95 * notes["first_loss"]
    assert 0 < notes["changed_per_step"] <= 0.01
    kinds = {type(Anatomy.of(model).weight(s)) for s in Anatomy.of(model).block_sites(0)}
    assert len(kinds) == 1
    assert kinds < {Grouped, BitPlanes, Codebook}


def test_codes_stay_where_only_scales_are_tuned():
    start, _ = ran("llama", Recipe.of("hlq(bits=2)"))
    model, bench = ran("llama", Recipe.of("hlq(bits=2) -> elutq_tuning(steps=5, windows=4, learning_rate=0.02)"))
    assert bench.receipts[-1].notes["last_loss"] < bench.receipts[-1].notes["first_loss"]
    now, then = Anatomy.of(model), Anatomy.of(start)
    for site in now.block_sites(1):
        assert torch.equal(now.weight(site).codes, then.weight(site).codes)
        assert not torch.equal(now.weight(site).scale, then.weight(site).scale)
    assert not torch.equal(logits(model), logits(start))


def test_a_stopped_training_goes_on_to_the_same_codes(tmp_path):
    model, text = tiny_folder(tmp_path / "model"), tmp_path / "text.txt"
    text.write_text("\n\n".join(f"paragraph {n} of a text that says very little, again and again" for n in range(60)))
    knobs = "steps=6, windows=2, reach=0.3, learning_rate=0.01"
    recipe = Recipe.of(f"rtn(bits=2) -> pv_tuning({knobs})", Calibration(str(text), 128, 32))
    compress(model, recipe, tmp_path / "whole")

    def watch(now):
        if now.phase == "train" and now.done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(model, recipe, tmp_path / "out", watch=watch)
    compress(model, recipe, tmp_path / "out")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "out"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_without_quantized_matrices_there_is_nothing_to_move():
    with pytest.raises(RecipeError, match=r"there is none; put a step before it: gptq\(bits=2\) -> pv_tuning"):
        ran("llama", Recipe.of("pv_tuning(steps=1, windows=2)"))


def test_directions_lengths_and_numbers():
    gradient, square = drawn(3, 4), torch.zeros(3, 4)
    assert torch.allclose(adaptive(gradient, square, 1), gradient.sign(), atol=1e-5)  # nothing to compare with yet
    assert not adaptive(torch.zeros(3, 4), torch.zeros(3, 4), 1).any()
    asked = torch.tensor([[1.0], [-3.0], [2.0], [0.0]])
    assert most_wanted(asked, 0.5).tolist() == [1, 2]
    assert most_wanted(asked, 0.0).tolist() == [1]
    assert trusted(torch.tensor([[3.0], [4.0], [0.1]]), 5.0).tolist() == [True, True, False]
