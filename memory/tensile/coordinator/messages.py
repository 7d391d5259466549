"""What jobs tell the coordinator, and what it tells them."""

from __future__ import annotations

from dataclasses import dataclass

from tensile.coordinator.apportion import Member


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """A job wants on the device; or, with `holds_bytes`, is on it since before this coordinator
    began, and holds so much. One that `stands_in` holds the place of a process of that name, until
    that joins itself and again after it has left.
    """

    member: Member
    holds_bytes: int = 0
    stands_in: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """A job ended, however it did: its process is gone, and its bytes with it; but for the minimum
    of who stands in for it, if anybody does.
    """

    job: str
    stand_in: Member | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A job needs its lease to be so many bytes; answered at once with Granted. Where it `waits`,
    what becomes free is granted as it does, until the next word about the job's bytes.
    """

    job: str
    lease_bytes: int
    waits: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Returned:
    """A job holds at most so many bytes now, and needs no more of its lease."""

    job: str
    lease_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Drifted:
    """A job is another than its profile said, or wants to be; or, where it `outgrew` that, held
    more than was foreseen.
    """

    member: Member
    outgrew: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewed:
    """A job is there: the answer to Renew. Whatever else it says means the same."""

    job: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """A job is about to begin a step; answered at once with Begin."""

    job: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticked:
    """Time passed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bare:
    """What a job's process holds beside its tensors, for whoever measures it from outside; nothing
    is divided by it.
    """

    job: str
    base_bytes: int

    def __post_init__(self) -> None:
        if self.base_bytes < 0:
            raise ValueError(f"base_bytes: {self.base_bytes} is below 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """Somebody who is no job asks how all jobs stand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """The first answer to Look; the jobs' shares follow."""

    device_bytes: int
    free_bytes: int


Event = Joined | Left | Wanted | Returned | Drifted | Beginning | Renewed | Ticked


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """The job may begin: it owns `minimum_bytes` for good."""

    job: str
    minimum_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The job can never be on this device; `reason` is a sentence."""

    job: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """From its next step on the job plans for `cap_bytes`. Where its lease is more, it returns what
    is over as soon as it holds no more than that. Where steps are interlocked, leases rise and fall
    within them: a job asks for what it is about to need, and returns what it has needed, as far as
    that is over `keeps_bytes`; None where they are not. It copies in each direction no more than
    `copy_share` of what the channel to the lower tier can do; None for no limit. One that `yields`
    leaves the device's processors to others, where a device's jobs compute on some together.
    """

    job: str
    cap_bytes: int
    rung: int
    keeps_bytes: int | None = None
    copy_share: float | None = None
    yields: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """The job may hold so many bytes from now on."""

    job: str
    lease_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin:
    """The job begins its step after so many seconds, or when it has waited enough itself; within
    it, it may wait for `patience_s` in all until others have returned what it wants.
    """

    job: str
    after_s: float
    patience_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Renew:
    """The job answers with Renewed, or its lease runs out."""

    job: str


Command = Admitted | Refused | Target | Granted | Begin | Renew
