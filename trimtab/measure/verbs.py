"""`trimtab.compare`: the comparison as Python asks for it, with its setting as keywords."""

from collections.abc import Sequence
from pathlib import Path

from trimtab.core.errors import UsageError
from trimtab.core.progress import Watcher, unwatched
from trimtab.measure.compare import Comparison
from trimtab.measure.compare import compare as compared
from trimtab.measure.setting import Setting


def compare(
    base: str | Path,
    *others: str | Path,
    text: str | Sequence[str] = "asset:boolq",
    windows: int = 24,
    length: int = 512,
    tasks: Sequence[str] = (),
    limit: int | None = 200,
    seed: int = 0,
    samples: bool = True,
    dtype: str | None = None,
    device: str | None = None,
    across_tokenizers: bool = False,
    watch: Watcher = unwatched,
) -> Comparison:
    """What others cost against a base: the same tokens and items, paired differences with 95 % intervals.

    Models: folders, hub names or assets. text: one or several, each is a domain. tasks: such as ("arc_easy", "sciq"); limit: at
    most so many items of each, None for all. Raises UsageError, ModelError or DataError for whatever cannot be compared.
    """
    if isinstance(tasks, str):
        raise UsageError(f"tasks is a list of names, got {tasks!r}; write tasks=({tasks!r},)")
    texts = (text,) if isinstance(text, str) else tuple(text)
    setting = Setting(texts, windows, length, tuple(tasks), limit, seed, samples, dtype, device, across_tokenizers)
    return compared(str(base), [str(other) for other in others], setting, watch)
