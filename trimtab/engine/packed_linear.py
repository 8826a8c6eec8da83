"""The module that stands where a linear layer was: packed tensors as ordinary buffers, one product as its forward.

A module and not a tensor subclass, so that `state_dict`, safetensors, `.to()` and the host's loader need no special case:
the tensors of the weight are buffers under their own names, and the weight itself is rebuilt from them when asked for.

Multiplying means unpacking first. In eval mode the unpacked matrices may be kept (`DENSE_CACHE`): faster, at the memory of
the dense model. Only the leaves of a composed weight are kept, never their product, so the result is the same to the last bit
with and without. With `KERNELS` the packed form is multiplied as it is, in eval mode and where there is a kernel for it: that
rounds activations, so it has to be asked for.
"""

import copy
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trimtab import formats, kernels
from trimtab.core.kinds import LinearWeight
from trimtab.formats import forward

DENSE_CACHE = os.environ.get("TRIMTAB_DENSE_CACHE", "1") != "0"
KERNELS = os.environ.get("TRIMTAB_KERNELS", "0") != "0"


@contextmanager
def nothing_kept_unpacked() -> Iterator[None]:
    """Inside, no module keeps unpacked matrices: while a model is being compressed, memory counts more than speed."""
    global DENSE_CACHE
    before, DENSE_CACHE = DENSE_CACHE, False
    try:
        yield
    finally:
        DENSE_CACHE = before


class PackedLinear(nn.Module):
    """y = x @ weight.T + bias, x: [..., in] -> [..., out], with the weight in any format.

    Make one with `of` (from a weight) or `empty` (on the meta device, for a loader to fill).
    """

    def __init__(self, spec: Mapping[str, Any], tensors: Mapping[str, Tensor], bias: Tensor | None):
        super().__init__()
        self.instead_of: type[nn.Module] = nn.Linear  # what stood here, and would again if the matrix became plain
        self.spec = dict(spec)
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias))
        self._built: tuple[tuple[Tensor, ...], LinearWeight] | None = None
        self._cache: dict[tuple[str, torch.dtype], Any] = {}

    @classmethod
    def of(cls, weight: LinearWeight, bias: Tensor | None = None) -> "PackedLinear":
        """Holds this weight. bias: [out] in the model's dtype."""
        tensors = {name: tensor.detach().contiguous() for name, tensor in weight.tensors().items()}
        return cls(weight.spec(), tensors, None if bias is None else bias.detach().clone())

    @classmethod
    def empty(cls, spec: Mapping[str, Any], bias: bool, dtype: torch.dtype) -> "PackedLinear":
        """Shapes and dtypes only, on the meta device. dtype: of the bias."""
        tensors = {name: torch.empty(shape, dtype=kind, device="meta") for name, (shape, kind) in formats.layout(spec).items()}
        return cls(spec, tensors, torch.empty(spec["shape"][0], dtype=dtype, device="meta") if bias else None)

    @property
    def weight_value(self) -> LinearWeight:
        """The weight, on whatever device its buffers are now."""
        tensors = tuple(self._buffers.values())
        # Identity, not equality: `.to` and loaders put new tensors in place, and comparing values would cost a pass.
        if self._built is None or any(a is not b for a, b in zip(tensors, self._built[0], strict=True)):
            self.drop_cache()
            weight = formats.build(self.spec, dict(zip(self._buffers, tensors, strict=True)))
            self._built = (tensors, weight)
        return self._built[1]

    @property
    def out_features(self) -> int:
        return int(self.spec["shape"][0])

    @property
    def in_features(self) -> int:
        return int(self.spec["shape"][1])

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight_value
        if KERNELS and not self.training and kernels.serves(weight):
            return kernels.linear(x, weight, self.bias)
        if DENSE_CACHE and not self.training and not forward.picks(weight, x):
            weight = self._kept("leaves", x.dtype, lambda: with_dense_leaves(weight, x.dtype))
        return forward.linear(x, weight, self.bias)

    def through_last(self, x: Tensor) -> Tensor:
        """What the last factor of a chain, which is applied first, makes of x: [..., in] -> [..., rank]."""
        weight: Any = self.weight_value
        if DENSE_CACHE and not self.training:
            weight = self._kept("leaves", x.dtype, lambda: with_dense_leaves(weight, x.dtype))
        return forward.linear(x, weight.factors[-1])

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """The dense matrix [out, in] in this dtype."""
        weight = self.weight_value
        if DENSE_CACHE and not self.training:
            return self._kept("matrix", dtype, lambda: weight.dense().to(dtype))
        return weight.dense().to(dtype)

    def drop_cache(self) -> None:
        """Forgets what was unpacked. Needed by hand only after writing into a buffer in place."""
        self._cache.clear()
        self._built = None

    def train(self, mode: bool = True) -> "PackedLinear":
        if mode:
            self.drop_cache()
        return super().train(mode)

    def extra_repr(self) -> str:
        return f"{self.spec.get('kind')}, in={self.in_features}, out={self.out_features}, bias={self.bias is not None}"

    def _kept(self, what: str, dtype: torch.dtype, make: Any) -> Any:
        if (what, dtype) not in self._cache:
            # A tensor born in inference mode could never take part in a backward pass later.
            with torch.inference_mode(False), torch.no_grad():
                self._cache = {(what, dtype): make()}
        return self._cache[what, dtype]

    def _apply(self, fn: Any, recurse: bool = True) -> "PackedLinear":
        """Moves the packed tensors but never casts them: float16 scales are data, not activations."""
        self.drop_cache()
        before = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self.get_buffer(name)
            if new.dtype != old.dtype:
                self._buffers[name] = old.to(new.device)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.drop_cache()
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}, "_built": None}


class PackedStack(nn.Module):
    """Stands where a 3-D parameter of experts was: `stack[e]` is expert e's matrix as the eager loop over experts wants it.

    [out, in], or [in, out] for the model families that store experts transposed. Experts may differ in format.
    """

    dtype_witness: Tensor

    def __init__(self, experts: Iterable[PackedLinear], dtype: torch.dtype, transposed: bool = False):
        super().__init__()
        self.transposed = transposed
        for number, expert in enumerate(experts):
            self.add_module(str(number), expert)
        # Empty, and there only to follow the model's `.to(dtype)`: an index has no dtype to answer in.
        self.register_buffer("dtype_witness", torch.empty(0, dtype=dtype), persistent=False)

    @classmethod
    def empty(cls, spec: Mapping[str, Any], dtype: torch.dtype) -> "PackedStack":
        """From `spec` of another stack, on the meta device."""
        experts = [PackedLinear.empty(expert, False, dtype) for expert in spec["experts"]]
        with torch.device("meta"):
            return cls(experts, dtype, spec["transposed"])

    @property
    def spec(self) -> dict[str, Any]:
        return {"kind": "stack", "transposed": self.transposed, "experts": [e.spec for e in self.experts]}

    @property
    def experts(self) -> list[PackedLinear]:
        return [m for m in self.children() if isinstance(m, PackedLinear)]

    @property
    def weight_values(self) -> list[LinearWeight]:
        return [expert.weight_value for expert in self.experts]

    def __len__(self) -> int:
        return len(self._modules)

    def __getitem__(self, expert: int | Tensor) -> Tensor:
        found = self._modules.get(str(int(expert)))
        if not isinstance(found, PackedLinear):
            raise IndexError(f"there is no expert {int(expert)} among {len(self)}")
        matrix = found.matrix(self.dtype_witness.dtype)
        return matrix.T if self.transposed else matrix


class DenseLeaf:
    """A leaf of a weight, unpacked once and kept in the dtype of the activations. Only ever multiplied, never stored."""

    kind = "dense_leaf"

    def __init__(self, matrix: Tensor, bits: float):
        self._matrix, self.bits = matrix, bits

    @property
    def shape(self) -> tuple[int, int]:
        return int(self._matrix.shape[0]), int(self._matrix.shape[1])

    def dense(self) -> Tensor:
        return self._matrix


def with_dense_leaves(weight: LinearWeight, dtype: torch.dtype) -> Any:
    """The same composition (sum, chain, rotation) over leaves that are unpacked already."""
    whole = formats.BlockDiagonal | formats.Kronecker | formats.Permutation | formats.Reassembly
    if isinstance(weight, whole) or forward.is_short(weight):
        return weight  # multiplied block by block, factor by factor, or not at all; unpacked it would only be larger
    parts = _parts(weight)
    if not parts:
        return DenseLeaf(weight.dense().to(dtype), weight.bits)
    # Past the constructor, which rightly takes nothing but weights that can be stored.
    made = copy.copy(weight)
    for name, value in parts.items():
        several = isinstance(value, tuple)
        object.__setattr__(
            made, name, tuple(with_dense_leaves(v, dtype) for v in value) if several else with_dense_leaves(value, dtype)
        )
    return made


def _parts(weight: LinearWeight) -> dict[str, Any]:
    """The fields of a composed weight that are weights, or tuples of them."""
    found: dict[str, Any] = {}
    names = [field.name for field in fields(weight)] if is_dataclass(weight) else []
    for name in names:
        value = getattr(weight, name)
        if isinstance(value, LinearWeight) or (
            isinstance(value, tuple) and value and all(isinstance(v, LinearWeight) for v in value)
        ):
            found[name] = value
    return found
