"""Children that work, fail, die or hang: every task ends with one word, and nobody is left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from trimtab.host.processes import Said, running

WORKER = """
import os, signal, sys, time
from trimtab.host.processes import as_child

def work(task, say):
    print("a library talks")
    say("progress", task)
    if task == "raise":
        raise ValueError("no such thing")
    if task == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if task == "wait":
        say("progress", os.getpid())
        time.sleep(100)
    say("result", os.environ["OMP_NUM_THREADS"])

as_child(work)
"""
PARENT = """
from trimtab.host.processes import running
with running("worker", ["wait"], 1, {}, False) as said:
    for now in said:
        print(now.value, flush=True)
"""


@pytest.fixture
def variables(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "worker.py").write_text(WORKER, encoding="utf-8")
    return {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "3"}


def ends(said: Iterator[Said]) -> dict[int, tuple[str, str]]:
    return {now.task: (now.what, now.value) for now in said if now.what != "progress"}


def is_running(pid: int) -> bool:
    with suppress(ProcessLookupError, FileNotFoundError):
        os.kill(pid, 0)
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return False


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_task_ends_with_one_word(variables: dict[str, str], jobs: int) -> None:
    with running("worker", ["a", "raise", "die", "b"], jobs, variables, False) as said:
        found = ends(said)
    assert found == {
        0: ("result", "3"),
        1: ("error", "unexpected ValueError: no such thing"),
        2: ("error", "its process was ended by SIGKILL, perhaps for want of memory"),
        3: ("result", "3"),
    }


def test_what_a_child_prints_is_shown_only_when_asked_for(variables: dict[str, str], capfd: pytest.CaptureFixture[str]) -> None:
    for loud, shown in ((False, ""), (True, "a library talks\n")):
        with running("worker", ["a"], 1, variables, loud) as said:
            assert ends(said)[0][0] == "result"
        assert capfd.readouterr() == ("", shown)


def test_a_module_that_is_not_there_is_an_error(variables: dict[str, str]) -> None:
    with running("no_such_worker", ["a"], 1, variables, False) as said:
        ((what, reason),) = ends(said).values()
    assert what == "error"
    assert "No module named no_such_worker" in reason


def test_an_exception_in_the_parent_ends_the_children(variables: dict[str, str]) -> None:
    children: list[int] = []

    def interrupted() -> None:
        with running("worker", ["wait", "wait", "a"], 2, variables, False) as said:
            children.extend(now.value for now in (next(said) for _ in range(4)) if now.value != "wait")
            assert all(map(is_running, children))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(children) == 2
    assert not any(map(is_running, children))


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at /proc")
def test_a_child_whose_parent_was_killed_stops(variables: dict[str, str]) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], env={**os.environ, **variables}, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert parent.stdout
    assert parent.stdout.readline() == "wait\n"
    child = int(parent.stdout.readline())
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    end = time.monotonic() + 30
    while is_running(child) and time.monotonic() < end:
        time.sleep(0.02)
    assert not is_running(child)
    parent.stdout.close()
