"""Losses against a plain double-precision loop, in every way that the logits may be cut."""

import math

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from trimtab.core.errors import DataError, ModelError
from trimtab.measure import measure
from trimtab.measure import perplexity as room
from trimtab.measure.perplexity import bits_per_byte, perplexity, token_losses
from trimtab.testing.folders import byte_tokenizer
from trimtab.testing.tiny import tiny

LENGTH = 12


def windows(count: int = 3, length: int = LENGTH) -> Tensor:
    return torch.randint(3, 97, (count, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def reference(model, ids: Tensor) -> Tensor:
    """One prefix at a time, log-softmax written out in float64."""
    rows = []
    for window in ids:
        losses = []
        for t in range(1, len(window)):
            logits = model(input_ids=window[None, :t]).logits[0, -1].double()
            losses.append(-(logits[window[t]] - logits.exp().sum().log()))
        rows.append(torch.stack(losses))
    return torch.stack(rows)


@pytest.mark.parametrize("positions", [10**6, 25, 5, 1])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "opt"])
def test_losses_equal_a_plain_loop_however_the_logits_are_cut(
    family: str, positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ids = tiny(family).double(), windows()
    monkeypatch.setattr(room, "positions_at_once", lambda model: positions)
    losses = token_losses(model, ids)
    assert losses.dtype == torch.float64
    assert losses.shape == (3, LENGTH - 1)
    torch.testing.assert_close(losses, reference(model, ids), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt_neox"])
def test_perplexity_equals_an_independent_one_to_a_millionth(family: str, dtype: torch.dtype) -> None:
    ids = windows(8, 24)
    losses = [float(loss) for row in reference(tiny(family).double(), ids) for loss in row]
    expected = math.exp(math.fsum(losses) / len(losses))
    found = perplexity(token_losses(tiny(family).to(dtype), ids))
    assert found.value == pytest.approx(expected, rel=1e-6)
    assert found.n == len(losses) == 8 * 23


@torch.no_grad()
def strided_reference(model, stream: list[int], length: int, stride: int, opening: list[int]) -> list[float]:
    """Walk through the text; every token is predicted once, from the window that it ends up in."""
    body, losses = length - len(opening), []
    for begin in range(0, len(stream) - body + 1, stride):
        for t in range(begin + body - stride, begin + body):
            context = torch.tensor([opening + stream[begin:t]])
            logits = model(input_ids=context).logits[0, -1].double()
            losses.append(float(logits.exp().sum().log() - logits[stream[t]]))
    return losses


@pytest.mark.parametrize("opens", [False, True])
@pytest.mark.parametrize("stride", [1, 5, 11])
def test_strided_perplexity_equals_a_walk_through_the_text(tmp_path, opens: bool, stride: int) -> None:
    tokenizer = byte_tokenizer()
    if opens:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    model = tiny("llama", vocab_size=len(tokenizer), num_hidden_layers=2).double()
    (tmp_path / "text.txt").write_text("The otter swims. Äh, it dives.", encoding="utf-8")
    stream = tokenizer("The otter swims. Äh, it dives.\n\n", add_special_tokens=False)["input_ids"]
    length, opening = 12, [1] if opens else []
    expected = strided_reference(model, stream, length, stride, opening)
    count = len(expected) // stride
    text = str(tmp_path / "text.txt")
    found = {m.name: m for m in measure(model, tokenizer, text, count, length, speed=False, stride=stride)}
    assert found["perplexity"].value == pytest.approx(math.exp(math.fsum(expected) / len(expected)), rel=1e-6)
    assert found["perplexity"].n == len(expected)
    assert found["bits per byte"].value == pytest.approx(math.fsum(expected) / len(expected) / math.log(2), rel=1e-6)
    assert found["bits per byte"].n == len(expected)  # one token per byte
    assert found["perplexity"].setting["stride"] == stride


def test_float32_losses_are_float32_accurate() -> None:
    model, ids = tiny("llama"), windows()
    exact = reference(tiny("llama").double(), ids)
    torch.testing.assert_close(token_losses(model, ids), exact, rtol=1e-5, atol=1e-5)


def test_logits_never_take_more_than_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = tiny("llama"), []
    monkeypatch.setattr(room, "LOGIT_BYTES", 5 * 2 * 4 * 97)
    model.get_output_embeddings().register_forward_hook(lambda _m, _i, out: seen.append(out.numel() // 97))
    token_losses(model, windows())
    assert max(seen) == 5
    assert sum(n for n in seen if n > 1) <= 3 * (LENGTH - 1)


def test_batch_does_not_matter_and_the_mode_is_given_back() -> None:
    model = tiny("llama").train()
    one, all_ = token_losses(model, windows(5), batch=1), token_losses(model, windows(5), batch=5)
    torch.testing.assert_close(one, all_, rtol=1e-5, atol=1e-6)
    assert model.training


def test_hooks_are_gone_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    monkeypatch.setattr(room, "positions_at_once", lambda model: 2)
    token_losses(model, windows())
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_damaged_weights_are_an_error_not_a_nan() -> None:
    model = tiny("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[50] = math.nan
    ids = torch.full((2, 4), 3)
    ids[1, 2] = 50
    with pytest.raises(ModelError, match=r"of 6 token losses are not finite, the first in window \d at token \d"):
        token_losses(model, ids)


@pytest.mark.parametrize("shape", [(0, 5), (2, 1), (5,)])
def test_windows_without_a_scored_token_are_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="at least one window of 2 tokens"):
        token_losses(tiny("llama"), torch.zeros(shape, dtype=torch.int64))


def test_uniform_losses_have_the_perplexity_of_the_vocabulary() -> None:
    found = perplexity(torch.full((4, 10), math.log(50.0), dtype=torch.float64), {"seed": 0})
    assert found.value == pytest.approx(50.0)
    assert found.stderr == pytest.approx(0.0, abs=1e-9)
    assert (found.n, found.setting) == (40, {"seed": 0})


def test_one_window_has_no_standard_error() -> None:
    assert math.isnan(perplexity(torch.ones(1, 10)).stderr)


def test_the_standard_error_takes_windows_as_the_units() -> None:
    """Over many draws, the spread of the perplexity is what a single draw says it is; tokens alone would say less."""
    generator = torch.Generator().manual_seed(0)
    draws = [2 + correlated(generator) for _ in range(400)]
    found = [perplexity(losses) for losses in draws]
    spread = torch.tensor([m.value for m in found]).std().item()
    claimed = sum(m.stderr for m in found) / len(found)
    assert claimed == pytest.approx(spread, rel=0.12)  # the spread of 400 values is known to 1/sqrt(800) = 3.5 %
    by_token = found[0].value * draws[0].std().item() / math.sqrt(draws[0].numel())
    assert claimed > 2 * by_token


def correlated(generator: torch.Generator) -> Tensor:
    """[30 windows, 50 tokens] whose tokens share their window's level."""
    level = 0.1 * torch.randn(30, 1, generator=generator, dtype=torch.float64)
    return level + 0.1 * torch.randn(30, 50, generator=generator, dtype=torch.float64)


def test_bits_per_byte_is_a_ratio_of_sums() -> None:
    losses = torch.tensor([[1.0, 2.0], [3.0, 2.0]], dtype=torch.float64) * math.log(2)
    found = bits_per_byte(losses, torch.tensor([6, 10]))
    assert found.value == pytest.approx(8 / 16)
    assert found.n == 16
    # residuals 3 - 0.5 * 6 and 5 - 0.5 * 10 are zero: both windows agree on the ratio
    assert found.stderr == pytest.approx(0.0, abs=1e-12)
    assert bits_per_byte(losses, torch.tensor([10, 6])).stderr == pytest.approx(4 / 16)


def test_bits_per_byte_of_no_text_is_an_error() -> None:
    with pytest.raises(DataError, match="stand for no text"):
        bits_per_byte(torch.ones(2, 2), torch.tensor([0, 0]))
