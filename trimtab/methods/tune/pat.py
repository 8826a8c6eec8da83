"""PAT: the residual stream gets narrower while low-rank updates learn; behind every writer a module says how it is turned.

Behind the embedding, every attention output and every MLP output (all of which write to the stream) stands

    x -> v m (x + U2 U1 x),    m = sigmoid(T a) + b,   T = 1 / (1 - log t / log n),   b = max(1/2 - t / n, 0),   t = 1 .. n

with v and the thin U1, U2 of its own, and one mask m [width] that all of them share: it begins near one and hardens. Lowered:

    cross-entropy + 10 |#(a >= 0) - left| / left + mean over a >= 0 of (a - 1/2)^2 + mean over the others of (a + 1/2)^2
                  + sum over modules of mean((U1 U1' - I)^2)

From `harden` of the steps on, m is 1 for the `left` largest of a and else 0. In the end modules are multiplied into the writers,
channels of m = 0 go everywhere, and norms divide by the root mean square over fewer: their gains rise by sqrt(width / left).
Liu et al., AAAI 2025 (arXiv:2408.14721). Different: the mask is a whole one from `harden` on, where the paper holds it soft
until the end; no dropout; a and v have learning rates for few steps. Models that `slicegpt` refuses are refused, and so are
writers with biases. A tied head gets a matrix of its own, of which only columns go.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import lcm, log
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trimtab.core.card import Card, Claim
from trimtab.core.edits import Edits, Untie
from trimtab.core.errors import UsageError
from trimtab.core.kinds import Learner, Seen
from trimtab.core.knobs import count, number, rate
from trimtab.core.places import Role, Site, query_heads
from trimtab.core.taught import Pupil, TaughtMethod
from trimtab.formats.deltas import fresh_right
from trimtab.formats.dense import Dense
from trimtab.formats.gates import Fixed
from trimtab.formats.stream_gate import WRITERS, check_writers, cut
from trimtab.formats.taught import Reader, Updated
from trimtab.tensors.through import through

if TYPE_CHECKING:
    from trimtab.anatomy import Anatomy

PRESSURE = 10.0  # of a width that is not the one asked for
APART = 0.5  # how far from zero logits are drawn


@dataclass(frozen=True)
class Pat(TaughtMethod):
    card: ClassVar = Card(
        id="pat",
        title="PAT: Pruning-Aware Tuning for Large Language Models",
        paper="arXiv:2408.14721",
        fidelity="variant",
        beside=("slicegpt", "loraprune", "compresso"),
        claims=(
            Claim(
                "beats-slicegpt-at-25",
                "pat(sparsity=0.25, steps=400)",
                "<",
                "slicegpt(sparsity=0.25) -> recover(steps=400)",
                published="+1.26 points over the dense model tuned likewise, Llama2-7B",
                note="perplexity at equal width, steps and tokens",
                model="asset:own-5m",
            ),
        ),
    )

    sparsity: float = rate("fraction of the residual stream's width that goes", 0.25, low=0.01, high=0.9)
    multiple: int = count("of which the width left is a multiple, and of the number of heads", 8)
    harden: float = rate("of the steps after which the mask is settled", 0.8)
    mask_rate: float = number("the highest learning rate of the mask and of the modules' scales", 0.02, low=1e-8)
    module_rank: int = count("inner dimension of a module", 16)
    rank: int = count("of the update of every matrix but the embedding, which is folded in", 20)
    alpha: float = number("the update is multiplied by alpha / rank", 4.0, low=0.001)
    steps: int = count("steps of training", 100)
    windows: int = count("windows in a step", 4)
    learning_rate: float = number("the highest one, of updates and modules", 3e-4, low=1e-8)

    def begin(self, anatomy: "Anatomy", seen: Seen) -> Pupil:
        check_writers(self.card.id, anatomy.sites, anatomy.bias)
        anatomy.gains(self.card.id)  # raises where the stream's norms are no plain ones
        width = anatomy.sites[0].shape[1]
        mask = Mask(width, self._left(anatomy, width), self, anatomy.weight(anatomy.sites[0]).dense().device)
        learners = dict[Site, Learner]()
        for site in (anatomy.sites[0], *self.sites(anatomy)):
            inner = self._inner(anatomy.weight(site).dense(), site, seen)
            learners[site] = Turned(inner, mask, self, seen.generator, site) if site.role in WRITERS else inner
        return Tuner(anatomy, learners, mask)

    def _inner(self, weight: Tensor, site: Site, seen: Seen) -> Fixed | Updated:
        if site.role is Role.EMBED:
            return Fixed(weight)
        return Updated(weight, self._rank(site), self.alpha / self.rank, seen.generator)

    def _rank(self, site: Site) -> int:
        return min(self.rank, *site.shape)

    def _left(self, anatomy: "Anatomy", width: int) -> int:
        """The width that is left; heads divide it, as families want it."""
        step = lcm(self.multiple, query_heads(anatomy.couplings()))
        left = round((1 - self.sparsity) * width / step) * step
        if not 0 < left < width:
            wanted = (1 - self.sparsity) * width
            raise UsageError(f"pat: no multiple of {step} below {width} is near {wanted:.0f}; use another sparsity or multiple")
        return left

    def trained(self, anatomy: "Anatomy") -> int:
        sites, width = self.sites(anatomy), anatomy.sites[0].shape[1]
        writers = 1 + sum(site.role in WRITERS for site in sites)
        return width + writers * width * (1 + 2 * self.module_rank) + sum(self._rank(s) * sum(s.shape) for s in sites)


class Mask(nn.Module):
    """logits: a, [width]. keep: [width] bool, and whether it counts by now, `settled`."""

    keep: Tensor
    settled: Tensor

    def __init__(self, width: int, left: int, method: Pat, device: torch.device):
        super().__init__()
        self.left, self.method = left, method
        self.logits = nn.Parameter(torch.zeros(width, device=device))
        self.register_buffer("keep", torch.ones(width, dtype=torch.bool, device=device))
        self.register_buffer("settled", torch.zeros((), dtype=torch.bool, device=device))

    def values(self, progress: float) -> Tensor:
        """[width] float32. progress: fraction of the training that is done."""
        return self.keep.float() if bool(self.settled) else softened(self.logits, progress, self.method.steps)

    def settle(self) -> None:
        self.keep.zero_()
        self.keep[self.logits.detach().argsort(descending=True, stable=True)[: self.left]] = True
        self.settled.fill_(True)

    def penalty(self) -> Tensor:
        """What the budget and the distance from a decision cost."""
        open_ = self.logits >= 0
        counted = through(self.logits.sigmoid(), open_.float()).sum()
        pulls = [
            (self.logits[side] - aim).square().mean() for side, aim in ((open_, APART), (~open_, -APART)) if bool(side.any())
        ]
        return PRESSURE * (counted - self.left).abs() / self.left + torch.stack(pulls).sum()


def softened(logits: Tensor, progress: float, steps: int) -> Tensor:
    """sigmoid(T a) + b at step t = 1 + progress * steps of `steps`."""
    t = min(1 + progress * steps, steps - 0.5)
    sharpness = 1 / (1 - log(t) / log(steps)) if steps > 1 else 1.0
    return (sharpness * logits).sigmoid() + max(0.5 - t / steps, 0.0)


class Turned(Learner):
    """v m (I + U2 U1) W for a matrix that writes to the stream with its rows, or an embedding, with its columns."""

    def __init__(self, inner: Fixed | Updated, mask: Mask, method: Pat, generator: torch.Generator, site: Site):
        super().__init__()
        self.inner, self.mask, self.columns = inner, mask, site.role is Role.EMBED
        width, device = len(mask.logits), inner.weight.device
        self.scale = nn.Parameter(torch.ones(width, device=device))
        self.left = nn.Parameter(torch.zeros(width, method.module_rank, device=device))
        self.right = nn.Parameter(fresh_right(method.module_rank, width, generator, device))
        self.rates = {"scale": method.mask_rate, "mask.logits": method.mask_rate}

    def matrix(self) -> Tensor:
        weight = self.inner.matrix().T if self.columns else self.inner.matrix()
        turned = weight + self.left @ (self.right @ weight)
        masked = (self.scale * self.mask.values(self.progress)).unsqueeze(1) * turned
        return masked.T if self.columns else masked

    def result(self) -> Dense:
        return Dense(self.matrix().detach())

    def from_identity(self) -> Tensor:
        """[]: mean((U1 U1' - I)^2)."""
        eye = torch.eye(len(self.right), device=self.right.device)
        return (self.right @ self.right.T - eye).square().mean()


class Tuner(Reader):
    def __init__(self, anatomy: "Anatomy", learners: Mapping[Site, Learner], mask: Mask):
        super().__init__(learners)
        self.anatomy, self.mask = anatomy, mask
        self.turned = [learner for learner in learners.values() if isinstance(learner, Turned)]

    def penalty(self) -> Tensor:
        apart = torch.stack([learner.from_identity() for learner in self.turned]).sum()
        return apart if bool(self.mask.settled) else apart + self.mask.penalty()

    def before_step(self, step: int, optimizer: Optimizer) -> None:
        if not bool(self.mask.settled) and self.turned[0].progress >= self.mask.method.harden:
            self.mask.settle()

    def after_update(self, step: int, optimizer: Optimizer) -> None:
        if step + 1 == self.mask.method.steps and not bool(self.mask.settled):
            self.mask.settle()

    def edits(self) -> Edits:
        own, anatomy, gain = self.stands(), self.anatomy, self.anatomy.model.get_parameter
        weights = ((s, own[s].matrix().detach() if s in own else anatomy.weight(s).dense()) for s in anatomy.sites)
        norms = [(f"{n.path}.weight", gain(f"{n.path}.weight").detach(), n.offset) for n in anatomy.norms()]
        return [*([Untie()] if anatomy.tied else []), *cut(weights, norms, self.mask.keep)]

    def notes(self) -> dict[str, Any]:
        agreed = (self.mask.logits.detach() >= 0) == self.mask.keep
        return {"width": self.mask.left, "width_before": len(self.mask.keep), "undecided": int((~agreed).sum())}
