"""The end of a job whose state is kept elsewhere: a process that is killed when its result is in place has nothing left to do.

Without this, the same command would find the result, take it for somebody else's, and refuse to write over it; and what the
job was done from would stay beside it for ever. So what is about to be published is written down first: by whom it was asked
for, the digest of its manifest, and what was about to be said. As everywhere, one process at a time has the output.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trimtab.host import manifest
from trimtab.host.keeping import holding
from trimtab.host.store import Store


class Finishing:
    """Of the output `out`, whose state is in `store`, which the caller holds."""

    def __init__(self, store: Store, out: Path):
        self.store, self.out = store, out
        self.content = store.newest() or {}

    @property
    def is_in_place(self) -> bool:
        """Whether what is there is what an earlier process put there last, before it ended."""
        return (self.out / manifest.NAME).exists() and self.content.get("result") == _digest(self.out)

    def said(self, asked: Mapping[str, Any]) -> dict[str, Any] | None:
        """What that process was about to say, if it was asked for the same."""
        if not self.is_in_place or self.content["asked"] != _plain(asked):
            return None
        found: dict[str, Any] = self.content["said"]
        return found

    def about_to(self, asked: Mapping[str, Any], said: Mapping[str, Any]) -> Callable[[Path], None]:
        """To be called with the folder that is about to be published."""
        return lambda folder: self.store.commit({"asked": asked, "result": _digest(folder), "said": said}, set())

    def done(self) -> None:
        """Nothing is left to be done, or to be kept."""
        self.store.clear()


@contextmanager
def finishing(out: str | Path) -> Iterator[Finishing]:
    """Holds the output. Raises `UsageError` at once where another process does."""
    with holding(out) as folder:
        yield Finishing(Store(folder), Path(out).expanduser().resolve())


def _plain(asked: Mapping[str, Any]) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(asked, default=str))


def _digest(folder: Path) -> str:
    return manifest.digests(folder, [manifest.NAME])[0]
