"""Keys and values in few bits: every token's head, or groups of its channels, as codes on a grid of its own.

    x ~ (code - zero) * scale,   codes of `bits` bits laid end to end, scale in float16, zero in a byte

so that 4 bits over groups of 64 channels take 4.375 bits per number, and 4 over 128 take 4.19.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trimtab.tensors.packing import pack, unpack
from trimtab.tensors.rounding import Grid, fit


@dataclass(frozen=True)
class TokenCodes:
    """packed uint8 [batch, heads, tokens, bytes]; scale float16, zero uint8 [batch, heads, tokens, groups]."""

    packed: Tensor
    scale: Tensor
    zero: Tensor
    bits: int
    group_size: int

    @classmethod
    def of(cls, x: Tensor, bits: int, group_size: int) -> "TokenCodes":
        """x [batch, heads, tokens, width]; bits 2 to 8; group_size divides width. ArithmeticError where x exceeds float16."""
        groups = x.float().reshape(*x.shape[:-1], -1, group_size)
        grid = fit(groups, bits)
        codes = grid.codes(groups).to(torch.uint8).reshape(-1, x.shape[-1])
        packed = pack(codes, bits).view(*x.shape[:-1], -1)
        return cls(packed, grid.scale.squeeze(-1).half(), grid.zero.squeeze(-1).to(torch.uint8), bits, group_size)

    def values(self, dtype: torch.dtype) -> Tensor:
        """[batch, heads, tokens, width] in this dtype."""
        width = self.scale.shape[-1] * self.group_size
        codes = unpack(self.packed.flatten(0, -2), self.bits, width).view(*self.scale.shape, self.group_size)
        grid = Grid(self.scale.float().unsqueeze(-1), self.zero.float().unsqueeze(-1), self.bits)
        return grid.values(codes.float()).flatten(-2).to(dtype)

    def and_then(self, later: "TokenCodes") -> "TokenCodes":
        """Both, along the tokens."""
        packed, scale, zero = (torch.cat(pair, dim=2) for pair in zip(self.parts, later.parts, strict=True))
        return replace(self, packed=packed, scale=scale, zero=zero)

    def rows(self, index: Tensor) -> "TokenCodes":
        """These of the batch."""
        packed, scale, zero = (part[index] for part in self.parts)
        return replace(self, packed=packed, scale=scale, zero=zero)

    def first(self, tokens: int) -> "TokenCodes":
        """The first so many tokens."""
        packed, scale, zero = (part[:, :, :tokens] for part in self.parts)
        return replace(self, packed=packed, scale=scale, zero=zero)

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.packed, self.scale, self.zero

    @property
    def tokens(self) -> int:
        return int(self.packed.shape[2])

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)
