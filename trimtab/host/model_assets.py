"""The one place for names of models that begin with `asset:`: fetched and converted, or grown here; then in the cache."""

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.core.errors import ModelError, did_you_mean
from trimtab.core.progress import Watcher, unwatched

if TYPE_CHECKING:
    from trimtab.host.homegrown import Named

PREFIX = "asset:"


def resolve_model(name_or_path: str, watch: Watcher = unwatched) -> str:
    """The folder behind an asset's name, made at the first call; any other name is returned as it is.

    A model that has to be trained first takes minutes; where nobody watches, a warning says so. Raises ModelError on
    unknown assets.
    """
    if not name_or_path.startswith(PREFIX):
        return name_or_path
    known = model_assets()
    if name_or_path not in known:
        raise ModelError(f"no model is called {name_or_path!r}{did_you_mean(name_or_path, known)}")
    return str(known[name_or_path](watch))


def model_assets() -> dict[str, Callable[[Watcher], Path]]:
    """What makes (or finds) the folder of every asset, by name."""
    from trimtab.host.homegrown import family

    return {"asset:smollm2-135m": _imported, **{PREFIX + wanted.name: partial(_grown, wanted) for wanted in family()}}


def _imported(watch: Watcher) -> Path:
    from trimtab.host import gguf_import

    return gguf_import.asset_model()


def _grown(wanted: "Named", watch: Watcher) -> Path:
    from trimtab.host.homegrown import grow

    if watch is unwatched and wanted.minutes:
        warnings.warn(
            f"{PREFIX}{wanted.name} is trained first, once, for about {wanted.minutes:.1f} minutes; "
            f"`trimtab grow {wanted.name}` does the same with a progress bar",
            stacklevel=3,
        )
    return grow(wanted, watch)
