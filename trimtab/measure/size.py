"""How big a model is: on disk, in bits per weight, in memory.

Bits per weight count everything a compressed matrix stores (codes, scales, indices, codebooks), per weight of the matrix
that it stands for. Channels and blocks that were removed for good are no weights any more: they show in the weight count.
"""

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor, nn

from trimtab.core.errors import ModelError
from trimtab.core.report import Measurement
from trimtab.engine.basis import LEFT, BasisLinear

WEIGHT_FILES = (".safetensors", ".gguf")


def size(thing: Path | str | nn.Module) -> list[Measurement]:
    """Of a saved folder: bytes of its weight files. Of a model: bits per weight and memory at rest."""
    if isinstance(thing, nn.Module):
        return [*bits_per_weight(thing), memory_at_rest(thing)]
    return [file_bytes(Path(thing))]


def file_bytes(folder: Path) -> Measurement:
    """All weight files of a saved model; n counts the files. Raises ModelError if there are none."""
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in WEIGHT_FILES and path.is_file()]
    if not files:
        raise ModelError(f"{folder} holds no weight files ({', '.join(WEIGHT_FILES)}); give the folder of a saved model")
    return Measurement("file size", float(sum(path.stat().st_size for path in files)), 0.0, len(files), "bytes")


def bits_per_weight(model: nn.Module) -> list[Measurement]:
    """Over the matrices of the blocks, and over all parameters; n counts weights. A tied matrix counts once."""
    held = list(_held(model))
    blocks = [(weights, bits) for path, weights, bits, is_matrix in held if is_matrix and _in_block(path)]
    everything = [(weights, bits) for _, weights, bits, _ in held]
    return [_per_weight("bits per weight, blocks", blocks), _per_weight("bits per weight, all", everything)]


def memory_at_rest(model: nn.Module) -> Measurement:
    """Bytes of the storages behind all parameters and buffers, each once; n counts storages."""
    storages = {}
    for tensor in (*model.parameters(), *model.buffers()):
        storage = tensor.untyped_storage()
        storages[tensor.device, storage.data_ptr()] = storage.nbytes()
    return Measurement("memory at rest", float(sum(storages.values())), 0.0, len(storages), "bytes")


def _per_weight(name: str, held: list[tuple[int, float]]) -> Measurement:
    weights = sum(count for count, _ in held)
    bits = sum(stored for _, stored in held)
    return Measurement(name, bits / weights if weights else 0.0, 0.0, weights, "bits")


def _held(model: nn.Module) -> Iterator[tuple[str, int, float, bool]]:
    """(path, weights, stored bits, is a matrix) of every compressed weight and every plain parameter."""
    packed = {path: module for path, module in model.named_modules() if hasattr(module, "weight_value")}
    # By what is stored, the weights of the matrix that it stands for: on a basis that another place stores, more than its own.
    on_basis = {f"{path}.{LEFT}": m for path, m in model.named_modules() if isinstance(m, BasisLinear)}
    whole = {path: m.out_features * m.in_features for path, m in on_basis.items()}
    for path, module in packed.items():
        rows, columns = module.weight_value.shape
        yield path, whole.get(path, rows * columns), module.weight_value.bits * rows * columns, True
    for path, parameter in model.named_parameters():
        owner, _, name = path.rpartition(".")
        if owner not in packed or name == "bias":
            count = whole.get(owner, parameter.numel()) if name == "weight" else parameter.numel()
            yield path, count, _bits(parameter), parameter.ndim > 1


def _bits(tensor: Tensor) -> float:
    return 8.0 * tensor.element_size() * tensor.numel()


def _in_block(path: str) -> bool:
    """Blocks, and nothing else that holds matrices, live in a numbered list."""
    return any(part.isdigit() for part in path.split("."))
