"""Comparisons where they must be exact, what is kept of them, and what is refused."""

import json
import math
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from trimtab.core.errors import DataError, ModelError, UsageError
from trimtab.core.progress import Progress
from trimtab.data.windows import evaluation_windows
from trimtab.host.checkpoint import load
from trimtab.measure import contender, gather
from trimtab.measure.compare import Comparison, compare
from trimtab.measure.gather import passage_bytes, passages
from trimtab.measure.perplexity import token_losses
from trimtab.measure.setting import Setting
from trimtab.testing.folders import SPECIAL, tiny_folder

TASK = "items.jsonl"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two texts, a task, a model, the same model again, and others."""
    folder = tmp_path_factory.mktemp("compare")
    draw = random.Random(0)
    for name, letters in (("plain.txt", "abcdefgh"), ("other.txt", "stuvwxyz")):
        words = ("".join(draw.choices(letters, k=draw.randint(2, 7))) for _ in range(3000))
        (folder / name).write_text("\n\n".join(" ".join(next(words) for _ in range(30)) for _ in range(100)), encoding="utf-8")
    items = [
        {
            "context": f"Question: {draw.randint(0, 999)}?\nAnswer:",
            "continuations": [f" {draw.choice('abcdef')}{number}", f" {draw.choice('uvwxyz')}"],
            "gold": draw.randint(0, 1),
            "domain": draw.choice(["sums", "words"]),
        }
        for number in range(50)
    ]
    (folder / TASK).write_text("\n".join(map(json.dumps, items)), encoding="utf-8")
    singles = [{"context": f"{n} and", "continuations": [f" {n + 1}"], "gold": 0} for n in range(20)]
    (folder / "gold.jsonl").write_text("\n".join(map(json.dumps, singles)), encoding="utf-8")
    tiny_folder(folder / "base", num_hidden_layers=2)
    tiny_folder(folder / "same", num_hidden_layers=2)
    tiny_folder(folder / "other", seed=1, num_hidden_layers=1)
    return folder


def setting(place: Path, **changed) -> Setting:
    plain = {"texts": (str(place / "plain.txt"),), "windows": 8, "length": 32, "samples": False}
    return Setting(**{**plain, **changed})


def run(place: Path, *others: str, watch=lambda _: None, **changed) -> Comparison:
    return compare(str(place / "base"), [str(place / other) for other in others], setting(place, **changed), watch)


def test_a_model_against_itself(place: Path) -> None:
    found = run(place, "same", tasks=(str(place / TASK),))
    against = found.others[0]["against_base"]
    for key in ("perplexity", "bits_per_byte"):
        assert (against[key]["difference"], against[key]["low"], against[key]["high"]) == (0, 0, 0)
        assert against[key]["verdict"] == "not separable"
    assert (against["kl"]["value"], against["kl"]["stderr"]) == (0, 0)
    assert against["same_top"]["value"] == 1
    (task,) = against["tasks"].values()
    assert (task["difference"], task["verdict"]) == (0, "not separable")
    assert (task["flips"]["right_to_wrong"], task["flips"]["wrong_to_right"]) == (0, 0)
    assert task["flips"]["both_right"] + task["flips"]["both_wrong"] == task["flips"]["n"] == 50
    assert found.notes == ("same is the same model as base",)
    assert found.ranking == "base ≈ same"


def test_the_document_is_what_was_agreed_on(place: Path) -> None:
    found = run(place, "other", tasks=(str(place / TASK),), samples=True).json()
    json.dumps(found, allow_nan=False)
    assert found.keys() == {"format", "setting", "base", "others", "notes", "made"}
    assert found["format"] == 1
    keys = {"name", "folder", "fingerprint", "measurements", "tasks", "domains", "positions", "calibration", "samples", "receipt"}
    assert found["base"].keys() == keys
    assert found["others"][0].keys() == keys | {"against_base"}
    base, other = found["base"], found["others"][0]
    names = {m["name"] for m in base["measurements"]}
    assert {"perplexity", "bits per byte", "file size", "bits per weight, blocks"} <= names
    assert base["samples"][0].keys() == {"prompt", "text"}
    against = other["against_base"]
    assert against.keys() == {"perplexity", "bits_per_byte", "kl", "same_top", "tasks"}
    assert against["perplexity"].keys() == {"difference", "low", "high", "n", "unit", "verdict"}
    assert against["kl"].keys() == against["same_top"].keys() == {"value", "stderr", "n", "unit"}
    (task,), (compared,) = base["tasks"].values(), against["tasks"].values()
    assert task.keys() == {"n", "accuracy", "stderr", "normalised", "normalised_stderr", "calibration"}
    assert compared.keys() == {"difference", "low", "high", "n", "unit", "verdict", "flips"}
    assert base["calibration"].keys() == {"error", "stderr", "n", "bins"}
    assert {"commit", "versions", "machine", "date"} <= found["made"].keys()


def test_numbers_are_those_of_the_models(place: Path) -> None:
    found = run(place, "other", texts=(str(place / "plain.txt"), str(place / "other.txt")))
    losses = {}
    for name in ("base", "other"):
        model, tokenizer = load(place / name)
        windows = [evaluation_windows(str(place / text), tokenizer, 8, 32, 0) for text in ("plain.txt", "other.txt")]
        losses[name] = torch.stack([token_losses(model, own) for own in windows])  # [texts, windows, tokens]
    for document in (found.base, *found.others):
        own = losses[document["name"]]
        measured = {m["name"]: m["value"] for m in document["measurements"]}
        assert measured["perplexity"] == pytest.approx(own.mean().exp().item())
        assert [part["nats"] for part in document["domains"]] == pytest.approx(own.mean((1, 2)).tolist())
        assert [part["n"] for part in document["domains"]] == [8 * 31, 8 * 31]
        ends = [(part["from"], part["to"]) for part in document["positions"]]
        assert ends == [(1, 1), (2, 3), (4, 7), (8, 15), (16, 31)]
        for part in document["positions"]:
            expected = own[:, :, part["from"] - 1 : part["to"]].mean().item()
            assert part["nats"] == pytest.approx(expected)
        assert sum(part["n"] for part in document["positions"]) == 2 * 8 * 31
    against = found.others[0]["against_base"]
    assert against["perplexity"]["difference"] == pytest.approx((losses["other"] - losses["base"]).mean().item())
    assert against["perplexity"]["low"] < against["perplexity"]["difference"] < against["perplexity"]["high"]
    # One byte is one token here.
    difference = against["perplexity"]["difference"] / math.log(2)
    assert against["bits_per_byte"]["difference"] == pytest.approx(difference)


def test_flips_add_up_to_the_items_and_their_difference(place: Path) -> None:
    found = run(place, "other", tasks=(str(place / TASK),), limit=40)
    (base,), (other,) = found.base["tasks"].values(), found.others[0]["tasks"].values()
    (task,) = found.others[0]["against_base"]["tasks"].values()
    flips = dict(task["flips"])
    assert flips.pop("n") == sum(flips.values()) == base["n"] == 40
    assert flips["both_right"] + flips["right_to_wrong"] == pytest.approx(40 * base["accuracy"])
    assert flips["both_right"] + flips["wrong_to_right"] == pytest.approx(40 * other["accuracy"])
    assert task["difference"] == pytest.approx(other["accuracy"] - base["accuracy"])
    assert task["low"] < task["difference"] < task["high"]


def test_gold_answers_are_compared_by_bits_per_byte_too(place: Path) -> None:
    found = run(place, "other", tasks=(str(place / "gold.jsonl"),))
    (base,), (other,) = found.base["tasks"].values(), found.others[0]["tasks"].values()
    (task,) = found.others[0]["against_base"]["tasks"].values()
    assert (base["normalised"], base["calibration"]) == (None, None)
    assert task["bits_per_byte"]["difference"] == pytest.approx(other["bits_per_byte"] - base["bits_per_byte"])


def test_models_are_ranked_and_neighbours_told_apart(place: Path, tmp_path: Path) -> None:
    """A base that knows the text's letters, a copy, and one that was damaged."""
    good, worse = tiny_folder(tmp_path / "good"), tiny_folder(tmp_path / "worse")
    weights = load_file(good / "model.safetensors")
    letters = [load(good)[1].convert_tokens_to_ids(letter) for letter in "abcdefgh"]
    head = "lm_head.weight" if "lm_head.weight" in weights else "model.embed_tokens.weight"
    broken = dict(weights)
    broken[head] = weights[head].clone()
    broken[head][letters] *= 4  # confident about letters, at random
    save_file(broken, worse / "model.safetensors", {"format": "pt"})
    found = compare(str(good), [str(worse), str(place / "base")], setting(place, windows=40))
    assert found.others[0]["against_base"]["perplexity"]["verdict"] == "worse"
    assert found.ranking.endswith("< worse")
    assert [model["name"] for model in found.others] == ["worse", "base"]


def test_a_second_run_opens_no_model_and_says_the_same(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"tasks": (str(place / TASK),), "samples": True}
    first = run(place, "other", **asked)
    monkeypatch.setattr(contender, "load", lambda *_, **__: pytest.fail("a model was opened"))
    monkeypatch.setattr(contender, "load_tokenizer", lambda *_: pytest.fail("a tokenizer was opened"))
    again = run(place, "other", **asked)
    assert {**again.json(), "made": None} == {**first.json(), "made": None}


def test_a_run_that_was_stopped_goes_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = gather.agreement
    calls: list[str] = []

    def counted(*models, **options):
        calls.append(options["names"][1])
        if options["names"][1] == "other" and calls.count("other") == 1:
            raise KeyboardInterrupt
        return real(*models, **options)

    monkeypatch.setattr(gather, "agreement", counted)
    with pytest.raises(KeyboardInterrupt):
        run(place, "same", "other")
    run(place, "same", "other")
    assert calls == ["same", "other", "other"]


def test_another_text_is_measured_anew(place: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    found = []
    for source in ("plain.txt", "other.txt"):
        text.write_bytes((place / source).read_bytes())
        found.append(run(place, "other", texts=(str(text),)).base["measurements"][0]["value"])
    assert found[0] != found[1]


def test_progress_is_one_measure_of_all_the_work(place: Path) -> None:
    told: list[Progress] = []
    run(place, "same", "other", tasks=(str(place / TASK),), watch=told.append)
    compared = [now for now in told if now.phase == "compare"]
    done = [now.done for now in compared]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, 100)
    assert {now.total for now in compared} == {100}
    assert len(set(done)) > 4


@pytest.fixture(scope="module")
def renumbered(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base under a tokenizer that numbers its bytes the other way round: another vocabulary, the same predictions."""
    folder = tiny_folder(tmp_path_factory.mktemp("renumbered") / "renumbered", num_hidden_layers=2)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*SPECIAL, *reversed(letters)]
    backend = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>").save_pretrained(
        folder
    )
    weights = load_file(folder / "model.safetensors")
    order = [0, 1, 2, *range(len(letters) + 2, 2, -1)]
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in weights:
            weights[name] = weights[name][order].contiguous()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_other_tokenizers_are_refused(place: Path, renumbered: Path) -> None:
    with pytest.raises(UsageError, match=r"renumbered and base have different tokenizers.*--across-tokenizers"):
        compare(str(place / "base"), [str(place / "other"), str(renumbered)], setting(place))


def test_other_tokenizers_are_compared_by_the_byte(place: Path, renumbered: Path) -> None:
    asked = setting(place, tasks=(str(place / TASK),), across_tokenizers=True)
    found = compare(str(place / "base"), [str(renumbered), str(place / "other")], asked)
    foreign, other = (model["against_base"] for model in found.others)
    assert (foreign["perplexity"], foreign["kl"], foreign["same_top"]) == (None, None, None)
    assert foreign["bits_per_byte"]["difference"] == pytest.approx(0, abs=1e-5)  # the same model, after all
    (task,) = foreign["tasks"].values()
    assert (task["flips"]["right_to_wrong"], task["flips"]["wrong_to_right"]) == (0, 0)
    assert other["perplexity"] is not None
    assert "renumbered" not in found.ranking
    assert any("renumbered has another tokenizer" in note for note in found.notes)


def test_passages_are_pieces_of_the_text_that_fit(place: Path) -> None:
    asked = setting(place, length=64)
    texts = ["eins zwei drei  vier\nfünf sechs", "sieben acht neun zehn elf zwölf " * 30]
    pairs = passages(texts, asked)
    whole = "\n\n".join(texts)
    assert len(pairs) <= 4 * asked.windows
    for context, scored in pairs:
        assert len((context + scored).encode()) <= 64
        assert context == context.rstrip()
        assert " ".join((context + scored).split()) in " ".join(whole.split())
    assert passage_bytes([("a", " zwölf")]).tolist() == [7]


def test_the_name_of_a_broken_model_is_said(place: Path, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "broken", num_hidden_layers=2)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], 3e38)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"^broken: .*not finite.*first in model\.norm"):
        compare(str(place / "base"), [str(folder)], setting(place))


def test_what_cannot_be_compared(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is given twice"):
        run(place, "other", "other")
    with pytest.raises(UsageError, match="is given twice"):
        run(place, "base")
    with pytest.raises(UsageError, match="nothing to compare with"):
        run(place)
    with pytest.raises(UsageError, match="there is no task 'arc_esy'; did you mean 'arc_easy'"):
        run(place, "other", tasks=("arc_esy",))
    with pytest.raises(ModelError, match="no model folder"):
        run(place, "nowhere")
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n\n", encoding="utf-8")
    with pytest.raises(DataError, match="holds no text"):
        run(place, "other", texts=(str(empty),))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"windows": 1}, "windows must be at least 2"),
        ({"length": 1}, "length must be at least 2"),
        ({"texts": ()}, "at least one text"),
        ({"texts": ("a.txt", "a.txt")}, "the text a.txt is given twice"),
        ({"tasks": ("sciq", "sciq")}, "the task sciq is given twice"),
    ],
)
def test_settings_that_make_no_sense(changed: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Setting(**changed)
