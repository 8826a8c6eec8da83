"""What the contract checks are tried on: small layer problems, and the settings of a method worth trying on them.

Inputs are correlated and of very different size per channel, because on white noise a method that ignores what was seen
looks as good as one that uses it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from trimtab.core.errors import UsageError
from trimtab.core.kinds import ChannelMethod, LinearMethod, LinearWeight, Method, Original, Seen
from trimtab.core.knobs import knobs
from trimtab.core.places import Role, Site
from trimtab.core.seeds import Seeds
from trimtab.core.taught import TaughtMethod
from trimtab.formats import Dense, Grouped
from trimtab.tensors.rounding import fit
from trimtab.testing.weights import examples

# What a knob of the common vocabulary may be set to besides its default; flags and choices speak for themselves.
DRIFTED = 1.01  # what the untouched model's inputs are, in terms of those shown
_WORTH_TRYING: dict[str, tuple[Any, ...]] = {"group_size": (0, 32), "pattern": ("2:4",)}


def expect(condition: bool, message: str) -> None:
    """An assertion that `python -O` does not remove."""
    if not condition:
        raise AssertionError(message)


@dataclass(frozen=True)
class Layer:
    """weight [out, in] and the inputs x [tokens, in] that it is shown, float32."""

    weight: Tensor
    x: Tensor

    @property
    def site(self) -> Site:
        out, in_ = self.weight.shape
        return Site("model.layers.0.mlp.down_proj", Role.DOWN, (out, in_), block=0)

    def error(self, weight: LinearWeight) -> float:
        """||(W - W') X||^2 / ||W X||^2, in float64."""
        x, change = self.x.double(), (self.weight.double() - weight.dense().double())
        return float((change @ x.T).square().sum() / (self.weight.double() @ x.T).square().sum())


def layer(out: int = 24, in_: int = 128, tokens: int = 256, seed: int = 0) -> Layer:
    """A random weight and correlated inputs with a few loud channels."""
    draw = Seeds(seed).at("layer", out, in_, tokens)
    mixing = torch.randn(in_, in_, generator=draw) * in_**-0.5 + 0.5 * torch.eye(in_)
    loudness = torch.exp(0.7 * torch.randn(in_, generator=draw))
    x = torch.randn(tokens, in_, generator=draw) @ mixing * loudness
    return Layer(torch.randn(out, in_, generator=draw), x)


def seen(method: Method, problem: Layer, seed: int = 0) -> Seen:
    """What `method` declared in `needs`, and nothing else. Raises AssertionError for a need that no layer can meet."""
    values: dict[type, Any] = {}
    for need in method.needs:
        if need is Original:
            values[need] = problem.weight.clone()
            continue
        on = getattr(need, "on", "")
        about = _about(problem.x)
        expect(on in about, f"`needs` has {need.__name__}, which a linear method is not shown")
        shape = (problem.weight.shape[0], problem.weight.shape[1])
        state = need.start(shape, problem.x.device)  # type: ignore[attr-defined]
        values[need] = need.finish(need.update(state, problem.x, *about[on]))  # type: ignore[attr-defined]
    return Seen(values, Seeds(seed).at("method"))


def _about(x: Tensor) -> dict[str, tuple[Tensor, ...]]:
    """What a statistic is shown besides x [tokens, in], by what it is on: all tokens are one window, later ones draw less."""
    entering = x[None]
    drawn = 1 / torch.arange(1, len(x) + 1)[None]
    return {"input": (), "pair": (x * DRIFTED,), "passage": (entering, entering * DRIFTED), "attended": (drawn,)}


def solve(method: LinearMethod, problem: Layer, weight: LinearWeight | None = None) -> LinearWeight:
    """The method's answer to a layer problem. weight: what stands there now, `given` by default."""
    return method.solve(given(method, problem) if weight is None else weight, seen(method, problem), problem.site)


def given(method: LinearMethod, problem: Layer, dtype: torch.dtype = torch.float32) -> LinearWeight:
    """The problem's weight as the method may find it: plain, or coarsely rounded where it mends what others did."""
    if Original in method.needs and accepts(method, coarse := _coarse(problem)):
        return coarse
    plain = Dense(problem.weight.to(dtype))
    if accepts(method, plain):
        return plain
    return next(w for w in every_format(problem) if accepts(method, w))


def accepts(method: LinearMethod, weight: LinearWeight) -> bool:
    return LinearWeight in method.takes or isinstance(weight, method.takes)


def every_format(problem: Layer) -> list[LinearWeight]:
    """One example of every format in the problem's shape, with values of its own."""
    return examples(*problem.site.shape, Seeds(0).at("formats"))


def fitted(method: LinearMethod, site: Site) -> LinearMethod | None:
    """The method with its groups as long as the row if the shape asks for it, or None if it refuses the shape anyway."""
    for candidate in (method, *_with(method, "group_size", (0,))):
        try:
            candidate.fits(site)
        except UsageError as error:
            expect(site.name in str(error), f"`fits` refuses a shape without naming the place: {error}")
        else:
            return candidate
    return None


def settings(method_class: type[Any]) -> Iterator[Any]:
    """The method as it comes, then with one flag, choice or well-known knob set differently at a time."""
    default = method_class()
    yield default
    for name, knob in knobs(default).items():
        values = (False, True) if knob.type is bool else knob.options or _WORTH_TRYING.get(name, ())
        yield from _with(default, name, values)


def brief(method: Any) -> Any:
    """The method with a search, a training or gradients that take no time, if it has any."""
    short = {"generations": 3, "offspring": 4, "starts": 4}
    if isinstance(method, TaughtMethod):
        short |= {"steps": 3, "windows": 2}
    if isinstance(method, ChannelMethod):
        short |= {"steps": 10, "windows": 2}  # of cutting, and to take gradients of
    return replace(method, **{name: value for name, value in short.items() if name in method.knobs()})


def _with(method: Any, name: str, values: tuple[Any, ...]) -> Iterator[Any]:
    for value in values:
        if name in method.knobs() and value != getattr(method, name):
            try:
                yield replace(method, **{name: value})
            except UsageError:
                continue  # knobs that exclude each other are no setting to try


def _coarse(problem: Layer) -> Grouped:
    """Three bits, one scale per row."""
    grid = fit(problem.weight, 3, symmetric=True)
    return Grouped(grid.codes(problem.weight).to(torch.uint8), grid.scale.half(), None, 3, problem.weight.shape[1])
