"""What is called exact is the same number everywhere: read back by the formats' own packages, or unpacked here by hand."""

import json
from pathlib import Path

import gguf
import pytest
import torch
from export_models import contents_of, grouped, packed_model, summed
from safetensors.torch import load_file

from trimtab.core.seeds import Seeds
from trimtab.formats import Dense, Grouped
from trimtab.host.export import compressed_tensors, plain
from trimtab.host.export import gguf as to_gguf
from trimtab.host.export.contents import dense
from trimtab.host.export.gguf_blocks import GRIDS, Steps, decoded, encoded, grid_of

Kind = gguf.GGMLQuantizationType
UNIFORM = [(bits, group_size, symmetric) for bits in (2, 3, 4, 5, 6, 8) for group_size in (32, 64) for symmetric in (True, False)]
FITS = {2: (Kind.Q4_0, Kind.Q4_0), 3: (Kind.Q4_0, Kind.Q4_0), 4: (Kind.Q4_0, Kind.Q5_0), 5: (Kind.Q5_0, Kind.Q8_0)}
FITS |= {6: (Kind.Q8_0, Kind.Q8_0), 8: (Kind.Q8_0, None)}


def matrix(bits: int, group_size: int, symmetric: bool) -> Grouped:
    return grouped(bits, group_size, symmetric)(torch.empty(48, 128), Seeds(0).at("matrix"))


@pytest.mark.parametrize(("bits", "group_size", "symmetric"), UNIFORM)
def test_integers_are_block_formats(bits, group_size, symmetric):
    weight = matrix(bits, group_size, symmetric)
    steps = Steps.of(weight)
    kind = steps.kind()
    assert kind is FITS[bits][not symmetric]
    if kind is not None:
        assert torch.equal(decoded(steps.encoded(kind), kind), weight.dense())


def test_an_offset_is_used_where_it_is_exact():
    codes, zero = matrix(4, 32, False).codes, torch.full((48, 4), 11, dtype=torch.uint8)
    scale = 2.0 ** -torch.arange(3, 3 + 48 * 4).remainder(9).view(48, 4)
    weight = Grouped(codes, scale.half(), zero, 4, 32)
    steps = Steps.of(weight)
    assert steps.kind() is Kind.Q4_1
    for kind in (Kind.Q4_1, Kind.Q5_1, Kind.Q5_0, Kind.Q8_0):
        assert torch.equal(decoded(steps.encoded(kind), kind), weight.dense()), kind.name


def test_8_bits_with_zero_points_fit_where_they_stay_in_range():
    weight = matrix(8, 32, False)
    near = Grouped(weight.codes.clamp(64, 191), weight.scale, weight.zero.clamp(64, 191), 8, 32)
    steps = Steps.of(near)
    assert steps.kind() is Kind.Q8_0
    assert torch.equal(decoded(steps.encoded(Kind.Q8_0), Kind.Q8_0), near.dense())


@pytest.mark.parametrize("kind", GRIDS, ids=lambda kind: kind.name)
def test_a_matrix_that_came_from_a_block_format_goes_back_to_it(kind):
    values = torch.randn(16, 96, generator=Seeds(0).at(kind.name))
    rounded = decoded(encoded(values, kind), kind)
    found = grid_of(rounded)
    assert found is not None
    assert torch.equal(decoded(encoded(rounded, found), found), rounded)
    assert grid_of(values) is None


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_every_tensor_of_a_gguf_file(family, tmp_path):
    kinds = {"q_proj": (4, 32, True), "k_proj": (4, 32, False), "gate_proj": (3, 64, False), "up_proj": (8, 32, True)}
    model = packed_model(lambda path: grouped(*kinds[path.split(".")[-1]]) if path.split(".")[-1] in kinds else None, family)
    contents = contents_of(model)
    entries = to_gguf.plan(contents, None)
    assert {entry.verdict for entry in entries} == {"exact"}
    to_gguf.write(contents, entries, tmp_path)
    stored = {t.name: t for t in gguf.GGUFReader(tmp_path / to_gguf.FILE).tensors}
    assert len(stored) == len(contents.values)
    assert sum(entry.bytes for entry in entries) == sum(int(t.n_bytes) for t in stored.values())
    theirs = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for entry in entries:
        tensor = stored[theirs.get_name(entry.name, try_suffixes=(".weight", ".bias"))]
        assert tensor.tensor_type.name == entry.becomes
        values = decoded(tensor.data, tensor.tensor_type)
        if family == "llama" and ("q_proj" in entry.name or "k_proj" in entry.name):
            heads = len(values) // 16
            values = torch.cat([values.view(heads, 8, 2, -1)[:, :, half] for half in (0, 1)], 1).reshape(len(values), -1)
        assert torch.equal(values, dense(contents.values[entry.name])), entry.name


@pytest.mark.parametrize(("bits", "group_size", "symmetric"), [*UNIFORM, (4, 128, True), (3, 128, False)])
def test_words_of_compressed_tensors_are_one_stream_of_bits(bits, group_size, symmetric):
    weight = matrix(bits, group_size, symmetric)
    stored = compressed_tensors.tensors(weight)
    assert stored["weight_shape"].tolist() == [48, 128]
    codes = _codes(stored["weight_packed"], bits, 128)
    zeros = torch.full((48, 128 // group_size), 2 ** (bits - 1))
    if not symmetric:
        zeros = _codes(stored["weight_zero_point"].T.contiguous(), bits, 48).T
    found = (codes.view(48, -1, group_size) - zeros[..., None]) * stored["weight_scale"].float()[..., None]
    assert torch.equal(found.view(48, 128), weight.dense())


def _codes(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """The numbers in rows of 32-bit words, by Python's own integers."""
    rows = []
    for row in words.tolist():
        stream = sum((word % 2**32) << (32 * place) for place, word in enumerate(row))
        rows.append([(stream >> (bits * place)) % 2**bits for place in range(count)])
    return torch.tensor(rows)


@pytest.mark.parametrize(("bits", "group_size", "symmetric"), [*UNIFORM, (4, 128, True)])
def test_the_package_of_the_format_reads_the_same(bits, group_size, symmetric):
    compressors = pytest.importorskip("compressed_tensors.compressors")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    weight = matrix(bits, group_size, symmetric)
    described = compressed_tensors.description(torch.nn.Sequential(), {"x": compressed_tensors._scheme(weight)})
    scheme = quantization.QuantizationConfig.model_validate(described).config_groups["group_0"]
    stored = compressed_tensors.tensors(weight)
    stored["weight_scale"] = stored["weight_scale"].float()
    read = compressors.BaseCompressor.get_value_from_registry("pack-quantized").decompress(stored, scheme)
    assert torch.equal(read["weight"], weight.dense())


def test_a_compressed_tensors_folder_says_what_is_where(tmp_path):
    kinds = {"self_attn": (8, 32, True), "mlp": (4, 64, False)}
    model = packed_model(lambda path: grouped(*kinds[path.split(".")[-2]]))
    contents = contents_of(model)
    entries = compressed_tensors.plan(contents, None)
    compressed_tensors.write(contents, entries, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    groups = config["quantization_config"]["config_groups"].values()
    assert config["dtype"] == "float32"
    assert config["quantization_config"]["ignore"] == ["lm_head"]
    named = {target: group["weights"] for group in groups for target in group["targets"]}
    assert len(named) == 14
    assert named["model.layers.1.self_attn.k_proj"]["num_bits"] == 8
    assert (
        named["model.layers.0.mlp.down_proj"] | {"num_bits": 4, "group_size": 64, "symmetric": False}
        == (named["model.layers.0.mlp.down_proj"])
    )
    stored = load_file(tmp_path / "model.safetensors")
    assert stored["model.layers.0.mlp.down_proj.weight_scale"].dtype == torch.float16
    assert torch.equal(stored["model.norm.weight"], contents.values["model.norm.weight"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_matrices_hold_every_value(dtype, tmp_path):
    made = {"q_proj": grouped(4, 32, False), "down_proj": summed, "up_proj": lambda w, g: Dense(w)}
    model = packed_model(lambda path: made.get(path.split(".")[-1])).to(dtype)
    contents = contents_of(model)
    expected = {name: dense(value).clone() for name, value in contents.values.items()}
    entries = plain.plan(contents, None)
    assert {entry.verdict for entry in entries} == {"exact"}
    plain.write(contents, entries, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert stored.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(stored[name].float(), value.float()), name
    assert stored["model.layers.0.self_attn.v_proj.weight"].dtype == dtype
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float32"
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())


def test_rounding_that_was_asked_for_is_measured(tmp_path: Path):
    contents = contents_of(packed_model(lambda path: summed if path.endswith("o_proj") else None))
    for target, name, kind in (
        (to_gguf, "q8_0", "Q8_0"),
        (compressed_tensors, "bfloat16", "bfloat16"),
        (plain, "bfloat16", None),
    ):
        entries = {entry.name: entry for entry in target.plan(contents, name)}
        entry = entries["model.layers.0.self_attn.o_proj.weight"]
        if kind is None:  # float32 is the model's own, and holds them
            assert (entry.becomes, entry.verdict) == ("float32", "exact")
            continue
        assert (entry.becomes, entry.verdict) == (kind, "re-quantized")
        assert 1e-4 < entry.error < 1e-2
        assert entries["model.layers.0.self_attn.q_proj.weight"].verdict == "exact"
