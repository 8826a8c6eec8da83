"""The addresses of the page, a few lines each: read what was asked, ask who knows, answer with a page, JSON or events."""

import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import Body, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from trimtab.core.errors import TrimtabError, UsageError
from trimtab.report import render
from trimtab.ui import views
from trimtab.ui.desk import Desk
from trimtab.ui.form import Asked
from trimtab.ui.jobs import Busy
from trimtab.ui.shelf import base_of, only

Name = Annotated[str, Query(max_length=1000)]
# A report brings its style and script along, and a policy that allows exactly these.
REPORT = {"content-security-policy": "frame-ancestors 'none'"}


class Question(BaseModel):
    """What models are asked. seed: sampled with it; else greedy."""

    model_config = ConfigDict(extra="forbid", str_max_length=20000)

    models: list[str] = Field(min_length=1, max_length=2)
    prompt: str
    new_tokens: int = Field(64, ge=1, le=2048)
    chat: bool = False
    seed: int | None = Field(None, ge=0, lt=1 << 63)
    temperature: float | None = Field(None, ge=0, le=10)


class Measured(BaseModel):
    """What is to be compared with what."""

    model_config = ConfigDict(extra="forbid", str_max_length=1000)

    folder: str = ""
    base: str
    tasks: str = ""
    limit: int = Field(100, ge=0, le=100_000)
    speed: bool = True


def application(desk: Desk) -> FastAPI:
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    _troubles(app)
    _pages(app, desk)
    _work(app, desk)
    _talk(app, desk)
    return app


def _pages(app: FastAPI, desk: Desk) -> None:
    @app.get("/")
    def results(folder: Name = "", comparison: Name | None = None) -> HTMLResponse:
        shelf, chosen, found = desk.look(folder, comparison)
        return HTMLResponse(views.results(desk.places, shelf, found, chosen, desk.base(shelf)))

    @app.get("/result")
    def result(at: Name) -> HTMLResponse:
        shelf, path, found = desk.one(at)
        return HTMLResponse(views.result(desk.places, shelf, found, path, base_of(found, path)))

    @app.get("/report")
    def report(at: Name | None = None, folder: Name = "") -> HTMLResponse:
        if at is not None:
            _, path, found = desk.one(at)
            return HTMLResponse(render(only(found, path)), headers=REPORT)
        whole = desk.look(folder, None)[2]
        if whole is None:
            raise UsageError("there is nothing in this folder to report on")
        return HTMLResponse(render(whole), headers=REPORT)

    @app.get("/talk")
    def talk(folder: Name = "", at: Name = "", base: Name = "") -> HTMLResponse:
        place, left, right = desk.pair(folder, at, base)
        return HTMLResponse(views.talk(desk.places, place, right, left, desk.models(place)))

    @app.get("/compress")
    def compress(folder: Name = "", model: Name = "") -> HTMLResponse:
        shelf = desk.look(folder, None)[0]
        models = desk.models(shelf.folder, originals=True)
        return HTMLResponse(views.compress(desk.places, shelf, models, model or desk.base(shelf)))

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        try:
            text, kind = views.static(name)
        except KeyError as error:
            raise UsageError(f"there is no file {name:.100}") from error
        return Response(text, media_type=kind)


def _work(app: FastAPI, desk: Desk) -> None:
    @app.get("/api/methods")
    async def methods() -> list[Any]:
        return list((await desk.methods()).values())

    @app.get("/api/job")
    async def job() -> Any:
        return desk.bench.job.json() if desk.bench.job else None

    @app.get("/api/job/events")
    async def events() -> StreamingResponse:
        return _events(desk.bench.watch())

    @app.post("/api/job/cancel")
    async def cancel() -> dict[str, bool]:
        await desk.bench.cancel()
        return {"ok": True}

    @app.post("/api/plan")
    async def plan(asked: Annotated[Asked, Body()]) -> Any:
        return (await desk.plan(asked)).json()

    @app.post("/api/compress")
    async def compress(number: Annotated[int, Body(embed=True)]) -> Any:
        return (await desk.compress(number)).json()

    @app.post("/api/measure")
    async def measure(asked: Annotated[Measured, Body()]) -> Any:
        return (await desk.measure(asked.folder, asked.base, asked.tasks, asked.limit, asked.speed)).json()


def _talk(app: FastAPI, desk: Desk) -> None:
    @app.post("/api/say")
    async def say(question: Annotated[Question, Body()]) -> StreamingResponse:
        models = [desk.places.model(name) for name in question.models]
        asked = question.model_dump(exclude={"models"}, exclude_none=True)
        return _events(desk.stage.say(models, asked))

    @app.post("/api/say/stop")
    async def stop() -> dict[str, bool]:
        desk.stage.stop()
        return {"ok": True}


def _events(told: AsyncIterator[Any]) -> StreamingResponse:
    """Server-sent events."""

    async def lines() -> AsyncIterator[str]:
        async for event in told:
            yield f"data: {json.dumps(event)}\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream")


# --- what is wrong ------------------------------------------------------------------------------------------------------


def _troubles(app: FastAPI) -> None:
    """One line, as a page or as JSON, whichever was asked for."""

    @app.exception_handler(TrimtabError)
    async def known(request: Request, error: TrimtabError) -> Response:
        status = 409 if isinstance(error, Busy) else 400 if isinstance(error, UsageError) else 500
        return _told(request, status, str(error))

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "the request"
        return _told(request, 422, f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}")

    @app.exception_handler(404)
    async def missing(request: Request, error: Exception) -> Response:
        return _told(request, 404, f"there is no page {request.url.path:.200}")


def _told(request: Request, status: int, message: str) -> Response:
    line = " ".join(message.split())
    if request.url.path.startswith("/api/"):
        return JSONResponse({"error": line}, status)
    return HTMLResponse(views.trouble(line), status)
