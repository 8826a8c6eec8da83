"""PVQ: a group of weights is a length and a direction, the direction a point of whole numbers whose magnitudes have one sum.

W[o, group] ~ scale[o] * radius * p / |p|,  sum |p_i| = pulses: as many as the bits allow (`tensors.pyramid`, `Pyramid`).
Rotate first (`quarot -> pvq`), so that directions are spread evenly. compensate=False: the nearest point by greedy search.
True: the optimal-brain sweep over groups; with inverse(gram) = Uᵀ U the error of group b goes to those after it by
    W_rest -= (W_b - Q_b) inverse(U_bb) U_b,rest,
and weighted=True chooses Q_b for the least |(W_b - Q_b) inverse(U_bb)|, which is what that error costs, not for the least
|W_b - Q_b|; the length is the least-squares one in the same metric. Groups with the most input energy go first.
Stored besides `bits`: 16 per row and a table of radii.
van der Ouderaa et al., 2024 (arXiv:2410.16926); the sweep and the weighted search are filled in by us. Radii are fitted to the
matrix (`tensors.levels`), where the paper has quantiles of the distribution that rotated weights should follow.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.errors import UsageError
from trimtab.core.kinds import LinearMethod, Seen
from trimtab.core.knobs import choice, count, flag, number, rate
from trimtab.core.places import Site
from trimtab.formats import Dense, Pyramid, check_group_size
from trimtab.formats.pyramid import LONGEST, MOST_PULSES
from trimtab.stats import Gram
from trimtab.tensors.columns import sweep
from trimtab.tensors.levels import fit, nearest_level
from trimtab.tensors.pyramid import most_pulses, nearest
from trimtab.tensors.spd import inverse_upper


@dataclass(frozen=True)
class Pvq(LinearMethod):
    card: ClassVar = Card(
        id="pvq",
        title="Pyramid Vector Quantization for LLMs",
        paper="arXiv:2410.16926",
        fidelity="reconstructed",
        beside=("gptq", "hlq", "quarot"),
        claims=(
            Claim(
                "beats-rotated-gptq-at-2-bit",
                "quarot -> pvq(bits=2.25)",
                "<",
                "quarot -> gptq(bits=2, clip=True)",
                note="2.25 and 2.29 stored bits per weight",
            ),
            Claim(
                "beats-rotated-gptq-at-3-bit",
                "quarot -> pvq(bits=3.25)",
                "<",
                "quarot -> gptq(bits=3, clip=True)",
                note="3.28 and 3.30 stored bits per weight",
            ),
            Claim(
                "beats-clipped-rtn-without-data",
                "quarot -> pvq(bits=3.25, compensate=False)",
                "<",
                "quarot -> rtn(bits=3, clip=True)",
                note="as above; both sides round to the nearest",
            ),
        ),
    )
    takes: ClassVar = (Dense,)
    gives: ClassVar = (Pyramid,)

    bits: float = number("bits per weight for directions and lengths, at most", 2.25, 1, 5)
    group_size: int = count("inputs that make up a direction; 0 = the whole row", 32, 0, LONGEST)
    radius_bits: int = count("of them, bits for a group's length", 3, 1, 8)
    compensate: bool = flag("quantize inside the optimal-brain sweep instead of to the nearest point", True)
    weighted: bool = flag("choose a group's point by what its error costs the outputs", True)
    moves: int = count("how often a pulse of a group is moved afterwards", 4, 0)
    order: str = choice("groups with the most input energy first, or as given", "energy", ("energy", "given"))
    damping: float = rate("added to the gram, as a fraction of its mean diagonal", 0.01)

    @property
    def needs(self) -> tuple[type, ...]:  # type: ignore[override]
        return (Gram,) if self.compensate else ()

    def check(self) -> None:
        if self.group_size and not self._pulses(self.group_size):
            raise UsageError(f"pvq: {self.bits:g} bits are too few for groups of {self.group_size}; use more or larger groups")

    def fits(self, site: Site) -> None:
        group_size = self.group_size or site.shape[1]
        check_group_size(site.shape[1], group_size, site.name)
        if group_size > LONGEST or not self._pulses(group_size):
            raise UsageError(
                f"pvq: no {group_size} inputs of {site.name} can be a direction at {self.bits:g} bits; use another group_size"
            )

    def promises(self, site: Site, spec: Mapping[str, Any]) -> dict[str, Any]:
        group_size = self.group_size or site.shape[1]
        pulses, shape = self._pulses(group_size), [*site.shape]
        sizes = {"group_size": group_size, "pulses": pulses, "radius_bits": self.radius_bits}
        return {"kind": Pyramid.kind, "shape": shape, **sizes}

    def solve(self, weight: Dense, seen: Seen, site: Site) -> Pyramid:
        matrix, group_size = weight.dense(), self.group_size or site.shape[1]
        groups = matrix.view(len(matrix), -1, group_size)
        pulses = self._pulses(group_size)
        scale = _scale(groups)
        points = nearest(groups.flatten(0, 1), pulses).view(groups.shape)
        lengths = _length(groups, points) / _divisor(scale)[:, None]  # [out, groups]
        radii = fit(lengths.flatten(), 2**self.radius_bits).half()
        if not self.compensate:
            return _made(points, nearest_level(lengths, radii.float()), radii, scale)
        prepare = partial(self._prepared, seen[Gram], group_size)
        order, upper, used = seen.once((Pvq, group_size, self.order, self.damping), prepare)
        seen.note("damping", used)
        search = partial(nearest, pulses=pulses, moves=self.moves)
        chooser = _ByDirection(search, upper, group_size, radii.float(), scale.float(), self.weighted)
        sweep(matrix.view(groups.shape)[:, order].flatten(1), upper, chooser)
        back = order.argsort()
        points, codes = torch.stack(chooser.points, 1)[:, back], torch.stack(chooser.codes, 1)[:, back]
        return _made(points, codes, radii, scale)

    def _pulses(self, group_size: int) -> int:
        return most_pulses(group_size, int(self.bits * group_size + 1e-9) - self.radius_bits, MOST_PULSES)

    def _prepared(self, gram: Tensor, group_size: int) -> tuple[Tensor, Tensor, float]:
        """The order of groups [groups], U [in, in] float32 for it, and the damping used."""
        energy = gram.diagonal().view(-1, group_size).mean(1)
        order = torch.arange(len(energy), device=gram.device)
        if self.order == "energy":
            order = energy.argsort(descending=True, stable=True)
        inputs = torch.arange(len(gram), device=gram.device).view(-1, group_size)[order].flatten()
        upper, used = inverse_upper(gram[inputs][:, inputs], self.damping)
        return order, upper.float(), used


class _ByDirection:
    """Column chooser that decides a whole group when the sweep enters it. points, codes: by group, in the sweep's order."""

    def __init__(self, search: Any, upper: Tensor, width: int, radii: Tensor, scale: Tensor, weighted: bool):
        self.search, self.upper, self.width, self.weighted = search, upper, width, weighted
        self.radii, self.scale = radii, scale
        self.points: list[Tensor] = []
        self.codes: list[Tensor] = []

    def enter(self, start: int, columns: Tensor, diagonal: Tensor) -> None:
        groups = columns.T.contiguous()  # [out, group]
        metric = self._metric(start) if self.weighted else None
        points = self.search(groups, metric=metric)
        length = _length(groups, points, metric)
        codes = nearest_level(length / _divisor(self.scale), self.radii)
        self.start, self.points, self.codes = start, [*self.points, points], [*self.codes, codes]
        self.values = (self.scale * self.radii[codes] / points.norm(dim=1))[:, None] * points

    def choose(self, index: int, column: Tensor) -> Tensor:
        return self.values[:, index - self.start]

    def _metric(self, start: int) -> Tensor:
        """inverse(U_bb) inverse(U_bb)ᵀ [group, group] of the group at `start`, scaled to a mean diagonal of 1."""
        own = self.upper[start : start + self.width, start : start + self.width].double()
        eye = torch.eye(self.width, dtype=own.dtype, device=own.device)
        inverse = torch.linalg.solve_triangular(own, eye, upper=True)
        metric = inverse @ inverse.T
        return (metric / metric.diagonal().mean()).float()


def _scale(groups: Tensor) -> Tensor:
    """[out] float16: the root mean square length of a row's groups [out, groups, group]. Raises ArithmeticError."""
    scale = groups.square().sum((1, 2)).div(groups.shape[1]).sqrt().half()
    if not bool(scale.isfinite().all()):
        raise ArithmeticError("the length of a group exceeds float16")
    return scale


def _divisor(scale: Tensor) -> Tensor:
    """The same in float32, 1 for a row of zeros."""
    return torch.where(scale > 0, scale.float(), 1.0)


def _length(groups: Tensor, points: Tensor, metric: Tensor | None = None) -> Tensor:
    """[...] the length along each point [..., group] that is closest to the group, never negative."""
    push = points if metric is None else points @ metric
    along = (groups * push).sum(-1) / (points * push).sum(-1)
    return (along * points.norm(dim=-1)).clamp(min=0)


def _made(points: Tensor, codes: Tensor, radii: Tensor, scale: Tensor) -> Pyramid:
    """From points [out, groups, group] and codes [out, groups]."""
    return Pyramid(points.to(torch.int16).flatten(1), codes.to(torch.uint8), radii, scale, points.shape[-1])
