"""trimtab's side, and the judge of both sides: each command is one process, so that seconds and memory are its own.

prepare   writes the token windows that both sides are shown and judged on, and says what they are measured with
compress  runs one recipe through the public call, as a user would, and keeps the resulting matrices
evaluate  puts either side's matrices into the original model and measures that, in float32, with one and the same code
"""

import argparse
from pathlib import Path
from typing import Any

from gauge import Gauge, hand_over, use_threads, versions

MODEL, SHOWN, JUDGED = "asset:smollm2-135m", "asset:squad-drop", "asset:boolq"


def prepare(given: argparse.Namespace) -> dict[str, Any]:
    import numpy
    from transformers import AutoTokenizer

    from trimtab.data.windows import calibration_windows, evaluation_windows
    from trimtab.host.model_assets import resolve_model
    from trimtab.host.provenance import commit, machine
    from trimtab.host.source import history
    from trimtab.tensors.products import fast_products

    folder = resolve_model(MODEL)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    shown = calibration_windows(SHOWN, tokenizer, given.windows * given.length, given.length, seed=0)
    judged = evaluation_windows(JUDGED, tokenizer, given.judged_windows, given.length, seed=0)
    numpy.save(given.shown, shown.numpy())
    numpy.save(given.judged, judged.numpy())
    with fast_products() as fast:
        return {
            "model": MODEL,
            "folder": folder,
            "history": history(Path(folder)),
            "commit": commit(),
            "machine": {**machine(), "processor": _processor(), "fast_products": fast},
        }


def compress(given: argparse.Namespace) -> dict[str, Any]:
    gauge = Gauge()
    with gauge("imports"):
        import torch

        from trimtab import Calibration, Recipe
        from trimtab.anatomy import Anatomy
        from trimtab.host.checkpoint import load
        from trimtab.host.compress import compress
        from trimtab.host.model_assets import resolve_model
    torch.set_num_threads(given.threads)
    with gauge("load"):
        model, tokenizer = load(resolve_model(MODEL), dtype=getattr(torch, given.dtype))
    assert tokenizer is not None
    bound = _bound(Anatomy.of(model), given.windows * given.length, "gptq" in given.recipe)
    batch = {"batch": given.batch} if given.batch else {}
    shown = Calibration(SHOWN, given.windows * given.length, given.length, compute=given.dtype, **batch)
    recipe = Recipe.of(given.recipe, shown, seed=0)
    with gauge("compress"):
        done = compress(model, recipe, tokenizer=tokenizer)
    _check_shown(given, tokenizer)
    _keep(Anatomy.of(done.model), given.weights)
    bound["libraries"] = int(gauge.stages["imports"]["after"])
    found = versions("trimtab", "torch", "transformers")
    return {"stages": gauge.stages, "profile": done.report.profile, "bound": bound, "versions": found}


def evaluate(given: argparse.Namespace) -> dict[str, Any]:
    import numpy
    import torch
    from safetensors.torch import load_file

    from trimtab.anatomy import Anatomy
    from trimtab.host.checkpoint import load
    from trimtab.host.model_assets import resolve_model
    from trimtab.measure.perplexity import perplexity, token_losses
    from trimtab.tensors.products import fast_products

    torch.set_num_threads(given.threads)
    model, _ = load(resolve_model(MODEL), dtype=torch.float32)
    matrices = load_file(given.weights) if given.weights else {}
    anatomy = Anatomy.of(model)
    expected = {f"{site.path}.weight" for site in anatomy.sites if site.block is not None}
    gains = {f"{norm.path}.weight" for norm in anatomy.norms()}  # where scales moved to, if any did
    if matrices and matrices.keys() - gains != expected:
        raise SystemExit(f"{given.weights}: {len(matrices.keys() - gains)} matrices, the model's blocks have {len(expected)}")
    with torch.no_grad():
        for name, matrix in matrices.items():
            model.get_parameter(name).copy_(matrix)
    with fast_products():
        losses = token_losses(model, torch.from_numpy(numpy.load(given.judged)))
    found = perplexity(losses)
    levels = max((_levels(m, given.group_size) for m in matrices.values() if m.ndim == 2), default=0)
    return {"perplexity": found.value, "stderr": found.stderr, "losses": losses.mean(1).tolist(), "levels": levels}


def _bound(anatomy: Any, tokens: int, gram: bool) -> dict[str, int]:
    """Bytes that a sweep is designed to hold: weights as stored, a block in float32, its statistics, the activations."""
    from trimtab.engine.storage import tensors

    inputs = [[stage[0].shape[1] for stage in anatomy.stages(block)] for block in range(len(anatomy.blocks))]
    return {
        "weights": sum(t.numel() * t.element_size() for t in tensors(anatomy.model)),
        "block": 4 * max(sum(p.numel() for p in block.parameters()) for block in anatomy.blocks),
        "statistics": 4 * max(sum(size**2 if gram else size for size in sizes) for sizes in inputs),
        "activations": 4 * tokens * inputs[0][0],
    }


def _check_shown(given: argparse.Namespace, tokenizer: Any) -> None:
    """The call tokenizes for itself (and that is timed); what it saw must be what the peer is handed."""
    import numpy

    from trimtab.data.windows import calibration_windows

    seen = calibration_windows(SHOWN, tokenizer, given.windows * given.length, given.length, seed=0).numpy()
    if not numpy.array_equal(seen, numpy.load(given.shown)):
        raise SystemExit(f"{given.shown} is not what trimtab was shown; run `prepare` again")


def _keep(anatomy: Any, path: Path) -> None:
    from safetensors.torch import save_file

    blocks = [site for site in anatomy.sites if site.block is not None]
    gains = {f"{norm.path}.weight": anatomy.model.get_parameter(f"{norm.path}.weight").detach() for norm in anatomy.norms()}
    save_file(gains | {f"{site.path}.weight": anatomy.weight(site).dense().contiguous() for site in blocks}, path)


def _levels(matrix: Any, group_size: int) -> int:
    """The most distinct values in any group of a row: at most 2^bits where a matrix is what it claims to be."""
    ordered = matrix.reshape(len(matrix), -1, group_size).sort(-1).values
    return 1 + int((ordered.diff(dim=-1) != 0).sum(-1).max())


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


COMMANDS = {"prepare": prepare, "compress": compress, "evaluate": evaluate}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--result", type=Path, required=True, help=".json file to write")
    parser.add_argument("--shown", type=Path, help=".npy file of the calibration windows")
    parser.add_argument("--judged", type=Path, help=".npy file of the evaluation windows")
    parser.add_argument("--weights", type=Path, help=".safetensors file of matrices; evaluate: none = the model as it is")
    parser.add_argument("--windows", type=int, default=128)
    parser.add_argument("--judged-windows", type=int, default=24)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--recipe", default="gptq(bits=3)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--batch", type=int, help="windows per forward pass; trimtab's own choice if not given")
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def main() -> None:
    given = arguments()
    use_threads(given.threads)
    hand_over(given.result, COMMANDS[given.command](given))


if __name__ == "__main__":
    main()
