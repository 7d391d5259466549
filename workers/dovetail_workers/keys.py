"""Where each thing of a job lies in storage. The only place that spells these paths.

jobs/<id>/attempts/<n>/claim                     which worker speaks for the attempt
jobs/<id>/attempts/<n>/fence                     there once the attempt is given up
jobs/<id>/attempts/<n>/journal/00000001.jsonl    reports, numbered without gaps
jobs/<id>/attempts/<n>/log/00000001.log          what the program printed, numbered without gaps
jobs/<id>/curves/attempt-<n>/events.out.tfevents…  TensorBoard files
jobs/<id>/checkpoints/0000000100-<n>/…           parts/… and, written last, manifest.json
code/<sha256>.tar.gz                             a code snapshot, by the hash of its content
"""

from __future__ import annotations


def job_prefix(job_id: str) -> str:
    return f"jobs/{job_id}/"


def claim(job_id: str, attempt: int) -> str:
    return f"jobs/{job_id}/attempts/{attempt}/claim"


def fence(job_id: str, attempt: int) -> str:
    return f"jobs/{job_id}/attempts/{attempt}/fence"


def journal_segment(job_id: str, attempt: int, number: int) -> str:
    return f"jobs/{job_id}/attempts/{attempt}/journal/{number:08d}.jsonl"


def log_segment(job_id: str, attempt: int, number: int) -> str:
    return f"jobs/{job_id}/attempts/{attempt}/log/{number:08d}.log"


def log_prefix(job_id: str, attempt: int) -> str:
    return f"jobs/{job_id}/attempts/{attempt}/log/"


def curves_prefix(job_id: str, attempt: int) -> str:
    return f"jobs/{job_id}/curves/attempt-{attempt}/"


def checkpoints_prefix(job_id: str) -> str:
    return f"jobs/{job_id}/checkpoints/"


def checkpoint_prefix(job_id: str, step: int, attempt: int) -> str:
    return f"jobs/{job_id}/checkpoints/{step:010d}-{attempt}/"


def code_archive(sha256: str) -> str:
    return f"code/{sha256}.tar.gz"
