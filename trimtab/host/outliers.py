"""Channels that stand out, put into a model without changing what it computes.

Models trained for minutes have almost none, large ones have some in every layer, and many methods exist because of them.
Three pairs of places cancel exactly: the gain of a norm and the columns of the matrices that read it; rows of `up` and
columns of `down` (the gate is not linear, so it stays); a rotary pair of a key head and of the query heads that meet it.
One side is multiplied by a power of two and the other divided by it. That only changes exponents, so the function stays
the same to the last bit as long as nothing overflows or underflows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer

from trimtab.core.errors import ModelError, UsageError
from trimtab.core.seeds import Seeds


@dataclass(frozen=True)
class Outliers:
    """How many, and how far they stand out: by the factor 2 ** exponent.

    exponent: above 0 the activations stand out and their columns shrink, below 0 the other way round. channels: of the
    residual stream, the same ones behind every norm; neurons: of every MLP; pairs: of every key head.
    """

    exponent: int = 4
    channels: int = 4
    neurons: int = 4
    pairs: int = 1
    seed: int = 0

    @property
    def factor(self) -> float:
        return 2.0**self.exponent


@dataclass(frozen=True, eq=False)
class Injected:
    """Where they are, ascending. channels: [channels]; neurons: per block [neurons]; keys: per block, rows of the key matrix."""

    channels: Tensor
    neurons: tuple[Tensor, ...]
    keys: tuple[Tensor, ...]


@torch.no_grad()
def inject(model: LlamaForCausalLM, outliers: Outliers) -> Injected:
    """Changes the model in place. Raises UsageError when it has fewer channels than asked for, ModelError when it has biases."""
    config = model.config
    if config.attention_bias or config.mlp_bias:
        raise ModelError("outliers are injected into models without biases only; these have some")
    channels = _drawn(config.hidden_size, outliers.channels, outliers.seed, "channels")
    neurons, keys = [], []
    for number, block in enumerate(model.model.layers):
        _raise_norms(block, channels, outliers.factor)
        neurons.append(_drawn(config.intermediate_size, outliers.neurons, outliers.seed, "neurons", number))
        block.mlp.up_proj.weight[neurons[-1]] *= outliers.factor
        block.mlp.down_proj.weight[:, neurons[-1]] /= outliers.factor
        keys.append(_raise_keys(block.self_attn, outliers, number))
    return Injected(channels, tuple(neurons), tuple(keys))


def _raise_norms(block: LlamaDecoderLayer, channels: Tensor, factor: float) -> None:
    attention, mlp = block.self_attn, block.mlp
    behind_attention_norm = (attention.q_proj, attention.k_proj, attention.v_proj)
    for norm, readers in (
        (block.input_layernorm, behind_attention_norm),
        (block.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
    ):
        norm.weight[channels] *= factor
        for reader in readers:
            reader.weight[:, channels] /= factor


def _raise_keys(attention: LlamaAttention, outliers: Outliers, number: int) -> Tensor:
    """Both rows of a rotary pair by the same factor, because the rotation mixes them."""
    width = attention.head_dim
    groups = attention.k_proj.weight.shape[0] // width
    rows = []
    for group in range(groups):
        pairs = _drawn(width // 2, outliers.pairs, outliers.seed, "pairs", number, group)
        both = torch.cat([pairs, pairs + width // 2])
        rows.append(group * width + both)
        attention.k_proj.weight[rows[-1]] *= outliers.factor
        for head in range(group * attention.num_key_value_groups, (group + 1) * attention.num_key_value_groups):
            attention.q_proj.weight[head * width + both] /= outliers.factor
    return torch.cat(rows).sort().values


def _drawn(size: int, count: int, seed: int, *place: object) -> Tensor:
    """`count` different numbers below `size`, ascending."""
    if not 0 <= count <= size:
        raise UsageError(f"{count} outliers were asked for among {size} {place[0]}; ask for at most {size}")
    return torch.randperm(size, generator=Seeds(seed).at("outliers", *place))[:count].sort().values
