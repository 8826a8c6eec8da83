"""What a sweep is not at waits on disk: only the block that is worked on takes memory.

A sweep looks at one block at a time, yet all the others stayed in memory from the first block to the last. So each of their
tensors is written to an unnamed temporary file and mapped from there: it can be read, and even written, as before, but takes
memory only where it is touched, and those pages can be let go at any time since the file has what is in them. The file the
model came from will not do instead: it often holds another dtype, it may be replaced meanwhile, and a model in memory has none.

Values and strides stay as they are, so no result can depend on it. Where the system, the kind of tensor or the room on disk
does not allow it, the tensor stays in memory; nothing else changes.
"""

import ctypes
import mmap
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from trimtab.anatomy import Anatomy
from trimtab.engine.memory import give_back
from trimtab.engine.packed_linear import PackedLinear

LEAST = 1 << 16  # bytes; smaller tensors are not worth a file
SPARE = 1 << 28  # bytes of the disk that are left alone
MOUNTS = Path("/proc/self/mountinfo")


class Shelf:
    """`with Shelf(anatomy) as shelf:` puts the whole model away; `with shelf.at(block):` has one block in memory.

    At the end everything is in memory again. use=False: nothing is ever put away.
    """

    def __init__(self, anatomy: Anatomy, use: bool = True):
        self.anatomy = anatomy
        self.away: dict[int, Tensor] = {}  # by identity
        self.hooks: list[Any] = []
        self.folder = _folder(sum(t.nbytes for t in _tensors(anatomy.model))) if use else None

    def __enter__(self) -> Self:
        try:
            self._put([self.anatomy.model])
        except BaseException:  # stopped on the way
            self._take(list(self.away.values()))
            raise
        self.hooks = [block.register_forward_hook(self._ran) for block in self.anatomy.blocks] if self.away else []
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for hook in self.hooks:
            hook.remove()
        self._take(list(self.away.values()))
        give_back()

    @contextmanager
    def at(self, block: int | None) -> Iterator[None]:
        """Inside, a block's tensors are in memory of their own; None: those outside of the blocks."""
        place = [self.anatomy.blocks[block]] if block is not None else self._outside()
        self._take([tensor for module in place for tensor in _tensors(module)])
        yield
        if block is not None:  # what is outside comes last and can stay
            self._put([self.anatomy.blocks[block]])

    def rest(self) -> None:
        """Let go of the pages that were read of tensors that are away. For a block that ran, this has been done."""
        self._rest(self.away.values())

    def _rest(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            if id(tensor) in self.away:
                _let_go(tensor)

    def _ran(self, block: nn.Module, args: Any, output: Any) -> None:
        self._rest(_tensors(block))

    def _put(self, modules: Iterable[nn.Module]) -> None:
        if self.folder is None:
            return
        users = Counter(t.untyped_storage().data_ptr() for t in _tensors(self.anatomy.model) if _plain(t))
        try:
            for module in modules:
                for packed in module.modules():
                    if isinstance(packed, PackedLinear):
                        packed.drop_cache()  # it refers to the tensors that are to go
                for tensor in _tensors(module):
                    if _movable(tensor) and users[tensor.untyped_storage().data_ptr()] == 1 and id(tensor) not in self.away:
                        tensor.data = _filed(tensor.data, self.folder)
                        self.away[id(tensor)] = tensor
        except OSError:  # the disk is full, or no longer there: what is not put away yet stays in memory
            self.folder = None
        give_back()

    def _take(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            if self.away.pop(id(tensor), None) is not None:
                tensor.data = tensor.data.clone()  # the last to use the mapping, so the file is gone, too

    def _outside(self) -> list[nn.Module]:
        """The modules that have tensors of their own and are in no block."""
        inside = {id(module) for module in self.anatomy.blocks.modules()}
        return [m for m in self.anatomy.model.modules() if id(m) not in inside and not any(True for _ in m.children())]


def _tensors(module: nn.Module) -> list[Tensor]:
    return list({id(t): t for t in [*module.parameters(), *module.buffers()]}.values())


def _plain(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, nn.Parameter) and tensor.is_cpu and tensor.layout is torch.strided


def _movable(tensor: Tensor) -> bool:
    """Whether it is all there is in its memory."""
    return (
        _plain(tensor)
        and tensor.nbytes >= LEAST
        and tensor.is_contiguous()
        and tensor.untyped_storage().nbytes() == tensor.nbytes
    )


def _filed(tensor: Tensor, folder: Path) -> Tensor:
    """The same values in a mapping of a file that is gone when the mapping is. Raises `OSError` where there is no room."""
    handle, name = tempfile.mkstemp(prefix="trimtab-", dir=folder)
    try:
        with open(handle, "wb") as file:  # written, not copied into the mapping: a full disk is then an error, not a signal
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
        storage = torch.UntypedStorage.from_file(name, True, tensor.nbytes)
    except RuntimeError as error:  # the system maps no more files
        raise OSError(f"{name} cannot be mapped: {error}") from error
    finally:
        os.unlink(name)
    made: Tensor = torch.empty(0, dtype=tensor.dtype).set_(storage, 0, tensor.shape, tensor.stride())  # type: ignore[arg-type]
    return made


def _let_go(mapped: Tensor) -> None:
    """Drop its pages. The mapping is shared with its file, so even what was written into them is kept."""
    length = -(-mapped.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    ctypes.CDLL(None).madvise(ctypes.c_void_p(mapped.data_ptr()), ctypes.c_size_t(length), mmap.MADV_DONTNEED)


def _folder(needs: int) -> Path | None:
    """Where temporary files go if that is a disk with room for so many bytes. Files "in memory" would win nothing."""
    if not sys.platform.startswith("linux"):  # elsewhere a mapped file cannot be unlinked, or its pages not be let go
        return None
    for name in (tempfile.gettempdir(), "/var/tmp"):
        try:
            if not _in_memory(Path(name)) and shutil.disk_usage(name).free > needs + SPARE:
                return Path(name)
        except OSError:
            continue
    return None


def _in_memory(folder: Path) -> bool:
    device = folder.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in MOUNTS.read_text(encoding="utf-8").splitlines():
        mount, _, system = line.partition(" - ")
        if mount.split()[2] == wanted:
            return system.split()[0] in ("tmpfs", "ramfs")
    return False
