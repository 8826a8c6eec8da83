"""What is trained must keep: a fresh adapter is the model, a merged one is the adapter, and nothing but the seed decides."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from trimtab.anatomy import Anatomy
from trimtab.core.errors import UsageError
from trimtab.core.kinds import LinearWeight, Seen
from trimtab.core.knobs import knobs
from trimtab.core.places import Role, Site
from trimtab.core.recipe import Where
from trimtab.core.seeds import Seeds
from trimtab.core.trained import AdapterMethod, Chosen, Delta, ScheduleMethod
from trimtab.engine import adapting
from trimtab.formats import Dense
from trimtab.testing.problems import every_format, expect, layer
from trimtab.testing.tiny import tiny, tokens

RANK = 4
FAMILIES = ("llama", "gpt2")  # the second has biases and stores its matrices transposed
CLOSE = 1e-9


def adds_nothing_at_first(method: type[AdapterMethod]) -> None:
    """Bit for bit, in every family and at half precision."""
    for family in FAMILIES:
        for dtype in (torch.float32, torch.bfloat16):
            model = tiny(family)
            nn.Module.to(model, dtype)
            ids = tokens(model)
            with torch.no_grad():
                before = model(ids).logits
                _attached(method, model)
                expect(torch.equal(model(ids).logits, before), f"a fresh adapter changes the logits of {family} in {dtype}")


def goes_beside_every_format(method: type[AdapterMethod]) -> None:
    """And adds nothing there either; a change of it is folded in exactly, or refused."""
    problem = layer(32, 128)
    for weight in every_format(problem):
        delta = _delta(method, weight, problem.site)
        product = problem.x @ weight.dense().T
        added = delta(problem.x, product, weight.dense)
        expect(not added.any(), f"a fresh adapter beside {type(weight).__name__} adds something")
        _nudge(delta)
        merged = delta.merged(weight)
        if merged is not None:
            wanted = product + delta(problem.x, product, weight.dense)
            off = (problem.x @ merged.dense().T - wanted).norm() / wanted.norm()
            halved = isinstance(merged, Dense) and merged.weight.dtype.itemsize == 2
            expect(
                float(off) < (1e-2 if halved else 1e-5),
                f"merged into {type(weight).__name__} it is another function, by {float(off):.2g}",
            )


def merges_into_plain_matrices_exactly(method: type[AdapterMethod]) -> None:
    """In float64, or not at all."""
    for family in FAMILIES:
        model = tiny(family)
        ids, deltas = tokens(model), _attached(method, model)
        for delta in deltas.values():
            _nudge(delta)
        model.double()
        with torch.no_grad():
            beside = model(ids).logits
        try:
            adapting.merge(Anatomy.of(model))
        except UsageError as error:
            expect(next(iter(deltas)) in str(error), f"that it cannot be merged is said without naming a matrix: {error}")
            continue
        expect(not adapting.deltas(model), "merging leaves adapters behind")
        with torch.no_grad():
            off = (model(ids).logits - beside).abs().max()
        expect(float(off) < CLOSE, f"merged and unmerged logits of {family} differ by {float(off):.2g} in float64")


def depends_on_the_seed_and_the_place_alone(method: type[AdapterMethod]) -> None:
    problem = layer(32, 128)
    weight = Dense(problem.weight)
    before = problem.weight.clone()
    state = torch.random.get_rng_state()
    once, again = (_delta(method, weight, problem.site).state_dict() for _ in range(2))
    expect(all(torch.equal(value, again[name]) for name, value in once.items()), "the same seed gives another start")
    expect(torch.equal(state, torch.random.get_rng_state()), "it draws from the global generator")
    expect(torch.equal(problem.weight, before), "it changes the weight that it is shown")


def says_which_shape_does_not_fit(method: type[AdapterMethod]) -> None:
    """A matrix with one column is too small for anything but rank 1."""
    made = _made(method)
    site = Site("model.layers.0.mlp.down_proj", Role.DOWN, (33, 1), block=0)
    try:
        made.fits(site)
    except UsageError as error:
        expect(site.name in str(error), f"`fits` refuses a shape without naming the place: {error}")
    else:
        made.attach(Dense(torch.zeros(33, 1)), _seen(made, site, torch.ones(8, 1)), site)


def is_told_to_peft_and_back(method: type[AdapterMethod]) -> None:
    """Where peft has such an adapter: what its tensors say is the same change."""
    problem = layer(32, 128)
    weight = Dense(problem.weight)
    delta = _delta(method, weight, problem.site)
    fields = _made(method).portable()
    expect((fields is None) == (not delta.portable()), "it is portable in its fields but not in its tensors, or the reverse")
    if fields is None:
        return
    expect(isinstance(fields.get("peft_type"), str), "the fields for peft name no `peft_type`")
    _nudge(delta)
    if delta.portable().keys() != _delta(method, weight, problem.site).portable().keys():
        raise AssertionError("the names of its tensors depend on their values")


def learns(method: type[AdapterMethod]) -> None:
    """Ten steps of Adam bring the squared error towards another matrix down."""
    problem = layer(32, 128)
    delta = _delta(method, Dense(problem.weight), problem.site)
    wanted = problem.x @ (0.1 * problem.weight.flip(0)).T
    product = problem.x @ problem.weight.T
    trained = [p for p in delta.parameters() if p.requires_grad]
    optimizer, losses = torch.optim.Adam(trained, lr=1e-3), []
    for _ in range(10):
        optimizer.zero_grad()
        loss = (delta(problem.x, product, lambda: problem.weight) - wanted).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    expect(losses[-1] < losses[0], f"ten steps bring the loss from {losses[0]:.4g} to {losses[-1]:.4g}")


def learns_in_bfloat16_too(method: type[AdapterMethod]) -> None:
    """Where matrix products are taken in bfloat16 the loss is about the same, and its gradients reach what is trained."""
    model = tiny("llama")
    for delta in _attached(method, model).values():
        _nudge(delta)
    ids, losses = tokens(model), []
    for mixed in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            loss = model(ids, labels=ids).loss
        loss.backward()
        losses.append(float(loss))
        reached = [p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters() if p.requires_grad]
        expect(all(reached), f"{reached.count(False)} trained parameters get no gradient, or none that is finite")
    expect(abs(losses[1] - losses[0]) < 0.02 * losses[0], f"the loss is {losses[0]:.4g}, and {losses[1]:.4g} in bfloat16")


def trains_some_blocks_at_a_time(method: type[ScheduleMethod]) -> None:
    """Fewer than all want a gradient, others later, the same ones again for the same seed; nobody else's state is kept."""
    model = tiny("llama")
    anatomy, made = Anatomy.of(model), method()
    names = set(made.trains(anatomy))
    expect(names <= {name for name, _ in model.named_parameters()}, "it names parameters that the model does not have")
    optimizer = AdamW([p for name, p in model.named_parameters() if name in names], lr=1e-4)
    history = []
    for step in range(200):
        made.hook(anatomy, Seeds(0)).before_step(step, optimizer)
        history.append(_wanting(model))
        expect(history[-1] <= names, "it trains what it does not name in `trains`")
        if step % 40 == 0:
            _one_step(model, optimizer)
        for parameter in optimizer.state:
            expect(parameter.requires_grad, "the optimizer remembers what is not trained")
    expect(len({frozenset(one) for one in history}) > 1, "it trains the same parameters all the time")
    expect(all(len(one) < len(names) for one in history), "it trains everything at once")
    made.hook(anatomy, Seeds(0)).before_step(0, optimizer)
    expect(_wanting(model) == history[0], "the same step of the same seed trains other parameters")


def _made(method: type[AdapterMethod]) -> AdapterMethod:
    """With a rank that fits small matrices."""
    return method(**({"rank": RANK} if "rank" in knobs(method) else {}))


def _delta(method: type[AdapterMethod], weight: LinearWeight, site: Site) -> Delta:
    made = _made(method)
    return made.attach(weight, _seen(made, site, layer(*site.shape).x), site)


def _seen(method: AdapterMethod, site: Site, x: Tensor) -> Seen:
    """What it declared in `needs`, of inputs x [tokens, in]."""
    values = dict[type, Any]()
    for need in method.needs:
        if need is Chosen:
            values[need] = Chosen((site,))
            continue
        state = need.start(site.shape, x.device)  # type: ignore[attr-defined]
        values[need] = need.finish(need.update(state, x))  # type: ignore[attr-defined]
    return Seen(values, Seeds(0).at("attach"))


def _attached(method: type[AdapterMethod], model: torch.nn.Module) -> dict[str, Delta]:
    made = _made(method)
    shown = [tokens(model)] if adapting.needs_text(made) else []  # type: ignore[arg-type]
    return adapting.attach(Anatomy.of(model), made, Where(), Seeds(0), shown)


@torch.no_grad()
def _nudge(delta: Delta) -> None:
    """As if it had been trained."""
    for name, parameter in delta.named_parameters():
        if parameter.requires_grad:
            noise: Tensor = torch.randn(parameter.shape, generator=Seeds(1).at(name))
            parameter.add_(0.05 * noise.to(parameter.dtype))


def _one_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    ids = tokens(model)  # type: ignore[arg-type]
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def _wanting(model: torch.nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


ADAPTER_CHECKS = (
    adds_nothing_at_first,
    goes_beside_every_format,
    merges_into_plain_matrices_exactly,
    depends_on_the_seed_and_the_place_alone,
    says_which_shape_does_not_fit,
    is_told_to_peft_and_back,
    learns,
    learns_in_bfloat16_too,
)
SCHEDULE_CHECKS = (trains_some_blocks_at_a_time,)
