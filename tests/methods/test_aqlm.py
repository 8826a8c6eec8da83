"""AQLM: better by the gram, by a second codebook and by a wider search; stored to the byte, codebooks included."""

from typing import Any

import pytest
import torch
from torch import Tensor

from trimtab.core.errors import UsageError
from trimtab.core.kinds import Seen
from trimtab.core.places import Role, Site
from trimtab.formats import Codebook, Dense
from trimtab.methods.quantize.aqlm import Aqlm
from trimtab.methods.quantize.gptq import Gptq
from trimtab.stats import Gram

SITE = Site("model.layers.0.mlp.down_proj", Role.DOWN, (192, 96), block=0)


def problem(seed: int, out: int = 192) -> tuple[Tensor, Tensor]:
    """weight [out, 96] and the gram of correlated inputs."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(500, 96, generator=draw) @ (torch.randn(96, 96, generator=draw) / 10 + 0.3 * torch.eye(96))
    return torch.randn(out, 96, generator=draw), x.T @ x / len(x)


def solved(method: Any, weight: Tensor, gram: Tensor) -> Any:
    return method.solve(Dense(weight), Seen({Gram: gram}), SITE)


def error(weight: Tensor, made: Tensor, gram: Tensor) -> float:
    change = (weight - made).double()
    return float((change @ gram.double() * change).sum() / (weight.double() @ gram.double() * weight.double()).sum())


@pytest.mark.parametrize("seed", range(3))
def test_each_part_of_it_lowers_the_output_error(seed: int) -> None:
    weight, gram = problem(seed)
    made = (
        Aqlm(code_bits=6),
        Aqlm(code_bits=6, beam=1),
        Aqlm(code_bits=6, rounds=1),
        Aqlm(code_bits=6, rounds=0),
        Aqlm(books=1, code_bits=6),
    )
    errors = [error(weight, solved(m, weight, gram).dense(), gram) for m in made[:4]]
    assert errors == sorted(errors)
    assert error(weight, solved(made[4], weight, gram).dense(), gram) > errors[0]


@pytest.mark.parametrize("seed", range(3))
def test_below_gptq_at_fewer_bits(seed: int) -> None:
    """1.75 bits of codes and 0.33 of codebooks: the matrix must not be small, or codebooks are dearer than scales."""
    weight, gram = problem(seed, out=1024)
    mine, theirs = solved(Aqlm(code_bits=7), weight, gram), solved(Gptq(bits=2, clip=True, group_size=48), weight, gram)
    assert mine.bits < theirs.bits
    assert error(weight, mine.dense(), gram) < error(weight, theirs.dense(), gram)


@pytest.mark.parametrize(("books", "code_bits", "dim"), [(2, 6, 8), (1, 8, 8), (3, 4, 4), (1, 3, 1)])
def test_stored_bits_are_those_of_codes_rows_and_codebooks(books: int, code_bits: int, dim: int) -> None:
    made = solved(Aqlm(books=books, code_bits=code_bits, dim=dim, rounds=1), *problem(0))
    assert isinstance(made, Codebook)
    assert made.bits == pytest.approx(books * code_bits / dim + 16 / 96 + 16 * books * 2**code_bits * dim / (192 * 96), abs=0.09)


def test_what_it_did_is_in_the_receipt() -> None:
    weight, gram = problem(0)
    seen = Seen({Gram: gram})
    Aqlm(code_bits=4, rounds=3, tolerance=0.0).solve(Dense(weight), seen, SITE)
    assert seen.notes == {"rounds": 3}
    Aqlm(code_bits=4, rounds=30, tolerance=0.5).solve(Dense(weight), seen, SITE)
    assert seen.notes["rounds"] < 5


def test_refused_with_a_reason() -> None:
    with pytest.raises(UsageError, match=r"needs in % dim == 0: a\.b has in=300, dim=8"):
        Aqlm().fits(Site("a.b", Role.Q, (8, 300), block=0))
    weight, gram = problem(0)
    with pytest.raises(ArithmeticError, match="nothing was seen"):
        solved(Aqlm(), weight, 0 * gram)
    with pytest.raises(ArithmeticError, match="exceeds float16"):
        solved(Aqlm(rounds=1), weight * 1e6, gram)
