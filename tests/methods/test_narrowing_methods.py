"""Channels that close while the model learns: what is closed is as good as gone, the budget is met, a kill is no loss."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from trimtab.anatomy import Anatomy
from trimtab.core import registry
from trimtab.core.errors import CalibrationError, ModelError, RecipeError, TrimtabError, UsageError
from trimtab.core.narrowing import NarrowingMethod, Separable
from trimtab.core.places import Role, Unit
from trimtab.core.recipe import Calibration, Recipe
from trimtab.core.seeds import Seeds
from trimtab.engine.apply import apply
from trimtab.engine.narrowing import narrows
from trimtab.engine.run import run
from trimtab.engine.sweep import Stream
from trimtab.engine.teaching import learning
from trimtab.formats.gates import Narrower, alike, scaled
from trimtab.formats.taught import Updated
from trimtab.host.compress import compress
from trimtab.host.school import school
from trimtab.methods.tune.adapt_pruner_tuned import importance
from trimtab.methods.tune.efficientllm import taken_over
from trimtab.methods.tune.loraprune import surrogate
from trimtab.stats import Gram
from trimtab.tensors.gates import gumbel_sigmoid, hard_concrete, likely_open, polar, reversed_, without_noise
from trimtab.tensors.schedules import between, cubic
from trimtab.testing.folders import tiny_folder
from trimtab.testing.problems import brief
from trimtab.testing.roundtrip import logits, ran, shown
from trimtab.testing.tiny import tiny

METHODS = [registry.get(id) for id in registry.ids() if issubclass(registry.get(id), NarrowingMethod)]
EVERY = pytest.mark.parametrize("method", METHODS, ids=[m.card.id for m in METHODS])
LoRAPrune, AdaptPrunerTuned, Compresso = (registry.get(id) for id in ("loraprune", "adapt_pruner_tuned", "compresso"))
FoldGPTGates, Pat, Atp, EfficientLLM = (registry.get(id) for id in ("foldgpt_gates", "pat", "atp", "efficientllm"))


@dataclass
class _Seen:
    found: Separable
    generator: torch.Generator

    def __getitem__(self, need: type) -> object:
        if need is Gram:  # of inputs that have nothing to do with each other
            return {c.consumer.site: torch.eye(c.consumer.site.shape[1]) for c in self.found.couplings}
        assert need is Separable
        return self.found


def begun(method: NarrowingMethod, model: torch.nn.Module) -> tuple[Anatomy, Narrower]:
    anatomy = Anatomy.of(model)
    stream = Stream(anatomy, [shown(model)[0][:1, :16]])
    couplings = tuple(c for c in anatomy.couplings() if narrows(stream, c))
    found = Separable(couplings, sum(p.numel() for p in model.parameters()))
    pupil = method.begin(anatomy, _Seen(found, torch.Generator().manual_seed(0)))
    assert isinstance(pupil, Narrower)
    return anatomy, pupil


@EVERY
@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_what_is_closed_is_as_good_as_gone(method, family):
    model = tiny(family)
    anatomy, pupil = begun(method(sparsity=0.4), model)
    settled(pupil)
    scores = [torch.rand(gate.coupling.units, generator=torch.Generator().manual_seed(1)) for gate in pupil.gates]
    pupil.close(scores, scaled(alike(pupil.gates), pupil.budget), pupil.budget)
    closed = {gate.coupling.unit for gate in pupil.gates if not bool(gate.keep.all())}
    assert closed == {gate.coupling.unit for gate in pupil.gates}
    assert (Unit.KV_GROUP in closed) == (family == "llama")  # the others' attention cuts its heads by a stored count
    with learning(anatomy, pupil), torch.no_grad():
        for gate in pupil.gates:  # what is silent may be anything
            for member in gate.coupling.members:
                if member.axis == "rows" and isinstance(pupil.inner.get(member.site), Updated):
                    pupil.inner[member.site].left[member.indices[~gate.keep].flatten()] += 1
        before = logits(model)
    apply(anatomy, pupil.edits())
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in tiny(family).parameters())
    torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-5)


def settled(pupil: Narrower) -> None:
    """What is still sampled while the search lasts is as it will be afterwards."""
    for gate in pupil.gates:
        if hasattr(gate, "settled"):
            gate.settled.fill_(True)


@EVERY
@pytest.mark.parametrize("knobs", [{"of": "model", "sparsity": 0.25}, {"sparsity": 0.5, "units": "neuron"}])
def test_as_much_goes_as_was_asked_for(method, knobs):
    before = sum(p.numel() for p in tiny("llama").parameters())
    model, bench = ran("llama", Recipe((replace(brief(method()), **knobs),)))
    gone = before - sum(p.numel() for p in model.parameters())
    couplings = Anatomy.of(tiny("llama")).couplings()
    if "of" in knobs:
        asked = 0.25 * before
    else:
        asked = 0.5 * sum(c.cost * c.units for c in couplings if c.unit is Unit.NEURON)
        assert {s.shape for s in Anatomy.of(model).sites if s.role is Role.O} == {(64, 64)}
    assert abs(gone - asked) <= min(0.005 * asked, min(c.cost for c in couplings) / 2)
    assert bench.receipts[0].notes["weights_gone"] == gone


@pytest.mark.parametrize("method", [*METHODS, FoldGPTGates, Pat], ids=lambda method: method.card.id)
def test_a_stopped_training_goes_on_to_the_same_bytes(method, tmp_path):
    model, text = tiny_folder(tmp_path / "model"), tmp_path / "text.txt"
    text.write_text("\n\n".join(f"paragraph {n} of a text that says very little, again and again" for n in range(60)))
    made = replace(brief(method(learning_rate=0.01)), steps=8)
    recipe = Recipe((replace(made, every=2) if "every" in made.knobs() else made,), calibration=Calibration(str(text), 256, 32))
    compress(model, recipe, tmp_path / "whole")

    def watch(now):
        if now.phase == "train" and now.done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(model, recipe, tmp_path / "out", watch=watch)
    taken = []
    compress(model, recipe, tmp_path / "out", watch=lambda now: taken.append(now.done) if now.phase == "train" else None)
    assert min(taken) >= 5
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "out"))
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@EVERY
def test_bad_input_is_named(method):
    model = tiny("llama")
    with pytest.raises(UsageError, match=r"is more than the \d+ that can go"):
        run(model, Recipe((brief(method(sparsity=0.9, of="model")),)), shown(model), school=school)
    mixtral = tiny("mixtral")
    with pytest.raises(TrimtabError, match=f"{method.card.id}: this model has no separable neuron units; seen: .* experts share"):
        run(mixtral, Recipe((brief(method(units="neuron")),)), shown(mixtral), school=school)
    few = Recipe((method(windows=9),), calibration=Calibration(tokens=128, length=64))
    with pytest.raises(RecipeError, match="takes 9 windows a step, the calibration text makes 2"):
        run(model, few, shown(model), school=school)
    with pytest.raises(CalibrationError):
        run(model, Recipe((brief(method()),)), [], school=school)


@EVERY
def test_the_last_unit_stays_and_is_named(method):
    _, bench = ran("llama", Recipe((replace(brief(method()), units="kv_group", sparsity=0.375),)))
    notes = bench.receipts[0].notes
    assert notes["last_unit_kept"]
    assert notes["weights_gone"] == notes["weights_asked"]


def test_what_is_left_alone_stays_whole():
    model, _ = ran("llama", Recipe((brief(LoRAPrune(first=0.25, last=1)),)))
    widths = [s.shape[0] for s in Anatomy.of(model).sites if s.role is Role.UP]
    assert (widths[0], widths[3]) == (128, 128)
    assert max(widths[1:3]) < 128


def test_the_surrogate_is_what_a_step_takes_off_the_product():
    learner = Updated(torch.randn(6, 8), 2, 1.0, torch.Generator())
    with torch.no_grad():
        learner.left.normal_()
    before = (learner.left @ learner.right).detach()
    learner.matrix().square().sum().backward()
    lost = surrogate(learner).detach()
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter -= parameter.grad
    torch.testing.assert_close(before - (learner.left @ learner.right).detach(), lost, rtol=1e-4, atol=1e-3)


def test_what_a_unit_is_worth_is_remembered_and_normalised():
    model = tiny("llama")
    anatomy, pupil = begun(LoRAPrune(criterion="magnitude", memory=0.5), model)
    pupil.before_update(0, None)
    coupling, weight = pupil.gates[0].coupling, anatomy.weight
    expected = torch.zeros(coupling.units, dtype=torch.float64)
    for member in coupling.members:
        sums = member.of_units(weight(member.site).dense().double().abs()).sum(1)
        expected += sums / sums.norm()
    torch.testing.assert_close(pupil.worth[: coupling.units], expected / 2)


def test_gradients_take_less_than_half_of_the_full_ones():
    model = tiny("llama")
    anatomy, pupil = begun(LoRAPrune(rank=4), model)
    with learning(anatomy, pupil), torch.enable_grad():
        model(shown(model)[0]).logits.square().mean().backward()
        held = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    assert 0 < held < 0.5 * sum(4 * s.shape[0] * s.shape[1] for s in pupil.sites)


def test_a_group_is_worth_what_the_loss_would_rise_without_it():
    _, pupil = begun(EfficientLLM(memory=0.0), tiny("llama"))
    draw = torch.Generator().manual_seed(0)
    for learner in pupil.free.values():
        learner.weight.grad = torch.randn(learner.weight.shape, generator=draw)
    pupil.before_update(0, None)
    coupling, expected = pupil.gates[0].coupling, 0.0
    for member in coupling.members:
        learner = pupil.free[member.site]
        axis = 0 if member.axis == "rows" else 1
        w, g = (t.detach().double().index_select(axis, member.indices[1]) for t in (learner.weight, learner.weight.grad))
        expected += float((-g * w + (g * w).square() / 2).sum())
    torch.testing.assert_close(float(pupil.worth[1]), expected)


def test_the_kind_of_group_goes_that_is_worth_less_for_its_size():
    _, pupil = begun(EfficientLLM(sparsity=0.1, compensate=False), tiny("llama"))
    sizes = torch.cat([torch.full((g.coupling.units,), float(g.coupling.cost)) for g in pupil.gates])
    dear = torch.cat([torch.full((g.coupling.units,), g.coupling.unit is Unit.KV_GROUP) for g in pupil.gates])
    for factor, kind in ((0.5, Unit.KV_GROUP), (2.0, Unit.NEURON)):
        pupil.worth.copy_(-sizes * torch.where(dear, factor, 1.0))  # the sign of what is lost does not matter
        for gate in pupil.gates:
            gate.keep.fill_(True)
        pupil.shrink(1.0)
        assert next(gate.coupling.unit for gate in pupil.gates if not bool(gate.keep.all())) is kind
    assert sum(g.gone for g in pupil.gates if g.coupling.unit is Unit.KV_GROUP) == 0


def test_what_the_others_can_say_is_not_lost():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(64, 6, generator=draw)
    x[:, 4:] = x[:, :4] @ torch.randn(4, 2, generator=draw)  # two columns that the others determine
    weight, left, gone = torch.randn(5, 6, generator=draw), torch.tensor([0, 1, 2, 3]), torch.tensor([4, 5])
    added = taken_over(weight, x.T @ x / len(x), left, gone, 0.0)
    torch.testing.assert_close(x[:, left] @ (weight[:, left] + added).T, x @ weight.T, rtol=1e-4, atol=1e-4)
    assert float(taken_over(weight, torch.eye(6), left, gone, 0.01).abs().max()) == 0


def test_what_goes_is_taken_over_by_what_stays_once():
    model = tiny("llama")
    _, pupil = begun(EfficientLLM(sparsity=0.3), model)
    draw = torch.Generator().manual_seed(0)
    for site, gram in pupil.grams.items():
        x = torch.randn(200, 3, generator=draw) @ torch.randn(3, len(gram), generator=draw)
        gram.copy_(x.T @ x / 200)
        pupil.grams[site] = gram
    pupil.worth.copy_(torch.rand(pupil.worth.shape, generator=draw))
    before = {site: learner.weight.detach().clone() for site, learner in pupil.free.items()}
    pupil.shrink(0.5)
    moved = {site for site, learner in pupil.free.items() if not torch.equal(learner.weight, before[site])}
    assert moved == {g.coupling.consumer.site for g in pupil.gates if not bool(g.keep.all())}
    after = {site: learner.weight.detach().clone() for site, learner in pupil.free.items()}
    pupil.shrink(0.5)  # nothing more goes
    assert all(torch.equal(learner.weight, after[site]) for site, learner in pupil.free.items())
    gate = next(g for g in pupil.gates if not bool(g.keep.all()) and int(g.keep.sum()) > 8)
    site, alive = gate.coupling.consumer.site, gate.keep[gate.unit]
    gram, change = pupil.grams[site].double(), (after[site] * alive - before[site]).double()
    lost, dead = torch.einsum("oi,ij,oj->", change, gram, change), (before[site] * ~alive).double()
    assert float(lost) < 1e-2 * float(torch.einsum("oi,ij,oj->", dead, gram, dead))


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
    assert pupil.cuts == {0: 1, 2: 2, 4: 3, 6: 4}
    for learner in pupil.free.values():
        learner.weight.grad = torch.randn(learner.weight.shape, generator=torch.Generator().manual_seed(0))
    neurons = [gate for gate in pupil.gates if gate.coupling.unit is Unit.NEURON]
    for step, stages in pupil.cuts.items():
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
