"""`trimtab measure`: what models are worth, side by side, on the same tokens and items."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.cli import show
from trimtab.cli.compress import folder_size
from trimtab.cli.manners import MEASURED, stoppable
from trimtab.cli.options import Device, Dtype, Json, KvBits, Memory, Quiet, Verbose, device_of, dtype_of
from trimtab.cli.progress import working
from trimtab.core.errors import UsageError

if TYPE_CHECKING:
    from trimtab.core.progress import Watcher
    from trimtab.core.report import Measurement
    from trimtab.measure.pieces import Pieces

Models = Annotated[list[str] | None, typer.Argument(metavar="MODEL...", help="Folders or hub names.", show_default=False)]
TASKS = "Comma-separated: arc_easy,sciq; mine.jsonl; lm-eval:mmlu; 'all' of the pack; 'kick'; 'list'."


def register(app: typer.Typer) -> None:
    app.command("measure")(measure)


def measure(
    models: Models = None,
    text: Annotated[str, typer.Option(help="Evaluation text: .txt, .jsonl or asset:boolq.")] = "asset:boolq",
    windows: Annotated[int, typer.Option(min=1, help="How many windows.")] = 24,
    length: Annotated[int, typer.Option(min=2, help="Tokens per window.")] = 512,
    stride: Annotated[
        int | None, typer.Option(min=1, help="Overlapping windows of which the last STRIDE tokens are scored.")
    ] = None,
    tasks: Annotated[str, typer.Option(help=TASKS)] = "",
    limit: Annotated[int, typer.Option(min=0, help="Items of each task, the same for all models; 0: all.")] = 200,
    seed: Annotated[int, typer.Option(help="Decides which windows and items.")] = 0,
    speed: Annotated[bool, typer.Option("--speed/--no-speed", help="Also prefill and decode speed.")] = True,
    samples: Annotated[bool, typer.Option("--samples", help="Also what the models write after a few fixed prompts.")] = False,
    kv_bits: KvBits = 16,
    dtype: Dtype = None,
    device: Device = None,
    memory: Memory = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Perplexity, bits per byte, tasks, size, memory and speed of one model or several."""
    if tasks == "list":
        _list(json)
        return
    if not models:
        raise UsageError("give at least one model, or --tasks list to see the tasks")
    setting = {"source": text, "windows": windows, "length": length, "stride": stride, "seed": seed, "speed": speed}
    found: dict[str, list[Measurement]] = {}
    written: dict[str, list[dict[str, str]]] = {}
    pieces: list[Pieces] = []
    with stoppable(lambda: MEASURED), working(quiet, verbose, resumable=True) as watch:
        place = {"device": device_of(device), "dtype": dtype_of(dtype), "memory": memory}
        setting |= {"tasks": _named(tasks), "limit": limit or None, "kv_bits": kv_bits}
        for number, model in enumerate(dict.fromkeys(models)):
            opened = _opened(model, place, watch, (number, len(models)))
            pieces.append(_pieces(model, place))
            found[model] = _measured(model, opened, setting | {"keep": pieces[-1]}, watch)
            if samples:
                written[model] = _samples(opened)
            del opened  # before the next one is opened
    for own in pieces:
        own.forget()
    _show(found, written, json)


def _list(json: bool) -> None:
    from trimtab.measure.tasks import about

    if json:
        show.as_json(about())
    else:
        show.table(("task", "what it asks"), sorted(about().items()))


def _named(tasks: str) -> tuple[str, ...]:
    """Raises `UsageError` at once for a task that there is not, before a model is opened."""
    from trimtab.data.evidence import ARMS
    from trimtab.data.pack import SOURCES
    from trimtab.measure.tasks import known

    several = {"all": list(SOURCES), "kick": list(ARMS)}
    asked = [name.strip() for name in tasks.split(",") if name.strip()]
    named = dict.fromkeys(task for name in asked for task in several.get(name, [name]))
    for name in named:
        known(name)
    return tuple(named)


def _opened(model: str, place: Mapping[str, Any], watch: "Watcher", number: Sequence[int]) -> tuple[Any, Any]:
    from trimtab.core.progress import Progress

    watch(Progress("measure", number[0], number[1], model))
    return open_with_tokenizer(model, place)


def _pieces(model: str, place: Mapping[str, Any]) -> "Pieces":
    """What is kept of a model's measurement until all of them are told."""
    from trimtab.host.checkpoint import local_folder
    from trimtab.host.model_assets import resolve_model
    from trimtab.measure.pieces import Pieces, depends_on

    return Pieces(depends_on(local_folder(resolve_model(model)), **place))


def _measured(model: str, opened: tuple[Any, Any], setting: Mapping[str, Any], watch: "Watcher") -> "list[Measurement]":
    from trimtab.core.report import Measurement
    from trimtab.measure import measure as run
    from trimtab.tensors.products import fast_products

    with fast_products():
        found = run(*opened, **setting, watch=watch)
    held = folder_size(model)
    return found if held is None else [*found, Measurement("file size", held, 0.0, 1, "bytes")]


def _samples(opened: tuple[Any, Any]) -> list[dict[str, str]]:
    from trimtab.measure.text import samples

    return samples(*opened)


def _show(found: "Mapping[str, list[Measurement]]", written: Mapping[str, list[dict[str, str]]], json: bool) -> None:
    if json:
        show.as_json([_column(model, column, written.get(model)) for model, column in found.items()])
        return
    show.measurements(found)
    for model, said in written.items():
        typer.echo(f"\n{model}")
        for sample in said:
            typer.echo(f"  {sample['prompt']!r} -> {sample['text']!r}")


def _column(model: str, column: "list[Measurement]", said: list[dict[str, str]] | None) -> dict[str, Any]:
    made: dict[str, Any] = {"model": model, "measurements": [asdict(m) for m in column]}
    return made if said is None else made | {"samples": said}


def open_with_tokenizer(model: str, place: Mapping[str, Any]) -> tuple[Any, Any]:
    """Raises `UsageError` where there is no tokenizer."""
    from trimtab.host.opening import load

    opened, tokenizer = load(model, **place)
    if tokenizer is None:
        raise UsageError(f"{model} has no tokenizer; copy the tokenizer files of the original model into it")
    return opened, tokenizer
