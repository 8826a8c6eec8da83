"""Which chapters a report has: those for which there is something to say, in the order in which a reader asks."""

from trimtab.report import answers, history, sections
from trimtab.report.content import Page, Section
from trimtab.report.document import Document
from trimtab.report.numbers import listed

CHAPTERS = (
    sections.glance,
    sections.trade_off,
    sections.size,
    sections.loss,
    answers.tasks,
    answers.calibration,
    answers.text,
    sections.speed,
    history.layers,
    history.learning,
    history.recipes,
    history.receipt,
    history.reading,
)

UNSAID = ("interval", "samples")


def compose(found: Document) -> Page:
    chapters: list[Section | None] = [chapter(found) for chapter in CHAPTERS]
    return Page(_title(found), _lead(found), tuple(chapter for chapter in chapters if chapter))


def _title(found: Document) -> str:
    if found.base is None:
        return ", ".join(model.name for model in found.others[:3]) + (" and more" if len(found.others) > 3 else "")
    if len(found.others) == 1:
        return f"{found.others[0].name} against {found.base.name}"
    return f"{len(found.others)} models against {found.base.name}" if found.others else found.base.name


def _lead(found: Document) -> str:
    """The setting in a line, as far as it is made of single values."""
    unsaid = UNSAID if found.setting.get("tasks") else (*UNSAID, "limit")
    said = [f"{name} {listed(value)}" for name, value in found.setting.items() if _is_short(value) and name not in unsaid]
    if found.made.get("date"):
        said.append(f"made {str(found.made['date'])[:10]}")
    return ", ".join(said)


def _is_short(value: object) -> bool:
    return isinstance(value, str | int | float | list | tuple) and value is not False and value not in ("", [], ())
