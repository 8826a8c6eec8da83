"""Models that are larger than memory: opened without their blocks, and written tensor by tensor.

The in-memory way reads a model as a whole, which is faster. Here a skeleton is made, what is outside of the blocks is read, and
every block's tensors are known by their places in the files (`engine/depot.py`). What is written is the same to the byte.
"""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from trimtab.anatomy.blocks import blocks_path
from trimtab.core.errors import ModelError, UsageError, first_line
from trimtab.core.kinds import LinearMethod, Trials
from trimtab.core.recipe import Recipe
from trimtab.engine.depot import Depot, Stored, absent
from trimtab.host import checkpoint, folder_checks, manifest, tensor_file
from trimtab.host.checkpoint import Tokenizer
from trimtab.host.publish import publish

SHARD = "4GB"  # as `checkpoint.save` has it
PLAIN = (torch.float32, torch.float16, torch.bfloat16)


def check_steps(recipe: Recipe) -> None:
    """Raises `UsageError` for steps that need the whole model in memory."""
    for step in recipe.steps:
        if not isinstance(step.method, LinearMethod):
            raise UsageError(
                f"--offload goes block by block, and {step.method.card.id} changes the model as a whole; leave one out"
            )
        if step.by is not None and Trials in step.by.needs:
            raise UsageError(f"--offload goes block by block, and {step.by.card.id} judges the whole model; leave one out")


def open_model(folder: Path, dtype: torch.dtype | None, place: Path) -> tuple[PreTrainedModel, Depot, Tokenizer]:
    """A model whose blocks stay in its files; what is made of them goes to `place`. Checked as `checkpoint.load` checks.

    Raises `ModelError` for models that are packed, or whose files name tensors otherwise than the model does.
    """
    folder_checks.check_links(folder)
    manifest.verify(folder)
    config = checkpoint.read_config(folder)
    stored = {name: at for file in folder_checks.weight_files(folder) for name, at in tensor_file.places(file).items()}
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(f"{folder} is packed; --offload opens plain models only")
    floats = [at.dtype for at in stored.values() if at.dtype.is_floating_point]
    said = getattr(config, "dtype", None)
    wanted = dtype or (getattr(torch, said) if isinstance(said, str) else said) or (floats[0] if floats else torch.float32)
    model = _skeleton(folder, config, wanted)
    if wanted is not torch.float32 and (model._keep_in_fp32_modules or model._keep_in_fp32_modules_strict):
        raise ModelError(f"{folder}: this family keeps parts in float32; --offload opens it with --dtype float32 only")
    model.config.dtype = wanted
    _compute_buffers(model, stored)  # before there are parameters: families begin theirs anew with them
    _check_names(model, stored, folder)
    known = _filled(model, stored, wanted)
    own = (folder / "generation_config.json").exists()  # if not, as `from_pretrained` does
    about = {} if own else {"config_file_name": "config.json", "_from_model_config": True}
    model.generation_config = GenerationConfig.from_pretrained(folder, **about)
    place.mkdir(parents=True, exist_ok=True)
    return model.eval(), Depot(model, known, place), checkpoint.load_tokenizer(folder)


def _skeleton(folder: Path, config: Any, dtype: torch.dtype) -> PreTrainedModel:
    # Whatever goes wrong here, the reason is the file.
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype)
    except Exception as error:
        raise ModelError(f"{folder / 'config.json'} is not a usable config: {first_line(error):.300}") from error


def save_model(
    model: PreTrainedModel,
    depot: Depot,
    tokenizer: Tokenizer,
    folder: str | Path,
    texts: Mapping[str, str],
    overwrite: bool,
    ready: Callable[[Path], None] | None,
) -> Path:
    """What `checkpoint.save` writes, tensor by tensor. texts: further files, by name."""
    with publish(folder, overwrite, 0, ready) as partial:
        modules = checkpoint.described(model)
        checkpoint.announce(model, modules)
        model.save_pretrained(partial, state_dict={})  # the configs
        every = model.state_dict(keep_vars=True)
        tensors = {name: every[name] for name in checkpoint.distinct(model)}
        _write(model, tensors, lambda name: _checked(name, depot.values(tensors[name])), partial)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        for name, text in texts.items():
            (partial / name).write_text(text, encoding="utf-8")
    return Path(folder)


def _write(model: PreTrainedModel, tensors: Mapping[str, Tensor], values: Callable[[str], Tensor], folder: Path) -> None:
    shapes = {name: torch.empty(t.shape, dtype=t.dtype, device="meta") for name, t in tensors.items()}
    split = split_torch_state_dict_into_shards(shapes, filename_pattern="model{suffix}.safetensors", max_shard_size=SHARD)
    (folder / "model.safetensors").unlink(missing_ok=True)
    for file, names in split.filename_to_tensors.items():
        tensor_file.write(folder / file, {name: tensors[name] for name in names}, values)
    if split.is_sharded:
        about = {"total_parameters": model.num_parameters(), **split.metadata}
        index = {"metadata": about, "weight_map": split.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _checked(name: str, value: Tensor) -> Tensor:
    checkpoint.check_value(name, value)
    return value


def _check_names(model: PreTrainedModel, stored: Mapping[str, Stored], folder: Path) -> None:
    expected = {name: tuple(t.shape) for name, t in model.state_dict(keep_vars=True).items()}
    tied = {name for name in expected if name not in checkpoint.distinct(model)}
    for name in sorted((expected.keys() ^ stored.keys()) - tied):
        state = "does not hold" if name in expected else "holds, under a name that the model does not have,"
        raise ModelError(f"{folder} {state} {name}; --offload opens files that name every tensor as the model does")
    for name, at in stored.items():
        if at.shape != expected[name]:
            raise ModelError(f"{folder} holds {name} as {list(at.shape)}, its config says {list(expected[name])}")
        if at.dtype not in PLAIN:
            raise ModelError(f"{folder} holds {name} in {at.dtype}; --offload opens float32, float16 and bfloat16")


def _filled(model: PreTrainedModel, stored: Mapping[str, Stored], dtype: torch.dtype) -> dict[int, tuple[Tensor, Stored]]:
    """Parameters in place of the skeleton's: read where they are outside of the blocks, absent inside. Returns where."""
    inside = blocks_path(model) + "."
    known: dict[int, tuple[Tensor, Stored]] = {}
    made: dict[int, nn.Parameter] = {}
    for path, module in model.named_modules():
        for name, old in list(module._parameters.items()):
            if old is None:
                continue
            full = f"{path}.{name}" if path else name
            if id(old) not in made:
                away = full.startswith(inside) and old.numel() > 1
                data = absent(old.shape, dtype) if away else stored[full].read().to(dtype)
                made[id(old)] = nn.Parameter(data)
                if away:
                    known[id(made[id(old)])] = made[id(old)], stored[full]
            module._parameters[name] = made[id(old)]
    return known


@torch.no_grad()
def _compute_buffers(model: PreTrainedModel, stored: Mapping[str, Stored]) -> None:
    """What is no parameter: read where a file holds it, else computed by the family, as when a model is opened as a whole."""
    for path, module in model.named_modules():
        absent_ones = [name for name, buffer in module._buffers.items() if buffer is not None and buffer.is_meta]
        for name in [n for n in absent_ones if f"{path}.{n}" in stored]:
            at = stored[f"{path}.{name}"]
            module._buffers[name] = at.read().to(at.dtype)
            absent_ones.remove(name)
        if absent_ones:
            first, second = (_computed(model, module, absent_ones, fill) for fill in (0, 1))
            if not all(torch.equal(first[name], second[name]) for name in absent_ones):
                raise ModelError(f"{path} has tensors that only its own code can make; --offload does not open this family")


def _computed(model: PreTrainedModel, module: nn.Module, names: Sequence[str], fill: int) -> dict[str, Tensor]:
    """What the family makes of these buffers; `fill` where it makes nothing."""
    for name in names:
        buffer = module._buffers[name]
        assert buffer is not None
        module._buffers[name] = torch.full(buffer.shape, fill, dtype=buffer.dtype, device="cpu")
    model._init_weights(module)
    return {name: module.get_buffer(name).clone() for name in names}
