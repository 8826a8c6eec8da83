"""The fenced blocks of a Markdown page, and the pages there are."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^```(.*)$")


@dataclass(frozen=True)
class Block:
    """line: of the opening fence, from 1. language: the first word behind it; the rest are marks such as file=NAME."""

    page: Path
    line: int
    language: str
    marks: dict[str, str]
    code: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """In order. AssertionError if a fence is never closed."""
    found: list[Block] = []
    begun, info, inside = 0, "", list[str]()
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = FENCE.match(line)
        if fence and not begun:
            begun, info, inside = number, fence[1], []
        elif fence:
            language, *marks = info.split() or [""]
            found.append(Block(page, begun, language, dict(m.split("=", 1) for m in marks), "\n".join(inside) + "\n"))
            begun = 0
        elif begun:
            inside.append(line)
    assert not begun, f"{page}:{begun}: this fence is never closed"
    return found


def commands(block: Block) -> list[list[str]]:
    """The words of every command of a bash block."""
    lines = block.code.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]
