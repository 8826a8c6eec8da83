"""Additive vector codebooks: runs of `dim` inputs are replaced by the sum of one entry from each codebook.

dim = 1 with one codebook is a scalar palette (k-means, NormalFloat); dim = 8 with several is the additive quantization of
AQLM. Cost: books * ceil(log2 entries) / dim, the codebooks themselves, and 16 / group_size where there are scales.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from trimtab.core.errors import ModelError, UsageError
from trimtab.core.kinds import Layout
from trimtab.formats import checks
from trimtab.formats.container import Container
from trimtab.formats.grouped import check_group_size
from trimtab.tensors.packing import pack, packed_width, unpack

MOST_BOOKS = 64


@dataclass(frozen=True, eq=False, init=False, repr=False)
class Codebook(Container):
    """w[o, v * dim + d] = scale[o, g] * (codebook[0, codes[0, o, v], d] + codebook[1, codes[1, o, v], d] + ...).

    Summed in float32 in this order, then scaled; g is the group of `group_size` inputs that the weight lies in, and scale
    None means 1. Made from codes uint8 [books, out, in / dim], codebook float16 [books, entries, dim] with 2 to 256
    entries, scale float16 [out, groups] together with its group_size. Raises `UsageError`.
    """

    kind: ClassVar[str] = "codebook"
    packed: Tensor
    codebook: Tensor
    scale: Tensor | None
    shape: tuple[int, int]
    group_size: int | None

    def __init__(self, codes: Tensor, codebook: Tensor, scale: Tensor | None = None, group_size: int | None = None):
        if codes.ndim != 3 or codebook.ndim != 3 or not codes.numel() or not codebook.numel():
            raise UsageError(
                f"Codebook: codes must be [books, out, in / dim] and codebook [books, entries, dim], "
                f"got {list(codes.shape)} and {list(codebook.shape)}"
            )
        books, entries, dim = codebook.shape
        out, in_ = shape = int(codes.shape[1]), int(codes.shape[2]) * int(dim)
        if not (2 <= entries <= 256 and books <= MOST_BOOKS):
            raise UsageError(
                f"Codebook: at most {MOST_BOOKS} codebooks of 2 to 256 entries, got {books} of {entries}; "
                "a larger alphabet is a sum of several codebooks"
            )
        checks.expect("Codebook", "codes", codes, (books, out, codes.shape[2]), torch.uint8)
        checks.expect("Codebook", "codebook", codebook, (books, entries, dim), torch.float16)
        _in_range("Codebook", codes, entries, UsageError)
        if (scale is None) != (group_size is None):
            raise UsageError("Codebook: scale and group_size belong together; give both or neither")
        if scale is not None and group_size is not None:
            check_group_size(in_, group_size, "the matrix")
            checks.expect("Codebook", "scale", scale, (out, in_ // group_size), torch.float16)
        checks.finite("Codebook", codebook=codebook, scale=scale)
        packed = pack(codes.reshape(books * out, -1), _bits(entries)).view(books, out, -1)
        self._store(packed=packed, codebook=codebook, scale=scale, shape=shape, group_size=group_size)

    @property
    def codes(self) -> Tensor:
        """uint8 [books, out, in / dim]."""
        _, entries, dim = self.codebook.shape
        return _codes(self.packed, entries, self.shape[1] // dim)

    def dense(self) -> Tensor:
        codes, entries = self.codes.long(), self.codebook.float()
        total = entries[0][codes[0]]  # [out, in / dim, dim]
        for book in range(1, len(codes)):
            total = total + entries[book][codes[book]]
        if self.scale is not None:
            total = total.view(self.shape[0], self.scale.shape[1], -1) * self.scale.float().unsqueeze(-1)
        return total.view(self.shape)

    def tensors(self) -> dict[str, Tensor]:
        scale = {} if self.scale is None else {"scale": self.scale}
        return {"codes": self.packed, "codebook": self.codebook, **scale}

    def spec(self) -> dict[str, Any]:
        books, entries, dim = self.codebook.shape
        return {
            "kind": self.kind,
            "shape": list(self.shape),
            "books": books,
            "entries": entries,
            "dim": dim,
            "group_size": self.group_size,
        }

    @classmethod
    def layout(cls, spec: Mapping[str, Any]) -> Layout:
        checks.fields(spec, cls.kind, "books", "entries", "dim", "group_size")
        out, in_ = checks.shape(spec, cls.kind)
        books = checks.whole(spec["books"], cls.kind, "books", 1, MOST_BOOKS)
        entries = checks.whole(spec["entries"], cls.kind, "entries", 2, 256)
        dim = checks.whole(spec["dim"], cls.kind, "dim")
        vectors = checks.divides(dim, in_, cls.kind, "dim")
        made: Layout = {
            "codes": ((books, out, packed_width(vectors, _bits(entries))), torch.uint8),
            "codebook": ((books, entries, dim), torch.float16),
        }
        if spec["group_size"] is not None:
            group_size = checks.whole(spec["group_size"], cls.kind, "group_size")
            made["scale"] = ((out, checks.divides(group_size, in_, cls.kind, "group_size")), torch.float16)
        return made

    @classmethod
    def build(cls, spec: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        checks.match(cls.kind, cls.layout(spec), tensors)
        checks.finite(cls.kind, ModelError, codebook=tensors["codebook"], scale=tensors.get("scale"))
        shape = checks.shape(spec, cls.kind)
        codes = _codes(tensors["codes"], spec["entries"], shape[1] // spec["dim"])
        _in_range(cls.kind, codes, spec["entries"], ModelError)
        return cls._restore(
            packed=tensors["codes"],
            codebook=tensors["codebook"],
            scale=tensors.get("scale"),
            shape=shape,
            group_size=spec["group_size"],
        )


def _bits(entries: int) -> int:
    return (entries - 1).bit_length()


def _codes(packed: Tensor, entries: int, vectors: int) -> Tensor:
    books, out, width = packed.shape
    return unpack(packed.reshape(books * out, width), _bits(entries), vectors).view(books, out, vectors)


def _in_range(kind: str, codes: Tensor, entries: int, error: type[UsageError]) -> None:
    if int(codes.max()) >= entries:
        raise error(f"{kind}: tensor 'codes' goes up to {int(codes.max())}; the codebook has {entries} entries")
