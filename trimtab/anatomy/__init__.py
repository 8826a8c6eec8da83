"""Where things are in a model, asked of the model itself: blocks, weight matrices, shared inputs, coupled channels.

Nothing here knows a model family. One table of name endings (`exceptions.py`) says which role a matrix plays;
everything else is observed while the model runs on a few tokens.
"""

from trimtab.anatomy.anatomy import Anatomy
from trimtab.anatomy.norms import Norm
from trimtab.anatomy.patterns import matching
from trimtab.anatomy.watch import Watch

__all__ = ["Anatomy", "Norm", "Watch", "matching"]
