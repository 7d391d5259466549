"""Many clients submit at once while the server is killed and started again: every job is there,
once.
"""

import json
import threading

import psutil
import pytest

from dovetail.client import Client
from dovetail.local_server import server_again
from dovetail.settings import Settings
from dovetail_jobs.errors import Unreachable
from dovetail_jobs.spec import JobSpec
from dovetail_workers.process_tree import wait_gone
from helpers.installation import Installation

pytestmark = [pytest.mark.ray, pytest.mark.long]

CLIENTS, JOBS_EACH = 8, 25
HOLDER = {"name": "holder", "script": "tail -f /dev/null", "priority": 90}  # of the only device


class Submitter(threading.Thread):
    """One client: submits each job under its key until it is acknowledged, and then once more."""

    def __init__(self, settings: Settings, number: int, half: threading.Barrier) -> None:
        super().__init__()
        self._settings, self._number, self._half = settings, number, half
        self.acknowledged: dict[str, str] = {}
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self._submit_all()
        except Exception as error:
            self.error = error
            self._half.abort()

    def _submit_all(self) -> None:
        client = connected(self._settings)
        for index in range(JOBS_EACH):
            if index == JOBS_EACH // 2:
                self._half.wait(timeout=60)
            name = f"job-{self._number}-{index}"
            spec = JobSpec.model_validate({"name": name, "script": "true"})
            for _ in range(2):
                job_id, client = self._submit(client, spec, name)
                assert self.acknowledged.setdefault(name, job_id) == job_id

    def _submit(self, client: Client, spec: JobSpec, key: str) -> tuple[str, Client]:
        while True:
            try:
                job, _ = client.submit(spec.to_json(), key)
            except Unreachable as lost:
                client = server_again(self._settings, lost, lambda _: None)
            else:
                return str(job["id"]), client


def connected(settings: Settings) -> Client:
    said = json.loads(settings.server_file.read_text())
    return Client(said["url"], settings.token_file.read_text().strip())


def test_two_hundred_jobs_of_eight_clients_survive_a_killed_server(
    on_each_database: Installation,
) -> None:
    dovetail = on_each_database
    assert dovetail.run("up", "--cpu-devices", "1").returncode == 0
    settings = Settings.from_environment(dovetail.environment)
    connected(settings).submit(JobSpec.model_validate(HOLDER).to_json(), "holder")
    half = threading.Barrier(CLIENTS + 1)
    clients = [Submitter(settings, number, half) for number in range(CLIENTS)]
    for client in clients:
        client.start()
    half.wait(timeout=60)
    pid = dovetail.server_pid()
    psutil.Process(pid).kill()
    wait_gone([pid], timeout_s=10)
    for client in clients:
        client.join(timeout=120)
    assert [client.error for client in clients] == [None] * CLIENTS
    acknowledged = {name: id for client in clients for name, id in client.acknowledged.items()}
    assert len(acknowledged) == CLIENTS * JOBS_EACH
    rows = [job for job in dovetail.json("ps", "--all") if job["name"] != "holder"]
    assert {job["name"]: job["id"] for job in rows} == acknowledged
    assert len(rows) == CLIENTS * JOBS_EACH
    assert dovetail.server_pid() != pid
