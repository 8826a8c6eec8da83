"""A GGUF file becomes an ordinary model folder, once.

`from_pretrained(gguf_file=...)` dequantizes, but the result refuses to be saved because its config still says that it is
quantized. So the weights are moved into a plain model of the same class. They are stored in float32: dequantized 4-bit
values (scale * code + minimum) do not fit bfloat16, and rounding them again would change the baseline.
"""

import copy
import hashlib
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from trimtab.data.assets import MODEL, cached, fetch
from trimtab.host.gguf_checks import check_gguf
from trimtab.host.model_assets import resolve_model as resolve_model
from trimtab.host.source import history as history
from trimtab.host.source import record

ROUNDED = "matrices were rounded to 4 bits (groups of 32) before we got them"


def asset_model() -> Path:
    """Folder of SmolLM2-135M-Instruct in float32 (0.54 GB), fetched and converted at the first call."""
    ((name, digest),) = MODEL.files.items()
    return cached(f"smollm2-135m-{digest[:8]}", lambda folder: import_gguf(fetch(MODEL) / name, folder, ROUNDED))


def import_gguf(file: Path, folder: Path, note: str) -> None:
    """Write the model and tokenizer of a GGUF file into `folder`, float32, with a source.json that keeps `note`."""
    check_gguf(file)
    where: dict[str, Any] = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    plain = dequantized(AutoModelForCausalLM.from_pretrained(dtype=torch.float32, **where))
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**where).save_pretrained(folder)
    with file.open("rb") as data:
        digest = hashlib.file_digest(data, "sha256").hexdigest()
    record(folder, {"file": file.name, "sha256": digest, "note": note})


def dequantized(model: Any) -> Any:
    """The same weights in a model whose config no longer says that it is quantized."""
    config = copy.deepcopy(model.config)
    del config.quantization_config
    plain = type(model)(config)
    plain.load_state_dict(model.state_dict())
    plain.tie_weights()
    plain.generation_config = GenerationConfig.from_model_config(config)
    return plain.eval()
