import pytest

from trimtab.anatomy import matching
from trimtab.core.errors import UsageError

NAMES = [f"model.layers.{block}.{part}" for block in range(20) for part in ("self_attn.q_proj", "mlp.down_proj")] + ["lm_head"]


@pytest.mark.parametrize("pattern", ["layers.1", "layers.1.", ".layers.1."])
def test_a_block_number_is_a_whole_part(pattern: str) -> None:
    assert matching(pattern, NAMES) == ["model.layers.1.self_attn.q_proj", "model.layers.1.mlp.down_proj"]


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("q_proj", 20),
        ("mlp.down_proj", 20),
        ("layers.*.mlp", 20),
        ("layers.1?", 20),
        ("layers.[12].mlp", 2),
        ("model", 40),
        ("*_proj", 40),
        ("*", 41),
        ("lm_head", 1),
        ("model.layers.19.mlp.down_proj", 1),
    ],
)
def test_parts_are_globs(pattern: str, count: int) -> None:
    assert len(matching(pattern, NAMES)) == count


@pytest.mark.parametrize("pattern", ["proj", "layers.mlp", "Q_PROJ", "q_proj.layers", "layers.2.0", "q.proj", "layers.*.*.*.*"])
def test_what_only_looks_alike_does_not_match(pattern: str) -> None:
    with pytest.raises(UsageError, match="matches nothing"):
        matching(pattern, NAMES)


@pytest.mark.parametrize(
    ("pattern", "advice"),
    [
        ("layers.1.mpl", "did you mean 'mlp'"),
        ("layer.1.mlp", "did you mean 'layers'"),
        ("mlp.q_proj", "did you mean 'mlp.down_proj'"),
        ("layers.33", "the numbers in names are 0 to 19"),
    ],
)
def test_the_error_names_the_nearest(pattern: str, advice: str) -> None:
    with pytest.raises(UsageError) as caught:
        matching(pattern, NAMES)
    assert advice in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("pattern", ["", ".", "layers..1"])
def test_an_empty_part_is_refused(pattern: str) -> None:
    with pytest.raises(UsageError, match="empty part"):
        matching(pattern, NAMES)


def test_a_hostile_glob_ends_quickly() -> None:
    with pytest.raises(UsageError):
        matching("*a" * 40 + "b", ["a" * 200 + ".weight"])
