"""Temperatures and sizes that are put back: exactly inside the clamps, not at all inside the neutral bands."""

import torch

from trimtab.tensors.matching import balance, logit_spread, temperature


def drawn(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def test_spread_is_over_what_is_attended_to() -> None:
    query, key = drawn(3, 2, 5, 8), drawn(3, 2, 7, 8, seed=1)
    mask = (drawn(3, 1, 5, 7, seed=2) > 0) | (torch.arange(7) == 0)
    for shape in (None, mask):
        kept = torch.ones(3, 1, 5, 7, dtype=torch.bool) if shape is None else shape
        for head, found in enumerate(logit_spread(query, key, shape).tolist()):
            logits = [
                float(query[b, head, t] @ key[b, head, o]) / 8**0.5
                for b in range(3)
                for t in range(5)
                for o in range(7)
                if kept[b, 0, t, o]
            ]
            torch.testing.assert_close(found, float(torch.tensor(logits).std(correction=0)), rtol=1e-5, atol=1e-6)


def test_a_temperature_puts_the_spread_back() -> None:
    query, key = drawn(2, 3, 9, 4), drawn(2, 3, 9, 4, seed=1)
    other = query * torch.tensor([0.8, 1.25, 1.0])[:, None, None]
    wanted, found = logit_spread(query, key), logit_spread(other, key)
    factor = temperature(wanted, found)
    torch.testing.assert_close(logit_spread(other * factor[:, None, None].float(), key), wanted, rtol=1e-5, atol=1e-6)
    assert float(factor[2]) == 1.0


def test_noise_is_left_alone_and_nothing_goes_too_far() -> None:
    wanted, ones = torch.tensor([1.0, 1.019, 1.021, 0.5, 3.0]), torch.ones(5)
    torch.testing.assert_close(temperature(wanted, ones), torch.tensor([1.0, 1.0, 1.021, 0.7, 1.4]))
    edge = torch.tensor([0.0, 0.029, -0.031, 0.5, -2.0])
    torch.testing.assert_close(balance(edge.exp(), ones), torch.tensor([0.0, 0.0, -0.031, 0.3, -0.3]).exp())
