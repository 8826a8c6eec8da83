"""The page is whole, contains everything, fetches nothing, and whatever text comes from outside stays text."""

import base64
import copy
import hashlib
import re
from itertools import pairwise
from typing import Any

import pytest
import sample
from markdown_it import MarkdownIt
from markup_check import Page

from trimtab.report import figures, markdown, parse, render, svg
from trimtab.report.answers import MOST_SAMPLES
from trimtab.report.document import Estimate, Flips
from trimtab.report.layout import Scale
from trimtab.report.receipts import Cell

LARGEST = 2_000_000
OUTER = ("html", "head", "body", "main", "h1", "style", "script")
CHAPTERS = (
    *("summary", "trade-off", "size", "loss", "tasks", "calibration"),
    *("text", "speed", "layers", "learning", "recipe", "receipt", "reading"),
)


@pytest.mark.parametrize("kind", ["sample", "hostile", "alone", "single"])
def test_the_page_is_well_formed(kind, page, tmp_path):
    texts = {
        "sample": lambda: page,
        "hostile": lambda: render(parse(sample.hostile())),
        "alone": lambda: render(parse({"format": 1, "others": [{"name": "a"}]})),
        "single": lambda: render(parse(sample.comparison(names=("base", "one")))),
    }
    found = Page(texts[kind]())
    found.check()
    assert [tag.name for tag in found.tags if tag.name in OUTER] == ["html", "head", "style", "body", "h1", "main", "script"]


def test_headings_do_not_jump(page):
    levels = [int(tag.name[1]) for tag in Page(page).tags if re.fullmatch("h[1-6]", tag.name)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_every_table_has_a_caption_and_heads(page):
    tables = Page(page).named("table")
    assert len(tables) > 10
    for table in tables:
        assert next(tag for tag in table.inside if tag.name == "caption").text.strip()
        assert [tag for tag in table.inside if tag.attributes.get("scope") == "row"]


def test_every_drawing_is_described_or_silent(page):
    drawings = Page(page).named("svg")
    assert len(drawings) > 50
    for drawing in drawings:
        silent = drawing.attributes.get("aria-hidden") == "true"
        assert silent != bool(drawing.attributes.get("aria-label")), drawing.attributes


def test_nothing_is_fetched_and_only_our_script_may_run(page):
    found = Page(page)
    (policy,) = [tag.attributes["content"] for tag in found.named("meta") if "http-equiv" in tag.attributes]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for kind in ("style", "script"):
        (tag,) = found.named(kind)
        digest = base64.b64encode(hashlib.sha256(tag.text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "http://" not in page
    assert "https://" not in page
    assert "@import" not in page
    assert "url(" not in page


def test_hostile_text_stays_text():
    text = render(parse(sample.hostile()))
    found = Page(text)
    found.check()
    assert not found.named("img")
    assert not found.named("a")[0].text.startswith("<")
    assert len(found.named("script")) == 1
    assert "pwned" not in found.named("script")[0].text
    assert "window.pwned" in found.named("h1")[0].text  # it is shown, not dropped
    assert "{{7*7}}" in found.named("h1")[0].text
    assert "<script>window" not in text


def test_a_recipe_with_html_is_shown_as_it_is(page):
    made = sample.comparison(blocks=1)
    made["others"][0]["receipt"]["recipe"]["</code></pre><script>alert(1)</script>"] = "</textarea>"
    found = Page(render(parse(made)))
    assert any("</code></pre><script>alert(1)" in tag.text for tag in found.named("code"))
    assert len(found.named("script")) == 1


def test_everything_asked_for_is_there(page):
    text = Page(page).named("main")[0].text
    for words in (
        *("size on disk", "bits per weight", "mean of 4 tasks", "answers that flipped", "decode, tokens/s", "not separable"),
        *("Perplexity against size on disk", "Tensor bytes by part", "Loss by kind of text", "Loss by position", "worse"),
        *("Accuracy by task", "lost", "both wrong", "Expected calibration error", "New tokens per second", "words differ"),
        *("Output error by kind of matrix and block", "group_size: 64", "in 2 places", "model.layers.29.mlp.down_proj"),
        *("1a9c880", "transformers 5.23.0", "sha256 " + f"{7:064x}", "Fingerprints", f"{3:064x}", "seconds by activity"),
    ):
        assert words in text, words
    assert tuple(tag.attributes["id"] for tag in Page(page).named("section") if "id" in tag.attributes) == CHAPTERS


def test_chapters_without_content_are_left_out():
    made = {"format": 1, "others": [{"name": "a"}]}
    ids = [tag.attributes["id"] for tag in Page(render(parse(made))).named("section") if "id" in tag.attributes]
    assert ids == ["summary", "receipt", "reading"]


def test_the_page_is_small(page):
    assert 50_000 < len(page.encode()) < 500_000


def test_many_deep_models_still_fit():
    made = sample.comparison(blocks=80, names=("base", *(f"model number {n}" for n in range(12))))
    made["base"]["samples"] *= 30
    text = render(parse(made))
    assert len(text.encode()) < LARGEST
    Page(text).check()
    assert "more models are in the tables only" in text


def test_many_samples_are_cut():
    made = sample.comparison(blocks=1)
    for model in (made["base"], *made["others"]):
        model["samples"] = [{"prompt": f"prompt {n}", "text": "word " * 3000} for n in range(40)]
    text = render(parse(made))
    assert f"{40 - MOST_SAMPLES} more prompts are not shown" in text
    assert len(text.encode()) < LARGEST


def test_models_of_the_same_name_are_both_shown():
    found = Page(render(parse(sample.comparison(blocks=1, names=("base", "same", "same")))))
    assert sum(tag.text.strip() == "same" for tag in found.named("h3")) >= 2


def test_words_that_differ_are_marked():
    made = sample.comparison(blocks=1, names=("base", "other"))
    made["base"]["samples"] = [{"prompt": "p", "text": "one two three four"}]
    made["others"][0]["samples"] = [{"prompt": "p", "text": "one deux trois four"}]
    found = Page(render(parse(made)))
    assert [tag.text for tag in found.named("mark")] == ["deux trois"]
    assert "2 of 4 words differ" in found.named("main")[0].text


def test_other_tokenizers_are_compared_by_bytes_only():
    made = sample.comparison(blocks=1)
    foreign = made["others"][1]
    foreign["name"] = "foreigner"
    foreign["against_base"] |= {"perplexity": None, "kl": None, "same_top": None}
    found = Page(render(parse(made)))
    text = found.named("main")[0].text
    assert "Bits per byte against size on disk" in text
    assert "Perplexity against" not in text
    about = {next(tag.text for tag in table.inside if tag.name == "caption"): table.text for table in found.named("table")}
    assert "foreigner" not in about["Perplexity per token"]
    assert "foreigner" not in about["Loss by kind of text, nats per token"]
    assert "foreigner" in about["Bits per byte of text"]
    assert "foreigner" in about["Accuracy by task"]


def test_gold_answers_have_bits_per_byte():
    made = sample.comparison(blocks=1, names=("base", "one"))
    for model in (made["base"], made["others"][0]):
        held = {"n": 90, "accuracy": 0.1, "stderr": 0.03, "normalised": None, "normalised_stderr": None, "calibration": None}
        model["tasks"] = {"recall": {**held, "bits_per_byte": 0.9, "bits_per_byte_stderr": 0.02}}
    bits = {"difference": 0.2, "low": 0.1, "high": 0.3, "n": 90, "unit": "bits/byte", "verdict": "worse"}
    made["others"][0]["against_base"]["tasks"] = {"recall": {**sample.task_difference("sciq", 0.0), "bits_per_byte": bits}}
    tables = [table.text for table in Page(render(parse(made))).named("table")]
    (shown,) = [text for text in tables if "Bits per byte of the right answer" in text]
    assert "+0.20 bits/byte" in shown
    assert "worse" in shown
    assert not any("by bytes" in text for text in tables)


# --- colours ------------------------------------------------------------------------------------------------------------


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_text_can_be_read_in_both_colour_schemes(page):
    style = Page(page).named("style")[0].text
    tokens = {name: pair for name, *pair in re.findall(r"--([a-z-]+): light-dark\((#\w{6}), (#\w{6})\)", style)}
    assert len(tokens) >= 9
    for scheme in (0, 1):
        for ink in ("ink", "muted", "accent"):
            for paper in ("paper", "card"):
                assert _contrast(tokens[ink][scheme], tokens[paper][scheme]) >= 4.5, (ink, paper, scheme)
        assert _contrast(tokens["ink"][scheme], tokens["accent-soft"][scheme]) >= 4.5
        for part in ("embedding", "attention"):
            assert _contrast(tokens["paper"][scheme], tokens[part][scheme]) >= 4.5


# --- drawings -----------------------------------------------------------------------------------------------------------


def test_svg_escapes_what_it_is_given():
    made = svg.element("text", "<b>&", x=1.0, class_='a"b', label_of=None)
    assert made == '<text x="1" class="a&#34;b">&lt;b&gt;&amp;</text>'


def test_an_interval_is_drawn_where_its_numbers_are():
    found = Page(figures.interval_row(Estimate(20.0, 15.0, 25.0, 9), Scale(0, 40), reference=10.0))
    (dot,) = found.named("circle")
    assert dot.attributes["cx"] == "50%"
    whisker = [tag.attributes for tag in found.named("line") if "whisker" in (tag.attributes["class"] or "")]
    assert (whisker[0]["x1"], whisker[0]["x2"]) == ("37.5%", "62.5%")
    (reference,) = [tag.attributes for tag in found.named("line") if tag.attributes["class"] == "reference"]
    assert reference["x1"] == "25%"


def test_an_unknown_number_is_not_drawn():
    assert not Page(figures.interval_row(Estimate(float("nan")), Scale(0, 1))).named("circle")


def test_bars_are_as_wide_as_their_bytes():
    widths = [tag.attributes["width"] for tag in Page(figures.parts_bar({"embedding": 25, "mlp": 50}, 200)).named("rect")]
    assert widths == ["12.5%", "25%"]


def test_flips_are_in_proportion():
    lost, gained = (tag.attributes for tag in Page(figures.flips_bar(Flips(50, 20, 5, 25, 100), 0.2)).named("rect"))
    assert lost["width"] == "34%"
    assert gained["width"] == "8.5%"
    assert (lost["x"], gained["x"]) == ("16%", "50%")


def test_a_heat_map_has_a_cell_for_every_matrix_and_shades_by_value():
    cells = [Cell(block, matrix, 4.0, 0.0, 1) for block in range(3) for matrix in ("q", "down")]
    values = [0.0, 1.0, 2.0, 3.0, 4.0, float("nan")]
    shade = figures.shading("error", values, str)
    drawn = [tag.attributes["class"] for tag in Page(figures.heat(cells, values, shade)).named("rect")]
    assert drawn == ["h0", "h2", "h4", "h6", "h8", "empty"]


def test_one_value_has_a_shade_of_its_own():
    assert figures.shading("bits", [4.0, 4.0], str).shade(4.0) == 4


def test_names_far_from_their_points_are_led_to_them():
    crowd = [figures.Point(f"model {n}", 100.0 + n, Estimate(20.0 + n / 50, n=9)) for n in range(6)]
    crowd.append(figures.Point("far away", 300.0, Estimate(60.0, n=9)))
    axes = figures.Axes("size", "perplexity", True, str, str)
    drawn = Page(figures.trade_off(crowd, axes, 460, 360))
    kinds = [tag.attributes.get("class") for tag in drawn.tags]
    assert kinds.count("label") >= 5
    assert kinds.count("leader") >= 1
    assert len([kind for kind in kinds if kind and kind.startswith("dot")]) == 7


# --- Markdown -----------------------------------------------------------------------------------------------------------


def _tokens(text: str) -> list[Any]:
    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(text)


def _inline(text: str) -> set[str]:
    return {child.type for token in _tokens(text) for child in token.children or ()}


def test_the_card_has_the_content_of_the_page(card):
    plain = card.replace("\\", "")
    for words in ("At a glance", "not separable", "arc_easy", "KL to the base", "group_size: 64", "in 2 places", "1a9c880"):
        assert words in plain, words
    assert "<svg" not in card


def test_tables_of_the_card_are_tables(card):
    tokens = _tokens(card)
    assert sum(token.type == "table_open" for token in tokens) > 10
    rows: list[int] = []
    for token in tokens:
        if token.type in ("thead_open", "table_open"):
            rows = []
        if token.type == "tr_open":
            rows.append(0)
        if token.type in ("th_open", "td_open"):
            rows[-1] += 1
        if token.type == "table_close":
            assert len(set(rows)) == 1
            assert len(rows) > 1
    # A row that is no row would be a paragraph with bars in it.
    assert not [t for t in tokens if t.type == "inline" and re.search(r"(?<!\\)\|.*(?<!\\)\|", t.content) and "---" in t.content]


def test_hostile_text_stays_text_in_the_card():
    card = markdown(parse(sample.hostile()))
    assert not _inline(card) & {"link_open", "image", "html_inline", "code_inline"}
    tokens = _tokens(card)
    assert [t.content.strip() for t in tokens if t.type == "html_block"] == ["<!-- trimtab report -->"]
    headings = [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]
    assert len(headings) == 1 + 12
    assert "https://" not in "".join(t.content for t in tokens if t.type == "inline")


def test_a_recipe_cannot_end_its_fence():
    made = sample.comparison(blocks=1, names=("base", "one"))
    made["others"][0]["receipt"]["recipe"]["x"] = "a\n```\n````\n# heading"
    fences = [token for token in _tokens(markdown(parse(made))) if token.type == "fence"]
    assert len(fences) == 1
    assert "# heading" in fences[0].content


def test_the_document_is_not_changed_by_rendering():
    made = sample.comparison(blocks=1)
    before = copy.deepcopy(made)
    render(parse(made))
    assert made == before
