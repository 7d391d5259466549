"""When two steps are the same for a plan: structure, shapes, optimizer and batch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch.utils._pytree import tree_flatten

from tensile.names import Models, Optimizers, modules, optimizers


def signature(model: Models, optimizer: Optimizers, batch: object) -> str:
    """16 hexadecimal digits, equal for steps that do the same to memory. Values are not looked at:
    a learning rate that a scheduler changed makes no other step.
    """
    digest = hashlib.sha256()
    for line in (*_of_model(model), *_of_optimizers(optimizer), *_of_batch(batch)):
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()[:16]


def _of_model(model: Models) -> Iterator[str]:
    for name, module in modules(model).items():
        yield f"module {name} {type(module).__qualname__} {module.training}"
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            yield f"{key} {_described(tensor)}"


def _of_optimizers(given: Optimizers) -> Iterator[str]:
    for optimizer in optimizers(given):
        yield f"optimizer {type(optimizer).__module__}.{type(optimizer).__qualname__}"
        for group in optimizer.param_groups:
            flags = {key: value for key, value in group.items() if isinstance(value, bool | None)}
            # whether these are zero decides about states, by how much they are not does not
            flags |= {key: bool(group.get(key)) for key in ("momentum", "weight_decay")}
            yield f"group {sorted(flags.items())} {[_described(p) for p in group['params']]}"


def _of_batch(batch: object) -> Iterator[str]:
    leaves, structure = tree_flatten(batch)
    yield f"batch {structure}"
    for leaf in leaves:
        if isinstance(leaf, torch.Tensor):
            yield _described(leaf)
        elif isinstance(leaf, bool | int | str | None):
            yield repr(leaf)
        else:
            yield type(leaf).__qualname__


def _described(tensor: torch.Tensor | None) -> str:
    if tensor is None:
        return "none"
    return f"{tuple(tensor.shape)} {tensor.dtype} {tensor.device} {tensor.requires_grad}"
