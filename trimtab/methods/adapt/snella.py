"""SNELLA: a change of distances instead of products; its largest entries live, more of them where training pulls more.

Every input and every output of a matrix has two points, in two spaces of rank / 2 dimensions; the change is K = 0.1 (D_0 -
D_1), D_h the Euclidean distances of outputs to inputs in space h, and has a higher rank than a product of its size. Both
spaces begin alike, so K is zero. Of K only entries of at least a threshold survive. How many survive in the whole model falls
from all along a cubic curve to 1 - sparsity at the last step; every `every` steps the matrices share that number in
proportion to the mean of sensitivity, |parameter * gradient|, times its uncertainty, both smoothed over the steps. Shen et
al. 2025, made for images. As in the authors' code but for: the start (there K is not zero), survivors keep their value (there
it is squared), and no softmax of K is mixed in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import LinearWeight, Seen
from trimtab.core.knobs import count, rate
from trimtab.core.places import Site
from trimtab.core.trained import Delta, Hook, RankedMethod, Training
from trimtab.formats.deltas import MatrixDelta, device_of

SIGN = 0.1
LEAST = 1e-12  # of a squared distance, whose root has no slope at zero


@dataclass(frozen=True)
class Snella(RankedMethod):
    card: ClassVar = Card(
        id="snella",
        title="Kernelized Sparse Fine-Tuning with Bi-level Parameter Competition for Vision Models",
        paper="arXiv:2510.24037",
        fidelity="variant",
        beside=("lora", "spiel"),
        claims=(
            Claim(
                "beats-lora",
                "snella(rank=8)",
                "<",
                "lora(rank=8, alpha=8.0)",
                model="asset:own-5m",
                text="asset:gsm8k-rest",
                note="adapted to asset:gsm8k, equal trained parameters; published for images",
            ),
        ),
    )

    rank: int = count("numbers for an input, or an output; half of them for either point", 16, low=2)
    sparsity: float = rate("fraction of the model's changes that are zero at the end", 0.3, high=0.99)
    every: int = count("steps between thresholds", 10)
    memory: float = rate("how much of sensitivity and uncertainty is that of before", 0.85, high=0.999)

    def attach(self, weight: LinearWeight, seen: Seen, site: Site) -> "DistancesDelta":
        size = self.rank // 2
        out_points, in_points = ((2 * torch.rand(n, size, generator=seen.generator) - 1) * size**-0.5 for n in site.shape)
        return DistancesDelta(out_points.to(device_of(weight)), in_points.to(device_of(weight)))

    def hook(self, deltas: Mapping[Site, Delta]) -> "Competition":
        found = [delta for delta in deltas.values() if isinstance(delta, DistancesDelta)]
        return Competition(found, self.sparsity, self.every, self.memory)


class DistancesDelta(MatrixDelta):
    """out_points [2, out, size], in_points [2, in, size]: trained, the two of each alike at first. threshold: a scalar."""

    def __init__(self, out_points: Tensor, in_points: Tensor):
        super().__init__()
        self.out_points, self.in_points = (nn.Parameter(points.expand(2, -1, -1).clone()) for points in (out_points, in_points))
        self.threshold = nn.Parameter(torch.zeros((), device=out_points.device), requires_grad=False)

    def change(self) -> Tensor:
        whole = self.whole()
        return whole * (whole.abs() >= self.threshold)

    def whole(self) -> Tensor:
        """[out, in] before the threshold."""
        return SIGN * (_distances(self.out_points[0], self.in_points[0]) - _distances(self.out_points[1], self.in_points[1]))

    @torch.no_grad()
    def keep(self, survivors: int) -> None:
        """Sets the threshold so that as many entries survive, or more where some are equal."""
        sizes = self.whole().abs().flatten()
        dropped = len(sizes) - survivors
        self.threshold.copy_(sizes.kthvalue(dropped + 1).values if dropped > 0 else torch.zeros_like(self.threshold))


class Competition(Hook):
    """Decides how many entries of each delta survive. smoothed: per parameter, sensitivity and uncertainty."""

    def __init__(self, deltas: Sequence[DistancesDelta], sparsity: float, every: int, memory: float):
        self.deltas, self.sparsity, self.every, self.memory = deltas, sparsity, every, memory
        self.steps = 1
        self.smoothed = [
            [torch.zeros(2, *p.shape, device=p.device) for p in (delta.out_points, delta.in_points)] for delta in deltas
        ]

    def tensors(self) -> dict[str, Tensor]:
        known = {f"smoothed.{n}.{side}": t for n, both in enumerate(self.smoothed) for side, t in enumerate(both)}
        return {**known, **{f"threshold.{n}": delta.threshold for n, delta in enumerate(self.deltas)}}

    def begin(self, training: Training) -> None:
        self.steps = training.steps

    def before_step(self, step: int, optimizer: Optimizer) -> None:
        if step % self.every == 0:
            self.compete(min(1.0, (step + self.every) / self.steps))

    @torch.no_grad()
    def after_update(self, step: int, optimizer: Optimizer) -> None:
        for delta, smoothed in zip(self.deltas, self.smoothed, strict=True):
            for parameter, (sensitivity, uncertainty) in zip((delta.out_points, delta.in_points), smoothed, strict=True):
                if parameter.grad is not None:
                    now = (parameter * parameter.grad).abs().to(sensitivity.dtype)
                    sensitivity.lerp_(now, 1 - self.memory)
                    uncertainty.lerp_((now - sensitivity).abs(), 1 - self.memory)

    @torch.no_grad()
    def compete(self, done: float) -> None:
        """done: fraction of the training after which the thresholds are set anew."""
        kept = 1 - self.sparsity + self.sparsity * (1 - done) ** 3
        sizes = [delta.out_points.shape[1] * delta.in_points.shape[1] for delta in self.deltas]
        scores = [sum(float(both.prod(0).mean()) for both in smoothed) for smoothed in self.smoothed]
        for delta, survivors in zip(self.deltas, shared(round(kept * sum(sizes)), scores, sizes), strict=True):
            delta.keep(survivors)


def shared(total: int, scores: Sequence[float], sizes: Sequence[int]) -> list[int]:
    """Parts of `total` in proportion to scores >= 0, none above its size; what one cannot take the others get."""
    parts, free, left = [0] * len(sizes), set(range(len(sizes))), float(min(total, sum(sizes)))
    weights = list(scores) if any(scores) else [float(size) for size in sizes]
    while free:
        sum_of = sum(weights[n] for n in free)
        wanted = {n: left * (weights[n] / sum_of if sum_of else 1 / len(free)) for n in free}
        full = {n for n in free if wanted[n] >= sizes[n]}
        for n in full or free:
            parts[n] = sizes[n] if full else int(wanted[n])
        left -= sum(sizes[n] for n in full)
        free = free - full if full else set()
    return parts


def _distances(out_points: Tensor, in_points: Tensor) -> Tensor:
    """[out, in]"""
    squares = out_points.square().sum(1)[:, None] + in_points.square().sum(1) - 2 * out_points @ in_points.mT
    return squares.clamp(min=LEAST).sqrt()
