"""The residual stream behind one gate: its channels close while the model learns, the same ones in every block.

A channel is silent as soon as nothing is written to it: the embedding's column and the writers' rows are multiplied by zero. So
one gate that all of them share makes the narrower model that will be left. Norms divide by the root mean square over all
channels, of which the closed ones hold nothing: where these are cut out, gains rise by sqrt(width / left).
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from trimtab.core.edits import Edits, NarrowStream, SetParam, SetWeight
from trimtab.core.errors import ModelError
from trimtab.core.kinds import Learner
from trimtab.core.places import Role, Site
from trimtab.formats.dense import Dense
from trimtab.tensors.gates import hard_concrete, without_noise

WRITERS = (Role.EMBED, Role.O, Role.DOWN)


class StreamGate(nn.Module):
    """A hard concrete gate. logits: a, [width]. keep: [width] bool, True = survives; it counts once that is `settled`.

    drawn: [width] uniform in (0, 1), anew for every step. step: the width that is left is a multiple of it.
    """

    keep: Tensor
    drawn: Tensor
    settled: Tensor

    def __init__(self, width: int, step: int, start: float, learning_rate: float, device: torch.device):
        super().__init__()
        self.step, self.learning_rate = step, learning_rate
        self.logits = nn.Parameter(torch.full((width,), start, device=device))
        self.register_buffer("keep", torch.ones(width, dtype=torch.bool, device=device))
        self.register_buffer("drawn", torch.full((width,), 0.5, device=device))
        self.register_buffer("settled", torch.zeros((), dtype=torch.bool, device=device))

    @property
    def width(self) -> int:
        return len(self.keep)

    @property
    def left(self) -> int:
        return int(self.keep.sum())

    def draw(self, generator: torch.Generator) -> None:
        few = torch.finfo(torch.float32).eps
        self.drawn.copy_(torch.rand(self.drawn.shape, generator=generator).clamp(few, 1 - few))

    def values(self) -> Tensor:
        """[width] float32: what the channels are multiplied by."""
        if bool(self.settled):
            return without_noise(self.logits.detach()) * self.keep
        return hard_concrete(self.logits, self.drawn)

    @torch.no_grad()
    def settle(self, wanted: float, least: float) -> None:
        """Keeps the channels of highest logit, as near to `wanted` of them as steps allow, and not fewer than `least`."""
        left = max(round(wanted / self.step), -int(-least // self.step), 1) * self.step
        if left < self.width:
            self.keep.zero_()
            self.keep[self.logits.double().argsort(descending=True, stable=True)[:left]] = True
        self.settled.fill_(True)


class Written(Learner):
    """Another learner's matrix as it writes to the stream: its rows, or an embedding's columns, behind the gate."""

    def __init__(self, inner: Learner, gate: StreamGate, role: Role):
        super().__init__()
        self.inner, self.gate, self.columns = inner, gate, role is Role.EMBED
        own = {f"inner.{name}": rate for name, rate in getattr(inner, "rates", {}).items()}
        self.rates = {**own, "gate.logits": gate.learning_rate}

    def matrix(self) -> Tensor:
        values = self.gate.values()
        return self.inner.matrix() * (values if self.columns else values.unsqueeze(1))

    def result(self) -> Dense:
        return Dense(self.matrix().detach())


def check_writers(who: str, sites: Sequence[Site], bias: Callable[[Site], Tensor | None]) -> None:
    """Raises `ModelError` in the name of `who` where a gate cannot stand before all that these matrices write. bias: of one."""
    for site in sites:
        if site.index is not None:
            raise ModelError(f"{who}: experts live in one tensor of a fixed width; this model's stream cannot be narrowed")
        if site.role in WRITERS and bias(site) is not None:
            raise ModelError(f"{who}: {site.name} writes to the stream and has a bias, which no gate shuts")


def cut(matrices: Iterable[tuple[Site, Tensor]], gains: Iterable[tuple[str, Tensor, float]], keep: Tensor) -> Edits:
    """A stream of the channels that survive. keep: [width] bool. matrices: all of the model that are at the stream, [out, in].

    gains: of every norm that reads it the path, the weight [width] and what it adds to that before it multiplies.
    """
    edits: Edits = [NarrowStream(int(keep.sum()))]
    for site, weight in matrices:
        rows = site.role in WRITERS and site.role is not Role.EMBED
        edits.append(SetWeight(site, Dense(weight[keep] if rows else weight[:, keep])))
    louder = (len(keep) / int(keep.sum())) ** 0.5
    for path, weight, offset in gains:
        edits.append(SetParam(path, (weight[keep] + offset) * louder - offset))
    return edits
