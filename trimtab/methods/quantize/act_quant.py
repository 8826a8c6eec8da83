"""ActQuant: what a matrix is given is rounded too, every token as it comes.

    y = W round(x),  round(x) = s clamp(round(x / s), -2^(b-1), 2^(b-1) - 1),  s = clip max|x| / (2^(b-1) - 1),

one s for every token, or for every group of its channels; W is what stands there, rounded already or not. No data. So W4A4 is
`gptq(bits=4) -> act_quant(bits=4)`, and what makes activations easier to round (smoothquant, quarot) goes before both.
The dynamic rounding that the papers of this field share (SmoothQuant, QuaRot), symmetric as there. Simulated exactly: the codes
are multiplied as the numbers they stand for, which is what integer arithmetic gives up to the rounding of sums; nothing is
faster. Matrices of experts, and embeddings, are not multiplied with activations here and are refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from trimtab.core.card import Card
from trimtab.core.kinds import LinearMethod, LinearWeight, Seen
from trimtab.core.knobs import count, rate
from trimtab.core.places import Site
from trimtab.formats import Activations, check_group_size
from trimtab.formats.activations import activations_spec, check_inputs


@dataclass(frozen=True)
class ActQuant(LinearMethod):
    card: ClassVar = Card(
        id="act_quant",
        title="Dynamic rounding of activations, token by token",
        paper="folklore; defined as the baseline in arXiv:2211.10438",
        fidelity="exact",
        beside=("smoothquant", "quarot", "flatquant"),
        baseline=True,
    )
    takes: ClassVar = (LinearWeight,)
    gives: ClassVar = (Activations,)

    bits: int = count("bits per activation", 8, 2, 8)
    group_size: int = count("channels that share a scale; 0 = all of a token", 0, 0)
    clip: float = rate("the part of the largest number that the grid covers", 1.0, low=0.1)

    def fits(self, site: Site) -> None:
        check_inputs(self.card.id, site)
        check_group_size(site.shape[1], self.group_size or site.shape[1], site.name)

    def promises(self, site: Site, spec: Mapping[str, Any]) -> dict[str, Any]:
        inner = spec["parts"][0] if spec["kind"] == Activations.kind else spec
        return activations_spec(inner, self.bits, self.group_size, self.clip)

    def solve(self, weight: LinearWeight, seen: Seen, site: Site) -> Activations:
        inner = weight.inner if isinstance(weight, Activations) else weight
        return Activations(inner, self.bits, self.group_size or site.shape[1], self.clip)
