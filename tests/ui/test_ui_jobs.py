"""One command at a time: its progress, its one line of error, and Ctrl-C."""

import asyncio
import json

import pytest
from served import CLI, HERE

from trimtab.ui.jobs import Bench, Busy, spelled


def ran(root, *words, kind="compress", watch=None, finish=lambda job: None):
    """The job when it has ended, and every state that a watcher saw."""

    async def run():
        bench, seen = Bench(root, CLI), []
        await bench.start(kind, "a title", words, finish, folder="")

        async def look():
            async for told in bench.watch():
                seen.append(told)
                if watch:
                    await watch(bench, told)
                if told["state"] != "running":
                    return

        await asyncio.wait_for(look(), 20)
        await bench.close()
        return bench.job, seen

    return asyncio.run(run())


def test_progress_and_result(root):
    job, seen = ran(root, "compress", "asset:own-2m", f"--output-dir={root / 'new'}")
    assert (job.state, job.error) == ("done", "")
    assert job.result["bytes_after"] == 100.6e6
    assert job.phases == ["load", "sweep"]
    reached = [told["progress"]["done"] for told in seen if told["progress"] and told["progress"]["phase"] == "sweep"]
    assert reached == sorted(reached)
    assert reached[-1] == 30
    assert seen[-1]["state"] == "done"
    assert (root / "new" / "receipt.json").exists()
    json.dumps(seen, allow_nan=False)


def test_what_is_wrong_is_the_commands_one_line(root):
    job, _ = ran(root, "compress", "asset:broken")
    assert (job.state, job.error) == ("failed", "broken has no block; give another model")
    assert job.result is None
    assert next(iter(job.said)) == "a line before"


def test_a_command_that_is_killed(root):
    job, _ = ran(root, "compress", "asset:killed")
    assert job.state == "failed"
    assert job.error == "the command was ended by SIGKILL, perhaps for want of memory"


def test_cancelling_is_ctrl_c(root):
    async def stop(bench, told):
        if told["progress"] and told["progress"]["done"] == 12:
            await bench.cancel()

    job, seen = ran(root, "compress", "asset:slow", watch=stop)
    assert job.state == "cancelled"
    assert job.error == ""
    assert list(job.said) == ["trimtab: interrupted; nothing was left half-written"]
    assert any(told["stopping"] and told["state"] == "running" for told in seen)


def test_one_at_a_time(root):
    async def run():
        bench = Bench(root, CLI)
        first = await bench.start("compress", "slow one", ["compress", "asset:slow"], lambda job: None)
        with pytest.raises(Busy, match="slow one is still running; wait for it or cancel it"):
            await bench.start("plan", "another", ["plan", "asset:own-2m"], lambda job: None)
        await bench.cancel()
        await asyncio.wait_for(bench.task, 20)
        assert first.state == "cancelled"
        second = await bench.start("plan", "another", ["plan", "asset:own-2m"], lambda job: None)
        await asyncio.wait_for(bench.task, 20)
        return first, second

    first, second = asyncio.run(run())
    assert (second.state, second.number) == ("done", first.number + 1)


def test_nothing_is_left_when_the_page_ends(root):
    async def run():
        bench = Bench(root, CLI)
        await bench.start("compress", "slow one", ["compress", "asset:slow"], lambda job: None)
        while not (bench.job.progress and bench.job.progress["done"] == 12):
            await asyncio.sleep(0.01)
        process = bench.process
        await bench.close()
        return process, bench.job

    process, job = asyncio.run(run())
    assert process.returncode == 130
    assert job.state == "cancelled"


def test_a_result_that_cannot_be_used_is_a_failure(root):
    def finish(job):
        raise ValueError("no such result")

    job, _ = ran(root, "plan", "asset:own-2m", finish=finish)
    assert (job.state, job.error) == ("failed", "no such result")


def test_a_command_that_cannot_be_run(root):
    async def run():
        bench = Bench(root, [str(HERE / "no-such-program")])
        job = await bench.start("plan", "a title", [], lambda job: None)
        await asyncio.wait_for(bench.task, 20)
        return job

    job = asyncio.run(run())
    assert job.state == "failed"
    assert job.error.startswith("the command could not be run: ")


def test_words_are_spelled_as_they_would_be_typed():
    assert spelled(["compress", "a model", "--do=wanda(pattern='2:4')"]) == (
        "trimtab compress 'a model' '--do=wanda(pattern='\"'\"'2:4'\"'\"')'"
    )
