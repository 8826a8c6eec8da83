"""From what was filled in to the words of a command. What they mean is checked by the command itself (`trimtab plan`).

Here only what could lead out of the folder, or smuggle in an option, is refused: values are given as `--name=value`, and a knob
has to be one of the method's.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from trimtab.core.errors import UsageError, did_you_mean
from trimtab.ui.places import Places

Value = bool | int | float | str
LONGEST = 2000  # characters of a value
MISSING = {
    **{"bits": "bits per weight", "size": "a size", "speedup": "how many times as fast", "fit": "an amount of memory"},
    **{"max-ppl-increase": "a share of perplexity", "method": "a method", "do": "steps", "recipe": "a recipe"},
}


class Asked(BaseModel):
    """What the page sends. way: how it is said what to do; only its own fields count."""

    model_config = ConfigDict(extra="forbid", str_max_length=LONGEST)

    folder: str = ""
    model: str
    name: str
    way: Literal["bits", "size", "speedup", "fit", "max-ppl-increase", "method", "do", "recipe"]
    value: str = ""
    knobs: dict[str, Value] = Field(default_factory=dict, max_length=50)
    text: str = ""
    tokens: int | None = Field(None, ge=1)
    length: int | None = Field(None, ge=2)
    seed: int | None = None
    dtype: str = ""
    only: list[str] = Field(default_factory=list, max_length=50)
    skip: list[str] = Field(default_factory=list, max_length=50)
    packed: bool = False


def words(asked: Asked, places: Places, methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What follows `trimtab compress` or `trimtab plan`, but for the output. Raises `UsageError`."""
    return [places.model(asked.model), *_what(asked, places, methods), *_how(asked, places)]


def _what(asked: Asked, places: Places, methods: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    if not asked.value:
        raise UsageError(f"give {MISSING[asked.way]}")
    match asked.way:
        case "bits" | "size" | "speedup" | "fit" | "max-ppl-increase":
            yield f"--{asked.way}={asked.value}"
        case "do":
            yield f"--do={places.expression(asked.value)}"
        case "recipe":
            yield f"--recipe={places.recipe(asked.value)}"
        case "method":
            if asked.value not in methods:
                raise UsageError(f"there is no method {asked.value!r}{did_you_mean(asked.value, methods)}")
            yield f"--method={asked.value}"
            yield from _knobs(asked.value, asked.knobs, methods[asked.value]["knobs"], places)


def _knobs(method: str, given: Mapping[str, Value], known: Sequence[Mapping[str, Any]], places: Places) -> Iterator[str]:
    names = [knob["name"] for knob in known]
    for name, value in given.items():
        if name not in names:
            raise UsageError(f"{method} has no knob {name!r}{did_you_mean(name, names)}")
        dashed = name.replace("_", "-")
        if isinstance(value, bool):
            yield f"--{dashed}" if value else f"--no-{dashed}"
        else:
            places.check_mention(str(value))
            yield f"--{dashed}={value}"


def _how(asked: Asked, places: Places) -> Iterator[str]:
    if asked.text:
        yield f"--text={places.text(asked.text)}"
    for name in ("tokens", "length", "seed"):
        if getattr(asked, name) is not None:
            yield f"--{name}={getattr(asked, name)}"
    if asked.dtype:
        yield f"--dtype={asked.dtype}"
    yield from (f"--only={pattern}" for pattern in asked.only)
    yield from (f"--skip={pattern}" for pattern in asked.skip)
    if asked.packed:
        yield "--packed"
