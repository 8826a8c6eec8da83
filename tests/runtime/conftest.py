"""Folders of tiny models, opened both ways."""

import pytest
import torch

from trimtab.host.checkpoint import load, save
from trimtab.runtime import Runtime
from trimtab.runtime.errors import Unsupported
from trimtab.runtime.native import native
from trimtab.testing.tiny import tiny


def pytest_collection_modifyitems(items):
    try:
        native()
    except Unsupported as error:
        for item in items:
            if item.path.parent.name == "runtime":
                item.add_marker(pytest.mark.skip(reason=str(error)))


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    """folder_of(architecture, **config) -> the folder of a tiny model, written once."""
    made = {}

    def of(architecture, **overrides):
        key = (architecture, repr(sorted(overrides.items())))
        if key not in made:
            made[key] = tmp_path_factory.mktemp(architecture) / "model"
            save(tiny(architecture, **overrides), None, made[key])
        return made[key]

    return of


@pytest.fixture(scope="session")
def exact():
    """exact(folder, **options): a runtime that multiplies what is stored and keeps what it computed."""
    stored = {"activations": "float32", "kv": "float32", "head_bits": 32, "threads": 2}
    return lambda folder, **options: Runtime.open(folder, **{**stored, **options})


@pytest.fixture(scope="session")
def expected():
    """expected(folder, ids) -> (the model in torch, its logits [n, vocabulary])."""

    def logits(folder, ids):
        model, _ = load(folder)
        with torch.no_grad():
            return model, model(torch.tensor([list(ids)])).logits[0].numpy()

    return logits
