"""An export from end to end: opened again by somebody else, or refused with a reason, and never half there."""

import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from export_models import contents_of, grouped, packed_folder, packed_model, summed
from safetensors.torch import load_file

from trimtab.anatomy import Anatomy
from trimtab.core.edits import Narrow
from trimtab.core.errors import ModelError, TrimtabError, UsageError
from trimtab.engine.apply import apply
from trimtab.host.checkpoint import load, save
from trimtab.host.export import compressed_tensors, gguf, plain, reopen
from trimtab.host.export.contents import check_refused, summary
from trimtab.host.export.job import export
from trimtab.host.export.stock import stock_config
from trimtab.host.export.targets import TARGETS
from trimtab.host.model_assets import resolve_model
from trimtab.testing.folders import byte_tokenizer, tiny_folder
from trimtab.testing.tiny import tiny

ROOT = Path(__file__).parent.parent.parent
NEW_TOKENS = 16
SLOW = ("awq", "plain")  # as the others, and a process opens each


@pytest.fixture(autouse=True)
def no_llama(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers are stock transformers unless a test asks for llama.cpp."""
    monkeypatch.setattr(reopen, "llama_python", lambda: None)


def llama_python() -> str | None:
    """Where the benchmarks keep llama.cpp, or where a variable says it is."""
    beside = ROOT / ".runtime-venv" / "bin" / "python"
    here = sys.executable if find_spec("llama_cpp") else None
    return os.environ.get(reopen.LLAMA_PYTHON) or (str(beside) if beside.exists() else here)


needs_llama = pytest.mark.skipif(llama_python() is None, reason="llama-cpp-python is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = {"self_attn": grouped(8, 32, True), "mlp": grouped(4, 32, False)}
    return packed_folder(tmp_path_factory.mktemp("models") / "packed", lambda path: made[path.split(".")[-2]])


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    make = {"o_proj": summed, "up_proj": grouped(4, 16, True)}
    return packed_folder(tmp_path_factory.mktemp("models") / "sums", lambda path: make.get(path.split(".")[-1]))


@pytest.fixture(scope="module")
def fours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = {"self_attn": grouped(3, 32, False), "mlp": grouped(4, 32, True)}
    return packed_folder(tmp_path_factory.mktemp("models") / "fours", lambda path: made[path.split(".")[-2]])


@pytest.mark.parametrize("to", [pytest.param(to, marks=pytest.mark.slow) if to in SLOW else to for to in TARGETS])
def test_somebody_else_opens_it_and_says_the_same(to, folder, fours, sums, tmp_path):
    for package in TARGETS[to].packages:
        pytest.importorskip(package)
    source = {"awq": fours, "peft": sums}.get(to, folder)
    done = export(source, to, tmp_path / "out")
    found = {m.name: m for m in done.measurements}
    assert done.folder == tmp_path / "out"
    assert found["largest logit difference"].value < 1e-4
    assert found["same top token"].value == 1
    assert {entry.verdict for entry in done.entries} == {"exact"}
    card = (done.folder / "README.md").read_text()
    assert found["KL"].setting["opened_by"] in card
    assert "model.layers.*.mlp.down_proj.weight" in card
    assert str(tmp_path) not in card
    names = set(json.loads((done.folder / "trimtab.json").read_text())["files"])
    files = {"gguf": "model.gguf", "onnx": "model.onnx", "peft": "adapter/adapter_model.safetensors"}
    assert {"README.md", files.get(to, "model.safetensors")} <= names
    assert not list(tmp_path.glob(".*"))


def test_a_folder_with_one_scheme_opens_with_stock_transformers(tmp_path):
    pytest.importorskip("compressed_tensors")
    source = packed_folder(tmp_path / "packed", lambda path: grouped(4, 32, True))
    done = export(source, "compressed-tensors", tmp_path / "out")
    assert "transformers" in done.measurements[0].setting["opened_by"]
    assert done.measurements[0].value == 0
    described = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert [group["targets"] for group in described["config_groups"].values()] == [["Linear"]]


def test_a_plan_writes_nothing(folder, tmp_path):
    done = export(folder, "gguf")
    assert done.folder is None
    assert not done.measurements
    rows = {entry.name: (count, entry.becomes) for entry, count in summary(done.entries)}
    assert rows["model.layers.*.self_attn.q_proj.weight"] == (2, "Q8_0")
    assert rows["model.layers.*.mlp.down_proj.weight"] == (2, "Q5_0")
    assert json.loads(json.dumps(done.json()))["entries"][0]["verdict"] == "exact"


@pytest.mark.parametrize(
    ("to", "count", "why"), [("gguf", 4, "whole blocks of 32"), ("compressed-tensors", 2, "one scale a group")]
)
def test_what_would_be_lost_is_refused_with_names(to, count, why, sums, tmp_path, monkeypatch):
    monkeypatch.setattr("trimtab.host.export.job.find_spec", lambda name: True)
    with pytest.raises(UsageError, match=why) as caught:
        export(sums, to, tmp_path / "out")
    assert "model.layers.0.self_attn.o_proj.weight (sum" in str(caught.value)
    assert f"--requantize {'|'.join(TARGETS[to].requantize)}" in str(caught.value)
    assert not (tmp_path / "out").exists()
    refused = [entry for entry in export(sums, to).entries if entry.verdict == "refused"]
    assert len(refused) == count


def test_a_refusal_names_three_and_counts_the_rest(sums):
    with pytest.raises(UsageError, match=r"and 1 more; allow"):
        check_refused("gguf", export(sums, "gguf").entries, ("q8_0",))


def test_rounding_has_to_be_asked_for(sums, tmp_path):
    done = export(sums, "gguf", tmp_path / "out", requantize="q8_0")
    changed = {entry.name.split(".")[-2]: entry.becomes for entry in done.entries if entry.verdict == "re-quantized"}
    assert changed == {"o_proj": "Q8_0", "up_proj": "Q8_0"}
    assert 0 < done.measurements[0].value < 1
    kept = export(sums, "gguf", requantize="f32")
    assert {entry.verdict for entry in kept.entries} == {"exact"}


def test_a_mistake_is_noticed_before_anything_is_published(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf, "row_order", lambda *given: None)
    with pytest.raises(TrimtabError, match="says something else"):
        export(folder, "gguf", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_tensor_that_reads_back_differently_is_not_written(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf, "decoded", lambda stored, kind: torch.zeros(()))
    with pytest.raises(TrimtabError, match="read back"):
        export(folder, "gguf", tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("family", ["gpt2", "mixtral", "gemma3", "opt"])
def test_an_unknown_architecture_is_named(family, tmp_path):
    with pytest.raises(ModelError, match=f"family '{tiny(family).config.model_type}'"):
        export(tiny_folder(tmp_path / "model", family), "gguf")


@pytest.mark.parametrize(
    ("family", "settings", "what"),
    [
        ("gemma2", {"query_pre_attn_scalar": 32}, "scaled by the width of a head"),
        ("llama", {"hidden_act": "relu"}, "not 'relu'"),
        ("smollm3", {"no_rope_layers": [1, 1, 1, 1]}, "every fourth layer"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "not 'dynamic'"),
    ],
)
def test_what_the_graph_has_not_is_named(family, settings, what, tmp_path):
    with pytest.raises(ModelError, match=what):
        export(tiny_folder(tmp_path / "model", family, vocab_size=264, **settings), "gguf")


def test_a_tokenizer_that_llamacpp_has_no_name_for_is_refused(tmp_path):
    tokenizer = byte_tokenizer()
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    described["pre_tokenizer"]["add_prefix_space"] = True
    tokenizer._tokenizer = type(tokenizer.backend_tokenizer).from_str(json.dumps(described))
    save(tiny("llama", vocab_size=264), tokenizer, tmp_path / "model")
    with pytest.raises(ModelError, match="cuts words"):
        export(tmp_path / "model", "gguf")


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ({"to": "ggml"}, "did you mean 'gguf'"),
        ({"to": "gguf", "requantize": "q8"}, "did you mean 'q8_0'"),
        ({"to": "plain", "requantize": "q8_0"}, "plain cannot be re-quantized to"),
    ],
)
def test_names_that_do_not_exist(words, what, folder):
    with pytest.raises(UsageError, match=what):
        export(folder, **words)


def test_the_package_that_opens_it_has_to_be_there(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("trimtab.host.export.job.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install compressed-tensors"):
        export(folder, "compressed-tensors", tmp_path / "out")


def narrowed(keep: dict[int, int]) -> torch.nn.Module:
    """A tiny model of which block b keeps only keep[b] neurons, or heads where the number is below 5."""
    model = tiny("llama", num_hidden_layers=2, vocab_size=264)
    anatomy = Anatomy.of(model)
    for coupling in anatomy.couplings():
        wanted = keep[coupling.block]
        if (coupling.unit == "kv_group") == (wanted < 5):
            apply(anatomy, [Narrow(coupling, torch.arange(coupling.units) < wanted)])
    return model


@pytest.mark.parametrize("keep", [pytest.param(96, marks=pytest.mark.slow), 1])
def test_layers_that_are_equally_narrow_need_nothing_of_ours(keep, tmp_path):
    model = narrowed({0: keep, 1: keep})
    config = stock_config(model)
    sizes = (config.intermediate_size, config.num_attention_heads, config.num_key_value_heads)
    assert sizes == ((96, 4, 2) if keep > 5 else (128, 2, 1))
    source = save(model, byte_tokenizer(), tmp_path / "model")
    # One each: opening again takes seconds.
    assert export(source, "plain" if keep > 5 else "gguf", tmp_path / "out").measurements[0].value < 1e-4


def test_layers_of_different_widths_are_named():
    with pytest.raises(UsageError, match=r"layers\.1\.mlp\.down_proj is 64 x 64, not 64 x 128"):
        stock_config(narrowed({0: 128, 1: 64}))


def test_biases_that_repair_a_layer_are_carried_along(tmp_path):
    model = tiny("llama", num_hidden_layers=2, vocab_size=264)
    bias = torch.linspace(-1, 1, 64)
    model.model.layers[0].mlp.down_proj.bias = torch.nn.Parameter(bias)
    contents = contents_of(model)
    plain.write(contents, plain.plan(contents, None), tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert torch.equal(stored["model.layers.0.mlp.down_proj.bias"], bias)
    assert not stored["model.layers.1.mlp.gate_proj.bias"].any()
    assert json.loads((tmp_path / "config.json").read_text())["mlp_bias"] is True


def test_vllm_is_told_of_what_it_does_not_open():
    made = {"q_proj": (4, 32, True), "k_proj": (4, 64, True), "v_proj": (4, 32, True), "down_proj": (3, 32, False)}
    contents = contents_of(
        packed_model(lambda path: grouped(*made[path.split(".")[-1]]) if path.split(".")[-1] in made else None)
    )
    said = compressed_tensors.remarks(contents, compressed_tensors.plan(contents, None))
    assert [line.split()[0] for line in said] == ["transformers", "vLLM", "vLLM"]
    assert "not 3" in said[1]
    assert "q_proj" in said[2]


@needs_llama
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma2"])
def test_llamacpp_runs_the_same_graph(family, tmp_path, monkeypatch):
    monkeypatch.setattr(reopen, "llama_python", llama_python)
    settings = {"query_pre_attn_scalar": 16} if family == "gemma2" else {}
    source = tiny_folder(tmp_path / "model", family, vocab_size=320, **settings)
    done = export(source, "gguf", tmp_path / "out")
    assert "llama.cpp" in done.measurements[0].setting["opened_by"]
    # Nothing is quantized here; what is left is keys and values in float16.
    assert done.measurements[0].value < 0.05


@needs_llama
def test_llamacpp_reads_text_as_the_tokenizer_does(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(reopen, "llama_python", llama_python)
    done = export(folder, "gguf", tmp_path / "out")
    ids = reopen.prompts(byte_tokenizer(), 264)
    again = reopen.reopen_llamacpp(tmp_path / "out", ids, "model.gguf", reopen.TEXTS)
    assert [tokens[: reopen.LONGEST] for tokens in again.tokens] == ids
    assert done.measurements[0].setting["opened_by"] == again.opened_by


@pytest.mark.real
@needs_llama
def test_llamacpp_goes_on_with_the_same_words(tmp_path, monkeypatch):
    """In float32: with block formats it rounds activations, and goes another way where two tokens are close."""
    monkeypatch.setattr(reopen, "llama_python", llama_python)
    monkeypatch.setattr(gguf, "_kind", lambda value, values: gguf.Kind.F32)
    source = resolve_model("asset:smollm2-135m")
    export(source, "gguf", tmp_path / "out")
    model, tokenizer = load(source)
    model.generation_config.eos_token_id = None  # the other goes on behind it
    ids = reopen.prompts(tokenizer, 0)
    theirs = reopen.reopen_llamacpp(tmp_path / "out", ids, "model.gguf", reopen.TEXTS, NEW_TOKENS)
    for one, said in zip(ids, theirs.said, strict=True):
        given = torch.tensor([one])
        ours = model.generate(given, max_new_tokens=NEW_TOKENS, do_sample=False)
        assert ours[0, len(one) :].tolist() == said
