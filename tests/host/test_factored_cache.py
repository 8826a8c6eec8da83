"""xKV: at full rank nothing is lost, the prompt is answered exactly, layers that share a subspace need it once."""

import math

import pytest
import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from trimtab.core.errors import UsageError
from trimtab.host.kv.factored import leading, xkv_cache
from trimtab.host.kv.quantized import cache_bytes
from trimtab.testing.tiny import tiny, tokens

SAID = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
CHANNELS = 32  # of tiny llama: 2 heads of 16


def drawn(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def later(model: PreTrainedModel, cache: object, ids: torch.Tensor, prompt: int) -> torch.Tensor:
    """Logits after a prompt, one token at a time."""
    with torch.no_grad():
        model(ids[:, :prompt], past_key_values=cache)
        parts = [model(ids[:, t : t + 1], past_key_values=cache).logits for t in range(prompt, ids.shape[1])]
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("family", ["llama", "qwen3", "smollm3"])
@pytest.mark.parametrize("group", [1, 2, 3, 4, 9])
def test_at_full_rank_nothing_is_lost(family: str, group: int) -> None:
    model = tiny(family)
    ids = tokens(model, batch=2, length=20)
    full = later(model, DynamicCache(config=model.config), ids, 14)
    ranks = (group * CHANNELS, group * CHANNELS)
    torch.testing.assert_close(later(model, xkv_cache(model, ranks, group), ids, 14), full, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_the_prompt_is_read_exactly_and_what_follows_is_not() -> None:
    model = tiny("llama")
    ids, cache = tokens(model, length=24), xkv_cache(model, (4, 4))
    whole = model(ids, use_cache=False).logits
    torch.testing.assert_close(model(ids[:, :20], past_key_values=cache).logits, whole[:, :20], rtol=1e-4, atol=1e-4)
    assert cache.get_seq_length() == 20
    after = model(ids[:, 20:], past_key_values=cache).logits
    assert cache.get_seq_length() == 24
    assert float((after - whole[:, 20:]).norm()) > 1e-2


@torch.no_grad()
def test_more_ranks_are_closer() -> None:
    model = tiny("llama")
    ids = tokens(model, length=72)
    full = later(model, DynamicCache(config=model.config), ids, 64)
    away = [float((later(model, xkv_cache(model, (rank, rank)), ids, 64) - full).norm()) for rank in (8, 32, 56)]
    assert away[0] > away[1] > away[2] > 0


@torch.no_grad()
def test_bytes_are_those_of_the_factors_and_of_what_came_later() -> None:
    model = tiny("llama")
    ids, cache = tokens(model, batch=1, length=66), xkv_cache(model, (10, 20), group=2)
    model(ids[:, :64], past_key_values=cache)
    one_group = (64 + 2 * CHANNELS) * (10 + 20)
    assert cache_bytes(cache) == 4 * 2 * one_group
    model(ids[:, 64:], past_key_values=cache)
    assert cache_bytes(cache) == 4 * (2 * one_group + 4 * 2 * 2 * CHANNELS)
    cache.reset()
    assert cache_bytes(cache) == cache.get_seq_length() == 0


@torch.no_grad()
@pytest.mark.parametrize("layers", [1, 5, 6, 7])
def test_a_last_group_of_fewer_layers_has_as_many_fewer_ranks(layers: int) -> None:
    model = tiny("llama", num_hidden_layers=layers)
    ids, cache = tokens(model, batch=1, length=64), xkv_cache(model, (10, 20))
    model(ids, past_key_values=cache)
    whole, over = divmod(layers, 4)
    ranks = math.ceil(10 * over / 4) + math.ceil(20 * over / 4)
    assert cache_bytes(cache) == 4 * (whole * (64 + 4 * CHANNELS) * (10 + 20) + (64 + over * CHANNELS) * ranks)
    assert model(ids[:, :1], past_key_values=cache).logits.isfinite().all()
    assert cache.get_seq_length() == 65


@torch.no_grad()
def test_layers_that_share_a_subspace_need_it_once() -> None:
    """At fewer bytes than layer by layer, nothing is lost where every layer's states come from the same few numbers a token."""
    model, shared = tiny("llama"), drawn(1, 60, 12)
    states = [(shared @ drawn(1, 12, CHANNELS, seed=1 + n)).unflatten(2, (2, 16)).transpose(1, 2) for n in range(4)]
    errors, sizes = [], []
    for group, rank in ((4, 12), (1, 9)):
        cache, worst = xkv_cache(model, (1, rank), group), 0.0
        for number, values in enumerate(states):
            cache.update(torch.zeros_like(values), values, number)
        for number, values in enumerate(states):
            found = cache.update(values[:, :, :0], values[:, :, :0], number)[1]
            worst = max(worst, float((found - values).norm() / values.norm()))
        errors.append(worst)
        sizes.append(cache_bytes(cache))
    assert sizes[0] < sizes[1]
    assert errors[0] < 1e-5 < 1e-2 < errors[1]


def test_leading_factors_are_the_best_ones() -> None:
    states = drawn(2, 30, 12)
    left, right = leading(states, 5)
    tail = torch.linalg.svdvals(states.double())[:, 5:].square().sum(1)
    lost = (states - left @ right).double().square().sum((1, 2))
    torch.testing.assert_close(lost, tail, rtol=1e-5, atol=0)
    assert leading(states, 99)[0].shape == (2, 30, 12)


def test_generate_goes_through_it() -> None:
    model = tiny("llama")
    ids = tokens(model, batch=1, length=20)
    wanted = model.generate(ids, **SAID)
    assert torch.equal(model.generate(ids, past_key_values=xkv_cache(model, (CHANNELS * 4, CHANNELS * 4)), **SAID), wanted)


@pytest.mark.parametrize(
    ("family", "ranks", "group", "why"),
    [
        ("llama", (4, 4), 0, "at least 1 layer"),
        ("llama", (0, 4), 2, "at least 1"),
        ("gemma2", (4, 4), 2, "full attention only"),
        ("gpt2", (4, 4), 2, "undoes one rotary embedding"),
    ],
)
def test_what_cannot_be_is_refused(family: str, ranks: tuple[int, int], group: int, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        xkv_cache(tiny(family), ranks, group)


@torch.no_grad()
def test_a_rotation_of_half_a_head_is_refused() -> None:
    model = tiny("gpt_neox")
    with pytest.raises(UsageError, match="only whole heads"):
        model(tokens(model, length=8), past_key_values=xkv_cache(model, (4, 4)))
