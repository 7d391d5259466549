"""Leases over a real socket: asked for, given back, and never lost with a process or a broker."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.leases import member, until
from tensile.coordinator import Member, Share, declared
from tensile.coordinator.broker import Broker, BrokerError
from tensile.coordinator.lease import Lease, LeaseRefused, look, say_bare
from tensile.coordinator.messages import Admitted, Granted, Joined, Renew, Renewed, Returned, Wanted
from tensile.coordinator.wire import decode, encode

DEVICE = 1000
NEVER_S = 0.2
MIB = 2**20


@pytest.fixture
def broker(place: Path) -> Iterator[Broker]:
    with Broker(place, DEVICE) as broker:
        yield broker


def test_a_job_gives_way_to_the_next_and_gets_back_what_that_one_leaves(
    broker: Broker, place: Path
) -> None:
    with Lease(place, member("a")) as first:
        assert first.join(10)
        until("all that it wants", lambda: first.lease_bytes == 900)
        with Lease(place, member("b")) as second:
            assert not second.join(NEVER_S)
            until("a lower cap", lambda: first.cap_bytes < 900)
            first.give_back(first.cap_bytes)
            assert second.join(10)
            until("the rest", lambda: second.lease_bytes == DEVICE - first.lease_bytes)
            assert sum(share.lease_bytes for share in look(place)) == DEVICE
        until("all again", lambda: first.lease_bytes == 900)


def test_the_bytes_of_a_process_that_is_killed_are_back_at_once(
    broker: Broker, place: Path
) -> None:
    program = (
        "import sys; from pathlib import Path; from tensile.coordinator import Member, declared; "
        "from tensile.coordinator.lease import Lease; "
        "lease = Lease(Path(sys.argv[1]), Member(job='b', profile=declared(600))); "
        "print(lease.join(20), flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(place)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "True\n"
        with Lease(place, member("a")) as lease:
            assert lease.join(10)
            until("what is left", lambda: lease.lease_bytes == 400)
            child.send_signal(signal.SIGKILL)
            until("all that it wants", lambda: lease.lease_bytes == 900)


def test_jobs_outlive_their_broker_and_tell_the_next_one_what_they_hold(place: Path) -> None:
    with Lease(place, member("a")) as lease:
        with Broker(place, DEVICE):
            assert lease.join(10)
            until("all that it wants", lambda: lease.lease_bytes == 900)
        until("that it is gone", lambda: not lease.is_connected)
        assert lease.want(950) == 900
        assert lease.begin_step() == 0
        lease.give_back(700)
        with Broker(place, DEVICE, resumes=True) as second:
            until("that it is back", lambda: [s.lease_bytes for s in second.shares()] == [700])
            with Lease(place, member("b")) as newcomer:
                assert newcomer.join(10)
                assert sum(share.lease_bytes for share in second.shares()) <= DEVICE


def test_what_a_bare_process_holds_is_known_to_each_broker_and_forgotten_with_the_job(
    place: Path,
) -> None:
    def base_bytes() -> int | None:
        (share,) = look(place)
        return share.base_bytes

    with Lease(place, member("a"), stands_in=True):
        with Broker(place, DEVICE):
            until("who stands in", lambda: len(look(place)) == 1)
            assert base_bytes() is None
            say_bare(place, "a", 200 * MIB)
            until("a word before it joins", lambda: base_bytes() == 200 * MIB)
            with Lease(place, member("a"), base_bytes=300 * MIB) as lease:
                until("the first word", lambda: base_bytes() == 300 * MIB)
                lease.bare(300 * MIB + 1000)  # not worth a word
                lease.bare(310 * MIB)
                until("the next", lambda: base_bytes() == 310 * MIB)
            until("who stands in", lambda: base_bytes() is None)
        with Lease(place, member("b"), base_bytes=5 * MIB), Broker(place, DEVICE):
            until("both", lambda: len(look(place)) == 2)
            until("b's", lambda: 5 * MIB in {share.base_bytes for share in look(place)})


def test_who_can_never_be_held_is_told_so_and_a_name_is_there_once(
    broker: Broker, place: Path
) -> None:
    with (
        Lease(place, Member(job="a", profile=declared(1200))) as lease,
        pytest.raises(LeaseRefused, match=r"1\.2 KiB, and the device has 1000 bytes"),
    ):
        lease.join(10)
    with Lease(place, member("b")) as first, Lease(place, member("b")) as second:
        outcomes = sorted(outcome(lease) for lease in (first, second))
        assert outcomes == ["True", "b is here already"]
        assert len(look(place)) == 1


def outcome(lease: Lease) -> str:
    try:
        return str(lease.join(10))
    except LeaseRefused as refused:
        return str(refused)


def joined(**changes: object) -> bytes:
    """A stranger's first word, with something else in its `member`."""
    fields = json.loads(encode(Joined(member=member("evil")), 1))
    fields["member"] |= changes
    return json.dumps(fields).encode() + b"\n"


def joined_with_rungs(**changes: object) -> bytes:
    rung = json.loads(encode(Joined(member=member("evil")), 1))["member"]["profile"]["rungs"][0]
    return joined(profile={"rungs": [rung | changes]})


def joined_and(**fields: object) -> bytes:
    return joined() + json.dumps({"number": 2, "job": "evil", **fields}).encode() + b"\n"


BAD = {
    "no JSON": b"GET / HTTP/1.1\n",
    "no UTF-8": b"\xff\xfe\n",
    "no object": b"[]\n",
    "no end": b"x" * 3_000_000,
    "too deep": b"[" * 100_000 + b"\n",
    "for another": b'{"type": "Returned", "number": 1, "job": "a", "lease_bytes": 0}\n',
    "no word of a job": b'{"type": "Left", "number": 1, "job": "a"}\n',
    "no number": b'{"type": "Look", "number": "x"}\n',
    "no rungs": joined(profile={"rungs": []}),
    "rungs are a number": joined(profile={"rungs": 7}),
    "weight 0": joined(weight=0),
    "weight -1": joined(weight=-1),
    "weight is text": joined(weight="x"),
    "weight is true": joined(weight=True),
    "weight is NaN": joined(weight=float("nan")),
    "weight has no end": joined(weight=10**400),
    "priority is text": joined(priority="x"),
    "priority is half": joined(priority=0.5),
    "job is a list": joined(job=[1]),
    "job is empty": joined(job=""),
    "step_s 0": joined_with_rungs(step_s=0),
    "step_s NaN": joined_with_rungs(step_s=float("nan")),
    "step_s almost 0": joined_with_rungs(step_s=5e-324),
    "copy_s endless": joined_with_rungs(copy_s=float("inf")),
    "copied_bytes negative": joined_with_rungs(copied_bytes=-1),
    "curve of text": joined_with_rungs(curve=["x"] * 32),
    "bytes of text": joined_with_rungs(bytes="x"),
    "bytes without end": joined_with_rungs(bytes=10**400),
    "wants text": joined_and(type="Wanted", lease_bytes="x"),
    "returns nothing": joined_and(type="Returned", lease_bytes=None),
    "returns half a byte": joined_and(type="Returned", lease_bytes=300.5),
    "a bare process of less than nothing": joined_and(type="Bare", base_bytes=-1),
    "bare for another": joined_and(type="Bare", job="a", base_bytes=1),
    "bare by a stranger": b'{"type": "Bare", "number": 1, "job": "a", "base_bytes": 1}\n',
    "drifts to no profile": joined_and(type="Drifted", member={"job": "evil", "profile": {}}),
}


@pytest.mark.parametrize("what", BAD)
def test_who_speaks_nonsense_or_for_others_is_cut_off_alone(
    broker: Broker, place: Path, what: str
) -> None:
    with Lease(place, member("a")) as lease:
        assert lease.join(10)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stranger:
            stranger.settimeout(10)
            stranger.connect(str(place))
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                stranger.sendall(BAD[what])  # it may not listen to the end
                while stranger.recv(65536):
                    pass
        until("its end", lambda: [share.job for share in look(place)] == ["a"])
        assert look(place)[0].base_bytes is None
        until("its answer", lambda: lease.want(900) == 900)


def test_a_broker_that_may_open_no_more_connections_serves_those_it_has(
    broker: Broker, place: Path
) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with (
        Lease(place, member("a", minimum=300)) as lease,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stranger,
    ):
        assert lease.join(10)
        os.close(next_free := os.dup(0))
        resource.setrlimit(resource.RLIMIT_NOFILE, (next_free, before[1]))
        try:
            stranger.connect(str(place))
            for _ in range(2):  # by the second answer it was refused
                lease.give_back(300)
                assert lease.want(900) == 900
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        with Lease(place, Member(job="b", profile=declared(100))) as next_one:
            assert next_one.join(10)


def test_two_brokers_are_never_on_one_path_and_a_dead_ones_socket_is_replaced(
    place: Path,
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
        left.bind(str(place))  # as after SIGKILL: nobody listens
    with Broker(place, DEVICE) as first:
        with pytest.raises(BrokerError, match="another broker serves it already"):
            Broker(place, DEVICE).start()
        assert first.shares() == ()
    assert not place.exists()


def test_a_grant_from_before_a_return_is_not_taken_for_one_after_it(place: Path) -> None:
    """The broker's words cross the job's on the way."""
    lease: Lease
    seen: list[int] = []

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as lines:
            number, _ = decode(next(lines))
            connection.sendall(encode(Admitted(job="a", minimum_bytes=300), number))
            connection.sendall(encode(Granted(job="a", lease_bytes=900), number))
            returned, message = decode(next(lines))
            assert isinstance(message, Returned)
            connection.sendall(encode(Granted(job="a", lease_bytes=900), number))
            connection.sendall(encode(Granted(job="a", lease_bytes=650), returned))
            until("the new one", lambda: lease.lease_bytes == 650)
            seen.append(lease.lease_bytes)

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(place))
        listener.listen()
        server = threading.Thread(target=serve, args=(listener,))
        with Lease(place, member("a")) as lease:
            server.start()
            assert lease.join(10)
            until("all that it wants", lambda: lease.lease_bytes == 900)
            lease.give_back(600)
            lowest = [lease.lease_bytes]
            server.join()
    assert (lowest, seen) == ([600], [650])


def test_a_broker_that_stopped_answering_is_waited_for_once(place: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(place))
        listener.listen()
        with Lease(place, member("a")) as lease:
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as lines:
                number, _ = decode(next(lines))
                connection.sendall(encode(Admitted(job="a", minimum_bytes=300), number))
                assert lease.join(10)
                begin_s = time.monotonic()
                assert lease.want(900) == 300
                waited_s = time.monotonic() - begin_s
                assert [lease.want(900) for _ in range(20)] == [300] * 20
                assert lease.begin_step() == 0
                assert time.monotonic() - begin_s < 2 * waited_s
                # one question is open: more would fill the socket
                lease.patience_s = 60.0  # of a step that began while it answered
                assert [lease.want(900, least_bytes=800) for _ in range(20)] == [300] * 20
                asked, question = decode(next(lines))
                assert isinstance(question, Wanted)
                connection.sendall(encode(Granted(job="a", lease_bytes=900), asked))
                until("its answer", lambda: lease.lease_bytes == 900)
                lease.give_back(800)
                assert isinstance(decode(next(lines))[1], Returned)


# leases that run out, and bytes that come back


def test_a_job_answers_when_it_is_asked_whatever_it_does_meanwhile(place: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(place))
        listener.listen()
        with Lease(place, member("a")):
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as lines:
                number, _ = decode(next(lines))
                connection.sendall(encode(Renew(job="a"), number))
                assert decode(next(lines)) == (number + 1, Renewed(job="a"))


HOLDER = (
    "import sys; from pathlib import Path; from tensile.coordinator import Member, Profile, Rung; "
    "from tensile.coordinator.lease import Lease; "
    "rungs = (Rung.flat(900, 1.0), Rung.flat(300, 2.0)); "
    "lease = Lease(Path(sys.argv[1]), Member(job='old', profile=Profile(rungs=rungs))); "
    "lease.join(20); "
    "[print(lease.want(int(line)), lease.cap_bytes, flush=True) for line in sys.stdin]"
)


@contextlib.contextmanager
def holder(place: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds 900 bytes, and could do with 300."""
    command = [sys.executable, "-c", HOLDER, str(place)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            assert answer_of(child, 900) == (900, 900)
            yield child
        finally:
            child.kill()


def answer_of(child: subprocess.Popen[str], wanted: int) -> tuple[int, int]:
    """Its lease after it wanted so much, and its cap."""
    assert child.stdin is not None
    assert child.stdout is not None
    print(wanted, file=child.stdin, flush=True)
    lease_bytes, cap_bytes = map(int, child.stdout.readline().split())
    return lease_bytes, cap_bytes


def test_a_process_that_is_stopped_is_silent_until_it_goes_on(place: Path) -> None:
    now = itertools.count(0.0, 0.5)  # each look at the clock is half a second later
    with (
        Broker(place, DEVICE, clock=lambda: next(now)),
        holder(place) as child,
        Lease(place, member("new")) as newcomer,
    ):
        child.send_signal(signal.SIGSTOP)

        def share(job: str) -> Share:
            return next(share for share in look(place) if share.job == job)

        until("its silence", lambda: share("old").message.startswith("SILENT"))
        assert (share("old").lease_bytes, share("old").cap_bytes) == (900, 300)
        assert "old did not answer for" in share("new").message
        assert not newcomer.join(NEVER_S)
        child.send_signal(signal.SIGCONT)
        until("its answer", lambda: share("old").message == "")
        assert answer_of(child, 0) == (900, share("old").cap_bytes)
        assert share("old").cap_bytes > 300


@pytest.mark.parametrize("wanted", [1000, 950, 600])
def test_a_process_that_comes_back_late_is_counted_with_all_that_it_believes_in(
    place: Path, wanted: int
) -> None:
    first = Broker(place, DEVICE).start()
    with holder(place) as child:
        child.send_signal(signal.SIGSTOP)
        first.stop()
        with (
            Broker(place, DEVICE) as second,
            Lease(place, Member(job="new", profile=declared(wanted))) as newcomer,
        ):
            assert newcomer.join(10)
            child.send_signal(signal.SIGCONT)
            until("its return", lambda: len(second.shares()) == 2)
            counted = {share.job: share for share in second.shares()}
            assert {name: share.lease_bytes for name, share in counted.items()} == {
                "new": wanted,
                "old": 900,
            }
            until("its cap", lambda: answer_of(child, 0) == (900, counted["old"].cap_bytes))
            assert counted["old"].cap_bytes == max(DEVICE - wanted, 300)
