"""Fast transforms are learned from random numbers, and the page says how many seeds got there."""

import argparse
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import butterfly

from trimtab.core.seeds import Seeds


@pytest.mark.parametrize("transform", [*butterfly.TRANSFORMS])
def test_a_transform_is_learned_from_random_numbers(transform: str) -> None:
    """To far below what a matrix of low rank with as many numbers misses."""
    wanted = butterfly.matrix(transform, 16)
    identity = torch.eye(16, dtype=wanted.dtype)
    torch.testing.assert_close(wanted @ wanted.mH, identity, rtol=0, atol=1e-12)
    descended, missing = butterfly.learned(wanted, 0.1, 300, 100, Seeds(0).at("butterfly"))
    assert missing <= descended
    assert missing < butterfly.REACHED < 0.1 < butterfly.low_rank(wanted)


def test_a_lines_tries_end_with_the_rate_that_got_there() -> None:
    given = argparse.Namespace(one="hadamard", size=8, seed=0, steps=200, polish=100, threads=torch.get_num_threads())
    line = butterfly.measured(given)
    assert line["missing"] == line["tries"][-1]["missing"] < butterfly.REACHED
    assert [one["rate"] for one in line["tries"]] == [*butterfly.RATES[: len(line["tries"])]]
    given.steps = given.polish = 1
    line = butterfly.measured(given)
    assert len(line["tries"]) == len(butterfly.RATES)
    assert line["missing"] == min(one["missing"] for one in line["tries"]) > butterfly.REACHED


def test_jobs_go_up_to_the_size_that_was_asked_for() -> None:
    given = argparse.Namespace(most=32, seeds=2, steps=5, polish=6)
    found = [*butterfly.jobs(given)]
    assert len({tuple(job.fields.values()) for job in found}) == len(found) == 2 * 3 * 2
    assert max(job.fields["size"] for job in found) == 32
    assert "--steps=5" in found[0].words


def test_the_page_counts_the_seeds_that_got_there() -> None:
    some = {"steps": 500, "polish": 300, "threads": 1, "low_rank": 0.2, "seconds": 3.0}
    lines = [
        {"transform": transform, "size": size, "seed": seed, "missing": lost, "tries": [{}] * tries, **some}
        for transform, size, seed, lost, tries in (
            ("hadamard", 64, 0, 1e-9, 1),
            ("hadamard", 64, 1, 2e-2, 3),
            ("fourier", 16, 0, 1e-9, 1),
        )
    ]
    first, second = [row.split(" | ") for row in butterfly.page(lines).splitlines() if row.startswith(("| Fou", "| Had"))]
    assert first[:4] == ["| Fourier", "16", "128 of 256", "1 of 1"]
    assert second[1:8] == ["64", "768 of 4096", "1 of 2", "2.0e-02", "1.0e-09", "2.0", "2.0e-01"]
