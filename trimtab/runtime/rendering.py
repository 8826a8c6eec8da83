"""Renders one chat template, as a program of its own: a template is a program too, and may go on for ever or fill the memory.

Reads {"template", "messages", "names"} as JSON from stdin and writes {"text"} or {"refused"} to stdout, within `SECONDS` of
processor time and `MEMORY` bytes. Imports nothing of trimtab, so that it starts in a tenth of a second.

The surroundings are those that templates are written for: whitespace around blocks is trimmed, loops can be left, JSON is not
escaped for HTML, and the parts that training marks as answers are like any other text.
"""

import json
import sys
from datetime import datetime
from typing import Any, ClassVar, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

MOST_CHARACTERS = 1 << 24
SECONDS, MEMORY = 2, 1 << 30


class Answers(Extension):
    """{% generation %} ... {% endgeneration %}: what stands inside, as it is."""

    tags: ClassVar = {"generation"}

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        inside = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(inside, lineno=line)


def answer(task: dict[str, Any]) -> dict[str, str]:
    """{"text"}, or {"refused"} with one line that says why."""
    # Whatever goes wrong inside of a template is the template's fault.
    try:
        made = _surroundings().from_string(task["template"])
        text = made.render(messages=task["messages"], tools=None, documents=None, add_generation_prompt=True, **task["names"])
    except Exception as error:
        return {"refused": (str(error).splitlines() or [type(error).__name__])[0][:300]}
    if len(text) > MOST_CHARACTERS:
        return {"refused": f"it makes {len(text):,} characters of it"}
    return {"text": text}


def _surroundings() -> Any:
    def refuse(message: str) -> NoReturn:
        raise TemplateError(message)

    def as_json(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    def now(form: str) -> str:
        return datetime.now().strftime(form)

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Answers, loopcontrols])
    made.filters["tojson"] = as_json
    made.globals |= {"raise_exception": refuse, "strftime_now": now}
    return made


def _limit() -> None:
    """Where the system has such limits."""
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


if __name__ == "__main__":
    _limit()
    sys.stdout.write(json.dumps(answer(json.load(sys.stdin))))
