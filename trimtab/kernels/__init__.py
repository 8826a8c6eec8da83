"""Products with packed weights, without unpacking them: compiled kernels where they are installed, `dense()` elsewhere.

The compiled module `trimtab_native` is a package of its own (`native/`), so that trimtab installs without a compiler. It knows no
torch. What a format means is still said by `dense()`: every kernel is tested against it.
"""

from trimtab.kernels.linear import ACTIVATIONS, linear, serves
from trimtab.kernels.module import available, describe, instruction_set, instruction_sets

__all__ = ["ACTIVATIONS", "available", "describe", "instruction_set", "instruction_sets", "linear", "serves"]
