"""Trainings of random models: a random program whose operations are also layers, with weights that
are tied, used twice, sliced and transposed, and buffers that a forward pass changes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from helpers.random_programs import Operation, operations, perform
from helpers.small_trainings import Training

BATCHES = 2
LAYERS = (
    *("linear", "tied", "views of a weight", "layer norm", "batch norm", "running mean"),
    *("gelu", "relu in place", "dropout"),
)
OPTIMIZERS = ("sgd", "adamw", "rmsprop")


class ViewsOfAWeight(nn.Module):
    """One weight as a whole, transposed, and one row of it."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(side, side) / side)

    def forward(self, x: Tensor) -> Tensor:
        half = len(x) // 2
        return x @ self.weight.t() + x * self.weight[0] + self.weight[:, :half].repeat(1, 2)


class RunningMean(nn.Module):
    """A buffer that every pass changes in place, and that the result depends on."""

    mean: Tensor

    def __init__(self, side: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(side, side))

    def forward(self, x: Tensor) -> Tensor:
        self.mean.lerp_(x.detach(), 0.1)
        return x - self.mean.clone()


class RandomModel(nn.Module):
    """Its loss for a batch `(side, side)`. Python holds the last `held` values, and autograd what
    it needs of the others.
    """

    def __init__(self, program: list[Operation], side: int, held: int) -> None:
        super().__init__()
        self.program, self.held = program, held
        linear, tied = nn.Linear(side, side), nn.Linear(side, side, bias=False)
        tied.weight = linear.weight
        layers: list[nn.Module] = [linear, tied, ViewsOfAWeight(side), nn.LayerNorm(side)]
        layers += [nn.BatchNorm1d(side), RunningMean(side), nn.GELU(), nn.ReLU(inplace=True)]
        layers.append(nn.Dropout(0.3))
        self.layers = nn.ModuleDict(dict(zip(LAYERS, layers, strict=True)))

    def forward(self, x: Tensor) -> Tensor:
        values = [self.layers["linear"](x)]
        values.append(values[0])  # one thing under two names
        for operation in self.program:
            name, first, _ = operation
            if name in self.layers:
                values.append(self.layers[name](values[first % len(values)]))
            else:
                perform(operation, values)
            del values[: -self.held]
        return torch.stack([value.tanh().mean() for value in values]).sum()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a training is made, the same each time. `side` is that of all its matrices."""

    program: list[Operation]
    side: int
    held: int
    optimizer: str
    clip: float | None

    def made(self) -> Training:
        torch.manual_seed(0)
        model = RandomModel(self.program, self.side, self.held)
        return Training(
            model=model,
            optimizer=self._optimizer(model),
            batches=[torch.randn(self.side, self.side) for _ in range(BATCHES)],
            loss=lambda m, x: m(x),
            clip=self.clip,
        )

    def _optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        if self.optimizer == "sgd":
            return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        if self.optimizer == "adamw":
            return torch.optim.AdamW(model.parameters(), lr=1e-3)
        return torch.optim.RMSprop(model.parameters(), lr=1e-3, momentum=0.5)


def recipes(side: int, fewest: int, most: int) -> st.SearchStrategy[Recipe]:
    """Programs of so many operations, half of them layers."""
    layers = st.tuples(st.sampled_from(LAYERS), st.integers(0, 99), st.just(0))
    return st.builds(
        Recipe,
        program=st.lists(st.one_of(layers, operations), min_size=fewest, max_size=most),
        side=st.just(side),
        held=st.integers(1, 4),
        optimizer=st.sampled_from(OPTIMIZERS),
        clip=st.sampled_from([None, 1.0]),
    )
