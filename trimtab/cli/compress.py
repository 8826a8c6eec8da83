"""`trimtab compress` and `trimtab plan`: the same words, once carried out and once only looked at."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.cli import complete, show
from trimtab.cli.manners import Interrupted, complain, hushed, stoppable
from trimtab.cli.options import Device, Dtype, Json, Quiet, Style, Verbose, device_of, dtype_of
from trimtab.cli.progress import working
from trimtab.cli.request import Request, Shown, Understood, knob_rows, understand
from trimtab.core.errors import TrimtabError, UsageError
from trimtab.core.progress import Progress

if TYPE_CHECKING:
    from trimtab.core.progress import Watcher
    from trimtab.core.recipe import Recipe
    from trimtab.host.compress import Compressed
    from trimtab.measure.goals import Verdict

COMPRESS = """Compress a model and write the result as an ordinary Hugging Face folder, or nothing at all.

What to do is a recipe file (--recipe), one method with its knobs (--method gptq --bits 3; list them with
--method gptq --help), an expression (--do "wanda(pattern='2:4') -> gptq(bits=4)"), a goal alone (--bits 3, --size 40%,
--speedup 2x, --fit 2GiB, --max-ppl-increase 3%), or a budget and what it is to be spent on (--size 50% --search evopress
--levels "gptq:bits=2,3,4")."""
PLAN = """Say what `trimtab compress` with the same words would do, and how large the result would be. Changes nothing."""
WORDS = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


def register(app: typer.Typer) -> None:
    app.command("compress", help=COMPRESS, context_settings=WORDS)(compress)
    app.command("plan", help=PLAN, context_settings=WORDS)(compress)


def compress(
    ctx: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL", help="Folder, hub name, or asset:smollm2-135m.", show_default=False),
    ] = None,
    out: Annotated[str | None, typer.Option("-o", "--output-dir", metavar="OUT", help="Folder to write.")] = None,
    recipe: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A YAML recipe, or the name of a shipped one.", autocompletion=complete.recipe),
    ] = None,
    method: Annotated[
        str | None, typer.Option(metavar="ID", help="One method; its knobs become options.", autocompletion=complete.method)
    ] = None,
    do: Annotated[str | None, typer.Option(metavar="EXPRESSION", help='Such as "gptq(bits=3)".')] = None,
    search: Annotated[
        str | None, typer.Option(metavar="ID", help="Choose levels: evopress, rd_prune, owl ...", autocompletion=complete.method)
    ] = None,
    levels: Annotated[
        str | None,
        typer.Option(metavar="WHAT", help='With --search: "gptq:bits=2,3,4", "sparsegpt:sparsity=0.5,0.6,0.7", blocks.'),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that judge candidates. (default: one per core)")] = None,
    ray: Annotated[bool, typer.Option("--ray", help="Judge candidates on a Ray cluster.")] = False,
    keep_levels: Annotated[str | None, typer.Option(metavar="DIR", help="Keep what a search makes, for other searches.")] = None,
    only: Annotated[list[str] | None, typer.Option(metavar="PATTERN", help="Only these matrices; may be repeated.")] = None,
    skip: Annotated[list[str] | None, typer.Option(metavar="PATTERN", help="Not these matrices; may be repeated.")] = None,
    text: Annotated[str | None, typer.Option(help="Calibration text: .txt, .jsonl or asset:squad-drop.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Calibration tokens in all.")] = None,
    length: Annotated[int | None, typer.Option(help="Tokens per window.")] = None,
    batch: Annotated[int | None, typer.Option(help="Windows per forward pass.")] = None,
    compute: Annotated[str | None, typer.Option(help="float32, or bfloat16: faster where the processor has it.")] = None,
    seed: Annotated[int | None, typer.Option(help="Decides the windows shown and all randomness.")] = None,
    dtype: Dtype = None,
    device: Device = None,
    packed: Annotated[bool, typer.Option("--packed", help="Store sparse results compactly, not as matrices with zeros.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model folder, once the new one is whole.")] = False,
    resume: Annotated[bool, typer.Option("--resume/--no-resume", help="Keep and take up what a stopped run left.")] = True,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what a stopped run left, and start over.")] = False,
    checkpoint_every: Annotated[float | None, typer.Option(min=0, help="Seconds between commits of the state.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With a goal: do not ask before long work.")] = False,
    judged_on: Annotated[str, typer.Option(metavar="TEXT", help="What --max-ppl-increase is measured on.")] = "asset:boolq",
    offload: Annotated[str | None, typer.Option(metavar="DIR", help="Keep blocks and activations there, not in memory.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only plan.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Say where the time went.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    progress: Style = "auto",
    verbose: Verbose = False,
    help: Annotated[bool, typer.Option("--help", help="Show this message, with --method ID also its knobs.")] = False,
) -> None:
    if help:
        _help(ctx, method or search)
        return
    shown = Shown(text, tokens, length, batch, compute, seed)
    asked = Request(words or (), _options(ctx), recipe, method, do, search, levels, only or (), skip or (), shown, dtype)
    with hushed(verbose):  # a goal opens the model
        what = understand(asked)
    judges = {"workers": workers or _cores(), "ray": ray}
    look = {"out": out, "dtype": dtype_of(dtype), "packed": packed, "offload": offload, **judges}
    if dry_run or ctx.info_name == "plan":
        _plan(what, look, json, quiet, verbose, progress)
        return
    if out is None:
        raise UsageError("no output folder given; write -o OUT, or --dry-run to only look")
    how: dict[str, Any] = {
        "dtype": look["dtype"],
        "device": device_of(device),
        "packed": packed,
        "resume": resume,
        "fresh": fresh,
    }
    if offload is not None:
        how["offload"] = offload
    how |= {**judges, "keep_levels": keep_levels}
    if checkpoint_every is not None:
        how["checkpoint_every"] = checkpoint_every
    before = folder_size(what.model)  # now: the result may replace it
    done, found = _carry_out(what, out, overwrite, how, _Manner(quiet, verbose, progress, yes, judged_on), look)
    if json:
        sizes = {"bytes_before": before, "bytes_after": folder_size(out)}
        goal = {"goal": what.choice.json() | {"verdict": found.json()}} if what.choice and found else {}
        show.as_json({"model": what.model, "output_dir": str(done.folder), **sizes, **goal, "report": done.report.json()})
    else:
        _tell(done, before, folder_size(out), profile)
        _tell_goal(what, found)
    if found is not None and found.met is False:
        raise TrimtabError(
            f"{found.goal} is not met by the best measured recipe: {found.what}; the result is in {out} all the same"
        )


def _cores() -> int:
    """That this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class _Manner:
    """How a run behaves on the way. judged_on: the text that an increase of perplexity is measured on."""

    quiet: bool
    verbose: bool
    style: str
    yes: bool
    judged_on: str


def _carry_out(
    what: Understood, out: str, overwrite: bool, how: dict[str, Any], manner: _Manner, look: dict[str, Any]
) -> "tuple[Compressed, Verdict | None]":
    """The first recipe, and as long as the goal is not met the next one in its place. Raises `Interrupted` at a no."""
    from trimtab.cli import goals

    done, found = None, None
    course = goals.Course(what.model, what.recipes, how, out, overwrite) if len(what.recipes) > 1 else None
    begun, overwrite = (course.tried, course.overwrite) if course else (0, overwrite)
    for number, recipe in enumerate(what.recipes[begun:], begun):
        if what.choice is not None and not manner.quiet:
            complain(f"{found.what}: next, {recipe}" if found else goals.chosen_line(what.choice), "")
        if what.by_goal and not goals.agreed(what.model, recipe, look, manner.yes, manner.verbose):
            raise Interrupted("not begun" if done is None else f"{out} is the last one that was tried")
        with stoppable(lambda: what_is_left(out)), working(manner.quiet, manner.verbose, manner.style, resumable=True) as watch:
            if course:
                course.begin(number)
            done = _run(what.model, recipe, out, watch, overwrite=overwrite or number > 0, **how)
            if what.choice is not None:
                from trimtab.measure.goals import verdict

                found = verdict(what.choice.goal, what.model, out, manner.judged_on, watch)
        if found is None or found.met is not False:
            break
    assert done is not None
    if course:
        course.end()
    return done, found


def _tell_goal(what: Understood, found: "Verdict | None") -> None:
    if what.choice is None or found is None:
        return
    from trimtab.cli import goals

    goals.tell_verdict(found)
    if further := goals.room_left(what.choice, found):
        typer.echo(further)


def what_is_left(out: str | None) -> str:
    """Of work on `out` that was stopped."""
    from trimtab.host.keeping import is_kept, state_of

    if out is not None and is_kept(out):
        return f"stopped; the same command goes on from what is kept in {state_of(out).name}"
    return "interrupted; nothing was left half-written"


def _run(model: str, recipe: "Recipe", out: str, watch: "Watcher", **how: Any) -> "Compressed":
    from trimtab.host.compress import compress

    return compress(model, recipe, out, watch=watch, **how)


def _tell(done: "Compressed", before: float | None, after: float | None, profile: bool) -> None:
    show.report(done.report)
    if profile:
        show.profile(done.report.profile)
    typer.echo(f"size: {show.change(before or done.plan.bytes_before, after)}; peak memory {show.size(done.report.peak_memory)}")
    typer.echo(f"written: {done.folder}")
    typer.echo(f"next: trimtab measure {done.folder}")


def folder_size(model: str) -> float | None:
    """Bytes of the weight files of a model folder; None where the model is no folder of this machine."""
    from trimtab.host.model_assets import resolve_model
    from trimtab.measure.size import file_bytes

    folder = Path(resolve_model(model)).expanduser()
    return file_bytes(folder).value if folder.is_dir() else None


def _plan(what: Understood, how: dict[str, Any], json: bool, quiet: bool, verbose: bool, style: str) -> None:
    with working(quiet, verbose, style) as watch:
        watch(Progress("load", 0, 1, what.model))
        from trimtab.host.compress import ahead

        found = ahead(what.model, what.recipes[0], **how)
    if json:
        show.as_json(found.json() | ({"goal": what.choice.json()} if what.choice else {}))
    else:
        if what.choice is not None:
            from trimtab.cli import goals

            goals.consider(what.choice)
        show.plan(found.plan)
        show.forecast(found)
    found.check()


def _help(ctx: typer.Context, method: str | None) -> None:
    rows = []
    if method is not None:
        from trimtab.core.registry import get

        rows = knob_rows(get(method))
    typer.echo(ctx.get_help())
    if method is not None:
        show.table(("knob", "default", "values", "what it is"), rows, title=f"knobs of {method}")


def _options(ctx: typer.Context) -> list[str]:
    return [name for parameter in ctx.command.params for name in parameter.opts if name.startswith("--")]
