"""What docs/generate.py would write now is what is there."""

import json
from pathlib import Path

import generate

from trimtab.core.registry import get, ids


def test_the_pages_are_current(capsys):
    assert generate.main(["--check"]) == 0, capsys.readouterr().out


def test_every_method_has_a_page_with_its_knobs():
    pages = generate.pages({})
    for id in ids():
        assert f"[{id}]({id}.md)" in pages["index.md"]
        for name in get(id)().knobs():
            assert f"| `{name}` |" in pages[f"{id}.md"]


def test_check_notices_stale_missing_and_surplus_pages(tmp_path, capsys):
    where, methods = ["--root", str(tmp_path)], tmp_path / "docs" / "methods"
    assert generate.main(where) == 0
    assert generate.main([*where, "--check"]) == 0
    (methods / "rtn.md").write_text("old", encoding="utf-8")
    (methods / "gptq.md").unlink()
    (tmp_path / "trimtab" / "methods" / "__init__.pyi").write_text("", encoding="utf-8")
    (methods / "gone.md").write_text("of a method that was removed", encoding="utf-8")
    assert generate.main([*where, "--check"]) == 1
    stale = [Path(line.split(" is ")[0]).name for line in capsys.readouterr().out.splitlines()]
    assert stale == ["gone.md", "gptq.md", "rtn.md", "__init__.pyi"]
    assert generate.main(where) == 0
    assert generate.main([*where, "--check"]) == 0
    assert not (methods / "gone.md").exists()


def test_a_result_in_the_ledger_is_on_the_page(tmp_path):
    line = {
        **{"method": "gptq", "claim": "beats-rtn-at-3-bit", "status": "fails", "model": "asset:smollm2-135m"},
        **{"difference": 0.01, "low": 0.005, "high": 0.015, "n": 24, "seeds": [0, 1, 2]},
        **{"left_ppl": [21.0, 22.0], "right_ppl": [20.0, 20.0], "left_bits": 3.3, "right_bits": 3.3, "base_ppl": 10.0},
        "statement": "gptq(bits=3) < rtn(bits=3)",
    }
    ledger = tmp_path / "ledger.jsonl"
    ledger.write_text(json.dumps(line) + "\n", encoding="utf-8")
    generate.main(["--root", str(tmp_path), "--ledger", str(ledger)])
    page = (tmp_path / "docs" / "methods" / "gptq.md").read_text(encoding="utf-8")
    assert "| fails | +0.0100 (+0.0050 to +0.0150) | 3.300 and 3.300 | 24 x 3 |" in page
    here = "smollm2-135m: 21.50 > 20.00, n = 24 x 3, 95 % interval +0.0050 to +0.0150"
    assert f"| beats-rtn-at-3-bit | 6.42 < 6.66, Llama-2-7B, WikiText2, groups of 128 | {here} | 10.00 | fails |" in page
    others = len(get("gptq").card.claims) - 1
    assert f"1 fails, {others} not run" in (tmp_path / "docs" / "methods" / "index.md").read_text(encoding="utf-8")


def test_a_method_that_was_overtaken_says_so_and_by_what(tmp_path):
    assert "`rtn(bits=3)` has 20.00 at 3.30" in _with_results(tmp_path, (21.0, 22.0), (20.0, 20.0))
    assert "perplexity" not in _with_results(tmp_path, (19.0, 22.0), (20.0, 20.0)), "one seed was better"


def test_the_best_recipe_of_a_size_comes_first(tmp_path):
    _with_results(tmp_path, (21.0, 22.0), (20.0, 20.0))
    page = (tmp_path / "docs" / "choosing.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith(("| `gptq", "| `rtn(bits"))]
    assert [row[:3] for row in rows] == [
        ["| `rtn(bits=3)`", "3.300", "20.00"],
        ["| `gptq(bits=3)`", "3.300", "21.50 (21.00 to 22.00)"],
    ]
    assert "### 3 to 3.4 bits per weight" in page


def _with_results(tmp_path: Path, left: tuple[float, float], right: tuple[float, float]) -> str:
    """The part of gptq's page that says when not to use it, where that is all the ledger knows."""
    line = {
        **{"method": "gptq", "claim": "beats-rtn-at-3-bit", "status": "fails", "model": "asset:smollm2-135m"},
        **{"difference": 0.0, "low": 0.0, "high": 0.0, "n": 24, "seeds": [0, 1], "base_ppl": 10.0},
        **{"left_ppl": left, "right_ppl": right, "left_bits": 3.3, "right_bits": 3.3},
        "statement": "gptq(bits=3) < rtn(bits=3)",
    }
    ledger = tmp_path / "ledger.jsonl"
    ledger.write_text(json.dumps(line) + "\n", encoding="utf-8")
    generate.main(["--root", str(tmp_path), "--ledger", str(ledger)])
    page = (tmp_path / "docs" / "methods" / "gptq.md").read_text(encoding="utf-8")
    return page.partition("## When not to use it")[2]
