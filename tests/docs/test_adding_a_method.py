"""The method of docs/adding_a_method.md, in a package of its own, is a method like any other."""

import importlib
import json
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from markdown_blocks import ROOT, blocks, commands
from test_code_blocks import run_command
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from trimtab.cli.main import app
from trimtab.core import registry
from trimtab.measure.size import bits_per_weight

PAGE = blocks(ROOT / "docs" / "adding_a_method.md")


@pytest.fixture
def package(small_world: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The files of the page, installed as pip would: importable, with the entry points of its pyproject.toml."""
    for block in PAGE:
        if "file" in block.marks:
            path = small_world / block.marks["file"]
            path.parent.mkdir(exist_ok=True)
            path.write_text(block.code, encoding="utf-8")
    project = tomllib.loads((small_world / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = small_world / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    sections = [
        f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()) for group, points in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(sections))
    monkeypatch.syspath_prepend(str(small_world))
    yield small_world
    for name in [name for name in sys.modules if name.partition(".")[0] in ("my_methods", "test_ternary")]:
        del sys.modules[name]


def test_it_passes_the_test_of_the_page(package: Path):
    module = importlib.import_module("test_ternary")
    module.test_my_ternary()


def test_it_is_listed(package: Path):
    assert "my_ternary" in registry.ids()
    listed = {entry["id"]: entry for entry in json.loads(CliRunner().invoke(app, ["methods", "--json"]).stdout)}
    assert listed["my_ternary"]["room"] == "my_methods"
    assert listed["my_ternary"]["claims"][0]["name"] == "beats-rtn-at-2-bit"


def test_its_commands_run(package: Path):
    (block,) = [b for b in PAGE if b.marks.get("needs") == "my_ternary"]
    for words in commands(block):
        run_command(words, block)
    model = AutoModelForCausalLM.from_pretrained(package / "ternary")
    assert bits_per_weight(model)[0].value == pytest.approx(2 + 16 / 32)


def test_it_is_gone_with_its_package():
    assert "my_ternary" not in registry.ids()
