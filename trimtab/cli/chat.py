"""`trimtab chat`: a conversation with a model, on a terminal or through a pipe."""

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated

import typer

from trimtab.cli.generate import (
    Engine,
    Penalty,
    Seed,
    Temperature,
    TopK,
    TopP,
    sampling_of,
    speak,
)
from trimtab.cli.manners import complain
from trimtab.cli.options import Model, Quiet, Threads, Verbose
from trimtab.cli.progress import working
from trimtab.core.errors import TrimtabError, UsageError

if TYPE_CHECKING:
    from trimtab.cli.voice import Voice
    from trimtab.runtime import Sampling

HELP = "/reset forgets the conversation, /quit or Ctrl-D leaves, Ctrl-C stops an answer"


def register(app: typer.Typer) -> None:
    app.command("chat")(chat)


def chat(
    model: Model,
    system: Annotated[str | None, typer.Option(help="What the model is told before the conversation.")] = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="At most so many tokens in an answer.")] = 512,
    seed: Seed = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    repetition_penalty: Penalty = None,
    engine: Engine = "auto",
    threads: Threads = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Talk with a model. /reset forgets, /quit leaves, Ctrl-C stops an answer; of a long talk only what is new is read."""
    with working(quiet, verbose) as watch:
        from trimtab.cli.voice import open_voice
        from trimtab.core.progress import Progress

        watch(Progress("load", 0, 1, model))
        voice = open_voice(model, engine, threads)
        sampling = sampling_of(seed, temperature, top_k, top_p, repetition_penalty, voice)
    talk = Talk(voice, sampling, new_tokens, system)
    talk.check(model)
    if not quiet:
        complain(f"{voice.about}; {HELP}", "")
    while (said := listen()) is not None:
        if not talk.obey(said):
            break


class Talk:
    """A conversation so far, and what is done with the next line."""

    def __init__(self, voice: "Voice", sampling: "Sampling", new_tokens: int, system: str | None):
        self.voice, self.sampling, self.new_tokens = voice, sampling, new_tokens
        self.opening = [] if system is None else [{"role": "system", "content": system}]
        self.messages = list(self.opening)
        self.turns = 0

    def check(self, model: str) -> None:
        """Raises `UsageError` before anybody has typed anything, if the model does not know conversations."""
        try:
            self.voice.conversation([*self.opening, {"role": "user", "content": "Hello"}])
        except UsageError as error:
            raise UsageError(f"{model} cannot chat: {error} (trimtab generate continues plain text)") from error

    def obey(self, line: str) -> bool:
        """Answers a line, or does what it says. False: the conversation is over."""
        match line.strip():
            case "":
                return True
            case "/quit":
                return False
            case "/reset":
                self.messages = list(self.opening)
                complain("forgotten", "")
            case command if command.startswith("/") and " " not in command:
                complain(f"there is no {command}: {HELP}", "")
            case _:
                self._answer(line)
        return True

    def _answer(self, line: str) -> None:
        """A turn that fails is as if it had not been said; one that is stopped keeps what was said until then."""
        page, said = sys.stdout, list[int]()
        asked = [*self.messages, {"role": "user", "content": line}]
        try:
            with working(quiet=True):
                ids = self.voice.encode(self.voice.conversation(asked), special=False)
                speak(self.voice, ids, self.new_tokens, self._sampling(), page, said)
        except TrimtabError as error:
            complain(f"{error} (/reset forgets the conversation)")
            return
        except KeyboardInterrupt:
            complain("stopped", "")
        self.turns += 1
        self.messages = [*asked, {"role": "assistant", "content": self.voice.decode(said)}]

    def _sampling(self) -> "Sampling":
        """Turn n draws with seed + n, also after /reset: with one seed for all, turns would begin with the same draws."""
        from trimtab.runtime.batch import seeded

        return seeded(self.sampling, self.turns + 1)[-1]


def listen() -> str | None:
    """The next line; None at the end. On a terminal it can be edited, and Ctrl-C throws away what was typed."""
    if not sys.stdin.isatty():
        return sys.stdin.readline() or None
    if find_spec("readline"):
        import_module("readline")
    while True:
        try:
            return input("> ")
        except KeyboardInterrupt:
            typer.echo()
        except EOFError:
            typer.echo()
            return None
