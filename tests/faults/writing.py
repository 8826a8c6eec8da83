"""Writers that are killed, that find no room, that are not alone; and readers that come while something is replaced.

A model is only ever replaced by another whose tensors have the same names and shapes, so that a mixture would open.
"""

import errno
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import guard
from safetensors.torch import load_file

from trimtab.core.errors import TrimtabError, UsageError
from trimtab.host import checkpoint, manifest, publish
from trimtab.testing.tiny import tiny

SHARD = "150kB"
ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES)
OLD, NEW, MIXED, NONE, BROKEN = "old", "new", "mixed", "none", "broken"
Save = Callable[[Any, Path], Any]


@cache
def models() -> tuple[Any, Any]:
    """An old and a new one."""
    return tiny("llama", seed=0, vocab_size=400), tiny("llama", seed=1, vocab_size=400)


def ours(model: Any, folder: Path) -> None:
    checkpoint.save(model, None, folder, overwrite=True, max_shard_size=SHARD)


def stock(model: Any, folder: Path) -> None:
    model.save_pretrained(folder, max_shard_size=SHARD)


def state(folder: Path) -> str:
    """Which model is there, by every tensor of it."""
    if not folder.exists():
        return NONE
    try:
        held = {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}
    except Exception:  # what the library raises for half a file differs
        return BROKEN
    old, new = (model.state_dict() for model in models())
    if held.keys() != {name for name in old if name in held} or len(held) < len(old) - 1:
        return BROKEN
    found = [next((k for k, them in ((OLD, old), (NEW, new)) if held[n].equal(them[n])), BROKEN) for n in held]
    differing = {kind for kind, name in zip(found, held, strict=True) if not old[name].equal(new[name])}
    return differing.pop() if len(differing) == 1 else MIXED


def killed_while_overwriting(place: Path, save: Save, kills: int, draw: Random) -> Counter[str]:
    """What is there after a process that replaced one model by the other, over and over, was killed at any moment."""
    found: Counter[str] = Counter()
    save(models()[0], place)
    start = time.perf_counter()
    save(models()[1], place)
    longest = max(0.3, 4 * (time.perf_counter() - start))
    for _ in range(kills):
        child = _forked(lambda: _for_ever(save, place))
        time.sleep(draw.uniform(0, longest))
        _kill(child)
        publish.recover(place)
        found[state(place)] += 1
    return found


def _for_ever(save: Save, place: Path, pause: float = 0.0) -> None:
    while True:
        for model in reversed(models()):
            save(model, place)
            time.sleep(pause)


def killed_at_every_point(place: Path) -> Counter[str]:
    """The same, killed before and after each call that the commit consists of."""
    found: Counter[str] = Counter()
    for point in range(1, 1000):
        ours(models()[0], place)
        child = _forked(lambda point=point: _until(point, lambda: ours(models()[1], place), _suicide))
        _, status = os.waitpid(child, 0)
        publish.recover(place)
        found[state(place)] += 1
        with suppress(TrimtabError):
            manifest.verify(place)
            found["verified"] += 1
        if not os.WIFSIGNALED(status):
            return found
    raise AssertionError("the commit has no end")


def errors_at_every_point(place: Path, which: int) -> guard.Tally:
    """Every call of the commit fails once with this error: refused in one line, the old model whole, nothing left over."""
    tally = guard.Tally()
    for point in range(1, 1000):
        ours(models()[0], place)
        failed: list[int] = []

        def fail(failed: list[int] = failed) -> None:
            failed.append(1)
            raise OSError(which, os.strerror(which))

        outcome = guard.judged(lambda point=point, fail=fail: _until(point, lambda: ours(models()[1], place), fail))
        left = [path.name for path in place.parent.iterdir() if path.name.startswith(".")]
        publish.recover(place)
        now = state(place)
        if not failed:
            return tally
        if outcome.kind == guard.REFUSED and (left or now not in (OLD, NEW)):
            outcome = guard.Outcome(guard.FAULT, f"{now} and {left} after {outcome.said}")
        tally.add(f"{errno.errorcode[which]} at {point}", outcome)
    raise AssertionError("the commit has no end")


@contextmanager
def small_disk(place: Path, size: int) -> Iterator[None]:
    """A file system with so many bytes. Needs the right to mount one."""
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def can_mount(place: Path) -> bool:
    try:
        with small_disk(place, 1 << 20):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def no_room(place: Path, points: int) -> guard.Tally:
    """The disk is full after 1 to 99 % of what is written. The check beforehand sees more: another process took the room."""
    tally, old = guard.Tally(), place.parent / "old"
    ours(models()[0], old)
    need = sum(-(-path.stat().st_size // 4096) * 4096 for path in old.iterdir())
    for number in range(points):
        part = 0.01 + 0.98 * number / max(1, points - 1)
        with small_disk(place, int(need * (1 + part)) // 4096 * 4096):
            target = shutil.copytree(old, place / "model")
            tally.add(f"{part:.0%}, seen before", _refused_for_room(target))
            with _blind():
                tally.add(f"{part:.0%}", _refused_for_room(target))
            left = [path.name for path in place.iterdir() if path.name.startswith(".")]
            if state(target) != OLD or left:
                tally.add(f"{part:.0%}", guard.Outcome(guard.FAULT, f"{state(target)} is there, and {left}"))
    return tally


def _refused_for_room(target: Path) -> guard.Outcome:
    outcome = guard.judged(lambda: ours(models()[1], target))
    if outcome.kind != guard.REFUSED or "room" not in outcome.said:
        return guard.Outcome(guard.FAULT, f"{outcome.kind}: {outcome.said}")
    return outcome


@contextmanager
def _blind() -> Iterator[None]:
    """Without the check beforehand, as if another process took the room after it."""
    before, publish.ensure_space = publish.ensure_space, lambda folder, needs: None  # type: ignore[assignment]
    try:
        yield
    finally:
        publish.ensure_space = before


def second_writer(place: Path) -> tuple[guard.Outcome, int]:
    """What somebody is told who writes where another process is writing, and that process."""
    told, tell = os.pipe()
    child = _forked(lambda: _hold(place, tell))
    try:
        os.read(told, 1)
        start = time.monotonic()
        outcome = guard.judged(lambda: ours(models()[1], place))
        return replace(outcome, seconds=time.monotonic() - start), child
    finally:
        _kill(child)
        os.close(told)
        os.close(tell)


def _hold(place: Path, tell: int) -> None:
    with publish.publish(place, overwrite=True):
        os.write(tell, b"x")
        time.sleep(60)


def readers_meanwhile(place: Path, seconds: float) -> Counter[str]:
    """What a reader gets while another process replaces the model over and over."""
    found: Counter[str] = Counter()
    ours(models()[0], place)
    child = _forked(lambda: _for_ever(ours, place, 0.2))
    old, new = (model.state_dict() for model in models())
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            try:
                held = checkpoint.load(place)[0].state_dict()
            except UsageError:
                found["refused"] += 1
                continue
            same = [all(held[name].equal(them[name]) for name in held) for them in (old, new)]
            found[OLD if same[0] else NEW if same[1] else MIXED] += 1
    finally:
        _kill(child)
    return found


def _until(point: int, work: Callable[[], Any], then: Callable[[], Any]) -> None:
    """Runs `work`; before and after every call that touches the disk by name is a point, and at that one `then` happens."""
    calls = 0

    def passed() -> None:
        nonlocal calls
        calls += 1
        if calls == point:
            then()

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            passed()
            made = function(*arguments, **named)
            passed()
            return made

        return call

    touched = ((publish.os, "fsync"), (publish.os, "rename"), (publish, "_exchange"), (manifest, "write"), (Path, "mkdir"))
    before = [getattr(owner, name) for owner, name in touched]
    try:
        for (owner, name), function in zip(touched, before, strict=True):
            setattr(owner, name, watched(function))
        work()
    finally:
        for (owner, name), function in zip(touched, before, strict=True):
            setattr(owner, name, function)


def _suicide() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _forked(work: Callable[[], Any]) -> int:
    child = os.fork()
    if child:
        return child
    try:
        work()
    finally:
        os._exit(0)


def _kill(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
