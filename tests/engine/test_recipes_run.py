"""Recipes on tiny models: what composes, what is touched, what is promised, and what happens when it cannot be done."""

import copy

import pytest
import torch

from trimtab.anatomy import Anatomy
from trimtab.core.errors import CalibrationError, ModelError, RecipeError, TrimtabError, UsageError
from trimtab.core.places import Role
from trimtab.core.recipe import Recipe, Step, Where
from trimtab.core.registry import get
from trimtab.engine.plan import plan
from trimtab.engine.run import run
from trimtab.engine.storage import tensors
from trimtab.formats import Dense, Grouped, Masked, Sum
from trimtab.testing.roundtrip import logits, ran, reopened, same_after_saving, shown
from trimtab.testing.tiny import ARCHITECTURES, tiny

NARROWABLE = ("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "phi3", "smollm3", "gpt2", "gpt_neox", "opt")


def state(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def weights(model):
    anatomy = Anatomy.of(model)
    return {s: anatomy.weight(s) for s in anatomy.sites}


def test_pruned_then_rounded_then_mended() -> None:
    model, bench = ran("llama", Recipe.of("wanda(pattern='2:4') -> gptq(bits=3, group_size=32) -> lqer(rank=4)"))
    block = {s: w for s, w in weights(model).items() if s.block is not None}
    assert len(block) == 28
    for site, weight in block.items():
        assert isinstance(weight, Sum), site.name
        assert isinstance(weight.parts[0], Grouped)
        alive = (weight.parts[0].dense() != 0).reshape(-1, 4).sum(1)
        assert alive.max() <= 2
        assert alive.float().mean() > 1
    assert [r.step for r in bench.receipts[:3]] == [1, 2, 3]
    errors = [sum(r.error for r in bench.receipts if r.step == n) for n in (1, 2, 3)]
    assert errors[2] < errors[1]


def test_composed_recipe_is_the_same_after_saving() -> None:
    same_after_saving("llama", Recipe.of("wanda(pattern='2:4') -> gptq(bits=3, group_size=32) -> lqer(rank=4)"))


@pytest.mark.parametrize("packed", [False, True])
def test_sparse_results_are_stored_as_asked(packed: bool) -> None:
    model = tiny("llama")
    run(model, Recipe.of("wanda(sparsity=0.5)"), shown(model), packed=packed)
    found = {type(w) for s, w in weights(model).items() if s.block is not None}
    assert found == {Masked} if packed else {Dense}
    twin, _ = ran("llama", Recipe.of("wanda(sparsity=0.5)"))
    assert torch.equal(logits(model), logits(twin))
    assert torch.equal(logits(reopened(model)), logits(model))


def test_steps_in_two_phases_remember_what_was_pruned() -> None:
    """A step between them that carries no weights must not make gptq forget the zeros."""
    model, _ = ran("llama", Recipe.of("magnitude(sparsity=0.6, per='row') -> gptq(bits=4, group_size=0)"))
    for site, weight in weights(model).items():
        if site.block is not None:
            assert ((weight.dense() == 0).float().mean(1) >= 0.59).all()


def test_only_and_skip() -> None:
    before = weights(tiny("llama"))
    step = Step(get("rtn")(bits=3, group_size=16), Where(only=("mlp", "layers.1"), skip=("layers.3", "down_proj")))
    model, bench = ran("llama", Recipe((step,)))
    touched = {r.place for r in bench.receipts}
    for site, weight in weights(model).items():
        wanted = (".mlp." in site.name or "layers.1." in site.name) and "layers.3" not in site.name
        wanted = wanted and not site.name.endswith("down_proj")
        assert isinstance(weight, Grouped) == wanted, site.name
        assert (site.name in touched) == wanted
        if not wanted:
            assert torch.equal(weight.dense(), next(w for s, w in before.items() if s.name == site.name).dense())
    matched = plan(Anatomy.of(tiny("llama")), Recipe((step,))).steps[0].matched
    assert matched == {"mlp": 12, "layers.1": 7, "layers.3": 7, "down_proj": 4}


@pytest.mark.parametrize(
    ("expression", "match"),
    [
        ("hlq(bits=2) -> gptq", "gptq takes Dense or Masked.*is BitPlanes"),
        ("wanda -> hlq", "hlq takes Dense.*is Masked"),
        ("rtn(bits=4) -> flap", "flap needs plain matrices.*Grouped"),
        ("svd -> quarot", "quarot needs plain matrices.*Chain"),
        ("gptq(group_size=48)", r"layers.0.*in=64, group_size=48; use one of"),
        ("rtn -> wanda", "wanda takes Dense or Masked.*is Grouped"),
        ("wanda(pattern='2:5')", "layers.0.*in=64"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_weight_moves(expression: str, match: str) -> None:
    model = tiny("llama")
    before = state(model)
    with pytest.raises(UsageError, match=match):
        run(model, Recipe.of(expression), shown(model))
    assert same(state(model), before)


@pytest.mark.parametrize("pattern", ["layers.9", "no_such", "mlp..up"])
def test_patterns_that_match_nothing_are_errors(pattern: str) -> None:
    model = tiny("llama")
    before = state(model)
    with pytest.raises(UsageError):
        run(model, Recipe((Step(get("rtn")(), Where(skip=(pattern,))),)), shown(model))
    assert same(state(model), before)


def test_methods_on_the_whole_model_take_no_where() -> None:
    model = tiny("llama")
    with pytest.raises(RecipeError, match="takes no `where`"):
        run(model, Recipe((Step(get("flap")(), Where(only=("mlp",))),)), shown(model))


@pytest.mark.parametrize("drop", [1, 3])
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "lfm2"])
def test_dropped_blocks_leave_a_whole_model(family: str, drop: int) -> None:
    if family == "lfm2" and drop == 3:
        pytest.skip("a model of this family needs an attention block for its cache")
    model, bench = ran(family, Recipe.of(f"shortgpt(drop={drop})"))
    config, blocks = model.config, Anatomy.of(model).blocks
    assert len(blocks) == config.num_hidden_layers == 4 - drop
    indices = [m.layer_idx for b in blocks for m in b.modules() if hasattr(m, "layer_idx")]
    assert sorted(set(indices)) == list(range(4 - drop))
    if getattr(config, "layer_types", None):
        kept = [b for b in range(4) if b not in bench.receipts[0].notes["dropped_blocks"]]
        assert config.layer_types == [tiny(family).config.layer_types[b] for b in kept]
    made = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4, do_sample=False, min_new_tokens=4)
    assert made.shape == (1, 7)
    ids = made[:, :-1]
    with torch.no_grad():
        assert int(model(ids, use_cache=False).logits[0, -1].argmax()) == int(made[0, -1])


def test_the_right_block_is_dropped() -> None:
    """A block that adds next to nothing goes first."""
    model = tiny("llama")
    with torch.no_grad():
        for name, p in model.model.layers[2].named_parameters():
            if "o_proj" in name or "down_proj" in name:
                p.mul_(1e-3)
    before = logits(model)
    bench = run(model, Recipe.of("shortgpt(drop=1)"), shown(model))
    assert bench.receipts[0].notes["dropped_blocks"] == [2]
    assert (logits(model) - before).norm() / before.norm() < 0.02


def test_dropping_all_blocks_is_refused() -> None:
    model = tiny("llama")
    with pytest.raises(UsageError, match="4 blocks, drop=4"):
        run(model, Recipe.of("shortgpt(drop=4)"), shown(model))
    assert len(model.model.layers) == 4


@pytest.mark.parametrize("family", NARROWABLE)
def test_channels_vanish_on_every_family(family: str) -> None:
    model, bench = ran(family, Recipe.of("flap(sparsity=0.3)"))
    parameters = [sum(p.numel() for p in m.parameters()) for m in (model, tiny(family))]
    assert parameters[0] < parameters[1]
    removed = sum(r.weights * (1 - r.notes["units_after"] / r.notes["units_before"]) for r in bench.receipts)
    assert removed / sum(r.weights for r in bench.receipts) == pytest.approx(0.3, abs=0.05)
    assert logits(model).isfinite().all()
    assert torch.equal(logits(reopened(model)), logits(model))


@pytest.mark.parametrize("expression", ["rtn(bits=4, group_size=16)", "gptq(bits=3, group_size=16)", "svd(keep=0.5)"])
def test_experts(expression: str) -> None:
    model, _ = ran("mixtral", Recipe.of(expression))
    experts = {s: w for s, w in weights(model).items() if s.index is not None}
    assert len(experts) >= 32
    assert not any(isinstance(w, Dense) for w in experts.values())
    routers = [w for s, w in weights(model).items() if s.role is Role.ROUTER]
    assert len(routers) == 4
    assert all(isinstance(w, Dense) for w in routers)
    assert torch.equal(logits(reopened(model)), logits(model))


@pytest.mark.parametrize("expression", ["gptaq(bits=4, group_size=16)", "rescomp(bits=4, group_size=16)"])
def test_experts_cannot_be_paired_with_those_of_the_untouched_model(expression: str) -> None:
    model = tiny("mixtral")
    with pytest.raises(CalibrationError, match=r"layers\.0\.\S*experts\S* is shown some tokens only.*skip the experts"):
        run(model, Recipe.of(expression), shown(model))
    _, bench = ran("mixtral", Recipe((Step(Recipe.of(expression).steps[0].method, Where(skip=("experts",))),)))
    assert len(bench.receipts) == 4 * len(model.model.layers)


def test_a_tied_head_is_untied_where_it_has_to_be() -> None:
    model = tiny("llama", tie_word_embeddings=True)
    before = logits(model)
    run(model, Recipe.of("quarot"), shown(model))
    assert not model.config.tie_word_embeddings
    assert model.lm_head.weight.data_ptr() != model.model.embed_tokens.weight.data_ptr()
    assert torch.allclose(logits(model), before, atol=1e-4)
    again = reopened(model)
    assert torch.equal(logits(again), logits(model))
    assert again.lm_head.weight.data_ptr() != again.model.embed_tokens.weight.data_ptr()


def test_a_tied_head_alone_is_refused() -> None:
    model = tiny("llama", tie_word_embeddings=True)
    before = state(model)
    with pytest.raises(ModelError, match="shares the embedding"):
        run(model, Recipe((Step(get("rtn")(), Where(only=("lm_head",))),)), shown(model))
    assert same(state(model), before)


def test_an_untied_head_can_be_rounded_but_not_by_data() -> None:
    head = Where(only=("lm_head",))
    model, _ = ran("llama", Recipe((Step(get("rtn")(bits=8), head),)))
    assert isinstance(weights(model)[next(s for s in weights(model) if s.role is Role.HEAD)], Grouped)
    with pytest.raises(TrimtabError, match="lm_head is outside of the blocks"):
        ran("llama", Recipe((Step(get("gptq")(bits=8), head),)))


EVERYTHING = "quarot -> wanda(sparsity=0.3) -> gptq(bits=4) by layerwise_quant(bits=3, order='random') -> lqer(rank=2)"


@pytest.mark.parametrize("expression", [EVERYTHING, "shortgpt(drop=2, order='random')", "quarot(rotation='orthogonal')"])
def test_the_seed_decides_everything_random(expression: str) -> None:
    def found(seed: int) -> dict[str, torch.Tensor]:
        return state(ran("llama", Recipe.of(expression, seed=seed))[0])

    first = found(0)
    assert same(first, found(0))
    assert any(not same(first, found(seed)) for seed in (1, 2, 3))


def test_the_global_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    ran("llama", Recipe.of(EVERYTHING))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_mode_and_gradients_are_left_as_they_were() -> None:
    model = tiny("llama").train()
    run(model, Recipe.of("rtn(bits=4)"), shown(model))
    assert all(m.training for m in model.modules())
    assert model.lm_head.weight.requires_grad


@pytest.mark.parametrize("method", ["gptq", "sparsegpt", "svd_llm", "hlq"])
def test_where_nothing_was_seen_it_says_so(method: str) -> None:
    model = tiny("llama")
    with torch.no_grad():
        model.model.layers[1].post_attention_layernorm.weight.zero_()
    with pytest.raises(CalibrationError, match=rf"{method} at model.layers.1.mlp.\w+: the gram matrix is zero"):
        run(model, Recipe((get(method)(),)), shown(model))


def test_a_model_that_is_not_finite_is_not_compressed_in_silence() -> None:
    model = tiny("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = float("nan")
    for expression in ("gptq", "rtn", "wanda", "svd", "hlq"):
        with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj has values that are not finite"):
            run(copy.deepcopy(model), Recipe.of(expression), shown(model))


@pytest.mark.parametrize("expression", ["rtn(bits=3)", "gptq(bits=4, symmetric=True)", "hlq", "svd(keep=0.3)", "wanda", "quarot"])
def test_the_plan_knows_the_size_to_the_byte(expression: str) -> None:
    model = tiny("llama", tie_word_embeddings=False)
    before = state(model)
    planned = plan(Anatomy.of(model), Recipe.of(expression))
    assert same(state(model), before)
    assert planned.bytes_before == sum(t.nbytes for t in tensors(model))
    run(model, Recipe.of(expression), shown(model))
    assert planned.bytes_after == sum(t.nbytes for t in tensors(model))


def test_more_calibration_steps_share_one_pass() -> None:
    """Adjacent linear steps give what they give when every matrix goes through both before the stream moves on."""
    model, bench = ran("llama", Recipe.of("sparsegpt(sparsity=0.5) -> gptq(bits=4, group_size=0)"))
    places = [r.place for r in bench.receipts]
    assert places[0] == places[1]
    assert places == sorted(places, key=lambda p: (int(p.split(".")[2]),))
    assert all((w.dense() == 0).float().mean() > 0.45 for s, w in weights(model).items() if s.block is not None)


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_rounding_works_on_every_family(family: str) -> None:
    model, _ = ran(family, Recipe.of("gptq(bits=8, group_size=0)"))
    before, after = logits(tiny(family)), logits(model)
    most = 0.2 if family == "gpt_oss" else 0.05  # a token that is routed elsewhere moves by much
    assert 0 < (after - before).norm() / before.norm() < most
    assert torch.equal(logits(reopened(model)), after)
