"""Matrices that round their inputs: after any other step, in the model as in the formula, and never unpacked by accident."""

import pytest
import torch

from trimtab.anatomy import Anatomy
from trimtab.core.errors import RecipeError, UsageError
from trimtab.core.recipe import Recipe
from trimtab.engine.run import run
from trimtab.engine.unpacking import unpack
from trimtab.formats import Activations, Grouped
from trimtab.host.export.contents import values_of
from trimtab.testing.roundtrip import ran, shown
from trimtab.testing.tiny import tiny, tokens

W4A4 = "gptq(bits=4, group_size=0) -> act_quant(bits=4, clip=0.9)"


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens(model, seed=7), use_cache=False).logits


def test_every_matrix_of_the_blocks_rounds() -> None:
    model, _ = ran("llama", Recipe.of(W4A4))
    inside = [s for s in Anatomy.of(model).sites if s.block is not None]
    weights = [Anatomy.of(model).weight(site) for site in inside]
    assert all(isinstance(w, Activations) and isinstance(w.inner, Grouped) for w in weights)
    assert {(w.input_bits, w.clip, w.group_size == w.shape[1]) for w in weights} == {(4, 0.9, True)}


def test_fewer_bits_are_further_away() -> None:
    whole = logits(tiny("llama"))
    away = [float((logits(ran("llama", Recipe.of(f"act_quant(bits={b})"))[0]) - whole).norm()) for b in (8, 4, 2)]
    assert 0 < away[0] < away[1] / 4 < away[2] / 8


def test_a_second_rule_takes_the_place_of_the_first() -> None:
    model, _ = ran("llama", Recipe.of("act_quant(bits=4) -> act_quant(bits=8)"))
    other, _ = ran("llama", Recipe.of("act_quant(bits=8)"))
    assert torch.equal(logits(model), logits(other))


def test_no_export_forgets_the_rule() -> None:
    model, _ = ran("llama", Recipe.of("act_quant"))
    with pytest.raises(UsageError, match=r"q_proj rounds its inputs"):
        values_of(model)


def test_another_recipe_does_not_unpack_it() -> None:
    model, _ = ran("llama", Recipe.of("act_quant"))
    with pytest.raises(RecipeError, match="rounds its inputs and cannot be unpacked"):
        unpack(model, Recipe.of("rtn"))


def test_experts_are_refused_by_name() -> None:
    model = tiny("mixtral")
    with pytest.raises(UsageError, match=r"experts.*no layer of its own"):
        run(model, Recipe.of("act_quant"), shown(model))
