"""The table of what a resumed job compares is the table in the code."""

from markdown_blocks import ROOT

from trimtab.host.identity import RULES


def test_the_page_has_every_field_and_what_a_difference_means():
    lines = (ROOT / "docs/reliability.md").read_text(encoding="utf-8").splitlines()
    head = lines.index("| field | difference | what it is |")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[head + 2 : head + 2 + len(RULES)]]
    assert rows == [[field, bears.name.lower(), what] for field, (bears, what) in RULES.items()]
    assert not lines[head + 2 + len(RULES)].startswith("|")
