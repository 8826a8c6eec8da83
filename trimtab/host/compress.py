"""The main job from end to end: open a model, check the plan, run the recipe, write the result or nothing at all."""

import copy
import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab.anatomy import Anatomy
from trimtab.core.errors import UsageError
from trimtab.core.kinds import ChannelMethod, Method, Original, Storage
from trimtab.core.narrowing import NarrowingMethod
from trimtab.core.progress import Progress, Watcher, unwatched
from trimtab.core.recipe import Calibration, Recipe, Step
from trimtab.core.report import Report
from trimtab.core.taught import School, TaughtMethod
from trimtab.data.windows import calibration_windows, leading
from trimtab.engine.depot import Depot
from trimtab.engine.memory import parted_heap
from trimtab.engine.plan import Plan
from trimtab.engine.plan import plan as planned
from trimtab.engine.references import named
from trimtab.engine.resume import UNKEPT
from trimtab.engine.run import run
from trimtab.engine.teaching import needs_teacher
from trimtab.engine.unpacking import unpack
from trimtab.host.card import model_card, receipt
from trimtab.host.checkpoint import load, local_folder, save
from trimtab.host.export.stock import equally_wide
from trimtab.host.identity import identity
from trimtab.host.keeping import EVERY, Keeping, holding, search_of
from trimtab.host.model_assets import resolve_model
from trimtab.host.offload import check_steps, open_model, save_model
from trimtab.host.peak import peak_memory
from trimtab.host.preflight import Preflight, check_opening, preflight
from trimtab.host.provenance import provenance
from trimtab.host.publish import check_apart, check_target, ensure_space, recover
from trimtab.host.searching import Judges, folder_for, held_out_tokens, judging
from trimtab.host.source import history
from trimtab.host.store import Store

Asked = str | Path | Recipe | Method | Step | Sequence[Method | Step]


@dataclass(frozen=True)
class Compressed:
    """The model in memory, ready to use, with its tokenizer and what was done to it. folder: None if not written.

    model: None where it was too large to be in memory (`offload`); it is in `folder`.
    """

    model: PreTrainedModel | None
    tokenizer: PreTrainedTokenizerBase | None
    report: Report
    plan: Plan
    folder: Path | None = None


def compress(
    model: str | Path | PreTrainedModel,
    recipe: Asked,
    out: str | Path | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    overwrite: bool = False,
    packed: bool = False,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    watch: Watcher = unwatched,
    resume: bool = True,
    fresh: bool = False,
    checkpoint_every: float = EVERY,
    offload: str | Path | None = None,
    workers: int = 1,
    ray: bool = False,
    keep_levels: str | Path | None = None,
) -> Compressed:
    """Compress a model and, with `out`, write it as an ordinary Hugging Face folder.

    model: folder, hub name, `asset:smollm2-135m`, or a model in memory (changed in place; give its tokenizer too).
    recipe: a `Recipe`, an expression such as "gptq(bits=3)", the path of a .yaml file, or the methods themselves in order.
    packed: store sparse results compactly instead of as plain matrices with zeros. dtype: what is not compressed is cast to.
    resume: keep the state of the work in `OUT.partial`, at most every `checkpoint_every` seconds, and go on from what a stopped
    process left there; fresh: forget that first. For a model in memory, or without `out`, nothing is kept.
    offload: a folder for what is not worked on: blocks are read one at a time, activations are on disk, the result is written
    tensor by tensor, and no model is returned. The result is the same.
    workers, ray: who judges the candidates of steps that search: so many processes, here or on a Ray cluster, whose result is
    the same. keep_levels: a folder in which what they compress and judge stays, for other searches over the same levels.
    Raises `UsageError` (and its kinds) before any weight moves if the request does not fit, if another process writes there, or
    if what is kept there belongs to another job; the output is all or nothing.
    """
    asked = _Asked(model, as_recipe(recipe), tokenizer, packed, dtype, device, watch, Judges(workers, ray, keep_levels))
    if offload is not None:
        _check_offload(asked, out)
    if out is None:
        with folder_for(asked.judges, asked.recipe, None, fresh) as search:
            return _carried_out(asked, None, None, search=search)[0]
    if isinstance(model, str | Path):
        check_apart(model, out)
    with holding(out) as folder:
        keeping = Keeping(Store(folder), fresh, checkpoint_every) if resume and isinstance(model, str | Path) else None
        if keeping is not None and keeping.is_finished(Path(out)):
            recover(out)
        else:
            check_target(out, overwrite)
        kept = search_of(out) if keeping is not None else None
        with _place(offload, out) as place, folder_for(asked.judges, asked.recipe, kept, fresh) as search:
            done, depot = _carried_out(asked, Path(out), keeping, place, search)
            if done.folder is None:
                done = _written(asked, done, out, overwrite, keeping, depot)
        if keeping is not None:
            keeping.store.clear()
        return done


@dataclass(frozen=True)
class _Asked:
    """A request, its recipe understood."""

    model: str | Path | PreTrainedModel
    recipe: Recipe
    tokenizer: PreTrainedTokenizerBase | None
    packed: bool
    dtype: torch.dtype | None
    device: str | torch.device | None
    watch: Watcher
    judges: Judges

    @property
    def name(self) -> str:
        if isinstance(self.model, str | Path):
            return str(self.model)
        return self.model.config.name_or_path or type(self.model).__name__


def _check_offload(asked: _Asked, out: str | Path | None) -> None:
    if out is None or not isinstance(asked.model, str | Path):
        raise UsageError("offload is for models in files whose result goes to files; name a folder, and give out=")
    if torch.device(asked.device or "cpu").type != "cpu":
        raise UsageError("offload works on the CPU; leave the device out")
    check_steps(asked.recipe)


@contextmanager
def _place(offload: str | Path | None, out: str | Path | None = None) -> Iterator[Path | None]:
    """A folder of this run's own, gone at the end. Inside, large tensors leave no holes among the addresses of the process.

    out: what the caller writes, and holds; what a killed run left there for the same output is removed.
    """
    if offload is None:
        yield None
        return
    with ExitStack() as stack:
        try:
            Path(offload).mkdir(parents=True, exist_ok=True)
            name = "trimtab-" if out is None else f"trimtab-{hashlib.sha256(bytes(Path(out).resolve())).hexdigest()[:16]}-"
            for left in () if out is None else Path(offload).glob(f"{name}*"):
                shutil.rmtree(left)
            place = stack.enter_context(TemporaryDirectory(prefix=name, dir=offload))
        except OSError as error:
            raise UsageError(f"cannot write to {offload}: {error.strerror}") from error
        stack.enter_context(parted_heap())
        yield Path(place)


def _carried_out(
    asked: _Asked, out: Path | None, keeping: Keeping | None, place: Path | None = None, search: Path | None = None
) -> tuple[Compressed, Depot | None]:
    """Everything but writing the result; from where a stopped process was, if it left something."""
    asked.watch(Progress("load", 0, 1, asked.name))
    depot = None
    if place is None:
        model, tokenizer, notes = _opened(asked.model, asked.recipe, asked.tokenizer, asked.dtype, asked.device)
    else:
        model, depot, tokenizer, notes = _offloaded(str(asked.model), asked.dtype, place)
    source = None if isinstance(asked.model, PreTrainedModel) else local_folder(resolve_model(str(asked.model)))
    apart = asked.judges.apart
    before = preflight(model, asked.recipe, asked.packed, source, offloaded=depot is not None, apart=apart)
    if model.device.type == "cpu":
        before.check()
    expected = before.plan
    if out is not None:
        ensure_space(out, expected.bytes_after or expected.bytes_before)
    batches, held_out = _batches(model, tokenizer, asked.recipe)
    how = None if search is None else judging(asked.judges, asked.recipe, held_out, search)
    bases = {name: resolve_model(name) for name in named(asked.recipe)}
    if keeping is not None:
        notes += keeping.begin(_identity(asked, batches, bases))
        if out is not None and keeping.is_finished(out):
            again = None if depot else load(out, asked.device, "auto")[0]
            return Compressed(again, tokenizer, keeping.report, expected, out), depot
        if keeping.folder is not None:
            model = load(keeping.folder, asked.device, "auto")[0]
    others = {name: load(folder, asked.device)[0] for name, folder in bases.items()}
    teacher = _teacher(asked, model) if needs_teacher(asked.recipe) else None
    school = _school() if any(isinstance(step.method, TaughtMethod) for step in asked.recipe.steps) else None
    taught = (school, teacher, None if tokenizer is None else leading(tokenizer))
    bench = run(model, asked.recipe, batches, asked.watch, asked.packed, others, keeping or UNKEPT, depot, how, *taught)
    notes += [*bench.notes, *(equally_wide(model) if _uniform(asked.recipe) else [])]
    report = Report(
        asked.name,
        asked.recipe.to_dict(),
        bench.receipts,
        notes=[*notes, *([keeping.stopped] if keeping and keeping.stopped else [])],
        profile=dict(bench.profile.seconds),
        peak_memory=peak_memory(),
        seeded=bench.drew or needs_calibration(asked.recipe),
        shown=_shown(asked.recipe, batches),
        made=provenance(),
    )
    return Compressed(model, tokenizer, report, expected), depot


def _school() -> School:
    """Looked for where something is taught only: the Trainer brings libraries that take more than a gigabyte of addresses."""
    from trimtab.host.school import school

    return school


def _teacher(asked: _Asked, model: PreTrainedModel) -> PreTrainedModel:
    """The model before the first step, of its own and never trained."""
    if isinstance(asked.model, PreTrainedModel):
        return copy.deepcopy(model).eval().requires_grad_(False)
    found: PreTrainedModel = load(resolve_model(str(asked.model)), asked.device, asked.dtype or "auto")[0]
    return found.eval().requires_grad_(False)


def _uniform(recipe: Recipe) -> bool:
    return any(isinstance(step.method, ChannelMethod | NarrowingMethod) and step.method.uniform for step in recipe.steps)


def _identity(asked: _Asked, batches: Sequence[Tensor], bases: Mapping[str, str]) -> dict[str, Any]:
    folder = local_folder(resolve_model(str(asked.model)))
    places = {name: local_folder(place) for name, place in bases.items()}
    return identity(folder, places, asked.recipe, batches, asked.dtype, asked.packed, asked.device)


def _written(
    asked: _Asked, done: Compressed, out: str | Path, overwrite: bool, keeping: Keeping | None, depot: Depot | None
) -> Compressed:
    assert done.model is not None
    asked.watch(Progress("save", 0, 1, str(out)))
    report = done.report
    ready = None if keeping is None else partial(keeping.published, report=report.json())
    card, what = model_card(report), receipt(report)
    if depot is not None:
        texts = {"recipe.yaml": asked.recipe.yaml(), "README.md": card, "receipt.json": what}
        save_model(done.model, depot, done.tokenizer, out, texts, overwrite, ready)
        done = replace(done, model=None)
    else:
        save(done.model, done.tokenizer, out, asked.recipe.yaml(), card, overwrite, receipt=what, ready=ready)
    asked.watch(Progress("save", 1, 1, str(out)))
    return replace(done, folder=Path(out))


def plan(model: str | Path | PreTrainedModel, recipe: Asked, *, dtype: torch.dtype | None = None, packed: bool = False) -> Plan:
    """What `compress` would do, step by step, and the size of the result. Changes nothing."""
    opened, _, _ = _opened(model, as_recipe(recipe), None, dtype, None)
    return planned(Anatomy.of(opened), as_recipe(recipe), packed)


def ahead(
    model: str | Path,
    recipe: Asked,
    out: str | Path | None = None,
    *,
    dtype: torch.dtype | None = None,
    packed: bool = False,
    offload: str | Path | None = None,
    workers: int = 1,
    ray: bool = False,
) -> Preflight:
    """What `compress` would do and take: memory, seconds (rehearsed on one block and one batch), disk. Changes nothing.

    With `offload` nothing is rehearsed.
    """
    if offload is not None:
        check_steps(as_recipe(recipe))
        with _place(offload) as place:
            assert place is not None
            return preflight(_offloaded(str(model), dtype, place)[0], as_recipe(recipe), packed, None, out, offloaded=True)
    begun = perf_counter()
    opened, _, _ = _opened(model, as_recipe(recipe), None, dtype, None)
    took = perf_counter() - begun
    folder = local_folder(resolve_model(str(model)))
    apart = Judges(workers, ray).apart
    return preflight(opened, as_recipe(recipe), packed, folder, out, rehearse=True, opened=took, apart=apart)


def as_recipe(recipe: Asked) -> Recipe:
    """A recipe from what a user has at hand: a `Recipe`, a .yaml path, an expression, one method or several."""
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, Path) or (isinstance(recipe, str) and recipe.endswith((".yaml", ".yml"))):
        return Recipe.read(recipe)
    if isinstance(recipe, str):
        return Recipe.of(recipe)
    return Recipe(recipe if isinstance(recipe, tuple) else (recipe,) if isinstance(recipe, Method | Step) else tuple(recipe))


def needs_calibration(recipe: Recipe) -> bool:
    """Whether any step looks at activations."""
    methods = [m for step in recipe.steps for m in (step.method, step.by) if m is not None]
    return any(need not in (Original, Storage) for method in methods for need in method.needs) or any(
        isinstance(method, TaughtMethod) for method in methods
    )


def _opened(
    model: Any, recipe: Recipe, tokenizer: Any, dtype: torch.dtype | None, device: Any
) -> tuple[PreTrainedModel, Any, list[str]]:
    """Ready for the recipe, with notes for the receipt. A model in memory is somebody's: it stays packed as it is."""
    if not isinstance(model, str | Path):
        return (model if dtype is None else model.to(dtype)), tokenizer, []
    folder = resolve_model(str(model))
    if torch.device(device or "cpu").type == "cpu":
        check_opening(local_folder(folder))
    opened, found = load(folder, device, dtype or "auto")
    past = history(Path(folder))
    return opened, tokenizer or found, [*([past] if past else []), *unpack(opened, recipe)]


def _offloaded(model: str, dtype: torch.dtype | None, place: Path) -> tuple[PreTrainedModel, Depot, Any, list[str]]:
    folder = local_folder(resolve_model(model))
    opened, depot, tokenizer = open_model(folder, dtype, place)
    past = history(folder)
    return opened, depot, tokenizer, [past] if past else []


def _batches(model: PreTrainedModel, tokenizer: Any, recipe: Recipe) -> tuple[Sequence[Tensor], Tensor]:
    """Token ids [batch, length] each, and windows [count, length] that are held out for what searches.

    Recipes that look at no data get a few arbitrary tokens, for the shape checks.
    """
    if not needs_calibration(recipe):
        arbitrary = torch.arange(16).remainder(model.config.get_text_config().vocab_size)[None].to(model.device)
        return [arbitrary], arbitrary[:0]
    if tokenizer is None:
        raise UsageError("this recipe needs calibration text, and the model came without a tokenizer; pass tokenizer=")
    shown: Calibration = recipe.calibration
    count = -(-shown.tokens // shown.length)  # the same windows, whether more are held out or not
    tokens = count * shown.length + held_out_tokens(recipe)
    windows = calibration_windows(shown.text, tokenizer, tokens, shown.length, recipe.seed).to(model.device)
    return list(windows[:count].split(shown.batch)), windows[count:]


def _shown(recipe: Recipe, batches: Sequence[Tensor]) -> dict[str, Any]:
    """What was shown to the model, in a form that tells whether two runs saw the same; empty where nothing was."""
    if not needs_calibration(recipe):
        return {}
    digest = hashlib.sha256(torch.cat(list(batches)).cpu().numpy().tobytes()).hexdigest()
    return {**asdict(recipe.calibration), "sha256": digest}
