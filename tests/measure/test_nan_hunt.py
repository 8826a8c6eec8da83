"""The layer where a number first goes wrong is named, and so is the reason."""

import math

import pytest
import torch

from trimtab.core.errors import ModelError
from trimtab.measure.nan_hunt import blame, first_not_finite
from trimtab.measure.perplexity import token_losses
from trimtab.testing.tiny import tiny, tokens


@pytest.mark.parametrize(("place", "value"), [("model.layers.1.self_attn.k_proj", math.nan), ("model.norm", math.inf)])
def test_a_damaged_weight_is_found(place: str, value: float) -> None:
    model = tiny("llama")
    with torch.no_grad():
        model.get_submodule(place).weight.flatten()[5] = value
    name, module = first_not_finite(model, tokens(model))
    assert name == place
    assert module is model.get_submodule(place)
    assert blame(model, tokens(model)).startswith(f"first in {place}, whose weight holds 1 values that are not finite")


def test_an_overflow_is_told_from_damage() -> None:
    model = tiny("llama").half()
    with torch.no_grad():
        model.model.layers[3].mlp.up_proj.weight.fill_(6e4)
    said = blame(model, tokens(model))
    assert said.startswith("first in model.layers.3.mlp.up_proj, from finite weights: its output overflows float16")
    assert "try dtype float32" in said


def test_a_sound_model_is_not_blamed_and_keeps_no_hooks() -> None:
    model = tiny("gemma2")
    assert first_not_finite(model, tokens(model)) is None
    assert blame(model, tokens(model)).startswith("its layers give finite values one by one")
    assert not any(module._forward_hooks for module in model.modules())


def test_the_hunt_is_in_the_window_that_went_wrong() -> None:
    model = tiny("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[50] = math.nan
    ids = torch.full((3, 4), 3)
    ids[2, 1] = 50
    message = r"the first in window 2 at token \d: first in model\.embed_tokens, whose weight holds 64 values"
    with pytest.raises(ModelError, match=message):
        token_losses(model, ids)
