"""`trimtab compare`: what smaller models cost against a base, on the same tokens and items, with intervals."""

import json as plain_json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trimtab.cli import show, verdicts
from trimtab.cli.manners import MEASURED, stoppable
from trimtab.cli.options import Device, Dtype, Json, Quiet, Style, Verbose, device_of, dtype_of
from trimtab.cli.progress import working
from trimtab.core.errors import UsageError

if TYPE_CHECKING:
    from trimtab.measure.compare import Comparison

TEXT = "asset:boolq"
Base = Annotated[str, typer.Argument(metavar="BASE", help="What the others are compared with.", show_default=False)]
Others = Annotated[list[str], typer.Argument(metavar="OTHER...", help="Folders or hub names.", show_default=False)]


def register(app: typer.Typer) -> None:
    app.command("compare")(compare)


def compare(
    base: Base,
    others: Others,
    text: Annotated[
        list[str] | None, typer.Option(help=f"Text: .txt, .jsonl or {TEXT} (default); may be repeated, each is a domain.")
    ] = None,
    windows: Annotated[int, typer.Option(min=2, help="How many windows of each text.")] = 24,
    length: Annotated[int, typer.Option(min=2, help="Tokens per window.")] = 512,
    tasks: Annotated[str, typer.Option(help="Comma-separated, such as arc_easy,sciq,piqa.")] = "",
    limit: Annotated[int, typer.Option(min=0, help="Items of each task, the same for all models; 0: all.")] = 200,
    seed: Annotated[int, typer.Option(help="Decides which windows and items.")] = 0,
    samples: Annotated[bool, typer.Option("--samples/--no-samples", help="What the models write after a few prompts.")] = True,
    across_tokenizers: Annotated[
        bool, typer.Option("--across-tokenizers", help="Also models with other tokenizers, by bits per byte and tasks.")
    ] = False,
    out: Annotated[str | None, typer.Option(metavar="FILE", help="Also write the JSON document to this file.")] = None,
    dtype: Dtype = None,
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
    progress: Style = "auto",
    verbose: Verbose = False,
) -> None:
    """Compare models with a base: perplexity, KL, tasks and flips, paired, with 95 % intervals."""
    if out is not None:
        _check_writable(Path(out))
    named = tuple(name.strip() for name in tasks.split(",") if name.strip())
    with stoppable(lambda: MEASURED), working(quiet, verbose, progress, resumable=True) as watch:
        from trimtab.measure.compare import compare as run
        from trimtab.measure.setting import Setting

        dtype_of(dtype)
        device_of(device)
        texts = tuple(text or [TEXT])
        setting = Setting(texts, windows, length, named, limit or None, seed, samples, dtype, device, across_tokenizers)
        found = run(base, others, setting, watch)
    if out is not None:
        _write(found, Path(out))
    if json:
        show.as_json(found.json())
        return
    verdicts.comparison(found)
    if out is not None:
        typer.echo(f"written: {out}")


def _check_writable(file: Path) -> None:
    """Now, and not after an hour of work."""
    if file.is_dir() or not file.parent.is_dir() or not os.access(file.parent, os.W_OK):
        raise UsageError(f"cannot write {file}; name a file in a folder that exists and can be written")


def _write(found: "Comparison", file: Path) -> None:
    """Replaced in one step."""
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    partial.write_text(plain_json.dumps(found.json(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(file)
