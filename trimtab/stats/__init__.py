"""What was seen: one file per streaming statistic, each a mean over calibration tokens."""

from trimtab.stats.block_cosine import BlockCosine
from trimtab.stats.gram import Gram
from trimtab.stats.input_norm import InputNorm
from trimtab.stats.moments import Moments

__all__ = ["BlockCosine", "Gram", "InputNorm", "Moments"]
