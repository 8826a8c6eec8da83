"""EvoPress: evolution over which matrix gets which level, judged by what the whole model then says.

loss = mean_t KL(model as it is || model with the candidate), on held-out tokens.
A child is its parent with min(U{1..k}, U{1..k}) level switches: one place moves to a neighbouring level, others pay for it, and
the total cost stays to the last unit.
Selection in stages as in `tensors.evolution`; a stage reads windows of its own, drawn anew, but the last one all of them.
Sieberling et al., 2024 (arXiv:2410.14649). Here levels are values of the knob and not equal numbers of weights, so that matrices
of different size trade several moves for one; a level's matrices come from one compression of the whole model at that level
(each shown what that model gives), and the chosen mixture is compressed anew in one sweep, each matrix shown what it will be
given. Defaults are for small models: the paper's are offspring=64, generations=400, stages of 2048, 16384 and 65536 tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, ClassVar

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import Candidate, Seen, Storage, Trials
from trimtab.core.knobs import count, text
from trimtab.core.places import Site
from trimtab.formats.leveled import Ladder, Leveled
from trimtab.tensors.evolution import Choices, Course, evolve, exchange
from trimtab.tensors.stages import draw_windows, effort, parse_stages

SHORT = "held_out=1024, generations=100, stages='0.25:4,0.5:2'"  # of claims: half an hour for 135 M on one core


@dataclass(frozen=True)
class EvoPress(Leveled):
    card: ClassVar = Card(
        id="evopress",
        title="EvoPress: Towards Optimal Dynamic Model Compression via Evolutionary Search",
        paper="arXiv:2410.14649",
        fidelity="variant",
        beside=("gptq", "sparsegpt", "owl", "rd_prune", "sv_nup", "uniform"),
        claims=(
            Claim(
                "beats-uniform-sparsity",
                f"sparsegpt by evopress(levels='sparsity=0.4,0.5,0.6,0.7,0.8', mean=0.6, {SHORT})",
                "<",
                "sparsegpt(sparsity=0.6)",
            ),
            Claim(
                "beats-owl",
                f"sparsegpt by evopress(levels='sparsity=0.4,0.5,0.6,0.7,0.8', mean=0.6, {SHORT})",
                "<",
                "sparsegpt by owl(sparsity=0.6)",
            ),
            Claim(
                "beats-uniform-bits",
                f"gptq(clip=True) by evopress(levels='bits=2,3,4', mean=3, {SHORT})",
                "<",
                "gptq(bits=3, clip=True)",
                note="the same bytes on both sides",
            ),
        ),
    )
    needs: ClassVar = (Trials, Storage)

    held_out: int = count("held-out tokens that the last stage reads", 8192)
    offspring: int = count("children of a generation", 16)
    generations: int = count("generations", 40)
    stages: str = text("of every stage but the last: share of the tokens, and survivors", "0.125:4,0.5:2", parse_stages)
    switches: int = count("level switches of a child, at most", 3)

    def trials(self, places: Sequence[Site], windows: int) -> tuple[int, int]:
        stages = parse_stages(self.stages)
        return effort(stages, self.offspring, self.generations, windows)

    def allocate(self, sites: Sequence[Site], seen: Seen) -> dict[Site, Any]:
        ladder, draw = self.ladder(sites, seen[Storage]), seen.generator
        trials: Trials = seen[Trials]
        stages = parse_stages(self.stages)

        def judge(several: Sequence[Choices], stage: int) -> list[float]:
            read = draw_windows(stages, stage, trials.windows, draw)
            return trials.losses([self._candidate(sites, ladder, choices) for choices in several], read)

        course = Course(self.offspring, self.generations, (*(survivors for _, survivors in stages), 1))
        begun = judge([ladder.start], len(stages))[0]
        best, history = evolve(ladder.start, lambda p: exchange(p, ladder.costs, self.switches, draw), judge, course)
        seen.note("start", begun)
        seen.note("best", reached := history[-1] if history else begun)
        if not isfinite(reached):
            raise ArithmeticError("no candidate could be judged")
        return self.chosen(ladder, best)

    def _candidate(self, sites: Sequence[Site], ladder: Ladder, choices: Choices) -> Candidate:
        levels = self.chosen(ladder, choices)
        return tuple(levels[site] for site in sites)
