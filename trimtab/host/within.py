"""Opening a model within a budget of memory: of matrices stored as stacks of blocks, as many blocks as there is room for.

The blocks of all matrices are one order, by what they are worth (`tensors.stacking`), and the longest
beginning of it that fits is opened. Nothing is compressed again: a block is read as it is, or left out. The beginning of a
stack is the beginning of its tensors, so no more is read than is wanted. It passes through a temporary folder on its way:
all that `checkpoint.load` checks holds for it too, and what is left out is never in memory.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from trimtab import formats
from trimtab.core.errors import ModelError, UsageError
from trimtab.core.sizes import in_bytes
from trimtab.formats import SignStack, checks
from trimtab.host import checkpoint, folder_checks, manifest
from trimtab.host.checkpoint import Tokenizer
from trimtab.host.publish import ensure_space
from trimtab.host.quantizer import METHOD, TrimtabConfig
from trimtab.tensors.stacking import ranking, taken

COPIED = (".json", ".jinja", ".model", ".txt")
NOT_COPIED = ("config.json", manifest.NAME, "model.safetensors.index.json")
Dtype = str | torch.dtype | None


def load_within(
    memory: int | str, folder: str | Path, device: str | torch.device | None = None, dtype: Dtype = None
) -> tuple[PreTrainedModel, Tokenizer]:
    """A model folder, or a hub name, in eval mode, with as many blocks as fit. dtype: of what is not packed; else as stored.

    memory: bytes that all tensors of the model together may take, or "60MB", or "40%" of what they take in full. Raises
    `ModelError` for anything missing, damaged or out of bounds; `UsageError` where so little memory is not enough.
    """
    place = checkpoint.local_folder(folder)
    with TemporaryDirectory(prefix="trimtab-", ignore_cleanup_errors=True) as made:
        files = checkpoint.unreplaced(place, lambda: _copied(place, Path(made), memory, dtype))
        model, tokenizer = checkpoint.load(made, device, files.dtype or "auto")
    model.name_or_path = model.config.name_or_path = str(place)
    return model, tokenizer


def _copied(place: Path, made: Path, memory: int | str, dtype: Dtype) -> "_Files":
    """Leaves as much of the folder as fits in `made`."""
    folder_checks.check_links(place)
    manifest.verify(place)
    files = _Files.of(place, dtype)
    files.write(made, files.within(memory))
    return files


@dataclass(frozen=True)
class _Stack:
    """prefix: of its tensors' names. spec: in the description of the model, where `blocks` says how many there are."""

    prefix: str
    spec: dict[str, Any]
    tensors: dict[str, Tensor]  # as they are in the files, by their full names
    worth: list[float]

    @classmethod
    def of(cls, prefix: str, spec: dict[str, Any], stored: dict[str, Tensor]) -> "_Stack":
        """Raises `ModelError` where the files hold something else than the spec says."""
        layout = SignStack.layout(_bare(spec))
        found = {name: stored[prefix + name] for name in layout if prefix + name in stored}
        checks.match(prefix + SignStack.kind, layout, found)
        checks.finite(prefix + SignStack.kind, ModelError, worth=found["worth"])
        return cls(prefix, spec, {prefix + name: tensor for name, tensor in found.items()}, found["worth"].tolist())

    @property
    def cost(self) -> int:
        """Bytes of one block."""
        return sum(tensor.nbytes for tensor in self.tensors.values()) // len(self.worth)


@dataclass(frozen=True)
class _Files:
    """What a folder holds. Tensors are mapped: nothing but headers and the worth of blocks has been read."""

    place: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    stacks: list[_Stack]
    packed: frozenset[str]  # names of tensors that stay as they are stored
    dtype: torch.dtype | None  # of the others

    @classmethod
    def of(cls, place: Path, dtype: Dtype) -> "_Files":
        config, tensors = folder_checks.read_json(place / "config.json"), _mapped(place)
        specs = _packed(config)
        packed = frozenset(f"{path}.{name}" for path, spec in specs.items() for name in formats.layout(_bare(spec)))
        stacks = [_Stack.of(*found, tensors) for path, spec in specs.items() for found in _stacks(f"{path}.", spec)]
        return cls(place, config, tensors, stacks, packed, _dtype(dtype, config))

    def within(self, memory: int | str) -> list[int]:
        """How many blocks of each stack are opened. Raises `UsageError` if one of each is too much."""
        whole = sum(map(self._bytes, self.tensors))
        costs = [stack.cost for stack in self.stacks]
        rest = whole - sum(cost * len(stack.worth) for cost, stack in zip(costs, self.stacks, strict=True))
        asked = _asked(memory, whole)
        if asked < (least := rest + sum(costs)):
            what = "with one block of every matrix it" if costs else "it has no blocks that could be left out and"
            raise UsageError(f"{self.place} does not fit into memory={memory!r}: {what} takes {least} bytes")
        return taken(ranking([stack.worth for stack in self.stacks]), costs, asked - rest)

    def write(self, folder: Path, counts: Sequence[int]) -> None:
        """The model with so many blocks of each stack, as a folder of its own."""
        kept = dict(self.tensors)
        for stack, count in zip(self.stacks, counts, strict=True):
            stack.spec["blocks"] = count
            kept |= {name: tensor[:count] for name, tensor in stack.tensors.items()}
        ensure_space(folder, sum(tensor.nbytes for tensor in kept.values()))
        # Copies: tensors that share a mapped file are refused as if one were a part of another.
        save_file({name: tensor.clone() for name, tensor in kept.items()}, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(json.dumps(self.config), encoding="utf-8")
        for path in self.place.iterdir():
            if path.suffix in COPIED and path.name not in NOT_COPIED:
                shutil.copyfile(path, folder / path.name)

    def _bytes(self, name: str) -> int:
        """What a tensor takes in memory."""
        tensor = self.tensors[name]
        if self.dtype is None or name in self.packed or not tensor.is_floating_point():
            return tensor.nbytes
        return tensor.numel() * self.dtype.itemsize


def _mapped(place: Path) -> dict[str, Tensor]:
    """Every tensor of the folder by name, not yet read. Raises `ModelError` for damaged files."""
    found: dict[str, Tensor] = {}
    files = folder_checks.weight_files(place)
    folder_checks.weights_in(files)
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            found |= {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    return found


def _packed(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The specs of everything packed as they stand in the description, by path, experts one by one. Raises `ModelError`."""
    described = config.get("quantization_config")
    if not isinstance(described, dict) or described.get("quant_method") != METHOD:
        return {}
    found: dict[str, dict[str, Any]] = {}
    for path, entry in TrimtabConfig(**described).modules.items():
        if entry["kind"] == "stack":
            if not isinstance(experts := entry.get("experts"), list):
                raise ModelError(f"quantization_config: the stack {path!r:.200} needs a list of experts")
            found |= {f"{path}.{number}": expert for number, expert in enumerate(experts)}
        elif entry["kind"] not in ("dense", "shared"):
            found[path] = entry
    return found


def _bare(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The spec of a weight, without what the description of a module has beside it."""
    if not isinstance(spec, Mapping):
        raise ModelError(f"the spec of a weight must be a mapping, got {checks.shown(spec)}")
    return {name: value for name, value in spec.items() if name != "bias"}


def _stacks(prefix: str, spec: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(prefix of its tensors, spec) of every stack of blocks in a weight that has a layout."""
    if spec["kind"] == SignStack.kind:
        yield prefix, spec
    for number, part in enumerate(spec.get("parts", ())):
        yield from _stacks(f"{prefix}{number}_", part)


def _dtype(asked: Dtype, config: dict[str, Any]) -> torch.dtype | None:
    """What is not packed is opened in; None: as stored. Without a wish it is what the config says."""
    name = config.get("dtype", config.get("torch_dtype")) if asked in (None, "auto") else asked
    found = getattr(torch, name, None) if isinstance(name, str) else name
    return found if isinstance(found, torch.dtype) else None


def _asked(memory: int | str, whole: int) -> int:
    """Raises `UsageError` for what is no size."""
    try:
        return memory if isinstance(memory, int) else in_bytes(memory, whole)
    except ValueError as error:
        raise UsageError(f"memory: {error}") from error
