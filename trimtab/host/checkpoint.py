"""Saving and opening models: an ordinary Hugging Face folder, written whole and read strictly.

`save` writes what transformers itself would, into a folder that appears in one step (`publish`). Where every matrix is
plain and of the shape that the config says, nothing in it is ours and it opens without trimtab; else config.json carries
a `quantization_config` that says, module by module, what stands there.

`load` is stricter than the stock loader, which opens damaged folders silently: hashes, headers, names, sizes and values
are checked, and every tensor must be used. After that it is an ordinary transformers model.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging

from trimtab.core.errors import ModelError, TrimtabError
from trimtab.engine import surgery
from trimtab.host import folder_checks, manifest
from trimtab.host.publish import is_unfinished, publish, recover
from trimtab.host.quantizer import METHOD, TrimtabConfig, TrimtabQuantizer
from trimtab.host.settle import settle

Opened = TypeVar("Opened")
Tokenizer = PreTrainedTokenizerBase | None
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tokenizer_config.json")
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


def save(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    folder: str | Path,
    recipe_yaml: str | None = None,
    card: str | None = None,
    overwrite: bool = False,
    max_shard_size: int | str = "4GB",
    receipt: str | None = None,
    ready: Callable[[Path], None] | None = None,
) -> Path:
    """Writes the model as `folder`: tokenizer, recipe.yaml, README.md (`card`), receipt.json and the manifest trimtab.json.

    ready: called with the finished folder before it is given its name.
    Raises `UsageError` before any work if the target cannot be written, `ModelError` if a tensor is not finite or would not
    find its place on loading.
    """
    needs = sum(tensor.nbytes for tensor in distinct(model).values())
    with publish(folder, overwrite, needs, ready) as partial:
        modules = described(model)
        _check_values(model)
        announce(model, modules)
        # The layout of older checkpoints merges and splits matrices by name; packed ones have other names.
        model.save_pretrained(partial, max_shard_size=max_shard_size, save_original_format=not modules)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        for name, text in (("recipe.yaml", recipe_yaml), ("README.md", card), ("receipt.json", receipt)):
            if text is not None:
                (partial / name).write_text(text, encoding="utf-8")
    return Path(folder)


def load(
    folder: str | Path, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None
) -> tuple[PreTrainedModel, Tokenizer]:
    """Opens a model folder, or a hub name, in eval mode. dtype: of what is not packed; float32 on CPU, else as stored.

    Raises `ModelError`, one line that names the file and what to do, for anything missing, damaged or out of bounds.
    """
    place = local_folder(folder)
    return unreplaced(place, lambda: _loaded(place, device, dtype))


def unreplaced(place: Path, read: Callable[[], Opened]) -> Opened:
    """What `read` makes of a folder. Raises `ModelError` if it was exchanged for another meanwhile."""
    before = _which(place)
    try:
        opened = read()
    except ModelError as error:
        if _which(place) != before:
            raise _replaced(place) from error
        raise
    if _which(place) != before:
        raise _replaced(place)
    return opened


def _which(place: Path) -> tuple[int, int] | None:
    """The folder behind the name: a writer may exchange it for another while it is read."""
    if not place.exists():
        return None
    found = place.stat()
    return found.st_dev, found.st_ino


def _replaced(place: Path) -> ModelError:
    return ModelError(f"{place} was replaced while it was read; open it again")


def _loaded(place: Path, device: str | torch.device | None, dtype: str | torch.dtype | None) -> tuple[PreTrainedModel, Tokenizer]:
    folder_checks.check_links(place)
    manifest.verify(place)
    config = read_config(place)
    shapes = folder_checks.weights_in(folder_checks.weight_files(place))
    if (place / "adapter_config.json").exists():
        raise ModelError(f"{place} has an adapter beside the model; merge it into the model or remove it")
    _check_amount(config, shapes, place)
    device = torch.device(device or "cpu")
    model = _from_files(place, config, dtype or (torch.float32 if device.type == "cpu" else "auto"))
    settle(model)
    _check_values(model)
    return model.to(device).eval(), load_tokenizer(place)


def skeleton(config: Any, model_class: type[PreTrainedModel] | None = None) -> PreTrainedModel:
    """The model that this config builds, on the meta device: shapes without memory."""
    config = copy.deepcopy(config)
    with torch.device("meta"):
        return model_class(config) if model_class else AutoModelForCausalLM.from_config(config)


def described(model: PreTrainedModel) -> surgery.Modules:
    """What the checkpoint has to say about the model's modules, if loading will find a place for each tensor."""
    foreign = getattr(model, "hf_quantizer", None)
    if foreign is not None and not isinstance(foreign, TrimtabQuantizer):
        raise ModelError(f"a model opened through {type(foreign).__name__} cannot be saved; open the unquantized one")
    plain = skeleton(model.config, type(model))
    modules = surgery.describe(model, plain)
    surgery.shape(plain, modules, model.dtype)
    expected, there = (_shapes(m.state_dict()) for m in (plain, model))
    for name in sorted(expected.keys() ^ there.keys()):
        state = "lacks" if name in expected else "has"
        raise ModelError(f"the model {state} {name}, its config says otherwise; it would not open again")
    for name, size in expected.items():
        if there[name] != size:
            raise ModelError(f"{name} is {list(there[name])}, the config says {list(size)}; it would not open again")
    _check_head(model)
    return modules


def _check_head(model: PreTrainedModel) -> None:
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or not getattr(model.config.get_text_config(), "tie_word_embeddings", False):
        return
    if getattr(head, "weight", None) is not embedding.weight:
        raise ModelError("the head has a matrix of its own but the config ties it to the embedding; untie it first")


def _check_values(model: PreTrainedModel) -> None:
    for name, value in distinct(model).items():
        check_value(name, value)


def check_value(name: str, value: Tensor) -> None:
    """Raises `ModelError` for a tensor without values, or with one that is no finite number."""
    if value.is_meta:
        raise ModelError(f"{name} has no values; the model is not complete")
    if value.is_floating_point() and value.numel():
        low, high = torch.aminmax(value if value.element_size() > 1 else value.float())
        if not (low.isfinite() and high.isfinite()):
            raise ModelError(f"{name} has values that are not finite numbers")


def announce(model: PreTrainedModel, modules: surgery.Modules) -> None:
    """The config in memory says what the files will say."""
    if modules:
        model.config.quantization_config = TrimtabConfig(modules)
        return
    if getattr(model.config, "quantization_config", None) is not None:
        del model.config.quantization_config
    if getattr(model, "hf_quantizer", None) is not None:
        del model.hf_quantizer


def distinct(model: PreTrainedModel) -> dict[str, Tensor]:
    """Every tensor once, under its first name, also where several names share it."""
    first: dict[int, tuple[str, Tensor]] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        first.setdefault(id(value), (name, value.detach()))
    return dict(first.values())


def _shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tensors.items()}


def local_folder(folder: str | Path) -> Path:
    """Where the files of a model are: the folder itself, or the copy of what a hub name stands for. Raises `ModelError`."""
    path = Path(folder).expanduser()
    if not path.exists():
        recover(path.absolute())
    if is_unfinished(path):
        raise ModelError(f"{path} was not finished when its writer stopped; write the model again")
    if path.is_dir():
        return path
    name = str(folder)
    if path.exists() or name.count("/") > 1 or name.startswith((".", "/", "~")) or "\\" in name:
        raise ModelError(f"there is no model folder {folder}")
    return _from_hub(name)


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES, ignore_patterns=["*/*", "consolidated*"]))
    except HFValidationError as error:
        raise ModelError(f"there is no model folder {name}, and it is no hub name") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelError(f"there is no model folder {name}, and {_why_not_from_hub()}") from error


def _why_not_from_hub() -> str:
    from huggingface_hub.constants import is_offline_mode

    if is_offline_mode():
        return "it was not fetched before; unset HF_HUB_OFFLINE to ask the hub"
    return "the hub has no such model or cannot be reached"


def read_config(place: Path) -> Any:
    """transformers' config of a model folder. Raises `ModelError`."""
    content = folder_checks.read_config(place)
    kind = content["model_type"]
    if kind not in CONFIG_MAPPING:
        raise ModelError(f"{place}: transformers does not know model_type {kind!r:.80}")
    # Whatever goes wrong here, the reason is the file.
    try:
        return CONFIG_MAPPING[kind].from_dict(content)
    except Exception as error:
        raise ModelError(f"{place / 'config.json'} is not a usable config: {_first_line(error)}") from error


def _check_amount(config: Any, shapes: dict[str, tuple[int, ...]], place: Path) -> None:
    """The stock loader allocates what the config asks for, then notices that the files do not have it. So count first."""
    described = getattr(config, "quantization_config", None)
    if described is not None and described["quant_method"] != METHOD:
        return  # another format may hold several numbers in one
    try:
        model = skeleton(config)
        if described is not None:
            surgery.shape(model, TrimtabConfig(**described).modules, torch.float32)
    except TrimtabError:
        raise
    except Exception as error:
        raise ModelError(f"{place / 'config.json'} is not a usable config: {_first_line(error)}") from error
    asked = sum(value.numel() for value in distinct(model).values())
    held = folder_checks.elements(shapes)
    if asked > 2 * held + (1 << 20):
        raise ModelError(f"{place}: config.json describes {asked:,} numbers, the files hold {held:,}")


def _from_files(place: Path, config: Any, dtype: str | torch.dtype) -> PreTrainedModel:
    try:
        with _silenced():
            model, found = AutoModelForCausalLM.from_pretrained(
                place,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # they are reported below, by name
                output_loading_info=True,
            )
    except (
        OSError,
        ArithmeticError,
        ValueError,
        RuntimeError,
        LookupError,
        TypeError,
        AttributeError,
        ImportError,
        SafetensorError,
    ) as error:
        raise ModelError(f"{place} cannot be opened: {_first_line(error)}") from error
    for what, names in (
        ("does not hold", found["missing_keys"]),
        ("holds, without a place in the model,", found["unexpected_keys"]),
        ("holds in another shape", [key[0] for key in found["mismatched_keys"]]),
    ):
        for name in sorted(names):
            raise ModelError(f"{place} {what} {_named(name)} ({len(names)} such); fetch or write the model again")
    return model


@contextmanager
def _silenced() -> Iterator[None]:
    """The stock report of missing and surplus tensors is a table on stderr; ours is an error."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def load_tokenizer(place: Path) -> Tokenizer:
    """The tokenizer in a model folder; None if it holds none. Raises `ModelError`."""
    if not any((place / name).exists() for name in TOKENIZER_FILES):
        return None
    try:
        return AutoTokenizer.from_pretrained(place, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise ModelError(f"the tokenizer in {place} cannot be opened: {_first_line(error)}") from error


def _named(tensor: str) -> str:
    return tensor[:200] if tensor.isprintable() else f"{tensor!r:.200}"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
