"""Our own readers of files from outside, each with inputs that it takes: what the mutations start from."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import mutate
import torch
import yaml
from safetensors.torch import save_file

from trimtab import formats
from trimtab.core.compiled import load as load_compiled
from trimtab.core.errors import UsageError
from trimtab.core.recipe import Recipe
from trimtab.data import pack, text
from trimtab.engine import surgery
from trimtab.host import folder_checks, manifest
from trimtab.host.checkpoint import skeleton
from trimtab.host.gguf_checks import check_gguf
from trimtab.host.quantizer import TrimtabConfig
from trimtab.measure import ledger
from trimtab.report import folders, reading
from trimtab.report.document import document
from trimtab.runtime import facts, folder, weights
from trimtab.runtime.text import Text
from trimtab.testing.folders import tiny_folder
from trimtab.testing.tiny import ARCHITECTURES, tiny
from trimtab.testing.weights import examples

COMPILED = ("codebook", "nm", "masked", "block_diagonal")  # what the compiled kernels check by themselves


@dataclass(frozen=True)
class Parser:
    """seeds: what it takes, as bytes or as what JSON gives. read: what it does with bytes, in an empty folder.

    share: of all mutated inputs, in proportion to the other parsers.
    """

    seeds: Callable[[], list[Any]]
    read: Callable[[bytes, Path], Any]
    share: int = 1


def inputs(parser: Parser, count: int, seed: int) -> list[bytes]:
    """The first `count` mutated inputs."""
    return [mutated(parser, seed, number) for number in range(count)]


def mutated(parser: Parser, seed: int, number: int) -> bytes:
    draw = Random(f"{seed}/{number}")
    start = draw.choice(_seeds(parser.seeds))
    return mutate.damaged(start, draw) if isinstance(start, bytes) else mutate.damaged_json(start, draw)


@cache
def _seeds(make: Callable[[], list[Any]]) -> list[Any]:
    return make()


def unchanged(parser: Parser) -> list[bytes]:
    """The inputs that it takes."""
    return [seed if isinstance(seed, bytes) else json.dumps(seed).encode() for seed in _seeds(parser.seeds)]


def _written(name: str, read: Callable[[Path], Any]) -> Callable[[bytes, Path], Any]:
    """For readers of one file: writes it, then reads."""

    def act(data: bytes, place: Path) -> Any:
        (place / name).write_bytes(data)
        return read(place / name)

    return act


def _safetensors(header: dict[str, Any] | None = None) -> bytes:
    header = header or {
        "__metadata__": {"format": "pt"},
        "model.embed_tokens.weight": {"dtype": "F32", "shape": [4, 3], "data_offsets": [0, 48]},
        "model.layers.0.mlp.up_proj.codes": {"dtype": "U8", "shape": [2, 8], "data_offsets": [48, 64]},
        "lm_head.weight": {"dtype": "BF16", "shape": [2, 2, 2], "data_offsets": [64, 80]},
    }
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(range(80))


def _gguf() -> list[bytes]:
    def string(value: bytes) -> bytes:
        return len(value).to_bytes(8, "little") + value

    def u32(value: int) -> bytes:
        return value.to_bytes(4, "little")

    def u64(value: int) -> bytes:
        return value.to_bytes(8, "little")

    keys = [
        string(b"general.architecture") + u32(8) + string(b"llama"),
        string(b"general.alignment") + u32(4) + u32(32),
        string(b"llama.block_count") + u32(4) + u32(2),
        string(b"tokenizer.ggml.tokens") + u32(9) + u32(8) + u64(3) + string(b"a") + string(b"<0x00>") + string(b"bc"),
        string(b"tokenizer.ggml.scores") + u32(9) + u32(6) + u64(3) + bytes(12),
    ]
    tensors = [
        string(b"token_embd.weight") + u32(2) + u64(32) + u64(3) + u32(0) + u64(0),
        string(b"blk.0.ffn_up.weight") + u32(2) + u64(32) + u64(2) + u32(2) + u64(384),
    ]
    head = b"GGUF" + u32(3) + u64(len(tensors)) + u64(len(keys)) + b"".join(keys) + b"".join(tensors)
    return [head + bytes(-len(head) % 32) + bytes(384 + 64)]


def _configs() -> list[Any]:
    return [json.loads(tiny(name).config.to_json_string(use_diff=False)) for name in ARCHITECTURES]


def _read_config(data: bytes, place: Path) -> Any:
    (place / "config.json").write_bytes(data)
    return folder_checks.read_config(place)


def _facts(data: bytes, place: Path) -> Any:
    (place / "config.json").write_bytes(data)
    return facts.facts(folder.read_config(place))


ONE = {"kind": "grouped", "shape": [128, 64], "bits": 4, "group_size": 16, "symmetric": True, "bias": False}
MODULES = {
    "model.layers.0.mlp.up_proj": ONE,
    "model.layers.1.mlp.gate_proj": {"kind": "dense", "shape": [96, 64], "bias": False},
    "model.layers.1.self_attn.q_proj": {
        "kind": "sum",
        "shape": [64, 64],
        "bias": True,
        "parts": [{"kind": "dense", "shape": [64, 64], "dtype": "float16"}, {**ONE, "shape": [64, 64]}],
    },
}
for inner in MODULES["model.layers.1.self_attn.q_proj"]["parts"]:  # type: ignore[attr-defined]
    inner.pop("bias", None)


@cache
def _plain_config() -> Any:
    return tiny("llama", num_hidden_layers=2).config


def _described(data: bytes, place: Path) -> Any:
    """As `checkpoint.load` does it: read_config's JSON, our config class, then the skeleton."""
    (place / "config.json").write_bytes(data)
    described = folder_checks.read_json(place / "config.json")
    if not all(isinstance(key, str) for key in described):
        raise AssertionError("JSON has no other keys")
    modules = TrimtabConfig(**described).modules
    surgery.shape(skeleton(_plain_config()), modules, torch.float32)


@cache
def _weights() -> list[Any]:
    return examples(4, 24, torch.Generator().manual_seed(0))


def _numbered(number: Any) -> Any:
    return _weights()[number if type(number) is int and number in range(len(_weights())) else 0]


def _spec(data: bytes, place: Path) -> Any:
    (place / "spec.json").write_bytes(data)
    given = folder_checks.read_json(place / "spec.json")
    number = given.pop("number", 0)
    stored = _numbered(number)
    formats.layout(given)
    return formats.build(given, stored.tensors()).dense()


def _specs() -> list[Any]:
    return [{**weight.spec(), "number": number} for number, weight in enumerate(_weights())]


def _runtime_weight(data: bytes, place: Path) -> Any:
    (place / "spec.json").write_bytes(data)
    given = folder_checks.read_json(place / "spec.json")
    number = given.pop("number", 0)
    weight = _numbered(number)
    save_file({name: t.contiguous() for name, t in weight.tensors().items()}, place / "model.safetensors")
    made = weights.Weight("here", given, folder.open_tensors(place))
    if made.kind in ("sum", "chain", "rotated"):
        return weights.parts_of(made)
    return weights.linear(made) if made.kind in COMPILED else weights.unpacked(made)


def _read_specs() -> list[Any]:
    compiled = COMPILED if load_compiled()[0] is not None else ()
    return [spec for spec in _specs() if spec["kind"] in ("pyramid", "sum", "chain", "rotated", *compiled)]


RECIPES = [
    b"trimtab: 1\ncalibration: {text: 'asset:squad-drop', tokens: 65536, length: 512}\nsteps:\n  - wanda: {pattern: '2:4'}\n"
    b"    where: {skip: ['layers.0']}\n  - gptq: {bits: 4}\n    by: {layerwise_quant: {bits: 3}}\n",
    b"steps: [rtn, {gptq: {bits: 3, group_size: 32}}]\nseed: 7\n",
]
EXPRESSIONS = [b"wanda(pattern='2:4') -> gptq(bits=4) by layerwise_quant(bits=3)", b"rtn(bits=3, symmetric=True)", b"hlq"]


def _recipes() -> list[Any]:
    return [*RECIPES, yaml.safe_load(RECIPES[0])]


def _ledger() -> list[Any]:
    return [b'{"method": "gptq", "claim": "ppl", "status": "holds"}\n{"method": "a", "claim": "b", "status": "c"}\n']


def _items() -> list[Any]:
    return [{"context": "2 + 2?", "continuations": [" 4", " 5"], "gold": 0, "domain": "sums", "text": "a document"}]


def _manifests() -> list[Any]:
    return [
        {
            "format": 1,
            "created": "now",
            "versions": {},
            "files": {"config.json": {"sha256": hashlib.sha256(b"{}").hexdigest(), "size": 2}},
        }
    ]


def _verified(data: bytes, place: Path) -> Any:
    (place / "config.json").write_text("{}")
    (place / manifest.NAME).write_bytes(data)
    return manifest.verify(place)


def _index() -> list[Any]:
    return [{"metadata": {"total_size": 80}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}]


def _index_read(data: bytes, place: Path) -> Any:
    entry = {"dtype": "U8", "shape": [80], "data_offsets": [0, 80]}
    for number, name in enumerate("ab", 1):
        (place / f"model-{number}.safetensors").write_bytes(_safetensors({name: entry}))
    (place / "model.safetensors.index.json").write_bytes(data)
    found = folder_checks.weights_in(folder_checks.weight_files(place))
    if not found.items() <= {"a": (80,), "b": (80,)}.items():
        raise AssertionError(f"took an index for what it is not: {found}")
    return folder.open_tensors(place)


def _headers(data: bytes, place: Path) -> Any:
    """Both readers: what one takes, the other has to take, with the same shapes."""
    (place / "model.safetensors").write_bytes(data)
    try:
        theirs: Any = folder_checks.weights_in([place / "model.safetensors"])
    except UsageError:
        theirs = None
    ours = {name: stored.shape for name, stored in folder.open_tensors(place).items()}
    if theirs is not None and ours != theirs:
        raise AssertionError(f"two readers see different tensors: {ours} and {theirs}")
    return folders.parts(place)


@cache
def _tokenizer() -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        return (tiny_folder(Path(place) / "m", num_hidden_layers=1) / "tokenizer.json").read_bytes()


def _texts(name: str) -> Callable[[bytes, Path], Any]:
    def act(data: bytes, place: Path) -> Any:
        (place / "tokenizer.json").write_bytes(_tokenizer())
        (place / name).write_bytes(data)
        found = Text.open(place)
        return found.decode(found.encode("hello")[:3])

    return act


def _settings() -> list[Any]:
    template = [{"name": "default", "template": "{{ messages }}"}]
    return [{"bos_token": {"content": "<bos>"}, "eos_token": "<eos>", "chat_template": template, "model_max_length": 10**30}]


def _generation() -> list[Any]:
    return [{"eos_token_id": [2, 3], "repetition_penalty": 1.1, "temperature": 0.5}]


def _documents() -> list[Any]:
    number = {"name": "perplexity", "value": 20.0, "stderr": 0.1, "n": 100, "unit": "per token", "setting": {}}
    receipt = {"model": "m", "recipe": {}, "receipts": [], "notes": ["n"], "measurements": [number], "seeded": True}
    one = {"name": "a", "folder": "", "measurements": [number], "receipt": receipt}
    return [{"format": 1, "setting": {"tokens": 10}, "base": one, "others": [one], "notes": ["x"], "made": {"commit": "a"}}]


def _documents_read(path: Path) -> Any:
    return document(reading.read_json(path))


PARSERS: dict[str, Parser] = {
    "safetensors header": Parser(lambda: [_safetensors()], _headers, 4),
    "index of shards": Parser(_index, _index_read),
    "GGUF header": Parser(_gguf, _written("model.gguf", check_gguf), 6),
    "config.json": Parser(_configs, _read_config, 3),
    "config.json, native": Parser(_configs, _facts, 3),
    "quantization_config": Parser(lambda: [{"quant_method": "trimtab", "version": 1, "modules": MODULES}], _described),
    "spec of a weight": Parser(_specs, _spec, 4),
    "spec of a weight, native": Parser(_read_specs, _runtime_weight, 2),
    "recipe": Parser(_recipes, _written("r.yaml", Recipe.read), 3),
    "recipe expression": Parser(lambda: [*EXPRESSIONS], lambda data, _: Recipe.of(data.decode("utf-8", "surrogateescape")), 4),
    "text .jsonl": Parser(_items, _written("t.jsonl", lambda path: text.documents(str(path))), 2),
    "text .txt": Parser(lambda: [b"one text\n\nanother\xc3\xa9"], _written("t.txt", lambda path: text.documents(str(path)))),
    "task .jsonl": Parser(_items, _written("t.jsonl", pack.file_requests), 2),
    "manifest": Parser(_manifests, _verified, 2),
    "claims ledger": Parser(_ledger, _written("ledger.jsonl", ledger.read)),
    "comparison document": Parser(_documents, _written("c.json", _documents_read), 2),
    "tokenizer_config.json": Parser(_settings, _texts("tokenizer_config.json")),
    "generation_config.json": Parser(_generation, _texts("generation_config.json")),
}


def shares(total: int) -> dict[str, int]:
    """How many inputs every parser gets of so many in all."""
    whole = sum(parser.share for parser in PARSERS.values())
    return {name: -(-total * parser.share // whole) for name, parser in PARSERS.items()}


__all__ = ["PARSERS", "Parser", "inputs", "mutated", "shares", "unchanged"]
