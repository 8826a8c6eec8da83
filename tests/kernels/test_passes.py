"""Grams and attention in bfloat16 against float64, over shapes that divide nothing; and who is answered by them."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trimtab import kernels
from trimtab.anatomy import Anatomy
from trimtab.core.recipe import Calibration, Recipe
from trimtab.engine.passes import CompiledAttention
from trimtab.engine.run import run
from trimtab.engine.sweep import Stream
from trimtab.stats import Gram
from trimtab.testing.tiny import tiny, tokens

BFLOAT = torch.bfloat16


@pytest.fixture
def on(instructions, monkeypatch):
    """Passes use this instruction set, if they use any."""
    monkeypatch.setenv("TRIMTAB_CPU", instructions)
    monkeypatch.delenv("TRIMTAB_KERNELS", raising=False)
    if not kernels.serves_passes():
        pytest.skip(f"passes use no {instructions} kernels")
    return instructions


@pytest.fixture
def poisoned(monkeypatch):
    """New memory holds NaN, so an output that is never written shows."""
    monkeypatch.setattr(Tensor, "new_empty", lambda self, *size: self.new_full(size, float("nan")))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(BFLOAT)


def heads(windows: int, count: int, length: int, width: int, seed: int) -> Tensor:
    """[windows, heads, length, width] as models make it: a view of [windows, length, heads, width]."""
    return drawn(windows, length, count, width, seed=seed).transpose(1, 2)


@pytest.mark.parametrize("tokens", [1, 2, 17, 513, 1030])
@pytest.mark.parametrize("n", [1, 15, 64, 97, 200])
def test_grams_of_small_integers_are_exact(on, tokens, n):
    x = torch.randint(-9, 10, (tokens, n), generator=torch.Generator().manual_seed(n)).to(BFLOAT)
    total = torch.ones(n, n)
    assert kernels.add_gram(total, x)
    assert torch.equal(total.tril(), (x.double().T @ x.double() + 1).float().tril())


def test_grams_round_as_float32_sums_do(on):
    x = drawn(3000, 130)[:, :129]  # rows with a gap between them
    total = torch.zeros(129, 129)
    assert kernels.add_gram(total, x)
    exact, size = x.double().T @ x.double(), x.double().abs().T @ x.double().abs()
    assert bool(((total - exact).tril().abs() <= 1e-6 * size).all())


def test_the_statistic_is_the_same_with_and_without(on, monkeypatch):
    x = drawn(300, 70)
    with_kernels = Gram.finish(Gram.update(Gram.start((1, 70), x.device), x))
    monkeypatch.setenv("TRIMTAB_KERNELS", "0")
    without = Gram.finish(Gram.update(Gram.start((1, 70), x.device), x))
    assert torch.allclose(with_kernels, without, rtol=1e-5, atol=1e-6)
    assert torch.equal(with_kernels, with_kernels.T)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("queries", "keys", "width", "value_width"),
    [(1, 1, 16, 16), (17, 17, 64, 64), (513, 513, 64, 64), (130, 40, 48, 80), (40, 300, 32, 16), (129, 129, 128, 128)],
)
def test_attention(on, poisoned, queries, keys, width, value_width, causal):
    q, k = heads(2, 6, queries, width, 0), heads(2, 3, keys, width, 1)
    v = heads(2, 3, keys, value_width, 2)
    answer = kernels.attention(q, k, v, is_causal=causal, enable_gqa=True)
    assert answer is not None
    given = [x.double() for x in (q, k, v)]
    exact = F.scaled_dot_product_attention(*given, is_causal=causal, enable_gqa=True)
    size = F.scaled_dot_product_attention(given[0], given[1], given[2].abs(), is_causal=causal, enable_gqa=True)
    # Weights and the result are rounded to bfloat16, half a unit each.
    assert bool(((answer - exact).abs() <= (2**-8 + 1e-5) * size + 2**-8 * exact.abs() + 1e-30).all())
    assert answer.dtype is BFLOAT


def test_large_scores_leave_the_weight_on_one_key(on):
    q = k = 100 * torch.eye(32).to(BFLOAT)[None, None]
    v = heads(1, 1, 32, 16, 3)
    assert torch.equal(kernels.attention(q, k, v, is_causal=True), v)


def test_zero_rows_weigh_all_keys_alike(on):
    zeros = torch.zeros(1, 2, 33, 16, dtype=BFLOAT)
    v = torch.arange(33).to(BFLOAT)[None, None, :, None].repeat(1, 2, 1, 16)
    answer = kernels.attention(zeros, zeros, v, is_causal=True)
    assert torch.equal(answer, (torch.arange(33) / 2).to(BFLOAT)[None, None, :, None].expand(1, 2, 33, 16))


def test_what_does_not_fit_is_declined(on):
    q = heads(1, 2, 8, 16, 0)
    odd, wide = heads(1, 2, 8, 24, 0), q.float()
    assert kernels.attention(q, q, q) is not None
    assert kernels.attention(odd, odd, odd) is None
    assert kernels.attention(wide, wide, wide) is None
    assert kernels.attention(q, q, q, attn_mask=torch.ones(8, 8, dtype=torch.bool)) is None
    assert kernels.attention(q, q, q, dropout_p=0.5) is None
    assert kernels.attention(q, q[:, :1], q[:, :1]) is None  # would need enable_gqa
    assert kernels.attention(q, q.expand(1, 2, 8, 16)[..., ::2], q) is None
    assert kernels.attention(q.clone().requires_grad_(), q, q) is None
    assert not kernels.add_gram(torch.zeros(8, 8), torch.ones(3, 8))


@pytest.mark.parametrize("off", ["0", None])
def test_the_switch(on, monkeypatch, off):
    if off:
        monkeypatch.setenv("TRIMTAB_KERNELS", off)
    q = heads(1, 2, 8, 16, 0)
    assert (kernels.attention(q, q, q) is None) == (off == "0")
    assert kernels.add_gram(torch.zeros(8, 8), drawn(3, 8)) == (off != "0")
    assert kernels.serves_passes() == (off != "0")


def test_a_stream_in_bfloat16_is_answered_by_kernels(on, monkeypatch):
    """And gives what it gave without them, up to rounding; in float32 nothing changes at all."""
    model = tiny("llama")
    anatomy, ids = Anatomy.of(model), tokens(model, batch=2, length=24)
    asked: list[bool] = []
    whole = kernels.attention
    monkeypatch.setattr(kernels, "attention", lambda *a, **k: _noted(asked, whole(*a, **k)))

    def passed(dtype: torch.dtype) -> Tensor:
        stream = Stream(anatomy, [ids], compute=dtype)
        for block in range(len(anatomy.blocks)):
            stream.collect(block, {site: [Gram] for site in anatomy.sites if site.block == block}, advance=True)
        return stream.hidden[0]

    fast, same = passed(BFLOAT), passed(torch.float32)
    answered = list(asked)
    monkeypatch.setenv("TRIMTAB_KERNELS", "0")
    slow = passed(BFLOAT)
    assert answered == [True] * len(anatomy.blocks)
    assert asked == answered
    assert (fast - slow).norm() < 0.02 * slow.norm()
    assert torch.equal(passed(torch.float32), same)


def _noted(asked: list[bool], answer: Tensor | None) -> Tensor | None:
    asked.append(answer is not None)
    return answer


def test_a_run_says_what_ran(on, monkeypatch):
    def said(compute: str) -> list[str]:
        model = tiny("llama")
        shown = Calibration("none", 48, 24, compute=compute)
        return run(model, Recipe.of("gptq(bits=4, group_size=16)", shown, 0), [tokens(model, batch=2, length=24)]).notes

    assert said("bfloat16") == [f"passes in bfloat16: attention and grams by compiled kernels ({on})"]
    assert said("float32") == []
    monkeypatch.setenv("TRIMTAB_KERNELS", "0")
    assert said("bfloat16") == []


def test_other_functions_pass_through(on):
    with CompiledAttention():
        assert torch.equal(F.softmax(torch.zeros(4), 0), torch.full((4,), 0.25))
