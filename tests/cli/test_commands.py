"""Every command does its work, and `--json` prints one document and nothing else."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

import trimtab as package
from trimtab import kernels
from trimtab.core.recipe import Recipe
from trimtab.core.registry import ids
from trimtab.testing.folders import tiny_folder

GPTQ = ("--method", "gptq", "--bits", "3", "--group_size", "32", "--no-clip")


def test_version(trimtab):
    assert trimtab("--version").stdout == f"trimtab {package.__version__}\n"


def test_compress_by_method(trimtab, model, shown, tmp_path):
    done = trimtab("compress", model, "-o", tmp_path / "out", *GPTQ, *shown, "--profile")
    assert done.exit_code == 0, done.stderr
    assert "gptq(bits=3, group_size=32)" in done.stdout
    assert f"next: trimtab measure {tmp_path / 'out'}" in done.stdout
    assert "solve" in done.stdout  # the profile
    assert "times smaller" in done.stdout
    assert done.stderr.startswith("trimtab: load 0/1")
    saved = Recipe.read(tmp_path / "out" / "recipe.yaml")
    assert str(saved) == "gptq(bits=3, group_size=32)"
    assert saved.calibration.tokens == 256
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_compress_json_after_the_model_name_or_before(trimtab, model, shown, tmp_path):
    before = trimtab("compress", *GPTQ, *shown, model, "-o", tmp_path / "a", "--json", "-q")
    after = trimtab("compress", model, *GPTQ, *shown, "-o", tmp_path / "b", "--json", "-q")
    assert before.stderr == after.stderr == ""
    one, other = json.loads(before.stdout), json.loads(after.stdout)
    assert one["bytes_after"] == other["bytes_after"] < one["bytes_before"]
    assert len(one["report"]["receipts"]) == 14
    assert one["output_dir"] == str(tmp_path / "a")


def test_compress_by_recipe_file_with_overrides(trimtab, model, shown, tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("trimtab: 1\nsteps:\n  - wanda: {sparsity: 0.25}\n    where: {only: [layers.1]}\n", encoding="utf-8")
    done = trimtab("compress", model, "--recipe", file, "--seed", "7", *shown, "-o", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.stderr
    said = json.loads(done.stdout)["report"]
    assert said["recipe"]["seed"] == 7
    assert said["recipe"]["calibration"]["length"] == 32
    assert {r["place"].split(".")[2] for r in said["receipts"]} == {"1"}


def test_compress_by_expression_restricted(trimtab, model, tmp_path):
    asked = ("--do", "magnitude(sparsity=0.5) -> rtn(bits=4)", "--only", "mlp.*", "--skip", "layers.0")
    done = trimtab("compress", model, *asked, "-o", tmp_path / "out", "--json", "--packed", "--dtype", "bfloat16")
    assert done.exit_code == 0, done.stderr
    places = {r["place"] for r in json.loads(done.stdout)["report"]["receipts"]}
    assert places == {f"model.layers.1.mlp.{name}_proj" for name in ("gate", "up", "down")}


@pytest.mark.parametrize(("goal", "least"), [(("--bits", "3.5"), 0.97), (("--size", "45%"), 0.99)])
def test_compress_by_goal(trimtab, model, shown, tmp_path, goal, least):
    done = trimtab("compress", model, *goal, *shown, "-o", tmp_path / "out", "--json", "-q")
    assert done.exit_code == 0, done.stderr
    said = json.loads(done.stdout)
    (bits,) = {step["bits"] for step in json.loads(trimtab("plan", model, *goal, "--json", "-q").stdout)["steps"]}
    if goal[0] == "--bits":
        assert least * 3.5 <= bits <= 3.5
    else:
        assert least * 0.45 <= said["bytes_after"] / said["bytes_before"] <= 0.45


def test_overwriting_replaces_the_old_model(trimtab, model, tmp_path):
    old = tiny_folder(tmp_path / "out", num_hidden_layers=1)
    done = trimtab("compress", model, "--method", "rtn", "-o", old, "--overwrite")
    assert done.exit_code == 0, done.stderr
    assert json.loads((old / "config.json").read_text())["num_hidden_layers"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("words", [("plan",), ("compress", "--dry-run")])
def test_plan_changes_nothing(trimtab, model, shown, tmp_path, words):
    before = {path: path.stat().st_mtime_ns for path in model.iterdir()}
    asked = (*words, model, *GPTQ, *shown, "--only", "self_attn.*", "-o", tmp_path / "out")
    told, counted = trimtab(*asked), trimtab(*asked, "--json")
    assert told.exit_code == counted.exit_code == 0, told.stderr
    assert "self_attn.*: 8" in told.stdout
    (step,) = json.loads(counted.stdout)["steps"]
    assert step["matched"] == {"self_attn.*": 8}
    assert len(step["sites"]) == 8
    assert step["bits"] == 3 + (16 + 4) / 32 or step["bits"] == 3 + (16 + 3) / 32
    assert list(tmp_path.iterdir()) == []
    assert {path: path.stat().st_mtime_ns for path in model.iterdir()} == before


def test_a_block_number_means_that_block_only(trimtab, tmp_path):
    deep = tiny_folder(tmp_path / "deep", num_hidden_layers=12, hidden_size=16, intermediate_size=32)
    for pattern in ("layers.1", "layers.1."):
        done = trimtab("plan", deep, "--method", "rtn", "--group-size", "16", "--only", pattern, "--json")
        assert done.exit_code == 0, done.stderr
        sites = json.loads(done.stdout)["steps"][0]["sites"]
        assert len(sites) == 7
        assert all(site.startswith("model.layers.1.") for site in sites)


def test_plan_says_when_the_data_decide(trimtab, model):
    done = trimtab("plan", model, "--do", "gptq by layerwise_quant(bits=3)", "--json")
    assert json.loads(done.stdout)["bytes_after"] is None
    assert "the data decide" in trimtab("plan", model, "--do", "gptq by layerwise_quant(bits=3)").stdout


def test_measure_several_models(trimtab, model, text, tmp_path):
    other = tiny_folder(tmp_path / "other", seed=1, num_hidden_layers=1)
    asked = ("measure", model, other, "--text", text, "--windows", "1", "--length", "32", "--no-speed")
    told, counted = trimtab(*asked), trimtab(*asked, "--json")
    assert told.exit_code == counted.exit_code == 0, told.stderr
    head = told.stdout.splitlines()[0]
    assert str(model) in head
    assert str(other) in head
    assert any(line.startswith("perplexity") for line in told.stdout.splitlines())
    columns = json.loads(counted.stdout)
    assert [column["model"] for column in columns] == [str(model), str(other)]
    for column in columns:
        found = {m["name"]: m for m in column["measurements"]}
        assert found["perplexity"].keys() == {"name", "value", "stderr", "n", "unit", "setting"}
        assert found["perplexity"]["n"] == 31
        assert found["perplexity"]["stderr"] is None  # one window: not a number, which JSON does not have
        assert found["file size"]["value"] == (Path(column["model"]) / "model.safetensors").stat().st_size
        assert "decode speed" not in found


def test_measure_speed(trimtab, model, text):
    done = trimtab("measure", model, "--text", text, "--windows", "2", "--length", "16", "--json")
    assert {"prefill speed", "decode speed"} <= {m["name"] for m in json.loads(done.stdout)[0]["measurements"]}


def test_generate(trimtab, model):
    told = trimtab("generate", model, "hello", "--new-tokens", "4")
    said = json.loads(trimtab("generate", model, "hello", "--new-tokens", "4", "--json").stdout)
    other = json.loads(trimtab("generate", model, "hello", "--new-tokens", "4", "--seed", "3", "--json").stdout)
    assert told.exit_code == 0
    assert told.stdout.rstrip("\n") == said["text"].rstrip("\n")
    assert said["text"] != other["text"]


def test_methods_list(trimtab):
    told = trimtab("methods")
    listed = json.loads(trimtab("methods", "--json", "--ledger", "nowhere.jsonl").stdout)
    assert [entry["id"] for entry in listed] == ids()
    for entry in listed:
        assert entry.keys() == {"id", "room", "kind", "title", "paper", "fidelity", "claims", "knobs"}
        assert all(claim.keys() == {"name", "left", "relation", "right", "published"} for claim in entry["claims"])
        assert f" {entry['id']} " in told.stdout


def test_methods_one(trimtab):
    told = trimtab("methods", "gptq").stdout
    said = json.loads(trimtab("methods", "gptq", "--json").stdout)
    assert "--group-size" in told
    assert "2 to 8" in told
    assert "gptq(bits=3) < rtn(bits=3)" in told
    assert said["doc"].splitlines()[0] in told
    assert {"name": "bits", "default": 4, "type": "int", "low": 2, "high": 8}.items() <= said["knobs"][0].items()


def test_help_with_a_method_lists_its_knobs(trimtab):
    done = trimtab("compress", "--help", "--method", "wanda")
    assert done.exit_code == 0
    assert "--sparsity" in done.stdout
    assert "0 to 0.99" in done.stdout
    assert "--sparsity" not in trimtab("compress", "--help").stdout


@pytest.mark.slow
def test_claim_runs_appends_and_renders(trimtab, model, text, tmp_path, monkeypatch):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    ledger = tmp_path / "claims" / "ledger.jsonl"
    setting = ("--model", model, "--text", text, "--calibration-text", text, "--windows", "2", "--length", "32")
    asked = ("claim", "wanda", *setting, "--tokens", "64", "--seeds", "0,3", "--ledger", ledger)
    told = trimtab(*asked)
    assert told.exit_code == 0, told.stderr
    assert told.stdout.startswith("wanda beats-magnitude: ")
    (line,) = json.loads(trimtab(*asked, "--json").stdout)
    assert line["seeds"] == [0, 3]
    assert [json.loads(row) for row in ledger.read_text().splitlines()][1] == line
    assert "| wanda | beats-magnitude |" in (ledger.parent / "LEDGER.md").read_text()
    assert sorted(path.name for path in ledger.parent.iterdir()) == ["LEDGER.md", "ledger.jsonl"]
    (claim,) = json.loads(trimtab("methods", "wanda", "--json", "--ledger", ledger).stdout)["claims"]
    assert claim["status"] == line["status"]


def test_claim_render_only(trimtab, tmp_path):
    done = trimtab("claim", "--render", "--ledger", tmp_path / "ledger.jsonl")
    assert done.exit_code == 0, done.stderr
    assert "not run" in (tmp_path / "LEDGER.md").read_text()
    assert not (tmp_path / "ledger.jsonl").exists()


def test_doctor(trimtab, monkeypatch, tmp_path):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    (tmp_path / "thing").mkdir()
    (tmp_path / "thing" / "file").write_bytes(b"x" * 10)
    told, said = trimtab("doctor"), json.loads(trimtab("doctor", "--json").stdout)
    assert told.exit_code == 0
    assert "hf_secret" not in told.stdout + json.dumps(said)
    assert said["variables"]["HF_TOKEN"] == "(set)"
    assert said["cache"]["folder"] == str(tmp_path)
    assert said["cache"]["holds"] == {"thing": 10}
    assert said["native_kernels"] == kernels.describe()
    assert isinstance(said["fast_float32_products"], bool)
    assert said["versions"]["torch"].startswith("2.")
    assert said["memory"] > said["memory_free"] > 0
