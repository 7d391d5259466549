"""The HTTP application: routes, guard and problem documents around a `Service`."""

from __future__ import annotations

from fastapi import FastAPI, Security
from fastapi.security import HTTPBearer
from starlette.middleware import Middleware

from dovetail.api import code, problems, routes
from dovetail.api.auth import Guard
from dovetail.service.contract import ProblemDetails, Service
from dovetail_jobs.snapshot.archive import largest_archive_bytes
from dovetail_jobs.snapshot.limits import LIMIT_BYTES

VERSION = "1"
PREFIX = f"/api/v{VERSION}"


def create_app(service: Service, token: str, *, code_limit_bytes: int = LIMIT_BYTES) -> FastAPI:
    """An ASGI app that answers for `service` to whoever knows `token`.

    `code_limit_bytes` is the largest code of a job, unpacked. The OpenAPI document is at
    /api/v1/openapi.json.
    """
    app = FastAPI(
        title="Dovetail",
        version=VERSION,
        openapi_url=f"{PREFIX}/openapi.json",
        docs_url=None,
        redoc_url=None,
        middleware=[
            Middleware(
                Guard,
                token=token,
                open_paths=frozenset({f"{PREFIX}/health"}),
                body_limits={f"{PREFIX}{code.PATH}/": largest_archive_bytes(code_limit_bytes)},
            )
        ],
        dependencies=[Security(HTTPBearer(auto_error=False))],
        responses={"default": {"model": ProblemDetails, "description": "A problem document"}},
    )
    problems.install(app)
    app.include_router(routes.router(service), prefix=PREFIX)
    app.include_router(code.router(service), prefix=PREFIX)
    return app
