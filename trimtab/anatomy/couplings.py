"""Which channels can only vanish together, asked by nudging.

Within a branch (queries, keys and values before the attention output; gate and up before down), an output row of a
producer is nudged, and the inputs of the consumer that move are its columns. Rows and columns that are linked, directly or
through others, are one unit: row i of gate and up with column i of down, or a whole group of heads around one key-value
head. Any layout that the branch's code unpacks comes out right: grouped queries, fused and interleaved projections,
experts.

Where a norm runs over the full width of the queries or keys, every head moves every other: the branch comes out as a
*single* unit, and a coupling of one unit cannot be narrowed. Matrices of role OTHER, keys and values taken over from
another block, and the residual stream itself take part in no coupling.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trimtab.anatomy.bench import Bench
from trimtab.anatomy.branches import Branch, Question, answered
from trimtab.core.errors import ModelError
from trimtab.core.places import Coupling, Member, Site

# A nudge may meet a unit that an activation holds at zero; with random numbers drawn anew, one in two meets it awake.
_ROUNDS = 40


def find_couplings(model: nn.Module, sites: Sequence[Site]) -> tuple[Coupling, ...]:
    """All couplings in forward order. Runs the model once, and asks every distinct kind of branch once.

    `ModelError` where the units of a branch are not all of one size.
    """
    found = []
    for branch, units in answered(model, sites, _units_of):
        members = [Member(site, "rows", rows) for site, rows in zip(branch.producers, units, strict=False)]
        members.append(Member(branch.consumer, "columns", units[-1]))
        found.append(Coupling(branch.name, branch.consumer.block or 0, branch.unit, tuple(members)))
    return tuple(found)


def _units_of(question: Question) -> list[Tensor]:
    """[units, per_unit] indices for every producer, then for the consumer."""
    links = [_links(question.bench, producer, question.consumer) for producer in question.producers]
    return _units(links, question.branch)


def _units(links: Sequence[tuple[Tensor, Tensor]], branch: Branch) -> list[Tensor]:
    """[units, per_unit] for every producer, then for the consumer, from the (rows, columns) that each producer moves."""
    sizes = [branch.consumer.shape[1], *(producer.shape[0] for producer in branch.producers)]
    starts = torch.tensor(sizes).cumsum(0).tolist()
    edges = [torch.stack([rows + start, columns]) for start, (rows, columns) in zip(starts, links, strict=False)]
    label = _components(torch.cat(edges, 1), sum(sizes))
    if bool((label >= sizes[0]).any()):
        raise ModelError(f"{branch.name}: some outputs never reach {branch.consumer.name}, so its channels have no units")
    # Columns come first among the nodes, so the smallest node of a unit is its first column, and units are in its order.
    names, number = torch.unique(label, return_inverse=True)
    consumer, *producers = (_members(part, len(names), branch) for part in torch.split(number, sizes))
    return [*producers, consumer]


def _links(bench: Bench, producer: Site, consumer: Site) -> tuple[Tensor, Tensor]:
    """Rows of the producer and the columns that they move, as two lists of equal length."""
    waiting, rows, columns = torch.arange(producer.shape[0]), [], []
    for _ in range(_ROUNDS):
        silent = []
        for some in torch.split(waiting, bench.at_once(producer, consumer)):
            moved = bench.moved(producer, some, consumer)
            lane, column = moved.nonzero(as_tuple=True)
            rows.append(some[lane])
            columns.append(column)
            silent.append(some[~moved.any(1)])
        waiting = torch.cat(silent)
        if not len(waiting):
            break
    return torch.cat(rows), torch.cat(columns)


def _components(links: Tensor, nodes: int) -> Tensor:
    """[nodes] the smallest node that each node is connected with. links: [2, count]."""
    label = torch.arange(nodes)
    while True:
        least = label[links].amin(0)
        new = label.scatter_reduce(0, links[0], least, "amin").scatter_reduce(0, links[1], least, "amin")
        if torch.equal(new, label):
            return label
        label = new


def _members(unit: Tensor, count: int, branch: Branch) -> Tensor:
    """[count, per_unit] the indices of each unit, ascending."""
    counts = torch.bincount(unit, minlength=count)
    if bool((counts != counts[0]).any()):
        raise ModelError(f"{branch.name}: its units are of unequal size, so it cannot be narrowed")
    return unit.argsort(stable=True).reshape(count, -1)
