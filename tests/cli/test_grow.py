"""`trimtab grow` trains once, says what it made, and leaves a name that the other commands know."""

import json
import random
from pathlib import Path

import pytest

from trimtab.data import text as sources
from trimtab.host.homegrown import FAMILY, Homegrown, family
from trimtab.host.pretrain import Course

TINY = Homegrown(2, 32, 4, 2, 64, 300, Course(steps=10, batch=2, length=16, learning_rate=1e-2))


@pytest.fixture(autouse=True)
def small_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 8))) for _ in range(100)]
    passages = [" ".join(draw.choices(words, k=30)) for _ in range(30)]
    for name in sources.SOURCES:
        monkeypatch.setitem(sources.SOURCES, name, lambda: passages)
    monkeypatch.setitem(FAMILY, "own-2m", TINY)
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))


def test_it_says_what_it_made(trimtab):
    done, again = (trimtab("grow", name, "--json") for name in ("own-2m", "asset:own-2m"))
    assert done.exit_code == again.exit_code == 0, done.stderr
    said = json.loads(done.stdout)
    assert said == json.loads(again.stdout)  # the second was in the cache, seconds and all
    assert said["model"] == "asset:own-2m"
    assert said["parameters"] == TINY.parameters
    assert said["tokens"] == 10 * 2 * 16
    assert said["seconds"] > 0
    assert Path(said["folder"]).is_dir()
    found = {m["name"]: m for m in said["measurements"]}
    assert found.keys() == {"perplexity", "bits per byte"}
    assert found["perplexity"]["setting"]["source"] == "asset:boolq"
    assert found["perplexity"]["n"] == 24 * 15


def test_it_says_so_to_people_too(trimtab):
    done = trimtab("grow", "own-2m-outliers")
    assert done.exit_code == 0, done.stderr
    rows = {line.split("  ")[0]: line for line in done.stdout.splitlines()}
    assert f"{TINY.parameters:,}" in rows["parameters"]
    assert "nats per token" in rows["training loss"]
    assert "bits/byte on asset:boolq (n = " in rows["bits per byte"]
    assert "stand out by 16" in done.stdout
    assert done.stderr.startswith("trimtab: ")  # progress


def test_the_list_says_what_is_there(trimtab):
    before = json.loads(trimtab("grow", "--list", "--json").stdout)
    assert [entry["model"] for entry in before] == [f"asset:{wanted.name}" for wanted in family()]
    assert all(entry["folder"] is None and entry["minutes"] > 0 for entry in before)
    folder = json.loads(trimtab("grow", "own-2m", "--json").stdout)["folder"]
    after = json.loads(trimtab("grow", "--list", "--json").stdout)
    assert after[0] == before[0] | {"folder": folder, "minutes": 0}
    told = trimtab("grow", "--list").stdout.splitlines()[2:]
    assert [line.split("  ")[-1].strip() for line in told[:3]] == [folder, "seconds", "seconds"]
    assert all("minutes" in line for line in told[3:])


def test_other_commands_know_the_name(trimtab):
    done = trimtab("measure", "asset:own-2m", "--windows", "2", "--length", "16", "--no-speed", "--json")
    assert done.exit_code == 0, done.stderr
    assert "trimtab: warning: asset:own-2m is trained first, once" in done.stderr
    names = {m["name"] for m in json.loads(done.stdout)[0]["measurements"]}
    assert {"perplexity", "file size"} <= names


@pytest.mark.parametrize(("words", "fragment"), [((), "say which model to grow"), (("own-2n",), "did you mean 'own-2m'?")])
def test_what_cannot_be_grown(trimtab, words, fragment):
    done = trimtab("grow", *words)
    assert done.exit_code == 2
    assert fragment in done.stderr.splitlines()[-1]
    assert done.stdout == ""


def test_another_parameterization_goes_into_a_folder(trimtab, tmp_path):
    out = str(tmp_path / "out")
    words = ("grow", "own-2m", "--method", "low_rank(keep=0.5)", "--out", out, "--steps", "3", "--seed", "1")
    done = trimtab(*words, "--json")
    assert done.exit_code == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["method"] == "low_rank()"
    assert said["folder"] == out
    assert said["tokens"] == 3 * 2 * 16
    assert said["parameters"] == said["with_gradients_at_first"] < TINY.parameters
    assert {m["name"] for m in said["measurements"]} == {"perplexity", "bits per byte"}
    again = trimtab(*words)
    assert again.exit_code == 2
    assert "--overwrite" in again.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--method", "low_rank"), "--out"),
        (("--out", "x"), "--method"),
        (("--steps", "3"), "--steps goes with --method"),
        (("--overwrite",), "--overwrite goes with --method"),
        (("--method", "rtn", "--out", "x"), "kind scratch"),
    ],
)
def test_half_a_request_is_refused(trimtab, words, said):
    done = trimtab("grow", "own-2m", *words)
    assert done.exit_code == 2
    assert said in done.stderr
