"""What an allocator must keep: every site gets a strength, and the mean or the bytes of them are what was asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trimtab.anatomy import Anatomy
from trimtab.core.kinds import Allocator, Candidate, Original, Seen, Storage, Trials
from trimtab.core.knobs import knobs
from trimtab.core.places import Site
from trimtab.core.recipe import Recipe, Step
from trimtab.core.seeds import Seeds
from trimtab.engine.storage import Files
from trimtab.engine.sweep import Stream
from trimtab.testing.checks_any import steered
from trimtab.testing.problems import brief, expect, settings
from trimtab.testing.roundtrip import same_after_saving, shown
from trimtab.testing.tiny import tiny

SEEDS = range(8)


def sets_a_knob_that_exists(method: type[Allocator]) -> None:
    made = method()
    expect(made.knob in knobs(steered(made)), f"no method has the knob {made.knob!r}")


def serves_every_site(method: type[Allocator]) -> None:
    for made in settings(method):
        sites, strengths = _allocated(made)
        expect(set(strengths) == set(sites), f"{made} leaves sites out, or invents some")
        accepted = steered(made)
        for value in set(strengths.values()):
            accepted(**{made.knob: value})


def meets_its_mean(method: type[Allocator]) -> None:
    """Where it has a knob of the name that it sets, the mean over weights is that, to within half a block's step.

    Not where it needs `Storage`: then the budget is one of bytes.
    """
    for made in settings(method):
        target = made.knobs().get(made.knob)
        if target is None or Storage in made.needs:
            continue
        sites, strengths = _allocated(made)
        weights = {s: s.shape[0] * s.shape[1] for s in sites}
        blocks = len({s.block for s in sites})
        mean = sum(strengths[s] * n for s, n in weights.items()) / sum(weights.values())
        step = (max(strengths.values()) - min(strengths.values())) / blocks
        expect(abs(mean - target) <= step / 2 + 1e-9, f"{made} gives {mean:.4f} on average")


def takes_the_bytes_it_promises(method: type[Allocator]) -> None:
    """As many as were known before anything was seen, if it says so, and not more than `bits` per weight, if it has that."""
    for made in settings(method):
        if Storage not in made.needs:
            continue
        _, sites, storage = _bench(made)
        promised = made.promises(sites, storage)
        _, strengths = _allocated(made)
        sizes = [storage.tensors(site, strengths[site]) for site in sites]
        taken = sum(size for size in sizes if size is not None)
        expect(promised is None or taken == promised, f"{made} takes {taken} bytes and promised {promised}")
        most = made.knobs().get("bits", 64.0) * sum(s.shape[0] * s.shape[1] for s in sites) / 8
        expect(taken <= most, f"{made} takes {taken} bytes, more than {most:.1f}")


def depends_on_nothing_but_the_seed(method: type[Allocator]) -> None:
    for made in settings(method):
        if Trials in made.needs:
            expect(_allocated(made) == _allocated(made), f"{made} chooses differently the second time")
            continue
        drawn = [_allocated(made, seed)[1] for seed in SEEDS]
        again = [_allocated(made, seed)[1] for seed in SEEDS]
        expect(drawn == again, f"{made} chooses differently the second time")
        differ = any(d != drawn[0] for d in drawn)
        random = "random" in made.knobs().values()
        expect(differ == random, f"{made}: different seeds {'must' if random else 'must not'} give different choices")


def is_the_same_after_saving(method: type[Allocator]) -> None:
    made = brief(method())
    same_after_saving("llama", Recipe((Step(steered(made)(), by=made),)))


@torch.no_grad()
def _allocated(method: Any, seed: int = 0) -> tuple[list[Site], dict[Site, Any]]:
    method = brief(method)
    anatomy, sites, storage = _bench(method)
    return sites, method.allocate(sites, _seen(method, anatomy, sites, storage, seed))


def _bench(method: Allocator) -> tuple[Anatomy, list[Site], Storage]:
    """A tiny model, the matrices of its blocks, and what the allocator would be told of their sizes."""
    anatomy = Anatomy.of(tiny("llama"))
    sites = [s for s in anatomy.sites if s.block is not None]
    recipe = Recipe((Step(steered(method)(), by=method),))
    return anatomy, sites, Files(anatomy, recipe, [sites], packed=False).storage(1, sites)


def _seen(method: Allocator, anatomy: Anatomy, sites: list[Site], storage: Storage, seed: int) -> Seen:
    of_block = [n for n in method.needs if getattr(n, "on", "") == "block"]
    of_site = [n for n in method.needs if getattr(n, "on", "") == "input"]
    stream = Stream(anatomy, shown(anatomy.model))  # type: ignore[arg-type]
    values: dict[type, Any] = {n: {} for n in of_site} | {n: [] for n in of_block}
    for block in range(len(anatomy.blocks)):
        wanted = {s: of_site for s in sites if s.block == block}
        seen = stream.collect(block, wanted, of_block, advance=True)  # type: ignore[arg-type]
        for need in of_block:
            values[need].append(seen.block[need])
        for site, stats in seen.sites.items():
            for need in of_site:
                values[need][site] = stats[need]
    values |= {n: torch.stack(v) for n, v in values.items() if isinstance(v, list)}
    if Original in method.needs:
        values[Original] = {s: anatomy.weight(s).dense() for s in sites}
    if Trials in method.needs:
        values[Trials] = Additive(sites)
    if Storage in method.needs:
        values[Storage] = storage
    return Seen(values, Seeds(seed).at("allocator"))


@dataclass(frozen=True)
class Additive:
    """Trials by a formula: each site's loss grows with what is taken from it, more at some than at others, and they add up."""

    sites: Sequence[Site]
    windows: int = 4

    def losses(self, candidates: Sequence[Candidate], windows: Sequence[int] | None = None) -> list[float]:
        return [sum(map(self._loss, range(len(candidate)), candidate)) for candidate in candidates]

    def _loss(self, place: int, strength: Any) -> float:
        taken = 0.0 if strength is None else strength if strength < 1 else 4.0**-strength
        return (1 + (5 * place) % 7) * taken


CHECKS = (
    sets_a_knob_that_exists,
    serves_every_site,
    meets_its_mean,
    takes_the_bytes_it_promises,
    depends_on_nothing_but_the_seed,
    is_the_same_after_saving,
)
