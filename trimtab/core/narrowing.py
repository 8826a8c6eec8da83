"""The kind of training that takes coupled channels away on its way: what it may ask for, and what it is asked for.

A channel that is gone while the model still learns is one that its consumer does not see (`formats/gates.py`); rows and columns
vanish for real when all steps are taken.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from trimtab.core.errors import UsageError
from trimtab.core.knobs import choice, flag, rate
from trimtab.core.places import Coupling, Unit
from trimtab.core.taught import TaughtMethod


@dataclass(frozen=True)
class Separable:
    """Not a statistic but may be needed like one, by what is taught: the couplings that can be narrowed in this model, in forward
    order, and how many numbers the model stores in all."""

    couplings: tuple[Coupling, ...]
    parameters: int


@dataclass(frozen=True)
class NarrowingMethod(TaughtMethod):
    """Takes the units of couplings away until the budget is met. Every coupling keeps one unit at least."""

    needs: ClassVar[tuple[type, ...]] = (Separable,)

    sparsity: float = rate("fraction of the coupled weights removed, model-wide", 0.2, high=0.9)
    of: str = choice("what sparsity is a fraction of: the coupled weights, or the whole model", "coupled", ("coupled", "model"))
    units: str = choice("which units may go", "all", ("all", "neuron", "kv_group"))
    uniform: bool = flag("equal widths in all blocks, which the family's own config describes", False)

    def wanted(self) -> list[Unit]:
        return [unit for unit in Unit if self.units in ("all", unit)]

    def budget(self, found: Separable, open_: Sequence[Coupling]) -> float:
        """How many weights shall go, from the couplings that are open to it. Raises `UsageError` where these have not so many."""
        whole = sum(c.cost * c.units for c in found.couplings) if self.of == "coupled" else found.parameters
        most = sum(c.cost * (c.units - 1) for c in open_)
        if self.sparsity * whole > most:
            raise UsageError(
                f"{self.card.id}: sparsity={self.sparsity} of {whole} weights is more than the {most} that can go, "
                f"{most / whole:.3f} of them; use less"
            )
        return self.sparsity * whole
