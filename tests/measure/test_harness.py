"""lm-evaluation-harness runs on our models, and its numbers for our items are ours."""

import importlib.util
import json
import logging
import random
from pathlib import Path

import pytest
import torch

from trimtab.core.errors import TrimtabError, UsageError
from trimtab.host.checkpoint import load
from trimtab.host.compress import compress
from trimtab.measure import harness as room
from trimtab.measure.harness import harness, harness_items
from trimtab.measure.score import encode
from trimtab.measure.tasks import answer
from trimtab.testing.folders import byte_tokenizer, tiny_folder
from trimtab.testing.tiny import tiny

installed = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed; pip install 'trimtab[eval]'"
)
TOKENIZER = byte_tokenizer()


def model(**overrides: int):
    return tiny("llama", vocab_size=len(TOKENIZER), num_hidden_layers=2, **overrides)


@pytest.fixture
def toy(tmp_path: Path) -> str:
    """Choices of several kinds: shared contexts, spaces at the end, one-token answers, two to four choices."""
    rows = [
        {
            "context": f"Question: {n} or more?\nAnswer:",
            "continuations": [" yes", " no", " maybe", " é"][: 2 + n % 3],
            "gold": n % 2,
        }
        for n in range(20)
    ]
    rows += [{"context": "ends in a space ", "continuations": ["a", "b", "cd"], "gold": 2, "domain": "spaces"}]
    return written(tmp_path / "toy.jsonl", rows)


@pytest.fixture
def gold(tmp_path: Path) -> str:
    return written(tmp_path / "gold.jsonl", [{"context": f"{n}", "continuations": [f" {n}!"], "gold": 0} for n in range(6)])


def written(file: Path, rows: list[dict]) -> str:
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(file)


@installed
@pytest.mark.parametrize("limit", [None, 7])
def test_its_answers_are_ours_item_by_item(toy: str, limit: int | None) -> None:
    opened = model()
    theirs, ours = harness_items(opened, TOKENIZER, f"pack:{toy}", limit), answer(opened, TOKENIZER, toy, limit)
    assert theirs.ids == ours.ids
    assert theirs.scores.isfinite().equal(ours.scores.isfinite())
    torch.testing.assert_close(theirs.scores, ours.scores, rtol=1e-5, atol=1e-4)
    for name in ("gold", "sizes", "greedy"):
        assert torch.equal(getattr(theirs, name), getattr(ours, name)), name
    assert theirs.setting["lm_eval"]


@installed
def test_it_opens_what_was_compressed_and_saved(toy: str, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "base", num_hidden_layers=2)
    compress(str(folder), "rtn(bits=4, group_size=32)", out=tmp_path / "small")
    opened, tokenizer = load(tmp_path / "small")
    assert any(hasattr(module, "weight_value") for module in opened.modules())
    theirs, ours = harness_items(opened, tokenizer, f"pack:{toy}"), answer(opened, tokenizer, toy)
    torch.testing.assert_close(theirs.scores, ours.scores, rtol=1e-5, atol=1e-4)
    assert not torch.allclose(ours.scores, answer(load(folder)[0], tokenizer, toy).scores, atol=1e-2)


@installed
def test_its_metrics_are_ours(toy: str, gold: str) -> None:
    opened = model()
    found = {m.name: m for m in harness(opened, TOKENIZER, [f"pack:{toy}", f"pack:{gold}"])}
    accuracy, normalised = answer(opened, TOKENIZER, toy).measurements()
    acc, acc_norm = found[f"lm-eval:pack:{toy} acc"], found[f"lm-eval:pack:{toy} acc_norm"]
    assert (acc.value, acc.n) == (pytest.approx(accuracy.value), 21)
    assert acc.stderr == pytest.approx(accuracy.stderr)
    assert acc_norm.value == pytest.approx(normalised.value)
    assert found[f"lm-eval:pack:{gold} acc"].value == answer(opened, TOKENIZER, gold).measurements()[0].value


@installed
def test_the_token_boundary_is_drawn_alike() -> None:
    from lm_eval.models.huggingface import HFLM

    host = HFLM(pretrained=model(), tokenizer=byte_tokenizer())
    draw = random.Random(0)
    for _ in range(200):
        context, continuation = ("".join(draw.choices("ab é\n", k=draw.randint(1, 6))) for _ in range(2))
        if context.strip() and continuation:
            before, after = host._encode_pair(context, continuation)
            line = encode(TOKENIZER, (context, continuation), 128)
            assert (list(line.ids), line.scored) == (before + after, len(after)), (context, continuation)
    ((_, before, after),) = captured(host)
    assert list(encode(TOKENIZER, ("", "abc"), 128).ids) == before + after


def captured(host) -> list:
    """What lm-eval makes of a continuation without a context."""
    from lm_eval.api.instance import Instance

    host._loglikelihood_tokens = lambda requests, **_: requests
    return host.loglikelihood([Instance("loglikelihood", {}, ("", "abc"), 0)], disable_tqdm=True)


@installed
def test_truncation_agrees(tmp_path: Path) -> None:
    file = written(tmp_path / "long.jsonl", [{"context": "0123456789" * 9, "continuations": [" one", " other"], "gold": 0}])
    opened = model(max_position_embeddings=32)
    with pytest.warns(UserWarning, match="too long"):
        ours = answer(opened, TOKENIZER, file)
    theirs = harness_items(opened, TOKENIZER, f"pack:{file}")
    torch.testing.assert_close(theirs.scores, ours.scores, rtol=1e-5, atol=1e-4)
    assert ours.truncated == 2


@installed
def test_nothing_of_ours_is_changed(toy: str, capfd: pytest.CaptureFixture[str]) -> None:
    opened, tokenizer = model().train(), byte_tokenizer()
    tokenizer.pad_token = None
    before, state = torch.random.get_rng_state(), random.getstate()
    level = logging.getLogger("lm_eval").level
    answer(opened, tokenizer, f"lm-eval:pack:{toy}", limit=2)
    assert tokenizer.pad_token is None
    assert torch.random.get_rng_state().equal(before)
    assert random.getstate() == state
    assert logging.getLogger("lm_eval").level == level
    assert opened.training
    assert capfd.readouterr().err == ""


class Shelf:
    """In place of lm-eval's list of its ten thousand tasks, which takes long to read."""

    all_tasks = ("arc_easy", "mmlu")

    def load(self, names):
        raise ConnectionError("Couldn't reach 'allenai/ai2_arc' on the Hub\nand more")


@installed
def test_tasks_that_lm_eval_does_not_have_or_cannot_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm_eval.tasks.TaskManager", Shelf)
    with pytest.raises(UsageError, match=r"lm-eval has no task 'arc_esy'; did you mean 'arc_easy'\?"):
        harness(model(), TOKENIZER, ["arc_esy"])
    with pytest.raises(TrimtabError, match=r"cannot load arc_easy: Couldn't reach .* on the Hub; its data come from the hub"):
        harness(model(), TOKENIZER, ["arc_easy"])


@installed
@pytest.mark.slow
def test_lm_evals_own_list_is_asked() -> None:
    with pytest.raises(UsageError, match=r"lm-eval has no task 'arc_esy'; did you mean 'arc_easy'\?"):
        harness(model(), TOKENIZER, ["arc_esy"])


def test_without_lm_eval_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    with pytest.raises(UsageError, match=r"not installed; run: pip install 'trimtab\[eval\]'"):
        harness(model(), TOKENIZER, ["arc_easy"])


SAMPLE = {"doc_id": 4, "arguments": [("q", " a"), ("q", " b")], "filtered_resps": [(-1.0, True), (-2.0, False)]}


@pytest.mark.parametrize(("target", "gold"), [(1, 1), ("b", 1), (" a", 0)])
def test_the_right_choice_of_its_own_tasks(target: object, gold: int) -> None:
    request, answers = room._row("leaf", {**SAMPLE, "target": target})
    assert (request.id, request.gold, request.domain) == ("leaf/4", gold, "leaf")
    assert [score.nats for score in answers] == [-1.0, -2.0]


def test_what_cannot_be_compared_item_by_item_is_said() -> None:
    with pytest.raises(UsageError, match="an item without a single right choice"):
        room._row("leaf", {**SAMPLE, "target": ["a", "b"]})
    with pytest.raises(UsageError, match="not answered by log-likelihoods"):
        room._row("leaf", {**SAMPLE, "target": 0, "filtered_resps": ["a text", "another"]})


@installed
@pytest.mark.real
@pytest.mark.parametrize("task", ["arc_easy", "sciq"])
def test_its_answers_for_the_saved_real_model_are_ours(task: str) -> None:
    from trimtab.host.model_assets import resolve_model
    from trimtab.tensors.products import fast_products

    opened, tokenizer = load(resolve_model("asset:smollm2-135m"))
    with fast_products():
        theirs, ours = answer(opened, tokenizer, f"lm-eval:pack:{task}", 40), answer(opened, tokenizer, task, 40)
    assert theirs.ids == ours.ids
    torch.testing.assert_close(theirs.scores, ours.scores, rtol=0, atol=1e-4)
    assert theirs.right().equal(ours.right())
    assert theirs.right(normalised=True).equal(ours.right(normalised=True))
