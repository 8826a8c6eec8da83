"""The `trimtab` command. Each command is a small file of its own and imports torch only when it runs: `--help` is instant."""

import sys
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from trimtab import __version__
from trimtab.cli import (
    adapt,
    bench,
    chat,
    claims,
    compare,
    compress,
    doctor,
    export,
    generate,
    grow,
    map,
    measure,
    methods,
    probe,
    report,
    ui,
)
from trimtab.cli.manners import NO_COLOR, Interrupted, colours, finish, plain_dashes, printable, wants_traceback


class Polite(TyperGroup):
    """Ends every command by the rules of `manners`, also when a test calls it."""

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> NoReturn:  # type: ignore[override]
        extra["standalone_mode"] = False
        with colours(plain_dashes(sys.argv[1:] if args is None else args)) as given:
            sys.exit(finish(lambda: super(Polite, self).main(given, "trimtab", **extra), wants_traceback(given)))

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted from error


app = typer.Typer(
    cls=Polite,
    pretty_exceptions_enable=False,
    help="Make a pretrained language model smaller by composable published methods, and prove what that cost.",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"trimtab {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
    no_color: Annotated[bool, typer.Option(NO_COLOR, help="No colours, also after a command; as NO_COLOR=1.")] = False,
) -> None:
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


compress.register(app)
adapt.register(app)
measure.register(app)
compare.register(app)
probe.register(app)
report.register(app)
ui.register(app)
export.register(app)
generate.register(app)
chat.register(app)
bench.register(app)
map.register(app)
grow.register(app)
methods.register(app)
claims.register(app)
doctor.register(app)


def run() -> NoReturn:
    """What the installed `trimtab` script calls."""
    printable(sys.stdout, sys.stderr)
    typer.main.get_command(app).main()
    raise AssertionError("main always exits")
