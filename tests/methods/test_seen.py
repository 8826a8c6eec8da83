"""What a method is shown: nothing undeclared, and no randomness that was not handed in."""

import pytest

from trimtab.core.kinds import Original, Seen
from trimtab.core.seeds import Seeds


def test_randomness_is_handed_in_or_refused() -> None:
    with pytest.raises(ValueError, match="no randomness was handed in"):
        _ = Seen({}).generator
    seen = Seen({}, Seeds(3).at("here"))
    assert not seen.drew
    assert seen.generator.initial_seed() == Seeds(3).at("here").initial_seed()
    assert seen.drew


def test_what_was_not_declared_is_refused_by_name() -> None:
    with pytest.raises(KeyError, match="Original was not declared"):
        Seen({})[Original]
