"""What a recipe would do to a model, before anything is done: sites, formats that fit, and the exact size of the result."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from trimtab.anatomy import Anatomy
from trimtab.core.errors import RecipeError
from trimtab.core.kinds import ChannelMethod, LinearMethod, LinearWeight, ModelMethod, ScaleMethod
from trimtab.core.places import Role, Site
from trimtab.core.recipe import Recipe, Step, Where
from trimtab.core.registry import kind
from trimtab.formats import Masked
from trimtab.formats.plain import stored_bits

Spec = dict[str, Any]


@dataclass(frozen=True)
class PlannedStep:
    """One step: the matrices it works on, how many each pattern matched, and the stored bits per weight it leaves.

    bits: None where the data decide.
    """

    method: str
    kind: str
    sites: tuple[Site, ...]
    matched: dict[str, int] = field(default_factory=dict)
    bits: float | None = None


@dataclass(frozen=True)
class Plan:
    """bytes_before, bytes_after: of all tensors of the model; after is None where the data decide the size."""

    steps: tuple[PlannedStep, ...]
    parameters: int
    bytes_before: int
    bytes_after: int | None

    def json(self) -> dict[str, Any]:
        steps = [{**asdict(s), "sites": [site.name for site in s.sites]} for s in self.steps]
        return {**asdict(self), "steps": steps}


def plan(anatomy: Anatomy, recipe: Recipe, packed: bool = False) -> Plan:
    """Resolve and check every step against the model. Raises `RecipeError` or `UsageError`; moves no weight."""
    held: dict[Site, tuple[type[LinearWeight], ...]] = {s: (type(anatomy.weight(s)),) for s in anatomy.sites}
    specs: dict[Site, Spec | None] = {s: anatomy.weight(s).spec() for s in anatomy.sites}
    steps, untied = [], False
    for step in recipe.steps:
        sites, matched = resolve(anatomy, step.where)
        left = None
        if isinstance(step.method, LinearMethod):
            _fit(step.method, sites, held)
            for site in sites:
                specs[site] = _promised(step, site, specs[site], packed)
                held[site] = step.method.gives
            left = _mean(sites, specs)
        elif isinstance(step.method, ScaleMethod):
            _foldable(step.method, sites, held)
        elif isinstance(step.method, ChannelMethod | ModelMethod):
            _dense_only(step, anatomy, held)
            untied |= getattr(step.method, "unties", False)
            if not getattr(step.method, "preserves", False):
                specs = dict.fromkeys(specs)
        steps.append(PlannedStep(str(step), kind(type(step.method)), sites, matched, left))
    before = sum(t.numel() * t.element_size() for t in tensors(anatomy.model))
    return Plan(tuple(steps), _parameters(anatomy), before, _bytes_after(anatomy, specs, before, untied))


def resolve(anatomy: Anatomy, where: Where) -> tuple[tuple[Site, ...], dict[str, int]]:
    """The sites that `where` names, in forward order, and how many each pattern matched.

    Without `only`: the matrices of the blocks except routers. A pattern that matches nothing is an error.
    """
    counts = {}
    if where.only:
        chosen: set[Site] = set()
        for pattern in where.only:
            hits = anatomy.match(pattern)
            counts[pattern] = len(hits)
            chosen.update(hits)
    else:
        chosen = {s for s in anatomy.sites if s.block is not None and s.role is not Role.ROUTER}
    for pattern in where.skip:
        hits = anatomy.match(pattern)
        counts[pattern] = len(hits)
        chosen.difference_update(hits)
    if not chosen:
        raise RecipeError(f"`where` leaves no matrix to work on: {where}")
    return tuple(s for s in anatomy.sites if s in chosen), counts


def tensors(model: Any) -> list[Any]:
    """Every stored tensor of a model once, tied ones too."""
    found = {t.data_ptr() if t.numel() else id(t): t for t in [*model.parameters(), *_saved_buffers(model)]}
    return list(found.values())


def _saved_buffers(model: Any) -> list[Any]:
    saved = set(model.state_dict(keep_vars=True))
    return [b for name, b in model.named_buffers() if name in saved]


def _fit(method: LinearMethod, sites: Sequence[Site], held: dict[Site, tuple[type[LinearWeight], ...]]) -> None:
    for site in sites:
        method.fits(site)
        for format in held[site]:
            if LinearWeight not in method.takes and not issubclass(format, method.takes):
                takes = " or ".join(t.__name__ for t in method.takes)
                raise RecipeError(
                    f"{method.card.id} takes {takes}, but {site.name} is {format.__name__} by then; "
                    f"put {method.card.id} before the step that makes it so"
                )


def _foldable(method: ScaleMethod, sites: Sequence[Site], held: dict[Site, tuple[type[LinearWeight], ...]]) -> None:
    for site in sites:
        method.fits(site)
        _plain_by_then(method.card.id, site, held[site])


def _dense_only(step: Step, anatomy: Anatomy, held: dict[Site, tuple[type[LinearWeight], ...]]) -> None:
    if step.where != Where():
        raise RecipeError(f"{step.method.card.id} works on the whole model; it takes no `where`")
    for site, kinds in held.items():
        _plain_by_then(step.method.card.id, site, kinds)


def _plain_by_then(who: str, site: Site, kinds: tuple[type[LinearWeight], ...]) -> None:
    if any(kind.kind not in ("dense", "masked") for kind in kinds):
        raise RecipeError(f"{who} needs plain matrices, but {site.name} is {kinds[0].__name__} by then")


def _promised(step: Step, site: Site, given: Spec | None, packed: bool) -> Spec | None:
    if step.by is not None or given is None or not isinstance(step.method, LinearMethod):
        return None
    if not packed and all(gives is Masked for gives in step.method.gives):
        return given  # stored as it was, with zeros
    return step.method.promises(site, given)


def _mean(sites: Sequence[Site], specs: dict[Site, Spec | None]) -> float | None:
    known = [(spec, s.shape[0] * s.shape[1]) for s in sites if (spec := specs[s]) is not None]
    if len(known) < len(sites):
        return None
    return sum(stored_bits(spec) * n for spec, n in known) / sum(n for _, n in known)


def _bytes_after(anatomy: Anatomy, specs: dict[Site, Spec | None], before: int, untied: bool) -> int | None:
    change = 0.0
    for site, spec in specs.items():
        if spec is None:
            return None
        now, size = anatomy.weight(site).bits, site.shape[0] * site.shape[1]
        if anatomy.tied and site.role is Role.HEAD:
            change += now * size / 8 if untied else 0.0
        else:
            change += (stored_bits(spec) - now) * size / 8
    return before + round(change)


def _parameters(anatomy: Anatomy) -> int:
    inside = sum(s.shape[0] * s.shape[1] for s in anatomy.sites if not (anatomy.tied and s.role is Role.HEAD))
    return inside + sum(p.numel() for p in anatomy.model.parameters() if p.ndim < 2)
