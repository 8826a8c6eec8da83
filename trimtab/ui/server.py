"""Opening the door: a port on the loopback interface, the key, and the address to print."""

import errno
import socket
from collections.abc import Callable
from pathlib import Path

from trimtab.core.errors import UsageError

HOST = "127.0.0.1"
PATIENCE = 3  # seconds that open connections have at the end
MISSING = "trimtab ui needs fastapi and uvicorn; pip install 'trimtab[ui]' brings them"


def serve(folder: Path, port: int, base: str, ready: Callable[[str], None]) -> None:
    """Serves until it is interrupted. ready: is told the address, key included, when it can be opened.

    Raises `UsageError` for a folder that is none, a port that is taken, and where fastapi is not installed.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; give the folder that holds your results")
    try:
        import fastapi  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise UsageError(f"{MISSING} ({error})") from error
    from trimtab.ui.app import application
    from trimtab.ui.desk import Desk
    from trimtab.ui.doorway import Doorway, Keys

    with listening(port) as door:
        keys = Keys(door.getsockname()[1])
        app = Doorway(application(Desk(folder.resolve(), base)), keys)
        settings = uvicorn.Config(app, log_level="error", access_log=False, server_header=False, lifespan="on")  # type: ignore[arg-type]
        settings.timeout_graceful_shutdown = PATIENCE
        ready(keys.address)
        uvicorn.Server(settings).run(sockets=[door])


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
