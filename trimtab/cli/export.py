"""`trimtab export`: the same model in the format of another program, exact tensor by tensor or not at all."""

from typing import TYPE_CHECKING, Annotated

import typer

from trimtab.cli import complete, show
from trimtab.cli.compress import what_is_left
from trimtab.cli.manners import stoppable
from trimtab.cli.options import Json, Model, Quiet, Verbose
from trimtab.cli.progress import working
from trimtab.core.errors import UsageError

if TYPE_CHECKING:
    from trimtab.host.export.contents import Entry
    from trimtab.host.export.job import Exported

TO = "plain (transformers), padded (the same, all layers as wide as the widest), gguf (llama.cpp), "
TO += "compressed-tensors (transformers, vLLM), gptq or awq (GPTQModel, vLLM), peft (base and adapter), onnx (ONNX Runtime)."
REQUANTIZE = "What a matrix may be rounded to that the format cannot hold: plain, peft: bfloat16, float16; gguf: f32, bf16, f16, "
REQUANTIZE += "q8_0, q5_1, q5_0, q4_1, q4_0; compressed-tensors, gptq, awq: float32, bfloat16, float16. (default: refuse)"


def register(app: typer.Typer) -> None:
    app.command("export")(export)


def export(
    model: Model,
    to: Annotated[str, typer.Option(metavar="FORMAT", help=TO, show_default=False, autocompletion=complete.target)],
    out: Annotated[str | None, typer.Option("-o", "--output-dir", metavar="OUT", help="Folder to write.")] = None,
    requantize: Annotated[str | None, typer.Option(metavar="FORMAT", help=REQUANTIZE)] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model folder, once the new one is whole.")] = False,
    resume: Annotated[bool, typer.Option("--resume/--no-resume", help="Keep and take up what a stopped run left.")] = True,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what a stopped run left, and start over.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would become of every tensor.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write a model in the format of another program: every value as it is, or refused with the names of the tensors.

    The export is opened again in a process that knows nothing of trimtab, and its logits are compared, before it is published.
    """
    if out is None and not dry_run:
        raise UsageError("no output folder given; write -o OUT, or --dry-run to only look")
    how = {"requantize": requantize, "overwrite": overwrite, "resume": resume, "fresh": fresh}
    place = None if dry_run else out
    with stoppable(lambda: what_is_left(place)), working(quiet, verbose, resumable=True) as watch:
        from trimtab.host.export.job import export as exported

        done = exported(model, to, place, **how, watch=watch)
    if json:
        show.as_json(done.json())
    else:
        _tell(done)


def _tell(done: "Exported") -> None:
    from trimtab.host.export.contents import summary

    rows = [_row(entry, count) for entry, count in summary(done.entries)]
    show.table(("tensors", "how many", f"in {done.model}", f"in {done.to}", "values", "bytes"), rows, right=(1, 5), wrap=(0, 4))
    for remark in done.remarks:
        typer.echo(f"note: {remark}")
    if done.folder is None:
        return
    for measured in done.measurements:
        typer.echo(str(measured))
    typer.echo(f"opened again by: {done.measurements[0].setting['opened_by']}")
    typer.echo(f"written: {done.folder}")


def _row(entry: "Entry", count: int) -> tuple[str, ...]:
    said: str = entry.verdict
    if entry.error is not None:
        said += f", up to {entry.error:.2g} away"
    if entry.why:
        said += f": {entry.why}"
    return entry.name, str(count), entry.stored, entry.becomes, said, show.size(entry.bytes) if entry.bytes else "-"
