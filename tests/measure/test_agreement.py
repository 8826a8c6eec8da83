"""Two models token by token, against the plain formulas in float64."""

import math

import pytest
import torch
from torch import Tensor

from trimtab.core.errors import DataError, ModelError
from trimtab.core.progress import Progress
from trimtab.measure import agreement as room
from trimtab.measure.agreement import agreement, predictions
from trimtab.measure.perplexity import token_losses
from trimtab.testing.tiny import VOCABULARY, tiny

LENGTH = 12


def windows(count: int = 3) -> Tensor:
    return torch.randint(3, VOCABULARY, (count, LENGTH), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def log_probabilities(model, ids: Tensor) -> Tensor:
    """[n, length - 1, vocabulary] float64, normalised by hand."""
    logits = model(input_ids=ids).logits[:, :-1].double()
    return logits - logits.exp().sum(-1, keepdim=True).log()


@pytest.mark.parametrize("positions", [10**6, 24, 7, 2])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_everything_equals_the_plain_formulas(family: str, positions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    base, other, ids = tiny(family).double(), tiny(family, seed=1).double(), windows()
    monkeypatch.setattr(room, "positions_at_once", lambda model: positions)
    found = agreement(base, other, ids)
    left, right = log_probabilities(base, ids), log_probabilities(other, ids)
    torch.testing.assert_close(found.kl, (left.exp() * (left - right)).sum(-1), rtol=1e-10, atol=1e-12)
    assert torch.equal(found.same_top, left.argmax(-1) == right.argmax(-1))
    for side, logs in ((found.base, left), (found.other, right)):
        targets = ids[:, 1:]
        torch.testing.assert_close(side.losses, -logs.gather(2, targets[..., None])[..., 0], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(side.confidence, logs.max(-1).values.exp(), rtol=1e-10, atol=1e-10)
        assert torch.equal(side.right, logs.argmax(-1) == targets)


def test_a_model_agrees_with_itself_exactly() -> None:
    found = agreement(tiny("llama"), tiny("llama"), windows())
    assert (found.kl == 0).all()
    assert found.same_top.all()
    assert torch.equal(found.base.losses, found.other.losses)


def test_both_sides_may_be_one_object(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "positions_at_once", lambda model: 8)
    model = tiny("llama")
    found = agreement(model, model, windows())
    assert (found.kl == 0).all()
    torch.testing.assert_close(found.base.losses, token_losses(model, windows()), rtol=1e-5, atol=1e-6)


def test_float32_divergences_are_float32_accurate() -> None:
    base, other, ids = tiny("llama"), tiny("llama", seed=1), windows()
    exact = agreement(tiny("llama").double(), tiny("llama", seed=1).double(), ids)
    torch.testing.assert_close(agreement(base, other, ids).kl, exact.kl, rtol=1e-5, atol=1e-5)


def test_divergence_is_of_the_base_and_not_symmetric() -> None:
    base, other, ids = tiny("llama").double(), tiny("llama", seed=1).double(), windows()
    left, right = log_probabilities(base, ids), log_probabilities(other, ids)
    found = agreement(other, base, ids)
    torch.testing.assert_close(found.kl, (right.exp() * (right - left)).sum(-1), rtol=1e-10, atol=1e-12)
    assert not torch.allclose(found.kl, agreement(base, other, ids).kl)


def test_predictions_have_the_losses_of_perplexity() -> None:
    model, ids = tiny("llama"), windows(5)
    assert torch.equal(predictions(model, ids).losses, token_losses(model, ids))


def test_of_the_logits_only_a_slice_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    base, other = tiny("llama"), tiny("llama", seed=1)
    monkeypatch.setattr(room, "positions_at_once", lambda model: 10)
    seen: list[int] = []
    for model in (base, other):
        model.get_output_embeddings().register_forward_hook(lambda _m, _i, out: seen.append(out.numel() // VOCABULARY))
    agreement(base, other, windows())
    assert max(seen) <= 5


def test_without_a_common_vocabulary_there_is_no_divergence() -> None:
    base, other, ids = tiny("llama"), tiny("llama", vocab_size=100), windows()
    found = agreement(base, other, ids, names=("big", "small"))
    assert (found.kl, found.same_top) == (None, None)
    assert found.note == "big and small have 97 and 100 logits: no KL, no common top token"
    assert torch.equal(found.base.losses, token_losses(base, ids))
    assert torch.equal(found.other.losses, token_losses(other, ids))


def broken():
    model = tiny("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[50] = math.nan
    return model


def test_a_model_that_says_nan_is_named() -> None:
    ids = torch.full((2, 4), 50)
    with pytest.raises(ModelError, match=r"^small: .*not finite"):
        agreement(tiny("llama"), broken(), ids, names=("big", "small"))
    with pytest.raises(ModelError, match=r"^big: .*not finite"):
        agreement(broken(), tiny("llama"), ids, names=("big", "small"))
    with pytest.raises(ModelError, match=r"^the model: .*not finite"):
        predictions(broken(), ids)


def test_an_infinite_divergence_is_said() -> None:
    other = tiny("llama")
    other.get_output_embeddings().register_forward_hook(lambda _m, _i, out: out.index_fill(-1, torch.tensor([2]), -math.inf))
    found = agreement(tiny("llama"), other, windows())
    assert found.kl is None
    assert "KL is infinite" in found.note


def test_whoever_watches_is_told() -> None:
    told: list[Progress] = []
    agreement(tiny("llama"), tiny("llama"), windows(5), batch=2, watch=told.append)
    assert [(now.done, now.total) for now in told] == [(0, 5), (2, 5), (4, 5)]


def test_the_mode_is_given_back() -> None:
    base, other = tiny("llama").train(), tiny("llama")
    agreement(base, other, windows())
    assert base.training
    assert not other.training


@pytest.mark.parametrize("shape", [(0, 5), (2, 1), (5,)])
def test_windows_without_a_scored_token_are_an_error(shape: tuple[int, ...]) -> None:
    ids = torch.zeros(shape, dtype=torch.int64)
    with pytest.raises(DataError, match="at least one window of 2 tokens"):
        agreement(tiny("llama"), tiny("llama"), ids)
    with pytest.raises(DataError, match="at least one window of 2 tokens"):
        predictions(tiny("llama"), ids)
