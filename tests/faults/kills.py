"""Work that is killed and begun again: does it end as if nothing had happened, and is whose state it is asked in earnest?"""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from time import perf_counter
from typing import Any

import guard
import torch
from safetensors.torch import load_file, save_file

from trimtab.core.errors import TrimtabError
from trimtab.core.recipe import Calibration, Recipe
from trimtab.host import identity, manifest
from trimtab.host.compress import compress
from trimtab.host.keeping import is_kept, state_of
from trimtab.testing.faults import Victims
from trimtab.testing.folders import tiny_folder

KILLED = -9
SAME, OTHER, HALF, LOST = "same", "other", "half", "not finished"
CLUTTER = "same, but what was kept is not all removed"  # killed meanwhile; whoever writes there next does it
MORE = "same, but something else is left"
TOO_LATE = "ended before it was killed"
UNTOLD = ("README.md", "receipt.json", manifest.NAME)  # they say how long it took
TOLD = "adapter.json"  # so does this, in one number of many
SHORTER = 0.9
TRIES = 50  # before it is believed that a job cannot be killed so often


@dataclass(frozen=True)
class Job:
    """Something that can be killed. what: as `Victims` calls it; words: but for the output."""

    name: str
    what: str
    words: dict[str, Any]
    offloaded: bool = False

    def asked(self, place: Path) -> dict[str, Any]:
        how = {"checkpoint_every": 0} if self.what in ("compress", "export") else {}
        away = {"offload": place / "away"} if self.offloaded else {}
        return {**self.words, **how, **away, "out": place / "out"}

    def found(self, place: Path) -> Any:
        """What is there at the end, in a form that can be compared; None where nothing is. Raises where it is half there."""
        out = place / "out"
        if not out.exists():
            return None
        if self.what == "measure":
            return json.loads(out.read_text())
        manifest.verify(out)
        names = sorted(path.name for path in out.iterdir() if path.name not in (*UNTOLD, TOLD))
        found: dict[str, Any] = dict(zip(names, manifest.digests(out, names), strict=True))
        if (out / TOLD).exists():
            found[TOLD] = json.loads((out / TOLD).read_text())
            del found[TOLD]["tuned"]["seconds"]
        return found


SEARCH = "generations=2, offspring=4, held_out=64"
LESSON = {"steps": 6, "batch": 2, "length": 48, "pace": {"every": 2}}


def text_file(place: Path) -> Path:
    draw, file = Random(0), place / "text.txt"
    file.write_text("\n\n".join(" ".join("".join(draw.choices("abcdefgh", k=5)) for _ in range(40)) for _ in range(60)))
    return file


def jobs(place: Path) -> list[Job]:
    """Recipes of one phase and of several, with the model in memory and on disk, two that search; trainings of an adapter and
    of the model; an export; a measurement."""
    text, model = text_file(place), tiny_folder(place / "model")
    shown = Calibration(str(text), tokens=256, length=32)
    recipes = {
        "two linear steps": "wanda(sparsity=0.5) -> gptq(bits=3, group_size=32)",
        "two phases": "quarot -> rtn(group_size=32)",
        "three phases": "wanda(sparsity=0.5) -> flap(sparsity=0.3) -> sparsegpt(sparsity=0.6)",
        "two streams": "gptaq(bits=3, group_size=32)",
        "search": f"gptq(group_size=32) by evopress(levels='bits=2,3,4', mean=3, {SEARCH})",
        "search, two phases": f"wanda(sparsity=0.5) -> evopress_blocks(drop=1, {SEARCH}) -> rtn(group_size=32)",
    }
    made = []
    for name, steps in recipes.items():
        file = place / f"{name}.yaml"
        file.write_text(Recipe.of(steps, shown).yaml())
        made.append(Job(f"compress, {name}", "compress", {"model": model, "recipe": file}))
    asked = {"model": model, "source": str(text), "windows": 40, "length": 48, "speed": False}
    return [
        *made,
        Job("compress, offloaded", "compress", made[0].words, offloaded=True),
        *(Job(f"adapt, {id}", "adapt", {"model": model, "data": text, "method": id, **LESSON}) for id in ("lora", "lisa")),
        Job("export", "export", {"model": model, "to": "plain", "requantize": "bfloat16"}),
        Job("measure", "measure", asked),
    ]


class Trial:
    """A job, what it makes undisturbed, and how long that takes."""

    def __init__(self, job: Job, victims: Victims, place: Path):
        self.job, self.victims, self.place = job, victims, place
        self.took: list[float] = []  # seconds; the first time takes longer
        first, second = self._undisturbed(), self._undisturbed()
        assert first == second, f"{job.name} does not end the same twice"
        self.wanted, self.instants = first
        self.seconds = min(self.took)

    def _undisturbed(self) -> tuple[Any, dict[str, int]]:
        """What is there at the end, and how often it went through each instant."""
        with self._clean() as here:
            begun, heard = perf_counter(), here / "heard"
            ended = self.victims.run(self.job.asked(here), what=self.job.what, heard=heard)
            assert ended == 0, f"{self.job.name} does not end undisturbed"
            self.took.append(perf_counter() - begun)
            return self.job.found(here), json.loads(heard.read_text())

    def at_random(self, draw: Random, kills: int = 1) -> str:
        """Killed so often, at any moment, and then left alone."""
        longest = self.seconds
        for _ in range(TRIES):
            moments = [draw.uniform(0, longest) for _ in range(kills)]
            ended = self._ended(lambda asked, moments=moments: [self._run(asked, after=moment) for moment in moments])
            if ended != TOO_LATE:
                return ended
            longest *= SHORTER  # what goes on takes less than what begins, and on another day everything does
        raise AssertionError(f"{self.job.name} is not killed {kills} times in {TRIES} tries")

    def at(self, instant: str, nth: int) -> str:
        """Killed when it reaches an instant for the n-th time."""
        return self._ended(lambda asked: [self._run(asked, instant=instant, nth=nth)])

    def _run(self, asked: dict[str, Any], **kill: Any) -> int:
        return self.victims.run(asked, what=self.job.what, **kill)

    def _ended(self, kill: Callable[[dict[str, Any]], list[int]]) -> str:
        with self._clean() as here:
            asked = self.job.asked(here)
            if set(kill(asked)) != {KILLED}:
                return TOO_LATE
            try:
                if self.job.found(here) not in (None, self.wanted):
                    return HALF
            except (TrimtabError, ValueError):
                return HALF
            if not self._is_done(here) and self._run(asked) != 0:
                return LOST
            if self.job.found(here) != self.wanted:
                return OTHER
            left = [path.name for path in here.iterdir() if path.name not in ("out", "away")]
            left += [path.name for path in here.glob("away/*")]
            return SAME if not left else CLUTTER if left == [state_of(here / "out").name] else MORE

    def _is_done(self, here: Path) -> bool:
        """Killed when there was nothing left to do."""
        return (here / "out").exists() and not is_kept(here / "out")

    @contextmanager
    def _clean(self) -> Iterator[Path]:
        self.place.mkdir()
        try:
            yield self.place
        finally:
            shutil.rmtree(self.place)


def at_random(trials: list[Trial], count: int, draw: Random, kills: int = 1) -> Counter[str]:
    return Counter(trials[number % len(trials)].at_random(draw, kills) for number in range(count))


def at_commits(trials: list[Trial], draw: Random, count: int) -> Iterator[tuple[str, Counter[str]]]:
    """For every instant so many kills, over the jobs that go through it, at any of the times they do."""
    for instant in sorted({instant for trial in trials for instant in trial.instants}):
        through = [trial for trial in trials if instant in trial.instants]
        chosen = [through[number % len(through)] for number in range(count)]
        yield instant, Counter(trial.at(instant, draw.randint(1, trial.instants[instant])) for trial in chosen)


def changes(place: Path) -> Iterator[tuple[str, guard.Outcome]]:
    """A stopped job, and what becomes of ten others that come instead of it; each has to be refused, or noted, by name."""
    text, model = text_file(place), tiny_folder(place / "model")
    recipe = Recipe.of("wanda(sparsity=0.5) -> gptq(bits=3, group_size=32)", Calibration(str(text), tokens=256, length=32))
    _stopped(model, recipe, place / "out")
    other_bit, other_text = _with_another_bit(model, place / "bit"), place / "other.txt"
    other_text.write_text(text.read_text().replace("a", "b"))
    steps, shown = recipe.steps, recipe.calibration
    asked: dict[str, tuple[str, Any, Recipe, dict[str, Any]]] = {
        "one bit of a weight": ("model", other_bit, recipe, {}),
        "tokens of the text": ("tokens", model, _on(recipe, text=str(other_text)), {}),
        "the number of tokens": ("recipe.calibration.tokens", model, _on(recipe, tokens=288), {}),
        "the seed": ("recipe.seed", model, Recipe(steps, shown, 1), {}),
        "the dtype": ("dtype", model, recipe, {"dtype": torch.bfloat16}),
        "a knob": ("recipe.steps.1.gptq.bits", model, Recipe.of("wanda(sparsity=0.5) -> gptq(bits=4, group_size=32)", shown), {}),
        "a step": ("recipe.steps.1", model, Recipe(steps[:1], shown), {}),
        "how sparse matrices are stored": ("packed", model, recipe, {"packed": True}),
    }
    for name, (field, source, made, how) in asked.items():
        with _a_copy(place / "out") as out:
            yield name, _by_name(guard.judged(lambda s=source, r=made, h=how, o=out: compress(s, r, o, **h)), field)
    with _a_copy(place / "out") as out, _exchanged("code_of", lambda _: "other code"):
        yield "the code of a method", _by_name(guard.judged(lambda: compress(model, recipe, out)), "methods.")
    for name, field, other in (
        ("the version of torch", "versions.torch", {**identity.versions(), "torch": "99"}),
        ("the number of threads", "machine.cores", {**identity.machine(), "cores": 99}),
    ):
        with _a_copy(place / "out") as out, _exchanged(field.partition(".")[0], lambda other=other: other):
            yield name, _noted(lambda out=out: compress(model, recipe, out).report.notes, field)


def _stopped(model: Path, recipe: Recipe, out: Path) -> None:
    def watch(now: Any) -> None:
        if now.phase == "sweep" and now.done == 2:
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        compress(model, recipe, out, checkpoint_every=0, watch=watch)
    assert is_kept(out)


@contextmanager
def _a_copy(out: Path) -> Iterator[Path]:
    """Another output, whose state is that of the stopped one."""
    again = out.with_name("again")
    shutil.copytree(state_of(out), state_of(again))
    try:
        yield again
    finally:
        for folder in (again, state_of(again)):
            shutil.rmtree(folder, ignore_errors=True)


def _on(recipe: Recipe, **changed: Any) -> Recipe:
    return Recipe(recipe.steps, Calibration(**{**vars(recipe.calibration), **changed}), recipe.seed)


def _with_another_bit(model: Path, place: Path) -> Path:
    """The same model but for the last bit of one number; a model of its own, so without the manifest."""
    shutil.copytree(model, place)
    (place / manifest.NAME).unlink(missing_ok=True)
    file = place / "model.safetensors"
    held = load_file(file)
    name = sorted(held)[0]
    held[name].view(torch.int32).reshape(-1)[0] ^= 1
    save_file(held, file, {"format": "pt"})
    return place


def _by_name(outcome: guard.Outcome, field: str) -> guard.Outcome:
    if outcome.kind == guard.REFUSED and f"another job: {field}" in outcome.said:
        return outcome
    return guard.Outcome(guard.FAULT, f"{outcome.kind}: {outcome.said}")


def _noted(work: Callable[[], list[str]], field: str) -> guard.Outcome:
    notes: list[str] = []
    outcome = guard.judged(lambda: notes.extend(work()))
    if outcome.kind == guard.TAKEN and not any(field in note for note in notes):
        return guard.Outcome(guard.FAULT, f"not noted: {notes}")
    return outcome


@contextmanager
def _exchanged(name: str, stand_in: Callable[..., Any]) -> Iterator[None]:
    before = getattr(identity, name)
    setattr(identity, name, stand_in)
    try:
        yield
    finally:
        setattr(identity, name, before)
