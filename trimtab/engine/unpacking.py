"""A model that came packed (GPTQ, GGUF, a result of ours) meets a recipe that wants plain matrices: it is unpacked, and says so.

Only what the recipe would otherwise be refused for is unpacked; a step that takes packed matrices gets them as they are.
"""

from collections.abc import Sequence

from torch import nn

from trimtab.anatomy import Anatomy
from trimtab.core.errors import RecipeError
from trimtab.core.kinds import ChannelMethod, LinearMethod, ModelMethod, ScaleMethod
from trimtab.core.places import Site
from trimtab.core.recipe import Recipe, Step
from trimtab.engine.basis import write_out_bases
from trimtab.engine.packed_linear import PackedLinear, PackedStack
from trimtab.engine.plan import resolve, takes
from trimtab.engine.surgery import place
from trimtab.formats import Dense
from trimtab.formats.activations import rounds_inputs


def unpack(model: nn.Module, recipe: Recipe) -> list[str]:
    """Puts plain matrices, in the dtype of the model, where the first step that works on a packed one does not take it.

    Returns notes for the receipt, none where nothing was unpacked. Raises `RecipeError` for a `where` that matches nothing, and
    for a matrix that rounds its inputs: unpacked it would not.
    """
    if not any(isinstance(module, PackedLinear | PackedStack) for module in model.modules()):
        return []
    anatomy = Anatomy.of(model)
    refused = _refused(anatomy, recipe)
    if refused and write_out_bases(model):
        anatomy = Anatomy.of(model)
        refused = _refused(anatomy, recipe)
    kinds = sorted({type(anatomy.weight(site)).__name__ for site in refused})
    for site in refused:
        if rounds_inputs(anatomy.weight(site).spec()):
            raise RecipeError(f"{site.name} rounds its inputs and cannot be unpacked; begin with the model before that")
        place(model, site.path, Dense(anatomy.weight(site).dense()), anatomy.bias(site), site.transposed, site.index)
    if not refused:
        return []
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    what = f"{len(refused)} matrices that came packed ({', '.join(kinds)}) were unpacked to {dtype} first"
    return [f"{what}: what packing them had cost before is part of the result"]


def _refused(anatomy: Anatomy, recipe: Recipe) -> list[Site]:
    steps = [(step, frozenset(_sites(anatomy, step))) for step in recipe.steps]
    return [site for site in anatomy.sites if _is_refused(anatomy, site, steps)]


def _sites(anatomy: Anatomy, step: Step) -> Sequence[Site]:
    if isinstance(step.method, LinearMethod | ScaleMethod):
        return resolve(anatomy, step.where)[0]
    return anatomy.sites if isinstance(step.method, ChannelMethod | ModelMethod) else ()


def _is_refused(anatomy: Anatomy, site: Site, steps: Sequence[tuple[Step, frozenset[Site]]]) -> bool:
    kind = type(anatomy.weight(site))
    first = next((step.method for step, sites in steps if site in sites), None)
    if first is None or kind.kind in ("dense", "masked"):
        return False
    return not (isinstance(first, LinearMethod) and takes(first, kind))
