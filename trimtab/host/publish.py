"""A folder appears whole or not at all.

Files are written into a hidden sibling of the target, `.NAME.partial-PID-RANDOM`; when all are there they get a manifest,
are forced to disk, and the sibling is renamed to the target: the one step that makes them a model. Where a target is
replaced, Linux exchanges the two names in that one step (`renameat2` with RENAME_EXCHANGE). Where the system has no such
call the old folder is renamed aside first; a process killed between the two renames leaves no target, and the next
`recover` or `publish` puts the old folder back.

A writer holds a lock on its sibling, so what a killed process left behind can be told from what another one is still
writing; the next publication under the same name removes the former.
"""

import ctypes
import errno
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from trimtab.core.errors import TrimtabError, UsageError
from trimtab.host import manifest
from trimtab.host.instants import reached
from trimtab.host.locks import take_now

FULL = (errno.ENOSPC, errno.EDQUOT)
SLACK = 1 << 20
LONGEST_NAME = 200  # bytes: 255 are allowed, and hidden siblings have longer names
AT_FDCWD, RENAME_EXCHANGE = -100, 2
CANNOT = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)


@contextmanager
def publish(
    folder: str | Path, overwrite: bool = False, needs: int = 0, ready: Callable[[Path], None] | None = None
) -> Iterator[Path]:
    """Yields an empty folder to write into; on success it becomes `folder`, on any exception it vanishes.

    overwrite: an existing model folder may be replaced (never a folder that is something else). needs: bytes that will be
    written, for the check beforehand and for the message when the disk is full. ready: called with what is about to be renamed,
    whole and on disk. Raises `UsageError` before any work if the
    target exists, cannot be written, or there is too little space.
    """
    target = check_target(folder, overwrite)
    ensure_space(target, needs)
    partial = _sibling(target, "partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _check_alone(target)
        lock = _locked(partial)
    except OSError as error:
        raise UsageError(f"cannot write beside {target}: {error.strerror}") from error
    try:
        yield partial
        _finish(partial)
        reached("publish: whole")
        if ready is not None:
            ready(partial)
        _put_in_place(partial, target, overwrite)
        reached("publish: done")
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if is_full(error):
            raise _full(target, needs) from error
        if isinstance(error, OSError):
            raise TrimtabError(f"{target} could not be written: {error.strerror or error}; nothing was published") from error
        raise
    finally:
        if lock is not None:
            os.close(lock)


def ensure_space(folder: Path, needs: int) -> None:
    """Raises `UsageError` if the disk that `folder` is (or will be) on has less than `needs` bytes free."""
    where = existing(folder)
    free = shutil.disk_usage(where).free
    if needs and needs + SLACK > free:
        raise UsageError(f"{folder} needs {_size(needs)} but {_size(free)} are free there; choose another disk or make room")


def recover(folder: str | Path) -> None:
    """Puts a folder back that a killed process had moved aside, and removes what dead processes left beside it."""
    target = Path(folder)
    aside = [path for path in target.parent.glob(f".{_escaped(target.name)}.aside-*") if _is_abandoned(path)]
    aside.sort(key=lambda path: path.stat().st_ctime_ns)
    if aside and not target.exists():
        os.rename(aside.pop(), target)
    partial = target.parent.glob(f".{_escaped(target.name)}.partial-*")
    for path in [*aside, *filter(_is_abandoned, partial)]:
        shutil.rmtree(path, ignore_errors=True)  # what cannot be removed now is only hidden clutter


def is_unfinished(folder: Path) -> bool:
    """Whether this is a sibling in which a model is (or was) being written."""
    return folder.name.startswith(".") and ".partial-" in folder.name


def check_target(folder: str | Path, overwrite: bool = False) -> Path:
    """The absolute path of a folder that may be written. Raises `UsageError` if it may not; makes nothing."""
    target = Path(folder).expanduser().resolve()
    if not target.name:
        raise UsageError(f"{folder} is no name for a model folder")
    if len(os.fsencode(target.name)) > LONGEST_NAME:
        raise UsageError(f"cannot write {target.name[:40]}...: a name of more than {LONGEST_NAME} bytes; choose a shorter one")
    try:
        _check_outside(target)
        recover(target)
        if target.exists():
            _check_existing(target, overwrite)
    except OSError as error:
        raise UsageError(f"cannot write to {target}: {error.strerror}") from error
    return target


def check_apart(source: str | Path, target: str | Path) -> None:
    """Raises `UsageError` if a model would be written over the one that it is made from."""
    if Path(source).expanduser().resolve() == Path(target).expanduser().resolve():
        raise UsageError(f"{target} is the model that is read; choose another name for the result")


def _check_outside(target: Path) -> None:
    """A folder inside of a model folder would make a damaged model of that one."""
    for parent in target.parents:
        if (parent / manifest.NAME).is_file():
            raise UsageError(f"{target} is inside of the model folder {parent}; choose a place outside of it")


def _check_alone(target: Path) -> None:
    """Raises `UsageError` naming the process that writes the same folder now."""
    for path in target.parent.glob(f".{_escaped(target.name)}.partial-*"):
        pid = _writer(path)
        if pid is not None and pid != os.getpid() and not _is_abandoned(path):
            raise UsageError(f"process {pid} is writing {target}; wait for it, or choose another name")


def _check_existing(target: Path, overwrite: bool) -> None:
    if not target.is_dir():
        raise UsageError(f"{target} is a file; give the name of a folder")
    names = {path.name for path in target.iterdir()}
    if not names:
        return
    if not overwrite:
        raise UsageError(f"{target} exists; choose another name or allow overwriting (--overwrite, overwrite=True)")
    if not names & {manifest.NAME, "config.json"}:
        raise UsageError(f"{target} is not a model folder and will not be replaced; choose another name")


def _locked(partial: Path) -> int | None:
    """Only POSIX systems can open a folder; elsewhere the process id in its name alone says that it is being written."""
    try:
        partial.mkdir()
        if os.name != "posix":
            return None
        handle = os.open(partial, os.O_RDONLY)
        take_now(handle)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return handle


def _finish(partial: Path) -> None:
    if not any(partial.iterdir()):
        raise TrimtabError(f"nothing was written for {partial.name}")
    manifest.write(partial)
    for path in [*partial.rglob("*"), partial]:
        sync(path)


def _put_in_place(partial: Path, target: Path, overwrite: bool) -> None:
    if not (target.exists() and any(target.iterdir())):
        if target.exists() and os.name != "posix":
            target.rmdir()  # it is empty; on POSIX systems the rename replaces it
        os.rename(partial, target)
        reached("publish: in place")
        sync(target.parent)
    elif overwrite:
        old = partial if _exchange(partial, target) else _replace(partial, target)
        reached("publish: in place")
        sync(target.parent)
        shutil.rmtree(old, ignore_errors=True)  # the new model is in place; the next recover removes leftovers
    else:
        raise UsageError(f"{target} appeared while this one was written; choose another name or allow overwriting")


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two names in one step. False where the system or the file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    if ctypes.get_errno() in CANNOT:
        return False
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(other))


def _replace(partial: Path, target: Path) -> Path:
    aside = _sibling(target, "aside")
    os.rename(target, aside)
    try:
        os.rename(partial, target)
    except BaseException:
        os.rename(aside, target)
        raise
    return aside


def sync(path: Path) -> None:
    """Forces a file, or the names in a folder, to disk."""
    if path.is_dir() and os.name != "posix":
        return  # only POSIX systems can open a folder
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _is_abandoned(path: Path) -> bool:
    """No living process of this system has this id, and nobody holds the lock (a process in another container might)."""
    pid = _writer(path)
    # psutil: asking with signal 0, as POSIX allows, would interrupt the process on Windows.
    if pid is None or psutil.pid_exists(pid):
        return False
    if os.name != "posix":
        return True
    with suppress(FileNotFoundError):
        handle = os.open(path, os.O_RDONLY)
        try:
            return take_now(handle)
        finally:
            os.close(handle)
    return False


def _writer(path: Path) -> int | None:
    """The process that made a hidden sibling."""
    pid = path.name.rpartition("-")[0].rpartition("-")[2]
    return int(pid) if pid.isdigit() and pid.isascii() and len(pid) < 10 else None


def _sibling(target: Path, what: str) -> Path:
    return target.parent / f".{target.name}.{what}-{os.getpid()}-{secrets.token_hex(4)}"


def existing(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that is there."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def is_full(error: BaseException) -> bool:
    """Whether this error, or the one behind it, says that there is no room left on the disk."""
    # Writers in other languages (safetensors) report the system's error as text only.
    full = (isinstance(error, OSError) and error.errno in FULL) or "os error 28" in str(error)
    return full or (error.__cause__ is not None and is_full(error.__cause__))


def _full(target: Path, needs: int) -> UsageError:
    free = shutil.disk_usage(existing(target)).free
    wanted = f"it needs {_size(needs)}, {_size(free)} are free" if needs else f"{_size(free)} are free"
    return UsageError(f"the disk of {target} is full: {wanted}; nothing was published, make room and try again")


def _size(count: int) -> str:
    value, units = float(count), iter(("bytes", "kB", "MB", "GB"))
    for unit in units:
        if value < 1000:
            return f"{value:.4g} {unit}"
        value /= 1000
    return f"{value:.4g} TB"
