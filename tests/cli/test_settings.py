"""Variables, colours and completion do what docs/settings.md says."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from trimtab.cli import complete, doctor, progress, show
from trimtab.cli.main import app
from trimtab.cli.manners import Exit, colours, printable
from trimtab.cli.voice import ENGINES
from trimtab.core.registry import ids
from trimtab.core.shipped import names
from trimtab.host.export.targets import TARGETS

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
TABLE = re.findall(r"^\| `([A-Z_]+)` \|", PAGE, re.MULTILINE)
SOURCE = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "trimtab").rglob("*.py"))
RUN = "from trimtab.cli.main import run; run()"


def test_the_table_has_every_variable_that_acts_and_no_other():
    assert set(TABLE) == set(doctor.VARIABLES)
    named = set(re.findall(r"\bTRIMTAB_[A-Z_]+\b", SOURCE))
    assert named == {name for name in TABLE if name.startswith("TRIMTAB_")}


def test_the_table_of_exit_codes_is_that_of_the_code():
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)}
    assert codes == {code.value for code in Exit}


def test_the_hub_is_not_asked_when_offline_and_its_cache_is_where_it_was_put(model, tmp_path):
    """In one process of its own: the libraries read these variables when they are imported."""
    held = tmp_path / "hf" / "hub" / "models--some--tiny"
    shutil.copytree(model, held / "snapshots" / ("0" * 40))
    (held / "refs").mkdir()
    (held / "refs" / "main").write_text("0" * 40, encoding="utf-8")
    script = (
        "import trimtab as tt\n"
        "print(tt.load('some/tiny')[0].config.num_hidden_layers)\n"
        "try: tt.load('some/other')\n"
        "except tt.UsageError as error: print(error)\n"
    )
    variables = {"PATH": os.environ["PATH"], "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    variables |= {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    done = subprocess.run([sys.executable, "-c", script], env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    layers, refused = done.stdout.splitlines()
    assert layers == "2"
    assert refused == "there is no model folder some/other, and it was not fetched before; unset HF_HUB_OFFLINE to ask the hub"


def test_the_cache_is_where_it_was_put(trimtab, monkeypatch, tmp_path):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "mine"))
    assert str(tmp_path / "mine") in json.dumps(json.loads(trimtab("doctor", "--json").stdout)["cache"])


@pytest.mark.parametrize("words", [["--no-color", "methods"], ["methods", "--no-color"], ["methods", "gptq", "--no-color"]])
def test_no_color_may_stand_anywhere(trimtab, monkeypatch, words):
    monkeypatch.delenv("NO_COLOR", raising=False)
    seen = []
    table = show.table
    monkeypatch.setattr(show, "table", lambda *given, **named: (seen.append(os.environ.get("NO_COLOR")), table(*given, **named)))
    assert trimtab(*words).exit_code == 0
    assert set(seen) == {"1"}
    assert "NO_COLOR" not in os.environ


def test_what_follows_two_dashes_is_no_option(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "")
    with colours(["say", "--no-color", "--", "--no-color"]) as given:
        assert (given, os.environ["NO_COLOR"]) == (["say", "--", "--no-color"], "1")
    assert os.environ["NO_COLOR"] == ""


@pytest.mark.parametrize("asked", [False, True])
def test_colours_of_bars_and_tables(monkeypatch, asked):
    for name in ("TERM", "COLORTERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with colours(["--no-color"] if asked else []):
        assert show.console().no_color is asked
        assert progress._bars().console.no_color is asked


def test_a_character_that_a_stream_lacks_is_no_end_of_the_work():
    held = io.BytesIO()
    narrow = io.TextIOWrapper(held, encoding="cp1252", newline="")
    wide = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    printable(narrow, wide, io.StringIO())
    print("1 ± 2 ≈ 3", file=narrow, flush=True)
    assert held.getvalue().decode("cp1252").strip() == "1 ± 2 ? 3"
    assert wide.errors == "strict"


def test_results_reach_a_stream_that_knows_ascii_only():
    variables = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", RUN, "methods", "gptq"], env=variables, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "gptq" in done.stdout


def completed(*words: str) -> list[str]:
    """What bash would offer for the last of the words."""
    variables = {**os.environ, "_TRIMTAB_COMPLETE": "complete_bash"}
    variables |= {"COMP_WORDS": " ".join(["trimtab", *words]), "COMP_CWORD": str(len(words))}
    script = f"import sys\ntry:\n    {RUN}\nfinally:\n    assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], env=variables, capture_output=True, text=True)
    assert "AssertionError" not in done.stderr, "a second for every key"
    return done.stdout.split()


def test_shells_complete_commands_ids_and_formats():
    assert completed("comp") == ["compress", "compare"]
    assert "gptq" in completed("compress", "--method", "gp")
    assert completed("export", "small", "--to", "gg") == ["gguf"]


def test_what_is_completed_is_what_there_is():
    assert complete.method_ids() == ids()
    assert complete.ENGINES == ENGINES
    assert set(complete.TARGETS) == set(TARGETS)
    assert complete.method("gptq") == ["gptq"]
    assert complete.recipe("") == names()


def test_every_command_that_reports_has_json():
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    every = {f"{name} {inner}": one for name, command in commands.items() for inner, one in _within(command).items()}
    without = {name for name, one in every.items() if not any("--json" in p.opts for p in one.params)}
    others = {"chat", "claims render", "ui"}  # a conversation, a page that is only written, a server
    assert {name.strip() for name in without} == others


def _within(command: Any) -> dict[str, Any]:
    return getattr(command, "commands", None) or {"": command}
