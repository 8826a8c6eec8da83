"""Random models of every family, small enough for a test to run in milliseconds.

They are untrained but not degenerate: every parameter is drawn anew from a generator of its own (gains around their neutral
value, biases around zero, matrices scaled so that activations stay near one), because a freshly initialised model has unit
gains and zero biases, and many a mistake is invisible there.
"""

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor

from trimtab.core.errors import UsageError, did_you_mean
from trimtab.core.seeds import Seeds

VOCABULARY = 97
_WIDE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = {**_WIDE, "num_key_value_heads": 2}
_EXPERTS = {"intermediate_size": 32, "num_local_experts": 4, "num_experts_per_tok": 2}
_TWO_MASKS = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
_PLAIN_ROPE = {"rope_type": "default", "rope_theta": 150000.0}
_SPECIAL = {name: _WIDE[name] for name in ("pad_token_id", "bos_token_id", "eos_token_id")}

_FAMILIES: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "llama": (transformers.LlamaConfig, _GROUPED),
    "qwen2": (transformers.Qwen2Config, _GROUPED),
    "qwen3": (transformers.Qwen3Config, {**_GROUPED, "head_dim": 16}),
    "mistral": (transformers.MistralConfig, _GROUPED),
    "mixtral": (transformers.MixtralConfig, {**_GROUPED, **_EXPERTS}),
    "gpt_oss": (
        transformers.GptOssConfig,
        {**_GROUPED, **_EXPERTS, **_TWO_MASKS, "head_dim": 16, "rope_parameters": _PLAIN_ROPE},
    ),
    "gemma2": (transformers.Gemma2Config, {**_GROUPED, **_TWO_MASKS, "head_dim": 16}),
    "gemma3": (transformers.Gemma3TextConfig, {**_GROUPED, **_TWO_MASKS, "head_dim": 16}),
    "phi3": (transformers.Phi3Config, _GROUPED),
    "gpt2": (
        transformers.GPT2Config,
        {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 4, "n_head": 4, "n_inner": 128, "n_positions": 128, **_SPECIAL},
    ),
    "gpt_neox": (transformers.GPTNeoXConfig, _WIDE),
    "opt": (
        transformers.OPTConfig,
        {**{k: v for k, v in _WIDE.items() if k != "intermediate_size"}, "ffn_dim": 128, "word_embed_proj_dim": 64},
    ),
    "olmo2": (transformers.Olmo2Config, _GROUPED),
    "smollm3": (transformers.SmolLM3Config, _GROUPED),
    "lfm2": (
        transformers.Lfm2Config,
        {**_GROUPED, "layer_types": ["conv", "full_attention"] * 2, "block_auto_adjust_ff_dim": False},
    ),
}
ARCHITECTURES: tuple[str, ...] = tuple(_FAMILIES)


def tiny(name: str, seed: int = 0, **overrides: Any) -> transformers.PreTrainedModel:
    """A model of the family `name` in eval mode: 4 blocks, width 64, 97 words, float32; at most about 150 000 parameters.

    `overrides` go to the family's config. Embeddings are tied where the family ties them by default.
    """
    if name not in _FAMILIES:
        raise UsageError(f"there is no tiny model {name!r}{did_you_mean(name, ARCHITECTURES)}")
    config, settings = _FAMILIES[name]
    # The library's own initialisation draws from the global generator; what it drew is thrown away.
    with torch.random.fork_rng(devices=[]):
        model: transformers.PreTrainedModel = transformers.AutoModelForCausalLM.from_config(config(**{**settings, **overrides}))
    _redraw(model, Seeds(seed))
    model.eval()
    return model


@torch.no_grad()
def _redraw(model: torch.nn.Module, seeds: Seeds) -> None:
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=seeds.at(name))
        if parameter.ndim > 1:
            parameter.copy_(noise * min(parameter.shape[-2:]) ** -0.5)
        else:
            # Gains start at one, or at zero where the family adds the one itself; the start is their neutral value.
            parameter.add_(0.1 * noise)


def tokens(model: transformers.PreTrainedModel, batch: int = 2, length: int = 12, seed: int = 0) -> Tensor:
    """[batch, length] random token ids, on the model's device; the first three ids, which are special, do not occur."""
    ids = torch.randint(3, model.config.get_text_config().vocab_size, (batch, length), generator=Seeds(seed).at("tokens"))
    return ids.to(model.device)
