import pytest
import torch

from trimtab.core.errors import UsageError
from trimtab.testing.tiny import ARCHITECTURES, tiny, tokens


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_models_are_small_reproducible_and_not_degenerate(name: str) -> None:
    before = torch.random.get_rng_state()
    model, twin, other = tiny(name), tiny(name), tiny(name, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before), "the global generator is not ours to draw from"
    ids = tokens(model)
    with torch.no_grad():
        logits, again, different = (m(ids, use_cache=False).logits for m in (model, twin, other))
    assert torch.equal(logits, again)
    assert (logits - different).abs().max() > 0.1
    assert 0.3 < logits.std() < 3
    assert sum(p.numel() for p in model.parameters()) < 170_000
    assert not model.training
    for parameter in model.parameters():
        assert parameter.std() > 0.01


def test_overrides_reach_the_config_and_unknown_names_are_explained() -> None:
    assert tiny("llama", num_hidden_layers=2).config.num_hidden_layers == 2
    with pytest.raises(UsageError, match="did you mean 'llama'"):
        tiny("lama")


def test_tokens_are_reproducible_and_leave_the_special_ones_out() -> None:
    model = tiny("llama")
    ids = tokens(model, batch=4, length=100, seed=3)
    assert ids.shape == (4, 100)
    assert ids.min() >= 3
    assert ids.max() < 97
    assert torch.equal(ids, tokens(model, batch=4, length=100, seed=3))
    assert not torch.equal(ids, tokens(model, batch=4, length=100, seed=4))
