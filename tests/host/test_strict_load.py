"""What the stock loader opens silently, or chews on for ever, is one clear line here."""

import json
import os
import shutil
import time
import warnings

import pytest
import torch
from host_models import everything, llama, logits
from safetensors.torch import load_file, save_file

from trimtab.core.errors import ModelError
from trimtab.engine.packed_linear import PackedLinear
from trimtab.host import checkpoint

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    checkpoint.save(llama(layers=2), None, folder / "plain", max_shard_size="30KB")
    checkpoint.save(everything(), None, folder / "packed")
    return folder


@pytest.fixture
def plain(originals, tmp_path):
    """A sharded model in a folder of its own."""
    return shutil.copytree(originals / "plain", tmp_path / "inner" / "model")


@pytest.fixture
def packed(originals, tmp_path):
    return shutil.copytree(originals / "packed", tmp_path / "model")


def without_manifest(folder):
    (folder / "trimtab.json").unlink()
    return folder


def edit(path, **changes):
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps(content))


def first_shard(folder):
    return sorted(folder.glob("*.safetensors"))[0]


def rewrite(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def refused(folder, message):
    begun = time.perf_counter()
    with pytest.raises(ModelError, match=message) as caught:
        checkpoint.load(folder)
    assert "\n" not in str(caught.value)
    assert time.perf_counter() - begun < 5


def test_undamaged_folders_open(plain, packed):
    assert torch.equal(logits(checkpoint.load(plain)[0]), logits(llama(layers=2)))
    assert torch.equal(logits(checkpoint.load(without_manifest(plain))[0]), logits(llama(layers=2)))
    assert torch.equal(logits(checkpoint.load(without_manifest(packed))[0]), logits(everything()))


def test_every_flipped_bit_is_noticed(plain):
    for file in sorted(plain.iterdir()):
        if file.name == "trimtab.json":
            continue
        content = bytearray(file.read_bytes())
        content[len(content) * 2 // 3] ^= 4
        file.write_bytes(bytes(content))
        refused(plain, f"{file.name} has changed")
        content[len(content) * 2 // 3] ^= 4
        file.write_bytes(bytes(content))
    checkpoint.load(plain)


@pytest.mark.parametrize("manifest", [True, False])
@pytest.mark.parametrize("kept", [0, 7, 100, -100])
def test_truncated_shard(plain, manifest, kept):
    shard = first_shard(plain if manifest else without_manifest(plain))
    shard.write_bytes(shard.read_bytes()[:kept])
    refused(plain, f"{shard.name} (has changed size|is damaged)")


@pytest.mark.parametrize("manifest", [True, False])
def test_missing_shard(plain, manifest):
    shard = first_shard(plain if manifest else without_manifest(plain))
    shard.unlink()
    refused(plain, f"{shard.name} is missing")


def test_missing_config_and_index(plain):
    without_manifest(plain)
    (plain / INDEX).rename(plain / "elsewhere")
    refused(plain, "no model.safetensors")
    (plain / "elsewhere").rename(plain / INDEX)
    (plain / "config.json").unlink()
    refused(plain, "config.json is missing")


def test_missing_extra_and_swapped_tensors(packed):
    file = without_manifest(packed) / "model.safetensors"
    key = "model.layers.1.mlp.up_proj.weight"
    whole = file.read_bytes()
    rewrite(file, lambda t: t.pop(key))
    refused(packed, f"does not hold {key}")
    file.write_bytes(whole)
    rewrite(file, lambda t: t.update(stranger=torch.ones(3)))
    refused(packed, "holds, without a place in the model, stranger")
    file.write_bytes(whole)
    rewrite(file, lambda t: t.update({key: t[key].T.contiguous()}))
    refused(packed, f"holds in another shape {key}")


def test_missing_or_recast_packed_tensors_are_noticed_by_plain_transformers_too(packed):
    from transformers import AutoModelForCausalLM

    file = without_manifest(packed) / "model.safetensors"
    whole = file.read_bytes()
    key = "model.layers.1.self_attn.q_proj.codes"
    for change, message in (
        (lambda t: t.pop(key), f"no tensor {key}"),
        (lambda t: t.update({key: t[key].short()}), f"{key} is stored as torch.int16"),
    ):
        file.write_bytes(whole)
        rewrite(file, change)
        with pytest.raises(ModelError, match=message):
            AutoModelForCausalLM.from_pretrained(packed)
        refused(packed, message)


def test_packed_scales_are_never_recast_even_where_a_family_asks_for_float32(packed, monkeypatch):
    monkeypatch.setattr(type(llama()), "_keep_in_fp32_modules_strict", {"q_proj", "up_proj"})
    model, _ = checkpoint.load(packed, dtype=torch.bfloat16)
    attention, mlp = model.model.layers[1].self_attn, model.model.layers[1].mlp
    assert attention.q_proj.scale.dtype == torch.float16
    assert (mlp.up_proj.weight.dtype, mlp.gate_proj.weight.dtype) == (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(packed, value):
    file = without_manifest(packed) / "model.safetensors"
    whole = file.read_bytes()
    for key in ("model.layers.1.mlp.up_proj.weight", "model.layers.1.self_attn.q_proj.scale"):
        file.write_bytes(whole)
        rewrite(file, lambda t, key=key: t[key].view(-1)[1:2].fill_(value))
        refused(packed, "not finite")


@pytest.mark.parametrize("name", ["../model-x.safetensors", "/tmp/x.safetensors", "sub/x.safetensors", "a\\b.safetensors", ".."])
def test_index_that_leads_out_of_the_folder(plain, name):
    shutil.copy(first_shard(plain), plain.parent / "model-x.safetensors")
    index = json.loads((without_manifest(plain) / INDEX).read_text())
    moved = first_shard(plain).name
    edit(plain / INDEX, weight_map={k: name if v == moved else v for k, v in index["weight_map"].items()})
    refused(plain, "which is no safetensors file in this folder")


def test_index_that_belongs_to_other_files(plain):
    index = json.loads((without_manifest(plain) / INDEX).read_text())["weight_map"]
    names = sorted(set(index.values()))
    edit(plain / INDEX, weight_map={k: names[1] if v == names[0] else names[0] if v == names[1] else v for k, v in index.items()})
    refused(plain, "belongs to other files")
    edit(plain / INDEX, weight_map=[])
    refused(plain, "no weight_map")


@pytest.mark.parametrize("manifest", [True, False])
def test_links_out_of_the_folder(plain, manifest):
    shard = first_shard(plain if manifest else without_manifest(plain))
    outside = plain.parent / "outside.safetensors"
    shard.rename(outside)
    shard.symlink_to(outside)
    refused(plain, "leads out of the model folder")


def test_a_pipe_is_not_waited_for(plain):
    shard = first_shard(without_manifest(plain))
    shard.unlink()
    os.mkfifo(shard)
    refused(plain, "not a regular file")


def test_links_of_a_hub_cache_are_followed(plain, monkeypatch, tmp_path):
    from huggingface_hub import constants

    home = tmp_path / "hub" / "models--org--name"
    snapshot = home / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (home / "blobs").mkdir()
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("0" * 40)
    for number, file in enumerate(sorted(plain.iterdir())):
        shutil.copy(file, home / "blobs" / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name in ("org/name", str(snapshot)):
        assert torch.equal(logits(checkpoint.load(name)[0]), logits(llama(layers=2)))
    refused("org/other", "was not fetched before; unset HF_HUB_OFFLINE")


@pytest.mark.parametrize("name", ["no/such/folder", "./nothing", "/nothing", "a b c", "~/nothing"])
def test_no_such_folder(name):
    refused(name, "there is no model folder")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_hidden_layers", 10**6, "num_hidden_layers is 1e.06; trimtab opens models with 1 to 2000"),
        ("num_hidden_layers", -1, "num_hidden_layers is -1"),
        ("num_hidden_layers", 0, "num_hidden_layers is 0"),
        ("vocab_size", 2**40, "vocab_size"),
        ("num_attention_heads", 0, "num_attention_heads"),
        ("num_experts", -3, "num_experts"),
        ("hidden_size", "wide", "not a usable config"),
        ("hidden_size", 2**20, "files hold"),
        ("model_type", "unheard_of", "unheard_of"),
        ("model_type", 5, "model_type"),
        ("quantization_config", {"quant_method": "unheard_of"}, "quantized by 'unheard_of'"),
        ("quantization_config", {"quant_method": ["a"]}, "quantized by"),
        ("quantization_config", [1], "quantized by"),
    ],
)
def test_configs_out_of_bounds(plain, key, value, message):
    edit(without_manifest(plain) / "config.json", **{key: value})
    refused(plain, message)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"a": NaN}', '{"a": 1e999}', '{"a": 1, "a": 2}', '{"a":' * 100000, "\udcff", "null"],
)
def test_configs_that_are_no_json_objects(plain, text):
    (without_manifest(plain) / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(plain, "config.json is not readable")


def test_a_config_cannot_choose_code_files_or_implementations(plain, tmp_path):
    canary = tmp_path / "canary"
    (plain / "evil.py").write_text(f"open({str(canary)!r}, 'w')")
    hostile = {
        "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"},
        "trust_remote_code": True,
        "_attn_implementation": "org/kernels",
        "_attn_implementation_internal": "org/kernels",
        "attn_implementation": "org/kernels",
        "_experts_implementation": "org/kernels",
        "transformers_weights": "../x.safetensors",
        "_name_or_path": "/etc",
    }
    edit(without_manifest(plain) / "config.json", **hostile)
    (plain / "generation_config.json").write_text('{"custom_generate": "evil", "trust_remote_code": true}')
    with pytest.warns(UserWarning, match="ignored .*auto_map.*trust_remote_code"):
        model, _ = checkpoint.load(plain)
    assert torch.equal(logits(model), logits(llama(layers=2)))
    assert not canary.exists()
    assert not hasattr(model.config, "auto_map")
    assert model.config._attn_implementation in ("sdpa", "eager")


def test_a_tokenizer_cannot_choose_code(plain, tmp_path):
    canary = tmp_path / "canary"
    (without_manifest(plain) / "evil.py").write_text(f"open({str(canary)!r}, 'w')")
    hostile = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, "trust_remote_code": True}
    (plain / "tokenizer_config.json").write_text(json.dumps(hostile))
    refused(plain, "the tokenizer in .* cannot be opened")
    assert not canary.exists()


def test_pickles_and_adapters_are_refused(plain):
    without_manifest(plain)
    (plain / "adapter_config.json").write_text('{"base_model_name_or_path": "/etc"}')
    refused(plain, "adapter")
    for file in [*plain.glob("*.safetensors"), plain / INDEX]:
        file.unlink()
    refused(plain, "is an adapter")
    (plain / "pytorch_model.bin").write_bytes(b"\x80\x04")
    refused(plain, "pytorch_model.bin, which can carry code")


def entry(**changes):
    good = {"kind": "grouped", "shape": [32, 32], "bits": 4, "group_size": 16, "symmetric": True, "bias": False}
    return {**good, **changes}


STACKED = {key: value for key, value in entry().items() if key != "bias"}
Q = "model.layers.1.self_attn.q_proj"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (Q, entry(kind="unheard_of"), "no format"),
        (Q, entry(kind=None), "needs a kind"),
        (Q, "grouped", "needs a kind"),
        (Q, entry(shape=[32, -32]), "shape"),
        (Q, entry(shape=[2**30, 32]), "16777216"),
        (Q, entry(shape="wide"), "shape"),
        (Q, entry(bits=10**9), "bits"),
        (Q, entry(bias="yes"), "true or false"),
        (Q, entry(evil=1), "evil"),
        (Q, {"kind": "grouped", "bias": False}, "cannot build"),
        (Q, {"kind": "dense", "shape": [32, 32, 32, 32], "bias": False}, "cannot build"),
        (Q, {"kind": "dense", "shape": [2**40, 2**40], "bias": False}, "16777216"),
        (Q, {"kind": "dense", "shape": [32, 0], "bias": False}, "cannot build"),
        (Q, {"kind": "dense", "shape": [32, 32]}, "cannot build"),
        (Q, {"kind": "dense", "shape": [3, 32, 32]}, "no stack of experts"),
        (Q, {"kind": "stack", "transposed": False, "experts": [STACKED]}, "no stack of experts"),
        ("model.layers.9.self_attn.q_proj", entry(), "no module"),
        ("model.layers", entry(), "cannot hold"),
        ("model.embed_tokens", {"kind": "dense", "shape": [97, 32], "bias": False}, "cannot be resized"),
        ("", entry(), "cannot hold"),
        ("__class__", entry(), "no module"),
        (Q, {"kind": "sum", "shape": [32, 32], "bias": False, "parts": [{"parts": [{"parts": []}]}] * 70}, "cannot build"),
    ],
)
def test_hostile_descriptions(packed, path, value, message):
    config = json.loads((without_manifest(packed) / "config.json").read_text())
    config["quantization_config"]["modules"][path] = value
    (packed / "config.json").write_text(json.dumps(config))
    refused(packed, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 99}, "format 99"),
        ({"plugins": "http://x"}, "does not know: plugins"),
        ({"modules": None}, "needs `modules`"),
        ({"modules": []}, "needs `modules`"),
        ({"modules": {}}, r"does not hold lm_head.weight \(4 such\)"),
    ],
)
def test_hostile_quantization_configs(packed, changes, message):
    config = json.loads((without_manifest(packed) / "config.json").read_text())
    config["quantization_config"].update(changes)
    (packed / "config.json").write_text(json.dumps(config))
    refused(packed, message)


def test_too_many_modules(packed):
    from trimtab.host import quantizer

    with pytest.raises(ModelError, match="at most 1000000"):
        quantizer.TrimtabConfig({str(number): None for number in range(10**6 + 1)})


def test_a_copy_set_aside_by_a_killed_process_is_put_back(plain):
    plain.rename(plain.parent / ".model.aside-999999999-abcd")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, _ = checkpoint.load(plain)
    assert torch.equal(logits(model), logits(llama(layers=2)))


def test_partial_folders_are_not_models(plain):
    partial = plain.rename(plain.parent / ".model.partial-999999999-abcd")
    refused(partial, "was not finished")


def test_loaded_models_are_on_the_device_and_in_the_dtype_asked_for(packed):
    model, _ = checkpoint.load(packed, device="cpu", dtype=torch.float16)
    assert model.dtype == torch.float16
    assert isinstance(model.lm_head, PackedLinear)
    assert checkpoint.load(packed)[0].dtype == torch.float32
