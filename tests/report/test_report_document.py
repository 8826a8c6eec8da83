"""What a comparison says is read as it was written, and what is wrong with one is said in one line."""

import json
import math
from pathlib import Path

import pytest
import sample

from trimtab.core.errors import UsageError
from trimtab.report import from_folders, parse, read
from trimtab.report.folders import part_of, parts
from trimtab.report.reading import Node
from trimtab.report.receipts import record


def receipt_of(*lines: dict, steps: list | None = None) -> dict:
    return {"model": "m", "recipe": {"seed": 3, "steps": steps or []}, "receipts": list(lines)}


def line(place: str, bits: float = 4.0, error: float | None = 0.1, weights: int = 100, step: int = 1, **notes: float) -> dict:
    return {**sample.step(step, "gptq()", place, weights, 32.0, bits, 0.0), "error": error, "notes": notes}


def cells(*lines: dict) -> dict:
    return {(c.block, c.matrix): (c.bits, c.error) for c in record(Node(receipt_of(*lines), "r")).cells}


def test_numbers_come_with_their_intervals():
    found = parse(sample.comparison())
    base, four, _ = found.models
    perplexity = base.measured("perplexity")
    assert perplexity.value == pytest.approx(20.05)
    assert perplexity.high - perplexity.low == pytest.approx(2 * 1.96 * 20.05 * 0.043)
    assert perplexity.n == 12264
    assert base.against is None
    assert four.against is not None
    assert four.against.differences["perplexity"].verdict == "not separable"
    assert four.against.differences["perplexity"].estimate.unit == "nats/token"
    assert not base.measured("something else").is_known


def test_verdicts_are_gathered_the_worst_first():
    against = parse(sample.comparison()).others[1].against
    assert against is not None
    assert list(against.verdicts()) == ["worse", "not separable"]
    assert against.verdicts()["not separable"] == ["mmlu_stem"]


def test_what_is_not_there_is_left_out():
    found = parse({"format": 1, "base": {"name": "a"}, "others": [{"name": "b", "receipt": None, "calibration": None}]})
    assert [model.name for model in found.models] == ["a", "b"]
    assert found.others[0].record is None


def test_null_is_a_number_that_could_not_be_had():
    measured = [{"name": "perplexity", "value": 3.0, "stderr": None, "n": 1, "unit": "per token"}]
    model = parse({"format": 1, "others": [{"name": "b", "measurements": measured}]}).others[0]
    assert model.measured("perplexity").value == 3.0
    assert math.isnan(model.measured("perplexity").half)


WRONG = {
    "another version": ({"format": 2}, "no comparison of format 1 (it says 2)"),
    "no version": ({"base": None}, "no comparison of format 1 (it says None)"),
    "no models": ({"format": 1}, "holds no models"),
    "others no list": ({"format": 1, "others": {"name": "a"}}, "others must be a list"),
    "a model that is no object": ({"format": 1, "others": ["a"]}, "others[0] must be an object, got 'a'"),
    "a number that is text": (
        {"format": 1, "others": [{"name": "a", "measurements": [{"name": "perplexity", "value": "low"}]}]},
        "others[0].measurements[0].value must be a number, got 'low'",
    ),
    "true is no number": (
        {"format": 1, "others": [{"domains": [{"nats": True}]}]},
        "others[0].domains[0].nats must be a number, got True",
    ),
    "an unknown verdict": (
        {"format": 1, "others": [{"against_base": {"perplexity": {"verdict": "great"}}}]},
        "verdict must be one of better, worse, not separable, got 'great'",
    ),
    "a place that is no text": (
        {"format": 1, "others": [{"receipt": receipt_of({"place": 3})}]},
        "others[0].receipt.receipts[0].place must be text, got 3",
    ),
    "notes that are no texts": ({"format": 1, "others": [{}], "notes": [1]}, "notes must hold texts only"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_with_its_place(name, tmp_path):
    fields, message = WRONG[name]
    file = tmp_path / "comparison.json"
    file.write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        read(file)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"a": ' * 5000, "\xff", "3" * 5000])
def test_a_damaged_file_is_one_line(text, tmp_path):
    file = tmp_path / "comparison.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=r"comparison\.json") as caught:
        read(file)
    assert "\n" not in str(caught.value)


def test_letters_that_cannot_be_shown_are_replaced(tmp_path):
    file = tmp_path / "comparison.json"
    name = r'"a\u0000b\u202ec\ud800d\u00e9 \u6a21"'
    file.write_text(f'{{"format": 1, "others": [{{"name": {name}, "samples": [{{"prompt": "p", "text": "x\\ny\\u001b["}}]}}]}}')
    (model,) = read(file).others
    assert model.name == "a\ufffdb\ufffdc\ufffdd\u00e9 \u6a21"
    assert model.samples == (("p", "x\ny\ufffd["),)


def test_a_missing_file(tmp_path):
    with pytest.raises(UsageError, match="there is no file"):
        read(tmp_path / "nothing.json")


def test_the_last_step_counts_for_a_cell():
    first, last = line("model.layers.7.mlp.down_proj", 4.0, 0.3), line("model.layers.7.mlp.down_proj", 4.5, 0.1, step=2)
    assert cells(last, first) == {(7, "down"): (4.5, 0.1)}


def test_experts_of_a_block_are_one_cell_by_weights():
    few = line("model.layers.2.mlp.experts.down_proj.0", 2.0, 0.1, weights=100)
    many = line("model.layers.2.mlp.experts.down_proj.1", 4.0, 0.4, weights=300)
    ((bits, error),) = cells(few, many).values()
    assert (bits, error) == (pytest.approx(3.5), pytest.approx(0.325))


def test_names_are_shortened_as_far_as_they_stay_apart():
    places = ("transformer.h.0.attn.c_proj", "transformer.h.0.mlp.c_proj", "transformer.h.0.attn.c_attn")
    assert {matrix for _, matrix in cells(*map(line, places))} == {"attn.c", "mlp.c", "c_attn"}


def test_what_is_outside_of_the_blocks_has_no_cell():
    assert cells(line("lm_head"), line("model")) == {}


def test_a_cell_where_nothing_was_seen_has_no_error():
    ((_, error),) = cells(line("model.layers.0.mlp.up_proj", error=None)).values()
    assert math.isnan(error)


def test_damping_counts_as_raised_above_what_the_step_was_told():
    steps = [{"wanda": {"sparsity": 0.5}}, {"gptq": {"bits": 3, "damping": 0.01}, "where": {"skip": ["x"]}}]
    lines = (line("layers.0.a", damping=0.01, step=2), line("layers.1.a", damping=0.1, step=2), line("layers.2.a", step=1))
    assert record(Node(receipt_of(*lines, steps=steps), "r")).raised == (("layers.1.a", 0.01, 0.1),)


def test_a_strange_recipe_hides_nothing_else():
    for recipe in ({"steps": 3}, {"steps": ["shortgpt"]}, {"steps": [{"gptq": None}]}, {}):
        fields = {**receipt_of(line("layers.1.a", damping=0.1)), "recipe": recipe}
        assert record(Node(fields, "r")).raised == ()


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.embed_tokens.weight", "embedding"),
        ("lm_head.weight", "embedding"),
        ("transformer.wte.weight", "embedding"),
        ("model.layers.3.self_attn.q_proj.codes", "attention"),
        ("model.layers.3.self_attn.q_norm.weight", "norms"),
        ("transformer.h.0.ln_1.bias", "norms"),
        ("model.layers.3.mlp.gate_proj.scale", "mlp"),
        ("model.decoder.layers.0.fc1.weight", "mlp"),
        ("model.layers.0.block_sparse_moe.experts.3.w1.weight", "mlp"),
        ("model.layers.0.mixer.in_proj.weight", "other"),
    ],
)
def test_parts_are_told_by_the_words_in_names(name, part):
    assert part_of(name) == part


def test_bytes_by_part_come_from_the_header(tmp_path):
    folder = sample.folder(tmp_path / "m", None, blocks=2, width=2)
    found = parts(folder)
    assert found["embedding"] == 2 * 49152 * 576
    assert found["mlp"] == 2 * 2 * 3 * 1536 * 576
    assert found["norms"] == 2 * 3 * 576
    assert sum(found.values()) < (folder / "model.safetensors").stat().st_size


@pytest.mark.parametrize("content", [b"", b"\x08", b"\xff" * 16, b"\x02\0\0\0\0\0\0\0[]", b"\x02\0\0\0\0\0\0\0{x"])
def test_a_damaged_header_is_one_line(content, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UsageError, match=r"model\.safetensors is damaged"):
        parts(tmp_path)


def test_folders_alone_make_a_comparison_without_a_base(tmp_path):
    one = sample.folder(tmp_path / "one", sample.receipt(4.5, 2, 1))
    found = parse(from_folders([one, sample.folder(tmp_path / "two", None)]))
    assert found.base is None
    assert [model.name for model in found.others] == ["one", "two"]
    assert found.others[0].measured("file size").value == (one / "model.safetensors").stat().st_size
    assert found.others[0].record is not None
    assert found.others[0].parts["mlp"] > 0
    assert "nothing is compared" in found.notes[0]


def test_what_is_no_model_folder_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is not a folder"):
        from_folders([tmp_path / "nowhere"])
    with pytest.raises(UsageError, match="is not a folder"):
        from_folders([tmp_path / "file"])
    with pytest.raises(UsageError, match="neither weights nor"):
        from_folders([tmp_path / "empty"])


@pytest.mark.parametrize("text", ["{", '{"receipts": 3}', '{"receipts": [{"place": []}]}', "[]"])
def test_a_damaged_receipt_is_one_line(text, tmp_path):
    folder: Path = sample.folder(tmp_path / "m", None)
    (folder / "receipt.json").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=r"receipt\.json") as caught:
        from_folders([folder])
    assert "\n" not in str(caught.value)
