"""Costs of a machine that no test has to measure."""

from tensile.costs import Costs

COSTS = Costs(
    device="cpu",
    flops_per_s=5e10,
    moved_bytes_per_s=5e9,
    overhead_s=1e-5,
    out_bytes_per_s=1e9,
    in_bytes_per_s=8e8,
    copy_latency_s=1e-4,
)
