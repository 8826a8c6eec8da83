"""What drivers of benchmarks share: lines that are kept, work that is not done twice, tables that are paired."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import ledger
import once
import side_tables

from trimtab.measure.sides import Setting, Side

DRIVER = """
import sys
sys.path.insert(0, {folder!r})
from ledger import Book, Job, options

def jobs(given):
    for name in ("a", "b", "bad"):
        yield Job(name, {{"name": name, "seed": 0}}, {{"judged_windows": 3}})

def measured(given):
    if given.one == "bad":
        raise SystemExit(3)
    return {{"loss": [1.0, 2.0, 3.0, 4.0], "windows": given.judged_windows, "threads": given.threads}}

parser = options("a driver", "little")
parser.add_argument("--judged-windows", type=int, default=9)
shown = lambda lines: " ".join(line["name"] for line in lines)
raise SystemExit(Book(__file__, ("name", "seed")).drive(parser.parse_args(), jobs, measured, shown))
"""


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """A driver of three lines, one of which cannot be made, in this process; those that it starts are real ones."""
    script = tmp_path / "driver.py"
    script.write_text(DRIVER.format(folder=str(Path(ledger.__file__).parent)), encoding="utf-8")
    monkeypatch.setattr(ledger, "WORK", tmp_path / "work")

    def run(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", [str(script), *words])
        with pytest.raises(SystemExit) as left:
            exec(compile(script.read_text(encoding="utf-8"), script, "exec"), {"__name__": "__main__", "__file__": str(script)})
        return left.value.code

    return run


def test_lines_are_made_once_and_what_fails_is_said(driver, tmp_path, capfd):
    file = tmp_path / "driver.jsonl"
    assert driver("--threads=1") == 1
    found = [*map(json.loads, file.read_text().splitlines())]
    assert [(line["name"], line["windows"], line["threads"]) for line in found] == [("a", 3, 1), ("b", 3, 1)]
    assert (tmp_path / "DRIVER.md").read_text() == "a b"
    assert f"bad did not finish, see {tmp_path / 'work' / 'driver.log'}" in capfd.readouterr().err
    assert driver("--threads=1") == 1
    assert len(file.read_text().splitlines()) == 2


def test_a_quick_look_keeps_nothing(driver, tmp_path, capfd):
    assert driver("--quick", "--threads=1") == 1
    assert [json.loads(line)["name"] for line in capfd.readouterr().out.splitlines()] == ["a", "b"]
    assert not (tmp_path / "driver.jsonl").exists()
    assert not (tmp_path / "DRIVER.md").exists()


def test_of_lines_that_agree_the_newest_counts(tmp_path):
    book = ledger.Book(str(tmp_path / "some.py"), ("name", "seed"))
    assert book.lines() == []
    lines = [{"name": "a", "seed": 0, "loss": 2}, {"name": "a", "seed": 1, "loss": 3}, {"name": "a", "seed": 0, "loss": 4}]
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [line["loss"] for line in book.lines()] == [4, 3]
    assert not book.missing(ledger.Job("a", {"name": "a", "seed": 1, "more": 5}))
    assert book.missing(ledger.Job("a", {"name": "a", "seed": 2}))


def test_differences_are_paired_over_seeds_and_windows():
    assert ledger.apart([[1.0, 2.0], [3.0, 4.0]], [[2.0, 3.0], [4.0, 5.0]], digits=2) == "-1.00 (-1.00 to -1.00)"


@pytest.mark.parametrize("quick", [False, True])
def test_what_is_measured_in_one_go_is_kept_unless_it_was_a_quick_look(quick, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MKL_NUM_THREADS", "1")
    given = Namespace(threads=1, quick=quick)
    once.once(str(tmp_path / "some.py"), given, lambda given: {"loss": 2}, lambda found: f"a loss of {found['loss']}")
    assert capsys.readouterr().out == "a loss of 2\n"
    assert [path.name for path in sorted(tmp_path.iterdir())] == ([] if quick else ["SOME.md", "some.json"])


def sides(level: float, seeds: int = 3) -> list[Side]:
    losses = torch.tensor([level, level + 1, level + 2], dtype=torch.float64)
    return [Side(losses, 14.4, seeds > 1, 10.0 + seed) for seed in range(seeds)]


def test_rows_are_ordered_and_set_against_the_first():
    told = side_tables.table("10 % removed", {"wanda": sides(3.0), "magnitude": sides(5.0, seeds=1), "armor": sides(2.5)})
    rows = [row for row in told.splitlines() if row.startswith("| `")]
    assert told.startswith("## 10 % removed")
    assert [row.split("`")[1] for row in rows] == ["armor", "wanda", "magnitude"]
    assert "-0.500 (-0.500 to -0.500)" in rows[0]
    assert "| 14.400 | 54.60 |  | 11 |" in rows[1]
    assert "+2.000 (+2.000 to +2.000)" in rows[2]


def test_the_head_names_the_setting():
    told = side_tables.head("Pruned", "sparse.py", Setting(), "perplexity 20.05", "Bits are stored ones.")
    assert "`asset:smollm2-135m`" in told
    assert "seeds 0, 1, 2. Unchanged: perplexity 20.05. " in told
    assert told.endswith("Bits are stored ones.\n")


def test_a_quick_look_takes_the_smallest_model():
    quick = side_tables.setting(Namespace(quick=True, seeds=[0, 1]))
    assert (quick.model, quick.seeds, quick.windows) == ("asset:own-2m", (0,), 4)
    assert side_tables.setting(Namespace(quick=False, seeds=[0, 1]), "asset:own-5m") == Setting("asset:own-5m", seeds=(0, 1))
