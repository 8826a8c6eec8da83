"""Training with structures in the place of matrices: an ordinary folder comes out, wherever it was stopped."""

import random
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from trimtab.anatomy import Anatomy
from trimtab.core.errors import RecipeError, UsageError
from trimtab.core.progress import Progress
from trimtab.core.recipe import Recipe
from trimtab.core.registry import get
from trimtab.core.seeds import Seeds
from trimtab.data import text
from trimtab.engine import scratch
from trimtab.engine.plan import plan
from trimtab.host.adapt import as_trained
from trimtab.host.checkpoint import load
from trimtab.host.homegrown import FAMILY, Homegrown, named, reading, untrained
from trimtab.host.pretrain import Course
from trimtab.host.scratch import as_scratch, changed, grow_with, teach, text_rows
from trimtab.host.source import history, record, recorded
from trimtab.host.trainer import validation_loss
from trimtab.measure import scratch_sides
from trimtab.measure.rates import Trial
from trimtab.measure.scratch_sides import as_described, is_from_scratch
from trimtab.measure.side_store import SideStore, modules_of
from trimtab.measure.sides import Setting
from trimtab.methods import LowRank
from trimtab.testing.tiny import tiny, tokens

TINY = Homegrown(2, 32, 4, 2, 64, 300, Course(steps=10, batch=2, length=16, learning_rate=1e-2))
SITES = 2 * 7  # matrices of its blocks


@pytest.fixture(autouse=True)
def small_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few words to read, a tiny description behind own-2m."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 8))) for _ in range(100)]
    passages = [" ".join(draw.choices(words, k=30)) for _ in range(30)]
    for name in text.SOURCES:
        monkeypatch.setitem(text.SOURCES, name, lambda: passages)
    monkeypatch.setitem(FAMILY, "own-2m", TINY)
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))


def losses(folder: Path) -> float:
    model, tokenizer = load(folder)
    _, texts = reading(TINY)
    return validation_loss(model, text_rows(texts, tokenizer, 16))


@pytest.mark.parametrize("method", ["sltrain(keep=0.5)", "structured_ffn(keep=0.5)"])
def test_what_comes_out_is_an_ordinary_folder(method, tmp_path):
    done = grow_with(named("own-2m"), method, tmp_path / "out")
    model, tokenizer = load(tmp_path / "out")
    assert len(done.tuned.losses) == 10
    assert len(tokenizer) == 300
    assert torch.isfinite(model(tokens(model)).logits).all()
    assert not (tmp_path / "out.training").exists()
    said = recorded(tmp_path / "out")
    assert said["method"] == str(as_scratch(method))
    assert history(tmp_path / "out").startswith("trained from scratch on 320 tokens as ")
    assert sum(done.tuned.losses[-3:]) < sum(done.tuned.losses[:3])


@pytest.mark.parametrize("method", ["sst(rank=4, every=3, warm_up=2)", "mixture_growth(apart=0.5)"])
def test_a_killed_training_ends_in_the_same_file(method, tmp_path):

    def stop(now: Progress) -> None:
        if now.phase == "train" and now.done == 5:
            raise KeyboardInterrupt

    grow_with(named("own-2m"), method, tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        grow_with(named("own-2m"), method, tmp_path / "out", watch=stop)
    seen: list[Progress] = []
    grow_with(named("own-2m"), method, tmp_path / "out", watch=seen.append)
    assert min(now.done for now in seen if now.phase == "train") == 5
    assert losses(tmp_path / "out") == losses(tmp_path / "straight")


def test_numbers_are_those_of_the_result(tmp_path):
    model = untrained(TINY)
    course = changed(TINY.course, 1, None, None)
    tokenizer, texts = reading(TINY)
    done = teach(model, LowRank(), text_rows(texts, tokenizer, 16), course, tmp_path / "state")
    packed = [module.weight_value for module in model.modules() if hasattr(module, "weight_value")]
    assert len(packed) == SITES
    held = sum(tensor.numel() for weight in packed for tensor in weight.tensors().values())
    assert done.parameters == done.trained == held + sum(parameter.numel() for parameter in model.parameters())


def test_without_a_method_the_matrices_themselves_are_trained(tmp_path):
    tokenizer, texts = reading(TINY)
    model = untrained(TINY)
    before = validation_loss(model, text_rows(texts, tokenizer, 16))
    done = teach(model, None, text_rows(texts, tokenizer, 16), changed(TINY.course, None, None, None), tmp_path / "state")
    assert done.parameters == done.trained == TINY.parameters
    assert validation_loss(model, text_rows(texts, tokenizer, 16)) < before


def test_structures_go_where_they_are_wanted_and_nowhere_else():
    for id, count in (("low_rank", SITES), ("structured_ffn", 6)):
        model = untrained(TINY)
        anatomy = Anatomy.of(model)
        structures = scratch.put(anatomy, get(id)(), Seeds(0))
        assert len(structures) == count
        assert not any(isinstance(module, nn.Linear) for path in structures for module in model.get_submodule(path).modules())
        scratch.settle(model, structures)
        assert scratch.numbers(Anatomy.of(untrained(TINY)), get(id)()) < TINY.parameters


def test_biases_stay(tmp_path):
    model = tiny("qwen2")
    anatomy, ids = Anatomy.of(model), tokens(model)
    biases = {name: value.clone() for name, value in model.named_parameters() if name.endswith("bias")}
    structures = scratch.put(anatomy, LowRank(), Seeds(0))
    with torch.no_grad():
        within = model(ids).logits
        scratch.settle(model, structures)
        assert torch.allclose(model(ids).logits, within, atol=1e-5)
    there = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert biases
    assert all(torch.equal(value, there[name]) for name, value in biases.items())


def test_what_does_not_fit_is_said_first(tmp_path):
    with pytest.raises(UsageError, match="is not one method"):
        as_scratch("low_rank -> rtn")
    with pytest.raises(UsageError, match="kind scratch"):
        as_scratch("rtn")
    with pytest.raises(UsageError, match=r"trimtab grow own-2m --method sst"):
        as_trained("sst")
    with pytest.raises(UsageError, match="use --method with own-2m"):
        grow_with(named("own-2m-outliers"), "low_rank", tmp_path / "out")
    with pytest.raises(UsageError, match=r"self_attn.k_proj has, which is 16 x 32"):
        grow_with(named("own-2m"), "sst(rank=17)", tmp_path / "out")
    with pytest.raises(UsageError, match="learning rate"):
        grow_with(named("own-2m"), "low_rank", tmp_path / "out", learning_rate=2.0)
    with pytest.raises(RecipeError, match=r"trimtab grow own-2m --method phm"):
        plan(Anatomy.of(tiny("llama")), Recipe.of("phm"))
    with pytest.raises(UsageError, match="finds no matrix"):
        scratch.put(Anatomy.of(tiny("gpt2")), LowRank(), Seeds(0))
    assert not list(tmp_path.glob("out*"))


def test_a_side_of_a_claim_is_trained_from_scratch(tmp_path, monkeypatch):
    monkeypatch.setattr(scratch_sides, "RATES", (1e-2,))
    grow_with(named("own-2m"), "low_rank(keep=0.5)", tmp_path / "base", steps=1)
    setting = Setting(str(tmp_path / "base"), "asset:boolq", windows=3, length=16, seeds=(0,))
    (side,), (again,) = SideStore(setting).sides(["low_rank(keep=0.9)", "low_rank(keep=0.9)"])
    assert torch.equal(side.losses, again.losses)
    assert side.seeded
    assert side.losses.mean() < torch.tensor(300.0).log() + 0.3
    assert as_described(recorded(tmp_path / "base")["description"]) == replace(TINY, course=changed(TINY.course, 1, None, None))


def test_the_rate_is_chosen_on_what_was_held_out(tmp_path, monkeypatch):
    tried = {2e-3: (3.0, torch.ones(1)), 4e-3: (2.0, torch.zeros(1)), 8e-3: (2.5, torch.ones(1))}
    found = {rate: Trial(*said, 8.0) for rate, said in tried.items()}
    monkeypatch.setattr(scratch_sides, "_trained", lambda grown, recipe, rate, *others: found[rate])
    record(tmp_path, {"description": asdict(TINY)})
    side = scratch_sides.measure_scratch_side(str(tmp_path), Recipe.of("sst"), Setting())
    assert torch.equal(side.losses, torch.zeros(1))


def test_what_is_trained_from_scratch_stands_alone(tmp_path):
    assert is_from_scratch(Recipe.of("sst"))
    assert not is_from_scratch(Recipe.of("lora"))
    assert not is_from_scratch(None)
    with pytest.raises(UsageError, match="stands alone"):
        is_from_scratch(Recipe.of("sst -> rtn"))
    assert "trimtab.measure.scratch_sides" in modules_of([Recipe.of("sst")])
    assert "trimtab.measure.scratch_sides" not in modules_of([Recipe.of("lora")])
    with pytest.raises(UsageError, match="not grown here"):
        scratch_sides.measure_scratch_side(str(tmp_path), Recipe.of("sst"), Setting())
