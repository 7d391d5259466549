"""When each storage of a step is born and dies, observed on the storages themselves.

A storage of a fake tensor takes no memory, but it is born and dies exactly as the real one would. A
*life* is what one real storage would go through; it may have several fake ones after another, since
a saved tensor is dropped as soon as it is packed and made again when it is unpacked.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from tensile.sequence import Kind


@dataclass(slots=True, eq=False)
class Life:
    """One storage. `owners` are its fake storages, `held` counts the slots that autograd keeps."""

    bytes: int
    birth: int
    maker: int  # the operator that made it; -1 for what the step finds
    late_bytes: int = 0
    name: str | None = None
    kind: Kind = Kind.TEMPORARY
    death: int | None = None
    owners: set[int] = field(default_factory=set)
    held: int = 0
    listeners: list[Callable[[], None]] = field(default_factory=list)


class Lives:
    """All storages seen so far. `position` is the number of operators of the current step."""

    def __init__(self) -> None:
        self.position = 0
        self._all: list[Life] = []
        self._of: dict[int, Life] = {}
        self._watched: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __iter__(self) -> Iterator[Life]:
        return iter(self._all)

    def find(self, tensor: torch.Tensor) -> Life | None:
        """The life of this tensor's storage; None for one that was never seen."""
        return self._of.get(tensor.untyped_storage()._cdata)

    def found(self, tensor: torch.Tensor) -> Life:
        """As `find`; a storage that was never seen was there before the step."""
        return self.find(tensor) or self._begin(tensor.untyped_storage(), birth=0, maker=-1)

    def made(self, tensor: torch.Tensor, operator: int) -> Life:
        """As `find`; a storage that was never seen is the operator's."""
        life = self.find(tensor)
        if life is None:
            return self._begin(tensor.untyped_storage(), birth=operator, maker=operator)
        life.bytes = max(life.bytes, tensor.untyped_storage().nbytes())  # resized
        return life

    def follow(self, storage: torch.UntypedStorage, life: Life) -> None:
        """From here on `storage` is one of the life's."""
        key = storage._cdata
        life.owners.add(key)
        self._of[key] = life
        self._watched[key] = weakref.ref(storage, lambda _: self._lost(key))

    def owner(self, life: Life) -> torch.UntypedStorage | None:
        """A living fake storage of the life."""
        return next((self._watched[key]() for key in life.owners), None)

    def hold(self, life: Life) -> None:
        life.held += 1

    def let_go(self, life: Life) -> None:
        life.held -= 1
        self._maybe_dead(life)

    def begin_step(self) -> None:
        """What lives now was found by the step that begins; what is dead is forgotten."""
        self.position = 0
        self._all = [life for life in self._all if life.death is None]
        for life in self._all:
            life.birth, life.maker = 0, -1

    def _begin(self, storage: torch.UntypedStorage, *, birth: int, maker: int) -> Life:
        life = Life(bytes=storage.nbytes(), birth=birth, maker=maker)
        self._all.append(life)
        self.follow(storage, life)
        return life

    def _lost(self, key: int) -> None:
        life = self._of.pop(key)
        del self._watched[key]
        life.owners.discard(key)
        if not life.owners:
            for listener in life.listeners:
                listener()
        self._maybe_dead(life)

    def _maybe_dead(self, life: Life) -> None:
        if not life.owners and life.held == 0 and life.death is None:
            life.death = self.position
