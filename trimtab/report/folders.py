"""What single folders say without being run: sizes from file headers, and the receipt."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trimtab.core.errors import UsageError
from trimtab.report.document import FORMAT, Document, Model
from trimtab.report.reading import read_json
from trimtab.report.receipts import record

MOST_VALUES = 1 << 20  # of which a header of nothing but brackets would make a gigabyte
LARGEST_HEADER = 32 << 20  # the safetensors format allows 100 MB; 32 MB name 200 000 tensors
WEIGHTS = (".safetensors", ".gguf")
# For a drawing only, by the words that families use; what fits nothing is "other". First match counts.
PART_WORDS = (
    ("norms", re.compile(r"norm|(^|\.)ln_?\w*\.")),
    ("embedding", re.compile(r"embed|(^|\.)(wte|wpe|lm_head|output_projection)\.")),
    ("attention", re.compile(r"attn|attention")),
    ("mlp", re.compile(r"mlp|feed_forward|ffn|experts|moe|(^|\.)(fc1|fc2|fc_in|fc_out)\.")),
)


def facts(folder: Path) -> dict[str, Any]:
    """One model of a comparison document, as far as its folder tells: name, size, receipt.

    Raises `UsageError`, one line, if it is no model folder or its receipt is damaged.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; give the folder of a model")
    files = weight_files(folder)
    if not files and not (folder / "receipt.json").exists():
        raise UsageError(f"{folder} holds neither weights nor a receipt.json; give the folder of a model")
    size = {"name": "file size", "value": sum(f.stat().st_size for f in files), "stderr": 0.0, "n": len(files), "unit": "bytes"}
    receipt = receipt_of(folder)
    kept = receipt.get("measurements", []) if receipt else []
    measurements = [*kept, *([size] if files else [])]
    return {"name": folder.resolve().name, "folder": str(folder), "measurements": measurements, "receipt": receipt}


def receipt_of(folder: Path) -> dict[str, Any] | None:
    """receipt.json, or None where there is none. Raises `UsageError` that names the file if it is damaged."""
    path = folder / "receipt.json"
    if not path.exists():
        return None
    found = read_json(path)
    record(found)
    return found.fields


def from_folders(folders: Sequence[Path]) -> dict[str, Any]:
    """A comparison document without a base: nothing is compared."""
    notes = ["No base model was given, so nothing is compared; give one with --base."]
    return {"format": FORMAT, "setting": {}, "base": None, "others": [facts(f) for f in folders], "notes": notes, "made": {}}


def with_parts(found: Document) -> Document:
    """With the bytes by part of every model whose folder is here."""
    base = _with_parts(found.base) if found.base else None
    return replace(found, base=base, others=tuple(_with_parts(model) for model in found.others))


def _with_parts(model: Model) -> Model:
    folder = Path(model.folder).expanduser() if model.folder else None
    return replace(model, parts=parts(folder)) if folder and folder.is_dir() else model


def parts(folder: Path) -> dict[str, int]:
    """Bytes by part of the model, from the headers of its safetensors files alone."""
    found: Counter[str] = Counter()
    for file in weight_files(folder):
        if file.suffix == ".safetensors":
            found.update(_parts_in(file))
    return dict(found)


def weight_files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.suffix in WEIGHTS and path.is_file()]


def _parts_in(file: Path) -> Counter[str]:
    found: Counter[str] = Counter()
    for name, tensor in _header(file).items():
        ends = tensor.get("data_offsets") if isinstance(tensor, dict) else None
        if isinstance(ends, list) and len(ends) == 2 and all(isinstance(end, int) for end in ends):
            found[part_of(name)] += max(ends[1] - ends[0], 0)
    return found


def _header(file: Path) -> dict[str, Any]:
    """The JSON in front of the tensors: 8 bytes say how long it is."""
    try:
        with file.open("rb") as data:
            length = int.from_bytes(data.read(8), "little")
            if not 0 < length <= min(LARGEST_HEADER, file.stat().st_size - 8):
                raise ValueError(f"a header of {length} bytes")
            text = data.read(length)
        if text.count(b",") + text.count(b"[") + text.count(b"{") > MOST_VALUES:
            raise ValueError(f"more than {MOST_VALUES} values")
        header = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{file} is damaged or no safetensors file ({error}); fetch or write it again") from error
    if not isinstance(header, dict):
        raise UsageError(f"{file} is damaged: its header is no object; fetch or write it again")
    return header


def part_of(name: str) -> str:
    """embedding (with the head), attention, mlp, norms or other."""
    return next((part for part, words in PART_WORDS if words.search(name)), "other")


def bases(documents: Iterable[dict[str, Any] | None]) -> list[str]:
    """The models that receipts say they started from, each once."""
    names = [receipt.get("model") for receipt in documents if receipt]
    return list(dict.fromkeys(name for name in names if isinstance(name, str) and name))
