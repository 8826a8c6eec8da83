"""Writes the tables of docs/reliability.md from faults/ledger.jsonl: of every experiment the last run.

`--check` writes nothing and fails where the page is not what would be written.
"""

import json
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reliability.md"
LEDGER = ROOT / "faults" / "ledger.jsonl"
BEGIN, END = "<!-- faults: written by docs/reliability.py -->", "<!-- /faults -->"
Line = dict[str, Any]


def main(words: Sequence[str] | None = None) -> int:
    options = ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--check", action="store_true", help="write nothing, fail if the page is stale")
    options.add_argument("--page", type=Path, default=PAGE)
    options.add_argument("--ledger", type=Path, default=LEDGER)
    given = options.parse_args(words)
    before = given.page.read_text(encoding="utf-8")
    wanted = filled(before, latest(given.ledger))
    if given.check:
        if before != wanted:
            print(f"{given.page} is stale; run `make docs`")
        return int(before != wanted)
    given.page.write_text(wanted, encoding="utf-8")
    return 0


def latest(ledger: Path) -> list[Line]:
    """The last line of every experiment, in the order of the families."""
    lines = [json.loads(row) for row in ledger.read_text(encoding="utf-8").splitlines() if row.strip()]
    found = {(line["family"], line["what"]): line for line in lines}
    return sorted(found.values(), key=lambda line: line["family"])


def filled(page: str, lines: Sequence[Line]) -> str:
    """The page with its tables. Raises ValueError where the places for them are missing."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{chr(10).join(tables(lines))}\n\n{END}{after}"


def tables(lines: Sequence[Line]) -> Iterator[str]:
    yield from ("| family | experiment | cases | refused | taken | faults | slowest | memory | run |", "|" + "---|" * 9)
    yield from (_row(line) for line in lines if "refused" in line)
    yield from ("", "| family | experiment | cases | outcomes | faults | run |", "|" + "---|" * 6)
    yield from (_counted(line) for line in lines if "outcomes" in line)
    runs = sum(line["cases"] for line in lines if not line.get("compared"))
    yield from ("", f"{runs:,} cases, {sum(line['fault'] for line in lines)} faults.")


def _row(line: Line) -> str:
    numbers = (line[name] for name in ("cases", "refused", "taken", "fault"))
    memory = f"{line['most_memory'] / 1e6:.0f} MB" if line["most_memory"] else "-"
    return _cells(line["family"], line["what"], *numbers, f"{line['slowest_seconds']:.2f} s", memory, _run(line))


def _counted(line: Line) -> str:
    outcomes = ", ".join(f"{count} {name}" for name, count in sorted(line["outcomes"].items()))
    faults = "compared with" if line.get("compared") else line["fault"]
    return _cells(line["family"], line["what"], line["cases"], outcomes, faults, _run(line))


def _run(line: Line) -> str:
    return f"{line['date'][:10]}, `{line['commit']}`, seed {line['seed']}"


def _cells(*values: Any) -> str:
    return f"| {' | '.join(str(value).replace('|', chr(92) + '|') for value in values)} |"


if __name__ == "__main__":
    sys.exit(main())
