"""Layers of different widths in one GGUF file: llama.cpp's graph `deci`, which reads sizes layer by layer.

Its graph of llama takes the first layer's word for all. That of deci (written for pruned models) asks every layer for its heads,
key-value heads and neurons, and is llama's otherwise. What it asks for: one width of a head everywhere, equal to the part that
is rotated; SiLU; llama's order of rows. A layer without neurons would lose its attention too, but none is ever emptied here.
"""

import copy
from typing import Any

from transformers import PreTrainedModel

from trimtab.anatomy import Anatomy
from trimtab.core.errors import UsageError
from trimtab.core.places import Role
from trimtab.host.export.stock import stock_config

AS_LLAMA = ("llama", "mistral")


def config(model: PreTrainedModel) -> Any:
    """Of transformers where one describes the model; else its own with a number a layer for every size that differs.

    Raises `UsageError` for families whose graph takes one width for all layers.
    """
    try:
        return stock_config(model)
    except UsageError as refusal:
        if model.config.model_type not in AS_LLAMA:
            raise UsageError(f"gguf: only {' and '.join(AS_LLAMA)} may differ from layer to layer; {refusal}") from refusal
    found = copy.deepcopy(model.config)
    if getattr(found, "quantization_config", None) is not None:
        del found.quantization_config
    found.head_dim = getattr(found, "head_dim", None) or found.hidden_size // found.num_attention_heads
    sites = [site for site in Anatomy.of(model).sites if site.block is not None]
    out, keys, inner = (
        [s.shape[axis] for s in sites if s.role is role] for role, axis in ((Role.O, 1), (Role.K, 0), (Role.DOWN, 1))
    )
    for name, sizes in (
        ("num_attention_heads", [size // found.head_dim for size in out]),
        ("num_key_value_heads", [size // found.head_dim for size in keys]),
        ("intermediate_size", inner),
    ):
        vars(found)[name] = sizes  # past the config's own check, which knows one number for all
    return found


def by_layer(config: Any) -> bool:
    """Whether the sizes of `config` are a number a layer."""
    return isinstance(config.intermediate_size, list)
