"""Inputs split and merged: a loud channel becomes several quieter ones, and quiet ones that say much the same become one.

The last factor of a chain whose other factors were made for the new channels: what QLLM calls disassembly and assembly.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from trimtab.core.errors import ModelError, UsageError
from trimtab.core.kinds import Layout
from trimtab.formats import checks
from trimtab.formats.container import Container


@dataclass(frozen=True, eq=False, repr=False)
class Reassembly(Container):
    """y[j] = mean over the entries e with target[e] = j of x[source[e]] / (how many entries have that source).

    source, target: [entries] whole numbers, held as int32. Every input below in_ and every output has an entry, so a channel
    that is split in n is seen as n equal ones, and one weight for all members of an output stands for the sum of theirs. Raises
    `UsageError`.
    """

    kind: ClassVar[str] = "reassembly"
    source: Tensor
    target: Tensor
    shape: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        if self.source.ndim != 1 or self.source.shape != self.target.shape or not len(self.source):
            raise UsageError("Reassembly: source and target must be [entries]")
        if not (_is_covering(self.source) and _is_covering(self.target)):
            raise UsageError("Reassembly: source and target must hold every number from 0 to their largest")
        out, in_ = (int(t.max()) + 1 for t in (self.target, self.source))
        self._store(source=self.source.to(torch.int32), target=self.target.to(torch.int32), shape=(out, in_))

    @property
    def share(self) -> Tensor:
        """[entries] float32: how much of its source an entry adds to its target."""
        source, target = self.source.long(), self.target.long()
        return 1 / (source.bincount()[source] * target.bincount()[target]).float()

    def applied(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out], in the dtype of x; added up in float32 for narrower types."""
        wide = x if x.dtype.itemsize >= 4 else x.float()
        parts = wide[..., self.source.long()] * self.share.to(wide.dtype)
        empty = wide.new_zeros(*x.shape[:-1], self.shape[0])
        return empty.index_add(-1, self.target.long(), parts).to(x.dtype)

    def gathered(self, weight: Tensor) -> Tensor:
        """weight [rows, in] for the new channels, [rows, out]: the columns of all members of an output, added up."""
        return weight.new_zeros(len(weight), self.shape[0]).index_add(1, self.target.long(), weight[:, self.source.long()])

    def dense(self) -> Tensor:
        matrix = torch.zeros(self.shape, device=self.source.device)
        return matrix.index_put_((self.target.long(), self.source.long()), self.share, accumulate=True)

    def tensors(self) -> dict[str, Tensor]:
        return {"source": self.source, "target": self.target}

    def spec(self) -> dict[str, Any]:
        return {"kind": self.kind, "shape": list(self.shape), "entries": len(self.source)}

    @classmethod
    def layout(cls, spec: Mapping[str, Any]) -> Layout:
        checks.fields(spec, cls.kind, "entries")
        entries = checks.whole(spec["entries"], cls.kind, "entries", max(checks.shape(spec, cls.kind)))
        return {"source": ((entries,), torch.int32), "target": ((entries,), torch.int32)}

    @classmethod
    def build(cls, spec: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        checks.match(cls.kind, cls.layout(spec), tensors)
        for name, size in zip(("target", "source"), checks.shape(spec, cls.kind), strict=True):
            if not _is_covering(tensors[name]) or int(tensors[name].max()) + 1 != size:
                raise ModelError(f"{cls.kind}: {name} does not hold every number below {size}; the file is damaged")
        return cls(tensors["source"], tensors["target"])


def _is_covering(numbers: Tensor) -> bool:
    """Whether every whole number from 0 to the largest is there."""
    found = torch.unique(numbers.long())
    return not numbers.is_floating_point() and torch.equal(found, torch.arange(len(found), device=numbers.device))
