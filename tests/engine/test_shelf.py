"""Blocks that a sweep is not at take no memory, come back as they were, and no result depends on where they waited."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from trimtab.anatomy import Anatomy
from trimtab.core.recipe import Calibration, Recipe
from trimtab.engine import shelf
from trimtab.engine.run import run
from trimtab.engine.shelf import Shelf
from trimtab.testing.tiny import tiny

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux lets go of the pages of a file in use")


@pytest.fixture
def used(monkeypatch, tmp_path):
    """Even a tiny model's tensors are put away, whatever the temporary folder of this machine is. Yields where to."""
    monkeypatch.setattr(shelf, "LEAST", 1)
    monkeypatch.setattr(shelf, "_folder", lambda needs: tmp_path)
    return tmp_path


def mapped(folder: Path) -> list[int]:
    """Resident bytes of each mapping of a file that was in this folder."""
    found, inside = [], False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0] and ":" not in line.split()[0]:
            inside = f"{folder}/trimtab-" in line
        elif inside and line.startswith("Rss:"):
            found.append(int(line.split()[1]) * 1024)
    return found


def swept(model: nn.Module, recipe: str, compute: str = "float32", watch=lambda progress: None):
    model = model.to(getattr(torch, compute))
    ids = torch.randint(3, 97, (6, 16), generator=torch.Generator().manual_seed(0))
    return run(model, Recipe.of(recipe, Calibration(compute=compute)), list(ids.split(2)), watch)


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@linux
@pytest.mark.parametrize(
    ("name", "recipe", "compute"),
    [
        ("llama", "gptq(bits=3, group_size=32)", "float32"),
        ("llama", "wanda(sparsity=0.5) -> gptq(bits=3, group_size=32) -> lqer(rank=4)", "bfloat16"),
        ("llama", "gptaq(group_size=32)", "float32"),
        ("gpt2", "sparsegpt(sparsity=0.5)", "bfloat16"),
        ("mixtral", "sparsegpt(sparsity=0.5)", "float32"),
        ("mixtral", "gptq(bits=3, group_size=32)", "bfloat16"),
    ],
)
def test_results_are_the_same_to_the_last_bit(monkeypatch, tmp_path, name, recipe, compute):
    plain, shelved = tiny(name), tiny(name)
    tensors = len([*shelved.parameters(), *shelved.buffers()])
    expected = swept(plain, recipe, compute)
    monkeypatch.setattr(shelf, "LEAST", 1)
    monkeypatch.setattr(shelf, "_folder", lambda needs: tmp_path)
    filed = []
    put_away = shelf._filed
    monkeypatch.setattr(shelf, "_filed", lambda tensor, folder: filed.append(tensor.shape) or put_away(tensor, folder))
    found = swept(shelved, recipe, compute)
    assert len(filed) > tensors  # each at the beginning, those of a block again after it
    before, after = state(plain), state(shelved)
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert value.dtype == after[key].dtype
        assert torch.equal(value, after[key]), key
    assert [r.error for r in expected.receipts] == [r.error for r in found.receipts]
    assert list(tmp_path.iterdir()) == []


@linux
def test_what_is_not_worked_on_takes_no_memory(used):
    model, seen = tiny("llama"), []

    def watch(progress):
        if progress.phase == "sweep" and progress.done < progress.total:
            seen.append(mapped(used))

    swept(model, "gptq(bits=3, group_size=32)", watch=watch)
    blocks = Anatomy.of(model).blocks
    assert len(seen) >= 7 * len(blocks)
    for resident in seen:
        assert len(resident) >= 7 * (len(blocks) - 1)  # the other blocks' matrices
        assert sum(resident) == 0
    assert mapped(used) == []  # and at the end nothing is mapped any more


@linux
def test_running_the_model_leaves_no_pages_of_blocks(used):
    model = tiny("llama").eval()
    ids = torch.arange(8)[None]
    expected = model(ids).logits
    with Shelf(Anatomy.of(model)) as put:
        assert torch.equal(model(ids).logits, expected)
        assert sum(mapped(used)) > 0  # embedding, norm and head
        put.rest()
        assert sum(mapped(used)) == 0
        assert torch.equal(model(ids).logits, expected)


@linux
def test_what_is_written_meanwhile_is_kept(used):
    model = tiny("llama")
    anatomy = Anatomy.of(model)
    weights = [block.mlp.up_proj.weight for block in anatomy.blocks]
    with torch.no_grad(), Shelf(anatomy) as put:
        weights[1].fill_(2.0)
        put.rest()
        assert bool((weights[1] == 2.0).all())
        with put.at(0):
            weights[0].fill_(1.0)
        put.rest()
    assert [float(w.detach().mean()) for w in weights[:2]] == [1.0, 2.0]


@linux
def test_an_error_brings_everything_back(used):
    model = tiny("llama")
    before = state(model)
    with pytest.raises(ZeroDivisionError), Shelf(Anatomy.of(model)) as put, put.at(1):
        raise ZeroDivisionError
    assert mapped(used) == []
    assert all(torch.equal(value, before[name]) for name, value in state(model).items())
    assert not any(block._forward_hooks for block in Anatomy.of(model).blocks)


@linux
def test_stopped_on_the_way_brings_everything_back(used, monkeypatch):
    put_away, left = shelf._filed, [None] * 5

    def interrupted(tensor, folder):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return put_away(tensor, folder)

    monkeypatch.setattr(shelf, "_filed", interrupted)
    model = tiny("llama")
    with pytest.raises(KeyboardInterrupt), Shelf(Anatomy.of(model)):
        pass
    assert mapped(used) == []
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_a_full_disk_means_that_tensors_stay(used, monkeypatch):
    def refuse(tensor, folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shelf, "_filed", refuse)
    model = tiny("llama")
    places = [p.data_ptr() for p in model.parameters()]
    with Shelf(Anatomy.of(model)) as put, put.at(0):
        assert put.away == {}
    assert [p.data_ptr() for p in model.parameters()] == places


@linux
def test_tensors_in_shared_memory_stay(used):
    """Put away one by one they would no longer change together."""
    model = tiny("llama")
    first, second = (block.mlp.up_proj for block in list(Anatomy.of(model).blocks)[:2])
    second.weight = nn.Parameter(first.weight.data)
    view = model.model.embed_tokens.weight.data
    model.model.embed_tokens.weight = nn.Parameter(torch.cat([view, view])[: len(view)])
    with Shelf(Anatomy.of(model)) as put:
        assert {id(first.weight), id(second.weight), id(model.model.embed_tokens.weight)}.isdisjoint(put.away)
        assert len(put.away) > 10


@linux
def test_one_parameter_in_two_blocks_comes_with_either(used):
    model = tiny("llama")
    first, second = (block.mlp.up_proj for block in list(Anatomy.of(model).blocks)[:2])
    second.weight = first.weight
    expected = first.weight.clone()
    with Shelf(Anatomy.of(model)) as put:
        for block in (0, 1):
            with put.at(block):
                assert id(first.weight) not in put.away
                assert torch.equal(second.weight, expected)
    assert first.weight is second.weight


def test_folders_in_memory_and_full_disks_are_not_used(monkeypatch):
    monkeypatch.setattr(shelf, "_in_memory", lambda folder: True)
    assert shelf._folder(1) is None
    monkeypatch.undo()
    assert shelf._folder(1 << 60) is None
    monkeypatch.setattr(sys, "platform", "darwin")
    assert shelf._folder(1) is None


@linux
def test_files_in_memory_are_told_apart():
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    shm = [Path(where) for _, where, system, *_ in mounts if system == "tmpfs" and where == "/dev/shm"]
    if not shm:
        pytest.skip("no tmpfs here")
    assert shelf._in_memory(shm[0])
    assert not shelf._in_memory(Path("/proc"))
