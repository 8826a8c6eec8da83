"""What is special about the methods that train from scratch: own gradients, exact counts, limits at which they are a matrix."""

from math import ceil

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.optim import SGD, AdamW

from trimtab.core.errors import UsageError
from trimtab.core.places import Role, Site
from trimtab.core.scratch import Structure
from trimtab.core.seeds import Seeds
from trimtab.methods import GaLore, LearnedButterfly, LowRank, Phm, ReLoRA, SLTrain, Sst, StructuredFFN
from trimtab.methods.scratch import sltrain

SITE = Site("model.layers.0.mlp.up_proj", Role.UP, (24, 16), block=0)


def drawn(*shape: int, name: str = "x") -> Tensor:
    return torch.randn(shape, generator=Seeds(0).at(name))


def begun(method, site: Site = SITE) -> Structure:
    return method.begin(drawn(*site.shape, name="weight") / 4, Seeds(0).at("begin"), site)


def trained_numbers(structure: Structure) -> int:
    return sum(parameter.numel() for parameter in structure.parameters() if parameter.requires_grad)


def gradients(structure: Structure, x: Tensor) -> Tensor:
    """dL/dW [out, in] of L = sum sin(y), which every structure here has to agree with."""
    above = structure(x).detach().cos()
    structure(x).sin().sum().backward()
    return above.T @ x


def stepped(structure: Structure, hook, step: int, optimizer: torch.optim.Optimizer) -> None:
    hook.before_step(step, optimizer)
    updated(structure, hook, step, optimizer)


def updated(structure: Structure, hook, step: int, optimizer: torch.optim.Optimizer) -> None:
    """What is left of a step that has begun."""
    optimizer.zero_grad()
    (structure(drawn(40, SITE.shape[1])) - drawn(40, SITE.shape[0], name="y")).square().mean().backward()
    hook.before_update(step, optimizer)
    optimizer.step()
    hook.after_update(step, optimizer)


@pytest.mark.parametrize("keep", [0.2, 0.5])
def test_factors_hold_at_most_what_they_may(keep):
    method = LowRank(keep=keep)
    held = trained_numbers(begun(method))
    assert held == method.numbers(SITE.shape) <= keep * 24 * 16
    assert held + 24 + 16 > keep * 24 * 16


def test_factors_of_full_rank_begin_as_the_matrix():
    structure = LowRank(keep=1.0).begin(drawn(24, 1, name="weight"), Seeds(0).at("x"), Site("a", Role.UP, (24, 1), 0))
    assert torch.allclose(structure.matrix(), drawn(24, 1, name="weight"), atol=1e-6)


def test_sltrain_has_the_gradients_of_finite_differences():
    left, right, values = (drawn(*shape, name=str(shape)).double().requires_grad_() for shape in ((5, 2), (2, 4), (6,)))
    positions = torch.tensor([0, 3, 4, 9, 17, 19], dtype=torch.int32)
    x = drawn(3, 4).double().requires_grad_()
    assert gradcheck(sltrain._Times.apply, (x, left, right, values, positions, 0.7))


def test_sltrain_of_full_density_is_a_matrix():
    method = SLTrain(keep=1.0, density=1.0)
    structure, x = begun(method), drawn(8, 16)
    assert method.numbers(SITE.shape) == trained_numbers(structure) == 24 * 16
    wanted = gradients(structure, x)
    assert torch.allclose(structure.values.grad.view(24, 16), wanted, atol=1e-5)
    assert torch.equal(structure.matrix(), structure.values.view(24, 16))
    assert torch.equal(structure.result().dense(), structure.values.view(24, 16))


def test_sltrain_without_a_sparse_part_is_low_rank():
    structure = begun(SLTrain(keep=0.5, density=0.0))
    assert structure.result().kind == "chain"
    assert trained_numbers(structure) == LowRank(keep=0.5).numbers(SITE.shape)


def test_sltrain_keeps_its_support():
    method = SLTrain(keep=0.5, density=0.1)
    structure = begun(method)
    positions = structure.positions.clone()
    assert len(positions.unique()) == round(0.1 * 24 * 16)
    optimizer = AdamW(structure.parameters(), lr=0.1)
    for _ in range(3):
        structure(drawn(8, 16)).square().mean().backward()
        optimizer.step()
    assert torch.equal(structure.positions, positions)
    sparse = structure.matrix() - structure.scale * structure.left @ structure.right
    outside = torch.ones(24 * 16, dtype=torch.bool)
    outside[positions.long()] = False
    assert float(sparse.detach().flatten()[outside].abs().max()) < 1e-6


def test_sltrain_refuses_more_entries_than_numbers():
    with pytest.raises(UsageError, match="density"):
        SLTrain(keep=0.1, density=0.2)


def test_sst_leaves_the_values_out_of_the_vectors_gradients():
    structure, x = begun(Sst(rank=3)).double(), drawn(8, 16).double()
    wanted, values = gradients(structure, x), structure.values.detach()
    left, right, drawn_now = structure.left, structure.right, structure.drawn
    assert torch.allclose(structure.left_part.grad, wanted @ right[:, drawn_now])
    assert torch.allclose(structure.right_part.grad, wanted.T @ left[:, drawn_now])
    assert torch.allclose(structure.values.grad, ((left.T @ wanted) * right.T).sum(1))
    ordinary = torch.autograd.functional.jacobian(lambda u: (x @ right * values @ u.T).sin().sum(), left.detach().clone())
    assert torch.allclose(structure.left_part.grad * values[drawn_now], ordinary[:, drawn_now])


def test_sst_keeps_lengths_and_signs_and_trains_what_was_drawn():
    method = Sst(rank=5, every=4, warm_up=1)
    structure = begun(method)
    assert trained_numbers(structure) == 16 + 5 * (24 + 16)
    hook = method.hook({"a": structure}, 40, Seeds(0))
    optimizer, draws = AdamW(structure.parameters(), lr=0.05, weight_decay=0.0), set()
    for step in range(24):
        before = structure.left.clone()
        stepped(structure, hook, step, optimizer)
        draws.add(tuple(structure.drawn.tolist()))
        others = torch.ones(16, dtype=torch.bool)
        others[structure.drawn] = False
        if step % (4 * ceil(16 / 5)) or not step:
            assert torch.equal(structure.left[:, others], before[:, others])
        assert torch.allclose(structure.left.norm(dim=0), torch.ones(16), atol=1e-5)
        assert torch.allclose(structure.right.norm(dim=0), torch.ones(16), atol=1e-5)
        assert bool((structure.values >= 0).all())
        assert torch.equal(structure.left[:, structure.drawn], structure.left_part)
    assert len(draws) == 6


def test_sst_decomposes_anew_without_changing_the_matrix():
    method = Sst(rank=5)
    structure = begun(method)
    optimizer, hook = AdamW(structure.parameters(), lr=0.1), method.hook({"a": structure}, 9, Seeds(0))
    for step in range(3):
        stepped(structure, hook, step, optimizer)
    before = structure.matrix().detach()
    for time in range(1, 5):
        structure.renew(Seeds(0).at(time), time)
        assert torch.allclose(structure.matrix(), before, atol=1e-5)
        square = float((structure.left.T @ structure.left - torch.eye(16)).abs().max())
        assert (square < 1e-5) == (time == ceil(16 / 5))


def test_relora_restarts_without_a_jump_and_its_rank_grows():
    method = ReLoRA(rank=2, every=5, warm_up=0, full=0.0)
    structure = begun(method)
    start, ranks = structure.matrix().detach(), []
    hook, optimizer = method.hook({"a": structure}, 15, Seeds(0)), AdamW(structure.parameters(), lr=0.05)
    for step in range(15):
        before = structure.matrix().detach()
        hook.before_step(step, optimizer)
        assert torch.allclose(structure.matrix(), before, atol=1e-6)
        if step and not step % 5:
            assert not structure.left.any()
            assert not optimizer.state.get(structure.left)
        updated(structure, hook, step, optimizer)
        if step % 5 == 4:
            ranks.append(int(torch.linalg.matrix_rank(structure.matrix().detach() - start, rtol=1e-4)))
    assert ranks == [2, 4, 6]


def test_relora_trains_the_whole_matrix_first():
    method = ReLoRA(rank=2, every=50, full=0.5)
    structure = begun(method)
    hook, optimizer = method.hook({"a": structure}, 10, Seeds(0)), AdamW(structure.parameters(), lr=0.05)
    changed = []
    for step in range(10):
        base, left = structure.base.clone(), structure.left.clone()
        stepped(structure, hook, step, optimizer)
        changed.append((not torch.equal(base, structure.base), not torch.equal(left, structure.left)))
    assert changed == [(True, False)] * 5 + [(False, True)] * 5
    assert not optimizer.state.get(structure.base)


def test_new_parts_begin_with_small_updates():
    method = ReLoRA(rank=2, every=5, warm_up=3, full=0.0)
    structure = begun(method)
    hook, optimizer = method.hook({"a": structure}, 15, Seeds(0)), AdamW(structure.parameters(), lr=0.01, weight_decay=0.0)
    sizes = []
    for step in range(10):
        before = structure.left.detach().clone() if step % 5 else torch.zeros(24, 2)
        stepped(structure, hook, step, optimizer)
        sizes.append(float((structure.left.detach() - before).abs().max()))
    # The first update of Adam moves every number by the rate, whatever its gradient.
    assert sizes[0] == pytest.approx(0.01, rel=1e-3)
    assert sizes[5] == pytest.approx(0.01 / 4, rel=1e-3)


@pytest.mark.parametrize("shape", [(24, 16), (16, 24), (16, 16)])
def test_galore_of_full_rank_descends_along_the_gradient(shape):
    site = Site("a", Role.UP, shape, 0)
    method = GaLore(rank=16, every=2, scale=0.5)
    structure = begun(method, site)
    assert trained_numbers(structure) == 16 * max(shape)
    hook, optimizer = method.hook({"a": structure}, 9, Seeds(0)), SGD(structure.parameters(), lr=0.1)
    for step in range(4):
        matrix = structure.matrix().detach().clone().requires_grad_()
        x = drawn(8, shape[1])
        (x @ matrix.T).sin().sum().backward()
        hook.before_step(step, optimizer)
        optimizer.zero_grad()
        structure(x).sin().sum().backward()
        hook.before_update(step, optimizer)
        optimizer.step()
        hook.after_update(step, optimizer)
        assert torch.allclose(structure.matrix(), matrix.detach() - 0.5 * 0.1 * matrix.grad, atol=1e-5)


def test_galore_shows_the_optimizer_the_leading_part_of_the_gradient():
    method = GaLore(rank=3, every=10)
    structure, x = begun(method), drawn(8, 16)
    hook, optimizer = method.hook({"a": structure}, 9, Seeds(0)), SGD(structure.parameters(), lr=0.0)
    hook.before_step(0, optimizer)
    wanted = gradients(structure, x)
    assert structure.moved.grad is None
    hook.before_update(0, optimizer)
    found = torch.linalg.svdvals(structure.moved.grad)
    assert torch.allclose(found, torch.linalg.svdvals(wanted)[:3], rtol=1e-4)
    assert structure.base.grad is None
    hook.after_update(0, optimizer)
    hook.before_step(1, optimizer)
    optimizer.zero_grad()
    gradients(structure, x)
    assert structure.base.grad is None
    assert torch.allclose(torch.linalg.svdvals(structure.moved.grad), found, rtol=1e-4)


def test_phm_of_one_component_is_a_matrix():
    method = Phm(components=1)
    structure, x = begun(method), drawn(8, 16)
    assert method.numbers(SITE.shape) == trained_numbers(structure) == 1 + 24 * 16
    with torch.no_grad():
        structure.algebra.fill_(1.0)
    wanted = gradients(structure, x)
    assert torch.equal(structure.matrix(), structure.parts[0])
    assert torch.allclose(structure.parts.grad[0], wanted, atol=1e-5)


def test_phm_is_a_sum_of_kronecker_products():
    method = Phm(components=4)
    structure = begun(method)
    assert trained_numbers(structure) == method.numbers(SITE.shape) == 64 + 24 * 16 // 4
    wanted = sum(torch.kron(a, f) for a, f in zip(structure.algebra, structure.parts, strict=True))
    assert torch.allclose(structure.matrix(), wanted, atol=1e-6)
    with pytest.raises(UsageError, match="24 x 16"):
        Phm(components=5).fits(SITE)


@pytest.mark.parametrize(("kind", "rank", "per_rank"), [("low_rank", 4, 40), ("block_dense", 6, 32), ("block_shuffle", 8, 20)])
def test_structured_ffn_counts_what_is_left_without_the_guide(kind, rank, per_rank):
    method = StructuredFFN(keep=0.5, structure=kind)
    assert method.numbers(SITE.shape) == rank * per_rank
    structure = begun(method)
    assert trained_numbers(structure) == rank * per_rank + 24 * 16
    assert trained_numbers(structure.inner) == rank * per_rank
    assert trained_numbers(begun(StructuredFFN(keep=0.5, structure=kind, guided=0.0))) == rank * per_rank


@pytest.mark.parametrize("blocks", [1, 2, 4])
@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_shuffled_blocks_are_what_they_are_stored_as(blocks, keep):
    structure, x = begun(StructuredFFN(structure="block_shuffle", blocks=blocks, keep=keep, guided=0.0)), drawn(5, 16)
    stored = structure.result()
    assert torch.allclose(structure(x), x @ stored.dense().T, atol=1e-5)
    assert torch.allclose(structure.matrix(), stored.dense(), atol=1e-6)
    met = min(blocks, structure.right.shape[1])  # blocks that an output hears of
    assert (structure.matrix() != 0).sum(1).min() == 16 * met // blocks


def test_shuffled_blocks_begin_as_large_as_a_matrix():
    """From one block, where there is nothing to shuffle, to many."""
    weight = drawn(96, 64)
    for blocks in (1, 2, 4, 8):
        method = StructuredFFN(structure="block_shuffle", blocks=blocks, keep=0.4, guided=0.0)
        matrix = method.begin(weight, Seeds(blocks).at("b"), Site("a", Role.UP, (96, 64), 0)).matrix()
        assert float(matrix.square().mean() / weight.square().mean()) == pytest.approx(1, abs=0.2)
    with pytest.raises(UsageError, match="96 x 64, which 5 blocks"):
        StructuredFFN(structure="block_shuffle", blocks=5).fits(Site("a", Role.UP, (96, 64), 0))


@pytest.mark.parametrize("kind", ["low_rank", "block_dense", "block_shuffle"])
def test_the_guide_begins_as_the_structure_and_leaves_without_a_trace(kind):
    method = StructuredFFN(structure=kind)
    structure, x = begun(method), drawn(8, 16)
    alone = structure.inner(x)
    assert torch.allclose(structure(x), alone, atol=1e-5)
    hook, optimizer = method.hook({"a": structure}, 8, Seeds(0)), AdamW(structure.parameters(), lr=0.05)
    shares = []
    for step in range(8):
        stepped(structure, hook, step, optimizer)
        shares.append(structure.share)
        assert (structure.guide in optimizer.state) == (step < 4)
    assert shares == pytest.approx([1.0, 0.853553, 0.5, 0.146447, 0, 0, 0, 0], abs=1e-6)
    assert torch.equal(structure(x), structure.inner(x))
    assert not torch.allclose(structure(x), alone, atol=1e-2)


def test_structured_ffn_is_for_feed_forward_layers():
    assert [role for role in Role if StructuredFFN().wants(Site("a", role, (8, 8), 0))] == [
        Role.GATE,
        Role.UP,
        Role.DOWN,
        Role.GATE_UP,
    ]


@pytest.mark.parametrize("shape", [(24, 16), (16, 16), (12, 40)])
def test_learned_butterfly_counts_and_spreads(shape):
    site, weight = Site("a", Role.UP, shape, 0), drawn(*shape, name="weight") / 4
    structure = LearnedButterfly().begin(weight, Seeds(0).at("begin"), site)
    assert trained_numbers(structure) == LearnedButterfly().numbers(shape)
    matrices = [LearnedButterfly().begin(weight, Seeds(seed).at("begin"), site).matrix() for seed in range(200)]
    found = torch.stack(matrices).detach().square().mean().sqrt() / weight.square().mean().sqrt()
    assert float(found) == pytest.approx(1.0, abs=0.1)
