"""Products with packed weights, without unpacking them: compiled kernels where they are installed, `dense()` elsewhere.

And what passes in bfloat16 spend their time on besides products (`passes.py`).

The compiled module `trimtab_native` is a package of its own (`native/`), so that trimtab installs without a compiler. It knows no
torch. What a format means is still said by `dense()`: every kernel is tested against it.
"""

from trimtab.kernels.linear import ACTIVATIONS, linear, serves
from trimtab.kernels.module import available, describe, instruction_set, instruction_sets
from trimtab.kernels.passes import add_gram, attention, serves_passes

__all__ = [
    "ACTIVATIONS",
    "add_gram",
    "attention",
    "available",
    "describe",
    "instruction_set",
    "instruction_sets",
    "linear",
    "serves",
    "serves_passes",
]
