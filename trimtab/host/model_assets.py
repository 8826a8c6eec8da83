"""The one place where a name of a model becomes a folder that `load` opens.

Names that begin with `asset:` are fetched and converted, or grown here; what other programs packed is read into our formats;
both then lie in the cache. Any other name is a folder already, or one of the hub.
"""

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
    """The folder behind an asset's name or a foreign checkpoint, made at the first call; any other name as it is.

    A model that has to be trained first takes minutes; where nobody watches, a warning says so. Raises ModelError on
    unknown assets, and on foreign checkpoints that cannot be read.
    """
    if not name_or_path.startswith(PREFIX):
        return str(_foreign(name_or_path, watch) or name_or_path)
    known = model_assets()
    if name_or_path not in known:
        raise ModelError(f"no model is called {name_or_path!r}{did_you_mean(name_or_path, known)}")
    return str(known[name_or_path](watch))


def model_assets() -> dict[str, Callable[[Watcher], Path]]:
    """What makes (or finds) the folder of every asset, by name."""
    from trimtab.host.homegrown import family

    return {"asset:smollm2-135m": _imported, **{PREFIX + wanted.name: partial(_grown, wanted) for wanted in family()}}


def _foreign(name: str, watch: Watcher) -> Path | None:
    from trimtab.host.imports.foreign import imported

    return imported(name, watch)


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
