"""The benchmark of private adaptation: its ways can be asked for, its page says epsilon, loss and exposure."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import private


def line(way: str, seed: int, learned: float, epsilon: float) -> dict[str, object]:
    setting = {"method": "lora", "rows": 4, "length": 8, "canaries": 2, "steps": 9, "batch": 2, "delta": 1e-5}
    return {
        **{"model": "m", "way": way, "seed": seed, "epsilon": epsilon, "steps_taken": 9, "setting": setting},
        **{"judged": [learned, learned + 0.1], "exposure": [1.0, 3.0], "before": {"judged": [3.0, 3.2]}},
    }


def test_every_way_can_be_asked_for() -> None:
    found = {way: private.asked(way, 15) for way in private.WAYS}
    assert found["open"].epsilon is None
    assert (found["steered 2"].epsilon, found["steered 2"].steered) == (2.0, 15)
    assert (found["fixed 8"].epsilon, found["fixed 8"].steered) == (8.0, 0)


def test_the_page_says_what_was_spent_learned_and_given_away() -> None:
    told = private.page([line("fixed 8", 0, 2.0, 7.99), line("fixed 8", 1, 2.0, 7.98), line("open", 0, 1.0, 1e6)])
    assert told.index("| open | no promise | 9 | -2.0500 (") < told.index("| fixed 8 | 7.99 | 9 | -1.0500 (")
    assert "| 2.00 ± 0.58 | 2 |" in told
    assert "at most 8 bits, and 1.42 in the mean" in told


def test_every_way_is_asked_for_with_every_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["private.py", "--seeds", "2"])
    jobs = [*private.jobs(private.arguments())]
    assert {(job.one, job.fields["seed"]) for job in jobs} == {(way, seed) for way in private.WAYS for seed in (0, 1)}
    assert "--canaries=32" in jobs[0].words
