"""What each input of a matrix adds to those after it: the part of the gram that an optimal-brain sweep divides errors by."""

import torch
from torch import Tensor

from trimtab.stats.gram import Gram, State
from trimtab.tensors.spd import cholesky

DAMPING = 0.01


class Pivots:
    """[in] float64: 1 / diag(U) with inverse(damped gram) = Uᵀ U, i.e. the norm of what later inputs cannot explain.

    The damping is 0.01 of the mean diagonal. An input that saw no token has 0. Raises ArithmeticError as `spd.cholesky` does.
    """

    on = "input"
    start = staticmethod(Gram.start)
    update = staticmethod(Gram.update)
    merge = staticmethod(Gram.merge)

    @staticmethod
    def finish(state: State) -> Tensor:
        gram = Gram.finish(state)
        if not bool(gram.any()):
            return torch.zeros(len(gram), dtype=torch.float64, device=gram.device)
        factor, _ = cholesky(gram.flip(0, 1), DAMPING)
        return factor.diagonal().flip(0)
