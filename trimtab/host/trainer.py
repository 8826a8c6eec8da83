"""Training on transformers' `Trainer`, for everything that learns: adapters, schedules, recovery after pruning, distillation.

The loop, devices, accumulation and gradient clipping are the Trainer's (and accelerate's). Ours is what has to survive a kill:
which rows a step reads and at which rate depends on the seed and the step alone, so the Trainer is only ever given the steps
that are left. A checkpoint is the trained parameters, what the optimizer knows of them and the losses so far, in safetensors
files in a folder that is published whole. Killed at any time, the same call goes on to the same losses.

The validation loss is taken wherever a checkpoint is; the parameters of the best one are kept beside the latest and are the
result. A loss that is not finite ends the training before it can touch a parameter.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from trimtab.core.errors import DataError, UsageError
from trimtab.core.progress import Progress, Watcher, unwatched
from trimtab.core.seeds import Seeds
from trimtab.core.trained import Hook
from trimtab.data.examples import Row, batch
from trimtab.engine.packed_linear import nothing_kept_unpacked
from trimtab.host.objectives import Objective, answers, computed_in
from trimtab.host.pretrain import CLIP, RECENT, Course
from trimtab.host.ranks import is_first, processes
from trimtab.host.traceless import lent, own_randomness
from trimtab.host.tuned import DivergedError, Keeper, Tuned

CHECKPOINTS = 10  # in a whole training
Windows = Callable[[int], Tensor]


@dataclass(frozen=True)
class Pace:
    """How a course is walked, which changes no result but where it stops.

    at_once: rows in one forward pass; the others of a batch are accumulated. every: steps between checkpoints, a tenth of all
    if None. patience: how many validations without a better loss end the training, 0: none do. recompute: blocks are computed
    again in the backward pass, so that one block's activations (and unpacked matrices) are in memory, not all.
    """

    at_once: int = 1
    every: int | None = None
    patience: int = 0
    recompute: bool = False


def no_text(windows: int) -> Tensor:
    """Raises `UsageError`: what stands in where nobody says what general text is."""
    raise UsageError("the method looks at general text, and there is none; name some with --general")


def tune(
    model: PreTrainedModel,
    trained: Mapping[str, Tensor],
    rows: Sequence[Row],
    course: Course,
    place: Path,
    *,
    validation: Sequence[Row] = (),
    pace: Pace = Pace(),
    hooks: Sequence[Hook] = (),
    objective: Objective = answers,
    compute: str = "float32",
    rates: Mapping[str, float] | None = None,
    general: Windows = no_text,
    identity: Mapping[str, Any] | None = None,
    watch: Watcher = unwatched,
) -> Tuned:
    """Trains the parameters `trained`, by name, in place; goes on from the checkpoint folder `place`, which stays.

    Among them may be state that wants no gradient. course.length is that of the longest row. compute: what matrix products are
    taken in, float32 or bfloat16. rates: the highest learning rate of parameters, by name, where it is not the course's. general:
    makes [n, length] tokens of other text, for hooks that ask. identity: what else the result depends on; a checkpoint with
    another one is refused. Raises `DataError` for too few rows, `UsageError` for somebody else's checkpoint, `ModelError` for a
    damaged one and `DivergedError` where the loss is not finite.
    """
    _check(rows, course, pace)
    answering, objective = objective is answers, computed_in(compute, objective)
    others = rates or {}
    by_rate = [(others.get(name, course.learning_rate), value) for name, value in trained.items()]
    groups = [{"params": [v for r, v in by_rate if r == rate], "lr": rate} for rate in dict.fromkeys(r for r, _ in by_rate)]
    optimizer = AdamW(groups, lr=course.learning_rate, weight_decay=course.decay)
    whose = {
        **(identity or {}),
        **{
            "batch": course.batch,
            "seed": course.seed,
            "compute": compute,
            "rows": digest_of(rows),
            "validation rows": digest_of(validation),
        },
    }
    kept = {f"{number}.{name}": value for number, hook in enumerate(hooks) for name, value in hook.tensors().items()}
    keeper = Keeper(place, trained, optimizer, whose, kept)
    so_far = keeper.resumed()
    walk = _Walk(model, optimizer, rows, validation, course, pace, hooks, objective, general, keeper, so_far, watch, answering)
    _begun(walk)
    if not walk.is_over:
        _walked(walk)
    keeper.restore_best(so_far)
    model.train(False)
    return so_far


def validation_loss(
    model: nn.Module, rows: Sequence[Row], at_once: int = 1, objective: Objective = answers, padding: int = 0
) -> float:
    """Mean nats per learned token of the rows, in eval mode; the mode is put back."""
    count, total, before = _learned(rows), 0.0, model.training
    model.eval()
    device = next(model.parameters()).device
    with torch.no_grad():
        for start in range(0, len(rows), at_once):
            given = {name: value.to(device) for name, value in batch(rows[start : start + at_once], padding).items()}
            total += float(objective(model, given, torch.tensor(count, device=device)))
    model.train(before)
    return total


def rows_at(rows: Sequence[Row], course: Course, step: int) -> list[Row]:
    """What a step reads. Every pass over the rows shuffles them anew; a rest smaller than a batch is left out of it."""
    epoch, number = divmod(step, len(rows) // course.batch)
    order = torch.randperm(len(rows), generator=Seeds(course.seed).at("epoch", epoch))
    return [rows[i] for i in order[number * course.batch : (number + 1) * course.batch].tolist()]


def _check(rows: Sequence[Row], course: Course, pace: Pace) -> None:
    if len(rows) < course.batch:
        raise DataError(
            f"there are {len(rows)} rows to train on, a step takes {course.batch}; give more, or use a smaller --batch"
        )
    if course.batch % pace.at_once:
        raise UsageError(f"a batch of {course.batch} rows cannot be taken {pace.at_once} at once; use a divisor")


def digest_of(rows: Sequence[Row]) -> str:
    """SHA-256, in hex, of what the rows show and teach."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(row.labels.numpy().tobytes() + row.ids.numpy().tobytes())
    return digest.hexdigest()


def _learned(rows: Sequence[Row]) -> int:
    return sum(int(row.learned.sum()) for row in rows)


@dataclass(eq=False)
class _Walk:
    """One training under way. begin: how many steps had been taken before."""

    model: PreTrainedModel
    optimizer: Optimizer
    rows: Sequence[Row]
    validation: Sequence[Row]
    course: Course
    pace: Pace
    hooks: Sequence[Hook]
    objective: Objective
    text: Windows
    keeper: "Keeper"
    so_far: Tuned
    watch: Watcher
    answering: bool  # whether the objective is that of the model alone, so that it can be asked in between
    begin: int = 0
    loss: float = 0.0  # of the step under way

    @property
    def padding(self) -> int:
        found = getattr(self.model.config.get_text_config(), "pad_token_id", None)
        return found if isinstance(found, int) else 0

    @property
    def steps(self) -> int:
        return self.course.steps

    @property
    def learning_rate(self) -> float:
        return self.course.learning_rate

    @property
    def seeds(self) -> Seeds:
        return Seeds(self.course.seed)

    def losses(self, step: int) -> Iterator[Tensor]:
        """As `core.trained.Training` says, a part for every forward pass of the step."""
        rows, size, device = rows_at(self.rows, self.course, step), self.pace.at_once, self.model.device
        learned = torch.tensor(_learned(rows), device=device)
        for start in range(0, len(rows), size):
            given = batch(rows[start : start + size], self.padding)
            yield self.objective(self.model, {name: value.to(device) for name, value in given.items()}, learned)

    def general(self, windows: int) -> Iterator[Tensor]:
        for ids in self.text(windows).to(self.model.device):
            given = {"input_ids": ids[None], "attention_mask": torch.ones_like(ids[None]), "labels": ids[None]}
            yield answers(self.model, given, torch.tensor(len(ids) - 1, device=ids.device))

    def penalty(self) -> Tensor | float:
        """The share of one pass; those of a step add up to what the hooks ask for."""
        asked = (hook.penalty() for hook in self.hooks)
        return sum(penalty for penalty in asked if penalty is not None) * self.pace.at_once / self.course.batch

    @property
    def every(self) -> int:
        return self.pace.every or max(1, self.course.steps // CHECKPOINTS)

    @property
    def is_over(self) -> bool:
        return self.so_far.stopped or len(self.so_far.losses) >= self.course.steps

    def add(self, loss: Tensor, penalty: Tensor | float) -> None:
        """A part of the step's loss. Raises `DivergedError` before anything is learned from one that is not finite."""
        value = float(loss.detach())
        self._check(value + float(torch.as_tensor(penalty).detach()), f"of step {len(self.so_far.losses) + 1}")
        self.loss += value

    def _check(self, loss: float, which: str) -> None:
        if not math.isfinite(loss):
            kept = self.keeper.steps
            raise DivergedError(
                f"the loss {which} is not finite; "
                + (f"{self.keeper.place} keeps the state after step {kept}, go on from it" if kept else "begin again")
                + " with a lower learning rate"
            )

    def taken(self) -> None:
        """A step was taken: its loss counts, and where a checkpoint is due, the model is validated and kept. What is kept has a
        finite loss, on some of the rows that are learned where none are held out."""
        so_far = self.so_far
        so_far.losses.append(_of_all(self.loss, self.model.device))
        self.loss = 0.0
        steps = len(so_far.losses)
        if steps % self.every and steps < self.course.steps:
            return
        if self.validation:
            self.watch(Progress("train", steps, self.course.steps, "validation"))
        looked_at = self.validation or (self.rows[: self.pace.at_once] if self.answering else ())
        if looked_at:
            found = validation_loss(self.model, looked_at, self.pace.at_once, self.objective, self.padding)
            self._check(found, f"after step {steps}")
        if self.validation:
            if not so_far.best or found < min(loss for _, loss in so_far.validations):
                so_far.best = steps
            so_far.validations.append((steps, found))
            so_far.stopped = 0 < self.pace.patience <= so_far.since_best
        self.keeper.write(so_far)

    def told(self) -> str:
        """Where the losses are, in a few words."""
        recent = self.so_far.losses[-RECENT:]
        said = f"loss {sum(recent) / len(recent):.3f}" if recent else ""
        return said + (f", validation {self.so_far.validations[-1][1]:.3f}" if self.so_far.validations else "")


def _of_all(loss: float, device: torch.device) -> float:
    """Its sum over the processes, each of which had some rows of the step."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return loss
    summed = torch.tensor(loss, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(summed)
    return float(summed)


class _Rest(Dataset[dict[str, Tensor]]):
    """What is left to read, in order: every item is what one forward pass takes, with the tokens that its step learns."""

    def __init__(self, walk: _Walk):
        self.walk, self.parts = walk, walk.course.batch // walk.pace.at_once

    def __len__(self) -> int:
        return (self.walk.course.steps - self.walk.begin) * self.parts

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        step, part = divmod(index, self.parts)
        rows, size = rows_at(self.walk.rows, self.walk.course, self.walk.begin + step), self.walk.pace.at_once
        learned = torch.tensor(_learned(rows))
        return {**batch(rows[part * size : (part + 1) * size], self.walk.padding), "learned": learned}


class _Loop(Trainer):
    """The Trainer with its two documented places filled: where batches come from, and what the loss is."""

    def __init__(self, walk: _Walk, arguments: TrainingArguments, schedule: LambdaLR):
        # That there is a `compute_loss_func` tells the Trainer that the loss is divided by the whole step's tokens already.
        super().__init__(
            walk.model,
            arguments,
            train_dataset=_Rest(walk),
            optimizers=(walk.optimizer, schedule),
            callbacks=[_Around(walk)],
            compute_loss_func=walk.objective,
        )
        self.walk, self.rest = walk, _Rest(walk)
        self.remove_callback(PrinterCallback)

    def get_train_dataloader(self) -> Any:
        return self.accelerator.prepare(DataLoader(self.rest, batch_size=1, collate_fn=lambda items: items[0]))

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        loss = self.walk.objective(model, inputs, inputs["learned"])
        penalty = self.walk.penalty()
        self.walk.add(loss, penalty)
        # Other processes hold the rest of the step, and gradients are averaged over processes.
        return (loss + penalty) * self.accelerator.num_processes


class _Around(TrainerCallback):
    """Everything that happens between the Trainer's own doings."""

    def __init__(self, walk: _Walk):
        self.walk = walk

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        walk, step = self.walk, len(self.walk.so_far.losses)
        walk.watch(Progress("train", step, walk.course.steps, walk.told()))
        torch.set_rng_state(Seeds(walk.course.seed).at("step", step).get_state())  # of dropout, after a kill as without
        for hook in walk.hooks:
            hook.before_step(step, walk.optimizer)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        for hook in self.walk.hooks:
            hook.before_update(len(self.walk.so_far.losses), self.walk.optimizer)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        for hook in self.walk.hooks:
            hook.after_update(len(self.walk.so_far.losses), self.walk.optimizer)

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.walk.taken()
        control.should_training_stop = self.walk.is_over


def _begun(walk: _Walk) -> None:
    """Hooks begin where nothing is left to do, too: what they made of the model the first time they make again."""
    with own_randomness(), nothing_kept_unpacked():
        torch.set_rng_state(walk.seeds.at("begin").get_state())
        walk.model.train()
        for hook in walk.hooks:
            hook.begin(walk)


def _walked(walk: _Walk) -> None:
    """Takes the steps that are left."""
    walk.begin, begun = len(walk.so_far.losses), perf_counter() - walk.so_far.seconds
    course = walk.course
    schedule = LambdaLR(walk.optimizer, lambda step: course.rate(walk.begin + step) / course.learning_rate)
    with own_randomness(), lent(walk.model), nothing_kept_unpacked(), TemporaryDirectory() as scratch:
        loop = _Loop(walk, _arguments(walk, scratch), schedule)
        walk.keeper.writes = is_first()
        walk.keeper.clock = lambda: perf_counter() - begun
        try:
            loop.train()
        finally:
            if walk.pace.recompute:
                walk.model.gradient_checkpointing_disable()  # type: ignore[no-untyped-call]


def _arguments(walk: _Walk, scratch: str) -> TrainingArguments:
    parts, others = walk.course.batch // walk.pace.at_once, processes()
    if parts % others:
        raise UsageError(f"{parts} passes a step cannot be shared by {others} processes; use a greater --batch")
    return TrainingArguments(
        output_dir=scratch,
        max_steps=walk.course.steps - walk.begin,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=parts // others,
        max_grad_norm=CLIP,
        gradient_checkpointing=walk.pace.recompute,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        use_cpu=walk.model.device.type == "cpu",
        seed=walk.course.seed,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
