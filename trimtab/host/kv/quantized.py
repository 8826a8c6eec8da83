"""A cache of keys and values in few bits, for `past_key_values` of any model whose layers attend to everything before them.

What a layer is given back is what the cache holds: the last `window` tokens as they came, those before them as codes, asymmetric,
every token's head on a grid of its own (or groups of its channels). So the prompt is read through the rounded keys and values
too, as papers on 4-bit caches measure it. A token is rounded once, when it leaves the window, and never again. At 16 bits
nothing is rounded. `turned` heads are rounded behind a Hadamard transform and turned back when they are asked for, so that
one loud channel does not make the grid of its head coarse: QuaRot's rotation of keys after their rotary embedding
(arXiv:2404.00456), done in the cache instead of to the queries.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin

from trimtab.core.errors import UsageError
from trimtab.tensors.hadamard import inverse, largest_block, transform
from trimtab.tensors.token_codes import TokenCodes

WHOLE = 16  # bits: as they come


class QuantizedLayer(CacheLayerMixin):
    """Keys and values of one layer. bits: 2 to 8, or 16; group_size: channels that share a grid, 0 = a head."""

    is_sliding = False
    is_croppable = True

    def __init__(self, bits: int, group_size: int = 0, window: int = 0, turned: bool = False):
        super().__init__()
        self.bits, self.group_size, self.window, self.turned = bits, group_size, window, turned
        self.codes: tuple[TokenCodes, TokenCodes] | None = None  # of keys and values; `keys`, `values` hold the window

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        for states in (key_states, value_states):
            if self.bits != WHOLE and states.shape[-1] % (self.group_size or states.shape[-1]):
                raise UsageError(f"a cache with group_size {self.group_size} cannot hold heads of {states.shape[-1]} channels")
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """key_states, value_states [batch, heads, new tokens, width] -> all of them, as the cache holds them now."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = torch.cat([self.keys, key_states], dim=2)
        self.values = torch.cat([self.values, value_states], dim=2)
        self._round(self.keys.shape[2] - self.window)
        if self.codes is None:
            return self.keys, self.values
        keys, values = map(self._restored, self.codes)
        return torch.cat([keys, self.keys], dim=2), torch.cat([values, self.values], dim=2)

    def _round(self, tokens: int) -> None:
        """Turn so many tokens, the oldest of the window, into codes."""
        if self.bits == WHOLE or tokens <= 0:
            return
        old = self.keys[:, :, :tokens], self.values[:, :, :tokens]
        new = tuple(map(self._coded, old))
        held = new if self.codes is None else tuple(a.and_then(b) for a, b in zip(self.codes, new, strict=True))
        self.codes = (held[0], held[1])
        # A view would keep what was rounded alive.
        self.keys, self.values = self.keys[:, :, tokens:].clone(), self.values[:, :, tokens:].clone()

    def _coded(self, states: Tensor) -> TokenCodes:
        width = states.shape[-1]
        turned = transform(states.float(), largest_block(width)) if self.turned else states
        return TokenCodes.of(turned, self.bits, self.group_size or width)

    def _restored(self, codes: TokenCodes) -> Tensor:
        if not self.turned:
            return codes.values(self.dtype)
        states = codes.values(torch.float32)
        return inverse(states, largest_block(states.shape[-1])).to(self.dtype)

    def get_seq_length(self) -> int:
        if not self.is_initialized:
            return 0
        return int(self.keys.shape[2]) + (0 if self.codes is None else self.codes[0].tokens)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        self.codes = self.keys = self.values = None
        self.is_initialized = False

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last -tokens_to_remove tokens; what was rounded stays so."""
        left = self.get_seq_length() - abs(tokens_to_remove)
        coded = 0 if self.codes is None else self.codes[0].tokens
        if self.codes is not None:
            self.codes = (self.codes[0].first(left), self.codes[1].first(left))
        if self.is_initialized:
            kept = max(left - coded, 0)
            self.keys, self.values = self.keys[:, :, :kept], self.values[:, :, :kept]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        if not self.is_initialized:
            return
        indices = indices.to(self.device)
        self.keys, self.values = self.keys[indices], self.values[indices]
        if self.codes is not None:
            self.codes = (self.codes[0].rows(indices), self.codes[1].rows(indices))

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.is_initialized:
            self.batch_select_indices(torch.arange(len(self.keys)).repeat_interleave(repeats))

    @property
    def nbytes(self) -> int:
        """What is held now."""
        if not self.is_initialized:
            return 0
        return int(self.keys.nbytes + self.values.nbytes + sum(codes.nbytes for codes in self.codes or ()))


def quantized_cache(config: PreTrainedConfig, bits: int, group_size: int = 0, window: int = 0, turned: bool = False) -> Cache:
    """An empty cache for a model with this config. window: how many tokens, the last ones, stay as they are.

    Raises `UsageError` for bits other than 2 to 8 and 16, and for models whose layers do not all attend to everything.
    """
    check_bits(bits)
    if group_size < 0 or window < 0:
        raise UsageError(f"a cache's group_size and window are at least 0, got {group_size} and {window}")
    layers = full_layers(config, "a quantized cache")
    return Cache(layers=[QuantizedLayer(bits, group_size, window, turned) for _ in range(layers)])


def check_bits(bits: int) -> None:
    """Raises `UsageError`."""
    if bits != WHOLE and not 2 <= bits <= 8:
        raise UsageError(f"keys and values take 2 to 8 bits, or 16 for as they are, got {bits}")


def full_layers(config: PreTrainedConfig, who: str) -> int:
    """How many layers there are. Raises `UsageError` where some attend to a part only, or not at all."""
    text = config.get_text_config(decoder=True)
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    if kinds == {"full_attention"} and getattr(text, "sliding_window", None) and getattr(text, "layer_types", None) is None:
        kinds = {"sliding_attention"}
    if kinds != {"full_attention"} or getattr(text, "num_kv_shared_layers", 0):
        raise UsageError(f"{who} holds layers of full attention only; {config.model_type} has {', '.join(sorted(kinds))}")
    return int(text.num_hidden_layers)


def cache_bytes(cache: Cache) -> int:
    """Bytes of keys and values that a cache holds now, everything counted."""
    return sum(_held(layer) for layer in cache.layers)


def _held(layer: Any) -> int:
    if hasattr(layer, "nbytes"):
        return int(layer.nbytes)
    return sum(states.nbytes for states in (layer.keys, layer.values) if states is not None)
