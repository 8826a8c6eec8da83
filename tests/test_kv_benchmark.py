"""The benchmark of factored caches: bytes are what was asked for, and where nothing is left out nothing is lost."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import kv

from trimtab.testing.tiny import tiny, tokens


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(kv, "GROUPS", (1, 2, 4))
    monkeypatch.setattr(kv, "FACTORS", (1, 3))
    return tiny("llama")


def test_a_passage_is_judged_by_every_cache(small):
    found = kv.passage(small, tokens(small, length=144), 128)
    whole = found.pop((0, 1))
    assert len(found) == 6
    for (_, factor), side in found.items():
        assert side["bytes"] <= whole["bytes"] / factor
        assert side["loss"] != pytest.approx(whole["loss"], abs=1e-6)


def test_where_nothing_is_left_out_nothing_is_lost(small, monkeypatch):
    monkeypatch.setattr(kv, "ranks_for", lambda prompt, channels, group, factor: (channels * group, channels * group))
    found = kv.passage(small, tokens(small, length=144), 128)
    assert {round(side["loss"] - found[0, 1]["loss"], 4) for side in found.values()} == {0.0}


@pytest.mark.parametrize("group", kv.GROUPS)
@pytest.mark.parametrize("factor", kv.FACTORS)
def test_ranks_take_what_there_is_and_no_more(group, factor):
    room, of_a_rank = 2 * 2048 * 192 * group / factor, 2048 + 192 * group
    ranks = sum(kv.ranks_for(2048, 192, group, factor))
    assert ranks * of_a_rank <= room < (ranks + 1) * of_a_rank


def test_the_page_sets_groups_against_layers_alone():
    sides = [
        {"group": group, "factor": factor, "loss": [loss, loss + 1], "bytes": [6e6 / factor] * 2, "ranks": [9, 9]}
        for group, factor, loss in ((0, 1, 2.0), (1, 3, 2.5), (5, 3, 2.25))
    ]
    setting = dict.fromkeys(("model", "history", "judged", "passages", "seed", "prompt", "after"), "x")
    told = kv.page({**setting, "sides": [{**side, "factoring": [0.5, 0.5]} for side in sides]})
    alone, shared = [row.split(" | ") for row in told.splitlines() if row[:3] in ("| 1", "| 5")]
    assert [alone[1], alone[3], alone[4], alone[5]] == ["3.00x", "+0.5000 (+0.5000 to +0.5000)", "+20.00 %", ""]
    assert shared[5] == "-0.2500 (-0.2500 to -0.2500)"
