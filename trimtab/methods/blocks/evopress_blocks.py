"""EvoPress blocks: evolution over which blocks are left out, judged by what the whole model then says.

loss = mean_t KL(model as it is || without the blocks), on held-out tokens.
A child has min(U{1..k}, U{1..k}) of the dropped blocks back and as many others dropped.  The first parent is the best of `starts`
random ones on the first stage's tokens.
Sieberling et al., 2024 (arXiv:2410.14649), where attention and MLP of a block may also go one without the other. Generations:
0 is the paper's dropped * kept / 1.5; its other settings are offspring=32, starts=64, 2048 and 32768 tokens, 2 survivors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, ClassVar

import torch

from trimtab.core.card import Card, Claim
from trimtab.core.edits import DropBlock, Edits
from trimtab.core.errors import UsageError
from trimtab.core.kinds import ModelMethod, Seen, Trials
from trimtab.core.knobs import count, text
from trimtab.tensors.evolution import Choices, Course, evolve, swap
from trimtab.tensors.stages import draw_windows, effort, parse_stages, read_by

if TYPE_CHECKING:
    from trimtab.anatomy import Anatomy


@dataclass(frozen=True)
class EvoPressBlocks(ModelMethod):
    card: ClassVar = Card(
        id="evopress_blocks",
        title="EvoPress: Towards Optimal Dynamic Model Compression via Evolutionary Search (depth)",
        paper="arXiv:2410.14649",
        fidelity="variant",
        beside=("shortgpt", "evopress"),
        claims=(
            Claim(
                "beats-block-influence",
                "evopress_blocks(drop=6)",
                "<",
                "shortgpt(drop=6)",
                note="a fifth of the blocks; what is dropped is chosen by a search and by a score",
            ),
        ),
    )
    needs: ClassVar = (Trials,)

    drop: int = count("blocks to remove", 1)
    held_out: int = count("held-out tokens that the last stage reads", 8192)
    starts: int = count("random choices of blocks of which the best is the first parent", 16)
    offspring: int = count("children of a generation", 16)
    generations: int = count("generations; 0 = dropped * kept / 1.5", 0, 0)
    stages: str = text("of every stage but the last: share of the tokens, and survivors", "0.125:2", parse_stages)
    switches: int = count("blocks that a child exchanges, at most", 3)

    @property
    def strengths(self) -> Sequence[float]:
        """None: blocks are left out, not compressed."""
        return ()

    def trials(self, places: Sequence[int], windows: int) -> tuple[int, int]:
        stages = parse_stages(self.stages)
        judged, read = effort(stages, self.offspring, self._generations(len(places)), windows)
        return judged + self.starts, read + self.starts * read_by(stages, 0, windows)

    def rewrite(self, anatomy: "Anatomy", seen: Seen) -> Edits:
        blocks, draw = len(anatomy.blocks), seen.generator
        trials: Trials = seen[Trials]
        if self.drop >= blocks:
            raise UsageError(f"{self.card.id}: the model has {blocks} blocks, drop={self.drop} would leave none; use less")
        stages = parse_stages(self.stages)

        def judge(several: Sequence[Choices], stage: int) -> list[float]:
            read = draw_windows(stages, stage, trials.windows, draw)
            return trials.losses([tuple(True if out else None for out in dropped) for dropped in several], read)

        begun = list(dict.fromkeys(self._random(blocks, draw) for _ in range(self.starts)))
        losses = judge(begun, 0)
        start = begun[losses.index(min(losses))]
        course = Course(self.offspring, self._generations(blocks), (*(survivors for _, survivors in stages), 1))
        best, history = evolve(start, lambda parent: swap(parent, self.switches, draw), judge, course)
        if not (history and isfinite(history[-1])):
            raise ArithmeticError("no candidate could be judged")
        seen.note("loss", history)
        return [DropBlock(block) for block, out in enumerate(best) if out]

    def _generations(self, blocks: int) -> int:
        return self.generations or max(1, round(self.drop * (blocks - self.drop) / 1.5))

    def _random(self, blocks: int, draw: torch.Generator) -> Choices:
        dropped = set(torch.randperm(blocks, generator=draw)[: self.drop].tolist())
        return tuple(int(block in dropped) for block in range(blocks))
