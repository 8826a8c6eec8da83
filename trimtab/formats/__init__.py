"""Containers: the ways a weight matrix can be stored. `dense()` defines each of them."""

from trimtab.core.kinds import LinearWeight
from trimtab.formats.activations import Activations
from trimtab.formats.bitplanes import BitPlanes
from trimtab.formats.block_diagonal import BlockDiagonal
from trimtab.formats.butterfly import Butterfly
from trimtab.formats.codebook import Codebook
from trimtab.formats.dense import Dense
from trimtab.formats.forward import linear
from trimtab.formats.grouped import Grouped, check_group_size
from trimtab.formats.kronecker import Kronecker
from trimtab.formats.lattice import Lattice
from trimtab.formats.lowrank import Chain, low_rank
from trimtab.formats.masked import Masked
from trimtab.formats.mpo import Mpo
from trimtab.formats.nm import NM
from trimtab.formats.permutation import Permutation
from trimtab.formats.pyramid import Pyramid
from trimtab.formats.reassembly import Reassembly
from trimtab.formats.registry import FORMATS, build, layout
from trimtab.formats.rotated import Rotated
from trimtab.formats.rotation import Rotation
from trimtab.formats.signplanes import SignPlanes
from trimtab.formats.signstack import SignStack
from trimtab.formats.sum import Sum

_OURS: tuple[type[LinearWeight], ...] = (
    Dense,
    Masked,
    NM,
    Grouped,
    BitPlanes,
    SignPlanes,
    SignStack,
    Codebook,
    Pyramid,
    BlockDiagonal,
    Mpo,
    Butterfly,
    Lattice,
    Chain,
    Sum,
    Rotated,
    Rotation,
    Activations,
    Kronecker,
    Permutation,
    Reassembly,
)
FORMATS.update({format.kind: format for format in _OURS})


def is_plain(weight: LinearWeight) -> bool:
    """Whether a weight is an ordinary matrix, which an ordinary layer holds."""
    return isinstance(weight, Dense)


__all__ = [
    "FORMATS",
    "NM",
    "Activations",
    "BitPlanes",
    "BlockDiagonal",
    "Butterfly",
    "Chain",
    "Codebook",
    "Dense",
    "Grouped",
    "Kronecker",
    "Lattice",
    "Masked",
    "Mpo",
    "Permutation",
    "Pyramid",
    "Reassembly",
    "Rotated",
    "Rotation",
    "SignPlanes",
    "SignStack",
    "Sum",
    "build",
    "check_group_size",
    "is_plain",
    "layout",
    "linear",
    "low_rank",
]
