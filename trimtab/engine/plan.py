"""What a recipe would do to a model, before anything is done: sites, formats that fit, and the exact size of the result."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from trimtab.anatomy import Anatomy
from trimtab.core.errors import RecipeError
from trimtab.core.kinds import ChannelMethod, LinearMethod, LinearWeight, ModelMethod, ScaleMethod, Searches
from trimtab.core.places import Role, Site
from trimtab.core.recipe import Recipe, Step, Where
from trimtab.core.registry import kind
from trimtab.core.scratch import ScratchMethod
from trimtab.core.taught import TaughtMethod
from trimtab.core.trained import TrainedMethod
from trimtab.engine.by_factor import factors, rounds_factors
from trimtab.engine.storage import Files
from trimtab.formats import Chain

Came = Mapping[Site, type[LinearWeight]]


@dataclass(frozen=True)
class PlannedStep:
    """One step: the matrices it works on, how many each pattern matched, and the stored bits per weight it leaves.

    bits: None where the data decide; where an allocator meets a budget, those that the last step leaves. candidates,
    tokens_read: of a step that searches, how many are judged and what is read for that, at most; levels: compressed before.
    """

    method: str
    kind: str
    sites: tuple[Site, ...]
    matched: dict[str, int] = field(default_factory=dict)
    bits: float | None = None
    candidates: int = 0
    tokens_read: int = 0
    levels: int = 0


@dataclass(frozen=True)
class Plan:
    """bytes_before, bytes_after: of all tensors of the model; after is None where the data decide the size.

    file_bytes: of the weight files with their headers, None where the data decide that.
    """

    steps: tuple[PlannedStep, ...]
    parameters: int
    bytes_before: int
    bytes_after: int | None
    file_bytes: int | None = None

    def json(self) -> dict[str, Any]:
        steps = [{**asdict(s), "sites": [site.name for site in s.sites]} for s in self.steps]
        return {**asdict(self), "steps": steps}


def plan(anatomy: Anatomy, recipe: Recipe, packed: bool = False) -> Plan:
    """Resolve and check every step against the model. Raises `RecipeError` or `UsageError`; moves no weight."""
    _untrained(recipe)
    held: dict[Site, tuple[type[LinearWeight], ...]] = {s: (type(anatomy.weight(s)),) for s in anatomy.sites}
    came: Came = {site: kinds[0] for site, kinds in held.items()}  # of those that no step has changed yet
    where = [resolve(anatomy, step.where) for step in recipe.steps]
    files = Files(anatomy, recipe, [sites for sites, _ in where], packed)
    steps = []
    for number, (step, (sites, matched)) in enumerate(zip(recipe.steps, where, strict=True), 1):
        left = None
        if isinstance(step.method, LinearMethod):
            _fit(step.method, sites, held, came, files.specs)
            held |= dict.fromkeys(sites, step.method.gives)
            came = {site: kind for site, kind in came.items() if site not in sites}
            left = _per_weight(files.take(number, sites), sites)
        elif isinstance(step.method, ScaleMethod):
            _foldable(step.method, sites, held)
        elif isinstance(step.method, ChannelMethod | ModelMethod):
            _dense_only(step, anatomy, held)
            files.rewrite(getattr(step.method, "unties", False), getattr(step.method, "preserves", False))
            if given := getattr(step.method, "gives", ()):
                held = {site: (*kinds, *given) if site.block is not None else kinds for site, kinds in held.items()}
                came = {}
        elif isinstance(step.method, TaughtMethod):
            _enough_text(step.method, recipe)
            _everywhere(step)
            if not step.method.packed:
                _dense_only(step, anatomy, held, step.method.takes)
            files.rewrite(False, step.method.preserves)
        steps.append(
            PlannedStep(str(step), kind(type(step.method)), sites, matched, left, *_searched(step, sites, anatomy, recipe))
        )
    return Plan(tuple(steps), _parameters(anatomy), files.before, files.total(), files.files())


def _untrained(recipe: Recipe) -> None:
    for step in recipe.steps:
        if isinstance(step.method, TrainedMethod):
            id = step.method.card.id
            scratch = isinstance(step.method, ScratchMethod)
            how = f"grow own-2m --method {id} -o OUT" if scratch else f"adapt MODEL DATA --method {id} -o OUT"
            raise RecipeError(f"{id} is trained, which no recipe does; write trimtab {how}")


def _enough_text(method: TaughtMethod, recipe: Recipe) -> None:
    given = recipe.calibration
    windows = -(-given.tokens // given.length)
    if windows < method.windows:
        raise RecipeError(
            f"{method.card.id} takes {method.windows} windows a step, the calibration text makes {windows}; "
            f"show at least {method.windows * given.length} tokens (--tokens), or use fewer (windows)"
        )


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


def takes(method: LinearMethod, format: type[LinearWeight]) -> bool:
    """Whether a method works on matrices in this container."""
    return LinearWeight in method.takes or issubclass(format, method.takes)


def _fit(
    method: LinearMethod,
    sites: Sequence[Site],
    held: dict[Site, tuple[type[LinearWeight], ...]],
    came: Came,
    specs: Mapping[Site, dict[str, Any] | None],
) -> None:
    for site in sites:
        parts = factors(method, site, specs[site])
        apart = parts or (specs[site] is None and rounds_factors(method))
        for place in [site, *parts]:
            method.fits(place)
        for format in held[site]:
            if not takes(method, format) and not (apart and issubclass(format, Chain)):
                taken = " or ".join(t.__name__ for t in method.takes)
                raise RecipeError(f"{method.card.id} takes {taken}, but {_why_not(method.card.id, site, format, came)}")


def _why_not(who: str, site: Site, format: type[LinearWeight], came: Came) -> str:
    if came.get(site) is format:
        return f"{site.name} is {format.__name__} in the model as it came; unpack it: trimtab export MODEL --to plain -o FOLDER"
    return f"{site.name} is {format.__name__} by then; put {who} before the step that makes it so"


def _foldable(method: ScaleMethod, sites: Sequence[Site], held: dict[Site, tuple[type[LinearWeight], ...]]) -> None:
    for site in sites:
        method.fits(site)
        _plain_by_then(method.card.id, site, held[site])


def _dense_only(
    step: Step, anatomy: Anatomy, held: dict[Site, tuple[type[LinearWeight], ...]], also: tuple[type[LinearWeight], ...] = ()
) -> None:
    _everywhere(step)
    for site, kinds in held.items():
        _plain_by_then(step.method.card.id, site, kinds, also)


def _everywhere(step: Step) -> None:
    if step.where != Where():
        raise RecipeError(f"{step.method.card.id} works on the whole model; it takes no `where`")


def _plain_by_then(
    who: str, site: Site, kinds: tuple[type[LinearWeight], ...], also: tuple[type[LinearWeight], ...] = ()
) -> None:
    """also: formats that are as good as plain ones."""
    if any(kind.kind not in ("dense", "masked") and not issubclass(kind, also) for kind in kinds):
        wanted = ", ".join(["plain matrices", *(kind.__name__ for kind in also)])
        raise RecipeError(f"{who} needs {wanted}, but {site.name} is {kinds[0].__name__} by then")


def _searched(step: Step, sites: Sequence[Site], anatomy: Anatomy, recipe: Recipe) -> tuple[int, int, int]:
    """(candidates, tokens, levels). Raises `UsageError` for a level that the method or a matrix refuses."""
    method = step.by or step.method
    if not isinstance(method, Searches):
        return 0, 0, 0
    if isinstance(step.method, LinearMethod) and step.by is not None:
        for level in method.strengths:
            leveled = replace(step.method, **{step.by.knob: level})
            for site in sites:
                leveled.fits(site)
    length = recipe.calibration.length
    places = range(len(anatomy.blocks)) if step.by is None else sites
    candidates, windows = method.trials(places, -(-method.held_out // length))  # type: ignore[attr-defined]
    return candidates, windows * length, len(method.strengths)


def _per_weight(stored: int | None, sites: Sequence[Site]) -> float | None:
    return None if stored is None else 8 * stored / sum(s.shape[0] * s.shape[1] for s in sites)


def _parameters(anatomy: Anatomy) -> int:
    inside = sum(s.shape[0] * s.shape[1] for s in anatomy.sites if not (anatomy.tied and s.role is Role.HEAD))
    return inside + sum(p.numel() for p in anatomy.model.parameters() if p.ndim < 2)
