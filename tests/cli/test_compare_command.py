"""`trimtab compare`: tables for people, one document for machines, one line for whatever is wrong."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from trimtab.cli.verdicts import words
from trimtab.testing.folders import tiny_folder

SMALL = ("--windows", "4", "--length", "32", "--no-samples")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("models") / "other", seed=1, num_hidden_layers=1)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("tasks") / "sums.jsonl"
    rows = [{"context": f"{n} + 1 =", "continuations": [f" {n + 1}", f" {n}"], "gold": n % 2} for n in range(30)]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return file


def refused(done, fragment: str) -> None:
    assert done.exit_code == 2, (done.exit_code, done.stderr)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("trimtab: error: ")
    assert fragment in line


def test_tables(trimtab, model, other, text, task):
    done = trimtab("compare", model, other, "--text", text, "--tasks", task, "--limit", "20", *SMALL, "-q")
    assert done.exit_code == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    row = next(line for line in lines if line.startswith("other "))
    assert "95 % interval" in row
    assert any("right -> wrong" in line and "wrong -> right" in line for line in lines)
    flips = [line.split() for line in lines if line.startswith(str(task)) and line.split()[1] == "other"][-1]
    assert sum(map(int, flips[2:6])) == int(flips[6]) == 20
    assert any(line.startswith("by perplexity: ") and "tiny" in line and "other" in line for line in lines)


def test_json_and_file_are_the_same_document(trimtab, model, other, text, tmp_path):
    asked = ("compare", model, other, "--text", text, "--windows", "4", "--length", "32", "--out", tmp_path / "c.json", "-q")
    said = json.loads(trimtab(*asked, "--json").stdout)
    assert json.loads((tmp_path / "c.json").read_text(encoding="utf-8")) == said
    assert [path.name for path in tmp_path.iterdir()] == ["c.json"]
    assert said["format"] == 1
    assert said["base"]["name"] == "tiny"
    (against,) = [one["against_base"] for one in said["others"]]
    assert against["perplexity"]["verdict"] in ("better", "worse", "not separable")
    assert {"prompt", "text"} == said["base"]["samples"][0].keys()
    again = trimtab(*asked)
    assert again.stdout.endswith(f"written: {tmp_path / 'c.json'}\n")
    assert "after: " in again.stdout


def test_two_texts_are_two_domains(trimtab, model, other, text, tmp_path):
    second = tmp_path / "second.txt"
    second.write_text(text.read_text(encoding="utf-8").upper(), encoding="utf-8")
    asked = ("compare", model, other, "--text", text, "--text", second, *SMALL, "-q")
    said = json.loads(trimtab(*asked, "--json").stdout)
    assert [part["domain"] for part in said["base"]["domains"]] == [str(text), str(second)]
    assert "loss by text" in trimtab(*asked).stdout


def test_progress_tells_how_long_it_takes(trimtab, model, other, text):
    done = trimtab("compare", model, other, "--text", text, *SMALL)
    assert done.exit_code == 0
    assert done.stderr.splitlines()[0].startswith("trimtab: look 0/1")


def test_words_for_an_interval():
    difference = {"verdict": "worse", "low": 0.123456, "high": 0.2}
    assert words(difference) == "worse, 95 % interval +0.1235 to +0.2000"
    assert words(difference, 100, 1) == "worse, 95 % interval +12.3 to +20.0"
    assert words(None) == "-"
    assert words({"verdict": "not separable", "low": None, "high": None}) == "not separable, 95 % interval ? to ?"


def test_what_a_broken_model_writes_cannot_move_the_cursor(trimtab, model, other, text):
    done = trimtab("compare", model, other, "--text", text, "--windows", "4", "--length", "32", "-q")
    assert all(letter.isprintable() or letter == "\n" for letter in done.stdout)


BAD = {
    "one model twice": (["{model}", "{model}"], "is given twice"),
    "no other model": (["{model}"], "missing argument 'OTHER...'"),
    "no such model": (["{model}", "nowhere/at/all"], "no model folder"),
    "unknown task": (
        ["{model}", "{other}", "--tasks", "arc_easy,arc_esy"],
        "there is no task 'arc_esy'; did you mean 'arc_easy'?",
    ),
    "unknown dtype": (["{model}", "{other}", "--dtype", "float61"], "--dtype cannot be 'float61'"),
    "one window": (["{model}", "{other}", "--windows", "1"], "--windows"),
    "no folder to write to": (["{model}", "{other}", "--out", "/nowhere/c.json"], "cannot write /nowhere/c.json"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests(trimtab, model, other, text, case):
    given, fragment = BAD[case]
    named = [word.format(model=model, other=other) for word in given]
    refused(trimtab("compare", *named, "--text", text, "-q"), fragment)


def test_bad_texts_and_tasks(trimtab, model, other, text, tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n", encoding="utf-8")
    refused(trimtab("compare", model, other, "--text", empty, "-q"), "holds no text")
    unlabelled = tmp_path / "task.jsonl"
    unlabelled.write_text('{"context": "a", "continuations": ["b", "c"]}\n', encoding="utf-8")
    refused(trimtab("compare", model, other, "--text", text, "--tasks", unlabelled, *SMALL, "-q"), "it has no label")


def test_other_tokenizers_are_refused_and_told_what_to_ask_for(trimtab, model, text, tmp_path):
    folder = tiny_folder(tmp_path / "foreign", num_hidden_layers=2)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(content), encoding="utf-8")
    asked = ("compare", model, folder, "--text", text, *SMALL, "-q")
    refused(trimtab(*asked), "foreign and tiny have different tokenizers")
    done = trimtab(*asked, "--across-tokenizers")
    assert done.exit_code == 0, done.stderr
    assert "bits per byte" in next(line for line in done.stdout.splitlines() if line.startswith("foreign "))


def test_a_model_that_says_nan_is_named(trimtab, model, text, tmp_path):
    folder = tiny_folder(tmp_path / "broken", num_hidden_layers=2)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][:] = 3e38
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    refused(trimtab("compare", model, folder, "--text", text, *SMALL, "-q"), "broken: ")
