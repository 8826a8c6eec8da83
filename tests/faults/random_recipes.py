"""Recipes that nobody would write, drawn from what methods declare: each has a plan, or is refused in one line."""

from functools import cache
from random import Random
from typing import Any

from trimtab.anatomy import Anatomy
from trimtab.core.knobs import Knob, defaults, knobs
from trimtab.core.recipe import Recipe
from trimtab.core.registry import get, ids
from trimtab.engine.plan import plan
from trimtab.testing.tiny import tiny

FAMILIES = ("llama", "gpt2", "mixtral", "gemma2")
PATTERNS = ("*", "*q_proj*", "*.0.*", "model.layers.1.mlp.*", "*expert*", "nothing", "[", "*lm_head*", "*down_proj", "**")
WIDE = 1000  # where a knob has no highest value


@cache
def anatomy(family: str) -> Anatomy:
    return Anatomy.of(tiny(family))


def drawn(draw: Random) -> dict[str, Any]:
    """A recipe as a file has it."""
    return {"steps": [_step(draw) for _ in range(draw.choice((1, 1, 2, 2, 3, 5)))], "seed": draw.randrange(3)}


def planned(draw: Random) -> None:
    """Raises what `plan` raises."""
    plan(anatomy(draw.choice(FAMILIES)), Recipe.from_dict(drawn(draw)), draw.random() < 0.3)


def _step(draw: Random) -> dict[str, Any]:
    step: dict[str, Any] = {draw.choice(ids()): {}}
    (id,) = step
    step[id] = _values(id, draw)
    if draw.random() < 0.3:
        step["where"] = {draw.choice(("only", "skip")): draw.sample(PATTERNS, draw.randint(1, 2))}
    if draw.random() < 0.15:
        other = draw.choice(ids())
        step["by"] = {other: _values(other, draw)}
    return step


def _values(id: str, draw: Random) -> dict[str, Any]:
    usual = defaults(get(id))
    return {name: _value(knob, usual.get(name), draw) for name, knob in knobs(get(id)).items() if draw.random() < 0.5}


def _value(knob: Knob, usual: Any, draw: Random) -> Any:
    """Mostly a legal one."""
    if draw.random() < 0.03:
        return draw.choice((None, -1, 1e400, "x", [], {}, True, 10**400, float("nan")))
    if knob.options:
        return draw.choice(knob.options)
    if knob.type is bool:
        return draw.random() < 0.5
    if knob.type is str:
        return usual
    low = 0 if knob.low is None else knob.low
    high = low + WIDE if knob.high is None else knob.high
    return draw.randint(int(low), int(high)) if knob.type is int else draw.choice((low, high, draw.uniform(low, high)))
