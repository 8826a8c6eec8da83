"""Candidates judged in several processes: here, or wherever a Ray cluster has them. The same judges, the same numbers.

A process is sent no model but the folder of one, which it opens as anybody would; so nothing goes through pipes but names and
numbers. On several machines the folder with the levels must be one that all of them see (`--keep-levels`). Candidates
are sorted and handed out in runs, since neighbours share what is computed (`engine/judge.py`).
"""

import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from trimtab.core.errors import TrimtabError, UsageError
from trimtab.core.kinds import Candidate
from trimtab.engine.judge import Judge, Material, Outcome
from trimtab.engine.search import Judges, Spread, in_turn
from trimtab.host.checkpoint import load, save

RUNS = 2  # for every worker: fewer share more, more wait less for the slowest
Told = list[tuple[int, Outcome]]


@dataclass(frozen=True)
class Sent:
    """A `Material` in plain values; the model is in a folder."""

    model: str
    device: str
    names: tuple[str, ...]
    windows: list[list[int]]
    compute: str
    folder: str
    key: str

    def judge(self) -> Judge:
        model = load(self.model, self.device, "auto")[0]
        windows = torch.tensor(self.windows).to(model.device)
        return Judge(Material(model, self.names, windows, getattr(torch, self.compute), Path(self.folder), self.key))


def spread(workers: int = 1, ray: bool = False) -> Spread:
    """Raises `UsageError` where Ray is asked for and is not installed."""
    if ray:
        _ray()
        return lambda material: _on_ray(material, workers)
    return in_turn if workers == 1 else lambda material: _in_processes(material, workers)


@contextmanager
def _in_processes(material: Material, workers: int) -> Iterator[Judges]:
    with _sent(material) as sent, ProcessPoolExecutor(workers, get_context("spawn"), _begin, (sent,)) as pool:

        def judges(candidates: Sequence[Candidate], windows: Sequence[int]) -> Iterator[tuple[int, Outcome]]:
            runs = {pool.submit(_judged, part, list(windows)): numbers for numbers, part in _runs(candidates, workers)}
            try:
                for done in as_completed(runs):
                    yield from _numbered(done.result(), runs[done])
            except BrokenProcessPool as error:
                raise TrimtabError("a process that judged candidates was killed; use fewer --workers, or free memory") from error

        try:
            yield judges
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _on_ray(material: Material, workers: int) -> Iterator[Judges]:
    ray = _ray()
    mine = not ray.is_initialized()
    if mine:
        own = {} if "RAY_ADDRESS" in os.environ else {"num_cpus": workers}
        ray.init(include_dashboard=False, log_to_driver=False, **own)
    try:
        with _sent(material) as sent:
            actors = [ray.remote(num_cpus=1)(Actor).remote(sent) for _ in range(workers)]
            pool = ray.util.ActorPool(actors)

            def judges(candidates: Sequence[Candidate], windows: Sequence[int]) -> Iterator[tuple[int, Outcome]]:
                ask: Callable[[Any, Any], Any] = lambda actor, run: actor.judged.remote(*run)  # noqa: E731
                for told in pool.map_unordered(ask, [(*run, list(windows)) for run in _runs(candidates, workers)]):
                    yield from told

            yield judges
    finally:
        if mine:
            ray.shutdown()


class Actor:
    """A judge on Ray."""

    def __init__(self, sent: Sent):
        self.judge = sent.judge()

    def judged(self, numbers: list[int], candidates: list[Candidate], windows: list[int]) -> Told:
        return list(_numbered(self.judge.losses(candidates, windows), numbers))


_judge: list[Judge] = []  # of a process of the pool


def _begin(sent: Sent) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _judge.append(sent.judge())


def _end_with_parent() -> None:
    """A parent that is killed tells nobody: its judges would wait for ever, each with a model in memory."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _judged(candidates: list[Candidate], windows: list[int]) -> Told:
    return list(_judge[0].losses(candidates, windows))


def _runs(candidates: Sequence[Candidate], workers: int) -> list[tuple[list[int], list[Candidate]]]:
    """(numbers, candidates) of what is judged together."""
    order = sorted(range(len(candidates)), key=lambda i: repr(candidates[i]))
    size = max(1, -(-len(order) // (RUNS * workers)))
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    return [(part, [candidates[i] for i in part]) for part in parts]


def _numbered(told: Any, numbers: Sequence[int]) -> Iterator[tuple[int, Outcome]]:
    return ((numbers[at], outcome) for at, outcome in told)


@contextmanager
def _sent(material: Material) -> Iterator[Sent]:
    folder = material.folder / f"model-{material.key}"
    shutil.rmtree(folder, ignore_errors=True)
    model = cast(PreTrainedModel, material.model)
    material.folder.mkdir(parents=True, exist_ok=True)
    save(model, None, folder)
    compute = str(material.compute).removeprefix("torch.")
    windows = material.windows.tolist()
    try:
        yield Sent(str(folder), str(model.device), material.names, windows, compute, str(material.folder.resolve()), material.key)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing of this is anybody's business
    try:
        import ray  # type: ignore[import-not-found,unused-ignore]  # an extra
        import ray.util  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise UsageError('ray is not installed; write pip install "trimtab[ray]", or use --workers') from error
    return ray
