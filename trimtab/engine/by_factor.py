"""Products are rounded factor by factor: to a method that stores codes, every plain factor of a chain is a matrix of its own.

Factors go in the order in which they are applied. With gram G of the chain's inputs, what reaches the factor behind a stored R
has the gram R G Rᵀ: each is rounded for the inputs that the rounded ones before it give. So this serves methods that ask for
grams or for nothing; factors that they do not take stay as they are.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from trimtab.core.errors import UsageError
from trimtab.core.kinds import BlockMethod, LinearMethod, LinearWeight, Seen
from trimtab.core.places import Site
from trimtab.formats import FORMATS, NM, Chain, Dense, Masked
from trimtab.stats import Gram

UNCODED = (Dense, Masked, NM, Chain)
Spec = Mapping[str, Any]


def rounds_factors(method: LinearMethod) -> bool:
    """Whether the method gives codes, and knows its inputs by their gram alone."""
    coded = not any(issubclass(given, UNCODED) for given in method.gives)
    return coded and Dense in method.takes and set(method.needs) <= {Gram} and not isinstance(method, BlockMethod)


def factors(method: LinearMethod, site: Site, spec: Spec | None) -> list[Site]:
    """The factors of a chain that the method would round, as places of their own; none where it takes none."""
    if spec is None or spec["kind"] != Chain.kind or not rounds_factors(method):
        return []
    return [_place(site, part) for part in spec["parts"] if issubclass(FORMATS.get(part["kind"], Chain), method.takes)]


def promised(method: LinearMethod, site: Site, spec: Spec) -> dict[str, Any] | None:
    """The spec of what `solved` gives for a chain of this spec, None where the data decide."""
    parts = []
    for part in spec["parts"]:
        taken = issubclass(FORMATS.get(part["kind"], Chain), method.takes)
        parts.append(method.promises(_place(site, part), part) if taken else part)
    return None if any(part is None for part in parts) else {**spec, "parts": parts}


def solved(method: LinearMethod, weight: Chain, seen: Seen, site: Site) -> Chain:
    """The chain with the factors rounded that the method takes. seen: of the chain's inputs."""
    gram: Tensor | None = seen[Gram] if Gram in method.needs else None
    made: list[LinearWeight] = []
    if not rounds_factors(method) or not any(isinstance(factor, method.takes) for factor in weight.factors):
        kinds = ", ".join(factor.kind for factor in weight.factors)
        raise UsageError(f"{method.card.id} does not take a product of {kinds}, as {site.name} is; leave it out of the step")
    for number, factor in reversed(list(enumerate(weight.factors))):
        if isinstance(factor, method.takes):
            shown, place = seen.showing({} if gram is None else {Gram: gram}), replace(site, shape=factor.shape)
            method.fits(place)
            factor = method.solve(factor, shown, place)
            seen.drew |= shown.drew
            for key, value in shown.notes.items():
                seen.note(f"{key}, factor {number}", value)
        if gram is not None:
            dense = factor.dense()
            gram = dense @ gram @ dense.T
        made.insert(0, factor)
    return Chain(tuple(made))


def _place(site: Site, part: Spec) -> Site:
    out, inputs = part["shape"]
    return replace(site, shape=(out, inputs))
