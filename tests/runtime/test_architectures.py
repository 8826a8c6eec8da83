"""Every family that is covered answers as it does in torch, read at once or token by token; what is not covered says so."""

import json
import shutil

import numpy as np
import pytest
import torch
from runtime_problems import distance, prompt

from trimtab.core.errors import ModelError
from trimtab.host.checkpoint import load
from trimtab.runtime import Unsupported
from trimtab.runtime.facts import facts
from trimtab.runtime.family import FAMILIES

ROPES = {
    "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
    "llama3": {
        **{"rope_type": "llama3", "factor": 8.0, "rope_theta": 10000.0, "original_max_position_embeddings": 32},
        **{"low_freq_factor": 1.0, "high_freq_factor": 4.0},
    },
}
CASES = {
    **{name: (name, {}) for name in ("llama", "mistral", "qwen2", "qwen3", "smollm3", "olmo2", "gemma2", "gemma3", "phi3")},
    **{name: (name, {}) for name in ("gpt2", "opt", "gpt_neox")},
    "mistral, window": ("mistral", {"sliding_window": 5}),
    "phi3, window": ("phi3", {"sliding_window": 7}),
    "gpt_neox, one after the other": ("gpt_neox", {"use_parallel_residual": False}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, odd heads": ("llama", {"head_dim": 10, "num_key_value_heads": 1}),
    "llama, many heads on one": ("llama", {"head_dim": 4, "num_attention_heads": 32, "num_key_value_heads": 1}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    **{f"llama, {name} rope": ("llama", {"rope_parameters": rope}) for name, rope in ROPES.items()},
}


@pytest.fixture(params=CASES, scope="module")
def folder(request, folder_of):
    name, overrides = CASES[request.param]
    return folder_of(name, **{k: v if not isinstance(v, dict) else dict(v) for k, v in overrides.items()})


def test_answers_as_in_torch(folder, exact, expected):
    ids = prompt(40)
    model, reference = expected(folder, ids)
    runtime = exact(folder)
    whole = runtime.session()
    assert distance(whole.prefill(ids, every=True), reference) < 2e-4
    stepped = runtime.session()
    assert distance(np.stack([stepped.step(id) for id in ids]), reference) < 2e-4
    with torch.no_grad():
        greedy = model.generate(torch.tensor([ids]), max_new_tokens=32, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert list(runtime.session().generate(ids, 32)) == greedy[0, len(ids) :].tolist()


def test_windows_end_in_the_middle_of_pages(folder_of, exact, expected):
    """Longer than a page of 256 positions, with a window that spans two."""
    folder, ids = folder_of("mistral", sliding_window=300, max_position_embeddings=800), prompt(700)
    _, reference = expected(folder, ids)
    session = exact(folder).session()
    assert distance(session.prefill(ids[:690], every=True), reference[:690]) < 2e-4
    assert distance(np.stack([session.step(id) for id in ids[690:]]), reference[690:]) < 2e-4


def test_a_long_context_is_split_between_threads(folder_of, exact, expected):
    folder, ids = folder_of("llama", max_position_embeddings=1400), prompt(1300)
    _, reference = expected(folder, ids)
    for kernel in ("scalar", None):
        session = exact(folder, instructions=kernel).session()
        session.prefill(ids[:-3])
        assert distance(np.stack([session.step(id) for id in ids[-3:]]), reference[-3:]) < 2e-4


def test_every_instruction_set_says_the_same(folder_of, exact, expected):
    from trimtab.runtime.native import native

    folder, ids = folder_of("gemma2"), prompt()
    _, reference = expected(folder, ids)
    for kernel in native().instruction_sets():
        assert distance(exact(folder, instructions=kernel).session().prefill(ids, every=True), reference) < 2e-4


@pytest.mark.parametrize(("kv", "bound"), [("bfloat16", 0.01), ("int8", 0.03)])
def test_narrow_keys_and_values_stay_close(folder_of, exact, expected, kv, bound):
    """Bounds are for untrained models, several times what was seen (0.003 and 0.01 of the range of logits)."""
    for name in ("llama", "gemma3", "gpt2"):
        ids = prompt(40)
        _, reference = expected(folder_of(name), ids)
        runtime = exact(folder_of(name), kv=kv)
        off = distance(runtime.session().prefill(ids, every=True), reference)
        assert 1e-5 < off < bound
        stepped = runtime.session()
        assert distance(np.stack([stepped.step(id) for id in ids]), reference) < bound


def test_older_configs_mean_the_same(folder_of, exact, tmp_path):
    """rope_theta and rope_scaling instead of rope_parameters, as files of transformers 4 have it."""
    for name, scaling in (("llama", ROPES["llama3"]), ("gemma3", None)):
        folder = folder_of(name, **({"rope_parameters": dict(scaling)} if scaling else {}))
        older = shutil.copytree(folder, tmp_path / name)
        config = json.loads((older / "config.json").read_text())
        del config["rope_parameters"]
        if scaling:
            config |= {"rope_theta": 10000.0, "rope_scaling": scaling}
        else:
            config |= {"rope_theta": 1000000.0, "rope_local_base_freq": 10000.0}
        (older / "config.json").write_text(json.dumps(config))
        ids = prompt()
        assert np.array_equal(exact(folder).session().prefill(ids), exact(older).session().prefill(ids))


def test_what_is_not_covered_says_so(folder_of, exact):
    for name in ("mixtral", "gpt_oss", "lfm2"):
        with pytest.raises(Unsupported, match=f"models of type '{name}' are not covered"):
            exact(folder_of(name))
    yarn = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0}
    with pytest.raises(Unsupported, match="'yarn' scaling of rotary positions is not covered"):
        exact(folder_of("llama", rope_parameters=yarn))
    with pytest.raises(Unsupported, match="activation 'tanh' is not covered"):
        exact(folder_of("llama", hidden_act="tanh"))


def test_configs_that_make_no_sense_are_refused():
    base = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4}
    base |= {"max_position_embeddings": 128, "hidden_act": "silu"}
    assert facts(base).head_width == 16
    for change in (
        {"num_hidden_layers": 0},
        {"num_hidden_layers": 10**6},
        {"hidden_size": "64"},
        {"num_key_value_heads": 3},
        {"layer_types": ["full_attention"]},
        {"rope_parameters": {"rope_theta": -1.0}},
        {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.01}},
        {"max_position_embeddings": None},
    ):
        with pytest.raises(ModelError, match=r"config\.json"):
            facts(base | change)


def test_families_name_what_transformers_builds(folder_of):
    """A family of the table whose names were wrong would not find its tensors: so each of them is opened above."""
    opened = {json.loads((folder_of(name) / "config.json").read_text())["model_type"] for name, _ in CASES.values()}
    assert FAMILIES.keys() - opened == {"gemma"}


def test_gemma_as_a_config_without_its_tiny_model(tmp_path, exact, expected):
    import transformers

    from trimtab.host.checkpoint import save

    config = transformers.GemmaConfig(
        **{"vocab_size": 97, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
        **{"num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 64},
    )
    with torch.random.fork_rng(devices=[]):
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
    save(model, None, tmp_path / "model")
    ids = prompt()
    _, reference = expected(tmp_path / "model", ids)
    assert distance(exact(tmp_path / "model").session().prefill(ids, every=True), reference) < 2e-4
    assert load(tmp_path / "model")[0].config.model_type == "gemma"
