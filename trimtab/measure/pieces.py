"""A measurement that is stopped goes on behind its last piece: a batch of windows, a batch of items.

A piece is kept as soon as it is there, under everything it depends on: the model, how it is run, by which code, libraries and
processor, and the very tokens it is shown. So nothing that another measurement left is ever taken, and there is nothing to
refuse. Once the whole is there its pieces are forgotten, and whoever asks again has it measured again.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from trimtab.host.fingerprint import fingerprint
from trimtab.host.provenance import machine, versions
from trimtab.measure.code_digest import digest_of
from trimtab.measure.kept import Kept, Key

FORMAT = 1
CODE = ("trimtab.measure", "trimtab.measure.agreement")
Result = tuple[Any, dict[str, Tensor]]  # a JSON value and tensors by name
Keep = Callable[[Mapping[str, Any], Callable[[], Result]], Result]


def unkept(what: Mapping[str, Any], make: Callable[[], Result]) -> Result:
    """A `Keep` that keeps nothing."""
    return make()


class Pieces:
    """A `Keep` of one measurement. key: what all of its pieces depend on."""

    def __init__(self, key: Key):
        self.key, self.kept, self.used = key, Kept("pieces"), list[Key]()
        self.fails = False  # nothing can be written, so nothing is kept any more

    def __call__(self, what: Mapping[str, Any], make: Callable[[], Result]) -> Result:
        """The piece `what`, which JSON can say; made unless it is kept."""
        key = {**self.key, "piece": what}
        self.used.append(key)
        found = self.kept.get(key)
        if found is None:
            found = make()
            self._put(key, found)
        return found

    def forget(self) -> None:
        """The whole is there."""
        for key in self.used:
            self.kept.forget(key)

    def _put(self, key: Key, found: Result) -> None:
        if self.fails:
            return
        try:
            self.kept.put(key, *found)
        except OSError as error:  # what was measured counts all the same
            self.fails = True
            warnings.warn(f"nothing is kept to go on from, should this be stopped: {error.strerror or error}", stacklevel=2)


def depends_on(folder: str | Path, dtype: Any = None, device: Any = None, memory: int | str | None = None) -> dict[str, Any]:
    """A key: the model in a folder, how it is opened (None: as it is stored, on the CPU, whole), and what measures it."""
    return {
        "format": FORMAT,
        "model": fingerprint(folder),
        "opened": [str(dtype or "auto"), str(device or "cpu"), *([str(memory)] if memory is not None else [])],
        **here(),
    }


def here() -> dict[str, Any]:
    """What measures: code, libraries, processor."""
    return {"code": digest_of(CODE), "versions": versions(), "machine": machine()}


def digest(value: Any) -> str:
    """SHA-256, in hex, of token ids or of anything that JSON can say."""
    return hashlib.sha256(json.dumps(value.tolist() if isinstance(value, Tensor) else value).encode()).hexdigest()
