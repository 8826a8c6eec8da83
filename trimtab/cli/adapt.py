"""`trimtab adapt` and `trimtab merge`: a few parameters are trained beside a model, and folded into it where that is exact."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.cli import complete, show
from trimtab.cli.manners import Exit, Interrupted, Terminated
from trimtab.cli.options import Device, Dtype, Json, Quiet, Style, Verbose, device_of, dtype_of
from trimtab.cli.progress import spell, working
from trimtab.cli.request import Request, knob_rows, sort_words
from trimtab.core.errors import UsageError, did_you_mean
from trimtab.host.ranks import is_first

if TYPE_CHECKING:
    from trimtab.core.kinds import Method
    from trimtab.host.adapt import Adapted

WORDS = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
HELP = "Train a few parameters beside a model, dense or compressed, and write them as an adapter. With --method ID its knobs "
HELP += "are options. DATA: .txt, .jsonl (text, prompt and completion, or messages), a folder of these, or asset:gsm8k."
EXAMPLE = "write e.g. trimtab adapt asset:smollm2-135m asset:gsm8k --method lora --rank 16 -o adapter"


def register(app: typer.Typer) -> None:
    app.command("adapt", help=HELP, context_settings=WORDS)(adapt)
    app.command("merge")(merge)


def adapt(
    ctx: typer.Context,
    words: Annotated[list[str] | None, typer.Argument(metavar="MODEL DATA", help="A model, and what it learns.")] = None,
    out: Annotated[str | None, typer.Option("-o", "--output-dir", metavar="OUT", help="Folder to write.")] = None,
    method: Annotated[str, typer.Option(metavar="ID", help="How; `trimtab methods`.", autocompletion=complete.method)] = "lora",
    only: Annotated[list[str] | None, typer.Option(metavar="PATTERN", help="Only these matrices; may be repeated.")] = None,
    skip: Annotated[list[str] | None, typer.Option(metavar="PATTERN", help="Not these matrices; may be repeated.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="How many steps. (default: --epochs)")] = None,
    epochs: Annotated[float, typer.Option(min=0, help="Passes over the data.")] = 1.0,
    batch: Annotated[int, typer.Option(min=1, help="Rows per step.")] = 8,
    at_once: Annotated[int, typer.Option(min=1, help="Rows per forward pass; the others of a step are accumulated.")] = 1,
    length: Annotated[int, typer.Option(min=2, help="Tokens per row at most; what is longer is cut, and counted.")] = 256,
    learning_rate: Annotated[
        float | None, typer.Option(min=0, help="The highest; it rises at first and falls to zero. (default: the method's)")
    ] = None,
    decay: Annotated[float, typer.Option(min=0, help="Weight decay.")] = 0.0,
    validation: Annotated[str, typer.Option(help="A share of DATA, or other data of the same kind.")] = "0.05",
    general: Annotated[str, typer.Option(help="Text that is not learned, for methods that look at some.")] = "asset:squad-drop",
    patience: Annotated[int, typer.Option(min=0, help="Stop after so many validations without a better one; 0: never.")] = 0,
    every: Annotated[int | None, typer.Option(min=1, help="Steps between validations. (default: a tenth of all)")] = None,
    private: Annotated[float | None, typer.Option(metavar="EPSILON", help="The most that is told of any row of DATA.")] = None,
    delta: Annotated[float, typer.Option(help="With --private: the chance that more is told.")] = 1e-5,
    bound: Annotated[float, typer.Option(help="With --private: of the gradient of a row, matrix by matrix.")] = 0.1,
    steered: Annotated[int, typer.Option(min=0, help="With --private: steps between moves of an agent; 0: none.")] = 0,
    recompute: Annotated[bool, typer.Option("--recompute", help="Compute blocks twice, to hold one in memory.")] = False,
    compute: Annotated[str, typer.Option(help="float32, or bfloat16: faster where the processor has it.")] = "float32",
    seed: Annotated[int, typer.Option(help="Decides the order of the rows and all randomness.")] = 0,
    dtype: Dtype = None,
    device: Device = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a folder, once the new one is whole.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    progress: Style = "auto",
    verbose: Verbose = False,
    help: Annotated[bool, typer.Option("--help", help="Show this message, with --method ID also its knobs.")] = False,
) -> None:
    if help:
        _help(ctx, method)
        return
    model, data, made = _understood(ctx, words or [], method)
    if out is None:
        raise UsageError(f"no output folder given; {EXAMPLE}")
    asked: dict[str, Any] = {
        **{"steps": steps, "epochs": epochs, "batch": batch, "length": length, "decay": decay},
        **({} if learning_rate is None else {"learning_rate": learning_rate}),
        **{
            "validation": _share(validation) if private is None or _is_given(ctx, "validation") else 0.0,
            "general": general,
            "seed": seed,
            "compute": compute,
            "only": tuple(only or ()),
            "skip": tuple(skip or ()),
        },
        **{"dtype": dtype_of(dtype), "device": device_of(device), "overwrite": overwrite},
    }
    try:
        with working(quiet or not is_first(), verbose, progress, resumable=True) as watch:
            from trimtab.host.adapt import adapt as run
            from trimtab.host.adapt import as_trained
            from trimtab.host.private import Privacy
            from trimtab.host.trainer import Pace

            pace = Pace(at_once, every, patience, recompute)
            privacy = None if private is None else Privacy(None, bound, delta, private, steered)
            done = run(model, data, as_trained(made), out, pace=pace, privacy=privacy, watch=watch, **asked)
    except KeyboardInterrupt as error:
        code = Exit.RESUMABLE if isinstance(error, Terminated) else Exit.INTERRUPTED
        goes_on = "begins anew" if private is not None else "goes on from the last validation"
        raise Interrupted(f"stopped; the same command {goes_on}", code) from error
    if is_first():
        show.as_json(done.json()) if json else _tell(done, model)


def merge(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The model that the adapter was trained beside.")],
    adapter: Annotated[list[str], typer.Argument(metavar="ADAPTER...", help="Adapter folders, ours or peft's; they add up.")],
    out: Annotated[str, typer.Option("-o", "--output-dir", metavar="OUT", help="Folder to write.")],
    any_base: Annotated[bool, typer.Option("--any-base", help="Also into another model of the same shapes.")] = False,
    dtype: Dtype = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model folder, once the new one is whole.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Fold adapters into their model, where that is exact; compressed matrices become sums."""
    with working(quiet, verbose) as watch:
        from trimtab.host.adapt import merge as run

        changed = run(base, adapter, out, any_base=any_base, dtype=dtype_of(dtype), overwrite=overwrite, watch=watch)
    if json:
        show.as_json({"output_dir": out, "changed": changed})
    else:
        typer.echo(f"written: {out}, {len(changed)} matrices changed")
        typer.echo(f"next: trimtab measure {out}")


def _understood(ctx: typer.Context, words: list[str], id: str) -> "tuple[str, str, Method]":
    from trimtab.core.expression import make

    options = [name for parameter in ctx.command.params for name in parameter.opts if name.startswith("--")]
    named, values = sort_words(Request(words, options, method=id))
    if len(named) != 2:
        raise UsageError(f"give a model and what it shall learn, got {' and '.join(named) or 'neither'}; {EXAMPLE}")
    return named[0], named[1], make(id, values)


def _is_given(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _share(given: str) -> str | float:
    try:
        share = float(given)
    except ValueError:
        return given
    if not 0 <= share < 1:
        raise UsageError(f"--validation is a share from 0 to less than 1, or data; got {given}")
    return share


def _tell(done: "Adapted", model: str) -> None:
    tuned = done.tuned
    last = tuned.losses[-10:]
    said = {
        "method": done.method,
        "trained parameters": f"{done.trained_parameters:,}",
        "rows": f"{done.rows} to train on, {done.validation_rows} to validate on; {done.truncated} cut, {done.dropped} left out",
        "steps": f"{len(tuned.losses)}{', stopped early' if tuned.stopped else ''}, in {spell(tuned.seconds)}",
    }
    if done.spent:
        said["steps"] = f"{done.spent.steps}, in {spell(tuned.seconds)}"
        said["private"] = f"epsilon {done.spent.epsilon:.3f}, delta {done.spent.delta:g}, noise {done.spent.noise:.3f}"
    else:
        said["loss"] = (
            f"{tuned.losses[0]:.4f} -> {sum(last) / len(last):.4f} nats per learned token, mean of the last {len(last)}"
        )
    said["peak memory"] = show.size(done.peak_memory)
    if tuned.validations:
        best = dict(tuned.validations)[tuned.best]
        said["validation"] = f"{tuned.validations[0][1]:.4f} -> {best:.4f} after step {tuned.best}, the one that was kept"
    show.table(("what", "value"), list(said.items()))
    typer.echo(f"written: {done.folder}")
    typer.echo(f"next: trimtab merge {model} {done.folder} -o MERGED")


def _help(ctx: typer.Context, method: str) -> None:
    from trimtab.core.registry import get, ids

    if method not in ids():
        raise UsageError(f"there is no method {method!r:.80}{did_you_mean(method, ids())}")
    typer.echo(ctx.get_help())
    show.table(("knob", "default", "values", "what it is"), knob_rows(get(method)), title=f"knobs of {method}")
