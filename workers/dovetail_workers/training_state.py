"""All that a run remembers, as the parts of a checkpoint and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from dovetail_jobs.errors import UserError
from dovetail_jobs.workload import Member
from dovetail_workers import random_state
from dovetail_workers.part_file import MakeRoom, PartFile
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

    @contextmanager
    def staged(self, make_room: MakeRoom) -> Iterator[dict[str, Path]]:
        """The parts as files: models, optimizers, and the rest: positions, loss scale, every random
        generator. `make_room(bytes)` is called before so many bytes of the state are read.
        """
        values: dict[str, Callable[[], Any]] = {
            MODELS: lambda: {name: item.module.state_dict() for name, item in self.models.items()},
            OPTIMIZERS: lambda: {name: o.state_dict() for name, o in self.optimizers.items()},
            LOOP: lambda: {
                "streams": {name: stream.state() for name, stream in self.streams.items()},
                "precision": self.precision.state_dict(),
                "random": random_state.capture(),
            },
        }
        with ExitStack() as stack:
            parts: dict[str, Path] = {}
            for name, value in values.items():
                part = stack.enter_context(PartFile())
                part.save(value(), make_room)
                parts[name] = part.path
            yield parts

    def load(
        self, fetch: Callable[[str, Callable[[bytes], object]], None], make_room: MakeRoom
    ) -> None:
        """Continue where `staged` was called; `fetch(part, write)` writes a part. Raises UserError
        for a run of another shape.
        """
        with PartFile() as models_file, PartFile() as optimizers_file, PartFile() as loop_file:
            files = {MODELS: models_file, OPTIMIZERS: optimizers_file, LOOP: loop_file}
            for part, file in files.items():
                fetch(part, file.write)
            models, optimizers, loop = (file.load() for file in files.values())
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
                    _load_model(member.module, models[name], models_file, make_room)
                for name, optimizer in self.optimizers.items():
                    _load_optimizer(optimizer, optimizers.pop(name), optimizers_file, make_room)
            except (RuntimeError, ValueError) as error:
                raise UserError(
                    f"the checkpoint does not fit {name!r} of this program: {error}; start from "
                    "scratch, or bring the program back"
                ) from None
            for name, stream in self.streams.items():
                stream.load_state(loop["streams"][name])
            self.precision.load_state_dict(loop["precision"])
            random_state.restore(loop["random"])


def _load_model(
    model: nn.Module, state: dict[str, Any], file: PartFile, make_room: MakeRoom
) -> None:
    """Module by module, so that no more than one of them is read at a time."""

    def before(module: nn.Module, *_: Any) -> None:
        file.let_go()
        own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
        make_room(2 * sum(tensor.nbytes for tensor in own))

    hooks = [
        module.register_load_state_dict_pre_hook(before)  # type: ignore[no-untyped-call]
        for module in model.modules()
    ]
    try:
        model.load_state_dict(state)
    finally:
        for hook in hooks:
            hook.remove()
        file.let_go()


def _load_optimizer(
    optimizer: torch.optim.Optimizer, state: dict[str, Any], file: PartFile, make_room: MakeRoom
) -> None:
    """An optimizer keeps the tensors that it is given, so each one of the file becomes its own."""

    def own(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or not file.holds(value):
            return value
        make_room(2 * value.nbytes)
        copy = value.clone()
        file.let_go()
        return copy

    optimizer.load_state_dict(state)
    del state  # what only the optimizer holds can leave at once
    for values in (*optimizer.state.values(), *optimizer.param_groups):
        for key, value in values.items():
            # What has no tensor stays the object it is: groups share theirs, and a checkpoint
            # says who shares what.
            if key != "params" and any(
                isinstance(leaf, torch.Tensor) for leaf in tree_leaves(value)
            ):
                values[key] = tree_map(own, value)


def _names(mapping: Mapping[str, Any]) -> str:
    return ", ".join(sorted(mapping)) or "none"
