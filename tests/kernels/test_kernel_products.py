"""Kernels agree with `dense()` in float64: all formats, shapes that divide nothing, all instruction sets, all ways to round."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_problems import KINDS, MOST, SHAPES, WORDS, activations_like, problem, truth

from trimtab import kernels
from trimtab.kernels import ACTIVATIONS, linear

EVERY_WAY = pytest.mark.parametrize("activations", ACTIVATIONS)
KINDS_EACH = pytest.mark.parametrize("kind", KINDS)


def check(p, x, bias, activations, instructions, threads=2):
    y = linear(x, p.weight, bias, activations=activations, instructions=instructions, threads=threads)
    off = (y.double() - truth(x, p.weight) - (0 if bias is None else bias.double())).abs()
    room = p.allowed(x, activations) + (0 if bias is None else 1e-6 * bias.abs().double())
    assert y.dtype == x.dtype
    assert bool((off <= room).all()), f"off by {float((off / room).max()):.2f} times what is allowed"


@pytest.fixture
def poisoned(monkeypatch):
    """`torch.empty` hands out NaN, so an output that is never written shows."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **kind: empty(*size, **kind) if kind else torch.full(size, float("nan")))


@EVERY_WAY
@KINDS_EACH
def test_every_shape(kind, activations, instructions, poisoned):
    for number, (out, in_, group_size) in enumerate(SHAPES):
        p = problem(kind, out, in_, group_size, number, zero=number % 2 == 0)
        bias = torch.randn(out, generator=torch.Generator().manual_seed(number)) if number % 3 else None
        for tokens in (1, 2, 7, 13):
            check(p, activations_like(tokens, in_, number), bias, activations, instructions)


@pytest.mark.skipif(not kernels.available(), reason=kernels.describe())
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_shape(data):
    group_size = data.draw(st.one_of(st.integers(1, 80), st.sampled_from([32, 64, 128, 256, 300])))
    in_ = group_size * data.draw(st.integers(1, 6))
    out, tokens = data.draw(st.integers(1, 50)), data.draw(st.integers(1, 20))
    p = problem(data.draw(st.sampled_from(KINDS)), out, in_, group_size, data.draw(st.integers(0, 99)), data.draw(st.booleans()))
    x = activations_like(tokens, in_, data.draw(st.integers(0, 99)))
    instructions = data.draw(st.sampled_from(kernels.instruction_sets()))
    check(p, x, None, data.draw(st.sampled_from(list(ACTIVATIONS))), instructions, data.draw(st.integers(1, 3)))


@KINDS_EACH
def test_one_hot_inputs_give_the_columns_of_the_matrix(kind, instructions):
    p = problem(kind, 19, 96, 48)
    dense, hot = p.weight.dense(), torch.eye(96)
    assert torch.equal(linear(hot, p.weight, activations="float32", instructions=instructions).T, dense)
    for activations in MOST:
        one = linear(hot, p.weight, activations=activations, instructions=instructions).T
        assert bool(((one - dense).abs() <= 1e-6 * p.sizes).all())


@KINDS_EACH
def test_equal_magnitudes_are_not_rounded(kind, instructions):
    p = problem(kind, 33, 128, 32)
    x = torch.where(torch.rand(5, 128, generator=torch.Generator().manual_seed(0)) < 0.5, -3e4, 3e4)
    for activations in MOST:
        y = linear(x, p.weight, activations=activations, instructions=instructions)
        assert bool(((y.double() - truth(x, p.weight)).abs() <= 1e-6 * (x.abs().double() @ p.sizes.T)).all())


@EVERY_WAY
def test_the_largest_codes_and_activations_do_not_overflow(activations, instructions):
    from trimtab.formats import Grouped

    for bits in range(2, 9):
        codes = torch.full((16, 256), 2**bits - 1, dtype=torch.uint8)
        weight = Grouped(codes, torch.ones(16, 1).half(), torch.zeros(16, 1, dtype=torch.uint8), bits, 256)
        y = linear(torch.ones(3, 256), weight, activations=activations, instructions=instructions)
        assert torch.allclose(y, torch.full((3, 16), 256.0 * (2**bits - 1)), rtol=1e-6)
        assert torch.equal(linear(-torch.ones(3, 256), weight, activations=activations, instructions=instructions), -y)


@EVERY_WAY
@KINDS_EACH
def test_silent_inputs_give_the_bias(kind, activations, instructions):
    p, bias = problem(kind, 21, 64, 32), torch.linspace(-2, 2, 21)
    y = linear(torch.zeros(3, 64), p.weight, bias, activations=activations, instructions=instructions)
    assert torch.equal(y, bias.expand(3, -1))


@EVERY_WAY
@pytest.mark.parametrize("kind", WORDS)
def test_groups_without_a_scale_and_codes_at_the_zero_point_are_nothing(kind, activations, instructions):
    from trimtab.formats import Grouped

    bits, zero = int(kind[-1]), torch.full((8, 4), 3, dtype=torch.uint8)
    codes, scale = torch.full((8, 128), 3, dtype=torch.uint8), torch.rand(8, 4, generator=torch.Generator().manual_seed(0)).half()
    scale[:, 1] = 0
    codes[:, 32:64] = 1
    y = linear(
        activations_like(4, 128), Grouped(codes, scale, zero, bits, 32), activations=activations, instructions=instructions
    )
    assert bool((y.abs() <= 1e-3 if activations != "float32" else y == 0).all())


@pytest.mark.parametrize("activations", MOST)
def test_what_is_not_finite_spoils_its_token_and_no_other(activations, instructions):
    p, x = problem("grouped4", 20, 128, 32), activations_like(5, 128)
    clean = linear(x, p.weight, activations=activations, instructions=instructions)
    x[1, 40], x[3, 127] = float("nan"), float("-inf")
    y = linear(x, p.weight, activations=activations, instructions=instructions)
    assert bool(y[[1, 3]].isnan().all())
    assert torch.equal(y[[0, 2, 4]], clean[[0, 2, 4]])


@pytest.mark.parametrize("size", [1e-38, 1e-25, 1e25, 1e35])
def test_activations_of_any_size(size, instructions):
    weight = problem("grouped3", 17, 64, 32).weight
    x = torch.rand(2, 64, generator=torch.Generator().manual_seed(1)).clamp(max=0.99) * size
    y = linear(x, weight, activations="int16", instructions=instructions)
    assert bool(((y.double() - truth(x, weight)).abs() <= 1e-3 * size * 64 + 1e-27).all())


@EVERY_WAY
@KINDS_EACH
def test_a_token_alone_gives_the_same_bits_as_among_others(kind, activations, instructions):
    p, x = problem(kind, 37, 192, 96), activations_like(23, 192)
    options = {"activations": activations, "instructions": instructions}
    alone = torch.cat([linear(row[None], p.weight, threads=1, **options) for row in x])
    assert torch.equal(linear(x, p.weight, threads=2, **options), alone)


@EVERY_WAY
@KINDS_EACH
def test_avx2_and_avx512_give_the_same_bits(kind, activations):
    if not {"avx2", "avx512"} <= {*kernels.instruction_sets()}:
        pytest.skip("needs a processor with both")
    for out, in_, group_size in SHAPES:
        p, x = problem(kind, out, in_, group_size), activations_like(3, in_)
        small, large = (linear(x, p.weight, activations=activations, instructions=name) for name in ("avx2", "avx512"))
        assert torch.equal(small, large)


@pytest.mark.parametrize("tokens", [2, 8, 9, 64, 131, 300])
def test_activations_in_bfloat16_are_not_rounded(tokens, instructions):
    """Where there is an instruction for them, products of bfloat16 come from it: the same sums in the same order."""
    for out, in_, group_size in [*SHAPES, (70, 1030, 1030)]:
        p, x = problem("bfloat16", out, in_, group_size), activations_like(tokens, in_).bfloat16().float()
        y = linear(x, p.weight, activations="float32", instructions=instructions, threads=2)
        assert bool(((y.double() - truth(x, p.weight)).abs() <= p.allowed(x, "float32")).all())
        few = [0, tokens // 2, tokens - 1]
        alone = torch.cat([linear(x[t : t + 1], p.weight, activations="float32", instructions=instructions) for t in few])
        assert torch.equal(y[few], alone)
        x[-1, -1] += 2.0**-20  # no bfloat16 number: now all tokens go the other way
        assert torch.equal(linear(x, p.weight, activations="float32", instructions=instructions)[:-1], y[:-1])


@pytest.mark.parametrize("tokens", [255, 257, 520])
def test_more_tokens_and_columns_than_are_taken_at_once(tokens, instructions):
    if instructions == "scalar":
        pytest.skip("slow, and takes the same way")
    for kind in ("grouped4", "planes2"):
        p, x = problem(kind, 130, 600, 60), activations_like(tokens, 600)
        y = linear(x, p.weight, instructions=instructions, threads=2)
        few = [0, 254, tokens - 1]
        alone = torch.cat([linear(x[t : t + 1], p.weight, instructions=instructions) for t in few])
        assert torch.equal(y[few], alone)
        assert bool(((y.double() - truth(x, p.weight)).abs() <= p.allowed(x, "int16")).all())
