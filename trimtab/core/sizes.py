"""Sizes as people write them: `60MB`, `1.5 GB`, `512KiB`, `123456`, or `40%` of what there is now."""

import re
from decimal import Decimal

FACTORS = {"": 1, "b": 1, "bytes": 1}
FACTORS |= {f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)}
FACTORS |= {f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)}


def in_bytes(text: str, whole: int) -> int:
    """Whole bytes, rounded down. whole: what a percentage is of. Raises ValueError for anything that is no size above zero."""
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*|%)\s*", text)
    unit = found[2].lower() if found else ""
    if found is None or unit not in (*FACTORS, "%") or not Decimal(found[1]):
        raise ValueError(f"{text!r} is no size; write e.g. 60MB, 1.5GB, 512KiB or 40%")
    return int(Decimal(found[1]) * (Decimal(whole) / 100 if unit == "%" else FACTORS[unit]))
