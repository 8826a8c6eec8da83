"""With blocks and activations on disk the result is the same to the byte, and a model larger than memory goes through."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from trimtab.core.errors import ModelError, UsageError
from trimtab.core.recipe import Calibration, Recipe
from trimtab.engine.depot import Filed, absent, is_absent
from trimtab.host import manifest, tensor_file
from trimtab.host.compress import compress
from trimtab.host.keeping import state_of
from trimtab.testing.faults import Victims
from trimtab.testing.folders import tiny_folder

LIMITED = """
import resource, sys
import psutil
from trimtab.host.compress import compress
small, model, recipe, out, offload, room = sys.argv[1:]
compress(small, recipe, out + "-small", offload=out + "-place")  # so that all libraries have what they take
here = psutil.Process().memory_info().vms
resource.setrlimit(resource.RLIMIT_AS, (here + int(room), here + int(room)))
compress(model, recipe, out, offload=offload or None)
"""


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    draw = random.Random(0)
    file = tmp_path_factory.mktemp("texts") / "text.txt"
    file.write_text("\n\n".join(" ".join("".join(draw.choices("abcdefgh", k=5)) for _ in range(40)) for _ in range(40)))
    return file


def recipe(text: Path, steps: str) -> Recipe:
    return Recipe.of(steps, Calibration(text=str(text), tokens=256, length=32))


def files(folder: Path) -> dict[str, str]:
    manifest.verify(folder)
    names = sorted(p.name for p in folder.iterdir() if p.name not in ("README.md", "receipt.json", manifest.NAME))
    return dict(zip(names, manifest.digests(folder, names), strict=True))


def said(folder: Path) -> list:
    return [{k: v for k, v in r.items() if k != "seconds"} for r in json.loads((folder / "receipt.json").read_text())["receipts"]]


def sweeps(model: Path, made: Recipe, out: Path, **how) -> list[int]:
    """The blocks that a run works on."""
    seen = []
    compress(model, made, out, watch=lambda now: seen.append(now.done) if now.phase == "sweep" else None, **how)
    return sorted(set(seen))


@pytest.mark.parametrize(
    ("family", "steps", "how"),
    [
        ("llama", "wanda(sparsity=0.5) -> gptq(bits=3, group_size=32)", {}),
        ("gpt2", "sparsegpt(sparsity=0.5) -> lqer(rank=4)", {"dtype": torch.bfloat16}),
        ("gemma2", "gptaq(group_size=32)", {}),
        ("qwen3", "gptq(group_size=32) by luq", {"packed": True}),
        ("phi3", "rtn(group_size=32)", {"dtype": torch.float16}),
        ("opt", "wanda(sparsity=0.5) -> gptaq(group_size=32) -> lqer(rank=4)", {}),
        ("llama", "wanda(pattern='2:4')", {"packed": True}),
    ],
)
def test_the_files_are_the_same(text, tmp_path, family, steps, how):
    model = tiny_folder(tmp_path / "model", family, shard="200KB" if family == "llama" else "1GB")
    if family in ("opt", "qwen3"):
        (model / "generation_config.json").unlink()
    compress(model, recipe(text, steps), tmp_path / "memory", **how)
    done = compress(model, recipe(text, steps), tmp_path / "disk", offload=tmp_path / "place", **how)
    assert done.model is None
    assert files(tmp_path / "disk") == files(tmp_path / "memory")
    assert said(tmp_path / "disk") == said(tmp_path / "memory")
    assert list((tmp_path / "place").iterdir()) == []


def test_it_can_be_stopped_and_taken_up_also_the_other_way(text, tmp_path):
    model = tiny_folder(tmp_path / "model")
    made = recipe(text, "wanda(sparsity=0.5)")
    compress(model, made, tmp_path / "memory", packed=True)

    def watch(now):
        if now.phase == "sweep" and now.done == 2:
            raise KeyboardInterrupt

    for first, then in ((tmp_path / "place", tmp_path / "place"), (tmp_path / "place", None), (None, tmp_path / "place")):
        out = tmp_path / f"out-{bool(first)}-{bool(then)}"
        with pytest.raises(KeyboardInterrupt):
            compress(model, made, out, offload=first, checkpoint_every=0, watch=watch, packed=True)
        assert sweeps(model, made, out, offload=then, packed=True) == [2, 3, 4]
        assert files(out) == files(tmp_path / "memory")


@pytest.mark.slow
def test_what_a_killed_run_left_is_removed_by_the_next_one(text, tmp_path):
    model, place = tiny_folder(tmp_path / "model"), tmp_path / "place"
    words = {"model": model, "recipe": "rtn(group_size=32)", "out": tmp_path / "out", "offload": place, "checkpoint_every": 0}
    with Victims() as victims:
        assert victims.run(words, "object: written") == -9
        assert len(list(place.iterdir())) == 1
        (place / "trimtab-of-somebody-else").mkdir()
        assert victims.run(words) == 0
    assert [path.name for path in place.iterdir()] == ["trimtab-of-somebody-else"]


def limited(*words: object) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    return subprocess.run([sys.executable, "-c", LIMITED, *map(str, words)], env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux counts addresses")
def test_a_model_larger_than_the_limit_goes_through(text, tmp_path):
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 48, "num_attention_heads": 4}
    model = tiny_folder(tmp_path / "model", **sizes)
    size = (model / "model.safetensors").stat().st_size
    room = size // 4
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe(text, "wanda(sparsity=0.5) -> rtn(bits=4, group_size=64)").yaml())
    small = tiny_folder(tmp_path / "small")
    refused = limited(small, model, file, tmp_path / "memory", "", room)
    assert refused.returncode
    assert "--offload DIR" in refused.stderr.splitlines()[-1]
    done = limited(small, model, file, tmp_path / "disk", tmp_path / "place", room)
    assert done.returncode == 0, done.stderr[-2000:]
    compress(model, str(file), tmp_path / "unlimited")
    assert files(tmp_path / "disk") == files(tmp_path / "unlimited")


def test_what_needs_the_whole_model_is_refused(text, tmp_path):
    model = tiny_folder(tmp_path / "model")
    with pytest.raises(UsageError, match="quarot changes the model as a whole"):
        compress(model, "quarot -> rtn", tmp_path / "out", offload=tmp_path / "place")
    with pytest.raises(UsageError, match="result goes to files"):
        compress(model, "rtn", offload=tmp_path / "place")
    assert not state_of(tmp_path / "out").exists()


def test_files_that_name_tensors_otherwise_are_refused_by_name(tmp_path):
    model = tiny_folder(tmp_path / "model", "mixtral")
    with pytest.raises(ModelError, match=r"experts\.0\.w1.*name every tensor as the model does"):
        compress(model, "rtn(group_size=32)", tmp_path / "out", offload=tmp_path / "place")


def test_files_are_written_as_the_library_writes_them(tmp_path):
    draw = torch.Generator().manual_seed(0)
    kinds = [
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.float64,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
    ]
    tensors = {f"{name}.{k}": (torch.rand(3, k, generator=draw) * 100).to(d) for k, d in enumerate(kinds, 1) for name in "ba"}
    tensors |= {
        "flag": torch.ones(3, dtype=torch.bool),
        "scalar": torch.tensor(1.5),
        "none": torch.zeros(0, 4),
        'ü"\\': torch.ones(1),
    }
    save_file(tensors, tmp_path / "theirs.safetensors", {"format": "pt"})
    tensor_file.write(tmp_path / "ours.safetensors", tensors, tensors.__getitem__)
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()
    found = tensor_file.places(tmp_path / "theirs.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(at.read(), tensors[name]) for name, at in found.items())


def test_damaged_headers_are_refused(tmp_path):
    file = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(4), "b": torch.ones(2)}, file)
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    damaged = [whole[:n] for n in (0, 7, 8, 20, len(whole) - 1)]
    damaged += [whole + b"x", (1 << 62).to_bytes(8, "little") + whole[8:], whole[:8] + b"[" * length + whole[8 + length :]]
    for old, new in ((b"[0,16]", b"[0,17]"), (b"[16,24]", b"[0,8]  "), (b"F32", b"F99"), (b"[4]", b"[5]"), (b"[4]", b"-44")):
        assert old in whole
        damaged.append(whole.replace(old, new, 1))
    for data in damaged:
        file.write_bytes(data)
        with pytest.raises(ModelError, match="damaged or no safetensors file"):
            tensor_file.places(file)


def test_activations_on_disk_are_a_list(tmp_path):
    kept = Filed(tmp_path)
    kept.append(torch.arange(4.0).reshape(2, 2).T)
    kept.append(torch.ones(3, dtype=torch.bfloat16))
    kept[0] = kept[0] + 1
    assert [t.tolist() for t in kept] == [[[1, 3], [2, 4]], [1, 1, 1]]
    assert len(list(tmp_path.iterdir())) == 2
    del kept
    assert list(tmp_path.iterdir()) == []


def test_what_is_absent_takes_no_memory_and_is_no_number():
    gone = absent((1 << 20, 1 << 10), torch.float32)
    assert is_absent(gone)
    assert gone.untyped_storage().nbytes() == 4
    assert bool(gone[5, 7].isnan())
    assert not is_absent(torch.ones(2, 2))
