"""`trimtab claims`: what methods promise is run, listed and written down. `trimtab claim ID` is the short form for one method."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.cli import complete, show
from trimtab.cli.manners import complain
from trimtab.cli.methods import LEDGER, Ledger
from trimtab.cli.options import Json, Quiet, Verbose
from trimtab.cli.progress import working
from trimtab.core.errors import TrimtabError, UsageError

if TYPE_CHECKING:
    from trimtab.core.card import Claim
    from trimtab.core.progress import Watcher
    from trimtab.measure.programme import Outcome, Task
    from trimtab.measure.sides import Setting

QUICK_LEDGER = "quick.jsonl"

Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="METHOD or METHOD/CLAIM.", show_default=False)]
Room = Annotated[str | None, typer.Option(help="Only the methods of this room.")]
Seeds = Annotated[str | None, typer.Option(help="Comma-separated. (default: 0,1,2)")]
Model = Annotated[str | None, typer.Option(help="On which model. (default: asset:smollm2-135m, or what the claim names)")]
Windows = Annotated[int | None, typer.Option(min=1, help="Evaluation windows. (default: 24)")]
Length = Annotated[int | None, typer.Option(min=2, help="Tokens per window, of both texts. (default: 512)")]
Text = Annotated[str | None, typer.Option(help="Evaluation text. (default: asset:boolq, or what the claim names)")]
Tokens = Annotated[int | None, typer.Option(min=2, help="Calibration tokens. (default: 8192, probes 2048)")]
CalibrationText = Annotated[str | None, typer.Option(help="Calibration text. (default: asset:squad-drop)")]

claims = typer.Typer(help="Run, list and write down what methods promise.")


def register(app: typer.Typer) -> None:
    app.command("claim")(claim)
    app.add_typer(claims, name="claims")


@claims.callback(invoke_without_command=True)
def _claims(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


@dataclass(frozen=True)
class Asked:
    """What somebody gave by name; None where the standard or the claim decides."""

    model: str | None
    text: str | None
    windows: int | None
    length: int | None
    seeds: str | None
    tokens: int | None
    calibration_text: str | None

    def setting(self, claim: "Claim", standard: "Setting") -> "Setting":
        from trimtab.measure.claims import setting_for

        shown = _given(text=self.calibration_text, tokens=self.tokens, length=self.length)
        own = _given(model=self.model, text=self.text, windows=self.windows, length=self.length, seeds=_seeds(self.seeds))
        return setting_for(claim, standard, shown, **own)


@claims.command("run")
def run(
    ids: Ids = None,
    room: Room = None,
    missing: Annotated[bool, typer.Option("--missing", help="Only what has no result by the present code.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Little text, one seed; kept apart in quick.jsonl.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Claims at a time, each on one core and in some 2 GB.")] = 1,
    seeds: Seeds = None,
    model: Model = None,
    windows: Windows = None,
    length: Length = None,
    text: Text = None,
    tokens: Tokens = None,
    calibration_text: CalibrationText = None,
    ledger: Ledger = LEDGER,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Run claims, each in a process of its own, and append the results to the ledger. What was measured once is kept."""
    asked = Asked(model, text, windows, length, seeds, tokens, calibration_text)
    book = Book(ledger.with_name(QUICK_LEDGER) if quick else ledger, quick)
    with working(quiet, verbose) as watch:
        tasks = _tasks(ids or (), room, asked, book, missing)
        _run(tasks, book, jobs, watch, verbose)
    _tell(tasks, book, json)


@claims.command("check")
def check(
    ids: Ids = None,
    room: Room = None,
    jobs: Annotated[int, typer.Option(min=1, help="Claims at a time, each on one core and in some 2 GB.")] = 1,
    ledger: Ledger = LEDGER,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Carry results of older code over where today's gives both sides of the first seed again, digit for digit."""
    book = Book(ledger)
    with working(quiet, verbose) as watch:
        tasks = _aged(ids or (), room, ledger)
        _run(tasks, book, jobs, watch, verbose)
    _tell(tasks, book, json, "no result of older code")


def claim(
    id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="The method.", show_default=False, autocompletion=complete.method)
    ] = None,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One of its claims.", show_default=False)] = None,
    every: Annotated[bool, typer.Option("--all", help="All claims of all methods.")] = False,
    render: Annotated[bool, typer.Option("--render", help="Only write LEDGER.md anew.")] = False,
    seeds: Seeds = None,
    model: Model = None,
    windows: Windows = None,
    length: Length = None,
    text: Text = None,
    tokens: Tokens = None,
    calibration_text: CalibrationText = None,
    ledger: Ledger = LEDGER,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Run the claims of a method on a model, several seeds, paired: `claims run` for one method."""
    if render:
        write_page(ledger)
        return
    if every == (id is not None):
        raise UsageError("give the id of a method, or --all")
    asked, book = Asked(model, text, windows, length, seeds, tokens, calibration_text), Book(ledger)
    wanted = [] if id is None else [id if name is None else f"{id}/{name}"]
    with working(quiet, verbose) as watch:
        tasks = _tasks(wanted, None, asked, book)
        _run(tasks, book, 1, watch, verbose)
    _tell(tasks, book, json)


@claims.command("list")
def list_(ids: Ids = None, room: Room = None, ledger: Ledger = LEDGER, json: Json = False, verbose: Verbose = False) -> None:
    """Every claim and its status. A result by other code than today's, or of another wording, is called that."""
    from trimtab.measure.claims import age
    from trimtab.measure.claims_page import aged_status, measured_here, status
    from trimtab.measure.ledger import latest, read
    from trimtab.measure.programme import chosen

    results = latest(read(ledger))
    every = [(method, one, results.get((method, one.name))) for method, one in chosen(ids or (), room)]
    if json:
        state = [{"status": status(r), "age": age(c, r) if r else "", "result": r} for _, c, r in every]
        show.as_json([{"method": m, **asdict(c), **said} for (m, c, _), said in zip(every, state, strict=True)])
    else:
        rows = [(f"{m}/{c.name}", aged_status(c, r), measured_here(r), r["date"] if r else "-") for m, c, r in every]
        show.table(("claim", "status", "measured", "date"), rows, wrap=(2,))


@claims.command("render")
def render(ledger: Ledger = LEDGER, verbose: Verbose = False) -> None:
    """Write LEDGER.md anew from the ledger."""
    write_page(ledger)


def write_page(ledger: Path) -> None:
    from trimtab.measure.claims_page import write_page

    write_page(ledger)


@dataclass
class Book:
    """Writes down what it hears, at once: what follows may take hours and may be interrupted."""

    ledger: Path
    quick: bool = False
    outcomes: "list[Outcome]" = field(default_factory=list)

    def hear(self, outcome: "Outcome") -> None:
        from trimtab.measure.ledger import append

        if outcome.line is None:
            complain(f"{outcome.task}: {outcome.error}")
        else:
            if self.quick:
                outcome.line["quick"] = True
            append(outcome.line, self.ledger)
            if not self.quick:
                write_page(self.ledger)
        self.outcomes.append(outcome)

    def lines(self, tasks: "Sequence[Task]") -> list[dict[str, Any]]:
        """Results in the order of the tasks."""
        ranked = sorted(self.outcomes, key=lambda outcome: tasks.index(outcome.task))
        return [outcome.line for outcome in ranked if outcome.line is not None]


def _tasks(ids: Sequence[str], room: str | None, asked: Asked, book: Book, missing: bool = False) -> "list[Task]":
    from trimtab.measure.claims import QUICK
    from trimtab.measure.ledger import latest, read
    from trimtab.measure.programme import Task, chosen, is_missing
    from trimtab.measure.sides import Setting

    standard = QUICK if book.quick else Setting()
    tasks = [Task(method, one, asked.setting(one, standard)) for method, one in chosen(ids, room)]
    results = latest(read(book.ledger))  # also where all are wanted: a damaged ledger is noticed before the work, not after
    return [task for task in tasks if not missing or is_missing(task, results)]


def _aged(ids: Sequence[str], room: str | None, ledger: Path) -> "list[Task]":
    """What older code gave, and what it is to be checked against."""
    from trimtab.measure.claims import OLDER, age, setting_of
    from trimtab.measure.ledger import latest, read
    from trimtab.measure.programme import Task, chosen

    results = latest(read(ledger))
    held = [(method, one, results[method, one.name]) for method, one in chosen(ids, room) if (method, one.name) in results]
    return [Task(method, one, setting_of(line), line) for method, one, line in held if age(one, line) == OLDER]


def _run(tasks: "Sequence[Task]", book: Book, jobs: int, watch: "Watcher", verbose: bool) -> None:
    from trimtab.measure.programme import run_programme

    run_programme(tasks, book.hear, jobs, watch, loud=verbose)


def _tell(tasks: "Sequence[Task]", book: Book, json: bool, nothing: str = "nothing is missing") -> None:
    lines = book.lines(tasks)
    if json:
        show.as_json(lines)
    else:
        for line in lines:
            typer.echo(show.claim_line(line))
        if not tasks:
            typer.echo(f"{nothing} in {book.ledger}")
    failed = len(tasks) - len(lines)
    if failed:
        raise TrimtabError(f"{failed} of {len(tasks)} claims could not be run, see above; all others are in {book.ledger}")


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _seeds(text: str | None) -> tuple[int, ...] | None:
    try:
        return None if text is None else tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"--seeds must be whole numbers with commas between them, got {text!r}") from error
