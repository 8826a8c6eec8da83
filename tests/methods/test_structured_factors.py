"""Matrix product operators and butterflies: what would save nothing stays as it is and says so; what saves keeps its budget."""

import pytest
import torch

from trimtab.core.kinds import LinearWeight, Seen
from trimtab.core.recipe import Recipe
from trimtab.core.registry import get
from trimtab.formats import Dense, Mpo, Sum
from trimtab.formats.butterfly import LARGEST
from trimtab.tensors import butterfly, mpo
from trimtab.testing.problems import Layer, layer, seen
from trimtab.testing.roundtrip import logits, ran
from trimtab.testing.tiny import tiny

STRUCTURED = ["compactifai", "butterfly"]


def tried(method: str, problem: Layer, keep: float) -> tuple[Dense, LinearWeight, Seen]:
    made, weight = get(method)(keep=keep), Dense(problem.weight)
    told = seen(made, problem)
    answer = made.solve(weight, told, problem.site)
    assert made.promises(problem.site, weight.spec()) == answer.spec()
    return weight, answer, told


def held(weight: LinearWeight) -> int:
    return sum(tensor.numel() for tensor in weight.tensors().values())


def stays(method: str, shape: tuple[int, int], keep: float) -> None:
    weight, answer, told = tried(method, layer(*shape), keep)
    assert answer is weight
    assert told.notes["kept"].startswith("dense: ")
    assert "as many parameters" in told.notes["kept"]


@pytest.mark.parametrize("method", STRUCTURED)
@pytest.mark.parametrize("shape", [(24, 128), (128, 24), (64, 64)])
def test_all_parameters_are_beyond_the_break_even(method: str, shape: tuple[int, int]) -> None:
    stays(method, shape, keep=1.0)


@pytest.mark.parametrize("keep", [0.01, 0.5, 0.99])
@pytest.mark.parametrize(
    ("method", "shape"),
    [
        *(("compactifai", shape) for shape in ((1, 7), (7, 1), (2, 3), (2, 2), (1, 1))),
        *(("butterfly", shape) for shape in ((1, 64), (64, 1), (4, 8), (5, 8), (17, 33))),
    ],
)
def test_layers_too_small_to_factor_stay(method: str, shape: tuple[int, int], keep: float) -> None:
    """The least of either structure, bonds of 1 or one butterfly, holds as much as these matrices."""
    stays(method, shape, keep)
    rows, columns = mpo.axes(shape, get("compactifai")().sites)
    least = mpo.numbers(rows, columns, mpo.bonds(rows, columns, 1)) if method == "compactifai" else butterfly.numbers(shape)
    assert least >= shape[0] * shape[1]


@pytest.mark.parametrize("method", STRUCTURED)
@pytest.mark.parametrize("shape", [(24, 128), (64, 64), (96, 80)])
def test_below_the_break_even_a_matrix_is_factored_and_holds_less(method: str, shape: tuple[int, int]) -> None:
    for keep in (0.6, 0.99):
        _, answer, told = tried(method, layer(*shape), keep)
        assert isinstance(answer, Mpo if method == "compactifai" else Sum)
        assert held(answer) <= keep * shape[0] * shape[1]
        assert "kept" not in told.notes


@pytest.mark.parametrize("keep", [0.01, 0.3])
def test_one_butterfly_is_taken_where_it_saves_though_the_budget_is_smaller(keep: float) -> None:
    """As one rank is: less than the matrix, more than was asked for."""
    _, answer, _ = tried("butterfly", layer(24, 128), keep)
    assert isinstance(answer, Sum)
    assert len(answer.parts) == 1
    assert keep * 24 * 128 < held(answer) < 24 * 128


def test_more_inputs_than_a_butterfly_can_have_stay() -> None:
    made = get("butterfly")(keep=0.5)
    weight = Dense(torch.zeros(512, LARGEST + 1))
    problem, told = Layer(weight.weight, torch.zeros(1, 1)), Seen({})
    assert made.solve(weight, told, problem.site) is weight
    assert "dense" in told.notes["kept"]


@pytest.mark.parametrize("method", STRUCTURED)
def test_every_receipt_says_it_where_a_whole_model_stays(method: str) -> None:
    model, bench = ran("llama", Recipe.of(f"{method}(keep=1.0)"))
    assert bench.receipts
    assert all(receipt.notes["kept"].startswith("dense: ") for receipt in bench.receipts)
    assert all(receipt.bits_after == receipt.bits_before for receipt in bench.receipts)
    assert torch.equal(logits(model), logits(tiny("llama")))
