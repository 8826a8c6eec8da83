"""Rounds of clients with ranks of their own: exact, and whoever fails or goes mad changes nothing for the others."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import trimtab as tt
from trimtab.core.errors import TrimtabError
from trimtab.host.federated import Change, Client, Joining, Layers, Terms, Upload, joined, layers, learn, write
from trimtab.host.pretrain import Course
from trimtab.tensors.federated import averaged, stacked
from trimtab.testing.folders import tiny_folder
from trimtab.testing.tiny import tokens

RANKS, ENDS = (4, 8, 16, 32), (".left", ".right")
COURSE = Course(steps=3, batch=2, length=16, learning_rate=5e-3, decay=0.0)


@pytest.fixture(scope="module")
def terms(tmp_path_factory: pytest.TempPathFactory) -> Terms:
    folder = tiny_folder(tmp_path_factory.mktemp("base") / "tiny", num_hidden_layers=1)
    return Terms(str(folder), COURSE, only=("*q_proj", "*down_proj"))


@pytest.fixture(scope="module")
def wanted(terms: Terms) -> Layers:
    return layers(terms)


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> list[Client]:
    """Letters of their own for each; the first has more rows."""
    place, found = tmp_path_factory.mktemp("data"), []
    for number, rank in enumerate(RANKS):
        lines = [{"prompt": f"{letter} is ", "completion": letter * 3} for letter in "abcdefgh"[number * 2 :][:2] * (4 - number)]
        (place / f"{number}.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
        found.append(Client(str(place / f"{number}.jsonl"), rank))
    return found


@pytest.fixture(scope="module")
def uploads(terms: Terms, clients: list[Client]) -> dict[str, Upload]:
    return {str(number): learn(terms, client, number, 1, {}) for number, client in enumerate(clients)}


def product(change: Change) -> torch.Tensor:
    return torch.cat([(left.double() @ right.double()).flatten() for left, right in change.values()])


def mean(uploads: dict[str, Upload]) -> torch.Tensor:
    rows = sum(upload.rows for upload in uploads.values())
    return torch.stack([product(upload.change) * upload.rows / rows for upload in uploads.values()]).sum(0)


def test_clients_of_any_rank_are_joined_without_error(wanted: Layers, uploads: dict[str, Upload]) -> None:
    change, refused = joined(wanted, {}, uploads)
    assert not refused
    assert {left.shape[1] for left, _ in change.values()} == {sum(RANKS)}
    true = mean(uploads)
    assert true.norm() > 0
    torch.testing.assert_close(product(change), true, rtol=1e-5, atol=1e-9)
    off = product(joined(wanted, {}, uploads, averaged)[0]) - true
    assert off.norm() > 0.3 * true.norm()


def test_who_falls_out_or_goes_mad_is_left_out(wanted: Layers, uploads: dict[str, Upload]) -> None:
    left, right = next(iter(uploads["1"].change.values()))
    path = next(iter(uploads["1"].change))
    mad = replace(uploads["1"], change={**uploads["1"].change, path: (left * math.nan, right)})
    odd = replace(uploads["2"], change={**uploads["2"].change, path: (left[:3], right)})
    change, refused = joined(wanted, {}, {"mad": mad, "0": uploads["0"], "odd": odd, "3": uploads["3"]})
    assert refused == {"mad": f"{path} is not finite", "odd": f"{path} has factors of [3, 8] and [8, 64]"}
    torch.testing.assert_close(product(change), mean({name: uploads[name] for name in "03"}), rtol=1e-5, atol=1e-9)
    with pytest.raises(TrimtabError, match=r"no client's change can be used \(mad: .*q_proj is not finite\)"):
        joined(wanted, change, {"mad": mad})


def test_whoever_answers_first_does_not_say_which_layers_there_are(wanted: Layers, uploads: dict[str, Upload]) -> None:
    empty, one = replace(uploads["1"], change={}), dict([next(iter(uploads["2"].change.items()))])
    few = replace(uploads["2"], change=one)
    change, refused = joined(wanted, {}, {"empty": empty, "few": few, "3": uploads["3"]})
    assert refused == dict.fromkeys(("empty", "few"), "its layers are not those of the model")
    torch.testing.assert_close(product(change), product(uploads["3"].change))


def test_all_begin_a_round_at_the_same_factors(terms: Terms, clients: list[Client]) -> None:
    still = replace(terms, course=replace(COURSE, steps=1, learning_rate=1e-30))
    small, large = (learn(still, clients[number], number, 1, {}).change for number in (0, 3))
    for path, (_, right) in small.items():
        torch.testing.assert_close(right, large[path][1][: RANKS[0]], rtol=0, atol=1e-7)
    other = learn(still, clients[0], 0, 2, {}).change
    assert all(not torch.allclose(right, other[path][1], atol=1e-3) for path, (_, right) in small.items()), "another round"


def test_a_second_round_goes_on_from_the_first(
    terms: Terms, clients: list[Client], wanted: Layers, uploads: dict[str, Upload]
) -> None:
    first, _ = joined(wanted, {}, uploads)
    again = {"0": learn(terms, clients[0], 0, 2, first)}
    second, _ = joined(wanted, first, again)
    torch.testing.assert_close(product(second), product(first) + product(again["0"].change), rtol=1e-5, atol=1e-8)


def test_the_change_is_an_adapter_that_opens(terms: Terms, wanted: Layers, uploads: dict[str, Upload], tmp_path: Path) -> None:
    change, _ = joined(wanted, {}, uploads)
    write(tmp_path / "adapter", terms, change)
    beside, plain = (tt.load(terms.model, adapter=folder)[0] for folder in (tmp_path / "adapter", None))
    for path, (left, right) in change.items():
        layer = plain.get_submodule(path)
        layer.weight.data += left @ right
    with torch.no_grad():
        torch.testing.assert_close(beside(tokens(plain)).logits, plain(tokens(plain)).logits, rtol=1e-4, atol=1e-5)


def test_flower_carries_it(terms: Terms, clients: list[Client], tmp_path: Path) -> None:
    """One of the four has no data to read and falls out of every round."""
    pytest.importorskip("ray")
    pytest.importorskip("flwr")
    from trimtab.host.flower import simulate

    change, refused = simulate(terms, [*clients[:3], Client(str(tmp_path / "missing.jsonl"), 8)], rounds=2)
    assert refused == [{}, {}]
    assert {left.shape[1] for left, _ in change.values()} == {2 * sum(RANKS[:3])}
    assert torch.isfinite(product(change)).all()


@pytest.mark.parametrize("by", [stacked, averaged])
def test_flower_comes_to_what_was_computed_without_it(
    terms: Terms, clients: list[Client], wanted: Layers, uploads: dict[str, Upload], by: Joining
) -> None:
    """Four ranks, stacked and, to compare with, averaged; the client of rank 8 sends numbers that are not finite."""
    pytest.importorskip("ray")
    pytest.importorskip("flwr")
    from flwr.app import ArrayRecord, Context, Message
    from flwr.clientapp import ClientApp

    from trimtab.host.flower import client_app, simulate

    app, own = ClientApp(), client_app(terms, clients)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        reply = own(message, context)
        if int(context.node_config["partition-id"]) == 1:
            spoiled = {name: math.nan * one for name, one in reply.content["arrays"].to_torch_state_dict().items()}
            reply.content["arrays"] = ArrayRecord(spoiled)
        return reply

    change, (refused,) = simulate(terms, clients, 1, by, app)
    assert [why.endswith("is not finite") for why in refused.values()] == [True]
    sane = {name: upload for name, upload in uploads.items() if name != "1"}
    expected, _ = joined(wanted, {}, sane, by)
    torch.testing.assert_close(product(change), product(expected), rtol=1e-4, atol=1e-7)
    error = float((product(change) - mean(sane)).norm() / mean(sane).norm())
    assert error < 1e-4 if by is stacked else error > 0.1


def test_an_answer_that_is_no_change_is_left_out(wanted: Layers, uploads: dict[str, Upload]) -> None:
    pytest.importorskip("flwr")
    from flwr.app import ArrayRecord, Message, Metadata, MetricRecord, RecordDict

    from trimtab.host.flower import Flora

    sent = {path + side: one for path, both in uploads["3"].change.items() for side, one in zip(ENDS, both, strict=True)}
    rows = MetricRecord({"num-examples": uploads["3"].rows})
    half = {name: one for name, one in sent.items() if not name.endswith("q_proj.right")}
    contents = [
        {"arrays": ArrayRecord(sent), "metrics": rows},
        {"arrays": ArrayRecord(half), "metrics": rows},
        {"arrays": ArrayRecord(sent), "metrics": MetricRecord({})},
        {},
    ]
    envelopes = (Metadata(0, "", number, 0, "", "", 0.0, 1.0, "train") for number in range(len(contents)))
    sent_back = (Message(metadata=envelope, content=RecordDict(c)) for envelope, c in zip(envelopes, contents, strict=True))
    strategy = Flora(wanted)
    strategy.aggregate_train(1, sent_back)
    assert [*strategy.refused[0]] == ["1", "2", "3"]
    assert all(why.startswith("its answer cannot be read: ") for why in strategy.refused[0].values())
    torch.testing.assert_close(product(strategy.change), product(uploads["3"].change))
