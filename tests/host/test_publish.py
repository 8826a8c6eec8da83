"""A folder appears whole or not at all: exceptions, interrupts, kills and full disks leave the old one or the new one."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from trimtab.core.errors import ModelError, TrimtabError, UsageError
from trimtab.host import manifest, publish
from trimtab.host.publish import ensure_space, recover

OLD, NEW = "old", "new"


def write(folder: Path, text: str, files: int = 3) -> None:
    for number in range(files):
        (folder / f"part-{number}.safetensors").write_text(text * 1000)
    (folder / "config.json").write_text("{}")


def published(target: Path, text: str, overwrite: bool = False, needs: int = 0, then: Callable[[], None] = lambda: None) -> None:
    with publish.publish(target, overwrite, needs) as partial:
        write(partial, text)
        then()


def state(target: Path) -> str:
    """Which model is there. Fails on anything that is neither none, old nor new as a whole."""
    if not target.exists():
        return "none"
    manifest.verify(target)
    (text,) = {p.read_text()[:3] for p in target.glob("part-*")}
    assert len(list(target.glob("part-*"))) == 3
    assert (target / manifest.NAME).exists()
    return text


def hidden(target: Path) -> list[str]:
    return [p.name for p in target.parent.iterdir() if p.name.startswith(".")]


def test_writes_a_manifest_and_leaves_nothing_else(tmp_path):
    published(tmp_path / "deep" / "model", NEW)
    content = json.loads((tmp_path / "deep" / "model" / "trimtab.json").read_text())
    assert set(content) == {"format", "created", "versions", "files"}
    assert set(content["files"]) == {"part-0.safetensors", "part-1.safetensors", "part-2.safetensors", "config.json"}
    assert content["versions"].keys() == {"trimtab", "torch", "transformers"}
    assert state(tmp_path / "deep" / "model") == NEW
    assert hidden(tmp_path / "deep" / "model") == []


def test_refuses_an_existing_target_before_any_work(tmp_path):
    published(tmp_path / "model", OLD)
    with pytest.raises(UsageError, match="exists"), publish.publish(tmp_path / "model"):
        pytest.fail("the body must not run")
    assert state(tmp_path / "model") == OLD


def test_replaces_only_when_asked_and_only_models(tmp_path):
    published(tmp_path / "model", OLD)
    published(tmp_path / "model", NEW, overwrite=True)
    assert state(tmp_path / "model") == NEW
    assert hidden(tmp_path / "model") == []
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "diary.txt").write_text("dear diary")
    with pytest.raises(UsageError, match="not a model folder"), publish.publish(tmp_path / "home", overwrite=True):
        pytest.fail("the body must not run")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"), publish.publish(tmp_path / "file", overwrite=True):
        pytest.fail("the body must not run")


def test_an_empty_folder_may_be_filled(tmp_path):
    (tmp_path / "model").mkdir()
    published(tmp_path / "model", NEW)
    assert state(tmp_path / "model") == NEW


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("before", ["none", OLD])
def test_an_exception_leaves_what_was_there(tmp_path, error, before):
    if before == OLD:
        published(tmp_path / "model", OLD)

    def interrupted():
        raise error

    with pytest.raises(error):
        published(tmp_path / "model", NEW, overwrite=True, then=interrupted)
    assert state(tmp_path / "model") == before
    assert hidden(tmp_path / "model") == []


def test_nothing_written_is_an_error(tmp_path):
    with pytest.raises(TrimtabError, match="nothing was written"), publish.publish(tmp_path / "model"):
        pass
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("exchange", [True, False])
def test_without_the_exchange_call_the_result_is_the_same(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(publish, "_exchange", lambda one, other: False)
    published(tmp_path / "model", OLD)
    published(tmp_path / "model", NEW, overwrite=True)
    assert state(tmp_path / "model") == NEW
    assert hidden(tmp_path / "model") == []


@pytest.mark.parametrize("where", ["fsync", "rename", "write"])
def test_a_full_disk_says_what_was_needed_and_keeps_the_old(tmp_path, monkeypatch, where):
    published(tmp_path / "model", OLD)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(publish, "_exchange", lambda one, other: False)
    if where != "write":
        monkeypatch.setattr(publish.os, where, full)
    then = full if where == "write" else lambda: None
    with pytest.raises(UsageError, match=r"is full: it needs 12\.35 kB, .* are free"):
        published(tmp_path / "model", NEW, overwrite=True, needs=12345, then=then)
    monkeypatch.undo()
    assert state(tmp_path / "model") == OLD
    assert hidden(tmp_path / "model") == []


def test_other_writers_report_a_full_disk_as_text(tmp_path):
    with pytest.raises(UsageError, match="is full"), publish.publish(tmp_path / "model"):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


def test_preflight(tmp_path):
    ensure_space(tmp_path / "not" / "there" / "yet", 1000)
    with pytest.raises(UsageError, match=r"needs 1e\+05 TB but .* are free"):
        ensure_space(tmp_path / "model", 10**17)
    with pytest.raises(UsageError, match="are free there"), publish.publish(tmp_path / "model", needs=10**17):
        pytest.fail("the body must not run")


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"), publish.publish(tmp_path / "file" / "model"):
        pytest.fail("the body must not run")
    with pytest.raises(UsageError, match="cannot write"), publish.publish(tmp_path / ("x" * 250)):
        pytest.fail("the body must not run")


CHILD = """
import os, signal, sys
from pathlib import Path
from trimtab.host import publish, manifest
target, point, exchange = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "exchange"
calls = 0

def watched(function):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == point:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **kwargs)
        calls += 1
        if calls == point:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call

swap = publish._exchange if exchange else lambda one, other: False
publish._exchange = watched(swap)
publish.manifest.write = watched(manifest.write)
publish.os.fsync, publish.os.rename, publish.shutil.rmtree = map(
    watched, (os.fsync, os.rename, publish.shutil.rmtree))
with publish.publish(target, overwrite=True) as partial:
    for number in range(3):
        watched((partial / f"part-{number}.safetensors").write_text)("new" * 1000)
    (partial / "config.json").write_text("{}")
print(calls)
"""


def child(target: Path, point: int, exchange: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", CHILD, str(target), str(point), exchange], capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("exchange", ["exchange", "rename"])
def test_killed_at_every_point_the_target_is_all_old_or_all_new(tmp_path, exchange):
    published(tmp_path / "whole", OLD)
    points = int(child(tmp_path / "whole", 0, exchange).stdout)
    assert points >= 20
    seen = []
    for point in range(1, points + 1):
        target = tmp_path / f"m{point}" / "model"
        published(target, OLD)
        assert child(target, point, exchange).returncode == -signal.SIGKILL
        if exchange == "rename":
            recover(target)
        seen.append(state(target))
        published(target, NEW, overwrite=True)
        assert (state(target), hidden(target)) == (NEW, [])
    assert seen == sorted(seen, reverse=True)
    assert set(seen) == {OLD, NEW}


def test_what_a_living_writer_writes_is_not_touched(tmp_path):
    with publish.publish(tmp_path / "model") as partial:
        write(partial, NEW)
        recover(tmp_path / "model")
        assert partial.exists()
        with publish.publish(tmp_path / "model") as other:
            write(other, OLD)
        assert state(tmp_path / "model") == OLD
        (tmp_path / "model").rename(tmp_path / "elsewhere")
    assert state(tmp_path / "model") == NEW


def test_the_second_of_two_writers_is_refused(tmp_path):
    with pytest.raises(UsageError, match="appeared"):
        published(tmp_path / "model", NEW, then=lambda: published(tmp_path / "model", OLD))
    assert state(tmp_path / "model") == OLD
    assert hidden(tmp_path / "model") == []


def test_a_partial_folder_of_a_locked_dead_id_stays(tmp_path):
    """Another container's process has an id that is not alive here, but it holds the lock."""
    script = (
        "import fcntl, os, sys, time; h = os.open(sys.argv[1], os.O_RDONLY); fcntl.flock(h, fcntl.LOCK_EX);"
        "print('locked', flush=True); time.sleep(60)"
    )
    foreign = tmp_path / ".model.partial-999999999-abcd"
    foreign.mkdir()
    with subprocess.Popen([sys.executable, "-c", script, str(foreign)], stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        recover(tmp_path / "model")
        assert foreign.exists()
        holder.kill()
    deadline = time.monotonic() + 5
    while foreign.exists() and time.monotonic() < deadline:
        recover(tmp_path / "model")
    assert not foreign.exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "part-1.safetensors").unlink(), "part-1.safetensors is missing"),
        (lambda f: (f / "part-1.safetensors").write_text("new" * 999), "part-1.safetensors has changed size"),
        (lambda f: (f / "part-1.safetensors").write_text("nex" + "new" * 999), "part-1.safetensors has changed"),
        (lambda f: (f / "generation_config.json").write_text("{}"), "generation_config.json was added"),
        (lambda f: (f / "trimtab.json").write_text("[1]"), "not readable as a manifest"),
        (lambda f: (f / "trimtab.json").write_text('{"format": 9, "files": {}}'), "format 9"),
        (lambda f: (f / "trimtab.json").write_text("[" * 100000), "not readable as a manifest"),
    ],
)
def test_verify_names_the_file(tmp_path, damage, message):
    published(tmp_path / "model", NEW)
    manifest.verify(tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(ModelError, match=message):
        manifest.verify(tmp_path / "model")


def test_verify_lets_people_edit_the_card(tmp_path):
    with publish.publish(tmp_path / "model") as partial:
        write(partial, NEW)
        (partial / "README.md").write_text("card")
    (tmp_path / "model" / "README.md").write_text("better card")
    (tmp_path / "model" / ".gitattributes").write_text("")
    manifest.verify(tmp_path / "model")
