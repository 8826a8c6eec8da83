"""The only table of names: which role a matrix plays, by the ending of its path.

Structure is observed, but what a matrix is *for* cannot be: to a probe, gate and up are alike. An ending is one or more
whole parts of the path's end; the first line that fits decides, so special cases stand before general ones. What no line
names has the role OTHER: it can be quantized and pruned like any matrix, but takes no part in couplings.
"""

from trimtab.core.places import Role

ENDINGS: tuple[tuple[str, Role], ...] = (
    ("conv.out_proj", Role.OTHER),  # short convolutions and state-space mixers also call their last matrix out_proj
    ("mamba.out_proj", Role.OTHER),
    ("mixer.out_proj", Role.OTHER),
    ("linear_attn.out_proj", Role.OTHER),
    ("mlp.c_proj", Role.DOWN),
    ("c_proj", Role.O),
    ("q_proj", Role.Q),
    ("k_proj", Role.K),
    ("v_proj", Role.V),
    ("o_proj", Role.O),
    ("out_proj", Role.O),
    ("attn.dense", Role.O),
    ("self_attn.dense", Role.O),
    ("attention.dense", Role.O),
    ("self_attention.dense", Role.O),
    ("c_attn", Role.QKV),
    ("query_key_value", Role.QKV),
    ("qkv_proj", Role.QKV),
    ("Wqkv", Role.QKV),
    ("gate_up_proj", Role.GATE_UP),
    ("gate_proj", Role.GATE),
    ("up_proj", Role.UP),
    ("down_proj", Role.DOWN),
    ("fc1", Role.UP),
    ("fc2", Role.DOWN),
    ("fc_in", Role.UP),
    ("fc_out", Role.DOWN),
    ("c_fc", Role.UP),
    ("dense_h_to_4h", Role.UP),
    ("dense_4h_to_h", Role.DOWN),
    ("w1", Role.GATE),
    ("w3", Role.UP),
    ("w2", Role.DOWN),
    ("input_linear.weight", Role.GATE_UP),
    ("output_linear.weight", Role.DOWN),
    ("gate", Role.ROUTER),
    ("router", Role.ROUTER),
)


def role_of(path: str) -> Role:
    """The role of the matrix at a dotted path; OTHER if no ending fits."""
    return next((role for ending, role in ENDINGS if f".{path}".endswith(f".{ending}")), Role.OTHER)
