"""The file formats, spelled out weight by weight and without the code that writes them."""

import functools
import itertools
import math

import numpy as np
import torch

from trimtab.tensors.hadamard import hadamard


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


def decode_reassembly(spec, stored):
    mixed = torch.zeros(spec["shape"], dtype=torch.float64)
    source, target = (stored[name].tolist() for name in ("source", "target"))
    for one, other in zip(source, target, strict=True):
        mixed[other, one] += 1 / (source.count(one) * target.count(other))
    return mixed


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
    "reassembly": decode_reassembly,
    "rotation": decode_rotation,
    "kronecker": decode_kronecker,
}
