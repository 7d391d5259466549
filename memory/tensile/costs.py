"""What a device costs: how long operators and copies take. A roofline with measured constants."""

from __future__ import annotations

from dataclasses import dataclass

from tensile.sequence import Operator, Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Constants of one device. Copies out (to the lower tier) and in run on two channels at once.

    An operator takes `overhead_s` and the longer of its arithmetic and its memory traffic. Where
    what lasts is mapped, each byte of it that leaves and comes back takes `remap_s_per_byte` of a
    processor's time more than a copy does: other pages are given back and made anew for it.
    """

    device: str
    flops_per_s: float
    moved_bytes_per_s: float
    overhead_s: float
    out_bytes_per_s: float
    in_bytes_per_s: float
    copy_latency_s: float
    remap_s_per_byte: float = 0.0

    def operator_s(self, operator: Operator) -> float:
        if operator.measured_s is not None:
            return operator.measured_s
        arithmetic = operator.flops / self.flops_per_s
        traffic = operator.moved_bytes / self.moved_bytes_per_s
        return self.overhead_s + max(arithmetic, traffic)

    def durations_s(self, trace: Trace) -> list[float]:
        return [self.operator_s(operator) for operator in trace.operators]

    def out_s(self, moved_bytes: int) -> float:
        return self.copy_latency_s + moved_bytes / self.out_bytes_per_s

    def in_s(self, moved_bytes: int) -> float:
        return self.copy_latency_s + moved_bytes / self.in_bytes_per_s
