"""Symmetric positive definite matrices with one stated failure policy.

Damping adds a fraction of the mean diagonal. If the factorization still fails, the fraction is raised tenfold, at most three
times, and the caller is told which fraction was used; then it is an error. Factors are computed in float64: the pivots of a
nearly singular gram vanish in float32.
"""

import torch
from torch import Tensor

TRIES = 4
RAISE = 10.0
SMALL = 128  # below, a triangular matrix is inverted directly
LEAST = 1e-7  # where the raising starts: below it damping drowns in the rounding error of a float32 gram


def damped(gram: Tensor, damping: float) -> Tensor:
    """gram [n, n] + damping * mean(diagonal) * I, in float64."""
    result = gram.to(torch.float64, copy=True)
    result.diagonal().add_(damping * result.diagonal().mean())
    return result


def cholesky(gram: Tensor, damping: float) -> tuple[Tensor, float]:
    """Lower factor of the damped gram, and the damping that was used.

    Raises ArithmeticError if the gram is zero or not finite, or stays indefinite after the damping was raised three times.
    """
    if not bool(torch.isfinite(gram).all()):
        raise ArithmeticError("the gram matrix is not finite")
    if not float(gram.diagonal().mean()) > 0:
        raise ArithmeticError("the gram matrix is zero: nothing was seen")
    for attempt in range(TRIES):
        used = max(damping, LEAST) * RAISE**attempt if attempt else damping
        factor, failed = torch.linalg.cholesky_ex(damped(gram, used))
        if not int(failed):
            return factor, used
    raise ArithmeticError(f"the gram matrix is indefinite even with damping {used:g}")


def inverse_upper(gram: Tensor, damping: float) -> tuple[Tensor, float]:
    """U, upper triangular, with inverse(damped gram) = Uᵀ U, and the damping used. [n, n] float64.

    Row i of U is what an optimal-brain sweep from left to right needs: the error of column i goes to column j > i in the
    proportion U[i, j] / U[i, i]. One factorization of the reversed matrix replaces inverse-then-factorize.
    """
    flipped, used = cholesky(gram.flip(0, 1), damping)
    upper = flipped.flip(0, 1)  # damped gram = upper @ upperᵀ
    del flipped  # before more is asked for: these are the largest matrices of a sweep
    invert_upper_(upper)
    return upper, used


def invert_upper_(upper: Tensor) -> None:
    """Invert an upper triangular matrix [n, n] in place, halves first: two thirds of the work of solving for the identity."""
    n = len(upper)
    if n <= SMALL:
        eye = torch.eye(n, dtype=upper.dtype, device=upper.device)
        upper.copy_(torch.linalg.solve_triangular(upper, eye, upper=True))
        return
    first, right, last = upper[: n // 2, : n // 2], upper[: n // 2, n // 2 :], upper[n // 2 :, n // 2 :]
    invert_upper_(first)
    invert_upper_(last)
    right.copy_(first @ right @ last).neg_()
