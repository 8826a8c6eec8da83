"""`trimtab compress` and `plan` with a goal and nothing else: what is chosen, what is asked, and the proof."""

import json

import pytest

from trimtab.cli import goals as told
from trimtab.host import goals, instants
from trimtab.kernels.module import available
from trimtab.measure import bench
from trimtab.measure import goals as judge
from trimtab.testing.folders import tiny_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("goals") / "model", num_hidden_layers=2, hidden_size=64, intermediate_size=192)


@pytest.fixture(autouse=True)
def few_windows(monkeypatch):
    monkeypatch.setattr(judge, "LENGTH", 32)


def verdicts(monkeypatch, *increases):
    """The increases of perplexity that are found, one after the other."""
    left = iter(increases)

    def found(goal, model, out, text, watch):
        value = next(left)
        return judge.Verdict(str(goal), value, value, value, 24, value <= goal.value, f"perplexity {value:+.2%}")

    monkeypatch.setattr(judge, "verdict", found)


def test_plan_shows_every_measured_recipe_and_the_chosen_one(trimtab, model):
    shown = trimtab("plan", model, "--fit", "1GB", "-q")
    assert shown.exit_code == 0, shown.stderr
    assert "* four-bit" in shown.stdout or "* eight-bit" in shown.stdout
    assert "three-bit-sphere" in shown.stdout
    assert "further: " in shown.stdout
    said = json.loads(trimtab("plan", model, "--fit", "1GB", "-q", "--json").stdout)
    assert said["goal"]["asked"] == "--fit 1GB"
    assert said["goal"]["chosen"] == said["goal"]["considered"][0]["recipe"]
    assert said["forecast"]["files"] == said["goal"]["considered"][0]["files"]


def test_a_goal_is_carried_out_and_judged(trimtab, model, shown, text, tmp_path):
    done = trimtab(
        "compress", model, "--max-ppl-increase=400%", "--judged-on", text, *shown, "-o", tmp_path / "out", "--json", "-q"
    )
    assert done.exit_code == 0, done.stderr
    goal = json.loads(done.stdout)["goal"]
    assert goal["verdict"]["met"] is True
    assert goal["verdict"]["n"] == judge.WINDOWS
    assert goal["verdict"]["low"] < goal["verdict"]["found"] < goal["verdict"]["high"]
    told = trimtab("compress", model, "--fit", "1GB", *shown, "-o", tmp_path / "fits", "-q")
    assert told.exit_code == 0, told.stderr
    assert "--fit 1GB: met: " in told.stdout
    assert "to go further: --recipe " in told.stdout


def test_where_a_measured_loss_is_too_much_the_next_recipe_takes_its_place(trimtab, model, shown, tmp_path, monkeypatch):
    verdicts(monkeypatch, 2.0, 0.1)
    done = trimtab("compress", model, "--max-ppl-increase", "100%", *shown, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    first, second = goals.choose(goals.Goal("max_ppl_increase", "100%"), str(model)).tried[:2]
    assert f"--max-ppl-increase 100%: {first.name}" in done.stderr
    assert f"perplexity +200.00%: next, {second.measured.recipe}" in done.stderr
    assert "met: perplexity +10.00%" in done.stdout
    kept = (tmp_path / "out" / "recipe.yaml").read_text(encoding="utf-8")
    assert type(second.measured.recipe).parse(kept).steps == second.measured.recipe.steps


@pytest.mark.parametrize("nth", [2, 3])  # before anything was kept of the second recipe, and when its result was whole
def test_stopped_at_the_second_recipe_the_same_command_goes_on_there(trimtab, model, shown, tmp_path, monkeypatch, nth):
    left = [nth]

    def stop(instant):
        left[0] -= instant == "publish: whole"
        if instant == "publish: whole" and left[0] == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(instants, "_listeners", [stop])
    verdicts(monkeypatch, 2.0, 0.1)
    words = ("compress", model, "--max-ppl-increase", "100%", *shown, "-o", tmp_path / "out", "--checkpoint-every", "0")
    stopped = trimtab(*words)
    assert stopped.exit_code == 130, stopped.stderr
    done = trimtab(*words)
    assert done.exit_code == 0, done.stderr
    assert "met: perplexity +10.00%" in done.stdout
    second = goals.choose(goals.Goal("max_ppl_increase", "100%"), str(model)).tried[1]
    kept = (tmp_path / "out" / "recipe.yaml").read_text(encoding="utf-8")
    assert type(second.measured.recipe).parse(kept).steps == second.measured.recipe.steps
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    again = trimtab(*words)
    assert again.exit_code == 2
    assert "exists" in again.stderr


def test_a_goal_that_no_recipe_meets_in_the_end_is_a_failure_with_a_result(trimtab, model, shown, tmp_path, monkeypatch):
    verdicts(monkeypatch, *[9.0] * 9)
    done = trimtab("compress", model, "--max-ppl-increase", "20%", *shown, "-o", tmp_path / "out", "-q")
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1].startswith(
        "trimtab: error: --max-ppl-increase 20% is not met by the best measured recipe"
    )
    assert (tmp_path / "out" / "config.json").exists()


class Terminal:
    def isatty(self):
        return True


@pytest.mark.parametrize("answer", [True, False])
def test_long_work_is_asked_about_on_a_terminal(monkeypatch, model, answer):
    asked = []
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr(told, "LONG", 0.0)
    monkeypatch.setattr(told.typer, "confirm", lambda *words, **how: asked.append(words) or answer)
    recipe = goals.Recipe.of("rtn(bits=4, group_size=32)")
    assert told.agreed(str(model), recipe, {}, yes=False, verbose=False) is answer
    assert asked == [("go on?",)]
    assert told.agreed(str(model), recipe, {}, yes=True, verbose=False)
    assert len(asked) == 1


def test_short_work_and_scripts_are_not_asked_about(monkeypatch, model):
    monkeypatch.setattr(told.typer, "confirm", lambda *words, **how: pytest.fail("asked"))
    recipe = goals.Recipe.of("rtn(bits=4, group_size=32)")
    assert told.agreed(str(model), recipe, {}, yes=False, verbose=False)
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr(told, "LONG", 1e9)
    assert told.agreed(str(model), recipe, {}, yes=False, verbose=False)


def test_a_no_leaves_nothing(trimtab, model, tmp_path, monkeypatch):
    monkeypatch.setattr(told, "agreed", lambda *words: False)
    done = trimtab("compress", model, "--bits", "4", "-o", tmp_path / "out")
    assert done.exit_code != 0
    assert not (tmp_path / "out").exists()


def test_a_recipe_goes_by_its_name(trimtab, model):
    (step,) = json.loads(trimtab("plan", model, "--recipe", "three-bit", "--json", "-q").stdout)["steps"]
    assert step["method"] == "gptq(bits=3, clip=True)"


def test_the_pattern_of_matrices_does_not_go_with_a_measured_recipe(trimtab, model):
    done = trimtab("plan", model, "--fit", "1GB", "--only", "mlp.*")
    assert done.exit_code == 2
    assert "--only and --skip do not go with --fit" in done.stderr


@pytest.mark.skipif(not available(), reason="needs the compiled kernels")
def test_speed_is_that_of_both_in_turn(model, monkeypatch):
    monkeypatch.setattr(bench, "READ", 1 << 16)
    found = judge.verdict(goals.Goal("speedup", "1.5x"), str(model), model)
    assert found.n == judge.ROUNDS
    assert 0 < found.low <= found.found <= found.high
    assert found.met is (found.found >= 1.5)
    assert "tokens/s" in found.what


def test_where_nothing_can_be_timed_nothing_is_said_to_be_met(model, monkeypatch):
    monkeypatch.setattr(judge, "available", lambda: False)
    found = judge.verdict(goals.Goal("speedup", "2x"), str(model), model)
    assert found.met is found.found is None
    assert "no compiled kernels" in found.what
    assert told.room_left(goals.choose(goals.Goal("fit", "1GB"), str(model)), found) is None


def test_memory_that_nobody_could_hold_is_not_said_to_be_met(model, tmp_path):
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    found = judge.verdict(goals.Goal("fit", "1GB"), str(model), tmp_path)
    assert found.met is None
    assert "does not open" in found.what
