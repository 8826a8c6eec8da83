"""`host/federated.py` carried by Flower: a strategy for its server, an app for its clients, and both on this machine.

The strategy is Flower's federated averaging with another way to put replies together. Replies that are errors (a client that
fell out) never get there; what is in the others is checked before it counts. Flower sends reports of use home unless
FLWR_TELEMETRY_ENABLED=0 is set, which `simulate` does.
"""

import logging
import os
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from trimtab.core.errors import TrimtabError, UsageError
from trimtab.host.federated import Change, Client, Joining, Layers, Terms, Upload, joined, layers, learn
from trimtab.tensors.federated import stacked

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
try:
    from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation
except ImportError as error:
    raise UsageError('flwr is not installed; write pip install "trimtab[federated]"') from error

LEFT, RIGHT = ".left", ".right"
LOG = logging.getLogger(__name__)


class Flora(FedAvg):  # type: ignore[misc]
    """Federated averaging in which changes are stacked. wanted: layers that are changed; by: another way to make them one."""

    def __init__(self, wanted: Layers, by: Joining = stacked, **options: Any):
        super().__init__(fraction_evaluate=0.0, **options)
        self.wanted, self.by = wanted, by
        self.change: Change = {}
        self.refused: list[dict[str, str]] = []  # by round: clients whose uploads were left out, and why

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        uploads, unread = _uploads(reply for reply in replies if not reply.has_error())
        try:
            self.change, refused = joined(self.wanted, self.change, uploads, self.by)
        except TrimtabError as error:
            LOG.warning("round %d: %s", server_round, error)
            return None, None
        self.refused.append(unread | refused)
        return _record(self.change), None


def client_app(terms: Terms, clients: Sequence[Client]) -> ClientApp:
    """Plays the client whose number Flower gives as the partition."""
    app = ClientApp()

    @app.train()  # type: ignore[untyped-decorator]
    def train(message: Message, context: Context) -> Message:
        number, turn = int(context.node_config["partition-id"]), int(message.content["config"]["server-round"])
        upload = learn(terms, clients[number], number, turn, _change(message.content["arrays"]))
        content = {"arrays": _record(upload.change), "metrics": MetricRecord({"num-examples": upload.rows})}
        return Message(content=RecordDict(content), reply_to=message)

    return app


def simulate(
    terms: Terms, clients: Sequence[Client], rounds: int = 3, by: Joining = stacked, app: ClientApp | None = None
) -> tuple[Change, list[dict[str, str]]]:
    """(the change after some rounds on this machine, by round the clients that were left out and why).

    by: how changes of a layer become one. app: what plays the clients, `client_app` by default.
    Raises `TrimtabError` where no round brought a change.
    """
    strategy = Flora(layers(terms), by, min_train_nodes=len(clients), min_available_nodes=len(clients))
    server = ServerApp()

    @server.main()  # type: ignore[untyped-decorator]
    def main(grid: Grid, context: Context) -> None:
        strategy.start(grid, ArrayRecord(), num_rounds=rounds)

    run_simulation(server, app or client_app(terms, clients), num_supernodes=len(clients))
    if not strategy.change:
        raise TrimtabError("no round brought a change that can be used; what the clients said is in Flower's log")
    return strategy.change, strategy.refused


def _uploads(replies: Iterable[Message]) -> tuple[dict[str, Upload], dict[str, str]]:
    """(by name of the client, why others cannot be read)"""
    found: dict[str, Upload] = {}
    unread: dict[str, str] = {}
    for reply in replies:
        name = str(reply.metadata.src_node_id)
        try:
            found[name] = _upload(reply)
        except (KeyError, TypeError, ValueError) as error:  # whatever a client can send instead of a change and a number
            unread[name] = f"its answer cannot be read: {error!r:.200}"
    return found, unread


def _upload(reply: Message) -> Upload:
    return Upload(_change(reply.content["arrays"]), int(reply.content["metrics"]["num-examples"]))


def _record(change: Change) -> ArrayRecord:
    tensors: dict[str, Tensor] = {}
    for path, (left, right) in change.items():
        tensors |= {path + LEFT: left.contiguous(), path + RIGHT: right.contiguous()}
    return ArrayRecord(tensors)


def _change(record: ArrayRecord) -> Change:
    """Raises KeyError where one factor of a layer is missing."""
    tensors = record.to_torch_state_dict()
    return {
        name.removesuffix(LEFT): (value, tensors[name.removesuffix(LEFT) + RIGHT])
        for name, value in tensors.items()
        if name.endswith(LEFT)
    }
