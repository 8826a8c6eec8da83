"""How loud every input channel is on average."""

from torch import Tensor

from trimtab.stats.channel_mean import ChannelMean, State


class AbsMean(ChannelMean):
    """[in] float32: mean_t |x[t, i]|."""

    @staticmethod
    def update(state: State, x: Tensor) -> State:
        return state[0] + x.float().abs().sum(0), state[1] + len(x)
