"""A storage that is watched without being held."""

from __future__ import annotations

import sys
from functools import cache
from typing import cast

import torch


class WeakStorage:
    """While this lives, no other storage gets the watched one's address (`_cdata`)."""

    __slots__ = ("_weak",)

    def __init__(self, storage: torch.UntypedStorage) -> None:
        self._weak = cast(int, storage._weak_ref())

    def lifted(self) -> torch.UntypedStorage | None:
        """The storage, if anybody still holds it."""
        made: object = torch.UntypedStorage._new_with_weak_ptr(self._weak)
        return cast("torch.UntypedStorage | None", made)

    def __del__(self) -> None:
        torch.UntypedStorage._free_weak_ref(self._weak)  # type: ignore[no-untyped-call]


def is_held_once(storage: torch.UntypedStorage, tensors: int = 0) -> bool:
    """Whether no more than `tensors` tensors are over it. Python names of it do not count."""
    return torch._C._storage_Use_Count(storage._cdata) == 1 + tensors


@cache
def references_of_tensors() -> int:
    """How many references to the Python name of a storage torch has, while tensors are over it."""
    tensor = torch.empty(1)
    storage = tensor.untyped_storage()
    with_tensor = sys.getrefcount(storage)
    del tensor
    return with_tensor - sys.getrefcount(storage)
