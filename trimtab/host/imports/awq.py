"""Checkpoints of AutoAWQ and GPTQModel in the layout `gemm`: see `host.export.awq`."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from trimtab.core.errors import ModelError
from trimtab.core.kinds import LinearWeight
from trimtab.host.export.awq import BITS, ORDER
from trimtab.host.imports.parts import Shape, expect, integers, rows, whole
from trimtab.tensors.words import unpack_words, word_count

VERSION = "gemm"


class Awq:
    """described: the `quantization_config`. Raises `ModelError` for a version or bits that are not known."""

    mark = "qweight"
    parts = ("qweight", "qzeros", "scales")

    def __init__(self, described: Mapping[str, Any]):
        version = described.get("version") or described.get("format") or VERSION
        if not isinstance(version, str) or version.lower() != VERSION or described.get("backend") == "llm-awq":
            raise ModelError(f"AWQ checkpoints of the layout {version!r:.40} are not read; known is {VERSION}")
        whole(described, "bits", (BITS,), described.get("w_bit", BITS))

    def weight(self, path: str, shape: Shape, found: Mapping[str, Tensor]) -> LinearWeight:
        """Raises ValueError for parts that do not belong together."""
        out, in_ = shape
        width = word_count(out, BITS)
        if out % len(ORDER):
            raise ValueError(f"{out} outputs are no multiple of {len(ORDER)}")
        words = expect(found, "qweight", (in_, width), torch.int32)
        scale = rows(found, "scales", out)
        count = len(scale)
        zeros = expect(found, "qzeros", (count, width), torch.int32)
        if in_ % count:
            raise ValueError(f"{count} groups do not divide {in_} inputs")
        codes, zero = (_in_order(unpack_words(part, BITS, out)) for part in (words, zeros))
        return integers(codes, scale.T.contiguous(), zero, BITS)


def _in_order(numbers: Tensor) -> Tensor:
    """uint8 [rows, out] as it lies in words -> [out, rows]."""
    back = torch.tensor(ORDER).argsort()
    return numbers.view(len(numbers), -1, len(ORDER))[..., back].reshape(len(numbers), -1).T.contiguous()
