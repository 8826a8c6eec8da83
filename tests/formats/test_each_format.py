"""What single formats promise: masks, patterns, codes, planes, stacks, sums, chains, rotations."""

import pytest
import torch
from written_formats import read_bits

from trimtab.core.errors import UsageError
from trimtab.formats import (
    NM,
    BitPlanes,
    Chain,
    Codebook,
    Dense,
    Grouped,
    Lattice,
    Masked,
    Rotated,
    Rotation,
    SignPlanes,
    SignStack,
    Sum,
    build,
    linear,
    low_rank,
)
from trimtab.tensors.hadamard import transform
from trimtab.testing.weights import examples


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def matrix(*size: int) -> torch.Tensor:
    return torch.randn(*size, generator=seeded())


def test_masked_drops_what_is_not_kept_and_keeps_the_mask():
    dense, keep = matrix(5, 9), matrix(5, 9) > 0
    weight = Masked(dense, keep)
    assert torch.equal(weight.keep, keep)
    assert torch.equal(weight.dense(), dense * keep)
    assert weight.bits == 8 * (4 * int(keep.sum()) + 5 * 2) / 45
    poisoned = torch.where(keep, dense, torch.nan)
    assert torch.equal(Masked(poisoned, keep).dense(), dense * keep)


@pytest.mark.parametrize("keep", [torch.zeros(3, 5, dtype=torch.bool), torch.ones(3, 5, dtype=torch.bool)])
def test_masked_extremes(keep):
    weight = Masked(matrix(3, 5), keep)
    assert torch.equal(weight.dense(), matrix(3, 5) * keep)
    assert torch.equal(build(weight.spec(), weight.tensors()).dense(), weight.dense())


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 3), (4, 8), (1, 2), (11, 24)])
def test_nm_holds_what_is_kept(n, m):
    dense = matrix(6, 48)
    keep = torch.zeros(6, 48 // m, m, dtype=torch.bool).scatter(-1, matrix(6, 48 // m, m).topk(n).indices, True)
    keep = keep.view(6, 48)
    weight = NM.of(torch.where(keep, dense, torch.nan), keep, n, m)
    assert torch.equal(weight.keep, keep)
    assert torch.equal(weight.dense(), dense * keep)
    assert int(weight.keep.view(6, -1, m).sum(-1).min()) == n


def test_nm_fills_groups_that_keep_fewer():
    keep = torch.tensor([[True, False, False, False, False, False, False, False]])
    weight = NM.of(torch.full((1, 8), 3.0), keep, 2, 4)
    assert weight.dense().tolist() == [[3, 0, 0, 0, 0, 0, 0, 0]]
    assert weight.keep.view(2, 4).sum(-1).tolist() == [2, 2]
    assert bool((weight.keep >= keep).all())
    assert torch.equal(build(weight.spec(), weight.tensors()).dense(), weight.dense())


def test_grouped_zero_point_is_exactly_zero_and_parts_come_back():
    codes = torch.randint(0, 8, (4, 12), dtype=torch.uint8, generator=seeded())
    zero = torch.randint(0, 8, (4, 3), dtype=torch.uint8, generator=seeded(1))
    scale = matrix(4, 3).half()
    weight = Grouped(codes, scale, zero, 3, 4)
    assert torch.equal(weight.codes, codes)
    assert torch.equal(weight.zero, zero)
    at_zero = codes == zero.repeat_interleave(4, 1)
    assert at_zero.any()
    assert torch.equal(weight.dense() == 0, at_zero)
    assert Grouped(codes, scale, None, 3, 4).zero is None


def test_grouped_codes_may_be_a_transposed_view():
    codes = torch.randint(0, 16, (16, 8), dtype=torch.uint8, generator=seeded()).T
    scale = matrix(2, 8).half().T
    weight = Grouped(codes, scale, None, 4, 8)
    assert torch.equal(weight.codes, codes)
    assert weight.scale.is_contiguous()
    assert torch.equal(weight.scale, scale)


def test_grouped_bits_are_the_formula():
    def bits(symmetric: bool) -> float:
        codes, zero = torch.zeros(4, 128, dtype=torch.uint8), torch.zeros(4, 2, dtype=torch.uint8)
        return Grouped(codes, torch.ones(4, 2).half(), None if symmetric else zero, 3, 64).bits

    assert bits(True) == 3 + 16 / 64
    assert bits(False) == 3 + 16 / 64 + 8 / 128  # two zeros of 3 bits share a byte in each row


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_four_encodings_of_one_uniform_weight(bits):
    codes = torch.randint(0, 2**bits, (6, 32), dtype=torch.uint8, generator=seeded())
    scale = torch.rand(6, 2, generator=seeded()).mul(64).round().div(64).half()  # few bits: every sum is exact
    dense = Grouped(codes, scale, None, bits, 16).dense()
    planes = BitPlanes(codes, scale[..., None] * (2 ** torch.arange(bits)).half(), -scale * 2 ** (bits - 1), 16)
    levels = (torch.arange(2**bits) - 2 ** (bits - 1)).half()
    palette = Codebook(codes[None], levels[None, :, None], scale, 16)
    assert torch.equal(planes.dense(), dense)
    assert torch.equal(palette.dense(), dense)
    assert torch.equal(planes.codes, codes)
    assert torch.equal(palette.codes, codes[None])
    assert torch.equal(Sum((Grouped(codes, scale, None, bits, 16), Masked(-dense, dense != 0))).dense(), 0 * dense)


def test_signs_are_planes_with_an_offset():
    codes = torch.randint(0, 8, (6, 32), dtype=torch.uint8, generator=seeded())
    scale = torch.rand(6, 2, 3, generator=seeded()).mul(64).round().div(64).half()  # few bits: every sum is exact
    signs = SignPlanes(codes, scale, 1, 16)
    assert torch.equal(signs.dense(), BitPlanes(codes, 2 * scale, -scale.sum(-1), 16).dense())
    assert torch.equal(signs.codes, codes)
    assert signs.bits == 3 + 16 * 3 / 16


def test_shifts_may_be_zero():
    codes = torch.tensor([[0, 1, 2, 3]], dtype=torch.uint8)
    shifts = SignPlanes(codes, torch.tensor([[[-2, -128]]], dtype=torch.int8), 1, 4)
    assert shifts.dense().tolist() == [[-0.25, 0.25, -0.25, 0.25]]
    assert shifts.bits == 8 * (2 + 2) / 4


def test_the_beginning_of_a_stack_is_a_smaller_weight():
    whole = next(w for w in examples(17, 33, seeded()) if w.kind == "signstack" and w.blocks == 3)
    first = whole.first(2)
    cut = {name: tensor[:2] for name, tensor in whole.tensors().items()}
    assert torch.equal(build({**whole.spec(), "blocks": 2}, cut).dense(), first.dense())
    assert torch.equal(whole.first(3).dense(), whole.dense())
    assert first.bits == pytest.approx(whole.bits * 2 / 3, rel=1e-12)
    last = SignStack(*(part[2:] for part in unstacked(whole)))
    assert torch.equal(first.dense() + last.dense(), whole.dense())
    for count in (0, 4):
        with pytest.raises(UsageError, match="1 to 3 blocks to take"):
            whole.first(count)


def unstacked(weight):
    planes = [torch.from_numpy(read_bits(signs, 1, weight.shape[1])).bool() for signs in weight.signs]
    return torch.stack(planes), weight.left, weight.right, weight.worth


def test_low_rank_is_the_product_in_the_stored_dtype():
    left, right = matrix(7, 3), matrix(3, 5)
    weight = low_rank(left, right, torch.bfloat16)
    assert torch.equal(weight.dense(), left.bfloat16().float() @ right.bfloat16().float())
    assert weight.bits == 16 * (7 * 3 + 3 * 5) / 35
    with pytest.raises(UsageError, match="left is not finite in float16"):
        low_rank(left * 1e6, right)


def test_more_than_ten_parts_keep_their_tensors_apart():
    parts = tuple(Dense(torch.full((2, 3), 2.0**i)) for i in range(12))
    weight = Sum(parts)
    assert torch.equal(weight.dense(), torch.full((2, 3), 2.0**12 - 1))
    made = build(weight.spec(), weight.tensors())
    assert all(torch.equal(a.dense(), b.dense()) for a, b in zip(made.parts, parts, strict=True))


def test_chain_is_applied_last_factor_first():
    factors = [Dense(matrix(2, 3)), Dense(matrix(3, 4)), Dense(matrix(4, 5))]
    weight = Chain(tuple(factors))
    assert weight.shape == (2, 5)
    assert torch.allclose(linear(matrix(6, 5), weight), matrix(6, 5) @ weight.dense().T, atol=1e-5)


def test_rotated_undoes_its_rotation():
    dense, signs = matrix(6, 24), torch.where(matrix(24) < 0, -1, 1)
    weight = Rotated(Dense(transform(dense, 12, signs)), 12, signs)
    assert torch.allclose(weight.dense(), dense, atol=1e-6)
    assert not torch.allclose(weight.inner.dense(), dense, atol=1e-2)
    assert torch.equal(build(weight.spec(), weight.tensors()).signs, signs.to(torch.int8))


def test_a_chain_of_rotations_turns_both_sides_back():
    dense = matrix(24, 40)
    left, right = torch.where(matrix(24) < 0, -1, 1), torch.where(matrix(40) < 0, -1, 1)
    turned = transform(transform(dense, 40, right).T, 12, left).T
    weight = Chain((Rotation(left, 12), Rotated(Dense(turned), 40, right)))
    assert torch.allclose(weight.dense(), dense, atol=1e-5)
    assert torch.equal(weight.factors[0].signs, left.to(torch.int8))
    assert torch.allclose(weight.factors[0].dense() @ weight.factors[0].dense().T, torch.eye(24), atol=1e-6)
    assert weight.factors[0].bits == 24 / 24**2


def test_lattice_codes_come_back():
    for bits in (1, 2):
        codes = torch.randint(0, 256**bits, (6, 5), generator=seeded())
        weight = Lattice(codes, torch.tensor([0.5]).half(), bits)
        assert torch.equal(weight.codes, codes)
        assert weight.shape == (6, 40)
        assert weight.bits == bits + 16 / 240


def test_gradients_reach_the_activations():
    x = matrix(3, 33).requires_grad_()
    for weight in examples(17, 33, seeded()):
        (gradient,) = torch.autograd.grad(linear(x, weight).sum(), x)
        assert torch.allclose(gradient, weight.dense().sum(0).expand(3, -1), atol=1e-3)
