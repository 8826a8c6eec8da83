"""The models that the runtimes are compared on, each written once: as our folders and as GGUF files, from the same matrices.

SmolLM2-135M has its own weights, in bfloat16. The larger ones have the shape of well-known models and random weights, since
only the shape counts for speed; matrices are scaled so that activations keep their size. Every tensor is drawn from a
generator of its own and written at once, so that memory holds one block.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from trimtab.core.kinds import LinearWeight
from trimtab.core.seeds import Seeds
from trimtab.data.assets import cache_root, cached
from trimtab.formats import NM, BitPlanes, Dense, Grouped, Masked
from trimtab.tensors.masks import Pattern, keep_top
from trimtab.tensors.rounding import fit

GROUP_SIZE = 64
LAYOUT = 1  # raised when what is written changes
CONTEXT = 2048


@dataclass(frozen=True)
class Shape:
    """Of a Llama. asset: where the weights come from; none: they are drawn."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool
    rope_theta: float = 10000.0
    asset: str = ""

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


SHAPES = {
    "135m": Shape(576, 1536, 30, 9, 3, 49152, True, 100000.0, "asset:smollm2-135m"),
    "0.5b": Shape(896, 4864, 24, 14, 2, 151936, True),
    "1.1b": Shape(2048, 5632, 22, 32, 4, 32000, False),
    "tiny": Shape(256, 512, 2, 4, 2, 320, False),  # tries the plumbing
}


@dataclass(frozen=True)
class Matrix:
    """name: in our folders, without ".weight". gguf: over there, without ".weight". heads: of rows that rotate, else 0."""

    name: str
    gguf: str
    out: int
    in_: int
    heads: int = 0


def matrices(shape: Shape, block: int) -> list[Matrix]:
    """Those of one block, in forward order."""
    wide, narrow = shape.hidden, shape.kv_heads * shape.head_dim
    sizes = [
        ("self_attn.q_proj", "attn_q", wide, wide, shape.heads),
        ("self_attn.k_proj", "attn_k", narrow, wide, shape.kv_heads),
        ("self_attn.v_proj", "attn_v", narrow, wide, 0),
        ("self_attn.o_proj", "attn_output", wide, wide, 0),
        ("mlp.gate_proj", "ffn_gate", shape.inner, wide, 0),
        ("mlp.up_proj", "ffn_up", shape.inner, wide, 0),
        ("mlp.down_proj", "ffn_down", wide, shape.inner, 0),
    ]
    return [Matrix(f"model.layers.{block}.{ours}", f"blk.{block}.{theirs}", *rest) for ours, theirs, *rest in sizes]


def ends(shape: Shape) -> list[Matrix]:
    """The embedding, and the head where it is a matrix of its own."""
    made = [Matrix("model.embed_tokens", "token_embd", shape.vocabulary, shape.hidden)]
    return made if shape.tied else [*made, Matrix("lm_head", "output", shape.vocabulary, shape.hidden)]


def norms(shape: Shape) -> dict[str, str]:
    """Name in our folders -> name in GGUF, both without ".weight"."""
    named = {"model.norm": "output_norm"}
    for block in range(shape.layers):
        named[f"model.layers.{block}.input_layernorm"] = f"blk.{block}.attn_norm"
        named[f"model.layers.{block}.post_attention_layernorm"] = f"blk.{block}.ffn_norm"
    return named


class Source:
    """The tensors of a model, one at a time, in bfloat16."""

    def __init__(self, shape: Shape):
        self.shape, self.seeds = shape, Seeds(0)
        self.file = None
        if shape.asset:
            from trimtab.host.model_assets import resolve_model

            self.file = safe_open(Path(resolve_model(shape.asset)) / "model.safetensors", "pt")

    def matrix(self, wanted: Matrix) -> Tensor:
        """[out, in]."""
        if self.file is not None:
            return self.file.get_tensor(f"{wanted.name}.weight").bfloat16()
        noise = torch.randn(wanted.out, wanted.in_, generator=self.seeds.at(wanted.name))
        return noise.mul_(wanted.in_**-0.5).bfloat16()

    def norm(self, name: str) -> Tensor:
        """[hidden]."""
        if self.file is not None:
            return self.file.get_tensor(f"{name}.weight").bfloat16()
        return (1 + 0.1 * torch.randn(self.shape.hidden, generator=self.seeds.at(name))).bfloat16()


def folder(model: str, kind: str) -> Path:
    """Our folder. kind: bfloat16, or how every matrix of the blocks is rounded: see `packed`.

    A head that is not the embedding is rounded with them: what GGUF calls a pure file.
    """
    return cached(_name(model, kind), lambda place: _write_folder(SHAPES[model], kind, place))


def gguf_file(model: str) -> Path:
    """The same model as a GGUF file in bfloat16, from which llama.cpp makes its own formats."""
    return cached(_name(model, "gguf"), lambda place: _write_gguf(SHAPES[model], place / "model.gguf")) / "model.gguf"


def quantized_file(model: str, kind: str, quantize: Any) -> Path:
    """`quantize(source, target)` once."""
    return cached(_name(model, kind), lambda place: quantize(gguf_file(model), place / "model.gguf")) / "model.gguf"


def forget(model: str) -> None:
    """Removes what was written for a model."""
    for place in cache_root().glob(f"runtime-{model}-*"):
        shutil.rmtree(place)


def _name(model: str, kind: str) -> str:
    key = json.dumps([LAYOUT, GROUP_SIZE, asdict(SHAPES[model])])
    return f"runtime-{model}-{kind}-{sha256(key.encode()).hexdigest()[:8]}"


def packed(kind: str, matrix: Tensor) -> LinearWeight:
    """matrix [out, in] in a format of ours, in groups of 64.

    grouped2 to grouped8: codes with zero points; even2 to even8: without, in groups of up to 256, which is enough for many
    bits. planes1 to planes8: the grid of `grouped` as bit planes, each scale twice the one before it; free1 to free8: the
    same planes with scales of their own, by least squares. sparse50, sparse70, ...: so many percent of each row are gone, the
    smallest; nm2of4: two of four stay.
    """
    if kind == "bfloat16":
        return Dense(matrix)
    if kind.startswith("sparse"):
        return Masked(matrix, keep_top(matrix.float().abs(), int(kind.removeprefix("sparse")) / 100, Pattern()))
    if kind.startswith("nm"):
        n, m = map(int, kind.removeprefix("nm").split("of"))
        return NM.of(matrix, keep_top(matrix.float().abs(), 0.0, Pattern(n, m)), n, m)
    even, bits = kind.startswith("even"), int(kind[-1])
    group_size = next(size for size in (256, 192, 128, GROUP_SIZE) if matrix.shape[1] % size == 0) if even else GROUP_SIZE
    groups = matrix.float().view(len(matrix), -1, group_size)
    made = Grouped.on_grid(fit(groups, bits, symmetric=even), groups, symmetric=even)
    if kind.startswith(("grouped", "even")):
        return made
    if kind.startswith("free"):
        return _free_planes(made.codes, groups, bits)
    assert made.zero is not None
    scale = made.scale.float()
    planes = torch.stack([scale * 2**bit for bit in range(bits)], -1)
    return BitPlanes(made.codes, planes.half(), (-scale * made.zero).half(), GROUP_SIZE)


def _free_planes(codes: Tensor, groups: Tensor, bits: int) -> BitPlanes:
    """codes [out, in], groups [out, groups, group]: the scales and the offset that come nearest to the weights."""
    planes = codes.view(groups.shape)[..., None] >> torch.arange(bits) & 1
    ones = torch.ones(*groups.shape, 1)
    basis = torch.cat([planes.float(), ones], -1)  # [out, groups, group, bits + 1]
    gram = basis.mT @ basis + 1e-3 * torch.eye(bits + 1)  # a plane may be all ones
    found = torch.linalg.solve(gram, basis.mT @ groups[..., None]).squeeze(-1).half()
    return BitPlanes(codes, found[..., :-1].contiguous(), found[..., -1].contiguous(), groups.shape[-1])


def _write_folder(shape: Shape, kind: str, place: Path) -> None:
    source, modules, index = Source(shape), dict[str, Any](), dict[str, str]()

    def shard(name: str, wanted: list[Matrix], extra: dict[str, Tensor]) -> None:
        tensors = dict(extra)
        for one in wanted:
            weight = packed("bfloat16" if one.name == "model.embed_tokens" else kind, source.matrix(one))
            tensors |= {f"{one.name}.{part}": tensor.contiguous() for part, tensor in weight.tensors().items()}
            if not isinstance(weight, Dense):
                modules[one.name] = {**weight.spec(), "bias": False}
        file = f"model-{name}.safetensors"
        save_file(tensors, place / file, {"format": "pt"})
        index.update(dict.fromkeys(tensors, file))

    for block in range(shape.layers):
        named = [name for name in norms(shape) if name.startswith(f"model.layers.{block}.")]
        shard(f"{block:05}", matrices(shape, block), {f"{name}.weight": source.norm(name) for name in named})
    shard("ends", ends(shape), {"model.norm.weight": source.norm("model.norm")})
    config = _config(shape) | ({"quantization_config": _quantization(modules)} if modules else {})
    _json(place / "config.json", config)
    whole = sum(file.stat().st_size for file in place.glob("*.safetensors"))
    _json(place / "model.safetensors.index.json", {"metadata": {"total_size": whole}, "weight_map": index})


def _quantization(modules: dict[str, Any]) -> dict[str, Any]:
    return {"quant_method": "trimtab", "version": 1, "modules": modules}


def _json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _config(shape: Shape) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": shape.tied,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": CONTEXT,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def _write_gguf(shape: Shape, path: Path) -> None:
    from gguf import GGMLQuantizationType, GGUFWriter

    source, writer = Source(shape), GGUFWriter(path, "llama")
    _head_of_gguf(writer, shape)
    every = list(_all(shape))
    for one in every:
        size = (one.out, one.in_)
        writer.add_tensor_info(f"{one.gguf}.weight", size, np.dtype(np.float16), 2 * one.out * one.in_, GGMLQuantizationType.BF16)
    for theirs in norms(shape).values():
        writer.add_tensor_info(f"{theirs}.weight", (shape.hidden,), np.dtype(np.float32), 4 * shape.hidden)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for one in every:
        writer.write_tensor_data(_turned(source.matrix(one), one.heads).view(torch.int16).numpy())
    for ours in norms(shape):
        writer.write_tensor_data(source.norm(ours).float().numpy())
    writer.close()


def _all(shape: Shape) -> Iterator[Matrix]:
    yield from ends(shape)
    for block in range(shape.layers):
        yield from matrices(shape, block)


def _turned(matrix: Tensor, heads: int) -> Tensor:
    """Rows of queries and keys in the order of that format: it rotates neighbours, transformers rotates halves."""
    if not heads:
        return matrix
    return matrix.view(heads, 2, -1, matrix.shape[1]).transpose(1, 2).reshape(matrix.shape).contiguous()


def _head_of_gguf(writer: Any, shape: Shape) -> None:
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocabulary)
    # Nobody reads text here, but there has to be a vocabulary.
    written = [b"<unk>", b"<s>", b"</s>", *(f"<0x{i:02X}>".encode() for i in range(256))]
    written += [f"word{i}".encode() for i in range(shape.vocabulary - len(written))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(written)
    writer.add_token_scores([0.0] * shape.vocabulary)
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (shape.vocabulary - 259))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
