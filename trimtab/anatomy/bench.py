"""A branch on the bench: the real code between matrices, with a stand-in for every matrix.

To learn how the channels of a branch hang together, only what happens *between* its matrices matters: reshaping into heads,
rotation, norms, softmax, activation, gating. So the branch is copied without its matrices. A stand-in gives random numbers
whatever it is shown, and remembers what it was shown. The pretrained values thus play no role (a dead or tiny weight
hides nothing), compressed matrices work like any others, the live model is not touched, and a nudge costs no product.

Many nudges are tried in one forward pass: the batch is widened to lanes, each with another nudge, lane 0 with none.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.anatomy.probe import eager_experts, expert_products, still
from trimtab.anatomy.sites import stack_of
from trimtab.core.places import Role, Site

Call = tuple[tuple[Any, ...], dict[str, Any]]
Answer = Callable[[Site, Tensor], Tensor]

_LANE_NUMBERS = 2**22  # numbers in one widened tensor: 32 MB in float64
_SILENT = 1e-60  # behind a closed gate not quite zero is left, and its square would be
_MOVED = 1e-5  # between the rounding of norms, which compute in float32, and the effect of a nudge of size 2 to 4


class Bench:
    """The copy of a module, by which it can be asked what a matrix's output does to another matrix's input.

    sites: the matrices inside the owner, their paths relative to it. call: (args, kwargs) that the owner was once given
    for a single sequence. Everything on the bench is float64 and on the CPU.
    """

    def __init__(self, owner: nn.Module, sites: Sequence[Site], call: Call, generator: torch.Generator):
        self._generator = generator
        self._copy = _without_matrices(owner, sites, self._answer, generator)
        self._call, self._length = _cut(_mapped(_on_bench, call))
        self._sites = sites
        self._answers: dict[str, Tensor] = {}
        self._shown: dict[str, Tensor] = {}

    def at_once(self, producer: Site, consumer: Site) -> int:
        """How many nudges fit into one forward pass."""
        return max(1, _LANE_NUMBERS // (self._length * max(producer.shape[0], consumer.shape[1])))

    def moved(self, producer: Site, rows: Tensor, consumer: Site) -> Tensor:
        """[rows, in] bool: which inputs of the consumer move when output `rows[i]` of the producer is nudged.

        The random numbers around the nudge are drawn anew at each call.
        """
        nudged = self._lanes(producer, len(rows) + 1)
        nudged[torch.arange(1, len(nudged)), :, rows] += self._nudges(len(rows))
        shown = self._shown_to(consumer, producer, nudged)
        return (shown[1:] - shown[:1]).abs().amax(1) > _MOVED

    def grown(self, producer: Site, rows: Tensor, consumer: Site, size: float) -> Tensor:
        """[rows, in] float64: by what every input of the consumer grows when output `rows[i]` of the producer is doubled.

        1: not at all. NaN: not by the same factor at every token. 0: it is silent with and without. All outputs are drawn
        anew at each call, of this size.
        """
        doubled = self._lanes(producer, len(rows) + 1, size)
        doubled[torch.arange(1, len(doubled)), :, rows] *= 2
        shown = self._shown_to(consumer, producer, doubled)
        before, after = shown[:1], shown[1:]  # [.., length, in]
        factor = (after * before).sum(1) / before.square().sum(1)  # least squares over the tokens
        peaks = before.abs().amax(1), after.abs().amax(1)
        bent = ~((after - factor[:, None] * before).abs().amax(1) <= _MOVED * peaks[0])  # also where there is no factor
        silent = (peaks[0] < _SILENT) & (peaks[1] < _SILENT)
        return factor.masked_fill(bent, torch.nan).masked_fill(silent, 0.0)

    def _lanes(self, producer: Site, lanes: int, size: float = 1.0) -> Tensor:
        """[lanes, length, out] what the producer answers, equal in all lanes; every other matrix gets new answers too."""
        drawn = {site.path: size * self._draw(self._length, site.shape[0]) for site in self._sites}
        self._answers = {path: answer.expand(lanes, -1, -1) for path, answer in drawn.items()}
        return self._answers[producer.path].clone()

    def _shown_to(self, consumer: Site, producer: Site, answers: Tensor) -> Tensor:
        """[lanes, length, in] what the consumer is shown when the producer answers so."""
        self._answers[producer.path] = answers
        self._run(len(answers))
        return self._shown[consumer.path].reshape(len(answers), self._length, -1)

    def _run(self, lanes: int) -> None:
        args, kwargs = _mapped(lambda t: t.expand(lanes, *t.shape[1:]) if t.ndim and len(t) == 1 else t, self._call)
        experts = [site for site in self._sites if site.index is not None]
        with ExitStack() as stack:
            stack.enter_context(still(self._copy))
            if experts:
                stack.enter_context(eager_experts(self._copy.modules()))
                stack.enter_context(expert_products(self._copy, experts, lambda site, x, _: self._answer(site, x)))
            self._copy(*args, **kwargs)

    def _answer(self, site: Site, x: Tensor) -> Tensor:
        self._shown[site.path] = x
        return self._answers[site.path].reshape(*x.shape[:-1], site.shape[0])

    def _draw(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator, dtype=torch.float64)

    def _nudges(self, count: int) -> Tensor:
        """[count, length], of size 2 to 4. They vary along the tokens: a softmax cannot feel a shift of all keys."""
        shape = (count, self._length)
        size = 2 + 2 * torch.rand(shape, generator=self._generator, dtype=torch.float64)
        return size * (torch.randint(0, 2, shape, generator=self._generator) * 2 - 1)


class _StandIn(nn.Module):
    """Takes the place of a matrix."""

    def __init__(self, site: Site, answer: Answer):
        super().__init__()
        self._site, self._given = site, answer

    def forward(self, x: Tensor) -> Tensor:
        return self._given(self._site, x)


def _without_matrices(owner: nn.Module, sites: Sequence[Site], answer: Answer, generator: torch.Generator) -> nn.Module:
    """A copy of the owner in which matrices are replaced, and the vectors of norms drawn anew.

    Routers stay: what they return is not a matrix product but a choice. Stacks of experts are shared with the live model and
    never multiplied.
    """
    memo: dict[int, Any] = {}
    for site in sites:
        if site.index is not None:
            stack = stack_of(owner, site)
            memo[id(stack)] = stack
        elif site.role is not Role.ROUTER:
            memo[id(owner.get_submodule(site.path))] = _StandIn(site, answer)
    for tensor in _own_tensors(owner, memo):
        if id(tensor) not in memo:
            memo[id(tensor)] = _renewed(tensor, generator)
    twin = copy.deepcopy(owner, memo)
    for module in twin.modules():
        config = getattr(module, "config", None)
        if getattr(config, "_attn_implementation", "eager") not in ("eager", "sdpa"):
            config._attn_implementation = "sdpa"  # type: ignore[union-attr]  # others do not run in float64 on a CPU
    return twin


def _own_tensors(module: nn.Module, skipped: dict[int, Any]) -> Iterator[Tensor]:
    if id(module) in skipped:
        return
    yield from (t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None)
    for child in module.children():
        yield from _own_tensors(child, skipped)


def _renewed(tensor: Tensor, generator: torch.Generator) -> Tensor:
    fresh = _on_bench(tensor)
    if not isinstance(tensor, nn.Parameter):
        return fresh
    if tensor.ndim == 1:
        fresh = 0.5 + torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
    return nn.Parameter(fresh, requires_grad=False)


def _on_bench(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu()
    return tensor.double() if tensor.is_floating_point() else tensor.clone()


def _cut(call: Call) -> tuple[Call, int]:
    """The call with as few tokens as will do, and their number.

    Flat tokens [tokens, width], and hidden states that come with nothing else (no positions, no mask), are worked on token
    by token: one is enough.
    """
    args, kwargs = call
    hidden = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
    tokens = hidden.shape[-2]
    if hidden.ndim == 2:
        return _mapped(lambda t: t[:1] if t.ndim and len(t) == tokens else t, call), 1
    if len(args) + len(kwargs) == 1:
        return _mapped(lambda t: t[:, :1], call), 1
    return call, tokens


def _mapped(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The same nest of tuples, lists and dicts with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple | list):
        return type(value)(_mapped(change, item) for item in value)
    if isinstance(value, dict):
        return {key: _mapped(change, item) for key, item in value.items()}
    return value
