"""`--kv-bits`: text is read through rounded keys and values, the setting says so, and pieces are not taken for others."""

import json

import torch

from trimtab.measure import measure
from trimtab.testing.folders import byte_tokenizer
from trimtab.testing.tiny import tiny


def numbers(done) -> dict[str, dict]:
    assert done.exit_code == 0, done.output
    (column,) = json.loads(done.stdout)
    return {one["name"]: one for one in column["measurements"]}


def test_measure_reads_through_fewer_bits(trimtab, model, text) -> None:
    asked = ("measure", model, "--text", text, "--windows", "3", "--length", "48", "--no-speed", "--json", "-q")
    whole, same, rough = (numbers(trimtab(*asked, *more)) for more in ((), ("--kv-bits", "16"), ("--kv-bits", "2")))
    assert same["perplexity"] == whole["perplexity"]
    assert rough["perplexity"]["value"] != whole["perplexity"]["value"]
    assert rough["perplexity"]["setting"] == {**whole["perplexity"]["setting"], "kv_bits": 2}


def test_pieces_of_other_bits_are_others(text) -> None:
    opened, asked = (tiny("llama", vocab_size=259), byte_tokenizer()), []

    def keep(what, make):
        asked.append(what)
        return make()

    for bits in (16, 4):
        measure(*opened, source=str(text), windows=2, length=32, speed=False, keep=keep, kv_bits=bits)
    assert [what.get("kv_bits") for what in asked] == [None, 4]
    assert len({json.dumps(what, sort_keys=True) for what in asked}) == 2


def test_generate_goes_through_transformers(trimtab, model) -> None:
    asked = ("generate", model, "hello there", "--new-tokens", "12", "--json", "-q")
    whole, eight, two = (json.loads(trimtab(*asked, *more).stdout) for more in ((), ("--kv-bits", "8"), ("--kv-bits", "2")))
    assert eight["engine"] == two["engine"] == "torch"
    assert two["text"] != whole["text"]


def test_what_cannot_be_asked_for(trimtab, model, text) -> None:
    native = trimtab("generate", model, "hello", "--engine", "native", "--kv-bits", "4", "-q")
    assert native.exit_code
    assert "--kv-bits belongs to the torch engine" in native.stderr
    odd = trimtab("measure", model, "--text", text, "--kv-bits", "12", "--no-speed", "-q")
    assert odd.exit_code
    assert "2 to 8 bits, or 16" in odd.stderr


def test_nothing_stays_behind(text) -> None:
    opened = tiny("llama", vocab_size=259)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        before = opened(ids).logits
        measure(opened, byte_tokenizer(), source=str(text), windows=2, length=32, speed=False, kv_bits=2)
        assert torch.equal(opened(ids).logits, before)
