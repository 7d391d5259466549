"""Stable names of a model's parts: the same from step to step and from process to process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor, nn
from torch.optim import Optimizer

Models = nn.Module | Mapping[str, nn.Module]
Optimizers = Optimizer | Sequence[Optimizer]


def modules(models: Models) -> dict[str, nn.Module]:
    """Every module by its name; of a mapping with the key in front (`encoder.blocks.0`)."""
    if isinstance(models, nn.Module):
        return dict(models.named_modules())
    return {
        name: module
        for key, model in models.items()
        for name, module in model.named_modules(prefix=key)
    }


def optimizers(given: Optimizers) -> tuple[Optimizer, ...]:
    return (given,) if isinstance(given, Optimizer) else tuple(given)


def parameters(models: Models, given: Optimizers) -> dict[str, nn.Parameter]:
    """Every parameter once, by the first of its names. One that only an optimizer knows is named by
    its place there (`optimizer.0.1.2`: parameter 2 of group 1).
    """
    found: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for name, parameter in (*_direct(models), *_of_groups(given)):
        if id(parameter) not in seen:
            seen.add(id(parameter))
            found[name] = parameter
    return found


def buffers(models: Models) -> dict[str, Tensor]:
    return {
        f"{name}.{key}" if name else key: buffer
        for name, module in modules(models).items()
        for key, buffer in module._buffers.items()
        if buffer is not None
    }


def _direct(models: Models) -> Iterator[tuple[str, nn.Parameter]]:
    for name, module in modules(models).items():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                yield f"{name}.{key}" if name else key, parameter


def _of_groups(given: Optimizers) -> Iterator[tuple[str, nn.Parameter]]:
    for number, optimizer in enumerate(optimizers(given)):
        for group_number, group in enumerate(optimizer.param_groups):
            for index, parameter in enumerate(group["params"]):
                yield f"optimizer.{number}.{group_number}.{index}", parameter
