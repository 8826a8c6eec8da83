"""A step that trains the whole model: what stands for a matrix is the matrix, the right things learn, a kill changes nothing."""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file

from trimtab.anatomy import Anatomy
from trimtab.core.errors import RecipeError, UsageError
from trimtab.core.recipe import Calibration, Recipe
from trimtab.core.registry import get
from trimtab.core.taught import Said, gains, leaves
from trimtab.engine.run import run
from trimtab.engine.teaching import learning
from trimtab.formats.taught import Free, Reader, Updated, standing
from trimtab.host.compress import compress
from trimtab.host.school import school
from trimtab.testing.folders import tiny_folder
from trimtab.testing.roundtrip import logits, ran, shown
from trimtab.testing.tiny import tiny

Recover, Distill = get("recover"), get("distill")


def made(**knobs) -> Recipe:
    return Recipe((Recover(**{"steps": 4, "windows": 2, "learning_rate": 1e-2, **knobs}),))


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
@pytest.mark.parametrize("rank", [0, 4])
def test_what_stands_for_a_matrix_is_the_matrix(family, rank):
    model = tiny(family)
    before, anatomy = logits(model), Anatomy.of(model)
    pupil = Recover(rank=rank).begin(anatomy, _seen())
    with learning(anatomy, pupil):
        assert torch.equal(logits(model), before)
        with torch.enable_grad():
            model(shown(model)[0]).logits.square().mean().backward()
        learned = {name for name, p in pupil.named_parameters() if p.grad is not None}
        assert learned == {name for name, _ in pupil.named_parameters()}
        others = [n for n, p in model.named_parameters() if p.grad is not None and "learner" not in n]
        assert sorted(others) == (sorted(gains(anatomy)) if rank == 0 else [])
    assert torch.equal(logits(model), before)


def test_the_loss_falls_and_what_was_learned_is_in_the_model():
    model, bench = ran("llama", made(steps=30))
    (receipt,) = bench.receipts
    assert receipt.notes["last_loss"] < receipt.notes["first_loss"] - 0.5
    assert not torch.equal(logits(model), logits(tiny("llama")))


def test_zeros_stay_zero():
    steps = "magnitude(sparsity=0.5) -> recover(steps=3, windows=2, learning_rate=0.01, rank={rank})"
    for rank in (0, 4):
        model, _ = ran("llama", Recipe.of(steps.format(rank=rank)))
        before, _ = ran("llama", Recipe.of("magnitude(sparsity=0.5)"))
        now, then = Anatomy.of(model), Anatomy.of(before)
        for site in now.block_sites(1):
            weight, old = now.weight(site).dense(), then.weight(site).dense()
            assert torch.equal(weight == 0, old == 0)
            assert not torch.equal(weight, old)


def test_the_last_blocks_leave_what_the_teachers_do():
    """By hand in float64; a student that lost a block is compared from the end; without a tail nothing is."""
    teacher, student = tiny("llama"), tiny("llama", seed=1)
    ids = shown(teacher)[0][:2, :12]
    theirs, ours = (m(ids, output_hidden_states=True) for m in (teacher, student))
    hidden = ours.hidden_states[:2] + ours.hidden_states[3:]
    said, taught = Said(ours.logits, hidden), Said(theirs.logits, theirs.hidden_states)
    pupil, plain = (Distill(tail=tail, pull=0.3).begin(Anatomy.of(student), _seen()) for tail in (2, 0))
    assert (pupil.hidden, plain.hidden) == (True, False)
    pairs = [(ours.hidden_states[-n].double(), theirs.hidden_states[-n].double()) for n in (1, 2)]
    expected = sum(((s - t).square().sum(-1) / t.square().sum(-1))[:, :-1].sum() for s, t in pairs) / 2
    share = torch.tensor(0.5)
    found = pupil.loss(said, taught, ids, share) - plain.loss(said, taught, ids, share)
    torch.testing.assert_close(float(found), float(0.15 * expected), rtol=1e-4, atol=0)
    alike = pupil.loss(taught, taught, ids, share)
    assert torch.equal(alike, plain.loss(taught, taught, ids, share))


def test_a_tail_is_refused_where_there_is_none():
    model = tiny("llama")
    with pytest.raises(UsageError, match="a tail of 5 blocks, but there are 4"):
        run(model, Recipe((Distill(tail=5),)), shown(model), school=school, teacher=tiny("llama"))
    narrower = tiny("llama", hidden_size=32)
    with pytest.raises(UsageError, match=r"32 wide and the teacher's 64, .* use tail=0"):
        run(narrower, Recipe((Distill(tail=1, steps=1),)), shown(narrower), school=school, teacher=model)


def test_folded_blocks_are_cured_from_the_tail():
    model = tiny("llama", num_hidden_layers=6)
    recipe = Recipe.of("foldgpt(share=1) -> distill(steps=24, windows=2, tail=2, pull=5.0, learning_rate=0.001)")
    bench = run(model, recipe, shown(model), school=school, teacher=tiny("llama", num_hidden_layers=6))
    notes = bench.receipts[-1].notes
    assert notes["last_loss"] < notes["first_loss"]


def test_a_student_that_is_its_teacher_has_nothing_to_learn():
    model = tiny("llama")
    bench = run(model, Recipe((Distill(steps=2, windows=2),)), shown(model), school=school, teacher=tiny("llama"))
    assert abs(bench.receipts[0].notes["first_loss"]) < 1e-6
    other = tiny("llama", seed=3)
    bench = run(other, Recipe((Distill(steps=20, windows=2, learning_rate=3e-3),)), shown(other), school=school, teacher=model)
    assert bench.receipts[0].notes["last_loss"] < 0.7 * bench.receipts[0].notes["first_loss"]


def test_every_rate_is_its_own():
    pupil = Reader({_site(model := tiny("llama")): (learner := Updated(torch.randn(8, 8), 2, 1.0, torch.Generator()))})
    learner.rates = {"left": 0.5}
    assert pupil.rates() == {"learners.0.left": 0.5}
    assert set(leaves(pupil, model)) == {"pupil.learners.0.left", "pupil.learners.0.right"}


def test_what_a_learner_leaves_is_what_it_stood_for():
    weight = torch.randn(6, 8).masked_fill(torch.rand(6, 8) < 0.5, 0.0)
    for rank in (0, 2, 100):
        learner = standing(weight, rank, 4.0, True, torch.Generator().manual_seed(0))
        with torch.no_grad():
            for parameter in learner.parameters():
                parameter.add_(1.0)
        assert torch.equal(learner.result().dense(), learner.matrix().detach())
        assert torch.equal(learner.matrix() == 0, weight == 0)
    assert isinstance(standing(weight, 0, 1.0, False, torch.Generator()), Free)


def test_a_stopped_training_goes_on_to_the_same_bytes(tmp_path):
    model, text = tiny_folder(tmp_path / "model"), tmp_path / "text.txt"
    text.write_text("\n\n".join(f"paragraph {n} of a text that says very little, again and again" for n in range(60)))
    recipe = Recipe.of(
        "magnitude(sparsity=0.3) -> distill(steps=10, windows=2, rank=2, learning_rate=0.01)", Calibration(str(text), 256, 32)
    )
    compress(model, recipe, tmp_path / "whole")
    taken = []

    def watch(now):
        if now.phase == "train":
            taken.append(now.done)
            if now.done == 6:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(model, recipe, tmp_path / "out", watch=watch)
    taken.clear()
    compress(model, recipe, tmp_path / "out", watch=lambda now: taken.append(now.done) if now.phase == "train" else None)
    assert min(taken) >= 5
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "out"))
    assert same(one, other)
    assert not (tmp_path / "out.partial").exists()


def test_bad_input_is_named_before_anything_moves():
    model = tiny("llama")
    with pytest.raises(RecipeError, match="takes 9 windows a step, the calibration text makes 2; show at least 576 tokens"):
        run(model, Recipe((Recover(windows=9),), calibration=Calibration(tokens=128, length=64)), shown(model), school=school)
    with pytest.raises(UsageError, match=r"recover is trained; give run\(\) who trains"):
        run(model, made(), shown(model))
    mixtral = tiny("mixtral")
    pupil = Reader({next(s for s in Anatomy.of(mixtral).sites if s.index is not None): Free(torch.zeros(1, 1))})
    with pytest.raises(RecipeError, match="is no layer of its own"), learning(Anatomy.of(mixtral), pupil):
        pass


def test_who_trains_is_not_loaded_before_something_is_taught():
    said = "import sys, trimtab.host.compress, trimtab.cli.compress; print('transformers.trainer' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True).stdout.strip() == "False"


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def _site(model):
    return Anatomy.of(model).block_sites(0)[0]


@dataclass
class _Seen:
    generator: torch.Generator


def _seen() -> _Seen:
    return _Seen(torch.Generator().manual_seed(0))
