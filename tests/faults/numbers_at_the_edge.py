"""Values and shapes at the edge of what there is: whatever a method makes of them is finite, or refused by name."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from trimtab.core.errors import CalibrationError
from trimtab.core.kinds import LinearMethod
from trimtab.core.recipe import Recipe
from trimtab.core.registry import get, ids, kind
from trimtab.core.seeds import Seeds
from trimtab.engine.run import run
from trimtab.host import checkpoint
from trimtab.testing.problems import Layer, fitted, layer, solve
from trimtab.testing.tiny import tiny, tokens

OUT, IN, TOKENS = 8, 32, 64
Change = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def _filled(tensor: Tensor, index: object, value: float) -> Tensor:
    made = tensor.clone()
    made[index] = value
    return made


# What is done to the weight [out, in] and the inputs x [tokens, in] of a layer.
EDGES: dict[str, Change] = {
    "scales beyond float16": lambda w, x: (w * 1e6, x),
    "weights of 1e30": lambda w, x: (w * 1e30, x),
    "weights of 1e-30": lambda w, x: (w * 1e-30, x),
    "denormal weights": lambda w, x: (w * 1e-41, x),
    "negative zeros": lambda w, x: (torch.full_like(w, -0.0), x),
    "a group of zeros": lambda w, x: (_filled(w, (slice(None), slice(0, 16)), 0.0), x),
    "a constant matrix": lambda w, x: (torch.ones_like(w), x),
    "one large weight": lambda w, x: (_filled(w, (0, 0), 6e4), x),
    "dead inputs": lambda w, x: (w, _filled(x, (slice(None), slice(0, 20)), 0.0)),
    "no input at all": lambda w, x: (w, torch.zeros_like(x)),
    "inputs of rank one": lambda w, x: (w, x[:, :1].expand_as(x).contiguous()),
    "one token": lambda w, x: (w, x[:1]),
    "inputs of 1e18": lambda w, x: (w, x * 1e18),
    "inputs of 1e-25": lambda w, x: (w, x * 1e-25),
    "one input of 1e6": lambda w, x: (w, _filled(x, (slice(None), 3), 1e6)),
}


def linear_methods() -> list[str]:
    return [id for id in ids() if kind(get(id)) == "linear"]


def solved(id: str, edge: str) -> Tensor:
    """The answer [out, in]. Raises AssertionError if it is not finite and nobody said so."""
    start = layer(OUT, IN, TOKENS)
    problem = Layer(*EDGES[edge](start.weight, start.x))
    made = get(id)()
    assert isinstance(made, LinearMethod)
    adapted = fitted(made, problem.site)
    if adapted is None:
        raise CalibrationError("the shape is refused")
    try:
        answer = solve(adapted, problem).dense()
    except ArithmeticError as error:
        raise CalibrationError(f"{id} on {edge}: {error}") from error  # as the engine does
    assert bool(torch.isfinite(answer).all()), f"{id} is not finite on {edge}"
    return answer


SHAPES = {
    "one layer": {"num_hidden_layers": 1},
    "one head": {"num_attention_heads": 1, "num_key_value_heads": 1},
    "one key for all heads": {"num_key_value_heads": 1},
    "a vocabulary of one": {"vocab_size": 4},
    "odd widths": {"hidden_size": 36, "intermediate_size": 50, "num_attention_heads": 2, "num_key_value_heads": 1},
    "prime widths": {"intermediate_size": 53},
    "three heads": {"hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 3},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
}
RECIPES = ("rtn(group_size=0)", "gptq(bits=3, group_size=0)", "wanda(sparsity=0.5)", "rtn(bits=4, group_size=64)", "hlq")


def shapes() -> Iterator[tuple[str, str]]:
    yield from ((shape, recipe) for shape in SHAPES for recipe in RECIPES)


def compressed(shape: str, recipe: str, place: Path) -> None:
    """Compressed, saved and opened again, it says the same, in finite numbers; or the shape is refused by name."""
    model = tiny("llama", **{"num_hidden_layers": 2, **SHAPES[shape]})
    ids = torch.randint(0, model.config.vocab_size, (2, 8), generator=Seeds(0).at("ids"))
    run(model, Recipe.of(recipe), [ids])
    expected = model(ids).logits
    checkpoint.save(model, None, place)
    found = checkpoint.load(place)[0](ids).logits
    assert bool(torch.isfinite(found).all())
    assert torch.equal(found, expected)


POISONS = {"NaN": float("nan"), "infinity": float("inf"), "-infinity": float("-inf")}


def poisoned(family: str, value: float, recipe: str, place: Path, late: bool) -> None:
    """A model with one value that is no number; late: it appears after compressing, as a faulty method would leave it."""
    model = tiny(family)
    if not late:
        _poison(model, value)
    run(model, Recipe.of(recipe), [tokens(model, 2, 8)])
    if late:
        _poison(model, value)
    checkpoint.save(model, None, place)


@torch.no_grad()
def _poison(model: torch.nn.Module, value: float) -> None:
    last = [p for p in model.parameters() if p.ndim > 1][-1]
    last.view(-1)[5] = value
