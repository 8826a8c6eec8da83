"""What was seen: one file per streaming statistic, each a mean over calibration tokens, but for the largest value."""

from trimtab.stats.abs_max import AbsMax
from trimtab.stats.abs_mean import AbsMean
from trimtab.stats.block_cosine import BlockCosine
from trimtab.stats.drift import Drift
from trimtab.stats.fisher import Fisher
from trimtab.stats.gradient import Gradient
from trimtab.stats.gram import Gram
from trimtab.stats.input_norm import InputNorm
from trimtab.stats.leaving import Leaving
from trimtab.stats.moments import Moments
from trimtab.stats.output_entropy import OutputEntropy
from trimtab.stats.pivots import Pivots
from trimtab.stats.stream_gram import StreamGram
from trimtab.stats.weighed_gram import weighed_gram

__all__ = [
    "AbsMax",
    "AbsMean",
    "BlockCosine",
    "Drift",
    "Fisher",
    "Gradient",
    "Gram",
    "InputNorm",
    "Leaving",
    "Moments",
    "OutputEntropy",
    "Pivots",
    "StreamGram",
    "weighed_gram",
]
