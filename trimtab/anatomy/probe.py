"""Looking at the inputs of matrices while the model runs.

Modules are looked at through forward pre-hooks. Experts have no module of their own: their stack is multiplied slice by
slice inside the expert module's `forward`, so the multiplication itself is intercepted, and the slice's offset in memory
tells the expert. That needs the plain loop over experts, which is switched on for as long as is looked; the loop and
the grouped kernels give the same result up to rounding.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from trimtab.anatomy.sites import device_of, parent, stack_of
from trimtab.core.places import Site

Look = Callable[[Site, Tensor], None]
Product = Callable[[Site, Tensor, Callable[[], Tensor]], Tensor]

PROBE_LENGTH = 8
_PRODUCTS = (torch.nn.functional.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__)


@contextmanager
def looking(model: nn.Module, sites: Sequence[Site], look: Look) -> Iterator[None]:
    """Within, `look(site, x)` is called with the input of every one of the sites, x [..., in], before it is used."""

    def product(site: Site, x: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        look(site, x)
        return compute()

    with ExitStack() as stack:
        for site in sites:
            if site.index is None:
                handle = model.get_submodule(site.path).register_forward_pre_hook(_hook(site, look), with_kwargs=True)
                stack.callback(handle.remove)
        experts = [site for site in sites if site.index is not None]
        if experts:
            stack.enter_context(eager_experts({model.get_submodule(parent(site.path)) for site in experts}))
            stack.enter_context(expert_products(model, experts, product))
        yield


def _hook(site: Site, look: Look) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else next(iter(kwargs.values()))
        look(site, x)

    return hook


@contextmanager
def expert_products(model: nn.Module, sites: Sequence[Site], product: Product) -> Iterator[None]:
    """Within, the product of x [tokens, in] and an expert's matrix is what `product(site, x, compute)` returns."""
    stacks = {site.path: stack_of(model, site) for site in sites}
    lenders = {path: _Lender(stack) for path, stack in stacks.items() if isinstance(stack, nn.Module)}
    experts = {(site.path, site.index): site for site in sites}
    try:
        for path, lender in lenders.items():
            setattr(model.get_submodule(parent(path)), path.rpartition(".")[2], lender)
        with _Products(experts, {**stacks, **lenders}, product):
            yield
    finally:
        for path in lenders:
            setattr(model.get_submodule(parent(path)), path.rpartition(".")[2], stacks[path])


class _Lender(nn.Module):
    """Stands before a compressed stack and remembers which expert's matrix it lent last, as unpacking leaves no trace."""

    stack: Any

    def __init__(self, stack: nn.Module):
        super().__init__()
        # Not as a submodule: whoever walks the model meanwhile must not find the stack under another path.
        self.__dict__["stack"] = stack
        self.lent: tuple[Any, int] = (None, -1)

    @property
    def weight_values(self) -> Any:
        return self.stack.weight_values

    def __getitem__(self, index: Any) -> Any:
        self.lent = (self.stack[index], int(index))
        return self.lent[0]

    def expert(self, weight: Any) -> int | None:
        return self.lent[1] if weight is self.lent[0] else None


class _Products(TorchFunctionMode):
    """Intercepts products with a slice of one of the stacks."""

    def __init__(self, experts: Mapping[tuple[str, int | None], Site], stacks: Mapping[str, Any], product: Product):
        super().__init__()
        self._experts, self._stacks, self._product = experts, stacks, product

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        site = self._used(func, args, kwargs)
        if site is None:
            return func(*args, **kwargs)
        x = args[0] if args else kwargs["input"]
        return self._product(site, x, lambda: func(*args, **kwargs))

    def _used(self, func: Any, args: Any, kwargs: Any) -> Site | None:
        if func not in _PRODUCTS:
            return None
        weight = args[1] if len(args) > 1 else kwargs.get("weight", kwargs.get("other"))
        for path, stack in self._stacks.items():
            index = stack.expert(weight) if isinstance(stack, _Lender) else _slice(stack, weight)
            if index is not None:
                return self._experts.get((path, index))
        return None


def _slice(stack: Tensor, weight: Any) -> int | None:
    """Which slice of the stack is this matrix a view of?"""
    if not isinstance(weight, Tensor) or weight.shape != stack.shape[1:]:
        return None
    if weight.untyped_storage()._cdata != stack.untyped_storage()._cdata:
        return None
    index, rest = divmod(int(weight.storage_offset() - stack.storage_offset()), stack.stride(0))
    return index if rest == 0 and 0 <= index < len(stack) else None


@contextmanager
def eager_experts(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within, the modules loop over their experts in plain code: visible to a probe, and in any dtype."""
    configs = {id(m.config): m.config for m in modules if hasattr(getattr(m, "config", None), "_experts_implementation")}
    before: dict[int, Any] = {key: config._experts_implementation for key, config in configs.items()}  # type: ignore[union-attr]
    try:
        for config in configs.values():
            config._experts_implementation = "eager"  # type: ignore[union-attr]
        yield
    finally:
        for key, config in configs.items():
            config._experts_implementation = before[key]  # type: ignore[union-attr]


@contextmanager
def still(model: nn.Module) -> Iterator[None]:
    """Within, the model is in eval mode and nothing records gradients; afterwards every module is as it was."""
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.inference_mode(False), torch.no_grad():
            yield
    finally:
        for module, was in training.items():
            module.training = was


def run(model: nn.Module, embed: Site) -> None:
    """One forward pass over `PROBE_LENGTH` fixed random tokens, without a cache."""
    ids = torch.randint(0, embed.shape[0], (1, PROBE_LENGTH), generator=torch.Generator().manual_seed(0))
    with still(model), eager_experts(model.modules()):
        # A copy, because a tensor that was made in inference mode stays marked.
        model(input_ids=ids.to(device_of(model.get_submodule(embed.path)), copy=True), use_cache=False)
