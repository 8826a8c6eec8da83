"""Values that no file could hold are refused where they are made, in one line."""

import pytest
import torch

from trimtab.core.errors import UsageError
from trimtab.formats import (
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
    Reassembly,
    Rotated,
    Rotation,
    SignPlanes,
    SignStack,
    Sum,
    build,
    check_group_size,
)
from trimtab.formats.registry import DEEPEST


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
    "reassembly": (lambda: Reassembly(torch.tensor([0, 2]), torch.tensor([0, 1])), "every number from 0"),
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
