"""Matrices by site, of the model at hand or of another one beside it, for methods that compare the two."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import Tensor, nn

from trimtab.anatomy import Anatomy
from trimtab.core.errors import ModelError, UsageError
from trimtab.core.kinds import LinearWeight, Method, Reference
from trimtab.core.places import Site
from trimtab.core.recipe import Recipe


class Matrices(Mapping[Site, Tensor]):
    """Dense weights [out, in] float32 by site, unpacked when looked at: all of them at once could be twice the model."""

    def __init__(self, weight: Callable[[Site], LinearWeight], sites: Sequence[Site]):
        self._weight, self._sites = weight, dict.fromkeys(sites)

    def __getitem__(self, site: Site) -> Tensor:
        if site not in self._sites:
            raise KeyError(site)
        return self._weight(site).dense()

    def __iter__(self) -> Iterator[Site]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)


def named(recipe: Recipe) -> tuple[str, ...]:
    """The other models that the recipe speaks of. Raises `UsageError` where a method needs one and names none."""
    names = [base_of(step.method) for step in recipe.steps if Reference in step.method.needs]
    return tuple(dict.fromkeys(names))


def base_of(method: Method) -> str:
    """What the method's knob `base` names. Raises `UsageError` if that is nothing."""
    name = str(method.knobs()["base"])
    if not name:
        raise UsageError(f"{method.card.id} compares with another model; say which: {method.card.id}(base='FOLDER')")
    return name


def others(anatomy: Anatomy, recipe: Recipe, models: Mapping[str, nn.Module]) -> dict[str, Matrices]:
    """The matrices of every other model, by the sites of this one.

    Raises `UsageError` for a model that was not given, `ModelError` for one whose matrices are not these.
    """
    found = {}
    for name in named(recipe):
        if name not in models:
            raise UsageError(f"the recipe compares with {name!r}, which was not given")
        other = Anatomy.of(models[name])
        shapes = {site.name: site.shape for site in other.sites}
        for site in anatomy.sites:
            if site.block is not None and shapes.get(site.name) != site.shape:
                there = "is missing" if site.name not in shapes else f"is {shapes[site.name]}"
                raise ModelError(f"{name} is another model: {site.name} {there} there and {site.shape} here")
        found[name] = Matrices(other.weight, [site for site in anatomy.sites if site.block is not None])
    return found
