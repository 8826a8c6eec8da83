"""Factored matrices while a whole model is trained: their factors and cores learn, and the format stays what it is.

What stands for a matrix is made of what stands for its parts: the product of a chain's, the sum of a sum's, the operator of an
MPO's cores. Parts that hold codes or a structure of their own stand as they are. At the end every part is rounded to the dtype
that it is stored in, so what was small stays as small.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from math import prod
from operator import add, matmul

import torch
from torch import Tensor, nn

from trimtab.core.errors import RecipeError
from trimtab.core.kinds import Learner, LinearWeight
from trimtab.core.places import Site
from trimtab.formats import checks
from trimtab.formats.dense import Dense
from trimtab.formats.lowrank import Chain
from trimtab.formats.masked import Masked
from trimtab.formats.mpo import Mpo
from trimtab.formats.sum import Sum
from trimtab.formats.taught import standing
from trimtab.tensors import mpo

LEARN = ("all", "factored", "left", "right")
TAKES: tuple[type[LinearWeight], ...] = (Chain, Sum, Mpo)


@dataclass(frozen=True)
class Course:
    """How matrices learn. learn: "all"; "factored", only factors and cores; "left" or "right", only the first or the last factor
    of every product. rank: of the update that is folded into a matrix or a factor, times alpha / rank; 0: they are trained
    themselves, as cores always are. zeros: entries that are zero stay zero."""

    learn: str
    rank: int
    alpha: float
    zeros: bool

    def inside(self, factors: int) -> list[bool]:
        """Which factors of a product learn."""
        last = {"left": 0, "right": factors - 1}.get(self.learn)
        return [last in (None, number) for number in range(factors)]

    @property
    def cores(self) -> bool:
        return self.learn in ("all", "factored")


class Still(Learner):
    """A part that stands as it is."""

    def __init__(self, weight: LinearWeight):
        super().__init__()
        self.rates, self.weight, self.dense = {}, weight, weight.dense()

    def matrix(self) -> Tensor:
        return self.dense

    def result(self) -> LinearWeight:
        return self.weight


class Stored(Learner):
    """A plain or sparse part, which ends in the dtype that it is stored in. keep: [out, in] bool of a sparse one, else None."""

    def __init__(self, learner: Learner, dtype: torch.dtype, keep: Tensor | None = None):
        super().__init__()
        self.rates, self.learner, self.dtype, self.keep = {}, learner, dtype, keep

    def matrix(self) -> Tensor:
        return _ending(self.learner.matrix(), self.dtype, self.progress)

    def result(self) -> Dense | Masked:
        value = self.learner.matrix().detach().to(self.dtype)
        checks.finite("what was learned", factor=value)
        return Dense(value) if self.keep is None else Masked(value, self.keep)


class Composed(Learner):
    """A product of parts, outermost output first, or a sum of them."""

    def __init__(self, format: type[Chain] | type[Sum], parts: Sequence[Learner]):
        super().__init__()
        self.rates, self.format, self.parts = {}, format, nn.ModuleList(parts)

    def told(self) -> list[Learner]:
        """The parts, told how far the learning is."""
        for part in self.parts:
            part.progress = self.progress  # type: ignore[assignment]
        return list(self.parts)  # type: ignore[arg-type]

    def matrix(self) -> Tensor:
        return reduce(matmul if self.format is Chain else add, (part.matrix() for part in self.told()))

    def result(self) -> Chain | Sum:
        return self.format(tuple(part.result() for part in self.told()))


class Cores(Learner):
    """The cores of a matrix product operator."""

    def __init__(self, weight: Mpo, zeros: bool):
        super().__init__()
        self.rates, self.dtype = {}, weight.cores[0].dtype
        self.keep = [core != 0 if zeros else None for core in weight.cores]
        self.cores = nn.ParameterList(core.float().clone() for core in weight.cores)

    def now(self) -> list[Tensor]:
        return [core if keep is None else core * keep for core, keep in zip(self.cores, self.keep, strict=True)]

    def matrix(self) -> Tensor:
        return mpo.product([_ending(core, self.dtype, self.progress) for core in self.now()])

    def result(self) -> Mpo:
        return Mpo(tuple(core.detach().to(self.dtype) for core in self.now()))


def learners(weights: Mapping[Site, LinearWeight], course: Course, who: str, generator: torch.Generator) -> dict[Site, Learner]:
    """What stands for the matrices that learn. Raises `RecipeError` where one cannot, or where there is none to learn."""
    found: dict[Site, Learner] = {}
    for site, weight in weights.items():
        if any(True for _ in learnable(weight, course)):
            plain = isinstance(weight, Dense)  # which the layer rounds to its own dtype
            found[site] = _standing(weight.dense(), course, generator) if plain else _part(weight, course, generator)
        elif course.learn == "all":
            kind = type(weight).__name__
            raise RecipeError(f"{who} trains plain and factored matrices, but {site.name} is {kind}; pv_tuning tunes codes")
    if not found:
        named = f"{who}(learn={course.learn!r})"
        raise RecipeError(f"{named}: no matrix has factors of that kind; put a step before it: svd(keep=0.8) -> {named}")
    return found


def count(weights: Mapping[Site, LinearWeight], course: Course) -> int:
    """How many numbers are trained. Where nothing is factored yet and factors are asked for: as if all matrices were trained."""
    found = sum(_numbers(shape, course.rank) for weight in weights.values() for shape in learnable(weight, course))
    return found or sum(_numbers(site.shape, course.rank) for site in weights)


def learnable(weight: LinearWeight, course: Course, inside: bool = False) -> Iterator[tuple[int, ...]]:
    """Shapes of the matrices and cores that learn. inside: whether this is a factor that does."""
    if isinstance(weight, Dense | Masked) and (inside or course.learn == "all"):
        yield weight.shape
    elif isinstance(weight, Chain):
        for factor, learns in zip(weight.factors, course.inside(len(weight.factors)), strict=True):
            yield from learnable(factor, course, True) if learns else ()
    elif isinstance(weight, Sum):
        for part in weight.parts:
            yield from learnable(part, course, inside)
    elif isinstance(weight, Mpo) and course.cores:
        yield from (tuple(core.shape) for core in weight.cores)


def _part(weight: LinearWeight, course: Course, generator: torch.Generator, inside: bool = False) -> Learner:
    if isinstance(weight, Chain):
        learns = course.inside(len(weight.factors))
        parts = [_part(f, course, generator, True) if now else Still(f) for f, now in zip(weight.factors, learns, strict=True)]
        return Composed(Chain, parts)
    if isinstance(weight, Sum):
        return Composed(Sum, [_part(part, course, generator, inside) for part in weight.parts])
    if not any(True for _ in learnable(weight, course, inside)):
        return Still(weight)
    if isinstance(weight, Mpo):
        return Cores(weight, course.zeros)
    if isinstance(weight, Masked):
        kept = replace(course, zeros=True)
        return Stored(_standing(weight.dense(), kept, generator), weight.values.dtype, weight.keep)
    assert isinstance(weight, Dense), "all that is learnable"
    return Stored(_standing(weight.dense(), course, generator), weight.weight.dtype)


def _standing(weight: Tensor, course: Course, generator: torch.Generator) -> Learner:
    return standing(weight, course.rank, course.alpha, course.zeros, generator)


def _ending(value: Tensor, dtype: torch.dtype, progress: float) -> Tensor:
    """As it is while it learns, as it will be stored when it has learned."""
    return value if progress < 1 else value.to(dtype).float()


def _numbers(shape: tuple[int, ...], rank: int) -> int:
    """Of a matrix or of its update; cores have none."""
    return min(rank, *shape) * sum(shape) if rank and len(shape) == 2 else prod(shape)
