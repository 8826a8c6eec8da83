"""The only code that exchanges modules inside a host model, and the description from which a loader repeats it.

`place` puts a weight where a matrix was. `describe` compares a model with the skeleton its config builds and says, module
by module, what differs; `shape` carries that out on a skeleton. So nothing has to be remembered while a model is changed:
what a checkpoint needs to know can always be read off the model itself.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.core.errors import ModelError, TrimtabError, first_line
from trimtab.core.kinds import LinearWeight
from trimtab.engine.basis import LEFT, BasisLinear, borrowers, lend
from trimtab.engine.packed_linear import PackedLinear, PackedStack
from trimtab.engine.shared import SharedLinear, share
from trimtab.formats import Chain, Dense

WIDEST = 1 << 24
MOST_EXPERTS = 1 << 16
Modules = dict[str, dict[str, Any]]


def place(
    model: nn.Module,
    path: str,
    weight: LinearWeight,
    bias: Tensor | None = None,
    transposed: bool = False,
    index: int | None = None,
) -> None:
    """Puts `weight` [out, in] and `bias` [out] (None: no bias) at a dotted path, in the model's dtype and on its device.

    Dense weights give plain layers (a Conv1D stays one), others a `PackedLinear`. With `index` the path is that of a 3-D
    parameter of experts. Raises `ModelError` where the host's module could not use the weight.
    """
    if index is not None:
        _place_expert(model, path, weight, transposed, index)
        return
    old = _module(model, path)
    if not isinstance(weight, Chain) and any(borrowers(model, f"{path}.")):
        raise ModelError(f"other matrices stand on the basis of {path}; it can only be another chain, leave it out of this step")
    like = _reference(old, model)
    if bias is not None:
        bias = bias.detach().to(device=like.device, dtype=like.dtype)
    if not _is_linear(old):
        _replace_values(old, path, weight)
    elif isinstance(weight, Dense):
        _set(model, path, _plain(weight, bias, like, _layer(old) if transposed else nn.Linear), old)
    else:
        packed = PackedLinear.of(weight, bias).to(like.device)
        packed.instead_of = _layer(old)
        _set(model, path, packed, old)


def resize_linear(model: nn.Module, path: str, out: int, in_: int, bias: bool) -> None:
    """Exchanges the linear layer at `path` of a skeleton for an empty one of this shape."""
    old = _module(model, path)
    if not _is_linear(old):
        raise ModelError(f"{path} is a {type(old).__name__}, which cannot be resized")
    if _is_conv1d(old) and not bias:
        raise ModelError(f"{path}: a Conv1D always has a bias")
    like = _reference(old, model)
    with torch.device(like.device):
        new = type(old)(out, in_) if _is_conv1d(old) else nn.Linear(in_, out, bias=bias)
    _set(model, path, new.to(like.dtype), old)


def shape(model: nn.Module, modules: Mapping[str, Any], dtype: torch.dtype) -> None:
    """Gives a skeleton on the meta device the modules that a checkpoint describes. The description is not trusted.

    modules: dotted path -> {"kind": "dense", "shape": [out, in], "bias": bool}, or of three dimensions for experts;
    {"kind": "stack", ...}; {"kind": "shared", "of": path of the matrix that it uses}; {"kind": "on_basis", "of": path of the
    chain whose last factor it stands on, "shape": [out, rank] of its own part, "bias": bool}; or the spec of a packed weight
    with "bias" beside it. Raises `ModelError` naming the path.
    """
    for path, entry in sorted(modules.items(), key=partial(_turn, modules)):
        try:
            _shape_one(model, path, dict(entry), dtype)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError, TrimtabError) as error:
            raise ModelError(f"cannot build {path!r:.200} as described: {first_line(error):.300}") from error


def describe(model: nn.Module, skeleton: nn.Module) -> Modules:
    """What has to be done to `skeleton` (built from the model's config) for the model's tensors to fit."""
    found: Modules = {}
    paths = {id(module): path for path, module in model.named_modules()}
    inside = ""
    for path, module in model.named_modules():
        if inside and path.startswith(inside):
            continue
        if isinstance(module, PackedStack):
            found[path], inside = module.spec, path + "."
        elif isinstance(module, PackedLinear):
            found[path] = {**module.spec, "bias": module.bias is not None}
        elif isinstance(module, BasisLinear):
            bias = module.left.bias is not None
            size = [module.out_features, module.left.in_features]
            found[path] = {"kind": "on_basis", "of": paths[id(module.lender)], "shape": size, "bias": bias}
        elif path.endswith(f".{LEFT}") and path.removesuffix(f".{LEFT}") in found:
            continue  # as it is described there
        elif isinstance(module, SharedLinear):
            found[path] = {"kind": "shared", "of": paths[id(module.source)]}
        elif isinstance(module, nn.Linear) or _is_conv1d(module):
            now = _entry(module)
            if now != _entry(_module(skeleton, path)):
                found[path] = now
    plain = dict(skeleton.named_parameters())
    for path, parameter in model.named_parameters():
        if parameter.dim() == 3 and path in plain and plain[path].shape != parameter.shape:
            found[path] = {"kind": "dense", "shape": list(parameter.shape)}
    return found


def _turn(modules: Mapping[str, Any], described: tuple[str, Any]) -> int:
    """What uses other matrices comes after them, and what is inside of that, last."""
    path, entry = described
    if path.endswith(f".{LEFT}") and path.removesuffix(f".{LEFT}") in modules:
        return 2
    return int(isinstance(entry, Mapping) and entry.get("kind") in ("shared", "on_basis"))


def _shape_one(model: nn.Module, path: str, entry: dict[str, Any], dtype: torch.dtype) -> None:
    kind = entry["kind"]
    if kind == "stack":
        _experts(model, path)
        _check_stack(entry)
        _exchange_experts(model, path, PackedStack.empty(entry, dtype))
    elif kind == "shared":
        share(model, path, entry["of"])
    elif kind == "on_basis":
        out, rank = (_size(n) for n in entry["shape"])
        lend(model, path, entry["of"], nn.Linear(rank, out, bias=_flag(entry["bias"]), device="meta", dtype=dtype))
    elif kind == "dense":
        sizes = [_size(n) for n in entry["shape"]]
        if len(sizes) == 3:
            _experts(model, path)
            _exchange_experts(model, path, nn.Parameter(torch.empty(sizes, dtype=dtype, device="meta")))
        else:
            out, in_ = sizes
            resize_linear(model, path, out, in_, _flag(entry["bias"]))
    else:
        bias = _flag(entry.pop("bias"))
        linear = _module(model, path)
        if not _is_linear(linear):
            raise ModelError(f"a {type(linear).__name__} cannot hold a packed weight")
        new = PackedLinear.empty(entry, bias, dtype)
        _size(new.out_features), _size(new.in_features)
        new.instead_of = _layer(linear)
        _set(model, path, new, linear)


def _check_stack(entry: dict[str, Any]) -> None:
    _flag(entry["transposed"])
    if not isinstance(entry["experts"], list) or not 1 <= len(entry["experts"]) <= MOST_EXPERTS:
        raise ModelError(f"a stack has 1 to {MOST_EXPERTS} experts")


def _size(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= WIDEST:
        raise ModelError(f"sizes are whole numbers from 1 to {WIDEST}, got {value!r:.40}")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ModelError(f"expected true or false, got {value!r:.40}")
    return value


def _module(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise ModelError(f"the model has no module {path!r:.200}") from error


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | PackedLinear) or _is_conv1d(module)


def _is_conv1d(module: nn.Module) -> bool:
    """GPT-2's layer that stores its matrix transposed. Known by name: this room does not import the host library."""
    return type(module).__name__ == "Conv1D"


def _reference(module: nn.Module, model: nn.Module) -> Tensor:
    """A tensor whose device and dtype (the compute dtype) the successor of `module` shall have."""
    weight = None if isinstance(module, PackedLinear) else getattr(module, "weight", None)
    if isinstance(weight, Tensor):
        return weight
    compute = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    where = next(module.buffers(), compute)
    return torch.empty(0, dtype=compute.dtype, device=where.device)


def _set(model: nn.Module, path: str, new: nn.Module, old: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    new.train(old.training)
    setattr(model.get_submodule(parent), name, new)


def _layer(module: nn.Module) -> type[nn.Module]:
    """The class of a plain layer, also of the one that a packed module replaced."""
    return module.instead_of if isinstance(module, PackedLinear) else type(module)


def _plain(weight: Dense, bias: Tensor | None, like: Tensor, layer: type[nn.Module]) -> nn.Module:
    (out, in_), transposed = weight.shape, layer is not nn.Linear
    # Row by row, as a file would give it back: products of other strides may round otherwise.
    value = weight.weight.detach().to(like.device, like.dtype, copy=True, memory_format=torch.contiguous_format)
    with torch.device("meta"):
        new = layer(out, in_) if transposed else layer(in_, out, bias=bias is not None)
    new.weight = nn.Parameter(value.T.contiguous() if transposed else value)
    if bias is None and transposed:
        bias = torch.zeros(out, dtype=like.dtype, device=like.device)  # a Conv1D cannot do without
    if bias is not None:
        new.bias = nn.Parameter(bias.clone())
    return new


def _replace_values(module: nn.Module, path: str, weight: LinearWeight) -> None:
    """Embeddings, routers: modules with a forward of their own keep it, and can only be given other values."""
    old = getattr(module, "weight", None)
    if not isinstance(weight, Dense) or not isinstance(old, nn.Parameter) or old.shape != weight.shape:
        raise ModelError(f"{path} is a {type(module).__name__}: it keeps a dense matrix of its shape; leave it out of this step")
    value = weight.weight.detach().to(old.device, old.dtype, copy=True, memory_format=torch.contiguous_format)
    module.weight = nn.Parameter(value, requires_grad=old.requires_grad)


def _experts(model: nn.Module, path: str) -> nn.Parameter | PackedStack:
    parent, _, name = path.rpartition(".")
    found = getattr(_module(model, parent), name, None)
    if isinstance(found, PackedStack) or (isinstance(found, nn.Parameter) and found.dim() == 3):
        return found
    raise ModelError(f"the model has no stack of experts {path!r:.200}")


def _place_expert(model: nn.Module, path: str, weight: LinearWeight, transposed: bool, index: int) -> None:
    old = _experts(model, path)
    if not 0 <= index < len(old):
        raise ModelError(f"{path} has {len(old)} experts, there is no number {index}")
    if isinstance(old, nn.Parameter):
        stored = weight.shape[::-1] if transposed else weight.shape
        if isinstance(weight, Dense) and stored == tuple(old.shape[1:]):
            dense = weight.weight
            with torch.no_grad():
                old[index].copy_(dense.T if transposed else dense)
            return
        old = _opened(old, transposed)
        _exchange_experts(model, path, old)
    device, dtype = old.dtype_witness.device, old.dtype_witness.dtype
    if isinstance(weight, Dense):
        weight = Dense(weight.dense().to(dtype))
    setattr(old, str(index), PackedLinear.of(weight).to(device).train(old.training))
    if all(isinstance(w, Dense) and w.shape == weight.shape for w in old.weight_values):
        _exchange_experts(model, path, _closed(old))


def _opened(experts: nn.Parameter, transposed: bool) -> PackedStack:
    matrices = [m.T if transposed else m for m in experts.detach()]
    # Copies: experts that shared one storage could not be saved one by one.
    packed = [PackedLinear.of(Dense(m.clone(memory_format=torch.contiguous_format))) for m in matrices]
    return PackedStack(packed, experts.dtype, transposed).to(experts.device)


def _closed(stack: PackedStack) -> nn.Parameter:
    """A stack of equal dense matrices is a plain parameter again."""
    return nn.Parameter(torch.stack([stack[number] for number in range(len(stack))]).contiguous())


def _exchange_experts(model: nn.Module, path: str, new: PackedStack | nn.Parameter) -> None:
    old = _experts(model, path)
    parent, _, name = path.rpartition(".")
    owner = model.get_submodule(parent)
    if isinstance(new, PackedStack):
        _loop_over_experts(model, path)
        new.train(owner.training)
    if len(old) != len(new):
        raise ModelError(f"{path} has {len(old)} experts, not {len(new)}")
    delattr(owner, name)
    setattr(owner, name, new)


def _loop_over_experts(model: nn.Module, path: str) -> None:
    """Only the eager implementation takes experts one by one; the grouped ones want the whole 3-D tensor."""
    can = getattr(model, "_can_set_experts_implementation", None)
    if can is None or not can():
        raise ModelError(f"{path}: this model family does not loop over its experts; they have to stay dense")
    model.set_experts_implementation("eager")


def _entry(module: nn.Module) -> dict[str, Any]:
    if _is_conv1d(module):
        return {"kind": "dense", "shape": [module.weight.shape[1], module.weight.shape[0]], "bias": True}
    if isinstance(module, nn.Linear):
        return {"kind": "dense", "shape": list(module.weight.shape), "bias": module.bias is not None}
    return {}
