"""What is on the pages: values in, HTML out. Drawings, tables and chapters are those of the report."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from math import isfinite
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

from trimtab import __version__
from trimtab.report import numbers, page, sections
from trimtab.report.compose import compose
from trimtab.report.content import Block, Figure, Figures, Section
from trimtab.report.document import Document, Model
from trimtab.report.figures import PARTS, Axes, Point, trade_off
from trimtab.ui.places import Places
from trimtab.ui.shelf import Shelf, only, speed

PROMPTS = (
    "The capital of France is",
    "Water boils at a temperature of",
    "Once upon a time, in a small village by the sea,",
    "The three most important inventions of the last century are",
)


@dataclass(frozen=True)
class Row:
    """A result in a line. at: its place in an address, "" for a base that is elsewhere; quality: (number, interval, verdict)."""

    name: str
    at: str
    is_base: bool
    made: str
    size: str
    smaller: str
    bits: str
    quality: tuple[str, str, str]
    accuracy: str
    speed: str


def results(places: Places, shelf: Shelf, found: Document | None, comparison: Path | None, base: str) -> str:
    """The folder: what a size buys, and the results one by one."""
    rows = [_row(places, found, model) for model in found.models] if found else []
    drawn = found and _trade_offs(found)
    return _html(
        "results.html",
        here="results",
        title=shelf.folder.name or str(shelf.folder),
        crumbs=_crumbs(places, shelf.folder),
        folder=places.name(shelf.folder),
        folders=[(path.name, places.name(path)) for path in shelf.folders],
        comparisons=[path.name for path in shelf.comparisons],
        comparison=comparison.name if comparison else "",
        rows=rows,
        asked=sections.common_tasks(found.models) if found else [],
        text=_text(found) if found else "",
        unmeasured=sum(not row.is_base and row.quality[0] == numbers.UNKNOWN for row in rows),
        base=base,
        drawn=drawn,
        setting=_setting(found),
        sizes=sections.size(found) if found else None,
    )


def result(places: Places, shelf: Shelf, found: Document, path: Path, base: str) -> str:
    """One result: the report on it."""
    whole = compose(only(found, path))
    chapters = [section for section in whole.sections if section.id != "trade-off"]
    return _html(
        "result.html",
        here="results",
        title=path.name,
        crumbs=_crumbs(places, path),
        at=places.name(path),
        folder=places.name(shelf.folder),
        base=base,
        lead=whole.lead,
        chapters=chapters,
    )


def talk(places: Places, folder: Path, at: str, base: str, models: list[tuple[str, str]]) -> str:
    """models: (what to show, the word for it)."""
    return _html(
        "talk.html",
        here="talk",
        title="Side by side",
        folder=places.name(folder),
        models=models,
        left=base,
        right=at,
        prompts=PROMPTS,
    )


def compress(places: Places, shelf: Shelf, models: list[tuple[str, str]], model: str) -> str:
    return _html(
        "compress.html",
        here="compress",
        title="Compress",
        folder=places.name(shelf.folder),
        models=models,
        model=model,
        recipes=[(path.name, places.name(path)) for path in shelf.recipes],
        taken=[path.name for path in shelf.results],
    )


def trouble(message: str) -> str:
    """Something that cannot be shown, in the words of the command line."""
    return _html("trouble.html", here="", title="That did not work", folder="", message=message)


# --- the trade-off ------------------------------------------------------------------------------------------------------


def _trade_offs(found: Document) -> Section | None:
    """The report's, and how long a token takes beside it."""
    section = sections.trade_off(found)
    if section is None:
        return None
    items = [block for block in section.blocks if isinstance(block, Figures)]
    left: list[Block] = [block for block in section.blocks if not isinstance(block, Figures)]
    timed = _by_speed(found)
    drawn = [figure for block in items for figure in block.items] + ([timed] if timed else [])
    return replace(section, blocks=(Figures(tuple(drawn)), *left))


def _by_speed(found: Document) -> Figure | None:
    text = _text(found)
    points = [Point(m.name, speed(m), m.measured(text), m is found.base) for m in found.models]
    known = [point for point in points if isfinite(point.cost) and point.quality.is_known]
    if len(known) < 2:
        return None
    axes = Axes("milliseconds per token", text, True, numbers.roughly, numbers.figure)
    wide, narrow = trade_off(known, axes, 460, 360), trade_off(known, axes, 336, 330)
    return Figure(f"{text[:1].upper()}{text[1:]} against time per token", wide, narrow, "decoding, one after the other")


def _text(found: Document) -> str:
    return "bits per byte" if any(map(sections.is_foreign, found.models)) else "perplexity"


def _setting(found: Document | None) -> str:
    """On what the numbers were measured, in a line; empty where nothing was."""
    setting = found.setting if found and found.base else {}
    known = [f"{numbers.listed(setting[name])}" for name in ("texts",) if setting.get(name)]
    known += [f"{setting['windows']} windows of {setting['length']} tokens"] if "windows" in setting else []
    return ", ".join(known)


# --- rows ---------------------------------------------------------------------------------------------------------------


def _row(places: Places, found: Document, model: Model) -> Row:
    size, base = model.measured("file size"), found.base.measured("file size") if found.base else None
    is_base = model is found.base
    times = base.value / size.value if base and base.is_known and size.is_known and size.value and model.against else 0.0
    mean = sections.mean_accuracy(model, sections.common_tasks(found.models))
    rate = model.measured("decode speed")
    return Row(
        model.name,
        "" if is_base else _at(places, model),
        is_base,
        " → ".join(step.method for step in model.record.steps) if model.record else "",
        numbers.size(size.value),
        f"{times:.3g}×" if times > 1 else "",
        numbers.figure(_bits(model)),
        _quality(model, _text(found)),
        numbers.percent(mean.value, mean.half) if mean.is_known else numbers.UNKNOWN,
        numbers.figure(rate.value, rate.half) if rate.is_known else numbers.UNKNOWN,
    )


def _bits(model: Model) -> float:
    """As measured; else what the last step left of the matrices that it was given, by its receipt."""
    measured = sections.bits(model)
    steps = model.record.steps if model.record else ()
    return measured.value if measured.is_known or not steps else steps[-1].bits_after


def _quality(model: Model, text: str) -> tuple[str, str, str]:
    value = model.measured(text)
    difference = model.against.differences.get(text) if model.against else None
    if not value.is_known:
        return numbers.UNKNOWN, "", ""
    return numbers.figure(value.value, value.half), numbers.interval(value), difference.verdict if difference else ""


def _at(places: Places, model: Model) -> str:
    folder = Path(model.folder)
    return places.name(folder) or "." if folder.is_relative_to(places.root) else ""


def _crumbs(places: Places, path: Path) -> list[tuple[str, str]]:
    """The way from the root: (name, place in an address)."""
    above = [path, *path.parents]
    way = [step for step in above if step.is_relative_to(places.root)]
    return [(step.name or str(step), places.name(step)) for step in reversed(way)]


# --- templates ----------------------------------------------------------------------------------------------------------


def _html(name: str, **values: Any) -> str:
    return _environment().get_template(name).render(parts=PARTS, version=__version__, **values)


def static(name: str) -> tuple[str, str]:
    """(text, its kind) of a style sheet or a script. Raises KeyError for a name that is none."""
    kinds = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    if name == "report.css":
        return page.asset(name), kinds["css"]
    if name not in _names():
        raise KeyError(name)
    return _own("static", name), kinds[name.rpartition(".")[2]]


@cache
def _names() -> frozenset[str]:
    return frozenset(entry.name for entry in (files("trimtab.ui") / "static").iterdir())


@cache
def _environment() -> Environment:
    return Environment(
        loader=FunctionLoader(_template), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def _template(name: str) -> str:
    return page.asset(name) if name == "blocks.html" else _own("templates", name)


@cache
def _own(kind: str, name: str) -> str:
    return (files("trimtab.ui") / kind / name).read_text(encoding="utf-8")
