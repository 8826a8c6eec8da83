"""Blocks that are skipped after the prompt: the others' caches are complete, and nothing is left of it afterwards."""

import pytest
import torch
from transformers import DynamicCache

from trimtab.core.errors import UsageError
from trimtab.core.recipe import Recipe
from trimtab.core.registry import get
from trimtab.engine.run import run
from trimtab.host.skipping import skipping
from trimtab.testing.roundtrip import shown
from trimtab.testing.tiny import tiny

FAMILIES = pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "qwen3"])


def continued(model, ids, cache):
    with torch.no_grad():
        return model(ids, past_key_values=cache, use_cache=True).logits


@FAMILIES
def test_after_one_token_all_but_that_is_as_if_the_blocks_were_gone(family):
    """The prompt is one token; what the last block kept of it, the one trace of the skipped blocks, is exchanged."""
    model, other = tiny(family), tiny(family)
    gone = get("unified_skip")(speedup=2.0)
    run(other, Recipe((gone,)), [])
    ids = shown(model)[0][:2, :9]
    cache, narrower = DynamicCache(config=model.config), DynamicCache(config=other.config)
    with skipping(model, gone.skipped(4)):
        continued(model, ids[:, :1], cache)
        continued(other, ids[:, :1], narrower)
        assert len(narrower.layers) == 2
        torch.testing.assert_close(cache.layers[0].keys, narrower.layers[0].keys)
        cache.layers[3].keys, cache.layers[3].values = narrower.layers[1].keys, narrower.layers[1].values
        later = continued(model, ids[:, 1:], cache)
    with torch.no_grad():
        expected = other(ids).logits[:, 1:]
    torch.testing.assert_close(later, expected, rtol=1e-5, atol=1e-5)
    assert [layer.get_seq_length() for layer in cache.layers] == [9, 1, 1, 9]


@FAMILIES
def test_many_tokens_after_the_prompt_are_as_one_after_the_other(family):
    model = tiny(family)
    ids = shown(model)[0][:2, :12]
    with skipping(model, [1, 2]):
        cache = DynamicCache(config=model.config)
        first = continued(model, ids[:, :6], cache)
        at_once = continued(model, ids[:, 6:], cache)
        again = DynamicCache(config=model.config)
        continued(model, ids[:, :6], again)
        by_one = torch.cat([continued(model, ids[:, i : i + 1], again) for i in range(6, 12)], 1)
    torch.testing.assert_close(by_one, at_once, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
    torch.testing.assert_close(first, whole[:, :6], rtol=1e-5, atol=1e-5)
    assert float((at_once - whole[:, 6:]).abs().max()) > 1e-3


@FAMILIES
def test_afterwards_the_model_is_as_it_was(family):
    model = tiny(family)
    prompt = shown(model)[0][:1, :5]
    before = model.generate(prompt, max_new_tokens=6, do_sample=False, pad_token_id=0)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="max_new_tokens"), skipping(model, [1]):
        model.generate(prompt, max_new_tokens=-1, do_sample=False, pad_token_id=0)
    assert torch.equal(model.generate(prompt, max_new_tokens=6, do_sample=False, pad_token_id=0), before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert not any("forward" in vars(module) for module in model.modules())
    with skipping(model, []):
        assert torch.equal(model.generate(prompt, max_new_tokens=6, do_sample=False, pad_token_id=0), before)


def test_what_cannot_be_skipped_is_refused():
    for blocks in ([0], [4], [-1, 2]):
        with pytest.raises(UsageError, match="blocks 1 to 3 can be skipped, got "), skipping(tiny("llama"), blocks):
            pass
    with pytest.raises(UsageError, match="skipping holds layers of full attention only"), skipping(tiny("gemma2"), [1]):
        pass


def test_the_blocks_are_those_of_the_static_form():
    assert get("unified_skip")(speedup=2.0).skipped(12) == [1, 3, 5, 7, 9, 10]
    with pytest.raises(UsageError, match="two stay at least"):
        get("unified_skip")(speedup=5.0).skipped(4)
