"""What the drivers of side-by-side benchmarks share: a process for every line, a file of lines, and the newest of each counts.

`oneshot.py` keeps its lines in `oneshot.jsonl` and shows them in `ONESHOT.md`; a run that was stopped goes on.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gauge import hand_over, use_threads

Line = dict[str, Any]
WORK = Path(__file__).resolve().parent.parent / "build" / "bench"


@dataclass(frozen=True)
class Job:
    """One line to be made. one: what is measured; fields: of the line; options: what the process is told beside `one`."""

    one: str
    fields: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def words(self) -> list[str]:
        return [f"--{name.replace('_', '-')}={value}" for name, value in self.options.items()]


@dataclass(frozen=True)
class Book:
    """A driver's lines and its page. key: the fields that tell lines apart; of those that agree in them the newest counts."""

    script: str
    key: tuple[str, ...]

    @property
    def file(self) -> Path:
        return Path(self.script).resolve().with_suffix(".jsonl")

    @property
    def page(self) -> Path:
        return self.file.with_name(f"{self.file.stem.upper()}.md")

    def lines(self) -> list[Line]:
        if not self.file.exists():
            return []
        found = map(json.loads, self.file.read_text(encoding="utf-8").splitlines())
        return [*{self.place(line): line for line in found}.values()]

    def place(self, fields: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(fields[name] for name in self.key)

    def missing(self, job: Job) -> bool:
        return self.place(job.fields) not in map(self.place, self.lines())

    def drive(
        self,
        given: argparse.Namespace,
        jobs: Callable[[argparse.Namespace], Iterable[Job]],
        measured: Callable[[argparse.Namespace], Line],
        page: Callable[[list[Line]], str],
    ) -> int:
        """What a driver does, to its exit code. given: from `options`; jobs: a later one may depend on what earlier ones left."""
        if given.one is not None:
            use_threads(given.threads)
            hand_over(given.result, measured(given))
            return 0
        WORK.mkdir(parents=True, exist_ok=True)
        failed = sum(not self._run(job, given) for job in jobs(given) if given.quick or given.again or self.missing(job))
        if not given.quick and self.file.exists():
            self.page.write_text(page(self.lines()), encoding="utf-8")
        return 1 if failed else 0

    def _run(self, job: Job, given: argparse.Namespace) -> bool:
        """In a process of its own; whether it came to an end."""
        print(f"{', '.join(map(str, job.fields.values()))} ...", file=sys.stderr)
        found = measure(self.script, job.one, [*job.words, f"--threads={given.threads}"], WORK)
        if found is not None:
            self._keep({**job.fields, **found}, given.quick)
        return found is not None

    def _keep(self, line: Line, quick: bool) -> None:
        """Appends a line; a quick one is only shown, without what is long."""
        if quick:
            print(json.dumps({name: value for name, value in line.items() if not (isinstance(value, list) and len(value) > 3)}))
            return
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


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


def options(doc: str | None, quick: str, seed: str = argparse.SUPPRESS) -> argparse.ArgumentParser:
    """What all drivers understand. quick, seed: what is said of these two; a seed that is not spoken of is for processes."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--again", action="store_true", help="also what has a line")
    parser.add_argument("--quick", action="store_true", help=f"{quick}; nothing is kept")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help=seed)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    return parser


def numbers(given: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options of these names, for a process or a line."""
    return {name: getattr(given, name) for name in names}


def by_seed(given: argparse.Namespace, ways: Iterable[str], names: Iterable[str]) -> Iterator[Job]:
    """Every way with every seed, on the model that was asked for. names: of the options that the process is told."""
    for seed in range(given.seeds):
        for way in ways:
            yield Job(way, {"model": given.model, "way": way, "seed": seed}, {"seed": seed, **numbers(given, "model", *names)})


def apart(left: Sequence[Sequence[float]], right: Sequence[Sequence[float]], digits: int = 4) -> str:
    """The mean of left less right with its 95 % interval, paired; both [seeds, windows]."""
    import torch

    from trimtab.measure.paired import paired_difference

    found = paired_difference(*(torch.tensor(side, dtype=torch.float64) for side in (left, right)))
    return f"{found.difference:+.{digits}f} ({found.low:+.{digits}f} to {found.high:+.{digits}f})"


def row(cells: Iterable[object]) -> str:
    """Of a table in Markdown."""
    return f"| {' | '.join(map(str, cells))} |"
