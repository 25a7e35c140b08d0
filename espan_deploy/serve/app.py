"""HTTP: one route for pictures, the rest for those who look after the service, and a page for people."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from espan_deploy.errors import BackendUnavailableError, EspanDeployError, InputError
from espan_deploy.pipeline.choice import Fitting
from espan_deploy.serve.desk import (
    BusyError,
    Limits,
    Result,
    Ticket,
    TooLargeError,
    TooLateError,
    Withdrawn,
    format_named,
)
from espan_deploy.serve.metrics import Metrics
from espan_deploy.serve.service import Service, ServiceSettings

STATUSES: tuple[tuple[type[BaseException], int], ...] = (
    (TooLargeError, 413),
    (InputError, 400),
    (TooLateError, 504),
    (BusyError, 503),
    (BackendUnavailableError, 503),
    (Withdrawn, 499),
    (EspanDeployError, 500),
)
"""The HTTP status of every expected failure; the first that fits. 499 is nobody's answer: the client has gone."""

MEDIA_TYPES = {
    "png": "image/png",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
    "avif": "image/avif",
    "jxl": "image/jxl",
    "tiff": "image/tiff",
    "bmp": "image/bmp",
}

PAGE = {"": "page.html", "page.css": "page.css", "page.js": "page.js"}
PAGE_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}

PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; style-src 'self'; script-src 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def application(
    model: Path | None, settings: ServiceSettings, limits: Limits, *, token: str | None = None
) -> Starlette:
    """The service as an ASGI application; engines are opened as it starts or as they are needed, closed as it stops.

    model: for all pictures; None for that of the package's which fits each. token: that requests to /v1 must bear; None
    for all who reach it.
    """
    metrics = Metrics()
    service = Service(model, settings, limits, metrics)
    metrics.watch(service.desk)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        with service:
            yield

    api = Api(service, metrics, limits, token)
    routes = [
        Route("/v1/upscale", api.upscale, methods=["POST"]),
        Route("/v1/model", api.model),
        Route("/healthz", api.healthz),
        Route("/readyz", api.readyz),
        Route("/metrics", api.metrics_text),
        *(Route(f"/{path}", page_file(name)) for path, name in PAGE.items()),
    ]
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: http_error})


class Api:
    """The endpoints of one service."""

    def __init__(self, service: Service, metrics: Metrics, limits: Limits, token: str | None) -> None:
        self.service, self.metrics, self.limits, self.token = service, metrics, limits, token

    async def upscale(self, request: Request) -> Response:
        """A picture in the body, a picture in the answer."""
        with self.metrics.request() as outcome:
            response = await self._answered(request)
            outcome.status = response.status_code
            return response

    async def _answered(self, request: Request) -> Response:
        try:
            self._authorise(request)
            name, quality, model = wanted_format(request), wanted_quality(request), self._wanted_model(request)
            data = await self._body(request)
            ticket = await run_in_threadpool(self.service.ticket, data, format_name=name, quality=quality, model=model)
            self.service.submit(ticket)
            return picture(await self._result(request, ticket))
        except ClientDisconnect:
            return Response(status_code=499)
        except HTTPException as exc:
            return await http_error(request, exc)
        except EspanDeployError as exc:
            return failure(exc)

    def _authorise(self, request: Request) -> None:
        if self.token is None:
            return
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), self.token.encode()):
            raise HTTPException(401, "a bearer token is needed", headers={"WWW-Authenticate": "Bearer"})

    def _wanted_model(self, request: Request) -> Fitting | None:
        """By ?model=. Raises InputError."""
        named = request.query_params.get("model")
        return None if named is None else self.service.model_named(named)

    async def _body(self, request: Request) -> bytes:
        """All of it, in time and within the limit."""
        most = self.limits.bytes
        declared = request.headers.get("content-length", "0")
        if declared.isdigit() and int(declared) > most:
            raise TooLargeError(f"{int(declared):,} bytes, and at most {most:,} are taken")
        body = bytearray()
        try:
            with anyio.fail_after(self.limits.body_seconds):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > most:
                        raise TooLargeError(f"more than {most:,} bytes, the most that are taken")
        except TimeoutError as exc:
            raise HTTPException(408, f"the picture did not arrive within {self.limits.body_seconds:g} s") from exc
        return bytes(body)

    async def _result(self, request: Request, ticket: Ticket) -> Result:
        """What the stages make of it, unless the client goes or the time is over."""
        result = asyncio.ensure_future(asyncio.wrap_future(ticket.future))
        gone = asyncio.ensure_future(disconnected(request))
        try:
            seconds = max(0.0, ticket.expires - self.service.desk.clock())
            await asyncio.wait((result, gone), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if result.done():
                return await result
            ticket.withdrawn = True
            if gone.done():
                raise ClientDisconnect
            raise TooLateError("the picture was not ready before the deadline", hint="send smaller ones, or fewer")
        finally:
            gone.cancel()
            result.cancel()

    async def model(self, request: Request) -> Response:
        """What models and engines are at work, and the limits."""
        self._authorise(request)
        return json_response(self.service.describe())

    async def healthz(self, request: Request) -> Response:
        """The process answers."""
        del request
        return PlainTextResponse("ok\n")

    async def readyz(self, request: Request) -> Response:
        """Requests would be taken."""
        del request
        ready = self.service.ready
        return PlainTextResponse("ready\n" if ready else "not ready\n", 200 if ready else 503)

    async def metrics_text(self, request: Request) -> Response:
        """For Prometheus."""
        del request
        text, media_type = self.metrics.exposition()
        return Response(text, media_type=media_type)


async def disconnected(request: Request) -> None:
    """Returns when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def wanted_format(request: Request) -> str | None:
    """By ?format=, else by the first picture that Accept names; None for the picture's own. Raises InputError."""
    named = request.query_params.get("format")
    if named is not None:
        return None if named == "same" else format_named(named)
    for accepted in request.headers.get("accept", "").split(","):
        kind = accepted.split(";")[0].strip().lower()
        for name, media_type in MEDIA_TYPES.items():
            if kind == media_type:
                return name
    return None


def wanted_quality(request: Request) -> int | None:
    """By ?quality=. Raises InputError."""
    named = request.query_params.get("quality")
    if named is None:
        return None
    if not named.isdecimal() or not 1 <= int(named[:4]) <= 100:
        raise InputError(f"{named[:20]!r} is no quality from 1 to 100")
    return int(named)


def picture(result: Result) -> Response:
    """A result as an answer; how long the stages took is in Server-Timing, which model they had in X-Model."""
    times = result.report.stage_ms
    timing = ", ".join(f"{stage};dur={times[stage]:.1f}" for stage in ("decode", "infer", "encode") if stage in times)
    headers = {"Server-Timing": timing}
    if result.report.model:
        headers |= {"X-Model": result.report.model, "X-Model-Because": in_header(result.report.model_because)}
    if result.report.notes:
        headers["X-Notes"] = in_header("; ".join(result.report.notes))
    return Response(result.data, media_type=MEDIA_TYPES[result.format.name], headers=headers)


def in_header(text: str) -> str:
    """What a header can hold of it."""
    return text.encode("ascii", "replace").decode()


def failure(exc: EspanDeployError) -> Response:
    """An expected failure as an answer."""
    status = next(status for kind, status in STATUSES if isinstance(exc, kind))
    headers = {"Retry-After": str(exc.retry_seconds)} if isinstance(exc, BusyError) else {}
    document = {"type": type(exc).__name__, "message": exc.message, "hint": exc.hint}
    return json_response({"error": document}, status, headers)


async def http_error(request: Request, exc: Exception) -> Response:
    """Starlette's own refusals in the same form."""
    del request
    assert isinstance(exc, HTTPException)
    document = {"type": "HTTPException", "message": str(exc.detail), "hint": ""}
    return json_response({"error": document}, exc.status_code, dict(exc.headers or {}))


def json_response(document: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """One JSON document, with the schema's version."""
    text = json.dumps({"schema_version": 1, **document}, default=str)
    return Response(text, status, headers, media_type="application/json")


def page_file(name: str) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint that gives one file of the page."""
    content = files("espan_deploy.serve.page").joinpath(name).read_bytes()
    media_type = PAGE_TYPES[Path(name).suffix]

    async def give(request: Request) -> Response:
        del request
        return Response(content, media_type=media_type, headers=PAGE_HEADERS)

    return give
