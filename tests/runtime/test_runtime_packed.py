"""Packed weights of every format, narrowed layers and rounded heads answer as the same folder does in torch."""

import numpy as np
import pytest
import torch
from runtime_problems import distance, prompt

from trimtab.core.errors import ModelError
from trimtab.core.seeds import Seeds
from trimtab.engine import surgery
from trimtab.formats import BitPlanes, Dense, Grouped, Masked, Pyramid, Rotated, Sum, low_rank
from trimtab.host.checkpoint import save
from trimtab.runtime import Runtime, Unsupported, weights
from trimtab.runtime.folder import Stored
from trimtab.runtime.hadamard import base
from trimtab.tensors import hadamard
from trimtab.tensors.pyramid import nearest
from trimtab.tensors.rounding import fit
from trimtab.testing.tiny import tiny
from trimtab.testing.weights import examples

LINEARS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
LINEARS += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def rounded(dense, bits=4, group_size=32):
    groups = dense.detach().float().view(len(dense), -1, group_size)
    return Grouped.on_grid(fit(groups, bits), groups, symmetric=False)


def planes(dense, count, group_size=32):
    """Uniform levels between the extremes of a group, as sums of scaled planes."""
    groups = dense.detach().float().view(len(dense), -1, group_size)
    low = groups.amin(-1)
    step = (groups.amax(-1) - low) / (2**count - 1)
    codes = ((groups - low[..., None]) / step[..., None]).round().byte().view(dense.shape)
    return BitPlanes(codes, (step[..., None] * 2 ** torch.arange(count)).half(), low.half(), group_size)


def pack(model, paths, make):
    """make(dense [out, in], number of the path) at each of these modules."""
    for number, path in enumerate(paths):
        module = model.get_submodule(path)
        transposed = type(module).__name__ == "Conv1D"
        dense = module.weight.detach().T if transposed else module.weight.detach()
        surgery.place(model, path, make(dense.contiguous(), number), module.bias, transposed=transposed)


def compare(folder, exact, expected, bound=2e-4):
    ids = prompt()
    _, reference = expected(folder, ids)
    runtime = exact(folder)
    assert distance(runtime.session().prefill(ids, every=True), reference) < bound
    stepped = runtime.session()
    assert distance(np.stack([stepped.step(id) for id in ids]), reference) < bound
    return runtime


def test_every_format_and_composition(tmp_path, exact, expected):
    """One product of a model at a time, so that a random weight does not drown what comes before it."""
    draw = Seeds(0).at("examples")
    square, wide = examples(64, 64, draw), examples(64, 128, draw)
    for number, (first, second) in enumerate(zip(square, wide, strict=True)):
        model = tiny("llama", num_hidden_layers=1)
        surgery.place(model, "model.layers.0.self_attn.o_proj", first)
        surgery.place(model, "model.layers.0.mlp.down_proj", second)
        save(model, None, tmp_path / str(number))
        compare(tmp_path / str(number), exact, expected)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "phi3", "gpt_neox", "olmo2", "gemma3"])
def test_a_whole_model_of_codes(name, tmp_path, exact, expected):
    """Fused matrices are taken apart by rows, transposed ones are stored as [out, in] once they are packed."""
    model = tiny(name)
    inside = [path for path, m in model.named_modules() if type(m).__name__ in ("Linear", "Conv1D") and "head" not in path]
    pack(model, [path for path in inside if path != "embed_out"], lambda dense, _: rounded(dense))
    save(model, None, tmp_path / "model")
    compare(tmp_path / "model", exact, expected)


def test_rounded_activations_stay_close(tmp_path, exact, expected):
    model = tiny("llama")
    pack(model, [f"model.layers.{i}.{name}" for i in range(4) for name in LINEARS], lambda dense, _: rounded(dense))
    save(model, None, tmp_path / "model")
    ids = prompt(60)
    _, reference = expected(tmp_path / "model", ids)
    for activations, bound in (("int16", 1e-3), ("int8", 5e-2)):
        runtime = exact(tmp_path / "model", activations=activations)
        whole = runtime.session().prefill(ids, every=True)
        assert 1e-7 < distance(whole, reference) < bound
        stepped = runtime.session()
        assert distance(np.stack([stepped.step(id) for id in ids]), whole) < 1e-5
        if activations == "int16":
            assert (whole.argmax(-1) == reference.argmax(-1)).all()


def test_planes_share_inputs_with_codes_of_the_same_groups(tmp_path, exact, expected):
    """One token of planes may go through tables that codes do not have."""
    model = tiny("llama")
    paths = [f"model.layers.{i}.{name}" for i in range(4) for name in LINEARS]
    pack(model, paths, lambda dense, n: planes(dense, 3 + n % 2) if n % 3 else rounded(dense, 3 + n % 2 * 2))
    save(model, None, tmp_path / "model")
    ids = prompt()
    _, reference = expected(tmp_path / "model", ids)
    session = exact(tmp_path / "model", activations="int16").session()
    stepped = np.stack([session.step(id) for id in ids])
    assert distance(stepped, reference) < 1e-3
    assert distance(stepped, exact(tmp_path / "model", activations="int16").session().prefill(ids, every=True)) < 1e-5


def test_products_that_share_inputs_may_have_other_groups(tmp_path, exact, expected):
    model = tiny("llama")
    sizes = (8, 16, 32, 64)
    paths = [f"model.layers.{i}.{name}" for i in range(4) for name in LINEARS]
    pack(model, paths, lambda dense, number: rounded(dense, 2 + number % 7, sizes[number % 4]))
    save(model, None, tmp_path / "model")
    compare(tmp_path / "model", exact, expected)
    ids = prompt()
    _, reference = expected(tmp_path / "model", ids)
    assert distance(exact(tmp_path / "model", activations="int16").session().prefill(ids, every=True), reference) < 1e-3


def test_layers_may_be_narrower_than_the_config_says(tmp_path, exact, expected):
    """Neurons of one layer, and a key/value head of another with its queries."""
    model = tiny("llama")
    for name, axis in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
        path = f"model.layers.1.mlp.{name}"
        surgery.place(model, path, Dense(model.get_submodule(path).weight.detach().narrow(axis, 0, 50).contiguous()))
    attention = model.model.layers[2].self_attn
    for name, axis, kept in (("q_proj", 0, 32), ("k_proj", 0, 16), ("v_proj", 0, 16), ("o_proj", 1, 32)):
        weight = getattr(attention, name).weight.detach().narrow(axis, 0, kept).contiguous()
        surgery.place(model, f"model.layers.2.self_attn.{name}", Dense(weight))
    save(model, None, tmp_path / "model")
    compare(tmp_path / "model", exact, expected)


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_a_rounded_head(bits, folder_of, exact, expected):
    folder, ids = folder_of("llama"), prompt()
    _, reference = expected(folder, ids)
    plain, narrow = exact(folder), exact(folder, head_bits=bits)
    off = distance(narrow.session().prefill(ids, every=True), reference)
    assert 1e-4 < off < {16: 0.003, 8: 0.01, 4: 0.15}[bits]
    assert narrow.head_bits == bits
    assert narrow.bytes_per_token < plain.bytes_per_token


def test_a_head_in_parts(tmp_path, exact, expected):
    """What a part leaves for the next one belongs to the last token only, whatever was read with it."""
    model, draw = tiny("llama", tie_word_embeddings=False), Seeds(0).at("head")
    thin = low_rank(torch.randn(97, 5, generator=draw), torch.randn(5, 64, generator=draw))
    surgery.place(model, "lm_head", Sum((rounded(model.lm_head.weight), thin)))
    save(model, None, tmp_path / "model")
    ids = prompt()
    _, reference = expected(tmp_path / "model", ids)
    session = exact(tmp_path / "model").session()
    assert distance(session.prefill(ids), reference[-1]) < 2e-4
    session.truncate(7)
    assert distance(session.prefill(ids[7:9]), reference[8]) < 2e-4


def test_a_head_in_float32_becomes_bfloat16_unless_told_otherwise(folder_of, exact):
    by_itself, asked = Runtime.open(folder_of("llama")), exact(folder_of("llama"))
    assert (by_itself.head_bits, asked.head_bits) == (16, None)
    assert asked.bytes_per_token - by_itself.bytes_per_token == 64 * 112 * 2  # 97 rows take 7 tiles


def test_a_head_that_is_narrow_stays(tmp_path):
    save(tiny("llama").bfloat16(), None, tmp_path / "model")
    assert Runtime.open(tmp_path / "model").head_bits is None


def test_a_head_that_bfloat16_cannot_hold_is_refused(tmp_path):
    model = tiny("llama")
    with torch.no_grad():
        model.get_output_embeddings().weight[3, 5] = 3.4e38
    save(model, None, tmp_path / "model")
    with pytest.raises(ModelError, match="beyond what bfloat16 holds"):
        Runtime.open(tmp_path / "model")


@pytest.mark.parametrize("name", ["phi3", "gpt_neox"])
def test_fused_sparse_matrices_are_taken_apart_by_rows(name, tmp_path, exact, expected):
    model = tiny(name)
    inside = [path for path, m in model.named_modules() if type(m).__name__ == "Linear" and "head" not in path]
    pack(model, [path for path in inside if path != "embed_out"], lambda dense, _: Masked(dense, dense.abs() > 0.01))
    save(model, None, tmp_path / "model")
    runtime = compare(tmp_path / "model", exact, expected)
    plain = tiny(name)
    save(plain, None, tmp_path / "plain")
    assert runtime.bytes_per_token < exact(tmp_path / "plain").bytes_per_token


@pytest.mark.parametrize("kept", [0, 10**9])
def test_survivors_that_are_not_as_many_as_the_bitmap_says(kept):
    bitmap = Stored("uint8", (4, 1), np.array([1, 3, 255, 0], np.uint8))
    values = Stored("float32", (kept % 100,), np.zeros(kept % 100 * 4, np.uint8))
    spec = {"kind": "masked", "shape": [4, 8], "dtype": "float32", "kept": kept}
    weight = weights.Weight("w", spec, {"values": values, "bitmap": bitmap})
    for act in (lambda: weights.linear(weight), lambda: weights.take_rows(weight, np.array([1]))):
        with pytest.raises(ModelError, match=r"the bitmap marks 11 weights|kept must be a whole number from 0 to 32"):
            act()


@pytest.mark.parametrize(("dim", "pulses"), [(8, 3), (16, 12), (64, 20)])
def test_points_on_pyramids_unpack_as_the_format_says(dim, pulses):
    draw = Seeds(0).at("points")
    points = nearest(torch.randn(6 * 128 // dim, dim, generator=draw), pulses).view(6, 128).short()
    codes = torch.randint(4, (6, 128 // dim), generator=draw, dtype=torch.uint8)
    weight = Pyramid(points, codes, torch.tensor([0.5, 1, 2, 3]).half(), torch.rand(6, generator=draw).half(), dim)
    stored = {
        name: Stored(str(t.dtype).removeprefix("torch."), tuple(t.shape), t.numpy().view(np.uint8).reshape(-1))
        for name, t in weight.tensors().items()
    }
    made = weights.unpacked(weights.Weight("w", weight.spec(), stored))
    assert np.array_equal(made.tensors["weight"].array(), weight.dense().numpy())
    stored["points"] = Stored("uint8", stored["points"].shape, np.full_like(stored["points"].data, 255))
    with pytest.raises(ModelError, match="points go up to"):
        weights.unpacked(weights.Weight("w", weight.spec(), stored))


def test_float32_that_holds_bfloat16_is_read_as_such(tmp_path, exact, expected):
    model = tiny("llama").bfloat16().float()
    save(model, None, tmp_path / "model")
    runtime = compare(tmp_path / "model", exact, expected)
    linears = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    assert runtime.bytes_per_token < 2.5 * linears


@pytest.mark.parametrize("block", [12, 20, 24, 36, 44, 48, 64, 60, 576, 1536, 5632])
def test_rotations_are_those_of_the_format(block):
    """H = base (x) Sylvester, as `tensors.hadamard` builds it."""
    core = base(block).astype(np.float64)
    whole = core
    while len(whole) < block:
        whole = np.kron(whole, [[1.0, 1.0], [1.0, -1.0]])
    if block <= 600:
        assert np.array_equal(whole / np.sqrt(block), hadamard.hadamard(block).numpy())
    assert np.array_equal(core @ core.T, len(core) * np.eye(len(core)))


def test_a_rotation_on_a_field_that_is_not_covered(tmp_path, exact):
    with pytest.raises(Unsupported, match="field of 27 elements"):
        base(28)
    model = tiny("llama", hidden_size=56, num_attention_heads=4, num_key_value_heads=2, head_dim=14)
    path = "model.layers.0.mlp.up_proj"
    surgery.place(model, path, Rotated(Dense(torch.randn(128, 56, generator=Seeds(0).at("weight"))), 56))
    save(model, None, tmp_path / "model")
    with pytest.raises(Unsupported, match="field of 27 elements"):
        exact(tmp_path / "model")


@pytest.mark.parametrize(
    ("kind", "field", "wrong"), [("mpo", "bonds", [1, 9, 1]), ("mpo", "in", [2**20]), ("butterfly", "dtype", 7)]
)
def test_structures_that_make_no_sense_are_refused(kind, field, wrong):
    weight = next(w for w in examples(17, 33, Seeds(0).at("examples")) if w.kind == kind)
    with pytest.raises(ModelError, match="w"):
        weights.unpacked(weights.Weight("w", {**weight.spec(), field: wrong}, {}))
