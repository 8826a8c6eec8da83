"""What a learner may do beside learning a matrix: change what the matrix is given."""

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Feeds(Protocol):
    """A second capability of a `Learner`, for what turns or rounds its inputs: y = feed(x) fed()ᵀ while it learns.

    At progress 1.0 that is what `result()` answers when it is applied. `matrix()` stays the matrix as a whole, without rounding.
    """

    def feed(self, x: Tensor) -> Tensor: ...  # [..., in] -> [..., in]

    def fed(self) -> Tensor: ...  # [out, in] float32, through which gradients flow
