"""Outliers stand out by exactly their factor, where they should, and change nothing that the model says."""

import copy

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from trimtab.core.errors import ModelError, UsageError
from trimtab.host.outliers import Outliers, inject
from trimtab.testing.roundtrip import Float64
from trimtab.testing.tiny import tiny, tokens

BOTH_WAYS = pytest.mark.parametrize("exponent", [5, -5])


def both(outliers: Outliers, **overrides):
    """A model, the same one with outliers, and where they are."""
    model = tiny("llama", **overrides)
    changed = copy.deepcopy(model)
    return model, changed, inject(changed, outliers)


@torch.no_grad()
def seen(model: LlamaForCausalLM, path: str) -> Tensor:
    """[channels]: the largest absolute value of every channel of what the module at `path` gives."""
    kept: list[Tensor] = []
    handle = model.get_submodule(path).register_forward_hook(lambda _m, _i, output: kept.append(output))
    model(tokens(model), use_cache=False)
    handle.remove()
    return kept[0].abs().flatten(0, -2).amax(0)


@BOTH_WAYS
@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_float64_logits_stay(exponent, tied):
    model, changed, _ = both(Outliers(exponent, channels=6, neurons=5, pairs=2), tie_word_embeddings=tied)
    ids = tokens(model)
    with Float64():
        before, after = (m.double()(ids, use_cache=False).logits for m in (model, changed))
    assert before.dtype == torch.float64
    assert (after - before).abs().max() < 1e-10


@BOTH_WAYS
@torch.no_grad()
def test_float32_logits_stay_to_the_last_bit(exponent):
    model, changed, _ = both(Outliers(exponent))
    ids = tokens(model)
    assert torch.equal(changed(ids, use_cache=False).logits, model(ids, use_cache=False).logits)


@pytest.mark.parametrize("norm", ["input_layernorm", "post_attention_layernorm"])
def test_channels_behind_every_norm_stand_out_by_the_factor(norm):
    outliers = Outliers(exponent=4, channels=3)
    model, changed, where = both(outliers)
    for block in range(4):
        before, after = (seen(m, f"model.layers.{block}.{norm}") for m in (model, changed))
        raised = torch.zeros_like(before, dtype=torch.bool).index_fill_(0, where.channels, True)
        assert raised.sum() == 3
        assert torch.equal(after[~raised], before[~raised])
        assert torch.equal(after[raised], before[raised] * outliers.factor)
        ratio = (after[raised].max() / after[~raised].median()) / (before[raised].max() / before[~raised].median())
        assert ratio == pytest.approx(outliers.factor)


def test_neurons_and_keys_stand_out_by_the_factor():
    outliers = Outliers(exponent=3, neurons=7, pairs=2)
    model, changed, where = both(outliers)
    for block in range(4):
        for path, rows in (("mlp.up_proj", where.neurons[block]), ("self_attn.k_proj", where.keys[block])):
            before, after = (seen(m, f"model.layers.{block}.{path}") for m in (model, changed))
            expected = before.clone()
            expected[rows] *= outliers.factor
            assert torch.equal(after, expected)
        assert len(where.neurons[block]) == 7
        assert len(where.keys[block]) == 2 * 2 * 2  # pairs, both rows, key heads


@torch.no_grad()
def test_a_negative_exponent_puts_the_outliers_into_the_weights():
    model, changed, where = both(Outliers(exponent=-4, pairs=0))
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj"):
        before, after = (m.get_submodule(f"model.layers.0.{name}").weight for m in (model, changed))
        expected = before.clone()
        expected[:, where.channels] *= 16
        assert torch.equal(after, expected)


def test_the_seed_chooses_the_places():
    first, again, other = (both(Outliers(seed=seed))[2] for seed in (0, 0, 1))
    assert torch.equal(first.channels, again.channels)
    assert not torch.equal(first.channels, other.channels)
    assert not torch.equal(first.neurons[0], first.neurons[1])


def test_no_outliers_change_nothing():
    model, changed, _ = both(Outliers(channels=0, neurons=0, pairs=0))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), changed.parameters(), strict=True))


def test_what_cannot_be_done_is_refused():
    with pytest.raises(UsageError, match="65 outliers were asked for among 64 channels"):
        inject(tiny("llama"), Outliers(channels=65))
    with pytest.raises(ModelError, match="without biases"):
        inject(tiny("llama", attention_bias=True), Outliers())
