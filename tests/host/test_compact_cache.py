"""Layers of different widths, saved and opened again: the same words, with and without a cache, whose layers fit."""

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from trimtab.anatomy import Anatomy
from trimtab.core.edits import Narrow
from trimtab.core.places import Coupling, Unit
from trimtab.core.seeds import Seeds
from trimtab.engine.apply import apply
from trimtab.engine.narrowing import narrows
from trimtab.engine.sweep import Stream
from trimtab.host.checkpoint import load, save
from trimtab.testing.roundtrip import shown
from trimtab.testing.tiny import tiny, tokens

NEW, PROMPT, HEAD = 6, 12, 16
NEURON_KEPT = [128, 70, 33, 1]  # by layer
GROUPS_KEPT = [4, 1, 3, 2]
FAMILIES = {  # settings; do groups of heads go, too
    "llama": ({"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": HEAD}, True),
    "qwen2": ({"num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 128}, True),
    "phi3": ({}, False),
    "gpt_neox": ({}, True),
    "gpt2": ({}, False),
}


def narrowed(family: str) -> torch.nn.Module:
    settings, grouped = FAMILIES[family]
    model = tiny(family, **settings)
    anatomy = Anatomy.of(model)
    stream = Stream(anatomy, [shown(model)[0][:1, :16]])
    open_ = [c for c in anatomy.couplings() if narrows(stream, c)]
    assert {c.unit for c in open_} == ({Unit.NEURON, Unit.KV_GROUP} if grouped else {Unit.NEURON})
    apply(anatomy, [Narrow(c, chosen(c)) for c in open_ if left(c) < c.units])
    return model


def left(coupling: Coupling) -> int:
    return (NEURON_KEPT if coupling.unit is Unit.NEURON else GROUPS_KEPT)[coupling.block]


def chosen(coupling: Coupling) -> torch.Tensor:
    """[units] bool, not the first ones."""
    order = torch.randperm(coupling.units, generator=Seeds(0).at(coupling.name))
    return torch.zeros(coupling.units, dtype=torch.bool).index_fill(0, order[: left(coupling)], True)


def said(model: torch.nn.Module, cached: bool) -> torch.Tensor:
    out = model.generate(tokens(model), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, use_cache=cached)
    assert out.shape == (2, PROMPT + NEW)
    return out


@pytest.mark.parametrize("family", FAMILIES)
def test_opened_again_it_says_the_same_with_and_without_a_cache(family, tmp_path):
    model = narrowed(family)
    inner = [c.units for c in Anatomy.of(model).couplings() if c.unit is Unit.NEURON]
    assert inner == NEURON_KEPT
    save(model, None, tmp_path / "compact")
    for again in (load(tmp_path / "compact")[0], AutoModelForCausalLM.from_pretrained(tmp_path / "compact")):
        assert [c.units for c in Anatomy.of(again).couplings() if c.unit is Unit.NEURON] == NEURON_KEPT
        before = said(model, True)
        for cached in (True, False):
            assert torch.equal(said(again, cached), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cache_of_every_layer_has_its_own_groups(family, tmp_path):
    save(narrowed(family), None, tmp_path / "compact")
    model = load(tmp_path / "compact")[0]
    ids, cache = tokens(model), DynamicCache()
    with torch.no_grad():
        model(ids[:, :-1], past_key_values=cache, use_cache=True)
        last = model(ids[:, -1:], past_key_values=cache, use_cache=True).logits[:, -1]
        whole = model(ids, use_cache=False).logits[:, -1]
    groups = GROUPS_KEPT if FAMILIES[family][1] else [heads(family)] * 4
    for kept in ([layer.keys for layer in cache.layers], [layer.values for layer in cache.layers]):
        assert [tuple(t.shape) for t in kept] == [(2, n, PROMPT, HEAD) for n in groups]
    torch.testing.assert_close(last, whole, rtol=1e-4, atol=1e-5)


def heads(family: str) -> int:
    config = tiny(family).config
    return getattr(config, "num_key_value_heads", None) or config.num_attention_heads
