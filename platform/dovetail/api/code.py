"""The routes of /api/v1/code: code snapshots by the sha256 of their content.

A client asks first, sends only what is not kept, and then names it in its submission.
"""

from __future__ import annotations

import tempfile
from pathlib import Path as FilePath
from typing import Annotated

from fastapi import APIRouter, Path, Request
from starlette.concurrency import run_in_threadpool

from dovetail.service.contract import CodeView, Service

PATH = "/code"
SHA256 = r"^[0-9a-f]{64}$"

Hash = Annotated[str, Path(pattern=SHA256, description="of the archive's content, uncompressed")]
_BODY = {
    "required": True,
    "description": "a tar as `dovetail_jobs.snapshot.archive` writes it, compressed by gzip",
    "content": {"application/gzip": {"schema": {"type": "string", "format": "binary"}}},
}


def router(service: Service) -> APIRouter:
    """The routes, answering for `service`."""
    routes = APIRouter()

    @routes.get(f"{PATH}/{{sha256}}")
    def code(sha256: Hash) -> CodeView:
        """Whether this code is kept, whole; 404 when it must be sent."""
        return service.code(sha256)

    @routes.put(f"{PATH}/{{sha256}}", status_code=201, openapi_extra={"requestBody": _BODY})
    async def keep_code(sha256: Hash, request: Request) -> CodeView:
        """Keep code for the jobs that name it; sending it again changes nothing."""
        with tempfile.NamedTemporaryFile(prefix="dovetail-upload-") as archive:
            async for chunk in request.stream():
                archive.write(chunk)
            archive.flush()
            return await run_in_threadpool(service.keep_code, sha256, FilePath(archive.name))

    return routes
