"""From the words of a command to recipes: `--recipe FILE`, `--method ID --bits 3`, `--do "gptq(bits=3)"`, or just `--size 60MB`.

A method's options are its knobs, so they are not declared to the option parser: it hands on every word it does not know, and
here they are read against the method that was named. Where none was named, what is left to say is what the result is to be: so
large, so fast, so good.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from trimtab.core.errors import UsageError

if TYPE_CHECKING:
    from trimtab.core.kinds import Method
    from trimtab.core.knobs import Knob
    from trimtab.core.recipe import Recipe, Step, Where
    from trimtab.host.goals import Choice

NO_MODEL = "no model given; write e.g. trimtab compress asset:smollm2-135m --method gptq -o smaller"
BLOCKS = "blocks"
YES_NO = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


@dataclass(frozen=True)
class Shown:
    """What replaces the recipe's own calibration and seed; None leaves it."""

    text: str | None = None
    tokens: int | None = None
    length: int | None = None
    batch: int | None = None
    compute: str | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Request:
    """What one command asked for. words: what the option parser left over, a model and knobs. options: those it knows."""

    words: Sequence[str]
    options: Sequence[str]
    recipe: str | None = None
    method: str | None = None
    do: str | None = None
    search: str | None = None
    levels: str | None = None
    only: Sequence[str] = ()
    skip: Sequence[str] = ()
    shown: Shown = Shown()
    dtype: str | None = None


@dataclass(frozen=True)
class Understood:
    """recipes: one, or for a goal that only measuring can settle those to be tried in turn. by_goal: nothing else was named."""

    model: str
    recipes: "tuple[Recipe, ...]"
    by_goal: bool = False
    choice: "Choice | None" = None


def understand(asked: Request) -> Understood:
    """Raises `UsageError` for anything that is unknown, missing or contradictory."""
    model, values = _sort_words(asked)
    given = _ways(asked)
    if asked.levels is not None and asked.search is None:
        raise UsageError("--levels goes with --search, such as --search evopress")
    if len(given) > 1 or not (given or values):
        told = " and ".join(given) or "none"
        goals = "only a goal (--bits, --size, --speedup, --fit, --max-ppl-increase)"
        raise UsageError(f"give one of --recipe, --method, --do and --search, or {goals}; given: {told}")
    if given:
        made = _calibrated(_recipe(asked, values), asked.shown)
        if model is None:
            raise UsageError(NO_MODEL)
        return Understood(model, (made,))
    return _for_goal(asked, model, values)


def _recipe(asked: Request, values: dict[str, Any]) -> "Recipe":
    from trimtab.core.expression import make
    from trimtab.core.recipe import Recipe, Step, Where
    from trimtab.core.shipped import found

    where = Where(tuple(asked.only), tuple(asked.skip))
    if asked.search is not None:
        return _for_search(asked.search, asked.levels, values, where)
    if asked.method is not None:
        return Recipe((Step(make(asked.method, values), where),))
    if asked.do is not None:
        return _restricted(Recipe.of(asked.do), where)
    if where != Where():
        raise UsageError("--only and --skip do not go with --recipe; write `where:` into the recipe's steps")
    return found(str(asked.recipe))


def _for_goal(asked: Request, model: str | None, values: dict[str, Any]) -> Understood:
    from trimtab.cli.options import dtype_of
    from trimtab.core.goals import Goal, asked_for
    from trimtab.core.recipe import Where

    goal, where = asked_for(values), Where(tuple(asked.only), tuple(asked.skip))
    if isinstance(goal, Goal) and where != Where():
        raise UsageError(f"--only and --skip do not go with {goal.option}: recipes were measured on all matrices")
    if model is None:
        raise UsageError(NO_MODEL)
    from trimtab.host.goals import choose, first_that_fits

    if isinstance(goal, Goal):
        choice = choose(goal, model, dtype_of(asked.dtype))
        return Understood(model, tuple(_calibrated(c.measured.recipe, asked.shown) for c in choice.tried), True, choice)
    recipes = [_calibrated(_restricted(recipe, where), asked.shown) for recipe in goal]
    return Understood(model, (first_that_fits(model, recipes, dtype_of(asked.dtype)),), True)


def _for_search(search: str, levels: str | None, values: dict[str, Any], where: "Where") -> "Recipe":
    """levels: `METHOD:KNOB=VALUES`, or `METHOD` for a search that takes no levels, or `blocks`."""
    from trimtab.core.expression import make, steps
    from trimtab.core.recipe import Recipe, Step

    if levels is None:
        raise UsageError('--search needs --levels: a method and what to choose from, such as "gptq:bits=2,3,4", or blocks')
    if levels == BLOCKS:
        return Recipe((Step(make(f"{search}_{BLOCKS}", values), where),))
    head, colon, tail = levels.rpartition(":")
    if "=" not in tail or tail.endswith(")"):
        head, colon, tail = levels, "", ""
    by = make(search, {**values, **({"levels": tail} if colon else {})})
    ((method, other),) = steps(head)
    if other is not None:
        raise UsageError(f"--levels names one method, and {head!r} has an allocator of its own; leave one out")
    return Recipe((Step(method, where, by),))  # type: ignore[arg-type]  # what is no allocator, the step refuses


def _ways(asked: Request) -> list[str]:
    """The options that say what to do, as far as they were given."""
    return [f"--{name}" for name in ("recipe", "method", "do", "search") if getattr(asked, name) is not None]


def _restricted(recipe: "Recipe", where: "Where") -> "Recipe":
    """Steps that go matrix by matrix get the restriction; the others work on the whole model and have none."""
    from trimtab.core.kinds import LinearMethod
    from trimtab.core.recipe import Where

    if where == Where():
        return recipe
    if not any(isinstance(step.method, LinearMethod) for step in recipe.steps):
        raise UsageError(f"--only and --skip choose matrices, and {recipe} does not go matrix by matrix; leave them out")

    def narrowed(step: "Step") -> "Step":
        return replace(step, where=where) if isinstance(step.method, LinearMethod) else step

    return replace(recipe, steps=tuple(map(narrowed, recipe.steps)))


def _calibrated(recipe: "Recipe", shown: Shown) -> "Recipe":
    changed = {name: value for name, value in vars(shown).items() if value is not None and name != "seed"}
    seed = recipe.seed if shown.seed is None else shown.seed
    return replace(recipe, calibration=replace(recipe.calibration, **changed), seed=seed)


def _sort_words(asked: Request) -> tuple[str | None, dict[str, Any]]:
    """The model (the one word that is neither a knob nor its value) and the knobs' values."""
    models, values = sort_words(asked)
    if len(models) > 1:
        raise UsageError(f"one model at a time, got {' and '.join(models)}")
    return (models[0] if models else None), values


def sort_words(asked: Request) -> tuple[list[str], dict[str, Any]]:
    """(the words that are neither a knob nor its value, the knobs' values). Raises `UsageError` for an unknown knob."""
    known = _knobs(asked)
    models: list[str] = []
    values: dict[str, Any] = {}
    words = iter(asked.words)
    for word in words:
        if not word.startswith("-") or word == "-":
            models.append(word)
            continue
        name, value = _knob(word, known, asked)
        values[name] = _value(known[name], word, next(words, None) if value is None else value)
    return models, values


def _knobs(asked: Request) -> dict[str, "Knob"]:
    """Those of the method that was named; of goals, where nothing was."""
    from trimtab.core.goals import goals
    from trimtab.core.knobs import knobs
    from trimtab.core.registry import get

    if asked.search is not None:
        return knobs(get(f"{asked.search}_{BLOCKS}" if asked.levels == BLOCKS else asked.search))
    if asked.method is not None:
        return knobs(get(asked.method))
    return {} if _ways(asked) else goals()


def _knob(word: str, known: dict[str, "Knob"], asked: Request) -> tuple[str, Any]:
    """The knob that an option names, and its value if the word holds it."""
    option, equals, value = word.partition("=")
    name = option.removeprefix("--").replace("-", "_")
    if name in known and option.startswith("--"):
        if known[name].type is bool and not equals:
            return name, True
        return name, value if equals else None
    positive = name.removeprefix("no_")
    if positive in known and known[positive].type is bool and not equals:
        return positive, False
    raise UsageError(_unknown(option, known, asked))


def _unknown(option: str, known: dict[str, "Knob"], asked: Request) -> str:
    spelled = [spelling for name in known for spelling in spellings(name, known[name])]
    close = get_close_matches(option, [*spelled, *asked.options], n=1, cutoff=0.75)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    if asked.method is None and asked.search is None:
        return f"there is no option {option}{hint}; the knobs of a method go with --method (see trimtab methods ID)"
    return f"{asked.method or asked.search} has no knob {option}{hint}; its knobs are {', '.join(spelled) or 'none'}"


def _value(knob: "Knob", word: str, given: Any) -> Any:
    """Of the knob's type where the text allows it; where not, the method itself says what is wrong with it."""
    if given is None:
        raise UsageError(f"{word} needs a value: {knob.help}, {knob.range()}")
    if isinstance(given, bool):
        return given
    if knob.type is bool:
        return YES_NO.get(given.lower(), given)
    try:
        return knob.type(given)
    except ValueError:
        return given


def spellings(name: str, knob: "Knob") -> list[str]:
    """How a knob is written on the command line."""
    dashed = name.replace("_", "-")
    return [f"--{dashed}", f"--no-{dashed}"] if knob.type is bool else [f"--{dashed}"]


def knob_rows(method: "type[Method]") -> list[tuple[str, str, str, str]]:
    """(option, default, range, help) of every knob of a method."""
    from trimtab.core.knobs import defaults, knobs

    standard = defaults(method)
    found = knobs(method)
    return [("/".join(spellings(n, k)), str(standard.get(n, "")), _range(k), k.help) for n, k in found.items()]


def _range(knob: "Knob") -> str:
    return "yes or no" if knob.type is bool else "text" if knob.parse is not None else knob.range()
