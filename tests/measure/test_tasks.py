"""A task is answered item by item, on the same items by every model."""

import json
from pathlib import Path

import pytest
import torch

from trimtab.core.errors import DataError, UsageError
from trimtab.data.pack import Request
from trimtab.measure import measure, tasks
from trimtab.measure.tasks import about, answer, known, requests, sampled
from trimtab.testing.folders import byte_tokenizer
from trimtab.testing.tiny import tiny

TOKENIZER = byte_tokenizer()


def model(seed: int = 0):
    return tiny("llama", seed, vocab_size=len(TOKENIZER), num_hidden_layers=2)


@pytest.fixture
def sums(tmp_path: Path) -> str:
    """Twelve sums with two or three answers; the last one has a domain."""
    rows = [{"context": f"{n} + 1 =", "continuations": [f" {n + 1}", " é", " -"][: 2 + n % 2], "gold": 0} for n in range(12)]
    rows[-1]["domain"] = "large"
    file = tmp_path / "sums.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(file)


def test_items_of_a_file(sums: str) -> None:
    found = answer(model(), TOKENIZER, sums)
    assert found.task == sums
    assert found.ids == tuple(str(n + 1) for n in range(12))
    assert found.scores.shape == (12, 3)
    assert found.scores.isinf().sum(dim=1).tolist() == [1, 0] * 6
    assert found.sizes[0].tolist() == [1, 2, 0]  # bytes without the leading space; é has two
    assert found.sizes[1].tolist() == [1, 2, 1]
    assert found.domains == (sums,) * 11 + ("large",)
    assert found.truncated == found.setting["truncated"] == 0
    assert [m.name for m in found.measurements()] == [f"{sums} accuracy", f"{sums} accuracy, normalised"]


def test_the_sample_is_the_same_for_every_model_and_in_order(sums: str) -> None:
    whole = answer(model(), TOKENIZER, sums)
    one, other = answer(model(), TOKENIZER, sums, limit=5), answer(model(seed=1), TOKENIZER, sums, limit=5)
    assert one.ids == other.ids
    assert list(map(int, one.ids)) == sorted(map(int, one.ids))
    assert not torch.equal(one.scores, other.scores)
    rows = [whole.ids.index(id) for id in one.ids]
    torch.testing.assert_close(one.scores, whole.scores[rows], rtol=1e-5, atol=1e-5)
    assert answer(model(), TOKENIZER, sums, limit=5, seed=1).ids != one.ids
    assert answer(model(), TOKENIZER, sums, limit=99).ids == whole.ids


def test_tasks_of_equal_size_are_sampled_alike() -> None:
    """So that the same question is asked with and without its passage."""
    first = [Request(str(n), ("a",), ("b",), 0) for n in range(50)]
    second = [Request(str(n), ("c",), ("d",), 0) for n in range(50)]
    assert [r.id for r in sampled(first, 7, 3)] == [r.id for r in sampled(second, 7, 3)]


def test_truncated_contexts_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "long.jsonl"
    rows = [
        {"context": "x" * 40, "continuations": ["a", "b"], "gold": 0},
        {"context": "x", "continuations": ["a", "b"], "gold": 1},
    ]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    short = tiny("llama", vocab_size=len(TOKENIZER), num_hidden_layers=1, max_position_embeddings=16)
    with pytest.warns(UserWarning, match=r"long\.jsonl: 2 of 4 contexts were too long and lost their beginning"):
        assert answer(short, TOKENIZER, str(file)).truncated == 2


def test_an_unknown_task_suggests_a_known_one() -> None:
    for ask in (known, requests, lambda task: answer(model(), TOKENIZER, task)):
        with pytest.raises(UsageError, match=r"there is no task 'arc_esy'; did you mean 'arc_easy'\?"):
            ask("arc_esy")
    with pytest.raises(UsageError, match="known to lm-eval only"):
        requests("lm-eval:mmlu")
    known("lm-eval:mmlu")  # looked up when it runs


def test_no_items_at_all_cannot_be_asked_for(sums: str) -> None:
    with pytest.raises(UsageError, match="limit of items must be at least 1, got 0"):
        answer(model(), TOKENIZER, sums, limit=0)


def test_every_task_says_what_it_asks() -> None:
    assert tasks.tasks() == sorted(about())
    assert {"arc_easy", "winogrande", "lambada", "gsm8k", "kick:closed"} <= set(about())
    assert all(about().values())


def test_measure_takes_tasks(sums: str, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("one two three\n\n" * 40, encoding="utf-8")
    found = measure(model(), TOKENIZER, str(text), windows=2, length=32, speed=False, tasks=[sums], limit=4)
    by_name = {m.name: m for m in found}
    assert by_name[f"{sums} accuracy"].n == 4
    assert by_name["peak memory"].value > by_name["memory at rest"].value
    with pytest.raises(UsageError, match="did you mean"):
        measure(model(), TOKENIZER, "absent.txt", tasks=["sciqq"])  # said before anything is read
    with pytest.raises(DataError, match="absent"):
        measure(model(), TOKENIZER, "absent.txt", tasks=["sciq"])


@pytest.mark.slow
@pytest.mark.real
def test_the_real_model_knows_something() -> None:
    from trimtab.host.checkpoint import load
    from trimtab.host.model_assets import resolve_model
    from trimtab.tensors.products import fast_products

    opened, tokenizer = load(resolve_model("asset:smollm2-135m"))
    with fast_products():
        found = answer(opened, tokenizer, "arc_easy", limit=60)
    accuracy = found.measurements()[0]
    assert accuracy.value > 0.25 + 2 * accuracy.stderr
    assert abs(accuracy.value - 0.53) < 4 * accuracy.stderr
    assert found.truncated == 0
