"""A model whose blocks are on disk: one of them is in memory at a time, read with plain reads and never mapped.

A `Shelf` puts away a model that was in memory once, and maps what it put away, which takes room among the addresses of the
process. Here the model never was in memory. What is absent is stood in for by one NaN that has the shape of the tensor: it
takes no memory, and whoever computed with it by mistake would notice. Before a block runs it is read, after that it is absent
again; a block that was worked on is written to the depot's own folder first, so the files the model came from stay as they are.
"""

import os
import secrets
from collections.abc import Callable, Iterable, Iterator, MutableSequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, overload

import torch
from torch import Tensor, nn

from trimtab.anatomy import Anatomy
from trimtab.anatomy.blocks import blocks_path
from trimtab.core.errors import TrimtabError
from trimtab.core.kinds import LinearWeight
from trimtab.core.places import Site
from trimtab.engine.memory import give_back
from trimtab.engine.packed_linear import PackedLinear
from trimtab.formats import Dense

Present = Callable[[int], AbstractContextManager[None]]


@dataclass(frozen=True)
class Stored:
    """Where the values of a tensor are: so many bytes from `start` in a file, in this dtype and shape."""

    path: Path
    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    def read(self) -> Tensor:
        """A tensor with memory of its own. Raises `TrimtabError` if the file is shorter than it was."""
        made = torch.empty(self.shape, dtype=self.dtype)
        if not made.numel():
            return made
        view = memoryview(made.reshape(-1).view(torch.uint8).numpy())
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.start)
            done = 0
            while done < len(view):
                count = file.readinto(view[done:])
                if not count:
                    raise TrimtabError(f"{self.path} became shorter while it was read; start again")
                done += count
        return made


class Depot:
    """Of one model, all of whose block parameters are `absent` and known by `stored` (by identity of the parameter).

    Stands in for a `Shelf`: `with depot.at(block)` has a block in memory and keeps what was made of it.
    """

    def __init__(self, model: nn.Module, stored: dict[int, tuple[Tensor, Stored]], folder: Path):
        self.model, self.stored, self.folder = model, stored, folder
        self.pinned: set[int] = set()
        self.read: dict[int, list[Tensor]] = {}  # by block: what is in memory because it was read
        self.path = blocks_path(model)
        for number, block in enumerate(self.blocks):
            block.register_forward_pre_hook(self._before(number))
            block.register_forward_hook(self._after(number))

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.model.get_submodule(self.path).children())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Nothing: the blocks stay where they are."""

    def rest(self) -> None:
        """Nothing: what is absent has no pages."""

    @contextmanager
    def present(self, block: int) -> Iterator[None]:
        """Inside, a block is in memory. It must not be changed."""
        if block in self.pinned:
            yield
            return
        self._read(block)
        self.pinned.add(block)
        try:
            yield
        finally:
            self.pinned.discard(block)
            self._let_go(block)

    @contextmanager
    def at(self, block: int | None) -> Iterator[None]:
        """Inside, a block is in memory, and what was made of it is kept. None: what is outside is in memory always."""
        if block is None:
            yield
            return
        with self.present(block):
            yield
            for tensor in _tensors(self.blocks[block]):
                self._write(tensor)

    def values(self, tensor: Tensor) -> Tensor:
        """Of a parameter or buffer, wherever they are; in the dtype of the tensor."""
        if id(tensor) not in self.stored or not is_absent(tensor):
            return tensor.detach()
        return self.stored[id(tensor)][1].read().to(tensor.dtype)

    def weight(self, anatomy: Anatomy, site: Site) -> LinearWeight:
        """What `anatomy.weight` says of a block in memory; of a plain matrix no more than that is read."""
        own = getattr(anatomy.module(site), "weight", None)
        if site.index is None and isinstance(own, Tensor):
            matrix = self.values(own)
            return Dense(matrix.T if site.transposed else matrix)
        with nullcontext() if site.block is None else self.present(site.block):
            return anatomy.weight(site)

    def _before(self, block: int) -> Any:
        return lambda module, args: None if block in self.pinned else self._read(block)

    def _after(self, block: int) -> Any:
        return lambda module, args, output: None if block in self.pinned else self._let_go(block)

    def _read(self, block: int) -> None:
        for tensor in _tensors(self.blocks[block]):
            if is_absent(tensor):
                tensor.data = self.values(tensor)
                self.read.setdefault(block, []).append(tensor)

    def _let_go(self, block: int) -> None:
        for module in self.blocks[block].modules():
            if isinstance(module, PackedLinear):
                _ = module.weight_value  # built and checked while its tensors are there; it refers to them, and asks no more
        # What was read may have been replaced since; it is still known here, and would hold its values for good.
        for tensor in [*self.read.pop(block, []), *_tensors(self.blocks[block])]:
            if id(tensor) in self.stored:
                tensor.data = absent(tensor.shape, tensor.dtype)
        give_back()

    def _write(self, tensor: Tensor) -> None:
        if tensor.numel() < 2:
            return
        known = self.stored.get(id(tensor))
        if known is not None and known[0] is tensor and known[1].path.parent == self.folder:
            known[1].path.unlink(missing_ok=True)
        path = self.folder / f"tensor-{secrets.token_hex(8)}"
        _to_file(tensor, path)
        self.stored[id(tensor)] = tensor, Stored(path, 0, tensor.dtype, tuple(tensor.shape))


class Filed(MutableSequence[Tensor]):
    """A list of tensors that are on disk, one file each; a place that is set anew takes a new file."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.places: list[Stored] = []

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> MutableSequence[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | MutableSequence[Tensor]:
        if isinstance(index, slice):
            return [place.read() for place in self.places[index]]
        return self.places[index].read()

    def __setitem__(self, index: Any, value: Any) -> None:
        self.places[index].path.unlink()
        self.places[index] = self._put(value)

    def __delitem__(self, index: Any) -> None:
        self.places.pop(index).path.unlink()

    def insert(self, index: int, value: Tensor) -> None:
        self.places.insert(index, self._put(value))

    def _put(self, value: Tensor) -> Stored:
        path = self.folder / f"activations-{secrets.token_hex(8)}"
        _to_file(value, path)
        return Stored(path, 0, value.dtype, tuple(value.shape))

    def __del__(self) -> None:
        for place in self.places:
            place.path.unlink(missing_ok=True)


def absent(shape: Iterable[int], dtype: torch.dtype) -> Tensor:
    """Something of this shape and dtype that takes no memory and is no number, where the dtype knows such."""
    return torch.full((), float("nan") if dtype.is_floating_point else 0, dtype=dtype).expand(tuple(shape))


def is_absent(tensor: Tensor) -> bool:
    return tensor.numel() > 1 and not any(tensor.stride())


def everything_present(block: int) -> AbstractContextManager[None]:
    """Of a model that is in memory."""
    return nullcontext()


def _tensors(module: nn.Module) -> list[Tensor]:
    return list({id(t): t for t in [*module.parameters(), *module.buffers()]}.values())


def _to_file(tensor: Tensor, path: Path) -> None:
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
