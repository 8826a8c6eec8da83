import pytest

from trimtab.anatomy import Anatomy
from trimtab.testing.tiny import ARCHITECTURES, tiny


@pytest.fixture(scope="module", params=ARCHITECTURES)
def anatomy(request: pytest.FixtureRequest) -> Anatomy:
    """Every family in turn."""
    return Anatomy.of(tiny(request.param))
