"""The drawings: numbers in, SVG out. Each one also stands beside the numbers that it shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, isfinite

from markupsafe import Markup

from trimtab.report import numbers, svg
from trimtab.report.document import Bin, Estimate, Flips, Slice
from trimtab.report.layout import Box, Scale, covering, frontier, place_labels, spans
from trimtab.report.receipts import Cell, Curve
from trimtab.report.svg import Write, across

PARTS = ("embedding", "attention", "mlp", "norms", "other")
ROW, SHADES = 26, 9
LETTER = 7.0  # pixels of an average letter in labels, a wide font assumed
SIDE = 64  # pixels left of a drawing for the names of its rows; the style sheet knows this number
FAR = 14  # pixels from which on a name is led to its point by a line
NARROWEST = 300  # pixels that a drawing may have: what is written into it must fit there


# --- a dot with its whiskers, one row each ------------------------------------------------------------------------------


def interval_row(estimate: Estimate, scale: Scale, is_base: bool = False, reference: float | None = None) -> Markup:
    """One number on the scale that all rows share; `reference` is a line to compare with (the base, or nought)."""
    if not estimate.is_known:
        return svg.drawing(ROW)
    middle, kind = ROW / 2, "base" if is_base else "own"
    drawn = [svg.rules_down(scale, ROW)]
    if reference is not None and isfinite(reference):
        drawn.append(svg.line(across(scale(reference)), 0, across(scale(reference)), ROW, "reference"))
    if estimate.half > 0:
        drawn.append(_whisker(scale(estimate.low), scale(estimate.high), middle, kind))
    return svg.drawing(ROW, *drawn, svg.dot(across(scale(estimate.value)), middle, f"dot {kind}"))


def _whisker(low: float, high: float, y: float, kind: str) -> Markup:
    ends = [svg.line(across(x), y - 4, across(x), y + 4, f"whisker {kind}") for x in (low, high)]
    return svg.group([svg.line(across(low), y, across(high), y, f"whisker {kind}"), *ends])


def axis_row(scale: Scale, write: Write) -> Markup:
    """The ticks of `interval_row`, for the head of the column."""
    return svg.drawing(16, svg.ticks_across(scale, 12, write))


def interval_scale(estimates: Sequence[Estimate], *more: float, log: bool = False) -> Scale:
    """One scale for a column of rows."""
    ends = [end for e in estimates if e.is_known for end in (e.value, e.low, e.high) if isfinite(end)]
    positive = log and spans([e.value for e in estimates], 5) and min(ends) > 0
    return covering([*ends, *more], 4, 96, log=positive)


# --- size by part -------------------------------------------------------------------------------------------------------


def parts_bar(parts: Mapping[str, int], largest: int) -> Markup:
    """Bytes by part, stacked; the whole width is the largest model."""
    drawn, begun = [], 0.0
    for name in PARTS:
        share = 100 * parts.get(name, 0) / max(largest, 1)
        if share <= 0:
            continue
        said = f"{name}: {numbers.size(parts[name])}"
        hover = svg.element("title", said)
        drawn.append(svg.element("rect", hover, x=across(begun), y=3, width=across(share), height=20, class_=f"part-{name}"))
        if share / 100 * NARROWEST > LETTER * len(name) + 8:
            drawn.append(svg.words(name, across(begun + share / 2), 17, f"on-{name}"))
        begun += share
    return svg.drawing(ROW, *drawn)


# --- items that changed sides -------------------------------------------------------------------------------------------


def flips_bar(flips: Flips, most: float) -> Markup:
    """Shares of the items, lost to the left and gained to the right; `most` is the largest share of all rows."""
    middle, reach = 50.0, 34.0
    lost, gained = (reach * count / max(flips.n, 1) / max(most, 1e-12) for count in (flips.right_to_wrong, flips.wrong_to_right))
    return svg.drawing(
        ROW,
        svg.element("rect", x=across(middle - lost), y=6, width=across(lost), height=14, class_="lost"),
        svg.element("rect", x=across(middle), y=6, width=across(gained), height=14, class_="gained"),
        svg.line(across(middle), 2, across(middle), ROW - 2, "reference"),
        svg.element("text", str(flips.right_to_wrong), x=across(middle - lost), dx=-5, y=17, class_="label", text_anchor="end"),
        svg.element("text", str(flips.wrong_to_right), x=across(middle + gained), dx=5, y=17, class_="label"),
    )


# --- layers -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shading:
    """Numbers to one of `SHADES` classes. `words` says what is shown, `write` how a number is written."""

    words: str
    low: float
    high: float
    log: bool
    write: Write

    def shade(self, value: float) -> int:
        if self.high <= self.low:
            return SHADES // 2
        return min(int(Scale(self.low, self.high, 0, SHADES, self.log)(value)), SHADES - 1)


def shading(words: str, values: Sequence[float], write: Write) -> Shading:
    """Over all values that are to be compared; logarithmic where they differ by more than a factor of 20."""
    known = [v for v in values if isfinite(v)] or [0.0]
    return Shading(words, min(known), max(known), spans(known, 20), write)


def heat(cells: Sequence[Cell], values: Sequence[float], shade: Shading, hover: bool = True) -> Markup:
    """Kinds of matrices by depth: a row each, blocks from left to right. A cell without a number stays empty."""
    matrices = list(dict.fromkeys(cell.matrix for cell in cells))
    depth = max(cell.block for cell in cells) + 1
    step, row = 100 / depth, 20
    drawn = [svg.words(_cut(name, 9), -8, row * i + 14, "tick", "end") for i, name in enumerate(matrices)]
    for cell, value in zip(cells, values, strict=True):
        place = {"x": across(cell.block * step), "width": across(step * 0.94), "y": row * matrices.index(cell.matrix) + 1}
        kind = f"h{shade.shade(value)}" if isfinite(value) else "empty"
        said = f"block {cell.block} {cell.matrix}: {shade.write(value)}" if hover else ""
        drawn.append(svg.element("rect", *([svg.element("title", said)] if said else []), **place, height=row - 2, class_=kind))
    below = row * len(matrices) + 14
    every = next(n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if depth / n <= 8)
    drawn += [svg.words(str(block), across((block + 0.5) * step), below) for block in range(0, depth, every)]
    said = f"{shade.words} of {len(matrices)} kinds of matrices in {depth} blocks"
    return svg.drawing(below + 6, svg.group(drawn, transform=f"translate({SIDE},0)"), label=said, class_="inset")


def heat_key(shade: Shading) -> Markup:
    """What the shades of `heat` mean."""
    drawn = [svg.element("rect", x=18 * i, y=0, width=18, height=10, class_=f"h{i}") for i in range(SHADES)]
    whole = 18 * SHADES
    low, high = shade.write(shade.low), shade.write(shade.high)
    ends = [svg.words(low, 0, 24, anchor="start"), svg.words(high, whole, 24, anchor="end")]
    return svg.picture(whole, 28, *drawn, *ends, label=f"light is {low}, full is {high}")


# --- loss by position ---------------------------------------------------------------------------------------------------


def position_scale(slices: Sequence[Slice], height: float) -> Scale:
    """One scale downwards for all panels."""
    ends = [end for s in slices for end in (s.nats.value, s.nats.low, s.nats.high)]
    return covering(ends, height - 24, 6)


def position_lines(base: Sequence[Slice], own: Sequence[Slice], scale: Scale, height: float, label: str) -> Markup:
    """Loss over the position in the window, the base hollow, the model filled; places are those of the longer list."""
    ticks = scale.ticks(4)
    drawn = [svg.line("0%", scale(t), "100%", scale(t), "rule") for t in ticks]
    drawn += [svg.words(numbers.figure(t), -8, scale(t) + 4, "tick", "end") for t in ticks]
    longer = max(base, own, key=len)
    count = max(len(longer), 1)
    every = ceil(count / 6)
    for number in range(0, len(longer), every):
        drawn.append(svg.words(str(longer[number].begin), across(100 * (number + 0.5) / count), height - 6))
    for slices, kind, shift in ((base, "base", -0.5), (own, "own", 0.5)):
        drawn += _line([(100 * (i + 0.5) / count + shift, s.nats) for i, s in enumerate(slices)], scale, kind)
    return svg.drawing(height, svg.group(drawn, transform=f"translate({SIDE},0)"), label=label, class_="inset")


def _line(points: Sequence[tuple[float, Estimate]], scale: Scale, kind: str) -> list[Markup]:
    known = [(x, e) for x, e in points if e.is_known]
    drawn = [svg.line(across(a), scale(e.value), across(b), scale(f.value), f"line {kind}") for (a, e), (b, f) in pairwise(known)]
    for x, e in known:
        if e.half > 0:
            drawn.append(svg.line(across(x), scale(e.low), across(x), scale(e.high), f"whisker {kind}"))
        drawn.append(svg.dot(across(x), scale(e.value), f"dot {kind}", 3.5))
    return drawn


# --- what was learned ---------------------------------------------------------------------------------------------------

MOST_STEPS = 200  # drawn of a training; of more, neighbours are averaged


def learning_lines(learned: Curve, height: float, label: str) -> Markup:
    """Loss of the steps as a line, validations as dots; steps to the right, nats per learned token upwards."""
    losses, steps = _thinned(learned.losses), max(len(learned.losses), *(step for step, _ in learned.validations), 1)
    checked = [(step, loss) for step, loss in learned.validations if isfinite(loss)]
    scale = covering([loss for _, loss in (*losses, *checked)], height - 24, 6)
    drawn = [svg.line("0%", scale(t), "100%", scale(t), "rule") for t in scale.ticks(4)]
    drawn += [svg.words(numbers.figure(t), -8, scale(t) + 4, "tick", "end") for t in scale.ticks(4)]
    drawn += [svg.words(f"{steps * quarter // 4}", across(25 * quarter), height - 6) for quarter in range(5)]
    drawn += [
        svg.line(across(100 * a / steps), scale(before), across(100 * b / steps), scale(after), "line base")
        for (a, before), (b, after) in pairwise(losses)
    ]
    drawn += [
        svg.line(across(100 * a / steps), scale(before), across(100 * b / steps), scale(after), "line own")
        for (a, before), (b, after) in pairwise(checked)
    ]
    drawn += [
        svg.dot(across(100 * step / steps), scale(loss), "dot own", 3.5, svg.element("title", f"step {step}: {loss:.4f}"))
        for step, loss in checked
    ]
    return svg.drawing(height, svg.group(drawn, transform=f"translate({SIDE},0)"), label=label, class_="inset")


def _thinned(losses: Sequence[float]) -> list[tuple[float, float]]:
    """(step, mean loss of the steps around it), finite ones alone."""
    width, known = ceil(len(losses) / MOST_STEPS), list[tuple[float, float]]()
    for begin in range(0, len(losses), max(width, 1)):
        some = [loss for loss in losses[begin : begin + width] if isfinite(loss)]
        if some:
            known.append((begin + (width - 1) / 2, sum(some) / len(some)))
    return known


# --- calibration --------------------------------------------------------------------------------------------------------

SQUARE, EDGE = 250, 36


def reliability(bins: Sequence[Bin], label: str, kind: str) -> Markup:
    """Confidence to the right, how often it was right upwards; on the diagonal both agree. A dot's area is its share of n."""
    x, y = Scale(0, 1, EDGE, SQUARE - 8), Scale(0, 1, SQUARE - EDGE, 24)
    quarters = (0.0, 0.25, 0.5, 0.75, 1.0)
    drawn = [svg.line(x(0), y(q), x(1), y(q), "rule") for q in quarters]
    drawn += [svg.words(f"{q:g}", x(q), SQUARE - 18) for q in quarters]
    drawn += [svg.words(f"{q:g}", EDGE - 6, y(q) + 4, anchor="end") for q in quarters]
    drawn += [svg.words("confidence", x(0.5), SQUARE - 3), svg.words("share that was right", 0, 10, anchor="start")]
    drawn.append(svg.line(x(0), y(0), x(1), y(1), "reference"))
    known = [b for b in bins if isfinite(b.confidence) and isfinite(b.accuracy)]
    drawn += [
        svg.line(x(a.confidence), y(a.accuracy), x(b.confidence), y(b.accuracy), f"line {kind}") for a, b in pairwise(known)
    ]
    most = max((b.n for b in known), default=1)
    for b in known:
        said = f"confidence {b.confidence:.2f}, right {b.accuracy:.2f}, n = {numbers.count(b.n)}"
        drawn.append(
            svg.dot(x(b.confidence), y(b.accuracy), f"dot {kind}", 2.5 + 4.5 * (b.n / most) ** 0.5, svg.element("title", said))
        )
    return svg.picture(SQUARE, SQUARE, *drawn, label=label)


# --- the trade-off ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """One model: what it costs, and how good it is."""

    name: str
    cost: float
    quality: Estimate
    is_base: bool = False


@dataclass(frozen=True)
class Axes:
    """What the trade-off is between, and how the numbers are written."""

    cost: str
    quality: str
    lower_is_better: bool
    write_cost: Write
    write_quality: Write


def trade_off(points: Sequence[Point], axes: Axes, width: float, height: float) -> Markup:
    """Cost to the right, quality upwards or downwards, with whiskers, the line of the best, and a name at every point."""
    left, right, top, bottom = 58.0, 14.0, 22.0, 40.0
    costs = [p.cost for p in points]
    values = [end for p in points for end in (p.quality.value, p.quality.low, p.quality.high) if isfinite(end)]
    log = spans([p.quality.value for p in points], 4) and min(values) > 0
    x = covering(costs, left, width - right, log=spans(costs, 4), margin=0.12)
    y = covering(values, height - bottom, top, log=log, margin=0.1)
    best = [points[i] for i in frontier([(p.cost, p.quality.value) for p in points], axes.lower_is_better)]
    drawn = [*_grid(x, y, axes, width, height), *_stairs(best, x, y, width - right)]
    for p in points:
        kind = "base" if p.is_base else "own" if p in best else "beaten"
        if p.quality.half > 0:
            drawn.append(svg.line(x(p.cost), y(p.quality.low), x(p.cost), y(p.quality.high), f"whisker {kind}"))
        said = f"{p.name}: {axes.write_cost(p.cost)}, {axes.write_quality(p.quality.value)}"
        drawn.append(svg.dot(x(p.cost), y(p.quality.value), f"dot {kind}", 5.0, svg.element("title", said)))
    drawn += _names(points, x, y, Box(left, top - 8, width - 2, height - bottom + 4), best)
    return svg.picture(width, height, *drawn, label=f"{axes.quality} against {axes.cost} of {len(points)} models")


def _grid(x: Scale, y: Scale, axes: Axes, width: float, height: float) -> list[Markup]:
    drawn = [svg.line(x.start, y(t), x.end, y(t), "rule") for t in y.ticks(5)]
    drawn += [svg.words(axes.write_quality(t), x.start - 8, y(t) + 4, anchor="end") for t in y.ticks(5)]
    drawn += [svg.words(axes.write_cost(t), x(t), height - 22) for t in x.ticks(int(width / 130))]
    better = "lower is better" if axes.lower_is_better else "higher is better"
    drawn.append(svg.words(f"{axes.quality}, {better}", 0, 11, "axis", "start"))
    drawn.append(svg.words(axes.cost, x.end, height - 4, "axis", "end"))
    return drawn


def _stairs(best: Sequence[Point], x: Scale, y: Scale, end: float) -> list[Markup]:
    """From each of the best straight on to the cost of the next one: what can be had for at most that cost."""
    return [svg.line(a[0], a[1], b[0], b[1], "frontier") for a, b in pairwise(_corners(best, x, y, end))]


def _corners(best: Sequence[Point], x: Scale, y: Scale, end: float) -> list[tuple[float, float]]:
    spots = [(x(p.cost), y(p.quality.value)) for p in best]
    corners = [corner for a, b in pairwise(spots) for corner in (a, (b[0], a[1]))]
    return [*corners, *spots[-1:], *((end, spot[1]) for spot in spots[-1:])]


def _names(points: Sequence[Point], x: Scale, y: Scale, frame: Box, best: Sequence[Point]) -> list[Markup]:
    spots = [(x(p.cost), y(p.quality.value)) for p in points]
    taken = [Box(x(p.cost) - 2, y(p.quality.high), x(p.cost) + 2, y(p.quality.low)) for p in points if p.quality.half > 0]
    for (ax, ay), (bx, by) in pairwise(_corners(best, x, y, frame.right)):
        taken.append(Box(min(ax, bx) - 1, min(ay, by) - 1, max(ax, bx) + 1, max(ay, by) + 1))
    names = [_cut(p.name, int((frame.right - frame.left) / LETTER / 1.8)) for p in points]
    boxes = place_labels(spots, [LETTER * len(name) for name in names], 14, frame, taken)
    drawn = []
    for name, (spot_x, spot_y), box in zip(names, spots, boxes, strict=True):
        if box:
            edge = min(max(spot_x, box.left), box.right), min(max(spot_y, box.top), box.bottom)
            if max(abs(edge[0] - spot_x), abs(edge[1] - spot_y)) > FAR:
                drawn.append(svg.line(spot_x, spot_y, *edge, "leader"))
            drawn.append(svg.words(name, box.left, box.bottom - 3, "label", "start"))
    return drawn


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: max(most - 1, 1)] + "…"
