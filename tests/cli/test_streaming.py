"""`trimtab generate`: text comes as it is made, from either engine, and the native one needs neither torch nor transformers."""

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

from trimtab.cli import generate as command
from trimtab.cli import voice as room
from trimtab.cli.generate import sampling_of, speak
from trimtab.core.errors import ModelError, UsageError
from trimtab.host import manifest
from trimtab.runtime import Runtime, Sampling, Unsupported
from trimtab.runtime.native import native
from trimtab.runtime.template import render
from trimtab.runtime.text import Stream, Text
from trimtab.testing.folders import byte_tokenizer, tiny_folder


def compiled() -> bool:
    try:
        native()
    except Unsupported:
        return False
    return True


with_native = pytest.mark.skipif(not compiled(), reason="no compiled kernels")
ENGINES = [pytest.param("native", marks=with_native), "torch"]
WORDS = "naïve 🙂 text"


class Reciter:
    """A voice that says given ids and looks at the page after each."""

    engine, penalty, about = "reciter", 1.25, "recites"

    def __init__(self, ids: Sequence[int], page: io.StringIO | None = None):
        self.ids, self.page, self.seen = ids, page, list[str]()
        self.decode = byte_tokenizer().decode

    def say(self, ids, new_tokens, sampling, hear) -> None:
        for id in self.ids[:new_tokens]:
            hear(id)
            self.seen.append(self.page.getvalue() if self.page else "")


@pytest.fixture(scope="module")
def uncovered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family that the native session does not know: experts."""
    return tiny_folder(tmp_path_factory.mktemp("models") / "mixtral", "mixtral", num_hidden_layers=1)


def test_text_is_written_as_it_is_made_and_characters_are_whole() -> None:
    tokenizer, page = byte_tokenizer(), io.StringIO()
    reciter, said = Reciter(tokenizer(WORDS)["input_ids"], page), list[int]()
    speak(reciter, [1], 100, Sampling(), page, said)
    assert page.getvalue() == WORDS + "\n"
    assert said == reciter.ids
    assert [len(page) for page in reciter.seen] == [1, 2, 2, 3, 4, 5, 6, 6, 6, 6, 7, 8, 9, 10, 11, 12]  # bytes, then characters
    assert all(WORDS.startswith(page) for page in reciter.seen)


def test_bytes_that_never_become_a_character_are_shown_at_the_end() -> None:
    tokenizer = byte_tokenizer()
    stream = Stream(tokenizer.decode)
    broken = tokenizer("a🙂")["input_ids"][:3]
    assert [stream.push(id) for id in broken] == ["a", "", ""]
    assert "a" + stream.end() == tokenizer.decode(broken)


def test_a_line_that_is_cut_short_is_ended() -> None:
    page, said = io.StringIO(), list[int]()

    class Stopped(Reciter):
        def say(self, *arguments) -> None:
            super().say(*arguments)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        speak(Stopped(byte_tokenizer()("abc")["input_ids"]), [1], 2, Sampling(), page, said)
    assert page.getvalue() == "ab\n"


@pytest.mark.parametrize("engine", ENGINES)
def test_a_stream_says_what_json_says(trimtab, model, engine) -> None:
    asked = ("generate", model, "hello", "--new-tokens", "12", "--engine", engine)
    told, said = trimtab(*asked), json.loads(trimtab(*asked, "--json").stdout)
    assert told.exit_code == 0, told.stderr
    assert told.stdout == said["text"] + "\n"
    assert said["engine"] == engine


@pytest.mark.parametrize("engine", ENGINES)
def test_several_prompts_are_continued_as_if_each_were_alone(trimtab, model, engine) -> None:
    prompts, options = ("hello", "a longer prompt than that", "x"), ("--new-tokens", "9", "--engine", engine, "--seed", "4")
    alone = [
        json.loads(trimtab("generate", model, each, *options[:4], "--seed", 4 + number, "--json").stdout)["text"]
        for number, each in enumerate(prompts)
    ]
    said = json.loads(trimtab("generate", model, *prompts, *options, "--json").stdout)
    assert said["prompts"] == list(prompts)
    assert said["texts"] == alone
    assert (said["engine"], said["seed"]) == (engine, 4)
    page = trimtab("generate", model, *prompts, *options).stdout
    assert page == "\n".join(f"[{i}] {each}\n{text}\n" for i, (each, text) in enumerate(zip(prompts, alone, strict=True), 1))
    greedy = json.loads(trimtab("generate", model, "x", "hello", *options[:4], "--json").stdout)["texts"]
    assert greedy[1] == json.loads(trimtab("generate", model, "hello", *options[:4], "--json").stdout)["text"]
    empty = trimtab("generate", model, "hello", "", *options)
    assert (empty.exit_code, empty.stdout) == (2, "")
    assert "the prompt is empty" in empty.stderr


@with_native
def test_both_engines_say_the_same(trimtab, model, monkeypatch) -> None:
    exact = partial(Runtime.open, activations="float32", kv="float32", head_bits=32)
    monkeypatch.setattr(room, "Runtime", SimpleNamespace(open=exact))
    asked = ("generate", model, "hello there", "--new-tokens", "16", "--engine")
    assert trimtab(*asked, "native").stdout == trimtab(*asked, "torch").stdout


@pytest.mark.parametrize("engine", ENGINES)
def test_sampling(trimtab, model, engine) -> None:
    def say(*words: str) -> str:
        done = trimtab("generate", model, "hello", "--new-tokens", "16", "--engine", engine, *words)
        assert done.exit_code == 0, done.stderr
        return done.stdout

    greedy = say()
    assert say("--temperature", "0") == say("--top-k", "1") == say("--top-p", "0.0001", "--seed", "5") == greedy
    assert say("--seed", "3") == say("--seed", "3", "--temperature", "1.0") != greedy
    assert len({say("--seed", str(seed)) for seed in range(4)}) > 1
    assert say("--repetition-penalty", "1.0") == greedy


def test_what_is_asked_for_is_what_is_sampled() -> None:
    reciter = Reciter([])
    assert sampling_of(None, None, None, None, None, reciter) == Sampling(repetition_penalty=1.25)
    assert sampling_of(7, None, None, None, 1.0, reciter) == Sampling(temperature=1.0, seed=7)
    assert sampling_of(None, 0.5, 8, 0.9, 1.0, reciter) == Sampling(0.5, 8, 0.9, 1.0, 0)
    assert sampling_of(7, 0, 8, None, 1.0, reciter) == Sampling()


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (("--top-p", "0"), "--top-p must be above 0 and at most 1, got 0"),
        (("--top-p", "1.5"), "--top-p must be above 0 and at most 1, got 1.5"),
        (("--repetition-penalty", "0"), "--repetition-penalty must be above 0"),
        (("--engine", "natve"), "did you mean 'native'?"),
        (("--engine", "native", "--dtype", "bfloat16"), "--dtype belongs to the torch engine"),
        (("--chat",), "no chat template"),
        (("--threads", "0"), "--threads"),
    ],
)
def test_bad_words(trimtab, model, words, fragment) -> None:
    done = trimtab("generate", model, "hello", "-q", *words)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert fragment in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_to_continue(trimtab, model, engine) -> None:
    done = trimtab("generate", model, "", "-q", "--engine", engine)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "the prompt is empty" in done.stderr


def test_a_model_that_is_not_covered_answers_through_transformers(trimtab, uncovered) -> None:
    asked = ("generate", uncovered, "hello", "--new-tokens", "6", "-q")
    auto, torch, forced = trimtab(*asked), trimtab(*asked, "--engine", "torch"), trimtab(*asked, "--engine", "native")
    assert auto.stdout == torch.stdout
    (line,) = auto.stderr.splitlines()
    assert line.startswith("trimtab: note: ")
    assert line.endswith("transformers' generate answers instead")
    assert torch.stderr == ""
    assert (forced.exit_code, forced.stdout) == (2, "")


def test_a_damaged_folder_is_refused_by_both_engines(trimtab, model, tmp_path) -> None:
    folder = shutil.copytree(model, tmp_path / "model")
    manifest.write(folder)
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    for engine in room.ENGINES:
        done = trimtab("generate", folder, "hello", "-q", "--engine", engine)
        assert done.exit_code == 2
        assert "has changed (its sha256 differs)" in done.stderr


def test_the_models_own_repetition_penalty_is_the_default(trimtab, model, tmp_path, monkeypatch) -> None:
    folder = shutil.copytree(model, tmp_path / "model")
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(settings | {"repetition_penalty": 1.5}))
    asked = []
    monkeypatch.setattr(
        command, "speak", lambda voice, ids, count, sampling, page, said: asked.append(sampling.repetition_penalty)
    )
    for engine in ("auto", "torch"):
        assert trimtab("generate", folder, "hello", "-q", "--engine", engine).exit_code == 0
        trimtab("generate", folder, "hello", "-q", "--engine", engine, "--repetition-penalty", "1.1")
    assert asked == [1.5, 1.1, 1.5, 1.1]


@with_native
def test_the_native_way_imports_neither_torch_nor_transformers(model) -> None:
    script = (
        "import sys\nfrom trimtab.cli.main import run\ntry: run()\nfinally:\n"
        "    print([name for name in ('torch', 'transformers') if name in sys.modules], file=sys.stderr)"
    )
    words = ["generate", model, "hello", "--new-tokens", "4", "-q"]
    done = subprocess.run([sys.executable, "-c", script, *map(str, words)], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
    assert done.stdout.strip()


def test_a_reader_that_has_gone_is_no_error(model) -> None:
    words = [
        sys.executable,
        "-c",
        "from trimtab.cli.main import run; run()",
        "generate",
        model,
        "hello",
        "-q",
        "--new-tokens",
        "90",
    ]
    child = subprocess.Popen([str(w) for w in words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    child.stdout.close()
    assert child.stderr is not None
    said = child.stderr.read()
    child.stderr.close()
    assert child.wait() == 0, said
    assert "Error" not in said


def test_words_become_the_ids_that_transformers_makes(model) -> None:
    ours, theirs = Text.open(model), AutoTokenizer.from_pretrained(model)
    for text in ("hello", WORDS, "", "<bos>x", "  two  spaces\n"):
        assert ours.encode(text) == theirs(text)["input_ids"]
        assert ours.encode(text, special=False) == theirs(text, add_special_tokens=False)["input_ids"]
        ids = ours.encode(text)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_stops_are_those_of_the_folder(model, tmp_path) -> None:
    assert Text.open(model).stops == (2,)
    folder = shutil.copytree(model, tmp_path / "model")
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 5]}')
    assert Text.open(folder).stops == (2, 5)


def test_a_folder_without_a_readable_tokenizer(model, tmp_path) -> None:
    folder = shutil.copytree(model, tmp_path / "model")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be opened"):
        Text.open(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(Unsupported, match=r"has no tokenizer\.json"):
        Text.open(folder)


TEMPLATES = {
    "roles": "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}",
    "blocks": "{% for m in messages %}\n    {%- if m.role == 'user' %}\n{{ m.content | trim }}\n{% endif %}\n{% endfor %}",
    "answers": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}|{% endfor %}",
    "loops": "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content | tojson }}{% endfor %}",
    "names": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
}
TALK = [
    {"role": "system", "content": "be <brief> & ünkind"},
    {"role": "user", "content": " hi "},
    {"role": "assistant", "content": "no"},
    {"role": "user", "content": "why"},
]


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_are_read_as_transformers_reads_them(name) -> None:
    theirs = byte_tokenizer()
    expected = theirs.apply_chat_template(TALK, chat_template=TEMPLATES[name], tokenize=False, add_generation_prompt=True)
    assert render(TEMPLATES[name], TALK, {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}) == expected


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{% for %}",
        "{{ messages[99].content.x }}",
    ],
)
def test_a_template_can_reach_nothing_and_its_complaints_are_one_line(template) -> None:
    with pytest.raises(UsageError, match="the model's chat template does not take this conversation"):
        render(template, TALK, {})
