"""Which job a person means: by id, by name, or by the beginning of an id."""

from __future__ import annotations

import difflib

from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload

from dovetail.store.tables import Job
from dovetail_jobs.errors import NotFound

WHOLE = (selectinload(Job.attempts), selectinload(Job.checkpoints))
PREFIX_LENGTH = 4
_RECENT = 500  # jobs whose names are looked at for a near one


def find(session: Session, ref: str) -> Job:
    """The job of this id, else the newest of this name, else the only one whose id starts so.

    Ids are in lower case; a beginning may be written in either. An exact word comes before a
    beginning, so a name such as `test` cannot turn into the id `test42` of another job. Raises
    NotFound, which names what is near.
    """
    job = session.scalar(select(Job).where(Job.id == ref).options(*WHOLE))
    if job is not None:
        return job
    named = select(Job).where(Job.name == ref).order_by(Job.seq.desc()).limit(1).options(*WHOLE)
    job = session.scalar(named)
    if job is not None:
        return job
    if len(ref) >= PREFIX_LENGTH:
        beginning = (
            select(Job).where(Job.id.startswith(ref.lower(), autoescape=True)).order_by(Job.seq)
        )
        fits = session.scalars(beginning.limit(5).options(*WHOLE)).all()
        if len(fits) == 1:
            return fits[0]
        if fits:
            ids = ", ".join(each.id for each in fits)
            raise NotFound(f"job {ref}: several ids begin so ({ids}); give more of it")
    raise NotFound(f"job {ref}: no job has this id or name{_near(session, ref)}")


def _near(session: Session, ref: str) -> str:
    recent = select(Job.id, Job.name).order_by(Job.seq.desc()).limit(_RECENT)
    words = dict.fromkeys(word for row in session.execute(recent) for word in (row.name, row.id))
    near = difflib.get_close_matches(ref, words, n=3)
    return f"; did you mean {' or '.join(near)}?" if near else "; `dovetail ps --all` lists them"
