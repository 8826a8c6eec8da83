"""What every method must keep, whatever its kind: it is a frozen, checked, documented value."""

import ast
import inspect
import sys
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, fields
from math import nan
from typing import Any, get_args

import yaml

from trimtab.core import registry
from trimtab.core.card import Claim, Fidelity
from trimtab.core.errors import UsageError
from trimtab.core.expression import make
from trimtab.core.kinds import Allocator, BlockMethod, ChannelMethod, LinearMethod, Method, ProbeMethod, Trials
from trimtab.core.knobs import Knob, knobs
from trimtab.core.narrowing import NarrowingMethod
from trimtab.core.observed import Observed
from trimtab.core.recipe import Recipe, Step
from trimtab.core.taught import TaughtMethod
from trimtab.testing.problems import expect

READ_BY_ENGINE = {ChannelMethod: ("sparsity", "of", "units", "uniform", "windows"), BlockMethod: ("epochs",)} | {
    TaughtMethod: ("steps", "windows", "learning_rate"),
    NarrowingMethod: ("uniform",),  # by their pupils, `formats/gates.py`
}


def is_registered(method: type[Any]) -> None:
    """Found by its id, in `methods/` or through the entry point group `trimtab.methods`."""
    found = registry.get(method.card.id)
    expect(found is method, f"the id {method.card.id!r} belongs to {found.__module__}.{found.__qualname__}")


def is_made_without_arguments(method: type[Any]) -> None:
    expect(isinstance(method(), Method), "a method is a subclass of core.kinds.Method")
    expect(method() == method(), "two methods with the same hyperparameters must be equal")


def is_frozen(method: type[Any]) -> None:
    expect("__dataclass_params__" in vars(method), "decorate the class with @dataclass(frozen=True)")
    made = method()
    for f in fields(made):
        try:
            setattr(made, f.name, getattr(made, f.name))
        except FrozenInstanceError:
            continue
        raise AssertionError(f"the field {f.name} can be changed; decorate the class with @dataclass(frozen=True)")


def declares_every_field(method: type[Any]) -> None:
    for name, knob in knobs(method).items():
        expect(bool(knob.help.strip()), f"the knob {name} has no help")


def refuses_values_out_of_range(method: type[Any]) -> None:
    """`UsageError` that names the knob, for every value that it does not allow."""
    for name, knob in knobs(method).items():
        for value in _illegal(knob):
            try:
                method(**{name: value})
            except UsageError as error:
                expect(name in str(error), f"the error for {name}={value!r} does not name the knob: {error}")
            else:
                raise AssertionError(f"{name}={value!r} was accepted; it must be {knob.range()}")


def survives_yaml(method: type[Any]) -> None:
    """As a step of a recipe; what is no step, by its knobs."""
    if issubclass(method, ProbeMethod):
        written = yaml.safe_dump(method().knobs())
        expect(make(method.card.id, yaml.safe_load(written)) == method(), f"the knobs read back are others: {written!r}")
        return
    recipe = Recipe((_step(method),))
    expect(Recipe.parse(recipe.yaml()) == recipe, f"the recipe read back from YAML is another one: {recipe.yaml()!r}")


def has_a_complete_card(method: type[Any]) -> None:
    card = method.card
    expect(bool(card.id and card.title.strip() and card.paper.strip()), "the card needs an id, a title and a paper")
    expect(card.fidelity in get_args(Fidelity), f"fidelity is one of {get_args(Fidelity)}, not {card.fidelity!r}")
    for other in card.beside:
        expect(registry.get(other) is not method, "`beside` names other methods")


def has_claims_that_can_be_run(method: type[Any]) -> None:
    names = [claim.name for claim in method.card.claims]
    expect(len(set(names)) == len(names), f"two claims have one name: {names}")
    for claim in method.card.claims:
        expect(method.card.id in _claimed(claim), f"the claim {claim.name!r} is not about {method.card.id}")
        sides = _side(claim, claim.left), _side(claim, claim.right)
        expect(sides[0] != sides[1], f"both sides of the claim {claim.name!r} are the same")


def has_a_module_docstring(method: type[Any]) -> None:
    """Whose first line names the method."""
    text = inspect.getdoc(sys.modules[method.__module__]) or ""
    first = _letters(text.partition("\n")[0])
    names = {_letters(method.card.id), _letters(method.__name__)}
    expect(any(n in first for n in names), f"the first line of the module docstring must name {method.card.id}")


def uses_every_field(method: type[Any]) -> None:
    own = {c.__module__ for c in method.__mro__ if issubclass(c, Method)} - {Method.__module__}
    trees = [ast.parse(inspect.getsource(sys.modules[name])) for name in own]
    read = {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    read |= {name for kind, names in READ_BY_ENGINE.items() if issubclass(method, kind) for name in names}
    read |= {"held_out"} if Trials in method().needs else set()
    for f in fields(method):
        expect(f.name in read, f"the field {f.name} is never read; take it out")


def _side(claim: Claim, text: str) -> Recipe | Observed:
    return Observed.of(text) if claim.metric == "finding" else Recipe.of(text)


def _claimed(claim: Claim) -> set[str]:
    """The ids of all methods that a claim is about."""
    found: list[Method | None] = []
    for side in (_side(claim, claim.left), _side(claim, claim.right)):
        found += [side.probe] if isinstance(side, Observed) else [m for step in side.steps for m in (step.method, step.by)]
    return {method.card.id for method in found if method is not None}


def _step(method: type[Any]) -> Step:
    made = method()
    if not isinstance(made, Allocator):
        return Step(made)
    return Step(steered(made)(), by=made)


def steered(allocator: Allocator) -> type[LinearMethod]:
    """A linear method that has the knob which `allocator` sets; those on its card come first."""
    for id in (*allocator.card.beside, *registry.ids()):
        found = registry.get(id)
        if issubclass(found, LinearMethod) and allocator.knob in knobs(found):
            return found
    raise AssertionError(f"no linear method has the knob {allocator.knob!r} that it sets")


def _illegal(knob: Knob) -> Iterator[Any]:
    yield None
    yield [1]
    if knob.type is bool:
        yield from (0, 1, "yes")
        return
    yield True
    if knob.options:
        yield "no such option" if knob.type is str else max(knob.options) + 1
    elif knob.type is str:
        yield from (3, "\N{BLACK SQUARE}\N{NULL} is no value of any grammar")
    else:
        yield from ("1", nan)
        yield from () if knob.low is None else (knob.type(knob.low) - 1,)
        yield from () if knob.high is None else (knob.type(knob.high) + 1,)
    if knob.type is int:
        yield 2.5


def _letters(text: str) -> str:
    return "".join(c for c in text.lower() if c.isalnum())


CHECKS = (
    is_registered,
    is_made_without_arguments,
    is_frozen,
    declares_every_field,
    refuses_values_out_of_range,
    survives_yaml,
    has_a_complete_card,
    has_claims_that_can_be_run,
    has_a_module_docstring,
    uses_every_field,
)
