"""A process takes no more of its GPU than it may: PyTorch's allocator refuses beyond a fraction.
What the CUDA context takes beside the tensors is not counted.
"""

from __future__ import annotations

from dovetail_workers.launch import Launch
from dovetail_workers.memory_limit import fixed_limit

VARIABLE = "PYTORCH_CUDA_ALLOC_CONF"


def fraction(launch: Launch) -> float | None:
    """Of its GPU, that the attempt may take; None for one that has it whole, or a CPU device."""
    limit_bytes = fixed_limit(launch).bytes
    if not launch.device.startswith("cuda:") or limit_bytes is None:
        return None
    return min(1.0, limit_bytes / launch.device_bytes)


def fence(launch: Launch) -> None:
    """In the training process of a family, before its first tensor is there."""
    part = fraction(launch)
    if part is not None:
        import torch

        torch.cuda.set_per_process_memory_fraction(part, 0)  # it is shown its own device only


def environment(launch: Launch, given: str | None) -> dict[str, str]:
    """For a script, which is told by the allocator's own settings, beside those that it has."""
    part = fraction(launch)
    if part is None or launch.spec["family"] is not None:
        return {}
    settings = [*filter(None, [given]), f"per_process_memory_fraction:{part:.6f}"]
    return {VARIABLE: ",".join(settings)}
