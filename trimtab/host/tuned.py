"""What a training has come to, and the folder in which that survives a kill.

One safetensors file has the trained parameters and what the optimizer knows of each, a second one the parameters of the best
validation, a third says in JSON whose they are and what the losses were. They are published together, so there is always the
state of before or that of now.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from trimtab.core.errors import ModelError, TrimtabError, UsageError
from trimtab.host import manifest
from trimtab.host.publish import publish, recover

STATE, BEST, ABOUT = "state.safetensors", "best.safetensors", "about.json"
WEIGHT, KEPT = "weight", "kept"


class DivergedError(TrimtabError):
    """A training whose loss is not finite any more."""


@dataclass
class Tuned:
    """losses: nats per learned token, of every step before it was taken. validations: (steps taken, loss); best: one of them."""

    losses: list[float] = field(default_factory=list)
    validations: list[tuple[int, float]] = field(default_factory=list)
    best: int = 0
    seconds: float = 0.0
    stopped: bool = False  # by patience

    @staticmethod
    def of(said: Mapping[str, Any]) -> "Tuned":
        """From JSON of its fields."""
        return Tuned(**{**said, "validations": [(steps, loss) for steps, loss in said["validations"]]})

    @property
    def since_best(self) -> int:
        """Validations after the best one."""
        return sum(steps > self.best for steps, _ in self.validations)


class Keeper:
    """Writes and reads the checkpoints of one training.

    identity: JSON of what the result depends on. kept: what hooks remember.
    """

    def __init__(
        self,
        place: Path,
        trained: Mapping[str, Tensor],
        optimizer: Optimizer,
        identity: Mapping[str, Any],
        kept: Mapping[str, Tensor],
    ):
        self.place, self.trained, self.optimizer = place, trained, optimizer
        self.held: dict[str, Tensor] = {f"{WEIGHT}.{name}": value for name, value in trained.items()}
        self.held |= {f"{KEPT}.{name}": value for name, value in kept.items()}
        self.identity = json.loads(json.dumps(identity, default=str))
        self.steps = 0  # taken when the latest checkpoint was written
        self.writes = True
        self.clock: Callable[[], float] = lambda: 0.0

    def resumed(self) -> Tuned:
        """What was kept, put back into parameters and optimizer; nothing done where nothing is kept.

        Raises `UsageError` if it belongs to another training, `ModelError` if it is damaged.
        """
        recover(self.place)
        if not self.place.is_dir():
            return Tuned()
        try:
            manifest.verify(self.place)
            about = json.loads((self.place / ABOUT).read_text(encoding="utf-8"))
            self._check(about["identity"])
            self._put(load_file(self.place / STATE))
            found = Tuned.of(about["tuned"])
        except (ModelError, SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ModelError(f"the checkpoint {self.place} cannot be used ({error}); remove it and train anew") from error
        self.steps = len(found.losses)
        return found

    def write(self, so_far: Tuned) -> None:
        """Puts the state of now in place of the one before."""
        so_far.seconds = self.clock()
        if not self.writes:
            return
        held = {name: value.detach().cpu().contiguous() for name, value in self.held.items()}
        state = held | self._known()
        needs = sum(value.nbytes for value in (*state.values(), *held.values()))
        with publish(self.place, overwrite=True, needs=needs) as partial:
            save_file(state, partial / STATE)
            if so_far.best == len(so_far.losses):
                save_file(held, partial / BEST)
            elif so_far.best:
                shutil.copyfile(self.place / BEST, partial / BEST)
            about = {"identity": self.identity, "tuned": asdict(so_far)}
            (partial / ABOUT).write_text(json.dumps(about) + "\n", encoding="utf-8")
        self.steps = len(so_far.losses)

    @torch.no_grad()
    def restore_best(self, so_far: Tuned) -> None:
        """Gives the parameters the values that they had at the best validation, if there was one."""
        if not so_far.best or so_far.best == len(so_far.losses):
            return
        for name, value in load_file(self.place / BEST).items():
            self.held[name].copy_(value)

    def _check(self, identity: Mapping[str, Any]) -> None:
        for name in sorted(identity.keys() | self.identity.keys()):
            before, now = identity.get(name), self.identity.get(name)
            if before != now:
                raise UsageError(
                    f"{self.place} was left by another training: {name} was {before!s:.80}, now it is {now!s:.80}; "
                    f"repeat the command that was stopped, or remove the folder"
                )

    def _known(self) -> dict[str, Tensor]:
        """What the optimizer remembers, by kind and name of the parameter."""
        known = {}
        for name, parameter in self.trained.items():
            for kind, value in self.optimizer.state.get(parameter, {}).items():
                known[f"{kind}.{name}"] = value.detach().cpu().contiguous()
        return known

    @torch.no_grad()
    def _put(self, held: Mapping[str, Tensor]) -> None:
        for key, value in self.held.items():
            value.copy_(held[key])
        for key, value in held.items():
            kind, _, name = key.partition(".")
            if kind not in (WEIGHT, KEPT):
                # The count of steps stays on the CPU, as the optimizer itself keeps it.
                here = value if kind == "step" else value.to(self.trained[name].device)
                self.optimizer.state[self.trained[name]][kind] = here
