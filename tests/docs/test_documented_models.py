"""docs/models.md describes the models of our own as they are."""

import re

from markdown_blocks import ROOT

from trimtab.host.homegrown import FAMILY, VARIANTS, Tuning

TEXT = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")


def test_the_table_is_that_of_the_code():
    described = {
        f"`asset:{name}`": f"{g.parameters:,} | {g.layers} | {g.width} | {g.heads}, {g.kv_heads} | {g.ff} | {g.vocabulary} "
        f"| {g.course.tokens:,}"
        for name, g in FAMILY.items()
    }
    assert dict(re.findall(r"^\| (`asset:own-\w+`) \| (.*) \|$", TEXT, re.MULTILINE)) == described


def test_every_variant_is_explained():
    for variant, outliers in VARIANTS.items():
        assert f"| `asset:own-5m-{variant}` |" in TEXT
        if isinstance(outliers, Tuning):
            assert f"{outliers.course.steps} steps of {outliers.course.length} tokens" in TEXT
            assert f"up to {outliers.course.learning_rate:g}" in TEXT
            continue
        assert max(outliers.factor, 1 / outliers.factor) == 16, "the page says by 16"
        assert (outliers.channels, outliers.neurons, outliers.pairs) == (4, 4, 1), "the page says how many"


def test_the_course_is_as_described():
    for grown in FAMILY.values():
        assert (grown.course.length, grown.course.learning_rate, grown.course.decay) == (512, 0.002, 0.1)
        assert grown.texts == ("asset:squad-drop", "asset:coqa")
