"""`trimtab grow`: small models of our own, trained once, for what needs weights that nobody has rounded."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.cli import show
from trimtab.cli.options import Json, Quiet, Verbose
from trimtab.cli.progress import spell, working
from trimtab.core.errors import UsageError
from trimtab.core.progress import Progress

if TYPE_CHECKING:
    from pathlib import Path

    from trimtab.core.report import Measurement
    from trimtab.host.homegrown import Named

TEXT, WINDOWS = "asset:boolq", 24  # what these models are not trained on


def register(app: typer.Typer) -> None:
    app.command("grow")(grow)


def grow(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One of --list.", show_default=False)] = None,
    listed: Annotated[bool, typer.Option("--list", help="What can be grown, and what is there already.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train a small model of our own from scratch, once; afterwards asset:NAME stands for it everywhere.

    Stopped with Ctrl-C, the same command goes on from the last checkpoint.
    """
    if listed:
        _list(json)
        return
    if name is None:
        raise UsageError("say which model to grow, e.g. `trimtab grow own-2m`; `trimtab grow --list` shows all")
    with working(quiet, verbose) as watch:
        watch(Progress("load", 0, 1, name))
        from trimtab.host.homegrown import grow as made
        from trimtab.host.homegrown import named
        from trimtab.host.model_assets import PREFIX

        wanted = named(name.removeprefix(PREFIX))
        folder = made(wanted, watch)
        watch(Progress("measure", 0, 1, TEXT))
        found = _measured(wanted, folder)
    said = {"model": PREFIX + wanted.name, "folder": str(folder), "parameters": wanted.grown.parameters}
    _tell(said | _recorded(folder), found, json)


def _measured(wanted: "Named", folder: "Path") -> "list[Measurement]":
    """On windows as long as those that it was trained on."""
    from trimtab.host.checkpoint import load
    from trimtab.measure import measure
    from trimtab.tensors.products import fast_products

    model, tokenizer = load(folder)
    assert tokenizer is not None
    with fast_products():
        found = measure(model, tokenizer, TEXT, WINDOWS, wanted.grown.course.length, speed=False)
    return [m for m in found if m.name in ("perplexity", "bits per byte")]


def _recorded(folder: "Path") -> dict[str, Any]:
    from trimtab.host.source import recorded

    known = recorded(folder)
    return {name: known[name] for name in ("note", "tokens", "training_loss", "seconds", "threads")}


def _tell(said: dict[str, Any], found: "list[Measurement]", json: bool) -> None:
    if json:
        show.as_json({**said, "measurements": [asdict(m) for m in found]})
        return
    spelled = {
        **said,
        "parameters": f"{said['parameters']:,}",
        "tokens": f"{said['tokens']:,}",
        "training_loss": f"{said['training_loss']:.3f} nats per token, mean of the last steps",
        "seconds": spell(said["seconds"]),
        "threads": str(said["threads"]),
        **{m.name: f"{m.value:.5g} ± {m.stderr:.2g} {m.unit} on {TEXT} (n = {m.n})" for m in found},
    }
    show.table(("what", "value"), [(name.replace("_", " "), value) for name, value in spelled.items()])


def _list(json: bool) -> None:
    from trimtab.host.homegrown import family

    entries = [_entry(wanted) for wanted in family()]
    if json:
        show.as_json(entries)
        return
    rows = [(e["model"], f"{e['parameters']:,}", f"{e['tokens']:,}", e["folder"] or _duration(e["minutes"])) for e in entries]
    show.table(("model", "parameters", "tokens", "where, or how long it takes"), rows, right=(1, 2))


def _duration(minutes: float) -> str:
    return f"about {minutes:.1f} minutes" if minutes else "seconds"


def _entry(wanted: "Named") -> dict[str, Any]:
    from trimtab.host.model_assets import PREFIX

    grown, there = wanted.grown, wanted.place.is_dir()
    return {
        "model": PREFIX + wanted.name,
        "parameters": grown.parameters,
        "tokens": grown.course.tokens,
        "minutes": wanted.minutes,
        "folder": str(wanted.place) if there else None,
    }
