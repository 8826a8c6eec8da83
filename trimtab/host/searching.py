"""What a search needs besides a recipe: text that the levels were not made with, a folder, and who judges."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from trimtab.core.errors import UsageError
from trimtab.core.kinds import Trials
from trimtab.core.recipe import Recipe
from trimtab.engine.search import Judging
from trimtab.host.identity import code_of
from trimtab.host.provenance import versions
from trimtab.host.spread import spread


@dataclass(frozen=True)
class Judges:
    """workers: processes that judge candidates; ray: on a Ray cluster. keep: a folder whose levels and outcomes stay."""

    workers: int = 1
    ray: bool = False
    keep: str | Path | None = None

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise UsageError(f"workers must be at least 1, got {self.workers}")

    @property
    def apart(self) -> int:
        """Processes on this machine that judge; 0: this one does, or others of a cluster that is there already."""
        if self.ray:
            return 0 if "RAY_ADDRESS" in os.environ else self.workers
        return self.workers if self.workers > 1 else 0


def held_out_tokens(recipe: Recipe) -> int:
    """How many the steps that search ask for, at most; 0 where none does."""
    methods = [step.by or step.method for step in recipe.steps]
    return max((getattr(method, "held_out", 0) for method in methods if Trials in method.needs), default=0)


@contextmanager
def folder_for(judges: Judges, recipe: Recipe, beside: Path | None, fresh: bool) -> Iterator[Path | None]:
    """Where levels and outcomes go; None where nothing searches. beside: made when there is something to keep, gone once
    all inside went well."""
    if not held_out_tokens(recipe):
        yield None
    elif judges.keep is not None:
        yield _made(Path(judges.keep))
    elif beside is None:
        with TemporaryDirectory(prefix="trimtab-") as place:
            yield Path(place)
    else:
        if fresh:
            shutil.rmtree(beside, ignore_errors=True)
        yield beside
        shutil.rmtree(beside, ignore_errors=True)


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}") from error
    return folder.resolve()


def judging(judges: Judges, recipe: Recipe, held_out: Tensor, folder: Path) -> Judging:
    """held_out: token ids [count, length]. Raises `UsageError` where Ray is asked for and not there."""
    code = [code_of(type(step.method)) for step in recipe.steps]
    return Judging(held_out, folder, spread(judges.workers, judges.ray), json.dumps([versions(), code]))
