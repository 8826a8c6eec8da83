"""`trimtab probe`: what a model shows of itself, block by block, and where it could be cut. Nothing is written."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.cli import show
from trimtab.cli.measure import open_with_tokenizer
from trimtab.cli.options import Device, Dtype, Json, Model, Quiet, Verbose, device_of, dtype_of
from trimtab.cli.progress import working
from trimtab.core.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from trimtab.core.kinds import Finding, ProbeMethod
    from trimtab.core.progress import Watcher
    from trimtab.core.report import Measurement

COLUMN = 22  # characters: of the longest names, and of a number with its error


def register(app: typer.Typer) -> None:
    app.command("probe")(probe)


def probe(
    model: Model,
    probes: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ID...]", help='outliers, "sensitivity(bits=3)", ... (default: all)', show_default=False),
    ] = None,
    text: Annotated[str, typer.Option(help="What the model reads: .txt, .jsonl or asset:boolq.")] = "asset:boolq",
    windows: Annotated[int, typer.Option(min=2, help="How many windows.")] = 4,
    length: Annotated[int, typer.Option(min=8, help="Tokens per window.")] = 512,
    seed: Annotated[int, typer.Option(help="Decides which windows, and all randomness of the probes.")] = 0,
    dtype: Dtype = None,
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Look into a model block by block: what could be removed, what must be protected."""
    setting = {"text": text, "windows": windows, "length": length, "seed": seed}
    with working(quiet, verbose) as watch:
        chosen = _chosen(probes or [])
        found = _probed(model, {"device": device_of(device), "dtype": dtype_of(dtype)}, chosen, setting, watch)
    if json:
        show.as_json({"model": model, **setting, "probes": [_entry(*pair) for pair in zip(chosen, found, strict=True)]})
        return
    typer.echo(f"{model}: {windows} windows of {length} tokens of {text}, seed {seed}; ± is the standard error over windows")
    for method, findings in zip(chosen, found, strict=True):
        _tell(method, findings)
    typer.echo()
    for method, findings in zip(chosen, found, strict=True):
        for finding in findings:
            if finding.implies:
                typer.echo(f"{method.card.id}: {finding.implies}")


def _chosen(words: Sequence[str]) -> "list[ProbeMethod]":
    """The probes that are named, `id` or `id(knob=value)`, or all. Raises `UsageError` for a name that is no probe's."""
    from trimtab.core.expression import steps
    from trimtab.core.kinds import ProbeMethod
    from trimtab.core.registry import get, ids

    known = [id for id in ids() if issubclass(get(id), ProbeMethod)]
    chosen: list[ProbeMethod] = []
    for word in words or known:
        name = word.partition("(")[0].strip()
        if name not in known:
            raise UsageError(f"there is no probe {name!r}{did_you_mean(name, known)}")
        (method, by), *more = steps(word)
        if not isinstance(method, ProbeMethod) or by is not None or more:
            raise UsageError(f"{word!r} is not one probe; write e.g. sensitivity(bits=3)")
        chosen.append(method)
    return chosen


def _probed(
    model: str, place: Mapping[str, Any], chosen: "Sequence[ProbeMethod]", setting: Mapping[str, Any], watch: "Watcher"
) -> "list[list[Finding]]":
    from trimtab.core.progress import Progress
    from trimtab.data.windows import evaluation_windows
    from trimtab.engine.probe import probe as run

    watch(Progress("load", 0, 1, model))
    opened, tokenizer = open_with_tokenizer(model, place)
    ids = evaluation_windows(setting["text"], tokenizer, setting["windows"], setting["length"], setting["seed"])
    return run(opened, ids, chosen, setting["seed"], watch)


def _entry(method: "ProbeMethod", findings: "Sequence[Finding]") -> dict[str, Any]:
    return {"probe": method.card.id, "knobs": method.knobs(), "findings": [asdict(finding) for finding in findings]}


def _tell(method: "ProbeMethod", findings: "Sequence[Finding]") -> None:
    """One row per block, one column per finding; where they do not fit side by side, several tables."""
    told = [finding.measurements for finding in findings if finding.measurements]
    at_once = max(1, show.console().width // COLUMN)
    for start in range(0, len(told), at_once):
        some = told[start : start + at_once]
        columns = {measured[0].name: {m.setting["block"]: m for m in measured} for measured in some}
        blocks = sorted({block for column in columns.values() for block in column})
        rows = [[str(block), *(_cell(column.get(block)) for column in columns.values())] for block in blocks]
        typer.echo()
        show.table(("block", *columns), rows, title=str(method), right=range(len(columns) + 1), wrap=())


def _cell(measured: "Measurement | None") -> str:
    if measured is None:
        return "-"
    return f"{measured.value:.3g}" + (f" ±{measured.stderr:.2g}" if measured.stderr > 0 else "")
