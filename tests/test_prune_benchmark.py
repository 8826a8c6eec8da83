"""The benchmark of smaller shapes: its recipes can be read, everyone takes the same steps and rates, its page is ordered."""

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import prune

from trimtab.core.recipe import Recipe
from trimtab.core.taught import TaughtMethod

GIVEN = argparse.Namespace(steps=100, rates=prune.RATES)


@pytest.mark.parametrize("side", prune.SIDES, ids=lambda side: side.name)
@pytest.mark.parametrize("level", prune.LEVELS)
def test_recipes_can_be_read_and_take_the_same_steps(side, level):
    once, *learned = side.recipes(level, GIVEN, prune.RATES) if side.cuts else (None, *side.recipes(level, GIVEN, prune.RATES))
    assert once is None or "recover" not in once
    assert len(set(learned)) == 3
    for recipe, rate in zip(learned, prune.RATES, strict=True):
        taught = [step.method for step in Recipe.of(recipe).steps if isinstance(step.method, TaughtMethod)]
        assert sum(method.steps for method in taught) == 100
        assert {method.windows for method in taught} == {4}
        assert taught[-1].learning_rate == rate


def line(side: str, perplexity: float, level: int = 20, recovered: bool = False, recipe: str = "") -> dict[str, Any]:
    setting = dict.fromkeys(
        ("windows", "length", "shown", "judged_windows", "judged", "threads", "model", "history", "compute"), 1
    )
    cost = {
        "seconds": 2.0,
        "peak": 4e6,
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
    given = argparse.Namespace(rates=(0.1, 0.2, 0.4), seed=0)
    tried = [
        line("flap", ppl, 35, True, f"flap -> recover(learning_rate={rate:g})") for rate, ppl in ((0.1, 9), (0.2, 7), (0.4, 8))
    ]
    other = line("flap", 1.0, 20, True, "flap -> recover(learning_rate=0.4)")
    assert prune.best_rates([*tried, other], "flap", given) == [0.2]
    assert prune.best_rates(tried[1:], "flap", given) == given.rates
    assert prune.best_rates(tried, "pat", given) == given.rates


def test_the_best_rate_of_every_side_is_set_against_the_baseline():
    found = [
        {**line(prune.AS_IT_CAME, 2.0, level=0), "recipe": ""},
        line("llm_pruner", 9.0),
        line("llm_pruner", 6.0, recovered=True, recipe="llm_pruner -> recover(learning_rate=0.1)"),
        line("llm_pruner", 5.0, recovered=True, recipe="llm_pruner -> recover(learning_rate=0.2)"),
        line("loraprune", 4.0, recovered=True),
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
