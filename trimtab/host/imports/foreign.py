"""Models that other programs packed are starting points like any other: once, each becomes a folder of ours in the cache.

A GGUF file, or a folder that transformers would open with GPTQModel, AutoAWQ, compressed-tensors or bitsandbytes, is read by
us, matrix by matrix into our formats, and from then on opened like what `compress` writes. The folder in the cache is known by
place, sizes and times of the files that it was made from, so a file that changes is read again.
"""

import hashlib
import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.core.errors import ModelError
from trimtab.core.progress import Progress, Watcher, unwatched
from trimtab.data.assets import cached
from trimtab.host.folder_checks import LARGEST_JSON
from trimtab.host.source import record

if TYPE_CHECKING:
    from trimtab.host.imports.folder import Read

METHODS = ("gptq", "awq", "compressed-tensors", "bitsandbytes")
READING = 1  # counts changes of what is made of a file
MAGIC = b"GGUF"
SUFFIXES = (".gguf", ".json", ".safetensors", ".model", ".txt", ".jinja")


def imported(name: str, watch: Watcher = unwatched) -> Path | None:
    """The folder of ours for a foreign file or folder; None if `name` is neither. Raises `ModelError` if it cannot be read."""
    place = Path(name).expanduser()
    file = _gguf_file(place)
    method = None if file else _method(place)
    if file is None and method is None:
        return None

    def fill(folder: Path) -> None:
        watch(Progress("import", 0, 1, name))
        _fill(folder, place, file, method)

    return cached(f"imported-{_key(file or place)}", fill)


def _fill(folder: Path, place: Path, file: Path | None, method: str | None) -> None:
    from trimtab.host.imports import folder as ours

    if file is not None:
        read, said = _from_gguf(file, folder), "llama.cpp (GGUF)"
    else:
        read, said = ours.read_folder(place), str(method)
        ours.copy_beside(place, folder)
    ours.write_folder(read, folder)
    packed, plain = _counts(read)
    note = f"matrices were packed by {said} before we got them ({packed} kept as integers, {plain} unpacked)"
    record(folder, {"file": (file or place).name, "note": note})
    ours.finish(folder)


def _from_gguf(file: Path, folder: Path) -> "Read":
    from trimtab.host.imports.gguf import read_gguf
    from trimtab.host.imports.gguf_header import read_header
    from trimtab.host.imports.gguf_tokenizer import tokenizer_of

    read = read_gguf(file)
    tokenizer = tokenizer_of(file, read_header(file).values)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return read


def _counts(read: "Read") -> tuple[int, int]:
    packed = sum(weight.kind == "grouped" for weight in read.weights.values())
    return packed, len(read.weights) - packed


def _gguf_file(place: Path) -> Path | None:
    """The file itself, or the only one in a folder that holds no other model."""
    if place.is_file():
        return place if place.suffix == ".gguf" or _begins(place) else None
    if not place.is_dir() or (place / "config.json").exists():
        return None
    files = sorted(place.glob("*.gguf"))
    if len(files) > 1:
        raise ModelError(f"{place} holds {len(files)} GGUF files; give the name of one of them")
    return files[0] if files else None


def _begins(place: Path) -> bool:
    with place.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _method(place: Path) -> str | None:
    """Of METHODS, the one that config.json names. What is wrong with that file is said by whoever opens the folder."""
    path = place / "config.json"
    if not path.is_file() or path.stat().st_size > LARGEST_JSON:
        return None
    try:
        config: Any = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None
    described = config.get("quantization_config") if isinstance(config, dict) else None
    method = described.get("quant_method") if isinstance(described, dict) else None
    if method == "compressed-tensors" and find_spec("compressed_tensors") and not _reads(described):
        return None  # transformers opens it with that package
    return method if method in METHODS else None


def _reads(described: Any) -> bool:
    from trimtab.host.imports.compressed_tensors import CompressedTensors

    try:
        CompressedTensors(described)
    except ModelError:
        return False
    return True


def _key(place: Path) -> str:
    files = [place] if place.is_file() else sorted(p for p in place.iterdir() if p.suffix in SUFFIXES)
    seen = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file()]
    return hashlib.sha256(json.dumps([READING, seen]).encode()).hexdigest()[:16]
