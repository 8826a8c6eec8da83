"""Bounds and noise of a private training, fixed, or chosen on the way by an agent that learns what pays (RLDP).

Akhadangi et al. 2025: every so many steps an agent moves the bound of each group of pairs and the noise multiplier, and is
rewarded for what the loss has fallen since, less what that has cost. There it looks at norms of single rows' gradients and at
the training loss, which no accountant covers. Different here: it sees the sums with the noise on them, the shares of clipped rows
with noise of their own that is accounted for (Andrew et al., NeurIPS 2021), the loss on public rows, and its own settings. So all
that it does follows from what is told anyway. Filled in: the limits and weights below. The agent learns from one move every
`interval` steps: in a short training there are few, and it hardly gets beyond trying.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, hypot, isfinite, log

import torch
from torch import Tensor

from trimtab.core.errors import TrimtabError
from trimtab.core.seeds import Seeds
from trimtab.tensors.actor_critic import Agent
from trimtab.tensors.private import deviation, joint

VOTES = 5.0  # the multiplier of the noise on shares of clipped rows, in that of the gradients
REACH = 0.3  # the most that log bound or log noise moves at once
FARTHEST_BOUND, FARTHEST_NOISE = 10.0, 2.0  # as a factor, either way
COST = 0.05  # of the whole budget, in parts of the loss


@dataclass(frozen=True, eq=False)
class Told:
    """What a step lets out. sums: left and right of every pair, with noise; votes: [groups], with noise, of `rows` rows or so."""

    step: int
    sums: Sequence[Tensor]
    votes: Tensor | None
    rows: int
    epsilon: float


class Settings:
    """bounds: of every pair; noise: the multiplier of all of them together. These ones stay."""

    groups: Sequence[int] = ()

    def __init__(self, bound: float, noise: float, pairs: int):
        self.bounds, self.noise = [bound] * pairs, noise
        self.moves: list[tuple[int, float, tuple[float, ...]]] = []  # (steps taken, noise, bounds of the groups)

    @property
    def vote_noise(self) -> float | None:
        """The multiplier of the noise on the votes; None: they are not told."""
        return None

    @property
    def multiplier(self) -> float:
        """Of all that a step tells."""
        return self.noise if self.vote_noise is None else joint(self.noise, self.vote_noise)

    def after(self, told: Told) -> None:
        """A step was taken."""


class Steering(Settings):
    """An agent moves them every `interval` steps of a training of `steps`, with `budget` for its epsilon.

    groups: of every pair, counted from 0; loss: of the public rows, as the model is.
    """

    def __init__(
        self,
        bound: float,
        noise: float,
        groups: Sequence[int],
        interval: int,
        loss: Callable[[], float],
        budget: float,
        steps: int,
        seed: int,
    ):
        # So that both together have the multiplier that was asked for.
        super().__init__(bound, noise * hypot(1, 1 / VOTES), len(groups))
        self.first, self.groups = (bound, self.noise), groups
        self.interval, self.loss, self.budget, self.steps = interval, loss, budget, steps
        count = max(self.groups) + 1
        self.of_groups = [bound] * count
        self.agent = Agent(3 * count + 5, count + 1, Seeds(seed).at("agent"))
        self.before: tuple[Tensor, Tensor] | None = None  # the last state, and what was done in it
        self.spent = 0.0
        self.losses = [loss()]
        self._forget()

    @property
    def vote_noise(self) -> float:
        return VOTES * self.noise

    def after(self, told: Told) -> None:
        self._note(told)
        if (told.step + 1) % self.interval:
            return
        self.losses.append(self.loss())
        if not isfinite(self.losses[-1]):
            raise TrimtabError(f"the loss after step {told.step + 1} is not finite; begin again with a lower learning rate")
        state = self._state(told)
        if self.before is not None:
            self.agent.remember(*self.before, self._reward(told), state)
            self.agent.learn()
        action = self.agent.act(state)
        self.before, self.spent = (state, action), told.epsilon
        self._move(action, told.step + 1)
        self._forget()

    def _forget(self) -> None:
        self.seen, self.clipped = 0, torch.zeros(len(self.of_groups), dtype=torch.float64)
        self.energy = torch.zeros(len(self.of_groups), dtype=torch.float64)

    def _note(self, told: Told) -> None:
        assert told.votes is not None
        self.seen += 1
        self.clipped += told.votes / told.rows
        for pair, group in enumerate(self.groups):
            left, right = told.sums[2 * pair], told.sums[2 * pair + 1]
            noise = deviation(self.noise, self.bounds[pair], len(self.bounds)) ** 2 * (left.numel() + right.numel())
            energy = float(left.double().square().sum() + right.double().square().sum())
            self.energy[group] += energy / noise / self.groups.count(group)

    def _state(self, told: Told) -> Tensor:
        """Of every group the share that is clipped, energy over that of noise alone, and the bound; then what is of all."""
        bound, noise = self.first
        last, now = self.losses[-2:]
        of_groups = [(self.clipped / self.seen).clamp(-1, 1), (self.energy / self.seen).log().clamp(-5, 5)]
        of_all = (now / self.losses[0], (last - now) / last, 1 - told.epsilon / self.budget, (told.step + 1) / self.steps)
        moved = torch.tensor([log(one / bound) for one in self.of_groups])
        return torch.cat([*of_groups, moved, torch.tensor([*of_all, log(self.noise / noise)])]).float()

    def _reward(self, told: Told) -> float:
        last, now = self.losses[-2:]
        return (last - now) / last - COST * (told.epsilon - self.spent) / self.budget

    def _move(self, action: Tensor, steps: int) -> None:
        bound, noise = self.first
        *of_bounds, of_noise = action.tolist()
        self.of_groups = [moved(old, by, bound, FARTHEST_BOUND) for old, by in zip(self.of_groups, of_bounds, strict=True)]
        self.bounds = [self.of_groups[group] for group in self.groups]
        self.noise = moved(self.noise, of_noise, noise, FARTHEST_NOISE)
        self.moves.append((steps, self.noise, tuple(self.of_groups)))


def moved(value: float, by: float, first: float, farthest: float) -> float:
    """By at most `REACH` in the logarithm, and never farther than that factor from the first one."""
    return min(first * farthest, max(first / farthest, value * exp(REACH * by)))
