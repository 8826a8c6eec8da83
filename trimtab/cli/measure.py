"""`trimtab measure`: what models are worth, side by side, on the same tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.cli import show
from trimtab.cli.compress import folder_size
from trimtab.cli.options import Device, Dtype, Json, Quiet, Verbose, device_of, dtype_of
from trimtab.cli.progress import working
from trimtab.core.errors import UsageError

if TYPE_CHECKING:
    from trimtab.core.progress import Watcher
    from trimtab.core.report import Measurement


def register(app: typer.Typer) -> None:
    app.command("measure")(measure)


def measure(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Folders or hub names.", show_default=False)],
    text: Annotated[str, typer.Option(help="Evaluation text: .txt, .jsonl or asset:boolq.")] = "asset:boolq",
    windows: Annotated[int, typer.Option(min=1, help="How many windows.")] = 24,
    length: Annotated[int, typer.Option(min=2, help="Tokens per window.")] = 512,
    seed: Annotated[int, typer.Option(help="Decides which windows.")] = 0,
    speed: Annotated[bool, typer.Option("--speed/--no-speed", help="Also prefill and decode speed.")] = True,
    dtype: Dtype = None,
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Perplexity, bits per byte, size and speed of one model or several."""
    setting = {"source": text, "windows": windows, "length": length, "seed": seed, "speed": speed}
    found: dict[str, list[Measurement]] = {}
    with working(quiet, verbose) as watch:
        place = {"device": device_of(device), "dtype": dtype_of(dtype)}
        for number, model in enumerate(dict.fromkeys(models)):
            found[model] = _measured(model, place, setting, watch, (number, len(models)))
    if json:
        show.as_json([{"model": model, "measurements": [asdict(m) for m in column]} for model, column in found.items()])
    else:
        show.measurements(found)


def _measured(
    model: str, place: Mapping[str, Any], setting: Mapping[str, Any], watch: "Watcher", number: Sequence[int]
) -> "list[Measurement]":
    from trimtab.core.progress import Progress
    from trimtab.core.report import Measurement
    from trimtab.measure import measure as run
    from trimtab.tensors.products import fast_products

    watch(Progress("measure", number[0], number[1], model))
    opened, tokenizer = open_with_tokenizer(model, place)
    with fast_products():
        found = run(opened, tokenizer, **setting)
    held = folder_size(model)
    return found if held is None else [*found, Measurement("file size", held, 0.0, 1, "bytes")]


def open_with_tokenizer(model: str, place: Mapping[str, Any]) -> tuple[Any, Any]:
    """Raises `UsageError` where there is no tokenizer."""
    from trimtab.host.checkpoint import load
    from trimtab.host.gguf_import import resolve_model

    opened, tokenizer = load(resolve_model(model), **place)
    if tokenizer is None:
        raise UsageError(f"{model} has no tokenizer; copy the tokenizer files of the original model into it")
    return opened, tokenizer
