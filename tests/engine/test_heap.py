"""The heap may be kept and given back at any time; arithmetic does not notice. Recorded arguments are kept once."""

import torch

from trimtab.anatomy import Anatomy
from trimtab.engine.memory import give_back, kept_heap
from trimtab.engine.sweep import Stream
from trimtab.testing.tiny import tiny


def test_tensors_outlive_the_heap_policy():
    with kept_heap():
        parts = [torch.full((300_000,), float(i)) for i in range(8)]
        del parts[::2]
        give_back()
        more = torch.zeros(3_000_000)
    give_back()
    assert [float(part.sum()) for part in parts] == [300_000.0 * i for i in (1, 3, 5, 7)]
    assert float(more.sum()) == 0.0


def test_blocks_and_batches_share_their_arguments():
    """A copy of masks and rotary tables per block and batch would outgrow the activations."""
    model = tiny("llama").eval()
    ids = torch.arange(32).view(4, 8) % model.config.vocab_size
    stream = Stream(Anatomy.of(model), list(ids.split(1)), compute=torch.bfloat16)
    tensors = [leaf for calls in stream.calls for call in calls for leaf in _leaves([call.args, call.kwargs])]
    assert len(tensors) > len(stream.calls)
    places = {tensor.data_ptr() for tensor in tensors}
    one_call = {tensor.data_ptr() for tensor in _leaves([stream.calls[0][0].args, stream.calls[0][0].kwargs])}
    assert places == one_call


def _leaves(value):
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [leaf for item in value for leaf in _leaves(item)] if isinstance(value, list | tuple) else []
