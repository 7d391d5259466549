"""What the Ray of our own is made of, without a Ray: its record, its probe, its words."""

import socket
import threading
from pathlib import Path

import pytest

from dovetail.cluster import local_nodes, ray_record
from dovetail.cluster.head_probe import watch_head
from dovetail.cluster.local_nodes import LocalNodes
from dovetail.cluster.ray_record import Head, LocalNode
from dovetail.cluster.words import why_gone
from dovetail_jobs.errors import Conflict, NotFound

HEAD = Head(
    session="0" * 16,
    address="127.0.0.1:1",
    dashboard_url="http://127.0.0.1:2",
    temp_dir="/tmp/none",
    nodes=(LocalNode(name="here-2", mark="1" * 16), LocalNode(name="here-4", mark="2" * 16)),
)


@pytest.fixture
def nodes(tmp_path: Path) -> LocalNodes:
    return LocalNodes(
        record=tmp_path / "ray.json", token_file=tmp_path / "token", log=tmp_path / "ray.log"
    )


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    record = tmp_path / "ray.json"
    ray_record.write(record, HEAD)
    assert ray_record.read(record) == HEAD
    assert record.stat().st_mode & 0o777 == 0o600


def test_nodes_whose_processes_are_gone_do_not_count_as_living() -> None:
    assert local_nodes.living(HEAD) == ()


def test_a_node_is_not_added_to_a_ray_that_does_not_answer(nodes: LocalNodes) -> None:
    with pytest.raises(Conflict, match="no Ray of ours runs"):
        nodes.add(1)
    ray_record.write(nodes.record, HEAD)
    with pytest.raises(Conflict, match="no Ray of ours runs"):
        nodes.add(1)


def test_only_extra_nodes_are_removed_and_the_others_named(nodes: LocalNodes) -> None:
    ray_record.write(nodes.record, HEAD)
    with pytest.raises(Conflict, match="the head's own node"):
        nodes.remove(socket.gethostname())
    with pytest.raises(NotFound, match="here-2, here-4"):
        nodes.remove("here-3")
    nodes.remove("here-2")
    left = ray_record.read(nodes.record)
    assert left is not None
    assert [node.name for node in left.nodes] == ["here-4"]


def test_a_node_that_ray_has_lost_is_forgotten(nodes: LocalNodes) -> None:
    ray_record.write(nodes.record, HEAD)
    for _ in range(2):
        local_nodes.forget(nodes.record, "2" * 16)
        left = ray_record.read(nodes.record)
        assert left is not None
        assert [node.name for node in left.nodes] == ["here-2"]


@pytest.mark.long
def test_a_head_that_stops_listening_is_noticed_within_seconds() -> None:
    said: list[str] = []
    lost = threading.Event()

    def note(cause: str) -> None:
        said.append(cause)
        lost.set()

    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))
        head.listen()
        address = f"127.0.0.1:{head.getsockname()[1]}"
        watch_head(address, note)
        assert not lost.wait(1.5)
    assert lost.wait(10)
    assert said == [f"Ray's head at {address} does not answer"]


DIED = (
    "The actor died unexpectedly before finishing this task.\n\tclass_name: AttemptWorker\n"
    "\tactor_id: bff76882b6f934388c72872001000000\n\tpid: 31323\n\tip: 127.0.0.1\n"
)


@pytest.mark.parametrize(
    ("text", "lives", "words"),
    [
        (DIED + "The actor died because its node has died. Node Id: 01f", True, "node n2 is gone"),
        ("The actor bff76882 is unavailable: RpcError", False, "node n2 is gone"),
        (
            DIED + "The actor is dead because its worker process has died. Worker exit type: "
            "SYSTEM_ERROR Worker exit detail: Worker unexpectedly exits with a connection error "
            "code 2. End of file. Some common causes include: (1) the process was killed",
            True,
            "its worker died: its process ended without a word (killed, out of memory, or crashed)",
        ),
        (
            DIED + "The actor is dead because its worker process has died. Worker exit type: "
            "INTENDED_SYSTEM_EXIT Worker exit detail: Worker exits by SIGTERM. More words.",
            True,
            "its worker died: Worker exits by SIGTERM",
        ),
        (
            DIED + "The actor is dead because it was killed by `ray.kill`.",
            True,
            "its worker died: The actor is dead because it was killed by `ray.kill`",
        ),
    ],
)  # fmt: skip
def test_a_loss_is_told_in_a_persons_words(text: str, lives: bool, words: str) -> None:
    assert why_gone(RuntimeError(text), "n2", lives) == words
