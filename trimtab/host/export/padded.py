"""Layers of different widths, filled up with zeros to the widest: exact, larger, and opened by everything.

A neuron without weights says nothing, and neither does a group of heads whose values are zero; so the model stays the same and
every layer gets the width that the family's own config can name. Where the zeros have to stand (fused and interleaved
projections) is read off the widest layer of the same kind.
"""

from torch import Tensor
from transformers import PreTrainedModel

from trimtab.anatomy import Anatomy
from trimtab.core.errors import UsageError
from trimtab.core.places import Coupling, Member
from trimtab.engine.surgery import place
from trimtab.formats import Dense


def widen(model: PreTrainedModel) -> list[str]:
    """Fills the model up in place; what that costs, in words. Raises `UsageError` where a matrix to be filled up is packed."""
    anatomy = Anatomy.of(model)
    widest: dict[object, Coupling] = {}
    for coupling in anatomy.couplings():
        known = widest.setdefault(_kind(coupling), coupling)
        if coupling.units > known.units:
            widest[_kind(coupling)] = coupling
    narrow = [c for c in anatomy.couplings() if c.units < widest[_kind(c)].units]
    added = sum(_fill(anatomy, c, widest[_kind(c)]) for c in narrow)
    if not narrow:
        return ["all layers are equally wide: nothing was padded"]
    return [f"{len(narrow)} sets of channels were filled up with zeros to the widest: {added} bytes of padding"]


def _kind(coupling: Coupling) -> object:
    """Couplings that one number of the config describes: the same matrices of different blocks."""
    return coupling.unit, tuple((m.site.role, m.site.index, m.indices.shape[1]) for m in coupling.members)


def _fill(anatomy: Anatomy, coupling: Coupling, wide: Coupling) -> int:
    """Bytes that were added, to matrices and biases."""
    added = 0
    for member, like in zip(coupling.members, wide.members, strict=True):
        matrix = anatomy.weight(member.site)
        if not isinstance(matrix, Dense) or member.site.index is not None:
            raise UsageError(f"padded: {member.site.name} is no plain matrix; pad first and quantize then, or keep it compact")
        bias = anatomy.bias(member.site)
        axis = 0 if member.axis == "rows" else 1
        filled = _spread(matrix.weight, member, like, axis)
        added += filled.nbytes - matrix.weight.nbytes
        if bias is not None and not axis:
            added -= bias.nbytes
            bias = _spread(bias, member, like, 0)
            added += bias.nbytes
        place(anatomy.model, member.site.path, Dense(filled), bias, member.site.transposed)
    return added


def _spread(values: Tensor, member: Member, like: Member, axis: int) -> Tensor:
    """The member's units where the first ones of `like` stand, zeros where its others do."""
    units = len(member.indices)
    shape = list(values.shape)
    shape[axis] = like.indices.numel()
    there, here = (indices.flatten().to(values.device) for indices in (like.indices[:units], member.indices))
    return values.new_zeros(shape).index_copy(axis, there, values.index_select(axis, here))
