"""A page that is served, and somebody who asks it over a real connection, saying of themselves whatever a test wants."""

import http.client
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from trimtab.ui.doorway import Keys
from trimtab.ui.server import answering, listening

HERE = Path(__file__).parent
CLI = (sys.executable, "-P", str(HERE / "stub_cli.py"))
SPEAKER = (sys.executable, "-P", str(HERE / "stub_speaker.py"))
PATIENCE = 20.0


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    text: str

    def json(self) -> Any:
        return json.loads(self.text)


@dataclass
class Visitor:
    """headers: sent with every request; Host and cookie are those of a browser that has shown the key."""

    keys: Keys
    headers: dict[str, str] = field(default_factory=dict)

    def _sent(self, method: str, more: dict[str, str | None]) -> dict[str, str]:
        host = f"127.0.0.1:{self.keys.port}"
        own = {"Host": host, "Cookie": f"{self.keys.cookie}={self.keys.ticket}"}
        if method == "POST":
            own |= {"Origin": f"http://{host}", "Content-Type": "application/json"}
        return {name: value for name, value in {**own, **self.headers, **more}.items() if value is not None}

    def _open(self, method: str, path: str, value: Any, headers: dict[str, str | None]) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.keys.port, timeout=PATIENCE)
        body = None if value is None else json.dumps(value)
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, given in self._sent(method, headers).items():
            connection.putheader(name, given)
        if body is not None:
            connection.putheader("Content-Length", str(len(body.encode())))
        connection.endheaders(body.encode() if body is not None else None)
        return connection.getresponse()

    def get(self, path: str, **headers: str | None) -> Answer:
        return _read(self._open("GET", path, None, _named(headers)))

    def post(self, path: str, value: Any = None, **headers: str | None) -> Answer:
        return _read(self._open("POST", path, {} if value is None else value, _named(headers)))

    def events(self, method: str, path: str, value: Any = None) -> Iterator[Any]:
        """As they come. Closing the iterator hangs up."""
        with self._open(method, path, value, {}) as answer:
            assert answer.status == 200, answer.read()
            for line in answer:
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])

    def settled(self) -> Any:
        """The job, when it has ended."""
        end = monotonic() + PATIENCE
        while monotonic() < end:
            job = self.get("/api/job").json()
            if job and job["state"] != "running":
                return job
            sleep(0.02)
        raise AssertionError("the job does not end")


def _named(headers: dict[str, str | None]) -> dict[str, str | None]:
    return {name.replace("_", "-").title(): value for name, value in headers.items()}


def _read(answer: http.client.HTTPResponse) -> Answer:
    return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read().decode())


@contextmanager
def serving(root: Path, base: str = "") -> Iterator[Keys]:
    """In a thread of this process, with stubs for what computes."""
    from trimtab.ui.app import application
    from trimtab.ui.desk import Desk

    with listening(0) as door:
        keys = Keys(door.getsockname()[1])
        desk = Desk(root.resolve(), base, CLI, SPEAKER)
        server = answering(application(desk), keys, desk.close)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [door]})
        thread.start()
        try:
            yield keys
        finally:
            server.should_exit = True
            thread.join(PATIENCE)
            assert not thread.is_alive()
