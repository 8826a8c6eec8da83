"""The table of round trips in docs/export.md is what the targets plan, not what somebody remembers."""

import importlib.util

from markdown_blocks import ROOT


def test_the_table_is_what_the_targets_plan(capsys):
    spec = importlib.util.spec_from_file_location("export_table", ROOT / "docs" / "export_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main(["--check"]) == 0, capsys.readouterr().out
    assert "| x |" in module.filled(f"a\n{module.BEGIN}\nold\n{module.END}\nb\n", "| x |")
