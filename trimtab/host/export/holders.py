"""Tensors of another format where packed matrices were, so that transformers writes them into its files like any other."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from trimtab.engine.packed_linear import PackedLinear


class Holder(nn.Module):
    """Tensors under the names that a format gives them; it computes nothing."""

    def __init__(self, held: Mapping[str, Tensor], bias: nn.Parameter | None):
        super().__init__()
        for name, tensor in held.items():
            self.register_buffer(name, tensor)
        self.register_parameter("bias", bias)

    def _apply(self, fn: Any, recurse: bool = True) -> "Holder":
        """Casting the model casts the bias and leaves what is packed as it is."""
        held = dict(self._buffers)
        super()._apply(fn, recurse)
        self._buffers.update(held)
        return self


def exchange(model: nn.Module, held: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Puts a `Holder` at every path of a packed matrix in `held`."""
    for path, tensors in held.items():
        module = model.get_submodule(path)
        assert isinstance(module, PackedLinear), "only packed matrices are exchanged"
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, Holder(tensors, module.bias))
