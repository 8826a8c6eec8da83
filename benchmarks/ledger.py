"""What the drivers of side-by-side benchmarks share: a process for every line, a file of lines, and the newest of each counts."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Line = dict[str, Any]


def newest(ledger: Path, *names: str) -> list[Line]:
    """The lines of a file, of those that agree in these fields the last one."""
    if not ledger.exists():
        return []
    found = map(json.loads, ledger.read_text(encoding="utf-8").splitlines())
    return [*{tuple(line[name] for name in names): line for line in found}.values()]


def measure(script: str, one: str, options: Sequence[object], work: Path) -> Line | None:
    """What `script --one ONE --result FILE OPTIONS` hands over, run in a process of its own; None, and a word, if it fails."""
    name = Path(script).stem
    result = work / f"{name}.json"
    result.unlink(missing_ok=True)
    command = [sys.executable, script, "--one", one, "--result", result, *options]
    with (work / f"{name}.log").open("a", encoding="utf-8") as log:
        done = subprocess.run([*map(str, command)], stdout=log, stderr=log, check=False)
    if done.returncode:
        print(f"{one} did not finish, see {log.name}", file=sys.stderr)
        return None
    found: Line = json.loads(result.read_text(encoding="utf-8"))
    return found


def keep(ledger: Path, line: Mapping[str, Any], quick: bool) -> None:
    """Appends a line; a quick one is only shown, without what is long."""
    if quick:
        print(json.dumps({name: value for name, value in line.items() if not (isinstance(value, list) and len(value) > 3)}))
        return
    with ledger.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
