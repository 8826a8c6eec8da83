"""`trimtab export` plans, refuses and writes; what it says is for people or one JSON document."""

import json

from trimtab.host.export import reopen


def test_a_dry_run_shows_the_table_and_writes_nothing(trimtab, model, tmp_path):
    done = trimtab("export", model, "--to", "gguf", "--dry-run", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.startswith("model.")}
    assert rows["model.layers.*.mlp.down_proj.weight"] == [
        *("model.layers.*.mlp.down_proj.weight", "2", "float32", "F32", "exact", "65.5", "kB")
    ]
    assert not list(tmp_path.iterdir())


def test_every_tensor_is_in_the_document(trimtab, model):
    done = trimtab("export", model, "--to", "compressed-tensors", "--dry-run", "--json", "-q")
    said = json.loads(done.stdout)
    assert said["folder"] is None
    assert sum(entry["name"].startswith("model.layers.1.") for entry in said["entries"]) == 9


def test_what_was_written_was_opened_again(trimtab, model, tmp_path, monkeypatch):
    monkeypatch.setattr(reopen, "llama_python", lambda: None)
    done = trimtab("export", model, "--to", "gguf", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    assert "opened again by: transformers" in done.stdout
    assert (tmp_path / "out" / "model.gguf").exists()


def test_requests_that_cannot_be_met_end_with_2(trimtab, model, tmp_path):
    for words, what in (
        (["--to", "gguf"], "-o OUT"),
        (["--to", "ggml", "-o", tmp_path / "out"], "did you mean 'gguf'"),
        (["--to", "plain", "--requantize", "q4_0", "--dry-run"], "cannot be re-quantized"),
    ):
        done = trimtab("export", model, *words)
        assert done.exit_code == 2
        assert what in done.stderr
    assert not list(tmp_path.iterdir())
