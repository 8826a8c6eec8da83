"""A comparison for people: tables on stdout, and verdicts in words."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from trimtab.cli import show

if TYPE_CHECKING:
    from trimtab.measure.compare import Comparison

Document = Mapping[str, Any]
NONE = "-"


def comparison(found: "Comparison") -> None:
    """Everything but the bins of the calibration and the receipts, which are in the document."""
    models = [found.base, *found.others]
    _models(models)
    if found.base["tasks"]:
        _tasks(models)
        _flips(found.others)
    if len(found.base["domains"]) > 1:
        _parts(models, "domains", lambda part: part["domain"], "loss by text, nats/token")
    _parts(models, "positions", _stretch, "loss by position in the window, nats/token")
    _samples(models)
    typer.echo(f"\nby perplexity: {found.ranking}")
    typer.echo("± is one standard error; intervals are 95 %, of the difference to the base on the same tokens and items")
    for note in found.notes:
        typer.echo(f"note: {note}")


def words(difference: Document | None, scale: float = 1.0, digits: int = 4) -> str:
    """`worse, 95 % interval +0.31 to +0.39`."""
    if difference is None:
        return NONE
    low, high = (_signed(difference[end], scale, digits) for end in ("low", "high"))
    return f"{difference['verdict']}, 95 % interval {low} to {high}"


def _models(models: list[dict[str, Any]]) -> None:
    columns = (
        "model",
        "size",
        "bits",
        "perplexity",
        "nats/token",
        "verdict",
        "bits/byte",
        "KL to base",
        "same top",
        "calibration error",
    )
    rows = [_model_row(model) for model in models]
    show.table(columns, rows, right=(1, 2, 3, 4, 6, 7, 8, 9), wrap=(0, 5))


def _model_row(model: Document) -> list[str]:
    against = model.get("against_base") or {}
    measured = {m["name"]: m for m in model["measurements"]}
    difference = against.get("perplexity")
    bits = measured["bits per weight, blocks"] if measured["bits per weight, blocks"]["n"] else measured["bits per weight, all"]
    verdict = words(difference)
    if against and difference is None:
        verdict = f"bits per byte {words(against['bits_per_byte'])}"
    return [
        model["name"],
        show.size(measured["file size"]["value"]),
        f"{bits['value']:.2f}",
        _spread(measured["perplexity"]),
        _signed(difference["difference"]) if difference else NONE,
        verdict,
        f"{measured['bits per byte']['value']:.4f}",
        _spread(against.get("kl"), 3),
        _percent(against["same_top"]["value"]) if against.get("same_top") else NONE,
        _percent(model["calibration"]["error"]),
    ]


def _tasks(models: list[dict[str, Any]]) -> None:
    """Accuracies in percent, differences in percentage points."""
    columns = ("task", "model", "n", "accuracy", "normalised", "points", "verdict", "calibration error")
    rows = [_task_row(task, model) for task in models[0]["tasks"] for model in models]
    _table("tasks", columns, rows, right=(2, 3, 4, 5, 7), wrap=(1, 6))


def _task_row(task: str, model: Document) -> list[str]:
    found = model["tasks"][task]
    against = (model.get("against_base") or {"tasks": {}})["tasks"].get(task)
    calibration = found["calibration"]
    return [
        task,
        model["name"],
        str(found["n"]),
        _percent(found["accuracy"], found["stderr"]),
        _percent(found["normalised"], found["normalised_stderr"]),
        _signed(against["difference"], 100, 1) if against else NONE,
        words(against, 100, 1),
        _percent(calibration["error"]) if calibration else NONE,
    ]


def _flips(others: tuple[dict[str, Any], ...]) -> None:
    columns = ("task", "model", "right -> wrong", "wrong -> right", "both right", "both wrong", "n")
    order = ("right_to_wrong", "wrong_to_right", "both_right", "both_wrong", "n")
    rows = [
        [task, model["name"], *(str(against["flips"][name]) for name in order)]
        for task in others[0]["tasks"]
        for model in others
        for against in (model["against_base"]["tasks"][task],)
    ]
    _table("flips against the base", columns, rows, right=range(2, 7), wrap=(1,))


def _parts(models: list[dict[str, Any]], kind: str, name: Callable[[Document], str], title: str) -> None:
    """One column per part of the text."""
    parts = [name(part) for part in models[0][kind]]
    rows = [[model["name"], *(f"{part['nats']:.3f}" for part in model[kind])] for model in models]
    _table(title, ("model", *parts), rows, right=range(1, len(parts) + 1), wrap=range(len(parts) + 1))


def _stretch(part: Document) -> str:
    return str(part["from"]) if part["from"] == part["to"] else f"{part['from']} to {part['to']}"


def _samples(models: list[dict[str, Any]]) -> None:
    for number, sample in enumerate(models[0]["samples"]):
        rows = [[model["name"], " ".join(_printable(model["samples"][number]["text"]).split())] for model in models]
        _table(f"after: {_printable(sample['prompt'])}", ("model", "goes on"), rows, wrap=(1,))


def _table(
    title: str, columns: Sequence[str], rows: list[list[str]], right: Sequence[int] = (), wrap: Sequence[int] = ()
) -> None:
    """Its title on a line of its own, however narrow the table is."""
    typer.echo(f"\n{title}")
    show.table(columns, rows, right=right, wrap=wrap)


def _printable(text: str) -> str:
    """A broken model writes anything, also what a terminal would obey."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _spread(value: Document | None, digits: int = 4) -> str:
    if value is None:
        return NONE
    spread = f" ± {value['stderr']:.2g}" if value["stderr"] else ""
    return f"{value['value']:.{digits}g}{spread}"


def _signed(value: float | None, scale: float = 1.0, digits: int = 4) -> str:
    return "?" if value is None else f"{value * scale:+.{digits}f}"


def _percent(value: float | None, stderr: float | None = None) -> str:
    if value is None:
        return NONE
    return f"{value:.1%}" + (f" ± {stderr:.1%}" if stderr else "")
