"""An export that is killed goes on from what was planned and written, and ends in the same files; whose state it is, is asked."""

import json
import random
import shutil
from pathlib import Path

import pytest
from export_models import grouped, packed_folder

from trimtab.core.errors import ModelError, UsageError
from trimtab.host import instants, manifest
from trimtab.host.export import job, plain, reopen
from trimtab.host.export.job import Exported, export
from trimtab.host.keeping import is_kept, state_of
from trimtab.host.store import Store
from trimtab.testing import faults
from trimtab.testing.faults import INSTANTS, Victims
from trimtab.testing.folders import tiny_folder

KILLED = -9


@pytest.fixture(autouse=True)
def reader(monkeypatch):
    """Exports are opened again in this process."""
    monkeypatch.setattr(reopen, "reopen_stock", faults._opened_here)
    monkeypatch.setattr(reopen, "llama_python", lambda: None)


@pytest.fixture(scope="module")
def victims():
    with Victims() as started:
        yield started


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    made = {"self_attn": grouped(8, 32, True), "mlp": grouped(4, 32, False)}
    return packed_folder(tmp_path_factory.mktemp("models") / "packed", lambda path: made[path.split(".")[-2]])


@pytest.fixture(scope="module")
def undisturbed(model, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reopen, "reopen_stock", faults._opened_here)
        return export(model, "plain", tmp_path_factory.mktemp("undisturbed") / "out", resume=False)


def files(folder: Path) -> dict[str, str]:
    manifest.verify(folder)
    names = sorted(path.name for path in folder.iterdir() if path.name != manifest.NAME)
    return dict(zip(names, manifest.digests(folder, names), strict=True))


def said(done: Exported) -> dict:
    return {name: part for name, part in done.json().items() if name != "folder"}


@pytest.mark.parametrize("instant", INSTANTS)
def test_killed_at_any_instant_it_ends_the_same(victims, model, undisturbed, tmp_path, instant):
    asked = {"model": model, "to": "plain", "out": tmp_path / "out", "checkpoint_every": 0}
    assert victims.run(asked, instant, what="export") == KILLED
    assert victims.run(asked, what="export") == (1 if instant == "state: removed" else 0)  # then all is there
    assert files(tmp_path / "out") == files(undisturbed.folder)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_killed_again_and_again_at_random_moments_it_ends_the_same(victims, model, undisturbed, tmp_path):
    asked = {"model": model, "to": "plain", "out": tmp_path / "out", "checkpoint_every": 0, "overwrite": True}
    tiny_folder(tmp_path / "out", seed=3)
    draw = random.Random(0)
    ends = [victims.run(asked, after=draw.uniform(0.05, 0.4), what="export") for _ in range(5)]
    assert KILLED in ends
    assert victims.run(asked, what="export") == 0
    assert files(tmp_path / "out") == files(undisturbed.folder)


def stopped(model: Path, out: Path, instant: str, nth: int = 1, **how) -> None:
    left = [nth]

    def stop(now: str) -> None:
        left[0] -= now == instant
        if not left[0]:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(instants, "_listeners", [stop])
        with pytest.raises(KeyboardInterrupt):
            export(model, how.pop("to", "plain"), out, checkpoint_every=0, **how)


def test_what_was_planned_is_not_planned_again(model, undisturbed, tmp_path, monkeypatch):
    stopped(model, tmp_path / "out", "commit: done", 6)  # the logits, and five tensors
    planned = []
    entry = plain.entry
    monkeypatch.setattr(plain, "entry", lambda name, *more: (planned.append(name), entry(name, *more))[1])
    done = export(model, "plain", tmp_path / "out")
    assert planned == [one.name for one in done.entries][5:]
    assert said(done) == said(undisturbed)


def test_once_the_files_are_written_the_model_is_not_opened(model, undisturbed, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(job, "_compared", fail)
        with pytest.raises(RuntimeError):
            export(model, "plain", tmp_path / "out")
    assert is_kept(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(job, "load", fail)
    done = export(model, "plain", tmp_path / "out")
    assert said(done) == said(undisturbed)
    assert files(tmp_path / "out") == files(undisturbed.folder)
    assert not state_of(tmp_path / "out").exists()


def test_what_was_kept_of_the_files_is_checked(model, tmp_path):
    stopped(model, tmp_path / "out", "publish: whole", 2)
    (kept,) = state_of(tmp_path / "out").glob("files-*/model.safetensors")
    data = kept.read_bytes()
    kept.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        export(model, "plain", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export(model, "plain", tmp_path / "out", fresh=True)
    manifest.verify(tmp_path / "out")


def test_a_published_result_does_not_change_with_its_state(model, undisturbed, tmp_path):
    """They were one file under two names."""
    stopped(model, tmp_path / "out", "publish: done", 2)
    for path in state_of(tmp_path / "out").rglob("*.safetensors"):
        path.unlink()
    assert files(tmp_path / "out") == files(undisturbed.folder)


def test_folders_in_an_export_are_kept_too(model, tmp_path, monkeypatch):
    def write(contents, entries, folder: Path) -> None:
        (folder / "base").mkdir()
        plain.write(contents, entries, folder / "base")

    def opened(folder, ids, *told):
        return faults._opened_here(folder / "base", ids)

    monkeypatch.setattr(reopen, "reopen_stock", opened)
    monkeypatch.setitem(job.target.__globals__["TARGETS"], "nested", job.replace(job.target("plain"), write=write))
    stopped(model, tmp_path / "out", "publish: whole", 2, to="nested")
    export(model, "nested", tmp_path / "out")
    manifest.verify(tmp_path / "out")
    assert (tmp_path / "out/base/model.safetensors").stat().st_size > 1000


@pytest.mark.parametrize(
    ("field", "changed"),
    [("to", {"to": "gguf"}), ("requantize", {"requantize": "bfloat16"}), ("writer", {}), ("model", {}), ("format", {})],
)
def test_another_export_is_refused_by_name(model, tmp_path, monkeypatch, field, changed):
    stopped(model, tmp_path / "out", "commit: done", 3)
    if field == "writer":
        monkeypatch.setattr("trimtab.host.identity.code_of", lambda _: "other code")
    if field == "model":
        model = tiny_folder(tmp_path / "other")
    if field == "format":
        monkeypatch.setattr("trimtab.host.keeping.FORMAT", 2)
    with pytest.raises(UsageError, match=rf"{field}.* --fresh"):
        export(model, **{"to": "plain", "out": tmp_path / "out", **changed})
    assert is_kept(tmp_path / "out")


def test_other_versions_are_noted(model, tmp_path, monkeypatch):
    stopped(model, tmp_path / "out", "commit: done", 3)
    monkeypatch.setattr("trimtab.host.identity.versions", lambda: {"trimtab": "99"})
    assert any("versions.trimtab" in remark for remark in export(model, "plain", tmp_path / "out").remarks)


def test_where_files_cannot_be_linked_they_are_copied(model, undisturbed, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr("trimtab.host.export.under_way.os.link", fail)
    export(model, "plain", tmp_path / "out")
    assert files(tmp_path / "out") == files(undisturbed.folder)


def test_a_full_disk_ends_the_keeping_and_not_the_export(model, undisturbed, tmp_path, monkeypatch):
    commit, left = Store.commit, [3]

    def full(store, content, refers):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        commit(store, content, refers)

    monkeypatch.setattr(Store, "commit", full)
    for room in (0, 3, 22):  # commits: none, some tensors, all but that of the files
        left[0] = room
        export(model, "plain", tmp_path / f"out-{room}", checkpoint_every=0)
        assert files(tmp_path / f"out-{room}") == files(undisturbed.folder)
    assert not list(tmp_path.glob("*.partial"))


def test_no_resume_leaves_the_state_alone(model, undisturbed, tmp_path):
    stopped(model, tmp_path / "out", "commit: done", 3)
    record = json.loads((state_of(tmp_path / "out") / "CURRENT").read_text())
    done = export(model, "plain", tmp_path / "out", resume=False)
    assert said(done) == said(undisturbed)
    assert json.loads((state_of(tmp_path / "out") / "CURRENT").read_text()) == record
    shutil.rmtree(tmp_path / "out")
    export(model, "plain", tmp_path / "out")
