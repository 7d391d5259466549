"""The curve that a job's attempts make together.

An attempt that resumed from step r takes the place of every later point of the attempts before it,
from the moment it starts and not only where it has reported already. One that ran from the
beginning takes the place of all of them. An attempt that never started takes nobody's place.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, and_, false, func, or_, select
from sqlalchemy.orm import Session

from dovetail.store.records import MetricPoint
from dovetail.store.tables import Attempt, Point


def effective(session: Session, job_id: str, metric: str | None = None) -> tuple[MetricPoint, ...]:
    """The points that count, by metric, phase and step; one per step, the newest attempt's."""
    columns = (Point.metric, Point.phase, Point.step, Point.attempt, Point.value)
    query = select(*columns).where(_counts(session, job_id)).order_by(*columns[:4])
    if metric is not None:
        query = query.where(Point.metric == metric)
    points = {
        (row.metric, row.phase, row.step): MetricPoint(**row._mapping)
        for row in session.execute(query)  # a later attempt comes later and wins
    }
    return tuple(points.values())


def last_values(session: Session, job_id: str) -> dict[str, float | None]:
    """Each metric's last value that counts: at the last step of the newest attempt with one."""
    newest_first = func.row_number().over(
        partition_by=Point.metric, order_by=(Point.attempt.desc(), Point.step.desc())
    )
    ranked = (
        select(Point.metric, Point.value, newest_first.label("place"))
        .where(_counts(session, job_id))
        .subquery()
    )
    rows = session.execute(select(ranked.c.metric, ranked.c.value).where(ranked.c.place == 1))
    return {row.metric: row.value for row in rows}


def _counts(session: Session, job_id: str) -> ColumnElement[bool]:
    attempts = session.scalars(
        select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.number.desc())
    )
    last_step: int | None = None  # of the attempts before; None: all of their points count
    counts: list[ColumnElement[bool]] = [false()]
    for attempt in attempts:
        own = Point.attempt == attempt.number
        counts.append(own if last_step is None else and_(own, Point.step <= last_step))
        if attempt.started_at is not None:
            begin = -1 if attempt.resumed_from_step is None else attempt.resumed_from_step
            last_step = begin if last_step is None else min(last_step, begin)
    return and_(Point.job_id == job_id, or_(*counts))
