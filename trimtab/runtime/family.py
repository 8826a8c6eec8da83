"""What the families of models call their parts, and how they differ: one entry each, nothing else knows a family's name."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Family:
    """Names of modules inside a model, and the choices that its config does not spell out.

    q, k, v: of the attention's matrices; fused: one matrix instead, "stacked" (q rows, then k, then v) or "interleaved" (q, k and
    v of the first head, then of the next). Likewise gate and up. Norms that a family does not have are empty.
    """

    prefix: str = "model."
    embedding: str = "embed_tokens"
    positions: str = ""
    first_position: int = 0
    layers: str = "layers"
    last: str = "norm"
    head: str = "lm_head"
    q: str = "self_attn.q_proj"
    k: str = "self_attn.k_proj"
    v: str = "self_attn.v_proj"
    qkv: str = ""
    interleaved: bool = False
    o: str = "self_attn.o_proj"
    gate: str = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    gate_up: str = ""
    down: str = "mlp.down_proj"
    before_attention: str = "input_layernorm"
    after_attention: str = ""
    before_mlp: str = "post_attention_layernorm"
    after_mlp: str = ""
    q_norm: str = ""
    k_norm: str = ""
    wide_norms: bool = False
    centred: bool = False  # layer norms
    plus_one: bool = False  # norms multiply by 1 + weight
    scaled_embedding: bool = False
    transposed: bool = False  # plain matrices are stored as [in, out]
    rotary: bool = True
    tied: bool = False  # unless the config says otherwise
    window: str = "none"  # "all" layers, or by "types" of layers


def _with_head_norms(family: Family) -> Family:
    return replace(family, q_norm="self_attn.q_norm", k_norm="self_attn.k_norm")


_LLAMA = Family()
_GEMMA = Family(plus_one=True, scaled_embedding=True, tied=True)
_GEMMA2 = replace(
    _GEMMA,
    window="types",
    after_attention="post_attention_layernorm",
    before_mlp="pre_feedforward_layernorm",
    after_mlp="post_feedforward_layernorm",
)

FAMILIES: dict[str, Family] = {
    "llama": _LLAMA,
    "mistral": replace(_LLAMA, window="all"),
    "qwen2": replace(_LLAMA, window="types"),
    "qwen3": _with_head_norms(replace(_LLAMA, window="types")),
    "smollm3": replace(_LLAMA, window="types", tied=True),
    "olmo2": replace(
        _with_head_norms(_LLAMA),
        before_attention="",
        after_attention="post_attention_layernorm",
        before_mlp="",
        after_mlp="post_feedforward_layernorm",
        wide_norms=True,
    ),
    "gemma": _GEMMA,
    "gemma2": _GEMMA2,
    "gemma3_text": _with_head_norms(_GEMMA2),
    "phi3": replace(_LLAMA, window="all", qkv="self_attn.qkv_proj", gate_up="mlp.gate_up_proj"),
    "gpt2": Family(
        prefix="transformer.",
        embedding="wte",
        positions="wpe",
        layers="h",
        last="ln_f",
        qkv="attn.c_attn",
        o="attn.c_proj",
        gate="",
        up="mlp.c_fc",
        down="mlp.c_proj",
        before_attention="ln_1",
        before_mlp="ln_2",
        centred=True,
        transposed=True,
        rotary=False,
        tied=True,
    ),
    "opt": Family(
        prefix="model.decoder.",
        positions="embed_positions",
        first_position=2,
        last="final_layer_norm",
        o="self_attn.out_proj",
        gate="",
        up="fc1",
        down="fc2",
        before_attention="self_attn_layer_norm",
        before_mlp="final_layer_norm",
        centred=True,
        rotary=False,
        tied=True,
    ),
    "gpt_neox": Family(
        prefix="gpt_neox.",
        embedding="embed_in",
        last="final_layer_norm",
        head="embed_out",
        qkv="attention.query_key_value",
        interleaved=True,
        o="attention.dense",
        gate="",
        up="mlp.dense_h_to_4h",
        down="mlp.dense_4h_to_h",
        centred=True,
    ),
}
