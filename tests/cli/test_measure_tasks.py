"""`trimtab measure` with tasks, strides and samples, and what it says when it is asked for something that there is not."""

import json
from pathlib import Path

import pytest

from trimtab.measure.tasks import about


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    rows = [{"context": f"{n} + 1 =", "continuations": [f" {n + 1}", " x"], "gold": 0} for n in range(9)]
    file = tmp_path / "sums.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return file


def asked(model, text, *more) -> list:
    return ["measure", model, "--text", text, "--windows", "2", "--length", "16", "--no-speed", "-q", *more]


def refused(done, fragment: str) -> None:
    assert done.exit_code == 2, (done.exit_code, done.stderr)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("trimtab: error: ")
    assert fragment in line


def test_tasks_are_listed_without_a_model(trimtab) -> None:
    told, counted = trimtab("measure", "--tasks", "list"), trimtab("measure", "--tasks", "list", "--json")
    assert told.exit_code == counted.exit_code == 0
    assert json.loads(counted.stdout) == about()
    assert all(any(line.startswith(f"{task} ") for line in told.stdout.splitlines()) for task in about())


def test_a_task_of_ones_own(trimtab, model, text, sums) -> None:
    told, counted = (trimtab(*asked(model, text, "--tasks", sums, "--limit", "5", *json_)) for json_ in ([], ["--json"]))
    assert told.exit_code == counted.exit_code == 0, told.stderr
    assert any(line.startswith(f"{sums} accuracy") for line in told.stdout.splitlines())
    found = {m["name"]: m for m in json.loads(counted.stdout)[0]["measurements"]}
    assert found[f"{sums} accuracy"]["n"] == 5
    assert found[f"{sums} accuracy"]["setting"] == {"limit": 5, "seed": 0, "dtype": "float32", "truncated": 0}
    assert found["peak memory"]["value"] > 0
    whole = trimtab(*asked(model, text, "--tasks", sums, "--limit", "0", "--json"))
    assert {m["name"]: m["n"] for m in json.loads(whole.stdout)[0]["measurements"]}[f"{sums} accuracy"] == 9


def test_a_stride(trimtab, model, text) -> None:
    done = trimtab(*asked(model, text, "--stride", "3", "--json"))
    assert done.exit_code == 0, done.stderr
    found = {m["name"]: m for m in json.loads(done.stdout)[0]["measurements"]}
    assert (found["perplexity"]["n"], found["perplexity"]["setting"]["stride"]) == (6, 3)
    refused(trimtab(*asked(model, text, "--stride", "16")), "a stride must be from 1 to the length less one (15), got 16")


def test_samples(trimtab, model, text) -> None:
    told, counted = trimtab(*asked(model, text, "--samples")), trimtab(*asked(model, text, "--samples", "--json"))
    (column,) = json.loads(counted.stdout)
    assert len(column["samples"]) == 4
    assert all(repr(sample["prompt"]) in told.stdout for sample in column["samples"])
    assert "samples" not in json.loads(trimtab(*asked(model, text, "--json")).stdout)[0]


def test_speed_says_on_what(trimtab, model, text) -> None:
    done = trimtab("measure", model, "--text", text, "--windows", "2", "--length", "16", "--json", "-q")
    found = {m["name"]: m for m in json.loads(done.stdout)[0]["measurements"]}
    assert {"threads", "cpu", "kernel"} <= found["decode speed"]["setting"].keys()


def test_unknown_tasks_are_refused_before_a_model_is_opened(trimtab) -> None:
    refused(trimtab("measure", "nowhere", "--tasks", "arc_easy,arc_esy"), "no task 'arc_esy'; did you mean 'arc_easy'?")
    refused(trimtab("measure", "nowhere", "--tasks", "kick:shut"), "no task 'kick:shut'; did you mean")
    refused(trimtab("measure"), "give at least one model, or --tasks list")


def test_items_without_labels_are_one_line(trimtab, model, text, sums) -> None:
    sums.write_text('{"context": "1 + 1 =", "continuations": [" 2", " 3"]}\n', encoding="utf-8")
    refused(trimtab(*asked(model, text, "--tasks", sums)), 'sums.jsonl:1 is no task item: it has no label: the field "gold"')


def test_tasks_of_lm_eval(trimtab, model, text, sums) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed; pip install 'trimtab[eval]'")
    done = trimtab(*asked(model, text, "--tasks", f"lm-eval:pack:{sums}", "--limit", "4", "--json"))
    assert done.exit_code == 0, done.stderr
    assert done.stderr == ""
    found = {m["name"]: m for m in json.loads(done.stdout)[0]["measurements"]}
    assert found[f"lm-eval:pack:{sums} acc"]["n"] == 4
    assert found[f"lm-eval:pack:{sums} acc"]["setting"]["lm_eval"]
