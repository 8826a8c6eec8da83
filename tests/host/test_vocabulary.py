"""A vocabulary made from a text: the same every time, lossless, and honest about texts that are too small."""

import random

import pytest

from trimtab.core.errors import DataError
from trimtab.data.windows import opening
from trimtab.host.vocabulary import END, trained_tokenizer
from trimtab.measure.text_bytes import token_bytes


@pytest.fixture(scope="module")
def texts() -> list[str]:
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyzäß", k=draw.randint(2, 8))) for _ in range(300)]
    return [" ".join(draw.choices(words, k=40)) for _ in range(100)]


def test_the_same_texts_give_the_same_vocabulary(texts):
    one, other = (trained_tokenizer(texts, 512).backend_tokenizer.to_str() for _ in range(2))
    assert one == other


def test_it_has_as_many_entries_as_asked_for_and_merges_what_is_frequent(texts):
    small, large = trained_tokenizer(texts, 300), trained_tokenizer(texts, 600)
    assert (len(small), len(large)) == (300, 600)
    assert len(large(texts[0])["input_ids"]) < len(small(texts[0])["input_ids"]) < len(texts[0].encode())


def test_every_text_comes_back_and_every_byte_is_counted(texts):
    tokenizer = trained_tokenizer(texts, 512)
    sizes = token_bytes(tokenizer)
    for text in (texts[0], "Never seen: 東京 🜁\n\n\ttab", " leading and trailing "):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
        assert sizes[ids].sum() == len(text.encode())


def test_nothing_is_added_to_a_text(texts):
    tokenizer = trained_tokenizer(texts, 512)
    assert tokenizer("")["input_ids"] == []
    assert opening(tokenizer) == []
    assert tokenizer.convert_tokens_to_ids(END) == tokenizer.eos_token_id == 0


def test_a_text_with_too_few_pieces_is_refused():
    with pytest.raises(DataError, match=r"makes a vocabulary of 2\d\d, 400 were asked for; give more text"):
        trained_tokenizer(["ab ab ab"], 400)
