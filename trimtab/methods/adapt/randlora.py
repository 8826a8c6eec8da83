"""RandLoRA: a change of full rank, a sum of random thin products in which only diagonal matrices are trained.

W + (alpha / r) sum_j B_j L_j A G_j, for the shorter side d of the matrix and its longer one D: B_j [D, r] and A [r, d] are
random and never trained, L_j (r numbers, zero at first) and G_j (d numbers, 1 / max(bases, d) at first) are; as many bases as
it takes for full rank, ceil(d / r). A matrix that is wider than high takes the transposed. So a *smaller* r trains more:
bases * (r + d). Albert et al., ICLR 2025, as in peft: all matrices share one A and one set of B_j, drawn in bfloat16 from
`key` as there and cut to size; the files hold the diagonals only. Also as in peft, row i of L_j A G_j goes with column i *
bases + j of all B_j side by side, not with column i of B_j, which is the same to random columns. Without dropout and without
the sparse bases.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import LinearWeight, Seen
from trimtab.core.knobs import count, number
from trimtab.core.places import Site
from trimtab.core.trained import AdapterMethod, Chosen, put
from trimtab.formats.deltas import MatrixDelta, device_of


@dataclass(frozen=True)
class Randlora(AdapterMethod):
    card: ClassVar = Card(
        id="randlora",
        title="RandLoRA: Full-rank parameter-efficient fine-tuning of large models",
        paper="arXiv:2502.00987",
        fidelity="exact",
        beside=("nola", "tera", "lora"),
        claims=(
            Claim(
                "better-than-few-coefficients",
                "randlora(rank=32, alpha=640.0)",
                "<",
                "nola(rank=8, bases=64)",
                model="asset:own-5m",
                text="asset:gsm8k-rest",
                note="adapted to asset:gsm8k; many more parameters on the left: the claim is that nola's few are too few",
            ),
            Claim(
                "beats-lora",
                "randlora(rank=10, alpha=200.0)",
                "<",
                "lora(rank=8, alpha=8.0)",
                model="asset:own-5m",
                text="asset:gsm8k-rest",
                note="adapted to asset:gsm8k, about the same number of trained parameters",
            ),
        ),
    )
    needs: ClassVar = (Chosen,)

    rank: int = count("rank of one random product; more is fewer parameters", 32)
    alpha: float = number("the sum is multiplied by alpha / rank", 640.0, low=0.001)
    key: int = count("what the random bases are drawn from", 0, low=0)

    def attach(self, weight: LinearWeight, seen: Seen, site: Site) -> "BasesDelta":
        device, sites = device_of(weight), seen[Chosen]
        bases = seen.once(("randlora", device), lambda: drawn(sites, self.rank, self.key, device))
        return BasesDelta(*bases, site.shape, self.alpha / self.rank)

    def portable(self) -> dict[str, Any]:
        return {
            **{"peft_type": "RANDLORA", "r": self.rank, "randlora_alpha": self.alpha, "projection_prng_key": self.key},
            **{"save_projection": False, "randlora_dropout": 0.0, "bias": "none"},
        }


class BasesDelta(MatrixDelta):
    """a [r, 1, >= d], b [>= D, >= bases, r]: frozen, shared. inner [r, bases] and outer [bases, d]: the diagonals."""

    a: Tensor
    b: Tensor

    def __init__(self, a: Tensor, b: Tensor, shape: tuple[int, int], scale: float):
        super().__init__()
        rank, (short, long) = len(a), sorted(shape)
        count = -(-short // rank)
        self.scale, self.wide = scale, shape[0] < shape[1]
        self.register_buffer("a", a[..., :short], persistent=False)
        self.register_buffer("b", b[:long, :count], persistent=False)
        self.inner = nn.Parameter(torch.zeros(rank, count, device=a.device))
        self.outer = nn.Parameter(torch.full((count, short), 1 / max(count, short), device=a.device))

    def forward(self, x: Tensor, product: Tensor, weight: Callable[[], Tensor]) -> Tensor:
        long, short = self.b.flatten(1), self._scaled()
        first, second = (long.mT, short.mT) if self.wide else (short, long)
        return self.scale * F.linear(F.linear(x, first), second)

    def change(self) -> Tensor:
        found: Tensor = self.scale * (self.b.flatten(1) @ self._scaled())
        return found.mT if self.wide else found

    def portable(self) -> dict[str, Tensor]:
        return {"randlora_lambda": self.inner.detach(), "randlora_gamma": self.outer.detach()}

    def adopt(self, tensors: Mapping[str, Tensor]) -> None:
        put(self.inner, tensors["randlora_lambda"])
        put(self.outer, tensors["randlora_gamma"])

    def _scaled(self) -> Tensor:
        """The rows of all L_j A G_j, [r * bases, d], in peft's order, which decides which column of b each is paired with."""
        return (self.inner[:, :, None] * self.a * self.outer).flatten(0, 1)


def drawn(sites: Sequence[Site], rank: int, key: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(a, b) of `BasesDelta` in float32, large enough for all sites."""
    short, long = sorted(max(site.shape[side] for site in sites) for side in (0, 1))
    generator = torch.Generator().manual_seed(key)
    a = _uniform((rank, 1, short), generator)
    b = torch.cat([_uniform((long, 1, rank), generator) for _ in range(-(-short // rank))], 1)
    return (a / a.std()).float().to(device), (b / b.std()).float().to(device)


def _uniform(shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """bfloat16, within 1 / sqrt(last size)."""
    within = shape[-1] ** -0.5
    return torch.empty(shape, dtype=torch.bfloat16).uniform_(-within, within, generator=generator)
