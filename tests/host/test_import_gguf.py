"""A GGUF header is data from outside: what it claims is compared with the file before anything is believed."""

import struct
from contextlib import suppress
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from export_models import contents_of, grouped, packed_model

import trimtab
from trimtab.core.errors import ModelError
from trimtab.core.seeds import Seeds
from trimtab.host.export import gguf as to_gguf
from trimtab.host.export.contents import values_of
from trimtab.host.export.gguf_blocks import decoded, encoded
from trimtab.host.imports.gguf import _packed
from trimtab.host.imports.gguf_config import config_of
from trimtab.host.imports.gguf_header import Header, Place, read_header

Kind = gguf.GGMLQuantizationType


@pytest.fixture(autouse=True)
def small_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("gguf")
    contents = contents_of(packed_model(lambda path: grouped(4, 32, True), num_hidden_layers=1))
    to_gguf.write(contents, to_gguf.plan(contents, None), folder)
    return (folder / to_gguf.FILE).read_bytes()


def test_the_header_is_what_the_gguf_package_reads(written, tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(written)
    found, theirs = read_header(file), gguf.GGUFReader(file)
    assert found.tensors == {
        t.name: Place(tuple(int(n) for n in reversed(t.shape)), t.tensor_type, int(t.data_offset), int(t.n_bytes))
        for t in theirs.tensors
    }
    assert found.values["general.architecture"] == "llama"
    assert len(found.values["tokenizer.ggml.tokens"]) == 264
    assert found.values.keys() == {key for key in theirs.fields if not key.startswith("GGUF.")}


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def header(version: int = 3, tensors: int = 0, keys: int = 0, rest: bytes = b"", magic: bytes = b"GGUF") -> bytes:
    return magic + struct.pack("<IQQ", version, tensors, keys) + rest + bytes(64)


def tensor(name: bytes = b"a", shape: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is empty"),
        (b"GGUF", "does not begin with GGUF"),
        (header(magic=b"GGML"), "does not begin with GGUF"),
        (header(version=1), "version is 1; trimtab reads 2 and 3"),
        (header(version=3 << 24), "version is 50331648"),
        (header(keys=1 << 60), "it counts 1152921504606846976 keys"),
        (header(tensors=1 << 40), "1099511627776 tensors"),
        (header(keys=1, rest=struct.pack("<Q", 1 << 62)), "a text of 4611686018427387904 bytes"),
        (header(keys=1, rest=text(b"k") + struct.pack("<IIQ", 9, 4, 1 << 61)), "reach beyond its end"),
        (header(keys=1, rest=text(b"k") + struct.pack("<IIQ", 9, 8, 1 << 61)), "a list of 2305843009213693952 texts"),
        (header(keys=1, rest=text(b"k") + struct.pack("<IIQ", 9, 9, 1)), "a value of type 9"),
        (header(keys=1, rest=text(b"k") + struct.pack("<I", 77)), "a value of type 77"),
        (header(keys=2, rest=2 * (text(b"k") + struct.pack("<II", 4, 1))), "'k' occurs twice"),
        (header(keys=1, rest=text(b"general.alignment") + struct.pack("<II", 4, 0)), "general.alignment is 0"),
        (header(tensors=1, rest=tensor(shape=(1,) * 9)), "9 dimensions"),
        (header(tensors=1, rest=tensor(kind=999)), "of kind 999"),
        (header(tensors=1, rest=tensor(shape=(31,), kind=2)), "in blocks of 32"),
        (header(tensors=1, rest=tensor(shape=(0,))), r"is \[0\]"),
        (header(tensors=1, rest=tensor(shape=(1 << 62, 1 << 62))), "it is cut off"),
        (header(tensors=1, rest=tensor(offset=1 << 62)), "it is cut off"),
        (header(tensors=2, rest=tensor(b"a", (8,)) + tensor(b"b", (8,))), "lie over one another"),
    ],
)
def test_a_header_that_claims_too_much(content, what, tmp_path):
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(ModelError, match=what):
        read_header(tmp_path / "model.gguf")


def test_no_byte_of_a_header_breaks_more_than_the_file(written, tmp_path):
    """Flipped bytes and cut files are read, or refused as `ModelError`: never another error."""
    file, draw = tmp_path / "model.gguf", np.random.default_rng(0)
    end = read_header_end(written, tmp_path)
    for _ in range(150):
        changed = bytearray(written[: int(draw.integers(1, end))] if draw.random() < 0.2 else written)
        for place in draw.integers(0, min(end, len(changed)), 3):
            changed[place] = int(draw.integers(256))
        file.write_bytes(changed)
        with suppress(ModelError):
            config_of(read_header(file))


def read_header_end(content: bytes, folder: Path) -> int:
    (folder / "whole.gguf").write_bytes(content)
    return min(place.offset for place in read_header(folder / "whole.gguf").tensors.values())


def test_a_file_that_is_cut_off_is_refused(written, tmp_path):
    (tmp_path / "model.gguf").write_bytes(written[:-100])
    with pytest.raises(ModelError, match="it is cut off"):
        trimtab.load(tmp_path / "model.gguf")


def test_two_files_in_a_folder_have_to_be_told_apart(written, tmp_path):
    folder = tmp_path / "two"
    folder.mkdir()
    for name in ("a.gguf", "b.gguf"):
        (folder / name).write_bytes(written)
    with pytest.raises(ModelError, match="2 GGUF files"):
        trimtab.load(folder)
    assert trimtab.load(folder / "b.gguf")[0].config.num_hidden_layers == 1


def keys(**changed: object) -> Header:
    own = {
        "embedding_length": 64,
        "block_count": 2,
        "feed_forward_length": 128,
        "attention.head_count": 4,
        "context_length": 128,
        "attention.layer_norm_rms_epsilon": float(np.float32(1e-6)),
    }
    values = {"general.architecture": "llama", **{f"llama.{key}": value for key, value in own.items()}, **changed}
    return Header(
        {key: value for key, value in values.items() if value is not None}, {"token_embd.weight": Place((9, 64), Kind.F32, 0, 0)}
    )


def test_sizes_come_from_the_keys():
    config = config_of(keys())
    assert (config["vocab_size"], config["head_dim"], config["num_key_value_heads"]) == (9, 16, 4)
    assert config["rms_norm_eps"] == 1e-6
    assert config["tie_word_embeddings"]


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"general.architecture": "lama"}, "architecture 'lama' are not read; did you mean 'llama'"),
        ({"general.architecture": None}, "architecture None"),
        ({"llama.block_count": None}, "llama.block_count is None"),
        ({"llama.block_count": 2.5}, "llama.block_count is 2.5"),
        ({"llama.expert_count": 8}, "with experts"),
        ({"llama.rope.scaling.type": "yarn"}, "type 'yarn'"),
        ({"llama.rope.dimension_count": 8}, "heads are 16 wide"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "nan, expected a number"),
    ],
)
def test_what_the_keys_lack_is_named(changed, what):
    with pytest.raises(ModelError, match=what):
        config_of(keys(**changed))


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q5_0, Kind.Q8_0])
def test_blocks_become_integers(kind):
    values = torch.randn(6, 64, generator=Seeds(0).at("blocks"))
    stored = encoded(values, kind)
    found = _packed(Place((6, 64), kind, 0, stored.nbytes), stored.reshape(-1))
    assert found is not None
    assert torch.equal(found.dense(), decoded(stored, kind))


@pytest.mark.parametrize("kind", [Kind.Q4_1, Kind.Q5_1])
def test_blocks_with_an_offset_become_integers_where_it_is_a_multiple(kind):
    codes = torch.arange(64).remainder(16).float().expand(6, 64)
    stored = encoded((codes - 3) * 0.25, kind)
    free = encoded(torch.randn(6, 64, generator=Seeds(0).at("free")), kind)
    place = Place((6, 64), kind, 0, stored.nbytes)
    assert _packed(place, free.reshape(-1)) is None
    if kind is Kind.Q4_1:  # of 15 steps from -0.75 to 3
        assert torch.equal(_packed(place, stored.reshape(-1)).dense(), decoded(stored, kind))


def test_other_kinds_are_unpacked(tmp_path, monkeypatch):
    model = packed_model(lambda path: None, num_hidden_layers=1)
    contents = contents_of(model)
    monkeypatch.setattr(to_gguf, "_kind", lambda value, values: Kind.F32 if values.ndim == 1 else Kind.Q4_1)
    monkeypatch.setattr(to_gguf, "_checked", lambda entry, value, order, kind: encoded(ordered(value, order), kind))
    to_gguf.write(contents, to_gguf.plan(contents, None), tmp_path)
    again, _ = trimtab.load(tmp_path / to_gguf.FILE)
    assert {value.dtype for value in values_of(again).values()} == {torch.float32}
    for name, value in values_of(again).items():
        expected = decoded(encoded(contents.values[name], Kind.Q4_1), Kind.Q4_1) if value.ndim == 2 else contents.values[name]
        assert torch.equal(value, expected), name


def ordered(value: torch.Tensor, order: torch.Tensor | None) -> torch.Tensor:
    return value.float() if order is None else value.float()[order]
