"""A matrix as signs times magnitudes of low rank: to the nearest, or so that the outputs change least.

One bit per weight says on which side of zero it is; how far is said by |W| of low rank, which is smooth where W is not.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.tensors.columns import sweep
from trimtab.tensors.leading import leading

AT_ONCE = 2**24  # numbers that are refitted together
RIDGE = 1e-6  # of the mean diagonal: two rank-one pieces may become the same under the signs


@dataclass(frozen=True)
class Signed:
    """-1 where negative, else 1, times left @ right. negative bool [out, in], left float16 [out, rank], right [rank, in]."""

    negative: Tensor
    left: Tensor
    right: Tensor

    def dense(self) -> Tensor:
        """[out, in] float32."""
        return _signed(self.negative, self.left.float() @ self.right.float())


def nearest(weight: Tensor, rank: int, loudness: Tensor) -> Signed:
    """Of weight [out, in]: its own signs, and of its magnitudes the best of this rank, inputs counted by loudness [in] > 0.

    Raises ArithmeticError where a factor exceeds float16.
    """
    left, right = _magnitudes(weight, rank, loudness)
    return _stored((weight < 0) ^ (left @ right < 0), left, right)


def compensated(weight: Tensor, rank: int, gram: Tensor, order: Tensor, upper: Tensor) -> Signed:
    """The same magnitudes, but signs by the optimal-brain sweep, then the left factor refitted to them by least squares.

    gram [in, in]: positive definite; order, upper: from `columns.prepared`. Raises ArithmeticError as `nearest` does.
    """
    left, right = _magnitudes(weight, rank, gram.diagonal().sqrt())
    magnitude = left @ right
    chooser = _BySign(magnitude[:, order])
    sweep(weight[:, order], upper, chooser)
    negative = torch.stack(chooser.negative, 1)[:, order.argsort()] ^ (magnitude < 0)
    return _stored(negative, refitted(weight, negative, right, gram), right)


def refitted(weight: Tensor, negative: Tensor, right: Tensor, gram: Tensor) -> Tensor:
    """left [out, rank] with the least |(weight - sign * (left @ right)) x|^2 over inputs of this gram, row by row."""
    rank, inputs = right.shape
    rows = max(1, AT_ONCE // (rank * inputs))
    pieces = zip(torch.split(weight, rows), torch.split(negative, rows), strict=True)
    return torch.cat([_least_squares(some, signs, right, gram) for some, signs in pieces])


def _least_squares(weight: Tensor, negative: Tensor, right: Tensor, gram: Tensor) -> Tensor:
    design = _signed(negative[:, None], right[None])  # [rows, rank, in]
    push = (design.flatten(0, 1) @ gram).view(design.shape)
    normal = (push @ design.mT).double()  # [rows, rank, rank]
    along = (push @ weight.unsqueeze(-1)).double()
    ridge = RIDGE * normal.diagonal(dim1=1, dim2=2).mean(1)
    # A piece without magnitude has a normal matrix of zeros; then any factor is as good as none.
    normal.diagonal(dim1=1, dim2=2).add_(torch.where(ridge > 0, ridge, 1.0)[:, None])
    solved: Tensor = torch.linalg.solve(normal, along)
    return solved.squeeze(-1).float()


class _BySign:
    """Column chooser: a magnitude of its own for every weight [out, in], the sign that of the compensated weight."""

    def __init__(self, magnitude: Tensor):
        self.columns = magnitude.abs().T.contiguous()
        self.width = len(self.columns)
        self.negative: list[Tensor] = []

    def enter(self, start: int, columns: Tensor, diagonal: Tensor) -> None:
        """Nothing depends on what is next."""

    def choose(self, index: int, column: Tensor) -> Tensor:
        self.negative.append(column < 0)
        return _signed(self.negative[-1], self.columns[index])


def _magnitudes(weight: Tensor, rank: int, loudness: Tensor) -> tuple[Tensor, Tensor]:
    left, right = leading(weight.abs() * loudness, rank)
    return left, right / loudness


def _signed(negative: Tensor, magnitude: Tensor) -> Tensor:
    return torch.where(negative, -magnitude, magnitude)


def _stored(negative: Tensor, left: Tensor, right: Tensor) -> Signed:
    """Each piece with equally large factors, so that float16 serves both alike."""
    sizes = left.abs().amax(0), right.abs().amax(1)
    ratio = torch.where((sizes[0] > 0) & (sizes[1] > 0), (sizes[1] / sizes[0]).sqrt(), 1.0)
    made = Signed(negative, (left * ratio).half(), (right / ratio[:, None]).half())
    if not bool(made.left.isfinite().all() and made.right.isfinite().all()):
        raise ArithmeticError("the magnitudes exceed float16")
    return made
