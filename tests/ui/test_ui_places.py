"""Nothing outside of the folder is touched, by whatever name."""

import pytest

from trimtab.core.errors import UsageError
from trimtab.ui.places import Places, is_model

OUTSIDE = [
    "..",
    "../results-outside/secret",
    "/etc",
    "link",
    "link/..",
    "more/../../x",
    "~",
    "~root",
    "a\0b",
    "four-bit/../../x",
    "link/x",
]


@pytest.fixture
def places(root) -> Places:
    return Places(root.resolve(), "/models/base")


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_name_leads_outside(places, name):
    for asked in (places.inside, places.folder, places.model, places.text):
        with pytest.raises(UsageError):
            asked(name)
    with pytest.raises(UsageError):
        places.target(name, "new")
    with pytest.raises(UsageError):
        places.target("", name)


def test_what_is_inside_is_found(places, root):
    assert places.folder("") == places.folder(".") == root
    assert places.folder("more/../four-bit") == root / "four-bit"
    assert places.name(root / "more" / "deeper") == "more/deeper"
    assert places.name(root) == ""


def test_models_are_folders_assets_and_names_on_the_hub(places, root):
    assert places.model("four-bit") == str(root / "four-bit")
    assert places.model("more/deeper") == str(root / "more/deeper")
    assert places.model("asset:own-2m") == "asset:own-2m"
    assert places.model("some-owner/some-model.v2") == "some-owner/some-model.v2"
    assert places.model("/models/base") == "/models/base"


@pytest.mark.parametrize("name", ["", "--out", "-q", "asset:", "asset:../x", "a/b/c", "a b", "/models/other", "three.yaml"])
def test_other_words_for_models_are_refused(places, name):
    with pytest.raises(UsageError):
        places.model(name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "-q", "a/b", "a\\b", "a b", "x" * 101, "end.", "four-bit", "link", "a\nb"]
)
def test_results_get_plain_new_names(places, name):
    with pytest.raises(UsageError):
        places.target("", name)


def test_a_new_result(places, root):
    assert places.target("more", "three-bit_v1.0") == root / "more" / "three-bit_v1.0"


def test_a_broken_link_is_no_new_name(places, root):
    (root / "later").symlink_to(root.parent / "nothing-yet")
    with pytest.raises(UsageError):
        places.target("", "later")


@pytest.mark.parametrize(
    "text",
    ["gptq(bits=3)", "wanda(pattern='2:4') -> gptq(bits=4)", 'x(model="asset:own-2m")', "x(model='four-bit')", "x(m='own/er')"],
)
def test_expressions_pass_as_they_are(places, text):
    assert places.expression(text) == text


@pytest.mark.parametrize("word", ["../x", "/etc/passwd", "~/x", "link", "..", "link/x"])
def test_expressions_name_no_place_outside(places, word):
    with pytest.raises(UsageError):
        places.expression(f"residual(model='{word}')")


def test_recipes_are_files_inside_that_name_nothing_outside(places, root):
    assert places.recipe("three.yaml") == str(root / "three.yaml")
    for name in ("comparison.json", "none.yaml", "../x.yaml", "four-bit"):
        with pytest.raises(UsageError):
            places.recipe(name)
    for held in ("calibration: {text: /etc/passwd}", "steps: [{x: {model: ../y}}]", "a: ["):
        (root / "bad.yaml").write_text(held)
        with pytest.raises(UsageError):
            places.recipe("bad.yaml")


def test_a_recipe_that_holds_itself_is_read_once(places, root):
    (root / "round.yaml").write_text("a: &a [*a, 'b']")
    assert places.recipe("round.yaml") == str(root / "round.yaml")


def test_texts(places, root):
    assert places.text("text.txt") == str(root / "text.txt")
    assert places.text("asset:squad-drop") == "asset:squad-drop"
    with pytest.raises(UsageError, match="there is no text"):
        places.text("missing.txt")


def test_what_is_a_model(root):
    assert is_model(root / "four-bit")
    assert not is_model(root)
    assert not is_model(root / "more")


def test_what_a_comparison_names_is_looked_into_only_where_it_is_known(places, root, monkeypatch):
    monkeypatch.setenv("TRIMTAB_CACHE", str(root.parent / "cache"))
    assert places.is_known(str(root / "four-bit"))
    assert places.is_known(str(root.parent / "cache" / "own-2m"))
    assert not places.is_known("/etc")
    assert not places.is_known(str(root / "link"))
