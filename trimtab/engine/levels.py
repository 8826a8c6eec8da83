"""Every matrix at every level, each compressed once: what candidates are put together from.

A level is the whole model compressed with one strength everywhere, exactly as a recipe with that strength would. It is one
file, named by what went into it and written under another name first, so that a file that is there is whole; a stopped search
finds it again, and so does another search over the same levels. Matrices are read one at a time, when a candidate needs them.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from trimtab import formats
from trimtab.core.kinds import LinearWeight


@dataclass(frozen=True)
class Levels:
    """In `folder`, of the job that `key` names (`digest`). Any process that sees the folder may read."""

    folder: Path
    key: str

    def path(self, strength: Any) -> Path:
        return self.folder / f"{digest([], self.key, repr(strength))}.safetensors"

    def fill(self, strengths: Sequence[Any], make: Callable[[Any], Mapping[str, LinearWeight]]) -> int:
        """Have all levels there; those that are not are made. How many there were before."""
        missing = [strength for strength in strengths if not self.path(strength).exists()]
        for strength in missing:
            _write(self.path(strength), make(strength))
        return len(strengths) - len(missing)

    def weight(self, name: str, strength: Any) -> LinearWeight:
        """The matrix of the site of this name."""
        with safe_open(self.path(strength), "pt") as file:
            spec = json.loads(file.metadata()["specs"])[name]
            own = [key for key in file.keys() if key.rpartition("/")[0] == name]  # noqa: SIM118 - no mapping
            return formats.build(spec, {key.rpartition("/")[2]: file.get_tensor(key) for key in own})


def digest(tensors: Sequence[Tensor], *words: str) -> str:
    """SHA-256, in hex, of tensors with their shapes and dtypes, and of words."""
    state = hashlib.sha256(json.dumps(words).encode())
    for tensor in tensors:
        state.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
        state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def digest_of(model: nn.Module) -> str:
    """Of all tensors of a model by name."""
    state = model.state_dict(keep_vars=True)
    return digest(list(state.values()), *state)


def _write(path: Path, weights: Mapping[str, LinearWeight]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"{name}/{key}": t.detach().cpu().clone() for name, w in weights.items() for key, t in w.tensors().items()}
    specs = json.dumps({name: weight.spec() for name, weight in weights.items()})
    temporary = path.with_name(f"new-{secrets.token_hex(8)}")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, {"specs": specs})
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
