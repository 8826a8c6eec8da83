"""Windows: every token once, in order, no padding; draws depend on the seed alone."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trimtab.core.errors import DataError
from trimtab.data.windows import JOINT, calibration_windows, encoder, evaluation_windows, opening, pack, sample


class Letters:
    """A tokenizer with one token per character, code point + 1; `bos` is put before every text if given."""

    def __init__(self, bos: int | None = None, opens: bool = False):
        self.bos_token_id, self.opens = bos, opens

    def __call__(self, text: str, add_special_tokens: bool = True, **_: object) -> dict[str, list[int]]:
        start = [self.bos_token_id] if self.opens and add_special_tokens else []
        return {"input_ids": start + [ord(letter) + 1 for letter in text]}


def spell(ids: torch.Tensor) -> str:
    return "".join(chr(int(i) - 1) for i in ids.flatten())


@given(st.lists(st.text("abc", min_size=1), min_size=1), st.integers(1, 7))
def test_pack_keeps_every_token_in_order_and_drops_only_the_tail(texts: list[str], length: int) -> None:
    whole = "".join(text + JOINT for text in texts)
    if len(whole) < length:
        return
    windows = pack(texts, encoder(Letters()), length)
    assert windows.dtype == torch.int64
    assert windows.shape == (len(whole) // length, length)
    assert spell(windows) == whole[: windows.numel()]


def test_pack_puts_the_opening_token_into_every_window() -> None:
    windows = pack(["abcdef"], encoder(Letters()), 3, start=[0])
    assert windows[:, 0].tolist() == [0] * 4
    assert spell(windows[:, 1:]) == "abcdef" + JOINT


def test_opening_asks_the_tokenizer() -> None:
    assert opening(Letters()) == []
    assert opening(Letters(bos=7)) == []
    assert opening(Letters(bos=7, opens=True)) == [7]
    assert encoder(Letters(bos=7, opens=True))("a") == [ord("a") + 1]


def test_pack_of_too_little_text_says_how_much_there_is() -> None:
    with pytest.raises(DataError, match=r"has 5 tokens, one window of 8 takes 8; use a length of at most 5"):
        pack(["abc"], encoder(Letters()), 8)
    with pytest.raises(DataError, match=r"has 5 tokens, one window of 8 takes 7; use a length of at most 6"):
        pack(["abc"], encoder(Letters()), 8, start=[0])
    assert pack(["abc"], encoder(Letters()), 6, start=[0]).shape == (1, 6)
    with pytest.raises(DataError, match="no room for text; use a length of at least 2"):
        pack(["abc"], encoder(Letters()), 1, start=[0])


def test_sample_is_without_replacement_and_depends_on_the_seed_alone() -> None:
    windows = torch.arange(40).view(20, 2)
    drawn = sample(windows, 20, seed=3)
    assert sorted(map(tuple, drawn.tolist())) == sorted(map(tuple, windows.tolist()))
    assert torch.equal(drawn[:5], sample(windows, 5, seed=3))
    assert not torch.equal(drawn, sample(windows, 20, seed=4))


def test_sample_of_too_few_windows_says_so() -> None:
    with pytest.raises(DataError, match=r"asked for 3 windows of 4 tokens, the text gives 2; ask for at most 2"):
        sample(torch.zeros(2, 4, dtype=torch.int64), 3, seed=0)


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    path = tmp_path / "corpus.txt"
    path.write_text("\n\n".join(chr(ord("a") + i) * 10 for i in range(20)))
    return str(path)


def test_calibration_windows_are_a_seeded_shuffle_of_documents(corpus: str) -> None:
    windows = calibration_windows(corpus, Letters(), tokens=100, length=24, seed=0)
    assert windows.shape == (5, 24)  # 100 rounded up to whole windows
    letters = [part[0] for part in spell(windows).split(JOINT) if part]
    assert len(set(letters)) == len(letters) == 10
    assert letters != sorted(letters)
    assert torch.equal(windows, calibration_windows(corpus, Letters(), tokens=100, length=24, seed=0))
    assert not torch.equal(windows, calibration_windows(corpus, Letters(), tokens=100, length=24, seed=1))


def test_calibration_tokenizes_only_what_it_needs(corpus: str) -> None:
    asked: list[str] = []

    class Counting(Letters):
        def __call__(self, text: str, add_special_tokens: bool = True, **_: object) -> dict[str, list[int]]:
            asked.append(text)
            return super().__call__(text, add_special_tokens)

    calibration_windows(corpus, Counting(), tokens=24, length=12, seed=0)
    assert len([text for text in asked if text]) == 2


def test_calibration_from_too_short_a_source_says_what_would_do(corpus: str) -> None:
    with pytest.raises(DataError, match=r"corpus\.txt has 240 tokens, 1000 were asked for; ask for at most 240"):
        calibration_windows(corpus, Letters(), tokens=1000, length=10, seed=0)


def test_evaluation_windows_are_a_sample_of_all_windows(corpus: str) -> None:
    everything = {tuple(row) for row in pack_of(corpus).tolist()}
    drawn = evaluation_windows(corpus, Letters(bos=0, opens=True), 6, 13, seed=0)
    assert {tuple(row) for row in drawn.tolist()} < everything
    assert len(drawn) == 6


def pack_of(corpus: str) -> torch.Tensor:
    return pack(Path(corpus).read_text().split("\n\n"), encoder(Letters()), 13, start=[0])


@pytest.mark.parametrize("start", [[], [0]])
@pytest.mark.parametrize("stride", [1, 3, 5])
def test_with_a_stride_every_token_is_scored_once_and_has_enough_before_it(tmp_path: Path, stride: int, start: list[int]) -> None:
    whole = "".join(map(chr, range(100, 141)))
    (tmp_path / "text.txt").write_text(whole, encoding="utf-8")
    whole += JOINT
    length, tokenizer = 6, Letters(bos=0, opens=bool(start))
    body = length - len(start)
    count = (len(whole) - body) // stride + 1
    windows = evaluation_windows(str(tmp_path / "text.txt"), tokenizer, count, length, 0, stride)
    assert windows.shape == (count, length)
    scored = sorted(spell(row) for row in windows[:, -stride:])
    expected = [whole[end - stride : end] for end in range(body, len(whole) + 1, stride)]
    assert scored == sorted(expected)
    assert sum(map(len, expected)) == count * stride
    for row in windows:
        assert row[: len(start)].tolist() == start
        assert spell(row[len(start) :]) in whole


@pytest.mark.parametrize("stride", [0, 6, -1])
def test_a_stride_is_shorter_than_the_window(stride: int) -> None:
    with pytest.raises(DataError, match=rf"a stride must be from 1 to the length less one \(5\), got {stride}"):
        evaluation_windows("asset:boolq", Letters(), 1, 6, 0, stride)
