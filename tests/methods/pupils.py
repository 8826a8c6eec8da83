"""Methods that close channels while the model learns, and their pupils before the first step."""

from dataclasses import dataclass

import pytest
import torch

from trimtab.anatomy import Anatomy
from trimtab.core import registry
from trimtab.core.narrowing import NarrowingMethod, Separable
from trimtab.engine.narrowing import narrows
from trimtab.engine.sweep import Stream
from trimtab.formats.gates import Narrower
from trimtab.stats import Gram
from trimtab.testing.roundtrip import shown

METHODS = [registry.get(id) for id in registry.ids() if issubclass(registry.get(id), NarrowingMethod)]
EVERY = pytest.mark.parametrize("method", METHODS, ids=[m.card.id for m in METHODS])
LoRAPrune, AdaptPrunerTuned, Compresso = (registry.get(id) for id in ("loraprune", "adapt_pruner_tuned", "compresso"))
FoldGPTGates, Pat, Atp, EfficientLLM = (registry.get(id) for id in ("foldgpt_gates", "pat", "atp", "efficientllm"))


@dataclass
class Known:
    found: Separable
    generator: torch.Generator

    def __getitem__(self, need: type) -> object:
        if need is Gram:  # of inputs that have nothing to do with each other
            return {c.consumer.site: torch.eye(c.consumer.site.shape[1]) for c in self.found.couplings}
        assert need is Separable
        return self.found


def begun(method: NarrowingMethod, model: torch.nn.Module) -> tuple[Anatomy, Narrower]:
    anatomy = Anatomy.of(model)
    stream = Stream(anatomy, [shown(model)[0][:1, :16]])
    couplings = tuple(c for c in anatomy.couplings() if narrows(stream, c))
    found = Separable(couplings, sum(p.numel() for p in model.parameters()))
    pupil = method.begin(anatomy, Known(found, torch.Generator().manual_seed(0)))
    assert isinstance(pupil, Narrower)
    return anatomy, pupil
