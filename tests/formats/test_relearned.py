"""What stands for a factored matrix is that matrix, learns by its parts alone, and leaves the format that it came in."""

import pytest
import torch

from trimtab.core.errors import RecipeError, UsageError
from trimtab.core.kinds import LinearWeight
from trimtab.core.places import Role, Site
from trimtab.formats import Chain, Dense, Grouped, Masked, Mpo, Sum, low_rank
from trimtab.formats.relearned import Course, count, learners
from trimtab.tensors.mpo import axes, bonds_for, decomposed

SITE = Site("model.layers.0.mlp.up_proj", "layers.0.mlp.up", Role.UP, (8, 16), 0)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def grouped() -> Grouped:
    codes = torch.randint(0, 16, (8, 16), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return Grouped(codes, torch.full((8, 2), 0.1).half(), None, 4, 8)


def mpo(dtype: torch.dtype) -> Mpo:
    rows, columns = axes((8, 16), 3)
    return Mpo(tuple(c.to(dtype) for c in decomposed(normal(8, 16), rows, columns, bonds_for(rows, columns, 100))))


def made(kind: str, dtype: torch.dtype = torch.float32) -> LinearWeight:
    chain = low_rank(normal(8, 3), normal(3, 16, seed=2), dtype)
    sparse = Masked(normal(8, 16).to(dtype), normal(8, 16, seed=5) > 0)
    return {
        "chain": chain,
        "three": Chain((Dense(normal(8, 3).to(dtype)), Dense(normal(3, 3).to(dtype)), Dense(normal(3, 16).to(dtype)))),
        "mpo": mpo(dtype),
        "mended": Sum((grouped(), chain)),
        "rest": Sum((Dense(normal(8, 16).to(dtype)), chain)),
        "sparse": Sum((sparse, chain)),
        "inside": Sum((mpo(dtype), Chain((Sum((Dense(normal(8, 3).to(dtype)),)), Dense(normal(3, 16).to(dtype)))))),
    }[kind]


FORMS = pytest.mark.parametrize("kind", ["chain", "three", "mpo", "mended", "rest", "sparse", "inside"])


def begun(weight: LinearWeight, rank: int = 0, learn: str = "all", zeros: bool = True):
    generator = torch.Generator().manual_seed(0)
    return learners({SITE: weight}, Course(learn, rank, 16.0, zeros), "recover", generator)[SITE]


@FORMS
@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_at_the_start_it_is_the_matrix_itself(kind, rank, dtype):
    weight = made(kind, dtype)
    learner = begun(weight, rank)
    assert torch.equal(learner.matrix(), weight.dense())
    answer = learner.result()
    assert answer.spec() == weight.spec()
    assert all(torch.equal(now, answer.tensors()[name]) for name, now in weight.tensors().items())


@FORMS
@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_it_leaves_is_what_it_ended_as_in_as_many_bytes(kind, rank, dtype):
    weight = made(kind, dtype)
    learner = begun(weight, rank)
    with torch.no_grad():
        for number, parameter in enumerate(learner.parameters()):
            parameter.add_(0.1 * normal(*parameter.shape, seed=number))
    moved = learner.matrix()
    assert not torch.equal(moved, weight.dense())
    learner.progress = 1.0
    answer = learner.result()
    assert torch.equal(answer.dense(), learner.matrix())
    assert torch.allclose(answer.dense(), moved, atol=0.3)
    assert answer.spec() == weight.spec()
    assert answer.bits == weight.bits


@FORMS
@pytest.mark.parametrize("rank", [0, 2])
def test_gradients_are_those_of_finite_differences(kind, rank):
    learner, aim, step = begun(made(kind), rank), normal(8, 16, seed=9).double(), 2e-3

    def loss() -> torch.Tensor:
        matrix = learner.matrix().double()
        return (matrix.square() * aim).sum() + (matrix * aim).sum()

    with torch.no_grad():
        for number, parameter in enumerate(learner.parameters()):
            parameter.add_(0.1 * normal(*parameter.shape, seed=number))
    loss().backward()
    for number, parameter in enumerate(learner.parameters()):
        along = normal(*parameter.shape, seed=100 + number)
        here, values = parameter.detach().clone(), []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.copy_(here + sign * step * along)
                values.append(float(loss()))
        with torch.no_grad():
            parameter.copy_(here)
        found, whole = float((parameter.grad * along).sum()), float(parameter.grad.norm() * along.norm())
        assert found == pytest.approx((values[0] - values[1]) / (2 * step), abs=1e-3 * whole)


def test_which_factors_learn():
    weight, numbers = made("three"), {"all": 8 * 3 + 9 + 48, "factored": 8 * 3 + 9 + 48, "left": 8 * 3, "right": 48}
    for learn, many in numbers.items():
        learner = begun(weight, learn=learn)
        assert sum(p.numel() for p in learner.parameters()) == many == count({SITE: weight}, Course(learn, 0, 16.0, True))
    learner = begun(weight, learn="left")
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(1.0)
    answer = learner.result()
    assert [torch.equal(n.dense(), b.dense()) for n, b in zip(answer.factors, weight.factors, strict=True)] == [False, True, True]


@FORMS
@pytest.mark.parametrize("rank", [0, 2, 100])
@pytest.mark.parametrize("learn", ["all", "factored", "left", "right"])
def test_as_many_are_counted_as_are_trained(kind, rank, learn):
    weight, course = made(kind), Course(learn, rank, 16.0, True)
    if kind == "mpo" and learn in ("left", "right"):
        with pytest.raises(RecipeError, match="no matrix has factors of that kind"):
            begun(weight, rank, learn)
        return
    assert sum(p.numel() for p in begun(weight, rank, learn).parameters()) == count({SITE: weight}, course)


def test_codes_and_what_is_beside_the_factors_stand_still():
    for kind, learn in (("mended", "all"), ("rest", "factored"), ("sparse", "factored")):
        weight = made(kind)
        learner = begun(weight, learn=learn)
        with torch.no_grad():
            for parameter in learner.parameters():
                parameter.add_(1.0)
        assert learner.result().parts[0] is weight.parts[0]
        assert not torch.equal(learner.result().dense(), weight.dense())


@pytest.mark.parametrize("rank", [0, 2])
def test_what_a_sparse_part_does_not_hold_stays_zero(rank):
    weight = made("sparse")
    learner = begun(weight, rank, zeros=False)
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(1.0)
    part = learner.result().parts[0]
    assert torch.equal(part.bitmap, weight.parts[0].bitmap)
    assert not torch.equal(part.values, weight.parts[0].values)


def test_zeros_of_factors_and_cores_stay():
    left = normal(8, 3).masked_fill(normal(8, 3, seed=4) > 0, 0.0)
    for weight in (low_rank(left, normal(3, 16), torch.float32), Mpo(tuple(c * (c > 0) for c in mpo(torch.float32).cores))):
        learner = begun(weight)
        with torch.no_grad():
            for parameter in learner.parameters():
                parameter.add_(1.0)
        for now, before in zip(learner.result().tensors().values(), weight.tensors().values(), strict=True):
            assert torch.equal(now == 0, before == 0)


def test_what_cannot_learn_is_refused():
    with pytest.raises(
        RecipeError, match=r"recover trains plain and factored matrices, but .* is Grouped; pv_tuning tunes codes"
    ):
        begun(grouped())
    with pytest.raises(RecipeError, match=r"put a step before it: svd\(keep=0.8\) -> recover\(learn='factored'\)"):
        begun(Dense(normal(8, 16)), learn="factored")
    with pytest.raises(RecipeError, match="is Chain; pv_tuning"):
        begun(Chain((grouped(), Grouped(*_square()))))
    learner = begun(low_rank(normal(8, 3), normal(3, 16)))
    with torch.no_grad():
        next(learner.parameters()).fill_(1e6)
    with pytest.raises(UsageError, match="what was learned"):
        learner.result()


def _square():
    return torch.zeros(16, 16, dtype=torch.uint8), torch.ones(16, 2).half(), None, 4, 8
