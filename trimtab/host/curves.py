"""How a model learned, for its receipt: the losses of a training, beside what the receipt of its base says."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trimtab.core.errors import ModelError
from trimtab.host.folder_checks import read_json
from trimtab.host.tuned import Tuned

RECEIPT = "receipt.json"


def curve(method: str, rows: int, tuned: Tuned) -> dict[str, Any]:
    """One training as JSON: losses by step, and what validations said after how many steps."""
    validations = [{"step": step, "loss": loss} for step, loss in tuned.validations]
    said = {"best": tuned.best, "stopped": tuned.stopped, "seconds": tuned.seconds}
    return {"method": method, "rows": rows, "losses": tuned.losses, "validations": validations, **said}


def receipt_with(base: Path, called: str, learned: Sequence[Mapping[str, Any] | None]) -> str | None:
    """receipt.json of a model that was trained from the one in `base`, or None where there is nothing to say.

    What was measured is left out: it was the base's. Raises `ModelError` for a receipt that is damaged.
    """
    before = read_json(base / RECEIPT) if (base / RECEIPT).is_file() else {}
    earlier = before.get("learned", [])
    if not isinstance(earlier, list):
        raise ModelError(f"{base / RECEIPT} is damaged: learned is no list; delete it, or write the model again")
    curves = [*earlier, *(one for one in learned if one is not None)]
    if not before and not curves:
        return None
    kept = {name: value for name, value in before.items() if name != "measurements"}
    return json.dumps({"model": called, **kept, "learned": curves}, indent=1) + "\n"
