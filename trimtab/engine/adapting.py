"""Puts deltas beside the matrices of a model, and folds them in where that is exact.

A delta becomes a child of the layer it belongs to, and a forward hook adds what it says to the layer's output. No module is
exchanged, so plain, transposed and packed layers are all the same here, and the model's own tensors keep their names.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from trimtab.anatomy import Anatomy
from trimtab.anatomy.sites import is_conv1d, is_linear
from trimtab.core.errors import UsageError
from trimtab.core.kinds import Seen, Statistic
from trimtab.core.listening import Listener, ListeningDelta
from trimtab.core.places import Role, Site
from trimtab.core.progress import Watcher, unwatched
from trimtab.core.recipe import Where
from trimtab.core.seeds import Seeds
from trimtab.core.trained import AdapterMethod, Chosen, Delta
from trimtab.engine.observing import collected, determined
from trimtab.engine.plan import resolve
from trimtab.engine.surgery import place
from trimtab.engine.sweep import Stream
from trimtab.tensors.products import fast_products

CHILD = "delta"
FEW = 3  # names in a message


def attach(
    anatomy: Anatomy,
    method: AdapterMethod,
    where: Where,
    seeds: Seeds,
    shown: Sequence[Tensor] = (),
    watch: Watcher = unwatched,
) -> dict[str, Delta]:
    """Freezes the model and puts a fresh delta beside every chosen matrix; by path of the layer, in forward order.

    shown: token ids [windows, length] each, for methods that look at inputs. Raises `UsageError` before anything is changed where
    the method does not fit a matrix, or a matrix has no layer of its own; `CalibrationError` where that decides nothing.
    """
    sites = chosen(anatomy, method, where)
    for site in sites:
        method.fits(site)
    of_site = [need for need in method.needs if need is not Chosen]
    found = _looked_at(anatomy, of_site, sites, shown, watch) if of_site else {}
    anatomy.model.requires_grad_(False)
    made, common = {}, dict[Any, Any]()
    for site in sites:
        values = {need: Chosen(sites) if need is Chosen else found[need].pop(site) for need in method.needs}
        seen = Seen(values, seeds.at("attach", site.name), common)
        with determined(f"{method.card.id} at {site.name}"):
            made[site.path] = method.attach(anatomy.weight(site), seen, site)
    beside(anatomy.model, made)
    return made


def needs_text(method: AdapterMethod) -> bool:
    """Whether it has to be shown something before it is trained."""
    return any(need is not Chosen for need in method.needs)


def _looked_at(
    anatomy: Anatomy, needs: Sequence[type[Statistic]], sites: Sequence[Site], shown: Sequence[Tensor], watch: Watcher
) -> dict[type, Any]:
    training = anatomy.model.training
    anatomy.model.eval()
    try:
        with torch.no_grad(), fast_products():
            return collected(Stream(anatomy, shown), (), needs, sites, watch)
    finally:
        anatomy.model.train(training)


def chosen(anatomy: Anatomy, method: AdapterMethod, where: Where) -> tuple[Site, ...]:
    """The matrices that `where` names; without `only`, those of the blocks that the method wants and that are layers."""
    sites, _ = resolve(anatomy, where)
    if where.only:
        for site in sites:
            if not _is_layer(anatomy, site):
                raise UsageError(f"{site.name} is no linear layer inside a block; an adapter cannot stand beside it")
        return sites
    found = tuple(site for site in sites if _is_layer(anatomy, site) and method.wants(site))
    if not found:
        raise UsageError(f"{method.card.id} finds no matrix of the kind that it is for; name some with --only")
    return found


def beside(model: nn.Module, deltas: Mapping[str, Delta]) -> None:
    """Puts deltas beside the layers at these paths. Raises `UsageError` where one stands already."""
    for path in deltas:
        if hasattr(model.get_submodule(path), CHILD):
            raise UsageError(f"{path} has an adapter already; merge it, or take it off with `detach`")
    for path, delta in deltas.items():
        layer = model.get_submodule(path)
        layer.add_module(CHILD, delta.train(layer.training))
        handle = layer.register_forward_hook(_add)
        layer.__dict__["delta_handle"] = handle  # past nn.Module's bookkeeping: a handle is no part of the state
    listeners = {id(d.listener): d.listener for d in deltas.values() if isinstance(d, ListeningDelta)}
    whole = getattr(model, "base_model", model)  # without the head, which not everybody asks for
    for listener in listeners.values():
        handle = whole.register_forward_pre_hook(partial(_hear, listener), with_kwargs=True)
        model.__dict__.setdefault("listener_handles", []).append(handle)


def deltas(model: nn.Module) -> dict[str, Delta]:
    """Those that are there, by path of the layer."""
    found = {path: getattr(module, CHILD, None) for path, module in model.named_modules()}
    return {path: delta for path, delta in found.items() if isinstance(delta, Delta)}


def detach(model: nn.Module) -> dict[str, Delta]:
    """Takes all deltas off and returns them; the model is what it was before."""
    found = deltas(model)
    for path in found:
        layer = model.get_submodule(path)
        layer.__dict__.pop("delta_handle").remove()
        delattr(layer, CHILD)
    for handle in model.__dict__.pop("listener_handles", []):
        handle.remove()
    return found


def merge(anatomy: Anatomy) -> list[str]:
    """Folds every delta into its matrix; paths of the layers. Raises `UsageError`, changing nothing, where one cannot be."""
    there = deltas(anatomy.model)
    sites = {site.path: site for site in anatomy.sites if site.path in there and site.index is None}
    weights = {path: there[path].merged(anatomy.weight(site)) for path, site in sites.items()}
    cannot = [path for path, weight in weights.items() if weight is None]
    if cannot:
        first = anatomy.weight(sites[cannot[0]])
        raise UsageError(
            f"{type(there[cannot[0]]).__name__} cannot be folded exactly into {_some(cannot)}, stored as {type(first).__name__}; "
            f"keep the adapter beside the model"
        )
    detach(anatomy.model)
    for path, weight in weights.items():
        assert weight is not None
        site = sites[path]
        place(anatomy.model, path, weight, anatomy.bias(site), site.transposed)
    return list(weights)


def _hear(listener: Listener, model: Any, given: tuple[Any, ...], options: dict[str, Any]) -> None:
    """The hook of the whole model, before it computes."""
    embedded, cache, mask = (options.get(name) for name in ("inputs_embeds", "past_key_values", "attention_mask"))
    if embedded is None:
        with torch.no_grad():
            embedded = model.get_input_embeddings()(given[0] if given else options["input_ids"])
    past = 0 if cache is None else int(cache.get_seq_length())
    if mask is None:
        mask = torch.ones(len(embedded), past + embedded.shape[1], device=embedded.device)
    listener.hear(embedded, mask.bool(), past)


def _add(layer: nn.Module, given: tuple[Any, ...], output: Tensor) -> Tensor:
    """The hook. A delta computes in its own precision."""
    delta = cast(Delta, layer.get_submodule(CHILD))
    dtype = next(p.dtype for p in delta.parameters() if p.is_floating_point())
    bias = cast(Tensor | None, layer.bias)
    product = output if bias is None else output - bias
    added: Tensor = delta(given[0].to(dtype), product.to(dtype), _matrix_of(layer, dtype))
    return output + added.to(output.dtype)


def _matrix_of(layer: nn.Module, dtype: torch.dtype) -> Callable[[], Tensor]:
    def matrix() -> Tensor:
        if hasattr(layer, "weight_value"):
            return cast(Tensor, layer.matrix(dtype))  # type: ignore[operator]
        weight = cast(Tensor, layer.weight).detach().to(dtype)
        return weight.mT if is_conv1d(layer) else weight

    return matrix


def _is_layer(anatomy: Anatomy, site: Site) -> bool:
    inside = site.block is not None and site.index is None and site.role is not Role.ROUTER
    return inside and is_linear(anatomy.module(site))


def _some(names: Sequence[str]) -> str:
    more = len(names) - FEW
    return ", ".join(names[:FEW]) + (f" and {more} more" if more > 0 else "")
