"""Will it fit, and how long will it take? Asked before any weight moves, so that nobody waits hours to hear no."""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil
from transformers import PreTrainedModel

from trimtab.anatomy import Anatomy
from trimtab.core.errors import UsageError
from trimtab.core.kinds import Searches
from trimtab.core.recipe import Recipe
from trimtab.engine import forecast
from trimtab.engine.forecast import Expected
from trimtab.engine.memory import give_back
from trimtab.engine.packed_linear import nothing_kept_unpacked
from trimtab.engine.plan import Plan
from trimtab.engine.plan import plan as planned
from trimtab.engine.storage import tensors
from trimtab.host.folder_checks import weight_files
from trimtab.host.publish import existing

WRITTEN_PER_SECOND = 4e8  # bytes of a model that is checked, written, read again for its digest, and forced to disk
TOLERANCE = 0.15  # by so much what is said of memory may be wrong; what might fit is not refused
CGROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True)
class Preflight:
    """memory: bytes that the process will hold at most, with those that judge candidates for it; available: that it may. files:
    bytes of the weight files, None where the data decide; free: of the disk they go to. seconds: of everything from opening to
    publishing, None where not asked."""

    plan: Plan
    steps: tuple[Expected, ...]
    memory: int
    available: int
    files: int | None
    free: int | None = None
    seconds: float | None = None
    tokens: int | None = None  # that would fit, where these do not
    apart: int = 0  # processes that judge candidates

    def json(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("memory", "available", "files", "free", "seconds", "tokens")}
        return {**self.plan.json(), "forecast": {**own, "steps": [asdict(step) for step in self.steps]}}

    def check(self) -> None:
        """Raises `UsageError` that says what would fit, if this does not."""
        if self.memory * (1 - TOLERANCE) <= self.available:
            return
        fewer = f"--tokens {self.tokens} would fit, or use " if self.tokens else ""
        fewer += "fewer --workers, or " if self.apart > 1 else ""
        raise UsageError(
            f"this takes about {_size(self.memory)} of memory, {_size(self.available)} are available: {fewer}--offload DIR, "
            "which keeps blocks and activations on disk"
        )


def preflight(
    model: PreTrainedModel,
    recipe: Recipe,
    packed: bool = False,
    folder: str | Path | None = None,
    out: str | Path | None = None,
    rehearse: bool = False,
    opened: float = 0.0,
    offloaded: bool = False,
    apart: int = 0,
) -> Preflight:
    """The plan of a recipe for an opened model, and what carrying it out will take. Raises what `plan` raises.

    folder: where the model was read from, which takes memory of its own while it is read. opened: seconds that took.
    rehearse: also say how long it will take; that takes some seconds itself. offloaded: the blocks are not in memory.
    apart: processes here that judge candidates.
    """
    apart = apart if any(isinstance(step.by or step.method, Searches) for step in recipe.steps) else 0
    with nothing_kept_unpacked():
        anatomy = Anatomy.of(model)
        plan = planned(anatomy, recipe, packed)
        held = forecast.outside(anatomy) if offloaded else sum(t.nbytes for t in tensors(model))
        base = psutil.Process().memory_info().rss - held
        steps = forecast.memory(anatomy, recipe, offloaded, apart, base)
        reading = held + (_read(Path(folder), model) if folder is not None and not offloaded else 0)
        most = base + max(reading, *(step.memory for step in steps))
        seconds: list[float | None] = [None] * len(steps)
        if rehearse and not offloaded:
            seconds = forecast.seconds(anatomy, recipe)
            give_back()
            used = psutil.Process().memory_info().rss - held - forecast.FIRST_USE  # by now the libraries have what they take
            most += max(0, used - base)
    taken = tuple(replace(step, seconds=took) for step, took in zip(steps, seconds, strict=True))
    known = [step.seconds for step in taken if step.seconds is not None]
    whole = opened + sum(known) + (plan.bytes_after or held) / WRITTEN_PER_SECOND if len(known) == len(taken) else None
    found = Preflight(
        plan, taken, most, available(), plan.file_bytes, None if out is None else _free(Path(out)), whole, apart=apart
    )
    return replace(found, tokens=_fitting(found, anatomy, recipe, apart, base))


def check_opening(folder: Path) -> None:
    """Raises `UsageError` if the model in a folder is too large to be opened as a whole."""
    size, room = sum(file.stat().st_size for file in weight_files(folder)), available() - psutil.Process().memory_info().rss
    if size > room:
        raise UsageError(
            f"{folder} takes {_size(size)} of memory to be opened, {_size(room)} are available: use --offload DIR, "
            "which keeps blocks and activations on disk"
        )


def available() -> int:
    """Bytes of memory that this process may hold in all: what is free and what it has, within the limits set for it."""
    own = psutil.Process().memory_info().rss
    limits = [psutil.virtual_memory().available + own]
    set_for_group = [path.read_text().strip() for path in CGROUPS if path.exists()]
    limits += [int(text) for text in set_for_group if text.isdigit()]
    addresses = _addresses()
    if addresses is not None:
        limits.append(addresses - (psutil.Process().memory_info().vms - own))  # what is only reserved counts there, too
    return min(limits)


def _addresses() -> int | None:
    """How many bytes of addresses this process may have; None where there is no limit, or no such thing."""
    if sys.platform == "win32":
        return None
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft


def _fitting(found: Preflight, anatomy: Anatomy, recipe: Recipe, apart: int, process: int) -> int | None:
    """How many tokens would fit, in whole windows; None where all do, or none would."""
    over = found.memory - found.available
    given = recipe.calibration
    per_token = forecast.activations(recipe, anatomy.sites[0].shape[1]) / given.tokens
    windows = int((given.tokens - over / per_token) // given.length) if over > 0 else 0
    fewer = replace(recipe, calibration=replace(given, tokens=max(windows, 1) * given.length))
    fits = windows >= 1 and _most(forecast.memory(anatomy, fewer, False, apart, process)) <= _most(found.steps) - over
    return windows * given.length if fits else None


def _most(steps: Sequence[Expected]) -> int:
    return max(step.memory for step in steps)


def _read(folder: Path, model: PreTrainedModel) -> int:
    """What opening holds besides the model: its files as well if the dtype is another, else one tensor."""
    size = sum(file.stat().st_size for file in weight_files(folder))
    held = [t.nbytes for t in tensors(model)]
    return max(held) if abs(size - sum(held)) < 0.01 * size else size


def _free(out: Path) -> int:
    return shutil.disk_usage(existing(out.expanduser().resolve())).free


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB"
