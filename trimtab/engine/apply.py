"""The only code that changes a model. Methods propose edits; here they happen, and nowhere else."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.anatomy import Anatomy
from trimtab.anatomy.sites import is_tied
from trimtab.core.edits import Arrange, DropBlock, Edits, Narrow, NarrowStream, OnBasis, SetParam, SetWeight, Share, Tie, Untie
from trimtab.core.errors import ModelError
from trimtab.core.kinds import LinearWeight
from trimtab.core.places import Member, Role
from trimtab.engine.basis import lend, write_out_bases
from trimtab.engine.shared import share, write_out
from trimtab.engine.surgery import place
from trimtab.formats import NM, Dense, Masked
from trimtab.formats.plain import plain


def apply(anatomy: Anatomy, edits: Edits, packed: bool = False) -> None:
    """Carry out edits on `anatomy.model`, in order. Afterwards the anatomy is stale if shapes or blocks changed.

    packed: keep sparse weights in their own container; otherwise they become plain matrices with zeros.
    """
    for edit in edits:
        match edit:
            case SetWeight():
                _set_weight(anatomy, edit, packed)
            case SetParam():
                _set_param(anatomy.model, edit)
            case Narrow():
                _narrow(anatomy, edit)
            case Untie():
                _untie(anatomy)
            case Tie():
                _tie(anatomy)
            case NarrowStream():
                _narrow_stream(anatomy, edit.width)
            case Arrange():
                write_out_bases(anatomy.model)
                write_out(anatomy.model)
                _arrange(anatomy, edit.blocks)
            case Share():
                _share(anatomy, edit)
            case OnBasis():
                _put_on_basis(anatomy, edit)
            case DropBlock():
                pass  # all at once below: their indices are those before the edit
    dropped = [e.block for e in edits if isinstance(e, DropBlock)]
    if dropped:
        _drop(anatomy, dropped)


def _set_weight(anatomy: Anatomy, edit: SetWeight, packed: bool) -> None:
    site = edit.site
    model: Any = anatomy.model
    if site.role is Role.HEAD and anatomy.tied and model.config.tie_word_embeddings:
        raise ModelError(f"{site.name} shares the embedding's matrix; it cannot be changed alone: untie it or leave it out")
    weight: LinearWeight = edit.weight
    if isinstance(weight, Masked | NM) and not packed:
        weight = Dense(plain(weight))
    place(model, site.path, weight, anatomy.bias(site), site.transposed, site.index)


def _set_param(model: nn.Module, edit: SetParam) -> None:
    path, _, name = edit.path.rpartition(".")
    module = model.get_submodule(path)
    old = getattr(module, name, None)
    like = old if isinstance(old, Tensor) else next(model.parameters())
    value = edit.value.to(like.device, like.dtype).contiguous()
    setattr(module, name, nn.Parameter(value, requires_grad=like.requires_grad))


def _narrow(anatomy: Anatomy, edit: Narrow) -> None:
    for member in edit.coupling.members:
        if member.site.index is not None:
            raise ModelError(f"{member.site.name}: experts live in one tensor; their neurons cannot be removed one by one")
        weight = anatomy.weight(member.site)
        if not isinstance(weight, Dense):
            raise ModelError(f"{member.site.name} is {type(weight).__name__}; channels can only be removed from plain matrices")
        kept = _kept(member, edit.keep)
        matrix, bias = weight.weight, anatomy.bias(member.site)
        if member.axis == "rows":
            matrix, bias = matrix[kept], None if bias is None else bias[kept]
        else:
            matrix = matrix[:, kept]
        place(anatomy.model, member.site.path, Dense(matrix.clone()), bias, member.site.transposed)


def _kept(member: Member, keep: Tensor) -> Tensor:
    """Positions along the member's axis that survive, ascending."""
    size = member.site.shape[0 if member.axis == "rows" else 1]
    alive = torch.ones(size, dtype=torch.bool)
    alive[member.indices[~keep.cpu()].flatten()] = False
    return alive.nonzero().flatten()


def _share(anatomy: Anatomy, edit: Share) -> None:
    """Matrix by matrix, those of the same name. Raises `ModelError` where the blocks are not made alike."""
    mine, theirs = (f"{anatomy.blocks_path}.{block}." for block in (edit.block, edit.source))
    own = {site.path.removeprefix(mine): site for site in anatomy.block_sites(edit.block)}
    other = {site.path.removeprefix(theirs): site for site in anatomy.block_sites(edit.source)}
    for name in sorted(own.keys() | other.keys()):
        here, there = own.get(name), other.get(name)
        if here is None or there is None or here.index is not None or here.role is Role.ROUTER or here.shape != there.shape:
            raise ModelError(
                f"block {edit.block} cannot use the matrices of block {edit.source}: {name} is not alike, or an expert's"
            )
    for name in own:
        share(anatomy.model, mine + name, theirs + name)


def _put_on_basis(anatomy: Anatomy, edit: OnBasis) -> None:
    site = edit.site
    if site.index is not None or edit.source.index is not None:
        raise ModelError(f"{site.name}: experts live in one tensor; they cannot stand on the basis of another matrix")
    place(anatomy.model, site.path, Dense(edit.left), anatomy.bias(site))
    # An ordinary layer by now, also where a transposed one stood.
    lend(anatomy.model, site.path, edit.source.path, anatomy.model.get_submodule(site.path))


def _untie(anatomy: Anatomy) -> None:
    head = next(s for s in anatomy.sites if s.role is Role.HEAD)
    model: Any = anatomy.model
    module = model.get_submodule(head.path)
    model.config.tie_word_embeddings = False
    module.weight = nn.Parameter(module.weight.detach().clone())
    model.all_tied_weights_keys = {}  # the host asks this, not the config, when it saves


def _tie(anatomy: Anatomy) -> None:
    model: Any = anatomy.model
    model.config.tie_word_embeddings = True
    model.tie_weights()
    if not is_tied(model):
        model.config.tie_word_embeddings = False
        raise ModelError("this model family knows no tie between embedding and head; both stay as they are")


def _narrow_stream(anatomy: Anatomy, width: int) -> None:
    """The config and the embedding; the width of a head stays what it was, also where it followed from the stream's."""
    model: Any = anatomy.model
    config = model.config.get_text_config()
    config.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    config.hidden_size = width
    embedding = model.get_input_embeddings()
    embedding.weight = nn.Parameter(embedding.weight.detach()[:, :width].clone())
    embedding.embedding_dim = width


def _drop(anatomy: Anatomy, dropped: Sequence[int]) -> None:
    for block in dropped:  # others may use what goes
        write_out_bases(anatomy.model, f"{anatomy.blocks_path}.{block}.")
        write_out(anatomy.model, f"{anatomy.blocks_path}.{block}.")
    _arrange(anatomy, [i for i in range(len(anatomy.blocks)) if i not in set(dropped)])


def _arrange(anatomy: Anatomy, order: Sequence[int]) -> None:
    """Put blocks in this order, renumber them (the cache index), and do the same to every per-layer list of the config."""
    model: Any = anatomy.model
    count = len(anatomy.blocks)
    parent, _, name = anatomy.blocks_path.rpartition(".")
    first = {block: place for place, block in reversed(list(enumerate(order)))}
    found = (anatomy.blocks[i] if first[i] == place else deepcopy(anatomy.blocks[i]) for place, i in enumerate(order))
    blocks = nn.ModuleList(found)
    setattr(model.get_submodule(parent), name, blocks)
    for index, block in enumerate(blocks):
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index
    config = model.config.get_text_config()
    for key, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == count and not key.startswith("_"):
            setattr(config, key, [value[i] for i in order])
    config.num_hidden_layers = len(order)
