"""Softmax attention and its gradient from polynomial features: nothing of the size of tokens x tokens is ever formed.

exp(q . k) is replaced by its Taylor polynomial sum_{i <= g} (q . k)^i / i!, which is u(q) . u(k) with the C(d + g, g) monomials

    u_a(x) = x^a / sqrt(a!),   a in N^d,   |a| <= g,   x^a = prod x_i^a_i,   a! = prod a_i!

With f the softmax matrix, w = dL/d output and s_i = sum_j f_ij (w_i . v_j), the gradients are  dL/dq = p k,  dL/dk = p^T q  and
dL/dv = f^T w  with  p_ij = f_ij (w_i . v_j - s_i).  f is U(q) U(k)^T with rows divided by their sums, and f_ij (w_i . v_j) the
product of the row-wise Kronecker products of U(q) with w and of U(k) with v: chains of products of thin matrices.
The construction behind arXiv:2406.03136, with monomials as the features; the exponent is q . k, without a division.
"""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gradients:
    """Of a loss by queries, keys [tokens, d] and values [tokens, width]."""

    query: Tensor
    key: Tensor
    value: Tensor


def features(x: Tensor, degree: int) -> Tensor:
    """[tokens, C(d + degree, degree)] for x [tokens, d], such that features(q) @ features(k).T is the Taylor polynomial."""
    powers: dict[tuple[int, ...], Tensor] = {(): torch.ones_like(x[:, 0])}
    for total in range(1, degree + 1):
        for chosen in itertools.combinations_with_replacement(range(x.shape[1]), total):
            *before, last = chosen
            powers[chosen] = powers[tuple(before)] * x[:, last] * chosen.count(last) ** -0.5
    return torch.stack([*powers.values()], 1)


def approximate(query: Tensor, key: Tensor, value: Tensor, upstream: Tensor, degree: int) -> tuple[Tensor, Gradients]:
    """The output [tokens, width] and the gradients of the loss whose gradient by it is `upstream`, in time linear in tokens."""
    of_query, of_key = features(query, degree), features(key, degree)
    rows = (of_query @ of_key.sum(0))[:, None]
    output = of_query @ (of_key.mT @ value) / rows
    slope = (upstream * output).sum(1, keepdim=True)  # s
    left, right = _kronecker(of_query, upstream) / rows, _kronecker(of_key, value)
    weighted = of_query / rows
    by_query = left @ (right.mT @ key) - slope * (weighted @ (of_key.mT @ key))
    by_key = right @ (left.mT @ query) - of_key @ ((slope * weighted).mT @ query)
    return output, Gradients(by_query, by_key, of_key @ (weighted.mT @ upstream))


def exact(query: Tensor, key: Tensor, value: Tensor, upstream: Tensor) -> tuple[Tensor, Gradients]:
    """The same of softmax attention itself, through the whole matrix."""
    weights = torch.softmax(query @ key.mT, 1)
    output = weights @ value
    change = weights * (upstream @ value.mT - (upstream * output).sum(1, keepdim=True))
    return output, Gradients(change @ key, change.mT @ query, weights.mT @ upstream)


def _kronecker(left: Tensor, right: Tensor) -> Tensor:
    """Row by row, [tokens, a * b]."""
    return (left[:, :, None] * right[:, None, :]).flatten(1)
