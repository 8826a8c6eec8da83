"""The chapters of a report on what was done: layer by layer, the recipe, the receipt, and how to read it all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import isfinite, nan
from typing import Any

import yaml
from markupsafe import Markup

from trimtab.report import figures, numbers
from trimtab.report.content import Block, Cell, Code, Facts, Figure, Figures, Notes, Section, Table, table
from trimtab.report.document import Document, Model
from trimtab.report.numbers import listed
from trimtab.report.receipts import Cell as Layer
from trimtab.report.receipts import Curve, Record

MOST_CELLS = 9000  # drawn in all: a page stays below 2 MB
MOST_HOVERS = 2500
LONGEST_RECIPE = 20000  # characters
MOST_RAISED = 40
MOST_CURVES = 12  # drawn
ENDS = 10


def layers(found: Document) -> Section | None:
    """Bits and output error of every matrix, by depth."""
    models = [(model, model.record) for model in found.models if model.record and model.record.cells]
    if not models:
        return None
    drawn, left = _within_budget(models)
    hover = sum(len(held.cells) for _, held in drawn) <= MOST_HOVERS
    every = [cell for _, held in drawn for cell in held.cells]
    shades = (
        figures.shading("bits per weight", [cell.bits for cell in every], _bits),
        figures.shading("output error", [cell.error for cell in every], numbers.roughly),
    )
    blocks: list[Block] = []
    for shade, value in zip(shades, (_bits_of, _error_of), strict=True):
        if any(isfinite(value(cell)) for cell in every):
            items = [(m, figures.heat(h.cells, [value(c) for c in h.cells], shade, hover)) for m, h in drawn]
            panels = tuple(Figure(model.name, picture) for model, picture in items)
            scale = ", logarithmic shades" if shade.log else ""
            caption = f"{shade.words[:1].upper()}{shade.words[1:]} by kind of matrix and block{scale}"
            blocks.append(Figures(panels, caption, figures.heat_key(shade)))
    blocks += [_by_matrix(models), *(_all_layers(model, held) for model, held in drawn)]
    more = f" {len(left)} more models are in the tables only." if left else ""
    lead = f"Output error: squared change of a matrix's outputs over their squared size, on the calibration text.{more}"
    return Section("layers", "Layer by layer", lead, tuple(blocks))


def _within_budget(models: Sequence[tuple[Model, Record]]) -> tuple[list[tuple[Model, Record]], list[Model]]:
    drawn: list[tuple[Model, Record]] = []
    left, used = [], 0
    for model, held in models:
        used += 2 * len(held.cells)
        if used <= MOST_CELLS:
            drawn.append((model, held))
        else:
            left.append(model)
    return drawn, left


def _bits(value: float) -> str:
    return f"{numbers.figure(value)} bits"


def _bits_of(cell: Layer) -> float:
    return cell.bits


def _error_of(cell: Layer) -> float:
    return cell.error


def _by_matrix(models: Sequence[tuple[Model, Record]]) -> Table:
    groups = tuple((model.name, tuple(_matrix_row(name, cells) for name, cells in _grouped(held))) for model, held in models)
    columns = ("matrix", "places", "bits per weight", "output error, mean over blocks", "largest")
    return Table("By kind of matrix", columns, groups)


def _grouped(held: Record) -> Iterable[tuple[str, list[Layer]]]:
    for name in dict.fromkeys(cell.matrix for cell in held.cells):
        yield name, [cell for cell in held.cells if cell.matrix == name]


def _matrix_row(name: str, cells: Sequence[Layer]) -> tuple[Cell, ...]:
    seen = [cell for cell in cells if isfinite(cell.error)]
    worst = max(seen, key=_error_of, default=None)
    bits = [cell.bits for cell in cells if isfinite(cell.bits)]
    ends = [numbers.figure(end) for end in ((min(bits), max(bits)) if bits else (nan, nan))]
    return (
        Cell(name, numeric=False),
        Cell(numbers.count(sum(cell.places for cell in cells))),
        Cell(" to ".join(dict.fromkeys(ends))),
        Cell(numbers.roughly(sum(map(_error_of, seen)) / len(seen)) if seen else numbers.UNKNOWN),
        Cell(f"{numbers.roughly(worst.error)} in block {worst.block}") if worst else Cell(numbers.UNKNOWN),
    )


def _all_layers(model: Model, held: Record) -> Table:
    names = [name for name, _ in _grouped(held)]
    at = {(cell.block, cell.matrix): cell for cell in held.cells}
    blocks = sorted({cell.block for cell in held.cells})
    rows = [(Cell(str(block), numeric=False), *(_layer(at.get((block, name))) for name in names)) for block in blocks]
    caption = f"Bits and output error by block: {model.name}"
    return replace(table(caption, ("block", *names), rows), folded=True, page_only=True)


def _layer(cell: Layer | None) -> Cell:
    return Cell(numbers.figure(cell.bits), numbers.roughly(cell.error) if isfinite(cell.error) else "") if cell else Cell()


def learning(found: Document) -> Section | None:
    """How the loss fell in every training that a receipt tells of."""
    curves = [(model, curve) for model in found.models if model.record for curve in model.record.learned]
    if not curves:
        return None
    height = 190
    panels = tuple(
        Figure(f"{model.name}: {curve.method}", figures.learning_lines(curve, height, f"loss of {model.name} by step"))
        for model, curve in curves[:MOST_CURVES]
        if curve.is_drawable
    )
    key = Markup('<span class="key base"></span> rows of the step <span class="key own"></span> validation')
    columns = ("model", "method", "rows", "steps", "loss at first", "loss at last", "validation at first", "best", "seconds")
    rows = [_curve_row(model, curve) for model, curve in curves]
    left = f" Drawn are the first {MOST_CURVES} of {len(curves)} trainings." if len(curves) > MOST_CURVES else ""
    lead = f"Nats per learned token; the first and the last loss are means over {ENDS} steps.{left}"
    blocks = (Figures(panels, "Loss by step", key), table("What was trained", columns, rows))
    return Section("learning", "How it learned", lead, blocks)


def _curve_row(model: Model, curve: Curve) -> tuple[Cell, ...]:
    known = [loss for loss in curve.losses if isfinite(loss)]
    ends = [sum(some) / len(some) if some else nan for some in (known[:ENDS], known[-ENDS:])]
    checked = [loss for _, loss in curve.validations if isfinite(loss)]
    best = f"{numbers.figure(min(checked))} after step {curve.best}" if checked else numbers.UNKNOWN
    return (
        Cell(model.name, numeric=False),
        Cell(curve.method, numeric=False),
        Cell(numbers.count(curve.rows)),
        Cell(numbers.count(len(curve.losses))),
        *(Cell(numbers.figure(end)) for end in ends),
        Cell(numbers.figure(checked[0]) if checked else numbers.UNKNOWN),
        Cell(best),
        Cell(f"{curve.seconds:.0f}" if isfinite(curve.seconds) else numbers.UNKNOWN),
    )


def recipes(found: Document) -> Section | None:
    """The recipe of every model that has one, as YAML."""
    held = [(model, model.record.recipe) for model in found.models if model.record and model.record.recipe]
    blocks = tuple(Code(model.name, "yaml", _yaml(recipe)) for model, recipe in held)
    return Section("recipe", "The recipe", "Every knob spelled out, as it was run.", blocks) if blocks else None


def _yaml(recipe: Mapping[str, Any]) -> str:
    text = yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True).rstrip()
    return text if len(text) <= LONGEST_RECIPE else text[:LONGEST_RECIPE] + "\n# cut here"


def receipt(found: Document) -> Section:
    """What ran, on what, with which versions, and where damping had to be raised."""
    blocks: list[Block] = []
    for model in found.models:
        if model.record:
            blocks += _receipt(model, model.record)
    blocks.append(Facts("The comparison", tuple(_facts({"setting": found.setting, **found.made}))))
    prints = [(model.name, model.fingerprint) for model in found.models if model.fingerprint]
    if prints:
        blocks.append(Facts("Fingerprints of the models (SHA-256 over config, weights and tokenizer)", tuple(prints)))
    if found.notes:
        blocks.append(Notes(found.notes))
    return Section("receipt", "The receipt", "What ran, so that it can be run again.", tuple(blocks))


def _receipt(model: Model, held: Record) -> Iterable[Block]:
    rows = [
        (
            Cell(step.method, numeric=False),
            Cell(numbers.count(step.places)),
            Cell(numbers.figure(step.bits_before)),
            Cell(numbers.figure(step.bits_after)),
            Cell(numbers.roughly(step.error)),
            Cell(f"{step.seconds:.1f}"),
        )
        for step in held.steps
    ]
    columns = ("step", "places", "bits before", "bits after", "output error", "seconds")
    if rows:
        yield table(f"Steps: {model.name}", columns, rows)
    yield Facts(f"Run: {model.name}", tuple(_run(held)))
    if held.raised:
        yield _raised(model, held)
    if held.notes:
        yield Notes(tuple(f"{model.name}: {note}" for note in held.notes))


def _run(held: Record) -> Iterable[tuple[str, str]]:
    if held.model:
        yield "made from", held.model
    if "seed" in held.recipe:
        yield "seed", f"{held.recipe['seed']}" + ("" if held.seeded else " (nothing was drawn: every seed gives this model)")
    yield "damping raised", f"in {len(held.raised)} places" if held.raised else "nowhere"
    yield from _facts({"calibration": held.shown, **held.made})
    if held.peak_memory:
        yield "peak memory", numbers.size(held.peak_memory)
    spent = sorted(((s, name) for name, s in held.profile.items() if isfinite(s)), reverse=True)
    if spent:
        yield "seconds by activity", ", ".join(f"{name} {seconds:.1f}" for seconds, name in spent)


def _raised(model: Model, held: Record) -> Table:
    rows = [
        (Cell(place, numeric=False), Cell(numbers.figure(asked)), Cell(numbers.figure(used)))
        for place, asked, used in held.raised[:MOST_RAISED]
    ]
    rest = f", the first {MOST_RAISED} of {len(held.raised)}" if len(held.raised) > MOST_RAISED else ""
    return table(f"Where damping was raised: {model.name}{rest}", ("place", "asked", "used"), rows)


def _facts(values: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """JSON values as pairs; an object's own keys go into its line."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{key} {listed(inner)}" for key, inner in value.items() if inner not in ("", None))
        if value not in ("", None):
            yield str(name), listed(value)


def reading(found: Document) -> Section:
    """What the words mean."""
    notes = [
        "Interval: 95 %. Of a single number it is 1.96 standard errors to each side; of a difference it is that of "
        "a paired test: both models on the same windows or items.",
        "Better, worse: the interval of the difference leaves out nought. Not separable: it does not, so the data do not say.",
        "n: how many observations a number rests on. Tokens of one window are not independent; errors are taken over windows.",
        "Verdicts are not corrected for their number: of twenty true ties about one will look like a difference.",
    ]
    return Section("reading", "How to read this", "", (Notes(tuple(notes)),))
