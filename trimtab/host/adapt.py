"""`trimtab.adapt` and `trimtab.merge`: from a model and data to an adapter (or a model), and from an adapter to a model."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from trimtab.anatomy import Anatomy
from trimtab.core.errors import DataError, ModelError, UsageError
from trimtab.core.expression import steps as read_expression
from trimtab.core.kinds import Method
from trimtab.core.progress import Progress, Watcher, unwatched
from trimtab.core.recipe import Calibration, Where
from trimtab.core.scratch import ScratchMethod
from trimtab.core.seeds import Seeds
from trimtab.core.trained import AdapterMethod, Delta, Hook, ScheduleMethod, TrainedMethod
from trimtab.data.examples import Examples, examples, held_out
from trimtab.data.windows import calibration_windows
from trimtab.engine import adapting
from trimtab.formats import is_plain
from trimtab.formats.deltas import LowRankDelta
from trimtab.host import adapters, checkpoint
from trimtab.host.curves import curve, receipt_with
from trimtab.host.fingerprint import fingerprint
from trimtab.host.finishing import Finishing, finishing
from trimtab.host.model_assets import resolve_model
from trimtab.host.objectives import check_compute
from trimtab.host.peak import peak_memory
from trimtab.host.pretrain import Course
from trimtab.host.private import Privacy, Spent, of_blocks, tune_privately
from trimtab.host.publish import check_apart, check_target
from trimtab.host.ranks import is_first
from trimtab.host.trainer import Pace, digest_of, tune, validation_loss
from trimtab.host.tuned import Tuned

SHOWN = 256  # rows before training
PRIVATE = ("lora", "rslora")  # plain products: gradients of single rows are known for these


@dataclass(frozen=True)
class Adapted:
    """What a training came to. truncated: rows that were cut; dropped: those with nothing left to learn.

    spent: of a private training, which tells no losses of the rows.
    """

    folder: Path
    method: str
    trained_parameters: int
    rows: int
    validation_rows: int
    truncated: int
    dropped: int
    tuned: Tuned
    peak_memory: int
    spent: Spent | None = None

    def json(self) -> dict[str, Any]:
        return {**asdict(self), "folder": str(self.folder)}

    @staticmethod
    def of(said: Mapping[str, Any]) -> "Adapted":
        """From what `json` gave."""
        spent = Spent.of(said["spent"]) if said["spent"] else None
        return Adapted(**{**said, "folder": Path(said["folder"]), "tuned": Tuned.of(said["tuned"]), "spent": spent})


@dataclass(frozen=True)
class Lesson:
    """What is to be learned and how.

    steps: None means `epochs` passes over the rows. validation: another source, or a share. general: text that is not learned,
    for methods that look at some. learning_rate: the highest one; `adapt` takes the method's own for it. compute: what products
    are taken in, float32 or bfloat16, which is faster where the processor has it; what is trained is float32 in both.
    """

    data: str
    length: int = 256
    steps: int | None = None
    epochs: float = 1.0
    batch: int = 8
    learning_rate: float = TrainedMethod.usual_rate
    decay: float = 0.0
    validation: str | float = 0.05
    general: str = Calibration().text
    seed: int = 0
    compute: str = "float32"

    def course(self, rows: int) -> Course:
        """Raises `DataError` where the rows do not make one batch, `UsageError` for numbers that no training can have."""
        if self.learning_rate <= 0 or self.batch < 1 or (self.steps is not None and self.steps < 1) or self.length < 2:
            raise UsageError("the learning rate must be above 0, steps and batch at least 1, and the length at least 2")
        if rows < self.batch:
            raise DataError(f"{self.data} gives {rows} rows to train on, a step takes {self.batch}; use a smaller --batch")
        steps = self.steps or max(1, round(self.epochs * (rows // self.batch)))
        return Course(steps, self.batch, self.length, self.learning_rate, self.decay, self.seed)


def adapt(
    model: str | Path,
    data: str | Path,
    method: TrainedMethod | str,
    out: str | Path,
    *,
    only: tuple[str, ...] = (),
    skip: tuple[str, ...] = (),
    pace: Pace = Pace(),
    privacy: Privacy | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    overwrite: bool = False,
    watch: Watcher = unwatched,
    **lesson: Any,
) -> Adapted:
    """Trains a model, dense or compressed, on text, prompts with completions, or conversations, and writes what was trained.

    method: such as `trimtab.methods.Lora(rank=16)` or "lora(rank=16)"; an adapter becomes an adapter folder, a schedule a model
    folder. lesson: the fields of `Lesson`. privacy: trains LoRA so that little is told of any one row, and validates on
    public data or none (`host/private.py`). Stopped at any time, the same call goes on from `OUT.training`. Raises `UsageError`
    (and its kinds) before anything is trained if the request does not fit or another process writes there, `TrimtabError` if
    the loss stops being finite.
    """
    method = as_trained(method)
    asked = Lesson(str(data), **{"learning_rate": method.usual_rate, **lesson})
    check_compute(asked.compute)
    _check_private(privacy, asked, pace)
    check_apart(model, out)
    with finishing(out) if is_first() else nullcontext() as end:
        if end is None or not end.is_in_place:
            check_target(out, overwrite)
        watch(Progress("load", 0, 1, str(model)))
        folder = checkpoint.local_folder(resolve_model(str(model), watch))
        opened, tokenizer = checkpoint.load(folder, device, dtype)
        if tokenizer is None:
            raise UsageError(f"{model} has no tokenizer; copy the tokenizer files of the original model into it")
        base = adapters.Base(_called(model), fingerprint(folder))
        target = Path(out).expanduser().resolve()
        job = _Job(
            *(method, Where(only, skip), asked, pace, privacy, folder, opened, tokenizer, base),
            *(*_rows(asked, tokenizer, opened), target),
        )
        said = end.said(job.identity) if end else None
        if said is None:
            check_target(out, overwrite)  # what is in place, if anything, came of another request
            done = _carried_out(job, end, overwrite, watch)
        else:
            done = Adapted.of(said)
        if end is not None:
            shutil.rmtree(job.place, ignore_errors=True)  # not needed any more; what cannot be removed does no harm
            end.done()
    return done


@dataclass(frozen=True)
class _Job:
    """A request, and what it is about, opened."""

    method: TrainedMethod
    where: Where
    lesson: Lesson
    pace: Pace
    privacy: Privacy | None
    folder: Path
    model: PreTrainedModel
    tokenizer: Any
    base: adapters.Base
    train: Examples
    validation: Examples
    out: Path

    @property
    def place(self) -> Path:
        """Where checkpoints go."""
        return self.out.with_name(f"{self.out.name}.training")

    @property
    def identity(self) -> dict[str, Any]:
        """All that the result depends on."""
        rows = [digest_of(self.train.rows), digest_of(self.validation.rows)]
        asked = {
            "method": str(self.method),
            "where": asdict(self.where),
            "lesson": asdict(self.lesson),
            "pace": asdict(self.pace),
            "privacy": self.privacy and asdict(self.privacy),
        }
        return {"model": self.base.fingerprint, "dtype": self.model.dtype, "rows": rows, **asked}


def _carried_out(job: _Job, end: Finishing | None, overwrite: bool, watch: Watcher) -> Adapted:
    """end: None in a process that writes nothing."""
    course, anatomy = job.lesson.course(len(job.train.rows)), Anatomy.of(job.model)

    def general(windows: int) -> Tensor:
        asked = job.lesson
        return calibration_windows(asked.general, job.tokenizer, windows * course.length, course.length, asked.seed)

    seen = shown(job.method, job.train, general, course.seed, job.model.device)
    trained, deltas, hooks = prepared(anatomy, job.method, job.where, Seeds(job.lesson.seed), seen, watch)
    identity = {
        "model": job.base.fingerprint,
        "general": job.lesson.general,
        "method": job.method.card.id,
        **job.method.knobs(),
        "layers": list(deltas),
    }
    spent: Spent | None = None
    if job.privacy is not None:
        tuned, spent = _privately(job, job.privacy, course, deltas, watch)
    else:
        tuned = tune(
            job.model,
            trained,
            job.train.rows,
            course,
            job.place,
            validation=job.validation.rows,
            pace=job.pace,
            hooks=hooks,
            compute=job.lesson.compute,
            general=general,
            identity=identity,
            watch=watch,
        )
    count = still_there(job.model, trained)
    numbers = (len(job.train.rows), len(job.validation.rows), job.train.truncated, job.train.dropped)
    done = Adapted(job.out, str(job.method), count, *numbers, tuned, peak_memory(), spent)
    if end is not None:
        watch(Progress("save", 0, 1, str(job.out)))
        _write(job, done, deltas, overwrite, end.about_to(job.identity, done.json()))
    return done


def _check_private(privacy: Privacy | None, asked: Lesson, pace: Pace) -> None:
    """Raises `UsageError` where private rows would be told of in another way, or bounds be met by rounded gradients only, or for
    what a private training does not do."""
    if privacy is None:
        return
    if not isinstance(asked.validation, str) and asked.validation > 0:
        raise UsageError("a loss on a share of private rows would tell of them; validate on other, public data, or on 0 of them")
    if asked.compute != "float32":
        raise UsageError(f"private training computes in float32, not in {asked.compute}: its bounds hold for exact gradients")
    if (pace.every, pace.patience, pace.recompute) != (None, 0, False):
        raise UsageError(
            "private training keeps no checkpoints, stops at its epsilon and stores activations; "
            "leave --every, --patience and --recompute out"
        )


def _privately(job: _Job, privacy: Privacy, course: Course, deltas: Mapping[str, Delta], watch: Watcher) -> tuple[Tuned, Spent]:
    """Losses are told of the public rows only, before and after. Bounds are moved block by block."""
    if job.method.card.id not in PRIVATE:
        raise UsageError(f"{job.method.card.id} cannot be trained privately; use {' or '.join(PRIVATE)}")
    pairs = [delta for delta in deltas.values() if isinstance(delta, LowRankDelta)]
    public, begun = job.validation.rows, perf_counter()
    groups = of_blocks(Anatomy.of(job.model), list(deltas))

    def losses() -> list[float]:
        return [validation_loss(job.model, public, course.batch)] if public else []

    before = losses()
    spent = tune_privately(job.model, pairs, job.train.rows, course, privacy, watch=watch, public=public, groups=groups)
    told = [(0, loss) for loss in before] + [(spent.steps, loss) for loss in losses()]
    return Tuned(validations=told, best=spent.steps, seconds=perf_counter() - begun), spent


def _write(job: _Job, done: Adapted, deltas: Mapping[str, Delta], overwrite: bool, ready: Callable[[Path], None]) -> None:
    learned = curve(done.method, done.rows, done.tuned)
    if not isinstance(job.method, AdapterMethod):
        receipt = receipt_with(job.folder, job.base.name, [learned])
        checkpoint.save(job.model, job.tokenizer, job.out, overwrite=overwrite, receipt=receipt, ready=ready)
        return
    said = {"lesson": asdict(job.lesson), "trained_parameters": done.trained_parameters, "learned": learned}
    said |= {"private": asdict(done.spent)} if done.spent else {}
    adapters.write(job.out, deltas, job.method, job.base, said, adapters.transposed(job.model, deltas), overwrite, ready)


def merge(
    base: str | Path,
    adapter: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    any_base: bool = False,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
    watch: Watcher = unwatched,
) -> list[str]:
    """Folds an adapter, ours or peft's, into its model and writes that; the names of the matrices that changed.

    Changes of several adapters of one model add up. Matrices of the base that are not plain become sums, where that is exact.
    any_base: also beside another model than the one that it was trained beside. Raises `UsageError`, writing nothing, where
    folding would not be exact.
    """
    check_apart(base, out)
    check_target(out, overwrite)
    watch(Progress("load", 0, 1, str(base)))
    folder = checkpoint.local_folder(resolve_model(str(base), watch))
    opened, tokenizer = checkpoint.load(folder, None, dtype)
    beside = None if any_base else adapters.Base(_called(base), fingerprint(folder))
    several, changed = [adapter] if isinstance(adapter, str | Path) else adapter, dict[str, None]()
    for one in several:
        anatomy = Anatomy.of(opened)
        adapters.read(anatomy, one, beside)
        changed |= dict.fromkeys(adapting.merge(anatomy))
    receipt = receipt_with(folder, _called(base), [adapters.learned(one) for one in several])
    watch(Progress("save", 0, 1, str(out)))
    checkpoint.save(opened, tokenizer, out, overwrite=overwrite, receipt=receipt)
    return list(changed)


def as_trained(method: TrainedMethod | Method | str) -> TrainedMethod:
    """The method itself, also from an expression. Raises `UsageError` for one that is not trained."""
    if isinstance(method, str):
        (found, by), *more = read_expression(method)
        if by is not None or more:
            raise UsageError(f"{method!r:.200} is not one method; write e.g. lora(rank=16)")
        method = found
    if isinstance(method, ScratchMethod):
        id = method.card.id
        raise UsageError(f"{id} is for models without a history; write trimtab grow own-2m --method {id} -o OUT")
    if not isinstance(method, AdapterMethod | ScheduleMethod):
        raise UsageError(f"{method.card.id} is not trained on data; write trimtab compress MODEL --method {method.card.id}")
    return method


def _rows(asked: Lesson, tokenizer: Any, model: PreTrainedModel) -> tuple[Examples, Examples]:
    """(to train on, to validate on), no longer than what the model reads."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    length = min(asked.length, context) if isinstance(context, int) else asked.length
    found = examples(asked.data, tokenizer, length)
    if isinstance(asked.validation, str):
        return found, examples(asked.validation, tokenizer, length)
    return held_out(found, asked.validation, asked.seed)


def shown(
    method: TrainedMethod, rows: Examples, general: Callable[[int], Tensor], seed: int, device: torch.device
) -> list[Tensor]:
    """Token ids [1, length] of up to `SHOWN` rows, drawn, or windows, as `method.looks_at` says; none where nothing is needed."""
    if not (isinstance(method, AdapterMethod) and adapting.needs_text(method)):
        return []
    if method.looks_at == "general":
        return [window[None] for window in general(SHOWN).to(device)]
    drawn = torch.randperm(len(rows.rows), generator=Seeds(seed).at("shown"))[:SHOWN]
    return [rows.rows[number].ids[None].to(device) for number in drawn.tolist()]


def prepared(
    anatomy: Anatomy,
    method: TrainedMethod,
    where: Where,
    seeds: Seeds,
    shown: Sequence[Tensor] = (),
    watch: Watcher = unwatched,
) -> tuple[dict[str, nn.Parameter], dict[str, Delta], list[Hook]]:
    """(the parameters that are trained, deltas by path, hooks). shown: token ids [windows, length] each, for `needs`."""
    if isinstance(method, AdapterMethod):
        deltas = adapting.attach(anatomy, method, where, seeds, shown, watch)
        sites = {site.path: site for site in anatomy.sites if site.index is None}
        hook = method.hook({sites[path]: delta for path, delta in deltas.items()})
        return _wanting(anatomy.model), deltas, [hook] if hook else []
    assert isinstance(method, ScheduleMethod)
    if where != Where():
        raise UsageError(f"{method.card.id} trains the whole model; leave out --only and --skip")
    packed = [site.name for site in anatomy.sites if not is_plain(anatomy.weight(site))]
    if packed:
        raise ModelError(
            f"{method.card.id} trains the matrices themselves, but {packed[0]} is compressed; use an adapter, e.g. lora"
        )
    names = set(method.trains(anatomy))
    for name, parameter in anatomy.model.named_parameters():
        parameter.requires_grad_(name in names)
    return _wanting(anatomy.model), {}, [method.hook(anatomy, seeds)]


def still_there(model: nn.Module, trained: Mapping[str, nn.Parameter]) -> int:
    """How many numbers were trained; a hook may have put one parameter in the place of several."""
    left = set(map(id, model.parameters()))
    return sum(parameter.numel() for parameter in trained.values() if id(parameter) in left)


def _wanting(model: nn.Module) -> dict[str, nn.Parameter]:
    found: Mapping[str, nn.Parameter] = dict(model.named_parameters())
    return {name: parameter for name, parameter in found.items() if parameter.requires_grad}


def _called(model: str | Path) -> str:
    """How a model is called in files: a folder by its last part, so that no place of this machine gets in."""
    return Path(model).name if Path(model).expanduser().exists() else str(model)
