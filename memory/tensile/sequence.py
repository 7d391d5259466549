"""What one training step does to memory: operators, storages, accesses, and the moments that an
executor can see. Plain values, without torch.

Time is counted in *positions*: position `p` is the moment before operator `p`; with N operators it
runs from 0 to N. The step is the steady one (optimizer state exists) and cyclic: after position N
comes position 0 of the next step.

This is the paper's *tensor access sequence* (TENSILE, arXiv 2105.13336, §3): an access that writes
is its OTA, one that reads its ITA. It is kept at the granularity of storages, because a view moves
with its storage.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What a storage is for."""

    PARAMETER = "parameter"
    BUFFER = "buffer"
    GRADIENT = "gradient"
    STATE = "optimizer_state"
    ACTIVATION = "activation"  # saved by autograd for the backward pass
    TEMPORARY = "temporary"
    INPUT = "input"
    LOADER = "loader"  # what the loop holds beside the step


class Phase(StrEnum):
    FORWARD = "forward"
    BACKWARD = "backward"
    UPDATE = "update"  # the optimizer's step


class Moment(StrEnum):
    """What an executor sees of a step, without looking at operators."""

    BEGIN = "begin"
    ENTER = "enter"  # a module with own parameters begins its forward; name: the module
    EXIT = "exit"  # … has ended it
    PACK = "pack"  # autograd saves a storage that it had not saved before; number: the slot
    UNPACK = "unpack"  # autograd asks for a saved tensor; number: the slot
    GRADIENT = "gradient"  # a parameter's gradient is complete; name: the parameter
    CHUNK = "chunk"  # a chunk of the optimizer's step begins; number: the chunk
    CHUNK_END = "chunk_end"
    END = "end"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """One aten call. `workspace_bytes` is what it takes beside its operands while it runs.

    Of a step that was observed, not traced: all that ran between two moments. `measured_s` is how
    long that took, and `workspace_bytes` what no storage accounts for.
    """

    name: str
    phase: Phase
    flops: int
    moved_bytes: int  # bytes of all its operands, read and written
    workspace_bytes: int = 0
    measured_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """A piece of memory. It is there from position `birth` until position `death`.

    `birth` is 0 for what the step finds and N+1 is the `death` of what outlives it. `name` stays
    from step to step and process to process: `parameter:blocks.0.weight`,
    `gradient:blocks.0.weight`, `optimizer_state:blocks.0.weight:exp_avg`, `activation:17` for slot
    17, `input:0`, `loader:0`, `temporary:93` (by the operator that made it). `late_bytes` of it are
    reserved but not touched before its second access, so the operating system counts them from then
    on.
    """

    name: str
    kind: Kind
    bytes: int
    birth: int
    death: int
    late_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    operator: int
    storage: int
    writes: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A moment at `position`. Events of one position keep their order."""

    moment: Moment
    position: int
    number: int = 0
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """What autograd saved: each storage (in one version) has one slot however often it is saved.

    From position `alone` on nobody but autograd holds the storage, until the first of its `unpacks`
    (positions); the last holder lets go at `released`. So it may be away between `alone` and each
    unpack. `alone` is None where somebody else holds it all the time.
    """

    number: int
    storage: int
    packed: int
    alone: int | None
    unpacks: tuple[int, ...]
    released: int
    shown_bytes: int | None = None  # of the tensor that was saved first; its storage's if None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a slot's content can be computed again: by the operators `operators` (of the forward
    pass) of call number `call` of module `module`, from the content of the slot `source`.
    """

    slot: int
    source: int
    module: str
    call: int
    operators: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """One steady step. `accesses` are in order of their operators, `events` of their positions.

    `chunks` are the parameter names of each chunk of the optimizer's step. `signature` is equal for
    equal steps (structure, shapes, optimizer). `notes` say in sentences what was assumed.
    """

    operators: tuple[Operator, ...]
    storages: tuple[Storage, ...]
    accesses: tuple[Access, ...]
    events: tuple[Event, ...]
    slots: tuple[Slot, ...]
    recipes: tuple[Recipe, ...]
    chunks: tuple[tuple[str, ...], ...]
    signature: str
    notes: tuple[str, ...] = ()
