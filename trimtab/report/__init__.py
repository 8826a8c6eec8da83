"""Reports: a comparison of models as one HTML file, and as Markdown for a model card.

Plain data in, text out; nothing here opens a model, and torch is not needed. `read` takes a comparison document
(`trimtab compare --json`), `from_folders` makes one of what single folders say, `render` and `markdown` give the text of a
file. Everything that is shown came from outside and is escaped; the HTML loads nothing and runs no script but its own.
"""

from pathlib import Path
from typing import Any

from trimtab.report import compose, markup, page
from trimtab.report.document import Document, document
from trimtab.report.folders import from_folders, with_parts
from trimtab.report.reading import Node, read_json

__all__ = ["Document", "from_folders", "markdown", "parse", "read", "render"]


def read(path: str | Path) -> Document:
    """A comparison document from its file. Raises `UsageError`: no such file, damaged, of another format version."""
    return with_parts(document(read_json(Path(path))))


def parse(fields: dict[str, Any], place: str = "the comparison") -> Document:
    """A comparison document from its JSON values. `place` is what errors call it."""
    return with_parts(document(Node(fields, place)))


def render(found: Document) -> str:
    """One self-contained HTML file."""
    return page.html(compose.compose(found))


def markdown(found: Document) -> str:
    """The same content without the drawings."""
    return markup.markdown(compose.compose(found))
