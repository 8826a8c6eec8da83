"""Random features whose inner products are, in the mean, polynomials of inner products (EUGens, arXiv:2410.09771).

    x+ = [x; |x|],    features(x) = [1,  G x+ / sqrt(p),  (G' x+) * (G'' x+) / sqrt(p),  ...]

with p rows for every degree, of independent Gaussian projections.  E[(g' w)(g' x)(g'' w)(g'' x)] = (w x)^2, and so for every
degree: a matrix that is made of the features of the weights' rows gives f(W x) for a polynomial f, up to an error of order
1 / sqrt(p). Rows of one projection are orthogonal in blocks, each still Gaussian, which leaves the mean as it is.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Projections = Sequence[Tensor]  # for every degree from 1 on: [degree, p, in + 1]


def projections(inputs: int, width: int, degree: int, generator: torch.Generator) -> list[Tensor]:
    """For `inputs` inputs, `width` features of every degree up to `degree`."""
    return [torch.stack([_rows(width, inputs + 1, generator) for _ in range(power)]) for power in range(1, degree + 1)]


def features(x: Tensor, drawn: Projections) -> Tensor:
    """[..., 1 + sum of widths] of x [..., in]."""
    wide = torch.cat([x, x.norm(dim=-1, keepdim=True)], dim=-1)
    return torch.cat([torch.ones_like(x[..., :1]), *(_products(wide, one) for one in drawn)], dim=-1)


def polynomial(weight: Tensor, coefficients: Sequence[float], drawn: Projections) -> Tensor:
    """[out, features]: times `features(x)` it is, in the mean, sum_i coefficients[i] * (W x)^i. weight [out, in]."""
    wide = torch.cat([weight, torch.zeros_like(weight[:, :1])], dim=1)  # of the norm of x a polynomial of W x knows nothing
    parts = [a * _products(wide, one) for a, one in zip(coefficients[1:], drawn, strict=True)]
    return torch.cat([torch.full_like(weight[:, :1], coefficients[0]), *parts], dim=1)


def _products(wide: Tensor, drawn: Tensor) -> Tensor:
    """[..., p] of wide [..., in + 1] and drawn [degree, p, in + 1]."""
    scale: float = drawn.shape[1] ** -0.5
    found: Tensor = wide @ drawn[0].T * scale
    for rows in drawn[1:]:
        found = found * (wide @ rows.T)
    return found


def _rows(count: int, size: int, generator: torch.Generator) -> Tensor:
    """[count, size]: every row normal, and at right angles to the others of its block of `size`."""
    drawn = torch.randn(count, size, generator=generator)
    blocks = [torch.linalg.qr(part.mT)[0].mT for part in torch.split(drawn, size)]
    norms: Tensor = torch.randn(count, size, generator=generator).norm(dim=1, keepdim=True)
    return torch.cat(blocks) * norms
