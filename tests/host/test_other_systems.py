"""What differs on systems that are not POSIX, tried with their calls exchanged for stand-ins."""

import ast
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import psutil
import pytest

from trimtab.core.errors import UsageError
from trimtab.host import locks, peak, publish, store
from trimtab.host.publish import check_target


class Locking(ModuleType):
    """msvcrt, as far as it is used: a byte of a file can be held once."""

    LK_NBLCK, LK_UNLCK = 2, 0

    def __init__(self) -> None:
        super().__init__("msvcrt")
        self.held: set[tuple[int, int]] = set()
        self.refusals = 0

    def locking(self, handle: int, what: int, count: int) -> None:
        byte = (os.fstat(handle).st_ino, os.lseek(handle, 0, os.SEEK_CUR))
        assert count == 1
        if what == self.LK_UNLCK:
            self.held.remove(byte)
            return
        if self.refusals or byte in self.held:
            self.refusals = max(0, self.refusals - 1)
            raise PermissionError(13, "Permission denied")
        self.held.add(byte)


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Locking]:
    """trimtab.host.locks as Windows would load it, and the calls under it."""
    system = Locking()
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "msvcrt", system)
    spec = importlib.util.spec_from_file_location("locks_of_windows", locks.__file__)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, system


def test_one_at_a_time_without_flock(windows, tmp_path, monkeypatch):
    module, system = windows
    waited: list[float] = []
    monkeypatch.setattr(module.time, "sleep", waited.append)
    system.refusals = 3
    with module.alone(tmp_path / "here" / "lock"):
        assert len(waited) == 3
        assert module.is_taken(tmp_path / "here" / "lock")
    assert not module.is_taken(tmp_path / "here" / "lock")
    assert not system.held


def test_a_lock_does_not_move_where_a_file_is_read_and_written(windows, tmp_path):
    module, system = windows
    path = tmp_path / "lines"
    path.write_bytes(b"one\n")
    with path.open("ab+") as file, module.alone_in(file):
        file.seek(0)
        assert file.read() == b"one\n"
        file.write(b"two\n")
    assert path.read_bytes() == b"one\ntwo\n"
    assert not system.held


def test_state_is_held_without_flock(windows, tmp_path, monkeypatch):
    module, _ = windows
    monkeypatch.setattr(store, "take_now", module.take_now)
    monkeypatch.setattr(store, "os", Elsewhere())
    monkeypatch.setattr(publish, "os", Elsewhere())
    with store.held(tmp_path / "state"):
        held = store.Store(tmp_path / "state")
        held.commit({"n": 1}, set())
        assert held.newest() == {"n": 1}
        with pytest.raises(UsageError, match=f"process {os.getpid()} is writing there"), store.held(tmp_path / "state"):
            pytest.fail("two at a time")
        held.clear()
    assert not (tmp_path / "state").exists()


def test_modules_of_posix_are_imported_only_where_they_are():
    """At the top of a file, that is: what is inside of a function or a condition knows what it does."""
    wrong = []
    for file in (Path(locks.__file__).parents[1]).rglob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None)]
            wrong += [(file.name, name) for name in names if name in ("fcntl", "resource", "pwd", "grp", "termios")]
    assert not wrong


def test_peak_memory_without_getrusage(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=123)))
    assert peak.peak_memory() == 123


class Elsewhere:
    """os, on a system that opens no folders and replaces none by a rename."""

    name = "another"

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: Any, *given: Any) -> int:
        assert not Path(path).is_dir(), "a folder cannot be opened there"
        return os.open(path, *given)

    def rename(self, old: Any, new: Any) -> None:
        assert not Path(new).exists(), "a name cannot be taken by a rename there"
        os.rename(old, new)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "os", Elsewhere())
    monkeypatch.setattr(publish, "sys", SimpleNamespace(platform="another"))  # two names cannot be exchanged either


def write(target: Path, text: str, overwrite: bool = False) -> None:
    with publish.publish(target, overwrite) as partial:
        (partial / "config.json").write_text(text, encoding="utf-8")


def test_folders_are_published_elsewhere(elsewhere, tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    write(target, "first")
    write(target, "second", overwrite=True)
    assert (target / "config.json").read_text(encoding="utf-8") == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_a_dead_writer_left_is_removed_elsewhere(elsewhere, tmp_path):
    alive, dead = (tmp_path / f".model.partial-{pid}-abcd" for pid in (os.getpid(), 2**22 + 1))
    for folder in (alive, dead):
        folder.mkdir()
    check_target(tmp_path / "model")
    assert alive.is_dir()
    assert not dead.exists()
