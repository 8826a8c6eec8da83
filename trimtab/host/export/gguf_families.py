"""What llama.cpp calls the families of models, and where its matrices differ from transformers'.

Its name for a family decides the graph that is run. In the graph of `llama` neighbouring rows of queries and keys rotate
together; transformers rotates the first half of a head with the second, so the rows of a head change places. Other graphs
rotate as transformers does. Gemma's gains are stored with the one added that transformers adds itself.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import gguf
import torch
from torch import Tensor

from trimtab.core.errors import ModelError, did_you_mean
from trimtab.host.export.gguf_layers import by_layer

Writer = gguf.GGUFWriter


def _nothing(writer: Writer, config: Any) -> None:
    """No keys beyond those that every family has."""


def _gemma2(writer: Writer, config: Any) -> None:
    writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    writer.add_final_logit_softcapping(config.final_logit_softcapping)
    writer.add_sliding_window(config.sliding_window)


def _full_attention(config: Any) -> list[tuple[bool, str]]:
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return [(kinds == {"full_attention"}, "attention to all tokens in every layer")]


def _any_attention(config: Any) -> list[tuple[bool, str]]:
    """A window is met by a context that is no longer."""
    return []


def _asks_gemma2(config: Any) -> list[tuple[bool, str]]:
    kinds = ("sliding_attention", "full_attention")
    expected = [kinds[layer % 2] for layer in range(config.num_hidden_layers)]
    return [
        (list(config.layer_types) == expected, "a window in every other layer, from the first on"),
        (config.query_pre_attn_scalar == head_dim(config), "queries scaled by the width of a head"),
    ]


def _asks_smollm3(config: Any) -> list[tuple[bool, str]]:
    turning = [int((layer + 1) % 4 != 0) for layer in range(config.num_hidden_layers)]
    return [*_full_attention(config), (list(config.no_rope_layers) == turning, "no rotation in every fourth layer")]


@dataclass(frozen=True)
class Family:
    """arch: llama.cpp's name. turned: rows of queries and keys change places. one_added: gains are stored plus one.

    stock: whether transformers reads the whole of it from GGUF. keys: writes what else the graph asks for. asks: what its graph
    takes for granted, as (whether it holds, what it is).
    """

    arch: gguf.MODEL_ARCH
    turned: bool = False
    one_added: bool = False
    stock: bool = False
    keys: Callable[[Writer, Any], None] = _nothing
    asks: Callable[[Any], list[tuple[bool, str]]] = _full_attention


FAMILIES: Mapping[str, Family] = {
    "llama": Family(gguf.MODEL_ARCH.LLAMA, turned=True, stock=True),
    "mistral": Family(gguf.MODEL_ARCH.LLAMA, turned=True, stock=True, asks=_any_attention),
    "qwen2": Family(gguf.MODEL_ARCH.QWEN2, stock=True),
    "qwen3": Family(gguf.MODEL_ARCH.QWEN3),
    "olmo2": Family(gguf.MODEL_ARCH.OLMO2),
    "smollm3": Family(gguf.MODEL_ARCH.SMOLLM3, turned=True, asks=_asks_smollm3),
    "gemma2": Family(gguf.MODEL_ARCH.GEMMA2, one_added=True, keys=_gemma2, asks=_asks_gemma2),
}
ACTIVATIONS = ("silu", "gelu_pytorch_tanh")
ROTATIONS = ("default", "linear")


def family(config: Any) -> Family:
    """Raises `ModelError` for a model_type that is not in `FAMILIES`, or a feature that its graph does not have."""
    kind = config.model_type
    if kind not in FAMILIES:
        raise ModelError(f"gguf: trimtab does not write models of the family {kind!r}{did_you_mean(kind, FAMILIES)}")
    rotation = config.rope_parameters.get("rope_type", "default")
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    asked = [
        *FAMILIES[kind].asks(config),
        (rotation in ROTATIONS, f"a rotary embedding of type {' or '.join(ROTATIONS)}, not {rotation!r:.40}"),
        (activation in ACTIVATIONS, f"the activation {' or '.join(ACTIVATIONS)}, not {activation!r:.40}"),
    ]
    for holds, what in asked:
        if not holds:
            raise ModelError(f"gguf: llama.cpp's graph of {kind} has {what}; this model differs")
    known = FAMILIES[kind]
    return replace(known, arch=gguf.MODEL_ARCH.DECI, stock=False) if by_layer(config) else known


def head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def context(config: Any) -> int:
    """Tokens. Where every layer looks back through a window that the graph does not know, no longer than the window."""
    window = getattr(config, "sliding_window", None) if config.model_type == "mistral" else None
    return min(config.max_position_embeddings, window or config.max_position_embeddings)


def add_sizes(writer: Writer, config: Any, known: Family) -> None:
    """The keys that the graph is built from."""
    head = head_dim(config)
    writer.add_context_length(context(config))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    rope = config.rope_parameters
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    known.keys(writer, config)


def row_order(name: str, rows: int, config: Any, known: Family) -> Tensor | None:
    """[rows] int64, where the graph wants the rows of a matrix or bias in another order; else None."""
    if not known.turned or not name.rpartition(".")[0].endswith((".q_proj", ".k_proj")):
        return None
    head = head_dim(config)
    # From (half, pair) to (pair, half), head by head.
    return torch.arange(rows).view(rows // head, 2, head // 2).transpose(1, 2).reshape(-1)
