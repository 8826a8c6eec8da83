"""Ctrl-C in a real process on a real terminal."""

import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

pty = pytest.importorskip("pty")


def test_ctrl_c_leaves_one_line_and_nothing_else(model, text, tmp_path):
    ours, theirs = pty.openpty()
    words = ["compress", model, "-o", tmp_path / "out", "--method", "gptq", "--text", text, "--tokens", "90000", "--length", "90"]
    command = [sys.executable, "-c", "from trimtab.cli.main import run; run()", *map(str, words)]
    environment = {"PATH": os.environ["PATH"], "TERM": "xterm", "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=environment)
    os.close(theirs)
    said = _until(ours, "sweep")
    child.send_signal(signal.SIGINT)
    said += _until(ours, None)
    stdout, _ = child.communicate(timeout=60)
    os.close(ours)
    assert child.returncode == 130, said
    assert stdout == b""
    assert "Traceback" not in said
    assert said.count("trimtab: ") == 1
    assert said.rstrip().endswith("trimtab: interrupted; nothing was left half-written")
    assert "Loading weights" not in said
    assert list(tmp_path.iterdir()) == []


def _until(terminal: int, word: str | None) -> str:
    """What a terminal shows until `word` is in it, or until its program has gone."""
    said, end = "", time.monotonic() + 100
    with suppress(OSError):  # a terminal whose program has gone cannot be read
        while (word is None or word not in said) and select.select([terminal], [], [], end - time.monotonic())[0]:
            piece = os.read(terminal, 4096)
            if not piece:
                break
            said += piece.decode(errors="replace")
    return said


@pytest.mark.parametrize(("number", "code"), [pytest.param(signal.SIGTERM, 75, marks=pytest.mark.slow), (signal.SIGINT, 130)])
def test_stopped_work_is_taken_up_by_the_same_command(model, text, tmp_path, number, code):
    words = ["compress", model, "-o", tmp_path / "out", "--method", "gptq", "--text", text, "--tokens", "45000", "--length", "90"]
    words += ["--checkpoint-every", "0"]
    command = [sys.executable, "-c", "from trimtab.cli.main import run; run()", *map(str, words)]
    environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True) as child:
        while not (tmp_path / "out.partial" / "CURRENT").exists():
            assert child.poll() is None
            time.sleep(0.01)
        child.send_signal(number)
        stdout, said = child.communicate(timeout=100)
    assert child.returncode == code, said
    assert stdout == ""
    assert said.splitlines()[-1] == "trimtab: stopped; the same command goes on from what is kept in out.partial"
    assert [p.name for p in tmp_path.iterdir()] == ["out.partial"]
    done = subprocess.run(command, capture_output=True, env=environment, text=True)
    assert done.returncode == 0, done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
