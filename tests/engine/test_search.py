"""Levels are plain compressions, judges know the whole model, and nothing is judged twice."""

from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import pytest
import torch

from trimtab.anatomy import Anatomy
from trimtab.core.edits import DropBlock, SetWeight
from trimtab.core.errors import CalibrationError, UsageError
from trimtab.core.kinds import Storage
from trimtab.core.recipe import Recipe
from trimtab.core.registry import get
from trimtab.engine import judge as judge_module
from trimtab.engine.apply import apply
from trimtab.engine.judge import Judge, Material
from trimtab.engine.levels import Levels
from trimtab.engine.plan import plan
from trimtab.engine.run import run
from trimtab.engine.search import Judging
from trimtab.engine.storage import Files
from trimtab.formats import Dense
from trimtab.tensors.divergence import kl
from trimtab.testing.roundtrip import logits, shown
from trimtab.testing.tiny import tiny, tokens

STEP = "rtn(group_size=32)"
SEARCH = f"{STEP} by evopress(levels='bits=2,3,4', mean=3, generations=4, offspring=4, held_out=64)"


@pytest.fixture
def held_out():
    return tokens(tiny("llama"), batch=4, length=16, seed=9)


def searched(folder: Path, held_out, expression: str = SEARCH, seed: int = 0, family: str = "llama", **how):
    model = tiny(family)
    recipe = Recipe.of(expression, seed=seed)
    return model, run(model, recipe, shown(model), judging=Judging(held_out, folder, **how))


def bits(bench) -> list[str]:
    return [receipt.method for receipt in bench.receipts]


def spied(monkeypatch, fail=lambda candidate: False) -> list:
    """Every candidate that is judged from now on. fail: which of them cannot be."""
    seen: list = []
    own = Judge._loss

    def loss(self, candidate, windows):
        seen.append((candidate, tuple(windows)))
        if fail(candidate):
            raise RuntimeError("no memory for this one")
        return own(self, candidate, windows)

    monkeypatch.setattr(Judge, "_loss", loss)
    return seen


def material(model, folder: Path, strengths, held_out, key: str = "levels", step: str = STEP) -> Material:
    """Of levels made by plain runs."""

    def make(strength):
        other = tiny("llama")
        run(other, Recipe.of(step.replace("(", f"(bits={strength}, ")), shown(other))
        made = Anatomy.of(other)
        return {site.name: made.weight(site) for site in made.sites if site.block is not None}

    Levels(folder, key).fill(strengths, make)
    names = tuple(site.name for site in Anatomy.of(model).sites if site.block is not None)
    return Material(model, names, held_out, torch.float32, folder, key)


def test_a_level_is_a_plain_compression_to_the_last_bit(tmp_path, held_out) -> None:
    """What a search made on its way, put together uniformly, against recipes of their own. The method sees what it has made."""
    searched(tmp_path, held_out, "gptq(group_size=32) by rd_prune(levels='bits=2,3', mean=2.5, held_out=16, per='block')")
    for strength in (2, 3):
        plain, again = tiny("llama"), tiny("llama")
        run(plain, Recipe.of(f"gptq(group_size=32, bits={strength})"), shown(plain))
        anatomy, mine = Anatomy.of(plain), Anatomy.of(again)
        for site in [s for s in anatomy.sites if s.block is not None]:
            weight = next(iter_levels(tmp_path, site.name, strength))
            apply(mine, [SetWeight(mine.site(site.name), weight)], packed=True)
        assert torch.equal(logits(again), logits(plain))


def iter_levels(folder: Path, name: str, strength: int):
    """The weight among all level files whose bits are these."""
    for path in folder.glob("*.safetensors"):
        levels = Levels(folder, "")
        object.__setattr__(levels, "path", lambda _, path=path: path)
        weight = levels.weight(name, None)
        if weight.spec()["bits"] == strength:
            yield weight


def test_an_even_choice_gives_the_plain_model(held_out, tmp_path) -> None:
    even, _ = searched(tmp_path, held_out, f"{STEP} by uniform(levels='bits=2,3,4', mean=3)")
    plain = tiny("llama")
    run(plain, Recipe.of("rtn(group_size=32, bits=3)"), shown(plain))
    assert torch.equal(logits(even), logits(plain))


def test_a_loss_is_the_divergence_of_the_whole_model(tmp_path, held_out) -> None:
    """Mixed levels, judged after others that share a beginning, against two models as they are."""
    model = tiny("llama")
    given = material(model, tmp_path, (2, 4), held_out)
    judge = Judge(replace(given, model=tiny("llama")))
    count = len(given.names)
    mixed = tuple(2 if i % 3 else 4 for i in range(count))
    late = (*mixed[: count // 2], *([None] * (count - count // 2)))
    several = [mixed, late, (None,) * count, (4,) * count, mixed]
    found = dict(judge.losses(several, range(4)))
    levels = Levels(tmp_path, "levels")
    for number, candidate in enumerate(several):
        other = tiny("llama")
        anatomy = Anatomy.of(other)
        for name, entry in zip(given.names, candidate, strict=True):
            if entry is not None:
                apply(anatomy, [SetWeight(anatomy.site(name), Dense(levels.weight(name, entry).dense()))])
        with torch.no_grad():
            both = [m(held_out, use_cache=False).logits.flatten(0, 1) for m in (model, other)]
        assert found[number][0] == pytest.approx(float(kl(*both).mean()), rel=1e-3, abs=1e-7)
    assert found[0] == found[4]
    assert found[2][0] == 0


def test_what_was_judged_before_changes_no_number(tmp_path, held_out, monkeypatch) -> None:
    """Shared beginnings, sparse trails and subsets of windows: bit for bit what a fresh judge says."""
    given = material(tiny("llama"), tmp_path, (2, 4), held_out)
    chance = torch.Generator().manual_seed(0)
    several = [tuple((2, 4)[i] for i in torch.randint(2, (len(given.names),), generator=chance)) for _ in range(4)]
    several += [(*several[0][:20], *several[1][20:])]
    alone = [dict(Judge(replace(given, model=tiny("llama"))).losses([c], [0, 2]))[0] for c in several]
    for kept in (1 << 30, 20_000, 1):
        monkeypatch.setattr(judge_module, "KEPT", kept)
        judge = Judge(replace(given, model=tiny("llama")))
        dict(judge.losses(several, [1]))
        assert [outcome for _, outcome in sorted(judge.losses(several, [0, 2]))] == alone


def test_blocks_that_are_left_out(tmp_path, held_out) -> None:
    model = tiny("llama")
    judge = Judge(Material(tiny("llama"), (), held_out, torch.float32, tmp_path, ""))
    found = dict(judge.losses([(None, True, None, None), (None,) * 4], range(4)))
    cut = tiny("llama")
    apply(Anatomy.of(cut), [DropBlock(1)])
    with torch.no_grad():
        both = [m(held_out, use_cache=False).logits.flatten(0, 1) for m in (model, cut)]
    assert found[0][0] == pytest.approx(float(kl(*both).mean()), rel=1e-4)
    assert found[1][0] == 0


def test_the_best_block_is_left_out(tmp_path, held_out, monkeypatch) -> None:
    """Of four blocks, one: the search sees all of them."""
    seen = spied(monkeypatch)
    _, bench = searched(tmp_path, held_out, "evopress_blocks(drop=1, held_out=64, generations=8, stages='')")
    (dropped,) = bench.receipts[0].notes["dropped_blocks"]
    judge = Judge(Material(tiny("llama"), (), held_out, torch.float32, tmp_path, ""))
    every = dict(judge.losses([tuple(True if b == out else None for b in range(4)) for out in range(4)], range(4)))
    assert dropped == min(range(4), key=lambda b: every[b][0])
    assert len(seen) > 4


def test_nothing_is_judged_twice_and_a_stopped_search_goes_on(tmp_path, held_out, monkeypatch) -> None:
    seen = spied(monkeypatch)
    model, bench = searched(tmp_path / "whole", held_out)
    assert len(seen) == len(set(seen))
    every = list(seen)
    seen.clear()

    def stop(now) -> None:
        if now.phase == "search" and now.detail == "candidate 9":
            raise KeyboardInterrupt

    other = tiny("llama")
    how = Judging(held_out, tmp_path / "parts")
    with pytest.raises(KeyboardInterrupt):
        run(other, Recipe.of(SEARCH), shown(other), watch=stop, judging=how)
    first = list(seen)
    with (tmp_path / "parts" / "outcomes.jsonl").open("a") as file:
        file.write('["torn')  # a kill in the middle of a line
    levels = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").glob("*.safetensors")}
    seen.clear()
    again, resumed = searched(tmp_path / "parts", held_out)
    assert len(first) == 9
    assert first + seen == every
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").glob("*.safetensors")} == levels
    assert len(levels) == 3
    assert torch.equal(logits(again), logits(model))
    assert bits(resumed) == bits(bench)


def test_a_candidate_that_fails_is_recorded_and_the_search_goes_on(tmp_path, held_out, monkeypatch) -> None:
    broken = lambda candidate: candidate[0] == 2  # noqa: E731
    seen = spied(monkeypatch, fail=broken)
    _, bench = searched(tmp_path, held_out)
    assert any(broken(candidate) for candidate, _ in seen)
    assert "could not be judged (RuntimeError: no memory for this one)" in " ".join(bench.notes)
    assert "bits=2" not in bench.receipts[0].method
    count = len(seen)
    _, again = searched(tmp_path, held_out)
    assert len(seen) == count
    assert bits(again) == bits(bench)


def test_where_every_candidate_fails_there_is_no_result(tmp_path, held_out, monkeypatch) -> None:
    spied(monkeypatch, fail=lambda candidate: True)
    with pytest.raises(CalibrationError, match="no candidate could be judged"):
        searched(tmp_path, held_out)


def test_another_seed_other_tokens_or_another_version_share_nothing(tmp_path, held_out, monkeypatch) -> None:
    """Levels of another seed may have seen other text; outcomes on other held-out tokens are others."""
    brief = SEARCH.replace("generations=4, offspring=4", "generations=1, offspring=2")
    seen = spied(monkeypatch)
    counts = []
    for text, how in ((held_out, {}), (held_out, {"seed": 1}), (held_out.flip(0), {}), (held_out, {"stamp": "another version"})):
        searched(tmp_path, text, brief, **how)
        counts.append((len(list(tmp_path.glob("*.safetensors"))), len(seen)))
    assert [levels for levels, _ in counts] == [3, 6, 6, 9]
    assert all(after > before for (_, before), (_, after) in pairwise(counts))


def test_another_search_over_the_same_levels_makes_none(tmp_path, held_out) -> None:
    searched(tmp_path, held_out)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    searched(tmp_path, held_out, f"{STEP} by rd_prune(levels='bits=2,3,4', mean=3, held_out=64, per='block')")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")} == before


def test_a_lower_sum_of_errors_may_be_a_worse_model(tmp_path, held_out) -> None:
    """Two configurations of one cost, the same matrix of two blocks at two bits: the lower error gives the worse model."""
    given = material(tiny("llama"), tmp_path, (2,), held_out)
    judge, anatomy, levels = Judge(given), Anatomy.of(tiny("llama")), Levels(tmp_path, "levels")
    count = len(given.names)
    single = [tuple(2 if i == chosen else None for i in range(count)) for chosen in range(count)]
    losses = [outcome[0] for _, outcome in sorted(judge.losses(single, range(4)))]
    errors = []
    for name in given.names:
        whole = anatomy.weight(anatomy.site(name)).dense()
        errors.append(float((levels.weight(name, 2).dense() - whole).square().sum()))
    shapes = [anatomy.site(name).shape for name in given.names]
    pairs = [(i, j) for i, j in product(range(count), repeat=2) if shapes[i] == shapes[j] and errors[i] < errors[j]]
    assert any(losses[i] > 1.2 * losses[j] for i, j in pairs)


def ladder(expression: str, packed: bool = False, recipe: str = STEP):
    by = Recipe.of(f"{recipe} by {expression}").steps[0].by
    anatomy = Anatomy.of(tiny("llama"))
    sites = [s for s in anatomy.sites if s.block is not None]
    whole = Recipe.of(f"{recipe} by {expression}")
    return by, sites, by.ladder(sites, Files(anatomy, whole, [sites], packed).storage(1, sites))


@pytest.mark.parametrize("mean", [2, 2.5, 2.71, 3, 3.9, 4])
@pytest.mark.parametrize("per", ["site", "block"])
def test_the_mean_is_never_exceeded_and_as_near_as_can_be(mean, per) -> None:
    by, _, found = ladder(f"uniform(levels='bits=2,3,4', mean={mean}, per='{per}')")
    chosen = by.chosen(found, found.start)
    weights = {s: s.shape[0] * s.shape[1] for s in chosen}
    average = sum(chosen[s] * n for s, n in weights.items()) / sum(weights.values())
    smallest = min(sum(weights[s] for s in place) for place in found.places) / sum(weights.values())
    assert mean - smallest < average <= mean
    assert len(set(chosen.values())) <= 2


def test_a_sparsity_is_at_least_the_mean() -> None:
    by, _, found = ladder("uniform(levels='sparsity=0.4,0.5,0.7', mean=0.55)", recipe="wanda")
    chosen = by.chosen(found, found.start)
    weights = {s: s.shape[0] * s.shape[1] for s in chosen}
    average = sum(chosen[s] * n for s, n in weights.items()) / sum(weights.values())
    assert 0.55 <= average < 0.56


def test_every_candidate_keeps_the_budget(tmp_path, held_out, monkeypatch) -> None:
    seen = spied(monkeypatch)
    searched(tmp_path, held_out, SEARCH.replace("mean=3", "mean=2.6"))
    sites = [s for s in Anatomy.of(tiny("llama")).sites if s.block is not None]
    totals = {sum(b * s.shape[0] * s.shape[1] for b, s in zip(c, sites, strict=True)) for c, _ in seen}
    assert len(totals) == 1
    assert totals.pop() <= 2.6 * sum(s.shape[0] * s.shape[1] for s in sites)
    assert len({c for c, _ in seen}) > 10


def test_a_size_of_the_files_is_kept(tmp_path, held_out) -> None:
    model = tiny("llama")
    recipe = Recipe.of(f"{STEP} by evopress(levels='bits=2,3,4', size='58%', generations=2, offspring=4, held_out=64)")
    expected = plan(Anatomy.of(model), recipe).bytes_after
    run(model, recipe, shown(model), judging=Judging(held_out, tmp_path))
    taken = sum(t.nbytes for t in {t.data_ptr(): t for t in model.state_dict(keep_vars=True).values()}.values())
    assert taken == expected
    assert expected <= 0.58 * plan(Anatomy.of(tiny("llama")), recipe).bytes_before


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("gptq by evopress(levels='bits=2,3', mean=4)", "no mixture of bits=2,3 has mean=4"),
        ("wanda by evopress(levels='sparsity=0.5,0.6')", "no mixture of sparsity=0.5,0.6 has mean=3"),
        ("gptq by evopress(levels='bits=2')", "names no levels"),
        ("gptq by evopress(levels='bits=2,nan')", "names no levels"),
        ("gptq by evopress(levels='sparsity=0.2,0.5', mean=0.3)", "sets 'sparsity', which gptq does not have"),
        ("gptq by evopress(stages='0.5:2,0.1:1')", "no list of stages"),
        ("gptq by evopress(mean=2.5, size='40%')", "two budgets"),
        ("wanda by sv_nup(sparsity=1.0)", "0 to 0.99"),
        ("wanda by sv_nup(sparsity=-0.1)", "0 to 0.99"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_written(expression, said) -> None:
    with pytest.raises(UsageError, match=said):
        Recipe.of(expression)


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("gptq(group_size=32) by evopress(levels='bits=2,99', mean=3)", "bits must be 2 to 8"),
        ("wanda by evopress(levels='sparsity=0.5,1', mean=0.7)", "sparsity must be 0 to 0.99"),
        ("gptq(group_size=48) by evopress", "group_size"),
        ("gptq(group_size=32) by evopress(size='1%')", "below the smallest possible model"),
        ("wanda by evopress(levels='sparsity=0.5,0.6', size='50%')", "says nothing about sparsity"),
        ("svd by evopress(levels='rank=2,4', mean=3)", "'rank'"),
    ],
)
def test_what_cannot_be_is_refused_before_any_weight_moves(expression, said) -> None:
    model = tiny("llama")
    with pytest.raises(UsageError, match=said):
        run(model, Recipe.of(expression), shown(model))
    assert torch.equal(logits(model), logits(tiny("llama")))


def test_a_search_is_the_first_of_neighbouring_steps() -> None:
    model = tiny("llama")
    with pytest.raises(UsageError, match="put that into a recipe of its own"):
        run(model, Recipe.of(f"wanda -> {SEARCH}"), shown(model))


def test_where_no_text_is_held_out_a_note_says_so() -> None:
    model = tiny("llama")
    bench = run(model, Recipe.of("evopress_blocks(generations=1, offspring=2)"), shown(model))
    assert "judged on the calibration tokens" in bench.notes[-1]


def test_the_plan_knows_how_many_candidates_there_will_be(tmp_path, held_out, monkeypatch) -> None:
    seen = spied(monkeypatch)
    for expression in (
        SEARCH,
        "wanda by sv_nup(held_out=64)",
        f"{STEP} by rd_prune(held_out=64)",
        "evopress_blocks(held_out=64)",
    ):
        seen.clear()
        recipe = Recipe.of(expression)
        recipe = replace(recipe, calibration=replace(recipe.calibration, length=16))
        (step,) = plan(Anatomy.of(tiny("llama")), recipe).steps
        searched(tmp_path / expression[:24].replace(" ", ""), held_out, expression)
        assert 0 < len(seen) <= step.candidates
        assert 16 * sum(len(windows) for _, windows in seen) <= step.tokens_read


def test_mixtures_of_experts_are_searched_too(tmp_path) -> None:
    held_out = tokens(tiny("mixtral"), batch=2, length=16, seed=9)
    expression = "rtn(group_size=32) by evopress(generations=2, offspring=4, held_out=32, stages='')"
    _, bench = searched(tmp_path, held_out, expression, family="mixtral")
    assert bench.receipts


def test_storage_is_asked_only_for_a_size() -> None:
    """A mean needs no bytes, so it works where nobody knows them."""

    def unknown(site, strength):
        raise UsageError("nobody knows")

    sites = [s for s in Anatomy.of(tiny("llama")).sites if s.block is not None]
    storage = Storage(unknown, unknown, None, 1, 1)
    by = get("uniform")(levels="sparsity=0.5,0.6", mean=0.55)
    assert by.promises(sites, storage) is None
    assert len(by.ladder(sites, storage).start) == len(sites)
