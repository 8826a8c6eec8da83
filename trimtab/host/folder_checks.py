"""What must hold for a model folder before anything in it reaches transformers.

A folder is data from outside. The stock loader reads shards outside of it when the index says so, builds a million
layers when the config says so, passes unknown keys of config.json on as attributes, and takes pickles; none of that is
needed to open a model. So: plain safetensors inside the folder, a config of sane sizes, no key that selects code.
"""

import json
import re
import stat
import warnings
from math import isfinite, prod
from pathlib import Path
from typing import Any

from trimtab.core.errors import ModelError

LARGEST_JSON = 1 << 26
LARGEST_HEADER = 32 << 20  # of a safetensors file, whose format allows 100 MB; 32 MB name 200 000 tensors with long names
LARGEST_TOKENIZER = 1 << 28  # bytes of a file that other libraries read; the largest vocabularies take 40 MB
MOST_VALUES = 1 << 20  # in one JSON file: as many bytes of brackets and commas would be 50 times as many in memory
DEEPEST = 64
LONGEST_LIST = 1 << 16  # in a config
MOST_LAYERS = 2000
# What a config may not choose: code, other files, other places, how the model is run.
DROPPED = re.compile(
    r"auto_map|trust_remote_code|_?(attn|experts)_implementation\w*|fusion_config|kernel_config|distributed_config"
    r"|transformers_weights|\w*name_or_path|_commit_hash|base_model_\w+_plan|custom_generate"
)
# Size-like keys by how they are spelled in config.json, and the range each may have.
RANGES = (
    (re.compile(r"num_hidden_layers|n_layers?|num_layers"), 1, MOST_LAYERS),
    (re.compile(r"\w*_layers"), 0, MOST_LAYERS),
    (re.compile(r"vocab_size"), 1, 1 << 24),
    (re.compile(r"hidden_size|n_embd|d_model|head_dim|num_attention_heads|n_heads?|intermediate_size|ffn_dim"), 1, 1 << 24),
    (re.compile(r"\w*experts"), 0, 1 << 14),
    (re.compile(r"\w*(heads|_dim|_rank)"), 0, 1 << 24),
)
TEMPLATES = "additional_chat_templates"  # the only folder inside that transformers reads
READ = (".json", ".safetensors", ".jinja", ".model", ".txt")
QUANT_METHODS = ("trimtab", "compressed-tensors")
IMPORTED = ("gptq", "awq", "bitsandbytes")  # read into our formats first, by whoever names the folder


def read_config(folder: Path, methods: tuple[str, ...] = QUANT_METHODS) -> dict[str, Any]:
    """config.json as a dict without the keys a file may not set (a warning names them). Raises `ModelError`.

    methods: which kinds of `quantization_config` there may be.
    """
    config = read_json(folder / "config.json")
    dropped = sorted(_drop(config))
    if dropped:
        warnings.warn(f"{folder / 'config.json'}: ignored {', '.join(dropped)}, which files may not set", stacklevel=3)
    if not isinstance(config.get("model_type"), str):
        raise ModelError(f"{folder / 'config.json'} names no model_type; trimtab opens transformers models")
    check_sizes(config, folder / "config.json")
    _check_method(config, folder, methods)
    return config


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object: no duplicate keys, no NaN or infinite numbers, of sane size and depth. Raises `ModelError`."""
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError(f"larger than {LARGEST_JSON} bytes")
        text = _bounded(path.read_text(encoding="utf-8"))
        content = json.loads(text, object_pairs_hook=_unique, parse_float=_finite, parse_constant=_finite)
        if not isinstance(content, dict):
            raise ValueError("not an object")
        _check_depth(content)
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing; that is no complete model folder") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not readable: {error!s:.300}") from error
    return content


def check_links(folder: Path) -> None:
    """No file that takes part in loading may lead out of the folder, except into the blobs of its own hub cache."""
    home = folder.resolve()
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else None
    try:
        for path in [*folder.iterdir(), *folder.glob(f"{TEMPLATES}/*")]:
            if path.suffix in READ or path.name == TEMPLATES:
                _check_link(path, home, blobs)
    except OSError as error:
        raise ModelError(f"{error.filename or folder} cannot be read: {error.strerror}") from error


def _check_link(path: Path, home: Path, blobs: Path | None) -> None:
    try:
        real = path.resolve()
    except RuntimeError as error:
        raise ModelError(f"{path} is a link that leads back to itself; copy the file into the folder") from error
    if real.parent not in (home, home / TEMPLATES, blobs):
        raise ModelError(f"{path} leads out of the model folder, to {real}; copy the file into the folder")
    if not path.exists() or path.name == TEMPLATES:
        return
    found = real.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ModelError(f"{path} is not a regular file")
    if path.suffix != ".safetensors" and found.st_size > LARGEST_TOKENIZER:
        raise ModelError(f"{path} is larger than {LARGEST_TOKENIZER} bytes, which no file beside the weights is")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the model, one or the shards of the index. Raises `ModelError`."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return [single]
    if not index.exists():
        raise ModelError(_no_weights(folder))
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not placed or not all(isinstance(name, str) for name in placed.values()):
        raise ModelError(f"{index} has no weight_map")
    files = []
    for name in sorted(set(placed.values())):
        if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise ModelError(f"{index} names {name!r:.200}, which is no safetensors file in this folder")
        if not (folder / name).is_file():
            raise ModelError(f"{folder / name} is missing; fetch or write the model again")
        files.append(folder / name)
    _check_index(index, placed, files)
    return files


def weights_in(files: list[Path]) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor, from the headers alone: a file may be larger than the room among the addresses.

    Raises `ModelError` for a damaged file or a tensor that is in two.
    """
    from trimtab.host.tensor_file import places  # here: folders are looked at before anything as heavy as torch is there

    found: dict[str, tuple[int, ...]] = {}
    for file in files:
        _check_header(file)
        shapes = {name: at.shape for name, at in places(file).items()}
        twice = sorted(found.keys() & shapes.keys())
        if twice:
            raise ModelError(f"{file} holds {twice[0]!r:.200}, which another file of the model holds too")
        found.update(shapes)
    return found


def _check_header(file: Path) -> None:
    """Before the library takes memory for it; and no tensor is named twice, of which the library takes the last."""
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if length > LARGEST_HEADER:
                raise ValueError(f"a header of {length:,} bytes")
            json.loads(_bounded(opened.read(length).decode("utf-8")), object_pairs_hook=_unique)
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file} is damaged or no safetensors file ({error!s:.200}); fetch or write it again") from error


def _bounded(text: str) -> str:
    """The text, if there are not too many values in it. Raises `ValueError`."""
    if text.count(",") + text.count("[") + text.count("{") > MOST_VALUES:
        raise ValueError(f"more than {MOST_VALUES} values")
    return text


def elements(shapes: dict[str, tuple[int, ...]]) -> int:
    """How many numbers the tensors have in all."""
    return sum(prod(shape) for shape in shapes.values())


def _check_index(index: Path, placed: dict[str, str], files: list[Path]) -> None:
    for file in files:
        there = weights_in([file]).keys()
        listed = {tensor for tensor, name in placed.items() if name == file.name}
        for tensor in sorted(listed ^ there):
            state = "does not hold" if tensor in listed else "holds, against the index,"
            raise ModelError(
                f"{file} {state} {tensor!r:.200}: {index.name} belongs to other files; fetch or write the model again"
            )


def _no_weights(folder: Path) -> str:
    pickles = [p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt")]
    if pickles:
        return f"{folder} has its weights in {pickles[0]}, which can carry code; convert them to safetensors first"
    if (folder / "adapter_config.json").exists():
        return f"{folder} is an adapter, not a model; merge it into its base model first"
    return f"{folder} has no model.safetensors; that is no complete model folder"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key occurs twice")
    return made


def _check_depth(content: Any) -> None:
    level = [content]
    for _ in range(DEEPEST):
        level = [v for c in level for v in (c.values() if isinstance(c, dict) else c) if isinstance(v, dict | list)]
    if level:
        raise ValueError(f"nested deeper than {DEEPEST} levels")


def _finite(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise ValueError(f"the number {text} is not finite")
    return value


def _drop(config: Any) -> set[str]:
    """Removes, at any depth, what a config may not set; the names of what had a value."""
    dropped: set[str] = set()
    if isinstance(config, list):
        return dropped.union(*map(_drop, (value for value in config if isinstance(value, dict | list))))
    if not isinstance(config, dict):
        return dropped
    for key in [key for key in config if DROPPED.fullmatch(key)]:
        if config.pop(key) not in (None, "", False) and not key.endswith("name_or_path"):
            dropped.add(key)
    return dropped.union(*(_drop(value) for key, value in config.items() if key != "quantization_config"))


def check_sizes(config: dict[str, Any], path: Path) -> None:
    """Raises `ModelError` naming the first size that is out of bounds."""
    for key, value in config.items():
        if isinstance(value, dict) and key != "quantization_config":
            check_sizes(value, path)
        if isinstance(value, list) and len(value) > LONGEST_LIST:
            raise ModelError(f"{path}: {key[:80]!r} has {len(value):,} entries; at most {LONGEST_LIST:,}")
        for pattern, low, high in RANGES:
            if pattern.fullmatch(key) and isinstance(value, int) and not isinstance(value, bool):
                if not low <= value <= high:
                    raise ModelError(f"{path}: {key} is {_short(value)}; trimtab opens models with {low} to {high}")
                break


def _short(value: int) -> str:
    return f"{value:.4g}" if abs(value) < 10**300 else f"a number of {value.bit_length()} bits"


def _check_method(config: dict[str, Any], folder: Path, methods: tuple[str, ...]) -> None:
    quantization = config.get("quantization_config")
    if quantization is None:
        config.pop("quantization_config", None)
        return
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    if method in IMPORTED and method not in methods:
        raise ModelError(f"{folder} is packed by {method}; give this folder to trimtab.load or a command, which read it first")
    if method not in methods:
        raise ModelError(
            f"{folder} is quantized by {method!r:.40}, which trimtab does not open; start from the model before that"
        )
