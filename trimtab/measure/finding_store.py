"""Findings of probes, each measured once: claims share them, and a run that was killed goes on with what it had.

Kept under everything that they depend on, like the sides of recipes (`side_store`).
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from trimtab.core.kinds import ProbeMethod
from trimtab.core.progress import Progress, Watcher
from trimtab.data.assets import cache_root
from trimtab.host.locks import alone
from trimtab.host.provenance import versions
from trimtab.measure.code_digest import digest_of
from trimtab.measure.findings import Reading, read_model
from trimtab.measure.kept import Kept
from trimtab.measure.side_store import SIDES, Ground
from trimtab.measure.sides import Setting

FORMAT = 1
READING = "trimtab.measure.findings"
FINDINGS = "findings"


def modules_of_probe(method: ProbeMethod) -> list[str]:
    """What finds it."""
    return [READING, type(method).__module__]


class FindingStore:
    """What probes find in one setting: one reading per probe and seed."""

    def __init__(self, setting: Setting, ground: Ground):
        self.setting, self.ground, self.kept = setting, ground, Kept(FINDINGS)

    def readings(self, method: ProbeMethod, watch: Watcher) -> list[Reading]:
        """One per seed. Two processes never look for the same at the same time."""
        with alone(self._lock(method)):
            return [self._reading(method, seed, watch) for seed in self.setting.seeds]

    def missing(self, method: ProbeMethod) -> int:
        """How many readings would have to be made."""
        return sum(self.kept.get(self._key(method, seed)) is None for seed in self.setting.seeds)

    def _reading(self, method: ProbeMethod, seed: int, watch: Watcher) -> Reading:
        held = self.kept.get(self._key(method, seed))
        if held is None:
            made = read_model(self.ground.folder, method, self.setting, seed, watch)
            self.kept.put(self._key(method, seed), vars(made))
        else:
            found = held[0]["found"].items()
            blocks = {name: {int(block): value for block, value in values.items()} for name, values in found}
            made = Reading(blocks, held[0]["seconds"])
        watch(Progress(SIDES, 1, 1, f"{method}, seed {seed}"))
        return made

    def _key(self, method: ProbeMethod, seed: int) -> dict[str, Any]:
        shown = self.setting.calibration
        return {
            "format": FORMAT,
            "model": self.ground.model,
            "text": self.ground.calibration_text,
            "tokens": shown.tokens,
            "length": shown.length,
            "probe": {method.card.id: method.knobs()},
            "seed": seed,
            "code": digest_of(modules_of_probe(method)),
            "versions": {name: version for name, version in versions().items() if name != "trimtab"},
        }

    def _lock(self, method: ProbeMethod) -> Path:
        key = json.dumps(self._key(method, self.setting.seeds[0]), sort_keys=True)
        return cache_root() / "measured" / "locks" / hashlib.sha256(key.encode()).hexdigest()
