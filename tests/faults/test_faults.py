"""A selection of every family of faults, small enough for every run of the tests; `make faults` runs the long version."""

import errno
import shutil
import socket
from functools import partial
from random import Random

import checkpoints
import guard
import hostile
import network
import numbers_at_the_edge as edge
import parsers
import pytest
import random_recipes
import writing

from trimtab.core.recipe import Recipe
from trimtab.host import checkpoint, manifest

linux = pytest.mark.skipif(not hasattr(writing.os, "fork"), reason="needs fork")


def must_be(kind: str, outcome: guard.Outcome) -> None:
    assert outcome.kind == kind, outcome.said


# ---------------------------------------------------------------------------------------------------- A, B, C: writing


@linux
def test_a_writer_killed_at_any_moment_leaves_one_whole_model(tmp_path):
    found = writing.killed_while_overwriting(tmp_path / "model", writing.ours, 8, Random(0))
    assert set(found) <= {writing.OLD, writing.NEW}
    assert sum(found.values()) == 8


def test_the_experiment_sees_a_mixture(tmp_path):
    """Were it blind, there would be nothing to see in the test above."""
    old, new = writing.models()
    writing.stock(old, tmp_path / "old")
    writing.stock(new, tmp_path / "new")
    assert (writing.state(tmp_path / "old"), writing.state(tmp_path / "new")) == (writing.OLD, writing.NEW)
    shard = sorted((tmp_path / "new").glob("*.safetensors"))[0]
    shutil.copy(shard, tmp_path / "old" / shard.name)
    assert writing.state(tmp_path / "old") == writing.MIXED
    shard.unlink()
    assert writing.state(tmp_path / "new") == writing.BROKEN


@pytest.mark.parametrize("which", [errno.EIO, errno.ENOSPC])
def test_an_error_at_every_point_of_the_commit(tmp_path, which):
    tally = writing.errors_at_every_point(tmp_path / "model", which)
    assert tally.faults == []
    assert tally.cases >= 20


@linux
def test_the_second_of_two_writers_is_told_who_is_there(tmp_path):
    outcome, pid = writing.second_writer(tmp_path / "model")
    must_be(guard.REFUSED, outcome)
    assert f"process {pid} is writing" in outcome.said
    writing.ours(writing.models()[0], tmp_path / "model")
    assert writing.state(tmp_path / "model") == writing.OLD


@linux
def test_readers_see_the_old_or_the_new_model(tmp_path):
    found = writing.readers_meanwhile(tmp_path / "model", 0.5)
    assert not found[writing.MIXED]
    assert sum(found.values()) > 0


# ---------------------------------------------------------------------------------------------------- D: damage

FIXTURES = [f for f in checkpoints.fixtures() if f.name in ("llama", "qwen2", "llama, hlq", "mixtral, packed")]


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda f: f.name)
def test_damage_is_noticed(tmp_path, fixture):
    again = checkpoints.copies(fixture.write(tmp_path / "good"), tmp_path / "copy")
    for name, harm in {**checkpoints.STRUCTURAL, **checkpoints.SILENT}.items():
        copy = next(again)
        harm(copy, Random(name))
        must_be(guard.REFUSED, guard.judged(lambda copy=copy: manifest.verify(copy)))
        checkpoints.without_manifest(copy)
        outcome = guard.judged(lambda copy=copy: checkpoint.load(copy))
        assert outcome.kind == guard.REFUSED if name in checkpoints.STRUCTURAL else outcome.kind != guard.FAULT, (name, outcome)
    must_be(guard.TAKEN, guard.judged(lambda: checkpoint.load(next(again))))


# ---------------------------------------------------------------------------------------------------- L: plans


def test_a_recipe_that_nobody_would_write_has_a_plan_or_is_refused():
    outcomes = [guard.judged(partial(random_recipes.planned, Random(f"test/{number}"))) for number in range(100)]
    assert [outcome.said for outcome in outcomes if outcome.kind == guard.FAULT] == []
    assert {outcome.kind for outcome in outcomes} == {guard.REFUSED, guard.TAKEN}


# ---------------------------------------------------------------------------------------------------- E to H: hostile files

LARGE = ("header of 100 MB + 1", "800 000 tensors", "100 000 tensors")


@pytest.mark.parametrize("name", [n for n in (*hostile.HOSTILE_SAFETENSORS, *hostile.ODD_SAFETENSORS) if n not in LARGE])
def test_safetensors_made_on_purpose(tmp_path, name):
    data = {**hostile.HOSTILE_SAFETENSORS, **hostile.ODD_SAFETENSORS}[name]()
    (tmp_path / "model.safetensors").write_bytes(data)
    for read in hostile.READERS.values():
        outcome = guard.judged(partial(read, tmp_path))
        must_be(guard.REFUSED if name in hostile.HOSTILE_SAFETENSORS else outcome.kind, outcome)
        assert outcome.kind != guard.FAULT, outcome.said


@pytest.mark.parametrize("name", hostile.HOSTILE_GGUF)
def test_gguf_made_on_purpose(tmp_path, name):
    (tmp_path / "model.gguf").write_bytes(hostile.HOSTILE_GGUF[name]())
    must_be(guard.REFUSED, guard.judged(partial(hostile.read_gguf, tmp_path)))


@pytest.mark.parametrize("name", hostile.HOSTILE_RECIPES)
def test_recipes_made_on_purpose(name):
    must_be(guard.REFUSED, guard.judged(partial(Recipe.parse, hostile.HOSTILE_RECIPES[name])))


@pytest.mark.parametrize(
    "name", ["globals of cycler", "globals of a filter", "include", "loops", "a wide centre", "division by zero"]
)
def test_templates_made_on_purpose(name):
    outcome = guard.judged(partial(hostile.render_template, name))
    must_be(guard.TAKEN if name.startswith("globals of a f") else guard.REFUSED, outcome)


SLOW = (
    *("config: 100 MB", "config: a million lists", "config: 10^6 layer types", "config: deep 10^5"),
    *("config: gpt2 with 10^6 positions", "config: mixtral with 16 384 experts", "config: 10^9 positions"),
)


@linux
def test_folders_made_on_purpose_touch_nothing_outside(tmp_path):
    good = hostile.good_folder(tmp_path / "good")
    secret = tmp_path / "elsewhere" / "secret.json"
    secret.parent.mkdir()
    for name, change in hostile.HOSTILE_FOLDERS.items():
        if name in SLOW:
            continue
        secret.write_text('{"secret": 1}')
        model = shutil.copytree(good, tmp_path / "model")
        change(model, secret)
        with hostile.witness(secret) as was_opened:
            outcome = guard.judged(partial(hostile.load, model))
            assert not was_opened(), name
        assert outcome.kind != guard.FAULT, (name, outcome.said)
        shutil.rmtree(model)


@linux
def test_the_witness_sees(tmp_path):
    (tmp_path / "secret").write_text("s")
    with hostile.witness(tmp_path / "secret") as was_opened:
        assert not was_opened()
        (tmp_path / "secret").read_text()
        assert was_opened()


@pytest.mark.parametrize("name", parsers.PARSERS)
def test_mutated_inputs_are_refused_or_taken(tmp_path, name):
    parser = parsers.PARSERS[name]
    for number, data in enumerate([*parsers.unchanged(parser)[:3], *parsers.inputs(parser, 30, seed=1)]):
        place = tmp_path / str(number)
        place.mkdir()
        outcome = guard.judged(partial(parser.read, data, place))
        assert outcome.kind != guard.FAULT, (number, outcome.said, data[:500])


@pytest.mark.parametrize("name", parsers.PARSERS)
def test_what_the_mutations_start_from_is_taken(tmp_path, name):
    must_be(guard.TAKEN, guard.judged(partial(parsers.PARSERS[name].read, parsers.unchanged(parsers.PARSERS[name])[0], tmp_path)))


# ---------------------------------------------------------------------------------------------------- I, J: numbers and shapes


@pytest.mark.parametrize("id", ["rtn", "gptq", "wanda", "sparsegpt", "hqq", "hlq"])
def test_values_at_the_edge(id):
    for name in edge.EDGES:
        outcome = guard.judged(partial(edge.solved, id, name))
        assert outcome.kind != guard.FAULT, (name, outcome.said)


@pytest.mark.parametrize("late", [False, True])
def test_what_is_no_number_is_never_published(tmp_path, late):
    must_be(guard.REFUSED, guard.judged(partial(edge.poisoned, "llama", edge.POISONS["NaN"], "rtn", tmp_path / "out", late)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", edge.SHAPES)
def test_odd_shapes(tmp_path, shape):
    outcome = guard.judged(partial(edge.compressed, shape, edge.RECIPES[0], tmp_path / "out"))
    must_be(guard.TAKEN, outcome)


# ---------------------------------------------------------------------------------------------------- M: network


def test_nothing_reaches_for_the_network(tmp_path):
    model, text = hostile.good_folder(tmp_path / "model"), tmp_path / "text.txt"
    text.write_text("\n\n".join("some words of text that are long enough to fill a window " * 3 for _ in range(20)))
    with network.blocked() as tried:
        must_be(guard.TAKEN, guard.judged(partial(network.whole_way, model, text, tmp_path / "out")))
        must_be(guard.REFUSED, guard.judged(partial(network.of_the_hub, "nobody/nothing")))
    assert tried == []


def test_a_socket_would_be_seen():
    with network.blocked() as tried, pytest.raises(network.Reached):
        socket.create_connection(("192.0.2.1", 9))
    assert tried


# ---------------------------------------------------------------------------------------------------- the harness itself


def test_what_counts_as_a_fault(tmp_path):
    def hang():
        while True:
            pass

    def lines():
        raise guard.TrimtabError("two\nlines")

    guard_seconds, guard.LONGEST_WAIT = guard.LONGEST_WAIT, 0.1
    try:
        must_be(guard.FAULT, guard.judged(hang))
        must_be(guard.FAULT, guard.apart(hang))
    finally:
        guard.LONGEST_WAIT = guard_seconds
    must_be(guard.FAULT, guard.judged(lines))
    must_be(guard.FAULT, guard.judged(lambda: 1 / 0))
    must_be(guard.FAULT, guard.apart(lambda: bytearray(300 << 20)))
    must_be(guard.TAKEN, guard.judged(lambda: None))
