"""DSnoT: exchange pruned for kept weights until the mean output of every row is what it was. Nothing is trained.

With x the mean input, v its variance, c[o, i] = W[o, i] x[i] and error[o] = sum of c[o, i] over what is pruned, a row swaps
    grown:  the pruned weight with the largest c / v^power of the error's sign,
    pruned: the kept weight of the other sign of c with the smallest |W| sqrt(mean x^2),
    error += c[pruned] - c[grown],
each weight at most once, until |error| <= tolerance or `cycles` are over. With an N:M pattern the weight that goes is the
smallest kept one of the same M, and a row stops before its error would change sign.
Zhang et al., ICLR 2024 (arXiv:2310.08915); the authors' sign test for unstructured masks, off by default, is left out. It
follows whatever made the mask (`wanda(sparsity=0.7) -> dsnot`) and takes values from the matrix before that step, so the
compensated ones of SparseGPT are not kept, as in the paper. The tolerance is on means: 0.1 over sequences of 2048 tokens; it is
hardly ever met, so `cycles` decides how much is exchanged. The paper's 50 are 1 % of a row of its models and 9 % of one of 576
inputs, where so many raise the error of the outputs themselves: by default they are in proportion.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.errors import UsageError
from trimtab.core.kinds import LinearMethod, Original, Seen
from trimtab.core.knobs import choice, count, number, text
from trimtab.core.places import Role, Site
from trimtab.formats import NM, Masked
from trimtab.formats.plain import check_pattern, plain
from trimtab.stats import Moments
from trimtab.tensors.masks import Pattern

ATTENTION = {Role.Q, Role.K, Role.V, Role.O, Role.QKV}
PUBLISHED = 50, 4096  # cycles, and the inputs of most rows of the paper's smallest model
LEAST = 1e-6  # of the mean variance: a channel that never varies would outweigh everything


@dataclass(frozen=True)
class DSnoT(LinearMethod):
    card: ClassVar = Card(
        id="dsnot",
        title="Dynamic Sparse No Training: Training-Free Fine-tuning for Sparse LLMs",
        paper="arXiv:2310.08915",
        fidelity="exact",
        beside=("wanda", "magnitude", "sparsegpt"),
        claims=(
            Claim(
                "helps-wanda-at-70",
                "wanda(sparsity=0.7) -> dsnot",
                "<",
                "wanda(sparsity=0.7)",
                published="62.05 < 88.84, LLaMA-7B, WikiText2; others measured 72.9 and 75.1 with the same command",
            ),
            Claim("helps-magnitude-at-50", "magnitude(per='row') -> dsnot", "<", "magnitude(per='row')"),
        ),
    )
    needs: ClassVar = (Moments, Original)
    takes: ClassVar = (Masked, NM)
    gives: ClassVar = (Masked,)

    targets: str = choice("which matrices change: of attention, of the rest, or all", "attn", ("attn", "mlp", "all"))
    pattern: str = text("of the mask that is given: 'unstructured' or 'N:M'", "unstructured", Pattern.parse)
    power: float = number("power of the variance that contributions are divided by", 1.0, 0.0, 4.0)
    tolerance: float = number("mean output error of a row that is good enough", 0.1 / 2048, 0.0)
    cycles: int = count("most swaps of a row; 0: 50 for every 4096 inputs, at least one", 0, 0)

    def fits(self, site: Site) -> None:
        check_pattern(self.pattern, site.shape[1], site.name)

    def solve(self, weight: Masked | NM, seen: Seen, site: Site) -> Masked:
        keep, values = weight.keep, plain(weight)
        if not self._is_target(site) or bool(keep.all()):
            return Masked(values, keep)
        n, m = (weight.n, weight.m) if isinstance(weight, NM) else self._pattern(keep, site)
        original = seen[Original]
        mean, variance = seen[Moments].to(original.device)
        given = original.double()
        cycles = self.cycles or max(PUBLISHED[0] * site.shape[1] // PUBLISHED[1], 1)
        swap = Swaps(keep, given * mean, given.abs() * (mean.square() + variance).sqrt(), _safe(variance) ** self.power, cycles)
        after = swap.inside_groups(m, self.tolerance) if n else swap.anywhere(self.tolerance)
        seen.note("swaps", int((after & ~keep).sum()))
        return Masked(original.to(values.dtype), after)

    def _is_target(self, site: Site) -> bool:
        return self.targets == "all" or (site.role in ATTENTION) == (self.targets == "attn")

    def _pattern(self, keep: Tensor, site: Site) -> tuple[int, int]:
        pattern = Pattern.parse(self.pattern)
        if pattern.m and int(keep.view(len(keep), -1, pattern.m).sum(-1).max()) > pattern.n:
            raise UsageError(f"dsnot: the mask of {site.name} is not {self.pattern}; give the pattern it was made with")
        return pattern.n, pattern.m


class Swaps:
    """What each row would exchange, in order, for either sign of its error. keep, contribution, size: [out, in]; spread: [in].

    A list ends where no weight of the wanted sign is left; a row whose list has ended stops.
    """

    def __init__(self, keep: Tensor, contribution: Tensor, size: Tensor, spread: Tensor, cycles: int):
        self.keep, self.contribution, self.size, self.cycles = keep, contribution, size, cycles
        worth, up, down = contribution / spread, contribution > 0, contribution < 0
        self.grown = _first(worth, ~keep & up, cycles), _first(-worth, ~keep & down, cycles)
        self.pruned = _first(-size, keep & down, cycles), _first(-size, keep & up, cycles)
        self.error = (contribution * ~keep).sum(1)
        self.used = torch.zeros(2, len(keep), dtype=torch.int64, device=keep.device)  # how far either sign's lists are read
        self.after = keep.clone()

    def anywhere(self, tolerance: float) -> Tensor:
        """keep [out, in] after the swaps, as many in every row as before."""
        for _ in range(self.cycles):
            positive = self.error > 0
            grown, pruned = self._next(self.grown, positive), self._next(self.pruned, positive)
            going = (self.error.abs() > tolerance) & (grown >= 0) & (pruned >= 0)
            if not bool(going.any()):
                break
            self._swap(going, grown, pruned, positive)
        return self.after

    def inside_groups(self, m: int, tolerance: float) -> Tensor:
        """The same where each weight that comes takes the place of one of the same m."""
        stopped = torch.zeros_like(self.error, dtype=torch.bool)
        for _ in range(self.cycles):
            positive = self.error > 0
            grown = self._next(self.grown, positive)
            pruned = self._smallest_beside(grown, m)
            left = self.error + self._of(pruned) - self._of(grown)
            stopped |= (grown < 0) | (pruned < 0) | (self.error.abs() <= tolerance) | (left * self.error <= 0)
            if bool(stopped.all()):
                break
            self._swap(~stopped, grown, pruned, positive)
        return self.after

    def _next(self, lists: tuple[Tensor, Tensor], positive: Tensor) -> Tensor:
        """[out] positions from the list of the error's sign, -1 where it has ended."""
        ends = [torch.nn.functional.pad(one, (0, 1), value=-1) for one in lists]
        first, second = (
            one.gather(1, at.clamp(max=one.shape[1] - 1)[:, None])[:, 0] for one, at in zip(ends, self.used, strict=True)
        )
        return torch.where(positive, first, second)

    def _smallest_beside(self, grown: Tensor, m: int) -> Tensor:
        """[out] positions: of those kept all along in the group of `grown` the smallest weight, -1 where there is none."""
        start = grown.clamp(min=0) // m * m
        places = start[:, None] + torch.arange(m, device=grown.device)
        there = (self.keep & self.after).gather(1, places)
        smallest = self.size.gather(1, places).masked_fill(~there, torch.inf).argmin(1)
        return torch.where(there.any(1), start + smallest, -1)

    def _of(self, places: Tensor) -> Tensor:
        return self.contribution.gather(1, places.clamp(min=0)[:, None])[:, 0]

    def _swap(self, rows: Tensor, grown: Tensor, pruned: Tensor, positive: Tensor) -> None:
        index = rows.nonzero()[:, 0]
        self.after[index, grown[index]] = True
        self.after[index, pruned[index]] = False
        self.error = torch.where(rows, self.error + self._of(pruned) - self._of(grown), self.error)
        self.used[0] += rows & positive
        self.used[1] += rows & ~positive


def _first(worth: Tensor, candidates: Tensor, most: int) -> Tensor:
    """[out, at most `most`] positions of the candidates in falling order of worth, -1 after the last."""
    found = worth.masked_fill(~candidates, -torch.inf).topk(min(most, worth.shape[1]), dim=1).indices
    return found.masked_fill(~candidates.gather(1, found), -1)


def _safe(variance: Tensor) -> Tensor:
    mean = float(variance.mean())
    return variance.clamp(min=LEAST * mean) if mean > 0 else torch.ones_like(variance)
