"""Which measured recipe is chosen for a goal, and that what it would take is what it takes."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trimtab.core.errors import UsageError
from trimtab.core.goals import Goal
from trimtab.core.shipped import Measured, measured
from trimtab.host import goals
from trimtab.host.checkpoint import load
from trimtab.host.compress import compress
from trimtab.kernels.module import available
from trimtab.measure.size import file_bytes
from trimtab.runtime import Runtime
from trimtab.testing.folders import tiny_folder

SHAPE = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 192}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("goals") / "model", **SHAPE)


@pytest.fixture(scope="module")
def found(folder: Path) -> list[goals.Candidate]:
    return goals.candidates(load(folder)[0], measured())


def named(found: list[goals.Candidate], name: str) -> goals.Candidate:
    return next(candidate for candidate in found if candidate.name == name)


def test_candidates_lose_more_one_after_the_other_and_are_smaller_by_bits(found):
    assert [c.measured.increase for c in found] == sorted(c.measured.increase for c in found)
    plain = [named(found, name) for name in ("four-bit", "three-bit")]
    assert plain[0].files > plain[1].files
    assert plain[0].speedup is not None
    assert plain[1].speedup > plain[0].speedup > 1


def test_the_runtime_unpacks_spheres_so_they_serve_neither_memory_nor_speed(found):
    sphere = named(found, "three-bit-sphere")
    assert sphere.running is sphere.speedup is None


def test_what_was_foreseen_is_written(found, folder, tmp_path):
    row = Measured("plain", "rtn(bits=8)", 8.3, (20.0,), 20.0, 24, "asset:smollm2-135m")
    anatomy = goals.Anatomy.of(load(folder)[0])
    recipe = goals.Recipe.of(row.steps)
    candidate = goals._candidate(row, recipe, goals.planned(anatomy, recipe), anatomy)
    compress(folder, recipe, tmp_path / "out")
    assert candidate.files == file_bytes(tmp_path / "out").value
    read = goals.read_per_token(anatomy, goals.planned(anatomy, recipe).bytes_after, False)
    assert candidate.running == goals.PROGRAM + candidate.files + read + goals.conversation_bytes(anatomy.model)


@pytest.mark.skipif(not available(), reason="needs the compiled kernels")
@pytest.mark.parametrize("steps", ["rtn(bits=8)", "quarot -> rtn(bits=4)"])
@pytest.mark.parametrize("tied", [True, False])
def test_bytes_of_a_token_are_those_that_the_runtime_counts(tied, steps, tmp_path):
    folder = tiny_folder(tmp_path / "model", **SHAPE, tie_word_embeddings=tied)
    anatomy, recipe = goals.Anatomy.of(load(folder)[0]), goals.Recipe.of(steps)
    made = compress(folder, recipe, tmp_path / "out")
    after = goals.read_per_token(anatomy, made.plan.bytes_after, "quarot" in steps)
    # The runtime counts norms as float32 and pads rows of codes: a few bytes a row, which a model this small shows.
    for counted, path in ((goals.read_per_token(anatomy, made.plan.bytes_before, False), folder), (after, tmp_path / "out")):
        assert counted == pytest.approx(Runtime.open(path).bytes_per_token, rel=0.03), path


def test_keys_and_values_are_counted_as_the_session_holds_them(folder):
    model = load(folder)[0]
    config = model.config
    tokens = min(goals.CONVERSATION, config.max_position_embeddings)
    each = 2 * config.num_key_value_heads * (config.hidden_size // config.num_attention_heads) * torch.bfloat16.itemsize
    assert goals.conversation_bytes(model) == tokens * config.num_hidden_layers * each


def test_the_one_that_loses_least_of_those_that_meet_the_goal(found, folder):
    three = named(found, "three-bit")
    choice = goals.choose(Goal("fit", f"{three.running}"), str(folder))
    assert choice.chosen.name == "three-bit"
    assert goals.choose(Goal("fit", "1GB"), str(folder)).chosen == found[0]
    fastest = max(c.speedup for c in found if c.speedup)
    assert goals.choose(Goal("speedup", f"{fastest * 0.999:.4f}x"), str(folder)).chosen.speedup == fastest
    assert goals.choose(Goal("speedup", "1.01x"), str(folder)).chosen.measured.increase == min(
        c.measured.increase for c in found if c.speedup
    )


def test_a_loss_begins_with_the_smallest_and_goes_on_with_what_loses_less(found, folder):
    choice = goals.choose(Goal("max_ppl_increase", "100%"), str(folder))
    allowed = [c for c in found if c.measured.increase <= 1]
    assert choice.chosen.files == min(c.files for c in allowed)
    losses = [c.measured.increase for c in choice.tried]
    assert all(loss < losses[0] for loss in losses[1:])
    assert choice.further() is not None
    assert choice.further().measured.increase > 1


@pytest.mark.parametrize(
    ("goal", "said"),
    [
        (Goal("fit", "1MB"), "the smallest measured recipe, needs "),
        (Goal("speedup", "500x"), "the fastest measured recipe, is expected at "),
        (Goal("max_ppl_increase", "0.000001%"), "which loses least, was measured at +"),
    ],
    ids=str,
)
def test_the_impossible_is_refused_with_what_is_possible(goal, said, folder):
    with pytest.raises(UsageError, match=re.escape(f"{goal} cannot be met: ")) as refused:
        goals.choose(goal, str(folder))
    assert said in str(refused.value)


def test_recipes_that_do_not_fit_the_model_are_no_candidates(tmp_path):
    odd = tiny_folder(tmp_path / "odd", num_hidden_layers=1, hidden_size=48, intermediate_size=80)
    names = {c.name for c in goals.candidates(load(odd)[0], measured())}
    assert "four-bit" not in names


def test_a_recipe_that_the_data_decide_has_no_size_beforehand(folder):
    row = replace(measured()[0], name="narrow-and-quantize")
    assert goals.candidates(load(folder)[0], [row]) == []
