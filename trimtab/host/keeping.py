"""The state of a `compress` or an `export` under way, beside its output: `OUT.partial` holds what a stopped one left.

A commit costs what the activations take to write, so not every block is one. One is due when `every` seconds have passed, and
when that is a small share of the time since the last one: at most `SHARE` of a run goes into commits, on a slow disk too.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel

from trimtab.core.errors import UsageError
from trimtab.core.report import Measurement, Receipt, Report
from trimtab.engine.resume import Part
from trimtab.host import manifest
from trimtab.host.checkpoint import save
from trimtab.host.identity import FORMAT, compatible
from trimtab.host.publish import is_full, publish
from trimtab.host.store import CURRENT, Store, held

EVERY = 20.0  # seconds
SHARE = 0.025
TRAININGS = "trainings"


def state_of(out: str | Path) -> Path:
    """Where the state of a job that writes `out` is."""
    target = Path(out).expanduser().resolve()
    return target.parent / f"{target.name}.partial"


def search_of(out: str | Path) -> Path:
    """Where a search for `out` keeps what it has made and judged, until the result is there."""
    target = Path(out).expanduser().resolve()
    return target.parent / f"{target.name}.search"


def is_kept(out: str | Path) -> bool:
    """Whether a stopped job left something from which the same command would go on."""
    return (state_of(out) / CURRENT).exists() or search_of(out).exists()


@contextmanager
def holding(out: str | Path) -> Iterator[Path]:
    """The folder of the state beside `out`, held. Raises `UsageError` where another process holds it or nothing can be made."""
    with ExitStack() as stack:
        try:
            stack.enter_context(held(folder := state_of(out)))
        except OSError as error:
            raise UsageError(f"cannot write beside {out}: {error.strerror}") from error
        yield folder


class Keeping:
    """A `Keeper` (`engine/resume.py`) over a store that the caller holds.

    fresh: what is there is forgotten. every: seconds between commits at least; 0: commit whenever it can be, whatever it costs.
    Raises `ModelError` for damaged state.
    """

    def __init__(self, store: Store, fresh: bool = False, every: float = EVERY):
        self.store, self.every = store, every
        if fresh:
            store.clear()
        self.content = store.newest() or {}
        self.record: Mapping[str, Any] | None = self.content.get("record")
        self.committed = State(self.record, dict(self.content.get("parts", {})), self.content.get("model"))
        self.parts, self.model = dict(self.committed.parts), self.committed.model
        self.identity: dict[str, Any] = {}
        self.last, self.spent, self.cost = time.monotonic(), 0.0, 0.0
        self.stopped = ""  # why nothing is kept any more

    def begin(self, identity: dict[str, Any]) -> list[str]:
        """Says whose state this is. Notes on what differs from the job that left it; `UsageError` if that is another one."""
        self.identity = json.loads(json.dumps(identity, default=str))
        self.last = time.monotonic()
        if not self.content:
            return []
        if self.content["identity"].get("format") != FORMAT:
            raise UsageError(
                f"{self.store.folder} was left by another version: format {self.content['identity'].get('format')!s:.20}, "
                f"this one reads {FORMAT}; finish it with that version, or start over with --fresh"
            )
        return compatible(self.content["identity"], self.identity, self.store.folder)

    @property
    def folder(self) -> Path | None:
        """The model as it was kept as a whole, or the files; None: there are none. Raises `UsageError` if they have changed."""
        if self.model is None:
            return None
        folder = self.store.folder / self.model["name"]
        if _digest(folder) != self.model["sha256"]:
            raise UsageError(f"{folder} has changed since it was written; start over with --fresh")
        return folder

    def names(self) -> list[str]:
        return list(self.parts)

    def part(self, name: str) -> Part:
        return self.store.get(self.parts[name])

    def place(self, name: str) -> Path:
        """It lasts until the result is there."""
        (self.store.folder / TRAININGS).mkdir(exist_ok=True)
        return self.store.folder / TRAININGS / name

    def due(self) -> bool:
        wait = max(self.every, self.cost / SHARE) if self.every else 0.0
        return not self.stopped and time.monotonic() - self.last >= wait

    def keep(self, name: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        def put() -> None:
            self.parts[name] = self.store.put(tensors, about)

        self._write(put)

    def forget(self, prefix: str) -> None:
        self.parts = {name: part for name, part in self.parts.items() if not name.startswith(prefix)}

    def whole(self, model: nn.Module) -> None:
        def written() -> None:
            name = f"model-{time.time_ns():x}"
            folder = save(cast(PreTrainedModel, model), None, self.store.folder / name)
            self.model = {"name": name, "sha256": _digest(folder)}

        self._write(written)

    def files(self, write: Callable[[Path], None]) -> None:
        """Keep a folder of files that `write` is to fill; `folder` from the next commit on. Raises where the disk is full."""
        name = f"files-{time.time_ns():x}"
        with publish(self.store.folder / name) as partial:
            write(partial)
        self.model = {"name": name, "sha256": _digest(self.store.folder / name)}

    def commit(self, record: Mapping[str, Any]) -> None:
        self._write(lambda: self._commit(State(record, dict(self.parts), self.model), {}))
        self.last, self.cost, self.spent = time.monotonic(), self.spent, 0.0

    def published(self, folder: Path, report: Mapping[str, Any]) -> None:
        """The result is whole in `folder` and about to be given its name; `report` is what was to be said of it."""
        self._write(lambda: self._commit(self.committed, {"result": _digest(folder), "report": report}))

    def _write(self, work: Callable[[], None]) -> None:
        """Where the disk is full, the run goes on without keeping more: what was committed before still counts."""
        if self.stopped:
            return
        begun = time.monotonic()
        try:
            work()
        except (OSError, SafetensorError, UsageError) as error:
            if not is_full(error):
                raise
            self.store.drop()
            self.stopped = "the disk is full: from then on nothing more was kept to go on from"
        self.spent += time.monotonic() - begun

    def is_finished(self, out: Path) -> bool:
        """Whether an earlier process was stopped when its result was in place already."""
        return (out / manifest.NAME).exists() and self.content.get("result") == _digest(out)

    @property
    def report(self) -> Report:
        """What that process was about to say."""
        content = self.content["report"]
        receipts = [Receipt(**receipt) for receipt in content["receipts"]]
        return Report(**{**content, "receipts": receipts, "measurements": [Measurement(**m) for m in content["measurements"]]})

    def _commit(self, state: "State", more: Mapping[str, Any]) -> None:
        folders = [name for name in (TRAININGS,) if (self.store.folder / name).is_dir()]
        refers = {*state.parts.values(), *([state.model["name"]] if state.model else []), *folders}
        self.store.commit({**asdict(state), **more, "identity": self.identity}, refers)
        self.committed = state


@dataclass(frozen=True)
class State:
    """record: the engine's; parts: its parts by name, as objects of the store; model: what was kept whole, name and digest."""

    record: Mapping[str, Any] | None
    parts: dict[str, str]
    model: dict[str, str] | None


def _digest(folder: Path) -> str:
    """Of a model folder's manifest, which has digests of everything else."""
    return manifest.digests(folder, [manifest.NAME])[0]
