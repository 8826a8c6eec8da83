"""Checkpoints of GPTQModel and AutoGPTQ: see `host.export.gptq` for the layout.

The first version of the layout stores zero points less one. That one is added word by word with 2, 4 and 8 bits, as GPTQModel
does: it is the inverse of how GPTQModel takes it away, also where a zero point of 0 borrowed from its neighbour. Inputs whose
groups are not neighbours (`desc_act`) have no place in `Grouped`; such a matrix becomes float32.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from trimtab.core.errors import ModelError
from trimtab.core.kinds import LinearWeight
from trimtab.host.imports.parts import Shape, expect, integers, matched, rows, whole
from trimtab.tensors.words import unpack_words, word_count

BITS = (2, 3, 4, 8)
VERSIONS = ("gptq", "gptq_v2")


class Gptq:
    """described: the `quantization_config`. Raises `ModelError` for a version or bits that are not known."""

    mark = "qweight"
    parts = ("qweight", "qzeros", "scales", "g_idx")

    def __init__(self, described: Mapping[str, Any]):
        version = described.get("checkpoint_format") or described.get("format") or "gptq"
        if version not in VERSIONS:
            raise ModelError(f"GPTQ checkpoints of the format {version!r:.40} are not read; known are {', '.join(VERSIONS)}")
        if described.get("planar") or described.get("pack_dtype") not in (None, "int32"):
            raise ModelError("GPTQ checkpoints are read where codes lie in int32 words one after the other; this one differs")
        self.one_less = version == "gptq"
        self.bits = whole(described, "bits", BITS)
        self.own = _own_bits(described.get("dynamic") or {})

    def weight(self, path: str, shape: Shape, found: Mapping[str, Tensor]) -> LinearWeight:
        """Raises ValueError for parts that do not belong together."""
        out, in_ = shape
        bits = next((own for expression, own in self.own if expression.match(path)), self.bits)
        words = expect(found, "qweight", (word_count(in_, bits), out), torch.int32)
        scale = rows(found, "scales", out)
        count = len(scale)
        zeros = expect(found, "qzeros", (count, word_count(out, bits)), torch.int32)
        groups = expect(found, "g_idx", (in_,), torch.int32, torch.int64) if "g_idx" in found else None
        if groups is None and in_ % count:
            raise ValueError(f"{count} groups do not divide {in_} inputs")
        if groups is not None and not 0 <= int(groups.min()) <= int(groups.max()) < count:
            raise ValueError(f"g_idx goes up to {int(groups.max())} of {count} groups")
        codes = unpack_words(words.T.contiguous(), bits, in_)
        zero = self._zeros(zeros, bits, out)
        return integers(codes, scale.T.contiguous(), zero.T.contiguous(), bits, groups)

    def _zeros(self, words: Tensor, bits: int, out: int) -> Tensor:
        """uint8 [groups, out]."""
        if not self.one_less:
            return unpack_words(words, bits, out)
        if bits == 3:
            return unpack_words(words, bits, out) + 1
        ones = sum(1 << place for place in range(0, 32, bits))
        raised = (words.long() + ones) & 0xFFFFFFFF
        return unpack_words(torch.where(raised >= 1 << 31, raised - (1 << 32), raised).to(torch.int32), bits, out)


def _own_bits(dynamic: Any) -> list[tuple[re.Pattern[str], int]]:
    """(expression for paths, bits) of matrices that differ from the rest."""
    if not isinstance(dynamic, Mapping):
        raise ModelError("quantization_config: dynamic is no mapping")
    found = []
    for expression, own in dynamic.items():
        if expression.startswith("-:"):
            continue  # plain, as the files show
        plain = expression.removeprefix("+:")
        if isinstance(own, Mapping) and "bits" in own:
            found.append((matched(plain), whole(own, "bits", BITS)))
    return found
