"""Finding the decoder blocks: the one list of modules that is as long as the config says the model is deep."""

from typing import Any

from torch import nn

from trimtab.core.errors import ModelError


def blocks_path(model: nn.Module) -> str:
    """Dotted path of the `nn.ModuleList` of decoder blocks. `ModelError` if there is no such list, or more than one."""
    name, depth = type(model).__name__, _depth(model)
    lists = {path: m for path, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == depth}
    # A list inside another one (as many experts as blocks, say) belongs to a block.
    outer: list[str] = [path for path in lists if not any(path.startswith(other + ".") for other in lists)]
    if not outer:
        raise ModelError(f"{name} has no list of {depth} blocks, although its config says num_hidden_layers={depth}")
    if len(outer) > 1:
        raise ModelError(f"{name} has several lists of {depth} blocks ({', '.join(outer)}); only decoders are supported")
    return outer[0]


def text_config(model: nn.Module) -> Any:
    """The config of the text decoder. `ModelError` if the model has none."""
    config = getattr(model, "config", None)
    if config is None:
        raise ModelError(f"{type(model).__name__} has no config; give a causal language model")
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _depth(model: nn.Module) -> int:
    depth = getattr(text_config(model), "num_hidden_layers", None)
    if not isinstance(depth, int) or depth < 1:
        raise ModelError(f"{type(model).__name__}: its config says num_hidden_layers={depth!r}; expected at least 1")
    return depth
