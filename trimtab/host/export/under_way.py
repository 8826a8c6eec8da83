"""What an export has done so far, in `OUT.partial` beside its output, and how another process goes on from there.

Units are the logits that the export is later compared with, the plan of each tensor, and the files. The files are written into
the state, and linked from there into what is published, so that they are written once: who is stopped while the export is opened
again, which takes longest, needs neither the model nor the files a second time.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from trimtab.core.errors import UsageError
from trimtab.host import manifest
from trimtab.host.export.contents import Entry
from trimtab.host.keeping import Keeping

LOGITS = "logits"


@dataclass(frozen=True)
class Prepared:
    """What is needed beside the files. ids: of the prompts; logits [tokens, vocabulary]: of the model, of all of them.

    told: what a reader cannot take from the files.
    """

    ids: list[list[int]]
    logits: Tensor
    entries: list[Entry]
    remarks: list[str]
    told: dict[str, Any]


class UnderWay:
    """One export. keeping: None keeps nothing."""

    def __init__(self, keeping: Keeping | None):
        self.keeping = keeping
        record = (keeping.record if keeping else None) or {}
        self.entries = {entry["name"]: entry_of(entry) for entry in record.get("entries", ())}
        self.rest = record.get("rest")

    @property
    def prepared(self) -> Prepared | None:
        """None unless the files are written."""
        if self.keeping is None or self.rest is None:
            return None
        return Prepared(self.rest["ids"], self._logits(), list(self.entries.values()), self.rest["remarks"], self.rest["told"])

    def logits(self, make: Callable[[], Tensor]) -> Tensor:
        if self.keeping is None:
            return make()
        if LOGITS in self.keeping.names():
            return self._logits()
        found = make()
        self.keeping.keep(LOGITS, {LOGITS: found}, {})
        self._commit_if_due()
        return found

    def entry(self, name: str, make: Callable[[], Entry]) -> Entry:
        """What becomes of a tensor."""
        if name not in self.entries:
            self.entries[name] = make()
            self._commit_if_due()
        return self.entries[name]

    def write(self, files: Callable[[Path], None], prepared: Prepared, folder: Path) -> None:
        """The files into `folder`, by way of the state where there is one."""
        if self.keeping is None:
            files(folder)
            return
        begun = self.rest is None
        if begun:
            self.keeping.files(files)
        kept = self.keeping.folder
        assert kept is not None
        manifest.verify(kept)
        _link(kept, folder)
        if begun:  # after the links: where there is no room for the commit, what it was to keep is removed
            self.rest = {"ids": prepared.ids, "remarks": prepared.remarks, "told": prepared.told}
            self.entries = {entry.name: entry for entry in prepared.entries}
            self._commit()

    def _logits(self) -> Tensor:
        assert self.keeping is not None
        return self.keeping.part(LOGITS)[0][LOGITS]

    def _commit_if_due(self) -> None:
        if self.keeping is not None and self.keeping.due():
            self._commit()

    def _commit(self) -> None:
        assert self.keeping is not None
        self.keeping.commit({"entries": [asdict(entry) for entry in self.entries.values()], "rest": self.rest})


def entry_of(held: dict[str, Any]) -> Entry:
    """An entry, as JSON gives it back."""
    return Entry(**{**held, "shape": tuple(held["shape"])})


def _link(kept: Path, folder: Path) -> None:
    """All files but the manifest, which is written anew. Copied where the file system knows no links."""
    for path in sorted(kept.rglob("*")):
        target = folder / path.relative_to(kept)
        if path.is_dir():
            target.mkdir(exist_ok=True)
        elif path.name != manifest.NAME:
            try:
                os.link(path, target)
            except OSError:
                _copy(path, target)


def _copy(path: Path, target: Path) -> None:
    try:
        shutil.copyfile(path, target)
    except OSError as error:
        raise UsageError(f"{target.name} could not be written: {error.strerror}") from error
