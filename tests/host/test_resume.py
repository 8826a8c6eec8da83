"""A compression that is killed goes on from where it was and ends in the very same files; whose state it is, is checked."""

import json
import random
import shutil
import time
from pathlib import Path

import pytest
import torch

from trimtab.core.errors import UsageError
from trimtab.core.recipe import Calibration, Recipe
from trimtab.host import keeping as keeping_module
from trimtab.host import manifest
from trimtab.host.compress import compress
from trimtab.host.identity import RULES, Bears, compatible
from trimtab.host.keeping import Keeping, is_kept, state_of
from trimtab.host.store import Store, held
from trimtab.testing.faults import INSTANTS, Victims
from trimtab.testing.folders import tiny_folder

KILLED = -9
STEPS = "wanda(sparsity=0.5) -> gptq(bits=3, group_size=32)"


@pytest.fixture(scope="module")
def victims():
    with Victims() as started:
        yield started


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    draw = random.Random(0)
    file = tmp_path_factory.mktemp("texts") / "text.txt"
    file.write_text("\n\n".join(" ".join("".join(draw.choices("abcdefgh", k=5)) for _ in range(40)) for _ in range(40)))
    return file


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("models") / "tiny")


def recipe(text: Path, steps: str = STEPS, **changed) -> Recipe:
    return Recipe.of(steps, Calibration(**{"text": str(text), "tokens": 256, "length": 32, **changed}))


def words(model: Path, out: Path, made: Recipe) -> dict:
    file = out.parent / f"{out.name}.yaml"
    file.write_text(made.yaml())
    return {"model": model, "recipe": file, "out": out, "checkpoint_every": 0}


def files(folder: Path) -> dict[str, str]:
    """Digests of all that says what the model is; the report has seconds in it."""
    manifest.verify(folder)
    names = sorted(p.name for p in folder.iterdir() if p.name not in ("README.md", "receipt.json", manifest.NAME))
    return dict(zip(names, manifest.digests(folder, names), strict=True))


def said(folder: Path) -> tuple:
    report = json.loads((folder / "receipt.json").read_text())
    receipts = [{key: value for key, value in r.items() if key != "seconds"} for r in report["receipts"]]
    return receipts, report["notes"], report["seeded"]


@pytest.fixture(scope="module")
def undisturbed(model, text, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    compress(model, recipe(text), out, resume=False)
    return out


@pytest.mark.parametrize("instant", INSTANTS[:-1])
def test_killed_at_any_instant_it_ends_the_same(victims, model, text, undisturbed, tmp_path, instant):
    asked = words(model, tmp_path / "out", recipe(text))
    # In the second commit; each names three objects: the matrices of a block, the activations, and what refers to them.
    second = {"object: written": 5, "object: named": 5, "publish: whole": 1, "publish: in place": 1, "publish: done": 1}
    assert victims.run(asked, instant, second.get(instant, 2)) == KILLED
    assert is_kept(tmp_path / "out")
    assert victims.run(asked) == 0
    assert files(tmp_path / "out") == files(undisturbed)
    assert said(tmp_path / "out") == said(undisturbed)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "out.yaml"]


def test_killed_when_the_state_was_gone_the_result_is_there(victims, model, text, undisturbed, tmp_path):
    assert victims.run(words(model, tmp_path / "out", recipe(text)), "state: removed") == KILLED
    assert files(tmp_path / "out") == files(undisturbed)


def test_killed_again_and_again_at_random_moments_it_ends_the_same(victims, model, text, undisturbed, tmp_path):
    asked, draw = words(model, tmp_path / "out", recipe(text)), random.Random(0)
    ends = [victims.run(asked, after=draw.uniform(0.1, 0.5)) for _ in range(6)]
    while ends[-1] == KILLED:
        ends.append(victims.run(asked))
    assert KILLED in ends
    assert files(tmp_path / "out") == files(undisturbed)


@pytest.mark.parametrize(
    ("family", "steps", "packed"),
    [
        pytest.param("llama", "gptaq(group_size=32)", False, marks=pytest.mark.slow),  # two streams
        ("llama", "quarot -> rtn(group_size=32)", False),  # a model kept as a whole
        ("llama", "wanda(sparsity=0.5) -> flap(sparsity=0.3) -> sparsegpt(sparsity=0.6)", False),
        ("gpt2", "smoothquant -> gptq(group_size=32) by luq", True),
        pytest.param("mixtral", "sparsegpt(sparsity=0.5) -> gptq(group_size=32)", True, marks=pytest.mark.slow),
    ],
)
def test_all_kinds_of_steps_and_models(victims, text, tmp_path, family, steps, packed):
    model = tiny_folder(tmp_path / "model", family)
    asked = {**words(model, tmp_path / "out", recipe(text, steps)), "packed": packed}
    plain = {**words(model, tmp_path / "plain", recipe(text, steps)), "packed": packed, "resume": False}
    assert victims.run(plain) == 0
    for nth in (1, 2, 1, 3):  # of the commits of a process: the first, the second ...
        assert victims.run(asked, "commit: done", nth) in (KILLED, 0)
        if (tmp_path / "out").exists():
            break
    else:
        assert victims.run(asked) == 0
    assert files(tmp_path / "out") == files(tmp_path / "plain")
    assert said(tmp_path / "out") == said(tmp_path / "plain")


def stopped(model, made: Recipe, out: Path, blocks: int = 2, **how) -> None:
    """Leaves what a run leaves that is interrupted after so many blocks."""

    def watch(now):
        if now.phase == "sweep" and now.done == blocks:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(model, made, out, checkpoint_every=0, watch=watch, **how)


def sweeps(model, made: Recipe, out: Path, **how) -> list[int]:
    """The blocks that a run works on."""
    seen = []
    compress(model, made, out, watch=lambda now: seen.append(now.done) if now.phase == "sweep" else None, **how)
    return sorted(set(seen))


def test_only_what_was_not_finished_is_done(model, text, tmp_path):
    stopped(model, recipe(text), tmp_path / "out")
    assert sweeps(model, recipe(text), tmp_path / "out") == [2, 3, 4]
    assert not state_of(tmp_path / "out").exists()


def test_biases_that_a_method_made_are_kept(model, text, tmp_path):
    made = recipe(text, "lord(keep=0.6)")
    stopped(model, made, tmp_path / "out")
    compress(model, made, tmp_path / "out")
    compress(model, made, tmp_path / "plain")
    assert files(tmp_path / "out") == files(tmp_path / "plain")


def test_fresh_starts_over_and_no_resume_leaves_the_state_alone(model, text, tmp_path):
    stopped(model, recipe(text), tmp_path / "out")
    assert sweeps(model, recipe(text), tmp_path / "out", resume=False) == [0, 1, 2, 3, 4]
    assert is_kept(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    assert sweeps(model, recipe(text), tmp_path / "out", fresh=True) == [0, 1, 2, 3, 4]
    assert not state_of(tmp_path / "out").exists()


def test_stopped_before_anything_was_kept_nothing_is_left(model, text, tmp_path):
    def watch(now):
        if now.phase == "sweep":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(model, recipe(text), tmp_path / "out", watch=watch)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("field", "changed"),
    [
        ("recipe.steps.1.gptq.bits", {"steps": "wanda(sparsity=0.5) -> gptq(bits=4, group_size=32)"}),
        ("recipe.steps.1", {"steps": "wanda(sparsity=0.5)"}),
        ("recipe.seed", {"seed": 1}),
        ("recipe.calibration.tokens", {"tokens": 288}),
        ("tokens", {"other text": True}),
        ("dtype", {"dtype": torch.bfloat16}),
        ("packed", {"packed": True}),
        ("model", {"other model": True}),
    ],
)
def test_another_job_is_refused_by_name(model, text, tmp_path, field, changed):
    stopped(model, recipe(text), tmp_path / "out")
    if changed.pop("other text", False):
        other = tmp_path / "other.txt"
        other.write_text(text.read_text().replace("a", "b"))
        text = other
    if changed.pop("other model", False):
        model = tiny_folder(tmp_path / "other", seed=1)
    made = Recipe.of(changed.pop("steps", STEPS), recipe(text).calibration, changed.pop("seed", 0))
    if "tokens" in changed:
        made = recipe(text, tokens=changed.pop("tokens"))
    with pytest.raises(UsageError, match=rf"left by another job: {field}.* --fresh"):
        compress(model, made, tmp_path / "out", **changed)
    assert is_kept(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_text_under_another_name_is_the_same_text(model, text, tmp_path):
    stopped(model, recipe(text), tmp_path / "out")
    moved = tmp_path / "moved.txt"
    shutil.copy(text, moved)
    assert sweeps(model, recipe(moved), tmp_path / "out") == [2, 3, 4]


def test_every_field_has_a_rule_and_differences_mean_what_it_says(tmp_path):
    now = {name: {"a": 1, "b": [1, 2]} for name in RULES if "." not in name}
    assert compatible(now, now, tmp_path) == []
    for name, (bears, _) in RULES.items():
        if "." in name:
            continue
        other = {**now, name: {"a": 1, "b": [1, 3]}}
        if bears is Bears.REFUSED:
            with pytest.raises(UsageError, match=rf"{name}\.b\.1 was 3, now it is 2"):
                compatible(other, now, tmp_path)
        else:
            (note,) = compatible(other, now, tmp_path)
            assert f"{name}.b.1" in note


def test_other_versions_and_threads_are_noted(model, text, tmp_path, monkeypatch):
    stopped(model, recipe(text), tmp_path / "out")
    monkeypatch.setattr("trimtab.host.identity.versions", lambda: {"trimtab": "99", "torch": "1"})
    done = compress(model, recipe(text), tmp_path / "out")
    assert any("versions.trimtab" in note and "last bits" in note for note in done.report.notes)


def test_another_format_is_refused(model, text, tmp_path, monkeypatch):
    stopped(model, recipe(text), tmp_path / "out")
    monkeypatch.setattr(keeping_module, "FORMAT", 2)
    with pytest.raises(UsageError, match="format 1, this one reads 2"):
        compress(model, recipe(text), tmp_path / "out")


def test_a_second_writer_is_refused_at_once_and_told_who_writes(model, text, tmp_path):
    with held(state_of(tmp_path / "out")):
        begun = time.monotonic()
        with pytest.raises(UsageError, match=r"process \d+ is writing there"):
            compress(model, recipe(text), tmp_path / "out")
        assert time.monotonic() - begun < 2


def test_what_is_damaged_is_not_taken_and_the_commit_before_counts(model, text, undisturbed, tmp_path):
    stopped(model, recipe(text), tmp_path / "out", blocks=3)
    objects = state_of(tmp_path / "out") / "objects"
    newest = json.loads((state_of(tmp_path / "out") / "CURRENT").read_text())[0]
    (objects / newest).write_bytes(b"x" + (objects / newest).read_bytes()[1:])
    assert sweeps(model, recipe(text), tmp_path / "out") == [2, 3, 4]
    assert files(tmp_path / "out") == files(undisturbed)


def test_a_full_disk_does_not_stop_the_work(model, text, undisturbed, tmp_path, monkeypatch):
    put, left = Store.put, [3]

    def full(store, tensors, about):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        return put(store, tensors, about)

    monkeypatch.setattr(Store, "put", full)
    done = compress(model, recipe(text), tmp_path / "out", checkpoint_every=0)
    assert any("disk is full" in note for note in done.report.notes)
    assert files(tmp_path / "out") == files(undisturbed)


def test_commits_wait_for_their_time_and_are_a_small_share_of_it(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(keeping_module.time, "monotonic", lambda: now[0])
    (tmp_path / "state").mkdir()
    kept = Keeping(Store(tmp_path / "state"), every=10)
    kept.begin({"format": 1})
    now[0] = 9.9
    assert not kept.due()
    now[0] = 10
    assert kept.due()
    put = kept.store.put
    monkeypatch.setattr(kept.store, "put", lambda *what: (put(*what), now.__setitem__(0, now[0] + 2))[0])
    kept.keep("part", {"x": torch.zeros(2)}, {})
    kept.commit({})
    now[0] += 10
    assert not kept.due()  # two seconds of writing want eighty of work
    now[0] += 2 / keeping_module.SHARE - 10
    assert kept.due()
