"""Model folders, and what can happen to them: every kind of damage, with and without the manifest."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from safetensors.torch import load_file, save_file

from trimtab.core.recipe import Recipe
from trimtab.engine.run import run
from trimtab.host import checkpoint, manifest
from trimtab.testing.folders import byte_tokenizer
from trimtab.testing.tiny import ARCHITECTURES, tiny, tokens

INDEX = "model.safetensors.index.json"
RECIPES = ("rtn(bits=4, group_size=16)", "hlq", "wanda(sparsity=0.5) -> gptq(bits=3, group_size=16)")
Damage = Callable[[Path, Random], None]


@dataclass(frozen=True)
class Fixture:
    """A kind of folder. recipe: what the model was compressed by, "" for none. shard: the largest weight file."""

    name: str
    family: str
    recipe: str = ""
    shard: str = "1GB"

    def write(self, folder: Path) -> Path:
        tokenizer = byte_tokenizer()
        layers = 2 if self.family not in ("gpt_oss", "gemma2", "gemma3", "lfm2") else 4
        model = tiny(self.family, vocab_size=len(tokenizer), num_hidden_layers=layers)
        if self.recipe:
            run(model, Recipe.of(self.recipe), [tokens(model, 4, 16)])
        return checkpoint.save(model, tokenizer, folder, overwrite=True, max_shard_size=self.shard)


def fixtures() -> list[Fixture]:
    """Twenty: every family as it is, sharded or not, and packed ones."""
    plain = [Fixture(name, name, shard="150kB" if i % 2 else "1GB") for i, name in enumerate(ARCHITECTURES)]
    packed = [Fixture(f"llama, {recipe}", "llama", recipe, "100kB" if i else "1GB") for i, recipe in enumerate(RECIPES)]
    return [*plain, *packed, Fixture("qwen2, packed", "qwen2", RECIPES[0]), Fixture("mixtral, packed", "mixtral", RECIPES[0])]


def weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def without_manifest(folder: Path) -> None:
    (folder / manifest.NAME).unlink()


def truncated(folder: Path, draw: Random) -> None:
    file = draw.choice(weight_files(folder))
    _cut(file, draw.randrange(file.stat().st_size))


def flipped(folder: Path, draw: Random) -> None:
    """One bit anywhere in any file that takes part in loading."""
    names = [p for p in folder.iterdir() if p.is_file() and p.name not in (manifest.NAME, "README.md")]
    file = draw.choices(names, [p.stat().st_size for p in names])[0]
    _patch(file, (at := draw.randrange(file.stat().st_size)), bytes([file.read_bytes()[at] ^ 1 << draw.randrange(8)]))


def flipped_header(folder: Path, draw: Random) -> None:
    """One bit of what names, shapes or places a tensor."""
    file = draw.choice(weight_files(folder))
    data = file.read_bytes()
    at = draw.randrange(8 + int.from_bytes(data[:8], "little"))
    _patch(file, at, bytes([data[at] ^ 1 << draw.randrange(8)]))


def zeroed(folder: Path, draw: Random) -> None:
    """A run of 16 zero bytes where there were others."""
    file = draw.choice(weight_files(folder))
    data = file.read_bytes()
    at = next(at for at in iter(partial(draw.randrange, len(data) - 16), -1) if any(data[at : at + 16]))
    _patch(file, at, bytes(16))


def lacking(folder: Path, draw: Random) -> None:
    file = draw.choice(weight_files(folder))
    _edit(file, lambda held: held.pop(draw.choice(sorted(held))))


def surplus(folder: Path, draw: Random) -> None:
    _edit(draw.choice(weight_files(folder)), lambda held: held.update({"stranger": next(iter(held.values())).clone()}))


def reshaped(folder: Path, draw: Random) -> None:
    def change(held: dict[str, Any]) -> None:
        name = draw.choice(sorted(held))
        held[name] = held[name].reshape(-1, 1, 1).contiguous()

    _edit(draw.choice(weight_files(folder)), change)


def duplicated(folder: Path, draw: Random) -> None:
    """A tensor in a second file, or twice in the header of the only one."""
    files = weight_files(folder)
    if len(files) > 1:
        one, other = draw.sample(files, 2)
        name, value = draw.choice(sorted(load_file(one).items(), key=lambda entry: entry[0]))
        _edit(other, lambda held: held.update({name: value}))
        return
    data = files[0].read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].rstrip()
    name, entry = draw.choice(sorted(json.loads(header).items()))
    header = header[:-1] + b"," + json.dumps({name: entry}).encode()[1:]
    files[0].write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])


def swapped(folder: Path, draw: Random) -> None:
    """Two files change their names; where there is one, two matrices of different shape."""
    files = weight_files(folder)
    if len(files) > 1:
        one, other = draw.sample(files, 2)
        aside = one.rename(one.with_suffix(".aside"))
        other.rename(one)
        aside.rename(other)
        return
    held = load_file(files[0])
    names = sorted(held)
    one, other = next((a, b) for a, b in iter(lambda: draw.sample(names, 2), None) if held[a].shape != held[b].shape)
    held[one], held[other] = held[other], held[one]
    save_file(held, files[0], {"format": "pt"})


def shard_lost(folder: Path, draw: Random) -> None:
    draw.choice(weight_files(folder)).unlink()


def stale_index(folder: Path, draw: Random) -> None:
    """The index of other files; where there is none, the config of another model."""
    if (folder / INDEX).exists():
        placed = json.loads((folder / INDEX).read_text())
        names = sorted(placed["weight_map"])
        placed["weight_map"]["was.elsewhere"] = placed["weight_map"].pop(draw.choice(names))
        (folder / INDEX).write_text(json.dumps(placed))
        return
    config = json.loads((folder / "config.json").read_text())
    key = "num_hidden_layers" if "num_hidden_layers" in config else "n_layer"
    config[key] += 1
    config.pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps(config))


STRUCTURAL: dict[str, Damage] = {
    "truncated": truncated,
    "tensor missing": lacking,
    "tensor too many": surplus,
    "tensor of another shape": reshaped,
    "tensor twice": duplicated,
    "tensors or shards swapped": swapped,
    "shard missing": shard_lost,
    "stale index or config": stale_index,
}
SILENT: dict[str, Damage] = {"bit flipped": flipped, "bit flipped in a header": flipped_header, "16 zero bytes": zeroed}


def copies(original: Path, place: Path) -> Iterator[Path]:
    """The folder as it was, again and again, at the same place."""
    while True:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(original, place)
        yield place


def _cut(file: Path, length: int) -> None:
    with file.open("r+b") as opened:
        opened.truncate(length)


def _patch(file: Path, at: int, data: bytes) -> None:
    with file.open("r+b") as opened:
        opened.seek(at)
        opened.write(data)


def _edit(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    held = load_file(file)
    change(held)
    save_file(held, file, {"format": "pt"})
