"""Training one of our small models with structures in the place of its matrices, up to an ordinary folder.

Everything else is as in `homegrown`: the same shape, vocabulary, text and number of tokens. The trainer is `trainer.tune`, so
what was stopped goes on from `OUT.training`. Weight decay is off: pulling on factors is not pulling on the matrix they make.
"""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from trimtab.anatomy import Anatomy
from trimtab.core.errors import UsageError
from trimtab.core.expression import steps as read_expression
from trimtab.core.kinds import Method
from trimtab.core.progress import Progress, Watcher, unwatched
from trimtab.core.scratch import ScratchMethod
from trimtab.core.seeds import Seeds
from trimtab.core.trained import Hook
from trimtab.data.examples import Row
from trimtab.data.windows import encoder, pack
from trimtab.engine import scratch
from trimtab.host import checkpoint, manifest
from trimtab.host.homegrown import Named, reading, untrained
from trimtab.host.peak import peak_memory
from trimtab.host.pretrain import Course
from trimtab.host.publish import check_target
from trimtab.host.source import record
from trimtab.host.trainer import Pace, tune
from trimtab.host.tuned import Tuned
from trimtab.tensors.products import fast_products


@dataclass(frozen=True)
class Grown:
    """parameters: trained numbers of the whole result; trained: numbers that had a gradient when the training began."""

    folder: Path
    method: str
    parameters: int
    trained: int
    tokens: int
    tuned: Tuned
    peak_memory: int


@dataclass(frozen=True)
class Taught:
    """What a training of structures came to."""

    parameters: int
    trained: int
    tuned: Tuned


def grow_with(
    wanted: Named,
    method: ScratchMethod | Method | str,
    out: str | Path,
    *,
    steps: int | None = None,
    learning_rate: float | None = None,
    seed: int | None = None,
    overwrite: bool = False,
    watch: Watcher = unwatched,
) -> Grown:
    """Trains the model that a name stands for with another parameterization, and writes it to the folder `out`.

    method: such as `trimtab.methods.SLTrain(keep=0.3)` or "sltrain(keep=0.3)". What is left out is as in the name's description.
    Stopped at any time, the same call goes on. Raises `UsageError` before anything is trained if the request does not fit.
    """
    made = as_scratch(method)
    if wanted.variant:
        raise UsageError(f"{wanted.name} is made from {wanted.base} after its training; use --method with {wanted.base}")
    target = check_target(out, overwrite)
    course = changed(wanted.grown.course, steps, learning_rate, seed)
    grown = replace(wanted.grown, course=course)
    watch(Progress("vocabulary", 0, 1))
    tokenizer, texts = reading(grown)
    place = target.with_name(f"{target.name}.training")
    model = untrained(grown)
    done = teach(model, made, text_rows(texts, tokenizer, course.length), course, place, watch)
    note = f"trained from scratch on {course.tokens:,} tokens as {made}; a small model without a history"
    content = {"note": note, "name": wanted.name, "method": str(made), "description": asdict(grown)}

    def finish(folder: Path) -> None:
        record(folder, content)
        manifest.write(folder)  # once more, now with the record

    watch(Progress("save", 0, 1, str(out)))
    checkpoint.save(model, tokenizer, target, overwrite=overwrite, ready=finish)
    shutil.rmtree(place, ignore_errors=True)  # not needed any more; what cannot be removed does no harm
    return Grown(target, str(made), done.parameters, done.trained, course.tokens, done.tuned, peak_memory())


def teach(
    model: PreTrainedModel,
    method: ScratchMethod | None,
    rows: Sequence[Row],
    course: Course,
    place: Path,
    watch: Watcher = unwatched,
    beside: Sequence[Hook] = (),
) -> Taught:
    """Trains a random model in place, with structures of the method (None: with its own matrices), and puts the results in.

    The checkpoint folder `place` stays. beside: hooks that come after the method's. Raises what `tune` does.
    """
    anatomy, seeds = Anatomy.of(model), Seeds(course.seed)
    every = model.num_parameters() if method is None else scratch.numbers(anatomy, method)
    structures = {} if method is None else scratch.put(anatomy, method, seeds)
    hook = None if method is None else method.hook(structures, course.steps, seeds)
    parameters = dict(model.named_parameters())
    trained = sum(parameter.numel() for parameter in parameters.values() if parameter.requires_grad)
    identity = {"method": str(method), "shape": str(model.config.to_diff_dict()), "course": asdict(course)}
    with fast_products():
        done = tune(
            model,
            parameters,
            rows,
            course,
            place,
            pace=Pace(at_once=course.batch),
            hooks=[hook, *beside] if hook else beside,
            identity=identity,
            watch=watch,
        )
    scratch.settle(model, structures)
    model.requires_grad_(True).eval()
    return Taught(every, trained, done)


def text_rows(texts: Sequence[str], tokenizer: Any, length: int) -> list[Row]:
    """Windows of the joined texts, of all tokens of which but the first something is learned."""
    learned = torch.arange(length) > 0
    return [Row(window, learned) for window in pack(texts, encoder(tokenizer), length)]


def as_scratch(method: ScratchMethod | Method | str) -> ScratchMethod:
    """The method itself, also from an expression. Raises `UsageError` for one that nothing is trained from scratch with."""
    if isinstance(method, str):
        (found, by), *more = read_expression(method)
        if by is not None or more:
            raise UsageError(f"{method!r:.200} is not one method; write e.g. sltrain(keep=0.3)")
        method = found
    if not isinstance(method, ScratchMethod):
        raise UsageError(f"nothing is trained from scratch with {method.card.id}; `trimtab methods` lists those of kind scratch")
    return method


def changed(course: Course, steps: int | None, learning_rate: float | None, seed: int | None) -> Course:
    """The course without decay, and with what is given. Raises `UsageError` for numbers that no training can have."""
    if (steps is not None and steps < 1) or (learning_rate is not None and not 0 < learning_rate < 1):
        raise UsageError("a training takes at least one step and a learning rate between 0 and 1")
    given = {"steps": steps, "learning_rate": learning_rate, "seed": seed}
    return replace(course, decay=0.0, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
