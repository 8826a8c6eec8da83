"""Randomness is handed in: a generator for every place, none of which depends on the order of work."""

import hashlib
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Seeds:
    """The one number a run starts from. `at("layers.7.q")` does not depend on what layer 6 drew."""

    seed: int = 0

    def at(self, *place: object) -> torch.Generator:
        """A CPU generator that depends on the seed and on `place`, and on nothing else."""
        text = "/".join([str(self.seed), *map(str, place)])
        digest = hashlib.sha256(text.encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
