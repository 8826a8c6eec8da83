"""A step that trains the whole model: what is learned is put into it, trained by whoever trains, and taken out again.

A learner stands for a matrix as a parametrization of the layer's weight, so that every forward pass, and one that is repeated
for its gradients, asks it anew. All that is plain is float32 meanwhile, whatever the model is stored in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from trimtab.anatomy import Anatomy
from trimtab.anatomy.sites import is_linear
from trimtab.core.errors import CalibrationError, RecipeError, UsageError
from trimtab.core.kinds import Learner
from trimtab.core.narrowing import NarrowingMethod, Separable
from trimtab.core.places import Role, Site
from trimtab.core.recipe import Recipe, Step
from trimtab.core.report import Receipt
from trimtab.core.taught import Pupil, Said, TaughtMethod, Teacher, Term, leaves
from trimtab.core.trained import Hook
from trimtab.engine.apply import apply
from trimtab.engine.channels import separable
from trimtab.engine.observing import determined, observe
from trimtab.engine.packed_linear import PackedLinear
from trimtab.engine.resume import pause
from trimtab.engine.storage import tensors
from trimtab.engine.surgery import place
from trimtab.formats import Dense

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from trimtab.engine.run import Bench

WEIGHT, CHILD = "weight", "pupil"


def needs_teacher(recipe: Recipe) -> bool:
    """Whether a step learns from the model as it was before the first one."""
    return any(Teacher in step.method.needs for step in recipe.steps)


def teach(bench: Bench, steps: list[tuple[int, Step]]) -> None:
    """Carry out a step of a method that is taught.

    Raises `UsageError` where nobody is there to train, to learn from or to read a prompt, `CalibrationError` without text,
    `RecipeError` for matrices that cannot be learned.
    """
    ((number, step),) = steps
    method, begun = step.method, perf_counter()
    assert isinstance(method, TaughtMethod)
    if bench.school is None or (Teacher in method.needs and bench.teacher is None):
        raise UsageError(f"{method.card.id} is trained; give run() who trains (trimtab.host.school) and the untouched model")
    if not bench.batches:
        raise CalibrationError(f"{method.card.id} is trained and was given no text; show some (calibration, --text)")
    if Teacher in method.needs:
        _same_words(bench)
    before_windows = _prompt(bench, method)
    pause(bench)
    anatomy = Anatomy.of(bench.model)
    before = _stored_bits(bench, anatomy)
    with in_float32(bench.model):
        with determined(method.card.id):
            known = _known(bench, anatomy, method)
            seen = observe(bench, anatomy, method.needs, anatomy.sites, bench.seeds.at(number), known)
            with torch.enable_grad():
                pupil = method.begin(anatomy, seen).to(bench.batches[0].device)
        with bench.profile("learn"), torch.enable_grad(), learning(anatomy, pupil):
            losses = _trained(bench, method, pupil, number, before_windows)
            _tell(pupil, 1.0)
        bench.drew = True  # the order of the windows
        with bench.profile("apply"):
            apply(Anatomy.of(bench.model), pupil.edits(), bench.packed)
    anatomy = Anatomy.of(bench.model)
    weights = sum(s.shape[0] * s.shape[1] for s in anatomy.sites)
    bench.notes += _told(method)
    notes = {**seen.notes, **pupil.notes(), "first_loss": losses[0], "last_loss": losses[-1], "steps": len(losses)}
    bits, seconds = (before / weights, _stored_bits(bench, anatomy) / weights), perf_counter() - begun
    bench.receipts.append(Receipt(number, str(method), "model", "model", weights, *bits, seconds, None, notes))
    bench.held.clear()


def _known(bench: Bench, anatomy: Anatomy, method: TaughtMethod) -> dict[type, Any]:
    if not isinstance(method, NarrowingMethod):
        return {}
    found = separable(bench, anatomy, method.card.id, method.wanted())
    return {Separable: Separable(tuple(found), sum(t.numel() for t in tensors(bench.model)))}


@dataclass(frozen=True)
class _Prompt:
    """What stands before the text of every window. opened: how many tokens of a window come before that. ids: [tokens] int64."""

    opened: int
    ids: Tensor

    def before(self, ids: Tensor) -> Tensor:
        return torch.cat([ids[:, : self.opened], self.ids.to(ids.device).expand(len(ids), -1), ids[:, self.opened :]], 1)


NO_PROMPT = _Prompt(0, torch.empty(0, dtype=torch.int64))


def _prompt(bench: Bench, method: TaughtMethod) -> _Prompt:
    """Raises `UsageError` where nobody makes tokens of it, or the model does not read so many."""
    if not method.prompt:
        return NO_PROMPT
    if bench.encode is None:
        raise UsageError(f"{method.card.id}: a prompt is text, and run() was given tokens alone; give it encode, too")
    opening, ids = (torch.tensor(list(bench.encode(text)), dtype=torch.int64) for text in ("", method.prompt))
    window = bench.batches[0][0].cpu()
    config: Any = bench.model.config
    most = getattr(config.get_text_config(), "max_position_embeddings", None)
    if most is not None and len(window) + len(ids) - len(opening) > most:
        raise UsageError(
            f"{method.card.id}: the prompt takes {len(ids) - len(opening)} tokens and a window {len(window)}, "
            f"the model reads {most} at most; use shorter windows (--length) or a shorter prompt"
        )
    opened = len(opening) if torch.equal(window[: len(opening)], opening) else 0
    return _Prompt(opened, ids[len(opening) :])


def _told(method: TaughtMethod) -> list[str]:
    if not method.prompt:
        return []
    return [f"{method.card.id} learned behind a prompt; put it and an empty line before what the model reads: {method.prompt!r}"]


def _trained(bench: Bench, method: TaughtMethod, pupil: Pupil, number: int, prompt: _Prompt) -> list[float]:
    windows = torch.cat(bench.batches)
    place = bench.keeper.place(f"lesson-{number}")
    seed = int(torch.randint(2**31, (), generator=bench.seeds.at(number, "order")))
    term = Term(
        method.steps, method.windows, windows.shape[1], method.learning_rate, seed, place, bench.recipe.calibration.compute
    )
    hooks = (_Progress(pupil, method.steps), pupil)
    rates = {f"pupil.{name}": rate for name, rate in pupil.rates().items()}
    assert bench.school is not None
    loss = _asked(bench, pupil, Teacher in method.needs, prompt)
    return bench.school(bench.model, leaves(pupil, bench.model), windows, term, loss, hooks, rates, bench.watch)


def _asked(bench: Bench, pupil: Pupil, taught: bool, prompt: _Prompt) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(ids: Tensor, share: Tensor) -> Tensor:
        with torch.no_grad():
            right = _said(bench.teacher, ids, pupil.hidden, prompt) if taught and bench.teacher is not None else None
        return pupil.loss(_said(bench.model, ids, pupil.hidden, prompt), right, ids, share)

    return loss


def _same_words(bench: Bench) -> None:
    assert bench.teacher is not None
    few = bench.batches[0][:1, :2]
    own, taught = (_said(model, few, False).logits.shape[-1] for model in (bench.model, bench.teacher))
    if own != taught:
        raise UsageError(f"the model predicts {own} tokens and its teacher {taught}; both need the same vocabulary")


def _said(model: nn.Module, ids: Tensor, hidden: bool, prompt: _Prompt = NO_PROMPT) -> Said:
    """To the windows alone: what is said at as many of the last places as these have tokens."""
    answer: Any = model(input_ids=prompt.before(ids), use_cache=False, output_hidden_states=hidden)
    own = slice(len(prompt.ids), None)
    return Said(answer.logits[:, own], [state[:, own] for state in answer.hidden_states] if hidden else ())


class _Progress(Hook):
    """Tells the learners where training is, before every step."""

    def __init__(self, pupil: Pupil, steps: int):
        self.pupil, self.steps = pupil, steps

    def before_step(self, step: int, optimizer: Optimizer) -> None:
        _tell(self.pupil, step / self.steps)


def _tell(pupil: Pupil, progress: float) -> None:
    for learner in pupil.stands().values():
        learner.progress = progress


class _Stands(nn.Module):
    """What a layer's weight is while a learner stands for it."""

    def __init__(self, learner: Learner, transposed: bool):
        super().__init__()
        self.learner, self.transposed = learner, transposed

    def forward(self, original: Tensor) -> Tensor:
        matrix = self.learner.matrix()
        return matrix.mT if self.transposed else matrix


@contextmanager
def learning(anatomy: Anatomy, pupil: Pupil) -> Iterator[None]:
    """Inside, learners stand for their matrices, and gradients go to what the pupil trains and to nothing else.

    Raises `RecipeError` for matrices that are no layers of their own.
    """
    model = anatomy.model
    stands = pupil.stands()
    for site in stands:
        _check_layer(anatomy, site)
    wanted = {name: parameter.requires_grad for name, parameter in pupil.named_parameters()}
    model.requires_grad_(False)
    for site, learner in stands.items():
        if isinstance(anatomy.module(site), PackedLinear):
            place(model, site.path, Dense(learner.matrix().detach()), anatomy.bias(site), site.transposed)
        layer = model.get_submodule(site.path).requires_grad_(False)
        parametrize.register_parametrization(layer, WEIGHT, _Stands(learner, site.transposed), unsafe=True)
    model.add_module(CHILD, pupil)  # whoever trains looks for gradients among the model's parameters
    for name, parameter in pupil.named_parameters():
        parameter.requires_grad_(wanted[name])
    own = dict(model.named_parameters())
    for name in pupil.own:
        own[name].requires_grad_(True)
    try:
        yield
    finally:
        for site in stands:
            parametrize.remove_parametrizations(model.get_submodule(site.path), WEIGHT, leave_parametrized=False)
        delattr(model, CHILD)
        model.requires_grad_(False)


def _check_layer(anatomy: Anatomy, site: Site) -> None:
    if site.index is not None or not (is_linear(anatomy.module(site)) or site.role is Role.EMBED):
        raise RecipeError(f"{site.name} is no layer of its own, so nothing can stand for it while the model is trained")


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Inside, the parameters that are not packed are float32; afterwards they are again what they were."""
    before = {name: p.dtype for name, p in _floats(model)}
    usual = next(iter(before.values()), torch.float32)
    with ExitStack() as stack:
        stack.callback(lambda: _cast(model, lambda name: before.get(name, usual)))
        _cast(model, lambda name: torch.float32)
        yield


def _cast(model: nn.Module, dtype: Callable[[str], torch.dtype]) -> None:
    for name, parameter in _floats(model):
        parameter.data = parameter.data.to(dtype(name))


def _floats(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Of packed layers the biases; what else they hold are buffers."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.is_floating_point())


def _stored_bits(bench: Bench, anatomy: Anatomy) -> float:
    return sum(bench.stored_bits(bench.weight(anatomy, s)) * s.shape[0] * s.shape[1] for s in anatomy.sites)
