"""What the harness once found, each in its smallest form, so that it stays mended."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch

from trimtab.cli.manners import LONGEST_LINE, one_line
from trimtab.core.errors import DataError, ModelError, TrimtabError, UsageError
from trimtab.core.recipe import Recipe
from trimtab.data.pack import file_requests
from trimtab.data.text import documents
from trimtab.host import checkpoint, folder_checks, manifest, publish
from trimtab.host.compress import compress
from trimtab.host.export.job import export
from trimtab.host.gguf_import import import_gguf
from trimtab.host.quantizer import TrimtabConfig
from trimtab.runtime.facts import facts
from trimtab.runtime.text import Text
from trimtab.tensors.lowrank import truncated
from trimtab.testing.folders import tiny_folder
from trimtab.testing.tiny import tiny


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return checkpoint.save(tiny("llama", num_hidden_layers=1), None, tmp_path / "model")


@pytest.mark.parametrize("value", ["{[]: 1}", "{**a}", "1" + "0" * 400, "f'{1}'"])
def test_values_in_expressions(value):
    with pytest.raises(UsageError):
        Recipe.of(f"wanda(sparsity={value})")


def test_errors_do_not_repeat_long_values():
    with pytest.raises(UsageError) as caught:
        Recipe.parse(f"seed: {'x' * 100_000}\nsteps: [rtn]")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"text": "a", "n": %s}' % ("1" * 5000), "not a JSON object"),
        (r'{"text": "\ud800"}', "half a character"),
    ],
)
def test_lines_of_text(tmp_path, row, message):
    (tmp_path / "t.jsonl").write_text(row)
    with pytest.raises(DataError, match=message):
        documents(str(tmp_path / "t.jsonl"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"context": %s}' % ("1" * 5000), "not a JSON object"),
        (r'{"context": "\udfff", "continuations": [" a"], "gold": 0}', "half a character"),
    ],
)
def test_lines_of_tasks(tmp_path, row, message):
    (tmp_path / "t.jsonl").write_text(row)
    with pytest.raises(DataError, match=message):
        file_requests(tmp_path / "t.jsonl")


def test_texts_that_are_no_files(tmp_path):
    with pytest.raises(DataError, match="cannot read"):
        documents("a\0b.txt")
    (tmp_path / "zeros.txt").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.txt")
    for name in ("zeros.txt", "pipe.txt"):
        with pytest.raises(DataError, match="no regular file"):
            documents(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("generation_config.json", {"repetition_penalty": "much"}, "repetition_penalty must be a number"),
        ("generation_config.json", {"repetition_penalty": [1]}, "repetition_penalty must be a number"),
        ("generation_config.json", {"eos_token_id": ["a"]}, "eos_token_id must be a number"),
        ("generation_config.json", {"eos_token_id": True}, "eos_token_id must be a number"),
    ],
)
def test_settings_of_a_tokenizer(tmp_path, name, content, message):
    folder = tiny_folder(tmp_path / "model", num_hidden_layers=1)
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(ModelError, match=message):
        Text.open(folder)


@pytest.mark.parametrize("template", [[{"name": "x"}], [1], [{"name": [], "template": "a"}], {"default": "a"}, 7])
def test_templates_that_are_none(tmp_path, template):
    folder = tiny_folder(tmp_path / "model", num_hidden_layers=1)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template}))
    assert Text.open(folder).template is None


@pytest.mark.parametrize(
    "changes",
    [
        {"rms_norm_eps": {}},
        {"rms_norm_eps": "I4"},
        {"hidden_act": ["silu"]},
        {"rope_parameters": {"rope_type": ["yarn"], "rope_theta": 1e4}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e-300}},
        {"rms_norm_eps": 10**400},
    ],
)
def test_facts_of_a_config(changes):
    config = json.loads(tiny("llama").config.to_json_string(use_diff=False))
    facts(config)
    with pytest.raises(ModelError):
        facts({**config, **changes})


def test_unknown_keys_are_named_in_one_line():
    with pytest.raises(ModelError) as caught:
        TrimtabConfig(modules={}, **{"a\nb": 1})
    assert "\n" not in str(caught.value)


def test_messages_cannot_steer_a_terminal_or_fill_it():
    assert (
        one_line("a\x1b[2J\x07b\u202ec\nd")
        == "a\N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}c d"
    )
    assert len(one_line("x" * 10**6)) < LONGEST_LINE + 10


def test_files_that_cannot_be_read_are_named(model, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO), "model.safetensors")

    monkeypatch.setattr(manifest.hashlib, "file_digest", fail)
    with pytest.raises(ModelError, match=r"model\.safetensors cannot be read: Input/output error"):
        checkpoint.load(model)


def test_a_folder_that_is_replaced_while_it_is_read(model, monkeypatch):
    check = manifest.verify

    def verify(folder: Path) -> None:
        check(folder)
        checkpoint.save(tiny("llama", seed=1, num_hidden_layers=1), None, folder, overwrite=True)

    monkeypatch.setattr(manifest, "verify", verify)
    with pytest.raises(ModelError, match="was replaced while it was read"):
        checkpoint.load(model)
    monkeypatch.undo()
    checkpoint.load(model)


def test_a_result_inside_of_a_model_would_damage_it(model):
    with pytest.raises(UsageError, match="is inside of the model folder"):
        publish.check_target(model / "deep" / "out")
    with pytest.raises(UsageError, match="is inside of the model folder"):
        compress(model, "rtn", model / "out")
    checkpoint.load(model)


def test_a_result_over_its_source(model):
    for refused in (lambda: compress(model, "rtn", model, overwrite=True), lambda: export(model, "plain", model, overwrite=True)):
        with pytest.raises(UsageError, match="is the model that is read"):
            refused()
    checkpoint.load(model)


def test_names_that_are_too_long_are_refused_before_any_work(tmp_path):
    with pytest.raises(UsageError, match="choose a shorter one"):
        publish.check_target(tmp_path / ("ä" * 101))
    with publish.publish(tmp_path / ("ä" * 100)) as partial:
        (partial / "config.json").write_text("{}")


def test_an_error_of_the_system_is_one_of_ours(tmp_path, monkeypatch):
    def fail(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(publish.os, "fsync", fail)
    with (
        pytest.raises(TrimtabError, match="could not be written: Input/output error"),
        publish.publish(tmp_path / "m") as partial,
    ):
        (partial / "config.json").write_text("{}")
    assert list(tmp_path.iterdir()) == []


def test_what_was_begun_is_removed_when_it_cannot_be_locked(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(publish, "take_now", fail)
    with pytest.raises(UsageError, match="cannot write beside"), publish.publish(tmp_path / "m"):
        pytest.fail("the body must not run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": %s}' % ("[" * 100 + "]" * 100), "nested deeper"),
        ('{"a": [%s0]}' % ("0," * (1 << 20)), "more than"),
        ('{"model_type": "llama", "layer_types": [%s0]}' % ("0," * (1 << 17)), "has 131,073 entries"),
        ('{"model_type": "llama", "num_hidden_layers": 1%s}' % ("0" * 400), "a number of 1329 bits"),
    ],
)
def test_configs_that_would_take_time_or_memory(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=message):
        folder_checks.read_config(tmp_path)


def test_a_decomposition_that_fails_is_an_error_of_arithmetic():
    """The engine names the place of those."""
    with pytest.raises(ArithmeticError, match="no singular values"):
        truncated(torch.full((4, 4), float("nan")), 2)


def test_gguf_files_are_checked_before_the_library_has_them(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes([3, 0, 0, 0]) + b"\xff" * 8 + bytes(80))
    with pytest.raises(ModelError, match=r"m\.gguf is damaged or no GGUF file \(18,446,744,073,709,551,615 tensors"):
        import_gguf(tmp_path / "m.gguf", tmp_path / "out", "")
