"""The report as Markdown, for a model card: every text from outside is escaped, drawings are left out.

Escaping is by character references and backslashes, so that no name can become a link, a heading, a table cell or HTML.
"""

import re
from collections.abc import Iterable

from trimtab.report.content import Block, Cell, Code, Facts, Figure, Figures, Notes, Page, Passages, Section, Table, Tiles

MARK = "<!-- trimtab report -->"  # how a file that may be overwritten is known
SPECIAL = re.compile(r"[\\`*_\[\]|~$]")
LINE_STARTS = re.compile(r"^(\s*)([-+#=])|^(\s*\d+)([.)])(?=\s|$)")  # of headings, rules and lists
REFERENCES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "@": "&#64;", "://": "&#58;//", "www.": "www&#46;"}


def markdown(page: Page) -> str:
    parts = [MARK, f"# {escaped(page.title)}", escaped(page.lead), *(_section(section) for section in page.sections)]
    return "\n\n".join(part for part in parts if part) + "\n"


def escaped(text: str) -> str:
    """One line of plain text, whatever is in it."""
    for found, reference in REFERENCES.items():
        text = text.replace(found, reference)
    text = SPECIAL.sub(r"\\\g<0>", re.sub(r"[\r\n]+", " ", text))
    return LINE_STARTS.sub(lambda found: f"{found[1] or found[3] or ''}\\{found[2] or found[4]}", text)


def _section(section: Section) -> str:
    parts = [f"## {section.title}", escaped(section.lead), *map(_block, section.blocks)]
    return "\n\n".join(part for part in parts if part)


def _block(block: Block) -> str:
    match block:
        case Table():
            return "" if block.page_only else _table(block)
        case Tiles():
            return _tiles(block)
        case Notes():
            return "\n".join(f"- {escaped(item)}" for item in block.items)
        case Facts():
            return _lines(block.caption, ("what", "value"), [(escaped(name), escaped(value)) for name, value in block.pairs])
        case Code():
            return _fenced(block)
        case Passages():
            return _passages(block)
        case Figure() | Figures():
            return ""


def _table(block: Table) -> str:
    kept = [number for number, name in enumerate(block.columns) if name]
    grouped = any(heading for heading, _ in block.groups)
    columns = [""] * grouped + [block.columns[number] for number in kept]
    rows = [
        [escaped(heading)] * grouped + [_cell(row[number]) for number in kept] for heading, rows in block.groups for row in rows
    ]
    return _lines(block.caption, [escaped(name) for name in columns], rows)


def _lines(caption: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Cells are escaped already."""
    names = list(columns)
    head = [f"| {' | '.join(names)} |", f"|{'|'.join('---' for _ in names)}|"]
    return "\n".join([f"**{escaped(caption)}**", "", *head, *(f"| {' | '.join(row)} |" for row in rows)])


def _cell(cell: Cell) -> str:
    detail = f"({cell.detail})" if cell.detail and cell.text else cell.detail
    return escaped(" ".join(filter(None, (cell.text, detail, cell.word))))


def _tiles(block: Tiles) -> str:
    rows = []
    for tile in block.tiles:
        said = "; ".join(filter(None, (tile.note, tile.detail)))
        rows.append([escaped(tile.label), escaped(" ".join(filter(None, (tile.value, tile.word)))), escaped(said)])
    role = f", {block.role}" if block.role else ""
    verdicts = [f"**{word}**: {escaped(names)}" for word, names in block.verdicts]
    return "\n\n".join(filter(None, (_lines(f"{block.name}{role}", ("", "value", "interval and n"), rows), "; ".join(verdicts))))


def _fenced(block: Code) -> str:
    longest = max((len(run) for run in re.findall(r"`+", block.text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"**{escaped(block.caption)}**\n\n{fence}{block.language}\n{block.text}\n{fence}"


def _passages(block: Passages) -> str:
    parts = [f"**{escaped(block.prompt)}**"]
    for item in block.items:
        said = "".join(_marked(words) if differs else escaped(words) for words, differs in item.words)
        differing = f", {item.differing}" if item.differing else ""
        parts.append(f"- *{escaped(item.name)}{differing}*: {said}")
    return "\n".join([parts[0], "", *parts[1:]])


def _marked(words: str) -> str:
    """Emphasis does not begin or end with white space."""
    inner = words.strip()
    before, after = words[: len(words) - len(words.lstrip())], words[len(words.rstrip()) :]
    return f"{escaped(before)}**{escaped(inner)}**{escaped(after)}" if inner else escaped(words)
