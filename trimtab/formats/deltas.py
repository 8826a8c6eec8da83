"""Changes of a matrix that several adapters share: low rank, and a bottleneck with something between its two halves.

A low-rank change is a pair of factors; one that starts from factors other than zero (PiSSA) keeps a frozen copy of them and
subtracts it, so that it begins at exactly zero and is, at any time, an ordinary low-rank change of twice the rank.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimtab.core.kinds import LinearWeight
from trimtab.core.trained import Delta, put
from trimtab.formats.dense import Dense
from trimtab.formats.lowrank import low_rank
from trimtab.formats.sum import Sum


class MatrixDelta(Delta):
    """A change of the matrix that no other matrix has a part in. It is folded into plain matrices only."""

    @abstractmethod
    def change(self) -> Tensor:
        """[out, in] as precise as the parameters, zero at first."""

    def forward(self, x: Tensor, product: Tensor, weight: Callable[[], Tensor]) -> Tensor:
        return F.linear(x, self.change())

    def merged(self, weight: LinearWeight) -> LinearWeight | None:
        return added(weight, deepcopy(self).double().change().detach()) if isinstance(weight, Dense) else None


class ProductDelta(Delta):
    """scale * left @ right x, where left and right are made of what is trained. It is folded into any format."""

    scale = 1.0

    @abstractmethod
    def factors(self) -> tuple[Tensor, Tensor]:
        """left [out, rank], right [rank, in] of the change without `scale`, as precise as the parameters."""

    def forward(self, x: Tensor, product: Tensor, weight: Callable[[], Tensor]) -> Tensor:
        left, right = self.factors()
        return self.scale * F.linear(F.linear(x, right), left)

    @torch.no_grad()
    def change(self) -> Tensor:
        """[out, in] float64"""
        left, right = self.factors()
        return self.scale * (left.double() @ right.double())

    @torch.no_grad()
    def merged(self, weight: LinearWeight) -> LinearWeight:
        left, right = self.factors()
        return added(weight, self.change(), (self.scale * left, right.detach()))

    @torch.no_grad()
    def as_lora(self) -> dict[str, Tensor]:
        """The factors under the names that peft gives those of a LoRA."""
        left, right = self.factors()
        return {"lora_A.weight": right, "lora_B.weight": left}


class LowRankDelta(ProductDelta):
    """(scale * left @ right - what that was at the start) x. left [out, rank], right [rank, in], trained in float32.

    from_start: left and right are not a change yet; their product belongs to the frozen matrix. Otherwise left must be zero.
    """

    first_left: nn.Parameter | None
    first_right: nn.Parameter | None

    def __init__(self, left: Tensor, right: Tensor, scale: float = 1.0, from_start: bool = False):
        super().__init__()
        self.scale: float | Tensor = scale
        self.left, self.right = _trained(left), _trained(right)
        self.first_left = _frozen(self.left) if from_start else None
        self.first_right = _frozen(self.right) if from_start else None

    def forward(self, x: Tensor, product: Tensor, weight: Callable[[], Tensor]) -> Tensor:
        change = F.linear(F.linear(x, self.right), self.left)
        if self.first_left is not None and self.first_right is not None:
            change = change - F.linear(F.linear(x, self.first_right), self.first_left)
        return self.scale * change

    def factors(self) -> tuple[Tensor, Tensor]:
        """Of twice the rank with `from_start`."""
        if self.first_left is None or self.first_right is None:
            return self.left, self.right
        return torch.cat([self.left, -self.first_left], 1), torch.cat([self.right, self.first_right], 0)

    def portable(self) -> dict[str, Tensor]:
        return self.as_lora()

    def adopt(self, tensors: Mapping[str, Tensor]) -> None:
        put(self.right, tensors["lora_A.weight"])
        put(self.left, tensors["lora_B.weight"])


class BottleneckDelta(Delta):
    """scale * up tanh(down h). h is the layer's input ("parallel") or its product ("series"). down [width, ...], up [out, width].

    up begins at zero, so nothing is added at first; nothing of this kind is a matrix, so it cannot be merged.
    """

    def __init__(self, down: Tensor, up: Tensor, scale: float, of: str):
        super().__init__()
        self.scale, self.of = scale, of
        self.down, self.up = _trained(down), _trained(up)

    def forward(self, x: Tensor, product: Tensor, weight: Callable[[], Tensor]) -> Tensor:
        given = product if self.of == "series" else x
        return self.scale * F.linear(torch.tanh(F.linear(given, self.down)), self.up)

    def merged(self, weight: LinearWeight) -> LinearWeight | None:
        return None


def _trained(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().to(torch.float32, copy=True))


def _frozen(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(parameter.detach().clone(), requires_grad=False)


def added(weight: LinearWeight, change: Tensor, factors: tuple[Tensor, Tensor] | None = None) -> LinearWeight:
    """weight + change [out, in]: a plain matrix of the same dtype stays one, any other format becomes a sum with the factors."""
    if isinstance(weight, Dense):
        return Dense((weight.weight.double() + change).to(weight.weight.dtype))
    if factors is None:
        factors = change, torch.eye(change.shape[1], device=change.device)
    return Sum((weight, low_rank(*factors, dtype=torch.float32)))


def device_of(weight: LinearWeight) -> torch.device:
    return next(iter(weight.tensors().values())).device


def fresh_product(weight: LinearWeight, rank: int, scale: float, generator: torch.Generator) -> LowRankDelta:
    """LoRA's start beside this weight: left zero, right as `fresh_right` draws it."""
    (out, inputs), device = weight.shape, device_of(weight)
    return LowRankDelta(torch.zeros(out, rank, device=device), fresh_right(rank, inputs, generator, device), scale)


def fresh_bottleneck(weight: LinearWeight, width: int, scale: float, of: str, generator: torch.Generator) -> BottleneckDelta:
    """up zero, down from a normal distribution with deviation 0.02. of: "parallel" or "series"."""
    (out, inputs), device = weight.shape, device_of(weight)
    down = 0.02 * torch.randn(width, out if of == "series" else inputs, generator=generator)
    return BottleneckDelta(down.to(device), torch.zeros(out, width, device=device), scale, of)


def fresh_right(rank: int, inputs: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """[rank, in] uniform within 1 / sqrt(in) of zero: LoRA's start (He et al. 2015 with slope sqrt(5))."""
    within: Tensor = (2 * torch.rand(rank, inputs, generator=generator) - 1) * inputs**-0.5
    return within.to(device)


def lora_fields(rank: int, alpha: float, **more: Any) -> dict[str, Any]:
    """What peft has to know of low-rank changes that are all of one rank; it scales them by alpha / rank."""
    return {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "lora_dropout": 0.0, "bias": "none", **more}
