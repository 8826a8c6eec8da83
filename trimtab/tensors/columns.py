"""The one optimal-brain column sweep: SparseGPT, GPTQ and their kin differ only in how a column is chosen.

Columns of a weight are fixed from left to right; the error of each is spread over the columns to its right so that the layer
output changes least:  err = (w_i - q_i) / U_ii,  w_j -= err * U_ij  for j > i,  with inverse(gram) = Uᵀ U.
(Hassibi & Stork 1993; Frantar & Alistarh, arXiv:2208.11580, 2210.17323, 2301.00774.)
Work is done on the transpose, so that a column is contiguous, and in lazy blocks, so that most of it is a matrix product.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from trimtab.tensors.spd import inverse_upper
from trimtab.tensors.threads import one_thread

LAZY = 128
T = TypeVar("T")


class Chooser(Protocol):
    """Decides the value of each column. `width`: how many columns are announced together by `enter`."""

    width: int

    def enter(self, start: int, columns: Tensor, diagonal: Tensor) -> None:
        """Columns start .. start + width are next; columns [width, out] as compensated so far, diagonal [width] of U."""

    def choose(self, index: int, column: Tensor) -> Tensor:
        """The final value [out] of a column [out] that has been compensated for all columns before it."""


@dataclass(frozen=True)
class Feed:
    """What a column hands to those on its right besides its error; w0_i: column i before the sweep, w_i: compensated.

    w_j += w_i * inputs[i, j] + (w0_i - w_i) * rebound[i, j]  for j > i; both [in, in] and strictly upper triangular.
    chosen: from one lazy block to the next, w_i is the value that was chosen for the column.
    """

    inputs: Tensor
    rebound: Tensor | None = None
    chosen: bool = True


def sweep(weight: Tensor, upper: Tensor, chooser: Chooser, feed: Feed | None = None) -> Tensor:
    """weight [out, in], upper [in, in] from `spd.inverse_upper` -> chosen values [out, in] float32."""
    columns = weight.float().T.clone(memory_format=torch.contiguous_format)  # [in, out]
    before = columns.clone() if feed else columns
    upper = upper.float()
    chosen = torch.empty_like(columns)
    inputs, lazy = len(columns), _lazy(min(chooser.width, len(columns)))
    for start in range(0, inputs, lazy):
        end = min(start + lazy, inputs)
        with one_thread():
            errors = _block(columns, chosen, upper, chooser, start, end, feed, before)
        columns[end:].addmm_(upper[start:end, end:].T, errors, alpha=-1)
        if feed:
            left = (chosen if feed.chosen else columns)[start:end]
            columns[end:].addmm_(feed.inputs[start:end, end:].T, left)
            if feed.rebound is not None:
                columns[end:].addmm_(feed.rebound[start:end, end:].T, before[start:end] - left)
    return chosen.T


def _block(
    columns: Tensor,
    chosen: Tensor,
    upper: Tensor,
    chooser: Chooser,
    start: int,
    end: int,
    feed: Feed | None,
    before: Tensor,
) -> Tensor:
    """Sweep columns start .. end in place, compensating only inside the block; returns the scaled errors [block, out]."""
    errors = torch.empty_like(columns[start:end])
    diagonal = upper.diagonal()
    for i, pivot in enumerate(diagonal[start:end].tolist(), start):
        if i % chooser.width == 0:
            chooser.enter(i, columns[i : i + chooser.width], diagonal[i : i + chooser.width])
        column, error = columns[i], errors[i - start]
        chosen[i] = chooser.choose(i, column)
        torch.sub(column, chosen[i], out=error).div_(pivot)
        columns[i + 1 : end].addr_(upper[i, i + 1 : end], error, alpha=-1)
        if feed:
            columns[i + 1 : end].addr_(feed.inputs[i, i + 1 : end], column)
            if feed.rebound is not None:
                columns[i + 1 : end].addr_(feed.rebound[i, i + 1 : end], before[i] - column)
    return errors


def fed(moment: Tensor, upper: Tensor) -> Tensor:
    """striu(M Uᵀ) U [in, in]: how a product M [in, in] of inputs that the gram does not hold spreads over a sweep with U."""
    return (moment.float() @ upper.T).triu(1) @ upper


class ByGroup(Generic[T]):
    """Column chooser for formats with parameters per group of consecutive inputs.

    fit(weights [out, group]) gives a group's parameters; take(parameters, position in the group, column [out]) gives the
    codes [out] and their values [out]. order: the sweep's columns as positions in the weight. In the weight's own order a
    group is fitted, compensated, when the sweep enters it; in another order its columns are met far apart, so all groups are
    fitted at the start ("static groups"). keep [out, in]: where False the column is zero before it is fitted or taken.
    """

    def __init__(
        self,
        fit: Callable[[Tensor], T],
        take: Callable[[T, int, Tensor], tuple[Tensor, Tensor]],
        group_size: int,
        order: Tensor,
        keep: Tensor | None = None,
    ):
        self._fit, self._take, self.group_size = fit, take, group_size
        self.order, self.keep = order.tolist(), keep
        self.given = self.order == list(range(len(order)))
        self.width = group_size if self.given else len(order)
        self.fitted: list[T] = []
        self._codes: list[Tensor] = []

    def enter(self, start: int, columns: Tensor, diagonal: Tensor) -> None:
        if not self.given:
            columns = columns[torch.tensor(self.order, device=columns.device).argsort()]
        if self.keep is not None:
            columns = columns * self.keep.T[start : start + self.width]
        self.fitted += [self._fit(group.T) for group in torch.split(columns, self.group_size)]

    def choose(self, index: int, column: Tensor) -> Tensor:
        place = self.order[index]
        if self.keep is not None:
            column = column * self.keep[:, place]
        codes, values = self._take(self.fitted[place // self.group_size], place % self.group_size, column)
        self._codes.append(codes)
        return values

    @property
    def codes(self) -> Tensor:
        """[out, in], in the weight's own order; complete after the sweep."""
        return torch.stack(self._codes, dim=1)[:, torch.tensor(self.order).argsort()]


def prepared(gram: Tensor, by_energy: bool, damping: float) -> tuple[Tensor, Tensor, float]:
    """What a sweep needs of the inputs: the order of columns [in], U [in, in] float32 for that order, and the damping used.

    by_energy: columns with the most input energy first, so that their errors can be spread over all the others. Raises
    ArithmeticError as `spd.cholesky` does.
    """
    order = gram.diagonal().argsort(descending=True, stable=True) if by_energy else torch.arange(len(gram), device=gram.device)
    upper, used = inverse_upper(gram[order][:, order], damping)
    return order, upper.float(), used


def _lazy(width: int) -> int:
    """A block length near LAZY, at most a divisor or a multiple of `width`: what is announced is then fully compensated."""
    if width <= LAZY:
        return width * (LAZY // width)
    return next(length for length in range(LAZY, 0, -1) if width % length == 0)
