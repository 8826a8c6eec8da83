"""Writes what follows from the code: docs/methods/, docs/choosing.md, and the stub that types `trimtab.methods`.

Cards, docstrings, knobs, the ledger of claims and the benchmark of passes are the only sources, so a page cannot say anything
that the code does not. `--check` writes nothing and fails where a file is not what would be written. Methods of other
packages are left out.
"""

import inspect
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import choosing
import yaml
from measured import MODEL, Side, better, sides
from stub import stub

from trimtab.core.card import Card
from trimtab.core.kinds import (
    Allocator,
    ChannelMethod,
    LinearMethod,
    LinearWeight,
    Method,
    ModelMethod,
    Original,
    ProbeMethod,
    Reference,
    ScaleMethod,
    Storage,
)
from trimtab.core.knobs import Knob, knobs
from trimtab.core.recipe import Recipe, Step
from trimtab.core.registry import get, ids, kind, room
from trimtab.core.scratch import ScratchMethod
from trimtab.core.taught import TaughtMethod
from trimtab.core.trained import AdapterMethod, ScheduleMethod, TrainedMethod
from trimtab.engine.adapting import needs_text
from trimtab.measure.claims_page import COMPARED, RESULTS, compared, numbers, quoted, status, table
from trimtab.measure.ledger import latest, read
from trimtab.testing.checks_any import steered

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path("docs") / "methods"
LEDGER = ROOT / "claims" / "ledger.jsonl"
PASSES = ROOT / "benchmarks" / "results.jsonl"
NOTICE = "<!-- Written by docs/generate.py from the code and the ledger; changes made here are lost. -->"
FIDELITY = {
    "exact": "as published, up to what the docstring says",
    "reconstructed": "parts had to be filled in",
    "variant": "deliberately different from what was published",
}
PLACES = {"arXiv:": "https://arxiv.org/abs/", "doi:": "https://doi.org/"}
Results = Mapping[tuple[str, str], Mapping[str, Any]]


def main(words: Sequence[str] | None = None) -> int:
    options = ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--check", action="store_true", help="write nothing, fail if a file is stale")
    options.add_argument("--root", type=Path, default=ROOT, help="where the files are")
    options.add_argument("--ledger", type=Path, default=LEDGER)
    given = options.parse_args(words)
    wanted = files(latest(read(given.ledger)))
    if given.check:
        stale = differing(given.root, wanted)
        print("\n".join(f"{name} is stale; run `make docs`" for name in stale), end="\n" if stale else "")
        return 1 if stale else 0
    write(given.root, wanted)
    return 0


def files(results: Results) -> dict[str, str]:
    """Path below the root -> text, of everything that is written."""
    made = {(FOLDER / name).as_posix(): text for name, text in pages(results).items()}
    made["docs/choosing.md"] = choosing.page(results, choosing.read_passes(PASSES), NOTICE)
    made["trimtab/methods/__init__.pyi"] = stub(_methods())
    return made


def differing(root: Path, wanted: Mapping[str, str]) -> list[str]:
    """The files that are missing, other than they should be, or pages of no method any more."""
    there = {path.relative_to(root).as_posix(): path for path in (root / FOLDER).glob("*.md")}
    there |= {name: root / name for name in wanted if (root / name).exists()}
    found = {name: path.read_text(encoding="utf-8") for name, path in there.items()}
    return sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))


def write(root: Path, wanted: Mapping[str, str]) -> None:
    for name in differing(root, wanted):
        if name in wanted:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(wanted[name], encoding="utf-8")
        else:
            (root / name).unlink()


def pages(results: Results) -> dict[str, str]:
    """File name -> Markdown, of every page."""
    methods, measured = _methods(), sides(results)
    made = {f"{method.card.id}.md": _page(method, results, measured) for method in methods}
    return {"index.md": _index(methods, results), **made}


def _methods() -> list[type[Method]]:
    return [get(id) for id in ids() if _is_ours(id)]


def _is_ours(id: str) -> bool:
    return (ROOT / "trimtab" / "methods" / room(id) / f"{id}.py").is_file()


def _index(methods: Sequence[type[Method]], results: Results) -> str:
    lines = [NOTICE, "", "# Methods", ""]
    lines += ["Fidelity: " + "; ".join(f"*{name}*, {meaning}" for name, meaning in FIDELITY.items()) + "."]
    lines += ["Claims: how many of the method's claims have which status; a claim is run by `trimtab claim ID`."]
    ranked = sorted(methods, key=lambda method: (room(method.card.id), method.card.id))
    for place, group in groupby(ranked, key=lambda method: room(method.card.id)):
        lines += ["", f"## {place}", "", "| method | kind | fidelity | paper | claims |", "|---|---|---|---|---|"]
        for method in group:
            card = method.card
            name, paper = f"[{card.id}]({card.id}.md)", f"{_cell(card.title)} ({_paper(card)})"
            lines.append(f"| {name} | {kind(method)} | {card.fidelity} | {paper} | {_counted(card, results)} |")
    return "\n".join(lines) + "\n"


def _counted(card: Card, results: Results) -> str:
    statuses = [status(results.get((card.id, claim.name))) for claim in card.claims]
    return ", ".join(f"{statuses.count(s)} {s}" for s in dict.fromkeys(statuses)) or ("baseline" if card.baseline else "-")


def _page(method: type[Method], results: Results, measured: Sequence[Side]) -> str:
    card = method.card
    lines = [NOTICE, "", f"# {card.id}", "", f"{card.title}. {_paper(card)}.", ""]
    lines += [f"{room(card.id)}, kind {kind(method)}. Fidelity: {card.fidelity}, {FIDELITY[card.fidelity]}.", ""]
    lines += ["```text", inspect.cleandoc(sys.modules[method.__module__].__doc__ or ""), "```", ""]
    lines += [f"- {fact}" for fact in _facts(method())]
    if card.beside:
        lines.append("- See also " + ", ".join(f"[{other}]({other}.md)" for other in card.beside))
    lines += ["", "## Knobs", "", *_knobs(method()), "", *_example(method)]
    if card.claims:
        lines += ["", "## Claims", "", *_claims(card, results)]
    if limits := list(_limits(method(), results, measured)):
        lines += ["", "## When not to use it", "", *(f"- {limit}" for limit in limits)]
    return "\n".join(lines) + "\n"


def _facts(made: Method) -> Iterator[str]:
    """What the class declares, in words."""
    if made.card.baseline:
        yield "A baseline: others are measured against it, and it promises nothing itself"
    if isinstance(made, LinearMethod):
        yield f"Takes {_formats(made.takes)}; gives {_formats(made.gives)}"
        yield f"Shown the outputs of the {made.carry} blocks before it"
    if isinstance(made, ChannelMethod):
        yield f"Removes {' and '.join(made.unit)} units"
    if isinstance(made, ModelMethod):
        yield "Keeps the model's function" if made.preserves else "Changes the model's function"
    if isinstance(made, ScaleMethod):
        yield "Keeps the model's function: scales move from norms and matrices into the matrices behind them"
    if isinstance(made, Allocator):
        yield f"Sets the knob `{made.knob}` of the method it is attached to"
    if isinstance(made, ProbeMethod):
        yield "Measures block by block and changes nothing"
        return
    if isinstance(made, TrainedMethod):
        yield f"Learns at up to {made.usual_rate:g} where no `--learning-rate` is given"
    if isinstance(made, AdapterMethod):
        yield "Trained beside frozen matrices in any format; `trimtab merge` folds it in where that is exact"
        if needs_text(made):
            shown = ", ".join(f"`{need.__name__}`" for need in made.needs)
            yield f"Looks before training at {shown} of {'the rows to train on' if made.looks_at == 'rows' else '`--general`'}"
        return
    if isinstance(made, ScheduleMethod):
        yield "Trains a model's own parameters, some at a time; its matrices have to be plain"
        return
    if isinstance(made, ScratchMethod):
        yield "Trained from random numbers by `trimtab grow`, in the place of a small model's matrices; the result is a folder"
        return
    text = "the calibration text" if isinstance(made, TaughtMethod) else "no data"
    yield f"Looks at {', '.join(f'`{need.__name__}`' for need in made.needs) or text}"


def _formats(kinds: Sequence[type[LinearWeight]]) -> str:
    return "any format" if LinearWeight in kinds else " or ".join(f"`{one.__name__}`" for one in kinds)


def _knobs(made: Method) -> list[str]:
    lines = ["| knob | default | values | what it is |", "|---|---|---|---|"]
    for name, knob in knobs(made).items():
        lines.append(f"| `{name}` | `{made.knobs()[name]}` | {_cell(_values(knob))} | {_cell(knob.help)} |")
    return lines


def _values(knob: Knob) -> str:
    return "true or false" if knob.type is bool else "text" if knob.parse is not None else knob.range()


def _example(method: type[Method]) -> Iterator[str]:
    if issubclass(method, ProbeMethod):
        yield from ("On the command line, every knob at its default:", "", "```bash")
        values = ", ".join(f"{name}={value!r}" for name, value in method().knobs().items())
        yield from (f'trimtab probe asset:smollm2-135m "{method.card.id}({values})" --windows 4 --length 64', "```")
        return
    if issubclass(method, ScratchMethod):
        yield from ("On the command line, every knob at its default:", "", "```bash")
        values = ", ".join(f"{name}={value!r}" for name, value in method().knobs().items())
        yield from (f'trimtab grow own-2m --method "{method.card.id}({values})" -o grown --steps 2', "```")
        return
    if issubclass(method, TrainedMethod):
        yield from ("On the command line, every knob at its default:", "", "```bash")
        values = " ".join(_spelled(name, value) for name, value in method().knobs().items())
        call = f"trimtab adapt asset:smollm2-135m asset:gsm8k -o adapted --method {method.card.id} {values}"
        yield from (f"{call} --length 32 --steps 2 --at-once 8", "```")
        return
    yield from ("In a recipe, every knob at its default:", "", "```yaml")
    yield from (yaml.safe_dump({"steps": _steps(method)}, sort_keys=False).rstrip(), "```")


def _spelled(name: str, value: Any) -> str:
    """A knob as an option."""
    option = name.replace("_", "-")
    return (f"--{option}" if value else f"--no-{option}") if isinstance(value, bool) else f"--{option} {value}"


def _steps(method: type[Method]) -> list[dict[str, Any]]:
    made = method()
    step = Step(steered(made)(), by=made) if isinstance(made, Allocator) else Step(made)
    steps: list[dict[str, Any]] = Recipe((step,)).to_dict()["steps"]
    return steps


def _claims(card: Card, results: Results) -> Iterator[str]:
    """The columns of claims/LEDGER.md. Whether the code is older is said there alone: these pages are checked in tests."""
    found = [(claim, results.get((card.id, claim.name))) for claim in card.claims]
    observed = any(claim.metric == "finding" for claim in card.claims)
    unit, cells = ("in the unit of the finding", "block by block") if observed else ("nats per token", "paired")
    yield f"Run by `trimtab claim {card.id}`. Difference: left - right, {unit}, {cells}, with its 95 % interval. Measured:"
    yield "when, and at which commit; `trimtab claims list` says whether the code that can change a result was changed since."
    yield ""
    yield from table(("claim", "statement", "status", *RESULTS), ((c.name, quoted(c), status(r), *numbers(r)) for c, r in found))
    yield ""
    what = "Findings, means over blocks" if observed else "Perplexities"
    yield f"{what}, what the paper reports on its scale and what was measured here on ours:"
    yield ""
    yield from table(COMPARED, (compared(c, r, status(r)) for c, r in found))
    notes = [f"- {claim.name}: {claim.note}" for claim in card.claims if claim.note]
    yield from ["", *notes] if notes else []


def _limits(made: Method, results: Results, measured: Sequence[Side]) -> Iterator[str]:
    """What speaks against it, as far as declarations and the ledger tell."""
    card = made.card
    if card.baseline:
        yield "Where quality matters: it is what others are measured against"
    yield from _overtaken(made, measured)
    for claim in card.claims:
        result = results.get((card.id, claim.name))
        if status(result) in ("fails", "not run"):
            yield f"Counting on {quoted(claim)}: {status(result)}" + (" here" if result else " yet")
    needs = [] if isinstance(made, ProbeMethod | TrainedMethod) else made.needs
    if Reference in needs:
        yield "Without the model that this one was fine-tuned from (`base`)"
    if [need for need in needs if need not in (Original, Storage, Reference)]:
        yield "Without text like what the model will read: it looks at activations"
    if isinstance(made, LinearMethod) and LinearWeight not in made.takes:
        yield f"After a step that gives something else than {_formats(made.takes)}"


def _overtaken(made: Method, measured: Sequence[Side]) -> Iterator[str]:
    """Where the best recipe with this method was worse than another without it that takes no more bits."""
    own = [side for side in measured if made.card.id in side.methods()]
    best = next(iter(own), None)
    other = best and better(best, (side for side in measured if made.card.id not in side.methods()))
    if best and other:
        found = f"`{best.recipe}` has perplexity {best.shown()} at {best.bits:.2f} bits per weight, the best measured with it"
        yield f"{found}; `{other.recipe}` has {other.shown()} at {other.bits:.2f} ({MODEL.removeprefix('asset:')})"


def _paper(card: Card) -> str:
    for prefix, address in PLACES.items():
        if card.paper.startswith(prefix):
            return f"[{card.paper}]({address}{card.paper.removeprefix(prefix)})"
    return card.paper


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
