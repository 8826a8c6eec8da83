"""A generator writes a change for every text: from its beginning, without a look at what comes, and for opposite rules."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import trimtab as tt
from trimtab.anatomy import Anatomy
from trimtab.core.errors import UsageError
from trimtab.core.expression import make
from trimtab.core.recipe import Where
from trimtab.core.seeds import Seeds
from trimtab.core.trained import AdapterMethod
from trimtab.engine import adapting
from trimtab.host import adapters
from trimtab.host.trainer import Pace
from trimtab.methods.adapt.hy_wu import GeneratedDelta, HyWu
from trimtab.testing.folders import tiny_folder
from trimtab.testing.tiny import tiny, tokens

PREFIX = 4


def begun(family: str = "llama", seed: int = 0) -> tuple[torch.nn.Module, list[GeneratedDelta]]:
    """As if it had been trained."""
    model = tiny(family)
    found = adapting.attach(Anatomy.of(model), HyWu(rank=2, prefix=PREFIX, width=8), Where(), Seeds(seed))
    deltas = [delta for delta in found.values() if isinstance(delta, GeneratedDelta)]
    with torch.no_grad():
        for name, head in deltas[0].listener.out.items():
            head.normal_(0, 0.1, generator=Seeds(seed).at(name))
    return model, deltas


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@torch.no_grad()
def test_no_token_depends_on_a_later_one(family: str) -> None:
    model, _ = begun(family)
    ids = tokens(model, batch=2, length=10)
    whole = model(ids).logits
    for length in range(1, 10):
        torch.testing.assert_close(model(ids[:, :length]).logits, whole[:, :length], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_with_a_cache_it_is_the_same_and_a_cache_of_before_is_refused() -> None:
    model, _ = begun()
    ids = tokens(model, batch=2, length=9)
    whole, past, found = model(ids).logits, None, []
    for start, stop in ((0, 2), (2, 3), (3, 6), (6, 7), (7, 9)):
        answer = model(ids[:, start:stop], past_key_values=past, use_cache=True)
        past = answer.past_key_values
        found.append(answer.logits)
    torch.testing.assert_close(torch.cat(found, 1), whole, rtol=1e-4, atol=1e-4)
    model(ids[:1])
    with pytest.raises(UsageError, match="whose beginning it has not seen"):
        model(ids[:, :1], past_key_values=past)


@torch.no_grad()
def test_filling_on_the_left_is_no_beginning() -> None:
    model, _ = begun()
    ids = tokens(model, batch=1, length=8)
    padded = torch.cat([torch.zeros(1, 3, dtype=ids.dtype), ids], 1)
    mask = (torch.arange(11) >= 3)[None].long()
    places = (mask.cumsum(1) - 1).clamp(min=0)
    found = model(padded, attention_mask=mask, position_ids=places).logits[:, 3:]
    torch.testing.assert_close(found, model(ids).logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_every_row_has_a_lora_of_its_own() -> None:
    """Behind the prefix; before, and where a row is too short, that of the learned vector."""
    model, deltas = begun()
    model(tokens(model, batch=2, length=8))
    delta = deltas[3]
    x = torch.randn(2, 8, delta.shape[1], generator=Seeds(0).at("x"))
    found = delta(x, x, lambda: x)
    settled = [delta.settled(row) for row in range(2)]
    assert (settled[0].change() - settled[1].change()).norm() > 0.01 * settled[0].change().norm()
    for row in range(2):
        torch.testing.assert_close(found[row, PREFIX - 1 :], settled[row](x[row, PREFIX - 1 :], x, lambda: x))
    alone = delta(x[:, : PREFIX - 1].flatten(0, 1), x, lambda: x)
    torch.testing.assert_close(found[:, : PREFIX - 1].flatten(0, 1), alone)


def test_one_delta_stores_the_generator_and_a_folder_gives_it_back(tmp_path: Path) -> None:
    model, deltas = begun()
    assert sum("generator.keys" in delta.state_dict() for delta in deltas) == 1
    method, base = HyWu(rank=2, prefix=PREFIX, width=8), adapters.Base("tiny", "x")
    adapters.write(tmp_path / "adapter", adapting.deltas(model), method, base, {})
    again, ids = tiny("llama"), tokens(model)
    adapters.read(Anatomy.of(again), tmp_path / "adapter", base)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)
        adapting.detach(again)
        assert torch.equal(again(ids).logits, tiny("llama")(ids).logits)


def test_it_is_trained_like_the_others_and_blocks_computed_twice_change_nothing(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "tiny", num_hidden_layers=2)
    (tmp_path / "text.jsonl").write_text("\n".join(f'{{"text": "number {n} of a few"}}' for n in range(12)), encoding="utf-8")
    losses = []
    for recompute in (False, True):
        pace = Pace(at_once=2, recompute=recompute)
        asked = {"length": 16, "steps": 4, "batch": 4, "learning_rate": 1e-2}
        method = HyWu(rank=2, prefix=PREFIX, width=8, drop=0.3)
        done = tt.adapt(folder, tmp_path / "text.jsonl", method, tmp_path / f"out{recompute}", pace=pace, **asked)
        losses.append(done.tuned.losses)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][-1] < losses[0][0]
    model, _ = tt.load(folder, adapter=tmp_path / "outTrue")
    once, again = (model.generate(tokens(model), max_new_tokens=4, do_sample=False, use_cache=cache) for cache in (True, False))
    assert torch.equal(once, again)


def rows(draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """(ids [8, 7], what is to follow the last): the first two tokens say which of two opposite rules holds."""
    rule = torch.arange(8) % 2
    middle = torch.randint(10, 14, (8, 1), generator=draw)
    ids = torch.cat([(20 + rule[:, None]).expand(8, PREFIX), torch.full((8, 2), 5), middle], 1)
    return ids, torch.where(rule[:, None] == 0, middle + 20, 53 - middle)[:, 0]


def trained(method: AdapterMethod) -> float:
    """The last losses."""
    model, draw, losses = tiny("llama", num_hidden_layers=2), Seeds(0).at("rows"), []
    adapting.attach(Anatomy.of(model), method, Where(only=("*1.mlp.down_proj",)), Seeds(0))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(80):
        ids, wanted = rows(draw)
        loss = torch.nn.functional.cross_entropy(model(ids).logits[:, -1], wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return sum(losses[-10:]) / 10


def test_opposite_rules_are_learned_better_than_by_one_lora_of_the_rank() -> None:
    generated = trained(HyWu(rank=2, alpha=4.0, prefix=PREFIX, width=16, drop=0.0))
    one = make("lora", {"rank": 2, "alpha": 4.0})
    assert isinstance(one, AdapterMethod)
    assert generated < 0.8 * trained(one)


def test_conditions_are_left_out_in_training_alone() -> None:
    model, deltas = begun()
    listener = deltas[0].listener
    listener.drop = 0.5
    ids = tokens(model, batch=64, length=PREFIX)
    with torch.no_grad():
        model(ids)
        assert listener.ready[:, -1].all()
        model.train()
        model(ids)
    assert 10 < int(listener.ready[:, -1].sum()) < 54
