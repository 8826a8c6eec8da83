"""The benchmark of what is trained at two bits: its recipes can be read, its page is ordered and paired."""

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import learned

from trimtab.core.recipe import Recipe


@pytest.mark.parametrize("side", learned.SIDES, ids=lambda side: side.recipe)
def test_recipes_can_be_read(side):
    for sweep in (False, True):
        recipes = side.recipes(100, 128, sweep)
        assert len(set(recipes)) == (3 if sweep and side.rate else 1)
        assert all(Recipe.of(recipe).steps for recipe in recipes if recipe)


def line(recipe: str, perplexity: float, seed: int = 0) -> dict[str, Any]:
    setting = dict.fromkeys(
        ("windows", "length", "shown", "judged_windows", "judged", "threads", "model", "history", "compute"), 1
    )
    cost = {"seconds": 2.0, "peak": 4e6, "bytes": 3e6, "decode": 9.0, "decode_stderr": 1.0, "kernels": "torch"}
    losses = [perplexity, perplexity + 1, perplexity + 3]
    found = {"perplexity": perplexity, "stderr": 0.5, "losses": losses, "stored_bits": 2.289, **cost}
    return {"table": "two", "recipe": recipe, "seed": seed, **found, "setting": setting}


def test_what_learns_is_set_against_the_best_that_does_not_under_the_same_seed():
    once, better, tuned = "gptq(bits=2, clip=True)", "quip_sharp(bits=2)", "gptq(bits=2) -> pv_tuning(steps=100)"
    found = [line(once, 9.0), line(tuned, 5.0), line(better, 8.0), line(tuned, 4.0, seed=1)]
    rows = [row for row in learned.page(found).splitlines() if row.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == [tuned, better, once, tuned]
    assert "-3.000 (-3.000 to -3.000)" in rows[0]
    assert "+1.000 (+1.000 to +1.000)" in rows[2]
    assert "|  | 2 | 4 | 3 | 9.0 ± 1.0 (torch) |" in rows[1]
    assert "seed 1" in learned.page(found)
