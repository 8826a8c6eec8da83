"""A foreign model becomes a folder of ours: packed matrices under our names and formats, everything else as it was.

Nothing is multiplied or rounded on the way, and no third party's quantizer is asked. Every matrix is compared with the place
that the config has for it before it is unpacked, and the finished folder is opened once, strictly, before anybody else sees it.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from trimtab.core.errors import ModelError
from trimtab.core.kinds import LinearWeight
from trimtab.formats import Dense
from trimtab.host import folder_checks, manifest
from trimtab.host.checkpoint import TOKENIZER_FILES, load, skeleton
from trimtab.host.imports.awq import Awq
from trimtab.host.imports.bitsandbytes import BitsAndBytes
from trimtab.host.imports.compressed_tensors import CompressedTensors
from trimtab.host.imports.gptq import Gptq
from trimtab.host.imports.parts import Layout, Stored
from trimtab.host.quantizer import METHOD, VERSION

LAYOUTS: Mapping[str, Any] = {
    "gptq": Gptq,
    "awq": Awq,
    "compressed-tensors": CompressedTensors,
    "bitsandbytes": BitsAndBytes,
}
BESIDE = (
    *TOKENIZER_FILES,
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)
DAMAGED = (ValueError, KeyError, TypeError, IndexError, AttributeError, RuntimeError, OverflowError, RecursionError)


@dataclass
class Read:
    """weights: by the path of a linear layer. rest: every other tensor by its name. config: content of config.json."""

    config: dict[str, Any]
    weights: dict[str, LinearWeight] = field(default_factory=dict)
    rest: dict[str, Tensor] = field(default_factory=dict)


def read_folder(place: Path) -> Read:
    """A folder of one of `LAYOUTS`. Raises `ModelError` naming the version, tensor or path that is not as it should be."""
    folder_checks.check_links(place)
    config = folder_checks.read_config(place, tuple(LAYOUTS))
    described = config.pop("quantization_config")
    layout: Layout = LAYOUTS[described["quant_method"]](described)
    stored = Stored.of(place)
    model = built(config, place)
    found = Read(config)
    taken: set[str] = set()
    for path in [name.removesuffix(f".{layout.mark}") for name in stored if name.endswith(f".{layout.mark}")]:
        parts = {part: stored[f"{path}.{part}"] for part in layout.parts if f"{path}.{part}" in stored}
        found.weights[path] = _weight(layout, path, model, parts, place)
        taken |= {f"{path}.{part}" for part in parts}
    found.rest = {name: stored[name] for name in stored if name not in taken}
    return found


def built(config: Mapping[str, Any], place: Path) -> PreTrainedModel:
    """What the config describes, on the meta device. Raises `ModelError` for a family that transformers does not know."""
    kind = config["model_type"]
    if kind not in CONFIG_MAPPING:
        raise ModelError(f"{place}: transformers does not know model_type {kind!r:.80}")
    try:
        return skeleton(CONFIG_MAPPING[kind].from_dict(dict(config)))
    except Exception as error:  # whatever goes wrong here, the reason is the file
        raise ModelError(f"{place} has no usable config: {str(error)[:200]}") from error


def write_folder(read: Read, folder: Path) -> None:
    """config.json and model.safetensors, in the dtype that holds every plain value. Raises `ModelError` if it does not open."""
    modules: dict[str, Any] = {}
    tensors = dict(read.rest)
    model = built(read.config, folder)
    for path, weight in read.weights.items():
        if isinstance(weight, Dense):
            tensors[f"{path}.weight"] = weight.weight.T if _is_transposed(model.get_submodule(path)) else weight.weight
        else:
            modules[path] = {**weight.spec(), "bias": f"{path}.bias" in read.rest}
            tensors |= {f"{path}.{name}": tensor for name, tensor in weight.tensors().items()}
    dtype = _dtype(read, [*read.rest.values(), *(w.weight for w in read.weights.values() if isinstance(w, Dense))])
    config = {key: value for key, value in read.config.items() if key not in ("torch_dtype", "quantization_config")} | {
        "dtype": dtype
    }
    if modules:
        config["quantization_config"] = {"quant_method": METHOD, "version": VERSION, "modules": modules}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors", {"format": "pt"})


def copy_beside(place: Path, folder: Path) -> None:
    """The tokenizer and how to generate."""
    for name in BESIDE:
        if (place / name).is_file():
            shutil.copyfile(place / name, folder / name)


def finish(folder: Path) -> None:
    """Opens the folder once, as `load` does. Raises `ModelError`."""
    load(folder, dtype="auto")
    manifest.write(folder)


def _weight(layout: Layout, path: str, model: nn.Module, parts: Mapping[str, Tensor], place: Path) -> LinearWeight:
    try:
        module = model.get_submodule(path)
    except AttributeError as error:
        raise ModelError(f"{place} packs {path!r:.200}, where {model.config.model_type} has no layer of its own") from error
    if not isinstance(module, nn.Linear) and not _is_transposed(module):
        raise ModelError(f"{place} packs {path!r:.200}, which is a {type(module).__name__}; trimtab reads packed linear layers")
    shape = tuple(module.weight.shape[::-1] if _is_transposed(module) else module.weight.shape)
    try:
        return layout.weight(path, (shape[0], shape[1]), parts)
    except DAMAGED as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{place}: {path} cannot be unpacked: {said:.300}") from error


def _is_transposed(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"


def _dtype(read: Read, plain: list[Tensor]) -> str:
    """The one that the config names, if it holds every plain value; else float32."""
    said = str(read.config.get("dtype") or read.config.get("torch_dtype") or "float32")
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(said)
    floats = [tensor for tensor in plain if tensor.is_floating_point()]
    if dtype is not None and all(torch.equal(tensor.to(dtype).to(tensor.dtype), tensor) for tensor in floats):
        return said
    return "float32"
