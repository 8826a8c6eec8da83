"""Adapter folders: written whole, read strictly, in peft's own form where peft has such an adapter.

`adapter_model.safetensors` holds the tensors. Where peft knows the kind they have its names and `adapter_config.json` says the
rest, so `PeftModel.from_pretrained` opens the folder beside a plain model; adapters that peft itself wrote are read, too, as
far as their kind is one of ours. Any other adapter has names of its own. `adapter.json` says in every case which method made
it with which knobs, and beside which model: on another one it would load and be wrong.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trimtab.anatomy import Anatomy
from trimtab.core.errors import ModelError, UsageError
from trimtab.core.expression import make
from trimtab.core.kinds import Seen
from trimtab.core.places import Site
from trimtab.core.seeds import Seeds
from trimtab.core.trained import AdapterMethod, Chosen, Delta
from trimtab.engine import adapting
from trimtab.host import manifest
from trimtab.host.folder_checks import read_json, weights_in
from trimtab.host.publish import publish

CONFIG, ABOUT, TENSORS = "adapter_config.json", "adapter.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
FORMAT = 1
TURNED = ("LORA", "RANDLORA", "HIRA")  # kinds that have to be told that layers store [in, out]
# Fields of peft's config that change what an adapter computes and have no place in ours.
UNREAD = (
    *("rank_pattern", "alpha_pattern", "modules_to_save", "layer_replication", "trainable_token_indices", "lora_bias"),
    *("alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config", "target_parameters", "use_bdlora"),
    *("use_qalora", "ensure_weight_tying"),
)
CHANGES_THE_BASE = ("corda", "loftq", "lora_ga", "olora", "pissa")  # what peft may begin with, and then add to another model


@dataclass(frozen=True)
class Base:
    """The model that an adapter belongs to: how it was called, and the fingerprint of its files."""

    name: str
    fingerprint: str


def write(
    folder: str | Path,
    deltas: Mapping[str, Delta],
    method: AdapterMethod,
    base: Base,
    said: Mapping[str, Any],
    transposed: bool = False,
    overwrite: bool = False,
    ready: Callable[[Path], None] | None = None,
) -> Path:
    """Publishes an adapter folder. said: what else is to be recorded, as JSON. transposed: the layers store [in, out].

    ready: called with the finished folder before it is given its name.
    Raises `UsageError` where the folder cannot be written, `ModelError` where a tensor is not finite.
    """
    fields = method.portable()
    tensors = _tensors(deltas, portable=fields is not None)
    for name, value in tensors.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ModelError(f"{name} is not finite; train again with a lower learning rate")
    about = {
        "format": FORMAT,
        "method": method.card.id,
        "knobs": method.knobs(),
        "base": vars(base),
        "layers": list(deltas),
        **said,
    }
    with publish(folder, overwrite, sum(value.nbytes for value in tensors.values()), ready) as partial:
        save_file(tensors, partial / TENSORS, metadata={"format": "pt"})
        _write_json(partial / ABOUT, about)
        if fields is not None:
            _write_json(partial / CONFIG, _config(fields, list(deltas), base, transposed))
    return Path(folder)


def read(anatomy: Anatomy, folder: str | Path, base: Base | None = None) -> dict[str, Delta]:
    """Puts the adapter in `folder` beside the model's layers; by path. base: refuse an adapter of another model than this.

    Raises `ModelError` for a folder that is damaged or not an adapter that can be read, `UsageError` naming what does not fit.
    """
    place = Path(folder)
    manifest.verify(place)
    about = _about(place)
    if base is not None:
        _check_base(place, about, base)
    config = read_json(place / CONFIG) if (place / CONFIG).is_file() else None
    method = _method_of(place, about, config)
    by_layer = _by_layer(place, _held(place), PREFIX if config is not None else "", about)
    sites = {site.path: site for site in anatomy.sites if site.index is None}
    _check_layers(place, by_layer, sites)
    seen = Seen({Chosen: Chosen(sites[path] for path in by_layer)}, Seeds(0).at("read"), {})
    made = {path: _made(anatomy, method, seen, sites[path], config is not None, by_layer[path], place) for path in by_layer}
    anatomy.model.requires_grad_(False)
    adapting.beside(anatomy.model, made)
    return made


def learned(folder: str | Path) -> dict[str, Any] | None:
    """How the adapter was trained, as it says itself; None for one of peft's, or of another tool."""
    said = _about(Path(folder)).get("learned")
    return said if isinstance(said, dict) else None


def is_adapter(folder: Path) -> bool:
    return (folder / TENSORS).is_file() and any((folder / name).is_file() for name in (ABOUT, CONFIG))


def _tensors(deltas: Mapping[str, Delta], portable: bool) -> dict[str, Tensor]:
    if portable:
        found = {f"{PREFIX}{path}.{name}": value for path, d in deltas.items() for name, value in d.portable().items()}
    else:
        found = {f"{path}.{name}": value for path, delta in deltas.items() for name, value in delta.state_dict().items()}
    # Copies: two names of one tensor cannot be saved.
    return {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in found.items()}


def _config(fields: Mapping[str, Any], layers: list[str], base: Base, transposed: bool) -> dict[str, Any]:
    turned = {"fan_in_fan_out": transposed} if fields["peft_type"] in TURNED else {}
    standard = {"task_type": "CAUSAL_LM", "base_model_name_or_path": base.name, "inference_mode": True}
    return {**standard, **fields, **turned, "target_modules": sorted(layers)}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _about(place: Path) -> dict[str, Any]:
    """Empty for an adapter that peft wrote."""
    if not is_adapter(place):
        raise ModelError(f"{place} is no adapter folder; it needs {TENSORS} and {ABOUT} or {CONFIG}")
    if not (place / ABOUT).is_file():
        return {}
    about = read_json(place / ABOUT)
    if about.get("format") != FORMAT:
        raise ModelError(f"{place / ABOUT} has format {about.get('format')!r:.40}; this version reads {FORMAT}")
    return about


def _check_base(place: Path, about: Mapping[str, Any], base: Base) -> None:
    made_for = about.get("base", {})
    if made_for and made_for.get("fingerprint") != base.fingerprint:
        raise UsageError(
            f"{place} was trained beside {made_for.get('name')!s:.200}, and {base.name} is another model; "
            f"give the one that it was trained beside, or allow any (--any-base, any_base=True)"
        )


def _method_of(place: Path, about: Mapping[str, Any], config: Mapping[str, Any] | None) -> AdapterMethod:
    """What makes deltas that hold these tensors."""
    if config is None:
        id, knobs = str(about.get("method")), about.get("knobs")
        if not isinstance(knobs, dict):
            raise ModelError(f"{place / ABOUT} names no method with its knobs")
        method = make(id, knobs)
    else:
        method = _of_peft(place / CONFIG, config)
    if not isinstance(method, AdapterMethod):
        raise ModelError(f"{place} was made by {method.card.id}, which is no adapter")
    return method


def _of_peft(path: Path, config: Mapping[str, Any]) -> Any:
    unread = [name for name in UNREAD if config.get(name)]
    if config.get("bias", "none") != "none" or unread:
        raise ModelError(f"{path} uses {', '.join(unread) or 'bias'}, which trimtab does not read; merge it with peft")
    begun = config.get("init_lora_weights")
    if isinstance(begun, str) and begun.startswith(CHANGES_THE_BASE):
        raise ModelError(
            f"{path} begins with init_lora_weights={begun!r:.40}, which changes the base that it is added to; "
            f"save it with peft's path_initial_model_for_weight_conversion, so that it fits the base as it came"
        )
    match config.get("peft_type"), config.get("init_weights"), bool(config.get("use_dora")), bool(config.get("use_rslora")):
        case "LORA", _, False, False:
            return make("lora", {"rank": config.get("r"), "alpha": config.get("lora_alpha")})
        case "LORA", _, True, False:
            return make("dora", {"rank": config.get("r"), "alpha": config.get("lora_alpha")})
        case "LORA", _, False, True:
            return make("rslora", {"rank": config.get("r"), "alpha": config.get("lora_alpha")})
        case "MISS", "bat", _, _:
            return make("bone", {"rank": config.get("r")})
        case "RANDLORA", *_ if not (config.get("save_projection") or config.get("sparse") or config.get("very_sparse")):
            knobs = {"rank": "r", "alpha": "randlora_alpha", "key": "projection_prng_key"}
            return make("randlora", {knob: config.get(field) for knob, field in knobs.items()})
        case "HIRA", *_:
            return make("hut", {"rank": config.get("r")})
        case kind, *_:
            raise ModelError(f"{path} is an adapter of the kind {kind!r:.40}, which trimtab does not read; merge it with peft")


def _held(place: Path) -> dict[str, Tensor]:
    weights_in([place / TENSORS])
    try:
        return load_file(place / TENSORS)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{place / TENSORS} cannot be read: {error}") from error


def _by_layer(place: Path, held: Mapping[str, Tensor], prefix: str, about: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """path -> tensors by their names in the delta."""
    found: dict[str, dict[str, Tensor]] = {}
    layers = about.get("layers", [])
    for name, value in held.items():
        bare = name.removeprefix(prefix)
        path = next((p for p in layers if bare.startswith(f"{p}.")), None) or _peft_path(bare)
        if path is None or not name.startswith(prefix):
            raise ModelError(f"{place / TENSORS} holds {name!r:.200}, which belongs to no layer")
        found.setdefault(path, {})[bare.removeprefix(f"{path}.")] = value
    return found


def _peft_path(name: str) -> str | None:
    for part in (".lora_", ".miss_", ".randlora_", ".hira_"):
        if part in name:
            return name.partition(part)[0]
    return None


def _check_layers(place: Path, by_layer: Mapping[str, Any], sites: Mapping[str, Site]) -> None:
    lacking = [path for path in by_layer if path not in sites]
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise UsageError(
            f"{place} is for a model with {lacking[0]!r:.200}{more}, which this one lacks; give the model it belongs to"
        )


def _made(
    anatomy: Anatomy,
    method: AdapterMethod,
    seen: Seen,
    site: Site,
    portable: bool,
    held: Mapping[str, Tensor],
    place: Path,
) -> Delta:
    for name, value in held.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ModelError(f"{place}: {name} of {site.path} is not finite; train the adapter again")
    try:
        delta = method.blank(anatomy.weight(site), seen, site)
        if portable:
            delta.adopt(held)
        else:
            delta.load_state_dict(held)
    except (KeyError, RuntimeError) as error:
        out, inputs = site.shape
        sizes = ", ".join(f"{name} {list(value.shape)}" for name, value in held.items())
        raise UsageError(f"{place} does not fit {site.path}, which is {out} x {inputs}: it has {sizes}") from error
    return delta


def transposed(model: nn.Module, paths: Mapping[str, Delta]) -> bool:
    """Whether the layers store [in, out], as GPT-2's do."""
    return any(type(model.get_submodule(path)).__name__ == "Conv1D" for path in paths)
