"""Which of several servers on one database decides: a row with a token that only ever grows.

The holder shows that it lives by counting `renewals` up. No clock is compared: another server
counts by its own clock for how long the number has stood still (as Kubernetes elects its leaders).
The token fences (Kleppmann, "How to do distributed locking", 2016): a write that decides names its
token in its own transaction, so a holder that slept and was replaced writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import CursorResult, Update, select, update
from sqlalchemy.orm import Session

from dovetail.store.tables import Lease
from dovetail_jobs.errors import Conflict

NAME = "server"  # the row that the migration makes


class LeaseLost(Conflict):
    """Another server decides now; nothing was written."""

    code = "lease_lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRecord:
    """`holder` is None when nobody decides."""

    holder: str | None
    token: int
    renewals: int


def look(session: Session) -> LeaseRecord:
    row = session.scalars(select(Lease).where(Lease.name == NAME)).one()
    return LeaseRecord(holder=row.holder, token=row.token, renewals=row.renewals)


def take(session: Session, holder: str, seen: LeaseRecord) -> int | None:
    """The new token, or None if the lease is no longer as it was `seen`."""
    unmoved = update(Lease).where(
        Lease.name == NAME, Lease.token == seen.token, Lease.renewals == seen.renewals
    )
    taken = unmoved.values(holder=holder, token=Lease.token + 1, renewals=Lease.renewals + 1)
    return seen.token + 1 if _wrote(session, taken) else None


def renew(session: Session, token: int) -> None:
    """Prove the token and show life, both until this transaction ends; raises LeaseLost."""
    if not _wrote(session, _own(token).values(renewals=Lease.renewals + 1)):
        raise LeaseLost("another server took the lease of this database and decides now")


def give_back(session: Session, token: int) -> None:
    """Let anyone take it at once; nothing happens if it is another's by now."""
    _wrote(session, _own(token).values(holder=None, renewals=Lease.renewals + 1))


def _own(token: int) -> Update:
    return update(Lease).where(Lease.name == NAME, Lease.token == token, Lease.holder.is_not(None))


def _wrote(session: Session, guarded: Update) -> bool:
    result = session.execute(guarded.execution_options(synchronize_session=False))
    assert isinstance(result, CursorResult)
    return bool(result.rowcount)
