"""Who trains the steps of a recipe that are taught: transformers' `Trainer`, as for everything else that learns here."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from trimtab.core.progress import Watcher, unwatched
from trimtab.core.taught import Term, trains
from trimtab.core.trained import Hook
from trimtab.data.examples import Row
from trimtab.host.objectives import Batch
from trimtab.host.pretrain import Course
from trimtab.host.trainer import tune


def school(
    model: nn.Module,
    trained: Mapping[str, Tensor],
    windows: Tensor,
    term: Term,
    loss: Callable[[Tensor, Tensor], Tensor],
    hooks: Sequence[Hook],
    rates: Mapping[str, float],
    watch: Watcher = unwatched,
) -> list[float]:
    """A `School`. The windows are learned whole; nothing decays. Raises what `host.trainer.tune` raises."""

    def objective(_: nn.Module, given: Batch, count: Tensor) -> Tensor:
        return loss(given["input_ids"], 1 / count)

    learned = torch.ones(windows.shape[1], dtype=torch.bool)
    learned[0] = False
    rows = [Row(ids, learned) for ids in windows.cpu()]
    course = Course(term.steps, term.batch, term.length, term.learning_rate, 0.0, term.seed)
    with TemporaryDirectory() as scratch:
        found = tune(
            cast(PreTrainedModel, model),
            trained,
            rows,
            course,
            term.place or Path(scratch) / "lesson",
            hooks=hooks,
            objective=objective,
            compute=term.compute,
            rates={name: rate for name, rate in rates.items() if name in trained and trains(trained[name])},
            identity={"steps": term.steps, "learning rate": term.learning_rate, "rates": dict(rates)},
            watch=watch,
        )
    return found.losses
