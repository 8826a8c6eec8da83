"""The one place where markup is put together by hand: SVG elements, everything in them escaped.

Most drawings are as wide as the page lets them: their places across are percentages, those downwards pixels, so letters keep
their size on a telephone. Colours are classes of the style sheet and follow the reader's colour scheme.
"""

from collections.abc import Callable, Iterable

from markupsafe import Markup, escape

from trimtab.report.layout import Scale

Write = Callable[[float], str]
Child = Markup | str


def element(name: str, *children: Child, **attributes: object) -> Markup:
    """`element("rect", x=1, class_="dot")`: a trailing _ is dropped, the others become -; None leaves an attribute out."""
    written = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _short(value))
        for key, value in attributes.items()
        if value is not None
    )
    inside = Markup("").join(escape(child) for child in children)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), written, inside)


def _short(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def across(place: float) -> str:
    """A place or width across, in percent."""
    return f"{_short(float(place))}%"


def drawing(height: float, *children: Child, label: str | None = None, class_: str = "") -> Markup:
    """As wide as its surroundings. Without a label it only repeats what stands beside it, and is not read out."""
    return element("svg", *children, class_=f"drawing {class_}".strip(), width="100%", height=height, **_spoken(label))


def picture(width: float, height: float, *children: Child, label: str) -> Markup:
    """Of a size of its own; shrinks where there is less room."""
    view = f"0 0 {_short(float(width))} {_short(float(height))}"
    return element("svg", *children, class_="picture", width=width, height=height, viewBox=view, **_spoken(label))


def _spoken(label: str | None) -> dict[str, str]:
    return {"aria_hidden": "true"} if label is None else {"role": "img", "aria_label": label}


def words(text: str, x: float | str, y: float, class_: str = "tick", anchor: str = "middle") -> Markup:
    return element("text", text, x=x, y=y, class_=class_, text_anchor=None if anchor == "start" else anchor)


def line(x1: float | str, y1: float, x2: float | str, y2: float, class_: str) -> Markup:
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def dot(x: float | str, y: float, class_: str, radius: float = 4.5, *children: Child) -> Markup:
    return element("circle", *children, cx=x, cy=y, r=radius, class_=class_)


def group(children: Iterable[Child], **attributes: object) -> Markup:
    return element("g", *children, **attributes)


def ticks_across(scale: Scale, y: float, write: Write, about: int = 3) -> Markup:
    """Tick labels at percentages."""
    return group(words(write(tick), across(scale(tick)), y) for tick in scale.ticks(about))


def rules_down(scale: Scale, height: float, about: int = 3) -> Markup:
    """Faint lines at the ticks of a scale in percent."""
    return group(line(across(scale(t)), 0, across(scale(t)), height, "rule") for t in scale.ticks(about))
