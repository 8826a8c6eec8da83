"""The benchmark of smaller shapes: its recipes can be read, everyone takes the same steps and rates, its page is ordered."""

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import prune

from trimtab.core.recipe import Recipe
from trimtab.core.taught import TaughtMethod


@pytest.mark.parametrize(
    ("side", "level"), [(side, level) for side in prune.SIDES for level in side.levels], ids=lambda of: getattr(of, "name", of)
)
def test_recipes_can_be_read_and_take_the_same_steps(side, level):
    *once, learned = side.recipes(level, 100)
    assert len(once) == (side.cuts is not None)
    assert all(Recipe.of(recipe) and "recover" not in recipe for recipe in once)
    steps = Recipe.of(learned.replace(prune.OPEN, "0.125")).steps
    taught = [step.method for step in steps if isinstance(step.method, TaughtMethod)]
    assert sum(method.steps for method in taught) == 100
    assert {method.windows for method in taught} == {4}
    assert taught[-1].learning_rate == 0.125


def line(side: str, perplexity: float, level: int = 20, recovered: bool = False, recipe: str = "") -> dict[str, Any]:
    setting = dict.fromkeys(
        ("windows", "length", "shown", "judged_windows", "judged", "threads", "model", "history", "compute"), 1
    )
    cost = {
        "seconds": 2.0,
        "peak": 4e6,
        "disk": 5e6,
        "parameters": 800 if level else 1000,
        "decode": 9.0,
        "decode_stderr": 1.0,
        "engine": "native",
        "right": {"arc_easy": 0.5, "sciq": 0.25},
    }
    losses = [perplexity, perplexity + 1, perplexity + 3]
    found = {"level": level, "side": side, "recovered": recovered, "recipe": recipe or side, "seed": 0}
    return {**found, "perplexity": perplexity, "stderr": 0.5, "losses": losses, **cost, "setting": setting}


def test_other_levels_take_the_rate_that_was_best_where_all_were_tried():
    swept = [{**line("flap", 7.0, 35, True), "rate": 0.2}, line("flap", 9.0, 35)]
    fields = line("flap", 0.0, 20, True)
    assert prune.rate_for(fields, swept, (0.1, 0.2, 0.4)) == {"rate": 0.2}
    assert prune.rate_for(fields, swept[1:], (0.1, 0.2, 0.4)) == {}, "not known yet: all are tried"
    assert prune.rate_for(line("flap", 0.0, 35, True), swept, (0.1, 0.2, 0.4)) == {}
    assert prune.rate_for(line("flap", 0.0, 20), swept, (0.1, 0.2, 0.4)) == {}, "nothing is learned"
    assert prune.rate_for(fields, [], (0.4,)) == {"rate": 0.4}


def test_the_rate_that_is_kept_is_best_on_a_text_of_its_own(monkeypatch):
    """What is cut before is cut once, and counts for every rate."""
    asked: list[str] = []

    def compressed(given, begun=None):
        asked.append(given.one)
        took = float(given.one or 0)
        return given.one, None, {"seconds": took, "processor": took, "peak": 1 + took}

    monkeypatch.setattr("oneshot.compressed", compressed)
    monkeypatch.setattr("trimtab.data.windows.evaluation_windows", lambda *asked: None)
    monkeypatch.setattr(
        "trimtab.measure.perplexity.token_losses", lambda model, windows: (torch.tensor(float(model)) - 0.3).abs()
    )
    given = argparse.Namespace(one=f"2 -> {prune.OPEN}", rate=None, rates=(0.1, 0.25, 0.5))
    model, _, cost = prune.tried(given)
    assert asked == ["2", "0.1", "0.25", "0.5"]
    assert (model, cost["rate"], cost["seconds"], cost["processor"]) == ("0.25", 0.25, 2.25, 2.25)
    assert cost["peak"] == 3.0, "the cut took more than the first training; later ones run beside the best so far"
    assert cost["apart"] == pytest.approx({"0.1": 0.2, "0.25": 0.05, "0.5": 0.2})
    alone = argparse.Namespace(**{**vars(given), "one": prune.OPEN})
    assert (prune.tried(alone)[2]["seconds"], prune.tried(alone)[2]["peak"]) == (0.25, 1.1)
    assert prune.tried(argparse.Namespace(**{**vars(given), "rate": 0.5}))[2]["rate"] == 0.5
    fixed = argparse.Namespace(**{**vars(given), "one": "3"})
    assert prune.tried(fixed) == ("3", None, {"seconds": 3.0, "processor": 3.0, "peak": 4.0})


def test_every_side_is_set_against_the_baseline():
    found = [
        {**line(prune.AS_IT_CAME, 2.0, level=0), "recipe": ""},
        line("llm_pruner", 9.0),
        {**line("llm_pruner", 5.0, recovered=True, recipe="llm_pruner -> recover(learning_rate={rate})"), "rate": 0.2},
        {**line("loraprune", 4.0, recovered=True), "rate": 0.1},
    ]
    tables = prune.page(found).split("## ")[1:]
    assert [table.partition(",")[0] for table in tables] == ["20 % removed"] * 2
    rows = [row for row in tables[1].splitlines() if row.startswith("| ")][1:]
    assert [row.split("|")[1].strip() for row in rows] == [
        prune.AS_IT_CAME,
        "`loraprune`",
        "`llm_pruner -> recover(learning_rate=0.2)`",
    ]
    assert "20.0 %" in rows[1]
    assert "-1.000 (-1.000 to -1.000)" in rows[1]
    assert "(native)" in rows[0]
