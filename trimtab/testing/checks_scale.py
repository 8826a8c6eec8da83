"""What a scale method must keep: the function to the last digits, and scales that make sense whatever it is shown."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trimtab.core.errors import UsageError
from trimtab.core.kinds import Original, Reference, ScaleMethod, Seen
from trimtab.core.places import Fold, Gain, Role, Rows, Site
from trimtab.core.recipe import Recipe
from trimtab.core.registry import get
from trimtab.core.seeds import Seeds
from trimtab.engine.run import Bench, run
from trimtab.formats import Dense
from trimtab.testing.problems import expect, layer, settings
from trimtab.testing.roundtrip import Float64, in_float64, logits, reopened, shown
from trimtab.testing.tiny import tiny

# Biases; gains around zero; fused projections; experts; layer norms, transposed matrices; a rectifier instead of a gate.
FAMILIES = ("qwen2", "gemma3", "phi3", "mixtral", "gpt2", "opt")
EXACT = 1e-10  # relative, in float64
GROUP = 32  # divides every width of the tiny models


@dataclass(frozen=True)
class Place:
    """A fold, the matrices that read it, and what they are shown: x [tokens, in]."""

    fold: Fold
    weights: dict[Site, Tensor]
    x: Tensor


def preserves_the_function(method: type[ScaleMethod]) -> None:
    """Float64 logits stay: all settings on one family, the default on the others, and on one at least it does something."""
    for made in _settings(method):
        _preserved(made, tiny("llama", num_hidden_layers=1).double())
    benches = [_preserved(_grouped(method()), in_float64(family)) for family in FAMILIES]
    moved = [r for bench in benches for r in bench.receipts if r.notes["least"] < r.notes["most"]]
    expect(bool(moved), f"it scales nothing on {', '.join(FAMILIES)}")


def gives_positive_scales(method: type[ScaleMethod]) -> None:
    """One for each channel, equal where a row is shared, also for silent rows and inputs, zeros, and a single token."""
    for made in _settings(method):
        for name, place in _places():
            scale = _asked(made, place)
            if scale is None:
                continue
            expect(scale.shape == (place.fold.width,), f"{made} gives {list(scale.shape)} scales on {name}")
            expect(bool((scale.isfinite() & (scale > 0)).all()), f"{made} gives a scale that is not positive on {name}")
            pooled = place.fold.pooled(scale.double(), "amax")
            expect(torch.equal(pooled, scale.double()), f"{made} on {name}: columns of one row have different scales")


def leaves_silent_channels_alone(method: type[ScaleMethod]) -> None:
    """Where the method goes by what it was shown of the inputs alone, channels that say nothing keep scale 1."""
    for made in _settings(method):
        if not made.needs or Reference in made.needs or getattr(made, "weighted", False):
            continue
        for name, place in _places():
            scale = _asked(made, place)
            silent = place.fold.pooled(place.x.abs().sum(0)) == 0
            expect(scale is None or bool((scale[silent] == 1).all()), f"{made} scales silent channels on {name}")


def leaves_its_input_alone(method: type[ScaleMethod]) -> None:
    for made in _settings(method):
        for name, place in _places():
            before = {site: weight.clone() for site, weight in place.weights.items()}
            _asked(made, place)
            same = all(torch.equal(before[site], weight) for site, weight in place.weights.items())
            expect(same, f"{made} changes a matrix that it was only shown, on {name}")


def answers_the_same_twice(method: type[ScaleMethod]) -> None:
    for made in _settings(method):
        for name, place in _places():
            once, again = _asked(made, place), _asked(made, place)
            same = once is again if once is None or again is None else torch.equal(once, again)
            expect(same, f"{made} gives other scales the second time on {name}")
    first, second = (logits(_ran(_grouped(method()), tiny("llama"))[0]) for _ in range(2))
    expect(torch.equal(first, second), "it gives another model the second time")


def is_the_same_after_saving(method: type[ScaleMethod]) -> None:
    """Alone, and with the matrices rounded afterwards."""
    made = _grouped(method())
    for after in ((), (get("rtn")(bits=3, group_size=GROUP),)):
        model, _ = _ran(made, tiny("llama"), after)
        expect(not torch.equal(logits(model), logits(tiny("llama"))), f"{made} changes nothing")
        expect(torch.equal(logits(reopened(model)), logits(model)), f"the model after {made} is another one when opened again")


def _preserved(made: ScaleMethod, model: PreTrainedModel) -> Bench:
    family = model.config.model_type
    with Float64():
        before = logits(model)
    _, bench = _ran(made, model)
    with Float64():
        change = float((logits(model) - before).norm() / before.norm())
    expect(change <= EXACT, f"{made} moves the float64 logits of {family} by {change:.2g} of their size")
    expect(not [note for note in bench.notes if "alone" in note], f"{made} on {family}: {bench.notes}")
    expect(bool(bench.receipts or bench.notes), f"{made} says nothing of what it did on {family}")
    return bench


def _ran(made: ScaleMethod, model: PreTrainedModel, after: tuple[Any, ...] = ()) -> tuple[PreTrainedModel, Bench]:
    bases = {made.knobs()["base"]: _before_tuning(model)} if Reference in made.needs else {}
    return model, run(model, Recipe((made, *after)), shown(model), bases=bases)


@torch.no_grad()
def _before_tuning(model: PreTrainedModel) -> PreTrainedModel:
    """A model that the given one may have been tuned from: some of its weights were others."""
    base = copy.deepcopy(model)
    for name, parameter in base.named_parameters():
        draw = Seeds(0).at("tuning", name)
        moved = torch.rand(parameter.shape, generator=draw) < 0.5
        parameter += 0.1 * moved * torch.randn(parameter.shape, generator=draw)
    return base


def _settings(method: type[ScaleMethod]) -> Iterator[Any]:
    for made in settings(method):
        yield _grouped(made)


def _grouped(made: Any) -> Any:
    """With groups that fit the tiny models, and the name of another model where one is needed."""
    knobs = made.knobs()
    changed: dict[str, Any] = {"group_size": GROUP} if knobs.get("group_size") else {}
    return replace(made, **changed, **({"base": "before"} if "base" in knobs else {}))


def _places() -> Iterator[tuple[str, Place]]:
    x, narrow = layer().x, layer(in_=64).x
    both = {"q": layer(24).weight, "v": layer(16, seed=1).weight}
    shared = torch.cat([torch.arange(32), torch.arange(32)])  # two query heads around one key-value head
    gain, rows = Gain("norm"), Rows(Site("v", Role.V, (32, 8), block=0), shared)
    up = Rows(Site("up", Role.UP, (128, 8), block=0), torch.arange(128))
    silent = torch.arange(128) % 3 == 0
    yield "a norm", _place(gain, both, x)
    yield "shared rows", _place(rows, {"o": layer(24, 64).weight}, narrow)
    yield "rows of up", _place(up, {"down": layer(24).weight}, x)
    yield "silent inputs", _place(gain, both, x.masked_fill(silent, 0.0))
    yield "silent inputs of down", _place(up, {"down": layer(24).weight}, x.masked_fill(silent, 0.0))
    yield "zero rows", _place(gain, {"q": both["q"].masked_fill(torch.arange(24)[:, None] % 3 == 0, 0.0)}, x)
    yield "zero columns", _place(up, {"down": layer(24).weight.masked_fill(silent, 0.0)}, x)
    yield "a zero matrix", _place(up, {"down": torch.zeros(24, 128)}, x)
    yield "one token", _place(gain, both, x[:1])
    yield "no token", _place(up, {"down": layer(24).weight}, x[:0])
    yield "large and small", _place(up, {"down": layer(24).weight * 1e3}, x * 1e-3)


def _place(source: Gain | Rows, matrices: Mapping[str, Tensor], x: Tensor) -> Place:
    sites = {Site(role, Role(role), (w.shape[0], w.shape[1]), block=0): w for role, w in matrices.items()}
    return Place(Fold(tuple(sites), source), sites, x)


def _asked(made: ScaleMethod, place: Place) -> Tensor | None:
    for site in place.weights:
        try:
            made.fits(site)
        except UsageError:
            return None
    return made.scale(place.fold, {site: Dense(w) for site, w in place.weights.items()}, _seen(made, place))


def _seen(made: ScaleMethod, place: Place) -> Seen:
    values: dict[type, Any] = {}
    for need in made.needs:
        if need is Original:
            values[need] = place.weights
        elif need is Reference:
            values[need] = {site: weight + layer(*site.shape, seed=9).weight.relu() for site, weight in place.weights.items()}
        else:
            values[need] = {site: _statistic(need, site, place.x) for site in place.fold.consumers}
    return Seen(values, Seeds(0).at("scale"))


def _statistic(need: Any, site: Site, x: Tensor) -> Tensor:
    expect(getattr(need, "on", "") == "input", f"`needs` has {need.__name__}, which a scale method is not shown")
    found: Tensor = need.finish(need.update(need.start(site.shape, x.device), x))
    return found


CHECKS = (
    preserves_the_function,
    gives_positive_scales,
    leaves_silent_channels_alone,
    leaves_its_input_alone,
    answers_the_same_twice,
    is_the_same_after_saving,
)
