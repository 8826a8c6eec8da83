"""What can go wrong, in the user's words: every message says what, where, and what now.

The command line turns `UsageError` into exit code 2 and any other `TrimtabError` into exit code 1.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class TrimtabError(Exception):
    """Anything trimtab raises on purpose."""


class UsageError(TrimtabError):
    """The request cannot be met as asked: names, values, files or recipes that do not fit."""


class RecipeError(UsageError):
    """A recipe that is malformed, or whose steps do not fit each other or the model."""


class ModelError(UsageError):
    """A model folder or model that cannot be used as it is: missing, damaged, unsupported, not finite."""


class DataError(UsageError):
    """Calibration or evaluation text that is missing or too short."""


class CalibrationError(TrimtabError):
    """What was seen during calibration does not determine an answer (singular, not finite)."""


def first_line(error: BaseException) -> str:
    """What another library says of an error, in a line; its kind where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """A suffix such as `; did you mean 'gptq'?`, or the whole list when nothing is close."""
    known = sorted(options)
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known are {', '.join(known)}" if known else ""
