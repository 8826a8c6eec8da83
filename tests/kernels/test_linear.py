"""What `kernels.linear` takes, where it goes around the kernels, and that it is only used where it was asked for."""

import gc
import subprocess
import sys
import weakref

import pytest
import torch
from kernel_problems import activations_like, problem

from trimtab import formats, kernels
from trimtab.core import compiled as compiled_module
from trimtab.core.errors import ModelError, UsageError
from trimtab.engine import packed_linear
from trimtab.engine.packed_linear import PackedLinear
from trimtab.formats import NM, BitPlanes, Codebook, Dense, Grouped, Masked, Pyramid, Rotated, Sum, low_rank
from trimtab.kernels import linear, module, repack
from trimtab.tensors.pyramid import nearest

WEIGHT = problem("grouped4", 20, 64, 32).weight
X = activations_like(6, 64)


@pytest.fixture
def without_module(monkeypatch):
    monkeypatch.setattr(module, "load", lambda: (None, "trimtab-native is not installed"))


def pyramid() -> Pyramid:
    """A format that has no kernel."""
    draw = torch.Generator().manual_seed(0)
    points = nearest(torch.randn(20 * 8, 8, generator=draw), 3).view(20, 64).short()
    codes = torch.zeros(20, 8, dtype=torch.uint8)
    return Pyramid(points, codes, torch.ones(2).half(), torch.ones(20).half(), 8)


def test_without_the_module_everything_goes_through_dense(without_module):
    assert not kernels.available()
    assert not kernels.serves(WEIGHT)
    assert kernels.instruction_sets() == ()
    assert torch.equal(linear(X, WEIGHT), formats.linear(X, WEIGHT))
    assert kernels.describe() == "none, packed models run unpacked: trimtab-native is not installed"
    with pytest.raises(UsageError, match="no compiled kernels"):
        module.native()


def test_a_module_of_another_version_is_not_used(monkeypatch):
    other = type(sys)("trimtab_native")
    other.INTERFACE = compiled_module.INTERFACE + 1
    monkeypatch.setitem(sys.modules, "trimtab_native", other)
    found, why = compiled_module.load.__wrapped__()
    assert found is None
    assert f"is of version {compiled_module.INTERFACE + 1}, this trimtab needs {compiled_module.INTERFACE}" in why


@pytest.mark.parametrize("x", [X[0], X[None, :3], X.T.contiguous().T, X[::2], X[:0], X.bfloat16(), X.half()])
def test_activations_come_in_any_form(x, compiled):
    y = linear(x, WEIGHT, activations="float32")
    expected = formats.linear(x.float(), WEIGHT).to(x.dtype)
    assert y.shape == expected.shape
    assert y.dtype == x.dtype
    assert torch.allclose(y.float(), expected.float(), atol=1e-4 if x.dtype == torch.float32 else 1.0)


def test_bias_in_half_precision(compiled):
    bias = torch.linspace(-1, 1, 20).bfloat16()
    assert torch.allclose(linear(X, WEIGHT, bias), linear(X, WEIGHT) + bias.float())


@pytest.mark.parametrize("call", [lambda: linear(X.double(), WEIGHT), lambda: linear(X, pyramid())])
def test_what_has_no_kernel_goes_through_dense(call, compiled, monkeypatch):
    monkeypatch.setattr(repack, "repacked", None)
    assert call().shape == (6, 20)


def test_a_gradient_is_a_gradient(compiled):
    x = X.clone().requires_grad_()
    linear(x, WEIGHT).sum().backward()
    assert torch.allclose(x.grad, WEIGHT.dense().sum(0).expand(6, -1), atol=1e-4)
    with torch.no_grad():
        assert not linear(x, WEIGHT).requires_grad


@pytest.mark.parametrize(
    "weight",
    [
        Sum((WEIGHT, low_rank(torch.randn(20, 4, generator=torch.Generator().manual_seed(1)), torch.ones(4, 64)))),
        Rotated(WEIGHT, 64),
        low_rank(torch.ones(20, 3), torch.ones(3, 64)),
    ],
)
def test_compositions_are_followed(weight, compiled):
    assert kernels.serves(weight)
    bias = torch.ones(20)
    expected = formats.linear(X, weight, bias)
    assert torch.allclose(linear(X, weight, bias, activations="float32"), expected, rtol=1e-4, atol=1e-3)


def test_a_part_without_a_kernel_does_not_keep_the_others_from_theirs(compiled):
    weight = Sum((WEIGHT, pyramid()))
    assert not kernels.serves(weight)
    assert torch.allclose(linear(X, weight, activations="float32"), formats.linear(X, weight), rtol=1e-4, atol=1e-3)


def test_float64_matrices_have_no_kernel(compiled):
    full, keep = torch.ones(2, 2).double(), torch.eye(2).bool()
    for weight in (Dense(full), Masked(full, keep), NM.of(full, keep, 1, 2)):
        assert not kernels.serves(weight)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linear(X, WEIGHT, activations="int4"), "activations must be one of float32, int8, int16, got 'int4'"),
        (lambda: linear(X[:, :63], WEIGHT), r"x \[6, 63\] do not fit a weight of \[20, 64\]"),
        (lambda: linear(X, WEIGHT, torch.ones(19)), r"bias \[19\] do not fit"),
        (lambda: linear(X, WEIGHT, instructions="mmx"), "cannot run 'mmx' kernels; it has scalar"),
    ],
)
def test_what_does_not_fit_is_said(call, message, compiled):
    with pytest.raises(UsageError, match=message):
        call()


def test_the_instruction_set_is_forced_by_the_environment(monkeypatch, compiled):
    monkeypatch.setenv("TRIMTAB_CPU", "scalar")
    assert kernels.instruction_set() == "scalar"
    assert kernels.describe().startswith("scalar (of ")
    monkeypatch.setenv("TRIMTAB_CPU", "pentium")
    assert "TRIMTAB_CPU: this processor cannot run 'pentium'" in kernels.describe()
    with pytest.raises(UsageError, match="TRIMTAB_CPU"):
        linear(X, WEIGHT)


def test_threads_beyond_the_cores_are_as_many_as_there_are(compiled):
    assert torch.equal(linear(X, WEIGHT, threads=1000), linear(X, WEIGHT, threads=1))
    assert torch.equal(linear(X, WEIGHT, threads=-3), linear(X, WEIGHT, threads=1))


def test_a_weight_is_repacked_once_and_forgotten_with_it(compiled):
    weight = problem("grouped3", 16, 64, 32).weight
    assert repack.repacked(weight) is repack.repacked(weight)
    gone = weakref.ref(weight)
    del weight
    gc.collect()
    assert gone() is None


def test_packed_modules_use_kernels_only_when_told(monkeypatch, compiled):
    layer = PackedLinear.of(WEIGHT, torch.ones(20)).eval()
    plain = formats.linear(X, WEIGHT, torch.ones(20))
    with torch.no_grad():
        assert torch.equal(layer(X), plain)
        monkeypatch.setattr(packed_linear, "KERNELS", True)
        assert torch.equal(layer(X), linear(X, WEIGHT, torch.ones(20)))
        assert not torch.equal(layer(X), plain)
        assert torch.equal(layer.train()(X), plain)


def test_packed_modules_run_unpacked_without_the_module(monkeypatch, without_module):
    monkeypatch.setattr(packed_linear, "KERNELS", True)
    assert torch.equal(PackedLinear.of(WEIGHT).eval()(X), formats.linear(X, WEIGHT))


GOOD = {"grouped": (20, 64, 4, 32), "bitplanes": (20, 64, 2, 32), "dense": ("float32", 20, 64)}


def raw_grouped() -> list:
    return [repack.raw(t) for t in (WEIGHT.packed, WEIGHT.scale, WEIGHT.packed_zero)]


@pytest.mark.parametrize("short", [0, 1, 2])
@pytest.mark.parametrize("cut", [1, 7, 32])
def test_buffers_that_are_too_short_or_too_long_are_refused(short, cut, compiled):
    import numpy as np

    parts = raw_grouped()
    for damaged in (parts[short][:-cut], np.concatenate([parts[short], parts[short][:cut]])):
        given = [*parts[:short], damaged, *parts[short + 1 :]]
        with pytest.raises(ValueError, match="the weight is damaged"):
            compiled.Matrix.grouped(*given, *GOOD["grouped"])


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 64, 4, 32), "out must be from 1"),
        ((20, -64, 4, 32), "in must be from 1"),
        ((20, 64, 9, 32), "bits must be from 2 to 8, got 9"),
        ((20, 64, 4, 48), "group_size 48 does not divide in=64"),
        ((2**31, 2**31, 8, 1), "damaged"),
        ((40, 64, 4, 32), "codes has 640 bytes, its sizes need 1280; the weight is damaged"),
    ],
)
def test_sizes_that_disagree_are_refused(sizes, message, compiled):
    with pytest.raises(ValueError, match=message):
        compiled.Matrix.grouped(*raw_grouped(), *sizes)
    weight = problem("planes2", 20, 64, 32).weight
    assert isinstance(weight, BitPlanes)
    with pytest.raises(ValueError, match=r"must be from|damaged|does not divide"):
        compiled.Matrix.bitplanes(*map(repack.raw, weight.tensors().values()), *sizes)
    with pytest.raises(ValueError, match=r"must be from|damaged"):
        compiled.Matrix.dense(repack.raw(torch.ones(3)), "float32", *sizes[:2])


def test_arrays_that_disagree_are_refused(compiled):
    import numpy as np

    matrix, floats = repack.repacked(WEIGHT), np.float32
    with pytest.raises(ValueError, match=r"x \[2, 63\] and y \[2, 20\] do not fit a weight \[20, 64\]"):
        compiled.linear(matrix, np.ones((2, 63), floats), np.ones((2, 20), floats), None, 1, "", 1)
    with pytest.raises(ValueError, match="do not fit"):
        compiled.linear(matrix, np.ones((2, 64), floats), np.ones((3, 20), floats), None, 1, "", 1)
    with pytest.raises(ValueError, match="bias has 3 entries"):
        compiled.linear(matrix, np.ones((2, 64), floats), np.ones((2, 20), floats), np.ones(3, floats), 1, "", 1)
    with pytest.raises(ValueError, match="digits"):
        compiled.linear(matrix, np.ones((2, 64), floats), np.ones((2, 20), floats), None, 3, "", 1)
    with pytest.raises(TypeError):
        compiled.linear(matrix, np.ones((2, 64)), np.ones((2, 20), floats), None, 1, "", 1)


def test_a_weight_that_was_tampered_with_is_a_model_error(compiled):
    weight = Grouped._restore(
        packed=WEIGHT.packed[:5], scale=WEIGHT.scale, packed_zero=None, shape=WEIGHT.shape, code_bits=4, group_size=32
    )
    with pytest.raises(ModelError, match="grouped: codes has 160 bytes"):
        linear(X, weight)


def damaged_of(weight, compiled):
    """(how it is made, its buffers, its sizes), for sparse matrices and codebooks."""
    if isinstance(weight, Masked):
        return compiled.Matrix.masked, [weight.values, weight.bitmap], ("float32", 20, 64)
    if isinstance(weight, NM):
        return compiled.Matrix.some_of, [weight.values, weight.packed], ("float32", 20, 64, 2, 4)
    return compiled.Matrix.codebook, [weight.packed, weight.codebook, weight.scale], (20, 64, 2, 13, 4, 32)


def sparse_and_codebook() -> list:
    draw = torch.Generator().manual_seed(0)
    dense, keep = torch.randn(20, 64, generator=draw), torch.zeros(20, 64, dtype=torch.bool)
    keep[:, ::2] = True
    codes = torch.randint(0, 13, (2, 20, 16), dtype=torch.uint8, generator=draw)
    codebook = Codebook(codes, torch.randn(2, 13, 4, generator=draw).half(), torch.ones(20, 2).half(), 32)
    return [Masked(dense, keep), NM.of(dense, keep, 2, 4), codebook]


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("cut", [1, 7, 32])
def test_damaged_sparse_matrices_and_codebooks_are_refused(number, cut, compiled):
    import numpy as np

    make, tensors, sizes = damaged_of(sparse_and_codebook()[number], compiled)
    given = [repack.raw(t) for t in tensors]
    make(*given, *sizes)
    for i, part in enumerate(given):
        for other in (part[:-cut], np.concatenate([part, part[:cut]])):
            with pytest.raises(ValueError, match="the weight is damaged"):
                make(*given[:i], other, *given[i + 1 :], *sizes)


@pytest.mark.parametrize(
    ("number", "sizes", "message"),
    [
        (0, ("float32", 21, 64), "bitmap has 160 bytes, its sizes need 168"),
        (0, ("float16", 20, 64), "the bitmap marks 640 weights, values has 2560 bytes"),
        (0, ("int8", 20, 64), "dense holds float32"),
        (1, ("float32", 20, 64, 4, 4), "n must be from 1 to 3, got 4"),
        (1, ("float32", 20, 64, 2, 5), "m 5 does not divide in=64"),
        (1, ("float32", 20, 64, 1, 4), "values has 2560 bytes, its sizes need 1280"),
        (2, (20, 64, 65, 13, 4, 32), "books must be from 1 to 64, got 65"),
        (2, (20, 64, 2, 257, 4, 32), "entries must be from 2 to 256, got 257"),
        (2, (20, 64, 2, 13, 5, 32), "dim 5 does not divide in=64"),
        (2, (20, 64, 2, 13, 4, 48), "group_size 48 does not divide in=64"),
        (2, (2**31, 2**31, 2, 13, 1, 1), "damaged"),
    ],
)
def test_sizes_of_sparse_matrices_and_codebooks_that_disagree(number, sizes, message, compiled):
    make, tensors, _ = damaged_of(sparse_and_codebook()[number], compiled)
    with pytest.raises(ValueError, match=message):
        make(*map(repack.raw, tensors), *sizes)


def test_what_marks_and_codes_point_to_must_be_there(compiled):
    masked, nm, codebook = sparse_and_codebook()
    make, (values, bitmap), sizes = damaged_of(masked, compiled)
    more = bitmap.clone()
    more[3, 0] |= 2
    with pytest.raises(ValueError, match="the bitmap marks 641 weights"):
        make(repack.raw(values), repack.raw(more), *sizes)
    make, (values, positions), sizes = damaged_of(nm, compiled)
    with pytest.raises(ValueError, match="positions must ascend"):
        make(repack.raw(values), repack.raw(torch.zeros_like(positions)), *sizes)
    make, (codes, book, scale), sizes = damaged_of(codebook, compiled)
    with pytest.raises(ValueError, match="codes go beyond the 13 entries"):
        make(repack.raw(torch.full_like(codes, 255)), repack.raw(book), repack.raw(scale), *sizes)


FORKED = """
import os, numpy as np, trimtab_native as native
matrix = native.Matrix.dense(np.ones(4 * 512 * 512, np.uint8), "float32", 512, 512)
x, y, again = np.ones((1, 512), np.float32), np.zeros((1, 512), np.float32), np.zeros((1, 512), np.float32)
native.linear(matrix, x, y, None, 0, "", 2)
child = os.fork()
native.linear(matrix, x, again, None, 0, "", 2)
if child == 0:
    os._exit(0 if (again == y).all() else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0 and (again == y).all()
"""


def test_threads_survive_a_fork(compiled):
    assert subprocess.run([sys.executable, "-c", FORKED], timeout=60).returncode == 0
