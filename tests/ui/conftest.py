"""A folder of results as the sample comparison has them, and a page that shows it. Without fastapi these tests are skipped."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "report"))  # the sample comparison, and the browser

from furnished import furnish
from served import Visitor, serving


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "results").mkdir()
    return furnish(tmp_path / "results")


@pytest.fixture
def visitor(root: Path) -> Iterator[Visitor]:
    pytest.importorskip("fastapi", reason="the page needs fastapi and uvicorn")
    with serving(root) as keys:
        yield Visitor(keys)
