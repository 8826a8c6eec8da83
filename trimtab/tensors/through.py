"""Steps that gradients go through: forward the exact value, backward as if it were the smooth one (straight-through)."""

from typing import Any

import torch
from torch import Tensor


def through(smooth: Tensor, exact: Tensor) -> Tensor:
    """`exact`, to the bit, with the gradient of `smooth`; both of one shape. Exact's own gradient is not asked for."""
    passed: Tensor = _Through.apply(smooth, exact)  # type: ignore[no-untyped-call]
    return passed


def rounded(x: Tensor) -> Tensor:
    """The nearest whole numbers."""
    return through(x, x.detach().round())


def halved(x: Tensor) -> Tensor:
    """The nearest float16 numbers, as float32; what a stored scale will be."""
    return through(x, x.detach().half().float())


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, smooth: Tensor, exact: Tensor) -> Tensor:
        return exact.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None
