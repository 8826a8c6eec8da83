"""ARMOR: never worse than its start, every group that is renewed is the best there is, and what is stored is what was fitted."""

from itertools import combinations, pairwise

import pytest
import torch
from torch import Tensor

from trimtab.core.kinds import Seen
from trimtab.core.registry import get
from trimtab.core.seeds import Seeds
from trimtab.formats import NM, BlockDiagonal, Chain, Dense
from trimtab.methods.prune.armor import Fitting
from trimtab.stats import InputNorm
from trimtab.tensors.blocks import from_left, from_right, identity, largest_width
from trimtab.tensors.masks import Pattern
from trimtab.testing.problems import Layer, layer, seen, solve


def answered(problem: Layer, **knobs) -> tuple[Chain, list[float]]:
    method = get("armor")(**knobs)
    shown: Seen = seen(method, problem)
    return method.solve(Dense(problem.weight), shown, problem.site), shown.notes["loss"]


def proxy(problem: Layer, weight: Chain) -> float:
    """The loss over that of nothing, from the matrix that is stored."""
    dense = problem.weight.double()
    columns = dense.norm(dim=0)
    rows = (dense / columns).norm(dim=1, keepdim=True)
    loud = problem.x.double().square().mean(0)
    change = (weight.dense().double() - dense) / columns / rows
    return float((change.square() @ loud).sum() / ((dense / columns / rows).square() @ loud).sum())


def fitting(pattern: str = "2:4", seed: int = 0) -> Fitting:
    """Somewhere on the way: neither side is an identity any more."""
    draw, problem = Seeds(seed).at("armor"), layer(24, 32)
    loud = seen(get("armor")(), problem)[InputNorm].square()
    made = Fitting(problem.weight, loud, Pattern.parse(pattern), (8, 16))
    made.left, made.right = (t + 0.3 * torch.randn(t.shape, generator=draw) for t in (made.left, made.right))
    return made


def loss(of: Fitting, core: Tensor) -> float:
    rest = torch.block_diag(*of.left).double() @ core.double() @ torch.block_diag(*of.right).double() - of.target.double()
    return float((rest.square() @ of.loud.double()).sum())


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "1:4"])
def test_it_is_never_above_its_start(pattern: str) -> None:
    problem = layer()
    before = answered(problem, pattern=pattern, iterations=0)[1]
    assert before[0] == before[1]
    for iterations, rate in ((1, 1e-3), (20, 3e-3), (20, 1.0)):
        start, least = answered(problem, pattern=pattern, iterations=iterations, rate=rate)[1]
        assert start == before[0]
        assert least <= start
    assert answered(problem, pattern=pattern, iterations=40)[1][1] < 0.5 * before[0]


def test_what_is_stored_is_what_was_fitted() -> None:
    problem = layer()
    for iterations in (0, 30):
        answer, (_, least) = answered(problem, iterations=iterations)
        assert proxy(problem, answer) == pytest.approx(least, rel=1e-3)
        left, core, right = answer.factors
        assert isinstance(core, NM)
        assert (core.n, core.m) == (2, 4)
        assert isinstance(left, BlockDiagonal)
        assert [f.shape for f in (left, core, right)] == [(24, 24), (24, 128), (128, 128)]
        assert right.blocks.shape == (4, 32, 32)


def test_its_start_keeps_what_is_largest_and_loud() -> None:
    problem = layer()
    answer, _ = answered(problem, iterations=0)
    dense = answer.dense()
    kept = dense != 0
    assert torch.allclose(dense[kept], problem.weight[kept], rtol=1e-4)
    columns = problem.weight.norm(dim=0)
    rows = (problem.weight / columns).norm(dim=1, keepdim=True)
    score = (problem.weight / columns / rows).square() * problem.x.square().mean(0)
    assert torch.equal(kept.view(-1, 4).int().sum(1), torch.full((24 * 32,), 2))
    assert torch.equal(kept.view(-1, 4), score.view(-1, 4) >= score.view(-1, 4).topk(2, 1).values[:, 1:])


def test_a_matrix_of_that_pattern_is_kept() -> None:
    problem = layer()
    sparse = solve(get("wanda")(pattern="2:4"), problem).dense()
    assert answered(Layer(sparse, problem.x))[1] == [0.0, 0.0]
    assert torch.allclose(answered(Layer(sparse, problem.x))[0].dense(), sparse, atol=1e-5)


@pytest.mark.parametrize("pattern", ["2:4", "4:8"])
def test_a_renewed_group_is_the_best_of_all_supports(pattern: str) -> None:
    """Against least squares on every support, in float64; groups that were not drawn stay."""
    made = fitting(pattern)
    n, m = map(int, pattern.split(":"))
    before = made.core.clone()
    made._renew(gradient(made), Seeds(0).at("draw"))
    changed = {(int(r), int(c) // m) for r, c in (made.core != before).nonzero()}
    assert 1 <= len(changed) <= 3 * 2  # one for each pair of blocks
    for row, group in changed:
        here = slice(group * m, group * m + m)
        found = loss(made, made.core)
        for support in combinations(range(m), n):
            other = made.core.double().clone()
            other[row, here] = 0
            other[row, [group * m + i for i in support]] = least_squares(made, other, row, [group * m + i for i in support])
            assert found <= loss(made, other) * (1 + 1e-5)
        assert int((made.core[row, here] != 0).sum()) <= n


def gradient(of: Fitting) -> Tensor:
    rest = from_left(of.left, from_right(of.core, of.right)) - of.target
    return from_right(from_left(of.left.mT, rest * of.loud), of.right.mT)


def least_squares(of: Fitting, core: Tensor, row: int, columns: list[int]) -> Tensor:
    left, right = (torch.block_diag(*t).double() for t in (of.left, of.right))
    root = of.loud.double().sqrt()
    rest = ((of.target.double() - left @ core @ right) * root).flatten()
    basis = torch.stack([(left[:, row, None] * right[column] * root).flatten() for column in columns], 1)
    return torch.linalg.lstsq(basis, rest[:, None]).solution[:, 0]


def test_the_core_alone_never_loses() -> None:
    made, draw = fitting(), Seeds(0).at("draw")
    losses = [loss(made, made.core)]
    for _ in range(30):
        made._renew(gradient(made), draw)
        losses.append(loss(made, made.core))
    assert all(after <= before * (1 + 1e-6) for before, after in pairwise(losses))
    assert losses[-1] < 0.9 * losses[0]


def test_gradients_are_those_of_the_loss() -> None:
    made = fitting()
    tensors = [t.double().requires_grad_() for t in (made.left, made.core, made.right)]
    rest = torch.block_diag(*tensors[0]) @ tensors[1] @ torch.block_diag(*tensors[2]) - made.target.double()
    (rest.square() @ made.loud.double()).sum().backward()
    alive, before = made.core != 0, made.core.clone()
    _, found = made._look(Seeds(0).at("draw"))
    assert torch.allclose(2 * found[0].double(), tensors[0].grad, rtol=1e-3, atol=1e-3)
    assert torch.allclose(2 * found[2].double(), tensors[2].grad, rtol=1e-3, atol=1e-3)
    same = (made.core == before) & alive
    assert torch.allclose(2 * found[1].double()[same], tensors[1].grad[same], rtol=1e-3, atol=1e-3)
    assert not found[1][~same].any()


@pytest.mark.parametrize(
    ("width", "most", "multiple", "expected"), [(24, 32, 1, 24), (97, 32, 1, 1), (576, 32, 4, 32), (20, 16, 4, 4)]
)
def test_blocks_tile(width: int, most: int, multiple: int, expected: int) -> None:
    assert largest_width(width, most, multiple) == expected
    assert torch.equal(torch.block_diag(*identity(width, expected, torch.ones(1))), torch.eye(width))


@pytest.mark.parametrize("pattern", ["unstructured", "8:16", "4:2"])
def test_cores_of_other_patterns_are_refused(pattern: str) -> None:
    with pytest.raises(Exception, match="armor: pattern"):
        get("armor")(pattern=pattern)
