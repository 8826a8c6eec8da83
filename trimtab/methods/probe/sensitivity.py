"""Sensitivity: what rounding one block alone does to the predictions.

All matrices of the block but routers are rounded to the nearest point of a plain grid (range = min .. max per row or group);
"output error" is |y' - y|^2 / |y - x|^2 over the tokens, the change against what the block adds to the stream, and KL is that of
the final predictions, the other blocks untouched. Blocks are judged alone: the errors of all together need not add up.
HAWQ (arXiv:1905.03696) estimates the like from second derivatives, to say which blocks deserve more bits; here it is measured.
The first token is left out.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import Finding, ProbeMethod, Subject
from trimtab.core.knobs import count
from trimtab.core.places import Role, Site
from trimtab.formats import check_group_size
from trimtab.tensors.divergence import kl, spread_positions
from trimtab.tensors.rounding import fit

TINY = 1e-300


@dataclass(frozen=True)
class Sensitivity(ProbeMethod):
    card: ClassVar = Card(
        id="sensitivity",
        title="Sensitivity of each block to rounding",
        paper="folklore",
        fidelity="variant",
        beside=("rtn", "layerwise_quant"),
        claims=(
            Claim(
                "early-blocks-are-more-sensitive",
                "sensitivity: KL, first half",
                ">",
                "sensitivity: KL, second half",
                metric="finding",
                note="what goes wrong early passes through all blocks behind it; block i of either half",
            ),
            Claim(
                "a-bit-less-moves-predictions-more",
                "sensitivity(bits=3): KL",
                ">",
                "sensitivity: KL",
                metric="finding",
                note="3 bits against 4, the same blocks; says that single blocks can be told apart from noise",
            ),
        ),
    )

    bits: int = count("bits per code", 4, 2, 12)
    group_size: int = count("inputs that share a scale; 0 = the whole row", 0, 0)
    positions: int = count("positions per window whose predictions are compared", 64)

    def measure(self, subject: Subject) -> list[Finding]:
        windows, length = range(subject.windows), len(subject.hidden(0, 0))
        rows = []
        for block in subject.blocks():
            rounded = self._rounded(subject, block)
            rows.append([self._look(subject, block, window, rounded) for window in windows])
        judged = len(windows) * len(spread_positions(length, self.positions))
        found = Finding.columns(rows, {"KL": ("nats/token", judged), "output error": ("relative", len(windows) * (length - 1))})
        most = found["KL"]
        return [most.saying(f"give more bits to blocks {most.highest()}; fewer to {most.lowest()}"), found["output error"]]

    def _rounded(self, subject: Subject, block: int) -> dict[Site, Tensor]:
        """Raises `UsageError` where the groups do not fit the rows."""
        chosen = [site for site in subject.anatomy.block_sites(block) if site.role is not Role.ROUTER]
        return {site: self.nearest(subject.anatomy.weight(site).dense(), site) for site in chosen}

    def nearest(self, weight: Tensor, site: Site) -> Tensor:
        """The weight [out, in] on its grid."""
        out, inputs = site.shape
        group_size = self.group_size or inputs
        check_group_size(inputs, group_size, site.name)
        groups = weight.reshape(out, -1, group_size)
        return fit(groups, self.bits).nearest(groups).reshape(out, inputs)

    def _look(self, subject: Subject, block: int, window: int, rounded: dict[Site, Tensor]) -> dict[str, float]:
        entering, leaving = subject.hidden(block, window), subject.hidden(block + 1, window)
        at = spread_positions(len(entering), self.positions).to(entering.device)
        changed = subject.drive(block, window, entering, rounded)
        final = subject.hidden(len(subject.anatomy.blocks), window)[at]
        error = (changed - leaving)[1:].double().square().sum()
        added = (leaving - entering)[1:].double().square().sum()
        moved = kl(subject.logits(final), subject.logits(subject.onward(block + 1, window, changed)[at]))
        return {"KL": float(moved.mean()), "output error": float(error / added.clamp(min=TINY))}
