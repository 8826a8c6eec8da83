"""The lab of bitrates: the player keeps its books, the plan looks ahead, the model sees no future and learns what it is shown."""

import argparse
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import netllm
from bitrates import BITRATES, CHUNKS, DELAY, SECONDS, Player, by_buffer, by_plan, episode, players

from trimtab.core.seeds import Seeds
from trimtab.testing.folders import tiny_folder

EVEN = SECONDS * BITRATES.expand(CHUNKS, -1)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> argparse.Namespace:
    folder = tiny_folder(tmp_path_factory.mktemp("base") / "tiny", num_hidden_layers=1, max_position_embeddings=512)
    return argparse.Namespace(model=str(folder), seed=0, rank=4, steps=30, batch=8, window=6, rate=3e-3)


def test_a_player_waits_for_what_is_not_there_and_pays_for_changes() -> None:
    player = Player(torch.full((400,), 2.0), EVEN)
    assert player.play(0) == pytest.approx(0.3), "nobody pays for the first chunk's wait"
    assert player.buffer == pytest.approx(SECONDS)
    took = SECONDS * 4.3 / 2 + DELAY
    assert player.play(5) == pytest.approx(4.3 - 4.3 * (took - SECONDS) - 4.0, rel=1e-5)
    assert player.buffer == pytest.approx(SECONDS)
    assert player.now == pytest.approx(SECONDS * 0.3 / 2 + DELAY + took, rel=1e-5)


def test_a_fetch_over_a_change_takes_from_both_sides() -> None:
    player = Player(torch.tensor([1.0, 4.0, 4.0]), EVEN)
    assert player._fetch(3.0) == pytest.approx(1.5)


def test_at_a_steady_rate_a_plan_takes_what_fits_and_never_waits() -> None:
    seen = episode(by_plan, Player(torch.full((400,), 2.0), EVEN))
    assert set(seen.actions[8:-1].tolist()) <= {3, 4}, "1.85 Mbit/s fits, 2.85 does while there is a buffer"
    assert float(seen.qualities.mean()) > float(episode(by_buffer, Player(torch.full((400,), 2.0), EVEN)).qualities.mean())


def test_returns_are_what_is_to_come() -> None:
    found = netllm.returns(torch.tensor([1.0, 3.0, 2.0]), 1.0, 3.0)
    torch.testing.assert_close(found * CHUNKS, torch.tensor([1.5, 1.5, 0.5]))


def test_what_is_done_depends_on_nothing_later_and_not_on_itself(given: argparse.Namespace) -> None:
    picker = netllm.opened(given, anew=False)
    draw = Seeds(0).at("x")
    wishes, states = torch.rand(2, 5, generator=draw), torch.rand(2, 5, 6, 6, generator=draw)
    actions, steps = torch.randint(6, (2, 5), generator=draw), torch.arange(5).expand(2, -1)
    with torch.no_grad():
        whole = picker(wishes, states, actions, steps)
        other = picker(wishes, states, torch.cat([actions[:, :2], 5 - actions[:, 2:]], 1), steps)
    torch.testing.assert_close(whole[:, :3], other[:, :3])
    assert not torch.allclose(whole[:, 3:], other[:, 3:])


def test_it_learns_what_it_is_shown_and_plays_it(given: argparse.Namespace) -> None:
    seen = [episode(lambda player: 2, one) for one in players(3, "learn", 0)]
    picker = netllm.opened(given, anew=True)
    losses, best = netllm.learn(picker, seen, given)
    assert losses[-1] < 0.1 * losses[0]
    found = netllm.played(picker, players(3, "learn", 0), best, -10.0, 4.3, given.window)
    assert found == pytest.approx([float(one.qualities.mean()) for one in seen], rel=1e-4)


def test_only_matrices_are_drawn_anew_and_the_base_stays_frozen(given: argparse.Namespace) -> None:
    came, anew = (netllm.opened(given, anew=which) for which in (False, True))
    trained = {name for name, value in came.named_parameters() if value.requires_grad and name.startswith("model.")}
    assert trained
    assert all(".delta." in name for name in trained)
    for (name, one), other in zip(came.model.named_parameters(), anew.model.parameters(), strict=True):
        if ".delta." not in name:
            assert torch.equal(one, other) == (one.ndim == 1)


def test_the_page_sets_everybody_beside_the_best_policy() -> None:
    setting = dict.fromkeys(netllm.NUMBERS, 1)
    line = {"model": "m", "seed": 0, "parameters": 12, "setting": setting}
    usual = {"by the buffer": [1.0, 2.0], "by a plan": [1.5, 2.5]}
    told = netllm.page([{**line, "way": "as it came", "quality": [1.6, 2.6], "usual": usual}])
    assert "| by a plan | 2.000 |  | 1 |" in told
    assert "| as it came | 2.100 | +0.100 (+0.100 to +0.100) | 1 |" in told
