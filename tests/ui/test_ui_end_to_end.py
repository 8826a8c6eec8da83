"""Nothing is stubbed: `trimtab ui` in a process of its own plans, compresses and lets a tiny model speak."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from served import Visitor

from trimtab.testing.folders import tiny_folder
from trimtab.ui.doorway import Keys
from trimtab.ui.jobs import COMMAND
from trimtab.ui.server import listening

pytest.importorskip("fastapi", reason="the page needs fastapi and uvicorn")
WAIT = 240.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("real")
    tiny_folder(root / "tiny", num_hidden_layers=2)
    return root


def ended(visitor: Visitor):
    for told in visitor.events("GET", "/api/job/events"):
        if told and told["state"] != "running":
            return told
    raise AssertionError("the events ended before the job did")


@pytest.mark.slow
def test_from_the_address_to_the_first_words(folder, monkeypatch):
    monkeypatch.setattr("served.PATIENCE", WAIT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [*COMMAND, "ui", str(folder), "--port", "0"]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        address = server.stdout.readline().strip()
        port, token = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/\?token=(\S+)", address).groups()
        stranger = Visitor(Keys(int(port), token, ""))
        assert stranger.get("/").status == 403
        cookie = stranger.get(f"/?token={token}", cookie=None).headers["set-cookie"].partition(";")[0]
        visitor = Visitor(Keys(int(port), token, cookie.partition("=")[2]))

        form = {"model": "tiny", "name": "small", "way": "method", "value": "rtn", "knobs": {"bits": 3, "group_size": 32}}
        number = visitor.post("/api/plan", form).json()["number"]
        planned = ended(visitor)
        assert planned["state"] == "done", planned
        assert planned["result"]["steps"][0]["method"] == "rtn(bits=3, group_size=32)"
        visitor.post("/api/compress", {"number": number})
        done = ended(visitor)
        assert done["state"] == "done", done
        assert done["phases"][0] == "load"
        assert done["phases"][-1] == "save"
        assert (folder / "small" / "receipt.json").is_file()
        assert "rtn(bits=3, group_size=32)" in visitor.get("/").text

        visitor.post("/api/measure", {"folder": "", "base": "tiny", "tasks": "", "limit": 2, "speed": False})
        measured = ended(visitor)
        assert measured["state"] == "done", measured
        numbers = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
        assert len(numbers["others"]) == 1

        asked = {"models": ["tiny", "small"], "prompt": "hello", "new_tokens": 5}
        events = list(visitor.events("POST", "/api/say", asked))
        for side in (0, 1):
            own = [event for event in events if event["side"] == side]
            assert own[-1]["what"] == "end", own
            assert own[-1]["tokens"] == sum(event["what"] == "text" for event in own) > 0
    finally:
        server.send_signal(signal.SIGINT)
        said = server.communicate(timeout=60)[1]
    assert server.returncode == 0, said
    assert said.splitlines()[-1] == "trimtab: ended"
    assert "Traceback" not in said


def test_a_port_in_use_is_one_line(folder):
    with listening(0) as door:
        port = door.getsockname()[1]
        done = subprocess.run([*COMMAND, "ui", str(folder), "--port", str(port)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    wanted = f"trimtab: error: port {port} is in use; choose another with --port, or any free one with --port 0\n"
    assert done.stderr == wanted


def test_a_folder_that_is_none_is_one_line(tmp_path):
    done = subprocess.run([*COMMAND, "ui", str(tmp_path / "nothing")], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"trimtab: error: {tmp_path / 'nothing'} is not a folder; give the folder that holds your results\n"


def test_only_this_machine_is_listened_to():
    with listening(0) as door:
        assert door.getsockname()[0] == "127.0.0.1"


def test_the_page_needs_neither_torch_nor_transformers():
    script = "import sys, trimtab.ui.app, trimtab.ui.server; print([n for n in ('torch', 'transformers') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
