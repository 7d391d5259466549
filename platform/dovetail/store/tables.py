"""The tables, portable between SQLite and PostgreSQL. Rows stay here; what `record()` makes leaves.

A change here needs a migration in `migrations/versions`; a test compares the two.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    Double,
    Enum,
    ForeignKey,
    Index,
    Integer,
    MetaData,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy.types import TypeDecorator

from dovetail.store.records import (
    AttemptRecord,
    CheckpointRecord,
    DeviceRecord,
    EventRecord,
    JobRecord,
    MemoryRecord,
    ProgressRecord,
    RankRecord,
)
from dovetail.store.text import Name, Prose
from dovetail_jobs.lifecycle import Reason, State

NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class UtcTime(TypeDecorator[datetime]):
    """An aware datetime, kept in UTC. SQLite forgets time zones, so a naive one is refused."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is not None and value.tzinfo is None:
            raise ValueError(f"{value} has no time zone; give an aware datetime")
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=NAMES)
    type_annotation_map = {  # noqa: RUF012 - read by SQLAlchemy as it is
        str: Name(),
        float: Double(),
        datetime: UtcTime(),
        State: Enum(State, native_enum=False, length=32),
        Reason: Enum(Reason, native_enum=False, length=64),
        dict[str, Any]: JSON(none_as_null=True),
        list[dict[str, Any]]: JSON(none_as_null=True),
    }


# SQLite numbers rows by itself only in a column of type INTEGER.
Number = BigInteger().with_variant(Integer(), "sqlite")


class Job(Base):
    __tablename__ = "jobs"
    __table_args__ = (
        Index(None, "state"),
        Index(None, "name"),
        Index(None, "project"),
        {"sqlite_autoincrement": True},  # a number is never used twice
    )

    seq: Mapped[int] = mapped_column(Number, primary_key=True)
    id: Mapped[str] = mapped_column(Name(16), unique=True)
    name: Mapped[str]
    project: Mapped[str]
    user: Mapped[str]
    labels: Mapped[dict[str, Any]]
    parent: Mapped[str | None] = mapped_column(Name(16))
    origin_job: Mapped[str | None] = mapped_column(Name(16))
    code: Mapped[str | None] = mapped_column(Name(64))
    submit_key: Mapped[str | None] = mapped_column(unique=True)
    digest: Mapped[str] = mapped_column(Name(64))
    spec: Mapped[dict[str, Any]]
    state: Mapped[State]
    reason: Mapped[Reason]
    message: Mapped[str] = mapped_column(Prose)
    priority: Mapped[int]
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    version: Mapped[int]
    progress: Mapped[dict[str, Any] | None]
    metrics: Mapped[dict[str, Any]]
    memory: Mapped[dict[str, Any]]
    attempts: Mapped[list[Attempt]] = relationship(order_by="Attempt.number", lazy="raise")
    checkpoints: Mapped[list[Checkpoint]] = relationship(
        order_by="Checkpoint.step, Checkpoint.attempt", lazy="raise"
    )

    def record(self) -> JobRecord:
        return JobRecord(
            id=self.id,
            seq=self.seq,
            name=self.name,
            project=self.project,
            user=self.user,
            labels=self.labels,
            parent=self.parent,
            origin_job=self.origin_job,
            code=self.code,
            spec=self.spec,
            state=self.state,
            reason=self.reason,
            message=self.message,
            priority=self.priority,
            created_at=self.created_at,
            started_at=self.started_at,
            ended_at=self.ended_at,
            version=self.version,
            progress=ProgressRecord(**self.progress) if self.progress else None,
            metrics=self.metrics,
            memory=MemoryRecord(**self.memory),
            attempts=tuple(attempt.record() for attempt in self.attempts),
            checkpoints=tuple(checkpoint.record() for checkpoint in self.checkpoints),
        )


class Attempt(Base):
    __tablename__ = "attempts"
    __table_args__ = (Index(None, "released_at"),)

    job_id: Mapped[str] = mapped_column(Name(16), ForeignKey("jobs.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[State]
    reason: Mapped[Reason]
    message: Mapped[str] = mapped_column(Prose)
    node: Mapped[str]
    node_id: Mapped[str]
    device: Mapped[str]
    cpus: Mapped[float]
    pid: Mapped[int | None]
    exit_code: Mapped[int | None]
    refusal: Mapped[str | None] = mapped_column(Prose)
    resumed_from_step: Mapped[int | None] = mapped_column(BigInteger)
    ranks: Mapped[list[dict[str, Any]]]
    cursor: Mapped[int]
    placed_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    stop_requested_at: Mapped[datetime | None]
    released_at: Mapped[datetime | None]
    cap_bytes: Mapped[int | None] = mapped_column(BigInteger)
    budget_bytes: Mapped[int | None] = mapped_column(BigInteger)
    peak_bytes: Mapped[int | None] = mapped_column(BigInteger)
    neighbours: Mapped[int | None]
    overrun: Mapped[float | None]
    busy: Mapped[float | None]

    def record(self) -> AttemptRecord:
        return AttemptRecord(
            job_id=self.job_id,
            number=self.number,
            state=self.state,
            reason=self.reason,
            message=self.message,
            node=self.node,
            node_id=self.node_id,
            device=self.device,
            cpus=self.cpus,
            pid=self.pid,
            exit_code=self.exit_code,
            refusal=self.refusal,
            resumed_from_step=self.resumed_from_step,
            ranks=tuple(RankRecord(**rank) for rank in self.ranks),
            cursor=self.cursor,
            placed_at=self.placed_at,
            started_at=self.started_at,
            ended_at=self.ended_at,
            stop_requested_at=self.stop_requested_at,
            released_at=self.released_at,
            cap_bytes=self.cap_bytes,
            budget_bytes=self.budget_bytes,
            peak_bytes=self.peak_bytes,
            neighbours=self.neighbours,
            overrun=self.overrun,
            busy=self.busy,
        )


class Event(Base):
    """The story of a job; rows are only ever added."""

    __tablename__ = "events"
    __table_args__ = (Index(None, "job_id", "id"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(Number, primary_key=True)
    job_id: Mapped[str] = mapped_column(Name(16), ForeignKey("jobs.id"))
    attempt: Mapped[int | None]
    at: Mapped[datetime]
    kind: Mapped[str]
    state: Mapped[State]
    reason: Mapped[Reason]
    message: Mapped[str] = mapped_column(Prose)

    def record(self) -> EventRecord:
        return EventRecord(
            id=self.id,
            job_id=self.job_id,
            attempt=self.attempt,
            at=self.at,
            kind=self.kind,
            state=self.state,
            reason=self.reason,
            message=self.message,
        )


class Point(Base):
    """A point of a metric's curve; `value` is NULL where it was not finite."""

    __tablename__ = "metric_points"

    job_id: Mapped[str] = mapped_column(Name(16), ForeignKey("jobs.id"), primary_key=True)
    metric: Mapped[str] = mapped_column(primary_key=True)
    phase: Mapped[str] = mapped_column(primary_key=True)
    step: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[float | None]


class Lease(Base):
    """Who decides; `token` grows with each change of holder, `renewals` with each sign of life."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(Name(64), primary_key=True)
    holder: Mapped[str | None] = mapped_column(Prose)
    token: Mapped[int] = mapped_column(BigInteger)
    renewals: Mapped[int] = mapped_column(BigInteger)


class Device(Base):
    """A device that the cluster has or had of late, by its node's name."""

    __tablename__ = "devices"

    node: Mapped[str] = mapped_column(primary_key=True)
    device: Mapped[str] = mapped_column(primary_key=True)
    bytes: Mapped[int] = mapped_column(BigInteger)
    seen_at: Mapped[datetime]

    def record(self) -> DeviceRecord:
        return DeviceRecord(node=self.node, device=self.device, bytes=self.bytes)


class Checkpoint(Base):
    __tablename__ = "checkpoints"

    job_id: Mapped[str] = mapped_column(Name(16), ForeignKey("jobs.id"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    attempt: Mapped[int]
    phase: Mapped[str]
    step: Mapped[int] = mapped_column(BigInteger)
    uri: Mapped[str] = mapped_column(Prose)
    bytes: Mapped[int] = mapped_column(BigInteger)

    def record(self) -> CheckpointRecord:
        return CheckpointRecord(
            key=self.key,
            attempt=self.attempt,
            phase=self.phase,
            step=self.step,
            uri=self.uri,
            bytes=self.bytes,
        )
