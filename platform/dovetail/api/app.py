"""The HTTP application: routes, guard and problem documents around a `Service`."""

from __future__ import annotations

from fastapi import FastAPI, Security
from fastapi.security import HTTPBearer
from starlette.middleware import Middleware

from dovetail.api import problems, routes
from dovetail.api.auth import Guard
from dovetail.service.contract import ProblemDetails, Service

VERSION = "1"
PREFIX = f"/api/v{VERSION}"


def create_app(service: Service, token: str) -> FastAPI:
    """An ASGI app that answers for `service` to whoever knows `token`.

    The OpenAPI document is at /api/v1/openapi.json.
    """
    app = FastAPI(
        title="Dovetail",
        version=VERSION,
        openapi_url=f"{PREFIX}/openapi.json",
        docs_url=None,
        redoc_url=None,
        middleware=[Middleware(Guard, token=token, open_paths=frozenset({f"{PREFIX}/health"}))],
        dependencies=[Security(HTTPBearer(auto_error=False))],
        responses={"default": {"model": ProblemDetails, "description": "A problem document"}},
    )
    problems.install(app)
    app.include_router(routes.router(service), prefix=PREFIX)
    return app
