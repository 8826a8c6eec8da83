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

    from trimtab.core.progress import Watcher
    from trimtab.core.report import Measurement
    from trimtab.host.homegrown import Named

TEXT, WINDOWS = "asset:boolq", 24  # what these models are not trained on


def register(app: typer.Typer) -> None:
    app.command("grow")(grow)


def grow(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One of --list.", show_default=False)] = None,
    listed: Annotated[bool, typer.Option("--list", help="What can be grown, and what is there already.")] = False,
    method: Annotated[
        str | None,
        typer.Option(help="What stands for its matrices while it is trained, e.g. 'sltrain(keep=0.3)'.", show_default=False),
    ] = None,
    out: Annotated[
        str | None, typer.Option("--out", "-o", help="With --method: the folder to write.", show_default=False)
    ] = None,
    steps: Annotated[int | None, typer.Option(help="With --method: other than usual.", show_default=False)] = None,
    learning_rate: Annotated[float | None, typer.Option(help="With --method: the highest one.", show_default=False)] = None,
    seed: Annotated[int | None, typer.Option(help="With --method: of all randomness.", show_default=False)] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace what is at --out.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train a small model of our own from scratch, once; afterwards asset:NAME stands for it everywhere.

    With --method its matrices are parameterized otherwise, and the result is an ordinary folder. Stopped with Ctrl-C, the same
    command goes on from the last checkpoint.
    """
    if listed:
        _list(json)
        return
    if name is None:
        raise UsageError("say which model to grow, e.g. `trimtab grow own-2m`; `trimtab grow --list` shows all")
    own = {"steps": steps, "learning_rate": learning_rate, "seed": seed}
    _check_together(method, out, [option for option, value in own.items() if value is not None] + ["overwrite"] * overwrite)
    if method is not None and out is not None:
        with working(quiet, verbose) as watch:
            said, found = _grown_with(name, method, out, own | {"overwrite": overwrite}, watch)
        _tell(said, found, json)
        return
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


def _check_together(method: str | None, out: str | None, options: list[str]) -> None:
    """Raises `UsageError` where half of a request is missing."""
    if (method is None) != (out is None):
        raise UsageError("--method and --out belong together, e.g. trimtab grow own-2m --method 'low_rank(keep=0.5)' --out OUT")
    if method is None and options:
        raise UsageError(f"--{options[0].replace('_', '-')} goes with --method; without it a name stands for one model only")


def _grown_with(
    name: str, method: str, out: str, own: dict[str, Any], watch: "Watcher"
) -> "tuple[dict[str, Any], list[Measurement]]":
    """What is to be told of a model with another parameterization."""
    watch(Progress("load", 0, 1, name))
    from trimtab.host.homegrown import named
    from trimtab.host.model_assets import PREFIX
    from trimtab.host.pretrain import RECENT
    from trimtab.host.scratch import grow_with

    wanted = named(name.removeprefix(PREFIX))
    done = grow_with(wanted, method, out, watch=watch, **own)
    watch(Progress("measure", 0, 1, TEXT))
    last = done.tuned.losses[-RECENT:]
    said = {"model": name, "method": done.method, "folder": str(done.folder), "parameters": done.parameters}
    said |= {"with_gradients_at_first": done.trained, "tokens": done.tokens, "training_loss": sum(last) / len(last)}
    return said | {"seconds": done.tuned.seconds, "peak_memory": done.peak_memory}, _measured(wanted, done.folder)


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
        **{name: f"{said[name]:,}" for name in ("threads", "with_gradients_at_first") if name in said},
        **({"peak_memory": show.size(said["peak_memory"])} if "peak_memory" in said else {}),
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
