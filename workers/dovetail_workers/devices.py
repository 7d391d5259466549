"""What devices this node has: CUDA devices where there are any, else CPU devices with a byte budget
each.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass

import psutil

HOST_SHARE = (
    0.8  # of the memory that is free: the rest stays for Ray, the page cache and other people
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """`name` is `cuda:0` or `cpu:0`; `bytes` is what jobs may use of it."""

    name: str
    bytes: int


def discover(cpu_devices: int | None, device_bytes: int | None) -> list[Device]:
    """The node's devices. CPU devices are offered where no GPU is, or where `cpu_devices` asks for
    them.

    `device_bytes` is the budget of each CPU device; by default they share most of the memory that
    is free now.
    """
    gpus = [] if cpu_devices else _gpus()
    if gpus:
        return gpus
    count = cpu_devices or 1
    each = device_bytes or int(psutil.virtual_memory().available * HOST_SHARE) // count
    return [Device(name=f"cpu:{index}", bytes=each) for index in range(count)]


def _gpus() -> list[Device]:
    """By nvidia-smi, so that nothing here loads CUDA; memory in MiB by its own unit."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=index,memory.total", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    if answer.returncode != 0:
        return []
    rows = [line.split(",") for line in answer.stdout.splitlines() if line.strip()]
    return [Device(name=f"cuda:{int(index)}", bytes=int(mib) * 2**20) for index, mib in rows]
