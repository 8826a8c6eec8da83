"""Folders that lie: nothing is read or allocated that is not there, and the error names the file and the tensor."""

import json
import random
import re
import shutil
import subprocess
import sys

import pytest
from runtime_problems import prompt

from trimtab.core.errors import ModelError, TrimtabError
from trimtab.core.seeds import Seeds
from trimtab.engine import surgery
from trimtab.host.checkpoint import save
from trimtab.runtime import Unsupported
from trimtab.testing.tiny import tiny
from trimtab.testing.weights import grouped

PACKED = "model.layers.1.mlp.up_proj"


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    model = tiny("llama")
    surgery.place(model, PACKED, grouped(128, 64, 4, Seeds(0).at("weight")))
    return save(model, None, tmp_path_factory.mktemp("packed") / "model")


@pytest.fixture
def copy(packed, tmp_path):
    return shutil.copytree(packed, tmp_path / "model")


def header(file):
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def rewrite(file, entries, body):
    text = json.dumps(entries).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + body)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda e: e.update(shape=[97, 65]), "do not fit"),
        (lambda e: e.update(shape=[1 << 40, 1 << 40]), "outside of the file"),
        (lambda e: e.update(shape=[-97, -64]), "not readable"),
        (lambda e: e.update(shape=[97.0, 64.0]), "not readable"),
        (lambda e: e.update(shape="ab"), "not readable"),
        (lambda e: e.update(dtype="F33"), "not readable"),
        (lambda e: e.update(dtype="F64"), "do not fit"),
        (lambda e: e.update(data_offsets=[0, 1 << 50]), "outside of the file"),
        (lambda e: e.update(data_offsets=[24832, 0]), "outside of the file"),
        (lambda e: e.update(data_offsets=[0]), "not complete"),
        (lambda e: e.pop("dtype"), "not complete"),
        (lambda e: e.update(dtype="I32"), "plain table of vectors"),
    ],
)
def test_headers_that_lie(copy, exact, damage, why):
    file = copy / "model.safetensors"
    entries, body = header(file)
    damage(entries["model.embed_tokens.weight"])
    rewrite(file, entries, body)
    with pytest.raises(ModelError, match=f"model.embed_tokens.weight.*{why}"):
        exact(copy)


@pytest.mark.parametrize("size", [0, 7, 8, 100, 20000, -1])
def test_files_that_end_early(copy, exact, size):
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged"):
        exact(copy)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"bits": 3}, "'codes' is uint8"),
        ({"bits": 9}, "bits must be a whole number from 2 to 8"),
        ({"bits": True}, "bits must be"),
        ({"group_size": 0}, "group_size must be"),
        ({"group_size": 48}, "48 does not divide 64"),
        ({"group_size": 32}, "'scale' is float16"),
        ({"shape": [128, 128]}, "'codes' is uint8"),
        ({"shape": [1 << 30, 1 << 30]}, "'codes' is uint8"),
        ({"shape": [128]}, "shape must be"),
        ({"symmetric": False}, "no tensor 'zero'"),
        ({"kind": "bitplanes"}, "lacks 'planes'"),
        ({"kind": "sum"}, "parts must be a list"),
        ({"bias": True}, "does not hold model.layers.1.mlp.up_proj.bias"),
    ],
)
def test_specs_that_disagree_with_tensors(copy, exact, change, why):
    config = json.loads((copy / "config.json").read_text())
    config["quantization_config"]["modules"][PACKED] |= change
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=f"{PACKED}.*{why}|{why}"):
        exact(copy)


def test_formats_of_others_are_left_to_others(copy, exact):
    config = json.loads((copy / "config.json").read_text())
    config["quantization_config"]["modules"][PACKED]["kind"] = "theirs"
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(Unsupported, match=f"{PACKED}: weights of kind 'theirs' are not covered"):
        exact(copy)
    (copy / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(Unsupported, match="format of 'gptq' are not covered"):
        exact(copy)


def test_a_tensor_too_many_or_too_few(copy, exact):
    file = copy / "model.safetensors"
    entries, body = header(file)
    surplus = {"dtype": "F32", "shape": [1], "data_offsets": [len(body), len(body) + 4]}
    rewrite(file, {**entries, "model.layers.0.self_attn.sinks": surplus}, body + bytes(4))
    with pytest.raises(Unsupported, match=r"holds model\.layers\.0\.self_attn\.sinks, which has no place"):
        exact(copy)
    entries.pop("__metadata__", None)
    last = max(entries, key=lambda name: entries[name]["data_offsets"])
    begin, _ = entries.pop(last)["data_offsets"]
    rewrite(file, entries, body[:begin])
    with pytest.raises(ModelError, match=f"does not hold {re.escape(last)}|has no tensor '{last.rpartition('.')[2]}'"):
        exact(copy)


def test_files_elsewhere_are_not_opened(copy, exact, tmp_path):
    index = {"weight_map": {"model.norm.weight": "../other.safetensors"}}
    (copy / "model.safetensors").rename(tmp_path / "other.safetensors")
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="no safetensors file in this folder"):
        exact(copy)
    (copy / "model.safetensors").symlink_to(tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="leads out of the model folder"):
        exact(copy)
    with pytest.raises(ModelError, match="there is no model folder"):
        exact(tmp_path / "nowhere")


def test_shards(folder_of, exact, tmp_path):
    folder = tmp_path / "model"
    save(tiny("llama"), None, folder, max_shard_size="200KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    assert (exact(folder).session().prefill(prompt()) == exact(folder_of("llama")).session().prefill(prompt())).all()


def test_bytes_at_random_are_an_error_or_a_model(copy, exact):
    """Whatever a damaged file says, it is refused in a line or opened and answered; the process lives."""
    file, draw = copy / "model.safetensors", random.Random(0)
    good = file.read_bytes()
    start = 8 + int.from_bytes(good[:8], "little")
    refused = 0
    for _ in range(150):
        data = bytearray(good)
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(start)] = draw.randrange(256)
        file.write_bytes(data)
        try:
            exact(copy).session().prefill([5, 6])
        except TrimtabError:
            refused += 1
    assert refused > 50


def test_nothing_heavy_is_imported():
    code = "import sys, trimtab.runtime; sys.exit(bool({'torch', 'transformers', 'safetensors'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
