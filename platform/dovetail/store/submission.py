"""How a job comes into the store: once per key, whoever asks how often."""

from __future__ import annotations

import hashlib
import json
import secrets
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from dovetail.store.lookup import WHOLE
from dovetail.store.tables import Event, Job
from dovetail_jobs.errors import Conflict
from dovetail_jobs.lifecycle import Reason, State

ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"  # without the look-alikes i, l, o, 0 and 1
ID_LENGTH = 6


def earlier(session: Session, key: str, digest: str) -> Job | None:
    """The job that this key made before; raises Conflict if it was another request."""
    found = session.scalar(select(Job).where(Job.submit_key == key).options(*WHOLE))
    if found is not None and found.digest != digest:
        raise Conflict(
            f"key {key}: was already used to submit {found.id} ({found.name}) with another spec; "
            "use a new key for a new job"
        )
    return found


def add_job(
    session: Session,
    spec: dict[str, Any],
    *,
    user: str,
    key: str | None,
    digest: str,
    origin: str | None,
    code: str | None,
    now: datetime,
) -> Job:
    """A new QUEUED job with a random id. The database refuses an id or a key that exists."""
    job = Job(
        id="".join(secrets.choice(ALPHABET) for _ in range(ID_LENGTH)),
        name=spec["name"],
        project=spec["project"],
        user=user,
        labels=spec["labels"],
        parent=None,
        origin_job=origin,
        code=code,
        submit_key=key,
        digest=digest,
        spec=spec,
        state=State.QUEUED,
        reason=Reason.SUBMITTED,
        message="waits for the scheduler to look at it",
        priority=spec["priority"],
        created_at=now,
        version=1,
        metrics={},
        memory={},
        attempts=[],
        checkpoints=[],
    )
    session.add(job)
    session.flush()
    told = f"submitted by {user}" + (f", to try {origin} again" if origin else "")
    session.add(
        Event(
            job_id=job.id,
            at=now,
            kind="Submitted",
            state=job.state,
            reason=job.reason,
            message=told,
        )
    )
    return job


def request_digest(spec: dict[str, Any], origin: str | None, code: str | None = None) -> str:
    """Equal for equal requests: sha256 over the resolved spec, the job that it tries again and the
    code that it runs.
    """
    request = {"spec": spec, "origin": origin}
    if code is not None:  # the digest of a request without code stays what it always was
        request["code"] = code
    canonical = json.dumps(request, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
