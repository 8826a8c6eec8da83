"""Differentially private LoRA: what the adapter tells of any one row is bounded, and by how much is said.

A step reads every row with the same chance (Poisson sampling), differentiates the mean loss of each row by itself, clips the
gradients of every pair of factors to a bound, adds them up, adds noise, and divides by how many rows were to be expected. Opacus'
accountant is told the multiplier and the chance of every step; a step that would spend more than `epsilon` is not taken.
The rows' losses are not covered by that, so none are kept or told, and nothing is chosen by them. How many rows there are counts
as known. Bounds and noise stay, or an agent moves them (RLDP, `host/steering.py`).

The guarantee is as good as the noise: torch's generator is not a cryptographic one, and one with a known seed is for tests. A
training that was stopped begins anew.
"""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW
from transformers import PreTrainedModel

from trimtab.anatomy import Anatomy
from trimtab.core.errors import DataError, UsageError
from trimtab.core.progress import Progress, Watcher, unwatched
from trimtab.data.examples import IGNORED, Row, batch
from trimtab.formats.deltas import LowRankDelta
from trimtab.host.accounting import Account, best_order, noise_for
from trimtab.host.pretrain import Course
from trimtab.host.steering import Settings, Steering, Told
from trimtab.host.trainer import validation_loss
from trimtab.tensors.private import clip_votes, clipped, deviation, noisy, pair_lengths

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Privacy:
    """bound: of the gradient of one row, pair by pair. epsilon: the most that is spent, None: no limit.

    noise: the multiplier; None: the one with which the whole course spends epsilon. steered: steps after which an agent moves
    bounds and noise, 0: they stay.
    """

    noise: float | None = None
    bound: float = 0.1
    delta: float = 1e-5
    epsilon: float | None = 8.0
    steered: int = 0

    def __post_init__(self) -> None:
        given = [value for value in (self.noise, self.bound, self.delta, self.epsilon) if value is not None]
        if min(given) <= 0 or self.delta >= 1 or self.steered < 0:
            raise UsageError(
                "noise, bound and epsilon must be above 0, delta between 0 and 1, and steps between moves at least 0"
            )
        if self.epsilon is None and (self.noise is None or self.steered):
            raise UsageError("a private training needs an epsilon to spend, or noise that stays")


@dataclass(frozen=True)
class Spent:
    """steps: how many were taken; epsilon: what they spent at `delta`, as the accountant says; noise: the first multiplier.

    moves: (steps taken before, noise, bounds of the groups) wherever an agent changed them.
    """

    steps: int
    epsilon: float
    delta: float
    noise: float
    moves: tuple[tuple[int, float, tuple[float, ...]], ...] = ()

    @staticmethod
    def of(said: Mapping[str, Any]) -> "Spent":
        """From JSON of its fields."""
        return Spent(**{**said, "moves": tuple((steps, noise, tuple(bounds)) for steps, noise, bounds in said["moves"])})


def tune_privately(
    model: PreTrainedModel,
    deltas: Sequence[LowRankDelta],
    rows: Sequence[Row],
    course: Course,
    privacy: Privacy,
    generator: torch.Generator | None = None,
    watch: Watcher = unwatched,
    public: Sequence[Row] = (),
    groups: Sequence[int] = (),
) -> Spent:
    """Trains the deltas in place. The promise is about a row, not about all that somebody wrote.

    course.batch: how many rows a step is expected to read. generator: of the noise and of which rows are read; by default one
    that the system's own randomness has begun. public, groups: the rows that an agent judges by, and the group, counted from 0,
    of every delta, whose bounds it moves together; without them each has its own. Raises `DataError` for fewer rows than a batch,
    `UsageError` where opacus is missing, a change does not begin at zero, or an agent has nothing to judge by.
    """
    _check(deltas, rows, course, privacy, public)
    draw = generator or torch.Generator().manual_seed(secrets.randbits(63))
    moved = [factor for delta in deltas for factor in (delta.left, delta.right)]
    optimizer = AdamW(moved, lr=course.learning_rate, weight_decay=course.decay)
    chance = course.batch / len(rows)
    noise = privacy.noise or noise_for(privacy.epsilon or 0.0, privacy.delta, chance, course.steps)
    settings = _settings(model, public, groups or range(len(deltas)), course, privacy, noise)
    order = best_order(noise, privacy.delta, chance, course.steps) if privacy.steered else None
    account = Account(chance, privacy.delta, order)
    for step in range(course.steps):
        watch(Progress("train", step, course.steps, f"epsilon {account.epsilon():.2f}"))
        epsilon = account.epsilon(settings.multiplier)
        if privacy.epsilon is not None and epsilon > privacy.epsilon:
            break
        account.take(settings.multiplier)
        read = (torch.rand(len(rows), generator=draw) < chance).nonzero()[:, 0].tolist()
        sums, votes = _told(model, deltas, [rows[number] for number in read], course.batch, settings, draw)
        for factor, total in zip(moved, sums, strict=True):
            factor.grad = total / course.batch
        for group in optimizer.param_groups:
            group["lr"] = course.rate(step)
        optimizer.step()
        settings.after(Told(step, sums, votes, course.batch, epsilon))
    optimizer.zero_grad()
    return Spent(sum(account.taken.values()), account.epsilon(), privacy.delta, noise, tuple(settings.moves))


def of_blocks(anatomy: Anatomy, paths: Sequence[str]) -> list[int]:
    """The group of every delta, by the path of its layer: those of a block make one."""
    of_path = {site.path: site.block for site in anatomy.sites}
    blocks = list(dict.fromkeys(of_path[path] for path in paths))
    return [blocks.index(of_path[path]) for path in paths]


def _check(deltas: Sequence[LowRankDelta], rows: Sequence[Row], course: Course, privacy: Privacy, public: Sequence[Row]) -> None:
    if len(rows) < course.batch:
        raise DataError(f"there are {len(rows)} rows to train on, a step expects {course.batch}; give more, or a smaller batch")
    if any(delta.first_left is not None for delta in deltas):
        raise UsageError("a private training takes changes that begin at zero, such as lora's")
    if privacy.steered and not public:
        raise UsageError("an agent that moves bounds and noise judges by public rows, and there are none")


def _settings(
    model: PreTrainedModel, public: Sequence[Row], groups: Sequence[int], course: Course, privacy: Privacy, noise: float
) -> Settings:
    if not privacy.steered or privacy.epsilon is None:
        return Settings(privacy.bound, noise, len(groups))

    def loss() -> float:
        return validation_loss(model, public, course.batch)

    return Steering(privacy.bound, noise, groups, privacy.steered, loss, privacy.epsilon, course.steps, course.seed)


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


def _told(
    model: PreTrainedModel,
    deltas: Sequence[LowRankDelta],
    rows: Sequence[Row],
    at_once: int,
    settings: Settings,
    draw: torch.Generator,
) -> tuple[list[Tensor], Tensor | None]:
    """Sums and votes with the noise on them: nothing else of the rows gets out."""
    sums, votes = _sums(model, deltas, rows, at_once, settings)
    stds = [deviation(settings.noise, bound, len(deltas)) for bound in settings.bounds]
    told = [noisy(total, stds[place // 2], draw) for place, total in enumerate(sums)]
    if settings.vote_noise is None:
        return told, None
    return told, noisy(votes, settings.vote_noise * len(votes) ** 0.5 / 2, draw)


def _sums(
    model: PreTrainedModel, deltas: Sequence[LowRankDelta], rows: Sequence[Row], at_once: int, settings: Settings
) -> tuple[list[Tensor], Tensor]:
    """(of left and right of every delta, each row's pair clipped; the votes on the bounds). Zero for no rows at all."""
    sums = [torch.zeros_like(factor) for delta in deltas for factor in (delta.left.detach(), delta.right.detach())]
    groups = settings.groups or [0] * len(deltas)
    votes = torch.zeros(max(groups) + 1, dtype=torch.float64)
    for start in range(0, len(rows), at_once):
        pairs = example_gradients(model, deltas, rows[start : start + at_once])
        votes += clip_votes([pair_lengths(*pair) for pair in pairs], settings.bounds, groups)
        for number, pair in enumerate(pairs):
            left, right = clipped(*pair, settings.bounds[number])
            sums[2 * number] += left
            sums[2 * number + 1] += right
    return sums, votes


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
