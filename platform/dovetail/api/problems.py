"""Errors as RFC 9457 problem documents: one table from our errors to HTTP, one shape for all."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from dovetail.service.contract import ProblemDetails, ProblemView
from dovetail_jobs.errors import (
    AuthError,
    Conflict,
    DatabaseLost,
    DovetailError,
    NotFound,
    Problem,
    SpecError,
    Unreachable,
    UserError,
)

MEDIA_TYPE = "application/problem+json"
STATUS: dict[type[DovetailError], tuple[int, str]] = {
    SpecError: (422, "The spec is refused"),
    UserError: (400, "The request is refused"),
    NotFound: (404, "Not found"),
    AuthError: (401, "No valid token"),
    DatabaseLost: (503, "The database does not answer"),
    Unreachable: (503, "The cluster does not answer"),
    Conflict: (409, "Does not fit the present state"),
    DovetailError: (500, "Failed"),
}


def respond(error: DovetailError) -> JSONResponse:
    """The answer for an error of our tree."""
    status, title = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    found = error.problems if isinstance(error, SpecError) else []
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return _response(status, title, error.message, error.code, found, headers)


def install(app: FastAPI) -> None:
    """Make every failure of the app answer as a problem document."""

    @app.exception_handler(DovetailError)
    def refused(request: Request, error: DovetailError) -> JSONResponse:
        return respond(error)

    @app.exception_handler(RequestValidationError)
    def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        found = [_problem(item) for item in error.errors()]
        return respond(SpecError(found))

    @app.exception_handler(HTTPException)
    def without_route(request: Request, error: HTTPException) -> JSONResponse:
        kind = "not_found" if error.status_code == 404 else "refused"
        detail = f"{request.method} {request.url.path}: {error.detail}"
        return _response(error.status_code, str(error.detail), detail, kind, [], error.headers)

    @app.exception_handler(Exception)
    def failed(request: Request, error: Exception) -> JSONResponse:
        # Starlette raises the error again after this answer: the log holds its traceback.
        detail = f"the server failed at {request.method} {request.url.path}; its log says why"
        return _response(500, "Failed", detail, "internal", [], None)


def _problem(item: dict[str, Any]) -> Problem:
    """One complaint of pydantic; `loc` begins with where the value came from (body, query, …)."""
    place = [str(part) for part in item["loc"]]
    key = ".".join(place[1:]) if place[:1] == ["body"] else ".".join(place)
    value = item.get("input")
    shown = None if item["type"] == "missing" or isinstance(value, dict | list) else str(value)
    rule = str(item["msg"]).removeprefix("Value error, ")
    return Problem(key=key, rule=rule, value=shown)


def _response(
    status: int,
    title: str,
    detail: str,
    code: str,
    found: list[Problem],
    headers: Any,
) -> JSONResponse:
    document = ProblemDetails(
        type=f"urn:dovetail:problem:{code}",
        title=title,
        status=status,
        detail=detail,
        code=code,
        problems=tuple(
            ProblemView(key=one.key, rule=one.rule, value=one.value, file=one.file, line=one.line)
            for one in found
        ),
    )
    return JSONResponse(
        document.model_dump(mode="json"), status, headers=headers, media_type=MEDIA_TYPE
    )
