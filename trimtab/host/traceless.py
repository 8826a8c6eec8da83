"""What transformers' `Trainer` would leave behind, and what it would refuse: inside of these it does neither."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy
import torch
from transformers import PreTrainedModel

ANSWER = "is_quantized"  # the attribute by which the Trainer asks


@contextmanager
def lent(model: PreTrainedModel) -> Iterator[None]:
    """The Trainer refuses models with packed matrices and does not see what stands beside them; here they are frozen. And it
    writes into the config that nothing is to be cached in generation, which is for the time of training only."""
    before, cached = getattr(model, ANSWER, False), getattr(model.config, "use_cache", True)
    setattr(model, ANSWER, False)
    try:
        yield
    finally:
        setattr(model, ANSWER, before)
        model.config.use_cache = cached


@contextmanager
def own_randomness() -> Iterator[None]:
    """The Trainer sets the seeds of three libraries; afterwards they go on where they were."""
    here, there = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(here)
            numpy.random.set_state(there)
