"""Weights, activations, and keys and values in few bits, where channels stand out: a ladder of what makes them easier to round.

    python benchmarks/activations.py                        everything that has not been measured yet, then ACTIVATIONS.md
    python benchmarks/activations.py --only W4A4            these tables
    python benchmarks/activations.py --seeds 0              one seed instead of three
    python benchmarks/activations.py --quick                4 windows of the smallest model: tries the plumbing, writes nothing

Sides are measured and kept as those of claims are (`trimtab.measure.side_store`): what was measured is not measured again,
and a run that was stopped goes on. Seconds are of a whole side, opening and judging included; nothing runs faster for being
rounded here.
"""

from pathlib import Path

from side_tables import arguments, head, measured, perplexity, setting, table, told

from trimtab.measure.side_store import Ground, SideStore

PAGE = Path(__file__).resolve().parent / "ACTIVATIONS.md"
MODEL = "asset:own-5m-outliers"
TABLES = {"W8A8": (8, 8, 16), "W4A8KV4": (4, 8, 4), "W4A4": (4, 4, 16), "W4A4KV4": (4, 4, 4), "W3A3": (3, 3, 16)}

MORE = (
    "W4A8KV4: weights in 4 bits with a scale for every row, inputs in 8 with one for every token, keys and values in 4 with one "
    "for every head and token. Bits are stored ones, of the weights and what turns their inputs."
)


def recipes(table: str) -> list[str]:
    """Of one table, from plain rounding on; the first is what the others are set against."""
    bits, input_bits, _ = TABLES[table]
    inputs = f"act_quant(bits={input_bits})"
    rtn, gptq = f"rtn(bits={bits}, group_size=0)", f"gptq(bits={bits}, group_size=0)"
    before = ("", "smoothquant -> ", "quarot -> ")
    rounded = [f"{first}{weights} -> {inputs}" for weights in (rtn, gptq) for first in before]
    flat = [f"flatquant(bits={bits}, input_bits={input_bits}{more})" for more in (", epochs=0", ", start='identity'", "")]
    channels = f"qllm_channels(to_bits={bits}, input_bits={input_bits})"
    qllm = f"qllm(bits={bits}, input_bits={input_bits})"
    fire = ["fireq", "smoothquant(alpha=0.0) -> fireq", "smoothquant(alpha=0.0) -> fireq_keys -> fireq"]
    return [*rounded, *flat, qllm, f"{channels} -> {qllm}", *(fire if (bits, input_bits) == (4, 8) else [])]


def main() -> int:
    given = arguments(__doc__, TABLES)
    asked = setting(given, MODEL)
    ground = Ground.of(asked)
    as_it_came = f"perplexity {perplexity(SideStore(asked, ground).sides([None])[0]):.2f}"
    sections = [head("Activations in few bits", "activations.py", asked, as_it_came, MORE)]
    for name in given.only or (["W4A4KV4"] if given.quick else TABLES):
        store = SideStore(asked, ground, kv_bits=TABLES[name][2])
        sections.append(table(name, measured(store, recipes(name))))
    return told(given, PAGE, sections)


if __name__ == "__main__":
    raise SystemExit(main())
