"""A fingerprint follows what a model says: weights, config and tokenizer, not the words about it."""

import shutil

import pytest

from trimtab.core.errors import ModelError
from trimtab.host.fingerprint import fingerprint
from trimtab.testing.folders import tiny_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("model"))


def test_a_copy_is_the_same_model(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "README.md").write_text("words")
    (copy / "receipt.json").write_text("{}")
    assert fingerprint(copy) == fingerprint(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_any_file_that_counts_changes_it(folder, tmp_path, name):
    copy = shutil.copytree(folder, tmp_path / "copy")
    content = bytearray((copy / name).read_bytes())
    content[-2] ^= 1
    (copy / name).write_bytes(content)
    assert fingerprint(copy) != fingerprint(folder)


def test_an_empty_folder_is_no_model(tmp_path):
    with pytest.raises(ModelError, match="no model files"):
        fingerprint(tmp_path)
