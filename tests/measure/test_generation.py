"""Text out of a tiny model: greedy is the argmax loop, a seed is a sample of the model's own distribution."""

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from trimtab.core.errors import UsageError
from trimtab.measure import measure
from trimtab.measure.text import PROMPTS, _Sampling, generate, samples
from trimtab.testing.tiny import tiny


@pytest.fixture(scope="module")
def model():
    return tiny("llama", vocab_size=257, eos_token_id=256, pad_token_id=256, bos_token_id=None)


@torch.no_grad()
def test_greedy_is_the_argmax_loop(model, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    ids = byte_tokenizer("abc", return_tensors="pt")["input_ids"]
    for _ in range(8):
        ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
    assert generate(model, byte_tokenizer, "abc", 8) == byte_tokenizer.decode(ids[0, 3:], skip_special_tokens=True)


def test_a_seed_repeats_and_the_global_generator_is_left_alone(model, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    state = torch.get_rng_state()
    first = generate(model, byte_tokenizer, "abc", 8, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    assert first == generate(model, byte_tokenizer, "abc", 8, seed=1)
    assert len({generate(model, byte_tokenizer, "abc", 8, seed=seed) for seed in range(4)}) > 1


def test_sampling_follows_the_softmax() -> None:
    """4000 draws: each frequency within 4 standard errors of its probability."""
    chances = torch.tensor([0.5, 0.3, 0.15, 0.05])
    scores = chances.log().expand(4000, 4)
    drawn = _Sampling(0)(torch.zeros(4000, 1), scores).argmax(-1)
    seen = torch.bincount(drawn, minlength=4) / 4000
    assert ((seen - chances).abs() < 4 * (chances * (1 - chances) / 4000).sqrt()).all()


def test_the_chat_template_is_used_only_when_asked(model, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UsageError, match="no chat template"):
        generate(model, byte_tokenizer, "abc", 4, chat=True)
    byte_tokenizer.chat_template = "[{{ messages[0]['content'] }}]{% if add_generation_prompt %}>{% endif %}"
    try:
        asked = generate(model, byte_tokenizer, "abc", 8, chat=True)
        assert asked == generate(model, byte_tokenizer, "[abc]>", 8)
        assert asked != generate(model, byte_tokenizer, "abc", 8)
    finally:
        byte_tokenizer.chat_template = None


def test_nothing_to_continue_is_an_error(model, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UsageError, match="prompt is empty"):
        generate(model, byte_tokenizer, "", 4)


def test_measure_says_everything_with_its_setting(model, byte_tokenizer: PreTrainedTokenizerFast, tmp_path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("Some plain text to be measured. " * 40)
    found = {m.name: m for m in measure(model, byte_tokenizer, str(path), windows=4, length=32)}
    assert found["perplexity"].n == found["bits per byte"].n == 4 * 31  # one byte a token
    assert found["perplexity"].value == pytest.approx(2 ** found["bits per byte"].value)
    assert found["perplexity"].setting == {
        "source": str(path),
        "windows": 4,
        "length": 32,
        "seed": 0,
        "dtype": "float32",
    }
    assert found["bits per weight, all"].value == 32
    assert found["decode speed"].value > 0
    assert found["prefill speed"].value > 0
    quiet = {m.name for m in measure(model, byte_tokenizer, str(path), windows=4, length=32, speed=False)}
    assert set(found) - quiet == {"decode speed", "prefill speed"}


def test_samples_are_the_same_every_time(model, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    one, again = (samples(model, byte_tokenizer, new_tokens=4) for _ in range(2))
    assert one == again
    assert [sample["prompt"] for sample in one] == list(PROMPTS)
    assert one[0]["text"] == generate(model, byte_tokenizer, PROMPTS[0], 4)
