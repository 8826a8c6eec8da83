"""A config of transformers' own that describes a model whose widths have changed.

Pruning may leave every layer equally wide, only narrower than the config says: then the config is mended, and nothing of
ours is needed to open the result. Layers that differ in width are refused with their names. Biases that only some matrices
were given become biases of all that the config switches on together; the new ones are zero.
"""

import copy
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from trimtab.anatomy.exceptions import role_of
from trimtab.core.errors import UsageError
from trimtab.core.places import Role
from trimtab.engine.packed_linear import PackedLinear
from trimtab.host.checkpoint import skeleton

INNER = ("intermediate_size", "ffn_dim", "n_inner")
SWITCHES = ("mlp_bias", "attention_bias")
NAMED = 3
Described = dict[str, tuple[tuple[int, int], bool]]


def stock_config(model: PreTrainedModel) -> Any:
    """The model's config without anything of ours, with the widths and biases that are there; `model` gets missing zero biases.

    Raises `UsageError` naming the matrices that no such config describes.
    """
    config = copy.deepcopy(model.config)
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config
    there = _linears(model)
    if _different(there, config, model):
        _mend(config.get_text_config(), there)
        _check_config(config)
    left = _different(there, config, model)
    added = [path for path in left if _only_lacks_bias(there[path], left[path])]
    if len(added) < len(left):
        raise UsageError(_refusal(there, {path: wanted for path, wanted in left.items() if path not in added}))
    for path in added:
        module, size = model.get_submodule(path), there[path][0][0]
        module.register_parameter("bias", nn.Parameter(torch.zeros(size, dtype=model.dtype)))
    return config


def equally_wide(model: PreTrainedModel) -> list[str]:
    """The model's own config says the widths that all layers have, from now on; a note if it has no words for them."""
    try:
        vars(model.config).update(vars(stock_config(model)))
    except UsageError as refusal:
        return [f"not described by the family's own config, so the result opens with trimtab installed only: {refusal}"]
    return []


def _check_config(config: Any) -> None:
    """Raises `UsageError` where transformers would not read its own config back: some families want certain head counts."""
    try:
        type(config).from_dict(config.to_dict())
    except (ValueError, StrictDataclassError) as error:
        said = " ".join(str(error).split())
        raise UsageError(f"transformers refuses the config of these widths: {said:.200}; prune to other widths") from error


def _linears(model: nn.Module) -> Described:
    """[out, in] and whether there is a bias, of every linear layer that is not inside of a stack of experts."""
    found: Described = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | PackedLinear):
            found[path] = (module.out_features, module.in_features), module.bias is not None
        elif isinstance(module, Conv1D):
            found[path] = (module.weight.shape[1], module.weight.shape[0]), True
    return found


def _different(there: Described, config: Any, model: PreTrainedModel) -> Described:
    """What the config would build, where that is something else."""
    built = _linears(skeleton(config, type(model)))
    return {path: built[path] for path, now in there.items() if path in built and built[path] != now}


def _mend(config: Any, there: Described) -> None:
    """Sets the sizes that all layers agree on."""
    sizes = {role: {shape for path, (shape, _) in there.items() if role_of(path) is role} for role in Role}
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    inner, out = (_only({shape[1] for shape in sizes[role]}) for role in (Role.DOWN, Role.O))
    keys = _only({shape[0] for shape in sizes[Role.K]}) or _keys_of(_only({shape[0] for shape in sizes[Role.QKV]}), out)
    for name in INNER:
        if inner and hasattr(config, name):
            setattr(config, name, inner)
    if out and keys and out % head == keys % head == 0 and (out // head, keys // head) != _heads(config):
        config.head_dim, config.num_attention_heads, config.num_key_value_heads = head, out // head, keys // head
    for switch, roles in zip(SWITCHES, ((Role.GATE, Role.UP, Role.DOWN), (Role.Q, Role.K, Role.V, Role.O)), strict=True):
        if hasattr(config, switch) and any(bias for path, (_, bias) in there.items() if role_of(path) in roles):
            setattr(config, switch, True)


def _heads(config: Any) -> tuple[int, int]:
    heads = int(config.num_attention_heads)
    return heads, int(getattr(config, "num_key_value_heads", None) or heads)


def _only(sizes: set[int]) -> int | None:
    return sizes.pop() if len(sizes) == 1 else None


def _keys_of(fused: int | None, out: int | None) -> int | None:
    return (fused - out) // 2 if fused and out else None


def _only_lacks_bias(now: tuple[tuple[int, int], bool], wanted: tuple[tuple[int, int], bool]) -> bool:
    return now[0] == wanted[0] and wanted[1] and not now[1]


def _refusal(there: Described, wanted: Described) -> str:
    names = [f"{path} is {_words(there[path])}, not {_words(wanted[path])}" for path in sorted(wanted)[:NAMED]]
    more = f" and {len(wanted) - NAMED} more" if len(wanted) > NAMED else ""
    return f"a stock config has one width for all layers: {'; '.join(names)}{more}; prune every layer to the same width"


def _words(described: tuple[tuple[int, int], bool]) -> str:
    (out, in_), bias = described
    return f"{out} x {in_}{' with a bias' if bias else ''}"
