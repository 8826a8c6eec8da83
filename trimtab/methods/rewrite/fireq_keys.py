"""FireQ keys: both channels of a rotary pair get one scale, so that no pair stands out; queries take it back.

    k_i / r_p,  q_i r_p  for both i of pair p = (i, i + width / 2),   r_p = (the louder channel's root mean square)^strength,

a head's r divided by their geometric mean. One factor for a pair commutes with the rotation, so rows of the two matrices hold it
and the model says the same; what gains is a cache with few bits for keys (`--kv-bits 4`), where the channels of a head share a
scale. Weights on grids of their own rows do not notice.
arXiv:2505.20839, its scaling before the rotary embedding. Reconstructed: loudness is the root mean square over tokens, of which
the variance is that of uncorrelated inputs, where the paper takes the largest number seen. Left out: its scaling of single
channels after the rotation, which is multiplied while the model runs. Heads whose keys go through a norm, or come from a fused
projection, are refused; pairs of neighbours (i, i + 1) are found out when the result is compared.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.edits import Edits, SetParam, SetWeight
from trimtab.core.errors import ModelError
from trimtab.core.kinds import ModelMethod, Seen
from trimtab.core.knobs import rate
from trimtab.core.places import Member, Role, Site, Unit
from trimtab.formats import Dense
from trimtab.formats.plain import plain
from trimtab.stats import Moments

if TYPE_CHECKING:
    from trimtab.anatomy import Anatomy


@dataclass(frozen=True)
class FireQKeys(ModelMethod):
    card: ClassVar = Card(
        id="fireq_keys",
        title="FireQ: Fast INT4-FP8 Kernel and RoPE-aware Quantization for LLM Inference Acceleration",
        paper="arXiv:2505.20839",
        fidelity="reconstructed",
        beside=("fireq", "smoothquant", "quarot"),
        claims=(
            Claim(
                "the-whole-recipe-beats-8-bit-integers",
                "smoothquant(alpha=0.0) -> fireq_keys -> fireq",
                "<",
                "rtn(bits=4, symmetric=True) -> act_quant(bits=8)",
                note="keys are not rounded here; what they gain is read off benchmarks/activations.py",
                model="asset:own-5m-outliers",
            ),
        ),
    )
    needs: ClassVar = (Moments,)
    preserves: ClassVar = True

    strength: float = rate("1 = all pairs of a head equally loud, 0 = as they are", 1.0)

    def rewrite(self, anatomy: "Anatomy", seen: Seen) -> Edits:
        edits: Edits = []
        for coupling in anatomy.couplings():
            roles = {member.site.role: member for member in coupling.members}
            if coupling.unit is not Unit.KV_GROUP or not {Role.Q, Role.K} <= roles.keys():
                continue
            query, key = roles[Role.Q], roles[Role.K]
            _check_heads(anatomy, key)
            scale = self._scale(anatomy, key, seen[Moments])  # [groups, width]
            queries = scale[:, None].expand(-1, query.indices.shape[1] // scale.shape[1], -1).flatten(1)
            edits += _scaled(anatomy, key, 1 / scale) + _scaled(anatomy, query, queries)
        if not edits:
            raise ModelError("fireq_keys: this model has no query and key matrices of their own; leave it out")
        return edits

    def _scale(self, anatomy: "Anatomy", key: Member, moments: Mapping[Site, Tensor]) -> Tensor:
        """[groups, width] float64, what keys are divided by."""
        weight, bias = plain(anatomy.weight(key.site)).double(), anatomy.bias(key.site)
        mean, variance = moments[key.site]
        middle = weight @ mean + (0.0 if bias is None else bias.detach().double())
        squares = (weight.square() @ variance + middle.square())[key.indices]
        loudest = squares.unflatten(1, (2, -1)).amax(1).sqrt()  # [groups, pairs]
        level = loudest.where(loudest > 0, 1.0).log()
        even = (self.strength * (level - level.mean(1, keepdim=True))).exp()
        return even.where(loudest > 0, 1.0).repeat(1, 2)


def _check_heads(anatomy: "Anatomy", key: Member) -> None:
    """Raises `ModelError` where pairs cannot have a scale of their own."""
    attention = anatomy.model.get_submodule(key.site.path.rpartition(".")[0])
    sites = {site.path for site in anatomy.sites}
    between = [path for path, module in attention.named_modules() if path and f"{_path(key)}.{path}" not in sites]
    weighed = [path for path in between if any(True for _ in attention.get_submodule(path).parameters(recurse=False))]
    if weighed:
        raise ModelError(f"fireq_keys: keys go through {_path(key)}.{weighed[0]}, which undoes a scale; leave it out")
    if key.indices.shape[1] % 2:
        raise ModelError(f"fireq_keys: heads of {key.site.name} are {key.indices.shape[1]} wide, which makes no pairs")


def _path(key: Member) -> str:
    return key.site.path.rpartition(".")[0]


def _scaled(anatomy: "Anatomy", member: Member, scale: Tensor) -> Edits:
    """Rows multiplied by scale [units, per_unit], and the bias with them."""
    site, stored = member.site, plain(anatomy.weight(member.site))
    rows = torch.ones(site.shape[0], dtype=torch.float64, device=stored.device)
    rows[member.indices.to(stored.device).flatten()] = scale.to(stored.device).flatten()
    edits: Edits = [SetWeight(site, Dense((stored.double() * rows[:, None]).to(stored.dtype)))]
    bias = anatomy.bias(site)
    return edits if bias is None else [*edits, SetParam(f"{site.path}.bias", bias.detach().double() * rows)]
