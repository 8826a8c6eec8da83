"""The peer's side: GPTQ or AWQ by llm-compressor, in an environment of its own that knows nothing of trimtab.

As its documentation recommends: `oneshot`, the sequential pipeline, with a `GPTQModifier` (columns in order of activation, blocks
of 128 columns, damping 0.01) or an `AWQModifier` and a `QuantizationModifier` (20 points of a grid, scales of weights and
activations), every other setting at its default. The head is left alone, as in trimtab. It is given token ids, so no tokenizer
can differ, and no attention mask, which is faster for it. Its AWQ pins memory for an accelerator and fails where there is none
(0.14.0.1); that call is left out, which costs it nothing.
"""

import argparse
from pathlib import Path
from typing import Any

from gauge import Gauge, hand_over, use_threads, versions


def main() -> None:
    given = arguments()
    use_threads(given.threads)
    gauge = Gauge()
    with gauge("imports"):
        import numpy
        import torch
        from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
        from llmcompressor import oneshot
        from llmcompressor.modifiers.gptq import GPTQModifier
        from llmcompressor.modifiers.quantization import QuantizationModifier
        from llmcompressor.modifiers.transform import AWQModifier
        from llmcompressor.pipelines.cache import IntermediatesCache
        from safetensors.torch import save_file
        from torch.utils.data import DataLoader
        from transformers import AutoModelForCausalLM, AutoTokenizer
    torch.set_num_threads(given.threads)
    if not torch.cuda.is_available():
        IntermediatesCache.pin_memory = lambda *_, **__: None
    if given.onednn:
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    with gauge("load"):
        model = AutoModelForCausalLM.from_pretrained(given.model, dtype=getattr(torch, given.dtype))
        tokenizer = AutoTokenizer.from_pretrained(given.model)
    windows = torch.from_numpy(numpy.load(given.windows))
    shown = DataLoader([{"input_ids": ids} for ids in windows], batch_size=given.batch)
    weights = QuantizationArgs(num_bits=given.bits, strategy="group", group_size=given.group_size, symmetric=False)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    rounding = {"config_groups": {"all": scheme}, "ignore": ["lm_head"]}
    recipes = {"gptq": lambda: GPTQModifier(**rounding), "awq": lambda: [AWQModifier(), QuantizationModifier(**rounding)]}
    with gauge("compress"):
        oneshot(model=model, tokenizer=tokenizer, dataset=shown, recipe=recipes[given.method](), pipeline="sequential")
    rounded = {name: module for name, module in model.named_modules() if hasattr(module, "weight_scale")}
    stored = as_codes_say if given.method == "awq" else lambda module: module.weight
    matrices = {f"{name}.weight": stored(module) for name, module in rounded.items()}
    gains = {name: weight for name, weight in model.named_parameters() if name.endswith("norm.weight")}
    save_file({name: weight.detach().contiguous() for name, weight in {**matrices, **gains}.items()}, given.weights)
    found = versions("llmcompressor", "compressed-tensors", "torch", "transformers")
    hand_over(given.result, {"stages": gauge.stages, "matrices": len(matrices), "versions": found})


def as_codes_say(module: Any) -> Any:
    """The matrix as it is stored. GPTQ leaves it so; of a model in memory what AWQ scaled is still to be rounded."""
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize

    return fake_quantize(module.weight, module.weight_scale, module.weight_zero_point, module.quantization_scheme.weights)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of a model in the Hugging Face layout")
    parser.add_argument("--windows", type=Path, required=True, help=".npy file of token ids [windows, length]")
    parser.add_argument("--weights", type=Path, required=True, help=".safetensors file to write the rounded matrices to")
    parser.add_argument("--result", type=Path, required=True, help=".json file to write seconds and memory to")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--onednn", action="store_true", help="float32 products through oneDNN, as trimtab takes them")
    parser.add_argument("--method", choices=["gptq", "awq"], default="gptq")
    parser.add_argument("--batch", type=int, default=1, help="windows per forward pass")
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
