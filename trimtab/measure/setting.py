"""On what models are compared."""

from dataclasses import dataclass
from typing import Any

from trimtab.core.errors import UsageError


@dataclass(frozen=True)
class Setting:
    """texts: as many windows of `length` tokens from each. tasks: at most `limit` items of each, the same for every model.

    samples: whether every model writes a little. dtype, device: as `load` takes them, None for its own choice.
    across_tokenizers: models with other tokenizers than the base's are compared too, by bits per byte and tasks.
    Raises UsageError for what cannot be asked.
    """

    texts: tuple[str, ...] = ("asset:boolq",)
    windows: int = 24
    length: int = 512
    tasks: tuple[str, ...] = ()
    limit: int | None = None
    seed: int = 0
    samples: bool = True
    dtype: str | None = None
    device: str | None = None
    across_tokenizers: bool = False

    def __post_init__(self) -> None:
        for name, values in (("text", self.texts), ("task", self.tasks)):
            twice = [value for value in values if values.count(value) > 1]
            if twice:
                raise UsageError(f"the {name} {twice[0]} is given twice")
        if not self.texts:
            raise UsageError("give at least one text to compare on")
        for name, least in (("windows", 2), ("length", 2)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} must be at least {least}, got {getattr(self, name)}")

    def place(self) -> dict[str, Any]:
        """What `load` is told."""
        return {"device": self.device, "dtype": self.dtype}

    def on_text(self) -> dict[str, Any]:
        """What goes with a number that was measured on the texts."""
        return {"source": " + ".join(self.texts), "windows": self.windows, "length": self.length, "seed": self.seed}
