"""transformers' one hook for checkpoints whose modules are not what the config says: our entry in its table.

While loading, the model exists as a skeleton on the meta device; the hook exchanges modules there, and the ordinary loader
then finds a place for every tensor. Layers dropped, widths narrowed, weights packed: all of it is this one exchange.

The file's description is data from outside. It names paths, kinds, shapes; anything else in it is an error, nothing in it
is executed, and no key of it reaches another function's arguments.

Importing this module registers it. Written against transformers 5.23, which calls `HfQuantizer` an internal helper: when
it moves, this is the place to look.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from trimtab.core.errors import ModelError
from trimtab.engine import surgery
from trimtab.engine.packed_linear import PackedLinear

METHOD = "trimtab"
VERSION = 1
MOST_MODULES = 10**6


class TrimtabConfig(QuantizationConfigMixin):
    """`quantization_config` of a folder. modules: dotted path -> what stands there, as `surgery.shape` reads it."""

    def __init__(self, modules: Any = None, version: Any = VERSION, quant_method: str = METHOD, **unknown: Any) -> None:
        if unknown:
            raise ModelError(f"quantization_config has keys that trimtab does not know: {_listed(unknown)}")
        if version != VERSION:
            raise ModelError(f"the model was written in trimtab format {version!r:.40}; this version reads {VERSION}")
        if not isinstance(modules, dict) or len(modules) > MOST_MODULES:
            raise ModelError(f"quantization_config needs `modules`, a mapping of at most {MOST_MODULES} entries")
        for path, entry in modules.items():
            if not isinstance(path, str) or not isinstance(entry, dict) or not isinstance(entry.get("kind"), str):
                raise ModelError(f"quantization_config: the entry {path!r:.200} needs a kind")
        self.quant_method = quant_method
        self.version = version
        self.modules = modules


class TrimtabQuantizer(HfQuantizer):
    """Shapes the skeleton before the weights come, and checks that every packed tensor has come."""

    requires_calibration = False
    quantization_config: TrimtabConfig

    def _process_model_before_weight_loading(self, model: nn.Module, dtype: torch.dtype | None = None, **kwargs: Any) -> None:
        surgery.shape(model, self.quantization_config.modules, dtype or torch.get_default_dtype())
        self._stored = {name: value.dtype for name, value in _packed_buffers(model)}
        for module in _weightless(model):
            module.weight = _nothing_to_draw()

    def get_new_dtype(self, converter: Any, param: Any, dtype: torch.dtype | None) -> torch.dtype | None:
        """Packed tensors are taken as stored; the rest follows the dtype asked for."""
        if self._stored.keys() & set(converter.target_patterns):
            return None
        return super().get_new_dtype(converter, param, dtype)

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        for module in _weightless(model):
            del module.weight
        # The stock loader only warns about a tensor that is not in the files, and leaves whatever was in memory there.
        for name, value in _packed_buffers(model):
            if not getattr(value, "_is_hf_initialized", False):
                raise ModelError(f"the model's files have no tensor {name}; fetch or write the model again")
            if value.dtype != self._stored[name]:
                raise ModelError(f"{name} is stored as {value.dtype}, its format has {self._stored[name]}")

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False


def _listed(names: Any) -> str:
    text = ", ".join(sorted(names))
    return text if text.isprintable() and len(text) < 200 else f"{text!r:.200}"


def _nothing_to_draw() -> Tensor:
    """Some families draw initial values for `child.weight` by name when any tensor of the model is new; this one is not."""
    witness = torch.empty(0)
    witness._is_hf_initialized = True  # type: ignore[attr-defined]
    return witness


def _weightless(model: nn.Module) -> list[PackedLinear]:
    """Those without a `weight` of their own: a matrix among packed ones may be dense, and then has one."""
    return [m for m in model.modules() if isinstance(m, PackedLinear) and "weight" not in m._buffers]


def _packed_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for path, module in model.named_modules():
        if isinstance(module, PackedLinear):
            for name, value in module.named_buffers():
                yield f"{path}.{name}", value


if METHOD not in auto.AUTO_QUANTIZER_MAPPING:
    auto.register_quantization_config(METHOD)(TrimtabConfig)
    auto.register_quantizer(METHOD)(TrimtabQuantizer)
