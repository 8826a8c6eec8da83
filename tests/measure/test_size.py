"""Sizes against sums done by hand."""

from pathlib import Path

import pytest
import torch
from torch import nn

from trimtab.core.errors import ModelError
from trimtab.measure.size import bits_per_weight, memory_at_rest, size
from trimtab.testing.tiny import tiny


class Value:
    """Stands for any compressed weight: 2.5 bits for each of its weights."""

    def __init__(self, shape: tuple[int, int]):
        self.shape, self.bits = shape, 2.5


class Packed(nn.Module):
    def __init__(self, rows: int, columns: int):
        super().__init__()
        self.weight_value = Value((rows, columns))
        self.register_buffer("codes", torch.zeros(rows, columns // 4, dtype=torch.uint8))
        self.bias = nn.Parameter(torch.zeros(rows))


def test_a_dense_model_has_the_bits_of_its_dtype() -> None:
    model = tiny("llama").to(torch.bfloat16)
    blocks, everything = bits_per_weight(model)
    assert (blocks.value, everything.value) == (16.0, 16.0)
    assert everything.n == sum(p.numel() for p in model.parameters())
    layer = 2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128
    assert blocks.n == 4 * layer


def test_a_compressed_matrix_counts_what_it_stores_for_the_matrix_it_stands_for() -> None:
    model = tiny("llama")
    before = bits_per_weight(model)
    model.model.layers[0].mlp.down_proj = Packed(64, 128)
    blocks, everything = bits_per_weight(model)
    matrix = 64 * 128
    assert blocks.n == before[0].n
    assert everything.n == before[1].n + 64  # the new bias
    assert blocks.value == pytest.approx(32 - (32 - 2.5) * matrix / blocks.n)
    assert everything.value == pytest.approx(32 - (32 - 2.5) * matrix / everything.n)


def test_tied_embeddings_count_once() -> None:
    tied, untied = tiny("llama", tie_word_embeddings=True), tiny("llama", tie_word_embeddings=False)
    embedding = 97 * 64
    assert bits_per_weight(untied)[1].n - bits_per_weight(tied)[1].n == embedding
    assert memory_at_rest(untied).value - memory_at_rest(tied).value == 4 * embedding


def test_memory_counts_buffers_and_shared_storage_once() -> None:
    model = nn.Module()
    whole = torch.zeros(10, 4)
    model.register_buffer("whole", whole)
    model.register_buffer("part", whole[:2])
    model.register_buffer("codes", torch.zeros(6, dtype=torch.uint8))
    assert memory_at_rest(model).value == 160 + 6


def test_file_size_is_what_lies_in_the_folder(tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path, max_shard_size="100KB")
    shards = list(tmp_path.glob("*.safetensors"))
    (found,) = size(tmp_path)
    assert len(shards) == found.n > 1
    assert found.value == sum(len(shard.read_bytes()) for shard in shards)
    assert size(str(tmp_path)) == [found]


def test_a_folder_without_weights_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no weight files"):
        size(tmp_path)
