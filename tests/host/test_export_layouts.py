"""Layouts of GPTQ and AWQ, adapters, graphs: the same numbers, taken apart by hand or by the package that reads them."""

import json
import re

import pytest
import torch
from export_models import contents_of, grouped, packed_model, summed
from safetensors.torch import load_file
from transformers.quantizers.auto import AutoQuantizationConfig

from trimtab.core.errors import UsageError
from trimtab.core.seeds import Seeds
from trimtab.formats import Chain, Dense, Grouped, Sum
from trimtab.formats.lowrank import low_rank
from trimtab.host.export import awq, gptq, integers, onnx, peft
from trimtab.host.export.contents import dense, values_of
from trimtab.tensors.words import pack_words, unpack_words

UNIFORM = [(bits, size, symmetric) for bits in (2, 3, 4, 5, 8) for size in (32, 64) for symmetric in (True, False)]


def matrix(bits: int, group_size: int, symmetric: bool, least: int = 0) -> Grouped:
    made = grouped(bits, group_size, symmetric)(torch.empty(64, 128), Seeds(0).at("matrix"))
    zero = None if symmetric else made.zero.clamp(min=least)
    return Grouped(made.codes, made.scale, zero, bits, group_size)


def numbers(words: torch.Tensor, bits: int) -> torch.Tensor:
    """The numbers in rows of 32-bit words, lowest bits first, by Python's own integers."""
    rows = []
    for row in words.tolist():
        stream = sum((word % 2**32) << (32 * place) for place, word in enumerate(row))
        rows.append([(stream >> (bits * place)) % 2**bits for place in range(32 * len(row) // bits)])
    return torch.tensor(rows)


@pytest.mark.parametrize(("bits", "group_size", "symmetric"), UNIFORM)
@pytest.mark.parametrize("first", [True, False])
def test_gptq_holds_the_same_numbers(bits, group_size, symmetric, first):
    weight = matrix(bits, group_size, symmetric, least=int(first))
    held = gptq.tensors(weight, 32, first)
    wide = {5: 8}.get(bits, bits)
    codes = numbers(held["qweight"].T, wide)
    zeros = numbers(held["qzeros"], wide).T + int(first)
    assert held["qweight"].shape == (128 * wide // 32, 64)
    assert held["scales"].dtype == torch.float16
    at = held["g_idx"].long()
    assert torch.equal((codes - zeros[:, at]) * held["scales"].T.float()[:, at], weight.dense())


@pytest.mark.parametrize(("bits", "group_size", "symmetric"), [case for case in UNIFORM if case[0] < 5])
def test_awq_holds_the_same_numbers(bits, group_size, symmetric):
    weight = matrix(bits, group_size, symmetric)
    held = awq.tensors(weight, 32)
    assert held["qweight"].shape == (128, 8)
    # A word of 0x76543210 would hold the outputs 0, 2, 4, 6, 1, 3, 5, 7 of its eight in this order.
    place = [0, 4, 1, 5, 2, 6, 3, 7]
    codes, zeros = (numbers(held[name], 4).view(-1, 8, 8)[..., place].reshape(-1, 64) for name in ("qweight", "qzeros"))
    at = torch.arange(128) // 32
    assert torch.equal(((codes - zeros[at]) * held["scales"].float()[at]).T, weight.dense())


def test_one_word_of_awq():
    codes = torch.arange(8).to(torch.uint8).view(8, 1).expand(8, 32).contiguous()
    weight = Grouped(codes, torch.ones(8, 1, dtype=torch.float16), torch.zeros(8, 1, dtype=torch.uint8), 4, 32)
    assert awq.tensors(weight, None)["qweight"][0, 0].item() == 0x75316420


@pytest.mark.parametrize("bits", range(1, 9))
def test_words_are_packed_and_unpacked(bits):
    codes = torch.randint(2**bits, (5, 37), generator=Seeds(0).at(bits)).to(torch.uint8)
    assert torch.equal(unpack_words(pack_words(codes, bits), bits, 37), codes)
    with pytest.raises(ValueError, match="37 codes"):
        unpack_words(pack_words(codes[:, :3], bits), bits, 37)


MIXED = {"self_attn": grouped(3, 32, False), "gate_proj": grouped(4, 64, True), "up_proj": grouped(8, 128, True)}


def mixed(path: str):
    parts = path.split(".")
    return MIXED.get(parts[-2], MIXED.get(parts[-1]))


def test_a_gptq_folder_says_what_differs(tmp_path):
    contents = contents_of(packed_model(mixed, hidden_size=128, head_dim=16))
    entries = gptq.plan(contents, None)
    assert {entry.verdict for entry in entries} == {"exact"}
    assert [line.split()[0] for line in gptq.remarks(contents, entries)] == ["matrices", "plain", "zero"]
    gptq.write(contents, entries, tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert json.loads((tmp_path / "quantize_config.json").read_text()) == said
    assert (said["bits"], said["group_size"], said["sym"]) == (3, 32, False)
    own = {path: entry for path, entry in said["dynamic"].items() if "layers\\.1" in path}
    assert [entry for path, entry in own.items() if re.match(path[2:], "model.layers.1.mlp.up_proj")] == [{"bits": 8}]
    assert [entry for path, entry in own.items() if re.match(path[2:], "model.layers.1.mlp.gate_proj")] == [{"bits": 4}]
    assert [path[:2] for path in own if re.match(path[2:], "model.layers.1.mlp.down_proj")] == ["-:"]
    read = AutoQuantizationConfig.from_dict(said)
    assert (type(read).__name__, read.bits, read.format) == ("GPTQConfig", 3, said["checkpoint_format"])


@pytest.mark.parametrize(("least", "version"), [(1, "gptq"), (0, "gptq_v2")])
def test_a_zero_point_of_0_needs_the_second_version(least, version):
    made = {"v_proj": lambda weight, generator: _with_zeros(weight, least)}
    contents = contents_of(packed_model(lambda path: made.get(path.split(".")[-1])))
    assert gptq.description(contents, integers.candidates(contents, True))["checkpoint_format"] == version


def _with_zeros(weight: torch.Tensor, least: int) -> Grouped:
    out, in_ = weight.shape
    zero = torch.arange(out * in_ // 32).remainder(16).clamp(min=least).to(torch.uint8).view(out, -1)
    return Grouped(torch.zeros(out, in_, dtype=torch.uint8), torch.ones(out, in_ // 32).half(), zero, 4, 32)


def test_awq_has_4_bits_and_says_which_matrices_are_plain(tmp_path):
    kinds = {"self_attn": grouped(3, 32, False), "mlp": grouped(4, 64, True)}
    contents = contents_of(packed_model(lambda path: None if path.endswith("o_proj") else kinds[path.split(".")[-2]]))
    entries = awq.plan(contents, None)
    assert {entry.verdict for entry in entries} == {"exact"}
    awq.write(contents, entries, tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert said["modules_to_not_convert"] == [f"model.layers.{block}.self_attn.o_proj" for block in (0, 1)]
    read = AutoQuantizationConfig.from_dict(said)
    assert (type(read).__name__, read.bits, read.group_size, read.zero_point, read.format) == ("AwqConfig", 4, 32, True, "gemm")


def test_what_awq_has_no_place_for_is_refused_by_name():
    contents = contents_of(packed_model(lambda path: grouped(8, 32, True) if path.endswith("o_proj") else None))
    refused = [entry for entry in awq.plan(contents, None) if entry.verdict == "refused"]
    assert [entry.name for entry in refused] == [f"model.layers.{block}.self_attn.o_proj.weight" for block in (0, 1)]
    assert {entry.why for entry in refused} == {"the layout has 4 bits"}
    assert {e.verdict for e in awq.plan(contents, "float32")} == {"exact"}
    assert {e.verdict for e in awq.plan(contents, "bfloat16")} == {"exact", "re-quantized"}


@pytest.mark.parametrize("target", [gptq, awq])
def test_sums_are_refused_and_may_be_written_plain(target, tmp_path):
    contents = contents_of(packed_model(lambda path: summed if path.endswith("o_proj") else grouped(4, 32, True)))
    assert [e.why for e in target.plan(contents, None) if e.verdict == "refused"] == ["not integers with one scale a group"] * 2
    expected = dense(contents.values["model.layers.0.self_attn.o_proj.weight"])
    entries = target.plan(contents, "float32")
    target.write(contents, entries, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert torch.equal(stored["model.layers.0.self_attn.o_proj.weight"], expected)
    assert "model.layers.0.self_attn.q_proj.qweight" in stored


def test_rows_of_one_group_stay_so(tmp_path):
    contents = contents_of(packed_model(lambda path: lambda w, g: grouped(4, w.shape[1], True)(w, g)))
    gptq.write(contents, gptq.plan(contents, None), tmp_path)
    assert json.loads((tmp_path / "quantize_config.json").read_text())["group_size"] == -1
    assert load_file(tmp_path / "model.safetensors")["model.layers.0.mlp.down_proj.scales"].shape == (1, 64)


def thin(rank: int, dtype: torch.dtype = torch.float16) -> Chain:
    left, right = (torch.randn(*size, generator=Seeds(0).at(rank, size)) for size in ((64, rank), (rank, 64)))
    return low_rank(left, right, dtype)


def test_a_sum_is_split_into_base_and_adapter():
    base = grouped(4, 32, False)(torch.empty(64, 64), Seeds(0).at("base"))
    found = peft.split(Sum((base, thin(2), thin(3))))
    assert found.base is base
    assert found.rank == 5
    assert torch.allclose(found.left.float() @ found.right.float(), thin(2).dense() + thin(3).dense(), atol=1e-5)
    assert not peft.split(thin(4)).base.dense().any()
    assert peft.split(base) is None
    assert peft.split(Chain((base, thin(2)))) is None


def test_an_adapter_keeps_every_rank(tmp_path):
    made = {"q_proj": 2, "o_proj": 3}
    model = packed_model(
        lambda path: (lambda w, g: Sum((Dense(w), thin(made[path.split(".")[-1]])))) if path.split(".")[-1] in made else None
    )
    contents = contents_of(model)
    before = {name: value for name, value in contents.values.items() if isinstance(value, Sum)}
    entries = peft.plan(contents, None)
    assert {entry.verdict for entry in entries} == {"exact"}
    peft.write(contents, entries, tmp_path)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    ranks = {path: config["rank_pattern"].get(path, config["r"]) for path in config["target_modules"]}
    assert {path.split(".")[-1]: rank for path, rank in ranks.items()} == made
    base = load_file(tmp_path / "base" / "model.safetensors")
    adapter = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(before) == 4
    for name, value in before.items():
        path = f"base_model.model.{name.removesuffix('.weight')}"
        product = adapter[f"{path}.lora_B.weight"].float() @ adapter[f"{path}.lora_A.weight"].float()
        assert torch.equal(base[name] + product, value.dense())
    stored = sum(tensor.nbytes for tensor in (*base.values(), *adapter.values()))
    assert sum(entry.bytes for entry in entries) == stored


def test_without_a_low_rank_part_there_is_no_adapter():
    with pytest.raises(UsageError, match="no matrix has a low-rank part"):
        peft.plan(contents_of(packed_model(lambda path: grouped(4, 32, True))), None)


def test_a_graph_takes_texts_of_any_length(tmp_path):
    runtime = [pytest.importorskip(name) for name in onnx.PACKAGES][-1]
    model = packed_model(lambda path: summed if path.endswith("o_proj") else grouped(3, 32, False)).eval()
    ids = torch.arange(30).view(3, 10)
    with torch.no_grad():
        ours = model(ids).logits
    contents = contents_of(model)
    count = len(values_of(model))
    entries = onnx.plan(contents, None)
    assert (len(entries), {entry.verdict for entry in entries}) == (count, {"exact"})
    onnx.write(contents, entries, tmp_path)
    session = runtime.InferenceSession(tmp_path / onnx.FILE, providers=["CPUExecutionProvider"])
    (theirs,) = session.run(None, {"input_ids": ids.numpy()})
    assert torch.allclose(torch.from_numpy(theirs), ours, atol=1e-4)
    assert (tmp_path / "config.json").exists()
