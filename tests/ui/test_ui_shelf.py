"""What a folder holds, and which numbers belong to which result."""

import json
import os
from math import isnan

import pytest

from trimtab.core.errors import UsageError
from trimtab.ui import shelf
from trimtab.ui.places import Places
from trimtab.ui.shelf import Shelf


@pytest.fixture
def places(root) -> Places:
    return Places(root.resolve())


def names(paths) -> list[str]:
    return sorted(path.name for path in paths)


def test_a_folder_is_looked_at(root):
    found = Shelf.of(root)
    assert names(found.results) == ["four-bit", "two-bit-lowrank", "unmeasured"]
    assert names(found.folders) == ["more"]
    assert names(found.recipes) == ["three.yaml"]
    assert names(found.comparisons) == ["comparison.json"]


def test_a_model_is_a_shelf_with_one_result(root):
    found = Shelf.of(root / "four-bit")
    assert (found.results, found.folders, found.comparisons) == ((root / "four-bit",), (), ())


def test_the_newest_comes_first(root):
    os.utime(root / "four-bit", (2e9, 2e9))
    assert Shelf.of(root).results[0].name == "four-bit"


def test_measured_results_have_their_numbers_and_others_their_size(root, places):
    found = shelf.shown(places, Shelf.of(root), root / "comparison.json")
    assert found.base.name == "asset:own-2m"
    by_name = {model.name: model for model in found.others}
    assert sorted(by_name) == ["four-bit", "two-bit-lowrank", "unmeasured"]
    assert by_name["four-bit"].measured("perplexity").is_known
    assert by_name["four-bit"].against
    assert shelf.speed(by_name["four-bit"]) == pytest.approx(1000 / (21.4 - 4.5 / 10))
    assert not by_name["unmeasured"].measured("perplexity").is_known
    assert by_name["unmeasured"].measured("file size").value > 0
    assert isnan(shelf.speed(by_name["unmeasured"]))


def test_without_a_comparison_there_are_sizes(root, places):
    found = shelf.shown(places, Shelf.of(root), None)
    assert found.base is None
    assert all(model.measured("file size").is_known for model in found.others)


def test_a_result_that_was_written_anew_has_lost_its_numbers(root, places):
    receipt = json.loads((root / "four-bit" / "receipt.json").read_text())
    (root / "four-bit" / "receipt.json").write_text(json.dumps({**receipt, "peak_memory": 1}))
    found = shelf.shown(places, Shelf.of(root), root / "comparison.json")
    by_name = {model.name: model for model in found.others}
    assert not by_name["four-bit"].measured("perplexity").is_known
    assert by_name["two-bit-lowrank"].measured("perplexity").is_known


def test_a_comparison_of_other_models_says_nothing_here(root, places):
    found = shelf.shown(places, Shelf.of(root / "more"), root / "comparison.json")
    assert found.base is None
    assert [model.name for model in found.others] == ["deeper"]


def test_the_folder_of_a_base_that_is_elsewhere_is_not_looked_into(root, places):
    facts = json.loads((root / "comparison.json").read_text())
    facts["base"]["folder"] = str(root.parent / "results-outside" / "secret")
    (root / "comparison.json").write_text(json.dumps(facts))
    found = shelf.shown(places, Shelf.of(root), root / "comparison.json")
    assert found.base.measured("perplexity").is_known
    assert found.base.parts == {}


def test_files_that_are_no_comparisons_are_left_alone(root):
    for name, held in {"a.json": "[]", "b.json": "{", "c.json": '{"format": 2, "others": []}', "d.json": '{"format": 1}'}.items():
        (root / name).write_text(held)
    assert names(Shelf.of(root).comparisons) == ["comparison.json"]


def test_one_result_stands_beside_its_base(root, places):
    whole = shelf.shown(places, Shelf.of(root), root / "comparison.json")
    one = shelf.only(whole, root / "four-bit")
    assert ([model.name for model in one.others], one.base.name) == (["four-bit"], "asset:own-2m")
    assert shelf.only(whole, root / "unmeasured").base is None
    assert shelf.base_of(None, root / "unmeasured") == "asset:own-2m"
    assert shelf.started_from(Shelf.of(root)) == ["asset:own-2m"]


def test_what_a_measurement_gives_is_checked():
    with pytest.raises(UsageError, match="is no comparison of format 1"):
        shelf.checked({"format": 3})


def test_an_empty_folder(tmp_path):
    assert shelf.shown(Places(tmp_path), Shelf.of(tmp_path), None) is None


def test_links_to_facts_elsewhere_are_not_followed(root):
    outside = root.parent / f"{root.name}-outside"
    (outside / "comparison.json").write_text((root / "comparison.json").read_text())
    (root / "other.json").symlink_to(outside / "comparison.json")
    (root / "borrowed").mkdir()
    (root / "borrowed" / "receipt.json").symlink_to(outside / "secret" / "receipt.json")
    found = Shelf.of(root)
    assert names(found.comparisons) == ["comparison.json"]
    assert "borrowed" not in names(found.results)
