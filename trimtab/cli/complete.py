"""What a shell may complete where a command wants a name. Asked at every press of a key, so nothing heavy is imported.

The rooms that own these names know them, too, but importing them imports torch, which takes a second; a test compares.
"""

from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path

import trimtab

GROUP = "trimtab.methods"
ENGINES = ("auto", "native", "torch")
TARGETS = ("awq", "compressed-tensors", "gguf", "gptq", "onnx", "padded", "peft", "plain")


def method_ids() -> list[str]:
    """Of the files in methods/, and of other packages."""
    files = (Path(trimtab.__file__).parent / "methods").glob("*/[!_]*.py")
    return sorted({path.stem for path in files} | {point.name for point in entry_points(group=GROUP)})


def method(incomplete: str) -> list[str]:
    return _beginning(method_ids(), incomplete)


def recipe(incomplete: str) -> list[str]:
    """Shipped recipes; a shell completes files by itself."""
    return _beginning(sorted(file.stem for file in (Path(trimtab.__file__).parent / "recipes").glob("*.yaml")), incomplete)


def engine(incomplete: str) -> list[str]:
    return _beginning(ENGINES, incomplete)


def target(incomplete: str) -> list[str]:
    return _beginning(TARGETS, incomplete)


def _beginning(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
