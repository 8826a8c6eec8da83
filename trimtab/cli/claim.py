"""`trimtab claim`: runs what methods promise, and writes down what came out."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.cli import show
from trimtab.cli.methods import LEDGER, Ledger
from trimtab.cli.options import Json, Quiet, Verbose
from trimtab.cli.progress import working
from trimtab.core.errors import UsageError

if TYPE_CHECKING:
    from trimtab.core.card import Claim
    from trimtab.core.progress import Watcher
    from trimtab.measure.claims import Setting


def register(app: typer.Typer) -> None:
    app.command("claim")(claim)


def claim(
    id: Annotated[str | None, typer.Argument(metavar="[ID]", help="The method.", show_default=False)] = None,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One of its claims.", show_default=False)] = None,
    every: Annotated[bool, typer.Option("--all", help="All claims of all methods.")] = False,
    render: Annotated[bool, typer.Option("--render", help="Only write LEDGER.md anew.")] = False,
    seeds: Annotated[str, typer.Option(help="Comma-separated.")] = "0,1,2",
    model: Annotated[str, typer.Option(help="On which model.")] = "asset:smollm2-135m",
    windows: Annotated[int, typer.Option(min=1, help="Evaluation windows.")] = 24,
    length: Annotated[int, typer.Option(min=2, help="Tokens per window, of both texts.")] = 512,
    text: Annotated[str, typer.Option(help="Evaluation text.")] = "asset:boolq",
    tokens: Annotated[int, typer.Option(min=2, help="Calibration tokens.")] = 8192,
    calibration_text: Annotated[str, typer.Option(help="Calibration text.")] = "asset:squad-drop",
    ledger: Ledger = LEDGER,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Run the claims of a method on a model, several seeds, paired; append the results to the ledger."""
    with working(quiet, verbose) as watch:
        if render:
            _render(ledger)
            return
        from trimtab.core.recipe import Calibration
        from trimtab.measure.claims import Setting

        setting = Setting(model, text, windows, length, Calibration(calibration_text, tokens, length), _seeds(seeds))
        lines = [_run(method, one, setting, ledger, watch) for method, one in _wanted(id, name, every)]
    if json:
        show.as_json(lines)
    else:
        for line in lines:
            typer.echo(show.claim_line(line))


def _wanted(id: str | None, name: str | None, every: bool) -> "list[tuple[str, Claim]]":
    from trimtab.core.registry import get, ids

    if every == (id is not None):
        raise UsageError("give the id of a method, or --all")
    if id is None:
        return [(method, one) for method in ids() for one in get(method).card.claims]
    if not get(id).card.claims:
        raise UsageError(f"{id} makes no claims")
    if name is None:
        return [(id, one) for one in get(id).card.claims]
    from trimtab.measure.claims import find_claim

    return [(id, find_claim(id, name))]


def _run(method: str, one: "Claim", setting: "Setting", ledger: Path, watch: "Watcher") -> dict[str, Any]:
    from trimtab.measure.claims import append, run_claim

    line = run_claim(method, one, setting, watch)
    # At once, not at the end: what follows may take hours and may be interrupted.
    append(line, ledger)
    _render(ledger)
    return line


def _render(ledger: Path) -> None:
    """LEDGER.md beside the ledger, replaced in one step."""
    from trimtab.measure.claims import render

    page = ledger.with_name("LEDGER.md")
    page.parent.mkdir(parents=True, exist_ok=True)
    partial = page.with_name(f".{page.name}.{os.getpid()}")
    partial.write_text(render(ledger), encoding="utf-8")
    partial.replace(page)


def _seeds(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"--seeds must be whole numbers with commas between them, got {text!r}") from error
