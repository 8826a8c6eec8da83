"""What vLLM's loader asks of a checkpoint of compressed-tensors, written down as data; exports obey it, or say where they do not.

The rules are those of its scheme for packed integers with activations as they are (WNA16) and of the Marlin kernels behind it.
vLLM itself needs an accelerator and is not run here.
"""

import json

import pytest
import torch
from export_models import contents_of, grouped, packed_model
from safetensors.torch import load_file

from trimtab.host.export import compressed_tensors

CONFIG = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
GROUP = {"input_activations": None}
WEIGHTS = {"type": "int", "dynamic": False, "actorder": None}
BITS = (4, 8)
STRATEGIES = {"channel": (None, -1), "group": (32, 64, 128)}  # strategy -> sizes of groups
SCALES = (torch.float16, torch.bfloat16)
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
MANDATORY = ("targets", "weights", "input_activations")


def obeys(config: dict, tensors: dict[str, torch.Tensor]) -> list[str]:
    """Every rule that is broken, in words; none where vLLM would load it."""
    broken = [f"{key} is {config.get(key)!r}" for key, value in CONFIG.items() if config.get(key) != value]
    schemes = {}
    for name, group in config["config_groups"].items():
        broken += [f"{name} lacks {key}" for key in MANDATORY if key not in group]
        weights = group["weights"]
        broken += [f"{name}: {key}" for key, value in GROUP.items() if group[key] != value]
        broken += [f"{name}: {key}" for key, value in WEIGHTS.items() if weights[key] != value]
        broken += [f"{weights['num_bits']} bits"] if weights["num_bits"] not in BITS else []
        broken += ["groups"] if weights["group_size"] not in STRATEGIES.get(weights["strategy"], ()) else []
        schemes |= dict.fromkeys(group["targets"], weights)
    packed = [name.removesuffix(".weight_packed") for name in tensors if name.endswith(".weight_packed")]
    for path in packed:
        scheme = schemes.get(path) or schemes["Linear"]
        broken += [f"{path} is ignored"] if path in config["ignore"] else []
        broken += [f"{path}: {what}" for what in misshapen(path, scheme, tensors)]
        parent, _, name = path.rpartition(".")
        together = next((parts for parts in FUSED.values() if name in parts), (name,))
        others = [schemes.get(f"{parent}.{part}", schemes.get("Linear")) for part in together]
        broken += [f"{path} is fused with others"] if any(other != scheme for other in others) else []
    plain = [name.removesuffix(".weight") for name in tensors if name.endswith("lm_head.weight")]
    return broken + [f"{path} is plain and not ignored" for path in plain if path not in config["ignore"]]


def misshapen(path: str, scheme: dict, tensors: dict[str, torch.Tensor]) -> list[str]:
    """Names, dtypes and shapes of the parameters that vLLM creates for the matrix."""
    out, in_ = tensors[f"{path}.weight_shape"].tolist()
    per_word = 32 // scheme["num_bits"]
    groups = 1 if scheme["group_size"] is None else in_ // scheme["group_size"]
    wanted = {
        "weight_packed": ((torch.int32,), (out, in_ // per_word)),
        "weight_scale": (SCALES, (out, groups)),
        "weight_shape": ((torch.int64,), (2,)),
    }
    if not scheme["symmetric"]:
        wanted["weight_zero_point"] = ((torch.int32,), (out // per_word, groups))
    held = {name.removeprefix(f"{path}."): tensor for name, tensor in tensors.items() if name.startswith(f"{path}.")}
    wrong = sorted(held.keys() ^ wanted.keys())
    return wrong + [
        n for n, (dtypes, shape) in wanted.items() if n in held and (held[n].dtype not in dtypes or held[n].shape != shape)
    ]


def exported(make, folder) -> tuple[dict, dict[str, torch.Tensor], list[str]]:
    contents = contents_of(packed_model(make, hidden_size=64, intermediate_size=128))
    entries = compressed_tensors.plan(contents, None)
    said = compressed_tensors.remarks(contents, entries)
    folder.mkdir(exist_ok=True)
    compressed_tensors.write(contents, entries, folder)
    return json.loads((folder / "config.json").read_text())["quantization_config"], load_file(folder / "model.safetensors"), said


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", [32, 64])
def test_what_vllm_opens_obeys_every_rule(bits, group_size, symmetric, tmp_path):
    config, tensors, said = exported(lambda _: grouped(bits, group_size, symmetric), tmp_path / "out")
    assert any(name.endswith("weight_packed") for name in tensors)
    assert obeys(config, tensors) == []
    assert [line for line in said if line.startswith("vLLM")] == []


def test_bits_may_differ_where_nothing_is_fused(tmp_path):
    config, tensors, said = exported(lambda path: grouped(8 if "down" in path else 4, 32, True), tmp_path / "out")
    assert len(config["config_groups"]) == 2
    assert obeys(config, tensors) == []
    assert said == []


@pytest.mark.parametrize(
    ("make", "rule", "said"),
    [
        (lambda _: grouped(3, 32, True), "3 bits", "vLLM opens 4 and 8 bits"),
        (lambda _: grouped(4, 16, True), "groups", "groups of 32, 64 or 128, or one a row; these are 16"),
        (lambda path: grouped(8 if "k_proj" in path else 4, 32, True), "is fused with others", "vLLM fuses"),
    ],
    ids=["bits", "groups", "fused"],
)
def test_what_vllm_does_not_open_breaks_a_rule_and_is_said(make, rule, said, tmp_path):
    config, tensors, told = exported(make, tmp_path / "out")
    assert any(rule in line for line in obeys(config, tensors))
    assert any(said in line for line in told)
