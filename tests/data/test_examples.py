"""Rows to train on: what is learned of text, of prompts with completions and of conversations, and what is wrong with a line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from trimtab.core.errors import DataError
from trimtab.data.examples import batch, examples, held_out
from trimtab.testing.folders import byte_tokenizer

CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
ANEW = "{{ messages | length }}" + CHAT


def written(folder: Path, *lines: Any, name: str = "data.jsonl") -> Path:
    file = folder / name
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return file


def learned(row: Any) -> str:
    return str(byte_tokenizer().decode(row.ids[row.learned]))


def test_only_the_completion_is_learned(tmp_path: Path) -> None:
    found = examples(written(tmp_path, {"prompt": "2 + 2 = ", "completion": "4"}), byte_tokenizer(), 32)
    (row,) = found.rows
    assert learned(row) == "4<eos>"
    assert byte_tokenizer().decode(row.ids) == "2 + 2 = 4<eos>"
    assert found.learned == 2


def test_only_the_assistant_is_learned(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT
    turns = [("system", "be"), ("user", "hi"), ("assistant", "ho"), ("user", "more"), ("assistant", "no")]
    file = written(tmp_path, {"messages": [{"role": role, "content": content} for role, content in turns]})
    (row,) = examples(file, tokenizer, 200).rows
    assert learned(row) == "ho\nno\n"
    assert str(tokenizer.decode(row.ids)).startswith("<system>be\n<user>hi\n<assistant>ho\n")


def test_text_is_learned_as_a_whole(tmp_path: Path) -> None:
    written(tmp_path, "some words here\n\nand some more there", name="a.txt")
    written(tmp_path, {"text": "and lines"}, name="b.jsonl")
    found = examples(tmp_path, byte_tokenizer(), 8)
    assert all(len(row.ids) == 8 and row.learned.sum() == 7 for row in found.rows)
    assert found.truncated == found.dropped == 0
    assert len(found.rows) == (len("some words here") + len("and some more there") + len("and lines") + 6) // 8


def test_what_is_too_long_is_cut_and_counted(tmp_path: Path) -> None:
    lines = [{"prompt": "p" * n, "completion": "abc"} for n in (2, 6, 30)]
    found = examples(written(tmp_path, *lines), byte_tokenizer(), 8)
    assert [learned(row) for row in found.rows] == ["abc<eos>", "ab"]
    assert (found.truncated, found.dropped) == (2, 1)
    with pytest.raises(DataError, match="leaves nothing to learn in rows of 2 tokens"):
        examples(written(tmp_path, lines[2]), byte_tokenizer(), 2)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"data\.jsonl:2 is not a JSON object"),
        ("[1]", r"data\.jsonl:2 is not a JSON object"),
        ({"prompt": "x"}, r'data\.jsonl:2 has no text in "completion"'),
        ({"prompt": 3, "completion": "x"}, r'data\.jsonl:2 has no text in "prompt"'),
        ({"txt": "x"}, r'data\.jsonl:2 has no text in "text"'),
        ('{"text": "\\ud800"}', r'data\.jsonl:2 has no text in "text"'),
        ({"messages": []}, r'data\.jsonl:2: "messages" must be a list'),
        ({"messages": [{"role": "user", "content": "x"}]}, r"with a turn of the assistant"),
        (
            {"messages": [{"role": "assistant", "content": "x"}]},
            r"data\.jsonl:2 is a conversation, but the tokenizer has no chat",
        ),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        examples(written(tmp_path, {"text": "good"}, line), byte_tokenizer(), 8)


def test_other_bad_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no \.txt or \.jsonl file"):
        examples(tmp_path, byte_tokenizer(), 8)
    with pytest.raises(DataError, match="is empty; write lines such as"):
        examples(written(tmp_path, "", ""), byte_tokenizer(), 8)
    with pytest.raises(DataError, match=r"cannot read .*missing"):
        examples(tmp_path / "missing.jsonl", byte_tokenizer(), 8)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = ANEW
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant", "user", "assistant")]
    with pytest.raises(DataError, match="chat template writes earlier turns anew"):
        examples(written(tmp_path, {"messages": turns}), tokenizer, 99)


def test_rows_held_out_are_not_trained_on(tmp_path: Path) -> None:
    file = written(tmp_path, *({"prompt": "p", "completion": str(n)} for n in range(20)))
    found = examples(file, byte_tokenizer(), 8)
    train, validation = held_out(found, 0.25, seed=1)
    assert (len(train.rows), len(validation.rows)) == (15, 5)
    assert {id(row) for row in (*train.rows, *validation.rows)} == {id(row) for row in found.rows}
    assert [id(row) for row in held_out(found, 0.25, seed=1)[1].rows] == [id(row) for row in validation.rows]
    assert not held_out(found, 0.0, seed=1)[1].rows
    with pytest.raises(DataError, match="cannot be divided"):
        held_out(type(found)(found.rows[:1]), 0.5, seed=0)


def test_batches_are_filled_up_on_the_right(tmp_path: Path) -> None:
    found = examples(written(tmp_path, *({"prompt": "p", "completion": "c" * n} for n in (1, 3))), byte_tokenizer(), 8)
    made = batch(found.rows, padding=0)
    assert made["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert made["labels"][0, 3:].tolist() == [-100, -100]
    assert torch.equal(made["input_ids"][0, 3:], torch.zeros(2, dtype=torch.int64))
