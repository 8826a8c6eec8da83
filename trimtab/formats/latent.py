"""Matrices that are trained in full while the model already sees what is stored for them.

The weights behind are float32 and move freely; what is multiplied is their rounding, and its gradient goes to them as if
nothing had been rounded. What is stored is the last rounding; the weights behind are thrown away.
"""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from trimtab.core.kinds import Learner, LinearWeight
from trimtab.formats.bitplanes import BitPlanes
from trimtab.formats.codebook import Codebook
from trimtab.formats.grouped import Grouped
from trimtab.formats.moving import Near
from trimtab.tensors.bitplanes import Planes, summed
from trimtab.tensors.rounding import LARGEST
from trimtab.tensors.through import through

FOUR_BITS = 4
CODED = {5: 8, 3: 5, 4: 7, 1: 2}  # trits in one code, and the bits that it takes


class Latent(Learner):
    """weight [out, in] float32 is trained; what its rounding is says who derives from this."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.rates = {}
        self.weight = nn.Parameter(weight.clone())

    @abstractmethod
    def rounded(self, weight: Tensor) -> Tensor:
        """[out, in]: to the bit what `stored` holds."""

    @abstractmethod
    def stored(self, weight: Tensor) -> LinearWeight: ...

    def matrix(self) -> Tensor:
        return through(self.weight, self.rounded(self.weight.detach()))

    def result(self) -> LinearWeight:
        return self.stored(self.weight.detach())


class Ternary(Latent):
    """-s, 0 or s with s twice the group's mean magnitude: what is below half of that is zero."""

    def __init__(self, weight: Tensor, group_size: int):
        super().__init__(weight)
        self.group_size = group_size

    def _coded(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Trits -1, 0, 1 as float [out, groups, group] and scale [out, groups, 1]."""
        groups = weight.view(len(weight), -1, self.group_size)
        return _on_grid(groups, 2 * groups.abs().mean(-1, keepdim=True), 1)

    def rounded(self, weight: Tensor) -> Tensor:
        trits, scale = self._coded(weight)
        return (trits * scale).view_as(weight)

    def stored(self, weight: Tensor) -> Codebook:
        trits, scale = self._coded(weight)
        dim = min((dim for dim in CODED if weight.shape[1] % dim == 0), key=lambda dim: _bits(dim, weight.numel()))
        places = 3 ** torch.arange(dim, device=weight.device)
        codes = ((trits.view(len(weight), -1, dim) + 1).long() * places).sum(-1)
        entries = torch.arange(3**dim, device=weight.device).unsqueeze(1) // places % 3 - 1
        return Codebook(
            codes.unsqueeze(0).to(torch.uint8), entries.unsqueeze(0).half(), scale.squeeze(-1).half(), self.group_size
        )


class Fours(Latent):
    """Whole numbers from -7 to 7 on the scale that reaches the group's largest magnitude."""

    def __init__(self, weight: Tensor, group_size: int):
        super().__init__(weight)
        self.group_size = group_size

    def _coded(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        groups, top = weight.view(len(weight), -1, self.group_size), 2 ** (FOUR_BITS - 1) - 1
        return _on_grid(groups, groups.abs().amax(-1, keepdim=True) / top, top)

    def rounded(self, weight: Tensor) -> Tensor:
        codes, scale = self._coded(weight)
        return (codes * scale).view_as(weight)

    def stored(self, weight: Tensor) -> Grouped:
        codes, scale = self._coded(weight)
        whole = (codes + 2 ** (FOUR_BITS - 1)).to(torch.uint8).view_as(weight)
        return Grouped(whole, scale.squeeze(-1).half(), None, FOUR_BITS, self.group_size)


class LatentPlanes(Learner):
    """Bit planes whose scales are learned, and the weights behind, whose nearest levels the codes are at every step.

    weight: [out, in]. start: of groups [out, groups, ...]. offset: whether that is learned too. rates: of weights and scales.
    """

    def __init__(self, weight: Tensor, start: Planes, offset: bool, rate: float, scale_rate: float):
        super().__init__()
        self.shape, groups = weight.shape, start.scale.shape[1]
        self.weight = nn.Parameter(weight.reshape(len(weight), groups, -1).clone())
        unit = start.scale.abs().mean(-1, keepdim=True)
        self.scale, self.offset = Near(start.scale, unit), Near(start.offset, unit)
        self.offset.shift.requires_grad_(offset)
        self.rates = {"weight": rate, "scale.shift": scale_rate, "offset.shift": scale_rate}

    def _coded(self) -> tuple[Tensor, Planes]:
        planes = Planes(self.scale.now(), self.offset.now())
        with torch.no_grad():
            return planes.codes(self.weight), planes

    def matrix(self) -> Tensor:
        codes, planes = self._coded()
        exact = summed(codes, planes.scale, planes.offset)
        return (exact + (self.weight - self.weight.detach())).view(self.shape)  # zero, with the gradient of one

    def result(self) -> BitPlanes:
        codes, planes = self._coded()
        scale, offset = planes.scale.detach().half(), planes.offset.detach().squeeze(-1).half()
        return BitPlanes(codes.view(self.shape).to(torch.uint8), scale, offset, self.weight.shape[2])


def _bits(dim: int, weights: int) -> float:
    """Of all codes that hold `dim` trits each, and of the table that says which."""
    entries: int = 3**dim
    return CODED[dim] * weights / dim + 16 * dim * entries


def _on_grid(groups: Tensor, scale: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Whole numbers from -top to top, as float, and the scale in float16, which is float32 here."""
    scale = scale.clamp(max=LARGEST).half().float()
    return (groups / torch.where(scale > 0, scale, 1.0)).round().clamp(-top, top), scale
