"""IST: LoRA in which every step trains the adapters of a few blocks, the likelier the more the loss has shown to depend on them.

A step trains `active` of the blocks, drawn without replacement with probabilities softmax(importance); all adapters answer. Every
`every` steps some sets of blocks are tried without gradients: the answers of all adapters outside of the set are multiplied by
`suppressed`, and the importance of the blocks in it grows by `pace` times the set's reward less the mean reward. Yao et al.,
EMNLP 2024.
Filled in: what Adam knows of a block stays when the block leaves; it is drawn anew at every step, and would else know a single
gradient, from which all steps are equally long. The sets are drawn as the trained blocks are; the reward is exp(mean loss of the
sets - loss) in place of exp(-loss), which vanishes where losses are high; nothing is tried before step `after`, when the adapters
have something to say.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import exp
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import LinearWeight, Seen
from trimtab.core.knobs import count, number, rate
from trimtab.core.places import Site
from trimtab.core.trained import Delta, Hook, RankedMethod, Training
from trimtab.formats.deltas import LowRankDelta, fresh_product, lora_fields

TRIED = 3  # sets of blocks at a time


@dataclass(frozen=True)
class Ist(RankedMethod):
    card: ClassVar = Card(
        id="ist",
        title="Layer-wise Importance Matters: Less Memory for Better Performance in Parameter-efficient Fine-tuning",
        paper="arXiv:2410.11772",
        fidelity="reconstructed",
        beside=("lora", "lisa"),
        claims=(
            Claim(
                "importance-beats-chance",
                "ist(rank=8, alpha=16.0)",
                "<",
                "ist(rank=8, alpha=16.0, pace=0.0)",
                model="asset:own-5m",
                text="asset:gsm8k-rest",
                note="adapted to asset:gsm8k; without a pace the blocks are drawn uniformly",
            ),
            Claim(
                "beats-lora",
                "ist(rank=8, alpha=16.0)",
                "<",
                "lora(rank=8, alpha=16.0)",
                model="asset:own-5m",
                text="asset:gsm8k-rest",
                note="adapted to asset:gsm8k in equal steps, each of which trains a quarter of the blocks on the left",
            ),
        ),
    )

    alpha: float = number("the product is multiplied by alpha / rank", 32.0, low=0.001)
    active: float = rate("fraction of the blocks whose adapters a step trains", 0.25, low=0.001)
    every: int = count("steps between trials", 10)
    after: int = count("steps before the first trial", 50, low=0)
    suppressed: float = rate("the other adapters' answers in a trial are multiplied by this", 0.25)
    pace: float = number("how fast importance moves", 10.0, low=0.0)

    def attach(self, weight: LinearWeight, seen: Seen, site: Site) -> LowRankDelta:
        return fresh_product(weight, self.rank, self.alpha / self.rank, seen.generator)

    def hook(self, deltas: Mapping[Site, Delta]) -> "Importance":
        blocks: dict[int | None, list[LowRankDelta]] = {}
        for site, delta in deltas.items():
            assert isinstance(delta, LowRankDelta)
            blocks.setdefault(site.block, []).append(delta)
        return Importance(list(blocks.values()), self)

    def portable(self) -> dict[str, Any]:
        return lora_fields(self.rank, self.alpha)


class Importance(Hook):
    """importance: [blocks] float32. blocks: the deltas of each."""

    def __init__(self, blocks: list[list[LowRankDelta]], how: Ist):
        self.blocks, self.how, self.importance = blocks, how, torch.zeros(len(blocks))
        self.training: Training | None = None

    def tensors(self) -> dict[str, Tensor]:
        return {"importance": self.importance}

    def begin(self, training: Training) -> None:
        self.training = training

    def drawn(self, *place: object) -> list[int]:
        """Blocks, ascending; they depend on the seed, the place and the importance alone."""
        assert self.training is not None
        size = max(1, round(self.how.active * len(self.blocks)))
        chances = self.importance.softmax(0).clamp(min=1e-6)  # a draw without replacement needs enough that are not zero
        return sorted(torch.multinomial(chances, size, generator=self.training.seeds.at("ist", *place)).tolist())

    def before_step(self, step: int, optimizer: Optimizer) -> None:
        if step >= self.how.after and step % self.how.every == 0 and self.how.pace > 0:
            self._try(step)
        chosen = self.drawn(step)
        for block, deltas in enumerate(self.blocks):
            for parameter in (parameter for delta in deltas for parameter in delta.parameters()):
                parameter.requires_grad_(block in chosen)
                if block not in chosen:
                    parameter.grad = None

    @torch.no_grad()
    def _try(self, step: int) -> None:
        assert self.training is not None
        sets, losses = [self.drawn(step, trial) for trial in range(TRIED)], list[float]()
        for chosen in sets:
            with self._only(chosen):
                losses.append(sum(float(part) for part in self.training.losses(step)))
        rewards = [exp(sum(losses) / TRIED - loss) for loss in losses]
        for chosen, reward in zip(sets, rewards, strict=True):
            self.importance[chosen] += self.how.pace * (reward - sum(rewards) / TRIED)

    @contextmanager
    def _only(self, chosen: list[int]) -> Iterator[None]:
        others = [delta for block, deltas in enumerate(self.blocks) if block not in chosen for delta in deltas]
        whole = [delta.scale for delta in others]
        try:
            for delta in others:
                delta.scale *= self.how.suppressed
            yield
        finally:
            for delta, scale in zip(others, whole, strict=True):
                delta.scale = scale
