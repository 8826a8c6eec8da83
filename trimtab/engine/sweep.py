"""The block-wise stream: calibration activations pass through the model one block at a time, without tracing it.

Every block is first replaced by a recorder that passes its input on and keeps its arguments (masks, rotary tables, whatever
the family passes), and the model runs once per batch - almost free, since no block computes. Then the real blocks are driven
one by one with the recorded arguments. At any moment the memory holds the weights, one block in float32, its statistics and
the calibration activations; nothing depends on the architecture beyond "a list of blocks, hidden states first".
"""

from collections.abc import Iterable, Iterator, Mapping, MutableSequence, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.anatomy import Anatomy, Watch
from trimtab.core.errors import CalibrationError, ModelError
from trimtab.core.kinds import Statistic
from trimtab.core.places import Site
from trimtab.core.report import Profile
from trimtab.engine.attention import Attention
from trimtab.engine.depot import Present, everything_present
from trimtab.engine.memory import give_back
from trimtab.engine.passes import compiled_attention
from trimtab.engine.shared import borrowed

Needs = Mapping[Site, Sequence[type[Statistic]]]
Stats = dict[type, Tensor]
LATE = {"passage", "attended"}  # what is known only when the block has answered


@dataclass
class Observed:
    """What one pass over a block saw: statistics by site, and of the block as a whole."""

    sites: dict[Site, Stats]
    block: Stats


@dataclass(frozen=True)
class Call:
    """The arguments of one block in one batch, besides the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Stream:
    """Hidden states between two blocks, per batch, and the arguments of every block.

    Computes in float32 whatever the weights are stored in (float64 stays float64), or, where speed matters more, in
    bfloat16. Statistics are float32 either way.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        batches: Sequence[Tensor],
        profile: Profile | None = None,
        compute: torch.dtype = torch.float32,
        hidden: MutableSequence[Tensor] | None = None,
        present: Present = everything_present,
    ):
        """batches: token ids [windows, length] each. hidden: an empty list, of whatever kind, for the activations; present: what
        has a block in memory while it is used. Raises `ModelError` if the blocks cannot be driven one by one."""
        self.anatomy, self.compute, self.present = anatomy, compute, present
        self.profile = profile or Profile()
        with self.profile("record"), torch.no_grad():
            self.forms = forms(anatomy, batches[0][:1, :8])
            self.hidden: MutableSequence[Tensor] = [] if hidden is None else hidden
            self.calls: list[list[Call]] = [[] for _ in anatomy.blocks]
            shared = _Shared(compute)
            with _cast(_outside(anatomy), torch.float32):
                for ids in batches:
                    self._record(ids, shared)

    @torch.no_grad()
    def drive(self, block: int, batch: int) -> Tensor:
        """Output [windows, length, width] of a block, as the model is now, on this stream's input."""
        return self.answer(block, batch, self.hidden[batch])

    def answer(self, block: int, batch: int, hidden: Tensor) -> Tensor:
        """The same on other hidden states; with gradients, if the caller has them on."""
        call = self.calls[block][batch]
        return _first(self.anatomy.blocks[block](hidden, *call.args, **call.kwargs))

    def collect(
        self,
        block: int,
        needs: Needs,
        of_block: Sequence[type[Statistic]] = (),
        advance: bool = False,
        beside: "Stream | None" = None,
    ) -> Observed:
        """Run all batches through a block and gather statistics; `advance` also moves the stream to its outputs.

        beside: the stream of the untouched model, for statistics on pairs; the block must be untouched still. It advances.
        """
        tally = _Tally({site: wanted for site, wanted in needs.items() if wanted}, of_block, self.profile)
        outputs = advance or bool(of_block) or tally.late
        if outputs or tally.needs or beside:
            with self.computing(block):
                for batch, entering in enumerate(self.hidden):
                    if beside:
                        tally.tokens = entering.shape[0] * entering.shape[1]
                        tally.original = beside.step(block, batch, tuple(tally.needs))
                    attention = Attention(*entering.shape[:2]) if tally.attended else None
                    with Watch(self.anatomy, tuple(tally.needs), tally.see, stop=not outputs), attention or nullcontext():
                        leaving = self.drive(block, batch)
                    if outputs:
                        tally.see_block(entering, leaving)
                    if tally.late:
                        tally.see_tokens(entering, leaving, attention)
                    if advance:
                        self.hidden[batch] = leaving
            give_back()
        return tally.finish(self.hidden[0].device)

    def step(self, block: int, batch: int, sites: Sequence[Site]) -> dict[Site, Tensor]:
        """Move one batch through a block; the inputs [tokens, in] of the sites on its way."""
        found: dict[Site, Tensor] = {}
        with Watch(self.anatomy, sites, lambda group, x: found.update(dict.fromkeys(group, x))):
            self.hidden[batch] = self.drive(block, batch)
        return found

    def advance(self, block: int) -> None:
        """Replace the hidden states by the outputs of the block as it is now."""
        with self.computing(block):
            for batch in range(len(self.hidden)):
                self.hidden[batch] = self.drive(block, batch)
        give_back()

    @torch.no_grad()
    def logits(self, batch: int, ids: Tensor) -> Tensor:
        """What the model says [windows, length, vocabulary] if its last block gave this stream's hidden states."""
        return self.head(_as(self.hidden[batch], torch.float32), ids)

    def head(self, output: Tensor, ids: Tensor) -> Tensor:
        """The same if its last block gave `output`; with gradients, if the caller has them on."""
        stand_ins = [_Constant(b, form, output) for b, form in zip(self.anatomy.blocks, self.forms, strict=True)]
        with _replaced(self.anatomy.blocks, stand_ins), _cast(_outside(self.anatomy), torch.float32):
            logits: Tensor = self.anatomy.model(ids, use_cache=False).logits
        return logits

    @contextmanager
    def computing(self, block: int) -> Iterator[None]:
        """Inside, the block is in memory and computes as this stream does."""
        real = self.anatomy.blocks[block]
        with (
            self.present(block),
            _cast([*real.parameters(), *borrowed(real)], self.compute),
            self.profile("forward"),
            compiled_attention(self.compute),
        ):
            yield

    def _record(self, ids: Tensor, shared: "_Shared") -> None:
        blocks = self.anatomy.blocks
        last = len(blocks) - 1
        recorders = [_Recorder(b, form, i == last) for i, (b, form) in enumerate(zip(blocks, self.forms, strict=True))]
        with _replaced(blocks, recorders), suppress(_LastBlockReached):
            self.anatomy.model(ids, use_cache=False)
        if not all(len(r.calls) == 1 for r in recorders):
            raise ModelError("the model does not call each of its blocks once per forward pass; it cannot be streamed")
        self.hidden.append(_as(recorders[0].calls[0][0], self.compute))
        for block, recorder in enumerate(recorders):
            _, args, kwargs = recorder.calls[0]
            self.calls[block].append(Call(shared(args), shared(kwargs)))
        shared.next_batch()


class _Tally:
    """Statistics in the making. Sites that share an input share one state: it is updated for the first of them."""

    def __init__(self, needs: Needs, of_block: Sequence[type[Statistic]], profile: Profile):
        self.needs, self.profile = needs, profile
        self.states: dict[Site, dict[Any, Any]] = {site: {} for site in needs}
        self.whole: dict[Any, Any] = dict.fromkeys(of_block)
        self.original: dict[Site, Tensor] = {}  # this batch's inputs in the untouched model, if anybody asked
        self.tokens = 0  # of this batch
        asked = {statistic.on for wanted in needs.values() for statistic in wanted}
        self.attended = "attended" in asked
        self.late = bool(asked & LATE)
        self.held: list[tuple[Sequence[Site], Tensor]] = []  # this batch's inputs, until then

    def see(self, sites: Sequence[Site], x: Tensor) -> None:
        with self.profile("statistics"):
            asked = {statistic.on for site in sites for statistic in self.needs[site]}
            self._update(sites, x, {"input": (), **({"pair": (self._pair(sites[0], x),)} if "pair" in asked else {})})
            if asked & LATE:
                self.held.append((sites, x))

    def _pair(self, site: Site, x: Tensor) -> Tensor:
        """The same tokens in the untouched model. An expert is routed tokens of its own in each of the two models."""
        original = self.original.get(site)
        if original is None or not len(original) == len(x) == self.tokens:
            raise CalibrationError(
                f"{site.name} is shown some tokens only, not the same ones before and after compression, and the method pairs "
                "them; skip the experts, or use a method without pairs, such as gptq"
            )
        return original

    def see_tokens(self, entering: Tensor, leaving: Tensor, attention: Attention | None) -> None:
        """What is known of every token now that the block has answered: [windows, length, width] each."""
        about: dict[str, tuple[Tensor, ...]] = {"passage": (entering, leaving)}
        if attention is not None and attention.drawn is None:
            raise ModelError("a block shows no attention over its tokens, so none of them can be weighed by what it draws")
        if attention is not None and attention.drawn is not None:
            about["attended"] = (attention.drawn,)
        with self.profile("statistics"):
            for sites, x in self.held:
                if len(x) != entering.shape[0] * entering.shape[1]:
                    raise CalibrationError(f"{sites[0].name} is shown some tokens only, and which ones is not known; skip it")
                self._update(sites, x, about)
            self.held.clear()

    def _update(self, sites: Sequence[Site], x: Tensor, about: Mapping[str, tuple[Tensor, ...]]) -> None:
        """Of the statistics those that are on something in `about`, which is what they see besides x."""
        done: dict[Any, Any] = {}
        for site in sites:
            for statistic in self.needs[site]:
                if statistic.on not in about:
                    continue
                if statistic not in done:
                    state = self.states[site].get(statistic) or statistic.start(site.shape, x.device)
                    done[statistic] = statistic.update(state, x, *about[statistic.on])
                self.states[site][statistic] = done[statistic]

    def see_block(self, entering: Tensor, leaving: Tensor) -> None:
        with self.profile("statistics"):
            for statistic, state in self.whole.items():
                state = state or statistic.start((0, 0), entering.device)
                self.whole[statistic] = statistic.update(state, entering.flatten(0, -2), leaving.flatten(0, -2))

    def finish(self, device: torch.device) -> Observed:
        with self.profile("statistics"):
            done: dict[tuple[type, int], Tensor] = {}
            sites: dict[Site, Stats] = {}
            for site, wanted in self.needs.items():
                sites[site] = {}
                for statistic in wanted:  # an expert that no token reached has no state yet
                    state = self.states[site].get(statistic) or statistic.start(site.shape, device)
                    key = (statistic, id(state))
                    if key not in done:
                        done[key] = statistic.finish(state)
                    sites[site][statistic] = done[key]
            return Observed(sites, {s: s.finish(state) for s, state in self.whole.items()})


class _LastBlockReached(Exception):
    """Everything is recorded; the norm and the head need not be computed."""


class _StandIn(nn.Module):
    """In a block's place: looks like it from outside and answers in its return form."""

    def __init__(self, block: nn.Module, form: type):
        super().__init__()
        self.__dict__["block"] = block  # not registered: its parameters must not be seen twice
        self.form = form

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["block"], name)

    def answer(self, hidden: Tensor) -> Any:
        return (hidden,) if self.form is tuple else hidden


class _Recorder(_StandIn):
    """Passes its input on and keeps what it was called with."""

    def __init__(self, block: nn.Module, form: type, last: bool):
        super().__init__(block, form)
        self.last = last
        self.__dict__["calls"] = []

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.calls.append((hidden_states, args, kwargs))
        if self.last:
            raise _LastBlockReached
        return self.answer(hidden_states)


class _Constant(_StandIn):
    """Answers with a known output."""

    def __init__(self, block: nn.Module, form: type, output: Tensor):
        super().__init__(block, form)
        self.__dict__["output"] = output

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.answer(self.__dict__["output"])


@contextmanager
def _replaced(blocks: nn.ModuleList, stand_ins: Sequence[nn.Module]) -> Iterator[None]:
    real = list(blocks)
    try:
        for i, stand_in in enumerate(stand_ins):
            blocks[i] = stand_in
        yield
    finally:
        for i, block in enumerate(real):
            blocks[i] = block


COMPUTED = (torch.float32, torch.bfloat16, torch.float16)


@contextmanager
def _cast(parameters: Iterable[nn.Parameter], dtype: torch.dtype) -> Iterator[None]:
    """Inside, the parameters have this dtype (float64 ones stay); afterwards they are the very same tensors as before."""
    kept = [(p, p.data) for p in parameters if p.dtype in COMPUTED and p.dtype != dtype]
    try:
        for parameter, data in kept:
            parameter.data = data.to(dtype)
        yield
    finally:
        for parameter, data in kept:
            parameter.data = data


def _outside(anatomy: Anatomy) -> list[nn.Parameter]:
    """Embeddings, the final norm, the head: were they left in half precision, the stream would begin with rounded numbers."""
    stand_ins = [nn.Identity() for _ in anatomy.blocks]
    with _replaced(anatomy.blocks, stand_ins):
        return list(anatomy.model.parameters())


def forms(anatomy: Anatomy, ids: Tensor) -> list[type]:
    """How each block returns: a tuple or a tensor. Asked by one run over a few tokens."""
    forms: list[type] = [Tensor] * len(anatomy.blocks)

    def note(index: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            forms[index] = tuple if isinstance(output, tuple) else Tensor

        return hook

    handles = [block.register_forward_hook(note(i)) for i, block in enumerate(anatomy.blocks)]
    try:
        anatomy.model(ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return forms


def _first(output: Any) -> Tensor:
    first: Tensor = output[0] if isinstance(output, tuple) else output
    return first


class _Shared:
    """Arguments in the dtype of the stream, each tensor once: all blocks get the same tables, most batches equal ones."""

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype
        self.first: list[Tensor] = []  # of the first batch: what later ones may repeat
        self.batch: dict[int, tuple[Tensor, Tensor]] = {}  # by identity, with the original kept alive for as long
        self.begun = False

    def next_batch(self) -> None:
        if not self.begun:
            self.first = [kept for _, kept in self.batch.values()]
        self.begun = True
        self.batch = {}

    def __call__(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            if id(value) not in self.batch:
                self.batch[id(value)] = value, self._known(_as(value, self.dtype))
            return self.batch[id(value)][1]
        if isinstance(value, tuple | list):
            return type(value)(map(self, value))
        if isinstance(value, dict):
            return {key: self(item) for key, item in value.items()}
        return value

    def _known(self, tensor: Tensor) -> Tensor:
        """The equal one that is kept already, if there is one."""
        same = (known for known in self.first if known.dtype == tensor.dtype and torch.equal(known, tensor))
        return next(same, tensor)


def _as(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in this dtype, if it is of a kind that is computed in."""
    return tensor.to(dtype) if tensor.dtype in COMPUTED else tensor
