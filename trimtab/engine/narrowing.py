"""Whether channels can vanish is asked by letting one vanish.

Some attention modules cut their heads by a stored count and not by the width they are given. Without some of their heads they
fail, or worse, go on and mix heads up. So one unit is removed for a moment, and the block must say what it says with that
unit silenced.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from trimtab.core.edits import Edit, Narrow, SetWeight
from trimtab.core.places import Coupling
from trimtab.engine.apply import apply
from trimtab.engine.sweep import Stream
from trimtab.formats import Dense

SAME = 1e-3  # of what the block adds to the residual stream; a lost or mixed-up head shows as a good part of it


def narrows(stream: Stream, coupling: Coupling) -> bool:
    """Does the block of `coupling` work without one of its units? Leaves model and stream as they were."""
    matrix = stream.anatomy.weight(coupling.consumer.site)
    if not isinstance(matrix, Dense):
        return False
    silent = matrix.weight.clone()
    silent[:, coupling.consumer.indices[0]] = 0
    keep = torch.arange(coupling.units) > 0
    expected = _answer(stream, coupling, SetWeight(coupling.consumer.site, Dense(silent)))
    try:
        found = _answer(stream, coupling, Narrow(coupling, keep))
    except RuntimeError:  # shapes that do not meet: the question is answered
        return False
    change = expected - stream.hidden[0]
    return found.shape == expected.shape and bool((found - expected).norm() <= SAME * change.norm())


def _answer(stream: Stream, coupling: Coupling, edit: Edit) -> Tensor:
    """What the block makes of the stream's first hidden states after an edit that is then taken back."""
    entering = list(stream.hidden)
    try:
        with _edited(stream, coupling, edit):
            stream.advance(coupling.block)
        return stream.hidden[0]
    finally:
        stream.hidden = entering


@contextmanager
def _edited(stream: Stream, coupling: Coupling, edit: Edit) -> Iterator[None]:
    model = stream.anatomy.model
    before = {m.site.path: model.get_submodule(m.site.path) for m in coupling.members}
    try:
        apply(stream.anatomy, [edit])
        yield
    finally:
        for path, module in before.items():
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, module)
