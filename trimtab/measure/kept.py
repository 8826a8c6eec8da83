"""What was measured once is kept: results by the content of everything they depend on.

A key is JSON: the fingerprint of the model, the setting, the version of the format. Its digest names a folder that holds the
key, one JSON value and possibly tensors. The folder appears by one rename, so a killed run leaves a result or none, and the
same command goes on where it stopped. A damaged entry is measured again.
"""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from trimtab.data.assets import cache_root
from trimtab.host.instants import reached
from trimtab.host.publish import sync

Key = Mapping[str, Any]
VALUE, TENSORS = "value.json", "tensors.safetensors"


class Kept:
    """Results of one kind ("losses", "items", ...) in a folder, `$TRIMTAB_CACHE/measured` unless told otherwise."""

    def __init__(self, kind: str, root: Path | None = None):
        self.place = (root or cache_root() / "measured") / kind

    def get(self, key: Key) -> tuple[Any, dict[str, Tensor]] | None:
        """The value and the tensors that were put under this key; None if there are none, or they are damaged."""
        folder = self._folder(key)
        try:
            held = json.loads((folder / VALUE).read_text(encoding="utf-8"))
            if held["key"] != _plain(key):
                return None
            return held["value"], load_file(folder / TENSORS) if held["tensors"] else {}
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            return None

    def put(self, key: Key, value: Any, tensors: Mapping[str, Tensor] | None = None) -> None:
        """value: anything JSON holds. Replaces what is there."""
        folder = self._folder(key)
        partial = folder.with_name(f".{folder.name}-{os.getpid()}-{secrets.token_hex(4)}")
        partial.mkdir(parents=True)
        try:
            held = {"key": _plain(key), "value": value, "tensors": bool(tensors)}
            if tensors:
                save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial / TENSORS)
                sync(partial / TENSORS)
            (partial / VALUE).write_text(json.dumps(held), encoding="utf-8")
            sync(partial / VALUE)
            reached("piece: written")
            shutil.rmtree(folder, ignore_errors=True)
            try:
                partial.rename(folder)
            except OSError:
                if self.get(key) is None:  # unless another process measured the same and was first
                    raise
            reached("piece: kept")
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def forget(self, key: Key) -> None:
        """As if nothing had been put under this key."""
        shutil.rmtree(self._folder(key), ignore_errors=True)

    def _folder(self, key: Key) -> Path:
        return self.place / hashlib.sha256(json.dumps(_plain(key), sort_keys=True).encode()).hexdigest()


def _plain(key: Key) -> Any:
    """As JSON gives it back: tuples are lists."""
    return json.loads(json.dumps(key))
