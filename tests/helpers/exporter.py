"""What Prometheus would read of the head's Ray node."""

from __future__ import annotations

import re
import urllib.request
from pathlib import Path

from dovetail.cluster import ray_process, ray_record
from dovetail_workers.process_tree import processes_with


def exported(home: Path, metric: str, *labels: str) -> list[float]:
    """The values of the series of that metric which have all these labels, each as
    `name="value"`.
    """
    head = ray_record.read(home / "ray.json")
    assert head is not None
    found = processes_with(ray_process.SESSION_VARIABLE, head.session)
    words = [word for process in found for word in process.cmdline()]
    (port,) = {
        word.split("=")[1] for word in words if re.match("--metrics[-_]export[-_]port=", word)
    }
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    mine = (line for line in lines if line.startswith(f"{metric}{{"))
    return [float(line.split()[-1]) for line in mine if all(label in line for label in labels)]
