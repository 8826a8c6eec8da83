"""What a structure must keep: it is a matrix at any time, the same one when it is stored, and nothing but the seed decides."""

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from trimtab.anatomy import Anatomy
from trimtab.core.errors import UsageError
from trimtab.core.knobs import knobs
from trimtab.core.places import Role, Site
from trimtab.core.scratch import ScratchMethod, Structure
from trimtab.core.seeds import Seeds
from trimtab.core.trained import Hook
from trimtab.engine import scratch
from trimtab.testing.problems import expect
from trimtab.testing.tiny import tiny, tokens

SITE = Site("model.layers.0.mlp.up_proj", Role.UP, (64, 32), block=0)
SMALL = {"rank": 4, "every": 3, "warm_up": 2}  # so that short trainings see everything
STEPS = 12
CLOSE = 1e-5


def is_a_matrix_at_any_time(method: type[ScratchMethod]) -> None:
    """What comes out is x times `matrix()`, at first and after training; what is stored equals it in the end."""
    structure, hook = _begun(method, STEPS)
    _expect_linear(structure)
    _walked(structure, hook, 0, STEPS)
    _expect_linear(structure)
    stored, matrix = structure.result().dense(), structure.matrix().detach()
    expect(_apart(stored, matrix) < CLOSE, f"what is stored is another matrix, by {_apart(stored, matrix):.2g}")
    before = stored.clone()
    _walked(structure, hook, STEPS - 1, STEPS)
    expect(torch.equal(stored, before), "what is stored changes if the training goes on; it needs tensors of its own")


def holds_as_many_numbers_as_it_says(method: type[ScratchMethod]) -> None:
    """Where everything is trained at once, these are the parameters; otherwise it cannot be more than the matrix."""
    structure, _ = _begun(method, STEPS)
    said, every = _made(method).numbers(SITE.shape), list(structure.parameters())
    if method.hook is ScratchMethod.hook:
        count = sum(parameter.numel() for parameter in every)
        expect(count == said, f"{count} numbers are trained, it says {said}")
    expect(0 < said <= SITE.shape[0] * SITE.shape[1], f"it says {said} numbers for a matrix of {SITE.shape}")


def depends_on_the_seed_and_the_place_alone(method: type[ScratchMethod]) -> None:
    weight, state = _weight(), torch.random.get_rng_state()
    once, again = (_begun(method, STEPS, weight)[0] for _ in range(2))
    _walked(once, None, 0, 2)
    expect(torch.equal(weight, _weight()), "it changes the weight that it is shown")
    fresh = _begun(method, STEPS)[0].state_dict()
    expect(all(torch.equal(value, fresh[name]) for name, value in again.state_dict().items()), "another start for one seed")
    expect(torch.equal(state, torch.random.get_rng_state()), "it draws from the global generator")


def goes_on_from_its_parameters(method: type[ScratchMethod]) -> None:
    """Made anew and given parameters and optimizer of any step, it ends as if it had not been stopped."""
    whole, hook = _begun(method, STEPS)
    _walked(whole, hook, 0, STEPS)
    for stop in (3, 7):
        first, hook = _begun(method, STEPS)
        optimizer = _walked(first, hook, 0, stop)
        second, hook = _begun(method, STEPS)
        second.load_state_dict(first.state_dict())
        held = dict(zip(first.parameters(), second.parameters(), strict=True))
        known = {held[old]: {name: value.clone() for name, value in state.items()} for old, state in optimizer.state.items()}
        _walked(second, hook, stop, STEPS, known)
        expect(torch.equal(whole.matrix(), second.matrix()), f"stopped after step {stop} it ends in another matrix")


def learns(method: type[ScratchMethod]) -> None:
    """The squared error towards another matrix falls."""
    structure, hook = _begun(method, 40)
    before = float(_loss(structure).detach())
    _walked(structure, hook, 0, 40)
    after = float(_loss(structure).detach())
    expect(after < before, f"forty steps bring the loss from {before:.4g} to {after:.4g}")


def says_which_shape_does_not_fit(method: type[ScratchMethod]) -> None:
    made = _made(method)
    site = Site("model.layers.0.mlp.down_proj", Role.DOWN, (33, 1), block=0)
    try:
        made.fits(site)
    except UsageError as error:
        expect(site.name in str(error), f"`fits` refuses a shape without naming the place: {error}")
    else:
        made.begin(torch.ones(site.shape), Seeds(0).at("x"), site)


def stands_in_a_model_and_comes_out(method: type[ScratchMethod]) -> None:
    """With the structures and with what they come to, a model says the same."""
    model = tiny("llama")
    ids, anatomy = tokens(model), Anatomy.of(model)
    structures = scratch.put(anatomy, _made(method), Seeds(0))
    hook = _made(method).hook(structures, 1, Seeds(0))
    if hook:
        hook.before_step(1, AdamW(model.parameters()))  # behind the last one
    with torch.no_grad():
        within = model(ids).logits
        scratch.settle(model, structures)
        off = _apart(model(ids).logits, within)
    expect(off < 10 * CLOSE, f"the results in the place of the structures change the logits by {off:.2g}")
    expect(not any(isinstance(module, Structure) for module in model.modules()), "a structure is left in the model")


def _made(method: type[ScratchMethod]) -> ScratchMethod:
    return method(**{name: value for name, value in SMALL.items() if name in knobs(method)})


def _weight() -> Tensor:
    return torch.randn(SITE.shape, generator=Seeds(0).at("weight")) / 8


def _begun(method: type[ScratchMethod], steps: int, weight: Tensor | None = None) -> tuple[Structure, Hook | None]:
    made = _made(method)
    made.fits(SITE)
    structure = made.begin(_weight() if weight is None else weight, Seeds(0).at("begin"), SITE)
    return structure, made.hook({SITE.path: structure}, steps, Seeds(0))


def _walked(
    structure: Structure, hook: Hook | None, start: int, stop: int, known: dict[nn.Parameter, dict[str, Tensor]] | None = None
) -> AdamW:
    """The steps from `start` to `stop`; the optimizer, which begins with what it knew."""
    optimizer = AdamW(structure.parameters(), lr=3e-3, weight_decay=0.0)
    optimizer.state.update(known or {})
    around = hook or Hook()
    for step in range(start, stop):
        around.before_step(step, optimizer)
        optimizer.zero_grad()
        _loss(structure).backward()  # type: ignore[no-untyped-call]
        around.before_update(step, optimizer)
        optimizer.step()
        around.after_update(step, optimizer)
    return optimizer


def _loss(structure: Structure) -> Tensor:
    x = torch.randn(48, SITE.shape[1], generator=Seeds(0).at("x"))
    wanted = x @ torch.randn(SITE.shape, generator=Seeds(0).at("wanted")).T / 8
    difference: Tensor = structure(x) - wanted
    return difference.square().mean()


@torch.no_grad()
def _expect_linear(structure: Structure) -> None:
    x = torch.randn(2, 5, SITE.shape[1], generator=Seeds(0).at("x"))
    off = _apart(structure(x), x @ structure.matrix().T)
    expect(off < CLOSE, f"its output and the product with its matrix differ by {off:.2g}")


def _apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp(min=torch.finfo(b.dtype).tiny))


CHECKS = (
    is_a_matrix_at_any_time,
    holds_as_many_numbers_as_it_says,
    depends_on_the_seed_and_the_place_alone,
    goes_on_from_its_parameters,
    learns,
    says_which_shape_does_not_fit,
    stands_in_a_model_and_comes_out,
)
