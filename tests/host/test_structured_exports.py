"""Pruned models open elsewhere: equal widths by the family's own config, others padded, or as GGUF with sizes by layer."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_export import llama_python, needs_llama

from trimtab.core.errors import UsageError
from trimtab.core.recipe import Recipe
from trimtab.engine.run import run
from trimtab.host.checkpoint import save
from trimtab.host.compress import compress
from trimtab.host.export import gguf_layers, padded, plain, reopen
from trimtab.host.export.contents import Contents, values_of
from trimtab.host.export.job import export
from trimtab.host.export.stock import equally_wide, stock_config
from trimtab.testing.folders import byte_tokenizer
from trimtab.testing.roundtrip import shown
from trimtab.testing.tiny import tiny, tokens

OPEN = """
import sys, torch
sys.modules["trimtab"] = None
from pathlib import Path
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
folder, seen = Path(sys.argv[1]), {}
ids = load_file(folder / "ids.safetensors")["ids"]
with torch.no_grad():
    for place in sorted(p for p in folder.iterdir() if p.is_dir()):
        model = AutoModelForCausalLM.from_pretrained(place)
        seen[place.name] = model(ids).logits
        out = model.generate(ids[:1], max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
        seen[place.name + ".said"] = out.sequences
        seen[place.name + ".keys"] = torch.tensor([list(layer.keys.shape) for layer in out.past_key_values.layers])
save_file(seen, folder / "seen.safetensors")
"""
UNIFORM = {  # family: recipe
    "llama": "flap(sparsity=0.5, uniform=True)",
    "qwen2": "llm_pruner(sparsity=0.5, uniform=True, first=0.0, last=0.0)",
    "phi3": "wanda_sp(sparsity=0.3, uniform=True)",
    "gpt2": "magnitude_sp(sparsity=0.3, uniform=True)",
    "gpt_neox": "flap(sparsity=0.3, uniform=True, units='neuron')",
    "qwen3": "wanda_sp(sparsity=0.5, uniform=True)",
    "smollm3": "magnitude_sp(sparsity=0.3, uniform=True)",
}
PADDED = {
    "llama": "flap(sparsity=0.4)",
    "qwen2": "llm_pruner(compete='model')",
    "phi3": "flap(bias=False)",
    "gpt2": "wanda_sp(compete='model')",
}


def seen_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    ids = tokens(model)
    out = model.generate(ids[:1], max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    keys = torch.tensor([list(layer.keys.shape) for layer in out.past_key_values.layers])
    with torch.no_grad():
        return {"": model(ids).logits, ".said": out.sequences, ".keys": keys}


def after(family: str, expression: str) -> torch.nn.Module:
    model = tiny(family)
    run(model, Recipe.of(expression), shown(model))
    return model


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """What our models say, and what a process without trimtab says of their folders."""
    folder, ours = tmp_path_factory.mktemp("structured"), {}
    for family, expression in UNIFORM.items():
        model = after(family, expression)
        assert equally_wide(model) == []
        save(model, None, folder / f"uniform-{family}")
        ours[f"uniform-{family}"] = seen_of(model)
    for family, expression in PADDED.items():
        model = after(family, expression)
        ours[f"padded-{family}"] = seen_of(model)
        (note,) = padded.widen(model)
        assert "bytes of padding" in note
        contents = Contents(model, None, stock_config(model), values_of(model), (note,))
        plain.write(contents, plain.plan(contents, None), folder / f"padded-{family}")
    save_file({"ids": tokens(tiny("llama"))}, folder / "ids.safetensors")
    done = subprocess.run([sys.executable, "-I", "-c", OPEN, str(folder)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return ours, load_file(folder / "seen.safetensors")


@pytest.mark.parametrize("name", [*(f"uniform-{f}" for f in UNIFORM), *(f"padded-{f}" for f in PADDED)])
def test_stock_transformers_says_the_same(opened, name):
    ours, theirs = opened
    assert torch.allclose(theirs[name], ours[name][""], atol=1e-5)
    assert torch.equal(theirs[f"{name}.said"], ours[name][".said"])
    kept, widest = ours[name][".keys"], theirs[f"{name}.keys"]
    assert torch.equal(widest, kept) if name.startswith("uniform") else torch.equal(widest.amax(0), kept.amax(0))


def test_uniform_widths_are_equal_and_the_budget_is_met():
    done = compress(tiny("llama"), "magnitude_sp(sparsity=0.5, uniform=True)")
    kept = {(r.kind, r.notes["units_after"]) for r in done.report.receipts}
    assert kept == {("kv_group", 1), ("neuron", 64)}
    assert done.model.config.num_key_value_heads == 1


def test_what_no_config_describes_stays_compact_and_says_so():
    (note,) = equally_wide(after("qwen2", "flap(sparsity=0.5, uniform=True)"))
    assert "own config" in note
    assert "with a bias" in note


def test_head_counts_that_transformers_refuses_are_named():
    model = tiny("llama", num_attention_heads=16, num_key_value_heads=8, hidden_size=64)
    run(model, Recipe.of("magnitude_sp(sparsity=0.3, units='kv_group', uniform=True)"), shown(model))
    with pytest.raises(UsageError, match="transformers refuses"):
        stock_config(model)


def test_a_packed_matrix_is_not_padded():
    model = after("llama", "flap(sparsity=0.4) -> rtn(group_size=0)")
    with pytest.raises(UsageError, match="no plain matrix; pad first"):
        padded.widen(model)


def test_the_export_names_its_cost(tmp_path):
    model = tiny("llama", num_hidden_layers=2, vocab_size=264)
    run(model, Recipe.of("flap(sparsity=0.4)"), shown(model))
    widest = max(block.mlp.down_proj.in_features for block in model.model.layers)
    done = export(save(model, byte_tokenizer(), tmp_path / "model"), "padded")
    assert "bytes of padding" in done.remarks[0]
    assert {entry.shape for entry in done.entries if entry.name.endswith("down_proj.weight")} == {(64, widest)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", PADDED)
def test_the_bytes_of_padding_are_those_by_which_the_model_grows(family, dtype):
    model = after(family, PADDED[family]).to(dtype)
    before = stored(model)
    (note,) = padded.widen(model)
    assert f" {stored(model) - before} bytes of padding" in note
    assert stored(model) > before


def stored(model: torch.nn.Module) -> int:
    return sum(p.nbytes for p in model.parameters())


def test_sizes_by_layer_need_a_graph_that_reads_them(monkeypatch):
    model = after("qwen2", "llm_pruner(sparsity=0.4, compete='model')")
    with pytest.raises(UsageError, match="only llama and mistral may differ"):
        gguf_layers.config(model)
    config = gguf_layers.config(after("llama", "flap(sparsity=0.4)"))
    assert gguf_layers.by_layer(config)
    assert len(config.num_attention_heads) == len(config.intermediate_size) == 4
    assert not gguf_layers.by_layer(gguf_layers.config(tiny("llama")))


def by_layer_folder(place: Path) -> Path:
    model = tiny("llama", vocab_size=320)
    run(model, Recipe.of("flap(sparsity=0.4)"), shown(model))
    assert len({block.mlp.down_proj.in_features for block in model.model.layers}) > 1
    return save(model, byte_tokenizer(), place)


def test_without_llamacpp_it_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(reopen, "llama_python", lambda: None)
    source = by_layer_folder(tmp_path / "model")
    with pytest.raises(UsageError, match="llama-cpp-python"):
        export(source, "gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@needs_llama
def test_llamacpp_opens_layers_of_different_widths(tmp_path, monkeypatch):
    monkeypatch.setattr(reopen, "llama_python", llama_python)
    done = export(by_layer_folder(tmp_path / "model"), "gguf", tmp_path / "out")
    assert "llama.cpp" in done.measurements[0].setting["opened_by"]
    assert any("deci" in remark for remark in done.remarks)
    assert done.measurements[0].value < 0.05
