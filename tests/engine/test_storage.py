"""A size that was asked for is the size of the files: planned to the byte, saved, never exceeded."""

import re
from pathlib import Path

import pytest
import torch

from trimtab.anatomy import Anatomy
from trimtab.core.errors import UsageError
from trimtab.core.kinds import LinearWeight
from trimtab.core.recipe import Recipe, Step, Where
from trimtab.core.registry import get
from trimtab.engine.plan import plan
from trimtab.engine.run import run
from trimtab.engine.storage import tensors
from trimtab.host.checkpoint import load, save
from trimtab.measure.size import file_bytes
from trimtab.testing.roundtrip import shown
from trimtab.testing.tiny import tiny


def made(model, recipe: Recipe | str, folder: Path) -> tuple[int, int]:
    """(bytes of the tensors, bytes of the weight files) of a model saved after the recipe; the plan must have known."""
    recipe = Recipe.of(recipe) if isinstance(recipe, str) else recipe
    planned = plan(Anatomy.of(model), recipe)
    run(model, recipe, shown(model))
    taken = sum(t.nbytes for t in tensors(model))
    assert planned.bytes_after == taken
    saved = save(model, None, folder)
    reopened, _ = load(saved, dtype="auto")
    assert sum(t.nbytes for t in tensors(reopened)) == taken
    return taken, round(file_bytes(saved).value)


def held(model) -> list[tuple[LinearWeight, int]]:
    """What stands in the blocks, and how many weights each stands for."""
    anatomy = Anatomy.of(model)
    return [(anatomy.weight(s), s.shape[0] * s.shape[1]) for s in anatomy.sites if s.block is not None]


@pytest.mark.parametrize("size", ["132kB", "145001"])
def test_a_size_is_met_and_never_exceeded(size: str, tmp_path: Path) -> None:
    asked = float(size.removesuffix("kB")) * (1000 if "kB" in size else 1)
    _, files = made(tiny("llama"), f"gptq(clip=True, group_size=32) by shiftadd_bits(size='{size}', high=6)", tmp_path / "out")
    assert 0.995 * asked <= files <= asked


@pytest.mark.parametrize("family", ["gpt2", "mixtral", "gemma3", "lfm2"])
def test_sizes_hold_in_every_layout(family: str, tmp_path: Path) -> None:
    """Tied heads, transposed matrices, stacks of experts, biases, blocks that differ."""
    model = tiny(family).bfloat16()
    before = sum(t.nbytes for t in tensors(model))
    _, files = made(model, "rtn(group_size=16) by shiftadd_bits(size='50%', high=8)", tmp_path / "out")
    assert 0.98 * before / 2 <= files <= before / 2


def test_the_smallest_model_is_said_and_can_be_had(tmp_path: Path) -> None:
    recipe = "gptq(group_size=32) by shiftadd_bits(size='{}')"
    with pytest.raises(UsageError, match="below the smallest possible model: 2 bits everywhere") as refused:
        plan(Anatomy.of(tiny("llama")), Recipe.of(recipe.format("90kB")))
    smallest = re.search(r"size='(\d+)'", str(refused.value).partition("everywhere")[2])[1]
    with pytest.raises(UsageError, match="smallest"):
        plan(Anatomy.of(tiny("llama")), Recipe.of(recipe.format(int(smallest) - 1)))
    model = tiny("llama")
    _, files = made(model, recipe.format(smallest), tmp_path / "out")
    assert int(smallest) * 0.995 <= files <= int(smallest)
    assert {weight.spec()["bits"] for weight, _ in held(model)} == {2}


def test_an_average_too_low_is_refused_before_any_weight_moves() -> None:
    model = tiny("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UsageError, match=r"bits=2 is below the smallest.*2 bits everywhere are 2\.362 stored"):
        run(model, Recipe.of("rtn by luq(bits=2)"), shown(model))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    run(model, Recipe.of("rtn by luq(bits=2.362)"), shown(model))


def test_what_a_uniform_width_takes_is_used_up_to_the_byte(tmp_path: Path) -> None:
    """Mixed widths at the average of a uniform one: the same bytes, not the same bits everywhere."""
    uniform = plan(Anatomy.of(tiny("llama")), Recipe.of("gptq(bits=3)"))
    bits = uniform.steps[0].bits
    model = tiny("llama")
    taken, _ = made(model, f"gptq by shiftadd_bits(bits={bits})", tmp_path / "out")
    assert taken == uniform.bytes_after
    weights = held(model)
    assert {w.spec()["bits"] for w, _ in weights} == {2, 3, 4}
    assert sum(w.bits * n for w, n in weights) / sum(n for _, n in weights) == pytest.approx(bits)


def test_bits_are_stored_bits(tmp_path: Path) -> None:
    """Average 3.0 of a method with overhead: codes, scales and zero points together stay below it."""
    model = tiny("llama")
    made(model, "gptq by shiftadd_bits(bits=3.0)", tmp_path / "out")
    weights = held(model)
    mean = sum(8 * sum(t.nbytes for t in w.tensors().values()) for w, _ in weights) / sum(n for _, n in weights)
    assert 3.0 * 0.995 <= mean <= 3.0


def test_later_steps_count(tmp_path: Path) -> None:
    """What a low-rank term takes on top is part of the size."""
    _, files = made(tiny("llama"), "rtn(group_size=32) by shiftadd_bits(size='180kB') -> lqer(rank=4)", tmp_path / "out")
    assert 180_000 * 0.98 <= files <= 180_000


def test_earlier_steps_and_other_matrices_count(tmp_path: Path) -> None:
    head = Step(get("rtn")(bits=8, group_size=32), Where(only=("lm_head",)))
    rest = Step(get("gptq")(group_size=32), by=get("shiftadd_bits")(size="125kB"))
    _, files = made(tiny("llama"), Recipe((head, rest)), tmp_path / "out")
    assert 125_000 * 0.995 <= files <= 125_000


def test_two_budgets_of_bits_add_up(tmp_path: Path) -> None:
    attention, mlp = Where(only=("self_attn",)), Where(only=("mlp",))
    by = get("shiftadd_bits")
    first = Step(get("gptq")(group_size=32), attention, by=by(bits=3.5))
    made(tiny("llama"), Recipe((first, Step(get("gptq")(group_size=32), mlp, by=by(bits=3.2)))), tmp_path / "out")


def test_a_size_beside_another_allocator_is_known_only_later(tmp_path: Path) -> None:
    """At the plan nobody knows what the first one chooses; when the second one is asked, it is known."""
    first = Step(get("rtn")(group_size=32), Where(only=("self_attn",)), by=get("shiftadd_bits")(bits=3.5))
    second = Step(get("rtn")(group_size=32), Where(only=("mlp",)), by=get("shiftadd_bits")(size="150kB"))
    model, recipe = tiny("llama"), Recipe((first, second))
    assert plan(Anatomy.of(model), recipe).bytes_after is None
    run(model, recipe, shown(model))
    assert file_bytes(save(model, None, tmp_path / "out")).value <= 150_000
    with pytest.raises(UsageError, match="the data decide what the other matrices take; use `bits`"):
        run(tiny("llama"), Recipe((second, first)), shown(tiny("llama")))


def test_after_narrowing_the_size_is_met_though_it_was_not_known(tmp_path: Path) -> None:
    model, recipe = tiny("llama"), Recipe.of("flap(sparsity=0.2) -> rtn(group_size=0) by luq(size='30%')")
    planned = plan(Anatomy.of(model), recipe)
    assert planned.bytes_after is None
    run(model, recipe, shown(model))
    assert file_bytes(save(model, None, tmp_path / "out")).value <= 0.3 * planned.bytes_before


@pytest.mark.parametrize(
    ("expression", "match"), [("hlq by luq(bits=4, high=5)", "hlq: bits"), ("rtn by luq(low=1)", "rtn: bits")]
)
def test_strengths_the_method_does_not_have_are_refused(expression: str, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        plan(Anatomy.of(tiny("llama")), Recipe.of(expression))
