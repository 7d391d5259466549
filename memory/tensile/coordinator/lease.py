"""A job's end of the broker's socket: how much it may hold now, and the words for more and less.

Where the broker is gone the job goes on with what it holds, and says so to the next one at that
path. Every call answers within a bounded time. A thread listens, and answers where the broker asks
whether the job is there, whatever the others do.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import weakref
from pathlib import Path
from types import TracebackType
from typing import Self

from tensile.coordinator.apportion import Member
from tensile.coordinator.coordinator import Share
from tensile.coordinator.messages import (
    Admitted,
    Bare,
    Begin,
    Beginning,
    Device,
    Drifted,
    Granted,
    Joined,
    Look,
    Refused,
    Renew,
    Renewed,
    Returned,
    Target,
    Wanted,
)
from tensile.coordinator.wire import Message, WireError, decode, encode

ANSWER_S = 1.0  # a broker answers within microseconds; one that is stopped does not
AGAIN_S = 0.2  # between two looks for a broker
_WORTH_BYTES = 2**20

_open: weakref.WeakSet[Lease] = weakref.WeakSet()


class LeaseRefused(RuntimeError):
    """The device can never hold this job; the message says why."""


class Lease:
    """`lease_bytes` may be held now, `cap_bytes` is what to plan for. Where steps are interlocked,
    the one is asked for up to the other within a step, and given back down to `keeps_bytes`, which
    is None elsewhere; `patience_s` is for how long `want` may still wait in this step. `copy_share`
    and `yields` are what the broker said of the channel and the processors (`Target`). With
    `stands_in` it is held for another process, until that has one of its own by the same name.
    `base_bytes` is what this process holds beside its tensors (`bare`). Any thread may call.
    """

    def __init__(
        self,
        path: Path,
        member: Member,
        *,
        holds_bytes: int = 0,
        stands_in: bool = False,
        base_bytes: int | None = None,
    ) -> None:
        self.lease_bytes, self.cap_bytes = holds_bytes, member.profile.peak_bytes
        self.keeps_bytes: int | None = None
        self.copy_share: float | None = None
        self.yields = False
        self._path, self._member, self._stands_in = path, member, stands_in
        self._base_bytes = base_bytes
        self._news = threading.Condition()
        self._socket: socket.socket | None = None
        self._number = self._returned_at = self._asked = self._heard = 0
        self._after_s = self.patience_s = 0.0
        self._admitted = holds_bytes > 0
        self._refusal: str | None = None
        self._closed = False
        _open.add(self)
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)
        self._thread.start()

    def join(self, timeout_s: float) -> bool:
        """Wait until the device has room for the job's minimum; False where it has none yet.

        Raises LeaseRefused where it never will.
        """
        with self._news:
            self._news.wait_for(lambda: self._admitted or self._refusal is not None, timeout_s)
            if self._refusal is not None and not self._admitted:
                raise LeaseRefused(self._refusal)
            return self._admitted

    def want(self, lease_bytes: int, *, least_bytes: int = 0) -> int:
        """Ask for so much, and answer how much there is: never less than before. Waits for other
        jobs only until there are `least_bytes`, and for what is left of the step's patience.
        """
        with self._news:
            if lease_bytes <= self.lease_bytes or self._heard < self._asked:
                return self.lease_bytes  # it has that, or an answer is owed (`_ask`)
            waits = self.lease_bytes < least_bytes <= self.cap_bytes and self.patience_s > 0
            begin_s = time.monotonic()
            try:
                asked = Wanted(job=self._member.job, lease_bytes=lease_bytes, waits=waits)
                if self._ask(asked) and waits:
                    self._news.wait_for(lambda: self._is_settled(least_bytes), self.patience_s)
            finally:
                if waits:  # whatever ended it, it goes on with what it has
                    self.patience_s -= time.monotonic() - begin_s
                    self._say(Wanted(job=self._member.job, lease_bytes=self.lease_bytes))
            return self.lease_bytes

    def give_back(self, lease_bytes: int) -> None:
        """At most so much is held, and no more will be without asking."""
        with self._news:
            lower_bytes = max(lease_bytes, self._member.profile.minimum_bytes)
            if lower_bytes < self.lease_bytes:
                self.lease_bytes = lower_bytes
                self._returned_at = self._say(
                    Returned(job=self._member.job, lease_bytes=lower_bytes)
                )

    def begin_step(self) -> float:
        """Wait before a step as long as the other jobs' peaks ask for; how many seconds that was.
        Not at all where no broker answers.
        """
        with self._news:
            self._after_s = self.patience_s = 0.0
            self._ask(Beginning(job=self._member.job))
            if self._after_s <= 0:
                return 0.0
            begin_s = time.monotonic()
            self._news.wait_for(lambda: self._closed or self._socket is None, self._after_s)
            return time.monotonic() - begin_s

    def changed(self, member: Member, *, outgrew: bool = False) -> None:
        """The job is another than was thought: a new profile; or held more than was foreseen."""
        with self._news:
            self._member = member
            self._say(Drifted(member=member, outgrew=outgrew))

    def bare(self, base_bytes: int) -> None:
        """The process holds so much beside its tensors now; what differs by less than a mebibyte
        from what was said is not worth a word.
        """
        with self._news:
            if self._base_bytes is None or abs(base_bytes - self._base_bytes) >= _WORTH_BYTES:
                self._base_bytes = base_bytes
                self._say(Bare(job=self._member.job, base_bytes=base_bytes))

    @property
    def is_connected(self) -> bool:
        return self._socket is not None

    @property
    def refusal(self) -> str | None:
        """Why the broker did not take the last change; None where it took all."""
        return self._refusal

    def close(self) -> None:
        """Everything is given back."""
        with self._news:
            self._closed = True
            if self._socket is not None:
                with contextlib.suppress(OSError):  # the other end was first
                    self._socket.shutdown(socket.SHUT_RDWR)
            self._news.notify_all()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _say(self, message: Message) -> int:
        """Its number. What nobody hears is said again by `Joined`, when somebody does."""
        self._number += 1
        if self._socket is not None:
            try:
                self._socket.sendall(encode(message, self._number))
            except OSError:
                self._socket = None
        return self._number

    def _ask(self, message: Message) -> bool:
        """Whether it was answered. A broker that owes an answer is asked nothing more: what it does
        not read would fill the socket, and then nobody could say anything.
        """
        if self._heard < self._asked:
            return False
        number = self._asked = self._say(message)
        self._news.wait_for(lambda: self._heard >= number or self._socket is None, ANSWER_S)
        return self._heard >= number

    def _is_settled(self, least_bytes: int) -> bool:
        """There are so many bytes, or nobody will grant them in this step."""
        is_over = self._closed or self._socket is None or least_bytes > self.cap_bytes
        return is_over or self.lease_bytes >= least_bytes

    def _forget(self) -> None:
        """In a forked child, which must not keep its parent's bytes when that dies."""
        connection, self._socket = self._socket, None
        self._closed = True
        self._news = threading.Condition()  # a thread that is not here may have held it
        if connection is not None:
            os.close(connection.detach())

    # the thread that listens

    def _run(self) -> None:
        while not self._closed:
            connection = self._connected()
            if connection is not None:
                with connection:
                    self._listen(connection)
            with self._news:
                self._socket = None
                self._news.notify_all()
                self._news.wait_for(lambda: self._closed, AGAIN_S)  # also where it was cut off

    def _connected(self) -> socket.socket | None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(str(self._path))
        except OSError:
            connection.close()
            return None
        with self._news:
            if self._closed:
                connection.close()
                return None
            self._socket = connection
            held_bytes = self.lease_bytes if self._admitted else 0
            self._returned_at = self._say(
                Joined(member=self._member, holds_bytes=held_bytes, stands_in=self._stands_in)
            )
            if self._base_bytes is not None:
                self._say(Bare(job=self._member.job, base_bytes=self._base_bytes))
        return connection

    def _listen(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as lines:
            try:
                for line in lines:
                    with self._news:
                        self._hear(*decode(line))
                        self._news.notify_all()
            except (OSError, WireError):
                return

    def _hear(self, number: int, message: Message) -> None:
        match message:
            case Admitted():
                if not self._admitted:
                    self.lease_bytes = message.minimum_bytes
                self._admitted = True
            case Refused():
                self._refusal = message.reason
            case Target():
                self.cap_bytes = message.cap_bytes
                self.keeps_bytes = message.keeps_bytes
                self.copy_share, self.yields = message.copy_share, message.yields
            case Granted() if number >= self._returned_at:
                self.lease_bytes = message.lease_bytes
            case Begin():
                self._after_s, self.patience_s = message.after_s, message.patience_s
            case Renew():
                self._say(Renewed(job=self._member.job))
        if isinstance(message, Granted | Begin):
            self._heard = number


def say_bare(path: Path, job: str, base_bytes: int) -> None:
    """What a process holds beside its tensors, before it knows enough of them to join: for whoever
    measures it while somebody stands in for it. Nobody need hear it.
    """
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection,
    ):
        connection.settimeout(ANSWER_S)
        connection.connect(str(path))
        connection.sendall(encode(Bare(job=job, base_bytes=base_bytes), 1))


def look(path: Path) -> tuple[Share, ...]:
    """How the jobs of the broker at `path` stand. Raises OSError where none answers."""
    return tuple(message for message in _seen(path) if isinstance(message, Share))


def device(path: Path) -> Device:
    """What the broker at `path` divides. Raises OSError where none answers."""
    for message in _seen(path):
        if isinstance(message, Device):
            return message
    raise ConnectionResetError(f"{path}: the broker ended before it answered")


def _seen(path: Path) -> tuple[Message, ...]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(ANSWER_S)
        connection.connect(str(path))
        connection.sendall(encode(Look(), 0))
        with connection.makefile("rb") as lines:
            return tuple(decode(line)[1] for line in lines)


def _in_child() -> None:
    for lease in tuple(_open):
        lease._forget()


os.register_at_fork(after_in_child=_in_child)
