"""Gates that are drawn, said by a network, or closed stage by stage: their formulas, and that the budget is met."""

from types import SimpleNamespace

import pytest
import torch
from pupils import AdaptPrunerTuned, Atp, Compresso, FoldGPTGates, begun

from trimtab.anatomy import Anatomy
from trimtab.core.errors import ModelError, UsageError
from trimtab.core.places import Role, Unit
from trimtab.core.recipe import Recipe
from trimtab.core.seeds import Seeds
from trimtab.engine.apply import apply
from trimtab.engine.run import run
from trimtab.engine.teaching import learning
from trimtab.host.school import school
from trimtab.methods.tune.adapt_pruner_tuned import importance
from trimtab.tensors.gates import gumbel_sigmoid, hard_concrete, likely_open, polar, reversed_, without_noise
from trimtab.tensors.schedules import between, cubic
from trimtab.testing.roundtrip import logits, shown
from trimtab.testing.tiny import tiny


def test_schedules_begin_at_zero_and_end_at_one():
    assert [between(done, 0.1, 0.9) for done in (0, 0.1, 0.5, 0.9, 1)] == [0, 0, 0.5, 1, 1]
    assert [between(done, 0.5, 0.5) for done in (0.4, 0.5)] == [0, 1]
    assert [cubic(done) for done in (0, 0.5, 1)] == [0, 0.875, 1]


def test_a_gate_is_drawn_as_often_open_as_it_says():
    logits = torch.linspace(-3, 3, 7)
    uniform = (torch.arange(20000) + 0.5).unsqueeze(1) / 20000  # every quantile once
    values = hard_concrete(logits, uniform)
    assert float(values.min()) == 0
    assert float(values.max()) == 1
    torch.testing.assert_close((values > 0).float().mean(0), likely_open(logits), atol=1e-4, rtol=0)
    stretched = 1.2 * torch.sigmoid(0.8 * logits / (2 / 3)) - 0.1
    torch.testing.assert_close(without_noise(logits), stretched.clamp(0, 1))


def test_masks_are_nearly_all_open_at_first():
    uniform = (torch.arange(20000) + 0.5) / 20000
    soft = gumbel_sigmoid(torch.zeros(20000), uniform)
    assert float((soft < 0.5).float().mean()) < 1e-3
    assert torch.equal(gumbel_sigmoid(torch.zeros(1), uniform[:1]), torch.sigmoid((3 - (-uniform[:1].log()).log()) / 0.4))


def test_the_network_learns_to_meet_the_budget_by_what_its_gates_gather():
    _, pupil = begun(Atp(sparsity=0.4, steps=80, searched=1.0), tiny("llama"))
    pupil.begin(SimpleNamespace(seeds=Seeds(0)))
    optimizer, sizes = torch.optim.Adam(pupil.network.parameters(), lr=0.02), []
    for step in range(40):
        pupil.before_step(step, optimizer)
        optimizer.zero_grad()
        pupil.penalty().backward()
        assert all(p.grad is None for p in pupil.network.parameters())
        pupil.before_update(step, optimizer)
        optimizer.step()
        sizes.append(sum(g.coupling.cost * float(g.values().detach().sum()) for g in pupil.gates) / pupil.whole)
    assert sizes[0] > 0.95
    assert abs(sizes[-1] - 0.6) < 0.1
    pupil.settle()
    assert abs(sum(gate.gone for gate in pupil.gates) - pupil.budget) <= max(g.coupling.cost for g in pupil.gates) / 2


def test_updates_are_asked_to_leave_what_goes():
    _, pupil = begun(Atp(lasso=1.0), tiny("llama"))
    gate = pupil.masks[0]
    shut = torch.arange(gate.coupling.units) == 0
    expected = torch.tensor(0.0)
    with torch.no_grad():
        for member in gate.coupling.members:
            learner = pupil.updates[member.site]
            learner.left.normal_(generator=torch.Generator().manual_seed(0))
            rows = learner.left if member.axis == "rows" else learner.right.T
            expected += rows[member.indices[0]].norm(dim=1).sum()
    reliance = pupil._reliance(gate.coupling, shut)
    torch.testing.assert_close(reliance, expected)
    with torch.no_grad():
        for learner in pupil.updates.values():
            learner.left.zero_()
    pupil._reliance(gate.coupling, shut).backward()
    assert all(bool(p.grad.isfinite().all()) for p in pupil.parameters() if p.grad is not None)


def test_what_lowers_the_loss_raises_the_multiplier():
    multiplier = torch.tensor(2.0, requires_grad=True)
    (3 * reversed_(multiplier)).backward()
    assert float(reversed_(multiplier).detach()) == 2
    assert float(multiplier.grad) == -3


def test_gates_learn_to_meet_the_budget():
    _, pupil = begun(Compresso(sparsity=0.4, steps=60, searched=1.0, warm_up=0.5), tiny("llama"))
    torch.testing.assert_close(float(pupil.sparsity()), 0.0, atol=0.02, rtol=0)
    gates = [p for p in pupil.parameters() if p.requires_grad and p.ndim < 2]
    optimizer = torch.optim.Adam(gates, lr=0.2)
    pupil.begin(SimpleNamespace(seeds=Seeds(0)))
    for step in range(60):
        pupil.before_step(step, optimizer)
        optimizer.zero_grad()
        pupil.penalty().backward()
        optimizer.step()
        pupil.after_update(step, optimizer)
        assert 0 <= pupil.target() <= 0.4
    assert pupil.is_settled
    assert pupil.penalty() is None
    assert abs(sum(gate.gone for gate in pupil.gates) - pupil.budget) <= min(g.coupling.cost for g in pupil.gates) / 2
    assert float(pupil.sparsity().detach()) > 0.2
    assert all(bool((gate.values()[~gate.keep] == 0).all()) for gate in pupil.gates)


def test_every_stage_takes_its_part_and_blocks_that_turn_least_lose_most():
    _, pupil = begun(AdaptPrunerTuned(sparsity=0.4, units="neuron", steps=8, stages=4), tiny("llama"))
    assert pupil.behind == {0: 1, 2: 2, 4: 3, 6: 4}
    for learner in pupil.free.values():
        learner.weight.grad = torch.randn(learner.weight.shape, generator=torch.Generator().manual_seed(0))
    neurons = [gate for gate in pupil.gates if gate.coupling.unit is Unit.NEURON]
    for step, stages in pupil.behind.items():
        pupil.before_step(step, None)
        assert pupil.hidden
        pupil.cosines = [torch.tensor([0.9, 0.5, 0.7, 0.3], dtype=torch.float64)]
        pupil.before_update(step, None)
        off = sum(gate.gone for gate in pupil.gates) - stages / 4 * pupil.budget
        assert abs(off) <= min(g.coupling.cost for g in pupil.gates) / 2
    pupil.before_step(7, None)
    assert not pupil.hidden
    gone = [gate.gone for gate in neurons]
    assert gone[0] > gone[2] > gone[1] > gone[3]


def test_the_last_cosine_is_that_of_what_leaves_the_last_block():
    for family in ("llama", "gemma2"):
        model = tiny(family)
        anatomy, pupil = begun(AdaptPrunerTuned(), model)
        states: list[torch.Tensor] = []
        handle = anatomy.blocks[-1].register_forward_hook(lambda _, args, out, to=states: to.append(torch.stack([args[0], out])))
        with torch.no_grad():
            hidden = model(shown(model)[0], use_cache=False, output_hidden_states=True).hidden_states
        handle.remove()
        entering, leaving = states[0]
        expected = torch.nn.functional.cosine_similarity(entering, leaving, dim=-1).double().mean()
        torch.testing.assert_close(pupil._cosines(hidden)[-1], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(importance(torch.tensor([0.2, 0.4, 0.9]).double()), torch.tensor([0.75, 0.25, -1]).double())


def test_block_gates_are_drawn_to_one_end_and_the_least_go():
    assert torch.equal(polar(torch.tensor([0.0, 1.0]), 1.0), torch.tensor([0.0, 0.5]))
    model = tiny("llama")
    anatomy = Anatomy.of(model)
    pupil = FoldGPTGates(drop=2).begin(anatomy, None)
    with torch.no_grad():
        for gate, strength in zip(pupil.gates, (1.0, 0.0, -0.5, 0.0), strict=True):
            gate.strength.fill_(strength)
    for learner in pupil.stands().values():
        learner.progress = 1.0
    torch.testing.assert_close(float(pupil.penalty()), 10 * abs(2 / 4 - 0.5), atol=0.01, rtol=0)
    with torch.no_grad(), learning(anatomy, pupil):
        before = logits(model)
    apply(anatomy, pupil.edits())
    assert len(Anatomy.of(model).blocks) == 2
    torch.testing.assert_close(logits(model), before, rtol=2e-3, atol=2e-3)  # the gate of 0.5 is at 0.9996
    with pytest.raises(UsageError, match="the model has 4 blocks; 4 of them cannot go"):
        FoldGPTGates(drop=4).begin(Anatomy.of(tiny("llama")), None)
    with pytest.raises(ModelError, match="block 0 has no attention and MLP output of its own"):
        FoldGPTGates().begin(Anatomy.of(tiny("mixtral")), None)


def test_the_block_that_does_nothing_goes():
    model = tiny("llama")
    for site in Anatomy.of(model).block_sites(2):
        if site.role in (Role.O, Role.DOWN):
            model.get_submodule(site.path).weight.data.zero_()
    ids = torch.randint(3, 97, (8, 1), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        while ids.shape[1] < 24:  # its own words, which it needs its blocks for
            ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    before = logits(model)
    bench = run(model, Recipe((FoldGPTGates(drop=1, steps=25, windows=8, learning_rate=0.1),)), [ids], school=school)
    strengths = bench.receipts[0].notes["strengths"]
    assert max(strengths) < 0.5  # all of them were pushed, to meet the budget
    assert strengths[2] < 0.9 * min(strengths[:2] + strengths[3:])
    torch.testing.assert_close(logits(model), before)
