"""AST: a sparse mask that moves while the model learns from the untouched one, and settles.

    y = (W * M) x,  all of W learning as if M were not there;  M: the largest |W| of the pattern, anew every `every` steps
    after each step  W <- W - decay_t (1 - M) W,  decay_t growing from 0 to `decay` over the first quarter, and with the rate
    loss = (1 - weight) CE + weight T^2 KL(teacher / T || student / T)

Pruned weights shrink, so that ever fewer come back. block > 0 adds SLoRB: the sum of every `block` consecutive inputs times a
matrix S [out, in / block], which begins at the mean of what was pruned there.
Huang et al., AAAI 2025 (arXiv:2407.20584). Different: the decay is applied to the weights, not to Adam's direction, so that it
is a fraction per step and does not depend on the size of gradients; the matrix that sums inputs is not trained.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trimtab.core.card import Card, Claim
from trimtab.core.errors import UsageError
from trimtab.core.kinds import Learner, LinearWeight, Seen
from trimtab.core.knobs import count, number, rate, text
from trimtab.core.places import Site
from trimtab.core.taught import Pupil, Said, TaughtMethod, Teacher, gains
from trimtab.formats import Masked, Sum, low_rank
from trimtab.tensors.losses import distilled, next_token
from trimtab.tensors.masks import Pattern, keep_top
from trimtab.tensors.through import halved, through

if TYPE_CHECKING:
    from trimtab.anatomy import Anatomy

GROWING = 0.25  # of the steps, in which the decay grows


@dataclass(frozen=True)
class Ast(TaughtMethod):
    card: ClassVar = Card(
        id="ast",
        title="Pruning Large Language Models with Semi-Structural Adaptive Sparse Training",
        paper="arXiv:2407.20584",
        fidelity="variant",
        beside=("distill", "wanda", "sparsegpt"),
        claims=(
            Claim(
                "a-mask-that-moves-beats-one-that-stays",
                "ast(steps=300)",
                "<",
                "magnitude(pattern='2:4') -> distill(weight=0.67, temperature=2.0, steps=300, learning_rate=2e-4)",
                published="32.2 < 40.1 (iterative magnitude), GPT-2 124M, WikiText2",
                note="both 2:4, equal steps and tokens",
                model="asset:own-5m",
            ),
            Claim(
                "summed-inputs-help",
                "ast(block=16, steps=300)",
                "<",
                "ast(steps=300)",
                note="an eighth more numbers, where matrices are square",
                model="asset:own-5m",
            ),
        ),
    )
    needs: ClassVar = (Teacher,)

    sparsity: float = rate("fraction of weights removed, if unstructured", 0.5, high=0.99)
    pattern: str = text("unstructured, or N of every M consecutive inputs survive (N:M)", "2:4", Pattern.parse)
    every: int = count("steps after which the mask is chosen anew", 10)
    decay: float = rate("of a pruned weight goes in a step, at most", 0.01)
    block: int = count("inputs that are summed for the dense part; 0 = there is none", 0, 0)
    weight: float = rate("of the teacher's answers in the loss; the rest is for the text's next token", 0.67)
    temperature: float = number("of both models' answers", 2.0, low=0.01)
    steps: int = count("steps of training", 100)
    windows: int = count("windows in a step", 4)
    learning_rate: float = number("the highest one", 2e-4, low=1e-8)

    def begin(self, anatomy: "Anatomy", seen: Seen) -> Pupil:
        sites = self.sites(anatomy)
        for site in sites:
            self._fits(site)
        return Adaptive({site: MovingMask(anatomy.weight(site).dense(), self) for site in sites}, gains(anatomy), self)

    def _fits(self, site: Site) -> None:
        for size in (Pattern.parse(self.pattern).m, self.block):
            if size and site.shape[1] % size:
                raise UsageError(f"ast: {site.name} has in={site.shape[1]}, which is no multiple of {size}; use another one")


class MovingMask(Learner):
    """weight [out, in] is trained in full; keep [out, in] bool says what the model sees of it. sums: S, if there is one."""

    keep: Tensor

    def __init__(self, weight: Tensor, method: Ast):
        super().__init__()
        self.rates, self.method, self.sums = {}, method, None
        self.weight = nn.Parameter(weight.clone())
        self.register_buffer("keep", self.chosen())
        if method.block:
            pruned = torch.where(self.keep, 0.0, weight).view(len(weight), -1, method.block)
            self.sums = nn.Parameter(pruned.mean(-1))

    @torch.no_grad()
    def chosen(self) -> Tensor:
        return keep_top(self.weight.abs(), self.method.sparsity, Pattern.parse(self.method.pattern))

    def matrix(self) -> Tensor:
        if self.sums is None:
            return through(self.weight, torch.where(self.keep, self.weight.detach(), 0.0))
        sparse = through(self.weight, torch.where(self.keep, self.weight.detach().half().float(), 0.0))
        return sparse + halved(self.sums).repeat_interleave(self.method.block, 1)

    def result(self) -> LinearWeight:
        weight = self.weight.detach()
        if self.sums is None:
            return Masked(weight, self.keep)
        inputs = torch.eye(self.sums.shape[1], device=weight.device).repeat_interleave(self.method.block, 1)
        return Sum((Masked(weight.half(), self.keep), low_rank(self.sums.detach(), inputs)))

    @torch.no_grad()
    def renew(self) -> int:
        """Chooses the mask anew; how many weights changed sides."""
        chosen = self.chosen()
        flipped = int((chosen != self.keep).sum())
        self.keep.copy_(chosen)
        return flipped

    @torch.no_grad()
    def shrink(self, decay: float) -> None:
        self.weight.sub_(decay * torch.where(self.keep, 0.0, self.weight))


class Adaptive(Pupil):
    flipped: Tensor

    def __init__(self, learners: Mapping[Site, MovingMask], own: Sequence[str], method: Ast):
        super().__init__(learners, own)
        self.masks, self.method = list(learners.values()), method
        self.register_buffer("flipped", torch.zeros(2, dtype=torch.int64))  # the last time, and in all

    def loss(self, said: Said, taught: Said | None, ids: Tensor, share: Tensor) -> Tensor:
        assert taught is not None
        from_teacher = distilled(said.logits, taught.logits, self.method.temperature)
        return (self.method.weight * from_teacher + (1 - self.method.weight) * next_token(said.logits, ids)) * share

    def before_step(self, step: int, optimizer: Optimizer) -> None:
        if step and step % self.method.every == 0:
            now = sum(mask.renew() for mask in self.masks)
            self.flipped.copy_(torch.tensor([now, int(self.flipped[1]) + now]))

    def after_update(self, step: int, optimizer: Optimizer) -> None:
        grown = min(1.0, step / max(1.0, GROWING * self.method.steps))
        falling = optimizer.param_groups[0]["lr"] / self.method.learning_rate
        for mask in self.masks:
            mask.shrink(self.method.decay * grown * falling)

    def notes(self) -> dict[str, Any]:
        weights = sum(mask.keep.numel() for mask in self.masks)
        last, all_in_all = (int(number) / weights for number in self.flipped)
        return {"flipped_last": last, "flipped": all_in_all}
