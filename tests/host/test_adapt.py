"""From a model and data to an adapter and back: peft opens it, kills do not matter, damage and mismatches are named."""

import json
import math
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import trimtab as tt
from trimtab.core.errors import ModelError, TrimtabError, UsageError
from trimtab.core.progress import Progress
from trimtab.data.examples import Row
from trimtab.engine import adapting
from trimtab.host import adapters, instants
from trimtab.host.adapt import Adapted, adapt, merge
from trimtab.host.keeping import holding
from trimtab.host.private import Privacy
from trimtab.host.trainer import Pace
from trimtab.testing.folders import tiny_folder
from trimtab.testing.tiny import tiny, tokens

HOW = {"length": 16, "batch": 4, "steps": 6, "learning_rate": 5e-3, "validation": 0.2}
QUICK = {**HOW, "pace": Pace(at_once=4, every=3)}
PORTABLE = (
    *("lora(rank=4)", "rslora(rank=4)", "dora(rank=4)", "pissa(rank=4)", "allora(rank=4)", "bone(rank=4)"),
    *("randlora(rank=4)", "corda(rank=4)", "corda(rank=4, mode='kpm')", "hut(rank=4)", "wara(rank=4)"),
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("base") / "tiny", num_hidden_layers=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small words with a rule to them: something that can be learned."""
    file = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    lines = [{"prompt": f"{a} and {a} is ", "completion": f"{a}{a}"} for a in "abcdefghijklmnopqrstuvwxyz" * 2]
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def packed(base: Path) -> Path:
    folder = base.parent / "packed"
    tt.compress(base, "rtn(bits=3, group_size=32)", out=folder)
    return folder


def learn(base: Path, data: Path, method: str, out: Path, **more: Any) -> Adapted:
    return adapt(base, data, method, out, **{**QUICK, **more})


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(tokens(model)).logits  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("method", PORTABLE)
def test_peft_opens_the_folder_and_says_the_same(base: Path, data: Path, tmp_path: Path, method: str) -> None:
    (tmp_path / "general.txt").write_text("the cat sat on the mat and " * 1000)
    done = learn(base, data, method, tmp_path / "adapter", general=str(tmp_path / "general.txt"))
    ours, _ = tt.load(base, adapter=done.folder)
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), done.folder).eval()
    plain, _ = tt.load(base)
    assert (logits(ours) - logits(plain)).abs().max() > 1e-3, "six steps changed something"
    torch.testing.assert_close(logits(theirs), logits(ours), atol=2e-5, rtol=1e-4)


THEIRS = (
    peft.LoraConfig(r=4, init_lora_weights=False),
    peft.LoraConfig(r=4, use_dora=True),
    peft.HiraConfig(r=4),
    peft.RandLoraConfig(r=4, randlora_alpha=2, save_projection=False),
)


@pytest.mark.parametrize("kind", THEIRS)
def test_an_adapter_of_peft_is_merged(base: Path, tmp_path: Path, kind: Any) -> None:
    kind.target_modules = ["q_proj", "down_proj"]
    theirs = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), kind)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if any(part in name for part in ("lora_B", "hira_B", "randlora_lambda")):
                parameter.add_(0.05)
    theirs.save_pretrained(str(tmp_path / "theirs"))
    assert len(merge(base, tmp_path / "theirs", tmp_path / "merged")) == 4
    torch.testing.assert_close(logits(tt.load(tmp_path / "merged")[0]), logits(theirs.eval()), atol=2e-5, rtol=1e-4)


def test_gpt2_adapters_open_in_peft(data: Path, tmp_path: Path) -> None:
    base = tiny_folder(tmp_path / "gpt2", "gpt2", n_layer=1)
    done = learn(base, data, "lora(rank=4)", tmp_path / "adapter")
    ours, _ = tt.load(base, adapter=done.folder)
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), done.folder).eval()
    torch.testing.assert_close(logits(theirs), logits(ours), atol=2e-5, rtol=1e-4)


def test_only_answers_are_learned_and_the_loss_goes_down(base: Path, data: Path, tmp_path: Path) -> None:
    done = learn(base, data, "lora(rank=8)", tmp_path / "adapter", steps=30, learning_rate=1e-2)
    first, last = done.tuned.losses[0], done.tuned.losses[-1]
    assert last < 0.7 * first
    assert dict(done.tuned.validations)[done.tuned.best] < first
    assert done.rows + done.validation_rows == 52
    assert not (tmp_path / "adapter.training").exists()


@pytest.mark.parametrize("method", ["lora(rank=4)", "s2ft(share=0.1)", "pissa(rank=4)", "dora(rank=4)", "bone(rank=4)"])
def test_a_base_of_three_bits_trains(packed: Path, data: Path, tmp_path: Path, method: str) -> None:
    done = learn(packed, data, method, tmp_path / "adapter", learning_rate=1e-2, pace=Pace(4, recompute=True))
    assert done.tuned.losses[-1] < done.tuned.losses[0]
    beside = logits(tt.load(packed, adapter=done.folder)[0])
    if method.startswith(("dora", "bone")):
        with pytest.raises(
            UsageError, match=r"cannot be folded exactly into model\.layers\.0\.self_attn\.q_proj.* stored as Grouped"
        ):
            merge(packed, done.folder, tmp_path / "merged")
        return
    merge(packed, done.folder, tmp_path / "merged")
    torch.testing.assert_close(logits(tt.load(tmp_path / "merged")[0]), beside, atol=1e-4, rtol=1e-4)


def test_recomputing_blocks_changes_nothing(packed: Path, data: Path, tmp_path: Path) -> None:
    once = learn(packed, data, "lora(rank=4)", tmp_path / "once")
    again = learn(packed, data, "lora(rank=4)", tmp_path / "again", pace=Pace(4, 3, recompute=True))
    assert once.tuned.losses == pytest.approx(again.tuned.losses, rel=1e-6)


def test_products_in_bfloat16_come_to_about_the_same(packed: Path, data: Path, tmp_path: Path) -> None:
    exact = learn(packed, data, "lora(rank=4)", tmp_path / "exact")
    rounded = learn(packed, data, "lora(rank=4)", tmp_path / "rounded", compute="bfloat16")
    assert rounded.tuned.losses != exact.tuned.losses
    assert rounded.tuned.losses == pytest.approx(exact.tuned.losses, rel=0.01)
    (trained,) = rounded.folder.glob("*.safetensors")
    assert {tensor.dtype for tensor in load_file(trained).values()} == {torch.float32}


def test_accumulation_changes_nothing(base: Path, data: Path, tmp_path: Path) -> None:
    """Answers of unequal length: every learned token counts the same, however a batch is cut."""
    lines = [{"prompt": "x", "completion": "y" * n} for n in range(1, 21)]
    file = tmp_path / "unequal.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    one = learn(base, file, "lora(rank=4)", tmp_path / "one", pace=Pace(1, 3), validation=0.0)
    four = learn(base, file, "lora(rank=4)", tmp_path / "four", pace=Pace(4, 3), validation=0.0)
    assert one.tuned.losses == pytest.approx(four.tuned.losses, rel=1e-4)


def test_a_penalty_counts_once_however_a_batch_is_cut(base: Path, data: Path, tmp_path: Path) -> None:
    """And holds the model where it was; the losses that are told are those of the rows."""
    text = tmp_path / "general.txt"
    text.write_text("the cat sat on the mat and a dog ran in the park " * 20, encoding="utf-8")
    made = "ewc_lora(rank=4, windows=2, strength={})"
    one, four, held = (
        learn(base, data, made.format(strength), tmp_path / f"{at}-{strength}", pace=Pace(at, 3), general=str(text)).tuned.losses
        for at, strength in ((1, 1.0), (4, 1.0), (4, 1e4))
    )
    plain = learn(base, data, "lora(rank=4)", tmp_path / "plain").tuned.losses
    assert one == pytest.approx(four, rel=1e-4)
    assert four[0] == plain[0], "a penalty is no part of the loss that is told"
    assert plain[-1] < four[-1] < held[-1], "what is held learns less"


STOPPED = (
    "lora(rank=4)",
    "allora(rank=4)",
    "lisa(active=1, every=2)",
    "spiel(every=2, window=2)",
    "ist(rank=4, every=1, after=1)",
    "diffora(rank=4)",
)


@pytest.mark.parametrize("method", STOPPED)
def test_what_was_stopped_goes_on_to_the_same_losses(base: Path, data: Path, tmp_path: Path, method: str) -> None:
    def stop(now: Progress) -> None:
        if now.phase == "train" and now.done == 5:
            raise KeyboardInterrupt

    pace = Pace(2, every=3)
    undisturbed = learn(base, data, method, tmp_path / "undisturbed", pace=pace)
    with pytest.raises(KeyboardInterrupt):
        learn(base, data, method, tmp_path / "out", pace=pace, watch=stop)
    assert not (tmp_path / "out").exists()
    seen: list[int] = []
    resumed = learn(base, data, method, tmp_path / "out", pace=pace, watch=lambda now: seen.append(now.done))
    assert min(step for step in seen if step) == 3, "the first three steps are not taken again"
    assert resumed.tuned.losses == undisturbed.tuned.losses
    assert resumed.tuned.validations == undisturbed.tuned.validations
    name = "model.safetensors" if "lisa" in method else "adapter_model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()


def test_a_killed_process_goes_on(base: Path, data: Path, tmp_path: Path) -> None:
    script = f"""
import os, signal, sys
from trimtab.host.adapt import Pace, adapt
def kill(now):
    if now.phase == "train" and now.done == 5:
        os.kill(os.getpid(), signal.SIGKILL)
adapt({str(base)!r}, {str(data)!r}, "lora(rank=4)", {str(tmp_path / "out")!r}, pace=Pace(4, 2), watch=kill, **{HOW!r})
"""
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    resumed = learn(base, data, "lora(rank=4)", tmp_path / "out", pace=Pace(4, 2))
    undisturbed = learn(base, data, "lora(rank=4)", tmp_path / "undisturbed", pace=Pace(4, 2))
    assert resumed.tuned.losses == pytest.approx(undisturbed.tuned.losses, rel=1e-6)


def test_stopped_with_the_result_in_place_nothing_is_left_to_do(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [3]  # publications: two checkpoints and the adapter

    def stop(instant: str) -> None:
        left[0] -= instant == "publish: done"
        if instant == "publish: done" and left[0] == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(instants, "_listeners", [stop])
    with pytest.raises(KeyboardInterrupt):
        learn(base, data, "lora(rank=4)", tmp_path / "out")
    with pytest.raises(UsageError, match="exists"):
        learn(base, data, "lora(rank=8)", tmp_path / "out")
    phases: set[str] = set()
    again = learn(base, data, "lora(rank=4)", tmp_path / "out", watch=lambda now: phases.add(now.phase))
    assert phases == {"load"}
    assert len(again.tuned.losses) == HOW["steps"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(UsageError, match="exists"):
        learn(base, data, "lora(rank=4)", tmp_path / "out")


def test_a_second_training_is_refused_at_once(base: Path, data: Path, tmp_path: Path) -> None:
    with holding(tmp_path / "out"), pytest.raises(UsageError, match="is writing there"):
        learn(base, data, "lora(rank=4)", tmp_path / "out")


def test_another_training_is_not_taken_up(base: Path, data: Path, tmp_path: Path) -> None:
    def stop(now: Progress) -> None:
        if now.done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn(base, data, "lora(rank=4)", tmp_path / "out", watch=stop)
    with pytest.raises(UsageError, match=r"left by another training: rank was 4, now it is 8"):
        learn(base, data, "lora(rank=8)", tmp_path / "out")


def test_patience_ends_it_and_the_best_is_kept(base: Path, data: Path, tmp_path: Path) -> None:
    how = {"steps": 400, "learning_rate": 0.3, "pace": Pace(4, 2, patience=2)}
    done = learn(base, data, "lora(rank=8)", tmp_path / "adapter", **how)
    assert done.tuned.stopped
    assert len(done.tuned.losses) < 400
    steps = [step for step, _ in done.tuned.validations]
    assert steps.index(done.tuned.best) == len(steps) - 3
    assert dict(done.tuned.validations)[done.tuned.best] == min(loss for _, loss in done.tuned.validations)


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_a_loss_that_is_not_finite_stops_it_and_the_last_good_state_is_kept(
    share: float, base: Path, data: Path, tmp_path: Path
) -> None:
    how = {"pace": Pace(4, 1), "validation": share}
    with pytest.raises(TrimtabError, match=r"loss after step 1 is not finite; begin again with a lower learning rate"):
        learn(base, data, "lora(rank=4)", tmp_path / "out", **how, learning_rate=1e30)
    assert not (tmp_path / "out").exists()

    def until_three(now: Progress) -> None:
        if now.phase == "train" and now.done == 3 and now.detail != "validation":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapt(base, data, "lora(rank=4)", tmp_path / "out", watch=until_three, **{**HOW, **how})
    with pytest.raises(TrimtabError, match=r"after step 4 is not finite; .*out\.training keeps the state after step 3, go on"):
        learn(base, data, "lora(rank=4)", tmp_path / "out", **how, learning_rate=1e30)
    done = learn(base, data, "lora(rank=4)", tmp_path / "out", **how)
    assert len(done.tuned.losses) == HOW["steps"]
    assert all(map(math.isfinite, done.tuned.losses))


def test_lisa_writes_a_model_and_refuses_a_packed_one(base: Path, packed: Path, data: Path, tmp_path: Path) -> None:
    done = learn(base, data, "lisa(active=1, every=2, outer=False)", tmp_path / "model")
    before, after = tt.load(base)[0].state_dict(), tt.load(done.folder)[0].state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("model.layers.") for name in changed)
    assert tt.load(done.folder)[0].config.use_cache
    with pytest.raises(ModelError, match=r"model\.layers\.0\.self_attn\.q_proj is compressed; use an adapter"):
        learn(packed, data, "lisa", tmp_path / "no")


def test_bad_requests_say_what_and_where(base: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"rank 65 is more than model\.layers\.0\.self_attn\.q_proj has, which is 64 x 64"):
        learn(base, data, "lora(rank=65)", tmp_path / "out")
    with pytest.raises(UsageError, match="gptq is not trained on data"):
        learn(base, data, "gptq(bits=3)", tmp_path / "out")
    with pytest.raises(UsageError, match="lora is trained, which no recipe does; write trimtab adapt"):
        tt.compress(base, "lora(rank=4)")
    with pytest.raises(UsageError, match=r"bone: .*q_proj is 64 x 64; use a rank that divides both"):
        learn(base, data, "bone(rank=5)", tmp_path / "out")
    with pytest.raises(UsageError, match="lm_head is no linear layer inside a block"):
        learn(base, data, "lora(rank=4)", tmp_path / "out", only=("lm_head",))
    with pytest.raises(UsageError, match="is the model that is read"):
        learn(base, data, "lora(rank=4)", base)
    with pytest.raises(UsageError, match="training computes in float32 or bfloat16, got 'float8'"):
        learn(base, data, "lora(rank=4)", tmp_path / "out", compute="float8")
    with pytest.raises(UsageError, match="private training computes in float32, not in bfloat16"):
        learn(base, data, "lora(rank=4)", tmp_path / "out", compute="bfloat16", validation=0.0, privacy=Privacy(epsilon=8.0))
    with pytest.raises(UsageError, match=r"keeps no checkpoints, stops at its epsilon .*; leave --every, --patience and"):
        learn(base, data, "lora(rank=4)", tmp_path / "out", validation=0.0, privacy=Privacy(epsilon=8.0))


def test_an_adapter_of_another_model_is_refused(base: Path, data: Path, tmp_path: Path) -> None:
    done = learn(base, data, "lora(rank=4)", tmp_path / "adapter", steps=1)
    other = tiny_folder(tmp_path / "other", num_hidden_layers=2, seed=1)
    with pytest.raises(UsageError, match="was trained beside tiny, and other is another model"):
        merge(other, done.folder, tmp_path / "merged")
    assert len(merge(other, done.folder, tmp_path / "merged", any_base=True)) == 14
    shallow = tiny_folder(tmp_path / "shallow", num_hidden_layers=1)
    with pytest.raises(UsageError, match=r"is for a model with 'model\.layers\.1\..* and 6 more, which this one lacks"):
        merge(shallow, done.folder, tmp_path / "no", any_base=True)
    narrow = tiny_folder(tmp_path / "narrow", num_hidden_layers=2, intermediate_size=96)
    with pytest.raises(
        UsageError, match=r"does not fit model\.layers\.0\.mlp\.down_proj, which is 64 x 96: it has lora_A\.weight"
    ):
        merge(narrow, done.folder, tmp_path / "no", any_base=True)


def test_damaged_adapters_are_refused(base: Path, data: Path, tmp_path: Path) -> None:
    done = learn(base, data, "s2ft(share=0.1)", tmp_path / "adapter", steps=1)
    weights = done.folder / adapters.TENSORS
    held = bytearray(weights.read_bytes())
    held[-1] ^= 1
    weights.write_bytes(held)
    with pytest.raises(ModelError, match="has changed"):
        tt.load(base, adapter=done.folder)
    with pytest.raises(ModelError, match="is no adapter folder"):
        tt.load(base, adapter=base)


def test_what_peft_can_say_and_we_cannot_is_refused(base: Path, tmp_path: Path) -> None:
    kind = peft.LoraConfig(r=4, target_modules=["q_proj"], rank_pattern={"layers.0.self_attn.q_proj": 2})
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), kind).save_pretrained(str(tmp_path / "theirs"))
    with pytest.raises(ModelError, match="uses rank_pattern, which trimtab does not read"):
        tt.load(base, adapter=tmp_path / "theirs")


@pytest.mark.parametrize("begun", ["pissa", "olora"])
def test_what_peft_adds_to_another_base_is_refused_until_it_is_converted(begun: str, base: Path, tmp_path: Path) -> None:
    kind = peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=begun)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), kind)
    model.peft_config["default"].init_lora_weights = True  # as it begins is what a conversion takes off
    model.save_pretrained(str(tmp_path / "start"))
    model.peft_config["default"].init_lora_weights = begun
    said = logits(model)
    model.save_pretrained(str(tmp_path / "theirs"))
    with pytest.raises(ModelError, match=rf"init_lora_weights='{begun}', which changes the base"):
        tt.load(base, adapter=tmp_path / "theirs")
    model.save_pretrained(str(tmp_path / "converted"), path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    opened, _ = tt.load(base, adapter=tmp_path / "converted")
    torch.testing.assert_close(logits(opened), said, atol=1e-5, rtol=1e-5)


def test_taking_an_adapter_off_leaves_the_model(base: Path, data: Path, tmp_path: Path) -> None:
    done = learn(base, data, "s2ft(share=0.1)", tmp_path / "adapter", steps=2)
    model, _ = tt.load(base, adapter=done.folder)
    plain, _ = tt.load(base)
    assert not torch.equal(logits(model), logits(plain))
    assert len(adapting.detach(model)) == 2
    assert torch.equal(logits(model), logits(plain))
    assert model.state_dict().keys() == plain.state_dict().keys()


def test_trainings_leave_the_callers_randomness(base: Path, data: Path, tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    learn(base, data, "lora(rank=4)", tmp_path / "adapter", steps=1)
    assert torch.equal(before, torch.random.get_rng_state())


def test_rows_learn_what_their_mask_says() -> None:
    row = Row(torch.tensor([5, 6, 7]), torch.tensor([False, False, True]))
    assert row.labels.tolist() == [-100, -100, 7]
    assert tiny("llama").config.vocab_size > 7
