"""A bench with one device, whose jobs may share it."""

from __future__ import annotations

from typing import Any

from dovetail.service.outlooks import Foreseen
from dovetail_jobs.spec import JobSpec
from helpers.bench import Bench
from helpers.build import MIB, profile

LADDER = profile((600 * MIB, 1.0), (300 * MIB, 1.2), (200 * MIB, 2.0))


class Room(Bench):
    """Jobs of one device of 1 GiB, whose forecasts come when they are told."""

    def managed(self, name: str, **resources: Any) -> str:
        spec = JobSpec.model_validate(
            {
                "name": name,
                "family": "swin",
                "train": {"steps": 1},
                "memory": {"policy": "tensile"},
                "resources": resources,
            }
        )
        job, _ = self.store.submit(spec.to_json(), user="u", key=None, now=self.now)
        self.turn()
        return job.id

    def foresee(self, *job_ids: str) -> None:
        for job_id in job_ids:
            found = Foreseen(job_id=job_id, peak_bytes=LADDER.peak_bytes, profile=LADDER)
            self.daemon.step([found])
        self.turn()

    def finish(self, job_id: str) -> None:
        self.finish_attempt(f"{job_id}.1")

    def finish_attempt(self, attempt_id: str) -> None:
        self.cluster.begin(attempt_id)
        self.cluster.finish(attempt_id)
        self.turn()
