"""FlightLLM: what decoding a token would cost block by block on a described accelerator, and what each of three ideas is worth.

Products with n of m weights on chains of multipliers, weights in few bits, and activations that never leave the chip: seconds and
joules of every block for one more token after `context` others, once as it is, and without one idea after the other: "unfused"
writes and reads what lies between operations, "dense" also multiplies by what was pruned, "8 bits" also stores every weight in a
byte. Nothing is measured: these are the sums of `core/mapping.py` for the numbers of `core/accelerator.py`, a U280 unless a file
says otherwise; what the paper does not state of it (energies, how chains are cut) is assumed there.
Zeng et al., FPGA 2024 (arXiv:2401.03868), what can be realised in arithmetic. `trimtab map` shows the whole model, prompts, and
for which lengths to compile.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch

from trimtab.core.accelerator import U280, read_accelerator
from trimtab.core.card import Card, Claim
from trimtab.core.kinds import Finding, ProbeMethod, Subject
from trimtab.core.knobs import count, number, text
from trimtab.core.mapping import DENSE, Block, Cost, as_if, block_cost
from trimtab.formats.mapped import mapped
from trimtab.tensors.masks import Pattern

if TYPE_CHECKING:
    from trimtab.anatomy import Anatomy

STORED = "stored"
SPARSE = "flightllm(bits=4.0, pattern='2:4')"


def _described(text: str) -> None:
    """Raises ValueError for what is neither built in nor called a JSON file."""
    if text != U280.name and not text.endswith(".json"):
        raise ValueError(f"an accelerator is {U280.name} or a .json file, got {text!r}")


def _survivors(text: str) -> tuple[int, int] | None:
    """(n, m) of a pattern, None for the stored one. Raises ValueError for what is none."""
    if text == STORED:
        return None
    pattern = Pattern.parse(text)
    return (pattern.n, pattern.m) if pattern.m else DENSE


@dataclass(frozen=True)
class FlightLLM(ProbeMethod):
    card: ClassVar = Card(
        id="flightllm",
        title="FlightLLM: Efficient Large Language Model Inference with a Complete Mapping Flow on FPGAs",
        paper="arXiv:2401.03868",
        fidelity="reconstructed",
        beside=("sensitivity",),
        claims=(
            Claim(
                "three-ideas-save-energy",
                f"{SPARSE}: joules",
                "<",
                f"{SPARSE}: joules, 8 bits",
                metric="finding",
                published="6.0 times the energy efficiency of a V100S, which is no such simulation",
                note="simulated on both sides; 4 bits and 2:4 are taken as given, whatever they do to the answers",
            ),
            Claim(
                "staying-on-chip-saves-time",
                f"{SPARSE}: seconds",
                "<",
                f"{SPARSE}: seconds, unfused",
                metric="finding",
                note="simulated on both sides",
            ),
        ),
    )

    accelerator: str = text("a JSON file that describes it; u280 is built in", U280.name, _described)
    context: int = count("tokens that the new one attends to, itself included", 1024)
    bits: float = number("as if all weights had so many bits; 0 = as they are stored", 0.0, 0.0, 64.0)
    pattern: str = text(
        "as if all weights had this pattern, such as 2:4, or unstructured; stored = as they are", STORED, _survivors
    )

    def measure(self, subject: Subject) -> list[Finding]:
        rows = [_stages(self._block(subject.anatomy, block)) for block in subject.blocks()]
        device = U280 if self.accelerator == U280.name else read_accelerator(Path(self.accelerator))
        costs = [{name: block_cost(one, device, 1, self.context, fused) for name, (one, fused) in row.items()} for row in rows]
        found = [_finding(quantity, name, costs) for quantity in ("seconds", "joules") for name in costs[0]]
        bound = sum(row[""].bound for row in costs) / sum(row[""].seconds for row in costs)
        found[0] = found[0].saying(
            f"on {device.name}, simulated: {bound:.0%} of the least possible time; slowest {found[0].highest()}"
        )
        return found

    def _block(self, anatomy: "Anatomy", block: int) -> Block:
        sites = anatomy.block_sites(block)
        norms = sum(any(site.block == block for site in norm.feeds) for norm in anatomy.norms())
        plain = mapped({site: anatomy.weight(site) for site in sites}, norms, anatomy.sites[0].shape[1])
        return as_if(plain, self.bits or None, _survivors(self.pattern))


def _stages(block: Block) -> dict[str, tuple[Block, bool]]:
    """By what is left out: the block, and whether it is fused."""
    dense = as_if(block, pattern=DENSE)
    return {"": (block, True), ", unfused": (block, False), ", dense": (dense, False), ", 8 bits": (as_if(dense, 8.0), False)}


def _finding(quantity: str, name: str, costs: list[dict[str, Cost]]) -> Finding:
    values = torch.tensor([getattr(row[name], quantity) for row in costs], dtype=torch.float64)
    return Finding.of(quantity + name, "s, simulated" if quantity == "seconds" else "J, simulated", values, 1)
