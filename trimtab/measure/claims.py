"""Claims are run, not believed: both sides on the same tokens, several seeds, a paired difference with its interval.

Sides are recipes, compared by the losses of the same windows of text, or findings of a probe in the same blocks (`evidence`).
A claim holds if the whole 95 % interval of left - right lies on the promised side of zero, fails if it lies on the other
side, and is "not separable" otherwise. Nobody sets a status by hand: the ledger is appended to by runs alone and its page
is rendered from it. A result of other code than today's, or of a claim that was worded otherwise, stays and is called that.
Code changes more often than what it computes: where today's gives both sides of the first seed again, digit for digit, the
result is carried over to it, and says so.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from math import isclose
from types import MappingProxyType
from typing import Any

from trimtab.core.card import Claim
from trimtab.core.errors import UsageError, did_you_mean
from trimtab.core.progress import Watcher, unwatched
from trimtab.core.recipe import Calibration, Recipe
from trimtab.core.registry import get
from trimtab.core.taught import TaughtMethod
from trimtab.host.provenance import commit, machine
from trimtab.measure.code_digest import digest_of
from trimtab.measure.evidence import VALUES, gathered, modules
from trimtab.measure.paired import PairedDifference, paired_difference
from trimtab.measure.side_store import Ground, kernels_used
from trimtab.measure.sides import Setting

STATUSES = ("holds", "fails", "not separable", "not run")
NOT_RUN = STATUSES[-1]
OLDER = "older code"
COMPARING = "trimtab.measure.paired"
PROBED = 2048  # calibration tokens that a probe is shown
LESSONS = 16  # times as many calibration tokens, at most, where a side trains: few of them would be learned by heart
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


def setting_for(
    claim: Claim, standard: Setting = Setting(), shown: Mapping[str, Any] = MappingProxyType({}), **given: Any
) -> Setting:
    """The standard setting, the claim's own model and text in it, and over both what somebody asked for by name.

    shown: what was asked for of the calibration. Probes, which drive every block many times, are shown less by themselves; where
    a side trains the whole model, both are shown what the longer training of the two reads, or `LESSONS` times the usual.
    """
    own = {name: value for name in ("model", "text") if (value := getattr(claim, name)) is not None}
    usual = standard.calibration
    if claim.metric == "finding":
        usual = replace(usual, tokens=min(usual.tokens, PROBED))
    else:
        usual = replace(usual, tokens=max(usual.tokens, min(_read(claim, usual.length), LESSONS * usual.tokens)))
    return replace(standard, **{**own, **given, "calibration": replace(usual, **shown)})


def run_claim(
    method: str, claim: Claim, setting: Setting | None = None, watch: Watcher = unwatched, ground: Ground | None = None
) -> dict[str, Any]:
    """Both sides, measured or remembered, as a line for the ledger. Nothing is written there."""
    setting = setting or setting_for(claim)
    ground = ground or Ground.of(setting, watch)
    evidence = gathered(claim, setting, ground, watch)
    found = paired_difference(evidence.left, evidence.right)
    return {
        "method": method,
        "claim": claim.name,
        "status": status(claim, found),
        "difference": found.difference,
        "low": found.low,
        "high": found.high,
        "unit": evidence.unit,
        "n": found.n,
        "seeds": list(setting.seeds),
        "statement": statement(claim),
        **evidence.said,
        "model": setting.model,
        "setting": {**asdict(setting), "model_history": ground.history},
        "code": code_for(claim),
        "commit": commit(),
        "machine": {**machine(), "kernels": kernels_used(setting.calibration.compute)},
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
    said = gathered(claim, first, ground or Ground.of(first, watch), watch, base=False).said
    for name, side in zip(VALUES[claim.metric], (claim.left, claim.right), strict=True):
        before, now = line[name][0], said[name][0]
        if not isclose(now, before, rel_tol=SAME):
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
    return digest_of([*modules(claim), COMPARING])


def _read(claim: Claim, length: int) -> int:
    """Tokens that the longer training of both sides reads, in windows of that length; 0 where none trains the whole model."""
    taught = [
        [step.method for step in Recipe.of(side).steps if isinstance(step.method, TaughtMethod)]
        for side in (claim.left, claim.right)
    ]
    return max(sum(method.steps * method.windows * length for method in methods) for methods in taught)


def _today() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d")
