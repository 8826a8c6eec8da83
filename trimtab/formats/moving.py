"""Quantized matrices while the whole model is trained: scales and codebooks by gradients, codes by jumps.

What stands for a matrix is what is stored for it, at every step: scales are float16 already, codes are whole. The continuous
part is learned as a distance from where it began, in units of its own size, so that one learning rate fits all matrices.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trimtab.core.errors import RecipeError
from trimtab.core.kinds import Learner, LinearWeight
from trimtab.core.places import Site
from trimtab.formats.bitplanes import BitPlanes
from trimtab.formats.codebook import Codebook
from trimtab.formats.grouped import Grouped
from trimtab.tensors.bitplanes import Planes, summed
from trimtab.tensors.moves import adaptive, most_wanted, trusted
from trimtab.tensors.rounding import LARGEST
from trimtab.tensors.through import halved

PASSES = 2  # over the codebooks, for what a run's codes shall be


class Near(nn.Module):
    """float16 numbers that are learned: start + unit * shift, as float32; shift is the parameter and begins at zero."""

    def __init__(self, start: Tensor, unit: Tensor):
        super().__init__()
        self.start, self.unit = start.float(), unit.float()
        self.shift = nn.Parameter(torch.zeros_like(self.start))

    def now(self) -> Tensor:
        return halved((self.start + self.unit * self.shift).clamp(-LARGEST, LARGEST))


@dataclass(frozen=True)
class Pace:
    """How codes move. share: of the runs, in a step; 0: none ever. trust: how far the matrix moves in a step, of its norm.
    reach: how far a step asks it to, of its norm. forget: how much of what earlier steps asked for is dropped at each."""

    share: float
    trust: float
    reach: float
    forget: float


class Moving(Learner):
    """Codes [books, runs] of runs of `dim` inputs, row after row, as a buffer; what the values of the codes are is learned."""

    codes: Tensor
    square: Tensor
    taken: Tensor
    wish: Tensor

    def __init__(self, codes: Tensor, shape: tuple[int, int], dim: int, pace: Pace):
        super().__init__()
        self.rates, self.shape, self.dim, self.pace = {}, shape, dim, pace
        self.first = codes.clone()
        self.pushed: Tensor | None = None  # the gradient of the step under way, [out, in]
        self.register_buffer("codes", codes.clone())
        if pace.share:
            self.register_buffer("square", torch.zeros(shape, device=codes.device))
            self.register_buffer("taken", torch.zeros((), dtype=torch.int64))

    @abstractmethod
    def values(self) -> Tensor:
        """[out, in] float32, through which gradients flow to what is continuous."""

    @abstractmethod
    def at(self, codes: Tensor, places: Tensor) -> Tensor:
        """[n, dim]: what codes [books, n] would say at the runs of these numbers, [n]."""

    @abstractmethod
    def nearest(self, wanted: Tensor, places: Tensor) -> Tensor:
        """Codes [books, n] whose values are nearest to wanted [n, dim], never farther than those that are there."""

    def matrix(self) -> Tensor:
        made = self.values()
        if self.pace.share and made.requires_grad:
            made.register_hook(self._push)  # type: ignore[no-untyped-call]
        return made

    def _push(self, gradient: Tensor) -> None:
        self.pushed = gradient.clone() if self.pushed is None else self.pushed + gradient

    @torch.no_grad()
    def move(self) -> int:
        """Changes the codes that the gradient asks for most, after the continuous part has moved; how many runs did change."""
        gradient, self.pushed = self.pushed, None
        if gradient is None:
            return 0
        self.taken += 1
        made = self.values()
        asked = self._asked(made, -self.pace.reach * _size(made) * adaptive(gradient, self.square, int(self.taken)))
        places = most_wanted(asked.view(-1, self.dim), self.pace.share)
        before = made.view(-1, self.dim)[places]
        chosen = self.nearest(before + asked.view(-1, self.dim)[places], places)
        changed = (chosen != self.codes[:, places]).any(0)
        places, chosen, before = places[changed], chosen[:, changed], before[changed]
        safe = trusted(self.at(chosen, places) - before, self.pace.trust * float(made.double().norm()))
        self.codes[:, places[safe]] = chosen[:, safe]
        return int(safe.sum())

    def _asked(self, made: Tensor, step: Tensor) -> Tensor:
        """How much the matrix should move, with what is remembered of earlier steps."""
        if self.pace.forget == 1:
            return step
        self.wish.lerp_(made, self.pace.forget).add_(step)
        return self.wish - made

    def remember(self) -> None:
        """To be called once at the end of construction: from now on what steps ask for is added up."""
        if self.pace.share and self.pace.forget < 1:
            self.register_buffer("wish", self.values().detach().clone())

    def moved(self) -> int:
        """How many runs have other codes than in the beginning."""
        return int((self.codes != self.first).any(0).sum())


class MovingGroups(Moving):
    """Integers on scales; zero points stay."""

    def __init__(self, weight: Grouped, pace: Pace):
        super().__init__(weight.codes.view(1, -1), weight.shape, 1, pace)
        self.bits, self.group_size, self.zeros = weight.code_bits, weight.group_size, weight.zero
        self.zero = torch.full_like(weight.scale, 2.0 ** (self.bits - 1)) if self.zeros is None else self.zeros
        self.zero = self.zero.float().view(-1, 1)
        self.scale = Near(weight.scale, weight.scale.abs())
        self.remember()

    def values(self) -> Tensor:
        codes = self.codes.view(-1, self.group_size).float()
        return ((codes - self.zero) * self.scale.now().view(-1, 1)).view(self.shape)

    def at(self, codes: Tensor, places: Tensor) -> Tensor:
        groups = places // self.group_size
        return (codes[0].float().unsqueeze(1) - self.zero[groups]) * self.scale.now().view(-1, 1)[groups]

    def nearest(self, wanted: Tensor, places: Tensor) -> Tensor:
        groups = places // self.group_size
        scale = self.scale.now().view(-1, 1)[groups]
        steps = wanted / torch.where(scale == 0, 1.0, scale)  # where the scale is zero all codes say the same
        return (steps.round() + self.zero[groups]).clamp(0, 2**self.bits - 1).view(1, -1).to(torch.uint8)

    def result(self) -> Grouped:
        return Grouped(self.codes.view(self.shape), self.scale.now().detach().half(), self.zeros, self.bits, self.group_size)


class MovingPlanes(Moving):
    """Bit planes with their scales and offsets."""

    def __init__(self, weight: BitPlanes, pace: Pace):
        super().__init__(weight.codes.view(1, -1), weight.shape, 1, pace)
        self.group_size = weight.group_size
        unit = weight.scale.float().abs().mean(-1)
        self.scale, self.offset = Near(weight.scale, unit.unsqueeze(-1)), Near(weight.offset, unit)
        self.remember()

    def values(self) -> Tensor:
        return self._at(self.codes.view(-1, self.group_size), slice(None)).view(self.shape)

    def at(self, codes: Tensor, places: Tensor) -> Tensor:
        return self._at(codes[0].unsqueeze(1), places // self.group_size)

    def _at(self, codes: Tensor, groups: Tensor | slice) -> Tensor:
        planes = self._planes()
        return summed(codes, planes.scale[groups], planes.offset[groups])

    def _planes(self) -> Planes:
        """Of all groups, one after the other."""
        return Planes(self.scale.now().flatten(0, 1), self.offset.now().view(-1, 1))

    def nearest(self, wanted: Tensor, places: Tensor) -> Tensor:
        planes, groups = self._planes(), places // self.group_size
        return Planes(planes.scale[groups], planes.offset[groups]).codes(wanted).view(1, -1).to(torch.uint8)

    def result(self) -> BitPlanes:
        scale, offset = self.scale.now().detach().half(), self.offset.now().detach().half()
        return BitPlanes(self.codes.view(self.shape), scale, offset, self.group_size)


class MovingBooks(Moving):
    """Sums of entries of codebooks, scaled by groups or not."""

    def __init__(self, weight: Codebook, pace: Pace):
        super().__init__(weight.codes.flatten(1), weight.shape, weight.codebook.shape[2], pace)
        self.group_size = weight.group_size
        self.codebook = Near(weight.codebook, _size(weight.codebook.float()))
        self.scale = None if weight.scale is None else Near(weight.scale, weight.scale.abs())
        self.remember()

    def values(self) -> Tensor:
        total = _sums(self.codebook.now(), self.codes.long())
        if self.scale is None:
            return total.view(self.shape)
        scale = self.scale.now()
        return (total.view(*scale.shape, -1) * scale.unsqueeze(-1)).view(self.shape)

    def at(self, codes: Tensor, places: Tensor) -> Tensor:
        return _sums(self.codebook.now(), codes.long()) * self._loud(places)

    def _loud(self, places: Tensor) -> Tensor:
        """[n, dim]: what the entries of these runs are multiplied by."""
        if self.scale is None or self.group_size is None:
            return torch.ones(len(places), self.dim, device=places.device)
        inputs = places.unsqueeze(1) * self.dim + torch.arange(self.dim, device=places.device)
        return self.scale.now().flatten()[inputs // self.group_size]

    def nearest(self, wanted: Tensor, places: Tensor) -> Tensor:
        book, loud, codes = self.codebook.now(), self._loud(places), self.codes[:, places].long()
        for _ in range(PASSES):
            for number, entries in enumerate(book):
                others = _sums(book, codes) - entries[codes[number]]
                left = loud * (wanted - loud * others)
                codes[number] = (loud.square() @ entries.square().T - 2 * left @ entries.T).argmin(1)
        return codes.to(torch.uint8)

    def result(self) -> Codebook:
        codes = self.codes.view(len(self.codes), self.shape[0], -1)
        scale = None if self.scale is None else self.scale.now().detach().half()
        return Codebook(codes, self.codebook.now().detach().half(), scale, self.group_size)


def _sums(book: Tensor, codes: Tensor) -> Tensor:
    """[n, dim] for book [books, entries, dim] and codes [books, n]."""
    total = book[0][codes[0]]
    for number in range(1, len(codes)):
        total = total + book[number][codes[number]]
    return total


def _size(matrix: Tensor) -> Tensor:
    """Root mean square, [] float32."""
    return matrix.square().mean().sqrt()


def moving(weight: LinearWeight, pace: Pace) -> Moving | None:
    """What stands for a quantized matrix, or None for a format without codes and scales of this kind."""
    if isinstance(weight, Grouped):
        return MovingGroups(weight, pace)
    if isinstance(weight, BitPlanes):
        return MovingPlanes(weight, pace)
    return MovingBooks(weight, pace) if isinstance(weight, Codebook) else None


def quantized(weights: Mapping[Site, LinearWeight], who: str, pace: Pace) -> dict[Site, Moving]:
    """What stands for the quantized matrices among some; the others stay as they are. Raises `RecipeError` if there is none."""
    made = {site: moving(weight, pace) for site, weight in weights.items()}
    found = {site: learner for site, learner in made.items() if learner is not None}
    if not found:
        raise RecipeError(f"{who} tunes quantized matrices and there is none; put a step before it: gptq(bits=2) -> {who}")
    return found
