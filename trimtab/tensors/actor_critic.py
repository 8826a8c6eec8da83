"""Soft actor-critic: a small agent that learns, while it acts, which action in (-1, 1)^n is followed by reward.

The actor gives a normal distribution whose draws are squashed by tanh; two critics estimate what an action is worth and the
lesser of them counts; slow copies of the critics give their targets; the temperature, which says how much it pays to stay
random, aims at an entropy of -n (Haarnoja et al. 2018). One endless episode: what is remembered has no last step.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import log

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, RATE, DISCOUNT, FOLLOW = 64, 3e-4, 0.99, 0.005
NARROWEST, WIDEST = -5.0, 2.0  # log of the deviation before the squashing
START = 0.1  # the temperature


class Network(nn.Module):
    """Matrices with rectifiers between them, drawn from a generator. sizes: of the input, the hidden layers and the output."""

    def __init__(self, sizes: Sequence[int], generator: torch.Generator):
        super().__init__()
        shapes = [(out, inputs) for inputs, out in pairwise(sizes)]
        self.weights = nn.ParameterList([torch.randn(*shape, generator=generator) * shape[1] ** -0.5 for shape in shapes])
        self.biases = nn.ParameterList([torch.zeros(out) for out, _ in shapes])

    def forward(self, x: Tensor) -> Tensor:
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = F.linear(F.relu(x) if number else x, weight, bias)
        return x


class Agent:
    """inputs: numbers in a state; actions: numbers in an action. Everything random comes from `generator`."""

    def __init__(self, inputs: int, actions: int, generator: torch.Generator):
        self.actions, self.generator = actions, generator
        self.actor = Network((inputs, WIDTH, WIDTH, 2 * actions), generator)
        self.critics, self.targets = (
            nn.ModuleList(Network((inputs + actions, WIDTH, WIDTH, 1), generator) for _ in range(2)) for _ in range(2)
        )
        self.targets.requires_grad_(False).load_state_dict(self.critics.state_dict())
        self.log_temperature = torch.tensor(log(START), requires_grad=True)
        parts = (self.actor.parameters(), self.critics.parameters(), [self.log_temperature])
        self.optimizers = [torch.optim.Adam(part, lr=RATE) for part in parts]
        self.memory: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def act(self, state: Tensor) -> Tensor:
        """[actions] within (-1, 1), drawn."""
        with torch.no_grad():
            return self._drawn(state[None])[0][0]

    def remember(self, state: Tensor, action: Tensor, reward: float, after: Tensor) -> None:
        """after: the state that the action led to."""
        self.memory.append((state, action, torch.tensor(reward), after))

    def learn(self, batch: int = 4, times: int = 2) -> None:
        """Updates by draws from the memory; none while that is empty."""
        for _ in range(times if self.memory else 0):
            drawn = torch.randint(len(self.memory), (batch,), generator=self.generator).tolist()
            state, action, reward, after = (torch.stack(part) for part in zip(*(self.memory[i] for i in drawn), strict=True))
            self._update(1, self._critics_loss(state, action, reward, after))
            again, density = self._drawn(state)
            temperature = self.log_temperature.exp()
            self._update(0, (temperature.detach() * density - self._worth(self.critics, state, again)).mean())
            self._update(2, -temperature * (density.detach() - self.actions).mean())
            with torch.no_grad():
                for slow, fast in zip(self.targets.parameters(), self.critics.parameters(), strict=True):
                    slow.lerp_(fast, FOLLOW)

    def _critics_loss(self, state: Tensor, action: Tensor, reward: Tensor, after: Tensor) -> Tensor:
        with torch.no_grad():
            next_action, density = self._drawn(after)
            worth = self._worth(self.targets, after, next_action) - self.log_temperature.exp() * density
            wanted = reward + DISCOUNT * worth
        given = torch.cat([state, action], 1)
        return torch.stack([F.mse_loss(critic(given)[:, 0], wanted) for critic in self.critics]).sum()

    def _drawn(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """(actions [n, actions], log of their density [n])"""
        middle, spread = self.actor(state).chunk(2, 1)
        spread = spread.clamp(NARROWEST, WIDEST)
        noise = torch.randn(middle.shape, generator=self.generator)
        before = middle + spread.exp() * noise
        normal = -0.5 * noise.square() - spread - 0.5 * log(2 * torch.pi)
        # log(1 - tanh(x)^2), written so that it does not overflow.
        squashed = 2 * (log(2) - before - F.softplus(-2 * before))
        return torch.tanh(before), (normal - squashed).sum(1)

    def _worth(self, critics: nn.ModuleList, state: Tensor, action: Tensor) -> Tensor:
        given = torch.cat([state, action], 1)
        return torch.stack([critic(given)[:, 0] for critic in critics]).amin(0)

    def _update(self, which: int, loss: Tensor) -> None:
        optimizer = self.optimizers[which]
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
