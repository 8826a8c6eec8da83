"""`trimtab methods`: what there is, and everything about one of them."""

import inspect
import sys
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.cli import complete, show
from trimtab.cli.options import Json, Verbose
from trimtab.cli.request import knob_rows

if TYPE_CHECKING:
    from trimtab.core.kinds import Method

LEDGER = Path("claims/ledger.jsonl")
CLAIM_FIELDS = ("name", "left", "relation", "right", "published")
Ledger = Annotated[Path, typer.Option(help="Results of claims; LEDGER.md lies beside it.")]


def register(app: typer.Typer) -> None:
    app.command("methods")(methods)


def methods(
    id: Annotated[
        str | None,
        typer.Argument(metavar="[ID]", help="One method, in full.", show_default=False, autocompletion=complete.method),
    ] = None,
    ledger: Ledger = LEDGER,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """List the methods by room, or show one with its knobs and claims."""
    from trimtab.core.registry import get, ids

    if id is not None:
        method = get(id)
        show.as_json(_full(method, _statuses(ledger))) if json else _tell(method)
    elif json:
        known = _statuses(ledger)
        show.as_json([_entry(get(name), known) for name in ids()])
    else:
        _list([get(name) for name in ids()])


def _list(found: "list[type[Method]]") -> None:
    from trimtab.core.registry import kind, room

    ranked = sorted(found, key=lambda method: (room(method.card.id), method.card.id))
    rows = []
    for place, group in groupby(ranked, key=lambda method: room(method.card.id)):
        for number, method in enumerate(group):
            card = method.card
            rows.append(("" if number else place, card.id, kind(method), card.fidelity, f"{card.title} ({card.paper})"))
    show.table(("room", "id", "kind", "fidelity", "title and paper"), rows)


def _tell(method: "type[Method]") -> None:
    from trimtab.core.registry import kind, room

    card = method.card
    typer.echo(f"{card.id}: {card.title}\n{card.paper}; {room(card.id)}, {kind(method)}, {card.fidelity}\n\n{_doc(method)}\n")
    show.table(("knob", "default", "values", "what it is"), knob_rows(method), title="knobs")
    for claim in card.claims:
        said = "; ".join(filter(None, (claim.published, claim.note)))
        typer.echo(f"claim {claim.name}: {claim.left} {claim.relation} {claim.right}{f' ({said})' if said else ''}")
    if card.beside:
        typer.echo(f"see also: {', '.join(card.beside)}")


def _entry(method: "type[Method]", statuses: dict[tuple[str, str], str]) -> dict[str, Any]:
    from trimtab.core.registry import kind, room

    card = method.card
    claims = []
    for claim in card.claims:
        line = {name: getattr(claim, name) for name in CLAIM_FIELDS}
        status = statuses.get((card.id, claim.name))
        claims.append(line if status is None else {**line, "status": status})
    said = {"id": card.id, "room": room(card.id), "kind": kind(method), "title": card.title, "paper": card.paper}
    return {**said, "fidelity": card.fidelity, "claims": claims, "knobs": _knobs(method)}


def _full(method: "type[Method]", statuses: dict[tuple[str, str], str]) -> dict[str, Any]:
    return {**_entry(method, statuses), "doc": _doc(method)}


def _knobs(method: "type[Method]") -> list[dict[str, Any]]:
    from trimtab.core.knobs import defaults, knobs

    standard = defaults(method)
    declared = {name: {**asdict(knob), "type": knob.type.__name__} for name, knob in knobs(method).items()}
    spelled = [{"name": name, "default": standard.get(name), **knob} for name, knob in declared.items()]
    for knob in spelled:
        del knob["parse"]
    return spelled


def _doc(method: type) -> str:
    """A method's file explains it in its docstring; the class has none."""
    return inspect.cleandoc(sys.modules[method.__module__].__doc__ or "")


def _statuses(ledger: Path) -> dict[tuple[str, str], str]:
    """The last result of every claim that was ever run; reading them takes seconds, so only if there are any."""
    if not ledger.exists():
        return {}
    from trimtab.measure.ledger import latest, read

    return {key: line["status"] for key, line in latest(read(ledger)).items()}
