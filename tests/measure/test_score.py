"""Log-likelihoods against a plain double-precision loop, and the token boundary."""

import math
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from trimtab.core.errors import DataError, ModelError
from trimtab.core.progress import Progress
from trimtab.measure import score as room
from trimtab.measure.score import Pair, context_length, encode, keeps_everything, scores
from trimtab.testing.folders import byte_tokenizer
from trimtab.testing.tiny import ARCHITECTURES, tiny

TOKENIZER = byte_tokenizer()
SENTENCE = "The otter swam "
ITEMS: list[list[Pair]] = [
    [("A sea otter", " swims"), ("A sea otter", " flies off"), ("A sea otter", " sings")],
    [("Tom saw Ann so Tom", " ran."), ("Tom saw Ann so Ann", " ran.")],  # the contexts differ, the ending is shared
    [("x", "y"), ("completely other", " text")],  # nothing in common
    [("2 + 2 =", " four and not five")],
    [("", "begin"), ("", "end")],
    [(SENTENCE, "far"), (SENTENCE, "home")],
    [("yes or no?", "a"), ("yes or no?", "b"), ("yes or no?", "c")],  # one token each: one row of logits
]


FLOAT32 = ("mixtral", "gpt_oss")  # their products of experts know no float64


def model_of(family: str):
    model = tiny(family, vocab_size=len(TOKENIZER))
    return model if family in FLOAT32 else model.double()


@torch.no_grad()
def reference(model, pair: Pair) -> tuple[float, bool]:
    """Token by token, every prefix read anew, log-softmax written out."""
    line = encode(TOKENIZER, pair, 128)
    nats, greedy = 0.0, True
    for t in range(len(line.ids) - line.scored, len(line.ids)):
        logits = model(input_ids=torch.tensor([line.ids[:t]])).logits[0, -1].double()
        nats += float(logits[line.ids[t]] - logits.exp().sum().log())
        greedy &= int(logits.argmax()) == line.ids[t]
    return nats, greedy


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_scores_equal_a_plain_loop(family: str) -> None:
    model = model_of(family)
    found = scores(model, TOKENIZER, ITEMS)
    for pairs, own in zip(ITEMS, found, strict=True):
        for pair, score in zip(pairs, own, strict=True):
            nats, greedy = reference(model, pair)
            # Some families normalise in float32 whatever the model is in.
            assert score.nats == pytest.approx(nats, rel=1e-5 if family in FLOAT32 else 1e-7), (family, pair)
            assert (score.greedy, score.cut) == (greedy, False)


def test_plain_caches_are_used_and_others_are_not() -> None:
    assert keeps_everything(model_of("llama"))
    assert keeps_everything(model_of("gemma3"))
    assert not keeps_everything(model_of("lfm2"))  # a convolution's state is not a prefix's keys and values


@pytest.mark.parametrize("positions", [1, 7, 10**6])
def test_neither_batches_nor_reuse_change_anything(positions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("qwen3")
    expected = scores(model, TOKENIZER, ITEMS)
    monkeypatch.setattr(room, "positions_at_once", lambda model: positions)
    for reuse in (True, False):
        monkeypatch.setattr(room, "keeps_everything", lambda model, reuse=reuse: reuse)
        found = scores(model, TOKENIZER, ITEMS)
        assert [[s.nats for s in own] for own in found] == [pytest.approx([s.nats for s in own], rel=1e-7) for own in expected]


def test_what_choices_share_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, read = model_of("llama"), []
    context = "c" * 40
    model.model.register_forward_pre_hook(lambda _m, _a, kwargs: read.append(kwargs["input_ids"].shape), with_kwargs=True)
    scores(model, TOKENIZER, [[(context, "a"), (context, "b"), (context, "cd")]])
    probe, shared, rest = read
    assert (probe, shared) == ((1, 1), (1, 32))  # 39 shared inputs, down to a multiple of eight
    assert rest == (2, 9)  # "a" and "b" are one row


def test_the_greedy_continuation_is_greedy() -> None:
    model = model_of("llama")
    with torch.no_grad():  # whatever it reads, it says "z"
        model.lm_head.weight.zero_()
        model.lm_head.weight[TOKENIZER("z")["input_ids"][0]] = 1.0
    model.lm_head.register_forward_pre_hook(lambda _, inputs: (inputs[0].abs(),))
    ((zz, za, az),) = scores(model, TOKENIZER, [[("Once", "zz"), ("Once", "za"), ("Once", "az")]])
    assert (zz.greedy, za.greedy, az.greedy) == (True, False, False)
    assert zz.nats > za.nats


def test_progress_counts_items() -> None:
    seen: list[Progress] = []
    scores(model_of("llama"), TOKENIZER, ITEMS, seen.append, "toy")
    assert (seen[0].done, seen[-1].done, seen[-1].total) == (0, len(ITEMS), len(ITEMS))
    assert {now.phase for now in seen} == {"toy"}


def merging() -> PreTrainedTokenizerFast:
    """Letters, and "ab" as one token; a space is a token of its own."""
    vocabulary = {"<s>": 0, "a": 1, "b": 2, "c": 3, "ab": 4, "Ġ": 5, "Ġa": 6}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b"), ("Ġ", "a")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")


def test_the_continuation_is_what_comes_after_as_many_tokens_as_the_context_has() -> None:
    line = encode(merging(), ("ca", "bc"), 100)
    assert line.ids == (3, 1, 3)  # "ca" + "bc" is c, ab, c: one token is left for "bc", after the two of "ca"
    assert line.scored == 1


def test_spaces_at_the_end_of_the_context_belong_to_the_continuation() -> None:
    assert encode(merging(), ("c ", "a"), 100) == encode(merging(), ("c", " a"), 100)
    assert encode(merging(), ("c", " a"), 100).ids == (3, 6)


def test_a_continuation_that_disappears_in_the_context_is_an_error() -> None:
    with pytest.raises(DataError, match=r"the continuation 'b' has no tokens of its own after 'a'"):
        encode(merging(), ("a", "b"), 100)


def test_without_a_context_the_first_token_of_a_text_stands_for_one() -> None:
    assert encode(merging(), ("", "ca"), 100).ids == (0, 3, 1)
    assert encode(merging(), ("  ", "c"), 100).scored == 3
    assert encode(merging(), ("", "<s>c"), 100).ids == (0, 3)
    nothing = merging()
    nothing.bos_token = None
    with pytest.raises(DataError, match="neither a BOS nor an EOS token"):
        encode(nothing, ("", "c"), 100)


def test_a_long_context_is_cut_on_the_left_and_the_continuation_never() -> None:
    model = tiny("llama", vocab_size=len(TOKENIZER), max_position_embeddings=16).double()
    long, answer = "0123456789" * 3, " answer"
    ((cut, whole),) = scores(model, TOKENIZER, [[(long, answer), ("9", answer)]])
    assert (cut.cut, whole.cut) == (True, False)
    kept = (long + answer)[-17:]  # 16 inputs predict the last of 17 tokens
    assert cut.nats == pytest.approx(reference(model, (kept.removesuffix(answer), answer))[0], rel=1e-9)
    with pytest.raises(DataError, match="a continuation has 17 tokens, the model takes 16"):
        scores(model, TOKENIZER, [[("a", "x" * 17)]])


def test_how_much_a_model_takes_is_asked_of_it_then_of_the_tokenizer() -> None:
    model = tiny("llama", vocab_size=len(TOKENIZER), max_position_embeddings=64)
    assert context_length(model, TOKENIZER) == 64
    assert context_length(tiny("gpt2", vocab_size=len(TOKENIZER)), TOKENIZER) == 128
    silent = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: SimpleNamespace(max_position_embeddings=None)))
    assert context_length(silent, TOKENIZER) == room.UNKNOWN_LENGTH
    short = byte_tokenizer()
    short.model_max_length = 99
    assert context_length(silent, short) == 99


def test_a_model_that_gives_nan_is_an_error_that_names_the_layer() -> None:
    model = model_of("llama")
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[3, 4] = math.nan
    with pytest.raises(ModelError, match=r"not finite: first in model\.layers\.2\.mlp\.down_proj, whose weight holds 1 values"):
        scores(model, TOKENIZER, ITEMS)
