"""Finding the weight matrices, however they are stored.

A matrix is held in one of six ways: by an `nn.Linear`; by a `Conv1D` (stored [in, out]); by a module that was compressed
(attribute `weight_value`); by any other module with a two-dimensional `weight` of its own (routers); as one slice of a
three-dimensional parameter [experts, out, in] (or [experts, in, out] where the module says `is_transposed`); or as one
entry of a compressed stack, a module with the attribute `weight_values` that took the place of such a parameter and answers
`stack[expert]` with the matrix that the product needs.

What is found here are candidates; `survey.py` keeps those that take part in the forward pass.
"""

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from trimtab.anatomy.exceptions import role_of
from trimtab.core.errors import ModelError
from trimtab.core.kinds import LinearWeight
from trimtab.core.places import Role, Site


def candidates(model: nn.Module, blocks: str) -> list[Site]:
    """Every matrix that might be used, in module order; the embedding first, the head last."""
    embed, head = outer_site(model, Role.EMBED), outer_site(model, Role.HEAD)
    found, within = [embed], ""
    for path, module in model.named_modules():
        # What is inside of a compressed stack is the stack's own business.
        if path not in (embed.path, head.path) and not (within and path.startswith(within)):
            found += _sites_of(path, module, _block_of(path, blocks))
        if hasattr(module, "weight_values"):
            within = path + "."
    return [*found, head]


def outer_site(model: nn.Module, role: Role) -> Site:
    """The embedding or the output head, both [vocabulary, width]. `ModelError` if the model has none."""
    getter = {Role.EMBED: "get_input_embeddings", Role.HEAD: "get_output_embeddings"}[role]
    module = getattr(model, getter, lambda: None)()
    if module is None:
        raise ModelError(f"{type(model).__name__} has no {role} matrix; load it as a causal language model")
    path = next(path for path, other in model.named_modules() if other is module)
    return Site(path, role, _shape(module))


def is_tied(model: nn.Module) -> bool:
    """Do the embedding and the head share one matrix?"""
    embed, head = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[operator]
    return _held(embed) is _held(head)


def is_linear(module: nn.Module) -> bool:
    """Is the module nothing but a matrix and a bias?"""
    return isinstance(module, nn.Linear) or is_conv1d(module) or hasattr(module, "weight_value")


def is_conv1d(module: nn.Module) -> bool:
    """GPT-2's linear layer, which stores its weight as [in, out]."""
    return type(module).__name__ == "Conv1D" and isinstance(getattr(module, "nf", None), int)


def parent(path: str) -> str:
    """Path of the module that contains a path."""
    return path.rpartition(".")[0]


def device_of(module: nn.Module) -> torch.device:
    """The device of the module's first tensor."""
    return next(t.device for tensors in (module.parameters(), module.buffers()) for t in tensors)


def stack_of(model: nn.Module, site: Site) -> nn.Parameter | nn.Module:
    """The three-dimensional parameter, or the compressed stack, that an expert's matrix is a part of."""
    found: nn.Parameter | nn.Module = getattr(model.get_submodule(parent(site.path)), site.path.rpartition(".")[2])
    return found


def _sites_of(path: str, module: nn.Module, block: int | None) -> Iterator[Site]:
    if is_linear(module):
        conv1d = is_conv1d(module) and not hasattr(module, "weight_value")
        yield Site(path, role_of(path), _shape(module), block, transposed=conv1d)
    elif block is None:
        return
    elif hasattr(module, "weight_values"):
        for index, value in enumerate(cast(Sequence[LinearWeight], module.weight_values)):
            yield Site(path, role_of(path), value.shape, block, index)
    elif not isinstance(module, nn.Embedding | _ConvNd):
        yield from _own_matrices(path, module, block)


def _own_matrices(path: str, module: nn.Module, block: int) -> Iterator[Site]:
    transposed = bool(getattr(module, "is_transposed", False))
    for name, parameter in module.named_parameters(recurse=False):
        if name == "weight" and parameter.ndim == 2:
            yield Site(path, role_of(path), _shape(module), block)
        elif parameter.ndim == 3:
            experts, *shape = parameter.shape
            rows, columns = reversed(shape) if transposed else shape
            for index in range(experts):
                at = f"{path}.{name}"
                yield Site(at, role_of(at), (rows, columns), block, index, transposed)


def _block_of(path: str, blocks: str) -> int | None:
    return int(path[len(blocks) + 1 :].split(".")[0]) if path.startswith(blocks + ".") else None


def _held(module: nn.Module) -> object:
    return module.weight_value if hasattr(module, "weight_value") else module.weight


def _shape(module: nn.Module) -> tuple[int, int]:
    """[out, in]"""
    if hasattr(module, "weight_value"):
        return cast(LinearWeight, module.weight_value).shape
    weight = module.weight
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        raise ModelError(f"{type(module).__name__} holds no [out, in] matrix; load the model without foreign quantization")
    rows, columns = weight.shape
    return (columns, rows) if is_conv1d(module) else (rows, columns)
