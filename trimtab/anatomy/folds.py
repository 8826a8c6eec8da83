"""Where a scale can move from one matrix to another without a change of the function.

Behind a norm: its gain is divided, the columns of all matrices that read it are multiplied. Between two matrices: rows of the
first are divided, columns of the second multiplied, if what stands between them is proportional to the rows. That is asked
of the code on a bench, row by row: double one output, and see which inputs double exactly. Values before the attention
output do, whichever heads share them, and `up` behind a gate; so does a rectifier (ReLU), and neither GELU nor a gate does.

An activation that bends can look straight at one number, and one that clips at all small ones; so a row has to be
proportional at several sizes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trimtab.anatomy.bench import Bench
from trimtab.anatomy.branches import Question, answered
from trimtab.core.places import Fold, Gain, Role, Rows, Site

if TYPE_CHECKING:
    from trimtab.anatomy.anatomy import Anatomy

_SIZES = (0.5, 1.0, 2.0, 100.0)
_ROUNDS = 40  # a rectifier silences every other draw
_EXACT = 1e-4  # norms and softmaxes compute in float32
_EXPERT_READERS = (Role.GATE, Role.UP, Role.GATE_UP)


def find_folds(anatomy: Anatomy) -> tuple[Fold, ...]:
    """All folds inside the blocks, in forward order. Raises `ModelError` as the search for couplings does."""
    found = [*_behind_norms(anatomy), *_between_matrices(anatomy)]
    order = {site: place for place, site in enumerate(anatomy.sites)}
    return tuple(sorted(found, key=lambda fold: order[fold.consumers[0]]))


def _behind_norms(anatomy: Anatomy) -> Iterator[Fold]:
    for norm in anatomy.norms():
        blocks = {site.block for site in norm.feeds}
        if len(blocks) == 1 and None not in blocks and not _has_unseen_readers(anatomy, norm.feeds):
            yield Fold(norm.feeds, Gain(norm.path, norm.offset))


def _has_unseen_readers(anatomy: Anatomy, feeds: tuple[Site, ...]) -> bool:
    """Does the norm feed a router, and may that send tokens to an expert which read nothing when the model was looked at?"""
    if not any(site.role is Role.ROUTER for site in feeds):
        return False
    return any(s.role in _EXPERT_READERS and s not in feeds for s in anatomy.block_sites(feeds[0].block or 0))


def _between_matrices(anatomy: Anatomy) -> Iterator[Fold]:
    for branch, answer in answered(anatomy.model, anatomy.sites, _proportional):
        if answer is None:
            continue
        number, rows = answer
        producer = branch.producers[number]
        # The biases of stacked experts cannot be set one by one.
        if producer.index is None or anatomy.bias(producer) is None:
            yield Fold((branch.consumer,), Rows(producer, rows))


def _proportional(question: Question) -> tuple[int, Tensor] | None:
    """Which producer makes all inputs of the consumer, and the row [in] that each is proportional to. The last one first:
    where a rectified gate would do as well, it is left alone."""
    for number, producer in reversed(list(enumerate(question.producers))):
        rows = _rows_of(question.bench, producer, question.consumer)
        if bool((rows >= 0).all()):
            return number, rows
    return None


def _rows_of(bench: Bench, producer: Site, consumer: Site) -> Tensor:
    """[in] the row of the producer that every input of the consumer is proportional to, -1 if there is none."""
    straight = torch.arange(producer.shape[0])
    rows, columns = [], []
    for size in _SIZES:
        waiting, done = straight, []
        for _ in range(_ROUNDS):
            silent = [waiting[:0]]
            for some in torch.split(waiting, bench.at_once(producer, consumer)):
                factor = bench.grown(producer, some, consumer, size)
                doubled = (factor - 2).abs() < _EXACT
                fine = (doubled | ((factor - 1).abs() < _EXACT) | (factor == 0)).all(1)
                lane, column = doubled.nonzero(as_tuple=True)
                rows.append(some[lane])
                columns.append(column)
                done.append(some[fine & doubled.any(1)])
                silent.append(some[fine & ~doubled.any(1)])
            waiting = torch.cat(silent)
            if not len(waiting):
                break
        straight = torch.cat(done).sort().values if done else straight[:0]
    owner = torch.full((consumer.shape[1],), -1)
    row, column = torch.cat(rows), torch.cat(columns)
    kept = torch.isin(row, straight)
    return owner.scatter_reduce(0, column[kept], row[kept], "amax")
