"""The coordinator of a device, at a Unix socket: one connection for each job.

A connection that closes, however its process ended, gives its bytes back. Who may open the socket's
folder may join; who says what makes no sense is cut off, alone. A socket whose broker is dead is
replaced; two brokers on one path cannot be, since the one that lives holds a lock beside it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import socket
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from tensile.coordinator.coordinator import Coordinator, Share
from tensile.coordinator.messages import (
    Bare,
    Beginning,
    Command,
    Device,
    Drifted,
    Event,
    Joined,
    Left,
    Look,
    Refused,
    Renewed,
    Returned,
    Ticked,
    Wanted,
)
from tensile.coordinator.wire import LONGEST_LINE_BYTES, Message, WireError, decode, encode

TICK_S = 1.0
RETURN_S = 2.0  # for jobs of a broker that died to come back


class BrokerError(RuntimeError):
    """No broker can be at that path; the message says why."""


@dataclass(slots=True, eq=False)
class _Connection:
    socket: socket.socket
    received: bytearray = field(default_factory=bytearray)
    to_send: bytearray = field(default_factory=bytearray)
    job: str | None = None
    heard: int = 0  # the number of its last word
    stands_in: Joined | None = None  # what it said, if it stands in for a job


class Broker:
    """Serves `path` from `start` to `stop`, in a thread of its own. `on_change` hears, in that
    thread, after every event that came.

    With `resumes`, jobs of a broker before it have RETURN_S to come back with what they hold.
    """

    def __init__(
        self,
        path: Path,
        device_bytes: int,
        *,
        resumes: bool = False,
        on_change: Callable[[tuple[Share, ...]], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path, self._clock, self._on_change = path, clock, on_change
        opens_at_s = clock() + RETURN_S if resumes else clock()
        self._coordinator = Coordinator(device_bytes, opens_at_s)
        self._guard = threading.Lock()
        self._jobs: dict[str, _Connection] = {}
        self._aside: dict[str, _Connection] = {}  # that stood in, while the job itself is here
        self._base_bytes: dict[str, int] = {}  # of those who said it
        self._stopping = False
        self._ticked_s = clock()
        self._thread = threading.Thread(target=self._run, name="broker", daemon=True)
        self._lock_descriptor = -1

    def start(self) -> Self:
        """Raises BrokerError where another one serves this path, or nothing can."""
        try:
            self._lock_descriptor = _lock(self._path.with_suffix(".lock"))
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(str(self._path))
            self._path.chmod(0o600)
            listener.listen(64)
        except BlockingIOError:
            raise BrokerError(f"{self._path}: another broker serves it already") from None
        except OSError as error:
            if self._lock_descriptor >= 0:
                os.close(self._lock_descriptor)
            raise BrokerError(f"{self._path}: {error.strerror or error}") from error
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        for ready in (listener, self._woken):
            ready.setblocking(False)
            self._selector.register(ready, selectors.EVENT_READ)
        self._listener = listener
        self._thread.start()
        return self

    @property
    def is_alive(self) -> bool:
        """Whether it serves. One that does not, and was not stopped, has let go of all jobs: after
        `stop` another one can take its place.
        """
        return self._thread.is_alive()

    def shares(self) -> tuple[Share, ...]:
        """How each job stands now."""
        with self._guard:
            return tuple(
                replace(share, base_bytes=self._base_bytes.get(share.job))
                for share in self._coordinator.shares(self._clock())
            )

    def _device(self) -> Device:
        with self._guard:
            free_bytes = max(self._coordinator.free_bytes, 0)
            return Device(device_bytes=self._coordinator.device_bytes, free_bytes=free_bytes)

    def stop(self) -> None:
        """Close every connection; jobs go on with what they hold."""
        self._stopping = True
        self._wake.send(b"x")
        self._thread.join()
        self._wake.close()
        self._woken.close()
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        os.close(self._lock_descriptor)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    # the thread

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._serve()
        finally:  # jobs of a broker that is no more look for the next one
            for key in tuple(self._selector.get_map().values()):
                if isinstance(key.data, _Connection):
                    key.data.socket.close()
            self._selector.close()
            self._listener.close()

    def _serve(self) -> None:
        ready = self._selector.select(TICK_S)
        for key, mask in ready:
            if key.fileobj is self._listener:
                self._accept()
            elif isinstance(key.data, _Connection):
                if mask & selectors.EVENT_READ and not self._read(key.data):
                    self._drop(key.data)
                elif mask & selectors.EVENT_WRITE:
                    self._flush(key.data)
        if not ready or self._clock() - self._ticked_s >= TICK_S:
            self._ticked_s = self._clock()
            self._handle(Ticked())
            self._listen(True)

    def _accept(self) -> None:
        """Where the system refuses one, as without a free descriptor, all who knock wait a tick."""
        try:
            accepted, _ = self._listener.accept()
        except BlockingIOError:
            return  # who knocked has gone
        except OSError:
            self._listen(False)
            return
        accepted.setblocking(False)
        self._selector.register(accepted, selectors.EVENT_READ, _Connection(accepted))

    def _listen(self, does: bool) -> None:
        is_registered = self._listener in self._selector.get_map()
        if does and not is_registered:
            self._selector.register(self._listener, selectors.EVENT_READ)
        elif is_registered and not does:
            self._selector.unregister(self._listener)

    def _read(self, connection: _Connection) -> bool:
        """False where the connection is over."""
        try:
            data = connection.socket.recv(65536)
        except BlockingIOError:
            return True
        except OSError:
            return False
        connection.received += data
        while (end := connection.received.find(b"\n")) >= 0:
            line = bytes(connection.received[:end])
            del connection.received[: end + 1]
            try:
                if not self._told(connection, line):
                    return False
            except Exception:  # whatever it said: the others are served on
                traceback.print_exc()
                return False
        return bool(data) and len(connection.received) <= LONGEST_LINE_BYTES

    def _told(self, connection: _Connection, line: bytes) -> bool:
        """A job speaks for itself only. False for what no job of this version says."""
        try:
            connection.heard, message = decode(line)
        except WireError:
            return False
        match message:
            case Look():
                self._send(connection, self._device())
                for share in self.shares():
                    self._send(connection, share)
                return False  # who only looks has seen all
            case Joined():
                if not self._is_welcome(connection, message):
                    name = message.member.job
                    self._send(connection, Refused(job=name, reason=f"{name} is here already"))
                    return False
                if self._aside.get(message.member.job) is connection and message.holds_bytes == 0:
                    return True
            case _ if connection.job is not None and self._jobs[connection.job] is not connection:
                return True  # the job speaks for itself now
            case Drifted() if message.member.job == connection.job:
                pass
            case Wanted() | Returned() | Beginning() | Renewed() if message.job == connection.job:
                pass
            case Bare() if message.job == connection.job or self._is_awaited(connection, message):
                with self._guard:
                    self._base_bytes[message.job] = message.base_bytes
                if connection.job is None:
                    return True
                message = Renewed(job=message.job)  # as whatever it says
            case _:
                return False
        self._handle(message)
        return True

    def _is_welcome(self, connection: _Connection, message: Joined) -> bool:
        """Whether it may speak for that job from here on. Who stands in steps aside for the job
        itself, with what is leased to it.
        """
        name = message.member.job
        if connection.job not in (None, name):
            return False
        there = self._jobs.get(name, connection)
        if there is not connection and message.stands_in:
            if there.stands_in is not None or name in self._aside:
                return False
            connection.job, connection.stands_in = name, message
            self._aside[name] = connection
            return True
        if there is not connection:
            if there.stands_in is None:
                return False
            self._aside[name] = there
        connection.job = name
        connection.stands_in = message if message.stands_in else None
        self._jobs[name] = connection
        return True

    def _is_awaited(self, connection: _Connection, message: Bare) -> bool:
        """It has not joined, and somebody stands in for a job of that name."""
        there = self._jobs.get(message.job)
        return connection.job is None and there is not None and there.stands_in is not None

    def _drop(self, connection: _Connection) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(connection.socket)
        connection.socket.close()
        name = connection.job
        if name is None:
            return
        if self._aside.get(name) is connection:
            del self._aside[name]
            return
        del self._jobs[name]
        with self._guard:
            self._base_bytes.pop(name, None)
        back = self._aside.pop(name, None)
        if back is None or back.stands_in is None:
            self._handle(Left(job=name))
        else:
            self._jobs[name] = back
            self._handle(Left(job=name, stand_in=back.stands_in.member))

    def _handle(self, event: Event) -> None:
        with self._guard:
            try:
                commands = self._coordinator.handle(event, self._clock())
            except KeyError:
                return  # it speaks before it is admitted, and will hear when it is
        for command in commands:
            if command.job in self._jobs:
                self._send(self._jobs[command.job], command)
        if not isinstance(event, Ticked) or commands:
            self._on_change(self.shares())

    def _send(self, connection: _Connection, message: Command | Message) -> None:
        connection.to_send += encode(message, connection.heard)
        self._flush(connection)

    def _flush(self, connection: _Connection) -> None:
        """A job that reads nothing is not waited for: what it should hear is kept."""
        try:
            sent = connection.socket.send(connection.to_send)
        except BlockingIOError:
            sent = 0
        except OSError:
            connection.to_send.clear()  # the next read finds that it is over
            return
        del connection.to_send[:sent]
        events = selectors.EVENT_READ
        if connection.to_send:
            events |= selectors.EVENT_WRITE
        with contextlib.suppress(KeyError, ValueError):
            self._selector.modify(connection.socket, events, connection)


def _lock(path: Path) -> int:
    """Held for as long as this process lives, whatever its threads do."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    return descriptor
