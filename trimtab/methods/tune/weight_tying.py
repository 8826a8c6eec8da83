"""Weight tying: one matrix is both the embedding and the head of a model that was trained with two of them.

    head = E diag(p),   p_j = <E_j, W_j> / <E_j, E_j> at first,   W the head's matrix as it was, X_j the column of channel j

E begins as W of the embedding's size ("output"), as the embedding itself ("input"), or as the mean of these ("average"). E, p and
updates of the blocks' matrices then learn to say the next token, with `pull` |p| added to the loss. In the end p goes into the
gain of the last norm: the model is an ordinary tied one, and stores as many numbers less as the head has.
Press and Wolf, EACL 2017 (arXiv:1608.05859): a tied matrix comes to be like the output's, not like the input's. Different: the
paper ties before a training from random numbers; its projection P, which `pull` keeps small, is diagonal here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from trimtab.core.card import Card, Claim
from trimtab.core.edits import Edits, SetParam, SetWeight, Tie
from trimtab.core.errors import ModelError
from trimtab.core.kinds import Learner, Seen
from trimtab.core.knobs import choice, count, number
from trimtab.core.places import Site
from trimtab.core.taught import Pupil, TaughtMethod, gains
from trimtab.formats.dense import Dense
from trimtab.formats.taught import Free, Reader, standing

if TYPE_CHECKING:
    from trimtab.anatomy import Anatomy, Norm


@dataclass(frozen=True)
class WeightTying(TaughtMethod):
    card: ClassVar = Card(
        id="weight_tying",
        title="Using the Output Embedding to Improve Language Models",
        paper="arXiv:1608.05859",
        fidelity="variant",
        beside=("recover", "vq_logits"),
        claims=(
            Claim(
                "better-from-the-output",
                "slicegpt(sparsity=0.1) -> weight_tying(start='output', steps=300)",
                "<",
                "slicegpt(sparsity=0.1) -> weight_tying(start='input', steps=300)",
                note="slicegpt gives the head a matrix of its own; the paper finds tied matrices to be like the output's",
                model="asset:own-5m",
            ),
        ),
    )

    start: str = choice("what the one matrix begins as", "output", ("output", "input", "average"))
    pull: float = number("how much the loss counts the norm of p", 0.0, low=0.0)
    rank: int = count("of the update of every matrix, which is folded in; 0 = the matrices themselves are trained", 8, 0)
    alpha: float = number("the update is multiplied by alpha / rank", 16.0, low=0.001)
    steps: int = count("steps of training", 200)
    windows: int = count("windows in a step", 4)
    learning_rate: float = number("the highest one", 3e-4, low=1e-8)

    def begin(self, anatomy: "Anatomy", seen: Seen) -> Pupil:
        norm = last_norm(anatomy)
        embed, head = anatomy.sites[0], anatomy.sites[-1]
        entering, leaving = (anatomy.weight(site).dense() for site in (embed, head))
        table = Free(begun(entering, leaving, self.start))
        both: dict[Site, Learner] = {embed: table, head: Stretched(table, stretch(table.weight.detach(), leaving))}
        weights = {site: anatomy.weight(site).dense() for site in self.sites(anatomy)}
        updates = {site: standing(w, self.rank, self.alpha, True, seen.generator) for site, w in weights.items()}
        return Tied({**both, **updates}, () if self.rank else gains(anatomy), norm, anatomy, self.pull)

    def trained(self, anatomy: "Anatomy") -> int:
        sites = self.sites(anatomy)
        updates = sum(min(self.rank, *s.shape) * sum(s.shape) if self.rank else s.shape[0] * s.shape[1] for s in sites)
        words, width = anatomy.sites[0].shape
        return words * width + width + updates


class Stretched(Learner):
    """E diag(p) [words, width], of which only p is its own."""

    def __init__(self, table: Free, stretch: Tensor):
        super().__init__()
        self.rates, self.table, self.stretch = {}, table, nn.Parameter(stretch)

    def matrix(self) -> Tensor:
        return self.table.matrix() * self.stretch

    def result(self) -> Dense:
        return Dense(self.matrix().detach())


class Tied(Reader):
    def __init__(self, learners: Mapping[Site, Learner], own: Sequence[str], norm: "Norm", anatomy: "Anatomy", pull: float):
        super().__init__(learners, own)
        self.norm, self.anatomy, self.pull = norm, anatomy, pull

    @property
    def stretched(self) -> Stretched:
        learner = self.stands()[self.anatomy.sites[-1]]
        assert isinstance(learner, Stretched)
        return learner

    def penalty(self) -> Tensor | None:
        return self.pull * self.stretched.stretch.norm() if self.pull else None

    def edits(self) -> Edits:
        head, stretch = self.anatomy.sites[-1], self.stretched.stretch.detach()
        module = self.anatomy.model.get_submodule(self.norm.path)
        gain = module.get_parameter("weight").detach()
        edits: Edits = [SetWeight(site, learner.result()) for site, learner in self.stands().items() if site != head]
        edits.append(SetParam(f"{self.norm.path}.weight", stretch * (gain + self.norm.offset) - self.norm.offset))
        shift = getattr(module, "bias", None)
        if shift is not None:
            edits.append(SetParam(f"{self.norm.path}.bias", stretch * shift.detach()))
        return [*edits, Tie()]

    def notes(self) -> dict[str, Any]:
        words, width = self.anatomy.sites[-1].shape
        return {"weights_gone": words * width}


def last_norm(anatomy: "Anatomy") -> "Norm":
    """What the head reads. Raises `ModelError` where head and embedding cannot become one matrix."""
    embed, head = anatomy.sites[0], anatomy.sites[-1]
    if anatomy.tied:
        raise ModelError(f"weight_tying: {embed.name} and {head.name} are one matrix already; leave this step out")
    if embed.shape != head.shape:
        raise ModelError(f"weight_tying: {embed.name} is {embed.shape}, {head.name} is {head.shape}; both must be of one size")
    for norm in anatomy.norms():
        if norm.feeds == (head,):
            return norm
    raise ModelError(f"weight_tying: {head.name} reads from no norm of its own, into which a scale could go")


def begun(entering: Tensor, leaving: Tensor, start: str) -> Tensor:
    """What the one matrix begins as. entering, leaving: the embedding's and the head's; all [words, width] float32."""
    sized = leaving * (entering.norm() / leaving.norm().clamp_min(torch.finfo(leaving.dtype).tiny))
    starts: dict[str, Tensor] = {"input": entering, "output": sized, "average": (entering + sized) / 2}
    return starts[start]


def stretch(table: Tensor, leaving: Tensor) -> Tensor:
    """[width] float32: what the columns of `table` are multiplied by to be as near to those of `leaving` as they can."""
    along = (table.double() * leaving.double()).sum(0)
    size = table.double().square().sum(0)
    return torch.where(size > 0, along / size, 1.0).float()
