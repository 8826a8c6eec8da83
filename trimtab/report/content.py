"""What a report is made of, whether it becomes HTML or Markdown: sections of tables, notes, figures, code, passages.

Drawings are for HTML only, so each stands beside a table that has its numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from markupsafe import Markup


@dataclass(frozen=True)
class Cell:
    """text: the number or name; detail: its interval and n, in small print; figure: HTML only; word: a verdict."""

    text: str = ""
    detail: str = ""
    figure: Markup | None = None
    word: str = ""
    numeric: bool = True


@dataclass(frozen=True)
class Table:
    """groups: (heading or "", rows). A column named "" holds drawings; its head may be a drawing too (`axis`).

    folded: opened by whoever wants the numbers. swatches: columns are named after what a drawing colours. page_only: too
    long for a model card.
    """

    kind: ClassVar[str] = "table"
    caption: str
    columns: tuple[str, ...]
    groups: tuple[tuple[str, tuple[tuple[Cell, ...], ...]], ...]
    axis: Markup | None = None
    folded: bool = False
    swatches: bool = False
    page_only: bool = False


@dataclass(frozen=True)
class Figure:
    """narrow: drawn instead where the page is narrow."""

    kind: ClassVar[str] = "figure"
    caption: str
    picture: Markup
    narrow: Markup | None = None
    note: str = ""


@dataclass(frozen=True)
class Figures:
    """Small ones side by side. caption: "" where each has its own; key: what explains them all."""

    kind: ClassVar[str] = "figures"
    items: tuple[Figure, ...]
    caption: str = ""
    key: Markup | None = None


@dataclass(frozen=True)
class Notes:
    """Short paragraphs of a list."""

    kind: ClassVar[str] = "notes"
    items: tuple[str, ...]


@dataclass(frozen=True)
class Code:
    kind: ClassVar[str] = "code"
    caption: str
    language: str
    text: str


@dataclass(frozen=True)
class Facts:
    """Names and values, short ones."""

    kind: ClassVar[str] = "facts"
    caption: str
    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Tile:
    label: str
    value: str
    detail: str = ""
    note: str = ""
    word: str = ""


@dataclass(frozen=True)
class Tiles:
    """One model at a glance. verdicts: (word, what it holds for)."""

    kind: ClassVar[str] = "tiles"
    name: str
    role: str
    tiles: tuple[Tile, ...]
    verdicts: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Passage:
    """A continuation. words: (text, whether it differs from the base's)."""

    name: str
    words: tuple[tuple[str, bool], ...]
    differing: str = ""


@dataclass(frozen=True)
class Passages:
    kind: ClassVar[str] = "passages"
    prompt: str
    items: tuple[Passage, ...]


Block = Table | Figure | Figures | Notes | Code | Facts | Tiles | Passages


@dataclass(frozen=True)
class Section:
    """lead: one sentence on what there is to see."""

    id: str
    title: str
    lead: str
    blocks: tuple[Block, ...] = ()


@dataclass(frozen=True)
class Page:
    title: str
    lead: str
    sections: tuple[Section, ...]


def table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], axis: Markup | None = None) -> Table:
    """A table without groups."""
    return Table(caption, tuple(columns), (("", tuple(map(tuple, rows))),), axis)
