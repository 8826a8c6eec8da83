"""What comes factored is rounded factor by factor: each for the inputs that the rounded ones before it give."""

import pytest
import torch

from trimtab.anatomy import Anatomy
from trimtab.core.errors import RecipeError, UsageError
from trimtab.core.kinds import Seen
from trimtab.core.recipe import Recipe
from trimtab.core.registry import get
from trimtab.engine import by_factor
from trimtab.engine.plan import plan
from trimtab.formats import Chain, Dense, Grouped, low_rank
from trimtab.stats import Gram
from trimtab.testing.problems import Layer, layer, seen, solve
from trimtab.testing.roundtrip import logits, ran, reopened
from trimtab.testing.tiny import tiny


def factored(problem: Layer) -> Chain:
    return solve(get("svd_llm")(keep=0.9, multiple=8), problem)


def test_every_factor_is_rounded_for_what_reaches_it() -> None:
    """The same as two layers in a row, the second shown what the first one, rounded, puts out."""
    problem = layer()
    left, right = (factor.weight for factor in factored(problem).factors)
    made = get("gptq")(bits=3, group_size=8)
    answer = by_factor.solved(made, low_rank(left, right, torch.float32), seen(made, problem), problem.site)
    first = Layer(right, problem.x)
    alone = solve(made, first)
    second = solve(made, Layer(left, problem.x @ alone.dense().T))
    assert torch.equal(answer.factors[1].dense(), alone.dense())
    assert float((answer.factors[0].dense() - second.dense()).norm() / second.dense().norm()) < 0.02
    plain = Chain((solve(get("rtn")(bits=3, group_size=8), Layer(left, problem.x)), alone))
    assert problem.error(answer) < problem.error(plain)


def test_what_it_does_not_take_stays() -> None:
    problem = layer()
    left, right = factored(problem).factors
    coded = solve(get("rtn")(group_size=8), Layer(right.weight, problem.x))
    made = get("gptq")(bits=8, group_size=8)
    answer = by_factor.solved(made, Chain((left, coded)), seen(made, problem), problem.site)
    assert answer.factors[1] is coded
    assert isinstance(answer.factors[0], Grouped)


def test_randomness_and_notes_are_the_places_own() -> None:
    draw = torch.Generator().manual_seed(0)
    outer = Seen({Gram: torch.eye(4)}, draw)
    inner = outer.showing({})
    assert inner.generator is draw
    assert not outer.drew
    problem = layer()
    made = get("gptq")(group_size=8)
    shown = seen(made, problem)
    by_factor.solved(made, factored(problem), shown, problem.site)
    assert shown.notes.keys() == {"damping, factor 0", "damping, factor 1"}
    assert not shown.drew


RECIPE = "svd_llm(keep=0.7, multiple=8) -> {}"


@pytest.mark.parametrize("method", ["gptq(bits=8, group_size=8)", "rtn(bits=8, group_size=0)"])
def test_a_model_is_factored_then_rounded(method: str) -> None:
    """At eight bits next to nothing is lost; the plan knew the size; another process opens the same."""
    recipe = Recipe.of(RECIPE.format(method))
    before = plan(Anatomy.of(tiny("llama")), recipe)
    whole, _ = ran("llama", Recipe.of(RECIPE.split(" ->")[0]))
    model, bench = ran("llama", recipe)
    kinds = {factor.kind for site in before.steps[1].sites for factor in Anatomy.of(model).weight(site).factors}
    assert kinds == {"grouped"}
    assert float((logits(model) - logits(whole)).norm() / logits(whole).norm()) < 0.06
    stored = sum(t.nbytes for t in model.state_dict(keep_vars=True).values())
    assert before.bytes_after == stored - (0 if not Anatomy.of(model).tied else model.lm_head.weight.nbytes)
    last = [receipt for receipt in bench.receipts if receipt.step == 2]
    assert before.steps[1].bits == pytest.approx(
        sum(r.bits_after * r.weights for r in last) / sum(r.weights for r in last), rel=1e-9
    )
    assert torch.equal(logits(reopened(model)), logits(model))


def test_a_factor_that_does_not_fit_is_refused_before_anything_is_done() -> None:
    with pytest.raises(UsageError, match=r"group_size.*q_proj|q_proj.*group_size"):
        plan(Anatomy.of(tiny("llama")), Recipe.of("svd(keep=0.7) -> rtn(group_size=16)"))


@pytest.mark.parametrize("method", ["wanda", "svd_llm", "magnitude", "omniquant"])
def test_only_codes_go_into_factors(method: str) -> None:
    with pytest.raises(RecipeError, match="is Chain by then"):
        plan(Anatomy.of(tiny("llama")), Recipe.of(f"svd -> {method}"))


def test_ranks_that_data_decide_are_checked_when_they_are_known() -> None:
    ran("llama", Recipe.of("svd by welore -> rtn(group_size=0)"))
    with pytest.raises(UsageError, match="in % group_size == 0"):
        ran("llama", Recipe.of("svd by welore(keep=0.5) -> rtn(group_size=64)"))


def test_a_product_without_a_plain_factor_is_refused() -> None:
    problem = layer()
    coded = solve(get("rtn")(group_size=8), problem)
    with pytest.raises(UsageError, match="does not take a product of grouped"):
        by_factor.solved(get("rtn")(), Chain((coded,)), seen(get("rtn")(), problem), problem.site)
    assert not by_factor.factors(get("rtn")(), layer().site, Dense(layer().weight).spec())
