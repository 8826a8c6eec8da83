"""Every address: what it shows, what it refuses, and in which words."""

import json
from urllib.parse import quote

import pytest
import sample
from markup_check import Page
from served import Visitor, serving


def page(visitor, path) -> Page:
    answer = visitor.get(path)
    assert answer.status == 200, answer.text
    assert answer.headers["content-type"].startswith("text/html")
    return Page(answer.text)


def text(found: Page, name: str = "main") -> str:
    return " ".join(found.named(name)[0].text.split())


def test_results(visitor):
    said = text(page(visitor, "/"))
    for words in (
        "3 results made from asset:own-2m",
        "What a size buys",
        "four-bit",
        "two-bit-lowrank",
        "unmeasured",
        "more/",
        "worse",
    ):
        assert words in said, words
    assert "1 of these is not measured yet" in said
    assert "milliseconds per token" in said
    assert "secret" not in said


def test_a_folder_further_down(visitor):
    said = text(page(visitor, "/?folder=more"))
    assert "1 result made from asset:own-2m" in said
    assert "What a size buys" not in said


def test_one_result_is_its_report(visitor):
    said = text(page(visitor, "/result?at=four-bit"))
    for words in ("At a glance", "Layer by layer", "group_size: 64", "Where the bytes are", "Side by side with its base"):
        assert words in said, words
    assert "two-bit-lowrank" not in said
    assert "not compared" in text(page(visitor, "/result?at=unmeasured"))
    assert "Layer by layer" in text(page(visitor, "/result?at=more/deeper"))


def test_the_report_brings_its_own_policy(visitor):
    for path in ("/report", "/report?at=four-bit", "/report?folder=more"):
        answer = visitor.get(path)
        assert answer.status == 200
        assert answer.headers["content-security-policy"] == "frame-ancestors 'none'"
        found = Page(answer.text)
        found.check()
        assert "sha256-" in answer.text


def test_side_by_side_begins_with_the_base(visitor):
    found = page(visitor, "/talk?at=two-bit-lowrank")
    chosen = [tag.attributes["value"] for tag in found.named("option") if "selected" in tag.attributes]
    assert chosen == ["asset:own-2m", "two-bit-lowrank"]
    assert "secret" not in text(found)


def test_the_form_knows_the_models_and_recipes_of_its_folder(visitor):
    found = page(visitor, "/compress")
    values = [tag.attributes.get("value") for tag in found.named("option")]
    assert "asset:own-2m" in values
    assert "three.yaml" in values
    assert "four-bit" not in values  # a result is not offered to be compressed again


@pytest.mark.parametrize("path", ["/", "/result?at=four-bit", "/talk", "/compress", "/?folder=more"])
def test_pages_are_well_formed_and_load_only_what_is_here(visitor, path):
    answer = visitor.get(path)
    found = Page(answer.text)
    for tag in found.tags:
        assert "style" not in tag.attributes, tag
        assert not [name for name in tag.attributes if name.startswith("on")], tag
        for name in ("src", "href", "data-goes"):
            value = tag.attributes.get(name)
            assert value is None or value.startswith(("/", "#")), tag
    assert not [tag for tag in found.named("script") if tag.text.strip()]


def test_every_file_that_pages_name_is_there(visitor):
    named = set()
    for path in ("/", "/talk", "/compress"):
        named |= {tag.attributes.get("src") or tag.attributes.get("href") for tag in Page(visitor.get(path).text).tags}
    for path in (path for path in named if path and path.startswith("/static/")):
        assert visitor.get(path).status == 200, path
    for path in ("/static/nothing.css", "/static/..%2fapp.py", "/static/%2e%2e/app.py", "/static/"):
        assert visitor.get(path).status in (400, 404), path


@pytest.mark.parametrize("at", ["../results-outside/secret", "link", "/etc", "more", "nothing", "..", "%00", "~"])
def test_what_lies_outside_is_not_shown(visitor, at):
    for path in (f"/result?at={at}", f"/report?at={at}", f"/talk?at={at}"):
        answer = visitor.get(path)
        assert answer.status == 400, path
        assert "That did not work" in answer.text
        assert "group_size" not in answer.text
    if at != "more":
        assert visitor.get(f"/?folder={at}").status == 400


def test_an_unknown_comparison_and_an_unknown_page(visitor):
    assert "there is no comparison nothing.json" in visitor.get("/?comparison=nothing.json").text
    answer = visitor.get("/nothing")
    assert answer.status == 404
    assert "there is no page /nothing" in answer.text
    assert visitor.get("/docs").status == visitor.get("/openapi.json").status == 404
    assert visitor.get("/api/nothing").json() == {"error": "there is no page /api/nothing"}


def test_hostile_names_stay_text(tmp_path):
    pytest.importorskip("fastapi")
    name = "<img src=x onerror=alert(1)>\"'{{7*7}}&amp;"
    sample.folder(tmp_path / name, {**sample.receipt(4.5, 2, 1), "model": sample.EVIL})
    with serving(tmp_path) as keys:
        visitor = Visitor(keys)
        for path in ("/", f"/result?at={quote(name)}", f"/talk?at={quote(name)}", "/compress"):
            found = page(visitor, path)
            assert not found.named("img")
            assert len(found.named("script")) <= 3
            assert "49" not in text(found, "h1")


def test_a_damaged_receipt_is_one_line(visitor, root):
    (root / "four-bit" / "receipt.json").write_text("{")
    answer = visitor.get("/")
    assert answer.status == 400
    assert "receipt.json is damaged or no JSON" in answer.text


def test_an_empty_folder_says_what_to_do(tmp_path):
    pytest.importorskip("fastapi")
    with serving(tmp_path) as keys:
        assert "Compress one, and it appears here" in text(page(Visitor(keys), "/"))


# --- work ---------------------------------------------------------------------------------------------------------------

FORM = {"model": "asset:own-2m", "name": "new", "way": "method", "value": "gptq", "knobs": {"bits": 3}}


def test_methods_that_are_steps(visitor):
    assert [method["id"] for method in visitor.get("/api/methods").json()] == ["gptq"]


def test_the_plan_comes_first_and_then_exactly_that_is_done(visitor, root):
    job = visitor.post("/api/plan", FORM).json()
    assert job["command"] == "trimtab plan asset:own-2m --method=gptq --bits=3 --json --progress=json"
    planned = visitor.settled()
    assert planned["result"]["steps"] == [
        {"method": "gptq(bits=3)", "kind": "linear", "sites": 2, "matched": {}, "bits": 3.303},
    ]
    started = visitor.post("/api/compress", {"number": planned["number"]}).json()
    target = root.resolve() / "new"
    assert (
        started["command"] == f"trimtab compress asset:own-2m --method=gptq --bits=3 --output-dir={target} --json --progress=json"
    )
    assert visitor.settled()["result"] == {"bytes_before": 538e6, "bytes_after": 100.6e6}
    assert (root / "new").is_dir()


def test_no_work_without_its_plan(visitor):
    assert visitor.post("/api/compress", {"number": 1}).status == 400
    number = visitor.post("/api/plan", FORM).json()["number"]
    visitor.settled()
    refused = visitor.post("/api/compress", {"number": number + 1})
    assert refused.json() == {"error": "there is no such plan any more; look at the plan again, then start"}


def test_one_job_at_a_time_and_it_can_be_cancelled(visitor):
    visitor.post("/api/plan", {**FORM, "model": "asset:slow"})
    number = visitor.settled()["number"]
    visitor.post("/api/compress", {"number": number})
    events = visitor.events("GET", "/api/job/events")
    for told in events:
        if told["progress"] and told["progress"]["done"] == 12:
            busy = visitor.post("/api/plan", FORM)
            assert (busy.status, busy.json()) == (409, {"error": "new is still running; wait for it or cancel it"})
            visitor.post("/api/job/cancel")
            break
    assert visitor.settled()["state"] == "cancelled"


def test_what_the_command_line_refuses_is_said_in_its_words(visitor):
    visitor.post("/api/plan", {**FORM, "model": "asset:broken"})
    job = visitor.settled()
    assert (job["state"], job["error"]) == ("failed", "broken has no block; give another model")


@pytest.mark.parametrize(
    ("change", "status", "fragment"),
    [
        ({"name": "four-bit"}, 400, "four-bit exists in"),
        ({"name": "../x"}, 400, "is no name for a result"),
        ({"model": "/etc"}, 400, "lies outside of"),
        ({"knobs": {"overwrite": True}}, 400, "gptq has no knob 'overwrite'"),
        ({"folder": ".."}, 400, "lies outside of"),
        ({"way": "shell"}, 422, "way: input should be"),
        ({"tokens": 0}, 422, "tokens: input should be greater than or equal to 1"),
        ({"out": "/tmp"}, 422, "out: extra inputs are not permitted"),
    ],
)
def test_a_form_that_cannot_be_meant(visitor, change, status, fragment):
    answer = visitor.post("/api/plan", {**FORM, **change})
    assert answer.status == status
    assert fragment in answer.json()["error"]
    assert visitor.get("/api/job").json() is None


def test_measuring_writes_the_comparison(visitor, root):
    (root / "comparison.json").unlink()
    asked = {"folder": "", "base": "asset:own-2m", "tasks": "arc_easy", "limit": 50, "speed": False}
    words = visitor.post("/api/measure", asked).json()["command"].split()
    assert words[:2] == ["trimtab", "report"]
    assert {"--base=asset:own-2m", "--tasks=arc_easy", "--limit=50", "--no-speed"} <= set(words)
    assert visitor.settled()["result"] == {"comparison": "comparison.json"}
    assert json.loads((root / "comparison.json").read_text())["format"] == 1
    assert "What a size buys" in visitor.get("/").text


def test_measuring_replaces_nothing_but_a_comparison(visitor, root):
    (root / "comparison.json").write_text('{"my": "notes"}')
    answer = visitor.post("/api/measure", {"base": "asset:own-2m"})
    assert "exists and is no comparison" in answer.json()["error"]
    assert json.loads((root / "comparison.json").read_text()) == {"my": "notes"}


# --- words --------------------------------------------------------------------------------------------------------------


def test_answers_come_as_they_are_made(visitor):
    asked = {"models": ["asset:left", "four-bit"], "prompt": "hello", "new_tokens": 6}
    events = list(visitor.events("POST", "/api/say", asked))
    assert [event["what"] for event in events if event["side"] == 0] == ["opening", "ready", *["text"] * 6, "end"]
    assert events[-1]["what"] == "end"


def test_an_endless_answer_is_stopped(visitor):
    events = visitor.events("POST", "/api/say", {"models": ["asset:endless"], "prompt": "hello"})
    seen = 0
    for event in events:
        seen += event["what"] == "text"
        if seen == 5:
            assert visitor.post("/api/say/stop").status == 200
        last = event
    assert (last["what"], last["stopped"]) == ("end", True)


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"models": ["../results-outside/secret"]}, 400),
        ({"models": []}, 422),
        ({"models": ["a", "b", "c"]}, 422),
        ({"new_tokens": 0}, 422),
        ({"new_tokens": 10**6}, 422),
        ({"prompt": "x" * 20001}, 422),
        ({"command": "x"}, 422),
    ],
)
def test_questions_that_are_refused(visitor, change, status):
    assert visitor.post("/api/say", {"models": ["asset:left"], "prompt": "x", **change}).status == status
