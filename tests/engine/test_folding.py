"""Folding any scale into any family leaves the function alone, to the last digits; and what cannot be folded is left alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from trimtab.anatomy import Anatomy
from trimtab.core.card import Card
from trimtab.core.errors import CalibrationError, ModelError, RecipeError, TrimtabError, UsageError
from trimtab.core.kinds import Reference, ScaleMethod, Seen
from trimtab.core.knobs import model as another_model
from trimtab.core.knobs import number
from trimtab.core.places import Fold, Gain, Role
from trimtab.core.recipe import Recipe, Step, Where
from trimtab.core.registry import get
from trimtab.core.seeds import Seeds
from trimtab.engine.run import Bench, run
from trimtab.formats import Masked
from trimtab.stats import AbsMean
from trimtab.testing.roundtrip import Float64, in_float64, logits, shown
from trimtab.testing.tiny import ARCHITECTURES, tiny

CARD = Card(id="shaken", title="Scales at random", paper="none", fidelity="exact")


@dataclass(frozen=True)
class Shaken(ScaleMethod):
    """Every fold gets random scales, the spread of their logarithms as asked."""

    card: ClassVar = CARD
    spread: float = number("standard deviation of the logarithm", 1.0, 0)

    def scale(self, fold: Fold, weights: Any, seen: Seen) -> Tensor:
        draw = torch.randn(fold.width, generator=seen.generator, dtype=torch.float64)
        return fold.pooled(self.spread * draw).exp()


def answering(answer: Callable[[Fold], Tensor | None]) -> ScaleMethod:
    """A method that answers so."""

    @dataclass(frozen=True)
    class Answer(ScaleMethod):
        card: ClassVar = CARD

        def scale(self, fold: Fold, weights: Any, seen: Seen) -> Tensor | None:
            return answer(fold)

    return Answer()


def ran(model: PreTrainedModel, *steps: Any, **more: Any) -> Bench:
    return run(model, Recipe(steps), shown(model), **more)


def state(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_random_scales_at_every_fold_keep_the_logits(family: str) -> None:
    model = in_float64(family)
    before, folds = state(model), Anatomy.of(model).folds()
    with Float64():
        expected = logits(model)
    bench = ran(model, Shaken())
    with Float64():
        change = float((logits(model) - expected).norm() / expected.norm())
    assert change < 1e-10
    assert [r.place for r in bench.receipts] == [fold.name for fold in folds], "every fold was used, in order"
    assert not bench.notes
    moved = {name.removesuffix(".weight") for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {fold.source.path for fold in folds if isinstance(fold.source, Gain)} <= moved
    assert {site.path for fold in folds for site in fold.consumers} <= moved


def test_receipts_say_where_and_how_far() -> None:
    model = tiny("llama", num_hidden_layers=1)
    bench = ran(model, Shaken(spread=0.5))
    assert {r.kind for r in bench.receipts} == {"scale"}
    assert [r.weights for r in bench.receipts] == [64 * 128, 64 * 64, 2 * 64 * 128, 64 * 128]
    for receipt in bench.receipts:
        assert receipt.bits_before == receipt.bits_after == 32
        assert 0 < receipt.notes["least"] < 1 < receipt.notes["most"]
    assert bench.drew


def test_a_norm_that_also_feeds_the_residual_stream_is_left_alone() -> None:
    """OPT with norms behind the branches: their outputs are read by matrices and added to what comes next."""
    model = tiny("opt", do_layer_norm_before=False)
    assert [f.name for f in Anatomy.of(model).folds() if isinstance(f.source, Gain)], "the anatomy cannot see that"
    before = state(model)
    bench = ran(model, answering(lambda fold: None if fold.source.__class__ is not Gain else torch.arange(1.0, fold.width + 1)))
    assert not bench.receipts
    assert all("alone: what it gives goes elsewhere too" in note for note in bench.notes[:-1])
    assert "nothing to scale" in bench.notes[-1]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_pruned_weights_stay_pruned_and_later_steps_see_the_scaled_ones() -> None:
    model, plain = tiny("llama"), tiny("llama")
    ran(plain, get("wanda")(sparsity=0.5))
    dead = {name: value == 0 for name, value in plain.state_dict().items() if name.endswith("proj.weight")}
    bench = ran(model, get("wanda")(sparsity=0.5), Shaken(spread=0.5), get("gptq")(bits=8, group_size=32))
    change = float((logits(model) - logits(plain)).norm() / logits(plain).norm())
    assert change < 0.05, "eight bits of the scaled matrices, not of those before"
    assert all(isinstance(weight, Masked) for weight in bench.held.values())
    for name, zeros in dead.items():
        assert not model.get_submodule(name.removesuffix(".weight")).weight_value.dense()[zeros].any()


def test_sparse_containers_are_scaled_as_they_are() -> None:
    model, plain = tiny("llama"), tiny("llama")
    for one, more in ((model, (Shaken(),)), (plain, ())):
        ran(one, get("wanda")(sparsity=0.5), *more, packed=True)
    assert torch.allclose(logits(model), logits(plain), atol=1e-4)
    assert isinstance(model.model.layers[0].mlp.up_proj.weight_value, Masked)


@pytest.mark.parametrize(("dtype", "off"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_half_precision_keeps_its_dtype_and_the_function_up_to_rounding(dtype: torch.dtype, off: float) -> None:
    model, before = tiny("llama").to(dtype), tiny("llama").to(dtype)
    bench = ran(model, Shaken(spread=0.5))
    assert len(bench.receipts) == 16
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert (logits(model) - logits(before)).float().norm() < off * logits(before).float().norm()


def test_a_scale_that_half_precision_cannot_hold_is_refused() -> None:
    model = tiny("llama").half()
    with pytest.raises(CalibrationError, match=r"q_proj exceeds torch\.float16 when its scale"):
        ran(model, answering(lambda fold: torch.full((fold.width,), 1e7)))


def test_where_chooses_consumers() -> None:
    def folded(where: Where) -> set[str]:
        model = tiny("llama", num_hidden_layers=2)
        return {r.place for r in run(model, Recipe((Step(Shaken(), where),)), shown(model)).receipts}

    down = {f"model.layers.{i}.mlp.up_proj" for i in (0, 1)}
    assert folded(Where(only=("down_proj",))) == down
    assert folded(Where(only=("layers.1",), skip=("q_proj", "o_proj"))) == {
        "model.layers.1.post_attention_layernorm",
        "model.layers.1.mlp.up_proj",
    }
    with pytest.raises(TrimtabError, match="no place in this model"):
        folded(Where(only=("gate_proj",)))


def test_a_router_follows_its_norm_without_being_named() -> None:
    model = tiny("mixtral", num_hidden_layers=1)
    before = model.model.layers[0].mlp.gate.weight.clone()
    bench = ran(model, Shaken())
    (receipt,) = [r for r in bench.receipts if r.place.endswith("post_attention_layernorm")]
    assert receipt.weights == 4 * 64 * 64, "what the method is asked about does not include it"
    assert not torch.equal(model.model.layers[0].mlp.gate.weight, before)


def test_what_is_rounded_already_is_not_folded() -> None:
    with pytest.raises(RecipeError, match=r"shaken needs plain matrices, but .*q_proj is Grouped by then"):
        ran(tiny("llama"), get("rtn")(), Shaken())
    rounded = Step(get("rtn")(), Where(only=("up_proj",)))
    model = tiny("llama")
    bench = ran(model, rounded, Step(Shaken(), Where(only=("down_proj", "o_proj"))))
    assert [r.place for r in bench.receipts if r.kind == "scale"] == [f"model.layers.{i}.self_attn.v_proj" for i in range(4)]
    assert "shaken left 4 folds alone, e.g. model.layers.0.mlp.up_proj" in bench.notes[0]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda fold: torch.zeros(fold.width), "one positive number"),
        (lambda fold: torch.full((fold.width,), torch.nan), "one positive number"),
        (lambda fold: torch.ones(fold.width - 1), "one positive number for each of 64"),
        (lambda fold: torch.arange(1.0, fold.width + 1), r"v_proj: columns that depend on the same output"),
    ],
)
def test_answers_that_break_the_protocol_are_refused(answer: Callable[[Fold], Tensor], error: str) -> None:
    with pytest.raises(TrimtabError, match=error):
        ran(tiny("llama"), answering(answer))


def test_statistics_are_those_of_the_untouched_model() -> None:
    """Whatever was done to earlier folds, in the same block or before."""

    def loudness(spread: float) -> dict[str, Tensor]:
        seen_there = {}

        @dataclass(frozen=True)
        class Listening(ScaleMethod):
            card: ClassVar = CARD
            needs: ClassVar = (AbsMean,)

            def scale(self, fold: Fold, weights: Any, seen: Seen) -> Tensor:
                assert set(seen[AbsMean]) == set(fold.consumers) == set(weights)
                seen_there[fold.name] = seen[AbsMean][fold.consumers[0]]
                return Shaken(spread=spread).scale(fold, weights, Seen({}, Seeds(1).at(fold.name)))

        ran(tiny("llama"), Listening())
        return seen_there

    untouched, shaken = loudness(0.0), loudness(1.0)
    assert untouched.keys() == shaken.keys()
    for name, value in untouched.items():
        assert torch.allclose(value, shaken[name], rtol=1e-3, atol=1e-5), name


@dataclass(frozen=True)
class Compared(ScaleMethod):
    """Looks at another model and changes nothing."""

    card: ClassVar = CARD
    needs: ClassVar = (Reference,)
    base: str = another_model("the other one")

    def scale(self, fold: Fold, weights: Any, seen: Seen) -> Tensor | None:
        assert all(torch.equal(seen[Reference][site], 2 * weight.dense()) for site, weight in weights.items())
        assert not [site for site in seen[Reference] if site.role is Role.HEAD]
        return None


def test_another_model_is_shown_by_site() -> None:
    model, base = tiny("mixtral"), tiny("mixtral")
    with torch.no_grad():
        for parameter in base.model.layers.parameters():
            parameter *= 2
    ran(model, Compared(base="elsewhere"), bases={"elsewhere": base})


def test_another_model_that_is_missing_or_does_not_fit_is_refused_before_any_weight_moves() -> None:
    model = tiny("llama")
    before = state(model)
    with pytest.raises(UsageError, match="compares with another model; say which"):
        ran(model, Shaken(), Compared())
    with pytest.raises(UsageError, match="compares with 'elsewhere', which was not given"):
        ran(model, Shaken(), Compared(base="elsewhere"))
    with pytest.raises(ModelError, match=r"elsewhere is another model: .*gate_proj is \(96, 64\) there and \(128, 64\) here"):
        ran(model, Shaken(), Compared(base="elsewhere"), bases={"elsewhere": tiny("llama", intermediate_size=96)})
    with pytest.raises(ModelError, match=r"elsewhere is another model: .*layers\.2.* is missing there"):
        ran(model, Shaken(), Compared(base="elsewhere"), bases={"elsewhere": tiny("llama", num_hidden_layers=2)})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
