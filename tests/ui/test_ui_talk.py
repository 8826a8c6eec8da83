"""Two models at once: word by word, stopped when asked, and nobody is left behind."""

import asyncio

import pytest
from served import SPEAKER

from trimtab.ui import talk
from trimtab.ui.talk import Stage


def held(root, script):
    async def run():
        stage = Stage(root, SPEAKER)
        try:
            return await asyncio.wait_for(script(stage), 30)
        finally:
            await stage.close()
            assert not any(speaker.is_open() for speaker in stage.speakers.values())

    return asyncio.run(run())


async def heard(stage, models, **question):
    return [event async for event in stage.say(models, {"prompt": "x", "new_tokens": 5, **question})]


def of(events, side):
    return [event for event in events if event["side"] == side]


def words(events, side):
    return "".join(event["text"] for event in of(events, side) if event["what"] in ("text", "end"))


def test_both_answer_at_the_same_time(root):
    events = held(root, lambda stage: heard(stage, ["asset:left", "asset:right"], new_tokens=20))
    for side, name in enumerate(("left", "right")):
        kinds = [event["what"] for event in of(events, side)]
        assert kinds == ["opening", "ready", *["text"] * 20, "end"]
        assert words(events, side) == "".join(f" {name}{n}" for n in range(1, 21)) + "!"
    order = [event["side"] for event in events if event["what"] == "text"]
    assert order != sorted(order)
    assert order != sorted(order, reverse=True)
    assert {event["threads"] for event in events if event["what"] == "ready"} == {max((talk.os.cpu_count() or 1) // 2, 1)}


def test_a_model_that_spoke_last_stays_open_and_others_are_ended(root):
    async def script(stage):
        await heard(stage, ["asset:left", "asset:right"])
        left, right = (stage.speakers[f"asset:{name}"].process for name in ("left", "right"))
        again = await heard(stage, ["asset:left", "asset:other"])
        assert stage.speakers["asset:left"].process is left
        assert right.returncode is not None
        return again

    events = held(root, script)
    assert next(event["what"] for event in of(events, 0)) == "ready"
    assert next(event["what"] for event in of(events, 1)) == "opening"


def test_the_same_model_twice_is_asked_once(root):
    async def script(stage):
        events = await heard(stage, ["asset:left", "asset:left"])
        assert len(stage.speakers) == 1
        return events

    events = held(root, script)
    assert words(events, 0) == words(events, 1) != ""


def test_stop(root):
    async def script(stage):
        events = []
        async for event in stage.say(["asset:endless", "asset:right"], {"prompt": "x", "new_tokens": 5}):
            events.append(event)
            if len(of(events, 0)) == 30:
                stage.stop()
        return events

    events = held(root, script)
    last = of(events, 0)[-1]
    assert (last["what"], last["stopped"]) == ("end", True)
    assert of(events, 1)[-1]["stopped"] is False


def test_stopping_while_a_model_opens(root):
    async def script(stage):
        events = []
        async for event in stage.say(["asset:mute", "asset:right"], {"prompt": "x"}):
            events.append(event)
            if event["what"] == "end":
                stage.stop()
        return events

    events = held(root, script)
    assert [event["what"] for event in of(events, 0)] == ["opening", "end"]
    assert of(events, 0)[-1]["stopped"] is True


def test_a_new_question_ends_the_one_before(root):
    async def script(stage):
        first = asyncio.create_task(heard(stage, ["asset:endless"]))
        await asyncio.sleep(0.5)
        second = await heard(stage, ["asset:right"])
        return await first, second

    first, second = held(root, script)
    assert first[-1]["stopped"] is True
    assert words(second, 0).endswith("right5!")


def test_who_hangs_up_stops_the_answer(root):
    async def script(stage):
        events = stage.say(["asset:endless"], {"prompt": "x"})
        async for event in events:
            if event["what"] == "text":
                break
        await events.aclose()
        speaker = stage.speakers["asset:endless"]
        while stage.held:  # the answer is heard out
            await asyncio.sleep(0.01)
        assert speaker.is_open()
        return await heard(stage, ["asset:right"])

    assert words(held(root, script), 0).endswith("right5!")


@pytest.mark.parametrize(
    ("model", "text"),
    [("asset:broken", "broken has no weights; fetch it again"), ("asset:gone", "the model's process ended with code 3")],
)
def test_one_that_fails_does_not_silence_the_other(root, model, text):
    async def script(stage):
        first = await heard(stage, [model, "asset:right"])
        return first, await heard(stage, [model, "asset:right"])

    for events in held(root, script):
        last = of(events, 0)[-1]
        assert (last["what"], last["text"]) == ("error", text)
        assert words(events, 1).endswith("right5!")


def test_a_process_that_cannot_be_started(root):
    async def run():
        return await heard(Stage(root, ["no-such-program"]), ["asset:left"])

    (*_, last) = asyncio.run(run())
    assert last["what"] == "error"
    assert "could not be run" in last["text"]


def test_after_a_while_of_silence_the_memory_is_free(root, monkeypatch):
    monkeypatch.setattr(talk, "SILENCE", 0.05)

    async def script(stage):
        await heard(stage, ["asset:left"])
        process = stage.speakers["asset:left"].process
        await asyncio.wait_for(process.wait(), 10)
        return await heard(stage, ["asset:left"])

    assert next(event["what"] for event in held(root, script)) == "opening"
