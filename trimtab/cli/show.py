"""What results look like: JSON for machines, tables for people. Everything here goes to stdout."""

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from trimtab.core.report import Measurement, Report
    from trimtab.engine.plan import Plan
    from trimtab.host.preflight import Preflight

PAGE = 1000  # characters in a line where stdout is no terminal: one row, one line


def as_json(value: Any) -> None:
    """One document. Numbers that JSON does not have (NaN, infinity) become null."""
    typer.echo(json.dumps(_finite(value), indent=1, allow_nan=False, default=str))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_finite(item) for item in value]
    return value


def console() -> "Console":
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else PAGE)


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    title: str | None = None,
    right: Sequence[int] = (),
    wrap: Sequence[int] = (-1,),
) -> None:
    """right: the columns that hold numbers. wrap: those that may be broken where the terminal is narrow; names are not."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for number, name in enumerate(columns):
        breaks = {number, number - len(columns)} & {*wrap}
        made.add_column(name, justify="right" if number in right else "left", no_wrap=not breaks, overflow="fold")
    for row in rows:
        made.add_row(*map(Text, row))
    page = console()
    with page.capture() as held:
        page.print(made)
    typer.echo("\n".join(line.rstrip() for line in held.get().splitlines()))


def size(count: float) -> str:
    """1234567 -> '1.23 MB'; decimal units."""
    units = ("bytes", "kB", "MB", "GB")
    for unit in units:
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def change(before: float | None, after: float | None) -> str:
    """'540 MB -> 120 MB (4.50 times smaller)', with '?' for what is not known."""
    both = f"{_size(before)} -> {_size(after)}"
    return f"{both} ({before / after:.2f} times smaller)" if before and after else both


def _size(count: float | None) -> str:
    return "?" if count is None else size(count)


def report(done: "Report") -> None:
    """Steps and measurements as tables, then the notes."""
    text = done.markdown().rstrip()
    if not sys.stdout.isatty():
        typer.echo(text)
        return
    from rich.markdown import Markdown

    console().print(Markdown(text))


def profile(seconds: Mapping[str, float]) -> None:
    """Where the time went, the largest first."""
    whole = sum(seconds.values()) or 1.0
    ranked = sorted(seconds.items(), key=lambda pair: -pair[1])
    rows = [(name, f"{spent:.2f}", f"{spent / whole:.1%}") for name, spent in ranked]
    table(("activity", "seconds", "share"), rows, right=(1, 2))


def plan(found: "Plan") -> None:
    rows = [
        (
            step.method,
            step.kind,
            str(len(step.sites)),
            ", ".join(f"{pattern}: {count}" for pattern, count in step.matched.items()) or "-",
            "the data decide" if step.bits is None else f"{step.bits:.3f}",
        )
        for step in found.steps
    ]
    table(("step", "kind", "matrices", "patterns matched", "bits after"), rows, right=(2, 4), wrap=(0, 3))
    for step in found.steps:
        if step.candidates:
            what = f"{step.candidates:,} candidates at most on {step.tokens_read:,} held-out tokens read in all"
            typer.echo(f"search: {what}" + (f", after {step.levels} compressions, one per level" if step.levels else ""))
    typer.echo(f"parameters: {found.parameters:,}")
    unknown = " (the data decide)" if found.bytes_after is None else ""
    typer.echo(f"size in memory: {change(found.bytes_before, found.bytes_after)}{unknown}")


def forecast(found: "Preflight") -> None:
    """What carrying a plan out will take."""
    rows = [(step.method, size(step.memory), _seconds(step.seconds)) for step in found.steps]
    table(("step", "memory besides libraries", "seconds"), rows, right=(1, 2), wrap=(0,))
    typer.echo(f"weight files: {_size(found.files)}{f', {size(found.free)} free there' if found.free is not None else ''}")
    typer.echo(f"peak memory: about {size(found.memory)}, {size(found.available)} available")
    typer.echo(f"time: about {_seconds(found.seconds)} seconds in all")


def _seconds(took: float | None) -> str:
    return "?" if took is None else f"{took:.1f}"


def measurements(found: Mapping[str, Sequence["Measurement"]]) -> None:
    """One column per model."""
    names = list(dict.fromkeys((m.name, m.unit) for column in found.values() for m in column))
    columns = [{(m.name, m.unit): m for m in column} for column in found.values()]
    rows = [[name, unit, *(cell(column.get((name, unit))) for column in columns)] for name, unit in names]
    models = range(2, 2 + len(columns))
    table(("measure", "unit", *found), rows, right=models, wrap=models)


def cell(m: "Measurement | None") -> str:
    if m is None:
        return "-"
    spread = f" ± {m.stderr:.2g}" if m.stderr and math.isfinite(m.stderr) else ""
    return (size(m.value) if m.unit == "bytes" else f"{m.value:.5g}") + spread


def claim_line(line: Mapping[str, Any]) -> str:
    """One claim's result in one line."""
    unit, cells = ("nats/token", "windows") if "left_ppl" in line else ("of the finding", "blocks")
    interval = f"{line['difference']:+.4f} {unit}, 95 % interval {line['low']:+.4f} to {line['high']:+.4f}"
    rests_on = f"{line['n']} {cells} x {len(line['seeds'])} seeds"
    status = f"{line['status'].upper()}{' (quick)' if line.get('quick') else ''}"
    return f"{line['method']} {line['claim']}: {status}: {line['statement']} ({interval}; {rests_on})"
