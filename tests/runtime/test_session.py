"""Conversations: what is refused, how tokens are drawn, and that nothing else changes them."""

import json
import shutil
import threading

import numpy as np
import pytest
import torch
from runtime_problems import distance, prompt

from trimtab.core.errors import ModelError, UsageError
from trimtab.runtime import Runtime, Sampling

SAMPLED = Sampling(temperature=1.0, seed=7)


@pytest.fixture(scope="module")
def runtime(folder_of, exact):
    return exact(folder_of("llama"))


def test_facts(runtime):
    assert (runtime.architecture, runtime.layers, runtime.vocabulary, runtime.context) == ("llama", 4, 97, 128)
    assert runtime.head_bits is None
    assert Runtime.__dataclass_fields__.keys() >= {"bytes_per_token", "kernel", "threads"}


def test_a_session_refuses_and_goes_on(runtime):
    session, ids = runtime.session(), prompt()
    before = session.prefill(ids)
    for bad, why in (
        ([], "a prompt needs at least one"),
        ([97], "token id 97 is not in the vocabulary of 97"),
        ([-1], "from 0"),
        ([1 << 40], "from 0"),
        (prompt(105), "129 tokens are more than the context of 128"),
    ):
        with pytest.raises(UsageError, match=why):
            session.prefill(bad)
    assert session.length == len(ids)
    session.truncate(len(ids) - 1)
    assert np.array_equal(session.step(ids[-1]), runtime_logits(runtime, ids))
    assert distance(before, runtime_logits(runtime, ids)) < 1e-5
    with pytest.raises(UsageError, match="cannot keep 1000"):
        session.truncate(1000)
    session.reset()
    with pytest.raises(UsageError, match="nothing to continue"):
        next(session.generate([], 1))


def runtime_logits(runtime, ids):
    session = runtime.session()
    for id in ids:
        logits = session.step(id)
    return logits


def test_generation_ends_with_the_context(runtime):
    session = runtime.session()
    assert len(list(session.generate(prompt(100), 1000))) == 28
    assert session.length == 128
    assert list(session.generate([], 5)) == []


def test_stages_add_up_and_change_nothing(runtime):
    plain, timed = runtime.session(), runtime.session()
    assert set(timed.stages.values()) == {0.0}
    timed.time_stages(True)
    assert list(timed.generate(prompt(), 12)) == list(plain.generate(prompt(), 12))
    found = timed.stages
    assert list(found)[:3] == ["embedding", "inputs", "q k v"]
    assert list(found)[-2:] == ["choice", "waiting"]
    assert all(found[stage] > 0 for stage in found if stage != "waiting")
    assert set(plain.stages.values()) == {0.0}
    timed.time_stages(False)
    list(timed.generate([], 3))
    assert timed.stages == found
    timed.time_stages(True)
    assert set(timed.stages.values()) == {0.0}


def test_generation_goes_on_where_it_was(runtime):
    ids = prompt()
    at_once, in_parts = runtime.session(), runtime.session()
    made = list(at_once.generate(ids, 20))
    first = list(in_parts.generate(ids, 7))
    assert first + list(in_parts.generate([], 13)) == made
    taken = runtime.session()
    some = taken.generate(ids, 20)
    assert [next(some) for _ in range(4)] == made[:4]
    some.close()
    assert taken.length == len(ids) + 4
    assert list(taken.generate([], 16)) == made[4:]


def test_it_stops_after_a_stop_token(runtime):
    made = list(runtime.session().generate(prompt(), 20))
    stop = made[11]
    expected = made[: made.index(stop) + 1]
    assert list(runtime.session().generate(prompt(), 20, stop=[stop])) == expected


def test_seeds(runtime):
    def said(sampling):
        return list(runtime.session().generate(prompt(), 24, sampling))

    assert said(SAMPLED) == said(SAMPLED)
    assert len({tuple(said(Sampling(temperature=1.0, seed=seed))) for seed in range(4)}) == 4
    assert said(Sampling(temperature=1.0, top_k=1, seed=3)) == said(Sampling())
    assert said(Sampling(temperature=1.0, top_p=1e-6, seed=3)) == said(Sampling())
    assert said(Sampling(temperature=1e-4, seed=3)) == said(Sampling())


@pytest.mark.parametrize(
    ("sampling", "warp"),
    [
        (Sampling(temperature=0.7, seed=1), {"temperature": 0.7}),
        (Sampling(temperature=1.3, top_k=5, seed=1), {"temperature": 1.3, "top_k": 5}),
        (Sampling(temperature=1.0, top_p=0.6, seed=1), {"top_p": 0.6}),
        (Sampling(temperature=0.9, top_k=20, top_p=0.8, seed=1), {"temperature": 0.9, "top_k": 20, "top_p": 0.8}),
    ],
)
def test_tokens_are_drawn_as_transformers_would(runtime, sampling, warp):
    """3000 first tokens against the distribution that the same numbers give there: chi squared over its degrees of freedom."""
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.tensor(runtime.session().prefill(prompt()))[None]
    for name, make in (("temperature", TemperatureLogitsWarper), ("top_k", TopKLogitsWarper), ("top_p", TopPLogitsWarper)):
        if name in warp:
            logits = make(warp[name])(None, logits)
    chances = logits.softmax(-1)[0].double().numpy()
    session, counts, draws = runtime.session(), np.zeros(97), 3000
    session.prefill(prompt())
    from trimtab.runtime.runtime import sampler_of

    sampler = sampler_of(sampling)
    for _ in range(draws):
        counts[session._native.generate(sampler, 1, [])[0]] += 1
        session.truncate(len(prompt()))
    assert counts[chances == 0].sum() == 0
    likely = chances * draws >= 5
    statistic = ((counts - chances * draws)[likely] ** 2 / (chances * draws)[likely]).sum()
    assert statistic < likely.sum() + 4 * np.sqrt(2 * likely.sum())


def test_repetition_is_punished_as_in_transformers(folder_of, runtime):
    from trimtab.host.checkpoint import load

    model, _ = load(folder_of("llama"))
    ids = prompt()
    greedy = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with torch.no_grad():
        made = model.generate(torch.tensor([ids]), repetition_penalty=1.4, **greedy)[0, len(ids) :].tolist()
    assert list(runtime.session().generate(ids, 24, Sampling(repetition_penalty=1.4))) == made
    assert list(runtime.session().generate(ids, 24)) != made


@pytest.mark.parametrize(
    "bad",
    [
        *({"temperature": t} for t in (-1.0, float("nan"), float("inf"))),
        *({"top_p": p} for p in (0.0, 1.5, float("nan"))),
        *({"repetition_penalty": r} for r in (0.0, -1.0, float("nan"))),
        *({"top_k": -1}, {"seed": -1}),
    ],
)
def test_numbers_that_make_no_sense(runtime, bad):
    with pytest.raises(UsageError, match=next(iter(bad))):
        next(runtime.session().generate(prompt(), 1, Sampling(**bad)))


def test_options_that_make_no_sense(folder_of, exact):
    folder = folder_of("llama")
    for bad in ({"activations": "int4"}, {"kv": "int4"}, {"threads": 0}, {"head_bits": 5}, {"instructions": "mmx"}):
        with pytest.raises(UsageError, match=next(iter(bad)) if "instructions" not in bad else "mmx"):
            exact(folder, **bad)
    with pytest.raises(ModelError, match="a context of 129 was asked for, the model has 128"):
        exact(folder, context=129)
    assert exact(folder, context=16).context == 16
    assert exact(folder, threads=10**6).threads <= 10**4


def test_logits_that_are_no_numbers_are_an_error(folder_of, exact, tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = shutil.copytree(folder_of("llama"), tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight"][3, 4] = np.nan
    save_file(tensors, folder / "model.safetensors")
    session = exact(folder).session()
    with pytest.raises(ModelError, match="logits of position 23 are not finite"):
        session.prefill(prompt())
    assert session.length == 0


def test_sessions_in_several_threads(runtime):
    alone = list(runtime.session().generate(prompt(), 40))
    found = {}

    def talk(number):
        found[number] = list(runtime.session().generate(prompt(), 40))

    threads = [threading.Thread(target=talk, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(found.values()) == [alone] * 3


def test_threads_do_not_change_the_answer(folder_of, exact):
    one, two = (exact(folder_of("gemma3"), threads=n).session().prefill(prompt(40), every=True) for n in (1, 2))
    assert np.array_equal(one, two)


def test_a_config_is_not_trusted_about_the_context(folder_of, exact, tmp_path):
    """Learned positions are a table: a config that promises more must not lead beyond it."""
    folder = shutil.copytree(folder_of("gpt2"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_positions": 4096}))
    with pytest.raises(ModelError, match="table of positions has 128 rows"):
        exact(folder)
