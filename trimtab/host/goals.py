"""Which recipe serves a goal with a given model: what it would take is planned to the byte, what it costs was measured elsewhere.

Decoding reads every weight once per token, so an answer takes as long as its bytes: how fast each number of bits is read was
measured (`recipes/speeds.json`, tokens per second times bytes per token), and how many bytes a token reads of this model follows
from the plan. A format that the runtime unpacks on opening is neither faster nor smaller in memory, and is left out there.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from trimtab.anatomy import Anatomy
from trimtab.core.errors import UsageError
from trimtab.core.goals import Goal
from trimtab.core.kinds import LinearMethod
from trimtab.core.recipe import Recipe
from trimtab.core.shipped import ROOM, Measured, measured
from trimtab.engine.plan import Plan
from trimtab.engine.plan import plan as planned
from trimtab.engine.unpacking import unpack
from trimtab.host.checkpoint import load
from trimtab.host.compress import plan
from trimtab.host.model_assets import resolve_model

CONVERSATION = 4096  # tokens of which keys and values are to fit as well, in bfloat16; fewer where the model reads fewer
PROGRAM = 65_000_000  # bytes that a process with the runtime takes besides what it opens; measured, without torch
UNPACKED = ("pyramid",)  # formats that the runtime unpacks
AS_IT_COMES = "bfloat16"  # whose measured speed stands for plain matrices of any type


def first_that_fits(model: str, recipes: Sequence[Recipe], dtype: Any = None) -> Recipe:
    """The first recipe that can be planned for the model, which is opened in `dtype`; the last one if none can.

    Planning the last one then says what is wrong. Raises `ModelError` as `load` does.
    """
    opened, _ = load(resolve_model(model), dtype=dtype)
    return next((recipe for recipe in recipes[:-1] if _fits(opened, recipe)), recipes[-1])


def _fits(model: Any, recipe: Recipe) -> bool:
    try:
        plan(model, recipe)
    except UsageError:
        return False
    return True


@dataclass(frozen=True)
class Candidate:
    """A measured recipe, and what it would make of the model at hand.

    files: bytes of the weight files; running: of memory while it answers; speedup: of decoding, expected. None for the last two
    where the runtime would unpack the format, for speedup also where its speed was not measured.
    """

    measured: Measured
    files: int
    running: int | None
    speedup: float | None

    @property
    def name(self) -> str:
        return self.measured.name

    def json(self) -> dict[str, Any]:
        return {"recipe": self.name, **asdict(self), "increase": self.measured.increase}


@dataclass(frozen=True)
class Choice:
    """For a goal: the recipes to be tried in turn, and all that were looked at, the one that loses least first."""

    goal: Goal
    tried: tuple[Candidate, ...]
    considered: tuple[Candidate, ...]

    @property
    def chosen(self) -> Candidate:
        return self.tried[0]

    def further(self) -> Candidate | None:
        """The next recipe beyond the chosen one: smaller, and it loses more. None if there is none."""
        own = self.chosen
        beyond = [c for c in self.considered if c.files < own.files and c.measured.increase > own.measured.increase]
        if self.goal.name != "max_ppl_increase":
            beyond = [c for c in beyond if c.running is not None]
        return min(beyond, key=lambda c: c.measured.increase, default=None)

    def json(self) -> dict[str, Any]:
        further = self.further()
        return {
            "asked": str(self.goal),
            "chosen": self.chosen.name,
            "further": None if further is None else further.name,
            "considered": [candidate.json() for candidate in self.considered],
        }


def choose(goal: Goal, model: str, dtype: Any = None) -> Choice:
    """The measured recipe that loses least of those that meet the goal; where the loss is the goal, the smallest.

    Raises `UsageError` that says what is possible where none meets it, `ModelError` as `load` does.
    """
    opened, _ = load(resolve_model(model), dtype=dtype)
    found = candidates(opened, measured())
    if not found:
        raise UsageError(f"{goal} cannot be met: no measured recipe fits this model; choose a method (trimtab methods)")
    if goal.name == "max_ppl_increase":
        return Choice(goal, _by_loss(goal, found), tuple(found))
    met = [c for c in found if _meets(goal, c)]
    if not met:
        raise UsageError(_impossible(goal, found))
    return Choice(goal, (met[0],), tuple(found))


def candidates(model: Any, rows: Sequence[Measured]) -> list[Candidate]:
    """Of the measured recipes those whose size is known beforehand and that fit the model, the one that loses least first."""
    if rows:
        unpack(model, rows[0].recipe)
    anatomy = Anatomy.of(model)
    found = []
    for row in sorted(rows, key=lambda row: row.increase):
        recipe = row.recipe
        try:
            plan = planned(anatomy, recipe)
        except UsageError:  # its groups do not divide this model's widths, say
            continue
        if plan.file_bytes is not None:
            found.append(_candidate(row, recipe, plan, anatomy))
    return found


def _candidate(row: Measured, recipe: Recipe, plan: Plan, anatomy: Anatomy) -> Candidate:
    assert plan.file_bytes is not None
    assert plan.bytes_after is not None
    kind, bits = _format(recipe)
    if kind in UNPACKED:
        return Candidate(row, plan.file_bytes, None, None)
    unties = any(getattr(step.method, "unties", False) for step in recipe.steps)
    read = read_per_token(anatomy, plan.bytes_after, unties)
    # The files stay mapped beside what was laid out of them. Their pages can be taken back, but count until then.
    running = PROGRAM + plan.file_bytes + read + conversation_bytes(anatomy.model)
    rates, speedup = speeds(), None
    if f"{kind}{bits}" in rates:
        speedup = read_per_token(anatomy, plan.bytes_before, False) / rates[AS_IT_COMES] / (read / rates[f"{kind}{bits}"])
    return Candidate(row, plan.file_bytes, running, speedup)


def _format(recipe: Recipe) -> tuple[str, int | None]:
    """The kind of what the last step leaves, and its bits where they are the same everywhere."""
    last = recipe.steps[-1]
    if not isinstance(last.method, LinearMethod):
        return "dense", None
    return last.method.gives[0].kind, None if last.by else last.method.knobs().get("bits")


def read_per_token(anatomy: Anatomy, stored: int, untied: bool) -> int:
    """Bytes of weights that the runtime reads for one token. stored: of all tensors; untied: head and embedding are two by then.

    Of an embedding one row is read; a plain head is read in at most 16 bits a weight.
    """
    embedding, head = (sum(t.nbytes for t in anatomy.weight(anatomy.sites[at]).tensors().values()) for at in (0, -1))
    rows, columns = anatomy.sites[-1].shape
    apart = untied or not anatomy.tied
    return stored - (embedding + head if apart else embedding) + min(head, 2 * rows * columns)


def conversation_bytes(model: Any) -> int:
    """Bytes that keys and values of a conversation of `CONVERSATION` tokens take in bfloat16."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    tokens = min(CONVERSATION, getattr(config, "max_position_embeddings", None) or CONVERSATION)
    return 2 * 2 * int(config.num_hidden_layers * heads * width * tokens)


@cache
def speeds() -> dict[str, float]:
    """Bytes of weights per second that decoding got through, by format and bits, on one machine in one session."""
    found: dict[str, float] = json.loads(Path(ROOM, "speeds.json").read_text(encoding="utf-8"))["bytes_per_second"]
    return found


def _meets(goal: Goal, candidate: Candidate) -> bool:
    if goal.name == "fit":
        return candidate.running is not None and candidate.running <= goal.value
    return candidate.speedup is not None and candidate.speedup >= goal.value


def _by_loss(goal: Goal, found: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """The smallest that lost no more than is allowed where it was measured; then those that lose less, the smallest first."""
    met = [c for c in found if c.measured.increase <= goal.value]
    if not met:
        raise UsageError(_impossible(goal, found))
    first = min(met, key=lambda c: c.files)
    return first, *sorted((c for c in met if c.measured.increase < first.measured.increase), key=lambda c: c.files)


def _impossible(goal: Goal, found: Sequence[Candidate]) -> str:
    if goal.name == "max_ppl_increase":
        best = found[0]
        return (
            f"{goal} cannot be met: {best.name}, which loses least, was measured at {best.measured.increase:+.2%}; ask for more"
        )
    if goal.name == "fit":
        smallest = min((c for c in found if c.running is not None), key=lambda c: c.running or 0, default=None)
        return f"{goal} cannot be met: " + (
            f"{smallest.name}, the smallest measured recipe, needs {(smallest.running or 0) / 1e6:.1f}MB"
            if smallest
            else "the runtime would unpack every measured recipe that fits this model"
        )
    fastest = max((c for c in found if c.speedup is not None), key=lambda c: c.speedup or 0, default=None)
    return f"{goal} cannot be met: " + (
        f"{fastest.name}, the fastest measured recipe, is expected at {fastest.speedup:.1f}x with this model"
        if fastest
        else "the speed of no recipe that fits this model was measured"
    )
