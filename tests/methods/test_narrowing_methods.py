"""Channels that close while the model learns: what is closed is as good as gone, the budget is met, a kill is no loss."""

import json
from dataclasses import replace

import pytest
import torch
from pupils import EVERY, METHODS, EfficientLLM, FoldGPTGates, LoRAPrune, Pat, begun
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from trimtab.anatomy import Anatomy
from trimtab.core.errors import CalibrationError, RecipeError, TrimtabError, UsageError
from trimtab.core.places import Role, Unit
from trimtab.core.recipe import Calibration, Recipe
from trimtab.core.taught import Said
from trimtab.engine.apply import apply
from trimtab.engine.run import run
from trimtab.engine.teaching import learning
from trimtab.formats.gates import Narrower, alike, scaled
from trimtab.formats.taught import Updated
from trimtab.host.compress import compress
from trimtab.host.export.job import export
from trimtab.host.school import school
from trimtab.methods.tune.efficientllm import taken_over
from trimtab.methods.tune.loraprune import surrogate
from trimtab.tensors.losses import next_token
from trimtab.testing.folders import tiny_folder
from trimtab.testing.problems import brief
from trimtab.testing.roundtrip import logits, ran, shown
from trimtab.testing.tiny import tiny


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


STOPPED = [
    m if m in (LoRAPrune, Pat) else pytest.param(m, marks=pytest.mark.slow) for m in dict.fromkeys([*METHODS, FoldGPTGates, Pat])
]


@pytest.mark.parametrize("method", STOPPED, ids=lambda method: method.card.id)
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


@EVERY
@pytest.mark.parametrize("uniform", [True, False])
def test_no_unit_opens_again(method, uniform):
    deep = {"num_hidden_layers": 10, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8}
    open_everywhere = OPEN_EVERYWHERE.get(method.card.id, {})
    _, pupil = begun(method(sparsity=0.4, uniform=uniform, **open_everywhere), tiny("llama", **deep))
    draw, before = torch.Generator().manual_seed(0), [gate.keep.clone() for gate in pupil.gates]
    for turn in range(1, 21):
        scores = [torch.rand(gate.coupling.units, generator=draw) for gate in pupil.gates]
        budget = pupil.budget * turn / 20
        pupil.close(scores, scaled(alike(pupil.gates), budget), budget)
        assert not any(bool((gate.keep & ~was).any()) for gate, was in zip(pupil.gates, before, strict=True))
        before = [gate.keep.clone() for gate in pupil.gates]
    assert abs(sum(gate.gone for gate in pupil.gates) - pupil.budget) <= 0.005 * pupil.budget
    widths = {(gate.coupling.unit, int(gate.keep.sum())) for gate in pupil.gates}
    assert len(widths) == 2 or not uniform


OPEN_EVERYWHERE = {"loraprune": {"first": 0.0, "last": 0}}


@EVERY
def test_uniform_widths_are_described_by_the_familys_own_config(method, tmp_path):
    source, text = tiny_folder(tmp_path / "model"), tmp_path / "text.txt"
    text.write_text("\n\n".join(f"paragraph {n} of a text that says very little, again and again" for n in range(60)))
    made = replace(brief(method(**OPEN_EVERYWHERE.get(method.card.id, {}))), sparsity=0.4, uniform=True)
    done = compress(source, Recipe((made,), calibration=Calibration(str(text), 256, 32)), tmp_path / "out")
    shapes = {}
    for site in Anatomy.of(done.model).sites:
        shapes.setdefault(site.role, set()).add(site.shape)
    assert all(len(found) == 1 for found in shapes.values())
    notes, couplings = done.report.receipts[0].notes, Anatomy.of(done.model).couplings()
    assert notes["weights_gone"] > 0
    cheapest = min(c.cost for c in couplings) * len({c.block for c in couplings})
    assert abs(notes["weights_gone"] - notes["weights_asked"]) <= cheapest / 2
    assert not any("own config" in note for note in done.report.notes)
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    plain = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path / "out"))
    assert {n: p.shape for n, p in plain.named_parameters()} == {n: p.shape for n, p in done.model.named_parameters()}
    export(tmp_path / "out", "plain", tmp_path / "plain")
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "plain")), logits(done.model))


def test_uniform_widths_leave_no_block_alone():
    for knobs in ({}, {"first": 0.0}, {"last": 0}):
        with pytest.raises(UsageError, match=r"loraprune: uniform widths leave no block alone; add first=0.0 and last=0"):
            LoRAPrune(uniform=True, **knobs)


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
    """With the Fisher information of the step's windows, each for itself, and before anything is clipped."""
    model = tiny("llama")
    anatomy, pupil = begun(EfficientLLM(memory=0.0), model)
    windows, coupling = shown(model)[0][:3, :16], pupil.gates[0].coupling
    apart = {member.site: [] for member in coupling.members}
    with learning(anatomy, pupil), torch.enable_grad():
        for ids in windows:
            next_token(model(ids[None]).logits, ids[None]).div(15).backward()
            for site, seen in apart.items():
                seen.append(pupil.free[site].weight.grad.double())
                pupil.free[site].weight.grad = None
        pupil.begin(None)
        for ids in windows:
            said, share = Said(model(ids[None]).logits), torch.tensor(1 / 45)
            pupil.loss(said, None, ids[None], share).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        pupil.before_update(0, None)
    expected = torch.zeros(coupling.units, dtype=torch.float64)
    for member in coupling.members:
        w, g = pupil.free[member.site].weight.detach().double(), torch.stack(apart[member.site])
        expected += member.of_units(g.square().mean(0) * w.square() / 2 - g.mean(0) * w).sum(1)
    torch.testing.assert_close(pupil.worth[: coupling.units], expected, rtol=1e-4, atol=1e-9)


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
