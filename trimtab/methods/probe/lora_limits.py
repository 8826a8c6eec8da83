"""LoRA limits: would attention's gradient, and so LoRA's, have an almost linear algorithm on this model?

Per head, Gamma = d^(1/4) * max(|X Wq|_max, |X Wk|_max), where d^(1/4) brings softmax(q k / sqrt(d)) into the form of the theory,
in which the exponent is divided by d. Below sqrt(log L) LoRA's gradient can be approximated in time L^(1 + o(1)); above it no
truly subquadratic algorithm exists unless the strong exponential time hypothesis fails. The constructive side: exp is replaced
by its Taylor polynomial of the least degree g that keeps every entry within the relative error `error` on [-B, B],
B = sqrt(d) |q|_max |k|_max; its features number C(d + g, g), and the cost against exact attention is features / L.
arXiv:2406.03136; the constants are reconstructed, an asymptotic statement has none. Before the rotation of queries and keys,
which keeps their length and moves an entry by at most sqrt(2). Read from separate query and key matrices whose heads are found by
their couplings; where a family fuses them, or normalises heads, that is said and nothing is measured.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.errors import ModelError
from trimtab.core.kinds import Finding, ProbeMethod, Subject
from trimtab.core.knobs import rate
from trimtab.core.places import Coupling, Member, Role, Unit

FAR = 1e5  # no exponent beyond it is worth a polynomial: its degree would be larger still


@dataclass(frozen=True)
class LoraLimits(ProbeMethod):
    card: ClassVar = Card(
        id="lora_limits",
        title="Computational Limits of Low-Rank Adaptation for Transformer-Based Models",
        paper="arXiv:2406.03136",
        fidelity="reconstructed",
        claims=(
            Claim(
                "no-head-is-below-the-threshold",
                "lora_limits: Gamma least",
                ">",
                "1",
                metric="finding",
                published="a theorem with a threshold, no models measured",
                note="of every block the head that is nearest to the fast regime, in units of sqrt(log L)",
            ),
            Claim(
                "polynomials-cost-more-than-attention",
                "lora_limits: features/L",
                ">",
                "0",
                metric="finding",
                note="of every block the cheapest head, log10 of features over tokens; at 0 exact attention costs as much",
            ),
        ),
    )

    error: float = rate("relative error allowed in every entry of exp", 0.01, 1e-12, 1.0)

    def measure(self, subject: Subject) -> list[Finding]:
        heads, why = _heads(subject)
        rows: list[list[dict[str, float]]] = []
        for block in subject.blocks():
            known = heads.get(block)
            windows = range(subject.windows)
            rows.append([self._look(subject, block, w, *known) if known else {} for w in windows])
        read = {block: int(query.indices.numel() // key.indices.shape[1]) for block, (query, key) in heads.items()}
        n = subject.windows * max(read.values(), default=0)
        about = dict.fromkeys(("Gamma largest", "Gamma least"), ("sqrt(log L)", n))
        about |= {"degree": ("", n), "features/L": ("log10", n), "fast heads": ("fraction", n)}
        found = Finding.columns(rows, about)
        found["Gamma largest"] = found["Gamma largest"].saying(_verdict(found, sum(read.values()), why))
        return list(found.values())

    def _look(self, subject: Subject, block: int, window: int, query: Member, key: Member) -> dict[str, float]:
        length = len(subject.hidden(block, window))
        size = key.indices.shape[1]  # of one head
        largest_query, largest_key = _largest(subject, block, window, query, key)
        gamma = size**0.25 * torch.maximum(largest_query, largest_key) / math.sqrt(math.log(length))  # [groups, heads]
        bound = (math.sqrt(size) * largest_query * largest_key).flatten().tolist()
        degrees = [degree(one, self.error) for one in bound]
        costs = [log_features(size, one) - math.log10(length) for one in degrees]
        fast = [g <= 1 and cost < 0 for g, cost in zip(gamma.flatten().tolist(), costs, strict=True)]
        return {
            "Gamma largest": float(gamma.max()),
            "Gamma least": float(gamma.min()),
            "degree": float(min(degrees)),
            "features/L": min(costs),
            "fast heads": sum(fast) / len(fast),
        }


def degree(bound: float, error: float) -> int:
    """Least g for which the Taylor polynomial of exp of degree g is within error * exp(x) for all |x| <= bound."""
    if bound == 0:
        return 0
    bound = min(bound, FAR)
    powers = torch.arange(1, int(4 * bound) + 200, dtype=torch.float64)
    terms = powers * math.log(bound) - torch.lgamma(powers + 1)  # log of bound^k / k!
    rest = terms.flip(0).logcumsumexp(0).flip(0)  # of everything from k on
    # Worst at -bound, where exp is smallest; the remainder there is at most the sum of sizes.
    return int((rest > math.log(error) - bound).sum())


def log_features(size: int, degree: int) -> float:
    """log10 of the number of monomials of at most this degree in `size` variables."""
    return (math.lgamma(size + degree + 1) - math.lgamma(size + 1) - math.lgamma(degree + 1)) / math.log(10)


def _heads(subject: Subject) -> tuple[dict[int, tuple[Member, Member]], str]:
    """Query and key of every block where heads can be told apart, and why not elsewhere."""
    found: dict[int, tuple[Member, Member]] = {}
    try:
        couplings = [c for c in subject.anatomy.couplings() if c.unit is Unit.KV_GROUP]
    except ModelError as error:
        return found, str(error)
    why = "no attention with separate heads was found in some blocks" if len(couplings) < len(subject.anatomy.blocks) else ""
    for coupling in couplings:
        members = {member.site.role: member for member in coupling.members}
        if Role.Q not in members or Role.K not in members:
            why = why or f"{coupling.consumer.site.name} follows a fused projection, whose queries and keys cannot be told apart"
        elif _normalised(subject, coupling):
            why = why or f"queries and keys of {coupling.name} pass a norm, so their projections are not what enters the exponent"
        else:
            found[coupling.block] = members[Role.Q], members[Role.K]
    return found, why


def _normalised(subject: Subject, coupling: Coupling) -> bool:
    """Does the attention module own a gain?"""
    owner = subject.anatomy.model.get_submodule(coupling.consumer.site.path.rpartition(".")[0])
    return any(name.endswith("weight") and parameter.ndim == 1 for name, parameter in owner.named_parameters())


def _largest(subject: Subject, block: int, window: int, query: Member, key: Member) -> tuple[Tensor, Tensor]:
    """Largest |entry| of the window's queries [groups, heads in a group] and keys [groups, 1], float64."""
    inputs = subject.inputs(block, window, [query.site, key.site])
    size, found = key.indices.shape[1], []
    for member in (query, key):
        out = inputs[member.site].float() @ subject.anatomy.weight(member.site).dense().T  # [tokens, out]
        bias = subject.anatomy.bias(member.site)
        peaks = (out if bias is None else out + bias.float()).abs().amax(0)[member.indices.to(out.device)]
        found.append(peaks.reshape(len(peaks), -1, size).amax(-1).double())
    return found[0], found[1]


def _verdict(found: dict[str, Finding], heads: int, why: str) -> str:
    if not heads:
        return f"not measured: {why}"
    fast = [m.value for m in found["fast heads"].measurements]
    count = round(sum(fast) / len(fast) * heads)
    least = min(m.value for m in found["Gamma least"].measurements)
    cost = min(m.value for m in found["features/L"].measurements)
    applies = f"the fast path applies to {count} of {heads} heads" if count else "the fast path does not apply to any head"
    smallest = f"the least Gamma is {least:.3g} sqrt(log L), and the cheapest polynomial has 10^{cost:.1f} times L features"
    return f"{applies}: {smallest}{f'; elsewhere {why}' if why else ''}"
