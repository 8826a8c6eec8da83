"""The sample comparison, with folders whose headers can be read, and the page that it makes."""

from pathlib import Path
from typing import Any

import pytest
import sample

from trimtab.report import markdown, parse, render


def placed(fields: dict[str, Any], place: Path) -> dict[str, Any]:
    """The comparison with a folder behind every model."""
    for number, model in enumerate((fields["base"], *fields["others"])):
        folder = sample.folder(place / f"model-{number}", model["receipt"], width=1 if number else 4)
        model["folder"] = str(folder)
    return fields


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return render(parse(placed(sample.comparison(), tmp_path_factory.mktemp("folders"))))


@pytest.fixture(scope="session")
def card(tmp_path_factory: pytest.TempPathFactory) -> str:
    return markdown(parse(placed(sample.comparison(), tmp_path_factory.mktemp("folders"))))
