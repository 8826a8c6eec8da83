"""Which model is this? A digest of the files that decide what it says, so that what was measured once is known again."""

import hashlib
import json
from pathlib import Path

from trimtab.core.errors import ModelError
from trimtab.host.manifest import digests

PATTERNS = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
SILENT = ("trimtab.json", "receipt.json")  # they tell about the model; the model does not depend on them


def fingerprint(folder: str | Path) -> str:
    """SHA-256, in hex, over names and contents of config, weights and tokenizer. Raises `ModelError` if there are none."""
    place = Path(folder)
    names = sorted({path.name for pattern in PATTERNS for path in place.glob(pattern)} - {*SILENT})
    if not names:
        raise ModelError(f"{place} holds no model files; give the folder that has config.json in it")
    table = dict(zip(names, digests(place, names), strict=True))
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()
