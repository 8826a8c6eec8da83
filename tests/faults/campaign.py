"""The long version of the tests in this folder: everything, seeded, its counts appended to `faults/ledger.jsonl`.

`make faults` runs all of it in some minutes on one core, `make faults ARGS="fuzz hostile"` some families. A fault ends the
run with exit code 1, and its line says which input it was; `docs/reliability.py` makes the page from the ledger.
"""

import logging
import os
import shutil
import sys
import tempfile
import warnings
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import checkpoints
import guard
import hostile
import kills
import network
import numbers_at_the_edge as edge
import parsers
import random_recipes
import transformers
import writing

from trimtab.core.recipe import Recipe
from trimtab.host import checkpoint, manifest
from trimtab.host.provenance import provenance
from trimtab.measure.ledger import append
from trimtab.testing.faults import Victims

LEDGER = Path(__file__).parents[2] / "faults" / "ledger.jsonl"
Lines = Iterator[dict[str, Any]]
INPUTS, KILLS, POINTS = 24_000, 60, 40
RANDOM_KILLS, DOUBLE_KILLS, AIMED_KILLS, PLANS = 200, 50, 50, 2_000


def line(family: str, what: str, tally: guard.Tally, **more: Any) -> dict[str, Any]:
    return {"family": family, "what": what, **tally.numbers(), **more}


def of_counts(family: str, what: str, found: Counter[str], faulty: tuple[str, ...]) -> dict[str, Any]:
    """For experiments whose outcomes have names of their own."""
    faults = sum(found[name] for name in faulty)
    return {"family": family, "what": what, "cases": sum(found.values()), "fault": faults, "outcomes": dict(found)}


def overwriting(place: Path, seed: int) -> Lines:
    wrong = (writing.MIXED, writing.NONE, writing.BROKEN)
    for name, save in (("trimtab's", writing.ours), ("save_pretrained", writing.stock)):
        found = writing.killed_while_overwriting(place / name, save, KILLS, Random(f"{seed}/{name}"))
        # What the stock function leaves is shown beside ours, and is no fault of ours.
        made = of_counts("A", f"SIGKILL while overwriting, {name}", found, wrong if name == "trimtab's" else ())
        yield {**made, "compared": name != "trimtab's"}
    found = writing.killed_at_every_point(place / "points")
    verified = found.pop("verified")
    missing = sum(found.values()) - verified
    yield {**of_counts("A", "SIGKILL at every point of the commit", found, wrong), "unverified": missing}


def killed(place: Path, seed: int) -> Lines:
    (place / "jobs").mkdir()
    wrong = (kills.OTHER, kills.HALF, kills.LOST, kills.MORE, kills.TOO_LATE)
    what = "compress, search, adapt, export, measure"
    with Victims() as victims:
        trials = [kills.Trial(job, victims, place / "trial") for job in kills.jobs(place / "jobs")]
        for times, count in ((1, RANDOM_KILLS), (2, DOUBLE_KILLS)):
            found = kills.at_random(trials, count, Random(f"{seed}/{times}"), times)
            often = {1: "once", 2: "twice"}[times]
            yield of_counts("A", f"SIGKILL {often} at random moments of {what}", found, wrong)
        for instant, found in kills.at_commits(trials, Random(seed), AIMED_KILLS):
            yield of_counts("A", f"SIGKILL of the same at the instant {instant!r}", found, wrong)


def whose(place: Path, seed: int) -> Lines:
    tally = guard.Tally()
    for name, outcome in kills.changes(place):
        tally.add(name, outcome)
    yield line("K", "another job comes to the state of a stopped one: refused, or noted, by name", tally)


def plans(place: Path, seed: int) -> Lines:
    tally = guard.Tally()
    for number in range(PLANS):
        tally.add(f"{seed}/{number}", guard.judged(partial(random_recipes.planned, Random(f"{seed}/{number}"))))
    yield line("L", "random recipes, planned for one of four families", tally)


def disk(place: Path, seed: int) -> Lines:
    for which in writing.ERRORS:
        name = writing.errno.errorcode[which]
        yield line("B", f"{name} at every point of the commit", writing.errors_at_every_point(place / name / "model", which))
    if writing.can_mount(place / "disk"):
        yield line("B", "disk full at 1 to 99 % of what is written", writing.no_room(place / "disk", POINTS))


def company(place: Path, seed: int) -> Lines:
    tally = guard.Tally()
    for number in range(10):
        outcome, pid = writing.second_writer(place / "two")
        if outcome.kind == guard.REFUSED and f"process {pid} " not in outcome.said:
            outcome = guard.Outcome(guard.FAULT, outcome.said, outcome.seconds)
        tally.add(f"writer {number}", outcome)
        writing.ours(writing.models()[0], place / "two")  # what a killed writer left is no obstacle
    yield line("C", "a second writer, refused with the first one's process", tally)
    yield of_counts("C", "readers while a model is replaced", writing.readers_meanwhile(place / "read", 8.0), (writing.MIXED,))


def damage(place: Path, seed: int) -> Lines:
    hashed, opened, silent = guard.Tally(), guard.Tally(), Counter[str]()
    for fixture in checkpoints.fixtures():
        again = checkpoints.copies(fixture.write(place / "good"), place / "copy")
        for name, harm in {**checkpoints.STRUCTURAL, **checkpoints.SILENT}.items():
            times = {"truncated": 50, "bit flipped": 500}.get(name, 8)
            for number in range(times):
                copy = next(again)
                harm(copy, Random(f"{seed}/{fixture.name}/{name}/{number}"))
                case = f"{fixture.name}: {name} {number}"
                hashed.add(case, _has_to_be_refused(lambda copy=copy: manifest.verify(copy)))
                if number < 3:
                    checkpoints.without_manifest(copy)
                    outcome = guard.judged(lambda copy=copy: checkpoint.load(copy))
                    if name in checkpoints.STRUCTURAL:
                        opened.add(case, _refused(outcome))
                    else:
                        silent[outcome.kind] += 1
        shutil.rmtree(place / "good")
    yield line("D", "damage to a folder with its manifest", hashed)
    yield line("D", "structural damage to a folder without manifest", opened)
    yield of_counts("D", "changed values in a folder without manifest", silent, (guard.FAULT,))


def _has_to_be_refused(work: Callable[[], Any]) -> guard.Outcome:
    return _refused(guard.judged(work))


def _refused(outcome: guard.Outcome) -> guard.Outcome:
    if outcome.kind == guard.TAKEN:
        return guard.Outcome(guard.FAULT, "not noticed", outcome.seconds, outcome.grown)
    return outcome


def crafted(place: Path, seed: int) -> Lines:
    tally = guard.Tally()
    for name, make in {**hostile.HOSTILE_SAFETENSORS, **hostile.ODD_SAFETENSORS}.items():
        with _folder(place) as folder:
            size = (folder / "model.safetensors").write_bytes(make())
            for reader, read in hostile.READERS.items():
                outcome = guard.apart(partial(read, folder), size)
                tally.add(f"{name}, {reader}", _refused(outcome) if name in hostile.HOSTILE_SAFETENSORS else outcome)
    yield line("E", "safetensors files made on purpose", tally)
    tally = guard.Tally()
    for name, make in hostile.HOSTILE_GGUF.items():
        with _folder(place) as folder:
            size = (folder / "model.gguf").write_bytes(make())
            tally.add(name, _refused(guard.apart(partial(hostile.read_gguf, folder), size)))
    yield line("F", "GGUF files made on purpose", tally)
    tally = guard.Tally()
    for name, recipe in hostile.HOSTILE_RECIPES.items():
        tally.add(name, _refused(guard.apart(partial(Recipe.parse, recipe))))
    yield line("G", "recipes made on purpose", tally)
    tally = guard.Tally()
    for name in hostile.HOSTILE_TEMPLATES:
        tally.add(name, guard.judged(partial(hostile.render_template, name)))
    yield line("G", "chat templates made on purpose", tally)
    yield folders_made_on_purpose(place)


def folders_made_on_purpose(place: Path) -> dict[str, Any]:
    tally, good = guard.Tally(), hostile.good_folder(place / "good")
    touched = 0
    for name, change in hostile.HOSTILE_FOLDERS.items():
        with _folder(place) as folder:
            secret = folder / "elsewhere" / "secret.json"
            secret.parent.mkdir()
            secret.write_text('{"secret": 1}')
            model = shutil.copytree(good, folder / "model")
            change(model, secret)
            with hostile.witness(secret) as was_opened:
                outcome = guard.apart(partial(hostile.load, model), _size(model))
                if was_opened():
                    touched += 1
                    outcome = guard.Outcome(guard.FAULT, "a file outside of the folder was opened")
            tally.add(name, outcome)
    return line("G, H", "model folders made on purpose", tally, outside=touched)


def _size(model: Path) -> int:
    return sum(path.lstat().st_blocks * 512 for path in model.rglob("*") if path.is_file() and not path.is_symlink())


def edges(place: Path, seed: int) -> Lines:
    tally = guard.Tally()
    for id in edge.linear_methods():
        for name in edge.EDGES:
            tally.add(f"{id}: {name}", guard.judged(partial(edge.solved, id, name)))
    yield line("I", "methods on values at the edge", tally, methods=len(edge.linear_methods()))
    tally = guard.Tally()
    for family in ("llama", "gpt2", "phi3", "mixtral"):
        for name, value in edge.POISONS.items():
            for late in (False, True):
                target = place / "poisoned"
                outcome = guard.judged(partial(edge.poisoned, family, value, "rtn", target, late))
                if target.exists():
                    outcome = guard.Outcome(guard.FAULT, "was published")
                    shutil.rmtree(target)
                tally.add(f"{family}: {name}, late={late}", _refused(outcome))
    yield line("I", "models with a value that is no number", tally)
    tally = guard.Tally()
    for shape, recipe in edge.shapes():
        with _folder(place) as folder:
            tally.add(f"{shape}: {recipe}", guard.judged(partial(edge.compressed, shape, recipe, folder / "out")))
    yield line("J", "odd shapes, compressed, saved and opened", tally)


def offline(place: Path, seed: int) -> Lines:
    model, text = hostile.good_folder(place / "model"), place / "text.txt"
    text.write_text("\n\n".join("some words of text that are long enough to fill a window " * 3 for _ in range(20)))
    tally = guard.Tally()
    with network.blocked() as tried:
        tally.add("whole way", guard.judged(partial(network.whole_way, model, text, place / "out")))
        tally.add("hub name", _refused(guard.judged(partial(network.of_the_hub, "nobody/nothing"))))
    yield line("M", "sockets blocked: compress, save, open, generate; a name of the hub", tally, tried=len(tried))


def fuzz(place: Path, seed: int) -> Lines:
    for name, count in parsers.shares(INPUTS).items():
        tally, parser = guard.Tally(), parsers.PARSERS[name]
        before = guard.resident()
        for number in range(count):
            data = parsers.mutated(parser, seed, number)
            with _folder(place) as folder:
                tally.add(f"{seed}/{number}", guard.judged(partial(parser.read, data, folder)))
        tally.grown = max(0, guard.resident() - before)
        yield line("E, F, G", f"mutated: {name}", tally)


class _folder:
    """An empty folder that vanishes."""

    def __init__(self, place: Path):
        self.place = place / "case"

    def __enter__(self) -> Path:
        self.place.mkdir()
        return self.place

    def __exit__(self, *_: Any) -> None:
        shutil.rmtree(self.place)


FAMILIES: dict[str, Callable[[Path, int], Lines]] = {
    "overwriting": overwriting,
    "killed": killed,
    "whose": whose,
    "plans": plans,
    "disk": disk,
    "company": company,
    "damage": damage,
    "crafted": crafted,
    "edges": edges,
    "offline": offline,
    "fuzz": fuzz,
}


def main() -> int:
    options = ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("families", nargs="*", help=", ".join(FAMILIES))
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--ledger", type=Path, default=LEDGER)
    given = options.parse_args()
    _hush()
    made, faults = {"seed": given.seed, **provenance()}, 0
    for family in given.families or FAMILIES:
        start = _used()
        with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as place:
            for found in FAMILIES[family](Path(place), given.seed):
                seconds, start = _used() - start, _used()
                append({"run": family, **found, "cpu_seconds": round(seconds, 1), **made}, given.ledger)
                faults += found["fault"]
                print(f"{found['what']:64s} {found['cases']:6d} cases, {found['fault']} faults, {seconds:.0f} s", flush=True)
                for example in found.get("examples", []):
                    print(f"    {example}")
    return 1 if faults else 0


def _used() -> float:
    """Seconds of processor time, forks included."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def _hush() -> None:
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")


if __name__ == "__main__":
    sys.exit(main())
