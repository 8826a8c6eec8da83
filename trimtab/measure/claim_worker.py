"""One claim in a process of its own: `python -m trimtab.measure.claim_worker`, started by `programme`."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from trimtab.core.errors import TrimtabError
from trimtab.core.progress import Progress
from trimtab.host.processes import Say, as_child
from trimtab.measure.claims import check_claim, find_claim, run_claim, setting_of
from trimtab.measure.side_store import Ground
from trimtab.measure.sides import Setting


def task_of(
    method: str, claim: str, setting: Setting, ground: Ground, earlier: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The task as JSON. earlier: the line of the ledger that is to be checked; None: the claim is to be run."""
    return {"method": method, "claim": claim, "setting": asdict(setting), "ground": asdict(ground), "earlier": earlier}


def work(task: Mapping[str, Any], say: Say) -> None:
    """Says the ledger line, or why there is none. What nobody foresaw ends the process."""
    method, setting, ground, earlier = task["method"], setting_of(task), Ground(**task["ground"]), task["earlier"]
    claim = find_claim(method, task["claim"])

    def watch(now: Progress) -> None:
        say("progress", asdict(now))

    try:
        if earlier is None:
            say("result", run_claim(method, claim, setting, watch, ground))
        else:
            say("result", check_claim(method, claim, earlier, setting, watch, ground))
    except TrimtabError as error:
        say("error", str(error))


if __name__ == "__main__":
    as_child(work)
