"""xKV: neighbouring layers' keys, and their values, lie close to one subspace, so that one factorization serves several layers.

    [K_1 .. K_G]  ~  A [B_1 .. B_G],   A [tokens, rank] shared, B_l [rank, heads * width] of layer l

once, when the prompt has been read; tokens that come later stay as they are. Keys are factored before their rotation, because
after it they span everything: what the rotary embedding did is undone, and done again whenever the keys are asked for.
"Cross-Layer SVD for KV-Cache Compression", arXiv:2503.18893. Attention inside the prompt sees exact keys and values, as
there. The subspace is found through the gram of the channels, in float64. Rows of a batch are factored one by one, and are to
be of one length. A group of one layer is the factorization layer by layer that the paper compares with.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from trimtab.core.errors import UsageError
from trimtab.host.kv.quantized import full_layers

Rotary = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Group:
    """What several layers hold together. factors: of keys and of values, A [batch, tokens, rank], B [batch, rank, channels]."""

    def __init__(self, size: int, ranks: tuple[int, int], rotary: Rotary):
        self.size, self.ranks, self.rotary = size, ranks, rotary
        self.layers: list[FactoredLayer] = []
        self.factors: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None

    def factor(self) -> None:
        """All layers have read the prompt: what they hold is factored and let go of."""
        if len({layer.keys.shape for layer in self.layers}) > 1:
            raise UsageError("xkv: the layers of a group differ in their heads; use a group of 1")
        keys = torch.cat([_flat(self.turned(layer.keys, back=True)) for layer in self.layers], dim=2)
        values = torch.cat([_flat(layer.values) for layer in self.layers], dim=2)
        self.factors = (leading(keys, self.ranks[0]), leading(values, self.ranks[1]))
        for layer in self.layers:
            layer.prompt = int(layer.keys.shape[2])
            layer.keys, layer.values = layer.keys[:, :, :0].clone(), layer.values[:, :, :0].clone()

    def restored(self, layer: "FactoredLayer") -> tuple[Tensor, Tensor]:
        """Keys and values [batch, heads, prompt, width] of one layer, keys rotated again."""
        assert self.factors is not None
        number, found = self.layers.index(layer), []
        for left, right in self.factors:
            channels = right.shape[2] // self.size
            part = left @ right[:, :, number * channels : (number + 1) * channels]
            found.append(part.unflatten(2, (layer.heads, -1)).transpose(1, 2))
        return self.turned(found[0], back=False), found[1]

    def turned(self, keys: Tensor, back: bool) -> Tensor:
        """keys [batch, heads, tokens, width] with the rotation of positions 0, 1, ... done, or undone."""
        positions = torch.arange(keys.shape[2], device=keys.device)[None]
        cos, sin = (part.float()[:, None] for part in self.rotary(keys.float(), positions))
        if cos.shape[-1] != keys.shape[-1]:
            raise UsageError(f"xkv: the rotation turns {cos.shape[-1]} of {keys.shape[-1]} channels; only whole heads are known")
        wide, half = keys.float(), keys.shape[-1] // 2
        across = torch.cat([-wide[..., half:], wide[..., :half]], dim=-1)
        # Some families scale the rotation; its inverse is the transpose over that scale squared.
        turned = (wide * cos - across * sin) / (cos.square() + sin.square()) if back else wide * cos + across * sin
        return turned.to(keys.dtype)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for pair in self.factors or () for part in pair)


class FactoredLayer(CacheLayerMixin):
    """One layer of a group; `keys` and `values` are those of the tokens after the prompt, once that is factored."""

    is_sliding = False
    is_croppable = False

    def __init__(self, group: Group):
        super().__init__()
        self.group, self.prompt, self.heads = group, 0, 0
        group.layers.append(self)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device, self.heads = key_states.dtype, key_states.device, int(key_states.shape[1])
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The first call is the prompt and is answered exactly; with the last layer of the group its prompt is factored."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = torch.cat([self.keys, key_states], dim=2)
        self.values = torch.cat([self.values, value_states], dim=2)
        if self.group.factors is not None:
            keys, values = self.group.restored(self)
            return torch.cat([keys, self.keys], dim=2), torch.cat([values, self.values], dim=2)
        answer = self.keys, self.values
        if self is self.group.layers[-1]:
            self.group.factor()
        return answer

    def get_seq_length(self) -> int:
        return self.prompt + int(self.keys.shape[2]) if self.is_initialized else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        self.keys = self.values = self.group.factors = None
        self.prompt, self.is_initialized = 0, False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Beams continue one prompt, whose factors are then the same; of different ones the first layer reorders them."""
        if not self.is_initialized:
            return
        beam_idx = beam_idx.to(self.device)
        self.keys, self.values = self.keys[beam_idx], self.values[beam_idx]
        if self is self.group.layers[0] and self.group.factors is not None:
            keys, values = (tuple(part[beam_idx] for part in pair) for pair in self.group.factors)
            self.group.factors = ((keys[0], keys[1]), (values[0], values[1]))

    @property
    def nbytes(self) -> int:
        """What is held now; what the group holds together is counted with its first layer."""
        if not self.is_initialized:
            return 0
        return int(self.keys.nbytes + self.values.nbytes) + (self.group.nbytes if self is self.group.layers[0] else 0)


def xkv_cache(model: PreTrainedModel, ranks: tuple[int, int], group: int = 4) -> Cache:
    """An empty cache for one prompt and what follows it. ranks: of keys and of values; group: layers that share a factor A.

    It holds tokens * (sum of ranks) + channels * group * (sum of ranks) numbers for every `group` layers instead of
    2 * tokens * channels * group, and `cache_bytes` counts them. What is left over at the end are the layers of a last group
    with as many fewer ranks, rounded up. Raises `UsageError` where layers attend to a part only, where there is no rotary
    embedding, and for ranks or a group below 1.
    """
    layers = full_layers(model.config, "xkv")
    if group < 1:
        raise UsageError(f"xkv: a group has at least 1 layer, got {group}")
    if min(ranks) < 1:
        raise UsageError(f"xkv: ranks are at least 1, got {ranks[0]} and {ranks[1]}")
    rotary, held = _rotary(model), list[Any]()
    for first in range(0, layers, group):
        size = min(group, layers - first)
        shared = Group(size, (-(-ranks[0] * size // group), -(-ranks[1] * size // group)), rotary)
        held += [FactoredLayer(shared) for _ in range(size)]
    return Cache(layers=held)


def leading(states: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best A [batch, tokens, rank] and B [batch, rank, channels] for states [batch, tokens, channels], in their dtype.

    rank: at most as many as there are tokens and channels. B has orthonormal rows.
    """
    wide = states.double()
    _, vectors = torch.linalg.eigh(wide.mT @ wide)
    basis = vectors[:, :, -min(rank, *states.shape[1:]) :]
    return (wide @ basis).to(states.dtype), basis.mT.to(states.dtype).contiguous()


def _flat(states: Tensor) -> Tensor:
    """[batch, heads, tokens, width] -> [batch, tokens, heads * width]."""
    return states.transpose(1, 2).flatten(2)


def _rotary(model: PreTrainedModel) -> Rotary:
    """Raises `UsageError` unless the whole model rotates all its keys alike."""
    found: Sequence[Any] = [module for name, module in model.named_modules() if name.rpartition(".")[2] == "rotary_emb"]
    if len(found) != 1 or getattr(found[0], "inv_freq", None) is None:
        raise UsageError(f"xkv undoes one rotary embedding; {model.config.model_type} has {len(found)} that it knows")
    rotary: Rotary = found[0]
    return rotary
