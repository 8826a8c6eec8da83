"""COMET: the few channels that are loud are gathered in blocks with 8 bits, all other blocks of a token take 4.

Channels are ordered by the largest activation that was seen, the loudest first, and cut into blocks of `group_size`. Blocks that
hold a channel louder than `outlier` times the median one are rounded to 8 bits, the others to `input_bits`, with a scale for
every token and block; weights in the same order, on grids of the same blocks, swept as GPTQ does it.
Liu et al. (arXiv:2410.12168), the part that decides about numbers; its keys and values are a cache's business. Reconstructed:
how much louder an outlier is. The order is kept with each matrix and applied to its inputs, where the paper folds it into the
matrices before.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from trimtab.core.card import Card, Claim
from trimtab.core.errors import UsageError
from trimtab.core.kinds import Seen
from trimtab.core.knobs import count, number
from trimtab.core.places import Role, Site
from trimtab.formats import Activations, Chain, Dense, Permutation
from trimtab.formats.swept import SweptGrid
from trimtab.stats import AbsMax, Gram


@dataclass(frozen=True)
class Comet(SweptGrid):
    card: ClassVar = Card(
        id="comet",
        title="COMET: Towards Practical W4A4KV4 LLMs Serving",
        paper="arXiv:2410.12168",
        fidelity="reconstructed",
        beside=("act_quant", "gptq", "flatquant"),
        claims=(
            Claim(
                "beats-four-bits-for-all-channels",
                "comet(group_size=32)",
                "<",
                "gptq(bits=4, group_size=32) -> act_quant(bits=4, group_size=32)",
                note="blocks with loud channels take 8 bits; the receipt says how many",
                model="asset:own-5m-outliers",
            ),
        ),
    )
    needs: ClassVar = (Gram, AbsMax)
    takes: ClassVar = (Dense,)
    gives: ClassVar = (Chain,)

    input_bits: int = count("bits per activation of the blocks that are not loud", 4, 2, 8)
    outlier: float = number("how many times louder than the median channel one is that asks for 8 bits", 5.0, 1.0)

    def fits(self, site: Site) -> None:
        if site.index is not None or site.role is Role.EMBED:
            raise UsageError(f"comet orders what layers are given; {site.name} is no layer of its own, skip it")
        super().fits(site)

    def promises(self, site: Site, spec: Mapping[str, Any]) -> None:
        return None

    def solve(self, weight: Dense, seen: Seen, site: Site) -> Chain:
        loudness, group_size = seen[AbsMax], self.group_size or site.shape[1]
        order = loudness.argsort(descending=True, stable=True)
        outliers = int((loudness > self.outlier * loudness.median()).sum())
        loud = -(-outliers // group_size)
        seen.note("loud_blocks", loud / (site.shape[1] // group_size))
        swept = self.swept(Dense(weight.dense()[:, order]), seen[Gram][order][:, order], seen)
        return Chain((Activations(swept, self.input_bits, group_size, loud=loud), Permutation(order)))
