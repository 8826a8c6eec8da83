"""docs/reliability.md holds the numbers of the ledger, and every family of faults has some."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def page() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reliability", ROOT / "docs" / "reliability.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_current(page, capsys):
    assert page.main(["--check"]) == 0, capsys.readouterr().out


def test_the_last_run_of_every_experiment_is_without_faults(page):
    lines = page.latest(page.LEDGER)
    assert [line["what"] for line in lines if line["fault"]] == []
    assert set("ABCDEFGHIJM") <= set("".join(line["family"] for line in lines))
    assert sum(line["cases"] for line in lines if line["what"].startswith("mutated")) >= 20_000


def test_a_stale_page_is_noticed_and_written(page, tmp_path, capsys):
    line = {"family": "B", "what": "x", "cases": 2, "refused": 2, "taken": 0, "fault": 0, "slowest_seconds": 1, "most_memory": 0}
    made = {"date": "2026-01-01T", "commit": "a", "seed": 0}
    (tmp_path / "ledger").write_text(json.dumps({**line, **made}) + "\n")
    (tmp_path / "page.md").write_text(f"before\n{page.BEGIN}\n{page.END}\nafter")
    asked = ["--page", str(tmp_path / "page.md"), "--ledger", str(tmp_path / "ledger")]
    assert page.main([*asked, "--check"]) == 1
    assert page.main(asked) == 0
    assert page.main([*asked, "--check"]) == 0
    assert "| B | x | 2 | 2 | 0 | 0 | 1.00 s | - |" in (tmp_path / "page.md").read_text()
