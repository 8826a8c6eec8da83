"""How differently texts pull at every weight: the diagonal of the empirical Fisher information."""

from torch import Tensor

from trimtab.stats.gradient import Gradient, State


class Fisher:
    """[out, in] float32: mean over windows of (d loss / d weight)^2."""

    on = "gradient"
    start = staticmethod(Gradient.start)
    merge = staticmethod(Gradient.merge)
    finish = staticmethod(Gradient.finish)

    @staticmethod
    def update(state: State, gradient: Tensor) -> State:
        return state[0] + gradient.float().square(), state[1] + 1
