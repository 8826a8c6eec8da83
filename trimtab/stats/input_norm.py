"""Root mean square of every input channel over the calibration tokens."""

from torch import Tensor

from trimtab.stats.channel_mean import ChannelMean, State


class InputNorm(ChannelMean):
    """[in] float32: sqrt(mean_t x[t, i]^2)."""

    @staticmethod
    def update(state: State, x: Tensor) -> State:
        return state[0] + x.float().square().sum(0), state[1] + len(x)

    @staticmethod
    def finish(state: State) -> Tensor:
        return ChannelMean.finish(state).sqrt()
