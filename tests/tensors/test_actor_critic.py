"""An agent that is paid for going one way goes there, and nothing but its generator decides."""

import torch

from trimtab.core.seeds import Seeds
from trimtab.tensors.actor_critic import Agent

STATE = torch.ones(3)


def paid(towards: float, rounds: int = 60) -> Agent:
    """One that has been paid for actions near a number."""
    agent = Agent(3, 2, Seeds(0).at("agent"))
    for _ in range(rounds):
        action = agent.act(STATE)
        agent.remember(STATE, action, -3 * float((action - towards).square().sum()), STATE)
        agent.learn(batch=16)
    return agent


def usual(agent: Agent) -> float:
    return float(torch.stack([agent.act(STATE) for _ in range(200)]).mean())


def test_it_goes_where_it_is_paid_for() -> None:
    assert usual(paid(0.8)) > usual(paid(-0.8)) + 0.1


def test_the_density_is_that_of_its_actions() -> None:
    """Of a squashed normal distribution, in one dimension: integrated over (-1, 1) it is 1."""
    agent = Agent(3, 1, Seeds(1).at("agent"))
    with torch.no_grad():
        action, density = agent._drawn(STATE.expand(40_000, 3))
    # The mean of 1 / density over draws is the length of where they fall.
    assert abs(float((-density.double()).exp().mean()) - 2) < 0.1
    assert float(action.abs().max()) <= 1


def test_its_generator_decides() -> None:
    state = torch.random.get_rng_state()
    assert torch.equal(paid(0.5, 3).act(STATE), paid(0.5, 3).act(STATE))
    assert torch.equal(state, torch.random.get_rng_state())
