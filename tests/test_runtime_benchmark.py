"""The benchmark of the runtimes: what it writes is one model in all formats, and what is red has no speed."""

import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader, dequantize

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import answering
import runtime_models as models
from answering import Side
from runtime_page import gate, page, ratios, share

from trimtab.host.checkpoint import load
from trimtab.testing.tiny import tokens


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("shape", ["tiny", "135m"])
def test_a_shape_lists_every_tensor_of_its_model(shape: str) -> None:
    """Against the skeleton that transformers builds from the same config."""
    from transformers import LlamaConfig

    from trimtab.host.checkpoint import skeleton

    wanted = models.SHAPES[shape]
    built = skeleton(LlamaConfig(**{k: v for k, v in models._config(wanted).items() if k != "model_type"}))
    sizes = {f"{one.name}.weight": (one.out, one.in_) for one in models._all(wanted)}
    sizes |= {f"{name}.weight": (wanted.hidden,) for name in models.norms(wanted)}
    assert sizes == {name: tuple(value.shape) for name, value in built.named_parameters()}


def test_folders_open_and_rounding_is_what_its_name_says(cache: Path) -> None:
    plain, _ = load(models.folder("tiny", "bfloat16"))
    ids = tokens(plain, 1, 8)
    logits = plain(ids).logits.detach()
    found = {
        kind: load(models.folder("tiny", kind))[0](ids).logits.detach() for kind in ("grouped2", "even8", "planes2", "free2")
    }
    assert torch.isfinite(logits).all()
    apart = {kind: float((other - logits).norm() / logits.norm()) for kind, other in found.items()}
    assert apart["even8"] < 0.03 < apart["free2"] < apart["grouped2"]
    assert torch.allclose(found["planes2"], found["grouped2"], atol=2e-2 * float(logits.std()))


@pytest.mark.parametrize(("kind", "gone"), [("sparse70", 0.7), ("nm2of4", 0.5)])
def test_pruned_folders_keep_the_largest_of_every_row(cache: Path, kind: str, gone: float) -> None:
    plain, pruned = (load(models.folder("tiny", one))[0].model.layers[0].mlp.down_proj for one in ("bfloat16", kind))
    before, after = plain.weight.float(), pruned(torch.eye(plain.in_features, dtype=plain.weight.dtype)).T.float()
    zeros = (after == 0).sum(1)
    assert set(zeros.tolist()) == {int(gone * plain.in_features + 1e-9)}
    assert torch.equal(after[after != 0], before[after != 0])


def test_the_gguf_file_is_the_same_model(cache: Path) -> None:
    plain, _ = load(models.folder("tiny", "bfloat16"))
    stored = {str(t.name): dequantize(t.data, t.tensor_type) for t in GGUFReader(models.gguf_file("tiny")).tensors}
    shape = models.SHAPES["tiny"]
    assert len(stored) == len(list(plain.parameters()))
    for one in models._all(shape):
        ours = plain.get_parameter(f"{one.name}.weight").detach()
        theirs = torch.from_numpy(stored[f"{one.gguf}.weight"])
        if one.heads:  # neighbours there are halves here
            theirs = theirs.view(one.heads, -1, 2, one.in_).transpose(1, 2).reshape(one.out, one.in_)
        assert torch.equal(ours, theirs), one.name
    for ours_name, theirs_name in models.norms(shape).items():
        assert np.array_equal(plain.get_parameter(f"{ours_name}.weight").detach(), stored[f"{theirs_name}.weight"].ravel())


def test_files_are_written_once(cache: Path) -> None:
    made = []
    for _ in range(2):
        models.quantized_file("tiny", "q", lambda source, target: made.append(source) or target.write_bytes(b"x"))
    assert len(made) == 1
    models.forget("tiny")
    assert list(cache.iterdir()) == []


def test_a_side_answers_in_turn_and_says_what_went_wrong(tmp_path: Path) -> None:
    program = tmp_path / "side.py"
    program.write_text(
        f"import sys\nsys.path.insert(0, {str(Path(answering.__file__).parent)!r})\nfrom answering import serve\n"
        "def add(a, b):\n    print('a library speaks')\n    return {'sum': a + b}\n"
        "def leave():\n    sys.exit(3)\n"
        "serve({'add': add, 'leave': leave})\n"
    )
    with (tmp_path / "log").open("w") as log:
        side = Side([sys.executable, program], log, {})
        assert side.ask("add", a=1, b=2) == {"sum": 3}
        assert side.ask("add", a=1, b="x")["red"].startswith("TypeError")
        assert side.ask("add", a=2, b=2) == {"sum": 4}
        assert side.ask("leave") == {"red": "the process ended with 3"}
    assert "a library speaks" in (tmp_path / "log").read_text()


def line(contender: str, decode: list[float], red: str = "", **more: Any) -> dict[str, Any]:
    return {
        "session": "s",
        "commit": "c",
        "machine": {"processor": "p", "processors": 2},
        "setting": {"prompt": 16, "new_tokens": 64, "prefill": 512, "repeats": len(decode), "instructions": ""},
        "model": "1.1b",
        "contender": contender,
        "program": contender.split()[0],
        "threads": 2,
        "against": [],
        "stored": 5_000_000,
        "bytes_per_token": 4_000_000,
        "versions": {"x": "1"},
        "kernel": "k",
        "error": 0.001,
        "red": red,
        "decode": decode,
        "prefill": [10 * rate for rate in decode],
        "read": [1e9] * len(decode),
        "foreign": 0.0,
        "available": 10.0,
        **more,
    }


LINES = [
    line("trimtab 2 bit", [200.0, 100.0, 300.0], against=["llama.cpp Q2_K"]),
    line("llama.cpp Q2_K", [100.0, 100.0, 100.0]),
]


def changed(index: int, **values: Any) -> list[dict[str, Any]]:
    lines = copy.deepcopy(LINES)
    lines[index].update(values)
    return lines


@pytest.mark.parametrize(
    ("error", "same_top", "program", "said"),
    [
        (0.001, 1.0, "trimtab", ""),
        (0.03, 1.0, "trimtab", "off by 3.0%"),
        (0.001, 0.9, "trimtab", "at 90.0% of positions"),
        (float("nan"), 1.0, "torch", "not finite"),
        (0.03, 0.9, "llama.cpp", ""),
        (0.9, 0.1, "llama.cpp", "another model"),
    ],
)
def test_gate(error: float, same_top: float, program: str, said: str) -> None:
    reason = gate(error, same_top, program)
    assert (reason == "") == (said == "")
    assert said in reason


def test_ratios_are_taken_round_by_round() -> None:
    assert ratios(*LINES, "decode") == [2.0, 1.0, 3.0]
    assert "| trimtab 2 bit | llama.cpp Q2_K | 1.00 | 2.00x (1.00-3.00) | 2.00x (1.00-3.00) |" in page(LINES)


def test_the_share_is_of_the_reading_in_the_same_round() -> None:
    assert share(LINES[0]) == pytest.approx(0.8)
    assert share(LINES[0] | {"read": [1e9, 1e8, 1e9]}) == pytest.approx(1.2)


def test_a_red_line_shows_no_speed_and_no_ratio() -> None:
    text = page(changed(0, red="logits are off"))
    assert "| trimtab 2 bit | c | logits are off | | | | | | |" in text
    assert "200" not in text
    assert "| ours | theirs |" not in text


def test_goals_are_judged() -> None:
    assert "| 1.1b | decode of trimtab 2 bit / llama.cpp Q2_K | 2.00x | 2.00x | holds |" in page(LINES)
    assert "**does not hold**" in page(changed(0, decode=[190.0, 100.0, 300.0]))
    assert "share of reading, trimtab 2 bit | 80% | 60% | holds" in page(LINES)
    assert "Goals" not in page([entry | {"threads": 1} for entry in LINES])


def test_the_newest_line_of_each_is_shown_and_ratios_are_of_one_session() -> None:
    later = line("trimtab 2 bit", [500.0], session="t", commit="d", against=["llama.cpp Q2_K"])
    text = page([*LINES, later])
    assert "| trimtab 2 bit | d | 5 | 4.0 | 500.0 |" in text
    assert "| trimtab 2 bit | c |" not in text
    assert "| trimtab 2 bit | llama.cpp Q2_K | 1.00 | 2.00x (1.00-3.00) |" in text
    assert "s, commit c, 3 rounds; t, commit d, 1 rounds" in text
    both = [*LINES, later, line("llama.cpp Q2_K", [200.0], session="t")]
    assert "| trimtab 2 bit | llama.cpp Q2_K | 1.00 | 2.50x | 2.50x |" in page(both)
    assert "| ours | theirs |" not in page([*LINES, later | {"red": "logits are off"}])


def test_other_instructions_have_tables_and_goals_of_their_own() -> None:
    forced = [entry | {"setting": entry["setting"] | {"instructions": "avx2"}, "decode": [50.0] * 3} for entry in LINES]
    text = page([*LINES, *forced])
    assert "## 1.1b, 2 threads\n" in text
    assert "## 1.1b, 2 threads, avx2 only\n" in text
    assert "| 1.1b, avx2 | decode of trimtab 2 bit / llama.cpp Q2_K | 1.00x | 1.00x | holds |" in text


def test_what_several_conversations_get_is_a_column_where_it_was_measured() -> None:
    together = LINES[0] | {"setting": LINES[0]["setting"] | {"batch": 4}, "batch": [700.0]}
    text = page([together, LINES[1]])
    assert "4 at a time, tokens/s" in text
    assert "| 2000 (1000-3000) | 700.0 | 0.1% |" in text
    assert "| 1000 (1000-1000) | - | 0.1% |" in text
    assert "at a time" not in page(LINES)


def test_a_disturbed_line_is_named_and_the_older_one_is_left_out() -> None:
    assert "Disturbed" not in page(LINES)
    assert "- 1.1b, 2 threads, trimtab 2 bit: 20%" in page(changed(0, foreign=2.0))
    assert "20%" not in page([*changed(0, foreign=2.0), *LINES])
