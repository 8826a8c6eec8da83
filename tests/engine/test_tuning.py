"""Learning blocks: what stands for a matrix is what is stored, learning helps, and a run can be stopped."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trimtab.core import registry
from trimtab.core.errors import CalibrationError, RecipeError
from trimtab.core.kinds import Learner, Seen
from trimtab.core.places import Role, Site
from trimtab.core.recipe import Calibration, Recipe, Step, Where
from trimtab.core.seeds import Seeds
from trimtab.engine.run import run
from trimtab.formats import Dense, Masked
from trimtab.host.compress import compress
from trimtab.methods.quantize.sliderquant import SliderQuant
from trimtab.tensors.learned_grid import LearnedGrid
from trimtab.testing.folders import tiny_folder
from trimtab.testing.tiny import tiny

LEARNED = ("flexround", "omniquant", "sliderquant")
TEXT = " ".join(f"{word} and {word[::-1]}" for word in ("stone", "river", "lamp", "cloud", "engine", "harbour", "winter") * 40)


def batches(count: int = 4, length: int = 16) -> list[torch.Tensor]:
    return list(torch.randint(0, 64, (count, 2, length), generator=torch.Generator().manual_seed(1)))


def begun(id: str, keep: torch.Tensor | None = None, **knobs: object) -> Learner:
    weight = torch.randn(12, 64, generator=torch.Generator().manual_seed(2))
    method = registry.get(id)(group_size=16, **knobs)
    site = Site("blocks.0.up", Role.UP, (12, 64), 0)
    return method.begin(Dense(weight) if keep is None else Masked(weight, keep), Seen({}, Seeds(0).at("here")), site)


@pytest.mark.parametrize("id", LEARNED)
@given(seed=st.integers(0, 2**31), bits=st.sampled_from([2, 3, 4]), masked=st.booleans())
@settings(max_examples=20, deadline=None)
def test_what_is_learned_is_what_is_stored(id, seed, bits, masked):
    draw = torch.Generator().manual_seed(seed)
    keep = torch.rand(12, 64, generator=draw) < 0.5 if masked else None
    learner = begun(id, keep, bits=bits)
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=draw)
    learner.progress = 1.0
    assert torch.equal(learner.matrix().detach(), learner.result().dense())
    if keep is not None:
        assert not learner.result().dense()[~keep].any()


@pytest.mark.parametrize("id", LEARNED)
def test_every_parameter_has_a_rate_and_a_gradient(id):
    learner = begun(id, bits=3)
    learner.progress = 1.0
    assert set(learner.rates) == {name for name, _ in learner.named_parameters()}
    target = torch.randn(12, 64, generator=torch.Generator().manual_seed(3))
    (learner.matrix() - target).square().sum().backward()
    idle = [name for name, p in learner.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == (["down"] if id == "sliderquant" else [])  # behind a factor that is still zero


def test_gradients_are_those_of_the_grid_with_its_roundings_held():
    """Against finite differences of the same expression in which every rounding adds the same constant as at this point."""
    weight = torch.randn(4, 2, 8, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    low, high = weight.amin(-1, keepdim=True) * 0.83, weight.amax(-1, keepdim=True) * 0.71
    grid = LearnedGrid.between(low, high, 3)
    constants = {
        "scale": grid.scale - (high - low) / 7,
        "zero": grid.zero + low / grid.scale,
        "codes": (weight / grid.scale).round() - weight / grid.scale,
    }

    codes = grid.codes(weight / grid.scale)
    inside = (codes > 0) & (codes < 7)  # at the ends a difference would look beyond them
    assert inside.any()
    assert (grid.zero > 0).all()

    def held(below: torch.Tensor, above: torch.Tensor) -> torch.Tensor:
        scale = (above - below) / 7 + constants["scale"]
        zero = -below / scale + constants["zero"]
        codes = weight / scale + constants["codes"] + zero
        return ((codes - zero) * scale)[inside].square().sum()

    ends = [low.clone().requires_grad_(), high.clone().requires_grad_()]
    made = LearnedGrid.between(*ends, 3)
    made.values(made.codes(weight / made.scale))[inside].square().sum().backward()
    step = 1e-6
    for position, end in enumerate(ends):
        for place in range(end.numel()):
            shift = [torch.zeros_like(low), torch.zeros_like(high)]
            shift[position].view(-1)[place] = step
            more, less = (held(low + sign * shift[0], high + sign * shift[1]) for sign in (1, -1))
            assert end.grad.view(-1)[place] == pytest.approx(float(more - less) / (2 * step), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    ("family", "id"), [*((family, "omniquant") for family in ("gpt2", "mixtral", "gemma2")), *(("llama", id) for id in LEARNED)]
)
def test_learning_brings_blocks_nearer_to_what_they_answered(family, id):
    rate = 0.02 if id == "flexround" else 0.3
    recipe = Recipe((Step(registry.get(id)(bits=2, group_size=0, clip=False, epochs=4, rate=rate)),))
    bench = run(tiny(family), recipe, batches())
    told = {receipt.place: receipt.notes for receipt in bench.receipts}
    assert told
    assert all(notes["error_after"] <= notes["error_before"] for notes in told.values())
    assert any(notes["error_after"] < 0.9 * notes["error_before"] for notes in told.values())


@pytest.mark.parametrize("id", LEARNED)
def test_without_epochs_it_is_what_learning_starts_from(id):
    model, untouched = tiny("llama"), tiny("llama")
    method = registry.get(id)(bits=3, group_size=0, epochs=0)
    bench = run(model, Recipe((Step(method),)), batches())
    for receipt in bench.receipts:
        number = bench.recipe.steps[0].method
        site = Site(receipt.place, Role.OTHER, (1, 1))
        weight = untouched.get_submodule(receipt.place).weight.detach()
        start = number.solve(Dense(weight), Seen({}, Seeds(0).at(1, receipt.place)), site)
        assert torch.equal(model.get_submodule(receipt.place).weight_value.dense(), start.dense())


@pytest.mark.parametrize("depth", range(1, 14))
def test_windows_slide_over_every_block(depth):
    windows = SliderQuant().windows(depth)
    assert {block for window in windows for block in window} == set(range(depth))
    for before, after in pairwise(windows):
        assert before.start <= after.start
        assert before.stop <= after.stop
    assert len(set(windows)) == len(windows)


def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(tmp_path):
    model, text = tiny_folder(tmp_path / "model"), tmp_path / "text.txt"
    text.write_text(TEXT)
    for steps in ("omniquant(bits=2, group_size=0, epochs=3)", "sliderquant(bits=3, group_size=0, epochs=2)"):
        recipe = Recipe.of(steps, Calibration(str(text), tokens=128, length=32, batch=2))
        out = tmp_path / steps.partition("(")[0]
        whole = tmp_path / f"{out.name}-whole"
        compress(model, recipe, whole)

        def stop(now):
            if now.phase == "learn" and now.done >= now.total // 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            compress(model, recipe, out, watch=stop, checkpoint_every=0)
        compress(model, recipe, out, checkpoint_every=0)
        disk = tmp_path / f"{out.name}-disk"
        compress(model, recipe, disk, offload=tmp_path / "place")
        wanted = (whole / "model.safetensors").read_bytes()
        assert (out / "model.safetensors").read_bytes() == wanted
        assert (disk / "model.safetensors").read_bytes() == wanted


def test_a_loss_that_is_no_number_stops_the_run():
    recipe = Recipe((Step(registry.get("flexround")(bits=2, group_size=0)),))
    model = tiny("llama")
    model.model.layers[1].post_attention_layernorm.weight.data *= 1e30  # the square of what follows is beyond float32
    with pytest.raises(CalibrationError, match="blocks 1 to 1, epoch 1 of 10"):
        run(model, recipe, batches())


def test_what_cannot_be_learned_is_refused():
    method = registry.get("omniquant")(group_size=0)
    with pytest.raises(RecipeError, match="learns in float32"):
        run(tiny("llama"), Recipe((Step(method),), Calibration(compute="bfloat16")), batches())
    with pytest.raises(RecipeError, match="learns matrices of blocks; leave lm_head out"):
        run(tiny("llama"), Recipe((Step(method, Where(only=("lm_head",))),)), batches())


def test_the_parameters_of_the_model_are_left_as_they_were():
    model = tiny("llama")
    run(model, Recipe((Step(registry.get("omniquant")(group_size=0, epochs=1)),)), batches())
    own = [p for m in model.modules() if isinstance(m, nn.RMSNorm) or "Norm" in type(m).__name__ for p in m.parameters()]
    assert own
    assert all(p.requires_grad and p.grad is None for p in own)
