"""What every format promises: its file decodes to dense(), comes back bit for bit, and is counted to the byte."""

import functools
import itertools
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from trimtab.core.errors import UsageError
from trimtab.core.kinds import LinearWeight
from trimtab.formats import (
    FORMATS,
    NM,
    BitPlanes,
    BlockDiagonal,
    Chain,
    Codebook,
    Dense,
    Grouped,
    Kronecker,
    Lattice,
    Masked,
    Permutation,
    Pyramid,
    Rotated,
    Rotation,
    SignPlanes,
    SignStack,
    Sum,
    build,
    check_group_size,
    is_plain,
    layout,
    linear,
    low_rank,
)
from trimtab.formats.activations import rounds_inputs
from trimtab.formats.registry import DEEPEST
from trimtab.tensors.hadamard import hadamard, transform
from trimtab.testing.weights import examples, rotation, uncompiled


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def matrix(*size: int) -> torch.Tensor:
    return torch.randn(*size, generator=seeded())


ALL = [w for size in ((17, 33), (8, 48), (1, 2), (5, 12)) for w in examples(*size, seeded())]
ALL += [rotation(width, seeded()) for width in (1, 12, 17)]
ALL += uncompiled(17, 33, seeded())
over_all = pytest.mark.parametrize("weight", ALL, ids=[f"{i}-{w.kind}" for i, w in enumerate(ALL)])


def read_bits(packed: torch.Tensor, bits: int, n: int) -> np.ndarray:
    """Codes of each row by numpy's own bit reader: independent of `tensors.packing`."""
    stream = np.unpackbits(packed.numpy(), axis=1, bitorder="little")[:, : n * bits]
    return (stream.reshape(len(packed), n, bits).astype(np.int64) << np.arange(bits)).sum(-1)


def decode(spec: dict, stored: dict[str, torch.Tensor]) -> torch.Tensor:
    """The file format, spelled out weight by weight in float64."""
    return DECODERS[spec["kind"]](spec, stored)


def decode_dense(spec, stored):
    return stored["weight"].double()


def decode_masked(spec, stored):
    keep, values = read_bits(stored["bitmap"], 1, spec["shape"][1]), iter(stored["values"].double().tolist())
    return torch.tensor([[next(values) if k else 0.0 for k in row] for row in keep], dtype=torch.float64)


def decode_nm(spec, stored):
    (out, in_), n, m = spec["shape"], spec["n"], spec["m"]
    positions = read_bits(stored["positions"], math.ceil(math.log2(m)), in_ // m * n)
    full = torch.zeros(out, in_, dtype=torch.float64)
    for o in range(out):
        for i in range(in_ // m * n):
            full[o, i // n * m + positions[o, i]] = stored["values"][o, i].double()
    return full


def decode_grouped(spec, stored):
    (out, in_), bits, size = spec["shape"], spec["bits"], spec["group_size"]
    codes = read_bits(stored["codes"], bits, in_)
    zero = None if spec["symmetric"] else read_bits(stored["zero"], bits, in_ // size)
    full = torch.zeros(out, in_, dtype=torch.float64)
    for o in range(out):
        for i in range(in_):
            centre = 2 ** (bits - 1) if zero is None else zero[o, i // size]
            full[o, i] = (int(codes[o, i]) - int(centre)) * float(stored["scale"][o, i // size])
    return full


def decode_bitplanes(spec, stored):
    (out, in_), size = spec["shape"], spec["group_size"]
    planes = [read_bits(p, 1, in_) for p in stored["planes"]]
    full = torch.zeros(out, in_, dtype=torch.float64)
    for o in range(out):
        for i in range(in_):
            scales = stored["scale"][o, i // size].tolist()
            levels = sum(s * int(p[o, i]) for s, p in zip(scales, planes, strict=True))
            full[o, i] = float(stored["offset"][o, i // size]) + levels
    return full


def decode_signplanes(spec, stored):
    (out, in_), planes = spec["shape"], [read_bits(p, 1, spec["shape"][1]) for p in stored["planes"]]
    scale = 2.0 ** stored["shifts"].double() if spec["shifts"] else stored["scale"].double()
    full = torch.zeros(out, in_, dtype=torch.float64)
    for o in range(out):
        for i in range(in_):
            scales = scale[o // spec["rows"], i // spec["columns"]].tolist()
            full[o, i] = sum(s if p[o, i] else -s for s, p in zip(scales, planes, strict=True))
    return full


def decode_signstack(spec, stored):
    full = torch.zeros(spec["shape"], dtype=torch.float64)
    for signs, left, right in zip(stored["signs"], stored["left"].double(), stored["right"].double(), strict=True):
        full += (1 - 2 * torch.from_numpy(read_bits(signs, 1, spec["shape"][1]))) * (left @ right)
    return full


def decode_codebook(spec, stored):
    (out, in_), dim = spec["shape"], spec["dim"]
    codes = [read_bits(c, math.ceil(math.log2(spec["entries"])), in_ // dim) for c in stored["codes"]]
    full = torch.zeros(out, in_, dtype=torch.float64)
    for o in range(out):
        for i in range(in_):
            entries = [book[c[o, i // dim], i % dim] for book, c in zip(stored["codebook"].double(), codes, strict=True)]
            scale = 1.0 if spec["group_size"] is None else float(stored["scale"][o, i // spec["group_size"]])
            full[o, i] = sum(entries) * scale
    return full


def decode_pyramid(spec, stored):
    """By counting: the vectors before a point are those that leave fewer pulses, then those with a positive coordinate."""
    (out, in_), size, pulses = spec["shape"], spec["group_size"], spec["pulses"]
    bits = (pyramid_points(size, pulses) - 1).bit_length()
    stream = np.unpackbits(stored["points"].numpy(), axis=1, bitorder="little")
    codes = read_bits(stored["codes"], spec["radius_bits"], in_ // size)
    full = torch.zeros(out, in_, dtype=torch.float64)
    for o in range(out):
        for g in range(in_ // size):
            index, left, point = sum(int(b) << i for i, b in enumerate(stream[o, g * bits : (g + 1) * bits])), pulses, []
            for others in range(size - 1, -1, -1):
                for rest in range(left + 1):
                    block = pyramid_points(others, rest) * (1 if rest == left else 2)
                    if index < block:
                        break
                    index -= block
                negative = rest < left and index >= pyramid_points(others, rest)
                index -= pyramid_points(others, rest) * negative
                point.append((rest - left) * (1 if negative else -1))
                left = rest
            length = float(stored["scale"][o]) * float(stored["radii"][codes[o, g]])
            full[o, g * size : (g + 1) * size] = torch.tensor(point).double() / math.hypot(*point) * length
    return full


@functools.cache
def pyramid_points(dim: int, pulses: int) -> int:
    if dim == 0 or pulses == 0:
        return int(pulses == 0)
    return pyramid_points(dim - 1, pulses) + pyramid_points(dim, pulses - 1) + pyramid_points(dim - 1, pulses - 1)


def decode_block_diagonal(spec, stored):
    (out, in_), count = spec["shape"], spec["count"]
    full = torch.zeros(out, in_, dtype=torch.float64)
    for k, block in enumerate(stored["blocks"].double()):
        full[k * out // count : (k + 1) * out // count, k * in_ // count : (k + 1) * in_ // count] = block
    return full


def decode_lattice(spec, stored):
    """From the words of docs/formats.md alone."""
    codes = read_bits(stored["codes"], 8 * spec["bits"], spec["shape"][1] // 8)
    point = {1: lattice_small, 2: lattice_large}[spec["bits"]]
    rows = [[x for code in row for x in point(int(code))] for row in codes]
    return torch.tensor(rows, dtype=torch.float64) * stored["scale"].double()


@functools.cache
def lattice_magnitudes():
    every = sorted(itertools.product((0.5, 1.5, 2.5), repeat=8))
    short = [m for m in every if sum(x * x for x in m) <= 10]
    return short + [m for m in every if m.count(1.5) == 5 and m.count(0.5) == 3][: 256 - len(short)]


def lattice_large(code):
    sizes = lattice_magnitudes()[code % 256]
    signs = [-1 if code >> (8 + i) & 1 else 1 for i in range(7)]
    first = [s * x for s, x in zip(signs, sizes, strict=False)]
    last = next(x for x in (sizes[7], -sizes[7]) if (sum(first) + x) % 2 == 0)
    return [x + (0.25 if code >> 15 else -0.25) for x in [*first, last]]


@functools.cache
def lattice_list():
    halves, whole = (itertools.product(values, repeat=8) for values in ((-0.5, 0.5), (-1.0, 0.0, 1.0)))
    short = [x for x in [*halves, *whole] if sum(x) % 2 == 0 and sum(a * a for a in x) <= 2]
    twice = [tuple(s * (i == j) for j in range(8)) for s, order in ((-2.0, range(8)), (2.0, range(7, -1, -1))) for i in order]
    return sorted(short, key=lambda x: sum(a * a for a in x)) + twice[1:]


def lattice_small(code):
    return lattice_list()[code]


def decode_parts(spec, stored):
    for i, part in enumerate(spec["parts"]):
        yield decode(part, {k[len(f"{i}_") :]: t for k, t in stored.items() if k.startswith(f"{i}_")})


def decode_chain(spec, stored):
    first, *rest = decode_parts(spec, stored)
    for factor in rest:
        first = first @ factor
    return first


def decode_sum(spec, stored):
    return torch.stack(list(decode_parts(spec, stored))).sum(0)


def decode_rotated(spec, stored):
    (inner,), in_ = decode_parts(spec, stored), spec["shape"][1]
    turn = torch.block_diag(*[hadamard(spec["block"])] * (in_ // spec["block"]))
    if spec["signs"]:
        negative = torch.from_numpy(read_bits(stored["signs"][None], 1, in_)[0]).bool()
        turn[negative] *= -1
    return inner @ turn.T


def decode_activations(spec, stored):
    (inner,) = decode_parts(spec, stored)
    return inner


def decode_kronecker(spec, stored):
    product = torch.kron(stored["left"].double(), stored["right"].double())
    return product * stored["scale"].double() if spec["scaled"] else product


def decode_permutation(spec, stored):
    picked = torch.zeros(spec["shape"], dtype=torch.float64)
    picked[torch.arange(spec["shape"][0]), stored["order"].long()] = 1
    return picked


def decode_rotation(spec, stored):
    n = spec["shape"][0]
    negative = torch.from_numpy(read_bits(stored["signs"][None], 1, n)[0]).bool()
    turn = torch.block_diag(*[hadamard(spec["block"])] * (n // spec["block"]))
    turn[negative] *= -1
    return turn


def decode_mpo(spec, stored):
    full, sites = torch.zeros(spec["shape"], dtype=torch.float64), range(len(spec["out"]))
    cores = [stored[f"core_{j}"].double() for j in sites]
    for o, outs in enumerate(itertools.product(*map(range, spec["out"]))):
        for i, ins in enumerate(itertools.product(*map(range, spec["in"]))):
            row = torch.ones(1, dtype=torch.float64)
            for core, a, b in zip(cores, outs, ins, strict=True):
                row = row @ core[:, a, b]
            full[o, i] = row
    return full


def decode_butterfly(spec, stored):
    (out, in_), stacks = spec["shape"], []
    first, middle, last = (stored[name].double() for name in ("first", "middle", "last"))
    half = middle.shape[2]
    for s, levels in enumerate(middle):
        whole = torch.zeros(2 * half, in_, dtype=torch.float64)
        for i in range(in_):
            whole[i // 2 * 2 : i // 2 * 2 + 2, i] = first[s, i]
        for level, pairs in enumerate(levels, 1):
            factor, stride = torch.zeros(2 * half, 2 * half, dtype=torch.float64), 2**level
            for p, pair in enumerate(pairs):
                j = p // stride * 2 * stride + p % stride
                factor[j : j + stride + 1 : stride, j : j + stride + 1 : stride] = pair
            whole = factor @ whole
        rows = range(s * 2 * half, min(out, (s + 1) * 2 * half))
        stacks += [last[o, 0] * whole[o % half] + last[o, 1] * whole[o % half + half] for o in rows]
    return torch.stack(stacks)


DECODERS = {
    "activations": decode_activations,
    "dense": decode_dense,
    "masked": decode_masked,
    "nm": decode_nm,
    "grouped": decode_grouped,
    "bitplanes": decode_bitplanes,
    "signplanes": decode_signplanes,
    "signstack": decode_signstack,
    "codebook": decode_codebook,
    "pyramid": decode_pyramid,
    "block_diagonal": decode_block_diagonal,
    "mpo": decode_mpo,
    "butterfly": decode_butterfly,
    "chain": decode_chain,
    "sum": decode_sum,
    "rotated": decode_rotated,
    "lattice": decode_lattice,
    "permutation": decode_permutation,
    "rotation": decode_rotation,
    "kronecker": decode_kronecker,
}
ONE_ROUNDING = {"dense", "masked", "nm", "grouped", "block_diagonal"}


def test_examples_cover_every_format():
    assert {w.kind for w in ALL} == set(FORMATS)


@over_all
def test_dense_is_what_the_file_says(weight):
    expected, dense = decode(weight.spec(), weight.tensors()), weight.dense()
    assert dense.dtype == torch.float32
    assert tuple(dense.shape) == weight.shape
    if weight.kind in ONE_ROUNDING:
        assert torch.equal(dense, expected.float())
    else:
        assert torch.allclose(dense.double(), expected, rtol=0, atol=3e-6 * float(expected.abs().max()) + 1e-12)


@over_all
def test_round_trip_through_a_file(weight, tmp_path):
    save_file(weight.tensors(), tmp_path / "w.safetensors")
    spec, stored = json.loads(json.dumps(weight.spec())), load_file(tmp_path / "w.safetensors")
    made = build(spec, stored)
    assert type(made) is type(weight)
    assert made.spec() == weight.spec() == spec
    assert torch.equal(made.dense(), weight.dense())
    assert made.tensors().keys() == weight.tensors().keys()
    for name, tensor in weight.tensors().items():
        assert torch.equal(made.tensors()[name], tensor)
        assert made.tensors()[name].dtype == tensor.dtype


@over_all
def test_layout_and_bits_are_those_of_the_tensors(weight, tmp_path):
    stored = weight.tensors()
    assert layout(weight.spec()) == {name: (tuple(t.shape), t.dtype) for name, t in stored.items()}
    assert all(t.is_contiguous() and "." not in name for name, t in stored.items())
    counted = sum(len(t.reshape(-1).view(torch.uint8)) for t in stored.values())
    assert weight.bits == 8 * counted / math.prod(weight.shape)


@over_all
def test_protocol_and_identity(weight):
    assert isinstance(weight, LinearWeight)
    assert weight == weight
    assert weight != build(weight.spec(), weight.tensors())
    assert f"{weight.shape[0]} x {weight.shape[1]}" in repr(weight)
    assert is_plain(weight) == (weight.kind == "dense")
    with pytest.raises(AttributeError):
        weight.shape = (1, 1)


@over_all
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_is_the_product_with_dense(weight, dtype):
    x, bias = matrix(2, 3, weight.shape[1]).to(dtype), matrix(weight.shape[0]).to(dtype)
    y = linear(x, weight, bias)
    if rounds_inputs(weight.spec()):
        pytest.skip("rounds x first: test_activations.py")
    expected = F.linear(x.double(), weight.dense().double(), bias.double())
    size = F.linear(x.double().abs(), weight.dense().double().abs()).max() + 1
    assert y.dtype == dtype
    assert y.shape == (2, 3, weight.shape[0])
    assert torch.allclose(y.double(), expected, rtol=0, atol=float(size) * 16 * torch.finfo(dtype).eps)
    assert torch.equal(y, linear(x, weight, bias))
    assert torch.allclose(linear(x, weight) + bias, y, rtol=0, atol=float(size) * 16 * torch.finfo(dtype).eps)


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
    whole = next(w for w in ALL if w.kind == "signstack" and w.blocks == 3)
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


def test_check_group_size_names_sizes_that_work():
    check_group_size(352, 32, "here")
    with pytest.raises(UsageError, match=r"layers\.3\.down has in=352, group_size=128; use one of 44, 88, 176"):
        check_group_size(352, 128, "layers.3.down")
    for wrong in (0, -1, 353):
        with pytest.raises(UsageError, match="use one of"):
            check_group_size(352, wrong, "here")


CODES = torch.zeros(2, 33, dtype=torch.uint8)
HALF = torch.ones(2, 3).half()
NEGATIVE, WIDE, WORTH = torch.zeros(1, 2, 33, dtype=torch.bool), torch.ones(1, 1, 33).half(), torch.ones(1)
POINTS = torch.ones(2, 33, dtype=torch.int16)
REFUSED = {
    "group size": (lambda: Grouped(CODES, HALF, None, 4, 16), "use one of 3, 11, 33"),
    "plane group size": (lambda: BitPlanes(CODES, HALF[..., None], HALF, 16), "use one of"),
    "codebook group size": (lambda: Codebook(CODES[None], HALF.view(1, 6, 1), HALF, 16), "use one of"),
    "code range": (lambda: Grouped(CODES + 8, HALF, None, 3, 11), "codes go up to 8; with 3 bits the largest is 7"),
    "zero range": (lambda: Grouped(CODES, HALF, HALF.byte() + 8, 3, 11), "zero go up to 9"),
    "bits": (lambda: Grouped(CODES, HALF, None, 1, 11), "bits must be 2 to 8"),
    "scale dtype": (lambda: Grouped(CODES, HALF.float(), None, 3, 11), r"scale must be float16 \[2, 3\], got float32"),
    "scale shape": (lambda: Grouped(CODES, HALF[:1], None, 3, 11), r"scale must be float16 \[2, 3\]"),
    "scale overflow": (lambda: Grouped(CODES, HALF * 65504 * 2, None, 3, 11), "scale is not finite in float16"),
    "codes dtype": (lambda: Grouped(CODES.long(), HALF, None, 3, 11), "codes must be uint8"),
    "empty": (lambda: Dense(torch.zeros(0, 3)), r"must be \[out, in\]"),
    "integers": (lambda: Dense(torch.zeros(2, 3, dtype=torch.int64)), "convert it first"),
    "mask shape": (lambda: Masked(torch.ones(2, 3), torch.ones(2, 4).bool()), "keep must be bool"),
    "mask dtype": (lambda: Masked(torch.ones(2, 3), torch.ones(2, 3)), "keep must be bool"),
    "n of m": (lambda: NM.of(torch.ones(2, 8), torch.ones(2, 8).bool(), 2, 4), "keeps 4 weights; the pattern 2:4 allows 2"),
    "m divides": (lambda: NM.of(torch.ones(2, 33), torch.ones(2, 33).bool(), 2, 4), "in=33, the pattern is 2:4"),
    "n below m": (lambda: NM.of(torch.ones(2, 8), torch.ones(2, 8).bool(), 4, 4), "1 <= n < m"),
    "plane range": (lambda: BitPlanes(CODES + 2, HALF[..., None], HALF, 11), "1 planes hold at most 1"),
    "plane count": (lambda: BitPlanes(CODES, HALF, HALF, 11), "1 to 8 planes"),
    "plane overflow": (lambda: BitPlanes(CODES, HALF[..., None], HALF / 0, 11), "offset is not finite"),
    "sign blocks": (lambda: SignPlanes(CODES, HALF[..., None], 3, 11), "blocks of a 2 x 33 matrix cannot be 3 x 11"),
    "sign scales": (lambda: SignPlanes(CODES, HALF[..., None], 2, 11), r"scale must be float16 \[1, 3, 1\]"),
    "sign range": (lambda: SignPlanes(CODES + 2, HALF[..., None], 1, 11), "1 planes hold at most 1"),
    "sign count": (lambda: SignPlanes(CODES, HALF, 1, 11), "1 to 8 planes"),
    "sign overflow": (lambda: SignPlanes(CODES, HALF[..., None] / 0, 1, 11), "scale is not finite"),
    "shift range": (lambda: SignPlanes(CODES, (64 * HALF[..., None]).to(torch.int8), 1, 11), "shifts must be from -64 to 63"),
    "stack rank": (lambda: SignStack(NEGATIVE, HALF[None, :, :0], HALF[None, :0], WORTH), r"\[blocks, out, 1 to 2\]"),
    "stack blocks": (lambda: SignStack(NEGATIVE.repeat(65, 1, 1), HALF[None, :, :1], HALF[None], WORTH), "1 to 64 blocks"),
    "stack signs": (lambda: SignStack(CODES[None], HALF[None, :, :1], WIDE, WORTH), r"negative must be bool \[1, 2, 33\]"),
    "stack factor": (lambda: SignStack(NEGATIVE, HALF[None, :, :1], WIDE[..., 1:], WORTH), r"right must be float16 \[1, 1, 33\]"),
    "stack worth": (lambda: SignStack(NEGATIVE, HALF[None, :, :1], WIDE, WORTH.repeat(2)), r"worth must be float32 \[1\]"),
    "stack overflow": (lambda: SignStack(NEGATIVE, HALF[None, :, :1] / 0, WIDE, WORTH), "left is not finite"),
    "code entry": (lambda: Codebook(CODES[None] + 6, HALF.view(1, 6, 1)), "goes up to 6; the codebook has 6 entries"),
    "codebook size": (lambda: Codebook(CODES[None], torch.ones(1, 257, 1).half()), "2 to 256 entries"),
    "lone scale": (lambda: Codebook(CODES[None], HALF.view(1, 6, 1), HALF), "belong together"),
    "flat codes": (lambda: Codebook(CODES, HALF.view(1, 6, 1)), "codes must be"),
    "flat blocks": (lambda: BlockDiagonal(HALF), r"blocks must be \[count up to 4096, rows, columns\], got \[2, 3\]"),
    "too many blocks": (lambda: BlockDiagonal(torch.ones(4097, 1, 1)), "count up to 4096"),
    "blocks of integers": (lambda: BlockDiagonal(CODES[None]), "convert it first"),
    "points group size": (lambda: Pyramid(POINTS, CODES[:, :3], HALF[0, :2], HALF[:, 0], 16), "use one of"),
    "points dtype": (lambda: Pyramid(POINTS.int(), CODES[:, :3], HALF[0, :2], HALF[:, 0], 11), "points must be int16"),
    "pulses": (
        lambda: Pyramid(POINTS.clamp(max=1).cumsum(1).short(), CODES[:, :3], HALF[0, :2], HALF[:, 0], 11),
        "must not differ",
    ),
    "no pulses": (lambda: Pyramid(0 * POINTS, CODES[:, :3], HALF[0, :2], HALF[:, 0], 11), "1 to 1024 pulses, got 11 and 0"),
    "radii": (lambda: Pyramid(POINTS, CODES[:, :3], HALF[0], HALF[:, 0], 11), r"2, 4, 8 ... 256 lengths, got \[3\]"),
    "radius code": (
        lambda: Pyramid(POINTS, CODES[:, :3] + 2, HALF[0, :2], HALF[:, 0], 11),
        "codes go up to 2; there are 2 radii",
    ),
    "radius overflow": (lambda: Pyramid(POINTS, CODES[:, :3], HALF[0, :2] / 0, HALF[:, 0], 11), "radii is not finite"),
    "row scale": (lambda: Pyramid(POINTS, CODES[:, :3], HALF[0, :2], HALF[:1, 0], 11), r"scale must be float16 \[2\]"),
    "lattice bits": (lambda: Lattice(CODES.long(), HALF[0, :1], 3), "bits must be 1 or 2, got 3; more bits are a sum"),
    "lattice codes": (lambda: Lattice(CODES, HALF[0, :1], 2), r"codes must be int64 \[2, 33\], got uint8"),
    "lattice range": (lambda: Lattice(CODES.long() + 256, HALF[0, :1], 1), "from 256 to 256; with 1 bits the largest is 255"),
    "lattice below": (lambda: Lattice(CODES.long() - 1, HALF[0, :1], 2), "from -1 to -1"),
    "lattice scale": (lambda: Lattice(CODES.long(), HALF[0, :2], 2), r"scale must be float16 \[1\]"),
    "lattice overflow": (lambda: Lattice(CODES.long(), HALF[0, :1] / 0, 2), "scale is not finite"),
    "factors": (lambda: Chain((Dense(torch.ones(2, 3)), Dense(torch.ones(4, 2)))), "3 inputs take 4 outputs"),
    "no factors": (lambda: Chain(()), "1 to 64 parts, got 0"),
    "parts": (lambda: Sum((Dense(torch.ones(2, 3)), Dense(torch.ones(3, 2)))), "part 1 is 3 x 2, the sum is 2 x 3"),
    "order": (lambda: Permutation(torch.tensor([0, 2, 2])), "every number below n once"),
    "kronecker dtype": (lambda: Kronecker(HALF, HALF.float()), "right must be float16"),
    "kronecker scale": (lambda: Kronecker(HALF, HALF, HALF[0]), r"scale must be float16 \[9\]"),
    "kronecker overflow": (lambda: Kronecker(HALF, HALF / 0), "right is not finite"),
    "block": (lambda: Rotated(Dense(torch.ones(2, 24)), 16), "use 24"),
    "no block": (lambda: Rotated(Dense(torch.ones(2, 33)), 11), "use 1"),
    "signs": (lambda: Rotated(Dense(torch.ones(2, 4)), 4, torch.tensor([1, 0, 1, 1])), r"\+1 and -1"),
    "rotation block": (lambda: Rotation(torch.ones(24), 16), "use 24"),
    "rotation signs": (lambda: Rotation(torch.tensor([1, 0, 1, 1]), 4), r"\+1 and -1"),
    "rotation rank": (lambda: Rotation(torch.ones(2, 2), 2), r"\+1 and -1, got \[2, 2\]"),
    "signs shape": (lambda: Rotated(Dense(torch.ones(2, 4)), 4, torch.ones(3)), r"\[in=4\]"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_constructors_refuse(name):
    call, message = REFUSED[name]
    with pytest.raises(UsageError, match=message):
        call()


def test_what_could_not_be_read_again_is_not_written():
    weight = Dense(torch.ones(2, 4))
    for _ in range(DEEPEST - 1):
        weight = Sum((weight,))
    assert torch.equal(build(weight.spec(), weight.tensors()).dense(), torch.ones(2, 4))
    with pytest.raises(UsageError, match="deeper than"):
        Sum((weight,)).spec()
