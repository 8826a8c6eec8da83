"""`trimtab adapt` and `trimtab merge` as a user types them."""

import json
from pathlib import Path

import pytest

QUICK = ["--length", "16", "--batch", "4", "--at-once", "4", "--steps", "3", "--validation", "0.1"]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    file = tmp_path / "pairs.jsonl"
    lines = [{"prompt": f"{n} is ", "completion": f"{n}!"} for n in range(30)]
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return file


def test_from_a_model_to_an_adapter_to_a_model(trimtab, model: Path, pairs: Path, tmp_path: Path) -> None:
    done = trimtab("adapt", model, pairs, "-o", tmp_path / "adapter", "--rank", "4", "--alpha", "8", *QUICK)
    assert done.exit_code == 0, done.stderr
    assert "lora(rank=4, alpha=8.0)" in done.stdout
    assert "27 to train on, 3 to validate on; 0 cut, 0 left out" in done.stdout
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == 4
    done = trimtab("merge", model, tmp_path / "adapter", "-o", tmp_path / "merged")
    assert done.exit_code == 0, done.stderr
    assert "14 matrices changed" in done.stdout


def test_json_says_everything_once(trimtab, model: Path, pairs: Path, tmp_path: Path) -> None:
    done = trimtab("adapt", model, pairs, "-o", tmp_path / "out", "--method", "s2ft", "--share", "0.1", "--json", *QUICK)
    assert done.exit_code == 0, done.stderr
    said = json.loads(done.stdout)
    assert len(said["tuned"]["losses"]) == 3
    assert said["trained_parameters"] == 2 * 13 * 64
    done = trimtab("merge", model, tmp_path / "out", "-o", tmp_path / "merged", "--json")
    assert len(json.loads(done.stdout)["changed"]) == 2


def test_help_has_the_knobs_of_the_method(trimtab) -> None:
    assert "--eta" in trimtab("adapt", "--method", "allora", "--help").stdout
    assert "--patience" in trimtab("adapt", "--help").stdout


def test_what_is_wrong_is_said_in_a_line(trimtab, model: Path, pairs: Path, tmp_path: Path) -> None:
    out = ["-o", tmp_path / "out"]
    for words, said in (
        (["adapt", model, *out], "give a model and what it shall learn"),
        (["adapt", model, pairs], "no output folder given"),
        (["adapt", model, pairs, *out, "--method", "lorra"], "there is no method 'lorra'; did you mean 'lora'?"),
        (["adapt", model, pairs, *out, "--rnak", "4"], "lora has no knob --rnak; did you mean '--rank'?"),
        (["adapt", model, pairs, *out, "--method", "gptq"], "gptq is not trained on data; write trimtab compress"),
        (["adapt", model, pairs, *out, "--rank", "999"], "lora: rank 999 is more than"),
        (["adapt", model, pairs, *out, "--private", "8", "--validation", "0.1"], "would tell of them; validate on other"),
        (["adapt", model, pairs, *out, "--private", "8", "--bound", "-1"], "noise, bound and epsilon must be above 0"),
        (["adapt", model, pairs, *out, "--private", "8", "--method", "dora"], "dora cannot be trained privately; use lora"),
        (["adapt", model, pairs, *out, "--validation", "1.5"], "--validation is a share from 0 to less than 1"),
        (["adapt", model, pairs, *out, "--batch", "400"], "gives 28 rows to train on, a step takes 400"),
        (["adapt", model, tmp_path / "none.jsonl", *out], "cannot read"),
        (["merge", model, model, *out], "is no adapter folder"),
    ):
        done = trimtab(*words)
        assert done.exit_code == 2, (words, done.stderr)
        assert said in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_private_training_tells_what_was_spent_and_no_losses_of_its_rows(trimtab, model: Path, pairs: Path, tmp_path: Path):
    pytest.importorskip("opacus")
    public = tmp_path / "public.jsonl"
    public.write_text(json.dumps({"prompt": "5 is ", "completion": "5!"}), encoding="utf-8")
    asked = ["--rank", "4", "--private", "50", "--bound", "0.01", *QUICK[:6], "--steps", "4"]
    done = trimtab("adapt", model, pairs, "-o", tmp_path / "out", *asked, "--steered", "2", "--validation", public, "--json")
    assert done.exit_code == 0, done.stderr
    said = json.loads(done.stdout)
    assert 0 < said["spent"]["epsilon"] <= 50
    assert [steps for steps, _ in said["tuned"]["validations"]] == [0, said["spent"]["steps"]]
    assert said["tuned"]["losses"] == []
    about = json.loads((tmp_path / "out" / "adapter.json").read_text())
    assert about["private"] == said["spent"]
    done = trimtab("adapt", model, pairs, "-o", tmp_path / "again", *asked)
    assert done.exit_code == 0, done.stderr
    assert "30 to train on, 0 to validate on" in done.stdout
    assert "epsilon " in done.stdout
    assert "nats per learned token" not in done.stdout
