"""A cache in few bits: at 16 nothing changes, below it holds what it says, and generation, beams and rollback go through it."""

import pytest
import torch
from transformers.cache_utils import DynamicCache

from trimtab.core.errors import UsageError
from trimtab.host.kv.quantized import cache_bytes, quantized_cache
from trimtab.host.kv.reading import rounded_kv
from trimtab.measure.perplexity import token_losses
from trimtab.tensors.rounding import fit
from trimtab.tensors.token_codes import TokenCodes
from trimtab.testing.tiny import tiny, tokens

SAID = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}


def states(tokens: int, width: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 3, tokens, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("group_size", [16, 4])
def test_codes_are_the_nearest_points_of_every_tokens_grid(bits: int, group_size: int) -> None:
    x = states(5)
    codes, groups = TokenCodes.of(x, bits, group_size), x.reshape(2, 3, 5, -1, group_size)
    assert torch.equal(codes.values(torch.float32), fit(groups, bits).nearest(groups).reshape(x.shape))
    assert codes.nbytes == 2 * 3 * 5 * (16 * bits // 8 + 3 * (16 // group_size))
    assert torch.equal(codes.and_then(codes).first(5).values(torch.float32), codes.values(torch.float32))


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
@torch.no_grad()
def test_at_16_bits_nothing_changes(family: str) -> None:
    model = tiny(family)
    ids = tokens(model, length=20)
    whole = model.generate(ids, **SAID)
    assert torch.equal(whole, model.generate(ids, past_key_values=quantized_cache(model.config, 16), **SAID))
    cache = quantized_cache(model.config, 4, window=64)
    assert torch.equal(whole, model.generate(ids, past_key_values=cache, **SAID))


def test_what_comes_back_is_rounded_once_and_the_window_is_as_it_came() -> None:
    cache = quantized_cache(tiny("llama").config, 4, group_size=8, window=3)
    layer, keys, values = cache.layers[0], states(10), states(10, seed=1)
    for start, stop in ((0, 5), (5, 6), (6, 10)):
        found = layer.update(keys[:, :, start:stop], values[:, :, start:stop])
    for answer, wanted in zip(found, (keys, values), strict=True):
        assert torch.equal(answer[:, :, 7:], wanted[:, :, 7:])
        assert torch.equal(answer[:, :, :7], TokenCodes.of(wanted[:, :, :7], 4, 8).values(torch.float32))
    assert layer.get_seq_length() == 10
    # 7 tokens of 16 channels in 4 bits with 3 bytes for each of 2 groups, and 3 tokens in float32; keys and values of 2 x 3 heads
    assert cache_bytes(cache) == 2 * 6 * (7 * (8 + 2 * 3) + 3 * 64)


def test_a_loud_channel_costs_less_when_heads_are_turned() -> None:
    keys, config = states(6), tiny("llama").config
    keys[..., 3] *= 50
    quiet = torch.arange(16) != 3
    lost = []
    for turned in (False, True):
        found, _ = quantized_cache(config, 4, turned=turned).layers[0].update(keys, keys)
        lost.append(float((found - keys)[..., quiet].norm()))
    assert 0 < lost[1] < lost[0]
    exact, _ = quantized_cache(config, 8, window=6, turned=True).layers[0].update(keys, keys)
    assert torch.equal(exact, keys)


@torch.no_grad()
def test_a_quarter_of_the_memory_at_four_bits() -> None:
    model = tiny("llama").bfloat16()
    whole, small = DynamicCache(config=model.config), quantized_cache(model.config, 4)
    for cache in (whole, small):
        model(tokens(model, length=40), past_key_values=cache)
    assert cache_bytes(small) / cache_bytes(whole) == (16 / 2 + 3) / (16 * 2)


@torch.no_grad()
def test_fewer_bits_are_further_away() -> None:
    model = tiny("llama")
    ids = tokens(model, length=24)
    whole, away = token_losses(model, ids), []
    for bits in (8, 4, 2):
        with rounded_kv(model, bits):
            away.append(float((token_losses(model, ids) - whole).norm()))
    assert 0 < away[0] < away[1] / 4 < away[2] / 8
    with rounded_kv(model, 16):
        assert torch.equal(token_losses(model, ids), whole)
    assert torch.equal(token_losses(model, ids), whole)


@torch.no_grad()
def test_token_by_token_is_the_same_as_at_once() -> None:
    model = tiny("llama")
    ids, cache = tokens(model, length=12), quantized_cache(model.config, 3)
    apart = torch.cat([model(ids[:, t : t + 1], past_key_values=cache).logits for t in range(12)], dim=1)
    torch.testing.assert_close(apart, model(ids, past_key_values=quantized_cache(model.config, 3)).logits, rtol=1e-4, atol=1e-4)


def test_beams_and_rollback() -> None:
    cache = quantized_cache(tiny("llama").config, 4, window=2)
    layer, keys = cache.layers[0], states(6)
    before = layer.update(keys, keys)[0]
    layer.reorder_cache(torch.tensor([1, 1]))
    layer.crop(-3)
    assert layer.get_seq_length() == 3
    assert torch.equal(layer.update(keys[:, :, :1], keys[:, :, :1])[0][:, :, :2], before[[1, 1], :, :2])
    layer.batch_repeat_interleave(2)
    assert layer.update(states(1).repeat(2, 1, 1, 1), states(1).repeat(2, 1, 1, 1))[0].shape == (4, 3, 5, 16)
    layer.reset()
    assert layer.get_seq_length() == cache_bytes(cache) == 0


@pytest.mark.parametrize(
    ("family", "asked", "why"),
    [
        ("llama", {"bits": 1}, "2 to 8 bits, or 16"),
        ("llama", {"bits": 12}, "2 to 8 bits, or 16"),
        ("llama", {"bits": 4, "window": -1}, "at least 0"),
        ("gemma2", {"bits": 4}, "full attention only; gemma2 has full_attention, sliding_attention"),
    ],
)
def test_what_cannot_be_is_refused(family: str, asked: dict[str, int], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        quantized_cache(tiny(family).config, **asked)


def test_a_group_that_does_not_divide_a_head_is_refused() -> None:
    layer = quantized_cache(tiny("llama").config, 4, group_size=7).layers[0]
    with pytest.raises(UsageError, match="heads of 16 channels"):
        layer.update(states(2), states(2))
