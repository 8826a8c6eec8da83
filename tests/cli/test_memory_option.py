"""`--memory`: one folder, measured and asked at several sizes."""

import json
from pathlib import Path

import pytest

BLOCKS = ("--method", "bitstack", "--blocks", "4", "--rank", "1")


@pytest.fixture(scope="module")
def stack(model: Path, shown: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from typer.testing import CliRunner

    from trimtab.cli.main import app

    out = tmp_path_factory.mktemp("stack") / "out"
    done = CliRunner().invoke(app, ["compress", str(model), "-o", str(out), *BLOCKS, *shown, "-q"])
    assert done.exit_code == 0, done.stderr
    return out


def measured(trimtab, stack, text, *memory):
    asked = ("--text", text, "--windows", "2", "--length", "32", "--no-speed", "--dtype", "float32", "--json", "-q")
    done = trimtab("measure", stack, *asked, *memory)
    assert done.exit_code == 0, done.stderr
    (column,) = json.loads(done.stdout)
    return {m["name"]: m["value"] for m in column["measurements"]}


def test_measure_opens_what_fits(trimtab, stack, text):
    full = measured(trimtab, stack, text)
    half = measured(trimtab, stack, text, "--memory", "85%")
    assert half["memory at rest"] <= 0.9 * full["memory at rest"]
    assert half["perplexity"] != full["perplexity"]
    assert measured(trimtab, stack, text, "--memory", "1GB")["perplexity"] == full["perplexity"]


def test_generate_opens_what_fits(trimtab, stack):
    done = trimtab("generate", stack, "abc", "--memory", "80%", "--new-tokens", "3", "--json", "-q")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["engine"] == "torch"
    done = trimtab("generate", stack, "abc", "--memory", "80%", "--engine", "native")
    assert done.exit_code == 2
    assert "--memory belongs to the torch engine" in done.stderr


@pytest.mark.parametrize("command", [("measure",), ("generate",)])
def test_too_little_memory_is_a_usage_error(trimtab, stack, command):
    words = (*command, stack, *(("abc",) if command == ("generate",) else ()))
    for memory, said in (("1KB", "with one block of every matrix it takes"), ("much", "is no size")):
        done = trimtab(*words, "--memory", memory, "-q")
        assert done.exit_code == 2
        assert said in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
