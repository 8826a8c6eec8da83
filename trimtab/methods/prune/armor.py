"""ARMOR: an N:M sparse core between two block-diagonal matrices, all three fitted to the matrix together.

    W ~ diag(r) A S B diag(c),   c, r: norms of columns, then of rows,   Wn = diag(1/r) W diag(1/c),
    loss = sum over i, j of h[j] (A S B - Wn)[i, j]^2,   h[j] = mean_t x[t, j]^2.
It begins with A = B = 1 and the survivors of Wn^2 h (NoWag-P, which is iterations=0) and repeats:
    in every pair of a row block and a column block one group of M weights is drawn, as likely as its gradient is large, and
        given the support and the values that are best for it, all else being what it is: the loss cannot rise;
    A, B and the values of S take a step of Adam, after which the best state so far is remembered.
Liu et al., 2025 (arXiv:2510.05528). Both parts of a repetition share one gradient, in which drawn groups count as done. Blocks
are the widest up to `block` that tile the sides. The authors run 20000 repetitions at rate 1e-4 in blocks of 128.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Any, ClassVar

import torch
from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.errors import UsageError
from trimtab.core.kinds import LinearMethod, Seen
from trimtab.core.knobs import count, number, text
from trimtab.core.places import Site
from trimtab.formats import NM, BlockDiagonal, Chain, Dense
from trimtab.formats.block_diagonal import MOST_BLOCKS
from trimtab.formats.plain import check_pattern
from trimtab.stats import InputNorm
from trimtab.tensors.blocks import from_left, from_right, identity, largest_width
from trimtab.tensors.masks import Pattern, keep_top

MOST_SUPPORTS = 100  # all of them are solved for
RIDGE = 1e-9  # of the mean diagonal of a group's system
ENOUGH = 1e-6  # share of the loss: smaller gains do not count as gains


def _n_of_m(value: str) -> Pattern:
    pattern = Pattern.parse(value)
    if not pattern.m or comb(pattern.m, pattern.n) > MOST_SUPPORTS:
        raise ValueError(f"the core is N:M with at most {MOST_SUPPORTS} supports of a group, e.g. 2:4 or 4:8, got {value!r}")
    return pattern


@dataclass(frozen=True)
class Armor(LinearMethod):
    card: ClassVar = Card(
        id="armor",
        title="ARMOR: High-Performance Semi-Structured Pruning via Adaptive Matrix Factorization",
        paper="arXiv:2510.05528",
        fidelity="variant",
        beside=("wanda", "sparsegpt", "eora"),
        claims=(
            Claim("beats-its-start", "armor", "<", "armor(iterations=0)", note="the same bytes on both sides"),
            Claim(
                "beats-sparsegpt-at-2-of-4",
                "armor",
                "<",
                "sparsegpt(pattern='2:4')",
                note="the left side is larger by the blocks on both sides of the core",
            ),
            Claim(
                "beats-as-many-parameters-of-low-rank",
                "armor",
                "<",
                "wanda(pattern='2:4') -> eora(rank=32)",
                note="blocks of 32 hold as many numbers as factors of rank 32",
            ),
        ),
    )
    needs: ClassVar = (InputNorm,)
    takes: ClassVar = (Dense,)
    gives: ClassVar = (Chain,)

    pattern: str = text("of the core, N:M", "2:4", _n_of_m)
    block: int = count("most rows and columns of a block on either side", 32)
    iterations: int = count("repetitions at most", 100, 0)
    rate: float = number("step size of Adam", 5e-3, 0.0)
    patience: int = count("repetitions without gain after which it stops", 100)

    def fits(self, site: Site) -> None:
        check_pattern(self.pattern, site.shape[1], site.name)
        for width, block in zip(site.shape, self._widths(site.shape), strict=True):
            if width > block * MOST_BLOCKS:
                raise UsageError(f"armor: {width} channels of {site.name} are tiled by blocks of {block} at most; skip it")

    def promises(self, site: Site, spec: Mapping[str, Any]) -> dict[str, Any]:
        pattern, dtype, parts = Pattern.parse(self.pattern), spec["dtype"], []
        for width, block in zip(site.shape, self._widths(site.shape), strict=True):
            side = {"kind": BlockDiagonal.kind, "shape": [width, width], "dtype": dtype, "count": width // block}
            parts.append(side)
        core = {"kind": NM.kind, "shape": [*site.shape], "dtype": dtype, "n": pattern.n, "m": pattern.m}
        return {"kind": Chain.kind, "shape": [*site.shape], "parts": [parts[0], core, parts[1]]}

    def solve(self, weight: Dense, seen: Seen, site: Site) -> Chain:
        dense, dtype, pattern = weight.dense(), weight.weight.dtype, Pattern.parse(self.pattern)
        columns = _norms(dense, 0)
        rows = _norms(dense / columns, 1)
        fitting = Fitting(dense / columns / rows[:, None], _loudness(seen[InputNorm]), pattern, self._widths(site.shape))
        if self.iterations:
            fitting.run(self.iterations, self.rate, self.patience, seen.generator)
        seen.note("loss", [fitting.start, fitting.least])  # of the core alone, and in the end
        left, core, right = fitting.best
        left = left * rows.view(len(left), -1, 1)
        right = right * columns.view(len(right), 1, -1)
        inner = NM.of(core.to(dtype), core != 0, pattern.n, pattern.m)
        return Chain((BlockDiagonal(left.to(dtype)), inner, BlockDiagonal(right.to(dtype))))

    def _widths(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Of the blocks on the left, and on the right, which hold whole groups."""
        return largest_width(shape[0], self.block), largest_width(shape[1], self.block, Pattern.parse(self.pattern).m)


class Fitting:
    """The three factors on their way. target [out, in], loud [in] > 0, widths of the blocks on either side.

    best: blocks on the left [count, rows, rows], core [out, in], blocks on the right [count, columns, columns], of loss `least`,
    which is a share of what the loss of a zero matrix would be; `start`: that of the core alone.
    """

    def __init__(self, target: Tensor, loud: Tensor, pattern: Pattern, widths: tuple[int, int]):
        self.target, self.loud, self.m = target, loud, pattern.m
        self.left, self.right = (identity(n, w, target) for n, w in zip(target.shape, widths, strict=True))
        self.core = target * keep_top(target.square() * loud, 0.0, pattern)
        self.supports = torch.tensor([*combinations(range(pattern.m), pattern.n)], device=target.device)  # [supports, n]
        self.whole = self._squares(target) or 1.0
        self.start = self.least = self._squares(self.core - target) / self.whole
        self.best = self.left, self.core, self.right

    def run(self, iterations: int, rate: float, patience: int, generator: torch.Generator) -> None:
        """Raises nothing and loses nothing: what is best may be the start."""
        self.left, self.core, self.right = (t.clone() for t in self.best)
        steps = [Adam(t, rate) for t in (self.left, self.core, self.right)]
        idle = 0
        for _ in range(iterations):
            gained, gradients = self._look(generator)
            idle = 0 if gained else idle + 1
            if idle > patience:
                break
            alive = self.core != 0
            for step, gradient in zip(steps, gradients, strict=True):
                step(gradient)
            self.core *= alive
        self._remember(from_left(self.left, from_right(self.core, self.right)) - self.target)

    def _look(self, generator: torch.Generator) -> tuple[bool, tuple[Tensor, Tensor, Tensor]]:
        """Remember the state if it is the best, and renew a group in every pair of blocks. Half the gradients of before that."""
        inner = from_right(self.core, self.right)  # S B
        rest = from_left(self.left, inner) - self.target
        gained = self._remember(rest)
        weighed = rest * self.loud
        back = from_left(self.left.mT, weighed)  # transpose(A) times the weighed rest
        of_core = from_right(back, self.right.mT)
        of_left = weighed.view(len(self.left), -1, weighed.shape[1]) @ inner.view(len(self.left), -1, inner.shape[1]).mT
        of_right = _by_columns(self.core, self.right).mT @ _by_columns(back, self.right)
        self._renew(of_core, generator)
        return gained, (of_left, of_core * (self.core != 0), of_right)

    def _remember(self, rest: Tensor) -> bool:
        loss = self._squares(rest) / self.whole
        gained = loss < self.least * (1 - ENOUGH)
        if loss < self.least:
            self.least, self.best = loss, (self.left.clone(), self.core.clone(), self.right.clone())
        return gained

    def _renew(self, gradient: Tensor, generator: torch.Generator) -> None:
        """Best support and values for one group of every pair of blocks; pairs do not touch each other's outputs.

        gradient [out, in]: half of that by the core, zero afterwards for what was renewed.
        """
        row, group = self._drawn(gradient, generator)  # [row blocks, column blocks]
        at = row[..., None], group[..., None] * self.m + torch.arange(self.m, device=row.device)
        values = self.core[at].double()  # [row blocks, column blocks, m]
        size = self.left.square().sum(1).reshape(-1)[row].double()[..., None]  # |column of A|^2
        system = self._systems()[group] * size[..., None]  # [..., m, m]: the loss is v system v + 2 v slope + const
        slope = gradient[at].double() - (system @ values[..., None])[..., 0]
        best, change = self._best_of(system, slope)
        now = (values * (system @ values[..., None])[..., 0]).sum(-1) + 2 * (values * slope).sum(-1)
        better = (change < now)[..., None]
        self.core[at] = torch.where(better, best, values).to(self.core.dtype)
        gradient[at] = torch.where(better, 0.0, gradient[at])

    def _best_of(self, system: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """Values [..., m] on the best support, and what the loss changes by from the group's being zero [...]."""
        chosen = self.supports
        small = system[..., chosen[:, :, None], chosen[:, None, :]]  # [..., supports, n, n]
        ridge = RIDGE * small.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True) + torch.finfo(torch.float64).tiny
        wanted = slope[..., chosen]  # [..., supports, n]
        solved = -torch.linalg.solve(small + torch.diag_embed(ridge.expand_as(wanted)), wanted)
        change = (solved * (small @ solved[..., None])[..., 0]).sum(-1) + 2 * (solved * wanted).sum(-1)
        least, which = change.min(-1)
        values = solved.gather(-2, which[..., None, None].expand(*which.shape, 1, chosen.shape[1]))[..., 0, :]
        return torch.zeros_like(slope).scatter(-1, chosen[which], values), least

    def _drawn(self, gradient: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The row and the group, numbered over the whole matrix, that are drawn in each pair of blocks."""
        pairs, rows = (len(self.left), len(self.right)), self.left.shape[1]
        groups = self.right.shape[1] // self.m
        score = gradient.abs().view(pairs[0], rows, pairs[1], groups, self.m).sum(-1).transpose(1, 2).reshape(-1, rows * groups)
        ends = score.cumsum(1, dtype=torch.float64)
        at = torch.rand(len(score), 1, generator=generator, dtype=torch.float64).to(score.device) * ends[:, -1:]
        drawn = torch.searchsorted(ends, at, right=True).clamp(max=rows * groups - 1).view(pairs)
        first_row = rows * torch.arange(pairs[0], device=score.device)[:, None]
        first_group = groups * torch.arange(pairs[1], device=score.device)
        return first_row + drawn // groups, first_group + drawn % groups

    def _systems(self) -> Tensor:
        """[groups, m, m] float64: products of the rows of B that a group of inputs owns, weighed by loudness."""
        rows = self.right.view(len(self.right), -1, self.m, self.right.shape[2]).double()
        weighed = rows * self.loud.view(len(self.right), 1, 1, -1).double()
        return (weighed @ rows.mT).view(-1, self.m, self.m)

    def _squares(self, rest: Tensor) -> float:
        return float((rest.square() @ self.loud).sum(dtype=torch.float64))


class Adam:
    """Steps of a tensor, in place."""

    def __init__(self, tensor: Tensor, rate: float):
        self.tensor, self.rate, self.steps = tensor, rate, 0
        self.mean, self.square = torch.zeros_like(tensor), torch.zeros_like(tensor)

    def __call__(self, gradient: Tensor) -> None:
        self.steps += 1
        self.mean.lerp_(gradient, 1 - 0.9)
        self.square.lerp_(gradient.square(), 1 - 0.999)
        spread = (self.square / (1 - 0.999**self.steps)).sqrt_().add_(torch.finfo(gradient.dtype).tiny)
        self.tensor.addcdiv_(self.mean, spread, value=-self.rate / (1 - 0.9**self.steps))


def _by_columns(matrix: Tensor, blocks: Tensor) -> Tensor:
    """[n, in] -> [blocks, n, columns of a block]."""
    return matrix.view(len(matrix), len(blocks), -1).transpose(0, 1)


def _norms(weight: Tensor, axis: int) -> Tensor:
    """Of columns (0) or rows (1); 1 where all is zero."""
    norms = weight.double().norm(dim=axis).float()
    return torch.where(norms > 0, norms, 1.0)


def _loudness(root: Tensor) -> Tensor:
    """mean x^2 [in] from its root; silent inputs count as the average one, and all alike where nothing was heard."""
    loud = root.double().square()
    return torch.where(loud > 0, loud, loud.mean() if bool(loud.any()) else 1.0).float()
