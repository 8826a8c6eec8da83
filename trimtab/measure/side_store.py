"""Sides of claims, each measured once: claims share sides, and a run that was killed goes on with what it had.

A result is kept under everything that it depends on: the contents of the model and of both texts, windows, length, the
recipe in full with the contents of other models that it names, the seed, the versions of the libraries, the kernels in use,
and a digest of the code that measures it (`code_digest`). Where no seed can change the model the seed is left out, and where
nothing is calibrated the calibration is. The number of threads is not part of it, though it may change the last digits of a sum.

Two processes never measure the same side at the same time; the second takes another side first, then waits for the first.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from trimtab import kernels
from trimtab.core.kinds import Method, Trials
from trimtab.core.progress import Progress, Watcher, unwatched
from trimtab.core.recipe import Recipe
from trimtab.core.registry import kind
from trimtab.data.assets import cache_root
from trimtab.data.text import documents
from trimtab.engine import packed_linear
from trimtab.engine.references import named
from trimtab.host.checkpoint import local_folder
from trimtab.host.compress import needs_calibration
from trimtab.host.fingerprint import fingerprint
from trimtab.host.kv.quantized import WHOLE
from trimtab.host.locks import alone, is_taken
from trimtab.host.model_assets import resolve_model
from trimtab.host.provenance import versions
from trimtab.host.source import history
from trimtab.measure.code_digest import RUNNERS, SEARCH, digest_of
from trimtab.measure.kept import Kept
from trimtab.measure.scratch_sides import is_from_scratch, measure_scratch_side
from trimtab.measure.sides import Setting, Side, measure_side
from trimtab.measure.tuned_sides import is_tuned, measure_tuned_side

FORMAT = 1
MEASURING = "trimtab.measure.sides"
TRAINING = "trimtab.measure.tuned_sides"
FROM_SCRATCH = "trimtab.measure.scratch_sides"
SIDES = "sides"  # the phase in which whole sides are counted; what happens inside of one has phases of its own
Expression = str | None  # None: the model as it came


@dataclass(frozen=True)
class Ground:
    """What the names in a setting stand for: the folder, the fingerprint and the history of the model, digests of the texts."""

    folder: str
    model: str
    history: str | None
    text: str
    calibration_text: str

    @classmethod
    def of(cls, setting: Setting, watch: Watcher = unwatched) -> "Ground":
        """Fetches or makes what is not there yet. Raises `ModelError` and `DataError` for what there is not."""
        folder = local_folder(resolve_model(setting.model, watch))
        texts = (text_digest(setting.text), text_digest(setting.calibration.text))
        return cls(str(folder), fingerprint(folder), history(folder), *texts)


@cache
def text_digest(source: str) -> str:
    """SHA-256, in hex, of the documents of a text and of their order."""
    return hashlib.sha256(json.dumps(documents(source)).encode()).hexdigest()


@cache
def _content_of(model: str) -> str:
    return fingerprint(local_folder(resolve_model(model)))


def kernels_used(compute: str = "float32") -> str | None:
    """The compiled kernels that sides are measured with here: instruction set and what runs on them; None: nothing does.

    compute: what calibration passes compute in.
    """
    packed = packed_linear.KERNELS and kernels.available()
    passes = compute == "bfloat16" and kernels.serves_passes()
    what = [name for name, used in (("packed models", packed), ("passes", passes)) if used]
    return f"{kernels.instruction_set()}: {', '.join(what)}" if what else None


def modules_of(recipes: Sequence[Recipe | None]) -> list[str]:
    """What measures these sides: the measuring itself, the methods in the recipes, and what carries these out."""
    steps = [step for recipe in recipes if recipe is not None for step in recipe.steps]
    methods = [method for step in steps for method in (step.method, step.by) if method is not None]
    named = {module for method in methods for module in (type(method).__module__, *_runners(method))}
    trained = [TRAINING] if any(map(is_tuned, recipes)) else []
    return [MEASURING, *trained, *([FROM_SCRATCH] if any(map(is_from_scratch, recipes)) else []), *sorted(named)]


def _runners(method: Method) -> tuple[str, ...]:
    searching = Trials in getattr(method, "needs", ())
    return RUNNERS.get(kind(type(method)), ()) + (RUNNERS[SEARCH] if searching else ())


class SideStore:
    """Measured sides in one setting. ground: what its names stand for, if that is known already; kv_bits: see `measure_side`."""

    def __init__(self, setting: Setting, ground: Ground | None = None, kv_bits: int = WHOLE):
        self.setting, self.kv_bits = setting, kv_bits
        self.ground = ground or Ground.of(setting)
        self.kept = Kept(SIDES)

    def sides(self, expressions: Sequence[Expression], watch: Watcher = unwatched) -> list[list[Side]]:
        """For each expression one side per seed, all of the same windows; a single one for None."""
        wanted = [self._recipes(expression) for expression in expressions]
        counted = counting(watch, sum(map(len, wanted)))
        found: dict[int, list[Side]] = {}
        # What another process is measuring right now comes last.
        for number in sorted(range(len(wanted)), key=lambda n: is_taken(self._lock(wanted[n][0]))):
            with alone(self._lock(wanted[number][0])):
                found[number] = [self._side(recipe, counted) for recipe in wanted[number]]
        return [found[number] for number in range(len(wanted))]

    def missing(self, expressions: Iterable[Expression]) -> int:
        """How many sides `sides` would have to measure, at most."""
        return sum(self._kept(recipe) is None for expression in expressions for recipe in self._recipes(expression))

    def _recipes(self, expression: Expression) -> list[Recipe | None]:
        if expression is None:
            return [None]
        return [Recipe.of(expression, self.setting.calibration, seed) for seed in self.setting.seeds]

    def _side(self, recipe: Recipe | None, watch: Watcher) -> Side:
        side = self._kept(recipe)
        if side is None:
            side = self._measured(recipe, watch)
            value = {name: held for name, held in vars(side).items() if name != "losses"}
            self.kept.put(self._key(recipe, side.seeded), value, {"losses": side.losses})
        watch(Progress(SIDES, 1, 1, f"{recipe}, seed {recipe.seed}" if recipe else self.setting.model))
        return side

    def _measured(self, recipe: Recipe | None, watch: Watcher) -> Side:
        if recipe is not None and is_from_scratch(recipe):
            return measure_scratch_side(self.ground.folder, recipe, self.setting, watch)
        if recipe is not None and is_tuned(recipe):
            return measure_tuned_side(self.ground.folder, recipe, self.setting, watch)
        return measure_side(self.ground.folder, recipe, self.setting, watch, self.kv_bits)

    def _kept(self, recipe: Recipe | None) -> Side | None:
        for seeded in (False, True):
            found = self.kept.get(self._key(recipe, seeded))
            if found is not None:
                value, tensors = found
                return Side(tensors["losses"], **value)
        return None

    def _key(self, recipe: Recipe | None, seeded: bool) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "model": self.ground.model,
            "text": self.ground.text,
            "windows": self.setting.windows,
            "length": self.setting.length,
            "recipe": recipe and self._content(recipe),
            "seed": recipe.seed if recipe and seeded else None,
            "code": digest_of(modules_of([recipe])),
            "versions": {name: version for name, version in versions().items() if name != "trimtab"},
            "kernels": kernels_used(recipe.calibration.compute) if recipe else kernels_used(),
            **({} if self.kv_bits == WHOLE else {"kv_bits": self.kv_bits}),
        }

    def _content(self, recipe: Recipe) -> dict[str, Any]:
        shown = {**asdict(recipe.calibration), "text": self.ground.calibration_text}
        return {
            "steps": recipe.to_dict()["steps"],
            "others": [_content_of(name) for name in named(recipe)],
            "calibration": shown if needs_calibration(recipe) else None,
        }

    def _lock(self, recipe: Recipe | None) -> Path:
        """Of a side with all its seeds: whether they matter is known only after the first."""
        key = json.dumps(self._key(recipe, seeded=False), sort_keys=True)
        return cache_root() / "measured" / "locks" / hashlib.sha256(key.encode()).hexdigest()


def counting(watch: Watcher, total: int) -> Watcher:
    """Passes everything on; a finished side becomes one more of all of them."""
    done = 0

    def counted(now: Progress) -> None:
        nonlocal done
        if now.phase == SIDES:
            done += 1
            now = Progress(SIDES, done, total, now.detail)
        watch(now)

    return counted
