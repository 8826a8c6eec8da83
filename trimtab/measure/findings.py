"""What a probe finds in a model that reads some windows, for claims about findings."""

import gc
from dataclasses import dataclass
from time import perf_counter

from trimtab.core.errors import ModelError
from trimtab.core.kinds import ProbeMethod
from trimtab.core.progress import Watcher, unwatched
from trimtab.data.windows import calibration_windows
from trimtab.engine.probe import probe
from trimtab.host.checkpoint import load
from trimtab.measure.sides import Setting


@dataclass(frozen=True)
class Reading:
    """found: by finding, values by block."""

    found: dict[str, dict[int, float]]
    seconds: float


def read_model(folder: str, method: ProbeMethod, setting: Setting, seed: int, watch: Watcher = unwatched) -> Reading:
    """Opens the model and looks at it while it reads the calibration text. seed: of the windows and of the probe.

    Raises what the probe or the text raises; `ModelError` if the model has no tokenizer.
    """
    begun, shown = perf_counter(), setting.calibration
    model, tokenizer = load(folder)
    if tokenizer is None:
        raise ModelError(f"{folder} has no tokenizer; copy the tokenizer files of the original model into it")
    windows = calibration_windows(shown.text, tokenizer, shown.tokens, shown.length, seed)
    (findings,) = probe(model, windows, [method], seed, watch)
    del model
    gc.collect()  # modules refer to each other in circles; models would fill the memory before Python noticed
    told = [finding.measurements for finding in findings if finding.measurements]
    found = {measured[0].name: {m.setting["block"]: m.value for m in measured} for measured in told}
    return Reading(found, perf_counter() - begun)
