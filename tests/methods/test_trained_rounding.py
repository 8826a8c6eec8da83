"""Weights that are trained behind their rounding: what the model sees is what is stored, gradients pass, and losses are right."""

from math import log

import pytest
import torch
from torch import Tensor

from trimtab.anatomy import Anatomy
from trimtab.core.errors import TrimtabError, UsageError
from trimtab.core.kinds import Learner
from trimtab.core.recipe import Recipe
from trimtab.core.registry import get
from trimtab.engine.run import run
from trimtab.formats import BitPlanes, Codebook, Grouped, Masked, SignPlanes, Sum
from trimtab.formats.latent import Fours, LatentPlanes, Ternary
from trimtab.host.school import school
from trimtab.methods.quantize.elutq import Elutq
from trimtab.methods.tune.ast import Ast, MovingMask
from trimtab.methods.tune.db_llm import deviating, dual
from trimtab.methods.tune.edgerazor import balanced, unlike
from trimtab.methods.tune.edkm import Clustered, Edkm
from trimtab.methods.tune.ofq import Annealed, StatsQ
from trimtab.tensors import bitplanes
from trimtab.tensors.losses import apart, predicted, surprise
from trimtab.tensors.palette import nearest, quantiles, settled, shares, soft
from trimtab.testing.roundtrip import ran, shown
from trimtab.testing.tiny import tiny


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def learner(name: str, weight: Tensor) -> Learner:
    groups = weight.view(len(weight), -1, 12)
    made = {
        "ternary": lambda: Ternary(weight, 12),
        "fours": lambda: Fours(weight, 12),
        "dual": lambda: LatentPlanes(weight, dual(groups), False, 1e-3, 1e-3),
        "planes": lambda: LatentPlanes(weight, bitplanes.fit(groups, 3, 5), True, 1e-3, 1e-3),
        "stats": lambda: StatsQ(weight, 2),
        "palette": lambda: Clustered(weight, Edkm(bits=2)),
        "mask": lambda: MovingMask(weight, Ast()),
        "mask and sums": lambda: MovingMask(weight, Ast(block=6)),
    }
    return made[name]()


KINDS = {
    "ternary": Codebook,
    "fours": Grouped,
    "dual": BitPlanes,
    "planes": BitPlanes,
    "stats": SignPlanes,
    "palette": Codebook,
    "mask": Masked,
    "mask and sums": Sum,
}


@pytest.mark.parametrize("name", KINDS)
def test_what_the_model_sees_at_the_end_is_what_is_stored(name):
    for weight in (drawn(7, 36), drawn(7, 36, seed=1) * 1e-3, torch.zeros(7, 36)):
        made = learner(name, weight)
        made.progress = 1.0
        for shift in (0.0, 0.3):
            with torch.no_grad():
                for number, parameter in enumerate(made.parameters()):
                    parameter.add_(shift * weight.abs().mean() * drawn(*parameter.shape, seed=number))
            assert torch.equal(made.matrix().detach(), made.result().dense())
        assert isinstance(made.result(), KINDS[name])


@pytest.mark.parametrize("name", ["ternary", "fours", "dual", "planes", "stats", "mask"])
def test_the_gradient_goes_through_the_rounding(name):
    made, direction = learner(name, drawn(7, 36)), drawn(7, 36, seed=2)
    made.matrix().mul(direction).sum().backward()
    assert torch.allclose(made.weight.grad.view(7, 36), direction)


def test_gradients_of_plane_scales_are_sums_over_their_planes():
    made, direction = learner("planes", drawn(7, 36)), drawn(7, 36, seed=2)
    made.matrix().mul(direction).sum().backward()
    stored = made.result()
    for plane in range(3):
        bits = ((stored.codes >> plane) & 1).float()
        expected = (bits * direction).view(7, 3, 12).sum(-1) * made.scale.unit[..., 0]
        assert torch.allclose(made.scale.shift.grad[..., plane], expected, atol=1e-5)
    assert torch.allclose(made.offset.shift.grad, direction.view(7, 3, 12).sum(-1, keepdim=True) * made.offset.unit, atol=1e-5)


def test_trits_are_as_dense_as_the_width_allows():
    for width, dim in ((60, 5), (36, 3), (64, 4), (14, 1)):
        made = Ternary(drawn(6000, width), width)
        assert made.result().codebook.shape == (1, 3**dim, dim)
        scale = (2 * made.weight.abs().mean(1, keepdim=True)).half().float()
        assert torch.equal(made.matrix(), (made.weight / scale).round().clamp(-1, 1) * scale)
    assert Ternary(drawn(400, 960), 960).result().bits < 1.68
    assert Ternary(drawn(3, 60), 60).result().codebook.shape == (1, 3, 1)  # a larger table would take more than it saves
    assert learner("fours", drawn(4, 24)).result().code_bits == 4


def test_two_binaries_have_the_four_levels_nearest_to_the_weights():
    groups = torch.cat([drawn(5, 1, 32), -drawn(5, 1, 32, seed=1).abs(), drawn(5, 1, 32, seed=2).abs()], 1)
    found = dual(groups)
    first, second = found.scale.unbind(-1)
    assert torch.equal(first, -2 * second)
    assert bool((first[:, 1] < 0).all())  # the long side is the negative one
    assert bool((first[:, 2] > 0).all())
    levels = torch.stack([second, 0 * second, -second, first], -1)
    assert torch.allclose(found.levels().sort(-1).values, levels.sort(-1).values)
    codes, weight = found.codes(groups), groups[:, 2]
    one = (weight >= (first + second)[:, 2:] / 2).long()  # the two steps by which the binaries are defined
    two = (weight - first[:, 2:] * one <= second[:, 2:] / 2).long()
    assert torch.equal(codes[:, 2], one + 2 * two)


def test_levels_without_zero_and_who_is_undecided():
    weight = drawn(4, 50)
    made, scale = StatsQ(weight, 2), 2 * weight.abs().mean(1, keepdim=True)
    expected = (((weight / scale).clamp(-1, 1 - 1e-6) * 2 - 0.5).round() + 0.5) / 2 * scale
    assert torch.allclose(made.matrix(), expected, rtol=2e-3)
    near = made.undecided(0.01)
    borders = torch.tensor([-0.5, 0.0, 0.5])
    away = ((weight / scale).clamp(-1, 1).unsqueeze(-1) - borders).abs().amin(-1) * 2
    assert torch.equal(near, away <= 0.01) or bool(((away - 0.01).abs()[near != (away <= 0.01)] < 1e-3).all())


def test_decided_weights_stand_still_in_the_end():
    weight = drawn(4, 50)
    made = StatsQ(weight, 2)
    pupil = Annealed({}, (), 0.05, 0.5)
    pupil.rounding = [made]
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-3, weight_decay=0.0)
    for progress in (0.0, 0.6):
        made.progress, before, free = progress, made.weight.detach().clone(), made.undecided(0.05)
        made.matrix().mul(drawn(4, 50, seed=1)).sum().backward()
        pupil.before_update(0, optimizer)
        optimizer.step()
        moved = made.weight.detach() != before
        assert torch.equal(moved, free) if progress else bool(moved.all())
        optimizer.zero_grad()


def test_unique_values_give_the_palette_and_gradient_of_all_values():
    weight = drawn(6, 40).bfloat16().float()
    weight[0, :20] = weight[1, :20]  # equal ones
    direction, temperature = drawn(6, 40, seed=1), torch.tensor(0.05)

    def plainly(given: Tensor) -> Tensor:
        flat = given.flatten()
        palette = settled(flat, torch.ones_like(flat), quantiles(given.detach(), 4), temperature, 3)
        return (shares(flat, palette, temperature) @ palette).view_as(given)

    both = []
    for function in (plainly, lambda w: soft(w, quantiles(w.detach(), 4), temperature, 3)):
        given = weight.clone().requires_grad_()
        made = function(given)
        made.mul(direction).sum().backward()
        both.append((made.detach(), given.grad))
    assert torch.allclose(both[0][0], both[1][0], atol=1e-6)
    assert torch.allclose(both[0][1], both[1][1], rtol=1e-4, atol=1e-4)


def test_a_cold_palette_is_k_means_and_has_the_nearest_codes():
    weight, palette = drawn(5, 30).bfloat16().float(), torch.tensor([1.03, -0.97, 0.011])
    cold = torch.tensor(1e-8)
    assert torch.equal(nearest(weight, palette), (weight.unsqueeze(-1) - palette).abs().argmin(-1))
    once = settled(weight.flatten(), torch.ones(150), palette, cold, 1)
    means = torch.stack([weight[nearest(weight, palette) == code].mean() for code in range(3)])
    assert torch.allclose(once, means, atol=1e-6)
    moved = settled(weight.flatten(), torch.ones(150), once, cold, 1)
    assert torch.allclose(soft(weight, once, cold, 1), moved[nearest(weight, moved)], atol=1e-6)


def test_divergences_between_predictions():
    student, teacher = predicted(drawn(2, 5, 9)), predicted(3 * drawn(2, 5, 9, seed=1))
    forward, reverse = apart(teacher, student), apart(student, teacher)
    assert forward.shape == (2, 4)
    assert torch.allclose(forward, surprise(teacher, student) - surprise(teacher, teacher), atol=1e-5)
    uncertain = predicted(torch.zeros(2, 5, 64))
    certain = predicted(100 * torch.nn.functional.one_hot(torch.zeros(2, 5).long(), 9).float())
    other = predicted(drawn(2, 5, 64, seed=3))
    assert torch.allclose(balanced(other, uncertain), apart(uncertain, other))
    assert torch.allclose(balanced(student, certain), apart(student, certain), rtol=1e-4)
    part = (1 - surprise(teacher, teacher).mean(1, keepdim=True) / log(16)).clamp(0, 1)
    assert torch.allclose(balanced(student, teacher), part * reverse + (1 - part) * forward)
    assert torch.equal(deviating(student, teacher, 0.0, 0.1), forward)
    ambiguity = surprise(teacher, student)
    assert torch.allclose(deviating(student, teacher, 2.0, 0.5), (1 + (2 * ambiguity).sqrt()) * forward)


def test_the_blocks_that_turn_most_are_compared():
    teacher = [torch.zeros(1, 4, 3) + torch.tensor(v) for v in ([1.0, 0, 0], [1.0, 0.1, 0], [0.0, 1, 0], [0.1, 1, 0])]
    student = [state + number for number, state in enumerate(teacher)]
    assert torch.allclose(unlike(student, teacher, 1), torch.full((1, 3), 4.0))  # what leaves the second block
    assert torch.allclose(unlike(student, teacher, 9), torch.full((1, 3), (1 + 4 + 9) / 3))


def test_a_mask_moves_and_pruned_weights_shrink():
    made = MovingMask(drawn(6, 12), Ast())
    assert torch.equal(made.keep.view(6, 3, 4).sum(-1), torch.full((6, 3), 2))
    before, kept = made.weight.detach().clone(), made.keep.clone()
    made.shrink(0.25)
    assert torch.equal(made.weight[kept], before[kept])
    assert torch.allclose(made.weight[~kept], 0.75 * before[~kept])
    assert made.renew() == 0
    with torch.no_grad():
        made.weight[~kept] *= 100
    assert made.renew() == int((made.keep != kept).sum()) > 0
    sums = MovingMask(drawn(6, 12), Ast(block=6))
    dropped = torch.where(sums.keep, 0.0, drawn(6, 12)).view(6, 2, 6).mean(-1)
    assert torch.allclose(sums.sums, dropped)
    with pytest.raises(UsageError, match=r"q_proj has in=64, which is no multiple of 7"):
        Ast(block=7).begin(Anatomy.of(tiny("llama")), None)


@pytest.mark.parametrize(
    "step",
    [
        "edgerazor(part=0.5, steps=3, windows=4, learning_rate=0.003)",
        "db_llm(steps=3, windows=4, learning_rate=0.003, scale_rate=0.01)",
        "ofq(steps=3, windows=4, learning_rate=0.003)",
        "edkm(bits=2, steps=3, windows=4, learning_rate=0.003)",
        "ast(steps=4, windows=4, every=2, block=16, learning_rate=0.003)",
    ],
)
def test_the_loss_falls(step):
    model, bench = ran("llama", Recipe.of(step))
    notes = bench.receipts[-1].notes
    assert notes["last_loss"] < notes["first_loss"]
    kinds = {type(Anatomy.of(model).weight(site)) for site in Anatomy.of(model).block_sites(0)}
    assert len(kinds) == (2 if "edgerazor" in step else 1)


def test_a_diverging_loss_stops_before_anything_is_learned_from_it():
    with pytest.raises(TrimtabError, match=r"the loss of step \d is not finite; .* with a lower learning rate"):
        ran("llama", Recipe.of("edgerazor(steps=8, windows=2, learning_rate=1e30)"))


def test_activations_that_are_no_numbers_are_not_learned_from():
    model, teacher = tiny("llama"), tiny("llama")
    with torch.no_grad():
        teacher.get_output_embeddings().weight.fill_(3e38)
    with pytest.raises(TrimtabError, match=r"the loss of step 1 is not finite; begin again"):
        run(model, Recipe((get("db_llm")(steps=1, windows=2),)), shown(model), school=school, teacher=teacher)


def test_another_vocabulary_is_no_teacher():
    model, other = tiny("llama"), tiny("llama", vocab_size=101)
    with pytest.raises(UsageError, match=r"predicts 97 tokens and its teacher 101"):
        run(model, Recipe((get("db_llm")(steps=1, windows=2),)), shown(model), school=school, teacher=other)


def test_planes_are_learned_block_by_block():
    before, _ = ran("llama", Recipe.of("hlq(bits=2, compensate=False)"))
    model, _ = ran("llama", Recipe((Elutq(epochs=4),)))
    assert all(isinstance(Anatomy.of(model).weight(site), BitPlanes) for site in Anatomy.of(model).block_sites(0))
    start, _ = ran("llama", Recipe((Elutq(epochs=0),)))
    site = Anatomy.of(model).block_sites(0)[0]
    assert torch.equal(Anatomy.of(start).weight(site).dense(), Anatomy.of(before).weight(site).dense())
    assert not torch.equal(Anatomy.of(start).weight(site).dense(), Anatomy.of(model).weight(site).dense())
