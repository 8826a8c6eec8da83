"""How the command line behaves whatever it does: exit codes, one-line errors, results on stdout and everything else on stderr.

Scripts depend on these, so they are in one place. A traceback is for whoever wants to mend trimtab: `-v` or TRIMTAB_DEBUG=1.
"""

import io
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from typing import Any, TextIO

import typer

from trimtab.core.errors import TrimtabError, UsageError

OFF = ("", "0", "false", "no", "off")
NO_COLOR = "--no-color"
MEASURED = "stopped; the same command goes on from what was measured"
LONGEST_LINE = 2000  # characters
HUSH = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

# Typer brings click along, under a name that differs between its versions; this is click's UsageError in all of them.
ParseError: type[Exception] = typer.BadParameter.__bases__[0]


class Exit(IntEnum):
    """Every exit code there is."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    RESUMABLE = 75  # stopped from outside (SIGTERM); the same command goes on from there
    INTERRUPTED = 130


class Terminated(KeyboardInterrupt):
    """SIGTERM, to work that can be taken up again."""


class Interrupted(Exception):
    """Ctrl-C, in a form that the option parser does not turn into something of its own."""

    def __init__(self, message: str = "interrupted; nothing was left half-written", code: Exit = Exit.INTERRUPTED):
        super().__init__(message)
        self.code = code


@contextmanager
def stoppable(left: Callable[[], str]) -> Iterator[None]:
    """Whoever stops the work inside hears what is left of it; a program that does learns it from the exit code."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted(left(), Exit.RESUMABLE if isinstance(error, Terminated) else Exit.INTERRUPTED) from error


def is_set(variable: str) -> bool:
    """Whether an on/off environment variable is on."""
    return os.environ.get(variable, "").strip().lower() not in OFF


def wants_traceback(args: Sequence[str]) -> bool:
    return is_set("TRIMTAB_DEBUG") or any(arg in ("-v", "--verbose") for arg in args)


def finish(work: Callable[[], object], tracebacks: bool) -> int:
    """Runs `work`; whatever happens becomes an exit code and at most one line on stderr."""
    try:
        code = work()
        return code if isinstance(code, int) else Exit.OK
    except Interrupted as stopped:
        complain(str(stopped), "")
        return stopped.code
    except (KeyboardInterrupt, typer.Abort):
        complain(str(Interrupted()), "")
        return Exit.INTERRUPTED
    except Exception as error:
        if tracebacks:
            traceback.print_exc()
        return _explained(error, tracebacks)


def _explained(error: Exception, traced: bool) -> int:
    if isinstance(error, TrimtabError):
        complain(str(error))
        return Exit.USAGE if isinstance(error, UsageError) else Exit.FAILURE
    if isinstance(error, ParseError):
        complain(_parse_message(error))
        return Exit.USAGE
    hint = "" if traced else "; run again with -v to see where"
    complain(f"unexpected {type(error).__name__}: {error}{hint}")
    return Exit.FAILURE


def _parse_message(error: Any) -> str:
    command = error.ctx.command_path if error.ctx else "trimtab"
    message = error.format_message()
    return f"{message[:1].lower()}{message[1:].rstrip('.')} (see {command} --help)"


def complain(message: str, kind: str = "error: ") -> None:
    """One line on stderr."""
    print(f"trimtab: {kind}{one_line(message)}", file=sys.stderr, flush=True)


def one_line(text: str) -> str:
    """What files say is in messages: nothing of it may steer the terminal, or fill it."""
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))
    return line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]} ..."


@contextmanager
def colours(args: Sequence[str]) -> Iterator[list[str]]:
    """Yields the words without `--no-color`, which may stand anywhere; inside, it acts as NO_COLOR=1 does, libraries included."""
    end = args.index("--") if "--" in args else len(args)
    asked = [*(arg for arg in args[:end] if arg != NO_COLOR), *args[end:]]
    before = os.environ.get("NO_COLOR")
    if len(asked) < len(args):
        os.environ["NO_COLOR"] = "1"
    try:
        yield asked
    finally:
        if len(asked) < len(args):
            os.environ.pop("NO_COLOR")
            os.environ.update({} if before is None else {"NO_COLOR": before})


def printable(*streams: TextIO) -> None:
    """A result is not lost over a character that the stream's encoding lacks (a pipe on Windows, say): it becomes `?`."""
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper) and not stream.encoding.lower().startswith("utf"):
            stream.reconfigure(errors="replace")


def plain_dashes(args: Sequence[str]) -> list[str]:
    """`--group_size` means `--group-size`; values and everything after `--` stay as they are."""
    end = args.index("--") if "--" in args else len(args)
    return [_dashed(arg) for arg in args[:end]] + list(args[end:])


def _dashed(arg: str) -> str:
    name, equals, value = arg.partition("=")
    return name.replace("_", "-") + equals + value if arg.startswith("--") and " " not in name else arg


@contextmanager
def hushed(verbose: bool) -> Iterator[None]:
    """What libraries say is shown with -v only. They read the variables when they are imported; who is there already is told."""
    if verbose:
        yield
        return
    ours = {name: value for name, value in HUSH.items() if name not in os.environ}
    os.environ.update(ours)
    bars = sys.modules.get("transformers.utils.logging")
    drawn = bars is not None and bars.is_progress_bar_enabled()
    if bars is not None and drawn:
        bars.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_ours
            yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
        if bars is not None and drawn:
            bars.enable_progress_bar()


def _show_ours(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if f"{os.sep}trimtab{os.sep}" in filename and issubclass(category, UserWarning):
        complain(str(message), "warning: ")
