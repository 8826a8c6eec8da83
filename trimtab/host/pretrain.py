"""Training from the first step, in float32, that can be killed at any time and goes on to the very same weights.

Nothing is remembered between steps but weights, the two moments of AdamW and the losses so far: which windows a step reads
depends on the seed and the step alone. A checkpoint is those tensors in a safetensors file in a folder that is published
whole (`publish`), so there is always the old one or the new one. The same seed on the same number of threads gives the same
weights bit for bit; another number of threads sums products in another order and gives slightly different ones.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from transformers import PreTrainedModel

from trimtab.core.errors import DataError, ModelError
from trimtab.core.progress import Progress, Watcher, unwatched
from trimtab.core.seeds import Seeds
from trimtab.host import manifest
from trimtab.host.publish import publish, recover
from trimtab.tensors.products import fast_products

STATE = "state.safetensors"
BETAS = (0.9, 0.95)
WARM_UP, CLIP = 0.05, 1.0  # fraction of the steps; largest norm of a gradient
CHECKPOINTS = 10  # in a whole training
RECENT = 50  # steps that the loss shown is the mean of


@dataclass(frozen=True)
class Course:
    """How a model is trained. batch: windows per step; length: tokens per window; learning_rate: the highest one.

    The rate rises over the first twentieth of the steps and falls along a cosine to zero. decay: of matrices, not of gains.
    """

    steps: int
    batch: int
    length: int = 512
    learning_rate: float = 2e-3
    decay: float = 0.1
    seed: int = 0

    @property
    def tokens(self) -> int:
        return self.steps * self.batch * self.length

    def rate(self, step: int) -> float:
        """Learning rate of the step, counted from 0."""
        rising = (step + 1) / max(1.0, WARM_UP * self.steps)
        return self.learning_rate * min(1.0, rising) * (0.5 + 0.5 * math.cos(math.pi * step / self.steps))


@dataclass
class Trained:
    """losses: nats per token of every step's windows before the step was taken; seconds: over all processes that took part."""

    losses: list[float]
    seconds: float = 0.0

    @property
    def loss(self) -> float:
        """Mean over the last steps."""
        recent = self.losses[-RECENT:]
        return sum(recent) / len(recent) if recent else math.nan


def train(
    model: PreTrainedModel, stream: Tensor, course: Course, place: Path, watch: Watcher = unwatched, every: int | None = None
) -> Trained:
    """Trains `model` in place on `stream` [tokens] and returns its losses; goes on from the checkpoint folder `place`.

    every: steps between checkpoints, a tenth of all by default. The folder stays, for the caller to remove. Raises
    DataError when the text is too short for a batch, ModelError when the checkpoint is damaged or the loss is not finite.
    """
    every = every or max(1, course.steps // CHECKPOINTS)
    check_amount(stream, course)
    optimizer = _optimizer(model, course)
    so_far = _resumed(place, model, optimizer)
    begun = perf_counter() - so_far.seconds
    model.train()
    with fast_products():
        for step in range(len(so_far.losses), course.steps):
            watch(Progress("train", step, course.steps, f"loss {so_far.loss:.3f}" if step else ""))
            so_far.losses.append(_step(model, optimizer, batch_at(stream, course, step).to(model.device), course.rate(step)))
            so_far.seconds = perf_counter() - begun
            if (step + 1) % every == 0:
                _write(place, model, optimizer, so_far)
    model.eval()
    return so_far


def check_amount(stream: Tensor, course: Course) -> None:
    """Raises DataError when one pass over the text is less than one batch."""
    if _windows(stream, course) < course.batch:
        raise DataError(
            f"the text has {len(stream)} tokens, a batch takes {course.batch} windows of {course.length} and one to spare; "
            f"give more text, or use smaller or fewer windows"
        )


def batch_at(stream: Tensor, course: Course, step: int) -> Tensor:
    """[batch, length]: what the step reads. Every pass over the text cuts it at another place and shuffles the windows."""
    windows = _windows(stream, course)
    epoch, batch = divmod(step, windows // course.batch)
    draw = Seeds(course.seed).at("epoch", epoch)
    start = int(torch.randint(course.length, (1,), generator=draw))
    rows = torch.randperm(windows, generator=draw)[batch * course.batch : (batch + 1) * course.batch]
    return torch.stack([stream[start + row * course.length :][: course.length] for row in rows.tolist()])


def _windows(stream: Tensor, course: Course) -> int:
    """In one pass, wherever it starts."""
    return len(stream) // course.length - 1


def _optimizer(model: PreTrainedModel, course: Course) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    gains = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": course.decay}, {"params": gains, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=course.learning_rate, betas=BETAS, fused=True)


def _step(model: PreTrainedModel, optimizer: torch.optim.Optimizer, ids: Tensor, rate: float) -> float:
    """The loss of these windows, in nats per token, before the step."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    value = float(loss.detach())
    if not math.isfinite(value):
        raise ModelError("training gave a loss that is not finite; use a lower learning rate")
    loss.backward()
    clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()
    optimizer.zero_grad()
    return value


def _moments(model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that the next step depends on; a tensor that several modules share occurs once."""
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        yield f"weight.{name}", parameter.detach()
        yield f"mean.{name}", state["exp_avg"]
        yield f"square.{name}", state["exp_avg_sq"]


def _write(place: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer, so_far: Trained) -> None:
    tensors = {name: tensor.cpu().contiguous() for name, tensor in _moments(model, optimizer)}
    tensors["losses"] = torch.tensor(so_far.losses, dtype=torch.float64)
    tensors["seconds"] = torch.tensor(so_far.seconds, dtype=torch.float64)
    with publish(place, overwrite=True, needs=sum(tensor.nbytes for tensor in tensors.values())) as partial:
        save_file(tensors, partial / STATE)


def _resumed(place: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> Trained:
    recover(place)
    if not place.is_dir():
        return Trained([])
    try:
        manifest.verify(place)
        held = load_file(place / STATE)
        losses = held["losses"].tolist()
        for name, parameter in model.named_parameters():
            _put(parameter, optimizer, (held[f"{part}.{name}"] for part in ("weight", "mean", "square")), len(losses))
    except (ModelError, SafetensorError, OSError, KeyError, RuntimeError) as error:
        raise ModelError(f"the checkpoint {place} cannot be used ({error}); remove it and train from the beginning") from error
    return Trained(losses, float(held["seconds"]))


@torch.no_grad()
def _put(parameter: Tensor, optimizer: torch.optim.Optimizer, held: Iterator[Tensor], steps: int) -> None:
    weight, mean, square = (tensor.to(parameter.device) for tensor in held)
    parameter.copy_(weight)
    count = torch.tensor(float(steps), device=parameter.device)
    optimizer.state[parameter] = {"step": count, "exp_avg": mean, "exp_avg_sq": square}
