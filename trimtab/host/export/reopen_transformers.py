"""Opens an export with stock transformers, in a process that never imports trimtab, and says what it says.

Run as a file: one line of JSON on stdin, {"folder", "gguf" (a file name, or null), "ids" (lists of token ids), "told",
"logits" (a path)}. Writes float32 [tokens, vocabulary] of all prompts, one after the other, and answers {"opened_by"} on stdout.

It does not take every family from GGUF, nor every size of those it takes. There `told` holds the config, the model's name of
every tensor, which rows changed places and which gains have one added, and the `gguf` package reads the values.

transformers does not read zero points that compressed-tensors has packed (5.23 with 0.20); there each matrix is unpacked by
that package's own decompressor, and the model is loaded with the result.

The layouts of GPTQ and AWQ are read by transformers through GPTQModel. Here its own classes read the config, and the matrices are
taken apart bit by bit as the layouts are documented.
"""

import json
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.quantizers.auto import AutoQuantizationConfig


def opened(folder: Path, gguf: str | None, told: dict[str, Any]) -> tuple[Any, str]:
    """The model in float32, and what opened it."""
    stock = f"transformers {version('transformers')}"
    if gguf is not None and told:
        return _from_tensors(folder / gguf, told), f"gguf {version('gguf')}, tensor by tensor"
    if gguf is not None:
        return _complete(folder, gguf_file=gguf), f"{stock} from GGUF"
    if (folder / "adapter").is_dir():
        return _adapted(folder), f"{stock} with peft {version('peft')}"
    described = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("quantization_config")
    if described is None:
        return _complete(folder), stock
    if described["quant_method"] in LAYOUTS:
        return _taken_apart(folder, described), f"{stock}, matrices taken apart bit by bit"
    package = f"compressed-tensors {version('compressed-tensors')}"
    if all(group["weights"]["symmetric"] for group in described["config_groups"].values()):
        return _complete(folder), f"{stock} with {package}"
    return _decompressed(folder, described), f"{package}, matrix by matrix"


def _complete(folder: Path, **how: Any) -> Any:
    model, found = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, local_files_only=True, trust_remote_code=False, **how
    )
    _check(found["missing_keys"], found["unexpected_keys"])
    return model.eval()


def _check(missing: Any, surplus: Any) -> None:
    if missing or surplus:
        raise SystemExit(f"tensors are missing or have no place: {sorted([*missing, *surplus])[:3]}")


def _from_tensors(file: Path, told: dict[str, Any]) -> Any:
    from gguf import GGUFReader
    from gguf.quants import dequantize

    whole = {}
    for tensor in GGUFReader(file).tensors:
        name = told["names"][tensor.name]
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy()).float()
        if name in told["rows"]:
            values = values[torch.tensor(told["rows"][name]).argsort()]
        whole[name] = values - 1 if name in told["one_added"] else values
    return _filled(AutoConfig.for_model(**told["config"]), whole)


def _filled(config: Any, whole: dict[str, Any]) -> Any:
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    found = model.load_state_dict(whole, strict=False)
    model.tie_weights()
    tied = set(getattr(model, "_tied_weights_keys", None) or ()) if config.tie_word_embeddings else set()
    _check(set(found.missing_keys) - tied, found.unexpected_keys)
    return model.eval()


def _adapted(folder: Path) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(_complete(folder / "base"), folder / "adapter", local_files_only=True).eval()


def _taken_apart(folder: Path, described: dict[str, Any]) -> Any:
    config, stored = _stored(folder)
    known = AutoQuantizationConfig.from_dict(described)
    layout = LAYOUTS[described["quant_method"]]
    whole = {name: value for name, value in stored.items() if name.rpartition(".")[2] not in PARTS}
    for path in [name.removesuffix(".qweight") for name in stored if name.endswith(".qweight")]:
        parts = {part: stored.get(f"{path}.{part}") for part in PARTS}
        whole[f"{path}.weight"] = layout(parts, known, _bits(path, described))
    return _filled(config, whole)


def _bits(path: str, described: dict[str, Any]) -> int:
    """Of one matrix. `dynamic` begins an expression with +: for other settings, -: for none."""
    for expression, own in described.get("dynamic", {}).items():
        if re.match(expression[2:], path):
            if expression.startswith("-:"):
                raise SystemExit(f"{path} is said to be plain and is not")
            return int(own["bits"])
    return int(described["bits"])


def _gptq(parts: dict[str, Any], known: Any, bits: int) -> Any:
    codes = _stream(parts["qweight"].T, bits)  # [out, in]
    zeros = _stream(parts["qzeros"], bits).T + (1 if known.format == "gptq" else 0)  # [out, groups]
    return _values(codes, zeros, parts["scales"].T, parts["g_idx"].long())


def _awq(parts: dict[str, Any], known: Any, bits: int) -> Any:
    codes, zeros = (_neighbours(_stream(parts[name], bits)).T for name in ("qweight", "qzeros"))
    width = codes.shape[1] if known.group_size == -1 else known.group_size
    return _values(codes, zeros, parts["scales"].T, torch.arange(codes.shape[1]) // width)


def _values(codes: Any, zeros: Any, scale: Any, groups: Any) -> Any:
    return (codes - zeros[:, groups]).float() * scale.float()[:, groups]


def _stream(words: Any, bits: int) -> Any:
    """int32 [rows, words] -> the numbers in the bits of each row, lowest first."""
    held = np.ascontiguousarray(words.numpy()).astype("<i4").view(np.uint8)
    single = np.unpackbits(held, axis=1, bitorder="little").reshape(len(held), -1, bits)
    return torch.from_numpy(single.astype(np.int64) @ (1 << np.arange(bits)))


def _neighbours(numbers: Any) -> Any:
    """Eight numbers of a word belong to outputs 0, 2, 4, 6, 1, 3, 5, 7."""
    return numbers.reshape(len(numbers), -1, 2, 4).transpose(2, 3).reshape(len(numbers), -1)


LAYOUTS = {"gptq": _gptq, "awq": _awq}
PARTS = ("qweight", "qzeros", "scales", "g_idx")


def _stored(folder: Path) -> tuple[Any, dict[str, Any]]:
    """The config without its quantization, and all tensors by name."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    del config.quantization_config
    return config, {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


def _decompressed(folder: Path, described: dict[str, Any]) -> Any:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    config, stored = _stored(folder)
    schemes = QuantizationConfig.model_validate(described)
    compressor = BaseCompressor.get_value_from_registry(described["format"])
    whole = {name: value for name, value in stored.items() if ".weight_" not in name}
    for path in [name.removesuffix(".weight_packed") for name in stored if name.endswith(".weight_packed")]:
        parts = {name.removeprefix(path + "."): value for name, value in stored.items() if name.startswith(path + ".weight_")}
        parts["weight_scale"] = parts["weight_scale"].float()  # as in a model of the dtype that config.json names
        groups = schemes.config_groups.values()
        scheme = next((g for g in groups if path in g.targets), None) or next(g for g in groups if "Linear" in g.targets)
        whole[f"{path}.weight"] = compressor.decompress(parts, scheme)["weight"]
    return _filled(config, whole)


def main() -> None:
    task = json.loads(sys.stdin.readline())
    model, opened_by = opened(Path(task["folder"]), task["gguf"], task["told"])
    with torch.no_grad():
        rows = [model(torch.tensor([ids])).logits[0].float().numpy() for ids in task["ids"]]
    np.save(task["logits"], np.concatenate(rows))
    print(json.dumps({"opened_by": opened_by}))


if __name__ == "__main__":
    main()
