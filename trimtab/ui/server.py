"""Opening the door: a port on the loopback interface, the key, and the address to print."""

import errno
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.core.errors import UsageError
from trimtab.ui.doorway import App, Doorway, Keys

if TYPE_CHECKING:
    import uvicorn

HOST = "127.0.0.1"
PATIENCE = 1  # seconds that open connections have at the end
MISSING = "trimtab ui needs fastapi and uvicorn; pip install 'trimtab[ui]' brings them"


def serve(folder: Path, port: int, base: str, ready: Callable[[str], None]) -> None:
    """Serves until it is interrupted. ready: is told the address, key included, when it can be opened.

    Raises `UsageError` for a folder that is none, a port that is taken, and where fastapi is not installed.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; give the folder that holds your results")
    try:
        from trimtab.ui.app import application
        from trimtab.ui.desk import Desk

        with listening(port) as door:
            keys = Keys(door.getsockname()[1])
            named = str(Path(base).resolve()) if base and Path(base).is_dir() else base
            desk = Desk(folder.resolve(), named)
            server = answering(application(desk), keys, desk.close)
            ready(keys.address)
            server.run(sockets=[door])
    except ImportError as error:
        raise UsageError(f"{MISSING} ({error})") from error


def answering(app: App, keys: Keys, end: Callable[[], Awaitable[None]]) -> "uvicorn.Server":
    """The application behind its door. It names no server, and writes no log but of what went wrong.

    end: awaited first when it is to stop, so that streams end by themselves and are not torn.
    """
    import uvicorn

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            await end()
            await super().shutdown(sockets)

    quiet: dict[str, Any] = {"log_level": "error", "access_log": False, "server_header": False}
    return Server(uvicorn.Config(Doorway(app, keys), timeout_graceful_shutdown=PATIENCE, **quiet))


def listening(port: int) -> socket.socket:
    """A socket that only this machine reaches; port 0: any free one. Raises `UsageError` if it cannot be had."""
    door = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind((HOST, port))
        door.listen()
    except OSError as error:
        door.close()
        why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        raise UsageError(f"port {port} {why}; choose another with --port, or any free one with --port 0") from error
    return door
