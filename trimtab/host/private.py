"""Differentially private LoRA: what the adapter tells of any one row is bounded, and by how much is said.

A step reads every row with the same chance (Poisson sampling), differentiates the mean loss of each row by itself, clips the
gradients of every pair of factors to `bound`, adds them up, adds noise, and divides by how many rows were to be expected. Opacus'
accountant is told the multiplier and the chance of every step; a step that would spend more than `epsilon` is not taken.
The rows' losses are not covered by that, so none are kept or told, and nothing is chosen by them.

The guarantee is as good as the noise: torch's generator is not a cryptographic one, and one with a known seed is for tests. Of
RLDP (Akhadangi et al. 2025) this is the mechanism with bound and noise fixed, not the controller that learns them. A training
that was stopped begins anew.
"""

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW
from transformers import PreTrainedModel

from trimtab.core.errors import DataError, UsageError
from trimtab.core.progress import Progress, Watcher, unwatched
from trimtab.data.examples import IGNORED, Row, batch
from trimtab.formats.deltas import LowRankDelta
from trimtab.host.pretrain import Course
from trimtab.tensors.private import clipped, deviation, noisy

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Privacy:
    """noise: the multiplier. bound: of the gradient of one row, pair by pair. epsilon: the most that is spent, None: no limit."""

    noise: float = 1.0
    bound: float = 0.1
    delta: float = 1e-5
    epsilon: float | None = 8.0

    def __post_init__(self) -> None:
        if min(self.noise, self.bound, self.delta, 1.0 if self.epsilon is None else self.epsilon) <= 0 or self.delta >= 1:
            raise UsageError("noise, bound and epsilon must be above 0, and delta between 0 and 1")


@dataclass(frozen=True)
class Spent:
    """steps: how many were taken; epsilon: what they spent at `delta`, as the accountant says."""

    steps: int
    epsilon: float
    delta: float


def tune_privately(
    model: PreTrainedModel,
    deltas: Sequence[LowRankDelta],
    rows: Sequence[Row],
    course: Course,
    privacy: Privacy,
    generator: torch.Generator | None = None,
    watch: Watcher = unwatched,
) -> Spent:
    """Trains the deltas in place. The promise is about a row, not about all that somebody wrote.

    course.batch: how many rows a step is expected to read. generator: of the noise and of which rows are read; by default one
    that the system's own randomness has begun. Raises `DataError` for fewer rows than a batch, `UsageError` where opacus is
    missing or a change does not begin at zero.
    """
    if len(rows) < course.batch:
        raise DataError(f"there are {len(rows)} rows to train on, a step expects {course.batch}; give more, or a smaller batch")
    if any(delta.first_left is not None for delta in deltas):
        raise UsageError("a private training takes changes that begin at zero, such as lora's")
    draw = generator or torch.Generator().manual_seed(secrets.randbits(63))
    moved = [factor for delta in deltas for factor in (delta.left, delta.right)]
    optimizer, accountant = AdamW(moved, lr=course.learning_rate, weight_decay=course.decay), _accountant()
    chance, spent = course.batch / len(rows), Spent(0, 0.0, privacy.delta)
    for step in range(course.steps):
        watch(Progress("train", step, course.steps, f"epsilon {spent.epsilon:.2f}"))
        accountant.step(noise_multiplier=privacy.noise, sample_rate=chance)
        epsilon = float(accountant.get_epsilon(delta=privacy.delta))
        if privacy.epsilon is not None and epsilon > privacy.epsilon:
            break
        read = (torch.rand(len(rows), generator=draw) < chance).nonzero()[:, 0].tolist()
        sums = _sums(model, deltas, [rows[number] for number in read], course.batch, privacy.bound)
        std = deviation(privacy.noise, privacy.bound, len(deltas))
        for factor, total in zip(moved, sums, strict=True):
            factor.grad = noisy(total, std, draw) / course.batch
        for group in optimizer.param_groups:
            group["lr"] = course.rate(step)
        optimizer.step()
        spent = Spent(step + 1, epsilon, privacy.delta)
    optimizer.zero_grad()
    return spent


def example_gradients(model: PreTrainedModel, deltas: Sequence[LowRankDelta], rows: Sequence[Row]) -> list[Pair]:
    """For every delta left [rows, out, rank] and right [rows, rank, in]: of the mean loss of each row's learned tokens."""
    given = {name: value.to(model.device) for name, value in batch(rows, 0).items()}
    with _observed(deltas) as found, torch.enable_grad():
        logits = model(input_ids=given["input_ids"], attention_mask=given["attention_mask"], use_cache=False).logits
        labels = given["labels"][:, 1:]
        losses = F.cross_entropy(logits[:, :-1].mT.float(), labels, ignore_index=IGNORED, reduction="none")
        means = losses.sum(1) / (labels != IGNORED).sum(1)
        torch.autograd.grad(means.sum(), [delta.left for delta in deltas])
    return [found[number] for number in range(len(deltas))]


def _sums(
    model: PreTrainedModel, deltas: Sequence[LowRankDelta], rows: Sequence[Row], at_once: int, bound: float
) -> list[Tensor]:
    """Of left and right of every delta, each row's pair clipped; zero for no rows at all."""
    sums = [torch.zeros_like(factor) for delta in deltas for factor in (delta.left.detach(), delta.right.detach())]
    for start in range(0, len(rows), at_once):
        for number, pair in enumerate(example_gradients(model, deltas, rows[start : start + at_once])):
            left, right = clipped(*pair, bound)
            sums[2 * number] += left
            sums[2 * number + 1] += right
    return sums


@contextmanager
def _observed(deltas: Sequence[LowRankDelta]) -> Iterator[dict[int, Pair]]:
    """Inside, a backward pass finds the gradients of every row's factors, by number of the delta."""
    found: dict[int, Pair] = {}

    def listen(module: nn.Module, given: tuple[Any, ...], said: Tensor, *, delta: LowRankDelta, number: int) -> None:
        x = given[0].detach()  # [rows, length, in]

        def look(pull: Tensor) -> None:
            left, right, pull = delta.left.detach(), delta.right.detach(), delta.scale * pull
            found[number] = (pull.mT @ (x @ right.T), (pull @ left).mT @ x)

        said.register_hook(look)  # type: ignore[no-untyped-call]

    handles = [d.register_forward_hook(partial(listen, delta=d, number=number)) for number, d in enumerate(deltas)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _accountant() -> Any:
    try:
        from opacus.accountants import RDPAccountant
    except ImportError as error:
        raise UsageError('opacus is not installed; write pip install "trimtab[private]"') from error
    return RDPAccountant()
