"""Saved and opened again, a model gives the same bits; what could not be opened again is not saved."""

import json

import pytest
import torch
from host_models import (
    MODELS,
    VOCABULARY,
    everything,
    grouped,
    llama,
    logits,
    mixtral,
    pack,
    packed_mixtral,
    plain_but_changed,
    tokens,
    untie,
    values,
)
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from trimtab import formats
from trimtab.core.errors import ModelError, UsageError
from trimtab.engine import surgery
from trimtab.engine.packed_linear import PackedLinear, PackedStack
from trimtab.host import checkpoint


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    for name, make in MODELS.items():
        checkpoint.save(make(), None, folder / name)
    return folder


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("name", MODELS)
def test_same_bits_by_our_loader_and_by_plain_transformers(saved, name):
    model = MODELS[name]()
    expected = logits(model)
    plain = AutoModelForCausalLM.from_pretrained(saved / name)
    ours, tokenizer = checkpoint.load(saved / name)
    assert tokenizer is None
    assert not ours.training
    for opened in (plain, ours):
        state = opened.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
        assert torch.equal(logits(opened), expected)
    generated = [m.generate(tokens()[:1], max_new_tokens=4, do_sample=False) for m in (model, ours)]
    assert torch.equal(*generated)


@pytest.mark.parametrize("name", MODELS)
def test_opening_in_bfloat16_keeps_every_packed_bit(saved, name):
    expected = MODELS[name]()
    for model in (
        AutoModelForCausalLM.from_pretrained(saved / name, dtype=torch.bfloat16),
        checkpoint.load(saved / name, dtype="bfloat16")[0],
        checkpoint.load(saved / name)[0].to(torch.bfloat16),
    ):
        packed = 0
        for path, module in expected.named_modules():
            if isinstance(module, PackedLinear):
                for key, value in module.named_buffers():
                    packed += 1
                    assert torch.equal(model.get_submodule(path).get_buffer(key), value)
        assert packed >= 2
        assert model.get_input_embeddings().weight.dtype == torch.bfloat16
        assert logits(model).dtype == torch.bfloat16
        difference = (logits(model).float() - logits(expected)).abs().max()
        assert difference < 0.1 * logits(expected).abs().max()


@pytest.mark.parametrize("name", MODELS)
def test_saving_what_was_opened_writes_the_same_bytes(saved, name, tmp_path):
    model, _ = checkpoint.load(saved / name)
    checkpoint.save(model, None, tmp_path / "again")
    for file in ("model.safetensors", "config.json", "generation_config.json"):
        assert (tmp_path / "again" / file).read_bytes() == (saved / name / file).read_bytes()


def test_description_names_what_differs_and_nothing_else(saved):
    modules = config_of(saved / "llama")["quantization_config"]["modules"]
    assert {path: entry["kind"] for path, entry in modules.items()} == {
        "model.layers.0.mlp.gate_proj": "dense",
        "model.layers.0.mlp.up_proj": "dense",
        "model.layers.0.mlp.down_proj": "dense",
        "model.layers.0.self_attn.o_proj": "dense",
        "model.layers.1.self_attn.q_proj": "grouped",
        "model.layers.1.self_attn.k_proj": "chain",
        "model.layers.1.self_attn.v_proj": "sum",
        "lm_head": "grouped",
    }
    assert modules["model.layers.0.mlp.gate_proj"] == {"kind": "dense", "shape": [48, 32], "bias": False}
    assert modules["model.layers.0.self_attn.o_proj"] == {"kind": "dense", "shape": [32, 32], "bias": True}
    assert set(config_of(saved / "llama")["quantization_config"]) == {"quant_method", "version", "modules"}


def test_packed_codes_are_what_is_in_the_file(saved):
    stored = load_file(saved / "llama" / "model.safetensors")
    assert stored["model.layers.1.self_attn.q_proj.codes"].dtype == torch.uint8
    assert stored["model.layers.1.self_attn.q_proj.scale"].dtype == torch.float16
    assert not any(key.endswith("q_proj.weight") for key in stored if ".layers.1." in key)


def test_plain_results_carry_nothing_of_ours(tmp_path):
    checkpoint.save(plain_but_changed(), None, tmp_path / "model")
    assert "quantization_config" not in config_of(tmp_path / "model")


def test_a_model_made_plain_again_forgets_the_description(saved, tmp_path):
    model, _ = checkpoint.load(saved / "gpt2")
    base = MODELS["gpt2"]()
    for path, module in list(model.named_modules()):
        if isinstance(module, PackedLinear):
            surgery.place(model, path, formats.Dense(module.weight_value.dense()), module.bias, transposed=True)
    for name, width in (("c_fc", (128, 32)), ("c_proj", (32, 128))):
        path = f"transformer.h.1.mlp.{name}"
        surgery.place(model, path, formats.Dense(values(*width)), base.get_submodule(path).bias[:1].expand(width[0]), True)
    checkpoint.save(model, None, tmp_path / "model")
    assert "quantization_config" not in config_of(tmp_path / "model")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "model")), logits(model))


def test_tied_embeddings_stay_tied(tmp_path):
    model = llama()
    pack(model, "model.layers.0.mlp.up_proj")
    checkpoint.save(model, None, tmp_path / "model")
    opened, _ = checkpoint.load(tmp_path / "model")
    assert opened.lm_head.weight is opened.model.embed_tokens.weight
    assert "lm_head.weight" not in load_file(tmp_path / "model" / "model.safetensors")
    assert torch.equal(logits(opened), logits(model))


def test_experts_narrowed_alike_stay_one_parameter(tmp_path):
    model = mixtral()
    experts = model.model.layers[1].mlp.experts
    up, down = experts.gate_up_proj.detach(), experts.down_proj.detach()
    keep = torch.cat([torch.arange(40), 48 + torch.arange(40)])
    for index in range(3):
        surgery.place(model, "model.layers.1.mlp.experts.gate_up_proj", formats.Dense(up[index][keep]), index=index)
        surgery.place(model, "model.layers.1.mlp.experts.down_proj", formats.Dense(down[index][:, :40]), index=index)
    assert isinstance(experts.gate_up_proj, torch.nn.Parameter)
    checkpoint.save(model, None, tmp_path / "model")
    entry = config_of(tmp_path / "model")["quantization_config"]["modules"]
    assert entry["model.layers.1.mlp.experts.gate_up_proj"] == {"kind": "dense", "shape": [3, 80, 32]}
    opened, _ = checkpoint.load(tmp_path / "model")
    opened.set_experts_implementation("eager")
    model.set_experts_implementation("eager")
    assert torch.equal(logits(opened), logits(model))


def test_packed_experts_run_eagerly_and_equal_the_dense_model(saved):
    opened, _ = checkpoint.load(saved / "mixtral")
    assert opened.config._experts_implementation == "eager"
    stack = opened.model.layers[0].mlp.experts.gate_up_proj
    assert isinstance(stack, PackedStack)
    dense = mixtral()
    dense.set_experts_implementation("eager")
    with torch.no_grad():
        for index, weight in enumerate(stack.weight_values):
            dense.model.layers[0].mlp.experts.gate_up_proj[index].copy_(weight.dense())
    assert torch.equal(logits(opened), logits(dense))


def test_shards(tmp_path):
    checkpoint.save(everything(), None, tmp_path / "model", max_shard_size="20KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 2
    assert torch.equal(logits(checkpoint.load(tmp_path / "model")[0]), logits(everything()))


def test_tokenizer_recipe_and_card_travel_along(tmp_path):
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", eos_token="w1")
    tokenizer.chat_template = "{% for m in messages %}w5 {{ m['content'] }} {% endfor %}"
    checkpoint.save(llama(), tokenizer, tmp_path / "one", recipe_yaml="steps: []\n", card="# Card\n")
    model, opened = checkpoint.load(tmp_path / "one")
    assert (tmp_path / "one" / "recipe.yaml").read_text() == "steps: []\n"
    assert (tmp_path / "one" / "README.md").read_text() == "# Card\n"
    chat = [{"role": "user", "content": "w7"}]
    assert opened.apply_chat_template(chat, tokenize=False) == tokenizer.apply_chat_template(chat, tokenize=False)
    assert opened("w3 w9 nothing").input_ids == tokenizer("w3 w9 nothing").input_ids == [3, 9, 0]
    checkpoint.save(model, opened, tmp_path / "two")
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_the_old_model_survives_a_failed_save(tmp_path):
    checkpoint.save(llama(), None, tmp_path / "model")
    with pytest.raises(UsageError, match="exists"):
        checkpoint.save(llama(), None, tmp_path / "model")
    broken = llama()
    with torch.no_grad():
        broken.model.layers[1].mlp.up_proj.weight[3, 4] = float("nan")
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight has values that are not finite"):
        checkpoint.save(broken, None, tmp_path / "model", overwrite=True)
    assert torch.equal(logits(checkpoint.load(tmp_path / "model")[0]), logits(llama()))
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def infinite(model):
    model.model.norm.weight.data[0] = float("inf")


def on_meta(model):
    model.model.layers[0].to("meta")


def lost_layer(model):
    del model.model.layers[1]


def wide_norm(model):
    model.model.norm.weight = torch.nn.Parameter(torch.ones(33))


def secretly_untied(model):
    untie(model)
    model.config.tie_word_embeddings = True


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (infinite, "norm.weight has values that are not finite"),
        (on_meta, "has no values"),
        (lost_layer, r"lacks model\.layers\.2"),
        (wide_norm, r"norm.weight is \[33\], the config says \[32\]"),
        (secretly_untied, "untie it first"),
    ],
)
def test_what_would_not_open_again_is_not_saved(tmp_path, damage, message):
    model = llama()
    damage(model)
    with pytest.raises(ModelError, match=message):
        checkpoint.save(model, None, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_another_quantizer_is_not_saved(tmp_path):
    model = llama()
    model.hf_quantizer = object()
    with pytest.raises(ModelError, match="opened through object"):
        checkpoint.save(model, None, tmp_path / "model")


def test_moe_may_be_packed_further_after_opening(saved, tmp_path):
    opened, _ = checkpoint.load(saved / "mixtral")
    path = "model.layers.0.mlp.experts.gate_up_proj"
    surgery.place(opened, path, grouped(packed_mixtral().get_submodule(path)[1], bits=2), index=1)
    checkpoint.save(opened, None, tmp_path / "more")
    assert torch.equal(logits(checkpoint.load(tmp_path / "more")[0]), logits(opened))


def test_what_was_opened_can_be_saved_by_plain_transformers(saved, tmp_path):
    for name in MODELS:
        opened = AutoModelForCausalLM.from_pretrained(saved / name)
        opened.save_pretrained(tmp_path / name)
        assert torch.equal(logits(checkpoint.load(tmp_path / name)[0]), logits(opened))
