"""Structures that several methods train from random numbers, with the container that each of them comes to."""

from typing import Self

import torch
from torch import Tensor, nn

from trimtab.core.scratch import Structure
from trimtab.formats.lowrank import Chain, low_rank
from trimtab.tensors.lowrank import truncated


class Product(Structure):
    """left [out, rank] @ right [rank, in]."""

    def __init__(self, left: Tensor, right: Tensor):
        super().__init__()
        self.left, self.right = nn.Parameter(left), nn.Parameter(right)

    @classmethod
    def of(cls, weight: Tensor, rank: int) -> Self:
        """As near to weight [out, in] as the rank allows."""
        found = truncated(weight, rank)
        return cls(found.left, found.right)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.right.T @ self.left.T

    def matrix(self) -> Tensor:
        return self.left @ self.right

    def result(self) -> Chain:
        return low_rank(self.left.detach().clone(), self.right.detach().clone(), torch.float32)
