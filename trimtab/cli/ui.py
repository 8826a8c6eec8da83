"""`trimtab ui`: the same work in the browser, for whoever would rather look than read."""

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from trimtab.cli.manners import complain

PORT = 8642


def register(app: typer.Typer) -> None:
    app.command("ui")(ui)


def ui(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Where results are; nothing outside is touched.")] = Path(),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of this machine only; 0: any free one.")] = PORT,
    base: Annotated[str, typer.Option(metavar="MODEL", help="A model outside of FOLDER that may be used too.")] = "",
) -> None:
    """Serve a page, to this machine only, that shows results, lets models speak side by side, and starts compressions."""
    from trimtab.ui.server import serve

    def ready(address: str) -> None:
        typer.echo(address)
        complain("only who has this address may use the page; Ctrl-C ends it", "")

    with suppress(KeyboardInterrupt):
        serve(folder, port, base, ready)
    complain("ended", "")
