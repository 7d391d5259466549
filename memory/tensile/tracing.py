"""One steady training step under fake tensors: what every operator does to every storage."""

from __future__ import annotations

import functools
import gc
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves, tree_map_only

from tensile import names
from tensile.beside import with_beside
from tensile.calls import Calls
from tensile.chunks import Chunk, chunks, is_chunkable, narrowed
from tensile.fakes import Fakes, exchanged
from tensile.frontend import Frontend, refuse_real
from tensile.held_generators import held_generators
from tensile.lives import Life, Lives
from tensile.names import Models, Optimizers
from tensile.randomness import undisturbed
from tensile.recorder import Recorder, TraceError, numbered
from tensile.saved import SavedTensors
from tensile.sequence import Event, Kind, Moment, Slot, Storage, Trace
from tensile.signature import signature

Batch = TypeVar("Batch")


def trace(
    train_step: Callable[[Batch], object],
    model: Models,
    optimizer: Optimizers,
    batch: Batch,
    *,
    beside_bytes: int = 0,
) -> Trace:
    """What one call of `train_step(batch)` does to memory, from the second call on.

    Runs the step twice with fake tensors in the places of the real ones, so nothing is allocated
    and nothing is computed. `model` is a module or a mapping of modules, `optimizer` one or a
    sequence, `batch` any pytree; `beside_bytes` is what the loop holds meanwhile, such as a batch
    that is loaded ahead (`beside.py`). Optimizers run in the chunks of `tensile.chunks`.

    Afterwards parameters, buffers, gradients, optimizer state, training flags and the generators of
    Python, NumPy and torch are bit for bit as before, also when the step raises. So are generators
    that the step holds itself (`held_generators.py` says which are found), its captured variables,
    the contents of captured lists and dictionaries, and captured schedulers and scalers. Whatever
    else the step does to Python objects does happen, twice: an object's own counter counts. What it
    prints is dropped. Numbers that it reads from tensors are 1.

    Raises TraceError for a step that fails so: it branches on a tensor's value, uses an operator
    without a fake kernel, or gets at a parameter by a way that is not known here.
    """
    with undisturbed(held_generators(train_step, *names.modules(model).values())):
        found = _Tracing(train_step, model, optimizer).run(batch)
    return with_beside(found, beside_bytes)


class _Tracing:
    def __init__(
        self, train_step: Callable[[Any], object], model: Models, optimizer: Optimizers
    ) -> None:
        self._train_step = train_step
        self._model = model
        self._optimizer = optimizer
        self._optimizers = names.optimizers(optimizer)
        self._parameters = names.parameters(model, optimizer)
        self._buffers = names.buffers(model)
        self._notes: list[str] = []
        self._events: list[Event] = []
        self._lives = Lives()
        self._mode = FakeTensorMode(allow_non_fake_inputs=False)
        self._fakes = Fakes(self._mode)
        self._outside: list[Life] = []
        self._managed = {
            tensor.untyped_storage()._cdata: name
            for name, tensor in (*self._parameters.items(), *self._buffers.items())
        }
        self._recorder = Recorder(self._lives, self._mode, self._foreign)
        self._saved = SavedTensors(self._lives, self._mode, self._foreign, self._events.append)
        named = {module: name for name, module in reversed(names.modules(model).items())}
        self._calls = Calls(named, self._lives, self._events.append)

    def run(self, batch: object) -> Trace:
        fingerprint = signature(self._model, self._optimizer, batch)
        pieces = chunks(self._optimizers)
        piece_names = tuple(self._names_of(piece) for piece in pieces)
        with (
            exchanged(self._fakes, self._model, self._optimizer, self._train_step),
            ExitStack() as held,
        ):
            fake_batch = tree_map_only(Tensor, self._fakes.of, batch)
            self._name_persistent()
            for number, leaf in enumerate(
                leaf for leaf in tree_leaves(fake_batch) if isinstance(leaf, FakeTensor)
            ):
                self._name(leaf, Kind.INPUT, f"input:{number}")
            for fake in self._fakes.brought:
                self._name_brought(fake)
            for name, parameter in self._parameters.items():
                # a hook that stays would hold all of this for good: no collector sees into its node
                held.callback(self._watched_gradient(name, self._fakes.of(parameter)))
            for number, each in enumerate(self._optimizers):
                each.step = self._chunked(  # type: ignore[method-assign]
                    each, [(i, p) for i, p in enumerate(pieces) if p.optimizer == number]
                )
            held.enter_context(_collected())
            held.enter_context(self._mode)
            held.enter_context(self._recorder)
            held.enter_context(Frontend(self._managed_name))
            held.enter_context(saved_tensors_hooks(self._saved.pack, self._saved.unpack))
            held.enter_context(self._calls.watched())
            for _ in range(2):  # the first one makes the optimizer's state, the second one is kept
                self._begin_step()
                self._call(fake_batch)
                self._name_persistent()
            self._event(Moment.END)
            steady = self._finished(fingerprint, piece_names)
        return steady

    def _begin_step(self) -> None:
        gc.collect(0)  # what the step before left in cycles is young: nothing was collected since
        self._lives.begin_step()
        self._recorder.begin_step()
        self._saved.begin_step()
        self._calls.begin_step()
        self._events.clear()
        self._name_gradients()
        self._event(Moment.BEGIN)
        self._recorder.begin()

    def _call(self, batch: object) -> None:
        try:
            with redirect_stdout(io.StringIO()):  # its numbers would mislead
                self._train_step(batch)
        except TraceError:
            raise
        except Exception as error:
            raise TraceError(
                f"the step does not run with fake tensors: {type(error).__name__}: {error}"
            ) from error

    # names and kinds

    def _name(self, tensor: Tensor, kind: Kind, name: str) -> None:
        if tensor.layout != torch.strided:
            return
        life = self._lives.found(tensor)
        if life.name is None or life.kind in (Kind.TEMPORARY, Kind.ACTIVATION):
            life.kind, life.name = kind, name

    def _name_persistent(self) -> None:
        for name, parameter in self._parameters.items():
            fake = self._fakes.of(parameter)
            self._name(fake, Kind.PARAMETER, f"parameter:{name}")
        for name, buffer in self._buffers.items():
            self._name(self._fakes.of(buffer), Kind.BUFFER, f"buffer:{name}")
        for name, buffer in names.buffers(self._model).items():  # a step may have put a new one
            self._name(buffer, Kind.BUFFER, f"buffer:{name}")
        self._name_gradients()
        name_of = {id(self._fakes.of(p)): name for name, p in self._parameters.items()}
        for number, each in enumerate(self._optimizers):
            for owner, state in each.state.items():
                prefix = f"optimizer_state:{name_of.get(id(owner), f'optimizer.{number}')}"
                for path, tensor in _tensors(state):
                    self._name(tensor, Kind.STATE, f"{prefix}:{path}")

    def _name_gradients(self) -> None:
        for name, parameter in self._parameters.items():
            gradient = self._fakes.of(parameter).grad
            if gradient is not None:
                self._name(gradient, Kind.GRADIENT, f"gradient:{name}")

    def _managed_name(self, tensor: Tensor) -> str | None:
        """The name of a real parameter or buffer; None for every other tensor."""
        if isinstance(tensor, FakeTensor) or tensor.layout != torch.strided:
            return None
        return self._managed.get(tensor.untyped_storage()._cdata)

    def _foreign(self, tensor: Tensor) -> Tensor:
        """A real tensor that the step got hold of where nobody looked for it."""
        refuse_real(self._managed_name(tensor))
        fake = self._fakes.of(tensor)
        self._name_brought(fake)
        return fake

    def _name_brought(self, fake: Tensor) -> None:
        """What the step brought along: a constant, a mask, an average of weights."""
        if fake.layout == torch.strided and self._lives.find(fake) is None:
            life = self._lives.found(fake)
            life.kind, life.name = Kind.INPUT, f"input:captured.{len(self._outside)}"
            self._outside.append(life)

    # moments

    def _event(self, moment: Moment, number: int = 0, name: str = "") -> None:
        self._events.append(
            Event(moment=moment, position=self._lives.position, number=number, name=name)
        )

    def _watched_gradient(self, name: str, parameter: Tensor) -> Callable[[], None]:
        """Answers what ends it."""

        def complete(owner: Tensor) -> None:
            if owner.grad is not None:
                self._name(owner.grad, Kind.GRADIENT, f"gradient:{name}")
            self._event(Moment.GRADIENT, name=name)

        if not parameter.requires_grad:
            return lambda: None
        handle = parameter.register_post_accumulate_grad_hook(complete)  # type: ignore[no-untyped-call]
        end: Callable[[], None] = handle.remove
        return end

    def _chunked(self, optimizer: Optimizer, pieces: Sequence[tuple[int, Chunk]]) -> Any:
        """The optimizer's `step` in pieces; a closure runs before the first of them."""
        original = optimizer.step
        if not is_chunkable(optimizer):
            self._notes.append(
                f"{type(optimizer).__qualname__} is not known to treat each parameter alone, or "
                "has hooks on its step: its step is one piece"
            )

        # of the function, not of the method: who asks for the signature takes `self` off once more
        @functools.wraps(getattr(original, "__func__", original))
        def step(_: Optimizer, closure: Callable[[], Any] | None = None, **options: Any) -> Any:
            loss = None
            if closure is not None and is_chunkable(optimizer):
                with torch.enable_grad():
                    loss, closure = closure(), None
            outside, self._recorder.updating = self._recorder.updating, True
            try:
                for number, piece in pieces:
                    self._event(Moment.CHUNK, number)
                    with narrowed(optimizer, piece):
                        extra = {} if closure is None else {"closure": closure}
                        result = original(**extra, **options)
                    loss = result if loss is None else loss
                    self._event(Moment.CHUNK_END, number)
            finally:
                self._recorder.updating = outside
            return loss

        return MethodType(step, optimizer)

    def _names_of(self, piece: Chunk) -> tuple[str, ...]:
        name_of = {id(parameter): name for name, parameter in self._parameters.items()}
        groups = self._optimizers[piece.optimizer].param_groups
        owned = [p for group in groups for p in group["params"]]
        if piece.group is not None:
            owned = groups[piece.group]["params"]
        return tuple(name_of[id(parameter)] for parameter in owned[piece.start : piece.stop])

    # the result

    def _finished(self, fingerprint: str, piece_names: tuple[tuple[str, ...], ...]) -> Trace:
        count = self._lives.position
        slots = self._saved.slots
        used = {life for _, life, _ in self._recorder.accesses} | {slot.life for slot in slots}
        lives = [life for life in self._lives if life not in self._outside or life in used]
        for saved in reversed(slots):  # the first slot of a storage gives it its name
            if saved.life.kind in (Kind.TEMPORARY, Kind.ACTIVATION):
                saved.life.kind, saved.life.name = Kind.ACTIVATION, f"activation:{saved.number}"
        number = {life: index for index, life in enumerate(lives)}
        taken: set[str] = set()
        storages = []
        # what a step finds and what it leaves may be one thing in two storages (a gradient that the
        # next step sets to none): the later one, which the next step finds, has the name
        for index, life in reversed(list(enumerate(lives))):
            name = life.name or f"temporary:{life.maker if life.maker >= 0 else f'found.{index}'}"
            unique = name
            for attempt in range(len(lives)):
                if unique not in taken:
                    break
                unique = f"{name}:previous" if attempt == 0 else f"{name}:{attempt}"
            taken.add(unique)
            storages.append(
                Storage(
                    name=unique,
                    kind=life.kind,
                    bytes=life.bytes,
                    late_bytes=life.late_bytes,
                    birth=life.birth,
                    death=count + 1 if life.death is None else life.death,
                )
            )
        return Trace(
            operators=tuple(self._recorder.operators),
            storages=tuple(reversed(storages)),
            accesses=tuple(numbered(self._recorder.accesses, number)),
            events=tuple(self._events),
            slots=tuple(
                Slot(
                    number=saved.number,
                    storage=number[saved.life],
                    packed=saved.packed,
                    alone=saved.alone,
                    unpacks=tuple(saved.unpacks),
                    released=count + 1 if saved.released is None else saved.released,
                    shown_bytes=saved.shown_bytes,
                )
                for saved in slots
            ),
            recipes=self._calls.recipes(slots),
            chunks=piece_names,
            signature=fingerprint,
            notes=tuple(dict.fromkeys(self._notes)),
        )


def _tensors(value: object, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor inside an optimizer's state of a parameter, by its path."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _tensors(item, f"{path}.{index}" if path else str(index))


@contextmanager
def _collected() -> Iterator[None]:
    """No collection of cycles inside: it would come at other moments than in a real step."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
