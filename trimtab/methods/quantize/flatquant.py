"""FlatQuant: a small invertible matrix in front of each weight, learned, makes both sides flat before both are rounded.

    y = W x = (W D^-1 P^-1) (P D x),   P = P1 (x) P2,   Pi = Bi Ui diag(exp s) Viᵀ,   U, V orthogonal by Cayley's map,

the left bracket rounded by rows on ranges that are learned (as OmniQuant's), the right one token by token with a clipped
range that is learned; D = (max|w| / its geometric mean)^0.7 channel by channel at first. All of it is learned block by block,
with both roundings in the loss. B is where it begins: Hadamard (or random orthogonal, where there is no Hadamard matrix), or
identity.
Sun et al., ICML 2025 (arXiv:2410.09426). Not as published: every matrix has a P and D of its own, where there
matrices with one input share them; D is applied with P instead of being folded into the norm, and starts from the weights
alone; keys and values are not turned; weights are rounded to nearest on grids with a zero point. P and D lie in the file in
float16, W is turned by the inverse of what lies there.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from trimtab.core.card import Card, Claim
from trimtab.core.errors import UsageError
from trimtab.core.kinds import BlockMethod, Learner, LinearWeight, Seen
from trimtab.core.knobs import choice, count, flag, number
from trimtab.core.places import Role, Site
from trimtab.formats import Activations, Chain, Dense, Grouped, Kronecker, check_group_size
from trimtab.formats.learned import WIDEST, Ranges
from trimtab.tensors.activations import per_token
from trimtab.tensors.hadamard import exists, hadamard
from trimtab.tensors.kronecker import along, even_split
from trimtab.tensors.learned_grid import LearnedGrid
from trimtab.tensors.through import halved

WHOLE = 16  # bits of inputs that stay as they are
FLATTENED = 0.7  # 1 - alpha of the paper: the exponent of a channel's largest weight
FURTHEST = 2.0**10  # how much louder or quieter a channel may become
QUATERNARY = "flatquant(bits=4, input_bits=4)"


@dataclass(frozen=True)
class FlatQuant(BlockMethod):
    card: ClassVar = Card(
        id="flatquant",
        title="FlatQuant: Flatness Matters for LLM Quantization",
        paper="arXiv:2410.09426",
        fidelity="variant",
        beside=("quarot", "smoothquant", "act_quant", "omniquant"),
        claims=(
            Claim(
                "beats-quarot-at-4-bit-activations",
                QUATERNARY,
                "<",
                "quarot -> gptq(bits=4, group_size=0) -> act_quant(bits=4)",
                published="5.79 < 6.10, Llama-2-7B, WikiText2, keys and values in 4 bits too",
                note="the transforms cost a few percent more bytes; here quarot turns nothing while the model runs",
                model="asset:own-5m-outliers",
            ),
            Claim(
                "beats-no-transform-at-4-bit-activations",
                QUATERNARY,
                "<",
                "omniquant(bits=4, group_size=0) -> act_quant(bits=4)",
                model="asset:own-5m-outliers",
            ),
        ),
    )
    takes: ClassVar = (Dense,)
    gives: ClassVar = (Chain,)

    bits: int = count("bits per code of the weights", 4, 2, 8)
    input_bits: int = count("bits per activation, 2 to 8; 16 = as they come", 4, 2, WHOLE)
    group_size: int = count("inputs of the turned matrix that share a scale; 0 = the whole row", 0, 0)
    clip: bool = flag("begin with each group's range of least squared error", True)
    start: str = choice("the transform before it is learned", "hadamard", ("hadamard", "orthogonal", "identity"))
    rate: float = number("learning rate of the transforms; ranges learn ten times as fast", 0.005, 0.0)
    epochs: int = count("passes over the calibration set", 10, 0)

    def check(self) -> None:
        if 8 < self.input_bits < WHOLE:
            raise UsageError(f"flatquant: input_bits must be 2 to 8, or 16 for activations as they come, got {self.input_bits}")

    def fits(self, site: Site) -> None:
        if site.index is not None or site.role is Role.EMBED:
            raise UsageError(f"flatquant turns what layers are given; {site.name} is no layer of its own, skip it")
        check_group_size(site.shape[1], self.group_size or site.shape[1], site.name)

    def begin(self, weight: LinearWeight, seen: Seen, site: Site) -> "Flat":
        matrix = weight.dense()
        bases = [self._base(n, seen).to(matrix.device, torch.float32) for n in even_split(site.shape[1])]
        return Flat(matrix, bases, self)

    def _base(self, n: int, seen: Seen) -> Tensor:
        """Orthogonal, [n, n] float64."""
        if self.start == "identity":
            return torch.eye(n, dtype=torch.float64)
        if self.start == "hadamard" and exists(n):
            return hadamard(n)
        q, r = torch.linalg.qr(torch.randn(n, n, generator=seen.generator, dtype=torch.float64))
        drawn: Tensor = q * r.diagonal().sign()
        return drawn


class Flat(Learner):
    """A matrix behind a transform of its inputs, both learned. weight [out, in] float32."""

    def __init__(self, weight: Tensor, bases: list[Tensor], method: FlatQuant):
        super().__init__()
        self.weight, self.bits, self.input_bits = weight, method.bits, method.input_bits
        self.group_size = method.group_size or weight.shape[1]
        self.left, self.right = Turn(bases[0]), Turn(bases[1])
        self.loudness = nn.Parameter(flattening(weight).log())  # [in]
        self.clip = nn.Parameter(torch.full((1,), WIDEST, device=weight.device))  # a logit
        with torch.no_grad():
            self.ranges = Ranges(self._groups(), self.bits, method.clip)
        slow = ["loudness", *(f"{side}.{name}" for side in ("left", "right") for name in ("turns", "stretch"))]
        self.rates = dict.fromkeys(slow, method.rate) | {"ranges.logits": 10 * method.rate, "clip": 10 * method.rate}

    def scale(self) -> Tensor:
        """[in], the diagonal of D as it will be stored."""
        return halved(self.loudness.exp().clamp(1 / FURTHEST, FURTHEST))

    def turned(self) -> Tensor:
        """W D^-1 P^-1, [out, in]."""
        undone = [torch.linalg.inv(turn().double()).mT.float() for turn in (self.left, self.right)]
        return along(self.weight / self.scale(), *undone)

    def feed(self, x: Tensor) -> Tensor:
        y = along(x * self.scale(), self.left(), self.right())
        return y if self.input_bits == WHOLE else per_token(y, self.input_bits, x.shape[-1], self.clip.sigmoid())

    def fed(self) -> Tensor:
        grid, codes = self._coded()
        return grid.values(codes).flatten(1)

    def matrix(self) -> Tensor:
        return self.fed() @ (torch.kron(self.left(), self.right()) * self.scale())

    def result(self) -> Chain:
        with torch.no_grad():
            grid, codes = self._coded()
            transform = Kronecker(self.left().half(), self.right().half(), self.scale().half())
            clip = float(self.clip.sigmoid())
        scale, zero = grid.scale.squeeze(-1).half(), grid.zero.squeeze(-1).to(torch.uint8)
        inner: LinearWeight = Grouped(codes.flatten(1).to(torch.uint8), scale, zero, self.bits, self.group_size)
        if self.input_bits != WHOLE:
            inner = Activations(inner, self.input_bits, self.weight.shape[1], clip)
        return Chain((inner, transform))

    def _groups(self) -> Tensor:
        turned = self.turned()
        return turned.view(len(turned), -1, self.group_size)

    def _coded(self) -> tuple[LearnedGrid, Tensor]:
        groups = self._groups()  # [out, groups, group]
        grid: LearnedGrid = self.ranges(groups)
        return grid, grid.codes(groups / grid.scale)


class Turn(nn.Module):
    """A small invertible matrix [n, n]: the base at first, then turned, stretched and turned again."""

    def __init__(self, base: Tensor):
        super().__init__()
        self.base = base
        self.turns = nn.Parameter(base.new_zeros(2, *base.shape))
        self.stretch = nn.Parameter(base.new_zeros(len(base)))

    def forward(self) -> Tensor:
        """As it will be stored: float16 numbers in float32."""
        before, after = cayley(self.turns)
        return halved(self.base @ before * self.stretch.exp() @ after.mT)


def cayley(free: Tensor) -> Tensor:
    """Orthogonal matrices from any square ones [.., n, n]: (I + S)^-1 (I - S), S = free - freeᵀ; the identity from zeros."""
    skew, one = free - free.mT, torch.eye(free.shape[-1], dtype=free.dtype, device=free.device)
    turned: Tensor = torch.linalg.solve(one + skew, one - skew)
    return turned


def flattening(weight: Tensor) -> Tensor:
    """What inputs are multiplied by at first, [in]: louder where weights are large. Silent channels stay as they are."""
    largest = weight.abs().amax(0).double()
    alive = largest > 0
    level = torch.where(alive, largest, 1.0).log()
    middle = level[alive].mean() if bool(alive.any()) else level.new_zeros(())
    scale = torch.where(alive, ((level - middle) * FLATTENED).exp(), 1.0)
    return scale.clamp(1 / FURTHEST, FURTHEST).float()
