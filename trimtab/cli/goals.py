"""What a goal adds to `trimtab compress` and `trimtab plan`: what was chosen and why, a question before long work, the proof."""

import sys
from typing import TYPE_CHECKING, Any

import typer

from trimtab.cli import show
from trimtab.cli.manners import complain

if TYPE_CHECKING:
    from trimtab.core.recipe import Recipe
    from trimtab.host.goals import Candidate, Choice
    from trimtab.measure.goals import Verdict

LONG = 60.0  # seconds of work before which one is asked


def consider(choice: "Choice") -> None:
    """The measured recipes, what each would take of this model, and which is chosen. On stdout."""
    rows = [
        (
            ("* " if candidate in choice.tried[:1] else "  ") + candidate.name,
            candidate.measured.steps,
            show.size(candidate.files),
            "-" if candidate.running is None else show.size(candidate.running),
            "-" if candidate.speedup is None else f"{candidate.speedup:.1f}x",
            f"{candidate.measured.increase:+.1%}",
        )
        for candidate in choice.considered
    ]
    columns = ("recipe", "steps", "files", "running", "faster", "perplexity, measured")
    show.table(columns, rows, right=(2, 3, 4, 5), wrap=(1,))
    typer.echo(chosen_line(choice))
    typer.echo(f"* chosen. {_measured_where(choice.chosen)}")


def chosen_line(choice: "Choice") -> str:
    """What was chosen, what it is expected to give, and what lies beyond it; one line."""
    own, further = choice.chosen, choice.further()
    beyond = f"; further: {further.name}, {_expected(further)}" if further else "; nothing measured goes further"
    return f"{choice.goal}: {own.name}, {_expected(own)}{beyond}"


def _expected(candidate: "Candidate") -> str:
    told = [f"files of {show.size(candidate.files)}"]
    if candidate.running is not None:
        told.append(f"{show.size(candidate.running)} while it answers")
    if candidate.speedup is not None:
        told.append(f"about {candidate.speedup:.1f}x as fast")
    return ", ".join([*told, f"perplexity {candidate.measured.increase:+.1%} where it was measured"])


def _measured_where(candidate: "Candidate") -> str:
    own = candidate.measured
    return (
        f"Perplexities were measured with {own.model} ({own.windows} windows x {len(own.perplexity)} seeds); "
        "larger models lose less, as a rule"
    )


def agreed(model: str, recipe: "Recipe", how: dict[str, Any], yes: bool, verbose: bool) -> bool:
    """Whether to begin. Asked on a terminal only, with the plan and what it will cost, and only where it will take long."""
    if yes or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return True
    from trimtab.cli.progress import working
    from trimtab.core.progress import Progress
    from trimtab.host.compress import ahead

    with working(False, verbose) as watch:
        watch(Progress("plan", 0, 1, model))
        found = ahead(model, recipe, **how)
    found.check()
    time = "an unknown time" if found.seconds is None else f"about {found.seconds:.0f} seconds"
    complain(f"{recipe}: {time}, about {show.size(found.memory)} of memory", "")
    if found.seconds is not None and found.seconds <= LONG:
        return True
    return typer.confirm("go on?", default=True, err=True)


def tell_verdict(found: "Verdict") -> None:
    judged = {True: "met", False: "not met", None: "not measured"}[found.met]
    typer.echo(f"{found.goal}: {judged}: {found.what}")


def room_left(choice: "Choice", found: "Verdict") -> str | None:
    """Where a goal was met: what would go further, as a command's words."""
    further = choice.further()
    return f"to go further: --recipe {further.name} ({_expected(further)})" if found.met and further else None
