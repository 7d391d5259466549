"""What lasts from step to step, and whether it is on the device: parameters, gradients, states.

A tensor begins in ordinary memory. The first time that it leaves, its storage moves into the
lasting file and the tensor is bound to the mapping; it stays the same Python object, tied weights
stay tied, and anybody may read it at any time.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tensile.lasting_file import LastingFile
from tensile.stats import Counters
from tensile.swap_file import SwapFile, Transfer
from tensile.weak_storage import is_held_once

PARAMETER, GRADIENT, STATE = "parameter:", "gradient:", "optimizer_state:"


class Residency:
    """Names are those of the trace. Only the training thread calls this."""

    def __init__(
        self,
        *,
        parameters: Mapping[str, nn.Parameter],
        buffers: Mapping[str, Tensor],
        optimizers: Sequence[Optimizer],
        file: LastingFile,
        channel: SwapFile,
        counters: Counters,
        smallest_bytes: int,
    ) -> None:
        self._parameters = dict(parameters)
        self._buffers = dict(buffers)
        self._optimizers = tuple(optimizers)
        self._file = file
        self._channel = channel
        self._counters = counters
        self._smallest_bytes = smallest_bytes
        self._names = {id(parameter): name for name, parameter in self._parameters.items()}
        self._away: set[str] = set()
        self._incoming: dict[str, Transfer] = {}
        self._recent: dict[str, None] = dict.fromkeys(  # the longest unused first
            PARAMETER + name for name in self._parameters
        )
        self.register()

    def register(self) -> None:
        """Look again where parameters and buffers are; somebody may have replaced them."""
        self._owned: dict[int, str | None] = {}  # by the address of a storage
        self._tied: dict[str, list[Tensor]] = {}
        for buffer in self._buffers.values():
            self._owned[buffer.untyped_storage()._cdata] = None
        for name, parameter in self._parameters.items():
            key = parameter.untyped_storage()._cdata
            first = self._owned.get(key) or PARAMETER + name
            self._owned[key] = first
            self._tied.setdefault(first, []).append(parameter)
        for buffer in self._buffers.values():
            tied = self._owned[buffer.untyped_storage()._cdata]
            if tied is not None:
                self._tied[tied].append(buffer)

    def take_in(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """More of them, which an optimizer got since."""
        self._parameters |= parameters
        self._names |= {id(parameter): name for name, parameter in parameters.items()}
        self._recent |= dict.fromkeys(PARAMETER + name for name in parameters)
        self.register()

    def owns(self, storage: torch.UntypedStorage) -> bool:
        """Whether it is a parameter's or a buffer's. A parameter is noted as needed now."""
        key = storage._cdata
        if key not in self._owned:
            return False
        name = self._owned[key]
        if name is not None:
            self.need(name)
        return True

    def name_of(self, parameter: Tensor) -> str:
        return self._names[id(parameter)]

    def of_parameter(self, name: str) -> Iterator[str]:
        """All that belongs to a parameter: itself, its gradient, its states."""
        yield PARAMETER + name
        yield GRADIENT + name
        yield from (f"{STATE}{name}:{path}" for path, _ in self._states(name))

    def evict(self, name: str, *, dirty: bool = True) -> int:
        """Let it leave the device, and answer how many bytes do; 0 where that cannot be, now or
        ever. Raises TierError.
        """
        tensors = self._tensors(name)
        if not tensors:
            return 0
        storage = tensors[0].untyped_storage()
        size_bytes = storage.nbytes()
        if size_bytes < max(self._smallest_bytes, 1):
            return 0
        if name in self._incoming:
            self._incoming.pop(name).wait()
        if self._file.holds(storage):
            self._file.evict(storage)
        else:
            if not _is_plain(tensors) or not is_held_once(storage, len(tensors)):
                return 0  # somebody else looks at it and would not see what changes
            self._bind(tensors, self._file.place(storage))
        if name not in self._away:
            self._away.add(name)
            self._counters.swapped_out_bytes += size_bytes if dirty else 0
        self._recent.pop(name, None)
        return size_bytes

    def ask(self, name: str) -> None:
        """Begin to bring it back."""
        storage = self._placed(name) if name in self._away else None
        if storage is None:
            return
        self._away.discard(name)
        self._recent[name] = None
        writes = name.startswith(STATE)
        fetch = self._file.fetch
        self._counters.swapped_in_bytes += storage.nbytes()
        self._counters.fetches += 1
        self._incoming[name] = self._channel.ask(
            lambda: fetch(storage, writes=writes), storage.nbytes()
        )

    def need(self, name: str) -> None:
        """It is used now. Waits for what is on the way, and fetches what was not asked back."""
        transfer = self._incoming.pop(name, None)
        if transfer is not None and not transfer.ended:
            begin_s = time.perf_counter()
            transfer.wait()
            self._counters.stall_s += time.perf_counter() - begin_s
        if name in self._away:
            self._away.discard(name)
            storage = self._placed(name)
            if storage is not None:
                begin_s = time.perf_counter()
                self._channel.wait_for_turn(storage.nbytes())
                self._file.fetch(storage, writes=name.startswith(STATE))
                self._counters.stall_s += time.perf_counter() - begin_s
                self._counters.passive_fetches += 1
                self._counters.swapped_in_bytes += storage.nbytes()
                self._counters.fetches += 1
        self._recent.pop(name, None)
        self._recent[name] = None

    def arrive(self) -> None:
        """Wait for all that is on the way."""
        for name in tuple(self._incoming):
            self._incoming.pop(name).wait()

    def is_away(self, names: Iterable[str]) -> bool:
        """Whether any of them is below and nobody has asked it back."""
        return not self._away.isdisjoint(names)

    def away_bytes(self, names: Iterable[str]) -> int:
        """Bytes of those that are below and that nobody has asked back."""
        away = (self._placed(name) for name in names if name in self._away)
        return sum(storage.nbytes() for storage in away if storage is not None)

    def away(self) -> tuple[str, ...]:
        """Names of all that is below."""
        return tuple(self._away)

    def has_states(self, name: str) -> bool:
        """Whether an optimizer has stepped that parameter before."""
        return next(self._states(name), None) is not None

    def made(self, name: str) -> None:
        """It was written just now, so it is on the device, whatever was known of its name."""
        self._away.discard(name)
        self._incoming.pop(name, None)
        self._recent.pop(name, None)
        self._recent[name] = None

    def candidates(self, in_use: frozenset[str]) -> list[str]:
        """What could leave: states, then gradients, then the parameters that were not used for the
        longest time.
        """
        return [
            name
            for kind in (STATE, GRADIENT, PARAMETER)
            for name in self._recent
            if name.startswith(kind) and name not in in_use
        ]

    def evict_mapped(self) -> None:
        """Everything that was placed leaves, whoever brought it in."""
        self._file.evict_all()

    def evict_everything(self) -> None:
        """All that can leave does, also what came back or was made without a word."""
        for name in tuple(self._all()):
            self.evict(name)

    def here(self) -> tuple[str, ...]:
        """What is known to be on the device."""
        return tuple(self._recent)

    def bytes_of(self, name: str) -> int:
        tensors = self._tensors(name)
        return tensors[0].untyped_storage().nbytes() if tensors else 0

    def sizes(self) -> dict[str, int]:
        """Bytes of all that is there, by name."""
        found = {name: self.bytes_of(name) for name in self._all()}
        return {name: size_bytes for name, size_bytes in found.items() if size_bytes > 0}

    def versions(self) -> dict[str, int]:
        """Of parameters and gradients: a version that has changed says that they were written."""
        names = (kind + name for name in self._parameters for kind in (PARAMETER, GRADIENT))
        found = {name: self.version(name) for name in names}
        return {name: version for name, version in found.items() if version is not None}

    def version(self, name: str) -> int | None:
        """None for what is not there."""
        tensors = self._tensors(name)
        return tensors[0]._version if tensors else None

    def owner_of(self, storage: torch.UntypedStorage) -> str | None:
        """The parameter over that storage, by its name here."""
        return self._owned.get(storage._cdata)

    @property
    def incoming_bytes(self) -> int:
        transfers = self._incoming.values()
        return sum(t.bytes for t in transfers if not t.ended) if transfers else 0

    @property
    def lasting_bytes(self) -> int:
        """Bytes of all parameters, their gradients and states that are there."""
        return storage_bytes(tensor for name in self._all() for tensor in self._tensors(name)[:1])

    @property
    def model_bytes(self) -> int:
        """The same with buffers, which never leave."""
        lasting = (tensor for name in self._all() for tensor in self._tensors(name)[:1])
        return storage_bytes((*lasting, *self._buffers.values()))

    def go_home(self) -> None:
        """Everything back into ordinary memory, for good."""
        for name in tuple(self._all()):
            tensors = self._tensors(name)
            if tensors and self._file.holds(tensors[0].untyped_storage()):
                self._bind(tensors, _copied(tensors[0].untyped_storage()))
        self._away.clear()
        self._incoming.clear()

    def _all(self) -> Iterator[str]:
        for name in self._parameters:
            yield from self.of_parameter(name)

    def _tensors(self, name: str) -> list[Tensor]:
        """The tensors over the storage of that name; none where there is no such thing now."""
        if name.startswith(PARAMETER):
            return self._tied.get(name, [])
        if name.startswith(GRADIENT):
            path = name.removeprefix(GRADIENT).removesuffix(":previous")
            parameter = self._parameters.get(path)
            gradient = None if parameter is None else parameter.grad
            return [] if gradient is None else [gradient]
        if name.startswith(STATE):
            owner, _, path = name.removeprefix(STATE).rpartition(":")
            return [tensor for found, tensor in self._states(owner) if found == path]
        return []

    def _placed(self, name: str) -> torch.UntypedStorage | None:
        """Its storage, if that is in the file; a tensor may have been replaced meanwhile."""
        tensors = self._tensors(name)
        storage = tensors[0].untyped_storage() if tensors else None
        return storage if storage is not None and self._file.holds(storage) else None

    def _states(self, name: str) -> Iterator[tuple[str, Tensor]]:
        parameter = self._parameters.get(name)
        for optimizer in self._optimizers:
            if parameter is not None and parameter in optimizer.state:
                for key, value in optimizer.state[parameter].items():
                    if isinstance(value, Tensor):
                        yield str(key), value

    def _bind(self, tensors: Sequence[Tensor], storage: torch.UntypedStorage) -> None:
        for tensor in tensors:
            self._rebind(tensor, storage)
        if any(id(tensor) in self._names for tensor in tensors):
            self.register()

    @staticmethod
    def _rebind(tensor: Tensor, storage: torch.UntypedStorage) -> None:
        """The same object over another storage of the same content; its version stays."""
        moved = torch.empty(0, dtype=tensor.dtype)
        with torch.no_grad():
            moved.set_(storage, tensor.storage_offset(), tensor.size(), tensor.stride())
            tensor.data = moved


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Of their storages, each once."""
    storages = (tensor.untyped_storage() for tensor in tensors)
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


def _copied(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    content = torch.empty(0, dtype=torch.uint8).set_(storage)
    copy: torch.UntypedStorage = content.clone().untyped_storage()
    return copy


def _is_plain(tensors: Sequence[Tensor]) -> bool:
    return all(
        type(t) in (Tensor, nn.Parameter) and t.layout == torch.strided and t.is_cpu
        for t in tensors
    )
