"""The HTML file: a template, one style sheet and one small script, all inside, and nothing else may be loaded or run.

The content security policy allows exactly this style sheet and this script, by their digests. So even a text that slipped
through the escaping could neither run nor fetch anything.
"""

import base64
import hashlib
from functools import cache
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from trimtab.report.content import Page
from trimtab.report.figures import PARTS

MARK = '<meta name="generator" content="trimtab report">'  # how a file that may be overwritten is known


def html(page: Page) -> str:
    style, script = asset("report.css"), asset("report.js")
    policy = (
        f"default-src 'none'; style-src {_digest(style)}; script-src {_digest(script)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    template = _environment().get_template("report.html")
    own = {name: Markup(text) for name, text in (("style", style), ("script", script), ("mark", MARK))}
    return template.render(page=page, policy=policy, parts=PARTS, **own) + "\n"


@cache
def _environment() -> Environment:
    return Environment(
        loader=FunctionLoader(asset), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


@cache
def asset(name: str) -> str:
    """A template, the style sheet or the script, as text."""
    return (files("trimtab.report") / "templates" / name).read_text(encoding="utf-8").rstrip("\n")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
