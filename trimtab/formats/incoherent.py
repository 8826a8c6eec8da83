"""Weights turned on both sides, quantized in an optimal-brain sweep, and turned back where they are used: QuIP and its kin.

W = R_out V R_inᵀ, each R random signs followed by a Hadamard transform. No entry of V stands out, nor any input of the turned
gram R_inᵀ gram R_in, so one grid with one scale serves all. The sweep is QuIP's LDLQ: with gram = (I + F) D (I + F)ᵀ, F strictly
upper triangular, column k is rounded after  (V - rounded V) F_k  was added to it, V being that before the sweep.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from trimtab.core.kinds import LinearMethod, LinearWeight, Seen
from trimtab.core.knobs import rate
from trimtab.core.places import Site
from trimtab.formats.dense import Dense
from trimtab.formats.lowrank import Chain
from trimtab.formats.rotated import Rotated
from trimtab.formats.rotation import Rotation
from trimtab.tensors.columns import prepared
from trimtab.tensors.hadamard import largest_block, transform


@dataclass(frozen=True)
class Incoherent(LinearMethod):
    """The knob of such a method, its promises, and `turned`, which its `solve` is made of."""

    takes: ClassVar = (Dense,)
    gives: ClassVar = (Chain,)

    damping: float = rate("added to the gram, as a fraction of its mean diagonal", 0.01)

    @abstractmethod
    def held(self, shape: tuple[int, int]) -> dict[str, Any]:
        """The spec of what the turned matrix [out, in] will be stored in."""

    def promises(self, site: Site, spec: Mapping[str, Any]) -> dict[str, Any]:
        out, in_ = site.shape
        shape, kind = [out, in_], Rotation.kind
        left = {"kind": kind, "shape": [out, out], "block": largest_block(out)}
        parts = [self.held(site.shape)]
        right = {"kind": Rotated.kind, "shape": shape, "block": largest_block(in_), "signs": True, "parts": parts}
        return {"kind": Chain.kind, "shape": shape, "parts": [left, right]}

    def turned(self, weight: Dense, gram: Tensor, seen: Seen, solve: Callable[[Tensor, Tensor], LinearWeight]) -> Chain:
        """solve: what is stored for the turned matrix [out, in] float32, swept with U [in, in] float32 of the turned gram."""
        matrix = weight.dense()
        out, in_ = largest_block(len(matrix)), largest_block(len(gram))
        left = _signs(len(matrix), seen.generator, matrix.device)
        right, upper, used = seen.once((Incoherent, self.damping), partial(self._prepared, gram, in_, seen))
        seen.note("damping", used)
        inner = solve(transform(transform(matrix, in_, right).T, out, left).T.contiguous(), upper)
        return Chain((Rotation(left, out), Rotated(inner, in_, right)))

    def _prepared(self, gram: Tensor, block: int, seen: Seen) -> tuple[Tensor, Tensor, float]:
        """What all matrices with this input share: signs [in], U [in, in] of the turned gram, the damping used."""
        signs = _signs(len(gram), seen.generator, gram.device)
        turned = transform(transform(gram.double(), block, signs).T, block, signs)
        _, upper, used = prepared(turned, False, self.damping)
        return signs, upper, used


def _signs(width: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """[width] int8 of +-1."""
    drawn = torch.randint(0, 2, (width,), generator=generator, dtype=torch.int8)
    return (2 * drawn - 1).to(device)
