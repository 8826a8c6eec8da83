"""Every method of the house keeps the contract of its kind; `pytest -k gptq` runs it for one."""

import pytest

from trimtab.core import registry
from trimtab.testing.check_method import checks, run_check

CONTRACT = [(id, name) for id in registry.ids() for name in checks(registry.get(id))]


@pytest.mark.parametrize(("id", "check"), CONTRACT, ids=[f"{id}-{name}" for id, name in CONTRACT])
def test_keeps(id: str, check: str) -> None:
    run_check(registry.get(id), check)
