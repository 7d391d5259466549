"""What autograd saves, in the order in which it saves and asks for it. The hooks behave as those of
an executor that always evicts: pack keeps no tensor, so everything else's hold can be observed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._mode_utils import no_dispatch

from tensile.lives import Life, Lives
from tensile.sequence import Event, Kind, Moment

PASSED = frozenset({Kind.PARAMETER, Kind.BUFFER})  # they have owners of their own


@dataclass(slots=True, eq=False)
class Saved:
    """One slot: a storage in one version. `handles` are the saved tensors that look at it."""

    number: int
    life: Life
    version: int
    packed: int
    shown_bytes: int
    alone: int | None = None
    unpacks: list[int] = field(default_factory=list)
    released: int | None = None
    handles: int = 0


class Handle:
    """What autograd keeps in place of a tensor: its layout, and the slot while anybody needs it."""

    __slots__ = ("device", "dtype", "offset", "release", "saved", "size", "stride")

    def __init__(
        self, saved: Saved, tensor: torch.Tensor, release: Callable[[Saved], None]
    ) -> None:
        self.saved = saved
        self.device = tensor.device
        self.dtype = tensor.dtype
        self.size = tensor.size()
        self.stride = tensor.stride()
        self.offset = tensor.storage_offset()
        self.release = release
        saved.handles += 1

    def __del__(self) -> None:
        self.release(self.saved)


class SavedTensors:
    """The pair of hooks and the slots of the current step. `foreign` gives a real tensor, which
    autograd saves before any operator has seen it, its fake one.
    """

    def __init__(
        self,
        lives: Lives,
        mode: FakeTensorMode,
        foreign: Callable[[torch.Tensor], torch.Tensor],
        emit: Callable[[Event], None],
    ) -> None:
        self.slots: list[Saved] = []
        self._foreign = foreign
        self._lives = lives
        self._mode = mode
        self._emit = emit
        self._open: dict[tuple[Life, int], Saved] = {}

    def begin_step(self) -> None:
        """Slots that are still held go on holding, but they are no slots of this step."""
        self.slots = []
        self._open = {}

    def pack(self, tensor: torch.Tensor) -> object:
        if tensor.layout != torch.strided:
            return tensor
        version = tensor._version  # of the real one too: it follows what autograd does to it
        fake = tensor if isinstance(tensor, FakeTensor) else self._foreign(tensor)
        life = self._lives.made(fake, self._lives.position)
        if life.kind in PASSED:
            return fake
        saved = self._open.get((life, version))
        if saved is None:
            saved = self._open[life, version] = self._save(life, version, fake)
        return Handle(saved, fake, self._release)

    def unpack(self, packed: object) -> torch.Tensor:
        if not isinstance(packed, Handle):
            assert isinstance(packed, torch.Tensor)
            return packed
        saved, position = packed.saved, self._lives.position
        saved.unpacks.append(position)
        self._emit(Event(moment=Moment.UNPACK, position=position, number=saved.number))
        storage = self._lives.owner(saved.life)
        with no_dispatch():
            if storage is None:
                size_bytes = saved.life.bytes
                storage = torch.UntypedStorage(size_bytes, device="meta")  # type: ignore[no-untyped-call]
                self._lives.follow(storage, saved.life)
            meta = torch.empty(0, dtype=packed.dtype, device="meta")
            meta.set_(storage, packed.offset, packed.size, packed.stride)
        return FakeTensor(self._mode, meta, packed.device)

    def _save(self, life: Life, version: int, tensor: torch.Tensor) -> Saved:
        position = self._lives.position
        saved = Saved(
            number=len(self.slots),
            life=life,
            version=version,
            packed=position,
            shown_bytes=_shown_bytes(tensor, life),
        )
        self.slots.append(saved)
        self._lives.hold(life)
        life.listeners.append(lambda: self._left_alone(saved))
        self._emit(Event(moment=Moment.PACK, position=position, number=saved.number))
        return saved

    def _left_alone(self, saved: Saved) -> None:
        if saved.alone is None and not saved.unpacks and saved.released is None:
            saved.alone = self._lives.position

    def _release(self, saved: Saved) -> None:
        saved.handles -= 1
        if saved.handles:
            return
        saved.released = self._lives.position
        if self._open.get((saved.life, saved.version)) is saved:
            del self._open[saved.life, saved.version]
        self._lives.let_go(saved.life)


def _shown_bytes(tensor: torch.Tensor, life: Life) -> int:
    """What the real tensor has. Some kernels keep results whose fakes are smaller than they are."""
    is_hidden = life.bytes != tensor.untyped_storage().nbytes()
    return life.bytes if is_hidden else tensor.nbytes
