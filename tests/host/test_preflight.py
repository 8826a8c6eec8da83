"""What is said beforehand is what happens: memory, size; and what will not fit is refused before any weight moves."""

import json
import os
import random
import resource
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from trimtab.anatomy import Anatomy
from trimtab.core.errors import UsageError
from trimtab.core.recipe import Calibration, Recipe
from trimtab.core.registry import get
from trimtab.engine import forecast
from trimtab.host import preflight as module
from trimtab.host.compress import ahead, compress
from trimtab.measure.size import file_bytes
from trimtab.testing.folders import tiny_folder
from trimtab.testing.tiny import tiny

RUN = """
import json, sys
from trimtab.host.compress import ahead, compress
model, recipe, out = sys.argv[1:4]
if out: print(json.dumps({"memory": compress(model, recipe, out).report.peak_memory}))
else: print(json.dumps(ahead(model, recipe).json()["forecast"]))
"""
SMALL = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 6, "num_attention_heads": 8, "vocab_size": 8192}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    draw = random.Random(0)
    file = tmp_path_factory.mktemp("texts") / "text.txt"
    file.write_text("\n\n".join(" ".join("".join(draw.choices("abcdefgh", k=5)) for _ in range(40)) for _ in range(400)))
    return file


def recipe(text: Path, steps: str, tokens: int = 256, length: int = 32, **more) -> Recipe:
    return Recipe.of(steps, Calibration(text=str(text), tokens=tokens, length=length, **more))


def process(*words: object) -> dict:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", RUN, *map(str, words)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "blocks"), [("wanda(sparsity=0.5)", 6), ("gptq(group_size=32)", 2)])
def test_memory_is_what_was_said(text, tmp_path, steps, blocks):
    model = tiny_folder(tmp_path / "model", **{**SMALL, "num_hidden_layers": blocks})
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe(text, steps, 8192, 128).yaml())
    said, found = process(model, file, ""), process(model, file, tmp_path / "out")
    assert said["memory"] == pytest.approx(found["memory"], rel=0.15)
    assert said["seconds"] > 0


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "opt"])
@pytest.mark.parametrize("steps", ["rtn(bits=3, group_size=32)", "wanda(sparsity=0.5)", "gptq(group_size=32) -> lqer(rank=4)"])
def test_size_is_what_was_said(text, tmp_path, family, steps):
    model = tiny_folder(tmp_path / "model", family)
    said = ahead(model, recipe(text, steps)).files
    compress(model, recipe(text, steps), tmp_path / "out")
    assert said == pytest.approx(file_bytes(tmp_path / "out").value, rel=1e-3)


@pytest.mark.parametrize(
    "steps", ["quarot -> wanda(sparsity=0.5) -> gptq(group_size=32) -> lqer(rank=4)", "flap(sparsity=0.3)", "gptaq by luq"]
)
def test_a_rehearsal_changes_nothing(text, steps):
    model = tiny("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    made = recipe(text, steps)
    took = forecast.seconds(Anatomy.of(model), made)
    assert len(took) == len(made.steps)
    assert all(value is not None and value >= 0 for value in took)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_steps_that_move_scales_are_rehearsed_where_they_can_be(text, monkeypatch):
    """In earnest for one block, quick ones a few times; of a method that looks at the model itself, only what it is shown."""
    asked, scale = Counter(), get("awq").scale
    monkeypatch.setattr(get("awq"), "scale", lambda self, fold, *shown: (asked.update([fold]), scale(self, fold, *shown))[1])
    anatomy = Anatomy.of(tiny("llama", vocab_size=259))
    took = forecast.seconds(anatomy, recipe(text, "awq -> rtn(group_size=32)"))
    assert len(took) == 2
    assert min(took) > 0
    assert asked.keys() == {fold for fold in anatomy.folds() if fold.block == 2}
    assert all(1 < times <= forecast.MOST for times in asked.values())


def test_more_of_everything_takes_more(text):
    anatomy = Anatomy.of(tiny("llama"))

    def most(steps: str, **more) -> int:
        return max(step.memory for step in forecast.memory(anatomy, recipe(text, steps, **more)))

    assert most("wanda", tokens=1 << 20) > most("wanda", tokens=1 << 16) > most("rtn")
    assert most("gptaq", tokens=1 << 20) > most("gptq", tokens=1 << 20) > most("gptq", tokens=1 << 20, compute="bfloat16")


def test_every_process_that_judges_holds_a_model(text, tmp_path, monkeypatch):
    model = tiny_folder(tmp_path / "model")
    searched = recipe(text, "rtn(group_size=32) by evopress(levels='bits=2,4', mean=3, held_out=64)")
    one, two, five = (ahead(model, searched, workers=count).memory for count in (1, 2, 5))
    held = sum(t.nbytes for t in tiny("llama").parameters())
    assert (five - two) / 3 > forecast.FIRST_USE + 2 * held
    assert one < two
    assert ahead(model, recipe(text, "wanda"), workers=5).memory < two
    monkeypatch.setattr(module, "available", lambda: int(module.psutil.Process().memory_info().rss + 1e9))
    with pytest.raises(UsageError, match="fewer --workers"):
        compress(model, searched, tmp_path / "out", workers=5)


def test_what_does_not_fit_is_refused_and_fewer_tokens_are_named(text, tmp_path, monkeypatch):
    model = tiny_folder(tmp_path / "model")
    greedy = recipe(text, "wanda", tokens=1 << 24, length=128)
    monkeypatch.setattr(module, "available", lambda: int(module.psutil.Process().memory_info().rss + 1e9))
    said = ahead(model, greedy)
    assert said.tokens
    assert said.tokens % 128 == 0
    with pytest.raises(UsageError, match=r"of memory.*--tokens \d+ would fit.*--offload DIR"):
        compress(model, greedy, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    ahead(model, recipe(text, "wanda", tokens=said.tokens, length=128)).check()


def test_limits_count(monkeypatch):
    free = module.available()
    monkeypatch.setattr(resource, "getrlimit", lambda which: (free // 2, free))
    assert module.available() <= free // 2


def test_where_there_are_no_such_limits_none_counts(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "resource", None)
    assert module.available() > 0
