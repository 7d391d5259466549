"""All that a run remembers, as the parts of a checkpoint and back."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from dovetail_jobs.errors import UserError
from dovetail_jobs.workload import Member
from dovetail_workers import random_state
from dovetail_workers.precision import Precision
from dovetail_workers.streams import Stream

MODELS, OPTIMIZERS, LOOP = "models.pt", "optimizers.pt", "loop.pt"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingState:
    """The live objects of a run. The schedule needs no state: it is a function of the step."""

    models: Mapping[str, Member]
    optimizers: Mapping[str, torch.optim.Optimizer]
    streams: Mapping[str, Stream]
    precision: Precision

    def to_parts(self) -> dict[str, bytes]:
        """Models, optimizers, and the rest: positions, loss scale, every random generator."""
        return {
            MODELS: _dump({name: item.module.state_dict() for name, item in self.models.items()}),
            OPTIMIZERS: _dump({name: item.state_dict() for name, item in self.optimizers.items()}),
            LOOP: _dump(
                {
                    "streams": {name: stream.state() for name, stream in self.streams.items()},
                    "precision": self.precision.state(),
                    "random": random_state.capture(),
                }
            ),
        }

    def load_parts(self, read: Callable[[str], bytes]) -> None:
        """Continue where `to_parts` was called. Raises UserError for a run of another shape."""
        models, optimizers, loop = (_load(read(part)) for part in (MODELS, OPTIMIZERS, LOOP))
        for what, mine, saved in (
            ("models", self.models, models),
            ("optimizers", self.optimizers, optimizers),
            ("streams", self.streams, loop["streams"]),
        ):
            if set(mine) != set(saved):
                raise UserError(
                    f"the checkpoint holds the {what} {_names(saved)}; this program has "
                    f"{_names(mine)}; start from scratch, or bring the program back"
                )
        try:
            for name, member in self.models.items():
                member.module.load_state_dict(models[name])
            for name, optimizer in self.optimizers.items():
                optimizer.load_state_dict(optimizers[name])
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"the checkpoint does not fit {name!r} of this program: {error}; start from "
                "scratch, or bring the program back"
            ) from None
        for name, stream in self.streams.items():
            stream.load_state(loop["streams"][name])
        self.precision.load_state(loop["precision"])
        random_state.restore(loop["random"])


def _dump(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _load(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _names(mapping: Mapping[str, Any]) -> str:
    return ", ".join(sorted(mapping)) or "none"
