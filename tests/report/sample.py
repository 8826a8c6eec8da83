"""A comparison as a real run would write it: a base and two models made from it, 30 blocks of 7 matrices; numbers invented."""

import json
import math
import random
import struct
from pathlib import Path
from typing import Any

BLOCKS = 30
SHAPES = {
    "self_attn.q_proj": (576, 576),
    "self_attn.k_proj": (192, 576),
    "self_attn.v_proj": (192, 576),
    "self_attn.o_proj": (576, 576),
    "mlp.gate_proj": (1536, 576),
    "mlp.up_proj": (1536, 576),
    "mlp.down_proj": (576, 1536),
}
TASKS = {"arc_easy": (500, 0.56, 0.25), "boolq": (500, 0.60, 0.5), "sciq": (400, 0.81, 0.25), "mmlu_stem": (300, 0.29, 0.25)}
DOMAINS = {"encyclopaedia": 2.91, "dialogue": 3.32, "code": 2.18, "news": 3.05}
PROMPTS = {
    "The capital of France is": " Paris. It is the largest city in the country and the seat of its government.",
    "Water boils at": " 100 degrees Celsius at sea level. At higher altitudes the boiling point is lower.",
    "def fibonacci(n):": "\n    if n < 2:\n        return n\n    return fibonacci(n - 1) + fibonacci(n - 2)",
}
EVIL = (
    "<script>window.pwned=1</script><img src=x onerror=window.pwned=1>\"' onload=window.pwned=1 x='"
    "|`*_[a](https://evil.example)\n---\n# {{7*7}}"
)
KEPT = {"verdict", "unit", "name", "step"}
NAMES = ("SmolLM2-135M-Instruct", "smollm2-4bit", "smollm2-2bit-lowrank")


def comparison(blocks: int = BLOCKS, names: tuple[str, ...] = NAMES) -> dict[str, Any]:
    """The base is `names[0]`; each next model is worse than the one before."""
    others = []
    for level, name in enumerate(names[1:], 1):
        harm = 0.012 if level == 1 else 0.28 * (level - 1)
        bits = 4.5 if level == 1 else max(2.25, 4.0 - level * 0.6)
        made = model(name, harm, bits, level, receipt(bits, blocks, level))
        others.append({**made, "against_base": against(harm, level)})
    return {
        "format": 1,
        "setting": {"text": "asset:boolq", "windows": 24, "length": 512, "seed": 0, "dtype": "float32", "tasks": list(TASKS)},
        "base": model(names[0], 0.0, 32.0, 0, None),
        "others": others,
        "notes": ["The base's matrices were rounded to 4 bits (groups of 32) before we got them."],
        "made": provenance(),
    }


def model(name: str, harm: float, bits: float, level: int, receipt: dict[str, Any] | None) -> dict[str, Any]:
    """harm: nats per token more than the base."""
    draw = random.Random(level)
    return {
        "name": name,
        "folder": None,
        "fingerprint": f"{level + 1:064x}",
        "measurements": measurements(harm, bits),
        "tasks": {task: score(task, harm) for task in TASKS},
        "domains": [
            {"domain": domain, "n": 3066, "nats": nats + harm * draw.uniform(0.6, 1.4), "stderr": 0.045}
            for domain, nats in DOMAINS.items()
        ],
        "positions": [
            {"from": start, "to": start + 63, "n": 1536, "nats": 2.72 + 1.1 / (1 + start / 40) + harm, "stderr": 0.04}
            for start in range(0, 512, 64)
        ],
        "calibration": calibration(harm, 12264, 0.004),
        "samples": [{"prompt": prompt, "text": worn(text, harm)} for prompt, text in PROMPTS.items()],
        "receipt": receipt,
    }


def measurements(harm: float, bits: float) -> list[dict[str, Any]]:
    nats = math.log(20.05) + harm
    speed = {"threads": 2, "device": "cpu", "dtype": "float32", "batch": 1, "prompt": 32, "repeats": 5}
    text = {"source": "asset:boolq", "windows": 24, "length": 512, "seed": 0, "dtype": "float32"}
    blocks, everything = 106_168_320, 134_515_008
    size = blocks * bits / 8 + (everything - blocks) * (4 if bits == 32 else 2)

    def one(name: str, value: float, stderr: float, n: int, unit: str, setting: dict[str, Any] | None = None) -> dict[str, Any]:
        return {"name": name, "value": value, "stderr": stderr, "n": n, "unit": unit, "setting": setting or {}}

    return [
        one("perplexity", math.exp(nats), math.exp(nats) * 0.043, 12264, "per token", text),
        one("bits per byte", nats / 3.0, 0.0143, 54631, "bits/byte", text),
        one("bits per weight, blocks", bits, 0.0, blocks, "bits"),
        one("bits per weight, all", size * 8 / everything, 0.0, everything, "bits"),
        one("file size", size, 0.0, 1, "bytes"),
        one("memory at rest", size * 1.02, 0.0, 273, "bytes"),
        one("prefill speed", 812.0 - bits, 11.2, 2560, "tokens/s", {**speed, "prompt": 512}),
        one("decode speed", 21.4 - bits / 10, 0.31, 155, "tokens/s", speed),
    ]


def score(task: str, harm: float) -> dict[str, Any]:
    n, right, chance = TASKS[task]
    accuracy = chance + (right - chance) * math.exp(-2.2 * harm)
    spread = math.sqrt(accuracy * (1 - accuracy) / n)
    return {
        **{"n": n, "accuracy": accuracy, "stderr": spread, "normalised": accuracy * 0.97, "normalised_stderr": spread},
        "calibration": calibration(harm, n, 0.018),
    }


def calibration(harm: float, n: int, stderr: float) -> dict[str, Any]:
    bins = []
    for number in range(10):
        confidence = (number + 0.5) / 10
        accuracy = max(confidence - harm * confidence * (1 - confidence) * 1.6, 0.0)
        count = int(n * (0.16 - 0.012 * number))
        bins.append({"low": number / 10, "high": (number + 1) / 10, "confidence": confidence, "accuracy": accuracy, "n": count})
    return {"error": 0.012 + 0.2 * harm, "stderr": stderr, "n": n, "bins": bins}


def worn(text: str, harm: float) -> str:
    """Some words exchanged, the more the worse the model is."""
    draw, words = random.Random(text), text.split(" ")
    others = ["which", "the", "of", "1", "known", "return", "large"]
    return " ".join(draw.choice(others) if word and draw.random() < harm * 1.2 else word for word in words)


def against(harm: float, level: int) -> dict[str, Any]:
    wide = 0.014 + 0.07 * harm
    verdict = "worse" if harm > wide else "not separable"
    nats = {"difference": harm, "low": harm - wide, "high": harm + wide, "n": 24, "unit": "nats/token", "verdict": verdict}
    bits = {key: value / 3.0 for key, value in nats.items() if isinstance(value, float)}
    return {
        "perplexity": nats,
        "bits_per_byte": {**nats, **bits, "unit": "bits/byte"},
        "kl": {"value": 0.01 + 0.8 * harm, "stderr": 0.001 + 0.02 * harm, "n": 12264, "unit": "nats/token"},
        "same_top": {"value": 0.96 * math.exp(-harm), "stderr": 0.003, "n": 12264, "unit": "share"},
        "tasks": {task: task_difference(task, harm) for task in TASKS},
    }


def task_difference(task: str, harm: float) -> dict[str, Any]:
    n, right, chance = TASKS[task]
    lost = round(n * (0.02 + (right - chance) * (1 - math.exp(-2.2 * harm)) * 1.15))
    gained = round(n * (0.02 + (right - chance) * (1 - math.exp(-2.2 * harm)) * 0.15))
    kept = round(n * right) - lost
    difference, half = (gained - lost) / n, 1.96 * math.sqrt(lost + gained) / n
    flips = {"both_right": kept, "right_to_wrong": lost, "wrong_to_right": gained, "both_wrong": n - kept - lost - gained, "n": n}
    verdict = "worse" if difference + half < 0 else "better" if difference - half > 0 else "not separable"
    return {
        **{"difference": difference, "low": difference - half, "high": difference + half, "n": n},
        **{"verdict": verdict, "flips": flips},
    }


def receipt(bits: float, blocks: int, level: int) -> dict[str, Any]:
    """One step on every matrix, a second one (lqer) from the second model on; damping raised in two places."""
    draw = random.Random(10 + level)
    code = 4 if level == 1 else 2
    steps = [{"gptq": {"bits": code, "group_size": 64, "symmetric": False, "clip": True, "damping": 0.01}}]
    receipts = []
    for block in range(blocks):
        for matrix, (out, inputs) in SHAPES.items():
            place = f"model.layers.{block}.{matrix}"
            depth = block / max(blocks - 1, 1)
            error = 2.0 ** (-2 * code) * (0.4 + 2.5 * depth) * draw.uniform(0.6, 1.6) * (4 if "down" in matrix else 1)
            raised = level == 2 and block in (0, 29) and matrix == "mlp.down_proj"
            after = code + 0.5 + (2 if level > 1 and (block < 2 or matrix == "mlp.down_proj") else 0)
            done = step(1, f"gptq(bits={code}, clip=True)", place, out * inputs, 32.0, after, error)
            receipts.append({**done, "notes": {"damping": 0.1 if raised else 0.01}})
            if level > 1:
                receipts.append(step(2, "lqer(rank=16)", place, out * inputs, after, after + 0.3, error * 0.7))
    if level > 1:
        steps.append({"lqer": {"rank": 16}})
    shown = {"text": "asset:squad-drop", "tokens": 65536, "length": 512, "batch": 4, "compute": "float32"}
    return {
        "model": "SmolLM2-135M-Instruct",
        "recipe": {"trimtab": 1, "seed": 0, "calibration": shown, "steps": steps},
        "receipts": receipts,
        "measurements": [],
        "profile": {"gram": 41.3, "solve": 52.9, "apply": 1.2, "forward": 12.8},
        "notes": [],
        "peak_memory": 2_310_000_000,
        "seeded": True,
        "shown": {**shown, "sha256": f"{7 * level:064x}"},
        "made": provenance(),
        "learned": [curve(level)] if level > 1 else [],
    }


def curve(level: int, steps: int = 450) -> dict[str, Any]:
    """LoRA beside the model, 450 steps, one of which had no finite loss."""
    draw = random.Random(20 + level)
    losses = [2.0 + math.exp(-number / 80) + draw.uniform(-0.1, 0.1) for number in range(steps)]
    validations = [{"step": number, "loss": 2.1 + math.exp(-number / 80)} for number in range(0, steps + 1, 45)]
    said = {"best": steps, "stopped": False, "seconds": 1234.5}
    return {
        "method": "lora(rank=16)",
        "rows": 950,
        "losses": [*losses[:7], None, *losses[8:]],
        "validations": validations,
        **said,
    }


def step(number: int, method: str, place: str, weights: int, before: float, after: float, error: float) -> dict[str, Any]:
    return {
        **{"step": number, "method": method, "place": place, "kind": "grouped", "weights": weights},
        **{"bits_before": before, "bits_after": after, "seconds": 0.31, "error": error, "notes": {}},
    }


def provenance() -> dict[str, Any]:
    return {
        "commit": "1a9c880",
        "versions": {"trimtab": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        "machine": {"cpu": "AVX512", "cores": 2, "arch": "x86_64", "torch": "2.13.0"},
        "date": "2026-11-22T06:00:00+00:00",
    }


def folder(path: Path, receipt: dict[str, Any] | None, blocks: int = 4, width: int = 2) -> Path:
    """A model folder as far as a report looks at it: file headers with empty space behind, and the receipt."""
    path.mkdir(parents=True)
    sizes = {"model.embed_tokens.weight": 49152 * 576, "model.norm.weight": 576}
    for block in range(blocks):
        sizes |= {f"model.layers.{block}.{matrix}.weight": out * inputs for matrix, (out, inputs) in SHAPES.items()}
        sizes[f"model.layers.{block}.input_layernorm.weight"] = 576
    header, end = {}, 0
    for name, count in sizes.items():
        header[name] = {"dtype": "F16", "shape": [count], "data_offsets": [end, end + width * count]}
        end += width * count
    text = json.dumps(header).encode()
    with (path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    if receipt is not None:
        (path / "receipt.json").write_text(json.dumps(receipt), encoding="utf-8")
    return path


def poisoned(value: Any, key: str = "") -> Any:
    """The same with a hostile text in every text, and in every key that is a name."""
    if isinstance(value, str):
        return value if key in KEPT else f"{value}{EVIL}"
    if isinstance(value, list):
        return [poisoned(item, key) for item in value]
    if isinstance(value, dict):
        free = key in ("tasks", "setting", "made", "profile", "shown", "recipe", "versions")
        return {f"{name}{EVIL}" if free else name: poisoned(item, name) for name, item in value.items()}
    return value


def hostile() -> dict[str, Any]:
    made = poisoned(comparison(blocks=2))
    for model in (made["base"], *made["others"]):
        model["name"], model["folder"] = f"{model['name']}{EVIL}", None
    return made
