"""Recipe expressions: the one-line form of a recipe, `wanda(pattern='2:4') -> gptq(bits=4) by layerwise_quant(bits=3)`.

Grammar: steps joined by `->`; a step is `id`, `id(name=literal, ...)`, optionally followed by `by` and an allocator.
Parsed with Python's own grammar, never evaluated: only names, keywords and literals are accepted.
"""

import ast

from trimtab.core.errors import RecipeError, UsageError, did_you_mean
from trimtab.core.kinds import Method, method_field_error
from trimtab.core.knobs import knobs
from trimtab.core.registry import get

LONGEST = 4000


def make(id: str, values: dict[str, object]) -> Method:
    """The method `id` with these hyperparameters. Raises `UsageError` naming an unknown id, field or bad value."""
    method = get(id)
    known = list(knobs(method))
    for name in values:
        if name not in known:
            raise method_field_error(id, name, known, did_you_mean(name, known) if known else "")
    return method(**values)


def steps(expression: str) -> list[tuple[Method, Method | None]]:
    """(method, allocator or None) per step. Raises `RecipeError` or `UsageError` saying which part is wrong."""
    if len(expression) > LONGEST:
        raise RecipeError(f"recipe expression of {len(expression)} characters; at most {LONGEST}: write a YAML recipe")
    return [_step(part) for part in expression.split("->")]


def _step(part: str) -> tuple[Method, Method | None]:
    head, by, tail = part.partition(" by ")
    return _call(head), _call(tail) if by else None


def _call(text: str) -> Method:
    text = text.strip()
    if not text:
        raise RecipeError("empty step in the recipe expression; write e.g. gptq(bits=3)")
    try:
        node = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise RecipeError(f"cannot read {text!r:.200} as a recipe step; write e.g. gptq(bits=3)") from error
    if isinstance(node, ast.Name):
        return make(node.id, {})
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)) or node.args:
        raise RecipeError(f"cannot read {text!r:.200} as a recipe step; write e.g. gptq(bits=3), every value with its name")
    return make(node.func.id, {k.arg or "**": _literal(k.value, text) for k in node.keywords})


def _literal(node: ast.expr, text: str) -> object:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise UsageError(f"only plain values are allowed in {text!r:.200}") from error
