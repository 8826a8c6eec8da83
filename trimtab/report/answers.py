"""The chapters of a report on what models answer: tasks, answers that flipped, calibration, text side by side."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher

from markupsafe import Markup

from trimtab.report import figures, numbers
from trimtab.report.content import Block, Cell, Figure, Figures, Passage, Passages, Section, Table, table
from trimtab.report.document import SHARE, Against, Calibration, Difference, Document, Estimate, Flips, Model, Task
from trimtab.report.layout import Scale

MOST_SAMPLES = 12
LONGEST_SAMPLE = 1500  # characters
WORD = re.compile(r"\s+|[^\s]+")


@dataclass(frozen=True)
class Measure:
    """What a task table shows: a number of each model, and how it differs from the base's."""

    caption: str
    column: str
    write: Callable[[float], str]
    value: Callable[[Task], Estimate]
    difference: Callable[[Against], Mapping[str, Difference]]


ACCURACY = Measure("Accuracy by task", "accuracy", numbers.percent, lambda task: task.accuracy, lambda against: against.tasks)
BITS = Measure(
    "Bits per byte of the right answer, by task",
    *("bits per byte", numbers.figure, lambda task: task.bits, lambda against: against.task_bits),
)


def tasks(found: Document) -> Section | None:
    """Accuracy with intervals, task by task, and the paired difference to the base."""
    held = [task for model in found.models for task in model.tasks.values()]
    if not held:
        return None
    blocks = [_task_table(found, ACCURACY)]
    if any(task.bits.is_known for task in held):
        blocks.append(_task_table(found, BITS))
    lead = "By bytes: the choice of highest likelihood per byte of text, so that long answers are at no disadvantage."
    by_bytes = any(task.normalised.is_known for task in held)
    return Section("tasks", "How tasks are answered", lead if by_bytes else "", (*blocks, *_flips(found)))


def _task_table(found: Document, measure: Measure) -> Table:
    names = list(dict.fromkeys(name for model in found.models for name in model.tasks))
    scale = figures.interval_scale([measure.value(task) for model in found.models for task in model.tasks.values()])
    by_bytes = measure is ACCURACY and any(task.normalised.is_known for model in found.models for task in model.tasks.values())
    groups = []
    for name in names:
        asked = [model for model in found.models if name in model.tasks and measure.value(model.tasks[name]).is_known]
        rows = tuple(_task_row(found, model, name, measure, scale, by_bytes) for model in asked)
        if rows:
            n = max(measure.value(model.tasks[name]).n for model in asked)
            groups.append((f"{name}, {numbers.from_n(n, 'items')}", rows))
    columns = ("model", "", measure.column, *["by bytes"] * by_bytes, "model minus base", "verdict")
    return Table(measure.caption, columns, tuple(groups), figures.axis_row(scale, measure.write))


def _task_row(found: Document, model: Model, name: str, measure: Measure, scale: Scale, by_bytes: bool) -> tuple[Cell, ...]:
    task, value = model.tasks[name], measure.value(model.tasks[name])
    reference = measure.value(found.base.tasks[name]).value if found.base and name in found.base.tasks else None
    difference = measure.difference(model.against).get(name) if model.against else None
    change = (Cell(), Cell(numeric=False))
    if difference:
        e = difference.estimate
        change = Cell(numbers.difference(e), numbers.difference_interval(e)), Cell(word=difference.verdict, numeric=False)
    return (
        Cell(model.name, numeric=False),
        Cell(figure=figures.interval_row(value, scale, model is found.base, reference)),
        _number(value),
        *[_number(task.normalised)] * by_bytes,
        *change,
    )


def _number(e: Estimate) -> Cell:
    written = numbers.percent(e.value, e.half) if e.unit == SHARE else numbers.figure(e.value, e.half)
    return Cell(written, numbers.interval(e)) if e.is_known else Cell()


def _flips(found: Document) -> Iterable[Table]:
    every = [flips for model in found.others if model.against for flips in model.against.flips.values()]
    if not every:
        return
    most = max(max(f.right_to_wrong, f.wrong_to_right) / max(f.n, 1) for f in every)
    groups = tuple(
        (model.name, tuple(_flips_row(name, flips, most) for name, flips in model.against.flips.items()))
        for model in found.others
        if model.against and model.against.flips
    )
    columns = ("task", "", "lost", "gained", "both right", "both wrong", "n")
    yield Table("Answers that flipped: lost were right in the base and are wrong now, gained the reverse", columns, groups)


def _flips_row(name: str, flips: Flips, most: float) -> tuple[Cell, ...]:
    counts = (flips.right_to_wrong, flips.wrong_to_right, flips.both_right, flips.both_wrong, flips.n)
    drawn = Cell(figure=figures.flips_bar(flips, most))
    return Cell(name, numeric=False), drawn, *(Cell(numbers.count(count)) for count in counts)


def calibration(found: Document) -> Section | None:
    """Whether a model that says 70 % is right in 70 % of the cases: of next tokens, and of each task's answers."""
    blocks: list[Block] = []
    models = [(model, model.calibration) for model in found.models if model.calibration]
    if models:
        panels = tuple(Figure(model.name, _reliability(found, model, held), note=_error(held)) for model, held in models)
        blocks.append(Figures(panels, "Next token: how often the first choice was right, by how sure the model was"))
    rows = [_calibration_row(model, "next token", held) for model, held in models]
    rows += [
        _calibration_row(model, name, task.calibration)
        for model in found.models
        for name, task in model.tasks.items()
        if task.calibration
    ]
    if rows:
        blocks.append(replace(table("Expected calibration error", ("model", "of", "error", "n"), rows), folded=True))
    lead = "On the dashed line confidence and share of right answers agree; below it the model is too sure of itself."
    return Section("calibration", "Whether it knows what it knows", lead, tuple(blocks)) if blocks else None


def _reliability(found: Document, model: Model, held: Calibration) -> Markup:
    label = f"share right by confidence, {model.name}, calibration error {numbers.percent(held.error.value, held.error.half)}"
    return figures.reliability(held.bins, label, "base" if model is found.base else "own")


def _error(held: Calibration) -> str:
    e = held.error
    return ", ".join(filter(None, (f"error {numbers.percent(e.value, e.half)}", numbers.interval(e), numbers.rests_on(e))))


def _calibration_row(model: Model, what: str, held: Calibration) -> tuple[Cell, ...]:
    error = Cell(numbers.percent(held.error.value, held.error.half), numbers.interval(held.error))
    return Cell(model.name, numeric=False), Cell(what, numeric=False), error, Cell(numbers.count(held.error.n))


def text(found: Document) -> Section | None:
    """Continuations side by side; words that differ from the base's are marked."""
    prompts = list(dict.fromkeys(prompt for model in found.models for prompt, _ in model.samples))
    if not prompts:
        return None
    blocks = tuple(_passages(found, prompt) for prompt in prompts[:MOST_SAMPLES])
    left = f" {len(prompts) - MOST_SAMPLES} more prompts are not shown." if len(prompts) > MOST_SAMPLES else ""
    marked = "Words that differ from the base's are marked." if found.base and found.base.samples else "As the models continue."
    return Section("text", "What it says", f"{marked}{left}", blocks)


def _passages(found: Document, prompt: str) -> Passages:
    base = dict(found.base.samples).get(prompt) if found.base else None
    said = [(model, dict(model.samples)[prompt]) for model in found.models if prompt in dict(model.samples)]
    return Passages(_cut(prompt), tuple(_passage(m.name, own, None if m is found.base else base) for m, own in said))


def _passage(name: str, own: str, base: str | None) -> Passage:
    pieces = WORD.findall(_cut(own[1:] if own[:1] in (" ", "\n") else own))  # what joins it to the prompt
    if base is None:
        return Passage(name, (("".join(pieces), False),))
    differs = _differing(_cut(base).split(), pieces)
    whole = sum(not piece.isspace() for piece in pieces)
    said = f"{sum(differs)} of {whole} words differ" if any(differs) else "the same words"
    return Passage(name, _joined(pieces, differs), said)


def _differing(base: Sequence[str], pieces: Sequence[str]) -> list[bool]:
    """For each piece, whether it is a word outside of the runs of words that both have. White space never differs."""
    own = [piece for piece in pieces if not piece.isspace()]
    changed = [True] * len(own)
    for block in SequenceMatcher(None, base, own, autojunk=False).get_matching_blocks():
        changed[block.b : block.b + block.size] = [False] * block.size
    left = iter(changed)
    return [not piece.isspace() and next(left) for piece in pieces]


def _joined(pieces: Sequence[str], differs: Sequence[bool]) -> tuple[tuple[str, bool], ...]:
    """Neighbours of the same kind as one; white space between two that differ goes with them."""
    joined: list[tuple[str, bool]] = []
    for number, (piece, changed) in enumerate(zip(pieces, differs, strict=True)):
        between = piece.isspace() and 0 < number < len(pieces) - 1 and differs[number - 1] and differs[number + 1]
        if joined and joined[-1][1] == (changed or between):
            joined[-1] = (joined[-1][0] + piece, joined[-1][1])
        else:
            joined.append((piece, changed or between))
    return tuple(joined)


def _cut(words: str) -> str:
    return words if len(words) <= LONGEST_SAMPLE else words[:LONGEST_SAMPLE] + " …"
