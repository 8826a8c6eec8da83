"""`trimtab report`: what compression cost, as a page to read and as Markdown for the model card."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.cli import show
from trimtab.cli.options import Json, Quiet, Style, Verbose
from trimtab.cli.progress import working
from trimtab.core.errors import UsageError
from trimtab.core.progress import Progress, Watcher

if TYPE_CHECKING:
    from trimtab.core.report import Measurement

READ, PROMPT = 512, 32  # tokens that prefill and decode speed are measured with; what they are decides nothing
REPEATS = 5


@dataclass(frozen=True)
class Asked:
    """How a comparison is to be made, where there is none yet."""

    tasks: tuple[str, ...]
    limit: int
    speed: bool
    quiet: bool
    verbose: bool
    progress: str


def register(app: typer.Typer) -> None:
    app.command("report")(report)


def report(
    folders: Annotated[list[Path] | None, typer.Argument(metavar="DIR...", help="Model folders.", show_default=False)] = None,
    base: Annotated[str | None, typer.Option(metavar="MODEL", help="Compare with it. (default: what the receipts name)")] = None,
    comparison: Annotated[Path | None, typer.Option(metavar="FILE", help="Instead of DIR: from trimtab compare --out.")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write one self-contained HTML file.")] = None,
    md: Annotated[Path | None, typer.Option(metavar="FILE", help="Write Markdown, for a model card.")] = None,
    tasks: Annotated[str, typer.Option(help="Tasks to compare on, such as arc_easy,sciq,piqa.")] = "",
    limit: Annotated[int, typer.Option(min=0, help="Items of each task, the same for all models; 0: all.")] = 200,
    speed: Annotated[bool, typer.Option("--speed/--no-speed", help="Also prefill and decode speed, measured anew.")] = True,
    json: Json = False,
    quiet: Quiet = False,
    progress: Style = "auto",
    verbose: Verbose = False,
) -> None:
    """Write a report on model folders: sizes, losses, tasks, layers, recipe and receipt, each number with its interval.

    Models are compared with their base on the same text and tasks; what was compared once is not measured again.
    """
    _check_words(folders or [], base, comparison, tasks)
    if html is None and md is None and not json:
        raise UsageError("nothing to write; give --html FILE, --md FILE or --json")
    from trimtab.report import markdown, parse, render, writing
    from trimtab.report.reading import read_json

    kinds = ((html, (".html", ".htm"), render), (md, (".md",), markdown))
    targets = [(writing.check_target(path, *endings), make) for path, endings, make in kinds if path is not None]
    names = tuple(name.strip() for name in tasks.split(",") if name.strip())
    asked = Asked(names, limit, speed, quiet, verbose, progress)
    fields = read_json(comparison).fields if comparison else _document(folders or [], base, asked)
    found = parse(fields, str(comparison or "the comparison"))
    written = {str(path): writing.write(path, make(found)) for path, make in targets}
    if json:
        show.as_json({"written": written, "comparison": fields})
        return
    typer.echo(f"compared with {found.base.name}" if found.base else "compared with nothing; for that give --base MODEL")
    for path, size in written.items():
        typer.echo(f"written: {path} ({show.size(size)})")


def _check_words(folders: Sequence[Path], base: str | None, comparison: Path | None, tasks: str) -> None:
    if comparison is None and not folders:
        raise UsageError("give model folders, or --comparison FILE")
    if comparison is not None and (folders or base or tasks):
        raise UsageError("--comparison FILE already says which models and tasks; give it alone, or give folders")


def _document(folders: Sequence[Path], base: str | None, asked: Asked) -> dict[str, Any]:
    """Compared with the base; where none is known, what the folders say for themselves."""
    from trimtab.report import from_folders
    from trimtab.report.folders import bases

    alone = from_folders(folders)  # also where they will be compared: a damaged receipt is better noticed before the work
    named = [base] if base else bases(model["receipt"] for model in alone["others"])
    if len(named) != 1 or not (base or _is_here(named[0])):
        return alone
    return _compared(named[0], [str(folder) for folder in folders], asked)


def _is_here(name: str) -> bool:
    """Whether a model that a receipt names can be opened without asking the network: a folder, an asset, or in the cache."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if name.startswith("asset:") or Path(name).is_dir():
        return True
    try:
        return isinstance(try_to_load_from_cache(name, "config.json"), str)
    except HFValidationError:
        return False


def _compared(base: str, others: Sequence[str], asked: Asked) -> dict[str, Any]:
    with working(asked.quiet, asked.verbose, asked.progress) as watch:
        from trimtab.measure.compare import compare
        from trimtab.measure.setting import Setting

        fields = compare(base, others, Setting(tasks=asked.tasks, limit=asked.limit or None), watch).json()
        models = [fields["base"], *fields["others"]] if asked.speed else []
        for model, measured in zip(models, _speeds([model["folder"] for model in models], watch), strict=True):
            model["measurements"] += [asdict(one) for one in measured]
    return fields


def _speeds(folders: Sequence[str], watch: Watcher) -> "list[list[Measurement]]":
    """Prefill and decode of each, all by one engine, or they could not be set side by side: the native one if it covers all."""
    from trimtab.kernels.module import available
    from trimtab.runtime import Unsupported

    def by(engine: "Callable[[str], list[Measurement]]") -> "list[list[Measurement]]":
        found = []
        for number, folder in enumerate(folders):
            watch(Progress("speed", number, len(folders), folder))
            found.append(engine(folder))
        return found

    try:
        return by(_by_session if available() else _by_generate)
    except Unsupported:
        return by(_by_generate)


def _by_session(folder: str) -> "list[Measurement]":
    from trimtab.measure.bench import time_native
    from trimtab.runtime import Runtime

    runtime = Runtime.open(folder)
    ids = [id % runtime.vocabulary for id in range(READ)]
    timed = time_native(runtime, ids, min(READ, runtime.context // 2), PROMPT, REPEATS)
    return [timed.prefill, timed.decode]


def _by_generate(folder: str) -> "list[Measurement]":
    import torch

    from trimtab.cli.measure import open_with_tokenizer
    from trimtab.measure.speed import decode_speed, prefill_speed
    from trimtab.tensors.products import fast_products

    model, _ = open_with_tokenizer(folder, {})
    ids = torch.arange(READ).remainder(model.config.get_text_config().vocab_size)[None]  # [1, READ]
    with fast_products():
        return [prefill_speed(model, ids, REPEATS), decode_speed(model, ids[:, :PROMPT], repeats=REPEATS)]
