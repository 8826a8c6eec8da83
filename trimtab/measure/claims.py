"""Claims are run, not believed: both sides on the same tokens, several seeds, a paired difference with its interval.

A claim holds if the whole 95 % interval of left - right lies on the promised side of zero, fails if it lies on the other
side, and is "not separable" otherwise. Nobody sets a status by hand: the ledger is appended to by runs alone and its page
is rendered from it. A result of other code than today's, or of a claim that was worded otherwise, stays and is called that.
Code changes more often than what it computes: where today's gives both sides of the first seed again, digit for digit, the
result is carried over to it, and says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from math import isclose
from typing import Any

import torch
from torch import Tensor

from trimtab.core.card import Claim
from trimtab.core.errors import UsageError, did_you_mean
from trimtab.core.progress import Watcher, unwatched
from trimtab.core.recipe import Calibration, Recipe
from trimtab.core.registry import get
from trimtab.host.provenance import commit, machine
from trimtab.measure.code_digest import digest_of
from trimtab.measure.paired import PairedDifference, paired_difference
from trimtab.measure.side_store import Ground, SideStore, kernels_used, modules_of
from trimtab.measure.sides import Setting, Side

STATUSES = ("holds", "fails", "not separable", "not run")
NOT_RUN = STATUSES[-1]
OLDER = "older code"
COMPARING = "trimtab.measure.paired"
SAME = 1e-12  # relative; a rounding that falls the other way moves a perplexity by far more
QUICK = Setting(windows=8, length=256, calibration=Calibration(tokens=2048, length=256), seeds=(0,))


def claims_of(method: str) -> tuple[Claim, ...]:
    """The claims on a method's card."""
    return get(method).card.claims


def find_claim(method: str, name: str) -> Claim:
    """Raises `UsageError` with the nearest name if the method makes no such claim."""
    known = {c.name: c for c in claims_of(method)}
    if name not in known:
        raise UsageError(f"{method} makes no claim {name!r}{did_you_mean(name, known)}")
    return known[name]


def statement(claim: Claim) -> str:
    """`gptq(bits=3) < rtn(bits=3)`"""
    return f"{claim.left} {claim.relation} {claim.right}"


def setting_for(claim: Claim, standard: Setting = Setting(), **given: Any) -> Setting:
    """The standard setting, the claim's own model and text in it, and over both what somebody asked for by name."""
    own = {name: value for name in ("model", "text") if (value := getattr(claim, name)) is not None}
    return replace(standard, **{**own, **given})


def expressions(claim: Claim) -> tuple[str | None, ...]:
    """What has to be measured: the model as it came, left, right."""
    return (None, claim.left, claim.right)


def run_claim(
    method: str, claim: Claim, setting: Setting | None = None, watch: Watcher = unwatched, ground: Ground | None = None
) -> dict[str, Any]:
    """Both sides, measured or remembered, as a line for the ledger. Nothing is written there."""
    setting = setting or setting_for(claim)
    store = SideStore(setting, ground or Ground.of(setting, watch))
    (base,), left, right = store.sides(expressions(claim), watch)
    found = paired_difference(_cells(left), _cells(right))
    return {
        "method": method,
        "claim": claim.name,
        "status": status(claim, found),
        "difference": found.difference,
        "low": found.low,
        "high": found.high,
        "unit": "nats per token, left - right",
        "n": found.n,
        "seeds": list(setting.seeds),
        "statement": statement(claim),
        "left_ppl": [perplexity_of(side) for side in left],
        "right_ppl": [perplexity_of(side) for side in right],
        "base_ppl": perplexity_of(base),
        "left_bits": left[0].bits,
        "right_bits": right[0].bits,
        "seconds": round(sum(side.seconds for side in (*left, *right)), 1),
        "model": setting.model,
        "setting": {**asdict(setting), "model_history": store.ground.history},
        "code": code_for(claim),
        "commit": commit(),
        "machine": {**machine(), "kernels": kernels_used()},
        "date": _today(),
    }


def check_claim(
    method: str,
    claim: Claim,
    line: Mapping[str, Any],
    setting: Setting,
    watch: Watcher = unwatched,
    ground: Ground | None = None,
) -> dict[str, Any]:
    """An earlier line, carried over to the present code, if both sides come out the same at its first seed.

    setting: that of the line. Raises `UsageError` where they do not, or where the claim reads otherwise now.
    """
    if line["statement"] != statement(claim):
        raise UsageError(f"{method}/{claim.name} reads otherwise now; run it again")
    first = replace(setting, seeds=setting.seeds[:1])
    store = SideStore(first, ground or Ground.of(first, watch))
    sides = store.sides((claim.left, claim.right), watch)
    for name, (found,) in zip(("left_ppl", "right_ppl"), sides, strict=True):
        before, now = line[name][0], perplexity_of(found)
        if not isclose(now, before, rel_tol=SAME):
            side = claim.left if name == "left_ppl" else claim.right
            raise UsageError(f"{side}, seed {first.seeds[0]}, was {before:.6g} and is {now:.6g} now; run the claim again")
    checked = {"commit": commit(), "date": _today(), "seed": first.seeds[0]}
    return {**line, "code": code_for(claim), "checked": checked}


def setting_of(line: Mapping[str, Any]) -> Setting:
    """What a line was measured in."""
    held = {name: value for name, value in line["setting"].items() if name in Setting.__dataclass_fields__}
    return Setting(**{**held, "calibration": Calibration(**held["calibration"]), "seeds": tuple(held["seeds"])})


def status(claim: Claim, found: PairedDifference) -> str:
    """holds, fails or not separable, from the interval and nothing else."""
    left_is = found.verdict()
    if left_is == "not separable":
        return left_is
    return "holds" if (left_is == "better") == (claim.relation == "<") else "fails"


def age(claim: Claim, line: Mapping[str, Any]) -> str:
    """ "other statement" or "older code" where a result is not what the claim would give today; else empty."""
    if line.get("statement", statement(claim)) != statement(claim):
        return "other statement"
    return "" if line.get("code") == code_for(claim) else OLDER


def code_for(claim: Claim) -> str:
    """Digest of the code that can change the claim's result: what measures the sides, and what compares them."""
    return digest_of([*modules_of((Recipe.of(claim.left), Recipe.of(claim.right))), COMPARING])


def perplexity_of(side: Side) -> float:
    return float(side.losses.mean().exp())


def _today() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d")


def _cells(sides: Sequence[Side]) -> Tensor:
    """[seeds, windows]"""
    return torch.stack([side.losses for side in sides])
