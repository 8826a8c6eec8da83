"""Whatever is wrong with a request: one line that says what, exit code 2, and nothing left behind."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from trimtab.testing.folders import tiny_folder

HALVES = {
    "config": ("config.json", "config.json is missing"),
    "index": ("model.safetensors.index.json", "no model.safetensors; that is no complete model folder"),
    "shard": ("model-00002-of-", "is missing"),
}


def refused(done, fragment: str) -> None:
    assert done.exit_code == 2, (done.exit_code, done.stderr)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("trimtab: error: ")
    assert fragment in line
    assert "Traceback" not in line


def contents(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


WORDS = {
    "unknown method": (["--method", "gtpq"], "there is no method 'gtpq'; did you mean 'gptq'?"),
    "unknown knob": (["--method", "gptq", "--bit", "3"], "gptq has no knob --bit; did you mean '--bits'?; its knobs are --bits"),
    "knob without a method": (["--bits", "3", "--do", "rtn"], "there is no option --bits"),
    "misspelt option": (["--method", "rtn", "--ovrwrite"], "did you mean '--overwrite'?"),
    "knob without a value": (["--method", "gptq", "--bits"], "--bits needs a value"),
    "bits 0": (["--method", "gptq", "--bits", "0"], "bits must be 2 to 8, got 0"),
    "bits 99": (["--method", "gptq", "--bits=99"], "bits must be 2 to 8, got 99"),
    "bits in letters": (["--method", "gptq", "--bits", "three"], "bits must be a whole number, got 'three'"),
    "sparsity nan": (["--method", "wanda", "--sparsity", "nan"], "sparsity must be 0 to 0.99, got nan"),
    "sparsity negative": (["--method", "wanda", "--sparsity", "-0.5"], "sparsity must be 0 to 0.99, got -0.5"),
    "unknown field": (["--do", "gptq(bit=3)"], "did you mean 'bits'?"),
    "code in an expression": (["--do", "gptq(bits=open('x'))"], "only plain values"),
    "steps that do not fit": (["--do", "hlq -> gptq"], "gptq takes Dense or Masked"),
    "pattern without a match": (["--method", "rtn", "--only", "layers.9"], "'layers.9' matches nothing"),
    "restricted model method": (["--do", "quarot", "--only", "layers.1"], "leave them out"),
    "groups that do not tile": (["--method", "rtn", "--group-size", "48"], "group_size=48; use one of"),
    "recipe and method": (["--recipe", "r.yaml", "--method", "gptq"], "given: --recipe and --method"),
    "neither": ([], "give one of --recipe, --method, --do and --search, or only a goal (--bits, --size, "),
    "two goals": (["--bits", "3", "--size", "60MB"], "one goal at a time"),
    "goal out of reach": (["--bits", "1.5"], "below the smallest possible model"),
    "goal that is no size": (["--size", "small"], "'small' is no size"),
    "missing recipe": (["--recipe", "nowhere.yaml"], "there is no recipe file nowhere.yaml"),
    "length 1": (["--method", "gptq", "--length", "1"], "length >= 2"),
    "no number": (["--method", "gptq", "--tokens", "many"], "--tokens"),
    "unknown dtype": (["--method", "rtn", "--dtype", "bfloat61"], "did you mean 'bfloat16'?"),
    "unknown device": (["--method", "rtn", "--device", "toaster"], "--device 'toaster' cannot be used here"),
    "two models": (["another", "--method", "rtn"], "one model at a time"),
    "missing text": (["--method", "gptq", "--text", "nowhere.txt"], "nowhere.txt"),
}


@pytest.mark.parametrize("case", WORDS)
def test_words(trimtab, model, tmp_path, case):
    words, fragment = WORDS[case]
    refused(trimtab("compress", model, *words, "-o", tmp_path / "out", "-q"), fragment)
    assert contents(tmp_path) == []


RECIPES = {
    "malformed": ("steps: [", "not readable as YAML"),
    "unknown key": ("trimtab: 1\nstepz: []\nsteps: [rtn]\n", "no field 'stepz'; did you mean 'steps'?"),
    "unknown calibration key": ("calibration: {tokns: 4}\nsteps: [rtn]\n", "did you mean 'tokens'?"),
    "bad value": ("steps: [{wanda: {sparsity: .nan}}]\n", "sparsity must be 0 to 0.99"),
    "object": ("steps: !!python/object/apply:os.getcwd []\n", "tags are not allowed"),
    "steps that do not fit": ("steps: [hlq, gptq]\n", "gptq takes Dense or Masked"),
    "not a mapping": ("- rtn\n", "must be a mapping"),
}


@pytest.mark.parametrize("case", RECIPES)
def test_recipes(trimtab, model, tmp_path, case):
    content, fragment = RECIPES[case]
    file = tmp_path / "r.yaml"
    file.write_text(content, encoding="utf-8")
    refused(trimtab("compress", model, "--recipe", file, "-o", tmp_path / "out", "-q"), fragment)
    assert contents(tmp_path) == [file]


def test_no_model_and_no_output(trimtab, model):
    refused(trimtab("compress", "--method", "rtn", "-o", "out"), "no model given")
    refused(trimtab("compress", model, "--method", "rtn"), "no output folder given")


def test_missing_model(trimtab, tmp_path):
    refused(trimtab("compress", tmp_path / "nowhere", "--method", "rtn", "-o", tmp_path / "out", "-q"), "no model folder")
    refused(trimtab("measure", tmp_path / "nowhere", "-q"), "no model folder")
    assert contents(tmp_path) == []


@pytest.mark.parametrize("part", HALVES)
def test_half_a_model(trimtab, tmp_path, part):
    folder = tiny_folder(tmp_path / "model", num_hidden_layers=2, shard="150kB")
    start, fragment = HALVES[part]
    (gone,) = [path for path in folder.iterdir() if path.name.startswith(start)]
    gone.unlink()
    before = contents(tmp_path)
    refused(trimtab("compress", folder, "--method", "rtn", "-o", tmp_path / "out", "-q"), fragment)
    assert contents(tmp_path) == before


def test_weights_that_are_no_numbers_are_named(trimtab, tmp_path):
    folder = tiny_folder(tmp_path / "model", num_hidden_layers=1)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    done = trimtab("compress", folder, "--method", "rtn", "-o", tmp_path / "out", "-q")
    refused(done, "model.layers.0.mlp.up_proj.weight has values that are not finite")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["", " \n\n", "a few words"], ids=["0", "1", "2"])
def test_calibration_text(trimtab, model, tmp_path, content):
    fragment = "13 tokens, 64 were asked for" if content.strip() else "holds no text"
    file = tmp_path / "t.txt"
    file.write_text(content, encoding="utf-8")
    asked = ("compress", model, "--method", "gptq", "--text", file, "--tokens", "64", "--length", "64", "-q")
    done = trimtab(*asked, "-o", tmp_path / "out")
    refused(done, fragment)
    assert str(file) in done.stderr
    assert contents(tmp_path) == [file]


def test_evaluation_text_shorter_than_a_window(trimtab, model, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("too short", encoding="utf-8")
    refused(trimtab("measure", model, "--text", file, "--length", "64", "-q"), "one window of 64")


def test_existing_output_is_kept(trimtab, model, shown, tmp_path):
    old = tiny_folder(tmp_path / "out", num_hidden_layers=1)
    before = {path: path.read_bytes() for path in old.iterdir()}
    refused(trimtab("compress", model, "--method", "rtn", "-o", old, "-q"), "exists")
    # A run that fails after it began to work leaves the old model in place, too.
    (tmp_path / "no.txt").write_text("short")
    late = trimtab("compress", model, "--method", "gptq", "--text", tmp_path / "no.txt", "-o", old, "--overwrite", "-q")
    refused(late, "tokens")
    assert {path: path.read_bytes() for path in old.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["no.txt", "out"]


def test_a_folder_that_is_no_model_is_never_replaced(trimtab, model, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    refused(trimtab("compress", model, "--method", "rtn", "-o", tmp_path / "thesis", "--overwrite", "-q"), "not a model folder")
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"


def test_unwritable_output(trimtab, model, tmp_path):
    (tmp_path / "file").write_text("in the way")
    refused(trimtab("compress", model, "--method", "rtn", "-o", tmp_path / "file" / "out", "-q"), "cannot write")
    refused(trimtab("compress", model, "--method", "rtn", "-o", tmp_path / "file", "-q"), "is a file")


def test_model_without_a_tokenizer(trimtab, model, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(model, bare, ignore=shutil.ignore_patterns("tokenizer*"))
    refused(trimtab("measure", bare, "-q"), "has no tokenizer")
    refused(trimtab("generate", bare, "hello", "-q"), "has no tokenizer")


def test_other_commands(trimtab, model, tmp_path):
    refused(trimtab("methods", "gtpq"), "did you mean 'gptq'?")
    refused(trimtab("generate", model, "", "-q"), "the prompt is empty")
    refused(trimtab("generate", model, "hi", "--chat", "-q"), "no chat template")
    refused(trimtab("measure"), "give at least one model")
    refused(trimtab("comprss"), "no such command 'comprss'")
    refused(trimtab("--nonsense"), "no such option: --nonsense (see trimtab --help)")


def test_claims_that_are_not_there(trimtab, tmp_path):
    ledger = tmp_path / "claims" / "ledger.jsonl"
    refused(trimtab("claim", "--ledger", ledger), "give the id of a method, or --all")
    refused(trimtab("claim", "gptq", "--all", "--ledger", ledger), "give the id of a method, or --all")
    refused(trimtab("claim", "rtn", "--ledger", ledger), "rtn makes no claims")
    refused(trimtab("claim", "gptq", "beats-everything", "--ledger", ledger), "makes no claim 'beats-everything'")
    refused(trimtab("claim", "gptq", "--seeds", "0;1", "--ledger", ledger), "--seeds must be whole numbers")
    assert contents(tmp_path) == []


def test_damaged_ledger_is_not_taken_for_an_empty_one(trimtab, tmp_path):
    (tmp_path / "ledger.jsonl").write_text(json.dumps({"method": "gptq"})[:-3])
    assert trimtab("methods", "--json", "--ledger", tmp_path / "ledger.jsonl").exit_code == 2
