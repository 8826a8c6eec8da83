"""What a goal adds to `trimtab compress` and `trimtab plan`: what was chosen and why, a question before long work, the proof."""

import sys
from collections.abc import Sequence
from json import dumps, loads
from pathlib import Path
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


class Course:
    """Which recipes a command has tried, in `OUT.goal` while it is under way: so the same command, stopped, goes on there.

    Raises `UsageError` if `out` is there and may not be replaced; it may if an earlier process of this very command made it.
    """

    def __init__(self, model: str, recipes: "Sequence[Recipe]", how: dict[str, Any], out: str, overwrite: bool):
        target = Path(out).expanduser().resolve()
        self.out, self.file = target, target.with_name(f"{target.name}.goal")
        self.asked = {"model": model, "recipes": [_plain(recipe.to_dict()) for recipe in recipes]}
        self.asked |= {name: str(how[name]) for name in ("dtype", "packed")}
        before = _read(self.file) if how["resume"] and not how["fresh"] else {}
        is_ours = before.get("asked") == self.asked and self._is_of_one()
        self.tried: int = before["tried"] if is_ours else 0
        self.overwrite = overwrite or is_ours
        if not is_ours:
            from trimtab.host.publish import check_target

            check_target(out, overwrite)

    def _is_of_one(self) -> bool:
        """Whether what is there, if anything, was made by one of the recipes."""
        return not self.out.exists() or _read(self.out / "receipt.json").get("recipe") in self.asked["recipes"]

    def begin(self, number: int) -> None:
        """All recipes before this one were tried."""
        from trimtab.host.publish import sync

        partial = self.file.with_name(f".{self.file.name}.partial")
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(dumps({"asked": self.asked, "tried": number}), encoding="utf-8")
        sync(partial)
        partial.replace(self.file)

    def end(self) -> None:
        self.file.unlink(missing_ok=True)


def _read(file: Path) -> dict[str, Any]:
    """Empty where there is no such file, or none with a JSON object."""
    try:
        found = loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return loads(dumps(value))


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
