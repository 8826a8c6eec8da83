"""Chat templates: little programs in a model's files, run where they can reach nothing but the messages.

The surroundings are those that templates are written for: whitespace around blocks is trimmed, loops can be left, JSON is not
escaped for HTML, and the parts that training marks as answers are like any other text.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any, ClassVar, NoReturn

from trimtab.core.errors import UsageError

MOST_CHARACTERS = 1 << 24


def render(template: str, messages: Sequence[Mapping[str, str]], names: Mapping[str, str]) -> str:
    """The conversation as text, with the beginning of an answer. names: of special tokens, "bos_token" and so on.

    Raises `UsageError` where the template refuses the messages or is no template.
    """
    from jinja2 import TemplateError

    try:
        made = _surroundings().from_string(template)
        text = made.render(messages=[dict(message) for message in messages], add_generation_prompt=True, **names)
    except (TemplateError, TypeError, ValueError, KeyError, IndexError, AttributeError, RecursionError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"the model's chat template does not take this conversation: {said:.300}") from error
    if len(text) > MOST_CHARACTERS:
        raise UsageError(f"the model's chat template makes {len(text):,} characters of this conversation")
    return text


@cache
def _surroundings() -> Any:
    # Only a conversation needs it, and importing it takes a while.
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Answers(Extension):
        """{% generation %} ... {% endgeneration %}: what stands inside, as it is."""

        tags: ClassVar = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            inside = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(inside, lineno=line)

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
