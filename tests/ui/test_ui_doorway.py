"""Who is let in: the browser that has shown the key, on this machine, from our own page."""

import asyncio
from collections.abc import Iterator

import pytest
from furnished import furnish
from served import Visitor, serving

from trimtab.ui.doorway import CLOSED, POLICY, Doorway, Keys


@pytest.fixture(scope="module")
def visitor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visitor]:
    pytest.importorskip("fastapi", reason="the page needs fastapi and uvicorn")
    with serving(furnish(tmp_path_factory.mktemp("doorway"))) as keys:
        yield Visitor(keys)


def test_every_start_has_a_key_of_its_own():
    one, other = Keys(80), Keys(80)
    assert len({one.token, other.token, one.ticket, other.ticket}) == 4
    assert min(map(len, (one.token, one.ticket))) >= 32
    assert one.address == f"http://127.0.0.1:80/?token={one.token}"


def test_the_key_becomes_a_cookie_and_leaves_the_address(visitor):
    answer = visitor.get(f"/?token={visitor.keys.token}", cookie=None)
    assert answer.status == 303
    assert answer.headers["location"] == "/"
    cookie = answer.headers["set-cookie"]
    assert cookie == f"trimtab-{visitor.keys.port}={visitor.keys.ticket}; HttpOnly; SameSite=Strict; Path=/"
    assert visitor.keys.token not in str(answer.headers)
    assert visitor.get("/").status == 200


@pytest.mark.parametrize("cookie", [None, "", "trimtab=x", "{name}=", "{name}={token}", "{name}={ticket}x", "other={ticket}"])
@pytest.mark.parametrize("path", ["/", "/static/ui.css", "/api/job", "/result?at=four-bit"])
def test_without_the_key_nothing_is_told(visitor, cookie, path):
    keys = visitor.keys
    said = cookie and cookie.format(name=keys.cookie, token=keys.token, ticket=keys.ticket)
    answer = visitor.get(path, cookie=said)
    assert (answer.status, answer.text) == (403, CLOSED)


def test_a_wrong_token_opens_nothing(visitor):
    for token in ("", "x", visitor.keys.token[:-1], visitor.keys.ticket):
        assert visitor.get(f"/?token={token}", cookie=None).status == 403
    assert visitor.post(f"/api/job/cancel?token={visitor.keys.token}", cookie=None).status == 403


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "127.0.0.1.evil.example:{port}", ""]
)
def test_a_name_that_is_not_ours_is_refused(visitor, host):
    """DNS rebinding: the browser believes that the other page's name is this address, and sends its name as Host."""
    answer = visitor.get("/", host=host.format(port=visitor.keys.port))
    assert answer.status == 403
    assert "127.0.0.1 or localhost only" in answer.text


def test_our_names_are_let_in(visitor):
    for host in ("localhost", "127.0.0.1", "LOCALHOST", "[::1]"):
        assert visitor.get("/", host=f"{host}:{visitor.keys.port}").status == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1:{port}", "http://127.0.0.1:1", None])
def test_a_page_of_somebody_else_changes_nothing(visitor, origin):
    answer = visitor.post("/api/job/cancel", origin=origin and origin.format(port=visitor.keys.port))
    assert answer.status == 403
    assert visitor.post("/api/job/cancel").status == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_page_of_somebody_else_reads_nothing(visitor, site):
    assert visitor.get("/api/job", sec_fetch_site=site).status == 403
    assert visitor.get("/api/job", origin="http://evil.example").status == 403
    assert visitor.get("/api/job", sec_fetch_site="same-origin").status == 200


def test_every_page_says_what_the_browser_may_do_with_it(visitor):
    for path in ("/", "/static/ui.js", "/api/job", "/nowhere"):
        headers = visitor.get(path).headers
        assert headers["content-security-policy"] == POLICY
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        assert "server" not in headers
    assert "unsafe" not in POLICY


@pytest.mark.parametrize(
    ("client", "status"), [(("127.0.0.1", 5), 200), (("::1", 5), 200), (("192.168.1.7", 5), 403), (("8.8.8.8", 5), 403)]
)
def test_another_machine_is_refused_even_with_the_key(client, status):
    keys = Keys(80)
    headers = [(b"host", b"127.0.0.1:80"), (b"cookie", f"{keys.cookie}={keys.ticket}".encode())]
    assert _status(Doorway(_greeting, keys), client, headers) == status


def test_a_second_host_does_not_slip_by():
    keys = Keys(80)
    headers = [(b"host", b"127.0.0.1:80"), (b"host", b"evil.example"), (b"cookie", f"{keys.cookie}={keys.ticket}".encode())]
    assert _status(Doorway(_greeting, keys), ("127.0.0.1", 5), headers) == 403


def test_there_are_no_sockets_of_other_kinds():
    said = []

    async def send(message):
        said.append(message)

    asyncio.run(Doorway(_greeting, Keys(80))({"type": "websocket", "headers": []}, None, send))
    assert said == [{"type": "websocket.close", "code": 1008}]


async def _greeting(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


def _status(door, client, headers) -> int:
    said = []

    async def send(message):
        said.append(message)

    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": headers, "client": client}
    asyncio.run(door(scope, None, send))
    return said[0]["status"]


def test_a_request_that_is_too_large_or_does_not_say_is_refused(visitor):
    assert visitor.post("/api/say", {"prompt": "x" * (1 << 20)}).status == 403
    assert visitor.get("/", transfer_encoding="chunked").status == 403
