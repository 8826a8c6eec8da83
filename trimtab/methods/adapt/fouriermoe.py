"""FourierMoE: experts that each know a band of the frequencies of the change; every token goes to the few that suit it.

Expert e is a change of the matrix that has a few frequencies (u, v) of the two-dimensional Fourier transform, drawn from
`key` among those of its band of radii; each has a trained amplitude for its cosine and for its sine, zero at first, which is
the same as a complex coefficient with its conjugate at (-u, -v). A token x gives the gates: the largest `top` of R x + U
s(x), softmax over them, s(x) the shares of x's energy in as many bands of its own spectrum. y = W x + sum_e gate_e D_e x,
without ever making D_e. Jiang et al. 2026; filled in from the abstract: the bands (equally many frequencies), the router, its
start (R normal with deviation 1 / in, U zero). Left out: the loss that balances the experts. It depends on the token, so it
cannot be merged.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import pi
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimtab.core.card import Card, Claim
from trimtab.core.errors import UsageError
from trimtab.core.kinds import LinearWeight, Seen
from trimtab.core.knobs import count, number
from trimtab.core.places import Site
from trimtab.core.seeds import Seeds
from trimtab.core.trained import AdapterMethod, Delta
from trimtab.formats.deltas import device_of


@dataclass(frozen=True)
class Fouriermoe(AdapterMethod):
    card: ClassVar = Card(
        id="fouriermoe",
        title="FourierMoE: Fourier Mixture-of-Experts Adaptation of Large Language Models",
        paper="arXiv:2604.01762",
        fidelity="reconstructed",
        beside=("lora", "queryable_lora"),
        claims=(
            Claim(
                "experts-help",
                "fouriermoe(experts=4, frequencies=256, top=2)",
                "<",
                "fouriermoe(experts=1, frequencies=256, top=1)",
                model="asset:own-5m",
                text="asset:gsm8k-rest",
                note="adapted to asset:gsm8k; equally many amplitudes, the router comes on top",
            ),
        ),
    )

    experts: int = count("bands, and experts", 4, high=64)
    frequencies: int = count("of all experts together, rounded down to a multiple of their number", 256)
    top: int = count("how many experts a token goes to", 2)
    scale: float = number("the change is multiplied by this; its Fourier transform is the orthonormal one", 1.0, low=1e-6)
    key: int = count("what the frequencies are drawn from", 0, low=0)

    def fits(self, site: Site) -> None:
        out, inputs = site.shape
        if not self.experts <= self.frequencies <= out * inputs // 2 or self.top > self.experts:
            raise UsageError(
                f"fouriermoe: {site.name} is {out} x {inputs}; use between {self.experts} and {out * inputs // 2} frequencies, "
                f"and top of at most {self.experts}"
            )

    def attach(self, weight: LinearWeight, seen: Seen, site: Site) -> "SpectrumDelta":
        device, each = device_of(weight), self.frequencies // self.experts
        place = ("fouriermoe", *site.shape, self.experts, each)
        waves = seen.once(
            (place, device),
            lambda: Waves.of(drawn(site.shape, self.experts, each, Seeds(self.key).at(*place)).to(device), site.shape),
        )
        router = torch.randn(self.experts, site.shape[1], generator=seen.generator) / site.shape[1]
        return SpectrumDelta(waves, router.to(device), self.top, self.scale)


class Waves(NamedTuple):
    """What all matrices of a shape share. outer [2, out, waves], inner [2, in, waves]: cosines and sines; size [waves]."""

    outer: Tensor
    inner: Tensor
    size: Tensor

    @classmethod
    def of(cls, frequencies: Tensor, shape: tuple[int, int]) -> "Waves":
        """frequencies: int64 [experts, each, 2], (u, v). One that is its own conjugate is half as large."""
        flat = frequencies.flatten(0, 1)
        alone = ((2 * flat) % flat.new_tensor(shape) == 0).all(1)
        size = torch.where(alone, 1.0, 2.0) / (shape[0] * shape[1]) ** 0.5
        return cls(_waves(flat[:, 0], shape[0]), _waves(flat[:, 1], shape[1]), size)


class SpectrumDelta(Delta):
    """amplitudes [2, experts, each], of cosines and sines, and router and by_energy, R and U, are trained."""

    outer: Tensor
    inner: Tensor
    size: Tensor

    def __init__(self, waves: Waves, router: Tensor, top: int, scale: float):
        super().__init__()
        self.top, self.scale = top, scale
        for name, value in waves._asdict().items():
            self.register_buffer(name, value, persistent=False)
        experts = len(router)
        self.amplitudes = nn.Parameter(torch.zeros(2, experts, len(waves.size) // experts, device=router.device))
        self.router = nn.Parameter(router)
        self.by_energy = nn.Parameter(torch.zeros(experts, experts, device=router.device))

    def forward(self, x: Tensor, product: Tensor, weight: Callable[[], Tensor]) -> Tensor:
        gates = self.gates(x).repeat_interleave(self.amplitudes.shape[2], -1) * (self.scale * self.size)
        cosine, sine = self.amplitudes.flatten(1)
        cosines, sines = x @ self.inner[0], x @ self.inner[1]
        first, second = gates * (cosine * cosines - sine * sines), gates * (cosine * sines + sine * cosines)
        return first @ self.outer[0].mT - second @ self.outer[1].mT

    def gates(self, x: Tensor) -> Tensor:
        """[..., experts], of which `top` are not zero and sum to one."""
        power = torch.fft.rfft(x).abs().square()
        energy = torch.stack([band.sum(-1) for band in power.tensor_split(len(self.router), -1)], -1)
        said = F.linear(x, self.router) + F.linear(F.normalize(energy, p=1, dim=-1), self.by_energy)
        best = said.topk(self.top, -1)
        return torch.zeros_like(said).scatter(-1, best.indices, best.values.softmax(-1))

    def merged(self, weight: LinearWeight) -> LinearWeight | None:
        return None


def _waves(frequency: Tensor, size: int) -> Tensor:
    """[2, size, waves] float32: cosines and sines of 2 pi f i / size."""
    turns = torch.outer(torch.arange(size, device=frequency.device), frequency) % size
    angle = 2 * pi * turns.double() / size
    return torch.stack([angle.cos(), angle.sin()]).float()


def drawn(shape: tuple[int, int], experts: int, each: int, generator: torch.Generator) -> Tensor:
    """int64 [experts, each, 2]: frequencies without their conjugates, in bands of rising distance to (0, 0) around the edges."""
    out, inputs = shape
    u, v = torch.arange(out)[:, None], torch.arange(inputs)[None]
    first = (u * inputs + v) <= (-u % out * inputs + -v % inputs)
    found = first.nonzero()
    away = torch.minimum(found, found.new_tensor(shape) - found) / found.new_tensor(shape)
    bands = found[away.square().sum(1).argsort(stable=True)].tensor_split(experts)
    return torch.stack([band[torch.randperm(len(band), generator=generator)[:each]] for band in bands])
