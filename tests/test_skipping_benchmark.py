"""The benchmark of skipped blocks: nothing skipped costs nothing, and both forms differ by what the prompt was read with."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import skipping

from trimtab.testing.tiny import tiny, tokens


def test_both_forms_differ_by_what_the_prompt_was_read_with():
    model = tiny("llama")
    windows = tokens(model, length=24)
    whole = skipping.losses(model, windows, 12, [], False)
    assert len(whole) == len(windows)
    assert skipping.losses(model, windows, 12, [], True) == pytest.approx(whole)
    read, unread = (skipping.losses(model, windows, 12, [1, 2], form) for form in skipping.FORMS.values())
    assert read != pytest.approx(unread, abs=1e-6)
    assert read != pytest.approx(whole, abs=1e-6)


def test_decoding_takes_time_with_and_without_blocks(monkeypatch):
    monkeypatch.setattr(skipping, "DECODED", 2)
    model = tiny("llama")
    found = skipping.faster(model, tokens(model, length=8)[:1], 2.0, 4)
    assert len(found) == skipping.TURNS
    assert min(found) > 0


def test_the_page_sets_every_side_against_the_whole_model():
    setting = dict.fromkeys(("model", "history", "judged", "passages", "seed", "prompt", "after", "threads"), "x")
    sides = [
        {"form": "", "pattern": "", "speedup": 1.0, "losses": [2.0, 3.0]},
        {"form": "run time", "pattern": "unified", "speedup": 1.5, "kept": 20, "losses": [2.5, 3.5]},
        {"form": "static", "pattern": "unified", "speedup": 1.5, "kept": 20, "losses": [4.0, 5.0]},
    ]
    told = skipping.page({**setting, "depth": 30, "sides": sides, "speeds": {"1.5": [1.25, 1.5]}})
    first, second = [row.split(" | ") for row in told.splitlines() if row.startswith("| 20 of 30")]
    assert first[2:] == ["all", "3.0000", "+0.5000 (+0.5000 to +0.5000)", "1.25 to 1.50 |"]
    assert (second[2], second[4]) == ("the same blocks", "+2.0000 (+2.0000 to +2.0000)")
