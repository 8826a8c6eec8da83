"""SVD and its kin, and LQER: what they minimize is minimal, and what they cost is what they say."""

import pytest
import torch

from trimtab.anatomy import Anatomy
from trimtab.core.kinds import Seen
from trimtab.core.places import Role
from trimtab.core.recipe import Recipe
from trimtab.core.registry import get
from trimtab.formats import Dense, Sum
from trimtab.methods.factorize.saes_svd import best_share
from trimtab.stats import AbsMean, Drift, Gram
from trimtab.tensors.lowrank import truncated
from trimtab.tensors.spd import cholesky
from trimtab.testing.problems import Layer, given, layer, seen, solve
from trimtab.testing.roundtrip import logits, ran, reopened, shown
from trimtab.testing.tiny import tiny

FACTORED = ["svd", "svd_llm", "asvd", "saes_svd", "lord"]


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("method", FACTORED)
def test_keep_counts_parameters(method: str, keep: float) -> None:
    answer = solve(get(method)(keep=keep), layer())
    held = sum(t.numel() for t in answer.tensors().values())
    assert held <= keep * 24 * 128
    assert held > keep * 24 * 128 - (24 + 128)


def test_svd_is_the_closest_matrix() -> None:
    problem = layer()
    answer = solve(get("svd")(keep=0.5), problem)
    rank = answer.factors[0].shape[1]
    energy = torch.linalg.svdvals(problem.weight.double()).square()
    error = (answer.dense() - problem.weight).double().square().sum()
    assert float(error) == pytest.approx(float(energy[rank:].sum()), rel=1e-4)


def test_svd_llm_is_the_closest_output() -> None:
    """Its error is the dropped energy of W L, and no truncation of the same rank that we know does better."""
    problem = layer()
    answer = solve(get("svd_llm")(keep=0.5, damping=0.0), problem)
    rank = answer.factors[0].shape[1]
    energy = torch.linalg.svdvals(problem.weight.double() @ problem.x.double().T).square()
    assert problem.error(answer) == pytest.approx(float(energy[rank:].sum() / energy.sum()), rel=1e-3)
    assert problem.error(answer) < 0.8 * problem.error(solve(get("svd")(keep=0.5), problem))


@pytest.mark.parametrize("damping", [1e-4, 0.1])
def test_the_left_factor_of_svd_llm_is_the_best_one_beside_the_right(damping: float) -> None:
    """What its authors set anew for the inputs of the compressed prefix is what comes out at once for those."""
    problem = layer()
    left, right = (f.dense().double() for f in solve(get("svd_llm")(keep=0.5, damping=damping), problem).factors)
    gram = problem.x.double().T @ problem.x.double() / len(problem.x)
    root, _ = cholesky(gram.float(), damping)
    seen_by_right = right @ root.double() @ root.double().T
    updated = torch.linalg.solve(seen_by_right @ right.T, seen_by_right @ problem.weight.double().T).T
    assert torch.allclose(updated, left, rtol=1e-3, atol=1e-3 * float(left.abs().max()))


def test_lqer_of_full_rank_restores_and_of_more_rank_is_better() -> None:
    problem = layer()
    coarse = given(get("lqer")(), problem)
    errors = [problem.error(solve(get("lqer")(rank=r), problem, coarse)) for r in (1, 4, 24, 1000)]
    assert errors[0] < problem.error(coarse)
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 1e-6
    assert errors[3] == errors[2]


def test_lqer_keeps_what_it_mends() -> None:
    problem = layer()
    coarse = given(get("lqer")(), problem)
    answer = solve(get("lqer")(rank=4), problem, coarse)
    assert isinstance(answer, Sum)
    assert answer.parts[0] is coarse
    assert answer.bits == pytest.approx(coarse.bits + 16 * 4 * (24 + 128) / (24 * 128))


def test_lqer_scales_by_the_inputs() -> None:
    """Of two equal errors the one under the loud input is mended first."""
    weight, x = torch.zeros(8, 16), torch.ones(32, 16) * 0.1
    x[:, 3] = 10
    weight[0, 2], weight[1, 3] = 1.0, 1.0
    answer = solve(get("lqer")(rank=1), Layer(weight, x), Dense(torch.zeros(8, 16)))
    assert answer.dense()[1, 3] == pytest.approx(1, abs=1e-3)
    assert answer.dense()[0, 2] == pytest.approx(0, abs=1e-3)


def test_a_dropped_singular_value_costs_its_square_to_six_digits() -> None:
    """||(W - W') X||^2 over the tokens that made the gram is the tail's energy: SVD-LLM's identity, and so for every rank."""
    problem = layer()
    x, weight = problem.x.double(), problem.weight.double()
    root, used = cholesky(x.T @ x / len(x), 0.0)
    assert used == 0
    energy = torch.linalg.svdvals(weight @ root).square()
    for rank in (1, 5, 12, 23):
        found = truncated(problem.weight, rank, root)
        change = weight - found.left.double() @ found.right.double()
        assert float((change @ x.T).square().sum()) / len(x) == pytest.approx(float(energy[rank:].sum()), rel=1e-6)
        assert found.dropped == pytest.approx(float(energy[rank:].sum()), rel=1e-9)


@pytest.mark.parametrize("method", FACTORED)
def test_beyond_the_break_even_a_matrix_stays(method: str) -> None:
    """At keep=1, and where one rank is as large as the matrix; the receipt says so."""
    for problem, keep in ((layer(), 1.0), (layer(1, 64), 0.5)):
        made, weight = get(method)(keep=keep), Dense(problem.weight)
        shown = seen(made, problem)
        assert made.solve(weight, shown, problem.site) is weight
        assert "dense" in shown.notes["kept"]
        assert made.promises(problem.site, weight.spec()) == weight.spec()


def test_asvd_by_its_formula() -> None:
    problem = layer()
    scale = problem.x.abs().mean(0).double() ** 0.5
    u, s, vt = torch.linalg.svd(problem.weight.double() * scale, full_matrices=False)
    answer = solve(get("asvd")(keep=0.5), problem)
    rank = answer.factors[0].shape[1]
    assert torch.allclose(answer.dense().double(), (u[:, :rank] * s[:rank]) @ vt[:rank] / scale, atol=1e-4)
    plain = solve(get("svd")(keep=0.5), problem)
    assert torch.allclose(solve(get("asvd")(keep=0.5, power=0.0), problem).dense(), plain.dense(), atol=1e-5)
    assert problem.error(solve(get("svd_llm")(keep=0.5), problem)) < problem.error(answer) < problem.error(plain)


def drifted(problem: Layer, size: float) -> tuple[torch.Tensor, Seen]:
    """The untouched model's inputs [tokens, in], and what a method is told of them."""
    draw = torch.Generator().manual_seed(0)
    original = problem.x + size * torch.randn(problem.x.shape, generator=draw) * problem.x.std(0)
    gram = problem.x.T @ problem.x / len(problem.x)
    drift = (original - problem.x).T @ problem.x / len(problem.x)
    return original, Seen({Gram: gram, Drift: drift, AbsMean: problem.x.abs().mean(0)})


@pytest.mark.parametrize("adapt", [True, False])
def test_saes_svd_that_may_not_look_at_the_drift_is_svd_llm(adapt: bool) -> None:
    problem = layer()
    _, shown = drifted(problem, 0.3)
    weight = Dense(problem.weight)
    ours = get("saes_svd")(keep=0.5, most=0.0, adapt=adapt).solve(weight, shown, problem.site)
    theirs = get("svd_llm")(keep=0.5).solve(weight, shown, problem.site)
    assert torch.equal(ours.dense(), theirs.dense())


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_saes_svd_minimizes_what_it_says(share: float) -> None:
    """||W' X - W X||^2 + a ||W' X - W X°||^2, a = b / (1 - b): below SVD-LLM's, and the closest of its rank to its target."""
    problem = layer()
    original, shown = drifted(problem, 0.3)
    weight = Dense(problem.weight)
    a = share / (1 - share)

    def objective(answer) -> float:
        x, untouched = problem.x.double(), original.double()
        out, w = answer.dense().double() @ x.T, problem.weight.double()
        return float((out - w @ x.T).square().sum() + a * (out - w @ untouched.T).square().sum())

    ours = get("saes_svd")(keep=0.5, most=share, adapt=False, damping=0.0).solve(weight, shown, problem.site)
    theirs = get("svd_llm")(keep=0.5, damping=0.0).solve(weight, shown, problem.site)
    assert objective(ours) < 0.999 * objective(theirs)
    rank = ours.factors[0].shape[1]
    x = problem.x.double()
    aim = problem.weight.double() @ (x + share * (original.double() - x)).T
    basis = torch.linalg.qr(x)[0]
    inside = aim @ basis  # what inputs x can reach
    least = torch.linalg.svdvals(inside)[rank:].square().sum() + (aim - inside @ basis.T).square().sum()
    assert float((ours.dense().double() @ x.T - aim).square().sum()) == pytest.approx(float(least), rel=1e-3)


def test_the_chosen_share_loses_least_of_the_energy() -> None:
    """With the directions that it was chosen for, against a grid."""
    draw = torch.Generator().manual_seed(1)
    still, moved = (torch.randn(12, 20, generator=draw, dtype=torch.float64) for _ in range(2))
    found = best_share(still, moved, 4, 0.9)

    def kept(b: float, among: float) -> float:
        basis = torch.linalg.svd(still + among * moved, full_matrices=False)[0][:, :4]
        there = still + b * moved
        return float((basis.T @ there).square().sum() / there.square().sum())

    grid = [i * 0.9 / 300 for i in range(301)]
    first = max(grid, key=lambda b: kept(b, 0.0))
    second = max(grid, key=lambda b: kept(b, first))
    assert kept(found, first) == pytest.approx(kept(second, first), rel=1e-4)
    assert best_share(still, 0 * moved, 4, 0.9) in (0.0, 0.9)


@pytest.mark.parametrize("method", FACTORED)
def test_ranks_are_multiples_where_they_can_be(method: str) -> None:
    problem = layer()
    for multiple, keep, rank in ((1, 0.9, 18), (8, 0.9, 16), (16, 0.9, 16), (32, 0.9, 18)):
        assert solve(get(method)(keep=keep, multiple=multiple), problem).factors[0].shape == (24, rank)


def off_centre() -> Layer:
    """Inputs whose mean is as large as what varies."""
    problem = layer()
    return Layer(problem.weight, problem.x + problem.x.std(0) * torch.linspace(-1, 1, problem.x.shape[1]))


def test_lord_about_zero_is_svd_llm() -> None:
    problem = off_centre()
    ours = solve(get("lord")(keep=0.5, centred=False, damping=0.0), problem)
    theirs = solve(get("svd_llm")(keep=0.5, damping=0.0), problem)
    torch.testing.assert_close(ours.dense(), theirs.dense(), rtol=1e-3, atol=1e-4)


def test_lord_leaves_the_mean_alone_and_the_least_of_the_rest() -> None:
    """Principal components of the outputs, from the outputs themselves."""
    problem = off_centre()
    made, weight = get("lord")(keep=0.5, damping=0.0), Dense(problem.weight)
    told = seen(made, problem)
    answer = made.solve(weight, told, problem.site)
    shift = made.shift(weight, answer, told)
    wanted = problem.x.double() @ problem.weight.double().T
    found = problem.x.double() @ answer.dense().double().T + shift
    torch.testing.assert_close(found.mean(0), wanted.mean(0), rtol=0, atol=1e-4)
    tail = torch.linalg.svdvals(wanted - wanted.mean(0))[answer.factors[0].shape[1] :].square().sum()
    error = float((found - wanted).square().sum())
    assert error == pytest.approx(float(tail), rel=1e-3)
    plain = problem.x.double() @ solve(get("svd_llm")(keep=0.5, damping=0.0), problem).dense().double().T
    assert error < float((plain - wanted).square().sum())


def test_lord_makes_no_bias_where_nothing_is_left_out() -> None:
    problem = off_centre()
    for made in (get("lord")(keep=1.0), get("lord")(centred=False)):
        told = seen(made, problem)
        assert made.shift(Dense(problem.weight), made.solve(Dense(problem.weight), told, problem.site), told) is None
        assert made.promises(problem.site, Dense(problem.weight).spec()) is not None
    assert get("lord")().promises(problem.site, Dense(problem.weight).spec()) is None


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_lord_gives_the_bias_to_the_model(family: str) -> None:
    """What a block's first matrices say has the mean it had; experts keep no bias, and what is said stays after saving."""
    recipe = Recipe.of("lord(keep=0.4)")
    before, (model, bench) = Anatomy.of(tiny(family)), ran(family, recipe)
    after = Anatomy.of(model)
    made = {receipt.place for receipt in bench.receipts if "bias" in receipt.notes}
    assert made == {s.name for s in after.sites if s.index is None and s.block is not None and s.role is not Role.ROUTER}
    there, here = before.block_sites(0)[0], after.block_sites(0)[0]
    old = before.bias(there)
    shift = after.bias(here) - (0 if old is None else old)
    inputs = []
    handle = before.module(there).register_forward_pre_hook(lambda module, args: inputs.append(args[0].flatten(0, -2)))
    for ids in shown(before.model):
        before.model(ids)
    handle.remove()
    left_out = (before.weight(there).dense() - after.weight(here).dense()) @ torch.cat(inputs).mean(0)
    torch.testing.assert_close(shift, left_out, rtol=1e-3, atol=1e-5)
    assert torch.equal(logits(reopened(model)), logits(model))


@pytest.mark.parametrize("method", ["svd_llm", "saes_svd", "lord"])
def test_few_tokens_leave_a_singular_gram_that_is_damped_and_said(method: str) -> None:
    """Three tokens for 128 channels, and no damping asked for: what they show is kept, and nothing is beyond numbers."""
    problem = layer(tokens=3)
    made, weight = get(method)(keep=0.5, damping=0.0), Dense(problem.weight)
    shown = seen(made, problem)
    answer = made.solve(weight, shown, problem.site)
    assert bool(answer.dense().isfinite().all())
    if method == "lord":
        left_out = (problem.weight - answer.dense()) @ problem.x.T - made.shift(weight, answer, shown).float()[:, None]
        assert float(left_out.square().sum() / (problem.weight @ problem.x.T).square().sum()) < 1e-6
    else:
        assert shown.notes["damping"] > 0
        # The untouched model's inputs, which saes_svd aims at too, are one in a hundred larger.
        assert problem.error(answer) < 1e-3
