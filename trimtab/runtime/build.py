"""A model folder as a model of the compiled module: every tensor finds its place, or opening fails and says which did not."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.core.errors import ModelError
from trimtab.runtime import weights
from trimtab.runtime.errors import Unsupported
from trimtab.runtime.facts import Facts, facts
from trimtab.runtime.family import Family
from trimtab.runtime.folder import Stored, open_tensors, read_config
from trimtab.runtime.native import native
from trimtab.runtime.weights import Weight

VERSION = 1
# Buffers that older files carry and that say nothing.
IGNORED = ("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias")


@dataclass(frozen=True)
class Built:
    """architecture: the config's model_type. model: a `trimtab_native.Model`. head_bits: None for a head as stored."""

    architecture: str
    layers: int
    model: Any
    head_bits: int | None


def build(folder: Path, head_bits: int, context: int | None) -> Built:
    """head_bits: 32 leaves a plain head as it is stored, 16 makes one that is wider bfloat16, 8 and 4 make codes.

    Raises `Unsupported` and `ModelError`.
    """
    config = read_config(folder)
    source = Source(folder, _modules(config, folder), open_tensors(folder))
    known = facts(config)
    if context is not None and not 1 <= context <= known.context:
        raise ModelError(f"{folder}: a context of {context} was asked for, the model has {known.context}")
    try:
        builder = _Builder(source, known)
        model = builder.model(head_bits, context or known.context)
        source.check_all_used()
        model.check()
    except ValueError as error:
        raise ModelError(f"{folder}: {error}") from error
    return Built(known.architecture, known.layers, model, builder.rounded_head)


def _modules(config: Mapping[str, Any], folder: Path) -> dict[str, dict[str, Any]]:
    """What trimtab wrote about single modules; nothing for a plain folder."""
    given = config.get("quantization_config")
    if given is None:
        return {}
    if not isinstance(given, dict) or given.get("quant_method") != "trimtab":
        method = given.get("quant_method") if isinstance(given, dict) else given
        raise Unsupported(f"weights in the format of {method!r:.40} are not covered")
    modules = given.get("modules")
    if given.get("version") != VERSION or not isinstance(modules, dict) or not all(map(_is_entry, modules.values())):
        raise ModelError(f"{folder / 'config.json'}: quantization_config is not of version {VERSION}, or has no modules")
    return modules


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("kind"), str)


class Source:
    """The tensors of a folder under the names of modules, and which of them were asked for."""

    def __init__(self, folder: Path, modules: dict[str, dict[str, Any]], tensors: dict[str, Stored]):
        self.folder = folder
        self.modules = modules
        self.tensors = tensors
        self.used: set[str] = set()

    def has(self, name: str) -> bool:
        return name in self.tensors

    def holds(self, path: str) -> bool:
        """Whether there is a module here."""
        return path in self.modules or self.has(f"{path}.weight")

    def owner(self, path: str) -> str:
        """Where the matrix of a place is: in another one, if that is said to be shared."""
        entry = self.modules.get(path, {})
        return str(entry.get("of")) if entry.get("kind") == "shared" else path

    def get(self, name: str) -> Stored:
        if name not in self.tensors:
            raise ModelError(f"{self.folder} does not hold {name}; fetch or write the model again")
        self.used.add(name)
        return self.tensors[name]

    def numbers(self, name: str) -> NDArray[np.float32]:
        """A vector, in float32."""
        stored = self.get(name)
        if len(stored.shape) != 1 or stored.dtype not in ("float32", "float16", "bfloat16", "float64"):
            raise ModelError(f"{name} is {stored.dtype} {list(stored.shape)}; a vector of numbers was expected")
        return stored.floats()

    def weight(self, path: str, transposed: bool) -> Weight:
        path = self.owner(path)
        entry = self.modules.get(path)
        if entry is not None and entry["kind"] == "on_basis":
            return self._on_basis(path, str(entry.get("of")))
        if entry is None or (entry["kind"] == "dense" and "dtype" not in entry):
            return weights.plain(path, self.get(f"{path}.weight"), transposed)
        names = [name for name in self.tensors if name.startswith(f"{path}.") and name != f"{path}.bias"]
        self.used.update(names)
        spec = {key: value for key, value in entry.items() if key != "bias"}
        return Weight(path, spec, {name.removeprefix(f"{path}."): self.tensors[name] for name in names})

    def _on_basis(self, path: str, lender: str) -> Weight:
        """The product of the place's own part and the last factor of the chain that stands at `lender`."""
        if self.modules.get(lender, {}).get("kind") != "chain":
            raise ModelError(f"{path} is said to stand on the basis of {lender:.200}, where no chain is")
        return weights.product(self.weight(f"{path}.left", False), weights.parts_of(self.weight(lender, False))[-1])

    def bias(self, path: str) -> NDArray[np.float32] | None:
        path = self.owner(path)
        entry = self.modules.get(path, {})
        path = f"{path}.left" if entry.get("kind") == "on_basis" else path
        if not self.has(f"{path}.bias"):
            if entry.get("bias") is True:
                raise ModelError(f"{self.folder} does not hold {path}.bias; fetch or write the model again")
            return None
        return self.numbers(f"{path}.bias")

    def check_all_used(self) -> None:
        """A tensor that nobody asked for would have done something. Raises `Unsupported` naming it."""
        for name in sorted(self.tensors.keys() - self.used):
            if not name.endswith(IGNORED):
                raise Unsupported(f"{self.folder} holds {name}, which has no place in what is covered")


class _Builder:
    """Follows a family's names through the tensors, layer by layer."""

    def __init__(self, source: Source, known: Facts):
        self.source = source
        self.known = known
        self.family = known.family
        self.native = native()
        self.rounded_head: int | None = None

    def model(self, head_bits: int, context: int) -> Any:
        known, family = self.known, self.family
        made = self.native.Model()
        embedding = self._table(f"{family.prefix}{family.embedding}.weight")
        made.set_embedding(*embedding)
        made.embedding_scale = known.embedding_scale
        if family.positions:
            made.set_positions(*self._table(f"{family.prefix}{family.positions}.weight"), family.first_position)
        for turning in known.turnings:
            made.add_rope(turning.frequency, 1.0)
        for index in range(known.layers):
            made.add_layer(self._layer(index))
        made.last = self._norm(f"{family.prefix}{family.last}")
        made.head = self._head(head_bits)
        made.logit_softcap = known.logit_softcap
        made.context = context
        return made

    def _table(self, name: str) -> tuple[Any, str, int, int]:
        stored = self.source.get(name)
        if len(stored.shape) != 2 or stored.dtype not in weights.PLAIN:
            raise Unsupported(f"{name} is {stored.dtype} {list(stored.shape)}; a plain table of vectors is covered")
        return stored.data, stored.dtype, stored.shape[0], stored.shape[1]

    def _head(self, bits: int) -> Any:
        family = self.family
        # Where modules are packed, transformers writes a model under the names it has in memory, which differ for some heads.
        own = family.head if self.source.holds(family.head) else Family.head
        path = f"{family.prefix}{family.embedding}" if self.known.tied else own
        if self.known.tied and self.source.has(f"{own}.weight"):
            self.source.get(f"{own}.weight")  # written, and not used
        weight, bias = self.source.weight(path, False), self.source.bias(path)
        if bits == 32 or weight.kind != "dense" or (bits == 16 and not weights.is_wide(weight)):
            return weights.linear(weight, bias)
        self.rounded_head = bits
        made = weights.rounded(weight, bits)
        return made if bias is None else made.with_bias(bias)

    def _layer(self, index: int) -> Any:
        known, family = self.known, self.family
        at = f"{family.prefix}{family.layers}.{index}."
        made = self.native.Layer()
        for place in ("before_attention", "after_attention", "before_mlp", "after_mlp"):
            if getattr(family, place):
                setattr(made, place, self._norm(at + getattr(family, place)))
        for place in ("q_norm", "k_norm"):
            if getattr(family, place):
                setattr(made, place, self._norm(at + getattr(family, place)))
        made.q, made.k, made.v = self._attention(at)
        made.o = self._linear(at + family.o)
        self._mlp(made, at)
        made.dim = known.head_width
        made.heads, made.kv_heads = made.q.shape[0] // made.dim, made.k.shape[0] // made.dim
        made.wide_norms, made.parallel, made.curve = family.wide_norms, known.parallel, known.curve
        made.scale, made.softcap = known.scale, known.softcap
        made.window, made.rope = known.window[index], known.turning[index]
        if made.heads != made.kv_heads * known.sharing:
            raise ModelError(f"{at} has {made.heads} heads on {made.kv_heads} key/value heads, the config says {known.sharing}:1")
        return made

    def _attention(self, at: str) -> tuple[Any, Any, Any]:
        family = self.family
        if not family.qkv:
            return self._linear(at + family.q), self._linear(at + family.k), self._linear(at + family.v)
        path = at + family.qkv
        weight = self.source.weight(path, family.transposed)
        rows, dim = np.arange(weight.shape[0]), self.known.head_width
        shared, rest = divmod(len(rows), self.known.sharing + 2)  # rows of k, and of v
        if rest or shared % dim:
            raise ModelError(f"{path} has {len(rows)} rows, which are not heads of {dim}")
        if family.interleaved:
            parts = [rows.reshape(-1, 3, dim)[:, i].reshape(-1) for i in range(3)]
        else:
            parts = np.split(rows, [len(rows) - 2 * shared, len(rows) - shared])
        q, k, v = self._cut(path, weight, parts)
        return q, k, v

    def _mlp(self, made: Any, at: str) -> None:
        family = self.family
        made.down = self._linear(at + family.down)
        if family.gate_up:
            path = at + family.gate_up
            weight = self.source.weight(path, family.transposed)
            if weight.shape[0] % 2:
                raise ModelError(f"{path} has {weight.shape[0]} rows, which are not two halves")
            made.gate, made.up = self._cut(path, weight, np.split(np.arange(weight.shape[0]), 2))
            return
        if family.gate:
            made.gate = self._linear(at + family.gate)
        made.up = self._linear(at + family.up)

    def _cut(self, path: str, weight: Weight, parts: list[NDArray[Any]]) -> list[Any]:
        bias = self.source.bias(path)
        return [weights.linear(weights.take_rows(weight, rows), None if bias is None else bias[rows]) for rows in parts]

    def _linear(self, path: str) -> Any:
        return weights.linear(self.source.weight(path, self.family.transposed), self.source.bias(path))

    def _norm(self, path: str) -> Any:
        family = self.family
        weight = self.source.numbers(f"{path}.weight") + np.float32(1 if family.plus_one else 0)
        bias = self.source.numbers(f"{path}.bias") if self.source.has(f"{path}.bias") else None
        return self.native.Norm.of("layer" if family.centred else "rms", weight, bias, self.known.epsilon)
