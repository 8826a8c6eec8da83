"""What a probe says: one quantity for every block, with its error, and one line of what follows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan

import torch
from torch import Tensor

from trimtab.core.report import Measurement


@dataclass(frozen=True)
class Finding:
    """One quantity, block by block, and one line of what it implies ("" where it only explains another one).

    Every measurement's setting holds its "block", at most one per block; blocks that have no such quantity are left out.
    """

    measurements: tuple[Measurement, ...]
    implies: str = ""

    @classmethod
    def of(cls, name: str, unit: str, values: Tensor, n: int, blocks: Sequence[int] | None = None) -> Finding:
        """From values [blocks, windows]: the mean over windows, which are independent, and its standard error.

        values [blocks] are exact. n: observations behind each block. blocks: which these are, all from 0 if not given.
        """
        table = values.double() if values.ndim > 1 else values.double()[:, None]
        windows = table.shape[1]
        spread = torch.full((len(table),), nan if values.ndim > 1 else 0.0)
        if windows > 1:
            spread = table.std(1) / windows**0.5
        numbers = zip(range(len(table)) if blocks is None else blocks, table.mean(1).tolist(), spread.tolist(), strict=True)
        return cls(tuple(Measurement(name, value, error, n, unit, {"block": block}) for block, value, error in numbers))

    @classmethod
    def columns(cls, rows: Sequence[Sequence[Mapping[str, float]]], about: Mapping[str, tuple[str, int]]) -> dict[str, Finding]:
        """By name, from rows[block][window][name]; a block whose rows lack a name is left out. about: name -> (unit, n)."""
        found = {}
        for name, (unit, n) in about.items():
            having = [block for block, row in enumerate(rows) if name in row[0]]
            values = torch.tensor([[window[name] for window in rows[block]] for block in having], dtype=torch.float64)
            found[name] = cls.of(name, unit, values.reshape(len(having), -1 if having else 0), n, having)
        return found

    def saying(self, implies: str) -> Finding:
        """The same with this line."""
        return replace(self, implies=implies)

    def lowest(self) -> str:
        """The blocks with the smallest values, in words: a tenth of them, at least two."""
        return self._first(1.0)

    def highest(self) -> str:
        """The blocks with the largest values, in words."""
        return self._first(-1.0)

    def _first(self, sign: float) -> str:
        ranked = sorted(self.measurements, key=lambda m: (sign * m.value, m.setting["block"]))
        few = max(2, len(ranked) // 10)
        return ", ".join(str(block) for block in sorted(m.setting["block"] for m in ranked[:few]))
