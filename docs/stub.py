"""Writes trimtab/methods/__init__.pyi, so that type checkers and editors know the classes that the room finds by name."""

from collections.abc import Iterable

from trimtab.core.kinds import Method

NOTICE = "# Written by docs/generate.py from the files beside it; changes made here are lost."


def stub(methods: Iterable[type[Method]]) -> str:
    """One import per class."""
    found = sorted((method.__module__, method.__name__) for method in methods)
    lines = [f"from {module} import {name} as {name}" for module, name in found]
    return "\n".join([NOTICE, "", *lines]) + "\n"
