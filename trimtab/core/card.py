"""What a method says about itself, and what it promises."""

from dataclasses import dataclass
from typing import Literal

Fidelity = Literal["exact", "reconstructed", "variant"]


@dataclass(frozen=True)
class Claim:
    """An inequality between two recipe expressions, measured on the same tokens, or between two findings of a probe.

    `metric` is what both sides are measured by. "ppl": mean negative log-likelihood per token, nats, lower is better; `left`
    and `right` are recipe expressions such as `"gptq(bits=3)"`, compared window by window. "finding": they are findings such
    as `"depth_efficiency: adds, first half"`, or one is a number; compared block by block (`core.observed`). `relation` is
    "<" or ">".
    `published` quotes the paper's own pair of numbers and the scale, such as "7.26 < 17.29, LLaMA-7B, WikiText2".
    `model` and `text` are what it is run on where the usual ones would not be fair, such as `"asset:own-5m-outliers"` for a
    claim about outliers; None: the usual ones.
    """

    name: str
    left: str
    relation: Literal["<", ">"]
    right: str
    metric: Literal["ppl", "finding"] = "ppl"
    published: str = ""
    note: str = ""
    model: str | None = None
    text: str | None = None


@dataclass(frozen=True)
class Card:
    """Identity of a method. `id` equals the file name; `fidelity` says how close to the paper the code is.

    exact: formulas and defaults as published or as in the authors' code, up to what the module docstring says.
    reconstructed: parts had to be filled in. variant: deliberately different. baseline: others are measured against it, and
    it promises nothing itself; a method that is no baseline makes at least one claim.
    """

    id: str
    title: str
    paper: str
    fidelity: Fidelity
    claims: tuple[Claim, ...] = ()
    beside: tuple[str, ...] = ()
    baseline: bool = False
