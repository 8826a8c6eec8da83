"""Factored models that are trained on: their factors and cores learn, the files stay as small, what is dense may stand still."""

import json

import pytest
import torch
from safetensors.torch import load_file

from trimtab.anatomy import Anatomy
from trimtab.core.errors import ModelError, RecipeError
from trimtab.core.recipe import Calibration, Recipe, Step, Where
from trimtab.core.registry import get
from trimtab.engine.plan import plan
from trimtab.engine.run import run
from trimtab.engine.storage import tensors
from trimtab.formats import Chain, Dense, Mpo, Sum
from trimtab.host.compress import compress
from trimtab.host.school import school
from trimtab.testing.folders import tiny_folder
from trimtab.testing.roundtrip import logits, ran, reopened, shown
from trimtab.testing.tiny import tiny

Recover, Distill, Svd = get("recover"), get("distill"), get("svd")
LESSON = "steps=20, windows=2, learning_rate=0.01"


def nbytes(model) -> int:
    return sum(t.nbytes for t in tensors(model))


def weights(model) -> dict:
    anatomy = Anatomy.of(model)
    return {site.name: anatomy.weight(site) for site in anatomy.sites if site.block is not None}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize(
    ("first", "format"), [("svd(keep=0.5)", Chain), ("compactifai(keep=0.6)", Mpo), ("rtn(bits=2) -> lqer(rank=4)", Sum)]
)
def test_it_learns_and_stays_what_it_is(family, rank, first, format):
    before, _ = ran(family, Recipe.of(first))
    model, bench = ran(family, Recipe.of(f"{first} -> recover(rank={rank}, {LESSON})"))
    receipt = bench.receipts[-1]
    assert receipt.notes["last_loss"] < receipt.notes["first_loss"] - 0.05
    then, now = weights(before), weights(model)
    assert {name: weight.spec() for name, weight in now.items()} == {name: weight.spec() for name, weight in then.items()}
    assert format in {type(weight) for weight in now.values()}
    assert nbytes(model) == nbytes(before)
    assert receipt.bits_before == receipt.bits_after
    assert not torch.equal(logits(model), logits(before))
    assert torch.equal(logits(reopened(model)), logits(model))


@pytest.mark.parametrize("method", [Recover, Distill])
@pytest.mark.parametrize("rank", [0, 4])
def test_with_factored_alone_nothing_dense_moves(method, rank):
    some = Step(Svd(keep=0.5), where=Where(only=("mlp",)))
    lesson = Step(method(rank=rank, learn="factored", steps=3, windows=2, learning_rate=0.01))
    before, _ = ran("qwen2", Recipe((some,)))
    model, bench = ran("qwen2", Recipe((some, lesson)))
    then, now, found = weights(before), weights(model), set()
    for name, weight in now.items():
        found.add(same := type(weight) is Dense)
        assert torch.equal(weight.dense(), then[name].dense()) == same
    assert found == {True, False}
    factors = {name for name, module in model.named_modules() if type(module).__name__ == "PackedLinear"}
    plain = {n: p for n, p in model.named_parameters() if n.rpartition(".")[0] not in factors or n.endswith("bias")}
    old = dict(before.named_parameters())
    assert all(torch.equal(p, old[n]) for n, p in plain.items())
    assert bench.receipts[-1].notes["trained_in_matrices"] == lesson.method.trained(Anatomy.of(before))
    assert lesson.method.trained(Anatomy.of(before)) < method(rank=rank).trained(Anatomy.of(before))


def test_one_factor_after_the_other():
    lesson = "steps=3, windows=2, learning_rate=0.01"
    steps = ["svd(keep=0.5)", f"recover(learn='left', {lesson})", f"recover(learn='right', {lesson})"]
    first, second, third = (weights(ran("llama", Recipe.of(" -> ".join(steps[:n])))[0]) for n in (1, 2, 3))
    for name, weight in first.items():
        (a, b), (c, d), (e, f) = (found[name].factors for found in (first, second, third))
        assert [torch.equal(x.dense(), y.dense()) for x, y in ((a, c), (b, d), (c, e), (d, f))] == [False, True, True, False]
        assert type(weight) is Chain


def test_in_half_precision_the_factors_stay_half():
    model, bench = ran("llama", Recipe.of(f"svd(keep=0.5) -> recover(rank=0, {LESSON})"), dtype=torch.bfloat16)
    assert {t.dtype for weight in weights(model).values() for t in weight.tensors().values()} == {torch.bfloat16}
    assert bench.receipts[-1].notes["last_loss"] < bench.receipts[-1].notes["first_loss"]


def test_a_stopped_training_of_factors_goes_on_to_the_same_bytes(tmp_path):
    model, text = tiny_folder(tmp_path / "model"), tmp_path / "text.txt"
    text.write_text("\n\n".join(f"paragraph {n} of a text that says very little, again and again" for n in range(60)))
    steps = "svd(keep=0.5) -> recover(steps=10, windows=2, rank=0, learn='factored', learning_rate=0.01)"
    recipe = Recipe.of(steps, Calibration(str(text), 256, 32))
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
    compress(model, Recipe.of("svd(keep=0.5)", recipe.calibration), tmp_path / "factored")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("factored", "whole")]
    assert sizes[0] == sizes[1]
    # and a folder that came factored is trained on
    compress(tmp_path / "factored", Recipe.of("recover(steps=2, windows=2)", recipe.calibration), tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").stat().st_size == sizes[0]
    receipts = json.loads((tmp_path / "again" / "receipt.json").read_text())["receipts"]
    assert receipts[-1]["notes"]["trained_in_matrices"] > 0


def test_what_cannot_learn_is_named_before_anything_moves():
    anatomy = Anatomy.of(tiny("llama"))
    for steps in ("rtn(bits=4) -> recover", "svd(keep=0.5) -> rtn(bits=4, group_size=0) -> distill"):
        with pytest.raises(RecipeError, match=r"needs plain matrices, Chain, Sum, Mpo, but .* is Grouped by then"):
            plan(anatomy, Recipe.of(steps))
    with pytest.raises(RecipeError, match=r"edkm needs plain matrices, but .* is Chain by then"):
        plan(anatomy, Recipe.of("svd(keep=0.5) -> edkm"))
    found = plan(anatomy, Recipe.of("svd(keep=0.5) -> recover"))
    assert found.bytes_after == plan(anatomy, Recipe.of("svd(keep=0.5)")).bytes_after
    model = tiny("llama")
    with pytest.raises(RecipeError, match="no matrix has factors of that kind; put a step before it"):
        run(model, Recipe((Recover(learn="factored", windows=2),)), shown(model), school=school)
    with pytest.raises(ModelError, match="other matrices stand on the basis of"):
        ran("llama", Recipe.of("basis_sharing(keep=0.5) -> recover(steps=1, windows=2)"))


def test_what_is_not_factored_yet_is_counted_as_if_all_were_trained():
    anatomy = Anatomy.of(tiny("llama"))
    for rank in (0, 4):
        assert Recover(rank=rank, learn="factored").trained(anatomy) == Recover(rank=rank).trained(anatomy) > 0
