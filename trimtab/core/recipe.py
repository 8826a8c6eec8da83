"""A recipe: steps, where each applies, and what the model is shown. Python and YAML say the same thing.

    trimtab: 1
    calibration: {text: "asset:squad-drop", tokens: 65536, length: 512}
    steps:
      - wanda: {pattern: "2:4"}
        where: {skip: ["layers.0"]}
      - gptq: {bits: 4}
        by: {layerwise_quant: {bits: 3}}

Everything in it is checked before any weight moves; unknown keys are errors with a suggestion.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from trimtab.core.errors import RecipeError, UsageError, did_you_mean
from trimtab.core.expression import make, steps
from trimtab.core.kinds import Allocator, LinearMethod, Method, ProbeMethod

VERSION = 1
LARGEST = 1 << 17  # bytes of a recipe: reading YAML takes seconds for a megabyte
DEEPEST = 20  # of brackets in each other; the time to read them grows with the square of their depth


@dataclass(frozen=True)
class Calibration:
    """What the model is shown. text: an asset or a file; tokens: how many in all; length: tokens per window.

    batch: windows per forward pass; changes speed and memory only. compute: what the blocks run in while they are watched, and
    what training multiplies in; bfloat16 is faster on processors that have it and rounds the activations.
    """

    text: str = "asset:squad-drop"
    tokens: int = 65536
    length: int = 512
    batch: int = 4
    compute: str = "float32"

    def __post_init__(self) -> None:
        for name in ("tokens", "length", "batch"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise RecipeError(f"calibration: {name} must be a whole number of at least 1, got {value!r:.80}")
        if not isinstance(self.text, str) or not self.text:
            raise RecipeError(f"calibration: text must be the name of an asset or a file, got {self.text!r:.80}")
        if self.compute not in ("float32", "bfloat16"):
            raise RecipeError(f"calibration: compute must be float32 or bfloat16, got {self.compute!r:.80}")
        if self.length < 2 or self.tokens < self.length:
            raise RecipeError(
                f"calibration: needs length >= 2 and tokens >= length, got tokens={self.tokens}, length={self.length}"
            )

    @property
    def windows(self) -> int:
        return self.tokens // self.length


@dataclass(frozen=True)
class Where:
    """Which sites. `only`: patterns, empty = every matrix of the decoder blocks; `skip`: patterns taken out again.

    A pattern's dotted parts match consecutive parts of a name: `layers.1` is layer 1 and never 10 to 19.
    """

    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("only", "skip"):
            value = getattr(self, name)
            value = (value,) if isinstance(value, str) else value
            if not isinstance(value, list | tuple) or not all(isinstance(p, str) and p for p in value):
                raise RecipeError(f"where: {name} must be a list of name patterns, got {value!r:.80}")
            object.__setattr__(self, name, tuple(value))


@dataclass(frozen=True)
class Step:
    """One method, where it applies, and optionally the allocator that sets its strength site by site."""

    method: Method
    where: Where = Where()
    by: Allocator | None = None

    def __post_init__(self) -> None:
        if isinstance(self.method, Allocator):
            raise RecipeError(f"{self.method.card.id} only sets another method's strength: write `METHOD by {self.method}`")
        if isinstance(self.method, ProbeMethod):
            raise RecipeError(f"{self.method.card.id} only looks, it is no step; write trimtab probe MODEL {self.method.card.id}")
        if self.by is None:
            return
        if not isinstance(self.by, Allocator):
            raise RecipeError(f"{self.by.card.id} is no allocator; nothing can be done 'by' it")
        if not isinstance(self.method, LinearMethod) or self.by.knob not in self.method.knobs():
            raise RecipeError(f"{self.by.card.id} sets {self.by.knob!r}, which {self.method.card.id} does not have")

    def __str__(self) -> str:
        return f"{self.method} by {self.by}" if self.by else str(self.method)


@dataclass(frozen=True)
class Recipe:
    """Steps in order, on one calibration set. `seed` decides the windows shown and all randomness of the methods."""

    steps: tuple[Step, ...]
    calibration: Calibration = Calibration()
    seed: int = 0

    def __post_init__(self) -> None:
        given = (self.steps,) if isinstance(self.steps, Step | Method) else self.steps
        object.__setattr__(self, "steps", tuple(s if isinstance(s, Step) else Step(s) for s in given))
        if not self.steps:
            raise RecipeError("a recipe needs at least one step, e.g. steps: [{gptq: {bits: 3}}]")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise RecipeError(f"seed must be a whole number, got {self.seed!r:.80}")

    def __str__(self) -> str:
        return " -> ".join(map(str, self.steps))

    @classmethod
    def of(cls, expression: str, calibration: Calibration | None = None, seed: int = 0) -> "Recipe":
        """From the one-line form, e.g. `wanda(pattern='2:4') -> gptq(bits=4)`."""
        made = tuple(Step(method, by=_allocator(by)) for method, by in steps(expression))
        return cls(made, calibration or Calibration(), seed)

    @classmethod
    def read(cls, path: str | Path) -> "Recipe":
        """From a YAML file. Raises `RecipeError` naming the file."""
        path = Path(path)
        if not path.is_file():
            raise RecipeError(f"there is no recipe file {path}")
        if path.stat().st_size > LARGEST:
            raise RecipeError(f"{path} is larger than {LARGEST} bytes; that is no recipe")
        try:
            return cls.parse(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise RecipeError(f"{path} is not UTF-8 text") from error
        except OSError as error:
            raise RecipeError(f"{path} cannot be read: {error.strerror}") from error
        except UsageError as error:
            raise RecipeError(f"{path}: {error}") from error

    @classmethod
    def parse(cls, text: str) -> "Recipe":
        """From YAML text, by a safe loader without anchors (a recipe needs none, and they can be bombs) and without tags."""
        try:
            _check_tokens(text)
            return cls.from_dict(yaml.safe_load(text))
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise RecipeError(f"not readable as YAML: {first:.300}") from error

    @classmethod
    def from_dict(cls, data: Any) -> "Recipe":
        """From what YAML or JSON gives. Unknown keys, wrong types and bad values raise `RecipeError`."""
        data = _mapping(data, "the recipe")
        _known(data, ("trimtab", "calibration", "steps", "seed"), "the recipe")
        if data.get("trimtab", VERSION) != VERSION:
            raise RecipeError(f"recipe format {data['trimtab']!r:.80} is not known; this version reads {VERSION}")
        if not isinstance(data.get("steps"), list):
            raise RecipeError("the recipe needs `steps:`, a list such as [{gptq: {bits: 3}}]")
        calibration = _mapping(data.get("calibration") or {}, "calibration")
        _known(calibration, [f.name for f in fields(Calibration)], "calibration")
        made = tuple(_step(step, number) for number, step in enumerate(data["steps"], 1))
        return cls(made, Calibration(**calibration), data.get("seed", 0))

    def to_dict(self) -> dict[str, Any]:
        """Every value spelled out, defaults too, so that a saved recipe does not change with the defaults."""
        made: list[dict[str, Any]] = []
        for step in self.steps:
            entry: dict[str, Any] = {step.method.card.id: step.method.knobs()}
            where = {k: list(v) for k, v in asdict(step.where).items() if v}
            if where:
                entry["where"] = where
            if step.by:
                entry["by"] = {step.by.card.id: step.by.knobs()}
            made.append(entry)
        return {"trimtab": VERSION, "seed": self.seed, "calibration": asdict(self.calibration), "steps": made}

    def yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False)


_OPENING = (yaml.FlowSequenceStartToken, yaml.FlowMappingStartToken, yaml.BlockSequenceStartToken, yaml.BlockMappingStartToken)
_CLOSING = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)


def _check_tokens(text: str) -> None:
    if len(text) > LARGEST:
        raise RecipeError(f"a recipe of {len(text)} characters; at most {LARGEST}")
    depth = 0
    for token in yaml.scan(text):
        if isinstance(token, yaml.AnchorToken | yaml.AliasToken | yaml.TagToken):
            raise RecipeError("YAML anchors, aliases and tags are not allowed in recipes")
        depth += isinstance(token, _OPENING) - isinstance(token, _CLOSING)
        if depth > DEEPEST:
            raise RecipeError(f"the recipe is nested deeper than {DEEPEST} levels")


def _listed(names: Mapping[str, Any]) -> str:
    return f"{list(names)!r:.200}" if names else "nothing"


def _allocator(method: Method | None) -> Allocator | None:
    if method is not None and not isinstance(method, Allocator):
        raise RecipeError(f"{method.card.id} is no allocator; nothing can be done 'by' it")
    return method


def _step(data: Any, number: int) -> Step:
    what = f"step {number}"
    if isinstance(data, str):
        data = {data: {}}
    data = dict(_mapping(data, what))
    where = _mapping(data.pop("where", None) or {}, f"{what}, where")
    _known(where, [f.name for f in fields(Where)], f"{what}, where")
    by = data.pop("by", None)
    method = _method(data, what)
    return Step(method, Where(**where), None if by is None else _allocator(_method(by, f"{what}, by")))


def _method(data: Any, what: str) -> Method:
    data = {data: {}} if isinstance(data, str) else _mapping(data, what)
    if len(data) != 1:
        raise RecipeError(f"{what} must name one method, e.g. gptq: {{bits: 3}}; it has {_listed(data)}")
    ((id, values),) = data.items()
    return make(id, dict(_mapping(values or {}, f"{what}, {id}")))


def _mapping(data: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping) or not all(isinstance(k, str) for k in data):
        raise RecipeError(f"{what} must be a mapping of names to values, got {data!r:.80}")
    return data


def _known(data: Mapping[str, Any], known: Any, what: str) -> None:
    for key in data:
        if key not in known:
            raise RecipeError(f"{what} has no field {key!r:.80}{did_you_mean(key, known)}")
