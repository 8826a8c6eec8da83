"""One claim in a process of its own: `python -m trimtab.measure.claim_worker`, started by `programme`."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from trimtab.core.errors import TrimtabError
from trimtab.core.recipe import Calibration
from trimtab.host.processes import Say, as_child
from trimtab.measure.claims import find_claim, run_claim
from trimtab.measure.side_store import Ground
from trimtab.measure.sides import Setting


def task_of(method: str, claim: str, setting: Setting, ground: Ground) -> dict[str, Any]:
    """The task as JSON."""
    return {"method": method, "claim": claim, "setting": asdict(setting), "ground": asdict(ground)}


def work(task: Mapping[str, Any], say: Say) -> None:
    """Says the ledger line, or why there is none. What nobody foresaw ends the process."""
    asked = dict(task["setting"])
    calibration, seeds = Calibration(**asked.pop("calibration")), tuple(asked.pop("seeds"))
    setting = Setting(**asked, calibration=calibration, seeds=seeds)
    claim = find_claim(task["method"], task["claim"])
    try:
        say(
            "result",
            run_claim(task["method"], claim, setting, lambda now: say("progress", asdict(now)), Ground(**task["ground"])),
        )
    except TrimtabError as error:
        say("error", str(error))


if __name__ == "__main__":
    as_child(work)
