"""Files that somebody made on purpose, each with what it tries; and a witness that sees whether a secret was opened."""

import ctypes
import json
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trimtab.host import checkpoint, folder_checks
from trimtab.host.gguf_checks import check_gguf
from trimtab.report import folders
from trimtab.runtime import folder as native_folder
from trimtab.runtime.template import render
from trimtab.testing.folders import tiny_folder

BODY = bytes(64)
TENSOR = {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}
IN_OPEN, IN_ACCESS = 0x20, 0x1


def safetensors(header: Any, body: bytes = BODY, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def _one(**changes: Any) -> bytes:
    return safetensors({"a": {**TENSOR, **changes}})


def _many(count: int) -> bytes:
    inner = ",".join(f'"{n}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for n in range(count))
    return safetensors(f"{{{inner}}}".encode(), b"")


HOSTILE_SAFETENSORS: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "seven bytes": lambda: bytes(7),
    "length 2^63": lambda: safetensors(b"{}", length=2**63),
    "length 2^64 - 1": lambda: safetensors(b"{}", length=2**64 - 1),
    "length 100 MB + 1": lambda: safetensors(b"{}", length=10**8 + 1),
    "header of 100 MB + 1": lambda: safetensors(b" " * (10**8 - 1) + b"{}"),
    "nested 10^5": lambda: safetensors(b'{"a":' * 10**5 + b"1" + b"}" * 10**5),
    "overlapping": lambda: safetensors({"a": TENSOR, "b": TENSOR}),
    "reversed": lambda: _one(data_offsets=[64, 0]),
    "a hole": lambda: safetensors({"a": {**TENSOR, "shape": [2, 4], "data_offsets": [32, 64]}}),
    "bytes behind the end": lambda: safetensors({"a": TENSOR}, BODY + b"PK\x03\x04"),
    "beyond the end": lambda: safetensors({"a": {**TENSOR, "shape": [2**30], "data_offsets": [0, 2**32]}}),
    "2^40 x 2^40": lambda: _one(shape=[2**40, 2**40]),
    "2^32 x 2^32 wraps to 0": lambda: _one(shape=[2**32, 2**32], data_offsets=[0, 0]),
    "negative shape": lambda: _one(shape=[-4, -4]),
    "negative offset": lambda: _one(data_offsets=[-64, 0]),
    "shape of numbers with points": lambda: _one(shape=[4.0, 4.0]),
    "unknown dtype": lambda: _one(dtype="F33"),
    "dtype a list": lambda: _one(dtype=["F32"]),
    "no offsets": lambda: safetensors({"a": {"dtype": "F32", "shape": [4, 4]}}),
    "three offsets": lambda: _one(data_offsets=[0, 32, 64]),
    "twice the same name": lambda: safetensors(b'{"a":%s,"a":%s}' % ((json.dumps(TENSOR).encode(),) * 2)),
    "not an object": lambda: safetensors(b"[]"),
    "UTF-16": lambda: safetensors(json.dumps({"a": TENSOR}).encode("utf-16")),
    "a number of 5000 digits": lambda: safetensors(b'{"a":{"dtype":"F32","shape":[' + b"1" * 5000 + b'],"data_offsets":[0,64]}}'),
    "800 000 tensors": lambda: _many(800_000),
}
ODD_SAFETENSORS: dict[str, Callable[[], bytes]] = {
    "no dimension": lambda: safetensors({"a": {**TENSOR, "shape": [], "data_offsets": [0, 4]}}, bytes(4)),
    "names with ../": lambda: safetensors({"../../a": TENSOR}),
    "a name with NUL": lambda: safetensors({"a\0b\x1b[2J\n": TENSOR}),
    "a name of 1 MB": lambda: safetensors({"a" * 10**6: TENSOR}),
    "100 000 tensors": lambda: _many(100_000),
}


def read_safetensors(folder: Path) -> None:
    """By every reader of ours, each of which has to refuse it for the input to count as refused."""
    folder_checks.weights_in(folder_checks.weight_files(folder))
    native_folder.open_tensors(folder)
    folders.parts(folder)


READERS: dict[str, Callable[[Path], Any]] = {
    "torch": lambda folder: folder_checks.weights_in(folder_checks.weight_files(folder)),
    "native": native_folder.open_tensors,
}


def render_template(name: str) -> None:
    """Raises AssertionError if the text has something that no template may know."""
    text = render(HOSTILE_TEMPLATES[name], [{"role": "user", "content": "hi"}], {})
    assert not any(word in text for word in ("class", "function", "root:", "uid=", "module")), text[:200]


def _string(value: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(value) if length is None else length) + value


def gguf(keys: list[bytes] = (), tensors: list[bytes] = (), n_keys: int | None = None, n_tensors: int | None = None) -> bytes:  # type: ignore[assignment]
    counts = len(tensors) if n_tensors is None else n_tensors, len(keys) if n_keys is None else n_keys
    head = b"GGUF" + struct.pack("<IQQ", 3, *counts) + b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + bytes(256)


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return _string(name) + struct.pack("<I", kind) + value


def tensor(name: bytes = b"a", shape: tuple[int, ...] = (32, 2), kind: int = 0, offset: int = 0) -> bytes:
    return _string(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}QIQ", *shape, kind, offset)


def _alignment(value: int) -> bytes:
    return gguf([key(b"general.alignment", 4, struct.pack("<I", value))], [tensor()])


HOSTILE_GGUF: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "another magic": lambda: b"GGML" + bytes(100),
    "version 99": lambda: b"GGUF" + struct.pack("<IQQ", 99, 0, 0) + bytes(64),
    "2^63 keys": lambda: gguf(n_keys=2**63),
    "2^63 tensors": lambda: gguf(n_tensors=2**63),
    "more keys than bytes": lambda: gguf(n_keys=60000),
    "a key of 2^62 bytes": lambda: gguf([_string(b"a", 2**62)]),
    "a string of 2^62 bytes": lambda: gguf([key(b"a", 8, struct.pack("<Q", 2**62))]),
    "a string of 2^64 - 1 bytes": lambda: gguf([key(b"a", 8, struct.pack("<Q", 2**64 - 1))]),
    "a list of lists": lambda: gguf([key(b"a", 9, struct.pack("<IQ", 9, 1000))]),
    "a list of 2^61 numbers": lambda: gguf([key(b"a", 9, struct.pack("<IQ", 12, 2**61))]),
    "a list of 2^60 strings": lambda: gguf([key(b"a", 9, struct.pack("<IQ", 8, 2**60))]),
    "a list of type 77": lambda: gguf([key(b"a", 9, struct.pack("<IQ", 77, 1))]),
    "a value of type 999": lambda: gguf([key(b"a", 999, b"")]),
    "alignment 0": lambda: _alignment(0),
    "alignment 3": lambda: _alignment(3),
    "alignment 2^31": lambda: _alignment(2**31),
    "alignment as text": lambda: gguf([key(b"general.alignment", 8, _string(b"32"))], [tensor()]),
    "offset beyond the end": lambda: gguf(tensors=[tensor(offset=2**40)]),
    "offset 2^64 - 32": lambda: gguf(tensors=[tensor(offset=2**64 - 32)]),
    "offset not aligned": lambda: gguf(tensors=[tensor(shape=(4,), offset=4)]),
    "overlapping": lambda: gguf(tensors=[tensor(b"a"), tensor(b"b")]),
    "dimension 0": lambda: gguf(tensors=[tensor(shape=(32, 0))]),
    "dimension 2^42": lambda: gguf(tensors=[tensor(shape=(2**42,))]),
    "product wraps": lambda: gguf(tensors=[tensor(shape=(2**32, 2**32))]),
    "65 dimensions": lambda: gguf(tensors=[tensor(shape=(1,) * 65)]),
    "type 999": lambda: gguf(tensors=[tensor(kind=999)]),
    "rows of half a block": lambda: gguf(tensors=[tensor(shape=(33, 2), kind=2)]),
    "a key twice": lambda: gguf([key(b"a", 4, bytes(4))] * 2),
    "a tensor twice": lambda: gguf(tensors=[tensor(), tensor(offset=256)]),
}


def read_gguf(folder: Path) -> None:
    check_gguf(folder / "model.gguf")


Change = Callable[[Path, Path], None]


def _config(**changes: Any) -> Change:
    def act(folder: Path, _: Path) -> None:
        _edit(folder / "config.json", changes)

    return act


def _edit(path: Path, changes: dict[str, Any]) -> None:
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **changes}))


def _raw(name: str, content: Callable[[], str]) -> Change:
    return lambda folder, _: (folder / name).write_text(content()) and None


def _tokenizer(*keys: str) -> Change:
    """The tokenizer's settings name the secret wherever a file may be named."""
    return lambda folder, secret: _edit(folder / "tokenizer_config.json", {key: str(secret) for key in keys})


def _elsewhere(name: str) -> Change:
    """A file of the folder is a link to the secret."""

    def act(folder: Path, secret: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(secret)

    return act


def _index_to_the_secret(folder: Path, secret: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": str(secret)}}))


def _templates_elsewhere(folder: Path, secret: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "a.jinja").symlink_to(secret)


def _template_folder_elsewhere(folder: Path, secret: Path) -> None:
    (folder / "additional_chat_templates").symlink_to(secret.parent, target_is_directory=True)


def _adapter(folder: Path, secret: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(secret), "peft_type": "LORA"}))


def _code(folder: Path, secret: Path) -> None:
    (folder / "evil.py").write_text(f"open({str(secret)!r}).read()")
    mapped = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer"), "evil.Evil")
    _edit(folder / "config.json", {"auto_map": mapped, "trust_remote_code": True})
    _edit(
        folder / "tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, "trust_remote_code": True}
    )


def _loop(folder: Path, _: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to("tokenizer.json")


def _pipe(folder: Path, _: Path) -> None:
    (folder / "tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer.json")


def _device(folder: Path, _: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to("/dev/zero")


def _weights_elsewhere(folder: Path, secret: Path) -> None:
    _elsewhere("model.safetensors")(folder, secret)


def _large_tokenizer(folder: Path, _: Path) -> None:
    with (folder / "tokenizer.json").open("wb") as file:
        file.truncate(1 << 30)


BOMB = "[" + "[]," * (1 << 20) + "[]]"
# What each does to a good folder, which `checkpoint.load` then opens. It may be refused, or open as if it were not there.
HOSTILE_FOLDERS: dict[str, Change] = {
    "code in config and tokenizer": _code,
    "config: other places": lambda f, s: _edit(
        f / "config.json", {"_name_or_path": str(s), "transformers_weights": str(s), "gguf_file": str(s), "name_or_path": str(s)}
    ),
    "config: attention from a repository": _config(_attn_implementation="a/b", _attn_implementation_internal="a/b"),
    "config: 10^6 layers": _config(num_hidden_layers=10**6),
    "config: 10^400 layers": _raw("config.json", lambda: '{"model_type": "llama", "num_hidden_layers": 1' + "0" * 400 + "}"),
    "config: layers 1e6 as text": _config(num_hidden_layers="1000000"),
    "config: 10^9 positions": _config(max_position_embeddings=10**9),
    "config: gpt2 with 10^6 positions": _config(
        model_type="gpt2", n_positions=10**6, max_position_embeddings=10**6, n_layer=2000
    ),
    "config: mixtral with 16 384 experts": _config(model_type="mixtral", num_local_experts=1 << 14, num_hidden_layers=2000),
    "config: 10^6 layer types": _config(layer_types=["full_attention"] * 10**6),
    "config: deep": _raw("config.json", lambda: '{"model_type": "llama", "a": ' + "[" * 900 + "]" * 900 + "}"),
    "config: deep 10^5": _raw("config.json", lambda: '{"a":' * 10**5),
    "config: a million lists": _raw("config.json", lambda: '{"model_type": "llama", "a": ' + BOMB + "}"),
    "config: 100 MB": _raw("config.json", lambda: '{"model_type": "llama", "a": "' + "a" * 10**8 + '"}'),
    "config: twice the same key": _raw("config.json", lambda: '{"model_type": "llama", "model_type": "gpt2"}'),
    "config: NaN": _raw("config.json", lambda: '{"model_type": "llama", "rms_norm_eps": NaN}'),
    "config: 1e400": _raw("config.json", lambda: '{"model_type": "llama", "rms_norm_eps": 1e400}'),
    "config: dtype os.system": _config(dtype="os.system", torch_dtype="os.system"),
    "config: rope of 10^9": _config(rope_parameters={"rope_type": "yarn", "factor": 1e9, "rope_theta": 1e300}),
    "config: quantized by a stranger": _config(
        quantization_config={"quant_method": "gptq", "modules_to_not_convert": ["(a+)+$"] * 1000}
    ),
    "config: patterns that never end": _config(
        quantization_config={"quant_method": "compressed-tensors", "ignore": ["re:(a+)+$"] * 1000, "config_groups": {}}
    ),
    "index to a file elsewhere": _index_to_the_secret,
    "tokenizer: files elsewhere": _tokenizer(
        *(
            "tokenizer_file",
            "vocab_file",
            "merges_file",
            "spm_file",
            "added_tokens_file",
            "special_tokens_map_file",
            "chat_template_file",
        )
    ),
    "tokenizer: another class": _tokenizer("tokenizer_class", "name_or_path", "fix_mistral_regex"),
    "tokenizer: old class": lambda f, s: _edit(
        f / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer", "vocab_file": str(s), "tokenizer_file": str(s)}
    ),
    "tokenizer: 1 GB": _large_tokenizer,
    "tokenizer: garbage": _raw("tokenizer.json", lambda: "{}"),
    "tokenizer: vocabulary of one list": _raw(
        "tokenizer.json", lambda: '{"model": {"type": "BPE", "vocab": [], "merges": [[[]]]}}'
    ),
    "link: weights": _weights_elsewhere,
    "link: tokenizer": _elsewhere("tokenizer.json"),
    "link: template": _elsewhere("chat_template.jinja"),
    "link: vocabulary": _elsewhere("vocab.json"),
    "link: merges": _elsewhere("merges.txt"),
    "link: generation": _elsewhere("generation_config.json"),
    "link: special tokens": _elsewhere("special_tokens_map.json"),
    "link: added tokens": _elsewhere("added_tokens.json"),
    "link: manifest": _elsewhere("trimtab.json"),
    "link: more templates": _templates_elsewhere,
    "link: folder of templates": _template_folder_elsewhere,
    "link: to itself": _loop,
    "link: to a device": _device,
    "a pipe": _pipe,
    "adapter of a secret": _adapter,
}
HOSTILE_TEMPLATES = {
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals of a function": "{{ raise_exception.__globals__ }}",
    "globals of a filter": "{{ ''|attr('__class__') }}",
    "globals of cycler": "{{ cycler.__init__.__globals__.os.system('id') }}",
    "import": "{% import '/etc/passwd' as p %}{{ p }}",
    "include": "{% include '/etc/passwd' %}",
    "changing the messages": "{{ messages.append(1) }}",
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "a long product": "{{ ('x' * 10000000000)|length }}",
    "a wide format": "{{ '{:20000000000}'.format(1)|length }}",
    "a wide centre": "{{ 'a'|center(10000000000)|length }}",
    "a large power": "{{ (10 ** 100000000)|string|length }}",
    "much text": "{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    "division by zero": "{{ 1 / 0 }}",
    "overflow": "{{ 10.0 ** 400 }}",
    "half a template": "{% for m in messages %}",
}
HOSTILE_RECIPES = {
    "object": "steps: !!python/object/apply:os.system ['id']",
    "name": "steps: !!python/name:os.system",
    "tag without a value": "seed: !!int ''\nsteps: [rtn]",
    "tag of another type": "seed: !!bool x\nsteps: [rtn]",
    "time that is none": "seed: !!timestamp x\nsteps: [rtn]",
    "a billion laughs": "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\nsteps: [rtn]",
    "100 000 brackets": "[" * 100_000,
    "100 000 dashes": "- " * 60_000,
    "1 MB": "steps: [rtn]\n" + "# comment\n" * 100_000,
    "20 000 keys": "steps: [rtn]\n" + "".join(f"a{n}: b\n" for n in range(10_000)),
    "5000 digits": f"seed: {'1' * 5000}\nsteps: [rtn]",
    "tokens beyond everything": f"calibration: {{tokens: {10**400}, length: {10**400}}}\nsteps: [{{gptq: {{bits: {10**400}}}}}]",
    "a number too large to be real": f"steps: [{{wanda: {{sparsity: 1{'0' * 400}}}}}]",
    "environment": "calibration: {text: '$HOME/.netrc'}\nsteps: ['$HOME']",
    "nothing": "",
    "null": "null",
}


def good_folder(place: Path) -> Path:
    return tiny_folder(place, num_hidden_layers=1)


def load(folder: Path) -> None:
    checkpoint.load(folder)


@contextmanager
def witness(secret: Path) -> Iterator[Callable[[], bool]]:
    """Whether the file was opened, by whatever code: the kernel says so."""
    libc = ctypes.CDLL(None, use_errno=True)
    handle = libc.inotify_init1(os.O_NONBLOCK)
    if handle < 0 or libc.inotify_add_watch(handle, os.fsencode(secret), IN_OPEN | IN_ACCESS) < 0:
        raise OSError(ctypes.get_errno(), "no inotify")

    def opened() -> bool:
        try:
            return bool(os.read(handle, 4096))
        except BlockingIOError:
            return False

    try:
        yield opened
    finally:
        os.close(handle)
