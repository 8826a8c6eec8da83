"""`--progress json`: lines that a program reads, on stderr, and nothing else that could be taken for one."""

import io
import json

import pytest

from trimtab.cli.progress import OFTEN, JsonWatcher, working
from trimtab.core.errors import UsageError
from trimtab.core.progress import Progress


def told(*events: tuple[float, Progress]) -> list[dict]:
    """What is written when these events come at these times."""
    times, page = iter([time for time, _ in events]), io.StringIO()
    watcher = JsonWatcher(page, lambda: next(times))
    for _, event in events:
        watcher(event)
    return [json.loads(line) for line in page.getvalue().splitlines()]


def test_a_line_says_everything():
    (line,) = told((5.0, Progress("sweep", 3, 30, "layers.3.q")))
    assert line.pop("memory") > 1_000_000
    assert line == {"phase": "sweep", "done": 3, "total": 30, "detail": "layers.3.q", "seconds": 0.0}


def test_lines_do_not_come_too_often_but_no_phase_begins_or_ends_unsaid():
    lines = told(
        (0.0, Progress("load", 0, 1)),
        (0.01, Progress("sweep", 0, 3)),
        (0.02, Progress("sweep", 1, 3)),
        (0.02 + OFTEN, Progress("sweep", 2, 3)),
        (0.03 + OFTEN, Progress("sweep", 3, 3)),
        (0.04 + OFTEN, Progress("sweep", 0, 3)),
    )
    assert [(line["phase"], line["done"]) for line in lines] == [
        ("load", 0),
        ("sweep", 0),
        ("sweep", 2),
        ("sweep", 3),
        ("sweep", 0),
    ]
    assert lines[2]["seconds"] == pytest.approx(0.01 + OFTEN)
    assert lines[4]["seconds"] == 0


def test_a_style_that_is_none():
    with pytest.raises(UsageError, match="--progress cannot be 'jsn'; did you mean 'json'"), working(style="jsn"):
        raise AssertionError("it was entered")


def test_a_compression_tells_where_it_is(trimtab, model, tmp_path):
    words = ("compress", model, "-o", tmp_path / "out", "--method", "rtn", "--group-size", "32", "--json", "--progress", "json")
    done = trimtab(*words)
    assert done.exit_code == 0, done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    phases = list(dict.fromkeys(line["phase"] for line in lines))
    assert phases[0] == "load"
    assert phases[-1] == "save"
    assert (lines[-1]["done"], lines[-1]["total"]) == (1, 1)
    assert json.loads(done.stdout)["output_dir"] == str(tmp_path / "out")


def test_quiet_wins(trimtab, model):
    assert trimtab("plan", model, "--method", "rtn", "--group-size", "32", "-q", "--progress", "json").stderr == ""


def test_the_list_of_methods_has_their_knobs(trimtab):
    found = {method["id"]: method for method in json.loads(trimtab("methods", "--json").stdout)}
    bits = next(knob for knob in found["gptq"]["knobs"] if knob["name"] == "bits")
    assert (bits["type"], bits["low"], bits["high"]) == ("int", 2, 8)
