"""docs/methods/ is what docs/generate.py would write now."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from markdown_blocks import ROOT

from trimtab.core.registry import get, ids


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_are_current(generate, capsys):
    assert generate.main(["--check"]) == 0, capsys.readouterr().out


def test_every_method_has_a_page_with_its_knobs(generate):
    pages = generate.pages({})
    for id in ids():
        assert f"[{id}]({id}.md)" in pages["index.md"]
        for name in get(id)().knobs():
            assert f"| `{name}` |" in pages[f"{id}.md"]


def test_check_notices_stale_missing_and_surplus_pages(generate, tmp_path, capsys):
    where = ["--folder", str(tmp_path)]
    assert generate.main(where) == 0
    assert generate.main([*where, "--check"]) == 0
    (tmp_path / "rtn.md").write_text("old", encoding="utf-8")
    (tmp_path / "gptq.md").unlink()
    (tmp_path / "gone.md").write_text("of a method that was removed", encoding="utf-8")
    assert generate.main([*where, "--check"]) == 1
    assert [Path(line.split(" is ")[0]).name for line in capsys.readouterr().out.splitlines()] == ["gone.md", "gptq.md", "rtn.md"]
    assert generate.main(where) == 0
    assert generate.main([*where, "--check"]) == 0
    assert not (tmp_path / "gone.md").exists()


def test_a_result_in_the_ledger_is_on_the_page(generate, tmp_path):
    line = {
        **{"method": "gptq", "claim": "beats-rtn-at-3-bit", "status": "fails", "model": "asset:smollm2-135m"},
        **{"difference": 0.01, "low": 0.005, "high": 0.015, "n": 24, "seeds": [0, 1, 2]},
        **{"left_ppl": [21.0, 22.0], "right_ppl": [20.0, 20.0], "left_bits": 3.3, "right_bits": 3.3},
    }
    ledger = tmp_path / "ledger.jsonl"
    ledger.write_text(json.dumps(line) + "\n", encoding="utf-8")
    generate.main(["--folder", str(tmp_path / "methods"), "--ledger", str(ledger)])
    page = (tmp_path / "methods" / "gptq.md").read_text(encoding="utf-8")
    assert "| fails | +0.0100 (+0.0050 to +0.0150) | 3.300 and 3.300 | 24 x 3 |" in page
    here = "smollm2-135m: 21.50 > 20.00, n = 24 x 3, 95 % interval +0.0050 to +0.0150"
    assert f"| beats-rtn-at-3-bit | 6.42 < 6.66, Llama-2-7B, WikiText2, groups of 128 | {here} | - | fails |" in page
    others = len(get("gptq").card.claims) - 1
    assert f"1 fails, {others} not run" in (tmp_path / "methods" / "index.md").read_text(encoding="utf-8")
