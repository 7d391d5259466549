"""One scheduling cycle: a picture of the cluster in, one decision for every waiting job out."""

from __future__ import annotations

from datetime import UTC, datetime

from dovetail.scheduler.decisions import Decision, RuleOut, Start, Wait
from dovetail.scheduler.placement import Books, Obstacle, find, never_fits
from dovetail.scheduler.policies import Policy
from dovetail.scheduler.view import ClusterView, Holding, NodeView, QueuedJob
from dovetail.scheduler.words import listed, who
from dovetail_jobs.lifecycle import Reason


def schedule(view: ClusterView, policy: Policy, now: datetime) -> list[Decision]:
    """Start, Wait or RuleOut for each queued job, in the policy's order; pure, so equal inputs
    decide alike. Ruled out is what no device can hold, of those here and those that may come back.

    A later job may start while an earlier one does not fit. Among jobs of one cpu nobody starves by
    that: any device that becomes free goes to the first job in order that its memory suits, and
    where an earlier one needs a device of its own, one is kept from those who would join it. A job
    that asks for many cpus, or for the largest device, can be overtaken for as long as smaller jobs
    keep arriving; a higher priority does not reserve anything for it.
    """
    if view.nodes is None:
        return [_wait_for_cluster(job) for job in policy(view.queued, now)]
    books = Books(nodes=tuple(sorted(view.nodes, key=lambda node: (node.name, node.id))))
    for holding in sorted(view.holdings, key=_identity):
        books.hold(holding)
    return [_decide(job, books, view.absent, now) for job in policy(view.queued, now)]


def _decide(
    job: QueuedJob, books: Books, absent: tuple[NodeView, ...] | None, now: datetime
) -> Decision:
    if job.waits_for_release:
        return _wait_for_release(job, books)
    if job.after is not None and now < job.after:
        at = job.after.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return Wait(
            job_id=job.id, reason=Reason.BACKING_OFF, message=f"waits until {at} to start again"
        )
    found = find(job, books)
    if isinstance(found, Obstacle):
        cause = None if absent is None else never_fits(job, (*books.nodes, *absent))
        if cause is not None:
            return RuleOut(job_id=job.id, message=cause)
        alone = job.sharing.share is False or job.sharing.profile is None
        if found.reason is Reason.WAITING_FOR_DEVICE and alone:
            books.keep(job)
        return Wait(job_id=job.id, reason=found.reason, message=found.message)
    books.hold(
        Holding(
            job_id=job.id,
            job_name=job.name,
            attempt=0,  # not numbered yet; the books only count what is held
            node_id=found.node.id,
            device=found.device.name,
            cpus=job.cpus,
            sharing=job.sharing,
        )
    )
    terms = job.terms
    cap_bytes = None
    if terms is not None:
        cap_bytes = found.device.bytes if terms.alone else terms.cap_bytes
    how = f"is shared with {listed(map(who, found.beside))}" if found.beside else "is free and fits"
    return Start(
        job_id=job.id,
        node_id=found.node.id,
        node=found.node.name,
        device=found.device.name,
        reason=f"{found} {how}; priority {job.priority}",
        cap_bytes=cap_bytes,
        readmission=None if terms is None else terms.sentence,
    )


def _wait_for_cluster(job: QueuedJob) -> Wait:
    return Wait(
        job_id=job.id,
        reason=Reason.WAITING_FOR_CLUSTER,
        message="waits for the cluster, which has not answered yet; see `dovetail status`",
    )


def _wait_for_release(job: QueuedJob, books: Books) -> Wait:
    names = {node.id: node.name for node in books.nodes}
    own = [item for item in books.holdings() if item.job_id == job.id]
    held = [f"{item.device} on {names.get(item.node_id, item.node_id)}" for item in own]
    what = " and ".join(held) or "its device"
    return Wait(
        job_id=job.id,
        reason=Reason.WAITING_FOR_RELEASE,
        message=f"waits until its last attempt is checked to be gone from {what}",
    )


def _identity(holding: Holding) -> tuple[str, str, str, int]:
    return (holding.node_id, holding.device, holding.job_id, holding.attempt)
