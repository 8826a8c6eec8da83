"""A folder of state: objects named by what is in them, and one pointer that says which of them count.

An object is written under a temporary name, forced to disk, and renamed to its SHA-256; so a name promises its content, and
that is checked when it is read. A generation is a JSON object that refers to others. The file `CURRENT` names the last two
generations, newest first, and is replaced in one step: that step is the commit, and what it does not name does not exist.
Where something of the newest generation is damaged, the one before it counts.

One process at a time: the lock ends with its holder, however that ends, and names it to everybody else.
"""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save_file
from torch import Tensor

from trimtab.core.errors import ModelError, UsageError
from trimtab.host.instants import reached
from trimtab.host.locks import take_now
from trimtab.host.publish import sync

CURRENT, LOCK, OBJECTS = "CURRENT", "lock", "objects"
KEPT = 2  # generations
LARGEST_JSON = 1 << 28


class Damaged(ModelError):
    """An object that is missing, or is not what its name says."""


class Store:
    """State in `folder`, which the caller holds (`held`). Objects are put first, then a generation is committed."""

    def __init__(self, folder: Path):
        self.folder, self.objects = folder, folder / OBJECTS
        self.waiting: list[tuple[Path, Path]] = []  # written, but not under their names yet

    def put(self, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> str:
        """The name of an object with these tensors and this JSON. It is durable from the next commit on."""
        temporary = self._temporary()
        save_file({name: _alone(t) for name, t in tensors.items()}, temporary, {"about": json.dumps(about, default=str)})
        return self._wait(temporary, ".safetensors")

    def get(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What `put` was given. Raises `Damaged`."""
        data = self._checked(name)
        length = int.from_bytes(data[:8], "little")
        try:
            about = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["about"])
            return read_tensors(data), about
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise Damaged(f"{self.objects / name} is no object of this format: {error}") from error

    def commit(self, content: Mapping[str, Any], refers: set[str]) -> None:
        """Make `content` the newest generation. refers: the objects and folders that belong to it."""
        generation = self._wait(self._written(json.dumps({"content": content, "refers": sorted(refers)}, default=str)), ".json")
        self._name_waiting()
        reached("commit: objects")
        names = [generation, *(n for n in self._named() if n != generation)][:KEPT]
        temporary = self._written(json.dumps(names), self.folder)
        sync(temporary)
        reached("commit: written")
        os.replace(temporary, self.folder / CURRENT)
        reached("commit: pointed")
        sync(self.folder)
        reached("commit: done")
        self._clean(names)
        reached("commit: cleaned")

    def newest(self) -> dict[str, Any] | None:
        """The content of the newest generation that is whole; None if nothing was ever committed.

        Raises `ModelError` where there are generations and all of them are damaged.
        """
        names = self._named()
        problems = []
        for name in names:
            try:
                generation = self._generation(name)
                for other in generation["refers"]:
                    self.check(other)
                content: dict[str, Any] = generation["content"]
                return content
            except Damaged as error:
                problems.append(str(error))
        if problems:
            raise ModelError(f"all that was kept in {self.folder} is damaged ({problems[0]}); start over with --fresh")
        return None

    def check(self, name: str) -> None:
        """Raises `Damaged` if an object is not what its name says; of a folder, if it is not there."""
        if "." in name:
            self._checked(name)
        elif not (self.folder / name).is_dir():
            raise Damaged(f"{self.folder / name} is missing")

    def drop(self) -> None:
        """Forget what was put since the last commit."""
        self.waiting.clear()
        with suppress(ModelError):
            self._clean(self._named())

    def clear(self) -> None:
        """Forget everything, the pointer first."""
        (self.folder / CURRENT).unlink(missing_ok=True)
        sync(self.folder)
        self._clean([])

    def _named(self) -> list[str]:
        """The generations that count, newest first. Raises `ModelError` if the pointer is damaged."""
        path = self.folder / CURRENT
        if not path.exists():
            return []
        try:
            names = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(names, list) or not all(isinstance(n, str) and Path(n).name == n for n in names):
                raise ValueError("not a list of names")
        except (OSError, ValueError, RecursionError) as error:
            raise ModelError(f"{path} is damaged ({error}); start over with --fresh") from error
        return names

    def _generation(self, name: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self._checked(name))
            if not {"content", "refers"} <= found.keys():
                raise ValueError("it lacks a field")
        except (ValueError, AttributeError, RecursionError) as error:
            raise Damaged(f"{self.objects / name} is no generation: {error}") from error
        return found

    def _checked(self, name: str) -> bytes:
        path = self.objects / Path(name).name
        try:
            data = path.read_bytes()
        except OSError as error:
            raise Damaged(f"{path} cannot be read: {error.strerror}") from error
        if hashlib.sha256(data).hexdigest() != path.stem:
            raise Damaged(f"{path} has changed since it was written")
        return data

    def _temporary(self, folder: Path | None = None) -> Path:
        self.objects.mkdir(exist_ok=True)
        return (folder or self.objects) / f"new-{secrets.token_hex(8)}"

    def _written(self, text: str, folder: Path | None = None) -> Path:
        temporary = self._temporary(folder)
        temporary.write_text(text, encoding="utf-8")
        return temporary

    def _wait(self, temporary: Path, suffix: str) -> str:
        reached("object: written")
        with temporary.open("rb") as file:
            name = hashlib.file_digest(file, "sha256").hexdigest() + suffix
        self.waiting.append((temporary, self.objects / name))
        return name

    def _name_waiting(self) -> None:
        for temporary, _ in self.waiting:
            sync(temporary)
        reached("object: on disk")
        for temporary, path in self.waiting:
            os.replace(temporary, path)
            reached("object: named")
        self.waiting.clear()
        sync(self.objects)

    def _clean(self, names: list[str]) -> None:
        """Remove what the generations do not refer to. A commit stays one if this fails."""
        wanted = {*names, OBJECTS, LOCK, CURRENT}
        for name in names:
            with suppress(Damaged):
                wanted.update(self._generation(name)["refers"])
        there = [*self.folder.iterdir(), *(self.objects.iterdir() if self.objects.is_dir() else ())]
        for path in there:
            if path.name not in wanted:
                _remove(path)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Makes the folder if need be and holds it. Raises `UsageError` at once if another process does, naming it.

    At the end the folder is removed, unless a generation was committed to it.
    """
    lock = _locked(folder)
    try:
        yield
    finally:
        if os.name != "posix":
            lock.close()  # only POSIX systems can remove a file that is open
        if not (folder / CURRENT).exists():
            shutil.rmtree(folder, ignore_errors=True)
            reached("state: removed")
        lock.close()


def _locked(folder: Path) -> IO[bytes]:
    path = folder / LOCK
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            file = path.open("ab+", buffering=0)
        except FileNotFoundError:  # removed in between by whoever had finished
            continue
        if not take_now(file.fileno()):
            file.seek(0)
            holder = file.read(32).decode(errors="replace").strip() or "unknown"
            file.close()
            raise UsageError(f"process {holder} is writing there ({folder}); wait for it, or choose another output")
        if _is_still(path, file):
            file.truncate(0)
            file.write(f"{os.getpid()}\n".encode())
            return file
        file.close()


def _is_still(path: Path, file: IO[bytes]) -> bool:
    """Whether the open file is the one at the path; it may have been removed before it was locked."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _alone(tensor: Tensor) -> Tensor:
    """On the CPU, row by row, and all there is in its memory."""
    plain = tensor.detach().cpu().contiguous()
    return plain if plain.untyped_storage().nbytes() == plain.nbytes else plain.clone()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
