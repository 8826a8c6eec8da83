"""`trimtab probe`: a table per probe, what it implies, one JSON document, and refusals in one line."""

import json

from test_bad_input import contents, refused


def asked(model, text, *words):
    return ("probe", model, *words, "--text", text, "--windows", "4", "--length", "32")


def test_named_probes(trimtab, model, text):
    done = trimtab(*asked(model, text, "depth_efficiency", "sensitivity(bits=3)", "--seed", "3"))
    assert done.exit_code == 0, done.stderr
    assert done.stderr.startswith("trimtab: load 0/1")
    assert done.stdout.startswith(f"{model}: 4 windows of 32 tokens of {text}, seed 3; ")
    lines = done.stdout.splitlines()
    assert any(line.startswith("depth_efficiency: cheapest blocks to remove: 0, 1; protect: 0, 1") for line in lines)
    assert any(line.startswith("sensitivity: give more bits to blocks ") for line in lines)
    assert any(line.split()[:3] == ["block", "KL", "output"] for line in lines)
    assert any("sensitivity(bits=3)" in line for line in lines)
    assert not any("outliers" in line for line in lines)


def test_all_probes_as_one_document(trimtab, model, text):
    said = json.loads(trimtab(*asked(model, text, "--json", "-q")).stdout)
    assert said["model"] == str(model)
    assert (said["windows"], said["length"], said["seed"]) == (4, 32, 0)
    found = {entry["probe"]: entry for entry in said["probes"]}
    assert {"update_geometry", "depth_efficiency", "lora_limits", "top_singular", "outliers", "sensitivity"} < found.keys()
    assert found["sensitivity"]["knobs"]["bits"] == 4
    for entry in found.values():
        assert any(finding["implies"] for finding in entry["findings"])
        first = entry["findings"][0]["measurements"]
        assert [m["setting"]["block"] for m in first] == [0, 1]
        assert first[0].keys() == {"name", "value", "stderr", "n", "unit", "setting"}


def test_the_same_seed_says_the_same(trimtab, model, text):
    one, again, other = (trimtab(*asked(model, text, "outliers", "--json", "--seed", seed, "-q")).stdout for seed in (1, 1, 2))
    assert one == again
    assert one != other


def test_what_is_wrong_is_said(trimtab, model, text, tmp_path):
    refused(trimtab(*asked(model, text, "outlier")), "there is no probe 'outlier'; did you mean 'outliers'?")
    refused(trimtab(*asked(model, text, "gptq")), "there is no probe 'gptq'")
    refused(trimtab(*asked(model, text, "sensitivity(bit=3)")), "did you mean 'bits'?")
    refused(trimtab(*asked(model, text, "sensitivity(bits=1)")), "bits must be 2 to 12, got 1")
    refused(trimtab(*asked(model, text, "sensitivity(bits=3) -> outliers")), "is not one probe")
    refused(trimtab(*asked(model, text, "sensitivity(bits=3")), "cannot read 'sensitivity(bits=3'")
    refused(trimtab(*asked(model, text, "sensitivity(group_size=48)"), "-q"), "group_size=48")
    refused(trimtab("probe", model, "--windows", "1"), "--windows")
    refused(trimtab("probe", tmp_path / "nowhere", "-q"), "no model folder")
    (tmp_path / "short.txt").write_text("too short", encoding="utf-8")
    refused(trimtab("probe", model, "--text", tmp_path / "short.txt", "--length", "64", "-q"), "one window of 64")
    assert [path.name for path in contents(tmp_path)] == ["short.txt"]


def test_a_probe_is_no_step_of_a_recipe(trimtab, model, tmp_path):
    done = trimtab("compress", model, "--method", "outliers", "-o", tmp_path / "out", "-q")
    refused(done, "outliers only looks, it is no step; write trimtab probe MODEL outliers")
    assert contents(tmp_path) == []
