"""RSQ: GPTQ on inputs among which the important tokens count more.

The sweep is GPTQ's; its gram is  mean_t r_t x_t x_tᵀ  with one weight r per token and block, for all matrices of the block:
    r = floor + (1 - floor) * (score - least) / (most - least) over the tokens of a window, divided by its mean there.
importance says what the score is. "attention": the attention that a token draws in this block, summed over heads and queries;
"norm": its size as it enters the block; "change": minus the norm of what the block adds to it; "distance": its mean square
distance from the other tokens of the window; "first_half": 1 there and 0 in the second half.
Sung et al., 2025 (arXiv:2503.01820), the authors' code: rotate first (`quarot -> rsq`; theirs also rotates inside of blocks).
Without their count of rare tokens and their calibration text repeated at shifted positions. The first tokens of a window draw
most of the attention; cap takes a quantile for the most, as their code can. Experts see some tokens only: refused.
"""

from dataclasses import dataclass
from typing import ClassVar

from trimtab.core.card import Card, Claim
from trimtab.core.errors import UsageError
from trimtab.core.kinds import Seen
from trimtab.core.knobs import choice, flag, rate
from trimtab.core.places import Site
from trimtab.formats import Dense, Grouped, Masked
from trimtab.formats.swept import SweptGrid
from trimtab.stats import weighed_gram


@dataclass(frozen=True)
class Rsq(SweptGrid):
    card: ClassVar = Card(
        id="rsq",
        title="RSQ: Learning from Important Tokens Leads to Better Quantized LLMs",
        paper="arXiv:2503.01820",
        fidelity="variant",
        beside=("gptq", "quarot"),
        claims=(
            Claim(
                "helps-rotated-gptq-at-3-bit",
                "quarot -> rsq(bits=3, clip=True)",
                "<",
                "quarot -> gptq(bits=3, clip=True)",
                note="the paper has one scale per row",
            ),
            Claim(
                "helps-rotated-gptq-at-2-bit",
                "quarot -> rsq(bits=2, clip=True)",
                "<",
                "quarot -> gptq(bits=2, clip=True)",
            ),
            Claim(
                "attention-beats-the-reverse",
                "quarot -> rsq(bits=3, clip=True)",
                "<",
                "quarot -> rsq(bits=3, clip=True, reverse=True)",
                note="the control: the same spread of weights, given to the least important tokens",
            ),
        ),
    )

    importance: str = choice("what a token counts by", "attention", ("attention", "norm", "change", "distance", "first_half"))
    floor: float = rate("what the least important token of a window counts, the most important being 1", 0.005)
    cap: float = rate("quantile of a window from which on tokens count the same", 1.0)
    reverse: bool = flag("the least important token counts most", False)

    @property
    def needs(self) -> tuple[type, ...]:  # type: ignore[override]
        return (weighed_gram(self.importance, self.floor, self.cap, self.reverse),)

    def fits(self, site: Site) -> None:
        super().fits(site)
        if site.index is not None:
            raise UsageError(f"rsq: which tokens reach {site.name} is not known, so they cannot be weighed; skip the experts")

    def solve(self, weight: Dense | Masked, seen: Seen, site: Site) -> Grouped:
        return self.swept(weight, seen[self.needs[0]], seen)
