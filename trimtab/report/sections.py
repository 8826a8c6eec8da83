"""The chapters of a report on what models do: at a glance, the trade-off, size, loss, tasks, calibration, speed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from markupsafe import Markup

from trimtab.report import figures, numbers
from trimtab.report.content import Block, Cell, Figure, Figures, Section, Table, Tile, Tiles, table
from trimtab.report.document import SHARE, UNKNOWN, Against, Difference, Document, Estimate, Model
from trimtab.report.figures import Axes, Point
from trimtab.report.layout import Scale

BLOCK_BITS, ALL_BITS = "bits per weight, blocks", "bits per weight, all"
NO_BASE = "not compared"
SPEEDS = {"decode speed": "New tokens per second, one after the other", "prefill speed": "Prompt tokens per second"}


def glance(found: Document) -> Section:
    """Every model in a row of tiles, with the words for what differs."""
    rows = tuple(_tiles(found, model) for model in found.models)
    lead = "Intervals are 95 %. A verdict is about the difference to the base on the same text and items."
    return Section("summary", "At a glance", lead if found.base else "Intervals are 95 %. No base model was compared with.", rows)


def _tiles(found: Document, model: Model) -> Tiles:
    is_base = model is found.base
    verdicts = tuple((word, ", ".join(names)) for word, names in model.against.verdicts().items()) if model.against else ()
    role = "base" if is_base else "" if model.against else NO_BASE
    makers = (_size_tile, _bits_tile, _text_tile, _tasks_tile, _speed_tile, _flips_tile)
    tiles = (make(found, model) for make in makers)
    return Tiles(model.name, role, tuple(tile for tile in tiles if tile), verdicts)


def _size_tile(found: Document, model: Model) -> Tile | None:
    size, base = model.measured("file size"), found.base.measured("file size") if found.base else UNKNOWN
    if not size.is_known:
        return None
    smaller = f"{base.value / size.value:.3g} times smaller" if base.is_known and size.value and model.against else ""
    return Tile("size on disk", numbers.size(size.value), numbers.rests_on(size), smaller)


def bits(model: Model) -> Estimate:
    """Of the blocks' matrices where that is known, else of all parameters."""
    blocks = model.measured(BLOCK_BITS)
    return blocks if blocks.is_known else model.measured(ALL_BITS)


def _bits_tile(found: Document, model: Model) -> Tile | None:
    held, whole = bits(model), model.measured(ALL_BITS)
    if not held.is_known:
        return None
    said = numbers.figure(held.value)
    note = f"{numbers.figure(whole.value)} over all parameters" if whole.is_known and numbers.figure(whole.value) != said else ""
    return Tile("bits per weight", said, numbers.rests_on(held), note)


def is_foreign(model: Model) -> bool:
    """Whether its tokenizer is not the base's: then its losses per token are about other tokens."""
    return model.against is not None and "perplexity" not in model.against.differences


def _text_tile(found: Document, model: Model) -> Tile | None:
    name = "bits per byte" if is_foreign(model) else "perplexity"
    value = model.measured(name)
    if not value.is_known:
        return None
    difference = model.against.differences.get(name) if model.against else None
    said, word = numbers.figure(value.value, value.half), difference.verdict if difference else ""
    return Tile(name, said, numbers.rests_on(value), numbers.interval(value), word)


def mean_accuracy(model: Model, tasks: Iterable[str]) -> Estimate:
    """Of tasks that all count the same; their errors are independent, so the variances add."""
    scores = [model.tasks[name].accuracy for name in tasks if name in model.tasks]
    if not scores:
        return UNKNOWN
    mean = sum(score.value for score in scores) / len(scores)
    half = sum(score.half**2 for score in scores) ** 0.5 / len(scores)
    return Estimate(mean, max(mean - half, 0.0), min(mean + half, 1.0), sum(score.n for score in scores), SHARE, "items")


def common_tasks(models: Sequence[Model]) -> list[str]:
    """Tasks that every model that has any was asked."""
    asked = [model.tasks for model in models if model.tasks]
    return [name for name in asked[0] if all(name in tasks for tasks in asked)] if asked else []


def _tasks_tile(found: Document, model: Model) -> Tile | None:
    names = common_tasks(found.models)
    mean = mean_accuracy(model, names)
    if not mean.is_known:
        return None
    kinds = f"mean of {len(names)} tasks" if len(names) > 1 else names[0]
    return Tile(kinds, numbers.percent(mean.value, mean.half), numbers.rests_on(mean), numbers.interval(mean))


def _flips_tile(found: Document, model: Model) -> Tile | None:
    if not model.against or not model.against.flips:
        return None
    flips = model.against.flips.values()
    lost, gained = sum(f.right_to_wrong for f in flips), sum(f.wrong_to_right for f in flips)
    rests = numbers.from_n(sum(f.n for f in flips), "items")
    return Tile("answers that flipped", numbers.count(lost + gained), rests, f"{lost} lost, {gained} gained")


def _speed_tile(found: Document, model: Model) -> Tile | None:
    speed = model.measured("decode speed")
    if not speed.is_known:
        return None
    said = numbers.figure(speed.value, speed.half)
    return Tile("decode, tokens/s", said, numbers.rests_on(speed), numbers.interval(speed))


# --- the trade-off ------------------------------------------------------------------------------------------------------


def trade_off(found: Document) -> Section | None:
    """Size, or bits where sizes are not known, against text and tasks. None for fewer than two models to compare."""
    names = common_tasks(found.models)
    by_size = all(model.measured("file size").is_known for model in found.models)
    cost, write = ("size on disk", numbers.round_size) if by_size else ("bits per weight", numbers.figure)
    text = "bits per byte" if any(map(is_foreign, found.models)) else "perplexity"
    accuracy = "mean accuracy of tasks" if len(names) > 1 else "accuracy"
    kinds: tuple[tuple[Axes, Callable[[Model], Estimate]], ...] = (
        (Axes(cost, text, True, write, numbers.figure), lambda model: model.measured(text)),
        (Axes(cost, accuracy, False, write, numbers.percent), lambda model: mean_accuracy(model, names)),
    )
    costs = [(model, model.measured("file size") if by_size else bits(model)) for model in found.models]
    known = [(model, held.value) for model, held in costs if held.is_known]
    drawn = []
    for axes, quality in kinds:
        points = [Point(m.name, held, quality(m), m is found.base) for m, held in known if quality(m).is_known]
        if len(points) >= 2:
            drawn.append(_trade_off(points, axes))
    listed = replace(_trade_off_table(found, text, names), folded=True)
    lead = "Whiskers are 95 % intervals. The line joins what no other model beats in both, by the numbers as measured."
    return Section("trade-off", "What a size buys", lead, (Figures(tuple(drawn)), listed)) if drawn else None


def _trade_off(points: Sequence[Point], axes: Axes) -> Figure:
    wide, narrow = figures.trade_off(points, axes, 460, 360), figures.trade_off(points, axes, 336, 330)
    n = sorted({point.quality.n for point in points})
    rests = " to ".join(dict.fromkeys(numbers.from_n(end, points[0].quality.of) for end in (n[0], n[-1])))
    return Figure(f"{axes.quality[:1].upper()}{axes.quality[1:]} against {axes.cost}", wide, narrow, f"{rests} per model")


def _trade_off_table(found: Document, text: str, names: Sequence[str]) -> Table:
    accuracy = ("mean accuracy" if len(names) > 1 else "accuracy",) if names else ()
    rows = [
        (
            Cell(model.name, numeric=False),
            Cell(numbers.shown(model.measured("file size"))),
            Cell(numbers.figure(bits(model).value)),
            _with_interval(model.measured(text)),
            *(_with_interval(mean_accuracy(model, names)) for _ in accuracy),
        )
        for model in found.models
    ]
    return table("Size and quality", ("model", "size on disk", "bits per weight", text, *accuracy), rows)


def _with_interval(e: Estimate) -> Cell:
    said = numbers.percent(e.value, e.half) if e.unit == SHARE else numbers.figure(e.value, e.half)
    return Cell(said, ", ".join(filter(None, (numbers.interval(e), numbers.rests_on(e)))))


# --- size ---------------------------------------------------------------------------------------------------------------


def size(found: Document) -> Section | None:
    """Bytes by part of the model, from the headers of the files."""
    models = [model for model in found.models if model.parts]
    if not models:
        return None
    largest = max(sum(model.parts.values()) for model in models)
    names = [part for part in figures.PARTS if any(model.parts.get(part) for model in models)]
    rows = [
        (
            Cell(model.name, numeric=False),
            Cell(figure=figures.parts_bar(model.parts, largest)),
            *(Cell(numbers.size(model.parts.get(part, 0)) if model.parts.get(part) else "") for part in names),
            Cell(numbers.size(sum(model.parts.values()))),
        )
        for model in models
    ]
    held = table("Tensor bytes by part, counted from the file headers", ("model", "", *names, "all"), rows)
    lead = "The embedding counts together with the output head."
    return Section("size", "Where the bytes are", lead, (replace(held, swatches=True),))


# --- loss ---------------------------------------------------------------------------------------------------------------


def loss(found: Document) -> Section | None:
    """Perplexity and bits per byte with intervals, then by domain and by position."""
    blocks: list[Block] = [*_loss_tables(found), *_against_tables(found), *_domains(found), *_positions(found)]
    lead = "Differences are paired: both models read the same text, so they can be surer than either number."
    return Section("loss", "How well text is predicted", lead, tuple(blocks)) if blocks else None


def _loss_tables(found: Document) -> Iterable[Table]:
    for name, unit, models in (("perplexity", "per token", _alike(found)), ("bits per byte", "of text", found.models)):
        values = [(model, model.measured(name)) for model in models if model.measured(name).is_known]
        if values:
            yield _interval_table(found, f"{name[:1].upper()}{name[1:]} {unit}", name, values, log=name == "perplexity")


def _alike(found: Document) -> list[Model]:
    """The models whose losses per token are about the same tokens."""
    return [model for model in found.models if not is_foreign(model)]


def _interval_table(
    found: Document, caption: str, column: str, values: Sequence[tuple[Model, Estimate]], log: bool = False
) -> Table:
    scale = figures.interval_scale([value for _, value in values], log=log)
    reference = next((value.value for model, value in values if model is found.base), None)
    rows = [
        (
            Cell(model.name, numeric=False),
            Cell(figure=figures.interval_row(value, scale, model is found.base, reference)),
            Cell(numbers.figure(value.value, value.half), numbers.interval(value)),
            Cell(numbers.observations(value.n, value.of)),
        )
        for model, value in values
    ]
    return table(caption, ("model", "", column, "n"), rows, figures.axis_row(scale, numbers.figure))


def _against_tables(found: Document) -> Iterable[Table]:
    compared = [(model, model.against) for model in found.others if model.against]
    for name in dict.fromkeys(name for _, against in compared for name in against.differences):
        rows = [(model, against.differences[name]) for model, against in compared if name in against.differences]
        scale = figures.interval_scale([difference.estimate for _, difference in rows], 0.0)
        unit = rows[0][1].estimate.unit
        columns = ("model", "", "difference", "n", "verdict")
        cells = [_difference_row(model, difference, scale) for model, difference in rows]
        caption = f"{name[:1].upper()}{name[1:]}: model minus base, {unit}, on the same text"
        yield table(caption, columns, cells, figures.axis_row(scale, numbers.signed))
    agreeing = [(model.name, against) for model, against in compared if against.kl.is_known or against.same_top.is_known]
    if agreeing:
        names = ("model", "KL to the base", "same first choice", "n")
        yield table("Agreement with the base, token by token", names, [_agreement(*pair) for pair in agreeing])


def _difference_row(model: Model, difference: Difference, scale: Scale) -> tuple[Cell, ...]:
    e = difference.estimate
    return (
        Cell(model.name, numeric=False),
        Cell(figure=figures.interval_row(e, scale, reference=0.0)),
        Cell(numbers.signed(e.value, e.half), numbers.difference_interval(e)),
        Cell(numbers.count(e.n)),
        Cell(word=difference.verdict, numeric=False),
    )


def _agreement(name: str, against: Against) -> tuple[Cell, ...]:
    kl, same = against.kl, against.same_top
    shown = (Cell(numbers.shown(value), numbers.interval(value)) if value.is_known else Cell() for value in (kl, same))
    return Cell(name, numeric=False), *shown, Cell(numbers.observations((kl if kl.is_known else same).n, kl.of))


def _domains(found: Document) -> Iterable[Table]:
    names = list(dict.fromkeys(part.name for model in _alike(found) for part in model.domains))
    if len(names) < 2:
        return  # one kind of text is all of the text, which has been told
    scale = figures.interval_scale([part.nats for model in _alike(found) for part in model.domains])
    by_model = [(model, {part.name: part.nats for part in model.domains}) for model in _alike(found) if model.domains]
    groups = tuple((name, tuple(_domain_rows(found, name, by_model, scale))) for name in names)
    axis = figures.axis_row(scale, numbers.figure)
    yield Table("Loss by kind of text, nats per token", ("model", "", "nats per token", "n"), groups, axis)


def _domain_rows(
    found: Document, name: str, by_model: Sequence[tuple[Model, dict[str, Estimate]]], scale: Scale
) -> Iterable[tuple[Cell, ...]]:
    reference = next((nats[name].value for model, nats in by_model if model is found.base and name in nats), None)
    for model, nats in by_model:
        if name in nats:
            e = nats[name]
            drawn = figures.interval_row(e, scale, model is found.base, reference)
            said = Cell(numbers.figure(e.value, e.half), numbers.interval(e))
            yield Cell(model.name, numeric=False), Cell(figure=drawn), said, Cell(numbers.count(e.n))


def _positions(found: Document) -> Iterable[Block]:
    models = [model for model in _alike(found) if model.positions]
    if not models:
        return
    height = 190
    scale = figures.position_scale([part for model in models for part in model.positions], height)
    base = found.base.positions if found.base else ()
    panels = []
    for model in [model for model in models if model is not found.base] or models:
        own = () if model is found.base else model.positions
        picture = figures.position_lines(base, own, scale, height, f"loss by position, {model.name} beside its base")
        panels.append(Figure(model.name, picture))
    key = Markup('<span class="key base"></span> base <span class="key own"></span> model') if found.base else None
    yield Figures(tuple(panels), "Loss by position in the window, nats per token", key)
    columns = ("position", *(model.name for model in models))
    names = list(dict.fromkeys(part.name for model in models for part in model.positions))
    cells = [{part.name: _with_interval(part.nats) for part in model.positions} for model in models]
    rows = [(Cell(name, numeric=False), *(column.get(name, Cell()) for column in cells)) for name in names]
    yield replace(table("Loss by position, nats per token", columns, rows), folded=True)


# --- speed --------------------------------------------------------------------------------------------------------------


def speed(found: Document) -> Section | None:
    """Decode and prefill with intervals, memory, and what was set."""
    blocks: list[Block] = []
    for name, caption in SPEEDS.items():
        values = [(model, model.measured(name)) for model in found.models if model.measured(name).is_known]
        if values:
            blocks.append(_interval_table(found, f"{caption} ({_how(values[0][0], name)})", "tokens/s", values))
    memory = [model for model in found.models if model.measured("memory at rest").is_known]
    if memory:
        peaks = any(model.measured("peak memory").is_known for model in memory)
        names = ("memory at rest", "peak memory") if peaks else ("memory at rest",)
        rows = [(Cell(m.name, numeric=False), *(Cell(numbers.size(m.measured(name).value)) for name in names)) for m in memory]
        blocks.append(table("Memory, counted", ("model", *names), rows))
    lead = "Median of several runs after a first one that does not count."
    return Section("speed", "Speed and memory", lead, tuple(blocks)) if blocks else None


def _how(model: Model, name: str) -> str:
    setting = model.settings.get(name, {})
    said = [f"{key} {setting[key]}" for key in ("threads", "device", "dtype", "kernel", "batch", "prompt") if setting.get(key)]
    return ", ".join(said) or "setting not recorded"
