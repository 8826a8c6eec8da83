"""Who may come in: this machine's browser, by the address that was printed, and no page of anybody else.

Listening on the loopback interface keeps other machines out, but not other users of this one, and not pages that the browser has
open: those can send requests here, or pretend that their name is this address (DNS rebinding). So the Host must be ours, requests
that a page makes must come from our own, and whoever comes must have shown the key once, which is kept in a cookie.
"""

import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("127.0.0.1", "::1", "localhost")
SAFE = ("GET", "HEAD")
LARGEST = 1 << 20  # bytes of what a page may send
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
CLOSED = "trimtab: this page needs its key; open the address that `trimtab ui` printed\n"


@dataclass(frozen=True)
class Keys:
    """token: in the address, printed once. ticket: in the cookie. Both new at every start."""

    port: int
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    ticket: str = field(default_factory=lambda: secrets.token_urlsafe(24))

    @property
    def cookie(self) -> str:
        """Browsers keep cookies by host, whatever the port."""
        return f"trimtab-{self.port}"

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/?token={self.token}"

    def hosts(self) -> set[str]:
        return {f"{name}:{self.port}" for name in ("127.0.0.1", "localhost", "[::1]")}

    def origins(self) -> set[str]:
        return {f"http://{host}" for host in self.hosts()}


class Doorway:
    """Before the application: refuses, or lets in and says on the way out what the browser may do with the page."""

    def __init__(self, app: App, keys: Keys):
        self.app, self.keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._http(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = _headers(scope)
        refusal = self.refusal(scope, headers)
        if refusal:
            await _answer(send, 403, refusal)
        elif _same(self._token(scope), self.keys.token) and scope["method"] in SAFE:
            cookie = f"{self.keys.cookie}={self.keys.ticket}; HttpOnly; SameSite=Strict; Path=/"
            await _answer(send, 303, "", (("location", scope["path"]), ("set-cookie", cookie)))
        elif not _same(self._ticket(headers), self.keys.ticket):
            await _answer(send, 403, CLOSED)
        else:
            await self.app(scope, receive, _dressed(send))

    def refusal(self, scope: Scope, headers: dict[str, str]) -> str:
        """Why a request is none of ours; empty where it is."""
        client = scope.get("client")
        if client and client[0] not in LOOPBACK:
            return "trimtab: only this machine may use this page\n"
        if headers.get("host", "").lower() not in self.keys.hosts():
            return "trimtab: this page goes by 127.0.0.1 or localhost only\n"
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        if site not in ("none", "same-origin") or (origin is not None and origin.lower() not in self.keys.origins()):
            return "trimtab: another page may not use this one\n"
        if scope["method"] not in SAFE and origin is None:
            return "trimtab: a request that changes something says where it comes from (Origin)\n"
        length = headers.get("content-length", "0")
        if "transfer-encoding" in headers or not length.isdecimal() or int(length) > LARGEST:
            return f"trimtab: a request holds at most {LARGEST} bytes, and says how many\n"
        return ""

    def _token(self, scope: Scope) -> str:
        query: bytes = scope["query_string"]
        return parse_qs(query.decode("latin-1")).get("token", [""])[0]

    def _ticket(self, headers: dict[str, str]) -> str:
        try:
            held = SimpleCookie(headers.get("cookie", "")).get(self.keys.cookie)
        except CookieError:
            return ""
        return held.value if held else ""


def _headers(scope: Scope) -> dict[str, str]:
    """One that is given twice counts as both, so that no second Host or Origin slips by."""
    found: dict[str, str] = {}
    for raw, value in scope["headers"]:
        name, text = raw.decode("latin-1").lower(), value.decode("latin-1")
        found[name] = f"{found[name]}; {text}" if name in found else text
    return found


def _same(given: str, known: str) -> bool:
    return secrets.compare_digest(given.encode(), known.encode())


def _dressed(send: Send) -> Send:
    """With the headers of every answer; a page that brings a policy of its own keeps it."""

    async def dressed(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            given = {name.lower() for name, _ in message["headers"]}
            wanted = {**HEADERS, "content-security-policy": POLICY}
            more = [(n.encode(), v.encode()) for n, v in wanted.items() if n.encode() not in given]
            message = {**message, "headers": [*message["headers"], *more]}
        await send(message)

    return dressed


async def _answer(send: Send, status: int, text: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
    body = text.encode()
    whole = {**HEADERS, "content-type": "text/plain; charset=utf-8", "content-length": str(len(body))}
    raw = [(name.encode(), value.encode("latin-1")) for name, value in (*whole.items(), *headers)]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
