"""A made-up network and a player of videos on it, for `netllm.py`.

Bandwidth is a Markov chain, and a player waits where its buffer is empty. A video is 48 chunks of 4 s in 6 bitrates. Quality of
a chunk is its bitrate less 4.3 times the seconds waited and less the change of bitrate, in Mbit/s, as in Pensieve (Mao et al.,
SIGCOMM 2017). Two usual policies go by the buffer (Huang et al. 2014), and by planning ahead for the throughput of the past
(robust MPC, Yin et al. 2015), here over 4 chunks.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product

import torch
from torch import Tensor

from trimtab.core.seeds import Seeds

BITRATES = torch.tensor([0.3, 0.75, 1.2, 1.85, 2.85, 4.3])  # Mbit/s
CHUNKS, SECONDS, DELAY, FULL, WAITING = 48, 4.0, 0.08, 60.0, 4.3
PAST, AHEAD = 6, 4
BANDWIDTHS = (0.25, 0.5, 0.9, 1.5, 2.4, 3.6, 5.5)  # Mbit/s, of the chain
KINDS = ("bitrate", "buffer", "throughputs", "times", "sizes", "left")


def bandwidth(draw: torch.Generator, seconds: int = 400) -> Tensor:
    """[seconds] Mbit/s: a level that stays for ten seconds in the mean and moves by one or two, with noise on it."""
    at, found = int(torch.randint(len(BANDWIDTHS), (), generator=draw)), []
    for _ in range(seconds):
        if float(torch.rand((), generator=draw)) < 0.1:
            at += int(torch.randint(-2, 3, (), generator=draw))
            at = min(max(at, 0), len(BANDWIDTHS) - 1)
        found.append(BANDWIDTHS[at] * float((0.2 * torch.randn((), generator=draw)).exp()))
    return torch.tensor(found)


def video(draw: torch.Generator) -> Tensor:
    """[chunks, bitrates] Mbit."""
    scene = 1 + 0.15 * torch.randn(CHUNKS, 1, generator=draw).clamp(-2, 2)
    return SECONDS * BITRATES * scene


@dataclass
class Player:
    """One video over one trace, which begins anew where it ends."""

    trace: Tensor
    sizes: Tensor
    now: float = 0.0
    buffer: float = 0.0
    chunk: int = 0
    level: int = 0
    throughputs: list[float] = field(default_factory=lambda: [0.0] * PAST)
    times: list[float] = field(default_factory=lambda: [0.0] * PAST)

    @property
    def is_over(self) -> bool:
        return self.chunk == CHUNKS

    def state(self) -> Tensor:
        """[6, 6]: a row for each of `KINDS`, single numbers first in theirs; of about 1 in size."""
        found = torch.zeros(len(KINDS), PAST)
        found[0, 0], found[1, 0], found[5, 0] = BITRATES[self.level] / BITRATES[-1], self.buffer / 10, 1 - self.chunk / CHUNKS
        found[2], found[3] = torch.tensor(self.throughputs) / 5, torch.tensor(self.times) / 10
        found[4] = self.sizes[self.chunk] / (SECONDS * BITRATES[-1])
        return found

    def play(self, level: int) -> float:
        """Fetches the next chunk; its quality."""
        size = float(self.sizes[self.chunk, level])
        took = self._fetch(size) + DELAY
        waited = max(0.0, took - self.buffer) if self.chunk else 0.0  # the first chunk is waited for by everybody
        self.buffer = max(0.0, self.buffer - took) + SECONDS
        idle = max(0.0, self.buffer - FULL)
        self.buffer, self.now = self.buffer - idle, self.now + took + idle
        change = abs(float(BITRATES[level] - BITRATES[self.level])) if self.chunk else 0.0
        self.throughputs, self.times = [*self.throughputs[1:], size / took], [*self.times[1:], took]
        self.level, self.chunk = level, self.chunk + 1
        return float(BITRATES[level]) - WAITING * waited - change

    def _fetch(self, size: float) -> float:
        """Seconds until so many Mbit are there."""
        at = self.now
        while size > 0:
            rate = float(self.trace[int(at) % len(self.trace)])
            part = min(int(at) + 1 - at, size / rate)
            at, size = at + part, size - part * rate
            size = 0.0 if size < 1e-9 else size
        return at - self.now


Policy = Callable[[Player], int]


def by_buffer(player: Player) -> int:
    """Lowest below 5 s, highest above 15 s."""
    return int(min(max((player.buffer - 5) / 10, 0.0), 1.0) * (len(BITRATES) - 1))


def by_plan(player: Player) -> int:
    """The first of the next bitrates that would be best at the harmonic mean of the throughputs, less their last error."""
    known = [rate for rate in player.throughputs if rate > 0]
    if not known:
        return 0
    mean = len(known) / sum(1 / rate for rate in known)
    rate = mean / (1 + abs(mean - known[-1]) / known[-1])
    ahead = min(AHEAD, CHUNKS - player.chunk)
    plans = torch.tensor([*product(range(len(BITRATES)), repeat=ahead)])
    buffer, last, quality = (
        torch.full((len(plans),), player.buffer),
        torch.full((len(plans),), player.level),
        torch.zeros(len(plans)),
    )
    for step in range(ahead):
        level = plans[:, step]
        took = player.sizes[player.chunk + step, level] / rate + DELAY
        quality += BITRATES[level] - WAITING * (took - buffer).clamp(min=0) - (BITRATES[level] - BITRATES[last]).abs()
        buffer, last = (buffer - took).clamp(min=0) + SECONDS, level
    return int(plans[int(quality.argmax()), 0])


POLICIES: dict[str, Policy] = {"by the buffer": by_buffer, "by a plan": by_plan}


@dataclass(frozen=True, eq=False)
class Episode:
    """states [chunks, 6, 6], actions [chunks] int64, qualities [chunks]."""

    states: Tensor
    actions: Tensor
    qualities: Tensor


def episode(policy: Policy, player: Player) -> Episode:
    states, actions, qualities = [], [], []
    while not player.is_over:
        states.append(player.state())
        actions.append(policy(player))
        qualities.append(player.play(actions[-1]))
    return Episode(torch.stack(states), torch.tensor(actions), torch.tensor(qualities))


def players(count: int, part: str, seed: int) -> list[Player]:
    draws = (Seeds(seed).at("trace", part, number) for number in range(count))
    return [Player(bandwidth(draw), video(draw)) for draw in draws]
