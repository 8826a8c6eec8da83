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
