"""The notebooks in examples/ run from the first cell to the last, and are stored without what they printed."""

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from markdown_blocks import ROOT

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
LINK = re.compile(r"\]\(([^)\s]+)\)")
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_there_are_some():
    assert {path.stem for path in NOTEBOOKS} >= {"compress", "compare", "export", "own_method"}


@every_notebook
def test_it_runs(path: Path, small_world: Path):
    names: dict[str, Any] = {"__name__": "__main__"}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for number, cell in enumerate(_cells(path, "code"), 1):
            exec(compile(_source(cell), f"{path.name}, code cell {number}", "exec"), names)
    assert printed.getvalue().strip()


@every_notebook
def test_it_is_stored_clean(path: Path):
    held = json.loads(path.read_text(encoding="utf-8"))
    assert (held["nbformat"], held["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in held["cells"]}) == len(held["cells"])
    for cell in _cells(path, "code"):
        assert (cell["outputs"], cell["execution_count"], cell["metadata"]) == ([], None, {})
    for target in (target for cell in _cells(path, "markdown") for target in LINK.findall(_source(cell))):
        assert "://" in target or (path.parent / target).exists(), f"{target} does not exist"


def test_the_method_of_ones_own_is_short():
    (method,) = (_source(cell) for cell in _cells(ROOT / "examples" / "own_method.ipynb", "code") if "class My" in _source(cell))
    assert len(method[method.index("@dataclass") :].strip().splitlines()) <= 30


def _cells(path: Path, kind: str) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def _source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])
