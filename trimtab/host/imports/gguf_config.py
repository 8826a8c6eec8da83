"""The config of a model from the keys of its GGUF file: the inverse of `host.export.gguf_families`.

Every size that a graph is built from is read from the file, none is guessed from its name. What llama.cpp's graph of a family
takes for granted, the config of transformers says.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from trimtab.core.errors import ModelError, did_you_mean
from trimtab.host.imports.gguf_header import Header

ARCHITECTURES = ("llama", "qwen2", "qwen3", "olmo2", "smollm3", "gemma2")
SIZES = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
}
SPECIAL = {
    f"{name}_token_id": f"tokenizer.ggml.{short}_token_id" for name, short in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
}
GEMMA2 = {
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "sliding_window": "attention.sliding_window",
}


def config_of(header: Header) -> dict[str, Any]:
    """Content of a config.json. Raises `ModelError` naming an unknown architecture, a missing key, or a feature."""
    values = header.values
    arch = values.get("general.architecture")
    if arch not in ARCHITECTURES:
        raise ModelError(f"GGUF files of the architecture {arch!r:.40} are not read{did_you_mean(str(arch)[:40], ARCHITECTURES)}")
    if values.get(f"{arch}.expert_count"):
        raise ModelError(f"GGUF files of {arch} with experts are not read")
    config: dict[str, Any] = {"model_type": arch, **{ours: _whole(values, f"{arch}.{key}") for ours, key in SIZES.items()}}
    heads = config["num_attention_heads"]
    config["num_key_value_heads"] = _whole(values, f"{arch}.attention.head_count_kv", heads)
    config["head_dim"] = _head_dim(values, arch, config["hidden_size"] // heads)
    config["rms_norm_eps"] = _real(values, f"{arch}.attention.layer_norm_rms_epsilon")
    config["rope_parameters"] = _rotation(header, arch)
    config["vocab_size"] = _rows(header, "token_embd.weight")
    config["tie_word_embeddings"] = "output.weight" not in header.tensors
    config |= {ours: values[key] for ours, key in SPECIAL.items() if isinstance(values.get(key), int)}
    if arch == "llama":
        config |= {"attention_bias": "blk.0.attn_q.bias" in header.tensors, "mlp_bias": "blk.0.ffn_gate.bias" in header.tensors}
    if arch == "gemma2":
        config |= {ours: _real(values, f"{arch}.{key}") for ours, key in GEMMA2.items()}
        config |= {"sliding_window": int(config["sliding_window"]), "query_pre_attn_scalar": config["head_dim"]}
    return config


def _head_dim(values: Mapping[str, Any], arch: str, usual: int) -> int:
    found = _whole(values, f"{arch}.attention.key_length", usual)
    for key in ("attention.value_length", "rope.dimension_count"):
        other = _whole(values, f"{arch}.{key}", found)
        if other != found:
            raise ModelError(f"GGUF: {arch}.{key} is {other}, heads are {found} wide; trimtab reads files where they agree")
    return found


def _rotation(header: Header, arch: str) -> dict[str, Any]:
    values = header.values
    made: dict[str, Any] = {"rope_type": "default", "rope_theta": _real(values, f"{arch}.rope.freq_base", 10000.0)}
    kind = values.get(f"{arch}.rope.scaling.type", "none")
    if "rope_freqs.weight" in header.tensors or kind not in ("none", "linear"):
        raise ModelError(f"GGUF files with a rotary scaling of type {kind!r:.40} or factors of their own are not read")
    if kind == "linear":
        made |= {"rope_type": "linear", "factor": _real(values, f"{arch}.rope.scaling.factor")}
    return made


def _rows(header: Header, name: str) -> int:
    if name not in header.tensors:
        raise ModelError(f"the GGUF file has no {name}")
    return header.tensors[name].shape[0]


def _whole(values: Mapping[str, Any], key: str, usual: int | None = None) -> int:
    found = values.get(key, usual)
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise ModelError(f"GGUF: {key} is {found!r:.40}, expected a whole number above zero")
    return found


def _real(values: Mapping[str, Any], key: str, usual: float | None = None) -> float:
    found = values.get(key, usual)
    if not isinstance(found, int | float) or isinstance(found, bool) or not np.isfinite(found):
        raise ModelError(f"GGUF: {key} is {found!r:.40}, expected a number")
    return float(str(np.float32(found)))  # the shortest number that is this float32
