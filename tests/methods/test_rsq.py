"""RSQ: GPTQ where all tokens count the same, and better than GPTQ at the tokens that count more."""

import pytest
import torch
from torch import Tensor

from trimtab.anatomy import Anatomy
from trimtab.core.errors import UsageError
from trimtab.core.kinds import Seen
from trimtab.core.places import Role, Site
from trimtab.core.recipe import Recipe
from trimtab.engine.plan import plan
from trimtab.engine.run import run
from trimtab.formats import Dense, swept
from trimtab.methods.quantize.gptq import Gptq
from trimtab.methods.quantize.rsq import Rsq
from trimtab.stats.weighed_gram import weights
from trimtab.testing.roundtrip import logits, ran, shown
from trimtab.testing.tiny import tiny

SITE = Site("model.layers.0.mlp.down_proj", Role.DOWN, (24, 64), block=0)


def problem(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """weight [24, 64], inputs of 4 windows [400, 64], the attention that their tokens draw [4, 100]."""
    draw = torch.Generator().manual_seed(seed)
    mixing = torch.randn(64, 64, generator=draw) / 8 + torch.eye(64) / 2
    x = torch.randn(4, 100, 64, generator=draw) @ mixing
    other = torch.randn(4, 100, 64, generator=draw) @ torch.randn(64, 64, generator=draw) / 8
    drawn = torch.rand(4, 100, generator=draw).pow(8)
    kind = drawn[..., None].sqrt()
    return torch.randn(24, 64, generator=draw), (x * kind + other * (1 - kind)).flatten(0, 1), drawn


def solved(method, weight: Tensor, x: Tensor, drawn: Tensor) -> Tensor:
    (need,) = method.needs
    about = (drawn,) if need.on == "attended" else ()
    gram = need.finish(need.update(need.start(SITE.shape, x.device), x, *about))
    return method.solve(Dense(weight), Seen({need: gram}), SITE).dense()


@pytest.mark.parametrize("seed", range(3))
def test_tokens_that_count_more_come_out_better(seed: int) -> None:
    weight, x, drawn = problem(seed)
    counted = weights(drawn, 0.005).double().flatten()
    made = {m: solved(m, weight, x, drawn) for m in (Rsq(bits=3), Gptq(bits=3), Rsq(bits=3, reverse=True))}
    errors = {m: ((x @ (found - weight).T).double().square().sum(1) * counted).sum() for m, found in made.items()}
    assert list(errors.values()) == sorted(errors.values())


def test_at_a_floor_of_one_it_is_gptq_whatever_the_score() -> None:
    expected = logits(ran("llama", Recipe.of("gptq(bits=3, group_size=0)"))[0])
    for importance in ("attention", "norm", "change", "distance", "first_half"):
        model, _ = ran("llama", Recipe.of(f"rsq(bits=3, group_size=0, floor=1.0, importance='{importance}')"))
        assert torch.equal(logits(model), expected), importance


def test_every_score_gives_another_model() -> None:
    made = [f"importance='{name}'" for name in ("attention", "norm", "change", "distance", "first_half")]
    made += ["reverse=True", "cap=0.9", "floor=0.5"]
    found = [logits(ran("llama", Recipe.of(f"quarot -> rsq(bits=2, group_size=0, {knobs})"))[0]) for knobs in made]
    assert all(not torch.equal(a, b) for i, a in enumerate(found) for b in found[:i])


def test_matrices_that_share_an_input_share_its_factorization(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    prepared = swept.prepared
    monkeypatch.setattr(swept, "prepared", lambda *given: calls.append(given) or prepared(*given))
    model = tiny("llama")
    bench = run(model, Recipe.of("rsq(bits=3, group_size=0)"), shown(model))
    assert len(calls) == 4 * len(Anatomy.of(model).blocks)
    assert len(bench.receipts) == 7 * len(Anatomy.of(model).blocks)


def test_experts_are_refused_before_anything_is_done() -> None:
    with pytest.raises(UsageError, match=r"rsq: which tokens reach .* is not known"):
        plan(Anatomy.of(tiny("mixtral")), Recipe.of("rsq(bits=3, group_size=0)"))
