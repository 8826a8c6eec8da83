"""What the weight files will hold, before they are written: every matrix by the spec of its container, the rest as it is.

A recipe is gone through step by step, and specs follow from specs as methods promise them; no weight is looked at. For a step
with an allocator the question is turned around: what would a site take in the end, were this strength chosen.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from trimtab import formats
from trimtab.anatomy import Anatomy
from trimtab.core.errors import UsageError
from trimtab.core.kinds import LinearMethod, ScaleMethod, Storage
from trimtab.core.places import Role, Site
from trimtab.core.recipe import Recipe, Step
from trimtab.engine import by_factor
from trimtab.formats import Masked, header
from trimtab.formats.plain import stored_bytes

Spec = dict[str, Any]
Later = Sequence[tuple[Step, frozenset[Site]]]


class Files:
    """The model's tensors as they will be stored after the steps taken so far.

    sites: of every step of the recipe. specs: by site, None where it is not known. before: bytes of all tensors before the
    first step, those of the model as it is unless said otherwise.
    """

    def __init__(
        self, anatomy: Anatomy, recipe: Recipe, sites: Sequence[Sequence[Site]], packed: bool, before: int | None = None
    ):
        self.anatomy, self.packed = anatomy, packed
        self.steps = [(step, frozenset(chosen)) for step, chosen in zip(recipe.steps, sites, strict=True)]
        self.specs: dict[Site, Spec | None] = {s: anatomy.weight(s).spec() for s in anatomy.sites}
        self.now = {site: stored_bytes(spec) for site, spec in self.specs.items() if spec is not None}
        self.held = sum(t.nbytes for t in tensors(anatomy.model))
        self.before = self.held if before is None else before
        self.untied = False
        self.totals: dict[frozenset[Site], int] = {}  # of sites whose specs the data decide, but not what they take together

    def take(self, number: int, sites: Sequence[Site]) -> int | None:
        """Go on past the linear step `number`, from 1. Bytes that its sites take if they are known.

        Raises `UsageError` where an allocator is asked for what cannot be met.
        """
        step, _ = self.steps[number - 1]
        if step.by is None:
            self.choose(dict.fromkeys(sites, step.method))  # type: ignore[arg-type]
            known = [stored_bytes(spec) for s in sites if (spec := self.specs[s]) is not None]
            return sum(known) if len(known) == len(sites) else None
        total = step.by.promises(sites, self.storage(number, sites))
        self.specs |= dict.fromkeys(sites)
        if total is not None:
            self.totals[frozenset(sites)] = total
        return total

    def choose(self, chosen: dict[Site, LinearMethod]) -> None:
        """Go on past a linear step of which the strength at every site is known."""
        for site, method in chosen.items():
            self.specs[site] = promised(method, site, self.specs[site], self.packed)

    def rewrite(self, unties: bool, keeps: bool) -> None:
        """Go on past a step of another kind. keeps: no matrix changes its shape or its container."""
        self.untied |= unties
        if not keeps:
            self.specs = dict.fromkeys(self.specs)
            self.totals.clear()

    def total(self) -> int | None:
        """Bytes of all tensors, None where the data decide."""
        return self._total(self.specs, self.totals)

    def files(self) -> int | None:
        """Bytes of the weight files, None where the data decide. Exact for one file, that is up to 4 GB."""
        total = self.total()
        final = {s: spec for s, spec in self.specs.items() if self.untied or not self._shares(s)}
        if total is None or any(spec is None for spec in final.values()):
            return None
        every = {name: (tuple(t.shape), t.dtype) for name, t in self._outside().items()}
        for site, spec in final.items():
            assert spec is not None
            every |= {self._stored_as(site, spec, name): how for name, how in formats.layout(spec).items()}
        return total + len(header.header(every))

    def _stored_as(self, site: Site, spec: Spec, name: str) -> str:
        """What a file calls a tensor of a site: a matrix that is plain is the layer's own."""
        return f"{site.path}.weight" if spec["kind"] == "dense" and site.index is None else f"{site.name}.{name}"

    def storage(self, number: int, sites: Sequence[Site]) -> Storage:
        """What the allocator of step `number`, from 1, is told."""
        (step, _), later = self.steps[number - 1], self.steps[number:]
        digits = len(str(self.held))

        def spec(site: Site, strength: Any) -> Spec | None:
            assert step.by is not None
            given = self.specs[site]
            if given is None or not _sizes_stay(later):
                return None
            made = replace(step.method, **{step.by.knob: strength})
            assert isinstance(made, LinearMethod)
            final = self._through(later, site, promised(made, site, given, self.packed))
            if final is None:
                raise UsageError(
                    f"what {site.name} takes after {step.method} is not known beforehand: no budget of bytes can be met"
                )
            return final

        def bytes_of(site: Site, strength: Any) -> int | None:
            found = spec(site, strength)
            return None if found is None else stored_bytes(found)

        def lines_of(site: Site, strength: Any) -> int:
            found = spec(site, strength)
            return 0 if found is None else self._lines(site, found, digits)

        return Storage(bytes_of, lines_of, self._rest(later, set(sites), digits), self.before, 10**digits)

    def _through(self, later: Later, site: Site, spec: Spec | None) -> Spec | None:
        """The spec after further steps."""
        for step, sites in later:
            if isinstance(step.method, LinearMethod) and site in sites:
                spec = None if step.by else promised(step.method, site, spec, self.packed)
        return spec

    def _rest(self, later: Later, without: set[Site], digits: int) -> int | None:
        """At most so many bytes of everything but these sites, None where it is not known."""
        if not _sizes_stay(later):
            return None
        final = {s: self._through(later, s, spec) for s, spec in self.specs.items() if s not in without}
        data = self._total({**final, **dict.fromkeys(without, _NOTHING)}, {})
        if data is None:
            return None
        stored = {s: spec for s, spec in final.items() if spec is not None and (self.untied or not self._shares(s))}
        lines = sum(self._lines(site, spec, digits) for site, spec in stored.items())
        lines += sum(header.entry(name, tuple(t.shape), t.dtype, digits) for name, t in self._outside().items())
        return data + lines + header.frames(10**digits)

    def _total(self, specs: dict[Site, Spec | None], totals: dict[frozenset[Site], int]) -> int | None:
        together = frozenset().union(*totals)
        total = self.held + sum(totals.values())
        for site, spec in specs.items():
            if self._shares(site):
                total += self.now[site] if self.untied else 0
            elif site in together:
                total -= self.now[site]
            elif spec is None:
                return None
            else:
                total += (0 if spec is _NOTHING else stored_bytes(spec)) - self.now[site]
        return total

    def _shares(self, site: Site) -> bool:
        """Whether this is a head that has its matrix from the embedding."""
        return self.anatomy.tied and site.role is Role.HEAD

    def _lines(self, site: Site, spec: Spec, digits: int) -> int:
        layout = formats.layout(spec).items()
        return sum(header.entry(f"{site.name}.{name}", shape, dtype, digits) for name, (shape, dtype) in layout)

    def _outside(self) -> dict[str, Tensor]:
        """The stored tensors that belong to no site, by name."""
        inside = {site.path for site in self.anatomy.sites}
        inside |= {f"{s.name}.{name}" for s in self.anatomy.sites for name in self.anatomy.weight(s).tensors()}
        return {name: t for name, t in self.anatomy.model.state_dict(keep_vars=True).items() if name not in inside}


_NOTHING: Spec = {}


def _sizes_stay(later: Later) -> bool:
    """Whether these steps leave every matrix its shape."""
    return all(isinstance(step.method, LinearMethod | ScaleMethod) for step, _ in later)


def promised(method: LinearMethod, site: Site, given: Spec | None, packed: bool) -> Spec | None:
    """The spec of what a method leaves, None where the data decide."""
    if given is None:
        return None
    if not packed and all(gives is Masked for gives in method.gives):
        return given  # stored as it was, with zeros
    return by_factor.promised(method, site, given) if by_factor.factors(method, site, given) else method.promises(site, given)


def tensors(model: Any) -> list[Any]:
    """Every stored tensor of a model once, tied ones too."""
    found = {t.data_ptr() if t.numel() else id(t): t for t in [*model.parameters(), *_saved_buffers(model)]}
    return list(found.values())


def _saved_buffers(model: Any) -> list[Any]:
    saved = set(model.state_dict(keep_vars=True))
    return [b for name, b in model.named_buffers() if name in saved]
