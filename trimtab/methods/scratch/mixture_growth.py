"""MixtureGrowth: two small nets learn side by side, and then grow into one of twice the width, out of what both have learned.

    W = [[W0, W2], [W3, W1]],   W0 = sum_k a_k S_k,  W2 = sum_k b_k S_k,  W1 = sum_k c_k T_k,  W3 = sum_k d_k T_k

S and T are `templates` matrices of half the height and width each, used by `shared` layers of the same role and shape, which
differ by their coefficients. In the `apart` first of the steps W2 and W3 are zero. Then their coefficients begin: "orthogonal" to
those that the layers have by then, as far as there is room (the last right singular vector of all of them, one after the other),
as a "copy" of a and c, at "random", or at "zero"; and everything is trained on. What is stored is the matrix.
Pham et al., WACV 2024 (arXiv:2311.04251), for images. Different: both small nets learn at once, with one embedding, head and
loss, where the paper trains them one after the other; a single curve of learning rates; templates begin with the spread that the
model wants for its matrices. A trained model is no beginning: its matrices have no templates in common.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from trimtab.core.card import Card, Claim
from trimtab.core.errors import UsageError
from trimtab.core.knobs import choice, count, rate
from trimtab.core.places import Site
from trimtab.core.scratch import ScratchMethod, Structure
from trimtab.core.seeds import Seeds
from trimtab.core.trained import Hook
from trimtab.formats.dense import Dense

OFF = ((2, 0), (3, 1))  # members off the diagonal, and those whose templates they use


@dataclass(frozen=True)
class MixtureGrowth(ScratchMethod):
    card: ClassVar = Card(
        id="mixture_growth",
        title="MixtureGrowth: Growing Neural Networks by Recombining Learned Parameters",
        paper="arXiv:2311.04251",
        fidelity="variant",
        beside=("low_rank", "sltrain", "sws"),
        claims=(
            Claim(
                "recombining-beats-zero",
                "mixture_growth",
                "<",
                "mixture_growth(fill='zero')",
                published="2 to 2.5 points over earlier ways to grow, CIFAR-100 and ImageNet",
                note="trained from random weights on equal tokens; zero is the two nets as they are, with room to grow",
                model="asset:own-2m",
            ),
        ),
    )

    apart: float = rate("of the steps in which there are two small nets", 0.5)
    templates: int = count("matrices that a net's layers are mixed of", 2)
    shared: int = count("layers that are mixed of the same templates", 2)
    fill: str = choice("coefficients off the diagonal when the nets grow", "orthogonal", ("orthogonal", "copy", "random", "zero"))

    def fits(self, site: Site) -> None:
        if any(width % 2 for width in site.shape):
            out, inputs = site.shape
            raise UsageError(f"mixture_growth: {site.name} is {out} x {inputs}, which has no halves; both must be even")

    def numbers(self, shape: tuple[int, int]) -> int:
        return shape[0] * shape[1]

    def begin(self, weight: Tensor, generator: torch.Generator, site: Site) -> "Mixture":
        half = (2, self.templates, site.shape[0] // 2, site.shape[1] // 2)
        drawn = torch.randn(half, generator=generator) * weight.square().mean().sqrt().cpu()
        mix = F.normalize(torch.randn(4, self.templates, generator=generator), dim=1)
        return Mixture(drawn.to(weight.device), mix.to(weight.device))

    def join(self, structures: Mapping[Site, Structure]) -> None:
        ordered = sorted(structures.items(), key=lambda pair: (pair[0].role, pair[0].shape))  # forward among equals
        for _, alike in groupby(ordered, key=lambda pair: (pair[0].role, pair[0].shape)):
            mixtures = [cast(Mixture, structure) for _, structure in alike]
            for number in range(0, len(mixtures), self.shared):
                _join(mixtures[number : number + self.shared])

    def hook(self, structures: Mapping[str, Structure], steps: int, seeds: Seeds) -> Hook:
        return Growth(
            list(cast(Mapping[str, Mixture], structures).values()), min(int(self.apart * steps), steps - 1), self.fill, seeds
        )


class Mixture(Structure):
    """templates: [2, templates, out / 2, in / 2], those of either net; mix: [4, templates], coefficients of W0, W1, W2 and W3."""

    def __init__(self, templates: Tensor, mix: Tensor):
        super().__init__()
        self.templates, self.mix, self.grown = nn.Parameter(templates), nn.Parameter(mix), False

    def member(self, number: int) -> Tensor:
        """[out / 2, in / 2]. number: 0 to 3; even ones are mixed of the first net's templates."""
        return torch.einsum("k,koi->oi", self.mix[number], self.templates[number % 2])

    def forward(self, x: Tensor) -> Tensor:
        if self.grown:
            return F.linear(x, self.matrix())
        return torch.cat([F.linear(half, self.member(net)) for net, half in enumerate(x.chunk(2, -1))], -1)

    def matrix(self) -> Tensor:
        if not self.grown:
            return torch.block_diag(self.member(0), self.member(1))
        return torch.cat([torch.cat([self.member(0), self.member(2)], 1), torch.cat([self.member(3), self.member(1)], 1)])

    def result(self) -> Dense:
        return Dense(self.matrix().detach())


def _join(layers: Sequence[Mixture]) -> None:
    """Lets layers use the first one's templates, with coefficients that are as different as there is room for."""
    for place, layer in enumerate(layers[1:], 1):
        layer.templates = layers[0].templates
        with torch.no_grad():
            for net in range(2):
                layer.mix[net] = farthest(torch.stack([other.mix[net] for other in layers[:place]]))


def farthest(rows: Tensor) -> Tensor:
    """[templates], of length 1: what has least to do with rows [n, templates], the last right singular vector."""
    vectors: Tensor = torch.linalg.svd(rows.double().cpu(), full_matrices=True).Vh
    return vectors[-1].to(rows)


class Growth(Hook):
    """At step `begins` the nets grow together. Coefficients are parameters, and so survive a kill."""

    def __init__(self, layers: Sequence[Mixture], begins: int, fill: str, seeds: Seeds):
        self.layers, self.begins, self.fill, self.seeds = layers, begins, fill, seeds

    def before_step(self, step: int, optimizer: Optimizer) -> None:
        if step == self.begins:
            with torch.no_grad():
                for number, layers in enumerate(self._banks()):
                    self._fill(layers, number)
        for layer in self.layers:
            layer.grown = step >= self.begins

    def _banks(self) -> Iterator[list[Mixture]]:
        """Layers that are mixed of the same templates."""
        known: dict[int, list[Mixture]] = {}
        for layer in self.layers:
            known.setdefault(id(layer.templates), []).append(layer)
        yield from known.values()

    def _fill(self, layers: Sequence[Mixture], number: int) -> None:
        for member, net in OFF:
            rows = [layer.mix[net] for layer in layers]
            for place, layer in enumerate(layers):
                layer.mix[member] = self._filled(rows, rows[place], (number, member, place))
                rows.append(layer.mix[member])

    def _filled(self, rows: Sequence[Tensor], own: Tensor, place: tuple[int, int, int]) -> Tensor:
        if self.fill == "orthogonal":
            return farthest(torch.stack(list(rows)))
        if self.fill == "random":
            return F.normalize(torch.randn(own.shape, generator=self.seeds.at("grow", *place)), dim=0).to(own)
        return own.clone() if self.fill == "copy" else torch.zeros_like(own)
