"""The hooks that autograd calls when it saves a tensor and when it asks for it back.

Hooks switch autograd's own version check off, so a handle has a tensor that shares the version
counter of what was saved. Without that, an in-place change between forward and backward would give
wrong gradients without a word.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tensile.contents import Content, Slot

_PLAIN = frozenset({Tensor, nn.Parameter})


class Hold:
    """Keeps a slot's content as a saved tensor would, without being one."""

    __slots__ = ("slot",)

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        slot.handles += 1

    def __del__(self) -> None:
        self.slot.dead.append(self.slot)


class Kept:
    """A saved tensor that has an owner of its own: a parameter, a buffer, or something unusual."""

    __slots__ = ("tensor", "version")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.version = tensor._version


class Handle:
    """A saved tensor over the slot's storage, which follows its version. While the content is away
    it is one without memory.
    """

    __slots__ = ("slot", "tensor")

    def __init__(self, slot: Slot, tensor: Tensor) -> None:
        self.slot = slot
        slot.handles += 1
        if slot.content.movable:
            tensor = tensor.detach()
            slot.saved.append(tensor)
        self.tensor = tensor

    def __del__(self) -> None:
        self.slot.dead.append(self.slot)  # in any thread, at any time: no lock, no book-keeping


class SavedTensors:
    """`pack` and `unpack` for `saved_tensors_hooks`, and the slots of the current step.

    `packed(slot)` and `unpacked(slot)` are told of every moment that a trace has too; `touched`
    answers whether a storage belongs to the model, and hears that it is in use. `present(content)`
    brings one back, `retired(content)` is told that nobody needs it.
    """

    def __init__(
        self,
        *,
        packed: Callable[[Slot], None],
        unpacked: Callable[[Slot], None],
        touched: Callable[[torch.UntypedStorage], bool],
        present: Callable[[Content], None],
        retired: Callable[[Content], None],
        smallest_bytes: int,
    ) -> None:
        self._packed = packed
        self._unpacked = unpacked
        self._touched = touched
        self._present = present
        self._retired = retired
        self._smallest_bytes = smallest_bytes
        self._dead: deque[Slot] = deque()
        self._contents: dict[int, Content] = {}  # by the address of a storage that is there
        self._count = 0
        self.slots: dict[int, Slot] = {}  # of this step, by number

    def begin_step(self) -> None:
        """Graphs of earlier steps keep what they have; numbers start again."""
        self.reap()
        self._contents.clear()
        self.slots.clear()
        self._count = 0

    def pack(self, tensor: Tensor) -> object:
        if type(tensor) not in _PLAIN or tensor.layout != torch.strided or not tensor.is_cpu:
            return Kept(tensor)
        storage = tensor.untyped_storage()
        if self._touched(storage):
            return Kept(tensor)
        self.reap()
        version = tensor._version
        content = self._content(storage)
        slot = content.slots.get(version) if content is not None else None
        fresh = slot is None
        if slot is None:
            slot = self._new_slot(content, storage, version, tensor.nbytes)
        handle = Handle(slot, tensor)
        del storage, tensor  # nobody else may hold it when the moment is told
        if fresh:
            self._packed(slot)
        return handle

    def unpack(self, saved: object) -> Tensor:
        if isinstance(saved, Kept):
            _check_version(saved.tensor, saved.version, saved.tensor)
            self._touched(saved.tensor.untyped_storage())
            return saved.tensor
        assert isinstance(saved, Handle)
        slot, tensor = saved.slot, saved.tensor
        if tensor._version != slot.version:
            _check_version(tensor, slot.version, tensor)
        self.reap()
        content = slot.content
        there = content.storage  # held, so that making room does not take just this one
        self._unpacked(slot)
        if not content.is_here:
            self._present(content)
            assert content.storage is not None
            self._contents[content.storage._cdata] = content  # another one, if it was computed
        del there
        # another tensor over it, so that it is held for as long as that is in use
        return tensor.detach() if content.movable else tensor

    def reap(self) -> None:
        """Take note of the handles that died since the last time."""
        while self._dead:
            slot = self._dead.popleft()
            slot.handles -= 1
            if slot.handles:
                continue
            slot.saved.clear()
            content = slot.content
            content.slots.pop(slot.version, None)
            if not content.slots:
                if content.storage is not None:
                    self._contents.pop(content.storage._cdata, None)
                self._retired(content)

    def _content(self, storage: torch.UntypedStorage) -> Content | None:
        """An address alone says nothing: a storage that left may have been followed by another."""
        content = self._contents.get(storage._cdata)
        return content if content is not None and content.storage is storage else None

    def _new_slot(
        self,
        content: Content | None,
        storage: torch.UntypedStorage,
        version: int,
        shown_bytes: int,
    ) -> Slot:
        number, self._count = self._count, self._count + 1
        if content is None:
            movable = storage.nbytes() > 0 and storage.nbytes() >= self._smallest_bytes
            content = Content(storage, number, movable=movable)
            self._contents[storage._cdata] = content
        slot = Slot(number, content, version, self._dead, shown_bytes)
        content.slots[version] = slot
        self.slots[number] = slot
        return slot


def _check_version(probe: Tensor, expected: int, shown: Tensor) -> None:
    """Autograd's own sentence for a saved tensor that was changed in place."""
    if probe._version != expected:
        kind = torch.empty(0, dtype=shown.dtype).type()
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace "
            f"operation: [{kind} {list(shown.size())}] is at version {probe._version}; expected "
            f"version {expected} instead. Hint: enable anomaly detection to find the operation "
            "that failed to compute its gradient, with torch.autograd.set_detect_anomaly(True, "
            "check_nan=False)."
        )
