"""What the page may touch: the folder it was started in, and models that are no paths at all.

A browser sends names. Every name that could be a path is resolved here, links included, and refused where it leaves the folder.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trimtab.core.errors import UsageError, first_line
from trimtab.data.assets import cache_root
from trimtab.report.folders import weight_files

ASSET = re.compile(r"asset:[a-z0-9][a-z0-9.-]*")
HUB = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
NAME = re.compile(r"[A-Za-z0-9][\w.+=-]{0,99}")
QUOTED = re.compile(r"'([^']*)'|\"([^\"]*)\"")
LARGEST_RECIPE = 1 << 20  # bytes


@dataclass(frozen=True)
class Places:
    """root: resolved. base: a model outside of it that was named when the page was started."""

    root: Path
    base: str = ""

    def inside(self, name: str) -> Path:
        """What a name stands for, which need not exist. Raises `UsageError` where it is outside."""
        if "\0" in name or name.startswith("~"):
            raise UsageError(f"{name!r:.200} is no name of a folder here")
        found = (self.root / name).resolve()
        if not found.is_relative_to(self.root):
            raise UsageError(
                f"{name:.200} lies outside of {self.root}; start trimtab ui where both are, or name a base with --base"
            )
        return found

    def folder(self, name: str) -> Path:
        found = self.inside(name)
        if not found.is_dir():
            raise UsageError(f"there is no folder {name:.200} in {self.root}")
        return found

    def is_known(self, folder: str) -> bool:
        """Whether a folder that a file names may be looked into: one inside, or one that trimtab fetched."""
        return any(Path(folder).resolve().is_relative_to(place) for place in (self.root, cache_root().resolve()))

    def name(self, path: Path) -> str:
        """How a place inside is named in an address; "" is the root."""
        return path.relative_to(self.root).as_posix().removeprefix(".")

    def model(self, name: str) -> str:
        """The word for a model on a command line: a folder inside, an asset, a hub name, or the base. Raises `UsageError`."""
        if not name:
            raise UsageError("no model given; choose a folder, an asset or the name of a model on the hub")
        if ASSET.fullmatch(name) or name == self.base:
            return name
        return name if self._is_on_hub(name) else str(self.folder(name))

    def _is_on_hub(self, name: str) -> bool:
        """Only what nothing here could be taken for."""
        first = self.root / name.partition("/")[0]
        return HUB.fullmatch(name) is not None and not first.exists() and not first.is_symlink()

    def target(self, folder: str, name: str) -> Path:
        """Where a result may be written. Raises `UsageError` for what is no plain name, or there already."""
        if not NAME.fullmatch(name) or name.endswith("."):
            raise UsageError(f"{name!r:.120} is no name for a result; use letters, digits and . _ + = -")
        found = self.folder(folder) / name
        if found.exists() or found.is_symlink():
            raise UsageError(f"{name} exists in {self.folder(folder)}; choose another name")
        return found

    def text(self, name: str) -> str:
        """A text to calibrate on: an asset, or a file inside."""
        if ASSET.fullmatch(name):
            return name
        found = self.inside(name)
        if not found.is_file():
            raise UsageError(f"there is no text {name:.200} in {self.root}")
        return str(found)

    def recipe(self, name: str) -> str:
        """A recipe inside, with nothing in it that names a place outside."""
        found = self.inside(name)
        if found.suffix not in (".yaml", ".yml") or not found.is_file() or found.stat().st_size > LARGEST_RECIPE:
            raise UsageError(f"there is no recipe {name:.200} in {self.root}; it is a .yaml file")
        try:
            held = yaml.safe_load(found.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            raise UsageError(f"{name} is no recipe: {first_line(error)}") from error
        for text in _texts(held):
            self.check_mention(text)
        return str(found)

    def expression(self, text: str) -> str:
        """A recipe in one line, with nothing in it that names a place outside."""
        for pair in QUOTED.findall(text):
            self.check_mention(pair[0] or pair[1])
        return text

    def check_mention(self, text: str) -> None:
        """Raises `UsageError` for a text that could be the name of a place outside; most are names of other things."""
        if ASSET.fullmatch(text) or text == self.base or self._is_on_hub(text):
            return
        if any(sign in text for sign in ("/", "\\", "~", "\0")) or text == ".." or (self.root / text).is_symlink():
            self.inside(text)


def is_model(folder: Path) -> bool:
    """Weights with a config, or a result of ours; not if its receipt is somebody else's."""
    receipt = folder / "receipt.json"
    if receipt.is_symlink():
        return False
    return receipt.is_file() or ((folder / "config.json").is_file() and bool(weight_files(folder)))


def _texts(value: Any) -> Iterator[str]:
    """Every text in a YAML value, which may hold itself."""
    left, seen = [value], set[int]()
    while left:
        one = left.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, dict | list) and id(one) not in seen:
            seen.add(id(one))
            left += [*one, *one.values()] if isinstance(one, dict) else one
