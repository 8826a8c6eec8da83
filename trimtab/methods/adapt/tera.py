"""TeRA: the change is a frozen random tensor network that all matrices of a shape share; vectors between its parts are trained.

Outputs and inputs are cut into two factors each, out = o1 o2 and in = i1 i2, as even as they divide. The change, as a tensor
[o1, o2, i1, i2], is a random core [r1, r2, r3, r4] multiplied on every side by a random matrix [size, r] and, in between, by
a vector of its own [r], r the smaller of `rank` and the size. Four vectors are trained, the first is zero at first and the
others are one. So r1 + r2 + r3 + r4 numbers make a change of high rank. Gu et al., ACL 2026. Filled in: the core is drawn
with deviation 1 and the matrices with 1 / sqrt(r), so that a change by vectors of ones has deviation 1; they are drawn from
`key`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import isqrt
from typing import ClassVar

import torch
from torch import Tensor, nn

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import LinearWeight, Seen
from trimtab.core.knobs import count, number
from trimtab.core.places import Site
from trimtab.core.seeds import Seeds
from trimtab.core.trained import AdapterMethod
from trimtab.formats.deltas import MatrixDelta, device_of

Network = tuple[Tensor, tuple[Tensor, ...]]


@dataclass(frozen=True)
class Tera(AdapterMethod):
    card: ClassVar = Card(
        id="tera",
        title="TeRA: Vector-based Random Tensor Network for High-Rank Adaptation of Large Language Models",
        paper="arXiv:2509.03234",
        fidelity="reconstructed",
        beside=("nola", "randlora", "lora"),
        claims=(
            Claim(
                "beats-nola",
                "tera(rank=16)",
                "<",
                "nola(rank=8, bases=32)",
                model="asset:own-5m",
                text="asset:gsm8k-rest",
                note="adapted to asset:gsm8k; about 64 trained parameters a matrix on either side",
            ),
            Claim(
                "beats-lora-at-rank-1",
                "tera(rank=64)",
                "<",
                "lora(rank=1, alpha=1.0)",
                model="asset:own-5m",
                text="asset:gsm8k-rest",
                note="adapted to asset:gsm8k; a ninth of the trained parameters on the left",
            ),
        ),
    )
    usual_rate: ClassVar = 1e-3

    rank: int = count("the most that a side of the core has", 16, high=64)
    scale: float = number("the change is multiplied by this", 1.0, low=1e-6)
    key: int = count("what the network is drawn from", 0, low=0)

    def attach(self, weight: LinearWeight, seen: Seen, site: Site) -> "NetworkDelta":
        device, sizes = device_of(weight), (*halves(site.shape[0]), *halves(site.shape[1]))
        network = seen.once(("tera", sizes, device), lambda: drawn(sizes, self.rank, self.key, device))
        return NetworkDelta(*network, self.scale)


class NetworkDelta(MatrixDelta):
    """core [r1, r2, r3, r4] and sides [size, r] are frozen and shared, vectors [r] trained."""

    core: Tensor

    def __init__(self, core: Tensor, sides: tuple[Tensor, ...], scale: float):
        super().__init__()
        self.scale = scale
        self.register_buffer("core", core, persistent=False)
        for place, side in enumerate(sides):
            self.register_buffer(f"side{place}", side, persistent=False)
        ones = [torch.ones(side.shape[1], device=core.device) for side in sides]
        self.vectors = nn.ParameterList([torch.zeros_like(ones[0]), *ones[1:]])

    def forward(self, x: Tensor, product: Tensor, weight: Callable[[], Tensor]) -> Tensor:
        o1, o2, i1, i2 = (self.get_buffer(f"side{place}") * vector for place, vector in enumerate(self.vectors))
        cut = x.reshape(-1, len(i1), len(i2))
        inner = torch.einsum("tkl,kc,ld->tcd", cut, i1, i2).flatten(1) @ self.core.flatten(2).flatten(0, 1).mT
        made = torch.einsum("tab,ia,jb->tij", inner.view(-1, o1.shape[1], o2.shape[1]), o1, o2)
        return self.scale * made.reshape(*x.shape[:-1], len(o1) * len(o2))

    def change(self) -> Tensor:
        inputs = self.get_buffer("side2").shape[0] * self.get_buffer("side3").shape[0]
        every = torch.eye(inputs, dtype=self.core.dtype, device=self.core.device)
        return self.forward(every, every, lambda: every).mT


def halves(size: int) -> tuple[int, int]:
    """The two factors of `size` that are closest to each other, the smaller one first."""
    small = next(n for n in range(isqrt(size), 0, -1) if size % n == 0)
    return small, size // small


def drawn(sizes: tuple[int, ...], rank: int, key: int, device: torch.device) -> Network:
    generator = Seeds(key).at("tera", *sizes, rank)
    ranks = [min(rank, size) for size in sizes]
    core = torch.randn(ranks, generator=generator)
    sides = (torch.randn(size, r, generator=generator) * r**-0.5 for size, r in zip(sizes, ranks, strict=True))
    return core.to(device), tuple(side.to(device) for side in sides)
