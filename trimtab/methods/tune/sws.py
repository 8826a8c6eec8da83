"""SWS: blocks of a stage share one set of matrices, which learns to be repeated, and from which a model of any depth can begin.

The blocks are cut into `stages` runs, as equal as can be. In a run all blocks have the same matrices, whose gradients add up over
their uses, and gains of their own. They learn (1 - weight) CE(next token) + weight T^2 KL(teacher / T || model / T), the teacher
being the model as it was. They are stored once for a stage, where they have no biases; `sws_expand(depth=...)` makes models of
other depths of what is stored: "sws(stages=3)" once, and then, for every depth, "sws_expand(depth=4) -> recover(rank=0)".
Xia et al., 2024 (arXiv:2404.16897), of which no code is public: reconstructed. Different: embedding and head are the teacher's,
and what is learned begins as the middle block of every stage; start="random" begins as the paper does, which takes far longer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.edits import Edits, SetWeight, Share
from trimtab.core.errors import ModelError, UsageError
from trimtab.core.kinds import Learner, Seen
from trimtab.core.knobs import choice, count, number, rate
from trimtab.core.places import Site
from trimtab.core.taught import Pupil, TaughtMethod, Teacher, gains
from trimtab.formats.taught import Free, Student
from trimtab.tensors.runs import runs

if TYPE_CHECKING:
    from trimtab.anatomy import Anatomy


@dataclass(frozen=True)
class Sws(TaughtMethod):
    card: ClassVar = Card(
        id="sws",
        title="Exploring Learngene via Stage-wise Weight Sharing for Initializing Variable-sized Models",
        paper="arXiv:2404.16897",
        fidelity="reconstructed",
        beside=("sws_expand", "foldgpt", "distill"),
        claims=(
            Claim(
                "beats-blocks-of-the-teacher",
                "sws(stages=3, steps=800, learning_rate=0.002) -> sws_expand(depth=4) -> recover(rank=0, steps=100)",
                "<",
                "shortgpt(drop=2) -> recover(rank=0, steps=100)",
                published="better than layers picked by hand, DeiT, ImageNet",
                note="four blocks of six; the teaching is done once for all depths and not counted",
                model="asset:own-5m",
            ),
        ),
    )
    needs: ClassVar = (Teacher,)

    stages: int = count("runs of blocks, each of which shares one set of matrices", 3)
    start: str = choice("what a stage begins as: its middle block, or random numbers", "middle", ("middle", "random"))
    weight: float = rate("of the teacher's answers in the loss; the rest is for the text's next token", 0.5)
    temperature: float = number("of both models' answers", 1.0, low=0.01)
    steps: int = count("steps of training", 200)
    windows: int = count("windows in a step", 4)
    learning_rate: float = number("the highest one", 1e-3, low=1e-8)

    def begin(self, anatomy: "Anatomy", seen: Seen) -> Pupil:
        found = self._stages(anatomy)
        learners = dict[Site, Learner]()
        for stage in found:
            matrices = {name: Free(self._first(anatomy, site, seen)) for name, site in _named(anatomy, _middle(stage)).items()}
            for block in stage:
                here = _named(anatomy, block)
                if {n: s.shape for n, s in here.items()} != {n: m.weight.shape for n, m in matrices.items()}:
                    raise ModelError(f"sws: block {block} is not made as block {_middle(stage)} is; use more stages")
                learners |= {site: matrices[name] for name, site in here.items()}
        return Stagewise(learners, gains(anatomy), self, anatomy, found)

    def _first(self, anatomy: "Anatomy", site: Site, seen: Seen) -> Tensor:
        weight = anatomy.weight(site).dense()
        if self.start == "middle":
            return weight
        return torch.randn(weight.shape, generator=seen.generator).to(weight) * weight.square().mean().sqrt()

    def _stages(self, anatomy: "Anatomy") -> list[range]:
        depth = len(anatomy.blocks)
        if self.stages > depth:
            raise UsageError(f"sws: the model has {depth} blocks, which are no {self.stages} stages; use less")
        return runs(depth, self.stages)

    def trained(self, anatomy: "Anatomy") -> int:
        matrices = [s for stage in self._stages(anatomy) for s in _named(anatomy, _middle(stage)).values()]
        small = sum(p.numel() for p in anatomy.blocks.parameters() if p.ndim < 2)
        return small + sum(s.shape[0] * s.shape[1] for s in matrices)


def _middle(stage: range) -> int:
    return stage[len(stage) // 2]


def _named(anatomy: "Anatomy", block: int) -> dict[str, Site]:
    """The block's matrices by their names inside of it. Raises `ModelError` where some of them are no layers of their own."""
    sites = anatomy.block_sites(block)
    if any(site.index is not None for site in sites):
        raise ModelError(f"sws: block {block} has experts, which live in one tensor; its matrices cannot be shared")
    return {site.path.removeprefix(f"{anatomy.blocks_path}.{block}."): site for site in sites}


class Stagewise(Student):
    def __init__(
        self, learners: Mapping[Site, Learner], own: Sequence[str], method: Sws, anatomy: "Anatomy", stages: Sequence[range]
    ):
        super().__init__(learners, own, method.weight, method.temperature)
        self.anatomy, self.stages = anatomy, stages

    def edits(self) -> Edits:
        apart = [block for stage in self.stages for block in stage if block == stage[0] or self._has_bias(block)]
        edits: Edits = [SetWeight(site, learner.result()) for site, learner in self.stands().items() if site.block in apart]
        return edits + [Share(block, stage[0]) for stage in self.stages for block in stage if block not in apart]

    def _has_bias(self, block: int) -> bool:
        return any(self.anatomy.bias(site) is not None for site in self.anatomy.block_sites(block))

    def notes(self) -> dict[str, Any]:
        return {"blocks_of_stages": [len(stage) for stage in self.stages]}
