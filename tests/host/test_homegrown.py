"""Models of our own: made once, found again by their description, and never from the network."""

import random
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from trimtab.core.errors import ModelError
from trimtab.core.progress import Progress
from trimtab.data import assets, text
from trimtab.host import homegrown
from trimtab.host.checkpoint import load
from trimtab.host.homegrown import FAMILY, VARIANTS, Homegrown, Tuning, family, grow, named, untrained
from trimtab.host.model_assets import model_assets, resolve_model
from trimtab.host.outliers import Outliers
from trimtab.host.pretrain import Course
from trimtab.host.source import history, recorded
from trimtab.testing.tiny import tokens

TINY = Homegrown(2, 32, 4, 2, 64, 300, Course(steps=10, batch=2, length=16, learning_rate=1e-2))

TUNING = Tuning(Course(steps=4, batch=2, length=16, learning_rate=1e-3))
OUTLYING = {name: way for name, way in VARIANTS.items() if isinstance(way, Outliers)}


@pytest.fixture(autouse=True)
def small_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, a few words to read, a tiny description behind own-2m, and no network."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 8))) for _ in range(100)]
    passages = [" ".join(draw.choices(words, k=30)) for _ in range(30)]
    for name in text.SOURCES:
        monkeypatch.setitem(text.SOURCES, name, lambda: passages)
    monkeypatch.setitem(FAMILY, "own-2m", TINY)
    monkeypatch.setitem(VARIANTS, "tuned", TUNING)
    monkeypatch.setattr(assets.subprocess, "run", lambda *a, **k: pytest.fail("the network was asked"))
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def visible(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if not path.name.startswith("."))


def test_it_is_trained_once_and_found_again(monkeypatch):
    wanted = named("own-2m")
    assert wanted.minutes > 0
    folder = grow(wanted)
    monkeypatch.setattr(homegrown, "documents", lambda source: pytest.fail("a cached model was trained again"))
    assert grow(wanted) == folder == wanted.place
    assert wanted.minutes == 0
    assert visible(folder.parent) == [folder.name]


def test_it_is_an_ordinary_model(small_world):
    folder = grow(named("own-2m"))
    model, tokenizer = load(folder)
    plain = AutoModelForCausalLM.from_pretrained(folder)
    assert model.num_parameters() == TINY.parameters == plain.num_parameters()
    assert model.dtype == torch.float32
    assert len(tokenizer) == model.config.vocab_size == 300
    assert torch.equal(plain(tokens(model)).logits, model(tokens(model)).logits)
    said = recorded(folder)
    assert said["training_loss"] < torch.tensor(300.0).log()
    assert said["description"]["layers"] == 2
    assert history(folder).startswith("trained from scratch on 320 tokens")


@pytest.mark.parametrize("grown", FAMILY.values(), ids=list(FAMILY))
def test_parameters_are_counted_right(grown):
    with torch.device("meta"):
        model = homegrown.LlamaForCausalLM(grown.config())
    assert model.num_parameters() == grown.parameters


def test_what_the_names_promise():
    for name, grown in FAMILY.items():
        if grown is not TINY:
            assert 0.85 < grown.parameters / (1e6 * int(name.removeprefix("own-").removesuffix("m"))) < 1.2
    assert "asset:boolq" not in {source for grown in FAMILY.values() for source in grown.texts}


def described_otherwise() -> list[Homegrown]:
    """TINY with one field changed at a time, its own or one of the course."""
    shapes = [replace(TINY, **{f.name: changed(getattr(TINY, f.name))}) for f in fields(TINY) if f.name != "course"]
    courses = [replace(TINY.course, **{f.name: changed(getattr(TINY.course, f.name))}) for f in fields(TINY.course)]
    return [*shapes, *(replace(TINY, course=course) for course in courses)]


def changed(value):
    return value[:1] if isinstance(value, tuple) else value + 1


def test_any_change_of_the_description_is_another_model(monkeypatch):
    places = {named("own-2m").place}
    others = described_otherwise()
    for grown in others:
        monkeypatch.setitem(FAMILY, "own-2m", grown)
        places.add(named("own-2m").place)
    assert len(places) == 1 + len(others) == len(fields(TINY)) + len(fields(TINY.course))
    monkeypatch.setattr(homegrown, "VERSION", -1)
    assert named("own-2m").place not in places


def test_any_change_of_the_outliers_is_another_model(monkeypatch):
    places, plain = {named("own-2m-outliers").place}, named("own-2m").place
    for field in fields(Outliers):
        monkeypatch.setitem(VARIANTS, "outliers", replace(Outliers(), **{field.name: 7}))
        places.add(named("own-2m-outliers").place)
        assert named("own-2m").place == plain
    assert len(places) == 1 + len(fields(Outliers))


def test_a_killed_training_goes_on(small_world, monkeypatch):
    def watch(now: Progress) -> None:
        if now.phase == "train" and now.done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        grow(named("own-2m"), watch)
    assert visible(small_world) == [f"{named('own-2m').place.name}.training"]
    phases: list[Progress] = []
    resumed, _ = load(grow(named("own-2m"), phases.append))
    assert min(now.done for now in phases if now.phase == "train") == 7
    monkeypatch.setenv("TRIMTAB_CACHE", str(small_world.parent / "other"))
    straight, _ = load(grow(named("own-2m")))
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), straight.parameters(), strict=True))
    assert visible(small_world) == [named("own-2m").place.name]


@pytest.mark.parametrize("variant", OUTLYING)
def test_a_variant_says_the_same_with_other_weights(variant):
    base, changed = grow(named("own-2m")), grow(named(f"own-2m-{variant}"))
    (model, _), (other, tokenizer) = load(base), load(changed)
    ids = tokens(model)
    assert torch.equal(other(ids).logits, model(ids).logits)
    assert not torch.equal(other.model.layers[0].input_layernorm.weight, model.model.layers[0].input_layernorm.weight)
    assert tokenizer is not None
    assert history(changed).startswith(history(base))
    assert f"by {OUTLYING[variant].factor:g} were put in" in history(changed)


def test_a_variant_trains_what_it_is_made_of(small_world):
    grow(named("own-2m-outliers"))
    assert visible(small_world) == sorted(named(name).place.name for name in ("own-2m", "own-2m-outliers"))


def test_a_tuned_model_goes_on_from_the_trained_one(small_world):
    wanted = named("own-2m-tuned")
    assert wanted.minutes > named("own-2m").minutes
    phases: list[Progress] = []
    (tuned, tokenizer), (base, _) = load(grow(wanted, phases.append)), load(grow(named("own-2m")))
    assert [now.total for now in phases if now.phase == "train"] == [10] * 10 + [4] * 4
    assert visible(small_world) == sorted(named(name).place.name for name in ("own-2m", "own-2m-tuned"))
    moved = [float((a - b).detach().abs().max()) for a, b in zip(tuned.parameters(), base.parameters(), strict=True)]
    assert 0 < max(moved) < 4.1 * 1e-3  # AdamW moves a weight by about the learning rate in a step, at most
    assert tokenizer is not None
    assert history(wanted.place) == f"{history(grow(named('own-2m')))}; then trained on, on 128 tokens of asset:gsm8k"


def test_a_killed_tuning_goes_on(small_world, monkeypatch):
    def watch(now: Progress) -> None:
        if now.phase == "train" and (now.done, now.total) == (3, 4):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        grow(named("own-2m-tuned"), watch)
    resumed, _ = load(grow(named("own-2m-tuned")))
    monkeypatch.setenv("TRIMTAB_CACHE", str(small_world.parent / "other"))
    straight, _ = load(grow(named("own-2m-tuned")))
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), straight.parameters(), strict=True))


def test_any_change_of_the_tuning_is_another_model(monkeypatch):
    places = {named("own-2m-tuned").place, named("own-2m").place}
    others = (replace(TUNING, texts=("asset:coqa",)), replace(TUNING, course=replace(TUNING.course, seed=1)))
    for way in others:
        monkeypatch.setitem(VARIANTS, "tuned", way)
        places.add(named("own-2m-tuned").place)
    assert len(places) == 4


def test_two_who_want_it_at_once_train_it_once(small_world):
    seen: list[Progress] = []
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(lambda _: grow(named("own-2m"), seen.append), range(2)))
    assert folders[0] == folders[1]
    assert [now.done for now in seen if now.phase == "train"] == list(range(10))


def test_names(small_world):
    assert [wanted.name for wanted in family()][:3] == ["own-2m", "own-2m-outliers", "own-2m-weight-outliers"]
    assert set(model_assets()) == {"asset:smollm2-135m", *(f"asset:{wanted.name}" for wanted in family())}
    with pytest.raises(ModelError, match=r"no model of ours is called 'own-2n'; did you mean 'own-2m'\?"):
        named("own-2n")
    with pytest.raises(ModelError, match=r"no model is called 'asset:own-15m-outlier'; did you mean 'asset:own-15m-outliers'\?"):
        resolve_model("asset:own-15m-outlier")
    assert not small_world.exists()


def test_resolving_warns_before_minutes_of_silence_and_not_after():
    with pytest.warns(UserWarning, match=r"asset:own-2m is trained first, once, .*`trimtab grow own-2m`"):
        folder = resolve_model("asset:own-2m")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve_model("asset:own-2m") == folder
        assert resolve_model("asset:own-2m-outliers") == str(named("own-2m-outliers").place)
        assert resolve_model("some/folder") == "some/folder"


def test_random_weights_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    untrained(TINY)
    assert torch.equal(torch.get_rng_state(), before)
