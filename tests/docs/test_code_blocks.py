"""Every fenced block of the documentation does what the page says, in the order of the page."""

import contextlib
import io
import json
import re
import tomllib
from pathlib import Path

import pytest
import typer
from markdown_blocks import PAGES, ROOT, Block, blocks, commands
from typer.testing import CliRunner

from trimtab.cli.main import app
from trimtab.core.recipe import Recipe

TOO_LONG = ("claim", "claims", "chat", "ui")  # commands that are parsed and not run: hours, or somebody has to type
TARGETS = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
NOTHING_TO_RUN = ("text", "bits")  # the second are compared with the code in test_documented_formats.py

with_blocks = pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: str(p.relative_to(ROOT)))


@with_blocks
def test_blocks(page: Path, small_world: Path):
    reader = Reader()
    for block in blocks(page):
        if "needs" not in block.marks:  # of a method that has to be there first: see test_adding_a_method.py
            reader.read(block)


class Reader:
    """Somebody who reads a page from above and does what it says: one Python session, one working folder."""

    def __init__(self) -> None:
        self.names: dict[str, object] = {}
        self.said = ""

    def read(self, block: Block) -> None:
        if "file" in block.marks:
            _write(Path(block.marks["file"]), block.code)
        match block.language:
            case "python":
                self._python(block)
            case "output":
                assert self.said == block.code, f"{block} says otherwise"
            case "bash":
                for words in commands(block):
                    run_command(words, block)
            case "yaml":
                Recipe.parse(block.code)
            case "toml":
                tomllib.loads(block.code)
            case "json":
                json.loads(block.code)
            case other:
                assert other in NOTHING_TO_RUN, f"{block}: nobody knows how to test a block of {other!r}"

    def _python(self, block: Block) -> None:
        # Blank lines in front, so that a traceback gives the line of the page.
        code = compile("\n" * block.line + block.code, str(block.page), "exec")
        if "file" in block.marks:
            return
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, self.names)
        self.said = printed.getvalue()


def run_command(words: list[str], block: Block) -> None:
    match words:
        case ["trimtab", name, *rest] if name in TOO_LONG:
            typer.main.get_command(app).commands[name].make_context(name, rest)  # type: ignore[attr-defined]
        case ["trimtab", *rest]:
            done = CliRunner().invoke(app, rest)
            assert done.exit_code == 0, f"{block}: {' '.join(words)}: {done.stderr}"
            assert done.stdout.strip(), f"{block}: {' '.join(words)} says nothing"
        case ["make", target, *_]:
            assert target in TARGETS, f"{block}: the Makefile has no target {target!r}"
        case ["pip", "install", *what]:
            extras = [f".[{name}]" for name in _extras()]
            assert what == ["torch"] or (what[0] == "-e" and what[1] in [".", *extras]), f"{block}: {what}"
        case _:
            raise AssertionError(f"{block}: nobody knows how to test {' '.join(words)!r}")


def _extras() -> list[str]:
    return list(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"])


def _write(path: Path, text: str) -> None:
    assert not path.is_absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
