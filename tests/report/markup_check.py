"""Reads a page as a strict person would: every tag closed in order, ids once, nothing that could fetch or run."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "link", "br", "hr", "img", "input", "wbr"}
FETCHES = {"src", "href", "srcset", "data", "action", "formaction", "poster", "background", "cite", "ping", "manifest"}


@dataclass
class Tag:
    name: str
    attributes: dict[str, str | None]
    text: str = ""
    inside: list["Tag"] = field(default_factory=list)


class Page(HTMLParser):
    """tags: all, in order. AssertionError for markup that is not well-formed."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.tags: list[Tag] = []
        self.open: list[Tag] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {[tag.name for tag in self.open]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), f"<{tag}> has an attribute twice: {names}"
        made = Tag(tag, dict(attrs))
        self.tags.append(made)
        for outer in self.open:
            outer.inside.append(made)
        if tag not in VOID:
            self.open.append(made)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1].name == tag, f"</{tag}> closes <{self.open[-1].name}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for tag in self.open:
            tag.text += data

    def named(self, name: str) -> list[Tag]:
        return [tag for tag in self.tags if tag.name == name]

    def check(self) -> None:
        ids = [tag.attributes["id"] for tag in self.tags if "id" in tag.attributes]
        assert len(set(ids)) == len(ids), "an id occurs twice"
        for tag in self.tags:
            for name, value in tag.attributes.items():
                assert not name.startswith("on"), f"<{tag.name} {name}>"
                assert name != "style", f"<{tag.name} style>"
                if name in FETCHES:
                    assert value == "data:," or (value or "").startswith("#"), f"<{tag.name} {name}={value}>"
                if name in ("aria-labelledby", "aria-describedby"):
                    assert value in ids, f"{value} is nowhere"
                if name == "href" and value != "data:,":
                    assert (value or "")[1:] in ids, f"{value} leads nowhere"
