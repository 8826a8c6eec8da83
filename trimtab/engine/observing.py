"""Showing the whole model to the calibration set, for what decides about all of it at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from trimtab.anatomy import Anatomy
from trimtab.core.errors import CalibrationError
from trimtab.core.kinds import Original, Seen, Statistic, Storage, Trials
from trimtab.core.narrowing import Separable
from trimtab.core.places import Site
from trimtab.core.progress import Progress, Watcher
from trimtab.core.taught import Teacher
from trimtab.engine.references import Matrices
from trimtab.engine.sweep import Stream

if TYPE_CHECKING:
    from trimtab.engine.run import Bench


def is_statistic(need: type) -> bool:
    """Whether it has to be collected; the others are known without showing anything."""
    return need not in (Original, Storage, Trials, Teacher, Separable)


@contextmanager
def determined(who: str) -> Iterator[None]:
    """Inside, an `ArithmeticError` says that what was seen decides nothing; it leaves as `CalibrationError`."""
    try:
        yield
    except ArithmeticError as error:
        raise CalibrationError(f"{who}: {error}; show more or other calibration text") from error


def observe(
    bench: Bench,
    anatomy: Anatomy,
    needs: Sequence[type],
    sites: Sequence[Site],
    generator: torch.Generator,
    known: Mapping[type, Any] | None = None,
) -> Seen:
    """Show the model as it is to the calibration set: block statistics [blocks], site statistics by site.

    known: what can be needed and is no matter of showing.
    """
    of_block = [n for n in needs if is_statistic(n) and n.on == "block"]  # type: ignore[attr-defined]
    of_site = [n for n in needs if is_statistic(n) and n.on == "input"]  # type: ignore[attr-defined]
    found: dict[type, Any] = {}
    if of_block or of_site:
        found = collected(bench.stream(anatomy), of_block, of_site, sites, bench.watch)
    if Original in needs:
        found[Original] = Matrices(lambda site: bench.weight(anatomy, site), sites)
    stacked = {n: torch.stack(v) if isinstance(v, list) else v for n, v in found.items()}
    return Seen({**stacked, **{need: value for need, value in (known or {}).items() if need in needs}}, generator)


def collected(
    stream: Stream,
    of_block: Sequence[type[Statistic]],
    of_site: Sequence[type[Statistic]],
    sites: Sequence[Site],
    watch: Watcher,
) -> dict[type, Any]:
    """What the stream shows on its way through all blocks: a list by block, a mapping by site. The stream is used up."""
    found: dict[type, Any] = {n: {} for n in of_site} | {n: [] for n in of_block}
    blocks = len(stream.anatomy.blocks)
    for block in range(blocks):
        watch(Progress("observe", block, blocks))
        seen = stream.collect(block, {s: of_site for s in sites if s.block == block}, of_block, advance=True)
        for need in of_block:
            found[need].append(seen.block[need])
        for site, stats in seen.sites.items():
            for need in of_site:
                found[need][site] = stats[need]
    return found
