"""Whether anything reaches for the network: every socket of this process is seen, and none is let through."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trimtab.core.recipe import Calibration, Recipe
from trimtab.host import checkpoint
from trimtab.host.compress import compress

EVENTS = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.bind", "urllib.Request")


class Reached(BaseException):
    """Not an Exception, so that no library takes it for a network that is down."""


@contextmanager
def blocked() -> Iterator[list[str]]:
    """What was tried, while it lasts. A hook cannot be taken out again, but is silenced."""
    tried: list[str] = []
    watching = [True]

    def hook(event: str, arguments: Any) -> None:
        if watching[0] and event in EVENTS and not _is_local(arguments):
            tried.append(event)
            raise Reached(event)

    sys.addaudithook(hook)
    try:
        yield tried
    finally:
        watching[0] = False


def _is_local(arguments: Any) -> bool:
    """Sockets of the machine itself have a path for an address."""
    return len(arguments) > 1 and isinstance(arguments[1], str | bytes) and str(arguments[1]).startswith("/")


def whole_way(model: Path, text: Path, out: Path) -> None:
    """What a user does with a model that is here: compress, save, open, measure."""
    recipe = Recipe.of("gptq(bits=4, group_size=16)", Calibration(text=str(text), tokens=64, length=32))
    compress(model, recipe, out)
    opened, tokenizer = checkpoint.load(out)
    assert tokenizer is not None
    ids = tokenizer(text.read_text()[:200], return_tensors="pt")["input_ids"]
    assert opened.generate(ids[:, :8], max_new_tokens=4, do_sample=False).shape[1] > 8


def of_the_hub(name: str) -> None:
    """A model that is only elsewhere, with HF_HUB_OFFLINE set."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        checkpoint.load(name)
    finally:
        constants.HF_HUB_OFFLINE = before
