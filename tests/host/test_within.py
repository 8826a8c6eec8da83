"""One folder opened at many sizes: never above the budget, always the beginning of one order, every lie an error."""

import json
import random
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import trimtab
from trimtab.core.errors import ModelError, UsageError
from trimtab.core.recipe import Calibration, Recipe
from trimtab.engine.packed_linear import PackedLinear
from trimtab.formats import SignStack, Sum
from trimtab.host import checkpoint, manifest
from trimtab.host.opening import load
from trimtab.testing.folders import tiny_folder

BLOCKS = 4


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    draw = random.Random(0)
    file = tmp_path_factory.mktemp("texts") / "text.txt"
    file.write_text("\n\n".join("".join(draw.choices("abcdefgh ", k=200)) for _ in range(40)), encoding="utf-8")
    return file


def compressed(model, text, out, expression=f"bitstack(blocks={BLOCKS}, rank=2)"):
    recipe = Recipe.of(expression, Calibration(text=str(text), tokens=1024, length=64))
    return trimtab.compress(model, recipe, out, dtype=torch.bfloat16).folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory, text):
    place = tmp_path_factory.mktemp("models")
    return compressed(tiny_folder(place / "base", num_hidden_layers=2), text, place / "stack")


def size(model):
    return sum({t.data_ptr(): t.nbytes for t in model.state_dict().values()}.values())


def stacks(model):
    return {path: m.weight_value for path, m in model.named_modules() if isinstance(m, PackedLinear)}


def least(folder):
    with pytest.raises(UsageError, match="with one block of every matrix it takes") as caught:
        load(folder, memory=1)
    return int(str(caught.value).split()[-2])


def test_ten_sizes_of_one_folder(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    full, _ = checkpoint.load(folder, dtype="auto")
    whole, low = stacks(full), least(folder)
    largest = max(sum(t.nbytes for t in w.tensors().values()) // BLOCKS for w in whole.values())
    counts = []
    for tenth in range(10):
        memory = low + (size(full) - low) * tenth // 9
        model, tokenizer = load(folder, memory=memory)
        assert memory - largest < size(model) <= memory
        assert tokenizer is not None
        assert not model.training
        opened = stacks(model)
        counts.append([w.blocks for w in opened.values()])
        for path, weight in opened.items():
            assert torch.equal(weight.dense(), whole[path].first(weight.blocks).dense())
    assert set(counts[0]) == {1}
    assert set(counts[-1]) == {BLOCKS}
    assert all(a <= b for less, more in pairwise(counts) for a, b in zip(less, more, strict=True))
    assert len({tuple(c) for c in counts}) == 10
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert model.name_or_path == model.config.name_or_path == str(folder)


def test_with_room_for_all_it_is_the_whole_model(folder):
    full, _ = load(folder, dtype="auto")
    for memory in ("100%", "1GB", 10**12):
        model, _ = load(folder, memory=memory)
        state = model.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in full.state_dict().items())


def test_what_is_not_packed_counts_as_it_is_opened(folder):
    low = least(folder)
    half, _ = load(folder, memory=low)
    assert half.dtype == torch.bfloat16
    assert size(half) == low
    with pytest.raises(UsageError, match="does not fit") as caught:
        load(folder, dtype=torch.float32, memory=low)
    more = int(str(caught.value).split()[-2])
    for dtype in (torch.float32, "float32"):
        model, _ = load(folder, dtype=dtype, memory=more)
        assert model.dtype == torch.float32
        assert size(model) == more > low


def test_the_smaller_model_can_be_saved_and_opened(folder, tmp_path):
    model, tokenizer = load(folder, memory="70%")
    checkpoint.save(model, tokenizer, tmp_path / "smaller")
    again, _ = checkpoint.load(tmp_path / "smaller", dtype="auto")
    ids = torch.arange(16)[None]
    assert torch.equal(again(ids).logits, model(ids).logits)


def test_stacks_inside_of_other_weights(folder, text, tmp_path):
    compressed(folder.parent / "base", text, tmp_path / "sum", f"bitstack(blocks={BLOCKS}, rank=2) -> lqer(rank=2)")
    model, _ = load(tmp_path / "sum", memory="80%")
    found = list(stacks(model).values())
    assert all(isinstance(w, Sum) and isinstance(w.parts[0], SignStack) for w in found)
    assert 1 < sum(w.parts[0].blocks for w in found) / len(found) < BLOCKS


def test_experts_one_by_one(text, tmp_path):
    base = tiny_folder(tmp_path / "base", "mixtral", num_hidden_layers=1)
    model, _ = load(compressed(base, text, tmp_path / "stack"), memory="80%")
    blocks = {w.blocks for w in stacks(model).values()}
    assert min(blocks) < BLOCKS
    assert size(model) <= 0.8 * size(load(tmp_path / "stack", dtype="auto")[0])
    assert model(torch.arange(16)[None]).logits.isfinite().all()


def test_shards_are_opened_alike(folder, tmp_path):
    full, tokenizer = checkpoint.load(folder, dtype="auto")
    checkpoint.save(full, tokenizer, tmp_path / "sharded", max_shard_size="100KB")
    assert (tmp_path / "sharded" / "model.safetensors.index.json").exists()
    one, other = (load(place, memory="80%")[0].state_dict() for place in (folder, tmp_path / "sharded"))
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_model_without_blocks_fits_or_does_not(folder):
    base = folder.parent / "base"
    model, _ = load(base, memory="1GB")
    with pytest.raises(UsageError, match="no blocks that could be left out"):
        load(base, memory=size(model) - 1)
    assert size(load(base, memory=size(model))[0]) == size(model)


@pytest.mark.parametrize("memory", ["", "60 elephants", "-5MB", "0MB", 0, -1])
def test_what_is_no_size(folder, memory):
    with pytest.raises(UsageError):
        load(folder, memory=memory)


PATH = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda spec, t: spec.update(blocks=BLOCKS + 1), "'signs' is uint8"),
        (lambda spec, t: spec.update(blocks=10**9), "blocks must be a whole number from 1 to 64"),
        (lambda spec, t: spec.update(rank=1), "'left' is float16"),
        (lambda spec, t: spec.update(order=[1]), "unknown field 'order'"),
        (lambda spec, t: spec.update(kind="grouped"), "grouped: the spec lacks 'bits'"),
        (lambda spec, t: spec.update(kind="stack"), "needs a list of experts"),
        (lambda spec, t: spec.update(kind="stack", experts=[3]), "must be a mapping"),
        (lambda spec, t: spec.update(kind="stack", experts=3), "needs a list of experts"),
        (lambda spec, t: spec.update(parts=[spec.copy()]), "unknown field 'parts'"),
        (lambda spec, t: t.pop(f"{PATH}.worth"), "lacks tensor 'worth'"),
        (lambda spec, t: t[f"{PATH}.worth"].fill_(float("nan")), "worth is not finite"),
        (lambda spec, t: t.update({f"{PATH}.worth": t[f"{PATH}.worth"][:-1].clone()}), "'worth' is float32"),
        (lambda spec, t: t.update({f"{PATH}.right": t[f"{PATH}.right"].float()}), "'right' is float32"),
    ],
)
def test_a_folder_that_lies(folder, tmp_path, change, message):
    place = Path(shutil.copytree(folder, tmp_path / "copy"))
    (place / "trimtab.json").unlink()
    config, tensors = json.loads((place / "config.json").read_text()), load_file(place / "model.safetensors")
    change(config["quantization_config"]["modules"][PATH], tensors)
    save_file(tensors, place / "model.safetensors", {"format": "pt"})
    (place / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=message):
        load(place, memory="80%")


def test_a_changed_file_is_noticed(folder, tmp_path):
    place = Path(shutil.copytree(folder, tmp_path / "copy"))
    with (place / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    with pytest.raises(ModelError, match="sha256 differs"):
        load(place, memory="80%")


def test_a_folder_that_is_replaced_while_it_is_read(folder, tmp_path, monkeypatch):
    place = Path(shutil.copytree(folder, tmp_path / "copy"))
    check, model = manifest.verify, load(folder, dtype="auto")[0]

    def verify(verified: Path) -> None:
        check(verified)
        if verified == place:
            checkpoint.save(model, None, place, overwrite=True)

    monkeypatch.setattr(manifest, "verify", verify)
    with pytest.raises(ModelError, match="was replaced while it was read"):
        load(place, memory="80%")


def test_exports_refuse_stacks_by_name_or_unpack_them(folder, tmp_path):
    with pytest.raises(UsageError, match=rf"gptq cannot hold {PATH}.weight \(signstack, .*--requantize float32"):
        trimtab.export(folder, "gptq", tmp_path / "gptq")
    assert {entry.verdict for entry in trimtab.export(folder, "plain").entries} == {"exact"}
