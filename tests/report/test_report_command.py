"""`trimtab report`: files appear whole, replace nothing else, and whatever is wrong is one line."""

import json
from pathlib import Path

import pytest
import sample
from markup_check import Page
from typer.testing import CliRunner, Result

from trimtab.cli import report as command
from trimtab.cli.main import app
from trimtab.core.progress import unwatched
from trimtab.kernels.module import available
from trimtab.measure import compare
from trimtab.testing.folders import tiny_folder


def trimtab(*words: object) -> Result:
    return CliRunner().invoke(app, ["report", *map(str, words)])


def refused(done: Result, *fragments: str) -> None:
    assert done.exit_code == 2, (done.exit_code, done.stderr)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("trimtab: error: ")
    assert all(fragment in line for fragment in fragments), line


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    file = tmp_path / "comparison.json"
    file.write_text(json.dumps(sample.comparison(blocks=2)), encoding="utf-8")
    return file


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    return [sample.folder(tmp_path / name, sample.receipt(4.5, 2, 1)) for name in ("one", "two")]


def test_a_comparison_becomes_a_page_and_a_card(comparison, tmp_path):
    html, md = tmp_path / "new" / "out.html", tmp_path / "out.md"
    done = trimtab("--comparison", comparison, "--html", html, "--md", md)
    assert done.exit_code == 0, done.stderr
    said = [line.split(" (")[0] for line in done.stdout.splitlines()]
    assert said == [f"compared with {sample.NAMES[0]}", f"written: {html}", f"written: {md}"]
    assert "kB)" in done.stdout
    Page(html.read_text(encoding="utf-8")).check()
    assert md.read_text(encoding="utf-8").startswith("<!-- trimtab report -->")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["comparison.json", "new", "out.md"]


def test_json_prints_the_facts(comparison, tmp_path):
    html = tmp_path / "out.html"
    said = json.loads(trimtab("--comparison", comparison, "--html", html, "--json").stdout)
    assert said["written"] == {str(html): html.stat().st_size}
    assert said["comparison"]["base"]["name"] == sample.NAMES[0]
    assert json.loads(trimtab("--comparison", comparison, "--json").stdout)["written"] == {}


def test_a_report_replaces_a_report_and_nothing_else(comparison, tmp_path):
    html = tmp_path / "out.html"
    for _ in range(2):
        assert trimtab("--comparison", comparison, "--html", html).exit_code == 0
    other, card = tmp_path / "page.html", tmp_path / "README.md"
    other.write_text("<!doctype html><title>my page about a trimtab report</title>", encoding="utf-8")
    card.write_text("# my model", encoding="utf-8")
    refused(trimtab("--comparison", comparison, "--html", other), "is no report of trimtab")
    refused(trimtab("--comparison", comparison, "--md", card), "is no report of trimtab")
    assert "my page" in other.read_text(encoding="utf-8")
    assert card.read_text(encoding="utf-8") == "# my model"


def test_folders_alone(models, tmp_path):
    html = tmp_path / "out.html"
    done = trimtab(*models, "--html", html)  # the receipts name a base that is nowhere here
    assert done.exit_code == 0, done.stderr
    assert "compared with nothing; for that give --base MODEL" in done.stdout
    text = Page(html.read_text(encoding="utf-8")).named("main")[0].text
    assert "nothing is compared" in text
    assert "Output error by kind of matrix and block" in text
    assert "not compared" in text


def test_folders_are_compared_with_the_base_that_is_given(models, tmp_path, monkeypatch):
    asked = []

    def fake(base, others, setting, watch):
        asked.append((base, others, setting.tasks, setting.limit))
        return compare.Comparison({}, {"name": "the base"}, ({"name": "one", "against_base": {}},), (), {}, "")

    monkeypatch.setattr(compare, "compare", fake)
    done = trimtab(models[0], "--base", "asset:b", "--tasks", "sciq, arc_easy", "--no-speed", "--md", tmp_path / "o.md", "-q")
    assert done.exit_code == 0, done.stderr
    assert asked == [("asset:b", [str(models[0])], ("sciq", "arc_easy"), 200)]
    assert "# one against the base" in (tmp_path / "o.md").read_text(encoding="utf-8")


def test_the_receipts_name_the_base(models, tmp_path, monkeypatch):
    asked = []

    def fake(base, others, setting, watch):
        asked.append(base)
        return compare.Comparison({}, {"name": base}, tuple({"name": name} for name in others), (), {}, "")

    monkeypatch.setattr(compare, "compare", fake)
    for model in models:
        receipt = json.loads((model / "receipt.json").read_text(encoding="utf-8"))
        (model / "receipt.json").write_text(json.dumps({**receipt, "model": "asset:smollm2-135m"}), encoding="utf-8")
    done = trimtab(*models, "--no-speed", "--md", tmp_path / "o.md", "-q")
    assert done.exit_code == 0, done.stderr
    assert asked == ["asset:smollm2-135m"]
    assert "compared with asset:smollm2-135m" in done.stdout


WRONG_WORDS = {
    "nothing": ([], "give model folders, or --comparison FILE"),
    "both": (["somewhere", "--comparison", "c.json", "--html", "o.html"], "give it alone"),
    "tasks for a comparison": (["--comparison", "c.json", "--tasks", "sciq", "--html", "o.html"], "give it alone"),
    "no output": (["somewhere"], "give --html FILE, --md FILE or --json"),
    "no such file": (["--comparison", "nowhere.json", "--html", "o.html"], "there is no file nowhere.json"),
    "no such folder": (["nowhere", "--html", "o.html"], "nowhere is not a folder"),
    "another ending": (["nowhere", "--html", "model.safetensors"], "let it end in .html or .htm"),
    "the wrong ending": (["nowhere", "--md", "o.html"], "let it end in .md"),
}


@pytest.mark.parametrize("name", WRONG_WORDS)
def test_wrong_words_are_one_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words, fragment = WRONG_WORDS[name]
    refused(trimtab(*words), fragment)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_receipt_is_one_line(models, tmp_path):
    (models[1] / "receipt.json").write_text('{"receipts": [', encoding="utf-8")
    refused(trimtab(*models, "--html", tmp_path / "o.html"), str(models[1] / "receipt.json"), "damaged")
    assert not (tmp_path / "o.html").exists()


def test_another_format_version_is_one_line(comparison, tmp_path):
    comparison.write_text(json.dumps({**sample.comparison(blocks=1), "format": 2}), encoding="utf-8")
    refused(trimtab("--comparison", comparison, "--html", tmp_path / "o.html"), "no comparison of format 1 (it says 2)")


def test_places_that_cannot_be_written(comparison, tmp_path):
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link.html").symlink_to(tmp_path / "elsewhere.html")
    refused(trimtab("--comparison", comparison, "--html", tmp_path / "folder.html"), "not an ordinary file")
    refused(trimtab("--comparison", comparison, "--html", tmp_path / "link.html"), "not an ordinary file")
    refused(trimtab("--comparison", comparison, "--html", tmp_path / "file" / "o.html"), "cannot")


def kernels(folders: list[Path]) -> list[set[object]]:
    return [{one.setting.get("kernel") for one in speeds} for speeds in command._speeds([str(f) for f in folders], unwatched)]


@pytest.mark.skipif(not available(), reason="no compiled kernels")
def test_speeds_of_one_report_are_all_of_one_engine(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "REPEATS", 1)
    monkeypatch.setattr(command, "READ", 8)
    monkeypatch.setattr(command, "PROMPT", 4)
    llama, experts = (tiny_folder(tmp_path / family, family) for family in ("llama", "mixtral"))
    (one,) = kernels([llama])
    assert one != {"torch"}
    assert kernels([llama, llama]) == [one, one]
    assert kernels([llama, experts]) == [{"torch"}, {"torch"}]
