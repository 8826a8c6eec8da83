"""SpIEL: a sparse change whose places move: the least useful are given up, and the most promising taken instead.

y = (W + D) x, D zero but for `density` of its entries. Every `every` steps the entries that are nearest to zero are dropped: all
of them the first time, then a fifth, falling to none. What grows is where the loss pulls hardest: either ("gradient") the sum of
D's whole gradient over the `window` steps before, of as many candidates as there are entries, those that the first step of the
window shows; or ("momentum") the product of a row's and a column's largest second moment, as SM3 estimates it from the entries
that there are. Ansell et al. 2024.
Different: AdamW moves the values in both cases (there SM3 in the second). New entries have no age of their own for Adam's
correction of its start; their moments are set to what is right for the common one: the mean and the mean square that the window
showed, or zero and the mean square that rows and columns allow at most. The last draw leaves `every` steps to learn.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from trimtab.core.card import Card, Claim
from trimtab.core.errors import UsageError
from trimtab.core.kinds import LinearWeight, Seen
from trimtab.core.knobs import choice, count, rate
from trimtab.core.places import Site
from trimtab.core.trained import AdapterMethod, Delta, Hook, Training
from trimtab.formats.dense import Dense
from trimtab.formats.masked import Masked
from trimtab.formats.sum import Sum

SHARE = 0.2  # of the entries that move, at first


@dataclass(frozen=True)
class Spiel(AdapterMethod):
    card: ClassVar = Card(
        id="spiel",
        title="Scaling Sparse Fine-Tuning to Large Language Models",
        paper="arXiv:2401.16405",
        fidelity="variant",
        beside=("lora", "s2ft"),
        claims=(
            Claim(
                "moving-beats-fixed",
                "spiel(density=0.01)",
                "<",
                "spiel(density=0.01, growth='none')",
                model="asset:own-5m",
                text="asset:gsm8k-rest",
                note="adapted to asset:gsm8k, equal trained parameters",
            ),
            Claim(
                "beats-lora",
                "spiel(density=0.052)",
                "<",
                "lora(rank=8, alpha=8.0)",
                model="asset:own-5m",
                text="asset:gsm8k-rest",
                note="adapted to asset:gsm8k, equal trained parameters",
            ),
        ),
    )

    density: float = rate("fraction of the entries that are trained", 0.01, low=1e-6)
    growth: str = choice("by what new entries are found; none: they stay as drawn", "gradient", ("gradient", "momentum", "none"))
    every: int = count("steps between moves", 20)
    window: int = count("steps before a move in which gradients are summed", 5)

    def check(self) -> None:
        if self.window > self.every:
            raise UsageError(f"spiel: a window of {self.window} steps does not fit between moves every {self.every}")

    def attach(self, weight: LinearWeight, seen: Seen, site: Site) -> "SparseDelta":
        out, inputs = site.shape
        device = next(iter(weight.tensors().values())).device
        size = max(1, round(self.density * out * inputs))
        places = torch.randperm(out * inputs, generator=seen.generator)[:size].sort().values
        return SparseDelta(places.to(torch.int32).to(device), torch.zeros(size, device=device), site.shape)

    def hook(self, deltas: Mapping[Site, Delta]) -> "Moves | None":
        if self.growth == "none":
            return None
        sparse = {site.path: delta for site, delta in deltas.items() if isinstance(delta, SparseDelta)}
        kind = Pulls if self.growth == "gradient" else Outer
        return Moves({path: kind(delta) for path, delta in sparse.items()}, self.every, self.window)


class SparseDelta(Delta):
    """values [k] float32 at the places [k] int32, counted row by row through [out, in], no place twice."""

    def __init__(self, places: Tensor, values: Tensor, shape: tuple[int, int]):
        super().__init__()
        self.places, self.values, self.shape = nn.Parameter(places, requires_grad=False), nn.Parameter(values), shape
        self.seen: Callable[[Tensor], None] | None = None  # is shown the gradient of the whole matrix, [out, in]

    def dense(self) -> Tensor:
        out, inputs = self.shape
        return self.values.new_zeros(out * inputs).scatter(0, self.places.long(), self.values).view(self.shape)

    def forward(self, x: Tensor, product: Tensor, weight: Callable[[], Tensor]) -> Tensor:
        dense = self.dense()
        if self.seen is not None and dense.requires_grad:
            dense.register_hook(self.seen)  # type: ignore[no-untyped-call]
        return F.linear(x, dense)

    @torch.no_grad()
    def merged(self, weight: LinearWeight) -> LinearWeight:
        change = self.dense()
        if isinstance(weight, Dense):
            return Dense((weight.weight.double() + change.double()).to(weight.weight.dtype))
        return Sum((weight, Masked(change, change != 0)))


class Pulls:
    """Growth by gradients: `candidates` [k] int32, what pulls at them (`sums`) and the squares of that, step by step."""

    def __init__(self, delta: SparseDelta):
        self.delta = delta
        self.candidates = torch.full_like(delta.places, -1)
        self.sums, self.squares, self.now, self.own = (torch.zeros_like(delta.values.detach()) for _ in range(4))

    def tensors(self) -> dict[str, Tensor]:
        return {"candidates": self.candidates, "sums": self.sums, "squares": self.squares}

    def open(self, first: bool) -> None:
        if first:
            self.candidates.fill_(-1)
            self.sums.zero_()
            self.squares.zero_()
        self.delta.seen = self._see

    def _see(self, gradient: Tensor) -> None:
        flat = gradient.detach().flatten()
        if self.candidates[0] < 0:
            self.candidates.copy_(flat.abs().topk(len(self.candidates)).indices)
        self.now += flat[self.candidates.long()]
        self.own += flat[self.delta.places.long()]

    def step(self) -> None:
        if self.delta.seen is None:
            return
        self.delta.seen = None
        gradient = self.delta.values.grad
        assert gradient is not None
        # A step's gradients are clipped after they were shown: what that made of the entries' own holds for the others.
        self.now *= gradient.norm() / self.own.norm().clamp_min(torch.finfo(gradient.dtype).tiny)
        self.sums += self.now
        self.squares += self.now.square()
        self.now.zero_()
        self.own.zero_()

    def best(self) -> tuple[Tensor, Tensor]:
        """(places, scores), each [k]"""
        return self.candidates, self.sums.abs()

    def moments(self, places: Tensor, window: int) -> tuple[Tensor, Tensor]:
        """Of the gradients of some candidates: mean, and mean square."""
        ordered, order = self.candidates.sort()
        at = order[torch.searchsorted(ordered, places)]
        return self.sums[at] / window, self.squares[at] / window


class Outer:
    """Growth by the second moments of rows [out] and columns [in], as SM3 keeps them; of what is not there it sees nothing."""

    def __init__(self, delta: SparseDelta):
        self.delta = delta
        self.rows, self.columns, self.steps = (torch.zeros(size, device=delta.values.device) for size in (*delta.shape, 1))

    def tensors(self) -> dict[str, Tensor]:
        return {"rows": self.rows, "columns": self.columns, "steps": self.steps}

    def open(self, first: bool) -> None:
        """The entries' own gradients are all that is looked at."""

    def step(self) -> None:
        gradient, places, inputs = self.delta.values.grad, self.delta.places.long(), self.delta.shape[1]
        assert gradient is not None
        row, column = places // inputs, places % inputs
        moment = torch.minimum(self.rows[row], self.columns[column]) + gradient.square()
        self.rows.scatter_reduce_(0, row, moment, "amax")
        self.columns.scatter_reduce_(0, column, moment, "amax")
        self.steps += 1

    def best(self) -> tuple[Tensor, Tensor]:
        scores = torch.outer(self.rows, self.columns).flatten()
        scores[self.delta.places.long()] = 0
        found = scores.topk(len(self.delta.places))
        some = found.values > 0
        return found.indices[some].to(torch.int32), found.values[some]

    def moments(self, places: Tensor, window: int) -> tuple[Tensor, Tensor]:
        row, column = places.long() // self.delta.shape[1], places.long() % self.delta.shape[1]
        square = torch.minimum(self.rows[row], self.columns[column]) / self.steps
        return torch.zeros_like(square), square


class Moves(Hook):
    """Moves places of every matrix after the last step of every window."""

    def __init__(self, growth: Mapping[str, Pulls | Outer], every: int, window: int):
        self.growth, self.every, self.window, self.steps = growth, every, window, 0

    def tensors(self) -> dict[str, Tensor]:
        found = {f"{path}.{name}": value for path, one in self.growth.items() for name, value in one.tensors().items()}
        return found | {f"{path}.places": one.delta.places for path, one in self.growth.items()}

    def begin(self, training: Training) -> None:
        self.steps = training.steps

    def before_step(self, step: int, optimizer: Optimizer) -> None:
        if step % self.every < self.window:
            for one in self.growth.values():
                one.open(step % self.every == 0)

    def before_update(self, step: int, optimizer: Optimizer) -> None:
        for one in self.growth.values():
            one.step()

    @torch.no_grad()
    def after_update(self, step: int, optimizer: Optimizer) -> None:
        if step % self.every != self.window - 1 or step + self.every >= self.steps:
            return
        share = 1.0 if step < self.every else SHARE * (1 - step / self.steps)
        for one in self.growth.values():
            values, places = one.delta.values, one.delta.places
            given_up, taken = exchange(places, values, *one.best(), round(share * len(values)))
            places[given_up], values[given_up] = taken, 0.0
            state, (fast, slow) = optimizer.state[values], optimizer.param_groups[0]["betas"]
            mean, square = one.moments(taken, self.window)
            # Adam divides by these two factors, which are those of the whole layer.
            state["exp_avg"][given_up] = mean * (1 - fast ** state["step"].item())
            state["exp_avg_sq"][given_up] = square * (1 - slow ** state["step"].item())


def exchange(places: Tensor, values: Tensor, found: Tensor, scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(which of the entries are given up, the places that are taken instead); at most `count`, the smallest for the best.

    places, values: [k]. found, scores: [m], places with how promising they are. What is both given up and found stays.
    """
    last = values.abs().argsort(stable=True)[:count]
    dropped = places[last]
    free = ~torch.isin(found, places) | torch.isin(found, dropped)
    best = found[free][scores[free].argsort(descending=True, stable=True)[:count]]
    taken = best[~torch.isin(best, dropped)]
    given_up = last[~torch.isin(dropped, best)]
    return given_up[: len(taken)], taken
