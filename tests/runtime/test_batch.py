"""Several conversations at a time say what each would say alone."""

import numpy as np
import pytest
from runtime_problems import prompt

from trimtab.core.errors import ModelError, UsageError
from trimtab.engine import surgery
from trimtab.formats import Masked
from trimtab.host.checkpoint import save
from trimtab.runtime import Batch, Runtime, Sampling
from trimtab.runtime.batch import seeded
from trimtab.testing.tiny import tiny

LENGTHS = (24, 1, 57, 100)


def prompts():
    return [prompt(length, seed) for seed, length in enumerate(LENGTHS)]


def heard(batch, given, *arguments, **options):
    """What each conversation says, as lists."""
    said = [[] for _ in given]
    for number, id in batch.generate(given, *arguments, **options):
        said[number].append(id)
    return said


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3", "gpt_neox", "qwen3"])
@pytest.mark.parametrize("threads", [1, 2])
def test_together_as_alone(architecture, threads, folder_of):
    """Ragged, greedy and sampled, to the end of the context: 128 positions."""
    runtime = Runtime.open(folder_of(architecture), threads=threads)
    ways = [Sampling(), Sampling(temperature=1.0, seed=4), Sampling(repetition_penalty=1.3), Sampling(temperature=0.8, top_p=0.9)]
    alone = [list(runtime.session().generate(ids, 60, way)) for ids, way in zip(prompts(), ways, strict=True)]
    batch = Batch(runtime, len(LENGTHS))
    assert heard(batch, prompts(), 60, ways) == alone
    assert [len(said) for said in alone] == [60, 60, 60, 28]
    assert [session.length for session in batch.sessions] == [84, 61, 117, 128]


@pytest.mark.parametrize("activations", ["float32", "int8", "int16"])
@pytest.mark.parametrize("kv", ["float32", "bfloat16", "int8"])
def test_to_the_bit_for_all_ways_to_round(activations, kv, folder_of):
    runtime = Runtime.open(folder_of("llama"), threads=2, activations=activations, kv=kv)
    batch = Batch(runtime, 4)
    said = heard(batch, prompts(), 9)
    for session, ids, made in zip(batch.sessions, prompts(), said, strict=True):
        one = runtime.session()
        one.read(ids)
        for id in made:
            logits = one.step(id)
        session.truncate(session.length - 1)
        assert np.array_equal(session.step(made[-1]), logits)


def test_long_conversations_beside_short_ones(folder_of):
    """Attention over many pages is done in parts, and in as many parts as alone."""
    folder = folder_of("llama", max_position_embeddings=2048)
    runtime = Runtime.open(folder, threads=2)
    given = [prompt(1500), prompt(3, seed=1), prompt(700, seed=2)]
    alone = [list(runtime.session().generate(ids, 12)) for ids in given]
    assert heard(Batch(runtime, 3), given, 12) == alone


def test_sparse_weights(tmp_path):
    model = tiny("llama")
    for number in range(4):
        path = f"model.layers.{number}.mlp.up_proj"
        weight = model.get_submodule(path).weight.detach()
        surgery.place(model, path, Masked(weight, weight.abs() > weight.abs().median()))
    save(model, None, tmp_path / "model")
    runtime = Runtime.open(tmp_path / "model")
    assert heard(Batch(runtime, 4), prompts(), 10) == [list(runtime.session().generate(ids, 10)) for ids in prompts()]


def test_one_way_to_sample_for_all_gives_each_a_seed_of_its_own(folder_of):
    runtime = Runtime.open(folder_of("llama"))
    same = [prompt()] * 3
    said = heard(Batch(runtime, 3), same, 24, Sampling(temperature=1.0, seed=7))
    assert len({tuple(each) for each in said}) == 3
    assert said == [list(runtime.session().generate(prompt(), 24, Sampling(temperature=1.0, seed=7 + i))) for i in range(3)]
    assert [s.seed for s in seeded(Sampling(seed=2**64 - 1), 2)] == [2**64 - 1, 0]


def test_each_ends_by_itself_and_goes_on(folder_of):
    runtime = Runtime.open(folder_of("llama"))
    alone = [list(runtime.session().generate(ids, 30)) for ids in prompts()]
    stop = alone[0][5]
    ends = [said.index(stop) + 1 if stop in said else 30 for said in alone]
    batch = Batch(runtime, 4)
    first = heard(batch, prompts(), 30, stop=[stop])
    assert first == [said[:end] for said, end in zip(alone, ends, strict=True)]
    assert heard(batch, [[]] * 4, 3) == [list(session.generate([], 3)) for session in _copies(runtime, batch, prompts(), first)]


def _copies(runtime, batch, given, said):
    for ids, made in zip(given, said, strict=True):
        session = runtime.session()
        session.read([*ids, *made])
        yield session


def test_what_was_not_taken_is_not_part_of_it(folder_of):
    runtime = Runtime.open(folder_of("llama"))
    batch = Batch(runtime, 4)
    some = batch.generate(prompts(), 20)
    taken = [next(some) for _ in range(4 * 3 + 2)]
    some.close()
    assert [session.length for session in batch.sessions] == [24 + 4, 1 + 4, 57 + 3, 100 + 3]
    assert [number for number, _ in taken] == [0, 1, 2, 3] * 3 + [0, 1]
    rest = heard(batch, [[]] * 4, 5)
    assert rest[0] == list(runtime.session().generate(prompts()[0], 9))[4:]


def test_bad_batches(folder_of):
    runtime = Runtime.open(folder_of("llama"))
    with pytest.raises(UsageError, match="at least one conversation, got 0"):
        Batch(runtime, 0)
    batch = Batch(runtime, 2)
    for bad, why in (
        (([[1]], 3), "1 prompts were given for 2"),
        (([[1], [5]], 3, [Sampling()]), "1 ways to sample were given for 2"),
        (([[1], []], 3), "nothing to continue"),
        (([[1], [97]], 3), "not in the vocabulary"),
    ):
        for session in batch.sessions:
            session.reset()
        with pytest.raises(UsageError, match=why):
            next(batch.generate(*bad))


def test_logits_that_are_no_numbers(folder_of, tmp_path):
    import shutil

    from safetensors.numpy import load_file, save_file

    folder = shutil.copytree(folder_of("llama"), tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][5] = np.nan
    save_file(tensors, folder / "model.safetensors")
    batch = Batch(Runtime.open(folder), 2)
    batch.sessions[0].read([7])
    with pytest.raises(ModelError, match="are not finite"):
        batch.sessions[1].read([5])
