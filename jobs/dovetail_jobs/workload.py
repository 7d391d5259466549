"""What a model family, or a user's own module, hands to the training loop.

A family's module has one function, `build(params, context) -> Workload`. The workload names its
models, optimizers and data; the loop (`dovetail_workers.train`) owns order, accumulation,
precision, clipping, schedule, averages, checkpoints and reports. Everything that a run must
remember lies in the named models (buffers included: a queue is a buffer), the optimizers, or the
loop.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from dovetail_jobs.spec import Train

if TYPE_CHECKING:
    import torch

Role = Literal["trainable", "frozen", "ema"]
Momentum = Callable[[int, int], float]
ParameterGroup = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One named model of a workload, on its device already.

    A frozen one gets no gradients. An EMA one neither: after each optimizer step its parameters
    become `m * own + (1 - m) * of the member it follows`, with `m = momentum(step, steps)` and
    `step` counted from 1; its buffers are the workload's own business.
    """

    module: torch.nn.Module
    role: Role = "trainable"
    follows: str | None = None
    momentum: Momentum | None = None

    def __post_init__(self) -> None:
        if (self.role == "ema") != (self.follows is not None and self.momentum is not None):
            raise ValueError("an ema member, and only one, needs `follows` and `momentum`")


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """One sample that the loop asks a source for, in an epoch that counts from 0."""

    index: int
    epoch: int
    stream_seed: int

    @property
    def seed(self) -> int:
        """64 bits for this sample's augmentation: of no other draw, and in whatever order drawn."""
        words = struct.pack("<QQQ", self.stream_seed, self.epoch, self.index)
        return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little")


class Source(Protocol):
    """Samples by index. `batch` may run in another thread and touches no global random state."""

    def __len__(self) -> int: ...

    def batch(self, draws: Sequence[Draw]) -> Any:
        """These samples as one micro-batch, in host memory, in whatever form `step` reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """A named data stream: `batch_size` samples of `source` per optimizer step, over all ranks.

    `prefetch` prepares the next micro-batch in a thread meanwhile; worth it where decoding is slow.
    """

    source: Source
    batch_size: int
    prefetch: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """`loss` is a scalar to call backward on, the mean over this micro-batch of `samples`."""

    loss: torch.Tensor
    samples: int


class Workload(Protocol):
    """The first feed counts epochs. Models keep the train or eval mode that `build` left."""

    @property
    def phases(self) -> Sequence[str]:
        """One today: `("train",)`."""

    @property
    def models(self) -> Mapping[str, Member]: ...

    @property
    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]: ...

    @property
    def feeds(self) -> Mapping[str, Feed]: ...

    def step(self, batches: Mapping[str, Any]) -> StepResult:
        """Forward on one micro-batch of every feed; the loop calls backward."""

    def validate(self) -> Mapping[str, float]:
        """Metrics over the whole validation data; all models are in eval mode, no gradients."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadContext:
    """What `build` is told about the run. Batch sizes count samples; `threads` are this rank's.

    `optimizer` makes the optimizer that the spec asks for over groups such as
    `{"params": [...], "weight_decay": 0.0, "lr_factor": 0.1}`; a family may as well make its own.
    """

    train: Train
    seed: int
    device: torch.device
    global_batch: int
    micro_batch: int
    threads: int
    optimizer: Callable[[Iterable[ParameterGroup]], torch.optim.Optimizer]

    @property
    def validation_batch(self) -> int:
        """Samples per forward of validation: `train.validate.batch_size`, else a micro-batch."""
        return self.train.validate_.batch_size or self.micro_batch
