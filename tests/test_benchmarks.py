"""The benchmark's page: a result that is no good has no speed."""

import copy
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import oneshot
from results import gate, page, pages

from trimtab.core.recipe import Recipe


def judged(perplexity: float = 40.0, levels: int = 8) -> dict[str, Any]:
    return {"perplexity": perplexity, "stderr": 1.0, "losses": [3.0, 4.0], "levels": levels}


def line(side: str, program: str, seconds: float, job: str = "gptq", red: str = "") -> dict[str, Any]:
    stage = {"seconds": seconds, "processor": seconds, "peak": seconds * 1e6, "after": 5e5, "file": 0}
    bound = dict.fromkeys(("weights", "block", "statistics", "activations", "libraries"), 1_000_000)
    ours = {"profile": {"forward": 0.9 * seconds, "solve": 0.05 * seconds}, "bound": bound} if program == "trimtab" else {}
    return {
        "session": "s",
        "commit": "c",
        "history": None,
        "machine": {"processor": "p", "cpu": "AVX2"},
        "setting": dict.fromkeys(
            ("windows", "length", "shown", "bits", "group_size", "model", "judged", "judged_windows", "threads"), 1
        ),
        "side": side,
        "program": program,
        "job": job,
        "red": red,
        "versions": {"torch": "1"},
        "stages": {"imports": stage, "load": stage, "compress": stage},
        "foreign": 0.0,
        "available": 2.0,
        **judged(),
        **ours,
    }


LINES = [
    line("trimtab float32", "trimtab", 100.0),
    line("llm-compressor float32", "llm-compressor", 300.0),
    line("llm-compressor float32, oneDNN", "llm-compressor", 250.0),
    line("trimtab wanda", "trimtab", 50.0, job="wanda"),
]


def changed(index: int, **values: Any) -> list[dict[str, Any]]:
    lines = copy.deepcopy(LINES)
    lines[index].update(values)
    return lines


@pytest.mark.parametrize(
    ("found", "job", "said"),
    [
        (judged(), "gptq", ""),
        (judged(float("nan")), "gptq", "not finite"),
        (judged(float("inf")), "wanda", "not finite"),
        (judged(60.1), "gptq", "worse than plain rounding"),
        (judged(60.1), "wanda", ""),
        (judged(levels=9), "gptq", "9 distinct values"),
    ],
)
def test_gate(found: dict[str, Any], job: str, said: str) -> None:
    reason = gate(found, job, rounding=60.0, bits=3)
    assert (reason == "") == (said == "")
    assert said in reason


def test_ratios_are_against_the_best_peer_and_against_the_peer_as_it_comes() -> None:
    assert "| trimtab float32 | 2.50x | 3.00x | 2.50x | +0.0000 ± 0.0000 |" in page(LINES)


def test_a_red_side_shows_neither_seconds_nor_a_ratio() -> None:
    text = page(changed(0, red="perplexity nan is not finite"))
    assert "| trimtab float32 | perplexity nan is not finite | | | | | 40.00 ± 1.00 | 1 |" in text
    assert "100.0" not in text
    assert "## Ratios" not in text


def test_one_red_run_makes_the_other_runs_of_its_side_worthless_for_ratios() -> None:
    text = page([*LINES, *changed(2, red="did not finish")[2:3]])
    assert "| trimtab float32 | 3.00x | 3.00x | 3.00x |" in text


def test_repeats_give_the_median_and_the_range() -> None:
    text = page([*LINES, line("trimtab float32", "trimtab", 80.0), line("trimtab float32", "trimtab", 90.0)])
    assert "| 90.0 (80.0-100.0) |" in text


def test_the_share_of_the_forward_pass_is_judged() -> None:
    assert "of its pass in the model's own forward: holds" in page(LINES)
    slow = changed(3, profile={"forward": 39.0})
    assert "**does not hold**" in page(slow)


def test_peak_is_set_against_the_bound() -> None:
    assert "| trimtab float32 | 1 | 1 | 1 | 1 | 1 | 5 | 100 | 20.00 |" in page(LINES)


def test_a_disturbed_run_is_named() -> None:
    assert "Disturbed" not in page(LINES)
    assert "- trimtab float32: 25%" in page(changed(0, foreign=0.5))


def test_every_session_that_has_the_last_word_on_a_side_is_shown() -> None:
    lines = [*changed(0, session="before", side="old side"), *changed(0, session="older"), *LINES]
    told = pages(lines).split("# Passes")[1:]
    assert len(told) == 2, "of all others there is a newer run"
    assert "old side" not in told[0]
    assert "old side" in told[1]


def test_only_the_last_session_is_shown() -> None:
    text = page([*changed(0, session="before", side="old side"), *LINES])
    assert "old side" not in text


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("recipe", oneshot.SAME_BITS)
def test_recipes_of_the_table_can_be_read(recipe, bits):
    assert Recipe.of(recipe.format(bits=bits)).steps


def shot(recipe: str, perplexity: float) -> dict[str, Any]:
    losses = [perplexity, perplexity + 1, perplexity + 3]
    setting = {**dict.fromkeys(("windows", "length", "shown", "judged_windows", "judged", "seed", "threads", "model"), 1)}
    cost = {"seconds": 2.0, "processor": 3.0, "peak": 4e6}
    found = {"perplexity": perplexity, "stderr": 0.5, "losses": losses, "stored_bits": 2.289, **cost}
    return {"bits": 2, "recipe": recipe, **found, "setting": {**setting, "history": None}}


def test_table_of_one_shot_methods_is_ordered_and_paired():
    told = oneshot.page([shot("rtn(bits=2)", 9.0), shot("gptq(bits=2, clip=True)", 7.0)])
    rows = [row for row in told.splitlines() if row.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == ["gptq(bits=2, clip=True)", "rtn(bits=2)"]
    assert "+2.000 (+2.000 to +2.000)" in rows[1]
    assert "| 2.289 | 7.00 ± 0.50 |  | 2 | 3 | 4 |" in rows[0]
