"""Attention from polynomial features against attention itself: exact where the polynomial is, bounded where it is not."""

import math
from dataclasses import astuple

import pytest
import torch
from torch import Tensor

from trimtab.core.seeds import Seeds
from trimtab.methods.probe.lora_limits import degree, log_features
from trimtab.tensors.polynomial_attention import approximate, exact, features


def drawn(tokens: int, size: int, largest: float, seed: int = 0) -> list[Tensor]:
    """Queries and keys whose largest entry is `largest`, values and what comes from above, float64."""
    draw = Seeds(seed).at("attention")
    q, k, v, w = (torch.randn(tokens, size, generator=draw, dtype=torch.float64) for _ in range(4))
    return [largest * q / q.abs().max(), largest * k / k.abs().max(), v, w]


@pytest.mark.parametrize("size", [1, 3, 4])
@pytest.mark.parametrize("power", [0, 1, 4])
def test_features_are_those_of_the_taylor_polynomial(size: int, power: int) -> None:
    q, k, _, _ = drawn(9, size, 1.5)
    said = q @ k.T
    wanted = sum(said**i / math.factorial(i) for i in range(power + 1))
    torch.testing.assert_close(features(q, power) @ features(k, power).T, wanted)
    assert features(q, power).shape[1] == round(10 ** log_features(size, power)) == math.comb(size + power, power)


def test_the_exact_gradient_is_autograds() -> None:
    *given, w = drawn(12, 3, 2.0)
    leaves = [one.clone().requires_grad_() for one in given]
    q, k, v = leaves
    output = torch.softmax(q @ k.T, 1) @ v
    output.backward(w)
    found, gradients = exact(*given, w)
    torch.testing.assert_close(found, output.detach())
    for mine, leaf in zip(astuple(gradients), leaves, strict=True):
        torch.testing.assert_close(mine, leaf.grad)


@pytest.mark.parametrize("error", [1e-1, 1e-3, 1e-8])
def test_the_gradient_is_as_near_as_the_polynomial(error: float) -> None:
    """Every entry of exp is within a factor 1 +- error of what it should be, so every weight is within (1 + e) / (1 - e)."""
    q, k, v, w = drawn(40, 3, 0.7)
    power = degree(float((q @ k.T).abs().max()), error)
    factor = (1 + error) / (1 - error) - 1
    output, gradients = approximate(q, k, v, w, power)
    wanted, exactly = exact(q, k, v, w)
    assert (output - wanted).abs().max() <= factor * v.abs().max()
    said = (w @ v.T).abs().max()
    # p of two weights, each off by `factor` at most, summed over 40 tokens.
    assert (gradients.query - exactly.query).abs().max() <= 4 * factor * said * k.abs().max()
    assert (gradients.value - exactly.value).abs().sum() <= factor * w.abs().sum() * len(q)
    for mine, theirs in zip(astuple(gradients), astuple(exactly), strict=True):
        assert (mine - theirs).norm() <= 40 * factor * theirs.norm()


def test_a_greater_degree_is_nearer() -> None:
    q, k, v, w = drawn(30, 2, 1.2)
    wanted = exact(q, k, v, w)[1].query
    lost = [float((approximate(q, k, v, w, power)[1].query - wanted).norm()) for power in (2, 4, 8, 16)]
    assert lost == sorted(lost, reverse=True)
    assert lost[-1] < 1e-9 * lost[0]
