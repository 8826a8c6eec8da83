"""What other programs packed is opened as it is, to the last bit, or refused with a reason before it costs anything."""

import json
from pathlib import Path

import pytest
import torch
from export_models import contents_of, grouped, packed_model
from safetensors.torch import load_file, save_file

import trimtab
from trimtab.core.errors import ModelError
from trimtab.core.seeds import Seeds
from trimtab.engine.unpacking import unpack
from trimtab.formats import Dense, Grouped
from trimtab.host import checkpoint
from trimtab.host.export.contents import dense, values_of
from trimtab.host.export.targets import TARGETS
from trimtab.host.imports.awq import Awq
from trimtab.host.imports.compressed_tensors import CompressedTensors
from trimtab.host.imports.gptq import Gptq
from trimtab.host.imports.parts import matched
from trimtab.host.model_assets import resolve_model
from trimtab.host.source import history
from trimtab.testing.folders import byte_tokenizer, tiny_folder

TEXT = "The 3 dogs, isn't it?\n  Two  words"
MADE = {"self_attn": grouped(3, 32, False), "mlp": grouped(4, 64, True)}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}


@pytest.fixture(autouse=True)
def small_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))


def exported(model: torch.nn.Module, to: str, folder: Path) -> Path:
    contents = contents_of(model)
    entries = TARGETS[to].plan(contents, None)
    assert {entry.verdict for entry in entries} == {"exact"}
    folder.mkdir()
    TARGETS[to].write(contents, entries, folder)
    return folder


def packed(family: str = "llama", **settings: object) -> torch.nn.Module:
    return packed_model(lambda path: MADE[path.split(".")[-2]], family, **settings).eval()


@pytest.mark.parametrize("to", ["gguf", "gptq", "awq", "compressed-tensors"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_round_trip_changes_nothing(family, to, tmp_path):
    model = packed(family)
    before = {name: dense(value).clone() for name, value in values_of(model).items()}
    ids = torch.tensor([byte_tokenizer()(TEXT)["input_ids"]])
    with torch.no_grad():
        ours = model(ids).logits
    again, tokenizer = trimtab.load(exported(model, to, tmp_path / "out"))
    values = values_of(again)
    assert {name: value.kind for name, value in values.items() if "proj.weight" in name} == dict.fromkeys(
        (name for name in before if "proj.weight" in name), "grouped"
    )
    assert values.keys() == before.keys()
    assert [name for name, value in values.items() if not torch.equal(dense(value), before[name])] == []
    assert tokenizer(TEXT)["input_ids"] == ids[0].tolist()
    with torch.no_grad():
        assert torch.equal(again(ids).logits, ours)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("qwen3", {}),
        ("olmo2", {}),
        ("smollm3", {"num_hidden_layers": 4}),
        ("gemma2", {"num_hidden_layers": 4, "query_pre_attn_scalar": 16}),
    ],
)
def test_every_family_that_is_written_as_gguf_is_read(family, settings, tmp_path):
    model = packed(family, **settings)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        ours = model(ids).logits
    again, _ = trimtab.load(exported(model, "gguf", tmp_path / "out") / "model.gguf")
    assert type(again) is type(model)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, ours)


def test_it_is_a_starting_point_like_any_other(tmp_path):
    source = exported(packed(), "gptq", tmp_path / "out")
    (tmp_path / "text.txt").write_text("\n\n".join(f"passage {n} of many words, {n * n}" for n in range(200)))
    shown = trimtab.Calibration(text=str(tmp_path / "text.txt"), tokens=256, length=32)
    done = trimtab.compress(source, trimtab.Recipe.of("lqer(rank=2)", shown), tmp_path / "smaller")
    assert "packed by gptq before we got them (14 kept as integers, 0 unpacked)" in " ".join(done.report.notes)
    assert trimtab.load(tmp_path / "smaller")[0].model.layers[0].mlp.up_proj.spec["kind"] == "sum"


def test_it_is_read_once_and_again_when_it_changes(tmp_path):
    source = exported(packed(), "awq", tmp_path / "out")
    first = resolve_model(str(source))
    assert resolve_model(str(source)) == first
    assert "4 bits" not in history(Path(first))
    held = load_file(source / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.scales"
    save_file({**held, name: held[name] * 2}, source / "model.safetensors", {"format": "pt"})
    second = resolve_model(str(source))
    assert second != first
    ours, theirs = (trimtab.load(place)[0].model.layers[0].mlp.up_proj.weight_value.dense() for place in (first, second))
    assert torch.equal(ours * 2, theirs)


@pytest.mark.parametrize("name", ["some/name", "folder"])
def test_other_names_are_left_alone(name, tmp_path, monkeypatch):
    tiny_folder(tmp_path / "folder", num_hidden_layers=1)
    monkeypatch.chdir(tmp_path)
    assert resolve_model(name) == name
    assert not (tmp_path / "cache").exists()


def matrix(bits: int, least: int = 0) -> Grouped:
    made = grouped(bits, 32, False)(torch.empty(64, 64), Seeds(0).at("import"))
    return Grouped(made.codes, made.scale, made.zero.clamp(min=least), bits, 32)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_zero_point_that_borrowed_from_its_neighbour_is_given_back(bits):
    from trimtab.host.export import gptq

    weight = matrix(bits)
    held = gptq.tensors(weight, 32, first=False)
    ones = sum(1 << place for place in range(0, 32, bits))
    words = (held["qzeros"].long() - ones) & 0xFFFFFFFF
    held["qzeros"] = torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)
    found = Gptq({**GPTQ, "bits": bits}).weight("x", (64, 64), held)
    assert torch.equal(found.dense(), weight.dense())


def test_a_largest_zero_point_of_3_bits_takes_a_fourth():
    from trimtab.host.export import gptq

    weight = matrix(3, least=1)
    held = gptq.tensors(weight, 32)
    held["qzeros"] = torch.full_like(held["qzeros"], -1)  # every stored zero point is 7, so every one is 8
    found = Gptq({**GPTQ, "bits": 3}).weight("x", (64, 64), held)
    assert found.code_bits == 4
    assert torch.equal(found.dense(), (weight.codes.float() - 8) * weight.scale.float().repeat_interleave(32, 1))


def test_groups_in_another_order_become_plain_numbers():
    from trimtab.host.export import gptq

    weight = matrix(4, least=1)
    held = gptq.tensors(weight, 32)
    order = torch.randperm(64, generator=Seeds(0).at("order"))
    held["g_idx"] = held["g_idx"][order]
    found = Gptq(GPTQ).weight("x", (64, 64), held)
    at = held["g_idx"].long()
    assert isinstance(found, Dense)
    assert torch.equal(found.dense(), (weight.codes.float() - weight.zero.float()[:, at]) * weight.scale.float()[:, at])


def test_scales_that_are_no_float16_become_plain_numbers():
    from trimtab.host.export import awq

    held = awq.tensors(matrix(4), 32)
    fine = held["scales"].float() + 2.0**-20
    found = Awq({"bits": 4}).weight("x", (64, 64), {**held, "scales": fine})
    assert isinstance(found, Dense)
    assert torch.allclose(found.dense(), matrix(4).dense(), atol=1e-4)


INT8 = {"config_groups": {"g": {"targets": ["re:.*up_proj$"], "weights": {"num_bits": 8, "type": "int", "strategy": "channel"}}}}


def test_whole_bytes_of_compressed_tensors():
    layout = CompressedTensors({**INT8, "format": "int-quantized"})
    codes = torch.randint(-128, 128, (8, 16), generator=Seeds(0).at("bytes")).to(torch.int8)
    scale = torch.rand(8, 1, generator=Seeds(0).at("scale")).bfloat16()
    found = layout.weight("a.up_proj", (8, 16), {"weight": codes, "weight_scale": scale})
    assert isinstance(found, Grouped)
    assert torch.equal(found.dense(), codes.float() * scale.float())
    with pytest.raises(ValueError, match="names it"):
        layout.weight("a.down_proj", (8, 16), {"weight": codes, "weight_scale": scale})


NF4_LIKE = torch.linspace(-1, 1, 16)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_folder_of_bitsandbytes(nested, dtype, tmp_path):
    source = tiny_folder(tmp_path / "model", num_hidden_layers=1)
    held = load_file(source / "model.safetensors")
    expected = {name: _four_bits(held, name, nested, dtype) for name in list(held) if "proj.weight" in name}
    save_file(held, source / "model.safetensors", {"format": "pt"})
    _say(source, {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, dtype)
    model, _ = trimtab.load(source)
    assert len(expected) == 7
    for name, values in expected.items():
        assert torch.equal(model.get_parameter(name), values), name


def _four_bits(held: dict[str, torch.Tensor], name: str, nested: bool, dtype: str) -> torch.Tensor:
    """Replaces a matrix by its parts; its values, block by block."""
    shape = held.pop(name).shape
    generator = Seeds(0).at(name)
    codes = torch.randint(16, (shape.numel(),), generator=generator)
    held[name] = (codes[::2] * 16 + codes[1::2]).to(torch.uint8)[:, None]
    blocks = shape.numel() // 64
    said = {"quant_type": "nf4", "blocksize": 64, "dtype": dtype, "shape": list(shape)}
    scale = torch.rand(blocks, generator=generator)
    if nested:
        table, wide = torch.linspace(-1, 1, 256), torch.rand(-(-blocks // 256), generator=generator)
        small = torch.randint(256, (blocks,), generator=generator)
        held |= {f"{name}.absmax": small.to(torch.uint8), f"{name}.nested_quant_map": table, f"{name}.nested_absmax": wide}
        said |= {"nested_blocksize": 256, "nested_offset": 0.25, "nested_dtype": "float32"}
        scale = torch.stack([table[one] * wide[place // 256] + 0.25 for place, one in enumerate(small)])
    else:
        held[f"{name}.absmax"] = scale
    held[f"{name}.quant_map"] = NF4_LIKE.clone()
    held[f"{name}.quant_state.bitsandbytes__nf4"] = torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)
    return (NF4_LIKE[codes].view(blocks, 64) * scale[:, None]).view(shape).to(getattr(torch, dtype)).float()


def _say(folder: Path, described: dict[str, object], dtype: str = "float32", **more: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    content = {**config, "quantization_config": described, "dtype": dtype, **more}
    (folder / "config.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("described", "what"),
    [
        ({**GPTQ, "checkpoint_format": "marlin"}, "format 'marlin'"),
        ({**GPTQ, "bits": 5}, "bits is 5; trimtab reads 2, 3, 4, 8"),
        ({**GPTQ, "dynamic": {"+:(a+)+$": {"bits": 4}}}, "forever to match"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "layout 'gemv'"),
        ({"quant_method": "awq", "bits": 8}, "bits is 8"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "in 4 bits"),
        ({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized", **INT8}, "format 'nvfp4-pack-quantized'"),
        ({"quant_method": "compressed-tensors"}, "no config_groups"),
        ({"quant_method": "fp8"}, "quantized by 'fp8', which trimtab does not open"),
    ],
)
def test_versions_that_are_not_read_are_named(described, what, tmp_path, monkeypatch):
    monkeypatch.setattr("trimtab.host.imports.foreign.find_spec", lambda name: None)
    source = tiny_folder(tmp_path / "model", num_hidden_layers=1)
    _say(source, described)
    with pytest.raises(ModelError, match=what):
        trimtab.load(source)
    assert not list((tmp_path / "cache").glob("*"))


def test_what_is_not_read_here_is_left_to_the_package_where_that_is_installed(tmp_path, monkeypatch):
    source = tiny_folder(tmp_path / "model", num_hidden_layers=1)
    _say(source, {"quant_method": "compressed-tensors", "format": "float-quantized", **INT8})
    monkeypatch.setattr("trimtab.host.imports.foreign.find_spec", lambda name: object())
    assert resolve_model(str(source)) == str(source)


def test_who_opens_the_folder_directly_is_told_what_to_do(tmp_path):
    source = exported(packed(), "gptq", tmp_path / "out")
    with pytest.raises(ModelError, match=r"packed by gptq; give this folder to trimtab\.load"):
        checkpoint.load(source)


def test_an_unknown_family_is_named(tmp_path):
    source = tiny_folder(tmp_path / "model", num_hidden_layers=1)
    _say(source, GPTQ, model_type="lama")
    with pytest.raises(ModelError, match="model_type 'lama'"):
        trimtab.load(source)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (
            {"mlp.up_proj.qweight": torch.zeros(4, 4, dtype=torch.int32)},
            r"up_proj cannot be unpacked: qweight is torch.int32 \[4, 4\]",
        ),
        ({"mlp.up_proj.scales": torch.ones(2, 128, dtype=torch.int64)}, "scales is torch.int64"),
        ({"mlp.up_proj.scales": torch.full((2, 128), torch.inf).half()}, "not finite"),
        ({"mlp.up_proj.qzeros": None}, "there is no qzeros"),
        ({"mlp.up_proj.g_idx": torch.full((64,), 7, dtype=torch.int32)}, "g_idx goes up to 7 of 2 groups"),
        ({"mlp.other.qweight": torch.zeros(8, 128, dtype=torch.int32)}, "has no layer of its own"),
        ({"input_layernorm.qweight": torch.zeros(8, 128, dtype=torch.int32)}, "is a LlamaRMSNorm"),
        ({"mlp.more": torch.zeros(3)}, "without a place in the model"),
    ],
)
def test_damage_is_named_and_nothing_is_kept(change, what, tmp_path):
    source = exported(packed_model(lambda path: grouped(4, 32, True), num_hidden_layers=1), "gptq", tmp_path / "out")
    held = {**load_file(source / "model.safetensors")}
    for name, value in change.items():
        held[f"model.layers.0.{name}"] = value
    save_file({name: value for name, value in held.items() if value is not None}, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=what):
        trimtab.load(source)
    assert not list((tmp_path / "cache").glob("*"))


def test_sizes_out_of_bounds_are_refused_before_anything_is_read(tmp_path):
    source = exported(packed(), "gptq", tmp_path / "out")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 10**9}))
    with pytest.raises(ModelError, match=r"num_hidden_layers is 1e.09"):
        trimtab.load(source)


@pytest.mark.parametrize("expression", ["(a*)*", "a*" * 9, "x" * 400, "(a|b)+"])
def test_expressions_that_may_not_end_are_not_tried(expression):
    with pytest.raises(ModelError, match="forever"):
        matched(expression)
    assert matched(r".*\.18\..*gate.*").match("model.layers.18.mlp.gate_proj")


@pytest.mark.parametrize("to", ["gguf", "gptq", "compressed-tensors"])
def test_what_came_packed_is_compressed_with_a_note(to, tmp_path):
    source = exported(packed(), to, tmp_path / "packed")
    done = trimtab.compress(source, "rtn(bits=3, group_size=32)")
    (note,) = [note for note in done.report.notes if "unpacked to" in note]
    assert note.startswith("14 matrices that came packed (Grouped) were unpacked")
    expected = trimtab.compress(exported(packed(), "plain", tmp_path / "plain"), "rtn(bits=3, group_size=32)").model
    for block, wanted in zip(done.model.model.layers, expected.model.layers, strict=True):
        assert torch.equal(block.mlp.up_proj.weight_value.dense(), wanted.mlp.up_proj.weight_value.dense())
    assert [step.bits for step in trimtab.plan(source, "rtn(bits=3, group_size=32)").steps] == [3 + (16 + 4) / 32]


def test_what_a_step_takes_packed_stays_packed():
    model = packed()
    assert unpack(model, trimtab.Recipe.of("lqer(rank=2)")) == []
    assert unpack(model, trimtab.Recipe.of("lqer(rank=2) -> rtn")) == []  # what comes later is the recipe's own affair
    assert len(unpack(model, trimtab.Recipe.of("quarot"))) == 1


def test_a_packed_model_in_memory_is_left_alone_and_told_what_to_do():
    with pytest.raises(trimtab.UsageError, match=r"is Grouped in the model as it came; unpack it: trimtab export"):
        trimtab.plan(packed(), "rtn(bits=3, group_size=32)")
