"""What a config says about a model, in one vocabulary: config keys differ between families and versions of transformers."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.core.errors import ModelError
from trimtab.runtime.errors import Unsupported
from trimtab.runtime.family import FAMILIES, Family

MOST_LAYERS = 2000
WIDEST = 1 << 24
LARGEST = 1e300  # of a number
CURVES = {
    **{"silu": "silu", "swish": "silu", "gelu": "gelu", "relu": "relu"},
    **{"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh"},
}
# (family or "", key, the only value that is covered): other values change what a layer computes.
REQUIRED: tuple[tuple[str, str, Any], ...] = (
    ("", "add_cross_attention", False),
    ("", "is_encoder_decoder", False),
    ("", "use_bidirectional_attention", False),
    ("gpt2", "scale_attn_by_inverse_layer_idx", False),
    ("gpt2", "scale_attn_weights", True),
    ("opt", "do_layer_norm_before", True),
    ("opt", "_remove_final_layer_norm", False),
    ("opt", "layer_norm_elementwise_affine", True),
)


@dataclass(frozen=True)
class Turning:
    """Rotary positions. frequency: float32, one per pair of entries that turn."""

    frequency: NDArray[np.float32]


@dataclass(frozen=True)
class Facts:
    """Of the model as a whole. window, turning: by layer; turning: index into `turnings`, -1 for none."""

    architecture: str
    family: Family
    layers: int
    width: int
    head_width: int
    sharing: int  # query heads per key/value head
    context: int
    tied: bool
    curve: str
    epsilon: float
    scale: float
    softcap: float
    logit_softcap: float
    embedding_scale: float
    parallel: bool
    window: tuple[int, ...]
    turning: tuple[int, ...]
    turnings: tuple[Turning, ...]


def facts(config: Mapping[str, Any]) -> Facts:
    """Reads a config. Raises `Unsupported` for what is not covered, `ModelError` for what makes no sense."""
    name = config["model_type"]
    if name not in FAMILIES:
        raise Unsupported(f"models of type {name!r:.80} are not covered; known are {', '.join(sorted(FAMILIES))}")
    family = FAMILIES[name]
    for only, key, value in REQUIRED:
        if only in ("", name) and config.get(key, value) not in (value, None):
            raise Unsupported(f"{name} with {key}={config[key]!r:.40} is not covered")
    layers, width = _size(config, "num_hidden_layers", "n_layer", high=MOST_LAYERS), _size(config, "hidden_size", "n_embd")
    heads = _size(config, "num_attention_heads", "n_head")
    head_width = _size(config, "head_dim") if config.get("head_dim") else width // heads
    shared = _size(config, "num_key_value_heads") if config.get("num_key_value_heads") else heads
    if name == "opt" and config.get("word_embed_proj_dim", width) != width:
        raise Unsupported("opt with embeddings of another width than its layers is not covered")
    if head_width < 1 or heads % shared:
        raise ModelError(f"config.json: {heads} heads of {head_width} cannot share {shared} key/value heads")
    kinds = _kinds(config, family, name, layers)
    turning, turnings = _turnings(config, family, name, kinds, head_width)
    return Facts(
        architecture=name,
        family=family,
        layers=layers,
        width=width,
        head_width=head_width,
        sharing=heads // shared,
        context=_size(config, "max_position_embeddings", "n_positions"),
        tied=bool(config.get("tie_word_embeddings", family.tied)),
        curve=_curve(config, name),
        epsilon=_epsilon(config),
        scale=_number(config, "query_pre_attn_scalar", head_width) ** -0.5,
        softcap=_number(config, "attn_logit_softcapping", 0.0),
        logit_softcap=_number(config, "final_logit_softcapping", 0.0),
        embedding_scale=math.sqrt(width) if family.scaled_embedding else 1.0,
        parallel=name == "gpt_neox" and config.get("use_parallel_residual", True) is True,
        window=_windows(config, family, kinds),
        turning=turning,
        turnings=turnings,
    )


def _size(config: Mapping[str, Any], *keys: str, high: int = WIDEST) -> int:
    for key in keys:
        if key in config:
            value = config[key]
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= high:
                raise ModelError(f"config.json: {key} must be a whole number from 1 to {high}, got {value!r:.40}")
            return value
    raise ModelError(f"config.json has no {keys[0]}")


def _number(config: Mapping[str, Any], key: str, default: float) -> float:
    value = config.get(key)
    if value is None:
        return float(default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < LARGEST:
        raise ModelError(f"config.json: {key} must be a number above 0, got {value!r:.40}")
    return float(value)


def _epsilon(config: Mapping[str, Any]) -> float:
    key = next((k for k in ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon") if config.get(k)), "rms_norm_eps")
    return _number(config, key, 1e-5)


def _curve(config: Mapping[str, Any], name: str) -> str:
    keys = ("hidden_activation", "hidden_act", "activation_function")
    given = next((config[key] for key in keys if config.get(key)), "gelu_pytorch_tanh" if name.startswith("gemma") else None)
    if not isinstance(given, str) or given not in CURVES:
        raise Unsupported(f"{name} with the activation {given!r:.40} is not covered")
    return CURVES[given]


def _kinds(config: Mapping[str, Any], family: Family, name: str, layers: int) -> list[str]:
    """full_attention or sliding_attention, by layer."""
    given = config.get("layer_types")
    if given is None:
        if name == "gemma2":
            return ["full_attention" if i % 2 else "sliding_attention" for i in range(layers)]
        if name == "gemma3_text":
            every = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 6
            return ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(layers)]
        if family.window == "types" and config.get("use_sliding_window"):
            raise Unsupported(f"{name} with sliding windows and without layer_types is not covered")
        return ["full_attention"] * layers
    if not isinstance(given, list) or len(given) != layers:
        raise ModelError(f"config.json: layer_types must name {layers} layers")
    for kind in given:
        if kind not in ("full_attention", "sliding_attention"):
            raise Unsupported(f"{name} with layers of type {kind!r:.40} is not covered")
    return given


def _windows(config: Mapping[str, Any], family: Family, kinds: list[str]) -> tuple[int, ...]:
    off = family.window == "none" or not config.get("sliding_window") or config.get("use_sliding_window") is False
    if off:
        return (0,) * len(kinds)
    size = _size(config, "sliding_window", high=1 << 40)
    return tuple(size if family.window == "all" or kind == "sliding_attention" else 0 for kind in kinds)


def _turnings(
    config: Mapping[str, Any], family: Family, name: str, kinds: list[str], head_width: int
) -> tuple[tuple[int, ...], tuple[Turning, ...]]:
    if not family.rotary:
        return (-1,) * len(kinds), ()
    sets = _rope_sets(config, name)
    order = sorted(sets)
    turnings = tuple(Turning(_frequencies(config, name, sets[kind], head_width)) for kind in order)
    none = _layers_without_rope(config, name, len(kinds))
    return tuple(-1 if i in none else order.index(k) if k in sets else 0 for i, k in enumerate(kinds)), turnings


def _rope_sets(config: Mapping[str, Any], name: str) -> dict[str, Mapping[str, Any]]:
    """Parameters by kind of layer, or of all of them under ""."""
    given = config.get("rope_parameters")
    if isinstance(given, dict) and any(isinstance(value, dict) for value in given.values()):
        if not all(isinstance(value, dict) for value in given.values()):
            raise ModelError("config.json: rope_parameters are neither of all layers nor by kind of layer")
        return given
    old = config.get("rope_scaling") or {}
    everywhere = {"rope_theta": config.get("rope_theta"), **old} if not isinstance(given, dict) else given
    if name == "gemma3_text":
        local = {"rope_theta": config.get("rope_local_base_freq", 10000.0)}
        return {"full_attention": {**everywhere, "rope_theta": everywhere.get("rope_theta") or 1e6}, "sliding_attention": local}
    return {"": everywhere}


def _layers_without_rope(config: Mapping[str, Any], name: str, layers: int) -> set[int]:
    if name != "smollm3":
        return set()
    given = config.get("no_rope_layers")
    if given is None:
        every = config.get("no_rope_layer_interval") or 4
        return {i for i in range(layers) if (i + 1) % every == 0}
    if not isinstance(given, list) or len(given) != layers:
        raise ModelError(f"config.json: no_rope_layers must have {layers} entries")
    return {i for i, turns in enumerate(given) if not turns}


def _frequencies(config: Mapping[str, Any], name: str, given: Mapping[str, Any], head_width: int) -> NDArray[np.float32]:
    kind = given.get("rope_type") or given.get("type") or "default"
    if not isinstance(kind, str) or kind not in _SCALED:
        raise Unsupported(f"{name} with {kind!r:.40} scaling of rotary positions is not covered")
    base = _number(given, "rope_theta", 10000.0 if name != "smollm3" else 2000000.0)
    if not 1e-30 < base < 1e30:
        raise ModelError(f"config.json: rope_theta is {base:g}, which no float32 number holds well")
    part = given.get("partial_rotary_factor") or config.get("partial_rotary_factor") or config.get("rotary_pct") or 1.0
    turned = int(head_width * _number({"part": part}, "part", 1.0))
    if not 2 <= turned <= head_width or turned % 2:
        raise ModelError(f"config.json: {turned} of {head_width} entries of a head cannot turn")
    exponents = np.arange(0, turned, 2, dtype=np.float32) / np.float32(turned)
    return _SCALED[kind]((1.0 / np.float32(base) ** exponents).astype(np.float32), given)


def _linear(frequency: NDArray[np.float32], given: Mapping[str, Any]) -> NDArray[np.float32]:
    return np.divide(frequency, np.float32(_number(given, "factor", 1.0)), dtype=np.float32)


def _llama3(frequency: NDArray[np.float32], given: Mapping[str, Any]) -> NDArray[np.float32]:
    """Slow turns are slowed by `factor`, fast ones kept, and those between are mixed."""
    factor, low, high = (_number(given, key, 1.0) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    old = _number(given, "original_max_position_embeddings", 8192)
    if high <= low:
        raise ModelError("config.json: high_freq_factor must be above low_freq_factor")
    turns = old * frequency / (2 * math.pi)  # within the old context
    share = np.clip((turns - low) / (high - low), 0.0, 1.0)
    mixed: NDArray[np.float32] = ((1 - share) * frequency / factor + share * frequency).astype(np.float32)
    return mixed


_SCALED: dict[str, Callable[[NDArray[np.float32], Mapping[str, Any]], NDArray[np.float32]]] = {
    "default": lambda frequency, given: frequency,
    "linear": _linear,
    "llama3": _llama3,
}
